//! HTTP over one downstream connection: request after request along the line
//!
//!     admit -> route -> filter -> forward (tries.rs: pick -> connect -> forward, until it is answered) -> record
//!
//! [`Exchange::walk`] is that line. Before it there is no request; until the response's head is written an answer of our own is
//! possible ([`Exchange::respond`]); after it only the end of the connection can tell the client that something went wrong.
//!
//! The line is the same for every version of HTTP. What differs between versions is behind three seams:
//!
//! - a module that accepts requests (`connection` for HTTP/1: heads, keep-alive, closing; `streams` for HTTP/2): for each it makes an [`Exchange`] and
//!   looks at the [`Next`] that comes back;
//! - [`client::Client`], the exchange's end towards the client, and [`server::Server`], its end towards the upstream;
//! - [`crate::message`], the readers and writers of single messages that both ends hand out.
//!
//! `access` asks who is let in; `tries` picks, connects and forwards, `attempt` is one try of it; `answer` hands the response on; `local`
//! holds the answers of our own; `mirror` sends copies elsewhere.

mod access;
mod answer;
mod attempt;
mod client;
mod connection;
mod forward_proxy;
mod grpc_web;
mod local;
mod mirror;
mod on_demand;
mod server;
mod streams;
mod tries;
mod websocket;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::decide::{Outcome as Action, Step};
use weft_core::http_manager::{HttpFilter, HttpManager};
use weft_core::respond::{Cause, LocalReply, ResponseFlag};
use weft_core::steering::Steering;

use crate::alarm::{Alarm, Elapsed};
use crate::codec::Version;
use crate::filter::{self, Refusal};
use crate::forward::{Course, Progress};
use crate::gone::unless_gone;
use crate::labels::{self, Protocol};
use crate::message::tap::Taps;
use crate::on_demand::Answer;
use crate::overload::{Action as Overloaded, Actions};
use crate::plan::{WorkerPlan, WorkerUpstream};
use crate::record::{Entry, Outcome, Subject};
use crate::respond;
use crate::route::{self, View};
use crate::serve::{Downstream, Scratch};

use access::Granted;
use client::Client;
use grpc_web::GrpcWeb;

pub use connection::{serve, waker};
pub use forward_proxy::Onward;

/// How far a request came by the plan of the moment.
enum Followed {
    ToTheEnd(Next),
    /// To its virtual host, which had to be loaded.
    Loaded,
}

impl From<Next> for Followed {
    fn from(next: Next) -> Followed {
        Followed::ToTheEnd(next)
    }
}

/// What becomes of the connection after a request.
enum Next {
    KeepAlive,
    /// Our side has said its last word; the client may still be sending.
    Close,
    /// The response was cut short, and the client must see that.
    Reset,
    /// Nobody is there any more, or a tunnel has ended.
    Over,
    /// What follows belongs to another listener.
    Onward(Onward),
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// One request on its way, and all that its record will tell.
struct Exchange<'a> {
    down: &'a Downstream,
    client: Client<'a>,
    alarm: &'a mut Alarm,
    scratch: &'a mut Scratch,
    manager: &'a HttpManager,
    began: Instant,
    /// When the request's head was there.
    head_read: Instant,
    /// When the response's head was there.
    answered: Instant,
    outcome: Outcome,
    received: Progress,
    sent: Progress,
    /// The request's last byte has been handed to the upstream.
    request_done: bool,
    /// Where a flow of the request's body that was interrupted goes on.
    course: Course,
    /// The connection closes after this answer.
    last: bool,
    /// When the connection has lasted long enough: what is answered from then on is the last (HTTP/1).
    worn: Option<Instant>,
    expects_continue: bool,
    /// The key of its WebSocket was made here.
    own_key: bool,
    /// How long nothing may move: the manager's limit, or the route's.
    idle: Option<Duration>,
    /// When the request must be over, its answer included: `max_stream_duration`.
    expires: Option<Instant>,
    /// The version of the request; that of the response follows it.
    client_version: Version,
    upstream: Option<Rc<WorkerUpstream>>,
    /// What its client may ask of its tries and its time.
    steering: Option<Box<Steering>>,
    /// It is a call of gRPC-Web.
    web: Option<Box<GrpcWeb>>,
    /// It is from a page of another site, which may see the answer.
    granted: Option<Granted>,
    /// Copies that its body is fed to. In a box, because hardly any request has one.
    copies: Option<Box<Taps>>,
    /// What the answer says about cookies by which the client's next request comes to the same endpoint.
    set_cookies: Vec<String>,
    is_recorded: bool,
}

/// What is not recorded yet is not over either: its task is dropped, because the process ends and does not wait for it.
impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.is_recorded {
            self.outcome.fail(Cause::CutOff);
            self.record();
        }
    }
}

impl<'a> Exchange<'a> {
    /// The exchange that begins with the request in *scratch*; with when its head began and when it was there.
    fn new(
        down: &'a Downstream,
        client: Client<'a>,
        alarm: &'a mut Alarm,
        scratch: &'a mut Scratch,
        manager: &'a HttpManager,
        (began, head_read): (Instant, Instant),
    ) -> Exchange<'a> {
        let request = &scratch.request;
        Exchange {
            // RFC 9110 10.1.1: the expectation of a client of HTTP/1.0 is ignored.
            expects_continue: request.expects_continue && request.version != Version::Http10,
            // RFC 9110 9.3.6: what follows a CONNECT is meant for its tunnel. If there is none, it is not the next request either.
            last: request.close || request.is_connect(),
            worn: None,
            own_key: false,
            client_version: request.version,
            idle: manager.stream_idle_timeout,
            expires: None,
            down,
            client,
            alarm,
            scratch,
            manager,
            began,
            head_read,
            answered: began,
            outcome: Outcome::default(),
            received: Progress::default(),
            sent: Progress::default(),
            request_done: false,
            course: Course::default(),
            upstream: None,
            steering: None,
            web: None,
            granted: None,
            copies: None,
            set_cookies: Vec::new(),
            is_recorded: false,
        }
    }

    /// Answer the request, or *refuse* it unread, and record it.
    async fn serve(&mut self, refused: Option<LocalReply>) -> Next {
        let next = match refused {
            None => self.walk().await,
            Some(reply) => {
                self.last = true;
                self.down.worker.metrics.counters().protocol_errors.add(1);
                self.respond(reply).await
            }
        };
        streams::settle(&self.client, &next);
        self.record();
        next
    }
}

impl Exchange<'_> {
    /// The line: admit -> route -> filter -> forward.
    async fn walk(&mut self) -> Next {
        let plan = self.down.worker.plan();
        let overload = self.down.worker.overload.actions();
        if !overload.is_empty() {
            if overload.contains(Overloaded::StopAcceptingHighPriority) {
                return self.shed().await;
            }
            self.close_under(overload);
        }
        // The listener that this connection came by is gone or changed; the next request should come by the new one.
        let is_withdrawn = plan.chain(&self.down.context.chain).is_none();
        self.last |= is_withdrawn || self.down.worker.is_draining();
        if is_withdrawn && plan.active.core.routes_of(self.manager).is_none() {
            return self.withdraw();
        }
        if let Err(cause) = self.admit_caller() {
            self.down.worker.metrics.counters().callers_refused.add(1);
            self.last = true;
            return self.respond(cause.into()).await;
        }
        let manager = self.manager;
        if let (true, Some(caller)) = (self.scratch.request.is_connect(), manager.forward_proxy()) {
            return Box::pin(self.open_tunnel(&plan, caller)).await;
        }
        let admitted = {
            let random = &mut *self.down.worker.random.borrow_mut();
            filter::admit(&mut self.scratch.request, self.manager, &self.down.facts, random)
        };
        match admitted {
            Ok(admitted) => {
                self.outcome.client = admitted.client;
                self.steering = admitted.steering;
            }
            Err(Refusal::Cause(cause)) => return self.respond(cause.into()).await,
            // A caller of gRPC follows no redirect.
            Err(Refusal::Redirect(_)) if respond::is_grpc(&self.scratch.request) => {
                return self.respond(Cause::BadPath.into()).await;
            }
            Err(Refusal::Redirect(path)) => {
                let reply = LocalReply::from(Cause::EscapedSlashes);
                return self.answer_locally(&reply, &[], Some(&path), None).await;
            }
        }
        if manager.filters.iter().any(|filter| matches!(filter, HttpFilter::GrpcWeb)) {
            self.web = GrpcWeb::begin(&mut self.scratch.request);
        }
        match self.follow_route(&plan, overload, true).await {
            Followed::ToTheEnd(next) => next,
            Followed::Loaded => {
                // What was loaded is in the plan of now. Once is enough: a host that comes and goes is gone.
                let plan = self.down.worker.plan();
                match Box::pin(self.follow_route(&plan, overload, false)).await {
                    Followed::ToTheEnd(next) => next,
                    Followed::Loaded => self.respond(Cause::RouteNotFound.into()).await,
                }
            }
        }
    }

    /// The line from the decision on. *may_load*: a virtual host that is not here may be asked for.
    async fn follow_route(&mut self, plan: &Rc<WorkerPlan>, overload: Actions, may_load: bool) -> Followed {
        let manager = self.manager;
        // route
        let decision = {
            let view = View::of(&self.scratch.request, &self.down.facts);
            let random = &mut *self.down.worker.random.borrow_mut();
            route::route(&plan.active.core, self.manager, &view, random)
        };
        self.outcome.route = decision.route.map(Arc::clone);
        if let Some(target) = decision.target() {
            self.outcome.cluster = Some(Arc::clone(&target.cluster));
        }
        if overload.contains(Overloaded::StopAcceptingRequests)
            && !matches!(&decision.outcome, Action::Forward { forward, .. } if forward.high_priority)
        {
            return self.shed().await.into();
        }
        if !self.may_change_protocol(&decision) {
            return self.respond_by(&decision, Cause::UpgradeRefused.into()).await.into();
        }
        // filter
        for step in decision.steps(manager) {
            match step {
                Step::Rbac(filter, rules) => {
                    if let Err(reply) = self.authorise(filter, rules) {
                        return self.respond_by(&decision, reply).await.into();
                    }
                }
                Step::Cors(policy) => {
                    if self.consider_origin(policy) {
                        return self.answer_preflight(policy).await.into();
                    }
                }
                Step::OnDemand(table) if may_load => match Box::pin(self.load(table)).await {
                    Some(Answer::Loaded) => return Followed::Loaded,
                    Some(Answer::Unknown) => {}
                    None => return self.gone().into(),
                    Some(Answer::Unavailable) => {
                        return self.respond_by(&decision, Cause::VirtualHostNotLoaded.into()).await.into();
                    }
                },
                Step::OnDemand(_) => {}
                Step::Fault => {
                    let fault = decision.strike(&mut *self.down.worker.random.borrow_mut());
                    if let Some(delay) = fault.delay {
                        self.outcome.flag(ResponseFlag::DelayInjected);
                        if !self.pause(delay).await {
                            return self.gone().into();
                        }
                    }
                    if let Some(status) = fault.abort {
                        return self
                            .respond_by(&decision, LocalReply::from(Cause::FaultAbort).with_status(status))
                            .await
                            .into();
                    }
                }
            }
        }
        let next = match &decision.outcome {
            Action::Redirect(redirect) => {
                let location = {
                    let view = View::of(&self.scratch.request, &self.down.facts);
                    decision.route.map(|route| redirect.location(&route.conditions.path, &view)).unwrap_or_default()
                };
                let reply = LocalReply::from(Cause::Redirect).with_status(redirect.status);
                self.answer_locally(&reply, &[], Some(&location), Some(&decision)).await
            }
            Action::Direct(response) => {
                let reply = LocalReply::from(Cause::DirectResponse).with_status(response.status);
                self.answer_locally(&reply, &response.body, None, Some(&decision)).await
            }
            Action::Refuse { reply, .. } => self.respond_by(&decision, reply.clone()).await,
            Action::Forward { forward, cluster, .. } => self.forward(plan, &decision, forward, cluster).await,
        };
        next.into()
    }

    /// Run *work* until it is ready or *deadline* passes; `None` if the client goes away meanwhile.
    fn unless_gone<F: Future>(
        &mut self,
        deadline: Option<Instant>,
        work: F,
    ) -> impl Future<Output = Option<Result<F::Output, Elapsed>>> {
        let Exchange { client, alarm, .. } = self;
        unless_gone(alarm.limit(deadline, work), |context| client.poll_gone(context))
    }

    /// Refuse the request: the process is short of resources.
    #[cold]
    async fn shed(&mut self) -> Next {
        self.down.worker.metrics.counters().overload_refused.add(1);
        self.last = true;
        self.respond(Cause::Overload.into()).await
    }

    /// Whether the connection closes after the answer that begins now, for whatever reason came up meanwhile.
    fn is_last(&self) -> bool {
        self.last || self.down.worker.is_draining() || self.worn.is_some_and(|limit| Instant::now() >= limit)
    }

    /// Close the connection after this answer if *overload* asks for it.
    #[cold]
    fn close_under(&mut self, overload: Actions) {
        if overload.contains(Overloaded::DisableHttpKeepalive) && !self.last {
            self.last = true;
            // That of a stream goes with all that is on it, and counts where that is said.
            if !self.client.is_stream() {
                self.down.worker.metrics.counters().overload_keepalive_disabled.add(1);
            }
        }
    }

    fn fail_with(&mut self, reply: &LocalReply) {
        if let Some(flag) = reply.flag {
            self.outcome.flag(flag);
        }
        self.outcome.status = reply.status;
        self.outcome.details = reply.details.clone();
    }

    /// The client went away; nothing can be answered.
    fn gone(&mut self) -> Next {
        self.outcome.fail(self.client.departure());
        Next::Over
    }

    /// The routes are gone together with their listener. That there is none for this request would be untrue: whatever takes it now
    /// takes new connections. The client comes again by itself, or is told what it would be told if it came now.
    #[cold]
    fn withdraw(&mut self) -> Next {
        self.client.disown();
        self.cut_short(Cause::RouteNotFound)
    }

    /// The response cannot be finished after its head is out.
    fn cut_short(&mut self, cause: Cause) -> Next {
        self.outcome.fail(cause);
        Next::Reset
    }

    /// One result, one line in the records, one count.
    fn record(&mut self) {
        self.is_recorded = true;
        self.outcome.duration = self.began.elapsed();
        self.outcome.bytes_received = self.received.body_bytes.get();
        self.outcome.bytes_sent = self.sent.body_bytes.get();
        self.count();
        let Exchange { down, scratch, outcome, began, client_version, .. } = self;
        let entry = Entry {
            subject: Subject::Request,
            clock: &down.worker.clock,
            start: down.worker.clock.wall(*began),
            facts: &down.facts,
            outcome,
            request: Some(&scratch.request),
            version: Some(*client_version),
            response: Some(&scratch.response),
            chain_name: &down.context.chain.name,
        };
        down.worker.record(&down.context.logs, &entry);
    }

    fn count(&self) {
        let outcome = &self.outcome;
        // gRPC is spoken over HTTP/2 alone (gRPC over HTTP/2, Requests).
        let is_grpc = self.client_version == Version::Http2 && respond::is_grpc(&self.scratch.request);
        let protocol = if is_grpc { Protocol::Grpc } else { Protocol::Http };
        let down = self.down;
        let upstream = self.upstream.as_deref();
        let series = labels::series(&down.worker, down.direction, &down.facts, outcome, upstream, protocol);
        series.request(outcome.duration, outcome.bytes_received, outcome.bytes_sent);
    }
}
