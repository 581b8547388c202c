//! Tickets sealed, opened, and tampered with.

use std::fs;

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use tidegate_protocol::grants::{ChannelPattern, Grants};
use tidegate_protocol::{ChannelName, NodeId, SessionId};

use super::*;

const EXPIRES: u64 = 1_000_000;

fn ticket() -> Ticket {
    Ticket {
        session: SessionId::from_bytes([3; 16]),
        generation: 4,
        user: Some("ann".into()),
        grants: Arc::new(Grants { subscribe: vec![ChannelPattern::new("room:*")], ..Grants::default() }),
        subscriptions: vec![ChannelName::new("user:ann").expect("valid")],
        token_expires_ms: Some(9_000_000),
        expires_ms: EXPIRES,
        node: NodeId::new("edge-1"),
        worker: 1,
    }
}

fn random(seed: u64) -> TicketKeys {
    TicketKeys::random(&mut ChaCha8Rng::seed_from_u64(seed))
}

#[test]
fn what_was_sealed_opens_until_it_expires_and_by_this_fleet_alone() {
    let keys = random(1);
    let text = keys.seal(&ticket()).expect("it fits");
    assert_eq!(keys.open(&text, EXPIRES - 1), Ok(ticket()));
    assert_eq!(keys.open(&text, EXPIRES), Err(OpenError::Expired));
    assert_eq!(random(2).open(&text, 0), Err(OpenError::Foreign));
    assert_ne!(keys.seal(&ticket()), Some(text), "nonces differ");
}

#[test]
fn nothing_of_a_ticket_can_be_changed() {
    let keys = random(1);
    let bytes = URL_SAFE_NO_PAD.decode(keys.seal(&ticket()).expect("it fits")).expect("base64url");
    for index in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[index] ^= 1 << bit;
            let error = keys.open(&URL_SAFE_NO_PAD.encode(changed), 0).expect_err("changed");
            let expected = if index < HEAD_BYTES { OpenError::Foreign } else { OpenError::Malformed };
            assert_eq!(error, expected, "bit {bit} of byte {index}");
        }
    }
    for length in 0..bytes.len() {
        let error = keys.open(&URL_SAFE_NO_PAD.encode(&bytes[..length]), 0).expect_err("cut off");
        assert_eq!(error, OpenError::Malformed, "{length} bytes of it");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(keys.open(&URL_SAFE_NO_PAD.encode(longer), 0), Err(OpenError::Malformed));
    assert_eq!(keys.open(&"A".repeat(MAX_TICKET_BYTES + 1), 0), Err(OpenError::Malformed));
    assert_eq!(keys.open(&"A".repeat(MAX_TICKET_BYTES), 0), Err(OpenError::Foreign));
}

#[test]
fn a_ticket_that_would_be_too_long_is_none() {
    let keys = random(1);
    let with = |count: usize| {
        let subscribe = vec![ChannelPattern::new(&"x".repeat(200)); count];
        keys.seal(&Ticket { grants: Arc::new(Grants { subscribe, ..Grants::default() }), ..ticket() })
    };
    assert_eq!(with(40), None);
    let long = with(29).expect("it fits");
    assert!(long.len() <= MAX_TICKET_BYTES && keys.open(&long, 0).is_ok());
}

#[test]
fn keys_are_exchanged_under_running_sessions() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("keys");
    let (old, new) = ("A".repeat(43) + "=", "0f".repeat(32));
    fs::write(&path, format!("# ours\n{old}\n")).expect("written");
    let keys = TicketKeys::read(std::slice::from_ref(&path)).expect("usable");
    let first = keys.seal(&ticket()).expect("it fits");
    assert!(!keys.refresh().changed);
    // The new one opens everywhere before it seals anywhere.
    fs::write(&path, format!("{old}\n{new}\n")).expect("written");
    assert!(keys.refresh().changed);
    let second = keys.seal(&ticket()).expect("it fits");
    assert_eq!(first[..12], second[..12], "of the same key");
    fs::write(&path, format!("{new}\r\n\n{old}")).expect("written");
    assert!(keys.refresh().changed);
    let third = keys.seal(&ticket()).expect("it fits");
    assert_ne!(first[..12], third[..12]);
    for text in [&first, &second, &third] {
        assert_eq!(keys.open(text, 0), Ok(ticket()));
    }
    fs::write(&path, &new).expect("written");
    assert!(keys.refresh().changed);
    assert_eq!(keys.open(&first, 0), Err(OpenError::Foreign));
    assert_eq!(keys.open(&third, 0), Ok(ticket()));
}

#[test]
fn files_that_hold_something_else_are_reported_once_and_the_old_keys_stay() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("keys");
    fs::write(&path, "0f".repeat(32)).expect("written");
    let keys = TicketKeys::read(std::slice::from_ref(&path)).expect("usable");
    let text = keys.seal(&ticket()).expect("it fits");
    for (content, problem) in [
        ("# nothing\n", "holds no ticket key: make one with `openssl rand -base64 32`"),
        (&"0f".repeat(31), "line 1 is no ticket key: 32 bytes"),
        (&format!("{}\n{}", "0f".repeat(32), "0g".repeat(32)), "line 2 is no ticket key: 32 bytes"),
        (&"A".repeat(44), "line 1 is no ticket key: 32 bytes"),
        (&format!("{}\n", "0f".repeat(32)).repeat(17), "more than 16 ticket keys"),
    ] {
        fs::write(&path, content).expect("written");
        let told = keys.refresh();
        assert!(!told.changed && told.problems.len() == 1);
        let told = told.problems[0].to_string();
        assert!(told.contains(problem) && told.contains("keys"), "{told}");
        assert!(!told.contains("0f0f"), "{told}");
        assert!(keys.refresh().problems.is_empty(), "once");
        assert_eq!(keys.open(&text, 0), Ok(ticket()));
        assert!(TicketKeys::read(std::slice::from_ref(&path)).is_err());
    }
    fs::remove_file(&path).expect("removed");
    let told = keys.refresh().problems;
    assert!(told[0].to_string().contains("cannot read"), "{}", told[0]);
    assert_eq!(keys.open(&text, 0), Ok(ticket()));
}

proptest! {
    #[test]
    fn any_text_is_refused(text in ".{0,300}") {
        prop_assert!(random(1).open(&text, 0).is_err());
    }

    #[test]
    fn any_bytes_behind_our_head_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let keys = random(1);
        let head = head(&keys.ring()[0]);
        let text = URL_SAFE_NO_PAD.encode([&head[..], &bytes].concat());
        prop_assert_eq!(keys.open(&text, 0), Err(OpenError::Malformed));
    }
}
