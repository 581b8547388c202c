//! `/v1/drain` of the backend API: moving the clients of this node to others.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_core::BackendApi;
use tidegate_edge::drain::{DrainControl, DrainOrder};
use tidegate_protocol::endpoint::endpoint_of;
use tidegate_protocol::frame::ErrorCode;

/// What `POST` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// `https://host[:port]` each.
    #[serde(default)]
    to: Vec<String>,
    /// Such as `30s`.
    #[serde(default)]
    within: Option<String>,
}

/// `POST` begins, `GET` says how far it is, `DELETE` stops.
pub(super) async fn answer(
    control: Option<&DrainControl>,
    api: &BackendApi,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let method = request.method().clone();
    let body = match api.admit(request).await {
        Ok(body) => body,
        Err(answer) => return *answer,
    };
    let Some(control) = control else {
        return refuse(ErrorCode::NotAvailable, "this node has no clients: drain an edge");
    };
    match method {
        Method::GET => {}
        Method::POST => match parse(&body) {
            Ok(order) => control.begin(order),
            Err(problem) => return refuse(ErrorCode::BadRequest, &problem),
        },
        Method::DELETE => {
            control.stop();
        }
        _ => {
            let mut answer = refuse(ErrorCode::BadRequest, "GET, POST and DELETE only");
            *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            return answer;
        }
    }
    let status = control.status();
    let draining = status.is_some();
    respond(StatusCode::OK, &json!({ "draining": draining, "drain": status }))
}

fn parse(body: &[u8]) -> Result<DrainOrder, String> {
    let Body { to, within } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if to.len() > MAX_TARGETS {
        return Err(format!("`to` can have {MAX_TARGETS} at most"));
    }
    let is_endpoint = |to: &&String| to.strip_prefix("https://").and_then(endpoint_of).is_none();
    if let Some(bad) = to.iter().find(is_endpoint) {
        return Err(format!("`to`: `{bad}` is not of the form https://host or https://host:port"));
    }
    let within = match within {
        None => DEFAULT_WITHIN,
        Some(text) => humantime::parse_duration(&text).map_err(|error| format!("`within`: {error}"))?,
    };
    if !(MIN_WITHIN..=MAX_WITHIN).contains(&within) {
        return Err("`within` is from 1s to 24h".to_owned());
    }
    Ok(DrainOrder { to, within })
}

fn refuse(code: ErrorCode, message: &str) -> Response<Full<Bytes>> {
    let status = u16::try_from(code.number()).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let error = json!({ "error": code.reply(message) });
    respond(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &error)
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

const MAX_TARGETS: usize = 16;
const DEFAULT_WITHIN: Duration = Duration::from_secs(60);
const MIN_WITHIN: Duration = Duration::from_secs(1);
const MAX_WITHIN: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read() {
        let order = parse(br#"{"to":["https://edge-2:4433"],"within":"30s"}"#).expect("well formed");
        let to = vec!["https://edge-2:4433".to_owned()];
        assert_eq!(order, DrainOrder { to, within: Duration::from_secs(30) });
        assert_eq!(parse(b"{}").expect("all defaults").to, Vec::<String>::new());
        for (bad, what) in [
            (r#"{"to":["edge-2"]}"#, "https://host"),
            (r#"{"to":["https://edge-2/v1"]}"#, "https://host"),
            (r#"{"within":"0s"}"#, "1s"),
            (r#"{"within":"soon"}"#, "within"),
            (r#"{"from":[]}"#, "from"),
            ("", "EOF"),
        ] {
            let problem = parse(bad.as_bytes()).expect_err(bad);
            assert!(problem.contains(what), "{bad}: {problem}");
        }
    }
}
