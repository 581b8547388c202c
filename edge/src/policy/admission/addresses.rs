//! Sans-io: how often networks may knock. GCRA for each /24 (IPv4) and /56 (IPv6), but for networks that are trusted.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::str::FromStr;
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
#[derive(Debug, Clone, PartialEq)]
pub struct AddressLimits {
    /// Attempts per second, in the long run.
    pub rate: f64,
    /// At once.
    pub burst: u32,
    /// Networks that are remembered. Beyond it, further ones share a rate eight times as high, and a burst.
    pub networks: usize,
    /// Networks that may knock as often as they like, beside loopback: balancers, for which all their clients knock.
    pub exempt: Vec<NetworkRange>,
}

/// A range of addresses, as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkRange {
    address: IpAddr,
    bits: u8,
}

/// A text that is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no range of addresses such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7")]
pub struct BadNetworkRange(String);

impl NetworkRange {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let drop = |all: u32| all.saturating_sub(self.bits.into());
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(one)) => {
                (u32::from(net) ^ u32::from(one)).checked_shr(drop(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(one)) => {
                (u128::from(net) ^ u128::from(one)).checked_shr(drop(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for NetworkRange {
    type Err = BadNetworkRange;

    fn from_str(text: &str) -> Result<Self, BadNetworkRange> {
        let bad = || BadNetworkRange(text.to_owned());
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| bad())?;
        if bits > most { Err(bad()) } else { Ok(Self { address, bits }) }
    }
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
        if address.to_canonical().is_loopback() || self.limits.exempt.iter().any(|net| net.contains(address))
        {
            return Ok(());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_hold_what_is_in_them() {
        let holds = |range: &str, address: &str| {
            let range: NetworkRange = range.parse().expect("a range");
            range.contains(address.parse().expect("an address"))
        };
        assert!(holds("10.0.0.0/8", "10.255.1.2") && !holds("10.0.0.0/8", "11.0.0.0"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3"), "mapped");
        assert!(holds("192.0.2.7", "192.0.2.7") && !holds("192.0.2.7", "192.0.2.6"));
        assert!(holds("0.0.0.0/0", "203.0.113.9") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("::/0", "2001:db8::1") && holds("2001:db8::/32", "2001:db8:1::1"));
        assert!(!holds("2001:db8::/32", "2001:db9::1"));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "host/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<NetworkRange>().is_err(), "{bad}");
        }
    }
}
