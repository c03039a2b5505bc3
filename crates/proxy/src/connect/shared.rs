//! Ways to endpoints for requests of HTTP: by HTTP/2, over connections that requests share, or by HTTP/1.1.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::Notify;
use tokio::time::Instant;
use weft_core::cluster::{Cluster, VersionChoice};
use weft_core::http_manager::HeadLimits;
use weft_core::http2::Http2Options;

use crate::alarm::Alarm;
use crate::codec::h2::{Body, Floods, Limits, Role};
use crate::identify::Ends;
use crate::multiplex::{ConnectionEnd, Driver, KeepAlive, Session, Turn};
use crate::plan::WorkerUpstream;
use crate::tls::session::Session as TlsSession;

use super::{
    ConnectError, Connection, Destination, Key, Offer, Peer, Pool, Standing, connect, count_pending, make, make_room,
    obtain, wait_for_release,
};

/// RFC 9113 6.9.1
const MOST_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// A connection of HTTP/2 to an endpoint, which requests share.
pub struct Shared {
    pub session: Rc<Session>,
    /// Our end, for records.
    pub local: Option<SocketAddr>,
    /// The other end.
    pub peer: Rc<Peer>,
}

/// A way to an endpoint.
pub enum Connected {
    /// HTTP/1.1: for one request at a time.
    Own(Box<Connection>),
    /// HTTP/2.
    Shared(Rc<Shared>),
}

/// What a request asks of its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The client speaks HTTP/2, for clusters that follow it.
    pub http2: bool,
    /// The request asks for another protocol.
    pub tunnel: bool,
    pub body: Body,
}

/// A way to *destination* that is there already. What hardly any request has to wait for needs no task's state.
pub fn pooled_http(upstream: &WorkerUpstream, destination: &Destination, ends: Ends, want: Want) -> Option<Connected> {
    let cluster = &upstream.shared.cluster;
    let transport = destination.transport(cluster);
    let choice = cluster.http.version_for(transport, want.http2, want.tunnel);
    upstream.pool.find(&destination.key(transport, ends), choice, cluster, want.body)
}

/// Get a way to *destination* for a request of HTTP: a pooled one unless *fresh* asks for a new one.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect_http(
    upstream: &Rc<WorkerUpstream>,
    destination: &Destination,
    ends: Ends,
    standing: &Standing,
    fresh: bool,
    want: Want,
) -> Result<Connected, ConnectError> {
    let cluster = &upstream.shared.cluster;
    let transport = destination.transport(cluster);
    let key = destination.key(transport, ends);
    let choice = cluster.http.version_for(transport, want.http2, want.tunnel);
    let offer = Offer::Http(choice);
    if matches!(choice, VersionChoice::Http1 | VersionChoice::OfferHttp1) {
        return connect(upstream, destination, ends, standing, fresh, offer).await.map(Connected::Own);
    }
    let pool = &upstream.pool;
    let mut fresh = fresh;
    // Whether it has a place in the line of those that wait for a connection.
    let mut waited = false;
    let mut pending = None;
    let (mut connection, _making) = loop {
        if !fresh && let Some(found) = pool.find(&key, choice, cluster, want.body) {
            pass_on(pool, waited && matches!(found, Connected::Shared(_)));
            return Ok(found);
        }
        if pool.is_of_http1(&key, choice) {
            break (obtain(upstream, destination, ends, standing, fresh, offer, &mut pending).await?, None);
        }
        count_pending(upstream, &mut pending)?;
        let other = pool.making.borrow().get(&key).cloned();
        if let Some(made) = other {
            pass_on(pool, std::mem::take(&mut waited));
            // What the other task makes is as fresh as anybody can ask.
            fresh = false;
            made.done.notified().await;
            if let Some(error) = made.error.borrow().as_ref() {
                return Err(error.again());
            }
            continue;
        }
        // A connection that may come to be shared is never taken from those that are not.
        if let Some(permit) = make_room(upstream) {
            let making = Making::begin(Rc::clone(pool), key);
            match make(upstream, destination, ends, standing, offer, permit).await {
                Ok(connection) => break (connection, Some(making)),
                Err(error) => {
                    making.fail(&error);
                    return Err(error);
                }
            }
        }
        // Behind others, and after others of its own, it is served sooner than not at all.
        if let Some(shared) = pool.find_crowded(&key) {
            pass_on(pool, waited);
            return Ok(Connected::Shared(shared));
        }
        pool.retire_one_idle();
        wait_for_release(pool, Some(key), waited).await;
        waited = true;
    };
    if choice == VersionChoice::Endpoint && (connection.reused || !connection.io.speaks_http2()) {
        if pool.names(&key, &mut connection.known_at) {
            pool.http1.borrow_mut().insert(key);
        }
        return Ok(Connected::Own(connection));
    }
    pool.http1.borrow_mut().remove(&key);
    Ok(Connected::Shared(share(upstream, connection)))
}

/// Who has *waited* for a connection and needs none after all may have been woken for one that the next in line can use.
fn pass_on(pool: &Pool, waited: bool) {
    if waited {
        pool.wake_next();
    }
}

/// What became of a connection that a task made to be shared, for those that waited for it.
#[derive(Default)]
pub(super) struct Made {
    pub(super) done: Notify,
    pub(super) error: RefCell<Option<ConnectError>>,
}

/// A connection that will be shared, while it is being made; whoever waits for it is woken when this is dropped.
pub(super) struct Making {
    pool: Rc<Pool>,
    key: Key,
    made: Rc<Made>,
}

impl Making {
    pub(super) fn begin(pool: Rc<Pool>, key: Key) -> Making {
        let made = Rc::<Made>::default();
        pool.making.borrow_mut().insert(key, Rc::clone(&made));
        Making { pool, key, made }
    }

    /// There will be none: whoever waits would be told the same, one after the other.
    pub(super) fn fail(self, error: &ConnectError) {
        *self.made.error.borrow_mut() = Some(error.again());
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.pool.making.borrow_mut().remove(&self.key);
        self.made.done.notify_waiters();
    }
}

/// Speak HTTP/2 on *connection*, in a task of its own.
fn share(upstream: &Rc<WorkerUpstream>, connection: Box<Connection>) -> Rc<Shared> {
    let cluster = Arc::clone(&upstream.shared.cluster);
    let mut limits = Limits {
        output_bytes: connection.buffer.limit(),
        ..http2_limits(&cluster.http.http2, &cluster.http.head_limits)
    };
    if cluster.http.http2.connection_window_bytes.is_none() {
        // Each answer waits in its own window, and there are as many as we have asked for. A window for all of them would let clients that
        // do not read stop those that do, which connections of HTTP/1.1 never let them.
        limits.connection_window_bytes = MOST_WINDOW_BYTES;
    }
    let most_requests = cluster.http.max_requests_per_connection.unwrap_or(u32::MAX);
    let driver = Driver::limited(Role::Client, limits, connection.io.is_secure(), most_requests);
    let shared = Rc::new(Shared {
        session: Rc::clone(&driver.session),
        local: connection.local,
        peer: Rc::clone(&connection.peer),
    });
    upstream.pool.shared.borrow_mut().entry(connection.key).or_default().push(Rc::clone(&shared));
    tokio::task::spawn_local(keep(driver, connection, cluster));
    shared
}

/// The codec's limits under these options.
pub fn http2_limits(options: &Http2Options, heads: &HeadLimits) -> Limits {
    let default = Limits::default();
    let most = |limit: Option<u32>| limit.unwrap_or(u32::MAX);
    let floods = &options.floods;
    Limits {
        header_bytes: heads.bytes,
        header_fields: heads.count as usize,
        header_table_bytes: options.header_table_bytes.unwrap_or(default.header_table_bytes),
        extended_connect: options.extended_connect,
        floods: Floods {
            outbound_frames: most(floods.outbound_frames),
            outbound_control_frames: most(floods.outbound_control_frames),
            consecutive_empty_frames: most(floods.consecutive_empty_frames),
            priority_frames_per_stream: most(floods.priority_frames_per_stream),
            window_updates_per_data_frame: most(floods.window_updates_per_data_frame),
        },
        streams: options.max_concurrent_streams.unwrap_or(default.streams),
        stream_window_bytes: options.stream_window_bytes.unwrap_or(default.stream_window_bytes),
        connection_window_bytes: options.connection_window_bytes.unwrap_or(default.connection_window_bytes),
        ..default
    }
}

/// Read and write a connection that requests share, until its end; close it when nobody has used it for long.
async fn keep(mut driver: Driver, mut connection: Box<Connection>, cluster: Arc<Cluster>) {
    let http = &cluster.http;
    let mut alarm = Alarm::default();
    let mut keepalive = KeepAlive::new(http.http2.keepalive, connection.since);
    let (mut idle_since, mut requests, mut was_busy) = (connection.since, 0, false);
    let idle_timeout = connection.key.idle_timeout(&cluster);
    let worn = http.max_connection_duration.map(|most| connection.since + most);
    loop {
        let Connection { io, buffer, pool, key, known_at, .. } = &mut *connection;
        let turn = std::future::poll_fn(|context| {
            if let Poll::Ready(turn) = driver.poll(context, io, buffer) {
                return Poll::Ready(Some(turn));
            }
            let session = &driver.session;
            let before = std::mem::replace(&mut requests, session.requests());
            let is_idle = session.open_streams() == 0;
            if (std::mem::replace(&mut was_busy, !is_idle) || requests > before) && is_idle {
                idle_since = Instant::now();
                // Whoever waits for a connection may have this one closed.
                pool.wake_next();
            }
            if pool.is_awaited() && session.can_open() {
                // The request that is sent then has this polled again, for the one after it.
                pool.wake_sharing(key);
            }
            if is_idle && session.is_worn() {
                return Poll::Ready(Some(Turn::Over(ConnectionEnd::Closed)));
            }
            // One that was made while its cluster was being replaced, or its endpoint taken away, serves those it was made for.
            let is_left = is_idle && requests > 0 && (pool.is_retired() || !pool.names(key, known_at));
            if !session.is_worn() && (is_left || session.is_used_up()) {
                session.retire();
            }
            let idle = idle_timeout.filter(|_| is_idle).map(|most| idle_since + most);
            let worn = worn.filter(|_| !session.is_worn());
            let deadline = [idle, worn, keepalive.deadline(session)].into_iter().flatten().min();
            alarm.poll(context, deadline).map(|_| None)
        })
        .await;
        let now = Instant::now();
        match turn {
            Some(Turn::Pong(_)) => keepalive.note_answer(),
            Some(Turn::Over(_)) => {
                // The streams learn that they are gone after this.
                let alert = connection.io.with_session(TlsSession::alert).flatten();
                let text = alert.map(|alert| format!("TLS error: the peer sent the alert {alert:?}"));
                return driver.session.note_tls_refusal(text);
            }
            Some(Turn::Request { .. } | Turn::Malformed) => {}
            None if keepalive.is_over(&driver.session, now) => return,
            None if keepalive.ask(&mut driver, now) => {}
            None => driver.go_away(),
        }
    }
}
