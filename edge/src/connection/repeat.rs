//! Repeats of what was delivered, where the path loses packets.

use bytes::Bytes;
use tidegate_protocol::Epoch;
use tidegate_protocol::frame::codec::with_id;
use tidegate_transport::clock;

use super::{Inner, Session};
use crate::policy::repeats::Repeat;

impl Session {
    /// Notes what the connection has just taken of a subscription. Called by the fan-out.
    pub(super) fn note_for_repeat(&self, inner: &mut Inner, slot: u32, bytes: &Bytes) {
        if self.one_pipe() || !inner.machine.takes_repeats() || !self.worker.limits().repeats {
            return;
        }
        let timeout = inner.repeats.poll_timeout();
        let is_look_due = {
            // It may come when the subscription is at another epoch already.
            let marked = || with_id(bytes, inner.machine.epoch(slot).map_or(0, Epoch::mark).into());
            inner.repeats.handle_sent(clock::now, slot, bytes, marked)
        };
        if is_look_due && let Some(path) = inner.connection.path() {
            inner.repeats.handle_path(clock::now(), path);
        }
        // Later ones are due later.
        if timeout.is_none() && inner.repeats.poll_timeout().is_some() {
            self.wake();
        }
    }

    /// Sends again what is due.
    pub(super) fn repeat(&self, inner: &mut Inner) {
        if inner.repeats.poll_timeout().is_none() {
            return;
        }
        if inner.backlog.is_some() || inner.connection.buffered() > 0 || inner.machine.is_ended() {
            inner.repeats.handle_blocked();
            return;
        }
        let now = clock::now();
        while let Some(Repeat { datagram, items }) = inner.repeats.poll_transmit(now) {
            if !inner.connection.send_datagram(&datagram) {
                // Datagrams wait for the congestion window already: these would come too late.
                continue;
            }
            let metrics = self.worker.metrics();
            metrics.repeats.inc_by(items);
            metrics.repeat_bytes.inc_by(datagram.len() as u64);
        }
    }
}
