//! Sans-io: the whole hub: its regions, its workers, and what goes from which to which.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::link::{CoreFrame, Directory, EdgeFrame, Welcome};
use tidegate_protocol::placement::{partition_of, partition_of_session};
use tidegate_protocol::{ChannelName, Region};

use super::home::HomeRules;
use super::partition::{Bounds, LinkFault, Stats};
use super::region::{OpenFailure, RegionLinks};
use super::workers::{Client, ClientSet, Outbox};

/// An attempt to connect to a core, and what came of it. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// An attempt to open a partition's link, and what came of it. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkId(pub(crate) u64);

/// What the driver must do or record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Dial, then [`Machine::handle_dialled`].
    Dial {
        /// For whom.
        region: usize,
        /// `host:port`.
        address: Arc<str>,
        /// Its name from now on.
        connection: ConnectionId,
    },
    /// End a connection; nothing of it is handled any more.
    HangUp {
        /// Which one.
        connection: ConnectionId,
        /// For people.
        reason: &'static str,
    },
    /// Ask for a partition, then [`Machine::handle_opened`] or [`Machine::handle_open_failed`].
    Open {
        /// For whom.
        region: usize,
        /// Which one.
        partition: u16,
        /// Over it.
        connection: ConnectionId,
        /// Its name from now on.
        link: LinkId,
    },
    /// End a link, or the attempt at one; nothing of it is handled any more.
    Drop {
        /// Which one.
        link: LinkId,
    },
    /// A core said what cannot be.
    Fault {
        /// Of which region.
        region: usize,
        /// Of which partition.
        partition: u16,
        /// What.
        fault: LinkFault,
    },
}

/// Events, and numbers for them.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    events: VecDeque<Event>,
    next: u64,
}

impl Effects {
    pub(crate) fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

/// The hub.
#[derive(Debug)]
pub(crate) struct Machine {
    home: HomeRules,
    regions: Vec<RegionLinks>,
    outbox: Outbox,
    effects: Effects,
}

impl Machine {
    /// For `workers` workers and the backend API. `regions` holds every region of `home`, each with its addresses.
    pub(crate) fn new(
        now: Instant,
        workers: u16,
        home: HomeRules,
        regions: impl IntoIterator<Item = (Region, Vec<String>)>,
        bounds: &Bounds,
        outbox_bytes: usize,
        mut rng: ChaCha8Rng,
    ) -> Self {
        let regions = regions.into_iter().enumerate().map(|(index, (name, addresses))| {
            let rng = ChaCha8Rng::from_rng(&mut rng);
            RegionLinks::new(now, name, index, &addresses, bounds.clone(), rng)
        });
        let regions = regions.collect();
        Self { home, regions, outbox: Outbox::new(workers, outbox_bytes), effects: Effects::default() }
    }

    /// A frame of a worker, or of the backend API.
    pub(crate) fn handle_client(&mut self, now: Instant, client: Client, frame: EdgeFrame) {
        let home = match channel_of(&frame) {
            Some(channel) => self.home.region(channel),
            None => self.home.default_region(),
        };
        // Every region of the rules is there, by construction.
        if let Some(region) = self.regions.iter_mut().find(|region| region.name() == home) {
            let partition = partition_of_frame(&frame, region.count());
            region.handle_client(now, partition, client, frame, &mut self.outbox);
        }
    }

    /// A core was dialled.
    pub(crate) fn handle_dialled(
        &mut self,
        now: Instant,
        region: usize,
        connection: ConnectionId,
        result: Result<Welcome, ()>,
    ) {
        if let Some(links) = self.regions.get_mut(region) {
            links.handle_dialled(now, connection, result, &mut self.outbox, &mut self.effects);
        }
    }

    /// A connection is over, and its links with it.
    pub(crate) fn handle_hung_up(&mut self, now: Instant, region: usize, connection: ConnectionId) {
        if let Some(links) = self.regions.get_mut(region) {
            links.handle_hung_up(now, connection, &mut self.outbox, &mut self.effects);
        }
    }

    /// A core says who owns what.
    pub(crate) fn handle_directory(&mut self, now: Instant, region: usize, directory: &Directory) {
        if let Some(links) = self.regions.get_mut(region) {
            links.handle_directory(now, directory, &mut self.effects);
        }
    }

    /// A partition's owner serves it over a new link.
    pub(crate) fn handle_opened(&mut self, now: Instant, at: (usize, u16), link: LinkId, term: u64) {
        if let Some(links) = self.regions.get_mut(at.0) {
            links.handle_opened(now, at.1, link, term, &mut self.outbox, &mut self.effects);
        }
    }

    /// It does not.
    pub(crate) fn handle_open_failed(
        &mut self,
        now: Instant,
        at: (usize, u16),
        link: LinkId,
        failure: OpenFailure,
    ) {
        if let Some(links) = self.regions.get_mut(at.0) {
            links.handle_open_failed(now, at.1, link, failure, &mut self.outbox, &mut self.effects);
        }
    }

    /// A frame that came over a partition's link.
    pub(crate) fn handle_core(&mut self, now: Instant, at: (usize, u16), link: LinkId, frame: CoreFrame) {
        if let Some(links) = self.regions.get_mut(at.0) {
            links.handle_core(now, at.1, link, frame, &mut self.outbox, &mut self.effects);
        }
    }

    /// A partition's link is over.
    pub(crate) fn handle_closed(&mut self, now: Instant, at: (usize, u16), link: LinkId) {
        if let Some(links) = self.regions.get_mut(at.0) {
            links.handle_closed(now, at.1, link, &mut self.outbox, &mut self.effects);
        }
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for links in &mut self.regions {
            links.handle_timeout(now, &mut self.outbox, &mut self.effects);
        }
    }

    /// When [`Machine::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.regions.iter().filter_map(RegionLinks::poll_timeout).min()
    }

    /// What is to be done, in order.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.effects.poll()
    }

    /// The next frame for a link.
    pub(crate) fn poll_transmit(&mut self, at: (usize, u16), link: LinkId) -> Option<EdgeFrame> {
        self.regions.get_mut(at.0)?.poll_transmit(at.1, link, &self.outbox)
    }

    /// The next frame for a worker, or the backend API.
    pub(crate) fn poll_client(&mut self, client: Client) -> Option<CoreFrame> {
        let frame = self.outbox.pop(client)?;
        for client in self.outbox.take_drained() {
            for links in &mut self.regions {
                links.handle_drained(client, &mut self.outbox);
            }
        }
        Some(frame)
    }

    /// True while nothing more is to be read from it.
    pub(crate) fn is_clogged(&self, client: Client) -> bool {
        self.outbox.is_clogged(client)
    }

    /// Who may have something to take: links, and workers.
    pub(crate) fn take_ready(&mut self) -> (Vec<LinkId>, ClientSet) {
        let links = self.regions.iter_mut().flat_map(RegionLinks::take_ready).collect();
        (links, self.outbox.take_ready())
    }

    /// What happened since the last call.
    pub(crate) fn take_stats(&mut self) -> Stats {
        let mut stats = Stats::default();
        for links in &mut self.regions {
            stats.add(links.take_stats());
        }
        stats
    }

    /// Every partition of every region has a link.
    #[cfg(test)]
    pub(crate) fn is_ready(&self) -> bool {
        self.regions.iter().all(RegionLinks::is_ready)
    }

    /// All of them are in reach, or were until so short a time ago that questions wait.
    pub(crate) fn is_in_reach(&self, now: Instant) -> bool {
        self.regions.iter().all(|links| links.is_in_reach(now))
    }

    /// Its regions, by number.
    pub(crate) fn regions(&self) -> &[RegionLinks] {
        &self.regions
    }

    /// Bytes that wait, for workers and for cores.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.outbox.bytes() + self.regions.iter().map(RegionLinks::held_bytes).sum::<usize>()
    }

    /// The backend API.
    pub(crate) fn api(&self) -> Client {
        self.outbox.api()
    }

    /// Dials whom there is to dial: once, at the start.
    pub(crate) fn start(&mut self, now: Instant) {
        for links in &mut self.regions {
            links.update(now, &mut self.effects);
        }
    }
}

/// Which partition a frame goes to.
pub(crate) fn partition_of_frame(frame: &EdgeFrame, partitions: u16) -> u16 {
    match (channel_of(frame), frame) {
        (Some(channel), _) => partition_of(channel, partitions),
        (None, EdgeFrame::Spend { spending, .. }) => partition_of_session(spending.session, partitions),
        (None, _) => 0,
    }
}

fn channel_of(frame: &EdgeFrame) -> Option<&ChannelName> {
    match frame {
        EdgeFrame::Subscribe { channel, .. }
        | EdgeFrame::Unsubscribe { channel }
        | EdgeFrame::History { channel, .. }
        | EdgeFrame::Presence { channel, .. }
        | EdgeFrame::Watch { channel, .. }
        | EdgeFrame::Members { channel, .. } => Some(channel),
        EdgeFrame::Publish { publish, .. } => Some(&publish.channel),
        EdgeFrame::Spend { .. } => None,
    }
}

#[cfg(test)]
mod tests;
