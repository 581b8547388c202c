//! What a run comes to by the checker.

use serde::Serialize;

use crate::checker::{Kind, Report};

/// Counts of what should not be, and the first few cases of each.
#[derive(Debug, Clone, Default, Serialize)]
pub(in crate::bench) struct Judged {
    pub(in crate::bench) published: u64,
    pub(in crate::bench) deliveries: u64,
    /// Publications that did not reach somebody who was to have them, or are not in history.
    pub(in crate::bench) lost: u64,
    pub(in crate::bench) doubled: u64,
    /// Of any other kind.
    pub(in crate::bench) others: u64,
    /// Times that a client was told that it missed something.
    pub(in crate::bench) rebased: u64,
    pub(in crate::bench) cases: Vec<String>,
}

impl Judged {
    pub(super) fn of(report: &Report) -> Self {
        let mut judged = Self {
            published: report.acknowledged,
            deliveries: report.deliveries,
            rebased: report.rebased,
            ..Self::default()
        };
        for (kind, count) in &report.by_kind {
            match kind {
                Kind::SilentGap | Kind::AcknowledgedNotDelivered | Kind::NotKept => judged.lost += count,
                Kind::DeliveredTwice | Kind::StoredTwice => judged.doubled += count,
                _ => judged.others += count,
            }
        }
        let cases = report.violations.iter();
        judged.cases = cases.map(|case| format!("{:?} {}: {}", case.kind, case.channel, case.text)).collect();
        judged
    }

    /// These, for a [`Verdict`](crate::bench::trial::Verdict).
    pub(in crate::bench) fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("lost", self.lost),
            ("doubled", self.doubled),
            ("otherwise wrong", self.others),
            ("told of a gap", self.rebased),
            ("failures", self.cases.len() as u64),
        ]
    }
}
