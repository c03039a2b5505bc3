//! Bytes both ways, understood by nobody: TCP and what looks like it.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::balance::Active;
use weft_core::outlier::Observation;
use weft_core::respond::Cause;
use weft_core::tcp_proxy::TcpProxy;

use crate::clock;
use crate::connect::{self, ConnectError, Connection};
use crate::forward::{self, Progress, Totals, TunnelEnd};
use crate::gone::unless_gone;
use crate::identify::Facts;
use crate::labels::{self, Protocol};
use crate::metrics::Series;
use crate::pick::{self, Tried};
use crate::plan::WorkerUpstream;
use crate::record::{Entry, Outcome, Subject};
use crate::serve::{Downstream, Socket};
use crate::worker::Worker;

/// The way of a connection to its upstream as far as it has come, and what its record will tell of it.
#[derive(Default)]
pub struct Way {
    /// `None`: there is no such cluster, or nobody has looked for it yet.
    upstream: Option<Rc<WorkerUpstream>>,
    /// Counts it at its endpoint.
    active: Option<Active>,
    outcome: Outcome,
}

/// An upstream that a connection can be carried to.
pub struct Opened {
    pub connection: Box<Connection>,
    pub way: Way,
}

/// A connection that a TCP proxy filter took. It is over when this is dropped, and recorded then: also when the process ends and does not
/// wait for it, and drops its task.
struct Passage<'d> {
    down: &'d Downstream,
    began: Instant,
    way: Way,
    received: Progress,
    sent: Progress,
    /// What counts it, from when it is carried.
    series: Option<Arc<Series>>,
}

/// Serve a connection that a TCP proxy filter took; *early* is its upstream, if that was dialled already.
pub async fn serve(down: Downstream, mut socket: Socket, proxy: &TcpProxy, early: Option<Box<Opened>>) {
    let _registration = down.worker.register(crate::http::waker().await);
    let mut passage = Passage::begin(&down);
    let connection = match early {
        Some(early) => {
            let Opened { connection, way } = *early;
            passage.way = way;
            Some(connection)
        }
        None => passage.open_unless_reset(&socket, proxy).await,
    };
    match connection {
        Some(connection) => passage.carry(&mut socket, proxy, connection).await,
        // The client must not take this for an orderly end of what it asked for.
        None if passage.way.upstream.is_some() => socket.io.reset_on_close(),
        None => {}
    }
    // record
    drop(passage);
}

impl<'d> Passage<'d> {
    fn begin(down: &'d Downstream) -> Passage<'d> {
        Passage {
            down,
            began: Instant::now(),
            way: Way::default(),
            received: Progress::default(),
            sent: Progress::default(),
            series: None,
        }
    }

    /// Connect for the client in *socket*, and stop when it resets its connection. One that only sends no more may wait for an answer: it is
    /// carried on, as Envoy does.
    async fn open_unless_reset(&mut self, socket: &Socket, proxy: &TcpProxy) -> Option<Box<Connection>> {
        let opening = open(&self.down.worker, &self.down.facts, proxy, &mut self.way);
        let opened = unless_gone(opening, |context| socket.io.poll_reset(context)).await;
        if opened.is_none() {
            self.way.outcome.end(Cause::DownstreamGone);
        }
        opened.flatten()
    }

    /// Forward bytes both ways, to the end of the connection.
    async fn carry(&mut self, socket: &mut Socket, proxy: &TcpProxy, mut connection: Box<Connection>) {
        let series = series(self.down, &self.way);
        series.connection_opened();
        self.series = Some(series);
        let Passage { down, began, way, received, sent, .. } = self;
        let outcome = &mut way.outcome;
        let totals = Totals::of(received, sent);
        let (idle, worn) = (proxy.idle_timeout, proxy.max_duration.map(|limit| *began + limit));
        let (io, buffer) = (&connection.io, &mut connection.buffer);
        let work = forward::tunnel((&socket.io, &mut socket.buffer), (io, buffer), &totals, down.program_only);
        let limits = Limits { idle, end: worn };
        match within(limits, work, &totals, &mut socket.alarm).await {
            Some(TunnelEnd::Finished) => {}
            Some(TunnelEnd::Downstream) => connection.io.reset_on_close(),
            Some(TunnelEnd::Upstream) => {
                outcome.flag(weft_core::respond::ResponseFlag::UpstreamConnectionTermination);
                socket.io.reset_on_close();
            }
            Some(TunnelEnd::Request) => {
                down.worker.metrics.counters().callers_refused.add(1);
                outcome.end(Cause::HttpAmongBytes);
                socket.io.reset_on_close();
            }
            None if limits.is_over() => outcome.end(Cause::ConnectionDuration),
            None => outcome.end(Cause::StreamIdleTimeout),
        }
    }
}

impl Drop for Passage<'_> {
    /// One result, one record, one count.
    fn drop(&mut self) {
        let Passage { down, began, way, received, sent, series: counted } = self;
        way.outcome.duration = began.elapsed();
        way.outcome.bytes_received = received.body_bytes.get();
        way.outcome.bytes_sent = sent.body_bytes.get();
        let series = counted.take().unwrap_or_else(|| {
            let series = series(down, way);
            series.connection_opened();
            series
        });
        series.connection_closed(way.outcome.bytes_received, way.outcome.bytes_sent);
        let entry = Entry {
            subject: Subject::Connection,
            clock: &down.worker.clock,
            start: down.worker.clock.wall(*began),
            facts: &down.facts,
            outcome: &way.outcome,
            request: None,
            version: None,
            response: None,
            chain_name: &down.context.chain.name,
        };
        down.worker.record(&down.context.logs, &entry);
    }
}

/// Choose an upstream for a connection, and connect to it: route -> pick -> connect. `None`: *way* says why there is none.
pub async fn open(worker: &Worker, facts: &Facts, proxy: &TcpProxy, way: &mut Way) -> Option<Box<Connection>> {
    let plan = worker.plan();
    // route
    let name = Arc::clone(proxy.pick(&mut *worker.random.borrow_mut()));
    way.outcome.cluster = Some(Arc::clone(&name));
    let upstream = plan.active.core.clusters.get(&name).and_then(|cluster| plan.upstream(cluster)).map(Rc::clone);
    let Some(upstream) = upstream else {
        way.outcome.end(Cause::TcpClusterNotFound);
        return None;
    };
    way.upstream = Some(Rc::clone(&upstream));
    match connect(worker, facts, &upstream, proxy, way).await {
        Ok(connection) => Some(connection),
        Err(cause) => {
            way.outcome.end(cause);
            None
        }
    }
}

async fn connect(
    worker: &Worker,
    facts: &Facts,
    upstream: &Rc<WorkerUpstream>,
    proxy: &TcpProxy,
    way: &mut Way,
) -> Result<Box<Connection>, Cause> {
    let Way { active, outcome, .. } = way;
    let mut tried = Tried::default();
    let mut cause = Cause::NoHealthyUpstream;
    for _ in 0..proxy.max_connect_attempts.max(1) {
        // Of the try before; else it would be counted while another is picked.
        drop(active.take());
        // Asked before there is an endpoint: it is none's trouble that all connections are taken.
        let permit = match connect::admit(upstream) {
            Ok(permit) => permit,
            Err(error) => {
                worker.metrics.counters().upstream_connections_refused.add(1);
                return Err(error.cause());
            }
        };
        // pick
        let picked = {
            let random = &mut *worker.random.borrow_mut();
            pick::pick(upstream, facts.original, None, &tried, proxy.hash(facts.remote.ip()), random)
        };
        let destination = picked.ok_or(Cause::NoHealthyUpstream)?;
        tried.note(&destination);
        outcome.attempts += 1;
        outcome.destination = Some(destination.clone());
        *active = destination.host().map(|host| host.begin());
        // connect
        match connect::connect_bytes(upstream, &destination, facts.ends(), &worker.standing, permit).await {
            Ok(connection) => {
                observe(upstream, &destination, Observation::Connected);
                worker.metrics.counters().connected(&connection.peer);
                outcome.upstream_local = connection.local;
                outcome.upstream_peer = Some(Rc::clone(&connection.peer));
                return Ok(connection);
            }
            Err(error @ ConnectError::Overflow) => return Err(error.cause()),
            Err(error) => {
                observe(upstream, &destination, Observation::LocalFailure);
                worker.metrics.counters().upstream_connect_failures.add(1);
                outcome.transport_failure = error.transport_failure();
                cause = error.cause();
            }
        }
    }
    Err(cause)
}

/// Tell outlier detection how a try went.
pub fn observe(upstream: &WorkerUpstream, destination: &connect::Destination, observation: Observation) {
    if let (Some(balancer), Some(host)) = (&upstream.shared.balancer, destination.host()) {
        balancer.observe(host, observation, clock::monotonic());
    }
}

/// How long a tunnel may last.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Nothing moves.
    pub idle: Option<Duration>,
    /// Whatever moves.
    pub end: Option<Instant>,
}

impl Limits {
    pub fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// Run a tunnel until it ends, or `None` if it reached a limit.
pub async fn within(
    limits: Limits,
    work: impl Future<Output = TunnelEnd>,
    totals: &Totals<'_>,
    alarm: &mut crate::alarm::Alarm,
) -> Option<TunnelEnd> {
    let began = Instant::now();
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(end) = work.as_mut().poll(context) {
            return Poll::Ready(Some(end));
        }
        // What moved before the tunnel was there says nothing of it.
        let moved =
            [totals.received, totals.sent].into_iter().filter_map(|one| one.moved.get()).fold(began, Instant::max);
        let quiet = limits.idle.map(|idle| moved + idle);
        alarm.poll(context, quiet.into_iter().chain(limits.end).min()).map(|_| None)
    })
    .await
}

/// What counts the connection. Its labels say how it stands now: once it is there, later flags are only in its record.
fn series(down: &Downstream, way: &Way) -> Arc<Series> {
    let upstream = way.upstream.as_deref();
    labels::series(&down.worker, down.direction, &down.facts, &way.outcome, upstream, Protocol::Tcp)
}
