//! What is between client and server, under the test's control: a NAT that forgets, and somebody who listens.

use std::sync::{Mutex, MutexGuard};

use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::*;

/// Passes the datagrams of one client on to the server, and back.
pub(super) struct Relay {
    /// What the client takes for the server.
    pub(super) address: SocketAddr,
    rules: Arc<Mutex<Rules>>,
    changed: Arc<Notify>,
    _task: JoinSet<()>,
}

#[derive(Default)]
pub(super) struct Rules {
    /// Everything that the client has sent.
    pub(super) recorded: Vec<Vec<u8>>,
    /// Keeps what the client sends until this is false.
    pub(super) hold_client: bool,
    /// Keeps what the server sends until this is false.
    pub(super) hold_server: bool,
    /// Loses what the client sends until a datagram of so many bytes comes.
    pub(super) lose_below: Option<usize>,
    /// Loses so many datagrams of the server's.
    pub(super) lose_answers: usize,
    /// Loses everything, both ways.
    pub(super) outage: bool,
    /// The server is to see the client at another port.
    pub(super) rebind: bool,
}

impl Relay {
    pub(super) async fn start(server: SocketAddr) -> Self {
        let client_side = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = client_side.local_addr().unwrap();
        let (rules, changed) = (Arc::<Mutex<Rules>>::default(), Arc::<Notify>::default());
        let mut task = JoinSet::new();
        task.spawn(run(client_side, server, rules.clone(), changed.clone()));
        Self { address, rules, changed, _task: task }
    }

    /// Changes the rules.
    pub(super) fn set(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules());
        self.changed.notify_one();
    }

    pub(super) fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap()
    }
}

/// Towards `server`, from a port of its own.
pub(super) async fn socket_to(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

async fn run(client_side: UdpSocket, server: SocketAddr, rules: Arc<Mutex<Rules>>, changed: Arc<Notify>) {
    let mut server_side = socket_to(server).await;
    let mut client = None;
    let (mut from_client, mut from_server) = (VecDeque::<Vec<u8>>::new(), VecDeque::<Vec<u8>>::new());
    let (mut up, mut down) = ([0; 2048], [0; 2048]);
    loop {
        let (rebind, hold_client, hold_server) = {
            let mut rules = rules.lock().unwrap();
            (std::mem::take(&mut rules.rebind), rules.hold_client, rules.hold_server)
        };
        if rebind {
            server_side = socket_to(server).await;
        }
        while let Some(datagram) = if hold_client { None } else { from_client.pop_front() } {
            // Refused where the server is gone: lost then, as on any other path.
            let _lost = server_side.send(&datagram).await;
        }
        while let Some(datagram) = if hold_server { None } else { from_server.pop_front() } {
            let _lost = client_side.send_to(&datagram, client.unwrap()).await;
        }
        tokio::select! { biased;
            () = changed.notified() => {}
            Ok((length, from)) = client_side.recv_from(&mut up) => {
                client = Some(from);
                let mut rules = rules.lock().unwrap();
                rules.recorded.push(up[..length].to_vec());
                if !rules.outage && rules.lose_below.is_none_or(|limit| length >= limit) {
                    rules.lose_below = None;
                    from_client.push_back(up[..length].to_vec());
                }
            }
            Ok(length) = server_side.recv(&mut down) => {
                let mut rules = rules.lock().unwrap();
                if rules.lose_answers > 0 {
                    rules.lose_answers -= 1;
                } else if !rules.outage {
                    from_server.push_back(down[..length].to_vec());
                }
            }
        }
    }
}
