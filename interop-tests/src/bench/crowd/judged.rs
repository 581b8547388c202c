//! What a run comes to by the checker.

use serde::Serialize;

use crate::bench::report::Table;
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

    /// These, for a [`Verdict`].
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

/// What was asked for, what is, and whether that is good.
#[derive(Debug)]
pub(in crate::bench) struct Verdict {
    table: Table,
    is_good: bool,
}

impl Verdict {
    pub(in crate::bench) fn new() -> Self {
        Self { table: Table::new(&["what", "target", "measured", ""]), is_good: true }
    }

    pub(in crate::bench) fn row(&mut self, what: &str, target: String, measured: String, is_met: bool) {
        self.is_good &= is_met;
        let word = if is_met { "met" } else { "MISSED" };
        self.table.row(vec![what.to_owned(), target, measured, word.to_owned()]);
    }

    /// What should not be at all.
    pub(in crate::bench) fn none(&mut self, counts: impl IntoIterator<Item = (&'static str, u64)>) {
        for (what, count) in counts {
            self.row(what, "0".to_owned(), count.to_string(), count == 0);
        }
    }

    /// Prints it, and some of what explains it; true where all is good.
    pub(in crate::bench) fn print<'a>(&self, explanations: impl IntoIterator<Item = &'a String>) -> bool {
        println!("{}", self.table);
        for text in explanations.into_iter().take(SHOWN) {
            println!("    {text}");
        }
        self.is_good
    }
}

/// Explanations that are printed; the file has all.
const SHOWN: usize = 20;
