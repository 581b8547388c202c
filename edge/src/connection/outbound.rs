//! Towards the client: what goes at once, what waits, and what happens at the bounds.

use std::task::{Context, Poll};

use bytes::Bytes;
use tidegate_protocol::Offset;
use tidegate_protocol::frame::{CloseCode, Publication, ServerBody, ServerFrame};
use tidegate_protocol::link::Delivery;
use tidegate_transport::{Lane, RecvError, Sent, TransportKind, clock};
use tracing::trace;

use super::{Inner, Session};
use crate::policy::slow_consumer::{Backlog, Bounds, EphemeralQueued, Queued};
use crate::upstream::Run;

impl Session {
    /// Sends or queues the publications of a run from `from` on; how many.
    pub(super) fn offer_run(&self, inner: &mut Inner, slot: u32, run: &Run, from: Offset) -> usize {
        let framing = inner.connection.framing();
        let due = run.since(from);
        let Some(newest) = due.last() else { return 0 };
        if due.len() == run.deliveries().len()
            && let Some(joined) = run.joined(framing)
        {
            let newest = newest.frame.encoded(framing);
            return if self.offer(inner, slot, from, joined, newest, due.len()) { due.len() } else { 0 };
        }
        let mut offered = 0;
        for delivery in due {
            let bytes = delivery.frame.encoded(framing);
            if !self.offer(inner, slot, delivery.offset, bytes, bytes, 1) {
                break;
            }
            offered += 1;
        }
        offered
    }

    /// Sends or queues `count` publications, the first of them `first`; `newest` is the last of them. False once the
    /// subscription is parked: what follows is not to be offered.
    fn offer(
        &self,
        inner: &mut Inner,
        slot: u32,
        first: Offset,
        bytes: &Bytes,
        newest: &Bytes,
        count: usize,
    ) -> bool {
        match self.send(inner, slot, bytes) {
            Some(Sent::Taken) => {
                self.note_for_repeat(inner, slot, bytes);
                return true;
            }
            Some(Sent::Full) => {}
            None => return false,
        }
        let bounds = self.bounds();
        let conflated = inner.machine.subscription(slot).is_some_and(|(_, conflated)| conflated);
        let waits = if conflated { newest } else { bytes };
        let name = (slot, inner.machine.rank(slot));
        let queued = self
            .with_backlog(inner, |backlog| backlog.push_live(bounds, name, first, waits.clone(), conflated));
        self.wake();
        let skipped = if conflated { count - 1 + usize::from(queued == Queued::Replaced) } else { 0 };
        if skipped > 0 {
            self.worker.metrics().conflated.inc_by(skipped as u64);
        }
        match queued {
            Queued::Waits | Queued::Replaced => true,
            Queued::Parked { last } => {
                trace!(slot, last = last.0, "parked");
                inner.machine.park(slot, last);
                self.await_refill(inner, slot);
                self.worker.metrics().parked.inc();
                false
            }
        }
    }

    pub(super) fn offer_ephemeral(&self, inner: &mut Inner, slot: u32, delivery: &Delivery) -> bool {
        let bytes = delivery.frame.encoded(inner.connection.framing());
        if inner.connection.send_datagram(bytes) {
            return true;
        }
        match self.send(inner, slot, bytes) {
            Some(Sent::Taken) => true,
            Some(Sent::Full) => {
                let (bounds, name) = (self.bounds(), (slot, inner.machine.rank(slot)));
                self.wake();
                let queued = self.with_backlog(inner, |backlog| {
                    backlog.push_ephemeral(bounds, clock::now(), name, bytes.clone())
                });
                let dropped = &self.worker.metrics().ephemeral_dropped;
                match queued {
                    EphemeralQueued::Waits => {}
                    EphemeralQueued::Replaced => {
                        dropped.replaced.inc();
                    }
                    EphemeralQueued::NoRoom => {
                        dropped.no_room.inc();
                    }
                };
                queued != EphemeralQueued::NoRoom
            }
            None => false,
        }
    }

    pub(super) fn offer_presence(&self, inner: &mut Inner, slot: u32, delivery: &Delivery) -> bool {
        let dropped = &self.worker.metrics().ephemeral_dropped;
        if inner.presence_gaps.contains(&slot) {
            dropped.no_room.inc();
            return false;
        }
        if !inner.machine.is_live(slot) || inner.machine.is_opening() {
            dropped.parked.inc();
            inner.presence_gaps.push(slot);
            return false;
        }
        let framing = inner.connection.framing();
        match self.send(inner, slot, delivery.frame.encoded(framing)) {
            Some(Sent::Taken) => true,
            Some(Sent::Full) => {
                dropped.no_room.inc();
                inner.presence_gaps.push(slot);
                self.wake();
                false
            }
            None => false,
        }
    }

    /// Offers to a subscription's lane, unless something waits that comes first. `None`: the connection is over.
    fn send(&self, inner: &mut Inner, slot: u32, bytes: &Bytes) -> Option<Sent> {
        let one_pipe = self.one_pipe();
        if inner.machine.is_opening() || inner.backlog.as_ref().is_some_and(|b| b.holds_up(slot, one_pipe)) {
            return Some(Sent::Full);
        }
        match inner.connection.send(Lane::Subscription(slot), bytes) {
            Ok(sent) => {
                // What the transport took but could not write is pushed on by the task.
                if sent == Sent::Taken && inner.connection.buffered() > 0 {
                    self.wake();
                }
                Some(sent)
            }
            Err(error) => {
                self.break_off(inner, error);
                None
            }
        }
    }

    /// Moves the machine's control frames to the connection, or behind those that wait.
    pub(super) fn transmit(&self, inner: &mut Inner) {
        while let Some(frame) = inner.machine.poll_transmit() {
            let bytes = inner.connection.framing().encode(&frame);
            if inner.backlog.as_ref().is_none_or(|backlog| backlog.control_bytes() == 0) {
                match inner.connection.send(Lane::Control, &bytes) {
                    Ok(Sent::Taken) => continue,
                    Ok(Sent::Full) => {}
                    Err(error) => return self.break_off(inner, error),
                }
            }
            let bounds = self.bounds();
            if self.with_backlog(inner, |backlog| backlog.push_control(bounds, bytes)).is_err() {
                // Nothing of it would be read: it makes room for the `close` frame.
                self.discard_backlog(inner);
                while inner.machine.poll_transmit().is_some() {}
                let reason = "the client does not read its control frames".to_owned();
                return self.break_off(inner, RecvError::Protocol { code: CloseCode::SlowConsumer, reason });
            }
        }
    }

    pub(super) fn catch_up_budget(&self, inner: &Inner) -> usize {
        let bounds = self.bounds();
        match &inner.backlog {
            Some(backlog) => backlog.catch_up_budget(bounds),
            None => Backlog::default().catch_up_budget(bounds),
        }
    }

    pub(super) fn queue_catch_up(&self, inner: &mut Inner, slot: u32, missed: Vec<Publication>) {
        if missed.is_empty() {
            return;
        }
        let (framing, rank) = (inner.connection.framing(), inner.machine.rank(slot));
        self.with_backlog(inner, |backlog| {
            for publication in missed {
                let frame = ServerFrame::new(0, ServerBody::Publication(publication));
                backlog.push_catch_up(slot, rank, framing.encode(&frame));
            }
        });
    }

    /// Pushes on what waits, and registers for what cannot go on.
    pub(super) fn flush(&self, cx: &mut Context<'_>, inner: &mut Inner) -> Result<(), RecvError> {
        if inner.machine.is_opening() {
            // `connected` comes first; the answer that brings it wakes the task.
            return Ok(());
        }
        // What was taken on any lane first, also where nothing more waits.
        if inner.connection.buffered() > 0
            && let Poll::Ready(result) = inner.connection.poll_ready(cx, Lane::Control)
        {
            result?;
        }
        let oldest =
            inner.backlog.is_some().then(|| clock::now().checked_sub(self.worker.limits().ephemeral_age));
        while let Some(backlog) = &mut inner.backlog {
            let before = backlog.bytes();
            let connection = &mut inner.connection;
            let pumped =
                backlog.pump(self.one_pipe(), oldest.flatten(), |lane, bytes| connection.send(lane, bytes));
            self.account(before, backlog.bytes());
            let pumped = pumped?;
            self.worker.metrics().ephemeral_dropped.expired.inc_by(pumped.expired);
            if backlog.is_empty() {
                inner.backlog = None;
            }
            for slot in pumped.caught_up {
                inner.connection.finish_catch_up(slot);
            }
            let mut ready = false;
            for lane in pumped.blocked {
                ready |= inner.connection.poll_ready(cx, lane)?.is_ready();
            }
            if !ready {
                break;
            }
        }
        Ok(())
    }

    /// Begins to fetch what parked subscriptions missed, where the client has taken what it was sent. True where there
    /// is a question for the core now.
    pub(super) fn refill(&self, cx: &mut Context<'_>, inner: &mut Inner) -> Result<bool, RecvError> {
        if inner.parked.is_empty() || inner.machine.is_opening() {
            return Ok(false);
        }
        let mut asked = false;
        let mut index = 0;
        // Refills count as questions: so many at once, and no more.
        while index < inner.parked.len() && inner.machine.wants_input() {
            let slot = inner.parked[index];
            if !self.has_drained(inner, slot)
                || inner.connection.poll_ready(cx, Lane::Subscription(slot))?.is_pending()
            {
                index += 1;
                continue;
            }
            inner.parked.remove(index);
            asked |= inner.machine.refill(slot);
        }
        Ok(asked)
    }

    /// Tells subscriptions that they missed somebody who came or went, where the client has taken what it was sent: what
    /// it asks for then holds all that it was not told.
    pub(super) fn tell_presence_gaps(
        &self,
        cx: &mut Context<'_>,
        inner: &mut Inner,
    ) -> Result<(), RecvError> {
        let mut index = 0;
        while let Some(slot) = inner.presence_gaps.get(index).copied() {
            if !inner.machine.is_live(slot)
                || inner.machine.is_opening()
                || !self.has_drained(inner, slot)
                || inner.connection.poll_ready(cx, Lane::Subscription(slot))?.is_pending()
            {
                index += 1;
                continue;
            }
            inner.presence_gaps.remove(index);
            inner.machine.presence_gap(slot);
        }
        self.transmit(inner);
        Ok(())
    }

    /// Whether nothing waits here that a subscription's catch-up would have to queue behind.
    fn has_drained(&self, inner: &Inner, slot: u32) -> bool {
        match &inner.backlog {
            None => true,
            Some(_) if self.one_pipe() => false,
            // A client that does not read one stream does not hold the others back, until half the room is taken.
            Some(backlog) => !backlog.is_behind(slot) && backlog.bytes() <= self.bounds().session / 2,
        }
    }

    /// Whether to read on: not while the core or the client is behind with what was asked before.
    pub(super) fn reads(&self, inner: &Inner) -> bool {
        let unread = inner.backlog.as_ref().map_or(0, |backlog| backlog.control_bytes());
        inner.machine.wants_input() && unread <= self.bounds().session / 8
    }

    /// Remembers that a subscription is parked.
    pub(super) fn await_refill(&self, inner: &mut Inner, slot: u32) {
        if !inner.parked.contains(&slot) {
            inner.parked.push(slot);
        }
        self.wake();
    }

    pub(super) fn drop_lane(&self, inner: &mut Inner, slot: u32) {
        if inner.backlog.is_some() {
            self.with_backlog(inner, |backlog| backlog.drop_lane(slot));
        }
    }

    pub(super) fn discard_backlog(&self, inner: &mut Inner) {
        if let Some(backlog) = inner.backlog.take() {
            self.account(backlog.bytes(), 0);
        }
    }

    fn break_off(&self, inner: &mut Inner, error: RecvError) {
        inner.broken.get_or_insert(error);
        self.wake();
    }

    fn with_backlog<T>(&self, inner: &mut Inner, change: impl FnOnce(&mut Backlog) -> T) -> T {
        let backlog = inner.backlog.get_or_insert_default();
        let before = backlog.bytes();
        let result = change(backlog);
        self.account(before, backlog.bytes());
        result
    }

    fn account(&self, before: usize, after: usize) {
        // Sizes are far below i64's range.
        self.worker.metrics().queue_bytes.inc_by(after as i64 - before as i64);
    }

    fn bounds(&self) -> Bounds {
        let limits = self.worker.limits();
        Bounds { session: limits.session_queue, subscription: limits.subscription_queue }
    }

    /// Whether all lanes share one ordered pipe.
    pub(super) fn one_pipe(&self) -> bool {
        !matches!(self.kind, TransportKind::Quic | TransportKind::WebTransport)
    }
}
