//! Sans-io: the workers that a hub serves: sets of them, and what waits for each.

use std::collections::VecDeque;

use tidegate_protocol::ChannelName;
use tidegate_protocol::frame::{ErrorCode, ServerBody};
use tidegate_protocol::link::{CoreFrame, Delivery, EdgeFrame, LinkError, Recovery};

/// One of those that the hub serves: a worker, or behind the last of them the backend API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Client(pub(crate) u16);

/// A set of workers. Four words, however many there are: channels are many, and have one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ClientSet([u64; 4]);

impl ClientSet {
    /// Numbers below this can be in it.
    pub(crate) const LIMIT: u16 = 256;

    /// True where it was not in.
    pub(crate) fn insert(&mut self, client: Client) -> bool {
        let (word, bit) = Self::place(client);
        let before = self.0[word];
        self.0[word] |= bit;
        before != self.0[word]
    }

    /// True where it was in.
    pub(crate) fn remove(&mut self, client: Client) -> bool {
        let (word, bit) = Self::place(client);
        let before = self.0[word];
        self.0[word] &= !bit;
        before != self.0[word]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(crate) fn contains(self, client: Client) -> bool {
        let (word, bit) = Self::place(client);
        self.0[word] & bit != 0
    }

    /// Ascending.
    pub(crate) fn iter(self) -> impl Iterator<Item = Client> {
        (0u16..).zip(self.0).flat_map(|(index, word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as u16)?;
                left &= left - 1;
                Some(Client(index * 64 + bit))
            })
        })
    }

    fn place(client: Client) -> (usize, u64) {
        (usize::from(client.0 / 64) % 4, 1 << (client.0 % 64))
    }
}

/// What waits for each client, in order.
///
/// Over `bound` bytes a client is *full*: publications are not queued for it any more (its channels are parked, see
/// [`super::partition`]), and ephemeral items are dropped; below half of it, it is not. Answers are always queued: they
/// are as many as its questions.
#[derive(Debug)]
pub(crate) struct Outbox {
    queues: Vec<Queue>,
    bound: usize,
    /// Something was queued for them since [`Outbox::take_ready`].
    ready: ClientSet,
    drained: Vec<Client>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<CoreFrame>,
    bytes: usize,
    full: bool,
}

impl Outbox {
    /// For so many workers and the backend API.
    pub(crate) fn new(workers: u16, bound: usize) -> Self {
        let queues = (0..=workers).map(|_| Queue::default()).collect();
        Self { queues, bound, ready: ClientSet::default(), drained: Vec::new() }
    }

    /// All workers, without the backend API.
    pub(crate) fn workers(&self) -> impl Iterator<Item = Client> + use<> {
        (0..self.api().0).map(Client)
    }

    /// The backend API.
    pub(crate) fn api(&self) -> Client {
        // As many as `new` was given, which is a u16.
        Client((self.queues.len() - 1) as u16)
    }

    /// Queues a frame that must arrive.
    pub(crate) fn push(&mut self, client: Client, frame: CoreFrame) {
        let Some(queue) = self.queues.get_mut(usize::from(client.0)) else { return };
        queue.bytes += core_frame_bytes(&frame);
        queue.full |= queue.bytes > self.bound;
        queue.frames.push_back(frame);
        self.ready.insert(client);
    }

    /// Queues a frame that the client can do without for now; false where it is full.
    pub(crate) fn offer(&mut self, client: Client, frame: CoreFrame) -> bool {
        let full = self.is_full(client);
        if !full {
            self.push(client, frame);
        }
        !full
    }

    /// Takes the next frame for `client`.
    pub(crate) fn pop(&mut self, client: Client) -> Option<CoreFrame> {
        let queue = self.queues.get_mut(usize::from(client.0))?;
        let frame = queue.frames.pop_front()?;
        queue.bytes -= core_frame_bytes(&frame);
        if queue.full && queue.bytes <= self.bound / 2 {
            queue.full = false;
            self.drained.push(client);
        }
        Some(frame)
    }

    pub(crate) fn is_full(&self, client: Client) -> bool {
        self.queues.get(usize::from(client.0)).is_some_and(|queue| queue.full)
    }

    /// True while more is not to be read from the client: it leaves answers lying, too.
    pub(crate) fn is_clogged(&self, client: Client) -> bool {
        self.queues.get(usize::from(client.0)).is_some_and(|queue| queue.bytes > 2 * self.bound)
    }

    /// For whom something was queued since the last call.
    pub(crate) fn take_ready(&mut self) -> ClientSet {
        std::mem::take(&mut self.ready)
    }

    /// Who is not full any more, since the last call.
    pub(crate) fn take_drained(&mut self) -> Vec<Client> {
        std::mem::take(&mut self.drained)
    }

    /// Bytes that wait for all.
    pub(crate) fn bytes(&self) -> usize {
        self.queues.iter().map(|queue| queue.bytes).sum()
    }
}

/// What a frame towards a worker weighs. A publication that goes to many counts for each.
fn core_frame_bytes(frame: &CoreFrame) -> usize {
    FRAME_BYTES
        + match frame {
            CoreFrame::Recovered { result: Ok(recovery), .. } => recovery_bytes(recovery),
            CoreFrame::Publication(delivery)
            | CoreFrame::Ephemeral(delivery)
            | CoreFrame::PresenceChanged(delivery) => delivery_bytes(delivery),
            CoreFrame::Members { result: Ok(members), .. } => {
                members.users.iter().map(|(user, _)| user.len() + 32).sum()
            }
            _ => 0,
        }
}

pub(crate) fn recovery_bytes(recovery: &Recovery) -> usize {
    let payloads = recovery.publications.iter().map(|publication| {
        let data = publication.data.as_ref().or(publication.data_base64.as_ref());
        publication.channel.len() + FRAME_BYTES + data.map_or(0, |data| data.len())
    });
    payloads.sum()
}

/// Without encoding it.
fn delivery_bytes(delivery: &Delivery) -> usize {
    let data = match &delivery.frame.frame().body {
        Some(ServerBody::Publication(item)) => item.data.as_ref().or(item.data_base64.as_ref()),
        Some(ServerBody::Ephemeral(item)) => item.data.as_ref().or(item.data_base64.as_ref()),
        _ => None,
    };
    data.map_or(0, |data| data.len())
}

/// What a frame towards a core weighs.
pub(crate) fn edge_frame_bytes(frame: &EdgeFrame) -> usize {
    FRAME_BYTES
        + match frame {
            EdgeFrame::Publish { publish, .. } => {
                publish.payload.len()
                    + publish.channel.as_str().len()
                    + publish.key.as_ref().map_or(0, String::len)
            }
            EdgeFrame::Subscribe { channel, .. }
            | EdgeFrame::History { channel, .. }
            | EdgeFrame::Members { channel, .. } => channel.as_str().len(),
            _ => 0,
        }
}

/// The answer to `frame`, a question, that says it failed; `None` where it is none.
pub(crate) fn failure(frame: &EdgeFrame, request: u64, error: LinkError) -> Option<CoreFrame> {
    Some(match frame {
        EdgeFrame::Subscribe { .. } | EdgeFrame::History { .. } => {
            CoreFrame::Recovered { request, result: Err(error) }
        }
        EdgeFrame::Publish { .. } => CoreFrame::Published { request, result: Err(error) },
        EdgeFrame::Members { .. } => CoreFrame::Members { request, result: Err(error) },
        EdgeFrame::Spend { .. } => CoreFrame::Spent { request, result: Err(error) },
        EdgeFrame::Unsubscribe { .. } | EdgeFrame::Presence { .. } | EdgeFrame::Watch { .. } => return None,
    })
}

/// Not handled by anybody.
pub(crate) fn unavailable() -> LinkError {
    let message = "the core that has this channel is out of reach: try again".to_owned();
    LinkError { code: ErrorCode::Unavailable, message }
}

/// The channel name that none comes before.
pub(crate) fn smallest() -> ChannelName {
    ChannelName::new("!").expect("one printable character")
}

/// Of a frame beside its payload and names.
const FRAME_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_any_worker() {
        let mut set = ClientSet::default();
        for client in [0, 63, 64, 255].map(Client) {
            assert!(set.insert(client) && !set.insert(client));
        }
        assert_eq!(set.iter().map(|client| client.0).collect::<Vec<_>>(), [0, 63, 64, 255]);
        assert!(set.remove(Client(63)) && !set.remove(Client(63)) && !set.is_empty());
    }

    #[test]
    fn a_client_is_full_from_the_bound_down_to_half_of_it() {
        let mut outbox = Outbox::new(1, 4 * FRAME_BYTES);
        let client = Client(0);
        let frame = || CoreFrame::Rebased {
            channel: ChannelName::new("a").expect("valid"),
            position: Default::default(),
        };
        for _ in 0..5 {
            assert!(outbox.offer(client, frame()));
        }
        assert!(outbox.is_full(client) && !outbox.offer(client, frame()));
        assert!(!outbox.is_full(outbox.api()));
        for _ in 0..3 {
            assert!(outbox.take_drained().is_empty());
            outbox.pop(client);
        }
        assert_eq!(outbox.take_drained(), [client]);
        assert!(!outbox.is_full(client));
        assert_eq!(outbox.bytes(), 2 * FRAME_BYTES);
    }
}
