//! Sans-io: what the list of a fleet's edges means for the clients of one of them: who would come back with them, and who
//! could take them.

use std::collections::BTreeSet;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::NodeId;
use tidegate_protocol::endpoint::endpoint_of;
use tidegate_protocol::link::fleet::{EdgeCondition, EdgeState};
use tidegate_protocol::plan::{Alternative, ReconnectPlan};

use super::{Domain, Outlook};

impl Outlook {
    /// What the edge named `own` makes of the fleet. `None` while it is not in the list itself: then nothing is known yet.
    /// `configured` are places beside the fleet's.
    ///
    /// The first alternative is the edge itself, where clients can be sent to it by name: of no weight, unless nobody else
    /// in its region takes clients. Where there is nobody else at all it is not named: clients come back by the address that
    /// they have.
    pub fn of<'a>(
        own: &NodeId,
        edges: impl IntoIterator<Item = &'a EdgeState>,
        configured: &[Alternative],
    ) -> Option<Self> {
        let mut all: Vec<&EdgeState> =
            edges.into_iter().filter(|edge| edge.condition != EdgeCondition::Leave).collect();
        all.sort_by(|one, other| one.node.cmp(&other.node));
        let own = *all.iter().find(|edge| edge.node == *own)?;
        let serves = |edge: &&EdgeState| edge.condition == EdgeCondition::Serve;
        let here: Vec<&EdgeState> = all.iter().copied().filter(|edge| edge.region == own.region).collect();
        let place = here.iter().position(|edge| edge.node == own.node).unwrap_or_default();
        // Each edge names those behind it, so that in a large fleet each is named as often as any other.
        let near: Vec<&EdgeState> =
            rotated(&here, place + 1).filter(|edge| edge.node != own.node).filter(serves).collect();
        let others: Vec<&EdgeState> =
            all.iter().copied().filter(|edge| edge.region != own.region).filter(serves).collect();
        let far: Vec<&EdgeState> = rotated(&others, place * FAR).collect();
        let far = &far[..far.len().min(FAR.max(NAMED.saturating_sub(near.len())))];
        let near = &near[..near.len().min(NAMED - far.len())];

        let slack = |edges: &[&EdgeState]| edges.iter().map(|edge| f64::from(edge.slack)).sum::<f64>();
        let node = Domain {
            sessions: own.sessions,
            spare: if near.is_empty() { f64::from(own.rate) } else { slack(near) },
        };
        let region = Domain {
            sessions: here.iter().map(|edge| edge.sessions).sum(),
            spare: if others.is_empty() {
                here.iter().filter(|edge| serves(edge)).map(|edge| f64::from(edge.rate)).sum::<f64>()
            } else {
                slack(&others)
            },
        };
        let itself = Alternative {
            weight: if near.is_empty() { own.rate.max(1) } else { 0 },
            ..alternative(own, false)
        };
        let is_alone = near.is_empty() && far.is_empty();
        let of_fleet = Some(itself)
            .filter(|_| !is_alone)
            .into_iter()
            .chain(near.iter().map(|edge| alternative(edge, false)))
            .chain(far.iter().map(|edge| alternative(edge, true)));
        let mut seen = BTreeSet::new();
        let alternatives = of_fleet
            .chain(configured.iter().cloned())
            .filter(|one| endpoint_of(&one.host).is_some_and(|endpoint| seen.insert(endpoint)))
            .take(ReconnectPlan::MAX_ALTERNATIVES)
            .collect();
        Some(Self { node, region, alternatives })
    }
}

/// Where a connection that has grown old goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// There: host and port.
    To(String),
    /// Wherever the client's own addresses lead: here, by no name that it could be sent to.
    Anywhere,
    /// Nobody has room: not now.
    Later,
}

impl Renewal {
    /// One of the region by what it can spare, this edge among them, by `own_slack`.
    pub fn choose(
        plan: &ReconnectPlan,
        own: &NodeId,
        own_state: Option<&EdgeState>,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let Some(own_state) = own_state.filter(|state| state.node == *own) else { return Self::Later };
        let own_place = host(own_state);
        let is_own = |one: &&Alternative| Some(&one.host) == own_place.as_ref();
        let near: Vec<&Alternative> =
            plan.alternatives.iter().filter(|one| !one.elsewhere && !is_own(one)).collect();
        let total = near.iter().map(|one| u64::from(one.weight)).sum::<u64>() + u64::from(own_state.slack);
        if total == 0 {
            return Self::Later;
        }
        let mut drawn = rng.random_range(0..total);
        for one in near {
            match drawn.checked_sub(u64::from(one.weight)) {
                None => return Self::To(one.host.clone()),
                Some(left) => drawn = left,
            }
        }
        // By name only where it was told that name.
        let named = own_place.filter(|host| plan.alternatives.iter().any(|one| one.host == *host));
        named.map_or(Self::Anywhere, Self::To)
    }
}

fn alternative(edge: &EdgeState, elsewhere: bool) -> Alternative {
    Alternative { host: host(edge).unwrap_or_default(), weight: edge.slack.max(1), elsewhere }
}

/// Where clients find an edge, by whichever transport: the first of its URLs with TLS.
fn host(edge: &EdgeState) -> Option<String> {
    edge.endpoints.iter().find_map(|url| {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        endpoint_of(authority).filter(|_| SECURE.contains(&scheme)).map(|endpoint| endpoint.to_string())
    })
}

fn rotated<'a>(edges: &'a [&'a EdgeState], first: usize) -> impl Iterator<Item = &'a EdgeState> {
    let first = if edges.is_empty() { 0 } else { first % edges.len() };
    edges[first..].iter().chain(&edges[..first]).copied()
}

const SECURE: [&str; 3] = ["quic", "wss", "https"];
/// Other edges in a plan; with this one, as many as clients take.
const NAMED: usize = ReconnectPlan::MAX_ALTERNATIVES - 1;
/// Of those, in other regions, where this one has many.
const FAR: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use tidegate_protocol::Region;

    fn edge(name: &str, region: &str, slack: u32) -> EdgeState {
        EdgeState {
            node: NodeId::new(name),
            region: Region::new(region),
            endpoints: vec![
                format!("ws://{name}:8080"),
                format!("quic://{name}:4433"),
                format!("https://{name}:443/x"),
            ],
            sessions: 1_000,
            rate: 500,
            slack,
            condition: EdgeCondition::Serve,
            started_unix_ms: 1,
            sequence: 1,
        }
    }

    fn shown(outlook: &Outlook) -> Vec<(&str, u32, bool)> {
        outlook.alternatives.iter().map(|one| (one.host.as_str(), one.weight, one.elsewhere)).collect()
    }

    fn of(own: &str, edges: &[EdgeState]) -> Outlook {
        Outlook::of(&NodeId::new(own), edges, &[]).expect("it is in the list")
    }

    #[test]
    fn neighbours_take_a_nodes_clients_and_other_regions_a_regions() {
        let mut edges =
            [edge("a", "eu", 400), edge("b", "eu", 300), edge("c", "eu", 0), edge("u", "us", 450)];
        edges[3].sessions = 7;
        let outlook = of("b", &edges);
        assert_eq!(outlook.node, Domain { sessions: 1_000, spare: 400.0 });
        assert_eq!(outlook.region, Domain { sessions: 3_000, spare: 450.0 });
        let all = [("b:4433", 0, false), ("c:4433", 1, false), ("a:4433", 400, false), ("u:4433", 450, true)];
        assert_eq!(shown(&outlook), all);
        // Those that go away take nobody, but their clients would come back with ours.
        edges[0].condition = EdgeCondition::LameDuck;
        edges[2].condition = EdgeCondition::Drain { drain: 1 };
        let outlook = of("b", &edges);
        assert_eq!(outlook.node.spare, 500.0, "only this one is left: they come back here");
        assert_eq!(outlook.region.sessions, 3_000);
        assert_eq!(shown(&outlook), [("b:4433", 500, false), ("u:4433", 450, true)]);
    }

    #[test]
    fn alone_it_waits_for_itself() {
        let outlook = of("a", &[edge("a", "eu", 20)]);
        assert_eq!((outlook.node.spare, outlook.region.spare), (500.0, 500.0));
        assert!(outlook.alternatives.is_empty(), "by the address that they have");
        let far = of("a", &[edge("a", "eu", 20), edge("u", "us", 450)]);
        assert_eq!(shown(&far), [("a:4433", 500, false), ("u:4433", 450, true)]);
        let nameless = EdgeState { endpoints: vec!["ws://a:8080".to_owned()], ..edge("a", "eu", 20) };
        assert_eq!(shown(&of("a", &[nameless, edge("u", "us", 450)])), [("u:4433", 450, true)]);
        assert_eq!(Outlook::of(&NodeId::new("a"), &[edge("b", "eu", 1)], &[]), None);
    }

    #[test]
    fn what_is_configured_comes_beside_it_once() {
        let place = |host: &str| Alternative { host: host.to_owned(), weight: 1, elsewhere: false };
        let configured = [place("A"), place("lb.example"), place("no host")];
        let outlook = Outlook::of(&NodeId::new("b"), &[edge("a", "eu", 5), edge("b", "eu", 1)], &configured);
        let all = [("b:4433", 0, false), ("a:4433", 5, false), ("lb.example", 1, false)];
        assert_eq!(shown(&outlook.expect("listed")), all);
    }

    #[test]
    fn in_a_large_fleet_each_is_named_as_often_as_any_other() {
        let mut edges: Vec<_> = (0..40).map(|n| edge(&format!("e{n:02}"), "eu", 400)).collect();
        edges.extend((0..10).map(|n| edge(&format!("u{n}"), "us", 400)));
        let mut named = std::collections::BTreeMap::new();
        for n in 0..40 {
            let outlook = of(&format!("e{n:02}"), &edges);
            assert_eq!(outlook.alternatives.len(), ReconnectPlan::MAX_ALTERNATIVES);
            assert_eq!(outlook.node.spare, 400.0 * 11.0, "of those that are named");
            for one in &outlook.alternatives[1..] {
                *named.entry(one.host.clone()).or_insert(0) += 1;
            }
        }
        assert_eq!(named.len(), 50);
        assert!(named.iter().all(|(host, count)| *count == if host.starts_with('u') { 16 } else { 11 }));
    }

    #[test]
    fn connections_are_renewed_by_what_can_be_spared_here_too() {
        let edges = [edge("a", "eu", 100), edge("b", "eu", 300), edge("u", "us", 500)];
        let plan = ReconnectPlan { alternatives: of("a", &edges).alternatives, ..ReconnectPlan::default() };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut choose = |plan: &ReconnectPlan, own: Option<&EdgeState>| {
            Renewal::choose(plan, &NodeId::new("a"), own, &mut rng)
        };
        let mut here = 0;
        for _ in 0..4_000 {
            match choose(&plan, edges.first()) {
                Renewal::To(host) if host == "a:4433" => here += 1,
                Renewal::To(host) => assert_eq!(host, "b:4433"),
                other => panic!("{other:?}"),
            }
        }
        assert!((900..1_100).contains(&here), "{here}");
        let alone = ReconnectPlan::default();
        let nameless = EdgeState { endpoints: Vec::new(), ..edge("a", "eu", 20) };
        assert_eq!(choose(&alone, Some(&nameless)), Renewal::Anywhere);
        assert_eq!(choose(&alone, Some(&EdgeState { slack: 0, ..nameless })), Renewal::Later);
        assert_eq!(choose(&plan, None), Renewal::Later);
    }

    proptest! {
        #[test]
        fn a_plan_has_room_for_all_and_no_place_twice(
            slacks in prop::collection::vec((0_u32..1000, prop::bool::ANY, 0_u8..4), 1..60)
        ) {
            let edges: Vec<_> = slacks.iter().enumerate().map(|(n, (slack, far, condition))| EdgeState {
                condition: match condition {
                    0 => EdgeCondition::LameDuck,
                    1 => EdgeCondition::Drain { drain: 1 },
                    _ => EdgeCondition::Serve,
                },
                ..edge(&format!("e{n:02}"), if *far { "us" } else { "eu" }, *slack)
            }).collect();
            for own in &edges {
                let outlook = of(own.node.as_str(), &edges);
                let hosts: BTreeSet<_> = outlook.alternatives.iter().map(|one| &one.host).collect();
                prop_assert_eq!(hosts.len(), outlook.alternatives.len());
                prop_assert!(hosts.len() <= ReconnectPlan::MAX_ALTERNATIVES);
                // Who follows it goes to somebody who takes clients, and never back while others do.
                let plan = ReconnectPlan { alternatives: outlook.alternatives, rank: 9, ..ReconnectPlan::default() };
                let Some(whom) = plan.alternative(false, 0) else {
                    prop_assert!(plan.alternatives.is_empty());
                    continue;
                };
                let named = edges.iter().find(|edge| whom.host.starts_with(edge.node.as_str())).expect("one of them");
                let others = edges.iter().any(|edge| {
                    edge.node != own.node && edge.region == own.region && edge.condition == EdgeCondition::Serve
                });
                prop_assert_eq!(named.node == own.node, !others);
                prop_assert!(!others || named.condition == EdgeCondition::Serve);
            }
        }
    }
}
