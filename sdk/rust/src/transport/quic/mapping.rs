//! What is in front of streams and datagrams: nothing, or WebTransport's few bytes (PROTOCOL §6.2).

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tidegate_transport::quic::WebTransportClient;

use super::{lost, not_dialed};
use crate::Transport;
use crate::endpoint::Endpoint;
use crate::transport::{Cause, Lost};

/// A connection, and how it is used.
#[derive(Debug, Clone)]
pub(super) enum Mapping {
    Native(quinn::Connection),
    WebTransport(quinn::Connection, WebTransportClient),
}

impl Mapping {
    /// Asks for a WebTransport session.
    pub(super) async fn request(connection: &quinn::Connection, endpoint: &Endpoint) -> Result<Self, Lost> {
        let session = WebTransportClient::request(connection, &endpoint.authority(), &endpoint.path).await;
        Ok(Self::WebTransport(connection.clone(), session.map_err(not_dialed)?))
    }

    pub(super) fn transport(&self) -> Transport {
        match self {
            Self::Native(_) => Transport::Quic,
            Self::WebTransport(..) => Transport::WebTransport,
        }
    }

    pub(super) fn connection(&self) -> &quinn::Connection {
        match self {
            Self::Native(connection) | Self::WebTransport(connection, _) => connection,
        }
    }

    /// Opens a bidirectional stream.
    pub(super) async fn open(&self) -> Result<(SendStream, RecvStream), Lost> {
        match self {
            Self::Native(connection) => connection.open_bi().await.map_err(lost),
            Self::WebTransport(_, session) => session.open_bi().await.map_err(not_dialed),
        }
    }

    /// False where a stream that the server opened is none of the session's.
    pub(super) async fn is_ours(&self, recv: &mut RecvStream) -> bool {
        match self {
            Self::Native(_) => true,
            Self::WebTransport(_, session) => session.is_ours(recv).await,
        }
    }

    /// At most once: what the connection cannot take now is lost. False where it is too large for a datagram.
    pub(super) fn send_datagram(&self, payload: &Bytes) -> bool {
        let datagram = match self {
            Self::Native(_) => payload.clone(),
            Self::WebTransport(..) => WebTransportClient::to_datagram(payload),
        };
        let fits = self.connection().max_datagram_size().is_some_and(|limit| datagram.len() <= limit);
        if fits {
            let _lost = self.connection().send_datagram(datagram);
        }
        fits
    }

    /// Of a datagram; `None` where it is none of the session's.
    pub(super) fn payload(&self, datagram: Bytes) -> Option<Bytes> {
        match self {
            Self::Native(_) => Some(datagram),
            Self::WebTransport(..) => WebTransportClient::from_datagram(datagram),
        }
    }

    /// Waits for the end.
    pub(super) async fn closed(&self) -> Lost {
        match self {
            Self::Native(connection) => lost(connection.closed().await),
            Self::WebTransport(connection, session) => match session.closed().await {
                (Some(code), reason) => Lost { code: Some(code), reason, cause: Cause::Server },
                (None, _) => lost(connection.closed().await),
            },
        }
    }

    /// Why it has ended; `None` where it has not.
    pub(super) async fn close_reason(&self) -> Option<Lost> {
        self.connection().close_reason()?;
        Some(self.closed().await)
    }
}
