//! HTTP/3: the same endpoints as on TCP, on a UDP port of its own: who asks for WebTransport goes elsewhere.

use std::net::UdpSocket;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use tidegate_transport::quic::{
    Http3Answer, Http3Body, Http3Connection, Http3Limits, Http3Request, Incoming, QuicEndpoint, QuicError,
    QuicServer,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use super::entrance::{arrive_incoming, refuse_incoming};
use super::http::{self, Carrier};
use super::quic::has_room;
use super::tcp::failed;
use crate::door::Visitor;
use crate::worker::{Admitted, Worker};

/// Accepts until the node drains and every long poll has been told.
pub(super) fn serve(
    worker: &Rc<Worker>,
    server: &Arc<QuicServer>,
    socket: UdpSocket,
) -> Option<Rc<QuicEndpoint>> {
    let endpoint = match server.endpoint(socket, usize::from(worker.index())) {
        Ok(endpoint) => Rc::new(endpoint),
        Err(error) => {
            error!(%error, "HTTP/3 cannot be served");
            return None;
        }
    };
    let shared = Arc::clone(worker.shared());
    let accepting = Rc::clone(worker);
    let listening = Rc::clone(&endpoint);
    worker.spawn(async move {
        let farewell = shared.farewell();
        tokio::pin!(farewell);
        loop {
            let incoming = tokio::select! {
                biased;
                () = &mut farewell => {
                    listening.stop_accepting();
                    return;
                }
                incoming = listening.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            match accepting.admit_connection().filter(|_| has_room(&accepting, &listening)) {
                Some(admitted) => {
                    let Some((incoming, visitor)) = arrive_incoming(&accepting, incoming) else { continue };
                    let worker = Rc::clone(&accepting);
                    accepting.spawn(Box::pin(begin(worker, incoming, admitted, visitor)));
                }
                None => refuse_incoming(&accepting, incoming),
            }
        }
    });
    Some(endpoint)
}

async fn begin(worker: Rc<Worker>, incoming: Incoming, admitted: Admitted, visitor: Visitor) {
    let limits = Http3Limits { headers: worker.limits().http_headers, body: worker.limits().http_body };
    let shaken = tokio::select! {
        shaken = incoming.http3(limits) => shaken,
        // Whoever is still at it has nothing to lose.
        () = worker.shared().farewell() => return,
    };
    match shaken {
        Ok(connection) => requests(Rc::new(Carrier::over_http3(&worker, visitor)), connection).await,
        Err(error) => {
            debug!(%error, "HTTP/3 handshake failed");
            failed(&worker, "quic");
        }
    }
    drop(admitted);
}

/// Answers one connection's requests, at most as many at once as it may have streams.
async fn requests(carrier: Rc<Carrier>, mut connection: Http3Connection) {
    let worker = carrier.worker();
    let gone = CancellationToken::new();
    let requests = TaskTracker::new();
    let farewell = worker.shared().farewell();
    tokio::pin!(farewell);
    let mut leaving = false;
    loop {
        let request = tokio::select! {
            biased;
            () = &mut farewell, if !leaving => {
                leaving = true;
                connection.go_away().await;
                requests.close();
                continue;
            }
            request = connection.accept() => request,
            // Told to go, and nothing is left to be answered.
            () = requests.wait(), if leaving => break,
        };
        let Some(request) = request else {
            // Nobody is there to read the rest.
            gone.cancel();
            break;
        };
        let (answering, gone) = (Rc::clone(&carrier), gone.clone());
        requests.spawn_local(async move {
            tokio::select! {
                () = answer(&answering, request) => {}
                () = gone.cancelled() => {}
            }
        });
    }
    requests.close();
    requests.wait().await;
    connection.close();
}

async fn answer(carrier: &Carrier, request: Http3Request) {
    let read = tokio::time::timeout(carrier.worker().limits().handshake, request.read()).await;
    let Ok(Ok((head, mut stream, body))) = read else {
        debug!("no HTTP/3 request");
        return;
    };
    let head = head.map(|()| RequestBody(body));
    let response = http::respond(carrier, head).await;
    if let Err(error) = send(&mut stream, response).await {
        debug!(%error, "an HTTP/3 answer broke off");
        return stream.reset();
    }
    if let Err(error) = stream.finish().await {
        debug!(%error, "an HTTP/3 answer was not taken");
    }
}

/// As fast as the client takes it, and no faster: an answer that comes over time is asked for more only then.
async fn send(
    stream: &mut Http3Answer,
    response: ::http::Response<crate::events::AnswerBody>,
) -> Result<(), QuicError> {
    let (head, mut body) = response.into_parts();
    stream.head(::http::Response::from_parts(head, ())).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.unwrap_or_else(|never| match never {});
        if let Ok(data) = frame.into_data() {
            stream.data(data).await?;
        }
    }
    Ok(())
}

struct RequestBody(Http3Body);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = QuicError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, QuicError>>> {
        self.get_mut().0.poll_data(cx).map(|data| data.map(|data| data.map(Frame::data)).transpose())
    }
}
