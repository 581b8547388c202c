//! Sans-io: publications whose epoch the control lane has not told of yet.

use std::collections::BTreeMap;

use crate::Epoch;
use crate::frame::Publication;

use super::super::carrier::Numbering;
use super::HoldBounds;
use super::line::weight;

/// What came by streams and datagrams before the `subscribed` that names its epoch, by epoch. Bounded: what is over it is
/// dropped, and the line is asked for again once it gets there.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    epochs: Vec<(Numbering, BTreeMap<u64, Publication>)>,
    items: usize,
    bytes: usize,
    /// Something was dropped.
    is_lossy: bool,
}

impl Ahead {
    pub(super) fn hold(&mut self, numbering: Numbering, publication: Publication, bounds: HoldBounds) {
        let size = weight(&publication);
        let known = self.epochs.iter().position(|(held, _)| *held == numbering);
        if known.is_some_and(|at| self.epochs[at].1.contains_key(&publication.offset)) {
            return;
        }
        if self.items >= bounds.items || self.bytes + size > bounds.bytes {
            self.is_lossy = true;
            return;
        }
        self.items += 1;
        self.bytes += size;
        match known {
            Some(at) => drop(self.epochs[at].1.insert(publication.offset, publication)),
            None => self.epochs.push((numbering, BTreeMap::from([(publication.offset, publication)]))),
        }
    }

    /// What is of `epoch`, which the control lane has just named; and whether something of it may have been dropped.
    pub(super) fn take(&mut self, epoch: &Epoch) -> (BTreeMap<u64, Publication>, bool) {
        let mut taken = BTreeMap::new();
        let (of_it, others) =
            std::mem::take(&mut self.epochs).into_iter().partition(|(held, _)| held.is(epoch));
        self.epochs = others;
        let of_it: Vec<(Numbering, BTreeMap<u64, Publication>)> = of_it;
        for (_, publications) in of_it {
            for (offset, publication) in publications {
                self.forget(&publication);
                taken.insert(offset, publication);
            }
        }
        (taken, std::mem::take(&mut self.is_lossy))
    }

    /// Another connection has brought everything of `epoch` up to `last`.
    pub(super) fn prune(&mut self, epoch: &Epoch, last: u64) {
        let mut pruned = Vec::new();
        for (_, publications) in self.epochs.iter_mut().filter(|(held, _)| held.is(epoch)) {
            let rest = publications.split_off(&last.saturating_add(1));
            pruned.extend(std::mem::replace(publications, rest).into_values());
        }
        pruned.iter().for_each(|publication| self.forget(publication));
        self.epochs.retain(|(_, publications)| !publications.is_empty());
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn forget(&mut self, publication: &Publication) {
        self.items -= 1;
        self.bytes -= weight(publication);
    }
}
