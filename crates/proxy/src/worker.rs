//! One worker: a thread with its own event loop, listening sockets, pools, records and counters. Nothing here is shared with
//! another worker except what has a meaning for the whole proxy (limits, endpoint counters), which lives in the plan.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use weft_core::random::SplitMix;

use crate::clock::Clock;
use crate::connect::Standing;
use crate::io as sockets;
use crate::labels::Node;
use crate::logging;
use crate::metrics::{self, WorkerMetrics};
use crate::netns;
use crate::on_demand::{Answer, Asking};
use crate::overload::{Action, Overload};
use crate::plan::{Active, SocketKey, WorkerPlan};
use crate::record::service::Services;
use crate::record::{Entry, Log, Recorder, Summary};
use crate::serve::{self, Scratch};
use crate::server_first::ServerFirst;

/// How often idle upstream connections are looked at.
const SWEEP_TIME: Duration = Duration::from_secs(2);
/// Connections accepted in one go before others get their turn.
const ACCEPT_BATCH: usize = 32;
/// How long accepting rests when the process has no descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// A socket that takes no new clients stays open for handshakes that have begun, as long as it takes that this thread is run so often when
/// it asks to be: where it has to wait its turn, so has that of the kernel which hears the clients' last words. Who dials the address
/// meanwhile may have to try again after a second, so it is short, and meant for clients near by.
const LAST_TURNS: u32 = 4;
const LAST_TURN: Duration = Duration::from_millis(5);
/// What of a delay is the clock's.
const PROMPT: Duration = Duration::from_millis(3);
/// Longer it is not, however busy the machine is.
const LAST_HANDSHAKES: Duration = Duration::from_millis(300);
/// Scratch memory kept for requests.
const KEPT_SCRATCH: usize = 64;

/// How far the process is on its way out; each is more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Draining {
    No,
    /// Another process accepts what comes. Clients are told with their answers, and may take their time.
    Gracefully,
    /// Idle connections close.
    Ending,
}

/// What the main thread tells a worker.
pub enum Command {
    /// Work by this from now on, and accept no more from sockets that it does not name.
    Plan(Arc<Active>),
    /// Give a request its answer: what it asked for is in the plan of before, or does not exist.
    Answer(oneshot::Sender<Answer>, Answer),
    /// Accept from this socket.
    Listen(SocketKey, OwnedFd),
    /// Stop accepting, and have the connections go.
    Drain(Draining),
    /// What has to be done under pressure is something else now.
    Overload,
    /// Say when all that was told before is done.
    Barrier(oneshot::Sender<()>),
    /// Close record files, so that they are opened anew.
    Reopen,
    /// End the worker.
    Stop,
}

/// What a worker is started with.
pub struct Start {
    pub seed: u64,
    pub standing: Standing,
    pub node: Arc<Node>,
    pub metrics: Arc<metrics::Shared>,
    /// Where records may go, besides files.
    pub services: Arc<Services>,
    pub overload: Arc<Overload>,
    pub commands: UnboundedReceiver<Command>,
    pub asking: Asking,
}

/// One worker's state; never leaves its thread.
pub struct Worker {
    plan: RefCell<Rc<WorkerPlan>>,
    pub random: RefCell<SplitMix>,
    pub clock: Clock,
    recorder: Recorder,
    pub metrics: WorkerMetrics,
    pub standing: Standing,
    pub node: Arc<Node>,
    pub overload: Arc<Overload>,
    pub server_first: ServerFirst,
    /// For what is loaded on demand.
    pub asking: Asking,
    /// Set off when connections may be accepted again, or not any more.
    overload_changed: Notify,
    draining: Cell<Draining>,
    // Boxed: what is lent is moved into a connection's future and back, and it is several hundred bytes.
    #[allow(clippy::vec_box)]
    scratch: RefCell<Vec<Box<Scratch>>>,
    /// Tasks of downstream connections, so that draining can wake the idle ones.
    connections: RefCell<HashMap<u64, Waker>>,
    next_connection: Cell<u64>,
    /// Records are due sooner than they were.
    flush: Notify,
}

impl Worker {
    /// The plan as of now. A request keeps the one it began with.
    pub fn plan(&self) -> Rc<WorkerPlan> {
        Rc::clone(&self.plan.borrow())
    }

    pub fn is_draining(&self) -> bool {
        self.draining.get() > Draining::No
    }

    /// Whether clients are told to go: by GOAWAY at once (where it is for room, if they have asked for anything), and by `connection: close` with
    /// the next answer.
    pub fn sends_clients_away(&self) -> bool {
        self.is_draining() || self.overload.actions().contains(Action::DisableHttpKeepalive)
    }

    /// Whether connections of HTTP/1 close as they become idle. Their clients may be sending at that very moment.
    pub fn closes_idle_connections(&self) -> bool {
        self.is_ending() || self.overload.actions().contains(Action::DisableHttpKeepalive)
    }

    /// Whether the process is about to end, and does not wait for clients to leave by themselves.
    pub fn is_ending(&self) -> bool {
        self.draining.get() == Draining::Ending
    }

    pub fn take_scratch(&self) -> Box<Scratch> {
        self.scratch.borrow_mut().pop().unwrap_or_default()
    }

    pub fn give_scratch(&self, mut scratch: Box<Scratch>) {
        let mut kept = self.scratch.borrow_mut();
        if kept.len() < KEPT_SCRATCH && scratch.tidy() {
            kept.push(scratch);
        }
    }

    /// Write a record of a request or connection that is over.
    pub fn record(&self, logs: &[Log], entry: &Entry<'_>) {
        log::debug!(target: entry.component(), "{}", Summary(entry));
        if self.recorder.record(logs, entry) {
            self.flush.notify_one();
        }
    }

    fn count_lost_records(&self, lost: u64) {
        if lost > 0 {
            self.metrics.counters().records_lost.add(lost);
        }
    }

    /// Know a downstream connection by its task, as long as the returned value lives.
    pub fn register(self: &Rc<Self>, waker: Waker) -> Registration {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        self.connections.borrow_mut().insert(id, waker);
        self.metrics.counters().downstream_connections.add(1);
        self.metrics.counters().downstream_active.add(1);
        Registration { worker: Rc::clone(self), id }
    }

    /// Count a downstream connection that is accepted, as long as the returned value lives.
    fn accepted(self: &Rc<Self>) -> Accepted {
        self.metrics.counters().accepted_active.add(1);
        Accepted { worker: Rc::clone(self) }
    }

    /// Wait while the process is too short of resources for more connections.
    async fn wait_for_room(&self) {
        while self.overload.actions().contains(Action::StopAcceptingConnections) {
            self.overload_changed.notified().await;
        }
    }

    fn drain(&self, draining: Draining) {
        self.draining.set(draining);
        self.wake_connections();
    }

    fn wake_connections(&self) {
        for waker in self.connections.borrow().values() {
            waker.wake_by_ref();
        }
    }
}

/// A downstream connection from its first moment on, when nobody knows yet what it will be.
pub struct Accepted {
    worker: Rc<Worker>,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.worker.metrics.counters().accepted_active.take_away(1);
    }
}

/// A downstream connection that a filter took.
pub struct Registration {
    worker: Rc<Worker>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(&self.id);
        self.worker.metrics.counters().downstream_active.take_away(1);
    }
}

/// Run a worker until it is told to stop. Blocks the thread. What is under way then is cut off, and each request and connection of it
/// leaves its record.
///
/// # Errors
/// The event loop cannot be made.
pub fn run(start: Start) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(tokio::runtime::LocalOptions::default())?;
    let worker = runtime.block_on(work(start));
    worker.recorder.expect_last();
    // Drops the tasks, and with them what they carry; see the `Drop` of each kind of it.
    drop(runtime);
    worker.count_lost_records(worker.recorder.flush());
    Ok(())
}

/// Do what the main thread says, until that is to stop.
async fn work(start: Start) -> Rc<Worker> {
    let Start { seed, standing, node, metrics, services, overload, mut commands, asking } = start;
    let worker = Rc::new(Worker {
        plan: RefCell::new(Rc::new(WorkerPlan::new(Arc::default(), None))),
        random: RefCell::new(SplitMix::new(seed)),
        clock: Clock::new(),
        recorder: Recorder::new(services),
        metrics: WorkerMetrics::new(metrics),
        standing,
        node,
        overload,
        server_first: ServerFirst::default(),
        asking,
        overload_changed: Notify::new(),
        draining: Cell::new(Draining::No),
        scratch: RefCell::default(),
        connections: RefCell::default(),
        next_connection: Cell::new(0),
        flush: Notify::new(),
    });
    spawn_local(keep_flushing(Rc::clone(&worker)));
    spawn_local(keep_sweeping(Rc::clone(&worker)));
    let mut listening: HashMap<SocketKey, Listening> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Plan(active) => {
                // Before the new plan is there: who waits in such a socket's queue came to the listener of the old one.
                for (_, left) in listening.extract_if(|key, _| !active.sockets.contains_key(key)) {
                    left.end(&worker);
                }
                let plan = WorkerPlan::new(active, Some(&worker.plan()));
                *worker.plan.borrow_mut() = Rc::new(plan);
                worker.metrics.forget_keys();
            }
            // Who gave up waiting is not there any more.
            Command::Answer(to, answer) => drop(to.send(answer)),
            Command::Listen(key, socket) => {
                if let Some(started) = Listening::start(&worker, key.clone(), socket) {
                    listening.insert(key, started);
                }
            }
            Command::Drain(how) => {
                for (_, left) in listening.drain() {
                    match how {
                        Draining::Ending => left.end(&worker),
                        Draining::Gracefully | Draining::No => left.leave(),
                    }
                }
                worker.drain(how);
            }
            Command::Overload => {
                worker.overload_changed.notify_waiters();
                // Idle ones may have to close.
                worker.wake_connections();
            }
            // Who does not wait any more needs no answer.
            Command::Barrier(done) => drop(done.send(())),
            Command::Reopen => worker.recorder.reopen(),
            Command::Stop => break,
        }
    }
    // What is idle in a pool would never be closed: connections know their pool, which knows them.
    worker.plan().upstreams().for_each(|upstream| upstream.pool.retire());
    worker
}

/// A socket that connections are accepted from.
struct Listening {
    key: Rc<SocketKey>,
    socket: Rc<AsyncFd<OwnedFd>>,
    task: AbortHandle,
}

/// What a round of accepting came to.
enum Round {
    /// There may be more.
    Some,
    /// Nobody waits.
    All,
    /// The system does not let us; told.
    Failed,
}

impl Listening {
    fn start(worker: &Rc<Worker>, key: SocketKey, socket: OwnedFd) -> Option<Listening> {
        match sockets::watch(socket, Interest::READABLE) {
            Ok(socket) => {
                let (key, socket) = (Rc::new(key), Rc::new(socket));
                let task = spawn_local(keep_accepting(Rc::clone(worker), None, Rc::clone(&key), Rc::clone(&socket)));
                Some(Listening { key, socket, task: task.abort_handle() })
            }
            Err(error) => {
                log::error!(target: logging::LISTENER, "cannot watch the listening socket of {}: {error}", key.address);
                None
            }
        }
    }

    /// Close it here, and nothing more: it is another process's too, and who waits in its queue is that one's.
    fn leave(self) {
        self.task.abort();
    }

    /// Accept who waits in the kernel's queue, whom closing the socket would reset, and close it when all are there whose handshakes have
    /// begun. All of them come to the listeners of this moment's plan.
    fn end(self, worker: &Rc<Worker>) {
        self.task.abort();
        let (key, socket, plan) = (self.key, self.socket, worker.plan());
        // A socket of the host is the edge's too, which gives it to the next proxy as it is.
        let is_shared = key.namespace.as_deref().is_some_and(netns::is_host);
        if !is_shared {
            // Else one more could come after the last was accepted.
            sockets::refuse_new_handshakes(socket.as_raw_fd());
        }
        while matches!(accept(worker, &plan, &key, &socket, !is_shared), Round::Some) {}
        if !is_shared {
            // Who has been answered by the kernel takes itself for connected, and is in no queue before its last word has come.
            let last = keep_accepting(Rc::clone(worker), Some(plan), key, socket);
            spawn_local(async {
                tokio::select! {
                    () = last_handshakes() => {}
                    () = last => {}
                }
            });
        }
    }
}

/// Wait until those have got through who were shaking hands when no new ones were let in any more.
pub async fn last_handshakes() {
    let deadline = Instant::now() + LAST_HANDSHAKES;
    let mut left = LAST_TURNS;
    while left > 0 && Instant::now() < deadline {
        let due = Instant::now() + LAST_TURN;
        sleep_until(due).await;
        left -= u32::from(due.elapsed() <= PROMPT);
    }
}

/// Accept who comes to *socket*, and have them served by *plan*, or that of the moment.
async fn keep_accepting(
    worker: Rc<Worker>,
    plan: Option<Rc<WorkerPlan>>,
    key: Rc<SocketKey>,
    socket: Rc<AsyncFd<OwnedFd>>,
) {
    loop {
        // Who comes meanwhile waits in the kernel's queue.
        worker.wait_for_room().await;
        let Ok(mut ready) = socket.readable().await else { return };
        if worker.overload.actions().contains(Action::StopAcceptingConnections) {
            continue;
        }
        let now = plan.as_ref().map_or_else(|| worker.plan(), Rc::clone);
        match accept(&worker, &now, &key, &socket, plan.is_some()) {
            Round::Some => {}
            Round::All => ready.clear_ready(),
            Round::Failed => sleep(ACCEPT_REST).await,
        }
        tokio::task::yield_now().await;
    }
}

/// Accept some of those who wait, and have them served by *plan*. *last*: nobody else is let in any more.
fn accept(
    worker: &Rc<Worker>,
    plan: &Rc<WorkerPlan>,
    key: &Rc<SocketKey>,
    socket: &AsyncFd<OwnedFd>,
    last: bool,
) -> Round {
    for _ in 0..ACCEPT_BATCH {
        match sockets::accept(socket.as_raw_fd()) {
            Ok(accepted) => {
                if last {
                    sockets::welcome(accepted.as_raw_fd());
                }
                let counted = worker.accepted();
                spawn_local(serve::serve(Rc::clone(worker), Rc::clone(plan), Rc::clone(key), accepted, counted));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Round::All,
            // The client gave up while it waited.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR)) => {}
            Err(error) => {
                log::error!(target: logging::LISTENER, "cannot accept on {}: {error}", key.address);
                return Round::Failed;
            }
        }
    }
    Round::Some
}

async fn keep_flushing(worker: Rc<Worker>) {
    loop {
        match worker.recorder.due() {
            None => worker.flush.notified().await,
            Some(due) => {
                // Meanwhile there may be a record that is to leave sooner.
                if timeout_at(due, worker.flush.notified()).await.is_err() {
                    worker.count_lost_records(worker.recorder.flush_due());
                }
            }
        }
    }
}

async fn keep_sweeping(worker: Rc<Worker>) {
    loop {
        sleep(SWEEP_TIME).await;
        let plan = worker.plan();
        for upstream in plan.upstreams() {
            upstream.pool.sweep(&upstream.shared.cluster);
        }
    }
}
