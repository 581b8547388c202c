//! Sans-io: who waits to be moved, in the order in which they go.

use std::collections::{BTreeMap, BTreeSet};

use super::ConnectionKey;

/// Connections of one class. They go by *order*, but no tenant gets more of a batch than its cap: consecutive connections
/// of one tenant would fall upon one place of the channel tier.
#[derive(Debug, Default)]
pub(super) struct Queue {
    tenants: BTreeMap<u64, BTreeSet<(u32, ConnectionKey)>>,
    /// The first of each tenant.
    heads: BTreeSet<(u32, ConnectionKey, u64)>,
    len: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// False where it is there already.
    pub(super) fn insert(&mut self, tenant: u64, order: u32, connection: ConnectionKey) -> bool {
        let members = self.tenants.entry(tenant).or_default();
        let head = members.first().copied();
        if !members.insert((order, connection)) {
            return false;
        }
        self.len += 1;
        let first = members.first().copied();
        self.set_head(tenant, head, first);
        true
    }

    pub(super) fn remove(&mut self, tenant: u64, order: u32, connection: ConnectionKey) -> bool {
        let Some(members) = self.tenants.get_mut(&tenant) else { return false };
        let head = members.first().copied();
        if !members.remove(&(order, connection)) {
            return false;
        }
        self.len -= 1;
        let first = members.first().copied();
        if members.is_empty() {
            self.tenants.remove(&tenant);
        }
        self.set_head(tenant, head, first);
        true
    }

    /// Takes up to `budget` connections that are `eligible`. A tenant gets an eighth of them, or its share of those who
    /// wait if that is more: the last few tenants do not hold up the drain.
    pub(super) fn take(&mut self, budget: usize) -> Vec<ConnectionKey> {
        let budget = budget.min(self.len);
        let mut taken = Vec::with_capacity(budget);
        let mut counts: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        let mut set_aside = Vec::new();
        let waiting = self.len;
        while taken.len() < budget
            && let Some((order, connection, tenant)) = self.heads.pop_first()
        {
            let members = self.tenants.get(&tenant).map_or(0, BTreeSet::len);
            let (count, cap) = counts.entry(tenant).or_insert_with(|| {
                (0, budget.div_ceil(TENANT_SHARE).max((budget * members).div_ceil(waiting)))
            });
            if count >= cap {
                set_aside.push((order, connection, tenant));
                continue;
            }
            *count += 1;
            taken.push(connection);
            self.len -= 1;
            if let Some(members) = self.tenants.get_mut(&tenant) {
                members.remove(&(order, connection));
                match members.first() {
                    Some(&(order, connection)) => {
                        self.heads.insert((order, connection, tenant));
                    }
                    None => {
                        self.tenants.remove(&tenant);
                    }
                }
            }
        }
        self.heads.extend(set_aside);
        taken
    }

    fn set_head(
        &mut self,
        tenant: u64,
        before: Option<(u32, ConnectionKey)>,
        after: Option<(u32, ConnectionKey)>,
    ) {
        if before == after {
            return;
        }
        if let Some((order, connection)) = before {
            self.heads.remove(&(order, connection, tenant));
        }
        if let Some((order, connection)) = after {
            self.heads.insert((order, connection, tenant));
        }
    }
}

/// A tenant gets this part of a batch.
const TENANT_SHARE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_tenant_floods_a_batch_while_others_wait() {
        let mut queue = Queue::default();
        for connection in 0..1_000 {
            // The hot tenant has the lowest orders of all.
            queue.insert(1, connection, ConnectionKey(connection.into()));
        }
        for connection in 1_000_u32..2_000 {
            queue.insert(u64::from(connection), connection, ConnectionKey(connection.into()));
        }
        let batch = queue.take(80);
        let hot = batch.iter().filter(|connection| connection.0 < 1_000).count();
        assert_eq!((batch.len(), hot), (80, 40), "its share of those who wait");
        let mut queue = Queue::default();
        for connection in 0..100 {
            queue.insert(1, connection, ConnectionKey(connection.into()));
        }
        assert_eq!(queue.take(64).len(), 64, "alone, it has everything");
    }

    proptest! {
        #[test]
        fn it_is_a_set_that_gives_everybody_once(
            members in prop::collection::btree_map(0_u64..200, (0_u64..5, 0_u32..50), 1..150),
            removed in prop::collection::vec(0_u64..200, 0..50),
            batch in 1_usize..40,
        ) {
            let mut queue = Queue::default();
            for (connection, (tenant, order)) in &members {
                queue.insert(*tenant, *order, ConnectionKey(*connection));
                queue.insert(*tenant, *order, ConnectionKey(*connection));
            }
            let mut expected: BTreeSet<u64> = members.keys().copied().collect();
            for connection in removed {
                let found = members.get(&connection).is_some_and(|(tenant, order)| {
                    queue.remove(*tenant, *order, ConnectionKey(connection))
                });
                prop_assert_eq!(found, expected.remove(&connection));
            }
            prop_assert_eq!(queue.len(), expected.len());
            let mut seen = BTreeSet::new();
            while queue.len() > 0 {
                let taken = queue.take(batch);
                prop_assert!(!taken.is_empty() && taken.len() <= batch);
                for connection in taken {
                    prop_assert!(seen.insert(connection.0));
                }
            }
            prop_assert_eq!(seen, expected);
        }
    }
}
