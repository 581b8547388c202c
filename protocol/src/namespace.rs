//! Sans-io: the rules of a namespace, the part of a channel name before `:`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ChannelName;

/// Who may do a thing in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every session, also an anonymous one.
    Anyone,
    /// Every session whose token names a user.
    Users,
    /// Only a session whose token grants it for that channel.
    Granted,
    /// No session; for `publish`: the backend API alone.
    Nobody,
}

/// What is retained of each channel: whatever bound is reached first drops the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryBounds {
    /// Publications.
    pub count: u32,
    /// Bytes of payload.
    pub bytes: u64,
    /// Time since the publish.
    pub age: Duration,
}

/// The rules of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// What is retained.
    pub history: HistoryBounds,
    /// Refuse durable publishes: everything here is at-most-once.
    pub ephemeral_only: bool,
    /// Keep and queue the latest publication only: `history.count` counts as 1, and a slow consumer skips to the newest.
    pub conflate: bool,
    /// Who may publish.
    pub publish: Access,
    /// Who may subscribe, poll and read history.
    pub subscribe: Access,
    /// Who may list who is there, and watch them join and leave; `None`: nobody is counted at all.
    pub presence: Option<Access>,
}

impl Default for Namespace {
    /// Safe for production: 100 publications, 1 MiB, 5 minutes; tokens must grant everything.
    fn default() -> Self {
        Self {
            history: HistoryBounds { count: 100, bytes: 1 << 20, age: Duration::from_secs(300) },
            ephemeral_only: false,
            conflate: false,
            publish: Access::Granted,
            subscribe: Access::Granted,
            presence: None,
        }
    }
}

/// The rules of all namespaces.
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    default: Namespace,
    named: BTreeMap<String, Namespace>,
    refuse_unknown: bool,
}

impl Namespaces {
    /// `named` by name; every other channel follows `default`, or is refused where `refuse_unknown` is set (then also
    /// names without `:`, unless `named` holds `""`).
    pub fn new(default: Namespace, named: BTreeMap<String, Namespace>, refuse_unknown: bool) -> Self {
        Self { default, named, refuse_unknown }
    }

    /// The rules for `channel`; `None` where its namespace is unknown and unknown ones are refused.
    pub fn rules(&self, channel: &ChannelName) -> Option<&Namespace> {
        match self.named.get(channel.namespace()) {
            Some(namespace) => Some(namespace),
            None if self.refuse_unknown => None,
            None => Some(&self.default),
        }
    }

    /// The longest that any of them retains a publication.
    pub fn longest_history(&self) -> Duration {
        self.named
            .values()
            .map(|namespace| namespace.history.age)
            .fold(self.default.history.age, Duration::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_namespaces_follow_the_default_or_are_refused() {
        let named =
            BTreeMap::from([("room".to_owned(), Namespace { conflate: true, ..Namespace::default() })]);
        let room = ChannelName::new("room:1").expect("valid");
        let other = ChannelName::new("other:1").expect("valid");
        let open = Namespaces::new(Namespace::default(), named.clone(), false);
        assert!(open.rules(&room).expect("known").conflate);
        assert!(!open.rules(&other).expect("default").conflate);
        let strict = Namespaces::new(Namespace::default(), named, true);
        assert!(strict.rules(&room).is_some());
        assert_eq!(strict.longest_history(), Namespace::default().history.age);
        assert!(strict.rules(&other).is_none());
    }
}
