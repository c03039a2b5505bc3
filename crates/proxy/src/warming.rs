//! What was accepted, and which of it is at work: pure, without sockets or streams.
//!
//! ```text
//! refused <- accept -> warming -> active        (of one name, an active version stays until the next is warm)
//! ```
//!
//! A cluster is warm when its endpoints and secrets are here (of one that is found by DNS: when something was heard of its
//! names) and its health check, if it has one, has looked at each endpoint once; a listener when its routes and secrets are. Endpoints and
//! routes that do not come in time (`initial_fetch_timeout`) are none. At the start no listener goes to work before the first clusters are
//! warm, or requests would be answered with "no such cluster".
//!
//! Removal of a listener or cluster takes effect at once. Routes and endpoints stay as long as something at work names
//! them, whatever the server says (as in Envoy): what names them is replaced first, and there is no gap.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weft_core::access_log::Sink;
use weft_core::balance::Balancer;
use weft_core::cluster::{Cluster, Discovery};
use weft_core::compile::{Problem, Strictness};
use weft_core::dns::{Dns, Heard, Resolution};
use weft_core::endpoint::{LoadAssignment, Locality};
use weft_core::http_manager::RouteSource;
use weft_core::listener::{Listener, NetworkFilter};
use weft_core::plan::Resource as Compiled;
use weft_core::route::RouteTable;
use weft_core::tls::{SecretName, UpstreamTls};
use weft_protos::type_url;
use weft_xds::Refusal;
use weft_xds::client::Resource;

use crate::listen;
use crate::logging;
use crate::plan::{Active, ByAddress, ChainContext, SocketKey, Upstream, address_of};
use crate::record::Log;
use crate::state::Entry;
use crate::tls::context::{ClientContext, ContextError, Secrets, ServerContext};
use crate::tls::secrets;
use crate::tls::tickets::KeyRing;
use crate::virtual_hosts::{VirtualHosts, table_of};

mod shown;

pub use shown::{Shown, State};

type Name = Arc<str>;

/// A resource: type URL and name.
pub type Key = (&'static str, Arc<str>);

/// One accepted resource.
struct Stored<T> {
    value: Arc<T>,
    body: Bytes,
    version: String,
    needs: Box<[SecretName]>,
    /// What of it is accepted although nothing is done about it.
    not_applied: Box<[Problem]>,
}

impl<T> Stored<T> {
    /// What stands for a resource that is not there.
    fn absent(value: T) -> Stored<T> {
        Stored {
            value: Arc::new(value),
            body: Bytes::new(),
            version: String::new(),
            needs: Box::default(),
            not_applied: Box::default(),
        }
    }

    /// One that is there has a body, which names it.
    fn is_absent(&self) -> bool {
        self.body.is_empty()
    }
}

/// What is kept beside a compiled resource.
struct Beside {
    needs: Box<[SecretName]>,
    not_applied: Box<[Problem]>,
}

/// A secret's version, and a number that no other arrival has.
struct SecretMark {
    version: String,
    mark: u64,
}

struct ListenerAtWork {
    stored: Arc<Stored<Listener>>,
    marks: Vec<u64>,
    chains: Vec<Arc<ChainContext>>,
    connection_logs: Arc<[Log]>,
}

#[derive(Clone)]
struct ClusterAtWork {
    stored: Arc<Stored<Cluster>>,
    marks: Vec<u64>,
    assignment: Option<Arc<LoadAssignment>>,
    upstream: Arc<Upstream>,
}

/// A cluster at work.
pub struct AtWork<'h> {
    pub name: &'h Name,
    /// Of the bootstrap.
    pub is_static: bool,
    /// Those that discovery names now.
    pub localities: &'h [Locality],
    pub upstream: &'h Arc<Upstream>,
}

/// Why something is not at work.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Obstacle {
    /// Something has to arrive first.
    Missing(String),
    /// It cannot work with what is here.
    Broken(String),
}

impl Obstacle {
    fn reason(&self) -> &str {
        match self {
            Obstacle::Missing(reason) | Obstacle::Broken(reason) => reason,
        }
    }
}

impl From<Vec<ContextError>> for Obstacle {
    fn from(errors: Vec<ContextError>) -> Obstacle {
        let is_missing = |error: &ContextError| matches!(error, ContextError::Missing(_));
        let reason = joined(&errors);
        if errors.iter().all(is_missing) { Obstacle::Missing(reason) } else { Obstacle::Broken(reason) }
    }
}

/// What has to be subscribed to by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub routes: BTreeSet<Name>,
    pub assignments: BTreeSet<Name>,
    /// What has to be resolved, by cluster.
    pub names: BTreeMap<Name, Arc<Dns>>,
    /// By the cluster that serves them, `None` for ADS.
    pub secrets: BTreeMap<Option<Name>, BTreeSet<Name>>,
    /// Of routes and assignments those that have not come, and how long they are waited for, if not without end.
    pub missing: BTreeMap<Key, Duration>,
}

/// What became of one response.
#[derive(Debug, Default)]
pub struct Outcome {
    pub refusals: Vec<Refusal>,
    /// What was accepted although nothing is done about it, with the resource's name; each reason only when it is met first.
    pub not_applied: Vec<(String, Problem)>,
    /// There is something new to [`Holdings::settle`].
    pub changed: bool,
}

/// All that was accepted.
#[derive(Default)]
pub struct Holdings {
    listeners: BTreeMap<Name, Arc<Stored<Listener>>>,
    clusters: BTreeMap<Name, Arc<Stored<Cluster>>>,
    routes: BTreeMap<Name, Stored<RouteTable>>,
    /// That came by themselves.
    virtual_hosts: VirtualHosts,
    /// Resources come by the delta protocol, the only one that has virtual hosts by themselves.
    speaks_delta: bool,
    assignments: BTreeMap<Name, Stored<LoadAssignment>>,
    /// What is known of the names of clusters, of the newest version of each.
    resolutions: BTreeMap<Name, Resolution>,
    secrets: Secrets,
    secret_marks: BTreeMap<SecretName, SecretMark>,
    /// Seals the session tickets of all listeners, whatever becomes of their contexts.
    ticket_keys: Arc<KeyRing>,
    listeners_at_work: BTreeMap<Name, ListenerAtWork>,
    clusters_at_work: BTreeMap<Name, ClusterAtWork>,
    /// Versions that lack nothing but the first checks of their endpoints.
    clusters_in_check: BTreeMap<Name, ClusterAtWork>,
    /// By type URL and name: why the newest version is not at work.
    obstacles: BTreeMap<Key, Obstacle>,
    /// By type URL, name and the cluster whose server sent it: version and reason of what was refused last.
    refused: BTreeMap<(String, String, Option<Name>), (String, String)>,
    /// Reasons of what is not applied that were told.
    told: HashSet<String>,
    wanted: Wanted,
    /// Clusters of the bootstrap, where secrets may come from and records may go to.
    static_clusters: HashSet<String>,
    /// By type URL and name: resources of the bootstrap, which no control plane replaces or removes.
    fixed: HashSet<Key>,
    got_listeners: bool,
    got_clusters: bool,
    /// Listeners may go to work.
    clusters_are_warm: bool,
    live: bool,
    next_mark: u64,
    seed: u64,
}

impl Holdings {
    /// `seed`: where round robin begins; `static_clusters`: clusters that may be named as the source of a secret.
    pub fn new(seed: u64, static_clusters: impl IntoIterator<Item = String>) -> Holdings {
        Holdings { seed, static_clusters: static_clusters.into_iter().collect(), ..Holdings::default() }
    }

    /// Take a response in. *source*: the cluster whose server of secrets sent it, if it is not of the control plane. *open* opens the sockets
    /// of a listener; one that cannot be opened is refused.
    pub fn accept(
        &mut self,
        source: Option<&Name>,
        type_url: &str,
        resources: Vec<Resource>,
        removed: Vec<String>,
        mut open: impl FnMut(&Listener) -> Result<(), String>,
    ) -> Outcome {
        if source.is_some() && type_url != type_url::SECRET {
            let reason = "a server of secrets serves nothing else";
            let refusal = |resource: Resource| Refusal { name: resource.name, reason: reason.into() };
            return Outcome { refusals: resources.into_iter().map(refusal).collect(), ..Outcome::default() };
        }
        let mut changed = false;
        for name in removed {
            self.refused.remove(&(type_url.to_owned(), name.clone(), source.cloned()));
            changed |= self.remove(type_url, name.as_str().into());
        }
        let mut claimed = self.claimed_sockets(type_url, &resources);
        let mut refusals = Vec::new();
        let mut not_applied = Vec::new();
        for resource in resources {
            let Resource { name, version, .. } = resource.clone();
            let key = (type_url.to_owned(), name.clone(), source.cloned());
            match self.accept_one(source, type_url, resource, &mut claimed, &mut open) {
                Ok((new, passed_over)) => {
                    changed |= new;
                    let first = passed_over.into_iter().filter(|problem| self.told.insert(problem.reason.clone()));
                    not_applied.extend(first.map(|problem| (name.clone(), problem)));
                    self.refused.remove(&key);
                }
                Err(reason) => {
                    self.refused.insert(key, (version, reason.clone()));
                    refusals.push(Refusal { name, reason });
                }
            }
        }
        Outcome { refusals, not_applied, changed }
    }

    /// Take a resource of the bootstrap in; it stays as it is to the end of the process.
    pub fn accept_static(
        &mut self,
        type_url: &'static str,
        resource: Resource,
        open: impl FnMut(&Listener) -> Result<(), String>,
    ) -> Outcome {
        let name = resource.name.clone();
        if self.is_fixed(type_url, &name) {
            let refusal = Refusal { name, reason: "the bootstrap has another one of this name".into() };
            return Outcome { refusals: vec![refusal], ..Outcome::default() };
        }
        let outcome = self.accept(None, type_url, vec![resource], Vec::new(), open);
        self.fixed.insert((type_url, name.into()));
        outcome
    }

    /// Resources come by the delta protocol.
    pub fn speak_delta(&mut self) {
        self.speaks_delta = true;
    }

    /// Types that nobody sends, besides what the bootstrap holds, are not waited for.
    pub fn await_no_other(&mut self, listeners: bool, clusters: bool) {
        self.got_listeners |= !listeners;
        self.got_clusters |= !clusters;
    }

    fn is_fixed(&self, type_url: &str, name: &str) -> bool {
        // Few proxies have any, and none has many.
        self.fixed.iter().any(|(fixed, known)| *fixed == type_url && **known == *name)
    }

    /// A response about this type is here, be it empty; whether it is the first.
    pub fn note_arrival(&mut self, type_url: &str) -> bool {
        let got = match type_url {
            type_url::LISTENER => &mut self.got_listeners,
            type_url::CLUSTER => &mut self.got_clusters,
            _ => return false,
        };
        !std::mem::replace(got, true)
    }

    fn remove(&mut self, type_url: &str, name: Name) -> bool {
        match type_url {
            _ if self.is_fixed(type_url, &name) => false,
            type_url::LISTENER => {
                self.obstacles.remove(&(type_url::LISTENER, Arc::clone(&name)));
                self.listeners_at_work.remove(&name).is_some() | self.listeners.remove(&name).is_some()
            }
            type_url::CLUSTER => {
                self.obstacles.remove(&(type_url::CLUSTER, Arc::clone(&name)));
                self.clusters_in_check.remove(&name);
                self.clusters_at_work.remove(&name).is_some() | self.clusters.remove(&name).is_some()
            }
            type_url::VIRTUAL_HOST => self.virtual_hosts.remove(&name),
            // "Does not exist" is an answer: a cluster that waits for it has no endpoints.
            type_url::CLUSTER_LOAD_ASSIGNMENT => self.do_without(&(type_url::CLUSTER_LOAD_ASSIGNMENT, name)),
            _ => false,
        }
    }

    /// Wait no longer for something that others name: endpoints are none then, and routes lead nowhere. Returns whether it was waited for.
    pub fn do_without(&mut self, (type_url, name): &Key) -> bool {
        match *type_url {
            type_url::CLUSTER_LOAD_ASSIGNMENT
                if self.wanted.assignments.contains(name) && !self.assignments.contains_key(name) =>
            {
                let empty = LoadAssignment {
                    name: Arc::clone(name),
                    localities: Box::default(),
                    overprovisioning_factor: LoadAssignment::DEFAULT_OVERPROVISIONING,
                };
                self.assignments.insert(Arc::clone(name), Stored::absent(empty));
                true
            }
            type_url::ROUTE_CONFIGURATION if self.wanted.routes.contains(name) && !self.routes.contains_key(name) => {
                self.routes.insert(Arc::clone(name), Stored::absent(RouteTable::empty(name)));
                true
            }
            _ => false,
        }
    }

    /// Sockets of accepted listeners that stay as they are under this response.
    fn claimed_sockets(&self, type_url: &str, resources: &[Resource]) -> HashMap<SocketKey, Name> {
        if type_url != type_url::LISTENER {
            return HashMap::new();
        }
        let new: HashSet<&str> = resources.iter().map(|resource| resource.name.as_str()).collect();
        self.listeners
            .iter()
            .filter(|(name, _)| !new.contains(&***name))
            .flat_map(|(name, stored)| listen::keys(&stored.value).map(|key| (key, Arc::clone(name))))
            .collect()
    }

    /// Compile one resource and keep it; whether it differs from what was here, and what of it is not applied.
    fn accept_one(
        &mut self,
        source: Option<&Name>,
        type_url: &str,
        resource: Resource,
        claimed: &mut HashMap<SocketKey, Name>,
        open: &mut impl FnMut(&Listener) -> Result<(), String>,
    ) -> Result<(bool, Vec<Problem>), String> {
        if type_url == type_url::SECRET {
            return self.accept_secret(source, resource).map(|new| (new, Vec::new()));
        }
        if type_url == type_url::VIRTUAL_HOST {
            let base = self.routes.get(table_of(&resource.name)).map(|stored| &*stored.value);
            return self.virtual_hosts.accept(base, resource);
        }
        let compiled =
            Compiled::compile(type_url, &resource.body, Strictness::Refuse).map_err(|problems| problems.to_string())?;
        let not_applied = compiled.not_applied;
        let compiled = compiled.value;
        let name = Arc::clone(compiled.name());
        if self.is_fixed(type_url, &name) {
            return Err(format!("{name} is in the bootstrap, and stays as it is there"));
        }
        if *name != *resource.name {
            return Err(format!("published as {}, but it calls itself {name}", resource.name));
        }
        let broken = broken(&compiled, &self.secrets);
        if !broken.is_empty() {
            return Err(joined(&broken));
        }
        let with = |needs: Box<[SecretName]>| Beside { needs, not_applied: not_applied.clone().into() };
        let new = match compiled {
            Compiled::Cluster(cluster) => {
                let needs = self.known_sources(cluster.secrets())?;
                replace(&mut self.clusters, name, resource, cluster, with(needs))
            }
            Compiled::Listener(listener) => {
                let needs = self.known_sources(listener.secrets())?;
                self.know_log_services(&listener)?;
                if let Some((key, owner)) = listen::keys(&listener).find_map(|key| claimed.get_key_value(&key)) {
                    return Err(format!("{} is the address of listener {owner}", key.address));
                }
                open(&listener)?;
                claimed.extend(listen::keys(&listener).map(|key| (key, Arc::clone(&name))));
                replace(&mut self.listeners, name, resource, listener, with(needs))
            }
            Compiled::Routes(routes) => {
                if routes.is_on_demand() && !self.speaks_delta {
                    return Err("RouteConfiguration.vhds: virtual hosts come by the delta protocol only".into());
                }
                if self.routes.get(&name).is_none_or(|old| old.body != resource.body) {
                    self.virtual_hosts.rebase(&routes)?;
                }
                replace_plain(&mut self.routes, name, resource, routes, with(Box::default()))
            }
            Compiled::Assignment(assignment) => {
                replace_plain(&mut self.assignments, name, resource, assignment, with(Box::default()))
            }
        };
        Ok((new, not_applied))
    }

    fn accept_secret(&mut self, source: Option<&Name>, resource: Resource) -> Result<bool, String> {
        let (own_name, secret) = secrets::decode(&resource.body).map_err(|problems| problems.to_string())?;
        if own_name != resource.name {
            return Err(format!("published as {}, but it calls itself {own_name}", resource.name));
        }
        log::debug!(target: logging::TLS, "{} is now {secret}", resource.name);
        let name = SecretName { name: resource.name.as_str().into(), cluster: source.cloned() };
        self.next_mark += 1;
        let mark = SecretMark { version: resource.version, mark: self.next_mark };
        self.secrets.insert(name.clone(), secret);
        self.secret_marks.insert(name, mark);
        Ok(true)
    }

    fn known_sources(&self, needs: Vec<SecretName>) -> Result<Box<[SecretName]>, String> {
        for secret in &needs {
            if let Some(cluster) = secret.cluster.as_deref().filter(|cluster| !self.static_clusters.contains(*cluster))
            {
                return Err(format!(
                    "secret {} comes from {cluster}, which is no cluster of the bootstrap",
                    secret.name
                ));
            }
        }
        Ok(needs.into())
    }

    fn know_log_services(&self, listener: &Listener) -> Result<(), String> {
        let clusters = listener.all_logs().filter_map(|log| match &log.sink {
            Sink::Service(service) => Some(&*service.cluster),
            Sink::File { .. } => None,
        });
        match clusters.into_iter().find(|cluster| !self.static_clusters.contains(*cluster)) {
            Some(cluster) => Err(format!("access records go to {cluster}, which is no cluster of the bootstrap")),
            None => Ok(()),
        }
    }

    /// Decide what is at work, forget what nobody names any more, and make the next generation of *previous*.
    pub fn settle(&mut self, previous: &Active) -> Active {
        self.settle_resolutions();
        self.settle_clusters();
        self.settle_listeners();
        self.wanted = self.gather_wanted();
        self.routes.retain(|name, _| self.wanted.routes.contains(name));
        self.virtual_hosts.settle(|name| self.routes.get(name).map(|stored| &stored.value));
        self.assignments.retain(|name, _| self.wanted.assignments.contains(name));
        let is_wanted = |secret: &SecretName| {
            let names = self.wanted.secrets.get(&secret.cluster);
            names.is_some_and(|names| names.contains(&secret.name))
        };
        self.secrets.retain(|secret, _| is_wanted(secret));
        self.secret_marks.retain(|secret, _| is_wanted(secret));
        let waiting = self.obstacles.values().any(|obstacle| matches!(obstacle, Obstacle::Missing(_)));
        self.live |= self.got_listeners && self.got_clusters && !waiting;
        self.generation(previous)
    }

    /// Take in what became of a lookup for *cluster*: addresses, or `None` if nothing is known. An answer to a question of before is none.
    pub fn hear(&mut self, cluster: &Name, dns: &Arc<Dns>, name: &Name, answer: Option<Vec<IpAddr>>) -> Heard {
        match self.resolutions.get_mut(cluster) {
            Some(resolution) if Arc::ptr_eq(resolution.dns(), dns) => resolution.hear(name, answer),
            _ => Heard { succeeded: answer.is_some(), changed: false },
        }
    }

    /// Begin to resolve what is new. A cluster whose names and how they are asked for stay needs no new answers.
    fn settle_resolutions(&mut self) {
        let mut before = std::mem::take(&mut self.resolutions);
        for (name, stored) in &self.clusters {
            let Discovery::Dns(dns) = &stored.value.discovery else { continue };
            let resolution = match before.remove(name) {
                Some(old) if old.dns() == dns => old,
                old => Resolution::new(Arc::clone(dns), old.as_ref()),
            };
            self.resolutions.insert(Arc::clone(name), resolution);
        }
    }

    fn settle_clusters(&mut self) {
        let mut before = std::mem::take(&mut self.clusters_at_work);
        let mut in_check = std::mem::take(&mut self.clusters_in_check);
        let mut at_work = BTreeMap::new();
        for (name, stored) in &self.clusters {
            let old = before.remove(name);
            let key = (type_url::CLUSTER, Arc::clone(name));
            let is_same = |other: &&ClusterAtWork| Arc::ptr_eq(&other.stored.value, &stored.value);
            let candidate = in_check.remove(name);
            let base = candidate.as_ref().filter(is_same).or(old.as_ref());
            let warm = match self.warm_cluster(stored, base) {
                // Once at work, it has new endpoints that wait for their checks.
                Ok(cluster) if old.as_ref().filter(is_same).is_none() && !cluster.upstream.is_checked() => {
                    self.clusters_in_check.insert(Arc::clone(name), cluster);
                    Err(Obstacle::Missing("its endpoints have not all been checked yet".into()))
                }
                result => result,
            };
            let now = match warm {
                Ok(cluster) => {
                    self.obstacles.remove(&key);
                    Some(cluster)
                }
                Err(obstacle) => {
                    self.obstacles.insert(key, obstacle);
                    // The old version goes on, with endpoints and secrets as of now where that is possible.
                    old.map(|old| self.warm_cluster(&old.stored, Some(&old)).unwrap_or(old))
                }
            };
            at_work.extend(now.map(|cluster| (Arc::clone(name), cluster)));
        }
        self.clusters_at_work = at_work;
        let waiting = self
            .obstacles
            .iter()
            .any(|((type_url, _), why)| *type_url == type_url::CLUSTER && matches!(why, Obstacle::Missing(_)));
        self.clusters_are_warm |= self.got_clusters && !waiting;
    }

    fn settle_listeners(&mut self) {
        let mut before = std::mem::take(&mut self.listeners_at_work);
        let mut at_work = BTreeMap::new();
        for (name, stored) in &self.listeners {
            let old = before.remove(name);
            let key = (type_url::LISTENER, Arc::clone(name));
            let now = match self.warm_listener(stored, old.as_ref()) {
                Ok(listener) => {
                    self.obstacles.remove(&key);
                    Some(listener)
                }
                Err(obstacle) => {
                    self.obstacles.insert(key, obstacle);
                    old.map(|old| self.warm_listener(&old.stored, Some(&old)).unwrap_or(old))
                }
            };
            at_work.extend(now.map(|listener| (Arc::clone(name), listener)));
        }
        self.listeners_at_work = at_work;
    }

    fn warm_cluster(
        &self,
        stored: &Arc<Stored<Cluster>>,
        old: Option<&ClusterAtWork>,
    ) -> Result<ClusterAtWork, Obstacle> {
        let cluster = &stored.value;
        let assignment = match &cluster.discovery {
            Discovery::Static(assignment) => Some(Arc::clone(assignment)),
            Discovery::Eds { name, .. } => match self.assignments.get(name) {
                Some(stored) => Some(Arc::clone(&stored.value)),
                None => return Err(Obstacle::Missing(format!("endpoints {name} have not arrived"))),
            },
            Discovery::Dns(dns) => match self.resolutions.get(&cluster.name) {
                Some(known) if known.dns() == dns && (known.is_warm() || !dns.waits) => {
                    Some(Arc::clone(known.assignment()))
                }
                _ => return Err(Obstacle::Missing(format!("{} not resolved yet", listed(dns)))),
            },
            Discovery::OriginalDst => None,
        };
        let marks = self.marks(&stored.needs)?;
        let same = old.filter(|old| Arc::ptr_eq(&old.stored.value, cluster));
        let same_secrets = same.filter(|old| old.marks == marks);
        let same_endpoints = same.filter(|old| match (&old.assignment, &assignment) {
            _ if old.upstream.balancer.as_ref().is_some_and(|balancer| balancer.has_left()) => false,
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        });
        let upstream = match (same_secrets, same_endpoints) {
            (Some(old), Some(_)) => Arc::clone(&old.upstream),
            _ => Arc::new(Upstream {
                cluster: Arc::clone(cluster),
                balancer: match same_endpoints {
                    Some(old) => old.upstream.balancer.clone(),
                    None => assignment.as_deref().map(|assignment| {
                        let previous = old.and_then(|old| old.upstream.balancer.as_deref());
                        Balancer::new(cluster, assignment, previous, self.seed)
                    }),
                },
                breakers: old.map(|old| Arc::clone(&old.upstream.breakers)).unwrap_or_default(),
                tls: match same_secrets {
                    Some(old) => old.upstream.tls.clone(),
                    None => self.client_contexts(cluster)?,
                },
            }),
        };
        Ok(ClusterAtWork { stored: Arc::clone(stored), marks, assignment, upstream })
    }

    fn warm_listener(
        &self,
        stored: &Arc<Stored<Listener>>,
        old: Option<&ListenerAtWork>,
    ) -> Result<ListenerAtWork, Obstacle> {
        if !self.clusters_are_warm {
            return Err(Obstacle::Missing("the first clusters are not all warm".into()));
        }
        if let Some((name, _)) = route_names(&stored.value).find(|(name, _)| !self.routes.contains_key(*name)) {
            return Err(Obstacle::Missing(format!("routes {name} have not arrived")));
        }
        let marks = self.marks(&stored.needs)?;
        let chains = match old {
            Some(old) if Arc::ptr_eq(&old.stored.value, &stored.value) && old.marks == marks => old.chains.clone(),
            _ => self.chain_contexts(&stored.value)?,
        };
        let connection_logs = match old {
            Some(old) if Arc::ptr_eq(&old.stored.value, &stored.value) => Arc::clone(&old.connection_logs),
            _ => Log::compile_all(&stored.value.access_logs).into(),
        };
        Ok(ListenerAtWork { stored: Arc::clone(stored), marks, chains, connection_logs })
    }

    fn marks(&self, needs: &[SecretName]) -> Result<Vec<u64>, Obstacle> {
        needs
            .iter()
            .map(|secret| {
                let mark = self.secret_marks.get(secret).map(|mark| mark.mark);
                mark.ok_or_else(|| vec![ContextError::Missing(Arc::clone(&secret.name))].into())
            })
            .collect()
    }

    fn client_contexts(&self, cluster: &Cluster) -> Result<ByAddress<Arc<ClientContext>>, Obstacle> {
        transports(cluster)
            .map(|tls| Ok((address_of(tls), Arc::new(ClientContext::new(tls, &self.secrets)?))))
            .collect()
    }

    fn chain_contexts(&self, listener: &Listener) -> Result<Vec<Arc<ChainContext>>, Obstacle> {
        listener
            .all_chains()
            .map(|chain| {
                let tls = match &chain.tls {
                    Some(tls) => Some(ServerContext::new(tls, &self.secrets, &self.ticket_keys)?),
                    None => None,
                };
                Ok(Arc::new(ChainContext::new(Arc::clone(chain), tls)))
            })
            .collect()
    }

    fn gather_wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        let clusters = self.clusters.values().chain(self.clusters_at_work.values().map(|cluster| &cluster.stored));
        let listeners = self.listeners.values().chain(self.listeners_at_work.values().map(|listener| &listener.stored));
        let mut secrets: Vec<&SecretName> = Vec::new();
        let mut missing: BTreeMap<Key, Option<Duration>> = BTreeMap::new();
        // Who waits longest for something decides.
        let mut miss = |key: Key, limit: Option<Duration>| {
            let known = missing.entry(key).or_insert(limit);
            *known = known.zip(limit).map(|(one, other)| one.max(other));
        };
        for stored in clusters {
            if let Discovery::Eds { name, initial_fetch_timeout } = &stored.value.discovery {
                if !self.assignments.contains_key(name) {
                    miss((type_url::CLUSTER_LOAD_ASSIGNMENT, Arc::clone(name)), *initial_fetch_timeout);
                }
                wanted.assignments.insert(Arc::clone(name));
            }
            secrets.extend(&stored.needs);
        }
        for stored in listeners {
            for (name, initial_fetch_timeout) in route_names(&stored.value) {
                if !self.routes.contains_key(name) {
                    miss((type_url::ROUTE_CONFIGURATION, Arc::clone(name)), initial_fetch_timeout);
                }
                wanted.routes.insert(Arc::clone(name));
            }
            secrets.extend(&stored.needs);
        }
        wanted.missing = missing.into_iter().filter_map(|(key, limit)| Some((key, limit?))).collect();
        wanted.names = self.resolutions.iter().map(|(name, it)| (Arc::clone(name), Arc::clone(it.dns()))).collect();
        for secret in secrets {
            wanted.secrets.entry(secret.cluster.clone()).or_default().insert(Arc::clone(&secret.name));
        }
        wanted
    }

    fn generation(&self, previous: &Active) -> Active {
        let mut core = previous.core.clone();
        for name in previous.core.listeners.keys().filter(|name| !self.listeners_at_work.contains_key(*name)) {
            core.remove(type_url::LISTENER, name);
        }
        let mut chains = ByAddress::default();
        let mut sockets = HashMap::new();
        let mut connection_logs = ByAddress::default();
        for (name, at_work) in &self.listeners_at_work {
            let listener = &at_work.stored.value;
            if core.listeners.get(name).is_none_or(|old| !Arc::ptr_eq(old, listener)) {
                core.insert(Compiled::Listener(Arc::clone(listener)));
            }
            chains.extend(at_work.chains.iter().map(|context| (address_of(&context.chain), Arc::clone(context))));
            if !at_work.connection_logs.is_empty() {
                connection_logs.insert(address_of(listener), Arc::clone(&at_work.connection_logs));
            }
            for key in listen::keys(listener) {
                sockets.entry(key).or_insert_with(|| Arc::clone(listener));
            }
        }
        let clusters = &self.clusters_at_work;
        core.clusters = clusters.iter().map(|(name, it)| (Arc::clone(name), Arc::clone(&it.stored.value))).collect();
        let table = |name: &Name, own| Arc::clone(self.virtual_hosts.table(name).unwrap_or(own));
        core.routes = self.routes.iter().map(|(name, it)| (Arc::clone(name), table(name, &it.value))).collect();
        core.assignments =
            self.assignments.iter().map(|(name, it)| (Arc::clone(name), Arc::clone(&it.value))).collect();
        let upstreams = clusters.values().map(|it| (address_of(&it.stored.value), Arc::clone(&it.upstream))).collect();
        Active { core, upstreams, chains, sockets, connection_logs }
    }

    /// Let listeners go to work though some of the first clusters are not warm.
    pub fn wait_no_longer(&mut self) -> bool {
        !std::mem::replace(&mut self.clusters_are_warm, true)
    }

    /// The first answer about clusters is here.
    pub fn knows_clusters(&self) -> bool {
        self.got_clusters
    }

    /// The first listeners and clusters are at work.
    pub fn is_live(&self) -> bool {
        self.live
    }

    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Whether virtual hosts of this route configuration come by themselves.
    pub fn is_on_demand(&self, table: &str) -> bool {
        self.routes.get(table).is_some_and(|stored| stored.value.is_on_demand())
    }

    /// Whether any do.
    pub fn has_on_demand(&self) -> bool {
        self.routes.values().any(|stored| stored.value.is_on_demand())
    }

    /// Whether a route configuration has a virtual host for *host*.
    pub fn has_virtual_host(&self, table: &str, host: &str) -> bool {
        let own = || self.routes.get(table).map(|stored| &stored.value);
        let table = self.virtual_hosts.table(table).or_else(own);
        table.is_some_and(|table| table.virtual_host(host.as_bytes()).is_some())
    }

    /// Whether a virtual host came by itself under this name.
    pub fn holds_virtual_host(&self, name: &str) -> bool {
        self.virtual_hosts.holds(name)
    }

    /// Names of the virtual hosts that came by themselves.
    pub fn virtual_hosts(&self) -> BTreeSet<String> {
        self.virtual_hosts.names()
    }

    /// Sockets of every accepted listener, at work or not.
    pub fn accepted_sockets(&self) -> HashSet<SocketKey> {
        self.listeners.values().flat_map(|stored| listen::keys(&stored.value).collect::<Vec<_>>()).collect()
    }

    /// Clusters at work.
    pub fn clusters(&self) -> impl Iterator<Item = AtWork<'_>> {
        self.clusters_at_work.iter().map(|(name, cluster)| AtWork {
            name,
            is_static: self.is_fixed(type_url::CLUSTER, name),
            localities: cluster.assignment.as_ref().map_or(&[], |assignment| &assignment.localities),
            upstream: &cluster.upstream,
        })
    }

    /// Clusters whose endpoints are checked: those at work, then versions that are to take their places.
    pub fn checked(&self) -> impl Iterator<Item = (&Name, &Arc<Upstream>)> {
        self.clusters_at_work
            .iter()
            .chain(&self.clusters_in_check)
            .map(|(name, cluster)| (name, &cluster.upstream))
            .filter(|(_, upstream)| upstream.cluster.health_check.is_some())
    }

    /// The balancers of all versions of a cluster.
    pub fn balancers(&self, name: &str) -> impl Iterator<Item = &Arc<Balancer>> {
        [self.clusters_at_work.get(name), self.clusters_in_check.get(name)]
            .into_iter()
            .flatten()
            .filter_map(|cluster| cluster.upstream.balancer.as_ref())
    }

    /// Listeners at work.
    pub fn listeners(&self) -> impl Iterator<Item = (&Name, &Arc<Listener>)> {
        self.listeners_at_work.iter().map(|(name, listener)| (name, &listener.stored.value))
    }

    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// What a restart needs; without secrets.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |type_url: &str, name: &Name, version: &str, body: &Bytes| Entry {
            type_url: type_url.into(),
            name: name.as_ref().into(),
            version: version.into(),
            body: body.clone(),
        };
        let mut entries: Vec<Entry> = Vec::new();
        let is_sent = |type_url: &str, name: &Name| !self.is_fixed(type_url, name);
        let clusters = self.clusters.iter().filter(|(name, _)| is_sent(type_url::CLUSTER, name));
        entries.extend(clusters.map(|(name, it)| entry(type_url::CLUSTER, name, &it.version, &it.body)));
        entries.extend(
            self.assignments
                .iter()
                .filter(|(_, it)| !it.is_absent())
                .map(|(name, it)| entry(type_url::CLUSTER_LOAD_ASSIGNMENT, name, &it.version, &it.body)),
        );
        let listeners = self.listeners.iter().filter(|(name, _)| is_sent(type_url::LISTENER, name));
        entries.extend(listeners.map(|(name, it)| entry(type_url::LISTENER, name, &it.version, &it.body)));
        entries.extend(
            self.routes
                .iter()
                .filter(|(_, it)| !it.is_absent())
                .map(|(name, it)| entry(type_url::ROUTE_CONFIGURATION, name, &it.version, &it.body)),
        );
        let hosts = self.virtual_hosts.iter();
        entries.extend(hosts.map(|(name, it)| entry(type_url::VIRTUAL_HOST, name, &it.version, &it.body)));
        entries
    }
}

/// What of a resource can never be put to work, whatever secrets are yet to come.
pub fn broken(resource: &Compiled, secrets: &Secrets) -> Vec<ContextError> {
    let errors: Vec<Vec<ContextError>> = match resource {
        Compiled::Cluster(cluster) => {
            transports(cluster).filter_map(|tls| ClientContext::new(tls, secrets).err()).collect()
        }
        Compiled::Listener(listener) => {
            let keys = Arc::default();
            let tls = listener.all_chains().filter_map(|chain| chain.tls.as_ref());
            tls.filter_map(|tls| ServerContext::new(tls, secrets, &keys).err()).collect()
        }
        Compiled::Routes(_) | Compiled::Assignment(_) => Vec::new(),
    };
    errors.into_iter().flatten().filter(|error| !matches!(error, ContextError::Missing(_))).collect()
}

fn joined(errors: &[ContextError]) -> String {
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    errors.join("; ")
}

/// Keep a new version; the compiled value stays the same where the bytes do, so that nothing is made anew for it.
fn replace<T>(
    all: &mut BTreeMap<Name, Arc<Stored<T>>>,
    name: Name,
    resource: Resource,
    value: Arc<T>,
    beside: Beside,
) -> bool {
    let same = all.get(&name).filter(|old| old.body == resource.body).map(|old| Arc::clone(&old.value));
    let changed = same.is_none();
    let stored = stored(resource, same.unwrap_or(value), beside);
    all.insert(name, Arc::new(stored));
    changed
}

/// The same for types that are not warmed.
fn replace_plain<T>(
    all: &mut BTreeMap<Name, Stored<T>>,
    name: Name,
    resource: Resource,
    value: Arc<T>,
    beside: Beside,
) -> bool {
    let same = all.get(&name).filter(|old| old.body == resource.body).map(|old| Arc::clone(&old.value));
    let changed = same.is_none();
    all.insert(name, stored(resource, same.unwrap_or(value), beside));
    changed
}

/// Copies the body: a slice of the response would keep all of it in memory.
fn stored<T>(resource: Resource, value: Arc<T>, beside: Beside) -> Stored<T> {
    let Beside { needs, not_applied } = beside;
    Stored { value, body: Bytes::copy_from_slice(&resource.body), version: resource.version, needs, not_applied }
}

/// All TLS that connections to a cluster may begin with.
fn transports(cluster: &Cluster) -> impl Iterator<Item = &Arc<UpstreamTls>> {
    let matches = cluster.transport_matches.iter().map(|candidate| &candidate.socket);
    matches.chain([&cluster.transport]).filter_map(|socket| socket.tls.as_ref())
}

/// `a.example and b.example are`
fn listed(dns: &Dns) -> String {
    let names: Vec<&str> = dns.names().into_iter().map(|name| &**name).collect();
    format!("{} {}", names.join(" and "), if names.len() == 1 { "is" } else { "are" })
}

/// With how long they are waited for.
fn route_names(listener: &Listener) -> impl Iterator<Item = (&Name, Option<Duration>)> {
    listener.all_chains().filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => match &manager.routes {
            RouteSource::Named { name, initial_fetch_timeout } => Some((name, *initial_fetch_timeout)),
            RouteSource::Inline(_) => None,
        },
        NetworkFilter::Tcp(_) | NetworkFilter::Rpc(_) => None,
    })
}

#[cfg(test)]
#[path = "warming_tests.rs"]
mod tests;
