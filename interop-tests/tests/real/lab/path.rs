//! MTU, NAT, blocked UDP, black holes, outages.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tidegate_interop_tests::lab::{Lab, LabConfig, PUBLIC};
use tidegate_interop_tests::wait::PATIENCE;
use tidegate_transport::clock;
use tidegate_transport::netem::Profile;

use super::probe::{client_socket, server_address, server_socket, until};

#[test]
fn what_is_larger_than_the_mtu_vanishes() -> Result<()> {
    let lab = Lab::start(LabConfig { up: Profile::default().with_mtu(1_200), ..LabConfig::default() })?;
    let (client, server) = (client_socket(&lab)?, server_socket(&lab)?);
    for payload in [1_173, 1_172] {
        client.send_to(&vec![1; payload], server_address(&lab))?;
    }
    let mut buffer = [0; 2_000];
    ensure!(server.recv(&mut buffer)? == 1_172, "1,200 bytes pass and 1,201 do not");
    ensure!(lab.control().counters().up.too_big == 1, "{:?}", lab.control().counters());
    Ok(())
}

#[test]
fn the_devices_mtu_is_what_programs_see() -> Result<()> {
    let lab = Lab::start(LabConfig { mtu: 1_300, ..LabConfig::default() })?;
    let output = lab.client().command("cat").arg("/sys/class/net/lab0/mtu").output()?;
    ensure!(output.stdout == b"1300\n", "{output:?}");
    Ok(())
}

#[test]
fn rebinding_changes_the_port_and_kills_the_old_mapping() -> Result<()> {
    let lab = Lab::start(LabConfig::default())?;
    let (client, server) = (client_socket(&lab)?, server_socket(&lab)?);
    let mut tcp = TcpPair::open(&lab)?;
    let before = arrives(&lab, &client, &server)?;
    ensure!(before.ip() == IpAddr::from(PUBLIC), "{before}");
    ensure!(arrives(&lab, &client, &server)? == before, "a mapping stays without reason to go");
    lab.control().rebind_nat_udp();
    let after = arrives(&lab, &client, &server)?;
    ensure!(after.ip() == before.ip() && after.port() != before.port(), "{before} became {after}");
    // The link keeps the order: were the old mapping alive, its packet would come first.
    server.send_to(b"old", before)?;
    server.send_to(b"new", after)?;
    ensure!(receives(&client)? == b"new", "the old mapping is alive");
    ensure!(lab.control().counters().path.nat.unmapped == 1, "{:?}", lab.control().counters().path);
    tcp.exchange().context("TCP was not rebound")?;

    lab.control().rebind_nat();
    tcp.client.write_all(b"lost")?;
    until("the TCP connection's end", || tcp.is_reset())
}

#[test]
fn another_public_address_is_another_client() -> Result<()> {
    let mut lab = Lab::start(LabConfig::default())?;
    let (client, server) = (client_socket(&lab)?, server_socket(&lab)?);
    let before = arrives(&lab, &client, &server)?;
    let public = lab.control().change_address().context("there is a NAT")?;
    let after = arrives(&lab, &client, &server)?;
    ensure!(after.ip() == IpAddr::from(public) && after.ip() != before.ip(), "{before} became {after}");
    // The client's own address may change as well: an unbound socket goes on.
    lab.move_client([10, 77, 0, 9].into())?;
    let moved = arrives(&lab, &client, &server)?;
    ensure!(moved.port() != after.port(), "behind the NAT it is another socket");
    server.send_to(b"there", moved)?;
    ensure!(receives(&client)? == b"there", "the way back leads to the new address");
    Ok(())
}

#[test]
fn without_a_nat_the_server_sees_the_client() -> Result<()> {
    let lab = Lab::start(LabConfig { nat: None, ..LabConfig::default() })?;
    let (client, server) = (client_socket(&lab)?, server_socket(&lab)?);
    let seen = arrives(&lab, &client, &server)?;
    ensure!(seen == SocketAddr::from((lab.client().address(), client.local_addr()?.port())), "{seen}");
    Ok(())
}

#[test]
fn blocked_udp_leaves_tcp_alone() -> Result<()> {
    let lab = Lab::start(LabConfig::default())?;
    let (client, server) = (client_socket(&lab)?, server_socket(&lab)?);
    lab.control().block_udp(true);
    for _ in 0..5 {
        client.send_to(b"no", server_address(&lab))?;
    }
    TcpPair::open(&lab)?.exchange()?;
    until("five blocked packets", || lab.control().counters().path.blocked == 5)?;
    lab.control().block_udp(false);
    client.send_to(b"yes", server_address(&lab))?;
    ensure!(receives(&server)? == b"yes", "what was blocked must not come");

    lab.control().block_udp_ports(vec![server_address(&lab).port()]);
    let other = lab.server().run(|| UdpSocket::bind("0.0.0.0:7001"))??;
    other.set_read_timeout(Some(PATIENCE))?;
    client.send_to(b"no", server_address(&lab))?;
    client.send_to(b"yes", (lab.server().address(), 7_001))?;
    ensure!(receives(&other)? == b"yes", "the other port is open");
    ensure!(lab.control().counters().path.blocked == 6, "{:?}", lab.control().counters().path);
    Ok(())
}

#[test]
fn a_black_hole_opens_behind_the_handshake() -> Result<()> {
    let lab = Lab::start(LabConfig::default())?;
    let (client, server) = (client_socket(&lab)?, server_socket(&lab)?);
    lab.control().black_hole_udp_after(2);
    let seen = arrives(&lab, &client, &server)?;
    server.send_to(b"hello", seen)?;
    ensure!(receives(&client)? == b"hello", "two packets pass");
    client.send_to(b"swallowed", server_address(&lab))?;
    server.send_to(b"swallowed", seen)?;
    until("two in the hole", || lab.control().counters().path.blocked == 2)?;
    TcpPair::open(&lab)?.exchange()?;
    Ok(())
}

#[test]
fn an_outage_ends_and_tcp_survives_it() -> Result<()> {
    const LENGTH: Duration = Duration::from_millis(400);
    let lab = Lab::start(LabConfig::default())?;
    let (client, server) = (client_socket(&lab)?, server_socket(&lab)?);
    let mut tcp = TcpPair::open(&lab)?;
    tcp.exchange()?;
    let begin = clock::now();
    lab.control().outage(LENGTH);
    tcp.client.write_all(b"ping")?;
    server.set_read_timeout(Some(Duration::from_millis(5)))?;
    let mut sent = 0_u32;
    let took = loop {
        client.send_to(b"?", server_address(&lab))?;
        sent += 1;
        if server.recv(&mut [0; 16]).is_ok() {
            break begin.elapsed();
        }
        ensure!(begin.elapsed() < PATIENCE, "nothing came");
    };
    ensure!(took >= LENGTH, "something came after {took:?}");
    ensure!(sent > 2, "{sent} sent");
    let mut buffer = [0; 4];
    tcp.server.read_exact(&mut buffer).context("TCP repeats what the outage took")?;
    ensure!(lab.control().counters().up.outage > 2, "{:?}", lab.control().counters().up);
    Ok(())
}

#[test]
fn the_profile_changes_while_it_runs() -> Result<()> {
    let lab = Lab::start(LabConfig::default())?;
    let (client, server) = (client_socket(&lab)?, server_socket(&lab)?);
    arrives(&lab, &client, &server)?;
    let delay = Duration::from_millis(100);
    lab.control().set_profiles(Profile::delay(delay), Profile::default());
    let begin = clock::now();
    arrives(&lab, &client, &server)?;
    ensure!(begin.elapsed() >= delay, "after {:?}", begin.elapsed());
    Ok(())
}

/// Sends one from the client; whom the server thinks it is from.
fn arrives(lab: &Lab, client: &UdpSocket, server: &UdpSocket) -> Result<SocketAddr> {
    client.send_to(b"?", server_address(lab))?;
    Ok(server.recv_from(&mut [0; 16]).context("at the server")?.1)
}

fn receives(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut buffer = [0; 16];
    let len = socket.recv(&mut buffer).context("receiving")?;
    Ok(buffer[..len].to_vec())
}

/// A TCP connection through the link.
struct TcpPair {
    client: TcpStream,
    server: TcpStream,
}

impl TcpPair {
    fn open(lab: &Lab) -> Result<Self> {
        let listener = lab.server().run(|| TcpListener::bind("0.0.0.0:0"))??;
        let address = (lab.server().address(), listener.local_addr()?.port());
        let accepting = thread::spawn(move || listener.accept());
        let client = lab.client().run(|| TcpStream::connect(address))?.context("connecting")?;
        let (server, _) = accepting.join().ok().context("the listener panicked")??;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self { client, server })
    }

    fn exchange(&mut self) -> Result<()> {
        let mut buffer = [0; 4];
        self.client.write_all(b"ping")?;
        self.server.read_exact(&mut buffer)?;
        self.server.write_all(b"pong")?;
        self.client.read_exact(&mut buffer)?;
        ensure!(&buffer == b"pong", "{buffer:?}");
        Ok(())
    }

    /// The server's kernel knows no connection with the new port and says so.
    fn is_reset(&mut self) -> bool {
        self.client.write(b"x").is_err()
    }
}
