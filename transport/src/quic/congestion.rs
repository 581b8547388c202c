//! Congestion control for links that lose packets without being full.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};
use quinn_proto::RttEstimator;

/// CUBIC that takes a loss for congestion only where the path shows another sign of it: a round trip that is longer than
/// the path's shortest by a quarter (a queue is filling), more than [`TOLERATED`] per cent of what was sent lost (a queue
/// too short to be seen in the delay), or persistent congestion (RFC 9002 §7.6). Radio links lose packets for reasons of
/// their own; plain CUBIC answers each with three tenths of its window and, where the application sends little, has no way
/// to win them back (ADR 0011). The idea is TCP Veno's (Fu and Liew, 2003), with the decision between two and not three.
///
/// For the same reason its window is never below [`LEAST_PACKETS`], not even after persistent congestion: the probes of an
/// outage would fill one of two packets, and nothing would get out when the network is back.
#[derive(Debug, Clone)]
pub(super) struct CubicDelay {
    cubic: Cubic,
    /// The round trip is longer than an empty path's.
    delayed: bool,
    /// Bytes that arrived and that were lost of late.
    acked: u64,
    lost: u64,
    /// Bytes that may always be in flight.
    least: u64,
}

impl CubicDelay {
    fn is_congestion(&self, is_persistent: bool, lost_bytes: u64) -> bool {
        let all = self.acked + self.lost;
        // An ECN mark (0 bytes) is the path's own word.
        is_persistent
            || lost_bytes == 0
            || self.delayed
            || (all >= JUDGED && self.lost * 100 > all * TOLERATED)
    }

    /// Half of the past counts half.
    fn age(&mut self) {
        if self.acked + self.lost > 2 * JUDGED {
            self.acked /= 2;
            self.lost /= 2;
        }
    }
}

impl Controller for CubicDelay {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.acked += bytes;
        self.age();
        self.delayed = rtt.get() > rtt.min() + (rtt.min() / 4).max(LEAST_DELAY);
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.lost += lost_bytes;
        self.age();
        if self.is_congestion(is_persistent, lost_bytes) {
            self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.least = LEAST_PACKETS * u64::from(new_mtu);
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window().max(self.least)
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Makes one for each path.
#[derive(Debug)]
pub(super) struct CubicDelayConfig(pub(super) Arc<CubicConfig>);

impl ControllerFactory for CubicDelayConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Cubic::new(Arc::clone(&self.0), now, current_mtu);
        let least = LEAST_PACKETS * u64::from(current_mtu);
        Box::new(CubicDelay { cubic, delayed: false, acked: 0, lost: 0, least })
    }
}

/// What RFC 6928 lets everybody begin with.
const LEAST_PACKETS: u64 = 10;
/// Per cent of bytes lost that a path without a queue may have.
const TOLERATED: u64 = 15;
/// Bytes that a share of losses is judged by: some thirty packets.
const JUDGED: u64 = 36_000;
/// Timers and delayed acknowledgements lengthen a round trip as well.
const LEAST_DELAY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u64 = 1_200;

    fn controller() -> CubicDelay {
        #[expect(clippy::disallowed_methods, reason = "a test needs some first instant")]
        let now = Instant::now();
        let mut config = CubicConfig::default();
        config.initial_window(38_400);
        let cubic = Cubic::new(Arc::new(config), now, 1_200);
        CubicDelay { cubic, delayed: false, acked: 100 * PACKET, lost: 0, least: LEAST_PACKETS * PACKET }
    }

    fn lose(controller: &mut CubicDelay, is_persistent: bool, bytes: u64) -> bool {
        #[expect(clippy::disallowed_methods, reason = "a test needs some later instant")]
        let now = Instant::now();
        let before = controller.window();
        controller.on_congestion_event(now, now, is_persistent, bytes);
        controller.window() < before
    }

    #[test]
    fn a_loss_without_another_sign_costs_nothing() {
        let mut controller = controller();
        assert!((0..5).all(|_| !lose(&mut controller, false, PACKET)));
    }

    #[test]
    fn a_loss_while_a_queue_fills_is_congestion() {
        let mut controller = controller();
        controller.delayed = true;
        assert!(lose(&mut controller, false, PACKET));
    }

    #[test]
    fn many_losses_marks_and_persistent_congestion_are_congestion() {
        let mut many = controller();
        assert!((0..30).any(|_| lose(&mut many, false, PACKET)), "a fifth of all is lost");
        assert!(lose(&mut controller(), false, 0), "ECN");
        assert!(lose(&mut controller(), true, PACKET));
    }

    #[test]
    fn ten_packets_may_always_be_under_way() {
        let mut controller = controller();
        assert!(lose(&mut controller, true, PACKET));
        assert_eq!(controller.cubic.window(), 2 * PACKET);
        assert_eq!(controller.window(), 10 * PACKET);
    }

    #[test]
    fn old_losses_are_forgotten() {
        let mut controller = controller();
        controller.lost = 20 * PACKET;
        for _ in 0..60 {
            controller.acked += PACKET;
            controller.age();
        }
        assert!(!lose(&mut controller, false, PACKET));
    }
}
