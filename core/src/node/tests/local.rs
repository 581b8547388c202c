//! Nodes over a store on a real disk, in real time.

use tempfile::TempDir;

use super::*;
use crate::engine::conformance::Setup;
use crate::engine::{LocalConfig, LocalEngine};
use crate::node::conformance::{
    PARTITIONS, a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement,
    a_node_that_is_cut_off_stops_answering_before_others_take_over,
    one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused,
    snapshots_keep_what_the_log_has_dropped, what_was_acknowledged_outlives_the_node,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_over_one_store() {
    one_node_after_the_other_joins_and_leaves_and_no_publish_is_refused(vec![Store::new().engine()]).await;
    a_node_crashes_and_the_others_go_on_from_its_last_acknowledgement(vec![Store::new().engine()]).await;
    a_node_that_is_cut_off_stops_answering_before_others_take_over(vec![Store::new().engine()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_keeps_outlives_the_node() {
    what_was_acknowledged_outlives_the_node(&mut Store::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_keep_what_a_store_has_dropped() {
    let store = Store::new();
    snapshots_keep_what_the_log_has_dropped(&store.engine(), &store.engine(), 1_000).await;
}

struct Store {
    directory: TempDir,
    engine: Option<Arc<dyn Engine>>,
    epoch: u64,
}

impl Store {
    fn new() -> Self {
        let mut store = Self { directory: TempDir::new().expect("a directory"), engine: None, epoch: 0 };
        store.open();
        store
    }

    fn open(&mut self) {
        self.epoch += 1_000;
        let config = LocalConfig {
            retain_bytes: 64 << 10,
            lease: Duration::from_secs(1),
            ..LocalConfig::new(self.directory.path())
        };
        let engine = LocalEngine::open(config, PARTITIONS, self.epoch).expect("opened");
        self.engine = Some(Arc::new(engine));
    }
}

impl Setup for Store {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(self.engine.as_ref().expect("open"))
    }

    fn second(&self) -> Arc<dyn Engine> {
        self.engine()
    }

    async fn reopen(&mut self) {
        self.engine = None;
        self.open();
    }

    async fn lose_tail(&mut self, _: PartitionId, _: LogPosition) -> bool {
        false
    }

    fn retained(&self) -> Option<usize> {
        None
    }
}
