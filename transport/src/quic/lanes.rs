//! Streams towards the client: which lane is on which, and what could not be written yet.

use std::cmp::Reverse;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use quinn::{SendStream, VarInt, WriteError};
use tidegate_protocol::frame::StreamHeader;
use tidegate_protocol::{ChannelName, Epoch};

use crate::{Lane, Sent};

/// Every stream of one connection that we write on.
///
/// A stream takes bytes as long as it has nothing left over; what does not fit into QUIC's send buffer then stays
/// here, so at most one offer waits per stream.
///
/// All streams share QUIC's send window: what is unsent or not acknowledged. So that a lane that pours fills it for
/// itself and not for all, the window has a *reserve*, a quarter more, that only light lanes and control write into. A
/// lane is light that had no more than an eighth of a window of the bytes that were handed over last, counted over one
/// to two windows: of these alone some may be unacknowledged yet.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// In front of each stream that we open, before its [`StreamHeader`].
    prefix: &'static [u8],
    control: Outgoing,
    /// By number, ascending.
    subscriptions: Vec<SubscriptionLanes>,
    /// Streams of lanes that were closed with something left over.
    closing: Vec<Outgoing>,
    /// Bytes left over on all streams.
    unsent: usize,
    window: Window,
    /// The subscription whose left-over bytes go first in the next round.
    turn: u32,
}

/// The client no longer reads the control stream, with its code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ControlStopped(pub(crate) VarInt);

impl Lanes {
    /// `send_window` is QUIC's.
    pub(crate) fn new(control: SendStream, prefix: &'static [u8], send_window: u32) -> Self {
        // Fails only on a stream that is over, which its first write finds out.
        let _over = control.set_priority(PRIORITY_CONTROL);
        Self {
            prefix,
            control: Outgoing::new(control),
            subscriptions: Vec::new(),
            closing: Vec::new(),
            unsent: 0,
            window: Window { size: send_window, handed: 0 },
            turn: 0,
        }
    }

    pub(crate) fn unsent(&self) -> usize {
        self.unsent
    }

    pub(crate) fn open(&mut self, subscription: u32, channel: &ChannelName, rank: i8) {
        let lanes = SubscriptionLanes {
            number: subscription,
            rank,
            channel: channel.clone(),
            epoch: Epoch::default(),
            live: LaneStream::Unopened,
            catch_up: LaneStream::Unopened,
        };
        match self.position(subscription) {
            Ok(_) => debug_assert!(false, "lane {subscription} is open already"),
            Err(index) => self.subscriptions.insert(index, lanes),
        }
    }

    /// What is sent from now on is of this epoch, on streams of its own. Those of another one end: with what QUIC has of
    /// them, or where something is left over, at once.
    pub(crate) fn begin_epoch(&mut self, subscription: u32, epoch: &Epoch) {
        let Ok(index) = self.position(subscription) else { return };
        let lanes = &mut self.subscriptions[index];
        if lanes.epoch == *epoch {
            return;
        }
        lanes.epoch = epoch.clone();
        for stream in [&mut lanes.live, &mut lanes.catch_up] {
            if let LaneStream::Open(mut outgoing) = std::mem::replace(stream, LaneStream::Unopened) {
                self.unsent -= outgoing.rest.len();
                outgoing.end();
            }
        }
    }

    pub(crate) fn set_rank(&mut self, subscription: u32, rank: i8) {
        let Ok(index) = self.position(subscription) else { return };
        let lanes = &mut self.subscriptions[index];
        if lanes.rank == rank {
            return;
        }
        lanes.rank = rank;
        for (stream, catch_up) in [(&lanes.live, false), (&lanes.catch_up, true)] {
            if let LaneStream::Open(outgoing) = stream {
                let _over = outgoing.stream.set_priority(priority(rank, catch_up));
            }
        }
    }

    pub(crate) fn close(&mut self, subscription: u32) {
        if let Ok(index) = self.position(subscription) {
            let lanes = self.subscriptions.remove(index);
            self.finish(lanes.catch_up);
            self.finish(lanes.live);
        }
    }

    pub(crate) fn finish_catch_up(&mut self, subscription: u32) {
        if let Ok(index) = self.position(subscription) {
            // The next catch-up of the same subscription begins on a stream of its own.
            let stream = std::mem::replace(&mut self.subscriptions[index].catch_up, LaneStream::Unopened);
            self.finish(stream);
        }
    }

    /// Offers `bytes` to a lane; `waker` is woken when what is left over can go on.
    ///
    /// A lost connection takes everything: that it is lost is for its reader to find out, who also learns why.
    pub(crate) fn send(
        &mut self,
        connection: &quinn::Connection,
        waker: &Waker,
        lane: Lane,
        bytes: &Bytes,
    ) -> Result<Sent, ControlStopped> {
        let (subscription, catch_up) = match lane {
            Lane::Control => return self.send_control(connection, waker, bytes),
            Lane::Subscription(number) => (number, false),
            Lane::CatchUp(number) => (number, true),
        };
        let Ok(index) = self.position(subscription) else {
            debug_assert!(false, "lane {subscription} is not open");
            return Ok(Sent::Taken);
        };
        let crowded = self.closing.len() >= MAX_CLOSING;
        let lanes = &mut self.subscriptions[index];
        let stream = if catch_up { &mut lanes.catch_up } else { &mut lanes.live };
        let mut head = Bytes::new();
        let opens = match stream {
            LaneStream::Unopened => true,
            LaneStream::OnControl { sends } => {
                *sends = sends.wrapping_add(1);
                *sends % LOOK_FOR_CREDIT == 0
            }
            LaneStream::Open(_) | LaneStream::Stopped => false,
        };
        if opens {
            let opened = if crowded { None } else { open_stream(connection, priority(lanes.rank, catch_up)) };
            *stream = match opened {
                Some(stream) => {
                    head = stream_head(self.prefix, &lanes.channel, &lanes.epoch, catch_up);
                    LaneStream::Open(Outgoing::new(stream))
                }
                None => LaneStream::OnControl { sends: 0 },
            };
        }
        match stream {
            LaneStream::Unopened | LaneStream::OnControl { .. } => {
                self.send_control(connection, waker, bytes)
            }
            // The client has said that it wants nothing more of this stream.
            LaneStream::Stopped => Ok(Sent::Taken),
            LaneStream::Open(outgoing) if !outgoing.rest.is_empty() => Ok(Sent::Full),
            LaneStream::Open(outgoing) => {
                let reserve = Reserve::ForLight(connection);
                match outgoing.offer(&mut Context::from_waker(waker), &mut self.window, reserve, head, bytes)
                {
                    Ok(()) => self.unsent += outgoing.rest.len(),
                    Err(Stopped(_)) => *stream = LaneStream::Stopped,
                }
                Ok(Sent::Taken)
            }
        }
    }

    /// Pushes out what is left over on one lane; ready when it may take more.
    pub(crate) fn poll_ready(
        &mut self,
        connection: &quinn::Connection,
        cx: &mut Context<'_>,
        lane: Lane,
    ) -> Poll<Result<(), ControlStopped>> {
        let (subscription, catch_up) = match lane {
            Lane::Control => return self.poll_control(connection, cx),
            Lane::Subscription(number) => (number, false),
            Lane::CatchUp(number) => (number, true),
        };
        let Ok(index) = self.position(subscription) else { return Poll::Ready(Ok(())) };
        let lanes = &mut self.subscriptions[index];
        let stream = if catch_up { &mut lanes.catch_up } else { &mut lanes.live };
        match stream {
            LaneStream::OnControl { .. } => self.poll_control(connection, cx),
            LaneStream::Unopened | LaneStream::Stopped => Poll::Ready(Ok(())),
            LaneStream::Open(outgoing) => {
                let reserve = Reserve::ForLight(connection);
                let pushed = outgoing.push(cx, &mut self.window, reserve, &mut self.unsent);
                stream_flushed(pushed, stream).map(Ok)
            }
        }
    }

    /// Pushes out what is left over anywhere, as far as it goes; what does not wakes `cx` later. Higher ranks go first,
    /// and of one rank who did not in the last round.
    pub(crate) fn push_all(
        &mut self,
        connection: &quinn::Connection,
        cx: &mut Context<'_>,
    ) -> Result<(), ControlStopped> {
        if self.unsent == 0 {
            return Ok(());
        }
        if let Poll::Ready(result) = self.poll_control(connection, cx) {
            result?;
        }
        let turn = self.turn;
        let mut waiting: Vec<_> = self.subscriptions.iter_mut().filter(|lanes| lanes.has_rest()).collect();
        waiting.sort_by_key(|lanes| (Reverse(lanes.rank), lanes.number < turn, lanes.number));
        let mut next = None;
        for lanes in waiting {
            let number = lanes.number;
            for stream in [&mut lanes.live, &mut lanes.catch_up] {
                if let LaneStream::Open(outgoing) = stream {
                    let before = self.unsent;
                    let reserve = Reserve::ForLight(connection);
                    let pushed = outgoing.push(cx, &mut self.window, reserve, &mut self.unsent);
                    let _later = stream_flushed(pushed, stream);
                    if self.unsent < before {
                        next = Some(number.wrapping_add(1));
                    }
                }
            }
        }
        self.turn = next.unwrap_or(turn);
        let (unsent, window) = (&mut self.unsent, &mut self.window);
        self.closing.retain_mut(|outgoing| match outgoing.push(cx, window, Reserve::Never, unsent) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => {
                outgoing.finish();
                false
            }
            Poll::Ready(Err(Stopped(_))) => false,
        });
        Ok(())
    }

    /// Ready when nothing is left over on the control stream.
    pub(crate) fn poll_control(
        &mut self,
        connection: &quinn::Connection,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ControlStopped>> {
        self.control
            .push(cx, &mut self.window, Reserve::Always(connection), &mut self.unsent)
            .map(|result| result.map_err(|Stopped(code)| ControlStopped(code)))
    }

    /// Ends the control stream. The future is ready when the client has all of it, or will never.
    pub(crate) fn finish_control(&mut self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.control.finish();
        let stopped = self.control.stream.stopped();
        async move {
            let _how = stopped.await;
        }
    }

    fn send_control(
        &mut self,
        connection: &quinn::Connection,
        waker: &Waker,
        bytes: &Bytes,
    ) -> Result<Sent, ControlStopped> {
        if !self.control.rest.is_empty() {
            return Ok(Sent::Full);
        }
        let reserve = Reserve::Always(connection);
        let offered = self.control.offer(
            &mut Context::from_waker(waker),
            &mut self.window,
            reserve,
            Bytes::new(),
            bytes,
        );
        match offered {
            Ok(()) => {
                self.unsent += self.control.rest.len();
                Ok(Sent::Taken)
            }
            Err(Stopped(code)) => Err(ControlStopped(code)),
        }
    }

    fn finish(&mut self, stream: LaneStream) {
        if let LaneStream::Open(mut outgoing) = stream {
            if outgoing.rest.is_empty() {
                outgoing.finish();
            } else {
                self.closing.push(outgoing);
            }
        }
    }

    fn position(&self, subscription: u32) -> Result<usize, usize> {
        self.subscriptions.binary_search_by_key(&subscription, |lanes| lanes.number)
    }
}

#[derive(Debug)]
struct SubscriptionLanes {
    number: u32,
    rank: i8,
    channel: ChannelName,
    epoch: Epoch,
    live: LaneStream,
    catch_up: LaneStream,
}

impl SubscriptionLanes {
    fn has_rest(&self) -> bool {
        let has_rest =
            |stream: &LaneStream| matches!(stream, LaneStream::Open(outgoing) if !outgoing.rest.is_empty());
        has_rest(&self.live) || has_rest(&self.catch_up)
    }
}

/// ```text
/// Unopened ──first bytes──► Open ──the client stops it──► Stopped        every state ──another epoch──► Unopened
///     └─no stream credit──► OnControl ──credit again──► Open
/// ```
#[derive(Debug)]
enum LaneStream {
    Unopened,
    Open(Outgoing),
    /// The client had no credit for a stream, so many sends ago: it orders by offset what comes by both.
    OnControl {
        sends: u8,
    },
    Stopped,
}

/// QUIC's send window: unsent bytes of all streams, and those not acknowledged.
#[derive(Debug)]
struct Window {
    size: u32,
    /// Bytes handed over so far. Counted in spans of one window.
    handed: u64,
}

impl Window {
    fn span(&self) -> u32 {
        // Wraps after terabytes; spans are compared for equality.
        (self.handed / u64::from(self.size.max(1))) as u32
    }

    /// Beyond the window, for lanes that sent little lately, and for control.
    fn with_reserve(&self) -> u64 {
        u64::from(self.size) + u64::from(self.size / 4)
    }

    /// What is little, in bytes over one to two windows.
    fn light(&self) -> usize {
        self.size as usize / 8
    }
}

/// Who may write beyond QUIC's send window.
#[derive(Clone, Copy)]
enum Reserve<'a> {
    Always(&'a quinn::Connection),
    ForLight(&'a quinn::Connection),
    Never,
}

#[derive(Debug)]
struct Outgoing {
    stream: SendStream,
    rest: Bytes,
    /// The span of its last bytes, those in it, and those in the one before.
    span: u32,
    recent: [u32; 2],
}

/// `STOP_SENDING`, with its code.
#[derive(Debug)]
struct Stopped(VarInt);

impl Outgoing {
    fn new(stream: SendStream) -> Self {
        Self { stream, rest: Bytes::new(), span: 0, recent: [0; 2] }
    }

    /// Writes `head` and `bytes`, keeping what does not fit. Only where nothing is left over.
    fn offer(
        &mut self,
        cx: &mut Context<'_>,
        window: &mut Window,
        reserve: Reserve<'_>,
        head: Bytes,
        bytes: &Bytes,
    ) -> Result<(), Stopped> {
        let mut chunks = [head, bytes.clone()];
        let written = self.write(cx, window, reserve, &mut chunks);
        let [head, rest] = chunks;
        match written {
            Poll::Ready(result) => result?,
            Poll::Pending if head.is_empty() => self.rest = rest,
            Poll::Pending => {
                let mut joined = BytesMut::with_capacity(head.len() + rest.len());
                joined.extend_from_slice(&head);
                joined.extend_from_slice(&rest);
                self.rest = joined.freeze();
            }
        }
        Ok(())
    }

    /// Writes what is left over; ready when nothing is. Takes what went from `unsent`.
    fn push(
        &mut self,
        cx: &mut Context<'_>,
        window: &mut Window,
        reserve: Reserve<'_>,
        unsent: &mut usize,
    ) -> Poll<Result<(), Stopped>> {
        if self.rest.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let before = self.rest.len();
        let mut chunks = [std::mem::take(&mut self.rest)];
        let written = self.write(cx, window, reserve, &mut chunks);
        let [rest] = chunks;
        if written.is_pending() {
            self.rest = rest;
        }
        *unsent -= before - self.rest.len();
        written
    }

    /// Writes until all is written or the stream takes no more, the reserve included where that is allowed; `chunks`
    /// are left with what was not written.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        window: &mut Window,
        reserve: Reserve<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<(), Stopped>> {
        let offered = remaining(chunks);
        let mut written = self.write_within(cx, chunks);
        let left = remaining(chunks);
        self.count(window, offered - left);
        if written.is_pending() {
            let (connection, allowed) = match reserve {
                Reserve::Always(connection) => (connection, true),
                Reserve::ForLight(connection) => (connection, self.is_light(window, left)),
                Reserve::Never => return written,
            };
            if allowed {
                // Back before QUIC looks at it: nobody else is told of more room.
                connection.set_send_window(window.with_reserve());
                written = self.write_within(cx, chunks);
                connection.set_send_window(u64::from(window.size));
                self.count(window, left - remaining(chunks));
            }
        }
        written
    }

    fn write_within(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<(), Stopped>> {
        while chunks.iter().any(Buf::has_remaining) {
            // Cancel-safe: unless it is ready, it has written nothing.
            match pin!(self.stream.write_chunks(chunks)).poll(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(WriteError::Stopped(code))) => return Poll::Ready(Err(Stopped(code))),
                Poll::Ready(Err(
                    WriteError::ConnectionLost(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected,
                )) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, window: &mut Window, bytes: usize) {
        self.roll(window.span());
        // At most a frame's bytes at a time.
        self.recent[0] = self.recent[0].saturating_add(bytes as u32);
        window.handed += bytes as u64;
    }

    fn is_light(&mut self, window: &Window, more: usize) -> bool {
        self.roll(window.span());
        self.recent[0] as usize + self.recent[1] as usize + more <= window.light()
    }

    fn roll(&mut self, span: u32) {
        if self.span != span {
            self.recent = if self.span.wrapping_add(1) == span { [0, self.recent[0]] } else { [0, 0] };
            self.span = span;
        }
    }

    fn finish(&mut self) {
        // Fails only where the stream is over already.
        let _over = self.stream.finish();
    }

    /// Finishes, or where something is left over, resets.
    fn end(&mut self) {
        if self.rest.is_empty() {
            self.finish();
        } else {
            self.rest = Bytes::new();
            let _over = self.stream.reset(LEFT_EPOCH);
        }
    }
}

/// What a push says about its lane.
fn stream_flushed(pushed: Poll<Result<(), Stopped>>, stream: &mut LaneStream) -> Poll<()> {
    pushed.map(|result| {
        if let Err(Stopped(_)) = result {
            *stream = LaneStream::Stopped;
        }
    })
}

/// A stream, where the client has credit for one now.
fn open_stream(connection: &quinn::Connection, priority: i32) -> Option<SendStream> {
    match pin!(connection.open_uni()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(stream)) => {
            let _over = stream.set_priority(priority);
            Some(stream)
        }
        Poll::Ready(Err(_)) | Poll::Pending => None,
    }
}

fn stream_head(prefix: &[u8], channel: &ChannelName, epoch: &Epoch, catch_up: bool) -> Bytes {
    let header =
        StreamHeader { channel: channel.as_str().to_owned(), catch_up, epoch: epoch.as_str().to_owned() };
    let mut head = BytesMut::with_capacity(prefix.len() + header.encoded_len() + 2);
    head.extend_from_slice(prefix);
    header.encode_length_delimited(&mut head).expect("a growing buffer has room");
    head.freeze()
}

/// Strict in quinn: higher goes first. Of one rank, live data before what was missed.
fn priority(rank: i8, catch_up: bool) -> i32 {
    2 * i32::from(rank) + i32::from(!catch_up)
}

fn remaining(chunks: &[Bytes]) -> usize {
    chunks.iter().map(Bytes::len).sum()
}

/// Of a stream whose epoch is over; the client learns from `subscribed` why.
const LEFT_EPOCH: VarInt = VarInt::from_u32(0);

/// Every so many sends a lane that has no stream looks whether there is credit for one: looking takes a lock.
const LOOK_FOR_CREDIT: u8 = 16;

/// Above every rank.
const PRIORITY_CONTROL: i32 = 1000;

/// So many closed lanes may wait for their last bytes to go; more subscriptions than that get no streams meanwhile.
/// Bounds what a client that does not read can pile up by subscribing and unsubscribing.
const MAX_CLOSING: usize = 32;
