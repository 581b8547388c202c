//! Sans-io: the reconnect plan, which tells each client when and where to come back should its edge vanish, or its whole
//! region.
//!
//! What comes back at once overloads whoever is left. So everybody knows beforehand for how long the others need to take
//! them all (a *window*, for the node and for the region), and which place in it is theirs. The place follows from the
//! client's *rank* by the golden ratio: however many of the ranks are there, their places are spread evenly.

use std::time::Duration;

use prost::Message;
use serde::{Deserialize, Serialize};

/// One client's plan. Part of `connected`, and of a `ping` when it changes (PROTOCOL §3.6).
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ReconnectPlan {
    /// Counts the plans of one edge: of two, the one with the higher epoch holds.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// How long the rest of the region needs for the clients of this edge, milliseconds.
    #[prost(uint32, tag = "2")]
    pub node_ms: u32,
    /// How long the other regions need for the clients of this one, milliseconds.
    #[prost(uint32, tag = "3")]
    pub region_ms: u32,
    /// The client's own; it keeps it as long as the connection lasts.
    #[prost(uint32, tag = "4")]
    pub rank: u32,
    /// Where to go instead.
    #[prost(message, repeated, tag = "5")]
    pub alternatives: Vec<Alternative>,
}

/// Another place to connect to.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Alternative {
    /// Host and, where it is not the usual one, port: `edge-7.example.com:4433`.
    #[prost(string, tag = "1")]
    pub host: String,
    /// Its share of the clients is this over the sum of all.
    #[prost(uint32, tag = "2")]
    pub weight: u32,
    /// True: in another region.
    #[prost(bool, tag = "3")]
    #[serde(skip_serializing_if = "is_false")]
    pub elsewhere: bool,
}

impl ReconnectPlan {
    /// The longest window: who waited longer would rather try his luck.
    pub const MAX_WINDOW: Duration = Duration::from_secs(300);
    /// More alternatives than anybody tries.
    pub const MAX_ALTERNATIVES: usize = 16;
    /// The longest host, bytes.
    pub const MAX_HOST: usize = 255;

    /// As far as a client believes it: windows no longer than [`Self::MAX_WINDOW`], hosts and their number within bounds.
    pub fn bounded(mut self) -> Self {
        let longest = u32::try_from(Self::MAX_WINDOW.as_millis()).unwrap_or(u32::MAX);
        self.node_ms = self.node_ms.min(longest);
        self.region_ms = self.region_ms.min(longest);
        self.alternatives.retain(|one| !one.host.is_empty() && one.host.len() <= Self::MAX_HOST);
        self.alternatives.truncate(Self::MAX_ALTERNATIVES);
        self
    }

    /// True where it holds neither windows nor places: as good as none.
    pub fn says_nothing(&self) -> bool {
        !self.has_windows() && self.alternatives.is_empty()
    }

    /// True where it says when to come back; else it only names places.
    pub fn has_windows(&self) -> bool {
        self.node_ms > 0 || self.region_ms > 0
    }

    /// The window of this node's clients.
    pub fn node_window(&self) -> Duration {
        Duration::from_millis(self.node_ms.into())
    }

    /// The window of this region's clients.
    pub fn region_window(&self) -> Duration {
        Duration::from_millis(self.region_ms.into())
    }

    /// The client's place in a window, from 0 to 1.
    pub fn place(&self) -> f64 {
        kronecker(self.rank, GOLDEN_RATIO)
    }

    /// Which alternative is this client's at its `turn`-th try (from 0), in its own region or `elsewhere`; by weight, and
    /// even over the ranks as places are. `None` where the plan has none such.
    pub fn alternative(&self, elsewhere: bool, turn: u32) -> Option<&Alternative> {
        let matching = || self.alternatives.iter().filter(move |one| one.elsewhere == elsewhere);
        let total: u64 = matching().map(|one| u64::from(one.weight)).sum();
        let mut left = kronecker(self.rank.wrapping_add(turn), ROOT_OF_TWO) * total as f64;
        for one in matching() {
            left -= f64::from(one.weight);
            if left < 0.0 {
                return Some(one);
            }
        }
        matching().next_back()
    }
}

/// The fraction of `index` · `irrational`. Two irrational numbers that have nothing to do with each other give pairs that
/// are spread evenly: each alternative gets its clients evenly over the window.
fn kronecker(index: u32, irrational: f64) -> f64 {
    (f64::from(index) * irrational).fract()
}

fn is_false(value: &bool) -> bool {
    !value
}

const GOLDEN_RATIO: f64 = 0.618_033_988_749_894_9;
const ROOT_OF_TWO: f64 = std::f64::consts::SQRT_2;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn alternative(host: &str, weight: u32, elsewhere: bool) -> Alternative {
        Alternative { host: host.to_owned(), weight, elsewhere }
    }

    fn plan(rank: u32) -> ReconnectPlan {
        ReconnectPlan {
            epoch: 1,
            node_ms: 2_000,
            region_ms: 120_000,
            rank,
            alternatives: vec![
                alternative("near", 1, false),
                alternative("far-1", 1, true),
                alternative("far-3", 3, true),
            ],
        }
    }

    #[test]
    fn each_alternative_gets_its_share_evenly_over_the_window() {
        let first = 4_000_000_000;
        let mut counts = [[0; 10]; 2];
        for rank in first..first + 40_000 {
            let plan = plan(rank);
            let place = (plan.place() * 10.0) as usize;
            match plan.alternative(true, 0).expect("there are two").host.as_str() {
                "far-1" => counts[0][place] += 1,
                "far-3" => counts[1][place] += 1,
                other => panic!("{other} is not elsewhere"),
            }
        }
        for (share, counts) in [1_000_i32, 3_000].into_iter().zip(counts) {
            // Drawn at random, they would differ by 30 and 50 or more.
            assert!(counts.iter().all(|count| (count - share).abs() < 20), "{share}: {counts:?}");
        }
        assert_eq!(plan(7).alternative(false, 3).expect("there is one").host, "near");
    }

    #[test]
    fn a_further_try_goes_to_another_place_sooner_or_later() {
        let hosts: std::collections::BTreeSet<_> =
            (0..8).map(|turn| plan(5).alternative(true, turn).expect("two").host.clone()).collect();
        assert_eq!(hosts.len(), 2);
        let none = ReconnectPlan { alternatives: Vec::new(), ..plan(5) };
        assert!(none.alternative(true, 0).is_none());
        let weightless = ReconnectPlan { alternatives: vec![alternative("a", 0, true)], ..plan(5) };
        assert_eq!(weightless.alternative(true, 0).expect("the only one").host, "a");
    }

    #[test]
    fn a_client_believes_no_more_than_it_must() {
        let mut wild = plan(1);
        wild.region_ms = u32::MAX;
        wild.alternatives = (0..40).map(|_| alternative("h", 1, true)).collect();
        wild.alternatives[0].host = "x".repeat(256);
        wild.alternatives[1].host = String::new();
        let plan = wild.bounded();
        assert_eq!((plan.node_ms, plan.region_ms), (2_000, 300_000));
        assert_eq!(plan.alternatives.len(), ReconnectPlan::MAX_ALTERNATIVES);
        assert!(plan.alternatives.iter().all(|one| one.host == "h"));
    }

    proptest! {
        #[test]
        fn both_encodings_keep_everything(epoch: u64, node_ms: u32, region_ms: u32, rank: u32, weight: u32, elsewhere: bool) {
            let alternatives = vec![alternative("é.example:4433", weight, elsewhere)];
            let plan = ReconnectPlan { epoch, node_ms, region_ms, rank, alternatives };
            prop_assert_eq!(&ReconnectPlan::decode(&plan.encode_to_vec()[..]).expect("our own"), &plan);
            let json = serde_json::to_string(&plan).expect("plain data");
            prop_assert_eq!(&serde_json::from_str::<ReconnectPlan>(&json).expect("our own"), &plan);
        }

        #[test]
        fn a_place_is_inside_the_window(rank: u32, turn: u32) {
            let plan = plan(rank);
            prop_assert!((0.0..1.0).contains(&plan.place()));
            prop_assert!(plan.alternative(true, turn).is_some_and(|one| one.elsewhere));
        }
    }
}
