//! A partition by hand: what goes over its link, and what the workers get.

use tidegate_protocol::frame::{ErrorCode, Payload, Publication};
use tidegate_protocol::link::{HistoryRange, Publish};

use super::*;

const A: Client = Client(0);
const B: Client = Client(1);

struct Bench {
    now: Instant,
    partition: Partition,
    outbox: Outbox,
}

impl Bench {
    fn new() -> Self {
        Self::with(Bounds {
            requests: 2000,
            request_bytes: 1 << 20,
            in_flight: 1000,
            resubscriptions: 3,
            request_wait: Duration::from_secs(5),
        })
    }

    fn with(bounds: Bounds) -> Self {
        let now = start();
        Self { now, partition: Partition::new(now, bounds), outbox: Outbox::new(2, 1 << 20) }
    }

    fn opened() -> Self {
        let mut bench = Self::new();
        bench.partition.handle_opened(bench.now);
        bench
    }

    fn send(&mut self, client: Client, frame: EdgeFrame) {
        self.partition.handle_client(self.now, client, frame, &mut self.outbox);
    }

    /// All that goes over the link now.
    fn sent(&mut self) -> Vec<EdgeFrame> {
        std::iter::from_fn(|| self.partition.poll_transmit(&self.outbox)).collect()
    }

    fn core(&mut self, frame: CoreFrame) -> Result<(), LinkFault> {
        self.partition.handle_core(self.now, frame, &mut self.outbox)
    }

    fn close(&mut self, handled: bool) {
        self.partition.handle_closed(self.now, handled, &mut self.outbox);
    }

    /// All that a worker gets now.
    fn got(&mut self, client: Client) -> Vec<CoreFrame> {
        std::iter::from_fn(|| self.outbox.pop(client)).collect()
    }

    fn subscribe(&mut self, client: Client, request: u64) {
        self.send(client, EdgeFrame::Subscribe { request, channel: name(1), position: None });
    }

    /// Both workers are on the channel, at this offset.
    fn joined(head: u64) -> Self {
        let mut bench = Self::opened();
        bench.subscribe(A, 7);
        bench.subscribe(B, 8);
        for frame in bench.sent() {
            bench.recovered(number(&frame), head, false, &[]).expect("fits");
        }
        assert_eq!((bench.got(A).len(), bench.got(B).len()), (1, 1));
        bench
    }

    fn recovered(
        &mut self,
        request: u64,
        head: u64,
        recovered: bool,
        publications: &[u64],
    ) -> Result<(), LinkFault> {
        let publications = publications.iter().map(|offset| publication(*offset)).collect();
        let result = Ok(Recovery { position: at(head), recovered, publications });
        self.core(CoreFrame::Recovered { request, result })
    }

    fn publication(&mut self, offset: u64) -> Result<(), LinkFault> {
        self.core(CoreFrame::Publication(delivery(&name(1), publication(offset))))
    }
}

fn name(n: usize) -> ChannelName {
    ChannelName::new(&format!("room:{n}")).expect("valid")
}

fn at(offset: u64) -> Position {
    Position::new(Epoch::new("e"), Offset(offset))
}

fn publication(offset: u64) -> Publication {
    Publication { channel: "room:1".to_owned(), offset, data: Some("1".into()), ..Publication::default() }
}

fn publish(request: u64, key: Option<&str>, ephemeral: bool) -> EdgeFrame {
    let (payload, key) = (Payload::Json("1".into()), key.map(str::to_owned));
    EdgeFrame::Publish { request, publish: Publish { channel: name(1), payload, key, user: None, ephemeral } }
}

fn number(frame: &EdgeFrame) -> u64 {
    request_of(frame).expect("a question")
}

fn offsets(frames: &[CoreFrame]) -> Vec<u64> {
    let offset = |frame: &CoreFrame| match frame {
        CoreFrame::Publication(delivery) => delivery.offset.0,
        frame => panic!("{frame:?}"),
    };
    frames.iter().map(offset).collect()
}

#[test]
fn each_worker_asks_for_itself_and_a_publication_comes_once() {
    let mut bench = Bench::opened();
    bench.subscribe(A, 7);
    bench.subscribe(B, 7);
    let questions = bench.sent();
    assert_eq!(questions.len(), 2);
    bench.recovered(number(&questions[0]), 3, false, &[]).expect("fits");
    assert!(matches!(bench.got(A)[..], [CoreFrame::Recovered { request: 7, .. }]));
    assert!(bench.got(B).is_empty(), "its own is not answered");
    bench.publication(4).expect("next");
    assert_eq!(offsets(&bench.got(A)), [4]);
    assert!(bench.got(B).is_empty(), "its answer will hold it");
    bench.recovered(number(&questions[1]), 4, false, &[]).expect("fits");
    assert!(matches!(bench.got(B)[..], [CoreFrame::Recovered { request: 7, .. }]));
    bench.publication(5).expect("next");
    assert_eq!((offsets(&bench.got(A)), offsets(&bench.got(B))), (vec![5], vec![5]));
}

#[test]
fn the_core_hears_of_the_last_who_leaves() {
    let mut bench = Bench::joined(0);
    bench.send(A, EdgeFrame::Unsubscribe { channel: name(1) });
    assert!(bench.sent().is_empty());
    // B leaves while it asks once more: the answer comes all the same, and brings nothing back.
    bench.subscribe(B, 9);
    let question = bench.sent();
    bench.send(B, EdgeFrame::Unsubscribe { channel: name(1) });
    assert!(bench.sent().is_empty(), "somebody asks");
    bench.recovered(number(&question[0]), 0, false, &[]).expect("fits");
    assert!(matches!(bench.got(B)[..], [CoreFrame::Recovered { request: 9, .. }]));
    assert!(matches!(&bench.sent()[..], [EdgeFrame::Unsubscribe { channel }] if *channel == name(1)));
    assert_eq!(bench.partition.channels(), 0);
    bench.publication(1).expect("for nobody");
    assert!(bench.got(A).is_empty() && bench.got(B).is_empty());
}

#[test]
fn what_comes_twice_is_dropped_and_what_is_missing_is_a_fault() {
    let mut bench = Bench::joined(3);
    bench.publication(3).expect("known");
    bench.publication(4).expect("next");
    bench.publication(4).expect("known");
    assert_eq!(offsets(&bench.got(A)), [4]);
    assert_eq!(bench.publication(6), Err(LinkFault::Hole));
    assert_eq!(bench.recovered(99, 4, true, &[]), Err(LinkFault::Answer));
    bench.subscribe(A, 9);
    let question = bench.sent();
    assert_eq!(bench.recovered(number(&question[0]), 9, false, &[]), Err(LinkFault::Elsewhere));
    // The fault loses nobody's question.
    bench.close(true);
    bench.partition.handle_opened(bench.now);
    assert_eq!(bench.sent().len(), 2, "the hub's own, and behind it A's");
}

#[test]
fn a_new_link_is_asked_for_what_came_meanwhile() {
    let mut bench = Bench::joined(3);
    bench.close(true);
    bench.partition.handle_opened(bench.now);
    let question = bench.sent();
    let [EdgeFrame::Subscribe { request, position, .. }] = &question[..] else { panic!("{question:?}") };
    assert_eq!(*position, Some(at(3)));
    bench.publication(7).expect("before the answer: in it");
    bench.recovered(*request, 7, true, &[4, 5, 6, 7]).expect("fits");
    bench.publication(8).expect("next");
    assert_eq!(offsets(&bench.got(A)), [4, 5, 6, 7, 8]);
    assert_eq!(offsets(&bench.got(B)), [4, 5, 6, 7, 8]);
    let stats = bench.partition.take_stats();
    assert_eq!((stats.resubscriptions, stats.filled, stats.rebased, stats.dropped), (1, 4, 0, 1));
}

#[test]
fn where_continuity_is_lost_everybody_is_told() {
    let mut bench = Bench::joined(3);
    bench.close(true);
    bench.partition.handle_opened(bench.now);
    let question = bench.sent();
    bench.recovered(number(&question[0]), 1, false, &[]).expect("fits");
    for client in [A, B] {
        assert!(
            matches!(&bench.got(client)[..], [CoreFrame::Rebased { position, .. }] if *position == at(1))
        );
    }
    bench.publication(2).expect("of the new numbering");
    assert_eq!(offsets(&bench.got(A)), [2]);
}

#[test]
fn many_channels_are_asked_for_a_few_at_a_time_and_questions_go_behind_their_own() {
    let mut bench = Bench::opened();
    for n in 0..100 {
        let channel = name(n);
        bench.send(A, EdgeFrame::Subscribe { request: 1, channel, position: None });
    }
    for question in bench.sent() {
        bench.recovered(number(&question), 0, false, &[]).expect("fits");
    }
    bench.close(true);
    bench.partition.handle_opened(bench.now);
    let first = bench.sent();
    assert_eq!(first.len(), 3, "the bound");
    // A worker's question about a channel whose turn is far away.
    bench.send(B, EdgeFrame::Subscribe { request: 5, channel: name(0), position: None });
    let next = bench.sent();
    let [
        EdgeFrame::Subscribe { channel: own, position: Some(_), .. },
        EdgeFrame::Subscribe { channel, position: None, .. },
    ] = &next[..]
    else {
        panic!("{next:?}")
    };
    assert_eq!((own, channel), (&name(0), &name(0)));
    let mut asked = 4;
    let mut open: VecDeque<u64> = first.iter().chain(&next).map(number).collect();
    while let Some(asked_as) = open.pop_front() {
        bench.recovered(asked_as, 0, true, &[]).expect("fits");
        let more = bench.sent();
        asked += more.len();
        assert!(more.len() <= 3);
        open.extend(more.iter().map(number));
    }
    assert_eq!(asked, 100);
}

#[test]
fn a_lost_link_leaves_the_outcome_of_some_publishes_unknown() {
    let mut bench = Bench::opened();
    bench.send(A, publish(1, None, false));
    bench.send(A, publish(2, Some("k"), false));
    bench.send(A, publish(3, None, true));
    bench.send(A, EdgeFrame::History { request: 4, channel: name(1), range: HistoryRange::default() });
    assert_eq!(bench.sent().len(), 4);
    bench.send(A, publish(5, None, false));
    bench.close(true);
    let answers = bench.got(A);
    let [
        CoreFrame::Published { request: 1, result: Err(unknown) },
        CoreFrame::Published { request: 3, result: Err(error) },
    ] = &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!((unknown.code, error.code), (ErrorCode::Unavailable, ErrorCode::Unavailable));
    assert!(unknown.message.contains("unknown"), "{unknown}");
    bench.partition.handle_opened(bench.now);
    let again = bench.sent();
    assert!(
        matches!(&again[..], [EdgeFrame::Publish { publish, .. }, EdgeFrame::History { .. }, EdgeFrame::Publish { .. }]
            if publish.key.as_deref() == Some("k")),
        "{again:?}"
    );
    assert_eq!(bench.partition.take_stats().resent, 1);
}

#[test]
fn an_owner_that_moved_has_not_handled_what_it_has_not_answered() {
    let mut bench = Bench::opened();
    bench.send(A, publish(1, None, false));
    bench.send(A, publish(2, None, true));
    assert_eq!(bench.sent().len(), 2);
    bench.close(false);
    assert!(bench.got(A).is_empty());
    bench.partition.handle_opened(bench.now);
    assert_eq!(bench.sent().len(), 2, "as before");
}

#[test]
fn without_an_owner_questions_wait_for_a_while() {
    let mut bench = Bench::new();
    bench.send(A, publish(1, None, false));
    bench.subscribe(A, 2);
    assert!(bench.sent().is_empty());
    assert_eq!(bench.partition.poll_timeout(), Some(bench.now + Duration::from_secs(5)));
    bench.now += Duration::from_secs(5);
    bench.partition.handle_timeout(bench.now, &mut bench.outbox);
    assert_eq!(bench.got(A).len(), 2);
    assert_eq!((bench.partition.poll_timeout(), bench.partition.channels()), (None, 0));
}

#[test]
fn beyond_the_bound_a_question_is_refused_at_once() {
    let bounds = Bounds {
        requests: 2,
        request_bytes: 600,
        in_flight: 10,
        resubscriptions: 1,
        request_wait: Duration::from_secs(5),
    };
    let mut bench = Bench::with(bounds);
    bench.partition.handle_opened(bench.now);
    for request in 1..=3 {
        bench.send(A, publish(request, None, false));
    }
    assert!(matches!(bench.got(A)[..], [CoreFrame::Published { request: 3, result: Err(_) }]));
    bench.send(B, publish(1, Some(&"k".repeat(600)), false));
    assert!(matches!(bench.got(B)[..], [CoreFrame::Published { request: 1, result: Err(_) }]));
    let questions = bench.sent();
    assert_eq!(questions.len(), 2);
    let request = number(&questions[0]);
    bench.core(CoreFrame::Published { request, result: Ok(None) }).expect("fits");
    bench.send(A, publish(4, None, false));
    assert_eq!(bench.sent().len(), 1, "there is room again");
}

#[test]
fn what_the_core_refuses_to_fill_is_asked_for_later() {
    let mut bench = Bench::joined(3);
    bench.close(true);
    bench.partition.handle_opened(bench.now);
    let question = bench.sent();
    let refused = || Err(unavailable());
    bench.core(CoreFrame::Recovered { request: number(&question[0]), result: refused() }).expect("fits");
    assert!(bench.sent().is_empty());
    // Who asks meanwhile makes it try at once; refused again, nobody can join.
    bench.subscribe(A, 9);
    let questions = bench.sent();
    assert_eq!(questions.len(), 2);
    bench.core(CoreFrame::Recovered { request: number(&questions[0]), result: refused() }).expect("fits");
    bench.recovered(number(&questions[1]), 5, false, &[]).expect("fits");
    assert!(matches!(&bench.got(A)[..], [CoreFrame::Recovered { request: 9, result: Err(_) }]));
    bench.publication(6).expect("the next question brings it");
    bench.now = bench.partition.poll_timeout().expect("it is tried again");
    bench.partition.handle_timeout(bench.now, &mut bench.outbox);
    let question = bench.sent();
    bench.recovered(number(&question[0]), 6, true, &[4, 5, 6]).expect("fits");
    assert_eq!(offsets(&bench.got(A)), [4, 5, 6]);
}

#[test]
fn what_a_parked_worker_missed_comes_as_fast_as_it_takes_it() {
    let mut bench = Bench::opened();
    bench.outbox = Outbox::new(2, 512);
    for n in [1, 2] {
        bench.send(A, EdgeFrame::Subscribe { request: 1, channel: name(n), position: None });
        let question = bench.sent();
        bench.recovered(number(&question[0]), 0, false, &[]).expect("fits");
    }
    bench.got(A);
    for offset in 1..=5 {
        bench.publication(offset).expect("next");
    }
    bench.core(CoreFrame::Publication(delivery(&name(2), publication(1)))).expect("next");
    assert_eq!(bench.partition.take_stats().parked, 2);
    assert!(bench.sent().is_empty(), "not while it is full");
    assert_eq!(offsets(&bench.got(A)), [1, 2, 3, 4]);
    let mut positions = Vec::new();
    for _ in 0..2 {
        assert_eq!(bench.outbox.take_drained(), [A]);
        bench.partition.handle_drained(A, &mut bench.outbox);
        let questions = bench.sent();
        positions.push(questions.len());
        for question in &questions {
            let EdgeFrame::Subscribe { request, channel, .. } = question else { panic!("{question:?}") };
            let missed: &[u64] = if *channel == name(1) { &[5] } else { &[1] };
            let head = missed[0];
            // A long history: more than it takes at once.
            let publications: Vec<_> = missed
                .iter()
                .map(|offset| Publication { data: Some(vec![b'1'; 600].into()), ..publication(*offset) })
                .collect();
            let recovery = Recovery { position: at(head), recovered: true, publications };
            bench.core(CoreFrame::Recovered { request: *request, result: Ok(recovery) }).expect("fits");
        }
        assert_eq!(bench.got(A).len(), 1, "the second is asked for again");
    }
    assert_eq!(positions, [2, 1]);
    bench.publication(6).expect("next");
    assert_eq!(offsets(&bench.got(A)), [6]);
}

#[test]
fn a_long_gap_is_filled_piece_by_piece_and_nobody_joins_in_between() {
    const C: Client = Client(2);
    let mut bench = Bench::joined(3);
    bench.outbox = Outbox::new(3, 1 << 20);
    bench.close(true);
    bench.partition.handle_opened(bench.now);
    let own = bench.sent();
    bench.subscribe(C, 9);
    let behind = bench.sent();
    bench.recovered(number(&own[0]), 8, true, &[4, 5]).expect("the first of it");
    bench.recovered(number(&behind[0]), 8, false, &[]).expect("fits");
    assert!(bench.got(C).is_empty(), "the others are not there yet");
    bench.publication(9).expect("the next answer holds it");
    let next = bench.sent();
    let [EdgeFrame::Subscribe { request, position, .. }, EdgeFrame::Subscribe { request: again, .. }] =
        &next[..]
    else {
        panic!("{next:?}")
    };
    assert_eq!(*position, Some(at(5)));
    bench.recovered(*request, 9, true, &[6, 7, 8, 9]).expect("the rest");
    bench.recovered(*again, 9, false, &[]).expect("fits");
    assert!(matches!(bench.got(C)[..], [CoreFrame::Recovered { request: 9, result: Ok(_) }]));
    bench.publication(10).expect("next");
    for client in [A, B] {
        assert_eq!(offsets(&bench.got(client)), [4, 5, 6, 7, 8, 9, 10]);
    }
    assert_eq!(offsets(&bench.got(C)), [10]);
}

#[test]
fn of_long_answers_few_are_under_way_and_of_short_ones_many() {
    let mut bench = Bench::with(Bounds {
        requests: 2000,
        request_bytes: 1 << 20,
        in_flight: 1000,
        resubscriptions: 500,
        request_wait: Duration::from_secs(5),
    });
    bench.outbox = Outbox::new(2, 1 << 30);
    bench.partition.handle_opened(bench.now);
    for n in 0..1000 {
        bench.send(A, EdgeFrame::Subscribe { request: 1, channel: name(n), position: None });
    }
    for question in bench.sent() {
        bench.recovered(number(&question), 0, false, &[]).expect("fits");
    }
    let mut asked = Vec::new();
    for long in [true, false] {
        bench.close(true);
        bench.partition.handle_opened(bench.now);
        let mut open: VecDeque<u64> = bench.sent().iter().map(number).collect();
        assert_eq!(open.len(), ANSWERS / FIRST_ANSWER, "before anything is known");
        let mut most = 0;
        for _ in 0..200 {
            let request = open.pop_front().expect("there is more");
            let head = u64::from(long);
            let missed = Publication { data: Some(vec![b'1'; 250 << 10].into()), ..publication(1) };
            let publications = if long { vec![missed] } else { Vec::new() };
            let result = Ok(Recovery { position: at(head), recovered: long, publications });
            bench.core(CoreFrame::Recovered { request, result }).expect("fits");
            open.extend(bench.sent().iter().map(number));
            most = open.len();
        }
        asked.push(most);
        bench.got(A);
    }
    assert!(asked[0] <= 2 * FEWEST && asked[1] == 500, "{asked:?}");
}

#[test]
fn channels_that_are_left_give_their_room_back() {
    let mut bench = Bench::with(Bounds {
        requests: 100_000,
        request_bytes: 1 << 30,
        in_flight: 100_000,
        resubscriptions: 3,
        request_wait: Duration::from_secs(5),
    });
    bench.outbox = Outbox::new(2, 1 << 30);
    bench.partition.handle_opened(bench.now);
    for n in 0..20_000 {
        bench.send(A, EdgeFrame::Subscribe { request: 1, channel: name(n), position: None });
    }
    for question in bench.sent() {
        bench.recovered(number(&question), 0, false, &[]).expect("fits");
    }
    for n in 1..20_000 {
        bench.send(A, EdgeFrame::Unsubscribe { channel: name(n) });
    }
    assert_eq!(bench.sent().len(), 19_999);
    assert_eq!(bench.partition.channels(), 1);
    assert!(
        bench.partition.interests.capacity() <= 2 * KEPT_CAPACITY,
        "{}",
        bench.partition.interests.capacity()
    );
}

#[test]
fn a_channel_is_small() {
    // With its name and its place in the map: a million channels in 128 MiB and their texts.
    assert!(size_of::<Interest>() <= 88, "{}", size_of::<Interest>());
}

#[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
fn start() -> Instant {
    Instant::now()
}
