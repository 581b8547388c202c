//! The session against a model of a server that drops connections, repeats frames, cuts history, forgets its numbering
//! and lets lanes overtake each other, all from one seed.

#![expect(clippy::disallowed_methods, reason = "a test needs some first instant")]

use bytes::Bytes;
use rand::RngExt;

use super::super::*;
use crate::frame::{Connected, ErrorCode, Payload, Publish, Published, Subscribed, Unsubscribed};
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

/// One connection: three lanes per direction that keep order only within themselves.
#[derive(Debug, Default)]
struct Wire {
    control: VecDeque<ServerFrame>,
    /// By channel: what is live.
    live: BTreeMap<&'static str, VecDeque<ServerFrame>>,
    /// By channel: what was missed.
    catch_up: BTreeMap<&'static str, VecDeque<ServerFrame>>,
    from_client: VecDeque<ClientFrame>,
}

struct Model {
    rng: ChaCha8Rng,
    now: Instant,
    session: Session,
    channels: BTreeMap<&'static str, Channel>,
    wire: Option<Wire>,
    dial: bool,
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
            wire: None,
            dial: false,
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
            self.session.subscribe(self.now, channel, position).expect("taken");
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
            0..20 => self.backend_publishes(),
            20..24 => self.client_publishes(),
            24..50 => self.server_reads(),
            50..88 => self.client_reads(),
            88..90 => self.lose(),
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
        if self.dial && self.wire.is_none() {
            self.dial = false;
            if self.rng.random_bool(0.2) {
                self.session.connection_lost(self.now, None, "refused");
            } else {
                self.wire = Some(Wire::default());
                self.session.connection_opened(self.now);
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
        if let Some(live) = self.wire.as_mut().and_then(|wire| wire.live.get_mut(name)) {
            live.push_back(frame.clone());
            if self.rng.random_bool(0.1) {
                live.push_back(frame);
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
        let Some(wire) = &mut self.wire else { return };
        let Some(ClientFrame { id, body: Some(body) }) = wire.from_client.pop_front() else { return };
        match body {
            ClientBody::Connect(_) => {
                let connected = Connected { ping_ms: 25_000, ..Connected::default() };
                wire.control.push_back(ServerFrame::new(id, ServerBody::Connected(connected)));
            }
            ClientBody::Subscribe(subscribe) => self.server_subscribes(id, subscribe),
            ClientBody::Unsubscribe(unsubscribe) => {
                let name = known(&unsubscribe.channel);
                let body = if wire.live.remove(name).is_some() {
                    wire.catch_up.remove(name);
                    ServerBody::Unsubscribed(Unsubscribed { channel: unsubscribe.channel, error: None })
                } else {
                    ServerBody::Error(ErrorCode::NotFound.reply("no such subscription"))
                };
                wire.control.push_back(ServerFrame::new(id, body));
            }
            ClientBody::Publish(publish) => self.server_publishes(id, publish),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn server_subscribes(&mut self, id: u64, subscribe: Subscribe) {
        let wire = self.wire.as_mut().expect("a frame came over it");
        let name = known(&subscribe.channel);
        if wire.live.contains_key(name) {
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
        wire.catch_up.insert(
            name,
            after
                .iter()
                .map(|publication| ServerFrame::new(0, ServerBody::Publication(publication.clone())))
                .collect(),
        );
        wire.live.insert(name, VecDeque::new());
        let subscribed = Subscribed {
            channel: name.to_owned(),
            position: Some(head),
            recovered: reached.is_some(),
            publications: in_frame.to_vec(),
            conflated: false,
        };
        wire.control.push_back(ServerFrame::new(id, ServerBody::Subscribed(subscribed)));
    }

    fn server_publishes(&mut self, id: u64, publish: Publish) {
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
        let wire = self.wire.as_mut().expect("a frame came over it");
        wire.control.push_back(ServerFrame::new(id, ServerBody::Published(published)));
    }

    fn client_reads(&mut self) {
        let name = self.pick();
        let Some(wire) = &mut self.wire else { return };
        let lane = match self.rng.random_range(0..3) {
            0 => Some(&mut wire.control),
            1 => wire.live.get_mut(name),
            _ => wire.catch_up.get_mut(name),
        };
        if let Some(frame) = lane.and_then(VecDeque::pop_front) {
            self.session.handle_frame(self.now, frame).expect("the model keeps the rules");
        }
    }

    fn lose(&mut self) {
        if self.wire.take().is_some() {
            self.session.connection_lost(self.now, None, "the model says so");
        }
    }

    fn cut_history(&mut self) {
        let name = self.pick();
        let channel = self.channels.get_mut(name).expect("known");
        channel.retained = self.rng.random_range(channel.retained..=channel.log.len() as u64);
    }

    /// The core lost a channel. Live subscriptions are told in order with what they get: on the same lane.
    fn change_epoch(&mut self) {
        let name = self.pick();
        let channel = self.channels.get_mut(name).expect("known");
        channel.epoch += 1;
        channel.retained = 0;
        channel.log.clear();
        self.rebase(name);
    }

    /// History no longer reached what a slow consumer missed.
    fn rebase_slow_consumer(&mut self) {
        let name = self.pick();
        if let Some(live) = self.wire.as_mut().and_then(|wire| wire.live.get_mut(name)) {
            live.clear();
            self.rebase(name);
        }
    }

    fn rebase(&mut self, name: &'static str) {
        let position = Some(self.channels[name].head());
        if let Some(wire) = &mut self.wire
            && let Some(live) = wire.live.get_mut(name)
        {
            // A rebase of a subscription whose answer is still on its way would have to wait for it.
            wire.catch_up.remove(name);
            let subscribed = Subscribed { channel: name.to_owned(), position, ..Subscribed::default() };
            live.push_back(ServerFrame::new(0, ServerBody::Subscribed(subscribed)));
        }
    }

    /// A catch-up stream that was reset half way.
    fn lose_catch_up(&mut self) {
        let name = self.pick();
        if let Some(lane) = self.wire.as_mut().and_then(|wire| wire.catch_up.get_mut(name)) {
            lane.clear();
        }
    }

    fn drain(&mut self) {
        while let Some(event) = self.session.poll_event() {
            self.handle_event(event);
        }
        while let Some(transmit) = self.session.poll_transmit(self.now) {
            let wire = self.wire.as_mut().expect("nothing is sent without a connection");
            wire.from_client.push_back(transmit.frame);
        }
        assert!(self.session.events.len() < 64);
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
            // Also where the client gave up: the model does not ping.
            Event::Closed { .. } => self.wire = None,
            Event::Connected { .. } | Event::Reconnect { .. } => {}
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
            for _ in 0..8 {
                self.server_reads();
                self.client_reads();
                self.drain();
            }
            if self.is_settled() {
                return;
            }
            // The model sends no pings: other frames do as well.
            self.session.handle_activity(self.now);
        }
        panic!("not settled: {:?}\n{:?}", self.session, self.wire);
    }

    fn is_settled(&self) -> bool {
        let Some(wire) = &self.wire else { return false };
        let quiet = wire.control.is_empty()
            && wire.from_client.is_empty()
            && wire.live.len() == CHANNELS.len()
            && wire.live.values().chain(wire.catch_up.values()).all(VecDeque::is_empty);
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
    let (mut delivered, mut told, mut acknowledged) = (0, 0, 0);
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
            model.run(400);
            (model.delivered, model.told, model.acknowledged)
        });
        let counts = outcome.unwrap_or_else(|_| panic!("SEED={seed}"));
        delivered += counts.0;
        told += counts.1;
        acknowledged += counts.2;
    }
    // The model must have exercised what it is about.
    assert!(delivered > 10 && told > 0 && acknowledged > 0, "{delivered} {told} {acknowledged}");
}
