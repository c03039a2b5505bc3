//! Virtual hosts that came by themselves (VHDS), and the route tables that they make with their route configurations.
//!
//! They are kept by name, `<route configuration>/<host entry>`, and compiled with what they inherit. A table with them is put together
//! once for all that arrive in a response.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use weft_core::compile::{Problem, Problems, Strictness};
use weft_core::honoured;
use weft_core::route::{RouteTable, VirtualHost};
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::{Message, type_url};
use weft_xds::client::Resource;

type Name = Arc<str>;

/// One that was accepted.
pub struct Held {
    host: Arc<VirtualHost>,
    pub body: Bytes,
    pub version: String,
    pub not_applied: Box<[Problem]>,
}

/// Those of one route configuration.
#[derive(Default)]
struct Hosts {
    by_name: BTreeMap<Name, Held>,
    /// The name of each domain's host.
    domains: HashMap<String, Name>,
    /// With the route configuration; `None`: to be put together.
    table: Option<Arc<RouteTable>>,
}

/// All of them.
#[derive(Default)]
pub struct VirtualHosts {
    by_table: BTreeMap<Name, Hosts>,
}

/// The route configuration that a virtual host of this name belongs to. Host entries have no slashes.
pub fn table_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(table, _)| table)
}

impl Hosts {
    fn insert(&mut self, name: &Name, held: Held) {
        self.remove(name);
        self.domains.extend(held.host.domains.iter().map(|domain| (domain.to_ascii_lowercase(), Arc::clone(name))));
        self.by_name.insert(Arc::clone(name), held);
        self.table = None;
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(gone) = self.by_name.remove(name) else { return false };
        for domain in &gone.host.domains {
            self.domains.remove(&domain.to_ascii_lowercase());
        }
        self.table = None;
        true
    }
}

impl VirtualHosts {
    /// Compile one for *base*, its route configuration, and keep it; whether it differs from what was here, and what of it is not applied.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn accept(&mut self, base: Option<&RouteTable>, resource: Resource) -> Result<(bool, Vec<Problem>), String> {
        let base = base.ok_or_else(|| format!("there is no route configuration {}", table_of(&resource.name)))?;
        let hosts = self.by_table.entry(Arc::clone(&base.name)).or_default();
        if let Some(same) = hosts.by_name.get_mut(&*resource.name).filter(|held| held.body == resource.body) {
            same.version = resource.version;
            return Ok((false, same.not_applied.to_vec()));
        }
        let (host, not_applied) = compile(base, &resource.body)?;
        let name: Name = resource.name.as_str().into();
        let mut own = BTreeSet::new();
        for domain in &host.domains {
            if !own.insert(domain.to_ascii_lowercase()) {
                return Err(format!("`{domain}` stands more than once in it"));
            }
            let owner = hosts.domains.get(&domain.to_ascii_lowercase()).filter(|owner| **owner != name);
            if owner.is_some() || base.names_domain(domain) {
                let owner = owner.unwrap_or(&base.name);
                return Err(format!("`{domain}` belongs to a virtual host of {owner}"));
            }
        }
        let held = Held {
            host: Arc::new(host),
            // A slice of the response would keep all of it in memory.
            body: Bytes::copy_from_slice(&resource.body),
            version: resource.version,
            not_applied: not_applied.clone().into(),
        };
        hosts.insert(&name, held);
        Ok((true, not_applied))
    }

    /// Whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        self.by_table.get_mut(table_of(name)).is_some_and(|hosts| hosts.remove(name))
    }

    /// Another version of a route configuration: what its virtual hosts inherit may be something else now.
    ///
    /// # Errors
    /// One of them cannot be with it.
    pub fn rebase(&mut self, base: &RouteTable) -> Result<(), String> {
        if !base.is_on_demand() {
            self.by_table.remove(&base.name);
            return Ok(());
        }
        let Some(hosts) = self.by_table.get_mut(&base.name) else { return Ok(()) };
        let mut anew = Vec::with_capacity(hosts.by_name.len());
        for (name, held) in &hosts.by_name {
            let (host, _) =
                compile(base, &held.body).map_err(|reason| format!("with virtual host {name}: {reason}"))?;
            if let Some(domain) = host.domains.iter().find(|domain| base.names_domain(domain)) {
                return Err(format!("`{domain}` belongs to virtual host {name}, too"));
            }
            anew.push(Arc::new(host));
        }
        for (held, host) in hosts.by_name.values_mut().zip(anew) {
            held.host = host;
        }
        hosts.table = None;
        Ok(())
    }

    /// Forget those whose route configuration is none of *bases*, and put tables together.
    pub fn settle<'a>(&mut self, bases: impl Fn(&str) -> Option<&'a Arc<RouteTable>>) {
        self.by_table.retain(|name, hosts| {
            let Some(base) = bases(name).filter(|base| base.is_on_demand()) else { return false };
            hosts.table.get_or_insert_with(|| {
                let added = hosts.by_name.values().map(|held| &held.host);
                // No two have a domain: see `accept` and `rebase`.
                base.with_virtual_hosts(added).map_or_else(|_| Arc::clone(base), Arc::new)
            });
            true
        });
    }

    /// A route configuration with the virtual hosts that came by themselves, if any did.
    pub fn table(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.by_table.get(name)?.table.as_ref()
    }

    pub fn holds(&self, name: &str) -> bool {
        self.by_table.get(table_of(name)).is_some_and(|hosts| hosts.by_name.contains_key(name))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Held)> {
        self.by_table.values().flat_map(|hosts| &hosts.by_name)
    }

    pub fn names(&self) -> BTreeSet<String> {
        self.iter().map(|(name, _)| name.to_string()).collect()
    }
}

fn compile(base: &RouteTable, body: &Bytes) -> Result<(VirtualHost, Vec<Problem>), String> {
    let problems = honoured::walk(type_url::VIRTUAL_HOST, body);
    if !problems.is_empty() {
        return Err(Problems(problems).to_string());
    }
    let host = proto::VirtualHost::decode(body.clone()).map_err(|error| error.to_string())?;
    let compiled = base.compile_virtual_host(&host, Strictness::Refuse).map_err(|problems| problems.to_string())?;
    Ok((compiled.value, compiled.not_applied))
}
