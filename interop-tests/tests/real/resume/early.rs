//! Resumes in a client's first flight (0-RTT), the same attempt again, and a recorded flight.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::raw::Carrier;
use tidegate_interop_tests::wait::{PATIENCE, until, within};
use tidegate_protocol::frame::ServerFrame;
use tidegate_protocol::frame::codec::{Decoder, encode_text};
use tidegate_transport::quic::{DialConfig, QuicClient, QuicDialer};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{connect, flight, ticket};

/// A path that can hold back what the server says: its client's handshake does not complete meanwhile.
struct Path {
    address: SocketAddr,
    holds: watch::Sender<bool>,
    /// What the client sent.
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    #[expect(dead_code, reason = "ends the task")]
    stop: DropGuard,
}

impl Path {
    async fn to(gateway: &Gateway) -> Result<Self> {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        back.connect(gateway.addresses.quic).await?;
        let address = front.local_addr()?;
        let (holds, mut held) = watch::channel(true);
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let (stop, record) = (CancellationToken::new(), Arc::clone(&recorded));
        TaskTracker::new().spawn(stop.clone().run_until_cancelled_owned(async move {
            let (mut up, mut down) = ([0; 2048], [0; 2048]);
            let (mut client, mut waiting) = (None, Vec::new());
            loop {
                tokio::select! {
                    Ok((length, from)) = front.recv_from(&mut up) => {
                        client = Some(from);
                        record.lock().expect("nobody panics").push(up[..length].to_vec());
                        // What the network loses, QUIC sends again.
                        let _ = back.send(&up[..length]).await;
                    }
                    Ok(length) = back.recv(&mut down) => waiting.push(down[..length].to_vec()),
                    Ok(()) = held.changed() => {}
                }
                if !*held.borrow()
                    && let Some(client) = client
                {
                    for datagram in waiting.drain(..) {
                        let _ = front.send_to(&datagram, client).await;
                    }
                }
            }
        }));
        Ok(Self { address, holds, recorded, stop: stop.drop_guard() })
    }

    fn release(&self) {
        self.holds.send_replace(false);
    }
}

struct Client {
    quic: QuicClient,
    control: quinn::SendStream,
    answers: quinn::RecvStream,
    decoder: Decoder,
}

impl Client {
    async fn dial(dialer: &QuicDialer, address: SocketAddr, frames: &[Value]) -> Result<Self> {
        Self::dial_as(dialer, address, frames, true).await
    }

    async fn dial_as(
        dialer: &QuicDialer,
        address: SocketAddr,
        frames: &[Value],
        early: bool,
    ) -> Result<Self> {
        let quic = within(PATIENCE, "a connection", dialer.dial(address, "127.0.0.1", early)).await??;
        let (mut control, answers) = quic.connection().open_bi().await?;
        control.write_all(&flight(Carrier::Quic, frames)).await?;
        Ok(Self { quic, control, answers, decoder: Decoder::new(1 << 20) })
    }

    async fn frame(&mut self) -> Result<Value> {
        let mut chunk = [0; 4096];
        let reading = async {
            loop {
                if let Some(frame) = self.decoder.next::<ServerFrame>()? {
                    return Ok(serde_json::from_slice(&encode_text(&frame))?);
                }
                let length = self.answers.read(&mut chunk).await?.context("the stream ended")?;
                self.decoder.push(&chunk[..length]);
            }
        };
        within(PATIENCE, "a frame", reading).await?
    }

    /// Says `done` and waits for the end.
    async fn leave(mut self) -> Result<()> {
        self.control.write_all(&Carrier::Quic.encode(&json!({ "done": {} }))).await?;
        within(PATIENCE, "the end", self.quic.connection().closed()).await?;
        Ok(())
    }
}

/// A dialer, and nothing that it could say early yet.
fn dialer(gateway: &Gateway) -> Result<QuicDialer> {
    Ok(QuicDialer::new(gateway.tls(&[b"tidegate/1"]).as_ref().clone(), DialConfig::default())?)
}

/// A fresh session, and a dialer that has met the gateway.
async fn meet(gateway: &Gateway, dialer: &QuicDialer) -> Result<(Client, Value)> {
    // Not early: that is for resumes.
    let frames = [json!({ "id": 1, "connect": {} })];
    let mut client = Client::dial_as(dialer, gateway.addresses.quic, &frames, false).await?;
    let connected = client.frame().await?["connected"].clone();
    ensure!(connected["resume"].is_string(), "{connected}");
    Ok((client, connected))
}

async fn resumes(gateway: &Gateway, result: &str) -> Result<f64> {
    gateway.metric(&format!("tidegate_edge_resumes_total{{result=\"{result}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_flight_resumes_a_session_and_sent_again_it_does_nothing() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let dialer = dialer(&gateway)?;
    let (old, connected) = meet(&gateway, &dialer).await?;
    let position = gateway.publish("room:1", json!("seen")).await?;
    gateway.publish("room:1", json!("missed")).await?;
    let path = Path::to(&gateway).await?;
    let frames = [
        connect(ticket(&connected)?, "k"),
        json!({ "id": 2, "subscribe": { "channel": "room:1", "position": position } }),
    ];
    let mut client = Client::dial(&dialer, path.address, &frames).await?;
    ensure!(client.quic.is_early(), "nothing was remembered of the server");
    // Nothing of the server's has arrived: its handshake is not complete.
    let honoured = "tidegate_edge_resumes_total{result=\"honoured\"}";
    gateway.until_metric(honoured, |count| count == 1.0).await?;
    path.release();
    let frame = client.frame().await?;
    ensure!(
        frame["connected"]["resumed"] == true && frame["connected"]["session"] == connected["session"],
        "{frame}"
    );
    let next = frame["connected"].clone();
    let frame = client.frame().await?;
    ensure!(frame["subscribed"]["publications"][0]["data"] == "missed", "{frame}");
    old.leave().await?;
    client.leave().await?;

    // Whoever recorded the first flight has no keys to go on with.
    let recorded = path.recorded.lock().expect("nobody panics").clone();
    until("an answer to the recorded flight", || async {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        for datagram in recorded.iter().take(4) {
            socket.send_to(datagram, gateway.addresses.quic).await?;
        }
        let mut answer = [0; 2048];
        tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut answer)).await??;
        Ok(())
    })
    .await?;
    let mut again = Client::dial(&dialer, gateway.addresses.quic, &[connect(ticket(&next)?, "k2")]).await?;
    let frame = again.frame().await?;
    ensure!(frame["connected"]["resumed"] == true, "{frame}");
    for (result, count) in [("honoured", 2.0), ("repeated", 0.0), ("stale", 0.0), ("theft", 0.0)] {
        let metric = resumes(&gateway, result).await?;
        ensure!(metric == count, "{result}: {metric}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_not_the_first_waits_for_the_handshake() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let dialer = dialer(&gateway)?;
    let (_old, connected) = meet(&gateway, &dialer).await?;
    let mut first =
        Client::dial(&dialer, gateway.addresses.quic, &[connect(ticket(&connected)?, "k")]).await?;
    ensure!(first.frame().await?["connected"]["resumed"] == true);
    for (key, result, code) in [("k", "repeated", None), ("another", "theft", Some(4008))] {
        // Something to be early with.
        let (another, _) = meet(&gateway, &dialer).await?;
        another.leave().await?;
        let path = Path::to(&gateway).await?;
        let before = gateway.metric("tidegate_edge_connections{transport=\"quic\"}").await?;
        let mut client = Client::dial(&dialer, path.address, &[connect(ticket(&connected)?, key)]).await?;
        ensure!(client.quic.is_early(), "nothing was remembered of the server");
        gateway.until_metric("tidegate_edge_connections{transport=\"quic\"}", |count| count > before).await?;
        // It is asked at once; a publish after it, through the same core and back, would have been answered.
        for n in 0..20 {
            gateway.publish("room:1", json!(n)).await?;
            ensure!(resumes(&gateway, result).await? == 0.0, "{result} as early data");
        }
        path.release();
        let frame = client.frame().await?;
        match code {
            None => ensure!(frame["connected"]["resumed"] == true, "{frame}"),
            Some(code) => ensure!(frame["close"]["code"] == code, "{frame}"),
        }
        ensure!(resumes(&gateway, result).await? == 1.0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_may_be_said_early() -> Result<()> {
    let gateway = Gateway::dev("").await?;
    let dialer = dialer(&gateway)?;
    let (_old, connected) = meet(&gateway, &dialer).await?;
    for (number, resumes) in [(1, false), (2, true)] {
        let (another, _) = meet(&gateway, &dialer).await?;
        another.leave().await?;
        let path = Path::to(&gateway).await?;
        let frames = if resumes {
            let publish = json!({ "id": 2, "publish": { "channel": "room:1", "data": 1 } });
            vec![connect(ticket(&connected)?, "k"), publish]
        } else {
            vec![json!({ "id": 1, "connect": {} })]
        };
        let client = Client::dial(&dialer, path.address, &frames).await?;
        ensure!(client.quic.is_early(), "nothing was remembered of the server");
        // Decided before the handshake is complete, and closed without waiting for it for long.
        let closes = "tidegate_edge_closes_total{transport=\"quic\",code=\"out_of_order\"}";
        gateway.until_metric(closes, |count| count == f64::from(number)).await?;
        drop(path);
        let history = gateway.api(tidegate_interop_tests::http::get("/v1/channels/room:1/history")).await?;
        ensure!(history.json()["publications"].as_array().is_some_and(Vec::is_empty), "{}", history.text());
    }
    Ok(())
}
