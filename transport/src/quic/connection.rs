//! One client's connection, native or WebTransport: lanes are streams.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt};
use tidegate_protocol::frame::CloseCode;
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::{ChannelName, Epoch};
use web_transport_quinn::Session;

use super::QuicConfig;
use super::datagrams::Datagrams;
use super::early::Early;
use super::inbound::{Carrier, Inbox};
use super::lanes::{ControlStopped, Lanes};
use super::webtransport::{DATAGRAM_HEADER, UNI_HEADER};
use crate::{Closing, Connection, Inbound, Lane, PathStats, RecvError, Sent, TransportKind};

/// A client connected by QUIC or WebTransport.
///
/// Control is the stream that the client opened. Each subscription has a stream for what is live and one per catch-up,
/// opened at their first bytes, and others when its epoch changes; where the client gives no credit for one then, the lane
/// goes on control, and looks again now and then.
///
/// What does not go at once is kept, at most one offer per stream, and goes on as the client takes it: the task that
/// polled last is woken for that, and pushes by [`Connection::poll_recv`] (all streams) or [`Connection::poll_ready`]
/// (one lane; control: all). Sending on a connection that is lost takes everything and says nothing:
/// [`Connection::poll_recv`] alone tells how a connection ended. Dropping one closes it, with [`CloseCode::Shutdown`] unless
/// [`Connection::poll_close`] was told another.
pub struct QuicConnection {
    connection: quinn::Connection,
    carrier: Carrier,
    inbox: Inbox,
    lanes: Lanes,
    datagrams: Datagrams,
    /// Of the task that polled last.
    waker: Waker,
    /// While the handshake is not complete. Boxed: few have one, and not for long.
    early: Option<Box<Early>>,
    /// Boxed: only a connection that ends has one.
    close: Option<Box<Close>>,
}

/// What QUIC knows of a connection's path.
#[derive(Debug, Clone, Copy)]
pub struct QuicStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Bytes that may be in flight.
    pub congestion_window: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Of those, lost.
    pub lost_packets: u64,
    /// UDP payload sent, bytes.
    pub sent_bytes: u64,
    /// UDP payload received, bytes.
    pub received_bytes: u64,
}

impl fmt::Debug for QuicConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConnection")
            .field("kind", &self.kind())
            .field("remote_address", &self.remote_address())
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}

impl QuicConnection {
    pub(crate) fn native(
        connection: quinn::Connection,
        early: Option<Box<Early>>,
        send: SendStream,
        recv: RecvStream,
        config: &QuicConfig,
    ) -> Self {
        let lanes = Lanes::new(send, &[], config.send_window);
        let inbox = Inbox::new(recv, config.frame_limit);
        let mut native = Self::new(connection, Carrier::Native, lanes, inbox, config);
        native.early = early;
        native
    }

    pub(crate) fn web_transport(
        session: Session,
        send: SendStream,
        recv: RecvStream,
        config: &QuicConfig,
    ) -> Self {
        let connection = (*session).clone();
        let carrier = Carrier::WebTransport(Box::new(session));
        let lanes = Lanes::new(send, UNI_HEADER, config.send_window);
        Self::new(connection, carrier, lanes, Inbox::new(recv, config.frame_limit), config)
    }

    fn new(
        connection: quinn::Connection,
        carrier: Carrier,
        lanes: Lanes,
        inbox: Inbox,
        config: &QuicConfig,
    ) -> Self {
        let datagrams = Datagrams::new(config.datagram_buffer);
        let waker = Waker::noop().clone();
        Self { connection, carrier, inbox, lanes, datagrams, waker, early: None, close: None }
    }

    /// Where the client is now: it may move.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// What QUIC knows of the path.
    pub fn stats(&self) -> QuicStats {
        let stats = self.connection.stats();
        QuicStats {
            rtt: stats.path.rtt,
            congestion_window: stats.path.cwnd,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
        }
    }

    fn remember(&mut self, cx: &Context<'_>) {
        if !self.waker.will_wake(cx.waker()) {
            self.waker.clone_from(cx.waker());
        }
    }

    /// Ready when the handshake is complete, with an error when it never will be.
    fn poll_complete(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        if let Some(early) = &mut self.early {
            ready!(early.poll(cx, &self.connection))?;
            self.early = None;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, cx: &mut Context<'_>, close: &mut Close) -> Poll<()> {
        loop {
            close.phase = match &mut close.phase {
                Phase::Flushing => match ready!(self.lanes.poll_control(&self.connection, cx)) {
                    Ok(()) => Phase::Acknowledging(Box::pin(self.lanes.finish_control())),
                    // It will not be read: the code says the same.
                    Err(ControlStopped(_)) => self.close_transport(&close.closing),
                },
                Phase::Acknowledging(acknowledged) => {
                    ready!(acknowledged.as_mut().poll(cx));
                    // What was acknowledged may still be on its way from the client's QUIC to its reader, and a close
                    // may overtake it there.
                    Phase::Lingering(self.linger())
                }
                Phase::Lingering(lingered) => {
                    ready!(lingered.as_mut().poll(cx));
                    self.close_transport(&close.closing)
                }
                Phase::Closing(closed) => {
                    ready!(closed.as_mut().poll(cx));
                    Phase::Closed
                }
                Phase::Closed => return Poll::Ready(()),
            };
        }
    }

    fn close_transport(&self, closing: &Closing) -> Phase {
        self.end(closing);
        let connection = self.connection.clone();
        Phase::Closing(Box::pin(async move {
            let _how = connection.closed().await;
        }))
    }

    /// Ends the connection now: by the session's capsule, which a task of the session delivers, or by QUIC.
    fn end(&self, closing: &Closing) {
        let cut = closing.code.frame(&closing.reason);
        match &self.carrier {
            Carrier::Native => self.connection.close(VarInt::from_u32(cut.code), cut.reason.as_bytes()),
            Carrier::WebTransport(session) => session.close(cut.code, cut.reason.as_bytes()),
        }
    }

    /// Waits until the client has hung up, or had the time to take what it was sent.
    fn linger(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let connection = self.connection.clone();
        let patience = (connection.rtt() * 3).clamp(MIN_LINGER, MAX_LINGER);
        Box::pin(async move {
            let _elapsed = tokio::time::timeout(patience, connection.closed()).await;
        })
    }
}

impl Connection for QuicConnection {
    fn kind(&self) -> TransportKind {
        if self.carrier.is_http3() { TransportKind::WebTransport } else { TransportKind::Quic }
    }

    fn framing(&self) -> Framing {
        Framing::Delimited
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Inbound, RecvError>> {
        self.remember(cx);
        // How it failed, the inbox tells.
        let _later = self.poll_complete(cx);
        self.lanes.push_all(&self.connection, cx).map_err(stopped)?;
        let received = ready!(self.inbox.poll(cx, &self.connection, &self.carrier));
        // Again: on a runtime of several threads the handshake may have ended meanwhile, and what a client says after it
        // must not look early.
        let _later = self.poll_complete(cx);
        Poll::Ready(received)
    }

    fn open_lane(&mut self, subscription: u32, channel: &ChannelName, rank: i8) {
        self.lanes.open(subscription, channel, rank);
    }

    fn begin_epoch(&mut self, subscription: u32, epoch: &Epoch) {
        self.lanes.begin_epoch(subscription, epoch);
    }

    fn rank_lane(&mut self, subscription: u32, rank: i8) {
        self.lanes.set_rank(subscription, rank);
    }

    fn close_lane(&mut self, subscription: u32) {
        self.lanes.close(subscription);
    }

    fn finish_catch_up(&mut self, subscription: u32) {
        self.lanes.finish_catch_up(subscription);
    }

    fn send(&mut self, lane: Lane, bytes: &Bytes) -> Result<Sent, RecvError> {
        self.lanes.send(&self.connection, &self.waker, lane, bytes).map_err(stopped)
    }

    fn send_datagram(&mut self, bytes: &Bytes) -> bool {
        if !self.datagrams.are_open(&self.connection) {
            return false;
        }
        let datagram = match &self.carrier {
            Carrier::Native => bytes.clone(),
            Carrier::WebTransport(_) => {
                let mut datagram = BytesMut::with_capacity(1 + bytes.len());
                datagram.put_u8(DATAGRAM_HEADER);
                datagram.put_slice(bytes);
                datagram.freeze()
            }
        };
        self.connection.send_datagram(datagram).is_ok()
    }

    fn path(&self) -> Option<PathStats> {
        let path = self.connection.stats().path;
        let header = if self.carrier.is_http3() { size_of_val(&DATAGRAM_HEADER) } else { 0 };
        let datagram_size = self.connection.max_datagram_size().map_or(0, |size| size.saturating_sub(header));
        Some(PathStats {
            rtt: path.rtt,
            congestion_window: path.cwnd,
            sent_packets: path.sent_packets,
            lost_packets: path.lost_packets,
            datagram_size,
        })
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, lane: Lane) -> Poll<Result<(), RecvError>> {
        self.remember(cx);
        if lane == Lane::Control {
            self.lanes.push_all(&self.connection, cx).map_err(stopped)?;
        }
        self.lanes.poll_ready(&self.connection, cx, lane).map_err(stopped)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, closing: &Closing) -> Poll<()> {
        self.remember(cx);
        let mut close = self
            .close
            .take()
            .unwrap_or_else(|| Box::new(Close { closing: closing.clone(), phase: Phase::Flushing }));
        let polled = self.advance(cx, &mut close);
        self.close = Some(close);
        polled
    }

    fn buffered(&self) -> usize {
        self.lanes.unsent()
    }

    fn is_early(&self) -> bool {
        self.early.is_some()
    }

    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecvError>> {
        self.remember(cx);
        self.poll_complete(cx).map_err(|()| RecvError::Lost("the handshake was not completed".into()))
    }
}

impl Drop for QuicConnection {
    fn drop(&mut self) {
        match self.close.take() {
            None => self.end(&Closing { code: CloseCode::Shutdown, reason: String::new() }),
            Some(close) if !matches!(close.phase, Phase::Closing(_) | Phase::Closed) => {
                self.end(&close.closing)
            }
            Some(_) => {}
        }
    }
}

struct Close {
    closing: Closing,
    phase: Phase,
}

/// ```text
/// Flushing ─► Acknowledging ─► Lingering ─► Closing ─► Closed
///    └──────the client stopped control─────────┘
/// ```
enum Phase {
    /// What is left over on control goes out.
    Flushing,
    /// The client's QUIC takes it.
    Acknowledging(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// The client's reader takes it.
    Lingering(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// The transport's own close is on its way.
    Closing(Pin<Box<dyn Future<Output = ()> + Send>>),
    Closed,
}

fn stopped(ControlStopped(code): ControlStopped) -> RecvError {
    RecvError::Protocol {
        code: CloseCode::OutOfOrder,
        reason: format!("the client stopped reading the control stream (code {code})"),
    }
}

const MIN_LINGER: Duration = Duration::from_millis(50);
const MAX_LINGER: Duration = Duration::from_millis(500);
