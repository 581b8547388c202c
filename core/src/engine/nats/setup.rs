//! Connecting, and the streams: made where they are missing, checked where they are there, never changed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, ConnectOptions, HeaderMap};
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use tidegate_transport::clock;
use tokio::time::{sleep, timeout};

use super::config::{NatsConfig, NatsError, NatsLogin};
use super::names::Names;
use super::wire::{Expected, PublishError, Wire};
use super::{MAX_FRAME, frame, versions};

/// A connection to servers that have what we need.
pub(super) async fn connect(config: &NatsConfig) -> Result<Wire, NatsError> {
    check(config)?;
    let deadline = clock::now() + config.connect_timeout;
    let servers = config.servers.join(", ");
    let client = loop {
        let left = deadline.saturating_duration_since(clock::now());
        let attempt = options(config)?.connect(&config.servers[..]);
        let reason = match timeout(left, attempt).await {
            Ok(Ok(client)) => break client,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", config.connect_timeout),
        };
        if clock::now() + BETWEEN_TRIES >= deadline {
            return Err(NatsError::Connect { servers, reason });
        }
        sleep(BETWEEN_TRIES).await;
    };
    let wire = Wire { jetstream: context(&client), client };
    versions::check(&wire.client).await?;
    let info = wire.client.server_info();
    if info.max_payload < MIN_PAYLOAD {
        return Err(NatsError::SmallPayload { found: info.max_payload, needed: MIN_PAYLOAD });
    }
    // An election takes up to 9 s, and begins anew where servers come one after the other.
    let patience = Patience::new(deadline.max(clock::now() + MAKE_STREAMS));
    jetstream_is_there(&wire.jetstream, &patience).await?;
    Ok(wire)
}

/// The streams of `partitions`.
pub(super) async fn streams(
    wire: &Wire,
    names: &Names,
    config: &NatsConfig,
    partitions: u16,
) -> Result<(), NatsError> {
    let patience = Patience::new(clock::now() + config.connect_timeout.max(MAKE_STREAMS));
    stream(wire, leases(names, config), &patience).await?;
    same_shape(wire, names, partitions, &patience).await?;
    let rest = (0..partitions).map(|partition| log(names, config, partition));
    let rest = rest.chain([snapshots(names, config)]).map(|wanted| stream(wire, wanted, &patience));
    futures_util::stream::iter(rest).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    Ok(())
}

/// The stream of a partition that somebody deleted, once more and empty.
pub(super) async fn remake_log(
    wire: &Wire,
    names: &Names,
    config: &NatsConfig,
    partition: u16,
) -> Result<(), NatsError> {
    stream(wire, log(names, config, partition), &Patience::new(clock::now())).await
}

fn check(config: &NatsConfig) -> Result<(), NatsError> {
    let wrong = |what: String| Err(NatsError::Config(what));
    if config.servers.is_empty() {
        return wrong("name at least one server, such as nats://127.0.0.1:4222".to_owned());
    }
    for (key, name) in [("prefix", &config.prefix), ("region", &config.region)] {
        let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !fits {
            return wrong(format!(
                "the {key} {name:?} must be letters, digits, - and _: it is part of stream names"
            ));
        }
    }
    if ![1, 3, 5].contains(&config.replicas) {
        return wrong(format!("{} replicas: take 1, 3 or 5", config.replicas));
    }
    if config.lease < Duration::from_secs(2) || config.lease.subsec_nanos() != 0 {
        return wrong(format!("a lease of {:?}: NATS counts whole seconds; take 2s or more", config.lease));
    }
    Ok(())
}

fn options(config: &NatsConfig) -> Result<ConnectOptions, NatsError> {
    let mut options = match &config.login {
        NatsLogin::Anonymous => ConnectOptions::new(),
        NatsLogin::Credentials(path) => {
            ConnectOptions::with_credentials(&secret(path)?).map_err(|error| file_error(path, error))?
        }
        NatsLogin::Password { user, file } => {
            ConnectOptions::with_user_and_password(user.clone(), secret(file)?)
        }
        NatsLogin::Token(path) => ConnectOptions::with_token(secret(path)?),
    };
    if let Some(ca) = &config.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = &config.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    Ok(options
        .name(format!("tidegate {}", config.region))
        .connection_timeout(ATTEMPT)
        .request_timeout(Some(REQUEST))
        // A server that went silent is left after two of them: before leases end.
        .ping_interval(PING)
        .reconnect_delay_callback(|attempts| {
            LONGEST_DELAY.min(SHORTEST_DELAY * u32::try_from(attempts.min(32)).unwrap_or(32))
        }))
}

fn secret(path: &Path) -> Result<String, NatsError> {
    Ok(std::fs::read_to_string(path).map_err(|error| file_error(path, error))?.trim().to_owned())
}

fn file_error(path: &Path, error: std::io::Error) -> NatsError {
    NatsError::File { path: path.to_owned(), reason: error.to_string() }
}

fn context(client: &Client) -> Context {
    let mut context = async_nats::jetstream::new(client.clone());
    context.set_timeout(REQUEST);
    context
}

/// A cluster that has just started elects its leader first.
async fn jetstream_is_there(jetstream: &Context, patience: &Patience) -> Result<(), NatsError> {
    loop {
        let Err(error) = jetstream.query_account().await else { return Ok(()) };
        let reason = error.to_string();
        if patience.is_over(&reason) {
            return Err(NatsError::NoJetStream(reason));
        }
        sleep(BETWEEN_TRIES).await;
    }
}

/// For servers that have just started: they elect leaders, and find each other only then.
#[derive(Debug)]
struct Patience {
    deadline: Instant,
    /// Once is enough, however many streams wait.
    told: AtomicBool,
}

impl Patience {
    fn new(deadline: Instant) -> Self {
        Self { deadline, told: AtomicBool::new(false) }
    }

    /// Whether there is no other try.
    fn is_over(&self, reason: &str) -> bool {
        let left = self.deadline.saturating_duration_since(clock::now());
        if !left.is_zero() && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason, ?left, "the NATS servers are not ready yet: trying again");
        }
        left.is_zero()
    }
}

/// The frames of a partition.
fn log(names: &Names, config: &NatsConfig, partition: u16) -> Config {
    Config {
        name: names.log_stream(partition),
        subjects: vec![names.log_subject(partition)],
        description: Some(format!("Tidegate: frames of partition {partition}")),
        discard: DiscardPolicy::Old,
        max_age: config.retain_age,
        max_bytes: i64::try_from(config.retain_bytes).unwrap_or(i64::MAX),
        allow_direct: true,
        // Nothing of ours has a message id: the shortest window that there is.
        duplicate_window: DUPLICATE_WINDOW.min(config.retain_age),
        ..durable(config)
    }
}

/// A key-value bucket for the tools of NATS: `nats kv ls`, `nats kv watch`.
fn leases(names: &Names, config: &NatsConfig) -> Config {
    Config {
        name: names.lease_stream(),
        subjects: vec![names.lease_subject(">")],
        description: Some("Tidegate: live nodes, owners of partitions".to_owned()),
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        allow_message_ttl: true,
        subject_delete_marker_ttl: Some(MARKER),
        ..durable(config)
    }
}

/// Pieces of snapshots; of each only what was written last.
fn snapshots(names: &Names, config: &NatsConfig) -> Config {
    Config {
        name: names.snapshot_stream(),
        subjects: vec![names.snapshot_subjects()],
        description: Some("Tidegate: snapshots of partitions".to_owned()),
        max_messages_per_subject: 1,
        discard: DiscardPolicy::Old,
        allow_direct: true,
        ..durable(config)
    }
}

fn durable(config: &NatsConfig) -> Config {
    Config {
        storage: StorageType::File,
        num_replicas: config.replicas,
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        ..Config::default()
    }
}

/// Makes the stream where it is missing.
async fn stream(wire: &Wire, wanted: Config, patience: &Patience) -> Result<(), NatsError> {
    loop {
        let reason = match wire.jetstream.get_stream(&wanted.name).await {
            Ok(stream) => return fits(&stream.cached_info().config, &wanted),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.code() == 404 => {
                    let Err(error) = wire.jetstream.create_stream(&wanted).await else { return Ok(()) };
                    match error.kind() {
                        // Those that are there are not enough, or have not heard of the others yet.
                        CreateStreamErrorKind::JetStream(error)
                            if error.error_code() == ErrorCode::CLUSTER_NO_PEERS =>
                        {
                            error.to_string()
                        }
                        // Another node was quicker, or an answer was late: look again.
                        CreateStreamErrorKind::JetStream(error) if error.code() == 400 => {
                            if wire.jetstream.get_stream(&wanted.name).await.is_ok() {
                                continue;
                            }
                            let reason = error.to_string();
                            return Err(NatsError::Setup { stream: wanted.name, reason });
                        }
                        _ => error.to_string(),
                    }
                }
                _ => error.to_string(),
            },
        };
        if patience.is_over(&reason) {
            return Err(NatsError::Setup { stream: wanted.name, reason });
        }
        sleep(BETWEEN_TRIES).await;
    }
}

/// What is there serves us; what it keeps, and where, is its operator's.
fn fits(found: &Config, wanted: &Config) -> Result<(), NatsError> {
    let mismatch = |reason: String| Err(NatsError::Mismatch { stream: wanted.name.clone(), reason });
    let advice = "delete it if it is not needed, or set another `prefix`";
    if found.subjects != wanted.subjects {
        return mismatch(format!("it holds {:?} and not {:?}: {advice}", found.subjects, wanted.subjects));
    }
    if wanted.allow_direct && !found.allow_direct {
        return mismatch("direct reads are off: `nats stream edit --allow-direct`".to_owned());
    }
    if wanted.allow_message_ttl && !found.allow_message_ttl {
        return mismatch(format!("it has no time to live per message: {advice}"));
    }
    if found.max_messages_per_subject != wanted.max_messages_per_subject || found.discard != wanted.discard {
        return mismatch(format!("its limits per subject or its discard policy are not ours: {advice}"));
    }
    let (is, ours) = (found.num_replicas, wanted.num_replicas);
    if is != ours {
        tracing::warn!(
            stream = wanted.name,
            is,
            ours,
            "the stream has another number of replicas: left as it is"
        );
    }
    if found.max_age != wanted.max_age || found.max_bytes != wanted.max_bytes {
        let (age, bytes) = (found.max_age, found.max_bytes);
        tracing::warn!(
            stream = wanted.name,
            ?age,
            bytes,
            "the stream keeps what it was made to keep: left as it is"
        );
    }
    Ok(())
}

/// The number of partitions is for ever: channels would be looked for in other logs.
async fn same_shape(
    wire: &Wire,
    names: &Names,
    partitions: u16,
    patience: &Patience,
) -> Result<(), NatsError> {
    let (stream, subject) = (names.lease_stream(), names.lease_subject(SHAPE));
    let wanted = Shape { format: FORMAT, partitions };
    let value = serde_json::to_vec(&wanted).expect("numbers have JSON");
    loop {
        let reason = match wire.last_of(&stream, &subject).await {
            Ok(Some(stored)) => {
                let found = serde_json::from_slice::<Shape>(&stored.payload).ok();
                let Some(found) = found.filter(|found| found.format == FORMAT) else {
                    let reason =
                        "another version of Tidegate made it: use that one, or another `prefix`".to_owned();
                    return Err(NatsError::Mismatch { stream: subject, reason });
                };
                if found.partitions == partitions {
                    return Ok(());
                }
                let reason = format!(
                    "it was made for {} partitions and the configuration says {partitions}: the number cannot \
                     change; set it back, or take another `prefix` and begin with nothing",
                    found.partitions
                );
                return Err(NatsError::Mismatch { stream: subject, reason });
            }
            Ok(None) => {
                let expected = Expected::LastOfSubject(0);
                let value = value.clone().into();
                match wire.publish(&subject, expected, HeaderMap::new(), value, REQUEST).await {
                    // Read back: there is one truth.
                    Ok(_) | Err(PublishError::Unexpected) => continue,
                    Err(
                        PublishError::Refused(reason)
                        | PublishError::Unheard(reason)
                        | PublishError::Unknown(reason),
                    ) => reason,
                }
            }
            Err(error) => error.0,
        };
        if patience.is_over(&reason) {
            return Err(NatsError::Setup { stream, reason });
        }
        sleep(BETWEEN_TRIES).await;
    }
}

#[derive(Serialize, Deserialize)]
struct Shape {
    format: u32,
    partitions: u16,
}

const SHAPE: &str = "shape";
const FORMAT: u32 = 1;
/// A frame, and as base64 in an answer.
const MIN_PAYLOAD: usize = (MAX_FRAME + frame::OVERHEAD) / 3 * 4 + 4096;
const ATTEMPT: Duration = Duration::from_secs(2);
const REQUEST: Duration = Duration::from_secs(2);
const PING: Duration = Duration::from_secs(1);
const SHORTEST_DELAY: Duration = Duration::from_millis(25);
const LONGEST_DELAY: Duration = Duration::from_millis(500);
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
/// Replicated streams take a tenth of a second each, and elections come between.
const MAKE_STREAMS: Duration = Duration::from_secs(30);
const AT_ONCE: usize = 4;
const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);
/// How long it is told that a node is gone: whoever begins to watch later does not find it at all.
const MARKER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_in_the_configuration_is_named() {
        let config = NatsConfig::default;
        assert_eq!(check(&config()), Ok(()));
        let wrong = [
            (NatsConfig { servers: vec![], ..config() }, "server"),
            (NatsConfig { prefix: "a.b".to_owned(), ..config() }, "prefix"),
            (NatsConfig { region: String::new(), ..config() }, "region"),
            (NatsConfig { replicas: 2, ..config() }, "replicas"),
            (NatsConfig { lease: Duration::from_millis(2500), ..config() }, "lease"),
            (NatsConfig { lease: Duration::from_secs(1), ..config() }, "lease"),
        ];
        for (config, word) in wrong {
            let error = check(&config).expect_err("nonsense").to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
