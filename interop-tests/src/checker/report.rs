//! What a checked run came to.

use std::collections::BTreeMap;
use std::fmt;

/// What the servers of a run promise beyond the protocol.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many of a channel's newest publications history holds at least.
    pub kept: u64,
    /// A key is known in the next epoch too: what was stored in one is not stored in the other. False where a channel's
    /// keys are lost with its epoch.
    pub keys_outlive_epochs: bool,
}

impl Default for Bounds {
    /// All, and yes.
    fn default() -> Self {
        Self { kept: u64::MAX, keys_outlive_epochs: true }
    }
}

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One position held two publications, or a channel's head went back within an epoch.
    Rewound,
    /// One payload is at two positions.
    StoredTwice,
    /// A subscriber got something that it had.
    DeliveredTwice,
    /// A subscriber got something behind what comes after it.
    Disordered,
    /// A subscriber never got something that lies before what it got, and was not told.
    SilentGap,
    /// A subscriber got something of an epoch that it was not told of, or was told that one continues another.
    EpochUndeclared,
    /// What was acknowledged did not reach somebody who was subscribed and was not told.
    AcknowledgedNotDelivered,
    /// What was acknowledged, or delivered, is not in history, although its epoch is.
    NotKept,
    /// What was refused is there.
    RefusedButStored,
    /// What nobody published is there.
    NeverPublished,
    /// Published after another was acknowledged, and stored before it.
    OutOfRealTime,
}

/// One case.
#[derive(Debug, Clone)]
pub struct Violation {
    /// What was broken.
    pub kind: Kind,
    /// Where.
    pub channel: String,
    /// What happened, with what is known around it.
    pub text: String,
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Attempts to publish.
    pub publishes: u64,
    /// Of those: acknowledged.
    pub acknowledged: u64,
    /// Of those: refused for certain.
    pub refused: u64,
    /// Of those: nobody knows, by the answer.
    pub unknown: u64,
    /// Of the unknown: stored all the same.
    pub unknown_stored: u64,
    /// Acknowledged in an epoch that was over in the end: what became of them history does not say.
    pub acknowledged_in_past_epochs: u64,
    /// Channels on which anything happened.
    pub channels: u64,
    /// Epochs beyond the first of each channel.
    pub epoch_changes: u64,
    /// Subscribers' channels.
    pub views: u64,
    /// Publications that were delivered.
    pub deliveries: u64,
    /// Times that a subscriber went on without a gap.
    pub recovered: u64,
    /// Times that a subscriber was told that something was missed.
    pub rebased: u64,
    /// How many cases there are of each kind.
    pub by_kind: BTreeMap<Kind, u64>,
    /// The first few of each kind.
    pub violations: Vec<Violation>,
}

impl Report {
    /// True where everything holds.
    pub fn is_clean(&self) -> bool {
        self.by_kind.is_empty()
    }

    /// # Errors
    /// Where something does not hold: with the report.
    pub fn into_result(self) -> anyhow::Result<Self> {
        anyhow::ensure!(self.is_clean(), "{self}");
        Ok(self)
    }

    pub(super) fn add(&mut self, kind: Kind, channel: &str, text: impl FnOnce() -> String) {
        let count = self.by_kind.entry(kind).or_default();
        *count += 1;
        if *count <= FIRST {
            self.violations.push(Violation { kind, channel: channel.to_owned(), text: text() });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} publishes: {} acknowledged ({} in past epochs), {} refused, {} unknown ({} of them stored); {} deliveries \
             to {} subscriptions of {} channels: {} recovered, {} rebased; {} epoch changes",
            self.publishes,
            self.acknowledged,
            self.acknowledged_in_past_epochs,
            self.refused,
            self.unknown,
            self.unknown_stored,
            self.deliveries,
            self.views,
            self.channels,
            self.recovered,
            self.rebased,
            self.epoch_changes,
        )?;
        for (kind, count) in &self.by_kind {
            writeln!(f, "{kind:?}: {count}")?;
            for violation in self.violations.iter().filter(|violation| violation.kind == *kind) {
                writeln!(f, "  {}: {}", violation.channel, violation.text)?;
            }
        }
        Ok(())
    }
}

/// Cases of each kind that are told.
const FIRST: u64 = 5;
