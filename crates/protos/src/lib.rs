//! The protobuf messages that cross a boundary of weft: Envoy's xDS v3 API and what it imports, and weft's own filters
//! (`weft.translate.extensions`).
//!
//! Everything under `generated/` comes from `make gen`. This file only re-exports it under short paths
//! and names the type URLs. No I/O and no logic: whoever gives a message a meaning lives in `weft-core`
//! (routes, clusters, policies) or `weft-xds` (the discovery protocol).

#![forbid(unsafe_code)]

#[allow(clippy::all, clippy::pedantic, missing_docs, rustdoc::all)]
mod generated {
    include!("generated/mod.rs");
}

pub use generated::{envoy, google, udpa, validate, weft, xds};
pub use prost::Message;

/// Type URLs of the resources that travel over xDS.
pub mod type_url {
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    pub const ROUTE_CONFIGURATION: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    pub const CLUSTER_LOAD_ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

    /// What a resource of this type is called to people: `Cluster`, `Listener`.
    pub fn kind(type_url: &str) -> &str {
        type_url.rsplit('.').next().unwrap_or(type_url)
    }
}
