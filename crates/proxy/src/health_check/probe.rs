//! One check: connect, or use the connection of the last, and ask.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_local};
use weft_core::address::PeerAddress;
use weft_core::cluster::Cluster;
use weft_core::header_edit::HeaderEdits;
use weft_core::health_check::{Exchange, HealthCheck, HttpAnswer, HttpProbe, Probe, Verdict};
use weft_core::http_manager::HeadLimits;

use crate::buffer::Buffer;
use crate::codec::h2::Role;
use crate::codec::http1::Limits;
use crate::codec::{Framing, Head, Name};
use crate::connect::{ConnectError, Offer, Standing, connect_check, http2_limits};
use crate::io::Io;
use crate::message::ReadError;
use crate::multiplex::{Driver, Session, Turn};
use crate::plan::Upstream;
use crate::route::Editable;
use crate::tls::context::ClientContext;

use super::exchange::{Answer, Side, exchange};
use super::{Target, grpc};

/// How Envoy calls itself in its checks: servers leave such requests out of their logs.
const USER_AGENT: &[u8] = b"Envoy/HC";
/// Of what comes over TCP no more is kept than what has to come, and this much beside it.
const TCP_SPARE_BYTES: usize = 4096;

/// What a check found, and in words.
pub struct Found {
    pub verdict: Verdict,
    pub why: Cow<'static, str>,
}

impl Found {
    pub fn new(verdict: Verdict, why: impl Into<Cow<'static, str>>) -> Found {
        Found { verdict, why: why.into() }
    }

    pub fn passed() -> Found {
        Found::new(Verdict::Passed { degraded: false }, "")
    }

    pub fn timed_out(limit: Duration) -> Found {
        Found::new(Verdict::TimedOut, format!("no answer within {limit:?}"))
    }
}

/// Nothing was heard.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("writing: {0}")]
    Write(io::Error),
    #[error("reading: {0}")]
    Read(io::Error),
    #[error("the connection ended before the answer")]
    Ended,
    #[error("the answer is malformed")]
    Head,
    #[error("{0}")]
    Body(#[from] ReadError),
}

/// A connection that checks of one endpoint use one after the other.
pub struct Way {
    /// Where it leads, and by which keys: where either is another, so is the connection.
    address: PeerAddress,
    context: Option<Arc<ClientContext>>,
    kind: Kind,
}

enum Kind {
    /// Bytes, HTTP/1.1 among them.
    Plain {
        io: Io,
        buffer: Buffer,
    },
    Http2(Multiplexed),
}

/// A connection of HTTP/2, with the task that reads and writes it.
struct Multiplexed {
    session: Rc<Session>,
    task: AbortHandle,
}

impl Drop for Multiplexed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Way {
    fn is_fresh(&self) -> bool {
        match &self.kind {
            Kind::Plain { io, buffer } => buffer.is_empty() && io.is_fresh(),
            Kind::Http2(Multiplexed { session, .. }) => session.can_open(),
        }
    }

    fn leads_to(&self, address: &PeerAddress, context: Option<&Arc<ClientContext>>) -> bool {
        let same_keys = match (&self.context, context) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        same_keys && self.address == *address
    }
}

/// Check *target* once. *way* is a connection of before, and then one for the next check. Who calls limits the time.
pub async fn ask(target: &Target, check: &HealthCheck, way: &mut Option<Box<Way>>, standing: &Standing) -> Found {
    let result = match &check.probe {
        Probe::Tcp(probe) => tcp(target, check, probe, way, standing).await,
        Probe::Http(probe) => http(target, check, probe, way, standing).await,
        Probe::Grpc(probe) => {
            let request = grpc::request(&authority(target, &probe.authority), check.timeout);
            let call = (request, &probe.metadata, grpc::message(probe));
            let answer = ask_http(target, check, call, way, standing, grpc::MOST_BYTES).await;
            answer.map(|answer| grpc::judge(&answer))
        }
    };
    result.unwrap_or_else(|silence| {
        *way = None;
        Found::new(Verdict::Unreachable, silence.to_string())
    })
}

/// Use the connection at hand, or make one.
async fn connect<'w>(
    target: &Target,
    check: &HealthCheck,
    way: &'w mut Option<Box<Way>>,
    standing: &Standing,
) -> Result<&'w mut Way, Silence> {
    let Target { upstream, host } = target;
    let transport = upstream.cluster.check_transport_for(&host.endpoint);
    let context = upstream.tls_for(transport);
    let address = host.endpoint.check_address();
    if way.as_ref().is_some_and(|way| way.leads_to(&address, context) && way.is_fresh()) {
        return way.as_deref_mut().ok_or(Silence::Ended);
    }
    *way = None;
    let http2 = match &check.probe {
        Probe::Http(probe) => probe.http2,
        Probe::Grpc(_) => true,
        Probe::Tcp(_) => false,
    };
    let offer = match (&check.alpn, &check.probe) {
        (Some(protocols), _) => Offer::Only(protocols),
        (None, Probe::Tcp(_)) => Offer::All,
        (None, _) => {
            if http2 {
                Offer::Http2
            } else {
                Offer::Http1
            }
        }
    };
    let io = connect_check(upstream, &address, transport, standing, offer).await?;
    let kind = if http2 {
        Kind::Http2(multiplex(upstream, io))
    } else {
        Kind::Plain { io, buffer: Buffer::limited(upstream.cluster.buffer_limit_bytes) }
    };
    Ok(way.insert(Box::new(Way { address, context: context.cloned(), kind })))
}

fn multiplex(upstream: &Upstream, io: Io) -> Multiplexed {
    let http = &upstream.cluster.http;
    let mut driver = Driver::new(Role::Client, http2_limits(&http.http2, &http.head_limits), io.is_secure());
    let mut buffer = Buffer::limited(upstream.cluster.buffer_limit_bytes);
    let session = Rc::clone(&driver.session);
    let driving = async move {
        while !matches!(std::future::poll_fn(|context| driver.poll(context, &io, &mut buffer)).await, Turn::Over(_)) {}
    };
    Multiplexed { session, task: spawn_local(driving).abort_handle() }
}

/// Envoy: the endpoint's name for checks, what the check says, the cluster's name.
fn authority(target: &Target, configured: &str) -> String {
    let own = target.host.endpoint.check.as_ref().map_or("", |check| &*check.hostname);
    let named = [own, configured].into_iter().find(|name| !name.is_empty());
    named.unwrap_or(&target.upstream.cluster.name).to_owned()
}

async fn http(
    target: &Target,
    check: &HealthCheck,
    probe: &HttpProbe,
    way: &mut Option<Box<Way>>,
    standing: &Standing,
) -> Result<Found, Silence> {
    let mut request = Head::default();
    request.set_method(probe.method.as_bytes());
    request.set_path(probe.path.as_bytes());
    request.set_authority(authority(target, &probe.host).as_bytes());
    let body = &probe.exchange.send;
    request.framing = if body.is_empty() { Framing::None } else { Framing::Length(body.len() as u64) };
    let most = if probe.exchange.receive.is_empty() { 0 } else { probe.buffer_bytes };
    let answer = ask_http(target, check, (request, &probe.headers, body.to_vec()), way, standing, most).await?;
    let head = &answer.head;
    let verdict = probe.judge(&HttpAnswer {
        status: head.status,
        fails_at_once: head.get(b"x-envoy-immediate-health-check-fail").is_some(),
        degraded: head.get(b"x-envoy-degraded").is_some(),
        cluster: head.get(b"x-envoy-upstream-healthchecked-cluster").unwrap_or_default(),
        body: &answer.body,
    });
    let mut why = format!("status {}", head.status);
    if !probe.exchange.is_answered(&answer.body) {
        let _ = write!(why, ", and what has to be in its body is not");
    }
    Ok(Found::new(verdict, why))
}

/// Send a request with these edits and this body, and wait for the whole answer; of its body *most* bytes are kept.
async fn ask_http(
    target: &Target,
    check: &HealthCheck,
    (mut request, edits, body): (Head, &HeaderEdits, Vec<u8>),
    way: &mut Option<Box<Way>>,
    standing: &Standing,
    most: usize,
) -> Result<Answer, Silence> {
    request.append(Name::new("user-agent"), USER_AGENT);
    edits.apply(&mut Editable(&mut request), &());
    let limits = response_limits(&target.upstream.cluster);
    let answer = match &mut connect(target, check, way, standing).await?.kind {
        Kind::Plain { io, buffer } => {
            let answer = exchange(&mut Side::http1(io, buffer, limits), &request, &body, most).await;
            // It is idle most of the time.
            buffer.release_if_empty();
            answer
        }
        Kind::Http2(Multiplexed { session, .. }) => {
            exchange(&mut Side::http2(session.stream()), &request, &body, most).await
        }
    }?;
    if answer.closes {
        *way = None;
    }
    Ok(answer)
}

fn response_limits(cluster: &Cluster) -> Limits {
    let HeadLimits { bytes, count } = cluster.http.head_limits;
    Limits { head_bytes: bytes, fields: count as usize }
}

async fn tcp(
    target: &Target,
    check: &HealthCheck,
    probe: &Exchange,
    way: &mut Option<Box<Way>>,
    standing: &Standing,
) -> Result<Found, Silence> {
    let Kind::Plain { io, buffer } = &mut connect(target, check, way, standing).await?.kind else {
        return Err(Silence::Ended);
    };
    if !probe.send.is_empty() {
        io.write_all(&probe.send, &[]).await.map_err(Silence::Write)?;
    }
    let needed: usize = probe.receive.iter().map(|piece| piece.len()).sum();
    let mut seen = Vec::new();
    while !probe.is_answered(&seen) {
        if io.read(buffer).await.map_err(Silence::Read)? == 0 {
            return Err(Silence::Ended);
        }
        seen.extend_from_slice(buffer.data());
        buffer.consume(buffer.len());
        if seen.len() > needed + 2 * TCP_SPARE_BYTES {
            seen.drain(..seen.len() - needed - TCP_SPARE_BYTES);
        }
    }
    buffer.release_if_empty();
    if probe.receive.is_empty() {
        // That there was a connection is all that was asked.
        *way = None;
    }
    Ok(Found::passed())
}
