//! Several cores, whose words come in any order.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_protocol::Region;
use tidegate_protocol::link::fleet::{EXPIRY, EdgeCondition};

use super::*;

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    Instant::now()
}

fn state(node: &str, sequence: u64) -> EdgeState {
    EdgeState {
        node: NodeId::new(node),
        region: Region::new("eu"),
        endpoints: Vec::new(),
        sessions: sequence,
        rate: 10,
        slack: 10,
        condition: EdgeCondition::Serve,
        started_unix_ms: 1,
        sequence,
    }
}

fn entry(node: &str, sequence: u64, age_ms: u64) -> FleetEntry {
    FleetEntry { state: state(node, sequence), age: Duration::from_millis(age_ms) }
}

fn names(merge: &Merge) -> Vec<String> {
    merge.view().edges().iter().map(|edge| edge.state.node.as_str().to_owned()).collect()
}

#[test]
fn an_edge_stays_while_any_core_hears_it() {
    let (now, mut merge) = (start() + EXPIRY, Merge::new(NodeId::new("own")));
    merge.handle_list(now, Way(1), &[entry("a", 5, 4_000), entry("b", 1, 0)]);
    merge.handle_list(now, Way(2), &[entry("a", 7, 100)]);
    assert_eq!(merge.view().get(&NodeId::new("a")).expect("known").state.sequence, 7);
    let ways = |merge: &Merge, to: &str| merge.ways(&NodeId::new(to)).collect::<Vec<_>>();
    assert_eq!((ways(&merge, "a"), ways(&merge, "b")), (vec![Way(1), Way(2)], vec![Way(1)]));
    // A core that is gone takes nobody with it.
    merge.handle_hung_up(Way(1));
    assert_eq!((ways(&merge, "a"), ways(&merge, "b"), names(&merge).len()), (vec![Way(2)], vec![], 2));
    // One that has lost an edge does not say that the edge is gone.
    merge.handle_list(now, Way(2), &[]);
    assert_eq!(names(&merge), ["a", "b"]);
    assert!(merge.handle_timeout(now + EXPIRY - Duration::from_millis(100)));
    assert_eq!(names(&merge), ["b"]);
}

#[test]
fn what_an_edge_knows_of_itself_nobody_else_can_tell_it() {
    let (now, mut merge) = (start() + EXPIRY, Merge::new(NodeId::new("own")));
    merge.handle_list(now, Way(1), &[entry("own", 9, 0)]);
    assert!(names(&merge).is_empty());
    merge.handle_own(now, state("own", 1));
    merge.handle_list(now, Way(1), &[entry("own", 9, 0), entry("z", 1, 0), entry("a", 1, 0)]);
    assert_eq!(names(&merge), ["a", "own", "z"]);
    assert_eq!(merge.view().get(&NodeId::new("own")).expect("there").state.sequence, 1);
    // It does not expire, and leaves when it says so.
    merge.handle_timeout(now + EXPIRY * 9);
    assert_eq!(names(&merge), ["own"]);
    merge.handle_own(now, EdgeState { condition: EdgeCondition::Leave, ..state("own", 2) });
    assert!(names(&merge).is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    /// An edge speaks, to some of the cores.
    Speak {
        edge: usize,
        to: [bool; 3],
        leaves: bool,
    },
    /// A core tells this edge what it knows.
    Tell(usize),
    /// The connection to a core is over.
    Lose(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, any::<[bool; 3]>(), 0..8_u8)
            .prop_map(|(edge, to, leaves)| Step::Speak { edge, to, leaves: leaves == 0 }),
        3 => (0..3_usize).prop_map(Step::Tell),
        1 => (0..3_usize).prop_map(Step::Lose),
        3 => (1..2_000_u64).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever way words take, the view never goes back to an older one, shows nobody who was silent for too long, and
    /// everybody of whom a core told lately.
    #[test]
    fn views_only_go_forward(steps in vec(step(), 1..120)) {
        let mut now = start() + EXPIRY * 2;
        let mut cores: [FleetTable; 3] = Default::default();
        let mut merge = Merge::new(NodeId::new("own"));
        // When each edge said each word, and the newest that this edge could know.
        let mut said: BTreeMap<(String, u64), Instant> = BTreeMap::new();
        let mut told: BTreeMap<String, (u64, bool, Instant)> = BTreeMap::new();
        for (sequence, step) in (1..).zip(steps) {
            match step {
                Step::Speak { edge, to, leaves } => {
                    let name = format!("edge-{edge}");
                    let condition = if leaves { EdgeCondition::Leave } else { EdgeCondition::Serve };
                    let word = EdgeState { condition, ..state(&name, sequence) };
                    said.insert((name, sequence), now);
                    for (core, _) in cores.iter_mut().zip(to).filter(|(_, hears)| *hears) {
                        core.handle_state(now, now, word.clone());
                    }
                }
                Step::Tell(core) => {
                    cores[core].handle_timeout(now);
                    let list: Vec<FleetEntry> = cores[core]
                        .all()
                        .map(|known| FleetEntry { state: known.state.clone(), age: now - known.heard })
                        .collect();
                    for entry in &list {
                        let name = entry.state.node.as_str().to_owned();
                        let left = entry.state.condition == EdgeCondition::Leave;
                        let heard = said[&(name.clone(), entry.state.sequence)];
                        let newest = told.entry(name).or_insert((entry.state.sequence, left, heard));
                        if entry.state.sequence > newest.0 {
                            *newest = (entry.state.sequence, left, heard);
                        }
                    }
                    merge.handle_list(now, Way(core as u64), &list);
                }
                Step::Lose(core) => merge.handle_hung_up(Way(core as u64)),
                Step::Pass(ms) => now += Duration::from_millis(ms),
            }
            merge.handle_timeout(now);
            told.retain(|_, (_, _, heard)| *heard + EXPIRY > now);
            let expected: Vec<_> = told
                .iter()
                .filter(|(_, (_, left, _))| !left)
                .map(|(name, (sequence, _, heard))| (name.clone(), *sequence, *heard))
                .collect();
            let view = merge.view();
            let shown: Vec<_> = view
                .edges()
                .iter()
                .map(|edge| (edge.state.node.as_str().to_owned(), edge.state.sequence, edge.heard))
                .collect();
            prop_assert_eq!(shown, expected);
        }
    }
}
