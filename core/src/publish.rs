//! The backend API: `POST /v1/publish`, `GET /v1/channels/{channel}/history` and `/presence`, for the app's own server;
//! `GET /v1/status`, for its operators.

mod answer;
mod request;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use tidegate_protocol::frame::ErrorCode;
use tidegate_protocol::link::Recovery;
use tidegate_transport::link::Backend;

use answer::{ApiError, BatchAnswer, HistoryAnswer, PublishAnswer, json, presence_answer};
use request::{HistoryQuery, Publishes, decode_channel, parse_history, parse_publishes};

/// For fuzz targets: reads `body` as that of a publish request; how many publications it holds, good or bad.
#[doc(hidden)]
pub fn fuzz_publishes(body: &[u8]) -> usize {
    let config = BackendConfig::default();
    match parse_publishes(&config, &HeaderMap::new(), &Bytes::copy_from_slice(body)) {
        Ok(Publishes::One(_)) => 1,
        Ok(Publishes::Batch(publications)) => {
            assert!(publications.len() <= config.max_batch);
            publications.len()
        }
        Err(_) => 0,
    }
}

/// For fuzz targets: reads an address of a history request.
#[doc(hidden)]
pub fn fuzz_history(channel: &str, query: &str) -> bool {
    parse_history(channel, query).is_ok()
}

/// Who may use the backend API.
#[derive(Clone, PartialEq, Eq)]
pub enum BackendAccess {
    /// Whoever can reach the listener; for `dev`.
    Open,
    /// Who has one of these keys. Without any: nobody.
    Keys(Vec<String>),
}

impl std::fmt::Debug for BackendAccess {
    /// Keys never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => f.write_str("Open"),
            Self::Keys(keys) => write!(f, "Keys({})", keys.len()),
        }
    }
}

/// Bounds of the backend API.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// Who may use it.
    pub access: BackendAccess,
    /// The largest request body, bytes.
    pub max_body: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// The longest idempotency key, bytes.
    pub max_key: usize,
    /// The most publications in one request. Keep it below `CoreConfig::backend_in_flight`.
    pub max_batch: usize,
}

impl Default for BackendConfig {
    /// Nobody gets in until keys are named.
    fn default() -> Self {
        Self {
            access: BackendAccess::Keys(Vec::new()),
            max_body: 4 << 20,
            body_timeout: Duration::from_secs(10),
            max_key: 128,
            max_batch: 1000,
        }
    }
}

/// The backend API over a node, or over links to nodes. Clones are the same.
#[derive(Debug, Clone)]
pub struct BackendApi {
    backend: Arc<dyn Backend>,
    config: Arc<BackendConfig>,
}

impl BackendApi {
    /// The API over `backend`.
    pub fn new(backend: Arc<dyn Backend>, config: BackendConfig) -> Self {
        Self { backend, config: Arc::new(config) }
    }

    /// True for the paths that [`Self::handle`] answers with something else than 404.
    pub fn matches(&self, path: &str) -> bool {
        Route::of(path).is_some()
    }

    /// Answers one request. Every answer is JSON; errors are `{"error":{"code","message","retry"}}` with the code as
    /// status.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let Some(route) = Route::of(parts.uri.path()) else {
            return ApiError::new(ErrorCode::NotFound, format!("there is nothing at {}", parts.uri.path()))
                .response();
        };
        if parts.method != route.method() {
            return ApiError::method_not_allowed(&parts.method, route.method()).response();
        }
        let result = match self.authorize(&parts.headers) {
            Err(error) => Err(error),
            Ok(()) => match route {
                Route::Publish => self.publish(&parts.headers, body).await,
                Route::History { channel } => {
                    self.history(channel, parts.uri.query().unwrap_or_default()).await
                }
                Route::Presence { channel } => self.presence(channel).await,
                Route::Status => self.status().await,
            },
        };
        result.unwrap_or_else(ApiError::response)
    }

    /// For what somebody else answers on the same listener: the body of a request, once its key was found good, read within
    /// the same bounds.
    ///
    /// # Errors
    /// The answer, where it has no good key or its body cannot be had.
    pub async fn admit<B>(&self, request: Request<B>) -> Result<Bytes, Box<Response<Full<Bytes>>>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let refuse = |error: ApiError| Box::new(error.response());
        self.authorize(&parts.headers).map_err(refuse)?;
        self.read(body).await.map_err(refuse)
    }

    async fn publish<B>(&self, headers: &HeaderMap, body: B) -> Result<Response<Full<Bytes>>, ApiError>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let body = self.read(body).await?;
        match parse_publishes(&self.config, headers, &body)? {
            Publishes::One(publish) => {
                let mut results = self.backend.publish(vec![*publish]).await?;
                let unanswered =
                    || Err(ApiError::new(ErrorCode::Unavailable, "the publish was not answered"));
                let position = results.pop().map_or_else(unanswered, |result| Ok(result?))?;
                Ok(json(StatusCode::OK, &PublishAnswer::from(Ok(position))))
            }
            Publishes::Batch(items) => {
                // What is malformed gets its error; everything else goes out at once, in order.
                let mut accepted = Vec::with_capacity(items.len());
                let mut answers: Vec<Option<PublishAnswer>> = Vec::with_capacity(items.len());
                for item in items {
                    match item {
                        Ok(publish) => {
                            accepted.push(publish);
                            answers.push(None);
                        }
                        Err(error) => answers.push(Some(Err(error).into())),
                    }
                }
                let mut results = self.backend.publish(accepted).await?.into_iter();
                let results = answers
                    .into_iter()
                    .filter_map(|answer| {
                        answer.or_else(|| results.next().map(|result| result.map_err(ApiError::from).into()))
                    })
                    .collect();
                Ok(json(StatusCode::OK, &BatchAnswer { results }))
            }
        }
    }

    async fn history(&self, channel: &str, query: &str) -> Result<Response<Full<Bytes>>, ApiError> {
        let HistoryQuery { channel, range } = parse_history(channel, query)?;
        let Recovery { position, recovered, publications } = self.backend.history(channel, range).await?;
        let position = position.into();
        Ok(json(StatusCode::OK, &HistoryAnswer { position, recovered, publications }))
    }

    async fn presence(&self, channel: &str) -> Result<Response<Full<Bytes>>, ApiError> {
        let channel = decode_channel(channel)?;
        let members = self.backend.members(channel.clone()).await?;
        Ok(json(StatusCode::OK, &presence_answer(&channel, members)))
    }

    async fn status(&self) -> Result<Response<Full<Bytes>>, ApiError> {
        let mut response = Response::new(Full::new(self.backend.status().await?));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    fn authorize(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let BackendAccess::Keys(keys) = &self.config.access else { return Ok(()) };
        let given = headers.get("x-api-key").map(HeaderValue::as_bytes).or_else(|| bearer(headers));
        let Some(given) = given else {
            let message = "an API key is required: Authorization: Bearer <key>, or X-API-Key: <key>";
            return Err(ApiError::new(ErrorCode::Unauthorized, message));
        };
        // Every key is compared to its end, so that the time says nothing of which one was nearly right.
        let known =
            keys.iter().fold(false, |known, key| known | equal_in_constant_time(key.as_bytes(), given));
        if known { Ok(()) } else { Err(ApiError::new(ErrorCode::Unauthorized, "unknown API key")) }
    }

    async fn read<B>(&self, body: B) -> Result<Bytes, ApiError>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let limit = self.config.max_body;
        let too_large =
            || ApiError::new(ErrorCode::TooLarge, format!("the body is over the limit of {limit} bytes"));
        // Announced too long: refused before a byte of it is read.
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let whole = Limited::new(body, limit).collect();
        match tokio::time::timeout(self.config.body_timeout, whole).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => {
                Err(ApiError::new(ErrorCode::BadRequest, format!("the body could not be read: {error}")))
            }
            Err(_) => Err(ApiError::body_timeout()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Route<'a> {
    Publish,
    /// The channel as it stands in the path, percent-encoded.
    History {
        channel: &'a str,
    },
    /// The same.
    Presence {
        channel: &'a str,
    },
    Status,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        if path == "/v1/publish" {
            return Some(Self::Publish);
        }
        if path == "/v1/status" {
            return Some(Self::Status);
        }
        match path.strip_prefix("/v1/channels/")?.split_once('/')? {
            (channel, "history") => Some(Self::History { channel }),
            (channel, "presence") => Some(Self::Presence { channel }),
            _ => None,
        }
    }

    fn method(self) -> &'static Method {
        match self {
            Self::Publish => &Method::POST,
            Self::History { .. } | Self::Presence { .. } | Self::Status => &Method::GET,
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    if scheme.eq_ignore_ascii_case(b"bearer ") { Some(key.trim_ascii()) } else { None }
}

/// Looks at all of `given`, wherever the first difference is. Only the length shows.
fn equal_in_constant_time(key: &[u8], given: &[u8]) -> bool {
    if key.len() != given.len() {
        return false;
    }
    let difference = key.iter().zip(given).fold(0, |difference, (a, b)| difference | (a ^ b));
    // Without the barrier the compiler may stop at the first difference.
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests;
