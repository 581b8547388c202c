//! The session against a model of a server that drops connections, repeats frames, cuts history, begins new epochs, loses
//! answers to resumes, refuses tickets, and lets control, streams and datagrams overtake each other, while the client moves from connection
//! to connection, all from one seed.

#![expect(clippy::disallowed_methods, reason = "a test needs some first instant")]

use bytes::Bytes;
use rand::RngExt;

use std::collections::BTreeSet;

use super::super::*;
use crate::frame::{
    ClientBody, Connect, Connected, Empty, ErrorCode, Payload, Ping, Publication, Publish, Published,
    Subscribed, Unsubscribed,
};
use crate::{Epoch, Offset, Position};

const CHANNELS: [&str; 3] = ["a", "b", "c"];

/// What the server keeps of a channel. Everything ever published is kept to compare with; what can be recovered
/// begins at `retained`.
#[derive(Debug, Default)]
struct Channel {
    epoch: u32,
    log: Vec<Bytes>,
    /// Offset of the last publication that history has lost.
    retained: u64,
    /// By epoch, for the final comparison.
    logs: BTreeMap<u32, Vec<Bytes>>,
    keys: BTreeMap<String, u64>,
}

impl Channel {
    fn head(&self) -> frame::Position {
        frame::Position { epoch: format!("epoch-{}", self.epoch), offset: self.log.len() as u64 }
    }

    fn publication(&self, name: &str, offset: u64) -> Publication {
        Publication {
            channel: name.to_owned(),
            offset,
            data_base64: Some(self.log[offset as usize - 1].clone()),
            ..Publication::default()
        }
    }

    fn append(&mut self, data: Bytes) -> u64 {
        self.log.push(data.clone());
        self.logs.entry(self.epoch).or_default().push(data);
        self.log.len() as u64
    }
}

/// A stream of the server's.
#[derive(Debug)]
struct Stream {
    name: &'static str,
    epoch: Epoch,
    catch_up: bool,
    /// More may come.
    open: bool,
    frames: VecDeque<ServerFrame>,
}

/// One connection: lanes that keep order only within themselves, and datagrams that keep none.
#[derive(Debug, Default)]
struct Wire {
    control: VecDeque<ServerFrame>,
    /// What a rebase or an unsubscribe ended is there until it was read, or reset.
    streams: Vec<Stream>,
    datagrams: Vec<ServerFrame>,
    /// Channels that are subscribed to.
    live: BTreeSet<&'static str>,
    /// All lanes share the pipe of control.
    one_pipe: bool,
    from_client: VecDeque<ClientFrame>,
    /// Of the session; none before `connect`.
    generation: Option<u32>,
    /// The client said `done`, or let it go.
    released: bool,
    /// The server says no more.
    over: bool,
}

impl Wire {
    /// Publications of a channel go to its stream, or where there is one pipe, to that.
    fn send(&mut self, name: &'static str, epoch: &Epoch, catch_up: bool, frame: ServerFrame) {
        if self.one_pipe {
            self.control.push_back(frame);
            return;
        }
        let fits = |one: &Stream| one.open && one.name == name && one.catch_up == catch_up;
        match self.streams.iter_mut().find(|stream| fits(stream)) {
            Some(stream) => {
                assert_eq!(stream.epoch, *epoch, "a rebase begins a stream");
                stream.frames.push_back(frame);
            }
            None => {
                let (epoch, frames) = (epoch.clone(), VecDeque::from([frame]));
                self.streams.push(Stream { name, epoch, catch_up, open: true, frames });
            }
        }
    }

    /// The streams of a channel end: what is on them still arrives, or is reset.
    fn end_streams(&mut self, name: &str, reset: bool) {
        for stream in self.streams.iter_mut().filter(|stream| stream.name == name && stream.open) {
            stream.open = false;
            if reset {
                stream.frames.clear();
            }
        }
        self.streams.retain(|stream| stream.open || !stream.frames.is_empty());
    }
}

struct Model {
    rng: ChaCha8Rng,
    now: Instant,
    session: Session,
    channels: BTreeMap<&'static str, Channel>,
    wires: BTreeMap<ConnectionId, Wire>,
    dials: u64,
    dial: bool,
    /// By session, how often it was resumed, counted from a hundred times its number; and the keys that did it.
    generations: BTreeMap<u32, u32>,
    spent: BTreeMap<u32, String>,
    rebased: u32,
    moved: u32,
    failed_moves: u32,
    repeated: u32,
    refused: u32,
    /// What the app sees: by channel, where it stands.
    seen: BTreeMap<ChannelName, Position>,
    told: u32,
    delivered: u64,
    awaited: BTreeMap<RequestId, String>,
    acknowledged: u64,
    published: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let config = Config {
            max_held: rng.random_range(2..12),
            max_in_flight: rng.random_range(1..5),
            ..Config::default()
        };
        let session = Session::new(config, ChaCha8Rng::from_rng(&mut rng));
        Self {
            rng,
            now: Instant::now(),
            session,
            channels: CHANNELS.into_iter().map(|name| (name, Channel::default())).collect(),
            wires: BTreeMap::new(),
            dials: 0,
            dial: false,
            generations: BTreeMap::new(),
            spent: BTreeMap::new(),
            rebased: 0,
            moved: 0,
            failed_moves: 0,
            repeated: 0,
            refused: 0,
            seen: BTreeMap::new(),
            told: 0,
            delivered: 0,
            awaited: BTreeMap::new(),
            acknowledged: 0,
            published: 0,
        }
    }

    fn run(&mut self, steps: usize) {
        self.session.connect(None);
        for name in CHANNELS {
            let channel = ChannelName::new(name).expect("valid");
            let position = self.rng.random_bool(0.5).then(Position::default);
            if let Some(position) = &position {
                self.seen.insert(channel.clone(), position.clone());
            }
            self.session.subscribe(self.now, channel, position, SubscribeOptions::default()).expect("taken");
        }
        for _ in 0..steps {
            self.step();
            self.drain();
        }
        self.settle();
        self.compare();
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..18 => self.backend_publishes(),
            18..22 => self.client_publishes(),
            22..48 => self.server_reads(),
            48..84 => self.client_reads(),
            84..86 => self.lose(),
            86..88 => self.dial_beside(),
            88 => self.server_pings(),
            89 => self.supersede(),
            90..92 => self.cut_history(),
            92 => self.change_epoch(),
            93..95 => self.rebase_slow_consumer(),
            95 => self.lose_catch_up(),
            _ => {
                self.now += Duration::from_millis(self.rng.random_range(1..3000));
                self.session.handle_timeout(self.now);
                self.maybe_dial();
            }
        }
    }

    fn pick(&mut self) -> &'static str {
        CHANNELS[self.rng.random_range(0..CHANNELS.len())]
    }

    fn maybe_dial(&mut self) {
        if std::mem::take(&mut self.dial) {
            if self.rng.random_bool(0.2) {
                self.dials += 1;
                self.session.connection_lost(self.now, ConnectionId(self.dials), None, "refused");
            } else {
                self.open();
            }
        }
    }

    /// A better transport, or the present path is suspect.
    fn dial_beside(&mut self) {
        if !self.wires.is_empty() && self.wires.len() < 4 {
            self.open();
        }
    }

    fn open(&mut self) {
        self.dials += 1;
        let id = ConnectionId(self.dials);
        let one_pipe = self.rng.random_bool(0.2);
        self.wires.insert(id, Wire { one_pipe, ..Wire::default() });
        if self.rng.random_bool(0.2) {
            self.session.connecting_early(self.now, id);
            self.drain();
            if self.rng.random_bool(0.5) {
                self.session.connection_established(self.now, id);
            } else {
                // What was sent early is lost.
                if let Some(wire) = self.wires.get_mut(&id) {
                    wire.from_client.clear();
                }
                self.session.early_rejected(self.now, id);
            }
        } else {
            self.session.connection_opened(self.now, id);
        }
    }

    fn pick_wire(&mut self) -> Option<ConnectionId> {
        if self.wires.is_empty() {
            return None;
        }
        let at = self.rng.random_range(0..self.wires.len());
        self.wires.keys().nth(at).copied()
    }

    fn server_pings(&mut self) {
        let Some(id) = self.pick_wire() else { return };
        let fresh = self.rng.random_range(0..1000);
        let wire = self.wires.get_mut(&id).expect("picked");
        if let (Some(generation), false) = (wire.generation, wire.over) {
            let resume = Some(format!("{generation}-{fresh}"));
            wire.control.push_back(ServerFrame::new(0, ServerBody::Ping(Ping { resume, plan: None })));
        }
    }

    /// The grace of an older connection of the session is over.
    fn supersede(&mut self) {
        let generations = &self.generations;
        let is_old = |generation: u32| generation < generations[&(generation / 100)];
        for wire in self.wires.values_mut() {
            if wire.generation.is_some_and(is_old) && !wire.over {
                wire.over = true;
                let close = CloseCode::Superseded.frame("resumed elsewhere");
                wire.control.push_back(ServerFrame::new(0, ServerBody::Close(close)));
            }
        }
    }

    fn backend_publishes(&mut self) {
        let name = self.pick();
        self.published += 1;
        let data = Bytes::from(format!("{name} {}", self.published));
        self.append(name, data);
    }

    fn append(&mut self, name: &'static str, data: Bytes) -> u64 {
        let channel = self.channels.get_mut(name).expect("known");
        let offset = channel.append(data);
        let frame = ServerFrame::new(0, ServerBody::Publication(channel.publication(name, offset)));
        let epoch = Epoch::new(&channel.head().epoch);
        let repeat = ServerFrame { id: epoch.mark().into(), ..frame.clone() };
        for wire in self.wires.values_mut().filter(|wire| wire.live.contains(name)) {
            wire.send(name, &epoch, false, frame.clone());
            if self.rng.random_bool(0.1) {
                wire.send(name, &epoch, false, frame.clone());
            }
            if !wire.one_pipe && self.rng.random_bool(0.3) {
                wire.datagrams.push(repeat.clone());
            }
        }
        offset
    }

    fn client_publishes(&mut self) {
        let name = self.pick();
        self.published += 1;
        let data = format!("client {}", self.published);
        let channel = ChannelName::new(name).expect("valid");
        let request = self.session.publish(&channel, Payload::Binary(Bytes::from(data.clone())), None);
        self.awaited.insert(request.expect("room"), data);
    }

    fn server_reads(&mut self) {
        let Some(on) = self.pick_wire() else { return };
        let wire = self.wires.get_mut(&on).expect("picked");
        if wire.over {
            return;
        }
        let Some(ClientFrame { id, body: Some(body) }) = wire.from_client.pop_front() else { return };
        match body {
            ClientBody::Connect(connect) => self.server_connects(on, id, connect),
            ClientBody::Ping(_) => wire.control.push_back(ServerFrame::new(id, ServerBody::Pong(Empty {}))),
            ClientBody::Pong(_) => {}
            ClientBody::Done(_) => wire.over = true,
            ClientBody::Subscribe(subscribe) => self.server_subscribes(on, id, subscribe),
            ClientBody::Unsubscribe(unsubscribe) => {
                let name = known(&unsubscribe.channel);
                let body = if wire.live.remove(name) {
                    wire.end_streams(name, self.rng.random_bool(0.5));
                    ServerBody::Unsubscribed(Unsubscribed { channel: unsubscribe.channel, error: None })
                } else {
                    ServerBody::Error(ErrorCode::NotFound.reply("no such subscription"))
                };
                wire.control.push_back(ServerFrame::new(id, body));
            }
            ClientBody::Publish(publish) => self.server_publishes(on, id, publish),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn server_connects(&mut self, on: ConnectionId, id: u64, connect: Connect) {
        let refused = self.rng.random_bool(0.05);
        let mut before = None;
        let mut resumed = false;
        let mut generation;
        if let Some(ticket) = connect.resume {
            generation =
                ticket.split('-').next().and_then(|text| text.parse::<u32>().ok()).expect("one of ours");
            let key = connect.key.expect("with a key");
            if refused {
                self.refused += 1;
                let wire = self.wires.get_mut(&on).expect("a frame came over it");
                wire.over = true;
                let close = CloseCode::ResumeExpired.frame("too old");
                wire.control.push_back(ServerFrame::new(0, ServerBody::Close(close)));
                return;
            }
            let newest = self.generations.get_mut(&(generation / 100)).expect("one of ours");
            match self.spent.get(&generation) {
                None => {
                    assert_eq!(generation, *newest, "a ticket of long ago");
                    self.spent.insert(generation, key);
                    *newest += 1;
                }
                Some(spent) => {
                    assert_eq!(*spent, key, "this would count as a theft");
                    self.repeated += 1;
                    if generation + 1 < *newest {
                        // The session has moved on since: nobody waits for this answer.
                        self.wires.get_mut(&on).expect("a frame came over it").over = true;
                        return;
                    }
                    before = Some(*newest);
                }
            }
            (resumed, generation) = (true, *newest);
        } else {
            let session = self.generations.len() as u32 + 1;
            generation = session * 100;
            self.generations.insert(session, generation);
        }
        for (other, wire) in &mut self.wires {
            if *other != on && wire.generation.is_some() && wire.generation == before && !wire.over {
                wire.over = true;
                let close = CloseCode::Superseded.frame("the same attempt arrived again");
                wire.control.push_back(ServerFrame::new(0, ServerBody::Close(close)));
            }
        }
        let wire = self.wires.get_mut(&on).expect("a frame came over it");
        wire.generation = Some(generation);
        let resume = Some(format!("{generation}-0"));
        let connected = Connected { ping_ms: 25_000, resume, resumed, ..Connected::default() };
        wire.control.push_back(ServerFrame::new(id, ServerBody::Connected(connected)));
    }

    fn server_subscribes(&mut self, on: ConnectionId, id: u64, subscribe: Subscribe) {
        let wire = self.wires.get_mut(&on).expect("a frame came over it");
        let name = known(&subscribe.channel);
        if wire.live.contains(name) {
            let error = ErrorCode::Conflict.reply("already subscribed");
            wire.control.push_back(ServerFrame::new(id, ServerBody::Error(error)));
            return;
        }
        if self.rng.random_bool(0.05) {
            let error = ErrorCode::Unavailable.reply("busy");
            wire.control.push_back(ServerFrame::new(id, ServerBody::Error(error)));
            return;
        }
        let channel = &self.channels[name];
        let head = channel.head();
        let reached = subscribe.position.filter(|position| {
            (position.epoch.is_empty() || position.epoch == head.epoch)
                && position.offset >= channel.retained
                && position.offset <= head.offset
        });
        let missed: Vec<Publication> = reached
            .iter()
            .flat_map(|position| position.offset + 1..=head.offset)
            .map(|offset| channel.publication(name, offset))
            .collect();
        let split = self.rng.random_range(0..=missed.len());
        let (in_frame, after) = missed.split_at(split);
        wire.live.insert(name);
        let epoch = Epoch::new(&head.epoch);
        let subscribed = Subscribed {
            channel: name.to_owned(),
            position: Some(head),
            recovered: reached.is_some(),
            publications: in_frame.to_vec(),
            conflated: false,
        };
        wire.control.push_back(ServerFrame::new(id, ServerBody::Subscribed(subscribed)));
        for publication in after {
            let frame = ServerFrame::new(0, ServerBody::Publication(publication.clone()));
            wire.send(name, &epoch, true, frame);
        }
    }

    fn server_publishes(&mut self, on: ConnectionId, id: u64, publish: Publish) {
        let name = known(&publish.channel);
        let key = publish.key.expect("a durable publish has a key");
        let offset = match self.channels[name].keys.get(&key) {
            Some(offset) => *offset,
            None => {
                let offset = self.append(name, publish.data_base64.expect("bytes"));
                self.channels.get_mut(name).expect("known").keys.insert(key, offset);
                offset
            }
        };
        let position = Some(frame::Position { offset, ..self.channels[name].head() });
        let published = Published { channel: publish.channel, position };
        let wire = self.wires.get_mut(&on).expect("a frame came over it");
        wire.control.push_back(ServerFrame::new(id, ServerBody::Published(published)));
    }

    fn client_reads(&mut self) {
        let Some(on) = self.pick_wire() else { return };
        let wire = self.wires.get_mut(&on).expect("picked");
        if wire.over && wire.control.is_empty() {
            let released = wire.released;
            self.wires.remove(&on);
            if !released {
                self.session.connection_lost(self.now, on, None, "the server closed");
            }
            return;
        }
        let lane = self.rng.random_range(0..=wire.streams.len() + 1);
        let read = if lane == 0 {
            wire.control.pop_front().map(|frame| (Carrier::Control, frame))
        } else if let Some(stream) = wire.streams.get_mut(lane - 1) {
            stream.frames.pop_front().map(|frame| (Carrier::Stream(stream.epoch.clone()), frame))
        } else if wire.datagrams.is_empty() {
            None
        } else {
            let at = self.rng.random_range(0..wire.datagrams.len());
            let frame = wire.datagrams.swap_remove(at);
            self.rng.random_bool(0.8).then_some((Carrier::Datagram, frame))
        };
        wire.streams.retain(|stream| stream.open || !stream.frames.is_empty());
        if let Some((carrier, frame)) = read {
            self.session.handle_frame_on(self.now, on, &carrier, frame).expect("the model keeps the rules");
        }
    }

    fn lose(&mut self) {
        if let Some(on) = self.pick_wire() {
            self.wires.remove(&on);
            self.session.connection_lost(self.now, on, None, "the model says so");
        }
    }

    fn cut_history(&mut self) {
        let name = self.pick();
        let channel = self.channels.get_mut(name).expect("known");
        channel.retained = self.rng.random_range(channel.retained..=channel.log.len() as u64);
    }

    /// The core lost a channel, and with it what it held of it, or all but a first few.
    fn change_epoch(&mut self) {
        let name = self.pick();
        let channel = self.channels.get_mut(name).expect("known");
        channel.epoch += 1;
        channel.log.clear();
        for first in 0..self.rng.random_range(0..4) {
            channel.append(Bytes::from(format!("{name} {} {first}", channel.epoch)));
        }
        channel.retained = channel.log.len() as u64;
        self.rebased += 1;
        let all: Vec<ConnectionId> = self.wires.keys().copied().collect();
        for on in all {
            self.rebase_on(on, name);
        }
    }

    /// History no longer reached what a slow consumer missed.
    fn rebase_slow_consumer(&mut self) {
        let name = self.pick();
        let Some(on) = self.pick_wire() else { return };
        let wire = self.wires.get_mut(&on).expect("picked");
        // On one pipe, what is not yet sent of a channel is not told from the rest here.
        if wire.live.contains(name) && !wire.one_pipe {
            wire.end_streams(name, true);
            self.rebase_on(on, name);
        }
    }

    /// Tells on the control lane; what comes from now on is on streams of their own.
    fn rebase_on(&mut self, on: ConnectionId, name: &'static str) {
        let position = Some(self.channels[name].head());
        if let Some(wire) = self.wires.get_mut(&on)
            && wire.live.contains(name)
        {
            wire.end_streams(name, self.rng.random_bool(0.3));
            let subscribed = Subscribed { channel: name.to_owned(), position, ..Subscribed::default() };
            wire.control.push_back(ServerFrame::new(0, ServerBody::Subscribed(subscribed)));
        }
    }

    /// A catch-up stream that was reset half way.
    fn lose_catch_up(&mut self) {
        let name = self.pick();
        for stream in self.wires.values_mut().flat_map(|wire| &mut wire.streams) {
            if stream.name == name && stream.catch_up {
                stream.frames.clear();
            }
        }
    }

    fn drain(&mut self) {
        while let Some(event) = self.session.poll_event() {
            self.handle_event(event);
        }
        while let Some(transmit) = self.session.poll_transmit(self.now) {
            if let Some(wire) = self.wires.get_mut(&transmit.connection) {
                wire.from_client.push_back(transmit.frame);
            }
        }
        while let Some(event) = self.session.poll_event() {
            self.handle_event(event);
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Dial => self.dial = true,
            Event::Subscribed { channel, position, recovered, was_recovering, .. } => {
                assert_eq!(was_recovering, self.seen.contains_key(&channel));
                if recovered {
                    let seen = self.seen.get_mut(&channel).expect("it was recovering");
                    assert!(seen.epoch.is_any() || seen.epoch == position.epoch);
                    seen.epoch = position.epoch;
                } else {
                    self.told += u32::from(was_recovering);
                    self.seen.insert(channel, position);
                }
            }
            Event::Publication { channel, position, publication } => {
                let seen = self.seen.get_mut(&channel).expect("subscribed");
                assert_eq!(position, Position::new(seen.epoch.clone(), seen.offset.next()), "{channel}");
                let log = &self.channels[channel.as_str()].logs[&epoch(&position.epoch)];
                let expected = &log[position.offset.0 as usize - 1];
                assert_eq!(publication.data_base64.as_ref(), Some(expected));
                *seen = position;
                self.delivered += 1;
            }
            Event::Published { request, result } => {
                let position = result.expect("the model refuses none");
                assert!(self.awaited.remove(&request).is_some(), "answered twice");
                assert!(position.offset > Offset(0));
                self.acknowledged += 1;
            }
            // What the driver was not told to let go, it has no more.
            Event::Closed { .. } => self.wires.retain(|_, wire| wire.released),
            Event::MoveFailed { connection, .. } => {
                self.failed_moves += 1;
                self.wires.remove(&connection);
            }
            Event::Release { connection } => {
                if let Some(wire) = self.wires.get_mut(&connection) {
                    wire.released = true;
                }
            }
            Event::Moved { .. } => self.moved += 1,
            Event::Connected { .. }
            | Event::Reconnect { .. }
            | Event::Suspect { .. }
            | Event::Heard { .. }
            | Event::RoundTrip { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Nothing bad happens any more: everything must arrive.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            self.now += Duration::from_millis(20);
            self.session.handle_timeout(self.now);
            self.maybe_dial();
            self.drain();
            for _ in 0..16 {
                self.server_reads();
                self.client_reads();
                self.drain();
            }
            if self.is_settled() {
                return;
            }
            // The model sends no pings: other frames do as well.
            for on in self.wires.keys() {
                self.session.handle_activity(self.now, *on);
            }
        }
        panic!("not settled: {:#?}\n{:?}\n{:?}", self.session, self.wires, self.awaited);
    }

    fn is_settled(&self) -> bool {
        let mut live = self.wires.values().filter(|wire| !wire.released);
        let (Some(wire), None) = (live.next(), live.next()) else { return false };
        let quiet = !wire.over
            && wire.control.is_empty()
            && wire.from_client.is_empty()
            && wire.live.len() == CHANNELS.len()
            && wire.datagrams.is_empty()
            && wire.streams.iter().all(|stream| stream.frames.is_empty());
        quiet && self.awaited.is_empty() && CHANNELS.iter().all(|name| self.at_head(name))
    }

    fn at_head(&self, name: &str) -> bool {
        let head = Position::from(self.channels[name].head());
        self.seen.get(name).is_some_and(|seen| {
            seen.offset == head.offset && (seen.epoch == head.epoch || seen.epoch.is_any())
        })
    }

    /// What the client published is there once, whatever was lost on the way.
    fn compare(&self) {
        for channel in self.channels.values() {
            let mut all: Vec<&Bytes> = channel.logs.values().flatten().collect();
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count, "something was stored twice");
        }
    }
}

fn known(name: &str) -> &'static str {
    CHANNELS.into_iter().find(|known| *known == name).expect("the client names its own channels")
}

fn epoch(epoch: &Epoch) -> u32 {
    epoch.as_str().trim_start_matches("epoch-").parse().expect("the model's epochs")
}

#[test]
fn whatever_the_network_does_delivery_is_exact_or_told() {
    let (mut delivered, mut told, mut acknowledged, mut rebased) = (0, 0, 0, 0);
    let (mut moved, mut failed, mut repeated, mut refused) = (0, 0, 0, 0);
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("a number");
            seed..seed + 1
        }
        Err(_) => 0..3000,
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut model = Model::new(seed);
            model.run(500);
            model
        });
        let model = outcome.unwrap_or_else(|_| panic!("SEED={seed}"));
        delivered += model.delivered;
        told += model.told;
        acknowledged += model.acknowledged;
        moved += model.moved;
        failed += model.failed_moves;
        repeated += model.repeated;
        rebased += model.rebased;
        refused += model.refused;
    }
    // The model must have exercised what it is about.
    assert!(delivered > 10 && told > 0 && acknowledged > 0, "{delivered} {told} {acknowledged}");
    assert!(rebased > 0);
    assert!(moved > 0 && failed > 0, "{moved} {failed}");
    if moved > 100 {
        assert!(repeated > 50 && refused > 50, "{repeated} {refused}");
    }
}
