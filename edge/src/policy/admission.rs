//! Sans-io: who comes in, who comes back later, and when.
//!
//! A node can take so many clients a second (its *rate*). What is more than that is *deferred*: it gets a slot, a moment
//! that is its alone, and a signed ticket to show then. The experience behind the rules:
//!
//! - A place is taken or promised once ([`calendar`]): holders of slots are never crowded out by newcomers, and newcomers
//!   get every place that nobody was promised.
//! - Who would have a place within a second is *held*, not deferred: `Admit` names the moment. Without that, one burst makes
//!   everybody after it ask twice for as long as the rate is nearly reached.
//! - Some holders never come. Their share is estimated, and as many slots are given twice.
//! - Who comes late gets another slot, once; after that he is a newcomer.
//! - An answer may cost nearly what an admission costs (a browser sees no reason before TLS and HTTP are through). Such
//!   answers have a budget; beyond it, an attempt is dropped before anything is spent on it ([`Refusal::Busy`]).
//! - An address that may be forged gets neither a slot nor a long hold: it is to be validated first.
//! - Clients of a node that is being drained come with a *lease*: places that this node granted before. They are not
//!   refused, and a few attempts of the same one take one place.
//! - Where no ticket can be shown before a handshake, who may shake hands is decided first ([`Admission::handle_arrival`]),
//!   as if he were a newcomer; who comes in, once he has shown what he has.
//! - Who has a session here, and opens another connection for it, is no newcomer ([`residents`]).

mod addresses;
mod calendar;
mod expected;
mod leases;
mod residents;
mod spent;
mod ticket;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::NodeId;

use self::addresses::Addresses;
use self::calendar::{Calendar, LATE};
use self::expected::Expected;
use self::leases::{Leases, Place};
use self::residents::Residents;
use self::spent::SpentSlots;
use self::ticket::Holder;

pub use self::addresses::{AddressLimits, BadNetworkRange, NetworkRange};
pub use self::leases::{DrainId, Lease, LeaseAsk, SHARE};
pub(crate) use self::ticket::{Claims, Kind, Serial, SlotTime};
pub use self::ticket::{Issuer, SlotKeys, SlotTicket};

/// What a node can take.
#[derive(Debug, Clone, PartialEq)]
pub struct AdmissionConfig {
    /// Clients per second.
    pub rate: f64,
    /// How long an attempt may be held before it goes on.
    pub hold: Duration,
    /// Who would wait longer for a slot is sent to another region.
    pub horizon: Duration,
    /// Admitted and not finished with their handshake, held ones included. Beyond it, only leases are admitted.
    pub handshakes: usize,
    /// Refusals per second that cost a handshake.
    pub costly_answers: f64,
    /// Attempts without a ticket.
    pub addresses: AddressLimits,
    /// Used tickets that are remembered, each for about 20 s, and slots of clients that can show nothing before a handshake.
    /// Beyond it, holders count as newcomers.
    pub spent: usize,
}

impl AdmissionConfig {
    /// Defaults for a rate per second.
    pub fn for_rate(rate: f64) -> Self {
        Self {
            rate,
            hold: Duration::from_secs(1),
            horizon: Duration::from_secs(120),
            handshakes: 8_192,
            costly_answers: rate * 0.4,
            addresses: AddressLimits { rate: 50.0, burst: 500, networks: 65_536, exempt: Vec::new() },
            spent: 65_536,
        }
    }
}

/// Somebody at the door.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// From where; a slot is kept for it.
    pub address: IpAddr,
    /// True: the address is the sender's. TCP, or QUIC with a token.
    pub validated: bool,
    /// What he shows.
    pub ticket: Option<&'a SlotTicket>,
    /// True: to tell him anything costs a handshake.
    pub costly_answer: bool,
    /// True: [`Admission::handle_arrival`] counted him against his network, and let him shake hands. So that his slot is
    /// recognised by his address when he comes again.
    pub arrived: bool,
}

/// Whether somebody who could show nothing yet may shake hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// He may; [`Admission::handle_decided`] with this number once it is known what becomes of him.
    Pass(u64),
    /// Prove the address first.
    Unvalidated,
    /// Drop him without a word.
    Busy,
}

/// One decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Go on at this moment, a second from now at most; then tell the outcome by [`Admission::handle_finished`].
    Admit {
        /// When. Never before now.
        at: Instant,
    },
    /// Tell him to come back.
    Defer {
        /// When.
        retry_after: Duration,
        /// To be shown then.
        ticket: SlotTicket,
    },
    /// Turn him away.
    Refuse(Refusal),
}

/// Why somebody is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Too many from that network.
    Address {
        /// Until the next is taken.
        retry_after: Duration,
    },
    /// Prove the address first (a Retry packet).
    Unvalidated,
    /// The wait would be too long: another region.
    Elsewhere,
    /// This node is being drained: another node.
    LameDuck,
    /// Drop it without a word: an answer costs more than there is.
    Busy,
}

/// Decides for one node.
#[derive(Debug)]
pub struct Admission {
    config: AdmissionConfig,
    keys: Arc<SlotKeys>,
    issuer: Issuer,
    /// An instant, and the Unix time then, milliseconds.
    wall: (Instant, u64),
    calendar: Calendar,
    addresses: Addresses,
    /// The same for those that may be forged: whoever uses another's address uses up nothing of his.
    unproved: Addresses,
    expected: Expected,
    residents: Residents,
    /// Who was let shake hands for a place that was free, lately, by number.
    undecided: BTreeMap<u64, Instant>,
    arrivals: u64,
    spent: SpentSlots,
    leases: Leases,
    serial: u64,
    handshakes: usize,
    /// Admitted per second without a lease, over about a second.
    demand: Ewma,
    /// When the budget of costly answers is whole again.
    answers_until: Option<Instant>,
    lame_duck: bool,
}

/// What a ticket makes of its holder.
enum Standing {
    Newcomer,
    /// Comes to his slot.
    OnTime(Instant),
    TooEarly(Duration, SlotTicket),
    /// Came too late, for the first time.
    Late,
    Leased(Instant),
    /// Has come with his lease before.
    LeasedAgain,
}

impl Admission {
    /// A node that admits. `wall_ms` is Unix time at `now`.
    pub fn new(
        config: AdmissionConfig,
        keys: Arc<SlotKeys>,
        node: &NodeId,
        (now, wall_ms): (Instant, u64),
        mut rng: ChaCha8Rng,
    ) -> Self {
        let issuer = Issuer::of(node);
        Self {
            keys,
            issuer,
            wall: (now, wall_ms),
            calendar: Calendar::new(now, config.rate),
            addresses: Addresses::new(config.addresses.clone()),
            unproved: Addresses::new(config.addresses.clone()),
            expected: Expected::new(config.spent),
            residents: Residents::default(),
            undecided: BTreeMap::new(),
            arrivals: 0,
            spent: SpentSlots::new(config.spent),
            leases: Leases::new(issuer, rng.random()),
            // A node that starts again does not take tickets of its first life for those of its second.
            serial: rng.random(),
            handshakes: 0,
            demand: Ewma::new(now),
            answers_until: None,
            lame_duck: false,
            config,
        }
    }

    /// Somebody knocks.
    pub fn handle_attempt(&mut self, now: Instant, attempt: &Attempt<'_>) -> Decision {
        self.calendar.roll(now);
        match self.standing(now, attempt) {
            Standing::Leased(slot) => {
                self.calendar.end_lease(slot);
                // There is a place: they were taken out of what others get. Where a storm broke the order, he waits.
                let at = self.calendar.admit_holder(now, LEASE_HOLD).unwrap_or(now + LEASE_HOLD);
                self.admit(at)
            }
            Standing::LeasedAgain => self.admit(now),
            _ if self.lame_duck => self.refuse(now, attempt, Refusal::LameDuck),
            Standing::TooEarly(..) if attempt.costly_answer && !self.has_answer(now) => {
                Decision::Refuse(Refusal::Busy)
            }
            Standing::TooEarly(retry_after, ticket) => Decision::Defer { retry_after, ticket },
            Standing::OnTime(slot) => {
                self.calendar.show(slot);
                let free = self.handshakes < self.config.handshakes;
                match free.then(|| self.calendar.admit_holder(now, self.config.hold)).flatten() {
                    Some(at) => self.admit(at),
                    None => self.defer(now, attempt, Kind::Renewed),
                }
            }
            Standing::Late => self.admit_newcomer(now, attempt, Kind::Renewed),
            Standing::Newcomer => match self.knock(now, attempt) {
                Ok(()) => self.admit_newcomer(now, attempt, Kind::Slot),
                Err(_) if !attempt.validated => Decision::Refuse(Refusal::Unvalidated),
                Err(retry_after) => self.refuse(now, attempt, Refusal::Address { retry_after }),
            },
        }
    }

    /// Somebody knocks who can show what he has only after a handshake. He may where a place is free for a newcomer, where
    /// a slot or a lease is about now that may be his, where he may belong to a session that is here, and where an answer
    /// can be afforded.
    pub fn handle_arrival(&mut self, now: Instant, address: IpAddr, validated: bool) -> Arrival {
        self.calendar.roll(now);
        // Who is at it for longer than that is counted no more: he keeps nobody out.
        while let Some(entry) = self.undecided.first_entry()
            && now.saturating_duration_since(*entry.get()) >= self.config.hold
        {
            entry.remove();
        }
        let holder = Holder::of(address);
        if validated && (self.residents.arrive(now, holder) || self.expected.take(now, holder, (EARLY, LATE)))
        {
            return self.pass();
        }
        let attempt = Attempt { address, validated, ticket: None, costly_answer: true, arrived: false };
        if self.knock(now, &attempt).is_err() {
            return if validated { Arrival::Busy } else { Arrival::Unvalidated };
        }
        let hold = if validated { self.config.hold } else { self.config.hold / 2 };
        let (free, leased) = self.calendar.open(now, hold, EARLY);
        let free = if self.lame_duck || self.handshakes >= self.config.handshakes { 0 } else { free };
        if self.undecided.len() < free + leased {
            self.undecided.insert(self.arrivals + 1, now);
            return self.pass();
        }
        if !validated {
            return Arrival::Unvalidated;
        }
        if self.has_answer(now) { self.pass() } else { Arrival::Busy }
    }

    /// Of one who was let shake hands: it is decided what becomes of him, or he is gone.
    pub fn handle_decided(&mut self, number: u64) {
        self.undecided.remove(&number);
    }

    /// A session begins that opens further connections from there.
    pub fn handle_resident(&mut self, address: IpAddr) {
        self.residents.enter(Holder::of(address));
    }

    /// It is over.
    pub fn handle_resident_gone(&mut self, address: IpAddr) {
        self.residents.leave(Holder::of(address));
    }

    /// A handshake that was admitted is over, whatever became of it.
    pub fn handle_finished(&mut self) {
        self.handshakes = self.handshakes.saturating_sub(1);
    }

    /// The rate is another one from now on, per second.
    pub fn set_rate(&mut self, now: Instant, rate: f64) {
        self.calendar.roll(now);
        self.calendar.set_rate(rate);
    }

    /// Admits nobody any more but who was promised it by a lease. Gives the numbers of leases whose drains are to be
    /// told that they should send nobody more.
    pub fn handle_lame_duck(&mut self, lame_duck: bool) -> Vec<u32> {
        self.lame_duck = lame_duck;
        if lame_duck { self.leases.numbers() } else { Vec::new() }
    }

    /// `node`, which is being drained, asks for places. `None` where there are none now.
    pub fn handle_lease_ask(&mut self, now: Instant, node: &NodeId, ask: LeaseAsk) -> Option<Lease> {
        if self.lame_duck {
            return None;
        }
        self.calendar.roll(now);
        let first = now + LEASE_LEAD;
        let first_ms = self.unix_ms(first);
        let lease = self.leases.grant(now, node, ask, self.slack(now), (first, first_ms))?;
        for slot in self.leases.slots(lease.number) {
            self.calendar.lease(slot);
        }
        Some(lease)
    }

    /// A drain does not need the places of a lease from an index on.
    pub fn handle_lease_returned(&mut self, number: u32, from: u16) {
        for slot in self.leases.give_back(number, from) {
            self.calendar.end_lease(slot);
        }
    }

    /// Other keys from now on.
    pub fn set_keys(&mut self, keys: Arc<SlotKeys>) {
        self.keys = keys;
    }

    /// The keys in force.
    pub fn keys(&self) -> &Arc<SlotKeys> {
        &self.keys
    }

    /// Clients per second that could come beyond those that do, migrating ones not counted.
    pub fn slack(&self, now: Instant) -> f64 {
        if self.lame_duck {
            return 0.0;
        }
        (self.calendar.rate() - self.demand.at(now)).max(0.0)
    }

    /// Share of the slots that are expected to stay empty.
    pub fn no_show(&self) -> f64 {
        self.calendar.no_show()
    }

    /// Slots whose holders have not come yet and still may.
    pub fn slots(&self) -> usize {
        self.calendar.awaited()
    }

    /// Admitted and not finished.
    pub fn handshakes(&self) -> usize {
        self.handshakes
    }

    fn standing(&mut self, now: Instant, attempt: &Attempt<'_>) -> Standing {
        let unix_ms = self.unix_ms(now);
        let Some(ticket) = attempt.ticket else { return Standing::Newcomer };
        let Some(claims) = self.keys.open(ticket, attempt.address) else { return Standing::Newcomer };
        if claims.issuer != self.issuer {
            // Promised elsewhere: nothing is kept for him here.
            return Standing::Newcomer;
        }
        if claims.kind == Kind::Lease {
            return match self.leases.spend(now, &claims, Holder::of(attempt.address)) {
                Place::Taken(slot) => Standing::Leased(slot),
                Place::Again => Standing::LeasedAgain,
                Place::Used | Place::Unknown => Standing::Newcomer,
            };
        }
        let early = claims.slot.from(unix_ms);
        let late = Duration::from_millis(early.min(0).unsigned_abs());
        let early = Duration::from_millis(early.max(0).unsigned_abs());
        if early > EARLY {
            let possible = early <= self.config.horizon + EARLY;
            return if possible { Standing::TooEarly(early, *ticket) } else { Standing::Newcomer };
        }
        if late > MAX_LATE || (late > LATE && claims.kind == Kind::Renewed) {
            return Standing::Newcomer;
        }
        let until = now + early + MAX_LATE.saturating_sub(late) + EARLY;
        if !self.spent.spend(now, claims.serial.number(), until) {
            return Standing::Newcomer;
        }
        // A slot of before this process began is one that its calendar does not know.
        let slot = (now + early).checked_sub(late).unwrap_or(now);
        if late > LATE { Standing::Late } else { Standing::OnTime(slot) }
    }

    fn pass(&mut self) -> Arrival {
        self.arrivals += 1;
        Arrival::Pass(self.arrivals)
    }

    fn knock(&mut self, now: Instant, attempt: &Attempt<'_>) -> Result<(), Duration> {
        match (attempt.arrived, attempt.validated) {
            (true, _) => Ok(()),
            (false, true) => self.addresses.knock(now, attempt.address),
            (false, false) => self.unproved.knock(now, attempt.address),
        }
    }

    fn admit_newcomer(&mut self, now: Instant, attempt: &Attempt<'_>, kind: Kind) -> Decision {
        if self.handshakes < self.config.handshakes {
            // An address that may be forged comes second.
            let hold = if attempt.validated { self.config.hold } else { self.config.hold / 2 };
            if let Some(at) = self.calendar.admit(now, hold) {
                self.demand.count(now);
                return self.admit(at);
            }
        }
        if !attempt.validated {
            return Decision::Refuse(Refusal::Unvalidated);
        }
        self.defer(now, attempt, kind)
    }

    fn admit(&mut self, at: Instant) -> Decision {
        self.handshakes += 1;
        Decision::Admit { at }
    }

    fn defer(&mut self, now: Instant, attempt: &Attempt<'_>, kind: Kind) -> Decision {
        if attempt.costly_answer && !self.has_answer(now) {
            return Decision::Refuse(Refusal::Busy);
        }
        let Some(slot) = self.calendar.promise(now, LEAD, self.config.horizon) else {
            return Decision::Refuse(Refusal::Elsewhere);
        };
        if kind == Kind::Slot {
            self.demand.count(now);
        }
        if attempt.arrived {
            self.expected.promise(slot, Holder::of(attempt.address));
        }
        self.serial = self.serial.wrapping_add(1);
        let claims = Claims {
            kind,
            issuer: self.issuer,
            slot: SlotTime::at(self.unix_ms(slot)),
            serial: Serial::new(self.serial),
        };
        Decision::Defer { retry_after: slot - now, ticket: self.keys.seal(&claims, attempt.address) }
    }

    fn refuse(&mut self, now: Instant, attempt: &Attempt<'_>, refusal: Refusal) -> Decision {
        if attempt.costly_answer && !self.has_answer(now) {
            return Decision::Refuse(Refusal::Busy);
        }
        Decision::Refuse(refusal)
    }

    /// GCRA with a tenth of a second of burst.
    fn has_answer(&mut self, now: Instant) -> bool {
        let until = self.answers_until.map_or(now, |until| until.max(now));
        if self.config.costly_answers <= 0.0 || until > now + ANSWER_BURST {
            return false;
        }
        self.answers_until = Some(until + Duration::from_secs_f64(1.0 / self.config.costly_answers));
        true
    }

    fn unix_ms(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.wall.0).as_millis();
        self.wall.1.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// A rate that forgets over a second.
#[derive(Debug)]
struct Ewma {
    per_second: f64,
    at: Instant,
}

impl Ewma {
    fn new(now: Instant) -> Self {
        Self { per_second: 0.0, at: now }
    }

    fn at(&self, now: Instant) -> f64 {
        self.per_second * (-now.saturating_duration_since(self.at).as_secs_f64()).exp()
    }

    fn count(&mut self, now: Instant) {
        self.per_second = self.at(now) + 1.0;
        self.at = now;
    }
}

/// From a refusal to the first slot: a client's round trip and its timers.
const LEAD: Duration = Duration::from_millis(500);
/// From granting a lease to its first place: to the drained node, to the client, and back.
const LEASE_LEAD: Duration = Duration::from_millis(500);
/// How long who has a lease may be held.
const LEASE_HOLD: Duration = Duration::from_secs(5);
/// Clocks and networks differ: so early a holder is on time.
const EARLY: Duration = Duration::from_millis(250);
/// Later than this a ticket is worth nothing.
const MAX_LATE: Duration = Duration::from_secs(20);
const ANSWER_BURST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
