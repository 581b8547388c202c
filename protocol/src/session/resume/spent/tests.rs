//! The table by hand, and against a model.

use proptest::prelude::*;

use super::*;

const REMEMBER: Duration = Duration::from_secs(10);

fn session(n: u8) -> SessionId {
    SessionId::from_bytes([n; 16])
}

fn key(n: u8) -> Option<AttemptKey> {
    Some(AttemptKey([n; 16]))
}

fn spending(session_number: u8, generation: u32, key: Option<AttemptKey>) -> Spending {
    Spending { session: session(session_number), generation, key, early: false, remember: REMEMBER }
}

fn table(sessions: usize) -> SpentTable<char> {
    SpentTable::new(Bounds { sessions })
}

#[test]
fn a_chain_of_resumes_is_honoured_and_the_holder_before_is_told() {
    let mut table = table(9);
    assert_eq!(table.spend(0, &spending(1, 0, key(1)), 'a'), Spent { outcome: Outcome::First, told: None });
    let second = table.spend(1, &spending(1, 1, key(2)), 'b');
    assert_eq!(second, Spent { outcome: Outcome::First, told: Some((Told::Resumed, vec!['a'])) });
    // Back at the first, which is told of its own older connection too.
    let third = table.spend(2, &spending(1, 2, None), 'a');
    assert_eq!(third.told, Some((Told::Resumed, vec!['a', 'b'])));
    let fourth = table.spend(3, &spending(1, 3, key(4)), 'c');
    assert_eq!(fourth.told, Some((Told::Resumed, vec!['b', 'a'])));
}

#[test]
fn the_same_attempt_is_honoured_again_but_not_early_and_not_once_the_session_moved_on() {
    let mut table = table(9);
    table.spend(0, &spending(1, 0, key(1)), 'a');
    let early = Spending { early: true, ..spending(1, 0, key(1)) };
    assert_eq!(table.spend(1, &early, 'b'), Spent { outcome: Outcome::NotEarly, told: None });
    let repeated = table.spend(1, &spending(1, 0, key(1)), 'b');
    assert_eq!(repeated, Spent { outcome: Outcome::Repeated, told: Some((Told::Repeated, vec!['a'])) });
    assert_eq!(table.spend(2, &spending(1, 1, key(2)), 'c').outcome, Outcome::First);
    assert_eq!(table.spend(3, &spending(1, 0, key(1)), 'd'), Spent { outcome: Outcome::Stale, told: None });
    assert_eq!(table.spend(3, &early, 'd').outcome, Outcome::NotEarly);
    assert_eq!(table.spend(4, &spending(1, 2, key(3)), 'a').outcome, Outcome::First, "nobody was harmed");
}

#[test]
fn a_spent_ticket_with_another_key_or_none_revokes_the_session() {
    for other in [key(2), None] {
        for own in [key(1), None] {
            let mut table = table(9);
            table.spend(0, &spending(1, 0, own), 'a');
            let early = Spending { early: true, ..spending(1, 0, other) };
            assert_eq!(table.spend(1, &early, 'x').outcome, Outcome::NotEarly, "a replay revokes nothing");
            let theft = table.spend(1, &spending(1, 0, other), 'x');
            assert_eq!(theft, Spent { outcome: Outcome::Theft, told: Some((Told::Revoked, vec!['a'])) });
            for generation in 0..4 {
                let again = table.spend(2, &spending(1, generation, own), 'a');
                assert_eq!(again, Spent { outcome: Outcome::Revoked, told: None });
            }
        }
    }
}

#[test]
fn at_the_bound_further_sessions_are_refused_until_one_expires() {
    let mut table = table(2);
    table.spend(0, &spending(1, 0, key(1)), 'a');
    table.spend(5_000, &spending(2, 0, key(1)), 'a');
    assert_eq!(table.spend(9_999, &spending(3, 0, key(1)), 'a').outcome, Outcome::Full);
    assert_eq!(table.spend(9_999, &spending(2, 1, key(2)), 'a').outcome, Outcome::First, "known ones go on");
    assert_eq!(table.spend(10_000, &spending(3, 0, key(1)), 'a').outcome, Outcome::First);
    assert_eq!(table.len(), 2);
    table.expire(30_000, 10);
    assert!(table.is_empty() && table.by_age.is_empty());
}

#[derive(Debug, Clone)]
struct Step {
    wait_ms: u64,
    session: u8,
    generation: u32,
    key: Option<u8>,
    early: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0u64..4_000, 0u8..4, 0u32..4, prop::option::of(0u8..2), prop::bool::weighted(0.3));
    let step = step.prop_map(|(wait_ms, session, generation, key, early)| Step {
        wait_ms,
        session,
        generation,
        key,
        early,
    });
    prop::collection::vec(step, 0..60)
}

/// All that ever happened to a session, without bounds.
#[derive(Default, Clone)]
struct Model {
    honoured: Vec<(u32, Option<u8>)>,
    revoked: bool,
    until_ms: u64,
}

proptest! {
    #[test]
    fn agrees_with_a_model_that_forgets_nothing_too_early(steps in steps(), limit in 1usize..5) {
        let mut table = table(limit);
        let mut model: Vec<Option<Model>> = vec![None; 4];
        let mut now = 0;
        for step in steps {
            now += step.wait_ms;
            for slot in &mut model {
                if slot.as_ref().is_some_and(|known| known.until_ms <= now) {
                    *slot = None;
                }
            }
            table.expire(now, usize::MAX);
            let known = model.iter().flatten().count();
            let slot = &mut model[usize::from(step.session)];
            let expected = match slot {
                None if known >= limit => Outcome::Full,
                None => Outcome::First,
                Some(entry) if entry.revoked => Outcome::Revoked,
                Some(entry) => {
                    let newest = entry.honoured.iter().map(|(generation, _)| *generation).max().unwrap_or(0);
                    let same = step.key.is_some() && entry.honoured.contains(&(step.generation, step.key));
                    match (step.generation.cmp(&newest), step.early, same) {
                        (std::cmp::Ordering::Greater, ..) => Outcome::First,
                        (_, true, _) => Outcome::NotEarly,
                        (std::cmp::Ordering::Equal, false, true) => Outcome::Repeated,
                        (std::cmp::Ordering::Less, false, true) => Outcome::Stale,
                        (_, false, false) => Outcome::Theft,
                    }
                }
            };
            let spending = Spending {
                early: step.early,
                ..spending(step.session, step.generation, step.key.and_then(key))
            };
            let spent = table.spend(now, &spending, 'h');
            prop_assert_eq!(spent.outcome, expected);
            if expected != Outcome::Full {
                let entry = slot.get_or_insert_default();
                entry.until_ms = entry.until_ms.max(now + 10_000);
                match expected {
                    Outcome::First => entry.honoured.push((step.generation, step.key)),
                    Outcome::Theft => entry.revoked = true,
                    _ => {}
                }
            }
            prop_assert!(table.len() <= limit && table.by_age.len() == table.len());
            prop_assert_eq!(table.len(), model.iter().flatten().count());
        }
    }

    #[test]
    fn a_generation_is_honoured_for_one_key_alone(steps in steps()) {
        let mut table = table(usize::MAX);
        let mut honoured = std::collections::BTreeMap::new();
        for step in steps {
            let key = step.key.and_then(key);
            let spending = Spending { early: step.early, ..spending(step.session, step.generation, key) };
            if matches!(table.spend(0, &spending, 'h').outcome, Outcome::First | Outcome::Repeated) {
                let before = honoured.insert((step.session, step.generation), step.key);
                prop_assert!(before.is_none_or(|before| before.is_some() && before == step.key));
            }
        }
    }
}
