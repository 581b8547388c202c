//! Sans-io: which partitions this node takes, gives away and stops, and whether it may take itself for alive.
//!
//! Every node decides for itself from the same lease table, so that nobody has to be elected: a partition belongs on the
//! node that wins it by rendezvous hashing. The winner claims what has no live owner; an owner that is not the winner
//! hands over, in order. Where two nodes see different tables for a moment, both may claim: terms settle it, and the log
//! never takes anything of the lower one.
//!
//! Feed it [`Ownership::handle_event`], [`Ownership::handle_outcome`] and time; do what [`Ownership::poll_action`] says,
//! and tell how it went. A decision waits for nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tidegate_protocol::NodeId;

use super::rendezvous::winner;
use crate::engine::{ClusterEvent, NodeRecord, PartitionRecord};

/// What the machine goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// How long a membership lasts.
    pub(crate) lease: Duration,
    /// Partitions that are being handed over at once; more of them by a node that leaves.
    pub(crate) handovers: usize,
}

impl Bounds {
    /// The node stops so long before the others may take it for gone.
    fn margin(&self) -> Duration {
        MARGIN.min(self.lease / 4)
    }
}

/// What the driver must do. Each but `FenceAll`, `Stop` and `DropPrepared`, which take effect at once, is answered by an
/// [`Outcome`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Enter the lease table.
    Join,
    /// Renew the membership.
    Renew,
    /// Take the partition, read its log, serve it.
    Claim(u16),
    /// Read the partition's log ahead, and go on following it.
    Prepare(u16),
    /// What was read ahead is of no use any more.
    DropPrepared(u16),
    /// Tell the owner of this term that the log has been read.
    Ready(u16, u64),
    /// Ask this node to prepare; `None`: take that back.
    Propose(u16, Option<NodeId>),
    /// Stop serving in order, and give the partition to this node, or to whoever wants it.
    Release(u16, Option<NodeId>),
    /// Stop serving at once: somebody else owns it.
    Stop(u16),
    /// Stop everything at once: the others may take this node for gone.
    FenceAll,
    /// Nothing is owned any more: leave the lease table.
    Leave,
}

/// How an [`Action`] went, or what happened to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The node has joined, or renewed; the attempt began then.
    Renewed(Instant),
    /// Joining failed, or the outcome of a renewal is unknown.
    NotRenewed,
    /// The membership has ended.
    Lost,
    /// The partition is ours, with this term; its log is still to be read.
    Claimed(u16, u64),
    /// It is served.
    Serving(u16),
    /// It could not be claimed, or not be served: what was begun is undone.
    Failed(u16),
    /// Its log is taken over, or its task ended for another reason than `Release`.
    Ended(u16),
    /// It was released.
    Released(u16),
    /// Its owner must claim it anew, to go on from what the log holds.
    Reclaiming(u16),
    /// The log has been read ahead up to a short rest.
    Prepared(u16),
    /// It cannot be read.
    NotPrepared(u16),
    /// The owner was told, or that failed.
    Told(u16),
    /// The proposal is written, or whether it is is unknown.
    Proposed(u16, bool),
}

/// One node's part in the ownership of all partitions.
#[derive(Debug)]
pub(crate) struct Ownership {
    me: NodeId,
    bounds: Bounds,
    rng: ChaCha8Rng,
    standing: Standing,
    /// All that the lease table holds is known.
    synced: bool,
    nodes: BTreeMap<NodeId, NodeRecord>,
    slots: Vec<Slot>,
    stay: Stay,
    join_failures: u32,
    /// What this node declines has changed since the last renewal began.
    untold: bool,
    actions: VecDeque<Action>,
}

/// Whether the others take this node for alive.
///
/// ```text
///  Out ──Join, Renewed──► In ──Leave──► Left
///   ▲                      │
///   └── lost, or no renewal in time ──┘
/// ```
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// Not, or maybe not. `None`: joining.
    Out { join_at: Option<Instant> },
    /// Yes, `until` then. `renew_at`: `None` while a renewal is under way.
    In { until: Instant, renew_at: Option<Instant> },
    /// It has gone.
    Left,
}

/// What is planned for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    /// To stay.
    On,
    /// To hand everything over, then leave.
    Drain,
    /// To leave now, with whatever is left released as it is.
    Hurry,
}

#[derive(Debug)]
struct Slot {
    record: PartitionRecord,
    hold: Hold,
    trouble: Trouble,
}

/// Attempts at a partition that failed in a row, and what followed from that. Over once the partition is served.
#[derive(Debug, Default)]
struct Trouble {
    failures: u32,
    /// Since when.
    since: Option<Instant>,
    /// How often this node stepped back.
    steps: u32,
    /// Others are to have it until then.
    back_until: Option<Instant>,
}

/// What this node has of a partition.
///
/// ```text
///  Idle ──► Preparing ──► Claiming ──► Owned ──► Releasing ──► Idle
///    └───────────────────────▲          └── fenced, failed, or a higher term ──► Idle
/// ```
#[derive(Debug, Clone)]
enum Hold {
    /// Nothing, and nothing is tried before `retry_at`.
    Idle { retry_at: Option<Instant> },
    /// Its log is read ahead. `read`: up to a short rest; `telling`: the owner is being told.
    Preparing { term: u64, read: bool, telling: bool, retry_at: Option<Instant> },
    /// It is being claimed.
    Claiming,
    /// It is ours. `asking`: a proposal is being written; `since`: somebody prepares since then.
    Owned { term: u64, serving: bool, asking: bool, since: Option<Instant>, retry_at: Option<Instant> },
    /// It is given up in order.
    Releasing,
}

/// What a partition that is not ours asks of this node.
#[derive(Debug, PartialEq, Eq)]
enum Duty {
    Nothing,
    Prepare,
    Claim,
}

impl Ownership {
    /// Nothing is known yet, and the first thing to do is to join; `joined`: that was done, in an attempt that began
    /// then.
    pub(crate) fn new(
        me: NodeId,
        partitions: u16,
        bounds: Bounds,
        rng: ChaCha8Rng,
        joined: Option<Instant>,
        now: Instant,
    ) -> Self {
        let slot = || Slot {
            record: PartitionRecord::default(),
            hold: Hold::Idle { retry_at: None },
            trouble: Trouble::default(),
        };
        let mut machine = Self {
            me,
            bounds,
            rng,
            standing: Standing::Out { join_at: Some(now) },
            synced: false,
            nodes: BTreeMap::new(),
            slots: std::iter::repeat_with(slot).take(usize::from(partitions)).collect(),
            stay: Stay::On,
            join_failures: 0,
            untold: false,
            actions: VecDeque::new(),
        };
        match joined {
            Some(started) => machine.renewed(started),
            None => machine.handle_timeout(now),
        }
        machine
    }

    /// The lease table changed.
    pub(crate) fn handle_event(&mut self, now: Instant, event: ClusterEvent) {
        match event {
            ClusterEvent::Node { id, record: Some(record) } => {
                let known = self.nodes.insert(id, record.clone());
                if known.is_none_or(|known| known.declines != record.declines) {
                    self.decide_all(now);
                }
            }
            ClusterEvent::Node { id, record: None } => {
                if self.nodes.remove(&id).is_some() {
                    self.decide_all(now);
                }
            }
            ClusterEvent::Partition { partition, record } => {
                let handovers = self.handovers();
                let Some(slot) = self.slots.get_mut(usize::from(partition.0)) else { return };
                // After a watch that broke older news may come again.
                if record.term < slot.record.term {
                    return;
                }
                let news = record.term > slot.record.term || record.released;
                // What was waited for. After failures it is not: it may be what fails that changes the record.
                if let Hold::Idle { retry_at } = &mut slot.hold
                    && news
                    && slot.trouble.failures == 0
                {
                    *retry_at = None;
                }
                self.slots[usize::from(partition.0)].record = record;
                self.decide(now, partition.0);
                self.go_on(now, handovers);
            }
            ClusterEvent::Synced => {
                self.synced = true;
                self.decide_all(now);
            }
        }
    }

    /// The watch broke: nothing is decided until another has told everything.
    pub(crate) fn handle_watch_broken(&mut self) {
        self.synced = false;
        self.nodes.clear();
    }

    /// Something that was asked for has gone well, or not.
    pub(crate) fn handle_outcome(&mut self, now: Instant, outcome: Outcome) {
        let (Outcome::Claimed(partition, _)
        | Outcome::Serving(partition)
        | Outcome::Failed(partition)
        | Outcome::Ended(partition)
        | Outcome::Released(partition)
        | Outcome::Reclaiming(partition)
        | Outcome::Prepared(partition)
        | Outcome::NotPrepared(partition)
        | Outcome::Told(partition)
        | Outcome::Proposed(partition, _)) = outcome
        else {
            return self.handle_renewal(now, outcome);
        };
        let before = self.handovers();
        let Some(slot) = self.slots.get_mut(usize::from(partition)) else { return };
        match (&mut slot.hold, outcome) {
            (Hold::Claiming, Outcome::Claimed(_, term)) => {
                slot.hold = Hold::Owned { term, serving: false, asking: false, since: None, retry_at: None };
            }
            (Hold::Owned { serving, .. }, Outcome::Serving(_)) => {
                *serving = true;
                self.untold |= slot.trouble.back_until.is_some();
                slot.trouble = Trouble::default();
            }
            (Hold::Claiming | Hold::Owned { .. }, Outcome::Failed(_))
            | (Hold::Preparing { .. }, Outcome::NotPrepared(_)) => self.handle_failed(now, partition),
            (Hold::Owned { .. }, Outcome::Reclaiming(_)) => slot.hold = Hold::Claiming,
            // The news of it may be on its way yet; until then the record says that the partition is ours.
            (Hold::Claiming | Hold::Owned { .. } | Hold::Releasing, Outcome::Ended(_))
            | (Hold::Releasing, Outcome::Released(_)) => {
                slot.hold = Hold::Idle { retry_at: Some(now + SETTLE) };
            }
            (Hold::Preparing { read, .. }, Outcome::Prepared(_)) => *read = true,
            (Hold::Preparing { telling, retry_at, .. }, Outcome::Told(_)) => {
                *telling = false;
                *retry_at = Some(now + SETTLE);
            }
            (Hold::Owned { asking, since, retry_at, .. }, Outcome::Proposed(_, written)) => {
                *asking = false;
                // With a time to try again it was taken back.
                if written && retry_at.is_none() {
                    *since = Some(now);
                }
                // Until then the news of it comes, or it is tried again.
                *retry_at = Some((now + SETTLE).max(retry_at.unwrap_or(now)));
            }
            // Of something that was stopped meanwhile.
            _ => {}
        }
        self.decide(now, partition);
        self.tell(now);
        if matches!(outcome, Outcome::Released(_) | Outcome::Ended(_) | Outcome::Serving(_)) {
            self.decide_all(now);
        } else {
            self.go_on(now, before);
        }
    }

    /// A hand-over that ended, however it did, makes room for another.
    fn go_on(&mut self, now: Instant, before: usize) {
        if self.handovers() < before {
            self.decide_all(now);
        }
    }

    /// Partitions that are on their way to another node.
    fn handovers(&self) -> usize {
        self.slots.iter().filter(|slot| slot.hands_over()).count()
    }

    /// How many may be. A node that leaves has nothing else to do, and little time.
    fn most_handovers(&self) -> usize {
        if self.stay == Stay::On {
            self.bounds.handovers
        } else {
            self.bounds.handovers.saturating_mul(LEAVING)
        }
    }

    /// Hand everything over, then leave.
    pub(crate) fn handle_drain(&mut self, now: Instant) {
        if self.stay == Stay::On {
            self.stay = Stay::Drain;
            self.decide_all(now);
        }
    }

    /// Enough: release what is left, ready or not, and leave.
    pub(crate) fn handle_hurry(&mut self, now: Instant) {
        self.stay = Stay::Hurry;
        self.decide_all(now);
    }

    /// Time has come.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        match &mut self.standing {
            Standing::Out { join_at } if join_at.is_some_and(|at| at <= now) => {
                *join_at = None;
                self.actions.push_back(Action::Join);
            }
            Standing::In { until, .. } if *until <= now => self.fence(now),
            Standing::In { renew_at, .. } if renew_at.is_some_and(|at| at <= now) => {
                *renew_at = None;
                self.untold = false;
                self.actions.push_back(Action::Renew);
            }
            Standing::Out { .. } | Standing::In { .. } | Standing::Left => {}
        }
        let mut due = false;
        for slot in &mut self.slots {
            let is_back = slot.trouble.back_until.take_if(|until| *until <= now).is_some();
            self.untold |= is_back;
            due |= is_back || slot.hold.poll_timeout().is_some_and(|at| at <= now);
        }
        if due && self.may_decide() {
            self.decide_all(now);
        }
        self.tell(now);
    }

    /// When to call [`Self::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let standing = match self.standing {
            Standing::Out { join_at } => join_at,
            Standing::In { until, renew_at } => Some(renew_at.map_or(until, |at| at.min(until))),
            Standing::Left => None,
        };
        let slots = self.may_decide().then(|| self.slots.iter().filter_map(|slot| slot.hold.poll_timeout()));
        let steps = self.slots.iter().filter_map(|slot| slot.trouble.back_until);
        standing.into_iter().chain(slots.into_iter().flatten()).chain(steps).min()
    }

    /// What to do next.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Until when this node may take itself for alive; `None` where it may not.
    pub(crate) fn alive_until(&self) -> Option<Instant> {
        match self.standing {
            Standing::In { until, .. } => Some(until),
            Standing::Out { .. } | Standing::Left => None,
        }
    }

    /// True where nothing that this node is to serve is still to be served.
    pub(crate) fn is_settled(&self) -> bool {
        let settled = |hold: &Hold| !matches!(hold, Hold::Claiming | Hold::Owned { serving: false, .. });
        self.may_decide() && self.slots.iter().all(|slot| settled(&slot.hold))
    }

    /// What this node failed to take again and again, and leaves to others for now: for its record, which is told with
    /// each renewal.
    pub(crate) fn declines(&self) -> Vec<u16> {
        let slots = (0..).zip(&self.slots);
        slots.filter(|(_, slot)| slot.trouble.back_until.is_some()).map(|(partition, _)| partition).collect()
    }

    /// Live nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// What the lease table says of each partition.
    pub(crate) fn records(&self) -> impl Iterator<Item = &PartitionRecord> {
        self.slots.iter().map(|slot| &slot.record)
    }

    /// True for a node that is in the lease table, and does not leave this partition to others.
    pub(crate) fn is_willing(&self, node: &NodeId, partition: u16) -> bool {
        let Some(record) = self.nodes.get(node) else { return false };
        if *node == self.me {
            // The table may not know yet.
            return self.slots[usize::from(partition)].trouble.back_until.is_none();
        }
        !record.declines.contains(&partition)
    }

    fn handle_renewal(&mut self, now: Instant, outcome: Outcome) {
        match (&mut self.standing, outcome) {
            (Standing::Left, _) => {}
            (_, Outcome::Renewed(started)) => {
                let was_out = matches!(self.standing, Standing::Out { .. });
                self.renewed(started);
                if was_out {
                    self.decide_all(now);
                }
            }
            (Standing::Out { .. }, _) => {
                self.join_failures = self.join_failures.saturating_add(1);
                // An engine that elects is back within seconds, and a node that is out serves nothing.
                let join_at = now + self.retry_after(self.join_failures.min(JOIN_DOUBLINGS));
                self.standing = Standing::Out { join_at: Some(join_at) };
            }
            (Standing::In { .. }, Outcome::Lost) => self.fence(now),
            (Standing::In { renew_at, .. }, _) => *renew_at = Some(now + self.bounds.lease / 12),
        }
    }

    /// It was not taken, or not read. Who fails again and again steps back, where somebody else is willing: a partition is
    /// not to wait for a node that lives and cannot have it. It comes back after a while, which doubles each time.
    fn handle_failed(&mut self, now: Instant, partition: u16) {
        let others = self.nodes.keys().any(|node| *node != self.me && self.is_willing(node, partition));
        let trouble = &mut self.slots[usize::from(partition)].trouble;
        let failures = trouble.failures;
        trouble.failures = failures.saturating_add(1);
        let since = *trouble.since.get_or_insert(now);
        let enough = trouble.failures >= ENOUGH_FAILURES && since + ENOUGH_TIME <= now;
        let retry_at = if others && (enough || trouble.steps > 0) {
            let pause = STEP_BACK.saturating_mul(1 << trouble.steps.min(8)).min(LONGEST_STEP_BACK);
            trouble.back_until = Some(now + pause);
            trouble.steps = trouble.steps.saturating_add(1);
            (trouble.failures, trouble.since) = (0, None);
            self.untold = true;
            None
        } else {
            Some(now + self.retry_after(failures))
        };
        self.slots[usize::from(partition)].hold = Hold::Idle { retry_at };
    }

    /// What this node declines is told with a renewal: now, unless one is under way.
    fn tell(&mut self, now: Instant) {
        if let Standing::In { renew_at: Some(at), .. } = &mut self.standing
            && self.untold
        {
            *at = now.min(*at);
        }
    }

    fn renewed(&mut self, started: Instant) {
        self.join_failures = 0;
        let until = started + self.bounds.lease - self.bounds.margin();
        let renew_at = if self.untold { started } else { started + self.bounds.lease / 3 };
        self.standing = Standing::In { until, renew_at: Some(renew_at) };
    }

    fn fence(&mut self, now: Instant) {
        self.actions.retain(|action| *action == Action::Leave);
        self.actions.push_back(Action::FenceAll);
        for slot in &mut self.slots {
            slot.hold = Hold::Idle { retry_at: None };
            // Whatever failed then may have been for want of the engine.
            (slot.trouble.failures, slot.trouble.since) = (0, None);
        }
        if self.stay == Stay::On {
            self.standing = Standing::Out { join_at: Some(now) };
        } else {
            self.leave();
        }
    }

    fn leave(&mut self) {
        self.standing = Standing::Left;
        self.actions.push_back(Action::Leave);
    }

    fn may_decide(&self) -> bool {
        self.synced && matches!(self.standing, Standing::In { .. })
    }

    fn decide_all(&mut self, now: Instant) {
        for partition in 0..self.slots.len() {
            // Made for a u16.
            self.decide(now, partition as u16);
        }
        let gone = |hold: &Hold| !matches!(hold, Hold::Claiming | Hold::Owned { .. } | Hold::Releasing);
        let may_leave = self.stay == Stay::Hurry || self.may_decide();
        if self.stay != Stay::On
            && may_leave
            && !matches!(self.standing, Standing::Left)
            && self.slots.iter().all(|slot| gone(&slot.hold))
        {
            self.leave();
        }
    }

    fn decide(&mut self, now: Instant, partition: u16) {
        if self.stay == Stay::Hurry {
            return self.let_go(partition);
        }
        if !self.may_decide() {
            return;
        }
        let index = usize::from(partition);
        match self.slots[index].hold.clone() {
            Hold::Idle { retry_at: Some(at) } if at > now => {}
            Hold::Idle { .. } => {
                self.slots[index].hold = match self.duty(partition) {
                    Duty::Nothing => Hold::Idle { retry_at: None },
                    Duty::Claim => {
                        self.actions.push_back(Action::Claim(partition));
                        Hold::Claiming
                    }
                    Duty::Prepare => {
                        self.actions.push_back(Action::Prepare(partition));
                        let term = self.slots[index].record.term;
                        Hold::Preparing { term, read: false, telling: false, retry_at: None }
                    }
                };
            }
            Hold::Preparing { term, read, telling, retry_at } => {
                self.decide_prepared(now, partition, term, read && !telling, retry_at);
            }
            Hold::Owned { term, .. } if self.slots[index].record.term > term => {
                self.actions.push_back(Action::Stop(partition));
                self.slots[index].hold = Hold::Idle { retry_at: None };
                self.decide(now, partition);
            }
            Hold::Owned { term, serving: true, asking: false, retry_at, .. }
                // An older record: the news of our claim is still to come.
                if self.slots[index].record.term == term =>
            {
                self.decide_owned(now, partition, retry_at);
            }
            Hold::Owned { .. } | Hold::Claiming | Hold::Releasing => {}
        }
    }

    fn decide_prepared(
        &mut self,
        now: Instant,
        partition: u16,
        term: u64,
        may_tell: bool,
        retry_at: Option<Instant>,
    ) {
        let index = usize::from(partition);
        let duty = self.duty(partition);
        let slot = &mut self.slots[index];
        if duty == Duty::Claim {
            slot.hold = Hold::Claiming;
            self.actions.push_back(Action::Claim(partition));
        } else if duty == Duty::Nothing || slot.record.term != term {
            slot.hold = Hold::Idle { retry_at: None };
            self.actions.push_back(Action::DropPrepared(partition));
            self.decide(now, partition);
        } else if may_tell && retry_at.is_none_or(|at| at <= now) {
            let telling = !slot.record.ready;
            slot.hold = Hold::Preparing { term, read: true, telling, retry_at: None };
            if telling {
                self.actions.push_back(Action::Ready(partition, term));
            }
        }
    }

    fn decide_owned(&mut self, now: Instant, partition: u16, retry_at: Option<Instant>) {
        let heir = self.heir(partition).cloned();
        let has_room = self.handovers() < self.most_handovers();
        let slot = &mut self.slots[usize::from(partition)];
        let Hold::Owned { asking, since: preparing_since, retry_at: next_try, .. } = &mut slot.hold else {
            return;
        };
        let waiting = retry_at.is_some_and(|at| at > now);
        if !waiting {
            *next_try = None;
        }
        let next = &slot.record.next;
        match heir {
            // Alone, and to go.
            None => {
                slot.hold = Hold::Releasing;
                self.actions.push_back(Action::Release(partition, None));
            }
            Some(heir) if heir == self.me => {
                *preparing_since = None;
                if next.is_some() && !waiting {
                    *asking = true;
                    self.actions.push_back(Action::Propose(partition, None));
                }
            }
            Some(heir) if next.as_ref() == Some(&heir) => {
                let since = *preparing_since.get_or_insert(now);
                if slot.record.ready {
                    slot.hold = Hold::Releasing;
                    self.actions.push_back(Action::Release(partition, Some(heir)));
                } else if since + PATIENCE <= now {
                    // Others have their turn first.
                    *asking = true;
                    *preparing_since = None;
                    *next_try = Some(now + PATIENCE);
                    self.actions.push_back(Action::Propose(partition, None));
                }
            }
            // News of what was asked is on its way; or others have their turn first.
            Some(_) if waiting => {}
            Some(heir) => {
                *preparing_since = None;
                // To whoever was next before it is no hand-over more.
                if next.is_some() || has_room {
                    *asking = true;
                    self.actions.push_back(Action::Propose(partition, Some(heir)));
                }
            }
        }
    }

    /// Gives up what there is of the partition.
    fn let_go(&mut self, partition: u16) {
        let heir = self.heir(partition).filter(|heir| **heir != self.me).cloned();
        let slot = &mut self.slots[usize::from(partition)];
        match slot.hold {
            Hold::Owned { serving: true, .. } => {
                slot.hold = Hold::Releasing;
                self.actions.push_back(Action::Release(partition, heir));
            }
            Hold::Owned { .. } | Hold::Claiming => {
                slot.hold = Hold::Idle { retry_at: None };
                self.actions.push_back(Action::Stop(partition));
            }
            Hold::Preparing { .. } => {
                slot.hold = Hold::Idle { retry_at: None };
                self.actions.push_back(Action::DropPrepared(partition));
            }
            Hold::Idle { .. } | Hold::Releasing => {}
        }
    }

    fn duty(&self, partition: u16) -> Duty {
        let record = &self.slots[usize::from(partition)].record;
        let mine = |node: Option<&NodeId>| node == Some(&self.me);
        let claim_if = |mine| if mine { Duty::Claim } else { Duty::Nothing };
        let willing = |node: &&NodeId| self.is_willing(node, partition);
        if record.released
            && let Some(next) = record.next.as_ref().filter(willing)
        {
            return claim_if(mine(Some(next)));
        }
        match record.owner.as_ref().filter(willing) {
            Some(owner) if !record.released => {
                if mine(Some(owner)) {
                    // Of an earlier life, or of a claim whose outcome was lost: nobody else will take it.
                    Duty::Claim
                } else if mine(record.next.as_ref()) && self.stay == Stay::On {
                    Duty::Prepare
                } else {
                    Duty::Nothing
                }
            }
            Some(_) | None => claim_if(mine(self.winner(partition, None))),
        }
    }

    /// Who is to have a partition that is ours.
    fn heir(&self, partition: u16) -> Option<&NodeId> {
        self.winner(partition, (self.stay != Stay::On).then_some(&self.me))
    }

    /// Who is to have a partition, `but` one: of those who are willing, unless nobody is.
    fn winner(&self, partition: u16, but: Option<&NodeId>) -> Option<&NodeId> {
        let nodes = || self.nodes.keys().filter(|node| Some(*node) != but);
        let willing = nodes().filter(|node| self.is_willing(node, partition));
        winner(willing, partition).or_else(|| winner(nodes(), partition))
    }

    /// Between half of a bound and the bound, which doubles with each failure.
    fn retry_after(&mut self, failures: u32) -> Duration {
        let bound = FIRST_RETRY.saturating_mul(1 << failures.min(8)).min(LAST_RETRY);
        bound.mul_f64(self.rng.random_range(0.5..1.0))
    }
}

impl Slot {
    /// Somebody is to have it, or the last word of that is being written.
    fn hands_over(&self) -> bool {
        match &self.hold {
            Hold::Owned { term, asking, since, .. } => {
                *asking || since.is_some() || (self.record.next.is_some() && self.record.term == *term)
            }
            Hold::Releasing => true,
            Hold::Idle { .. } | Hold::Preparing { .. } | Hold::Claiming => false,
        }
    }
}

impl Hold {
    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Idle { retry_at } => *retry_at,
            Self::Preparing { read: true, telling: false, retry_at, .. } => *retry_at,
            Self::Owned { serving: true, asking: false, since, retry_at, .. } => {
                let patience = since.map(|since| since + PATIENCE);
                patience.into_iter().chain(*retry_at).min()
            }
            Self::Preparing { .. } | Self::Owned { .. } | Self::Claiming | Self::Releasing => None,
        }
    }
}

/// A node stops so long before its lease ends: clocks run a little differently, and a timer may be late.
const MARGIN: Duration = Duration::from_millis(500);
/// For news of what this node did itself.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a node may take to read a log ahead before another partition gets its turn.
const PATIENCE: Duration = Duration::from_secs(120);
/// A node steps back from a partition after so many failures in a row, and so long after the first of them: longer than
/// the election of a leader in the engine takes, which nobody else could do anything about.
const ENOUGH_FAILURES: u32 = 3;
const ENOUGH_TIME: Duration = Duration::from_secs(10);
/// For so long, the first time.
const STEP_BACK: Duration = Duration::from_secs(60);
const LONGEST_STEP_BACK: Duration = Duration::from_secs(3600);
/// A node that leaves hands over so many times more partitions at once.
const LEAVING: usize = 4;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Joining is tried at least every 1.6 s.
const JOIN_DOUBLINGS: u32 = 3;

#[cfg(test)]
mod tests;
