//! weft-proxy: the data plane, one process for each workload.
//!
//! The main thread follows the control plane and answers on the admin socket; workers, one thread each, do nothing but
//! carry connections. They meet in [`worker::Command`] and in the immutable [`plan::Active`] that it brings.
//!
//! A request's way through a worker begins in [`serve`]; a configuration's way to the workers in [`configure`].

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use weft_xds::Refusal;

mod admin;
mod alarm;
mod authority;
mod bootstrap;
mod buffer;
mod caller;
mod clock;
mod codec;
mod configure;
mod connect;
mod descriptors;
mod detect;
mod dns;
mod document;
mod edge;
mod filter;
mod forward;
mod gone;
mod health_check;
mod http;
mod identify;
mod io;
mod keeper;
mod labels;
mod listen;
mod loaded;
mod logging;
mod message;
mod metrics;
mod multiplex;
mod netns;
mod on_demand;
mod overload;
mod patience;
mod pick;
mod plan;
mod profile;
mod rbac;
mod record;
mod resident;
mod respond;
mod route;
mod rpc;
mod runtime;
mod serve;
mod server_first;
mod state;
mod tcp;
mod tls;
mod validate;
mod virtual_hosts;
mod warming;
mod worker;

use crate::admin::Admin;
use crate::bootstrap::{Bootstrap, Options, StartError};
use crate::configure::Configurator;
use crate::connect::Standing;
use crate::health_check::Checks;
use crate::keeper::Keeper;
use crate::labels::Node;
use crate::listen::Sockets;
use crate::metrics::Shared;
use crate::on_demand::{Ask, Asking};
use crate::overload::Overload;
use crate::record::service::Services;
use crate::worker::{Command, Draining, Start, last_handshakes};

#[global_allocator]
static ALLOCATOR: profile::heap::Allocator = profile::heap::Allocator;

/// How often draining looks whether connections are left.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How long draining waits for connections of which nobody knows yet what they will be, in their TLS handshakes above all. As many round trips
/// as that takes, and the second that a lost packet costs; who opens a connection and says nothing holds nobody longer.
const GREETING_GRACE: Duration = Duration::from_secs(2);
/// How long workers may take to cut off what is under way, and to write their last records: ten thousand connections are closed in less than
/// a second of a processor's time, and there may be several processes that want it.
const STOP_TIME: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, rest @ ..] = &*arguments
        && command == "validate"
    {
        return validate(rest);
    }
    match run(started, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Start(error)) => {
            eprintln!("weft-proxy: {error}");
            ExitCode::from(if matches!(error, StartError::Usage(_)) { 2 } else { 1 })
        }
        Err(error) => {
            eprintln!("weft-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `weft-proxy validate FILE`: 0 if all would be honoured, 1 if something would not, 2 if there is nothing to check.
fn validate(arguments: &[String]) -> ExitCode {
    let [file] = arguments else {
        eprintln!("usage: weft-proxy validate FILE");
        return ExitCode::from(2);
    };
    match validate::run(std::path::Path::new(file)) {
        Ok(report) => {
            println!("{report}");
            if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("weft-proxy: {error}");
            ExitCode::from(2)
        }
    }
}

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("static resources of the bootstrap cannot be put to work: {}", listed(.0))]
    Static(Vec<Refusal>),
    #[error("{0} ended; without it connections would be lost")]
    Worker(String),
}

fn listed(refusals: &[Refusal]) -> String {
    let each: Vec<_> = refusals.iter().map(|refusal| format!("{}: {}", refusal.name, refusal.reason)).collect();
    each.join("; ")
}

/// A proxy beside each workload needs few of the 512 small pages in a huge one: with them a heap of 1 MiB is 8 MiB resident.
#[cfg(not(miri))]
extern "C" fn refuse_huge_pages() {
    // SAFETY: the call takes numbers only. Where the kernel knows no huge pages it fails, and nothing is lost.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Called before `main`, and before the allocator's own constructor touches the first page.
#[cfg(not(miri))]
#[used]
// SAFETY: the section holds functions of this type; this one needs nothing of what is set up later.
#[unsafe(link_section = ".init_array.00001")]
static BEFORE_ALLOCATOR: extern "C" fn() = refuse_huge_pages;

// SIGPIPE is ignored by Rust's runtime before `main`; a closed socket is an error of the write.
fn run(started: Instant, arguments: Vec<String>) -> Result<(), Failure> {
    profile::cpu::enter_thread();
    let options = Options::parse(arguments)?;
    logging::start(&options.logging);
    // Before the limits that follow from it are read.
    overload::raise_descriptor_limit();
    let bootstrap = Bootstrap::read(&options.bootstrap)?;
    let standing = Standing { edge: options.edge.clone(), source: bootstrap.source };
    let (services, log_clients) = Services::new(&bootstrap);
    let overload = Arc::new(Overload::new(&bootstrap.overload));
    let node = Arc::new(Node::new(&bootstrap.metadata));
    let workers = Workers::start(&options, &standing, &node, &services, &overload)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async {
        spawn_local(record::service::run(log_clients));
        spawn_local(overload::watch(bootstrap.overload.clone(), Arc::clone(&overload), workers.commands.clone()));
        supervise(options, bootstrap, standing, workers, overload, started).await?;
        services.farewell().await;
        Ok(())
    })
}

/// The worker threads.
struct Workers {
    threads: Vec<JoinHandle<()>>,
    commands: Vec<UnboundedSender<Command>>,
    metrics: Vec<Arc<Shared>>,
    /// The name of each worker that ended.
    ended: UnboundedReceiver<String>,
    /// What their requests ask for.
    asks: Option<UnboundedReceiver<Ask>>,
}

/// Tells that a worker ended, even if it panicked.
struct Obituary {
    name: String,
    to: UnboundedSender<String>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        // The main thread may have ended first.
        let _ = self.to.send(std::mem::take(&mut self.name));
    }
}

impl Workers {
    fn start(
        options: &Options,
        standing: &Standing,
        node: &Arc<Node>,
        services: &Arc<Services>,
        overload: &Arc<Overload>,
    ) -> std::io::Result<Workers> {
        let (to, ended) = unbounded_channel();
        let (asks, asked) = unbounded_channel();
        let mut workers =
            Workers { threads: Vec::new(), commands: Vec::new(), metrics: Vec::new(), ended, asks: Some(asked) };
        for index in 0..options.concurrency {
            let (sender, commands) = unbounded_channel();
            let metrics = Arc::new(Shared::default());
            let start = Start {
                seed: random_seed(),
                standing: standing.clone(),
                node: Arc::clone(node),
                metrics: Arc::clone(&metrics),
                services: Arc::clone(services),
                overload: Arc::clone(overload),
                commands,
                asking: Asking { worker: index, asks: asks.clone() },
            };
            let name = format!("worker-{index}");
            let obituary = Obituary { name: name.clone(), to: to.clone() };
            let thread = thread::Builder::new().name(name).spawn(move || {
                let obituary = obituary;
                profile::cpu::enter_thread();
                if let Err(error) = worker::run(start) {
                    log::error!(target: logging::MAIN, "{}: {error}", obituary.name);
                }
            })?;
            workers.threads.push(thread);
            workers.commands.push(sender);
            workers.metrics.push(metrics);
        }
        Ok(workers)
    }

    /// Connections of clients that are open now.
    fn connections(&self) -> u64 {
        self.metrics.iter().map(|metrics| metrics.counters.accepted_active.read()).sum()
    }

    /// Those of them that a filter took.
    fn taken_connections(&self) -> u64 {
        self.metrics.iter().map(|metrics| metrics.counters.downstream_active.read()).sum()
    }

    /// Wait until all workers have done what they were told before.
    async fn obey(&self) {
        for commands in &self.commands {
            let (done, is_done) = oneshot::channel();
            // One that has ended does nothing more.
            if commands.send(Command::Barrier(done)).is_ok() {
                let _ = is_done.await;
            }
        }
    }

    /// Wait for workers that were told to stop; false if one does not.
    async fn join(&self) -> bool {
        let end = Instant::now() + STOP_TIME;
        while !self.threads.iter().all(JoinHandle::is_finished) {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }
}

/// Round robin and jitter should not begin at the same place in every proxy; the hasher's keys come from the system's generator.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Signals that end or change the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reopen: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reopen: signal(SignalKind::user_defined1())?,
        })
    }

    /// Wait for a request to end; reopening is done on the way. Cancel-safe.
    async fn end(&mut self, configurator: &RefCell<Configurator>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.reopen.recv() => configurator.borrow().reopen(),
            }
        }
    }
}

/// The main thread's work, from the start to the end of the process.
async fn supervise(
    options: Options,
    bootstrap: Bootstrap,
    standing: Standing,
    mut workers: Workers,
    overload: Arc<Overload>,
    started: Instant,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let keeper = options.keeper.map(Keeper::inherit).transpose()?;
    let sockets = Sockets::new(options.concurrency, options.edge.clone(), keeper);
    let checks = Checks::new(standing, random_seed());
    let state_dir = options.state_dir.clone();
    let configurator =
        Configurator::new(&bootstrap, sockets, workers.commands.clone(), checks, state_dir, random_seed());
    if let Some(asks) = workers.asks.take() {
        spawn_local(configure::keep_answering(Rc::clone(&configurator), asks));
    }
    let quit = Rc::new(Notify::new());
    if let Some(place) = &bootstrap.admin {
        let admin = Admin {
            configurator: Rc::clone(&configurator),
            metrics: workers.metrics.clone(),
            overload,
            started,
            node: bootstrap.node.id.clone(),
            quit: Rc::clone(&quit),
        };
        spawn_local(admin::serve(admin::Socket::bind(place).await?, Rc::new(admin)));
    }
    for problem in &bootstrap.not_applied {
        log::info!(target: logging::MAIN, "not applied, in the bootstrap: {problem}");
    }
    let node = bootstrap.node.id.clone();
    Configurator::start(&configurator, bootstrap).map_err(Failure::Static)?;
    log::info!(target: logging::MAIN, "started, {} workers, {node}", options.concurrency);
    tokio::select! {
        () = signals.end(&configurator) => {}
        () = quit.notified() => {}
        Some(name) = workers.ended.recv() => return Err(Failure::Worker(name)),
    }
    drain(&configurator, &workers, options.drain, &mut signals).await;
    configurator.borrow_mut().save();
    configurator.borrow().stop();
    if !workers.join().await {
        log::error!(target: logging::MAIN, "a worker does not stop; its last records may be lost");
    }
    Ok(())
}

/// Accept no more, and wait until the connections that exist are gone, the time is over, or a second signal comes.
async fn drain(configurator: &RefCell<Configurator>, workers: &Workers, limit: Duration, signals: &mut Signals) {
    log::info!(target: logging::MAIN, "draining, {} connections, at most {limit:?}", workers.connections());
    configurator.borrow_mut().drain(Draining::Ending);
    let greeted = Instant::now() + GREETING_GRACE;
    let idle = async {
        // Else who waits in their sockets' queues would not be counted.
        workers.obey().await;
        last_handshakes().await;
        while workers.connections() > 0 && (workers.taken_connections() > 0 || Instant::now() < greeted) {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    tokio::select! {
        () = idle => {}
        () = tokio::time::sleep(limit) => {
            log::warn!(target: logging::MAIN, "the time is over; {} connections are cut off", workers.connections());
        }
        () = signals.end(configurator) => log::warn!(target: logging::MAIN, "cut short by a second signal"),
    }
}
