//! The demo page of `dev`, served by the edge's plain listener.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;
use tidegate_certs::CertStore;
use tidegate_edge::{Addresses, Routes};

/// The page, and what it is told once the node listens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demo {
    facts: Arc<OnceLock<Facts>>,
}

#[derive(Debug)]
struct Facts {
    addresses: Addresses,
    api: Option<SocketAddr>,
    store: Arc<CertStore>,
}

impl Demo {
    /// The node listens: from now on `/dev.json` has an answer.
    pub(crate) fn fill(&self, addresses: &Addresses, api: Option<SocketAddr>, store: Arc<CertStore>) {
        // A node starts once; another call would tell the same.
        let _ = self.facts.set(Facts { addresses: addresses.clone(), api, store });
    }
}

/// Answers for the page, its files and `/dev.json`; `None` for everything else.
pub(crate) fn routes(demo: &Demo) -> Routes {
    let demo = demo.clone();
    Arc::new(move |request: &Request<()>| {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        let facts = demo.facts.get();
        let (kind, body) = match request.uri().path() {
            "/dev.json" => match facts {
                Some(facts) => ("application/json", Bytes::from(facts.json().to_string())),
                None => return Some(starting()),
            },
            "/" => asset("/index.html")?,
            path => asset(path)?,
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        if let Ok(policy) = HeaderValue::try_from(content_policy(facts)) {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        Some(response)
    })
}

impl Facts {
    fn json(&self) -> serde_json::Value {
        let Addresses { quic, plain, .. } = self.addresses;
        json!({
            "webtransport": quic.map(|address| format!("https://{}/v1/connect", reachable(address))),
            "websocket": plain.map(|address| format!("ws://{}/v1/connect", reachable(address))),
            "longpoll": plain.map(|address| format!("http://{}/v1/poll", reachable(address))),
            // Read on each request: the certificate is renewed while the page is open.
            "certificate_hash": self.store.hash().to_base64(),
            "publish": self.api.map(|address| format!("http://{}/v1/publish", reachable(address))),
        })
    }

    /// What the page may connect to, beside where it came from.
    fn sources(&self) -> Vec<String> {
        let Addresses { quic, plain, .. } = self.addresses;
        let mut sources = Vec::new();
        if let Some(address) = quic {
            sources.push(format!("https://{}", reachable(address)));
        }
        if let Some(address) = plain {
            sources.push(format!("ws://{0} http://{0}", reachable(address)));
        }
        if let Some(address) = self.api {
            sources.push(format!("http://{}", reachable(address)));
        }
        sources
    }
}

fn content_policy(facts: Option<&Facts>) -> String {
    let sources = facts.map(Facts::sources).unwrap_or_default().join(" ");
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
         connect-src 'self' {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

fn starting() -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(b"starting\n"));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

/// The address that a client on this machine connects to.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Kind and content of an embedded file.
fn asset(path: &str) -> Option<(&'static str, Bytes)> {
    let (_, content) = ASSETS.iter().find(|(name, _)| *name == path)?;
    let extension = path.rsplit('.').next().unwrap_or_default();
    let kind = KINDS.iter().find(|(known, _)| *known == extension).map(|(_, kind)| *kind)?;
    Some((kind, Bytes::from_static(content)))
}

/// Path and content, listed by `build.rs`.
const ASSETS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/assets.rs"));

const KINDS: [(&str, &str); 8] = [
    ("css", "text/css; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("woff2", "font/woff2"),
];

#[cfg(test)]
mod tests;
