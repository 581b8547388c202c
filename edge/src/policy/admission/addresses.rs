//! Sans-io: how often networks may knock. GCRA for each /24 (IPv4) and /56 (IPv6).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Attempts by network.
#[derive(Debug)]
pub(super) struct Addresses {
    limits: AddressLimits,
    /// When the network's tokens are all there again: who is past that is not here.
    busy: HashMap<Network, Instant>,
    by_age: BTreeSet<(Instant, Network)>,
    /// Those that the table has no room for, all together.
    others: Option<Instant>,
}

/// What one network may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddressLimits {
    /// Attempts per second, in the long run.
    pub rate: f64,
    /// At once.
    pub burst: u32,
    /// Networks that are remembered. Beyond it, further ones share a rate eight times as high, and a burst.
    pub networks: usize,
}

impl Addresses {
    pub(super) fn new(limits: AddressLimits) -> Self {
        Self { limits, busy: HashMap::new(), by_age: BTreeSet::new(), others: None }
    }

    /// Counts an attempt.
    ///
    /// # Errors
    /// When there were too many: how long until the next is taken.
    pub(super) fn knock(&mut self, now: Instant, address: IpAddr) -> Result<(), Duration> {
        for _ in 0..EXPIRE_STEPS {
            match self.by_age.first() {
                Some(&(until, network)) if until <= now => {
                    self.by_age.pop_first();
                    self.busy.remove(&network);
                }
                _ => break,
            }
        }
        let network = Network::of(address);
        let known = self.busy.get(&network).copied();
        if known.is_none() && self.busy.len() >= self.limits.networks {
            let until = knock(now, self.others, self.limits.rate * OTHERS, self.limits.burst)?;
            self.others = Some(until);
            return Ok(());
        }
        let until = knock(now, known, self.limits.rate, self.limits.burst)?;
        if let Some(before) = self.busy.insert(network, until) {
            self.by_age.remove(&(before, network));
        }
        self.by_age.insert((until, network));
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.busy.len()
    }
}

/// GCRA: when all tokens are back after one more attempt.
fn knock(now: Instant, busy_until: Option<Instant>, rate: f64, burst: u32) -> Result<Instant, Duration> {
    let each = Duration::from_secs_f64(1.0 / rate);
    let until = busy_until.map_or(now, |until| until.max(now)) + each;
    let tolerated = now + each.saturating_mul(burst.max(1));
    if until > tolerated { Err(until - tolerated) } else { Ok(until) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Network(u64);

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(u32::from(address) >> 8)),
            IpAddr::V6(address) => Self(1 << 63 | (u128::from(address) >> 72) as u64),
        }
    }
}

const OTHERS: f64 = 8.0;
const EXPIRE_STEPS: usize = 4;
