//! Subscribers of every kind, seen alike: what each receives comes in through one queue.

pub mod browser;
mod curl;
mod foreign;
mod native;
mod wire;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::wait::{PATIENCE, within};

pub use curl::curl;
pub use foreign::{node_ws, python_web_socket, python_web_transport};
pub use native::{Native, native};
pub use wire::wire;

/// What was published.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// A JSON value.
    Json(Value),
    /// Bytes.
    Binary(Vec<u8>),
}

impl Payload {
    /// From an object with `data` or `data_base64`.
    ///
    /// # Errors
    /// When it has neither, or bad base64.
    pub fn of(publication: &Value) -> Result<Self> {
        let fields = publication.as_object().context("a publication is an object")?;
        match (fields.get("data"), fields.get("data_base64")) {
            (Some(data), None) => Ok(Self::Json(data.clone())),
            (None, Some(text)) => {
                let text = text.as_str().context("base64 is a text")?;
                Ok(Self::Binary(BASE64_STANDARD.decode(text)?))
            }
            _ => bail!("neither data nor data_base64, or both: {publication}"),
        }
    }
}

/// What a subscriber tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A subscription begins, goes on, or, without a request, begins anew.
    Subscribed {
        /// Which one.
        channel: String,
        /// The head's epoch.
        epoch: String,
        /// The head's offset.
        offset: u64,
        /// Everything after the position that was asked with comes.
        recovered: bool,
    },
    /// A publication.
    Publication {
        /// Of which channel.
        channel: String,
        /// Its number.
        offset: u64,
        /// What it holds.
        payload: Payload,
    },
    /// An ephemeral item.
    Ephemeral {
        /// Of which channel.
        channel: String,
        /// What it holds.
        payload: Payload,
    },
    /// The session, or this connection of it, ended.
    Closed {
        /// The close code.
        code: u32,
        /// For people.
        reason: String,
    },
}

impl Event {
    /// From a line of a client that runs in another process.
    ///
    /// # Errors
    /// When it is no event, or tells of an error.
    pub fn parse(line: &Value) -> Result<Self> {
        let channel = || Ok::<_, anyhow::Error>(line["channel"].as_str().context("channel")?.to_owned());
        let offset = || line["offset"].as_u64().context("offset");
        Ok(match line["event"].as_str().unwrap_or_default() {
            "subscribed" => Self::Subscribed {
                channel: channel()?,
                epoch: line["epoch"].as_str().context("epoch")?.to_owned(),
                offset: offset()?,
                recovered: line["recovered"].as_bool().context("recovered")?,
            },
            "publication" => {
                Self::Publication { channel: channel()?, offset: offset()?, payload: Payload::of(line)? }
            }
            "ephemeral" => Self::Ephemeral { channel: channel()?, payload: Payload::of(line)? },
            "closed" => Self::Closed {
                code: u32::try_from(line["code"].as_u64().context("code")?)?,
                reason: line["reason"].as_str().unwrap_or_default().to_owned(),
            },
            _ => bail!("{line}"),
        })
    }
}

/// A channel, and the position to begin after; `None` for its head.
pub type Wish = (String, Option<(String, u64)>);

/// Channels from their heads.
pub fn from_heads<S: AsRef<str>>(channels: &[S]) -> Vec<Wish> {
    channels.iter().map(|channel| (channel.as_ref().to_owned(), None)).collect()
}

/// Something that subscribes.
pub trait Subscriber: Send {
    /// What it is, for messages.
    fn name(&self) -> &str;

    /// Where its events come in.
    fn events(&mut self) -> &mut mpsc::Receiver<Result<Event>>;
}

impl Subscriber for Box<dyn Subscriber> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn events(&mut self) -> &mut mpsc::Receiver<Result<Event>> {
        (**self).events()
    }
}

/// One that is nothing but its queue; what feeds it ends when it is dropped.
pub struct Inbox {
    name: String,
    events: mpsc::Receiver<Result<Event>>,
    _feeding: Box<dyn Send>,
}

impl Inbox {
    pub(crate) fn new(
        name: impl Into<String>,
        events: mpsc::Receiver<Result<Event>>,
        feeding: impl Send + 'static,
    ) -> Self {
        Self { name: name.into(), events, _feeding: Box::new(feeding) }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Subscriber for Inbox {
    fn name(&self) -> &str {
        &self.name
    }

    fn events(&mut self) -> &mut mpsc::Receiver<Result<Event>> {
        &mut self.events
    }
}

/// All that a subscriber has received, by channel, held to the promises as it comes.
#[derive(Debug)]
pub struct Collector<S> {
    subscriber: S,
    /// By channel, where its subscription stands.
    pub at: BTreeMap<String, (String, u64)>,
    /// By channel, its publications.
    pub received: BTreeMap<String, Vec<(u64, Payload)>>,
    /// Ephemeral items, with their channels.
    pub ephemeral: Vec<(String, Payload)>,
    /// Subscriptions that began without `recovered`, after they had once begun.
    pub rebased: Vec<String>,
}

impl<S: Subscriber> Collector<S> {
    /// Waits until every channel is subscribed. `after` are the positions that were asked with.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn begin(subscriber: S, wishes: &[Wish]) -> Result<Self> {
        let at = wishes
            .iter()
            .filter_map(|(channel, position)| Some((channel.clone(), position.clone()?)))
            .collect();
        let mut this =
            Self { subscriber, at, received: BTreeMap::new(), ephemeral: Vec::new(), rebased: Vec::new() };
        let mut missing: Vec<_> = wishes.iter().map(|(channel, _)| channel.clone()).collect();
        while !missing.is_empty() {
            if let Event::Subscribed { channel, .. } = this.next().await? {
                missing.retain(|each| *each != channel);
            }
        }
        Ok(this)
    }

    /// What it is, for messages.
    pub fn name(&self) -> &str {
        self.subscriber.name()
    }

    /// What it is made of.
    pub fn subscriber(&mut self) -> &mut S {
        &mut self.subscriber
    }

    /// Takes in the next event.
    ///
    /// # Errors
    /// When none comes, or a publication is out of order, missing or twice.
    pub async fn next(&mut self) -> Result<Event> {
        let name = self.subscriber.name().to_owned();
        let event = within(PATIENCE, format!("an event of {name}"), self.subscriber.events().recv())
            .await
            .with_context(|| format!("{name} has {}", self.summary()))?
            .with_context(|| format!("{name} is gone; it has {}", self.summary()))?
            .context(name.clone())?;
        match &event {
            Event::Subscribed { channel, epoch, offset, recovered } => {
                let known = self.at.get(channel).cloned();
                match known {
                    Some((before, _)) if *recovered => {
                        ensure!(
                            before == *epoch || before.is_empty(),
                            "{name}: {channel} recovered from epoch {before:?} to {epoch}"
                        );
                        if let Some(at) = self.at.get_mut(channel) {
                            at.0.clone_from(epoch);
                        }
                    }
                    known => {
                        if known.is_some() {
                            self.rebased.push(channel.clone());
                        }
                        self.at.insert(channel.clone(), (epoch.clone(), *offset));
                    }
                }
            }
            Event::Publication { channel, offset, payload } => {
                let at = self
                    .at
                    .get_mut(channel)
                    .with_context(|| format!("{name}: {channel} is not subscribed"))?;
                ensure!(
                    *offset == at.1 + 1,
                    "{name}: {channel} has offset {offset} after {}, which is {}",
                    at.1,
                    if *offset <= at.1 { "a duplicate" } else { "a gap" }
                );
                at.1 = *offset;
                self.received.entry(channel.clone()).or_default().push((*offset, payload.clone()));
            }
            Event::Ephemeral { channel, payload } => self.ephemeral.push((channel.clone(), payload.clone())),
            Event::Closed { .. } => {}
        }
        Ok(event)
    }

    /// Reads until so many publications are there, in all.
    ///
    /// # Errors
    /// When they do not come, or more do.
    pub async fn collect(&mut self, count: usize) -> Result<()> {
        while self.count() < count {
            if let Event::Closed { code, reason } = self.next().await? {
                bail!("{}: closed with {code}: {reason}; it has {}", self.name(), self.summary());
            }
        }
        ensure!(self.count() == count, "{}: more than {count}: {}", self.name(), self.summary());
        Ok(())
    }

    /// Reads until an event that answers `wanted`.
    ///
    /// # Errors
    /// When none comes.
    pub async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        loop {
            let event = self.next().await?;
            if wanted(&event) {
                return Ok(event);
            }
        }
    }

    /// Reads until the session is closed; the code.
    ///
    /// # Errors
    /// When it is not.
    pub async fn closed(&mut self) -> Result<u32> {
        match self.until(|event| matches!(event, Event::Closed { .. })).await? {
            Event::Closed { code, .. } => Ok(code),
            _ => unreachable!("that is what was waited for"),
        }
    }

    /// How many publications came.
    pub fn count(&self) -> usize {
        self.received.values().map(Vec::len).sum()
    }

    fn summary(&self) -> String {
        let counts: Vec<_> =
            self.received.iter().map(|(channel, items)| format!("{channel} {}", items.len())).collect();
        format!("{} publications ({})", self.count(), counts.join(", "))
    }
}
