//! Generated runs that are correct, and such runs with one fault planted, each of which must be found for what it is.

mod generated;

use std::collections::BTreeSet;

use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::{Offset, Position};

use super::*;
use generated::{Run, Step};

/// Plants a fault in many generated runs. `plant` says whether there was a place for it.
fn find(kinds: &[Kind], plant: impl Fn(&mut Run, &mut ChaCha8Rng) -> bool) {
    let mut planted = 0;
    for seed in 0..SEEDS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut run = Run::generate(&mut rng);
        if !plant(&mut run, &mut rng) {
            continue;
        }
        planted += 1;
        let report = run.report();
        let found: Vec<Kind> = report.by_kind.keys().copied().collect();
        assert_eq!(found, kinds, "seed {seed}: {report}");
        let told: BTreeSet<Kind> = report.violations.iter().map(|violation| violation.kind).collect();
        assert_eq!(Vec::from_iter(told), kinds, "the first of each is told");
    }
    assert!(planted > SEEDS / 4, "there is a place for it in {planted} of {SEEDS} runs");
}

/// A delivery of a view that goes on with others in the same span, by their indices.
fn neighbours(run: &Run, rng: &mut ChaCha8Rng) -> Option<(usize, usize)> {
    let (at, next) = run
        .deliveries()
        .filter_map(|(at, view, position)| {
            let next = run.steps[at + 1..].iter().position(|step| step.is_of(view))? + at + 1;
            match &run.steps[next] {
                Step::Delivered { position: after, .. } if after.epoch == position.epoch => Some((at, next)),
                _ => None,
            }
        })
        .choose(rng)?;
    Some((at, next))
}

#[test]
fn correct_runs_are_found_correct() {
    let mut all = Report::default();
    for seed in 0..SEEDS * 4 {
        let report = Run::generate(&mut ChaCha8Rng::seed_from_u64(seed)).report();
        assert!(report.is_clean(), "seed {seed}: {report}");
        all.acknowledged += report.acknowledged;
        all.acknowledged_in_past_epochs += report.acknowledged_in_past_epochs;
        all.refused += report.refused;
        all.unknown += report.unknown;
        all.unknown_stored += report.unknown_stored;
        all.deliveries += report.deliveries;
        all.recovered += report.recovered;
        all.rebased += report.rebased;
        all.epoch_changes += report.epoch_changes;
    }
    // The runs must have had what makes them hard to judge.
    assert!(all.acknowledged > 1_000 && all.refused > 100 && all.deliveries > 10_000, "{all}");
    assert!(all.unknown > all.unknown_stored && all.unknown_stored > 100, "{all}");
    assert!(all.recovered > 100 && all.rebased > 100 && all.epoch_changes > 20, "{all}");
    assert!(all.acknowledged_in_past_epochs > 100, "{all}");
}

#[test]
fn a_delivery_that_is_left_out() {
    find(&[Kind::SilentGap], |run, rng| {
        let Some((at, _)) = neighbours(run, rng) else { return false };
        run.steps.remove(at);
        true
    });
}

#[test]
fn a_gap_behind_a_reconnect_that_claims_there_is_none() {
    find(&[Kind::SilentGap], |run, rng| {
        let recovered = |(at, step): (usize, &Step)| match step {
            Step::Subscribed { view, begun: Begun::Recovered, .. } => Some((at, *view)),
            _ => None,
        };
        let all: Vec<(usize, usize)> = run.steps.iter().enumerate().filter_map(recovered).collect();
        let later = |(at, view): &(usize, usize)| {
            let of_view = run.steps[at + 1..].iter().enumerate().filter(|(_, step)| step.is_of(*view));
            let next: Vec<usize> = of_view.take(3).map(|(index, _)| at + 1 + index).collect();
            let goes_on = next.iter().all(|next| matches!(run.steps[*next], Step::Delivered { .. }));
            let had = run.steps[..*at].iter().rev().find(|step| step.is_of(*view));
            let had = matches!(had, Some(Step::Delivered { .. }));
            (next.len() == 3 && goes_on && had).then(|| [next[0], next[1]])
        };
        let places: Vec<[usize; 2]> = all.iter().filter_map(later).collect();
        let Some([first, second]) = places.choose(rng) else { return false };
        run.steps.remove(*second);
        run.steps.remove(*first);
        true
    });
}

#[test]
fn the_last_delivery_is_left_out() {
    find(&[Kind::AcknowledgedNotDelivered], |run, rng| {
        let lasts: Vec<usize> = (0..run.views)
            .filter(|view| !run.has_ended(*view))
            .filter_map(|view| {
                let at = run.steps.iter().rposition(|step| step.is_of(view))?;
                match &run.steps[at] {
                    Step::Delivered { payload, .. } if run.is_acknowledged(*payload) => Some(at),
                    _ => None,
                }
            })
            .collect();
        let Some(at) = lasts.choose(rng) else { return false };
        run.steps.remove(*at);
        true
    });
}

#[test]
fn a_delivery_that_comes_twice() {
    find(&[Kind::DeliveredTwice], |run, rng| {
        let Some((at, next)) = neighbours(run, rng) else { return false };
        let again = run.steps[at].clone();
        run.steps.insert(next + rng.random_range(0..2), again);
        true
    });
}

#[test]
fn two_deliveries_that_change_places() {
    find(&[Kind::Disordered], |run, rng| {
        let Some((at, next)) = neighbours(run, rng) else { return false };
        run.steps.swap(at, next);
        true
    });
}

#[test]
fn another_payload_at_a_position_that_had_one() {
    find(&[Kind::Rewound], |run, rng| {
        // Somebody else is to have seen what was there, or history holds it.
        let Some((at, ..)) =
            run.deliveries().filter(|(_, _, position)| run.witnesses(position) > 1).choose(rng)
        else {
            return false;
        };
        let other = run.invoke_first("late", &run.channel_of(at));
        // An attempt that is not answered stands before it.
        let Step::Delivered { payload, .. } = &mut run.steps[at + 1] else { unreachable!() };
        *payload = other;
        true
    });
}

#[test]
fn a_head_that_goes_back() {
    find(&[Kind::Rewound], |run, rng| {
        // Of a subscriber that leaves right after it: what it is owed is another matter.
        let Some((at, view, position)) = run.deliveries().choose(rng) else { return false };
        let lower = Position::new(position.epoch, Offset(position.offset.0 - 1));
        let rest = run.steps.split_off(at + 1);
        run.steps.extend(rest.into_iter().filter(|step| !step.is_of(view)));
        run.steps.push(Step::Subscribed { view, begun: Begun::Rebased, position: lower });
        run.steps.push(Step::Ended { view });
        true
    });
}

#[test]
fn a_history_that_ends_before_what_was_seen() {
    find(&[Kind::Rewound], |run, rng| {
        let Some(Step::Read { head, items, .. }) = run.reads(rng) else { return false };
        head.offset.0 -= 1;
        items.pop();
        true
    });
}

#[test]
fn an_acknowledged_publication_that_history_lacks() {
    find(&[Kind::NotKept], |run, rng| {
        let inside = rng.random_range(0.0..1.0);
        let acknowledged = run.acknowledged();
        let Some(Step::Read { items, .. }) = run.reads(rng) else { return false };
        let kept = items.len();
        let at = (kept as f64 * inside) as usize;
        if !acknowledged.contains(&items[at].1) {
            return false;
        }
        items.remove(at);
        true
    });
}

#[test]
fn a_new_epoch_that_is_not_told_of() {
    find(&[Kind::EpochUndeclared], |run, rng| {
        let Some(at) = run.changes().choose(rng) else { return false };
        run.steps.remove(at);
        true
    });
}

#[test]
fn a_new_epoch_that_is_said_to_continue_the_old_one() {
    find(&[Kind::EpochUndeclared], |run, rng| {
        let Some(at) = run.changes().choose(rng) else { return false };
        let Step::Subscribed { begun, .. } = &mut run.steps[at] else { unreachable!() };
        *begun = Begun::Recovered;
        true
    });
}

#[test]
fn a_publish_that_is_stored_twice_under_its_key() {
    find(&[Kind::StoredTwice], |run, rng| {
        let Some(Step::Read { channel, items, .. }) = run.reads(rng) else { return false };
        let (channel, payload) = (channel.clone(), items[rng.random_range(0..items.len())].1);
        run.append(&channel, payload);
        true
    });
}

#[test]
fn a_publication_that_nobody_published() {
    find(&[Kind::NeverPublished], |run, rng| {
        let Some(Step::Read { channel, .. }) = run.reads(rng) else { return false };
        let channel = channel.clone();
        run.append(&channel, 9_999_999);
        true
    });
}

#[test]
fn a_refused_publish_that_is_there() {
    find(&[Kind::RefusedButStored], |run, rng| {
        let answered = |(at, step): (usize, &Step)| match step {
            Step::Answer { attempt, outcome: Outcome::Acknowledged(_) } if run.is_alone(*attempt) => Some(at),
            _ => None,
        };
        let Some(at) = run.steps.iter().enumerate().filter_map(answered).choose(rng) else { return false };
        let Step::Answer { outcome, .. } = &mut run.steps[at] else { unreachable!() };
        *outcome = Outcome::Refused;
        true
    });
}

#[test]
fn a_later_publish_that_is_stored_before_an_earlier_one() {
    find(&[Kind::OutOfRealTime], |run, rng| {
        let pairs: Vec<(u64, u64)> = run.in_real_time();
        let Some((earlier, later)) = pairs.choose(rng).copied() else { return false };
        run.exchange(earlier, later);
        true
    });
}

#[test]
fn a_publish_that_is_acknowledged_in_an_epoch_that_everybody_has_left() {
    find(&[Kind::AcknowledgedNotDelivered], |run, rng| {
        let Some(at) = run.changes().choose(rng) else { return false };
        let Step::Subscribed { view, .. } = run.steps[at] else { unreachable!() };
        if run.has_ended(view) {
            return false;
        }
        let before = run.steps[..at].iter().rev().find_map(|step| match step {
            Step::Delivered { view: of, position, .. } if *of == view => Some(position.clone()),
            _ => None,
        });
        let Some(before) = before else { return false };
        let channel = run.channel_of(at);
        // Beyond what anybody saw there.
        let position = Position::new(before.epoch, Offset(1_000));
        run.invoke_last("stale", &channel, Outcome::Acknowledged(position));
        true
    });
}

#[test]
fn offsets_may_be_left_out_where_a_channel_is_conflated() {
    for seed in 0..SEEDS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut run = Run::generate(&mut rng);
        run.is_conflated = true;
        if let Some((at, _)) = neighbours(&run, &mut rng) {
            run.steps.remove(at);
        }
        let report = run.report();
        assert!(report.is_clean(), "seed {seed}: {report}");
    }
}

#[test]
fn what_history_need_not_keep_is_not_missed() {
    let mut history = History::new();
    let at = |offset: u64| Position::new(tidegate_protocol::Epoch::new("e"), Offset(offset));
    for offset in 1..=10 {
        let attempt = history.invoke(offset, "p", "room", true, offset);
        history.answer(offset, attempt, Outcome::Acknowledged(at(offset)));
    }
    history.read(20, "room", &at(10), false, (8..=10).map(|offset| (offset, offset)));
    assert!(history.report(&Bounds { kept: 3, ..Bounds::default() }).is_clean());
    let report = history.report(&Bounds { kept: 5, ..Bounds::default() });
    assert_eq!(report.by_kind.get(&Kind::NotKept), Some(&2), "{report}");
    assert!(
        report.to_string().contains("e:6 = 6 (by p at 0.000006 s, acknowledged as e:6 at 0.000006 s)"),
        "{report}"
    );
}

#[test]
fn a_publish_that_is_stored_in_two_epochs_where_keys_outlive_them() {
    let mut history = History::new();
    let at = |epoch: &str| Position::new(tidegate_protocol::Epoch::new(epoch), Offset(1));
    for (now, epoch) in [(1, "e"), (2, "f")] {
        let attempt = history.invoke(now, "p", "room", true, 7);
        history.answer(now, attempt, Outcome::Acknowledged(at(epoch)));
    }
    assert_eq!(Vec::from_iter(history.report(&Bounds::default()).by_kind), [(Kind::StoredTwice, 1)]);
    assert!(history.report(&Bounds { keys_outlive_epochs: false, ..Bounds::default() }).is_clean());
}

#[test]
fn payloads_bear_their_ids() {
    for id in [0, 1, 1 << 40, (1 << 53) - 1] {
        for size in [0, 20, 30, 31, 32, 33, 500] {
            let made = payload(id, size);
            assert_eq!(payload_id(&made), Some(id));
            assert!(made.len() == size || size < 40, "{} of {size}", made.len());
        }
    }
    assert_eq!(payload_id(&tidegate_client::Payload::Json("{\"n\":1}".into())), None);
}

const SEEDS: u64 = 60;
