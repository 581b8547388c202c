//! The reconnect plan that an edge tells its clients, made anew once a second from what is known of the fleet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use tidegate_protocol::NodeId;
use tidegate_protocol::link::fleet::EdgeState;
use tidegate_protocol::plan::{Alternative, ReconnectPlan};
use tidegate_transport::clock;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::fleet::Fleet;
use crate::policy::plan::{Outlook, Planner, Renewal};

/// The plan of an edge, for all its workers. Clones are the same.
#[derive(Debug, Clone)]
pub struct Plans {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    own: NodeId,
    /// Places beside the fleet's.
    configured: Vec<Alternative>,
    /// Locked for each connection, and once a second.
    planner: Mutex<Planner>,
    shown: watch::Sender<Shown>,
}

/// What workers see.
#[derive(Debug, Clone)]
struct Shown {
    plan: Arc<ReconnectPlan>,
    /// What this edge says of itself.
    own: Option<Arc<EdgeState>>,
}

impl Plans {
    pub(crate) fn new(own: NodeId, configured: Vec<Alternative>, rng: ChaCha8Rng) -> Self {
        let planner = Planner::new(rng).with_alternatives(configured.clone());
        let shown = watch::Sender::new(Shown { plan: Arc::new(planner.plan(0)), own: None });
        Self { inner: Arc::new(Inner { own, configured, planner: Mutex::new(planner), shown }) }
    }

    /// Follows the fleet until `end` is cancelled.
    pub async fn run(&self, fleet: Fleet, end: CancellationToken) {
        loop {
            self.look_at(&fleet);
            // Biased: nothing is late here.
            tokio::select! {
                biased;
                () = end.cancelled() => return,
                () = sleep(EVERY) => {}
            }
        }
    }

    /// The plan as it is now: its rank is nobody's.
    pub fn current(&self) -> Arc<ReconnectPlan> {
        Arc::clone(&self.inner.shown.borrow().plan)
    }

    /// A rank for a client that connects.
    pub(crate) fn next_rank(&self) -> u32 {
        self.planner().next_rank()
    }

    /// Where a connection that has grown old goes on.
    pub(crate) fn renewal(&self, rng: &mut ChaCha8Rng) -> Renewal {
        let Shown { plan, own } = self.inner.shown.borrow().clone();
        Renewal::choose(&plan, &self.inner.own, own.as_deref(), rng)
    }

    fn look_at(&self, fleet: &Fleet) {
        let view = fleet.view();
        let edges = view.edges().iter().map(|known| &known.state);
        let Some(outlook) = Outlook::of(&self.inner.own, edges, &self.inner.configured) else { return };
        let plan = {
            let mut planner = self.planner();
            planner.handle_outlook(clock::now(), outlook);
            planner.poll_event().map(|_changed| Arc::new(planner.plan(0)))
        };
        let own = view.get(&self.inner.own).map(|known| Arc::new(known.state.clone()));
        self.inner.shown.send_modify(|shown| {
            shown.own = own;
            if let Some(plan) = plan {
                shown.plan = plan;
            }
        });
    }

    fn planner(&self) -> MutexGuard<'_, Planner> {
        // It decides, and waits for nobody.
        self.inner.planner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between two looks at the fleet.
const EVERY: Duration = Duration::from_secs(1);
