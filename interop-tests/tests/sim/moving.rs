//! A session that is moved and killed without end: the client's machine with two connections at a time, the server's
//! machines, the core's table of spent tickets and a model of its channels. Continuity is never lost in the core here, so
//! that nothing may ever be missing, double or out of order, and every publish is stored once, in order.

#![expect(clippy::disallowed_methods, reason = "a simulation needs some first instant")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::frame::{
    ClientFrame, CloseCode, Goaway, Payload, Publication, ServerBody, ServerFrame,
};
use tidegate_protocol::grants::Identity;
use tidegate_protocol::link::Recovery;
use tidegate_protocol::namespace::{Access, Namespace, Namespaces};
use tidegate_protocol::session::client::{self, Event as ClientEvent, RequestId, SubscribeOptions};
use tidegate_protocol::session::resume::{AttemptKey, Bounds, Outcome, Spending, SpentTable, Ticket, Told};
use tidegate_protocol::session::server::{self, Due, Event as ServerEvent, Resumption};
use tidegate_protocol::{ChannelName, ConnectionId, Epoch, NodeId, Offset, Position, Region, SessionId};

const CHANNELS: usize = 50;

#[test]
fn nothing_is_lost_or_doubled_while_the_session_moves() {
    let totals = run_seeds(1_000, 10);
    // A simulation that never gets there proves nothing.
    assert!(totals.delivered > 100_000 && totals.acknowledged > 10_000, "{totals:?}");
    assert!(totals.moved > 2_000 && totals.killed > 1_800 && totals.silenced > 1_800, "{totals:?}");
    assert!(totals.resumed > 4_000 && totals.repeated > 30 && totals.refused > 50, "{totals:?}");
    assert!(totals.sent_away > 500 && totals.leaves > 300, "{totals:?}");
    assert!(totals.suspected > 200 && totals.stored_before > 1_000 && totals.early > 1_000, "{totals:?}");
}

#[test]
fn nothing_is_lost_or_doubled_over_500_kills() {
    let totals = run_seeds(1, 1_500);
    assert!(totals.killed + totals.silenced >= 500 && totals.moved > 100, "{totals:?}");
}

fn run_seeds(seeds: u64, breaks: u64) -> Totals {
    let seeds = match std::env::var("TIDEGATE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("TIDEGATE_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..seeds,
    };
    let mut totals = Totals::default();
    for seed in seeds {
        match std::panic::catch_unwind(|| World::new(seed).run(breaks)) {
            Ok(one) => totals.add(&one),
            Err(panic) => {
                eprintln!("SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    totals
}

/// What happened: none of it may have stayed away.
#[derive(Debug, Default)]
struct Totals {
    delivered: u64,
    acknowledged: u64,
    /// The client changed to a connection that it had opened beside the one before.
    moved: u64,
    /// Connections whose end both sides saw, or the client alone.
    killed: u64,
    /// Connections that went silent.
    silenced: u64,
    suspected: u64,
    resumed: u64,
    /// Clients that were asked to move, and dials that came of it.
    sent_away: u64,
    leaves: u64,
    /// Attempts to resume that arrived more than once.
    repeated: u64,
    refused: u64,
    /// Connections that began with early data.
    early: u64,
    /// Publishes that arrived more than once.
    stored_before: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.acknowledged += other.acknowledged;
        self.moved += other.moved;
        self.killed += other.killed;
        self.silenced += other.silenced;
        self.suspected += other.suspected;
        self.sent_away += other.sent_away;
        self.leaves += other.leaves;
        self.resumed += other.resumed;
        self.repeated += other.repeated;
        self.refused += other.refused;
        self.early += other.early;
        self.stored_before += other.stored_before;
    }
}

/// A channel in the core.
struct Channel {
    name: ChannelName,
    log: Vec<u64>,
    keys: BTreeMap<String, u64>,
    /// The last of the client's own.
    last_own: u64,
}

impl Channel {
    fn head(&self) -> Position {
        Position::new(Epoch::new("epoch"), Offset(self.log.len() as u64))
    }

    fn publication(&self, offset: usize) -> Publication {
        Publication {
            channel: self.name.as_str().to_owned(),
            offset: offset as u64,
            data_base64: Some(Bytes::copy_from_slice(&self.log[offset - 1].to_be_bytes())),
            ..Publication::default()
        }
    }

    fn recover(&self, position: Option<&Position>) -> Recovery {
        let from = position.map(|position| position.offset.0 as usize);
        let missed = from.map_or(self.log.len(), |from| from) + 1..=self.log.len();
        let publications = missed.map(|offset| self.publication(offset)).collect();
        Recovery { position: self.head(), recovered: from.is_some(), publications }
    }
}

/// One connection: two pipes, and the server's half of the session.
struct Wire {
    server: server::Session,
    to_server: VecDeque<ClientFrame>,
    to_client: VecDeque<ServerFrame>,
    /// What the server asked of the core and has no answer to yet, in order.
    asked: VecDeque<ServerEvent>,
    /// By slot, the channel, while the core has the session's interest.
    slots: BTreeMap<u32, usize>,
    /// The handshake is not complete.
    early: bool,
    /// Nothing comes through any more, and nobody knows.
    silent: bool,
    /// The client has no part in it any more; what it sent may still arrive.
    left: bool,
    /// The server closed.
    over: bool,
}

struct World {
    rng: ChaCha8Rng,
    begin: Instant,
    now: Instant,
    settings: Arc<server::Settings>,
    channels: Vec<Channel>,
    tickets: Vec<Ticket>,
    spent: SpentTable<u32>,
    client: client::Session,
    wires: BTreeMap<ConnectionId, Wire>,
    dials: u64,
    dialing: bool,
    beside: bool,
    /// A server wants to be left.
    leave: bool,
    /// What the app has, by channel: the last offset.
    at: Vec<Option<u64>>,
    waiting: BTreeMap<RequestId, (usize, u64, Instant)>,
    published: u64,
    totals: Totals,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let client =
            client::Session::new(client::Config::default(), ChaCha8Rng::seed_from_u64(seed ^ 0x5eed));
        let everything =
            Namespace { publish: Access::Anyone, subscribe: Access::Anyone, ..Namespace::default() };
        let settings = server::Settings {
            node: NodeId::new("edge"),
            region: Region::new("here"),
            namespaces: Namespaces::new(everything, BTreeMap::new(), false),
            anonymous: true,
            connect_timeout: Duration::from_secs(5),
            ping: Duration::from_secs(25),
            pong: Duration::from_secs(10),
            max_subscriptions: CHANNELS,
            max_requests: rng.random_range(8..64),
            max_payload: 1 << 16,
            max_token: 8 << 10,
            tickets: Some(Duration::from_secs(rng.random_range(20..600))),
            grace: Duration::from_secs(30),
            resume_wait: Duration::from_secs(2),
        };
        let channel = |number: usize| Channel {
            name: ChannelName::new(&format!("room:{number}")).expect("a name"),
            log: Vec::new(),
            keys: BTreeMap::new(),
            last_own: 0,
        };
        let now = Instant::now();
        Self {
            rng,
            begin: now,
            now,
            settings: Arc::new(settings),
            channels: (0..CHANNELS).map(channel).collect(),
            tickets: Vec::new(),
            spent: SpentTable::new(Bounds { sessions: 1_000 }),
            client,
            wires: BTreeMap::new(),
            dials: 0,
            dialing: false,
            beside: false,
            leave: false,
            at: vec![None; CHANNELS],
            waiting: BTreeMap::new(),
            published: 0,
            totals: Totals::default(),
        }
    }

    /// Goes on until so many connections were broken or moved away from.
    fn run(mut self, breaks: u64) -> Totals {
        self.client.connect(None);
        for number in 0..CHANNELS {
            let name = self.channels[number].name.clone();
            self.client.subscribe(self.now, name, None, SubscribeOptions::default()).expect("taken");
        }
        let mut left = breaks;
        while left > 0 {
            for _ in 0..self.rng.random_range(1..60) {
                self.step();
                self.settle();
            }
            left -= u64::from(self.disturb());
            self.settle();
        }
        self.quiesce();
        self.totals
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..16 => self.backend_publishes(),
            16..22 => self.client_publishes(),
            22..90 => {
                let count = self.rng.random_range(1..30);
                self.move_frames(count);
            }
            90..92 => {
                let connection = self.pick();
                self.establish(connection);
            }
            _ => {
                let passed = self.rng.random_range(1..800);
                self.pass(Duration::from_millis(passed));
            }
        }
    }

    /// True where something broke, or a move began.
    fn disturb(&mut self) -> bool {
        let Some(connection) = self.pick().filter(|connection| !self.wires[connection].left) else {
            return false;
        };
        match self.rng.random_range(0..5) {
            0 => {
                self.totals.killed += 1;
                let wire = self.wires.get_mut(&connection).expect("picked");
                // What is under way to the server may still arrive.
                wire.left = true;
                if self.rng.random_bool(0.5) {
                    self.wires.remove(&connection);
                }
                self.client.connection_lost(self.now, connection, None, "lost");
            }
            1 => {
                self.totals.silenced += 1;
                self.wires.get_mut(&connection).expect("picked").silent = true;
            }
            2 => {
                // Of another transport, or over another network.
                self.client.network_changed(self.now);
                self.open();
            }
            3 => return self.send_away(connection),
            _ => self.open(),
        }
        true
    }

    /// A server that goes away. True where it had somebody to tell.
    fn send_away(&mut self, connection: ConnectionId) -> bool {
        let goaway = Goaway {
            after_ms: self.rng.random_range(0..3_000),
            deadline_ms: self.rng.random_range(1_000..30_000),
            ..Goaway::default()
        };
        let wire = self.wires.get_mut(&connection).expect("picked");
        let told = wire.server.goaway(self.now, goaway);
        flush(wire);
        self.totals.sent_away += u64::from(told);
        told
    }

    fn pick(&mut self) -> Option<ConnectionId> {
        if self.wires.is_empty() {
            return None;
        }
        let at = self.rng.random_range(0..self.wires.len());
        self.wires.keys().nth(at).copied()
    }

    fn open(&mut self) {
        self.dials += 1;
        let connection = ConnectionId(self.dials);
        let id = SessionId::generate(&mut self.rng, 0);
        let server = server::Session::new(self.now, Arc::clone(&self.settings), id, None, true);
        let early = self.rng.random_bool(0.25);
        self.wires.insert(
            connection,
            Wire {
                server,
                to_server: VecDeque::new(),
                to_client: VecDeque::new(),
                asked: VecDeque::new(),
                slots: BTreeMap::new(),
                early,
                silent: false,
                left: false,
                over: false,
            },
        );
        if early {
            self.totals.early += 1;
            self.client.connecting_early(self.now, connection);
        } else {
            self.client.connection_opened(self.now, connection);
        }
    }

    /// The handshake is complete.
    fn establish(&mut self, connection: Option<ConnectionId>) {
        let Some(connection) = connection else { return };
        let rejected = self.rng.random_bool(0.5);
        let Some(wire) = self.wires.get_mut(&connection).filter(|wire| wire.early && !wire.silent) else {
            return;
        };
        wire.early = false;
        if rejected && wire.server.wants_input() && wire.to_client.is_empty() && wire.slots.is_empty() {
            wire.to_server.clear();
            self.client.early_rejected(self.now, connection);
        } else {
            self.client.connection_established(self.now, connection);
        }
    }

    fn backend_publishes(&mut self) {
        for _ in 0..self.rng.random_range(1..8) {
            let number = self.rng.random_range(0..CHANNELS);
            self.published += 1;
            self.append(number, self.published);
        }
    }

    fn client_publishes(&mut self) {
        if !self.client.has_room() {
            return;
        }
        let number = self.rng.random_range(0..CHANNELS);
        self.published += 1;
        let payload = Payload::Binary(Bytes::copy_from_slice(&self.published.to_be_bytes()));
        let name = self.channels[number].name.clone();
        let request = self.client.publish(&name, payload, None).expect("there is room");
        self.waiting.insert(request, (number, self.published, self.now));
    }

    /// Numbers, keeps, and fans out.
    fn append(&mut self, number: usize, payload: u64) -> u64 {
        let channel = &mut self.channels[number];
        channel.log.push(payload);
        let offset = channel.log.len() as u64;
        let publication = channel.publication(offset as usize);
        for wire in self.wires.values_mut() {
            for (slot, held) in &wire.slots {
                if *held == number
                    && let Due::All | Due::From(_) = wire.server.take(*slot, Offset(offset), Offset(offset))
                {
                    let body = ServerBody::Publication(publication.clone());
                    wire.to_client.push_back(ServerFrame::new(0, body));
                }
            }
        }
        offset
    }

    /// Some frames travel, and some questions are answered, on some connection.
    fn move_frames(&mut self, count: usize) {
        let Some(connection) = self.pick() else { return };
        for _ in 0..count {
            match self.rng.random_range(0..3) {
                0 => self.server_reads(connection),
                1 => self.core_answers(connection),
                _ => self.client_reads(connection),
            }
            self.settle();
        }
    }

    fn server_reads(&mut self, connection: ConnectionId) {
        let Some(wire) = self.wires.get_mut(&connection) else { return };
        if wire.over || wire.silent || !wire.server.wants_input() {
            return;
        }
        match wire.to_server.pop_front() {
            Some(frame) if wire.early => {
                wire.server.handle_early_frame(self.now, frame).expect("fit to be early")
            }
            Some(frame) => wire.server.handle_frame(self.now, frame).expect("our client keeps the rules"),
            None if wire.left && wire.asked.is_empty() => drop(self.wires.remove(&connection)),
            None => {}
        }
    }

    fn client_reads(&mut self, connection: ConnectionId) {
        let Some(wire) = self.wires.get_mut(&connection) else { return };
        if wire.silent || wire.left {
            return;
        }
        if let Some(frame) = wire.to_client.pop_front() {
            // What the server says can only be read when the handshake is complete.
            wire.early = false;
            self.client.handle_frame(self.now, connection, frame).expect("our server keeps the rules");
        } else if wire.over {
            self.wires.remove(&connection);
            self.client.connection_lost(self.now, connection, None, "the server closed");
        }
    }

    /// The core takes the oldest question of a connection.
    fn core_answers(&mut self, connection: ConnectionId) {
        let Some(wire) = self.wires.get_mut(&connection) else { return };
        match wire.asked.pop_front() {
            None => {}
            Some(ServerEvent::Subscribe { slot, ask, begins, channel, position, .. }) => {
                let number = number_of(&channel);
                if begins {
                    wire.slots.insert(slot, number);
                }
                let recovery = self.channels[number].recover(position.as_ref());
                let budget = self.rng.random_range(200..4_000);
                for publication in wire.server.recovered(self.now, slot, ask, Ok(recovery), budget) {
                    flush(wire);
                    wire.to_client.push_back(ServerFrame::new(0, ServerBody::Publication(publication)));
                }
                // What was over the budget is fetched.
                wire.server.refill(slot);
            }
            Some(ServerEvent::Publish { id, publish }) => {
                let number = number_of(&publish.channel);
                let Payload::Binary(payload) = publish.payload else { panic!("bytes were published") };
                let payload = u64::from_be_bytes(payload[..].try_into().expect("a number"));
                let key = publish.key.expect("the client makes keys");
                let offset = match self.channels[number].keys.get(&key).copied() {
                    Some(offset) => {
                        self.totals.stored_before += 1;
                        offset
                    }
                    None => {
                        let last = std::mem::replace(&mut self.channels[number].last_own, payload);
                        assert!(last < payload, "stored out of order");
                        let offset = self.append(number, payload);
                        self.channels[number].keys.insert(key, offset);
                        offset
                    }
                };
                let position = Position::new(Epoch::new("epoch"), Offset(offset));
                let wire = self.wires.get_mut(&connection).expect("still there");
                wire.server.published(id, &publish.channel, Ok(Some(position)));
            }
            Some(ServerEvent::Resume { ticket, key }) => self.resume(connection, ticket, key),
            Some(other) => panic!("nobody asked for {other:?}"),
        }
    }

    /// The edge opens the ticket, and the core judges it.
    fn resume(&mut self, connection: ConnectionId, text: String, key: Option<String>) {
        let unix_ms = self.unix_ms();
        let ticket = self.tickets[text.parse::<usize>().expect("one of ours")].clone();
        let wire = self.wires.get_mut(&connection).expect("it asked");
        if ticket.is_expired(unix_ms) || self.rng.random_bool(0.02) {
            self.totals.refused += 1;
            return wire.server.refuse(CloseCode::ResumeExpired, "too old");
        }
        let key_bytes = key.as_deref().map(|key| {
            AttemptKey(key.as_bytes()[..16].try_into().expect("our client's keys have 32 digits"))
        });
        let spending = Spending {
            session: ticket.session,
            generation: ticket.generation,
            key: key_bytes,
            early: wire.early,
            remember: Duration::from_secs(600),
        };
        let spent = self.spent.spend(unix_ms, &spending, 0);
        match spent.outcome {
            Outcome::First => {}
            Outcome::Repeated => self.totals.repeated += 1,
            Outcome::NotEarly => {
                return wire.asked.push_front(ServerEvent::Resume { ticket: text, key });
            }
            Outcome::Stale => {
                assert!(wire.left || wire.silent, "nobody may wait for what the session has left behind");
                return wire.server.refuse(CloseCode::BadResume, "stale");
            }
            Outcome::Theft | Outcome::Revoked | Outcome::Full => panic!("{:?}: {ticket:?}", spent.outcome),
        }
        let generation = ticket.generation + 1;
        if let Some((told, _)) = spent.told {
            for (other, wire) in &mut self.wires {
                if *other == connection || wire.server.id() != ticket.session {
                    continue;
                }
                if wire.server.generation() < generation {
                    wire.server.supersede(self.now);
                } else if told == Told::Repeated && wire.server.generation() == generation {
                    wire.server.end(CloseCode::Superseded, "the same attempt arrived again");
                }
            }
        }
        self.totals.resumed += 1;
        let resumption = Resumption { session: ticket.session, generation, identity: Identity::anonymous() };
        self.wires.get_mut(&connection).expect("it asked").server.resume(self.now, resumption);
    }

    fn unix_ms(&self) -> u64 {
        1_790_000_000_000 + self.now.duration_since(self.begin).as_millis() as u64
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.wires.retain(|_, wire| !(wire.left && (wire.silent || wire.over)));
        self.client.handle_timeout(self.now);
        for wire in self.wires.values_mut() {
            wire.server.handle_timeout(self.now);
        }
        self.settle();
        if std::mem::take(&mut self.dialing) {
            if self.rng.random_bool(0.2) {
                self.dials += 1;
                self.client.connection_lost(self.now, ConnectionId(self.dials), None, "nobody there");
            } else {
                self.open();
            }
        } else if std::mem::take(&mut self.beside) {
            self.open();
        } else if std::mem::take(&mut self.leave) {
            if self.rng.random_bool(0.3) {
                self.client.not_left(self.now);
            } else {
                self.open();
            }
        }
        self.settle();
    }

    /// Both sides say all that they have to say.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(event) = self.client.poll_event() {
                quiet = false;
                self.tell(event);
            }
            while let Some(transmit) = self.client.poll_transmit(self.now) {
                quiet = false;
                if let Some(wire) = self.wires.get_mut(&transmit.connection) {
                    wire.to_server.push_back(transmit.frame);
                }
            }
            let unix_ms = self.unix_ms();
            for wire in self.wires.values_mut() {
                while let Some(event) = wire.server.poll_event() {
                    quiet = false;
                    match event {
                        ServerEvent::Authenticate { .. } => {
                            wire.server.admit(self.now, Identity::anonymous());
                        }
                        ServerEvent::Issue => {
                            let ticket = wire.server.ticket(self.now, unix_ms, 0).expect("it is open");
                            self.tickets.push(ticket);
                            wire.server.issued(self.now, Some((self.tickets.len() - 1).to_string()));
                        }
                        ServerEvent::Opened | ServerEvent::Unanswered => {}
                        ServerEvent::Unsubscribe { slot, .. } => {
                            wire.slots.remove(&slot);
                        }
                        ServerEvent::End { .. } => {
                            wire.over = true;
                            wire.slots.clear();
                            wire.asked.clear();
                        }
                        asked => wire.asked.push_back(asked),
                    }
                }
                flush(wire);
            }
            if quiet {
                return;
            }
        }
    }

    /// Holds the app's view to the promises.
    fn tell(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Dial => self.dialing = true,
            ClientEvent::Suspect { .. } => {
                self.totals.suspected += 1;
                self.beside = true;
            }
            ClientEvent::Goaway { .. } => {
                self.totals.leaves += 1;
                self.leave = true;
            }
            ClientEvent::Heard { .. } => self.beside = false,
            ClientEvent::Moved { .. } => self.totals.moved += 1,
            ClientEvent::Release { connection } => {
                // Nobody has one half of what is gone.
                if let Some(wire) = self.wires.get_mut(&connection) {
                    wire.left = true;
                }
            }
            ClientEvent::MoveFailed { connection, .. } => drop(self.wires.remove(&connection)),
            ClientEvent::Closed { .. } => self.wires.retain(|_, wire| wire.left),
            ClientEvent::Subscribed { channel, position, recovered, was_recovering, .. } => {
                let at = &mut self.at[number_of(&channel)];
                assert_eq!(
                    recovered,
                    at.is_some(),
                    "{channel}: told that something was missed at {position:?}"
                );
                assert_eq!(was_recovering, at.is_some(), "{channel}");
                at.get_or_insert(position.offset.0);
            }
            ClientEvent::Publication { channel, publication, .. } => {
                let number = number_of(&channel);
                let at = self.at[number].as_mut().expect("it began");
                assert_eq!(publication.offset, *at + 1, "{channel}: out of order, missing or twice");
                let stored = self.channels[number].log[*at as usize].to_be_bytes();
                assert_eq!(
                    publication.data_base64.as_deref(),
                    Some(&stored[..]),
                    "{channel}: another payload"
                );
                *at += 1;
                self.totals.delivered += 1;
            }
            ClientEvent::Published { request, result } => {
                let (number, payload, since) = self.waiting.remove(&request).expect("answered once");
                let Ok(position) = result else {
                    // The server may have forgotten the key by then.
                    assert!(self.now - since >= Duration::from_secs(240), "{result:?}");
                    return;
                };
                let stored = self.channels[number].log[position.offset.0 as usize - 1];
                assert_eq!(stored, payload, "acknowledged at another's position");
                self.totals.acknowledged += 1;
            }
            ClientEvent::Connected { .. } | ClientEvent::Reconnect { .. } | ClientEvent::RoundTrip { .. } => {
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Nothing breaks any more: everything that is owed arrives.
    fn quiesce(&mut self) {
        for round in 0..4_000 {
            for connection in self.wires.keys().copied().collect::<Vec<_>>() {
                self.establish(Some(connection));
                for _ in 0..40 {
                    self.server_reads(connection);
                    self.core_answers(connection);
                    self.client_reads(connection);
                    self.settle();
                }
            }
            if self.is_settled() {
                return self.compare();
            }
            if round % 4 == 3 {
                self.pass(Duration::from_millis(500));
            }
        }
        panic!("does not settle: {:?} {:#?}", self.at, self.client);
    }

    fn is_settled(&self) -> bool {
        let at_head = |(at, channel): (&Option<u64>, &Channel)| *at == Some(channel.log.len() as u64);
        self.waiting.is_empty() && self.at.iter().zip(&self.channels).all(at_head)
    }

    /// Nothing is stored twice.
    fn compare(&self) {
        for channel in &self.channels {
            let mut seen = channel.log.clone();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), channel.log.len(), "{}: something was stored twice", channel.name);
        }
    }
}

/// Control frames go out in the order in which they were queued.
fn flush(wire: &mut Wire) {
    while let Some(frame) = wire.server.poll_transmit() {
        wire.to_client.push_back(frame);
    }
}

fn number_of(channel: &ChannelName) -> usize {
    channel.as_str().trim_start_matches("room:").parse().expect("one of ours")
}
