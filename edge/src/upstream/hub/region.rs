//! Sans-io: the cores of one region: which to be connected to, who owns what, and a link for each partition.
//!
//! ```text
//!  address:   waiting ──► dialling ──► connected          partition:  waiting ──► opening ──► open
//!                ▲            │            │                              ▲           │         │ Moved, lost, fault,
//!                └────────────┴────────────┘                              └───────────┴─────────┘ superseded
//! ```
//!
//! Of every partition the newest term that anybody spoke of counts: a directory of an older one changes nothing, and an
//! owner of an older one is refused. But where nobody served a partition for so long that no owner from before can be left,
//! and terms are lower now, the cluster began anew: what it says counts again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::backoff::Backoff;
use tidegate_protocol::link::{CoreFrame, Directory, EdgeFrame, Welcome};
use tidegate_protocol::{NodeId, Region};

use super::machine::{ConnectionId, Effects, Event, LinkId, partition_of_frame};
use super::partition::{Bounds, Partition, Stats};
use super::workers::{Client, Outbox};

/// The links of one region.
#[derive(Debug)]
pub(crate) struct RegionLinks {
    name: Region,
    /// Its number.
    index: usize,
    rng: ChaCha8Rng,
    bounds: Bounds,
    cores: BTreeMap<Arc<str>, Core>,
    /// Addresses of nodes, as the newest directory says.
    nodes: BTreeMap<NodeId, Arc<str>>,
    /// By number. Before the first core said how many there are: one alone, which holds everything.
    partitions: Vec<Slot>,
    known: bool,
    /// Partitions with something to send.
    ready: BTreeSet<u16>,
    stats: Stats,
}

/// An address that is, or is to be, connected to.
#[derive(Debug)]
struct Core {
    /// It is in the configuration: always wanted.
    bootstrap: bool,
    backoff: Backoff,
    state: CoreState,
    /// The node there is connected to by another address.
    alias: Option<NodeId>,
}

#[derive(Debug, Clone)]
enum CoreState {
    Waiting { until: Instant },
    Dialling { connection: ConnectionId },
    Connected { connection: ConnectionId, node: NodeId, since: Instant },
}

#[derive(Debug)]
struct Slot {
    partition: Partition,
    link: LinkState,
    /// Who is to be asked for it.
    owner: Option<NodeId>,
    /// The newest term that a directory spoke of.
    told: u64,
    /// The newest that anybody spoke of.
    term: u64,
    /// Terms up to this one are over: their owner said so.
    over: u64,
    /// What the last directory said, whether it counted or not.
    heard: Option<(u64, Option<NodeId>)>,
    /// Since when there is no link, while there is none.
    down_since: Instant,
    /// When the last link was lost; `None` before the first.
    lost: Option<Instant>,
    /// Attempts that failed since the last link.
    failures: u32,
}

#[derive(Debug, Clone, Copy)]
enum LinkState {
    Waiting { until: Instant },
    Opening { link: LinkId, connection: ConnectionId },
    Open { link: LinkId, connection: ConnectionId, term: u64, since: Instant, superseded: Option<Instant> },
}

/// Why a partition's link did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenFailure {
    /// The core does not own it, or not yet.
    NotOwner,
    /// The connection ended, or nothing came in time.
    Lost,
}

/// One link of a region, for people.
#[derive(Debug, Clone)]
pub(crate) struct PartitionView {
    pub(crate) owner: Option<NodeId>,
    pub(crate) term: u64,
    pub(crate) open_for: Option<Duration>,
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) channels: usize,
}

/// One connection of a region, for people.
#[derive(Debug, Clone)]
pub(crate) struct CoreView {
    pub(crate) address: Arc<str>,
    pub(crate) state: &'static str,
    pub(crate) node: Option<NodeId>,
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) connected_for: Option<Duration>,
}

impl RegionLinks {
    /// Connected to nobody yet.
    pub(crate) fn new(
        now: Instant,
        name: Region,
        index: usize,
        addresses: &[String],
        bounds: Bounds,
        mut rng: ChaCha8Rng,
    ) -> Self {
        let mut cores = BTreeMap::new();
        for address in addresses {
            cores.insert(Arc::from(address.as_str()), Core::new(now, true, &mut rng));
        }
        Self {
            name,
            index,
            rng,
            partitions: vec![Slot::new(now, bounds.clone())],
            bounds,
            cores,
            nodes: BTreeMap::new(),
            known: false,
            ready: BTreeSet::new(),
            stats: Stats::default(),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &Region {
        &self.name
    }

    /// How many partitions it has; 1 while nobody said.
    pub(crate) fn count(&self) -> u16 {
        // As many as a u16 said.
        self.partitions.len() as u16
    }

    /// Every partition has a link.
    #[cfg(test)]
    pub(crate) fn is_ready(&self) -> bool {
        self.known && self.links() == self.partitions.len()
    }

    /// Nothing that is asked of it is refused by now: every partition has a link, or lost it so short a time ago that
    /// questions wait yet. A hand-over is no more than that.
    pub(crate) fn is_in_reach(&self, now: Instant) -> bool {
        let wait = self.bounds.request_wait;
        self.known && self.partitions.iter().all(|slot| slot.is_in_reach(now, wait))
    }

    /// A core has answered, ever: it is known how many partitions there are.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// Partitions that have a link.
    pub(crate) fn links(&self) -> usize {
        self.partitions.iter().filter(|slot| matches!(slot.link, LinkState::Open { .. })).count()
    }

    /// Cores that are connected.
    pub(crate) fn connected(&self) -> usize {
        self.cores.values().filter(|core| core.node().is_some()).count()
    }

    /// Bytes of questions that wait or are in flight.
    pub(crate) fn held_bytes(&self) -> usize {
        self.partitions.iter().map(|slot| slot.partition.held_bytes()).sum()
    }

    /// A frame of a worker, for a partition.
    pub(crate) fn handle_client(
        &mut self,
        now: Instant,
        partition: u16,
        client: Client,
        frame: EdgeFrame,
        outbox: &mut Outbox,
    ) {
        if let Some(slot) = self.partitions.get_mut(usize::from(partition)) {
            slot.partition.handle_client(now, client, frame, outbox);
            self.ready.insert(partition);
        }
    }

    /// A core was dialled: it answered with its name and the number of partitions, or did not.
    pub(crate) fn handle_dialled(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        result: Result<Welcome, ()>,
        outbox: &mut Outbox,
        effects: &mut Effects,
    ) {
        let Some((address, core)) =
            self.cores.iter_mut().find(|(_, core)| core.connection() == Some(connection))
        else {
            effects.push(Event::HangUp { connection, reason: "not wanted any more" });
            return;
        };
        let address = Arc::clone(address);
        let mut core_alias = None;
        let refused = match result {
            Err(()) => None,
            Ok(welcome) if welcome.region != self.name => Some("a core of another region"),
            Ok(Welcome { partitions: 0, .. }) => Some("a region without partitions"),
            Ok(Welcome { partitions, .. })
                if self.known && usize::from(partitions) != self.partitions.len() =>
            {
                Some("another number of partitions than its region")
            }
            Ok(Welcome { node, partitions: count, .. }) => {
                core.state = CoreState::Connected { connection, node: node.clone(), since: now };
                core.backoff.handle_connected(now);
                let twice = self.cores.iter().any(|(other, core)| {
                    *other != address
                        && matches!(&core.state, CoreState::Connected { node: known, .. } if *known == node)
                });
                if !twice {
                    self.place(now, count, outbox);
                    return self.update(now, effects);
                }
                // The same node under two addresses: one connection serves both.
                core_alias = Some(node);
                Some("connected already")
            }
        };
        if let Some(reason) = refused {
            effects.push(Event::HangUp { connection, reason });
        }
        if let Some(core) = self.cores.get_mut(&address) {
            let until = now + core.back_off(now);
            let until = match (refused, &core_alias) {
                (None, _) => until,
                (Some(_), None) => until.max(now + REFUSED),
                (Some(_), Some(_)) => now + ALIAS,
            };
            core.state = CoreState::Waiting { until };
            core.alias = core_alias;
        }
        self.update(now, effects);
    }

    /// A connection is over, with all links over it.
    pub(crate) fn handle_hung_up(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        outbox: &mut Outbox,
        effects: &mut Effects,
    ) {
        let Some(core) = self.cores.values_mut().find(|core| core.connection() == Some(connection)) else {
            return;
        };
        let until = now + core.back_off(now);
        let over = std::mem::replace(&mut core.state, CoreState::Waiting { until });
        if let CoreState::Connected { node, .. } = over {
            // Perhaps it is still there by its other address.
            for core in self.cores.values_mut().filter(|core| core.alias.as_ref() == Some(&node)) {
                core.alias = None;
                core.state = CoreState::Waiting { until: now };
            }
        }
        for partition in 0..self.count() {
            let over = match self.partitions[usize::from(partition)].link {
                LinkState::Waiting { .. } => false,
                LinkState::Opening { connection: by, .. } | LinkState::Open { connection: by, .. } => {
                    by == connection
                }
            };
            if over {
                self.close(now, partition, true, Duration::ZERO, outbox);
            }
        }
        self.update(now, effects);
    }

    /// What a core knows of who owns what.
    pub(crate) fn handle_directory(&mut self, now: Instant, directory: &Directory, effects: &mut Effects) {
        // Before the first directory everybody is unknown, and not back.
        let first = self.nodes.is_empty();
        for node in &directory.nodes {
            let known = self.nodes.insert(node.id.clone(), Arc::clone(&node.address)).is_some();
            let Some(core) = self.cores.get_mut(&node.address).filter(|_| !known && !first) else { continue };
            // Back again: what it is about to be given is not to wait for a pause, or for the next of a handshake's packets
            // that began while nobody was there.
            match core.state {
                CoreState::Waiting { until } => core.state = CoreState::Waiting { until: now.min(until) },
                CoreState::Dialling { connection } => {
                    effects.push(Event::HangUp { connection, reason: "dialled anew" });
                    core.state = CoreState::Waiting { until: now };
                }
                CoreState::Connected { .. } => {}
            }
        }
        let lives = |node: &NodeId| directory.nodes.iter().any(|known| known.id == *node);
        let gone = self.cores.values().filter(|core| core.node().is_some_and(|node| !lives(node)));
        let gone: Vec<ConnectionId> = gone.filter_map(Core::connection).collect();
        if self.known {
            for (slot, entry) in self.partitions.iter_mut().zip(&directory.partitions) {
                slot.handle_told(now, entry.term, entry.owner.as_ref(), &gone, effects);
            }
        }
        // Who is gone and owns nothing is not remembered.
        let owners: BTreeSet<_> = self.partitions.iter().filter_map(|slot| slot.owner.as_ref()).collect();
        let alive: BTreeSet<_> = directory.nodes.iter().map(|node| &node.id).collect();
        self.nodes.retain(|id, _| owners.contains(id) || alive.contains(id));
        self.update(now, effects);
    }

    /// A core serves a partition over a new link.
    pub(crate) fn handle_opened(
        &mut self,
        now: Instant,
        partition: u16,
        link: LinkId,
        term: u64,
        outbox: &mut Outbox,
        effects: &mut Effects,
    ) {
        let Some(slot) = self.opening(partition, link) else {
            effects.push(Event::Drop { link });
            return;
        };
        let LinkState::Opening { connection, .. } = slot.link else { return };
        if term < slot.term || term <= slot.over {
            self.stats.stale += 1;
            effects.push(Event::Drop { link });
            let pause = self.pause(partition);
            self.close(now, partition, true, pause, outbox);
        } else {
            slot.term = term;
            slot.failures = 0;
            slot.link = LinkState::Open { link, connection, term, since: now, superseded: None };
            slot.partition.handle_opened(now);
            self.ready.insert(partition);
        }
        self.update(now, effects);
    }

    /// A core does not.
    pub(crate) fn handle_open_failed(
        &mut self,
        now: Instant,
        partition: u16,
        link: LinkId,
        failure: OpenFailure,
        outbox: &mut Outbox,
        effects: &mut Effects,
    ) {
        if self.opening(partition, link).is_none() {
            return;
        }
        let pause = match failure {
            OpenFailure::NotOwner => self.pause(partition),
            OpenFailure::Lost => self.pause(partition) * 2,
        };
        self.close(now, partition, true, pause, outbox);
        self.update(now, effects);
    }

    /// A frame of a partition's owner.
    pub(crate) fn handle_core(
        &mut self,
        now: Instant,
        partition: u16,
        link: LinkId,
        frame: CoreFrame,
        outbox: &mut Outbox,
        effects: &mut Effects,
    ) {
        let Some(slot) = self.partitions.get_mut(usize::from(partition)) else { return };
        let LinkState::Open { link: open, term, .. } = slot.link else { return };
        if open != link {
            return;
        }
        self.ready.insert(partition);
        if let CoreFrame::Moved { partition: of, to } = frame {
            if of == partition {
                slot.over = slot.over.max(term);
                if slot.told <= term {
                    slot.owner = to;
                }
                effects.push(Event::Drop { link });
                self.close(now, partition, false, Duration::ZERO, outbox);
                self.update(now, effects);
            }
            return;
        }
        if let Err(fault) = slot.partition.handle_core(now, frame, outbox) {
            self.stats.resets += 1;
            effects.push(Event::Fault { region: self.index, partition, fault });
            effects.push(Event::Drop { link });
            let pause = self.pause(partition);
            self.close(now, partition, true, pause, outbox);
            self.update(now, effects);
        }
    }

    /// A link is over.
    pub(crate) fn handle_closed(
        &mut self,
        now: Instant,
        partition: u16,
        link: LinkId,
        outbox: &mut Outbox,
        effects: &mut Effects,
    ) {
        let Some(slot) = self.partitions.get(usize::from(partition)) else { return };
        if matches!(slot.link, LinkState::Open { link: open, .. } if open == link) {
            let pause = self.pause(partition);
            self.close(now, partition, true, pause, outbox);
            self.update(now, effects);
        }
    }

    /// A worker has room again.
    pub(crate) fn handle_drained(&mut self, client: Client, outbox: &mut Outbox) {
        for (partition, slot) in (0..).zip(&mut self.partitions) {
            slot.partition.handle_drained(client, outbox);
            self.ready.insert(partition);
        }
    }

    /// Dials, opens and gives up what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant, outbox: &mut Outbox, effects: &mut Effects) {
        for partition in 0..self.count() {
            let slot = &mut self.partitions[usize::from(partition)];
            if let LinkState::Open { link, superseded: Some(at), .. } = slot.link
                && at <= now
            {
                effects.push(Event::Drop { link });
                self.close(now, partition, true, Duration::ZERO, outbox);
            }
            let slot = &mut self.partitions[usize::from(partition)];
            slot.forget_terms(now, effects);
            if slot.partition.poll_timeout().is_some_and(|at| at <= now) {
                slot.partition.handle_timeout(now, outbox);
                self.ready.insert(partition);
            }
        }
        self.update(now, effects);
    }

    /// When [`RegionLinks::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let dials = self.cores.values().filter_map(|core| match core.state {
            CoreState::Waiting { until } => Some(until),
            _ => None,
        });
        let partitions = self.partitions.iter().filter_map(|slot| {
            let link = match slot.link {
                // Without an owner to ask, something else must happen first.
                LinkState::Waiting { until } => self.connection_of(slot).map(|_| until),
                LinkState::Opening { .. } => None,
                LinkState::Open { superseded, .. } => superseded,
            };
            [link, slot.forgets_at(), slot.partition.poll_timeout()].into_iter().flatten().min()
        });
        dials.chain(partitions).min()
    }

    /// The next frame for a link, `None` while there is none.
    pub(crate) fn poll_transmit(
        &mut self,
        partition: u16,
        link: LinkId,
        outbox: &Outbox,
    ) -> Option<EdgeFrame> {
        let slot = self.partitions.get_mut(usize::from(partition))?;
        match slot.link {
            LinkState::Open { link: open, .. } if open == link => slot.partition.poll_transmit(outbox),
            _ => None,
        }
    }

    /// Links with something to send, since the last call.
    pub(crate) fn take_ready(&mut self) -> Vec<LinkId> {
        let ready = std::mem::take(&mut self.ready);
        let link = |partition: u16| match self.partitions.get(usize::from(partition))?.link {
            LinkState::Open { link, .. } => Some(link),
            _ => None,
        };
        ready.into_iter().filter_map(link).collect()
    }

    /// What happened since the last call.
    pub(crate) fn take_stats(&mut self) -> Stats {
        let mut stats = std::mem::take(&mut self.stats);
        for slot in &mut self.partitions {
            stats.add(slot.partition.take_stats());
        }
        stats
    }

    /// Its partitions, for people; none before their number is known.
    pub(crate) fn partitions(&self, now: Instant) -> Vec<PartitionView> {
        let slots = if self.known { self.partitions.as_slice() } else { &[] };
        let view = |slot: &Slot| {
            let (open_for, connection) = match slot.link {
                LinkState::Open { since, connection, .. } => {
                    (Some(now.saturating_duration_since(since)), Some(connection))
                }
                _ => (None, None),
            };
            let (owner, term) = (slot.owner.clone(), slot.term);
            PartitionView { owner, term, open_for, connection, channels: slot.partition.channels() }
        };
        slots.iter().map(view).collect()
    }

    /// Its connections, for people.
    pub(crate) fn cores(&self, now: Instant) -> Vec<CoreView> {
        let view = |(address, core): (&Arc<str>, &Core)| {
            let (state, node, connected_for) = match &core.state {
                CoreState::Waiting { .. } => ("waiting", None, None),
                CoreState::Dialling { .. } => ("dialling", None, None),
                CoreState::Connected { node, since, .. } => {
                    ("connected", Some(node.clone()), Some(now.saturating_duration_since(*since)))
                }
            };
            let (address, connection) = (Arc::clone(address), core.connection());
            CoreView { address, state, node, connection, connected_for }
        };
        self.cores.iter().map(view).collect()
    }

    /// Dials and opens what can be, as long as there is anything.
    pub(crate) fn update(&mut self, now: Instant, effects: &mut Effects) {
        self.want(now);
        for (address, core) in &mut self.cores {
            if let CoreState::Waiting { until } = core.state
                && until <= now
            {
                let connection = ConnectionId(effects.fresh());
                core.state = CoreState::Dialling { connection };
                let (region, address) = (self.index, Arc::clone(address));
                effects.push(Event::Dial { region, address, connection });
            }
        }
        if !self.known {
            return;
        }
        for partition in 0..self.count() {
            let slot = &self.partitions[usize::from(partition)];
            let LinkState::Waiting { until } = slot.link else { continue };
            if until > now {
                continue;
            }
            let Some(connection) = self.connection_of(slot) else { continue };
            let link = LinkId(effects.fresh());
            self.partitions[usize::from(partition)].link = LinkState::Opening { link, connection };
            effects.push(Event::Open { region: self.index, partition, connection, link });
        }
    }

    /// Keeps the addresses that are to be connected to: the configured ones, and of every other node the one that the
    /// directory says, unless it is reached by another. Also of those that own nothing yet: once a partition is handed to
    /// them, there is no time for a handshake.
    fn want(&mut self, now: Instant) {
        let connected: BTreeSet<NodeId> =
            self.cores.values().filter_map(|core| core.node().cloned()).collect();
        let missing = self.nodes.iter().filter(|(node, _)| !connected.contains(*node));
        let missing: BTreeSet<Arc<str>> = missing.map(|(_, address)| Arc::clone(address)).collect();
        self.cores.retain(|address, core| {
            core.bootstrap || missing.contains(address) || !matches!(core.state, CoreState::Waiting { .. })
        });
        for address in missing {
            if !self.cores.contains_key(&address) {
                self.cores.insert(address, Core::new(now, false, &mut self.rng));
            }
        }
    }

    /// The first core says how many partitions there are: what waited goes to its place.
    fn place(&mut self, now: Instant, count: u16, outbox: &mut Outbox) {
        if self.known {
            return;
        }
        self.known = true;
        let slots = (0..count).map(|_| Slot::new(now, self.bounds.clone())).collect();
        for mut early in std::mem::replace(&mut self.partitions, slots) {
            self.stats.add(early.partition.take_stats());
            early.partition.hand_over(outbox, |client, frame, at, outbox| {
                let partition = partition_of_frame(&frame, count);
                let slot = &mut self.partitions[usize::from(partition)];
                slot.partition.handle_client(at, client, frame, outbox);
            });
        }
    }

    /// The connection to a partition's owner.
    fn connection_of(&self, slot: &Slot) -> Option<ConnectionId> {
        let owner = slot.owner.as_ref()?;
        self.cores.values().find(|core| core.node() == Some(owner))?.connection()
    }

    fn opening(&mut self, partition: u16, link: LinkId) -> Option<&mut Slot> {
        let slot = self.partitions.get_mut(usize::from(partition))?;
        matches!(slot.link, LinkState::Opening { link: opening, .. } if opening == link).then_some(slot)
    }

    fn close(&mut self, now: Instant, partition: u16, handled: bool, pause: Duration, outbox: &mut Outbox) {
        if let Some(slot) = self.partitions.get_mut(usize::from(partition)) {
            if matches!(slot.link, LinkState::Open { .. }) {
                slot.down_since = now;
                slot.lost = Some(now);
            }
            slot.link = LinkState::Waiting { until: now + pause };
            slot.partition.handle_closed(now, handled, outbox);
        }
    }

    /// Before a partition is asked for again, should no directory change that.
    fn pause(&mut self, partition: u16) -> Duration {
        let Some(slot) = self.partitions.get_mut(usize::from(partition)) else { return Duration::ZERO };
        let bound = FIRST_PAUSE.saturating_mul(1 << slot.failures.min(8)).min(LAST_PAUSE);
        slot.failures = slot.failures.saturating_add(1);
        bound.mul_f64(self.rng.random_range(0.5..1.0))
    }
}

impl Core {
    fn new(now: Instant, bootstrap: bool, rng: &mut ChaCha8Rng) -> Self {
        let backoff = Backoff::with_bounds(ChaCha8Rng::from_rng(rng), FIRST_DIAL, LAST_DIAL);
        Self { bootstrap, backoff, state: CoreState::Waiting { until: now }, alias: None }
    }

    fn connection(&self) -> Option<ConnectionId> {
        match self.state {
            CoreState::Waiting { .. } => None,
            CoreState::Dialling { connection } | CoreState::Connected { connection, .. } => Some(connection),
        }
    }

    fn node(&self) -> Option<&NodeId> {
        match &self.state {
            CoreState::Connected { node, .. } => Some(node),
            _ => None,
        }
    }

    /// How long to wait now.
    fn back_off(&mut self, now: Instant) -> Duration {
        self.backoff.handle_lost(now);
        self.backoff.next_delay()
    }
}

impl Slot {
    fn new(now: Instant, bounds: Bounds) -> Self {
        Self {
            partition: Partition::new(now, bounds),
            link: LinkState::Waiting { until: now },
            owner: None,
            told: 0,
            term: 0,
            over: 0,
            heard: None,
            down_since: now,
            lost: None,
            failures: 0,
        }
    }

    fn is_in_reach(&self, now: Instant, wait: Duration) -> bool {
        matches!(self.link, LinkState::Open { .. }) || self.lost.is_some_and(|lost| now < lost + wait)
    }

    /// A directory of a core that lives says who owns it. `gone`: connections to those that do not.
    fn handle_told(
        &mut self,
        now: Instant,
        term: u64,
        owner: Option<&NodeId>,
        gone: &[ConnectionId],
        effects: &mut Effects,
    ) {
        self.heard = Some((term, owner.cloned()));
        if term < self.told
            || (term <= self.over && self.over > 0)
            || (term == self.told && owner == self.owner.as_ref())
        {
            return;
        }
        self.told = term;
        let stays = owner == self.owner.as_ref();
        self.owner = owner.cloned();
        if owner.is_some() {
            self.term = self.term.max(term);
        }
        match &mut self.link {
            LinkState::Waiting { until } => *until = now,
            // It was asked before it was told of: by its predecessor's last word.
            LinkState::Opening { .. } if stays => {}
            LinkState::Opening { link, .. } => {
                effects.push(Event::Drop { link: *link });
                self.link = LinkState::Waiting { until: now };
            }
            // What its owner said last may still be on the way: that it stops, and what it has handled. Of one that died
            // there is nothing to wait for.
            LinkState::Open { term: open, superseded, connection, .. } => {
                if term > *open && superseded.is_none() {
                    let grace = if gone.contains(connection) { Duration::ZERO } else { GRACE };
                    *superseded = Some(now + grace);
                }
            }
        }
    }

    /// When the terms that were seen mean nothing any more: directories speak of lower ones, and nobody serves it.
    fn forgets_at(&self) -> Option<Instant> {
        let (heard, _) = self.heard.as_ref()?;
        let lower = *heard < self.told.max(self.term) || (*heard <= self.over && self.over > 0);
        (lower && !matches!(self.link, LinkState::Open { .. })).then(|| self.down_since + FORGET_TERMS)
    }

    /// Believes what the last directory said, where it is time.
    fn forget_terms(&mut self, now: Instant, effects: &mut Effects) {
        if self.forgets_at().is_some_and(|at| at <= now)
            && let Some((term, owner)) = self.heard.take()
        {
            (self.told, self.term, self.over, self.owner) = (0, 0, 0, None);
            self.down_since = now;
            self.handle_told(now, term, owner.as_ref(), &[], effects);
        }
    }
}

/// Bounds of the first and of any wait before a core is dialled again.
const FIRST_DIAL: Duration = Duration::from_millis(200);
const LAST_DIAL: Duration = Duration::from_secs(5);
/// At least so long, where the core answered something that will not change soon.
const REFUSED: Duration = Duration::from_secs(5);
/// Before it is asked again whether an address leads to a core that is connected to by another. At once, should that one
/// be lost.
const ALIAS: Duration = Duration::from_secs(60);
/// Bounds of the first and of any wait before a partition is asked for again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// For a link whose partition has another owner, to say its last words.
const GRACE: Duration = Duration::from_secs(1);
/// After so long without a link nobody is left who was an owner before: a node that cannot renew its lease, of a few
/// seconds, serves nobody.
const FORGET_TERMS: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
