//! Every key, once: its name, what it means, what it accepts and where it is kept.

use std::path::Path;

use super::kind::{
    ACCESS, ADDRESS, ALGORITHM, CONGESTION, COUNT, COUNT_U16, COUNT_U32, COUNT_U64, DURATION, ENGINE, FLAG,
    FORMAT, Kind, LEVEL, LISTENER, OPTIONAL_PATH, OPTIONAL_SECRET, OPTIONAL_TEXT, PATH, PATHS, PRESENCE,
    SECRETS, SIZE, SIZE_U32, SIZE_U64, TEXT, TEXTS, UNKNOWN,
};
use super::node::Node;
use super::{AuthKey, Certificate, ClusterRegion, HomeRule, NamespaceSettings, Settings};

/// One key of `S`.
pub(super) struct Key<S> {
    /// The whole path for keys of [`Settings`], the last part for keys of a repeated table.
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) accepts: &'static str,
    pub(super) plain_text: bool,
    pub(super) secret: bool,
    /// A value for the default file where the default is "not set".
    pub(super) example: &'static str,
    read: Read<S>,
    show: Show<S>,
}

type Read<S> = Box<dyn Fn(&mut S, &Node, &Path) -> bool>;
type Show<S> = Box<dyn Fn(&S) -> Option<String>>;

impl<S: Clone + 'static> Key<S> {
    fn new<T>(
        name: &'static str,
        kind: &'static Kind<T>,
        place: fn(&mut S) -> &mut T,
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        Self {
            name,
            doc,
            accepts: kind.accepts,
            plain_text: kind.plain_text,
            secret: kind.secret,
            example,
            read: Box::new(move |settings, node, folder| {
                (kind.read)(node, folder).is_some_and(|value| {
                    *place(settings) = value;
                    true
                })
            }),
            show: Box::new(move |settings| (kind.show)(place(&mut settings.clone()))),
        }
    }

    /// False where the value is not accepted.
    pub(super) fn read(&self, settings: &mut S, node: &Node, folder: &Path) -> bool {
        (self.read)(settings, node, folder)
    }

    /// The effective value as TOML; `None` where it is not set.
    pub(super) fn show(&self, settings: &S) -> Option<String> {
        (self.show)(settings)
    }
}

/// All keys with a fixed path, sections together, in the order of the default file.
pub(super) fn settings() -> Vec<Key<Settings>> {
    let mut keys = top();
    keys.extend(node());
    keys.extend(access());
    keys.extend(admission());
    keys.extend(limits());
    keys.extend(quic());
    keys.extend(core());
    keys.extend(engine());
    keys.extend(cluster());
    keys.extend(log());
    keys
}

fn top() -> Vec<Key<Settings>> {
    vec![Key::new(
        "namespaces_unknown",
        &UNKNOWN,
        |s| &mut s.namespaces.refuse_unknown,
        "",
        "Channels whose namespace (the part before `:`) has no section below: they follow [namespaces.default], or are\nrefused.",
    )]
}

#[rustfmt::skip]
fn node() -> Vec<Key<Settings>> {
    vec![
        Key::new("node.name", &TEXT, |s| &mut s.node.name, "",
            "Told to clients and backends. Empty: the host's name."),
        Key::new("node.region", &TEXT, |s| &mut s.node.region, "",
            "Where the node stands; told to clients."),
        Key::new("node.alternatives", &TEXTS, |s| &mut s.node.alternatives, "",
            "Other edges that clients of this one may be sent to when it is drained, at most 16: \"edge-2.example.com\", with a port\nwhere it is not 4433, by names that their certificates have. Clients go nowhere else but to what their app named."),
        Key::new("node.workers", &COUNT, |s| &mut s.node.workers, "",
            "Single-threaded workers, at most 64. 0: one per processor."),
        Key::new("node.endpoints", &TEXTS, |s| &mut s.node.endpoints, "",
            "Where clients find this node, such as [\"quic://edge-1.example:4433\", \"wss://edge-1.example:4433\"]: clients of other nodes\nare sent there when those are drained. None: its listeners, where their addresses are not \"every\" one."),
        Key::new("node.handover", &OPTIONAL_PATH, |s| &mut s.node.handover, "\"/run/tidegate/handover\"",
            "A Unix socket, made where this says. A process that is started with the same setting takes the listeners over from the\none that has it, whose clients then move to it (of an edge); it ends when they are gone. Not set: a new process cannot\nstart before the old one has ended."),
        Key::new("listen.quic", &LISTENER, |s| &mut s.listen.quic, "",
            "UDP: native QUIC and WebTransport. false switches a listener off."),
        Key::new("listen.tls", &LISTENER, |s| &mut s.listen.tls, "",
            "TCP with TLS: WebSocket, long poll, channel poll and events."),
        Key::new("listen.plain", &LISTENER, |s| &mut s.listen.plain, "",
            "TCP without TLS: the same, behind a balancer that terminates TLS. Never open it to the internet."),
        Key::new("listen.http3", &LISTENER, |s| &mut s.listen.http3, "",
            "UDP: long poll, channel poll and events over HTTP/3. Clients of `listen.tls` are told of it (`Alt-Svc`): without\nthat listener it is off."),
        Key::new("listen.api", &LISTENER, |s| &mut s.listen.api, "",
            "TCP: the backend API, /healthz, /readyz and /metrics. Beyond loopback the API needs a key in [api]; the others\nask for none."),
    ]
}

#[rustfmt::skip]
fn access() -> Vec<Key<Settings>> {
    vec![
        Key::new("auth.anonymous", &FLAG, |s| &mut s.auth.anonymous, "",
            "Whether a session needs no token. It then has what namespaces give to \"anyone\"."),
        Key::new("auth.origins", &TEXTS, |s| &mut s.auth.origins, "",
            "Web pages that may connect, exactly as browsers name them in `Origin`, such as \"https://app.example\";\n\"http://localhost:*\" leaves the port open, \"*\" lets every page in. Programs that send no `Origin` are not asked."),
        Key::new("auth.issuer", &OPTIONAL_TEXT, |s| &mut s.auth.issuer, "\"https://id.example\"",
            "What `iss` in a token must be. Not set: any."),
        Key::new("auth.audience", &OPTIONAL_TEXT, |s| &mut s.auth.audience, "\"tidegate\"",
            "What `aud` in a token must name. Not set: tokens with `aud` are refused, as RFC 7519 asks."),
        Key::new("auth.leeway", &DURATION, |s| &mut s.auth.leeway, "",
            "How far a token's `nbf` may be ahead of this node's clock."),
        Key::new("auth.jwks_files", &PATHS, |s| &mut s.auth.jwks_files, "",
            "Key sets (JWKS) in files. Read again when they change."),
        Key::new("resume.enabled", &FLAG, |s| &mut s.resume.enabled, "",
            "Whether clients are given tickets, with which they go on elsewhere without a token and a call to the app."),
        Key::new("resume.keys", &PATHS, |s| &mut s.resume.keys, "",
            "Files with keys that seal tickets, the same on every node: 32 bytes in base64 or hexadecimal a line, from
`openssl rand -base64 32`. The first key seals, all open. Read again when they change. From them come those of TLS tickets,
address validation and slots too: drains need them. None: a random key, good in this process and in one that takes over."),
        Key::new("resume.lifetime", &DURATION, |s| &mut s.resume.times.lifetime, "",
            "How long a ticket is valid, from 1s to 1d. Clients are given a fresher one when half of it is over."),
        Key::new("resume.grace", &DURATION, |s| &mut s.resume.times.grace, "",
            "After a resume, how long the session's older connection may go on."),
        Key::new("api.keys", &SECRETS, |s| &mut s.api.keys, "",
            "What backends send as `Authorization: Bearer ..` or `X-API-Key`: at least 16 characters each. Several, so that\nthey can be exchanged one after the other. None: the API is open, which is allowed on loopback only."),
        Key::new("api.key_files", &PATHS, |s| &mut s.api.key_files, "",
            "The same, one key in each file."),
        Key::new("api.body", &SIZE, |s| &mut s.api.body, "",
            "The largest request body."),
        Key::new("api.body_timeout", &DURATION, |s| &mut s.api.body_timeout, "",
            "For a request body to arrive."),
        Key::new("api.batch", &COUNT, |s| &mut s.api.batch, "",
            "Publications in one request."),
        Key::new("api.connections", &COUNT, |s| &mut s.api.connections, "",
            "Connections at once; further ones wait to be accepted."),
    ]
}

#[rustfmt::skip]
fn admission() -> Vec<Key<Settings>> {
    vec![
        Key::new("admission.rate", &COUNT_U32, |s| &mut s.admission.rate, "",
            "New sessions per second that this node takes on. Who is over it is told when to come back, and a place is kept for it\nthen; other nodes send no more here. 0: 500 for each worker, about a quarter of what a processor does in full QUIC\nhandshakes."),
        Key::new("admission.handshakes", &COUNT, |s| &mut s.admission.handshakes, "",
            "Clients at once that were let in and have not connected yet. Over it only clients of a node that is drained are."),
        Key::new("admission.address_rate", &COUNT_U32, |s| &mut s.admission.address_rate, "",
            "New sessions per second of one network: a /24 of IPv4, a /56 of IPv6. Who comes to its slot does not count."),
        Key::new("admission.address_burst", &COUNT_U32, |s| &mut s.admission.address_burst, "",
            "The same, at once."),
        Key::new("admission.exempt", &TEXTS, |s| &mut s.admission.exempt, "",
            "Networks that these two do not hold for, such as [\"10.0.0.0/8\"]: balancers that pass TCP on in their own name, and\nnetworks that many clients share. Loopback is one in any case."),
    ]
}

#[rustfmt::skip]
fn limits() -> Vec<Key<Settings>> {
    vec![
        Key::new("limits.connections", &COUNT, |s| &mut s.limits.edge.connections, "",
            "Connections at once, all transports, handshakes included."),
        Key::new("limits.frame", &SIZE, |s| &mut s.limits.edge.frame, "",
            "The largest frame, and the largest WebSocket message."),
        Key::new("limits.payload", &SIZE, |s| &mut s.limits.edge.payload, "",
            "The largest payload of a publication."),
        Key::new("limits.token", &SIZE, |s| &mut s.limits.edge.token, "",
            "The longest token."),
        Key::new("limits.subscriptions", &COUNT, |s| &mut s.limits.edge.subscriptions, "",
            "Subscriptions of one session."),
        Key::new("limits.requests", &COUNT, |s| &mut s.limits.edge.requests, "",
            "Requests of one session in flight; beyond it nothing more is read from it."),
        Key::new("limits.session_queue", &SIZE, |s| &mut s.limits.edge.session_queue, "",
            "Bytes queued for one session."),
        Key::new("limits.subscription_queue", &SIZE, |s| &mut s.limits.edge.subscription_queue, "",
            "Bytes queued for one subscription; beyond it the subscription catches up from history later."),
        Key::new("limits.ephemeral_age", &DURATION, |s| &mut s.limits.edge.ephemeral_age, "",
            "For an ephemeral item to wait for a client that is behind; then it is dropped."),
        Key::new("limits.repeats", &FLAG, |s| &mut s.limits.edge.repeats, "",
            "Small publications are sent again, by datagram, where a QUIC or WebTransport connection loses packets."),
        Key::new("limits.tcp_unsent", &SIZE, |s| &mut s.limits.edge.tcp_unsent, "",
            "Bytes that the kernel takes of a TCP connection ahead of what it can send (TCP_NOTSENT_LOWAT)."),
        Key::new("limits.http_headers", &SIZE, |s| &mut s.limits.edge.http_headers, "",
            "The largest header block of a client's HTTP request."),
        Key::new("limits.http_body", &SIZE, |s| &mut s.limits.edge.http_body, "",
            "The largest body of a client's HTTP request."),
        Key::new("limits.handshake", &DURATION, |s| &mut s.limits.edge.handshake, "",
            "For a TLS or QUIC handshake, and for the headers of each HTTP request."),
        Key::new("limits.connect", &DURATION, |s| &mut s.limits.edge.connect, "",
            "From an open connection to its `connect` frame."),
        Key::new("limits.ping", &DURATION, |s| &mut s.limits.edge.ping, "",
            "Between two pings, and two comments on a silent stream of events."),
        Key::new("limits.pong", &DURATION, |s| &mut s.limits.edge.pong, "",
            "From a ping to its pong."),
        Key::new("limits.renewal", &DURATION, |s| &mut s.limits.edge.renewal, "",
            "The age by which a client's connection is to be renewed, where the client can move without a break: from half of it on,\neach is asked to make another one, here or on another node, so that load stays even. One that does not stays, and is\nasked again later. At least \"10s\"; \"0s\": never."),
        Key::new("limits.longpoll_idle", &DURATION, |s| &mut s.limits.edge.longpoll_idle, "",
            "After which a long-poll session that nobody polls ends."),
        Key::new("limits.close", &DURATION, |s| &mut s.limits.edge.close, "",
            "For a client to acknowledge a close."),
        Key::new("limits.shutdown", &DURATION, |s| &mut s.limits.shutdown, "",
            "After SIGTERM, for clients to move to other edges, where there are some; then as long again for those that are left to\nend, and the rest is cut. Of a core: for its partitions to be handed over."),
    ]
}

#[rustfmt::skip]
fn quic() -> Vec<Key<Settings>> {
    vec![
        Key::new("quic.idle_timeout", &DURATION, |s| &mut s.limits.edge.quic.idle_timeout, "",
            "After which a QUIC or WebTransport connection without a packet is dead."),
        Key::new("quic.initial_rtt", &DURATION, |s| &mut s.limits.edge.quic.initial_rtt, "",
            "What a round trip is taken for until one was measured."),
        Key::new("quic.congestion", &CONGESTION, |s| &mut s.limits.edge.quic.congestion, "",
            "How sending is paced: \"cubic_delay\", \"cubic\", \"new_reno\", or \"bbr\" for experiments."),
        Key::new("quic.initial_window", &SIZE_U32, |s| &mut s.limits.edge.quic.initial_window, "",
            "Bytes that may be in flight to a client before it acknowledged anything."),
        Key::new("quic.stream_window", &SIZE_U32, |s| &mut s.limits.edge.quic.stream_window, "",
            "Bytes that a client may send on one stream ahead of our reading."),
        Key::new("quic.connection_window", &SIZE_U32, |s| &mut s.limits.edge.quic.connection_window, "",
            "The same over all its streams."),
        Key::new("quic.send_window", &SIZE_U32, |s| &mut s.limits.edge.quic.send_window, "",
            "Bytes that QUIC holds for a client until it acknowledges them. Small, so that ranks count: what is in there goes\nout in its order."),
        Key::new("quic.datagram_buffer", &SIZE_U32, |s| &mut s.limits.edge.quic.datagram_buffer, "",
            "Bytes of datagrams held in each direction; the oldest make room."),
        Key::new("quic.send_segments", &COUNT, |s| &mut s.limits.edge.quic.send_segments, "",
            "Datagrams sent in one call, up to 10. Each beyond the first costs 1.2 KiB per connection that ever sent in bulk,\nand saves processor time then."),
        Key::new("quic.ack_threshold", &COUNT_U32, |s| &mut s.limits.edge.quic.ack_threshold, "",
            "Packets that a client is asked to acknowledge together, where it can."),
        Key::new("quic.ack_delay", &DURATION, |s| &mut s.limits.edge.quic.ack_delay, "",
            "How long a client may wait with an acknowledgement, where it can be asked."),
        Key::new("quic.max_incoming", &COUNT, |s| &mut s.limits.edge.quic.max_incoming, "",
            "Connections of one worker that wait to be accepted; further ones are refused."),
        Key::new("quic.early_data", &FLAG, |s| &mut s.limits.edge.quic.early_data, "",
            "Whether native clients that come back may resume in their first flight (0-RTT)."),
        Key::new("quic.tickets", &COUNT, |s| &mut s.limits.edge.quic.tickets, "",
            "Tickets that are remembered for it, the newest ones; about 50 bytes each."),
        Key::new("quic.balancer.server_id", &OPTIONAL_TEXT, |s| &mut s.balancer.server_id, "\"0a01\"",
            "This node in the connection ids, for QUIC-LB balancers in front of it: 1 to 8 bytes in hexadecimal. Not set: ids say\nnothing to balancers, which then tell connections apart by address."),
        Key::new("quic.balancer.rotation", &COUNT, |s| &mut s.balancer.rotation, "",
            "The balancers' configuration in which that id and the key hold, from 0 to 6. With a new key, take another one."),
        Key::new("quic.balancer.key_file", &OPTIONAL_PATH, |s| &mut s.balancer.key_file, "\"balancer-key\"",
            "The key of that configuration: 16 bytes in hexadecimal, from `openssl rand -hex 16`."),
    ]
}

#[rustfmt::skip]
fn core() -> Vec<Key<Settings>> {
    vec![
        Key::new("core.engine", &ENGINE, |s| &mut s.engine.kind, "",
            "What keeps the logs: \"memory\" (gone when the process ends; what `dev` has), \"local\" (a folder of this machine; what\n`serve` has) or \"nats\" (NATS JetStream, shared by the cores of a region; what `core` has). An edge has none."),
        Key::new("core.partitions", &COUNT_U16, |s| &mut s.core.partitions, "",
            "Slices of all channels, one task each. Fixed once there is data."),
        Key::new("core.threads", &COUNT, |s| &mut s.node.threads, "",
            "Threads that `tidegate core` works with, at most 64. 0: one for every two processors. Threads that have little to do\nwake each other up, which costs latency."),
        Key::new("core.partition_queue", &COUNT, |s| &mut s.core.partition_queue, "",
            "Commands that wait in one partition; beyond it the senders wait."),
        Key::new("core.link_queue", &COUNT, |s| &mut s.core.link_queue, "",
            "Frames that wait between edge and core, each way."),
        Key::new("core.link_wait", &DURATION, |s| &mut s.core.link_wait, "",
            "How long a partition waits for an edge that does not read before it cuts the link."),
        Key::new("core.batch_commands", &COUNT, |s| &mut s.core.batch_commands, "",
            "The most commands that a partition takes at once."),
        Key::new("core.batch_bytes", &SIZE, |s| &mut s.core.batch_bytes, "",
            "Bytes after which a batch is closed."),
        Key::new("core.max_channels", &COUNT, |s| &mut s.core.max_channels, "",
            "Channels in one partition; beyond it new ones are refused."),
        Key::new("core.key_age", &DURATION, |s| &mut s.core.key_age, "",
            "How long idempotency keys are remembered."),
        Key::new("core.keys_per_channel", &COUNT, |s| &mut s.core.keys_per_channel, "",
            "How many of them in each channel; the oldest go first."),
        Key::new("core.max_resumed", &COUNT, |s| &mut s.core.max_resumed, "",
            "Sessions in each partition of which spent tickets are remembered; beyond it, clients of further ones need their\ntokens."),
        Key::new("core.presence_users", &COUNT, |s| &mut s.core.presence_users, "",
            "Users that a channel with presence knows one by one; those beyond it are counted."),
        Key::new("core.presence_entries", &COUNT, |s| &mut s.core.presence_entries, "",
            "Users of an edge on a channel, and channels that an edge watches, in one partition; beyond it nobody new is counted."),
        Key::new("core.presence_grace", &DURATION, |s| &mut s.core.presence_grace, "",
            "How long the users of an edge that is lost stay, so that it, or they elsewhere, can come back unnoticed."),
        Key::new("core.forget_after", &DURATION, |s| &mut s.core.forget_after, "",
            "After which a channel that nobody uses and that holds nothing is forgotten."),
        Key::new("core.handovers", &COUNT, |s| &mut s.core.handovers, "",
            "Partitions that a core hands over at once; four times as many when it leaves."),
        Key::new("core.replays", &COUNT, |s| &mut s.core.replays, "",
            "Logs that a core reads at once, when it takes partitions over."),
        Key::new("core.open_wait", &DURATION, |s| &mut s.core.open_wait, "",
            "How long an edge that asks for a partition waits for a core that is about to serve it."),
        Key::new("core.opening", &COUNT, |s| &mut s.core.opening, "",
            "Edges' requests for partitions that wait so; beyond it they are sent away."),
        Key::new("core.snapshot_every", &DURATION, |s| &mut s.core.snapshot_every, "",
            "How often a partition whose log grew is snapshot: less is to be read when it starts or moves."),
        Key::new("core.snapshot_frames", &COUNT_U64, |s| &mut s.core.snapshot_frames, "",
            "And after so many frames of its log."),
        Key::new("core.linger", &DURATION, |s| &mut s.core.linger, "",
            "How long publications are collected into one frame while frames are many, the engine is replicated and several have come\nalready; \"0s\" for never."),
        Key::new("core.linger_above", &COUNT_U32, |s| &mut s.core.linger_above, "",
            "Frames are many beyond this rate, per second and core."),
        Key::new("core.backend_in_flight", &COUNT, |s| &mut s.core.backend_in_flight, "",
            "Requests of the backend API in flight; beyond it they are refused with 503."),
        Key::new("core.backend_wait", &DURATION, |s| &mut s.core.backend_wait, "",
            "After which such a request is answered with 503, its outcome unknown."),
    ]
}

#[rustfmt::skip]
fn engine() -> Vec<Key<Settings>> {
    vec![
        Key::new("core.local.path", &OPTIONAL_PATH, |s| &mut s.engine.local.path, "\"/var/lib/tidegate/data\"",
            "Folder of the store. Made if it is missing; one process at a time. Not set: `tidegate-data` where the program is started."),
        Key::new("core.local.retain_age", &DURATION, |s| &mut s.engine.local.retain.age, "",
            "How long frames of the log are kept: at least the longest `history_age`."),
        Key::new("core.local.retain_bytes", &SIZE_U64, |s| &mut s.engine.local.retain.bytes, "",
            "Bytes of frames kept in each partition; the oldest go first, and with them what history holds of them."),
        Key::new("core.local.reserve_bytes", &SIZE_U64, |s| &mut s.engine.local.reserve, "",
            "Bytes of its disk that stay free: with less, publishes are refused until there is room again. Snapshots, which let\nold frames go, take from them."),
        Key::new("core.nats.servers", &TEXTS, |s| &mut s.engine.nats.servers, "",
            "Servers of the region's own NATS cluster, such as [\"nats://10.0.0.1:4222\", \"nats://10.0.0.2:4222\"]; `tls://` where they\nspeak TLS. 2.11 or newer, JetStream with `sync_interval: always`: docs/OPERATIONS.md."),
        Key::new("core.nats.prefix", &TEXT, |s| &mut s.engine.nats.prefix, "",
            "Begins the names of all streams, buckets and subjects: two clusters of Tidegate can share one of NATS."),
        Key::new("core.nats.replicas", &COUNT, |s| &mut s.engine.nats.replicas, "",
            "Copies of each log, 1, 3 or 5, each on another server. Counts when the streams are made."),
        Key::new("core.nats.credentials_file", &OPTIONAL_PATH, |s| &mut s.engine.nats.credentials_file, "\"/etc/tidegate/nats.creds\"",
            "NATS credentials (JWT and seed)."),
        Key::new("core.nats.user", &OPTIONAL_TEXT, |s| &mut s.engine.nats.user, "\"tidegate\"",
            "User name; needs `password_file`."),
        Key::new("core.nats.password_file", &OPTIONAL_PATH, |s| &mut s.engine.nats.password_file, "\"/etc/tidegate/nats-password\"",
            "File with the user's password."),
        Key::new("core.nats.token_file", &OPTIONAL_PATH, |s| &mut s.engine.nats.token_file, "\"/etc/tidegate/nats-token\"",
            "File with a token, instead of user or credentials."),
        Key::new("core.nats.ca", &OPTIONAL_PATH, |s| &mut s.engine.nats.ca, "\"/etc/tidegate/nats-ca.pem\"",
            "Who signed the servers' certificates; servers without TLS are refused then. Not set: the roots of this machine."),
        Key::new("core.nats.certificate", &OPTIONAL_PATH, |s| &mut s.engine.nats.certificate, "\"/etc/tidegate/nats-client.pem\"",
            "Client certificate, where the servers ask for one."),
        Key::new("core.nats.key", &OPTIONAL_PATH, |s| &mut s.engine.nats.key, "\"/etc/tidegate/nats-client-key.pem\"",
            "Its private key."),
        Key::new("core.nats.lease", &DURATION, |s| &mut s.engine.nats.lease, "",
            "After which a core that does not renew is taken for dead, in whole seconds from 2s to 60s. The same on all cores."),
        Key::new("core.nats.retain_age", &DURATION, |s| &mut s.engine.nats.retain.age, "",
            "How long frames of the log are kept: at least the longest `history_age`. Counts when the streams are made."),
        Key::new("core.nats.retain_bytes", &SIZE_U64, |s| &mut s.engine.nats.retain.bytes, "",
            "Bytes of frames kept in each partition, on each replica. Counts when the streams are made."),
    ]
}

#[rustfmt::skip]
fn cluster() -> Vec<Key<Settings>> {
    vec![
        Key::new("cluster.listen", &ADDRESS, |s| &mut s.cluster.listen, "",
            "UDP: where a core takes links of edges. Only certificates of the cluster's own CA get in."),
        Key::new("cluster.advertise", &OPTIONAL_TEXT, |s| &mut s.cluster.advertise, "\"core-1.internal:4455\"",
            "`host:port` by which edges reach this core. Not set: `cluster.listen`, with the node's name where that is every\naddress."),
        Key::new("cluster.home", &OPTIONAL_TEXT, |s| &mut s.cluster.home, "\"eu\"",
            "Region in which channels live that no rule and no namespace puts elsewhere. The same on all nodes. Not set: the\nregion of this node, which is right where there is only one."),
        Key::new("cluster.ca", &OPTIONAL_PATH, |s| &mut s.cluster.ca, "\"/etc/tidegate/cluster/ca.pem\"",
            "PEM: the cluster's own CA, from `tidegate certs init`."),
        Key::new("cluster.certificate", &OPTIONAL_PATH, |s| &mut s.cluster.certificate, "\"/etc/tidegate/cluster/core-1.pem\"",
            "PEM: this node's certificate, from `tidegate certs node`. It must hold `node.name`."),
        Key::new("cluster.key", &OPTIONAL_PATH, |s| &mut s.cluster.key, "\"/etc/tidegate/cluster/core-1-key.pem\"",
            "PEM: its private key."),
        Key::new("cluster.request_wait", &DURATION, |s| &mut s.cluster.request_wait, "",
            "How long an edge holds a request while nobody owns its channel; then the client is told to try again."),
        Key::new("cluster.link.heartbeat", &DURATION, |s| &mut s.cluster.link.heartbeat, "",
            "Between two signs of life on a link that is idle."),
        Key::new("cluster.link.idle_timeout", &DURATION, |s| &mut s.cluster.link.idle_timeout, "",
            "After which a link without a packet is dead."),
        Key::new("cluster.link.queue", &SIZE, |s| &mut s.cluster.link.queue, "",
            "Bytes that wait on one partition's stream of a link; beyond it the stream is cut, and the edge catches up."),
    ]
}

#[rustfmt::skip]
fn log() -> Vec<Key<Settings>> {
    vec![
        Key::new("log.level", &LEVEL, |s| &mut s.log.level, "",
            "\"error\", \"warn\", \"info\", \"debug\" or \"trace\", or by module: \"info,tidegate_edge=debug\". The environment\nvariable TIDEGATE_LOG comes before it."),
        Key::new("log.format", &FORMAT, |s| &mut s.log.format, "",
            "\"text\" for people, \"json\" for machines. Logs go to stderr."),
    ]
}

/// Keys of `[namespaces.NAME]`.
#[rustfmt::skip]
pub(super) fn namespace() -> Vec<Key<NamespaceSettings>> {
    vec![
        Key::new("history_count", &COUNT_U32, |n| &mut n.history.count, "",
            "Publications retained in each channel."),
        Key::new("history_bytes", &SIZE_U64, |n| &mut n.history.bytes, "",
            "Bytes of payload retained in each channel."),
        Key::new("history_age", &DURATION, |n| &mut n.history.age, "",
            "For how long they are retained."),
        Key::new("ephemeral_only", &FLAG, |n| &mut n.ephemeral_only, "",
            "Refuse durable publications: everything here is at-most-once."),
        Key::new("conflate", &FLAG, |n| &mut n.conflate, "",
            "Only the latest publication counts: slow clients skip to it."),
        Key::new("publish", &ACCESS, |n| &mut n.publish, "",
            "Who may publish: \"anyone\", \"users\" (any token with a `sub`), \"granted\" (tokens that grant it) or\n\"nobody\" (the backend API alone)."),
        Key::new("subscribe", &ACCESS, |n| &mut n.subscribe, "",
            "Who may subscribe, poll and read history; the same names."),
        Key::new("presence", &PRESENCE, |n| &mut n.presence, "",
            "Who may list who is there, and watch them come and go: the same names (\"nobody\": the backend API alone), or\n\"off\": nobody is counted, which costs nothing. The same on all nodes."),
        Key::new("home", &OPTIONAL_TEXT, |n| &mut n.home, "\"eu\"",
            "Region in which the channels live, unless one of [[cluster.homes]] says otherwise. Not set: `cluster.home`,\nand so it is not set in [namespaces.default]."),
    ]
}

/// Keys of `[cluster.regions.NAME]`.
pub(super) fn region() -> Vec<Key<ClusterRegion>> {
    vec![Key::new(
        "cores",
        &TEXTS,
        |r| &mut r.cores,
        "[\"core-1.internal:4455\", \"core-2.internal:4455\"]",
        "`host:port` of its cores, a few are enough: they tell of the others.",
    )]
}

/// Keys of `[[cluster.homes]]`.
#[rustfmt::skip]
pub(super) fn home_rule() -> Vec<Key<HomeRule>> {
    vec![
        Key::new("pattern", &TEXT, |r| &mut r.pattern, "\"room:us-*\"",
            "Names of channels; `*` stands for any text."),
        Key::new("region", &TEXT, |r| &mut r.region, "\"eu\"",
            "Where they live."),
    ]
}

/// Keys of `[[tls.certificates]]`.
#[rustfmt::skip]
pub(super) fn certificate() -> Vec<Key<Certificate>> {
    vec![
        Key::new("certificate", &PATH, |c| &mut c.certificate, "\"/etc/tidegate/fullchain.pem\"",
            "PEM: the certificate, then its intermediates."),
        Key::new("key", &PATH, |c| &mut c.key, "\"/etc/tidegate/key.pem\"",
            "PEM: its private key."),
    ]
}

/// Keys of `[[auth.keys]]`.
#[rustfmt::skip]
pub(super) fn auth_key() -> Vec<Key<AuthKey>> {
    vec![
        Key::new("id", &OPTIONAL_TEXT, |k| &mut k.id, "\"2026\"",
            "What `kid` in a token names. Without it the key is tried for every token of its algorithm."),
        Key::new("algorithm", &ALGORITHM, |k| &mut k.algorithm, "\"HS256\"",
            "\"HS256\", \"RS256\", \"ES256\" or \"EdDSA\": the only one that this key checks."),
        Key::new("secret", &OPTIONAL_SECRET, |k| &mut k.secret, "\"at least 32 characters, from: openssl rand -base64 48\"",
            "For HS256, at least 32 bytes."),
        Key::new("secret_file", &OPTIONAL_PATH, |k| &mut k.secret_file, "\"/etc/tidegate/token-secret\"",
            "The same in a file, instead of `secret`."),
        Key::new("public_key_file", &OPTIONAL_PATH, |k| &mut k.public_key_file, "\"/etc/tidegate/token-key.pem\"",
            "For the other algorithms: PEM, `-----BEGIN PUBLIC KEY-----`."),
    ]
}

/// Text above `[[tls.certificates]]`.
pub(super) const CERTIFICATES_DOC: &str = "Certificates by name; the first is the default. Read again when the files change, and at SIGHUP.\n`dev` makes its own.";

/// Text above `[[cluster.homes]]`.
pub(super) const HOMES_DOC: &str = "Home regions by name of the channel: the first rule that fits counts, and comes before the namespace's `home`.\nThe same on all nodes.";

/// Text above `[cluster.regions.NAME]`.
pub(super) const REGIONS_DOC: &str =
    "For edges: how to reach each region's cores. Every region that is a home needs its section.";

/// Text above `[[auth.keys]]`.
pub(super) const AUTH_KEYS_DOC: &str = "Keys that check tokens (JWT).";
