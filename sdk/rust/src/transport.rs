//! How connections are made, and what they look like to the driver: three bounded queues.

mod longpoll;
mod quic;
mod websocket;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tidegate_protocol::frame::{ServerFrame, close::CloseCode};
use tidegate_protocol::session::client::Transmit;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::ClientError;
use crate::endpoint::Endpoint;
use crate::tls::Trust;

/// By what a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// Native QUIC.
    Quic,
    /// WebSocket.
    WebSocket,
    /// Long poll.
    LongPoll,
}

/// What came.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// Frames, in their lane's order.
    Frames(Vec<ServerFrame>),
    /// Nothing but a sign of life.
    Alive,
    /// Nothing more comes.
    Lost(Lost),
}

/// How a connection ended.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    /// Where the transport's own close named one.
    pub(crate) code: Option<u32>,
    pub(crate) reason: String,
}

impl Lost {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into() }
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
        Self { code: code.map(CloseCode::number), reason: format!("the server answered {status}") }
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
    _abort: DropGuard,
}

impl Connection {
    /// The next thing that came. Not asking is the back-pressure; `control_only` leaves the other lanes unread, and
    /// a connection of one pipe altogether. Cancel-safe.
    pub(crate) async fn recv(&mut self, control_only: bool) -> Inbound {
        let inbound = match &mut self.lanes {
            None if control_only => std::future::pending().await,
            None => self.control.recv().await,
            Some(_) if control_only => self.control.recv().await,
            // Control outranks the channels, and is a trickle beside them: they do not starve.
            Some(lanes) => tokio::select! { biased;
                inbound = self.control.recv() => inbound,
                inbound = lanes.recv() => inbound,
            },
        };
        inbound.unwrap_or_else(|| Inbound::Lost(Lost::new("the connection ended")))
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
    pub(crate) trust: Trust,
    pub(crate) tracker: TaskTracker,
}

impl Dialer {
    /// Tries each in order.
    pub(crate) async fn dial_any(
        self,
        endpoints: Vec<Endpoint>,
    ) -> Result<(Endpoint, Connection), DialError> {
        let mut last = None;
        for endpoint in endpoints {
            match self.dial(&endpoint).await {
                Ok(connection) => return Ok((endpoint, connection)),
                Err(lost) => {
                    tracing::debug!(%endpoint, reason = lost.reason, "no connection");
                    last = Some(DialError { url: endpoint.to_string(), lost });
                }
            }
        }
        Err(last.unwrap_or_else(|| DialError { url: String::new(), lost: Lost::new("no URL was given") }))
    }

    async fn dial(&self, endpoint: &Endpoint) -> Result<Connection, Lost> {
        let dialing = async {
            match endpoint.transport {
                Transport::Quic => quic::Quic::dial(self, endpoint).await,
                Transport::WebSocket => websocket::WebSocket::dial(self, endpoint).await,
                Transport::LongPoll => longpoll::LongPoll::dial(self, endpoint).await,
            }
        };
        tokio::time::timeout(DIAL_TIMEOUT, dialing)
            .await
            .unwrap_or_else(|_| Err(Lost::new(format!("no answer within {} s", DIAL_TIMEOUT.as_secs()))))
    }

    /// TCP, with TLS where the endpoint wants it.
    async fn stream(&self, endpoint: &Endpoint) -> Result<Box<dyn Stream>, Lost> {
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|error| Lost::new(error.to_string()))?;
        // Small frames must not wait for each other.
        tcp.set_nodelay(true).map_err(|error| Lost::new(error.to_string()))?;
        if !endpoint.tls {
            return Ok(Box::new(tcp));
        }
        let config = self.trust.config(&[b"http/1.1"]).map_err(|error| Lost::new(error.to_string()))?;
        let name =
            ServerName::try_from(endpoint.host.clone()).map_err(|error| Lost::new(error.to_string()))?;
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
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
        (Connection { transport, outbound, control, lanes, _abort: abort.drop_guard() }, ends)
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
        Self::Connect { url: error.url, reason: error.lost.reason }
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

/// Per URL, until frames can be sent.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Frames that wait for the transport; then the session's own bounds apply.
const OUTBOUND_BOUND: usize = 16;

/// Batches of frames that wait for the driver; then the transport is not read.
const INBOUND_BOUND: usize = 8;

/// The largest frame of a server: a history reply of 256 KiB, with room for later versions.
const MAX_FRAME: usize = 1 << 20;
