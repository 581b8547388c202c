//! Where to connect, and by what.

use std::fmt;

use http::Uri;

use crate::{ClientError, Transport};

/// A server's URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) transport: Transport,
    /// TLS is spoken; always with QUIC.
    pub(crate) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// With the query; `/` where the transport has none.
    pub(crate) path: String,
    url: String,
}

impl Endpoint {
    /// `quic://`, `webtransport://`, `wss://`, `ws://`, `https://` or `http://` (long poll), with the port 4433 where none is given (8080
    /// without TLS) and the standard path where none is.
    pub(crate) fn parse(url: &str) -> Result<Self, ClientError> {
        let refuse = |reason: &str| ClientError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| refuse(&error.to_string()))?;
        let (transport, tls, path) = match uri.scheme_str() {
            Some("quic") => (Transport::Quic, true, "/"),
            Some("webtransport") => (Transport::WebTransport, true, "/v1/connect"),
            Some("wss") => (Transport::WebSocket, true, "/v1/connect"),
            Some("ws") => (Transport::WebSocket, false, "/v1/connect"),
            Some("https") => (Transport::LongPoll, true, "/v1/poll"),
            Some("http") => (Transport::LongPoll, false, "/v1/poll"),
            _ => {
                return Err(refuse(
                    "it must begin with quic://, webtransport://, wss://, ws://, https:// or http://",
                ));
            }
        };
        let authority = uri.authority().ok_or_else(|| refuse("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("user names have no place in it: give a token instead"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(refuse("it names no host"));
        }
        let port = match authority.port_u16() {
            Some(port) => port,
            // Whatever follows the host is a port that is none.
            None if authority.as_str() != authority.host() => {
                return Err(refuse("its port is no number up to 65535"));
            }
            None if tls => 4433,
            None => 8080,
        };
        let given = uri.path_and_query().map_or("", |path| path.as_str());
        if transport == Transport::Quic && !matches!(given, "" | "/") {
            return Err(refuse("a path has no meaning on QUIC"));
        }
        Ok(Self {
            transport,
            tls,
            host,
            port,
            path: if matches!(given, "" | "/") { path } else { given }.to_owned(),
            url: url.to_owned(),
        })
    }

    /// The same server by another transport.
    pub(crate) fn by(&self, transport: Transport) -> Result<Self, ClientError> {
        let scheme = match (transport, self.tls) {
            // Without TLS there is none; whoever has plain HTTP for tests names the port of QUIC too.
            (Transport::Quic, _) => "quic",
            (Transport::WebTransport, _) => "webtransport",
            (Transport::WebSocket, true) => "wss",
            (Transport::WebSocket, false) => "ws",
            (Transport::LongPoll, true) => "https",
            (Transport::LongPoll, false) => "http",
        };
        Self::parse(&format!("{scheme}://{}", self.authority()))
    }

    /// For `Host` headers and URLs.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    /// Without the query, which may hold what nobody else should read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.split('?').next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> (Transport, bool, String, String) {
        let endpoint = Endpoint::parse(url).unwrap();
        (endpoint.transport, endpoint.tls, endpoint.authority(), endpoint.path)
    }

    #[test]
    fn schemes_choose_the_transport_and_what_is_left_out() {
        let of = |authority: &str, path: &str| (authority.to_owned(), path.to_owned());
        let with = |transport, tls, (authority, path)| (transport, tls, authority, path);
        assert_eq!(parse("quic://a"), with(Transport::Quic, true, of("a:4433", "/")));
        assert_eq!(
            parse("quic://[::1]:9"),
            with(Transport::Quic, true, of("[::1]:9", "/")),
            "an IPv6 address keeps its brackets where it is written, not where it is dialled"
        );
        assert_eq!(Endpoint::parse("quic://[::1]:9").unwrap().host, "::1");
        let of_webtransport = with(Transport::WebTransport, true, of("a:4433", "/v1/connect"));
        assert_eq!(parse("webtransport://a"), of_webtransport);
        assert_eq!(parse("wss://a:1/"), with(Transport::WebSocket, true, of("a:1", "/v1/connect")));
        assert_eq!(parse("ws://a"), with(Transport::WebSocket, false, of("a:8080", "/v1/connect")));
        assert_eq!(parse("ws://a/x?y=z"), with(Transport::WebSocket, false, of("a:8080", "/x?y=z")));
        assert_eq!(parse("https://a"), with(Transport::LongPoll, true, of("a:4433", "/v1/poll")));
        assert_eq!(parse("http://a:80"), with(Transport::LongPoll, false, of("a:80", "/v1/poll")));
    }

    #[test]
    fn what_cannot_be_dialled_is_refused() {
        for url in [
            "",
            "a:4433",
            "ftp://a",
            "quic://",
            "quic://a/path",
            "wss://me:secret@a",
            "wss://a:99999",
            "ws://a b",
        ] {
            assert!(matches!(Endpoint::parse(url), Err(ClientError::Url { .. })), "{url}");
        }
    }

    #[test]
    fn queries_are_not_shown() {
        assert_eq!(Endpoint::parse("wss://a/x?token=secret").unwrap().to_string(), "wss://a/x");
    }
}
