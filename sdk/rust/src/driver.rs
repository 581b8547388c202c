//! The driver: one task around one session machine, its connection, and the app's queues.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use tidegate_protocol::frame::ServerFrame;
use tidegate_protocol::session::client::{Config, Event, RequestId, Session, TokenNeed, Transmit};
use tidegate_protocol::{ChannelName, Offset, Position};
use tidegate_transport::clock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::ClientError;
use crate::builder::{TokenFuture, TokenProvider};
use crate::client::{
    Client, ClientEvent, Command, Events, History, Publication, Reply, State, Subscription, SubscriptionEvent,
};
use crate::endpoint::Endpoint;
use crate::tls::Trust;
use crate::transport::{Connection, DialError, Dialer, Inbound};

/// What the builder made of the app's wishes.
pub(crate) struct Options {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) trust: Trust,
    pub(crate) token: Option<String>,
    pub(crate) provider: Option<TokenProvider>,
    pub(crate) queue: usize,
}

/// Starts a client and waits for its first connection.
pub(crate) async fn start(options: Options) -> Result<Client, ClientError> {
    let tracker = TaskTracker::new();
    let (commands, receiver) = mpsc::channel(COMMANDS_BOUND);
    let (state, state_receiver) = watch::channel(State::Connecting);
    let (events, events_receiver) = mpsc::channel(EVENTS_BOUND);
    let (first, connected) = oneshot::channel();
    let untaken = Arc::new(Mutex::new(Some(Events { events: events_receiver })));
    let mut session = Session::new(Config::default(), clock::rng());
    session.connect(options.token);
    let driver = Driver {
        session,
        dialer: Dialer { trust: options.trust, tracker: tracker.clone() },
        endpoints: options.endpoints,
        connection: None,
        dialing: None,
        provider: options.provider,
        fetching: None,
        commands: receiver,
        // Subscriptions that the server begins need a way to say that they were dropped, but must not keep it alive.
        own_commands: commands.downgrade(),
        queue: options.queue,
        subscriptions: BTreeMap::new(),
        undelivered: VecDeque::new(),
        waiting: BTreeMap::new(),
        state,
        events,
        first: Some(first),
        dial_error: None,
        last_close: None,
        untaken: Arc::downgrade(&untaken),
        abandoned: false,
        ended: false,
    };
    tracker.spawn(driver.run());
    // Whoever closes waits for what runs; connections may still add to it until then.
    tracker.close();
    let client = Client { commands, state: state_receiver, events: untaken, tracker };
    connected.await.map_err(|_| ClientError::Ended)??;
    Ok(client)
}

type Dialing = Pin<Box<dyn Future<Output = Result<(Endpoint, Connection), DialError>> + Send>>;

struct Driver {
    session: Session,
    dialer: Dialer,
    /// One, after the first connection.
    endpoints: Vec<Endpoint>,
    connection: Option<Connection>,
    dialing: Option<Dialing>,
    provider: Option<TokenProvider>,
    fetching: Option<TokenFuture>,
    commands: mpsc::Receiver<Command>,
    own_commands: mpsc::WeakSender<Command>,
    queue: usize,
    subscriptions: BTreeMap<ChannelName, Queue>,
    /// What found its queue full, in order. While there is any, channels are not read.
    undelivered: VecDeque<Undelivered>,
    /// Bounded by the session, which refuses requests over its limit.
    waiting: BTreeMap<RequestId, Waiting>,
    state: watch::Sender<State>,
    events: mpsc::Sender<ClientEvent>,
    /// Until the first connection succeeded or failed.
    first: Option<Reply<()>>,
    dial_error: Option<DialError>,
    /// How the connection before ended.
    last_close: Option<(u32, String)>,
    untaken: Weak<Mutex<Option<Events>>>,
    /// Nobody holds the client any more.
    abandoned: bool,
    ended: bool,
}

/// Towards a subscription in the app's hands.
struct Queue {
    sender: mpsc::Sender<SubscriptionEvent>,
    by_server: bool,
}

type Undelivered = (ChannelName, mpsc::Sender<SubscriptionEvent>, SubscriptionEvent);

/// Who waits for the answer to a request.
enum Waiting {
    Publish(Reply<Position>),
    History(Reply<History>),
    Refresh(Reply<()>),
    /// Nobody: the provider's token.
    Provider,
}

/// What woke the driver.
enum Woken {
    Timeout,
    Dialed(Result<(Endpoint, Connection), DialError>),
    Token(Result<String, String>),
    Room,
    /// The first of the undelivered has a place, or nobody to go to.
    Place(bool),
    Inbound(Inbound),
    Command(Option<Command>),
}

impl Driver {
    async fn run(mut self) {
        loop {
            self.handle_events();
            if self.ended {
                return;
            }
            let no_room = self.transmit();
            let woken = self.wait(no_room).await;
            self.handle(woken);
        }
    }

    async fn wait(&mut self, no_room: bool) -> Woken {
        let deadline = self.session.poll_timeout().map(tokio::time::Instant::from_std);
        let stalled = !self.undelivered.is_empty();
        // Beyond that not even control is read.
        let may_read = self.undelivered.len() < MAX_UNDELIVERED;
        let may_command = self.session.has_room() && !self.abandoned;
        let Self { connection, dialing, fetching, undelivered, commands, .. } = self;
        let outbound = connection.as_ref().filter(|_| no_room).map(|connection| connection.outbound.clone());
        // Not biased: neither a server that sends without end nor an app that does may starve the other. Every arm is
        // cancel-safe; nothing here is simulated.
        tokio::select! {
            () = sleep_until(deadline) => Woken::Timeout,
            result = poll_optional(dialing) => Woken::Dialed(result),
            token = poll_optional(fetching) => Woken::Token(token),
            () = room(outbound) => Woken::Room,
            place = place(undelivered) => Woken::Place(place),
            inbound = recv(connection.as_mut(), stalled), if may_read => Woken::Inbound(inbound),
            command = commands.recv(), if may_command => Woken::Command(command),
        }
    }

    fn handle(&mut self, woken: Woken) {
        let now = clock::now();
        match woken {
            Woken::Timeout => {
                if !self.undelivered.is_empty() {
                    // What is not read is no silence.
                    self.session.handle_activity(now);
                }
                self.session.handle_timeout(now);
            }
            Woken::Dialed(result) => {
                self.dialing = None;
                match result {
                    Ok((endpoint, connection)) => {
                        self.endpoints = vec![endpoint];
                        self.connection = Some(connection);
                        self.session.connection_opened(now);
                    }
                    Err(error) => {
                        let (code, reason) = (error.lost.code, error.lost.reason.clone());
                        self.dial_error = Some(error);
                        self.session.connection_lost(now, code, &reason);
                    }
                }
            }
            Woken::Token(token) => self.handle_token(now, token),
            Woken::Room => {}
            Woken::Place(open) => {
                if let Some((channel, queue, event)) = self.undelivered.pop_front()
                    && (!open || queue.try_send(event).is_err())
                {
                    self.leave_if_dropped(&channel);
                }
            }
            Woken::Inbound(Inbound::Frames(frames)) => self.handle_frames(now, frames),
            Woken::Inbound(Inbound::Alive) => self.session.handle_activity(now),
            Woken::Inbound(Inbound::Lost(lost)) => self.session.connection_lost(now, lost.code, &lost.reason),
            Woken::Command(Some(command)) => self.handle_command(now, command),
            // Nobody holds the client any more.
            Woken::Command(None) => {
                self.abandoned = true;
                self.session.close(now);
            }
        }
    }

    fn handle_frames(&mut self, now: Instant, frames: Vec<ServerFrame>) {
        for frame in frames {
            if let Err(error) = self.session.handle_frame(now, frame) {
                // The close that the server gets is the transport's; ours to act on is that of a lost connection.
                tracing::debug!(%error, "the server broke the protocol");
                self.session.connection_lost(now, None, &error.to_string());
            }
            // At once: the session holds no more than one frame brings.
            self.handle_events();
            if self.connection.is_none() {
                return;
            }
        }
    }

    fn handle_token(&mut self, now: Instant, token: Result<String, String>) {
        self.fetching = None;
        let taken =
            token.map_err(ClientError::Token).and_then(|token| Ok(self.session.refresh(now, token)?));
        match taken {
            Ok(request) => {
                self.waiting.insert(request, Waiting::Provider);
            }
            Err(error) => {
                tracing::debug!(%error, "no token");
                self.session.token_unavailable(now);
            }
        }
    }

    fn handle_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Subscribe { channel, position, reply } => {
                if self.subscriptions.get(&channel).is_some_and(|queue| queue.sender.is_closed()) {
                    self.leave(&channel);
                    // The old one's end must not be taken for the new one's.
                    self.handle_events();
                }
                let result = self.session.subscribe(now, channel.clone(), position).map(|()| {
                    let (queue, events) = mpsc::channel(self.queue);
                    self.subscriptions.insert(channel.clone(), Queue { sender: queue, by_server: false });
                    events
                });
                if reply.send(result.map_err(ClientError::from)).is_err() {
                    self.leave(&channel);
                }
            }
            Command::Leave { channel } => self.leave_if_dropped(&channel),
            Command::Publish { channel, payload, key, reply } => {
                let request = self.session.publish(&channel, payload, key);
                match request {
                    Ok(request) => drop(self.waiting.insert(request, Waiting::Publish(reply))),
                    Err(error) => answer(reply, Err(error.into())),
                }
            }
            Command::PublishEphemeral { channel, payload, reply } => {
                answer(reply, self.session.publish_ephemeral(&channel, payload).map_err(ClientError::from));
            }
            Command::History { channel, since, limit, reply } => {
                match self.session.history(&channel, since, limit) {
                    Ok(request) => drop(self.waiting.insert(request, Waiting::History(reply))),
                    Err(error) => answer(reply, Err(error.into())),
                }
            }
            Command::Refresh { token, reply } => match self.session.refresh(now, token) {
                Ok(request) => drop(self.waiting.insert(request, Waiting::Refresh(reply))),
                Err(error) => answer(reply, Err(error.into())),
            },
            Command::Close => self.session.close(now),
        }
    }

    /// Passes on what the session says.
    fn handle_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            self.handle_event(event);
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Dial => {
                self.state.send_replace(State::Connecting);
                self.dialing = Some(Box::pin(self.dialer.clone().dial_any(self.endpoints.clone())));
            }
            Event::Connected { user, node, region, .. } => {
                let Some(transport) = self.connection.as_ref().map(|connection| connection.transport) else {
                    return;
                };
                self.state.send_replace(State::Connected { transport });
                self.last_close = None;
                if let Some(first) = self.first.take() {
                    answer(first, Ok(()));
                }
                self.tell(ClientEvent::Connected { transport, user, node, region });
            }
            Event::Subscribed { channel, position, recovered, was_recovering, server } => {
                if server && !self.subscriptions.contains_key(&channel) {
                    self.hand_over(&channel);
                }
                let event = if was_recovering && !recovered {
                    SubscriptionEvent::Rebased { position }
                } else {
                    SubscriptionEvent::Subscribed { position, recovered }
                };
                self.deliver(channel, event);
            }
            Event::Publication { channel, position, publication } => {
                let publication = Publication::new(position, publication);
                self.deliver(channel, SubscriptionEvent::Publication(publication));
            }
            Event::Ephemeral { channel, ephemeral } => {
                // At most once: dropped where the app does not keep up.
                if let Some(queue) = self.subscriptions.get(&channel)
                    && self.undelivered.is_empty()
                {
                    drop(queue.sender.try_send(SubscriptionEvent::Ephemeral(ephemeral.into())));
                }
            }
            Event::Unsubscribed { channel, error } => {
                let error = error.map(ClientError::from);
                self.deliver(channel.clone(), SubscriptionEvent::Unsubscribed { error });
                self.subscriptions.remove(&channel);
            }
            Event::Published { request, result } => {
                if let Some(Waiting::Publish(reply)) = self.waiting.remove(&request) {
                    answer(reply, result.map_err(ClientError::from));
                }
            }
            Event::History { request, result } => {
                if let Some(Waiting::History(reply)) = self.waiting.remove(&request) {
                    answer(reply, result.map(history).map_err(ClientError::from));
                }
            }
            Event::Refreshed { request, result } => {
                self.handle_refreshed(request, result.map_err(ClientError::from))
            }
            Event::Error(error) => {
                self.tell(ClientEvent::Refused { code: error.code, message: error.message });
            }
            Event::Closed { code, reason, .. } => self.handle_closed(code, reason),
            Event::Reconnect { delay } => self.tell(ClientEvent::Reconnecting { delay }),
            Event::NeedToken(need) => match &self.provider {
                Some(provider) => self.fetching = Some(provider()),
                // The app may still call `refresh` before it expires; once refused, there is nothing to wait for.
                None if need == TokenNeed::Expiring => {}
                None => self.session.close(clock::now()),
            },
            Event::Ended { code, reason } => {
                self.ended = true;
                // Where the end only says that no token was to be had, why is in what came before.
                let (code, reason) = self.last_close.take().unwrap_or((code, reason));
                self.state.send_replace(State::Closed { code, reason: reason.clone() });
                if let Some(first) = self.first.take() {
                    answer(first, Err(ClientError::Closed { code, reason: reason.clone() }));
                }
                self.tell(ClientEvent::Closed { code, reason });
            }
        }
    }

    fn handle_refreshed(&mut self, request: RequestId, result: Result<(), ClientError>) {
        match (self.waiting.remove(&request), result) {
            (Some(Waiting::Refresh(reply)), result) => answer(reply, result),
            (Some(Waiting::Provider), Err(ClientError::Refused { code, message, .. })) => {
                self.session.token_unavailable(clock::now());
                self.tell(ClientEvent::Refused { code, message });
            }
            _ => {}
        }
    }

    fn handle_closed(&mut self, code: u32, reason: String) {
        self.connection = None;
        self.dialing = None;
        self.state.send_replace(State::Connecting);
        tracing::debug!(code, reason, "the connection ended");
        if let Some(first) = self.first.take() {
            let error = self.dial_error.take().map(ClientError::from);
            answer(first, Err(error.unwrap_or_else(|| ClientError::Closed { code, reason: reason.clone() })));
            self.session.close(clock::now());
        }
        self.last_close = Some((code, reason.clone()));
        self.tell(ClientEvent::Disconnected { code, reason });
    }

    /// Makes a handle for a subscription that the server began. Where nobody can take it, its events are discarded
    /// until the app asks for the channel.
    fn hand_over(&mut self, channel: &ChannelName) {
        let Some(commands) = self.own_commands.upgrade() else { return };
        let (sender, events) = mpsc::channel(self.queue);
        let subscription = Subscription { channel: channel.clone(), events, commands };
        if self.events.try_send(ClientEvent::Subscribed(subscription)).is_ok() {
            self.subscriptions.insert(channel.clone(), Queue { sender, by_server: true });
        }
    }

    /// Puts an event into its subscription's queue, or behind what waits for a place.
    fn deliver(&mut self, channel: ChannelName, event: SubscriptionEvent) {
        let Some(queue) = self.subscriptions.get(&channel) else { return };
        let full = if self.undelivered.is_empty() {
            match queue.sender.try_send(event) {
                Ok(()) => return,
                Err(TrySendError::Closed(_)) => return self.leave(&channel),
                Err(TrySendError::Full(event)) => event,
            }
        } else {
            event
        };
        if queue.by_server && self.nobody_listens() {
            self.subscriptions.remove(&channel);
            return;
        }
        self.undelivered.push_back((channel, queue.sender.clone(), full));
    }

    /// The app never took its events, and with them the subscriptions that the server began.
    fn nobody_listens(&self) -> bool {
        self.untaken
            .upgrade()
            .is_some_and(|events| events.lock().unwrap_or_else(PoisonError::into_inner).is_some())
    }

    /// The app dropped a subscription of this channel; it may have joined again meanwhile.
    fn leave_if_dropped(&mut self, channel: &ChannelName) {
        if self.subscriptions.get(channel).is_some_and(|queue| queue.sender.is_closed()) {
            self.leave(channel);
        }
    }

    fn leave(&mut self, channel: &ChannelName) {
        if self.subscriptions.remove(channel).is_some() {
            // Not subscribed any more: then there is nothing to leave.
            let _not_subscribed = self.session.unsubscribe(channel);
        }
    }

    fn tell(&self, event: ClientEvent) {
        // At the bound the newest is lost, as documented.
        drop(self.events.try_send(event));
    }

    /// Hands frames to the connection; true where it has no room for the next.
    fn transmit(&mut self) -> bool {
        let Some(connection) = &self.connection else { return false };
        while self.session.wants_transmit() {
            match connection.outbound.try_reserve() {
                Ok(permit) => match self.session.poll_transmit(clock::now()) {
                    Some(transmit) => permit.send(transmit),
                    None => return false,
                },
                Err(TrySendError::Full(())) => return true,
                // Its end is on its way through the other queue.
                Err(TrySendError::Closed(())) => return false,
            }
        }
        false
    }
}

fn history(history: tidegate_protocol::session::client::History) -> History {
    let epoch = history.position.epoch.clone();
    let publications = history.publications.into_iter().map(|publication| {
        let position = Position::new(epoch.clone(), Offset(publication.offset));
        Publication::new(position, publication)
    });
    History { publications: publications.collect(), position: history.position, recovered: history.recovered }
}

/// Whoever asked may have stopped waiting.
fn answer<T>(reply: Reply<T>, result: Result<T, ClientError>) {
    drop(reply.send(result));
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn poll_optional<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn recv(connection: Option<&mut Connection>, control_only: bool) -> Inbound {
    match connection {
        Some(connection) => connection.recv(control_only).await,
        None => std::future::pending().await,
    }
}

/// Waits until the connection takes another frame.
async fn room(outbound: Option<mpsc::Sender<Transmit>>) {
    match outbound {
        // Closed: its end is on its way through the other queue.
        Some(outbound) if outbound.reserve().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// Waits until the first of the undelivered has a place; false where its subscription is gone.
async fn place(undelivered: &VecDeque<Undelivered>) -> bool {
    match undelivered.front() {
        Some((_, queue, _)) => queue.reserve().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// Commands that wait for the driver; then callers wait.
const COMMANDS_BOUND: usize = 64;

/// Events of the client that wait for the app; then the newest are lost.
const EVENTS_BOUND: usize = 64;

/// Events that wait for a place before not even the control lane is read.
const MAX_UNDELIVERED: usize = 256;
