//! Sans-io: what a partition knows of the sessions that hash to it: which of their tickets were spent, and over which
//! links those who hold them can be told.
//!
//! Nothing of this is in the log: a partition that starts anew has forgotten it. Tickets live for minutes, and a
//! session's tokens are not in them.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::NodeId;
use tidegate_protocol::link::{CoreFrame, LinkName};
use tidegate_protocol::session::resume::{Bounds, Outcome, Spending, Spent, SpentTable, Told};

use crate::channel::LinkId;

/// The sessions of one partition.
#[derive(Debug)]
pub(crate) struct Sessions {
    spent: SpentTable<LinkId>,
    /// The links of each name: two while one process takes over from another, or where an old link is not known to be
    /// dead. Which of them a ticket was issued over, nobody says.
    names: BTreeMap<LinkName, BTreeSet<LinkId>>,
    /// The same of each edge that has one for all of its workers.
    nodes: BTreeMap<NodeId, BTreeSet<LinkId>>,
}

impl Sessions {
    /// None yet; at most so many of which something was spent.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            spent: SpentTable::new(Bounds { sessions: limit }),
            names: BTreeMap::new(),
            nodes: BTreeMap::new(),
        }
    }

    /// A worker's link begins.
    pub(crate) fn attach(&mut self, link: LinkId, name: LinkName) {
        self.names.entry(name).or_default().insert(link);
    }

    /// The link of all workers of an edge begins.
    pub(crate) fn attach_node(&mut self, link: LinkId, node: NodeId) {
        self.nodes.entry(node).or_default().insert(link);
    }

    /// A link is gone. What it held is remembered: a ticket stays spent.
    pub(crate) fn detach(&mut self, link: LinkId) {
        forget(&mut self.names, link);
        forget(&mut self.nodes, link);
    }

    /// Judges an attempt; `holder` is who issued the ticket. Appends the answer, and before it what others are told.
    pub(crate) fn spend(
        &mut self,
        unix_ms: u64,
        link: LinkId,
        request: u64,
        spending: &Spending,
        holder: &LinkName,
        outputs: &mut Vec<(LinkId, CoreFrame)>,
    ) {
        let Spent { outcome, told } = self.spent.spend(unix_ms, spending, link);
        let first = (outcome == Outcome::First).then_some((Told::Resumed, Vec::new()));
        if let Some((told, mut links)) = told.or(first) {
            // The connection that the ticket was given to, of which the table knows only where it was resumed itself.
            let issuers = self.names.get(holder).or_else(|| self.nodes.get(&holder.node));
            let more: Vec<_> = issuers.into_iter().flatten().filter(|link| !links.contains(link)).collect();
            links.extend(more);
            let generation = spending.generation.saturating_add(1);
            let session = spending.session;
            outputs.extend(
                links.into_iter().map(|link| (link, CoreFrame::SessionMoved { session, generation, told })),
            );
        }
        outputs.push((link, CoreFrame::Spent { request, result: Ok(outcome) }));
    }

    /// Forgets up to `steps` sessions that no ticket can be of any more.
    pub(crate) fn sweep(&mut self, unix_ms: u64, steps: usize) {
        self.spent.expire(unix_ms, steps);
    }

    /// Sessions of which something was spent.
    pub(crate) fn len(&self) -> usize {
        self.spent.len()
    }
}

fn forget<K: Ord>(links: &mut BTreeMap<K, BTreeSet<LinkId>>, link: LinkId) {
    links.retain(|_, links| {
        links.remove(&link);
        !links.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_protocol::session::resume::AttemptKey;
    use tidegate_protocol::{NodeId, SessionId};

    use super::*;

    fn name(worker: u8) -> LinkName {
        LinkName { node: NodeId::new("edge-1"), worker }
    }

    fn sessions() -> Sessions {
        let mut sessions = Sessions::new(10);
        for worker in 1..4 {
            sessions.attach(LinkId(u32::from(worker)), name(worker));
        }
        sessions
    }

    /// What is sent to whom when a ticket that `holder` issued arrives over `link`.
    fn spend(
        sessions: &mut Sessions,
        generation: u32,
        key: u8,
        link: u32,
        holder: u8,
    ) -> (Outcome, Vec<(u32, Told)>) {
        let spending = Spending {
            session: SessionId::from_bytes([9; 16]),
            generation,
            key: Some(AttemptKey([key; 16])),
            early: false,
            remember: Duration::from_secs(60),
        };
        let mut outputs = Vec::new();
        sessions.spend(0, LinkId(link), 77, &spending, &name(holder), &mut outputs);
        let Some((to, CoreFrame::Spent { request: 77, result: Ok(outcome) })) = outputs.pop() else {
            panic!("the answer comes last: {outputs:?}")
        };
        assert_eq!(to, LinkId(link));
        let told = outputs.into_iter().map(|(link, frame)| {
            let CoreFrame::SessionMoved { session, generation: next, told } = frame else {
                panic!("{frame:?}")
            };
            assert_eq!((session, next), (spending.session, generation + 1));
            (link.0, told)
        });
        (outcome, told.collect())
    }

    #[test]
    fn who_issued_the_ticket_is_told_by_name() {
        let mut sessions = sessions();
        assert_eq!(spend(&mut sessions, 0, 1, 2, 1), (Outcome::First, vec![(1, Told::Resumed)]));
        // Now it is the link that resumed it, and also the one that issued the ticket: told once.
        assert_eq!(spend(&mut sessions, 1, 2, 3, 2), (Outcome::First, vec![(2, Told::Resumed)]));
    }

    #[test]
    fn a_theft_is_told_to_all_who_may_hold_the_session() {
        let mut sessions = sessions();
        spend(&mut sessions, 0, 1, 2, 1);
        let (outcome, mut told) = spend(&mut sessions, 0, 9, 3, 1);
        told.sort_by_key(|(link, _)| *link);
        assert_eq!((outcome, told), (Outcome::Theft, vec![(1, Told::Revoked), (2, Told::Revoked)]));
        assert_eq!(spend(&mut sessions, 1, 1, 2, 2), (Outcome::Revoked, Vec::new()));
    }

    #[test]
    fn a_repeat_is_told_to_whom_the_attempt_came_first() {
        let mut sessions = sessions();
        spend(&mut sessions, 0, 1, 2, 1);
        let (outcome, told) = spend(&mut sessions, 0, 1, 3, 1);
        assert_eq!((outcome, told), (Outcome::Repeated, vec![(2, Told::Repeated), (1, Told::Repeated)]));
    }

    #[test]
    fn an_edge_with_one_link_is_told_of_all_its_workers() {
        let mut sessions = Sessions::new(10);
        sessions.attach_node(LinkId(7), NodeId::new("edge-1"));
        sessions.attach_node(LinkId(8), NodeId::new("edge-2"));
        assert_eq!(spend(&mut sessions, 0, 1, 8, 3), (Outcome::First, vec![(7, Told::Resumed)]));
        assert_eq!(
            spend(&mut sessions, 1, 2, 7, 2),
            (Outcome::First, vec![(8, Told::Resumed), (7, Told::Resumed)])
        );
        let mut gone = Sessions::new(10);
        gone.attach_node(LinkId(7), NodeId::new("edge-1"));
        gone.detach(LinkId(7));
        assert_eq!(spend(&mut gone, 0, 1, 8, 3), (Outcome::First, vec![]));
    }

    #[test]
    fn both_processes_of_an_edge_are_told_while_one_takes_over() {
        let mut sessions = Sessions::new(10);
        for (link, edge) in [(7, "edge-1"), (8, "edge-2"), (9, "edge-1")] {
            sessions.attach_node(LinkId(link), NodeId::new(edge));
        }
        // Opened at the old process of edge-1, resumed at its new one.
        let told = vec![(7, Told::Resumed), (9, Told::Resumed)];
        assert_eq!(spend(&mut sessions, 0, 1, 9, 1), (Outcome::First, told));
        // The same ticket once more, by somebody else.
        let (outcome, mut told) = spend(&mut sessions, 0, 9, 8, 1);
        told.sort_by_key(|(link, _)| *link);
        assert_eq!((outcome, told), (Outcome::Theft, vec![(7, Told::Revoked), (9, Told::Revoked)]));
        sessions.detach(LinkId(7));
        sessions.detach(LinkId(9));
        assert!(sessions.nodes.keys().eq([&NodeId::new("edge-2")]));

        let mut workers = self::sessions();
        workers.attach(LinkId(4), name(1));
        let told = vec![(1, Told::Resumed), (4, Told::Resumed)];
        assert_eq!(spend(&mut workers, 0, 1, 2, 1), (Outcome::First, told));
    }

    #[test]
    fn links_that_are_gone_are_not_told_and_what_they_spent_stays_spent() {
        let mut sessions = sessions();
        sessions.detach(LinkId(1));
        assert_eq!(spend(&mut sessions, 0, 1, 2, 1), (Outcome::First, Vec::new()));
        sessions.detach(LinkId(2));
        sessions.attach(LinkId(8), name(1));
        assert_eq!(spend(&mut sessions, 0, 2, 3, 1).0, Outcome::Theft);
        assert_eq!(sessions.len(), 1);
        sessions.sweep(60_000, 10);
        assert_eq!(sessions.len(), 0);
    }
}
