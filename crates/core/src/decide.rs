//! One HTTP request, top to bottom: route, cluster, and the filters that act on it in their order. What happens then (pick, connect, forward) needs sockets and is the caller's.

use std::sync::Arc;

use crate::cluster::Cluster;
use crate::cors::Cors;
use crate::fault::{Fault, FaultOutcome};
use crate::header_edit::HeaderEdits;
use crate::http_manager::{HttpFilter, HttpManager};
use crate::plan::Plan;
use crate::random::Random;
use crate::rbac::{HttpRbac, Rbac, RbacOverride};
use crate::request::RequestHead;
use crate::respond::{Cause, LocalReply};
use crate::route::{
    Action, DirectResponse, Edits, FaultOverride, FilterOverrides, Forward, Redirect, Route, RouteTable, Target,
    VirtualHost,
};
use crate::trace::Trace;

/// What is to be done with a request. Borrows from the plan; each `Arc` may be cloned to outlive it.
#[derive(Debug, Clone)]
pub struct Decision<'p> {
    /// The routes consulted; `None` while RDS has not named them.
    pub table: Option<&'p Arc<RouteTable>>,
    /// The virtual host, if one matched.
    pub virtual_host: Option<&'p Arc<VirtualHost>>,
    /// The route, if one matched.
    pub route: Option<&'p Arc<Route>>,
    /// The fault that applies to this request, before its dice; they are thrown by [`Decision::strike`].
    pub fault: Option<&'p Arc<Fault>>,
    /// What to do after the fault.
    pub outcome: Outcome<'p>,
}

/// A filter that acts on a request, with what it goes by.
#[derive(Debug, Clone, Copy)]
pub enum Step<'p> {
    /// Ask these rules, which are the filter's or the route's.
    Rbac(&'p HttpRbac, &'p Arc<Rbac>),
    /// Consider the request by this policy.
    Cors(&'p Arc<Cors>),
    /// Throw the dice of [`Decision::strike`].
    Fault,
    /// Ask for the virtual host of the request, which this table does not have yet, and decide again.
    OnDemand(&'p Arc<RouteTable>),
}

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Outcome<'p> {
    /// Send it to the cluster.
    Forward {
        /// How.
        forward: &'p Forward,
        /// Which of the route's destinations.
        target: &'p Target,
        /// Its cluster.
        cluster: &'p Arc<Cluster>,
    },
    /// Answer with a redirect.
    Redirect(&'p Redirect),
    /// Answer from the configuration.
    Direct(&'p DirectResponse),
    /// Answer with an error: no route, no cluster.
    Refuse {
        /// The answer.
        reply: LocalReply,
        /// The destination whose cluster does not exist.
        target: Option<&'p Target>,
    },
}

/// Decide one request.
///
/// Throws dice for the route's share and the weighted target only; the fault's are thrown by [`Decision::strike`], the mirrors' by the caller.
pub fn decide<'p, R, D, T>(
    plan: &'p Plan,
    manager: &'p HttpManager,
    request: &R,
    random: &mut D,
    trace: &mut T,
) -> Decision<'p>
where
    R: RequestHead + ?Sized,
    D: Random + ?Sized,
    T: Trace,
{
    let refused = |table, virtual_host, cause: Cause| Decision {
        table,
        virtual_host,
        route: None,
        fault: None,
        outcome: Outcome::Refuse { reply: cause.into(), target: None },
    };
    let Some(table) = plan.routes_of(manager) else { return refused(None, None, Cause::RouteNotFound) };
    let found = table.route(request, random, trace);
    let Some(route) = found.route else { return refused(Some(table), found.virtual_host, Cause::RouteNotFound) };
    decide_by(plan, manager, request, random, (table, found.virtual_host), route)
}

/// What becomes of a request that takes *route*, of the virtual host and the table in *place*: the rest of [`decide`], also for
/// questions about a request of which only the route that it took is known.
pub fn decide_by<'p, R, D>(
    plan: &'p Plan,
    manager: &'p HttpManager,
    request: &R,
    random: &mut D,
    place: (&'p Arc<RouteTable>, Option<&'p Arc<VirtualHost>>),
    route: &'p Arc<Route>,
) -> Decision<'p>
where
    R: RequestHead + ?Sized,
    D: Random + ?Sized,
{
    let (table, virtual_host) = place;
    let outcome = match &route.action {
        Action::Redirect(redirect) => Outcome::Redirect(redirect),
        Action::Direct(response) => Outcome::Direct(response),
        Action::Forward(forward) => {
            let target = forward.pick(random);
            match plan.clusters.get(&target.cluster) {
                Some(cluster) => Outcome::Forward { forward, target, cluster },
                None => Outcome::Refuse {
                    reply: LocalReply::from(Cause::ClusterNotFound).with_status(forward.cluster_not_found_status),
                    target: Some(target),
                },
            }
        }
    };
    let mut decision = Decision { table: Some(table), virtual_host, route: Some(route), fault: None, outcome };
    decision.fault = decision.fault_of(manager).filter(|fault| {
        let cluster = decision.target().map(|target| &*target.cluster);
        fault.applies(request, cluster)
    });
    decision
}

impl<'p> Decision<'p> {
    /// The destination chosen, if the route forwards (its cluster may be missing).
    pub fn target(&self) -> Option<&'p Target> {
        match &self.outcome {
            Outcome::Forward { target, .. } => Some(target),
            Outcome::Refuse { target, .. } => *target,
            Outcome::Redirect(_) | Outcome::Direct(_) => None,
        }
    }

    /// Throw the fault's dice.
    pub fn strike<D: Random + ?Sized>(&self, random: &mut D) -> FaultOutcome {
        self.fault.map_or_else(FaultOutcome::default, |fault| fault.strike(random))
    }

    /// The filters that act on the request, in the order of the manager. What each of them finds may end the request.
    pub fn steps(&self, manager: &'p HttpManager) -> impl Iterator<Item = Step<'p>> {
        manager.filters.iter().filter_map(|filter| match filter {
            HttpFilter::Rbac(filter) => self.rules_of(filter).map(|rules| Step::Rbac(filter, rules)),
            HttpFilter::Cors => self.target().and_then(|target| target.cors.as_ref()).map(Step::Cors),
            HttpFilter::Fault { .. } => self.fault.map(|_| Step::Fault),
            HttpFilter::OnDemand => {
                self.table.filter(|table| self.virtual_host.is_none() && table.is_on_demand()).map(Step::OnDemand)
            }
            HttpFilter::GrpcStats | HttpFilter::GrpcWeb | HttpFilter::LocalCaller(_) | HttpFilter::Router { .. } => {
                None
            }
        })
    }

    /// The rules of the most specific level that names the filter, else the filter's; `None`: it is turned off.
    fn rules_of(&self, filter: &'p HttpRbac) -> Option<&'p Arc<Rbac>> {
        let own = self
            .overrides()
            .find_map(|level| level.rbac.iter().find(|(name, _)| **name == *filter.name).map(|(_, rules)| rules));
        match own {
            Some(RbacOverride::Rbac(rules)) => Some(rules),
            Some(RbacOverride::Disabled) => None,
            None => Some(&filter.rbac),
        }
    }

    /// What the levels say about filters, the most specific first: weighted cluster, route, virtual host, route configuration.
    fn overrides(&self) -> impl Iterator<Item = &'p FilterOverrides> + use<'p> {
        let levels: [Option<&'p FilterOverrides>; 4] = [
            self.target().map(|target| &target.overrides),
            self.route.map(|route| &route.overrides),
            self.virtual_host.map(|host| &host.overrides),
            self.table.map(|table| &table.overrides),
        ];
        levels.into_iter().flatten()
    }

    /// The fault of the most specific level that names one: weighted cluster, route, virtual host, route configuration, filter.
    fn fault_of(&self, manager: &'p HttpManager) -> Option<&'p Arc<Fault>> {
        // Without the filter in the manager no level's setting means anything.
        let own = manager.filters.iter().find_map(|filter| match filter {
            HttpFilter::Fault { fault, .. } => Some(fault.as_ref()),
            _ => None,
        })?;
        match self.overrides().find_map(|level| level.fault.as_ref()) {
            Some(FaultOverride::Fault(fault)) => Some(fault),
            Some(FaultOverride::Disabled) => None,
            None => own,
        }
    }

    /// Edits to the request, in the order in which they must be applied.
    pub fn request_edits(&self) -> impl Iterator<Item = &'p HeaderEdits> + use<'p> {
        self.levels().map(|level| &level.request).filter(|edits| !edits.is_empty())
    }

    /// Edits to the response, in the order in which they must be applied.
    pub fn response_edits(&self) -> impl Iterator<Item = &'p HeaderEdits> + use<'p> {
        self.levels().map(|level| &level.response).filter(|edits| !edits.is_empty())
    }

    /// From the most specific level to the least, so that the least specific has the last word; turned round by `most_specific_header_mutations_wins`.
    fn levels(&self) -> impl Iterator<Item = &'p Edits> + use<'p> {
        // An answer without a route is nobody's to edit, as in Envoy.
        let routed = self.route.is_some();
        let mut levels = [
            self.target().map(|target| &target.edits),
            self.route.map(|route| &route.edits),
            self.virtual_host.map(|host| &host.edits),
            self.table.map(|table| &table.edits),
        ];
        if self.table.is_some_and(|table| table.most_specific_wins) {
            levels.reverse();
        }
        levels.into_iter().flatten().filter(move |_| routed)
    }

    /// The host to send upstream: the route's rewrite, the destination's, or `None` for the request's own.
    pub fn host_rewrite(&self) -> Option<&'p Arc<str>> {
        match &self.outcome {
            Outcome::Forward { forward, target, .. } => forward.host_rewrite.as_ref().or(target.host_rewrite.as_ref()),
            _ => None,
        }
    }

    /// The path to send upstream, or `None` for the request's own.
    pub fn path_rewrite(&self, path: &[u8]) -> Option<Vec<u8>> {
        match (&self.outcome, self.route) {
            (Outcome::Forward { forward, .. }, Some(route)) => {
                forward.path_rewrite.as_ref().map(|rewrite| rewrite.apply(&route.conditions.path, path))
            }
            _ => None,
        }
    }
}
