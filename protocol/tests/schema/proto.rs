//! `tidegate.proto` says what the Rust structs say: names, numbers, types, presence, oneofs and enumerations.
//!
//! The `.proto` is compiled to descriptors, and frames travel both ways between the structs and messages that are
//! driven by the descriptors. Nothing is compared by reading Rust source: what counts is the bytes and the JSON.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage,
    Value,
};
use serde::Serialize;
use tidegate_protocol::frame::{ClientFrame, ReconnectPolicy, ServerFrame, StreamHeader};

use crate::samples;

#[test]
fn every_sample_means_the_same_by_the_proto_file() {
    let pool = compile();
    for (name, frame) in samples::client() {
        compare(&pool, "ClientFrame", name, &frame);
    }
    for (name, frame) in samples::server() {
        compare(&pool, "ServerFrame", name, &frame);
    }
    for (name, header) in samples::stream_headers() {
        compare(&pool, "StreamHeader", name, &header);
    }
}

#[test]
fn every_field_of_the_proto_file_is_in_the_structs_and_the_other_way_round() {
    let pool = compile();
    let mut seen = BTreeMap::new();
    for (_, frame) in samples::client() {
        note_fields(&decode(&pool, "ClientFrame", &frame), &mut seen);
    }
    for (_, frame) in samples::server() {
        note_fields(&decode(&pool, "ServerFrame", &frame), &mut seen);
    }
    for (_, header) in samples::stream_headers() {
        note_fields(&decode(&pool, "StreamHeader", &header), &mut seen);
    }
    // Samples set each field of each struct (they would not compile otherwise), and `compare` finds none that the
    // file lacks. So what the file has and no sample shows is missing in Rust.
    for message in pool.all_messages() {
        let declared: BTreeSet<String> = message.fields().map(|field| field.name().to_owned()).collect();
        let in_rust = seen.remove(message.full_name()).unwrap_or_default();
        assert_eq!(in_rust, declared, "fields of {}", message.full_name());
    }
    assert!(seen.is_empty(), "samples of messages that the file lacks: {seen:?}");
}

#[test]
fn bodies_are_the_one_oneof_of_a_frame() {
    let pool = compile();
    let client: BTreeSet<String> = samples::client()
        .iter()
        .map(|(_, frame)| {
            samples::name_of_client_body(frame.body.as_ref().expect("samples have one")).to_owned()
        })
        .collect();
    let server: BTreeSet<String> = samples::server()
        .iter()
        .map(|(_, frame)| {
            samples::name_of_server_body(frame.body.as_ref().expect("samples have one")).to_owned()
        })
        .collect();
    for (name, in_rust) in [("ClientFrame", client), ("ServerFrame", server)] {
        let frame = descriptor(&pool, name);
        let oneofs: Vec<_> = frame.oneofs().collect();
        assert_eq!(oneofs.len(), 1, "{name}");
        assert_eq!(oneofs[0].name(), "body");
        let declared: BTreeSet<String> = oneofs[0].fields().map(|field| field.name().to_owned()).collect();
        assert_eq!(declared, in_rust, "bodies of {name}");
        let outside: Vec<String> = frame
            .fields()
            .filter(|field| field.containing_oneof().is_none())
            .map(|field| field.name().to_owned())
            .collect();
        assert_eq!(outside, ["id"], "{name}");
    }
}

#[test]
fn absent_and_empty_differ_in_the_same_fields() {
    let pool = compile();
    for message in pool.all_messages() {
        for field in message.fields().filter(is_optional_scalar) {
            // Present and empty: where Rust has no presence, it forgets the field.
            let mut dynamic = DynamicMessage::new(message.clone());
            dynamic.set_field(&field, field.default_value());
            let bytes = dynamic.encode_to_vec();
            assert!(!bytes.is_empty(), "{}", field.full_name());
            assert_eq!(
                through_rust(&message, &bytes),
                bytes,
                "{} is optional in the file alone",
                field.full_name()
            );
        }
        for field in message.fields().filter(|field| !field.supports_presence() && !field.is_list()) {
            // Written by hand, since no encoder writes it: where Rust has presence, it keeps the field.
            let bytes = empty_field(&field);
            assert_eq!(
                through_rust(&message, &bytes),
                Vec::<u8>::new(),
                "{} is optional in Rust alone",
                field.full_name()
            );
        }
    }
}

#[test]
fn integers_are_of_the_same_width() {
    let pool = compile();
    for message in pool.all_messages() {
        for field in message.fields() {
            let value = match field.kind() {
                Kind::Uint64 => Value::U64(u64::MAX),
                Kind::Uint32 => Value::U32(u32::MAX),
                Kind::Sint32 => Value::I32(i32::MIN),
                Kind::Bool => Value::Bool(true),
                Kind::Bytes => Value::Bytes(bytes::Bytes::from_static(b"\xff\x00")),
                Kind::String | Kind::Message(_) | Kind::Enum(_) => continue,
                other => panic!("{}: {other:?} is not used in this schema", field.full_name()),
            };
            let mut dynamic = DynamicMessage::new(message.clone());
            dynamic.set_field(&field, value);
            let bytes = dynamic.encode_to_vec();
            assert_eq!(through_rust(&message, &bytes), bytes, "{}", field.full_name());
        }
    }
}

#[test]
fn text_is_text_in_both() {
    let pool = compile();
    for message in pool.all_messages() {
        for field in message.fields().filter(|field| field.kind() == Kind::String) {
            let tag = u8::try_from(field.number() << 3 | 2).expect("numbers below 16 have one-byte tags");
            let bad_utf8 = [tag, 1, 0xff];
            assert!(DynamicMessage::decode(message.clone(), &bad_utf8[..]).is_err(), "{}", field.full_name());
            assert!(try_through_rust(&message, &bad_utf8).is_err(), "{}", field.full_name());
        }
    }
}

#[test]
fn policies_have_the_same_numbers_and_names() {
    let pool = compile();
    let policies = pool.get_enum_by_name("tidegate.v1.ReconnectPolicy").expect("the file declares it");
    let declared: Vec<(i32, String)> = policies
        .values()
        .map(|value| {
            let name = value.name().strip_prefix("RECONNECT_POLICY_").expect("the prefix that buf asks for");
            (value.number(), name.to_lowercase())
        })
        .collect();
    let in_rust: Vec<(i32, String)> = (0..)
        .map_while(|number| ReconnectPolicy::try_from(number).ok())
        .map(|policy| (policy.into(), policy.name().to_owned()))
        .collect();
    assert_eq!(declared, in_rust);
    assert_eq!(ReconnectPolicy::NAMES, declared.iter().map(|(_, name)| &**name).collect::<Vec<_>>());
    assert_eq!(pool.all_enums().count(), 1);
}

fn compile() -> DescriptorPool {
    let files =
        protox::compile(["tidegate.proto"], [env!("CARGO_MANIFEST_DIR")]).expect("tidegate.proto compiles");
    DescriptorPool::from_file_descriptor_set(files).expect("it is whole")
}

fn descriptor(pool: &DescriptorPool, name: &str) -> MessageDescriptor {
    pool.get_message_by_name(&format!("tidegate.v1.{name}"))
        .unwrap_or_else(|| panic!("the file lacks {name}"))
}

fn decode(pool: &DescriptorPool, name: &str, message: &impl Message) -> DynamicMessage {
    DynamicMessage::decode(descriptor(pool, name), &*message.encode_to_vec()).expect("same schema")
}

/// The file's reading of Rust's bytes equals Rust's JSON, nothing is unknown to it, and its bytes are Rust's.
fn compare<M: Message + Serialize>(pool: &DescriptorPool, message: &str, name: &str, frame: &M) {
    let dynamic = decode(pool, message, frame);
    assert_eq!(to_json(&dynamic, name), serde_json::to_value(frame).expect("serializes"), "{name}");
    assert_eq!(dynamic.encode_to_vec(), frame.encode_to_vec(), "{name}");
}

/// JSON as PROTOCOL §2 spells it, from descriptors alone.
fn to_json(message: &DynamicMessage, name: &str) -> serde_json::Value {
    assert_eq!(message.unknown_fields().count(), 0, "{name}: a field that the file lacks: {message:?}");
    let mut object = serde_json::Map::new();
    for field in message.descriptor().fields() {
        let present = message.has_field(&field) || always_spelt(&field);
        if present {
            object.insert(field.name().to_owned(), value_to_json(&field, &message.get_field(&field), name));
        }
    }
    object.into()
}

/// Fields without presence are in the JSON also when they are zero or empty, except these.
fn always_spelt(field: &FieldDescriptor) -> bool {
    let left_out = [
        "ClientFrame.id",
        "ServerFrame.id",
        "Connect.moves",
        "Connect.repeats",
        "Connected.resumed",
        "Alternative.elsewhere",
        "Connected.subscriptions",
        "HistoryRequest.limit",
        "Publish.ephemeral",
        "StreamHeader.catch_up",
        "Subscribe.presence",
        "Subscribe.rank",
        "Subscribed.conflated",
    ];
    !field.supports_presence() && !left_out.contains(&field.full_name().trim_start_matches("tidegate.v1."))
}

fn value_to_json(field: &FieldDescriptor, value: &Value, name: &str) -> serde_json::Value {
    match (value, field.kind()) {
        (Value::List(items), _) => items.iter().map(|item| value_to_json(field, item, name)).collect(),
        (Value::Message(message), _) => to_json(message, name),
        (Value::String(text), _) => text.clone().into(),
        (Value::Bool(value), _) => (*value).into(),
        (Value::U64(value), _) => (*value).into(),
        (Value::U32(value), _) => (*value).into(),
        (Value::I32(value), _) => (*value).into(),
        (Value::Bytes(bytes), _) if field.name() == "data" => {
            serde_json::from_slice(bytes).expect("data holds JSON")
        }
        (Value::Bytes(bytes), _) => STANDARD.encode(bytes).into(),
        (Value::EnumNumber(number), Kind::Enum(values)) => {
            let value = values.get_value(*number).expect("samples use known values");
            value.name().trim_start_matches("RECONNECT_POLICY_").to_lowercase().into()
        }
        other => panic!("{name}: {} holds {other:?}", field.full_name()),
    }
}

fn note_fields(message: &DynamicMessage, seen: &mut BTreeMap<String, BTreeSet<String>>) {
    seen.entry(message.descriptor().full_name().to_owned()).or_default();
    for (field, value) in message.fields() {
        seen.entry(message.descriptor().full_name().to_owned()).or_default().insert(field.name().to_owned());
        match value {
            Value::Message(inner) => note_fields(inner, seen),
            Value::List(items) => {
                items.iter().filter_map(Value::as_message).for_each(|inner| note_fields(inner, seen));
            }
            _ => {}
        }
    }
}

fn is_optional_scalar(field: &FieldDescriptor) -> bool {
    field.supports_presence()
        && field.cardinality() != Cardinality::Repeated
        && !matches!(field.kind(), Kind::Message(_))
}

/// A scalar field with its default value on the wire.
fn empty_field(field: &FieldDescriptor) -> Vec<u8> {
    let wire_type = if matches!(field.kind(), Kind::String | Kind::Bytes) { 2 } else { 0 };
    vec![u8::try_from(field.number() << 3 | wire_type).expect("numbers below 16 have one-byte tags"), 0]
}

/// What Rust makes of a message's bytes.
fn through_rust(message: &MessageDescriptor, bytes: &[u8]) -> Vec<u8> {
    try_through_rust(message, bytes).unwrap_or_else(|error| panic!("{}: {error}", message.full_name()))
}

fn try_through_rust(message: &MessageDescriptor, bytes: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    use tidegate_protocol::frame as rust;

    fn through<M: Message + Default>(bytes: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
        Ok(M::decode(bytes)?.encode_to_vec())
    }

    match message.name() {
        "ClientFrame" => through::<ClientFrame>(bytes),
        "ServerFrame" => through::<ServerFrame>(bytes),
        "StreamHeader" => through::<StreamHeader>(bytes),
        "Empty" => through::<rust::Empty>(bytes),
        "Position" => through::<rust::Position>(bytes),
        "Connect" => through::<rust::Connect>(bytes),
        "Ping" => through::<rust::Ping>(bytes),
        "Connected" => through::<rust::Connected>(bytes),
        "Goaway" => through::<rust::Goaway>(bytes),
        "Subscribe" => through::<rust::Subscribe>(bytes),
        "Subscribed" => through::<rust::Subscribed>(bytes),
        "Unsubscribe" => through::<rust::Unsubscribe>(bytes),
        "Unsubscribed" => through::<rust::Unsubscribed>(bytes),
        "Publish" => through::<rust::Publish>(bytes),
        "Published" => through::<rust::Published>(bytes),
        "Publication" => through::<rust::Publication>(bytes),
        "Ephemeral" => through::<rust::Ephemeral>(bytes),
        "HistoryRequest" => through::<rust::HistoryRequest>(bytes),
        "History" => through::<rust::History>(bytes),
        "PresenceRequest" => through::<rust::PresenceRequest>(bytes),
        "Presence" => through::<rust::Presence>(bytes),
        "PresentUser" => through::<rust::PresentUser>(bytes),
        "Join" => through::<rust::Join>(bytes),
        "Leave" => through::<rust::Leave>(bytes),
        "PresenceGap" => through::<rust::PresenceGap>(bytes),
        "Refresh" => through::<rust::Refresh>(bytes),
        "Refreshed" => through::<rust::Refreshed>(bytes),
        "Rpc" => through::<rust::Rpc>(bytes),
        "ErrorReply" => through::<rust::ErrorReply>(bytes),
        "Close" => through::<rust::Close>(bytes),
        "Reconnect" => through::<rust::Reconnect>(bytes),
        "ReconnectPlan" => through::<rust::ReconnectPlan>(bytes),
        "Alternative" => through::<rust::Alternative>(bytes),
        other => panic!("Rust lacks {other}"),
    }
}
