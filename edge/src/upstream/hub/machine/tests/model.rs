//! A cluster of cores whose logs survive everything, and a worker that notices whatever is missing.

use tidegate_protocol::Epoch;
use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{Publication, ServerBody};
use tidegate_protocol::link::{Delivery, Recovery};

use super::*;

pub(super) fn node(core: usize) -> NodeId {
    NodeId::new(&format!("core-{core}"))
}

pub(super) fn number(payload: &Payload) -> u64 {
    match payload {
        Payload::Json(bytes) | Payload::Binary(bytes) => {
            std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).expect("a number")
        }
    }
}

pub(super) struct Cluster {
    pub(super) alive: Vec<bool>,
    pub(super) partitions: Vec<Partition>,
    /// Owners that do not know yet that they are none, as they remember the partition.
    zombies: BTreeMap<(usize, u16), (u64, Channels)>,
    history: usize,
    /// Publications that fit in one answer, the oldest.
    fits: usize,
    /// Whatever was stored: by channel and epoch, its payloads by offset.
    stored: BTreeMap<(ChannelName, String), Vec<u64>>,
    pub(super) changed: bool,
}

#[derive(Clone)]
pub(super) struct Partition {
    pub(super) owner: Option<usize>,
    pub(super) term: u64,
    epoch: u64,
    channels: Channels,
}

type Channels = BTreeMap<ChannelName, Channel>;

#[derive(Clone)]
struct Channel {
    epoch: String,
    payloads: Vec<u64>,
    keys: BTreeMap<String, u64>,
}

impl Cluster {
    pub(super) fn new(cores: usize, partitions: u16, history: usize, fits: usize) -> Self {
        let partition = Partition { owner: Some(0), term: 1, epoch: 1, channels: BTreeMap::new() };
        Self {
            alive: vec![true; cores],
            partitions: vec![partition; usize::from(partitions)],
            zombies: BTreeMap::new(),
            history,
            fits,
            stored: BTreeMap::new(),
            changed: false,
        }
    }

    pub(super) fn count(&self) -> u16 {
        self.partitions.len() as u16
    }

    pub(super) fn directory(&self) -> Directory {
        let nodes = (0..self.alive.len()).filter(|core| self.alive[*core]);
        let partition = |p: &Partition| DirectoryPartition { owner: p.owner.map(node), term: p.term };
        Directory {
            nodes: nodes
                .map(|core| DirectoryNode { id: node(core), address: Arc::from(format!("core-{core}:1")) })
                .collect(),
            partitions: self.partitions.iter().map(partition).collect(),
        }
    }

    pub(super) fn crash(&mut self, core: usize) {
        self.alive[core] = false;
        self.zombies.retain(|(zombie, _), _| *zombie != core);
        for partition in &mut self.partitions {
            if partition.owner == Some(core) {
                partition.owner = None;
            }
        }
    }

    pub(super) fn claim(&mut self, partition: u16, core: usize) {
        self.zombies.remove(&(core, partition));
        let partition = &mut self.partitions[usize::from(partition)];
        partition.owner = Some(core);
        partition.term += 1;
    }

    pub(super) fn usurp(&mut self, partition: u16, next: usize) {
        let state = &self.partitions[usize::from(partition)];
        let Some(owner) = state.owner.filter(|owner| *owner != next && self.alive[next]) else { return };
        let remembered = (state.term, state.channels.clone());
        self.claim(partition, next);
        self.zombies.insert((owner, partition), remembered);
    }

    /// Everything of a partition is lost.
    pub(super) fn forget(&mut self, partition: u16) {
        let partition = &mut self.partitions[usize::from(partition)];
        partition.epoch += 1;
        partition.channels.clear();
    }

    pub(super) fn heal(&mut self) {
        self.alive.fill(true);
        self.zombies.clear();
        self.changed = true;
        for partition in 0..self.count() {
            if self.partitions[usize::from(partition)].owner.is_none() {
                self.claim(partition, 1);
            }
        }
    }

    /// Crashed cores come back, partitions without an owner find one, and who was usurped finds out.
    pub(super) fn pass(&mut self, time: Duration, rng: &mut ChaCha8Rng) {
        let due = |rng: &mut ChaCha8Rng, ms: u32| rng.random_range(0..ms) < time.as_millis() as u32;
        for core in 0..self.alive.len() {
            if !self.alive[core] && due(rng, 1000) {
                self.alive[core] = true;
                self.changed = true;
            }
        }
        for partition in 0..self.count() {
            let next = rng.random_range(0..self.alive.len());
            if self.partitions[usize::from(partition)].owner.is_none() && self.alive[next] && due(rng, 1000) {
                self.claim(partition, next);
                self.changed = true;
            }
        }
        let ends: Vec<_> = self.zombies.keys().filter(|_| due(rng, 2000)).copied().collect();
        for zombie in ends {
            self.zombies.remove(&zombie);
        }
    }

    /// The term at which a core serves a partition, or believes so.
    pub(super) fn serves(&self, core: usize, partition: u16) -> Option<u64> {
        let state = &self.partitions[usize::from(partition)];
        match state.owner {
            Some(owner) if owner == core => Some(state.term),
            _ => self.zombies.get(&(core, partition)).map(|(term, _)| *term),
        }
    }

    pub(super) fn is_owner(&self, core: usize, partition: u16, term: u64) -> bool {
        let state = &self.partitions[usize::from(partition)];
        state.owner == Some(core) && state.term == term
    }

    pub(super) fn find(&self, partition: u16, publish: &Publish) -> Option<u64> {
        let channel = self.partitions[usize::from(partition)].channels.get(&publish.channel)?;
        channel.keys.get(publish.key.as_ref()?).copied()
    }

    pub(super) fn store(
        &mut self,
        partition: u16,
        name: &ChannelName,
        payload: u64,
        key: Option<&str>,
    ) -> u64 {
        let channel = self.partitions[usize::from(partition)].open(name);
        channel.payloads.push(payload);
        let offset = channel.payloads.len() as u64;
        if let Some(key) = key {
            channel.keys.insert(key.to_owned(), offset);
        }
        let epoch = channel.epoch.clone();
        self.stored.entry((name.clone(), epoch)).or_default().push(payload);
        offset
    }

    pub(super) fn position(&self, partition: u16, name: &ChannelName, offset: u64) -> Position {
        let channel = &self.partitions[usize::from(partition)].channels[name];
        Position::new(Epoch::new(&channel.epoch), Offset(offset))
    }

    pub(super) fn head(&self, partition: u16, name: &ChannelName) -> Position {
        let channel = self.partitions[usize::from(partition)].channels.get(name);
        channel.map_or_else(nowhere, Channel::head)
    }

    pub(super) fn delivery(&self, partition: u16, name: &ChannelName, offset: u64) -> Delivery {
        let channel = &self.partitions[usize::from(partition)].channels[name];
        let publication = channel.publication(name, offset);
        let frame = Arc::new(SharedFrame::new(ServerBody::Publication(publication)));
        Delivery { channel: name.clone(), offset: Offset(offset), frame }
    }

    pub(super) fn recover(
        &mut self,
        core: usize,
        partition: u16,
        name: &ChannelName,
        asked: Option<&Position>,
    ) -> Recovery {
        let (history, fits) = (self.history, self.fits);
        let state = &mut self.partitions[usize::from(partition)];
        let mut remembered;
        let channel = if state.owner == Some(core) {
            state.open(name)
        } else {
            let epoch = state.epoch;
            let (_, channels) = &self.zombies[&(core, partition)];
            remembered = channels.get(name).cloned().unwrap_or_else(|| Channel::new(epoch));
            &mut remembered
        };
        let head = channel.head();
        let missed = match asked {
            Some(asked) if asked.epoch == head.epoch && asked.offset <= head.offset => {
                Some(head.offset.0 - asked.offset.0)
            }
            _ => None,
        };
        let recovered = missed.is_some_and(|missed| missed as usize <= history);
        let publications = match missed {
            Some(missed) if recovered => (head.offset.0 - missed + 1..=head.offset.0)
                .take(fits)
                .map(|offset| channel.publication(name, offset))
                .collect(),
            _ => Vec::new(),
        };
        Recovery { position: head, recovered, publications }
    }

    /// What is stored at a position, in whatever epoch.
    pub(super) fn payload(&self, name: &ChannelName, at: &Position) -> Option<u64> {
        let payloads = self.stored.get(&(name.clone(), at.epoch.as_str().to_owned()))?;
        payloads.get(usize::try_from(at.offset.0).ok()?.checked_sub(1)?).copied()
    }

    /// Nothing was stored twice.
    pub(super) fn check(&self, seed: u64) {
        let mut seen = BTreeSet::new();
        for ((name, epoch), payloads) in &self.stored {
            for payload in payloads {
                // A numbering that is lost takes its keys along.
                let twice = !seen.insert((*payload, if self.history == usize::MAX { "" } else { epoch }));
                assert!(!twice, "SEED={seed}: {payload} is on {name} twice");
            }
        }
    }
}

impl Partition {
    fn open(&mut self, name: &ChannelName) -> &mut Channel {
        let epoch = self.epoch;
        self.channels.entry(name.clone()).or_insert_with(|| Channel::new(epoch))
    }
}

impl Channel {
    fn new(epoch: u64) -> Self {
        Self { epoch: format!("e{epoch}"), payloads: Vec::new(), keys: BTreeMap::new() }
    }

    fn head(&self) -> Position {
        Position::new(Epoch::new(&self.epoch), Offset(self.payloads.len() as u64))
    }

    fn publication(&self, name: &ChannelName, offset: u64) -> Publication {
        let payload = self.payloads[offset as usize - 1];
        Publication {
            channel: name.as_str().to_owned(),
            offset,
            data: Some(payload.to_string().into()),
            data_base64: None,
            user: None,
            time_ms: 0,
        }
    }
}

/// What a worker asked.
#[derive(Debug)]
pub(super) enum Asks {
    Subscribe(ChannelName),
    Publish { channel: ChannelName, payload: u64, ephemeral: bool },
    History,
    Members,
    Spend(SessionId),
}

#[derive(Debug, Default)]
pub(super) struct Worker {
    next: u64,
    pub(super) asked: BTreeMap<u64, (Asks, u64)>,
    channels: BTreeMap<ChannelName, Joined>,
    pub(super) present: BTreeMap<(ChannelName, Option<Arc<str>>), u32>,
    pub(super) watches: BTreeSet<ChannelName>,
    moved: BTreeSet<SessionId>,
}

#[derive(Debug, Default)]
struct Joined {
    /// Counts the times it left.
    left: u64,
    at: Option<Position>,
    /// Where it was when it left.
    before: Option<Position>,
}

impl Worker {
    pub(super) fn asks(&mut self, what: Asks) -> u64 {
        self.next += 1;
        let left = match &what {
            Asks::Subscribe(channel) => self.channels.get(channel).map_or(0, |joined| joined.left),
            _ => 0,
        };
        self.asked.insert(self.next, (what, left));
        self.next
    }

    pub(super) fn leaves(&mut self, channel: &ChannelName) {
        let joined = self.channels.entry(channel.clone()).or_default();
        joined.left += 1;
        joined.before = joined.at.take();
    }

    pub(super) fn position(&self, channel: &ChannelName) -> Option<Position> {
        self.channels.get(channel)?.before.clone()
    }

    pub(super) fn active(&self) -> impl Iterator<Item = (&ChannelName, Position)> {
        self.channels.iter().filter_map(|(channel, joined)| Some((channel, joined.at.clone()?)))
    }

    pub(super) fn handle(
        &mut self,
        frame: CoreFrame,
        cluster: &Cluster,
        forgetful: bool,
    ) -> Result<(), String> {
        match frame {
            CoreFrame::Publication(delivery) => {
                let Some(at) = self.channels.get_mut(&delivery.channel).and_then(|joined| joined.at.as_mut())
                else {
                    return Ok(());
                };
                if delivery.offset != at.offset.next() {
                    return Err(format!("{} after {at:?} on {}", delivery.offset, delivery.channel));
                }
                at.offset = delivery.offset;
                let Some(ServerBody::Publication(publication)) = &delivery.frame.frame().body else {
                    return Err("no publication".to_owned());
                };
                let data = publication.data.clone().expect("JSON");
                let payload = number(&Payload::Json(data));
                if cluster.payload(&delivery.channel, at) != Some(payload) {
                    return Err(format!("{payload} is not at {at:?}"));
                }
            }
            CoreFrame::Rebased { channel, position } => {
                if !forgetful {
                    return Err(format!("{channel} rebased to {position:?}"));
                }
                if let Some(at) = self.channels.get_mut(&channel).and_then(|joined| joined.at.as_mut()) {
                    *at = position;
                }
            }
            CoreFrame::SessionMoved { session, .. } => {
                self.moved.insert(session);
            }
            CoreFrame::Recovered { request, result } => match self.asked.remove(&request) {
                Some((Asks::Subscribe(channel), left)) => {
                    let joined = self.channels.entry(channel).or_default();
                    if let Ok(recovery) = result
                        && joined.left == left
                        && joined.at.is_none()
                    {
                        joined.at = Some(recovery.position);
                    }
                }
                Some((Asks::History, _)) => {}
                other => return Err(format!("recovered: {other:?}")),
            },
            CoreFrame::Published { request, result } => match self.asked.remove(&request) {
                Some((Asks::Publish { channel, payload, ephemeral }, _)) => match result {
                    Ok(Some(position)) if !ephemeral => {
                        if cluster.payload(&channel, &position) != Some(payload) {
                            return Err(format!("{payload} is not at {position:?}"));
                        }
                    }
                    Ok(None) if ephemeral => {}
                    Err(_) => {}
                    other => return Err(format!("published: {other:?}")),
                },
                other => return Err(format!("published: {other:?}")),
            },
            CoreFrame::Members { request, .. } => match self.asked.remove(&request) {
                Some((Asks::Members, _)) => {}
                other => return Err(format!("members: {other:?}")),
            },
            CoreFrame::Spent { request, result } => match self.asked.remove(&request) {
                Some((Asks::Spend(session), _)) => {
                    if result.is_ok() && !self.moved.contains(&session) {
                        return Err("spent before it moved".to_owned());
                    }
                }
                other => return Err(format!("spent: {other:?}")),
            },
            CoreFrame::Ephemeral(_) | CoreFrame::PresenceChanged(_) => {}
            CoreFrame::Moved { .. } => return Err("moved".to_owned()),
        }
        Ok(())
    }
}
