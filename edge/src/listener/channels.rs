//! `GET /v1/channels/{channel}/…`: poll and events, subscribers without a session.

use std::rc::Rc;
use std::time::Duration;

use ::http::{HeaderMap, Response, StatusCode, Uri, Version};
use bytes::Bytes;
use tidegate_fallback::channel_poll::{ChannelPoll, answer as channel_poll_answer};
use tidegate_fallback::events::{EventWriter, EventsRequest, stream_response, wants_events};
use tidegate_fallback::http::{deferred_response, error_code_response, json_response};
use tidegate_protocol::ChannelName;
use tidegate_protocol::frame::{Close, CloseCode, ErrorCode};
use tidegate_protocol::grants::Identity;

use super::http::{Carrier, identify};
use crate::channel_poll::Waiter;
use crate::events::{self, AnswerBody, Opening, RETRY_MAX, RETRY_MIN};
use crate::worker::Worker;

/// What is asked of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Poll,
    Events,
}

/// The channel's name, still encoded, and what is asked of it; `None` where the path is another.
pub(super) fn route(path: &str) -> Option<(&str, Verb)> {
    let rest = path.strip_prefix("/v1/channels/")?;
    match rest.strip_suffix("/poll") {
        Some(channel) => Some((channel, Verb::Poll)),
        None => rest.strip_suffix("/events").map(|channel| (channel, Verb::Events)),
    }
}

pub(super) async fn poll(
    context: &Carrier,
    segment: &str,
    headers: &HeaderMap,
    uri: &Uri,
) -> Response<Bytes> {
    let worker = &**context.worker();
    let ChannelPoll { channel, position, wait } = match ChannelPoll::parse(segment, uri.query()) {
        Ok(request) => request,
        Err(error) => return error_code_response(error.error_code(), &error.to_string()),
    };
    if let Err((code, message)) = authorize(worker, &channel, headers, uri) {
        return error_code_response(code, &message);
    }
    if worker.upstream().is_congested() {
        return error_code_response(ErrorCode::Unavailable, BEHIND);
    }
    if let Err(rejection) = context.let_in(uri).await {
        return deferred(&rejection.close(worker.jitter(RETRY_MIN, RETRY_MAX)), worker);
    }
    let waiter = Rc::new(Waiter::new(position.is_none()));
    let key = worker.wait_on(Rc::clone(&waiter), &channel, position);
    // Leaves the registry however this ends, also when the client hangs up.
    let _leaving = Leaving { worker, channel: &channel, key };
    waiter.asked().await;
    if !wait.is_zero() {
        tokio::select! {
            () = waiter.answered() => {}
            () = tokio::time::sleep(wait) => {}
            () = worker.shared().drain.cancelled() => {}
        }
    }
    match waiter.result() {
        Some(Ok(recovery)) => json_response(StatusCode::OK, channel_poll_answer(&recovery)),
        Some(Err(error)) => error_code_response(error.code, &error.message),
        None => error_code_response(ErrorCode::Internal, "the core gave no answer"),
    }
}

pub(super) async fn events(
    context: &Carrier,
    segment: &str,
    version: Version,
    headers: &HeaderMap,
    uri: &Uri,
) -> Response<AnswerBody> {
    let worker = context.worker();
    let EventsRequest { channel, position } = match EventsRequest::parse(segment, uri.query(), headers) {
        Ok(request) => request,
        Err(error) => {
            return error_code_response(error.error_code(), &error.to_string()).map(AnswerBody::from);
        }
    };
    let identity = match authorize(worker, &channel, headers, uri) {
        Ok(identity) => identity,
        Err((code, message)) => return error_code_response(code, &message).map(AnswerBody::from),
    };
    if let Some((code, reason)) = worker.ending() {
        return not_now(worker, headers, code, reason);
    }
    if worker.upstream().is_congested() {
        return not_now(worker, headers, CloseCode::Overloaded, BEHIND);
    }
    if let Err(rejection) = context.let_in(uri).await {
        let close = rejection.close(worker.jitter(RETRY_MIN, RETRY_MAX));
        if !wants_events(headers) {
            return deferred(&close, worker).map(AnswerBody::from);
        }
        let after = retry_of(&close, worker);
        let mut writer = EventWriter::default();
        writer.closing(close, after);
        return stream_response(AnswerBody::from(writer.take()));
    }
    // Over HTTP/1.1 the stream is all that its connection carries; otherwise it is one of many, and counts by itself.
    let admitted = if version >= Version::HTTP_2 {
        let Some(admitted) = worker.admit() else {
            return not_now(worker, headers, CloseCode::Overloaded, "the server is full");
        };
        Some(admitted)
    } else {
        None
    };
    let conflated = worker.shared().config.namespaces.rules(&channel).is_some_and(|rules| rules.conflate);
    let opening = Opening { channel, position, conflated, expires: identity.expires, admitted };
    match events::open(worker, opening).await {
        Ok(body) => stream_response(AnswerBody::Events(Box::new(body))),
        Err(error) if error.code.reply("").retry => {
            not_now(worker, headers, CloseCode::CoreUnavailable, &error.message)
        }
        Err(error) => error_code_response(error.code, &error.message).map(AnswerBody::from),
    }
}

/// Refuses for the time being. An `EventSource` gives up for good at anything but a stream: it gets one, which says why
/// and when to come back, and ends.
fn not_now(worker: &Worker, headers: &HeaderMap, code: CloseCode, reason: &str) -> Response<AnswerBody> {
    if !wants_events(headers) {
        return error_code_response(ErrorCode::Unavailable, reason).map(AnswerBody::from);
    }
    let mut writer = EventWriter::default();
    writer.close(code, reason, worker.jitter(RETRY_MIN, RETRY_MAX));
    stream_response(AnswerBody::from(writer.take()))
}

/// 503, with what a refusal says.
fn deferred(close: &Close, worker: &Worker) -> Response<Bytes> {
    let slot = close.reconnect.as_ref().and_then(|reconnect| reconnect.slot.as_deref());
    deferred_response(&close.reason, retry_of(close, worker), slot)
}

fn retry_of(close: &Close, worker: &Worker) -> Duration {
    let after_ms = close.reconnect.as_ref().and_then(|reconnect| reconnect.after_ms);
    after_ms.map_or_else(|| worker.jitter(RETRY_MIN, RETRY_MAX), Duration::from_millis)
}

/// Who asks, where they may read the channel; otherwise the refusal.
fn authorize(
    worker: &Worker,
    channel: &ChannelName,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Identity, (ErrorCode, String)> {
    let identity = match identify(worker, headers, uri) {
        Ok(Some(identity)) => identity,
        Ok(None) if worker.shared().config.anonymous => Identity::anonymous(),
        Ok(None) => return Err((ErrorCode::Unauthorized, "a token is needed".to_owned())),
        Err(message) => return Err((ErrorCode::Unauthorized, message)),
    };
    let Some(rules) = worker.shared().config.namespaces.rules(channel) else {
        let message = format!("unknown namespace `{}`", channel.namespace());
        return Err((ErrorCode::NotFound, message));
    };
    if !identity.may_subscribe(channel, rules) {
        return Err((ErrorCode::Forbidden, "not allowed to read this channel".to_owned()));
    }
    Ok(identity)
}

struct Leaving<'a> {
    worker: &'a Worker,
    channel: &'a ChannelName,
    key: usize,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.worker.unsubscribe(self.channel, self.key);
    }
}

const BEHIND: &str = "the core is behind: try again";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_channel_and_what_is_asked_of_it() {
        assert_eq!(route("/v1/channels/room%3A1/poll"), Some(("room%3A1", Verb::Poll)));
        assert_eq!(route("/v1/channels/events/events"), Some(("events", Verb::Events)));
        for path in
            ["/v1/channels/room:1", "/v1/channels/room:1/history", "/v1/events", "/v1/channels/events"]
        {
            assert_eq!(route(path), None, "{path}");
        }
    }
}
