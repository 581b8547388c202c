//! What goes wrong, in which round, to whom and for how long: by a seed.

use std::fmt;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// A core is killed, and started again later.
    KillCore,
    /// A NATS server is killed, and started again later.
    KillNats,
    /// A core is stopped (SIGSTOP) for longer than its lease, and goes on.
    PauseCore,
    /// A core cannot reach the engine: what it sends arrives late.
    CutEngine,
    /// An edge and a core cannot reach each other.
    CutLink,
    /// All links between edges and cores lose packets.
    LoseLinks,
    /// All processes are killed at once, and started again.
    RestartAll,
    /// A core is told to end (SIGTERM), hands over what it owns, and joins again.
    HandOver,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::KillCore,
        Self::KillNats,
        Self::PauseCore,
        Self::CutEngine,
        Self::CutLink,
        Self::LoseLinks,
        Self::RestartAll,
        Self::HandOver,
    ];

    /// Within what time delivery is to go on at p99 of channels, where there is such a target.
    pub fn target(self) -> Option<Duration> {
        match self {
            Self::KillCore => Some(Duration::from_secs(5)),
            Self::KillNats => Some(Duration::from_secs(10)),
            _ => None,
        }
    }

    /// How long it lasts, seconds. What needs no time to work is ended after a while all the same.
    fn seconds(self) -> (f64, f64) {
        match self {
            Self::KillCore | Self::KillNats => (1.0, 6.0),
            // Above a lease of three seconds: somebody else has taken over by then.
            Self::PauseCore => (4.0, 8.0),
            // From less than a heartbeat to more than a lease.
            Self::CutEngine | Self::CutLink => (0.5, 8.0),
            Self::LoseLinks => (3.0, 8.0),
            Self::RestartAll | Self::HandOver => (0.0, 1.0),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// To which core, or NATS server: a number to be taken modulo how many there are.
    pub victim: usize,
    /// To which edge, likewise.
    pub edge: usize,
    /// Meanwhile all links lose packets.
    pub with_loss: bool,
    /// For how long.
    pub lasts: Duration,
    /// Under load before it.
    pub steady: Duration,
    /// Decides which packets are lost.
    pub seed: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, victim, edge, lasts, .. } = self;
        let (core, server, lasts) = (victim % 3 + 1, victim % 3, lasts.as_secs_f64());
        match kind {
            FaultKind::KillCore => write!(f, "kill -9 of core-{core}"),
            FaultKind::KillNats => write!(f, "kill -9 of NATS n{server}"),
            FaultKind::PauseCore => write!(f, "core-{core} paused for {lasts:.1} s"),
            FaultKind::CutEngine => write!(f, "core-{core} without engine for {lasts:.1} s"),
            FaultKind::CutLink => write!(f, "core-{core} without edge {} for {lasts:.1} s", edge % 2),
            FaultKind::LoseLinks => write!(f, "links lose 5 % for {lasts:.1} s"),
            FaultKind::RestartAll => write!(f, "everything killed and started"),
            FaultKind::HandOver => write!(f, "core-{core} leaves and joins"),
        }?;
        if self.with_loss { write!(f, ", 5 % loss") } else { Ok(()) }
    }
}

/// Faults without end. Of each kind as many as of every other, in a random order.
#[derive(Debug)]
pub struct Schedule {
    rng: ChaCha8Rng,
    kinds: Vec<FaultKind>,
    bag: Vec<FaultKind>,
    quick: bool,
}

impl Schedule {
    /// The same for the same arguments. `quick`: everything as short as it may be.
    pub fn new(seed: u64, kinds: &[FaultKind], quick: bool) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), kinds: kinds.to_vec(), bag: Vec::new(), quick }
    }
}

impl Iterator for Schedule {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        if self.bag.is_empty() {
            self.bag.clone_from(&self.kinds);
            self.bag.shuffle(&mut self.rng);
        }
        let kind = self.bag.pop()?;
        let (least, most) = kind.seconds();
        let rng = &mut self.rng;
        let (lasts, steady) = (rng.random_range(least..most), rng.random_range(1.0..2.5));
        let (lasts, steady) = if self.quick { (least, 0.5) } else { (lasts, steady) };
        Some(Fault {
            kind,
            victim: rng.random_range(0..VICTIMS),
            edge: rng.random_range(0..VICTIMS),
            with_loss: rng.random_bool(0.2) && !self.quick && kind != FaultKind::LoseLinks,
            lasts: Duration::from_secs_f64(lasts),
            steady: Duration::from_secs_f64(steady),
            seed: rng.random(),
        })
    }
}

/// A multiple of how many cores, servers and edges there are.
const VICTIMS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_as_often_and_a_seed_says_all() {
        let faults: Vec<Fault> = Schedule::new(7, &FaultKind::ALL, false).take(80).collect();
        for kind in FaultKind::ALL {
            assert_eq!(faults.iter().filter(|fault| fault.kind == kind).count(), 10);
        }
        let again: Vec<Fault> = Schedule::new(7, &FaultKind::ALL, false).take(80).collect();
        assert_eq!(faults, again);
        let other: Vec<Fault> = Schedule::new(8, &FaultKind::ALL, false).take(80).collect();
        assert_ne!(faults, other);
    }
}
