//! How nodes find each other, for whoever wants to stand in between.

use std::future::Future;
use std::net::SocketAddr;

use anyhow::Result;

/// Asked before a node starts.
pub trait Paths {
    /// The URLs by which the core with this index, from 0, finds the NATS servers.
    fn nats_urls(&mut self, core: usize, real: &[String])
    -> impl Future<Output = Result<Vec<String>>> + Send;

    /// The UDP address that the core with this index tells edges, which is going to listen at `real`.
    fn core_address(
        &mut self,
        core: usize,
        real: SocketAddr,
    ) -> impl Future<Output = Result<SocketAddr>> + Send;
}

/// With nothing in between.
#[derive(Debug, Clone, Copy, Default)]
pub struct Direct;

impl Paths for Direct {
    async fn nats_urls(&mut self, _core: usize, real: &[String]) -> Result<Vec<String>> {
        Ok(real.to_vec())
    }

    async fn core_address(&mut self, _core: usize, real: SocketAddr) -> Result<SocketAddr> {
        Ok(real)
    }
}
