//! The cluster that a crowd meets, and how it gets there.

use anyhow::{Context as _, Result, ensure};
use tidegate_client::{Client, Position};

use super::{Books, Crowd, Judged, Order, Pages, SECRET, Transport, certificate_hash, channel_name};
use crate::checker::Bounds;
use crate::cluster::{Cluster, ClusterSpec, HOME};
use crate::gateway::Gateway;
use crate::wait::until;

/// One core, which keeps its log in memory, and some edges.
#[derive(Debug)]
pub(in crate::bench) struct Stage {
    pub(in crate::bench) edges: Vec<Gateway>,
    _cluster: Cluster,
}

impl Stage {
    /// Starts it. `settings` are `KEY=VALUE` of all nodes, as TOML.
    pub(in crate::bench) async fn start(edges: usize, workers: u16, settings: &[String]) -> Result<Self> {
        let spec = ClusterSpec {
            nats: 0,
            engine: "memory",
            cores: 1,
            partitions: 4,
            edges: vec![HOME; edges],
            config: config(workers, settings)?,
            ..ClusterSpec::default()
        };
        let mut cluster = Cluster::start(spec).await?;
        for edge in &cluster.edges {
            until("every edge knows of all", || async {
                let status = edge.status_json().await?;
                ensure!(status["edges"].as_array().map(Vec::len) == Some(edges), "{status}");
                Ok(())
            })
            .await?;
        }
        Ok(Self { edges: std::mem::take(&mut cluster.edges), _cluster: cluster })
    }
}

/// Who is to come.
#[derive(Debug)]
pub(in crate::bench) struct Guests<'a> {
    pub(in crate::bench) to: &'a Gateway,
    /// Clients of `sdk/rust`; of one transport more than once where there are so many.
    pub(in crate::bench) clients: Vec<(Transport, u32)>,
    /// Of `sdk/js`.
    pub(in crate::bench) pages: u32,
    pub(in crate::bench) channels: u32,
    /// Channels that each is on.
    pub(in crate::bench) follows: u32,
    /// Connects a second, over all.
    pub(in crate::bench) per_second: u32,
    /// Where on each channel somebody watches who comes and goes.
    pub(in crate::bench) watched_at: Option<&'a Gateway>,
}

impl Guests<'_> {
    /// Everybody, subscribed; and how many there are, without those that watch.
    pub(in crate::bench) async fn come(&self, books: &Books) -> Result<(Crowd, Option<Pages>, u32)> {
        let mut order = Order {
            group: String::new(),
            url: String::new(),
            certificate_hash: certificate_hash(self.to).await?,
            first: 0,
            clients: 0,
            channels: self.channels,
            follows: self.follows.min(self.channels),
            per_second: (self.per_second / u32::try_from(self.clients.len().max(1))?).max(1),
            watches: false,
        };
        let mut crowd = Crowd::new(books.clone());
        for (transport, clients) in &self.clients {
            (order.group, order.url, order.clients) =
                (transport.to_string(), transport.url(self.to), *clients);
            crowd.join(&order).await?;
            order.first += order.clients;
        }
        (order.group, order.clients) = ("Chromium".to_owned(), self.pages);
        let pages = if self.pages > 0 { Some(Pages::open(books, &order, self.to).await?) } else { None };
        order.first += order.clients;
        let count = order.first;
        books.until_begun(told("subscriptions")).await?;
        if let Some(edge) = self.watched_at {
            // Last: what they are told of those who come before is of no interest.
            (order.group, order.url) = ("watchers".to_owned(), Transport::WebSocket.url(edge));
            (order.clients, order.follows, order.watches) = (self.channels, 1, true);
            crowd.join(&order).await?;
            books.until_begun(|_, _| ()).await?;
        }
        Ok((crowd, pages, count))
    }
}

/// Waits until all have everything, reads history at `edge`, and judges. `heads` are the channels' last positions.
pub(in crate::bench) async fn judge(books: &Books, edge: &Gateway, heads: &[Position]) -> Result<Judged> {
    let late = books.until_at(heads).await.err().map(|error| format!("{error:#}"));
    let client = Client::builder(edge.url("wss"))
        .with_certificate_hash(certificate_hash(edge).await?)
        .connect()
        .await?;
    for channel in 0..heads.len() {
        books.recorder().read(&client, &channel_name(u32::try_from(channel)?)).await?;
    }
    client.close().await;
    let report = books.recorder().report(&Bounds { kept: KEPT, keys_outlive_epochs: true });
    let mut judged = Judged::of(&report);
    judged.cases.extend(late.into_iter().chain(books.failures()));
    Ok(judged)
}

/// What the nodes read.
fn config(workers: u16, settings: &[String]) -> Result<String> {
    let mut text = format!(
        "node.workers = {workers}\nauth.keys = [{{ algorithm = \"HS256\", secret = \"{SECRET}\" }}]\n\
         core.presence_users = 2000\ncore.presence_entries = 200000\n\
         namespaces.default.presence = \"anyone\"\nnamespaces.default.history_count = {KEPT}\n\
         namespaces.default.history_age = \"{KEPT_FOR}\"\nnamespaces.default.history_bytes = \"64MiB\"\n"
    );
    for setting in settings {
        let (key, value) = setting.split_once('=').with_context(|| format!("`{setting}` is no KEY=VALUE"))?;
        text.push_str(&format!("{key} = {value}\n"));
    }
    Ok(text)
}

/// Tells how many there are, now and then.
fn told(what: &'static str) -> impl Fn(usize, usize) {
    let last = std::cell::Cell::new(usize::MAX);
    move |there, all| {
        let tenth = there * 10 / all.max(1);
        if last.replace(tenth) != tenth {
            eprintln!("{there} of {all} {what}");
        }
    }
}

/// Publications of each channel that history keeps, and for how long: longer than anything runs.
const KEPT: u64 = 100_000;
const KEPT_FOR: &str = "12h";
