//! How a cluster chooses among its endpoints.

use weft_protos::envoy::config::cluster::v3 as proto;
use weft_protos::envoy::config::cluster::v3::cluster::ring_hash_lb_config::HashFunction as ProtoHashFunction;
use weft_protos::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy as ProtoPolicy};
use weft_protos::google::protobuf::UInt64Value;

use super::Discovery;
use crate::compile::Context;

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LbPolicy {
    /// One after the other, by weight.
    RoundRobin,
    /// The least loaded of `choices` drawn.
    LeastRequest {
        /// 2 unless said.
        choices: u32,
    },
    /// Any, by weight.
    Random,
    /// As the cluster's discovery provides it (original destination).
    ClusterProvided,
    /// By a hash, on a ring of *least* to *most* points.
    RingHash {
        /// 1024 unless said.
        least: u64,
        /// 8 Mi unless said, and no more.
        most: u64,
        /// Of the points, not of requests.
        function: HashFunction,
    },
    /// By a hash, in Maglev's table.
    Maglev {
        /// A prime; 65537 unless said.
        table_size: u64,
    },
}

impl LbPolicy {
    /// Whether a request's properties decide.
    pub fn is_consistent_hash(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }

    pub(super) fn compile(context: &mut Context, cluster: &proto::Cluster, discovery: &Discovery) -> Self {
        let original_dst = matches!(discovery, Discovery::OriginalDst);
        match ProtoPolicy::try_from(cluster.lb_policy) {
            Ok(ProtoPolicy::ClusterProvided) if original_dst => Self::ClusterProvided,
            Ok(_) if original_dst => {
                context.refuse_at("lb_policy", "an ORIGINAL_DST cluster needs CLUSTER_PROVIDED");
                Self::ClusterProvided
            }
            Ok(ProtoPolicy::RoundRobin) => Self::RoundRobin,
            Ok(ProtoPolicy::Random) => Self::Random,
            Ok(ProtoPolicy::LeastRequest) => match &cluster.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => {
                    Self::LeastRequest { choices: config.choice_count.as_ref().map_or(2, |count| count.value).max(2) }
                }
                _ => Self::LeastRequest { choices: 2 },
            },
            Ok(ProtoPolicy::RingHash) => ring_hash(context, cluster.lb_config.as_ref()),
            Ok(ProtoPolicy::Maglev) => maglev(context, cluster.lb_config.as_ref()),
            Ok(other) => {
                context.refuse_at("lb_policy", format!("{} is not supported", other.as_str_name()));
                Self::RoundRobin
            }
            Err(_) => {
                context.refuse_at("lb_policy", format!("{} is no policy", cluster.lb_policy));
                Self::RoundRobin
            }
        }
    }
}

/// How points of a ring are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashFunction {
    /// xxHash64.
    XxHash,
    /// MurmurHash2, as libstdc++ has it.
    MurmurHash2,
}

/// Envoy's bounds of a ring, and of a Maglev table; its default for the latter.
const DEFAULT_RING_POINTS: u64 = 1024;
const MOST_RING_POINTS: u64 = 8 << 20;
const DEFAULT_MAGLEV_SIZE: u64 = 65_537;
const MOST_MAGLEV_SIZE: u64 = 5_000_011;

fn ring_hash(context: &mut Context, config: Option<&LbConfig>) -> LbPolicy {
    let mut policy = (DEFAULT_RING_POINTS, MOST_RING_POINTS, HashFunction::XxHash);
    if let Some(LbConfig::RingHashLbConfig(config)) = config {
        context.at("ring_hash_lb_config", |context| {
            let mut read = |field: &str, value: &Option<UInt64Value>, default| {
                let value = value.as_ref().map_or(default, |value| value.value);
                if value > MOST_RING_POINTS {
                    context.refuse_at(field, format!("{value} is more than {MOST_RING_POINTS}"));
                }
                value.min(MOST_RING_POINTS)
            };
            policy.0 = read("minimum_ring_size", &config.minimum_ring_size, policy.0);
            policy.1 = read("maximum_ring_size", &config.maximum_ring_size, policy.1);
            if policy.0 > policy.1 {
                context.refuse_at(
                    "minimum_ring_size",
                    format!("{} is more than the maximum_ring_size of {}", policy.0, policy.1),
                );
            }
            policy.2 = match config.hash_function() {
                ProtoHashFunction::XxHash => HashFunction::XxHash,
                ProtoHashFunction::MurmurHash2 => HashFunction::MurmurHash2,
            };
        });
    }
    let (least, most, function) = policy;
    LbPolicy::RingHash { least, most, function }
}

fn maglev(context: &mut Context, config: Option<&LbConfig>) -> LbPolicy {
    let table_size = match config {
        Some(LbConfig::MaglevLbConfig(config)) => config.table_size.as_ref().map(|size| size.value),
        _ => None,
    };
    let table_size = table_size.unwrap_or(DEFAULT_MAGLEV_SIZE);
    if table_size > MOST_MAGLEV_SIZE || !is_prime(table_size) {
        context.refuse_at(
            "maglev_lb_config.table_size",
            format!("{table_size} is not a prime number of at most {MOST_MAGLEV_SIZE}"),
        );
        return LbPolicy::Maglev { table_size: DEFAULT_MAGLEV_SIZE };
    }
    LbPolicy::Maglev { table_size }
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}
