//! Sans-io: which publications a client on a lossy path is sent again before they can be known to be lost.
//!
//! A lost packet is noticed a round trip later, and everything of its channel waits for it. Where a path loses packets
//! without being full, small publications are therefore repeated twice in datagrams, a sixth and a third of a round trip
//! later: so far apart that one burst of losses seldom takes all three. The stream remains the reliable way; the client
//! drops what it has (ADR 0012).
//!
//! A connection whose path loses nothing pays for a counter, and for a look at the path every [`LOOK_EVERY`] deliveries.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tidegate_transport::PathStats;

/// Repeats towards one client.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    /// Deliveries since the path was looked at.
    delivered: u32,
    /// `None` before the first look. Boxed: an idle connection holds none.
    path: Option<Box<Path>>,
}

/// Publications to be sent again, in one datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Repeat {
    /// Whole frames in the connection's framing.
    pub(crate) datagram: Bytes,
    /// How many deliveries it repeats.
    pub(crate) items: u64,
}

impl Repeats {
    /// Notes a delivery to a subscription that the connection has just taken. True where the path is to be looked at:
    /// [`Repeats::handle_path`]. `repeat`: how it is repeated.
    pub(crate) fn handle_sent(
        &mut self,
        now: impl FnOnce() -> Instant,
        slot: u32,
        bytes: &Bytes,
        repeat: impl FnOnce() -> Bytes,
    ) -> bool {
        if let Some(Path { ring: Some(ring), .. }) = self.path.as_deref_mut() {
            ring.push(now(), slot, bytes, repeat);
        }
        self.delivered += 1;
        let look = self.delivered >= LOOK_EVERY;
        if look {
            self.delivered = 0;
        }
        look
    }

    /// Takes what the transport knows of the path, and decides whether to repeat.
    pub(crate) fn handle_path(&mut self, now: Instant, stats: PathStats) {
        self.path.get_or_insert_default().update(now, stats);
    }

    /// The connection cannot send what it has: what waits to be repeated is given up.
    pub(crate) fn handle_blocked(&mut self) {
        if let Some(ring) = self.ring() {
            ring.clear();
        }
    }

    /// A subscription ended, or its numbering did.
    pub(crate) fn drop_lane(&mut self, slot: u32) {
        if let Some(ring) = self.ring() {
            ring.drop_lane(slot);
        }
    }

    /// When the next repeat is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.path.as_ref()?.ring.as_ref()?.due_at()
    }

    /// The next datagram that is due.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Repeat> {
        self.ring()?.poll(now)
    }

    fn ring(&mut self) -> Option<&mut Ring> {
        self.path.as_deref_mut()?.ring.as_mut()
    }
}

/// What is known of the path. Counts fade: what is older than some two thousand packets hardly counts.
#[derive(Debug, Default)]
struct Path {
    /// In thousandths of a packet, so that a single loss fades too.
    sent: u64,
    lost: u64,
    /// As the transport counts them, at the last look.
    sent_before: u64,
    lost_before: u64,
    /// While repeating.
    ring: Option<Ring>,
}

impl Path {
    fn update(&mut self, now: Instant, stats: PathStats) {
        if stats.sent_packets < self.sent_before || stats.lost_packets < self.lost_before {
            // The client moved: another path, counted from zero.
            *self = Self::default();
        }
        self.sent = self.sent.saturating_add((stats.sent_packets - self.sent_before).saturating_mul(1_000));
        self.lost = self.lost.saturating_add((stats.lost_packets - self.lost_before).saturating_mul(1_000));
        (self.sent_before, self.lost_before) = (stats.sent_packets, stats.lost_packets);
        while self.sent > REMEMBERED {
            self.sent /= 2;
            self.lost /= 2;
        }
        if !self.is_lossy() || stats.rtt < LEAST_RTT || stats.datagram_size == 0 {
            self.ring = None;
            return;
        }
        self.ring.get_or_insert_with(|| Ring::new(now)).adapt(now, stats);
    }

    /// With hysteresis: what was lost a while ago fades before the repeats end.
    fn is_lossy(&self) -> bool {
        let least = if self.ring.is_some() { LEAST_LOSS_TO_GO_ON } else { LEAST_LOSS };
        let judged = self.sent.max(LEAST_SENT) / 1_000;
        (judged * least..=judged * MOST_LOSS).contains(&self.lost)
    }
}

/// What was sent and may be due again, oldest first.
#[derive(Debug)]
struct Ring {
    items: VecDeque<Item>,
    bytes: usize,
    /// By repeat, the index of the first item that has not had it: no higher for the later repeat.
    next: [usize; REPEATS],
    /// By repeat, how long after the item was sent.
    delays: [Duration; REPEATS],
    datagram_size: usize,
    /// Bytes that may be sent now, at most `allowance_bound`; so many come back each `rtt`. What is delivered the first
    /// time counts, so that repeats take of the congestion window what it leaves, and not all of that.
    allowance: u64,
    allowance_bound: u64,
    rtt: Duration,
    refilled: Instant,
}

#[derive(Debug)]
struct Item {
    sent: Instant,
    slot: u32,
    bytes: Bytes,
}

impl Ring {
    fn new(now: Instant) -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            next: [0; REPEATS],
            delays: [Duration::ZERO; REPEATS],
            datagram_size: 0,
            allowance: 0,
            allowance_bound: 0,
            rtt: Duration::ZERO,
            refilled: now,
        }
    }

    fn adapt(&mut self, now: Instant, stats: PathStats) {
        let first = self.allowance_bound == 0;
        self.refill(now);
        self.rtt = stats.rtt;
        self.datagram_size = stats.datagram_size;
        self.allowance_bound = stats.congestion_window / 4 * ALLOWED_QUARTERS;
        self.allowance = if first { self.allowance_bound } else { self.allowance.min(self.allowance_bound) };
        for (delay, (share, least, most)) in self.delays.iter_mut().zip(DELAYS) {
            *delay = (stats.rtt / share).clamp(least, most);
        }
    }

    fn push(&mut self, now: Instant, slot: u32, bytes: &Bytes, repeat: impl FnOnce() -> Bytes) {
        self.refill(now);
        self.allowance = self.allowance.saturating_sub((bytes.len() + OVERHEAD) as u64);
        if bytes.len() > LARGEST.min(self.datagram_size) {
            return;
        }
        let bytes = repeat();
        while self.items.len() >= MAX_ITEMS || self.bytes + bytes.len() > MAX_BYTES {
            self.pop();
        }
        self.bytes += bytes.len();
        self.items.push_back(Item { sent: now, slot, bytes });
    }

    /// The oldest goes, repeated or not.
    fn pop(&mut self) {
        if let Some(item) = self.items.pop_front() {
            self.bytes -= item.bytes.len();
            for next in &mut self.next {
                *next = next.saturating_sub(1);
            }
        }
    }

    fn clear(&mut self) {
        self.items.clear();
        self.bytes = 0;
        self.next = [0; REPEATS];
    }

    fn drop_lane(&mut self, slot: u32) {
        let gone = |items: usize, ring: &VecDeque<Item>| {
            ring.iter().take(items).filter(|item| item.slot == slot).count()
        };
        self.next = self.next.map(|next| next - gone(next, &self.items));
        self.items.retain(|item| item.slot != slot);
        self.bytes = self.items.iter().map(|item| item.bytes.len()).sum();
    }

    fn due_at(&self) -> Option<Instant> {
        let due = |(next, delay): (&usize, &Duration)| self.items.get(*next).map(|item| item.sent + *delay);
        self.next.iter().zip(&self.delays).filter_map(due).min()
    }

    fn poll(&mut self, now: Instant) -> Option<Repeat> {
        if self.due_at()? > now {
            return None;
        }
        self.refill(now);
        let mut datagram = BytesMut::new();
        let mut items = 0;
        // The last chance first. What is due soon goes with it: one datagram instead of two.
        for repeat in (0..REPEATS).rev() {
            if let Some(later) = self.next.get(repeat + 1) {
                // Late itself, it has just had the later one.
                self.next[repeat] = self.next[repeat].max(*later);
            }
            while let Some(item) = self.items.get(self.next[repeat])
                && item.sent + self.delays[repeat] <= now + COMBINED
            {
                let length = item.bytes.len();
                // While it is short it is kept for the last.
                let reserve = if repeat + 1 < REPEATS { self.allowance_bound / 2 } else { 0 };
                if length <= self.datagram_size && (length + OVERHEAD) as u64 + reserve <= self.allowance {
                    if datagram.len() + length > self.datagram_size {
                        break;
                    }
                    datagram.put_slice(&item.bytes);
                    self.allowance -= length as u64;
                    items += 1;
                }
                // Where the allowance is spent, or datagrams have become smaller, this one is skipped.
                self.next[repeat] += 1;
            }
        }
        while self.next[REPEATS - 1] > 0 {
            self.pop();
        }
        self.allowance = self.allowance.saturating_sub(if items > 0 { OVERHEAD as u64 } else { 0 });
        (items > 0).then(|| Repeat { datagram: datagram.freeze(), items })
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled).min(self.rtt);
        if self.rtt.is_zero() {
            self.refilled = now;
            return;
        }
        let refill = u128::from(self.allowance_bound) * passed.as_nanos() / self.rtt.as_nanos();
        // A part of a byte is not lost: it comes with the next.
        if refill > 0 {
            let refill = u64::try_from(refill).unwrap_or(u64::MAX);
            self.allowance = self.allowance.saturating_add(refill).min(self.allowance_bound);
            self.refilled = now;
        }
    }
}

/// How often a publication is repeated.
const REPEATS: usize = 2;
/// By repeat: the share of the round trip, at least, and at most.
const DELAYS: [(u32, Duration, Duration); REPEATS] = [
    (6, Duration::from_millis(15), Duration::from_millis(60)),
    (3, Duration::from_millis(30), Duration::from_millis(120)),
];
/// What is due within so much goes into the same datagram. Longer would bring the repeats nearer to the burst that took
/// the original.
const COMBINED: Duration = Duration::from_millis(5);
/// Larger deliveries are not repeated, bytes.
const LARGEST: usize = 512;
/// Bounds of the ring. At the bound the oldest goes unrepeated.
const MAX_ITEMS: usize = 64;
const MAX_BYTES: usize = 32 << 10;
/// The part of the congestion window that may be used in a round trip, for repeats to be added: a full one would make
/// everything wait.
const ALLOWED_QUARTERS: u64 = 3;
/// Of a packet, beside what is delivered.
const OVERHEAD: usize = 40;
/// Deliveries between two looks at the path: the transport's statistics take a lock.
const LOOK_EVERY: u32 = 16;
/// What the share of losses is taken over at most, thousandths of packets.
const REMEMBERED: u64 = 2_048_000;
/// Fewer are judged as if they were so many, thousandths of packets.
const LEAST_SENT: u64 = 200_000;
/// Losses in a thousand at which repeats begin.
const LEAST_LOSS: u64 = 5;
/// Losses in a thousand below which they end.
const LEAST_LOSS_TO_GO_ON: u64 = 2;
/// Losses in a thousand above which the path is full, and not merely bad.
const MOST_LOSS: u64 = 150;
/// On a shorter round trip a retransmission is quick enough.
const LEAST_RTT: Duration = Duration::from_millis(40);

#[cfg(test)]
mod tests;
