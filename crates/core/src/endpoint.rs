//! Endpoints of a cluster as EDS or the cluster itself names them.

use std::sync::Arc;

use weft_protos::envoy::config::core::v3::HealthStatus;
use weft_protos::envoy::config::endpoint::v3 as proto;
use weft_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use weft_protos::google::protobuf::Struct;
use weft_protos::google::protobuf::value::Kind;

use crate::address::{PeerAddress, compile_peer};
use crate::compile::{Compiled, Context, Problems, Strictness};
use crate::metadata::Metadata;

/// What discovery says about an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Healthy, or not said.
    Healthy,
    /// Works, but prefer others.
    Degraded,
    /// Unhealthy, timed out or draining.
    Unhealthy,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub address: PeerAddress,
    /// May be empty.
    pub hostname: Arc<str>,
    /// Within its locality; at least 1.
    pub weight: u32,
    /// As discovered.
    pub health: Health,
    /// `envoy.transport_socket_match`, keys sorted: chooses the cluster's transport socket.
    pub transport_labels: Box<[(Box<str>, Box<str>)]>,
    /// `envoy.lb`, `hash_key`: its place in consistent hashing follows from this, whatever its address is.
    pub hash_key: Option<Box<str>>,
    /// Where and what it is.
    pub metadata: Metadata,
}

/// Endpoints of one locality and priority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locality {
    /// Region, zone, sub-zone; empty if not said.
    pub region: Arc<str>,
    /// See `region`.
    pub zone: Arc<str>,
    /// See `region`.
    pub sub_zone: Arc<str>,
    /// 0 is used first.
    pub priority: u32,
    /// Among localities of its priority, if the cluster balances by locality weight.
    pub weight: Option<u32>,
    /// Endpoints.
    pub endpoints: Box<[Arc<Endpoint>]>,
}

/// A compiled `ClusterLoadAssignment`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadAssignment {
    /// The cluster's name or EDS service name.
    pub name: Arc<str>,
    /// Localities.
    pub localities: Box<[Locality]>,
    /// Percent; 140: a priority counts as fully healthy while 1/1.4 of its endpoints are.
    pub overprovisioning_factor: u32,
}

impl LoadAssignment {
    /// Envoy's default.
    pub const DEFAULT_OVERPROVISIONING: u32 = 140;

    /// Compile an assignment.
    ///
    /// # Errors
    /// Everything in it that weft cannot honour.
    pub fn compile(
        assignment: &proto::ClusterLoadAssignment,
        strictness: Strictness,
    ) -> Result<Compiled<Self>, Problems> {
        let mut context = Context::new("ClusterLoadAssignment");
        let value = Self::read(&mut context, assignment);
        context.finish(value, strictness)
    }

    pub(crate) fn read(context: &mut Context, assignment: &proto::ClusterLoadAssignment) -> Self {
        Self::shape(assignment, context.each("endpoints", &assignment.endpoints, locality).into())
    }

    /// What is in an assignment besides its localities.
    pub(crate) fn shape(assignment: &proto::ClusterLoadAssignment, localities: Box<[Locality]>) -> Self {
        let factor = assignment.policy.as_ref().and_then(|policy| policy.overprovisioning_factor.as_ref());
        Self {
            name: assignment.cluster_name.as_str().into(),
            localities,
            overprovisioning_factor: factor.map_or(Self::DEFAULT_OVERPROVISIONING, |factor| factor.value),
        }
    }
}

fn locality(context: &mut Context, group: &proto::LocalityLbEndpoints) -> Locality {
    let endpoints = context.each("lb_endpoints", &group.lb_endpoints, endpoint_of);
    Locality { endpoints: endpoints.into_iter().flatten().map(Arc::new).collect(), ..place(group) }
}

/// A locality without its endpoints.
pub(crate) fn place(group: &proto::LocalityLbEndpoints) -> Locality {
    let place = group.locality.clone().unwrap_or_default();
    Locality {
        region: place.region.into(),
        zone: place.zone.into(),
        sub_zone: place.sub_zone.into(),
        priority: group.priority,
        weight: group.load_balancing_weight.as_ref().map(|weight| weight.value),
        endpoints: Box::default(),
    }
}

fn endpoint_of(context: &mut Context, endpoint: &proto::LbEndpoint) -> Option<Endpoint> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        context.refuse("endpoint is needed");
        return None;
    };
    let address = context.at("endpoint.address", |context| compile_peer(context, host.address.as_ref()))?;
    Some(described(endpoint, host, address))
}

/// What is said of an endpoint besides its address.
pub(crate) fn described(endpoint: &proto::LbEndpoint, host: &proto::Endpoint, address: PeerAddress) -> Endpoint {
    Endpoint {
        address,
        hostname: host.hostname.as_str().into(),
        weight: endpoint.load_balancing_weight.as_ref().map_or(1, |weight| weight.value).max(1),
        health: match endpoint.health_status() {
            HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => Health::Unhealthy,
        },
        transport_labels: endpoint
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.filter_metadata.get("envoy.transport_socket_match"))
            .map_or_else(Box::default, labels),
        hash_key: endpoint
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.filter_metadata.get("envoy.lb"))
            .and_then(|metadata| labels(metadata).into_iter().find(|(name, _)| **name == *"hash_key"))
            .map(|(_, key)| key)
            .filter(|key| !key.is_empty()),
        metadata: Metadata::compile(endpoint.metadata.as_ref()),
    }
}

/// The entries of a struct that are strings.
pub(crate) fn labels(metadata: &Struct) -> Box<[(Box<str>, Box<str>)]> {
    metadata
        .fields
        .iter()
        .filter_map(|(key, value)| match &value.kind {
            Some(Kind::StringValue(text)) => Some((key.as_str().into(), text.as_str().into())),
            _ => None,
        })
        .collect()
}
