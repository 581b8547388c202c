//! Sans-io: how whoever is asked to drain edges speaks with them, as payloads that cores pass on ([`super::fleet`]), beside
//! [`super::lease`]. Each question is answered by a report, or by nobody: who asks waits for so long, and asks again.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::wire::WireError;

/// From or to an edge that is, was or is to be drained. Who says it is known from [`super::fleet::Relayed::from`].
#[derive(Debug, Clone, PartialEq)]
pub enum DrainFrame {
    /// To an edge; it answers with a report.
    Ask {
        /// Echoed.
        request: u64,
        /// For what.
        question: DrainQuestion,
    },
    /// How an edge is.
    Report {
        /// Of the question.
        request: u64,
        /// What there is to say; `None`: it is not drained, and was not.
        report: Option<DrainReport>,
    },
    /// It does not do that.
    Refuse {
        /// Of the question.
        request: u64,
        /// For people.
        why: String,
    },
}

/// What an edge is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainQuestion {
    /// How far it is.
    Look,
    /// To move its sessions.
    Order(DrainOrder),
    /// To ask nobody more for now.
    Pause,
    /// To go on.
    Resume,
    /// To serve as before.
    Abort,
}

/// To move the sessions of a node. Of two for one node, the one with the higher id holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainOrder {
    /// Which drain; those of several nodes that go together have one. Among several of a fleet the lower goes first.
    pub drain: u64,
    /// Where to, as [`MAX_PLACES`] at most say: nodes, regions, or `https://host[:port]`. None: the others of its region.
    pub to: Vec<String>,
    /// By when everybody is to be gone, milliseconds from now.
    pub within_ms: u64,
}

/// How far an edge is with its drain, or how far it was.
#[derive(Debug, Clone, PartialEq)]
pub struct DrainReport {
    /// The order, as it was given.
    pub order: DrainOrder,
    /// Where it stands.
    pub stage: DrainStage,
    /// How long it has gone on, or went on, milliseconds.
    pub elapsed_ms: u64,
    /// Where its clients are sent now: `https://host[:port]`.
    pub targets: Vec<String>,
    /// Those of them that this node's clients were not told of: they do not go there.
    pub unannounced: Vec<String>,
    /// The counts.
    pub counts: DrainCounts,
    /// Clients that the targets take per second.
    pub rate: f64,
    /// Until it is done at this rate, milliseconds; `None` where nothing moves.
    pub eta_ms: Option<u64>,
    /// At this rate it will not be done in time.
    pub behind: bool,
}

/// Where a drain stands.
///
/// ```text
/// LameDuck ──► Moving ◄──► Paused      Moving ──► Done      Aborted, from each of them
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainStage {
    /// Others are being told that it takes nobody more.
    LameDuck,
    /// Clients are asked to move.
    Move,
    /// Nobody more is.
    Pause,
    /// Nobody is left. It takes nobody until the drain is called off.
    Done,
    /// It was called off, and serves.
    Abort,
}

/// Connections of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainCounts {
    /// That there were; those that came meanwhile included.
    pub total: u64,
    /// Moved by themselves.
    pub moved: u64,
    /// Closed as was planned for them: their clients cannot move.
    pub closed: u64,
    /// Closed because of a deadline.
    pub forced: u64,
    /// Ended by themselves.
    pub left: u64,
    /// Asked to move, and still there.
    pub in_flight: u64,
    /// Still there.
    pub remaining: u64,
}

impl DrainFrame {
    /// As a payload: no longer than [`MAX_RELAY_BYTES`](super::fleet::MAX_RELAY_BYTES) where an order keeps to its bounds. Of
    /// addresses as many are named as fit.
    pub fn encode(&self) -> Bytes {
        let (request, body) = match self {
            Self::Ask { request, question } => {
                let body = match question {
                    DrainQuestion::Look => Body::Change(LOOK),
                    DrainQuestion::Pause => Body::Change(PAUSE),
                    DrainQuestion::Resume => Body::Change(RESUME),
                    DrainQuestion::Abort => Body::Change(ABORT),
                    DrainQuestion::Order(order) => Body::Order(order_to_wire(order)),
                };
                (*request, body)
            }
            Self::Report { request, report: Some(report) } => {
                (*request, Body::Report(Box::new(report_to_wire(report))))
            }
            Self::Report { request, report: None } => (*request, Body::Nothing(true)),
            Self::Refuse { request, why } => {
                (*request, Body::Refusal(why.chars().take(MAX_REASON).collect()))
            }
        };
        Wire { request, body: Some(body) }.encode_to_vec().into()
    }

    /// From a payload.
    ///
    /// # Errors
    /// When it is none of these, as that of a later release may be.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let Wire { request, body } = Wire::decode(payload).map_err(|_| WireError::Field("a drain"))?;
        let ask = |question| Self::Ask { request, question };
        Ok(match body.ok_or(WireError::Unknown)? {
            Body::Change(LOOK) => ask(DrainQuestion::Look),
            Body::Change(PAUSE) => ask(DrainQuestion::Pause),
            Body::Change(RESUME) => ask(DrainQuestion::Resume),
            Body::Change(ABORT) => ask(DrainQuestion::Abort),
            Body::Change(_) => return Err(WireError::Unknown),
            Body::Order(order) => ask(DrainQuestion::Order(order_of(order)?)),
            Body::Report(report) => Self::Report { request, report: Some(report_of(*report)?) },
            Body::Nothing(_) => Self::Report { request, report: None },
            Body::Refusal(why) => Self::Refuse { request, why: why.chars().take(MAX_REASON).collect() },
        })
    }
}

fn order_to_wire(order: &DrainOrder) -> Order {
    Order { drain: order.drain, to: order.to.clone(), within_ms: order.within_ms }
}

fn order_of(order: Order) -> Result<DrainOrder, WireError> {
    if order.to.len() > MAX_PLACES || order.to.iter().any(|place| place.len() > MAX_PLACE_BYTES) {
        return Err(WireError::Field("where to"));
    }
    Ok(DrainOrder { drain: order.drain, to: order.to, within_ms: order.within_ms })
}

fn report_to_wire(report: &DrainReport) -> Report {
    let counts = &report.counts;
    let few = |list: &[String]| list[..fitting(list)].to_vec();
    Report {
        order: Some(order_to_wire(&report.order)),
        stage: match report.stage {
            DrainStage::LameDuck => 1,
            DrainStage::Move => 2,
            DrainStage::Pause => 3,
            DrainStage::Done => 4,
            DrainStage::Abort => 5,
        },
        elapsed_ms: report.elapsed_ms,
        targets: few(&report.targets),
        unannounced: few(&report.unannounced),
        total: counts.total,
        moved: counts.moved,
        closed: counts.closed,
        forced: counts.forced,
        left: counts.left,
        in_flight: counts.in_flight,
        remaining: counts.remaining,
        rate: report.rate,
        eta_ms: report.eta_ms,
        behind: report.behind,
    }
}

/// How many of them are named.
fn fitting(list: &[String]) -> usize {
    let mut bytes = 0;
    let fit = list.iter().take(MAX_PLACES).take_while(|address| {
        bytes += address.len();
        bytes <= MAX_ADDRESSES_BYTES
    });
    fit.count()
}

fn report_of(report: Report) -> Result<DrainReport, WireError> {
    if [&report.targets, &report.unannounced].into_iter().any(|list| fitting(list) < list.len()) {
        return Err(WireError::Field("addresses"));
    }
    Ok(DrainReport {
        order: order_of(report.order.ok_or(WireError::Field("an order"))?)?,
        stage: match report.stage {
            1 => DrainStage::LameDuck,
            2 => DrainStage::Move,
            3 => DrainStage::Pause,
            4 => DrainStage::Done,
            5 => DrainStage::Abort,
            _ => return Err(WireError::Unknown),
        },
        elapsed_ms: report.elapsed_ms,
        targets: report.targets,
        unannounced: report.unannounced,
        counts: DrainCounts {
            total: report.total,
            moved: report.moved,
            closed: report.closed,
            forced: report.forced,
            left: report.left,
            in_flight: report.in_flight,
            remaining: report.remaining,
        },
        rate: report.rate,
        eta_ms: report.eta_ms,
        behind: report.behind,
    })
}

/// Its tags are none of [`super::lease`]'s: whoever takes payloads tells the two apart.
#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(uint64, tag = "8")]
    request: u64,
    #[prost(oneof = "Body", tags = "9, 10, 11, 12, 13")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Body {
    #[prost(uint32, tag = "9")]
    Change(u32),
    #[prost(message, tag = "10")]
    Order(Order),
    #[prost(message, tag = "11")]
    Report(Box<Report>),
    #[prost(bool, tag = "12")]
    Nothing(bool),
    #[prost(string, tag = "13")]
    Refusal(String),
}

#[derive(Clone, PartialEq, Message)]
struct Order {
    #[prost(uint64, tag = "1")]
    drain: u64,
    #[prost(string, repeated, tag = "2")]
    to: Vec<String>,
    #[prost(uint64, tag = "3")]
    within_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Report {
    #[prost(message, optional, tag = "1")]
    order: Option<Order>,
    #[prost(uint32, tag = "2")]
    stage: u32,
    #[prost(uint64, tag = "3")]
    elapsed_ms: u64,
    #[prost(string, repeated, tag = "4")]
    targets: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    unannounced: Vec<String>,
    #[prost(uint64, tag = "6")]
    total: u64,
    #[prost(uint64, tag = "7")]
    moved: u64,
    #[prost(uint64, tag = "8")]
    closed: u64,
    #[prost(uint64, tag = "9")]
    forced: u64,
    #[prost(uint64, tag = "10")]
    left: u64,
    #[prost(uint64, tag = "11")]
    in_flight: u64,
    #[prost(uint64, tag = "12")]
    remaining: u64,
    #[prost(double, tag = "13")]
    rate: f64,
    #[prost(uint64, optional, tag = "14")]
    eta_ms: Option<u64>,
    #[prost(bool, tag = "15")]
    behind: bool,
}

/// Of an order, and of each list in a report: there may be more targets than are named.
pub const MAX_PLACES: usize = 8;
/// The longest, bytes.
pub const MAX_PLACE_BYTES: usize = 128;
/// Of each list of addresses.
const MAX_ADDRESSES_BYTES: usize = 1200;
const MAX_REASON: usize = 200;
const LOOK: u32 = 1;
const PAUSE: u32 = 2;
const RESUME: u32 = 3;
const ABORT: u32 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fleet::MAX_RELAY_BYTES;
    use super::super::lease::LeaseFrame;
    use super::*;

    fn order() -> impl Strategy<Value = DrainOrder> {
        let to = proptest::collection::vec("[a-z0-9:/.-]{0,128}", 0..=MAX_PLACES);
        (any::<u64>(), to, any::<u64>()).prop_map(|(drain, to, within_ms)| DrainOrder {
            drain,
            to,
            within_ms,
        })
    }

    fn report() -> impl Strategy<Value = DrainReport> {
        let stage = prop_oneof![
            Just(DrainStage::LameDuck),
            Just(DrainStage::Move),
            Just(DrainStage::Pause),
            Just(DrainStage::Done),
            Just(DrainStage::Abort),
        ];
        let lists = proptest::collection::vec("https://[a-z0-9.]{1,140}", 0..=MAX_PLACES);
        let numbers = any::<[u64; 7]>();
        (order(), stage, lists, numbers, any::<Option<u64>>(), any::<bool>(), 0.0..1e9).prop_map(
            |(order, stage, targets, numbers, eta_ms, behind, rate)| {
                let [total, moved, closed, forced, left, in_flight, remaining] = numbers;
                let counts = DrainCounts { total, moved, closed, forced, left, in_flight, remaining };
                let unannounced = targets.clone();
                let elapsed_ms = total;
                DrainReport { order, stage, elapsed_ms, targets, unannounced, counts, rate, eta_ms, behind }
            },
        )
    }

    fn frame() -> impl Strategy<Value = DrainFrame> {
        let question = prop_oneof![
            Just(DrainQuestion::Look),
            Just(DrainQuestion::Pause),
            Just(DrainQuestion::Resume),
            Just(DrainQuestion::Abort),
            order().prop_map(DrainQuestion::Order),
        ];
        prop_oneof![
            (any::<u64>(), question).prop_map(|(request, question)| DrainFrame::Ask { request, question }),
            (any::<u64>(), proptest::option::of(report()))
                .prop_map(|(request, report)| DrainFrame::Report { request, report }),
            (any::<u64>(), "[a-z ]{0,200}").prop_map(|(request, why)| DrainFrame::Refuse { request, why }),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_and_are_no_leases(frame in frame()) {
            let payload = frame.encode();
            prop_assert!(payload.len() <= MAX_RELAY_BYTES, "{} bytes", payload.len());
            prop_assert!(matches!(LeaseFrame::decode(&payload), Err(WireError::Unknown)));
            prop_assert_eq!(DrainFrame::decode(&payload).expect("our own bytes"), frame);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(frame) = DrainFrame::decode(&bytes) {
                let again = DrainFrame::decode(&frame.encode());
                // A rate that is no number differs from itself.
                prop_assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, WireError>(frame)));
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let decode = |body| DrainFrame::decode(&Wire { request: 1, body }.encode_to_vec());
        let order = |to| Order { to, ..Order::default() };
        assert!(matches!(decode(None), Err(WireError::Unknown)));
        assert!(matches!(decode(Some(Body::Change(9))), Err(WireError::Unknown)));
        let many = vec![String::new(); MAX_PLACES + 1];
        assert!(matches!(decode(Some(Body::Order(order(many)))), Err(WireError::Field(_))));
        let long = vec!["x".repeat(MAX_PLACE_BYTES + 1)];
        assert!(matches!(decode(Some(Body::Order(order(long)))), Err(WireError::Field(_))));
        let many = Report {
            stage: 1,
            order: Some(order(Vec::new())),
            targets: vec!["x".repeat(400); 4],
            ..Report::default()
        };
        assert!(matches!(decode(Some(Body::Report(Box::new(many)))), Err(WireError::Field(_))));
        let report = Report { stage: 1, ..Report::default() };
        assert!(matches!(decode(Some(Body::Report(Box::new(report)))), Err(WireError::Field(_))));
        let lease = LeaseFrame::Revoke { lease: 3 }.encode();
        assert!(matches!(DrainFrame::decode(&lease), Err(WireError::Unknown)));
    }
}
