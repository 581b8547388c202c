//! The decisions, one by one and as a crowd.

use super::*;
use crate::plan::Alternative;
use rand::SeedableRng;

fn plan(rank: u32) -> Arc<ReconnectPlan> {
    let alternative = |host: &str, elsewhere| Alternative { host: host.to_owned(), weight: 1, elsewhere };
    Arc::new(ReconnectPlan {
        epoch: 3,
        node_ms: 2_000,
        region_ms: 100_000,
        rank,
        alternatives: vec![alternative("near", false), alternative("far", true)],
    })
}

fn client(seed: u64, plan: Option<Arc<ReconnectPlan>>) -> Reconnect {
    let mut reconnect = Reconnect::new(ChaCha8Rng::seed_from_u64(seed));
    if let Some(plan) = plan {
        reconnect.handle_plan(plan, true);
    }
    reconnect
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_lost_server_means_the_node_window_then_what_is_left_of_the_regions_then_jitter() {
    let start = Instant::now();
    let plan = plan(1);
    let mut reconnect = client(1, Some(Arc::clone(&plan)));
    reconnect.handle_connected(start);
    let lost = start + Duration::from_secs(3600);
    let first = reconnect.handle_ended(lost, Cause::ServerLost);
    let exact = plan.node_window().mul_f64(plan.place());
    assert!((exact..exact + SPREAD).contains(&first.delay), "{first:?}");
    assert_eq!(first.host.as_deref(), Some("near"));
    let later = lost + Duration::from_secs(5);
    let second = reconnect.handle_ended(later, Cause::Unreachable);
    let exact = Duration::from_secs(95).mul_f64(plan.place());
    assert!((exact..exact + SPREAD).contains(&second.delay), "{second:?}");
    assert_eq!(second.host.as_deref(), Some("far"));
    for bound in [1, 2, 4, 8] {
        let dial = reconnect.handle_ended(later, Cause::Unreachable);
        assert!(dial.delay < Duration::from_secs(bound), "{dial:?}");
        assert_eq!(dial.host.as_deref(), Some("far"));
    }
}

#[test]
fn an_outage_is_over_after_a_stable_connection_and_not_before() {
    let start = Instant::now();
    let mut reconnect = client(2, Some(plan(40)));
    reconnect.handle_connected(start);
    reconnect.handle_ended(start, Cause::ServerLost);
    reconnect.handle_connected(start);
    let flapping = reconnect.handle_ended(start + millis(29_999), Cause::ServerLost);
    assert_eq!(flapping.host.as_deref(), Some("far"), "the same outage goes on in the region's window");
    reconnect.handle_connected(start);
    let anew = reconnect.handle_ended(start + millis(30_000), Cause::ServerLost);
    assert_eq!(anew.host.as_deref(), Some("near"));
    assert!(anew.delay <= millis(2_300));
}

#[test]
fn ones_own_network_waits_for_nobody() {
    let now = Instant::now();
    for seed in 0..200 {
        let mut reconnect = client(seed, Some(plan(77)));
        reconnect.handle_connected(now);
        let dial = reconnect.handle_ended(now, Cause::NetworkChanged);
        assert!(dial.delay < LOCAL_SPREAD && dial.host.is_none(), "{dial:?}");
        let dial = reconnect.handle_ended(now, Cause::Unreachable);
        assert!(dial.delay < Backoff::BASE, "a tunnel is no outage of a region: {dial:?}");
        // And it cuts short a wait in a window.
        let mut reconnect = client(seed, Some(plan(77)));
        reconnect.handle_ended(now, Cause::ServerLost);
        reconnect.handle_ended(now, Cause::Unreachable);
        assert!(reconnect.handle_ended(now, Cause::NetworkChanged).delay < LOCAL_SPREAD);
    }
}

#[test]
fn a_slot_is_kept_to_the_millisecond_and_a_liar_is_not_believed_for_ever() {
    let now = Instant::now();
    let mut reconnect = client(3, Some(plan(5)));
    reconnect.handle_ended(now, Cause::ServerLost);
    let ticket: Arc<str> = Arc::from("ticket");
    let deferred = |after| Cause::Deferred { after, ticket: Some(Arc::clone(&ticket)) };
    let dial = reconnect.handle_ended(now, deferred(millis(7_321)));
    assert_eq!(dial, Dial { delay: millis(7_321), host: None, ticket: Some(Arc::clone(&ticket)) });
    assert_eq!(reconnect.handle_ended(now, deferred(Duration::MAX)).delay, Reconnect::MAX_SLOT);
    let mut total = Duration::ZERO;
    for _ in 0..20 {
        total += reconnect.handle_ended(now, deferred(Duration::ZERO)).delay;
    }
    assert!(total > Duration::from_secs(60), "refused without end: {total:?}");
    // The slot's server is gone: no second window, since the first was long ago.
    let after_slot = reconnect.handle_ended(now, Cause::Unreachable);
    assert!(after_slot.delay < Backoff::CAP && after_slot.ticket.is_none());
}

#[test]
fn advice_is_followed() {
    let now = Instant::now();
    let mut reconnect = client(4, Some(plan(9)));
    let closed = |policy, after| Cause::Closed { policy, after };
    let dial = reconnect.handle_ended(now, closed(ReconnectPolicy::Now, None));
    assert_eq!(dial.delay, Duration::ZERO);
    let again = reconnect.handle_ended(now, closed(ReconnectPolicy::Now, None));
    assert_eq!(again.host.as_deref(), Some("near"), "at once only once: then the plan");
    let mut reconnect = client(5, Some(plan(9)));
    let dial = reconnect.handle_ended(now, closed(ReconnectPolicy::Backoff, Some(millis(60_000))));
    assert!(dial.delay >= millis(60_000));
    let dial = reconnect.handle_ended(now, Cause::SentElsewhere);
    assert_eq!(dial.host.as_deref(), Some("far"));
    assert!(dial.delay < SPREAD);
}

#[test]
fn who_knows_nothing_uses_full_jitter() {
    let now = Instant::now();
    let mut reconnect = client(6, None);
    for attempt in 0..10 {
        let dial = reconnect.handle_ended(now, Cause::ServerLost);
        assert!(dial.delay < Duration::from_secs(1 << attempt.min(6)).min(Backoff::CAP));
        assert_eq!((dial.host, dial.ticket), (None, None));
    }
}

#[test]
fn an_old_plan_does_not_replace_a_newer_one() {
    let now = Instant::now();
    let mut reconnect = client(7, Some(plan(1)));
    let older = Arc::new(ReconnectPlan { epoch: 2, node_ms: 200_000, ..(*plan(1)).clone() });
    reconnect.handle_plan(Arc::clone(&older), false);
    assert!(reconnect.handle_ended(now, Cause::ServerLost).delay < millis(2_300));
    // Another edge counts by itself.
    let mut reconnect = client(7, Some(plan(1)));
    reconnect.handle_plan(older, true);
    assert!(reconnect.handle_ended(now, Cause::ServerLost).delay > millis(2_300));
}

/// The machine of every SDK keeps to the same vectors.
#[derive(serde::Deserialize)]
struct Vector {
    name: String,
    plan: Option<ReconnectPlan>,
    steps: Vec<Step>,
}

#[derive(serde::Deserialize)]
struct Step {
    at_ms: u64,
    ended: Option<Ended>,
    #[serde(default)]
    from_ms: u64,
    #[serde(default)]
    below_ms: u64,
    host: Option<String>,
    ticket: Option<String>,
    #[serde(default)]
    first: bool,
}

#[derive(serde::Deserialize)]
struct Ended {
    cause: String,
    policy: Option<String>,
    after_ms: Option<u64>,
    ticket: Option<String>,
}

impl Ended {
    fn cause(&self) -> Cause {
        let after = self.after_ms.map(millis);
        match self.cause.as_str() {
            "lost" => Cause::ServerLost,
            "unreachable" => Cause::Unreachable,
            "network_changed" => Cause::NetworkChanged,
            "elsewhere" => Cause::SentElsewhere,
            "deferred" => {
                let ticket = self.ticket.as_deref().map(Arc::from);
                Cause::Deferred { after: after.unwrap_or_default(), ticket }
            }
            "closed" => {
                let policy = self.policy.as_deref().and_then(ReconnectPolicy::from_name).expect("a policy");
                Cause::Closed { policy, after }
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn the_vectors_hold() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../vectors/reconnect.json")).expect("vectors");
    let start = Instant::now();
    for vector in &vectors {
        for seed in 0..100 {
            let mut reconnect = client(seed, vector.plan.clone().map(Arc::new));
            for step in &vector.steps {
                let now = start + millis(step.at_ms);
                let Some(ended) = &step.ended else {
                    reconnect.handle_connected(now);
                    continue;
                };
                let dial = reconnect.handle_ended(now, ended.cause());
                let context = format!("{} at {} ms: {dial:?}", vector.name, step.at_ms);
                assert!((millis(step.from_ms)..millis(step.below_ms)).contains(&dial.delay), "{context}");
                assert_eq!(dial.host.as_deref(), step.host.as_deref(), "{context}");
                assert_eq!(dial.ticket.as_deref(), step.ticket.as_deref(), "{context}");
                assert_eq!(reconnect.is_first_dial(), step.first, "{context}");
            }
        }
    }
}

#[test]
fn a_crowd_fills_a_window_evenly() {
    let now = Instant::now();
    let mut tenths = [0_u32; 10];
    for rank in 0..5_000 {
        let mut reconnect = client(rank.into(), Some(plan(rank)));
        reconnect.handle_ended(now, Cause::ServerLost);
        let dial = reconnect.handle_ended(now, Cause::Unreachable);
        tenths[((dial.delay.as_secs_f64() / 10.0) as usize).min(9)] += 1;
    }
    assert!(tenths.iter().all(|count| (470..=530).contains(count)), "{tenths:?}");
}
