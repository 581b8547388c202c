//! The links of a partition, as its driver knows them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_protocol::link::CoreFrame;
use tidegate_transport::link::LinkSender;
use tokio_util::sync::CancellationToken;

use super::Reach;
use crate::channel::LinkId;

/// Links by number. Whoever drops it without a word to them cuts them: edges find them closed, and come back to whoever
/// serves the channels.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: BTreeMap<LinkId, Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) reach: Reach,
    pub(super) sender: Arc<dyn LinkSender<CoreFrame>>,
    pub(super) cut: CancellationToken,
}

impl Links {
    pub(super) fn insert(&mut self, link: LinkId, entry: Entry) {
        self.links.insert(link, entry);
    }

    pub(super) fn get(&self, link: LinkId) -> Option<&Entry> {
        self.links.get(&link)
    }

    /// None is cut.
    pub(super) fn take(&mut self) -> BTreeMap<LinkId, Entry> {
        std::mem::take(&mut self.links)
    }

    /// It is not cut.
    pub(super) fn remove(&mut self, link: LinkId) -> bool {
        self.links.remove(&link).is_some()
    }

    /// Those over the network.
    pub(super) fn remote(&self) -> Vec<LinkId> {
        let remote = |(link, entry): (&LinkId, &Entry)| (entry.reach == Reach::Network).then_some(*link);
        self.links.iter().filter_map(remote).collect()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for entry in self.links.values() {
            entry.cut.cancel();
        }
    }
}
