//! The laboratory's in-memory twin: two endpoints on a virtual clock, opaque packets between them.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tidegate_transport::clock;
use tidegate_transport::netem::{End, Loss, Profile, Wire};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A run is a function of its seed: every arrival, at the nanosecond.
    #[test]
    fn the_same_seed_is_the_same_run(seed: u64, mean in 0.0..0.3_f64, burst in 1.0..6.0_f64) {
        let profile = Profile::delay(Duration::from_millis(30)).with_jitter(Duration::from_millis(9))
            .with_loss(Loss::bursts(mean, burst)).with_rate(2_000_000, 30_000).with_duplicate(0.05)
            .with_reorder(0.05, Duration::from_millis(4));
        let run = || stop_and_wait(&mut Wire::new(seed, profile.clone(), profile.clone()), 100);
        let first = run();
        prop_assert_eq!(&first, &run());
        prop_assert_eq!(first.delivered, 100, "repeating gets everything through");
    }

    /// Without chance in it, the twin takes exactly as long as the arithmetic says: each round trip is serialisation and
    /// delay, both ways.
    #[test]
    fn time_on_the_twin_is_the_models(delay in 0_u64..400, rate in 50_000_u64..50_000_000) {
        let profile = Profile::delay(Duration::from_millis(delay)).with_rate(rate, 10_000);
        let run = stop_and_wait(&mut Wire::new(1, profile.clone(), profile), 20);
        let nanos = |bytes: u64| Duration::from_nanos(bytes * 8_000_000_000 / rate);
        let round = Duration::from_millis(2 * delay) + nanos(PACKET as u64) + nanos(ACK as u64);
        prop_assert_eq!(run.took, round * 20);
        prop_assert_eq!(run.sent, 20);
    }

    /// How often stop-and-wait must send is how often a packet or its acknowledgement is lost.
    #[test]
    fn repetitions_are_the_losses(seed: u64, loss in 0.0..0.4_f64) {
        let profile = Profile::delay(Duration::from_millis(10)).with_loss(Loss::Uniform(loss));
        let mut wire = Wire::new(seed, profile.clone(), profile);
        let run = stop_and_wait(&mut wire, 2_000);
        let lost = wire.counters(End::Client).lost + wire.counters(End::Server).lost;
        prop_assert_eq!(run.sent, 2_000 + lost);
        // Geometric with the chance q of a round that works: mean 1/q, deviation √(1−q)/q. Five of them, so that of 48
        // cases none fails by chance.
        let works = (1.0 - loss).powi(2);
        let (mean, deviation) = (2_000.0 / works, (2_000.0 * (1.0 - works)).sqrt() / works);
        prop_assert!((run.sent as f64 - mean).abs() <= 5.0 * deviation + 1e-9, "{} for {mean} ± {deviation}", run.sent);
    }
}

#[test]
fn an_outage_on_the_twin_costs_its_length_and_no_packet() {
    let profile = Profile::delay(Duration::from_millis(20));
    let calm = stop_and_wait(&mut Wire::new(1, profile.clone(), profile.clone()), 50).took;
    let mut wire = Wire::new(1, profile.clone(), profile);
    let start = clock::now();
    wire.outage(start, Duration::from_secs(8));
    let run = stop_and_wait_from(&mut wire, 50, start);
    assert_eq!(run.delivered, 50);
    assert!(run.took >= calm + Duration::from_secs(8) && run.took <= calm + Duration::from_secs(8) + TIMEOUT);
}

/// What happened in a run.
#[derive(Debug, PartialEq)]
struct Run {
    took: Duration,
    sent: u64,
    delivered: u64,
    arrivals: Vec<(Duration, End, u64)>,
}

fn stop_and_wait(wire: &mut Wire<u64>, packets: u64) -> Run {
    stop_and_wait_from(wire, packets, clock::now())
}

/// The simplest reliable protocol: the client sends the next number when the last was acknowledged, and again after a
/// timeout.
fn stop_and_wait_from(wire: &mut Wire<u64>, packets: u64, start: Instant) -> Run {
    let mut now = start;
    let (mut sent, mut acknowledged, mut delivered) = (0, 0, 0);
    let mut again = start;
    let mut arrivals = Vec::new();
    while acknowledged < packets {
        if again <= now {
            wire.handle_packet(now, End::Client, PACKET, acknowledged);
            sent += 1;
            again = now + TIMEOUT;
        }
        now = wire.poll_timeout().map_or(again, |due| due.min(again)).max(now);
        while let Some((to, number)) = wire.poll_transmit(now) {
            arrivals.push((now - start, to, number));
            match to {
                End::Server => {
                    delivered += u64::from(number == delivered);
                    wire.handle_packet(now, End::Server, ACK, number);
                }
                End::Client if number == acknowledged => {
                    acknowledged += 1;
                    again = now;
                }
                End::Client => {}
            }
        }
    }
    Run { took: now - start, sent, delivered, arrivals }
}

const PACKET: usize = 1_200;
const ACK: usize = 40;
const TIMEOUT: Duration = Duration::from_secs(2);
