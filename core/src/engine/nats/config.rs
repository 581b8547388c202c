//! Where the NATS servers are, how we log in, and what is kept there.

use std::path::PathBuf;
use std::time::Duration;

/// How to reach a NATS cluster, and what of it is ours.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// `nats://host:port` or `tls://host:port`; others of the same cluster are learnt from the first that answers.
    pub servers: Vec<String>,
    /// Streams and subjects begin with it: several Tidegates may share a NATS cluster. Letters, digits, `-` and `_`.
    pub prefix: String,
    /// The region whose channels are kept here; part of the names as well. Same letters as the prefix.
    pub region: String,
    /// On how many servers each frame is stored before it is acknowledged: 1, 3 or 5. Only for streams that are not
    /// there yet.
    pub replicas: usize,
    /// How we log in.
    pub login: NatsLogin,
    /// PEM file with the authorities that sign the servers' certificates, instead of the system's. With it or with
    /// `client_certificate`, a server without TLS is refused.
    pub ca: Option<PathBuf>,
    /// PEM files with a certificate and its key, for servers that ask for one.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// How long a node counts as alive without a word from it; whole seconds, at least 2.
    pub lease: Duration,
    /// Frames older than this are dropped. Only for streams that are not there yet.
    pub retain_age: Duration,
    /// Of a partition's frames that are more than this, the oldest are dropped. The servers set so much aside for each
    /// partition from the beginning. Only for streams that are not there yet.
    pub retain_bytes: u64,
    /// How long to try at the beginning.
    pub connect_timeout: Duration,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            prefix: "tidegate".to_owned(),
            region: "default".to_owned(),
            replicas: 3,
            login: NatsLogin::Anonymous,
            ca: None,
            client_certificate: None,
            lease: Duration::from_secs(3),
            retain_age: Duration::from_secs(24 * 60 * 60),
            retain_bytes: 256 << 20,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// How to log in. Secrets are in files, which are read once, when connecting.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NatsLogin {
    /// Not at all.
    Anonymous,
    /// With a `.creds` file, as `nsc` writes it.
    Credentials(PathBuf),
    /// With a user name and the password in a file.
    Password {
        /// The user.
        user: String,
        /// The file; white space around the password is not part of it.
        file: PathBuf,
    },
    /// With the token in a file; white space around it is not part of it.
    Token(PathBuf),
}

/// Why the engine could not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NatsError {
    /// The configuration makes no sense.
    #[error("the NATS engine's configuration is wrong: {0}")]
    Config(String),
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// No server answers as it should.
    #[error(
        "cannot connect to NATS at {servers}: {reason}; are the servers up, and address, TLS and login right?"
    )]
    Connect {
        /// Where we tried.
        servers: String,
        /// What happened.
        reason: String,
    },
    /// The server lacks what we need.
    #[error(
        "the NATS server at {server} is version {found}, and {MIN_VERSION} or newer is needed (time to live per \
         message): upgrade the servers (https://github.com/nats-io/nats-server/releases)"
    )]
    TooOld {
        /// Where.
        server: String,
        /// What it says it is.
        found: String,
    },
    /// The server does not store anything.
    #[error(
        "NATS has no JetStream for us ({0}): start the servers with `jetstream {{ store_dir: .. }}` and let the account use it"
    )]
    NoJetStream(String),
    /// The server's limits are too small.
    #[error("the NATS servers take messages of {found} bytes: set `max_payload` to at least {needed}")]
    SmallPayload {
        /// What the server says.
        found: usize,
        /// What we need.
        needed: usize,
    },
    /// What is stored there is of another make.
    #[error("{stream} on the NATS servers does not fit: {reason}")]
    Mismatch {
        /// Which stream or key.
        stream: String,
        /// What differs, and what to do.
        reason: String,
    },
    /// A stream could not be made.
    #[error(
        "cannot make the stream {stream} on the NATS servers: {reason}; are there as many servers as replicas, and on \
         each as much room as all partitions may keep (`max_file_store`, their number times what one retains)?"
    )]
    Setup {
        /// Which one.
        stream: String,
        /// What the server says.
        reason: String,
    },
}

/// Time to live per message, and markers where it ended.
pub(super) const MIN_VERSION: &str = "2.11";
