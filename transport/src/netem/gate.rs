//! Sans-io: a firewall that dislikes UDP.

use super::ipv4::{Flow, Transport};

/// What happens to UDP, silently and both ways. TCP and ICMP echo always pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum UdpGate {
    /// It passes.
    #[default]
    Open,
    /// It does not: blocked from the start, or a black hole from the moment that this is set.
    Closed,
    /// It passes except to and from these ports of the server.
    ClosedPorts(Vec<u16>),
    /// So many more packets pass, both ways together, then none: a black hole behind the handshake.
    ClosesAfter(u64),
}

impl UdpGate {
    /// Whether a packet passes. `server_port` is the port at the server's end.
    pub(super) fn passes(&mut self, flow: &Flow, server_port: u16) -> bool {
        if flow.transport != Transport::Udp {
            return true;
        }
        match self {
            Self::Open => true,
            Self::Closed => false,
            Self::ClosedPorts(ports) => !ports.contains(&server_port),
            Self::ClosesAfter(0) => false,
            Self::ClosesAfter(left) => {
                *left -= 1;
                true
            }
        }
    }
}
