//! Sans-io: whether a connection still carries anything: when to ask, and when silence is suspicious.

use std::time::{Duration, Instant};

use super::Config;

/// One connection's signs of life.
///
/// A ping goes out when publications that had been flowing stop, when a request waits too long, or when the network
/// changed. Where nothing at all comes back the connection is suspect. One that was idle all along is left alone.
#[derive(Debug)]
pub(super) struct Probe {
    /// When anything came last.
    heard: Instant,
    /// Publications since the flow began, with the smoothed time between them.
    items: u32,
    gap: Duration,
    last_item: Option<Instant>,
    ping: Option<Ping>,
    /// Nothing heard by then: suspect.
    suspect_at: Option<Instant>,
    suspected: bool,
    round_trip: Option<Duration>,
    probe_timeout: Option<Duration>,
}

#[derive(Debug)]
struct Ping {
    id: u64,
    /// When it was handed out.
    sent: Option<Instant>,
}

impl Probe {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heard: now,
            items: 0,
            gap: Duration::ZERO,
            last_item: None,
            ping: None,
            suspect_at: None,
            suspected: false,
            round_trip: None,
            probe_timeout: None,
        }
    }

    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    pub(super) fn is_suspected(&self) -> bool {
        self.suspected
    }

    /// Something came; true where that ends a suspicion.
    pub(super) fn handle_heard(&mut self, now: Instant) -> bool {
        self.heard = now;
        self.suspect_at = None;
        std::mem::take(&mut self.suspected)
    }

    /// A publication or an ephemeral item came.
    pub(super) fn handle_item(&mut self, now: Instant) {
        let since = self.last_item.replace(now).map(|last| now.saturating_duration_since(last));
        match since {
            Some(since) if since < FLOW_ENDS => {
                self.gap = if self.items <= 1 { since } else { (self.gap * 7 + since) / 8 };
                self.items = self.items.saturating_add(1);
            }
            _ => self.items = 1,
        }
    }

    /// Asks the other side, and expects something from it within `patience`, or three probe timeouts.
    pub(super) fn start(&mut self, now: Instant, id: u64, patience: Duration) {
        self.ping = Some(Ping { id, sent: None });
        // What stopped is asked about once.
        self.items = 0;
        self.expect_within(now, patience);
    }

    /// Without asking: an answer is on its way anyhow.
    pub(super) fn expect_within(&mut self, now: Instant, patience: Duration) {
        let at = now + patience.max(self.timeout() * 3);
        if !self.suspected {
            self.suspect_at = Some(self.suspect_at.map_or(at, |before| before.min(at)));
        }
    }

    /// When the flow of publications counts as stopped.
    pub(super) fn flow_deadline(&self, config: &Config) -> Option<Instant> {
        let flowing = self.items >= FLOW_ITEMS && self.suspect_at.is_none() && !self.suspected;
        flowing.then(|| self.heard + config.probe_silence.max(self.gap * config.probe_gaps))
    }

    pub(super) fn suspect_at(&self) -> Option<Instant> {
        self.suspect_at
    }

    /// The time to suspect has come.
    pub(super) fn suspect(&mut self) {
        self.suspect_at = None;
        self.suspected = true;
    }

    /// The suspicion stands, but whoever went to look elsewhere found nothing: it is told again after a while.
    pub(super) fn suspect_again(&mut self, now: Instant, patience: Duration) {
        if std::mem::take(&mut self.suspected) {
            self.expect_within(now, patience);
        }
    }

    pub(super) fn wants_transmit(&self) -> bool {
        self.ping.as_ref().is_some_and(|ping| ping.sent.is_none())
    }

    /// The ping's id, once.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<u64> {
        let ping = self.ping.as_mut().filter(|ping| ping.sent.is_none())?;
        ping.sent = Some(now);
        Some(ping.id)
    }

    /// The answer: how long the round trip took.
    pub(super) fn handle_pong(&mut self, now: Instant, id: u64) -> Option<Duration> {
        let sent = self.ping.as_ref().filter(|ping| ping.id == id)?.sent?;
        self.ping = None;
        let round_trip = now.saturating_duration_since(sent);
        self.round_trip = Some(round_trip);
        Some(round_trip)
    }

    /// What the transport knows better.
    pub(super) fn set_round_trip(&mut self, round_trip: Duration, probe_timeout: Duration) {
        self.round_trip = Some(round_trip);
        self.probe_timeout = Some(probe_timeout);
    }

    /// After which a transport would send again what was not acknowledged.
    fn timeout(&self) -> Duration {
        let of_round_trip = || self.round_trip.map_or(Duration::ZERO, |round_trip| round_trip * 2);
        self.probe_timeout.unwrap_or_else(of_round_trip).min(MAX_PROBE_TIMEOUT)
    }
}

/// So many in a row make a flow.
const FLOW_ITEMS: u32 = 4;

/// Publications further apart than that are no flow.
const FLOW_ENDS: Duration = Duration::from_secs(10);

/// No path is believed to be slower.
const MAX_PROBE_TIMEOUT: Duration = Duration::from_secs(5);
