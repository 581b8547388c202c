//! Sans-io: one direction of a link.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::profile::{Loss, Profile};

/// One direction of a link: packets go in with [`Link::handle_packet`] and come out of [`Link::poll_transmit`] when their
/// time has come, or never.
///
/// A packet meets, in this order: the MTU, an outage, the loss, the queue and the rate, the delay with its jitter,
/// reordering, duplication. A lost packet takes its place in the queue and its time on the wire like any other: radio
/// loses behind the queue.
///
/// **Repeatable.** What happens to the n-th packet that is handed in is drawn from the seed and n alone. Loss, jitter,
/// duplication and reordering have a random stream each and draw the same amount for every packet, so changing one knob
/// leaves the others' decisions where they were.
#[derive(Debug)]
pub struct Link<P> {
    profile: Profile,
    loss: LossModel,
    jitter: ChaCha8Rng,
    duplicate: ChaCha8Rng,
    reorder: ChaCha8Rng,
    /// When the wire has serialised all that it accepted.
    wire_free: Option<Instant>,
    /// The latest arrival so far of a packet that keeps its order.
    last_arrival: Option<Instant>,
    /// From when until when everything is gone.
    outage: Option<(Instant, Instant)>,
    in_flight: BinaryHeap<InFlight<P>>,
    counters: Counters,
    dropped: Vec<u64>,
}

impl<P> Link<P> {
    /// A link that decides by the next numbers of `rng`.
    pub fn new(profile: Profile, mut rng: ChaCha8Rng) -> Self {
        let mut seed = [0; 32];
        rng.fill(&mut seed);
        let stream = |number| {
            let mut rng = ChaCha8Rng::from_seed(seed);
            rng.set_stream(number);
            rng
        };
        Self {
            profile,
            loss: LossModel { rng: stream(1), bad: false },
            jitter: stream(2),
            duplicate: stream(3),
            reorder: stream(4),
            wire_free: None,
            last_arrival: None,
            outage: None,
            in_flight: BinaryHeap::new(),
            counters: Counters::default(),
            dropped: Vec::new(),
        }
    }

    /// A packet of `len` bytes enters.
    pub fn handle_packet(&mut self, now: Instant, len: usize, packet: P)
    where
        P: Clone,
    {
        let index = self.counters.offered;
        self.counters.offered += 1;
        self.counters.offered_bytes += len as u64;
        // All draws happen for every packet, whatever becomes of it.
        let lost = self.loss.step(self.profile.loss);
        let jitter = self.profile.jitter.mul_f64(self.jitter.random::<f64>());
        let twice = self.duplicate.random::<f64>() < self.profile.duplicate;
        let hold = self.reorder.random::<f64>();
        let hold = self.profile.reorder.filter(|reorder| hold < reorder.probability);

        if len > self.profile.mtu {
            self.counters.too_big += 1;
            return;
        }
        if self.in_outage(now) {
            self.counters.outage += 1;
            return;
        }
        let sent = self.serialise(now, len);
        if lost {
            self.counters.lost += 1;
            if self.dropped.len() < RECORDED {
                self.dropped.push(index);
            }
            return;
        }
        let Some(sent) = sent else {
            self.counters.queue_full += 1;
            return;
        };
        let mut due = sent + self.profile.delay + jitter;
        if let Some(reorder) = hold {
            due += reorder.extra;
            self.counters.held_back += 1;
        } else {
            if !self.profile.jitter_reorders {
                due = self.last_arrival.map_or(due, |last| due.max(last));
            }
            self.last_arrival = Some(self.last_arrival.map_or(due, |last| due.max(last)));
        }
        if twice && self.in_flight.len() < IN_FLIGHT {
            self.counters.duplicated += 1;
            self.in_flight.push(InFlight { due, index, copy: true, len, packet: packet.clone() });
        }
        self.in_flight.push(InFlight { due, index, copy: false, len, packet });
    }

    /// When [`Link::poll_transmit`] has the next packet.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.in_flight.peek().map(|next| next.due)
    }

    /// A packet that leaves the link.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<P> {
        while self.in_flight.peek().is_some_and(|next| next.due <= now) {
            let next = self.in_flight.pop()?;
            if self.in_outage(next.due) {
                self.counters.outage += 1;
                continue;
            }
            self.counters.delivered += 1;
            self.counters.delivered_bytes += next.len as u64;
            let late = now - next.due;
            self.counters.late += u64::from(late > LATE);
            self.counters.latest = self.counters.latest.max(late);
            return Some(next.packet);
        }
        None
    }

    /// Everything that enters, or is due to leave, within `duration` from `now` is gone: the elevator, the tunnel.
    pub fn outage(&mut self, now: Instant, duration: Duration) {
        self.outage = Some((now, now + duration));
    }

    /// Behaves differently from now on. What is in flight keeps its time; the random streams run on.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
    }

    /// How it behaves.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The indices, from 0, of the packets that the loss model dropped: the first 65,536 of them.
    pub fn dropped(&self) -> &[u64] {
        &self.dropped
    }

    fn in_outage(&self, at: Instant) -> bool {
        self.outage.is_some_and(|(from, until)| from <= at && at < until)
    }

    /// Puts the packet on the wire behind those before it; says when its last bit has left, or that the queue is full.
    fn serialise(&mut self, now: Instant, len: usize) -> Option<Instant> {
        if self.in_flight.len() >= IN_FLIGHT {
            return None;
        }
        let Some(rate) = self.profile.rate else { return Some(now) };
        let start = self.wire_free.map_or(now, |free| free.max(now));
        // What waits is what the wire still has to send: no list of it is needed.
        let waiting = (start - now).as_nanos() * u128::from(rate) / NANOS_PER_BYTE_AT_1_BIT;
        if waiting + len as u128 > self.profile.queue as u128 {
            return None;
        }
        let nanos = len as u128 * NANOS_PER_BYTE_AT_1_BIT / u128::from(rate.max(1));
        let sent = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.wire_free = Some(sent);
        Some(sent)
    }
}

/// What happened on a link, packets unless it says bytes. `offered` = `too_big` + `outage` (at entry) + `lost` +
/// `queue_full` + what was delivered or is in flight, without duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Handed in.
    pub offered: u64,
    /// Handed in, bytes.
    pub offered_bytes: u64,
    /// Handed out, duplicates included.
    pub delivered: u64,
    /// Handed out, bytes.
    pub delivered_bytes: u64,
    /// Dropped by the loss model.
    pub lost: u64,
    /// Dropped because the queue was full.
    pub queue_full: u64,
    /// Dropped because of the MTU.
    pub too_big: u64,
    /// Dropped in an outage.
    pub outage: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Held back so that others overtake.
    pub held_back: u64,
    /// Handed out more than 1 ms after their time: the driver was late, the figures of such a run are worth less.
    pub late: u64,
    /// The latest of them.
    pub latest: Duration,
}

/// The state of the Gilbert–Elliott chain.
#[derive(Debug)]
struct LossModel {
    rng: ChaCha8Rng,
    bad: bool,
}

impl LossModel {
    /// Whether the next packet is lost. Draws twice for every packet, so that the n-th decision is always the same.
    fn step(&mut self, loss: Loss) -> bool {
        let (change, drop) = (self.rng.random::<f64>(), self.rng.random::<f64>());
        match loss {
            Loss::None => {
                self.bad = false;
                false
            }
            Loss::Uniform(probability) => {
                self.bad = false;
                drop < probability
            }
            Loss::GilbertElliott { p, r, good, bad } => {
                if change < if self.bad { r } else { p } {
                    self.bad = !self.bad;
                }
                drop < if self.bad { bad } else { good }
            }
        }
    }
}

#[derive(Debug)]
struct InFlight<P> {
    due: Instant,
    index: u64,
    copy: bool,
    len: usize,
    packet: P,
}

impl<P> InFlight<P> {
    fn key(&self) -> (Instant, u64, bool) {
        (self.due, self.index, self.copy)
    }
}

/// Earliest first out of a heap that gives its greatest.
impl<P> Ord for InFlight<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl<P> PartialOrd for InFlight<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> PartialEq for InFlight<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<P> Eq for InFlight<P> {}

const NANOS_PER_BYTE_AT_1_BIT: u128 = 8_000_000_000;
/// Packets on the way at most, whatever the rate; more count as a full queue. 350 ms at 1 Gbit/s of full packets fit.
const IN_FLIGHT: usize = 65_536;
const RECORDED: usize = 65_536;
const LATE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;
