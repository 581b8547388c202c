//! Sans-io: what the client is told of when and where to come back, and how old its connection may become.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Event, Heartbeat, Session, State};
use crate::frame::{Goaway, Ping, ServerBody, ServerFrame};
use crate::plan::ReconnectPlan;

/// A client's place among those who would come back together, and how long its connection may go on.
#[derive(Debug, Default)]
pub(super) struct Place {
    rank: u32,
    /// The newest of this server, whose rank is nobody's.
    plan: Option<Arc<ReconnectPlan>>,
    /// The epoch of the one that the client has.
    told: Option<u64>,
    /// After so long the connection is renewed; never, where this is nothing.
    lifetime: Option<Duration>,
    renew_at: Option<Instant>,
    /// The client was asked to renew: nothing is closed where it does not.
    pub(super) renewing: bool,
}

impl Session {
    /// Before `connect`: the client's rank, the plan as it is, and after how long its connection is to be renewed.
    pub fn place(&mut self, rank: u32, plan: Arc<ReconnectPlan>, lifetime: Option<Duration>) {
        self.place = Place { rank, plan: Some(plan), lifetime, ..Place::default() };
    }

    /// This server's plan, as it is now: the client hears of another epoch with the next ping. The rank in it does not
    /// count.
    pub fn handle_plan(&mut self, plan: Arc<ReconnectPlan>) {
        self.place.plan = Some(plan);
    }

    /// The epoch of the newest plan that it was handed.
    pub fn plan_epoch(&self) -> Option<u64> {
        self.place.plan.as_ref().map(|plan| plan.epoch)
    }

    /// What [`Event::Renew`] asked for cannot be done now: it comes again, later.
    pub fn renew_later(&mut self, now: Instant) {
        self.place.renewing = false;
        self.place.renew_at = self.place.lifetime.map(|lifetime| now + lifetime);
    }

    /// Asks the client to make another connection, without need: where it does not, this one stays. False where nobody is to
    /// be asked.
    pub fn renew(&mut self, now: Instant, goaway: Goaway) -> bool {
        let asked = self.goaway(now, goaway);
        self.place.renewing = asked;
        asked
    }

    /// The session is open: its age counts from now.
    pub(super) fn begin_aging(&mut self, now: Instant) {
        if self.moves {
            self.place.renew_at = self.place.lifetime.map(|lifetime| now + lifetime);
        }
    }

    pub(super) fn renewal_timeout(&self) -> Option<Instant> {
        self.place.renew_at.filter(|_| self.is_served() && self.leave_by.is_none() && !self.has_moved())
    }

    pub(super) fn tend_renewal(&mut self, now: Instant) {
        if self.renewal_timeout().is_some_and(|at| at <= now) {
            self.place.renew_at = None;
            self.events.push_back(Event::Renew);
        }
    }

    /// The plan, where the client does not have it.
    pub(super) fn untold_plan(&mut self) -> Option<ReconnectPlan> {
        let plan = self.place.plan.as_deref()?;
        let is_nothing = self.place.told.is_none() && plan.says_nothing();
        if is_nothing || self.place.told.is_some_and(|told| told >= plan.epoch) {
            return None;
        }
        self.place.told = Some(plan.epoch);
        Some(ReconnectPlan { rank: self.place.rank, ..plan.clone() })
    }

    /// The client may be sent to where only the newest plan allows it: it hears of that first.
    pub(super) fn tell_plan_first(&mut self, now: Instant) {
        if self.is_served()
            && let Some(plan) = self.untold_plan()
        {
            self.ping_aside(now, None, Some(plan));
        }
    }

    /// A ping for what it brings.
    pub(super) fn ping_aside(&mut self, now: Instant, resume: Option<String>, plan: Option<ReconnectPlan>) {
        if let State::Open { heartbeat: heartbeat @ Heartbeat::PingAt(_), .. } = &mut self.state {
            *heartbeat = Heartbeat::PongBy(now + self.settings.pong);
        }
        self.transmits.push_back(ServerFrame::new(0, ServerBody::Ping(Ping { resume, plan })));
    }
}
