//! Sans-io: the edge's half of a session: handshake, requests, subscriptions, heartbeat, token expiry.
//!
//! The driver feeds frames, answers and `now`; it drains [`Session::poll_transmit`] (frames for the control lane) and
//! [`Session::poll_event`] (what to ask of the core or of the authenticator). Publications do not pass through here:
//! the driver asks [`Session::take`] which of them a subscription is due, and sends shared bytes.

mod border;
mod door;
mod goaway;
mod leaving;
mod plan;
mod presence;
mod resume;
mod sizes;
mod subscriptions;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::frame::{
    ClientBody, ClientFrame, Close, CloseCode, Connect, Connected, Empty, ErrorCode, ErrorReply, History,
    HistoryRequest, Payload, Publication, Publish, Published, Refreshed, ServerBody, ServerFrame, Subscribe,
    Subscribed, Unsubscribe, Unsubscribed,
};
use crate::grants::Identity;
use crate::link::{self, LinkError, Recovery};
use crate::namespace::Namespace;
use crate::{ChannelName, Epoch, Offset, Position, SessionId};

use door::Knocking;
use leaving::Leaving;
use plan::Place;
use resume::Tickets;
use subscriptions::{Origin, State as SubscriptionState, Subscriptions};

pub use border::{Event, SessionError, Settings};
pub use door::refusal;
pub use resume::Resumption;
pub use subscriptions::Due;

/// ```text
///             connect              admit,         last server-side subscription begun
///                                  resume         and ticket issued
/// Awaiting ───────────► Checking ─────────► Opening ─────────────► Open
///     └───► Knocking ──────┘ let in
///     │ timeout            │ refuse            │                     │ done, expiry, no pong, error
///     └────────────────────┴───────────────────┴─────────► Ended ◄──┘
/// ```
#[derive(Debug)]
enum State {
    /// No `connect` yet. A token that came before it (header, query) was already checked.
    Awaiting { until: Instant, identity: Option<Box<Identity>> },
    /// The driver is asking whether the client may come in.
    Knocking(Box<Knocking>),
    /// The driver is checking the token, or the core whether the ticket is spent: that should not take longer.
    Checking { id: u64, answer_by: Option<Instant> },
    /// Server-side subscriptions begin and the ticket is sealed; `connected` waits for them.
    Opening { identity: Box<Identity>, connected: Box<(u64, Connected)>, waiting: usize },
    /// Serving.
    Open { identity: Box<Identity>, heartbeat: Heartbeat },
    /// Over.
    Ended,
}

#[derive(Debug, Clone, Copy)]
enum Heartbeat {
    /// Nothing outstanding; ping then.
    PingAt(Instant),
    /// Pinged; a pong by then.
    PongBy(Instant),
    /// This transport needs none; what is new is told then.
    News(Instant),
}

/// The edge's half of one session.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
    id: SessionId,
    /// Which of the session's connections this is: grows with every resume.
    generation: u32,
    tickets: Tickets,
    state: State,
    heartbeats: bool,
    /// The client takes publications from datagrams.
    repeats: bool,
    /// It does what `goaway` asks.
    moves: bool,
    slot: Option<Box<str>>,
    /// Whether it may come in is not decided yet.
    asks_first: bool,
    /// It was asked to move, and is closed then.
    leave_by: Option<Instant>,
    place: Place,
    /// Questions to the driver or the core that are not answered, also those whose answer nobody waits for any more:
    /// what a client can pile up there is bounded, whatever it does.
    in_flight: usize,
    leaving: Option<Leaving>,
    asks: u32,
    subscriptions: Subscriptions,
    transmits: VecDeque<ServerFrame>,
    events: VecDeque<Event>,
}

impl Session {
    /// A session whose connection has just opened. `identity` where a token came before the first frame and was
    /// found valid; `heartbeats` where the transport needs pings.
    pub fn new(
        now: Instant,
        settings: Arc<Settings>,
        id: SessionId,
        identity: Option<Identity>,
        heartbeats: bool,
    ) -> Self {
        let until = now + settings.connect_timeout;
        Self {
            settings,
            id,
            generation: 0,
            tickets: Tickets::Off,
            state: State::Awaiting { until, identity: identity.map(Box::new) },
            heartbeats,
            repeats: false,
            moves: false,
            slot: None,
            asks_first: false,
            leave_by: None,
            place: Place::default(),
            in_flight: 0,
            leaving: None,
            asks: 0,
            subscriptions: Subscriptions::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Its id; another one once it resumed an earlier session.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// True once over.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// True where the client said that it takes publications from datagrams too.
    pub fn takes_repeats(&self) -> bool {
        self.repeats
    }

    /// True between admission and `connected`: publications wait too, since `connected` comes first.
    pub fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening { .. })
    }

    /// False while as many questions wait for the core as may, or the last ones: read nothing more from the client then.
    pub fn wants_input(&self) -> bool {
        self.in_flight < self.settings.max_requests
            && self.leaving.is_none()
            && match &self.state {
                State::Knocking(_) | State::Checking { .. } | State::Ended => false,
                // What comes behind a resume may take over what the token lists, once that has begun.
                State::Opening { connected, .. } => !connected.1.resumed,
                State::Awaiting { .. } | State::Open { .. } => true,
            }
    }

    /// Takes a frame of the control lane.
    pub fn handle_frame(&mut self, now: Instant, frame: ClientFrame) -> Result<(), SessionError> {
        let ClientFrame { id, body } = frame;
        let body = body.ok_or(SessionError::UnknownFrame)?;
        match &mut self.state {
            State::Ended => return Ok(()),
            State::Awaiting { identity, .. } => {
                let identity = identity.take();
                let ClientBody::Connect(connect) = body else { return Err(SessionError::NotConnected) };
                self.connect(now, id, identity, connect);
                return Ok(());
            }
            State::Knocking(_) | State::Checking { .. } => return Err(SessionError::AlreadyConnected),
            State::Opening { .. } | State::Open { .. } => {}
        }
        match body {
            ClientBody::Connect(_) => return Err(SessionError::AlreadyConnected),
            ClientBody::Subscribe(body) => self.subscribe(id, body),
            ClientBody::Unsubscribe(body) => self.unsubscribe(now, id, body),
            ClientBody::Publish(body) => self.publish(id, body),
            ClientBody::History(body) => self.read_history(id, body),
            ClientBody::Presence(body) => self.ask_presence(id, &body),
            ClientBody::Rpc(_) => {
                self.fail(id, ErrorCode::NotAvailable, "this server has no backend to call")
            }
            ClientBody::Refresh(body) => {
                if body.token.len() > self.settings.max_token {
                    self.fail(id, ErrorCode::TooLarge, "the token is over the limit");
                } else {
                    self.in_flight += 1;
                    self.events.push_back(Event::Refresh { id, token: body.token });
                }
            }
            ClientBody::Pong(_) => {
                if let State::Open { heartbeat: heartbeat @ Heartbeat::PongBy(_), .. } = &mut self.state {
                    *heartbeat = Heartbeat::PingAt(now + self.settings.ping);
                }
            }
            ClientBody::Ping(_) => self.transmits.push_back(ServerFrame::new(id, ServerBody::Pong(Empty {}))),
            ClientBody::Done(_) => self.end(CloseCode::Done, "the client is done"),
        }
        Ok(())
    }

    /// Takes a frame that came by datagram: only ephemeral publishes may.
    pub fn handle_datagram(&mut self, now: Instant, frame: ClientFrame) -> Result<(), SessionError> {
        match (&self.state, &frame.body) {
            // Overtook `connect`, or came too late: at most once, so nothing is owed.
            (State::Awaiting { .. } | State::Knocking(_) | State::Checking { .. } | State::Ended, _) => {
                Ok(())
            }
            (_, Some(ClientBody::Publish(publish))) if publish.ephemeral => self.handle_frame(now, frame),
            _ => Err(SessionError::BadDatagram),
        }
    }

    /// The next instant at which [`Session::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = [
            self.own_timeout(),
            self.tickets_timeout(),
            self.goaway_timeout(),
            self.renewal_timeout(),
            self.leaving_timeout(),
        ];
        own.into_iter().flatten().min()
    }

    fn own_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Awaiting { until, .. } => Some(*until),
            State::Knocking(_) | State::Checking { .. } | State::Ended => None,
            State::Opening { identity, .. } => identity.expires,
            State::Open { identity, heartbeat } => {
                let heartbeat = match heartbeat {
                    Heartbeat::PingAt(at) | Heartbeat::PongBy(at) => Some(*at),
                    Heartbeat::News(at) => self.plan_epoch().map(|_| *at),
                };
                heartbeat.into_iter().chain(identity.expires).min()
            }
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let expired = |identity: &Identity| identity.expires.is_some_and(|at| at <= now);
        let reads = self.wants_input();
        self.tend_tickets(now);
        self.tend_goaway(now);
        self.tend_renewal(now);
        self.end_if_left(Some(now));
        match &mut self.state {
            State::Awaiting { until, .. } if *until <= now => {
                self.end(CloseCode::ConnectTimeout, "no connect frame in time");
            }
            State::Opening { identity, .. } | State::Open { identity, .. } if expired(identity) => {
                self.end(CloseCode::TokenExpired, "the token expired");
            }
            State::Open { heartbeat, .. } => match *heartbeat {
                Heartbeat::PingAt(at) if at <= now => {
                    *heartbeat = Heartbeat::PongBy(now + self.settings.pong);
                    let plan = self.untold_plan();
                    self.ping_aside(now, None, plan);
                }
                Heartbeat::News(at) if at <= now => {
                    *heartbeat = Heartbeat::News(now + self.settings.ping);
                    self.tell_plan_first(now);
                }
                // The pong may be there, unread: the core is slow then, not the client.
                Heartbeat::PongBy(by) if by <= now && !reads => {
                    *heartbeat = Heartbeat::PongBy(now + self.settings.pong);
                }
                Heartbeat::PongBy(by) if by <= now => {
                    self.end(CloseCode::HeartbeatTimeout, "no pong in time")
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// The next frame for the control lane.
    pub fn poll_transmit(&mut self) -> Option<ServerFrame> {
        // `connected` comes first, also where a request behind it was refused at once.
        if matches!(self.state, State::Opening { .. }) {
            return None;
        }
        self.end_if_left(None);
        let frame = self.transmits.pop_front();
        if self.transmits.is_empty() {
            self.transmits = VecDeque::new();
        }
        frame
    }

    /// The next thing for the driver to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() {
            // An idle session holds no buffers.
            self.events = VecDeque::new();
        }
        event
    }

    /// The token was found valid, or anonymous sessions are allowed.
    pub fn admit(&mut self, now: Instant, identity: Identity) {
        let State::Checking { id, .. } = self.state else { return };
        self.open(now, id, identity, false);
    }

    fn open(&mut self, now: Instant, id: u64, identity: Identity, resumed: bool) {
        let connected = Connected {
            session: self.id.to_string(),
            resume: None,
            user: identity.user.as_deref().map(str::to_owned),
            ping_ms: millis(self.settings.ping),
            node: self.settings.node.as_str().to_owned(),
            region: self.settings.region.as_str().to_owned(),
            expires_ms: expires_ms(now, &identity),
            subscriptions: Vec::new(),
            resumed,
            plan: self.untold_plan(),
        };
        let mut waiting = 0;
        for channel in identity.subscriptions.iter().take(self.settings.max_subscriptions) {
            if self.settings.namespaces.rules(channel).is_none() || self.subscriptions.find(channel).is_some()
            {
                continue;
            }
            let ask = self.next_ask();
            let slot = self.subscriptions.insert(channel.clone(), Origin::Token, ask, 0);
            let channel = channel.clone();
            let asking = Event::Subscribe { slot, ask, begins: true, channel, position: None, rank: 0 };
            self.events.push_back(asking);
            waiting += 1;
        }
        self.in_flight += waiting;
        waiting += self.begin_tickets();
        self.state =
            State::Opening { identity: Box::new(identity), connected: Box::new((id, connected)), waiting };
        self.open_when_ready(now);
    }

    /// The session may not open.
    pub fn refuse(&mut self, code: CloseCode, reason: &str) {
        self.end(code, reason);
    }

    /// The connection is gone: nothing more is said.
    pub fn abandon(&mut self) {
        self.state = State::Ended;
        self.transmits.clear();
        self.events.clear();
    }

    /// Ends the session from the server's side: a `close` frame, then [`Event::End`].
    pub fn end(&mut self, code: CloseCode, reason: &str) {
        self.end_with(code.frame(reason), code, reason.to_owned());
    }

    /// The core answered a subscribe (or the refill of a parked subscription).
    ///
    /// Returns what goes on the subscription's catch-up lane, in order, behind the frame that this queued.
    /// `budget` bounds their payload bytes, and those inside the frame: what is over it, or was not in the answer, is
    /// fetched later, as if the subscription were parked.
    pub fn recovered(
        &mut self,
        now: Instant,
        slot: u32,
        ask: u32,
        result: Result<Recovery, LinkError>,
        budget: usize,
    ) -> Vec<Publication> {
        self.in_flight -= 1;
        let settings = Arc::clone(&self.settings);
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Vec::new() };
        let begun = match subscription.state {
            SubscriptionState::Starting { origin, ask: current } if current == ask => Some(origin),
            SubscriptionState::Refilling { ask: current } if current == ask => None,
            // An older question, about a subscription that is gone.
            _ => return Vec::new(),
        };
        let recovery = match result {
            Ok(recovery) => recovery,
            Err(error) => {
                self.subscription_failed(now, slot, begun, error);
                return Vec::new();
            }
        };
        let cut = recovery.cut_at().is_some();
        let Recovery { position, recovered, mut publications } = recovery;
        let conflated = settings.namespaces.rules(&subscription.channel).is_some_and(|rules| rules.conflate);
        subscription.epoch = position.epoch.clone();
        subscription.state = SubscriptionState::Live { last: position.offset };
        let inline = match begun {
            Some(_) => sizes::split_at(&mut publications, INLINE_BYTES.min(budget)),
            None => Vec::new(),
        };
        let over = sizes::cut_over(&mut publications, budget);
        if over || cut {
            let last =
                publications.last().or_else(|| inline.last()).map_or(Offset(0), |last| Offset(last.offset));
            subscription.state = SubscriptionState::Parked { last };
        }
        let channel = subscription.channel.clone();
        let subscribed = Subscribed {
            channel: channel.as_str().to_owned(),
            position: Some(position.into()),
            recovered,
            publications: inline,
            conflated,
        };
        if begun.is_some() {
            self.begin_presence(slot);
        }
        match begun {
            Some(Origin::Client { id }) => {
                self.transmits.push_back(ServerFrame::new(id, ServerBody::Subscribed(subscribed)));
            }
            Some(Origin::Token) => {
                if let State::Opening { connected, waiting, .. } = &mut self.state {
                    connected.1.subscriptions.push(subscribed);
                    *waiting -= 1;
                    self.open_when_ready(now);
                } else {
                    self.transmits.push_back(ServerFrame::new(0, ServerBody::Subscribed(subscribed)));
                }
            }
            None if recovered => {}
            None => self.transmits.push_back(ServerFrame::new(0, ServerBody::Subscribed(subscribed))),
        }
        publications
    }

    /// The core answered a publish.
    pub fn published(&mut self, id: u64, channel: &ChannelName, result: Result<Option<Position>, LinkError>) {
        self.in_flight -= 1;
        match result {
            Ok(position) => self.reply(
                id,
                ServerBody::Published(Published {
                    channel: channel.as_str().to_owned(),
                    position: position.map(Into::into),
                }),
            ),
            Err(error) => self.fail(id, error.code, error.message),
        }
    }

    /// The core answered a history request.
    pub fn history(&mut self, id: u64, channel: &ChannelName, result: Result<Recovery, LinkError>) {
        self.in_flight -= 1;
        match result {
            Ok(mut recovery) => {
                let whole = sizes::keep_newest(&mut recovery.publications, HISTORY_BYTES);
                self.reply(
                    id,
                    ServerBody::History(History {
                        channel: channel.as_str().to_owned(),
                        position: Some(recovery.position.into()),
                        recovered: recovery.recovered && whole,
                        publications: recovery.publications,
                    }),
                );
            }
            Err(error) => self.fail(id, error.code, error.message),
        }
    }

    /// The new token was checked. Subscriptions that it no longer grants end.
    pub fn refreshed(&mut self, now: Instant, id: u64, result: Result<Identity, String>) {
        self.in_flight -= 1;
        let (State::Open { identity, .. } | State::Opening { identity, .. }) = &mut self.state else {
            return;
        };
        let new = match result {
            Ok(new) if new.user == identity.user => new,
            Ok(_) => return self.fail(id, ErrorCode::Unauthorized, "the new token is another user's"),
            Err(message) => return self.fail(id, ErrorCode::Unauthorized, message),
        };
        let expires_ms = expires_ms(now, &new);
        **identity = new;
        let identity = &**identity;
        let namespaces = &self.settings.namespaces;
        let revoked = self.subscriptions.slots_where(|channel| {
            !namespaces.rules(channel).is_some_and(|rules| identity.may_subscribe(channel, rules))
        });
        for slot in revoked {
            let error = ErrorCode::Forbidden.reply("the new token does not grant this channel");
            self.drop_subscription(now, slot, Some(error));
        }
        self.end_watches();
        self.reply(id, ServerBody::Refreshed(Refreshed { expires_ms }));
        self.renew_ticket(now);
    }

    /// Which of a channel's publications `first..=last` the subscription is due now; the driver sends or queues
    /// exactly those.
    pub fn take(&mut self, slot: u32, first: Offset, last: Offset) -> Due {
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Due::Nothing };
        match subscription.take(first, last) {
            // What was between does not count there.
            Due::Gap if is_conflated(&self.settings, &subscription.channel) => {
                subscription.state = SubscriptionState::Live { last };
                Due::All
            }
            due => due,
        }
    }

    /// True where ephemeral items may go to the subscription now.
    pub fn is_live(&self, slot: u32) -> bool {
        self.subscriptions.get(slot).is_some_and(|s| matches!(s.state, SubscriptionState::Live { .. }))
    }

    /// True where something that the subscription missed waits in history.
    pub fn is_parked(&self, slot: u32) -> bool {
        self.subscriptions.get(slot).is_some_and(|s| matches!(s.state, SubscriptionState::Parked { .. }))
    }

    /// The subscription's queue hit its bound and was dropped: nothing after `last` was handed to the transport.
    pub fn park(&mut self, slot: u32, last: Offset) {
        if let Some(subscription) = self.subscriptions.get_mut(slot) {
            subscription.state = SubscriptionState::Parked { last };
        }
    }

    /// The client has drained what was queued: begins to fetch what a parked subscription missed. False where the
    /// subscription is not parked.
    pub fn refill(&mut self, slot: u32) -> bool {
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return false };
        let SubscriptionState::Parked { last } = subscription.state else { return false };
        self.asks = self.asks.wrapping_add(1);
        let ask = self.asks;
        self.in_flight += 1;
        subscription.state = SubscriptionState::Refilling { ask };
        let position = Some(Position::new(subscription.epoch.clone(), last));
        let (channel, rank) = (subscription.channel.clone(), subscription.rank);
        self.events.push_back(Event::Subscribe { slot, ask, begins: false, channel, position, rank });
        true
    }

    /// The numbering of a channel began anew: the subscriber is told. True where it had begun: what is queued for it
    /// is of the old numbering then.
    pub fn rebased(&mut self, slot: u32, position: &Position) -> bool {
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return false };
        match subscription.state {
            SubscriptionState::Starting { .. } => return false,
            // It began behind the change that others hear of only now.
            SubscriptionState::Live { last }
                if last == position.offset && subscription.epoch == position.epoch =>
            {
                return false;
            }
            _ => {}
        }
        subscription.epoch = position.epoch.clone();
        subscription.state = SubscriptionState::Live { last: position.offset };
        let conflated = is_conflated(&self.settings, &subscription.channel);
        let subscribed = Subscribed {
            channel: subscription.channel.as_str().to_owned(),
            position: Some(position.clone().into()),
            recovered: false,
            publications: Vec::new(),
            conflated,
        };
        self.transmits.push_back(ServerFrame::new(0, ServerBody::Subscribed(subscribed)));
        true
    }

    /// The epoch of what a subscription is delivered; the one that stands for any before it has begun.
    pub fn epoch(&self, slot: u32) -> Option<&Epoch> {
        self.subscriptions.get(slot).map(|subscription| &subscription.epoch)
    }

    /// The channel of a subscription and whether only its newest publication counts.
    pub fn subscription(&self, slot: u32) -> Option<(&ChannelName, bool)> {
        let subscription = self.subscriptions.get(slot)?;
        Some((&subscription.channel, is_conflated(&self.settings, &subscription.channel)))
    }

    /// The rank of a subscription.
    pub fn rank(&self, slot: u32) -> i8 {
        self.subscriptions.get(slot).map_or(0, |subscription| subscription.rank)
    }

    fn connect(&mut self, now: Instant, id: u64, identity: Option<Box<Identity>>, mut connect: Connect) {
        self.repeats = connect.repeats;
        if !self.note_moving(&mut connect) {
            return;
        }
        if self.asks_first {
            self.knock(id, identity, connect)
        } else {
            self.check(now, id, identity, connect)
        }
    }

    fn check(&mut self, now: Instant, id: u64, identity: Option<Box<Identity>>, connect: Connect) {
        if let Some(ticket) = connect.resume {
            // What a token beside it says does not count.
            return self.resume_with(now, id, ticket, connect.key);
        }
        self.state = State::Checking { id, answer_by: None };
        match (identity, connect.token) {
            (_, Some(token)) if token.len() > self.settings.max_token => {
                self.end(CloseCode::Unauthorized, "the token is over the limit");
            }
            (None, None) if !self.settings.anonymous => {
                self.end(
                    CloseCode::Unauthorized,
                    "a token is needed: in connect, the Authorization header or ?token=",
                );
            }
            (Some(identity), None) => self.admit(now, *identity),
            (_, token) => self.events.push_back(Event::Authenticate { token }),
        }
    }

    fn open_when_ready(&mut self, now: Instant) {
        let State::Opening { waiting: 0, .. } = &self.state else { return };
        let State::Opening { identity, connected, .. } = std::mem::replace(&mut self.state, State::Ended)
        else {
            return;
        };
        let heartbeat = if self.heartbeats { Heartbeat::PingAt } else { Heartbeat::News };
        let heartbeat = heartbeat(now + self.settings.ping);
        self.state = State::Open { identity, heartbeat };
        self.begin_aging(now);
        let (id, connected) = *connected;
        self.transmits.push_front(ServerFrame::new(id, ServerBody::Connected(connected)));
        self.events.push_back(Event::Opened);
    }

    fn identity(&self) -> Option<&Identity> {
        match &self.state {
            State::Opening { identity, .. } | State::Open { identity, .. } => Some(identity),
            _ => None,
        }
    }

    /// The channel by name, and its rules; the error reply is queued where it is not to be had.
    fn channel(
        &mut self,
        id: u64,
        name: &str,
        allowed: impl Fn(&Identity, &ChannelName, &Namespace) -> bool,
        doing: &str,
    ) -> Option<ChannelName> {
        let channel = match ChannelName::new(name) {
            Ok(channel) => channel,
            Err(error) => {
                self.fail(id, ErrorCode::BadRequest, error.to_string());
                return None;
            }
        };
        let Some(rules) = self.settings.namespaces.rules(&channel) else {
            self.fail(id, ErrorCode::NotFound, format!("unknown namespace `{}`", channel.namespace()));
            return None;
        };
        if !self.identity().is_some_and(|identity| allowed(identity, &channel, rules)) {
            self.fail(id, ErrorCode::Forbidden, format!("not allowed to {doing} this channel"));
            return None;
        }
        Some(channel)
    }

    fn subscribe(&mut self, id: u64, subscribe: Subscribe) {
        let Some(channel) = self.channel(id, &subscribe.channel, Identity::may_subscribe, "subscribe to")
        else {
            return;
        };
        let Ok(rank) = i8::try_from(subscribe.rank) else {
            return self.fail(id, ErrorCode::BadRequest, "a rank is from -128 to 127");
        };
        let Some(position) = self.position(id, subscribe.position) else { return };
        if subscribe.presence && !self.check_presence(id, &channel) {
            return;
        }
        let ask = self.next_ask();
        let mut begins = true;
        let slot = match self.subscriptions.find(&channel) {
            Some(slot) => {
                let existing = self.subscriptions.get_mut(slot).expect("found just now");
                // A server-side subscription may be taken up with a position, once it is live.
                let restart =
                    existing.server_side && !matches!(existing.state, SubscriptionState::Starting { .. });
                if !restart {
                    return self.fail(id, ErrorCode::Conflict, "already subscribed to this channel");
                }
                existing.server_side = false;
                existing.rank = rank;
                existing.state = SubscriptionState::Starting { origin: Origin::Client { id }, ask };
                begins = false;
                slot
            }
            None if self.subscriptions.len() >= self.settings.max_subscriptions => {
                let limit = self.settings.max_subscriptions;
                return self.fail(
                    id,
                    ErrorCode::TooMany,
                    format!("a session has at most {limit} subscriptions"),
                );
            }
            None => self.subscriptions.insert(channel.clone(), Origin::Client { id }, ask, rank),
        };
        self.in_flight += 1;
        if let Some(subscription) = self.subscriptions.get_mut(slot) {
            subscription.watches = subscribe.presence;
        }
        self.events.push_back(Event::Subscribe { slot, ask, begins, channel, position, rank });
    }

    fn unsubscribe(&mut self, now: Instant, id: u64, unsubscribe: Unsubscribe) {
        let slot =
            ChannelName::new(&unsubscribe.channel).ok().and_then(|channel| self.subscriptions.find(&channel));
        let Some(slot) = slot else {
            return self.fail(id, ErrorCode::NotFound, "not subscribed to this channel");
        };
        self.drop_subscription(now, slot, None);
        self.reply(id, ServerBody::Unsubscribed(Unsubscribed { channel: unsubscribe.channel, error: None }));
    }

    fn publish(&mut self, id: u64, publish: Publish) {
        let Some(channel) = self.channel(id, &publish.channel, Identity::may_publish, "publish to") else {
            return;
        };
        let Some(payload) = Payload::from_fields(publish.data, publish.data_base64) else {
            return self.fail(id, ErrorCode::BadRequest, "a publish has exactly one of data and data_base64");
        };
        if payload.len() > self.settings.max_payload {
            let limit = self.settings.max_payload;
            return self.fail(id, ErrorCode::TooLarge, format!("a payload has at most {limit} bytes"));
        }
        if publish.key.as_ref().is_some_and(|key| key.len() > MAX_KEY_BYTES) {
            return self.fail(id, ErrorCode::TooLarge, format!("a key has at most {MAX_KEY_BYTES} bytes"));
        }
        let user = self.identity().and_then(|identity| identity.user.clone());
        self.in_flight += 1;
        let publish =
            link::Publish { channel, payload, key: publish.key, user, ephemeral: publish.ephemeral };
        self.events.push_back(Event::Publish { id, publish });
    }

    fn read_history(&mut self, id: u64, request: HistoryRequest) {
        let Some(channel) = self.channel(id, &request.channel, Identity::may_subscribe, "read") else {
            return;
        };
        let Some(since) = self.position(id, request.since) else { return };
        self.in_flight += 1;
        self.events.push_back(Event::History { id, channel, since, limit: request.limit });
    }

    /// The position, parsed; `None` where it is malformed and the error reply is queued.
    #[expect(clippy::option_option, reason = "outer: refused; inner: none was given")]
    fn position(&mut self, id: u64, position: Option<crate::frame::Position>) -> Option<Option<Position>> {
        match position {
            Some(position) if position.epoch.len() > Epoch::MAX_BYTES => {
                self.fail(
                    id,
                    ErrorCode::BadRequest,
                    format!("an epoch has at most {} bytes", Epoch::MAX_BYTES),
                );
                None
            }
            position => Some(position.map(Into::into)),
        }
    }

    fn subscription_failed(&mut self, now: Instant, slot: u32, begun: Option<Origin>, error: LinkError) {
        if let Some(Origin::Client { id }) = begun {
            // Answered by the error: nothing is left to be told when the slot goes.
            self.forget(slot);
            return self.fail(id, error.code, error.message);
        }
        self.drop_subscription(now, slot, Some(error.code.reply(error.message)));
    }

    /// Takes a subscription away; with an error the client is told. One that had not begun is answered first.
    fn drop_subscription(&mut self, now: Instant, slot: u32, error: Option<ErrorReply>) {
        let Some(removed) = self.forget(slot) else { return };
        let channel = removed.channel.as_str().to_owned();
        if let SubscriptionState::Starting { origin, .. } = removed.state {
            match (origin, &mut self.state) {
                (Origin::Client { id }, _) => {
                    self.fail(id, ErrorCode::NotFound, "unsubscribed before it began")
                }
                (Origin::Token, State::Opening { waiting, .. }) => {
                    *waiting -= 1;
                    self.open_when_ready(now);
                }
                (Origin::Token, _) => {}
            }
        }
        if error.is_some() {
            self.transmits
                .push_back(ServerFrame::new(0, ServerBody::Unsubscribed(Unsubscribed { channel, error })));
        }
    }

    fn forget(&mut self, slot: u32) -> Option<subscriptions::Subscription> {
        let removed = self.subscriptions.remove(slot)?;
        self.events.push_back(Event::Unsubscribe { slot, channel: removed.channel.clone() });
        Some(removed)
    }

    fn next_ask(&mut self) -> u32 {
        self.asks = self.asks.wrapping_add(1);
        self.asks
    }

    fn reply(&mut self, id: u64, body: ServerBody) {
        // Without an id, no reply is wanted (PROTOCOL §3).
        if id != 0 {
            self.transmits.push_back(ServerFrame::new(id, body));
        }
    }

    fn fail(&mut self, id: u64, code: ErrorCode, message: impl Into<String>) {
        self.transmits.push_back(ServerFrame::new(id, ServerBody::Error(code.reply(message))));
    }
}

impl Close {
    /// Its code, where this version knows it.
    pub fn close_code(&self) -> Option<CloseCode> {
        CloseCode::from_number(self.code)
    }
}

/// Whether only a channel's newest publication counts.
fn is_conflated(settings: &Settings, channel: &ChannelName) -> bool {
    settings.namespaces.rules(channel).is_some_and(|rules| rules.conflate)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn expires_ms(now: Instant, identity: &Identity) -> Option<u64> {
    identity.expires.map(|at| millis(at.saturating_duration_since(now)))
}

/// The longest idempotency key, bytes.
const MAX_KEY_BYTES: usize = 128;
/// Missed publications inside a `subscribed` frame, encoded.
const INLINE_BYTES: usize = 64 << 10;
/// A `history` reply, encoded.
const HISTORY_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests;
