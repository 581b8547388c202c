//! Strategies for arbitrary frames, and what holds for every frame in both encodings.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use super::codec::{decode_message, decode_text, encode_delimited, encode_text};
use super::*;

proptest! {
    #[test]
    fn client_frames_survive_both_encodings(frame in client_frame()) {
        let text = encode_text(&frame);
        prop_assert_eq!(&decode_text::<ClientFrame>(&text, text.len()).expect("our own text")[..], std::slice::from_ref(&frame));
        let message = encode_delimited(&frame);
        let limit = message.len();
        prop_assert_eq!(&decode_message::<ClientFrame>(message, limit).expect("our own bytes")[..], &[frame]);
    }

    #[test]
    fn server_frames_survive_both_encodings(frame in server_frame()) {
        let text = encode_text(&frame);
        prop_assert_eq!(&decode_text::<ServerFrame>(&text, text.len()).expect("our own text")[..], std::slice::from_ref(&frame));
        let message = encode_delimited(&frame);
        let limit = message.len();
        prop_assert_eq!(&decode_message::<ServerFrame>(message, limit).expect("our own bytes")[..], &[frame]);
    }

    #[test]
    fn arrays_of_frames_survive(frames in vec(client_frame(), 0..8)) {
        let text = serde_json::to_vec(&frames).expect("frames serialize");
        prop_assert_eq!(decode_text::<ClientFrame>(&text, text.len()).expect("our own text"), frames);
    }

    #[test]
    fn stream_headers_survive_protobuf(channel in any::<String>(), catch_up: bool, epoch in any::<String>()) {
        let header = StreamHeader { channel, catch_up, epoch };
        prop_assert_eq!(StreamHeader::decode(&*header.encode_to_vec()).expect("our own bytes"), header);
    }

    #[test]
    fn no_bytes_panic_a_stream_header(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(header) = StreamHeader::decode(&*bytes) {
            prop_assert_eq!(StreamHeader::decode(&*header.encode_to_vec()).expect("our own bytes"), header);
        }
    }
}

#[test]
fn a_payload_is_one_of_two_fields() {
    let json = Bytes::from_static(b"null");
    let bytes = Bytes::new();
    assert_eq!(Payload::from_fields(None, None), None);
    assert_eq!(Payload::from_fields(Some(json.clone()), Some(bytes.clone())), None);
    for payload in [Payload::Json(json), Payload::Binary(bytes)] {
        let (data, data_base64) = payload.clone().into_fields();
        assert_eq!(Payload::from_fields(data, data_base64), Some(payload));
    }
}

#[test]
fn payloads_keep_out_of_logs() {
    assert_eq!(format!("{:?}", Payload::Json(Bytes::from_static(b"\"secret\""))), "Json(8 bytes)");
    assert_eq!(format!("{:?}", Payload::Binary(Bytes::from_static(b"secret"))), "Binary(6 bytes)");
}

#[test]
fn payload_text_is_carried_through_as_it_is() {
    let text = br#"{"publish":{"channel":"a","data":  {"b" : 1.50, "a":1e400,"\u00e9":[ ]}  }}"#;
    let frame = decode_text::<ClientFrame>(text, 1024).expect("valid").remove(0);
    let Some(ClientBody::Publish(publish)) = frame.body else { panic!("another body") };
    assert_eq!(publish.data.as_deref(), Some(&br#"{"b" : 1.50, "a":1e400,"\u00e9":[ ]}"#[..]));
}

#[test]
fn zeros_and_absent_fields_are_left_out_of_text() {
    let spell = |body| String::from_utf8(encode_text(&ServerFrame::new(0, body)).to_vec()).expect("JSON");
    assert_eq!(spell(ServerBody::Ping(Ping::default())), r#"{"ping":{}}"#);
    assert_eq!(
        spell(ServerBody::Subscribed(Subscribed::default())),
        r#"{"subscribed":{"channel":"","recovered":false,"publications":[]}}"#
    );
    assert_eq!(
        spell(ServerBody::Publication(Publication::default())),
        r#"{"publication":{"channel":"","offset":0,"time_ms":0}}"#
    );
}

pub(crate) fn client_frame() -> impl Strategy<Value = ClientFrame> {
    let body = prop_oneof![
        (
            (option::of(text()), option::of(text()), option::of(text())),
            (any::<bool>(), option::of(text()), any::<bool>())
        )
            .prop_map(|((token, resume, key), (repeats, slot, moves))| {
                ClientBody::Connect(Connect { token, resume, key, repeats, slot, moves })
            }),
        (text(), option::of(position()), any::<i32>(), any::<bool>()).prop_map(
            |(channel, position, rank, presence)| {
                ClientBody::Subscribe(Subscribe { channel, position, rank, presence })
            }
        ),
        text().prop_map(|channel| ClientBody::Unsubscribe(Unsubscribe { channel })),
        (text(), payload_fields(), option::of(text()), any::<bool>()).prop_map(
            |(channel, (data, data_base64), key, ephemeral)| ClientBody::Publish(Publish {
                channel,
                data,
                data_base64,
                key,
                ephemeral
            })
        ),
        (text(), option::of(position()), any::<u32>()).prop_map(|(channel, since, limit)| {
            ClientBody::History(HistoryRequest { channel, since, limit })
        }),
        text().prop_map(|channel| ClientBody::Presence(PresenceRequest { channel })),
        text().prop_map(|token| ClientBody::Refresh(Refresh { token })),
        (text(), payload_fields()).prop_map(|(method, (data, data_base64))| ClientBody::Rpc(Rpc {
            method,
            data,
            data_base64
        })),
        Just(ClientBody::Pong(Empty {})),
        Just(ClientBody::Done(Empty {})),
        Just(ClientBody::Ping(Empty {})),
    ];
    (any::<u64>(), body).prop_map(|(id, body)| ClientFrame::new(id, body))
}

pub(crate) fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let body = prop_oneof![
        connected().prop_map(ServerBody::Connected),
        subscribed().prop_map(ServerBody::Subscribed),
        (text(), option::of(error()))
            .prop_map(|(channel, error)| ServerBody::Unsubscribed(Unsubscribed { channel, error })),
        (text(), option::of(position()))
            .prop_map(|(channel, position)| ServerBody::Published(Published { channel, position })),
        (text(), option::of(position()), any::<bool>(), vec(publication(), 0..4)).prop_map(
            |(channel, position, recovered, publications)| ServerBody::History(History {
                channel,
                position,
                recovered,
                publications
            })
        ),
        option::of(any::<u64>()).prop_map(|expires_ms| ServerBody::Refreshed(Refreshed { expires_ms })),
        publication().prop_map(ServerBody::Publication),
        (text(), payload_fields(), option::of(text()), any::<u64>()).prop_map(
            |(channel, (data, data_base64), user, time_ms)| ServerBody::Ephemeral(Ephemeral {
                channel,
                data,
                data_base64,
                user,
                time_ms
            })
        ),
        (text(), vec((text(), any::<u32>()), 0..4), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
            |(channel, users, users_total, sessions, exact)| {
                let users = users.into_iter().map(|(user, sessions)| PresentUser { user, sessions });
                let users = users.collect();
                ServerBody::Presence(Presence { channel, users, users_total, sessions, exact })
            }
        ),
        (text(), text(), any::<u64>()).prop_map(|(channel, user, time_ms)| ServerBody::Join(Join {
            channel,
            user,
            time_ms
        })),
        (text(), text(), any::<u64>()).prop_map(|(channel, user, time_ms)| ServerBody::Leave(Leave {
            channel,
            user,
            time_ms
        })),
        text().prop_map(|channel| ServerBody::PresenceGap(PresenceGap { channel })),
        (option::of(text()), option::of(text()), any::<u64>(), any::<u64>(), text()).prop_map(
            |(endpoint, slot, after_ms, deadline_ms, reason)| {
                ServerBody::Goaway(Goaway { endpoint, slot, after_ms, deadline_ms, reason })
            }
        ),
        (option::of(text()), option::of(plan()))
            .prop_map(|(resume, plan)| ServerBody::Ping(Ping { resume, plan })),
        Just(ServerBody::Pong(Empty {})),
        error().prop_map(ServerBody::Error),
        (any::<u32>(), text(), option::of(reconnect()))
            .prop_map(|(code, reason, reconnect)| ServerBody::Close(Close { code, reason, reconnect })),
    ];
    (any::<u64>(), body).prop_map(|(id, body)| ServerFrame::new(id, body))
}

fn connected() -> impl Strategy<Value = Connected> {
    (
        (text(), option::of(text()), option::of(text()), any::<u64>()),
        (text(), text(), option::of(any::<u64>())),
        (vec(subscribed(), 0..3), any::<bool>(), option::of(plan())),
    )
        .prop_map(
            |(
                (session, resume, user, ping_ms),
                (node, region, expires_ms),
                (subscriptions, resumed, plan),
            )| Connected {
                session,
                resume,
                user,
                ping_ms,
                node,
                region,
                expires_ms,
                subscriptions,
                resumed,
                plan,
            },
        )
}

fn plan() -> impl Strategy<Value = ReconnectPlan> {
    let alternative = (text(), any::<u32>(), any::<bool>())
        .prop_map(|(host, weight, elsewhere)| Alternative { host, weight, elsewhere });
    (any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>(), vec(alternative, 0..3)).prop_map(
        |(epoch, node_ms, region_ms, rank, alternatives)| ReconnectPlan {
            epoch,
            node_ms,
            region_ms,
            rank,
            alternatives,
        },
    )
}

fn subscribed() -> impl Strategy<Value = Subscribed> {
    (text(), option::of(position()), any::<bool>(), vec(publication(), 0..4), any::<bool>()).prop_map(
        |(channel, position, recovered, publications, conflated)| Subscribed {
            channel,
            position,
            recovered,
            publications,
            conflated,
        },
    )
}

fn publication() -> impl Strategy<Value = Publication> {
    (text(), any::<u64>(), payload_fields(), option::of(text()), any::<u64>()).prop_map(
        |(channel, offset, (data, data_base64), user, time_ms)| Publication {
            channel,
            offset,
            data,
            data_base64,
            user,
            time_ms,
        },
    )
}

fn error() -> impl Strategy<Value = ErrorReply> {
    (any::<u32>(), text(), any::<bool>()).prop_map(|(code, message, retry)| ErrorReply {
        code,
        message,
        retry,
    })
}

fn reconnect() -> impl Strategy<Value = Reconnect> {
    // Numbers of a later protocol have no name in JSON; `codec::tests` has those.
    (0..4, option::of(any::<u64>()), option::of(text())).prop_map(|(policy, after_ms, slot)| Reconnect {
        policy,
        after_ms,
        slot,
    })
}

fn position() -> impl Strategy<Value = Position> {
    (text(), any::<u64>()).prop_map(|(epoch, offset)| Position { epoch, offset })
}

/// Any text, also with control characters and what JSON must escape.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), vec(any::<char>(), 0..12).prop_map(String::from_iter)]
}

/// Zero, one or (which no session accepts, but the codec carries) both.
fn payload_fields() -> impl Strategy<Value = (Option<Bytes>, Option<Bytes>)> {
    (option::of(json_text()), option::of(vec(any::<u8>(), 0..40).prop_map(Bytes::from)))
}

fn json_text() -> impl Strategy<Value = Bytes> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        text().prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            proptest::collection::btree_map(text(), inner, 0..6).prop_map(serde_json::Value::from_iter),
        ]
    });
    (value, any::<bool>()).prop_map(|(value, pretty)| {
        Bytes::from(if pretty { format!("{value:#}") } else { value.to_string() })
    })
}
