//! What travels between proxies and control plane, both ends of it: configuration by xDS (delta and state of the world),
//! access records by Envoy's access log service ([`access_log`]).
//!
//! [`client`] is what a proxy uses to follow the control plane; [`server`] is the stream core of the control plane and
//! of the agents' secret service. Neither knows what a resource means: they move `(type URL, name, version, bytes)`,
//! keep subscriptions, and carry acknowledgements. Whoever gives a resource a meaning lives in `weft-core`.

#![forbid(unsafe_code)]

pub mod access_log;
mod backoff;
pub mod client;
mod connection;
mod grpc;
mod refusal;
mod rope;
pub mod server;

pub use backoff::Backoff;
pub use refusal::Refusal;

/// Which discovery service a stream belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// `envoy.service.discovery.v3.AggregatedDiscoveryService`: every type on one stream, in order.
    Aggregated,
    /// `envoy.service.secret.v3.SecretDiscoveryService`.
    Secrets,
}

/// How changes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Each response holds what differs.
    #[default]
    Delta,
    /// Each response holds all that there is of a type (listeners, clusters), or all that is news of what was asked for by name.
    StateOfTheWorld,
}

impl Service {
    /// The HTTP path of the variant.
    pub(crate) fn path(self, protocol: Protocol) -> &'static str {
        match protocol {
            Protocol::Delta => self.delta_path(),
            Protocol::StateOfTheWorld => self.state_of_the_world_path(),
        }
    }

    /// The HTTP path of the delta variant.
    pub(crate) fn delta_path(self) -> &'static str {
        match self {
            Service::Aggregated => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            Service::Secrets => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        }
    }

    /// The HTTP path of the state-of-the-world variant.
    pub(crate) fn state_of_the_world_path(self) -> &'static str {
        match self {
            Service::Aggregated => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            Service::Secrets => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        }
    }
}

/// The name that subscribes to everything of a type (xDS protocol, "How the client specifies what resources to return").
pub const WILDCARD: &str = "*";
