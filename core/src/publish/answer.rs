//! Sans-io: what the backend API answers.

use std::fmt::Display;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use tidegate_protocol::ChannelName;
use tidegate_protocol::frame::{self, ErrorCode, ErrorReply};
use tidegate_protocol::link::{LinkError, Members};

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    allow: Option<&'static str>,
    pub(super) reply: ErrorReply,
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        // Codes that HTTP has, by their definition.
        let status = u16::try_from(code.number()).ok().and_then(|number| StatusCode::from_u16(number).ok());
        Self {
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            allow: None,
            reply: code.reply(message),
        }
    }

    pub(super) fn bad_request(message: impl Display) -> Self {
        Self::new(ErrorCode::BadRequest, message.to_string())
    }

    pub(super) fn method_not_allowed(method: &Method, allowed: &'static Method) -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let message = format!("{method} is not allowed here, {allowed} is");
        let reply = ErrorReply { code: u32::from(status.as_u16()), message, retry: false };
        Self { status, allow: Some(allowed.as_str()), reply }
    }

    pub(super) fn body_timeout() -> Self {
        let status = StatusCode::REQUEST_TIMEOUT;
        let message = "the body did not arrive in time".to_owned();
        let reply = ErrorReply { code: u32::from(status.as_u16()), message, retry: true };
        Self { status, allow: None, reply }
    }

    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let mut response = json(self.status, &ErrorAnswer { error: &self.reply });
        if let Some(allow) = self.allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<LinkError> for ApiError {
    fn from(error: LinkError) -> Self {
        Self::new(error.code, error.message)
    }
}

#[derive(Serialize)]
struct ErrorAnswer<'a> {
    error: &'a ErrorReply,
}

#[derive(Serialize)]
pub(super) struct PublishAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<frame::Position>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorReply>,
}

impl From<Result<Option<tidegate_protocol::Position>, ApiError>> for PublishAnswer {
    fn from(result: Result<Option<tidegate_protocol::Position>, ApiError>) -> Self {
        match result {
            Ok(position) => Self { position: position.map(frame::Position::from), error: None },
            Err(error) => Self { position: None, error: Some(error.reply) },
        }
    }
}

#[derive(Serialize)]
pub(super) struct BatchAnswer {
    pub(super) results: Vec<PublishAnswer>,
}

#[derive(Serialize)]
pub(super) struct HistoryAnswer {
    pub(super) position: frame::Position,
    pub(super) recovered: bool,
    pub(super) publications: Vec<frame::Publication>,
}

/// The same object as in a client's `presence` reply.
pub(super) fn presence_answer(channel: &ChannelName, members: Members) -> frame::Presence {
    let Members { users, users_total, sessions, exact } = members;
    let users = users.into_iter();
    let users = users.map(|(user, sessions)| frame::PresentUser { user: user.to_string(), sessions });
    let channel = channel.as_str().to_owned();
    frame::Presence { channel, users: users.collect(), users_total, sessions, exact }
}

pub(super) fn json(status: StatusCode, answer: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(answer).expect("answers serialize: payloads hold checked JSON");
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
