//! Sans-io: which region a channel is at home in.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::grants::ChannelPattern;
use tidegate_protocol::{ChannelName, Region};

/// Which region a channel is at home in: the first pattern that fits, else its namespace's, else the default. Every
/// edge must have the same rules.
#[derive(Debug, Clone)]
pub struct HomeRules {
    default: Region,
    patterns: Vec<(ChannelPattern, Region)>,
    namespaces: BTreeMap<String, Region>,
}

impl HomeRules {
    /// Everything at home in `default`.
    pub fn new(default: Region) -> Self {
        Self { default, patterns: Vec::new(), namespaces: BTreeMap::new() }
    }

    /// Channels that fit `pattern` and none of those before it.
    #[must_use]
    pub fn with_pattern(mut self, pattern: ChannelPattern, region: Region) -> Self {
        self.patterns.push((pattern, region));
        self
    }

    /// Channels of `namespace` that fit no pattern.
    #[must_use]
    pub fn with_namespace(mut self, namespace: &str, region: Region) -> Self {
        self.namespaces.insert(namespace.to_owned(), region);
        self
    }

    /// The region that remembers sessions, and has the channels of no rule.
    pub fn default_region(&self) -> &Region {
        &self.default
    }

    /// Where `channel` is at home.
    pub fn region(&self, channel: &ChannelName) -> &Region {
        self.patterns
            .iter()
            .find(|(pattern, _)| pattern.matches(channel))
            .map(|(_, region)| region)
            .or_else(|| self.namespaces.get(channel.namespace()))
            .unwrap_or(&self.default)
    }

    /// Every region that is named.
    pub fn regions(&self) -> BTreeSet<&Region> {
        let named = self.patterns.iter().map(|(_, region)| region).chain(self.namespaces.values());
        named.chain([&self.default]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_comes_before_the_namespace_and_that_before_the_default() {
        let rules = HomeRules::new(Region::new("eu"))
            .with_namespace("room", Region::new("us"))
            .with_pattern(ChannelPattern::new("room:jp-*"), Region::new("jp"))
            .with_pattern(ChannelPattern::new("room:*-x"), Region::new("au"));
        let of = |name: &str| rules.region(&ChannelName::new(name).expect("valid")).as_str().to_owned();
        let homes: Vec<_> =
            ["chat", "room:1", "room:jp-1-x", "room:1-x", "other:room:1"].into_iter().map(of).collect();
        assert_eq!(homes, ["eu", "us", "jp", "au", "eu"]);
        assert_eq!(rules.regions().len(), 4);
    }
}
