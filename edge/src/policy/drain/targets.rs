//! Sans-io: the places that a drain was granted and has not used.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;

use super::super::admission::{Serial, SlotTime};
use super::{Lease, SlotKeys, SlotTicket};

/// Places by node.
#[derive(Debug, Default)]
pub(super) struct Targets {
    nodes: BTreeMap<NodeId, Target>,
}

#[derive(Debug)]
struct Target {
    leases: VecDeque<(Lease, u16)>,
    /// Places that came in its last answer, and when.
    last: Option<(Instant, u16)>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct PlaceAt {
    pub(super) target: NodeId,
    pub(super) ticket: SlotTicket,
    pub(super) after: Duration,
}

impl Targets {
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.keys()
    }

    /// These and no others; the leases of those that are not among them any more.
    pub(super) fn set(&mut self, nodes: &[NodeId]) -> Vec<(NodeId, u32, u16)> {
        let gone: Vec<NodeId> = self.nodes.keys().filter(|node| !nodes.contains(node)).cloned().collect();
        let unused = gone.iter().flat_map(|node| self.remove(node)).collect();
        for node in nodes {
            self.nodes.entry(node.clone()).or_insert_with(|| Target { leases: VecDeque::new(), last: None });
        }
        unused
    }

    /// The node takes nobody more; its unused leases.
    pub(super) fn remove(&mut self, node: &NodeId) -> Vec<(NodeId, u32, u16)> {
        let target = self.nodes.remove(node);
        let leases = target.into_iter().flat_map(|target| target.leases);
        leases.map(|(lease, next)| (node.clone(), lease.number, next)).collect()
    }

    /// False where nobody waits for it: a node that is no target any more, or one that floods us.
    pub(super) fn add(&mut self, now: Instant, node: &NodeId, lease: Lease) -> bool {
        let Some(target) = self.nodes.get_mut(node) else { return false };
        if target.leases.len() >= MAX_LEASES || lease.count == 0 {
            return false;
        }
        target.last = Some((now, lease.count));
        target.leases.push_back((lease, 0));
        true
    }

    /// The node takes back what is unused of a lease.
    pub(super) fn revoke(&mut self, node: &NodeId, number: u32) {
        if let Some(target) = self.nodes.get_mut(node) {
            target.leases.retain(|(lease, _)| lease.number != number);
        }
    }

    /// Places that could be used now.
    pub(super) fn available(&mut self, unix_ms: u64) -> usize {
        let mut sum = 0;
        for target in self.nodes.values_mut() {
            target.forget_stale(unix_ms);
            sum += target.leases.iter().map(|(lease, next)| usize::from(lease.count - next)).sum::<usize>();
        }
        sum
    }

    /// The same of one node.
    pub(super) fn available_at(&self, node: &NodeId) -> usize {
        let leases = self.nodes.get(node).map(|target| &target.leases);
        leases.into_iter().flatten().map(|(lease, next)| usize::from(lease.count - next)).sum()
    }

    /// Uses the place that comes first.
    pub(super) fn take(&mut self, keys: &SlotKeys, unix_ms: u64) -> Option<PlaceAt> {
        let (node, target) = self
            .nodes
            .iter_mut()
            .filter(|(_, target)| !target.leases.is_empty())
            .min_by_key(|(_, target)| target.leases.front().map(|(lease, next)| lease.slot_ms(*next)))?;
        let (lease, next) = target.leases.front_mut()?;
        let index = *next;
        *next += 1;
        let slot_ms = lease.slot_ms(index);
        let serial = Serial::of_lease(lease.number, index);
        let ticket = keys.seal_lease(lease.issuer, SlotTime::at(slot_ms), serial);
        if *next == lease.count {
            target.leases.pop_front();
        }
        let after = Duration::from_millis(slot_ms.saturating_sub(unix_ms));
        Some(PlaceAt { target: node.clone(), ticket, after })
    }

    /// Everything that is unused.
    pub(super) fn take_all(&mut self) -> Vec<(NodeId, u32, u16)> {
        let mut all = Vec::new();
        for (node, target) in &mut self.nodes {
            all.extend(target.leases.drain(..).map(|(lease, next)| (node.clone(), lease.number, next)));
        }
        all
    }

    /// Places per second by the last answers.
    pub(super) fn latest_rate(&self, now: Instant) -> f64 {
        let recent = |target: &Target| {
            target.last.filter(|(at, _)| now.saturating_duration_since(*at) < Duration::from_secs(1))
        };
        let places: u32 = self.nodes.values().filter_map(recent).map(|(_, count)| u32::from(count)).sum();
        f64::from(places) / super::TICK.as_secs_f64()
    }
}

impl Target {
    /// Places whose time is so long ago that a client might come too late.
    fn forget_stale(&mut self, unix_ms: u64) {
        let usable = (Lease::GRACE / 2).as_millis() as u64;
        while self.leases.front().is_some_and(|(lease, next)| lease.slot_ms(*next) + usable < unix_ms) {
            self.leases.pop_front();
        }
    }
}

/// Of one node: some ten seconds' worth.
const MAX_LEASES: usize = 64;
