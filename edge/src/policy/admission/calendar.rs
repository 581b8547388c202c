//! Sans-io: who is admitted when. The near future in pieces of 50 ms, each with as many places as the rate gives.
//!
//! A place is taken once: by who was let in, or by who was promised it. That makes it impossible that a newcomer takes what
//! a holder of a slot relies on, and at once lets newcomers have every place that nobody was promised. Any second touches
//! 21 pieces at most, so no second admits more than 1.05 of the rate (and one, for what rounding leaves over).

use std::time::{Duration, Instant};

/// Places of the near future.
#[derive(Debug)]
pub(super) struct Calendar {
    origin: Instant,
    /// Per second.
    rate: f64,
    ring: Vec<Piece>,
    /// The oldest piece in the ring, by number.
    first: u64,
    /// Slots are given from here on.
    frontier: u64,
    /// Share of the slots that nobody came to, smoothed.
    no_show: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Piece {
    /// Let in.
    admitted: u32,
    /// Slots whose holders have not come yet.
    awaited: u32,
    /// Leased places, not come yet.
    leased: u32,
    /// All slots given.
    slots: u32,
    /// Holders who came, for the estimate.
    shown: u32,
}

impl Calendar {
    pub(super) fn new(now: Instant, rate: f64) -> Self {
        Self { origin: now, rate, ring: vec![Piece::default(); PIECES], first: 0, frontier: 0, no_show: 0.0 }
    }

    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    pub(super) fn set_rate(&mut self, rate: f64) {
        self.rate = rate;
    }

    /// Share of the slots that are expected to stay empty.
    pub(super) fn no_show(&self) -> f64 {
        self.no_show.min(MAX_NO_SHOW)
    }

    /// Forgets pieces that no holder can come to any more, and learns from them.
    pub(super) fn roll(&mut self, now: Instant) {
        let keep = self.number(now).saturating_sub(LATE.as_nanos().div_ceil(PIECE.as_nanos()) as u64);
        if keep.saturating_sub(self.first) > PIECES as u64 {
            // Nothing happened for minutes: all is over.
            self.ring.fill(Piece::default());
            self.first = keep;
        }
        while self.first < keep {
            let piece = std::mem::take(self.piece_mut(self.first));
            if piece.slots > 0 {
                let missing = 1.0 - f64::from(piece.shown) / f64::from(piece.slots);
                let weight = (f64::from(piece.slots) / (self.rate * LEARNING.as_secs_f64())).min(1.0);
                self.no_show += (missing - self.no_show) * weight;
            }
            self.first += 1;
        }
    }

    /// When to let in whoever has nothing to show: the first place that nobody has or was promised, within `hold`.
    pub(super) fn admit(&mut self, now: Instant, hold: Duration) -> Option<Instant> {
        self.take(now, hold, |piece| piece.admitted + piece.awaited + piece.leased)
    }

    /// When to let in who was promised a place: the first where nobody else was let in.
    pub(super) fn admit_holder(&mut self, now: Instant, hold: Duration) -> Option<Instant> {
        self.take(now, hold, |piece| piece.admitted)
    }

    /// Places within `hold` that nobody has or was promised, and leased ones whose holders may come now, `early` or late.
    pub(super) fn open(&self, now: Instant, hold: Duration, early: Duration) -> (usize, usize) {
        let (current, last) = (self.number(now), self.number(now + hold));
        let mut free = 0;
        for number in current..=last.min(self.first + PIECES as u64 - 1) {
            let piece = self.piece(number);
            let taken = piece.admitted + piece.awaited + piece.leased;
            free += self.places(number).saturating_sub(taken) as usize;
        }
        let leased = (self.first..=self.number(now + early)).map(|number| self.piece(number).leased as usize);
        (free, leased.sum())
    }

    /// Slots whose holders have not come yet and still may.
    pub(super) fn awaited(&self) -> usize {
        self.ring.iter().map(|piece| piece.awaited as usize).sum()
    }

    /// A promised place, not before `lead` has passed and not after `horizon`.
    pub(super) fn promise(&mut self, now: Instant, lead: Duration, horizon: Duration) -> Option<Instant> {
        let show = 1.0 - self.no_show();
        let last = self.number(now + horizon).min(self.first + PIECES as u64 - 1);
        self.frontier = self.frontier.max(self.number(now + lead));
        while self.frontier <= last {
            let number = self.frontier;
            let places = f64::from(self.places(number));
            let piece = self.piece_mut(number);
            let certain = f64::from(piece.admitted + piece.leased);
            if certain + f64::from(piece.awaited + 1) * show <= places {
                piece.awaited += 1;
                piece.slots += 1;
                let share = (certain + f64::from(piece.awaited - 1) * show) / places;
                // Tickets say it in milliseconds: what rounding takes away must not lead to another piece.
                let inside = PIECE.saturating_sub(ROUNDING * 2).mul_f64(share.min(1.0));
                return Some(self.start(number) + ROUNDING + inside);
            }
            self.frontier += 1;
        }
        None
    }

    /// The holder of a slot at `slot` came.
    pub(super) fn show(&mut self, slot: Instant) {
        if let Some(piece) = self.known(slot) {
            piece.awaited = piece.awaited.saturating_sub(1);
            piece.shown = (piece.shown + 1).min(piece.slots);
        }
    }

    /// Keeps a place for a lease.
    pub(super) fn lease(&mut self, slot: Instant) {
        if let Some(piece) = self.known(slot) {
            piece.leased += 1;
        }
    }

    /// It was used, or given back.
    pub(super) fn end_lease(&mut self, slot: Instant) {
        if let Some(piece) = self.known(slot) {
            piece.leased = piece.leased.saturating_sub(1);
        }
    }

    fn take(&mut self, now: Instant, hold: Duration, taken: impl Fn(&Piece) -> u32) -> Option<Instant> {
        let (first, last) = (self.number(now), self.number(now + hold));
        for number in first..=last.min(self.first + PIECES as u64 - 1) {
            let places = self.places(number);
            let start = self.start(number);
            let piece = self.piece_mut(number);
            if taken(piece) < places {
                // Not all of them at the first moment of it.
                let at = start + PIECE.mul_f64(f64::from(piece.admitted) / f64::from(places));
                piece.admitted += 1;
                return Some(at.max(now));
            }
        }
        None
    }

    /// What the rate gives this piece; fractions add up over the pieces.
    fn places(&self, number: u64) -> u32 {
        let each = self.rate * PIECE.as_secs_f64();
        let up_to = |number: u64| (number as f64 * each).floor();
        (up_to(number + 1) - up_to(number)) as u32
    }

    fn number(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.origin).as_nanos() / PIECE.as_nanos()) as u64
    }

    fn start(&self, number: u64) -> Instant {
        self.origin + Duration::from_nanos(number.saturating_mul(PIECE.as_nanos() as u64))
    }

    fn known(&mut self, at: Instant) -> Option<&mut Piece> {
        let number = self.number(at);
        let kept = self.first..self.first + PIECES as u64;
        kept.contains(&number).then(|| self.piece_mut(number))
    }

    fn piece(&self, number: u64) -> Piece {
        self.ring[(number % PIECES as u64) as usize]
    }

    fn piece_mut(&mut self, number: u64) -> &mut Piece {
        &mut self.ring[(number % PIECES as u64) as usize]
    }
}

/// How late the holder of a slot may come.
pub(super) const LATE: Duration = Duration::from_secs(2);
const PIECE: Duration = Duration::from_millis(50);
const ROUNDING: Duration = Duration::from_millis(2);
/// Two minutes, and some seconds for those who are late.
const PIECES: usize = 2_560;
/// No more slots than this are given twice.
const MAX_NO_SHOW: f64 = 0.3;
/// The estimate forgets over as many slots as the rate gives in this time.
const LEARNING: Duration = Duration::from_secs(10);
