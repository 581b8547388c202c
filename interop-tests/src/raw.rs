//! Clients without manners: they say what a test tells them to, byte by byte if need be, and report all that comes.

mod doorstep;
mod longpoll;
mod paced;
mod quic;
mod websocket;

use std::fmt;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_protocol::frame::codec::{encode_delimited, encode_text};
use tidegate_protocol::frame::{ClientFrame, ServerFrame};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::gateway::Gateway;
use crate::wait::{PATIENCE, within};

pub use doorstep::{Attempt, Doorstep, random_id};
pub use paced::Pace;
pub use quic::{first_flight, first_flight_to};

/// By what a raw client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carrier {
    /// Native QUIC.
    Quic,
    /// WebTransport, native.
    WebTransport,
    /// WebSocket over TLS and HTTP/1.1, JSON.
    WebSocket,
    /// The same, Protobuf.
    WebSocketProto,
    /// WebSocket over HTTP/2 (RFC 8441), JSON.
    WebSocketH2,
    /// Long poll over TLS.
    LongPoll,
}

impl Carrier {
    /// Each of them.
    pub const ALL: [Self; 6] = [
        Self::Quic,
        Self::WebTransport,
        Self::WebSocket,
        Self::WebSocketProto,
        Self::WebSocketH2,
        Self::LongPoll,
    ];

    /// One of each kind of transport.
    pub const FOUR: [Self; 4] = [Self::Quic, Self::WebTransport, Self::WebSocket, Self::LongPoll];

    /// Frames are JSON text.
    pub fn is_text(self) -> bool {
        matches!(self, Self::WebSocket | Self::WebSocketH2 | Self::LongPoll)
    }

    /// The label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::WebTransport => "webtransport",
            Self::WebSocket | Self::WebSocketProto | Self::WebSocketH2 => "websocket",
            Self::LongPoll => "longpoll",
        }
    }

    /// A frame in JSON spelling, as it goes over this carrier.
    ///
    /// # Panics
    /// When it is no frame.
    #[track_caller]
    pub fn encode(self, frame: &Value) -> Bytes {
        let frame: ClientFrame = serde_json::from_value(frame.clone()).expect("a client's frame");
        if self.is_text() { encode_text(&frame) } else { encode_delimited(&frame) }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a client says before its first frame.
#[derive(Debug, Clone, Default)]
pub struct Greeting {
    /// `Authorization: Bearer`. QUIC has no such header.
    pub bearer: Option<String>,
    /// `?token=`. Native QUIC has no query.
    pub query: Option<String>,
    /// `Origin`.
    pub origin: Option<String>,
    /// Subprotocols instead of the carrier's own.
    pub subprotocols: Option<String>,
    /// Another header.
    pub header: Option<(String, String)>,
    /// It says nothing more, and reads slowly. WebSocket over HTTP/2 does not.
    pub pace: Option<Pace>,
}

/// The server did not let it in.
#[derive(Debug, thiserror::Error)]
#[error("refused with HTTP {status}: {body}")]
pub struct Refused {
    /// How it said so.
    pub status: StatusCode,
    /// What it said, where the carrier shows it.
    pub body: String,
}

/// What comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// A frame, in JSON spelling.
    Frame(Value),
    /// The transport's own close; nothing comes after it. Long poll has none: its `close` frame counts.
    Closed {
        /// Its number; 0 where there was none.
        code: u32,
        /// Its reason.
        reason: String,
    },
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// What came before it.
    pub frames: Vec<Value>,
    /// Of the `close` frame; 0 where there was none.
    pub frame: u32,
    /// Of the transport's own close.
    pub transport: u32,
}

/// A connection.
#[derive(Debug)]
pub struct Raw {
    /// What it goes over.
    pub carrier: Carrier,
    line: Line,
}

#[derive(Debug)]
enum Line {
    Streams(
        Box<quic::Sender>,
        mpsc::Receiver<Received>,
        #[expect(dead_code, reason = "ends tasks")] DropGuard,
    ),
    Messages(
        Box<websocket::Sender>,
        mpsc::Receiver<Received>,
        #[expect(dead_code, reason = "ends tasks")] DropGuard,
    ),
    Polls(Box<longpoll::Polls>),
}

impl Raw {
    /// Connects; says nothing yet.
    ///
    /// # Errors
    /// When it is not let in: [`Refused`] where HTTP said so.
    pub async fn dial(gateway: &Gateway, carrier: Carrier) -> Result<Self> {
        Self::dial_as(gateway, carrier, &Greeting::default()).await
    }

    /// The same, with something said before the first frame.
    ///
    /// # Errors
    /// As [`Raw::dial`].
    pub async fn dial_as(gateway: &Gateway, carrier: Carrier, greeting: &Greeting) -> Result<Self> {
        let stop = CancellationToken::new();
        // Little is taken before the test asks for it: a client that does not read shows on the network.
        let (sender, receiver) = mpsc::channel(8);
        let dial = async {
            anyhow::Ok(match carrier {
                Carrier::Quic => Line::Streams(
                    Box::new(quic::dial(gateway, greeting, sender, stop.clone()).await?),
                    receiver,
                    stop.drop_guard(),
                ),
                Carrier::WebTransport => Line::Streams(
                    Box::new(quic::dial_web_transport(gateway, greeting, sender, stop.clone()).await?),
                    receiver,
                    stop.drop_guard(),
                ),
                Carrier::LongPoll => Line::Polls(Box::new(longpoll::Polls::new(gateway, greeting))),
                _ => Line::Messages(
                    Box::new(websocket::dial(gateway, carrier, greeting, sender, stop.clone()).await?),
                    receiver,
                    stop.drop_guard(),
                ),
            })
        };
        let line = within(PATIENCE, format!("a connection by {carrier}"), dial).await??;
        Ok(Self { carrier, line })
    }

    /// Connects, says `connect`, and waits for `connected`.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn connect(gateway: &Gateway, carrier: Carrier) -> Result<Self> {
        Ok(Self::connect_as(gateway, carrier, &Greeting::default(), None).await?.0)
    }

    /// The same with a greeting and a token in the frame; also returns the body of `connected`.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn connect_as(
        gateway: &Gateway,
        carrier: Carrier,
        greeting: &Greeting,
        token: Option<&str>,
    ) -> Result<(Self, Value)> {
        let mut raw = Self::dial_as(gateway, carrier, greeting).await?;
        let connect = token.map_or_else(|| json!({}), |token| json!({ "token": token }));
        raw.send(&json!({ "id": 1, "connect": connect })).await?;
        let frame = raw.frame().await?;
        if frame["connected"].is_null() {
            bail!("{carrier}: not let in: {frame}");
        }
        Ok((raw, frame["connected"].clone()))
    }

    /// Sends a frame, given in JSON spelling.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_bytes(self.carrier.encode(frame)).await
    }

    /// Sends bytes where a frame should be.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send_bytes(&mut self, bytes: Bytes) -> Result<()> {
        let carrier = self.carrier;
        let sending = async {
            match &mut self.line {
                Line::Streams(sender, ..) => sender.write(&bytes).await,
                Line::Messages(sender, ..) => sender.send(bytes, carrier.is_text()).await,
                Line::Polls(polls) => polls.send(bytes).await,
            }
        };
        within(PATIENCE, format!("{carrier} takes a frame"), sending).await?
    }

    /// Sends bytes by datagram, or as a WebSocket message of the other kind.
    ///
    /// # Errors
    /// When the connection is gone, or the carrier has no such thing.
    pub async fn send_aside(&mut self, bytes: Bytes) -> Result<()> {
        match &mut self.line {
            Line::Streams(sender, ..) => sender.datagram(bytes),
            Line::Messages(sender, ..) => sender.send(bytes, !self.carrier.is_text()).await,
            Line::Polls(_) => bail!("long poll has one way only"),
        }
    }

    /// The next thing that comes.
    ///
    /// # Errors
    /// When nothing comes.
    pub async fn recv(&mut self) -> Result<Received> {
        let carrier = self.carrier;
        let receiving = async {
            match &mut self.line {
                Line::Streams(_, receiver, _) | Line::Messages(_, receiver, _) => {
                    receiver.recv().await.context("nothing comes any more")
                }
                Line::Polls(polls) => polls.recv().await,
            }
        };
        within(PATIENCE, format!("something by {carrier}"), receiving).await?
    }

    /// The next frame; pings are answered and passed over.
    ///
    /// # Errors
    /// When the connection ends instead.
    pub async fn frame(&mut self) -> Result<Value> {
        loop {
            match self.recv().await? {
                Received::Frame(frame) if !frame["ping"].is_null() => {
                    self.send(&json!({ "pong": {} })).await?
                }
                Received::Frame(frame) => return Ok(frame),
                closed => bail!("{}: {closed:?}", self.carrier),
            }
        }
    }

    /// The answer to request `id`.
    ///
    /// # Errors
    /// When the connection ends instead.
    pub async fn reply(&mut self, id: u64) -> Result<Value> {
        loop {
            let frame = self.frame().await?;
            if frame["id"] == id {
                return Ok(frame);
            }
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// When the connection ends instead.
    pub async fn ask(&mut self, request: &Value) -> Result<Value> {
        self.send(request).await?;
        self.reply(request["id"].as_u64().context("a request has an id")?).await
    }

    /// Reads until the connection ends.
    ///
    /// # Errors
    /// When it does not.
    pub async fn end(&mut self) -> Result<End> {
        let mut frames = Vec::new();
        loop {
            match self.recv().await.with_context(|| format!("{}: after {frames:?}", self.carrier))? {
                Received::Frame(frame) => frames.push(frame),
                Received::Closed { code, .. } => {
                    let close = frames.iter().find_map(|frame| frame["close"]["code"].as_u64());
                    let frame = close.and_then(|code| u32::try_from(code).ok()).unwrap_or(0);
                    return Ok(End { frames, frame, transport: code });
                }
            }
        }
    }
}

/// A frame as it would be written in JSON.
fn spelled(frame: &ServerFrame) -> Value {
    serde_json::from_slice(&encode_text(frame)).expect("frames are JSON")
}
