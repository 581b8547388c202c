//! Sans-io: frames from edge to core, to messages and back.

use std::sync::Arc;
use std::time::Duration;

use super::schema::{self, EdgeBody};
use super::{Batch, LinkDecoder, LinkFrame, WireError};
use crate::link::{EdgeFrame, HistoryRange, LinkName, Publish};
use crate::session::resume::{AttemptKey, Spending};
use crate::{Offset, frame};

impl LinkFrame for EdgeFrame {
    fn encode(&self, batch: &mut Batch) {
        batch.put_message(&schema::Edge { body: Some(to_wire(self)) });
    }

    fn decode(decoder: &mut LinkDecoder) -> Result<Option<Self>, WireError> {
        let Some(message) = decoder.messages.next_message::<schema::Edge>()? else { return Ok(None) };
        from_wire(message.body.ok_or(WireError::Unknown)?).map(Some)
    }
}

fn to_wire(frame: &EdgeFrame) -> EdgeBody {
    match frame {
        EdgeFrame::Subscribe { request, channel, position } => EdgeBody::Subscribe(schema::Subscribe {
            request: *request,
            channel: channel.as_str().to_owned(),
            position: position.clone().map(frame::Position::from),
        }),
        EdgeFrame::Unsubscribe { channel } => EdgeBody::Unsubscribe(channel.as_str().to_owned()),
        EdgeFrame::Publish { request, publish } => {
            let (data, data_base64) = publish.payload.clone().into_fields();
            EdgeBody::Publish(schema::Publish {
                request: *request,
                channel: publish.channel.as_str().to_owned(),
                data,
                data_base64,
                key: publish.key.clone(),
                user: publish.user.as_deref().map(str::to_owned),
                ephemeral: publish.ephemeral,
            })
        }
        EdgeFrame::History { request, channel, range } => EdgeBody::History(schema::History {
            request: *request,
            channel: channel.as_str().to_owned(),
            since: range.since.clone().map(frame::Position::from),
            limit: range.limit,
            before: range.before.map(|before| before.0),
        }),
        EdgeFrame::Presence { channel, user, sessions, again } => EdgeBody::Presence(schema::Presence {
            channel: channel.as_str().to_owned(),
            user: user.as_deref().map(str::to_owned),
            sessions: *sessions,
            again: *again,
        }),
        EdgeFrame::Watch { channel, on } => {
            EdgeBody::Watch(schema::Watch { channel: channel.as_str().to_owned(), on: *on })
        }
        EdgeFrame::Members { request, channel } => {
            EdgeBody::Members(schema::AskMembers { request: *request, channel: channel.as_str().to_owned() })
        }
        EdgeFrame::Spend { request, spending, holder } => EdgeBody::Spend(schema::Spend {
            request: *request,
            session: spending.session.to_bytes().to_vec(),
            generation: spending.generation,
            key: spending.key.map(|key| key.0.to_vec()),
            early: spending.early,
            remember_ms: u64::try_from(spending.remember.as_millis()).unwrap_or(u64::MAX),
            node: holder.node.as_str().to_owned(),
            worker: u32::from(holder.worker),
        }),
    }
}

fn from_wire(body: EdgeBody) -> Result<EdgeFrame, WireError> {
    Ok(match body {
        EdgeBody::Subscribe(wire) => EdgeFrame::Subscribe {
            request: wire.request,
            channel: super::channel(&wire.channel)?,
            position: super::optional_position(wire.position)?,
        },
        EdgeBody::Unsubscribe(channel) => EdgeFrame::Unsubscribe { channel: super::channel(&channel)? },
        EdgeBody::Publish(wire) => EdgeFrame::Publish {
            request: wire.request,
            publish: Publish {
                channel: super::channel(&wire.channel)?,
                payload: super::payload(wire.data, wire.data_base64)?,
                key: wire.key,
                user: wire.user.map(Arc::from),
                ephemeral: wire.ephemeral,
            },
        },
        EdgeBody::History(wire) => EdgeFrame::History {
            request: wire.request,
            channel: super::channel(&wire.channel)?,
            range: HistoryRange {
                since: super::optional_position(wire.since)?,
                before: wire.before.map(Offset),
                limit: wire.limit,
            },
        },
        EdgeBody::Presence(wire) => EdgeFrame::Presence {
            channel: super::channel(&wire.channel)?,
            user: wire.user.map(Arc::from),
            sessions: wire.sessions,
            again: wire.again,
        },
        EdgeBody::Watch(wire) => EdgeFrame::Watch { channel: super::channel(&wire.channel)?, on: wire.on },
        EdgeBody::Members(wire) => {
            EdgeFrame::Members { request: wire.request, channel: super::channel(&wire.channel)? }
        }
        EdgeBody::Spend(wire) => spend(wire)?,
    })
}

fn spend(wire: schema::Spend) -> Result<EdgeFrame, WireError> {
    let key = match wire.key {
        Some(key) => Some(AttemptKey(key.try_into().map_err(|_| WireError::Field("an attempt's key"))?)),
        None => None,
    };
    let spending = Spending {
        session: super::session(&wire.session)?,
        generation: wire.generation,
        key,
        early: wire.early,
        remember: Duration::from_millis(wire.remember_ms),
    };
    let worker = u8::try_from(wire.worker).map_err(|_| WireError::Field("a worker"))?;
    let holder = LinkName { node: super::node(&wire.node)?, worker };
    Ok(EdgeFrame::Spend { request: wire.request, spending, holder })
}
