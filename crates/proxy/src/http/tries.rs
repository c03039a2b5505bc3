//! Pick, connect, forward, and the same again where a retry is allowed.

use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::access_log::{End, GRPC_STATUS};
use weft_core::breaker::Resource;
use weft_core::cluster::Cluster;
use weft_core::decide::Decision;
use weft_core::hash_policy::{self, Hashed};
use weft_core::outlier::Observation;
use weft_core::respond::{Cause, Flags, LocalReply, ResponseFlag, http_status};
use weft_core::retry::{RetryPolicy, TryResult, timeout_of_a_try};
use weft_core::route::Forward;
use weft_core::upgrade::Upgrade;

use crate::codec::{Head, Known, Version};
use crate::connect::Destination;
use crate::filter::{self, Told};
use crate::logging;
use crate::pick::{self, Tried};
use crate::plan::{WorkerPlan, WorkerUpstream};
use crate::record::{self, Entry, Outcome, Subject};
use crate::respond::is_grpc;
use crate::route::View;
use crate::tcp;

use super::attempt::Attempt;
use super::{Exchange, Next};

/// Request body kept for another try where neither listener nor cluster has a limit.
const REPLAY_BYTES: usize = 1024 * 1024;

/// Where the tries of a request lead, and what limits them.
struct Aim<'a> {
    upstream: &'a Rc<WorkerUpstream>,
    /// Where the client wanted to go; see [`pick::pick`].
    original: Option<SocketAddr>,
    /// What decides on the endpoint.
    key: Option<u64>,
    policy: Option<&'a RetryPolicy>,
    /// From the end of the request to the end of the answer.
    timeout: Option<Duration>,
}

impl Exchange<'_> {
    /// Pick an endpoint, connect, send, and try again where that is allowed; then hand the answer on.
    pub(super) async fn forward(
        &mut self,
        plan: &WorkerPlan,
        decision: &Decision<'_>,
        forward: &Forward,
        cluster: &Arc<Cluster>,
    ) -> Next {
        let Some(upstream) = plan.upstream(cluster).map(Rc::clone) else {
            return self.respond_by(decision, Cause::ClusterNotFound.into()).await;
        };
        self.upstream = Some(Rc::clone(&upstream));
        let original = match self.original_destination(cluster).await {
            Ok(original) => original,
            Err(cause) => return self.respond_by(decision, cause.into()).await,
        };
        let own = forward.retry.as_deref();
        let (timeout, steered, told) = {
            let view = View::of(&self.scratch.request, &self.down.facts);
            let life = forward.stream_duration_for(&view, self.manager.max_stream_duration);
            self.expires = life.map(|limit| self.began + limit);
            let mut timeout = forward.timeout_for(&view);
            let mut steered = None;
            if let Some(steering) = self.steering.take() {
                timeout = steering.timeout(timeout);
                steered = steering.policy(own, timeout).map(Box::new);
            }
            let of_a_try = timeout_of_a_try(steered.as_deref().or(own), timeout);
            let told = Told { of_a_try, grpc: forward.grpc_timeout_to_tell(&view, of_a_try, life) };
            (timeout, steered, told)
        };
        let policy = steered.as_deref().or(own);
        self.idle = forward.idle_timeout.unwrap_or(self.idle);
        // Before anything changes what it is taken of.
        let key = self.hash(cluster, forward);
        self.prepare(decision, forward, told);
        let Some(in_progress) = upstream.shared.breakers.acquire(Resource::Request, &cluster.limits) else {
            return self.respond_by(decision, Cause::Overflow.into()).await;
        };
        let terminates = |upgrade: &Upgrade| upgrade.terminates;
        let tried = if self.scratch.request.is_connect()
            && Upgrade::find(&forward.upgrades, Upgrade::CONNECT.as_bytes()).is_some_and(terminates)
        {
            Box::pin(self.end_tunnel(&upstream, original, key)).await
        } else {
            let aim = Aim { upstream: &upstream, original, key, policy, timeout };
            self.try_until_answered(plan, decision, forward, aim).await
        };
        // Whoever reads an answer of ours may take long, and keeps nobody else from the cluster meanwhile.
        drop(in_progress);
        match tried {
            Ok(next) => next,
            Err(reply) => self.respond_by(decision, reply).await,
        }
    }

    /// Try until there is an answer, and hand that on.
    ///
    /// # Errors
    /// There is none: what to say instead.
    async fn try_until_answered(
        &mut self,
        plan: &WorkerPlan,
        decision: &Decision<'_>,
        forward: &Forward,
        aim: Aim<'_>,
    ) -> Result<Next, LocalReply> {
        let Aim { upstream, original, key, policy, timeout } = aim;
        let cluster = &upstream.shared.cluster;
        let breakers = &upstream.shared.breakers;
        // What is kept waits between the two connections: neither side may be asked for more than it allows.
        let limits = [self.down.buffer_limit, cluster.buffer_limit_bytes];
        let limit = limits.into_iter().filter(|limit| *limit > 0).min().map_or(REPLAY_BYTES, |limit| limit as usize);
        self.scratch.replay.reset(limit);
        if !self.expect_continue().await {
            return Ok(self.gone());
        }
        if self.client.is_done() {
            // Without a body the request was whole when its head was; only a delay of ours can lie between.
            let delayed = self.outcome.flags.contains(ResponseFlag::DelayInjected);
            self.outcome.request_duration =
                Some(if delayed { self.began.elapsed() } else { self.head_read - self.began });
        }
        let mut tried = Tried::default();
        let mut retries = 0;
        // Of the try at hand, if it is a retry; given back before the next asks for one (Envoy).
        let mut retry_permit = None;
        let mut stale_host: Option<Destination> = None;
        loop {
            // pick
            let same_host = stale_host.take();
            let fresh = same_host.is_some();
            let picked = same_host.or_else(|| {
                let random = &mut *self.down.worker.random.borrow_mut();
                pick::pick(upstream, original, policy, &tried, key, random)
            });
            let Some(destination) = picked else {
                return Err(Cause::NoHealthyUpstream.into());
            };
            if !fresh {
                self.outcome.attempts += 1;
                if self.outcome.attempts == 1 && !forward.mirrors.is_empty() {
                    self.begin_copies(plan, decision, forward, (timeout, limit));
                }
            }
            self.outcome.begin_try(&destination);
            let active = destination.host().map(|host| host.begin());
            // The first try begins with the request, unless something of ours lay between.
            let delayed =
                self.outcome.attempts > 1 || fresh || self.outcome.flags.contains(ResponseFlag::DelayInjected);
            let trying = if delayed { Instant::now() } else { self.head_read };
            let attempt = self.attempt(upstream, &destination, decision, policy, timeout, fresh).await;
            let (cause, result) = match attempt {
                Attempt::Gone => return Ok(self.gone()),
                Attempt::BadRequest => {
                    self.last = true;
                    return Err(Cause::MalformedRequest.into());
                }
                Attempt::Idle => {
                    // Who kept whom waiting: the client that did not finish, or the upstream that does not begin.
                    let status = if self.request_done { 504 } else { 408 };
                    return Err(LocalReply::from(Cause::StreamIdleTimeout).with_status(status));
                }
                Attempt::SlowRequest => return Err(Cause::RequestTimeout.into()),
                Attempt::Expired => return Err(self.expired()),
                Attempt::Stale => {
                    // The peer closed an idle connection while we were using it. The request was not taken, or may be repeated.
                    self.down.worker.metrics.counters().stale_connections.add(1);
                    self.record_try(trying, Err(Cause::ConnectionTermination));
                    stale_host = Some(destination);
                    continue;
                }
                Attempt::Answered(server) => {
                    drop(retry_permit.take());
                    let status = self.scratch.response.status;
                    let seen = observation(&self.scratch.request, &self.scratch.response);
                    tcp::observe(upstream, &destination, seen);
                    self.heed_health(upstream, &destination);
                    self.record_try(trying, Ok(status));
                    match self.response_result(policy) {
                        Some(result) if self.may_retry(policy, result, retries) => (None, (result, Some(server))),
                        result => {
                            if result.is_some_and(|result| is_exhausted(policy, result, retries)) {
                                self.outcome.flag(ResponseFlag::UpstreamRetryLimitExceeded);
                            }
                            let next = self.answer(server, decision, timeout).await;
                            drop(active);
                            return Ok(next);
                        }
                    }
                }
                Attempt::Failed { cause, result } => {
                    drop(retry_permit.take());
                    // A limit of the cluster is no trouble of the endpoint that would have been asked (Envoy).
                    if cause != Cause::Overflow {
                        tcp::observe(upstream, &destination, Observation::LocalFailure);
                    }
                    self.record_try(trying, Err(cause));
                    (Some(cause), (result, None))
                }
            };
            drop(active);
            let (result, rejected) = result;
            let wanted = self.may_retry(policy, result, retries);
            let permit = if wanted { breakers.acquire(Resource::Retry, &cluster.limits) } else { None };
            if let (Some(policy), Some(permit)) = (policy, permit) {
                // The rejected answer's body is of no interest, so its connection cannot be used again.
                drop(rejected);
                tried.note(&destination);
                retry_permit = Some(permit);
                retries += 1;
                self.down.worker.metrics.counters().upstream_retries.add(1);
                let wait = policy.back_off(retries, &mut *self.down.worker.random.borrow_mut());
                if self.deadline(timeout).is_some_and(|deadline| Instant::now() + wait >= deadline) {
                    return Err(Cause::ResponseTimeout.into());
                }
                if self.expires.is_some_and(|end| Instant::now() + wait >= end) {
                    return Err(self.expired());
                }
                if !self.pause(wait).await {
                    return Ok(self.gone());
                }
                continue;
            }
            if wanted {
                // A circuit breaker forbade it.
                self.outcome.flag(ResponseFlag::UpstreamOverflow);
            } else if is_exhausted(policy, result, retries) {
                self.outcome.flag(ResponseFlag::UpstreamRetryLimitExceeded);
            }
            match (rejected, cause) {
                // The answer at hand is the best there is.
                (Some(server), _) => return Ok(self.answer(server, decision, timeout).await),
                (None, cause) => {
                    let cause = cause.unwrap_or(Cause::ConnectionTermination);
                    return Err(LocalReply::new(cause, self.outcome.transport_failure.as_deref(), retries > 0));
                }
            }
        }
    }

    /// What decides on the endpoint, in a cluster that asks for it; with it come cookies for the client.
    fn hash(&mut self, cluster: &Cluster, forward: &Forward) -> Option<u64> {
        if forward.hash.is_empty() || !cluster.policy.is_consistent_hash() {
            return None;
        }
        let facts = &self.down.facts;
        let client = hash_policy::Client {
            address: self.outcome.client.unwrap_or(facts.remote.ip()),
            remote: facts.remote,
            local: facts.local,
        };
        let view = View::of(&self.scratch.request, facts);
        let Hashed { key, cookies } = hash_policy::hash(&forward.hash, &view, &client);
        self.set_cookies = cookies;
        key
    }

    /// The request has lived as long as it may.
    fn expired(&self) -> LocalReply {
        let status = if self.request_done { 504 } else { 408 };
        LocalReply::from(Cause::MaxStreamDuration).with_status(status)
    }

    /// One try is over: answered with a status, or failed.
    fn record_try(&self, trying: Instant, result: Result<u16, Cause>) {
        let (status, flags) = match result {
            Ok(status) => (status, Flags::NONE),
            Err(cause) => (0, cause.row().flag.map_or(Flags::NONE, Flags::from)),
        };
        let Exchange { down, scratch, outcome, client_version, .. } = self;
        let response = result.is_ok().then_some(&scratch.response);
        // An answer of gRPC that is all trailers may be a failure that another try is made for.
        let end = End { status, flags, grpc_status: response.and_then(record::grpc_status_of) };
        if !record::wants(&down.context.try_logs, &end) {
            return;
        }
        let failure = outcome.transport_failure.clone().filter(|_| result.is_err());
        let outcome = Outcome {
            status,
            flags,
            details: match result {
                Ok(_) => "via_upstream".into(),
                Err(cause) => LocalReply::new(cause, failure.as_deref(), false).details,
            },
            route: outcome.route.clone(),
            cluster: outcome.cluster.clone(),
            destination: outcome.destination.clone(),
            upstream_peer: outcome.upstream_peer.clone(),
            client: outcome.client,
            upstream_local: outcome.upstream_local,
            attempts: outcome.attempts,
            transport_failure: failure,
            bytes_received: self.received.body_bytes.get(),
            duration: trying.elapsed(),
            ..Outcome::default()
        };
        let entry = Entry {
            subject: Subject::Try,
            clock: &down.worker.clock,
            start: down.worker.clock.wall(trying),
            facts: &down.facts,
            outcome: &outcome,
            request: Some(&scratch.request),
            version: Some(*client_version),
            response,
            chain_name: &down.context.chain.name,
        };
        down.worker.record(&down.context.try_logs, &entry);
    }

    /// Header edits and rewrites. Edits may quote the request as it came, so they see a copy where there are any.
    fn prepare(&mut self, decision: &Decision<'_>, forward: &Forward, told: Told) {
        let before = decision.request_edits().next().map(|_| self.scratch.request.clone());
        let Exchange { down, scratch, outcome, began, .. } = self;
        let entry = Entry {
            subject: Subject::Request,
            clock: &down.worker.clock,
            start: down.worker.clock.wall(*began),
            facts: &down.facts,
            outcome,
            request: before.as_ref(),
            version: None,
            response: None,
            chain_name: &down.context.chain.name,
        };
        let suppress = down.context.suppress_envoy_headers;
        filter::prepare(&mut scratch.request, decision, forward, told, suppress, &entry);
        // The version of this hop is ours; its scheme stays the client's.
        scratch.request.version = Version::Http11;
    }

    /// `Expect: 100-continue` is answered here unless the manager leaves it to the upstream. False: the client is gone.
    async fn expect_continue(&mut self) -> bool {
        if self.expects_continue && self.manager.proxy_100_continue {
            return true;
        }
        if self.scratch.request.expects_continue {
            self.scratch.request.remove_known(Known::Expect);
        }
        if !self.expects_continue || self.client.is_done() {
            return true;
        }
        let mut go_on = Head::default();
        go_on.status = 100;
        let (_, mut writer) = self.client.split(&mut self.scratch.to_downstream);
        writer.interim(&go_on);
        writer.flush().await.is_ok()
    }

    /// When the route's timeout passes; it runs from the end of the request (Envoy).
    pub(super) fn deadline(&self, timeout: Option<Duration>) -> Option<Instant> {
        let end = self.outcome.request_duration?;
        timeout.map(|timeout| self.began + end + timeout)
    }

    fn may_retry(&self, policy: Option<&RetryPolicy>, result: TryResult, retries: u32) -> bool {
        policy.is_some_and(|policy| retries < policy.retries && policy.allows(result))
            && !self.scratch.replay.overflowed
    }

    /// An endpoint may say with any answer that it fails its health checks from now on, if it has some.
    fn heed_health(&self, upstream: &WorkerUpstream, destination: &Destination) {
        let (Some(balancer), Some(host)) = (&upstream.shared.balancer, destination.host()) else { return };
        if host.active_health().is_some()
            && self.scratch.response.get(b"x-envoy-immediate-health-check-fail").is_some()
            && balancer.fail_at_once(host)
        {
            let (endpoint, cluster) = (&host.endpoint.address, &upstream.shared.cluster.name);
            log::warn!(target: logging::HEALTH, "endpoint {endpoint} of cluster {cluster} is unhealthy: it says so in an answer");
        }
    }

    /// What a retry policy thinks of the response, if there is a policy.
    fn response_result(&self, policy: Option<&RetryPolicy>) -> Option<TryResult> {
        let policy = policy?;
        let response = &self.scratch.response;
        let grpc_status = record::grpc_status_of(response);
        let view = View::of(response, &self.down.facts);
        Some(TryResult::Response {
            status: response.status,
            grpc_status,
            rate_limited: response.get(b"x-envoy-ratelimited").is_some(),
            retriable_header: policy.headers.iter().any(|matcher| matcher.is_match(&view)),
        })
    }

    /// Wait, unless the client goes away (false).
    pub(super) async fn pause(&mut self, wait: Duration) -> bool {
        self.unless_gone(Some(Instant::now() + wait), pending::<()>()).await.is_some()
    }
}

/// What outlier detection makes of an answer. A call of gRPC that failed before its first message is told with the head, whose status is 200;
/// nobody waits for what trailers say (Envoy).
pub(super) fn observation(request: &Head, response: &Head) -> Observation {
    let in_head = response.get(GRPC_STATUS.as_bytes()).is_some_and(|status| !status.is_empty());
    if in_head && is_grpc(request) {
        return Observation::Status(record::grpc_status_of(response).map_or(500, http_status));
    }
    Observation::Status(response.status)
}

/// Whether only the number of retries forbids another one.
fn is_exhausted(policy: Option<&RetryPolicy>, result: TryResult, retries: u32) -> bool {
    policy.is_some_and(|policy| policy.allows(result) && retries >= policy.retries)
}
