//! The TCP proxy filter: which cluster a connection goes to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;

use crate::access_log::AccessLog;
use crate::compile::Context;
use crate::hash_policy::{compile_connection, hash_ip};
use crate::random::{Draw, Random};

/// A compiled `TcpProxy`.
#[derive(Debug, Clone)]
pub struct TcpProxy {
    /// For metrics.
    pub stat_prefix: Arc<str>,
    /// Cluster and weight; at least one.
    pub clusters: Box<[(Arc<str>, u32)]>,
    /// Close when no byte went either way for so long; `None`: never. Default 1 hour, zero turns it off.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may last; `None`: for ever.
    pub max_duration: Option<Duration>,
    /// How often connecting is tried, at least 1.
    pub max_connect_attempts: u32,
    /// Where the cluster balances by consistent hashing, the client's address decides.
    pub hash_source_ip: bool,
    /// Records.
    pub access_logs: Box<[AccessLog]>,
}

impl TcpProxy {
    /// Choose a cluster by weight.
    pub fn pick<D: Random + ?Sized>(&self, random: &mut D) -> &Arc<str> {
        if let [(name, _)] = &*self.clusters {
            return name;
        }
        let total = self.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut point = random.below(Draw::Weight, total);
        for (name, weight) in &self.clusters {
            match point.checked_sub(u64::from(*weight)) {
                None => return name,
                Some(rest) => point = rest,
            }
        }
        // Compilation refuses an empty list and a total of zero, so a point below the total was met above.
        &self.clusters[self.clusters.len() - 1].0
    }

    /// The hash of a connection from *client*, if it has one.
    pub fn hash(&self, client: IpAddr) -> Option<u64> {
        self.hash_source_ip.then(|| hash_ip(client))
    }

    pub(crate) fn compile(context: &mut Context, filter: &proto::TcpProxy) -> Option<Self> {
        let clusters: Box<[_]> = match &filter.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => Box::new([(name.as_str().into(), 1)]),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => context
                .at("weighted_clusters", |context| {
                    context.each("clusters", &weighted.clusters, |context, cluster| {
                        if cluster.weight == 0 {
                            context.refuse_at("weight", "must be at least 1");
                        }
                        (cluster.name.as_str().into(), cluster.weight)
                    })
                })
                .into(),
            _ => Box::default(),
        };
        if clusters.is_empty() {
            context.refuse("a TCP proxy needs a cluster, or weighted_clusters");
            return None;
        }
        Some(Self {
            stat_prefix: filter.stat_prefix.as_str().into(),
            clusters,
            idle_timeout: context
                .duration("idle_timeout", filter.idle_timeout.as_ref())
                .map_or(Some(DEFAULT_IDLE_TIMEOUT), |timeout| (!timeout.is_zero()).then_some(timeout)),
            max_duration: context
                .duration("max_downstream_connection_duration", filter.max_downstream_connection_duration.as_ref())
                .filter(|duration| !duration.is_zero()),
            max_connect_attempts: filter.max_connect_attempts.as_ref().map_or(1, |attempts| attempts.value).max(1),
            hash_source_ip: compile_connection(context, &filter.hash_policy),
            access_logs: AccessLog::compile_all(context, "access_log", &filter.access_log),
        })
    }
}

/// Envoy's default.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
