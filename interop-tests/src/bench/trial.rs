//! Trials: benchmarks with targets to meet.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::machine::Machine;
use super::proc;
use super::report::{Table, write_json};
use crate::programs;

/// Measures, prints and writes. 1 where `print` finds that a target was missed.
pub(super) fn run<F: Serialize>(
    name: &str,
    json: Option<&Path>,
    measure: impl Future<Output = Result<F>>,
    print: impl FnOnce(&F) -> bool,
) -> Result<ExitCode> {
    let mut machine = Machine::look(&programs::tidegate()?);
    proc::raise_open_files(0)?;
    // One thread, so that the processors are the servers' and the clients'.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let figures = runtime.block_on(measure)?;
    machine.load_after = proc::load_average();
    println!("\n{}\n", machine.summary());
    let is_good = print(&figures);
    let file = write_json(name, json, &Report { machine, figures })?;
    println!("Result file: {}", file.display());
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Serialize)]
struct Report<F> {
    machine: Machine,
    figures: F,
}

/// What was asked for, what is, and whether that is good.
#[derive(Debug)]
pub(super) struct Verdict {
    table: Table,
    is_good: bool,
}

impl Verdict {
    pub(super) fn new() -> Self {
        Self { table: Table::new(&["what", "target", "measured", ""]), is_good: true }
    }

    pub(super) fn row(&mut self, what: &str, target: String, measured: String, is_met: bool) {
        self.is_good &= is_met;
        let word = if is_met { "met" } else { "MISSED" };
        self.table.row(vec![what.to_owned(), target, measured, word.to_owned()]);
    }

    /// What should not be at all.
    pub(super) fn none(&mut self, counts: impl IntoIterator<Item = (&'static str, u64)>) {
        for (what, count) in counts {
            self.row(what, "0".to_owned(), count.to_string(), count == 0);
        }
    }

    /// Prints it, and some of what explains it; true where all is good.
    pub(super) fn print<'a>(&self, explanations: impl IntoIterator<Item = &'a String>) -> bool {
        println!("{}", self.table);
        for text in explanations.into_iter().take(SHOWN) {
            println!("    {text}");
        }
        self.is_good
    }
}

/// Explanations that are printed; the file has all.
const SHOWN: usize = 20;
