//! The table driven by hand, and against models.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use tidegate_protocol::Epoch;
use tidegate_protocol::frame::{Payload, Publication};
use tidegate_protocol::namespace::{HistoryBounds, Namespace};

use super::*;

const LINK: LinkId = LinkId(1);
const OTHER: LinkId = LinkId(2);

#[test]
fn offsets_are_dense_and_deliveries_follow_interest() {
    let mut core = Core::new();
    let head = core.subscribe(LINK, "room:1", None).position;
    assert_eq!(head.offset, Offset(0));
    core.subscribe(OTHER, "room:1", None);
    for n in 1..=3 {
        let position = core.publish("room:1", "x").expect("stored").expect("durable");
        assert_eq!(position, Position::new(head.epoch.clone(), Offset(n)));
    }
    core.send(OTHER, EdgeFrame::Unsubscribe { channel: name("room:1") });
    core.publish("room:1", "y").expect("stored");
    assert_eq!(core.delivered(LINK), vec![1, 2, 3, 4]);
    assert_eq!(core.delivered(OTHER), vec![1, 2, 3]);
    assert_eq!(core.table.interest(), 1);
}

#[test]
fn one_frame_is_shared_by_all_links() {
    let mut core = Core::new();
    for link in 1..=3 {
        core.subscribe(LinkId(link), "room:1", None);
    }
    core.publish("room:1", "x").expect("stored");
    let frames: Vec<_> = core
        .outputs
        .iter()
        .filter_map(|(_, frame)| match frame {
            CoreFrame::Publication(delivery) => Some(Arc::clone(&delivery.frame)),
            _ => None,
        })
        .collect();
    assert_eq!(frames.len(), 3);
    assert!(frames.iter().all(|frame| Arc::ptr_eq(frame, &frames[0])));
}

#[test]
fn the_answer_to_a_subscribe_comes_before_later_publications_of_the_same_batch() {
    let mut core = Core::new();
    core.feed(LinkId::NODE, publish_frame("room:1", "before", None));
    core.feed(LINK, subscribe_frame("room:1", Some(Position::default())));
    core.feed(LinkId::NODE, publish_frame("room:1", "after", None));
    core.flush();
    let seen: Vec<_> =
        core.outputs.iter().filter(|(link, _)| *link == LINK).map(|(_, frame)| frame).collect();
    let [CoreFrame::Recovered { result: Ok(recovery), .. }, CoreFrame::Publication(delivery)] = &seen[..]
    else {
        panic!("{seen:?}");
    };
    assert!(recovery.recovered);
    assert_eq!(recovery.position.offset, Offset(1));
    assert_eq!(offsets(&recovery.publications), vec![1]);
    assert_eq!(delivery.offset, Offset(2));
}

#[test]
fn a_gap_is_told_and_recovery_is_whole() {
    let mut core = Core::new();
    let epoch = core.subscribe(LINK, "room:1", None).position.epoch;
    for _ in 0..12 {
        core.publish("room:1", "x").expect("stored");
    }
    // `room` keeps 10.
    let at = |offset| Some(Position::new(epoch.clone(), Offset(offset)));
    let whole = core.subscribe(LINK, "room:1", at(2));
    assert!(whole.recovered);
    assert_eq!(offsets(&whole.publications), (3..=12).collect::<Vec<_>>());
    assert_eq!(whole.publications[0].channel, "room:1");
    for lost in [at(1), at(13), Some(Position::new(Epoch::new("other"), Offset(12)))] {
        let gap = core.subscribe(LINK, "room:1", lost);
        assert_eq!((gap.recovered, gap.position.offset, gap.publications.len()), (false, Offset(12), 0));
    }
    let stats = core.table.take_stats();
    assert_eq!((stats.recovered, stats.gaps, stats.durable), (1, 3, 12));
}

#[test]
fn much_that_was_missed_comes_in_several_answers() {
    const COUNT: u64 = 4_000;
    let mut core = Core::new();
    let epoch = core.subscribe(LINK, "long:1", None).position.epoch;
    for _ in 0..COUNT {
        core.publish("long:1", &"x".repeat(90)).expect("stored");
    }
    let (mut got, mut answers) = (Vec::new(), 0);
    let mut next = Some(Offset(0));
    while let Some(after) = next {
        let answer = core.subscribe(LINK, "long:1", Some(Position::new(epoch.clone(), after)));
        assert!(answer.recovered && answer.position.offset == Offset(COUNT));
        next = answer.cut_at();
        got.extend(offsets(&answer.publications));
        answers += 1;
    }
    assert!(got.into_iter().eq(1..=COUNT));
    assert_eq!(answers, 3, "of 256 KiB");
}

#[test]
fn history_gives_what_is_retained() {
    let mut core = Core::new();
    for _ in 0..12 {
        core.publish("room:1", "x").expect("stored");
    }
    let all = core.history("room:1", None, 0);
    assert_eq!((all.recovered, offsets(&all.publications)), (false, (3..=12).collect()));
    let newest = core.history("room:1", None, 2);
    assert_eq!((newest.recovered, offsets(&newest.publications)), (false, vec![11, 12]));
    let any = |offset| Some(Position::new(Epoch::default(), Offset(offset)));
    let since = core.history("room:1", any(9), 0);
    assert_eq!((since.recovered, offsets(&since.publications)), (true, vec![10, 11, 12]));
    let exact = core.history("room:1", any(9), 3);
    assert_eq!((exact.recovered, offsets(&exact.publications)), (true, vec![10, 11, 12]));
    let cut = core.history("room:1", any(9), 2);
    assert_eq!((cut.recovered, offsets(&cut.publications)), (false, vec![11, 12]));
    let dropped = core.history("room:1", any(0), 0);
    assert_eq!((dropped.recovered, dropped.publications.len()), (false, 10));
    let between = core.read("room:1", HistoryRange { since: any(7), before: Some(Offset(10)), limit: 0 });
    assert_eq!((between.recovered, offsets(&between.publications)), (true, vec![8, 9]));
    let one = core.read("room:1", HistoryRange { since: any(7), before: Some(Offset(10)), limit: 1 });
    assert_eq!((one.recovered, offsets(&one.publications)), (false, vec![9]));
    assert_eq!(core.table.interest(), 0);
}

#[test]
fn a_long_history_comes_in_several_answers_the_newest_first() {
    const COUNT: u64 = 4_000;
    let mut core = Core::new();
    for _ in 0..COUNT {
        core.publish("long:1", &"x".repeat(90)).expect("stored");
    }
    let since = Some(Position::new(Epoch::default(), Offset(0)));
    let (mut got, mut whole) = (Vec::new(), Vec::new());
    let mut before = None;
    while before != Some(Offset(1)) {
        let answer = core.read("long:1", HistoryRange { since: since.clone(), before, limit: 0 });
        let offsets = offsets(&answer.publications);
        before = offsets.first().copied().map(Offset);
        whole.push(answer.recovered);
        got.splice(0..0, offsets);
    }
    assert!(got.into_iter().eq(1..=COUNT));
    assert_eq!(
        whole,
        vec![false, false, true],
        "three of 256 KiB, of which the last one reaches the position"
    );
}

#[test]
fn conflated_channels_keep_the_newest() {
    let mut core = Core::new();
    let first = core.publish("price:1", "a").expect("stored").expect("durable");
    for _ in 0..5 {
        core.publish("price:1", "b").expect("stored");
    }
    let recovery = core.subscribe(LINK, "price:1", Some(first));
    assert_eq!((recovery.recovered, offsets(&recovery.publications)), (true, vec![6]));
    assert_eq!(core.table.history_bytes(), 3);
}

#[test]
fn ephemeral_items_are_passed_on_and_leave_nothing() {
    let mut core = Core::new();
    core.subscribe(LINK, "room:1", None);
    core.outputs.clear();
    let publish = Publish { ephemeral: true, ..publish_of("room:1", "typing", Some("key")) };
    assert_eq!(core.ask(LinkId::NODE, EdgeFrame::Publish { request: 1, publish: publish.clone() }), Ok(None));
    assert_eq!(core.appended, 0);
    assert!(matches!(&core.outputs[..], [(LINK, CoreFrame::Ephemeral(d))] if d.offset == Offset(0)));
    let elsewhere = Publish { channel: name("room:2"), ..publish };
    assert_eq!(core.ask(LinkId::NODE, EdgeFrame::Publish { request: 1, publish: elsewhere }), Ok(None));
    assert_eq!(core.table.channels(), 1);
    assert_eq!(core.table.take_stats().ephemeral, 2);
}

#[test]
fn rules_refuse() {
    let mut core = Core::new();
    let code = |core: &mut Core, channel, data: &str| core.publish(channel, data).expect_err("refused").code;
    assert_eq!(code(&mut core, "cursor:1", "x"), ErrorCode::Forbidden);
    assert_eq!(code(&mut core, "unknown:1", "x"), ErrorCode::NotFound);
    assert_eq!(code(&mut core, "room:1", &"x".repeat(1_000)), ErrorCode::TooLarge);
    core.send(LINK, subscribe_frame("unknown:1", None));
    let Some((_, CoreFrame::Recovered { result: Err(error), .. })) = core.outputs.pop() else { panic!() };
    assert_eq!(error.code, ErrorCode::NotFound);
    let ephemeral = Publish { ephemeral: true, ..publish_of("unknown:1", "x", None) };
    let refused = core.ask(LINK, EdgeFrame::Publish { request: 1, publish: ephemeral });
    assert_eq!(refused.expect_err("refused").code, ErrorCode::NotFound);
    assert_eq!((core.table.channels(), core.appended), (0, 0));
    for n in 0..LIMIT_CHANNELS {
        core.publish(&format!("room:{n}"), "x").expect("stored");
    }
    assert_eq!(code(&mut core, "room:more", "x"), ErrorCode::Unavailable);
    core.publish("room:0", "x").expect("a channel that is there");
}

#[test]
fn a_repeated_key_is_stored_once_also_within_a_batch() {
    let mut core = Core::new();
    core.subscribe(LINK, "room:1", None);
    for _ in 0..2 {
        core.feed(LinkId::NODE, publish_frame("room:1", "x", Some("k")));
    }
    core.flush();
    let first = core.positions(LinkId::NODE);
    assert_eq!(first.iter().map(|p| p.offset.0).collect::<Vec<_>>(), vec![1, 1]);
    core.publish("room:1", "y").expect("stored");
    core.unix_ms += KEY_AGE_MS - 1;
    let again = core.publish_with_key("room:1", "x", "k").expect("known");
    assert_eq!(again, Some(first[0].clone()));
    // Another channel has keys of its own.
    assert_eq!(core.publish_with_key("room:2", "x", "k").expect("new").map(|p| p.offset), Some(Offset(1)));
    core.unix_ms += 1;
    let later = core.publish_with_key("room:1", "x", "k").expect("forgotten");
    assert_eq!(later.map(|p| p.offset), Some(Offset(3)));
    assert_eq!(core.delivered(LINK), vec![1, 2, 3]);
    assert_eq!(core.table.take_stats().duplicates, 2);
}

#[test]
fn a_forgotten_channel_comes_back_with_another_epoch() {
    let mut core = Core::new();
    let before = core.publish_with_key("room:1", "x", "k").expect("stored").expect("durable");
    core.unix_ms += HISTORY_AGE_MS;
    core.table.sweep(core.unix_ms, 10);
    assert_eq!((core.table.channels(), core.table.history_bytes()), (1, 0));
    core.unix_ms += KEY_AGE_MS + FORGET_MS;
    core.table.sweep(core.unix_ms, 10);
    assert_eq!(core.table.channels(), 0);
    let told = core.subscribe(LINK, "room:1", Some(before.clone()));
    assert!(!told.recovered);
    assert_ne!(told.position.epoch, before.epoch);
    assert_eq!(told.position.offset, Offset(0));
    let after = core.publish("room:1", "y").expect("stored").expect("durable");
    assert_eq!(after, Position::new(told.position.epoch, Offset(1)));
}

#[test]
fn interest_keeps_a_channel_and_its_epoch() {
    let mut core = Core::new();
    let position = core.publish("room:1", "x").expect("stored").expect("durable");
    core.subscribe(LINK, "room:1", None);
    core.unix_ms += 100 * FORGET_MS;
    core.table.sweep(core.unix_ms, 10);
    let recovery = core.subscribe(LINK, "room:1", Some(position.clone()));
    assert!(recovery.recovered && recovery.publications.is_empty());
    // Without the link it goes, but not before it was idle for long enough.
    core.table.remove_link(LINK);
    assert!(core.table.is_purging());
    core.table.sweep(core.unix_ms, 10);
    assert!(!core.table.is_purging());
    assert_eq!((core.table.channels(), core.table.interest()), (1, 0));
    core.unix_ms += FORGET_MS;
    core.table.sweep(core.unix_ms, 10);
    assert_eq!(core.table.channels(), 0);
}

#[test]
fn interest_of_a_gone_link_ends_in_small_steps_while_others_keep_theirs() {
    let mut core = Core::new();
    for n in 0..30 {
        core.subscribe(LINK, &format!("room:{n}"), None);
        if n % 2 == 0 {
            core.subscribe(OTHER, &format!("room:{n}"), None);
        }
    }
    core.table.remove_link(LINK);
    core.table.sweep(core.unix_ms, 7);
    assert!(core.table.is_purging());
    // A second link goes before the first is done, and a channel comes.
    core.table.remove_link(LinkId(9));
    core.subscribe(OTHER, "room:new", None);
    let mut steps = 0;
    while core.table.is_purging() {
        core.table.sweep(core.unix_ms, 7);
        steps += 1;
    }
    assert_eq!(steps, 5);
    assert_eq!(core.table.interest(), 16);
}

#[test]
fn a_log_replayed_gives_the_same_channels() {
    let mut core = Core::new();
    for n in 0..15 {
        core.publish_with_key(&format!("room:{}", n % 2), "x", &format!("k{n}")).expect("stored");
    }
    let before = core.history("room:1", None, 0);
    let mut again = core.restart();
    assert_eq!(again.history("room:1", None, 0), before);
    assert_eq!(again.table.history_bytes(), core.table.history_bytes());
    let repeated = again.publish_with_key("room:1", "x", "k13").expect("known").expect("durable");
    assert_eq!(repeated, before.position);
    let next = again.publish("room:1", "y").expect("stored").expect("durable");
    assert_eq!(next, Position::new(before.position.epoch, before.position.offset.next()));
}

#[test]
fn a_log_without_its_beginning_gives_what_is_left() {
    let mut core = Core::new();
    for _ in 0..6 {
        core.publish("room:1", "x").expect("stored");
    }
    let head = core.history("room:1", None, 0).position;
    core.log.drain(..4);
    let mut again = core.restart();
    let left = again.history("room:1", None, 0);
    assert_eq!((left.position.clone(), offsets(&left.publications)), (head.clone(), vec![5, 6]));
    let at = |offset| Some(Position::new(head.epoch.clone(), Offset(offset)));
    assert!(again.subscribe(LINK, "room:1", at(4)).recovered);
    assert!(!again.subscribe(LINK, "room:1", at(3)).recovered);
}

#[test]
fn a_channel_forgotten_before_a_restart_never_repeats_an_epoch() {
    let mut core = Core::new();
    let first = core.publish("room:1", "x").expect("stored").expect("durable");
    core.forget_all();
    let second = core.publish("room:1", "y").expect("stored").expect("durable");
    // A wall clock that was set back makes the first life's history look fresh: it is of another epoch all the same.
    core.unix_ms = 1_000_000;
    let mut again = core.restart();
    let third = again.publish("room:1", "z").expect("stored").expect("durable");
    assert_ne!(first.epoch, second.epoch);
    assert_eq!(third, Position::new(second.epoch, Offset(2)));
    assert_eq!(again.history("room:1", None, 0).publications.len(), 2);
    assert_eq!(again.table.history_bytes(), 6);
}

#[test]
fn a_channel_without_publications_keeps_its_epoch_over_a_failover() {
    let mut core = Core::new();
    core.publish("room:1", "x").expect("stored");
    let idle = core.subscribe(LINK, "room:2", None).position;
    let mut again = core.restart();
    let told = again.subscribe(OTHER, "room:2", Some(idle.clone()));
    assert_eq!((told.recovered, &told.position), (true, &idle));
    // Also where the owner had forgotten one that published, which the next one has not.
    core.table.remove_link(LINK);
    core.table.sweep(core.unix_ms, usize::MAX);
    core.forget_all();
    let later = core.subscribe(LINK, "room:2", None).position;
    assert_ne!(later.epoch, idle.epoch);
    let mut again = core.restart();
    let told = again.subscribe(OTHER, "room:2", Some(later.clone()));
    assert_eq!((told.recovered, told.position), (true, later));
    // What published is not to be talked into another birth.
    let first = again.publish("room:2", "y").expect("stored").expect("durable");
    let told = again.subscribe(LINK, "room:2", Some(idle));
    assert_eq!((told.recovered, told.position), (false, first));
}

#[test]
fn a_snapshot_holds_what_the_log_lost() {
    let mut core = Core::new();
    let head = (0..40).map(|n| core.publish(&format!("room:{n}"), "x").expect("stored").expect("durable"));
    let heads: Vec<Position> = head.collect();
    core.snapshot(200);
    assert!(core.snapshot.as_ref().expect("written").pieces.len() > 5);
    core.truncate(40);
    let mut again = core.restart();
    assert_eq!(again.table.channels(), 40);
    for (n, head) in heads.into_iter().enumerate() {
        let told = again.subscribe(LINK, &format!("room:{n}"), Some(head.clone()));
        assert_eq!((told.recovered, told.position), (true, head));
    }
    // One that does not reach the rest of the log is none.
    let mut core = Core::new();
    let before = core.publish("room:1", "x").expect("stored").expect("durable");
    core.snapshot(200);
    core.publish("room:1", "y").expect("stored");
    core.truncate(2);
    let told = core.restart().subscribe(LINK, "room:1", Some(before.clone()));
    assert!(!told.recovered && told.position.epoch != before.epoch);
}

#[test]
fn frames_are_over_once_neither_history_nor_keys_hold_anything_of_them() {
    let mut core = Core::new();
    core.publish("room:1", "x").expect("stored");
    let frame = core.log[0].clone();
    let retained = HISTORY_AGE_MS.max(KEY_AGE_MS);
    assert!(!core.table.is_over(&frame, core.unix_ms + retained - 1).expect("read"));
    assert!(core.table.is_over(&frame, core.unix_ms + retained).expect("read"));
    assert!(core.table.is_over(&Bytes::from_static(&[1]), core.unix_ms).is_err());
}

#[test]
fn pieces_of_other_versions_are_refused() {
    let mut core = Core::new();
    assert!(matches!(core.table.restore_piece(&Bytes::new()), Err(LogFrameError::Version(None))));
    let later = Bytes::from_static(&[9, 1]);
    assert!(matches!(core.table.restore_piece(&later), Err(LogFrameError::Version(Some(9)))));
    let malformed = Bytes::from_static(&[1, 0xff]);
    assert!(matches!(core.table.restore_piece(&malformed), Err(LogFrameError::Protobuf(_))));
}

#[test]
fn a_failed_frame_answers_with_errors_and_delivers_nothing() {
    let mut core = Core::new();
    core.subscribe(LINK, "room:1", None);
    core.outputs.clear();
    core.feed(LinkId::NODE, publish_frame("room:1", "x", None));
    core.feed(LINK, subscribe_frame("room:1", None));
    assert!(core.table.take_log_frame().is_some());
    core.table.fail(&LinkError::outcome_unknown());
    core.table.drain_outputs(&mut core.outputs);
    let [
        (LinkId::NODE, CoreFrame::Published { result: Err(publish), .. }),
        (LINK, CoreFrame::Recovered { result: Err(subscribe), .. }),
    ] = &core.outputs[..]
    else {
        panic!("{:?}", core.outputs);
    };
    assert_eq!((publish.code, subscribe.code), (ErrorCode::Unavailable, ErrorCode::Unavailable));
}

#[test]
fn who_is_refused_a_subscription_with_a_failed_frame_is_not_interested() {
    let mut core = Core::new();
    core.subscribe(LINK, "room:1", None);
    core.feed(LinkId::NODE, publish_frame("room:1", "x", None));
    // What the link has it keeps, what it is refused it does not get.
    core.feed(LINK, subscribe_frame("room:1", None));
    core.feed(LINK, subscribe_frame("room:2", None));
    assert_eq!(core.table.interest(), 2);
    assert!(core.table.take_log_frame().is_some());
    core.table.fail(&LinkError::outcome_unknown());
    core.table.drain_outputs(&mut core.outputs);
    assert_eq!(core.table.interest(), 1);
    let interested: Vec<_> = core.table.interested().map(|(channel, ..)| channel.clone()).collect();
    assert_eq!(interested, [name("room:1")]);
}

#[derive(Debug, Clone)]
enum Step {
    Publish {
        channel: u8,
        key: Option<u8>,
    },
    Subscribe {
        link: u8,
        channel: u8,
    },
    Unsubscribe {
        link: u8,
        channel: u8,
    },
    Drop {
        link: u8,
    },
    Wait {
        ms: u64,
    },
    /// Goes on with the steps that follow.
    Snapshot,
    Truncate {
        frames: usize,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..3, prop::option::weighted(0.3, 0u8..3)).prop_map(|(channel, key)| Step::Publish { channel, key }),
        4 => (1u8..4, 0u8..3).prop_map(|(link, channel)| Step::Subscribe { link, channel }),
        1 => (1u8..4, 0u8..3).prop_map(|(link, channel)| Step::Unsubscribe { link, channel }),
        1 => (1u8..4).prop_map(|link| Step::Drop { link }),
        2 => (0u64..3_000).prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::Snapshot),
        1 => (1usize..20).prop_map(|frames| Step::Truncate { frames }),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// A subscriber that always resubscribes from its last position sees, per epoch, every payload that was published,
    /// once and in order, or is told of a gap; and no (epoch, offset) ever names two publications.
    #[test]
    fn subscribers_see_everything_once_or_are_told(steps in prop::collection::vec(step(), 1..120)) {
        let mut core = Core::new();
        let mut published: HashMap<(String, Position), String> = HashMap::new();
        let mut seen: BTreeMap<(LinkId, String), Position> = BTreeMap::new();
        // How many publications of any epoch there were in the channel, and when the subscriber had last heard of all.
        let mut stored: BTreeMap<String, u64> = BTreeMap::new();
        let mut known: BTreeMap<(LinkId, String), u64> = BTreeMap::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Publish { channel, key } => {
                    let (channel, data) = (format!("room:{channel}"), format!("{n}"));
                    let key = key.map(|key| key.to_string());
                    let duplicates = core.table.stats.duplicates;
                    let publish = publish_of(&channel, &data, key.as_deref());
                    let position = core.ask(LinkId::NODE, EdgeFrame::Publish { request: 1, publish });
                    let position = position.expect("stored").expect("durable");
                    if core.table.stats.duplicates == duplicates {
                        *stored.entry(channel.clone()).or_default() += 1;
                        prop_assert!(published.insert((channel, position), data).is_none(), "an offset was reused");
                    } else {
                        prop_assert!(published.contains_key(&(channel, position)));
                    }
                }
                Step::Subscribe { link, channel } => {
                    let (link, channel) = (LinkId(link.into()), format!("room:{channel}"));
                    let last = seen.get(&(link, channel.clone())).cloned();
                    let recovery = core.subscribe(link, &channel, last.clone());
                    if let Some(last) = last.filter(|_| recovery.recovered) {
                        prop_assert_eq!(&last.epoch, &recovery.position.epoch);
                        let expected: Vec<u64> = (last.offset.0 + 1..=recovery.position.offset.0).collect();
                        prop_assert_eq!(offsets(&recovery.publications), expected);
                        let missed = stored.get(&channel).copied().unwrap_or_default() - known[&(link, channel.clone())];
                        prop_assert_eq!(recovery.publications.len() as u64, missed, "missed in silence");
                        for publication in recovery.publications {
                            let position = Position::new(last.epoch.clone(), Offset(publication.offset));
                            let data = String::from_utf8(publication.data.expect("JSON").to_vec()).expect("UTF-8");
                            prop_assert_eq!(published.get(&(channel.clone(), position)), Some(&data));
                        }
                    }
                    known.insert((link, channel.clone()), stored.get(&channel).copied().unwrap_or_default());
                    seen.insert((link, channel), recovery.position);
                }
                Step::Unsubscribe { link, channel } => {
                    let channel = name(&format!("room:{channel}"));
                    core.send(LinkId(link.into()), EdgeFrame::Unsubscribe { channel });
                }
                Step::Drop { link } => core.table.remove_link(LinkId(link.into())),
                Step::Wait { ms } => core.unix_ms += ms,
                Step::Snapshot => core.begin_snapshot(),
                Step::Truncate { frames } => core.truncate(frames),
                Step::Restart => core = core.restart(),
            }
            // One channel at a time.
            core.write_piece(1);
            core.table.sweep(core.unix_ms, 2);
            while core.table.is_purging() {
                core.table.sweep(core.unix_ms, 1);
            }
            for (link, frame) in std::mem::take(&mut core.outputs) {
                let CoreFrame::Publication(delivery) = frame else { continue };
                let last = seen.get_mut(&(link, delivery.channel.to_string())).expect("subscribed");
                prop_assert_eq!(delivery.offset, last.offset.next());
                last.offset = delivery.offset;
                *known.get_mut(&(link, delivery.channel.to_string())).expect("subscribed") += 1;
                prop_assert!(published.contains_key(&(delivery.channel.to_string(), last.clone())));
            }
            let listed: usize = core.table.channels.values().map(|channel| channel.interest().len()).sum();
            let bytes: u64 = core.table.channels.values().map(|channel| channel.history().bytes()).sum();
            prop_assert_eq!((core.table.interest(), core.table.history_bytes()), (listed, bytes));
        }
    }
}

/// A table, its log, and what it sent.
struct Core {
    table: ChannelTable,
    /// Up to and with the frame at `appended`.
    log: Vec<Bytes>,
    appended: u64,
    snapshot: Option<Pieces>,
    /// One that is being written.
    begun: Option<(SnapshotCursor, Pieces)>,
    outputs: Vec<(LinkId, CoreFrame)>,
    unix_ms: u64,
}

#[derive(Clone)]
struct Pieces {
    at: u64,
    pieces: Vec<Bytes>,
}

impl Core {
    fn new() -> Self {
        Self {
            table: table(0),
            log: Vec::new(),
            appended: 0,
            snapshot: None,
            begun: None,
            outputs: Vec::new(),
            unix_ms: 1_000_000,
        }
    }

    /// Another owner: it has the log and the last whole snapshot.
    fn restart(&self) -> Self {
        let mut table = table(self.appended);
        let first = self.appended + 1 - self.log.len() as u64;
        table.begin_replay(first);
        for piece in
            self.snapshot.iter().filter(|whole| whole.at + 1 >= first).flat_map(|whole| &whole.pieces)
        {
            table.restore_piece(piece).expect("our own snapshot");
        }
        // Of what the snapshot reaches, only what may still be retained is read.
        let reached = self.snapshot.as_ref().map_or(0, |whole| (whole.at + 1).saturating_sub(first));
        let over = |frame| table.is_over(frame, self.unix_ms).expect("our own log");
        let reached = self.log.iter().take(usize::try_from(reached).expect("few"));
        let skipped = reached.take_while(|frame| over(frame)).count();
        for frame in &self.log[skipped..] {
            table.replay(frame, self.unix_ms).expect("our own log");
        }
        let (log, snapshot) = (self.log.clone(), self.snapshot.clone());
        Self { table, log, snapshot, begun: None, outputs: Vec::new(), ..*self }
    }

    fn begin_snapshot(&mut self) {
        let pieces = Pieces { at: self.appended, pieces: Vec::new() };
        self.begun = Some((self.table.begin_snapshot(), pieces));
    }

    fn write_piece(&mut self, max_bytes: usize) {
        let Some((cursor, whole)) = &mut self.begun else { return };
        match self.table.snapshot_piece(cursor, max_bytes) {
            Some(piece) => whole.pieces.push(piece),
            None => self.snapshot = self.begun.take().map(|(_, whole)| whole),
        }
    }

    fn snapshot(&mut self, max_bytes: usize) {
        self.begin_snapshot();
        while self.begun.is_some() {
            self.write_piece(max_bytes);
        }
        let whole = self.snapshot.as_ref().expect("written");
        assert!(whole.pieces.iter().all(|piece| piece.len() <= max_bytes + 10));
    }

    /// The oldest frames of the log go.
    fn truncate(&mut self, frames: usize) {
        self.log.drain(..frames.min(self.log.len()));
    }

    fn feed(&mut self, link: LinkId, frame: EdgeFrame) {
        self.table.handle_frame(self.unix_ms, link, frame);
    }

    fn flush(&mut self) {
        if let Some(frame) = self.table.take_log_frame() {
            self.log.push(frame);
            self.appended += 1;
            self.table.commit(self.appended);
        }
        self.table.drain_outputs(&mut self.outputs);
    }

    fn send(&mut self, link: LinkId, frame: EdgeFrame) {
        self.feed(link, frame);
        self.flush();
    }

    /// Publishes and takes the answer out of the outputs.
    fn ask(&mut self, link: LinkId, frame: EdgeFrame) -> Result<Option<Position>, LinkError> {
        self.send(link, frame);
        let index = self.outputs.iter().rposition(|(_, frame)| matches!(frame, CoreFrame::Published { .. }));
        match self.outputs.remove(index.expect("answered")) {
            (_, CoreFrame::Published { result, .. }) => result,
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, channel: &str, data: &str) -> Result<Option<Position>, LinkError> {
        self.ask(LinkId::NODE, publish_frame(channel, data, None))
    }

    fn publish_with_key(
        &mut self,
        channel: &str,
        data: &str,
        key: &str,
    ) -> Result<Option<Position>, LinkError> {
        self.ask(LinkId::NODE, publish_frame(channel, data, Some(key)))
    }

    fn subscribe(&mut self, link: LinkId, channel: &str, position: Option<Position>) -> Recovery {
        self.send(link, subscribe_frame(channel, position));
        match self.outputs.pop() {
            Some((to, CoreFrame::Recovered { result: Ok(recovery), .. })) if to == link => recovery,
            other => panic!("{other:?}"),
        }
    }

    fn history(&mut self, channel: &str, since: Option<Position>, limit: u32) -> Recovery {
        self.read(channel, HistoryRange { since, before: None, limit })
    }

    fn read(&mut self, channel: &str, range: HistoryRange) -> Recovery {
        self.send(LINK, EdgeFrame::History { request: 1, channel: name(channel), range });
        match self.outputs.pop() {
            Some((_, CoreFrame::Recovered { result: Ok(recovery), .. })) => recovery,
            other => panic!("{other:?}"),
        }
    }

    fn forget_all(&mut self) {
        self.unix_ms += HISTORY_AGE_MS.max(KEY_AGE_MS) + FORGET_MS;
        self.table.sweep(self.unix_ms, usize::MAX);
        assert_eq!(self.table.channels(), 0);
    }

    fn delivered(&self, to: LinkId) -> Vec<u64> {
        self.outputs
            .iter()
            .filter_map(|(link, frame)| match frame {
                CoreFrame::Publication(delivery) if *link == to => Some(delivery.offset.0),
                _ => None,
            })
            .collect()
    }

    fn positions(&self, to: LinkId) -> Vec<Position> {
        self.outputs
            .iter()
            .filter_map(|(link, frame)| match frame {
                CoreFrame::Published { result: Ok(Some(position)), .. } if *link == to => {
                    Some(position.clone())
                }
                _ => None,
            })
            .collect()
    }
}

fn table(tail: u64) -> ChannelTable {
    let limits = Limits {
        max_payload: 100,
        key_age: Duration::from_millis(KEY_AGE_MS),
        keys_per_channel: 100,
        forget_after: Duration::from_millis(FORGET_MS),
        max_channels: LIMIT_CHANNELS,
    };
    let room = Namespace {
        history: HistoryBounds { count: 10, bytes: 1_000, age: Duration::from_millis(HISTORY_AGE_MS) },
        ..Namespace::default()
    };
    let long = HistoryBounds { count: 10_000, bytes: 1 << 20, ..room.history };
    let named = BTreeMap::from([
        ("long".to_owned(), Namespace { history: long, ..room.clone() }),
        ("price".to_owned(), Namespace { conflate: true, ..room.clone() }),
        ("cursor".to_owned(), Namespace { ephemeral_only: true, ..room.clone() }),
        ("room".to_owned(), room.clone()),
    ]);
    ChannelTable::new(limits, Arc::new(Namespaces::new(room, named, true)), 0xe, tail)
}

fn name(channel: &str) -> ChannelName {
    ChannelName::new(channel).expect("valid")
}

fn publish_of(channel: &str, data: &str, key: Option<&str>) -> Publish {
    Publish {
        channel: name(channel),
        payload: Payload::Json(Bytes::from(if data.parse::<u64>().is_ok() {
            data.to_owned()
        } else {
            format!("\"{data}\"")
        })),
        key: key.map(str::to_owned),
        user: None,
        ephemeral: false,
    }
}

fn publish_frame(channel: &str, data: &str, key: Option<&str>) -> EdgeFrame {
    EdgeFrame::Publish { request: 1, publish: publish_of(channel, data, key) }
}

fn subscribe_frame(channel: &str, position: Option<Position>) -> EdgeFrame {
    EdgeFrame::Subscribe { request: 1, channel: name(channel), position }
}

fn offsets(publications: &[Publication]) -> Vec<u64> {
    publications.iter().map(|publication| publication.offset).collect()
}

const KEY_AGE_MS: u64 = 2_000;
const HISTORY_AGE_MS: u64 = 4_000;
const FORGET_MS: u64 = 5_000;
const LIMIT_CHANNELS: usize = 40;
