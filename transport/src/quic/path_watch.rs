//! Sans-io: notices that a path is dead while something was coming over it.
//!
//! A client that only listens does not learn that its address was given to somebody else (a NAT forgot it, a phone
//! changed networks): what the server sends goes nowhere, and only a packet of the client's shows the new way (RFC 9000
//! §9). QUIC's own timers look after what was *sent* and not acknowledged, and such a client has sent nothing.
//!
//! The rule, which must not keep the radio of an idle phone awake (it sleeps after some ten seconds without traffic):
//!
//! - Something *flows* when eight datagrams came with no five seconds between two. Only then is there a timer at all.
//! - Silence is a gap longer than a PTO, and than what gaps in this flow are usually (mean and four deviations, two seconds
//!   at most). It gets a probe, up to three, each waiting twice as long as the one before. The radio is awake still: the
//!   flow was a moment ago.
//! - One datagram of any kind ends the silence. A flow that simply ended costs one probe and its acknowledgement; one more
//!   than the probes' acknowledgements is the flow again, with gaps as they were.
//! - Without an answer for three PTOs after the first probe, one to three seconds, the path is suspect. From then on the
//!   client tries a new socket every two seconds, for half a minute; then it is quiet until something is heard.
//!
//! Why new sockets: while a path is out, QUIC at both ends doubles the time to its next try, and after eight seconds
//! without a path it takes up to eight more to notice that it is back. A packet from a new address makes the server challenge the
//! address, and the acknowledgement of that shows at once what was lost (8 s of outage on loopback: 7.7 s more with a
//! probe, 1 ms with a new socket).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Watches what is received. Its driver hands in what came whenever something did, and before each `handle_timeout`.
#[derive(Debug)]
pub struct PathWatch {
    state: State,
    /// Datagrams received, as last handed in.
    received: u64,
    pto: Duration,
    events: VecDeque<PathEvent>,
}

/// What the driver must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// Send a probe datagram now.
    Probe,
    /// The path does not answer: look for another way, beside this one.
    Suspect,
    /// Go on from a new socket, and send a probe.
    Rebind,
}

/// ```text
/// Idle ──something came──► Gathering ──eight in a row──► Flowing ──a gap──► Silent ──no answer──► Suspect
///  ▲                           ▲                                              │                     │ │
///  │                           └──────────────────────heard───────────────────┴─────────────────────┘ │
///  └──────────────────────────────────────────half a minute────────────────────────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing is expected.
    Idle,
    /// Something came, but that may have been all.
    Gathering {
        last: Instant,
        arrivals: u32,
        gaps: Gaps,
    },
    Flowing {
        last: Instant,
        gaps: Gaps,
    },
    Silent {
        last: Instant,
        gaps: Gaps,
        first_probe: Instant,
        probes: u32,
    },
    Suspect {
        since: Instant,
        rebindings: u32,
    },
}

/// How far arrivals are apart (as RFC 6298 does with round trips).
#[derive(Debug, Clone, Copy, Default)]
struct Gaps {
    mean: Duration,
    deviation: Duration,
}

impl Gaps {
    fn add(&mut self, gap: Duration, first: bool) {
        if first {
            (self.mean, self.deviation) = (gap, gap / 2);
        } else {
            self.deviation = (self.deviation * 3 + self.mean.abs_diff(gap)) / 4;
            self.mean = (self.mean * 7 + gap) / 8;
        }
    }

    fn is_empty(&self) -> bool {
        self.mean.is_zero()
    }

    /// Longer ones are unusual.
    fn usual(&self) -> Duration {
        self.mean + self.deviation * 4
    }
}

impl Default for PathWatch {
    fn default() -> Self {
        Self::new()
    }
}

impl PathWatch {
    /// Of a new connection.
    pub fn new() -> Self {
        Self { state: State::Idle, received: 0, pto: Duration::ZERO, events: VecDeque::new() }
    }

    /// `received` datagrams have come on this connection in all; `pto` is what a probe timeout is now.
    pub fn handle_received(&mut self, now: Instant, received: u64, pto: Duration) {
        self.pto = pto;
        if received <= self.received {
            return;
        }
        self.received = received;
        self.events.clear();
        self.state = match self.state {
            State::Idle => State::Gathering { last: now, arrivals: 1, gaps: Gaps::default() },
            State::Silent { last, mut gaps, probes, .. } => {
                gaps.add(now.saturating_duration_since(last), false);
                State::Gathering { last: now, arrivals: ARRIVALS - probes, gaps }
            }
            State::Suspect { .. } => {
                State::Gathering { last: now, arrivals: ARRIVALS - PROBES, gaps: Gaps::default() }
            }
            State::Gathering { last, arrivals, mut gaps } => {
                let gap = now.saturating_duration_since(last);
                if gap > LONGEST_GAP {
                    State::Gathering { last: now, arrivals: 1, gaps: Gaps::default() }
                } else {
                    gaps.add(gap, gaps.is_empty());
                    if arrivals + 1 < ARRIVALS {
                        State::Gathering { last: now, arrivals: arrivals + 1, gaps }
                    } else {
                        State::Flowing { last: now, gaps }
                    }
                }
            }
            State::Flowing { last, mut gaps } => {
                gaps.add(now.saturating_duration_since(last), false);
                State::Flowing { last: now, gaps }
            }
        };
    }

    /// When to call [`PathWatch::handle_timeout`]: `None` while nothing is flowing.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Idle | State::Gathering { .. } => None,
            State::Flowing { last, gaps } => Some(last + gaps.usual().max(self.pto).min(LONGEST_SILENCE)),
            State::Silent { first_probe, probes, .. } => {
                let suspect = first_probe + self.patience();
                // After 1 and 3 PTOs: each waits twice as long.
                let probe = first_probe + self.pto * ((1 << probes) - 1);
                Some(if probes < PROBES { probe.min(suspect) } else { suspect })
            }
            State::Suspect { since, rebindings } => Some(since + REBIND_EVERY * rebindings),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        let patience = self.patience();
        match &mut self.state {
            State::Idle | State::Gathering { .. } => {}
            State::Flowing { last, gaps } => {
                self.state = State::Silent { last: *last, gaps: *gaps, first_probe: now, probes: 1 };
                self.events.push_back(PathEvent::Probe);
            }
            State::Silent { first_probe, .. } if now >= *first_probe + patience => {
                self.state = State::Suspect { since: now, rebindings: 1 };
                self.events.extend([PathEvent::Suspect, PathEvent::Rebind]);
            }
            State::Silent { probes, .. } => {
                *probes += 1;
                self.events.push_back(PathEvent::Probe);
            }
            State::Suspect { rebindings, .. } => {
                *rebindings += 1;
                if *rebindings == REBINDINGS {
                    self.state = State::Idle;
                }
                self.events.push_back(PathEvent::Rebind);
            }
        }
    }

    /// What the driver must do next. What was not taken when something is heard is void.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    fn patience(&self) -> Duration {
        (self.pto * SUSPECT_PTOS).clamp(MIN_PATIENCE, MAX_PATIENCE)
    }
}

/// A probe timeout (RFC 9002 §6.2.1) for one who sees no more than the smoothed round-trip time: the samples behind it
/// are reckoned back from how it moves.
#[derive(Debug, Clone, Copy, Default)]
pub struct PtoEstimate {
    smoothed: Duration,
    variation: Duration,
}

impl PtoEstimate {
    /// With the smoothed round-trip time as it is now. Exact where it is asked after each sample; where several came
    /// since it was asked last, they count as one that was further off: the estimate errs to the long side.
    pub fn update(&mut self, smoothed: Duration) -> Duration {
        if self.smoothed.is_zero() {
            self.variation = smoothed / 2;
        } else if smoothed != self.smoothed {
            // smoothed' = 7/8 smoothed + 1/8 sample, so a sample is eight times as far off as the mean moved.
            let off = self.smoothed.abs_diff(smoothed) * 8;
            self.variation = (self.variation * 3 + off) / 4;
        }
        self.smoothed = smoothed;
        smoothed + (self.variation * 4).max(GRANULARITY) + MAX_ACK_DELAY
    }
}

/// So many in a row, with no longer gap between them, are a flow.
const ARRIVALS: u32 = 8;
const LONGEST_GAP: Duration = Duration::from_secs(5);

/// In a flow, until somebody asks, however uneven it is.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);

/// At most so many probes in one silence.
const PROBES: u32 = 3;

/// After the first probe.
const SUSPECT_PTOS: u32 = 3;
const MIN_PATIENCE: Duration = Duration::from_secs(1);
/// Who only listens measures no round trips: what a busy handshake left behind may be far too long.
const MAX_PATIENCE: Duration = Duration::from_secs(3);

/// While the path is suspect, at most so often.
const REBIND_EVERY: Duration = Duration::from_secs(2);
const REBINDINGS: u32 = 15;

/// RFC 9002 §6.1.2.
const GRANULARITY: Duration = Duration::from_millis(1);

/// What a peer takes at most to acknowledge, unless it says otherwise (RFC 9000 §18.2); ours does not.
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests;
