//! A crowd: thousands of real clients, of `sdk/rust` in processes of their own (files and processors of one would not do)
//! and of `sdk/js` in pages of Chromium, each on a few channels. What they see goes to one [`Books`], by lines of text, and
//! from there to a checker.

mod backend;
mod books;
mod judged;
mod line;
mod member;
mod order;
mod pages;
mod stage;

use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;

use crate::gateway::Gateway;
use crate::wait::within;

pub(super) use self::backend::Backend;
pub(super) use self::books::{Books, Window};
pub(super) use self::judged::Judged;
pub(super) use self::order::Transport;
pub(super) use self::pages::Pages;
pub(super) use self::stage::{Guests, Stage, judge};

use self::line::Said;
use self::order::{Order, SECRET, channel_name};

/// The processes of a crowd. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Crowd {
    books: Books,
    members: Vec<(Child, ChildStdin)>,
    listening: JoinSet<Result<()>>,
}

impl Crowd {
    /// Of nobody yet.
    pub(super) fn new(books: Books) -> Self {
        Self { books, members: Vec::new(), listening: JoinSet::new() }
    }

    /// Starts a process that connects as the order says; [`Books::until_begun`] tells when all of its clients are there.
    pub(super) async fn join(&mut self, order: &Order) -> Result<()> {
        let mut child = Command::new(std::env::current_exe().context("which program is this?")?)
            .arg("crowd")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting a process of clients")?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let stdout = child.stdout.take().context("stdout")?;
        stdin.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes()).await?;
        self.books.expect(order);
        let books = self.books.clone();
        self.listening.spawn(async move {
            let mut lines = BufReader::with_capacity(BUFFER, stdout).lines();
            while let Some(line) = lines.next_line().await? {
                books.hear(&Said::parse(&line).with_context(|| format!("what is `{line}`?"))?);
            }
            Ok(())
        });
        self.members.push((child, stdin));
        Ok(())
    }

    /// Says so where a process has ended, or the browser.
    pub(super) fn check(&mut self, pages: Option<&mut Pages>) -> Result<()> {
        if let Some(ended) = self.listening.try_join_next() {
            ended??;
            anyhow::bail!("a process of clients ended");
        }
        for (child, _) in &mut self.members {
            let ended = child.try_wait()?;
            ensure!(ended.is_none(), "a process of clients ended: {ended:?}");
        }
        pages.map_or(Ok(()), Pages::check)
    }

    /// Ends all processes, and the browser.
    pub(super) async fn end(mut self, pages: Option<Pages>) -> Result<()> {
        if let Some(pages) = pages {
            pages.end().await?;
        }
        for (mut child, stdin) in self.members.drain(..) {
            drop(stdin);
            within(crate::wait::PATIENCE, "the end of clients", child.wait()).await??;
        }
        Ok(())
    }
}

/// `bench crowd`: such a process.
pub(super) fn run() -> Result<ExitCode> {
    member::run()
}

/// The hash by which clients trust an edge, and all others of its cluster.
pub(super) async fn certificate_hash(edge: &Gateway) -> Result<String> {
    let facts = edge.facts().await?;
    Ok(facts["certificate_hash"].as_str().context("a certificate hash")?.to_owned())
}

/// Bytes of lines that are read at once.
const BUFFER: usize = 64 << 10;
