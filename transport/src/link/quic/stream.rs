//! A partition's link on a bidirectional stream.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tidegate_protocol::link::wire::{Batch, LinkDecoder, LinkFrame};
use tokio::sync::Notify;

use super::super::{Link, LinkClosed, LinkReceiver, LinkSender, TrySendError};
use super::{Shared, code};

/// Makes a link of a stream. `first` goes out before any frame; `decoder` may hold bytes already.
pub(super) fn link<Out: LinkFrame + Sync, In: LinkFrame>(
    shared: &Shared,
    send: SendStream,
    recv: RecvStream,
    first: Batch,
    decoder: LinkDecoder,
) -> Link<Out, In> {
    shared.queued.fetch_add(first.len(), Ordering::Relaxed);
    let outgoing = Arc::new(Outgoing {
        bound: shared.config.send_queue,
        queued: Arc::clone(&shared.queued),
        queue: Mutex::new(Queue { batch: first, writing: 0, state: State::Open }),
        work: Notify::new(),
        room: Notify::new(),
    });
    shared.writers.spawn(write(send, Arc::clone(&outgoing)));
    let receiver = StreamReceiver {
        recv,
        decoder,
        buffer: vec![0; READ_BYTES].into_boxed_slice(),
        is_over: false,
        outgoing: Arc::clone(&outgoing),
        frames: PhantomData,
    };
    let sender = StreamSender { outgoing, frames: PhantomData };
    Link { sender: Arc::new(sender), receiver: Box::new(receiver) }
}

/// What waits to be written. Frames are encoded where they are sent, so that a partition pays for its own.
#[derive(Debug)]
struct Outgoing {
    bound: usize,
    /// What waits here, and on the other links of the connection.
    queued: Arc<AtomicUsize>,
    queue: Mutex<Queue>,
    /// For the writer: there is something, or nothing will come any more.
    work: Notify,
    /// For those that wait to send.
    room: Notify,
}

#[derive(Debug)]
struct Queue {
    batch: Batch,
    /// Bytes that the writer has taken and QUIC has not.
    writing: usize,
    state: State,
}

/// ```text
/// Open ──► Finishing ──► Closed
///   └──► Broken ──────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Nobody is left to send: the stream ends behind what waits.
    Finishing,
    /// The other end does not keep to the protocol: the stream is reset.
    Broken,
    /// The stream is over.
    Closed,
}

/// What the writer does next.
enum Work {
    Write(Vec<Bytes>),
    Wait,
    Finish,
    Reset,
}

impl Outgoing {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held, but for want of memory.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_put<F: LinkFrame>(&self, frame: F) -> Result<(), TrySendError<F>> {
        let mut queue = self.queue();
        if queue.state != State::Open {
            return Err(TrySendError::Closed);
        }
        if queue.batch.len() + queue.writing >= self.bound {
            return Err(TrySendError::Full(frame));
        }
        let before = queue.batch.len();
        let is_first = queue.batch.is_empty();
        queue.batch.put(&frame);
        self.queued.fetch_add(queue.batch.len() - before, Ordering::Relaxed);
        drop(queue);
        if is_first {
            self.work.notify_one();
        }
        Ok(())
    }

    fn take(&self) -> Work {
        let mut queue = self.queue();
        match queue.state {
            State::Broken => Work::Reset,
            _ if !queue.batch.is_empty() => {
                queue.writing = queue.batch.len();
                Work::Write(queue.batch.take())
            }
            State::Open => Work::Wait,
            State::Finishing | State::Closed => Work::Finish,
        }
    }

    fn wrote(&self, bytes: usize) {
        let mut queue = self.queue();
        let written = bytes.min(queue.writing);
        queue.writing -= written;
        self.queued.fetch_sub(written, Ordering::Relaxed);
        let is_room = queue.batch.len() + queue.writing < self.bound;
        drop(queue);
        if is_room {
            self.room.notify_waiters();
        }
    }

    /// Leaves `Open`, if it is there still.
    fn end(&self, state: State) {
        let mut queue = self.queue();
        if queue.state == State::Open || state == State::Closed {
            queue.state = state;
        }
        if state == State::Closed {
            self.queued.fetch_sub(queue.batch.len() + queue.writing, Ordering::Relaxed);
            queue.batch = Batch::default();
            queue.writing = 0;
        }
        drop(queue);
        self.work.notify_one();
        self.room.notify_waiters();
    }

    fn is_broken(&self) -> bool {
        self.queue().state == State::Broken
    }
}

/// Writes what waits, all of it at once, until nobody sends any more and the other end has acknowledged everything.
async fn write(mut send: SendStream, outgoing: Arc<Outgoing>) {
    let mut stopped = pin!(send.stopped());
    loop {
        match outgoing.take() {
            Work::Write(mut chunks) => {
                if !write_all(&mut send, &outgoing, &mut chunks).await {
                    break;
                }
            }
            Work::Wait => tokio::select! { biased;
                // The other end wants no more, or is gone.
                _ = &mut stopped => break,
                () = outgoing.work.notified() => {}
            },
            Work::Finish => {
                // An error: it is over anyway.
                let _over = send.finish();
                let _stopped = stopped.await;
                break;
            }
            Work::Reset => {
                let _over = send.reset(code::PROTOCOL);
                break;
            }
        }
    }
    outgoing.end(State::Closed);
}

/// False where the stream is over.
async fn write_all(send: &mut SendStream, outgoing: &Outgoing, chunks: &mut [Bytes]) -> bool {
    let mut rest = chunks;
    while !rest.is_empty() {
        tokio::select! { biased;
            // Nothing is lost where another branch is taken: it says so.
            written = send.write_chunks(rest) => {
                let Ok(written) = written else { return false };
                outgoing.wrote(written.bytes);
                rest = &mut rest[written.chunks..];
            }
            () = outgoing.work.notified() => {
                if outgoing.is_broken() {
                    // The caller resets.
                    return true;
                }
            }
        }
    }
    true
}

#[derive(Debug)]
struct StreamSender<F> {
    outgoing: Arc<Outgoing>,
    frames: PhantomData<fn(F)>,
}

impl<F: LinkFrame> LinkSender<F> for StreamSender<F> {
    fn try_send(&self, frame: F) -> Result<(), TrySendError<F>> {
        self.outgoing.try_put(frame)
    }

    fn send(&self, frame: F) -> Pin<Box<dyn Future<Output = Result<(), LinkClosed>> + Send + '_>> {
        Box::pin(async move {
            let mut frame = frame;
            loop {
                let mut room = pin!(self.outgoing.room.notified());
                // Before the attempt, so that room which comes behind it is heard of.
                room.as_mut().enable();
                match self.outgoing.try_put(frame) {
                    Ok(()) => return Ok(()),
                    Err(TrySendError::Closed) => return Err(LinkClosed),
                    Err(TrySendError::Full(back)) => frame = back,
                }
                room.await;
            }
        })
    }
}

impl<F> Drop for StreamSender<F> {
    fn drop(&mut self) {
        self.outgoing.end(State::Finishing);
    }
}

/// Reads when it is polled: what is not polled stays with QUIC, whose window holds the other end back.
struct StreamReceiver<F> {
    recv: RecvStream,
    decoder: LinkDecoder,
    buffer: Box<[u8]>,
    is_over: bool,
    outgoing: Arc<Outgoing>,
    frames: PhantomData<fn() -> F>,
}

impl<F> std::fmt::Debug for StreamReceiver<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamReceiver").field("is_over", &self.is_over).finish_non_exhaustive()
    }
}

impl<F: LinkFrame> StreamReceiver<F> {
    fn over(&mut self) {
        self.is_over = true;
        self.decoder = LinkDecoder::default();
    }

    /// Frames that are here already; ends the stream where what came is none.
    fn take_decoded(&mut self, frames: &mut Vec<F>, limit: usize) -> usize {
        let mut taken = 0;
        while taken < limit {
            match self.decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => {
                    let _over = self.recv.stop(code::PROTOCOL);
                    self.outgoing.end(State::Broken);
                    self.over();
                    break;
                }
            }
            taken += 1;
        }
        taken
    }
}

impl<F: LinkFrame> LinkReceiver<F> for StreamReceiver<F> {
    fn poll_recv_many(&mut self, cx: &mut Context<'_>, frames: &mut Vec<F>, limit: usize) -> Poll<usize> {
        // A stream that always has more lets others have their turn, as tokio's own queues do.
        let turn = ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            let taken = self.take_decoded(frames, limit);
            if taken > 0 || self.is_over || limit == 0 {
                turn.made_progress();
                return Poll::Ready(taken);
            }
            match ready!(self.recv.poll_read(cx, &mut self.buffer)) {
                Ok(bytes @ 1..) => self.decoder.push(&self.buffer[..bytes]),
                // The end, in order or not: who is not sent a `Moved` asks for the rest elsewhere in either case.
                Ok(0) | Err(_) => self.over(),
            }
        }
    }
}

/// Read from QUIC in one go.
const READ_BYTES: usize = 32 * 1024;
