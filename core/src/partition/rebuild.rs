//! What happens when the engine takes nothing more: the table holds what the log does not, so it is built anew from the
//! log, and publishes are refused for a while.

use std::time::{Duration, Instant};

use tidegate_protocol::Position;
use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, LinkError};
use tidegate_transport::clock;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Command, Driver, Partition, Stop, refusal};
use crate::channel::ChannelTable;
use crate::engine::Claim;
use crate::node::restore::RestoreError;

/// Until when publishes are refused, and with which words.
#[derive(Debug)]
pub(super) struct Refusing {
    until: Instant,
    error: LinkError,
}

impl Driver {
    /// Why publishes are refused now.
    pub(super) fn refuses(&self) -> Option<&LinkError> {
        self.refusing.as_ref().map(|refusing| &refusing.error)
    }

    /// Stops refusing as soon as the engine would take something: nobody may be left who publishes, where others are told
    /// that nothing can be.
    pub(super) async fn end_refusing(&mut self) {
        let is_over = |refusing: &Refusing| refusing.until <= clock::now();
        if self.refusing.as_ref().is_some_and(is_over) && self.takes_frames().await {
            self.refusing = None;
            self.partition.status.set_refusing(false);
        }
    }

    /// The frame that was taken last is not in the log, and will not be.
    pub(super) async fn refuse(&mut self, reason: &str) -> Result<(), Stop> {
        let partition = self.partition.claim.partition().0;
        error!(partition, reason, "the engine takes nothing more: publishes are refused");
        self.partition.metrics.count_frame_refused();
        self.partition.status.set_refusing(true);
        let message = format!("the core cannot store this now, and has not: {reason}");
        let error = LinkError { code: ErrorCode::Unavailable, message };
        self.partition.table.fail(&error);
        self.publishes.clear();
        self.send_outputs().await;
        self.keeping.forget();

        let table = match self.read_behind_claim().await {
            Some(table) => table,
            None => self.reclaim(&error).await?,
        };
        info!(partition, term = self.partition.claim.term(), "built anew from the log");
        self.put_table(table).await;
        self.refusing = Some(Refusing { until: clock::now() + PACE, error });
        Ok(())
    }

    /// Where the engine takes nothing from anybody, it takes no claim either, and the one that is there still stands: nobody
    /// can have made another.
    async fn read_behind_claim(&self) -> Option<ChannelTable> {
        let Partition { control, claim, restorer, .. } = &self.partition;
        if control.is_none() || self.takes_frames().await {
            return None;
        }
        let read = restorer.restore_again(claim).await;
        read.inspect_err(|why| warn!(partition = claim.partition().0, %why, "the log cannot be read")).ok()
    }

    async fn reclaim(&mut self, error: &LinkError) -> Result<ChannelTable, Stop> {
        if let Some(control) = &self.partition.control
            && !control.reclaiming().await
        {
            return Err(Stop::Fenced);
        }
        let (claim, table) = self.read_anew(error).await.ok_or(Stop::Failed)?;
        if let Some(control) = &self.partition.control {
            control.reclaimed(&claim).await;
        }
        self.partition.slot.reclaimed(claim.term(), claim.epoch());
        self.partition.claim = claim;
        Ok(table)
    }

    async fn takes_frames(&self) -> bool {
        self.partition.engine.takes_frames(self.partition.claim.partition()).await
    }

    /// Claims and reads until it works; where other nodes may be able to, not for ever. What is asked of channels meanwhile
    /// is refused.
    async fn read_anew(&mut self, error: &LinkError) -> Option<(Claim, ChannelTable)> {
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            let why = match self.try_to_read().await {
                Ok(read) => return Some(read),
                Err(why) => why,
            };
            warn!(partition = self.partition.claim.partition().0, %why, "the partition cannot be built anew yet");
            if tries == TRIES && self.partition.control.is_some() {
                break;
            }
            let until = clock::now() + pause;
            pause = (pause * 2).min(LAST_PAUSE);
            while let Ok(Some(command)) =
                timeout(until.saturating_duration_since(clock::now()), self.partition.queue.recv()).await
            {
                self.refuse_command(command, error).await;
            }
            // A queue that is closed ends the waiting at once.
            tokio::time::sleep_until(until.into()).await;
        }
        None
    }

    async fn try_to_read(&self) -> Result<(Claim, ChannelTable), RestoreError> {
        let partition = &self.partition;
        let claim = partition.engine.claim(partition.claim.partition(), &partition.node).await?;
        let table = partition.restorer.restore(&claim, None).await?;
        Ok((claim, table))
    }

    async fn refuse_command(&mut self, command: Command, error: &LinkError) {
        match command {
            Command::Attach { link, name, reach, sender, cut } => self.attach(link, name, reach, sender, cut),
            Command::Detach { link } => self.remove_link(link),
            Command::Request { frame, answer, .. } => {
                if let Some(frame) = refusal(frame, error) {
                    let _ = answer.send(frame);
                }
            }
            Command::Frame { link, frame, .. } => {
                if self.links.get(link).is_none() {
                    return;
                }
                let unix_ms = self.partition.clock.unix_ms();
                match self.handle_unlogged(unix_ms, link, frame) {
                    None => self.send_outputs().await,
                    // Ends of interest count: what is left goes over to the new table.
                    Some(frame @ EdgeFrame::Unsubscribe { .. }) => {
                        self.partition.table.handle_frame(unix_ms, link, frame);
                    }
                    Some(frame) => {
                        if let Some(frame) = refusal(frame, error) {
                            self.send(link, frame).await;
                        }
                    }
                }
            }
        }
    }

    /// Links in this process keep their interest, and are told where a channel's numbering is another now. Links over the
    /// network are cut: edges open them again, and find out by themselves.
    async fn put_table(&mut self, table: ChannelTable) {
        for link in self.links.remote() {
            self.cut(link);
        }
        let unix_ms = self.partition.clock.unix_ms();
        let old = std::mem::replace(&mut self.partition.table, table);
        let table = &mut self.partition.table;
        let mut answers = Vec::new();
        let mut told = Vec::new();
        for (channel, head, links) in old.interested() {
            for link in links.iter().filter(|link| self.links.get(**link).is_some()) {
                // Asked from the very beginning, a channel without publications keeps its epoch.
                let position = (head.offset.0 == 0).then(|| head.clone());
                let frame = EdgeFrame::Subscribe { request: 0, channel: channel.clone(), position };
                table.handle_frame(unix_ms, *link, frame);
                table.drain_outputs(&mut answers);
                let Some((link, CoreFrame::Recovered { result: Ok(recovery), .. })) = answers.pop() else {
                    continue;
                };
                let Position { epoch, .. } = &recovery.position;
                if *epoch != head.epoch {
                    let position = recovery.position;
                    told.push((link, CoreFrame::Rebased { channel: channel.clone(), position }));
                }
            }
        }
        // Not asked for by anybody.
        table.take_stats();
        for (link, frame) in told {
            self.send(link, frame).await;
        }
        self.update_gauges();
    }
}

/// Publishes are refused at least so long.
const PACE: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
