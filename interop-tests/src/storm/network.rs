//! The network between clients and nodes: delay by client, jitter and loss by packet.

use std::time::Duration;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

/// What every path has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    /// Of packets that count: the first of a dial, the answer.
    pub(super) loss: f64,
    /// Until a dial's lost packet is sent again; then twice that, and so on.
    pub(super) first_timer: Duration,
}

impl Network {
    /// A client's round trip: 30 to 300 ms, more of the short ones.
    pub(super) fn round_trip(self, rng: &mut ChaCha8Rng) -> Duration {
        let share: f64 = rng.random_range(0.0..1.0);
        Duration::from_secs_f64(0.030 + 0.270 * share * share)
    }

    /// How long until something of a handshake is there: half a round trip, jitter, and the timers that pass where packets
    /// are lost.
    pub(super) fn one_way(self, round_trip: Duration, rng: &mut ChaCha8Rng) -> Duration {
        self.travel(round_trip, self.first_timer, rng)
    }

    /// The same on a connection of long ago, which knows its round trip and how little it varies: RFC 9002 §6.2.1, with
    /// an eighth of it as the variance, and 25 ms until the other end acknowledges.
    pub(super) fn one_way_settled(self, round_trip: Duration, rng: &mut ChaCha8Rng) -> Duration {
        self.travel(round_trip, round_trip.mul_f64(1.5) + Duration::from_millis(25), rng)
    }

    fn travel(self, round_trip: Duration, mut timer: Duration, rng: &mut ChaCha8Rng) -> Duration {
        let mut delay = round_trip.mul_f64(0.5 + rng.random_range(0.0..0.1));
        while timer < Duration::from_secs(30) && rng.random_range(0.0..1.0) < self.loss {
            delay += timer;
            timer *= 2;
        }
        delay
    }
}

/// Before anything was measured (RFC 9002 §6.2.2): whoever comes back from nowhere.
pub(super) const UNKNOWN_PATH: Duration = Duration::from_secs(1);
/// Three times the round trip that `sdk/rust` begins with, 150 ms. Who moves is connected, and need not expect the worst.
pub(super) const KNOWN_PATH: Duration = Duration::from_millis(450);
