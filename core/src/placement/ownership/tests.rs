//! Whole clusters: the machines of many nodes over a model of the lease table, with delays, failures and pauses.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};

use super::*;
use crate::engine::PartitionId;

#[test]
fn clusters_converge_whatever_happens() {
    for seed in 0..60 {
        let mut world = World::new(seed, 16);
        for _ in 0..world.rng.random_range(2..6) {
            world.start_node();
        }
        for _ in 0..world.rng.random_range(3..14) {
            let quiet = world.rng.random_range(10..6_000);
            world.run(ms(quiet));
            world.disturb();
        }
        world.faults = false;
        world.heal();
        world.run(Duration::from_secs(300));
        world.assert_settled();
    }
}

#[test]
fn a_join_moves_what_the_newcomer_wins_and_nothing_else() {
    let mut world = settled(3);
    let before = world.owners();
    world.start_node();
    world.run(Duration::from_secs(60));
    world.assert_settled();
    let moved = before.iter().zip(world.owners()).filter(|(old, new)| *old != new).count();
    assert!(moved > 0);
    assert_eq!(world.claims, moved);
    assert_eq!((world.unprepared, world.most_handovers), (0, HANDOVERS));
}

#[test]
fn a_leave_hands_everything_over_in_order() {
    let mut world = settled(4);
    let owned = world.owners().iter().filter(|owner| **owner == Some(name(2))).count();
    world.drain(2);
    world.run(Duration::from_secs(60));
    world.assert_settled();
    assert!(owned > 0 && world.nodes[2].gone);
    // Nobody tried to give anything back to the node that was leaving.
    assert_eq!((world.claims, world.unprepared), (owned, 0));
}

#[test]
fn a_crash_moves_what_the_node_had_as_soon_as_its_lease_ends() {
    let mut world = settled(4);
    let owned = world.owners().iter().filter(|owner| **owner == Some(name(1))).count();
    world.crash(1);
    world.run(LEASE + Duration::from_secs(1));
    world.assert_settled();
    assert_eq!(world.claims, owned);
}

#[test]
fn the_last_node_leaves_without_anybody_to_hand_over_to() {
    let mut world = settled(1);
    world.drain(0);
    world.run(Duration::from_secs(5));
    assert!(world.nodes[0].gone);
    assert!(world.table.partitions.iter().all(|record| record.owner.is_none()));
}

#[test]
fn who_is_in_a_hurry_lets_go_of_everything() {
    let mut world = settled(3);
    let now = world.now;
    world.act(0, |machine| machine.handle_hurry(now));
    world.run(Duration::from_secs(10));
    assert!(world.nodes[0].gone);
    world.assert_settled();
}

#[test]
fn a_node_that_cannot_renew_stops_before_its_lease_ends_and_comes_back() {
    let start = now();
    let mut machine = machine(start);
    assert_eq!(actions(&mut machine), [Action::Join]);
    let until = start + LEASE - MARGIN;
    machine.handle_outcome(start + ms(40), Outcome::Renewed(start));
    for event in [node(0), ClusterEvent::Synced] {
        machine.handle_event(start + ms(50), event);
    }
    assert_eq!(actions(&mut machine).len(), 16);
    machine.handle_outcome(start + ms(60), Outcome::Claimed(3, 1));
    // Renewals have no outcome.
    let mut time = start;
    while let Some(at) = machine.poll_timeout().filter(|at| *at < until) {
        time = at;
        machine.handle_timeout(at);
        for action in actions(&mut machine) {
            assert_eq!(action, Action::Renew);
            machine.handle_outcome(at, Outcome::NotRenewed);
        }
    }
    assert!(time >= start + LEASE / 3 && machine.alive_until() == Some(until));
    machine.handle_timeout(until);
    assert_eq!(actions(&mut machine), [Action::FenceAll]);
    assert_eq!((machine.alive_until(), machine.is_settled()), (None, false));
    machine.handle_timeout(until);
    assert_eq!(actions(&mut machine), [Action::Join]);
    machine.handle_outcome(until, Outcome::Renewed(until));
    assert_eq!(actions(&mut machine).len(), 16, "everything is claimed again");
}

#[test]
fn a_higher_term_stops_the_owner_at_once() {
    let start = now();
    let mut machine = owner_of_all(start);
    let record = PartitionRecord { owner: Some(name(9)), term: 2, ..PartitionRecord::default() };
    machine.handle_event(start, node(9));
    actions(&mut machine);
    machine.handle_event(start, ClusterEvent::Partition { partition: PartitionId(4), record });
    assert_eq!(actions(&mut machine), [Action::Stop(4)]);
}

#[test]
fn nothing_is_decided_while_the_watch_is_broken() {
    let start = now();
    let mut machine = owner_of_all(start);
    machine.handle_watch_broken();
    machine.handle_event(start, node(0));
    machine.handle_event(start, node(9));
    machine.handle_event(start, ClusterEvent::Node { id: name(9), record: None });
    assert_eq!(actions(&mut machine), []);
    machine.handle_event(start, node(9));
    machine.handle_event(start, ClusterEvent::Synced);
    let proposals = actions(&mut machine);
    assert_eq!(proposals.len(), HANDOVERS, "{proposals:?}");
    assert!(
        proposals.iter().all(|action| matches!(action, Action::Propose(_, Some(next)) if *next == name(9)))
    );
}

#[test]
fn proposals_to_a_node_that_died_are_taken_back() {
    let start = now();
    let mut machine = owner_of_all(start);
    machine.handle_event(start, node(9));
    let Some(Action::Propose(partition, next)) = machine.poll_action() else { panic!("nothing proposed") };
    machine.handle_outcome(start, Outcome::Proposed(partition, true));
    let record = PartitionRecord { owner: Some(name(0)), next, term: 1, ..PartitionRecord::default() };
    machine.handle_event(start, ClusterEvent::Partition { partition: PartitionId(partition), record });
    actions(&mut machine);
    machine.handle_event(start, ClusterEvent::Node { id: name(9), record: None });
    machine.handle_timeout(start + SETTLE);
    assert!(actions(&mut machine).contains(&Action::Propose(partition, None)));
}

#[test]
fn a_hand_over_that_comes_to_nothing_makes_room_for_another() {
    let start = now();
    let mut machine = owner_of_all(start);
    machine.handle_event(start, node(9));
    let mut proposed = BTreeSet::new();
    for action in actions(&mut machine) {
        let Action::Propose(partition, next) = action else { panic!("{action:?}") };
        proposed.insert(partition);
        machine.handle_outcome(start, Outcome::Proposed(partition, true));
        let record = PartitionRecord { owner: Some(name(0)), next, term: 1, ..PartitionRecord::default() };
        machine.handle_event(start, ClusterEvent::Partition { partition: PartitionId(partition), record });
    }
    assert_eq!((proposed.len(), actions(&mut machine)), (HANDOVERS, Vec::new()));
    // Somebody takes one of them, as if this node were gone.
    let taken = *proposed.first().expect("some");
    let record = PartitionRecord { owner: Some(name(9)), term: 2, ..PartitionRecord::default() };
    machine.handle_event(start, ClusterEvent::Partition { partition: PartitionId(taken), record });
    let actions = actions(&mut machine);
    assert_eq!(actions[0], Action::Stop(taken));
    assert!(
        matches!(&actions[1..], [Action::Propose(partition, Some(_))] if !proposed.contains(partition)),
        "{actions:?}"
    );
}

#[test]
fn claims_that_fail_are_tried_again_more_and_more_rarely() {
    let start = now();
    let mut machine = machine(start);
    machine.handle_outcome(start, Outcome::Renewed(start));
    machine.handle_event(start, node(0));
    machine.handle_event(start, ClusterEvent::Synced);
    let (mut time, mut tries) = (start, 0);
    while time < start + Duration::from_secs(120) {
        for action in actions(&mut machine) {
            match action {
                Action::Claim(7) => {
                    tries += 1;
                    machine.handle_outcome(time, Outcome::Failed(7));
                }
                Action::Renew => machine.handle_outcome(time, Outcome::Renewed(time)),
                _ => {}
            }
        }
        time = machine.poll_timeout().expect("renewals").max(time + ms(1));
        machine.handle_timeout(time);
    }
    assert!((14..40).contains(&tries), "{tries}");
    assert!(!machine.is_settled());
}

#[test]
fn who_fails_again_and_again_steps_back_where_somebody_else_is_willing() {
    let start = now();
    let mut machine = machine(start);
    machine.handle_outcome(start, Outcome::Renewed(start));
    for event in [node(0), node(1), ClusterEvent::Synced] {
        machine.handle_event(start, event);
    }
    let partition = (0..16).find(|p| winner(&[name(0), name(1)], *p) == Some(&name(0))).expect("wins some");
    let mut time = start;
    let mut failed = Vec::new();
    while machine.declines().is_empty() {
        for action in actions(&mut machine) {
            match action {
                Action::Claim(claimed) if claimed == partition => {
                    failed.push(time);
                    machine.handle_outcome(time, Outcome::Failed(claimed));
                }
                Action::Renew => machine.handle_outcome(time, Outcome::Renewed(time)),
                _ => {}
            }
        }
        if machine.declines().is_empty() {
            time = machine.poll_timeout().expect("renewals").max(time);
            machine.handle_timeout(time);
        }
    }
    assert!(failed.len() >= 3 && time >= start + ENOUGH_TIME && time < start + ENOUGH_TIME * 3, "{failed:?}");
    assert_eq!(machine.declines(), [partition]);
    assert!(!machine.is_willing(&name(0), partition) && machine.is_willing(&name(1), partition));
    // The others are told at once, and until they act nothing is claimed.
    machine.handle_timeout(time);
    assert_eq!(actions(&mut machine), [Action::Renew]);
    machine.handle_outcome(time, Outcome::Renewed(time));

    // Everybody else is gone: better tried on than left.
    machine.handle_event(time, ClusterEvent::Node { id: name(1), record: None });
    let claims = actions(&mut machine);
    assert!(claims.contains(&Action::Claim(partition)), "{claims:?}");
    machine.handle_outcome(time, Outcome::Claimed(partition, 2));
    machine.handle_outcome(time, Outcome::Serving(partition));
    assert_eq!(machine.declines(), [0; 0]);
    machine.handle_timeout(time);
    assert!(actions(&mut machine).contains(&Action::Renew));
}

#[test]
fn what_a_live_winner_cannot_take_is_served_by_another_and_does_not_flap() {
    for seed in 0..20 {
        let mut world = World::new(seed, 16);
        world.faults = false;
        for _ in 0..3 {
            world.start_node();
        }
        world.run(Duration::from_secs(60));
        world.assert_settled();
        let winner = world.owners()[5].clone().expect("owned");
        let cursed = (0..3).find(|index| name(*index) == winner).expect("one of them");
        let second = (0..3).find(|index| *index != cursed).expect("another");
        // It cannot have the partition any more, and loses it.
        world.cursed.insert((cursed, 5));
        world.nodes[cursed].holds.remove(&5);
        world.claims = 0;
        let now = world.now;
        world.act(cursed, |machine| machine.handle_outcome(now, Outcome::Ended(5)));
        world.run(Duration::from_secs(45));
        let owner = world.owners()[5].clone().expect("owned");
        assert_ne!(owner, winner, "SEED={seed}");
        let holder = world.nodes.iter().find(|node| node.holds.contains_key(&5)).expect("served");
        assert_eq!(holder.machine.me, owner, "SEED={seed}");
        // Nothing else has moved.
        assert_eq!(world.changed.iter().filter(|at| **at > world.now - Duration::from_secs(45)).count(), 1);

        // It is offered again, more and more rarely, and each time taken back at once.
        let before = world.claims;
        let mut unserved = Duration::ZERO;
        for _ in 0..3600 {
            world.run(Duration::from_secs(1));
            if !world.nodes.iter().any(|node| node.holds.contains_key(&5)) {
                unserved += Duration::from_secs(1);
            }
        }
        let flaps = world.claims - before;
        assert!((2..=16).contains(&flaps), "SEED={seed}: {flaps} claims in an hour");
        assert!(unserved < Duration::from_secs(8), "SEED={seed}: {unserved:?}");

        // Somebody else may die meanwhile, and once the cause is gone, the winner has it again.
        world.crash(second);
        world.run(LEASE + Duration::from_secs(20));
        assert!(world.nodes.iter().any(|node| !node.crashed && node.holds.contains_key(&5)), "SEED={seed}");
        world.cursed.clear();
        world.run(LONGEST_STEP_BACK + Duration::from_secs(60));
        world.assert_settled();
    }
}

fn machine(now: Instant) -> Ownership {
    let mut machine = Ownership::new(name(0), 16, BOUNDS, ChaCha8Rng::seed_from_u64(1), None, now);
    machine.handle_timeout(now);
    machine
}

/// Alone, with everything claimed in term 1.
fn owner_of_all(now: Instant) -> Ownership {
    let mut machine = machine(now);
    machine.handle_outcome(now, Outcome::Renewed(now));
    machine.handle_event(now, node(0));
    machine.handle_event(now, ClusterEvent::Synced);
    for action in actions(&mut machine) {
        if let Action::Claim(partition) = action {
            machine.handle_outcome(now, Outcome::Claimed(partition, 1));
            let record = PartitionRecord { owner: Some(name(0)), term: 1, ..PartitionRecord::default() };
            machine.handle_event(now, ClusterEvent::Partition { partition: PartitionId(partition), record });
            machine.handle_outcome(now, Outcome::Serving(partition));
        }
    }
    assert!(machine.is_settled());
    machine
}

fn actions(machine: &mut Ownership) -> Vec<Action> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

fn settled(nodes: usize) -> World {
    let mut world = World::new(nodes as u64, 16);
    world.faults = false;
    for _ in 0..nodes {
        world.start_node();
    }
    world.run(Duration::from_secs(120));
    world.assert_settled();
    world.claims = 0;
    world.unprepared = 0;
    world
}

/// The lease table, as an engine keeps it.
#[derive(Debug, Default)]
struct Table {
    nodes: BTreeMap<NodeId, (NodeRecord, Instant, u64)>,
    partitions: Vec<PartitionRecord>,
    joins: u64,
}

#[derive(Debug)]
struct Node {
    machine: Ownership,
    membership: u64,
    /// What its driver holds, in which term.
    holds: BTreeMap<u16, u64>,
    prepared: BTreeMap<u16, u64>,
    paused_until: Option<Instant>,
    crashed: bool,
    gone: bool,
    /// News comes in order.
    news_at: Instant,
}

#[derive(Debug)]
enum Item {
    /// An action arrives at the table.
    Act(Action, u64),
    /// Its outcome comes back.
    Back(Outcome, u64),
    News(ClusterEvent),
    Broken,
}

struct World {
    seed: u64,
    rng: ChaCha8Rng,
    now: Instant,
    table: Table,
    nodes: Vec<Node>,
    queue: BTreeMap<(Instant, u64), (usize, Item)>,
    sequence: u64,
    faults: bool,
    /// Nodes that fail each claim of these partitions.
    cursed: BTreeSet<(usize, u16)>,
    claims: usize,
    /// Claims of a released partition by a node that had not read its log.
    unprepared: usize,
    most_handovers: usize,
    /// When each partition's term last changed.
    changed: Vec<Instant>,
}

impl World {
    fn new(seed: u64, partitions: u16) -> Self {
        let now = now();
        let table = Table {
            partitions: vec![PartitionRecord::default(); usize::from(partitions)],
            ..Table::default()
        };
        Self {
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            now,
            table,
            nodes: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            faults: true,
            cursed: BTreeSet::new(),
            claims: 0,
            unprepared: 0,
            most_handovers: 0,
            changed: vec![now; usize::from(partitions)],
        }
    }

    fn start_node(&mut self) {
        let index = self.nodes.len();
        let rng = ChaCha8Rng::seed_from_u64(self.rng.next_u64());
        let partitions = self.table.partitions.len() as u16;
        let machine = Ownership::new(name(index), partitions, BOUNDS, rng, None, self.now);
        self.nodes.push(Node {
            machine,
            membership: 0,
            holds: BTreeMap::new(),
            prepared: BTreeMap::new(),
            paused_until: None,
            crashed: false,
            gone: false,
            news_at: self.now,
        });
        self.watch(index);
        self.act(index, |_| {});
    }

    fn disturb(&mut self) {
        let index = self.rng.random_range(0..self.nodes.len());
        let alive = self.nodes.iter().filter(|node| !node.crashed && !node.gone).count();
        match self.rng.random_range(0..6) {
            0 | 1 if alive < 8 => self.start_node(),
            2 if alive > 1 => self.crash(index),
            3 if alive > 1 => self.drain(index),
            4 => {
                let pause = Duration::from_millis(self.rng.random_range(100..8_000));
                self.nodes[index].paused_until = Some(self.now + pause);
            }
            _ => {
                // What was on its way is lost with the watch.
                self.queue.retain(|_, (to, item)| *to != index || !matches!(item, Item::News(_)));
                self.send(index, ms(0), Item::Broken);
            }
        }
    }

    fn heal(&mut self) {
        if self.nodes.iter().all(|node| node.crashed || node.gone || node.machine.stay != Stay::On) {
            self.start_node();
        }
    }

    fn crash(&mut self, index: usize) {
        self.nodes[index].crashed = true;
        self.nodes[index].holds.clear();
    }

    fn drain(&mut self, index: usize) {
        let now = self.now;
        if self.nodes[index].paused_until.is_none() {
            self.act(index, |machine| machine.handle_drain(now));
        }
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timers = self.nodes.iter().enumerate().filter_map(|(index, node)| {
                if node.crashed || node.gone {
                    return None;
                }
                let at = node.machine.poll_timeout()?;
                Some((node.paused_until.map_or(at, |until| until.max(at)), index))
            });
            let timer = timers.min();
            let expiry = self.table.nodes.values().map(|(_, ends, _)| *ends).min();
            let queued = self.queue.keys().next().map(|(at, _)| *at);
            let next = [timer.map(|(at, _)| at), expiry, queued].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            assert!(next >= self.now || timer.is_some(), "SEED={}", self.seed);
            self.now = self.now.max(next);
            if expiry == Some(next) {
                self.expire();
            } else if let Some((_, index)) = timer.filter(|(at, _)| *at == next) {
                self.nodes[index].paused_until.take_if(|until| *until <= self.now);
                let now = self.now;
                self.act(index, |machine| machine.handle_timeout(now));
            } else if let Some((_, (index, item))) = self.queue.pop_first() {
                self.deliver(index, item);
            }
            self.check();
        }
        self.now = end;
    }

    fn expire(&mut self) {
        let now = self.now;
        let ended: Vec<NodeId> = self
            .table
            .nodes
            .iter()
            .filter(|(_, (_, ends, _))| *ends <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            self.table.nodes.remove(&id);
            for node in self.nodes.iter().filter(|node| node.machine.me == id && !node.crashed) {
                // However long it is paused: it knows that it may not go on.
                let until = node.machine.alive_until();
                assert!(until.is_none_or(|until| until < now), "SEED={}: {id} would go on", self.seed);
            }
            self.tell(&ClusterEvent::Node { id, record: None });
        }
    }

    fn deliver(&mut self, index: usize, item: Item) {
        if let Item::Act(action, membership) = item {
            // Requests that are on their way arrive, whatever became of their sender.
            return self.apply(index, action, membership);
        }
        let node = &mut self.nodes[index];
        if node.crashed || node.gone {
            return;
        }
        if let Some(until) = node.paused_until {
            if until > self.now {
                let delay = until - self.now;
                return self.send(index, delay, item);
            }
            node.paused_until = None;
        }
        let now = self.now;
        // A process that was paused has its timers first.
        self.act(index, |machine| machine.handle_timeout(now));
        match item {
            Item::Act(..) => {}
            Item::Back(outcome, membership) => {
                let node = &mut self.nodes[index];
                match outcome {
                    Outcome::Claimed(partition, term) => {
                        // Stopped meanwhile: the driver drops what it was given.
                        if !matches!(node.machine.slots[usize::from(partition)].hold, Hold::Claiming) {
                            return;
                        }
                        node.holds.insert(partition, term);
                        let delay = self.delay();
                        self.send(index, delay, Item::Back(Outcome::Serving(partition), term));
                    }
                    Outcome::Serving(partition) if node.holds.get(&partition) != Some(&membership) => return,
                    Outcome::Renewed(_) => node.membership = membership,
                    Outcome::Prepared(partition) => {
                        if node.prepared.get(&partition) != Some(&0) {
                            return;
                        }
                        node.prepared.insert(partition, 1);
                    }
                    _ => {}
                }
                self.act(index, |machine| machine.handle_outcome(now, outcome));
            }
            Item::News(event) => self.act(index, |machine| machine.handle_event(now, event)),
            Item::Broken => {
                self.act(index, |machine| machine.handle_watch_broken());
                self.watch(index);
            }
        }
    }

    fn act(&mut self, index: usize, act: impl FnOnce(&mut Ownership)) {
        act(&mut self.nodes[index].machine);
        while let Some(action) = self.nodes[index].machine.poll_action() {
            let node = &mut self.nodes[index];
            match action {
                Action::FenceAll => {
                    node.holds.clear();
                    node.prepared.clear();
                }
                Action::Stop(partition) => {
                    node.holds.remove(&partition);
                }
                Action::DropPrepared(partition) => {
                    node.prepared.remove(&partition);
                }
                Action::Prepare(partition) => {
                    node.prepared.insert(partition, 0);
                    let delay = self.delay() * 20;
                    let outcome = if self.fails() { Outcome::NotPrepared } else { Outcome::Prepared };
                    self.send(index, delay, Item::Back(outcome(partition), 0));
                }
                action => {
                    let membership = node.membership;
                    let term = match &action {
                        Action::Propose(partition, _) => node.holds.get(partition).copied().unwrap_or(0),
                        // From here on it answers nobody.
                        Action::Release(partition, _) => node.holds.remove(partition).unwrap_or(0),
                        _ => membership,
                    };
                    let delay = self.delay();
                    self.send(index, delay, Item::Act(action, term));
                }
            }
        }
        let handovers = self.nodes[index].machine.slots.iter().filter(|slot| slot.hands_over()).count();
        self.most_handovers = self.most_handovers.max(handovers);
    }

    /// What an engine does; `term` is of the claim, or of the membership.
    fn apply(&mut self, index: usize, action: Action, term: u64) {
        let id = name(index);
        let started = self.now;
        let outcome = match action {
            Action::Join if self.table.nodes.contains_key(&id) => Outcome::NotRenewed,
            Action::Join => {
                self.table.joins += 1;
                let joined = self.table.joins;
                let declines = self.nodes[index].machine.declines();
                let record = NodeRecord { declines, ..record(index) };
                self.table.nodes.insert(id.clone(), (record.clone(), self.now + LEASE, joined));
                self.tell(&ClusterEvent::Node { id, record: Some(record) });
                let delay = self.delay();
                return self.send(index, delay, Item::Back(Outcome::Renewed(started), joined));
            }
            Action::Renew if self.fails() => Outcome::NotRenewed,
            Action::Renew => match self.table.nodes.get_mut(&id) {
                Some((record, ends, joined)) if *joined == term => {
                    *ends = self.now + LEASE;
                    let declines = self.nodes[index].machine.declines();
                    if record.declines != declines {
                        record.declines = declines;
                        let record = Some(record.clone());
                        self.tell(&ClusterEvent::Node { id, record });
                    }
                    let delay = self.delay();
                    return self.send(index, delay, Item::Back(Outcome::Renewed(started), term));
                }
                _ => Outcome::Lost,
            },
            Action::Leave => {
                self.table.nodes.remove(&id);
                self.nodes[index].gone = true;
                return self.tell(&ClusterEvent::Node { id, record: None });
            }
            Action::Claim(partition) if self.cursed.contains(&(index, partition)) => {
                // The table takes it, the log does not.
                let held = &mut self.table.partitions[usize::from(partition)];
                (held.owner, held.next, held.released) = (Some(id), None, false);
                held.term += 1;
                self.claims += 1;
                self.tell_partition(partition);
                Outcome::Failed(partition)
            }
            Action::Claim(partition) if self.fails() => Outcome::Failed(partition),
            Action::Claim(partition) => {
                let at = usize::from(partition);
                let held = &self.table.partitions[at];
                if held.released && self.nodes[index].prepared.get(&partition) != Some(&1) {
                    self.unprepared += 1;
                }
                let term = held.term + 1;
                self.table.partitions[at] =
                    PartitionRecord { owner: Some(id), term, ..PartitionRecord::default() };
                self.changed[at] = self.now;
                self.claims += 1;
                self.nodes[index].prepared.remove(&partition);
                self.tell_partition(partition);
                Outcome::Claimed(partition, term)
            }
            Action::Propose(partition, next) => {
                let held = &mut self.table.partitions[usize::from(partition)];
                if held.term == term && held.owner == Some(id) && !held.released {
                    (held.next, held.ready) = (next, false);
                    self.tell_partition(partition);
                    Outcome::Proposed(partition, true)
                } else {
                    Outcome::Proposed(partition, false)
                }
            }
            Action::Ready(partition, term) => {
                let held = &mut self.table.partitions[usize::from(partition)];
                if held.term == term && held.next == Some(id) {
                    held.ready = true;
                    self.tell_partition(partition);
                }
                Outcome::Told(partition)
            }
            Action::Release(partition, to) => {
                let held = &mut self.table.partitions[usize::from(partition)];
                if held.term == term {
                    held.released = to.is_some();
                    if to.is_none() {
                        held.owner = None;
                    }
                    held.next = to;
                    self.tell_partition(partition);
                }
                Outcome::Released(partition)
            }
            other => panic!("SEED={}: {other:?} is not for the table", self.seed),
        };
        let delay = self.delay();
        self.send(index, delay, Item::Back(outcome, 0));
    }

    fn tell_partition(&mut self, partition: u16) {
        let record = self.table.partitions[usize::from(partition)].clone();
        self.tell(&ClusterEvent::Partition { partition: PartitionId(partition), record });
    }

    fn tell(&mut self, event: &ClusterEvent) {
        for index in 0..self.nodes.len() {
            self.news(index, event.clone());
        }
    }

    fn watch(&mut self, index: usize) {
        let nodes = self.table.nodes.values().map(|(record, ..)| record.clone()).collect::<Vec<_>>();
        for record in nodes {
            self.news(index, ClusterEvent::Node { id: record.id.clone(), record: Some(record) });
        }
        for (partition, record) in (0..).zip(self.table.partitions.clone()) {
            self.news(index, ClusterEvent::Partition { partition: PartitionId(partition), record });
        }
        self.news(index, ClusterEvent::Synced);
    }

    fn news(&mut self, index: usize, event: ClusterEvent) {
        let at = (self.now + self.delay()).max(self.nodes[index].news_at);
        self.nodes[index].news_at = at;
        let delay = at - self.now;
        self.send(index, delay, Item::News(event));
    }

    fn send(&mut self, index: usize, delay: Duration, item: Item) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), (index, item));
    }

    fn delay(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(100..u64::from(MOST_DELAY_MS) * 1_000))
    }

    fn fails(&mut self) -> bool {
        self.faults && self.rng.random_bool(0.1)
    }

    fn check(&self) {
        let mut holders = BTreeMap::new();
        for node in &self.nodes {
            let fenced = node.machine.alive_until().is_none();
            assert!(!fenced || node.holds.is_empty(), "SEED={}: fenced, and holds something", self.seed);
            for (partition, term) in &node.holds {
                let other = holders.insert((*partition, *term), &node.machine.me);
                assert_eq!(other, None, "SEED={}: two of one term", self.seed);
                let record = &self.table.partitions[usize::from(*partition)];
                // Who is awake and hears the news stops as soon as they come.
                let told = self.now.saturating_duration_since(self.changed[usize::from(*partition)]);
                if *term < record.term && node.paused_until.is_none() && !self.faults {
                    assert!(told < ms(MOST_DELAY_MS) * 4, "SEED={}: an old owner goes on", self.seed);
                }
            }
        }
    }

    fn owners(&self) -> Vec<Option<NodeId>> {
        self.table.partitions.iter().map(|record| record.owner.clone()).collect()
    }

    fn assert_settled(&self) {
        let live: Vec<NodeId> = self.table.nodes.keys().cloned().collect();
        assert!(!live.is_empty(), "SEED={}", self.seed);
        for (partition, record) in (0..).zip(&self.table.partitions) {
            let owner = winner(&live, partition);
            assert_eq!(record.owner.as_ref(), owner, "SEED={}: owner of {partition}", self.seed);
            assert!(!record.released && record.next.is_none(), "SEED={}: {partition} {record:?}", self.seed);
            let holds = |node: &&Node| node.holds.get(&partition) == Some(&record.term);
            let holder = self.nodes.iter().find(holds).map(|node| &node.machine.me);
            assert_eq!(holder, owner, "SEED={}: who serves {partition}", self.seed);
        }
        for node in self.nodes.iter().filter(|node| live.contains(&node.machine.me) && !node.gone) {
            assert!(node.machine.is_settled(), "SEED={}: {:?}", self.seed, node.machine);
        }
    }
}

fn name(index: usize) -> NodeId {
    NodeId::new(&format!("core-{index}"))
}

fn record(index: usize) -> NodeRecord {
    let address = format!("127.0.0.1:{}", 4000 + index);
    NodeRecord { id: name(index), address, version: "0".to_owned(), started_ms: 0, declines: Vec::new() }
}

fn node(index: usize) -> ClusterEvent {
    ClusterEvent::Node { id: name(index), record: Some(record(index)) }
}

fn ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

fn now() -> Instant {
    tidegate_transport::clock::now()
}

const LEASE: Duration = Duration::from_secs(3);
const HANDOVERS: usize = 2;
const BOUNDS: Bounds = Bounds { lease: LEASE, handovers: HANDOVERS };
const MOST_DELAY_MS: u32 = 50;
