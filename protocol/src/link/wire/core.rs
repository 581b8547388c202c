//! Sans-io: frames from core to edge, to messages and back.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message;

use super::schema::{self, CoreBody};
use super::{Batch, LinkDecoder, LinkFrame, MAX_REPLY_BYTES, PART_BYTES, WireError};
use crate::frame::shared::{Framing, SharedFrame};
use crate::frame::{self, Publication, ServerBody};
use crate::link::{CoreFrame, Delivery, LinkError, Members, Recovery};
use crate::session::resume::{Outcome, Told};
use crate::{Offset, Position};

impl LinkFrame for CoreFrame {
    fn encode(&self, batch: &mut Batch) {
        let body = match self {
            Self::Publication(delivery) => {
                return batch.put_shared(schema::PUBLICATION, delivery.frame.encoded(Framing::Delimited));
            }
            Self::Ephemeral(delivery) => {
                return batch.put_shared(schema::EPHEMERAL, delivery.frame.encoded(Framing::Delimited));
            }
            Self::PresenceChanged(delivery) => {
                return batch
                    .put_shared(schema::PRESENCE_CHANGED, delivery.frame.encoded(Framing::Delimited));
            }
            Self::Recovered { request, result } => CoreBody::Recovered(recovered(batch, *request, result)),
            Self::Members { request, result } => CoreBody::Members(members(batch, *request, result)),
            Self::Published { request, result } => CoreBody::Published(schema::Published {
                request: *request,
                failed: result.as_ref().err().map(super::failed),
                position: result.as_ref().ok().and_then(Clone::clone).map(frame::Position::from),
            }),
            Self::Rebased { channel, position } => CoreBody::Rebased(schema::Rebased {
                channel: channel.as_str().to_owned(),
                position: Some(position.clone().into()),
            }),
            Self::Moved { partition, to } => CoreBody::Moved(schema::Moved {
                partition: u32::from(*partition),
                to: to.as_ref().map(|node| node.as_str().to_owned()),
            }),
            Self::Spent { request, result } => CoreBody::Spent(schema::Spent {
                request: *request,
                failed: result.as_ref().err().map(super::failed),
                outcome: result.as_ref().map_or(0, |outcome| number(OUTCOMES, *outcome)),
            }),
            Self::SessionMoved { session, generation, told } => {
                CoreBody::SessionMoved(schema::SessionMoved {
                    session: session.to_bytes().to_vec(),
                    generation: *generation,
                    told: number(TOLD, *told),
                })
            }
        };
        batch.put_message(&schema::Core { body: Some(body) });
    }

    fn decode(decoder: &mut LinkDecoder) -> Result<Option<Self>, WireError> {
        while let Some(message) = decoder.messages.next_message::<schema::Core>()? {
            match message.body.ok_or(WireError::Unknown)? {
                CoreBody::Part(part) => decoder.keep_part(part)?,
                CoreBody::Recovered(wire) => return from_recovered(decoder, wire).map(Some),
                CoreBody::Members(wire) => return from_members(decoder, wire).map(Some),
                // Nothing comes between the parts of a list.
                _ if !decoder.parts.is_empty() => return Err(WireError::Unexpected),
                body => return from_wire(body).map(Some),
            }
        }
        Ok(None)
    }
}

fn from_wire(body: CoreBody) -> Result<CoreFrame, WireError> {
    Ok(match body {
        CoreBody::Publication(bytes) => CoreFrame::Publication(publication(bytes)?),
        CoreBody::Ephemeral(bytes) => CoreFrame::Ephemeral(ephemeral(bytes)?),
        CoreBody::Published(wire) => CoreFrame::Published {
            request: wire.request,
            result: match wire.failed {
                Some(failed) => Err(super::error(failed)),
                None => Ok(super::optional_position(wire.position)?),
            },
        },
        CoreBody::Rebased(wire) => {
            CoreFrame::Rebased { channel: super::channel(&wire.channel)?, position: head(wire.position)? }
        }
        CoreBody::PresenceChanged(bytes) => CoreFrame::PresenceChanged(presence_changed(bytes)?),
        CoreBody::Moved(wire) => CoreFrame::Moved {
            partition: u16::try_from(wire.partition).map_err(|_| WireError::Field("a partition"))?,
            to: wire.to.as_deref().map(super::node).transpose()?,
        },
        CoreBody::Spent(wire) => CoreFrame::Spent {
            request: wire.request,
            result: match wire.failed {
                Some(failed) => Err(super::error(failed)),
                None => Ok(by_number(OUTCOMES, wire.outcome)?),
            },
        },
        CoreBody::SessionMoved(wire) => CoreFrame::SessionMoved {
            session: super::session(&wire.session)?,
            generation: wire.generation,
            told: by_number(TOLD, wire.told)?,
        },
        CoreBody::Part(_) | CoreBody::Recovered(_) | CoreBody::Members(_) => {
            return Err(WireError::Unexpected);
        }
    })
}

fn publication(bytes: Bytes) -> Result<Delivery, WireError> {
    let frame = shared(bytes)?;
    let Some(ServerBody::Publication(publication)) = &frame.frame().body else {
        return Err(WireError::Field("a publication"));
    };
    check_publication(publication)?;
    let (channel, offset) = (super::channel(&publication.channel)?, Offset(publication.offset));
    Ok(Delivery { channel, offset, frame: Arc::new(frame) })
}

fn ephemeral(bytes: Bytes) -> Result<Delivery, WireError> {
    let frame = shared(bytes)?;
    let Some(ServerBody::Ephemeral(ephemeral)) = &frame.frame().body else {
        return Err(WireError::Field("an ephemeral item"));
    };
    super::payload(ephemeral.data.clone(), ephemeral.data_base64.clone())?;
    Ok(Delivery { channel: super::channel(&ephemeral.channel)?, offset: Offset(0), frame: Arc::new(frame) })
}

fn presence_changed(bytes: Bytes) -> Result<Delivery, WireError> {
    let frame = shared(bytes)?;
    let channel = match &frame.frame().body {
        Some(ServerBody::Join(join)) => super::channel(&join.channel)?,
        Some(ServerBody::Leave(leave)) => super::channel(&leave.channel)?,
        Some(ServerBody::PresenceGap(gap)) => super::channel(&gap.channel)?,
        _ => return Err(WireError::Field("who joins or leaves")),
    };
    Ok(Delivery { channel, offset: Offset(0), frame: Arc::new(frame) })
}

/// What clients get as it is: for all of them, so it answers nobody's request.
fn shared(bytes: Bytes) -> Result<SharedFrame, WireError> {
    let frame = SharedFrame::from_delimited(bytes)?;
    if frame.frame().id != 0 || frame.frame().body.is_none() {
        return Err(WireError::Field("a frame for clients"));
    }
    Ok(frame)
}

fn check_publication(publication: &Publication) -> Result<(), WireError> {
    if publication.offset == 0 {
        return Err(WireError::Field("an offset"));
    }
    super::payload(publication.data.clone(), publication.data_base64.clone())?;
    Ok(())
}

fn head(position: Option<frame::Position>) -> Result<Position, WireError> {
    super::position(&position.ok_or(WireError::Field("a position"))?)
}

fn recovered(batch: &mut Batch, request: u64, result: &Result<Recovery, LinkError>) -> schema::Recovered {
    let recovery = match result {
        Ok(recovery) => recovery,
        Err(error) => {
            let failed = Some(super::failed(error));
            return schema::Recovered { request, failed, ..schema::Recovered::default() };
        }
    };
    let bytes: usize = recovery.publications.iter().map(delimited_len).sum();
    // Too much to be carried: the same as a history that does not reach back so far.
    let (recovered, publications) = match bytes <= MAX_REPLY_BYTES && recovery.publications.len() <= MAX_ITEMS
    {
        true => (recovery.recovered, &recovery.publications[..]),
        false => (false, &[][..]),
    };
    schema::Recovered {
        request,
        failed: None,
        position: Some(recovery.position.clone().into()),
        recovered,
        publications: put_list(batch, publications),
    }
}

fn from_recovered(decoder: &mut LinkDecoder, wire: schema::Recovered) -> Result<CoreFrame, WireError> {
    let parts = decoder.take_parts(wire.publications);
    if let Some(failed) = wire.failed {
        return Ok(CoreFrame::Recovered { request: wire.request, result: Err(super::error(failed)) });
    }
    let publications: Vec<Publication> = read_list(parts)?;
    let mut before = None;
    for publication in &publications {
        check_publication(publication)?;
        if before.is_some_and(|before| before >= publication.offset) {
            return Err(WireError::Field("the order of publications"));
        }
        before = Some(publication.offset);
    }
    if let Some(first) = publications.first() {
        let name = super::channel(&first.channel)?;
        if publications.iter().any(|publication| publication.channel != name.as_str()) {
            return Err(WireError::Field("publications of several channels"));
        }
    }
    let recovery = Recovery { position: head(wire.position)?, recovered: wire.recovered, publications };
    Ok(CoreFrame::Recovered { request: wire.request, result: Ok(recovery) })
}

fn members(batch: &mut Batch, request: u64, result: &Result<Members, LinkError>) -> schema::Members {
    let members = match result {
        Ok(members) => members,
        Err(error) => {
            let failed = Some(super::failed(error));
            return schema::Members { request, failed, ..schema::Members::default() };
        }
    };
    let mut left = MAX_REPLY_BYTES;
    let mut users = Vec::with_capacity(members.users.len());
    for (user, sessions) in members.users.iter().take(MAX_ITEMS) {
        let member = schema::Member { user: user.as_ref().to_owned(), sessions: *sessions };
        let Some(rest) = left.checked_sub(delimited_len(&member)) else { break };
        left = rest;
        users.push(member);
    }
    schema::Members {
        request,
        failed: None,
        users_total: members.users_total,
        sessions: members.sessions,
        exact: members.exact && users.len() == members.users.len(),
        users: put_list(batch, &users),
    }
}

fn from_members(decoder: &mut LinkDecoder, wire: schema::Members) -> Result<CoreFrame, WireError> {
    let parts = decoder.take_parts(wire.users);
    if let Some(failed) = wire.failed {
        return Ok(CoreFrame::Members { request: wire.request, result: Err(super::error(failed)) });
    }
    let users: Vec<schema::Member> = read_list(parts)?;
    let users = users.into_iter().map(|member| (Arc::from(member.user), member.sessions)).collect();
    let (users_total, sessions, exact) = (wire.users_total, wire.sessions, wire.exact);
    let members = Members { users, users_total, sessions, exact };
    Ok(CoreFrame::Members { request: wire.request, result: Ok(members) })
}

/// Puts all parts of a list but the last, and returns that one.
fn put_list<M: Message>(batch: &mut Batch, items: &[M]) -> Bytes {
    let mut part = BytesMut::new();
    for item in items {
        if !part.is_empty() && part.len() + delimited_len(item) > PART_BYTES {
            batch.put_message(&schema::Core { body: Some(CoreBody::Part(part.split().freeze())) });
        }
        item.encode_length_delimited(&mut part).expect("the buffer grows");
    }
    part.freeze()
}

/// The items of a list; none is cut in two.
fn read_list<M: Message + Default>(parts: Vec<Bytes>) -> Result<Vec<M>, WireError> {
    let mut items = Vec::new();
    for part in parts {
        // From slices, so that payloads are copied out: one that is kept must not hold on to the whole list.
        let mut rest = &part[..];
        while !rest.is_empty() {
            let length =
                prost::decode_length_delimiter(&mut rest).map_err(frame::codec::DecodeError::from)?;
            if length > rest.len() || items.len() == MAX_ITEMS {
                return Err(WireError::Field("an item of a list"));
            }
            let (item, behind) = rest.split_at(length);
            items.push(M::decode(item).map_err(frame::codec::DecodeError::from)?);
            rest = behind;
        }
    }
    Ok(items)
}

fn delimited_len(message: &impl Message) -> usize {
    let length = message.encoded_len();
    prost::length_delimiter_len(length) + length
}

/// By number on the wire, which is the place here: these lists only grow.
const OUTCOMES: &[Outcome] = &[
    Outcome::First,
    Outcome::Repeated,
    Outcome::NotEarly,
    Outcome::Stale,
    Outcome::Theft,
    Outcome::Revoked,
    Outcome::Full,
];
const TOLD: &[Told] = &[Told::Resumed, Told::Repeated, Told::Revoked];

/// Items of a list: in memory each is much larger than its shortest encoding.
const MAX_ITEMS: usize = 1 << 20;

fn number<T: PartialEq>(list: &[T], item: T) -> u32 {
    let place = list.iter().position(|other| *other == item).expect("the list is complete: tests say so");
    u32::try_from(place).expect("the list is short")
}

fn by_number<T: Copy>(list: &[T], number: u32) -> Result<T, WireError> {
    let place = usize::try_from(number).unwrap_or(usize::MAX);
    list.get(place).copied().ok_or(WireError::Field("a number that stands for nothing"))
}
