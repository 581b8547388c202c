//! `GET /v1/channels/{channel}/poll`: any `curl` is a subscriber, without a session.

use std::cell::RefCell;

use tidegate_protocol::frame::{Publication, ServerBody};
use tidegate_protocol::link::{LinkError, Recovery};
use tidegate_protocol::{Offset, Position};
use tokio::sync::Notify;

use crate::upstream::Run;

/// One request that waits: for the core's answer, then for the first publications after it.
#[derive(Debug)]
pub(crate) struct Waiter {
    state: RefCell<State>,
    changed: Notify,
}

/// ```text
///          recovered: nothing yet          deliver, rebased
/// Asking ─────────────────────────► Waiting ───────────────► Answered
///    └──────────── recovered: publications, gap, error ────────▲
/// ```
#[derive(Debug)]
enum State {
    Asking { from_head: bool },
    Waiting { recovery: Recovery },
    Answered { result: Result<Recovery, LinkError> },
}

impl Waiter {
    /// A request that was just sent to the core; `from_head` where no position was given, so that a head is not yet
    /// an answer.
    pub(crate) fn new(from_head: bool) -> Self {
        Self { state: RefCell::new(State::Asking { from_head }), changed: Notify::new() }
    }

    pub(crate) fn recovered(&self, result: Result<Recovery, LinkError>) {
        let mut state = self.state.borrow_mut();
        let State::Asking { from_head } = *state else { return };
        *state = match result {
            Ok(recovery) if recovery.publications.is_empty() && (recovery.recovered || from_head) => {
                State::Waiting { recovery }
            }
            Ok(mut recovery) => {
                // The next poll goes on behind what this one brings.
                recovery.position.offset = recovery.cut_at().unwrap_or(recovery.position.offset);
                State::Answered { result: Ok(recovery) }
            }
            Err(error) => State::Answered { result: Err(error) },
        };
        self.changed.notify_one();
    }

    pub(crate) fn deliver(&self, run: &Run) {
        let mut state = self.state.borrow_mut();
        let State::Waiting { recovery } = &mut *state else { return };
        let last = recovery.position.offset;
        let publications: Vec<Publication> = run
            .deliveries()
            .iter()
            .filter(|delivery| delivery.offset > last)
            .filter_map(|delivery| match &delivery.frame.frame().body {
                Some(ServerBody::Publication(publication)) => Some(publication.clone()),
                _ => None,
            })
            .collect();
        let Some(newest) = publications.last() else { return };
        let position = Position::new(recovery.position.epoch.clone(), Offset(newest.offset));
        let recovered = recovery.recovered;
        *state = State::Answered { result: Ok(Recovery { position, recovered, publications }) };
        self.changed.notify_one();
    }

    pub(crate) fn rebased(&self, position: &Position) {
        let mut state = self.state.borrow_mut();
        if matches!(*state, State::Waiting { .. }) {
            let recovery =
                Recovery { position: position.clone(), recovered: false, publications: Vec::new() };
            *state = State::Answered { result: Ok(recovery) };
            self.changed.notify_one();
        }
    }

    /// Waits until the core has answered at all.
    pub(crate) async fn asked(&self) {
        while matches!(*self.state.borrow(), State::Asking { .. }) {
            self.changed.notified().await;
        }
    }

    /// Waits for an answer worth giving.
    pub(crate) async fn answered(&self) {
        while !matches!(*self.state.borrow(), State::Answered { .. }) {
            self.changed.notified().await;
        }
    }

    /// What there is to answer now; `None` while the core has not answered.
    pub(crate) fn result(&self) -> Option<Result<Recovery, LinkError>> {
        match &*self.state.borrow() {
            State::Asking { .. } => None,
            State::Waiting { recovery } => Some(Ok(recovery.clone())),
            State::Answered { result } => Some(result.clone()),
        }
    }
}
