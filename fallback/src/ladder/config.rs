//! Sans-io: the ladder's numbers.

use std::time::Duration;

/// How patient the ladder is. The defaults are meant for production; tests shorten them.
#[derive(Debug, Clone, PartialEq)]
pub struct LadderConfig {
    /// The least time that a rung has for itself before the next joins the race.
    pub head_start_min: Duration,
    /// The most.
    pub head_start_max: Duration,
    /// So much earlier the next joins where not one UDP datagram came back.
    pub unheard_lead: Duration,
    /// Round trip of a network that nothing is known of.
    pub initial_rtt: Duration,
    /// From the dial to its end, on one rung.
    pub dial_timeout: Duration,
    /// What is left for the last rung after TCP was refused: the server is probably not there.
    pub last_patience: Duration,
    /// From an opened QUIC connection to the session's answer; then another rung is tried. The session mostly suspects
    /// it before.
    pub connect_patience: Duration,
    /// How long a transport is left out after it failed where another worked; doubles with each time.
    pub broken_base: Duration,
    /// The most.
    pub broken_cap: Duration,
    /// So many failures are forgiven to a transport that worked on this network lately.
    pub tolerated_failures: u32,
    /// What lately means.
    pub tolerance_window: Duration,
    /// From a connection on a lower rung to the first try of a higher one, give or take half; doubles with each failure.
    pub climb_base: Duration,
    /// The most, jitter included.
    pub climb_cap: Duration,
    /// Round trips after which a transport counts as working..
    pub trial_trips: u32,
    /// .. and how long it must have lived by then.
    pub trial_time: Duration,
    /// The least time that a suspect connection has to answer once another has opened beside it (else three round trips)..
    pub suspect_grace_min: Duration,
    /// .. and the most.
    pub suspect_grace_max: Duration,
    /// From a search beside a suspect connection that found nothing to the next; doubles, up to a minute.
    pub suspect_retry: Duration,
}

impl Default for LadderConfig {
    fn default() -> Self {
        Self {
            head_start_min: Duration::from_millis(250),
            head_start_max: Duration::from_millis(500),
            unheard_lead: Duration::from_millis(100),
            initial_rtt: Duration::from_millis(150),
            dial_timeout: Duration::from_secs(10),
            last_patience: Duration::from_secs(3),
            connect_patience: Duration::from_secs(5),
            broken_base: Duration::from_secs(60),
            broken_cap: Duration::from_secs(6 * 3600),
            tolerated_failures: 2,
            tolerance_window: Duration::from_secs(24 * 3600),
            climb_base: Duration::from_secs(60),
            climb_cap: Duration::from_secs(30 * 60),
            trial_trips: 3,
            trial_time: Duration::from_secs(10),
            suspect_grace_min: Duration::from_millis(200),
            suspect_grace_max: Duration::from_secs(1),
            suspect_retry: Duration::from_secs(1),
        }
    }
}

impl LadderConfig {
    /// The time that a rung has for itself: 1.5 round trips and 100 ms, within bounds. It is for transports that open in
    /// one round trip; a WebSocket needs three (TCP, TLS, upgrade) and gets three times as much.
    pub(super) fn head_start(&self, rtt: Duration, round_trips: u32) -> Duration {
        let one = (rtt * 3 / 2 + Duration::from_millis(100)).clamp(self.head_start_min, self.head_start_max);
        one * round_trips
    }

    /// `base` · 2^`times`, at most `cap`.
    pub(super) fn doubled(base: Duration, times: u32, cap: Duration) -> Duration {
        base.saturating_mul(1 << times.min(16)).min(cap)
    }
}
