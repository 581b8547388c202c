//! WebSocket with the subprotocol `tidegate.v1.proto`: binary messages of delimited frames (PROTOCOL §6.3).

use bytes::BytesMut;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tidegate_protocol::frame::codec::{decode_message, encode_delimited};
use tidegate_protocol::session::client::{Carrier, Transmit};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::endpoint::Endpoint;

use super::{Connection, Dial, Dialer, Inbound, Lost, MAX_FRAME, Stream, Transport};

pub(super) struct WebSocket;

type Socket = WebSocketStream<Box<dyn Stream>>;

impl Dial for WebSocket {
    async fn dial(dialer: &Dialer, endpoint: &Endpoint) -> Result<Connection, Lost> {
        let stream = dialer.stream(endpoint).await?;
        let scheme = if endpoint.tls { "wss" } else { "ws" };
        let url = format!("{scheme}://{}{}", endpoint.authority(), endpoint.path);
        let mut request = url.into_client_request().map_err(lost)?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("tidegate.v1.proto"));
        let config = WebSocketConfig::default()
            .read_buffer_size(8 << 10)
            .write_buffer_size(0)
            .max_write_buffer_size(1 << 20)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await.map_err(lost)?;
        let (sink, source) = socket.split();
        let (handle, mut ends) = dialer.queues(Transport::WebSocket, false);
        let (_, never) = mpsc::channel(1);
        let outbound = std::mem::replace(&mut ends.outbound, never);
        ends.spawn(write(sink, outbound, ends.control.clone()));
        ends.spawn(read(source, ends.control.clone()));
        Ok(handle)
    }
}

async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut outbound: mpsc::Receiver<Transmit>,
    control: mpsc::Sender<Inbound>,
) {
    while let Some(transmit) = outbound.recv().await {
        let mut message = BytesMut::from(encode_delimited(&transmit.frame));
        // What waits goes along: one message, one write.
        while message.len() < COALESCE
            && let Ok(next) = outbound.try_recv()
        {
            message.extend_from_slice(&encode_delimited(&next.frame));
        }
        if let Err(error) = sink.send(Message::Binary(message.freeze())).await {
            let _gone = control.send(Inbound::Lost(lost(error))).await;
            return;
        }
    }
}

async fn read(mut source: SplitStream<Socket>, control: mpsc::Sender<Inbound>) {
    let end = loop {
        let inbound = match source.next().await {
            Some(Ok(Message::Binary(message))) => match decode_message(message, MAX_FRAME) {
                Ok(frames) => Inbound::Frames(Carrier::Control, frames),
                Err(error) => break Lost::new(format!("what the server sent cannot be decoded: {error}")),
            },
            Some(Ok(Message::Close(Some(close)))) => {
                break Lost::closed(u16::from(close.code).into(), close.reason.to_string());
            }
            Some(Ok(Message::Close(None))) => break Lost::new("the server closed without a code"),
            Some(Ok(Message::Text(_))) => {
                break Lost::new("a text message, where only binary ones were agreed");
            }
            // Answered by the library.
            Some(Ok(_)) => Inbound::Alive,
            Some(Err(error)) => break lost(error),
            None => break Lost::new("the connection ended"),
        };
        if control.send(inbound).await.is_err() {
            return;
        }
    };
    let _gone = control.send(Inbound::Lost(end)).await;
}

fn lost(error: Error) -> Lost {
    match error {
        Error::Http(response) => Lost::from_status(response.status()),
        other => Lost::new(other.to_string()),
    }
}

/// Frames that wait share a message up to about so many bytes.
const COALESCE: usize = 16 << 10;

/// A message holds at most one frame of the largest size and what fits beside it.
const MAX_MESSAGE: usize = MAX_FRAME + (64 << 10);
