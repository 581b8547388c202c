//! `connect` of clients about whom nothing is decided.

use super::*;
use crate::hint::Hint;

fn asking(change: impl FnOnce(&mut Settings)) -> Bench {
    let mut bench = Bench::new(change, None);
    bench.session.ask_first();
    bench
}

#[test]
fn nothing_is_checked_before_the_client_is_let_in() {
    let mut bench = asking(|_| ());
    let connect =
        Connect { token: Some("t".to_owned()), slot: Some("slot".to_owned()), ..Connect::default() };
    bench.say(1, ClientBody::Connect(connect));
    assert!(matches!(bench.asked[..], [Event::Knock]), "{:?}", bench.asked);
    assert_eq!(bench.session.take_slot().as_deref(), Some("slot"));
    assert!(!bench.session.wants_input() && !bench.session.is_served());
    assert_eq!(
        bench.try_say(2, ClientBody::Connect(Connect::default())),
        Err(SessionError::AlreadyConnected)
    );
    // Whoever decides takes his time, and not the client's.
    bench.pass(60 * SECOND);
    assert!(!bench.session.is_ended());
    bench.session.let_in(bench.now);
    bench.session.let_in(bench.now);
    bench.drain();
    assert!(matches!(&bench.asked[1..], [Event::Authenticate { token: Some(token) }] if token == "t"));
    bench.session.admit(bench.now, Identity::anonymous());
    bench.drain();
    assert!(matches!(bench.sent[0].body, Some(ServerBody::Connected(_))));
}

#[test]
fn who_is_turned_away_is_told_when_and_nothing_else_happens() {
    let mut bench = asking(|_| ());
    bench.say(1, ClientBody::Connect(Connect::default()));
    let hint = Hint::Later { after: Duration::from_millis(1_500), ticket: Some("4QJ0".into()) };
    bench.session.turn_away(refusal(&hint));
    bench.session.let_in(bench.now);
    bench.drain();
    let [frame] = &bench.sent[..] else { panic!("{:?}", bench.sent) };
    let Some(ServerBody::Close(close)) = &frame.body else { panic!("{frame:?}") };
    assert_eq!((close.code, close.reason.as_str()), (4101, "ra=1500;t=4QJ0"));
    let reconnect = close.reconnect.as_ref().expect("advice");
    assert_eq!((reconnect.after_ms, reconnect.slot.as_deref()), (Some(1_500), Some("4QJ0")));
    let [Event::Knock, Event::End { code, reason }] = &bench.asked[..] else { panic!("{:?}", bench.asked) };
    assert_eq!((*code, reason.as_str()), (CloseCode::Overloaded, "ra=1500;t=4QJ0"));
}

#[test]
fn what_is_wrong_is_said_once_the_client_is_in() {
    let mut bench = asking(|settings| settings.tickets = None);
    bench.say(1, ClientBody::Connect(Connect { resume: Some("t".to_owned()), ..Connect::default() }));
    assert!(bench.sent.is_empty());
    bench.session.let_in(bench.now);
    bench.drain();
    assert_eq!(bench.close(), CloseCode::ResumeForeign.number());
}
