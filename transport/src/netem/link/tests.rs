//! A link driven by hand.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::clock::now;

#[test]
fn a_perfect_wire_delivers_at_once() {
    let (mut link, start) = link(Profile::default());
    link.handle_packet(start, 1_200, 7);
    assert_eq!(link.poll_timeout(), Some(start));
    assert_eq!(link.poll_transmit(start), Some(7));
    assert_eq!(link.poll_timeout(), None);
}

#[test]
fn delay_is_exact() {
    let (mut link, start) = link(Profile::delay(ms(175)));
    link.handle_packet(start, 100, 1);
    assert_eq!(link.poll_transmit(start + ms(175) - Duration::from_nanos(1)), None);
    assert_eq!(link.poll_transmit(start + ms(175)), Some(1));
}

#[test]
fn the_rate_serialises_and_the_queue_drops_its_tail() {
    // 1,000 bytes at 1 Mbit/s take 8 ms.
    let (mut link, start) = link(Profile::delay(ms(10)).with_rate(1_000_000, 3_000));
    for packet in 0..5 {
        link.handle_packet(start, 1_000, packet);
    }
    assert_eq!(link.counters().queue_full, 2);
    // One was sent meanwhile, so one fits again.
    link.handle_packet(start + ms(8), 1_000, 5);
    assert_eq!(link.counters().queue_full, 2);
    assert_eq!(arrivals(&mut link, start), [(18, 0), (26, 1), (34, 2), (42, 5)]);
    // An idle wire has saved nothing up.
    link.handle_packet(start + ms(1_000), 1_000, 6);
    assert_eq!(link.poll_timeout(), Some(start + ms(1_018)));
}

#[test]
fn lost_packets_take_their_time_on_the_wire() {
    let lossy = Profile::default().with_rate(1_000_000, 100_000);
    let (mut link, start) = link(lossy.clone().with_loss(Loss::Uniform(1.0)));
    link.handle_packet(start, 1_000, 0);
    link.set_profile(lossy);
    link.handle_packet(start, 1_000, 1);
    assert_eq!(arrivals(&mut link, start), [(16, 1)]);
    assert_eq!(link.dropped(), [0]);
}

#[test]
fn jitter_keeps_the_order_unless_told_otherwise() {
    let calm = Profile::delay(ms(10)).with_jitter(ms(50));
    let wild = Profile { jitter_reorders: true, ..calm.clone() };
    for (profile, ordered) in [(calm, true), (wild, false)] {
        let (mut link, start) = link(profile);
        for packet in 0..200 {
            link.handle_packet(start + ms(1) * packet, 100, packet);
        }
        let arrived = arrivals(&mut link, start);
        assert_eq!(arrived.len(), 200);
        assert!(arrived.iter().all(|(at, packet)| *at >= packet + 10), "never before the delay");
        assert_eq!(arrived.is_sorted_by_key(|(_, packet)| *packet), ordered);
    }
}

#[test]
fn held_back_packets_are_overtaken() {
    let (mut link, start) = link(Profile::delay(ms(10)).with_reorder(0.2, ms(5)));
    for packet in 0..1_000 {
        link.handle_packet(start + ms(1) * packet, 100, packet);
    }
    let arrived = arrivals(&mut link, start);
    let held = arrived.iter().filter(|(at, packet)| *at == packet + 15).count();
    assert_eq!(held as u64, link.counters().held_back);
    assert!((100..300).contains(&held), "{held} of 1,000 at 20 %");
    assert!(arrived.iter().all(|(at, packet)| *at == packet + 15 || *at == packet + 10));
}

#[test]
fn duplicates_arrive_behind_their_originals() {
    let (mut link, start) = link(Profile::default().with_duplicate(0.3));
    for packet in 0..100 {
        link.handle_packet(start + ms(1) * packet, 100, packet);
    }
    let arrived = arrivals(&mut link, start);
    let copies = arrived.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert_eq!(arrived.len(), 100 + copies);
    assert_eq!(copies as u64, link.counters().duplicated);
    assert!((10..60).contains(&copies), "{copies} of 100 at 30 %");
}

#[test]
fn the_mtu_is_silent() {
    let (mut link, start) = link(Profile::default().with_mtu(1_280));
    link.handle_packet(start, 1_281, 0);
    link.handle_packet(start, 1_280, 1);
    assert_eq!(arrivals(&mut link, start), [(0, 1)]);
    assert_eq!(link.counters().too_big, 1);
}

#[test]
fn an_outage_takes_what_enters_and_what_would_leave() {
    let (mut link, start) = link(Profile::delay(ms(100)));
    link.handle_packet(start, 1, 0); // due at 100, before the outage
    link.handle_packet(start + ms(50), 1, 1); // due within
    link.handle_packet(start + ms(140), 1, 2); // due behind
    link.outage(start + ms(145), ms(50));
    link.handle_packet(start + ms(150), 1, 3); // enters within
    link.handle_packet(start + ms(195), 1, 4); // enters behind
    assert_eq!(arrivals(&mut link, start), [(100, 0), (240, 2), (295, 4)]);
    assert_eq!(link.counters().outage, 2);
}

#[test]
fn what_is_on_its_way_is_bounded() {
    let (mut link, start) = link(Profile::delay(ms(1_000)));
    for packet in 0..IN_FLIGHT as u32 + 10 {
        link.handle_packet(start, 1, packet);
    }
    assert_eq!(link.counters().queue_full, 10);
}

#[test]
fn a_driver_that_is_late_is_noticed() {
    let (mut link, start) = link(Profile::delay(ms(10)));
    link.handle_packet(start, 1, 0);
    link.handle_packet(start + ms(1), 1, 1);
    assert!(link.poll_transmit(start + ms(12)).is_some());
    assert_eq!((link.counters().late, link.counters().latest), (1, ms(2)));
    assert!(link.poll_transmit(start + ms(12)).is_some());
    assert_eq!(link.counters().late, 1);
}

/// What `Loss::deviation` says is how measured losses of many seeds spread: their distances from the mean, in deviations,
/// are 0 on average and 1 in the quadratic mean, within three standard errors of each.
#[test]
fn the_spread_over_seeds_is_the_models() {
    const PACKETS: u64 = 10_000;
    const SEEDS: u64 = 300;
    let loss = Loss::bursts(0.05, 5.0);
    let (mut sum, mut squares) = (0.0, 0.0);
    for seed in 0..SEEDS {
        let mut link = Link::new(Profile::default().with_loss(loss), ChaCha8Rng::seed_from_u64(seed));
        let start = now();
        for _ in 0..PACKETS {
            link.handle_packet(start, 1, ());
            link.poll_transmit(start);
        }
        let measured = link.counters().lost as f64 / PACKETS as f64;
        let distance = (measured - loss.mean()) / loss.deviation(PACKETS);
        sum += distance;
        squares += distance * distance;
    }
    let (mean, spread) = (sum / SEEDS as f64, (squares / SEEDS as f64).sqrt());
    let error = 3.0 / (SEEDS as f64).sqrt();
    assert!(mean.abs() < error, "{mean}");
    assert!((spread - 1.0).abs() < error, "{spread}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same seed and packets: the same fates, whenever the packets come and whoever else is in the way.
    #[test]
    fn losses_depend_on_the_seed_and_the_index_alone(seed: u64, gaps in prop::collection::vec(0_u64..20, 300)) {
        let loss = Loss::GilbertElliott { p: 0.1, r: 0.4, good: 0.02, bad: 0.8 };
        let start = now();
        let bare = Profile::default().with_loss(loss);
        let busy = bare.clone().with_rate(200_000, 2_000).with_jitter(ms(9)).with_duplicate(0.2).with_reorder(0.1, ms(3));
        let mut links = [bare, busy].map(|profile| Link::new(profile, ChaCha8Rng::seed_from_u64(seed)));
        let mut at = start;
        for (packet, gap) in gaps.into_iter().enumerate() {
            links[0].handle_packet(start, 100, packet);
            at += ms(gap);
            links[1].handle_packet(at, 500, packet);
        }
        prop_assert_eq!(links[0].dropped(), links[1].dropped());
        prop_assert!(links[0].dropped().len() > 5);
    }

    /// Nothing is made or lost without being counted.
    #[test]
    fn every_packet_is_accounted_for(
        seed: u64,
        loss in 0.0..0.5_f64,
        rate in 10_000_u64..1_000_000,
        duplicate in 0.0..0.5_f64,
        mtu in 100_usize..1_500,
        packets in prop::collection::vec((0_u64..30, 1_usize..1_500), 1..200),
    ) {
        let profile = Profile::delay(ms(20)).with_jitter(ms(30)).with_loss(Loss::bursts(loss, 3.0)).with_rate(rate, 5_000)
            .with_duplicate(duplicate).with_reorder(0.1, ms(50)).with_mtu(mtu);
        let mut link = Link::new(profile, ChaCha8Rng::seed_from_u64(seed));
        let start = now();
        let mut now = start;
        for (gap, len) in &packets {
            now += ms(*gap);
            link.handle_packet(now, *len, 0);
        }
        link.outage(now + ms(10), ms(40));
        let mut delivered = 0;
        while let Some(due) = link.poll_timeout() {
            delivered += u64::from(link.poll_transmit(due).is_some());
        }
        let counters = link.counters();
        prop_assert_eq!(counters.offered, packets.len() as u64);
        prop_assert_eq!(counters.delivered, delivered);
        prop_assert_eq!(
            counters.offered + counters.duplicated,
            delivered + counters.lost + counters.queue_full + counters.too_big + counters.outage
        );
    }

    /// Measured loss within four standard deviations of the model: one case in 16,000 would be out by chance.
    #[test]
    fn the_loss_is_the_models(seed: u64, mean in 0.005..0.3_f64, burst in 1.0..8.0_f64) {
        const PACKETS: u64 = 20_000;
        let loss = Loss::bursts(mean, burst);
        let mut link = Link::new(Profile::default().with_loss(loss), ChaCha8Rng::seed_from_u64(seed));
        let start = now();
        for _ in 0..PACKETS {
            link.handle_packet(start, 1, ());
            link.poll_transmit(start);
        }
        let measured = link.counters().lost as f64 / PACKETS as f64;
        prop_assert!((measured - mean).abs() < 4.0 * loss.deviation(PACKETS), "{measured} for {mean}/{burst}");
    }
}

fn link(profile: Profile) -> (Link<u32>, Instant) {
    (Link::new(profile, ChaCha8Rng::seed_from_u64(42)), now())
}

/// Everything that arrives: when, in milliseconds from the start, and what.
fn arrivals(link: &mut Link<u32>, start: Instant) -> Vec<(u32, u32)> {
    let mut all = Vec::new();
    while let Some(due) = link.poll_timeout() {
        if let Some(packet) = link.poll_transmit(due) {
            all.push(((due - start).as_millis() as u32, packet));
        }
    }
    all
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
