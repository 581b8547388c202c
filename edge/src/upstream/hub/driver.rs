//! The driver around the hub's machine: one thread, one task for each worker's end, connection and link.
//!
//! Nobody waits for anybody else: what a link or a worker has no room for stays in the machine, whose queues are bounded.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, pending, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;
use tidegate_protocol::link::{CoreFrame, EdgeFrame, Hello};
use tidegate_transport::clock;
use tidegate_transport::link::{CoreLink, LinkReceiver, LinkSender, TrySendError};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::dialer::{Dialer, Uplink};
use super::machine::{ConnectionId, Event, LinkId, Machine};
use super::metrics::HubMetrics;
use super::region::OpenFailure;
use super::status;
use super::workers::Client;
use crate::fleet::{Fleet, Way};

/// What the handle asks.
#[derive(Debug)]
pub(crate) enum Command {
    /// A question for a core; its number is not used.
    Ask {
        /// What.
        frame: EdgeFrame,
        /// Takes the answer.
        answer: oneshot::Sender<CoreFrame>,
    },
    /// How everything is.
    Status {
        /// Takes the JSON.
        answer: oneshot::Sender<Bytes>,
    },
}

/// What the hub's thread runs.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) machine: Machine,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) hello: Hello,
    pub(crate) fleet: Fleet,
    pub(crate) workers: Vec<CoreLink>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) metrics: Arc<HubMetrics>,
    pub(crate) ready: Arc<AtomicBool>,
    pub(crate) end: CancellationToken,
}

impl Runner {
    /// Runs until `end` is cancelled, on a `LocalSet`.
    pub(crate) async fn run(self) {
        let Self { machine, dialer, hello, fleet, workers, commands, metrics, ready, end } = self;
        let clients = workers.iter().map(|_| ClientEntry::default()).collect();
        let driver = Rc::new(Driver {
            machine: RefCell::new(machine),
            dialer,
            hello,
            fleet,
            clients,
            connections: RefCell::default(),
            links: RefCell::default(),
            asked: RefCell::default(),
            link_over: Notify::new(),
            timer: Notify::new(),
            armed: Cell::new(None),
            metrics,
            ready,
        });
        let mut tasks = vec![
            spawn({
                let driver = Rc::clone(&driver);
                async move { driver.keep_time().await }
            }),
            spawn({
                let driver = Rc::clone(&driver);
                async move { driver.measure_for_ever().await }
            }),
            spawn(serve_commands(Rc::clone(&driver), commands)),
        ];
        for (client, link) in (0..).map(Client).zip(workers) {
            tasks.push(spawn(read_worker(Rc::clone(&driver), client, link.receiver)));
            tasks.push(spawn(write_worker(Rc::clone(&driver), client, link.sender)));
        }
        driver.machine.borrow_mut().start(clock::now());
        driver.go_on();
        end.cancelled().await;
        for task in tasks {
            task.abort();
        }
        driver.hang_up_all();
        info!("the hub ends");
    }
}

/// What all tasks of the hub share.
pub(crate) struct Driver {
    pub(super) machine: RefCell<Machine>,
    dialer: Arc<dyn Dialer>,
    hello: Hello,
    fleet: Fleet,
    clients: Vec<ClientEntry>,
    connections: RefCell<BTreeMap<ConnectionId, ConnectionEntry>>,
    links: RefCell<BTreeMap<LinkId, LinkEntry>>,
    /// Who waits for answers, of the backend API. As many as its requests in flight.
    asked: RefCell<Slab<oneshot::Sender<CoreFrame>>>,
    /// A link is over.
    link_over: Notify,
    /// The machine wants to be woken at another time.
    timer: Notify,
    armed: Cell<Option<Instant>>,
    metrics: Arc<HubMetrics>,
    ready: Arc<AtomicBool>,
}

#[derive(Default)]
struct ClientEntry {
    /// Something waits for it.
    wake: Notify,
    /// It took something.
    room: Notify,
}

struct ConnectionEntry {
    uplink: Option<Arc<dyn Uplink>>,
    task: AbortHandle,
}

struct LinkEntry {
    connection: ConnectionId,
    /// Something may wait for it.
    wake: Rc<Notify>,
    tasks: Vec<AbortHandle>,
}

impl Driver {
    /// The connection, where there is one.
    pub(super) fn uplink(&self, connection: ConnectionId) -> Option<Arc<dyn Uplink>> {
        self.connections.borrow().get(&connection)?.uplink.clone()
    }

    /// Does what the machine says, and wakes whom that concerns. After every input.
    fn go_on(self: &Rc<Self>) {
        loop {
            let event = self.machine.borrow_mut().poll_event();
            let Some(event) = event else { break };
            self.act(event);
        }
        let (links, clients) = self.machine.borrow_mut().take_ready();
        {
            let entries = self.links.borrow();
            for entry in links.iter().filter_map(|link| entries.get(link)) {
                entry.wake.notify_one();
            }
        }
        for client in clients.iter() {
            match self.clients.get(usize::from(client.0)) {
                Some(entry) => entry.wake.notify_one(),
                None => self.answer_backend(client),
            }
        }
        let mut machine = self.machine.borrow_mut();
        self.metrics.count(machine.take_stats());
        self.look_at(&machine);
        if machine.poll_timeout() != self.armed.get() {
            self.timer.notify_one();
        }
    }

    fn act(self: &Rc<Self>, event: Event) {
        match event {
            Event::Dial { region, address, connection } => {
                let task = spawn(serve_connection(Rc::clone(self), region, address, connection));
                self.connections.borrow_mut().insert(connection, ConnectionEntry { uplink: None, task });
            }
            Event::HangUp { connection, reason } => {
                let entry = self.connections.borrow_mut().remove(&connection);
                if let Some(ConnectionEntry { uplink, task }) = entry {
                    debug!(reason, "hangs up on a core");
                    if let Some(uplink) = uplink {
                        uplink.close(reason);
                    }
                    task.abort();
                }
            }
            Event::Open { region, partition, connection, link } => {
                let uplink = self.uplink(connection);
                let task = spawn(serve_link(Rc::clone(self), (region, partition), uplink, link));
                let entry = LinkEntry { connection, wake: Rc::default(), tasks: vec![task] };
                self.links.borrow_mut().insert(link, entry);
            }
            Event::Drop { link } => self.drop_link(link),
            Event::Fault { region, partition, fault } => {
                let machine = self.machine.borrow();
                let region = machine.regions().get(region).map_or("", |links| links.name().as_str());
                warn!(region, partition, %fault, "a link to a core is reset");
            }
        }
    }

    fn drop_link(&self, link: LinkId) {
        let entry = self.links.borrow_mut().remove(&link);
        self.link_over.notify_waiters();
        for task in entry.into_iter().flat_map(|entry| entry.tasks) {
            task.abort();
        }
    }

    /// Until all links that there are over a connection have been read to their ends.
    async fn links_end(&self, connection: ConnectionId) {
        let mut left: Vec<LinkId> = Vec::new();
        left.extend(
            self.links.borrow().iter().filter(|(_, l)| l.connection == connection).map(|(id, _)| *id),
        );
        loop {
            // Nothing runs between the look and the wait.
            left.retain(|link| self.links.borrow().contains_key(link));
            if left.is_empty() {
                return;
            }
            self.link_over.notified().await;
        }
    }

    fn hang_up_all(&self) {
        let links: Vec<LinkId> = self.links.borrow().keys().copied().collect();
        links.into_iter().for_each(|link| self.drop_link(link));
        for (_, entry) in self.connections.take() {
            if let Some(uplink) = entry.uplink {
                uplink.close("the edge ends");
            }
            entry.task.abort();
        }
        // Who waits is told by the dropped sender.
        self.asked.take();
    }

    fn answer_backend(self: &Rc<Self>, client: Client) {
        loop {
            let frame = self.machine.borrow_mut().poll_client(client);
            let Some(frame) = frame else { return };
            let (CoreFrame::Published { request, .. }
            | CoreFrame::Recovered { request, .. }
            | CoreFrame::Members { request, .. }
            | CoreFrame::Spent { request, .. }) = &frame
            else {
                continue;
            };
            let key = usize::try_from(*request).unwrap_or(usize::MAX);
            let answer = self.asked.borrow_mut().try_remove(key);
            if let Some(answer) = answer {
                // Whoever asked may have given up.
                let _ = answer.send(frame);
            }
        }
    }

    async fn keep_time(self: &Rc<Self>) {
        loop {
            let due = self.machine.borrow().poll_timeout();
            self.armed.set(due);
            let sleep = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            // Biased: neither side is ready for ever.
            tokio::select! {
                biased;
                () = sleep => {
                    self.machine.borrow_mut().handle_timeout(clock::now());
                    self.go_on();
                }
                () = self.timer.notified() => {}
            }
        }
    }

    async fn measure_for_ever(&self) {
        loop {
            self.measure();
            tokio::time::sleep(MEASURE).await;
        }
    }

    fn look_at(&self, machine: &Machine) {
        let ready = machine.is_in_reach(clock::now());
        if self.ready.swap(ready, Ordering::Relaxed) != ready {
            info!(ready, "partitions of all regions are in reach");
        }
    }

    fn measure(&self) {
        let machine = self.machine.borrow();
        // Also time alone changes that.
        self.look_at(&machine);
        self.metrics.set_queue(machine.queued_bytes());
        for links in machine.regions() {
            self.metrics.set_links(links.name(), links.links(), links.connected());
        }
    }
}

/// Dials a core, then takes its directories until the connection is over.
async fn serve_connection(driver: Rc<Driver>, region: usize, address: Arc<str>, id: ConnectionId) {
    let dialled = timeout(DIAL_WAIT, driver.dialer.dial(Arc::clone(&address), driver.hello.clone())).await;
    let uplink = match dialled {
        Ok(Ok(uplink)) => uplink,
        failed => {
            let reason = match failed {
                Ok(Err(reason)) => reason,
                _ => "no answer in time".to_owned(),
            };
            debug!(%address, %reason, "a core is not linked");
            driver.metrics.count_dial_failure();
            driver.connections.borrow_mut().remove(&id);
            driver.machine.borrow_mut().handle_dialled(clock::now(), region, id, Err(()));
            driver.go_on();
            return;
        }
    };
    let welcome = uplink.welcome().clone();
    info!(%address, node = welcome.node.as_str(), "connected to a core");
    if let Some(entry) = driver.connections.borrow_mut().get_mut(&id) {
        entry.uplink = Some(Arc::clone(&uplink));
    }
    driver.machine.borrow_mut().handle_dialled(clock::now(), region, id, Ok(welcome));
    driver.go_on();
    driver.measure();
    let closed = uplink.closed();
    let follow = driver.fleet.follow(Way(id.0), Arc::clone(&uplink));
    tokio::pin!(closed, follow);
    let reason = loop {
        // Biased: the end comes once, and directories are paced.
        tokio::select! {
            biased;
            reason = &mut closed => break reason,
            directory = uplink.next_directory() => match directory {
                Some(directory) => {
                    driver.machine.borrow_mut().handle_directory(clock::now(), region, &directory);
                    driver.go_on();
                    driver.measure();
                }
                None => break closed.await,
            },
            () = &mut follow => {}
        }
    };
    // What came before the end counts: answers, and who has a partition next.
    let _ = timeout(LAST_WORDS, driver.links_end(id)).await;
    warn!(%address, %reason, "a core is lost");
    driver.connections.borrow_mut().remove(&id);
    driver.machine.borrow_mut().handle_hung_up(clock::now(), region, id);
    driver.go_on();
    driver.measure();
}

/// Opens a partition's link, then takes what comes over it.
async fn serve_link(driver: Rc<Driver>, at: (usize, u16), uplink: Option<Arc<dyn Uplink>>, id: LinkId) {
    let opened = match uplink {
        Some(uplink) => timeout(OPEN_WAIT, uplink.open(at.1)).await.unwrap_or(Err(OpenFailure::Lost)),
        None => Err(OpenFailure::Lost),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            driver.links.borrow_mut().remove(&id);
            driver.link_over.notify_waiters();
            driver.machine.borrow_mut().handle_open_failed(clock::now(), at, id, failure);
            driver.go_on();
            return;
        }
    };
    debug!(partition = at.1, term = opened.term, "a link to a core is open");
    driver.machine.borrow_mut().handle_opened(clock::now(), at, id, opened.term);
    driver.go_on();
    driver.measure();
    {
        let mut links = driver.links.borrow_mut();
        // Of a term that is over.
        let Some(entry) = links.get_mut(&id) else { return };
        let wake = Rc::clone(&entry.wake);
        entry.tasks.push(spawn(write_link(Rc::clone(&driver), at, id, opened.link.sender, wake)));
    }
    let mut receiver = opened.link.receiver;
    let mut frames = Vec::with_capacity(BATCH);
    loop {
        if poll_fn(|cx| receiver.poll_recv_many(cx, &mut frames, BATCH)).await == 0 {
            break;
        }
        let now = clock::now();
        for frame in frames.drain(..) {
            driver.machine.borrow_mut().handle_core(now, at, id, frame);
        }
        driver.go_on();
        // Where a link never runs dry, others have their turn all the same.
        tokio::task::yield_now().await;
    }
    debug!(partition = at.1, "a link to a core is over");
    driver.machine.borrow_mut().handle_closed(clock::now(), at, id);
    // With this task: it ends here anyway.
    driver.drop_link(id);
    driver.go_on();
    driver.measure();
}

async fn write_link(
    driver: Rc<Driver>,
    at: (usize, u16),
    id: LinkId,
    sender: Arc<dyn LinkSender<EdgeFrame>>,
    wake: Rc<Notify>,
) {
    let mut sent = 0u32;
    loop {
        let frame = driver.machine.borrow_mut().poll_transmit(at, id);
        let Some(frame) = frame else {
            wake.notified().await;
            continue;
        };
        match sender.try_send(frame) {
            Ok(()) => {}
            // That the link is over is for its reader to find out.
            Err(TrySendError::Closed) => return,
            Err(TrySendError::Full(frame)) => {
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
        }
        sent = sent.wrapping_add(1);
        if sent.is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
    }
}

async fn read_worker(driver: Rc<Driver>, client: Client, mut receiver: Box<dyn LinkReceiver<EdgeFrame>>) {
    let mut frames = Vec::with_capacity(BATCH);
    loop {
        while driver.machine.borrow().is_clogged(client) {
            driver.clients[usize::from(client.0)].room.notified().await;
        }
        if poll_fn(|cx| receiver.poll_recv_many(cx, &mut frames, BATCH)).await == 0 {
            return;
        }
        let now = clock::now();
        for frame in frames.drain(..) {
            driver.machine.borrow_mut().handle_client(now, client, frame);
        }
        driver.go_on();
        tokio::task::yield_now().await;
    }
}

async fn write_worker(driver: Rc<Driver>, client: Client, sender: Arc<dyn LinkSender<CoreFrame>>) {
    let entry = &driver.clients[usize::from(client.0)];
    let mut sent = 0u32;
    loop {
        let frame = driver.machine.borrow_mut().poll_client(client);
        let Some(frame) = frame else {
            // It may have caught up.
            driver.go_on();
            entry.room.notify_one();
            entry.wake.notified().await;
            continue;
        };
        match sender.try_send(frame) {
            // A worker that is gone takes everything.
            Ok(()) | Err(TrySendError::Closed) => {}
            Err(TrySendError::Full(frame)) => {
                let _ = sender.send(frame).await;
            }
        }
        sent = sent.wrapping_add(1);
        if sent.is_multiple_of(TURN) {
            driver.go_on();
            entry.room.notify_one();
            tokio::task::yield_now().await;
        }
    }
}

async fn serve_commands(driver: Rc<Driver>, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Ask { frame, answer } => {
                let request = driver.asked.borrow_mut().insert(answer) as u64;
                let mut machine = driver.machine.borrow_mut();
                let client = machine.api();
                machine.handle_client(clock::now(), client, numbered(frame, request));
                drop(machine);
                driver.go_on();
            }
            Command::Status { answer } => {
                let driver = Rc::clone(&driver);
                spawn(async move {
                    let status = status::gather(&driver).await;
                    // Whoever asked may have given up.
                    let _ = answer.send(status);
                });
            }
        }
    }
}

fn numbered(frame: EdgeFrame, request: u64) -> EdgeFrame {
    match frame {
        EdgeFrame::Publish { publish, .. } => EdgeFrame::Publish { request, publish },
        EdgeFrame::History { channel, range, .. } => EdgeFrame::History { request, channel, range },
        EdgeFrame::Members { channel, .. } => EdgeFrame::Members { request, channel },
        frame => frame,
    }
}

/// On the hub's thread. Ends with it.
pub(super) fn spawn(task: impl Future<Output = ()> + 'static) -> AbortHandle {
    tokio::task::spawn_local(task).abort_handle()
}

/// For a core to answer at all.
const DIAL_WAIT: Duration = Duration::from_secs(10);
/// For a core to serve a partition that it was asked for: a little longer than it holds such requests back.
const OPEN_WAIT: Duration = Duration::from_secs(7);
/// For what came over a connection before it ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Between two looks at what waits.
const MEASURE: Duration = Duration::from_secs(1);
/// Frames taken off a link at once.
const BATCH: usize = 256;
/// Frames written before others have their turn.
const TURN: u32 = 256;
