//! Tickets as bytes.

use proptest::prelude::*;

use super::*;

fn channels() -> impl Strategy<Value = Vec<ChannelName>> {
    prop::collection::vec("[a-z:*é]{1,20}".prop_map(|name| ChannelName::new(&name).expect("valid")), 0..4)
}

fn patterns() -> impl Strategy<Value = Vec<ChannelPattern>> {
    prop::collection::vec(".{0,12}".prop_map(|text| ChannelPattern::new(&text)), 0..4)
}

fn tickets() -> impl Strategy<Value = Ticket> {
    let who = (any::<[u8; 16]>(), any::<u32>(), prop::option::of(".{1,20}"));
    let what = (patterns(), patterns(), patterns(), channels());
    let when = (prop::option::of(any::<u64>()), any::<u64>());
    (who, what, when, "[a-z0-9-]{0,12}", any::<u8>()).prop_map(|(who, what, when, node, worker)| Ticket {
        session: SessionId::from_bytes(who.0),
        generation: who.1,
        user: who.2.map(Arc::from),
        grants: Arc::new(Grants { subscribe: what.0, publish: what.1, presence: what.2 }),
        subscriptions: what.3,
        token_expires_ms: when.0,
        expires_ms: when.1,
        node: NodeId::new(&node),
        worker,
    })
}

proptest! {
    #[test]
    fn what_was_encoded_decodes(ticket in tickets()) {
        prop_assert_eq!(Ticket::decode(&ticket.encode()), Ok(ticket));
    }

    #[test]
    fn any_bytes_decode_to_an_error_or_a_ticket(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(ticket) = Ticket::decode(&bytes) {
            prop_assert_eq!(Ticket::decode(&ticket.encode()), Ok(ticket));
        }
    }

    #[test]
    fn half_a_ticket_does_not_make_it_panic(ticket in tickets(), cut in any::<prop::sample::Index>()) {
        let bytes = ticket.encode();
        let _ = Ticket::decode(&bytes[..cut.index(bytes.len())]);
    }
}

#[test]
fn the_token_s_end_is_carried_over() {
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    let now = Instant::now();
    let ticket = |token_expires_ms| Ticket {
        session: SessionId::from_bytes([7; 16]),
        generation: 0,
        user: Some("ann".into()),
        grants: Arc::default(),
        subscriptions: Vec::new(),
        token_expires_ms,
        expires_ms: 5_000,
        node: NodeId::new("edge-1"),
        worker: 3,
    };
    let expires = |at, unix_ms| ticket(at).identity(now, unix_ms).map(|identity| identity.expires);
    assert_eq!(expires(None, 1_000), Some(None));
    assert_eq!(expires(Some(1_500), 1_000), Some(Some(now + Duration::from_millis(500))));
    assert_eq!(expires(Some(1_000), 1_000), None);
    assert_eq!(expires(Some(1), 1_000), None);
    assert!(ticket(None).is_expired(5_000) && !ticket(None).is_expired(4_999));
}
