//! Sans-io: all channels of one partition, and everything that the partition decides.
//!
//! Frames from links go in by [`ChannelTable::handle_frame`]. What they change is there at once, but nobody may see it
//! before it is logged: the driver writes [`ChannelTable::take_log_frame`] to the engine, and only then sends what
//! [`ChannelTable::drain_outputs`] gives. Where the engine refuses for good, [`ChannelTable::fail`] turns the
//! outputs into errors, and the table is not to be used any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use indexmap::IndexMap;
use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{Ephemeral, ErrorCode, ServerBody};
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame, HistoryRange, LinkError, Publish, Recovery};
use tidegate_protocol::namespace::Namespaces;
use tidegate_protocol::{ChannelName, Offset, Position};

use super::history::Record;
use super::name::{Name, key};
use super::record::{self, LogFrameError, Logged};
use super::sequencer;
use super::snapshot::{self, SnapshotCursor};
use super::{Channel, LinkId, Rules};

/// Bounds of a table; see `CoreConfig`.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// The largest payload, bytes.
    pub(crate) max_payload: usize,
    /// How long keys are remembered.
    pub(crate) key_age: Duration,
    /// How many per channel.
    pub(crate) keys_per_channel: usize,
    /// How long an empty channel is kept.
    pub(crate) forget_after: Duration,
    /// How many channels.
    pub(crate) max_channels: usize,
}

/// What happened since the driver last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stats {
    /// Publications stored.
    pub(crate) durable: u64,
    /// Ephemeral items passed on.
    pub(crate) ephemeral: u64,
    /// Publications that were already stored under their key.
    pub(crate) duplicates: u64,
    /// Subscriptions at a position that were given all that they missed.
    pub(crate) recovered: u64,
    /// Those that could not be.
    pub(crate) gaps: u64,
}

/// The channels of one partition.
#[derive(Debug)]
pub(crate) struct ChannelTable {
    channels: IndexMap<Name, Channel>,
    namespaces: Arc<Namespaces>,
    limits: Limits,
    epoch: u64,
    /// Position of the last log frame.
    tail: u64,
    /// No channel that is not in the table published at this log position or later: the birth of those that begin. All
    /// owners of a log come to the same one as long as no channel that published is forgotten, so that a channel in which
    /// nothing was published keeps its epoch over a failover, and nobody had to log that it exists.
    genesis: u64,
    log_frame: BytesMut,
    outputs: Vec<(LinkId, CoreFrame)>,
    /// Interest that began with answers which are still in `outputs`.
    begun: Vec<(LinkId, ChannelName)>,
    stats: Stats,
    history_bytes: u64,
    interest: usize,
    /// The sweep goes from the last channel down to the first, so that removing one by a swap with the last never
    /// hides a channel from it.
    sweep_next: usize,
    /// Links that are gone but may still be listed in a channel below `sweep_next`.
    gone: Vec<LinkId>,
}

impl ChannelTable {
    /// An empty table for a partition whose log ends at `tail`. Where the log is read, [`Self::begin_replay`] comes first,
    /// then [`Self::restore_piece`] for a snapshot, then [`Self::replay`].
    pub(crate) fn new(limits: Limits, namespaces: Arc<Namespaces>, epoch: u64, tail: u64) -> Self {
        Self {
            channels: IndexMap::new(),
            namespaces,
            limits,
            epoch,
            tail,
            genesis: tail + 1,
            log_frame: BytesMut::new(),
            outputs: Vec::new(),
            begun: Vec::new(),
            stats: Stats::default(),
            history_bytes: 0,
            interest: 0,
            sweep_next: 0,
            gone: Vec::new(),
        }
    }

    /// The log will be read from `first`, the oldest frame that is left: of channels that are not in it nothing is known
    /// before.
    pub(crate) fn begin_replay(&mut self, first: u64) {
        self.genesis = first;
    }

    /// The first step of a snapshot of what the log says up to now. Take pieces only between batches: what is not
    /// committed must not be in one.
    pub(crate) fn begin_snapshot(&self) -> SnapshotCursor {
        SnapshotCursor { left: Some(self.channels.len()) }
    }

    /// The next piece, of at most `max_bytes` (and at least one channel); `None` behind the last.
    pub(crate) fn snapshot_piece(&self, cursor: &mut SnapshotCursor, max_bytes: usize) -> Option<Bytes> {
        // Channels may have been forgotten since the last piece.
        let left = cursor.left?.min(self.channels.len());
        let mut piece = snapshot::Writer::default();
        for index in (0..left).rev() {
            let Some((name, channel)) = self.channels.get_index(index) else { continue };
            piece.push(name.as_str(), &channel.sequencer, channel.touched_ms);
            if index > 0 && piece.bytes() + snapshot::LARGEST_ENTRY > max_bytes {
                cursor.left = Some(index);
                return Some(piece.finish(None));
            }
        }
        cursor.left = None;
        // At the end: what was forgotten meanwhile may not be in the snapshot, and is born behind this.
        Some(piece.finish(Some(self.genesis)))
    }

    /// Takes a piece of a snapshot that reaches at least to the frame before the log's first, before any replay.
    pub(crate) fn restore_piece(&mut self, piece: &Bytes) -> Result<(), LogFrameError> {
        let restored = snapshot::read(piece)?;
        for (name, sequencer, touched_ms) in restored.channels {
            self.channels.insert(Name::new(&name), Channel::resume(sequencer, touched_ms));
        }
        if let Some(genesis) = restored.genesis {
            self.genesis = genesis;
        }
        Ok(())
    }

    /// The log was read ahead of the claim, which found its end at `tail` and its identity still the same. False where it
    /// is another: build the table anew.
    pub(crate) fn adopt_claim(&mut self, epoch: u64, tail: u64) -> bool {
        self.tail = tail;
        epoch == self.epoch
    }

    /// Whether everything in a frame is so old that no channel retains it: beside a snapshot that reaches it, it says nothing.
    pub(crate) fn is_over(&self, frame: &Bytes, unix_ms: u64) -> Result<bool, LogFrameError> {
        let age = self.namespaces.longest_history().max(self.limits.key_age);
        Ok(u128::from(unix_ms.saturating_sub(record::time_ms(frame)?)) >= age.as_millis())
    }

    /// Takes a frame of the log, in order, before anything else is handled.
    pub(crate) fn replay(&mut self, frame: &Bytes, unix_ms: u64) -> Result<(), LogFrameError> {
        for replayed in record::read(frame)? {
            // A namespace that is refused today keeps nothing. Should it be allowed again, its channels are born anew.
            let Some(rules) = Rules::of(&self.namespaces, &replayed.channel) else {
                self.genesis = self.genesis.max(self.tail + 1);
                continue;
            };
            let channel = self
                .channels
                .entry(Name::new(&replayed.channel))
                .or_insert_with(|| Channel::new(replayed.birth, unix_ms));
            let before = channel.history().bytes();
            channel.replay(replayed, &rules, &self.limits);
            channel.expire(unix_ms, &rules, &self.limits);
            self.history_bytes = self.history_bytes - before + channel.history().bytes();
        }
        Ok(())
    }

    /// Handles one frame of a link.
    pub(crate) fn handle_frame(&mut self, unix_ms: u64, link: LinkId, frame: EdgeFrame) {
        match frame {
            EdgeFrame::Publish { request, publish } => {
                if let Err(error) = self.publish(unix_ms, link, request, publish) {
                    self.outputs.push((link, CoreFrame::Published { request, result: Err(error) }));
                }
            }
            EdgeFrame::Subscribe { request, channel, position } => {
                let result = self.subscribe(unix_ms, link, &channel, position.as_ref());
                self.outputs.push((link, CoreFrame::Recovered { request, result }));
            }
            EdgeFrame::Unsubscribe { channel } => {
                if let Some(channel) = self.channels.get_mut(key(&channel))
                    && channel.remove_interest(link)
                {
                    channel.touched_ms = unix_ms;
                    self.interest -= 1;
                }
            }
            EdgeFrame::History { request, channel, range } => {
                let result = self.history(unix_ms, &channel, &range);
                self.outputs.push((link, CoreFrame::Recovered { request, result }));
            }
            // Of sessions and of people, not of channels.
            EdgeFrame::Spend { .. }
            | EdgeFrame::Presence { .. }
            | EdgeFrame::Watch { .. }
            | EdgeFrame::Members { .. } => {}
        }
    }

    /// The link is gone. Its interest ends with the next full sweep; see [`Self::is_purging`].
    pub(crate) fn remove_link(&mut self, link: LinkId) {
        if !self.channels.is_empty() {
            self.gone.push(link);
            self.sweep_next = self.channels.len();
        }
    }

    /// True while interest of links that are gone is left: sweep without waiting.
    pub(crate) fn is_purging(&self) -> bool {
        !self.gone.is_empty()
    }

    /// Looks after the next `steps` channels: expires history and keys, ends the interest of links that are gone,
    /// forgets what nobody needs.
    pub(crate) fn sweep(&mut self, unix_ms: u64, steps: usize) {
        if self.sweep_next == 0 {
            self.sweep_next = self.channels.len();
        }
        let end = self.sweep_next.saturating_sub(steps);
        for index in (end..self.sweep_next).rev() {
            self.visit(unix_ms, index);
        }
        self.sweep_next = end;
        if end == 0 {
            self.gone.clear();
        }
    }

    /// Bytes of the log frame so far.
    pub(crate) fn log_frame_bytes(&self) -> usize {
        self.log_frame.len()
    }

    /// What must be in the log before the outputs are sent; `None` where they may be sent as they are.
    pub(crate) fn take_log_frame(&mut self) -> Option<Bytes> {
        if self.log_frame.is_empty() { None } else { Some(self.log_frame.split().freeze()) }
    }

    /// The frame taken last is in the log, at `tail`.
    pub(crate) fn commit(&mut self, tail: u64) {
        self.tail = tail;
    }

    /// The frame taken last will never be acknowledged: nothing is delivered, and every answer is `error`. Who is refused a
    /// subscription so is not interested.
    pub(crate) fn fail(&mut self, error: &LinkError) {
        for (link, channel) in std::mem::take(&mut self.begun) {
            if self.channels.get_mut(key(&channel)).is_some_and(|channel| channel.remove_interest(link)) {
                self.interest -= 1;
            }
        }
        self.outputs.retain_mut(|(_, frame)| match frame {
            CoreFrame::Published { result, .. } => {
                *result = Err(error.clone());
                true
            }
            CoreFrame::Recovered { result, .. } => {
                *result = Err(error.clone());
                true
            }
            CoreFrame::Publication(_)
            | CoreFrame::Ephemeral(_)
            | CoreFrame::PresenceChanged(_)
            | CoreFrame::Rebased { .. } => false,
            CoreFrame::Spent { .. }
            | CoreFrame::SessionMoved { .. }
            | CoreFrame::Members { .. }
            | CoreFrame::Moved { .. } => true,
        });
    }

    /// Moves what is to be sent behind `outputs`, in order.
    pub(crate) fn drain_outputs(&mut self, outputs: &mut Vec<(LinkId, CoreFrame)>) {
        outputs.append(&mut self.outputs);
        self.begun.clear();
    }

    /// What happened since the last call.
    pub(crate) fn take_stats(&mut self) -> Stats {
        std::mem::take(&mut self.stats)
    }

    /// How many channels there are.
    pub(crate) fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Channels that links are interested in, each with its head.
    pub(crate) fn interested(&self) -> impl Iterator<Item = (ChannelName, Position, &[LinkId])> {
        self.channels.iter().filter(|(_, channel)| !channel.interest().is_empty()).map(|(name, channel)| {
            let head = channel.position(self.epoch, channel.sequencer.head());
            (name.channel(), head, channel.interest())
        })
    }

    /// How many (link, channel) pairs there are.
    pub(crate) fn interest(&self) -> usize {
        self.interest
    }

    /// Bytes of payload in all histories.
    pub(crate) fn history_bytes(&self) -> u64 {
        self.history_bytes
    }

    fn publish(
        &mut self,
        unix_ms: u64,
        link: LinkId,
        request: u64,
        publish: Publish,
    ) -> Result<(), LinkError> {
        if publish.payload.len() > self.limits.max_payload {
            let message = format!(
                "a payload of {} bytes is over the limit of {}",
                publish.payload.len(),
                self.limits.max_payload
            );
            return Err(LinkError { code: ErrorCode::TooLarge, message });
        }
        if publish.ephemeral {
            return self.publish_ephemeral(unix_ms, link, request, publish);
        }
        let rules = self.rules(&publish.channel)?;
        if rules.ephemeral_only {
            let message = format!(
                "namespace {:?} takes ephemeral publishes only: set ephemeral",
                publish.channel.namespace()
            );
            return Err(LinkError { code: ErrorCode::Forbidden, message });
        }
        let index = self.open(unix_ms, &publish.channel, &rules)?;
        let (name, channel) = (publish.channel, &mut self.channels[index]);
        let key = publish.key.as_deref();
        if let Some(offset) = key.and_then(|key| channel.find_key(key)) {
            self.stats.duplicates += 1;
            let position = channel.position(self.epoch, offset);
            self.outputs.push((link, CoreFrame::Published { request, result: Ok(Some(position)) }));
            return Ok(());
        }

        let record = Record::new(&publish.payload, publish.user, unix_ms);
        let offset = channel.sequencer.assign();
        let birth = channel.sequencer.birth();
        record::write(&mut self.log_frame, &Logged { channel: &name, birth, offset, record: &record, key });
        self.stats.durable += 1;

        let position = channel.position(self.epoch, offset);
        self.outputs.push((link, CoreFrame::Published { request, result: Ok(Some(position)) }));
        if !channel.interest().is_empty() {
            let body = ServerBody::Publication(record.publication(&name, offset));
            let delivery = Delivery { channel: name, offset, frame: Arc::new(SharedFrame::new(body)) };
            fan_out(&mut self.outputs, channel.interest(), &delivery, CoreFrame::Publication);
        }
        let before = channel.history().bytes();
        channel.keep(record, key, &rules, &self.limits);
        self.history_bytes = self.history_bytes - before + channel.history().bytes();
        Ok(())
    }

    fn publish_ephemeral(
        &mut self,
        unix_ms: u64,
        link: LinkId,
        request: u64,
        publish: Publish,
    ) -> Result<(), LinkError> {
        self.rules(&publish.channel)?;
        self.stats.ephemeral += 1;
        self.outputs.push((link, CoreFrame::Published { request, result: Ok(None) }));
        let name = publish.channel;
        let Some(channel) = self.channels.get(key(&name)) else { return Ok(()) };
        if !channel.interest().is_empty() {
            let (data, data_base64) = publish.payload.into_fields();
            let body = ServerBody::Ephemeral(Ephemeral {
                channel: name.as_str().to_owned(),
                data,
                data_base64,
                user: publish.user.as_deref().map(str::to_owned),
                time_ms: unix_ms,
            });
            let frame = Arc::new(SharedFrame::new(body));
            let delivery = Delivery { channel: name, offset: Offset(0), frame };
            fan_out(&mut self.outputs, channel.interest(), &delivery, CoreFrame::Ephemeral);
        }
        Ok(())
    }

    fn subscribe(
        &mut self,
        unix_ms: u64,
        link: LinkId,
        name: &ChannelName,
        position: Option<&Position>,
    ) -> Result<Recovery, LinkError> {
        let rules = self.rules(name)?;
        let index = self.open(unix_ms, name, &rules)?;
        self.keep_birth(index, position);
        let channel = &mut self.channels[index];
        if channel.add_interest(link) {
            self.interest += 1;
            self.begun.push((link, name.clone()));
        }
        let recovery = channel.recover(name, self.epoch, rules.conflate, position);
        match (position.is_some(), recovery.recovered) {
            (true, true) => self.stats.recovered += 1,
            (true, false) => self.stats.gaps += 1,
            (false, _) => {}
        }
        Ok(recovery)
    }

    /// A reader also begins a channel: the position that it is told must hold until it asks again.
    fn history(
        &mut self,
        unix_ms: u64,
        name: &ChannelName,
        range: &HistoryRange,
    ) -> Result<Recovery, LinkError> {
        let rules = self.rules(name)?;
        let index = self.open(unix_ms, name, &rules)?;
        self.keep_birth(index, range.since.as_ref());
        Ok(self.channels[index].read(name, self.epoch, rules.conflate, range))
    }

    fn rules(&self, name: &ChannelName) -> Result<Rules, LinkError> {
        Rules::of(&self.namespaces, name).ok_or_else(|| LinkError {
            code: ErrorCode::NotFound,
            message: format!("there is no namespace {:?}", name.namespace()),
        })
    }

    /// The channel by that name, begun if need be, with its expired history gone.
    fn open(&mut self, unix_ms: u64, name: &ChannelName, rules: &Rules) -> Result<usize, LinkError> {
        let index = match self.channels.get_index_of(key(name)) {
            Some(index) => index,
            None if self.channels.len() >= self.limits.max_channels => {
                let message = "the core holds as many channels as it may".to_owned();
                return Err(LinkError { code: ErrorCode::Unavailable, message });
            }
            None => self.channels.insert_full(Name::new(name), Channel::new(self.genesis, unix_ms)).0,
        };
        let channel = &mut self.channels[index];
        let before = channel.history().bytes();
        channel.expire(unix_ms, rules, &self.limits);
        channel.touched_ms = unix_ms;
        self.history_bytes = self.history_bytes - before + channel.history().bytes();
        Ok(index)
    }

    /// Somebody was told another birth of a channel in which nothing was published, by an owner whose genesis was later:
    /// that is as true as this one's, so it stays.
    fn keep_birth(&mut self, index: usize, asked: Option<&Position>) {
        let channel = &mut self.channels[index];
        if channel.sequencer.head() > Offset(0) || !channel.interest().is_empty() {
            return;
        }
        let Some(asked) = asked.filter(|asked| asked.offset == Offset(0)) else { return };
        if let Some(birth) = sequencer::birth_in(&asked.epoch, self.epoch)
            && (self.genesis..=self.tail + 1).contains(&birth)
        {
            channel.rebirth(birth);
        }
    }

    fn visit(&mut self, unix_ms: u64, index: usize) {
        let Some((name, channel)) = self.channels.get_index_mut(index) else { return };
        for link in &self.gone {
            if channel.remove_interest(*link) {
                channel.touched_ms = unix_ms;
                self.interest -= 1;
            }
        }
        // Most have nothing that could expire.
        if channel.active.is_some() {
            // Channels are begun, and replayed, only where there are rules.
            let Some(rules) = Rules::of(&self.namespaces, &name.channel()) else { return };
            let before = channel.history().bytes();
            channel.expire(unix_ms, &rules, &self.limits);
            self.history_bytes = self.history_bytes - before + channel.history().bytes();
        }
        if channel.is_forgettable(unix_ms, self.limits.forget_after) {
            if channel.sequencer.head() > Offset(0) {
                self.genesis = self.tail + 1;
            }
            self.channels.swap_remove_index(index);
        }
    }
}

fn fan_out(
    outputs: &mut Vec<(LinkId, CoreFrame)>,
    links: &[LinkId],
    delivery: &Delivery,
    frame: fn(Delivery) -> CoreFrame,
) {
    outputs.extend(links.iter().map(|link| (*link, frame(delivery.clone()))));
}

#[cfg(test)]
mod tests;
