//! `/v1/drain` of the backend API: moving the clients of nodes to others, asked for at any node of the cluster.

mod answer;
mod desk;
mod request;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tidegate_core::BackendApi;
use tidegate_protocol::NodeId;
use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::drain::DrainQuestion;

pub(super) use desk::Desk;
use request::{Order, Which};

/// What is refused, and how.
#[derive(Debug)]
struct Refusal {
    code: ErrorCode,
    message: String,
}

impl Refusal {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// True for what [`answer`] answers.
pub(super) fn matches(path: &str) -> bool {
    matches!(path, DRAIN | PAUSE | RESUME)
}

/// `POST` begins, `GET` says how far it is, `DELETE` calls it off; `POST` to `/pause` and `/resume`.
pub(super) async fn answer(
    desk: &Desk,
    api: &BackendApi,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = match api.admit(request).await {
        Ok(body) => body,
        Err(answer) => return *answer,
    };
    let answered = match (path.as_str(), &method) {
        (DRAIN, &Method::GET) => look(desk, &query).await,
        (DRAIN, &Method::POST) => order(desk, &body).await,
        (DRAIN, &Method::DELETE) => change(desk, &query, DrainQuestion::Abort).await,
        (PAUSE, &Method::POST) => change(desk, &query, DrainQuestion::Pause).await,
        (RESUME, &Method::POST) => change(desk, &query, DrainQuestion::Resume).await,
        (path, _) => {
            let allowed = if path == DRAIN { "GET, POST, DELETE" } else { "POST" };
            let mut answer = refuse(ErrorCode::BadRequest, &format!("{allowed} only"));
            *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            return answer;
        }
    };
    match answered {
        Ok(answer) => respond(StatusCode::OK, &answer),
        Err(Refusal { code, message }) => refuse(code, &message),
    }
}

async fn order(desk: &Desk, body: &[u8]) -> Result<Value, Refusal> {
    let order: Order =
        request::parse(body).map_err(|problem| Refusal::new(ErrorCode::BadRequest, problem))?;
    let edges = desk.edges();
    let nodes = desk.select(&edges, &order.which)?;
    let to = desk::destinations(&edges, &order)?;
    if order.dry_run {
        return Ok(answer::dry_run(&edges, &nodes, &to, order.within));
    }
    let question = DrainQuestion::Order(desk.order(to, order.within));
    desk.ask_all(&edges, nodes, &question).await
}

async fn look(desk: &Desk, query: &str) -> Result<Value, Refusal> {
    let which = request::which(query).map_err(|problem| Refusal::new(ErrorCode::BadRequest, problem))?;
    let edges = desk.edges();
    let nodes = match which {
        // Everything that goes on, and how it is here.
        Which::Here | Which::All => desk.drained(&edges, true),
        // Who ends once it is drained may be gone.
        Which::Nodes(names) => names.iter().map(|name| NodeId::new(name)).collect(),
        which => desk.select(&edges, &which)?,
    };
    Ok(desk.look_at(&edges, nodes).await)
}

async fn change(desk: &Desk, query: &str, question: DrainQuestion) -> Result<Value, Refusal> {
    let which = request::which(query).map_err(|problem| Refusal::new(ErrorCode::BadRequest, problem))?;
    let edges = desk.edges();
    let nodes = match which {
        Which::All => desk.drained(&edges, false),
        which => desk.select(&edges, &which)?,
    };
    desk.ask_all(&edges, nodes, &question).await
}

fn refuse(code: ErrorCode, message: &str) -> Response<Full<Bytes>> {
    let status = u16::try_from(code.number()).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let error = json!({ "error": code.reply(message) });
    let mut response = respond(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &error);
    if code == ErrorCode::Unavailable {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

const DRAIN: &str = "/v1/drain";
const PAUSE: &str = "/v1/drain/pause";
const RESUME: &str = "/v1/drain/resume";
