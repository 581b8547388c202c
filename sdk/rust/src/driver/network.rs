//! Which network the client is in, as far as its own address tells.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::endpoint::Endpoint;

/// The prefix of the address that packets to the server leave from: /24, or /64. Nothing is sent. Empty where it cannot be
/// told.
pub(super) async fn key(endpoint: Endpoint) -> String {
    let lookup = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port));
    let address = match tokio::time::timeout(LOOKUP, lookup).await {
        Ok(Ok(mut addresses)) => addresses.next(),
        _ => None,
    };
    address.and_then(local_address).map(prefix).unwrap_or_default()
}

fn local_address(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn prefix(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// A name that is not resolved by then is not waited for: the dial needs it too.
const LOOKUP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn networks_are_told_by_the_prefix_of_the_own_address() {
        assert_eq!(key(Endpoint::parse("quic://127.0.0.1:9").unwrap()).await, "127.0.0.0/24");
        assert_eq!(prefix("2001:db8:1:2:3:4:5:6".parse().unwrap()), "2001:db8:1:2::/64");
    }
}
