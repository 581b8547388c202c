//! One connection to the backend API.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use memchr::memmem;

use super::node::KEY;
use crate::bench::load::scan;

/// Asks one thing after the other.
#[derive(Debug)]
pub(super) struct Api {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Api {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).context("cannot reach the backend API")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self { stream, answer: vec![0; 1 << 10] })
    }

    /// Publishes what `body` says; fails where anything of it was not taken.
    pub(super) fn publish(&mut self, body: &str) -> Result<()> {
        let answer = self.ask("POST /v1/publish", body)?;
        let refused = memmem::find(answer, b"\"error\"").is_some();
        ensure!(!refused, "a publish was refused: {:.600}", String::from_utf8_lossy(answer));
        Ok(())
    }

    /// A channel's position, as text.
    pub(super) fn position(&mut self, channel: &str) -> Result<String> {
        let answer = self.ask(&format!("GET /v1/channels/{channel}/history?limit=0"), "")?;
        let text = String::from_utf8_lossy(answer);
        let field = |name| scan::field(&text, name).with_context(|| format!("no {name}: {text}"));
        Ok(format!("{} {}", field("epoch")?, field("offset")?))
    }

    /// All samples without labels.
    pub(super) fn metrics(&mut self) -> Result<BTreeMap<String, f64>> {
        let answer = self.ask("GET /metrics", "")?;
        let text = std::str::from_utf8(answer)?;
        let samples =
            text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
        samples.map(|(name, value)| Ok((name.to_owned(), value.parse()?))).collect()
    }

    fn ask(&mut self, what: &str, body: &str) -> Result<&[u8]> {
        let head = format!(
            "{what} HTTP/1.1\r\nhost: bench\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        let mut filled = 0;
        loop {
            if filled == self.answer.len() {
                self.answer.resize(filled * 2, 0);
            }
            let bytes = self.stream.read(&mut self.answer[filled..]).context("no answer")?;
            ensure!(bytes > 0, "the backend API closed the connection");
            filled += bytes;
            if let Some((status, body)) = scan::response(&self.answer[..filled])? {
                let body = &self.answer[body];
                ensure!(status == 200, "answered {status}: {:.600}", String::from_utf8_lossy(body));
                return Ok(body);
            }
        }
    }
}

const ANSWER: Duration = Duration::from_secs(60);
