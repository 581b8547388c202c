//! Sans-io: what a frame came by, which tells of which epoch the publications on it are.

use crate::Epoch;

/// What a frame came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    /// The control lane, or the only pipe: publications are of the epoch that the last `subscribed` before them named.
    Control,
    /// A stream of the server's: its header names the epoch.
    Stream(Epoch),
    /// A datagram: the `id` of each publication is the mark of its epoch ([`Epoch::mark`]).
    Datagram,
}

impl Carrier {
    /// Of which epoch a publication is that came by it in a frame with this id. `None`: that cannot be told, and the
    /// publication comes again by its stream.
    pub(super) fn numbering(&self, id: u64) -> Option<Numbering> {
        match self {
            // A server that names none keeps to the order of the control lane.
            Self::Stream(epoch) if epoch.is_any() => Some(Numbering::InOrder),
            Self::Control => Some(Numbering::InOrder),
            Self::Stream(epoch) => Some(Numbering::Of(epoch.clone())),
            Self::Datagram => u32::try_from(id).ok().filter(|mark| *mark != 0).map(Numbering::Marked),
        }
    }
}

/// Which epoch a publication is of, as its carrier says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Numbering {
    /// That of the last `subscribed`.
    InOrder,
    /// This one.
    Of(Epoch),
    /// The one with this mark.
    Marked(u32),
}

impl Numbering {
    /// True where it is `epoch`, which the last `subscribed` named.
    pub(super) fn is(&self, epoch: &Epoch) -> bool {
        match self {
            Self::InOrder => true,
            Self::Of(this) => this == epoch,
            Self::Marked(mark) => *mark == epoch.mark(),
        }
    }
}
