//! The machine driven by hand.

#![expect(clippy::disallowed_methods, reason = "a test needs some first instant")]

use tidegate_transport::TransportKind;

use super::*;

fn session(index: u32, moves: bool, busy: bool) -> SessionInfo {
    let key = SessionKey { worker: 0, is_stream: false, index, serial: 1 };
    SessionInfo { key, transport: TransportKind::Quic, moves, busy, leaving: false }
}

/// Runs for so long; who was asked, when, and with what.
fn run(
    pace: &mut Pace,
    now: &mut Instant,
    by: Duration,
    mut list: impl FnMut() -> Vec<SessionInfo>,
) -> Vec<(Instant, SessionKey, Goaway)> {
    let end = *now + by;
    let mut asked = Vec::new();
    while pace.poll_timeout() <= end {
        *now = pace.poll_timeout().max(*now);
        pace.handle_timeout(*now);
        while let Some(event) = pace.poll_event() {
            match event {
                Event::List => pace.handle_sessions(*now, list()),
                Event::Goaway(key, goaway) => asked.push((*now, key, goaway)),
            }
        }
    }
    *now = end;
    asked
}

fn order(to: &[&str]) -> DrainOrder {
    DrainOrder { to: to.iter().map(|to| (*to).to_owned()).collect(), within: Duration::from_secs(20) }
}

#[test]
fn sessions_are_asked_evenly_over_the_first_half_and_the_ready_ones_first() {
    let mut now = Instant::now();
    let start = now;
    let mut pace = Pace::new(now, order(&["https://a", "https://b"]));
    let all: Vec<_> = (0..200).map(|n| session(n, n % 4 != 0, n % 4 == 1)).collect();
    let asked = run(&mut pace, &mut now, Duration::from_secs(20), || all.clone());
    assert_eq!(asked.len(), 200);
    let ranks: Vec<_> = asked.iter().map(|(_, key, _)| [2, 1, 0, 0][key.index as usize % 4]).collect();
    assert!(ranks.is_sorted(), "{ranks:?}");
    let last = asked.last().expect("many").0 - start;
    assert!(last > Duration::from_secs(9) && last < Duration::from_secs(12), "{last:?}");
    for second in 1..9 {
        let from = start + Duration::from_secs(second);
        let count =
            asked.iter().filter(|(at, ..)| *at >= from && *at < from + Duration::from_secs(1)).count();
        assert!((15..=25).contains(&count), "{count} in second {second}");
    }
    let to_b = asked.iter().filter(|(.., goaway)| goaway.endpoint.as_deref() == Some("https://b")).count();
    assert_eq!(to_b, 100);
    for (at, _, goaway) in &asked {
        let deadline = *at + Duration::from_millis(goaway.deadline_ms);
        assert!(deadline <= start + Duration::from_secs(21), "{goaway:?}");
    }
}

#[test]
fn ends_are_counted_once_and_newcomers_are_sent_on() {
    let mut now = Instant::now();
    let mut pace = Pace::new(now, order(&[]));
    let three = [session(0, true, false), session(1, true, false), session(2, false, false)];
    let asked = run(&mut pace, &mut now, Duration::from_secs(11), || three.to_vec());
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|(.., goaway)| goaway.endpoint.is_none()));
    for kind in [EndKind::Moved, EndKind::Moved] {
        pace.handle_end(SessionEnd { key: three[0].key, kind });
    }
    pace.handle_end(SessionEnd { key: three[1].key, kind: EndKind::Done });
    assert_eq!((pace.progress().moved, pace.progress().left, pace.progress().remaining), (1, 1, 1));
    // Nobody told of the third.
    run(&mut pace, &mut now, Duration::from_secs(1), Vec::new);
    assert_eq!((pace.progress().closed, pace.progress().remaining), (1, 0));
    assert!(pace.progress().done);
    let leaving = SessionInfo { leaving: true, ..session(8, true, false) };
    let asked = run(&mut pace, &mut now, Duration::from_secs(3), || vec![session(7, true, false), leaving]);
    let asked: Vec<u32> = asked.iter().map(|(_, key, _)| key.index).collect();
    assert_eq!(asked, [7], "who has moved is on its way out");
}
