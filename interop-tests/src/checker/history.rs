//! Takes down what happens, and notices at once what can be noticed at once.

use std::collections::{BTreeMap, HashMap};

use tidegate_protocol::{Epoch, Position};

use super::numbering::Numbering;
use super::report::{Kind, Report};

/// Everything that happened in a run. Times are microseconds of one monotonic clock; what one client sees is taken down in
/// its order.
#[derive(Debug, Default)]
pub struct History {
    pub(super) names: Names,
    pub(super) epochs: Epochs,
    pub(super) channels: Vec<Channel>,
    by_name: HashMap<u32, u32>,
    pub(super) attempts: Vec<Publish>,
    pub(super) payloads: HashMap<u64, Payload>,
    pub(super) views: Vec<Line>,
    /// What is stored in two epochs: channel, payload, and where it was seen later.
    pub(super) again: Vec<(u32, u64, (u32, u64))>,
    /// What is known already.
    pub(super) report: Report,
}

/// One attempt to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt(u32);

/// What one subscriber sees of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct View(u32);

/// How an attempt to publish ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept there.
    Acknowledged(Position),
    /// It is not kept, and will not be.
    Refused,
    /// It may be kept or not. So is what was never answered.
    Unknown,
}

/// What a subscriber was told when its subscription began, or went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It begins behind the position.
    AtHead,
    /// Everything comes since where it was, or where it asked to begin; the position is the head.
    Recovered,
    /// Something was missed: it goes on behind the position.
    Rebased,
}

#[derive(Debug, Default)]
pub(super) struct Channel {
    pub(super) name: u32,
    /// Offsets may be left out.
    pub(super) is_conflated: bool,
    /// By epoch.
    pub(super) numberings: BTreeMap<u32, Numbering>,
    /// What history held in the end.
    pub(super) read: Option<Read>,
}

#[derive(Debug)]
pub(super) struct Read {
    pub(super) epoch: u32,
    pub(super) head: u64,
    /// The first that it told; past the head where it told none.
    pub(super) first: u64,
    /// Older ones may be there.
    pub(super) is_cut: bool,
    /// Between the first and the head.
    pub(super) missing: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Publish {
    pub(super) client: u32,
    pub(super) channel: u32,
    pub(super) is_keyed: bool,
    pub(super) payload: u64,
    pub(super) invoked: u64,
    pub(super) answered: u64,
    pub(super) outcome: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Acknowledged { epoch: u32, offset: u64 },
    Refused,
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Payload {
    /// Its attempts, the first few.
    pub(super) attempts: Vec<u32>,
    pub(super) is_keyless: bool,
    /// Where it was seen first.
    pub(super) place: Option<(u32, u32, u64)>,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) subscriber: u32,
    pub(super) channel: u32,
    /// Where it asked to begin.
    asked: Option<Position>,
    pub(super) spans: Vec<Span>,
    /// The subscriber left: it is owed nothing any more.
    pub(super) has_ended: bool,
}

/// A stretch of one epoch that a subscriber was to get without a gap.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) epoch: u32,
    /// It begins behind that.
    pub(super) after: u64,
    /// It got so far.
    pub(super) to: u64,
    pub(super) begun: u64,
    /// Offsets that did not come, first and last.
    pub(super) holes: Vec<(u64, u64)>,
}

impl History {
    /// Of a run that begins.
    pub fn new() -> Self {
        Self::default()
    }

    /// On this channel offsets may be left out.
    pub fn conflate(&mut self, channel: &str) {
        let channel = self.channel(channel);
        self.channels[channel as usize].is_conflated = true;
    }

    /// A publish is about to be sent. `payload` names what is published: the same for every attempt of the same
    /// publication, and for no other. `is_keyed`: by an idempotency key, the same for all of them.
    pub fn invoke(&mut self, now: u64, client: &str, channel: &str, is_keyed: bool, payload: u64) -> Attempt {
        let attempt = Attempt(u32::try_from(self.attempts.len()).expect("fewer than four billion attempts"));
        let (client, channel) = (self.names.number(client), self.channel(channel));
        let outcome = Answer::Unknown;
        self.attempts.push(Publish {
            client,
            channel,
            is_keyed,
            payload,
            invoked: now,
            answered: u64::MAX,
            outcome,
        });
        let known = self.payloads.entry(payload).or_default();
        known.is_keyless |= !is_keyed;
        if known.attempts.len() < MAX_ATTEMPTS {
            known.attempts.push(attempt.0);
        }
        self.report.publishes += 1;
        attempt
    }

    /// How that ended.
    pub fn answer(&mut self, now: u64, attempt: Attempt, outcome: Outcome) {
        let answer = match outcome {
            Outcome::Acknowledged(position) => {
                let epoch = self.epochs.number(&position.epoch);
                Answer::Acknowledged { epoch, offset: position.offset.0 }
            }
            Outcome::Refused => Answer::Refused,
            Outcome::Unknown => Answer::Unknown,
        };
        let publish = &mut self.attempts[attempt.0 as usize];
        (publish.answered, publish.outcome) = (now, answer);
        if let Answer::Acknowledged { epoch, offset } = answer {
            let (client, channel, payload) = (publish.client, publish.channel, publish.payload);
            self.note(channel, epoch, offset, payload, now, client);
        }
    }

    /// When a payload was published first.
    pub fn invoked(&self, payload: u64) -> Option<u64> {
        let first = self.payloads.get(&payload)?.attempts.first()?;
        Some(self.attempts[*first as usize].invoked)
    }

    /// A subscriber is about to subscribe: behind `asked`, or at the head.
    pub fn view(&mut self, subscriber: &str, channel: &str, asked: Option<&Position>) -> View {
        let view = View(u32::try_from(self.views.len()).expect("fewer than four billion subscriptions"));
        let (subscriber, channel) = (self.names.number(subscriber), self.channel(channel));
        let asked = asked.cloned();
        self.views.push(Line { subscriber, channel, asked, spans: Vec::new(), has_ended: false });
        self.report.views += 1;
        view
    }

    /// It was told where its subscription begins, or goes on.
    pub fn subscribed(&mut self, now: u64, view: View, begun: Begun, position: &Position) {
        let epoch = self.epochs.number(&position.epoch);
        let head = position.offset.0;
        let line = &mut self.views[view.0 as usize];
        let span = |after: u64| Span { epoch, after, to: after, begun: now, holes: Vec::new() };
        let Some(last) = line.spans.last() else {
            let asked = line.asked.clone().filter(|_| begun == Begun::Recovered);
            line.spans.push(span(asked.as_ref().map_or(head, |asked| asked.offset.0)));
            self.report.rebased += u64::from(begun == Begun::Rebased);
            if let Some(asked) = asked.filter(|asked| !asked.epoch.is_any() && asked.epoch != position.epoch)
            {
                self.violation(view, Kind::EpochUndeclared, |_, who| {
                    let (before, after) = (asked.epoch.as_str(), position.epoch.as_str());
                    format!("{who} was told that {after} goes on where it was in {before}, {}", seconds(now))
                });
            }
            return;
        };
        let (last_epoch, to) = (last.epoch, last.to);
        let continues = begun == Begun::Recovered;
        if !continues || last_epoch != epoch {
            line.spans.push(span(head));
        }
        if continues {
            self.report.recovered += 1;
        } else {
            self.report.rebased += 1;
        }
        if continues && last_epoch != epoch {
            self.violation(view, Kind::EpochUndeclared, |history, who| {
                let (before, after) = (history.epochs.text(last_epoch), history.epochs.text(epoch));
                format!("{who} was told that {after} goes on where {before}:{to} was, {}", seconds(now))
            });
        } else if last_epoch == epoch && head < to {
            self.violation(view, Kind::Rewound, |history, who| {
                let epoch = history.epochs.text(epoch);
                format!(
                    "{who} had got to {epoch}:{to} and was told that the head is {head}, {}",
                    seconds(now)
                )
            });
        }
    }

    /// It got a publication.
    pub fn delivered(&mut self, now: u64, view: View, position: &Position, payload: u64) {
        self.report.deliveries += 1;
        let epoch = self.epochs.number(&position.epoch);
        let offset = position.offset.0;
        let line = &mut self.views[view.0 as usize];
        let is_conflated = self.channels[line.channel as usize].is_conflated;
        let (subscriber, channel) = (line.subscriber, line.channel);
        match line.spans.last_mut() {
            Some(span) if span.epoch == epoch => {
                let next = span.to + 1;
                if offset >= next {
                    if offset > next && !is_conflated {
                        span.holes.push((next, offset - 1));
                    }
                    span.to = offset;
                } else {
                    let kind = if span.fill(offset) { Kind::Disordered } else { Kind::DeliveredTwice };
                    let (after, to) = (span.after, span.to);
                    self.violation(view, kind, |history, who| {
                        let place = history.place(channel, epoch, offset, payload);
                        format!(
                            "{who} began after {after}, had got to {to}, and got {place}, {}",
                            seconds(now)
                        )
                    });
                }
            }
            other => {
                let before = other.map(|span| (span.epoch, span.to));
                let after = offset.saturating_sub(1);
                line.spans.push(Span { epoch, after, to: offset, begun: now, holes: Vec::new() });
                self.violation(view, Kind::EpochUndeclared, |history, who| {
                    let place = history.place(channel, epoch, offset, payload);
                    let before = match before {
                        Some((epoch, to)) => format!("was at {}:{to}", history.epochs.text(epoch)),
                        None => "was not told where it begins".to_owned(),
                    };
                    format!("{who} {before}, and got {place}, {}", seconds(now))
                });
            }
        }
        self.note(channel, epoch, offset, payload, now, subscriber);
    }

    /// It left, or its session ended for good.
    pub fn ended(&mut self, view: View) {
        self.views[view.0 as usize].has_ended = true;
    }

    /// What history holds, when everything has come to rest: the head, and the publications up to it by offset, the newest
    /// or all of them. `is_cut`: older ones may have been left out of the reply. The last read of a channel counts.
    pub fn read(
        &mut self,
        now: u64,
        channel: &str,
        head: &Position,
        is_cut: bool,
        items: impl IntoIterator<Item = (u64, u64)>,
    ) {
        let channel = self.channel(channel);
        let epoch = self.epochs.number(&head.epoch);
        let head = head.offset.0;
        let reader = self.names.number("history");
        let mut read = Read { epoch, head, first: head + 1, is_cut, missing: Vec::new() };
        let mut next = None;
        for (offset, payload) in items {
            read.first = read.first.min(offset);
            read.missing.extend(next.unwrap_or(offset)..offset);
            next = Some(offset + 1);
            self.note(channel, epoch, offset, payload, now, reader);
        }
        read.missing.extend(next.unwrap_or(head + 1)..head + 1);
        self.channels[channel as usize].read = Some(read);
    }

    /// Somebody saw a payload at a position.
    fn note(&mut self, channel: u32, epoch: u32, offset: u64, payload: u64, now: u64, witness: u32) {
        let numbering = self.channels[channel as usize].numberings.entry(epoch).or_default();
        let before = numbering.get(offset);
        if before == Some(payload) {
            return;
        }
        if let Some(before) = before {
            self.violation_of(channel, Kind::Rewound, |history| {
                let (was, is) = (
                    history.place(channel, epoch, offset, before),
                    history.place(channel, epoch, offset, payload),
                );
                format!("{was} became {is} for {}, {}", history.names.text(witness), seconds(now))
            });
            return;
        }
        numbering.put(offset, payload);
        let known = self.payloads.entry(payload).or_default();
        // Without a key every attempt may be stored.
        let may_repeat = known.is_keyless && known.attempts.len() > 1;
        if let Some((other, epoch_before, offset_before)) = known.place {
            if may_repeat {
                return;
            }
            if other == channel && epoch_before != epoch {
                self.again.push((channel, payload, (epoch, offset)));
            } else {
                self.violation_of(channel, Kind::StoredTwice, |history| {
                    let first = history.place(other, epoch_before, offset_before, payload);
                    let second = format!("{}:{offset}", history.epochs.text(epoch));
                    let witness = history.names.text(witness);
                    format!("{first} is at {second} too, as {witness} was told, {}", seconds(now))
                });
            }
        } else {
            known.place = Some((channel, epoch, offset));
        }
    }

    fn channel(&mut self, name: &str) -> u32 {
        let name = self.names.number(name);
        let next = u32::try_from(self.channels.len()).expect("fewer than four billion channels");
        let channel = *self.by_name.entry(name).or_insert(next);
        if channel == next {
            self.channels.push(Channel { name, ..Channel::default() });
        }
        channel
    }

    fn violation(&mut self, view: View, kind: Kind, text: impl FnOnce(&Self, &str) -> String) {
        let line = &self.views[view.0 as usize];
        let (channel, subscriber) = (line.channel, line.subscriber);
        self.violation_of(channel, kind, |history| {
            let who = format!("subscriber {}", history.names.text(subscriber));
            text(history, &who)
        });
    }

    fn violation_of(&mut self, channel: u32, kind: Kind, text: impl FnOnce(&Self) -> String) {
        let mut report = std::mem::take(&mut self.report);
        let name = self.channel_name(channel);
        report.add(kind, name, || text(self));
        self.report = report;
    }

    /// Of a view: the channel and the subscriber.
    pub(super) fn names_of(&self, view: View) -> (&str, &str) {
        let line = &self.views[view.0 as usize];
        (self.channel_name(line.channel), self.names.text(line.subscriber))
    }

    pub(super) fn channel_name(&self, channel: u32) -> &str {
        self.names.text(self.channels[channel as usize].name)
    }

    /// A position and what is there, with who published it and how that ended.
    pub(super) fn place(&self, channel: u32, epoch: u32, offset: u64, payload: u64) -> String {
        let place = format!("{}:{offset} = {payload}", self.epochs.text(epoch));
        let attempts: Vec<String> = self
            .payloads
            .get(&payload)
            .into_iter()
            .flat_map(|known| &known.attempts)
            .map(|attempt| {
                let publish = &self.attempts[*attempt as usize];
                let outcome = match publish.outcome {
                    Answer::Acknowledged { epoch, offset } => {
                        format!("acknowledged as {}:{offset}", self.epochs.text(epoch))
                    }
                    Answer::Refused => "refused".to_owned(),
                    Answer::Unknown if publish.answered == u64::MAX => "not answered".to_owned(),
                    Answer::Unknown => "answered with \"unknown\"".to_owned(),
                };
                let elsewhere = if publish.channel == channel {
                    String::new()
                } else {
                    format!(" on {}", self.channel_name(publish.channel))
                };
                let key = if publish.is_keyed { "" } else { " without a key" };
                let (client, from) = (self.names.text(publish.client), seconds(publish.invoked));
                match publish.answered {
                    u64::MAX => format!("by {client}{elsewhere}{key} {from}, {outcome}"),
                    at => format!("by {client}{elsewhere}{key} {from}, {outcome} {}", seconds(at)),
                }
            })
            .collect();
        if attempts.is_empty() {
            return format!("{place} (published by nobody)");
        }
        format!("{place} ({})", attempts.join("; "))
    }
}

impl Span {
    /// An offset that had been passed over came after all. False where it had not been.
    fn fill(&mut self, offset: u64) -> bool {
        let Some(at) = self.holes.iter().position(|(first, last)| (*first..=*last).contains(&offset)) else {
            return false;
        };
        let (first, last) = self.holes.swap_remove(at);
        if first < offset {
            self.holes.push((first, offset - 1));
        }
        if offset < last {
            self.holes.push((offset + 1, last));
        }
        true
    }
}

/// Names as small numbers.
#[derive(Debug, Default)]
pub(super) struct Names {
    texts: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Names {
    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = u32::try_from(self.texts.len()).expect("fewer than four billion names");
        self.texts.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }

    pub(super) fn text(&self, number: u32) -> &str {
        &self.texts[number as usize]
    }
}

/// Epochs as small numbers, by first appearance.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    texts: Vec<Epoch>,
    numbers: HashMap<Epoch, u32>,
}

impl Epochs {
    fn number(&mut self, epoch: &Epoch) -> u32 {
        if let Some(number) = self.numbers.get(epoch) {
            return *number;
        }
        let number = u32::try_from(self.texts.len()).expect("fewer than four billion epochs");
        self.texts.push(epoch.clone());
        self.numbers.insert(epoch.clone(), number);
        number
    }

    pub(super) fn text(&self, number: u32) -> &str {
        self.texts[number as usize].as_str()
    }
}

/// A time, for people.
pub(super) fn seconds(micros: u64) -> String {
    format!("at {}.{:06} s", micros / 1_000_000, micros % 1_000_000)
}

/// Attempts of one payload that are remembered.
const MAX_ATTEMPTS: usize = 8;
