//! The machine, driven by hand.

use super::*;

const PTO: Duration = Duration::from_millis(100);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Driver {
    watch: PathWatch,
    start: Instant,
    now: Instant,
    received: u64,
}

impl Driver {
    #[expect(clippy::disallowed_methods, reason = "some instant to start from: only differences count")]
    fn new() -> Self {
        let now = Instant::now();
        Self { watch: PathWatch::new(), start: now, now, received: 0 }
    }

    fn hear(&mut self) {
        self.received += 1;
        self.watch.handle_received(self.now, self.received, PTO);
    }

    /// `count` datagrams, `gap` apart, the last one now.
    fn flow(&mut self, count: u64, gap: Duration) {
        for _ in 0..count {
            self.now += gap;
            self.hear();
        }
    }

    /// Lets time pass; what it brought, with how long after `since`.
    fn pass(&mut self, time: Duration) -> Vec<(Duration, PathEvent)> {
        let (since, end) = (self.now, self.now + time);
        let mut events = Vec::new();
        while let Some(due) = self.watch.poll_timeout().filter(|due| *due <= end) {
            assert!(due >= self.now, "no timer is in the past for long");
            self.now = due;
            self.watch.handle_received(self.now, self.received, PTO);
            self.watch.handle_timeout(self.now);
            let now = self.now;
            events.extend(std::iter::from_fn(|| self.watch.poll_event()).map(|event| (now - since, event)));
            assert!(now - self.start < ms(3_600_000), "time stands still");
        }
        self.now = end;
        events
    }
}

#[test]
fn a_connection_on_which_little_comes_has_no_timer() {
    let mut driver = Driver::new();
    assert_eq!(driver.watch.poll_timeout(), None);
    // A ping now and then, a reply of a few packets.
    for _ in 0..20 {
        driver.flow(7, ms(10));
        assert_eq!(driver.watch.poll_timeout(), None);
        assert_eq!(driver.pass(ms(25_000)), []);
    }
    driver.flow(100, ms(5_001));
    assert_eq!(driver.watch.poll_timeout(), None);
}

#[test]
fn a_pto_of_silence_after_a_flow_is_probed_three_times_and_then_suspect() {
    use PathEvent::{Probe, Rebind, Suspect};
    let mut driver = Driver::new();
    driver.flow(100, ms(10));
    let events = driver.pass(ms(60_000));
    assert_eq!(events[..3], [(ms(100), Probe), (ms(200), Probe), (ms(400), Probe)]);
    assert_eq!(events[3..6], [(ms(1_100), Suspect), (ms(1_100), Rebind), (ms(3_100), Rebind)]);
    assert_eq!((events.len(), events.last()), (4 + 15, Some(&(ms(29_100), Rebind))));
    assert_eq!(driver.watch.poll_timeout(), None, "nothing more until something is heard");
}

#[test]
fn what_is_heard_ends_the_silence_and_one_answer_is_no_flow() {
    let mut driver = Driver::new();
    driver.flow(100, ms(10));
    assert_eq!(driver.pass(ms(150)), [(ms(100), PathEvent::Probe)]);
    driver.hear();
    assert_eq!(driver.pass(ms(60_000)), [], "a flow that ended costs one probe");
    driver.flow(100, ms(10));
    assert_eq!(driver.pass(ms(450)).len(), 3);
    driver.flow(3, ms(5));
    assert_eq!(driver.pass(ms(60_000)), [], "three probes have three answers");
    driver.flow(100, ms(10));
    assert_eq!(driver.pass(ms(150)).len(), 1);
    driver.flow(1, ms(5));
    assert_eq!(driver.watch.poll_timeout(), None, "that was the answer");
    driver.flow(1, ms(5));
    assert!(driver.watch.poll_timeout().is_some(), "it flows as before");
    // It comes back, and dies again.
    driver.flow(100, ms(10));
    assert_eq!(driver.pass(ms(150)), [(ms(100), PathEvent::Probe)]);
    driver.flow(100, ms(10));
    assert_eq!(driver.pass(ms(100)), [(ms(100), PathEvent::Probe)]);
}

#[test]
fn a_slow_flow_is_waited_for_as_long_as_it_usually_takes() {
    let mut driver = Driver::new();
    driver.flow(200, ms(300));
    let events = driver.pass(ms(2_000));
    // Regular: hardly more than a gap.
    assert!(
        matches!(events[0], (after, PathEvent::Probe) if (ms(300)..ms(320)).contains(&after)),
        "{events:?}"
    );
    let mut driver = Driver::new();
    for _ in 0..100 {
        driver.flow(1, ms(20));
        driver.flow(1, ms(400));
    }
    let events = driver.pass(ms(10_000));
    assert!(
        matches!(events[0], (after, PathEvent::Probe) if (ms(500)..=ms(1_200)).contains(&after)),
        "{events:?}"
    );
    let mut driver = Driver::new();
    for _ in 0..100 {
        driver.flow(1, ms(20));
        driver.flow(1, ms(4_000));
    }
    assert_eq!(driver.pass(ms(2_050)), [(ms(2_000), PathEvent::Probe)]);
}

#[test]
fn a_steady_flow_is_never_probed() {
    let mut driver = Driver::new();
    for round in 0..2_000 {
        driver.flow(1, Duration::ZERO);
        assert_eq!(driver.pass(ms(20 + round * 7 % 70)), []);
    }
}

#[test]
fn a_longer_pto_delays_everything_and_the_same_count_is_no_news() {
    let mut driver = Driver::new();
    driver.flow(20, ms(10));
    let since = driver.now;
    driver.now += ms(50);
    driver.watch.handle_received(driver.now, driver.received, ms(800));
    assert_eq!(driver.watch.poll_timeout(), Some(since + ms(800)));
    driver.watch.handle_timeout(since + ms(799));
    assert_eq!(driver.watch.poll_event(), None);
    driver.watch.handle_timeout(since + ms(800));
    assert_eq!(driver.watch.poll_event(), Some(PathEvent::Probe));
    // 3 PTOs are more than a second here.
    let probes = [since + ms(1_600), since + ms(3_200)];
    for due in probes {
        assert_eq!(driver.watch.poll_timeout(), Some(due));
        driver.watch.handle_timeout(due);
    }
    let events: Vec<_> = std::iter::from_fn(|| driver.watch.poll_event()).collect();
    assert_eq!(events, [PathEvent::Probe, PathEvent::Suspect, PathEvent::Rebind]);
    driver.now = since + ms(4_000);
    driver.hear();
    assert_eq!(driver.watch.poll_timeout(), None, "heard, and no flow yet");
}

#[test]
fn however_long_a_pto_is_said_to_be_a_dead_path_is_noticed() {
    let mut driver = Driver::new();
    driver.flow(20, ms(10));
    let since = driver.now;
    driver.watch.handle_received(driver.now, driver.received, ms(9_000));
    assert_eq!(driver.watch.poll_timeout(), Some(since + ms(2_000)));
    driver.watch.handle_timeout(since + ms(2_000));
    assert_eq!(driver.watch.poll_event(), Some(PathEvent::Probe));
    assert_eq!(driver.watch.poll_timeout(), Some(since + ms(5_000)));
    driver.watch.handle_timeout(since + ms(5_000));
    assert_eq!(driver.watch.poll_event(), Some(PathEvent::Suspect));
}

#[test]
fn the_pto_follows_the_samples_behind_the_mean() {
    let mut estimate = PtoEstimate::default();
    assert_eq!(estimate.update(ms(100)), ms(100 + 4 * 50 + 25));
    for _ in 0..100 {
        assert_eq!(estimate.update(ms(100)), ms(325), "no sample came: nothing is known better");
    }
    // Samples around 100 ms, smoothed as RFC 9002 §5.3 does: against its own reckoning.
    let (mut smoothed, mut variation) = (ms(100), ms(50));
    for index in 0..200_u32 {
        let sample = if index % 2 == 0 { ms(90) } else { ms(112) };
        variation = (variation * 3 + smoothed.abs_diff(sample)) / 4;
        smoothed = (smoothed * 7 + sample) / 8;
        let pto = estimate.update(smoothed);
        let exact = smoothed + variation * 4 + ms(25);
        assert!(pto.abs_diff(exact) < Duration::from_micros(1), "{pto:?} {exact:?}");
    }
}
