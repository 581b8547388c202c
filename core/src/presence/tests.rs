//! The table driven by hand, and against a plain list of who said what.

use proptest::prelude::*;
use tidegate_protocol::NodeId;
use tidegate_protocol::namespace::{Access, Namespace};

use super::*;

const GRACE: u64 = 10_000;

struct Bench {
    table: PresenceTable,
    now: u64,
    outputs: Vec<(LinkId, CoreFrame)>,
}

impl Bench {
    fn new(users: usize, entries: usize) -> Self {
        let kept = Namespace { presence: Some(Access::Granted), ..Namespace::default() };
        let named = BTreeMap::from([("silent".to_owned(), Namespace::default())]);
        let bounds = Bounds { users, entries, grace_ms: GRACE };
        let table = PresenceTable::new(bounds, Arc::new(Namespaces::new(kept, named, false)));
        Self { table, now: 1_000, outputs: Vec::new() }
    }

    /// Two links of two edges; the second one watches `room`.
    fn watched() -> Self {
        let mut bench = Self::new(100, 1000);
        bench.attach(1, "edge-1");
        bench.attach(2, "edge-2");
        bench.watch(2, "room", true);
        bench
    }

    fn attach(&mut self, link: u32, node: &str) {
        self.table.attach(self.now, LinkId(link), Some(&name(node)));
    }

    fn detach(&mut self, link: u32) {
        self.table.detach(self.now, LinkId(link));
    }

    fn watch(&mut self, link: u32, channel: &str, on: bool) {
        self.feed(link, EdgeFrame::Watch { channel: room(channel), on });
    }

    fn say(&mut self, link: u32, user: &str, sessions: u32, again: bool) {
        self.say_on(link, "room", Some(user), sessions, again);
    }

    fn say_on(&mut self, link: u32, channel: &str, user: Option<&str>, sessions: u32, again: bool) {
        let user = user.map(Arc::from);
        self.feed(link, EdgeFrame::Presence { channel: room(channel), user, sessions, again });
    }

    fn feed(&mut self, link: u32, frame: EdgeFrame) {
        let rest = self.table.handle_frame(self.now, LinkId(link), frame, &mut self.outputs);
        assert!(rest.is_none(), "all of these are about presence");
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.table.sweep(self.now, usize::MAX, &mut self.outputs);
        assert!(!self.table.is_sweeping());
    }

    /// What links were told since the last time: `+ann` and `-ann`.
    fn told(&mut self) -> Vec<(u32, String)> {
        let told = self.outputs.drain(..).map(|(link, frame)| {
            let CoreFrame::PresenceChanged(delivery) = frame else { panic!("{frame:?}") };
            let text = match &delivery.frame.frame().body {
                Some(ServerBody::Join(join)) => format!("+{}", join.user),
                Some(ServerBody::Leave(leave)) => format!("-{}", leave.user),
                other => panic!("{other:?}"),
            };
            (link.0, text)
        });
        told.collect()
    }

    /// Users with their sessions, and all sessions.
    fn members(&mut self, channel: &str) -> Members {
        self.ask(channel).expect("presence is kept")
    }

    fn ask(&mut self, channel: &str) -> Result<Members, LinkError> {
        self.feed(9, EdgeFrame::Members { request: 5, channel: room(channel) });
        let Some((LinkId(9), CoreFrame::Members { request: 5, result })) = self.outputs.pop() else {
            panic!("{:?}", self.outputs)
        };
        result
    }

    fn users(&mut self) -> Vec<(String, u32)> {
        let members = self.members("room");
        assert!(members.exact);
        assert_eq!(members.users_total, members.users.len() as u64);
        members.users.into_iter().map(|(user, sessions)| (user.to_string(), sessions)).collect()
    }
}

#[test]
fn whoever_asks_a_new_owner_hears_of_everybody_or_waits() {
    let mut bench = Bench::watched();
    bench.table.settle(bench.now);
    bench.say(1, "ann", 1, true);
    bench.feed(2, EdgeFrame::Members { request: 7, channel: room("room") });
    assert!(bench.outputs.is_empty(), "others may have yet to say whom they have");
    bench.pass(SETTLE_MS - 1);
    bench.say(2, "bob", 1, true);
    assert!(bench.outputs.is_empty());
    bench.pass(1);
    let answers = std::mem::take(&mut bench.outputs);
    let [(LinkId(2), CoreFrame::Members { request: 7, result: Ok(members) })] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!((members.users.len(), members.exact), (2, true));
    assert_eq!(bench.users(), of(&[("ann", 1), ("bob", 1)]), "at once from now on");
    bench.table.settle(bench.now);
    for request in 0..MAX_WAITING as u64 {
        bench.feed(2, EdgeFrame::Members { request, channel: room("room") });
    }
    assert!(bench.outputs.is_empty());
    assert_eq!(bench.users().len(), 2, "too many wait");
}

fn name(node: &str) -> LinkName {
    LinkName { node: NodeId::new(node), worker: 0 }
}

fn room(name: &str) -> ChannelName {
    ChannelName::new(name).expect("valid")
}

fn of(users: &[(&str, u32)]) -> Vec<(String, u32)> {
    users.iter().map(|(user, sessions)| ((*user).to_owned(), *sessions)).collect()
}

fn to(link: u32, what: &[&str]) -> Vec<(u32, String)> {
    what.iter().map(|what| (link, (*what).to_owned())).collect()
}

#[test]
fn a_user_joins_with_the_first_session_and_leaves_with_the_last() {
    let mut bench = Bench::watched();
    bench.say(1, "ann", 1, false);
    assert_eq!(bench.told(), to(2, &["+ann"]));
    bench.say(1, "ann", 2, false);
    bench.say(2, "ann", 1, false);
    assert_eq!(bench.users(), of(&[("ann", 3)]));
    bench.say(1, "ann", 0, false);
    assert!(bench.told().is_empty());
    bench.say(2, "ann", 0, false);
    assert_eq!(bench.told(), to(2, &["-ann"]));
    assert!(bench.users().is_empty());
}

#[test]
fn only_links_that_watch_the_channel_are_told() {
    let mut bench = Bench::watched();
    bench.say_on(1, "elsewhere", Some("ann"), 1, false);
    assert!(bench.told().is_empty());
    bench.watch(1, "room", true);
    bench.say(1, "ann", 1, false);
    assert_eq!(bench.told(), [to(1, &["+ann"]), to(2, &["+ann"])].concat());
    bench.watch(2, "room", false);
    bench.say(1, "ann", 0, false);
    assert_eq!(bench.told(), to(1, &["-ann"]));
}

#[test]
fn anonymous_sessions_count_and_are_not_named() {
    let mut bench = Bench::watched();
    bench.say_on(1, "room", None, 7, false);
    bench.say(1, "ann", 1, false);
    assert_eq!(bench.told(), to(2, &["+ann"]));
    let members = bench.members("room");
    assert_eq!((members.sessions, members.users_total, members.exact), (8, 1, true));
}

#[test]
fn what_is_said_again_is_no_news() {
    let mut bench = Bench::watched();
    bench.say(1, "ann", 1, true);
    assert!(bench.told().is_empty());
    assert_eq!(bench.users(), of(&[("ann", 1)]));
    bench.say(1, "ann", 0, false);
    assert_eq!(bench.told(), to(2, &["-ann"]));
}

#[test]
fn an_edge_that_comes_back_takes_over_what_it_said() {
    let mut bench = Bench::watched();
    bench.say(1, "ann", 2, false);
    bench.say(1, "bo", 1, false);
    bench.told();
    bench.detach(1);
    bench.pass(GRACE - 1);
    assert_eq!(bench.users(), of(&[("ann", 2), ("bo", 1)]), "the grace");
    bench.attach(3, "edge-1");
    bench.pass(GRACE - 1);
    bench.say(3, "ann", 1, true);
    assert_eq!(bench.users(), of(&[("ann", 1), ("bo", 1)]), "not twice");
    assert!(bench.told().is_empty());
    bench.pass(1);
    assert_eq!(bench.told(), to(2, &["-bo"]), "gone while the edge was");
    assert_eq!(bench.users(), of(&[("ann", 1)]));
}

#[test]
fn a_link_that_overlaps_with_its_successor_is_not_counted_twice() {
    let mut bench = Bench::watched();
    bench.say(1, "ann", 1, false);
    bench.attach(3, "edge-1");
    bench.say(3, "ann", 1, true);
    bench.detach(1);
    bench.pass(GRACE);
    assert_eq!(bench.users(), of(&[("ann", 1)]));
    assert_eq!(bench.told(), to(2, &["+ann"]));
}

#[test]
fn an_edge_that_is_gone_leaves_after_the_grace() {
    let mut bench = Bench::watched();
    bench.say(1, "ann", 1, false);
    bench.say(1, "bo", 1, false);
    bench.say(2, "bo", 1, false);
    bench.told();
    bench.detach(1);
    bench.pass(GRACE);
    assert_eq!(bench.told(), to(2, &["-ann"]), "bo is on the other edge too");
    assert_eq!(bench.users(), of(&[("bo", 1)]));
    bench.detach(2);
    bench.pass(GRACE);
    assert_eq!((bench.table.entries(), bench.table.places.len(), bench.table.names.len()), (0, 0, 0));
}

#[test]
fn a_link_without_a_name_leaves_at_once() {
    let mut bench = Bench::watched();
    bench.table.attach(bench.now, LinkId(4), None);
    bench.say(4, "ann", 1, false);
    bench.told();
    bench.detach(4);
    bench.pass(0);
    assert_eq!(bench.told(), to(2, &["-ann"]));
}

#[test]
fn frames_of_links_that_never_began_count_nothing() {
    let mut bench = Bench::watched();
    bench.say(7, "ann", 1, false);
    bench.watch(7, "room", true);
    assert!(bench.users().is_empty());
    bench.say(1, "ann", 1, false);
    assert_eq!(bench.told(), to(2, &["+ann"]));
}

#[test]
fn a_namespace_without_presence_keeps_nothing() {
    let mut bench = Bench::watched();
    bench.say_on(1, "silent:1", Some("ann"), 1, false);
    bench.watch(1, "silent:1", true);
    assert_eq!(bench.ask("silent:1").map_err(|error| error.code), Err(ErrorCode::NotAvailable));
    assert_eq!(bench.table.entries(), 1, "the watch of the other channel");
}

#[test]
fn beyond_the_bound_users_are_counted_and_not_told() {
    let mut bench = Bench::new(2, 1000);
    bench.attach(1, "edge-1");
    bench.attach(2, "edge-2");
    bench.watch(2, "room", true);
    for user in ["ann", "bo", "cy", "di"] {
        bench.say(1, user, 1, false);
    }
    bench.say(2, "di", 2, false);
    assert_eq!(bench.told(), to(2, &["+ann", "+bo"]));
    let members = bench.members("room");
    assert_eq!(members.users, [("ann".into(), 1), ("bo".into(), 1)]);
    assert_eq!((members.users_total, members.sessions, members.exact), (4, 6, false));
    bench.say(1, "cy", 0, false);
    bench.say(1, "ann", 0, false);
    assert_eq!(bench.told(), to(2, &["-ann"]));
    bench.say(2, "di", 1, false);
    assert!(bench.told().is_empty(), "known now, and no news");
    assert_eq!(bench.users(), of(&[("bo", 1), ("di", 2)]));
}

#[test]
fn a_full_table_takes_nothing_new_and_says_so() {
    let mut bench = Bench::new(100, 3);
    bench.attach(1, "edge-1");
    bench.attach(2, "edge-2");
    bench.watch(2, "room", true);
    for user in ["ann", "bo", "cy"] {
        bench.say(1, user, 1, false);
    }
    assert_eq!(bench.told(), to(2, &["+ann", "+bo"]));
    assert_eq!(bench.table.entries(), 3);
    let members = bench.members("room");
    assert_eq!((members.users_total, members.exact), (2, false));
    bench.say(1, "ann", 2, false);
    assert_eq!(bench.members("room").sessions, 3, "who is known goes on being counted");
    bench.detach(1);
    bench.attach(3, "edge-1");
    bench.say(3, "cy", 1, true);
    bench.pass(GRACE);
    let members = bench.members("room");
    assert_eq!((members.sessions, members.exact), (0, false), "there was no room yet");
    bench.detach(3);
    bench.pass(GRACE);
    assert!(bench.members("room").exact);
}

#[test]
fn a_sweep_is_done_in_steps() {
    let mut bench = Bench::watched();
    for user in 0..10 {
        bench.say(1, &format!("user-{user}"), 1, false);
    }
    bench.told();
    bench.detach(1);
    bench.now += GRACE;
    let mut rounds = 0;
    loop {
        bench.table.sweep(bench.now, 4, &mut bench.outputs);
        assert!(bench.told().len() <= 4);
        rounds += 1;
        if !bench.table.is_sweeping() {
            break;
        }
    }
    assert_eq!(rounds, 3);
    assert!(bench.users().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Say { link: usize, user: u8, sessions: u32 },
    Again { link: usize, user: u8 },
    Detach { link: usize },
    Attach { node: u8 },
    Pass { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let user = 0u8..7;
    prop_oneof![
        8 => (0usize..4, user.clone(), 0u32..3).prop_map(|(link, user, sessions)| Step::Say { link, user, sessions }),
        2 => (0usize..4, user).prop_map(|(link, user)| Step::Again { link, user }),
        1 => (0usize..4).prop_map(|link| Step::Detach { link }),
        2 => (0u8..2).prop_map(|node| Step::Attach { node }),
        1 => (0u64..GRACE * 2).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// A link as the model has it: what it said, last word per user.
#[derive(Debug)]
struct Spoken {
    id: u32,
    node: u8,
    expires: Option<u64>,
    said: BTreeMap<u8, u32>,
}

#[derive(Debug, Default)]
struct Model {
    links: Vec<Spoken>,
    /// As somebody who listens has it: user by user.
    heard: BTreeSet<String>,
}

impl Model {
    fn live(&self, index: usize) -> Option<usize> {
        let live: Vec<usize> = (0..self.links.len()).filter(|at| self.links[*at].expires.is_none()).collect();
        live.get(index).copied()
    }

    fn say(&mut self, at: usize, user: u8, sessions: u32) {
        let node = self.links[at].node;
        for earlier in &mut self.links[..at] {
            if earlier.node == node {
                earlier.said.remove(&user);
            }
        }
        if sessions > 0 {
            self.links[at].said.insert(user, sessions);
        } else {
            self.links[at].said.remove(&user);
        }
    }

    fn totals(&self) -> BTreeMap<String, u32> {
        let mut totals = BTreeMap::new();
        for (user, sessions) in self.links.iter().flat_map(|link| &link.said) {
            *totals.entry(format!("user-{user}")).or_default() += sessions;
        }
        totals
    }
}

proptest! {
    #[test]
    fn the_table_is_the_sum_of_what_was_said(
        steps in prop::collection::vec(step(), 0..80),
        bound in 1usize..8,
    ) {
        let mut bench = Bench::new(bound, 1000);
        let mut model = Model::default();
        bench.attach(100, "watcher");
        bench.watch(100, "room", true);
        let mut next = 1;
        for step in steps {
            match step {
                Step::Attach { node } => {
                    bench.attach(next, &format!("edge-{node}"));
                    for link in model.links.iter_mut().filter(|link| link.node == node) {
                        link.expires = link.expires.map(|_| bench.now + GRACE);
                    }
                    model.links.push(Spoken { id: next, node, expires: None, said: BTreeMap::new() });
                    next += 1;
                }
                Step::Detach { link } => {
                    let Some(at) = model.live(link) else { continue };
                    bench.detach(model.links[at].id);
                    model.links[at].expires = Some(bench.now + GRACE);
                }
                Step::Say { link, user, sessions } => {
                    let Some(at) = model.live(link) else { continue };
                    bench.say(model.links[at].id, &format!("user-{user}"), sessions, false);
                    model.say(at, user, sessions);
                }
                Step::Again { link, user } => {
                    let Some(at) = model.live(link) else { continue };
                    // Nobody is told: who listens knows it already, or is told nothing.
                    model.heard.insert(format!("user-{user}"));
                    bench.say(model.links[at].id, &format!("user-{user}"), 1, true);
                    model.say(at, user, 1);
                }
                Step::Pass { ms } => {
                    bench.pass(ms);
                    model.links.retain(|link| link.expires.is_none_or(|at| at > bench.now));
                }
            }
            for (link, what) in bench.told() {
                prop_assert_eq!(link, 100);
                let user = what[1..].to_owned();
                if what.starts_with('+') { model.heard.insert(user); } else { model.heard.remove(&user); }
            }
            let totals = model.totals();
            let members = bench.members("room");
            prop_assert_eq!(members.sessions, totals.values().map(|n| u64::from(*n)).sum::<u64>());
            prop_assert_eq!(members.users_total, totals.len() as u64);
            prop_assert!(members.users.len() <= bound);
            prop_assert_eq!(members.exact, members.users.len() == totals.len());
            for (user, sessions) in &members.users {
                prop_assert_eq!(totals.get(&**user), Some(sessions));
            }
            if bound == 7 {
                prop_assert!(members.exact);
                prop_assert_eq!(&model.heard, &totals.keys().cloned().collect::<BTreeSet<_>>());
            }
            let entries: usize = model.links.iter().map(|link| link.said.len()).sum();
            prop_assert_eq!(bench.table.entries(), entries + 1, "and the watch");
        }
    }
}
