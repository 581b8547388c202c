//! What `dev` prints once it serves: addresses, and commands to paste.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use tidegate_edge::Addresses;

use crate::config::Settings;
use crate::demo::reachable;

/// The whole text.
pub(super) fn text(
    settings: &Settings,
    addresses: &Addresses,
    api: Option<SocketAddr>,
    ca_file: Option<&Path>,
) -> String {
    let mut out = String::from("\nTidegate is ready, for development only.\n\n");
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<14}{value}");
    };
    if let Some(plain) = addresses.plain {
        line("Demo page", format!("http://localhost:{}/", plain.port()));
    }
    if let Some(quic) = addresses.quic {
        let quic = reachable(quic);
        line("WebTransport", format!("https://{quic}/v1/connect"));
        line("QUIC", format!("quic://{quic}  (ALPN tidegate/1)"));
    }
    if let Some(plain) = addresses.plain {
        let plain = reachable(plain);
        line("WebSocket", format!("ws://{plain}/v1/connect"));
        line("Long poll", format!("http://{plain}/v1/poll"));
        line("Events (SSE)", format!("http://{plain}/v1/channels/CHANNEL/events"));
    }
    if let Some(tls) = addresses.tls {
        let tls = reachable(tls);
        line("with TLS", format!("wss://{tls}/v1/connect, https://{tls}/v1/poll"));
    }
    if let Some(http3) = addresses.http3 {
        line("with HTTP/3", format!("https://{}/v1/poll", reachable(http3)));
    }
    if let Some(api) = api {
        line("Backend API", format!("http://{}", reachable(api)));
    }
    if let Some(ca_file) = ca_file {
        line("CA for TLS", format!("{}  (curl --cacert)", ca_file.display()));
    }
    let key = if settings.api.keys.is_empty() && settings.api.key_files.is_empty() {
        ""
    } else {
        " -H 'Authorization: Bearer YOUR-KEY'"
    };
    if let Some(api) = api {
        let _ = write!(
            out,
            "\nPublish:\n\n  curl -s{key} http://{}/v1/publish -d '{{\"channel\":\"room:1\",\"data\":{{\"text\":\"hello\"}}}}'\n",
            reachable(api)
        );
    }
    if let Some(plain) = addresses.plain {
        let _ = write!(
            out,
            "\nPoll what was published, then wait for more from the position in the answer:\n\n  curl -s 'http://{}/v1/channels/room:1/poll?offset=0'\n",
            reachable(plain)
        );
    }
    if let Some(plain) = addresses.plain {
        let _ = write!(
            out,
            "\nFollow a channel:\n\n  curl -N http://{}/v1/channels/room:1/events\n",
            reachable(plain)
        );
    }
    let note = if settings.auth.anonymous {
        "No token is needed here. With --set auth.anonymous=false and a key, `tidegate token` signs one."
    } else {
        "Clients need a token: `tidegate token` signs one."
    };
    let _ = write!(out, "\n{note}\nEnd with Ctrl-C.\n\n");
    out
}
