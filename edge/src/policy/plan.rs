//! Sans-io: how long everybody needs to come back: the windows of the reconnect plan, from what the fleet can take.
//!
//! A window is N / (eta · S): so many clients, so many per second that the others can take beside what they do. One that is
//! too short makes clients ask twice, one that is too long makes them wait: so it is the longest of the last minute, and
//! clients hear of another one when it is worth a frame to each of them: every 20 s at most, at once only where it is off by
//! a fifth.

mod outlook;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::plan::{Alternative, ReconnectPlan};

pub use outlook::Renewal;

/// What may fail at once, and who would take its clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Domain {
    /// Clients in it.
    pub sessions: u64,
    /// Clients per second that all others together could take beyond what they do.
    pub spare: f64,
}

/// What an edge's clients can expect of the fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    /// This node; the others of its region take its clients.
    pub node: Domain,
    /// This region; the other ones take its clients.
    pub region: Domain,
    /// Where clients can go, by what can be spared there.
    pub alternatives: Vec<Alternative>,
}

/// What the driver must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanEvent {
    /// Tell every client its plan, with the next ping.
    Changed,
}

/// Makes the plans of one edge's clients.
#[derive(Debug)]
pub struct Planner {
    node: Longest,
    region: Longest,
    published: ReconnectPlan,
    published_at: Option<Instant>,
    next_rank: u32,
    changed: bool,
}

impl Planner {
    /// Knows nothing: its first plan has windows of no length and no alternatives, by which a client falls back to full
    /// jitter after one try.
    pub fn new(mut rng: ChaCha8Rng) -> Self {
        Self {
            node: Longest::default(),
            region: Longest::default(),
            published: ReconnectPlan::default(),
            published_at: None,
            // The edges of a region fail together: their clients must not all have the same places.
            next_rank: rng.random(),
            changed: false,
        }
    }

    /// The fleet as it is now; about once a second.
    pub fn handle_outlook(&mut self, now: Instant, outlook: Outlook) {
        let node = self.node.add(now, window(outlook.node));
        let region = self.region.add(now, window(outlook.region));
        let known = &self.published;
        // Once anything is known, no window is nothing: that would say that nothing is.
        let (node, region) = (node.max(SHORTEST), region.max(SHORTEST));
        let settled = self.published_at.is_some_and(|at| now.saturating_duration_since(at) < BETWEEN);
        let worth = if settled { A_FIFTH } else { NEARLY_NOTHING };
        if self.published_at.is_none()
            || is_off(known.node_window(), node, worth)
            || is_off(known.region_window(), region, worth)
            || have_moved(&known.alternatives, &outlook.alternatives)
        {
            self.published_at = Some(now);
            let millis = |window: Duration| u32::try_from(window.as_millis()).unwrap_or(u32::MAX);
            self.published = ReconnectPlan {
                epoch: known.epoch + 1,
                node_ms: millis(node),
                region_ms: millis(region),
                rank: 0,
                alternatives: outlook.alternatives,
            }
            .bounded();
            self.changed = true;
        }
    }

    /// What to do, once.
    pub fn poll_event(&mut self) -> Option<PlanEvent> {
        std::mem::take(&mut self.changed).then_some(PlanEvent::Changed)
    }

    /// A rank for a client that connects. Consecutive ones have places far from each other.
    pub fn next_rank(&mut self) -> u32 {
        let rank = self.next_rank;
        self.next_rank = rank.wrapping_add(1);
        rank
    }

    /// Places to name before anything is known of the fleet.
    pub fn with_alternatives(mut self, alternatives: Vec<Alternative>) -> Self {
        self.published = ReconnectPlan { alternatives, ..self.published }.bounded();
        self
    }

    /// The plan of the client of this rank.
    pub fn plan(&self, rank: u32) -> ReconnectPlan {
        ReconnectPlan { rank, ..self.published.clone() }
    }
}

/// How long a domain's clients need.
fn window(domain: Domain) -> Duration {
    if domain.sessions == 0 {
        return Duration::ZERO;
    }
    let seconds = domain.sessions as f64 / (ETA * domain.spare.max(f64::MIN_POSITIVE));
    Duration::from_secs_f64(seconds.min(ReconnectPlan::MAX_WINDOW.as_secs_f64()))
}

/// Whether a published window is off by more than a share of it.
fn is_off(known: Duration, wanted: Duration, share: f64) -> bool {
    let (known, wanted) = (known.as_secs_f64(), wanted.as_secs_f64());
    (known - wanted).abs() > (known * share).max(LEAST.as_secs_f64())
}

/// Other hosts, or a share that is off by a fifth.
fn have_moved(known: &[Alternative], wanted: &[Alternative]) -> bool {
    let total = |all: &[Alternative], elsewhere| {
        all.iter().filter(|one| one.elsewhere == elsewhere).map(|one| f64::from(one.weight)).sum::<f64>()
    };
    known.len() != wanted.len()
        || known.iter().zip(wanted).any(|(known_one, wanted_one)| {
            let elsewhere = known_one.elsewhere;
            let before = f64::from(known_one.weight) / total(known, elsewhere).max(1.0);
            let after = f64::from(wanted_one.weight) / total(wanted, elsewhere).max(1.0);
            known_one.host != wanted_one.host
                || elsewhere != wanted_one.elsewhere
                || (before - after).abs() > 0.2 * before.max(after)
        })
}

/// The longest window of the last minute.
#[derive(Debug, Default)]
struct Longest {
    /// Falling: what is shorter than a later one is of no interest.
    windows: VecDeque<(Instant, Duration)>,
}

impl Longest {
    fn add(&mut self, now: Instant, window: Duration) -> Duration {
        while self.windows.back().is_some_and(|(_, other)| *other <= window) {
            self.windows.pop_back();
        }
        while self.windows.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > MEMORY) {
            self.windows.pop_front();
        }
        if self.windows.len() >= REMEMBERED {
            self.windows.pop_back();
        }
        self.windows.push_back((now, window));
        self.windows.front().map_or(window, |(_, longest)| *longest)
    }
}

/// What of the spare rate is counted on: with less, a whole region is back too late (docs/adr/0016-admission.md).
const ETA: f64 = 0.95;
const MEMORY: Duration = Duration::from_secs(60);
/// Windows that are remembered; views come once a second.
const REMEMBERED: usize = 128;
/// Differences that are told at once ..
const A_FIFTH: f64 = 0.2;
/// .. and from time to time: a window is exact to this, or clients ask twice or wait for nothing.
const NEARLY_NOTHING: f64 = 0.02;
/// From time to time: pings come every 25 s.
const BETWEEN: Duration = Duration::from_secs(20);
const SHORTEST: Duration = Duration::from_millis(1);
/// Differences that nobody feels.
const LEAST: Duration = Duration::from_millis(200);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    fn outlook(sessions: u64, spare: f64) -> Outlook {
        let one = |host: &str, weight| Alternative { host: host.to_owned(), weight, elsewhere: true };
        Outlook {
            node: Domain { sessions: sessions / 20, spare: spare * 2.0 },
            region: Domain { sessions, spare },
            alternatives: vec![one("a", 1_000), one("b", 2_000)],
        }
    }

    fn planner() -> Planner {
        Planner::new(ChaCha8Rng::seed_from_u64(1))
    }

    fn region_ms(planner: &Planner) -> u32 {
        planner.plan(0).region_ms
    }

    #[test]
    fn a_window_is_as_long_as_the_others_need() {
        let mut planner = planner();
        planner.handle_outlook(Instant::now(), outlook(950_000, 8_000.0));
        assert_eq!(planner.poll_event(), Some(PlanEvent::Changed));
        assert_eq!(planner.poll_event(), None);
        let plan = planner.plan(7);
        assert_eq!((plan.rank, plan.region_ms, plan.node_ms), (7, 125_000, 3_125));
        assert_eq!(plan.alternatives.len(), 2);
    }

    #[test]
    fn nobody_to_go_to_is_the_longest_window() {
        let mut planner = planner();
        planner.handle_outlook(Instant::now(), outlook(10, 0.0));
        assert_eq!(region_ms(&planner), 300_000);
        let mut none = self::planner();
        assert_eq!(region_ms(&none), 0, "nothing is known");
        none.handle_outlook(Instant::now(), outlook(0, 0.0));
        assert_eq!(region_ms(&none), 1);
    }

    #[test]
    fn it_grows_soon_and_shrinks_late() {
        let start = Instant::now();
        let mut planner = planner();
        let at = |seconds| start + Duration::from_secs(seconds);
        planner.handle_outlook(at(0), outlook(100_000, 1_000.0));
        let first = region_ms(&planner);
        planner.handle_outlook(at(1), outlook(110_000, 1_000.0));
        assert_eq!(region_ms(&planner), first, "not worth a frame now");
        planner.handle_outlook(at(2), outlook(125_000, 1_000.0));
        assert!(region_ms(&planner) > first, "at once");
        planner.handle_outlook(at(22), outlook(128_000, 1_000.0));
        let grown = region_ms(&planner);
        assert_eq!(grown, 134_736, "after a while, when it is more than 2 %");
        for second in 23..82 {
            planner.handle_outlook(at(second), outlook(50_000, 1_000.0));
            assert_eq!(region_ms(&planner), grown, "the longest of a minute");
        }
        planner.handle_outlook(at(83), outlook(50_000, 1_000.0));
        assert!(region_ms(&planner) < grown);
        let epoch = planner.plan(0).epoch;
        let mut moved = outlook(50_000, 1_000.0);
        moved.alternatives[1].host = "c".to_owned();
        planner.handle_outlook(at(84), moved);
        assert_eq!(planner.plan(0).epoch, epoch + 1, "another host is news");
    }

    #[test]
    fn ranks_are_consecutive_and_begin_anywhere() {
        let ranks = |seed| {
            let mut planner = Planner::new(ChaCha8Rng::seed_from_u64(seed));
            [planner.next_rank(), planner.next_rank()]
        };
        assert_eq!(ranks(1)[0].wrapping_add(1), ranks(1)[1]);
        assert_ne!(ranks(1), ranks(2));
    }

    proptest! {
        #[test]
        fn what_is_published_is_never_much_shorter_than_needed(
            views in prop::collection::vec((0_u64..1_000_000, 1_u32..100_000), 1..200)
        ) {
            let mut now = Instant::now();
            let mut planner = planner();
            for (sessions, spare) in views {
                now += Duration::from_secs(1);
                planner.handle_outlook(now, outlook(sessions, spare.into()));
                let needed = window(Domain { sessions, spare: spare.into() }).as_secs_f64();
                let published = planner.plan(0).region_window().as_secs_f64();
                prop_assert!(published * 1.2 + 0.202 >= needed, "{published} for {needed}");
                prop_assert!(planner.region.windows.len() <= REMEMBERED);
            }
        }
    }
}
