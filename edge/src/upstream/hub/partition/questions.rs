//! Sans-io: questions about channels: numbered, judged after a loss, and what their answers bring.

use std::sync::Arc;

use tidegate_protocol::frame::shared::SharedFrame;
use tidegate_protocol::frame::{Publication, ServerBody};
use tidegate_protocol::link::{Delivery, EdgeFrame};
use tidegate_protocol::{ChannelName, Offset};

/// What becomes of a question whose link is gone.
pub(super) enum Resend {
    Yes,
    /// Not again, and told so.
    No,
    /// Perhaps it was handled.
    Unknown,
}

/// What becomes of a question whose link is gone; `handled`: perhaps it was.
pub(super) fn resend(frame: &EdgeFrame, handled: bool) -> Resend {
    match frame {
        EdgeFrame::Publish { publish, .. } if handled => match (publish.ephemeral, &publish.key) {
            (true, _) => Resend::No,
            (false, Some(_)) => Resend::Yes,
            (false, None) => Resend::Unknown,
        },
        _ => Resend::Yes,
    }
}

/// A question to which what was missed is the answer.
pub(super) fn is_long(frame: &EdgeFrame) -> bool {
    matches!(frame, EdgeFrame::Subscribe { position: Some(_), .. } | EdgeFrame::History { .. })
}

pub(super) fn delivery(channel: &ChannelName, publication: Publication) -> Delivery {
    let offset = Offset(publication.offset);
    let frame = Arc::new(SharedFrame::new(ServerBody::Publication(publication)));
    Delivery { channel: channel.clone(), offset, frame }
}

pub(super) fn request_of(frame: &EdgeFrame) -> Option<u64> {
    match frame {
        EdgeFrame::Subscribe { request, .. }
        | EdgeFrame::Publish { request, .. }
        | EdgeFrame::History { request, .. }
        | EdgeFrame::Members { request, .. }
        | EdgeFrame::Spend { request, .. } => Some(*request),
        EdgeFrame::Unsubscribe { .. } | EdgeFrame::Presence { .. } | EdgeFrame::Watch { .. } => None,
    }
}

pub(super) fn renumber(mut frame: EdgeFrame, number: u64) -> EdgeFrame {
    match &mut frame {
        EdgeFrame::Subscribe { request, .. }
        | EdgeFrame::Publish { request, .. }
        | EdgeFrame::History { request, .. }
        | EdgeFrame::Members { request, .. }
        | EdgeFrame::Spend { request, .. } => *request = number,
        EdgeFrame::Unsubscribe { .. } | EdgeFrame::Presence { .. } | EdgeFrame::Watch { .. } => {}
    }
    frame
}
