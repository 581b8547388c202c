//! Long poll: a request for everything.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::{Greeting, Pace, Received, paced};
use crate::gateway::Gateway;
use crate::http::{Answer, answer, post, send};

#[derive(Debug)]
pub(super) struct Polls {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    greeting: Greeting,
    session: Option<String>,
    batch: u64,
    waiting: VecDeque<Received>,
}

impl Polls {
    pub(super) fn new(gateway: &Gateway, greeting: &Greeting) -> Self {
        Self {
            address: gateway.addresses.tls,
            tls: gateway.tls(&[b"http/1.1"]),
            greeting: greeting.clone(),
            session: None,
            batch: 0,
            waiting: VecDeque::new(),
        }
    }

    /// `frame` is taken as the text of one, whatever it is; more than one is an array's worth.
    pub(super) async fn send(&mut self, frame: Bytes) -> Result<()> {
        // The first answer names the session.
        let wait_ms = if self.session.is_none() { 10_000 } else { 0 };
        self.poll(&frame, wait_ms).await
    }

    pub(super) async fn recv(&mut self) -> Result<Received> {
        loop {
            if let Some(received) = self.waiting.pop_front() {
                return Ok(received);
            }
            self.poll(b"", 5_000).await?;
        }
    }

    async fn poll(&mut self, frames: &[u8], wait_ms: u32) -> Result<()> {
        let mut body = format!("{{\"ack\":{},\"wait_ms\":{wait_ms},", self.batch).into_bytes();
        if let Some(session) = &self.session {
            body.extend(format!("\"session\":\"{session}\",").bytes());
        }
        body.extend(b"\"frames\":[");
        body.extend(frames);
        body.extend(b"]}");
        let query = self.greeting.query.as_ref().map(|token| format!("?token={token}")).unwrap_or_default();
        let mut request = post(&format!("/v1/poll{query}"), body);
        let headers = request.headers_mut();
        if let Some(token) = &self.greeting.bearer {
            headers.insert(http::header::AUTHORIZATION, format!("Bearer {token}").parse()?);
        }
        if let Some(origin) = &self.greeting.origin {
            headers.insert(http::header::ORIGIN, origin.parse()?);
        }
        if let Some((name, value)) = &self.greeting.header {
            headers.insert(name.parse::<http::HeaderName>()?, value.parse()?);
        }
        let answer = match &self.greeting.pace {
            Some(pace) => send_paced(self.address, Arc::clone(&self.tls), pace.clone(), request).await?,
            None => send(self.address, Some(Arc::clone(&self.tls)), request).await?,
        };
        let status = answer.status;
        let answer: Value =
            serde_json::from_slice(&answer.body).with_context(|| format!("{status}: {}", answer.text()))?;
        if let Some(session) = answer["session"].as_str() {
            self.session = Some(session.to_owned());
        }
        if let Some(batch) = answer["batch"].as_u64() {
            self.batch = batch;
        }
        let frames = answer["frames"].as_array().with_context(|| format!("{status}: no frames: {answer}"))?;
        for frame in frames {
            self.waiting.push_back(Received::Frame(frame.clone()));
            if let Some(code) = frame["close"]["code"].as_u64() {
                let reason = frame["close"]["reason"].as_str().unwrap_or_default().to_owned();
                self.waiting.push_back(Received::Closed { code: u32::try_from(code)?, reason });
            }
        }
        Ok(())
    }
}

/// Takes as long as the pace makes it take.
async fn send_paced(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    pace: Pace,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer> {
    let stream = paced::dial(address, tls, pace).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Moves the bytes until the sender is dropped.
    TaskTracker::new().spawn(connection);
    let host = http::HeaderValue::from_str(&address.to_string())?;
    request.headers_mut().entry(http::header::HOST).or_insert(host);
    answer(sender.send_request(request).await?).await
}
