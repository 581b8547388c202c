//! HTTP conventions of the client-facing endpoints: errors, tokens, origins, CORS.

mod origin;
mod query;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE,
    HeaderMap, HeaderValue, ORIGIN, RETRY_AFTER, VARY,
};
use http::{Response, StatusCode, Uri};
use serde::Serialize;
use tidegate_protocol::frame::{ErrorCode, ErrorReply};

pub use origin::{OriginError, OriginPolicy, OriginRefused};
pub use query::{BadQuery, decode_path_segment, query_pairs};

/// A response with a JSON body that no cache keeps.
pub fn json_response(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `{"error":{"code","message","retry"}}`; the code is the status.
pub fn error_response(status: StatusCode, message: &str, retry: bool) -> Response<Bytes> {
    let error = ErrorReply { code: u32::from(status.as_u16()), message: message.to_owned(), retry };
    json_response(status, to_json(&ErrorBody { error: &error }))
}

/// The response for a failed request of our own kind; its codes are HTTP's.
pub fn error_reply_response(error: &ErrorReply) -> Response<Bytes> {
    let status = u16::try_from(error.code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(status, to_json(&ErrorBody { error }))
}

/// The response for an error code.
pub fn error_code_response(code: ErrorCode, message: &str) -> Response<Bytes> {
    error_reply_response(&code.reply(message))
}

/// 503: come back after `after`, with `slot` in the query where there is one.
pub fn deferred_response(message: &str, after: Duration, slot: Option<&str>) -> Response<Bytes> {
    let error = ErrorCode::Unavailable.reply(message);
    let retry_after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let body = to_json(&DeferredBody { error: &error, retry_after_ms, slot });
    let mut response = json_response(StatusCode::SERVICE_UNAVAILABLE, body);
    retry_after(response.headers_mut(), after);
    response
}

/// What `?slot=` says; nothing where it is there twice.
pub fn request_slot(uri: &Uri) -> Option<String> {
    let mut slots = query_pairs(uri.query()).filter_map(Result::ok).filter(|(name, _)| name == "slot");
    let slot = slots.next()?.1.into_owned();
    slots.next().is_none().then_some(slot)
}

#[derive(Serialize)]
struct DeferredBody<'a> {
    error: &'a ErrorReply,
    retry_after_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<&'a str>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a ErrorReply,
}

pub(crate) fn to_json(value: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("structs of text, numbers and checked JSON serialize"))
}

/// A credential from a request. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Gives it away.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why the credential of a request cannot be used: 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// More than one, where one would do.
    #[error("more than one token")]
    Repeated,
    /// Empty, or with characters that no token has.
    #[error("a malformed token")]
    Malformed,
    /// Over the limit.
    #[error("a token of over {limit} bytes")]
    TooLong {
        /// What is allowed.
        limit: usize,
    },
}

/// The token of a request: `Authorization: Bearer`, else `?token=`. Other authorization schemes are not ours to judge.
///
/// # Errors
/// Where there is one that cannot be used; the request must not pass as anonymous then.
pub fn request_token(headers: &HeaderMap, uri: &Uri, limit: usize) -> Result<Option<Token>, TokenError> {
    match bearer_token(headers, limit)? {
        Some(token) => Ok(Some(token)),
        None => query_token(uri, limit),
    }
}

/// The token of `Authorization: Bearer <token>` (RFC 6750 §2.1).
///
/// # Errors
/// Where it cannot be used.
pub fn bearer_token(headers: &HeaderMap, limit: usize) -> Result<Option<Token>, TokenError> {
    let mut found = None;
    for value in headers.get_all(AUTHORIZATION) {
        let (scheme, token) = match value.as_bytes().iter().position(|byte| *byte == b' ') {
            Some(space) => value.as_bytes().split_at(space),
            None => (value.as_bytes(), &b""[..]),
        };
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            continue;
        }
        let token = std::str::from_utf8(token.trim_ascii()).map_err(|_| TokenError::Malformed)?;
        if found.replace(check_token(token, limit)?).is_some() {
            return Err(TokenError::Repeated);
        }
    }
    Ok(found)
}

/// The token of `?token=`, for browsers, which cannot set headers on a WebSocket.
///
/// # Errors
/// Where it cannot be used.
pub fn query_token(uri: &Uri, limit: usize) -> Result<Option<Token>, TokenError> {
    let mut found = None;
    for pair in query_pairs(uri.query()) {
        // Another parameter's trouble is not the token's.
        let Ok((name, value)) = pair else { continue };
        if name == "token" && found.replace(check_token(&value, limit)?).is_some() {
            return Err(TokenError::Repeated);
        }
    }
    Ok(found)
}

fn check_token(token: &str, limit: usize) -> Result<Token, TokenError> {
    if token.len() > limit {
        return Err(TokenError::TooLong { limit });
    }
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenError::Malformed);
    }
    Ok(Token(token.to_owned()))
}

/// Lets the page at `origin`, which the policy allowed, read a response: that page by name, never `*`. Credentials are
/// not allowed (`Access-Control-Allow-Credentials`): there are no cookies here, and a browser that sent them would only
/// show that somebody else's are not ours.
pub fn allow_origin(response: &mut HeaderMap, origin: &HeaderValue) {
    response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after, alt-svc"));
    vary_by_origin(response);
}

/// Says that the answer depends on who asks; belongs on every answer of an endpoint that checks origins.
pub fn vary_by_origin(response: &mut HeaderMap) {
    response.insert(VARY, HeaderValue::from_static("origin"));
}

/// Says when to come back (RFC 9110 §10.2.3): whole seconds, rounded up, for those who do not read the body.
pub fn retry_after(response: &mut HeaderMap, after: Duration) {
    let seconds = after.as_millis().div_ceil(1000);
    let value = HeaderValue::try_from(seconds.to_string()).expect("digits");
    response.insert(RETRY_AFTER, value);
}

/// Answers a preflight (`OPTIONS`) of an allowed origin; browsers remember it for two hours, the most that they all do.
pub fn preflight_response(origin: &HeaderValue) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    allow_origin(headers, origin);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type, last-event-id"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    response
}

/// The page that a request comes from, if the policy allows it; `None` for programs that name none.
///
/// # Errors
/// Where the origin is not on the list, malformed or repeated: 403, or close code 4006.
pub fn check_origin(
    policy: &OriginPolicy,
    headers: &HeaderMap,
) -> Result<Option<HeaderValue>, OriginRefused> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else { return Ok(None) };
    if origins.next().is_some() || !origin.to_str().is_ok_and(|text| policy.allows(text)) {
        return Err(OriginRefused);
    }
    Ok(Some(origin.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_json_that_no_cache_keeps() {
        let response = error_code_response(ErrorCode::Unavailable, "try \"later\"");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(&response.body()[..], br#"{"error":{"code":503,"message":"try \"later\"","retry":true}}"#);
    }

    #[test]
    fn tokens_come_from_the_header_first_and_are_never_printed() {
        let uri: Uri = "/v1/connect?x=%zz&token=from%2Dquery".parse().expect("a uri");
        let mut headers = HeaderMap::new();
        let token = request_token(&headers, &uri, 100).expect("usable").expect("present");
        assert_eq!(token.reveal(), "from-query");
        assert_eq!(format!("{token:?}"), "Token(..)");

        headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer  abc.def "));
        let token = request_token(&headers, &uri, 100).expect("usable").expect("present");
        assert_eq!(token.into_string(), "abc.def");

        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjpwYXNz"));
        let token = request_token(&headers, &uri, 100).expect("usable").expect("present");
        assert_eq!(token.reveal(), "from-query");
        assert_eq!(request_token(&headers, &Uri::from_static("/"), 100), Ok(None));
    }

    #[test]
    fn unusable_tokens_are_errors_and_not_absent() {
        let from_header = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
            bearer_token(&headers, 10)
        };
        assert_eq!(from_header("Bearer"), Err(TokenError::Malformed));
        assert_eq!(from_header("Bearer "), Err(TokenError::Malformed));
        assert_eq!(from_header("Bearer a b"), Err(TokenError::Malformed));
        assert_eq!(from_header("Bearer 12345678901"), Err(TokenError::TooLong { limit: 10 }));

        let from_query = |uri: &'static str| query_token(&Uri::from_static(uri), 10);
        assert_eq!(from_query("/?token="), Err(TokenError::Malformed));
        assert_eq!(from_query("/?token=a%0Ab"), Err(TokenError::Malformed));
        assert_eq!(from_query("/?token=a&token=b"), Err(TokenError::Repeated));
        assert_eq!(from_query("/?token=12345678901"), Err(TokenError::TooLong { limit: 10 }));
        assert_eq!(from_query("/?tokens=1"), Ok(None));

        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert_eq!(bearer_token(&headers, 10), Err(TokenError::Repeated));
    }

    #[test]
    fn allowed_pages_may_read_and_preflights_are_remembered() {
        let policy = OriginPolicy::new(&["https://app.example"]).expect("a policy");
        let mut headers = HeaderMap::new();
        assert_eq!(check_origin(&policy, &headers), Ok(None));
        headers.insert(ORIGIN, HeaderValue::from_static("https://app.example"));
        let origin = check_origin(&policy, &headers).expect("allowed").expect("present");

        let response = preflight_response(&origin);
        assert_eq!(response.status(), 204);
        assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example");
        assert_eq!(response.headers()["access-control-max-age"], "7200");
        assert_eq!(response.headers()["access-control-expose-headers"], "retry-after, alt-svc");
        assert_eq!(
            response.headers()["access-control-allow-headers"],
            "authorization, content-type, last-event-id"
        );
        assert!(!response.headers().contains_key("access-control-allow-credentials"));
        assert_eq!(response.headers()["vary"], "origin");

        headers.append(ORIGIN, HeaderValue::from_static("https://app.example"));
        assert_eq!(check_origin(&policy, &headers), Err(OriginRefused));
    }
}
