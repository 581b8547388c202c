//! QUIC against a server of a few lines.

use std::sync::Arc;

use bytes::Bytes;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, ServerConfig, VarInt};
use tidegate_certs::{CertStore, CertificateHash, DevCertificates, server_config};
use tidegate_protocol::Epoch;
use tidegate_protocol::frame::codec::{Decoder, decode_message, encode_delimited};
use tidegate_protocol::frame::{ClientBody, ClientFrame, ServerBody, ServerFrame, StreamHeader, Subscribed};
use tidegate_transport::clock;

use super::{Gateway, bytes, disconnected, next, next_publication, soon};
use crate::{Client, ClientError, State, SubscriptionEvent, Transport};

pub(super) fn server() -> (Endpoint, String, CertificateHash) {
    let dev = DevCertificates::ephemeral(&[], clock::wall()).unwrap();
    let hash = dev.hash();
    let tls = server_config(Arc::new(CertStore::from_dev(dev)), &[b"tidegate/1"]);
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("quic://{}", endpoint.local_addr().unwrap());
    (endpoint, url, hash)
}

/// A connection with its control stream.
pub(super) struct Peer {
    connection: quinn::Connection,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    decoder: Decoder,
}

impl Peer {
    pub(super) async fn accept(endpoint: &Endpoint) -> Self {
        Self::of(endpoint.accept().await.unwrap().await.unwrap()).await
    }

    pub(super) async fn of(connection: quinn::Connection) -> Self {
        let (send, recv) = connection.accept_bi().await.unwrap();
        Self { connection, send, recv, decoder: Decoder::new(1 << 20) }
    }

    pub(super) fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    pub(super) async fn next(&mut self) -> Option<ClientFrame> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame);
            }
            let chunk = self.recv.read_chunk(4096, true).await.ok()??;
            self.decoder.push(&chunk.bytes);
        }
    }

    pub(super) async fn answer(&mut self, frame: ServerFrame) {
        self.send.write_all(&encode_delimited(&frame)).await.unwrap();
    }

    pub(super) async fn lane(&self, catch_up: bool) -> quinn::SendStream {
        let mut lane = self.connection.open_uni().await.unwrap();
        let header = StreamHeader { channel: "room".to_owned(), catch_up, epoch: "e".to_owned() };
        lane.write_all(&prost_delimited(&header)).await.unwrap();
        lane
    }
}

/// The one message of the protocol that is no frame.
fn prost_delimited(header: &StreamHeader) -> Bytes {
    let channel = header.channel.as_bytes();
    let mut body = vec![0x0a, channel.len() as u8];
    body.extend_from_slice(channel);
    if header.catch_up {
        body.extend_from_slice(&[0x10, 1]);
    }
    body.extend_from_slice(&[0x1a, header.epoch.len() as u8]);
    body.extend_from_slice(header.epoch.as_bytes());
    let mut message = vec![body.len() as u8];
    message.extend_from_slice(&body);
    Bytes::from(message)
}

#[tokio::test]
async fn lanes_are_put_together_and_a_close_code_brings_the_client_back() {
    let (endpoint, url, hash) = server();
    let mut gateway = Gateway::default();
    let serve = async {
        let mut peer = Peer::accept(&endpoint).await;
        // connect, subscribe.
        for _ in 0..2 {
            let frame = peer.next().await.unwrap();
            if let Some(ClientBody::Connect(connect)) = &frame.body {
                assert!(connect.repeats, "datagrams may hold publications");
            }
            peer.answer(gateway.handle(frame).0.unwrap()).await;
        }
        let mut live = peer.lane(false).await;
        let frame = peer.next().await.unwrap();
        let (answer, publication) = gateway.handle(frame);
        // Repeated, and the repeat is first.
        let marked = ServerFrame { id: Epoch::new("e").mark().into(), ..publication.clone().unwrap() };
        peer.connection.send_datagram(encode_delimited(&marked)).unwrap();
        live.write_all(&encode_delimited(&publication.unwrap())).await.unwrap();
        peer.answer(answer.unwrap()).await;
        // Ephemeral, there and back by datagram.
        let datagram = peer.connection.read_datagram().await.unwrap();
        let frame = decode_message::<ClientFrame>(datagram, 1 << 16).unwrap().remove(0);
        assert!(matches!(&frame.body, Some(ClientBody::Publish(publish)) if publish.ephemeral));
        let (_, ephemeral) = gateway.handle(frame);
        peer.connection.send_datagram(encode_delimited(&ephemeral.unwrap())).unwrap();
        // The app says when it has it.
        let frame = peer.next().await.unwrap();
        peer.answer(gateway.handle(frame).0.unwrap()).await;
        peer.connection.close(VarInt::from_u32(4200), b"move");

        let missed = [gateway.append("three".into()), gateway.append("four".into())];
        let mut peer = Peer::accept(&endpoint).await;
        let connect = peer.next().await.unwrap();
        peer.answer(gateway.handle(connect).0.unwrap()).await;
        let subscribe = peer.next().await.unwrap();
        // Live overtakes both the answer and what was missed.
        let fifth = gateway.append("five".into());
        let mut live = peer.lane(false).await;
        live.write_all(&encode_delimited(&fifth)).await.unwrap();
        let mut catch_up = peer.lane(true).await;
        let subscribed = Subscribed {
            channel: "room".to_owned(),
            position: Some(gateway.position(4)),
            recovered: true,
            ..Subscribed::default()
        };
        assert!(
            matches!(&subscribe.body, Some(ClientBody::Subscribe(subscribe)) if subscribe.position == Some(gateway.position(1)))
        );
        peer.answer(ServerFrame::new(subscribe.id, ServerBody::Subscribed(subscribed))).await;
        catch_up.write_all(&encode_delimited(&gateway_frame(&gateway, 2))).await.unwrap();
        for frame in &missed {
            catch_up.write_all(&encode_delimited(frame)).await.unwrap();
        }
        catch_up.finish().unwrap();
        while let Some(frame) = peer.next().await {
            if let Some(answer) = gateway.handle(frame).0 {
                peer.answer(answer).await;
            }
        }
    };
    let client = async {
        let client = Client::builder(url).with_certificate_hash(hash.to_string()).connect().await.unwrap();
        assert_eq!(client.state(), State::Connected { transport: Transport::Quic });
        let mut events = client.take_events().unwrap();
        let mut room = client.subscribe("room").await.unwrap();
        assert!(matches!(next(&mut room).await, SubscriptionEvent::Subscribed { .. }));
        soon(client.publish("room", bytes("one"))).await.unwrap();
        assert_eq!(next_publication(&mut room).await, (1, "one".to_owned()));
        client.publish_ephemeral("room", bytes("typing")).await.unwrap();
        assert!(
            matches!(next(&mut room).await, SubscriptionEvent::Ephemeral(ephemeral) if ephemeral.payload == bytes("typing"))
        );
        // The live lane's copy of this one is never sent: only catch-up brings it.
        soon(client.publish("room", bytes("two"))).await.unwrap();
        assert_eq!(disconnected(&mut events).await, (4200, "move".to_owned()));
        for (offset, text) in [(2, "two"), (3, "three"), (4, "four"), (5, "five")] {
            assert_eq!(next_publication(&mut room).await, (offset, text.to_owned()));
        }
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}

fn gateway_frame(gateway: &Gateway, offset: u64) -> ServerFrame {
    ServerFrame::new(0, ServerBody::Publication(gateway.publication(offset)))
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused() {
    let (endpoint, url, _) = server();
    let serve = async {
        let refused = endpoint.accept().await.unwrap().await;
        assert!(refused.is_err());
    };
    let client = async {
        let other = CertificateHash::from([7; 32]).to_string();
        let error = Client::builder(url).with_certificate_hash(other).connect().await.unwrap_err();
        assert!(matches!(error, ClientError::Connect { .. }), "{error}");
        let error = Client::builder("quic://localhost")
            .with_certificate_hash("nonsense")
            .connect()
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Tls(_)), "{error}");
    };
    tokio::join!(serve, client);
}

#[tokio::test]
async fn a_client_that_comes_back_shows_that_it_is_where_it_says() {
    let (endpoint, url, hash) = server();
    let mut gateway = Gateway::default();
    let serve = async {
        let mut validated = Vec::new();
        for round in 0..3 {
            let incoming = endpoint.accept().await.unwrap();
            validated.push(incoming.remote_address_validated());
            let mut peer = Peer::of(incoming.await.unwrap()).await;
            while let Some(frame) = peer.next().await {
                let is_subscribe = matches!(frame.body, Some(ClientBody::Subscribe(_)));
                peer.answer(gateway.handle(frame).0.unwrap()).await;
                if is_subscribe && round < 2 {
                    break;
                }
            }
            peer.connection.close(VarInt::from_u32(4200), b"move");
        }
        assert_eq!(validated, [false, true, true]);
    };
    let client = async {
        let client = Client::builder(url).with_certificate_hash(hash.to_string());
        let client = soon(client.connect()).await.unwrap();
        let mut events = client.take_events().unwrap();
        let _room = client.subscribe("room").await.unwrap();
        for _ in 0..2 {
            assert_eq!(disconnected(&mut events).await.0, 4200);
        }
        assert_eq!(soon(client.publish("room", bytes("x"))).await.unwrap().offset.0, 1);
        soon(client.close()).await;
    };
    tokio::join!(serve, client);
}
