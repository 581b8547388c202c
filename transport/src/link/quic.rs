//! Links between nodes over QUIC, with certificates on both sides.
//!
//! One connection for each pair of nodes. Its first bidirectional stream is for control (hello, directory, fleet, questions), each
//! further one is the link of one partition: what one of them holds up, or ends, does not touch the others.
//!
//! Core: [`LinkListener::accept`] → [`IncomingLink::greet`] → [`CoreEnd`], whose [`CoreEnd::accept`] gives the partitions
//! that the edge asks for. Edge: [`LinkDialer::dial`] → [`EdgeEnd`], whose [`EdgeEnd::open`] asks for one.

mod control;
mod core_end;
mod dialer;
mod edge_end;
mod listener;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn::{ConnectionError, IdleTimeout, TransportConfig, VarInt};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use tidegate_protocol::NodeId;

use crate::quic::CongestionControl;

pub use core_end::{CoreEnd, EdgeWord, PartitionRequest, Question, RelayRequest};
pub use dialer::{DialError, LinkDialer};
pub use edge_end::{AskError, DirectoryWatch, EdgeEnd, FleetWatch, OpenError, Opened};
pub use listener::{GreetError, Greeting, IncomingLink, LinkListener};

/// ALPN of links.
pub const ALPN_LINK: &[u8] = b"tidegate-link/1";

/// Limits of links. Both sides have the same.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// A connection without a packet for so long is dead.
    pub idle_timeout: Duration,
    /// Between packets on an idle connection, from both sides.
    pub keep_alive: Duration,
    /// From the first packet to the answered hello, names looked up included.
    pub handshake_timeout: Duration,
    /// How sending is paced.
    pub congestion: CongestionControl,
    /// Bytes that the other end may send on one stream ahead of our reading.
    pub stream_window: u32,
    /// Bytes that it may send on all streams ahead of our reading. Streams that are not read use it up: as many as fit
    /// in it can stall before others wait.
    pub connection_window: u32,
    /// Bytes held until the other end acknowledges them, over all streams.
    pub send_window: u32,
    /// Bytes of frames that wait for one stream; from there on [`super::LinkSender::try_send`] says `Full`. The last frame
    /// may exceed it.
    pub send_queue: usize,
    /// Partitions that an edge may have open or ask for at once.
    pub streams: u32,
    /// Connections that wait to be accepted; one more is refused.
    pub max_incoming: usize,
    /// Connections, handshakes included; one more is refused.
    pub max_connections: usize,
    /// Between two directories sent to one edge, at least.
    pub directory_pace: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(4),
            keep_alive: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            congestion: CongestionControl::CubicDelay,
            stream_window: 1 << 20,
            connection_window: 16 << 20,
            send_window: 16 << 20,
            send_queue: 8 << 20,
            streams: 4096,
            max_incoming: 1024,
            max_connections: 4096,
            directory_pace: Duration::from_millis(20),
        }
    }
}

impl LinkConfig {
    /// `streams` that the other end may open.
    fn transport(&self, streams: u32) -> Result<TransportConfig, LinkSetupError> {
        let unfit = |what: String| LinkSetupError::Settings(what);
        let windows = [self.stream_window, self.connection_window, self.send_window];
        if windows.contains(&0) || self.send_queue == 0 {
            return Err(unfit("a window or the queue is 0".to_owned()));
        }
        // Two chances to be heard before a connection counts as dead; 0 would mean "never" to QUIC.
        if self.idle_timeout.is_zero() || self.keep_alive.is_zero() || self.keep_alive * 2 > self.idle_timeout
        {
            let (idle, keep_alive) = (self.idle_timeout, self.keep_alive);
            return Err(unfit(format!("an idle timeout of {idle:?} with keep-alives every {keep_alive:?}")));
        }
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .map_err(|_| unfit(format!("an idle timeout of {:?}", self.idle_timeout)))?;
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(self.keep_alive))
            .initial_rtt(INITIAL_RTT)
            .congestion_controller_factory(self.congestion.factory(INITIAL_WINDOW))
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.connection_window))
            .send_window(u64::from(self.send_window))
            .max_concurrent_bidi_streams(VarInt::from_u32(streams))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None);
        Ok(transport)
    }
}

/// Why there can be no links at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkSetupError {
    /// TLS settings or limits that QUIC cannot work with.
    #[error("settings not fit for links: {0}")]
    Settings(String),
    /// The socket cannot be had.
    #[error("cannot use the UDP socket for links: {0}")]
    Socket(#[from] std::io::Error),
}

/// Whether the certificate that the other end showed is for this node. Nodes are named by DNS names there.
fn is_for(connection: &quinn::Connection, node: &NodeId) -> bool {
    let shown = connection.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'_>>>().ok());
    let Some(certificate) = shown.as_ref().and_then(|chain| chain.first()) else { return false };
    let (Ok(name), Ok(certificate)) =
        (ServerName::try_from(node.as_str()), ParsedCertificate::try_from(certificate))
    else {
        return false;
    };
    matches!(name, ServerName::DnsName(_)) && verify_server_name(&certificate, &name).is_ok()
}

/// Why a connection is over, for people.
fn why(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
            format!("the other end closed it: {}", String::from_utf8_lossy(&close.reason))
        }
        ConnectionError::ApplicationClosed(_) => "the other end closed it".to_owned(),
        ConnectionError::LocallyClosed => "closed here".to_owned(),
        ConnectionError::TimedOut => "nothing heard for too long".to_owned(),
        ConnectionError::Reset => "the other end has forgotten it: it was restarted".to_owned(),
        other => other.to_string(),
    }
}

/// Codes of streams and connections that end before their time.
mod code {
    use quinn::VarInt;

    /// In order.
    pub(super) const CLOSED: VarInt = VarInt::from_u32(0);
    /// A partition that this node does not own.
    pub(super) const NOT_OWNER: VarInt = VarInt::from_u32(1);
    /// Something that is no message, or not allowed where it came.
    pub(super) const PROTOCOL: VarInt = VarInt::from_u32(2);
    /// A hello that is not welcome.
    pub(super) const REFUSED: VarInt = VarInt::from_u32(3);
}

/// What a round trip is taken for until one was measured: our nodes are near each other, or in regions of one planet.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Bytes that may be in flight before anything was acknowledged.
const INITIAL_WINDOW: u32 = 32 * 1200;

/// What waits of one kind beside frames: questions, requests for partitions.
const MAX_WAITING: usize = 64;

/// Answers a payload for another edge that there was no room for.
const BUSY: &[u8] = b"busy";

/// The longest question.
pub const MAX_QUESTION_BYTES: usize = 64 * 1024;

/// The longest answer.
pub const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// How a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// As QUIC measures it, smoothed.
    pub round_trip: Duration,
    /// Bytes of frames that wait here, over all links: QUIC has not taken them yet.
    pub queued: usize,
    /// Packets that QUIC sent again, since the connection began.
    pub lost_packets: u64,
}

/// Limits, and the tasks that still write.
#[derive(Debug, Clone)]
struct Shared {
    config: Arc<LinkConfig>,
    /// Bytes of frames that wait, over all links.
    queued: Arc<AtomicUsize>,
    /// One task for each link, until the other end has all of it.
    writers: tokio_util::task::TaskTracker,
    /// Everything else.
    tasks: tokio_util::task::TaskTracker,
}

impl Shared {
    fn new(config: Arc<LinkConfig>) -> Self {
        Self { config, queued: Arc::default(), writers: Default::default(), tasks: Default::default() }
    }

    fn condition(&self, connection: &quinn::Connection) -> Condition {
        Condition {
            round_trip: connection.rtt(),
            queued: self.queued.load(Ordering::Relaxed),
            lost_packets: connection.stats().path.lost_packets,
        }
    }

    async fn flushed(&self) {
        self.writers.close();
        self.writers.wait().await;
    }
}

#[cfg(test)]
mod tests;
