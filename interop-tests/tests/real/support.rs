//! What several themes need.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tidegate_interop_tests::clients::Payload;

/// Nothing is lost to history's bounds.
pub(crate) const ROOMY: &str = "[namespaces.default]\nhistory_count = 10000\nhistory_bytes = \"64MiB\"\n";

/// What number `n` of a test's publications holds: JSON, and every third one bytes.
pub(crate) fn payload(n: usize) -> Payload {
    match n % 3 {
        0 => Payload::Binary((0..n % 97).map(|index| ((n + index) & 0xff) as u8).collect()),
        1 => Payload::Json(json!({ "n": n, "text": "größer als ASCII ✓", "list": [1, null, true] })),
        _ => Payload::Json(json!(n)),
    }
}

/// A publication as the backend API takes it.
pub(crate) fn publication(channel: &str, payload: &Payload) -> Value {
    match payload {
        Payload::Json(value) => json!({ "channel": channel, "data": value }),
        Payload::Binary(bytes) => json!({ "channel": channel, "data_base64": BASE64_STANDARD.encode(bytes) }),
    }
}
