//! Sans-io: how one direction of a link behaves.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How one direction of a link behaves. The default is a perfect wire: nothing lost, no delay, no limit.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Profile {
    /// Which packets are lost.
    pub loss: Loss,
    /// What every packet takes at least, after it was serialised.
    pub delay: Duration,
    /// Each packet takes a further time, uniform between zero and this.
    pub jitter: Duration,
    /// Whether jitter may let one packet overtake another. Radio links deliver in order, so the default is no.
    pub jitter_reorders: bool,
    /// Bits per second; packets are serialised one after the other. `None`: no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate, including what is being serialised. What does not fit is dropped (drop-tail).
    /// Without a rate nothing waits.
    pub queue: usize,
    /// Packets that are held back and so overtaken by those behind them.
    pub reorder: Option<Reorder>,
    /// The probability that a packet arrives twice.
    pub duplicate: f64,
    /// The largest packet that passes, bytes; larger ones vanish without an ICMP message, as behind most tunnels.
    pub mtu: usize,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            loss: Loss::None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_reorders: false,
            rate: None,
            queue: QUEUE,
            reorder: None,
            duplicate: 0.0,
            mtu: usize::MAX,
        }
    }
}

impl Profile {
    /// A link that only takes time: `delay` one way.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// The same with this loss.
    #[must_use]
    pub fn with_loss(self, loss: Loss) -> Self {
        Self { loss, ..self }
    }

    /// The same with jitter that keeps the order.
    #[must_use]
    pub fn with_jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    /// The same with a rate in bits per second and a drop-tail queue of so many bytes.
    #[must_use]
    pub fn with_rate(self, rate: u64, queue: usize) -> Self {
        Self { rate: Some(rate), queue, ..self }
    }

    /// The same with packets held back by `extra` at a probability.
    #[must_use]
    pub fn with_reorder(self, probability: f64, extra: Duration) -> Self {
        Self { reorder: Some(Reorder { probability, extra }), ..self }
    }

    /// The same with packets that arrive twice at a probability.
    #[must_use]
    pub fn with_duplicate(self, probability: f64) -> Self {
        Self { duplicate: probability, ..self }
    }

    /// The same for packets of at most so many bytes.
    #[must_use]
    pub fn with_mtu(self, mtu: usize) -> Self {
        Self { mtu, ..self }
    }
}

/// Which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each with this probability, independent of the others.
    Uniform(f64),
    /// Gilbert–Elliott: a two-state Markov chain that steps once per packet, then loses it with its state's probability.
    ///
    /// ```text
    ///          p
    ///      ┌───────►
    ///   Good       Bad      lost: `good` in Good, `bad` in Bad
    ///      ◄───────┘
    ///          r
    /// ```
    GilbertElliott {
        /// Probability of going from Good to Bad, per packet.
        p: f64,
        /// Probability of going from Bad to Good, per packet; 1/r packets is the mean stay.
        r: f64,
        /// Loss in Good.
        good: f64,
        /// Loss in Bad.
        bad: f64,
    },
}

impl Loss {
    /// A mean loss (0 to below 1) in runs of `burst` lost packets on average (at least 1): Gilbert–Elliott with nothing
    /// lost in Good and everything in Bad. Of a mean loss `m`, runs shorter than 1/(1−m) cannot be: `burst` is then raised.
    pub fn bursts(mean: f64, burst: f64) -> Self {
        if mean <= 0.0 {
            return Self::None;
        }
        let r = (1.0 / burst.max(1.0)).min((1.0 - mean).max(f64::MIN_POSITIVE));
        let p = (r * mean / (1.0 - mean)).min(1.0);
        Self::GilbertElliott { p, r, good: 0.0, bad: 1.0 }
    }

    /// The share of packets that is lost in the long run.
    pub fn mean(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Uniform(probability) => probability,
            Self::GilbertElliott { p, r, good, bad } => {
                let in_bad = share_of_bad(p, r);
                (1.0 - in_bad) * good + in_bad * bad
            }
        }
    }

    /// The standard deviation of the measured loss over `packets` packets. Losses of a Gilbert–Elliott link come
    /// together, so this is wider than a coin's √(m(1−m)/n): the covariance at distance k is
    /// π(1−π)(bad−good)²·(1−p−r)ᵏ, summed here over all pairs.
    pub fn deviation(self, packets: u64) -> f64 {
        let n = packets as f64;
        let mean = self.mean();
        let alone = mean * (1.0 - mean) / n;
        let Self::GilbertElliott { p, r, good, bad } = self else { return alone.sqrt() };
        let in_bad = share_of_bad(p, r);
        let memory = 1.0 - p - r;
        let covariance = in_bad * (1.0 - in_bad) * (bad - good).powi(2);
        // Σ_{k=1}^{n−1} (n−k)·memoryᵏ, twice, over n²; memory = 1 would be a chain that never moves.
        if p + r <= 0.0 {
            return alone.sqrt();
        }
        let sum = memory * (n * (1.0 - memory) - (1.0 - memory.powf(n))) / (1.0 - memory).powi(2);
        (alone + 2.0 * covariance * sum / (n * n)).max(0.0).sqrt()
    }
}

/// The stationary probability of the Bad state.
fn share_of_bad(p: f64, r: f64) -> f64 {
    if p + r <= 0.0 { 0.0 } else { p / (p + r) }
}

/// `none`, `2%` (uniform), `2%/3` (runs of 3 on average), `GE(p=0.01,r=0.3,bad=0.5)` with an optional `good=`.
impl FromStr for Loss {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let text = text.trim();
        if text.is_empty() || text == "none" {
            return Ok(Self::None);
        }
        if let Some(inner) = text.strip_prefix("GE(").and_then(|rest| rest.strip_suffix(')')) {
            return gilbert_elliott(text, inner);
        }
        let Some((mean, burst)) = text.split_once('/') else {
            return Ok(match probability(text)? {
                0.0 => Self::None,
                mean => Self::Uniform(mean),
            });
        };
        let mean = probability(mean)?;
        let burst = burst.trim().parse::<f64>().ok().filter(|burst| *burst >= 1.0 && burst.is_finite());
        let burst = burst.ok_or_else(|| ProfileError::Burst(text.to_owned()))?;
        if mean >= 1.0 {
            return Err(ProfileError::Probability(text.to_owned()));
        }
        Ok(Self::bursts(mean, burst))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Uniform(probability) => write!(f, "{}%", probability * 100.0),
            Self::GilbertElliott { p, r, good, bad } => {
                write!(f, "GE(p={p},r={r},good={good},bad={bad})")
            }
        }
    }
}

fn gilbert_elliott(whole: &str, inner: &str) -> Result<Loss, ProfileError> {
    let (mut p, mut r, mut good, mut bad) = (None, None, 0.0, 1.0);
    for part in inner.split(',') {
        let (name, value) =
            part.split_once('=').ok_or_else(|| ProfileError::GilbertElliott(whole.to_owned()))?;
        let value = probability(value)?;
        match name.trim() {
            "p" => p = Some(value),
            "r" => r = Some(value),
            "good" => good = value,
            "bad" => bad = value,
            _ => return Err(ProfileError::GilbertElliott(whole.to_owned())),
        }
    }
    match (p, r) {
        (Some(p), Some(r)) if p + r > 0.0 => Ok(Loss::GilbertElliott { p, r, good, bad }),
        _ => Err(ProfileError::GilbertElliott(whole.to_owned())),
    }
}

/// `0.02` or `2%`.
fn probability(text: &str) -> Result<f64, ProfileError> {
    let text = text.trim();
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let value = number.trim().parse::<f64>().map(|value| value / scale).ok();
    value
        .filter(|value| (0.0..=1.0).contains(value))
        .ok_or_else(|| ProfileError::Probability(text.to_owned()))
}

/// Packets that are held back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reorder {
    /// Of how many.
    pub probability: f64,
    /// For how much longer than the others.
    pub extra: Duration,
}

/// A loss that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Not a number between 0 and 1.
    #[error("`{0}` is no probability: write 0.02 or 2%")]
    Probability(String),
    /// A run shorter than one packet.
    #[error("`{0}`: a burst is a number of packets, at least 1, as in 2%/3")]
    Burst(String),
    /// Not the form.
    #[error("`{0}`: write GE(p=0.01,r=0.3,bad=0.5), with good= when packets are lost in that state too")]
    GilbertElliott(String),
}

/// 100 ms at 10 Mbit/s.
const QUEUE: usize = 125_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_bursts_is_what_was_asked_for() {
        for (mean, burst) in [(0.01, 1.0), (0.02, 3.0), (0.10, 5.0), (0.35, 2.0), (0.9, 1.0)] {
            let loss = Loss::bursts(mean, burst);
            assert!((loss.mean() - mean).abs() < 1e-12, "{loss}: {}", loss.mean());
        }
        assert_eq!(Loss::bursts(0.0, 3.0), Loss::None);
        let Loss::GilbertElliott { r, .. } = Loss::bursts(0.02, 4.0) else {
            panic!("bursts have two states")
        };
        assert!((1.0 / r - 4.0).abs() < 1e-12);
    }

    #[test]
    fn the_references_profile_loses_what_it_says() {
        let loss: Loss = "GE(p=0.01,r=0.3,bad=0.5)".parse().unwrap();
        assert_eq!(loss, Loss::GilbertElliott { p: 0.01, r: 0.3, good: 0.0, bad: 0.5 });
        assert!((loss.mean() - 0.0161).abs() < 0.0001, "{}", loss.mean());
    }

    #[test]
    fn losses_that_come_together_vary_more() {
        let (coin, bursts) = (Loss::Uniform(0.02), Loss::bursts(0.02, 5.0));
        assert!((coin.deviation(20_000) - (0.02_f64 * 0.98 / 20_000.0).sqrt()).abs() < 1e-15);
        // The variance grows by (1+memory)/(1−memory) for long runs of packets.
        let Loss::GilbertElliott { p, r, .. } = bursts else { panic!("bursts have two states") };
        let factor = ((2.0 - p - r) / (p + r)).sqrt();
        let grown = bursts.deviation(20_000) / coin.deviation(20_000);
        assert!((grown / factor - 1.0).abs() < 0.01, "{grown} {factor}");
        // A chain without memory is a coin.
        let memoryless = Loss::GilbertElliott { p: 0.02, r: 0.98, good: 0.0, bad: 1.0 };
        assert!((memoryless.deviation(500) - coin.deviation(500)).abs() < 1e-12);
    }

    #[test]
    fn losses_as_people_write_them() {
        assert_eq!("2%".parse(), Ok(Loss::Uniform(0.02)));
        assert_eq!("0.5".parse(), Ok(Loss::Uniform(0.5)));
        assert_eq!("0".parse(), Ok(Loss::None));
        assert_eq!("none".parse(), Ok(Loss::None));
        assert_eq!("2%/3".parse(), Ok(Loss::bursts(0.02, 3.0)));
        let shown = Loss::bursts(0.02, 3.0).to_string();
        assert_eq!(shown.parse(), Ok(Loss::bursts(0.02, 3.0)), "{shown}");
        for wrong in
            ["2", "x", "-1%", "101%", "100%/3", "2%/0.5", "2%/x", "GE(p=1)", "GE(p=0,r=0)", "GE(q=1)"]
        {
            assert!(wrong.parse::<Loss>().is_err(), "{wrong}");
        }
    }
}
