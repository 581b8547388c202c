//! Chromium, driven by playwright-core in one Node.js process: pages of the gateway's own origin that run `sdk/js`.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{Event, Inbox, Wish};
use crate::gateway::Gateway;
use crate::programs;
use crate::wait::{PATIENCE, within};

/// A browser.
#[derive(Debug, Clone)]
pub struct Browser {
    orders: mpsc::Sender<Value>,
    shared: Arc<Mutex<Shared>>,
    _stop: Arc<DropGuard>,
}

#[derive(Debug, Default)]
struct Shared {
    orders: u64,
    waiting: HashMap<u64, oneshot::Sender<Result<Value>>>,
    pages: HashMap<String, mpsc::Sender<Result<Event>>>,
}

impl Browser {
    /// Starts it.
    ///
    /// # Errors
    /// When Node.js or Chromium cannot be started.
    pub async fn launch() -> Result<Self> {
        let browser = Self::start(pages()?)?;
        browser.order(json!({ "do": "launch" })).await?;
        Ok(browser)
    }

    /// One inside a laboratory, in the namespace of the calling thread: it minds no certificate of the gateway's and says
    /// nothing by itself. With the URL of an empty page, which it serves itself, with `sdk/js` at `/sdk/`.
    ///
    /// # Errors
    /// When Node.js or Chromium cannot be started.
    pub async fn inside() -> Result<(Self, String)> {
        let browser = Self::start(pages()?)?;
        browser.order(json!({ "do": "launch", "inside": true })).await?;
        let url = browser.order(json!({ "do": "serve", "sdk": programs::root().join("sdk/js/src") })).await?;
        Ok((browser, url.as_str().context("a URL")?.to_owned()))
    }

    /// No browser but Node.js itself, which knows one page and [`Browser::evaluate`] alone. `sdk` is `sdk/js` there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn node() -> Result<Self> {
        let mut command = Command::new(programs::node());
        command.arg(programs::file("browser/node.mjs")).arg(programs::root().join("sdk/js/src/index.js"));
        Self::start(command)
    }

    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting Node.js")?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let stdout = child.stdout.take().context("stdout")?;
        let (orders, mut waiting) = mpsc::channel::<Value>(16);
        let shared = Arc::<Mutex<Shared>>::default();
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(async move {
            while let Some(order) = waiting.recv().await {
                if stdin.write_all(format!("{order}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
            // Without orders it closes Chromium and ends; only then may it be dropped, which kills it.
            drop(stdin);
            let _ = within(PATIENCE, "the end of the browser", child.wait()).await;
        });
        tasks.spawn(stop.clone().run_until_cancelled_owned(read(stdout, Arc::clone(&shared))));
        Ok(Self { orders, shared, _stop: Arc::new(stop.drop_guard()) })
    }

    /// Opens a page at a URL; the name is for [`Browser::evaluate`] and messages.
    ///
    /// # Errors
    /// When it does not load.
    pub async fn open(&self, page: &str, url: &str) -> Result<()> {
        self.order(json!({ "do": "open", "page": page, "url": url })).await.map(drop)
    }

    /// The same, for a page that connects to other addresses than the gateway's own.
    ///
    /// # Errors
    /// When it does not load.
    pub async fn open_to_anywhere(&self, page: &str, url: &str) -> Result<()> {
        self.order(json!({ "do": "open", "page": page, "url": url, "connectsAnywhere": true }))
            .await
            .map(drop)
    }

    /// Evaluates JavaScript in a page: the body of an async function.
    ///
    /// # Errors
    /// When it throws.
    pub async fn evaluate(&self, page: &str, body: &str) -> Result<Value> {
        self.order(json!({ "do": "evaluate", "page": page, "body": body })).await
    }

    /// Does something else: `click`, `fill`, `text`, `wait`, `screenshot`, `problems`, with a selector and a value.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn act(&self, page: &str, act: &str, selector: &str, value: &str) -> Result<Value> {
        self.order(json!({ "do": act, "page": page, "selector": selector, "value": value })).await
    }

    /// A page of the gateway's origin that connects by one transport, and subscribes.
    ///
    /// # Errors
    /// When it cannot connect.
    pub async fn subscribe(&self, gateway: &Gateway, transport: &str, wishes: &[Wish]) -> Result<Inbox> {
        let page = format!("{transport} {}", self.locked().pages.len());
        let (sender, events) = mpsc::channel(4096);
        self.locked().pages.insert(page.clone(), sender);
        // Any document of that origin does: a page's own client would only be in the way.
        self.open(&page, &format!("{}dev.json", gateway.page())).await?;
        let wishes: Vec<_> = wishes
            .iter()
            .map(|(channel, position)| {
                let position =
                    position.as_ref().map(|(epoch, offset)| json!({ "epoch": epoch, "offset": offset }));
                json!({ "channel": channel, "position": position })
            })
            .collect();
        let used = self
            .order(json!({ "do": "subscribe", "page": page, "transport": transport, "subscribe": wishes }))
            .await?;
        anyhow::ensure!(used == transport, "{transport} was asked for, {used} is used");
        Ok(Inbox::new(format!("Chromium {transport}"), events, ()))
    }

    /// Name of the page of a subscriber that [`Browser::subscribe`] made as its `index`th.
    pub fn page(transport: &str, index: usize) -> String {
        format!("{transport} {index}")
    }

    async fn order(&self, mut order: Value) -> Result<Value> {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut shared = self.locked();
            shared.orders += 1;
            let id = shared.orders;
            shared.waiting.insert(id, sender);
            id
        };
        order["id"] = id.into();
        self.orders.send(order.clone()).await.map_err(|_| anyhow!("the browser is gone"))?;
        within(PATIENCE * 2, format!("the browser: {order}"), answer)
            .await?
            .map_err(|_| anyhow!("the browser is gone: {order}"))?
            .with_context(|| order.to_string())
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pages() -> Result<Command> {
    let mut command = Command::new(programs::node());
    command.arg(programs::file("browser/pages.mjs")).env("TIDEGATE_CHROMIUM", programs::chromium()?);
    Ok(command)
}

async fn read(stdout: ChildStdout, shared: Arc<Mutex<Shared>>) {
    let locked = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(id) = line["id"].as_u64() {
            let waiting = locked().waiting.remove(&id);
            let answer = match line["error"].as_str() {
                Some(error) => Err(anyhow!("{error}")),
                None => Ok(line["value"].clone()),
            };
            // Whoever asked may have given up.
            let _ = waiting.map(|waiting| waiting.send(answer));
        } else if let Some(page) = line["page"].as_str() {
            let sender = locked().pages.get(page).cloned();
            if let Some(sender) = sender {
                // A test that is over no longer listens.
                let _ = sender.send(Event::parse(&line)).await;
            }
        }
    }
    let mut shared = locked();
    shared.waiting.clear();
    shared.pages.clear();
}
