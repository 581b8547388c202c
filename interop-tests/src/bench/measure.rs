//! One measurement: a fresh server, its clients, a while of publishing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use tidegate_transport::clock;

use super::ledger::{Faults, Ledger, Stopwatch};
use super::load::{Crowd, Load, QuicClients, QuicTarget, TcpClients, TcpKind, UdpClients};
use super::proc;
use super::publisher::{Outlet, Publisher};
use super::server::{Gateway, Limit};
use super::shape::{Pace, Shape, Transport};

/// What all measurements of a run share.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) tidegate: PathBuf,
    /// For configuration and certificates.
    pub(super) folder: PathBuf,
    pub(super) per_socket: usize,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Subject {
    /// The raw loop.
    Limit,
    /// The gateway.
    Tidegate {
        /// `--workers`
        workers: u16,
    },
}

/// A server with its clients.
pub(super) struct Stand {
    server: Server,
    pub(super) load: Box<dyn Load>,
    pub(super) outlet: Outlet,
    pub(super) watch: Stopwatch,
}

enum Server {
    Limit(Limit),
    Gateway(Gateway),
}

/// What connecting cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Connecting {
    pub(super) per_second: f64,
    /// Of the server, for each connection with its subscription.
    pub(super) cpu_us: f64,
}

/// What a while of publishing gave.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    pub(super) connecting: Connecting,
    pub(super) seconds: f64,
    pub(super) deliveries: u64,
    pub(super) per_second: f64,
    /// CPU microseconds of the server for each delivery: the same as seconds for a million.
    pub(super) cpu_us: f64,
    /// Processors that the server kept busy.
    pub(super) cores: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
    /// Deliveries that one read of a client brought: above 1 where the server coalesces.
    pub(super) per_read: f64,
    pub(super) rss_bytes: u64,
    pub(super) faults: Faults,
}

impl Setup {
    /// Starts a server and makes its clients; nobody is connected yet.
    pub(super) fn stand(&self, subject: Subject, transport: Transport, crowd: Crowd) -> Result<Stand> {
        let watch = crowd.watch;
        if subject == Subject::Limit {
            let limit = Limit::start(transport.is_udp())?;
            let load: Box<dyn Load> = if transport.is_udp() {
                Box::new(UdpClients::new(limit.clients, crowd, self.per_socket)?)
            } else {
                Box::new(TcpClients::new(limit.clients, TcpKind::Raw, None, crowd)?)
            };
            let outlet = Outlet::Limit(limit.control, transport);
            return Ok(Stand { server: Server::Limit(limit), load, outlet, watch });
        }
        let Subject::Tidegate { workers } = subject else { bail!("no such subject") };
        let gateway = Gateway::start(&self.tidegate, &self.folder, workers)?;
        let load: Box<dyn Load> = match transport {
            Transport::Ws => Box::new(TcpClients::new(gateway.plain, TcpKind::WebSocket, None, crowd)?),
            Transport::Wss => {
                let tls = Arc::new(trust(&gateway.ca_file)?);
                Box::new(TcpClients::new(gateway.tls, TcpKind::WebSocket, Some(tls), crowd)?)
            }
            Transport::LongPoll => Box::new(TcpClients::new(gateway.plain, TcpKind::LongPoll, None, crowd)?),
            Transport::Quic | Transport::WebTransport => {
                let webtransport = transport == Transport::WebTransport;
                let target =
                    QuicTarget { address: gateway.quic, webtransport, tls: trust(&gateway.ca_file)? };
                Box::new(QuicClients::new(target, crowd, self.per_socket)?)
            }
        };
        let outlet = Outlet::Api(gateway.api);
        Ok(Stand { server: Server::Gateway(gateway), load, outlet, watch })
    }

    /// Connects everyone, publishes for a while, tells what came of it. `progress` goes from 0 to 1.
    pub(super) fn fanout(
        &self,
        subject: Subject,
        transport: Transport,
        shape: &Shape,
        length: Duration,
        progress: &mut dyn FnMut(f64),
    ) -> Result<Sample> {
        let (connections, channels) = (shape.subscribers, shape.channels);
        let crowd = Crowd { connections, channels, watch: Stopwatch::start() };
        let mut stand = self.stand(subject, transport, crowd)?;
        let connecting = stand.connect(connections, &mut |done| progress(done * CONNECTING))?;
        let mut ledger = Ledger::new(connections, channels)?;
        let mut run = Run {
            publisher: Publisher::start(stand.outlet, shape.payload, stand.watch)?,
            pace: shape.pace,
            due: Duration::ZERO,
        };
        run.during(WARM_UP, &mut stand, &mut ledger, &mut |_| ())?;

        ledger.measure(true);
        let (cpu_before, begin) = (stand.cpu()?, clock::now());
        run.due = Duration::ZERO;
        run.during(length, &mut stand, &mut ledger, &mut |done| {
            progress(CONNECTING + (1.0 - CONNECTING) * done)
        })?;
        let (cpu, seconds) = (stand.cpu()? - cpu_before, begin.elapsed().as_secs_f64());
        ledger.measure(false);
        let rss_bytes = proc::resident_bytes(stand.pid())?;

        settle(&mut stand, &mut ledger)?;
        let deliveries = ledger.deliveries();
        let count = proc::to_float(deliveries.max(1));
        Ok(Sample {
            connecting,
            seconds,
            deliveries,
            per_second: count / seconds,
            cpu_us: cpu * 1e6 / count,
            cores: cpu / seconds,
            p50_ms: ledger.latency_ms(50.0),
            p99_ms: ledger.latency_ms(99.0),
            max_ms: ledger.latency_ms(100.0),
            per_read: count / proc::to_float(ledger.reads().max(1)),
            rss_bytes,
            faults: ledger.faults(),
        })
    }
}

impl Stand {
    /// Connects and subscribes everyone. `progress` goes from 0 to 1.
    pub(super) fn connect(
        &mut self,
        connections: usize,
        progress: &mut dyn FnMut(f64),
    ) -> Result<Connecting> {
        let all = proc::to_float(connections as u64);
        let (cpu_before, begin) = (self.cpu()?, clock::now());
        self.load.connect(&mut |live| progress(proc::to_float(live as u64) / all))?;
        let (cpu, seconds) = (self.cpu()? - cpu_before, begin.elapsed().as_secs_f64());
        Ok(Connecting { per_second: all / seconds, cpu_us: cpu * 1e6 / all })
    }

    pub(super) fn pid(&self) -> u32 {
        match &self.server {
            Server::Limit(limit) => limit.pid(),
            Server::Gateway(gateway) => gateway.pid(),
        }
    }

    fn cpu(&self) -> Result<f64> {
        proc::cpu_seconds(self.pid())
    }
}

/// Reads until nothing is outstanding, or until nothing more comes.
pub(super) fn settle(stand: &mut Stand, ledger: &mut Ledger) -> Result<()> {
    let mut last = (ledger.faults().lost, clock::now());
    while ledger.outstanding() > 0 && last.1.elapsed() < SILENCE {
        stand.load.pump(ledger, PAUSE)?;
        let lost = ledger.faults().lost;
        if lost < last.0 {
            last = (lost, clock::now());
        }
    }
    Ok(())
}

struct Run {
    publisher: Publisher,
    pace: Pace,
    /// Of the next publication, where a rate is kept.
    due: Duration,
}

impl Run {
    fn during(
        &mut self,
        length: Duration,
        stand: &mut Stand,
        ledger: &mut Ledger,
        progress: &mut dyn FnMut(f64),
    ) -> Result<()> {
        let begin = clock::now();
        loop {
            let passed = begin.elapsed();
            if passed >= length {
                return Ok(());
            }
            progress(passed.as_secs_f64() / length.as_secs_f64());
            let next = self.publish(passed, ledger)?;
            self.publisher.check()?;
            stand.load.pump(ledger, next.min(length - passed).min(PAUSE))?;
        }
    }

    /// Publishes what is due; tells for how long nothing is.
    fn publish(&mut self, passed: Duration, ledger: &mut Ledger) -> Result<Duration> {
        match self.pace {
            Pace::Window(window) => {
                while ledger.outstanding() < window {
                    self.publisher.publish(ledger.publish())?;
                }
                Ok(Duration::MAX)
            }
            Pace::Burst(burst) => {
                if ledger.outstanding() == 0 {
                    self.publisher.publish_all((0..burst).map(|_| ledger.publish()).collect())?;
                }
                Ok(Duration::MAX)
            }
            Pace::Rate(rate) => {
                while self.due <= passed {
                    self.publisher.publish(ledger.publish())?;
                    self.due += Duration::from_secs(1) / u32::try_from(rate)?;
                }
                Ok(self.due - passed)
            }
        }
    }
}

/// Client settings that trust the gateway's development CA. Every connection is a full handshake.
fn trust(ca_file: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file)
        .with_context(|| format!("cannot read {}", ca_file.display()))?
    {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Connecting's part of the progress.
const CONNECTING: f64 = 0.3;
/// Publishing before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// What has not come after such a silence is lost.
const SILENCE: Duration = Duration::from_secs(5);
