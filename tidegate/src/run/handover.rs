//! One process takes over from another on the same machine: listeners, keys, and word of when the other has ended.
//!
//! ```text
//! new process                                   old process
//!   take_over ──────────────────────────────────►
//!   ◄──────────────────────── sockets (descriptors), .., offer
//!   opens, warms up                               serves
//!   steers new connections to itself
//!   taken ──────────────────────────────────────►
//!   ◄───────────────────────────────────── leaving
//!   serves                                        its own connections leave
//!   ◄───────────────────────── end of the channel: it has ended
//! ```
//!
//! Whoever ends before `taken` has changed nothing: the old process steers everything back to itself. Whoever ends after
//! it leaves descriptors that the other holds too, so that no socket is closed.

mod channel;

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tidegate_edge::Handover;
use tidegate_edge::resume::KEY_BYTES;
use tidegate_transport::quic::{IdKey, SocketGroup, Steering, WorkerSet};
use tokio::time::timeout;
use tracing::{info, warn};

use self::channel::{Channel, MAX_DESCRIPTORS};

pub(super) use self::channel::Door;

/// What a process leaves to the next.
#[derive(Default)]
pub(super) struct Estate {
    /// What clients connect to.
    pub(super) listeners: Handover,
    /// Of the backend API.
    pub(super) api: Option<TcpListener>,
    /// From which keys are made where no files name any.
    pub(super) secret: Option<[u8; KEY_BYTES]>,
    /// Processes that have handed over, but not ended.
    pub(super) before: Vec<Before>,
}

/// A process before: it has connections still.
pub(super) struct Before {
    /// Of its connection ids, at each listener.
    pub(super) quic: Option<u8>,
    pub(super) http3: Option<u8>,
    end: OwnedFd,
}

impl Before {
    pub(super) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { end: self.end.try_clone()?, ..*self })
    }

    /// Waits until it has ended.
    pub(super) async fn ended(self) {
        match Channel::of(self.end) {
            Ok(channel) => channel.ended().await,
            Err(error) => warn!(%error, "a process that was there before cannot be watched"),
        }
    }
}

/// The process that serves, from the side of the one that takes over.
pub(super) struct Predecessor {
    channel: Channel,
}

impl Predecessor {
    /// Asks whoever is there for what it has; `None` where nobody is, or was gone before it had answered.
    pub(super) async fn ask(path: &Path) -> anyhow::Result<Option<(Self, Estate)>> {
        let name = || format!("cannot take over by {}", path.display());
        let Some(channel) = Channel::connect(path).with_context(name)? else { return Ok(None) };
        match timeout(ANSWER, Self::asked(channel)).await {
            Ok(asked) => asked.with_context(name),
            Err(_) => bail!("{}: no answer within {ANSWER:?}", name()),
        }
    }

    async fn asked(channel: Channel) -> anyhow::Result<Option<(Self, Estate)>> {
        channel.send(&json!({ "take_over": VERSION, "pid": std::process::id() }), &[]).await?;
        let mut found = Found::default();
        loop {
            // Nothing has happened yet: without it, this process starts as any other.
            let Some(record) = channel.receive().await? else { return Ok(None) };
            if let Some(why) = record.text["refused"].as_str() {
                bail!("the process that serves says: {why}");
            }
            let offer = &record.text["offer"];
            if offer.is_object() {
                let mut estate = found.estate(offer)?;
                let serving = |group: &Option<SocketGroup>| {
                    group.as_ref().map(|group| group.steering().serving().generation)
                };
                let Handover { quic, http3, .. } = &estate.listeners;
                let end = channel.try_clone()?;
                let before = Before { quic: serving(quic), http3: serving(http3), end };
                estate.before.push(before);
                info!(pid = offer["pid"].as_u64(), "taking over");
                return Ok(Some((Self { channel }, estate)));
            }
            found.add(&record.text, record.descriptors)?;
        }
    }

    /// It may leave: new connections come here. Returns once it has begun to, or is gone.
    pub(super) async fn take(&self) -> anyhow::Result<()> {
        self.channel.send(&json!({ "taken": true }), &[]).await?;
        timeout(ANSWER, self.channel.receive()).await.context("it does not leave")??;
        Ok(())
    }

    /// Waits until it has ended.
    pub(super) async fn ended(self) {
        self.channel.ended().await;
    }
}

/// The process that takes over, from the side of the one that leaves. To be held until the end: then it sees the end.
pub(super) struct Successor {
    _channel: Channel,
}

/// Waits for a process that takes over, and hands over what `estate` says then. Where that fails, `undo` is called, and
/// the next one may try.
pub(super) async fn hand_over(
    door: &Door,
    estate: impl Fn() -> anyhow::Result<Estate>,
    undo: impl Fn(),
) -> Successor {
    loop {
        let handed = async {
            let channel = door.accept().await?;
            let offered = timeout(WARM_UP, offer(&channel, &estate)).await.context("it took too long");
            if let Err(error) = offered.and_then(|offered| offered) {
                undo();
                return Err(error);
            }
            Ok(Successor { _channel: channel })
        };
        match handed.await {
            Ok(successor) => return successor,
            Err(error) => warn!(error = %format!("{error:#}"), "nobody took over: this process goes on"),
        }
        // Out of descriptors, perhaps: asking again at once would spin.
        tokio::time::sleep(PAUSE).await;
    }
}

async fn offer(channel: &Channel, estate: impl Fn() -> anyhow::Result<Estate>) -> anyhow::Result<()> {
    let request = channel.receive().await?.context("it said nothing")?.text;
    if request["take_over"] != VERSION {
        let why = json!({ "refused": format!("it speaks version {VERSION} of the hand-over alone") });
        channel.send(&why, &[]).await?;
        bail!("it asks by another version: {request}");
    }
    info!(pid = request["pid"].as_u64(), "a process prepares to take over");
    let estate = estate()?;
    let Handover { quic, http3, tls, plain } = &estate.listeners;
    let udp = |group: &Option<SocketGroup>| describe(group.as_ref());
    let named: [(&str, Vec<BorrowedFd<'_>>); 6] = [
        (QUIC, quic.iter().flat_map(SocketGroup::members).map(AsFd::as_fd).collect()),
        (HTTP3, http3.iter().flat_map(SocketGroup::members).map(AsFd::as_fd).collect()),
        (TLS, tls.iter().map(AsFd::as_fd).collect()),
        (PLAIN, plain.iter().map(AsFd::as_fd).collect()),
        (API, estate.api.iter().map(AsFd::as_fd).collect()),
        (BEFORE, estate.before.iter().map(|before| before.end.as_fd()).collect()),
    ];
    for (name, descriptors) in &named {
        for chunk in descriptors.chunks(MAX_DESCRIPTORS) {
            channel.send(&json!({ "sockets": name }), chunk).await?;
        }
    }
    let before: Vec<Value> =
        estate.before.iter().map(|before| json!({ "quic": before.quic, "http3": before.http3 })).collect();
    let offer = json!({
        "pid": std::process::id(),
        "quic": udp(quic),
        "http3": udp(http3),
        "before": before,
        "secret": estate.secret,
    });
    channel.send(&json!({ "offer": offer }), &[]).await?;
    let taken = channel.receive().await?.context("it is gone")?;
    ensure!(taken.text["taken"] == true, "it says {}", taken.text);
    // It may be gone by now: then it is not this process that serves what comes next, but a third one.
    let _ = channel.send(&json!({ "leaving": true }), &[]).await;
    Ok(())
}

/// Descriptors as they come, by what they are.
#[derive(Default)]
struct Found {
    quic: Vec<OwnedFd>,
    http3: Vec<OwnedFd>,
    tls: Vec<OwnedFd>,
    plain: Vec<OwnedFd>,
    api: Vec<OwnedFd>,
    before: Vec<OwnedFd>,
}

impl Found {
    fn add(&mut self, record: &Value, descriptors: Vec<OwnedFd>) -> anyhow::Result<()> {
        let list = match record["sockets"].as_str() {
            Some(QUIC) => &mut self.quic,
            Some(HTTP3) => &mut self.http3,
            Some(TLS) => &mut self.tls,
            Some(PLAIN) => &mut self.plain,
            Some(API) => &mut self.api,
            Some(BEFORE) => &mut self.before,
            _ => bail!("a record that nobody knows: {record}"),
        };
        list.extend(descriptors);
        ensure!(list.len() <= MAX_SOCKETS, "more than {MAX_SOCKETS} sockets");
        Ok(())
    }

    fn estate(self, offer: &Value) -> anyhow::Result<Estate> {
        let tcp = |found: Vec<OwnedFd>| found.into_iter().map(TcpListener::from).collect();
        let listeners = Handover {
            quic: group(self.quic, &offer[QUIC])?,
            http3: group(self.http3, &offer[HTTP3])?,
            tls: tcp(self.tls),
            plain: tcp(self.plain),
        };
        let described = offer[BEFORE].as_array().context("no `before`")?;
        ensure!(described.len() == self.before.len(), "not a descriptor for each process before");
        let before = self.before.into_iter().zip(described).map(|(end, described)| Before {
            quic: byte(&described["quic"]),
            http3: byte(&described["http3"]),
            end,
        });
        let secret = match offer["secret"].as_array() {
            Some(bytes) => {
                let bytes: Option<Vec<u8>> = bytes.iter().map(byte).collect();
                Some(bytes.and_then(|bytes| bytes.try_into().ok()).context("a secret that is none")?)
            }
            None => None,
        };
        let api = self.api.into_iter().next().map(TcpListener::from);
        Ok(Estate { listeners, api, secret, before: before.collect() })
    }
}

fn describe(group: Option<&SocketGroup>) -> Value {
    let Some(group) = group else { return Value::Null };
    let steering = group.steering();
    let sets = steering.sets().iter();
    let sets: Vec<_> = sets.map(|set| json!([set.generation, set.first, set.workers])).collect();
    json!({ "key": steering.key().0, "sets": sets })
}

fn group(found: Vec<OwnedFd>, described: &Value) -> anyhow::Result<Option<SocketGroup>> {
    if described.is_null() {
        return Ok(None);
    }
    let key = described["key"].as_u64().and_then(|key| u32::try_from(key).ok()).context("no key")?;
    let set = |set: &Value| {
        let first = u16::try_from(set[1].as_u64()?).ok()?;
        Some(WorkerSet { generation: byte(&set[0])?, first, workers: byte(&set[2])? })
    };
    let sets = described["sets"].as_array().context("no sets")?;
    let sets = sets.iter().map(set).collect::<Option<_>>().context("a set that is none")?;
    let members = found.into_iter().map(UdpSocket::from).collect();
    Ok(Some(SocketGroup::of(members, Steering::of(IdKey(key), sets)?)?))
}

fn byte(value: &Value) -> Option<u8> {
    value.as_u64().and_then(|value| u8::try_from(value).ok())
}

/// Of what is said here. Processes of different versions of the program meet: fields may be added, not changed.
const VERSION: u64 = 1;
const QUIC: &str = "quic";
const HTTP3: &str = "http3";
const TLS: &str = "tls";
const PLAIN: &str = "plain";
const API: &str = "api";
const BEFORE: &str = "before";
/// Of one kind.
const MAX_SOCKETS: usize = 1024;
/// For an answer of the other process.
const ANSWER: Duration = Duration::from_secs(10);
/// For a process that takes over to be ready.
const WARM_UP: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
