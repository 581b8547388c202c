//! The engines without the gateway: what writing and acknowledging alone take.
//!
//! `memory`: the same bytes to another thread and back over TCP on loopback. `local`: the same bytes into the library of
//! that engine, with its durability; whatever waits is one batch. `nats`: JetStream's own publish at the same servers,
//! over as many streams of the same kind as the gateway has logs.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc as blocking;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use futures_util::future::try_join_all;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::books::{Done, What};
use crate::bench::ledger::{Stopwatch, payload, read_payload};
use crate::wait::until;

/// One of them.
#[derive(Debug)]
pub(super) struct Raw {
    way: Way,
    done: mpsc::Receiver<Result<Done>>,
    _stop: DropGuard,
}

#[derive(Debug)]
enum Way {
    Loopback(mpsc::Sender<Bytes>),
    Store { orders: blocking::SyncSender<Order>, _folder: TempDir },
    Streams(Box<Streams>),
}

#[derive(Debug)]
struct Streams {
    context: async_nats::jetstream::Context,
    subjects: Vec<String>,
    told: Told,
    tasks: TaskTracker,
}

type Order = (u64, Bytes);

/// Where acknowledgements are entered.
#[derive(Debug, Clone)]
struct Told {
    sender: mpsc::Sender<Result<Done>>,
    watch: Stopwatch,
}

impl Told {
    fn done(&self, number: u64) -> Done {
        Done { number, what: What::Acknowledged, at: self.watch.nanos() }
    }
}

impl Raw {
    /// Another thread sends back what it is sent, `size` bytes at a time.
    pub(super) async fn loopback(size: usize, watch: Stopwatch) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        thread::Builder::new().name("echo".to_owned()).spawn(move || echo(&listener))?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (mut reading, mut writing) = stream.into_split();
        let (sender, mut orders) = mpsc::channel::<Bytes>(QUEUE);
        let (told, done, stop) = telling(watch);
        let write = async move {
            while let Some(bytes) = orders.recv().await {
                if writing.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        let read = async move {
            let mut bytes = vec![0; size];
            loop {
                let outcome = match reading.read_exact(&mut bytes).await {
                    Ok(_) => match bytes.get(1..).and_then(read_payload) {
                        Some((number, _)) => Ok(told.done(number)),
                        None => Err(anyhow::anyhow!("the echo sent something else")),
                    },
                    Err(error) => Err(error.into()),
                };
                let over = outcome.is_err();
                if told.sender.send(outcome).await.is_err() || over {
                    return;
                }
            }
        };
        let tasks = TaskTracker::new();
        tasks.spawn(stop.clone().run_until_cancelled_owned(write));
        tasks.spawn(stop.clone().run_until_cancelled_owned(read));
        Ok(Self { way: Way::Loopback(sender), done, _stop: stop.drop_guard() })
    }

    /// The library of the `local` engine, in a folder of its own.
    pub(super) fn store(watch: Stopwatch) -> Result<Self> {
        let folder = TempDir::with_prefix("tidegate-bench-")?;
        let database = Database::builder(folder.path().join("store")).manual_journal_persist(true).open()?;
        let (orders, receiver) = blocking::sync_channel(QUEUE);
        let (told, done, stop) = telling(watch);
        thread::Builder::new().name("store".to_owned()).spawn(move || {
            if let Err(error) = store_all(&database, &receiver, &told) {
                // Nobody takes it where the measurement is over.
                let _ = told.sender.blocking_send(Err(error));
            }
        })?;
        Ok(Self { way: Way::Store { orders, _folder: folder }, done, _stop: stop.drop_guard() })
    }

    /// JetStream itself.
    pub(super) async fn streams(
        urls: &[String],
        streams: usize,
        replicas: usize,
        watch: Stopwatch,
    ) -> Result<Self> {
        let client = async_nats::connect(urls).await.context("connecting to NATS")?;
        let context = async_nats::jetstream::new(client);
        let subjects: Vec<String> = (0..streams).map(|index| format!("raw.{index}")).collect();
        let made = subjects.iter().enumerate().map(|(index, subject)| {
            let config = Config {
                name: format!("RAW_{index}"),
                subjects: vec![subject.clone()],
                storage: StorageType::File,
                num_replicas: replicas,
                discard: DiscardPolicy::Old,
                max_bytes: RETAINED,
                allow_direct: true,
                ..Config::default()
            };
            let context = &context;
            async move { until("a stream", async || Ok(context.create_stream(&config).await?)).await }
        });
        try_join_all(made).await?;
        let (told, done, stop) = telling(watch);
        let streams = Streams { context, subjects, told, tasks: TaskTracker::new() };
        Ok(Self { way: Way::Streams(Box::new(streams)), done, _stop: stop.drop_guard() })
    }

    /// Hands a publication over.
    pub(super) fn publish(&self, (number, channel): (u64, usize), sent: u64, size: usize) -> Result<()> {
        let bytes = Bytes::from(payload(number, sent, size));
        match &self.way {
            Way::Loopback(orders) => orders.try_send(bytes).context("the echo cannot keep up"),
            Way::Store { orders, .. } => orders.try_send((number, bytes)).context("the store cannot keep up"),
            Way::Streams(streams) => {
                let Streams { context, subjects, told, tasks } = &**streams;
                let subject = subjects[channel % subjects.len()].clone();
                let (context, told) = (context.clone(), told.clone());
                tasks.spawn(async move {
                    let acknowledged = async { context.publish(subject, bytes).await?.await };
                    let outcome = acknowledged.await.map(|_| told.done(number)).context("publishing to NATS");
                    // Nobody takes it where the measurement is over.
                    let _ = told.sender.send(outcome).await;
                });
                Ok(())
            }
        }
    }

    /// What comes next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Done> {
        self.done.recv().await.context("the raw engine has ended")?
    }
}

fn telling(watch: Stopwatch) -> (Told, mpsc::Receiver<Result<Done>>, CancellationToken) {
    let (sender, done) = mpsc::channel(QUEUE);
    (Told { sender, watch }, done, CancellationToken::new())
}

/// Until the other end is gone.
fn echo(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut bytes = vec![0; 1 << 16];
    loop {
        let length = stream.read(&mut bytes)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&bytes[..length])?;
    }
}

/// As the engine writes: whatever waits is a batch, which is synced to the disk. Until nobody orders any more.
fn store_all(database: &Database, orders: &blocking::Receiver<Order>, told: &Told) -> Result<()> {
    let options = || KeyspaceCreateOptions::default().manual_journal_persist(true);
    let keyspace = database.keyspace("raw", options)?;
    while let Ok(first) = orders.recv() {
        let mut batch = database.batch().durability(Some(PersistMode::SyncData));
        let waiting: Vec<Order> = std::iter::once(first).chain(orders.try_iter().take(BATCH)).collect();
        for (number, bytes) in &waiting {
            batch.insert(&keyspace, number.to_be_bytes(), &bytes[..]);
        }
        batch.commit()?;
        for (number, _) in waiting {
            ensure!(told.sender.blocking_send(Ok(told.done(number))).is_ok(), "the measurement is over");
        }
    }
    Ok(())
}

/// More than any window, and several seconds of any rate.
const QUEUE: usize = 1 << 15;
/// As many as the engine's writer takes at once, beside the first.
const BATCH: usize = 511;
/// As the harness has it for the gateway's logs.
const RETAINED: i64 = 64 << 20;
