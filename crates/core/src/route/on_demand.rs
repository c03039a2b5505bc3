//! Virtual hosts that come by themselves (VHDS): each is compiled with what it takes from its route configuration, and both together
//! make the table that requests are routed by.

use std::borrow::Cow;
use std::sync::Arc;

use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::envoy::config::route::v3::route_action::RequestMirrorPolicy;

use super::compile::virtual_host;
use super::domains::{Domains, without_port};
use super::{RouteTable, VirtualHost};
use crate::compile::{Compiled, Context, Problems, Strictness};

/// The longest name that DNS has (RFC 1035 2.3.4: 255 bytes as it travels, of which two are no text), and a port.
const MAX_ENTRY_BYTES: usize = 253 + ":65535".len();

/// What the compiled form of a route configuration does not tell any more.
#[derive(Debug, Clone)]
pub(super) struct Inheritance {
    pub(super) max_body_bytes: usize,
    pub(super) mirrors: Box<[RequestMirrorPolicy]>,
}

impl RouteTable {
    /// Whether virtual hosts may be added: the resource has `vhds`.
    pub fn is_on_demand(&self) -> bool {
        self.on_demand.is_some()
    }

    /// What the virtual host of *authority* is asked for by: `reviews:9080`, in lower case, without the port where ports do not matter.
    /// `None`: it is longer than the name of any host, and the control plane is not to hear of it.
    pub fn host_entry<'a>(&self, authority: &'a [u8]) -> Option<Cow<'a, str>> {
        let host = if self.domains.ignores_port() { without_port(authority) } else { authority };
        if host.len() > MAX_ENTRY_BYTES {
            return None;
        }
        Some(match String::from_utf8_lossy(host) {
            Cow::Borrowed(host) if !host.bytes().any(|byte| byte.is_ascii_uppercase()) => Cow::Borrowed(host),
            host => Cow::Owned(host.to_ascii_lowercase()),
        })
    }

    /// Whether a virtual host has exactly this domain, in any case.
    pub fn names_domain(&self, domain: &str) -> bool {
        self.domains.names(domain)
    }

    /// Compile a virtual host that came by itself. Its name in problems is `VirtualHost`.
    ///
    /// # Errors
    /// Everything in it that weft cannot honour; that the table takes no more virtual hosts.
    pub fn compile_virtual_host(
        &self,
        host: &proto::VirtualHost,
        strictness: Strictness,
    ) -> Result<Compiled<VirtualHost>, Problems> {
        let Some(Inheritance { max_body_bytes, mirrors }) = self.on_demand.as_deref() else {
            return Err(Problems::one("VirtualHost", &format!("route configuration {} has no `vhds`", self.name)));
        };
        let mut context = Context::new("VirtualHost");
        let host = virtual_host(&mut context, host, mirrors, *max_body_bytes, self.overrides.cors.as_ref());
        context.finish(host, strictness)
    }

    /// This table with more virtual hosts, as [`RouteTable::compile_virtual_host`] made them.
    ///
    /// # Errors
    /// A domain that two of them have.
    pub fn with_virtual_hosts<'h>(
        &self,
        more: impl IntoIterator<Item = &'h Arc<VirtualHost>>,
    ) -> Result<RouteTable, Problems> {
        let virtual_hosts: Box<[_]> = self.virtual_hosts.iter().cloned().chain(more.into_iter().cloned()).collect();
        let mut context = Context::new("RouteConfiguration");
        let domains = Domains::compile(&mut context, &virtual_hosts, self.domains.ignores_port());
        let table = Self {
            name: Arc::clone(&self.name),
            virtual_hosts,
            domains,
            on_demand: self.on_demand.clone(),
            edits: self.edits.clone(),
            most_specific_wins: self.most_specific_wins,
            overrides: self.overrides.clone(),
            metadata: self.metadata.clone(),
        };
        context.finish(table, Strictness::Refuse).map(|compiled| compiled.value)
    }
}
