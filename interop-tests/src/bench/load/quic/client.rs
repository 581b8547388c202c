//! One client: control stream, subscription, then whatever streams the server opens.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use quinn::Endpoint;
use tidegate_protocol::frame::codec::{Decoder, encode_delimited};
use tidegate_protocol::frame::{
    ClientBody, ClientFrame, Connect, Empty, Publication, ServerBody, ServerFrame, StreamHeader, Subscribe,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use url::Url;

use super::Inbox;
use crate::bench::ledger::{Delivery, Stopwatch, read_payload};
use crate::bench::publisher::CHANNEL;

/// What a client is and where it reports.
pub(super) struct Client {
    pub(super) index: usize,
    pub(super) channel: usize,
    pub(super) target: SocketAddr,
    pub(super) webtransport: bool,
    pub(super) inbox: Arc<Inbox>,
    pub(super) watch: Stopwatch,
}

enum Peer {
    Native(quinn::Connection),
    WebTransport(Box<web_transport_quinn::Session>),
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

impl Client {
    /// Until it fails: success does not end.
    pub(super) async fn run(self, endpoint: Endpoint) {
        let outcome = self.serve(&endpoint).await.with_context(|| format!("connection {}", self.index));
        self.inbox.tell(|news| news.failure = outcome.err());
    }

    async fn serve(&self, endpoint: &Endpoint) -> Result<()> {
        let connection = endpoint.connect(self.target, "localhost")?.await?;
        let peer = if self.webtransport {
            let url = Url::parse(&format!("https://localhost:{}/v1/connect", self.target.port()))?;
            Peer::WebTransport(Box::new(web_transport_quinn::Session::connect(connection, url).await?))
        } else {
            Peer::Native(connection)
        };
        let (mut writer, reader) = peer.open_control().await?;
        let subscribe = Subscribe { channel: format!("{CHANNEL}{}", self.channel), ..Subscribe::default() };
        let mut hello = frame(1, ClientBody::Connect(Connect::default())).to_vec();
        hello.extend_from_slice(&frame(2, ClientBody::Subscribe(subscribe)));
        writer.write_all(&hello).await?;
        tokio::try_join!(self.control(reader, writer), self.streams(&peer)).map(drop)
    }

    async fn control(&self, mut reader: Reader, mut writer: Writer) -> Result<()> {
        let mut decoder = Decoder::new(FRAME_LIMIT);
        let mut live = false;
        loop {
            self.read(&mut reader, &mut decoder).await?.context("the server ended the control stream")?;
            while let Some(frame) = decoder.next::<ServerFrame>()? {
                match frame.body {
                    Some(ServerBody::Subscribed(_)) => {
                        ensure!(!live, "continuity was lost");
                        live = true;
                        self.inbox.tell(|news| news.live += 1);
                    }
                    Some(ServerBody::Ping(_)) => {
                        writer.write_all(&self::frame(0, ClientBody::Pong(Empty {}))).await?
                    }
                    Some(ServerBody::Publication(publication)) => self.deliver(&[publication])?,
                    Some(ServerBody::Close(close)) => bail!("the server closed: {close:?}"),
                    Some(ServerBody::Error(error)) => bail!("the server answered: {error:?}"),
                    _ => {}
                }
            }
        }
    }

    async fn streams(&self, peer: &Peer) -> Result<()> {
        let mut streams = FuturesUnordered::new();
        loop {
            tokio::select! {
                stream = peer.accept_uni() => streams.push(self.subscription(stream?)),
                Some(ended) = streams.next(), if !streams.is_empty() => ended?,
            }
        }
    }

    async fn subscription(&self, mut reader: Reader) -> Result<()> {
        let mut decoder = Decoder::new(FRAME_LIMIT);
        let mut header: Option<StreamHeader> = None;
        let mut publications = Vec::new();
        while self.read(&mut reader, &mut decoder).await?.is_some() {
            if header.is_none() {
                header = decoder.next_message()?;
            }
            if header.is_none() {
                continue;
            }
            while let Some(frame) = decoder.next::<ServerFrame>()? {
                if let Some(ServerBody::Publication(publication)) = frame.body {
                    publications.push(publication);
                }
            }
            self.deliver(&publications)?;
            publications.clear();
        }
        Ok(())
    }

    /// One read; `None` at the stream's end.
    async fn read(&self, reader: &mut Reader, decoder: &mut Decoder) -> Result<Option<()>> {
        let mut buffer = [0; 2048];
        let length = reader.read(&mut buffer).await?;
        decoder.push(&buffer[..length]);
        Ok((length > 0).then_some(()))
    }

    fn deliver(&self, publications: &[Publication]) -> Result<()> {
        let now = self.watch.nanos();
        let mut deliveries = Vec::with_capacity(publications.len());
        for publication in publications {
            let payload = publication.data.as_ref().and_then(|data| read_payload(data.get(1..)?));
            let (number, sent) = payload.context("a payload that is not ours")?;
            deliveries.push((self.index, Delivery { offset: publication.offset, number, sent }, now));
        }
        self.inbox.tell(|news| {
            news.reads += 1;
            news.deliveries.append(&mut deliveries);
        });
        Ok(())
    }
}

impl Peer {
    async fn open_control(&self) -> Result<(Writer, Reader)> {
        Ok(match self {
            Self::Native(connection) => {
                let (writer, reader) = connection.open_bi().await?;
                (Box::new(writer), Box::new(reader))
            }
            Self::WebTransport(session) => {
                let (writer, reader) = session.open_bi().await?;
                (Box::new(writer), Box::new(reader))
            }
        })
    }

    async fn accept_uni(&self) -> Result<Reader> {
        Ok(match self {
            Self::Native(connection) => Box::new(connection.accept_uni().await?),
            Self::WebTransport(session) => Box::new(session.accept_uni().await?),
        })
    }
}

fn frame(id: u64, body: ClientBody) -> bytes::Bytes {
    encode_delimited(&ClientFrame { id, body: Some(body) })
}

const FRAME_LIMIT: usize = 256 << 10;
