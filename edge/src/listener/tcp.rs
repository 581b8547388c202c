//! TCP: accept, TLS, HTTP.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};

use super::http;
use crate::door::{Arrival, Visitor};
use crate::metrics::HandshakeLabels;
use crate::worker::{Admitted, Worker};

/// Accepts until the node drains and every long poll has been told: the poll may come on a new connection. Or until another
/// process does.
pub(super) fn serve(worker: &Rc<Worker>, listener: std::net::TcpListener, tls: Option<Arc<ServerConfig>>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            error!(%error, "a listener cannot be served");
            return;
        }
    };
    let acceptor = tls.map(TlsAcceptor::from);
    let worker = Rc::clone(worker);
    let shared = Arc::clone(worker.shared());
    let accepting = Rc::clone(&worker);
    worker.spawn(async move {
        let farewell = shared.farewell();
        tokio::pin!(farewell);
        tokio::select! {
            () = &mut farewell => return,
            () = shared.open.cancelled() => {}
        }
        loop {
            tokio::select! {
                biased;
                () = &mut farewell => return,
                () = shared.handed_over.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => begin(&accepting, stream, from.ip(), acceptor.clone()),
                    Err(error) => {
                        // Out of descriptors, most likely: accepting again at once would spin.
                        warn!(%error, "cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    });
}

fn begin(worker: &Rc<Worker>, stream: TcpStream, from: IpAddr, acceptor: Option<TlsAcceptor>) {
    let Some(admitted) = worker.admit_connection() else {
        // Dropped before any byte: the cheapest refusal there is.
        failed(worker, "overloaded");
        return;
    };
    // A TLS handshake is dear, and what follows it cheap: without one, only what is asked for is decided about.
    let visitor = match &acceptor {
        None => worker.shared().door.visitor(from),
        Some(_) => match worker.shared().door.arrive(from, true) {
            Arrival::Pass(visitor) => visitor,
            Arrival::Unvalidated | Arrival::Busy => return failed(worker, "busy"),
        },
    };
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "no TCP_NODELAY");
    }
    // A client that acknowledges nothing for so long is gone: a stream of events has no pong that would tell.
    let patience = 2 * (worker.limits().ping + worker.limits().pong);
    if let Err(error) = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(patience)) {
        debug!(%error, "no TCP_USER_TIMEOUT");
    }
    match acceptor {
        None => http::serve(worker, stream, admitted, visitor, false),
        Some(acceptor) => {
            let handshaking = Rc::clone(worker);
            worker.spawn(async move { handshake(handshaking, stream, acceptor, admitted, visitor).await });
        }
    }
}

async fn handshake(
    worker: Rc<Worker>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    admitted: Admitted,
    visitor: Visitor,
) {
    // Boxed: the handshake's state is large, and the task's memory would keep its size.
    let handshake = Box::pin(tokio::time::timeout(worker.limits().handshake, acceptor.accept(stream)));
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        // Whoever is still at it has nothing to lose.
        () = worker.shared().farewell() => return,
    };
    match shaken {
        Ok(Ok(stream)) => http::serve(&worker, Box::new(stream), admitted, visitor, true),
        Ok(Err(error)) => {
            debug!(%error, "TLS handshake failed");
            failed(&worker, "tls");
        }
        Err(_) => failed(&worker, "timeout"),
    }
}

pub(super) fn failed(worker: &Worker, reason: &'static str) {
    worker.metrics().handshake_failures.get_or_create(&HandshakeLabels { reason }).inc();
}

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
