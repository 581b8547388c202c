//! Streams towards the client: which lane is on which, and what could not be written yet.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use quinn::{SendStream, VarInt, WriteError};
use tidegate_protocol::ChannelName;
use tidegate_protocol::frame::StreamHeader;

use crate::{Lane, Sent};

/// Every stream of one connection that we write on.
///
/// A stream takes bytes as long as it has nothing left over; what does not fit into QUIC's send buffer then stays
/// here, so at most one offer waits per stream.
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
}

/// The client no longer reads the control stream, with its code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ControlStopped(pub(crate) VarInt);

impl Lanes {
    pub(crate) fn new(control: SendStream, prefix: &'static [u8]) -> Self {
        // Fails only on a stream that is over, which its first write finds out.
        let _over = control.set_priority(PRIORITY_CONTROL);
        Self {
            prefix,
            control: Outgoing { stream: control, rest: Bytes::new() },
            subscriptions: Vec::new(),
            closing: Vec::new(),
            unsent: 0,
        }
    }

    pub(crate) fn unsent(&self) -> usize {
        self.unsent
    }

    pub(crate) fn open(&mut self, subscription: u32, channel: &ChannelName) {
        let lanes = SubscriptionLanes {
            number: subscription,
            channel: channel.clone(),
            live: LaneStream::Unopened,
            catch_up: LaneStream::Unopened,
        };
        match self.position(subscription) {
            Ok(_) => debug_assert!(false, "lane {subscription} is open already"),
            Err(index) => self.subscriptions.insert(index, lanes),
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
            Lane::Control => return self.send_control(waker, bytes),
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
        if matches!(stream, LaneStream::Unopened) {
            let opened = if crowded { None } else { open_stream(connection, catch_up) };
            *stream = match opened {
                Some(stream) => {
                    head = stream_head(self.prefix, &lanes.channel, catch_up);
                    LaneStream::Open(Outgoing { stream, rest: Bytes::new() })
                }
                None => LaneStream::OnControl,
            };
        }
        match stream {
            LaneStream::Unopened | LaneStream::OnControl => self.send_control(waker, bytes),
            // The client has said that it wants nothing more of this stream.
            LaneStream::Stopped => Ok(Sent::Taken),
            LaneStream::Open(outgoing) if !outgoing.rest.is_empty() => Ok(Sent::Full),
            LaneStream::Open(outgoing) => {
                match outgoing.offer(&mut Context::from_waker(waker), head, bytes) {
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
        cx: &mut Context<'_>,
        lane: Lane,
    ) -> Poll<Result<(), ControlStopped>> {
        let (subscription, catch_up) = match lane {
            Lane::Control => return self.poll_control(cx),
            Lane::Subscription(number) => (number, false),
            Lane::CatchUp(number) => (number, true),
        };
        let Ok(index) = self.position(subscription) else { return Poll::Ready(Ok(())) };
        let lanes = &mut self.subscriptions[index];
        let stream = if catch_up { &mut lanes.catch_up } else { &mut lanes.live };
        match stream {
            LaneStream::OnControl => self.poll_control(cx),
            LaneStream::Unopened | LaneStream::Stopped => Poll::Ready(Ok(())),
            LaneStream::Open(outgoing) => stream_flushed(outgoing.push(cx, &mut self.unsent), stream).map(Ok),
        }
    }

    /// Pushes out what is left over anywhere, as far as it goes; what does not wakes `cx` later.
    pub(crate) fn push_all(&mut self, cx: &mut Context<'_>) -> Result<(), ControlStopped> {
        if self.unsent == 0 {
            return Ok(());
        }
        if let Poll::Ready(result) = self.poll_control(cx) {
            result?;
        }
        for lanes in &mut self.subscriptions {
            for stream in [&mut lanes.live, &mut lanes.catch_up] {
                if let LaneStream::Open(outgoing) = stream {
                    let pushed = outgoing.push(cx, &mut self.unsent);
                    let _later = stream_flushed(pushed, stream);
                }
            }
        }
        let unsent = &mut self.unsent;
        self.closing.retain_mut(|outgoing| match outgoing.push(cx, unsent) {
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
    pub(crate) fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ControlStopped>> {
        self.control
            .push(cx, &mut self.unsent)
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

    fn send_control(&mut self, waker: &Waker, bytes: &Bytes) -> Result<Sent, ControlStopped> {
        if !self.control.rest.is_empty() {
            return Ok(Sent::Full);
        }
        match self.control.offer(&mut Context::from_waker(waker), Bytes::new(), bytes) {
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
    channel: ChannelName,
    live: LaneStream,
    catch_up: LaneStream,
}

/// ```text
/// Unopened ──first bytes──► Open ──the client stops it──► Stopped
///     └─no stream credit──► OnControl
/// ```
#[derive(Debug)]
enum LaneStream {
    Unopened,
    Open(Outgoing),
    /// The client had no credit for a stream at the first bytes; the lane stays where its order began.
    OnControl,
    Stopped,
}

#[derive(Debug)]
struct Outgoing {
    stream: SendStream,
    rest: Bytes,
}

/// `STOP_SENDING`, with its code.
#[derive(Debug)]
struct Stopped(VarInt);

impl Outgoing {
    /// Writes `head` and `bytes`, keeping what does not fit. Only where nothing is left over.
    fn offer(&mut self, cx: &mut Context<'_>, head: Bytes, bytes: &Bytes) -> Result<(), Stopped> {
        let mut chunks = [head, bytes.clone()];
        let written = self.write(cx, &mut chunks);
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
    fn push(&mut self, cx: &mut Context<'_>, unsent: &mut usize) -> Poll<Result<(), Stopped>> {
        if self.rest.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let before = self.rest.len();
        let mut chunks = [std::mem::take(&mut self.rest)];
        let written = self.write(cx, &mut chunks);
        let [rest] = chunks;
        if written.is_pending() {
            self.rest = rest;
        }
        *unsent -= before - self.rest.len();
        written
    }

    /// Writes until all is written or the stream takes no more; `chunks` are left with what was not written.
    fn write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<(), Stopped>> {
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

    fn finish(&mut self) {
        // Fails only where the stream is over already.
        let _over = self.stream.finish();
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
fn open_stream(connection: &quinn::Connection, catch_up: bool) -> Option<SendStream> {
    match pin!(connection.open_uni()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(stream)) => {
            let priority = if catch_up { PRIORITY_CATCH_UP } else { PRIORITY_LIVE };
            let _over = stream.set_priority(priority);
            Some(stream)
        }
        Poll::Ready(Err(_)) | Poll::Pending => None,
    }
}

fn stream_head(prefix: &[u8], channel: &ChannelName, catch_up: bool) -> Bytes {
    let header = StreamHeader { channel: channel.as_str().to_owned(), catch_up };
    let mut head = BytesMut::with_capacity(prefix.len() + header.encoded_len() + 2);
    head.extend_from_slice(prefix);
    header.encode_length_delimited(&mut head).expect("a growing buffer has room");
    head.freeze()
}

/// Strict in quinn: what ranks higher goes first.
const PRIORITY_CONTROL: i32 = 2;
const PRIORITY_LIVE: i32 = 1;
const PRIORITY_CATCH_UP: i32 = 0;

/// So many closed lanes may wait for their last bytes to go; more subscriptions than that get no streams meanwhile.
/// Bounds what a client that does not read can pile up by subscribing and unsubscribing.
const MAX_CLOSING: usize = 32;
