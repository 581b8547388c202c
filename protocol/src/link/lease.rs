//! Sans-io: what a node that is being drained and those that take its clients say to each other, as payloads that cores
//! pass on ([`super::fleet`]). Each is said once at most: who needs an answer asks again.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::wire::WireError;

/// From edge to edge. Who says it is known from [`super::fleet::Relayed::from`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseFrame {
    /// Asks for places. Without an answer there are none now.
    Ask {
        /// Which drain: of several, the lower one goes first.
        drain: u64,
        /// Places that it could use now.
        want: u32,
        /// It will not be done in time: all the slack, and not only a share of it.
        urgent: bool,
    },
    /// Grants places, one after the other.
    Grant {
        /// For which drain.
        drain: u64,
        /// Tells the leases of one node apart.
        lease: u32,
        /// When the first place is, milliseconds of Unix time.
        first_ms: u64,
        /// From one place to the next, microseconds.
        spacing_us: u32,
        /// Places, at least 1.
        count: u16,
    },
    /// Gives back the places of a lease from an index on.
    Return {
        /// Which one.
        lease: u32,
        /// The first that is not needed.
        from: u16,
    },
    /// Sends nobody more for a lease: who granted it goes away itself.
    Revoke {
        /// Which one.
        lease: u32,
    },
}

impl LeaseFrame {
    /// As a payload, a few bytes.
    pub fn encode(&self) -> Bytes {
        let body = match *self {
            Self::Ask { drain, want, urgent } => Body::Ask(Ask { drain, want, urgent }),
            Self::Grant { drain, lease, first_ms, spacing_us, count } => {
                Body::Grant(Grant { drain, lease, first_ms, spacing_us, count: u32::from(count) })
            }
            Self::Return { lease, from } => Body::Return(Return { lease, from: u32::from(from) }),
            Self::Revoke { lease } => Body::Revoke(lease),
        };
        Lease { body: Some(body) }.encode_to_vec().into()
    }

    /// From a payload.
    ///
    /// # Errors
    /// When it is none of these, as that of a later release may be.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let malformed = |_| WireError::Field("a lease");
        let small = |number: u32| u16::try_from(number).map_err(|_| WireError::Field("a number of places"));
        let wire = Lease::decode(payload).map_err(malformed)?;
        Ok(match wire.body.ok_or(WireError::Unknown)? {
            Body::Ask(Ask { drain, want, urgent }) => Self::Ask { drain, want, urgent },
            Body::Grant(Grant { count: 0, .. }) => return Err(WireError::Field("a number of places")),
            Body::Grant(Grant { drain, lease, first_ms, spacing_us, count }) => {
                Self::Grant { drain, lease, first_ms, spacing_us, count: small(count)? }
            }
            Body::Return(Return { lease, from }) => Self::Return { lease, from: small(from)? },
            Body::Revoke(lease) => Self::Revoke { lease },
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct Lease {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Body {
    #[prost(message, tag = "1")]
    Ask(Ask),
    #[prost(message, tag = "2")]
    Grant(Grant),
    #[prost(message, tag = "3")]
    Return(Return),
    #[prost(uint32, tag = "4")]
    Revoke(u32),
}

#[derive(Clone, PartialEq, Message)]
struct Ask {
    #[prost(uint64, tag = "1")]
    drain: u64,
    #[prost(uint32, tag = "2")]
    want: u32,
    #[prost(bool, tag = "3")]
    urgent: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Grant {
    #[prost(uint64, tag = "1")]
    drain: u64,
    #[prost(uint32, tag = "2")]
    lease: u32,
    #[prost(uint64, tag = "3")]
    first_ms: u64,
    #[prost(uint32, tag = "4")]
    spacing_us: u32,
    #[prost(uint32, tag = "5")]
    count: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Return {
    #[prost(uint32, tag = "1")]
    lease: u32,
    #[prost(uint32, tag = "2")]
    from: u32,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = LeaseFrame> {
        prop_oneof![
            (any::<u64>(), any::<u32>(), any::<bool>()).prop_map(|(drain, want, urgent)| LeaseFrame::Ask {
                drain,
                want,
                urgent
            }),
            (any::<u64>(), any::<u32>(), any::<u64>(), any::<u32>(), 1..=u16::MAX).prop_map(
                |(drain, lease, first_ms, spacing_us, count)| LeaseFrame::Grant {
                    drain,
                    lease,
                    first_ms,
                    spacing_us,
                    count
                }
            ),
            (any::<u32>(), any::<u16>()).prop_map(|(lease, from)| LeaseFrame::Return { lease, from }),
            any::<u32>().prop_map(|lease| LeaseFrame::Revoke { lease }),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive(frame in frame()) {
            let payload = frame.encode();
            prop_assert!(payload.len() < 64);
            prop_assert_eq!(LeaseFrame::decode(&payload).expect("our own bytes"), frame);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(frame) = LeaseFrame::decode(&bytes) {
                prop_assert_eq!(LeaseFrame::decode(&frame.encode()).expect("our own bytes"), frame);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let decode = |body| LeaseFrame::decode(&Lease { body }.encode_to_vec());
        let grant = |count| Some(Body::Grant(Grant { count, ..Grant::default() }));
        assert!(decode(grant(1)).is_ok() && decode(grant(65_535)).is_ok());
        assert!(decode(grant(0)).is_err() && decode(grant(65_536)).is_err());
        assert!(decode(Some(Body::Return(Return { lease: 1, from: 65_536 }))).is_err());
        assert!(decode(None).is_err() && LeaseFrame::decode(b"\xff").is_err());
    }
}
