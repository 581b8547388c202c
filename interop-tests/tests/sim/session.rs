//! The client's session machine and the server's against each other and a model of the core, over a pipe that breaks:
//! every publication arrives exactly once and in order, or the app is told; a publish is stored once.

#![expect(clippy::disallowed_methods, reason = "a simulation needs some first instant")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::frame::{ClientFrame, Payload, Publication, ServerBody, ServerFrame};
use tidegate_protocol::grants::Identity;
use tidegate_protocol::link::{self, Recovery};
use tidegate_protocol::namespace::{Access, Namespace, Namespaces};
use tidegate_protocol::session::client::{self, Event as ClientEvent, RequestId, SubscribeOptions};
use tidegate_protocol::session::server::{self, Due, Event as ServerEvent};
use tidegate_protocol::{ChannelName, ConnectionId, Epoch, NodeId, Offset, Position, Region, SessionId};

const CHANNELS: [&str; 3] = ["room:a", "room:b", "room:c"];
const SEEDS: u64 = 400;
const STEPS: usize = 600;

#[test]
fn every_publication_comes_once_and_in_order_or_the_app_is_told() {
    let seeds = match std::env::var("TIDEGATE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("TIDEGATE_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    };
    let mut totals = Totals::default();
    for seed in seeds.clone() {
        let outcome = std::panic::catch_unwind(|| World::new(seed).run());
        match outcome {
            Ok(world) => totals.add(&world),
            Err(panic) => {
                eprintln!("SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    if seeds.end - seeds.start == SEEDS {
        // A simulation that never gets there proves nothing.
        assert!(totals.delivered > 10_000, "{totals:?}");
        assert!(totals.recovered > 500 && totals.rebased > 500 && totals.parked > 100, "{totals:?}");
        assert!(totals.repeated > 50 && totals.acknowledged > 1_000, "{totals:?}");
    }
}

/// What happened, over all seeds: none of it may have stayed away.
#[derive(Debug, Default)]
struct Totals {
    delivered: u64,
    recovered: u64,
    rebased: u64,
    parked: u64,
    repeated: u64,
    acknowledged: u64,
}

impl Totals {
    fn add(&mut self, world: &World) {
        self.delivered += world.app.delivered;
        self.recovered += world.app.recovered;
        self.rebased += world.app.rebased;
        self.parked += world.parked;
        self.repeated += world.core.repeated;
        self.acknowledged += world.app.acknowledged;
    }
}

/// A channel in the core.
#[derive(Debug, Default)]
struct Channel {
    epoch: u32,
    /// Everything of this epoch; history begins behind `retained`.
    log: Vec<Bytes>,
    retained: usize,
    keys: BTreeMap<String, u64>,
    /// By epoch, what it ever held: to compare with.
    all: BTreeMap<String, Vec<Bytes>>,
}

impl Channel {
    fn epoch_name(&self) -> String {
        format!("epoch-{}", self.epoch)
    }

    fn head(&self) -> Position {
        Position::new(Epoch::new(&self.epoch_name()), Offset(self.log.len() as u64))
    }

    fn append(&mut self, payload: Bytes) -> u64 {
        let epoch = self.epoch_name();
        self.log.push(payload.clone());
        self.all.entry(epoch).or_default().push(payload);
        self.log.len() as u64
    }

    fn recover(&self, name: &str, position: Option<&Position>) -> Recovery {
        let head = self.head();
        let nothing = Recovery { position: head.clone(), recovered: false, publications: Vec::new() };
        let Some(position) = position else { return nothing };
        let same = position.epoch.is_any() || position.epoch == head.epoch;
        let from = position.offset.0 as usize;
        if !same || from > self.log.len() || from < self.retained {
            return nothing;
        }
        let publications = (from + 1..=self.log.len()).map(|offset| self.publication(name, offset)).collect();
        Recovery { position: head, recovered: true, publications }
    }

    fn publication(&self, name: &str, offset: usize) -> Publication {
        Publication {
            channel: name.to_owned(),
            offset: offset as u64,
            data_base64: Some(self.log[offset - 1].clone()),
            ..Publication::default()
        }
    }
}

#[derive(Debug, Default)]
struct Core {
    channels: BTreeMap<&'static str, Channel>,
    repeated: u64,
}

/// What the app sees.
#[derive(Debug, Default)]
struct App {
    at: BTreeMap<String, Position>,
    delivered: u64,
    recovered: u64,
    rebased: u64,
    acknowledged: u64,
    /// By request, the channel and what was published.
    waiting: BTreeMap<RequestId, (&'static str, Bytes)>,
}

/// One connection: two pipes, and the server's half of the session.
struct Wire {
    server: server::Session,
    to_server: VecDeque<ClientFrame>,
    to_client: VecDeque<ServerFrame>,
    /// What the server asked of the core and has no answer to yet, in order.
    asked: VecDeque<ServerEvent>,
    /// By slot: the channel, while the core has the session's interest.
    slots: BTreeMap<u32, &'static str>,
    over: bool,
}

struct World {
    rng: ChaCha8Rng,
    now: Instant,
    settings: Arc<server::Settings>,
    core: Core,
    client: client::Session,
    wire: Option<Wire>,
    dialing: bool,
    app: App,
    published: u64,
    parked: u64,
    sessions: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let config = client::Config { max_held: rng.random_range(2..20), ..client::Config::default() };
        let client = client::Session::new(config, ChaCha8Rng::seed_from_u64(seed ^ 0x5eed));
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
            max_subscriptions: 16,
            max_requests: rng.random_range(2..64),
            max_payload: 1 << 16,
            max_token: 8 << 10,
            tickets: None,
            grace: Duration::from_secs(30),
            resume_wait: Duration::from_secs(2),
        };
        let channels = CHANNELS.into_iter().map(|name| (name, Channel::default())).collect();
        Self {
            rng,
            now: Instant::now(),
            settings: Arc::new(settings),
            core: Core { channels, repeated: 0 },
            client,
            wire: None,
            dialing: false,
            app: App::default(),
            published: 0,
            parked: 0,
            sessions: 0,
        }
    }

    fn run(mut self) -> Self {
        self.client.connect(None);
        for name in CHANNELS {
            let channel = ChannelName::new(name).expect("a name");
            let position = self.rng.random_bool(0.5).then(Position::default);
            if let Some(position) = &position {
                self.app.at.insert(name.to_owned(), position.clone());
            }
            self.client.subscribe(self.now, channel, position, SubscribeOptions::default()).expect("taken");
        }
        for _ in 0..STEPS {
            self.step();
            self.settle_events();
        }
        self.quiesce();
        self.compare();
        self
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..14 => self.backend_publishes(),
            14..20 => self.client_publishes(),
            20..45 => self.server_reads(),
            45..65 => self.core_answers(),
            65..88 => self.client_reads(),
            88..90 => self.lose_connection(),
            90..92 => self.cut_history(),
            92 => self.change_epoch(),
            93..95 => self.park(),
            _ => {
                let passed = self.rng.random_range(1..3_000);
                self.pass(Duration::from_millis(passed));
            }
        }
    }

    fn pick(&mut self) -> &'static str {
        CHANNELS[self.rng.random_range(0..CHANNELS.len())]
    }

    fn payload(&mut self) -> Bytes {
        self.published += 1;
        Bytes::from(self.published.to_be_bytes().to_vec())
    }

    fn backend_publishes(&mut self) {
        let name = self.pick();
        let payload = self.payload();
        self.append(name, payload);
    }

    fn client_publishes(&mut self) {
        let name = self.pick();
        let payload = self.payload();
        let channel = ChannelName::new(name).expect("a name");
        let request =
            self.client.publish(&channel, Payload::Binary(payload.clone()), None).expect("there is room");
        self.app.waiting.insert(request, (name, payload));
    }

    /// Numbers, keeps, and fans out to the live session.
    fn append(&mut self, name: &'static str, payload: Bytes) -> u64 {
        let channel = self.core.channels.get_mut(name).expect("known");
        let offset = channel.append(payload);
        let publication = channel.publication(name, offset as usize);
        if let Some(wire) = &mut self.wire {
            let slots: Vec<u32> =
                wire.slots.iter().filter(|(_, held)| **held == name).map(|(slot, _)| *slot).collect();
            for slot in slots {
                match wire.server.take(slot, Offset(offset), Offset(offset)) {
                    Due::All | Due::From(_) => {
                        let body = ServerBody::Publication(publication.clone());
                        wire.to_client.push_back(ServerFrame::new(0, body));
                    }
                    Due::Nothing | Due::Gap => {}
                }
            }
        }
        offset
    }

    fn server_reads(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        if wire.over || !wire.server.wants_input() {
            return;
        }
        if let Some(frame) = wire.to_server.pop_front() {
            wire.server.handle_frame(self.now, frame).expect("our client keeps the rules");
        }
    }

    /// The core takes the oldest question.
    fn core_answers(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        let Some(event) = wire.asked.pop_front() else {
            // With nothing to do, what was parked is fetched.
            let parked: Vec<u32> =
                wire.slots.keys().copied().filter(|slot| wire.server.is_parked(*slot)).collect();
            for slot in parked {
                wire.server.refill(slot);
            }
            return;
        };
        match event {
            ServerEvent::Subscribe { slot, ask, begins, channel, position, .. } => {
                let name = known(&channel);
                if begins {
                    wire.slots.insert(slot, name);
                }
                let recovery = self.core.channels[name].recover(name, position.as_ref());
                let budget = self.rng.random_range(200..4_000);
                for publication in wire.server.recovered(self.now, slot, ask, Ok(recovery), budget) {
                    // One pipe: it follows the frame that begins the subscription.
                    flush(wire);
                    wire.to_client.push_back(ServerFrame::new(0, ServerBody::Publication(publication)));
                }
            }
            ServerEvent::Publish { id, publish } => {
                let link::Publish { channel, payload, key, .. } = publish;
                let name = known(&channel);
                let Payload::Binary(payload) = payload else { panic!("bytes were published") };
                let key = key.expect("the client makes keys");
                let before = self.core.channels[name].keys.get(&key).copied();
                let offset = match before {
                    Some(offset) => {
                        self.core.repeated += 1;
                        offset
                    }
                    None => {
                        let offset = self.append(name, payload);
                        self.core.channels.get_mut(name).expect("known").keys.insert(key, offset);
                        offset
                    }
                };
                let position = Position::new(self.core.channels[name].head().epoch, Offset(offset));
                let wire = self.wire.as_mut().expect("still there");
                wire.server.published(id, &channel, Ok(Some(position)));
            }
            other => panic!("nobody asked for {other:?}"),
        }
    }

    fn client_reads(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        if let Some(frame) = wire.to_client.pop_front() {
            self.client
                .handle_frame(self.now, ConnectionId(self.sessions), frame)
                .expect("our server keeps the rules");
        } else if wire.over {
            self.wire = None;
            self.client.connection_lost(self.now, ConnectionId(self.sessions), None, "the server closed");
        }
    }

    fn lose_connection(&mut self) {
        if self.wire.take().is_some() {
            self.client.connection_lost(self.now, ConnectionId(self.sessions), None, "lost");
        }
    }

    fn cut_history(&mut self) {
        let name = self.pick();
        let channel = self.core.channels.get_mut(name).expect("known");
        channel.retained = channel.log.len().saturating_sub(self.rng.random_range(0..4));
    }

    /// Continuity was lost in the core: the numbering begins anew, and live sessions are told.
    fn change_epoch(&mut self) {
        let name = self.pick();
        let channel = self.core.channels.get_mut(name).expect("known");
        channel.epoch += 1;
        channel.log.clear();
        channel.retained = 0;
        channel.keys.clear();
        let head = channel.head();
        let Some(wire) = &mut self.wire else { return };
        let slots: Vec<u32> =
            wire.slots.iter().filter(|(_, held)| **held == name).map(|(slot, _)| *slot).collect();
        for slot in slots {
            flush(wire);
            wire.server.rebased(slot, &head);
        }
    }

    /// The session's queue is over its bound: what was not yet sent of one channel is dropped.
    fn park(&mut self) {
        let name = self.pick();
        let Some(wire) = &mut self.wire else { return };
        let Some(slot) = wire.slots.iter().find(|(_, held)| **held == name).map(|(slot, _)| *slot) else {
            return;
        };
        if !wire.server.is_live(slot) {
            return;
        }
        // Only the tail may go: a frame about the subscription behind it must stay behind something.
        let mut first = None;
        while let Some(frame) = wire.to_client.back() {
            match &frame.body {
                Some(ServerBody::Publication(publication)) if publication.channel == name => {
                    first = Some(publication.offset);
                    wire.to_client.pop_back();
                }
                _ => break,
            }
        }
        if let Some(first) = first {
            self.parked += 1;
            wire.server.park(slot, Offset(first - 1));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.client.handle_timeout(self.now);
        if let Some(wire) = &mut self.wire {
            wire.server.handle_timeout(self.now);
        }
        self.settle_events();
        if self.dialing {
            self.dialing = false;
            self.sessions += 1;
            if self.rng.random_bool(0.2) {
                self.client.connection_lost(self.now, ConnectionId(self.sessions), None, "nobody there");
            } else {
                self.open();
            }
        }
    }

    fn open(&mut self) {
        let id = SessionId::generate(&mut self.rng, 0);
        let server = server::Session::new(self.now, Arc::clone(&self.settings), id, None, true);
        self.wire = Some(Wire {
            server,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            asked: VecDeque::new(),
            slots: BTreeMap::new(),
            over: false,
        });
        self.client.connection_opened(self.now, ConnectionId(self.sessions));
    }

    /// Both machines say all that they have to say.
    fn settle_events(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(event) = self.client.poll_event() {
                quiet = false;
                self.tell(event);
            }
            while let Some(transmit) = self.client.poll_transmit(self.now) {
                quiet = false;
                if let Some(wire) = &mut self.wire {
                    wire.to_server.push_back(transmit.frame);
                }
            }
            if let Some(wire) = &mut self.wire {
                while let Some(event) = wire.server.poll_event() {
                    quiet = false;
                    match event {
                        ServerEvent::Authenticate { .. } => {
                            wire.server.admit(self.now, Identity::anonymous())
                        }
                        ServerEvent::Opened => {}
                        ServerEvent::Unsubscribe { slot, .. } => {
                            wire.slots.remove(&slot);
                            wire.asked.retain(|asked| !matches!(asked, ServerEvent::Subscribe { slot: of, .. } if *of == slot));
                        }
                        ServerEvent::End { .. } => wire.over = true,
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
            ClientEvent::Subscribed { channel, position, recovered, was_recovering, .. } => {
                let name = channel.as_str().to_owned();
                match self.app.at.get(&name) {
                    Some(before) if recovered => {
                        assert!(was_recovering, "{name}: recovered from nothing");
                        assert!(
                            before.epoch.is_any() || before.epoch == position.epoch,
                            "{name}: recovered over a change of epoch"
                        );
                        self.app.recovered += 1;
                        let at = Position::new(position.epoch, before.offset);
                        self.app.at.insert(name, at);
                    }
                    before => {
                        self.app.rebased += u64::from(before.is_some());
                        assert!(!recovered, "{name}: recovered, and never begun");
                        self.app.at.insert(name, position);
                    }
                }
            }
            ClientEvent::Publication { channel, position, publication } => {
                let at = self.app.at.get_mut(channel.as_str()).expect("it began");
                assert_eq!(position.epoch, at.epoch, "{channel}: of another epoch");
                assert_eq!(position.offset.0, at.offset.0 + 1, "{channel}: out of order, missing or twice");
                let log = &self.core.channels[known(&channel)].all[at.epoch.as_str()];
                assert_eq!(
                    publication.data_base64,
                    Some(log[at.offset.0 as usize].clone()),
                    "{channel}: another payload"
                );
                at.offset = position.offset;
                self.app.delivered += 1;
            }
            ClientEvent::Published { request, result } => {
                let (name, payload) = self.app.waiting.remove(&request).expect("answered once");
                let Ok(position) = result else { return };
                let log = &self.core.channels[name].all[position.epoch.as_str()];
                assert_eq!(
                    log[position.offset.0 as usize - 1],
                    payload,
                    "{name}: acknowledged at another's position"
                );
                self.app.acknowledged += 1;
            }
            ClientEvent::Unsubscribed { channel, error } => panic!("{channel} ended: {error:?}"),
            ClientEvent::Error(error) => panic!("{error:?}"),
            ClientEvent::Ended { code, reason } => panic!("ended with {code}: {reason}"),
            _ => {}
        }
    }

    /// The network holds, nobody publishes: everything that is owed arrives.
    fn quiesce(&mut self) {
        for _ in 0..20_000 {
            if self.wire.is_none() {
                self.pass(Duration::from_secs(1));
            }
            self.server_reads();
            self.settle_events();
            self.core_answers();
            self.settle_events();
            self.client_reads();
            self.settle_events();
            if self.is_settled() {
                return;
            }
            // Held gaps and repeats have their own clocks.
            if self.wire.as_ref().is_some_and(|wire| {
                wire.to_client.is_empty() && wire.to_server.is_empty() && wire.asked.is_empty()
            }) {
                self.pass(Duration::from_millis(500));
            }
        }
        panic!("does not settle: the app is at {:?}", self.app.at);
    }

    fn is_settled(&self) -> bool {
        self.app.waiting.is_empty()
            && self.wire.as_ref().is_some_and(|wire| {
                wire.to_client.is_empty() && wire.to_server.is_empty() && wire.asked.is_empty()
            })
            && CHANNELS.iter().all(|name| self.app.at.get(*name) == Some(&self.core.channels[name].head()))
    }

    /// Nothing that a client published was stored twice.
    fn compare(&self) {
        for (name, channel) in &self.core.channels {
            for (epoch, log) in &channel.all {
                let mut seen = log.clone();
                seen.sort();
                seen.dedup();
                assert_eq!(seen.len(), log.len(), "{name} {epoch}: something was stored twice");
            }
        }
    }
}

/// Control frames go out in the order in which they were queued.
fn flush(wire: &mut Wire) {
    while let Some(frame) = wire.server.poll_transmit() {
        wire.to_client.push_back(frame);
    }
}

fn known(channel: &ChannelName) -> &'static str {
    CHANNELS.into_iter().find(|name| *name == channel.as_str()).expect("one of ours")
}
