//! Clients of `sdk/js`, each in a page of Chromium with a context of its own: browsers give all pages of one only a few
//! connections by HTTP.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Books;
use super::line::Said;
use super::order::{Order, channel_name, token};
use crate::clients::browser::Browser;
use crate::gateway::Gateway;

/// Pages, with the browser. They are gone when it is dropped.
#[derive(Debug)]
pub(in crate::bench) struct Pages {
    stop: CancellationToken,
    listening: JoinSet<Result<()>>,
}

impl Pages {
    /// Opens them; they come by WebTransport, WebSocket and long poll in turn.
    pub(in crate::bench) async fn open(books: &Books, order: &Order, edge: &Gateway) -> Result<Self> {
        let (browser, page) = Browser::inside().await?;
        books.expect(order);
        let mut names = Vec::new();
        for number in order.first..order.first + order.clients {
            let name = format!("client {number}");
            browser.open_to_anywhere(&name, &page).await?;
            let transport = TRANSPORTS[(number - order.first) as usize % TRANSPORTS.len()];
            let channels: Vec<String> =
                (0..order.follows).map(|place| channel_name(order.channel(number, place))).collect();
            let settings = json!({
                "url": format!("https://{}", edge.addresses.tls), "transport": transport, "client": number,
                "hash": order.certificate_hash, "token": token(number)?, "channels": channels,
            });
            let used = browser.evaluate(&name, &format!("const order = {settings};\n{SCRIPT}")).await?;
            ensure!(used == *transport, "{transport} was asked for, {used} is used");
            names.push(name);
        }
        let stop = CancellationToken::new();
        let listening = JoinSet::from_iter([listen(browser, names, books.clone(), stop.clone())]);
        Ok(Self { stop, listening })
    }

    /// Says so where the browser has failed.
    pub(in crate::bench) fn check(&mut self) -> Result<()> {
        let Some(ended) = self.listening.try_join_next() else { return Ok(()) };
        ended??;
        anyhow::bail!("the browser ended")
    }

    /// Closes them.
    pub(in crate::bench) async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.listening.join_next().await {
            ended??;
        }
        Ok(())
    }
}

async fn listen(browser: Browser, names: Vec<String>, books: Books, stop: CancellationToken) -> Result<()> {
    let mut ticks = interval(BETWEEN_LOOKS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        for name in &names {
            let lines = browser.evaluate(name, "return crowd.take();").await?;
            for line in lines.as_str().context("lines")?.lines() {
                books.hear(&Said::parse(line).with_context(|| format!("what is `{line}`?"))?);
            }
        }
    }
    Ok(())
}

const TRANSPORTS: [&str; 3] = ["webtransport", "websocket", "longpoll"];
/// `browser/crowd.js`.
const SCRIPT: &str = include_str!("../../../browser/crowd.js");
/// Between two looks at what a page has said.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
