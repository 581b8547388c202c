//! Sans-io: the client's half of a session. It outlives connections: on each new one it connects again, takes up every
//! subscription from its last position, and asks again what was not answered.
//!
//! The driver makes connections when told ([`Event::Dial`]), feeds whatever comes over whichever lane to
//! [`Session::handle_frame`], and drains [`Session::poll_transmit`] and [`Session::poll_event`] after every input.

mod event;
mod requests;
mod subscription;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::value::RawValue;

use crate::backoff::Backoff;
use crate::frame::{
    self, ClientBody, ClientFrame, Close, CloseCode, Connect, Connected, Empty, ErrorCode, ErrorReply,
    HistoryRequest, Payload, Publication, Publish, ReconnectPolicy, ServerBody, ServerFrame, Subscribe,
    Subscribed, Unsubscribed,
};
use crate::{ChannelName, Position};

use requests::{Request, Requests};
use subscription::{HoldBounds, Need, Phase, Subscription};

pub use event::{CommandError, Event, History, RequestError, RequestId, SessionError, TokenNeed};

/// Bounds of a client's session.
#[derive(Debug, Clone)]
pub struct Config {
    /// From an open connection to `connected`; then the connection counts as lost.
    pub connect_timeout: Duration,
    /// From `done` to the server's `close`; then the session ends without it.
    pub close_timeout: Duration,
    /// Subscriptions; more are refused.
    pub max_subscriptions: usize,
    /// The app's requests that wait for an answer; more are refused.
    pub max_requests: usize,
    /// Bytes that all requests hold; more are refused.
    pub max_request_bytes: usize,
    /// Requests sent and not answered; the rest waits. The server reads no further than 64.
    pub max_in_flight: usize,
    /// Ephemeral publishes that wait to be sent; the oldest is dropped.
    pub max_ephemeral: usize,
    /// Bytes of one payload; more are refused.
    pub max_payload: usize,
    /// Publications held per subscription until a gap is filled; then it subscribes again from its last position.
    pub max_held: usize,
    /// Bytes of them.
    pub max_held_bytes: usize,
}

impl Default for Config {
    /// What fits the server's own defaults (PROTOCOL §15).
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
            max_subscriptions: 512,
            max_requests: 1024,
            max_request_bytes: 4 << 20,
            max_in_flight: 60,
            max_ephemeral: 64,
            max_payload: 64 << 10,
            max_held: 1024,
            max_held_bytes: 1 << 20,
        }
    }
}

/// A frame to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Transmit {
    /// The frame.
    pub frame: ClientFrame,
    /// At-most-once: by datagram where the transport has them and it fits.
    pub datagram: bool,
}

/// Where the session stands.
///
/// ```text
///        connect            connection_opened           connected
/// Idle ──────────► Dialing ──────────────────► Opening ───────────► Open
///                    ▲ │                          │                   │
///                    │ └──────────────┬───────────┴───────────────────┘ lost, silent, closed by the server
///                    │                ├─ backoff, now ──► Waiting ──┐
///                    │                └─ fresh token ───► Tokenless │
///                    └── delay over, token there ──────────┴────────┘
/// Open ── close ──► Closing ── closed, timeout ──► Ended     every state ── policy `never`, close ──► Ended
/// ```
#[derive(Debug)]
enum State {
    Idle,
    Dialing,
    Opening {
        until: Instant,
        request: u64,
        /// Until it was sent.
        connect: Option<Connect>,
        /// Publications of subscriptions that only `connected` will name.
        early: Vec<Publication>,
    },
    Open {
        heard: Instant,
        /// Silence for so long means that the connection is dead; zero where the server does not ping.
        silence: Duration,
        /// When to ask for a new token.
        token_due: Option<Instant>,
    },
    Waiting {
        until: Instant,
    },
    Tokenless {
        not_before: Instant,
        ask_again: Option<Instant>,
    },
    Closing {
        until: Instant,
        done_sent: bool,
    },
    Ended,
}

/// The client's half of a session.
#[derive(Debug)]
pub struct Session {
    config: Config,
    state: State,
    backoff: Backoff,
    rng: ChaCha8Rng,
    token: Option<String>,
    ticket: Option<String>,
    /// Ends without a stable connection since that asked to come back at once: only the first one is followed.
    hasty: u32,
    subscriptions: BTreeMap<ChannelName, Subscription>,
    requests: Requests,
    ephemeral: VecDeque<ClientFrame>,
    pong_owed: bool,
    events: VecDeque<Event>,
}

impl Session {
    /// A session that waits for [`Session::connect`]. `rng` must be seeded from the OS in production: it makes
    /// idempotency keys.
    pub fn new(config: Config, mut rng: ChaCha8Rng) -> Self {
        Self {
            state: State::Idle,
            backoff: Backoff::new(ChaCha8Rng::from_rng(&mut rng)),
            rng,
            token: None,
            ticket: None,
            hasty: 0,
            subscriptions: BTreeMap::new(),
            requests: Requests::new(config.max_in_flight),
            ephemeral: VecDeque::new(),
            pong_owed: false,
            events: VecDeque::new(),
            config,
        }
    }

    // Commands.

    /// Asks for the first connection; nothing where it was asked for before.
    pub fn connect(&mut self, token: Option<String>) {
        if matches!(self.state, State::Idle) {
            self.token = token;
            self.dial();
        }
    }

    /// Joins a channel, after `position` or from its head.
    pub fn subscribe(
        &mut self,
        now: Instant,
        channel: ChannelName,
        position: Option<Position>,
    ) -> Result<(), CommandError> {
        self.check_alive()?;
        let bounds = self.hold_bounds();
        if let Some(subscription) = self.subscriptions.get_mut(channel.as_str()) {
            if let Phase::Leaving { request, again: false } = subscription.phase {
                *subscription = Subscription::new(channel, position, bounds);
                subscription.phase = Phase::Leaving { request, again: true };
                return Ok(());
            }
            if !subscription.server {
                return Err(CommandError::AlreadySubscribed);
            }
            return self.adopt(&channel, position);
        }
        if self.subscriptions.len() >= self.config.max_subscriptions {
            return Err(CommandError::TooManySubscriptions);
        }
        self.subscriptions.insert(channel.clone(), Subscription::new(channel, position, bounds));
        self.ask_waiting(now);
        Ok(())
    }

    /// Leaves a channel: none of its publications comes any more; `Unsubscribed` follows.
    pub fn unsubscribe(&mut self, channel: &ChannelName) -> Result<(), CommandError> {
        self.check_alive()?;
        let subscription = self.subscriptions.get_mut(channel).ok_or(CommandError::NotSubscribed)?;
        match &mut subscription.phase {
            Phase::Leaving { again, .. } => *again = false,
            Phase::Waiting { .. } => {
                self.subscriptions.remove(channel);
                self.events.push_back(Event::Unsubscribed { channel: channel.clone(), error: None });
            }
            Phase::Resyncing { request } => {
                subscription.phase = Phase::Leaving { request: *request, again: false }
            }
            Phase::Asked { .. } | Phase::Live => {
                let request = self.requests.add(Request::Unsubscribe(channel.clone()), true);
                subscription.clear_held();
                subscription.phase = Phase::Leaving { request, again: false };
            }
        }
        Ok(())
    }

    /// Publishes durably; `Published` follows. Without a `key` it gets a random one, so that it can be repeated after a
    /// lost connection and still be stored once.
    pub fn publish(
        &mut self,
        channel: &ChannelName,
        payload: Payload,
        key: Option<String>,
    ) -> Result<RequestId, CommandError> {
        self.check_room()?;
        self.check_payload(&payload)?;
        let key = match key {
            Some(key) if key.is_empty() || key.len() > MAX_KEY_BYTES => return Err(CommandError::BadKey),
            Some(key) => key,
            None => format!("{:016x}{:016x}", self.rng.next_u64(), self.rng.next_u64()),
        };
        Ok(self.request(Request::Publish(publish_frame(channel, payload, Some(key), false))))
    }

    /// Publishes at most once: dropped without a connection, and the oldest where too many wait.
    pub fn publish_ephemeral(&mut self, channel: &ChannelName, payload: Payload) -> Result<(), CommandError> {
        self.check_alive()?;
        self.check_payload(&payload)?;
        if matches!(self.state, State::Open { .. }) {
            if self.ephemeral.len() >= self.config.max_ephemeral {
                self.ephemeral.pop_front();
            }
            let publish = publish_frame(channel, payload, None, true);
            self.ephemeral.push_back(ClientFrame::new(0, ClientBody::Publish(publish)));
        }
        Ok(())
    }

    /// Asks what is retained after `since`, at most `limit` (0: as many as fit); `History` follows.
    pub fn history(
        &mut self,
        channel: &ChannelName,
        since: Option<Position>,
        limit: u32,
    ) -> Result<RequestId, CommandError> {
        self.check_room()?;
        let since = since.map(frame::Position::from);
        Ok(self.request(Request::History(HistoryRequest {
            channel: channel.as_str().to_owned(),
            since,
            limit,
        })))
    }

    /// Gives a new token; `Refreshed` follows. Without an open connection it serves the next one.
    pub fn refresh(&mut self, now: Instant, token: String) -> Result<RequestId, CommandError> {
        self.check_room()?;
        if matches!(self.state, State::Open { .. }) {
            return Ok(self.request(Request::Refresh(token)));
        }
        self.token = Some(token);
        let request = RequestId(self.requests.new_id());
        self.events.push_back(Event::Refreshed { request, result: Ok(()) });
        if let State::Tokenless { not_before, .. } = self.state {
            self.wait(now, not_before.saturating_duration_since(now));
        }
        Ok(request)
    }

    /// There is no token to be had now: asks again in a while.
    pub fn token_unavailable(&mut self, now: Instant) {
        match &mut self.state {
            State::Open { token_due, .. } => *token_due = Some(now + TOKEN_RETRY),
            State::Tokenless { ask_again, .. } => *ask_again = Some(now + TOKEN_RETRY),
            _ => {}
        }
    }

    /// Ends the session in order; `Ended` follows. What waits for an answer fails.
    pub fn close(&mut self, now: Instant) {
        match self.state {
            State::Closing { .. } | State::Ended => {}
            State::Open { .. } | State::Opening { connect: None, .. } => {
                self.state = State::Closing { until: now + self.config.close_timeout, done_sent: false };
                self.fail_requests();
            }
            _ => self.end(CloseCode::Done.number(), "closed by the app".to_owned()),
        }
    }

    /// The connection that was asked for is there.
    pub fn connection_opened(&mut self, now: Instant) {
        if !matches!(self.state, State::Dialing) {
            return;
        }
        self.state = State::Opening {
            until: now + self.config.connect_timeout,
            request: self.requests.new_id(),
            // A ticket serves once.
            connect: Some(Connect { token: self.token.clone(), resume: self.ticket.take() }),
            early: Vec::new(),
        };
        self.ask_waiting(now);
        self.requests.send_again();
    }

    /// The connection ended, or could not be made; `code` where the transport's own close named one.
    pub fn connection_lost(&mut self, now: Instant, code: Option<u32>, reason: &str) {
        if matches!(
            self.state,
            State::Dialing | State::Opening { .. } | State::Open { .. } | State::Closing { .. }
        ) {
            let code = code.unwrap_or_else(|| CloseCode::ConnectionLost.number());
            self.end_connection(now, code, reason.to_owned(), CloseCode::policy_of(code), Duration::ZERO);
        }
    }

    /// Something came that holds no frame, such as an empty poll: the connection is alive.
    pub fn handle_activity(&mut self, now: Instant) {
        if let State::Open { heard, .. } = &mut self.state {
            *heard = now;
        }
    }

    /// True where another publish, history request or refresh is taken.
    pub fn has_room(&self) -> bool {
        self.requests.of_app() < self.config.max_requests
            && self.requests.bytes() < self.config.max_request_bytes
    }

    // The five verbs.

    /// Takes a frame, from whichever lane. After an error the connection is lost: tell with `connection_lost`.
    pub fn handle_frame(&mut self, now: Instant, frame: ServerFrame) -> Result<(), SessionError> {
        if !self.has_connection() {
            return Ok(());
        }
        self.handle_activity(now);
        let ServerFrame { id, body: Some(body) } = frame else { return Ok(()) };
        if let ServerBody::Close(close) = body {
            self.handle_close(now, close);
            return Ok(());
        }
        if matches!(self.state, State::Closing { .. }) {
            return Ok(());
        }
        match body {
            ServerBody::Connected(connected) => self.handle_connected(now, connected)?,
            ServerBody::Publication(publication) => self.handle_publication(now, publication),
            ServerBody::Ephemeral(ephemeral) => self.handle_ephemeral(ephemeral),
            ServerBody::Ping(Empty {}) => self.pong_owed = true,
            ServerBody::Subscribed(subscribed) if id == 0 => self.handle_rebased(now, subscribed)?,
            ServerBody::Unsubscribed(unsubscribed) if id == 0 => self.handle_unsubscribed(unsubscribed),
            ServerBody::Error(error) if id == 0 => self.events.push_back(Event::Error(error)),
            ServerBody::Error(error) if self.is_connect(id) => {
                self.connection_lost(now, None, &format!("connect was refused: {}", error.message));
            }
            body => self.handle_answer(now, id, body)?,
        }
        Ok(())
    }

    /// What time alone does.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Opening { until, .. } if now >= *until => {
                self.connection_lost(now, None, "the server did not answer `connect` in time");
            }
            State::Open { heard, silence, .. } if !silence.is_zero() && now >= *heard + *silence => {
                let reason = format!("nothing was heard for {} s", silence.as_secs());
                self.connection_lost(now, None, &reason);
            }
            State::Open { token_due, .. } if token_due.is_some_and(|due| now >= due) => {
                *token_due = None;
                self.events.push_back(Event::NeedToken(TokenNeed::Expiring));
            }
            State::Waiting { until } if now >= *until => self.dial(),
            State::Tokenless { ask_again, .. } if ask_again.is_some_and(|at| now >= at) => {
                *ask_again = None;
                self.events.push_back(Event::NeedToken(TokenNeed::Refused));
            }
            State::Closing { until, .. } if now >= *until => {
                self.end(CloseCode::Done.number(), "closed by the app; the server did not answer".to_owned());
            }
            _ => {}
        }
        if self.is_usable() {
            let stalled: Vec<ChannelName> = self
                .subscriptions
                .iter()
                .filter(|(_, subscription)| subscription.gap_deadline().is_some_and(|at| now >= at))
                .map(|(channel, _)| channel.clone())
                .collect();
            for channel in stalled {
                self.meet(&channel, Need::Resync);
            }
            self.ask_waiting(now);
        }
    }

    /// When to call [`Session::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Opening { until, .. } | State::Waiting { until } | State::Closing { until, .. } => {
                Some(*until)
            }
            State::Open { heard, silence, token_due } => {
                let dead = if silence.is_zero() { None } else { Some(*heard + *silence) };
                dead.into_iter().chain(*token_due).min()
            }
            State::Tokenless { ask_again, .. } => *ask_again,
            State::Idle | State::Dialing | State::Ended => None,
        };
        if !self.is_usable() {
            return own;
        }
        let of_subscriptions =
            self.subscriptions.values().filter_map(|subscription| match subscription.phase {
                Phase::Waiting { retry_at } => retry_at,
                _ => subscription.gap_deadline(),
            });
        of_subscriptions.chain(own).min()
    }

    /// True where [`Session::poll_transmit`] has something.
    pub fn wants_transmit(&self) -> bool {
        match &self.state {
            State::Opening { connect, .. } => {
                connect.is_some() || self.pong_owed || self.requests.wants_transmit()
            }
            State::Open { .. } => {
                self.pong_owed || !self.ephemeral.is_empty() || self.requests.wants_transmit()
            }
            State::Closing { done_sent, .. } => !done_sent,
            _ => false,
        }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        let control = |frame| Some(Transmit { frame, datagram: false });
        match &mut self.state {
            State::Opening { connect, request, .. } => {
                if let Some(connect) = connect.take() {
                    return control(ClientFrame::new(*request, ClientBody::Connect(connect)));
                }
            }
            State::Open { .. } => {}
            State::Closing { done_sent, .. } => {
                let first = !std::mem::replace(done_sent, true);
                return if first { control(ClientFrame::new(0, ClientBody::Done(Empty {}))) } else { None };
            }
            _ => return None,
        }
        if std::mem::take(&mut self.pong_owed) {
            return control(ClientFrame::new(0, ClientBody::Pong(Empty {})));
        }
        if let Some(frame) = self.requests.poll_transmit(now) {
            return control(frame);
        }
        // Not behind `connect`: a datagram could overtake it.
        self.ephemeral.pop_front().map(|frame| Transmit { frame, datagram: true })
    }

    /// What the driver must do or pass on.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // Frames.

    fn handle_connected(&mut self, now: Instant, connected: Connected) -> Result<(), SessionError> {
        let State::Opening { early, .. } = &mut self.state else {
            return Err(SessionError::AlreadyConnected);
        };
        let early = std::mem::take(early);
        self.state = State::Open {
            heard: now,
            silence: Duration::from_millis(connected.ping_ms.min(MAX_PING_MS)) * 2,
            token_due: connected.expires_ms.map(|ms| token_due(now, ms)),
        };
        self.backoff.handle_connected(now);
        self.ticket = connected.resume;
        self.events.push_back(Event::Connected {
            session: connected.session,
            user: connected.user,
            node: connected.node,
            region: connected.region,
        });
        let missed_early = early.len() >= MAX_EARLY;
        for subscribed in connected.subscriptions {
            let name = ChannelName::new(&subscribed.channel)
                .map_err(|_| SessionError::Malformed("a server-side subscription with a bad channel name"))?;
            // Those that the client knows are asked for with their positions.
            if self.subscriptions.contains_key(&name)
                || self.subscriptions.len() >= self.config.max_subscriptions
            {
                continue;
            }
            let mut subscription = Subscription::new(name.clone(), None, self.hold_bounds());
            subscription.server = true;
            let need = subscription.handle_subscribed(now, subscribed, false, &mut self.events)?;
            self.subscriptions.insert(name.clone(), subscription);
            self.meet(&name, if missed_early { Need::Resync } else { need });
        }
        for publication in early {
            self.handle_publication(now, publication);
        }
        Ok(())
    }

    fn handle_publication(&mut self, now: Instant, publication: Publication) {
        let Some(subscription) = self.subscriptions.get_mut(publication.channel.as_str()) else {
            if let State::Opening { early, .. } = &mut self.state
                && early.len() < MAX_EARLY
            {
                early.push(publication);
            }
            return;
        };
        let need = subscription.handle_publication(now, publication, &mut self.events);
        if need != Need::Nothing {
            let channel = subscription.channel().clone();
            self.meet(&channel, need);
        }
    }

    fn handle_ephemeral(&mut self, ephemeral: frame::Ephemeral) {
        let subscription = self.subscriptions.get(ephemeral.channel.as_str());
        if let Some(subscription) = subscription.filter(|one| !matches!(one.phase, Phase::Leaving { .. })) {
            self.events.push_back(Event::Ephemeral { channel: subscription.channel().clone(), ephemeral });
        }
    }

    /// `subscribed` without an id: continuity of a live subscription was lost.
    fn handle_rebased(&mut self, now: Instant, subscribed: Subscribed) -> Result<(), SessionError> {
        let Some(subscription) = self.subscriptions.get_mut(subscribed.channel.as_str()) else {
            return Ok(());
        };
        let need = subscription.handle_rebased(now, subscribed, &mut self.events)?;
        let channel = subscription.channel().clone();
        self.meet(&channel, need);
        Ok(())
    }

    /// `unsubscribed` without an id: the server ended it.
    fn handle_unsubscribed(&mut self, unsubscribed: Unsubscribed) {
        let Some(subscription) = self.subscriptions.get(unsubscribed.channel.as_str()) else { return };
        if matches!(subscription.phase, Phase::Live | Phase::Resyncing { .. }) {
            let channel = subscription.channel().clone();
            self.remove_subscription(&channel, unsubscribed.error);
        }
    }

    fn handle_answer(&mut self, now: Instant, id: u64, body: ServerBody) -> Result<(), SessionError> {
        // A second answer, to a request that was sent twice, says nothing new.
        let Some(request) = self.requests.answer(id) else { return Ok(()) };
        let request_id = RequestId(id);
        match (request, body) {
            (Request::Subscribe(channel, _), ServerBody::Subscribed(subscribed)) => {
                return self.handle_asked(now, id, &channel, subscribed);
            }
            (Request::Subscribe(channel, _), ServerBody::Error(error)) => {
                self.handle_not_subscribed(now, id, &channel, error);
            }
            // An error as well: then there was no such subscription.
            (Request::Unsubscribe(channel), ServerBody::Unsubscribed(_) | ServerBody::Error(_)) => {
                self.handle_left(now, id, &channel);
            }
            (
                Request::Publish(_),
                ServerBody::Published(frame::Published { position: Some(position), .. }),
            ) => {
                self.events.push_back(Event::Published { request: request_id, result: Ok(position.into()) });
            }
            (
                Request::History(_),
                ServerBody::History(frame::History {
                    position: Some(position), recovered, publications, ..
                }),
            ) => {
                let result = Ok(History { position: position.into(), recovered, publications });
                self.events.push_back(Event::History { request: request_id, result });
            }
            (Request::Refresh(token), ServerBody::Refreshed(refreshed)) => {
                self.token = Some(token);
                if let State::Open { token_due: due, .. } = &mut self.state {
                    *due = refreshed.expires_ms.map(|ms| token_due(now, ms));
                }
                self.events.push_back(Event::Refreshed { request: request_id, result: Ok(()) });
            }
            (request, ServerBody::Error(error)) => self.fail(id, request, RequestError::Refused(error)),
            (request, _) => {
                self.fail(id, request, RequestError::Unanswered);
                return Err(SessionError::WrongAnswer);
            }
        }
        Ok(())
    }

    fn handle_asked(
        &mut self,
        now: Instant,
        id: u64,
        channel: &ChannelName,
        subscribed: Subscribed,
    ) -> Result<(), SessionError> {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return Ok(()) };
        if subscription.phase == (Phase::Asked { request: id }) {
            subscription.attempts = 0;
            let need = subscription.handle_subscribed(now, subscribed, true, &mut self.events)?;
            self.meet(channel, need);
        }
        Ok(())
    }

    fn handle_not_subscribed(&mut self, now: Instant, id: u64, channel: &ChannelName, error: ErrorReply) {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return };
        if subscription.phase != (Phase::Asked { request: id }) {
            return;
        }
        subscription.clear_held();
        subscription.attempts = subscription.attempts.saturating_add(1);
        if error.retry {
            let bound =
                SUBSCRIBE_RETRY.saturating_mul(1 << subscription.attempts.min(6)).min(SUBSCRIBE_RETRY_CAP);
            let delay = bound.mul_f64(self.rng.random_range(0.0..1.0));
            subscription.phase = Phase::Waiting { retry_at: Some(now + delay) };
        } else if error.code == ErrorCode::Conflict.number() && subscription.attempts == 1 {
            // The server has one that this side knows nothing of: begin anew, once.
            let request = self.requests.add(Request::Unsubscribe(channel.clone()), true);
            subscription.phase = Phase::Leaving { request, again: true };
        } else {
            self.remove_subscription(channel, Some(error));
        }
    }

    fn handle_left(&mut self, now: Instant, id: u64, channel: &ChannelName) {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return };
        match subscription.phase {
            Phase::Leaving { request, again: false } if request == id => {
                self.remove_subscription(channel, None)
            }
            Phase::Leaving { request, .. } | Phase::Resyncing { request } if request == id => {
                subscription.reset();
                self.ask_waiting(now);
            }
            _ => {}
        }
    }

    fn handle_close(&mut self, now: Instant, close: Close) {
        let reconnect = close.reconnect.unwrap_or_else(|| frame::Reconnect {
            policy: CloseCode::policy_of(close.code).into(),
            after_ms: None,
        });
        let after = Duration::from_millis(reconnect.after_ms.unwrap_or(0).min(MAX_AFTER_MS));
        self.end_connection(now, close.code, close.reason, reconnect.policy(), after);
    }

    // The ends of a connection and of the session.

    fn end_connection(
        &mut self,
        now: Instant,
        code: u32,
        reason: String,
        policy: ReconnectPolicy,
        after: Duration,
    ) {
        let closing = matches!(self.state, State::Closing { .. });
        if self.backoff.handle_lost(now) {
            self.hasty = 0;
        }
        self.pong_owed = false;
        self.ephemeral.clear();
        let left: Vec<ChannelName> = self
            .subscriptions
            .iter()
            .filter(|(_, one)| matches!(one.phase, Phase::Leaving { again: false, .. }))
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in left {
            self.remove_subscription(&channel, None);
        }
        self.subscriptions.values_mut().for_each(Subscription::reset);
        for (id, request) in self.requests.handle_lost(now) {
            if let Request::Refresh(token) = &request {
                // Whether the server has it or not, it is the newest.
                self.token = Some(token.clone());
            }
            self.fail(id, request, RequestError::Unanswered);
        }
        self.events.push_back(Event::Closed { code, reason: reason.clone(), policy });
        if closing || policy == ReconnectPolicy::Never {
            self.end(code, reason);
            return;
        }
        let delay = match policy {
            ReconnectPolicy::Now | ReconnectPolicy::FreshToken if self.hasty == 0 => Duration::ZERO,
            _ => self.backoff.next_delay(),
        };
        let delay = delay.max(after);
        match policy {
            ReconnectPolicy::FreshToken => {
                self.hasty += 1;
                self.state = State::Tokenless { not_before: now + delay, ask_again: None };
                self.events.push_back(Event::NeedToken(TokenNeed::Refused));
            }
            ReconnectPolicy::Now => {
                self.hasty += 1;
                self.wait(now, delay);
            }
            ReconnectPolicy::Backoff | ReconnectPolicy::Never => self.wait(now, delay),
        }
    }

    fn wait(&mut self, now: Instant, delay: Duration) {
        self.events.push_back(Event::Reconnect { delay });
        self.state = State::Waiting { until: now + delay };
        if delay.is_zero() {
            self.dial();
        }
    }

    fn dial(&mut self) {
        self.state = State::Dialing;
        self.events.push_back(Event::Dial);
    }

    fn end(&mut self, code: u32, reason: String) {
        self.state = State::Ended;
        self.fail_requests();
        self.subscriptions.clear();
        self.events.push_back(Event::Ended { code, reason });
    }

    fn fail_requests(&mut self) {
        for (id, request) in self.requests.take_all() {
            self.fail(id, request, RequestError::Ended);
        }
    }

    fn fail(&mut self, id: u64, request: Request, error: RequestError) {
        let id = RequestId(id);
        self.events.push_back(match request {
            Request::Publish(_) => Event::Published { request: id, result: Err(error) },
            Request::History(_) => Event::History { request: id, result: Err(error) },
            Request::Refresh(_) => Event::Refreshed { request: id, result: Err(error) },
            // Their subscriptions know.
            Request::Subscribe(..) | Request::Unsubscribe(_) => return,
        });
    }

    // Subscriptions and requests.

    /// The app asks for a subscription that the server began.
    fn adopt(&mut self, channel: &ChannelName, position: Option<Position>) -> Result<(), CommandError> {
        let subscription = self.subscriptions.get_mut(channel).ok_or(CommandError::NotSubscribed)?;
        subscription.server = false;
        match (position, subscription.phase, subscription.position.clone()) {
            (None, Phase::Live, Some(position)) => self.events.push_back(Event::Subscribed {
                channel: channel.clone(),
                position,
                recovered: false,
                was_recovering: false,
                server: false,
            }),
            (None, ..) => {}
            (Some(position), phase, _) => {
                subscription.position = Some(position);
                subscription.clear_held();
                if matches!(phase, Phase::Live | Phase::Asked { .. }) {
                    let request = self.requests.add(Request::Unsubscribe(channel.clone()), true);
                    subscription.phase = Phase::Leaving { request, again: true };
                } else if let Phase::Resyncing { request } = phase {
                    subscription.phase = Phase::Leaving { request, again: true };
                }
            }
        }
        Ok(())
    }

    /// Leaves a live subscription, to take it up again from its last position.
    fn meet(&mut self, channel: &ChannelName, need: Need) {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return };
        if need == Need::Nothing || subscription.phase != Phase::Live {
            return;
        }
        subscription.clear_held();
        let request = self.requests.add(Request::Unsubscribe(channel.clone()), true);
        subscription.phase = match need {
            Need::Restart => Phase::Leaving { request, again: true },
            _ => Phase::Resyncing { request },
        };
    }

    /// Asks for every subscription that waits, where there is a connection.
    fn ask_waiting(&mut self, now: Instant) {
        if !self.is_usable() {
            return;
        }
        for (channel, subscription) in &mut self.subscriptions {
            let Phase::Waiting { retry_at } = subscription.phase else { continue };
            if retry_at.is_none_or(|at| now >= at) {
                let position = subscription.position.clone().map(frame::Position::from);
                let subscribe = Subscribe { channel: channel.as_str().to_owned(), position };
                let request = self.requests.add(Request::Subscribe(channel.clone(), subscribe), true);
                subscription.phase = Phase::Asked { request };
            }
        }
    }

    fn remove_subscription(&mut self, channel: &ChannelName, error: Option<ErrorReply>) {
        if self.subscriptions.remove(channel).is_some() {
            self.events.push_back(Event::Unsubscribed { channel: channel.clone(), error });
        }
    }

    fn request(&mut self, request: Request) -> RequestId {
        let send = self.is_usable();
        RequestId(self.requests.add(request, send))
    }

    fn hold_bounds(&self) -> HoldBounds {
        HoldBounds { items: self.config.max_held, bytes: self.config.max_held_bytes }
    }

    fn check_alive(&self) -> Result<(), CommandError> {
        match self.state {
            State::Closing { .. } | State::Ended => Err(CommandError::Ended),
            _ => Ok(()),
        }
    }

    fn check_room(&self) -> Result<(), CommandError> {
        self.check_alive()?;
        if self.has_room() { Ok(()) } else { Err(CommandError::TooManyRequests) }
    }

    fn check_payload(&self, payload: &Payload) -> Result<(), CommandError> {
        let (bytes, limit) = (payload.len(), self.config.max_payload);
        if bytes > limit {
            return Err(CommandError::TooLarge { bytes, limit });
        }
        match payload {
            // As the text encoding will check it: what it cannot write must not come so far.
            Payload::Json(json) if serde_json::from_slice::<&RawValue>(json).is_err() => {
                Err(CommandError::BadJson)
            }
            _ => Ok(()),
        }
    }

    fn is_connect(&self, id: u64) -> bool {
        matches!(self.state, State::Opening { request, .. } if request == id)
    }

    /// Frames may come.
    fn has_connection(&self) -> bool {
        self.is_usable() || matches!(self.state, State::Closing { .. })
    }

    /// Requests may be sent.
    fn is_usable(&self) -> bool {
        matches!(self.state, State::Opening { .. } | State::Open { .. })
    }
}

fn publish_frame(channel: &ChannelName, payload: Payload, key: Option<String>, ephemeral: bool) -> Publish {
    let (data, data_base64) = payload.into_fields();
    Publish { channel: channel.as_str().to_owned(), data, data_base64, key, ephemeral }
}

/// A minute before the token expires, or in the last quarter of a short life.
fn token_due(now: Instant, expires_ms: u64) -> Instant {
    let left = Duration::from_millis(expires_ms.min(MAX_EXPIRES_MS));
    now + left - TOKEN_LEAD.min(left / 4)
}

const MAX_KEY_BYTES: usize = 128;

/// Publications that come before `connected`; where they are more, their subscriptions begin anew.
const MAX_EARLY: usize = 256;

/// From a failure to get a token to the next try.
const TOKEN_RETRY: Duration = Duration::from_secs(5);

/// How long before the token's end another is asked for.
const TOKEN_LEAD: Duration = Duration::from_secs(60);

/// Bound of the first delay after a subscribe that may succeed later; doubles up to the cap.
const SUBSCRIBE_RETRY: Duration = Duration::from_millis(500);
const SUBSCRIBE_RETRY_CAP: Duration = Duration::from_secs(30);

// What a server says is believed within these, so that no time overflows.
const MAX_PING_MS: u64 = 3_600_000;
const MAX_EXPIRES_MS: u64 = 365 * 24 * 3_600_000;
const MAX_AFTER_MS: u64 = 600_000;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
