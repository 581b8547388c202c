//! Sans-io: make before break. While a session moves it holds two connections: subscriptions take from both, requests are
//! repeated on the new one, and the old one is left when the new one brings everything.

use std::time::Instant;

use crate::ChannelName;

use super::subscription::Need;
use super::{Event, RequestError, Session, Side, State};

impl Session {
    /// The next connection is there.
    pub(super) fn begin_move(&mut self, now: Instant) {
        for subscription in self.subscriptions.values_mut().filter(|subscription| !subscription.left) {
            subscription.begin_move();
        }
        self.ask_waiting(now, Side::Next);
    }

    /// The next connection is open: requests are repeated there, and the app's go there from now on.
    pub(super) fn open_next(&mut self, now: Instant) {
        self.move_until = Some(now + self.config.move_timeout);
        self.fill(now, Side::Next);
    }

    /// Leaves the present connection where the next one brings everything.
    pub(super) fn move_when_ready(&mut self, now: Instant) {
        let Some(next) = &self.next else { return };
        // What one server cannot give in time must not hold up the rest.
        let overdue = self.move_until.is_some_and(|until| now >= until);
        let ready = next.is_open()
            && (overdue || self.subscriptions.values().all(|subscription| subscription.may_move()));
        if ready {
            self.finish_move(now, true);
        }
    }

    /// The next connection becomes the present one. `done` tells the server of the old one that it may go.
    pub(super) fn finish_move(&mut self, now: Instant, done: bool) {
        let Some(next) = self.next.take() else { return };
        let (id, is_open) = (next.id, next.is_open());
        self.move_until = None;
        let old = self.current.replace(next);
        self.state = State::Up;
        self.reconnect.handle_moved(now, is_open);
        self.events.push_back(Event::Moved { connection: id });
        if let Some(old) = old {
            self.requests.drop_lane(&old.lane);
            if done && old.is_begun() && self.leaving.len() < MAX_LEAVING {
                self.leaving.push_back(old.id);
            } else {
                self.release(old.id);
            }
        }
        if !is_open {
            self.ephemeral.clear();
        }
        // Also what the next connection's server refused while the old one might still have answered: it waits nowhere now.
        self.fill(now, Side::Current);
        self.fail_unrepeatable(now);
        let mut needs = Vec::new();
        for (channel, subscription) in &mut self.subscriptions {
            needs.push((channel.clone(), subscription.finish_move()));
        }
        self.stand_alone(now, needs);
    }

    /// The next connection is gone: the session stays where it is.
    pub(super) fn fail_move(&mut self, now: Instant, code: u32, reason: String) {
        let Some(next) = self.next.take() else { return };
        self.move_until = None;
        self.forget(next.id);
        self.events.push_back(Event::MoveFailed { connection: next.id, code, reason });
        self.requests.drop_lane(&next.lane);
        self.fill(now, Side::Current);
        self.fail_unrepeatable(now);
        if let Some(current) = &mut self.current {
            current.probe.suspect_again(now, self.config.suspect_after);
        }
        let mut needs = Vec::new();
        for (channel, subscription) in &mut self.subscriptions {
            needs.push((channel.clone(), subscription.cancel_move()));
        }
        self.stand_alone(now, needs);
        self.not_left(now);
    }

    /// Publishes that were sent over the connection that is gone alone, too long ago.
    fn fail_unrepeatable(&mut self, now: Instant) {
        let lane = self.current.as_ref().map(|connection| &connection.lane);
        for (id, request) in self.requests.take_unrepeatable(now, lane) {
            self.fail(id, request, RequestError::Unanswered);
        }
    }

    fn stand_alone(&mut self, now: Instant, needs: Vec<(ChannelName, Need)>) {
        for (channel, need) in needs {
            self.meet(Side::Current, &channel, need);
        }
        self.remove_left();
        self.ask_waiting(now, Side::Current);
    }
}

/// Connections that are left and whose `done` is not handed out. Beyond that the server learns of it by the close.
const MAX_LEAVING: usize = 4;
