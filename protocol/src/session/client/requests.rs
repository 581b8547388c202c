//! Sans-io: what a client asked and what was not answered yet; outlives connections. A [`Lane`] is one connection's share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::ChannelName;
use crate::frame::{
    ClientBody, ClientFrame, HistoryRequest, PresenceRequest, Publish, Refresh, Subscribe, Unsubscribe,
};

/// What was asked, with what is needed to ask again.
#[derive(Debug)]
pub(super) enum Request {
    Subscribe(ChannelName, Subscribe),
    Unsubscribe(ChannelName),
    Publish(Publish),
    History(HistoryRequest),
    Presence(PresenceRequest),
    Refresh(String),
}

impl Request {
    /// Made by the app: counts towards its bounds, is resolved by an event, and is asked again on other connections.
    /// The rest is of one connection.
    fn is_of_app(&self) -> bool {
        matches!(self, Self::Publish(_) | Self::History(_) | Self::Presence(_) | Self::Refresh(_))
    }

    fn weight(&self) -> usize {
        match self {
            Self::Publish(publish) => {
                let data = publish.data.as_ref().or(publish.data_base64.as_ref());
                data.map_or(0, bytes::Bytes::len) + 256
            }
            _ => 256,
        }
    }

    fn body(&self) -> ClientBody {
        match self {
            Self::Subscribe(_, subscribe) => ClientBody::Subscribe(subscribe.clone()),
            Self::Unsubscribe(channel) => {
                ClientBody::Unsubscribe(Unsubscribe { channel: channel.as_str().to_owned() })
            }
            Self::Publish(publish) => ClientBody::Publish(publish.clone()),
            Self::History(history) => ClientBody::History(history.clone()),
            Self::Presence(presence) => ClientBody::Presence(presence.clone()),
            Self::Refresh(token) => ClientBody::Refresh(Refresh { token: token.clone() }),
        }
    }
}

#[derive(Debug)]
struct Pending {
    request: Request,
    first_sent: Option<Instant>,
}

impl Pending {
    /// False for a publish whose key the server may have forgotten.
    fn is_repeatable(&self, now: Instant) -> bool {
        let is_publish = matches!(self.request, Request::Publish(_));
        let too_old = |at| now.saturating_duration_since(at) >= KEY_LIFETIME;
        !is_publish || !self.first_sent.is_some_and(too_old)
    }
}

#[derive(Debug)]
pub(super) struct Requests {
    next_id: u64,
    pending: BTreeMap<u64, Pending>,
    of_app: usize,
    bytes: usize,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self { next_id: 1, pending: BTreeMap::new(), of_app: 0, bytes: 0 }
    }

    /// The app's requests that wait.
    pub(super) fn of_app(&self) -> usize {
        self.of_app
    }

    /// About how much memory all of them hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// An id for a frame that is not kept here.
    pub(super) fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Keeps a request until it is answered.
    pub(super) fn add(&mut self, request: Request) -> u64 {
        let id = self.new_id();
        self.of_app += usize::from(request.is_of_app());
        self.bytes += request.weight();
        self.pending.insert(id, Pending { request, first_sent: None });
        id
    }

    /// The request that `id` answers; `None` for one that was answered before.
    pub(super) fn answer(&mut self, id: u64) -> Option<Request> {
        let pending = self.pending.remove(&id)?;
        self.of_app -= usize::from(pending.request.is_of_app());
        self.bytes -= pending.request.weight();
        Some(pending.request)
    }

    /// A connection is gone, and with it what was asked on it alone.
    pub(super) fn drop_lane(&mut self, lane: &Lane) {
        for id in lane.ids() {
            if self.pending.get(&id).is_some_and(|pending| !pending.request.is_of_app()) {
                self.answer(id);
            }
        }
    }

    /// The app's requests that can be asked no more: publishes whose keys the server may have forgotten, unless
    /// `lane` still waits for their answers.
    pub(super) fn take_unrepeatable(&mut self, now: Instant, lane: Option<&Lane>) -> Vec<(u64, Request)> {
        self.take_where(|id, pending| {
            !pending.is_repeatable(now) && !lane.is_some_and(|lane| lane.in_flight.contains(&id))
        })
    }

    /// Refreshes: without a connection the token serves the next one.
    pub(super) fn take_refreshes(&mut self) -> Vec<(u64, Request)> {
        self.take_where(|_, pending| matches!(pending.request, Request::Refresh(_)))
    }

    /// Everything that waits, at the session's end.
    pub(super) fn take_all(&mut self) -> Vec<(u64, Request)> {
        self.take_where(|_, _| true)
    }

    fn take_where(&mut self, which: impl Fn(u64, &Pending) -> bool) -> Vec<(u64, Request)> {
        let ids: Vec<u64> =
            self.pending.iter().filter(|(id, pending)| which(**id, pending)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.answer(id).map(|request| (id, request))).collect()
    }
}

/// What goes over one connection.
#[derive(Debug)]
pub(super) struct Lane {
    /// Right behind `connect`, whatever their number: the server reads them as it can.
    flight: VecDeque<u64>,
    /// To be sent within the limit, in this order.
    outbox: VecDeque<u64>,
    in_flight: BTreeSet<u64>,
    /// What is in flight, since the last probe, and since when.
    watched: VecDeque<(u64, Instant)>,
    max_in_flight: usize,
}

impl Lane {
    pub(super) fn new(max_in_flight: usize) -> Self {
        Self {
            flight: VecDeque::new(),
            outbox: VecDeque::new(),
            in_flight: BTreeSet::new(),
            watched: VecDeque::new(),
            max_in_flight,
        }
    }

    /// To be sent within the limit.
    pub(super) fn push(&mut self, id: u64) {
        self.outbox.push_back(id);
    }

    /// To be sent with `connect`.
    pub(super) fn push_in_flight_of_connect(&mut self, id: u64) {
        self.flight.push_back(id);
    }

    /// Puts every request of the app behind what is of this connection alone, in the order in which they were made.
    pub(super) fn fill(&mut self, now: Instant, requests: &Requests) {
        let pending = &requests.pending;
        self.outbox.retain(|id| pending.get(id).is_some_and(|pending| !pending.request.is_of_app()));
        let again = pending.iter().filter(|(id, pending)| {
            pending.request.is_of_app() && !self.in_flight.contains(id) && pending.is_repeatable(now)
        });
        self.outbox.extend(again.map(|(id, _)| *id));
    }

    /// What was handed out never arrived: it goes again. Only what belongs to `connect` was.
    pub(super) fn hand_out_again(&mut self) {
        let mut again: VecDeque<u64> = std::mem::take(&mut self.in_flight).into_iter().collect();
        again.append(&mut self.flight);
        self.flight = again;
        self.watched.clear();
    }

    /// True where this connection has sent the request and has no answer.
    pub(super) fn waits_for(&self, id: u64) -> bool {
        self.in_flight.contains(&id)
    }

    /// An answer came over this connection.
    pub(super) fn handle_answer(&mut self, id: u64) {
        self.in_flight.remove(&id);
        while self.watched.front().is_some_and(|(id, _)| !self.in_flight.contains(id)) {
            self.watched.pop_front();
        }
    }

    /// Since when the oldest request waits that no probe asked about.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.watched.front().map(|(_, at)| *at)
    }

    /// A probe asks about all of them.
    pub(super) fn stop_watching(&mut self) {
        self.watched.clear();
    }

    /// True where [`Lane::poll_transmit`] has something.
    pub(super) fn wants_transmit(&self, requests: &Requests, only_flight: bool) -> bool {
        let waits = |queue: &VecDeque<u64>| queue.iter().any(|id| requests.pending.contains_key(id));
        waits(&self.flight)
            || (!only_flight && self.in_flight.len() < self.max_in_flight && waits(&self.outbox))
    }

    /// The next frame, unless as many as the server reads are in flight.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        requests: &mut Requests,
        only_flight: bool,
    ) -> Option<ClientFrame> {
        loop {
            let id = match self.flight.pop_front() {
                Some(id) => id,
                None if !only_flight && self.in_flight.len() < self.max_in_flight => {
                    self.outbox.pop_front()?
                }
                None => return None,
            };
            // Answered meanwhile: nothing to send.
            let Some(pending) = requests.pending.get_mut(&id) else { continue };
            pending.first_sent.get_or_insert(now);
            self.in_flight.insert(id);
            self.watched.push_back((id, now));
            return Some(ClientFrame::new(id, pending.request.body()));
        }
    }

    fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.flight.iter().chain(&self.outbox).chain(&self.in_flight).copied()
    }
}

/// The server remembers keys for five minutes: a publish that was first sent longer ago might be stored twice.
const KEY_LIFETIME: Duration = Duration::from_secs(240);
