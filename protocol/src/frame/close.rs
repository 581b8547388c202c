//! Sans-io: the only list of close codes and error codes, each with what a client does next.
//!
//! Close codes fall in three ranges, so that a client which does not know one still acts rightly (PROTOCOL §9):
//! 4000–4099 do not come back unchanged, 4100–4199 back off, 4200–4299 come back now.

use super::{Close, ErrorReply, Reconnect};

/// What a client does after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ReconnectPolicy {
    /// Reconnect with full jitter (`backoff`), the first time within a second.
    Backoff = 0,
    /// Do not reconnect: the same attempt would end the same way.
    Never = 1,
    /// Reconnect at once.
    Now = 2,
    /// Get a new token first, then reconnect at once.
    FreshToken = 3,
}

impl ReconnectPolicy {
    /// Names in JSON, in the order of the numbers.
    pub const NAMES: &'static [&'static str] = &["backoff", "never", "now", "fresh_token"];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backoff => "backoff",
            Self::Never => "never",
            Self::Now => "now",
            Self::FreshToken => "fresh_token",
        }
    }

    /// By its name in JSON.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Backoff, Self::Never, Self::Now, Self::FreshToken]
            .into_iter()
            .find(|policy| policy.name() == name)
    }
}

/// Whose doing an error is; sets the level it is logged at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The other side's: `debug` and a counter.
    Peer,
    /// Ours: `error`.
    Local,
    /// A node that we depend on: `warn`.
    Upstream,
}

/// Declares the codes once: number, name, fault, policy, text.
macro_rules! close_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $fault:ident, $policy:ident;)*) => {
        /// The number that a connection ends with, on every transport: QUIC and WebTransport application error code,
        /// WebSocket status code, `close` frame.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum CloseCode {
            $($(#[$doc])* $variant,)*
        }

        impl CloseCode {
            /// Every code, ascending.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number.
            pub fn number(self) -> u32 {
                match self { $(Self::$variant => $number,)* }
            }

            /// Short name, the label in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whose doing it is.
            pub fn fault(self) -> Fault {
                match self { $(Self::$variant => Fault::$fault,)* }
            }

            /// What the client does next.
            pub fn policy(self) -> ReconnectPolicy {
                match self { $(Self::$variant => ReconnectPolicy::$policy,)* }
            }

            /// By number.
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

close_codes! {
    /// The client said `done`, or closed in order.
    Done = 4000, "done", Peer, Never;
    /// A frame that cannot be decoded: malformed, bad UTF-8, bad JSON, unknown, more than one body.
    BadFrame = 4001, "bad_frame", Peer, Never;
    /// A frame, or a message that holds frames, over the limit.
    FrameTooLarge = 4002, "frame_too_large", Peer, Never;
    /// A frame that is not allowed now: anything before `connect`, a second `connect`.
    OutOfOrder = 4003, "out_of_order", Peer, Never;
    /// No valid token, and anonymous sessions are not allowed.
    Unauthorized = 4004, "unauthorized", Peer, FreshToken;
    /// The token expired and was not refreshed in time.
    TokenExpired = 4005, "token_expired", Peer, FreshToken;
    /// The page's origin is not on the allow-list.
    BadOrigin = 4006, "bad_origin", Peer, Never;
    /// A subprotocol, ALPN or encoding that this server does not speak.
    Unsupported = 4007, "unsupported", Peer, Never;
    /// The resume ticket is forged, malformed or spent.
    BadResume = 4008, "bad_resume", Peer, FreshToken;
    /// The session was resumed on another connection.
    Superseded = 4009, "superseded", Peer, Never;
    /// The server is going away.
    Shutdown = 4100, "shutdown", Local, Backoff;
    /// The server cannot take more connections.
    Overloaded = 4101, "overloaded", Local, Backoff;
    /// No `connect` frame in time.
    ConnectTimeout = 4102, "connect_timeout", Peer, Backoff;
    /// No pong in time.
    HeartbeatTimeout = 4103, "heartbeat_timeout", Peer, Backoff;
    /// The client does not read: its control frames, not only its channels, are over the bound.
    SlowConsumer = 4104, "slow_consumer", Peer, Backoff;
    /// Too many frames or requests in flight.
    TooManyRequests = 4105, "too_many_requests", Peer, Backoff;
    /// Our own fault.
    Internal = 4106, "internal", Local, Backoff;
    /// The core cannot be reached.
    CoreUnavailable = 4107, "core_unavailable", Upstream, Backoff;
    /// The network ended the connection; never sent, only counted.
    ConnectionLost = 4108, "connection_lost", Peer, Backoff;
    /// This edge does not know the long-poll session: resume here.
    UnknownSession = 4200, "unknown_session", Peer, Now;
    /// The resume ticket is too old: connect without it.
    ResumeExpired = 4201, "resume_expired", Peer, Now;
    /// The resume ticket was sealed with a key that this fleet does not have: connect without it.
    ResumeForeign = 4202, "resume_foreign", Peer, Now;
}

impl CloseCode {
    /// The frame that says so; `reason` is cut at 120 bytes, so that it fits a WebSocket close (RFC 6455 §5.5).
    pub fn frame(self, reason: &str) -> Close {
        let mut end = reason.len().min(120);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        Close {
            code: self.number(),
            reason: reason[..end].to_owned(),
            reconnect: Some(Reconnect { policy: self.policy().into(), after_ms: None, slot: None }),
        }
    }

    /// What to do after a close with `number`, also one that this version does not know.
    pub fn policy_of(number: u32) -> ReconnectPolicy {
        match (Self::from_number(number), number) {
            (Some(code), _) => code.policy(),
            (None, 4000..=4099) => ReconnectPolicy::Never,
            (None, 4200..=4299) => ReconnectPolicy::Now,
            (None, _) => ReconnectPolicy::Backoff,
        }
    }
}

/// Why one request failed; the session lives on. Numbers follow HTTP where HTTP has the notion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorCode {
    /// A field is missing or malformed.
    BadRequest = 400,
    /// The new token is not valid.
    Unauthorized = 401,
    /// The session may not do that on that channel.
    Forbidden = 403,
    /// Unknown namespace, or no such subscription.
    NotFound = 404,
    /// Already subscribed.
    Conflict = 409,
    /// The payload, key or reply is over its limit.
    TooLarge = 413,
    /// A limit of the session: subscriptions, requests in flight.
    TooMany = 429,
    /// Our own fault.
    Internal = 500,
    /// This server does not offer that.
    NotAvailable = 501,
    /// Try again later: the core or its queue is busy.
    Unavailable = 503,
}

impl ErrorCode {
    /// Every code, ascending.
    pub const ALL: &'static [Self] = &[
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::TooLarge,
        Self::TooMany,
        Self::Internal,
        Self::NotAvailable,
        Self::Unavailable,
    ];

    /// The number.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// By number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.number() == number)
    }

    /// The same request may succeed later.
    pub fn retry(self) -> bool {
        matches!(self, Self::TooMany | Self::Internal | Self::Unavailable)
    }

    /// The reply that says so.
    pub fn reply(self, message: impl Into<String>) -> ErrorReply {
        ErrorReply { code: self.number(), message: message.into(), retry: self.retry() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_their_range_agrees_with_the_policy() {
        let mut last = 0;
        for code in CloseCode::ALL {
            assert!(code.number() > last, "{code:?}");
            last = code.number();
            assert_eq!(CloseCode::from_number(last), Some(*code));
            match code.policy() {
                ReconnectPolicy::Never | ReconnectPolicy::FreshToken => assert!((4000..4100).contains(&last)),
                ReconnectPolicy::Backoff => assert!((4100..4200).contains(&last)),
                ReconnectPolicy::Now => assert!((4200..4300).contains(&last)),
            }
        }
        assert_eq!(CloseCode::policy_of(4042), ReconnectPolicy::Never);
        assert_eq!(CloseCode::policy_of(4242), ReconnectPolicy::Now);
        assert_eq!(CloseCode::policy_of(1006), ReconnectPolicy::Backoff);
    }

    #[test]
    fn reasons_are_cut_at_a_character() {
        let reason = "é".repeat(100);
        let close = CloseCode::Internal.frame(&reason);
        assert_eq!(close.reason.len(), 120);
        assert!(CloseCode::Internal.frame("é".repeat(60).as_str()).reason.ends_with('é'));
        assert_eq!(CloseCode::Internal.frame(&format!("x{reason}")).reason.len(), 119);
    }
}
