//! Sans-io: the connections of a client's session: the one that it is on, and the one that it moves to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ConnectionId;
use crate::frame::{ClientBody, ClientFrame, CloseCode, Connect, Empty, Publication, ReconnectPolicy};
use crate::hint::Hint;
use crate::plan::ReconnectPlan;
use crate::reconnect::Cause;

use super::carrier::Numbering;
use super::goaway::Departure;
use super::outage::End;
use super::probe::Probe;
use super::requests::{Lane, Requests};
use super::{Config, Event, Session, State, Transmit, outage};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that the session is on.
    Current,
    /// The one that it moves to.
    Next,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Current => Self::Next,
            Self::Next => Self::Current,
        }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) stage: Stage,
    pub(super) lane: Lane,
    pub(super) probe: Probe,
    pub(super) pong_owed: bool,
    /// Where its server may send the session: hosts with ports.
    pub(super) alternatives: Vec<Arc<str>>,
    /// When and where its server says to come back.
    pub(super) plan: Option<Arc<ReconnectPlan>>,
    /// Its server asked to leave.
    pub(super) departure: Option<Departure>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// `connect` is to be sent, or its answer to come.
    Opening {
        until: Instant,
        /// Its id.
        request: u64,
        connect: Connecting,
        /// The handshake is not complete: what is sent may be recorded, and sent again by others.
        early: bool,
        /// Publications of subscriptions that only `connected` will name.
        publications: Vec<(Numbering, Publication)>,
    },
    /// `connected` came.
    Open {
        /// Silence for so long means that the connection is dead; zero where the server does not ping.
        silence: Duration,
        /// When to ask for a new token.
        token_due: Option<Instant>,
    },
}

/// How a connection opens.
#[derive(Debug)]
pub(super) struct Connecting {
    /// By a ticket, and this is the key of the attempt.
    pub(super) key: Option<String>,
    /// The ticket was offered before: the server honours it after the handshake alone.
    repeated: bool,
    /// Until it was handed out.
    frame: Option<Connect>,
}

impl Connecting {
    fn may_go(&self, early: bool) -> bool {
        self.frame.is_some() && (!early || (self.key.is_some() && !self.repeated))
    }
}

impl Connection {
    fn new(now: Instant, id: ConnectionId, stage: Stage, config: &Config) -> Self {
        Self {
            id,
            stage,
            lane: Lane::new(config.max_in_flight),
            probe: Probe::new(now),
            pong_owed: false,
            alternatives: Vec::new(),
            plan: None,
            departure: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open { .. })
    }

    /// True until its handshake is complete.
    pub(super) fn is_early(&self) -> bool {
        matches!(self.stage, Stage::Opening { early: true, .. })
    }

    /// A plan of its server: of two, the one with the higher epoch holds.
    pub(super) fn handle_plan(&mut self, plan: ReconnectPlan) {
        if self.plan.as_ref().is_none_or(|known| known.epoch <= plan.epoch) {
            let plan = outage::believed(plan);
            self.alternatives = plan.alternatives.iter().map(|one| Arc::from(one.host.as_str())).collect();
            self.plan = Some(plan);
        }
    }

    /// True where the server knows of it, and may be told `done`.
    pub(super) fn is_begun(&self) -> bool {
        match &self.stage {
            Stage::Open { .. } => true,
            Stage::Opening { connect, early, .. } => connect.frame.is_none() && !early,
        }
    }

    pub(super) fn is_connect(&self, id: u64) -> bool {
        matches!(self.stage, Stage::Opening { request, .. } if request == id)
    }

    /// True where the session was to be resumed over it, and no answer came yet.
    pub(super) fn is_resuming(&self) -> bool {
        matches!(&self.stage, Stage::Opening { connect, .. } if connect.key.is_some())
    }

    /// Silence after which it is dead for good.
    pub(super) fn dead_at(&self) -> Option<Instant> {
        match self.stage {
            Stage::Open { silence, .. } if !silence.is_zero() => Some(self.probe.heard() + silence),
            _ => None,
        }
    }

    /// When a ping is due: publications stopped, or a request waits too long.
    pub(super) fn ping_due(&self, config: &Config) -> Option<Instant> {
        if !self.is_open() || self.probe.suspect_at().is_some() || self.probe.is_suspected() {
            return None;
        }
        let waiting = self.lane.waiting_since().map(|since| since + config.request_patience);
        waiting.into_iter().chain(self.probe.flow_deadline(config)).min()
    }

    fn wants_transmit(&self, requests: &Requests) -> bool {
        if let Stage::Opening { connect, early, .. } = &self.stage {
            if connect.frame.is_some() {
                return connect.may_go(*early);
            }
            return self.pong_owed || self.lane.wants_transmit(requests, *early);
        }
        self.pong_owed || self.probe.wants_transmit() || self.lane.wants_transmit(requests, false)
    }

    fn poll_transmit(&mut self, now: Instant, requests: &mut Requests) -> Option<ClientFrame> {
        let mut only_flight = false;
        if let Stage::Opening { request, connect, early, .. } = &mut self.stage {
            if connect.frame.is_some() {
                if !connect.may_go(*early) {
                    return None;
                }
                return connect
                    .frame
                    .take()
                    .map(|frame| ClientFrame::new(*request, ClientBody::Connect(frame)));
            }
            only_flight = *early;
        } else if let Some(id) = self.probe.poll_transmit(now) {
            return Some(ClientFrame::new(id, ClientBody::Ping(Empty {})));
        }
        if !only_flight && std::mem::take(&mut self.pong_owed) {
            return Some(ClientFrame::new(0, ClientBody::Pong(Empty {})));
        }
        self.lane.poll_transmit(now, requests, only_flight)
    }
}

impl Session {
    // What the driver tells.

    /// A connection is there, its handshake complete: the one that was asked for, or, where the session has one, the
    /// one to move to. [`Event::Release`] follows for one too many.
    pub fn connection_opened(&mut self, now: Instant, connection: ConnectionId) {
        if self.side(connection).is_some() {
            self.connection_established(now, connection);
        } else {
            self.open(now, connection, false);
        }
    }

    /// A connection takes frames as early data, before its handshake is complete: only what may be recorded and sent
    /// again by others is handed out, before [`Session::connection_established`] or [`Session::early_rejected`].
    pub fn connecting_early(&mut self, now: Instant, connection: ConnectionId) {
        if self.side(connection).is_none() {
            self.open(now, connection, true);
        }
    }

    /// The handshake is complete, and the server took the early data.
    pub fn connection_established(&mut self, _now: Instant, connection: ConnectionId) {
        if let Some(Connection { stage: Stage::Opening { early, .. }, .. }) = self.by_id(connection) {
            *early = false;
        }
    }

    /// The handshake is complete, and the server did not take the early data: all of it is handed out again.
    pub fn early_rejected(&mut self, now: Instant, connection: ConnectionId) {
        let Some(side) = self.side(connection) else { return };
        let Some(Connection { stage: Stage::Opening { early: true, .. }, .. }) = self.connection(side) else {
            return;
        };
        // The same ticket and key as before.
        let again = self.connecting(now);
        let Some(connection) = self.connection_mut(side) else { return };
        if let Stage::Opening { early, connect, .. } = &mut connection.stage {
            *early = false;
            *connect = again;
        }
        connection.lane.hand_out_again();
    }

    /// The connection ended, or could not be made; `code` where the transport's own close named one.
    pub fn connection_lost(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        code: Option<u32>,
        reason: &str,
    ) {
        let was_open = self.by_id(connection).is_some_and(|connection| connection.is_open());
        let end = End::by_transport(code, reason, was_open);
        if let Some(side) = self.side(connection) {
            self.end_connection(now, side, end);
        } else if let Some(at) = self.leaving.iter().position(|leaving| *leaving == connection) {
            self.leaving.remove(at);
            self.release(connection);
        } else if matches!(self.state, State::Dialing) && !self.released.contains(&connection) {
            self.end_connection(now, Side::Current, end);
        }
    }

    /// Something came that holds no frame, such as an empty poll: the connection is alive.
    pub fn handle_activity(&mut self, now: Instant, connection: ConnectionId) {
        if self.by_id(connection).is_some_and(|connection| connection.probe.handle_heard(now)) {
            if let Some(side) = self.side(connection) {
                self.stay(side);
            }
            self.events.push_back(Event::Heard { connection });
        }
    }

    /// What the transport measures: the round-trip time, and after how long it sends again what was not acknowledged.
    pub fn set_round_trip(
        &mut self,
        _now: Instant,
        connection: ConnectionId,
        round_trip: Duration,
        probe_timeout: Duration,
    ) {
        if let Some(connection) = self.by_id(connection) {
            connection.probe.set_round_trip(round_trip, probe_timeout);
        }
    }

    /// The transport found out that nothing comes back: as if the session had asked and waited itself.
    pub fn path_suspect(&mut self, now: Instant, connection: ConnectionId) {
        let current = self.current.as_mut().filter(|current| current.id == connection && current.is_open());
        if let Some(current) = current.filter(|current| !current.probe.is_suspected()) {
            current.probe.suspect();
            self.suspect(now);
        }
    }

    /// The network is another one: asks at once whether the connection still works, and does not wait to reconnect.
    pub fn network_changed(&mut self, now: Instant) {
        let patience = self.config.suspect_after_change;
        for side in [Side::Current, Side::Next] {
            let id = self.requests.new_id();
            match self.connection_mut(side) {
                Some(connection) if connection.is_open() => connection.probe.start(now, id, patience),
                Some(connection) => connection.probe.expect_within(now, patience),
                None => {}
            }
        }
        self.hurry(now);
    }

    /// Asks the other side of the present connection for a sign of life: [`Event::RoundTrip`] follows. Nothing where
    /// there is no such connection.
    pub fn ping(&mut self, now: Instant) {
        let patience = self.config.suspect_after;
        let id = self.requests.new_id();
        if let Some(current) = self.current.as_mut().filter(|current| current.is_open()) {
            current.probe.start(now, id, patience);
        }
    }

    // What goes out.

    /// True where [`Session::poll_transmit_on`] has something for this connection.
    pub fn wants_transmit(&self, connection: ConnectionId) -> bool {
        if self.leaving.contains(&connection) {
            return true;
        }
        let Some(side) = self.side(connection) else { return false };
        if let State::Closing { done_sent, .. } = self.state {
            return !done_sent;
        }
        self.connection(side).is_some_and(|connection| connection.wants_transmit(&self.requests))
            || (!self.ephemeral.is_empty() && self.is_app_side(side))
    }

    /// The next frame for this connection. Each has its own back-pressure.
    pub fn poll_transmit_on(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        let control = |frame| Some(Transmit { connection, frame, datagram: false });
        if let Some(at) = self.leaving.iter().position(|leaving| *leaving == connection) {
            self.leaving.remove(at);
            self.release(connection);
            return control(ClientFrame::new(0, ClientBody::Done(Empty {})));
        }
        let side = self.side(connection)?;
        if let State::Closing { done_sent, .. } = &mut self.state {
            let first = !std::mem::replace(done_sent, true);
            return if first { control(ClientFrame::new(0, ClientBody::Done(Empty {}))) } else { None };
        }
        let of_side = match side {
            Side::Current => self.current.as_mut(),
            Side::Next => self.next.as_mut(),
        };
        if let Some(frame) = of_side.and_then(|of_side| of_side.poll_transmit(now, &mut self.requests)) {
            return control(frame);
        }
        if !self.is_app_side(side) {
            return None;
        }
        // Not behind `connect`: a datagram could overtake it.
        self.ephemeral.pop_front().map(|frame| Transmit { connection, frame, datagram: true })
    }

    /// The next frame for whichever connection, where all of them take what they are given.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        let ids = [self.current.as_ref(), self.next.as_ref()];
        let ids: Vec<ConnectionId> = ids.into_iter().flatten().map(|connection| connection.id).collect();
        let leaving = self.leaving.front().copied();
        ids.into_iter().chain(leaving).find_map(|id| self.poll_transmit_on(now, id))
    }

    // Inside.

    fn open(&mut self, now: Instant, id: ConnectionId, early: bool) {
        let side = match &self.state {
            State::Dialing => Side::Current,
            State::Waiting { not_before, .. } if now >= *not_before => Side::Current,
            State::Up if self.next.is_none() => Side::Next,
            _ => return self.release(id),
        };
        let stage = Stage::Opening {
            until: now + self.config.connect_timeout,
            request: self.requests.new_id(),
            connect: self.connecting(now),
            early,
            publications: Vec::new(),
        };
        let mut connection = Connection::new(now, id, stage, &self.config);
        match side {
            Side::Current => {
                connection.probe.expect_within(now, self.config.suspect_after);
                self.current = Some(connection);
                self.state = State::Up;
                self.ask_waiting(now, Side::Current);
                self.fill(now, Side::Current);
            }
            Side::Next => {
                self.next = Some(connection);
                self.begin_move(now);
            }
        }
    }

    /// What a connection opens with: the ticket, or the token.
    fn connecting(&mut self, now: Instant) -> Connecting {
        let about_moving =
            Connect { slot: self.slot(now).map(|slot| slot.to_string()), moves: true, ..Connect::default() };
        match self.tickets.offer(&mut self.rng) {
            Some(offer) => Connecting {
                key: Some(offer.key.clone()),
                repeated: offer.repeated,
                frame: Some(Connect {
                    token: None,
                    resume: Some(offer.ticket),
                    key: Some(offer.key),
                    ..about_moving
                }),
            },
            None => Connecting {
                key: None,
                repeated: false,
                frame: Some(Connect { token: self.token.clone(), ..about_moving }),
            },
        }
    }

    /// Puts all requests of the app into the lane.
    pub(super) fn fill(&mut self, now: Instant, side: Side) {
        let of_side = match side {
            Side::Current => self.current.as_mut(),
            Side::Next => self.next.as_mut(),
        };
        if let Some(connection) = of_side {
            connection.lane.fill(now, &self.requests);
        }
    }

    /// A connection ended.
    pub(super) fn end_connection(&mut self, now: Instant, side: Side, mut end: End) {
        let (code, policy) = (end.code, end.policy);
        let connection = self.connection(side);
        let refused = connection.is_some_and(Connection::is_resuming) && is_refusal(code);
        let elsewhere = self.tickets.may_be_elsewhere();
        if refused || policy == ReconnectPolicy::FreshToken {
            // The ticket stands for the same token.
            self.tickets.clear();
        }
        match side {
            Side::Next => {
                if let Cause::Deferred { after, ticket } = end.cause {
                    self.put_off_leaving(now, Hint::Later { after, ticket });
                }
                self.fail_move(now, code, end.reason);
            }
            Side::Current if self.next.is_some() => self.finish_move(now, false),
            Side::Current => {
                // By this client, where what it sent over a connection that it gave up arrived late.
                let was_ours =
                    policy == ReconnectPolicy::Never && code == CloseCode::Superseded.number() && elsewhere;
                let needs_none = policy == ReconnectPolicy::FreshToken && refused && self.token.is_none();
                if was_ours || needs_none {
                    end.set_policy(ReconnectPolicy::Now);
                }
                self.lose_all(now, end, refused);
            }
        }
    }

    pub(super) fn side(&self, id: ConnectionId) -> Option<Side> {
        let is = |connection: &Option<Connection>| connection.as_ref().is_some_and(|one| one.id == id);
        if is(&self.current) {
            Some(Side::Current)
        } else if is(&self.next) {
            Some(Side::Next)
        } else {
            None
        }
    }

    pub(super) fn connection(&self, side: Side) -> Option<&Connection> {
        match side {
            Side::Current => self.current.as_ref(),
            Side::Next => self.next.as_ref(),
        }
    }

    pub(super) fn connection_mut(&mut self, side: Side) -> Option<&mut Connection> {
        match side {
            Side::Current => self.current.as_mut(),
            Side::Next => self.next.as_mut(),
        }
    }

    fn by_id(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let side = self.side(id)?;
        self.connection_mut(side)
    }

    /// Where what the app asks goes first: the newest connection that is open.
    pub(super) fn app_side(&self) -> Side {
        if self.next.as_ref().is_some_and(Connection::is_open) { Side::Next } else { Side::Current }
    }

    fn is_app_side(&self, side: Side) -> bool {
        side == self.app_side() && self.connection(side).is_some_and(Connection::is_open)
    }

    /// The driver may close it; what is still reported of it counts no more.
    pub(super) fn release(&mut self, connection: ConnectionId) {
        self.forget(connection);
        self.events.push_back(Event::Release { connection });
    }

    pub(super) fn forget(&mut self, connection: ConnectionId) {
        if self.released.len() >= MAX_RELEASED {
            self.released.pop_front();
        }
        self.released.push_back(connection);
    }
}

/// True where a ticket will never be honoured.
fn is_refusal(code: u32) -> bool {
    [CloseCode::BadResume, CloseCode::ResumeExpired, CloseCode::ResumeForeign]
        .iter()
        .any(|refusal| refusal.number() == code)
}

/// Connections of the past whose end the driver may still report.
const MAX_RELEASED: usize = 8;
