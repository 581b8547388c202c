//! What can go wrong, for the app.

use tidegate_protocol::session::client::{CommandError, RequestError};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL cannot be used.
    #[error("`{url}` cannot be used: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificates or roots cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// No server answered; what the last one tried ended with.
    #[error("no connection to {url}: {reason}")]
    Connect {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The session is over. `code` is a close code of the protocol.
    #[error("the session ended with {code}: {reason}")]
    Closed {
        /// Its number.
        code: u32,
        /// For people.
        reason: String,
    },
    /// The client was closed, or its driver is gone.
    #[error("the client is closed")]
    Ended,
    /// The app's token provider failed.
    #[error("no token: {0}")]
    Token(String),
    /// The server refused the request; the session lives on.
    #[error("refused with {code}: {message}")]
    Refused {
        /// Follows HTTP where HTTP has the notion.
        code: u32,
        /// For people.
        message: String,
        /// The same request may succeed later.
        retry: bool,
    },
    /// The connection was lost before the answer came and it was too late to ask again: the publish may or may not
    /// have been kept.
    #[error("the connection was lost before the answer came")]
    Unanswered,
    /// [`crate::Client::move_to`] led nowhere: the client stays where it is, or has no connection.
    #[error("not moved: {0}")]
    NotMoved(String),
    /// The name is no channel name.
    #[error("{0}")]
    Channel(String),
    /// What was asked is over a limit, a duplicate, or malformed.
    #[error("{0}")]
    Invalid(String),
}

impl From<CommandError> for ClientError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Ended => Self::Ended,
            other => Self::Invalid(other.to_string()),
        }
    }
}

impl From<RequestError> for ClientError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Refused(reply) => reply.into(),
            RequestError::Unanswered => Self::Unanswered,
            _ => Self::Ended,
        }
    }
}

impl From<tidegate_protocol::frame::ErrorReply> for ClientError {
    fn from(reply: tidegate_protocol::frame::ErrorReply) -> Self {
        Self::Refused { code: reply.code, message: reply.message, retry: reply.retry }
    }
}
