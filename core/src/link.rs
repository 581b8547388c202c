//! The core's end of a link: one task per link hands its frames to the partitions of their channels and sessions.

use std::future::poll_fn;
use std::sync::Arc;

use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, LinkError, LinkName};
use tidegate_transport::clock;
use tidegate_transport::link::{CoreLink, LinkSender};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span};

use crate::channel::LinkId;
use crate::partition::Command;
use crate::placement::{partition_of, partition_of_session};

/// Serves `link` until its other end is gone or `cut` is cancelled, then ends its interest everywhere.
///
/// Frames of one channel stay in order: they go to one partition, through one queue. A partition whose queue is full
/// holds the whole link back.
pub(crate) async fn serve(
    id: LinkId,
    name: Option<LinkName>,
    link: CoreLink,
    partitions: Arc<[mpsc::Sender<Command>]>,
    cut: CancellationToken,
) {
    let span = debug_span!("link", id = id.0);
    async {
        for queue in partitions.iter() {
            let (sender, cut, name) = (Arc::clone(&link.sender), cut.clone(), name.clone());
            let attach = Command::Attach { link: id, name, sender, cut };
            // A partition that ended has nothing to send.
            let _ = queue.send(attach).await;
        }
        debug!("attached");
        tokio::select! {
            biased;
            () = cut.cancelled() => debug!("cut"),
            () = route(id, link, &partitions) => debug!("closed by the edge"),
        }
        for queue in partitions.iter() {
            let _ = queue.send(Command::Detach { link: id }).await;
        }
    }
    .instrument(span)
    .await;
}

async fn route(id: LinkId, mut link: CoreLink, partitions: &[mpsc::Sender<Command>]) {
    let mut frames = Vec::with_capacity(BATCH);
    loop {
        if poll_fn(|cx| link.receiver.poll_recv_many(cx, &mut frames, BATCH)).await == 0 {
            return;
        }
        let at = clock::now();
        for frame in frames.drain(..) {
            // `partitions` came with a count that is a u16.
            let partition = place(&frame, partitions.len() as u16);
            let command = Command::Frame { link: id, frame, at };
            let refused = match partitions[usize::from(partition)].try_send(command) {
                Ok(()) => None,
                Err(mpsc::error::TrySendError::Full(command)) => {
                    partitions[usize::from(partition)].send(command).await.err().map(|error| error.0)
                }
                Err(mpsc::error::TrySendError::Closed(command)) => Some(command),
            };
            if let Some(Command::Frame { frame, .. }) = refused {
                refuse(&*link.sender, frame).await;
            }
        }
    }
}

/// Answers a frame whose partition has ended.
async fn refuse(sender: &dyn LinkSender<CoreFrame>, frame: EdgeFrame) {
    let answer = match frame {
        EdgeFrame::Publish { request, .. } => CoreFrame::Published { request, result: Err(unavailable()) },
        EdgeFrame::Subscribe { request, .. } | EdgeFrame::History { request, .. } => {
            CoreFrame::Recovered { request, result: Err(unavailable()) }
        }
        EdgeFrame::Spend { request, .. } => CoreFrame::Spent { request, result: Err(unavailable()) },
        EdgeFrame::Unsubscribe { .. } => return,
    };
    // Where the edge is gone too, `route` finds out next.
    let _ = sender.send(answer).await;
}

pub(crate) fn unavailable() -> LinkError {
    let message = "the core does not serve this channel now: try again".to_owned();
    LinkError { code: ErrorCode::Unavailable, message }
}

fn place(frame: &EdgeFrame, partitions: u16) -> u16 {
    let channel = match frame {
        EdgeFrame::Subscribe { channel, .. }
        | EdgeFrame::Unsubscribe { channel }
        | EdgeFrame::History { channel, .. } => channel,
        EdgeFrame::Publish { publish, .. } => &publish.channel,
        EdgeFrame::Spend { spending, .. } => return partition_of_session(spending.session, partitions),
    };
    partition_of(channel, partitions)
}

/// Frames that are taken off a link at once.
const BATCH: usize = 256;
