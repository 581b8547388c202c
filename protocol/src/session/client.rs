//! Sans-io: the client's half of a session. It outlives connections: on each new one it resumes or connects again, takes
//! up every subscription from its last position, and asks again what was not answered.
//!
//! The driver makes connections when told ([`Event::Dial`]), and another beside the present one where that is suspect
//! ([`Event::Suspect`]) or it knows a better one: the session moves to it without a break. It feeds whatever comes over
//! whichever lane to [`Session::handle_frame_on`], and drains [`Session::poll_transmit_on`] and [`Session::poll_event`] after
//! every input.

mod carrier;
mod commands;
mod connections;
mod event;
mod frames;
mod goaway;
mod moving;
mod outage;
mod probe;
mod requests;
mod subscription;
mod ticket;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::backoff::Backoff;
use crate::frame::{
    self, ClientFrame, CloseCode, ErrorReply, ReconnectPolicy, ServerBody, ServerFrame, Subscribe,
};
use crate::reconnect::Reconnect;
use crate::{ChannelName, ConnectionId};

use connections::{Connection, Side, Stage};
use goaway::Departure;
use outage::End;
use requests::{Request, Requests};
use subscription::{HoldBounds, Need, Phase, Subscription};
use ticket::Tickets;

pub use carrier::Carrier;
pub use event::{CommandError, Event, History, RequestError, RequestId, SessionError, TokenNeed};
pub use outage::Target;
pub use subscription::SubscribeOptions;

/// Bounds of a client's session.
#[derive(Debug, Clone)]
pub struct Config {
    /// From an open connection to `connected`; then the connection counts as lost.
    pub connect_timeout: Duration,
    /// Bound of the first delay before another attempt to connect; it doubles with each..
    pub backoff_base: Duration,
    /// ..up to this.
    pub backoff_cap: Duration,
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
    /// Bytes of them. Both bounds are of each connection's own, of which there are two during a move.
    pub max_held_bytes: usize,
    /// Silence, after publications that had been flowing, until the client asks whether the path still works..
    pub probe_silence: Duration,
    /// ..or so many times the usual time between them, where that is longer.
    pub probe_gaps: u32,
    /// From a request to asking why it is not answered.
    pub request_patience: Duration,
    /// From asking to suspicion, where nothing at all is heard; longer where the round trip is.
    pub suspect_after: Duration,
    /// The same, after a change of network.
    pub suspect_after_change: Duration,
    /// From `connected` on the next connection to leaving the present one, whatever is still missing.
    pub move_timeout: Duration,
}

impl Default for Config {
    /// What fits the server's own defaults (PROTOCOL §10).
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            backoff_base: Backoff::BASE,
            backoff_cap: Backoff::CAP,
            close_timeout: Duration::from_secs(5),
            max_subscriptions: 512,
            max_requests: 1024,
            max_request_bytes: 4 << 20,
            max_in_flight: 60,
            max_ephemeral: 64,
            max_payload: 64 << 10,
            max_held: 1024,
            max_held_bytes: 1 << 20,
            probe_silence: Duration::from_secs(2),
            probe_gaps: 4,
            request_patience: Duration::from_secs(2),
            suspect_after: Duration::from_secs(3),
            suspect_after_change: Duration::from_secs(1),
            move_timeout: Duration::from_secs(5),
        }
    }
}

/// A frame to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Transmit {
    /// Over which connection.
    pub connection: ConnectionId,
    /// The frame.
    pub frame: ClientFrame,
    /// At-most-once: by datagram where the transport has them and it fits.
    pub datagram: bool,
}

/// Where the session stands.
///
/// ```text
///        connect            connection_opened
/// Idle ──────────► Dialing ──────────────────► Up ──┐ connection_opened (another): moves, stays Up
///                    ▲ │                       │ ▲  │
///                    │ │                       │ └──┘ one of two lost: stays Up
///                    │ └──────────────┬────────┘ the last one lost, silent, closed by the server
///                    │                ├─ backoff, now ──► Waiting ──┐
///                    │                └─ fresh token ───► Tokenless │
///                    └── delay over, token there ──────────┴────────┘
/// Up ── close ──► Closing ── closed, timeout ──► Ended      every state ── policy `never`, close ──► Ended
/// ```
#[derive(Debug)]
enum State {
    Idle,
    Dialing,
    /// `current` is there, and `next` while the session moves.
    Up,
    Waiting {
        until: Instant,
        /// The server's word.
        not_before: Instant,
    },
    Tokenless {
        not_before: Instant,
        ask_again: Option<Instant>,
    },
    /// On `current`.
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
    reconnect: Reconnect,
    /// Whom the next dial, or the last, is for.
    target: Target,
    /// The driver said so last.
    network_changed_at: Option<Instant>,
    rng: ChaCha8Rng,
    token: Option<String>,
    tickets: Tickets,
    current: Option<Connection>,
    next: Option<Connection>,
    /// When to be done with moving, once the next connection is open.
    move_until: Option<Instant>,
    /// Hosts, with ports, that the app's own URLs name.
    trusted: Vec<Arc<str>>,
    /// What the server of the last connection asked for, where it was lost before anything came of it.
    left_behind: Option<Departure>,
    /// Left, and not yet told so.
    leaving: VecDeque<ConnectionId>,
    /// The last ones whose end would say nothing new.
    released: VecDeque<ConnectionId>,
    subscriptions: BTreeMap<ChannelName, Subscription>,
    requests: Requests,
    ephemeral: VecDeque<ClientFrame>,
    events: VecDeque<Event>,
}

impl Session {
    /// A session that waits for [`Session::connect`]. `rng` must be seeded from the OS in production: it makes
    /// idempotency keys.
    pub fn new(config: Config, mut rng: ChaCha8Rng) -> Self {
        Self {
            state: State::Idle,
            reconnect: Reconnect::with_backoff(Backoff::with_bounds(
                ChaCha8Rng::from_rng(&mut rng),
                config.backoff_base,
                config.backoff_cap,
            )),
            target: Target::default(),
            network_changed_at: None,
            rng,
            token: None,
            tickets: Tickets::default(),
            current: None,
            next: None,
            move_until: None,
            trusted: Vec::new(),
            left_behind: None,
            leaving: VecDeque::new(),
            released: VecDeque::new(),
            subscriptions: BTreeMap::new(),
            requests: Requests::new(),
            ephemeral: VecDeque::new(),
            events: VecDeque::new(),
            config,
        }
    }

    /// True where another publish, history request or refresh is taken.
    pub fn has_room(&self) -> bool {
        self.requests.of_app() < self.config.max_requests
            && self.requests.bytes() < self.config.max_request_bytes
    }

    // The five verbs; `poll_transmit` is with the connections.

    /// Takes a frame of a connection's control lane, or only pipe, as [`Session::handle_frame_on`] does.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        frame: ServerFrame,
    ) -> Result<(), SessionError> {
        self.handle_frame_on(now, connection, &Carrier::Control, frame)
    }

    /// Takes a frame, from whichever lane of a connection. After an error the connection is lost: tell with
    /// `connection_lost`.
    pub fn handle_frame_on(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        carrier: &Carrier,
        frame: ServerFrame,
    ) -> Result<(), SessionError> {
        let Some(side) = self.side(connection) else { return Ok(()) };
        self.handle_activity(now, connection);
        let ServerFrame { id, body: Some(body) } = frame else { return Ok(()) };
        if let ServerBody::Close(close) = body {
            self.handle_close(now, side, close);
            return Ok(());
        }
        if matches!(self.state, State::Closing { .. }) {
            return Ok(());
        }
        match body {
            ServerBody::Connected(connected) => self.handle_connected(now, side, connected)?,
            ServerBody::Publication(publication) => {
                if let Some(numbering) = carrier.numbering(id) {
                    self.handle_publication(now, side, numbering, publication);
                }
            }
            ServerBody::Ephemeral(ephemeral) => self.handle_ephemeral(now, side, ephemeral),
            ServerBody::Join(join) => self.handle_join(now, side, join),
            ServerBody::Leave(leave) => self.handle_leave(now, side, leave),
            ServerBody::PresenceGap(gap) => self.handle_presence_gap(now, side, &gap.channel),
            ServerBody::Goaway(goaway) => self.handle_goaway(now, side, goaway),
            ServerBody::Ping(ping) => self.handle_ping(side, ping),
            ServerBody::Pong(_) => self.handle_pong(now, side, id),
            ServerBody::Subscribed(subscribed) if id == 0 => self.handle_rebased(now, side, subscribed)?,
            ServerBody::Unsubscribed(unsubscribed) if id == 0 => self.handle_unsubscribed(side, unsubscribed),
            ServerBody::Error(error) if id == 0 => self.events.push_back(Event::Error(error)),
            ServerBody::Error(error)
                if self.connection(side).is_some_and(|connection| connection.is_connect(id)) =>
            {
                let reason = format!("connect was refused: {}", error.message);
                self.connection_lost(now, connection, None, &reason);
            }
            body => self.handle_answer(now, side, id, body)?,
        }
        self.move_when_ready(now);
        Ok(())
    }

    /// What time alone does.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Waiting { until, .. } if now >= *until => self.dial(Some(now)),
            State::Dialing => self.tend_dial(now),
            State::Tokenless { ask_again, .. } if ask_again.is_some_and(|at| now >= at) => {
                *ask_again = None;
                self.events.push_back(Event::NeedToken(TokenNeed::Refused));
            }
            State::Closing { until, .. } if now >= *until => {
                self.end(CloseCode::Done.number(), "closed by the app; the server did not answer".to_owned());
            }
            State::Up => {
                self.time_out(now, Side::Next);
                self.time_out(now, Side::Current);
                self.probe(now);
                self.tend_departure(now);
                self.tend_dial(now);
            }
            _ => {}
        }
        for side in [Side::Current, Side::Next] {
            if !self.is_usable(side) {
                continue;
            }
            let stalled: Vec<ChannelName> = self
                .subscriptions
                .iter()
                .filter(|(_, subscription)| subscription.gap_deadline(side).is_some_and(|at| now >= at))
                .map(|(channel, _)| channel.clone())
                .collect();
            for channel in stalled {
                self.meet(side, &channel, Need::Resync);
            }
            self.ask_waiting(now, side);
        }
        self.move_when_ready(now);
    }

    /// When to call [`Session::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until, .. } | State::Closing { until, .. } => Some(*until),
            State::Tokenless { ask_again, .. } => *ask_again,
            State::Dialing => self.give_up_at(),
            State::Idle | State::Ended => None,
            State::Up => {
                let of_sides = [Side::Current, Side::Next].into_iter().filter_map(|side| self.due(side));
                of_sides.chain(self.move_until).chain(self.departure_due()).chain(self.give_up_at()).min()
            }
        }
    }

    /// What the driver must do or pass on.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // Time.

    /// What one connection waits for.
    fn due(&self, side: Side) -> Option<Instant> {
        let connection = self.connection(side)?;
        let own = match connection.stage {
            Stage::Opening { until, .. } => Some(until),
            Stage::Open { token_due, .. } => token_due.filter(|_| side == Side::Current),
        };
        let probe = match side {
            Side::Current => connection.probe.suspect_at().or_else(|| connection.ping_due(&self.config)),
            Side::Next => None,
        };
        let of_subscriptions =
            self.subscriptions.values().filter_map(|subscription| match subscription.line(side)?.phase {
                Phase::Waiting { retry_at } if !subscription.left => retry_at,
                _ => subscription.gap_deadline(side),
            });
        of_subscriptions.chain(own).chain(probe).chain(connection.dead_at()).min()
    }

    fn time_out(&mut self, now: Instant, side: Side) {
        let Some(connection) = self.connection_mut(side) else { return };
        let (id, dead_at) = (connection.id, connection.dead_at());
        match &mut connection.stage {
            Stage::Opening { until, .. } if now >= *until => {
                self.connection_lost(now, id, None, "the server did not answer `connect` in time");
            }
            Stage::Open { silence, .. } if dead_at.is_some_and(|at| now >= at) => {
                let reason = format!("nothing was heard for {} s", silence.as_secs());
                self.connection_lost(now, id, None, &reason);
            }
            Stage::Open { token_due, .. }
                if side == Side::Current && token_due.is_some_and(|due| now >= due) =>
            {
                *token_due = None;
                self.events.push_back(Event::NeedToken(TokenNeed::Expiring));
            }
            _ => {}
        }
    }

    /// Asks whether the present connection still works, or suspects that it does not.
    fn probe(&mut self, now: Instant) {
        let Some(current) = &mut self.current else { return };
        if current.ping_due(&self.config).is_some_and(|at| now >= at) {
            current.lane.stop_watching();
            current.probe.start(now, self.requests.new_id(), self.config.suspect_after);
        }
        if current.probe.suspect_at().is_some_and(|at| now >= at) {
            current.probe.suspect();
            self.suspect(now);
        }
    }

    fn suspect(&mut self, now: Instant) {
        let Some(current) = self.current.as_ref().filter(|_| self.next.is_none()) else { return };
        self.events.push_back(Event::Suspect { connection: current.id });
        self.escape(now);
    }

    // The ends of a connection and of the session.

    /// The only connection is gone, or could not be made.
    fn lose_all(&mut self, now: Instant, end: End, refused: bool) {
        let closing = matches!(self.state, State::Closing { .. });
        let connection = self.current.take();
        let dial = self.decide(now, connection.as_ref(), &end, refused);
        self.ephemeral.clear();
        if let Some(connection) = connection {
            self.forget(connection.id);
            self.requests.drop_lane(&connection.lane);
            self.left_behind = connection.departure.or_else(|| self.left_behind.take());
        }
        self.subscriptions.values_mut().for_each(Subscription::reset);
        self.remove_left();
        for (id, request) in self.requests.take_refreshes() {
            if let Request::Refresh(token) = &request {
                // Whether the server has it or not, it is the newest.
                self.token = Some(token.clone());
            }
            self.fail(id, request, RequestError::Unanswered);
        }
        for (id, request) in self.requests.take_unrepeatable(now, None) {
            self.fail(id, request, RequestError::Unanswered);
        }
        let not_before = end.not_before();
        let End { code, reason, policy, .. } = end;
        self.events.push_back(Event::Closed { code, reason: reason.clone(), policy });
        if closing || policy == ReconnectPolicy::Never {
            self.end(code, reason);
        } else if policy == ReconnectPolicy::FreshToken {
            self.state = State::Tokenless { not_before: now + dial.delay, ask_again: None };
            self.aim(dial);
            self.events.push_back(Event::NeedToken(TokenNeed::Refused));
        } else {
            self.wait(now, dial, not_before);
        }
    }

    fn end(&mut self, code: u32, reason: String) {
        self.state = State::Ended;
        self.current = None;
        self.next = None;
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
            Request::Presence(_) => Event::Presence { request: id, result: Err(error) },
            Request::Refresh(_) => Event::Refreshed { request: id, result: Err(error) },
            // Their subscriptions know.
            Request::Subscribe(..) | Request::Unsubscribe(_) => return,
        });
    }

    // Subscriptions and requests.

    /// Leaves a live subscription on one side, to take it up again from its last position.
    fn meet(&mut self, side: Side, channel: &ChannelName, need: Need) {
        let subscription = self.subscriptions.get_mut(channel);
        let Some(line) = subscription.and_then(|subscription| subscription.line_mut(side)) else { return };
        if need == Need::Nothing || line.phase != Phase::Live {
            return;
        }
        line.clear();
        let Some(request) = self.ask(side, Request::Unsubscribe(channel.clone())) else { return };
        let subscription = self.subscriptions.get_mut(channel);
        if let Some(line) = subscription.and_then(|subscription| subscription.line_mut(side)) {
            line.phase = match need {
                Need::Restart => Phase::Leaving { request },
                _ => Phase::Resyncing { request },
            };
        }
    }

    /// Asks something on one side alone; `None` where there is no connection.
    fn ask(&mut self, side: Side, request: Request) -> Option<u64> {
        if !self.is_usable(side) {
            return None;
        }
        let id = self.requests.add(request);
        if let Some(connection) = self.connection_mut(side) {
            connection.lane.push(id);
        }
        Some(id)
    }

    /// Asks for every subscription that waits, where there is a connection.
    fn ask_waiting(&mut self, now: Instant, side: Side) {
        if !self.is_usable(side) {
            return;
        }
        let connection = match side {
            Side::Current => self.current.as_mut(),
            Side::Next => self.next.as_mut(),
        };
        let Some(connection) = connection else { return };
        for (channel, subscription) in &mut self.subscriptions {
            let Some(Phase::Waiting { retry_at }) = subscription.line(side).map(|line| line.phase) else {
                continue;
            };
            if subscription.left || retry_at.is_some_and(|at| now < at) {
                continue;
            }
            let position = subscription.position.clone().map(frame::Position::from);
            let SubscribeOptions { rank, presence } = subscription.options;
            let rank = rank.into();
            let subscribe = Subscribe { channel: channel.as_str().to_owned(), position, rank, presence };
            let request = self.requests.add(Request::Subscribe(channel.clone(), subscribe));
            if connection.is_open() {
                connection.lane.push(request);
            } else {
                connection.lane.push_in_flight_of_connect(request);
            }
            if let Some(line) = subscription.line_mut(side) {
                line.phase = Phase::Asked { request };
            }
        }
    }

    fn remove_subscription(&mut self, channel: &ChannelName, error: Option<ErrorReply>) {
        if self.subscriptions.remove(channel).is_some() {
            self.events.push_back(Event::Unsubscribed { channel: channel.clone(), error });
        }
    }

    /// Subscriptions that the app has left go when no connection has them any more.
    fn remove_left(&mut self) {
        let is_leaving = |subscription: &Subscription, side| {
            subscription.line(side).is_some_and(|line| matches!(line.phase, Phase::Leaving { .. }))
        };
        let gone: Vec<ChannelName> = self
            .subscriptions
            .iter()
            .filter(|(_, one)| one.left && !is_leaving(one, Side::Current) && !is_leaving(one, Side::Next))
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in gone {
            self.remove_subscription(&channel, None);
        }
    }

    fn hold_bounds(&self) -> HoldBounds {
        HoldBounds { items: self.config.max_held, bytes: self.config.max_held_bytes }
    }

    /// Requests may be sent there.
    fn is_usable(&self, side: Side) -> bool {
        matches!(self.state, State::Up) && self.connection(side).is_some()
    }
}

#[cfg(test)]
mod tests;
