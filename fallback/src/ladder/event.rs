//! Sans-io: what a ladder tells its driver, and is told of dials.

use tidegate_transport::TransportKind;

/// One dial, and the connection that it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// What the driver must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LadderEvent {
    /// Dial; then tell by [`super::Ladder::handle_opened`] or [`super::Ladder::handle_failed`].
    Dial {
        /// Names it from now on.
        attempt: AttemptId,
        /// The rung.
        transport: TransportKind,
    },
    /// Drop this attempt, dialling or open: the session does without. If it is the session's next, tell the session.
    Abandon {
        /// Which one.
        attempt: AttemptId,
    },
    /// Hand this open connection to the session: its only one, or the one to move to.
    Use {
        /// Which one.
        attempt: AttemptId,
    },
    /// Let the session measure a round trip on its connection; a native QUIC driver probes the path as well.
    Probe,
    /// No rung led anywhere.
    Failed {
        /// What the search was for. Where the session needed it, it is to be told; otherwise nothing is lost.
        purpose: Purpose,
    },
}

/// What a connection is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The session needs it: it has none, or was told to leave the one that it has.
    Need,
    /// The one that it has is suspect.
    Suspicion,
    /// To come back to a better rung.
    Climb,
    /// The app asked for it ([`super::Ladder::move_to`]).
    Request,
    /// The server wants to be left, for another ([`super::Ladder::leave`]).
    Goaway,
}

/// Why a dial led nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFailure {
    /// Nobody listens there: TCP was refused.
    Refused,
    /// Something is in the way, or nothing came back.
    Failed,
    /// The server answered, and does not want us now.
    ByServer,
}
