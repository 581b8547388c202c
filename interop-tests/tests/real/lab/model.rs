//! Loss, delay, rate and queue.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tidegate_interop_tests::lab::{Lab, LabConfig};
use tidegate_transport::netem::{End, Loss, Profile, Wire};

use super::probe::Probe;

/// Three standard deviations, widened for bursts; every packet is missed by the receiver exactly where the model dropped
/// it, again so in a second run and in the in-memory twin, and not so with another seed.
#[test]
fn losses_are_the_models_and_the_same_for_the_same_seed() -> Result<()> {
    let loss: Loss = "GE(p=0.01,r=0.3,bad=0.5)".parse()?;
    let missing = losses(7, loss)?;
    let measured = missing.len() as f64 / PACKETS as f64;
    let (mean, sigma) = (loss.mean(), loss.deviation(PACKETS));
    ensure!((measured - mean).abs() < 3.0 * sigma, "{measured:.4} is not {mean:.4} ± 3 × {sigma:.4}");
    ensure!(missing == losses(7, loss)?, "another run with this seed loses other packets");
    ensure!(missing == twin(7, loss), "the twin loses other packets");
    ensure!(missing != losses(8, loss)?, "another seed loses the same packets");
    Ok(())
}

/// Runs of the length that was asked for, within three standard deviations as well.
#[test]
fn uniform_losses_and_long_bursts() -> Result<()> {
    for (seed, loss) in [(1, Loss::Uniform(0.05)), (4, Loss::bursts(0.05, 5.0))] {
        let missing = losses(seed, loss)?;
        let measured = missing.len() as f64 / PACKETS as f64;
        let sigma = loss.deviation(PACKETS);
        ensure!((measured - loss.mean()).abs() < 3.0 * sigma, "{measured:.4} for {loss}");
        let bursts = 1 + missing.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
        let mean = missing.len() as f64 / bursts as f64;
        let wanted = if let Loss::Uniform(probability) = loss { 1.0 / (1.0 - probability) } else { 5.0 };
        // A geometric run of mean b has the deviation √(b(b−1)).
        let sigma = (wanted * (wanted - 1.0) / bursts as f64).sqrt();
        ensure!(
            (mean - wanted).abs() < 3.0 * sigma,
            "runs of {mean:.2}, not {wanted:.2} ± 3 × {sigma:.2}, for {loss}"
        );
    }
    Ok(())
}

/// One way, from `send` to the return of `recv`. The median, because it is the link that is measured and not what else
/// this machine does: a preempted receiver makes single packets late by whole milliseconds. None may be early.
#[test]
fn delay_is_the_models_within_a_millisecond() -> Result<()> {
    for delay in [0, 25, 175].map(Duration::from_millis) {
        let lab = Lab::start(LabConfig::symmetric(1, Profile::delay(delay)))?;
        let mut probe = Probe::new(&lab)?;
        for _ in 0..400 {
            probe.send(100)?;
            // Paced, so that packets do not wait for each other.
            thread::sleep(Duration::from_millis(1));
        }
        let (sent, arrivals, counters) = probe.finish()?;
        let mut took = one_way(&sent, &arrivals);
        took.sort_unstable();
        ensure!(took.len() == 400, "{} arrived", took.len());
        let (first, median, tenth) = (took[0], took[200], took[360]);
        eprintln!("{delay:?}: at least {first:?}, median {median:?}, 90 % {tenth:?}; {:?}", counters.up);
        ensure!(first >= delay, "one arrived after {first:?} of {delay:?}");
        ensure!(median < delay + Duration::from_millis(1), "the median is {median:?} for {delay:?}");
    }
    Ok(())
}

#[test]
fn the_rate_is_kept_and_the_queue_has_an_end() -> Result<()> {
    let profile = Profile::default().with_rate(10_000_000, 20_000);
    let lab = Lab::start(LabConfig::symmetric(1, profile))?;
    let mut probe = Probe::new(&lab)?;
    // A queue that never runs dry and never overflows: 1,028 bytes each take 822 µs.
    for _ in 0..500 {
        probe.until_in_flight_below(16)?;
        probe.send(1_000)?;
    }
    probe.until_in_flight_below(1)?;
    ensure!(lab.control().counters().up.queue_full == 0, "{:?}", lab.control().counters().up);
    // Then a burst of three times what fits.
    for _ in 0..60 {
        probe.send(1_000)?;
    }
    let (_, arrivals, counters) = probe.finish()?;
    let (first, last) = (arrivals[&0], arrivals[&499]);
    let rate = 499.0 * 1_028.0 * 8.0 / (last - first).as_secs_f64();
    ensure!((9.5e6..10.2e6).contains(&rate), "{rate:.0} bits per second");
    let passed = 60 - counters.up.queue_full;
    // 19 fit; what is sent meanwhile makes room.
    ensure!((19..50).contains(&passed), "{passed} of the burst passed: {:?}", counters.up);
    ensure!(arrivals.len() as u64 == 500 + passed, "{} arrived", arrivals.len());
    Ok(())
}

#[test]
fn reordered_and_duplicated_packets_reach_the_program_so() -> Result<()> {
    let profile = Profile::default().with_duplicate(0.1).with_reorder(0.1, Duration::from_millis(5));
    let lab = Lab::start(LabConfig::symmetric(3, profile))?;
    let mut probe = Probe::new(&lab)?;
    for _ in 0..500 {
        probe.until_in_flight_below(50)?;
        probe.send(100)?;
        thread::sleep(Duration::from_micros(200));
    }
    let counters = lab.control().counters().up;
    super::probe::until("the copies", || probe.received() >= 500 + counters.duplicated)?;
    ensure!((25..90).contains(&counters.duplicated), "{counters:?}");
    let (_, arrivals, counters) = probe.finish()?;
    ensure!(arrivals.len() == 500, "{} arrived", arrivals.len());
    let mut by_time: Vec<_> = arrivals.iter().map(|(number, at)| (*at, *number)).collect();
    by_time.sort_unstable();
    let overtaken = by_time.windows(2).filter(|pair| pair[0].1 > pair[1].1).count();
    ensure!(overtaken > 20 && counters.up.held_back > 20, "{overtaken} overtaken, {:?}", counters.up);
    Ok(())
}

/// The numbers that the receiver missed.
fn losses(seed: u64, loss: Loss) -> Result<Vec<u64>> {
    let lab = Lab::start(LabConfig::symmetric(seed, Profile::default().with_loss(loss)))?;
    let mut probe = Probe::new(&lab)?;
    for _ in 0..PACKETS {
        if probe.sent.len().is_multiple_of(16) {
            probe.until_in_flight_below(100)?;
        }
        probe.send(20)?;
    }
    let (_, arrivals, counters) = probe.finish()?;
    let missing: Vec<u64> = (0..PACKETS).filter(|number| !arrivals.contains_key(number)).collect();
    ensure!(counters.up.offered == PACKETS, "others sent as well: {:?}", counters.up);
    ensure!(missing == lab.control().dropped(End::Client), "lost elsewhere: {:?}", counters.up);
    Ok(missing)
}

fn twin(seed: u64, loss: Loss) -> Vec<u64> {
    let profile = Profile::default().with_loss(loss);
    let mut wire = Wire::new(seed, profile.clone(), profile);
    let start = tidegate_transport::clock::now();
    let mut missing = Vec::new();
    for number in 0..PACKETS {
        wire.handle_packet(start, End::Client, 48, number);
        if wire.poll_transmit(start) != Some((End::Server, number)) {
            missing.push(number);
        }
    }
    missing
}

fn one_way(sent: &[Instant], arrivals: &std::collections::BTreeMap<u64, Instant>) -> Vec<Duration> {
    arrivals.iter().filter_map(|(number, at)| Some(*at - *sent.get(*number as usize)?)).collect()
}

const PACKETS: u64 = 25_000;
