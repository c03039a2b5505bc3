//! What an HTTP proxy in the old sense needs beside routes: tunnels (CONNECT), by routes or to any host, and the addresses of hosts that
//! the mesh does not know.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;
use weft_core::cluster::{Cluster, Discovery};
use weft_core::decide::{Decision, Outcome as Action};
use weft_core::listener::Listener;
use weft_core::local_caller::LocalCaller;
use weft_core::outlier::Observation;
use weft_core::plan::Plan;
use weft_core::respond::{Cause, LocalReply};
use weft_core::upgrade::Upgrade;

use crate::authority;
use crate::connect::ConnectError;
use crate::forward::TunnelEnd;
use crate::gone::unless_gone;
use crate::pick::{self, Tried};
use crate::plan::{WorkerPlan, WorkerUpstream};
use crate::{caller, filter, tcp};

use super::server::Server;
use super::{Exchange, Next};

impl Exchange<'_> {
    /// Whether the caller may be taken for the program beside this proxy.
    pub(super) fn admit_caller(&mut self) -> Result<(), Cause> {
        if self.down.facts.foreign {
            return Err(Cause::CallerRefused);
        }
        caller::admit(&mut self.scratch.request, self.manager, &self.down.facts)
    }

    /// CONNECT: say that the way is open; what comes then belongs to the listener of the place that was named.
    pub(super) async fn open_tunnel(&mut self, plan: &WorkerPlan, caller: &LocalCaller) -> Next {
        if self.client.is_stream() {
            // The rest of the connection is other requests': it cannot become another listener's.
            return self.respond(Cause::UpgradeRefused.into()).await;
        }
        let onward = match tunnel(&plan.active.core, caller, self.scratch.request.authority()).await {
            Ok(onward) => onward,
            Err(cause) => return self.respond(cause.into()).await,
        };
        // RFC 9110 9.3.6: a 2xx to CONNECT has neither length nor body.
        let Some((io, _)) = self.client.tunnel() else { return self.gone() };
        if io.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n", &[]).await.is_err() {
            return self.gone();
        }
        self.outcome.status = 200;
        self.outcome.details = "via_tunnel".into();
        Next::Onward(onward)
    }

    /// Whether the protocol may change, if the request wants that: by the word of its route, or of the manager.
    pub(super) fn may_change_protocol(&self, decision: &Decision<'_>) -> bool {
        let request = &self.scratch.request;
        if !request.wants_tunnel() {
            return true;
        }
        let of_route: &[Upgrade] = match &decision.outcome {
            Action::Forward { forward, .. } => &forward.upgrades,
            // RFC 9110 7.8: whoever answers by itself may pass over the wish for another protocol, but not over CONNECT.
            _ if request.is_connect() => &[],
            _ => return true,
        };
        let name = if request.is_connect() { Upgrade::CONNECT.as_bytes() } else { request.upgrade() };
        Upgrade::find(of_route, name)
            .or_else(|| Upgrade::find(&self.manager.upgrades, name))
            .is_some_and(|upgrade| upgrade.enabled)
    }

    /// Whether an answer of our own with this *status* would say that the way is open, where nobody is behind it: to CONNECT
    /// (RFC 9110 9.3.6), or to what asks for another protocol on a stream of HTTP/2 (RFC 8441 5).
    pub(super) fn would_agree(&self, status: u16) -> bool {
        let request = &self.scratch.request;
        let is_agreed_by_success = request.is_connect() || (request.wants_tunnel() && self.client.is_stream());
        is_agreed_by_success && matches!(status, 200..300)
    }

    /// A tunnel that ends here: connect to the route's cluster, and pass on bytes.
    ///
    /// # Errors
    /// There is nobody to pass them on to: what to say instead.
    pub(super) async fn end_tunnel(
        &mut self,
        upstream: &Rc<WorkerUpstream>,
        original: Option<SocketAddr>,
        key: Option<u64>,
    ) -> Result<Next, LocalReply> {
        let picked = {
            let random = &mut *self.down.worker.random.borrow_mut();
            pick::pick(upstream, original, None, &Tried::default(), key, random)
        };
        let Some(destination) = picked else {
            return Err(Cause::NoHealthyUpstream.into());
        };
        self.outcome.attempts = 1;
        self.outcome.destination = Some(destination.clone());
        let _active = destination.host().map(|host| host.begin());
        let (ends, standing) = (self.down.facts.ends(), &self.down.worker.standing);
        let dialling = Server::dial(upstream, &destination, ends, standing);
        let client = &self.client;
        let server = match unless_gone(dialling, |context| client.poll_gone(context)).await {
            None => return Ok(self.gone()),
            Some(Ok(server)) => server,
            Some(Err(ConnectError::Overflow)) => return Err(Cause::Overflow.into()),
            Some(Err(error)) => {
                tcp::observe(upstream, &destination, Observation::LocalFailure);
                self.down.worker.metrics.counters().upstream_connect_failures.add(1);
                self.outcome.transport_failure = error.transport_failure();
                return Err(LocalReply::new(error.cause(), self.outcome.transport_failure.as_deref(), false));
            }
        };
        self.down.worker.metrics.counters().connected(&server.peer());
        self.outcome.upstream_local = server.local();
        self.outcome.upstream_peer = Some(server.peer());
        self.answered = Instant::now();
        self.outcome.status = 200;
        self.outcome.details = "via_upstream".into();
        self.scratch.response.clear();
        self.scratch.response.status = 200;
        filter::finish(&mut self.scratch.response, self.manager, &self.down.worker.clock, self.answered);
        // What is not HTTP has ended when its connection has.
        Ok(self.tunnel(server, TunnelEnd::Finished).await)
    }

    /// Where the client wanted to go, if anywhere. To a forward proxy it says so in words, for nothing was caught.
    pub(super) async fn original_destination(&self, cluster: &Cluster) -> Result<Option<SocketAddr>, Cause> {
        if self.manager.forward_proxy().is_none() || !matches!(cluster.discovery, Discovery::OriginalDst) {
            return Ok(self.down.facts.original);
        }
        resolve(self.scratch.request.authority()).await.map(Some).ok_or(Cause::NameUnresolved)
    }
}

/// A connection that goes on, after a CONNECT, as if it had come by another listener.
pub struct Onward {
    pub listener: Arc<Listener>,
    /// What the client then called.
    pub destination: SocketAddr,
}

/// Where a CONNECT to *authority* leads.
///
/// # Errors
/// Nowhere, and why.
async fn tunnel(plan: &Plan, caller: &LocalCaller, authority: &[u8]) -> Result<Onward, Cause> {
    let name = caller.tunnel(authority).ok_or(Cause::UpgradeRefused)?;
    let listener = plan.listeners.get(name).ok_or(Cause::RouteNotFound)?;
    let destination = match listener.addresses.first() {
        Some(bound) if listener.bind_to_port => bound.address,
        // It takes connections to any place, so this one needs its own.
        _ => resolve(authority).await.ok_or(Cause::NameUnresolved)?,
    };
    Ok(Onward { listener: Arc::clone(listener), destination })
}

/// The address of `host:port` as this machine's resolver has it.
///
/// IPv4 before IPv6: nobody tries a second address here, and a machine without IPv6 still gets AAAA records.
async fn resolve(authority: &[u8]) -> Option<SocketAddr> {
    let (host, port) = authority::split(authority)?;
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.ok()?.collect();
    found.iter().find(|address| address.is_ipv4()).or(found.first()).copied()
}
