//! What nobody was given: slots, resume tickets, places that a server may not send clients to.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, ConnectionId, TransportErrorCode};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};
use tidegate_client::{Client, ClientEvent};
use tidegate_protocol::frame::codec::{decode_message, decode_text, encode_delimited};
use tidegate_protocol::frame::{ClientFrame, ServerFrame};
use tidegate_transport::clock;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tungstenite::Message;
use tungstenite::handshake::server::{ErrorResponse, Request, Response};

use super::overload::{Answer, knock};
use crate::gateway::Gateway;
use crate::raw::{Carrier, Raw};
use crate::wait::{PATIENCE, within};

/// How many were tried, and how many had an effect.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Forgeries {
    pub(super) tried: u64,
    pub(super) honoured: u64,
}

/// At a door that is full: half of them ours from beginning to end, half made of a ticket that somebody has.
pub(super) async fn slots(edge: &Gateway, count: u32) -> Result<Forgeries> {
    let given = within(PATIENCE, "a door that is full", ticket_of_a_full_door(edge)).await??;
    let given = URL_SAFE_NO_PAD.decode(given)?;
    let mut rng = clock::rng();
    let mut forged = Forgeries::default();
    let mut left = count;
    while left > 0 {
        let batch = left.min(AT_ONCE);
        let tickets: Vec<String> = (0..batch)
            .map(|number| {
                let made =
                    if number % 2 == 0 { random(&mut rng, given.len()) } else { altered(&mut rng, &given) };
                URL_SAFE_NO_PAD.encode(made)
            })
            .collect();
        let knocks = tickets.iter().map(|ticket| knock(edge, Some(ticket)));
        for answer in futures_util::future::join_all(knocks).await {
            forged.tried += 1;
            forged.honoured += u64::from(matches!(answer?, Answer::Connected(_)));
        }
        left -= batch;
    }
    Ok(forged)
}

/// The same, shown to QUIC as connection ids of clients' first packets (PROTOCOL §9.3), by clients that prove their address
/// where they are asked to. Whoever is answered with a handshake is let in.
pub(super) async fn first_ids(edge: &Gateway, count: u32) -> Result<Forgeries> {
    let given = within(PATIENCE, "a door that is full", ticket_of_a_full_door(edge)).await??;
    let given = URL_SAFE_NO_PAD.decode(given)?;
    let crypto = Arc::new(QuicClientConfig::try_from(edge.tls(&[b"tidegate/1"]).as_ref().clone())?);
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let mut rng = clock::rng();
    let mut forged = Forgeries::default();
    while forged.tried < u64::from(count) {
        let mut knocks = FuturesUnordered::new();
        for number in 0..AT_ONCE as usize {
            // No two the same at once: to the server, one id of one address is one client.
            let made = match number % 2 {
                0 => random(&mut rng, given.len()),
                _ => with_bit_flipped(&given, usize::try_from(forged.tried)? + number / 2),
            };
            let mut config = ClientConfig::new(crypto.clone());
            config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&made)));
            let connecting = endpoint.connect_with(config, edge.addresses.quic, "localhost")?;
            knocks.push(timeout(PATIENCE, hears(connecting)));
        }
        while let Some(heard) = knocks.next().await {
            let heard = heard.context("a full door says when to come back")?;
            forged.tried += 1;
            forged.honoured += u64::from(heard?);
        }
    }
    Ok(forged)
}

/// Whether a handshake begins; false where it is refused.
async fn hears(mut connecting: quinn::Connecting) -> Result<bool> {
    match connecting.handshake_data().await {
        Ok(_) => Ok(true),
        Err(ConnectionError::ConnectionClosed(close))
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// What somebody is given whose turn is long after all that are tried here.
async fn ticket_of_a_full_door(edge: &Gateway) -> Result<String> {
    loop {
        if let Answer::Later(after, Some(ticket)) = knock(edge, None).await?
            && after > FULL
        {
            return Ok(ticket);
        }
    }
}

/// Sessions that are not theirs.
pub(super) async fn resumes(edge: &Gateway, count: u32) -> Result<Forgeries> {
    let (_held, connected) =
        Raw::connect_as(edge, Carrier::WebSocket, &crate::raw::Greeting::default(), None).await?;
    let given = connected["resume"].as_str().or_else(|| connected["resume"]["ticket"].as_str());
    let given = given.with_context(|| format!("no ticket: {connected}"))?.to_owned();
    let mut rng = clock::rng();
    let mut forged = Forgeries::default();
    let mut left = count;
    while left > 0 {
        let batch = left.min(AT_ONCE);
        let tickets: Vec<String> = (0..batch).map(|_| altered_text(&mut rng, &given)).collect();
        let asks = tickets.iter().map(|ticket| async move {
            let mut raw = Raw::dial(edge, Carrier::WebSocket).await?;
            raw.send(&json!({ "id": 1, "connect": { "resume": ticket } })).await?;
            let frame = raw.frame().await?;
            anyhow::Ok(frame["connected"]["resumed"] == true)
        });
        for resumed in futures_util::future::join_all(asks).await {
            forged.tried += 1;
            forged.honoured += u64::from(resumed?);
        }
        left -= batch;
    }
    Ok(forged)
}

/// A server that sends clients of `sdk/rust` to places that it did not name before. It says of itself what `edge` says.
pub(super) async fn targets(edge: &Gateway, count: u32) -> Result<Forgeries> {
    let (_held, connected) =
        Raw::connect_as(edge, Carrier::WebSocket, &crate::raw::Greeting::default(), None).await?;
    let trap = TcpListener::bind("127.0.0.1:0").await?;
    let place = format!("https://{}", trap.local_addr()?);
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("ws://{}", server.local_addr()?);
    let each = count.div_ceil(VICTIMS);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut sessions = JoinSet::new();
        for _ in 0..VICTIMS {
            let (stream, _) = server.accept().await?;
            sessions.spawn(mislead(stream, connected.clone(), place.clone(), each));
        }
        while let Some(ended) = sessions.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    });
    let mut forged = Forgeries::default();
    let mut victims = JoinSet::new();
    for _ in 0..VICTIMS {
        let client = Client::builder(&url).connect().await?;
        victims.spawn(async move {
            let mut events = client.take_events().context("events")?;
            let mut ignored = 0;
            while ignored < each {
                match within(PATIENCE, "an event", events.next()).await? {
                    Some(ClientEvent::GoawayIgnored { .. }) => ignored += 1,
                    Some(ClientEvent::Leaving { .. } | ClientEvent::Moved { .. }) => bail!("it obeyed"),
                    Some(_) => {}
                    None => bail!("the session ended"),
                }
            }
            anyhow::Ok((ignored, client))
        });
    }
    let mut clients = Vec::new();
    while let Some(victim) = victims.join_next().await {
        match victim? {
            Ok((ignored, client)) => {
                forged.tried += u64::from(ignored);
                clients.push(client);
            }
            Err(error) => {
                eprintln!("{error:#}");
                forged.honoured += 1;
            }
        }
    }
    while let Ok(Ok(_)) = timeout(Duration::ZERO, trap.accept()).await {
        forged.honoured += 1;
    }
    drop(clients);
    serving.abort_all();
    Ok(forged)
}

/// Lets a client in, and sends it there again and again; it reads the next when it has dealt with the one before.
async fn mislead(stream: tokio::net::TcpStream, connected: Value, place: String, count: u32) -> Result<()> {
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, agree).await?;
    let asked = loop {
        if let Message::Binary(message) = socket.next().await.context("the client went")?? {
            let frames: Vec<ClientFrame> = decode_message(message, MAX_FRAME)?;
            break frames.into_iter().next().context("a frame")?;
        }
    };
    let answer = json!({ "id": asked.id, "connected": connected });
    socket.send(message(&answer)?).await?;
    for number in 0..count {
        let goaway =
            json!({ "goaway": { "endpoint": place, "reason": "drain", "deadline_ms": 600_000 + number } });
        socket.send(message(&goaway)?).await?;
        if number % BURST == BURST - 1 {
            // Its queue of events holds no more.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // Until the client has seen enough.
    while let Some(Ok(_)) = socket.next().await {}
    Ok(())
}

/// As `sdk/rust` wants it.
#[expect(clippy::result_large_err, clippy::unnecessary_wraps, reason = "tungstenite's signature")]
fn agree(_request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let protocol = HeaderValue::from_static("tidegate.v1.proto");
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    Ok(response)
}

/// A server's frame, given in JSON spelling.
fn message(frame: &Value) -> Result<Message> {
    let frames: Vec<ServerFrame> = decode_text(frame.to_string().as_bytes(), MAX_FRAME)?;
    Ok(Message::Binary(encode_delimited(&frames.into_iter().next().context("a frame")?)))
}

fn random(rng: &mut ChaCha8Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.random()).collect()
}

/// A bit is another.
fn altered(rng: &mut ChaCha8Rng, given: &[u8]) -> Vec<u8> {
    with_bit_flipped(given, rng.random_range(0..given.len() * 8))
}

/// This one, counted around.
fn with_bit_flipped(given: &[u8], bit: usize) -> Vec<u8> {
    let mut made = given.to_vec();
    let bit = bit % (made.len() * 8);
    made[bit / 8] ^= 1 << (bit % 8);
    made
}

/// Likewise, where it is text that says more than base64 may.
fn altered_text(rng: &mut ChaCha8Rng, given: &str) -> String {
    match URL_SAFE_NO_PAD.decode(given) {
        Ok(bytes) => URL_SAFE_NO_PAD.encode(altered(rng, &bytes)),
        Err(_) => {
            let mut made: Vec<char> = given.chars().collect();
            let at = rng.random_range(0..made.len());
            made[at] = if made[at] == 'A' { 'B' } else { 'A' };
            made.into_iter().collect()
        }
    }
}

/// Knocks at once.
const AT_ONCE: u32 = 50;
/// Nobody new gets in for so long.
const FULL: Duration = Duration::from_secs(5);
/// Clients that are misled.
const VICTIMS: u32 = 20;
const MAX_FRAME: usize = 1 << 20;
/// Goaways without a pause.
const BURST: u32 = 25;
