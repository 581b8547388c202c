//! What edges are told of each other, and when.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_protocol::Region;
use tidegate_protocol::link::fleet::{ANNOUNCE_EVERY, EXPIRY, EdgeCondition};

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
        sessions: 0,
        rate: 1000,
        slack: 1000,
        condition: EdgeCondition::Serve,
        started_unix_ms: 1,
        sequence,
    }
}

/// Runs from `now` to `end`, and gives when edges were told, and of what.
fn run(desk: &mut FleetDesk, now: Instant, end: Instant) -> Vec<(Instant, Vec<FleetEntry>)> {
    let mut told = Vec::new();
    while let Some(due) = desk.poll_timeout().filter(|due| *due <= end) {
        // A change may make due at once what would have been later.
        let at = due.max(now);
        if let Some(all) = desk.handle_timeout(at) {
            told.push((at, all));
        }
    }
    told
}

const PACE: Duration = Duration::from_millis(250);

#[test]
fn edges_are_told_of_changes_soon_and_of_the_rest_now_and_then() {
    let now = start();
    let mut desk = FleetDesk::new(now);
    assert_eq!(desk.poll_timeout(), None);
    let began = now + Duration::from_secs(9);
    desk.handle_state(began, state("a", 1));
    desk.handle_state(began, state("b", 1));
    let told = run(&mut desk, began, began + ANNOUNCE_EVERY);
    assert_eq!((told.len(), told[0].0, told[0].1.len()), (1, began + PACE, 2));
    // Says the same: no hurry.
    let second = began + ANNOUNCE_EVERY;
    desk.handle_state(second, state("a", 2));
    let told = run(&mut desk, second, second + Duration::from_millis(400));
    assert_eq!((told.len(), told[0].0), (1, began + PACE * 5), "four times the pace after the first");
    let ages: Vec<_> = told[0].1.iter().map(|edge| edge.age.as_millis()).collect();
    assert_eq!(ages, [250, 1250]);
    // Becomes a lame duck: at once, which is not before the pace since the last time.
    let third = began + PACE * 5 + Duration::from_millis(10);
    desk.handle_state(third, EdgeState { condition: EdgeCondition::LameDuck, ..state("a", 3) });
    let told = run(&mut desk, third, third + PACE);
    assert_eq!((told.len(), told[0].0), (1, began + PACE * 6));
}

#[test]
fn an_edge_that_is_silent_is_gone_for_all_and_one_that_leaves_at_once() {
    let now = start();
    let mut desk = FleetDesk::new(now);
    desk.handle_state(now, state("a", 1));
    desk.handle_state(now, state("b", 1));
    desk.handle_state(now, EdgeState { condition: EdgeCondition::Leave, ..state("b", 2) });
    let told = run(&mut desk, now, now + PACE);
    let conditions: Vec<_> = told[0].1.iter().map(|edge| edge.state.condition).collect();
    assert_eq!(conditions, [EdgeCondition::Serve, EdgeCondition::Leave], "others are told that it left");
    assert_eq!(desk.there(now).len(), 1);
    let told = run(&mut desk, now, now + EXPIRY * 2);
    let (gone_at, all) = told.last().expect("told of the end");
    assert!(all.is_empty() && *gone_at <= now + EXPIRY + PACE, "{:?}", *gone_at - now);
    assert_eq!(desk.poll_timeout(), None, "nothing is left to do");
}

#[test]
fn who_sends_too_much_to_others_is_held_back_and_nobody_else() {
    let now = start();
    let mut desk = FleetDesk::new(now);
    let (a, b) = (NodeId::new("a"), NodeId::new("b"));
    let allowed = |desk: &mut FleetDesk, now, of| (0..5_000).filter(|_| desk.allow_relay(now, of)).count();
    assert_eq!(allowed(&mut desk, now, &a), 1000);
    assert_eq!(allowed(&mut desk, now, &b), 1000);
    assert_eq!(allowed(&mut desk, now + Duration::from_millis(100), &a), 100);
    assert_eq!(allowed(&mut desk, now + Duration::from_secs(60), &a), 1000);
    for n in 0..MAX_EDGES {
        desk.allow_relay(now, &NodeId::new(&format!("e{n}")));
    }
    assert!(!desk.allow_relay(now, &NodeId::new("one-more")), "no more than edges that there can be");
    desk.handle_state(now, state("a", 1));
    run(&mut desk, now, now + Duration::from_secs(2));
    assert!(desk.allow_relay(now + Duration::from_secs(2), &NodeId::new("one-more")));
}

proptest! {
    /// Whatever edges say and when: lists keep their pace, everybody alive is in the newest one within a refresh, nobody
    /// who was silent for too long is, and the last list of all is right.
    #[test]
    fn lists_are_paced_and_true(
        words in vec((0..5_usize, 1..900_u64, 0..400_u64, 0..4_u8), 1..80),
    ) {
        let began = start();
        let (mut now, mut desk) = (began, FleetDesk::new(began));
        let mut last: BTreeMap<String, (Instant, EdgeState)> = BTreeMap::new();
        let mut told: Vec<(Instant, Vec<FleetEntry>)> = Vec::new();
        for (sequence, (edge, later, sessions, condition)) in (1..).zip(words) {
            let next = now + Duration::from_millis(later);
            told.extend(run(&mut desk, now, next));
            now = next;
            let condition = match condition {
                0 => EdgeCondition::LameDuck,
                1 => EdgeCondition::Drain { drain: 7 },
                2 => EdgeCondition::Leave,
                _ => EdgeCondition::Serve,
            };
            let name = format!("edge-{edge}");
            let word = EdgeState { sessions, condition, ..state(&name, sequence) };
            desk.handle_state(now, word.clone());
            last.insert(name, (now, word));
        }
        // Long enough for the last change to be told, too short for anybody to be forgotten.
        let end = now + PACE;
        told.extend(run(&mut desk, now, end));
        for pair in told.windows(2) {
            prop_assert!(pair[1].0 - pair[0].0 >= PACE);
            // Who left is forgotten without a word.
            let nobody = pair[0].1.iter().all(|edge| edge.state.condition == EdgeCondition::Leave);
            prop_assert!(nobody || pair[1].0 - pair[0].0 <= PACE * 4, "ages are kept true");
        }
        for (at, edges) in &told {
            prop_assert!(edges.iter().all(|edge| edge.age < EXPIRY));
            prop_assert!(*at <= end);
        }
        let Some((at, newest)) = told.last() else {
            prop_assert!(last.values().all(|(_, word)| word.condition == EdgeCondition::Leave));
            return Ok(());
        };
        for (name, (heard, word)) in &last {
            let shown = newest.iter().find(|edge| edge.state.node.as_str() == name);
            match shown {
                Some(shown) if heard < at => {
                    // All that was said before the list but for what does not matter.
                    prop_assert!(!word.differs_from(&shown.state));
                }
                Some(_) => {}
                None => prop_assert!(*heard + EXPIRY <= *at || heard >= at, "{name} is missing"),
            }
        }
    }
}
