//! The server's half of the opening handshake (RFC 6455 §4.2, RFC 8441 §5).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;
use tidegate_protocol::frame::shared::Framing;
use tungstenite::handshake::derive_accept_key;

use crate::http::error_response;

/// How frames are encoded on one WebSocket connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subprotocol {
    /// `tidegate.v1.json`: text messages, a frame or an array of frames each.
    Json,
    /// `tidegate.v1.proto`: binary messages, one or more delimited frames each.
    Proto,
}

impl Subprotocol {
    /// Every one, as offered by clients.
    pub const ALL: [Self; 2] = [Self::Json, Self::Proto];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "tidegate.v1.json",
            Self::Proto => "tidegate.v1.proto",
        }
    }

    /// By its name, which is case-sensitive.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|subprotocol| subprotocol.name() == name)
    }

    /// The framing of what the server sends.
    pub fn framing(self) -> Framing {
        match self {
            Self::Json => Framing::WebSocketText,
            Self::Proto => Framing::WebSocketBinary,
        }
    }
}

/// A handshake that is accepted.
#[derive(Debug)]
pub struct Upgrade {
    /// What was agreed upon.
    pub subprotocol: Subprotocol,
    /// 101 with the accept key, or 200 on HTTP/2. Has no body.
    pub response: Response<()>,
}

/// Why a request is no acceptable WebSocket handshake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// Neither an upgrade to `websocket` nor an extended CONNECT for it.
    #[error("this address speaks WebSocket: send an upgrade request")]
    NotWebSocket,
    /// HTTP/1.0, no `Host`, or an upgrade by another method than GET.
    #[error("a WebSocket upgrade is a GET request of HTTP/1.1 with a Host header")]
    BadRequest,
    /// Any version but 13.
    #[error("Sec-WebSocket-Version must be 13")]
    Version,
    /// The key is missing, repeated or not 16 bytes in base64.
    #[error("Sec-WebSocket-Key must be 16 bytes in base64")]
    Key,
    /// Subprotocols were offered, none of them ours.
    #[error("no known subprotocol offered: use tidegate.v1.json or tidegate.v1.proto")]
    Subprotocol,
}

impl UpgradeError {
    /// The answer's status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotWebSocket | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::BadRequest | Self::Key | Self::Subprotocol => StatusCode::BAD_REQUEST,
        }
    }

    /// The answer: `{"error":{..}}`, and with 426 what to upgrade to.
    pub fn response(&self) -> Response<Bytes> {
        let mut response = error_response(self.status(), &self.to_string(), false);
        if self.status() == StatusCode::UPGRADE_REQUIRED {
            response.headers_mut().insert(UPGRADE, WEBSOCKET);
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(SEC_WEBSOCKET_VERSION, VERSION_13);
        }
        response
    }
}

/// Checks a handshake and makes its response. Looks at headers only.
///
/// # Errors
/// Where the request is malformed, of another version, or offers only subprotocols that we do not know.
pub fn upgrade<B>(request: &Request<B>) -> Result<Upgrade, UpgradeError> {
    let headers = request.headers();
    let mut response = match request.extensions().get::<Protocol>() {
        Some(protocol) => {
            if protocol.as_str() != "websocket" || request.method() != Method::CONNECT {
                return Err(UpgradeError::NotWebSocket);
            }
            check_version(headers)?;
            Response::new(())
        }
        None => accept_http1(request)?,
    };
    let (subprotocol, offered) = negotiate(headers)?;
    if offered {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol.name()));
    }
    Ok(Upgrade { subprotocol, response })
}

fn accept_http1<B>(request: &Request<B>) -> Result<Response<()>, UpgradeError> {
    let headers = request.headers();
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return Err(UpgradeError::NotWebSocket);
    }
    if request.method() != Method::GET || request.version() != Version::HTTP_11 || !headers.contains_key(HOST)
    {
        return Err(UpgradeError::BadRequest);
    }
    check_version(headers)?;
    let key = single(headers, &SEC_WEBSOCKET_KEY).ok_or(UpgradeError::Key)?.as_bytes();
    if !STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
        return Err(UpgradeError::Key);
    }
    let accept = HeaderValue::try_from(derive_accept_key(key)).expect("base64 is a header value");

    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, WEBSOCKET);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

fn check_version(headers: &HeaderMap) -> Result<(), UpgradeError> {
    match single(headers, &SEC_WEBSOCKET_VERSION) {
        Some(version) if version == VERSION_13 => Ok(()),
        _ => Err(UpgradeError::Version),
    }
}

/// The client's first choice that we know, and whether it offered any.
fn negotiate(headers: &HeaderMap) -> Result<(Subprotocol, bool), UpgradeError> {
    let mut offered = false;
    for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        offered = true;
        let names = value.to_str().unwrap_or_default().split(',');
        if let Some(subprotocol) = names.map(str::trim).find_map(Subprotocol::from_name) {
            return Ok((subprotocol, true));
        }
    }
    if offered { Err(UpgradeError::Subprotocol) } else { Ok((Subprotocol::Json, false)) }
}

/// The value of a header that must not be repeated.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// Whether a comma-separated header names `token`, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const VERSION_13: HeaderValue = HeaderValue::from_static("13");

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample handshake of RFC 6455 §1.3.
    fn sample() -> Request<()> {
        Request::get("/v1/connect")
            .header("host", "server.example.com")
            .header("upgrade", "WebSocket")
            .header("connection", "keep-alive, Upgrade")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-version", "13")
            .body(())
            .expect("a request")
    }

    fn extended_connect() -> Request<()> {
        let mut request = Request::connect("https://localhost/v1/connect")
            .version(Version::HTTP_2)
            .header("sec-websocket-version", "13")
            .body(())
            .expect("a request");
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        request
    }

    #[test]
    fn the_sample_of_the_rfc_is_accepted() {
        let upgrade = upgrade(&sample()).expect("accepted");
        assert_eq!(upgrade.response.status(), 101);
        assert_eq!(upgrade.response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(upgrade.subprotocol, Subprotocol::Json);
        // A server must not name a subprotocol that was not offered.
        assert!(!upgrade.response.headers().contains_key("sec-websocket-protocol"));
    }

    #[test]
    fn an_extended_connect_is_accepted_with_200_and_no_key() {
        let mut request = extended_connect();
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("tidegate.v1.proto"));
        let accepted = upgrade(&request).expect("accepted");
        assert_eq!(accepted.response.status(), 200);
        assert_eq!(accepted.response.headers()["sec-websocket-protocol"], "tidegate.v1.proto");
        assert!(!accepted.response.headers().contains_key("sec-websocket-accept"));

        let mut other = extended_connect();
        other.extensions_mut().insert(Protocol::from_static("connect-udp"));
        assert_eq!(upgrade(&other).expect_err("refused"), UpgradeError::NotWebSocket);
        let mut old = extended_connect();
        old.headers_mut().remove("sec-websocket-version");
        assert_eq!(upgrade(&old).expect_err("refused"), UpgradeError::Version);
    }

    #[test]
    fn the_first_known_subprotocol_of_the_client_is_taken() {
        for (offers, expected) in [
            (&["tidegate.v1.proto, tidegate.v1.json"][..], Some(Subprotocol::Proto)),
            (&["graphql-ws", "chat,tidegate.v1.json"], Some(Subprotocol::Json)),
            (&["chat", "graphql-ws"], None),
            (&["Tidegate.v1.json"], None),
            (&[""], None),
        ] {
            let mut request = sample();
            for offer in offers {
                let offer = HeaderValue::from_static(offer);
                request.headers_mut().append("sec-websocket-protocol", offer);
            }
            match (upgrade(&request), expected) {
                (Ok(upgrade), Some(expected)) => {
                    assert_eq!(upgrade.subprotocol, expected);
                    assert_eq!(upgrade.response.headers()["sec-websocket-protocol"], expected.name());
                }
                (Err(error), None) => {
                    assert_eq!(error, UpgradeError::Subprotocol);
                    assert_eq!(error.response().status(), 400);
                }
                (result, _) => panic!("{offers:?}: {result:?}"),
            }
        }
    }

    #[test]
    fn malformed_handshakes_are_refused() {
        let changed = |name: &'static str, value: Option<&'static str>| {
            let mut request = sample();
            request.headers_mut().remove(name);
            if let Some(value) = value {
                request.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            upgrade(&request).expect_err("refused")
        };
        assert_eq!(changed("upgrade", None), UpgradeError::NotWebSocket);
        assert_eq!(changed("upgrade", Some("h2c")), UpgradeError::NotWebSocket);
        assert_eq!(changed("connection", Some("keep-alive")), UpgradeError::NotWebSocket);
        assert_eq!(changed("host", None), UpgradeError::BadRequest);
        assert_eq!(changed("sec-websocket-version", None), UpgradeError::Version);
        assert_eq!(changed("sec-websocket-version", Some("8")), UpgradeError::Version);
        assert_eq!(changed("sec-websocket-key", None), UpgradeError::Key);
        assert_eq!(changed("sec-websocket-key", Some("dGhlIHNhbXBsZQ==")), UpgradeError::Key);
        assert_eq!(changed("sec-websocket-key", Some("not base64 at all !!!!!!")), UpgradeError::Key);

        let mut twice = sample();
        twice.headers_mut().append("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(upgrade(&twice).expect_err("refused"), UpgradeError::Key);
        let mut post = sample();
        *post.method_mut() = Method::POST;
        assert_eq!(upgrade(&post).expect_err("refused"), UpgradeError::BadRequest);
        let mut old = sample();
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(upgrade(&old).expect_err("refused"), UpgradeError::BadRequest);

        let answer = UpgradeError::Version.response();
        assert_eq!(answer.status(), 426);
        assert_eq!(answer.headers()["sec-websocket-version"], "13");
    }
}
