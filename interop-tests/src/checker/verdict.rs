//! What can only be said when everything has come to rest.

use std::collections::BTreeMap;

use super::history::{Answer, Channel, History, Line, Read, Span, seconds};
use super::report::{Bounds, Kind, Report};

impl History {
    /// Judges the run. Everything is to have come to rest: subscribers that have not ended have had the time to get all.
    pub fn report(&self, bounds: &Bounds) -> Report {
        let mut report = self.report.clone();
        let acknowledged = self.count_outcomes(&mut report);
        for (number, channel) in (0u32..).zip(&self.channels) {
            let acknowledged = acknowledged.get(&number).map_or(&[][..], Vec::as_slice);
            self.check_order(number, acknowledged, &mut report);
            self.check_payloads(number, channel, &mut report);
            if let Some(read) = &channel.read {
                self.check_read(number, channel, read, bounds, &mut report);
                let is_past = |one: &&Acknowledged| one.epoch != read.epoch;
                report.acknowledged_in_past_epochs += acknowledged.iter().filter(is_past).count() as u64;
            }
            report.epoch_changes += (channel.numberings.len() as u64).saturating_sub(1);
        }
        if bounds.keys_outlive_epochs {
            for (channel, payload, (epoch, offset)) in &self.again {
                report.add(Kind::StoredTwice, self.channel_name(*channel), || {
                    let place = self.place(*channel, *epoch, *offset, *payload);
                    format!("{place} was seen in an epoch before")
                });
            }
        }
        report.channels = self.channels.len() as u64;
        let owed: BTreeMap<u32, Owed<'_>> =
            acknowledged.iter().map(|(channel, all)| (*channel, Owed::new(all))).collect();
        for line in &self.views {
            self.check_holes(line, &mut report);
            if let Some(owed) = owed.get(&line.channel).filter(|_| !line.has_ended) {
                self.check_owed(line, owed, &mut report);
            }
        }
        report
    }

    /// What was acknowledged, by channel: in the order of epochs and offsets.
    fn count_outcomes(&self, report: &mut Report) -> BTreeMap<u32, Vec<Acknowledged>> {
        let mut acknowledged: BTreeMap<u32, Vec<Acknowledged>> = BTreeMap::new();
        for publish in &self.attempts {
            match publish.outcome {
                Answer::Acknowledged { epoch, offset } => {
                    report.acknowledged += 1;
                    let (payload, channel) = (publish.payload, publish.channel);
                    // It may have been stored by an earlier attempt, whose answer was lost.
                    let first = self.payloads.get(&payload).and_then(|payload| payload.attempts.first());
                    let invoked =
                        first.map_or(publish.invoked, |first| self.attempts[*first as usize].invoked);
                    acknowledged.entry(channel).or_default().push(Acknowledged {
                        epoch,
                        offset,
                        payload,
                        invoked,
                        answered: publish.answered,
                    });
                }
                Answer::Refused => report.refused += 1,
                Answer::Unknown => {
                    report.unknown += 1;
                    let place = self.payloads.get(&publish.payload).and_then(|payload| payload.place);
                    report.unknown_stored += u64::from(place.is_some());
                }
            }
        }
        for all in acknowledged.values_mut() {
            all.sort_unstable_by_key(|one| (one.epoch, one.offset, one.invoked));
            // Of several attempts the first counts: it was stored by it, or later.
            all.dedup_by(|later, first| {
                let same =
                    (later.epoch, later.offset, later.payload) == (first.epoch, first.offset, first.payload);
                if same {
                    first.answered = first.answered.min(later.answered);
                }
                same
            });
        }
        acknowledged
    }

    /// What was published after another was acknowledged has a higher offset.
    fn check_order(&self, channel: u32, acknowledged: &[Acknowledged], report: &mut Report) {
        let mut earliest: Option<&Acknowledged> = None;
        for one in acknowledged.iter().rev() {
            let later = earliest.filter(|later| later.epoch == one.epoch);
            if let Some(later) = later.filter(|later| later.answered < one.invoked) {
                report.add(Kind::OutOfRealTime, self.channel_name(channel), || {
                    let (this, that) = (self.place_of(channel, one), self.place_of(channel, later));
                    format!("{this} is before {that}")
                });
            }
            if later.is_none_or(|later| one.answered < later.answered) {
                earliest = Some(one);
            }
        }
    }

    /// What is there was published, and not refused.
    fn check_payloads(&self, number: u32, channel: &Channel, report: &mut Report) {
        for (epoch, numbering) in &channel.numberings {
            for (offset, payload) in numbering.from(0) {
                let attempts = self.payloads.get(&payload).map_or(&[][..], |known| known.attempts.as_slice());
                let on = |attempt: &&u32| self.attempts[**attempt as usize].channel == number;
                let kind = if attempts.iter().filter(on).count() == 0 {
                    Kind::NeverPublished
                } else if attempts
                    .iter()
                    .all(|attempt| self.attempts[*attempt as usize].outcome == Answer::Refused)
                {
                    Kind::RefusedButStored
                } else {
                    continue;
                };
                report.add(kind, self.channel_name(number), || self.place(number, *epoch, offset, payload));
            }
        }
    }

    /// History holds what was seen in its epoch, as far back as it must.
    fn check_read(&self, number: u32, channel: &Channel, read: &Read, bounds: &Bounds, report: &mut Report) {
        let Some(numbering) = channel.numberings.get(&read.epoch) else { return };
        let epoch = self.epochs.text(read.epoch);
        let name = self.channel_name(number);
        if numbering.highest() > read.head {
            report.add(Kind::Rewound, name, || {
                let highest = numbering.highest();
                format!("history's head is {epoch}:{}, and {epoch}:{highest} was seen", read.head)
            });
        }
        let cut = if read.is_cut { read.first } else { 0 };
        let owed = (read.head.saturating_sub(bounds.kept) + 1).max(cut);
        for (offset, payload) in numbering.from(owed).take_while(|(offset, _)| *offset <= read.head) {
            if offset < read.first || read.missing.contains(&offset) {
                report.add(Kind::NotKept, name, || {
                    let place = self.place(number, read.epoch, offset, payload);
                    format!(
                        "{place} is not in history, which begins at {} and ends at {}",
                        read.first, read.head
                    )
                });
            }
        }
    }

    /// What did not come, although what is behind it came.
    fn check_holes(&self, line: &Line, report: &mut Report) {
        for span in &line.spans {
            for (first, last) in &span.holes {
                report.add(Kind::SilentGap, self.channel_name(line.channel), || {
                    let numbering = self.channels[line.channel as usize].numberings.get(&span.epoch);
                    let missed: Vec<String> = numbering
                        .into_iter()
                        .flat_map(|numbering| numbering.from(*first))
                        .take_while(|(offset, _)| offset <= last)
                        .take(TOLD)
                        .map(|(offset, payload)| self.place(line.channel, span.epoch, offset, payload))
                        .collect();
                    format!("{} never got {first} to {last}: {}", self.who(line, span), missed.join(", "))
                });
            }
        }
    }

    /// Who is still subscribed has got everything that was acknowledged, or was told otherwise.
    fn check_owed(&self, line: &Line, owed: &Owed<'_>, report: &mut Report) {
        let Some(span) = line.spans.last() else { return };
        let is_missing = |one: &&Acknowledged| {
            let is_later = one.invoked > span.begun;
            if one.epoch == span.epoch {
                one.offset > span.to || (is_later && one.offset <= span.after)
            } else {
                is_later
            }
        };
        if !owed.may_miss(span) {
            return;
        }
        for one in owed.all.iter().filter(is_missing) {
            if self.channels[line.channel as usize].is_conflated
                && one.epoch == span.epoch
                && one.offset <= span.to
            {
                continue;
            }
            report.add(Kind::AcknowledgedNotDelivered, self.channel_name(line.channel), || {
                format!("{} never got {}", self.who(line, span), self.place_of(line.channel, one))
            });
        }
    }

    fn who(&self, line: &Line, span: &Span) -> String {
        let (epoch, after, to) = (self.epochs.text(span.epoch), span.after, span.to);
        let begun = seconds(span.begun);
        let ended = if line.has_ended { ", left," } else { "" };
        format!(
            "subscriber {} ({epoch} from behind {after}, {begun}{ended} got to {to})",
            self.names.text(line.subscriber)
        )
    }

    fn place_of(&self, channel: u32, one: &Acknowledged) -> String {
        self.place(channel, one.epoch, one.offset, one.payload)
    }
}

/// An acknowledged publication: when its first attempt began, and when it was first acknowledged.
#[derive(Debug)]
struct Acknowledged {
    epoch: u32,
    offset: u64,
    payload: u64,
    invoked: u64,
    answered: u64,
}

/// What was acknowledged on a channel, and what says quickly that a subscriber has all of it.
#[derive(Debug)]
struct Owed<'a> {
    all: &'a [Acknowledged],
    /// By epoch, the highest offset and the last invocation.
    epochs: BTreeMap<u32, (u64, u64)>,
    /// As `all`: the last invocation in its epoch up to there.
    invoked: Vec<u64>,
}

impl<'a> Owed<'a> {
    fn new(all: &'a [Acknowledged]) -> Self {
        let mut epochs: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut invoked = Vec::with_capacity(all.len());
        for one in all {
            let (highest, last) = epochs.entry(one.epoch).or_default();
            *highest = one.offset.max(*highest);
            *last = one.invoked.max(*last);
            invoked.push(*last);
        }
        Self { all, epochs, invoked }
    }

    /// False where a subscriber that stands so has everything.
    fn may_miss(&self, span: &Span) -> bool {
        let in_epoch = self.epochs.get(&span.epoch).is_some_and(|(highest, _)| *highest > span.to);
        let elsewhere =
            self.epochs.iter().any(|(epoch, (_, invoked))| *epoch != span.epoch && *invoked > span.begun);
        let before = self.all.partition_point(|one| (one.epoch, one.offset) <= (span.epoch, span.after));
        let passed_over = before
            .checked_sub(1)
            .filter(|last| self.all[*last].epoch == span.epoch)
            .is_some_and(|last| self.invoked[last] > span.begun);
        in_epoch || elsewhere || passed_over
    }
}

/// Publications of a gap that are told.
const TOLD: usize = 3;
