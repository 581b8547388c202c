//! What the app holds: the client, its subscriptions, its events.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_fallback::ladder::LadderMemory;
use tidegate_protocol::frame::{self, Payload};
use tidegate_protocol::{ChannelName, Position};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::builder::Builder;
use crate::{ClientError, Transport};

/// A client's session: connected, or on its way back. Clones share it; it ends when the last of them and the last
/// [`Subscription`] is dropped, or by [`Client::close`].
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) state: watch::Receiver<State>,
    pub(crate) session: watch::Receiver<Option<String>>,
    pub(crate) events: Arc<Mutex<Option<Events>>>,
    pub(crate) tracker: TaskTracker,
}

impl Client {
    /// A client of the server at `url`: `quic://host:4433`, `webtransport://host:4433`, `wss://host:4433` or `ws://host:8080`
    /// (WebSocket),
    /// `https://host:4433` or `http://host:8080` (long poll).
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url.into())
    }

    /// Joins a channel from its head. What the subscription brings follows in order, across reconnects.
    ///
    /// # Errors
    /// When the name is no channel name, the channel is subscribed already, or the session is over. That the server
    /// refuses comes as [`SubscriptionEvent::Unsubscribed`].
    pub async fn subscribe(&self, channel: &str) -> Result<Subscription, ClientError> {
        self.subscribe_with(channel, SubscribeOptions::default()).await
    }

    /// Joins a channel after `position`: everything after it comes, or [`SubscriptionEvent::Rebased`] says that it cannot.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub async fn subscribe_from(
        &self,
        channel: &str,
        position: Position,
    ) -> Result<Subscription, ClientError> {
        self.subscribe_with(
            channel,
            SubscribeOptions { position: Some(position), ..SubscribeOptions::default() },
        )
        .await
    }

    /// Joins a channel as the options say.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub async fn subscribe_with(
        &self,
        channel: &str,
        options: SubscribeOptions,
    ) -> Result<Subscription, ClientError> {
        let channel = name(channel)?;
        let events =
            self.ask(|reply| Command::Subscribe { channel: channel.clone(), options, reply }).await?;
        Ok(Subscription { channel, events, commands: self.commands.clone() })
    }

    /// Publishes, and waits until it is kept; also across a reconnect, where it is stored once.
    ///
    /// # Errors
    /// When the server refuses, the payload is malformed or too large, or no answer came in time to ask again.
    pub async fn publish(&self, channel: &str, payload: Payload) -> Result<Position, ClientError> {
        self.publish_inner(channel, payload, None).await
    }

    /// Publishes with the app's own idempotency key (1 to 128 bytes): the same key on the same channel is stored once.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn publish_with_key(
        &self,
        channel: &str,
        payload: Payload,
        key: impl Into<String>,
    ) -> Result<Position, ClientError> {
        self.publish_inner(channel, payload, Some(key.into())).await
    }

    /// Publishes at most once: never stored, dropped without a connection. By datagram over QUIC.
    ///
    /// # Errors
    /// When the payload is malformed or too large, or the session is over.
    pub async fn publish_ephemeral(&self, channel: &str, payload: Payload) -> Result<(), ClientError> {
        let channel = name(channel)?;
        self.ask(|reply| Command::PublishEphemeral { channel, payload, reply }).await
    }

    /// What is retained of a channel after `since`: the newest `limit`, or as many as fit in a reply for 0.
    ///
    /// # Errors
    /// When the server refuses or the session is over.
    pub async fn history(
        &self,
        channel: &str,
        since: Option<Position>,
        limit: u32,
    ) -> Result<History, ClientError> {
        let channel = name(channel)?;
        self.ask(|reply| Command::History { channel, since, limit, reply }).await
    }

    /// Who is on a channel now, by user.
    ///
    /// # Errors
    /// When the server refuses (the token does not grant it, or the channel's namespace keeps no presence) or the session
    /// is over.
    pub async fn presence(&self, channel: &str) -> Result<Presence, ClientError> {
        let channel = name(channel)?;
        self.ask(|reply| Command::Presence { channel, reply }).await
    }

    /// Replaces the token, of the same user.
    ///
    /// # Errors
    /// When the server refuses it; the old one stays in force.
    pub async fn refresh(&self, token: impl Into<String>) -> Result<(), ClientError> {
        let token = token.into();
        self.ask(|reply| Command::Refresh { token, reply }).await
    }

    /// How the client is connected now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// By what the client is connected now.
    pub fn transport(&self) -> Option<Transport> {
        match &*self.state.borrow() {
            State::Connected { transport } => Some(*transport),
            _ => None,
        }
    }

    /// The session's id: stays the same while the session is resumed. A secret where the session began on long poll.
    pub fn session(&self) -> Option<String> {
        self.session.borrow().clone()
    }

    /// Says that the network may have changed: Wi-Fi instead of the mobile network, another address. A QUIC connection
    /// goes on from a new socket and shows the server the way; on another transport the connection is asked for a sign of
    /// life, and replaced where none comes. Where the client waits to reconnect, it does so at once.
    pub async fn network_changed(&self) {
        drop(self.commands.send(Command::NetworkChanged { key: None }).await);
    }

    /// The same, with the new network's key ([`Builder::with_network_key`]).
    pub async fn network_changed_to(&self, key: impl Into<String>) {
        drop(self.commands.send(Command::NetworkChanged { key: Some(key.into()) }).await);
    }

    /// Moves the session to another transport without a break: the new connection is made beside the present one, which is
    /// left when the new one brings everything. Later the ladder may climb from there.
    ///
    /// # Errors
    /// When the transport is not among the client's, it does not open, or there is no connection to move from.
    pub async fn move_to(&self, transport: Transport) -> Result<(), ClientError> {
        self.ask(|reply| Command::MoveTo { transport, reply }).await
    }

    /// What the client learned of networks, for [`Builder::with_ladder_memory`] in the app's next run.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn ladder_memory(&self) -> Result<LadderMemory, ClientError> {
        self.ask(|reply| Command::Memory { reply }).await
    }

    /// Waits until [`Client::state`] is another.
    pub async fn state_changed(&mut self) -> State {
        // Its sender lives as long as the driver; after that nothing changes.
        if self.state.changed().await.is_err() {
            return State::Closed { code: 0, reason: "the client is closed".to_owned() };
        }
        self.state.borrow_and_update().clone()
    }

    /// What happens to the client as a whole, for the first who asks. At most 64 events wait; then the newest are lost.
    pub fn take_events(&self) -> Option<Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends the session in order and waits for it. What waits for an answer fails.
    pub async fn close(self) {
        let Self { commands, tracker, .. } = self;
        // A driver that is gone has closed.
        drop(commands.send(Command::Close).await);
        drop(commands);
        tracker.wait().await;
    }

    async fn publish_inner(
        &self,
        channel: &str,
        payload: Payload,
        key: Option<String>,
    ) -> Result<Position, ClientError> {
        let channel = name(channel)?;
        self.ask(|reply| Command::Publish { channel, payload, key, reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ClientError> {
        ask(&self.commands, command).await
    }
}

/// How a client is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// No connection yet, or none at the moment; the client takes care of it.
    Connecting,
    /// Everything works.
    Connected {
        /// By what.
        transport: Transport,
    },
    /// The session is over.
    Closed {
        /// The close code.
        code: u32,
        /// For people.
        reason: String,
    },
}

/// What happens to a client as a whole.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientEvent {
    /// A connection was made.
    Connected {
        /// By what.
        transport: Transport,
        /// The session of before goes on; else it is a new one.
        resumed: bool,
        /// It was resumed in the first flight, by 0-RTT.
        early: bool,
        /// The token's subject.
        user: Option<String>,
        /// Name of the edge.
        node: String,
        /// Its region.
        region: String,
    },
    /// The session moved to another connection, without a break.
    Moved {
        /// By what it goes on.
        transport: Transport,
    },
    /// The server wants to be left, or is not heard any more: a connection elsewhere is looked for beside the present one. `Moved` follows.
    Leaving {
        /// Where to, as host and port; `None` for wherever the app's URLs lead.
        endpoint: Option<String>,
    },
    /// The server wants the session to go to a place that neither the app nor the server's own `connected` named: nothing
    /// is done.
    GoawayIgnored {
        /// As it came.
        endpoint: String,
    },
    /// Nothing comes over the connection although something should: another is looked for beside it.
    Suspect {
        /// The connection's.
        transport: Transport,
    },
    /// The connection ended.
    Disconnected {
        /// The close code.
        code: u32,
        /// For people.
        reason: String,
    },
    /// The next attempt to connect comes after a delay.
    Reconnecting {
        /// From now.
        delay: Duration,
    },
    /// The server began a subscription by itself. Dropped unread, its channel can still be had by
    /// [`Client::subscribe`].
    Subscribed(Subscription),
    /// Something that nobody waits for was refused: an ephemeral publish, a token of the provider.
    Refused {
        /// Follows HTTP where HTTP has the notion.
        code: u32,
        /// For people.
        message: String,
    },
    /// The session is over.
    Closed {
        /// The close code.
        code: u32,
        /// For people.
        reason: String,
    },
}

/// A client's events, in order.
#[derive(Debug)]
pub struct Events {
    pub(crate) events: mpsc::Receiver<ClientEvent>,
}

impl Events {
    /// The next event; `None` after the session's end. Cancel-safe.
    pub async fn next(&mut self) -> Option<ClientEvent> {
        self.events.recv().await
    }

    /// The same, to be polled.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<ClientEvent>> {
        self.events.poll_recv(cx)
    }
}

/// How a channel is joined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Everything after it comes, or [`SubscriptionEvent::Rebased`] says that it cannot; without it the channel is joined
    /// from its head.
    pub position: Option<Position>,
    /// Where much waits to be sent to this client, channels of a higher rank go first.
    pub rank: i8,
    /// To be told who comes and goes: [`SubscriptionEvent::Join`] and [`SubscriptionEvent::Leave`]. Refused where the token
    /// does not grant it.
    pub presence: bool,
}

/// One channel, joined. Dropping it leaves the channel.
///
/// Events wait in a bounded queue ([`Builder::with_subscription_queue`]); at the bound the client stops reading from the
/// network, so a subscription that is kept must be read. One that is not read for long costs the connection; when it is
/// read again, the client recovers what was missed.
#[derive(Debug)]
pub struct Subscription {
    pub(crate) channel: ChannelName,
    pub(crate) events: mpsc::Receiver<SubscriptionEvent>,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Subscription {
    /// The channel's name.
    pub fn channel(&self) -> &str {
        self.channel.as_str()
    }

    /// Who is on the channel now, by user.
    ///
    /// # Errors
    /// As [`Client::presence`].
    pub async fn presence(&self) -> Result<Presence, ClientError> {
        let channel = self.channel.clone();
        ask(&self.commands, |reply| Command::Presence { channel, reply }).await
    }

    /// The next event; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<SubscriptionEvent> {
        self.events.recv().await
    }

    /// The same, to be polled.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<SubscriptionEvent>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.events.close();
        // Where the queue is full, the driver notices with the next one that says so, or with the channel's next event.
        drop(self.commands.try_send(Command::Leave));
    }
}

/// What a subscription brings.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SubscriptionEvent {
    /// It begins, or goes on after a reconnect without a gap.
    Subscribed {
        /// The head of the channel.
        position: Position,
        /// What was missed since the last position follows.
        recovered: bool,
    },
    /// The next publication: in order, without gap or duplicate since the last `Subscribed` or `Rebased`.
    Publication(Publication),
    /// At-most-once data.
    Ephemeral(Ephemeral),
    /// A user who was not on the channel is now, perhaps this client's own. At most once, for who asked by
    /// [`SubscribeOptions::presence`].
    Join {
        /// Who.
        user: String,
        /// When the server heard of it, milliseconds of Unix time.
        time_ms: u64,
    },
    /// A user's last session left the channel. At most once.
    Leave {
        /// Who.
        user: String,
        /// When the server heard of it, milliseconds of Unix time.
        time_ms: u64,
    },
    /// Some joins and leaves were not told: a list that the app keeps may be wrong. [`Subscription::presence`] is the truth.
    PresenceGap,
    /// What was missed cannot be had: the subscription goes on after `position`.
    Rebased {
        /// The new position.
        position: Position,
    },
    /// The last event: the server ended or refused the subscription.
    Unsubscribed {
        /// Why.
        error: Option<ClientError>,
    },
}

/// One sequenced item of a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    /// Where the subscription stands with it: give it to [`Client::subscribe_from`] to go on from here.
    pub position: Position,
    /// What was published.
    pub payload: Payload,
    /// Who published; `None` for the backend and for anonymous sessions.
    pub user: Option<String>,
    /// When it was numbered, milliseconds of Unix time.
    pub time_ms: u64,
}

impl Publication {
    pub(crate) fn new(position: Position, publication: frame::Publication) -> Self {
        let frame::Publication { data, data_base64, user, time_ms, .. } = publication;
        Self { position, payload: payload(data, data_base64), user, time_ms }
    }
}

/// One item of at-most-once data.
#[derive(Debug, Clone, PartialEq)]
pub struct Ephemeral {
    /// What was published.
    pub payload: Payload,
    /// Who published.
    pub user: Option<String>,
    /// When the server saw it, milliseconds of Unix time.
    pub time_ms: u64,
}

impl From<frame::Ephemeral> for Ephemeral {
    fn from(ephemeral: frame::Ephemeral) -> Self {
        let frame::Ephemeral { data, data_base64, user, time_ms, .. } = ephemeral;
        Self { payload: payload(data, data_base64), user, time_ms }
    }
}

/// Answer to [`Client::history`].
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// The head of the channel.
    pub position: Position,
    /// Nothing is missing between the position that was asked for and the head.
    pub recovered: bool,
    /// In order.
    pub publications: Vec<Publication>,
}

/// Answer to [`Client::presence`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// By name; a part of them where not `exact`.
    pub users: Vec<PresentUser>,
    /// All users, also those that are not listed.
    pub users_total: u64,
    /// All sessions, anonymous ones too.
    pub sessions: u64,
    /// `users` is everybody who has a name.
    pub exact: bool,
}

/// A user on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentUser {
    /// Who.
    pub user: String,
    /// How many sessions.
    pub sessions: u32,
}

impl From<frame::Presence> for Presence {
    fn from(presence: frame::Presence) -> Self {
        let frame::Presence { users, users_total, sessions, exact, .. } = presence;
        let users = users.into_iter();
        let users = users.map(|frame::PresentUser { user, sessions }| PresentUser { user, sessions });
        Self { users: users.collect(), users_total, sessions, exact }
    }
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, ClientError>>;

/// What the app asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Subscribe {
        channel: ChannelName,
        options: SubscribeOptions,
        reply: Reply<mpsc::Receiver<SubscriptionEvent>>,
    },
    /// Subscriptions were dropped.
    Leave,
    Publish {
        channel: ChannelName,
        payload: Payload,
        key: Option<String>,
        reply: Reply<Position>,
    },
    PublishEphemeral {
        channel: ChannelName,
        payload: Payload,
        reply: Reply<()>,
    },
    History {
        channel: ChannelName,
        since: Option<Position>,
        limit: u32,
        reply: Reply<History>,
    },
    Presence {
        channel: ChannelName,
        reply: Reply<Presence>,
    },
    Refresh {
        token: String,
        reply: Reply<()>,
    },
    MoveTo {
        transport: Transport,
        reply: Reply<()>,
    },
    NetworkChanged {
        key: Option<String>,
    },
    Memory {
        reply: Reply<LadderMemory>,
    },
    Close,
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, ClientError> {
    let (reply, answer) = oneshot::channel();
    commands.send(command(reply)).await.map_err(|_| ClientError::Ended)?;
    answer.await.map_err(|_| ClientError::Ended)?
}

fn name(channel: &str) -> Result<ChannelName, ClientError> {
    ChannelName::new(channel).map_err(|error| ClientError::Channel(error.to_string()))
}

/// A server always fills one of the two; one that does not has sent nothing.
fn payload(data: Option<bytes::Bytes>, data_base64: Option<bytes::Bytes>) -> Payload {
    Payload::from_fields(data, data_base64).unwrap_or_else(|| Payload::Binary(bytes::Bytes::new()))
}
