//! Sans-io: what a session may do, as its token says, and the check against a namespace's rules.

use std::sync::Arc;
use std::time::Instant;

use crate::ChannelName;
use crate::namespace::{Access, Namespace};

/// A channel name in which each `*` stands for any text, also none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelPattern(Box<str>);

impl ChannelPattern {
    /// Any text is a pattern.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True where the whole name fits. Linear in the name for each `*`.
    pub fn matches(&self, channel: &ChannelName) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = channel.as_str().strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// Channels that a token grants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// May be subscribed to, polled and read.
    pub subscribe: Vec<ChannelPattern>,
    /// May be published to.
    pub publish: Vec<ChannelPattern>,
    /// Whose members may be listed and watched.
    pub presence: Vec<ChannelPattern>,
}

/// Who a session is, as its token says.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The token's subject; `None` for an anonymous session.
    pub user: Option<Arc<str>>,
    /// What the token grants.
    pub grants: Arc<Grants>,
    /// Server-side subscriptions: begun with the session, granted by being named.
    pub subscriptions: Vec<ChannelName>,
    /// When the token ends.
    pub expires: Option<Instant>,
}

impl Identity {
    /// A session without a token: only what namespaces give to anyone.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Whether this session may subscribe to, poll or read `channel`.
    pub fn may_subscribe(&self, channel: &ChannelName, rules: &Namespace) -> bool {
        self.allows(rules.subscribe, &self.grants.subscribe, channel) || self.subscriptions.contains(channel)
    }

    /// Whether this session may publish to `channel`.
    pub fn may_publish(&self, channel: &ChannelName, rules: &Namespace) -> bool {
        self.allows(rules.publish, &self.grants.publish, channel)
    }

    /// Whether this session may list who is on `channel`, and watch them join and leave.
    pub fn may_see_presence(&self, channel: &ChannelName, rules: &Namespace) -> bool {
        rules.presence.is_some_and(|access| self.allows(access, &self.grants.presence, channel))
    }

    fn allows(&self, access: Access, granted: &[ChannelPattern], channel: &ChannelName) -> bool {
        match access {
            Access::Anyone => true,
            Access::Users => self.user.is_some(),
            Access::Granted => granted.iter().any(|pattern| pattern.matches(channel)),
            Access::Nobody => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let cases = [
            ("room:1", "room:1", true),
            ("room:1", "room:12", false),
            ("room:*", "room:12", true),
            ("room:*", "groom:12", false),
            ("*", "x", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "ac", false),
            ("ab*ba", "aba", false),
            ("*:private", "room:private", true),
            ("", "x", false),
        ];
        for (pattern, name, fits) in cases {
            let channel = ChannelName::new(name).expect("valid");
            assert_eq!(ChannelPattern::new(pattern).matches(&channel), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn access_is_decided_by_the_namespace_first() {
        let channel = ChannelName::new("room:1").expect("valid");
        let rules = |access| Namespace { publish: access, ..Namespace::default() };
        let grants = Arc::new(Grants { publish: vec![ChannelPattern::new("room:*")], ..Grants::default() });
        let user = Identity { user: Some("ann".into()), grants, ..Identity::default() };
        assert!(Identity::anonymous().may_publish(&channel, &rules(Access::Anyone)));
        assert!(!Identity::anonymous().may_publish(&channel, &rules(Access::Users)));
        assert!(!Identity::anonymous().may_publish(&channel, &rules(Access::Granted)));
        assert!(user.may_publish(&channel, &rules(Access::Users)));
        assert!(user.may_publish(&channel, &rules(Access::Granted)));
        assert!(!user.may_publish(&channel, &rules(Access::Nobody)));
        assert!(!user.may_subscribe(&channel, &Namespace::default()));
        let member = Identity { subscriptions: vec![channel.clone()], ..Identity::default() };
        assert!(member.may_subscribe(&channel, &Namespace::default()));
    }
}
