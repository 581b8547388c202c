//! What the operator says by signals.

use anyhow::Context as _;
use tokio::signal::unix::{self, SignalKind};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// `SIGHUP`.
    Reload,
    /// `SIGTERM` or `SIGINT`, by name.
    End(&'static str),
}

/// Signals since [`Signals::listen`].
pub(super) struct Signals {
    hangup: unix::Signal,
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| unix::signal(kind).context("cannot listen for signals");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            Some(()) = self.terminate.recv() => Signal::End("SIGTERM"),
            Some(()) = self.interrupt.recv() => Signal::End("SIGINT"),
            Some(()) = self.hangup.recv() => Signal::Reload,
            // Only when the runtime ends: nothing will come any more.
            else => Signal::End("none"),
        }
    }

    /// A request to end; others are passed over.
    pub(super) async fn end(&mut self) {
        while self.next().await == Signal::Reload {}
    }
}
