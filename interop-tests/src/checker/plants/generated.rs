//! Runs made up from a seed: correct, with everything that makes a run hard to judge.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt as _;
use rand::seq::IteratorRandom as _;
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::{Epoch, Offset, Position};

use super::super::*;

/// Something that is taken down. Its time is its place in the run.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Invoke { attempt: usize, client: String, channel: String, is_keyed: bool, payload: u64 },
    Answer { attempt: usize, outcome: Outcome },
    View { view: usize, channel: String, asked: Option<Position> },
    Subscribed { view: usize, begun: Begun, position: Position },
    Delivered { view: usize, position: Position, payload: u64 },
    Ended { view: usize },
    Read { channel: String, head: Position, items: Vec<(u64, u64)> },
}

impl Step {
    /// Something that a view saw.
    pub(super) fn is_of(&self, of: usize) -> bool {
        matches!(self, Self::Subscribed { view, .. } | Self::Delivered { view, .. } if *view == of)
    }
}

/// A run, to be spoilt and judged. Epochs name their channels, so that a position alone says where it is.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) steps: Vec<Step>,
    pub(super) views: usize,
    pub(super) is_conflated: bool,
    attempts: usize,
    payloads: u64,
}

#[derive(Debug, Default)]
struct Channel {
    epoch: u32,
    log: Vec<u64>,
}

impl Channel {
    fn head(&self, number: usize) -> Position {
        Position::new(Epoch::new(&format!("{number}-{}", self.epoch)), Offset(self.log.len() as u64))
    }
}

/// An attempt under way.
#[derive(Debug)]
struct Pending {
    attempt: usize,
    channel: usize,
    payload: u64,
    is_keyed: bool,
    fate: Fate,
    stored: Option<Position>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Refused,
    /// The answer is lost.
    Unheard,
    /// The request is lost.
    Lost,
}

#[derive(Debug)]
struct Subscriber {
    view: usize,
    channel: usize,
    at: Position,
}

/// What a run grows from.
#[derive(Debug)]
struct Growth {
    run: Run,
    channels: Vec<Channel>,
    pending: Vec<Pending>,
    subscribers: Vec<Subscriber>,
}

impl Run {
    pub(super) fn generate(rng: &mut ChaCha8Rng) -> Self {
        let channels = (0..CHANNELS).map(|_| Channel::default()).collect();
        let mut growth =
            Growth { run: Self::default(), channels, pending: Vec::new(), subscribers: Vec::new() };
        for _ in 0..rng.random_range(2..5) {
            growth.subscribe(rng);
        }
        for _ in 0..STEPS {
            match rng.random_range(0..100) {
                0..28 => growth.publish(rng),
                28..55 => growth.resolve(rng),
                55..94 => growth.deliver(rng),
                94..96 => growth.subscribe(rng),
                96 => growth.leave(rng),
                97 => growth.change_epoch(rng),
                _ => growth.disturb(rng),
            }
        }
        growth.settle(rng)
    }

    /// Takes it down, and judges it.
    pub(super) fn report(&self) -> Report {
        let mut history = History::new();
        let mut attempts: BTreeMap<usize, Attempt> = BTreeMap::new();
        let mut views: BTreeMap<usize, View> = BTreeMap::new();
        if self.is_conflated {
            (0..CHANNELS).for_each(|number| history.conflate(&name(number)));
        }
        for (now, step) in (1u64..).zip(&self.steps) {
            match step {
                Step::Invoke { attempt, client, channel, is_keyed, payload } => {
                    attempts.insert(*attempt, history.invoke(now, client, channel, *is_keyed, *payload));
                }
                Step::Answer { attempt, outcome } => history.answer(now, attempts[attempt], outcome.clone()),
                Step::View { view, channel, asked } => {
                    views.insert(*view, history.view(&format!("s{view}"), channel, asked.as_ref()));
                }
                Step::Subscribed { view, begun, position } => {
                    history.subscribed(now, views[view], *begun, position);
                }
                Step::Delivered { view, position, payload } => {
                    history.delivered(now, views[view], position, *payload);
                }
                Step::Ended { view } => history.ended(views[view]),
                Step::Read { channel, head, items } => {
                    history.read(now, channel, head, false, items.iter().copied());
                }
            }
        }
        history.report(&Bounds::default())
    }

    // What plants ask for.

    pub(super) fn deliveries(&self) -> impl Iterator<Item = (usize, usize, Position)> {
        self.steps.iter().enumerate().filter_map(|(at, step)| match step {
            Step::Delivered { view, position, .. } => Some((at, *view, position.clone())),
            _ => None,
        })
    }

    /// Places at which a subscriber is told of another epoch, in which it gets something then.
    pub(super) fn changes(&self) -> impl Iterator<Item = usize> {
        self.steps.iter().enumerate().filter_map(|(at, step)| {
            let Step::Subscribed { view, begun: Begun::Rebased, position } = step else { return None };
            let mut before = self.steps[..at].iter().rev().filter(|step| step.is_of(*view));
            let mut after = self.steps[at + 1..].iter().filter(|step| step.is_of(*view));
            let Step::Delivered { position: was, .. } = before.next()? else { return None };
            let gets = matches!(after.next(), Some(Step::Delivered { .. }));
            (gets && was.epoch != position.epoch).then_some(at)
        })
    }

    /// How many saw what is there: subscribers, publisher and history.
    pub(super) fn witnesses(&self, of: &Position) -> usize {
        let sees = |step: &&Step| match step {
            Step::Delivered { position, .. } => position == of,
            Step::Answer { outcome: Outcome::Acknowledged(position), .. } => position == of,
            Step::Read { head, items, .. } => {
                head.epoch == of.epoch && items.iter().any(|(offset, _)| *offset == of.offset.0)
            }
            _ => false,
        };
        self.steps.iter().filter(sees).count()
    }

    /// One of the reads that end with something acknowledged.
    pub(super) fn reads(&mut self, rng: &mut ChaCha8Rng) -> Option<&mut Step> {
        let acknowledged = self.acknowledged();
        let fits = |step: &&mut Step| {
            let Step::Read { items, .. } = step else { return false };
            items.last().is_some_and(|(_, payload)| acknowledged.contains(payload))
        };
        self.steps.iter_mut().filter(fits).choose(rng)
    }

    /// Payloads.
    pub(super) fn acknowledged(&self) -> BTreeSet<u64> {
        let answered: BTreeSet<usize> = self
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Answer { attempt, outcome: Outcome::Acknowledged(_) } => Some(*attempt),
                _ => None,
            })
            .collect();
        let payload = |step: &Step| match step {
            Step::Invoke { attempt, payload, .. } if answered.contains(attempt) => Some(*payload),
            _ => None,
        };
        self.steps.iter().filter_map(payload).collect()
    }

    pub(super) fn is_acknowledged(&self, payload: u64) -> bool {
        self.acknowledged().contains(&payload)
    }

    pub(super) fn has_ended(&self, of: usize) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Ended { view } if *view == of))
    }

    /// Of the view that a step is of.
    pub(super) fn channel_of(&self, at: usize) -> String {
        let (Step::Subscribed { view: of, .. } | Step::Delivered { view: of, .. }) = &self.steps[at] else {
            panic!("no step of a view")
        };
        let channel = self.steps.iter().find_map(|step| match step {
            Step::View { view, channel, .. } if view == of => Some(channel.clone()),
            _ => None,
        });
        channel.expect("every view begins")
    }

    /// True where its payload was published by no other attempt, and was seen by somebody else.
    pub(super) fn is_alone(&self, of: usize) -> bool {
        let published = self.invocations().get(&of).map(|(_, payload, _)| *payload);
        let attempts =
            self.invocations().values().filter(|(_, payload, _)| Some(*payload) == published).count();
        let seen = self.steps.iter().any(|step| match step {
            Step::Delivered { payload, .. } => Some(*payload) == published,
            Step::Read { items, .. } => items.iter().any(|(_, payload)| Some(*payload) == published),
            _ => false,
        });
        attempts == 1 && seen
    }

    /// Pairs of payloads: the second was published after the first was acknowledged, and nobody subscribed meanwhile.
    pub(super) fn in_real_time(&self) -> Vec<(u64, u64)> {
        let invocations = self.invocations();
        let all: Vec<(usize, usize, u64, &Position)> = self
            .steps
            .iter()
            .enumerate()
            .filter_map(|(answered, step)| {
                let Step::Answer { attempt, outcome: Outcome::Acknowledged(position) } = step else {
                    return None;
                };
                let (invoked, payload, _) = invocations[attempt];
                self.is_alone(*attempt).then_some((invoked, answered, payload, position))
            })
            .collect();
        let mut pairs = Vec::new();
        for (from, answered, first, at) in &all {
            for (invoked, _, second, then) in &all {
                let follows = at.epoch == then.epoch && answered < invoked;
                let is_quiet = |step: &Step| !matches!(step, Step::Subscribed { .. } | Step::View { .. });
                if follows && self.steps[*from..*invoked].iter().all(is_quiet) {
                    pairs.push((*first, *second));
                }
            }
        }
        pairs
    }

    // What plants do.

    /// Two payloads change places.
    pub(super) fn exchange(&mut self, first: u64, second: u64) {
        let invocations = self.invocations();
        let other = |payload: u64| match payload {
            one if one == first => second,
            one if one == second => first,
            one => one,
        };
        let mut positions: BTreeMap<u64, Position> = BTreeMap::new();
        for step in &self.steps {
            if let Step::Answer { attempt, outcome: Outcome::Acknowledged(position) } = step {
                positions.insert(invocations[attempt].1, position.clone());
            }
        }
        for step in &mut self.steps {
            match step {
                Step::Delivered { payload, .. } => *payload = other(*payload),
                Step::Read { items, .. } => {
                    items.iter_mut().for_each(|(_, payload)| *payload = other(*payload))
                }
                Step::Answer { attempt, outcome: Outcome::Acknowledged(position) } => {
                    position.clone_from(&positions[&other(invocations[attempt].1)]);
                }
                _ => {}
            }
        }
    }

    /// Something more is stored, read and brought to everybody who is there.
    pub(super) fn append(&mut self, to: &str, payload: u64) {
        let mut at = None;
        for step in &mut self.steps {
            if let Step::Read { channel, head, items } = step
                && channel == to
            {
                head.offset = head.offset.next();
                items.push((head.offset.0, payload));
                at = Some(head.clone());
            }
        }
        let position = at.expect("every channel is read");
        let of_channel = |step: &Step| match step {
            Step::View { view, channel, .. } if channel == to => Some(*view),
            _ => None,
        };
        let views: Vec<usize> = self.steps.iter().filter_map(of_channel).collect();
        for view in views {
            if !self.has_ended(view) {
                self.steps.push(Step::Delivered { view, position: position.clone(), payload });
            }
        }
    }

    /// An attempt that comes before everything and is not answered; its payload.
    pub(super) fn invoke_first(&mut self, client: &str, channel: &str) -> u64 {
        let step = self.invocation(client, channel);
        let Step::Invoke { payload, .. } = step else { unreachable!("an invocation") };
        self.steps.insert(0, step);
        payload
    }

    /// One that comes last.
    pub(super) fn invoke_last(&mut self, client: &str, channel: &str, outcome: Outcome) {
        let step = self.invocation(client, channel);
        let attempt = self.attempts;
        self.steps.push(step);
        self.steps.push(Step::Answer { attempt, outcome });
    }

    fn invocation(&mut self, client: &str, channel: &str) -> Step {
        self.attempts += 1;
        self.payloads += 1;
        let (client, channel) = (client.to_owned(), channel.to_owned());
        Step::Invoke { attempt: self.attempts, client, channel, is_keyed: true, payload: self.payloads }
    }

    /// By attempt: where, what, on which channel.
    fn invocations(&self) -> BTreeMap<usize, (usize, u64, String)> {
        let invocation = |(at, step): (usize, &Step)| match step {
            Step::Invoke { attempt, payload, channel, .. } => {
                Some((*attempt, (at, *payload, channel.clone())))
            }
            _ => None,
        };
        self.steps.iter().enumerate().filter_map(invocation).collect()
    }
}

impl Growth {
    fn publish(&mut self, rng: &mut ChaCha8Rng) {
        let channel = rng.random_range(0..CHANNELS);
        self.run.payloads += 1;
        let (payload, is_keyed) = (self.run.payloads, rng.random_bool(0.9));
        self.attempt(rng, channel, payload, is_keyed);
    }

    fn attempt(&mut self, rng: &mut ChaCha8Rng, channel: usize, payload: u64, is_keyed: bool) {
        self.run.attempts += 1;
        let attempt = self.run.attempts;
        let client = format!("p{}", rng.random_range(0..3));
        self.run.steps.push(Step::Invoke { attempt, client, channel: name(channel), is_keyed, payload });
        let fate = match rng.random_range(0..20) {
            0 => Fate::Refused,
            1 => Fate::Unheard,
            2 => Fate::Lost,
            _ => Fate::Acknowledged,
        };
        self.pending.push(Pending { attempt, channel, payload, is_keyed, fate, stored: None });
    }

    /// The next thing happens to some attempt: it is stored, or answered.
    fn resolve(&mut self, rng: &mut ChaCha8Rng) {
        let Some(at) = (0..self.pending.len()).choose(rng) else { return };
        let pending = &mut self.pending[at];
        let channel = &mut self.channels[pending.channel];
        let is_stored = matches!(pending.fate, Fate::Acknowledged | Fate::Unheard);
        if is_stored && pending.stored.is_none() {
            // By its key, what is there already is found.
            let there = channel.log.iter().position(|payload| *payload == pending.payload);
            let mut position = channel.head(pending.channel);
            match there {
                Some(index) => position.offset = Offset(index as u64 + 1),
                None => {
                    channel.log.push(pending.payload);
                    position.offset = position.offset.next();
                }
            }
            pending.stored = Some(position);
            return;
        }
        let Pending { attempt, channel, payload, is_keyed, fate, stored } = self.pending.remove(at);
        let epoch = self.channels[channel].head(channel).epoch;
        let outcome = match (fate, &stored) {
            (Fate::Acknowledged, Some(position)) => Outcome::Acknowledged(position.clone()),
            (Fate::Refused, _) => Outcome::Refused,
            _ => Outcome::Unknown,
        };
        let is_unknown = outcome == Outcome::Unknown;
        if !is_unknown || rng.random_bool(0.7) {
            self.run.steps.push(Step::Answer { attempt, outcome });
        }
        // With a key it is safe to try again, as long as the channel remembers.
        let is_remembered = stored.is_none_or(|position| position.epoch == epoch);
        if is_unknown && is_keyed && is_remembered && rng.random_bool(0.5) {
            let older = self.pending.len();
            self.attempt(rng, channel, payload, is_keyed);
            // It may not be stored in another epoch, where its first attempt is not known.
            self.resolve_now(older, rng);
        }
    }

    fn resolve_now(&mut self, at: usize, rng: &mut ChaCha8Rng) {
        let last = self.pending.split_off(at);
        let rest = std::mem::replace(&mut self.pending, last);
        while !self.pending.is_empty() {
            // Not once more.
            self.pending.iter_mut().for_each(|one| one.is_keyed = false);
            self.resolve(rng);
        }
        self.pending = rest;
    }

    fn subscribe(&mut self, rng: &mut ChaCha8Rng) {
        let view = self.run.views;
        self.run.views += 1;
        let channel = rng.random_range(0..CHANNELS);
        let head = self.channels[channel].head(channel);
        let asked = rng.random_bool(0.5).then(|| {
            let offset = Offset(rng.random_range(0..=head.offset.0));
            let any = offset.0 == 0 && rng.random_bool(0.5);
            Position::new(if any { Epoch::default() } else { head.epoch.clone() }, offset)
        });
        let begun = if asked.is_some() { Begun::Recovered } else { Begun::AtHead };
        let from = asked.as_ref().map_or(head.offset, |asked| asked.offset);
        let at = Position::new(head.epoch.clone(), from);
        self.run.steps.push(Step::View { view, channel: name(channel), asked });
        self.run.steps.push(Step::Subscribed { view, begun, position: head });
        self.subscribers.push(Subscriber { view, channel, at });
    }

    fn deliver(&mut self, rng: &mut ChaCha8Rng) {
        if let Some(at) = (0..self.subscribers.len()).choose(rng) {
            self.deliver_to(at);
        }
    }

    /// The next thing that a subscriber is due; false where it has everything.
    fn deliver_to(&mut self, at: usize) -> bool {
        let Subscriber { view, channel, at } = &mut self.subscribers[at];
        let head = self.channels[*channel].head(*channel);
        if at.epoch != head.epoch {
            *at = head.clone();
            self.run.steps.push(Step::Subscribed { view: *view, begun: Begun::Rebased, position: head });
            return true;
        }
        let Some(payload) = self.channels[*channel].log.get(at.offset.0 as usize) else { return false };
        at.offset = at.offset.next();
        self.run.steps.push(Step::Delivered { view: *view, position: at.clone(), payload: *payload });
        true
    }

    /// A subscriber reconnects, or was too slow.
    fn disturb(&mut self, rng: &mut ChaCha8Rng) {
        let Some(subscriber) = self.subscribers.iter_mut().choose(rng) else { return };
        let head = self.channels[subscriber.channel].head(subscriber.channel);
        let recovers = rng.random_bool(0.6);
        if recovers && head.epoch != subscriber.at.epoch {
            return;
        }
        if !recovers {
            subscriber.at = head.clone();
        }
        let begun = if recovers { Begun::Recovered } else { Begun::Rebased };
        self.run.steps.push(Step::Subscribed { view: subscriber.view, begun, position: head });
    }

    fn leave(&mut self, rng: &mut ChaCha8Rng) {
        if let Some(at) = (0..self.subscribers.len()).choose(rng) {
            self.run.steps.push(Step::Ended { view: self.subscribers.remove(at).view });
        }
    }

    /// Continuity is lost.
    fn change_epoch(&mut self, rng: &mut ChaCha8Rng) {
        let channel = &mut self.channels[rng.random_range(0..CHANNELS)];
        channel.epoch += 1;
        channel.log.clear();
    }

    /// Everything comes to rest, and history is read.
    fn settle(mut self, rng: &mut ChaCha8Rng) -> Run {
        while !self.pending.is_empty() {
            self.resolve(rng);
        }
        for at in 0..self.subscribers.len() {
            while self.deliver_to(at) {}
        }
        for (number, channel) in self.channels.iter().enumerate() {
            let items = (1..).zip(channel.log.iter().copied()).collect();
            self.run.steps.push(Step::Read { channel: name(number), head: channel.head(number), items });
        }
        self.run
    }
}

fn name(channel: usize) -> String {
    format!("room:{channel}")
}

const CHANNELS: usize = 2;
const STEPS: usize = 400;
