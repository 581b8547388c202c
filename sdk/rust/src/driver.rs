//! The driver: one task around one session machine and one ladder, their connections, and the app's queues.

mod commands;
mod connections;
mod destination;
mod events;
mod moves;
mod network;
mod queues;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tidegate_fallback::ladder::{AttemptId, Ladder, LadderConfig, LadderMemory};
use tidegate_protocol::frame::ServerFrame;
use tidegate_protocol::session::client::{Carrier, Config, RequestId, Session};
use tidegate_protocol::{ChannelName, ConnectionId, Position};
use tidegate_transport::clock;
use tidegate_transport::quic::{ALPN_NATIVE, ALPN_WEBTRANSPORT, DialConfig, QuicDialer};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::builder::{TokenFuture, TokenProvider};
use crate::client::{Client, ClientEvent, Command, Events, History, Presence, Reply, State};
use crate::endpoint::Endpoint;
use crate::tls::Trust;
use crate::transport::{DialError, Dialer, Inbound, PathNews};
use crate::{ClientError, QuicOptions, Transport};

use connections::{Connections, Happening};
use destination::Destination;
use queues::{Queue, Undelivered};

/// What the builder made of the app's wishes.
pub(crate) struct Options {
    pub(crate) endpoints: Vec<Endpoint>,
    /// Best first; each has an endpoint.
    pub(crate) transports: Vec<Transport>,
    pub(crate) trust: Trust,
    pub(crate) token: Option<String>,
    pub(crate) provider: Option<TokenProvider>,
    pub(crate) queue: usize,
    pub(crate) ladder: LadderConfig,
    pub(crate) memory: LadderMemory,
    pub(crate) network_key: Option<String>,
    pub(crate) quic: QuicOptions,
    /// Base and cap.
    pub(crate) backoff: (Duration, Duration),
}

/// Starts a client and waits for its first connection.
pub(crate) async fn start(options: Options) -> Result<Client, ClientError> {
    let tracker = TaskTracker::new();
    let (commands, receiver) = mpsc::channel(COMMANDS_BOUND);
    let (state, state_receiver) = watch::channel(State::Connecting);
    let (session_id, session_id_receiver) = watch::channel(None);
    let (events, events_receiver) = mpsc::channel(EVENTS_BOUND);
    let (heard_sender, heard) = mpsc::channel(HEARD_BOUND);
    let (first, connected) = oneshot::channel();
    let untaken = Arc::new(Mutex::new(Some(Events { events: events_receiver })));
    let (backoff_base, backoff_cap) = options.backoff;
    let config = Config { backoff_base, backoff_cap, ..Config::default() };
    let mut session = Session::new(config, clock::rng());
    let (ladder, dialer) = prepare(&options, &tracker).await?;
    for endpoint in &options.endpoints {
        session.trust_endpoint(&endpoint.authority());
    }
    session.connect(options.token);
    let driver = Driver {
        session,
        ladder,
        dialer,
        endpoints: options.endpoints,
        destination: Destination::default(),
        connections: Connections::default(),
        last_attempt: AttemptId(0),
        early: None,
        accepted_early: None,
        connected: None,
        moving: None,
        heard,
        heard_sender,
        network_key: options.network_key,
        naming: None,
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
        session_id,
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
    let client =
        Client { commands, state: state_receiver, session: session_id_receiver, events: untaken, tracker };
    connected.await.map_err(|_| ClientError::Ended)??;
    Ok(client)
}

/// What dials, with what is remembered of the network.
async fn prepare(options: &Options, tracker: &TaskTracker) -> Result<(Ladder, Dialer), ClientError> {
    let Some(first) = options.endpoints.first() else {
        return Err(ClientError::Url { url: String::new(), reason: "no URL was given".to_owned() });
    };
    let network = match &options.network_key {
        Some(key) => key.clone(),
        None => network::key(first.clone()).await,
    };
    let rungs = options.transports.iter().map(|transport| transport.kind()).collect();
    let (origin, wall) = (first.authority(), (clock::now(), clock::unix_ms()));
    let ladder = Ladder::new(
        options.ladder.clone(),
        rungs,
        options.memory.clone(),
        (&origin, &network),
        wall,
        clock::rng(),
    );
    let mut dialer = Dialer {
        tls: None,
        tracker: tracker.clone(),
        quic: None,
        web_transport: None,
        slot: None,
        early: false,
    };
    let quic = |alpn: &[u8], early_data: bool| {
        let tls = options.trust.config(&[alpn])?;
        let config = DialConfig {
            keep_alive: options.quic.keep_alive,
            idle_timeout: options.quic.idle_timeout,
            initial_rtt: options.quic.initial_rtt(ladder.rtt()),
            early_data,
            ..DialConfig::default()
        };
        QuicDialer::new(tls, config).map_err(|error| ClientError::Tls(error.to_string()))
    };
    let is_wanted = |transport: Transport| options.transports.contains(&transport);
    let native =
        is_wanted(Transport::Quic).then(|| quic(ALPN_NATIVE, options.quic.early_data)).transpose()?;
    // Its request may not travel in early data (draft-ietf-webtrans-http3 §3.3).
    let http3 = is_wanted(Transport::WebTransport).then(|| quic(ALPN_WEBTRANSPORT, false)).transpose()?;
    let wants_tls = |endpoint: &Endpoint| {
        endpoint.tls && matches!(endpoint.transport, Transport::WebSocket | Transport::LongPoll)
    };
    if options.endpoints.iter().any(wants_tls) {
        dialer.tls = Some(Arc::new(options.trust.config(&[b"http/1.1"])?));
    }
    (dialer.quic, dialer.web_transport) = (native, http3);
    Ok((ladder, dialer))
}

struct Driver {
    session: Session,
    ladder: Ladder,
    dialer: Dialer,
    /// Of each transport, the one that opened last stands first.
    endpoints: Vec<Endpoint>,
    /// Where servers sent the session, beside those.
    destination: Destination,
    connections: Connections,
    last_attempt: AttemptId,
    /// The session has it although its handshake is not complete: it is the session's until another takes its place, even
    /// where nothing came of it.
    early: Option<AttemptId>,
    /// Its first flight was taken as early data.
    accepted_early: Option<AttemptId>,
    /// What the app was told to be connected by, since the last time that there was no connection at all.
    connected: Option<AttemptId>,
    /// The app asked to move.
    moving: Option<Reply<()>>,
    heard: mpsc::Receiver<AttemptId>,
    heard_sender: mpsc::Sender<AttemptId>,
    network_key: Option<String>,
    naming: Option<Pin<Box<dyn Future<Output = String> + Send>>>,
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
    session_id: watch::Sender<Option<String>>,
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

/// Who waits for the answer to a request.
enum Waiting {
    Publish(Reply<Position>),
    History(Reply<History>),
    Presence(Reply<Presence>),
    Refresh(Reply<()>),
    /// Nobody: the provider's token.
    Provider,
}

/// What woke the driver.
enum Woken {
    Timeout,
    Connection(Happening),
    /// Something came back by UDP before the attempt opened.
    Heard(AttemptId),
    Token(Result<String, String>),
    Network(String),
    /// The first of the undelivered has a place, or nobody to go to.
    Place(bool),
    Command(Option<Command>),
}

impl Driver {
    async fn run(mut self) {
        loop {
            self.drain();
            if self.ended {
                return;
            }
            self.connections.transmit(&mut self.session);
            // Sending brings events of its own: a connection that was left is let go.
            self.drain();
            let woken = self.wait().await;
            self.handle(woken);
        }
    }

    async fn wait(&mut self) -> Woken {
        let deadline = self.session.poll_timeout().into_iter().chain(self.ladder.poll_timeout()).min();
        let stalled = !self.undelivered.is_empty();
        // Beyond that not even control is read.
        let may_read = self.undelivered.len() < MAX_UNDELIVERED;
        let may_command = self.session.has_room() && !self.abandoned;
        let Self { connections, fetching, undelivered, commands, heard, naming, .. } = self;
        // Not biased: neither a server that sends without end nor an app that does may starve the other. Every arm is
        // cancel-safe; nothing here is simulated.
        tokio::select! {
            () = sleep_until(deadline) => Woken::Timeout,
            happening = connections.next(may_read, stalled) => Woken::Connection(happening),
            Some(attempt) = heard.recv() => Woken::Heard(attempt),
            token = poll_optional(fetching) => Woken::Token(token),
            key = poll_optional(naming) => Woken::Network(key),
            place = queues::place(undelivered) => Woken::Place(place),
            command = commands.recv(), if may_command => Woken::Command(command),
        }
    }

    fn handle(&mut self, woken: Woken) {
        let now = clock::now();
        match woken {
            Woken::Timeout => {
                if !self.undelivered.is_empty() {
                    // What is not read is no silence.
                    for attempt in self.connections.used() {
                        self.session.handle_activity(now, ConnectionId(attempt.0));
                    }
                }
                self.session.handle_timeout(now);
                self.ladder.handle_timeout(now);
            }
            Woken::Connection(Happening::Dialed(attempt, result)) => self.handle_dialed(now, attempt, result),
            Woken::Connection(Happening::Established(attempt, result, accepted)) => {
                self.handle_established(now, attempt, result, accepted);
            }
            Woken::Connection(Happening::Inbound(attempt, inbound)) => {
                self.handle_inbound(now, attempt, inbound);
            }
            Woken::Connection(Happening::Room) => {}
            Woken::Heard(attempt) => self.ladder.handle_udp_heard(now, attempt),
            Woken::Token(token) => self.handle_token(now, token),
            Woken::Network(key) => {
                self.naming = None;
                self.ladder.handle_network_changed(now, &key);
            }
            Woken::Place(open) => self.handle_place(open),
            Woken::Command(Some(command)) => self.handle_command(now, command),
            // Nobody holds the client any more.
            Woken::Command(None) => {
                self.abandoned = true;
                self.session.close(now);
            }
        }
    }

    fn handle_inbound(&mut self, now: Instant, attempt: AttemptId, inbound: Inbound) {
        let id = ConnectionId(attempt.0);
        match inbound {
            Inbound::Frames(carrier, frames) => self.handle_frames(now, attempt, &carrier, frames),
            Inbound::Alive => self.session.handle_activity(now, id),
            Inbound::Path(PathNews::RoundTrip { rtt, pto }) => {
                self.session.set_round_trip(now, id, rtt, pto);
                self.ladder.handle_round_trip(now, attempt, rtt);
            }
            Inbound::Path(PathNews::Suspect) => self.handle_path_suspect(now, attempt),
            Inbound::Path(PathNews::Heard) => {
                self.session.handle_activity(now, id);
                self.ladder.handle_heard(now, attempt);
            }
            Inbound::Lost(lost) => self.handle_lost(now, attempt, &lost),
        }
    }

    fn handle_frames(
        &mut self,
        now: Instant,
        attempt: AttemptId,
        carrier: &Carrier,
        frames: Vec<ServerFrame>,
    ) {
        for frame in frames {
            if let Err(error) = self.session.handle_frame_on(now, ConnectionId(attempt.0), carrier, frame) {
                // The close that the server gets is the transport's; ours to act on is that of a lost connection.
                tracing::debug!(%error, "the server broke the protocol");
                self.session.connection_lost(now, ConnectionId(attempt.0), None, &error.to_string());
                self.ladder.handle_lost(now, attempt, true);
                self.connections.remove(attempt);
            }
            // At once: the session holds no more than one frame brings.
            self.drain();
            if self.connections.get(attempt).is_none() {
                return;
            }
        }
    }

    /// Does what session and ladder say.
    fn drain(&mut self) {
        loop {
            if let Some(event) = self.session.poll_event() {
                self.handle_event(event);
            } else if let Some(event) = self.ladder.poll_event() {
                self.obey(event);
            } else {
                return;
            }
        }
    }

    fn tell(&self, event: ClientEvent) {
        // At the bound the newest is lost, as documented.
        drop(self.events.try_send(event));
    }
}

/// Whoever asked may have stopped waiting.
fn answer<T>(reply: Reply<T>, result: Result<T, ClientError>) {
    drop(reply.send(result));
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn poll_optional<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Commands that wait for the driver; then callers wait.
const COMMANDS_BOUND: usize = 64;

/// Events of the client that wait for the app; then the newest are lost.
const EVENTS_BOUND: usize = 64;

/// Signs of life of dials; more are lost, and say nothing new.
const HEARD_BOUND: usize = 8;

/// Events that wait for a place before not even the control lane is read.
const MAX_UNDELIVERED: usize = 256;
