//! QUIC and WebTransport: accept, check, start the session.

use std::net::UdpSocket;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidegate_fallback::http::{check_origin, request_token};
use tidegate_protocol::frame::CloseCode;
use tidegate_protocol::grants::Identity;
use tidegate_transport::quic::{
    Incoming, Pending, QuicConnection, QuicEndpoint, QuicPending, QuicServer, WebTransportPending,
};
use tracing::{debug, error};

use super::entrance::{admit_incoming, refuse_incoming};
use super::tcp::failed;
use crate::connection::{self, Entrance};
use crate::worker::{Admitted, Worker};

/// What is left to close when a worker ends.
#[derive(Default)]
pub(crate) struct Listeners {
    pub(super) quic: Option<Rc<QuicEndpoint>>,
    pub(super) http3: Option<Rc<QuicEndpoint>>,
}

impl Listeners {
    /// Ends what is left, and waits until the last packets are out, within a bound: who closes the socket need not
    /// drain to the end (RFC 9000 §10.2). quinn alone would wait for the idle timeout of a connection whose very first
    /// packet was a close: it drains without a timer of its own.
    pub(crate) async fn close(self) {
        let endpoints: Vec<_> = [self.quic, self.http3].into_iter().flatten().collect();
        for endpoint in &endpoints {
            endpoint.close(CloseCode::Shutdown, "the server is going away");
        }
        let idle = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        if tokio::time::timeout(LAST_PACKETS, idle).await.is_err() {
            let left: usize = endpoints.iter().map(|endpoint| endpoint.open_connections()).sum();
            debug!(left, "QUIC connections were not drained to the end");
        }
    }
}

/// Accepts until the worker drains.
pub(super) fn serve(
    worker: &Rc<Worker>,
    server: &Arc<QuicServer>,
    socket: UdpSocket,
) -> Option<Rc<QuicEndpoint>> {
    let endpoint = match server.endpoint(socket, usize::from(worker.index())) {
        Ok(endpoint) => Rc::new(endpoint),
        Err(error) => {
            error!(%error, "QUIC cannot be served");
            return None;
        }
    };
    let drain = worker.shared().drain.clone();
    let accepting = Rc::clone(worker);
    let listening = Rc::clone(&endpoint);
    worker.spawn(async move {
        loop {
            let incoming = tokio::select! {
                biased;
                () = drain.cancelled() => {
                    listening.stop_accepting();
                    return;
                }
                incoming = listening.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            match accepting.admit().filter(|_| has_room(&accepting, &listening)) {
                Some(admitted) => {
                    let Some((incoming, entrance)) = admit_incoming(&accepting, incoming) else { continue };
                    let worker = Rc::clone(&accepting);
                    // Boxed: the handshake's state is large, and gone once the session's own task runs.
                    let drain = drain.clone();
                    accepting.spawn(Box::pin(async move {
                        tokio::select! {
                            () = begin(worker, incoming, admitted, entrance) => {}
                            // Whoever is still at it has nothing to lose.
                            () = drain.cancelled() => {}
                        }
                    }));
                }
                None => refuse_incoming(&accepting, incoming),
            }
        }
    });
    Some(endpoint)
}

/// Whether a worker's endpoint takes one more. Connections that have ended hold memory while they drain, and count
/// against the node's bound no more; somebody who only opens and closes makes nothing else.
pub(super) fn has_room(worker: &Worker, endpoint: &QuicEndpoint) -> bool {
    let limits = worker.limits();
    endpoint.open_connections() < limits.connections.saturating_add(limits.quic.max_incoming)
}

async fn begin(worker: Rc<Worker>, incoming: Incoming, admitted: Admitted, entrance: Entrance) {
    if let Entrance::Decided(entry) = &entrance {
        // Nothing but its first packets is held meanwhile.
        entry.wait().await;
    }
    let pending = match incoming.handshake().await {
        Ok(pending) => pending,
        Err(error) => {
            debug!(%error, "QUIC handshake failed");
            return failed(&worker, "quic");
        }
    };
    let limit = worker.limits().connect;
    let begun = match pending {
        Pending::Quic(pending) => tokio::time::timeout(limit, native(pending)).await,
        Pending::WebTransport(pending) => tokio::time::timeout(limit, web_transport(&worker, pending)).await,
    };
    match begun {
        Ok(Some((connection, identity))) => {
            let id = worker.new_session_id();
            connection::start(&worker, id, Box::new(connection), identity, admitted, entrance);
        }
        Ok(None) => failed(&worker, "refused"),
        Err(_) => failed(&worker, "timeout"),
    }
}

type Begun = Option<(QuicConnection, Option<Identity>)>;

async fn native(pending: QuicPending) -> Begun {
    match pending.accept().await {
        Ok(connection) => Some((connection, None)),
        Err(error) => {
            debug!(%error, "no control stream");
            None
        }
    }
}

/// Checks the request before the session is accepted: path, origin, token.
async fn web_transport(worker: &Worker, pending: WebTransportPending) -> Begun {
    let identity = match check(worker, &pending) {
        Ok(identity) => identity,
        Err((status, reason)) => {
            debug!(%status, reason, "WebTransport refused");
            pending.reject(status).await;
            return None;
        }
    };
    match pending.accept().await {
        Ok(connection) => Some((connection, identity)),
        Err(error) => {
            debug!(%error, "no WebTransport session");
            None
        }
    }
}

fn check(
    worker: &Worker,
    pending: &WebTransportPending,
) -> Result<Option<Identity>, (::http::StatusCode, String)> {
    use ::http::StatusCode;
    if pending.path() != "/v1/connect" {
        return Err((StatusCode::NOT_FOUND, "unknown path".to_owned()));
    }
    check_origin(&worker.shared().origins, pending.headers())
        .map_err(|error| (StatusCode::FORBIDDEN, error.to_string()))?;
    // Only the query is looked at.
    let uri = ::http::Uri::try_from(format!("/?{}", pending.query().unwrap_or_default()))
        .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let token = request_token(pending.headers(), &uri, worker.limits().token)
        .map_err(|error| (StatusCode::UNAUTHORIZED, error.to_string()))?;
    match token {
        Some(token) => worker
            .authenticate(token.reveal())
            .map(Some)
            .map_err(|error| (StatusCode::UNAUTHORIZED, error.to_string())),
        None => Ok(None),
    }
}

/// For the last packets to get out: three PTOs of most paths.
const LAST_PACKETS: Duration = Duration::from_secs(1);
