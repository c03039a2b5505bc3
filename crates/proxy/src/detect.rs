//! What a connection turns out to be: TLS or not, HTTP or not, and so which filter chain takes it.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{Accepted, Acceptor};
use tokio::time::Instant;
use weft_core::listener::{Connection, FilterChain, Inspectors, Listener, NetworkFilter, Place, ProxyProtocol, Seen};
use weft_core::trace::Silent;

use crate::alarm::Alarm;
use crate::buffer::Buffer;
use crate::codec::client_hello::{self, HANDSHAKE_RECORD, Step};
use crate::codec::opening::{self, Opening};
use crate::codec::proxy_protocol::{self, Expected, HeaderError, Reader as HeaderReader, Said};
use crate::identify::{Ends, Facts};
use crate::io::Io;
use crate::plan::{ChainContext, WorkerPlan};
use crate::rbac;
use crate::serve::Socket;
use crate::server_first::{self, Early, Raced};
use crate::tcp;
use crate::tls::context::ServerContext;
use crate::tls::session::Session;
use crate::tls::tickets;
use crate::worker::Worker;

/// How long a TLS handshake may take where the chain says nothing; Envoy waits for ever.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a connection was closed before it reached a filter.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    #[error("filter_chain_not_found")]
    NoChain,
    /// One connection too many for the process.
    #[error("downstream_global_cx_overflow")]
    GlobalLimit,
    /// One too many for its filter chain, to be held so long before it is closed.
    #[error("connection_limit")]
    Limit { delay: Option<Duration> },
    /// RBAC rules of its filter chain do not let it in; to be held so long before it is closed.
    #[error("{details}")]
    Denied { details: String, delay: Option<Duration>, chain: Arc<FilterChain> },
    /// Its process is another user's, and what the filter chain carries has no answer that would say so.
    #[error("caller_uid_refused")]
    Caller { chain: Arc<FilterChain> },
    #[error("listener_filter_timeout")]
    Silent,
    #[error("proxy_protocol_error:{0}")]
    Header(#[from] HeaderError),
    /// A request line without end; Envoy, too, closes such a connection.
    #[error("request_line_too_long")]
    LongLine,
    #[error("plaintext_to_tls_listener")]
    Plaintext,
    #[error("tls_handshake_timeout")]
    HandshakeTimeout,
    #[error("tls_error:{0}")]
    Handshake(io::Error),
    #[error("client_closed")]
    Gone,
}

/// Hear from a proxy before us between whom the connection is, and drop the header that says so. *own* are the connection's own ends.
///
/// # Errors
/// [`DetectError`]; the connection must be closed without a word. A header that has to come is not given up by
/// `continue_on_listener_filters_timeout`: who may connect without one is said by the filter itself.
pub async fn hear(
    socket: &mut Socket,
    listener: &Listener,
    filter: &ProxyProtocol,
    own: Ends,
) -> Result<Ends, DetectError> {
    let expected = Expected { v1: filter.v1, v2: filter.v2, absence: filter.optional };
    let mut reader = HeaderReader::new(expected);
    let Socket { io, buffer, alarm } = socket;
    let deadline = listener.listener_filters_timeout.map(|limit| Instant::now() + limit);
    let work = async {
        loop {
            more(io, buffer).await?;
            match reader.step(buffer.data())? {
                proxy_protocol::Step::More { consumed } => buffer.consume(consumed),
                proxy_protocol::Step::Done { consumed, said } => {
                    buffer.consume(consumed);
                    buffer.release_if_empty();
                    return Ok(said);
                }
            }
        }
    };
    match alarm.limit(deadline, work).await {
        Ok(Ok(Said::Between { source, destination })) => {
            // IPv4 in IPv6 clothes is IPv4, as it is from the kernel.
            let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
            Ok(Ends { remote: plain(source), local: plain(destination) })
        }
        Ok(Ok(Said::OwnEnds)) => Ok(own),
        Ok(Err(error)) => Err(error),
        Err(_) if listener.continue_on_listener_filters_timeout && filter.optional => Ok(own),
        Err(_) => Err(DetectError::Silent),
    }
}

/// What was found out.
pub struct Detected {
    pub context: Arc<ChainContext>,
    /// The upstream of a TCP proxy, if it had to be dialled to find out. In a box: no idle connection is to have room for it.
    pub early: Option<Box<tcp::Opened>>,
    /// Held while the connection lasts.
    pub _place: Option<Place>,
}

/// Find the filter chain of a connection, take a place on it, and shake hands if it wants TLS. What is learnt of the client goes into *facts*, on the
/// way to an error too.
///
/// # Errors
/// [`DetectError`]; the connection must be closed without a word (except a TLS alert, which was sent).
pub async fn detect(
    worker: &Rc<Worker>,
    socket: &mut Socket,
    plan: &WorkerPlan,
    listener: &Listener,
    ends: Ends,
    facts: &mut Facts,
) -> Result<Detected, DetectError> {
    let deadline = listener.listener_filters_timeout.map(|limit| Instant::now() + limit);
    let may_race = socket.buffer.is_empty()
        && !facts.foreign
        && listener.continue_on_listener_filters_timeout
        && !listener.inspectors(ends.local.port()).are_absent();
    let raced = if may_race {
        Box::pin(server_first::race(worker, socket, plan, listener, facts, deadline)).await
    } else {
        Raced::Client(None)
    };
    let early = match raced {
        Raced::Server(Early { context, opened }) => {
            let _place = take_place(&context)?;
            authorise(worker, &context.chain, facts)?;
            return Ok(Detected { context, early: Some(opened), _place });
        }
        Raced::Client(early) => early,
    };
    let Socket { io, buffer, alarm } = socket;
    let inspectors = listener.inspectors(ends.local.port());
    // In boxes, as the race before: what reads a hello has kilobytes, and most connections have no hello to be read.
    let seen = if inspectors.are_absent() {
        Seen::default()
    } else {
        Box::pin(inspect(io, buffer, alarm, listener, &inspectors, deadline)).await?
    };
    facts.server_name = seen.server_name.as_deref().map(Into::into);
    let choose = |connection: &Connection<'_>| listener.chain(connection, &mut Silent);
    let chosen = seen.with_connection(ends.local, ends.remote, facts.direct().ip(), choose);
    let chain: &Arc<FilterChain> = chosen.ok_or(DetectError::NoChain)?;
    let context = Arc::clone(plan.chain(chain).ok_or(DetectError::NoChain)?);
    // Before the handshake, which is what a connection costs most.
    let _place = take_place(&context)?;
    let early = early.filter(|early| Arc::ptr_eq(&early.context, &context)).map(|early| early.opened);
    if let Some(tls) = &context.tls {
        let limit = chain.tls_handshake_timeout.unwrap_or(HANDSHAKE_TIMEOUT);
        let work = Box::pin(shake_hands(io, buffer, tls, facts));
        alarm.limit(Some(Instant::now() + limit), work).await.map_err(|_| DetectError::HandshakeTimeout)??;
        worker.metrics.counters().secured(io.with_session(Session::is_resumed).unwrap_or(false));
        if chain.asks_for_identity() {
            facts.learn_names(io);
        }
    }
    authorise(worker, &context.chain, facts)?;
    Ok(Detected { context, early, _place })
}

fn authorise(worker: &Worker, chain: &Arc<FilterChain>, facts: &mut Facts) -> Result<(), DetectError> {
    if facts.foreign && !matches!(chain.filter, NetworkFilter::Http(_)) {
        return Err(DetectError::Caller { chain: Arc::clone(chain) });
    }
    rbac::admit(&worker.metrics, chain, facts).map_err(|(verdict, delay)| DetectError::Denied {
        details: verdict.details(),
        delay,
        chain: Arc::clone(chain),
    })
}

fn take_place(context: &ChainContext) -> Result<Option<Place>, DetectError> {
    let limit = context.chain.connection_limit.as_ref();
    limit.map(|limit| limit.take().ok_or(DetectError::Limit { delay: limit.delay })).transpose()
}

/// Look at the first bytes without taking them, as far as the listener's inspectors ask for it.
async fn inspect(
    io: &Io,
    buffer: &mut Buffer,
    alarm: &mut Alarm,
    listener: &Listener,
    inspectors: &Inspectors,
    deadline: Option<Instant>,
) -> Result<Seen, DetectError> {
    let mut seen = Seen::default();
    let work = async {
        if inspectors.look_for_tls() {
            look_for_hello(io, buffer, &mut seen).await?;
        }
        if inspectors.look_for_http(&seen) {
            seen.application_protocols.extend(look_for_http(io, buffer).await?);
        }
        Ok::<(), DetectError>(())
    };
    match alarm.limit(deadline, work).await {
        Ok(result) => result?,
        Err(_) if listener.continue_on_listener_filters_timeout => {}
        Err(_) => return Err(DetectError::Silent),
    }
    Ok(seen)
}

async fn more(io: &Io, buffer: &mut Buffer) -> Result<(), DetectError> {
    if buffer.is_full() {
        // Once: a hello, a request line and a header end, or are given up, long before that is full.
        buffer.grow(0);
    }
    match io.read(buffer).await {
        Ok(0) | Err(_) => Err(DetectError::Gone),
        Ok(_) => Ok(()),
    }
}

async fn look_for_hello(io: &Io, buffer: &mut Buffer, seen: &mut Seen) -> Result<(), DetectError> {
    let mut reader = client_hello::Reader::default();
    loop {
        // The bytes stay in the buffer: the chain may pass them through, or read them again.
        match reader.step(buffer.data()) {
            Step::Hello(hello) => {
                seen.learn_hello(hello.server_name.as_deref(), hello.application_protocols);
                return Ok(());
            }
            // It may begin like TLS, and is treated as bytes.
            Step::Other => return Ok(()),
            Step::Undecided => more(io, buffer).await?,
        }
    }
}

/// Whether a request line of HTTP/1 comes, or HTTP/2's preface.
async fn look_for_http(io: &Io, buffer: &mut Buffer) -> Result<Option<String>, DetectError> {
    loop {
        match opening::of(buffer.data()) {
            Opening::Http(protocol) => return Ok(Some(protocol.into())),
            Opening::Other => return Ok(None),
            Opening::TooLong => return Err(DetectError::LongLine),
            Opening::Undecided => more(io, buffer).await?,
        }
    }
}

/// End TLS here.
async fn shake_hands(
    io: &mut Io,
    buffer: &mut Buffer,
    tls: &ServerContext,
    facts: &mut Facts,
) -> Result<(), DetectError> {
    let accepted = accept(io, buffer).await?;
    let hello = accepted.client_hello();
    // If there was an inspector, it has read the same.
    if facts.server_name.is_none() {
        facts.server_name = hello.server_name().map(Into::into);
    }
    let (config, identity) = tls.choose(&hello);
    let mut connection = match accepted.into_connection(config) {
        Ok(connection) => connection,
        Err((error, mut alert)) => {
            let mut bytes = Vec::new();
            let _ = alert.write(&mut bytes);
            let _ = io.write_all(&bytes, &[]).await;
            return Err(DetectError::Handshake(io::Error::other(error)));
        }
    };
    tickets::date(&mut connection);
    let mut session = Session::from(connection);
    session.push_back(buffer.data());
    buffer.consume(buffer.len());
    io.secure(session);
    io.handshake().await.map_err(DetectError::Handshake)?;
    facts.learn_from_handshake(io, identity.uri.as_deref());
    Ok(())
}

/// Read a ClientHello, taking its bytes.
async fn accept(io: &Io, buffer: &mut Buffer) -> Result<Accepted, DetectError> {
    let mut acceptor = Acceptor::default();
    let mut begun = false;
    loop {
        if buffer.is_empty() {
            more(io, buffer).await?;
        }
        // The first byte of the first record decides; later ones are the acceptor's business.
        if !begun && buffer.data()[0] != HANDSHAKE_RECORD {
            return Err(DetectError::Plaintext);
        }
        begun = true;
        let mut unseen = buffer.data();
        let before = unseen.len();
        let taken = acceptor.read_tls(&mut unseen as &mut dyn Read);
        let count = before - unseen.len();
        buffer.consume(count);
        if taken.is_err() {
            return Err(DetectError::Handshake(io::ErrorKind::InvalidData.into()));
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                let _ = alert.write(&mut bytes);
                let _ = io.write_all(&bytes, &[]).await;
                return Err(DetectError::Handshake(io::Error::other(error)));
            }
        }
    }
}
