//! This node among those of its fleet: announced for as long as it runs.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tidegate_edge::drain::DrainControl;
use tidegate_edge::{About, EdgeNode, Fleet};
use tidegate_protocol::link::fleet::EdgeCondition;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A node that others are told of.
pub(super) struct Announced {
    fleet: Fleet,
    control: DrainControl,
    end: CancellationToken,
    tasks: TaskTracker,
}

impl Announced {
    /// Tells others of this node from now on, and its clients of the others.
    pub(super) fn start(fleet: Fleet, about: About, edge: &EdgeNode, registry: &mut Registry) -> Self {
        fleet.register(registry);
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (running, ended) = (fleet.clone(), end.clone());
        let (metrics, door) = (Arc::clone(edge.metrics()), edge.door().clone());
        tasks.spawn(async move { running.run(about, metrics, door, ended).await });
        let (plans, followed, ended) = (edge.plans().clone(), fleet.clone(), end.clone());
        tasks.spawn(async move { plans.run(followed, ended).await });
        let control = edge.drain_control(fleet.clone());
        let (answering, ended) = (control.clone(), end.clone());
        tasks.spawn(ended.run_until_cancelled_owned(async move { answering.answer_others().await }));
        Self { fleet, control, end, tasks }
    }

    /// Who is there.
    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Moves clients.
    pub(super) fn control(&self) -> &DrainControl {
        &self.control
    }

    /// Others are to send nobody here any more.
    pub(super) fn lame_duck(&self) {
        self.fleet.set_condition(EdgeCondition::LameDuck);
    }

    /// Says that the node is gone, and nothing more.
    pub(super) async fn end(self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.fleet.leave().await;
    }
}
