//! Route tables: virtual hosts, routes and what they do with a request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::cors::{Cors, CorsOverride};
use crate::fault::Fault;
use crate::grpc_timeout;
use crate::hash_policy::HashPolicy;
use crate::header_edit::HeaderEdits;
use crate::matching::{HeaderMatch, PathMatch, QueryMatch};
use crate::metadata::Metadata;
use crate::random::{Draw, Fraction, Random};
use crate::rbac::RbacOverride;
use crate::request::{RequestHead, path_only, query_parameter};
use crate::retry::RetryPolicy;
use crate::trace::{Subject, Trace};
use crate::upgrade::Upgrade;

mod compile;
pub(crate) mod domains;
mod mirror;
mod on_demand;
mod paths;
mod rewrite;

use domains::Domains;
pub use mirror::{Mirror, MirrorHost};
use on_demand::Inheritance;
use paths::Paths;

/// What a route does if its resource has no timeout: Envoy's 15 s.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// A compiled `RouteConfiguration`.
#[derive(Debug)]
pub struct RouteTable {
    /// `9080`
    pub name: Arc<str>,
    /// In the order of the resource; then those that came by themselves.
    pub virtual_hosts: Box<[Arc<VirtualHost>]>,
    domains: Domains,
    /// What virtual hosts that come by themselves take from it; `None`: none come (it has no `vhds`).
    on_demand: Option<Box<Inheritance>>,
    /// Edits of the whole configuration, applied last by default.
    pub edits: Edits,
    /// The most specific edit wins: the order of levels is turned round.
    pub most_specific_wins: bool,
    /// Filter settings for all virtual hosts.
    pub overrides: FilterOverrides,
    /// Where it comes from.
    pub metadata: Metadata,
}

/// Header edits of one level.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    /// To the request before it goes upstream.
    pub request: HeaderEdits,
    /// To the response before it goes downstream.
    pub response: HeaderEdits,
}

/// `typed_per_filter_config` of one level.
#[derive(Debug, Clone, Default)]
pub struct FilterOverrides {
    /// Replaces the fault of the filter or of a less specific level.
    pub fault: Option<FaultOverride>,
    /// Replaces the rules of the RBAC filter of that name, or of a less specific level.
    pub rbac: Box<[(Box<str>, RbacOverride)]>,
    /// A part of [`Target::cors`].
    pub cors: Option<CorsOverride>,
}

/// What a level says about the fault filter.
#[derive(Debug, Clone)]
pub enum FaultOverride {
    /// This fault.
    Fault(Arc<Fault>),
    /// The filter does nothing here (`FilterConfig.disabled`).
    Disabled,
}

/// A compiled virtual host.
#[derive(Debug)]
pub struct VirtualHost {
    /// `reviews.default.svc.cluster.local:9080`
    pub name: Arc<str>,
    /// As in the resource.
    pub domains: Box<[Box<str>]>,
    /// Tried in order.
    pub routes: Box<[Arc<Route>]>,
    /// Of the routes, if there are many.
    pub paths: Option<Paths>,
    /// Edits of this level.
    pub edits: Edits,
    /// Filter settings of this level.
    pub overrides: FilterOverrides,
    /// Send `x-envoy-attempt-count` upstream.
    pub request_attempt_count: bool,
    /// Send `x-envoy-attempt-count` downstream.
    pub response_attempt_count: bool,
    /// Where it comes from.
    pub metadata: Metadata,
}

/// A compiled route.
#[derive(Debug)]
pub struct Route {
    /// May be empty.
    pub name: Arc<str>,
    /// When it applies.
    pub conditions: Conditions,
    /// What it does.
    pub action: Action,
    /// Edits of this level.
    pub edits: Edits,
    /// Filter settings of this level.
    pub overrides: FilterOverrides,
    /// Where it comes from.
    pub metadata: Metadata,
}

/// When a route applies: everything must hold.
#[derive(Debug)]
pub struct Conditions {
    /// The path.
    pub path: PathMatch,
    /// Headers and pseudo-headers.
    pub headers: Box<[HeaderMatch]>,
    /// Query parameters.
    pub query: Box<[QueryMatch]>,
    /// Only this share of requests.
    pub share: Option<Fraction>,
}

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Send upstream.
    Forward(Forward),
    /// Answer with another place to go.
    Redirect(Redirect),
    /// Answer from the configuration.
    Direct(DirectResponse),
}

/// One destination of a route.
#[derive(Debug)]
pub struct Target {
    /// Cluster name.
    pub cluster: Arc<str>,
    /// Its weight among the targets; 1 if it is the only one.
    pub weight: u32,
    /// Edits of this level, applied first by default.
    pub edits: Edits,
    /// Filter settings of this level.
    pub overrides: FilterOverrides,
    /// The CORS policy of all levels together.
    pub cors: Option<Arc<Cors>>,
    /// Host to send instead of the route's.
    pub host_rewrite: Option<Arc<str>>,
    /// Where it comes from.
    pub metadata: Metadata,
}

/// How the path changes.
#[derive(Debug)]
pub enum PathRewrite {
    /// The matched prefix, or the whole path of an exact or regex match, becomes this.
    Prefix(Box<str>),
    /// Each match in the path (without query) becomes the substitution.
    Regex { pattern: regex::bytes::Regex, substitution: Box<[u8]> },
}

/// How the request goes upstream.
#[derive(Debug)]
pub struct Forward {
    /// At least one.
    pub targets: Box<[Target]>,
    /// The sum of the weights; at least 1.
    pub total_weight: u64,
    /// Status if the cluster does not exist.
    pub cluster_not_found_status: u16,
    /// Of the priority HIGH: the last to be refused when load is shed.
    pub high_priority: bool,
    /// Path.
    pub path_rewrite: Option<PathRewrite>,
    /// Host.
    pub host_rewrite: Option<Arc<str>>,
    /// `x-forwarded-host` with the old host when it is rewritten.
    pub append_x_forwarded_host: bool,
    /// From the end of the request to the end of the response; `None`: no limit. [`DEFAULT_TIMEOUT`] if the resource is silent.
    pub timeout: Option<Duration>,
    /// Obey the `grpc-timeout` of gRPC requests instead of `timeout`, but no longer than this; zero: whatever it says. See [`Forward::timeout_for`].
    pub max_grpc_timeout: Option<Duration>,
    /// Replaces `timeout` and the manager's limit of a stream. See [`Forward::stream_duration_for`].
    pub stream_duration: Option<StreamDuration>,
    /// Replaces the manager's stream idle timeout: `Some(None)` turns it off.
    pub idle_timeout: Option<Option<Duration>>,
    /// Its own or the virtual host's.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Copies.
    pub mirrors: Box<[Mirror]>,
    /// What decides in clusters that balance by consistent hashing.
    pub hash: Box<[HashPolicy]>,
    /// Changes of protocol that are allowed here, or not; those that are not named: as the manager says.
    pub upgrades: Box<[Upgrade]>,
}

/// A route's `max_stream_duration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamDuration {
    /// From the first byte of the request to the last of the answer. `Some(None)`: no limit; `None`: the manager's.
    pub limit: Option<Option<Duration>>,
    /// Where a request has a `grpc-timeout`, that holds instead, but no more than this; zero: whatever it says.
    pub grpc_header_max: Option<Duration>,
}

/// A redirect.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307, 308
    pub status: u16,
    /// New scheme.
    pub scheme: Option<Box<str>>,
    /// New host.
    pub host: Option<Box<str>>,
    /// New port.
    pub port: Option<u16>,
    /// New path; with `?`, new query too.
    pub path: Option<Box<str>>,
    /// Or part of it.
    pub path_rewrite: Option<PathRewrite>,
    /// Drop the query.
    pub strip_query: bool,
}

/// An answer from the configuration.
#[derive(Debug)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// Bytes.
    pub body: Arc<[u8]>,
}

/// Where a request was found to belong.
#[derive(Debug, Clone, Copy)]
pub struct Found<'t> {
    /// The virtual host, if one has the authority's domain.
    pub virtual_host: Option<&'t Arc<VirtualHost>>,
    /// Its first route that matches, if one does.
    pub route: Option<&'t Arc<Route>>,
}

/// Why a route did not match: the first condition that did not hold.
#[derive(Debug, Clone, Copy)]
pub enum Mismatch<'t> {
    /// The path.
    Path(&'t PathMatch),
    /// A header.
    Header(&'t HeaderMatch),
    /// A query parameter.
    Query(&'t QueryMatch),
    /// The dice.
    Share(Fraction),
}

impl Mismatch<'_> {
    /// In words, with what the request has.
    pub fn describe<R: RequestHead + ?Sized>(&self, request: &R) -> String {
        match self {
            Self::Path(path) => {
                format!("wanted: {path}; the path is `{}`", String::from_utf8_lossy(path_only(request.path())))
            }
            Self::Header(header) => match request.field(&header.name) {
                None => format!("wanted: {header}; the request has no such header"),
                Some(value) => format!("wanted: {header}; it is `{}`", String::from_utf8_lossy(&value)),
            },
            Self::Query(query) => match query_parameter(request.path(), query.name.as_bytes()) {
                None => format!("wanted: {query}; the request has no such parameter"),
                Some(value) => format!("wanted: {query}; it is `{}`", String::from_utf8_lossy(value)),
            },
            Self::Share(share) => format!("only {} % of requests match", share.percent()),
        }
    }
}

impl Route {
    /// Compare with a request; the dice are thrown last, and only if all else holds.
    ///
    /// # Errors
    /// The first condition that does not hold.
    pub fn matches<R: RequestHead + ?Sized, D: Random + ?Sized>(
        &self,
        request: &R,
        random: &mut D,
    ) -> Result<(), Mismatch<'_>> {
        let conditions = &self.conditions;
        if !conditions.path.is_match(request.path()) {
            return Err(Mismatch::Path(&conditions.path));
        }
        if let Some(header) = conditions.headers.iter().find(|header| !header.is_match(request)) {
            return Err(Mismatch::Header(header));
        }
        if let Some(query) = conditions.query.iter().find(|query| !query.is_match(request.path())) {
            return Err(Mismatch::Query(query));
        }
        match conditions.share {
            Some(share) if !share.strikes(Draw::RouteFraction, random) => Err(Mismatch::Share(share)),
            _ => Ok(()),
        }
    }
}

impl RouteTable {
    /// The virtual host for an authority: exact domain, longest suffix wildcard, longest prefix wildcard, `*`; in any case.
    pub fn virtual_host(&self, authority: &[u8]) -> Option<&Arc<VirtualHost>> {
        self.domains.find(authority).and_then(|index| self.virtual_hosts.get(index as usize))
    }

    /// Virtual host and first matching route; each may be missing.
    pub fn route<R: RequestHead + ?Sized, D: Random + ?Sized, T: Trace>(
        &self,
        request: &R,
        random: &mut D,
        trace: &mut T,
    ) -> Found<'_> {
        let virtual_host = self.virtual_host(request.authority());
        if trace.wants_all() {
            self.note_virtual_hosts(virtual_host, request, trace);
        }
        let Some(host) = virtual_host else { return Found { virtual_host: None, route: None } };
        if let (Some(paths), false) = (&host.paths, trace.wants_all()) {
            let route = paths
                .candidates(request.path())
                .map(|position| &host.routes[position])
                .find(|route| route.matches(request, random).is_ok());
            return Found { virtual_host, route };
        }
        let route = host.routes.iter().find(|route| match route.matches(request, random) {
            Ok(()) => {
                trace.considered(Subject::Route(route), true, || route.conditions.to_string());
                true
            }
            Err(mismatch) => {
                trace.considered(Subject::Route(route), false, || mismatch.describe(request));
                false
            }
        });
        Found { virtual_host, route }
    }

    fn note_virtual_hosts<R: RequestHead + ?Sized, T: Trace>(
        &self,
        matched: Option<&Arc<VirtualHost>>,
        request: &R,
        trace: &mut T,
    ) {
        for host in &self.virtual_hosts {
            let is_match = matched.is_some_and(|matched| Arc::ptr_eq(matched, host));
            trace.considered(Subject::VirtualHost(host), is_match, || {
                let authority = String::from_utf8_lossy(request.authority());
                let domains = host.domains.join(", ");
                if is_match {
                    format!("`{authority}` belongs to {domains}")
                } else {
                    format!(
                        "`{authority}` does not belong to {domains}, or belongs to another virtual host more exactly"
                    )
                }
            });
        }
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(out)?;
        for header in &self.headers {
            write!(out, ", {header}")?;
        }
        for query in &self.query {
            write!(out, ", {query}")?;
        }
        if let Some(share) = self.share {
            write!(out, ", {} % of requests", share.percent())?;
        }
        Ok(())
    }
}

impl Forward {
    /// The timeout for a request: [`Forward::timeout`], or for gRPC what the client asks for, as far as the route lets it.
    ///
    /// A gRPC request without `grpc-timeout` has no limit but the route's maximum.
    pub fn timeout_for<R: RequestHead + ?Sized>(&self, request: &R) -> Option<Duration> {
        let Some(most) = self.max_grpc_timeout else { return self.timeout };
        if !is_grpc(request) {
            return self.timeout;
        }
        let asked = request
            .header("grpc-timeout")
            .and_then(|value| grpc_timeout::parse(&value))
            .filter(|asked| !asked.is_zero());
        let most = (!most.is_zero()).then_some(most);
        match (asked, most) {
            (Some(asked), Some(most)) => Some(asked.min(most)),
            (asked, most) => asked.or(most),
        }
    }

    /// How long a request may live, its answer included. *manager*: the limit of its connection manager.
    pub fn stream_duration_for<R: RequestHead + ?Sized>(
        &self,
        request: &R,
        manager: Option<Duration>,
    ) -> Option<Duration> {
        let Some(own) = &self.stream_duration else { return manager };
        if let Some(most) = own.grpc_header_max
            && let Some(asked) = request.header("grpc-timeout").and_then(|value| grpc_timeout::parse(&value))
        {
            return Some(if most.is_zero() { asked } else { asked.min(most) });
        }
        own.limit.unwrap_or(manager)
    }

    /// The `grpc-timeout` that the upstream of a call is told, where the route says how long calls may take: the limit that holds, so
    /// that a server works no longer than somebody waits. `None`: as the caller says.
    ///
    /// *of_a_try* and *life* are of [`crate::retry::timeout_of_a_try`] and [`Forward::stream_duration_for`].
    pub fn grpc_timeout_to_tell<R: RequestHead + ?Sized>(
        &self,
        request: &R,
        of_a_try: Option<Duration>,
        life: Option<Duration>,
    ) -> Option<Duration> {
        let limit = match (&self.stream_duration, self.max_grpc_timeout) {
            (Some(_), _) => life,
            (None, Some(_)) => of_a_try,
            (None, None) => None,
        };
        limit.filter(|_| is_grpc(request))
    }

    /// Choose a target by weight.
    pub fn pick<D: Random + ?Sized>(&self, random: &mut D) -> &Target {
        if let [target] = &*self.targets {
            return target;
        }
        let mut point = random.below(Draw::Weight, self.total_weight);
        for target in &self.targets {
            match point.checked_sub(u64::from(target.weight)) {
                None => return target,
                Some(rest) => point = rest,
            }
        }
        // Compilation refuses an empty list and a total of zero, so a point below the total was met above.
        &self.targets[self.targets.len() - 1]
    }
}

/// Whether it is a call of gRPC, of whichever encoding.
fn is_grpc<R: RequestHead + ?Sized>(request: &R) -> bool {
    request.header("content-type").is_some_and(|kind| {
        kind.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || matches!(rest[0], b'+' | b';'))
    })
}
