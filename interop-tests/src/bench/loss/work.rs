//! The load of a measurement.

use std::time::Duration;

use serde::Serialize;

/// The load, the same in every cell.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Work {
    /// Publications per second, over all channels.
    pub(super) per_second: u32,
    /// Bytes of payload beside some 40 of bookkeeping.
    pub(super) payload: usize,
    /// How long is measured, after [`Work::WARM_UP`].
    pub(super) seconds: u32,
    /// Bits per second of the link, each way.
    pub(super) rate: u64,
}

impl Work {
    /// Not measured: slow start, the first round trips.
    pub(super) const WARM_UP: u32 = 3;

    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }

    /// All of them, those of the warm-up included.
    pub(super) fn publications(&self) -> u64 {
        u64::from(self.per_second) * u64::from(self.seconds + Self::WARM_UP)
    }

    /// The first that is measured.
    pub(super) fn first_measured(&self) -> u64 {
        u64::from(self.per_second) * u64::from(Self::WARM_UP)
    }

    pub(super) fn length(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds + Self::WARM_UP))
    }
}
