//! How connections are made, and what they look like to the driver: three bounded queues.

mod longpoll;
mod quic;
mod websocket;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tidegate_protocol::frame::{ServerFrame, close::CloseCode};
use tidegate_protocol::hint::Hint;
use tidegate_protocol::session::client::{Carrier, Transmit};
use tidegate_transport::TransportKind;
use tidegate_transport::quic::{QuicClient, QuicDialer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::ClientError;
use crate::endpoint::Endpoint;

/// By what a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// Native QUIC.
    Quic,
    /// WebTransport over HTTP/3: for networks that let only that through by UDP, and servers behind HTTP/3.
    WebTransport,
    /// WebSocket.
    WebSocket,
    /// Long poll.
    LongPoll,
}

impl Transport {
    pub(crate) fn kind(self) -> TransportKind {
        match self {
            Self::Quic => TransportKind::Quic,
            Self::WebTransport => TransportKind::WebTransport,
            Self::WebSocket => TransportKind::WebSocket,
            Self::LongPoll => TransportKind::LongPoll,
        }
    }

    /// Of its URLs, with TLS.
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::WebTransport => "webtransport",
            Self::WebSocket => "wss",
            Self::LongPoll => "https",
        }
    }

    pub(crate) fn of_kind(kind: TransportKind) -> Option<Self> {
        match kind {
            TransportKind::Quic => Some(Self::Quic),
            TransportKind::WebTransport => Some(Self::WebTransport),
            TransportKind::WebSocket => Some(Self::WebSocket),
            TransportKind::LongPoll => Some(Self::LongPoll),
            _ => None,
        }
    }
}

/// What came.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// Frames, in the order of what they came by.
    Frames(Carrier, Vec<ServerFrame>),
    /// Nothing but a sign of life.
    Alive,
    /// What the transport learns of its path.
    Path(PathNews),
    /// Nothing more comes.
    Lost(Lost),
}

/// What a transport learns of its path.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PathNews {
    /// As measured by the transport.
    RoundTrip { rtt: Duration, pto: Duration },
    /// What was flowing stopped, and probes are not answered.
    Suspect,
    /// Something came after that.
    Heard,
}

/// How a connection ended, or why there is none.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    /// Where the transport's own close named one.
    pub(crate) code: Option<u32>,
    pub(crate) reason: String,
    /// Whose doing it was, as far as can be seen.
    pub(crate) cause: Cause,
}

/// Whose doing the end of a connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Nobody listens there.
    Refused,
    /// The server's.
    Server,
    /// Unknown: the network's, perhaps.
    Network,
}

impl Lost {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into(), cause: Cause::Network }
    }

    /// The server closed, and said why.
    fn closed(code: u32, reason: impl Into<String>) -> Self {
        Self { code: Some(code), reason: reason.into(), cause: Cause::Server }
    }

    fn from_io(error: &std::io::Error) -> Self {
        let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
        let cause = if refused { Cause::Refused } else { Cause::Network };
        Self { cause, ..Self::new(error.to_string()) }
    }

    /// An HTTP answer that is no connection.
    fn from_status(status: http::StatusCode) -> Self {
        let code = match status.as_u16() {
            400 => Some(CloseCode::BadFrame),
            401 => Some(CloseCode::Unauthorized),
            403 => Some(CloseCode::BadOrigin),
            413 => Some(CloseCode::FrameTooLarge),
            429 => Some(CloseCode::TooManyRequests),
            503 => Some(CloseCode::Overloaded),
            _ => None,
        };
        let cause = if code.is_some() { Cause::Server } else { Cause::Network };
        Self { code: code.map(CloseCode::number), reason: format!("the server answered {status}"), cause }
    }
}

/// One live connection. Its tasks end when it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) transport: Transport,
    pub(crate) outbound: mpsc::Sender<Transmit>,
    /// What comes on the control lane, or on the only pipe.
    control: mpsc::Receiver<Inbound>,
    /// What comes on the other lanes, where they are apart.
    lanes: Option<mpsc::Receiver<Inbound>>,
    /// Where the transport can be moved and probed.
    path: Option<Path>,
    _abort: DropGuard,
    _close: Option<Arc<quic::CloseOnDrop>>,
}

/// A dial that succeeded.
pub(crate) enum Dialed {
    /// Frames can be sent.
    Open(Connection),
    /// Early data can be sent, whether or not anybody is there.
    Early(Connection, Establishing),
}

/// Tells what became of early data when the handshake is complete.
pub(crate) type Establishing = Pin<Box<dyn Future<Output = Result<Established, Lost>> + Send>>;

pub(crate) enum Established {
    /// The connection goes on.
    Accepted(Path),
    /// This one takes its place: nothing of what was sent arrived.
    Rejected(Connection),
}

/// A path that can be moved and probed.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    client: Arc<QuicClient>,
    /// Asks its watcher for a probe, and to tell the round trip.
    probe: Arc<Notify>,
}

impl Connection {
    /// The next thing that came. Not asking is the back-pressure; `control_only` leaves the other lanes unread, and
    /// a connection of one pipe altogether.
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>, control_only: bool) -> Poll<Inbound> {
        if control_only && self.lanes.is_none() {
            return Poll::Pending;
        }
        let ended = || Inbound::Lost(Lost::new("the connection ended"));
        if let Poll::Ready(inbound) = self.control.poll_recv(cx) {
            return Poll::Ready(inbound.unwrap_or_else(ended));
        }
        match &mut self.lanes {
            // Control outranks the channels, and is a trickle beside them: they do not starve.
            Some(lanes) if !control_only => lanes.poll_recv(cx).map(|inbound| inbound.unwrap_or_else(ended)),
            _ => Poll::Pending,
        }
    }

    /// The network may be another one: goes on from a new socket, and shows the server the way.
    pub(crate) fn rebind(&self) {
        if let Some(path) = &self.path {
            if let Err(error) = path.client.rebind() {
                tracing::debug!(%error, "no new socket");
            }
            path.probe.notify_one();
        }
    }

    /// Asks the path for a sign of life: its round trip is told then. False where that is not the transport's thing.
    pub(crate) fn probe(&self) -> bool {
        self.path.as_ref().map(|path| path.probe.notify_one()).is_some()
    }

    /// The handshake is complete.
    pub(crate) fn established(&mut self, path: Path) {
        self.path = Some(path);
    }

    /// Waits for the end of a connection that the session has left, so that what was sent last gets out.
    pub(crate) async fn linger(mut self) {
        let ended = std::future::poll_fn(|cx| {
            while let Poll::Ready(inbound) = self.poll_recv(cx, false) {
                if let Inbound::Lost(_) = inbound {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        });
        drop(tokio::time::timeout(LINGER, ended).await);
    }
}

/// Makes connections of one kind.
pub(crate) trait Dial {
    /// Dials and waits until frames can be sent.
    fn dial(dialer: &Dialer, endpoint: &Endpoint) -> impl Future<Output = Result<Connection, Lost>> + Send;
}

/// What all connections of a client share.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    /// Where any of the URLs wants TLS over TCP. Remembers servers.
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
    pub(crate) tracker: TaskTracker,
    /// Where QUIC is among the URLs. Remembers servers.
    pub(crate) quic: Option<QuicDialer>,
    /// Where WebTransport is. Remembers servers, too.
    pub(crate) web_transport: Option<QuicDialer>,
    /// The ticket of the place that a server keeps for the client, to be shown with the first packet.
    pub(crate) slot: Option<[u8; 20]>,
    /// Something may be said before the handshake is complete.
    pub(crate) early: bool,
}

impl Dialer {
    /// Tries each in order. `heard` is called when something came back that is no connection yet. The caller bounds the
    /// time, and each but the last has a part of it.
    pub(crate) async fn dial_any(
        self,
        endpoints: Vec<Endpoint>,
        heard: impl Fn() + Send + Sync,
    ) -> Result<(Endpoint, Dialed), DialError> {
        let mut last = None;
        let count = endpoints.len();
        for (index, endpoint) in endpoints.into_iter().enumerate() {
            let dialing = self.dial(&endpoint, &heard);
            let result = if index + 1 == count {
                dialing.await
            } else {
                let late = || Lost::new(format!("no answer within {} s", DIAL_TIMEOUT.as_secs()));
                tokio::time::timeout(DIAL_TIMEOUT, dialing).await.unwrap_or_else(|_| Err(late()))
            };
            match result {
                Ok(dialed) => return Ok((endpoint, dialed)),
                Err(lost) => {
                    let reason = Hint::without_ticket(&lost.reason);
                    tracing::debug!(%endpoint, %reason, "no connection");
                    let is_word = lost.code.is_some() && Hint::parse(&lost.reason).is_some();
                    last = Some(DialError { url: endpoint.to_string(), lost });
                    if is_word {
                        // Where others are, it says itself.
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| DialError { url: String::new(), lost: Lost::new("no URL was given") }))
    }

    async fn dial(&self, endpoint: &Endpoint, heard: &(impl Fn() + Sync)) -> Result<Dialed, Lost> {
        match endpoint.transport {
            Transport::Quic | Transport::WebTransport => quic::dial(self, endpoint, heard).await,
            Transport::WebSocket => websocket::WebSocket::dial(self, endpoint).await.map(Dialed::Open),
            Transport::LongPoll => longpoll::LongPoll::dial(self, endpoint).await.map(Dialed::Open),
        }
    }

    /// TCP, with TLS where the endpoint wants it.
    async fn stream(&self, endpoint: &Endpoint) -> Result<Box<dyn Stream>, Lost> {
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|error| Lost::from_io(&error))?;
        // Small frames must not wait for each other.
        tcp.set_nodelay(true).map_err(|error| Lost::new(error.to_string()))?;
        if !endpoint.tls {
            return Ok(Box::new(tcp));
        }
        let config = self.tls.clone().ok_or_else(|| Lost::new("TLS is not set up"))?;
        let name =
            ServerName::try_from(endpoint.host.clone()).map_err(|error| Lost::new(error.to_string()))?;
        let tls = tokio_rustls::TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|error| Lost::new(error.to_string()))?;
        Ok(Box::new(tls))
    }

    /// The two ends of a connection's queues: the driver's, and its tasks'.
    fn queues(&self, transport: Transport, lanes: bool) -> (Connection, Ends) {
        let (outbound, from_driver) = mpsc::channel(OUTBOUND_BOUND);
        let (control_sender, control) = mpsc::channel(INBOUND_BOUND);
        let (lanes_sender, lanes_receiver) = mpsc::channel(INBOUND_BOUND);
        let abort = CancellationToken::new();
        let ends = Ends {
            outbound: from_driver,
            control: control_sender,
            lanes: lanes_sender,
            abort: abort.clone(),
            tracker: self.tracker.clone(),
        };
        let lanes = lanes.then_some(lanes_receiver);
        (
            Connection {
                transport,
                outbound,
                control,
                lanes,
                path: None,
                _abort: abort.drop_guard(),
                _close: None,
            },
            ends,
        )
    }
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(crate) struct DialError {
    pub(crate) url: String,
    pub(crate) lost: Lost,
}

impl From<DialError> for ClientError {
    fn from(error: DialError) -> Self {
        let reason = Hint::without_ticket(&error.lost.reason).into_owned();
        Self::Connect { url: error.url, reason }
    }
}

/// What the tasks of a connection hold.
struct Ends {
    outbound: mpsc::Receiver<Transmit>,
    control: mpsc::Sender<Inbound>,
    lanes: mpsc::Sender<Inbound>,
    /// The driver dropped the connection.
    abort: CancellationToken,
    tracker: TaskTracker,
}

impl Ends {
    /// Runs a task of the connection until it ends or the driver drops the connection.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tracker.spawn(async move {
            abort.run_until_cancelled_owned(task).await;
        });
    }
}

/// TCP or TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Per URL that another one of the same transport follows, until frames can be sent.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// From leaving a connection to dropping it.
const LINGER: Duration = Duration::from_secs(2);

/// Frames that wait for the transport; then the session's own bounds apply.
const OUTBOUND_BOUND: usize = 16;

/// Batches of frames that wait for the driver; then the transport is not read.
const INBOUND_BOUND: usize = 8;

/// The largest frame of a server: a history reply of 256 KiB, with room for later versions.
const MAX_FRAME: usize = 1 << 20;
