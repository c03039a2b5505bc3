//! One try of a request: connect, send, wait for the head of the response.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::decide::Decision;
use weft_core::respond::Cause;
use weft_core::retry::{RetryPolicy, TryResult};

use crate::alarm::Elapsed;
use crate::codec::h2::Body;
use crate::codec::{Framing, Version};
use crate::connect::{ConnectError, Destination, Want};
use crate::filter::{self};
use crate::forward::{Course, Flow, FlowError};
use crate::message::{HeadEnd, ReadError};
use crate::multiplex::StreamEnd;
use crate::plan::WorkerUpstream;
use crate::serve::Scratch;

use super::server::Server;
use super::{Exchange, earliest, websocket};

impl Exchange<'_> {
    /// One try: connect, send the request, wait for the response's head.
    pub(super) async fn attempt(
        &mut self,
        upstream: &Rc<WorkerUpstream>,
        destination: &Destination,
        decision: &Decision<'_>,
        policy: Option<&RetryPolicy>,
        timeout: Option<Duration>,
        fresh: bool,
    ) -> Attempt {
        // connect
        let deadline = earliest(self.deadline(timeout), self.expires);
        let request = &self.scratch.request;
        let want = Want {
            http2: self.client_version == Version::Http2,
            tunnel: request.wants_tunnel(),
            body: Body::of(request),
        };
        let (ends, standing) = (self.down.facts.ends(), &self.down.worker.standing);
        let pooled = if fresh { None } else { Server::pooled(upstream, destination, ends, want) };
        let mut server = match pooled {
            Some(server) => server,
            None => {
                let connecting = Box::pin(Server::connect(upstream, destination, ends, standing, fresh, want));
                match self.unless_gone(deadline, connecting).await {
                    None => return Attempt::Gone,
                    Some(Ok(Ok(server))) => server,
                    Some(Ok(Err(error))) => {
                        self.down.worker.metrics.counters().upstream_connect_failures.add(1);
                        self.outcome.transport_failure = error.transport_failure();
                        let result = match &error {
                            ConnectError::Overflow => TryResult::Overflow,
                            _ => TryResult::ConnectFailure,
                        };
                        return Attempt::Failed { cause: error.cause(), result };
                    }
                    Some(Err(_)) => return self.timed_out(None, timeout),
                }
            }
        };
        let limit = policy.and_then(|policy| policy.per_try_timeout).map(TryLimit::of_now);
        if !server.is_reused() {
            self.down.worker.metrics.counters().connected(&server.peer());
        }
        self.outcome.upstream_local = server.local();
        self.outcome.upstream_peer = Some(server.peer());
        websocket::pass_over(&mut self.scratch.request, &server, &self.client);
        if !self.scratch.request.upgrade().is_empty() {
            let deadline = earliest(deadline, self.try_deadline(limit));
            match self.unless_gone(deadline, server.accepts_upgrade()).await {
                None => return Attempt::Gone,
                Some(Ok(true)) => {}
                // The upstream speaks HTTP/2 and no RFC 8441.
                Some(Ok(false)) => {
                    return Attempt::Failed { cause: Cause::UpstreamProtocolError, result: TryResult::Overflow };
                }
                Some(Err(_)) => return self.timed_out(limit, timeout),
            }
            let random = &mut *self.down.worker.random.borrow_mut();
            self.own_key |= websocket::prepare(&mut self.scratch.request, &server, random);
        }
        // forward: the request
        self.begin_request(&mut server, decision);
        let awaited = self.send_and_await(&mut server, limit, timeout).await;
        match awaited {
            Awaited::Response => {
                self.answered = Instant::now();
                self.outcome.response_duration = Some(self.answered - self.began);
                return Attempt::Answered(server);
            }
            Awaited::Malformed => {
                return Attempt::Failed {
                    cause: Cause::UpstreamProtocolError,
                    result: TryResult::Reset { request_started: true },
                };
            }
            Awaited::Ended { reset } => {
                let taken = server.may_have_taken(reset);
                let repeatable = !taken || is_idempotent(self.scratch.request.method());
                // An upstream that resets a stream and keeps the connection has its reasons: this is no connection that has ended.
                let was_reset = server.stream_end() == Some(StreamEnd::Reset);
                let is_stale = server.is_reused() && !server.has_spoken() && !was_reset;
                // Where a fresh one could not be had, one that others use was taken: what becomes of it there is no accident.
                if is_stale && !fresh && repeatable && !self.scratch.replay.overflowed {
                    return Attempt::Stale;
                }
                self.outcome.transport_failure = server.tls_refusal();
                let (cause, result) = match server.stream_end() {
                    Some(StreamEnd::Refused) => (Cause::RemoteRefusedStream, TryResult::RefusedStream),
                    Some(StreamEnd::Reset) => (Cause::RemoteReset, TryResult::Reset { request_started: taken }),
                    _ => (Cause::ConnectionTermination, TryResult::Reset { request_started: taken }),
                };
                return Attempt::Failed { cause, result };
            }
            _ => server.cancel(),
        }
        match awaited {
            Awaited::TimedOut => self.timed_out(limit, timeout),
            Awaited::BadRequest => Attempt::BadRequest,
            Awaited::Idle => Attempt::Idle,
            Awaited::SlowRequest => Attempt::SlowRequest,
            Awaited::Expired => Attempt::Expired,
            _ => Attempt::Gone,
        }
    }

    /// When the time of a try passes that has a connection.
    fn try_deadline(&self, limit: Option<TryLimit>) -> Option<Instant> {
        Some(limit?.deadline(self.began + self.outcome.request_duration?))
    }

    fn timed_out(&self, limit: Option<TryLimit>, timeout: Option<Duration>) -> Attempt {
        let now = Instant::now();
        let try_deadline = self.try_deadline(limit);
        if self.expires.is_some_and(|end| now >= end) {
            return Attempt::Expired;
        }
        if self.deadline(timeout).is_some_and(|deadline| now >= deadline) || try_deadline.is_none_or(|it| now < it) {
            // The whole request is out of time: no policy gives it more.
            return Attempt::Failed { cause: Cause::ResponseTimeout, result: TryResult::Overflow };
        }
        Attempt::Failed { cause: Cause::PerTryTimeout, result: TryResult::PerTryTimeout }
    }

    /// Begin the request anew: its head, then what an earlier try has taken of its body, then the rest.
    fn begin_request(&mut self, server: &mut Server, decision: &Decision<'_>) {
        let Scratch { request, to_upstream, .. } = &mut *self.scratch;
        if decision.virtual_host.is_some_and(|host| host.request_attempt_count) {
            filter::tell_attempts(request, self.outcome.attempts);
        }
        let (_, mut writer) = server.split(to_upstream);
        writer.request(request);
        // What follows a request for another protocol, or its body if it has one, is that protocol's, and waits for the answer.
        let is_head_only = request.wants_tunnel() && request.framing == Framing::None;
        self.course = if is_head_only { Course::head_only() } else { Course::default() };
        self.request_done = false;
    }

    /// Send the request and wait for the head of the response, both at once: a response may come before the request's end.
    async fn send_and_await(
        &mut self,
        server: &mut Server,
        limit: Option<TryLimit>,
        timeout: Option<Duration>,
    ) -> Awaited {
        let mut until = Until::Head { of_head_request: self.scratch.request.is_head_request() };
        let entered = Instant::now();
        loop {
            match self.race(server, until, limit, timeout, entered).await {
                // RFC 9110 7.8: the other protocol begins behind the request, and bytes in the middle of its body are no protocol's.
                Awaited::Response
                    if self.scratch.response.status == 101
                        && !self.scratch.request.upgrade().is_empty()
                        && !self.request_done =>
                {
                    until = Until::RequestEnd;
                }
                Awaited::Response if self.is_interim() => {
                    if let Err(awaited) = self.pass_interim(limit, timeout, entered).await {
                        return awaited;
                    }
                }
                Awaited::Response if !self.scratch.request.upgrade().is_empty() => {
                    let Scratch { request, response, .. } = &mut *self.scratch;
                    let good = websocket::accept(request, response, server, &self.client, self.own_key);
                    return if good { Awaited::Response } else { Awaited::Malformed };
                }
                Awaited::Response if self.scratch.request.is_connect() => {
                    self.scratch.response.open_tunnel();
                    return Awaited::Response;
                }
                // RFC 9110 15.2.2: nobody asked to change the protocol, so nobody knows what follows.
                Awaited::Response
                    if self.scratch.response.status == 101 && self.scratch.request.upgrade().is_empty() =>
                {
                    return Awaited::Malformed;
                }
                awaited => return awaited,
            }
        }
    }

    /// 1xx, except 101, which ends HTTP on this connection.
    fn is_interim(&self) -> bool {
        matches!(self.scratch.response.status, 100..200) && self.scratch.response.status != 101
    }

    /// Hand an interim response on (RFC 9110 15.2); a client of HTTP/1.0 must not see one. An upstream that sends them without end wins no
    /// time by it, nor does a client that does not read them.
    async fn pass_interim(
        &mut self,
        limit: Option<TryLimit>,
        timeout: Option<Duration>,
        entered: Instant,
    ) -> Result<(), Awaited> {
        let quiet = self.idle.map(|idle| self.received.moved.get().unwrap_or(entered).max(entered) + idle);
        let end = earliest(earliest(self.try_deadline(limit), self.deadline(timeout)), self.expires);
        let deadline = earliest(end, quiet);
        let Exchange { client, alarm, scratch, .. } = self;
        let Scratch { response, to_downstream, .. } = &mut **scratch;
        let wanted = match response.status {
            _ if self.client_version == Version::Http10 => false,
            // If we answered the expectation ourselves, the upstream's answer is one too many.
            100 => self.expects_continue && self.manager.proxy_100_continue,
            _ => true,
        };
        if wanted {
            response.remove_hop_by_hop();
            let (_, mut writer) = client.split(to_downstream);
            match alarm.limit(deadline, poll_fn(|context| writer.poll_room(context))).await {
                Ok(Ok(())) => {
                    writer.interim(response);
                    match alarm.limit(deadline, writer.flush()).await {
                        Ok(Ok(())) => {}
                        // Of HTTP/1, and nothing can follow a part of a head.
                        Ok(Err(_)) | Err(Elapsed) => return Err(Awaited::Gone),
                    }
                }
                Ok(Err(_)) => return Err(Awaited::Gone),
                // What follows says that it has passed.
                Err(Elapsed) => {}
            }
        }
        response.clear();
        // Asked here: where there is always another one at hand, nobody waits for anything else.
        let now = Instant::now();
        match (end, quiet) {
            (Some(end), _) if end <= now => Err(Awaited::TimedOut),
            (_, Some(quiet)) if quiet <= now => Err(Awaited::Idle),
            _ => Ok(()),
        }
    }

    async fn race(
        &mut self,
        server: &mut Server,
        until: Until,
        limit: Option<TryLimit>,
        timeout: Option<Duration>,
        entered: Instant,
    ) -> Awaited {
        let (idle, expires) = (self.idle, self.expires);
        let request_limit = self.manager.request_timeout.map(|limit| self.began + limit);
        let Exchange { client, alarm, scratch, received, course, request_done, outcome, began, web, copies, .. } = self;
        let Scratch { request: _, response, to_upstream, to_downstream, replay } = &mut **scratch;
        let (mut from_server, to_server) = server.split(to_upstream);
        let (from_client, _) = client.split(to_downstream);
        let mut send = Flow {
            reader: from_client,
            writer: to_server,
            course,
            progress: received,
            transcoder: web.as_mut().and_then(|web| web.request.as_mut()),
            replay: Some(replay),
            copies: copies.as_deref(),
        };
        let mut sending = !*request_done;
        let mut failed_to_send = false;
        let result = poll_fn(|context| {
            if sending && !failed_to_send {
                match send.poll(context) {
                    Poll::Ready(Ok(())) => {
                        sending = false;
                        *request_done = true;
                        outcome.request_duration.get_or_insert_with(|| began.elapsed());
                    }
                    // It may have answered before it stopped listening (413, say): look for that first.
                    Poll::Ready(Err(FlowError::Sink(_))) => failed_to_send = true,
                    Poll::Ready(Err(FlowError::Source(ReadError::Malformed(_)))) => {
                        return Poll::Ready(Awaited::BadRequest);
                    }
                    Poll::Ready(Err(FlowError::Source(ReadError::Broken(_) | ReadError::Closed))) => {
                        return Poll::Ready(Awaited::Gone);
                    }
                    Poll::Pending => {}
                }
            }
            // Asked in each poll, the one in which sending ended among them: else nobody would be woken when the client goes. What is
            // being sent may wait for an upstream that does not read, and then nobody else asks for the client.
            if send.reader.poll_gone(context).is_ready() {
                return Poll::Ready(Awaited::Gone);
            }
            match until {
                Until::Head { of_head_request } => {
                    match from_server.poll_response(context, response, of_head_request) {
                        Poll::Ready(Ok(HeadEnd::Whole)) => return Poll::Ready(Awaited::Response),
                        Poll::Ready(Ok(HeadEnd::Finished)) => {
                            return Poll::Ready(Awaited::Ended { reset: false });
                        }
                        Poll::Ready(Ok(HeadEnd::Reset)) => {
                            return Poll::Ready(Awaited::Ended { reset: true });
                        }
                        Poll::Ready(Err(_)) => return Poll::Ready(Awaited::Malformed),
                        Poll::Pending => {}
                    }
                }
                Until::RequestEnd if failed_to_send => return Poll::Ready(Awaited::Ended { reset: false }),
                Until::RequestEnd if !sending => return Poll::Ready(Awaited::Response),
                // Who has left will not speak the other protocol either, whatever it has said of it already.
                Until::RequestEnd if from_server.poll_gone(context).is_ready() => {
                    return Poll::Ready(Awaited::Ended { reset: false });
                }
                Until::RequestEnd => {}
            }
            let ended = outcome.request_duration.map(|duration| *began + duration);
            let end = timeout.zip(ended).map(|(timeout, ended)| ended + timeout);
            let try_deadline = limit.zip(ended).map(|(limit, ended)| limit.deadline(ended));
            let quiet = idle.map(|idle| received.moved.get().unwrap_or(entered).max(entered) + idle);
            let slow = request_limit.filter(|_| sending);
            let deadline = earliest(earliest(earliest(try_deadline, end), earliest(quiet, slow)), expires);
            alarm.poll(context, deadline).map(|_| {
                let has_passed = |limit: Option<Instant>| limit.is_some_and(|limit| limit <= Instant::now());
                if has_passed(expires) {
                    Awaited::Expired
                } else if has_passed(earliest(try_deadline, end)) {
                    Awaited::TimedOut
                } else if has_passed(slow) {
                    Awaited::SlowRequest
                } else {
                    Awaited::Idle
                }
            })
        })
        .await;
        if failed_to_send {
            // Nobody takes the rest of the body.
            *request_done = false;
        }
        result
    }
}

/// How one try ended.
// Every try makes one of these and most are answers: a box would be an allocation for each request.
#[allow(clippy::large_enum_variant)]
pub(super) enum Attempt {
    /// The response's head is in the scratch.
    Answered(Server),
    Failed {
        cause: Cause,
        result: TryResult,
    },
    /// A connection that had carried another request was closed by its peer before it took this one, or took no more. A try that
    /// follows such a one never ends so: a request is sent once more, and not again and again.
    Stale,
    /// The client is gone.
    Gone,
    /// The client's body is malformed.
    BadRequest,
    /// Nothing moved for too long.
    Idle,
    /// The client took too long to send its request.
    SlowRequest,
    /// The request has lived as long as it may.
    Expired,
}

/// How long a try may take. Neither the wait for a connection counts nor the time that the client takes for its request (Envoy).
#[derive(Clone, Copy)]
struct TryLimit {
    limit: Duration,
    connected: Instant,
}

impl TryLimit {
    /// Of a try that has just got its connection.
    fn of_now(limit: Duration) -> TryLimit {
        TryLimit { limit, connected: Instant::now() }
    }

    /// When it passes for a request that ended at *request_end*.
    fn deadline(self, request_end: Instant) -> Instant {
        self.connected.max(request_end) + self.limit
    }
}

/// What a try waits for.
#[derive(Clone, Copy)]
enum Until {
    /// The head of the next response. *of_head_request*: no body follows it.
    Head { of_head_request: bool },
    /// The end of the request: the head of the response is here.
    RequestEnd,
}

enum Awaited {
    Response,
    Ended { reset: bool },
    Malformed,
    TimedOut,
    Gone,
    BadRequest,
    Idle,
    SlowRequest,
    Expired,
}

/// Requests that may be repeated without being asked (RFC 9110 9.2.2).
pub(super) fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}
