//! One call: route -> pick -> connect -> forward -> record.
//!
//! A call is tried again only where its endpoint has certainly seen nothing of it: there was no connection, or it ended before the first byte was
//! taken. Whether a method may be called twice no protocol says, so what may have been carried out is never repeated. That is what a library of Dubbo
//! or gRPC would do by itself, and it needs no configuration; Envoy gives up at once.

use std::borrow::Cow;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::breaker::Resource;
use weft_core::outlier::Observation;
use weft_core::respond::{Cause, LocalReply};
use weft_core::rpc;
use weft_core::trace::Silent;

use crate::alarm::{Alarm, Elapsed};
use crate::codec::Head;
use crate::codec::rpc::{self as codec, Failure, Frame, Message, Refusal, Sharing, Status};
use crate::connect::{CallWay, Connection, Destination, connect_call};
use crate::gone::unless_gone;
use crate::labels::{self, Protocol};
use crate::overload::Action as Overloaded;
use crate::pick::{self, Tried};
use crate::plan::WorkerUpstream;
use crate::record::{Entry, Outcome, Subject};
use crate::tcp;

use super::Active;
use super::session::{Answer, Lost};

/// Tries of one call, the first among them: as often as Dubbo's own clients try (`cluster=failover`, `retries=2`).
const MOST_TRIES: u32 = 3;

/// How often an endpoint is drawn to find one that was not tried yet.
const DRAWS: u32 = 5;

/// What becomes of a call.
enum End {
    /// The endpoint's answer, under the caller's id; without one for a call that wants none and has left.
    Answered(Option<Answer>),
    /// We answer, if an answer is wanted.
    Refused(Cause),
    /// Nobody waits any more.
    Gone,
}

/// Serve one call to its end.
pub(super) async fn serve(active: Active, message: Vec<u8>, id: u64, answered: bool) {
    let caller = Rc::clone(&active.caller);
    let counters = caller.counters();
    counters.request.add(1);
    if !answered {
        counters.request_oneway.add(1);
    }
    let began = Instant::now();
    // A call is there only when all of it is.
    let outcome = Outcome { request_duration: Some(Duration::ZERO), ..Outcome::default() };
    let mut exchange = Exchange { active, message, id, answered, began, outcome, upstream: None, is_recorded: false };
    let end = exchange.walk().await;
    exchange.finish(end);
}

struct Exchange {
    active: Active,
    message: Vec<u8>,
    id: u64,
    answered: bool,
    began: Instant,
    outcome: Outcome,
    upstream: Option<Rc<WorkerUpstream>>,
    is_recorded: bool,
}

/// What is not recorded yet is not over either: its task is dropped, because the process ends and does not wait for it.
impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_recorded {
            self.outcome.fail(Cause::CutOff);
            self.record();
        }
    }
}

/// How one try ended.
enum Try {
    Answered(Option<Answer>),
    /// *again*: the endpoint has seen nothing of the call.
    Failed {
        cause: Cause,
        again: bool,
    },
}

impl Exchange {
    /// The line, as far as the answer.
    async fn walk(&mut self) -> End {
        let caller = Rc::clone(&self.active.caller);
        let worker = &caller.down.worker;
        let plan = worker.plan();
        let overload = worker.overload.actions();
        if overload.contains(Overloaded::StopAcceptingRequests)
            || overload.contains(Overloaded::StopAcceptingHighPriority)
        {
            worker.metrics.counters().overload_refused.add(1);
            return End::Refused(Cause::Overload);
        }
        // route
        let (cluster, timeout) = {
            let Ok(call) = caller.codec.call(&self.message) else { return End::Refused(Cause::MalformedRequest) };
            let weft_core::listener::NetworkFilter::Rpc(proxy) = &caller.down.context.chain.filter else {
                return End::Gone;
            };
            let random = &mut *worker.random.borrow_mut();
            let decision = rpc::decide(&plan.active.core, proxy, &View(&call), random, &mut Silent);
            self.outcome.cluster = decision.target.map(Arc::clone);
            match decision.outcome {
                Ok(cluster) => (Arc::clone(cluster), call.rest.as_ref().and_then(|rest| rest.timeout)),
                Err(cause) => return End::Refused(cause),
            }
        };
        let Some(upstream) = plan.upstream(&cluster).map(Rc::clone) else {
            return End::Refused(Cause::ClusterNotFound);
        };
        self.upstream = Some(Rc::clone(&upstream));
        // A caller that no longer waits is not worth an endpoint's time.
        let deadline = timeout.filter(|_| self.answered).map(|timeout| self.began + timeout);
        // What wants no answer is delivered though its caller has left.
        let waits = self.answered;
        let mut alarm = Alarm::default();
        let work = alarm.limit(deadline, self.forward(&upstream));
        let mut left = pin!(caller.until_gone());
        let gone = |context: &mut Context<'_>| if waits { left.as_mut().poll(context) } else { Poll::Pending };
        match unless_gone(work, gone).await {
            Some(Ok(end)) => end,
            Some(Err(Elapsed)) => End::Refused(Cause::ResponseTimeout),
            None => End::Gone,
        }
    }

    /// Pick an endpoint, connect, send, and try again where that is safe.
    async fn forward(&mut self, upstream: &Rc<WorkerUpstream>) -> End {
        let caller = Rc::clone(&self.active.caller);
        let worker = &caller.down.worker;
        let (breakers, limits) = (&upstream.shared.breakers, &upstream.shared.cluster.limits);
        let Some(_in_progress) = breakers.acquire(Resource::Request, limits) else {
            return End::Refused(Cause::Overflow);
        };
        let mut tried = Tried::default();
        let mut _retry = None;
        loop {
            // pick
            let original = caller.down.facts.original;
            let picked = pick::pick_in(upstream, original, DRAWS, &tried, None, &mut *worker.random.borrow_mut());
            let Some(destination) = picked else { return End::Refused(Cause::NoHealthyUpstream) };
            tried.note(&destination);
            self.outcome.attempts += 1;
            self.outcome.begin_try(&destination);
            let _active = destination.host().map(|host| host.begin());
            match self.attempt(upstream, &destination).await {
                Try::Answered(answer) => {
                    let seen = match &answer {
                        Some(answer) => Observation::Status(http_status(answer.status)),
                        None => Observation::Connected,
                    };
                    tcp::observe(upstream, &destination, seen);
                    return End::Answered(answer);
                }
                Try::Failed { cause, again } => {
                    if cause != Cause::Overflow {
                        tcp::observe(upstream, &destination, Observation::LocalFailure);
                    }
                    if !again || self.outcome.attempts >= MOST_TRIES {
                        return End::Refused(cause);
                    }
                    _retry = breakers.acquire(Resource::Retry, limits);
                    if _retry.is_none() {
                        return End::Refused(cause);
                    }
                    worker.metrics.counters().upstream_retries.add(1);
                }
            }
        }
    }

    /// One try: connect, send, and wait for the answer.
    async fn attempt(&mut self, upstream: &Rc<WorkerUpstream>, destination: &Destination) -> Try {
        let caller = Rc::clone(&self.active.caller);
        let down = &caller.down;
        let counters = down.worker.metrics.counters();
        // connect
        let way = connect_call(upstream, destination, down.facts.ends(), &down.worker.standing, &caller.codec).await;
        let way = match way {
            Ok(way) => way,
            Err(error) => {
                self.outcome.transport_failure = error.transport_failure();
                let cause = error.cause();
                // Nothing is retried that would add to a load: a limit is no endpoint's trouble.
                let again = cause != Cause::Overflow;
                if again {
                    counters.upstream_connect_failures.add(1);
                }
                return Try::Failed { cause, again };
            }
        };
        // forward
        let lost = match way {
            CallWay::Shared { session, made } => {
                if made {
                    counters.connected(&session.peer);
                }
                self.outcome.upstream_local = session.local;
                self.outcome.upstream_peer = Some(Rc::clone(&session.peer));
                session.room().await;
                session.send(&self.message, self.answered).answer().await
            }
            CallWay::Own(mut connection) => {
                self.outcome.upstream_local = connection.local;
                self.outcome.upstream_peer = Some(Rc::clone(&connection.peer));
                if !connection.reused {
                    counters.connected(&connection.peer);
                }
                let result = self.exchange(&mut connection).await;
                if result.is_ok() {
                    connection.release(&upstream.shared.cluster);
                }
                result
            }
        };
        match lost {
            Ok(answer) => Try::Answered(answer),
            Err(Lost { malformed: true, .. }) => {
                caller.counters().response_decoding_error.add(1);
                Try::Failed { cause: Cause::UpstreamProtocolError, again: false }
            }
            Err(Lost { taken, .. }) => {
                if !taken {
                    counters.stale_connections.add(1);
                }
                Try::Failed { cause: Cause::ConnectionTermination, again: !taken }
            }
        }
    }

    /// Send the call over a connection that is its own, and wait for the answer.
    async fn exchange(&self, connection: &mut Connection) -> Result<Option<Answer>, Lost> {
        let codec = &self.active.caller.codec;
        let sent_before = connection.io.acknowledged_bytes();
        let is_plain = !connection.io.is_secure();
        let lost = |connection: &Connection, in_order: bool| {
            // As in `session`: a FIN tells what was read, and only in clear text.
            let seen = connection.io.acknowledged_bytes();
            let taken = !(in_order && is_plain && seen.is_some() && seen <= sent_before.map(|count| count.max(1)));
            Lost { taken, malformed: false }
        };
        const MALFORMED: Lost = Lost { taken: true, malformed: true };
        if connection.io.write_all(&self.message, &[]).await.is_err() {
            return Err(lost(connection, false));
        }
        if !self.answered {
            return Ok(None);
        }
        loop {
            let buffer = &mut connection.buffer;
            match codec.frame(buffer.data()).map_err(|_| MALFORMED)? {
                Frame::Length(length) if buffer.len() >= length => {
                    let message = buffer.data()[..length].to_vec();
                    buffer.consume(length);
                    match codec.inspect(&message).map_err(|_| MALFORMED)? {
                        Message::Answer { id, status } if id == self.id => return Ok(Some(Answer { message, status })),
                        Message::Ping { answered: true } => {
                            let mut pong = Vec::new();
                            codec.pong(&message, &mut pong);
                            if connection.io.write_all(&pong, &[]).await.is_err() {
                                return Err(lost(connection, false));
                            }
                        }
                        Message::Ping { answered: false } | Message::Pong | Message::GoAway => {}
                        // An answer to another call, or a call: whose it is nobody knows.
                        Message::Answer { .. } | Message::Call { .. } => return Err(MALFORMED),
                    }
                    continue;
                }
                Frame::Length(length) if buffer.is_full() => buffer.grow(length),
                Frame::Length(_) | Frame::More => {}
            }
            match connection.io.read(buffer).await {
                Ok(0) => {
                    let in_order = connection.buffer.is_empty();
                    return Err(lost(connection, in_order));
                }
                Err(_) => return Err(lost(connection, false)),
                Ok(_) => {}
            }
        }
    }

    /// Answer, count and record.
    fn finish(mut self, end: End) {
        let caller = Rc::clone(&self.active.caller);
        let counters = caller.counters();
        match end {
            End::Answered(Some(Answer { mut message, status })) => {
                counters.response.add(1);
                match status {
                    Status::Success => counters.response_success.add(1),
                    Status::Exception => counters.response_exception.add(1),
                    Status::Error(_) => counters.response_error.add(1),
                }
                if let Sharing::Many { set_id } = caller.codec.sharing() {
                    set_id(&mut message, self.id);
                }
                self.outcome.status = http_status(status);
                self.outcome.details = Cow::Borrowed("via_upstream");
                self.outcome.bytes_sent = message.len() as u64;
                self.outcome.response_duration = Some(self.began.elapsed());
                caller.say(|out| out.extend_from_slice(&message));
            }
            End::Answered(None) => {
                self.outcome.status = 200;
                self.outcome.details = Cow::Borrowed("via_upstream");
            }
            End::Refused(cause) => {
                let retried = self.outcome.attempts > 1;
                let reply = LocalReply::new(cause, self.outcome.transport_failure.as_deref(), retried);
                if let Some(flag) = reply.flag {
                    self.outcome.flag(flag);
                }
                self.outcome.status = reply.status;
                self.outcome.details = reply.details.clone();
                if caller.closes_after_error {
                    caller.last.set(true);
                }
                if self.answered {
                    counters.local_response_error.add(1);
                    let text = self.explain(cause, &reply);
                    let mut sent = 0;
                    caller.say(|out| {
                        let before = out.len();
                        caller.codec.refuse(&self.message, refusal(cause), &text, out);
                        sent = out.len() - before;
                    });
                    self.outcome.bytes_sent = sent as u64;
                }
            }
            End::Gone => self.outcome.fail(Cause::DownstreamGone),
        }
        self.record();
    }

    /// What the caller's log will show.
    fn explain(&self, cause: Cause, reply: &LocalReply) -> String {
        let codec = &self.active.caller.codec;
        match (cause, codec.call(&self.message)) {
            (Cause::RouteNotFound, Ok(call)) => {
                format!("no route for {}", String::from_utf8_lossy(&whole_name(&call, b'.')))
            }
            _ if reply.body.is_empty() => reply.details.clone().into_owned(),
            _ => reply.body.clone().into_owned(),
        }
    }

    /// One result, one record, one count.
    fn record(&mut self) {
        self.is_recorded = true;
        let caller = Rc::clone(&self.active.caller);
        let down = &caller.down;
        self.outcome.duration = self.began.elapsed();
        self.outcome.bytes_received = self.message.len() as u64;
        let outcome = &self.outcome;
        let protocol = Protocol::Rpc(caller.protocol);
        let upstream = self.upstream.as_deref();
        let series = labels::series(&down.worker, down.direction, &down.facts, outcome, upstream, protocol);
        series.request(outcome.duration, outcome.bytes_received, outcome.bytes_sent);
        if down.context.logs.is_empty() {
            return;
        }
        // A record speaks of a call as of gRPC's: the service is asked, and the path is the method's.
        let mut head = Head::default();
        if let Ok(call) = caller.codec.call(&self.message) {
            head.set_authority(&call.service);
            head.set_path(&[b"/", &*whole_name(&call, b'/')].concat());
        }
        let entry = Entry {
            subject: Subject::Request,
            clock: &down.worker.clock,
            start: down.worker.clock.wall(self.began),
            facts: &down.facts,
            outcome,
            request: Some(&head),
            version: None,
            response: None,
            chain_name: &down.context.chain.name,
        };
        down.worker.record(&down.context.logs, &entry);
    }
}

/// Service and method, as far as there are.
fn whole_name(call: &codec::Call<'_>, separator: u8) -> Vec<u8> {
    // A name of Thrift's TMultiplexedProtocol has the service in it.
    let method = call.method.strip_prefix(&*call.service).and_then(|rest| rest.strip_prefix(b":"));
    let method = method.unwrap_or(&call.method);
    if call.service.is_empty() { method.to_vec() } else { [&*call.service, &[separator], method].concat() }
}

/// A call as routes see it.
struct View<'c, 'm>(&'c codec::Call<'m>);

impl rpc::Call for View<'_, '_> {
    fn service(&self) -> &[u8] {
        &self.0.service
    }
    fn version(&self) -> Option<&[u8]> {
        self.0.version.as_deref()
    }
    fn group(&self) -> Option<&[u8]> {
        self.0.rest.as_ref()?.group.as_deref()
    }
    fn method(&self) -> &[u8] {
        &self.0.method
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.0.header(name.as_bytes()).map(Cow::Borrowed)
    }
    fn parameter(&self, place: usize) -> Option<Cow<'_, [u8]>> {
        self.0.rest.as_ref()?.parameters.get(place)?.as_deref().map(Cow::Borrowed)
    }
    fn is_read(&self) -> bool {
        self.0.rest.is_some()
    }
}

/// What records, metrics and outlier detection know as a status, whatever the protocol.
fn http_status(status: Status) -> u16 {
    match status {
        // The server is well.
        Status::Success | Status::Exception => 200,
        Status::Error(Failure::BadRequest) => 400,
        Status::Error(Failure::NotFound) => 404,
        Status::Error(Failure::Internal) => 500,
        Status::Error(Failure::Overloaded) => 503,
        Status::Error(Failure::Timeout) => 504,
    }
}

/// How a cause is told in the protocol's terms.
fn refusal(cause: Cause) -> Refusal {
    match cause {
        Cause::RouteNotFound => Refusal::NoRoute,
        Cause::MalformedRequest => Refusal::BadRequest,
        Cause::Overload | Cause::Overflow => Refusal::Overloaded,
        Cause::ResponseTimeout => Refusal::Timeout,
        _ => Refusal::Unavailable,
    }
}
