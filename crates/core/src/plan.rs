//! All compiled resources of one proxy, immutable; a change makes a new plan that shares what did not change.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use weft_protos::{Message, type_url};

use crate::cluster::Cluster;
use crate::compile::{Compiled, Problems, Strictness};
use crate::endpoint::LoadAssignment;
use crate::honoured;
use crate::http_manager::{HttpManager, RouteSource};
use crate::listener::Listener;
use crate::route::RouteTable;

/// One compiled resource. Secrets are not compiled here: the proxy gives them to its TLS library.
#[derive(Debug, Clone)]
pub enum Resource {
    /// LDS
    Listener(Arc<Listener>),
    /// RDS
    Routes(Arc<RouteTable>),
    /// CDS
    Cluster(Arc<Cluster>),
    /// EDS
    Assignment(Arc<LoadAssignment>),
}

impl Resource {
    /// Decode, check that every field is honoured, compile. `type_url` is one of [`weft_protos::type_url`], but not a secret.
    ///
    /// # Errors
    /// Everything in it that weft cannot honour; bytes that are not that message.
    pub fn compile(type_url: &str, value: &[u8], strictness: Strictness) -> Result<Compiled<Self>, Problems> {
        let unknown = honoured::walk(type_url, value);
        let compiled = match type_url {
            type_url::LISTENER => decode(value)
                .and_then(|listener| Listener::compile(&listener, strictness))
                .map(|it| it.map(Arc::new).map(Self::Listener)),
            type_url::ROUTE_CONFIGURATION => decode(value)
                .and_then(|routes| RouteTable::compile(&routes, strictness))
                .map(|it| it.map(Arc::new).map(Self::Routes)),
            type_url::CLUSTER => decode(value)
                .and_then(|cluster| Cluster::compile(&cluster, strictness))
                .map(|it| it.map(Arc::new).map(Self::Cluster)),
            type_url::CLUSTER_LOAD_ASSIGNMENT => decode(value)
                .and_then(|assignment| LoadAssignment::compile(&assignment, strictness))
                .map(|it| it.map(Arc::new).map(Self::Assignment)),
            other => Err(Problems::one(other, "not a type of resource that weft-proxy compiles")),
        };
        match (compiled, strictness) {
            (Ok(compiled), Strictness::Collect) => Ok(compiled.with_not_applied(unknown)),
            (Ok(compiled), Strictness::Refuse) if unknown.is_empty() => Ok(compiled),
            (Ok(_), Strictness::Refuse) => Err(Problems(unknown)),
            (Err(problems), _) => Err(problems.and(unknown)),
        }
    }

    /// The name under which it is published: listener, route configuration, cluster, cluster name of the assignment.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Listener(listener) => &listener.name,
            Self::Routes(routes) => &routes.name,
            Self::Cluster(cluster) => &cluster.name,
            Self::Assignment(assignment) => &assignment.name,
        }
    }
}

/// All compiled resources by name.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// LDS
    pub listeners: HashMap<Arc<str>, Arc<Listener>>,
    /// RDS
    pub routes: HashMap<Arc<str>, Arc<RouteTable>>,
    /// CDS
    pub clusters: HashMap<Arc<str>, Arc<Cluster>>,
    /// EDS
    pub assignments: HashMap<Arc<str>, Arc<LoadAssignment>>,
    /// Which listener takes connections to an original destination: as in Envoy any that has the address, whether or not it has
    /// a socket there as well (a granted port of the host's loopback has one, and is caught before it comes there).
    handed_over: HashMap<SocketAddr, Arc<str>>,
}

impl Plan {
    /// Put a resource in place of one of the same name.
    pub fn insert(&mut self, resource: Resource) {
        let name = Arc::clone(resource.name());
        match resource {
            Resource::Listener(listener) => {
                self.remove_listener(&name);
                self.handed_over.extend(listener.addresses.iter().map(|bind| (bind.address, Arc::clone(&name))));
                self.listeners.insert(name, listener);
            }
            Resource::Routes(routes) => drop(self.routes.insert(name, routes)),
            Resource::Cluster(cluster) => drop(self.clusters.insert(name, cluster)),
            Resource::Assignment(assignment) => drop(self.assignments.insert(name, assignment)),
        }
    }

    /// Take a resource away. Nothing happens if there is none of that name, or for another type.
    pub fn remove(&mut self, type_url: &str, name: &str) {
        match type_url {
            type_url::LISTENER => self.remove_listener(name),
            type_url::ROUTE_CONFIGURATION => drop(self.routes.remove(name)),
            type_url::CLUSTER => drop(self.clusters.remove(name)),
            type_url::CLUSTER_LOAD_ASSIGNMENT => drop(self.assignments.remove(name)),
            _ => {}
        }
    }

    fn remove_listener(&mut self, name: &str) {
        let Some(old) = self.listeners.remove(name) else { return };
        // By its own addresses, not by a look at everybody's: a first configuration has thousands of listeners.
        for bind in &old.addresses {
            if self.handed_over.get(&bind.address).is_some_and(|owner| **owner == *name) {
                self.handed_over.remove(&bind.address);
            }
        }
    }

    /// The routes that a manager uses; `None` while RDS has not named them.
    pub fn routes_of<'p>(&'p self, manager: &'p HttpManager) -> Option<&'p Arc<RouteTable>> {
        match &manager.routes {
            RouteSource::Inline(table) => Some(table),
            RouteSource::Named { name, .. } => self.routes.get(name),
        }
    }

    /// The endpoints of a cluster; `None` while EDS has not named them, or for a cluster that only the proxy
    /// itself finds: by DNS, or by the original destination.
    pub fn assignment_of<'p>(&'p self, cluster: &'p Cluster) -> Option<&'p Arc<LoadAssignment>> {
        match &cluster.discovery {
            crate::cluster::Discovery::Static(assignment) => Some(assignment),
            crate::cluster::Discovery::Eds { name, .. } => self.assignments.get(name),
            crate::cluster::Discovery::Dns(_) | crate::cluster::Discovery::OriginalDst => None,
        }
    }

    /// The listener that takes a connection which `capturing` accepted: one with the exact original destination, one on the wildcard
    /// address of its family and its port, else `capturing` itself. Only listeners that do not bind a port of their own are looked at,
    /// and only if `capturing` hands over (`use_original_dst`).
    pub fn listener_for<'p>(&'p self, capturing: &'p Arc<Listener>, destination: SocketAddr) -> &'p Arc<Listener> {
        if !capturing.use_original_dst {
            return capturing;
        }
        let wildcard = match destination.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        self.handed_over
            .get(&destination)
            .or_else(|| self.handed_over.get(&SocketAddr::new(wildcard, destination.port())))
            .and_then(|name| self.listeners.get(name))
            .filter(|listener| listener.name != capturing.name)
            .unwrap_or(capturing)
    }
}

fn decode<M: Message + Default>(value: &[u8]) -> Result<M, Problems> {
    M::decode(value).map_err(|error| {
        Problems::one(std::any::type_name::<M>().rsplit("::").next().unwrap_or_default(), &error.to_string())
    })
}
