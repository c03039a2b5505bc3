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
use crate::forward::{self, Totals, TunnelEnd};
use crate::gone::unless_gone;
use crate::identify::Ends;
use crate::labels::{self, Protocol};
use crate::metrics::Series;
use crate::pick::{self, Tried};
use crate::plan::WorkerUpstream;
use crate::record::{Entry, Outcome, Subject};
use crate::serve::{Downstream, Socket};
use crate::worker::Worker;

/// An upstream that a connection can be carried to, and what its record will tell so far.
pub struct Opened {
    pub connection: Connection,
    upstream: Rc<WorkerUpstream>,
    _active: Option<Active>,
    outcome: Outcome,
}

/// There is none.
pub struct NotOpened {
    /// `None`: there is no such cluster.
    upstream: Option<Rc<WorkerUpstream>>,
    outcome: Box<Outcome>,
}

/// Serve a connection that a TCP proxy filter took; *early* is its upstream, if that was dialled already.
pub async fn serve(down: Downstream, mut socket: Socket, proxy: &TcpProxy, early: Option<Box<Opened>>) {
    let _registration = down.worker.register(crate::http::waker().await);
    let began = Instant::now();
    let totals = Totals::default();
    let opened = match early {
        Some(opened) => Ok(*opened),
        None => open_unless_reset(&down, &socket, proxy).await,
    };
    let (mut outcome, upstream, counted) = match opened {
        Ok(opened) => {
            let series = series(&down, &opened.outcome, Some(&opened.upstream));
            series.connection_opened();
            let (outcome, upstream) = carry(&down, &mut socket, proxy, opened, began, &totals).await;
            (outcome, Some(upstream), Some(series))
        }
        Err(NotOpened { upstream, outcome }) => {
            if upstream.is_some() {
                // The client must not take this for an orderly end of what it asked for.
                socket.io.reset_on_close();
            }
            (*outcome, upstream, None)
        }
    };
    // record
    outcome.duration = began.elapsed();
    outcome.bytes_received = totals.received.body_bytes.get();
    outcome.bytes_sent = totals.sent.body_bytes.get();
    let series = counted.unwrap_or_else(|| {
        let series = series(&down, &outcome, upstream.as_deref());
        series.connection_opened();
        series
    });
    series.connection_closed(outcome.bytes_received, outcome.bytes_sent);
    let entry = Entry {
        subject: Subject::Connection,
        clock: &down.worker.clock,
        start: down.worker.clock.wall(began),
        facts: &down.facts,
        outcome: &outcome,
        request: None,
        version: None,
        response: None,
        chain_name: &down.context.chain.name,
    };
    down.worker.record(&down.context.logs, &entry);
}

/// Forward bytes both ways, to the end of the connection.
async fn carry(
    down: &Downstream,
    socket: &mut Socket,
    proxy: &TcpProxy,
    opened: Opened,
    began: Instant,
    totals: &Totals,
) -> (Outcome, Rc<WorkerUpstream>) {
    let Opened { mut connection, upstream, _active, mut outcome } = opened;
    let (idle, worn) = (proxy.idle_timeout, proxy.max_duration.map(|limit| began + limit));
    let (io, buffer) = (&connection.io, &mut connection.buffer);
    let work = forward::tunnel((&socket.io, &mut socket.buffer), (io, buffer), totals, down.program_only);
    let limits = Limits { idle, end: worn };
    match within(limits, work, totals, &mut socket.alarm).await {
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
    (outcome, upstream)
}

/// Connect for the client in *socket*, and stop when it resets its connection. One that only sends no more may wait for an answer: it is
/// carried on, as Envoy does.
async fn open_unless_reset(down: &Downstream, socket: &Socket, proxy: &TcpProxy) -> Result<Opened, NotOpened> {
    let opening = open(&down.worker, down.facts.ends(), proxy);
    unless_gone(opening, |context| socket.io.poll_reset(context)).await.unwrap_or_else(|| {
        let mut outcome = Outcome::default();
        outcome.end(Cause::DownstreamGone);
        Err(NotOpened { upstream: None, outcome: Box::new(outcome) })
    })
}

/// Choose an upstream for a connection between *ends*, and connect to it: route -> pick -> connect.
///
/// # Errors
/// [`NotOpened`], whose outcome says why.
pub async fn open(worker: &Worker, ends: Ends, proxy: &TcpProxy) -> Result<Opened, NotOpened> {
    let mut outcome = Outcome::default();
    let plan = worker.plan();
    // route
    let name = Arc::clone(proxy.pick(&mut *worker.random.borrow_mut()));
    outcome.cluster = Some(Arc::clone(&name));
    let upstream = plan.active.core.clusters.get(&name).and_then(|cluster| plan.upstream(cluster)).map(Rc::clone);
    let Some(upstream) = upstream else {
        outcome.end(Cause::TcpClusterNotFound);
        return Err(NotOpened { upstream: None, outcome: Box::new(outcome) });
    };
    match connect(worker, ends, &upstream, proxy, &mut outcome).await {
        Ok((connection, active)) => Ok(Opened { connection, upstream, _active: active, outcome }),
        Err(cause) => {
            outcome.end(cause);
            Err(NotOpened { upstream: Some(upstream), outcome: Box::new(outcome) })
        }
    }
}

async fn connect(
    worker: &Worker,
    ends: Ends,
    upstream: &Rc<WorkerUpstream>,
    proxy: &TcpProxy,
    outcome: &mut Outcome,
) -> Result<(Connection, Option<Active>), Cause> {
    let mut tried = Tried::default();
    let mut cause = Cause::NoHealthyUpstream;
    for _ in 0..proxy.max_connect_attempts.max(1) {
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
            pick::pick(upstream, ends.local, None, &tried, proxy.hash(ends.remote.ip()), random)
        };
        let destination = picked.ok_or(Cause::NoHealthyUpstream)?;
        tried.note(&destination);
        outcome.attempts += 1;
        outcome.destination = Some(destination.clone());
        let active = destination.host().map(|host| host.begin());
        // connect
        match connect::connect_bytes(upstream, &destination, ends, &worker.standing, permit).await {
            Ok(connection) => {
                observe(upstream, &destination, Observation::Connected);
                worker.metrics.counters().connected(&connection.peer);
                outcome.upstream_local = connection.local;
                outcome.upstream_peer = Some(Rc::clone(&connection.peer));
                return Ok((connection, active));
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
    totals: &Totals,
    alarm: &mut crate::alarm::Alarm,
) -> Option<TunnelEnd> {
    let began = Instant::now();
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(end) = work.as_mut().poll(context) {
            return Poll::Ready(Some(end));
        }
        let moved = totals.received.moved.get().max(totals.sent.moved.get()).unwrap_or(began);
        let quiet = limits.idle.map(|idle| moved + idle);
        alarm.poll(context, quiet.into_iter().chain(limits.end).min()).map(|_| None)
    })
    .await
}

/// What counts the connection. Its labels say how it stands now: once it is there, later flags are only in its record.
fn series(down: &Downstream, outcome: &Outcome, upstream: Option<&WorkerUpstream>) -> Arc<Series> {
    labels::series(&down.worker, down.direction, &down.facts, outcome, upstream, Protocol::Tcp)
}
