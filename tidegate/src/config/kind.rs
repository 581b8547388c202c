//! The kinds of values that keys take: how each is read, shown and described.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_edge::auth::{KeyAlgorithm, Secret};
use tidegate_protocol::namespace::Access;
use tidegate_transport::quic::CongestionControl;

use super::node::{Node, Value};
use super::{EngineKind, LogFormat};

/// One kind of value.
pub(super) struct Kind<T: 'static> {
    /// Completes "expected is ..".
    pub(super) accepts: &'static str,
    /// `None` for what is not accepted. Relative paths count from the folder.
    pub(super) read: fn(&Node, &Path) -> Option<T>,
    /// As TOML; `None` for an option that is not set.
    pub(super) show: fn(&T) -> Option<String>,
    /// Environment and flags give the text itself, also where it looks like a number.
    pub(super) plain_text: bool,
    /// Never shown.
    pub(super) secret: bool,
}

pub(super) const TEXT: Kind<String> = Kind {
    accepts: "a text",
    read: |node, _| text(node).map(str::to_owned),
    show: |text| Some(quoted(text)),
    plain_text: true,
    secret: false,
};

pub(super) const OPTIONAL_TEXT: Kind<Option<String>> = Kind {
    accepts: "a text",
    read: |node, _| text(node).map(|text| Some(text.to_owned()).filter(|text| !text.is_empty())),
    show: |text| text.as_deref().map(quoted),
    plain_text: true,
    secret: false,
};

pub(super) const FLAG: Kind<bool> = Kind {
    accepts: "true or false",
    read: |node, _| match node.value {
        Value::Boolean(flag) => Some(flag),
        _ => None,
    },
    show: |flag| Some(flag.to_string()),
    plain_text: false,
    secret: false,
};

pub(super) const COUNT: Kind<usize> = Kind {
    accepts: "a whole number, such as 100",
    read: |node, _| integer(node),
    show: |count| Some(count.to_string()),
    plain_text: false,
    secret: false,
};

pub(super) const COUNT_U32: Kind<u32> = Kind {
    accepts: COUNT.accepts,
    read: |node, _| integer(node),
    show: |count| Some(count.to_string()),
    plain_text: false,
    secret: false,
};

pub(super) const COUNT_U16: Kind<u16> = Kind {
    accepts: "a whole number up to 65535",
    read: |node, _| integer(node),
    show: |count| Some(count.to_string()),
    plain_text: false,
    secret: false,
};

pub(super) const COUNT_U64: Kind<u64> = Kind {
    accepts: COUNT.accepts,
    read: |node, _| integer(node),
    show: |count| Some(count.to_string()),
    plain_text: false,
    secret: false,
};

pub(super) const SIZE: Kind<usize> = Kind {
    accepts: "a size, such as \"64KiB\", \"4MiB\" or a number of bytes",
    read: |node, _| size(node).and_then(|size| usize::try_from(size).ok()),
    show: |size| Some(show_size(*size as u64)),
    plain_text: false,
    secret: false,
};

pub(super) const SIZE_U32: Kind<u32> = Kind {
    accepts: SIZE.accepts,
    read: |node, _| size(node).and_then(|size| u32::try_from(size).ok()),
    show: |size| Some(show_size(u64::from(*size))),
    plain_text: false,
    secret: false,
};

pub(super) const SIZE_U64: Kind<u64> = Kind {
    accepts: SIZE.accepts,
    read: |node, _| size(node),
    show: |size| Some(show_size(*size)),
    plain_text: false,
    secret: false,
};

pub(super) const DURATION: Kind<Duration> = Kind {
    accepts: "a duration, such as \"30s\", \"5m\" or \"1h 30m\"",
    read: |node, _| text(node).and_then(|text| humantime::parse_duration(text).ok()),
    show: |duration| Some(quoted(&humantime::format_duration(*duration).to_string())),
    plain_text: false,
    secret: false,
};

pub(super) const LISTENER: Kind<Option<SocketAddr>> = Kind {
    accepts: "an address with port, such as \"0.0.0.0:4433\" or \"[::]:4433\", or false for off",
    read: |node, _| match &node.value {
        Value::Boolean(false) => Some(None),
        Value::Text(text) if text.is_empty() => Some(None),
        Value::Text(text) => text.parse().ok().map(Some),
        _ => None,
    },
    show: |listener| {
        Some(listener.map_or_else(|| "false".to_owned(), |address| quoted(&address.to_string())))
    },
    plain_text: false,
    secret: false,
};

pub(super) const ADDRESS: Kind<SocketAddr> = Kind {
    accepts: "an address with port, such as \"0.0.0.0:4455\" or \"[::]:4455\"",
    read: |node, _| text(node).and_then(|text| text.parse().ok()),
    show: |address| Some(quoted(&address.to_string())),
    plain_text: true,
    secret: false,
};

pub(super) const ENGINE: Kind<EngineKind> = Kind {
    accepts: "\"memory\", \"local\" or \"nats\"",
    read: |node, _| named(node, &ENGINE_NAMES),
    show: |engine| show_named(*engine, &ENGINE_NAMES),
    plain_text: true,
    secret: false,
};

pub(super) const TEXTS: Kind<Vec<String>> = Kind {
    accepts: "a list of texts, such as [\"one\", \"two\"]",
    read: |node, _| texts(node),
    show: |texts| Some(list(texts.iter().map(|text| quoted(text)))),
    plain_text: false,
    secret: false,
};

pub(super) const PATH: Kind<PathBuf> = Kind {
    accepts: "the path of a file",
    read: |node, folder| text(node).filter(|text| !text.is_empty()).map(|text| folder.join(text)),
    show: |path| Some(quoted(&path.display().to_string())),
    plain_text: true,
    secret: false,
};

pub(super) const OPTIONAL_PATH: Kind<Option<PathBuf>> = Kind {
    accepts: PATH.accepts,
    read: |node, folder| (PATH.read)(node, folder).map(Some),
    show: |path| path.as_ref().and_then(|path| (PATH.show)(path)),
    plain_text: true,
    secret: false,
};

pub(super) const PATHS: Kind<Vec<PathBuf>> = Kind {
    accepts: "a list of files, such as [\"one.json\", \"two.json\"]",
    read: |node, folder| Some(texts(node)?.into_iter().map(|path| folder.join(path)).collect()),
    show: |paths| Some(list(paths.iter().map(|path| quoted(&path.display().to_string())))),
    plain_text: false,
    secret: false,
};

pub(super) const OPTIONAL_SECRET: Kind<Option<Secret>> = Kind {
    accepts: "a text",
    read: |node, _| text(node).map(|text| Some(Secret::new(text))),
    show: |secret| secret.as_ref().map(|_| HIDDEN.to_owned()),
    plain_text: true,
    secret: true,
};

pub(super) const SECRETS: Kind<Vec<Secret>> = Kind {
    accepts: TEXTS.accepts,
    read: |node, _| Some(texts(node)?.into_iter().map(Secret::new).collect()),
    show: |secrets| Some(list(secrets.iter().map(|_| HIDDEN.to_owned()))),
    plain_text: false,
    secret: true,
};

pub(super) const ALGORITHM: Kind<KeyAlgorithm> = Kind {
    accepts: "\"HS256\", \"RS256\", \"ES256\" or \"EdDSA\"",
    read: |node, _| text(node).and_then(KeyAlgorithm::from_name),
    show: |algorithm| Some(quoted(algorithm.name())),
    plain_text: true,
    secret: false,
};

pub(super) const ACCESS: Kind<Access> = Kind {
    accepts: "\"anyone\", \"users\", \"granted\" or \"nobody\"",
    read: |node, _| named(node, &ACCESS_NAMES),
    show: |access| show_named(*access, &ACCESS_NAMES),
    plain_text: true,
    secret: false,
};

/// `None` for "off".
pub(super) const PRESENCE: Kind<Option<Access>> = Kind {
    accepts: "\"off\", \"anyone\", \"users\", \"granted\" or \"nobody\"",
    read: |node, _| match text(node) {
        Some(OFF) => Some(None),
        _ => named(node, &ACCESS_NAMES).map(Some),
    },
    show: |access| match access {
        Some(access) => show_named(*access, &ACCESS_NAMES),
        None => Some(quoted(OFF)),
    },
    plain_text: true,
    secret: false,
};

pub(super) const CONGESTION: Kind<CongestionControl> = Kind {
    accepts: "\"cubic\", \"new_reno\" or \"bbr\"",
    read: |node, _| named(node, &CONGESTION_NAMES),
    show: |congestion| show_named(*congestion, &CONGESTION_NAMES),
    plain_text: true,
    secret: false,
};

/// True for "refuse".
pub(super) const UNKNOWN: Kind<bool> = Kind {
    accepts: "\"default\" or \"refuse\"",
    read: |node, _| named(node, &UNKNOWN_NAMES),
    show: |refuse| show_named(*refuse, &UNKNOWN_NAMES),
    plain_text: true,
    secret: false,
};

pub(super) const LEVEL: Kind<String> = Kind {
    accepts: "\"error\", \"warn\", \"info\", \"debug\", \"trace\", or rules such as \"info,tidegate_edge=debug\"",
    read: |node, _| {
        text(node)
            .filter(|text| text.parse::<tracing_subscriber::filter::Targets>().is_ok() && !text.is_empty())
            .map(str::to_owned)
    },
    show: |level| Some(quoted(level)),
    plain_text: true,
    secret: false,
};

pub(super) const FORMAT: Kind<LogFormat> = Kind {
    accepts: "\"text\" or \"json\"",
    read: |node, _| named(node, &FORMAT_NAMES),
    show: |format| show_named(*format, &FORMAT_NAMES),
    plain_text: true,
    secret: false,
};

/// `64KiB` and its kin; plain numbers are bytes.
fn size(node: &Node) -> Option<u64> {
    let text = match &node.value {
        Value::Integer(bytes) => return u64::try_from(*bytes).ok(),
        Value::Text(text) => text.trim(),
        _ => return None,
    };
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let factor = match unit.trim_start() {
        "" | "B" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn show_size(bytes: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("\"{}{name}\"", bytes / factor))
}

fn integer<T: TryFrom<i64>>(node: &Node) -> Option<T> {
    match node.value {
        Value::Integer(number) => T::try_from(number).ok(),
        _ => None,
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// A text alone is a list with commas: environment and flags write lists so.
fn texts(node: &Node) -> Option<Vec<String>> {
    match &node.value {
        Value::List(items) => items.iter().map(|item| text(item).map(str::to_owned)).collect(),
        Value::Text(text) if !matches!(node.origin, super::Origin::File { .. }) => {
            Some(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
        }
        _ => None,
    }
}

fn named<T: Copy>(node: &Node, names: &[(&str, T)]) -> Option<T> {
    let text = text(node)?;
    names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
}

fn show_named<T: Copy + PartialEq>(value: T, names: &[(&str, T)]) -> Option<String> {
    names.iter().find(|(_, named)| *named == value).map(|(name, _)| quoted(name))
}

/// As a TOML text.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

const CONGESTION_NAMES: [(&str, CongestionControl); 4] = [
    ("cubic_delay", CongestionControl::CubicDelay),
    ("cubic", CongestionControl::Cubic),
    ("new_reno", CongestionControl::NewReno),
    ("bbr", CongestionControl::Bbr),
];

const OFF: &str = "off";
const ACCESS_NAMES: [(&str, Access); 4] = [
    ("anyone", Access::Anyone),
    ("users", Access::Users),
    ("granted", Access::Granted),
    ("nobody", Access::Nobody),
];
const ENGINE_NAMES: [(&str, EngineKind); 3] =
    [("memory", EngineKind::Memory), ("local", EngineKind::Local), ("nats", EngineKind::Nats)];
const UNKNOWN_NAMES: [(&str, bool); 2] = [("default", false), ("refuse", true)];
const FORMAT_NAMES: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
const HIDDEN: &str = "(hidden)";
