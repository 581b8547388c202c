//! Storms and drains in small: the figures of issue 5 on a few thousand clients and a few seeds. The whole size:
//! `cargo xtask sim storm` and `drain`.

use tidegate_interop_tests::storm::drain::{self, DrainConfig};
use tidegate_interop_tests::storm::outage::{self, StormConfig, StormOutcome, Strategy};

/// `TIDEGATE_SEED` alone, where it is set.
fn seeds() -> Vec<u64> {
    match std::env::var("TIDEGATE_SEED") {
        Ok(seed) => vec![seed.parse().expect("TIDEGATE_SEED is a number")],
        Err(_) => (1..=3).collect(),
    }
}

fn storm(seed: u64) -> StormConfig {
    // Two nodes: a place is a place, however few there are in a second.
    StormConfig { nodes: 2, ..StormConfig::new(20_000, seed) }
}

/// What holds for every storm with production's machines.
fn check_admission(config: &StormConfig, outcome: &StormOutcome) {
    let bound = 1.05 + f64::from(config.nodes) / config.rate;
    assert!(outcome.busiest_second <= bound, "SEED={} {} of R", config.seed, outcome.busiest_second);
}

#[test]
fn a_region_comes_back_as_fast_as_it_can_be_taken() {
    for seed in seeds() {
        let config = storm(seed);
        let outcome = outage::run(&config);
        check_admission(&config, &outcome);
        let t999 = outcome.t999.expect("all are back");
        assert!(t999 <= 1.10 * config.ideal(), "SEED={seed} {t999}");
        assert!(outcome.attempts <= 1.2, "SEED={seed} {}", outcome.attempts);
        assert_eq!(outcome.back, outcome.wanting);
    }
}

#[test]
fn others_dial_several_times_as_often() {
    for seed in seeds() {
        let ours = outage::run(&storm(seed));
        for strategy in [Strategy::FullJitter, Strategy::Decorrelated, Strategy::Slack] {
            let theirs = outage::run(&StormConfig { strategy, ..storm(seed) });
            assert!(theirs.attempts > 3.0 * ours.attempts, "SEED={seed} {strategy:?} {}", theirs.attempts);
            assert!(theirs.peak_dials > 3 * ours.peak_dials, "SEED={seed} {strategy:?}");
        }
    }
}

#[test]
fn a_window_that_is_half_of_what_is_needed_is_survived() {
    for seed in seeds() {
        for costly in [false, true] {
            let config = StormConfig { window: 0.5, costly, ..storm(seed) };
            let outcome = outage::run(&config);
            check_admission(&config, &outcome);
            let t999 = outcome.t999.expect("all are back");
            assert!(t999 <= 3.0 * config.ideal(), "SEED={seed} costly={costly} {t999}");
        }
    }
}

#[test]
fn where_refusing_costs_a_handshake_backoff_alone_spends_its_time_on_refusals() {
    let config = StormConfig { costly: true, strategy: Strategy::FullJitter, ..storm(1) };
    let theirs = outage::run(&config);
    let ours = outage::run(&StormConfig { strategy: Strategy::Planned, ..config.clone() });
    let t999 = ours.t999.expect("all are back");
    assert!(theirs.t999.is_none_or(|theirs| theirs > 1.3 * t999), "{:?} and {t999}", theirs.t999);
    assert!(ours.wasted < 0.01 && theirs.wasted > 0.2, "{} and {}", ours.wasted, theirs.wasted);
}

#[test]
fn a_drain_follows_the_slack_of_its_targets_and_nobody_is_refused() {
    for seed in seeds() {
        let config = DrainConfig::new(20_000, seed);
        let outcome = drain::run(&config);
        assert_eq!((outcome.refused, outcome.forced), (0, 0), "SEED={seed}");
        assert_eq!(outcome.moved, 20_000, "SEED={seed}");
        assert!(outcome.took_999 <= 1.1 * outcome.ideal, "SEED={seed} {}", outcome.took_999);
        // The last one may lose three packets in a row: 7 s of timers.
        assert!(outcome.took <= 1.1 * outcome.ideal + 7.0, "SEED={seed} {}", outcome.took);
        assert!(outcome.busiest_second <= 1.06, "SEED={seed} {}", outcome.busiest_second);
    }
}

#[test]
fn a_seed_says_everything() {
    let figures = |seed| {
        let outcome = outage::run(&StormConfig { clients: 4_000, rate: 100.0, ..storm(seed) });
        (outcome.t999.map(f64::to_bits), outcome.attempts.to_bits(), outcome.wanting)
    };
    assert_eq!(figures(5), figures(5));
    assert_ne!(figures(5), figures(6));
}
