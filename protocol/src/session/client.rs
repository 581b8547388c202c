//! Sans-io: the client's half of a session. It outlives connections: on each new one it connects again, takes up every
//! subscription from its last position, and asks again what was not answered.
//!
//! The driver makes connections when told ([`Event::Dial`]), feeds whatever comes over whichever lane to
//! [`Session::handle_frame`], and drains [`Session::poll_transmit`] and [`Session::poll_event`] after every input.

mod commands;
mod event;
mod frames;
mod requests;
mod subscription;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::ChannelName;
use crate::backoff::Backoff;
use crate::frame::{
    self, ClientBody, ClientFrame, CloseCode, Connect, Empty, ErrorReply, Publication, ReconnectPolicy,
    ServerBody, ServerFrame, Subscribe,
};

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
    /// What fits the server's own defaults (PROTOCOL §10).
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

    // What the driver tells.

    /// The connection that was asked for is there.
    pub fn connection_opened(&mut self, now: Instant) {
        if !matches!(self.state, State::Dialing) {
            return;
        }
        self.state = State::Opening {
            until: now + self.config.connect_timeout,
            request: self.requests.new_id(),
            // A ticket serves once.
            connect: Some(Connect { token: self.token.clone(), resume: self.ticket.take(), key: None }),
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
            ServerBody::Ping(_) => self.pong_owed = true,
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
                let subscribe = Subscribe { channel: channel.as_str().to_owned(), position, rank: 0 };
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

    fn hold_bounds(&self) -> HoldBounds {
        HoldBounds { items: self.config.max_held, bytes: self.config.max_held_bytes }
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

#[cfg(test)]
mod tests;
