//! Endpoints of a cluster as EDS or the cluster itself names them.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_protos::envoy::config::core::v3::HealthStatus;
use weft_protos::envoy::config::endpoint::v3 as proto;
use weft_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use weft_protos::google::protobuf::Struct;
use weft_protos::google::protobuf::value::Kind;

use crate::address::{PeerAddress, compile_peer};
use crate::compile::{Compiled, Context, Problems, Strictness};
use crate::metadata::{Metadata, to_json_value};

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

/// Keys and values that choose a transport socket, sorted by key. Values as JSON: `true` is not `"true"`.
pub type Labels = Box<[(Box<str>, Box<str>)]>;

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
    /// `envoy.transport_socket_match`: chooses the cluster's transport socket.
    pub transport_labels: Labels,
    /// `envoy.lb`, `hash_key`: its place in consistent hashing follows from this, whatever its address is.
    pub hash_key: Option<Box<str>>,
    /// Where and what it is.
    pub metadata: Metadata,
    /// How it is checked, where that is not as its cluster says.
    pub check: Option<Box<EndpointCheck>>,
}

/// A compiled `HealthCheckConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointCheck {
    /// Not at all: it passes.
    pub disabled: bool,
    /// Another than where requests go.
    pub address: Option<PeerAddress>,
    /// Of that address; 0: its own.
    pub port: u16,
    /// Before what the check says; may be empty.
    pub hostname: Arc<str>,
}

impl Endpoint {
    /// Whether checks ask it.
    pub fn is_checked(&self) -> bool {
        self.check.as_ref().is_none_or(|check| !check.disabled)
    }

    /// Where it is checked.
    pub fn check_address(&self) -> PeerAddress {
        let Some(check) = &self.check else { return self.address.clone() };
        match check.address.as_ref().unwrap_or(&self.address) {
            PeerAddress::Socket(at) if check.port != 0 => PeerAddress::Socket(SocketAddr::new(at.ip(), check.port)),
            address => address.clone(),
        }
    }
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

impl Locality {
    pub(crate) fn is_place_of(&self, other: &Self) -> bool {
        let place = |it: &Self| (Arc::clone(&it.region), Arc::clone(&it.zone), Arc::clone(&it.sub_zone), it.priority);
        place(self) == place(other)
    }
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
        let localities = context.each("endpoints", &assignment.endpoints, locality).into();
        Self::shape(context, assignment, localities)
    }

    /// What is in an assignment besides its localities.
    pub(crate) fn shape(
        context: &mut Context,
        assignment: &proto::ClusterLoadAssignment,
        localities: Box<[Locality]>,
    ) -> Self {
        let factor = assignment.policy.as_ref().and_then(|policy| policy.overprovisioning_factor.as_ref());
        if factor.is_some_and(|factor| factor.value == 0) {
            context.refuse_at("policy.overprovisioning_factor", "must be more than zero");
        }
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
    Some(described(context, endpoint, host, address))
}

/// What is said of an endpoint besides its address.
pub(crate) fn described(
    context: &mut Context,
    endpoint: &proto::LbEndpoint,
    host: &proto::Endpoint,
    address: PeerAddress,
) -> Endpoint {
    let weight = endpoint.load_balancing_weight.as_ref().map_or(1, |weight| weight.value);
    if weight == 0 {
        context.refuse_at("load_balancing_weight", "must be at least 1");
    }
    Endpoint {
        check: host
            .health_check_config
            .as_ref()
            .map(|config| Box::new(context.at("endpoint.health_check_config", |context| check_of(context, config)))),
        address,
        hostname: host.hostname.as_str().into(),
        weight,
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
            .and_then(|metadata| metadata.filter_metadata.get("envoy.lb")?.fields.get("hash_key"))
            .and_then(|value| match &value.kind {
                Some(Kind::StringValue(key)) if !key.is_empty() => Some(key.as_str().into()),
                _ => None,
            }),
        metadata: Metadata::compile(endpoint.metadata.as_ref()),
    }
}

fn check_of(context: &mut Context, config: &proto::endpoint::HealthCheckConfig) -> EndpointCheck {
    let port = u16::try_from(config.port_value).unwrap_or_else(|_| {
        context.refuse_at("port_value", "not a port number of 0 to 65535");
        0
    });
    let address = config.address.as_ref();
    EndpointCheck {
        disabled: config.disable_active_health_check,
        address: address.and_then(|address| context.at("address", |context| compile_peer(context, Some(address)))),
        port,
        hostname: config.hostname.as_str().into(),
    }
}

/// The entries of a struct, whatever they are: one that was left out would make a match of those that have it one of all.
pub(crate) fn labels(metadata: &Struct) -> Labels {
    metadata.fields.iter().map(|(key, value)| (key.as_str().into(), to_json_value(value).into())).collect()
}
