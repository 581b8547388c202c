//! The JavaScript client under attack: in a page, or in Node.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};
use tidegate_client::Transport;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::gateway::Gateway;

use super::account::Account;
use super::attack::Middle;
use super::load::Stored;
use super::{CHANNELS, FIRST_OWN, PAUSE, PUBLISHERS, Subject, channel};

/// `browser/kills.js`, running.
pub(super) struct Script {
    browser: Browser,
}

impl Script {
    pub(super) async fn begin(
        browser: Browser,
        gateway: &Gateway,
        middle: &Middle,
        transports: &[Transport],
    ) -> Result<Self> {
        let mut urls = Map::new();
        for transport in transports {
            let address = middle.address(*transport);
            let url = match transport {
                Transport::WebSocket => format!("ws://{address}/v1/connect"),
                Transport::LongPoll => format!("http://{address}/v1/poll"),
                _ => format!("https://{address}/v1/connect"),
            };
            urls.insert(name(*transport).to_owned(), url.into());
        }
        let settings = json!({
            "urls": urls,
            "transports": transports.iter().map(|transport| name(*transport)).collect::<Vec<_>>(),
            "hashes": [gateway.facts().await?["certificate_hash"]],
            "channels": (0..CHANNELS).map(channel).collect::<Vec<_>>(),
            "publishers": PUBLISHERS,
            "pauseMs": PAUSE.as_millis() as u64,
            "first": FIRST_OWN,
        });
        let this = Self { browser };
        this.evaluate(&format!("const settings = {settings};\n{SCRIPT}")).await?;
        Ok(this)
    }

    async fn evaluate(&self, body: &str) -> Result<Value> {
        self.browser.evaluate("kills", body).await
    }
}

impl Subject for Script {
    async fn deliver(&mut self, more: u64) -> Result<Option<Transport>> {
        let state = self.evaluate(&format!("return kills.more({more});")).await?;
        ensure!(state["isThere"] == true, "{more} publications did not come: {state}");
        let transports = [Transport::Quic, Transport::WebSocket, Transport::LongPoll];
        Ok(transports.into_iter().find(|transport| state["transport"] == name(*transport)))
    }

    async fn begin_move(&mut self, to: Transport) -> Result<()> {
        self.evaluate(&format!("kills.move('{}');", name(to))).await.map(drop)
    }

    async fn stop(&mut self) -> Result<()> {
        self.evaluate("return kills.stop();").await.map(drop)
    }

    async fn finish(self, heads: &[u64]) -> Result<Account> {
        let heads: Map<String, Value> =
            heads.iter().enumerate().map(|(number, head)| (channel(number), json!(head))).collect();
        let mut seen = self.evaluate(&format!("return kills.finish({});", Value::Object(heads))).await?;
        let mut account = Account::default();
        let number = |value: &Value| value.as_u64().context("a number");
        for index in 0..CHANNELS {
            let list = seen["received"][channel(index)].take();
            let list = list.as_array().context("a channel's publications")?;
            let pairs = list.iter().map(|pair| Ok((number(&pair[0])?, number(&pair[1])?)));
            account.received.push(pairs.collect::<Result<_>>()?);
        }
        let acknowledged = seen["acknowledged"].take();
        for each in acknowledged.as_array().context("what was acknowledged")? {
            let index = (0..CHANNELS).find(|index| each[0] == channel(*index)).context("a channel")?;
            let (n, offset) = (number(&each[1])?, number(&each[2])?);
            account.acknowledged.push(Stored { channel: index, n, offset });
        }
        let problems = seen["problems"].as_array().context("problems")?;
        account.problems = problems.iter().map(Value::to_string).collect();
        if let Some(seen) = seen.as_object_mut() {
            seen.remove("received");
            seen.remove("acknowledged");
        }
        account.summary = format!("{} acknowledged; {seen}", account.acknowledged.len());
        Ok(account)
    }
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::WebSocket => "websocket",
        Transport::LongPoll => "longpoll",
        _ => "webtransport",
    }
}

const SCRIPT: &str = include_str!("../../../browser/kills.js");
