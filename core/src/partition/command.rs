//! What a partition is told, and what it is told the time by.

use std::sync::Arc;
use std::time::Instant;

use tidegate_protocol::link::{CoreFrame, EdgeFrame, LinkError, LinkName};
use tidegate_transport::clock;
use tidegate_transport::link::LinkSender;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::channel::LinkId;

/// What a partition is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A link begins. Before any of its frames.
    Attach {
        /// Which one.
        link: LinkId,
        /// Whose it is, where anybody is to be found by it.
        name: Option<LinkName>,
        /// What it runs over.
        reach: Reach,
        /// Towards the edge.
        sender: Arc<dyn LinkSender<CoreFrame>>,
        /// Cancelled to end the link.
        cut: CancellationToken,
    },
    /// A link ended. Behind all of its frames.
    Detach {
        /// Which one.
        link: LinkId,
    },
    /// A frame of a link.
    Frame {
        /// Which one.
        link: LinkId,
        /// What.
        frame: EdgeFrame,
        /// When it was queued.
        at: Instant,
    },
    /// A request of the backend API; its `request` number is not used.
    Request {
        /// What.
        frame: EdgeFrame,
        /// Takes the answer.
        answer: oneshot::Sender<CoreFrame>,
        /// When it was queued.
        at: Instant,
    },
}

/// What a link runs over, and so what its other end can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// This process: one worker's link to all partitions. Nobody takes its place, so it is waited for.
    Process,
    /// The network: a whole edge's link to one partition. The edge opens it again, anywhere, and catches up.
    Network,
}

/// Unix time that goes on with the monotonic clock from where the wall clock was when the node started: it never
/// steps, and a simulation that pauses tokio's clock pauses it too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnixClock {
    unix_ms: u64,
    at: Instant,
}

impl UnixClock {
    /// In step with the wall clock now.
    pub(crate) fn start() -> Self {
        Self { unix_ms: clock::unix_ms(), at: clock::now() }
    }

    /// Milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        let since = clock::now().saturating_duration_since(self.at);
        self.unix_ms + u64::try_from(since.as_millis()).unwrap_or(u64::MAX >> 1)
    }
}

/// What refuses `frame`; `None` where it asks for no answer.
pub(crate) fn refusal(frame: EdgeFrame, error: &LinkError) -> Option<CoreFrame> {
    let error = error.clone();
    Some(match frame {
        EdgeFrame::Publish { request, .. } => CoreFrame::Published { request, result: Err(error) },
        EdgeFrame::Subscribe { request, .. } | EdgeFrame::History { request, .. } => {
            CoreFrame::Recovered { request, result: Err(error) }
        }
        EdgeFrame::Spend { request, .. } => CoreFrame::Spent { request, result: Err(error) },
        EdgeFrame::Members { request, .. } => CoreFrame::Members { request, result: Err(error) },
        EdgeFrame::Unsubscribe { .. } | EdgeFrame::Presence { .. } | EdgeFrame::Watch { .. } => return None,
    })
}

/// The same frame with another number.
pub(super) fn with_request(frame: EdgeFrame, request: u64) -> EdgeFrame {
    match frame {
        EdgeFrame::Publish { publish, .. } => EdgeFrame::Publish { request, publish },
        EdgeFrame::Subscribe { channel, position, .. } => EdgeFrame::Subscribe { request, channel, position },
        EdgeFrame::History { channel, range, .. } => EdgeFrame::History { request, channel, range },
        EdgeFrame::Spend { spending, holder, .. } => EdgeFrame::Spend { request, spending, holder },
        EdgeFrame::Members { channel, .. } => EdgeFrame::Members { request, channel },
        frame @ (EdgeFrame::Unsubscribe { .. } | EdgeFrame::Presence { .. } | EdgeFrame::Watch { .. }) => {
            frame
        }
    }
}
