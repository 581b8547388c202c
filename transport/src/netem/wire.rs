//! Sans-io: two links back to back, packets opaque: what a simulation puts between two endpoints.

use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::link::{Counters, Link};
use super::profile::Profile;

/// An end of a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Sends up, receives down.
    Client,
    /// Sends down, receives up.
    Server,
}

impl End {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Two links: up from the client, down to it. The in-memory twin of the laboratory: the same seed and profiles drop the
/// same packets in both.
#[derive(Debug)]
pub struct Wire<P> {
    up: Link<P>,
    down: Link<P>,
}

impl<P: Clone> Wire<P> {
    /// Each direction draws from a stream of its own of this seed.
    pub fn new(seed: u64, up: Profile, down: Profile) -> Self {
        Self { up: Link::new(up, stream(seed, UP)), down: Link::new(down, stream(seed, DOWN)) }
    }

    /// A packet of `len` bytes is sent by an end.
    pub fn handle_packet(&mut self, now: Instant, from: End, len: usize, packet: P) {
        self.link_mut(from).handle_packet(now, len, packet);
    }

    /// When [`Wire::poll_transmit`] has the next packet.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match (self.up.poll_timeout(), self.down.poll_timeout()) {
            (Some(up), Some(down)) => Some(up.min(down)),
            (up, down) => up.or(down),
        }
    }

    /// A packet that arrives, and the end that it arrives at; in the order of their times.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(End, P)> {
        let up_first = match (self.up.poll_timeout(), self.down.poll_timeout()) {
            (Some(up), Some(down)) => up <= down,
            (up, _) => up.is_some(),
        };
        let order = if up_first { [End::Client, End::Server] } else { [End::Server, End::Client] };
        order.into_iter().find_map(|from| {
            let packet = self.link_mut(from).poll_transmit(now)?;
            Some((from.other(), packet))
        })
    }

    /// Nothing passes either way for so long.
    pub fn outage(&mut self, now: Instant, duration: Duration) {
        self.up.outage(now, duration);
        self.down.outage(now, duration);
    }

    /// The link that this end sends into.
    pub fn link(&self, from: End) -> &Link<P> {
        match from {
            End::Client => &self.up,
            End::Server => &self.down,
        }
    }

    /// The same, to change it.
    pub fn link_mut(&mut self, from: End) -> &mut Link<P> {
        match from {
            End::Client => &mut self.up,
            End::Server => &mut self.down,
        }
    }

    /// What happened to what this end sent.
    pub fn counters(&self, from: End) -> Counters {
        self.link(from).counters()
    }
}

fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

const UP: u64 = 1;
const DOWN: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    #[test]
    fn packets_of_both_directions_arrive_in_the_order_of_their_times() {
        let ms = Duration::from_millis;
        let (up, down) = (Profile::delay(ms(30)), Profile::delay(ms(10)));
        let mut wire = Wire::new(1, up, down);
        let start = now();
        wire.handle_packet(start, End::Client, 100, "up 1");
        wire.handle_packet(start + ms(5), End::Server, 100, "down 1");
        wire.handle_packet(start + ms(25), End::Server, 100, "down 2");
        assert_eq!(wire.poll_timeout(), Some(start + ms(15)));
        assert_eq!(wire.poll_transmit(start + ms(14)), None);
        let late = start + ms(100);
        assert_eq!(wire.poll_transmit(late), Some((End::Client, "down 1")));
        assert_eq!(wire.poll_transmit(late), Some((End::Server, "up 1")));
        assert_eq!(wire.poll_transmit(late), Some((End::Client, "down 2")));
        assert_eq!(wire.poll_transmit(late), None);
        assert_eq!(wire.poll_timeout(), None);
        assert_eq!((wire.counters(End::Client).delivered, wire.counters(End::Server).delivered), (1, 2));
    }

    #[test]
    fn the_directions_lose_independently() {
        let lossy = Profile::default().with_loss("50%".parse().unwrap());
        let mut wire = Wire::new(9, lossy.clone(), lossy);
        let start = now();
        for _ in 0..200 {
            wire.handle_packet(start, End::Client, 1, ());
            wire.handle_packet(start, End::Server, 1, ());
        }
        assert_ne!(wire.link(End::Client).dropped(), wire.link(End::Server).dropped());
    }
}
