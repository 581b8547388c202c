//! What a crowd sees: for the checker all of it, and for the report how long each client waited.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use tidegate_client::Position;
use tidegate_transport::clock;
use tokio::time::sleep;

use super::line::{Said, What};
use super::order::{Order, channel_name};
use crate::bench::unix_us;
use crate::checker::{Begun, Recorder, View};

/// Clones are the same.
#[derive(Debug, Clone)]
pub(in crate::bench) struct Books {
    recorder: Recorder,
    /// When the recorder's clock began, microseconds of Unix time.
    zero: u64,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    groups: Vec<Group>,
    tally: Tally,
    failures: Vec<String>,
}

/// Clients of one order.
#[derive(Debug)]
struct Group {
    name: String,
    first: u32,
    follows: u32,
    watches: bool,
    /// By client, then by subscription.
    seen: Vec<Seen>,
    clients: Vec<Standing>,
}

/// Of one subscription.
#[derive(Debug)]
struct Seen {
    view: View,
    channel: u32,
    has_begun: bool,
    position: Position,
    /// When the last publication came, microseconds of the recorder's clock.
    last: Option<u64>,
    /// The longest time between two publications in this window, and from publishing to delivery.
    gap: u64,
    delay: u64,
}

/// Of one client, since the books were marked; microseconds of Unix time.
#[derive(Debug, Clone, Default)]
pub(in crate::bench) struct Standing {
    /// When it had a connection again, or went over to another one.
    pub(in crate::bench) back: Option<u64>,
    /// When it knew that it had lost one.
    pub(in crate::bench) lost: Option<u64>,
}

/// What is counted in a window.
#[derive(Debug, Clone, Default)]
struct Tally {
    deliveries: u64,
    moved: u64,
    disconnected: u64,
    presence: u64,
    examples: Vec<String>,
}

/// What happened from one turn of the books to the next.
#[derive(Debug, Clone, Default, Serialize)]
pub(in crate::bench) struct Window {
    pub(in crate::bench) seconds: f64,
    pub(in crate::bench) deliveries: u64,
    /// Times that clients went over to another connection without a break.
    pub(in crate::bench) moved: u64,
    /// Times that they were without one.
    pub(in crate::bench) disconnected: u64,
    /// News of who came and went.
    pub(in crate::bench) presence: u64,
    /// The first few of those two.
    pub(in crate::bench) examples: Vec<String>,
    /// By group, of each client, milliseconds: the longest time between two publications of a channel.
    #[serde(skip)]
    pub(in crate::bench) gaps: BTreeMap<String, Vec<f64>>,
    /// And from publishing to delivery.
    #[serde(skip)]
    pub(in crate::bench) delays: BTreeMap<String, Vec<f64>>,
}

impl Books {
    /// Empty ones, which fill this recorder's history.
    pub(in crate::bench) fn new(recorder: Recorder) -> Self {
        let zero = unix_us().saturating_sub(recorder.now());
        Self { recorder, zero, kept: Arc::default() }
    }

    /// Such clients are about to come.
    pub(super) fn expect(&self, order: &Order) {
        let mut history = self.recorder.history();
        let mut seen = Vec::new();
        for client in order.first..order.first + order.clients {
            let name = format!("{} {client}", order.group);
            for place in 0..order.follows {
                let channel = order.channel(client, place);
                seen.push(Seen {
                    view: history.view(&name, &channel_name(channel), None),
                    channel,
                    has_begun: false,
                    position: Position::default(),
                    last: None,
                    gap: 0,
                    delay: 0,
                });
            }
        }
        drop(history);
        let (name, first, follows, watches) =
            (order.group.clone(), order.first, order.follows, order.watches);
        let clients = vec![Standing::default(); order.clients as usize];
        self.kept().groups.push(Group { name, first, follows, watches, seen, clients });
    }

    /// Something happened.
    pub(super) fn hear(&self, said: &Said) {
        let now = said.at.saturating_sub(self.zero);
        let mut kept = self.kept();
        let Kept { groups, tally, failures } = &mut *kept;
        let Some(group) = groups.iter_mut().find(|group| group.has(said.client)) else { return };
        match &said.what {
            What::Subscribed { place, recovered, position } => {
                let Some(seen) = group.seen(said.client, *place) else { return };
                let how = if *recovered { Begun::Recovered } else { Begun::AtHead };
                self.recorder.history().subscribed(now, seen.view, how, position);
                if !seen.has_begun {
                    (seen.has_begun, seen.position) = (true, position.clone());
                }
            }
            What::Rebased { place, position } => {
                let Some(seen) = group.seen(said.client, *place) else { return };
                self.recorder.history().subscribed(now, seen.view, Begun::Rebased, position);
                seen.position = position.clone();
            }
            What::Delivered { place, position, payload } => {
                let Some(seen) = group.seen(said.client, *place) else { return };
                let mut history = self.recorder.history();
                history.delivered(now, seen.view, position, payload.unwrap_or(FOREIGN));
                let published = payload.and_then(|payload| history.invoked(payload)).unwrap_or(now);
                drop(history);
                seen.delay = seen.delay.max(now.saturating_sub(published));
                if let Some(last) = seen.last.replace(now) {
                    seen.gap = seen.gap.max(now.saturating_sub(last));
                }
                seen.position = position.clone();
                tally.deliveries += 1;
            }
            What::Presence { text } => {
                tally.presence += 1;
                tally.example(format!("{} {} was told {text}", group.name, said.client));
            }
            What::Moved => {
                tally.moved += 1;
                group.standing(said.client).back.get_or_insert(said.at);
            }
            What::Connected => {
                group.standing(said.client).back.get_or_insert(said.at);
            }
            What::Disconnected { code, reason } => {
                group.standing(said.client).lost.get_or_insert(said.at);
                tally.disconnected += 1;
                tally.example(format!(
                    "{} {} was disconnected with {code}: {reason}",
                    group.name, said.client
                ));
            }
            What::Failed { text } => {
                failures.push(format!("{} {}: {text}", group.name, said.client));
            }
        }
    }

    /// Waits until everybody has all of their subscriptions, and tells how many have, as long as some come.
    pub(in crate::bench) async fn until_begun(&self, tell: impl Fn(usize, usize)) -> Result<()> {
        self.until("subscribed", tell, |_, seen| seen.has_begun).await
    }

    /// Waits until everybody has got everything, up to these positions, by channel.
    pub(in crate::bench) async fn until_at(&self, heads: &[Position]) -> Result<()> {
        let is_there = |_: &Group, seen: &Seen| {
            heads.get(seen.channel as usize).is_none_or(|head| {
                let has = &seen.position;
                head.offset.0 == 0 || (has.epoch == head.epoch && has.offset >= head.offset)
            })
        };
        self.until("up to date", |_, _| (), is_there).await
    }

    async fn until(
        &self,
        what: &str,
        tell: impl Fn(usize, usize),
        is_there: impl Fn(&Group, &Seen) -> bool,
    ) -> Result<()> {
        let (mut best, mut since) = (0, clock::now());
        loop {
            let (mut there, mut all) = (0, 0);
            let mut missing = None;
            for group in &self.kept().groups {
                for (index, seen) in group.seen.iter().enumerate() {
                    all += 1;
                    if is_there(group, seen) {
                        there += 1;
                    } else if missing.is_none() {
                        let client = group.first as usize + index / group.follows.max(1) as usize;
                        missing = Some(format!("{} {client} at {:?}", group.name, seen.position));
                    }
                }
            }
            tell(there, all);
            let Some(missing) = missing else { return Ok(()) };
            if there > best {
                (best, since) = (there, clock::now());
            }
            if since.elapsed() > STALL {
                let failures = self.failures();
                let first = failures.first().map(|failure| format!("; {failure}")).unwrap_or_default();
                bail!("{there} of {all} are {what}, and no more since {STALL:?}: {missing}{first}");
            }
            sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Ends a window, and begins the next.
    pub(in crate::bench) fn turn(&self, length: Duration) -> Window {
        let mut kept = self.kept();
        let tally = std::mem::take(&mut kept.tally);
        let (mut gaps, mut delays) = (BTreeMap::<_, Vec<f64>>::new(), BTreeMap::<_, Vec<f64>>::new());
        for group in kept.groups.iter_mut().filter(|group| !group.watches) {
            let (gaps, delays) =
                (gaps.entry(group.name.clone()).or_default(), delays.entry(group.name.clone()).or_default());
            for seen in group.seen.chunks_mut(group.follows.max(1) as usize) {
                // A wait that is not over counts where it ends: news of that may be on their way.
                let gap = seen.iter().map(|seen| seen.gap).max().unwrap_or_default();
                let delay = seen.iter().map(|seen| seen.delay).max().unwrap_or_default();
                gaps.push(ms(gap));
                delays.push(ms(delay));
                for seen in seen {
                    (seen.gap, seen.delay) = (0, 0);
                }
            }
        }
        Window {
            seconds: length.as_secs_f64(),
            deliveries: tally.deliveries,
            moved: tally.moved,
            disconnected: tally.disconnected,
            presence: tally.presence,
            examples: tally.examples,
            gaps,
            delays,
        }
    }

    /// From here on [`Standing`]s count.
    pub(in crate::bench) fn mark(&self) {
        for group in &mut self.kept().groups {
            group.clients.fill(Standing::default());
        }
    }

    /// How each client of those that do not watch stands, with its group.
    pub(in crate::bench) fn standings(&self) -> Vec<(String, Standing)> {
        let kept = self.kept();
        let groups = kept.groups.iter().filter(|group| !group.watches);
        groups
            .flat_map(|group| group.clients.iter().map(|client| (group.name.clone(), client.clone())))
            .collect()
    }

    /// What should not have happened to clients.
    pub(in crate::bench) fn failures(&self) -> Vec<String> {
        self.kept().failures.clone()
    }

    /// What the books are of.
    pub(in crate::bench) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn has(&self, client: u32) -> bool {
        client.checked_sub(self.first).is_some_and(|index| (index as usize) < self.clients.len())
    }

    /// Of one of its clients; `None` where that has no such subscription.
    fn seen(&mut self, client: u32, place: u32) -> Option<&mut Seen> {
        let index = (client - self.first) * self.follows + place;
        self.seen.get_mut(index as usize).filter(|_| place < self.follows)
    }

    fn standing(&mut self, client: u32) -> &mut Standing {
        &mut self.clients[(client - self.first) as usize]
    }
}

impl Tally {
    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

/// Stands for a payload of somebody else's.
const FOREIGN: u64 = u64::MAX - 1;
/// Examples of what should not happen, of each window.
const EXAMPLES: usize = 5;
/// Nobody more is where they should be: nobody more will be.
const STALL: Duration = Duration::from_secs(45);
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use tidegate_client::{Epoch, Offset};

    use super::*;
    use crate::checker::{Bounds, Kind};

    fn order() -> Order {
        let (group, url, certificate_hash) = ("some".to_owned(), String::new(), String::new());
        let (first, clients, channels, follows) = (10, 2, 4, 2);
        Order {
            group,
            url,
            certificate_hash,
            first,
            clients,
            channels,
            follows,
            per_second: 1,
            watches: false,
        }
    }

    fn position(offset: u64) -> Position {
        Position::new(Epoch::new("e"), Offset(offset))
    }

    /// Client 11 is on channels 1 and 3. Seconds after the beginning.
    fn say(books: &Books, seconds: u64, what: What) {
        books.hear(&Said { client: 11, at: books.zero + seconds * 1_000_000, what });
    }

    fn delivered(place: u32, offset: u64) -> What {
        What::Delivered { place, position: position(offset), payload: Some(offset) }
    }

    #[test]
    fn a_window_knows_the_longest_wait_of_each_client() {
        let books = Books::new(Recorder::new());
        books.expect(&order());
        for place in [0, 1] {
            say(&books, 1, What::Subscribed { place, recovered: false, position: position(0) });
        }
        for (seconds, offset) in [(2, 1), (5, 2), (6, 3)] {
            say(&books, seconds, delivered(0, offset));
        }
        say(&books, 7, What::Presence { text: "-ann".to_owned() });
        say(&books, 7, What::Moved);
        let window = books.turn(Duration::from_secs(9));
        assert_eq!((window.deliveries, window.presence, window.moved, window.disconnected), (3, 1, 1, 0));
        // Of the other client nothing is known, and its wait has not begun.
        assert_eq!(window.gaps["some"], [0.0, 3_000.0]);
        say(&books, 8, delivered(0, 4));
        let window = books.turn(Duration::from_secs(9));
        assert_eq!((window.gaps["some"][1], window.presence), (2_000.0, 0));
    }

    #[test]
    fn what_is_lost_doubled_or_failed_is_noticed() {
        let books = Books::new(Recorder::new());
        books.expect(&order());
        say(&books, 1, What::Subscribed { place: 0, recovered: false, position: position(0) });
        for offset in [1, 1, 3] {
            say(&books, 2, delivered(0, offset));
        }
        say(&books, 3, What::Failed { text: "gone".to_owned() });
        let report = books.recorder().report(&Bounds::default());
        let kinds: Vec<Kind> = report.by_kind.into_keys().collect();
        assert!(kinds.contains(&Kind::DeliveredTwice) && kinds.contains(&Kind::SilentGap), "{kinds:?}");
        assert_eq!(books.failures(), ["some 11: gone"]);
    }
}
