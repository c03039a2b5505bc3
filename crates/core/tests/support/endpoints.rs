//! Endpoints on ports of 127.0.0.1, and clusters for them.

use weft_core::balance::Host;
use weft_core::cluster::Cluster;
use weft_core::compile::Strictness;
use weft_core::endpoint::LoadAssignment;
use weft_protos::envoy::config::cluster::v3 as proto;
use weft_protos::envoy::config::core::v3::address::Address as AddressKind;
use weft_protos::envoy::config::core::v3::socket_address::PortSpecifier;
use weft_protos::envoy::config::core::v3::{Address, HealthStatus, SocketAddress};
use weft_protos::envoy::config::endpoint::v3 as eds;
use weft_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use weft_protos::google::protobuf::UInt32Value;

pub fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// An endpoint on 127.0.0.1 with `port`.
pub fn endpoint(port: u32, weight: u32, health: HealthStatus) -> eds::LbEndpoint {
    let socket = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    eds::LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(Address { address: Some(AddressKind::SocketAddress(socket)) }),
            ..Default::default()
        })),
        load_balancing_weight: number(weight),
        health_status: health.into(),
        ..Default::default()
    }
}

pub fn locality(priority: u32, weight: u32, endpoints: Vec<eds::LbEndpoint>) -> eds::LocalityLbEndpoints {
    eds::LocalityLbEndpoints {
        priority,
        load_balancing_weight: number(weight),
        lb_endpoints: endpoints,
        ..Default::default()
    }
}

pub fn assignment(endpoints: Vec<eds::LocalityLbEndpoints>) -> LoadAssignment {
    let assignment = eds::ClusterLoadAssignment { cluster_name: "c".into(), endpoints, ..Default::default() };
    LoadAssignment::compile(&assignment, Strictness::Refuse).expect("honoured").value
}

pub fn cluster(change: impl FnOnce(&mut proto::Cluster)) -> Cluster {
    let mut cluster = proto::Cluster { name: "c".into(), ..Default::default() };
    change(&mut cluster);
    Cluster::compile(&cluster, Strictness::Refuse).expect("honoured").value
}

pub fn port(host: &Host) -> u32 {
    host.endpoint
        .address
        .to_string()
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("an address with port")
}
