//! Connections to endpoints: from the pool, or new ones.
//!
//! Each worker has its own pool for each cluster. A pooled connection is used last-in first-out, so that those which are
//! not needed grow old and close. Limits (circuit breakers) are shared by all workers.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};
use tokio::time::Instant;
use weft_core::address::PeerAddress;
use weft_core::balance::{Balancer, Host, HostCounters};
use weft_core::breaker::{Permit, Resource};
use weft_core::cluster::{Cluster, Keepalive, ProxyProtocolVersion, TransportSocket, VersionChoice};
use weft_core::respond::Cause;

use crate::buffer::Buffer;
use crate::codec::h2::Body;
use crate::codec::proxy_protocol;
use crate::edge::Edge;
use crate::identify::{Ends, principal, principal_key, read_peer_leaf};
use crate::io::{self as sockets, Io};
use crate::logging;
use crate::netns;
use crate::plan::{AddressHasher, Upstream, WorkerUpstream, address_of};
use crate::rpc::session::Session as CallSession;
use crate::tls::context::ClientContext;
use crate::tls::session::Session;

/// Where a proxy stands in the network.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The way to the host's network, if there is one.
    pub edge: Option<Edge>,
    /// Where connections come from whose cluster says nothing about it.
    pub source: Option<SocketAddr>,
}

mod calls;
mod checks;
mod shared;

pub use calls::{CallWay, connect_call};
pub use checks::connect_check;
use shared::Made;

pub use shared::{Connected, Shared, Want, connect_http, http2_limits, pooled_http};

/// Where a request goes.
#[derive(Clone)]
pub enum Destination {
    /// An endpoint of the cluster.
    Host(Arc<Host>),
    /// Where the client wanted to go.
    Original(SocketAddr),
}

impl Destination {
    pub fn address(&self) -> PeerAddress {
        match self {
            Destination::Host(host) => host.endpoint.address.clone(),
            Destination::Original(address) => PeerAddress::Socket(*address),
        }
    }

    pub fn host(&self) -> Option<&Arc<Host>> {
        match self {
            Destination::Host(host) => Some(host),
            Destination::Original(_) => None,
        }
    }

    fn transport<'c>(&self, cluster: &'c Cluster) -> &'c TransportSocket {
        match self {
            Destination::Host(host) => cluster.transport_for(&host.endpoint),
            Destination::Original(_) => cluster.transport_for_original(),
        }
    }

    fn key(&self, transport: &TransportSocket, ends: Ends) -> Key {
        let tls = transport.tls.as_ref().map_or(0, address_of);
        let said = transport.proxy_protocol.map(|_| ends);
        match self {
            Destination::Host(host) => Key { host: address_of(&host.counters), address: None, tls, said },
            Destination::Original(address) => Key { host: 0, address: Some(*address), tls, said },
        }
    }
}

/// Connections that can stand for each other. The host is known by its counters, which stay while its address does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    host: usize,
    address: Option<SocketAddr>,
    tls: usize,
    /// For whom the connection is, if its first bytes said so (PROXY protocol).
    said: Option<Ends>,
}

impl Key {
    /// How long a connection may be idle.
    fn idle_timeout(&self, cluster: &Cluster) -> Option<Duration> {
        let own = cluster.http.idle_timeout;
        if self.said.is_none() { own } else { Some(own.map_or(SAID_IDLE_TIME, |own| own.min(SAID_IDLE_TIME))) }
    }
}

/// A connection that was opened in one client's name is of use to that client's connection alone, and nobody tells when that is over. So
/// it is kept for a client's short pauses.
const SAID_IDLE_TIME: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("a circuit breaker is open")]
    Overflow,
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The peer, or the network between, said no.
    #[error("{0}")]
    Remote(io::Error),
    /// We could not even try.
    #[error("{0}")]
    Local(io::Error),
    #[error("TLS error: {0}")]
    Tls(io::Error),
}

impl ConnectError {
    pub fn cause(&self) -> Cause {
        match self {
            ConnectError::Overflow => Cause::Overflow,
            ConnectError::Timeout(_) => Cause::ConnectTimeout,
            ConnectError::Remote(_) | ConnectError::Tls(_) => Cause::RemoteConnectionFailure,
            ConnectError::Local(_) => Cause::LocalConnectionFailure,
        }
    }

    /// The same, for another request that waited for the same connection.
    fn again(&self) -> ConnectError {
        let copy = |error: &io::Error| match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        match self {
            ConnectError::Overflow => ConnectError::Overflow,
            ConnectError::Timeout(limit) => ConnectError::Timeout(*limit),
            ConnectError::Remote(error) => ConnectError::Remote(copy(error)),
            ConnectError::Local(error) => ConnectError::Local(copy(error)),
            ConnectError::Tls(error) => ConnectError::Tls(copy(error)),
        }
    }

    /// What the record shows as the reason of a transport failure.
    pub fn transport_failure(&self) -> Option<String> {
        match self {
            ConnectError::Overflow | ConnectError::Timeout(_) => None,
            ConnectError::Remote(error) | ConnectError::Local(error) => {
                Some(format!("delayed connect error: {}", describe(error)))
            }
            ConnectError::Tls(_) => Some(self.to_string()),
        }
    }
}

/// The system's words without Rust's addition, as Envoy shows them.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// The other end of a connection to an endpoint, in the words of records and metrics. Made once for each connection.
#[derive(Debug, Default)]
pub struct Peer {
    /// Its address.
    pub address: Box<str>,
    /// The first URI of its verified certificate: its SPIFFE ID.
    pub principal: Option<Box<str>>,
    /// A number for that identity, to tell metrics apart; 0 without one.
    pub principal_key: u64,
    /// Whether the TLS session was an earlier one; `None` without TLS.
    pub resumed: Option<bool>,
}

impl Peer {
    fn new(destination: &Destination, io: &Io) -> Peer {
        let principal = read_peer_leaf(io, principal).flatten();
        Peer {
            address: destination.address().to_string().into(),
            principal_key: principal_key(principal.as_deref()),
            principal,
            resumed: io.with_session(Session::is_resumed),
        }
    }
}

/// A connection to an endpoint, in use by one request or tunnel. It lives in a box, because it goes through many hands.
pub struct Connection {
    pub io: Io,
    pub buffer: Buffer,
    /// Our end, for records; asked from the kernel once.
    pub local: Option<SocketAddr>,
    /// The other end, for the records and metrics of all requests on this connection.
    pub peer: Rc<Peer>,
    /// Another request has used it before.
    pub reused: bool,
    requests: u32,
    since: Instant,
    key: Key,
    /// Kept, lest another endpoint's come to lie at the same address and the connection be taken for one of its own.
    _counters: Option<Arc<HostCounters>>,
    /// When its endpoint was last known to be the cluster's: [`Pool::endpoints`] as counted then.
    known_at: u64,
    pool: Rc<Pool>,
    /// Counts against `max_connections` while the connection lives.
    _permit: Permit,
}

impl Connection {
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How long it may be idle.
    pub fn idle_timeout(&self, cluster: &Cluster) -> Option<Duration> {
        self.key.idle_timeout(cluster)
    }

    /// Whether it is too old for another request.
    fn has_lasted(&self, cluster: &Cluster) -> bool {
        cluster.http.max_connection_duration.is_some_and(|most| self.since.elapsed() >= most)
    }

    /// Give the connection back for the next request. The message on it must be complete in both directions.
    pub fn release(mut self: Box<Self>, cluster: &Cluster) {
        let worn = cluster.http.max_requests_per_connection.is_some_and(|most| self.requests >= most);
        // RFC 9112 6.3: what came behind the answer is no answer, and never another client's.
        let has_more = !self.buffer.is_empty() || !self.io.is_at_rest();
        if worn || self.has_lasted(cluster) || has_more {
            return;
        }
        self.buffer.release_if_empty();
        let pool = Rc::clone(&self.pool);
        pool.put(self);
    }
}

#[cfg(test)]
impl Connection {
    /// A connection of a pool that nobody else knows.
    pub fn over(io: Io) -> Box<Connection> {
        let breakers = Arc::new(weft_core::breaker::Breakers::default());
        let permit = breakers.acquire(Resource::Connection, &Default::default()).unwrap();
        let pool = Rc::new(Pool::default());
        pool.open.set(1);
        Box::new(Connection {
            io,
            buffer: Buffer::new(),
            local: None,
            peer: Rc::default(),
            reused: false,
            requests: 1,
            since: Instant::now(),
            key: Key { host: 0, address: None, tls: 0, said: None },
            _counters: None,
            known_at: 0,
            pool,
            _permit: permit,
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        log::debug!(target: logging::POOL, "a connection to {} is closed after {} requests", self.peer.address, self.requests);
        self.pool.open.set(self.pool.open.get() - 1);
        // Its permit is given back with the rest of it, before the woken task can run.
        self.pool.wake_next();
    }
}

struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

impl Idle {
    /// Whether the next request may have it.
    fn is_good(&self, idle_timeout: Option<Duration>, cluster: &Cluster) -> bool {
        idle_timeout.is_none_or(|most| self.since.elapsed() < most)
            && !self.connection.has_lasted(cluster)
            && self.connection.io.is_fresh()
    }
}

/// Connections of one worker to one cluster.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>, BuildHasherDefault<AddressHasher>>>,
    /// Connections of HTTP/2; the last is the newest.
    shared: RefCell<HashMap<Key, Vec<Rc<Shared>>, BuildHasherDefault<AddressHasher>>>,
    /// Connections that calls of RPC protocols share; the last is the newest.
    calls: RefCell<HashMap<Key, Vec<Rc<CallSession>>, BuildHasherDefault<AddressHasher>>>,
    /// Endpoints to which a connection is being made that may come to be shared: one at a time, others wait for it.
    making: RefCell<HashMap<Key, Rc<Made>, BuildHasherDefault<AddressHasher>>>,
    /// Endpoints that chose HTTP/1.1 when they were asked last.
    http1: RefCell<HashSet<Key, BuildHasherDefault<AddressHasher>>>,
    /// Tasks that wait because the cluster may have no more connections.
    waiting: RefCell<VecDeque<Waiting>>,
    /// Connections that exist, idle or not.
    open: Cell<usize>,
    /// Its cluster is another now: what is given back is closed.
    is_retired: Cell<bool>,
    /// The endpoints that the cluster has now, and how often they were replaced. Absent for original-destination clusters.
    balancer: RefCell<Option<Arc<Balancer>>>,
    endpoints: Cell<u64>,
}

impl Pool {
    fn take(&self, key: &Key, cluster: &Cluster) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(key)?;
        let idle_timeout = key.idle_timeout(cluster);
        while let Some(entry) = connections.pop() {
            if entry.is_good(idle_timeout, cluster) {
                let mut connection = entry.connection;
                connection.reused = true;
                connection.requests += 1;
                return Some(connection);
            }
            // The pool itself closes what is stale; `drop` touches only the counter, not this map.
            drop(entry);
        }
        None
    }

    /// What a request with this body can have at once.
    fn find(&self, key: &Key, choice: VersionChoice, cluster: &Cluster, body: Body) -> Option<Connected> {
        let own = || self.take(key, cluster).map(Connected::Own);
        match choice {
            VersionChoice::Http1 | VersionChoice::OfferHttp1 => own(),
            VersionChoice::Http2 | VersionChoice::Endpoint => match self.find_shared(key, body) {
                Some(shared) => Some(Connected::Shared(shared)),
                None if self.is_of_http1(key, choice) => own(),
                None => None,
            },
        }
    }

    /// Whether the endpoint has the choice, and chose HTTP/1.1 when it was asked last.
    fn is_of_http1(&self, key: &Key, choice: VersionChoice) -> bool {
        choice == VersionChoice::Endpoint && self.http1.borrow().contains(key)
    }

    /// A connection of HTTP/2 that takes another request with this body.
    fn find_shared(&self, key: &Key, body: Body) -> Option<Rc<Shared>> {
        let mut shared = self.shared.borrow_mut();
        let connections = shared.get_mut(key)?;
        connections.retain(|connection| !connection.session.is_worn());
        connections.iter().rev().find(|connection| connection.session.can_take(body)).cloned()
    }

    /// A connection of HTTP/2 that takes another request, which others on it may keep waiting.
    fn find_crowded(&self, key: &Key) -> Option<Rc<Shared>> {
        let shared = self.shared.borrow();
        shared.get(key)?.iter().rev().find(|connection| connection.session.can_open()).cloned()
    }

    /// Whether the cluster still has the endpoint of a connection; that it had when *known_at* was noted is not asked again.
    fn names(&self, key: &Key, known_at: &mut u64) -> bool {
        if *known_at == self.endpoints.get() {
            return true;
        }
        let balancer = self.balancer.borrow();
        let is_named = balancer
            .as_ref()
            .is_none_or(|balancer| balancer.hosts().iter().any(|host| address_of(&host.counters) == key.host));
        if is_named {
            *known_at = self.endpoints.get();
        }
        is_named
    }

    fn put(&self, mut connection: Box<Connection>) {
        if self.is_retired.get() || !self.names(&connection.key, &mut connection.known_at) {
            return;
        }
        let key = connection.key;
        self.idle.borrow_mut().entry(key).or_default().push(Idle { connection, since: Instant::now() });
        self.wake_next();
    }

    /// Give the next waiting task its turn; those that gave up are passed over.
    fn wake_next(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(next) = waiting.pop_front() {
            if next.give_turn() {
                return;
            }
        }
    }

    /// The same with the next that can share a connection of this *key*. False: there is none.
    fn wake_sharing(&self, key: &Key) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|one| one.turn.get() == Turn::Waiting);
        let next = waiting.iter().position(|one| one.shares == Some(*key));
        next.and_then(|index| waiting.remove(index)).is_some_and(|next| next.give_turn())
    }

    fn is_awaited(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Close one idle connection of any endpoint, to make room under the cluster's limit. Returns whether there was one.
    fn close_one_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest = idle.values_mut().find(|connections| !connections.is_empty());
        oldest.is_some_and(|connections| {
            drop(connections.remove(0));
            true
        })
    }

    /// Have one connection of HTTP/2 closed that nobody uses, of any endpoint, to make room under the cluster's limit. It is gone a moment
    /// later, and the next in line is woken then.
    fn retire_one_idle(&self) {
        let shared = self.shared.borrow();
        let is_idle = |connection: &&Rc<Shared>| {
            // Whoever holds it is about to send a request.
            Rc::strong_count(connection) == 1 && connection.session.open_streams() == 0
        };
        let mut idle = shared.values().flatten().filter(is_idle);
        if let Some(first) = idle.next()
            && !first.session.is_worn()
            && !idle.any(|other| other.session.is_worn())
        {
            first.session.retire();
        }
    }

    /// Close idle connections that their peers closed or that are too old. Returns how many stay.
    pub fn sweep(&self, cluster: &Cluster) -> usize {
        let mut closed = Vec::new();
        let mut left = 0;
        self.idle.borrow_mut().retain(|key, connections| {
            let idle_timeout = key.idle_timeout(cluster);
            let mut kept = Vec::with_capacity(connections.len());
            for entry in connections.drain(..) {
                if entry.is_good(idle_timeout, cluster) {
                    kept.push(entry);
                } else {
                    closed.push(entry);
                }
            }
            left += kept.len();
            *connections = kept;
            !connections.is_empty()
        });
        self.shared.borrow_mut().retain(|_, connections| {
            connections.retain(|connection| !connection.session.is_worn());
            !connections.is_empty()
        });
        self.calls.borrow_mut().retain(|_, sessions| {
            sessions.retain(|session| !session.is_worn());
            !sessions.is_empty()
        });
        left
    }

    /// Close idle connections to endpoints that the cluster has no more.
    pub fn keep_only(&self, upstream: &Upstream) {
        let Some(balancer) = &upstream.balancer else { return };
        if !self.balancer.borrow().as_ref().is_some_and(|known| Arc::ptr_eq(known, balancer)) {
            *self.balancer.borrow_mut() = Some(Arc::clone(balancer));
            self.endpoints.set(self.endpoints.get() + 1);
        }
        let (mut idle, mut shared) = (self.idle.borrow_mut(), self.shared.borrow_mut());
        let mut calls = self.calls.borrow_mut();
        if idle.is_empty() && shared.is_empty() && calls.is_empty() && self.http1.borrow().is_empty() {
            return;
        }
        let known: Vec<usize> = balancer.hosts().iter().map(|host| address_of(&host.counters)).collect();
        idle.retain(|key, _| known.contains(&key.host));
        shared.retain(|key, connections| {
            let is_known = known.contains(&key.host);
            if !is_known {
                connections.iter().for_each(|connection| connection.session.retire());
            }
            is_known
        });
        self.http1.borrow_mut().retain(|key| known.contains(&key.host));
        calls.retain(|key, sessions| {
            let is_known = known.contains(&key.host);
            if !is_known {
                sessions.iter().for_each(|session| session.retire());
            }
            is_known
        });
    }

    /// The cluster is gone, or another of its name has taken its place: close what is idle, and the rest as it becomes so. Connections know
    /// their pool, so that nothing of it would end by itself.
    pub fn retire(&self) {
        self.is_retired.set(true);
        *self.balancer.borrow_mut() = None;
        let idle = self.idle.take();
        let (shared, calls) = (self.shared.take(), self.calls.take());
        // After the maps are let go of: a connection that closes looks at its pool.
        drop(idle);
        shared.into_values().flatten().for_each(|connection| connection.session.retire());
        calls.into_values().flatten().for_each(|session| session.retire());
    }

    pub fn is_retired(&self) -> bool {
        self.is_retired.get()
    }

    pub fn open_count(&self) -> usize {
        self.open.get()
    }
}

/// What of a resource's ALPN list (`CommonTlsContext.alpn_protocols`) is offered; and for HTTP, where there is no list, the versions that
/// may be spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer<'a> {
    /// All: it is not HTTP.
    All,
    /// All; of [`VersionChoice::OfferHttp1`] as [`Offer::Http1`].
    Http(VersionChoice),
    /// All but HTTP/2, if HTTP/1.1 is among them.
    Http1,
    /// HTTP/2 alone, if it is among them.
    Http2,
    /// These instead.
    Only(&'a [Box<[u8]>]),
}

/// Get a connection to *destination*: a pooled one unless *fresh* asks for a new one. *ends* are the client's, for endpoints that want
/// to be told.
///
/// Waits while the cluster's `max_connections` are all in use by this worker, as one of `max_pending_requests`.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(
    upstream: &Rc<WorkerUpstream>,
    destination: &Destination,
    ends: Ends,
    standing: &Standing,
    fresh: bool,
    offer: Offer<'_>,
) -> Result<Box<Connection>, ConnectError> {
    obtain(upstream, destination, ends, standing, fresh, offer, &mut None).await
}

/// As [`connect`], for a request that may be one of `max_pending_requests` already.
async fn obtain(
    upstream: &Rc<WorkerUpstream>,
    destination: &Destination,
    ends: Ends,
    standing: &Standing,
    fresh: bool,
    offer: Offer<'_>,
    pending: &mut Option<Permit>,
) -> Result<Box<Connection>, ConnectError> {
    let cluster = &upstream.shared.cluster;
    let key = destination.key(destination.transport(cluster), ends);
    let mut waited = false;
    let permit = loop {
        if !fresh && let Some(connection) = upstream.pool.take(&key, cluster) {
            return Ok(connection);
        }
        count_pending(upstream, pending)?;
        if let Some(permit) = make_room(upstream) {
            break permit;
        }
        upstream.pool.retire_one_idle();
        wait_for_release(&upstream.pool, None, waited).await;
        waited = true;
    };
    make(upstream, destination, ends, standing, offer, permit).await
}

/// Count a request that has to wait as one of `max_pending_requests`, unless it is.
fn count_pending(upstream: &WorkerUpstream, pending: &mut Option<Permit>) -> Result<(), ConnectError> {
    if pending.is_none() {
        let Upstream { breakers, cluster, .. } = &*upstream.shared;
        *pending = Some(breakers.acquire(Resource::Pending, &cluster.limits).ok_or(ConnectError::Overflow)?);
    }
    Ok(())
}

/// Leave to open a connection now, for which idle ones may have to be closed.
fn make_room(upstream: &WorkerUpstream) -> Option<Permit> {
    let Upstream { breakers, cluster, .. } = &*upstream.shared;
    loop {
        if let Some(permit) = breakers.acquire(Resource::Connection, &cluster.limits) {
            return Some(permit);
        }
        if !upstream.pool.close_one_idle() {
            break;
        }
    }
    if upstream.pool.open_count() > 0 {
        return None;
    }
    // All connections belong to other workers, so none will be given back here. Envoy allows each worker one then.
    let no_limit = weft_core::breaker::Limits { connections: u32::MAX, ..cluster.limits };
    breakers.acquire(Resource::Connection, &no_limit)
}

/// Leave to open a connection for bytes, at once or not at all: such a connection is never given back, and nobody knows when it ends, so
/// that there is nothing to wait for (Envoy's TCP proxy). One that is idle in the pool counts as any other.
///
/// # Errors
/// [`ConnectError::Overflow`].
pub fn admit(upstream: &WorkerUpstream) -> Result<Permit, ConnectError> {
    let Upstream { breakers, cluster, .. } = &*upstream.shared;
    breakers.acquire(Resource::Connection, &cluster.limits).ok_or(ConnectError::Overflow)
}

/// Open a connection to *destination* for bytes, as [`admit`] has allowed; it counts as one of `max_pending_requests` until it is there.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect_bytes(
    upstream: &Rc<WorkerUpstream>,
    destination: &Destination,
    ends: Ends,
    standing: &Standing,
    permit: Permit,
) -> Result<Box<Connection>, ConnectError> {
    let Upstream { breakers, cluster, .. } = &*upstream.shared;
    let _pending = breakers.acquire(Resource::Pending, &cluster.limits).ok_or(ConnectError::Overflow)?;
    make(upstream, destination, ends, standing, Offer::All, permit).await
}

/// Open a connection that counts by *permit*.
async fn make(
    upstream: &Rc<WorkerUpstream>,
    destination: &Destination,
    ends: Ends,
    standing: &Standing,
    offer: Offer<'_>,
    permit: Permit,
) -> Result<Box<Connection>, ConnectError> {
    let cluster = &upstream.shared.cluster;
    let transport = destination.transport(cluster);
    let deadline = cluster.connect_timeout;
    let address = destination.address();
    let work = pin!(open(&upstream.shared, &address, transport, Some(ends), standing, offer));
    let opened = tokio::time::timeout(deadline, work).await.unwrap_or(Err(ConnectError::Timeout(deadline)));
    let io = opened.inspect_err(|error| {
        log::debug!(target: logging::POOL, "{} cannot be connected to {address}: {error}", cluster.name);
    })?;
    upstream.pool.open.set(upstream.pool.open.get() + 1);
    let peer = Peer::new(destination, &io);
    log::debug!(target: logging::POOL, "{} is connected to {}, who is {:?}", cluster.name, peer.address, peer.principal);
    Ok(Box::new(Connection {
        local: sockets::local_address(io.as_raw_fd()),
        peer: Rc::new(peer),
        io,
        buffer: Buffer::limited(cluster.buffer_limit_bytes),
        reused: false,
        requests: 1,
        since: Instant::now(),
        key: destination.key(transport, ends),
        _counters: destination.host().map(|host| Arc::clone(&host.counters)),
        // It may have taken long, and who asked for it may know the endpoints of before.
        known_at: 0,
        pool: Rc::clone(&upstream.pool),
        _permit: permit,
    }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Waiting,
    Given,
    GaveUp,
}

/// A task that waits for a connection.
struct Waiting {
    waker: Waker,
    turn: Rc<Cell<Turn>>,
    /// A connection of HTTP/2 of this key would do.
    shares: Option<Key>,
}

impl Waiting {
    /// False: it has given up.
    fn give_turn(self) -> bool {
        let waits = self.turn.get() == Turn::Waiting;
        if waits {
            self.turn.set(Turn::Given);
            self.waker.wake();
        }
        waits
    }
}

/// Wait until a connection of the pool was given back or closed, or takes another request if it is of the key in *shares*. *again*: it was
/// in vain before, and has kept its place in the line. If dropped after its turn was given, the turn passes on.
async fn wait_for_release(pool: &Pool, shares: Option<Key>, again: bool) {
    struct Place<'p> {
        pool: &'p Pool,
        turn: Rc<Cell<Turn>>,
        shares: Option<Key>,
    }
    impl Drop for Place<'_> {
        fn drop(&mut self) {
            if self.turn.replace(Turn::GaveUp) == Turn::Given
                // What it was woken for may be of use to its like alone.
                && !self.shares.is_some_and(|key| self.pool.wake_sharing(&key))
            {
                self.pool.wake_next();
            }
        }
    }
    let place = Place { pool, turn: Rc::new(Cell::new(Turn::Waiting)), shares };
    let mut queued = false;
    std::future::poll_fn(|context| {
        if place.turn.get() == Turn::Given {
            place.turn.set(Turn::GaveUp);
            return Poll::Ready(());
        }
        if !queued {
            queued = true;
            let (waker, turn) = (context.waker().clone(), Rc::clone(&place.turn));
            let one = Waiting { waker, turn, shares };
            let mut waiting = pool.waiting.borrow_mut();
            if again {
                waiting.push_front(one);
            } else {
                waiting.push_back(one);
            }
        }
        Poll::Pending
    })
    .await;
}

/// *ends* are those of a client for whom the connection is; `None`: it is the proxy's own.
async fn open(
    upstream: &Upstream,
    address: &PeerAddress,
    transport: &TransportSocket,
    ends: Option<Ends>,
    standing: &Standing,
    offer: Offer<'_>,
) -> Result<Io, ConnectError> {
    let io = reach(upstream, address, transport, ends, standing).await?;
    let Some(context) = upstream.tls_for(transport) else { return Ok(io) };
    let io = shake_hands(io, &offered(&context.config, offer), context).await?;
    // What a resumed session knows of the server was verified when it was new. Nothing has been sent to it yet.
    let is_stale = |session: &Session| session.is_resumed() && !context.still_trusts(session.peer_certificates());
    if !io.with_session(is_stale).unwrap_or(false) {
        return Ok(io);
    }
    drop(io);
    let io = reach(upstream, address, transport, ends, standing).await?;
    shake_hands(io, &offered(&context.config_afresh, offer), context).await
}

fn offered<'c>(config: &'c Arc<ClientConfig>, offer: Offer<'_>) -> Cow<'c, Arc<ClientConfig>> {
    let speaks = |name: &[u8]| config.alpn_protocols.iter().any(|protocol| protocol == name);
    let with = |protocols: Vec<Vec<u8>>| {
        let mut config = ClientConfig::clone(config);
        config.alpn_protocols = protocols;
        Cow::Owned(Arc::new(config))
    };
    let unlisted = |choice: VersionChoice| with(choice.unlisted().iter().map(|name| name.to_vec()).collect());
    match offer {
        Offer::Http(choice) if config.alpn_protocols.is_empty() => unlisted(choice),
        Offer::Http1 if config.alpn_protocols.is_empty() => unlisted(VersionChoice::Http1),
        Offer::Http2 if config.alpn_protocols.is_empty() => unlisted(VersionChoice::Http2),
        Offer::Http1 | Offer::Http(VersionChoice::OfferHttp1) if speaks(b"h2") && speaks(b"http/1.1") => {
            with(config.alpn_protocols.iter().filter(|protocol| *protocol != b"h2").cloned().collect())
        }
        Offer::Http2 if speaks(b"h2") => with(vec![b"h2".to_vec()]),
        Offer::Only(protocols) => with(protocols.iter().map(|protocol| protocol.to_vec()).collect()),
        Offer::All | Offer::Http(_) | Offer::Http1 | Offer::Http2 => Cow::Borrowed(config),
    }
}

async fn shake_hands(mut io: Io, config: &Arc<ClientConfig>, context: &ClientContext) -> Result<Io, ConnectError> {
    let session = ClientConnection::new(Arc::clone(config), context.name.clone())
        .map_err(|error| ConnectError::Tls(io::Error::other(error)))?;
    io.secure(session.into());
    io.handshake().await.map_err(ConnectError::Tls)?;
    Ok(io)
}

/// A connection before TLS.
async fn reach(
    upstream: &Upstream,
    address: &PeerAddress,
    transport: &TransportSocket,
    ends: Option<Ends>,
    standing: &Standing,
) -> Result<Io, ConnectError> {
    let cluster = &upstream.cluster;
    let namespace = cluster.bind.as_ref().and_then(|bind| bind.namespace.as_deref());
    let socket = match (address, namespace) {
        (PeerAddress::Socket(address), Some(path)) if netns::is_host(path) => match &standing.edge {
            Some(edge) => dial_edge(edge, *address, cluster.connect_timeout).await?,
            None => {
                return Err(ConnectError::Local(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "the endpoint is in the host's network, but no --edge-socket was given",
                )));
            }
        },
        (PeerAddress::Socket(address), _) => {
            let bind = cluster.bind.as_ref().map_or(standing.source, |bind| Some(bind.address));
            dial(*address, bind, namespace).await?
        }
        (PeerAddress::Pipe(path), _) => dial_pipe(path).await?,
    };
    if matches!(address, PeerAddress::Socket(_)) {
        sockets::set_no_delay(socket.as_raw_fd());
        if let Some(keepalive) = &cluster.keepalive {
            set_keepalive(&socket, keepalive);
        }
    }
    let io = Io::new(socket).map_err(ConnectError::Local)?;
    if let Some(version) = transport.proxy_protocol {
        // Before anything else, TLS too: the receiver reads it before it knows what follows.
        let mut header = Vec::new();
        match ends {
            Some(ends) => proxy_protocol::encode(&mut header, spoken(version), ends.remote, ends.local),
            None => proxy_protocol::encode_own(&mut header, spoken(version)),
        }
        io.write_all(&header, &[]).await.map_err(ConnectError::Remote)?;
    }
    Ok(io)
}

fn spoken(version: ProxyProtocolVersion) -> proxy_protocol::Version {
    match version {
        ProxyProtocolVersion::V1 => proxy_protocol::Version::V1,
        ProxyProtocolVersion::V2 => proxy_protocol::Version::V2,
    }
}

async fn dial_edge(edge: &Edge, address: SocketAddr, timeout: Duration) -> Result<OwnedFd, ConnectError> {
    let socket = edge.dial(address, timeout).await.map_err(ConnectError::Remote)?;
    socket2::SockRef::from(&socket).set_nonblocking(true).map_err(ConnectError::Local)?;
    Ok(socket)
}

async fn dial(
    address: SocketAddr,
    bind: Option<SocketAddr>,
    namespace: Option<&Path>,
) -> Result<OwnedFd, ConnectError> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket2::Socket::from(netns::stream_socket(family, namespace).map_err(ConnectError::Local)?);
    // A bind address of another family, or 0.0.0.0, only carries the namespace.
    if let Some(bind) = bind.filter(|bind| bind.is_ipv4() == address.is_ipv4() && !bind.ip().is_unspecified()) {
        if bind.port() == 0 {
            sockets::choose_port_when_connecting(socket.as_raw_fd());
        }
        socket.bind(&bind.into()).map_err(ConnectError::Local)?;
    }
    finish_connect(socket, &address.into()).await
}

async fn dial_pipe(path: &Path) -> Result<OwnedFd, ConnectError> {
    let socket = socket2::Socket::from(netns::stream_socket(libc::AF_UNIX, None).map_err(ConnectError::Local)?);
    let address = socket2::SockAddr::unix(path).map_err(ConnectError::Local)?;
    finish_connect(socket, &address).await
}

async fn finish_connect(socket: socket2::Socket, address: &socket2::SockAddr) -> Result<OwnedFd, ConnectError> {
    match socket.connect(address) {
        Ok(()) => return Ok(socket.into()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => {
            return Err(match error.raw_os_error() {
                Some(libc::EADDRNOTAVAIL | libc::EACCES | libc::EPERM | libc::EINVAL) => ConnectError::Local(error),
                _ => ConnectError::Remote(error),
            });
        }
    }
    let watched = sockets::watch(socket, tokio::io::Interest::WRITABLE).map_err(ConnectError::Local)?;
    // The connection's result is known when the socket becomes writable.
    drop(watched.writable().await.map_err(ConnectError::Local)?);
    match socket2::SockRef::from(watched.get_ref()).take_error() {
        Ok(None) => Ok(watched.into_inner()),
        Ok(Some(error)) | Err(error) => Err(ConnectError::Remote(error)),
    }
}

fn set_keepalive(socket: &OwnedFd, keepalive: &Keepalive) {
    let mut settings = socket2::TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        settings = settings.with_time(Duration::from_secs(time.into()));
    }
    if let Some(interval) = keepalive.interval {
        settings = settings.with_interval(Duration::from_secs(interval.into()));
    }
    if let Some(probes) = keepalive.probes {
        settings = settings.with_retries(probes);
    }
    // An optimisation for dead peers; a connection without it still works.
    let _ = socket2::SockRef::from(socket).set_tcp_keepalive(&settings);
}
