//! Sans-io: networks that slots were promised to, by the time of those slots. Where a ticket cannot be shown before a
//! handshake, the address tells who may have one.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::ticket::Holder;

/// Whose slots are about now.
#[derive(Debug)]
pub(super) struct Expected {
    bound: usize,
    /// By time: slots are promised one after the other.
    coming: VecDeque<(Instant, Holder)>,
    due: HashMap<Holder, Due>,
    /// When they are late.
    ends: VecDeque<(Instant, Holder)>,
}

impl Expected {
    /// For at most so many slots; holders of further ones are not recognised.
    pub(super) fn new(bound: usize) -> Self {
        Self { bound, coming: VecDeque::new(), due: HashMap::new(), ends: VecDeque::new() }
    }

    pub(super) fn promise(&mut self, slot: Instant, holder: Holder) {
        if self.coming.len() + self.ends.len() < self.bound {
            self.coming.push_back((slot, holder));
        }
    }

    /// True where somebody of there has a slot from `early` before now until `late` after it. Once for each slot.
    pub(super) fn take(&mut self, now: Instant, holder: Holder, (early, late): (Duration, Duration)) -> bool {
        while let Some(&(slot, holder)) = self.coming.front()
            && slot <= now + early
        {
            self.coming.pop_front();
            self.due.entry(holder).or_default().promised += 1;
            self.ends.push_back((slot + late, holder));
        }
        while let Some(&(end, holder)) = self.ends.front()
            && end <= now
        {
            self.ends.pop_front();
            if let Entry::Occupied(mut due) = self.due.entry(holder) {
                let due_now = due.get_mut();
                due_now.promised -= 1;
                due_now.taken = due_now.taken.saturating_sub(1);
                if due_now.promised == 0 {
                    due.remove();
                }
            }
        }
        let Some(due) = self.due.get_mut(&holder).filter(|due| due.taken < due.promised) else {
            return false;
        };
        due.taken += 1;
        true
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.coming.len() + self.ends.len()
    }
}

/// Of one holder.
#[derive(Debug, Default)]
struct Due {
    promised: u32,
    taken: u32,
}
