//! Sans-io: what a client asked and what was not answered yet; outlives connections.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::ChannelName;
use crate::frame::{ClientBody, ClientFrame, HistoryRequest, Publish, Refresh, Subscribe, Unsubscribe};

/// What was asked, with what is needed to ask again.
#[derive(Debug)]
pub(super) enum Request {
    Subscribe(ChannelName, Subscribe),
    Unsubscribe(ChannelName),
    Publish(Publish),
    History(HistoryRequest),
    Refresh(String),
}

impl Request {
    /// Made by the app: counts towards its bounds and is resolved by an event.
    fn is_of_app(&self) -> bool {
        matches!(self, Self::Publish(_) | Self::History(_) | Self::Refresh(_))
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
            Self::Refresh(token) => ClientBody::Refresh(Refresh { token: token.clone() }),
        }
    }
}

#[derive(Debug)]
struct Pending {
    request: Request,
    /// On the present connection.
    sent: bool,
    first_sent: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Requests {
    next_id: u64,
    pending: BTreeMap<u64, Pending>,
    /// To be sent on the present connection, in this order.
    outbox: VecDeque<u64>,
    in_flight: usize,
    max_in_flight: usize,
    of_app: usize,
    bytes: usize,
}

impl Requests {
    pub(super) fn new(max_in_flight: usize) -> Self {
        Self {
            next_id: 1,
            pending: BTreeMap::new(),
            outbox: VecDeque::new(),
            in_flight: 0,
            max_in_flight,
            of_app: 0,
            bytes: 0,
        }
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

    /// Keeps a request until it is answered; `send` it on the present connection, if there is one.
    pub(super) fn add(&mut self, request: Request, send: bool) -> u64 {
        let id = self.new_id();
        self.of_app += usize::from(request.is_of_app());
        self.bytes += request.weight();
        self.pending.insert(id, Pending { request, sent: false, first_sent: None });
        if send {
            self.outbox.push_back(id);
        }
        id
    }

    /// The request that `id` answers; `None` for one that was answered before.
    pub(super) fn answer(&mut self, id: u64) -> Option<Request> {
        let pending = self.pending.remove(&id)?;
        self.in_flight -= usize::from(pending.sent);
        self.of_app -= usize::from(pending.request.is_of_app());
        self.bytes -= pending.request.weight();
        Some(pending.request)
    }

    /// True where [`Requests::poll_transmit`] has something.
    pub(super) fn wants_transmit(&self) -> bool {
        self.in_flight < self.max_in_flight && self.outbox.iter().any(|id| self.pending.contains_key(id))
    }

    /// The next frame, unless as many as the server reads are in flight.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<ClientFrame> {
        while self.in_flight < self.max_in_flight {
            let id = self.outbox.pop_front()?;
            // Answered meanwhile: nothing to send.
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            pending.sent = true;
            pending.first_sent.get_or_insert(now);
            self.in_flight += 1;
            return Some(ClientFrame::new(id, pending.request.body()));
        }
        None
    }

    /// Puts what waits behind what is in the outbox: a connection begins.
    pub(super) fn send_again(&mut self) {
        self.outbox.extend(
            self.pending.iter().filter(|(_, pending)| pending.request.is_of_app()).map(|(id, _)| *id),
        );
        // Those that were asked for this connection already stand before them.
        let mut seen = std::collections::BTreeSet::new();
        self.outbox.retain(|id| seen.insert(*id));
    }

    /// The connection is gone. Returns what cannot be asked again: subscribing and leaving (their subscriptions know),
    /// refreshes, and publishes whose keys the server may have forgotten.
    pub(super) fn handle_lost(&mut self, now: Instant) -> Vec<(u64, Request)> {
        self.outbox.clear();
        self.in_flight = 0;
        let mut gone = Vec::new();
        for (id, pending) in &mut self.pending {
            pending.sent = false;
            let keep = match &pending.request {
                Request::History(_) => true,
                Request::Publish(_) => {
                    pending.first_sent.is_none_or(|at| now.saturating_duration_since(at) < KEY_LIFETIME)
                }
                _ => false,
            };
            if !keep {
                gone.push(*id);
            }
        }
        self.remove(gone)
    }

    /// Everything that waits, at the session's end.
    pub(super) fn take_all(&mut self) -> Vec<(u64, Request)> {
        self.outbox.clear();
        let all = self.pending.keys().copied().collect();
        self.remove(all)
    }

    fn remove(&mut self, ids: Vec<u64>) -> Vec<(u64, Request)> {
        ids.into_iter().filter_map(|id| self.answer(id).map(|request| (id, request))).collect()
    }
}

/// The server remembers keys for five minutes: a publish that was first sent longer ago might be stored twice.
const KEY_LIFETIME: Duration = Duration::from_secs(240);
