//! Copies of a request to other clusters (`request_mirror_policies`): sent and forgotten.
//!
//! A copy is a task of its own. It has the request's head as it goes upstream, is fed the body as that passes, and drops the answer. The
//! request knows nothing of what becomes of it: it is neither delayed nor failed nor changed, and its record says nothing. The copy takes
//! the other cluster's own way: its endpoints, breakers, connections and counts; and a try that fails is recorded as tries are.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::Instant;
use weft_core::access_log;
use weft_core::breaker::Resource;
use weft_core::decide::Decision;
use weft_core::listener::Direction;
use weft_core::outlier::Observation;
use weft_core::random::Draw;
use weft_core::respond::{Cause, LocalReply};
use weft_core::route::{Forward, Mirror, Route};

use crate::alarm::Alarm;
use crate::codec::h2::Body;
use crate::codec::{Framing, Head, Known, Name, Version};
use crate::connect::{Destination, Want};
use crate::filter;
use crate::forward::{Course, Flow, FlowError, Progress};
use crate::identify::Facts;
use crate::labels::{self, Protocol};
use crate::message::tap::{self, Tap};
use crate::message::{HeadEnd, Next, ReadError, Reader};
use crate::pick::{self, Tried};
use crate::plan::{ChainContext, WorkerPlan, WorkerUpstream};
use crate::record::{self, Entry, Outcome, Subject};
use crate::respond;
use crate::serve::Scratch;
use crate::tcp;
use crate::worker::Worker;

use super::attempt::is_idempotent;
use super::server::Server;
use super::tries::observation;
use super::{Exchange, earliest};

/// A copy in which nothing moves for so long is over, whatever the route says: there is no client that could give it up.
const MOST_IDLE: Duration = Duration::from_secs(300);

/// One copy on its way.
struct Copy {
    worker: Rc<Worker>,
    context: Arc<ChainContext>,
    facts: Facts,
    direction: Direction,
    upstream: Rc<WorkerUpstream>,
    /// Which route asked for it.
    route: Option<Arc<Route>>,
    body: Rc<Tap>,
    client_version: Version,
    /// From the end of the request to the end of the answer.
    timeout: Option<Duration>,
    /// How long nothing may move.
    idle: Duration,
    began: Instant,
}

/// How a copy ended.
enum End {
    /// Answered, and the answer is read and dropped. *reusable*: its connection is good for another request.
    Answered {
        reusable: bool,
    },
    /// A pooled connection was closed by its peer before it took the request.
    Stale,
    /// The request was given up, or came faster than the copy could leave.
    Abandoned,
    Failed(Cause),
}

impl Exchange<'_> {
    /// Send a copy to each cluster that the route names, as the dice say; each may keep *limit* bytes of the body waiting.
    pub(super) fn begin_copies(
        &mut self,
        plan: &WorkerPlan,
        decision: &Decision<'_>,
        forward: &Forward,
        (timeout, limit): (Option<Duration>, usize),
    ) {
        // What follows a change of protocol is a conversation, and nobody could hold it with two.
        if self.scratch.request.wants_tunnel() {
            return;
        }
        for mirror in &forward.mirrors {
            if !mirror.share.strikes(Draw::Mirror, &mut *self.down.worker.random.borrow_mut()) {
                continue;
            }
            // Where there is no such cluster (yet) there is nobody to send to, as in Envoy.
            let cluster = plan.active.core.clusters.get(&mirror.cluster);
            let Some(upstream) = cluster.and_then(|cluster| plan.upstream(cluster)).map(Rc::clone) else { continue };
            let body =
                if self.client.is_done() { Tap::ended() } else { self.copies.get_or_insert_default().open(limit) };
            let counts_attempts = decision.virtual_host.is_some_and(|host| host.request_attempt_count);
            let mut scratch = self.down.worker.take_scratch();
            scratch.request.clone_from(&self.scratch.request);
            prepare(&mut scratch.request, mirror, counts_attempts);
            let copy = Copy {
                worker: Rc::clone(&self.down.worker),
                context: Arc::clone(&self.down.context),
                facts: self.down.facts.for_copy(),
                direction: self.down.direction,
                upstream,
                route: decision.route.map(Arc::clone),
                body,
                client_version: self.client_version,
                timeout,
                idle: self.idle.map_or(MOST_IDLE, |idle| idle.min(MOST_IDLE)),
                began: Instant::now(),
            };
            self.down.worker.metrics.counters().mirrored.add(1);
            // In a box, as a request's state is.
            spawn_local(Box::pin(copy.run(scratch)));
        }
    }
}

/// Make a request's head that of a copy.
fn prepare(request: &mut Head, mirror: &Mirror, counts_attempts: bool) {
    if let Some(host) = mirror.host.of(request.authority()) {
        request.set_authority(&host);
    }
    // It is this proxy's request, as Envoy says of its own.
    request.set(Name::new("x-envoy-internal"), b"true");
    if counts_attempts {
        filter::tell_attempts(request, 1);
    }
    // The body comes whether or not somebody wants it.
    request.remove_known(Known::Expect);
    request.expects_continue = false;
    request.close = false;
}

impl Copy {
    /// Pick, connect, forward; drop the answer; record.
    async fn run(self, mut scratch: Box<Scratch>) {
        let cluster = &self.upstream.shared.cluster;
        let mut outcome = Outcome {
            route: self.route.clone(),
            cluster: Some(Arc::clone(&cluster.name)),
            attempts: 1,
            ..Outcome::default()
        };
        let (received, sent) = (Progress::default(), Progress::default());
        let in_progress = self.upstream.shared.breakers.acquire(Resource::Request, &cluster.limits);
        let end = match &in_progress {
            None => End::Failed(Cause::Overflow),
            Some(_) => self.go(&mut scratch, &mut outcome, &received, &sent).await,
        };
        drop(in_progress);
        // Nobody feeds it for nothing.
        self.body.close();
        outcome.duration = self.began.elapsed();
        outcome.bytes_received = sent.body_bytes.get();
        outcome.bytes_sent = received.body_bytes.get();
        self.note(end, &mut outcome, &scratch);
        self.worker.give_scratch(scratch);
    }

    async fn go(&self, scratch: &mut Scratch, outcome: &mut Outcome, received: &Progress, sent: &Progress) -> End {
        let mut alarm = Alarm::default();
        let picked = {
            let random = &mut *self.worker.random.borrow_mut();
            pick::pick(&self.upstream, self.facts.original, None, &Tried::default(), None, random)
        };
        let Some(destination) = picked else { return End::Failed(Cause::NoHealthyUpstream) };
        outcome.begin_try(&destination);
        let _active = destination.host().map(|host| host.begin());
        let end = match self.attempt(scratch, outcome, &destination, &mut alarm, (received, sent), false).await {
            End::Stale => self.attempt(scratch, outcome, &destination, &mut alarm, (received, sent), true).await,
            end => end,
        };
        match &end {
            End::Answered { .. } => {
                tcp::observe(&self.upstream, &destination, observation(&scratch.request, &scratch.response));
            }
            End::Failed(_) | End::Stale => tcp::observe(&self.upstream, &destination, Observation::LocalFailure),
            End::Abandoned => {}
        }
        end
    }

    /// One try; *fresh*: over a new connection.
    async fn attempt(
        &self,
        scratch: &mut Scratch,
        outcome: &mut Outcome,
        destination: &Destination,
        alarm: &mut Alarm,
        (received, sent): (&Progress, &Progress),
        fresh: bool,
    ) -> End {
        let want =
            Want { http2: self.client_version == Version::Http2, tunnel: false, body: Body::of(&scratch.request) };
        let limit = Some(Instant::now() + self.timeout.map_or(self.idle, |timeout| timeout.min(self.idle)));
        let (ends, standing) = (self.facts.ends(), &self.worker.standing);
        let connecting = Box::pin(Server::connect(&self.upstream, destination, ends, standing, fresh, want));
        let mut server = match alarm.limit(limit, connecting).await {
            Ok(Ok(server)) => server,
            Ok(Err(error)) => {
                self.worker.metrics.counters().upstream_connect_failures.add(1);
                outcome.transport_failure = error.transport_failure();
                return End::Failed(error.cause());
            }
            Err(_) => return End::Failed(Cause::ResponseTimeout),
        };
        if !server.is_reused() {
            self.worker.metrics.counters().connected(&server.peer());
        }
        outcome.upstream_local = server.local();
        outcome.upstream_peer = Some(server.peer());
        if let (Some(local), false) = (server.local(), fresh) {
            let own = local.ip().to_string();
            scratch.request.append_to_list(Name::new("x-forwarded-for"), own.as_bytes());
        }
        let end = self.exchange(scratch, &mut server, alarm, (received, sent)).await;
        outcome.status = scratch.response.status;
        match end {
            End::Answered { reusable } => server.complete(&self.upstream.shared.cluster, reusable),
            End::Failed(Cause::ConnectionTermination) => outcome.transport_failure = server.tls_refusal(),
            End::Stale => {}
            _ => server.cancel(),
        }
        end
    }

    /// Send the head and the body, and read the answer, both at once.
    async fn exchange(
        &self,
        scratch: &mut Scratch,
        server: &mut Server,
        alarm: &mut Alarm,
        (received, sent): (&Progress, &Progress),
    ) -> End {
        let Scratch { request, response, to_upstream, .. } = scratch;
        let to_head = request.is_head_request();
        let entered = Instant::now();
        let mut reading = tap::Reading::default();
        let mut course = Course::default();
        let mut sent_at = None;
        let over = {
            let (mut from_server, mut to_server) = server.split(to_upstream);
            to_server.request(request);
            let mut send = Flow {
                reader: Reader::Tap(tap::Reader { tap: &self.body, state: &mut reading }),
                writer: to_server,
                course: &mut course,
                progress: sent,
                transcoder: None,
                replay: None,
                copies: None,
            };
            let mut may_send = true;
            poll_fn(|context| {
                if may_send && sent_at.is_none() {
                    match send.poll(context) {
                        Poll::Ready(Ok(())) => sent_at = Some(Instant::now()),
                        // It may have answered before it stopped listening.
                        Poll::Ready(Err(FlowError::Sink(_))) => may_send = false,
                        Poll::Ready(Err(FlowError::Source(_))) => return Poll::Ready(Over::Abandoned),
                        // It may wait for a peer that does not read, and must hear all the same that there is no more to come.
                        Poll::Pending if send.reader.poll_gone(context).is_ready() => {
                            return Poll::Ready(Over::Abandoned);
                        }
                        Poll::Pending => {}
                    }
                }
                if let Poll::Ready(over) = poll_answer(context, &mut from_server, response, to_head, received) {
                    return Poll::Ready(over);
                }
                let moved = sent.moved.get().max(received.moved.get()).unwrap_or(entered).max(entered);
                let quiet = Some(moved + self.idle);
                let late = sent_at.zip(self.timeout).map(|(sent, timeout)| sent + timeout);
                alarm.poll(context, earliest(quiet, late)).map(|_| Over::Late)
            })
            .await
        };
        match over {
            Over::Answered => End::Answered {
                reusable: sent_at.is_some() && !response.close && response.framing != Framing::UntilClose,
            },
            Over::Closed { reset } => {
                // What of the body has gone with a connection that was closed is gone: there is no other copy of it.
                let is_whole = sent.body_bytes.get() == 0 && sent_at.is_some();
                let may_repeat = || !server.may_have_taken(reset) || is_idempotent(request.method());
                if is_whole && server.is_reused() && !server.has_spoken() && may_repeat() {
                    End::Stale
                } else {
                    End::Failed(Cause::ConnectionTermination)
                }
            }
            Over::Malformed => End::Failed(Cause::UpstreamProtocolError),
            Over::Late => End::Failed(Cause::ResponseTimeout),
            Over::Abandoned => End::Abandoned,
        }
    }

    /// Count the copy, and record it if it failed and somebody wants to know.
    fn note(&self, end: End, outcome: &mut Outcome, scratch: &Scratch) {
        let response = matches!(end, End::Answered { .. }).then_some(&scratch.response);
        let failure = match end {
            End::Answered { .. } => None,
            End::Stale => Some(Cause::ConnectionTermination),
            End::Failed(cause) => Some(cause),
            End::Abandoned => {
                self.worker.metrics.counters().mirrors_abandoned.add(1);
                Some(Cause::DownstreamGone)
            }
        };
        match failure {
            None => outcome.details = "via_upstream".into(),
            Some(cause) => {
                outcome.status = 0;
                if let Some(flag) = cause.row().flag {
                    outcome.flag(flag);
                }
                outcome.details = LocalReply::new(cause, outcome.transport_failure.as_deref(), false).details;
            }
        }
        self.count(outcome, scratch);
        let told = access_log::End {
            status: outcome.status,
            flags: outcome.flags,
            grpc_status: response.and_then(record::grpc_status_of),
        };
        if !record::wants(&self.context.try_logs, &told) {
            return;
        }
        let entry = Entry {
            subject: Subject::Try,
            clock: &self.worker.clock,
            start: self.worker.clock.wall(self.began),
            facts: &self.facts,
            outcome,
            request: Some(&scratch.request),
            version: Some(self.client_version),
            response,
            chain_name: &self.context.chain.name,
        };
        self.worker.record(&self.context.try_logs, &entry);
    }

    fn count(&self, outcome: &Outcome, scratch: &Scratch) {
        let is_grpc = self.client_version == Version::Http2 && respond::is_grpc(&scratch.request);
        let protocol = if is_grpc { Protocol::Grpc } else { Protocol::Http };
        let upstream = Some(&*self.upstream);
        let series = labels::series(&self.worker, self.direction, &self.facts, outcome, upstream, protocol);
        series.request(outcome.duration, outcome.bytes_received, outcome.bytes_sent);
    }
}

/// Why nothing more is sent or read.
enum Over {
    Answered,
    Closed {
        reset: bool,
    },
    Malformed,
    Late,
    /// There will be no more of the body.
    Abandoned,
}

/// Read the answer, interim ones before it too, and drop it. *response* keeps the head of the last.
fn poll_answer(
    context: &mut Context<'_>,
    server: &mut Reader<'_>,
    response: &mut Head,
    to_head: bool,
    received: &Progress,
) -> Poll<Over> {
    loop {
        if response.status == 0 {
            match std::task::ready!(server.poll_response(context, response, to_head)) {
                // RFC 9110 15.2.2: nobody asked for it.
                Ok(HeadEnd::Whole) if response.status == 101 => return Poll::Ready(Over::Malformed),
                Ok(HeadEnd::Whole) => {
                    received.moved.set(Some(Instant::now()));
                    if matches!(response.status, 100..200) {
                        response.clear();
                    }
                }
                Ok(HeadEnd::Finished) => return Poll::Ready(Over::Closed { reset: false }),
                Ok(HeadEnd::Reset) => return Poll::Ready(Over::Closed { reset: true }),
                Err(_) => return Poll::Ready(Over::Malformed),
            }
            continue;
        }
        match std::task::ready!(server.poll_next(context)) {
            Ok(Next::Span) => {
                received.body_bytes.set(received.body_bytes.get() + server.span().len() as u64);
                received.moved.set(Some(Instant::now()));
                server.consume();
            }
            Ok(Next::End) => return Poll::Ready(Over::Answered),
            Err(ReadError::Malformed(_)) => return Poll::Ready(Over::Malformed),
            Err(_) => return Poll::Ready(Over::Closed { reset: true }),
        }
    }
}
