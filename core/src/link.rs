//! The core's end of a link: one task per link hands its frames to the partitions of their channels and sessions.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, LinkError, LinkName};
use tidegate_transport::clock;
use tidegate_transport::link::{CoreLink, LinkSender};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span};

use crate::channel::LinkId;
use crate::node::slot::Slots;
use crate::partition::{Command, Reach, refusal};
use crate::placement::{partition_of, partition_of_session};

/// Serves `link`, which reaches all partitions, until its other end is gone or `cut` is cancelled, then ends its interest
/// everywhere.
///
/// Frames of one channel stay in order: they go to one partition, through one queue. A partition whose queue is full
/// holds the whole link back.
pub(crate) async fn serve(
    id: LinkId,
    name: Option<LinkName>,
    link: CoreLink,
    slots: Slots,
    cut: CancellationToken,
) {
    let span = debug_span!("link", id = id.0);
    async {
        let attach =
            Attach { id, name, reach: Reach::Process, sender: Arc::clone(&link.sender), cut: cut.clone() };
        let mut routes = Routes { queues: vec![None; usize::from(slots.len())], slots, attach };
        for partition in 0..routes.slots.len() {
            routes.find(partition).await;
        }
        debug!("attached");
        tokio::select! {
            biased;
            () = cut.cancelled() => debug!("cut"),
            () = route(id, link, &mut routes) => debug!("closed by the edge"),
        }
        for queue in routes.queues.into_iter().flatten() {
            let _ = queue.send(Command::Detach { link: id }).await;
        }
    }
    .instrument(span)
    .await;
}

/// Serves `link`, which reaches one partition over the network, until its edge closes it or the partition ends.
pub(crate) async fn serve_partition(
    id: LinkId,
    name: LinkName,
    mut link: CoreLink,
    queue: mpsc::Sender<Command>,
    cut: CancellationToken,
) {
    let span = debug_span!("link", id = id.0, edge = name.node.as_str());
    async {
        let sender = Arc::clone(&link.sender);
        let attach = Attach { id, name: Some(name), reach: Reach::Network, sender, cut: cut.clone() };
        if queue.send(attach.command()).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            () = cut.cancelled() => debug!("cut"),
            () = pass_on(id, &mut link, &queue) => debug!("closed by the edge"),
            () = queue.closed() => {
                // Handed over: `Moved` is on its way, and nothing that still comes is handled. A partition that ends
                // otherwise cuts the link.
                drop(attach);
                let gone = timeout(MOVED_WAIT, wait_for_end(&mut link));
                tokio::select! {
                    biased;
                    () = cut.cancelled() => {}
                    _ = gone => {}
                }
            }
        }
        let _ = queue.send(Command::Detach { link: id }).await;
    }
    .instrument(span)
    .await;
}

/// What a partition is told of a link.
struct Attach {
    id: LinkId,
    name: Option<LinkName>,
    reach: Reach,
    sender: Arc<dyn LinkSender<CoreFrame>>,
    cut: CancellationToken,
}

impl Attach {
    fn command(&self) -> Command {
        let Self { id, name, reach, sender, cut } = self;
        let (link, reach, name) = (*id, *reach, name.clone());
        Command::Attach { link, name, reach, sender: Arc::clone(sender), cut: cut.clone() }
    }
}

/// Where a link's frames go: a partition that comes to this node later is told of the link before its first frame.
struct Routes {
    slots: Slots,
    queues: Vec<Option<mpsc::Sender<Command>>>,
    attach: Attach,
}

impl Routes {
    async fn find(&mut self, partition: u16) -> Option<&mpsc::Sender<Command>> {
        let queue = &mut self.queues[usize::from(partition)];
        if queue.as_ref().is_none_or(mpsc::Sender::is_closed) {
            *queue = self.slots.queue(partition);
            if let Some(new) = queue
                && new.send(self.attach.command()).await.is_err()
            {
                *queue = None;
            }
        }
        queue.as_ref()
    }
}

async fn route(id: LinkId, mut link: CoreLink, routes: &mut Routes) {
    let mut frames = Vec::with_capacity(BATCH);
    loop {
        if poll_fn(|cx| link.receiver.poll_recv_many(cx, &mut frames, BATCH)).await == 0 {
            return;
        }
        let at = clock::now();
        for frame in frames.drain(..) {
            let partition = place(&frame, routes.slots.len());
            let refused = match routes.find(partition).await {
                Some(queue) => put(queue, Command::Frame { link: id, frame, at }).await,
                None => Some(Command::Frame { link: id, frame, at }),
            };
            if let Some(Command::Frame { frame, .. }) = refused
                && let Some(answer) = refusal(frame, &unavailable())
            {
                // Where the edge is gone too, this loop finds out next.
                let _ = link.sender.send(answer).await;
            }
        }
    }
}

async fn pass_on(id: LinkId, link: &mut CoreLink, queue: &mpsc::Sender<Command>) {
    let mut frames = Vec::with_capacity(BATCH);
    while poll_fn(|cx| link.receiver.poll_recv_many(cx, &mut frames, BATCH)).await > 0 {
        let at = clock::now();
        for frame in frames.drain(..) {
            if put(queue, Command::Frame { link: id, frame, at }).await.is_some() {
                // The partition has ended: whoever waits for that goes on.
                return std::future::pending().await;
            }
        }
    }
}

/// Gives the command back where nobody takes it any more.
async fn put(queue: &mpsc::Sender<Command>, command: Command) -> Option<Command> {
    match queue.try_send(command) {
        Ok(()) => None,
        Err(mpsc::error::TrySendError::Full(command)) => queue.send(command).await.err().map(|error| error.0),
        Err(mpsc::error::TrySendError::Closed(command)) => Some(command),
    }
}

async fn wait_for_end(link: &mut CoreLink) {
    let mut frames = Vec::with_capacity(BATCH);
    while poll_fn(|cx| link.receiver.poll_recv_many(cx, &mut frames, BATCH)).await > 0 {
        frames.clear();
    }
}

pub(crate) fn unavailable() -> LinkError {
    let message = "the core does not serve this channel now: try again".to_owned();
    LinkError { code: ErrorCode::Unavailable, message }
}

fn place(frame: &EdgeFrame, partitions: u16) -> u16 {
    let channel = match frame {
        EdgeFrame::Subscribe { channel, .. }
        | EdgeFrame::Unsubscribe { channel }
        | EdgeFrame::History { channel, .. }
        | EdgeFrame::Presence { channel, .. }
        | EdgeFrame::Watch { channel, .. }
        | EdgeFrame::Members { channel, .. } => channel,
        EdgeFrame::Publish { publish, .. } => &publish.channel,
        EdgeFrame::Spend { spending, .. } => return partition_of_session(spending.session, partitions),
    };
    partition_of(channel, partitions)
}

/// Frames that are taken off a link at once.
const BATCH: usize = 256;
/// How long an edge may take to close a link that moved.
const MOVED_WAIT: Duration = Duration::from_secs(5);
