//! Every frame there and back, and what is no frame.

use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use super::schema::{Beside, BesideBody, Core, CoreBody, Edge, EdgeBody};
use super::*;
use crate::frame::shared::{Framing, SharedFrame};
use crate::frame::{Ephemeral, Join, Leave, Publication, ServerBody, ServerFrame};
use crate::link::fleet::{EdgeCondition, EdgeState, FleetEntry, MAX_ENDPOINTS, MAX_RELAY_BYTES, Relayed};
use crate::link::{
    CoreFrame, Delivery, Directory, DirectoryNode, DirectoryPartition, EdgeFrame, Hello, HistoryRange,
    LinkName, Members, Publish, Recovery, Welcome,
};
use crate::session::resume::{AttemptKey, Outcome, Spending, Told};
use crate::{NodeId, Region};

proptest! {
    #[test]
    fn edge_frames_survive_in_any_pieces(frames in vec(edge_frame(), 1..8), piece in 1..200_usize) {
        prop_assert_eq!(carry(&frames, piece), frames);
    }

    #[test]
    fn core_frames_survive_in_any_pieces(frames in vec(core_frame(), 1..8), piece in 1..200_usize) {
        prop_assert_eq!(carry(&frames, piece), frames);
    }

    #[test]
    fn what_is_said_beside_frames_survives(control in control()) {
        let mut batch = Batch::default();
        batch.put_control(&control);
        let mut decoder = LinkDecoder::default();
        push(&mut decoder, batch);
        prop_assert_eq!(decoder.next_control().expect("our own bytes"), Some(control));
        prop_assert!(decoder.is_empty());
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..400)) {
        refuse_or_take(&bytes);
    }

    #[test]
    fn no_change_of_a_byte_panics(frame in core_frame(), place: prop::sample::Index, value: u8) {
        let mut batch = Batch::default();
        batch.put(&frame);
        let mut bytes = batch.take().concat();
        let place = place.index(bytes.len());
        bytes[place] = value;
        refuse_or_take(&bytes);
    }
}

#[test]
fn payloads_session_ids_and_keys_arrive_whole() {
    // They keep out of `Debug`, so they are compared by hand.
    let session = SessionId::from_bytes([0xab; 16]);
    let spending = Spending {
        session,
        generation: 7,
        key: Some(AttemptKey([0xcd; 16])),
        early: true,
        remember: Duration::from_secs(90),
    };
    let holder = LinkName { node: NodeId::new("edge-1"), worker: 255 };
    let frames = carry(&[EdgeFrame::Spend { request: 1, spending, holder }], 5);
    let [EdgeFrame::Spend { spending: carried, .. }] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(carried.session.to_bytes(), [0xab; 16]);
    assert_eq!(carried.key.expect("a key").0, [0xcd; 16]);
    assert_eq!(carried.remember, Duration::from_secs(90));
}

#[test]
fn a_publication_is_encoded_once_and_not_again_behind_the_link() {
    for bytes in [10, 100_000] {
        let delivery = publication("room:1", 3, bytes);
        let encoded = delivery.frame.encoded(Framing::Delimited).clone();
        let mut links = [Batch::default(), Batch::default()];
        for batch in &mut links {
            batch.put(&CoreFrame::Publication(delivery.clone()));
        }
        let chunks: Vec<Vec<Bytes>> = links.iter_mut().map(Batch::take).collect();
        let is_shared = |chunks: &Vec<Bytes>| chunks.iter().any(|chunk| chunk.as_ptr() == encoded.as_ptr());
        assert_eq!(chunks.iter().all(is_shared), bytes >= SHARED_FROM, "large ones are not copied");

        let mut decoder = LinkDecoder::default();
        chunks[0].iter().for_each(|chunk| decoder.push(chunk));
        let Ok(Some(CoreFrame::Publication(carried))) = decoder.next() else { panic!("a publication") };
        assert_eq!((carried.channel.as_str(), carried.offset), ("room:1", Offset(3)));
        let again = carried.frame.encoded(Framing::Delimited);
        assert_eq!(again, &encoded);
        // The payload lies in the encoding: nothing was made a second time.
        let Some(ServerBody::Publication(inside)) = &carried.frame.frame().body else { panic!("another") };
        let payload = inside.data_base64.as_ref().expect("binary");
        assert!(again.as_ptr_range().contains(&payload.as_ptr()));
    }
}

#[test]
fn a_long_history_is_cut_into_messages_and_put_together() {
    let recovery = |count: u64, bytes| Recovery {
        position: Position::new(Epoch::new("1-1"), Offset(count)),
        recovered: true,
        publications: (1..=count)
            .map(|offset| Publication {
                channel: "room:1".to_owned(),
                offset,
                data_base64: Some(vec![7; bytes].into()),
                ..Publication::default()
            })
            .collect(),
    };
    let frame = CoreFrame::Recovered { request: 9, result: Ok(recovery(3_000, 1_000)) };
    let mut batch = Batch::default();
    batch.put(&frame);
    assert!(batch.len() > 3_000_000);
    let bytes = batch.take().concat();
    let longest = message_lengths(&bytes).into_iter().max().expect("several");
    assert!(longest <= PART_BYTES + 1_100, "{longest}");
    let mut decoder = LinkDecoder::new(PART_BYTES + 1_100);
    decoder.push(&bytes);
    assert_eq!(decoder.next::<CoreFrame>().expect("our own bytes"), Some(frame));
    assert!(decoder.is_empty());

    // More than is ever carried: the answer is that of a history which does not reach back so far.
    let frame = CoreFrame::Recovered { request: 9, result: Ok(recovery(70, 1 << 20)) };
    let carried = carry(&[frame], 1 << 20);
    let [CoreFrame::Recovered { request: 9, result: Ok(recovery) }] = &carried[..] else { panic!("a reply") };
    assert!(!recovery.recovered && recovery.publications.is_empty());
    assert_eq!(recovery.position.offset, Offset(70));
}

#[test]
fn everything_in_a_message_is_checked() {
    let long = "x".repeat(256);
    let subscribe = |channel: &str, epoch: &str| {
        EdgeBody::Subscribe(schema::Subscribe {
            request: 1,
            channel: channel.to_owned(),
            position: Some(schema::Position { epoch: epoch.to_owned(), offset: 1 }),
        })
    };
    let publish = |data: Option<&'static [u8]>, data_base64: Option<&'static [u8]>| {
        EdgeBody::Publish(schema::Publish {
            channel: "a".to_owned(),
            data: data.map(Bytes::from_static),
            data_base64: data_base64.map(Bytes::from_static),
            ..schema::Publish::default()
        })
    };
    let spend = |session: usize, key: usize, node: &str, worker| {
        EdgeBody::Spend(schema::Spend {
            session: vec![1; session],
            key: Some(vec![1; key]),
            node: node.to_owned(),
            worker,
            ..schema::Spend::default()
        })
    };
    for (body, good) in [
        (subscribe("a", "e"), true),
        (subscribe("", "e"), false),
        (subscribe("a b", "e"), false),
        (subscribe(&long, "e"), false),
        (subscribe("a", &long), false),
        (publish(Some(b"{}"), None), true),
        (publish(None, Some(b"{")), true),
        (publish(Some(b"{"), None), false),
        (publish(Some(b"\xff"), None), false),
        (publish(None, None), false),
        (publish(Some(b"{}"), Some(b"")), false),
        (spend(16, 16, "edge-1", 255), true),
        (spend(15, 16, "edge-1", 0), false),
        (spend(16, 17, "edge-1", 0), false),
        (spend(16, 16, "", 0), false),
        (spend(16, 16, &long, 0), false),
        (spend(16, 16, "edge-1", 256), false),
    ] {
        let mut decoder = LinkDecoder::default();
        decoder.push(&Edge { body: Some(body.clone()) }.encode_length_delimited_to_vec());
        assert_eq!(decoder.next::<EdgeFrame>().is_ok(), good, "{body:?}");
    }

    let shared = |id, body| Bytes::from(ServerFrame { id, body }.encode_length_delimited_to_vec());
    let good = Publication {
        channel: "a".to_owned(),
        offset: 1,
        data: Some(Bytes::from_static(b"1")),
        ..Publication::default()
    };
    let told = |publication: Publication| {
        CoreBody::Publication(shared(0, Some(ServerBody::Publication(publication))))
    };
    let recovered = |publications: &[Publication]| {
        let mut list = Vec::new();
        publications.iter().for_each(|one| list.extend(one.encode_length_delimited_to_vec()));
        CoreBody::Recovered(schema::Recovered {
            request: 1,
            position: Some(schema::Position { epoch: "e".to_owned(), offset: 5 }),
            recovered: true,
            publications: list.into(),
            ..schema::Recovered::default()
        })
    };
    let next = Publication { offset: 2, ..good.clone() };
    let elsewhere = Publication { channel: "b".to_owned(), ..next.clone() };
    let bodies = [
        (told(good.clone()), true),
        (told(Publication { offset: 0, ..good.clone() }), false),
        (told(Publication { channel: String::new(), ..good.clone() }), false),
        (told(Publication { data: None, ..good.clone() }), false),
        (told(Publication { data: Some(Bytes::from_static(b"{")), ..good.clone() }), false),
        (CoreBody::Publication(shared(7, Some(ServerBody::Publication(good.clone())))), false),
        (CoreBody::Publication(shared(0, None)), false),
        (CoreBody::Ephemeral(shared(0, Some(ServerBody::Publication(good.clone())))), false),
        (CoreBody::PresenceChanged(shared(0, Some(ServerBody::Publication(good.clone())))), false),
        (CoreBody::Publication(Bytes::new()), false),
        (CoreBody::Publication(Bytes::from_static(&[9, 1])), false),
        (recovered(&[good.clone(), next.clone()]), true),
        (recovered(&[next.clone(), good.clone()]), false),
        (recovered(&[good.clone(), good.clone()]), false),
        (recovered(&[good.clone(), elsewhere]), false),
        (CoreBody::Recovered(schema::Recovered::default()), false),
        (CoreBody::Moved(schema::Moved { partition: 65_536, to: None }), false),
        (CoreBody::Spent(schema::Spent { outcome: 99, ..schema::Spent::default() }), false),
        (CoreBody::Rebased(schema::Rebased { channel: "a".to_owned(), position: None }), false),
    ];
    for (body, good) in bodies {
        let mut decoder = LinkDecoder::default();
        decoder.push(&Core { body: Some(body.clone()) }.encode_length_delimited_to_vec());
        assert_eq!(decoder.next::<CoreFrame>().is_ok(), good, "{body:?}");
    }
}

#[test]
fn lists_hold_to_their_bounds() {
    let core = |body| Core { body: Some(body) }.encode_length_delimited_to_vec();
    let items = |bytes: &'static [u8]| {
        core(CoreBody::Members(schema::Members { users: Bytes::from_static(bytes), ..Default::default() }))
    };
    for (bad, why) in [
        (items(&[200]), "half a length"),
        (items(&[5, 1]), "an item cut off"),
        (items(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), "a huge length"),
        (core(CoreBody::Part(Bytes::new())), "an empty part"),
        (
            [core(CoreBody::Part(Bytes::from_static(b"x"))), core(CoreBody::Moved(Default::default()))]
                .concat(),
            "another frame behind a part",
        ),
    ] {
        let mut decoder = LinkDecoder::default();
        decoder.push(&bad);
        assert!(decoder.next::<CoreFrame>().is_err(), "{why}");
    }

    let mut decoder = LinkDecoder::default();
    let part = core(CoreBody::Part(vec![1; 8 << 20].into()));
    let taken = (0..100)
        .take_while(|_| {
            decoder.push(&part);
            decoder.next::<CoreFrame>().is_ok()
        })
        .count();
    assert_eq!(taken, MAX_REPLY_BYTES / (8 << 20));

    let mut decoder = LinkDecoder::new(100);
    decoder.push(&[0xff, 0xff, 0x7f]);
    assert!(decoder.next::<CoreFrame>().is_err(), "a length over the limit, before its bytes come");
}

#[test]
fn what_edges_say_of_themselves_is_checked() {
    let good = schema::EdgeState {
        node: "edge-1".to_owned(),
        region: "eu".to_owned(),
        endpoints: vec!["quic://edge-1:4433".to_owned()],
        ..schema::EdgeState::default()
    };
    let urls = |urls: &[&str]| schema::EdgeState {
        endpoints: urls.iter().map(|url| (*url).to_owned()).collect(),
        ..good.clone()
    };
    let states = [
        (good.clone(), true),
        (schema::EdgeState { node: String::new(), ..good.clone() }, false),
        (schema::EdgeState { region: "e\nu".to_owned(), ..good.clone() }, false),
        (urls(&[""]), false),
        (urls(&["quic://edge 1"]), false),
        (urls(&["quic://edge-1\r\nx"]), false),
        (urls(&[&"x".repeat(257)]), false),
        (urls(&["quic://edge-1"; MAX_ENDPOINTS + 1]), false),
    ];
    let parse = |body| Control::from_wire(Beside { body: Some(body) });
    for (state, is_good) in states {
        let list = schema::Fleet { edges: vec![good.clone(), state.clone()], ages_ms: vec![0, 1] };
        assert_eq!(parse(BesideBody::Fleet(list)).is_ok(), is_good, "{state:?}");
        assert_eq!(parse(BesideBody::Announce(state.clone())).is_ok(), is_good, "{state:?}");
    }
    let list = |edges, ages| {
        parse(BesideBody::Fleet(schema::Fleet { edges: vec![good.clone(); edges], ages_ms: vec![0; ages] }))
    };
    assert!(list(4096, 4096).is_ok() && list(4097, 4097).is_err() && list(2, 1).is_err());
    // What a later program means by it is not known: nobody is to be sent there.
    let later = schema::EdgeState { condition: 9, ..good.clone() };
    let Ok(Control::Announce(state)) = parse(BesideBody::Announce(later)) else { panic!("a state") };
    assert_eq!(state.condition, EdgeCondition::LameDuck);
    for (bytes, is_good) in [(MAX_RELAY_BYTES, true), (MAX_RELAY_BYTES + 1, false)] {
        let (to, payload) = ("edge-1".to_owned(), Bytes::from(vec![1; bytes]));
        let relay = schema::Relay { id: 1, to: to.clone(), payload: payload.clone() };
        assert_eq!(parse(BesideBody::Relay(relay)).is_ok(), is_good);
        assert_eq!(parse(BesideBody::Relayed(schema::Relayed { from: to, payload })).is_ok(), is_good);
    }
}

#[test]
fn a_directory_is_checked() {
    let table = |names: &[&str], addresses: &[&str], owners: &[u32], terms: &[u64]| {
        let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let wire = schema::Directory {
            names: all(names),
            addresses: all(addresses),
            owners: owners.to_vec(),
            terms: terms.to_vec(),
        };
        Control::from_wire(Beside { body: Some(BesideBody::Directory(wire)) })
    };
    let Ok(Control::Directory(directory)) = table(&["a", "b"], &["a:1"], &[1, 0, 2], &[4, 5, 6]) else {
        panic!("a directory");
    };
    assert_eq!(directory.address(&NodeId::new("a")), Some("a:1"));
    assert_eq!(directory.address(&NodeId::new("b")), None, "it owns something, and is gone");
    let owners: Vec<_> = (0..4).map(|number| directory.owner(number).map(NodeId::as_str)).collect();
    assert_eq!(owners, [Some("a"), None, Some("b"), None]);
    assert!(table(&["a"], &["a:1"], &[2], &[1]).is_err(), "nobody's number");
    assert!(table(&["a"], &["a:1", "b:1"], &[], &[]).is_err(), "an address without a name");
    assert!(table(&["a"], &[], &[1], &[]).is_err(), "an owner without a term");
    assert!(table(&[""], &[], &[], &[]).is_err(), "no name");
    assert!(table(&[], &[], &vec![0; 65_536], &vec![0; 65_536]).is_err(), "too many partitions");
    assert!(table(&vec!["a"; 4097], &[], &[], &[]).is_err(), "too many nodes");
}

#[test]
fn versions_meet_at_the_highest_that_both_speak() {
    let speaks = |lowest, highest| Hello {
        versions: lowest..=highest,
        ..Hello::new(NodeId::new("edge-1"), Region::new("eu"), "0.1.0")
    };
    assert_eq!(speaks(1, 1).agree(), Ok(1));
    assert_eq!(speaks(0, 9).agree(), Ok(2));
    assert_eq!(
        speaks(3, 4).agree(),
        Err("no common version of the link: edge-1 speaks versions 3 to 4, this node versions 1 to 2"
            .to_owned())
    );
    assert!(speaks(0, 0).agree().is_err());
    assert!(speaks(1, 0).agree().is_err(), "an empty range");
    // A program of the far future.
    let wire = schema::Hello { lowest: 70_000, highest: 70_001, node: "a".to_owned(), ..Default::default() };
    let Ok(Control::Hello(hello)) = Control::from_wire(Beside { body: Some(BesideBody::Hello(wire)) }) else {
        panic!("a hello");
    };
    assert!(hello.agree().is_err());
}

#[test]
fn every_outcome_has_a_number() {
    for outcome in [
        Outcome::First,
        Outcome::Repeated,
        Outcome::NotEarly,
        Outcome::Stale,
        Outcome::Theft,
        Outcome::Revoked,
        Outcome::Full,
    ] {
        let frame = CoreFrame::Spent { request: 1, result: Ok(outcome) };
        assert_eq!(carry(std::slice::from_ref(&frame), 100), [frame]);
    }
}

fn carry<F: LinkFrame>(frames: &[F], piece: usize) -> Vec<F> {
    let mut batch = Batch::default();
    frames.iter().for_each(|frame| batch.put(frame));
    let announced = batch.len();
    let bytes = batch.take().concat();
    assert_eq!(bytes.len(), announced);
    assert!(batch.is_empty() && batch.take().is_empty());
    let mut decoder = LinkDecoder::default();
    let mut carried = Vec::new();
    for chunk in bytes.chunks(piece) {
        decoder.push(chunk);
        while let Some(frame) = decoder.next().expect("our own bytes") {
            carried.push(frame);
        }
    }
    assert!(decoder.is_empty());
    carried
}

fn push(decoder: &mut LinkDecoder, mut batch: Batch) {
    batch.take().iter().for_each(|chunk| decoder.push(chunk));
}

/// What is taken is the same again.
fn refuse_or_take(bytes: &[u8]) {
    fn all<F: LinkFrame + PartialEq>(bytes: &[u8]) {
        let mut decoder = LinkDecoder::new(bytes.len());
        decoder.push(bytes);
        while let Ok(Some(frame)) = decoder.next::<F>() {
            assert_eq!(carry(std::slice::from_ref(&frame), usize::MAX), [frame]);
        }
    }
    all::<EdgeFrame>(bytes);
    all::<CoreFrame>(bytes);
    let mut decoder = LinkDecoder::new(bytes.len());
    decoder.push(bytes);
    while let Ok(Some(_)) = decoder.next_control() {}
}

fn message_lengths(mut bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while !bytes.is_empty() {
        let length = prost::decode_length_delimiter(&mut bytes).expect("our own bytes");
        bytes = &bytes[length..];
        lengths.push(length);
    }
    lengths
}

fn publication(channel: &str, offset: u64, bytes: usize) -> Delivery {
    let body = ServerBody::Publication(Publication {
        channel: channel.to_owned(),
        offset,
        data_base64: Some(vec![7; bytes].into()),
        ..Publication::default()
    });
    Delivery {
        channel: ChannelName::new(channel).expect("a name"),
        offset: Offset(offset),
        frame: Arc::new(SharedFrame::new(body)),
    }
}

fn edge_frame() -> impl Strategy<Value = EdgeFrame> {
    prop_oneof![
        (any::<u64>(), name(), option::of(place()))
            .prop_map(|(request, channel, position)| EdgeFrame::Subscribe { request, channel, position }),
        name().prop_map(|channel| EdgeFrame::Unsubscribe { channel }),
        (any::<u64>(), name(), content(), option::of(".{0,20}"), user(), any::<bool>()).prop_map(
            |(request, channel, payload, key, user, ephemeral)| EdgeFrame::Publish {
                request,
                publish: Publish { channel, payload, key, user, ephemeral }
            }
        ),
        (any::<u64>(), name(), option::of(place()), option::of(any::<u64>()), any::<u32>()).prop_map(
            |(request, channel, since, before, limit)| {
                let range = HistoryRange { since, before: before.map(Offset), limit };
                EdgeFrame::History { request, channel, range }
            }
        ),
        (name(), user(), any::<u32>(), any::<bool>()).prop_map(|(channel, user, sessions, again)| {
            EdgeFrame::Presence { channel, user, sessions, again }
        }),
        (name(), any::<bool>()).prop_map(|(channel, on)| EdgeFrame::Watch { channel, on }),
        (any::<u64>(), name()).prop_map(|(request, channel)| EdgeFrame::Members { request, channel }),
        (
            any::<u64>(),
            any::<[u8; 16]>(),
            any::<u32>(),
            option::of(any::<[u8; 16]>()),
            any::<bool>(),
            any::<u32>(),
            node_id(),
            any::<u8>()
        )
            .prop_map(|(request, session, generation, key, early, remember, node, worker)| {
                let spending = Spending {
                    session: SessionId::from_bytes(session),
                    generation,
                    key: key.map(AttemptKey),
                    early,
                    remember: Duration::from_millis(u64::from(remember)),
                };
                EdgeFrame::Spend { request, spending, holder: LinkName { node, worker } }
            }),
    ]
}

fn core_frame() -> impl Strategy<Value = CoreFrame> {
    let recovery = (place(), any::<bool>(), name(), vec((content(), user(), any::<u64>()), 0..5)).prop_map(
        |(position, recovered, channel, items)| {
            let publications = items.into_iter().zip(1..).map(|((payload, user, time_ms), offset)| {
                let (data, data_base64) = payload.into_fields();
                let (channel, user) = (channel.as_str().to_owned(), user.as_deref().map(str::to_owned));
                Publication { channel, offset, data, data_base64, user, time_ms }
            });
            Recovery { position, recovered, publications: publications.collect() }
        },
    );
    let members = (vec((".{1,8}", any::<u32>()), 0..5), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
        |(users, users_total, sessions, exact)| Members {
            users: users.into_iter().map(|(user, sessions)| (Arc::from(user), sessions)).collect(),
            users_total,
            sessions,
            exact,
        },
    );
    let outcome = prop::sample::select(vec![Outcome::First, Outcome::Stale, Outcome::Full]);
    let told = prop::sample::select(vec![Told::Resumed, Told::Repeated, Told::Revoked]);
    prop_oneof![
        (any::<u64>(), answer(recovery))
            .prop_map(|(request, result)| CoreFrame::Recovered { request, result }),
        (any::<u64>(), answer(option::of(place())))
            .prop_map(|(request, result)| CoreFrame::Published { request, result }),
        (name(), 1_u64.., content(), user(), any::<u64>()).prop_map(
            |(channel, offset, payload, user, time_ms)| {
                let (data, data_base64) = payload.into_fields();
                let (name, user) = (channel.as_str().to_owned(), user.as_deref().map(str::to_owned));
                let publication = Publication { channel: name, offset, data, data_base64, user, time_ms };
                CoreFrame::Publication(deliver(channel, offset, ServerBody::Publication(publication)))
            }
        ),
        (name(), content(), user(), any::<u64>()).prop_map(|(channel, payload, user, time_ms)| {
            let (data, data_base64) = payload.into_fields();
            let (name, user) = (channel.as_str().to_owned(), user.as_deref().map(str::to_owned));
            let ephemeral = Ephemeral { channel: name, data, data_base64, user, time_ms };
            CoreFrame::Ephemeral(deliver(channel, 0, ServerBody::Ephemeral(ephemeral)))
        }),
        (name(), place()).prop_map(|(channel, position)| CoreFrame::Rebased { channel, position }),
        (name(), ".{1,8}", any::<u64>(), any::<bool>()).prop_map(|(channel, user, time_ms, joins)| {
            let name = channel.as_str().to_owned();
            let body = match joins {
                true => ServerBody::Join(Join { channel: name, user, time_ms }),
                false => ServerBody::Leave(Leave { channel: name, user, time_ms }),
            };
            CoreFrame::PresenceChanged(deliver(channel, 0, body))
        }),
        (any::<u64>(), answer(members)).prop_map(|(request, result)| CoreFrame::Members { request, result }),
        (any::<u16>(), option::of(node_id())).prop_map(|(partition, to)| CoreFrame::Moved { partition, to }),
        (any::<u64>(), answer(outcome)).prop_map(|(request, result)| CoreFrame::Spent { request, result }),
        (any::<[u8; 16]>(), any::<u32>(), told).prop_map(|(session, generation, told)| {
            CoreFrame::SessionMoved { session: SessionId::from_bytes(session), generation, told }
        }),
    ]
}

fn control() -> impl Strategy<Value = Control> {
    let region = "[a-z]{0,8}".prop_map(|name| Region::new(&name));
    let directory = (vec(("[a-z]{1,6}", "[a-z0-9:.]{1,20}"), 0..5), vec((any::<u8>(), any::<u64>()), 0..20))
        .prop_map(|(nodes, partitions)| {
            let nodes: Vec<DirectoryNode> = nodes
                .into_iter()
                .zip(0..)
                .map(|((name, address), number)| DirectoryNode {
                    id: NodeId::new(&format!("{name}-{number}")),
                    address: Arc::from(address),
                })
                .collect();
            let owner = |number: u8| match usize::from(number) {
                0..50 => None,
                number => Some(match nodes.get(number % 8) {
                    Some(node) => node.id.clone(),
                    None => NodeId::new(&format!("gone-{}", number % 8)),
                }),
            };
            let partitions = partitions
                .into_iter()
                .map(|(number, term)| DirectoryPartition { owner: owner(number), term })
                .collect();
            Control::Directory(Arc::new(Directory { nodes, partitions }))
        });
    let bytes = || vec(any::<u8>(), 0..50).prop_map(Bytes::from);
    prop_oneof![
        (any::<u16>(), any::<u16>(), node_id(), region.clone(), "[a-z0-9.]{0,9}").prop_map(
            |(lowest, highest, node, region, program)| Control::Hello(Hello {
                versions: lowest..=highest,
                node,
                region,
                program
            })
        ),
        (any::<u16>(), node_id(), region, any::<u16>()).prop_map(|(version, node, region, partitions)| {
            Control::Welcome(Welcome { version, node, region, partitions })
        }),
        ".{0,50}".prop_map(Control::Refused),
        directory,
        (any::<u64>(), bytes()).prop_map(|(id, what)| Control::Ask { id, what }),
        (any::<u64>(), option::of(bytes())).prop_map(|(id, answer)| Control::Answer { id, answer }),
        any::<u16>().prop_map(|partition| Control::Open { partition }),
        (any::<u64>(), any::<u64>()).prop_map(|(term, epoch)| Control::Opened { term, epoch }),
        edge_state().prop_map(Control::Announce),
        vec((edge_state(), any::<u32>()), 0..6).prop_map(|edges| {
            let entry = |(state, age)| FleetEntry { state, age: Duration::from_millis(u64::from(age)) };
            Control::Fleet(Arc::new(edges.into_iter().map(entry).collect()))
        }),
        (any::<u64>(), node_id(), bytes()).prop_map(|(id, to, payload)| Control::Relay { id, to, payload }),
        (node_id(), bytes()).prop_map(|(from, payload)| Control::Relayed(Relayed { from, payload })),
    ]
}

fn edge_state() -> impl Strategy<Value = EdgeState> {
    let condition = prop_oneof![
        Just(EdgeCondition::Serve),
        Just(EdgeCondition::LameDuck),
        any::<u64>().prop_map(|drain| EdgeCondition::Drain { drain }),
        Just(EdgeCondition::Leave),
    ];
    let endpoints = vec("[a-z]{2,5}://[a-z.]{1,9}:[1-9]{1,4}", 0..=MAX_ENDPOINTS);
    let numbers = (any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>());
    (node_id(), "[a-z]{0,8}", endpoints, numbers, condition).prop_map(
        |(node, region, endpoints, (sessions, rate, slack, started_unix_ms, sequence), condition)| {
            EdgeState {
                node,
                region: Region::new(&region),
                endpoints,
                sessions,
                rate,
                slack,
                condition,
                started_unix_ms,
                sequence,
            }
        },
    )
}

fn answer<T: std::fmt::Debug>(good: impl Strategy<Value = T>) -> impl Strategy<Value = Result<T, LinkError>> {
    prop_oneof![
        4 => good.prop_map(Ok),
        1 => (prop::sample::select(ErrorCode::ALL), ".{0,20}")
            .prop_map(|(code, message)| Err(LinkError { code, message })),
    ]
}

fn deliver(channel: ChannelName, offset: u64, body: ServerBody) -> Delivery {
    Delivery { channel, offset: Offset(offset), frame: Arc::new(SharedFrame::new(body)) }
}

fn name() -> impl Strategy<Value = ChannelName> {
    "[a-zé:_-]{1,20}".prop_map(|name| ChannelName::new(&name).expect("valid"))
}

fn node_id() -> impl Strategy<Value = NodeId> {
    "[a-z0-9-]{1,20}".prop_map(|name| NodeId::new(&name))
}

fn user() -> impl Strategy<Value = Option<Arc<str>>> {
    option::of(".{0,10}".prop_map(Arc::from))
}

fn place() -> impl Strategy<Value = Position> {
    ("[0-9-]{0,20}", any::<u64>())
        .prop_map(|(epoch, offset)| Position::new(Epoch::new(&epoch), Offset(offset)))
}

fn content() -> impl Strategy<Value = Payload> {
    prop_oneof![
        any::<i32>().prop_map(|number| Payload::Json(Bytes::from(format!("{{\"n\": [{number}]}}")))),
        vec(any::<u8>(), 0..2000).prop_map(|bytes| Payload::Binary(Bytes::from(bytes))),
    ]
}
