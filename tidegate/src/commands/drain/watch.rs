//! Watching drains until they are over.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tidegate_transport::clock;

use super::super::api::{Api, ApiArguments};
use super::super::print;
use super::progress::{Row, Rows, State};
use super::{parse, query};

/// Asks, and shows.
pub(super) struct Watch<'a> {
    api: &'a ApiArguments,
    nodes: Vec<String>,
    rows: Rows,
    view: View,
}

/// How it is shown.
enum View {
    Json,
    /// When there was something to say last, and in which state each was.
    Lines {
        said: Option<Instant>,
        states: BTreeMap<String, (State, bool)>,
    },
    Bars {
        all: MultiProgress,
        bars: BTreeMap<String, ProgressBar>,
    },
}

impl<'a> Watch<'a> {
    pub(super) fn new(api: &'a ApiArguments, nodes: Vec<String>, json: bool) -> Self {
        let view = match (json, std::io::stdout().is_terminal()) {
            (true, _) => View::Json,
            (false, false) => View::Lines { said: None, states: BTreeMap::new() },
            (false, true) => View::Bars {
                all: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()),
                bars: BTreeMap::new(),
            },
        };
        Self { api, nodes, rows: Rows::default(), view }
    }

    /// Shows one answer.
    pub(super) fn show_once(&mut self, answer: &Value) -> anyhow::Result<ExitCode> {
        self.rows.handle_answer(answer, &self.nodes);
        if matches!(self.view, View::Json) {
            print(&format!("{answer}\n"))?;
        } else {
            print(&self.rows.iter().map(Row::line).collect::<String>())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Shows all that come until the drains are over, or Ctrl-C.
    pub(super) async fn until_the_end(mut self, mut answer: Value) -> anyhow::Result<ExitCode> {
        let mut heard = clock::now();
        loop {
            self.rows.handle_answer(&answer, &self.nodes);
            self.show(&answer)?;
            if self.rows.is_over() {
                break;
            }
            tokio::select! {
                // Cancel-safe: nobody waits for an answer meanwhile.
                biased;
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted.context("cannot listen for Ctrl-C")?;
                    self.clear();
                    eprintln!("The drain goes on without this command: `tidegate drain status` shows it, `tidegate drain abort` calls it off.");
                    return Ok(ExitCode::from(INTERRUPTED));
                }
                () = tokio::time::sleep(PERIOD) => {}
            }
            // The node that is asked may be started again meanwhile.
            match self.ask().await {
                Ok(newer) => {
                    answer = newer;
                    heard = clock::now();
                }
                Err(error) if clock::now().saturating_duration_since(heard) > SILENCE => {
                    self.clear();
                    return Err(error.context("the drain goes on, as far as is known"));
                }
                Err(_) => {}
            }
        }
        self.clear();
        match self.view {
            View::Json => print(&format!("{}\n", self.rows.json()))?,
            _ => print(&self.rows.summary())?,
        }
        Ok(self.rows.exit_code())
    }

    async fn ask(&self) -> anyhow::Result<Value> {
        let path = format!("/v1/drain{}", query(&self.nodes, None, false));
        parse(&Api::connect(self.api).await?.get(&path).await?)
    }

    fn show(&mut self, answer: &Value) -> anyhow::Result<()> {
        match &mut self.view {
            View::Json => print(&format!("{answer}\n")),
            View::Lines { said, states } => {
                let now = clock::now();
                let is_time = said.is_none_or(|said| now.saturating_duration_since(said) >= LINES);
                let mut text = String::new();
                for row in self.rows.iter() {
                    let is_new = states.insert(row.node.clone(), (row.state, row.behind))
                        != Some((row.state, row.behind));
                    if is_new || is_time {
                        text.push_str(&row.line());
                    }
                }
                if is_time {
                    *said = Some(now);
                }
                if text.is_empty() { Ok(()) } else { print(&text) }
            }
            View::Bars { all, bars } => {
                let mut rows: Vec<Row> = self.rows.iter().cloned().collect();
                if rows.len() > 1 {
                    rows.push(self.rows.total());
                }
                for row in rows {
                    let bar = bars.entry(row.node.clone()).or_insert_with(|| {
                        let style = ProgressStyle::with_template(TEMPLATE).expect("a template of ours");
                        all.add(ProgressBar::new(row.total).with_style(style).with_prefix(row.node.clone()))
                    });
                    bar.set_length(row.total);
                    bar.set_position(row.gone());
                    bar.set_message(row.details());
                }
                Ok(())
            }
        }
    }

    /// Takes the bars away.
    fn clear(&self) {
        if let View::Bars { all, .. } = &self.view {
            let _ = all.clear();
        }
    }
}

const TEMPLATE: &str = "{prefix:>12} [{bar:24}] {pos}/{len} {wide_msg}";
const PERIOD: Duration = Duration::from_millis(500);
/// Between two lines of a node, where nothing has changed but numbers.
const LINES: Duration = Duration::from_secs(5);
/// Without an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// By Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;
