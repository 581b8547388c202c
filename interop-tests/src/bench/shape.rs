//! What is measured: a transport, and how many publish how fast to how many.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// `--transport`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TransportChoice {
    /// WebSocket without TLS
    Ws,
    /// WebSocket over TLS 1.3
    Wss,
    /// Native QUIC
    Quic,
    /// WebTransport over HTTP/3
    Webtransport,
    /// Long poll over HTTP/1.1 with keep-alive, without TLS
    Longpoll,
    /// Each of them
    All,
}

/// How clients are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::enum_variant_names, reason = "WebTransport is called so")]
pub(super) enum Transport {
    Ws,
    Wss,
    Quic,
    WebTransport,
    LongPoll,
}

/// One way to load a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Shape {
    pub(super) subscribers: usize,
    pub(super) channels: usize,
    pub(super) payload: usize,
    pub(super) pace: Pace,
}

/// When the next publication is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Pace {
    /// So many outstanding.
    Window(usize),
    /// So many at once, and the next when everybody has all of them: so many wait for each client.
    Burst(usize),
    /// So many per second.
    Rate(usize),
}

impl Transport {
    /// What was asked for, in a fixed order, each once.
    pub(super) fn chosen(choices: &[TransportChoice]) -> Vec<Self> {
        [
            (TransportChoice::Ws, Self::Ws),
            (TransportChoice::Wss, Self::Wss),
            (TransportChoice::Quic, Self::Quic),
            (TransportChoice::Webtransport, Self::WebTransport),
            (TransportChoice::Longpoll, Self::LongPoll),
        ]
        .into_iter()
        .filter(|(choice, _)| choices.contains(choice) || choices.contains(&TransportChoice::All))
        .map(|(_, transport)| transport)
        .collect()
    }

    pub(super) fn is_udp(self) -> bool {
        matches!(self, Self::Quic | Self::WebTransport)
    }

    /// The shapes that are measured where none is given.
    pub(super) fn usual_shapes(self, payload: usize) -> Vec<Shape> {
        let shape = |channels: usize, each: usize, pace| Shape {
            subscribers: channels * each,
            channels,
            payload,
            pace,
        };
        if self.is_udp() {
            // A window of one is one publication per datagram.
            return vec![
                shape(1, 1_000, Pace::Window(1)),
                shape(1, 1_000, Pace::Burst(4)),
                shape(1, 5_000, Pace::Window(1)),
                shape(1_000, 5, Pace::Window(64)),
                shape(1, 1_000, Pace::Rate(15)),
            ];
        }
        vec![
            shape(1, 1_000, Pace::Window(1)),
            shape(1, 1_000, Pace::Window(4)),
            shape(1, 1_000, Pace::Burst(4)),
            shape(1, 10_000, Pace::Window(2)),
            shape(2_000, 5, Pace::Window(64)),
            shape(1, 1_000, Pace::Rate(15)),
        ]
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Quic => "quic",
            Self::WebTransport => "webtransport",
            Self::LongPoll => "longpoll",
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.subscribers / self.channels;
        write!(f, "{}x{each} ", self.channels)?;
        match self.pace {
            Pace::Window(window) => write!(f, "window {window}"),
            Pace::Burst(burst) => write!(f, "bursts of {burst}"),
            Pace::Rate(rate) => write!(f, "{rate}/s"),
        }
    }
}
