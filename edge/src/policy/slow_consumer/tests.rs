//! The backlog against a model, and at each of its bounds.

use std::time::Duration;

use proptest::prelude::*;
use tidegate_transport::clock;

use super::*;

const BOUNDS: Bounds = Bounds { session: 132, subscription: 40 };

fn bytes(size: usize) -> Bytes {
    Bytes::from(vec![0; size])
}

fn drain(backlog: &mut Backlog) -> Vec<Lane> {
    let mut sent = Vec::new();
    let pumped = backlog.pump(true, None, |lane, _| {
        sent.push(lane);
        Ok::<_, ()>(Sent::Taken)
    });
    assert!(pumped.expect("no error").blocked.is_empty());
    assert_eq!(backlog.bytes(), 0);
    sent
}

#[test]
fn a_subscription_over_its_bound_is_parked_and_no_other() {
    let mut backlog = Backlog::default();
    assert_eq!(backlog.push_live(BOUNDS, (1, 0), Offset(5), bytes(10), false), Queued::Waits);
    assert_eq!(backlog.push_live(BOUNDS, (2, 0), Offset(9), bytes(30), false), Queued::Waits);
    assert_eq!(
        backlog.push_live(BOUNDS, (2, 0), Offset(10), bytes(30), false),
        Queued::Parked { last: Offset(8) }
    );
    assert_eq!(backlog.bytes(), 10);
    assert_eq!(drain(&mut backlog), [Lane::Subscription(1)]);
}

#[test]
fn one_publication_over_the_bound_parks_where_it_stands() {
    let mut backlog = Backlog::default();
    assert_eq!(
        backlog.push_live(BOUNDS, (1, 0), Offset(7), bytes(41), false),
        Queued::Parked { last: Offset(6) }
    );
    assert!(backlog.is_empty());
}

#[test]
fn conflated_channels_keep_the_newest() {
    let mut backlog = Backlog::default();
    for offset in 1..10 {
        let queued = if offset == 1 { Queued::Waits } else { Queued::Replaced };
        assert_eq!(backlog.push_live(BOUNDS, (1, 0), Offset(offset), bytes(30), true), queued);
        assert_eq!(backlog.bytes(), 30);
    }
    assert_eq!(drain(&mut backlog), [Lane::Subscription(1)]);
}

#[test]
fn control_frames_are_bounded_by_an_error() {
    let mut backlog = Backlog::default();
    assert_eq!(backlog.push_control(BOUNDS, bytes(70)), Ok(()));
    assert_eq!(backlog.push_control(BOUNDS, bytes(70)), Err(ControlOverflow));
    assert_eq!((backlog.bytes(), backlog.control_bytes()), (70, 70));
}

#[test]
fn publications_leave_room_for_control_frames() {
    let mut backlog = Backlog::default();
    for slot in 0..4 {
        backlog.push_live(BOUNDS, (slot, 0), Offset(1), bytes(33), slot == 3);
    }
    assert_eq!(backlog.bytes(), 99, "the fourth is parked, conflated or not");
    assert!(backlog.is_behind(2) && !backlog.is_behind(3));
    assert_eq!(backlog.push_ephemeral(BOUNDS, clock::now(), (3, 0), bytes(1)), EphemeralQueued::NoRoom);
    assert_eq!(backlog.push_control(BOUNDS, bytes(33)), Ok(()));
    assert_eq!(backlog.push_control(BOUNDS, bytes(1)), Err(ControlOverflow));
    assert_eq!(backlog.catch_up_budget(BOUNDS), 0);
}

#[test]
fn ephemeral_items_replace_each_other() {
    let mut backlog = Backlog::default();
    let now = clock::now();
    assert_eq!(backlog.push_ephemeral(BOUNDS, now, (3, 0), bytes(10)), EphemeralQueued::Waits);
    assert_eq!(backlog.push_ephemeral(BOUNDS, now, (3, 0), bytes(20)), EphemeralQueued::Replaced);
    assert_eq!(backlog.bytes(), 20);
    assert_eq!(drain(&mut backlog), [Lane::Subscription(3)]);
}

#[test]
fn lanes_take_turns_behind_control_and_catch_up_comes_first() {
    let mut backlog = Backlog::default();
    for offset in 1..=2 {
        for slot in 0..2 {
            backlog.push_live(BOUNDS, (slot, 0), Offset(offset), bytes(5), false);
        }
    }
    backlog.push_catch_up(1, 0, bytes(5));
    backlog.push_control(BOUNDS, bytes(5)).expect("within the bound");
    assert_eq!(
        drain(&mut backlog),
        [
            Lane::Control,
            Lane::Subscription(0),
            Lane::CatchUp(1),
            // What was missed counts four times.
            Lane::Subscription(0),
            Lane::Subscription(1),
            Lane::Subscription(1),
        ]
    );
    assert!(backlog.is_empty());
}

#[test]
fn a_control_frame_that_waits_goes_before_whatever_is_sent_after_it() {
    let mut backlog = Backlog::default();
    backlog.push_control(BOUNDS, Bytes::from_static(b"subscribed")).unwrap();
    assert!(backlog.holds_up(0, false) && backlog.holds_up(0, true));
    let pumped = backlog.pump(false, None, |_, _| Ok::<_, ()>(Sent::Taken)).unwrap();
    assert!(pumped.blocked.is_empty() && !backlog.holds_up(0, false));
}

#[test]
fn a_blocked_stream_does_not_hold_up_another() {
    let mut backlog = Backlog::default();
    for slot in 0..3 {
        backlog.push_live(BOUNDS, (slot, 0), Offset(1), bytes(5), false);
    }
    let pumped = backlog
        .pump(false, None, |lane, _| {
            Ok::<_, ()>(if lane == Lane::Subscription(1) { Sent::Full } else { Sent::Taken })
        })
        .expect("no error");
    assert_eq!(pumped.blocked, [Lane::Subscription(1)]);
    assert_eq!(backlog.bytes(), 5);
    assert!(backlog.holds_up(1, false) && !backlog.holds_up(0, false));
}

#[test]
fn higher_ranks_go_first_and_equal_ranks_share_by_bytes() {
    let bounds = Bounds { session: 1 << 20, subscription: 1 << 20 };
    let mut backlog = Backlog::default();
    // A flood of small items, one of large ones, and two more of other ranks.
    for offset in 1..=100 {
        backlog.push_live(bounds, (0, 0), Offset(offset), bytes(10), false);
        backlog.push_live(bounds, (1, 0), Offset(offset), bytes(100), false);
    }
    backlog.push_live(bounds, (2, -5), Offset(1), bytes(1), false);
    backlog.push_live(bounds, (3, 7), Offset(1), bytes(1), false);
    let sent = drain(&mut backlog);
    assert_eq!(sent.first(), Some(&Lane::Subscription(3)));
    assert_eq!(sent.last(), Some(&Lane::Subscription(2)));
    let small = sent[1..=110].iter().filter(|lane| **lane == Lane::Subscription(0)).count();
    assert_eq!(small, 100, "as many bytes of each: ten small items for a large one");
}

#[test]
fn an_ephemeral_item_that_waited_for_too_long_is_dropped() {
    let mut backlog = Backlog::default();
    let now = clock::now();
    backlog.push_ephemeral(BOUNDS, now, (1, 0), bytes(10));
    backlog.push_ephemeral(BOUNDS, now + Duration::from_secs(1), (2, 0), bytes(10));
    let mut sent = Vec::new();
    let oldest = now + Duration::from_millis(1);
    let pumped = backlog
        .pump(false, Some(oldest), |lane, _| {
            sent.push(lane);
            Ok::<_, ()>(Sent::Taken)
        })
        .expect("no error");
    assert_eq!((pumped.expired, sent), (1, vec![Lane::Subscription(2)]));
    assert!(backlog.is_empty());
    assert_eq!(backlog.bytes(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Live {
        slot: u32,
        size: usize,
        conflated: bool,
    },
    CatchUp {
        slot: u32,
        size: usize,
    },
    Ephemeral {
        slot: u32,
        size: usize,
    },
    Control {
        size: usize,
    },
    Drop {
        slot: u32,
    },
    Rank {
        slot: u32,
        rank: i8,
    },
    /// So many bytes are taken; on streams, nothing on the lanes of one subscription.
    Pump {
        room: usize,
        stuck: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slot = 0u32..6;
    let step = prop_oneof![
        6 => (slot.clone(), 1usize..300).prop_map(|(slot, size)| Step::Live { slot, size, conflated: slot == 5 }),
        2 => (slot.clone(), 1usize..300).prop_map(|(slot, size)| Step::CatchUp { slot, size }),
        1 => (slot.clone(), 1usize..100).prop_map(|(slot, size)| Step::Ephemeral { slot, size }),
        1 => (1usize..100).prop_map(|size| Step::Control { size }),
        1 => slot.clone().prop_map(|slot| Step::Drop { slot }),
        1 => (slot, -2i8..3).prop_map(|(slot, rank)| Step::Rank { slot, rank }),
        4 => (0usize..2_000, 0u32..12).prop_map(|(room, stuck)| Step::Pump { room, stuck }),
    ];
    prop::collection::vec(step, 0..120)
}

/// What waits of one subscription, by number of the item.
#[derive(Debug, Default)]
struct Waiting {
    live: VecDeque<u64>,
    catch_up: VecDeque<u64>,
    ephemeral: Option<u64>,
    rank: i8,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.live.is_empty() && self.catch_up.is_empty() && self.ephemeral.is_none()
    }
}

/// An item whose number can be read back.
fn numbered(number: u64, size: usize) -> Bytes {
    let mut item = vec![0; size + 8];
    item[..8].copy_from_slice(&number.to_be_bytes());
    item.into()
}

fn number(bytes: &Bytes) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn matches_model(steps: Vec<Step>, one_pipe: bool) -> Result<(), TestCaseError> {
    let bounds = Bounds { session: 6_000, subscription: 1_500 };
    let now = clock::now();
    let mut backlog = Backlog::default();
    let mut model: BTreeMap<u32, Waiting> = (0..6).map(|slot| (slot, Waiting::default())).collect();
    let mut control = VecDeque::new();
    let mut sizes = BTreeMap::new();
    for (index, step) in steps.into_iter().enumerate() {
        let next = index as u64 + 1;
        match step {
            Step::Live { slot, size, conflated } => {
                let lane = model.get_mut(&slot).expect("all are there");
                let item = numbered(next, size);
                sizes.insert(next, item.len());
                let dense = Offset(next);
                match backlog.push_live(bounds, (slot, lane.rank), dense, item, conflated) {
                    Queued::Waits if conflated => {
                        prop_assert!(lane.live.is_empty());
                        lane.live.push_back(next);
                    }
                    Queued::Waits => lane.live.push_back(next),
                    Queued::Replaced => {
                        prop_assert!(conflated);
                        lane.live = VecDeque::from([next]);
                    }
                    Queued::Parked { last } => {
                        // Of a conflated channel the older one is gone either way.
                        let first = if conflated { next } else { *lane.live.front().unwrap_or(&next) };
                        prop_assert_eq!(last, Offset(first - 1));
                        lane.live.clear();
                    }
                }
            }
            Step::CatchUp { slot, size } => {
                let item = numbered(next, size);
                if item.len() <= backlog.catch_up_budget(bounds) {
                    let lane = model.get_mut(&slot).expect("all are there");
                    sizes.insert(next, item.len());
                    backlog.push_catch_up(slot, lane.rank, item);
                    lane.catch_up.push_back(next);
                }
            }
            Step::Ephemeral { slot, size } => {
                let lane = model.get_mut(&slot).expect("all are there");
                let item = numbered(next, size);
                sizes.insert(next, item.len());
                let queued = backlog.push_ephemeral(bounds, now, (slot, lane.rank), item);
                prop_assert_eq!(
                    queued == EphemeralQueued::Replaced,
                    lane.ephemeral.is_some() && queued != EphemeralQueued::NoRoom
                );
                if queued != EphemeralQueued::NoRoom {
                    lane.ephemeral = Some(next);
                }
            }
            Step::Control { size } => {
                let item = numbered(next, size);
                sizes.insert(next, item.len());
                if backlog.push_control(bounds, item).is_ok() {
                    control.push_back(next);
                }
            }
            Step::Drop { slot } => {
                backlog.drop_lane(slot);
                model.insert(slot, Waiting::default());
            }
            Step::Rank { slot, rank } => {
                backlog.set_rank(slot, rank);
                model.get_mut(&slot).expect("all are there").rank = rank;
            }
            Step::Pump { room, stuck } => {
                let mut left = room;
                let blocked = |lane: Lane| {
                    !one_pipe
                        && matches!(lane, Lane::Subscription(slot) | Lane::CatchUp(slot) if slot == stuck)
                };
                let mut sent = Vec::new();
                let pumped = backlog
                    .pump(one_pipe, None, |lane, bytes| {
                        if bytes.len() > left || blocked(lane) {
                            return Ok::<_, ()>(Sent::Full);
                        }
                        left -= bytes.len();
                        sent.push((lane, number(bytes)));
                        Ok(Sent::Taken)
                    })
                    .expect("no error");
                let highest =
                    model.iter().filter(|(_, lane)| !lane.is_empty()).map(|(_, lane)| lane.rank).max();
                let first = sent.iter().find(|(lane, _)| *lane != Lane::Control);
                if let Some((Lane::Subscription(slot) | Lane::CatchUp(slot), _)) = first
                    && one_pipe
                {
                    prop_assert_eq!(Some(model[slot].rank), highest, "a higher rank waits");
                }
                for (lane, number) in sent {
                    match lane {
                        Lane::Control => prop_assert_eq!(control.pop_front(), Some(number)),
                        Lane::CatchUp(slot) => {
                            let lane = model.get_mut(&slot).expect("all are there");
                            prop_assert_eq!(lane.catch_up.pop_front(), Some(number));
                        }
                        Lane::Subscription(slot) => {
                            let lane = model.get_mut(&slot).expect("all are there");
                            prop_assert!(
                                !one_pipe || lane.catch_up.is_empty(),
                                "live before what was missed"
                            );
                            match lane.live.pop_front() {
                                Some(live) => prop_assert_eq!(live, number),
                                None => prop_assert_eq!(lane.ephemeral.take(), Some(number)),
                            }
                        }
                    }
                }
                let anything = !control.is_empty() || model.values().any(|lane| !lane.is_empty());
                prop_assert_eq!(!pumped.blocked.is_empty(), anything, "what waits is waited for");
            }
        }
        let waits: Vec<u64> = model
            .values()
            .flat_map(|lane| lane.live.iter().chain(&lane.catch_up).chain(&lane.ephemeral))
            .chain(&control)
            .copied()
            .collect();
        prop_assert_eq!(backlog.bytes(), waits.iter().map(|number| sizes[number]).sum::<usize>());
        prop_assert!(backlog.bytes() <= bounds.session);
        prop_assert_eq!(backlog.is_empty(), waits.is_empty());
    }
    Ok(())
}

proptest! {
    #[test]
    fn one_pipe_is_as_its_model(steps in steps()) {
        matches_model(steps, true)?;
    }

    #[test]
    fn streams_are_as_their_model(steps in steps()) {
        matches_model(steps, false)?;
    }

    /// Whatever the others pour in, and however little is taken at a time: over a while each subscription of a rank that
    /// always has something gets its share of the bytes, within one item and what late comers wait.
    #[test]
    fn no_subscription_of_an_equal_rank_starves(
        sizes in prop::collection::vec(1usize..4_000, 2..6),
        often in prop::collection::vec(any::<bool>(), 2..6),
        rounds in 200usize..400,
    ) {
        let bounds = Bounds { session: 1 << 24, subscription: 1 << 22 };
        let mut backlog = Backlog::default();
        let mut taken = vec![0usize; sizes.len()];
        for round in 0..rounds {
            for (slot, size) in (0u32..).zip(&sizes) {
                // Some come with one item at a time, and are drained by it.
                let refills = often.get(slot as usize).copied().unwrap_or(true);
                if refills || !backlog.is_behind(slot) {
                    backlog.push_live(bounds, (slot, 0), Offset(round as u64 + 1), bytes(*size), false);
                }
            }
            let mut once = true;
            backlog.pump(true, None, |lane, bytes| {
                let Lane::Subscription(slot) = lane else { panic!("live items alone") };
                if !std::mem::take(&mut once) {
                    return Ok::<_, ()>(Sent::Full);
                }
                taken[slot as usize] += bytes.len();
                Ok(Sent::Taken)
            }).expect("no error");
        }
        let (least, most) = (taken.iter().min().expect("some"), taken.iter().max().expect("some"));
        prop_assert!(most - least <= 2 * 4_000, "{taken:?}");
    }
}
