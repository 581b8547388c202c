//! Sans-io: places that a node keeps for the clients of another one that is being drained.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;

use super::ticket::{Claims, Holder, Issuer, SlotTime};

/// A drain. Of two at the same time, the one with the lower number goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrainId(pub u64);

/// Places for clients that are asked to move, one after the other. Whoever shows a ticket of one is not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// For which drain.
    pub drain: DrainId,
    /// Who grants it.
    pub issuer: Issuer,
    /// Tells the leases of one node apart.
    pub number: u32,
    /// The first place, milliseconds of Unix time.
    pub first_ms: u64,
    /// From one place to the next, microseconds.
    pub spacing_us: u32,
    /// Places.
    pub count: u16,
}

impl Lease {
    /// A place is honoured for so long after its time: clients of lossy networks take several tries.
    pub const GRACE: Duration = Duration::from_secs(10);

    /// When the `index`-th place is, milliseconds of Unix time.
    pub fn slot_ms(&self, index: u16) -> u64 {
        self.first_ms + u64::from(index) * u64::from(self.spacing_us) / 1000
    }
}

/// Leases of one node, and how many it may still grant.
#[derive(Debug)]
pub(super) struct Leases {
    issuer: Issuer,
    next: u32,
    held: BTreeMap<u32, Held>,
    /// By when they end.
    ends: VecDeque<(Instant, u32)>,
    /// Places that may be granted now.
    tokens: f64,
    filled_at: Option<Instant>,
    /// What each node asked for lately and did not get.
    asking: Vec<Asking>,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    first: Instant,
    spacing: Duration,
    uses: Vec<Use>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    None,
    /// By somebody of there, so many times.
    By(Holder, u8),
    GivenBack,
}

#[derive(Debug)]
struct Asking {
    drain: DrainId,
    node: NodeId,
    at: Instant,
    unmet: u32,
    urgent: bool,
    /// When it was given something last.
    granted: Option<Instant>,
}

/// A place of a lease that a ticket names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Free until now: its time.
    Taken(Instant),
    /// Its holder tries again, perhaps by another transport.
    Again,
    /// Somebody came with it before.
    Used,
    /// Not ours, or over.
    Unknown,
}

impl Leases {
    /// `first`: any number, so that a process does not take tickets of the one before it for its own.
    pub(super) fn new(issuer: Issuer, first: u32) -> Self {
        Self {
            issuer,
            next: first % LAST_NUMBER + 1,
            held: BTreeMap::new(),
            ends: VecDeque::new(),
            tokens: 0.0,
            filled_at: None,
            asking: Vec::new(),
        }
    }

    /// Grants `node` up to `want` places, never more than a share of `slack` (per second) since the last time, whoever asks.
    /// Nodes of one drain have their turns. The first place is at `first`, `first_ms` in Unix time; they lie within [`PERIOD`].
    pub(super) fn grant(
        &mut self,
        now: Instant,
        node: &NodeId,
        ask: LeaseAsk,
        slack: f64,
        (first, first_ms): (Instant, u64),
    ) -> Option<Lease> {
        self.expire(now);
        if self.held.len() >= MAX_LEASES {
            return None;
        }
        let before = self.asking.iter().position(|one| one.drain == ask.drain && one.node == *node);
        let granted = before.and_then(|at| self.asking.swap_remove(at).granted);
        if self.asking.len() >= MAX_ASKING {
            return None;
        }
        let urgent = ask.urgent || self.asking.iter().any(|one| one.urgent);
        let rate = slack * if urgent { 1.0 } else { SHARE };
        let since = self.filled_at.map_or(PERIOD, |at| now.saturating_duration_since(at).min(PERIOD * 2));
        self.filled_at = Some(now);
        self.tokens = (self.tokens + rate * since.as_secs_f64()).min(rate * (PERIOD * 2).as_secs_f64());
        let unmet = |before: &dyn Fn(&Asking) -> bool| {
            let of = self.asking.iter().filter(|one| before(one));
            of.fold(0_u32, |sum, one| sum.saturating_add(one.unmet))
        };
        let first_in_line = unmet(&|one| one.drain < ask.drain);
        let waits_longer = unmet(&|one| one.drain == ask.drain && one.granted < granted) > 0;
        let free = if waits_longer { 0.0 } else { (self.tokens - f64::from(first_in_line)).max(0.0).floor() };
        let count = free.min(f64::from(ask.want)).min(f64::from(u16::MAX)) as u16;
        self.asking.push(Asking {
            drain: ask.drain,
            node: node.clone(),
            at: now,
            unmet: ask.want - u32::from(count),
            urgent: ask.urgent,
            granted: if count > 0 { Some(now) } else { granted },
        });
        if count == 0 {
            return None;
        }
        self.tokens -= f64::from(count);
        let number = self.next;
        self.next = if number >= LAST_NUMBER { 1 } else { number + 1 };
        let spacing = PERIOD / u32::from(count);
        let lease = Lease {
            drain: ask.drain,
            issuer: self.issuer,
            number,
            first_ms,
            spacing_us: u32::try_from(spacing.as_micros()).unwrap_or(u32::MAX),
            count,
        };
        let uses = vec![Use::None; count.into()];
        self.held.insert(number, Held { lease: lease.clone(), first, spacing, uses });
        self.ends.push_back((first + PERIOD + Lease::GRACE, number));
        Some(lease)
    }

    /// Somebody shows a ticket of a place.
    pub(super) fn spend(&mut self, now: Instant, claims: &Claims, holder: Holder) -> Place {
        self.expire(now);
        let (number, index) = claims.serial.lease();
        let Some(held) = self.held.get_mut(&number) else { return Place::Unknown };
        if claims.slot != SlotTime::at(held.lease.slot_ms(index)) {
            return Place::Unknown;
        }
        let Some(of) = held.uses.get_mut(usize::from(index)) else { return Place::Unknown };
        match of {
            Use::None => {
                *of = Use::By(holder, 1);
                Place::Taken(held.slot(index))
            }
            Use::By(by, times) if *by == holder && *times < MAX_TRIES => {
                *times += 1;
                Place::Again
            }
            Use::By(..) | Use::GivenBack => Place::Used,
        }
    }

    /// Places from `from` on are not needed: those that nobody used.
    pub(super) fn give_back(&mut self, number: u32, from: u16) -> Vec<Instant> {
        let Some(held) = self.held.get_mut(&number) else { return Vec::new() };
        let free: Vec<u16> = (from..)
            .zip(held.uses.iter().skip(from.into()))
            .filter(|(_, of)| **of == Use::None)
            .map(|(index, _)| index)
            .collect();
        for index in &free {
            held.uses[usize::from(*index)] = Use::GivenBack;
        }
        free.into_iter().map(|index| held.slot(index)).collect()
    }

    /// The times of a lease's places.
    pub(super) fn slots(&self, number: u32) -> impl Iterator<Item = Instant> + '_ {
        let held = self.held.get(&number);
        held.into_iter().flat_map(|held| (0..).zip(&held.uses).map(|(index, _)| held.slot(index)))
    }

    /// All that are in force.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.held.keys().copied().collect()
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(end, number)) = self.ends.front()
            && end <= now
        {
            self.ends.pop_front();
            self.held.remove(&number);
        }
        self.asking.retain(|one| now.saturating_duration_since(one.at) < PERIOD * 3);
    }
}

/// What a node that is being drained asks of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseAsk {
    /// Which drain.
    pub drain: DrainId,
    /// Places that it could use now.
    pub want: u32,
    /// It will not be done in time: all the slack, and not only a share of it.
    pub urgent: bool,
}

impl Held {
    fn slot(&self, index: u16) -> Instant {
        self.first + self.spacing * u32::from(index)
    }
}

/// The share of a node's slack that drains get.
pub const SHARE: f64 = 0.8;
/// How often a drain asks.
pub(super) const PERIOD: Duration = Duration::from_millis(250);
/// A client comes by several transports at once, and again where a handshake is lost.
const MAX_TRIES: u8 = 4;
/// They live for some ten seconds, and each drain gets four a second.
const MAX_LEASES: usize = 1_024;
/// More nodes than a fleet drains at the same time.
const MAX_ASKING: usize = 256;
/// Tickets have 24 bits for it.
const LAST_NUMBER: u32 = (1 << 24) - 1;
