//! Figures for people and for programs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tidegate_transport::clock;

/// Median and range of what was measured several times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Spread {
    /// Of at least one figure.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let at = |place: usize| figures.get(place).copied().unwrap_or(f64::NAN);
        let median = if figures.len().is_multiple_of(2) && middle > 0 {
            f64::midpoint(at(middle - 1), at(middle))
        } else {
            at(middle)
        };
        Self { median, low: at(0), high: at(figures.len().wrapping_sub(1)) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", short(self.median))?;
        if self.low < self.high { write!(f, " ({}-{})", short(self.low), short(self.high)) } else { Ok(()) }
    }
}

/// Of many figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Quantiles {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Quantiles {
    /// NaN of none.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
        let at = |share: f64| {
            let place = (share * figures.len() as f64).ceil() as usize;
            figures.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Self { count: figures.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// A figure with as many digits as it is worth.
pub(super) fn short(figure: f64) -> String {
    if figure.is_nan() {
        return "-".to_owned();
    }
    let digits = match figure.abs() {
        size if size < 1.0 => 2,
        size if size < 20.0 => 1,
        _ => 0,
    };
    format!("{figure:.digits$}")
}

/// Columns of equal width, as Markdown.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(|&cell| cell.to_owned()).collect()])
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.0.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.0.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, "| {cell:<width$} ")?;
            }
            writeln!(f, "|")?;
            if index == 0 {
                for width in &widths {
                    write!(f, "|{:-<width$}", "", width = width + 2)?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// What is being measured, and how long it will take. On stderr; lines where that is no terminal.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    done: u64,
}

impl Progress {
    pub(super) fn new(measurements: usize) -> Self {
        let bar = ProgressBar::with_draw_target(
            Some(measurements as u64 * STEPS),
            ProgressDrawTarget::stderr_with_hz(4),
        );
        let template = "{spinner} [{elapsed_precise}] {wide_bar} {percent}% eta {eta}\n  {msg}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar, done: 0 }
    }

    /// A measurement begins.
    pub(super) fn begin(&self, what: String) {
        if self.bar.is_hidden() {
            eprintln!("measuring {what}");
        }
        self.bar.set_message(what);
    }

    /// So much of the measurement is over, from 0 to 1.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1")]
    pub(super) fn part(&self, part: f64) {
        // The load generator calls this in its loop: only what can be seen is passed on.
        let position = self.done * STEPS + (part.clamp(0.0, 1.0) * 100.0) as u64;
        if position > self.bar.position() {
            self.bar.set_position(position);
        }
    }

    /// It is over, with this outcome.
    pub(super) fn end(&mut self, outcome: &str) {
        self.done += 1;
        self.bar.set_position(self.done * STEPS);
        if self.bar.is_hidden() {
            eprintln!("  {outcome}");
        } else {
            self.bar.println(outcome);
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Writes the result; tells where.
pub(super) fn write_json(name: &str, file: Option<&Path>, report: &impl Serialize) -> Result<PathBuf> {
    let file = file.map_or_else(
        || {
            let seconds = Duration::from_millis(clock::unix_ms()).as_secs();
            PathBuf::from(format!("target/bench/{name}-{seconds}.json"))
        },
        Path::to_owned,
    );
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(report)?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

const STEPS: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        let cases: [(&[f64], [f64; 3]); 3] = [
            (&[3.0], [3.0; 3]),
            (&[9.0, 1.0, 2.0], [2.0, 1.0, 9.0]),
            (&[4.0, 1.0, 2.0, 9.0], [3.0, 1.0, 9.0]),
        ];
        for (figures, [median, low, high]) in cases {
            assert_eq!(Spread::of(figures.iter().copied()), Spread { median, low, high });
        }
    }

    #[test]
    fn a_quantile_is_one_of_the_figures() {
        let figures = Quantiles::of((1..=200).rev().map(f64::from));
        assert_eq!(figures, Quantiles { count: 200, p50: 100.0, p99: 198.0, max: 200.0 });
        let figures = Quantiles::of([7.0]);
        assert_eq!(figures, Quantiles { count: 1, p50: 7.0, p99: 7.0, max: 7.0 });
        assert!(Quantiles::of([]).p99.is_nan());
    }

    #[test]
    fn tables_are_markdown() {
        let mut table = Table::new(&["a", "bb"]);
        table.row(vec!["ccc".to_owned(), "d".to_owned()]);
        assert_eq!(table.to_string(), "| a   | bb |\n|-----|----|\n| ccc | d  |\n");
    }
}
