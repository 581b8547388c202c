//! Frames that the other modules encode. The `full` ones set every field by a literal without `..`, so that a new
//! field does not compile until it is here, and with it in the vectors and in the comparison with `tidegate.proto`.

use bytes::Bytes;
use tidegate_protocol::frame::{
    Alternative, ClientBody, ClientFrame, Close, CloseCode, Connect, Connected, Empty, Ephemeral, ErrorCode,
    ErrorReply, Goaway, History, HistoryRequest, Join, Leave, Ping, Position, Presence, PresenceGap,
    PresenceRequest, PresentUser, Publication, Publish, Published, Reconnect, ReconnectPlan, ReconnectPolicy,
    Refresh, Refreshed, Rpc, ServerBody, ServerFrame, StreamHeader, Subscribe, Subscribed, Unsubscribe,
    Unsubscribed,
};

/// The largest integer that every JSON implementation keeps exact: 2^53 - 1.
pub(crate) const MAX_SAFE: u64 = (1 << 53) - 1;

pub(crate) fn client() -> Vec<(&'static str, ClientFrame)> {
    let mut samples = vec![
        ("connect", frame(1, ClientBody::Connect(full_connect()))),
        ("connect_without_token", frame(1, ClientBody::Connect(Connect::default()))),
        (
            "connect_with_empty_token",
            frame(1, ClientBody::Connect(Connect { token: Some(String::new()), ..Connect::default() })),
        ),
        (
            "subscribe_from_position",
            frame(
                2,
                ClientBody::Subscribe(Subscribe {
                    channel: room(),
                    position: Some(position(41)),
                    rank: -3,
                    presence: true,
                }),
            ),
        ),
        (
            "subscribe_at_the_head",
            frame(
                2,
                ClientBody::Subscribe(Subscribe {
                    channel: room(),
                    position: None,
                    rank: 0,
                    presence: false,
                }),
            ),
        ),
        (
            "subscribe_from_the_beginning_of_any_epoch",
            frame(
                2,
                ClientBody::Subscribe(Subscribe {
                    channel: room(),
                    position: Some(Position::default()),
                    rank: 127,
                    presence: false,
                }),
            ),
        ),
        (
            "subscribe_from_a_big_offset",
            frame(
                MAX_SAFE,
                ClientBody::Subscribe(Subscribe {
                    channel: room(),
                    position: Some(position(MAX_SAFE)),
                    rank: -128,
                    presence: false,
                }),
            ),
        ),
        (
            "subscribe_to_a_unicode_name",
            frame(
                2,
                ClientBody::Subscribe(Subscribe {
                    channel: "комната:日本-🎏-é".to_owned(),
                    position: None,
                    rank: 1,
                    presence: false,
                }),
            ),
        ),
        ("unsubscribe", frame(3, ClientBody::Unsubscribe(Unsubscribe { channel: room() }))),
        ("unsubscribe_without_a_reply", frame(0, ClientBody::Unsubscribe(Unsubscribe { channel: room() }))),
        (
            "publish_json",
            frame(4, ClientBody::Publish(full_publish(json(r#"{"text":"héllo 🎏","n":[1,2.5,-3]}"#)))),
        ),
        ("history", frame(5, ClientBody::History(full_history_request()))),
        (
            "history_of_everything",
            frame(5, ClientBody::History(HistoryRequest { channel: room(), since: None, limit: 0 })),
        ),
        (
            "history_with_the_largest_limit",
            frame(5, ClientBody::History(HistoryRequest { channel: room(), since: None, limit: u32::MAX })),
        ),
        ("ping", frame(13, ClientBody::Ping(Empty {}))),
        ("presence", frame(6, ClientBody::Presence(PresenceRequest { channel: room() }))),
        ("refresh", frame(7, ClientBody::Refresh(Refresh { token: "header.payload.signature".to_owned() }))),
        ("rpc_json", frame(8, ClientBody::Rpc(full_rpc(json(r#"{"a":1}"#))))),
        ("rpc_binary", frame(8, ClientBody::Rpc(full_rpc(binary(&[0, 255, 128]))))),
        ("pong", frame(0, ClientBody::Pong(Empty {}))),
        ("done", frame(9, ClientBody::Done(Empty {}))),
    ];
    for (name, payload) in payloads() {
        let publish =
            Publish { channel: room(), data: payload.0, data_base64: payload.1, key: None, ephemeral: false };
        samples.push((name, frame(0, ClientBody::Publish(publish))));
    }
    samples
}

pub(crate) fn server() -> Vec<(&'static str, ServerFrame)> {
    let mut samples = vec![
        ("connected", reply(1, ServerBody::Connected(full_connected()))),
        (
            "connected_anonymous",
            reply(
                1,
                ServerBody::Connected(Connected {
                    resume: None,
                    resumed: false,
                    user: None,
                    expires_ms: None,
                    subscriptions: Vec::new(),
                    plan: None,
                    ..full_connected()
                }),
            ),
        ),
        ("subscribed", reply(2, ServerBody::Subscribed(full_subscribed()))),
        (
            "subscribed_at_the_head",
            reply(
                2,
                ServerBody::Subscribed(Subscribed {
                    recovered: false,
                    publications: Vec::new(),
                    conflated: false,
                    ..full_subscribed()
                }),
            ),
        ),
        (
            "subscribed_to_an_empty_channel",
            reply(
                2,
                ServerBody::Subscribed(Subscribed {
                    channel: room(),
                    position: Some(position(0)),
                    recovered: true,
                    publications: Vec::new(),
                    conflated: false,
                }),
            ),
        ),
        (
            "subscribed_anew_by_the_server",
            reply(
                0,
                ServerBody::Subscribed(Subscribed {
                    channel: room(),
                    position: Some(position(MAX_SAFE)),
                    recovered: false,
                    publications: Vec::new(),
                    conflated: false,
                }),
            ),
        ),
        ("unsubscribed", reply(3, ServerBody::Unsubscribed(Unsubscribed { channel: room(), error: None }))),
        ("unsubscribed_by_the_server", reply(0, ServerBody::Unsubscribed(full_unsubscribed()))),
        ("published", reply(4, ServerBody::Published(full_published()))),
        (
            "published_ephemeral",
            reply(4, ServerBody::Published(Published { channel: room(), position: None })),
        ),
        ("history", reply(5, ServerBody::History(full_history()))),
        (
            "history_empty",
            reply(
                5,
                ServerBody::History(History {
                    channel: room(),
                    position: Some(position(0)),
                    recovered: false,
                    publications: Vec::new(),
                }),
            ),
        ),
        ("refreshed", reply(7, ServerBody::Refreshed(Refreshed { expires_ms: Some(3_600_000) }))),
        ("refreshed_for_ever", reply(7, ServerBody::Refreshed(Refreshed { expires_ms: None }))),
        ("refreshed_already_expired", reply(7, ServerBody::Refreshed(Refreshed { expires_ms: Some(0) }))),
        (
            "publication_json",
            reply(0, ServerBody::Publication(full_publication(45, json(r#"{"text":"héllo 🎏"}"#)))),
        ),
        (
            "publication_binary",
            reply(0, ServerBody::Publication(full_publication(46, binary(b"\x00\x01\xfe\xff")))),
        ),
        (
            "publication_at_a_big_offset",
            reply(0, ServerBody::Publication(full_publication(MAX_SAFE, json("1")))),
        ),
        ("ephemeral_json", reply(0, ServerBody::Ephemeral(full_ephemeral(json(r#"{"typing":true}"#))))),
        ("ephemeral_binary", reply(0, ServerBody::Ephemeral(full_ephemeral(binary(&[7; 3]))))),
        ("ping", reply(0, ServerBody::Ping(full_ping()))),
        ("ping_without_a_ticket", reply(0, ServerBody::Ping(Ping::default()))),
        ("pong", reply(13, ServerBody::Pong(Empty {}))),
        ("presence", reply(6, ServerBody::Presence(full_presence()))),
        (
            "presence_of_nobody",
            reply(6, ServerBody::Presence(Presence { channel: room(), exact: true, ..Presence::default() })),
        ),
        (
            "presence_of_a_crowd",
            reply(
                6,
                ServerBody::Presence(Presence {
                    users_total: 2_000_000,
                    sessions: MAX_SAFE,
                    exact: false,
                    ..full_presence()
                }),
            ),
        ),
        (
            "join",
            reply(
                0,
                ServerBody::Join(Join {
                    channel: room(),
                    user: "456".to_owned(),
                    time_ms: 1_790_000_000_123,
                }),
            ),
        ),
        (
            "leave",
            reply(
                0,
                ServerBody::Leave(Leave {
                    channel: room(),
                    user: "анна".to_owned(),
                    time_ms: 1_790_000_000_123,
                }),
            ),
        ),
        ("presence_gap", reply(0, ServerBody::PresenceGap(PresenceGap { channel: room() }))),
        ("goaway", reply(0, ServerBody::Goaway(full_goaway()))),
        (
            "goaway_to_anywhere",
            reply(0, ServerBody::Goaway(Goaway { endpoint: None, slot: None, after_ms: 0, ..full_goaway() })),
        ),
        ("error", reply(9, ServerBody::Error(ErrorCode::Unavailable.reply("the core is busy")))),
        (
            "error_without_id",
            reply(0, ServerBody::Error(ErrorCode::Forbidden.reply("room:1: no publishing"))),
        ),
        (
            "error_of_a_later_protocol",
            reply(9, ServerBody::Error(ErrorReply { code: 499, message: String::new(), retry: true })),
        ),
        ("close", reply(0, ServerBody::Close(CloseCode::Done.frame("bye")))),
        ("close_after_a_while", reply(0, ServerBody::Close(full_close(ReconnectPolicy::Backoff)))),
        ("close_and_come_back", reply(0, ServerBody::Close(full_close(ReconnectPolicy::Now)))),
        ("close_for_a_fresh_token", reply(0, ServerBody::Close(full_close(ReconnectPolicy::FreshToken)))),
        (
            "close_with_a_unicode_reason",
            reply(0, ServerBody::Close(CloseCode::Shutdown.frame("до свидания 🎏"))),
        ),
    ];
    for (name, payload) in payloads() {
        let publication = Publication {
            channel: room(),
            offset: 1,
            data: payload.0,
            data_base64: payload.1,
            user: None,
            time_ms: 0,
        };
        samples.push((name, reply(0, ServerBody::Publication(publication))));
    }
    samples
}

pub(crate) fn stream_headers() -> Vec<(&'static str, StreamHeader)> {
    vec![
        ("live", StreamHeader { channel: room(), catch_up: false, epoch: "7f3a".to_owned() }),
        ("catch_up", StreamHeader { channel: room(), catch_up: true, epoch: "7f3a".to_owned() }),
        (
            "unicode",
            StreamHeader {
                channel: "комната:日本-🎏-é".to_owned(),
                catch_up: false,
                epoch: "э-1".to_owned(),
            },
        ),
        ("longest_name", StreamHeader { channel: "x".repeat(255), catch_up: true, epoch: "e".repeat(64) }),
    ]
}

/// Which sample of a body sets every field of it; the `match` is what makes a new frame fail to compile here.
pub(crate) fn name_of_client_body(body: &ClientBody) -> &'static str {
    match body {
        ClientBody::Connect(_) => "connect",
        ClientBody::Subscribe(_) => "subscribe",
        ClientBody::Unsubscribe(_) => "unsubscribe",
        ClientBody::Publish(_) => "publish",
        ClientBody::History(_) => "history",
        ClientBody::Presence(_) => "presence",
        ClientBody::Refresh(_) => "refresh",
        ClientBody::Rpc(_) => "rpc",
        ClientBody::Pong(_) => "pong",
        ClientBody::Done(_) => "done",
        ClientBody::Ping(_) => "ping",
    }
}

/// See [`name_of_client_body`].
pub(crate) fn name_of_server_body(body: &ServerBody) -> &'static str {
    match body {
        ServerBody::Connected(_) => "connected",
        ServerBody::Subscribed(_) => "subscribed",
        ServerBody::Unsubscribed(_) => "unsubscribed",
        ServerBody::Published(_) => "published",
        ServerBody::History(_) => "history",
        ServerBody::Refreshed(_) => "refreshed",
        ServerBody::Publication(_) => "publication",
        ServerBody::Ephemeral(_) => "ephemeral",
        ServerBody::Ping(_) => "ping",
        ServerBody::Error(_) => "error",
        ServerBody::Close(_) => "close",
        ServerBody::Pong(_) => "pong",
        ServerBody::Presence(_) => "presence",
        ServerBody::Join(_) => "join",
        ServerBody::Leave(_) => "leave",
        ServerBody::PresenceGap(_) => "presence_gap",
        ServerBody::Goaway(_) => "goaway",
    }
}

/// `data` and `data_base64`, of which one is there.
pub(crate) type PayloadFields = (Option<Bytes>, Option<Bytes>);

fn payloads() -> Vec<(&'static str, PayloadFields)> {
    let every_byte: Vec<u8> = (0..=255).collect();
    vec![
        ("payload_null", json("null")),
        ("payload_false", json("false")),
        ("payload_zero", json("0")),
        ("payload_number", json("-1.5")),
        ("payload_empty_string", json(r#""""#)),
        ("payload_string", json(r#""line\nbreak \"quoted\" \\ / 日本 🎏""#)),
        ("payload_empty_object", json("{}")),
        ("payload_nested_arrays", json("[[[[[[]]]]],[null,{\"a\":[{}]}]]")),
        ("payload_binary_empty", binary(b"")),
        ("payload_binary_one_byte", binary(b"\x00")),
        ("payload_binary_two_bytes", binary(b"\xff\xfe")),
        ("payload_binary_every_byte", binary(&every_byte)),
        ("payload_binary_no_utf8", binary(b"\xc3\x28\xed\xa0\x80")),
    ]
}

fn full_connect() -> Connect {
    Connect {
        token: Some("header.payload.signature".to_owned()),
        resume: Some("ticket".to_owned()),
        key: Some("attempt-1".to_owned()),
        repeats: true,
        slot: Some("slot".to_owned()),
        moves: true,
    }
}

fn full_publish((data, data_base64): PayloadFields) -> Publish {
    Publish { channel: room(), data, data_base64, key: Some("order-77/é".to_owned()), ephemeral: true }
}

fn full_history_request() -> HistoryRequest {
    HistoryRequest { channel: room(), since: Some(position(40)), limit: 100 }
}

fn full_rpc((data, data_base64): PayloadFields) -> Rpc {
    Rpc { method: "cart.add".to_owned(), data, data_base64 }
}

fn full_ping() -> Ping {
    Ping { resume: Some("ticket".to_owned()), plan: Some(full_plan()) }
}

fn full_plan() -> ReconnectPlan {
    let alternative = |host: &str, elsewhere| Alternative { host: host.to_owned(), weight: 800, elsewhere };
    ReconnectPlan {
        epoch: 7,
        node_ms: 1_500,
        region_ms: 131_580,
        rank: u32::MAX,
        alternatives: vec![
            alternative("edge-2.eu.example.com:4433", false),
            alternative("us.example.com", true),
        ],
    }
}

fn full_connected() -> Connected {
    Connected {
        session: "00112233445566778899aabbccddee07".to_owned(),
        resume: Some("ticket".to_owned()),
        user: Some("456".to_owned()),
        ping_ms: 25_000,
        node: "edge-1".to_owned(),
        region: "eu".to_owned(),
        expires_ms: Some(3_600_000),
        subscriptions: vec![
            full_subscribed(),
            Subscribed {
                channel: "user:456".to_owned(),
                position: Some(position(0)),
                recovered: false,
                publications: Vec::new(),
                conflated: false,
            },
        ],
        resumed: true,
        plan: Some(full_plan()),
    }
}

fn full_goaway() -> Goaway {
    Goaway {
        endpoint: Some("https://edge-2.example.com:4433".to_owned()),
        slot: Some("slot".to_owned()),
        after_ms: 1_500,
        deadline_ms: 30_000,
        reason: "the server is drained".to_owned(),
    }
}

fn full_subscribed() -> Subscribed {
    Subscribed {
        channel: room(),
        position: Some(position(44)),
        recovered: true,
        publications: vec![
            full_publication(42, json(r#"{"text":"one"}"#)),
            full_publication(43, binary(&[1, 2, 3])),
            full_publication(44, json("null")),
        ],
        conflated: true,
    }
}

fn full_unsubscribed() -> Unsubscribed {
    Unsubscribed {
        channel: room(),
        error: Some(ErrorCode::Forbidden.reply("the new token does not grant room:1")),
    }
}

fn full_published() -> Published {
    Published { channel: room(), position: Some(position(45)) }
}

fn full_publication(offset: u64, (data, data_base64): PayloadFields) -> Publication {
    Publication {
        channel: room(),
        offset,
        data,
        data_base64,
        user: Some("456".to_owned()),
        time_ms: 1_790_000_000_123,
    }
}

fn full_ephemeral((data, data_base64): PayloadFields) -> Ephemeral {
    Ephemeral { channel: room(), data, data_base64, user: Some("456".to_owned()), time_ms: 1_790_000_000_123 }
}

fn full_history() -> History {
    History {
        channel: room(),
        position: Some(position(44)),
        recovered: true,
        publications: vec![full_publication(43, json("[1]")), full_publication(44, binary(&[0]))],
    }
}

fn full_presence() -> Presence {
    Presence {
        channel: room(),
        users: vec![
            PresentUser { user: "456".to_owned(), sessions: 2 },
            PresentUser { user: "анна".to_owned(), sessions: 1 },
        ],
        users_total: 2,
        sessions: 4,
        exact: true,
    }
}

fn full_close(policy: ReconnectPolicy) -> Close {
    Close {
        code: CloseCode::Overloaded.number(),
        reason: "full".to_owned(),
        reconnect: Some(Reconnect {
            policy: policy.into(),
            after_ms: Some(1_500),
            slot: Some("slot".to_owned()),
        }),
    }
}

fn position(offset: u64) -> Position {
    Position { epoch: "7f3a".to_owned(), offset }
}

fn room() -> String {
    "room:1".to_owned()
}

fn json(text: &str) -> PayloadFields {
    (Some(Bytes::copy_from_slice(text.as_bytes())), None)
}

fn binary(bytes: &[u8]) -> PayloadFields {
    (None, Some(Bytes::copy_from_slice(bytes)))
}

fn frame(id: u64, body: ClientBody) -> ClientFrame {
    ClientFrame::new(id, body)
}

fn reply(id: u64, body: ServerBody) -> ServerFrame {
    ServerFrame::new(id, body)
}
