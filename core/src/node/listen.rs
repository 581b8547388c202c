//! Links of edges over the network: greeted, told who owns what and of each other, and given the partitions that this node
//! serves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_protocol::link::Directory;
use tidegate_protocol::link::fleet::FleetEntry;
use tidegate_protocol::{NodeId, Region};
use tidegate_transport::link::quic::{
    CoreEnd, Greeting, IncomingLink, LinkListener, PartitionRequest, Question,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::status::{self, Connected};
use super::{CoreNode, Inner};

impl CoreNode {
    /// Serves edges that dial `listener`, until the node drains; `region` is what they are told of its cluster. What edges
    /// are to hear last is sent before their connections end.
    pub fn serve_links(&self, listener: LinkListener, region: Region) {
        // A second listener stands in the same place.
        if self.inner.region.set(region.clone()).is_ok() {
            let inner = Arc::clone(&self.inner);
            self.inner.spawn(async move {
                let drain = inner.lifecycle.drain.clone();
                drain.run_until_cancelled(inner.fleet.run(&inner.metrics)).await;
            });
        }
        let inner = Arc::clone(&self.inner);
        self.inner.spawn(async move {
            let drain = inner.lifecycle.drain.clone();
            loop {
                let incoming = tokio::select! {
                    biased;
                    () = drain.cancelled() => break,
                    incoming = listener.accept() => incoming,
                };
                let Some(incoming) = incoming else { return };
                inner.spawn(serve_edge(Arc::clone(&inner), incoming, region.clone()));
            }
            // Each connection ends by itself once it has said all; this is for those that cannot.
            let _ = timeout(LAST_WORDS * 2, listener.wait_idle()).await;
            listener.close("the node goes away");
        });
    }
}

async fn serve_edge(node: Arc<Inner>, incoming: IncomingLink, region: Region) {
    let address = incoming.remote_address();
    let partitions = node.slots.len();
    let greeting = Greeting { node: node.name.clone(), region, partitions };
    let end = match incoming.greet(|_| Ok(greeting)).await {
        Ok(end) => Arc::new(end),
        Err(error) => return info!(%address, %error, "a link was refused"),
    };
    let number = node.next_connection.fetch_add(1, Ordering::Relaxed);
    let hello = end.hello();
    let (edge, from) = (hello.node.clone(), hello.region.clone());
    let connected = Connected {
        node: edge.clone(),
        region: from.as_str().to_owned(),
        version: hello.program.clone(),
        address,
        end: Arc::downgrade(&end),
    };
    node.connected().insert(number, connected);
    info!(edge = edge.as_str(), region = from.as_str(), %address, "an edge is connected");

    let links = node.lifecycle.drain.child_token();
    let serving = serve_requests(&node, &end, &links);
    tokio::select! {
        biased;
        () = node.lifecycle.drain.cancelled() => {
            let _ = timeout(LAST_WORDS, end.flushed()).await;
            end.close("the node goes away");
        }
        () = serving => {}
    }
    links.cancel();
    node.connected().remove(&number);
    info!(edge = edge.as_str(), "an edge is gone");
}

/// Until the connection is over.
async fn serve_requests(node: &Arc<Inner>, end: &CoreEnd, links: &CancellationToken) {
    let mut directory = node.cluster.as_ref().map(|cluster| cluster.directory.subscribe());
    if let Some(directory) = &mut directory {
        let known = directory.borrow_and_update().clone();
        // Before the lease table is known there is nothing to tell.
        if !known.partitions.is_empty() {
            end.send_directory(known);
        }
    }
    let edge = &end.hello().node;
    let mut fleet = node.fleet.lists();
    end.send_fleet(node.fleet.all());
    loop {
        // Biased: the directory changes rarely, and tells where to ask; what edges say, and lists of them, is paced;
        // questions are small and few.
        tokio::select! {
            biased;
            changed = next_directory(&mut directory) => end.send_directory(changed),
            word = end.next_word() => match word {
                Some(word) => node.hear(edge, word),
                None => return,
            },
            list = next_list(&mut fleet) => end.send_fleet(list),
            question = end.next_question() => match question {
                Some(question) => answer(node, question),
                None => return,
            },
            request = end.accept() => match request {
                Some(request) => {
                    let edge = end.hello().node.clone();
                    node.spawn(open(Arc::clone(node), edge, request, links.clone()));
                }
                None => return,
            },
        }
    }
}

async fn next_directory(directory: &mut Option<watch::Receiver<Arc<Directory>>>) -> Arc<Directory> {
    match directory {
        Some(directory) => match directory.changed().await {
            Ok(()) => directory.borrow_and_update().clone(),
            // Its sender is the node's.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn next_list(fleet: &mut watch::Receiver<Arc<Vec<FleetEntry>>>) -> Arc<Vec<FleetEntry>> {
    match fleet.changed().await {
        Ok(()) => fleet.borrow_and_update().clone(),
        // Its sender is the node's.
        Err(_) => std::future::pending().await,
    }
}

async fn open(node: Arc<Inner>, edge: NodeId, request: PartitionRequest, links: CancellationToken) {
    let partition = request.partition();
    let served = tokio::select! {
        biased;
        () = links.cancelled() => None,
        served = node.open(partition) => served,
        () = request.abandoned() => return,
    };
    let Some(served) = served else {
        debug!(partition, edge = edge.as_str(), "not served here");
        return request.refuse();
    };
    let link = request.accept(served.term, served.epoch);
    node.attach_partition(edge, link, served, &links);
}

fn answer(node: &Inner, question: Question) {
    if &question.what()[..] == b"status" {
        question.answer(status::of(node));
    }
}

/// How long what was said last may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);
