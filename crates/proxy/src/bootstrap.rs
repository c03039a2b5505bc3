//! The command line and the bootstrap file: parsed once into frozen values, unknown things refused by name
//! (`docs/reference/interfaces.md`, 4.5).
//!
//! The bootstrap is Envoy's, in JSON or YAML, and goes the way of every resource: only fields in `honoured.txt` can be read at all, and
//! each problem has its field's path.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use weft_core::compile::{Context, Problem, Problems, Strictness};
use weft_core::honoured::json;
use weft_core::plan::Resource as Compiled;
use weft_protos::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use weft_protos::envoy::config::cluster::v3::Cluster;
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::core::v3::address::Address as AddressKind;
use weft_protos::envoy::config::core::v3::api_config_source::ApiType;
use weft_protos::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use weft_protos::envoy::config::core::v3::grpc_service::TargetSpecifier;
use weft_protos::envoy::config::core::v3::socket_address::PortSpecifier;
use weft_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use weft_protos::{Message, type_url};
use weft_xds::Protocol;
use weft_xds::client::Resource;

use crate::admin::SOCKET_MODE;
use crate::document::{self, DocumentError};
use crate::edge::Edge;
use crate::logging;
use crate::overload;

/// How long draining may take if nothing is said.
const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

/// The type of the file that begins it all.
pub const TYPE_URL: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";

pub const USAGE: &str = "usage: weft-proxy -c BOOTSTRAP [--concurrency N] [--state-dir DIR] [--edge-socket PATH] \
[--workload NAME] [--drain-time SECONDS] [--keeper-fd N] [-l|--log-level LEVEL] [--component-log-level NAME:LEVEL,...]\n       weft-proxy validate FILE";

/// What was asked for on the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub bootstrap: PathBuf,
    /// Number of workers.
    pub concurrency: usize,
    /// Where the last good configuration is kept.
    pub state_dir: Option<PathBuf>,
    pub edge: Option<Edge>,
    pub drain: Duration,
    /// The inherited descriptor of a channel to who keeps listening sockets.
    pub keeper: Option<RawFd>,
    /// Levels of log lines that are not the default ones.
    pub logging: logging::Change,
}

/// What was wrong with the command line or the bootstrap; the cause is always the caller's.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}\n{USAGE}")]
    Usage(String),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Document { path: PathBuf, source: DocumentError },
    #[error("{path}: {problems}")]
    Content { path: PathBuf, problems: Problems },
}

impl Options {
    /// Parse the arguments that follow the program's name.
    ///
    /// # Errors
    /// [`StartError::Usage`].
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options, StartError> {
        let mut arguments = arguments.into_iter();
        let mut bootstrap = None;
        let mut concurrency = 1;
        let mut state_dir = None;
        let mut edge_socket = None;
        let mut workload = None;
        let mut drain = DEFAULT_DRAIN;
        let mut keeper = None;
        let mut logging = logging::Change::default();
        while let Some(argument) = arguments.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| arguments.next())
                    .ok_or_else(|| StartError::Usage(format!("{name} needs a value")))
            };
            match name.as_str() {
                "-c" | "--config" => bootstrap = Some(PathBuf::from(value()?)),
                "--concurrency" => {
                    let text = value()?;
                    concurrency = text.parse().ok().filter(|count| (1..=1024).contains(count)).ok_or_else(|| {
                        StartError::Usage(format!("--concurrency {text}: a number from 1 to 1024 is needed"))
                    })?;
                }
                "--state-dir" => state_dir = Some(PathBuf::from(value()?)),
                "--edge-socket" => edge_socket = Some(PathBuf::from(value()?)),
                "--workload" => workload = Some(value()?),
                "--drain-time" => {
                    let text = value()?;
                    drain = text
                        .parse()
                        .ok()
                        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                        .ok_or_else(|| StartError::Usage(format!("--drain-time {text}: seconds are needed")))?;
                }
                "--keeper-fd" => {
                    let text = value()?;
                    keeper = Some(text.parse().ok().filter(|number| *number > 2).ok_or_else(|| {
                        StartError::Usage(format!("--keeper-fd {text}: the number of a descriptor is needed"))
                    })?);
                }
                "-l" | "--log-level" => logging.all(&value()?).map_err(|error| StartError::Usage(error.to_string()))?,
                "--component-log-level" => {
                    logging.pairs(&value()?).map_err(|error| StartError::Usage(format!("{name}: {error}")))?;
                }
                _ => return Err(StartError::Usage(format!("unknown argument {name}"))),
            }
        }
        let bootstrap = bootstrap.ok_or_else(|| StartError::Usage("-c is missing".into()))?;
        let edge = edge_socket.map(|socket| Edge { socket, workload: workload.unwrap_or_default() });
        Ok(Options { bootstrap, concurrency, state_dir, edge, drain, keeper, logging })
    }
}

/// The bootstrap as far as it is read. Resources stay serialised: code that decodes, and encodes again, whatever a bootstrap may hold
/// would be a tenth of the executable.
mod outline {
    use weft_protos::Message;
    use weft_protos::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
    use weft_protos::envoy::config::core::v3 as core;
    use weft_protos::envoy::config::overload::v3::OverloadManager;

    use crate::runtime::LayeredRuntime;

    /// `envoy.config.bootstrap.v3.Bootstrap`
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Bootstrap {
        #[prost(message, optional, tag = "1")]
        pub(super) node: Option<core::Node>,
        #[prost(message, optional, tag = "2")]
        pub(super) static_resources: Option<StaticResources>,
        #[prost(message, optional, tag = "3")]
        pub(super) dynamic_resources: Option<DynamicResources>,
        #[prost(message, optional, tag = "4")]
        pub(super) cluster_manager: Option<ClusterManager>,
        #[prost(message, optional, tag = "12")]
        pub(super) admin: Option<Admin>,
        #[prost(bytes = "vec", optional, tag = "13")]
        pub(super) stats_config: Option<Vec<u8>>,
        #[prost(message, optional, tag = "15")]
        pub(super) overload_manager: Option<OverloadManager>,
        #[prost(message, optional, tag = "17")]
        pub(super) layered_runtime: Option<LayeredRuntime>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct StaticResources {
        #[prost(bytes = "vec", repeated, tag = "1")]
        pub(super) listeners: Vec<Vec<u8>>,
        #[prost(bytes = "vec", repeated, tag = "2")]
        pub(super) clusters: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ClusterManager {
        #[prost(message, optional, tag = "3")]
        pub(super) upstream_bind_config: Option<core::BindConfig>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Admin {
        #[prost(string, tag = "1")]
        pub(super) access_log_path: String,
        #[prost(message, optional, tag = "3")]
        pub(super) address: Option<core::Address>,
    }
}

/// Where something outside the plan listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Unix(PathBuf),
    /// `host:port`
    Tcp(String),
}

/// The control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ads {
    pub place: Place,
    pub protocol: Protocol,
    /// All listeners come from it, besides the static ones.
    pub listeners: bool,
    /// All clusters come from it, besides the static ones.
    pub clusters: bool,
}

/// A bootstrap, ready for use.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    pub node: core::Node,
    /// The node's metadata, for labels of metrics.
    pub metadata: serde_json::Map<String, Value>,
    pub admin: Option<Place>,
    /// Where connections come from whose cluster says nothing about it.
    pub source: Option<SocketAddr>,
    /// Absent: only what the bootstrap and the state directory hold.
    pub ads: Option<Ads>,
    /// Static clusters by name: where SDS servers are found.
    pub clusters: Vec<(String, Place)>,
    /// Static clusters, then listeners, that requests may meet, with their types.
    pub resources: Vec<(&'static str, Resource)>,
    /// What is accepted although nothing is done about it.
    pub not_applied: Vec<Problem>,
    /// What is done under pressure.
    pub overload: overload::Config,
}

impl Bootstrap {
    /// # Errors
    /// The file cannot be read, has an unknown field, or misses something.
    pub fn read(path: &Path) -> Result<Bootstrap, StartError> {
        let text = std::fs::read(path).map_err(|source| StartError::Read { path: path.to_owned(), source })?;
        let value = document::parse(&text).map_err(|source| StartError::Document { path: path.to_owned(), source })?;
        Bootstrap::compile(&value).map_err(|problems| StartError::Content { path: path.to_owned(), problems })
    }

    /// # Errors
    /// Everything in it that cannot be honoured.
    pub fn compile(value: &Value) -> Result<Bootstrap, Problems> {
        let bytes = json::encode(TYPE_URL, value).map_err(Problems)?;
        let bootstrap = outline::Bootstrap::decode(bytes.as_slice())
            .map_err(|error| Problems::one("Bootstrap", &error.to_string()))?;
        let mut context = Context::new("Bootstrap");
        let read = Bootstrap::from_proto(&mut context, bootstrap);
        let compiled = context.finish(read, Strictness::Refuse)?;
        let metadata = value.get("node").and_then(|node| node.get("metadata")).and_then(Value::as_object);
        let mut bootstrap = compiled.value;
        bootstrap.metadata = metadata.cloned().unwrap_or_default();
        bootstrap.not_applied = compiled.not_applied;
        Ok(bootstrap)
    }

    fn from_proto(context: &mut Context, bootstrap: outline::Bootstrap) -> Bootstrap {
        let allowances = bootstrap
            .layered_runtime
            .map(|runtime| context.at("layered_runtime", |context| runtime.compile(context)))
            .unwrap_or_default();
        if bootstrap.stats_config.is_some() {
            context.at("stats_config", |context| context.pass_over("weft-proxy names its metrics by itself"));
        }
        let outline::StaticResources { listeners, clusters: bodies } = bootstrap.static_resources.unwrap_or_default();
        // The JSON reader has just written these bytes, so they decode.
        let fixed: Vec<Cluster> =
            bodies.iter().map(|body| Cluster::decode(body.as_slice()).unwrap_or_default()).collect();
        let clusters: Vec<(String, Option<Place>)> =
            context.each("static_resources.clusters", &fixed, |context, cluster| {
                (cluster.name.clone(), context.at("load_assignment", |context| server_of(context, cluster)))
            });
        let ads = bootstrap
            .dynamic_resources
            .as_ref()
            .and_then(|dynamic| context.at("dynamic_resources", |context| ads(context, dynamic, &clusters, &fixed)));
        let mut resources = Vec::new();
        let mut compile = |context: &mut Context, type_url: &'static str, body: &Vec<u8>| match Compiled::compile(
            type_url,
            body,
            Strictness::Refuse,
        ) {
            Ok(compiled) => {
                note(context, compiled.not_applied, |context, reason| context.pass_over(reason));
                let name = compiled.value.name().to_string();
                let resource =
                    Resource { name, aliases: Vec::new(), version: "static".into(), body: body.clone().into() };
                resources.push((type_url, resource));
            }
            Err(problems) => note(context, problems.0, |context, reason| context.refuse(reason)),
        };
        context.each("static_resources.clusters", &bodies, |context, body| {
            compile(context, type_url::CLUSTER, body);
        });
        context.each("static_resources.listeners", &listeners, |context, body| {
            compile(context, type_url::LISTENER, body);
        });
        let mut overload = bootstrap.overload_manager.map_or_else(overload::Config::by_default, |manager| {
            context.at("overload_manager", |context| overload::Config::compile(context, &manager))
        });
        overload.allowances = allowances;
        let node = bootstrap.node.unwrap_or_default();
        if node.id.is_empty() {
            context.refuse_at("node.id", "required");
        }
        Bootstrap {
            node: core::Node { user_agent_name: "weft-proxy".into(), ..node },
            metadata: serde_json::Map::new(),
            admin: bootstrap.admin.and_then(|admin| context.at("admin", |context| admin_place(context, &admin))),
            source: bootstrap.cluster_manager.and_then(|manager| manager.upstream_bind_config).and_then(|bind| {
                context.at("cluster_manager.upstream_bind_config.source_address", |context| {
                    source_address(context, bind.source_address.as_ref()?)
                })
            }),
            ads,
            clusters: clusters.into_iter().filter_map(|(name, place)| Some((name, place?))).collect(),
            resources,
            not_applied: Vec::new(),
            overload,
        }
    }
}

/// The cluster that the control plane's stream goes to.
fn ads_cluster(dynamic: &DynamicResources) -> Option<&str> {
    match dynamic.ads_config.as_ref()?.grpc_services.first()?.target_specifier.as_ref()? {
        TargetSpecifier::EnvoyGrpc(grpc) => Some(&grpc.cluster_name),
        TargetSpecifier::GoogleGrpc(_) => None,
    }
}

fn ads(
    context: &mut Context,
    dynamic: &DynamicResources,
    clusters: &[(String, Option<Place>)],
    fixed: &[Cluster],
) -> Option<Ads> {
    let mut from_ads = |field: &str, source: Option<&core::ConfigSource>| {
        context.at(field, |context| {
            context.config_source(source);
            match source.map(|source| &source.config_source_specifier) {
                None => false,
                Some(Some(ConfigSourceSpecifier::Ads(_))) => true,
                Some(_) => {
                    context.refuse("only `ads: {}` is supported: one stream for everything, in order");
                    false
                }
            }
        })
    };
    let listeners = from_ads("lds_config", dynamic.lds_config.as_ref());
    let clusters_too = from_ads("cds_config", dynamic.cds_config.as_ref());
    let Some(config) = &dynamic.ads_config else {
        if listeners || clusters_too {
            context.refuse_at("ads_config", "required by lds_config and cds_config");
        }
        return None;
    };
    context.at("ads_config", |context| {
        let protocol = match config.api_type() {
            ApiType::Grpc => Protocol::StateOfTheWorld,
            ApiType::DeltaGrpc => Protocol::Delta,
            other => {
                context.refuse_at(
                    "api_type",
                    format!("{} is not supported, GRPC and DELTA_GRPC are", other.as_str_name()),
                );
                return None;
            }
        };
        if config.grpc_services.len() != 1 {
            context.refuse_at("grpc_services", format!("one is needed, there are {}", config.grpc_services.len()));
        }
        let Some(name) = ads_cluster(dynamic) else {
            context.refuse_at("grpc_services[0].envoy_grpc", "required");
            return None;
        };
        let Some((_, place)) = clusters.iter().find(|(known, _)| known == name) else {
            context.refuse_at("grpc_services[0].envoy_grpc.cluster_name", format!("there is no static cluster {name}"));
            return None;
        };
        if fixed.iter().any(|cluster| cluster.name == name && cluster.transport_socket.is_some()) {
            context.refuse(format!(
                "cluster {name} has a transport_socket, and the stream to the control plane goes in plain text"
            ));
        }
        Some(Ads { place: place.clone()?, protocol, listeners, clusters: clusters_too })
    })
}

/// The first endpoint of a static cluster.
fn server_of(context: &mut Context, cluster: &Cluster) -> Option<Place> {
    let endpoints = cluster.load_assignment.iter().flat_map(|assignment| &assignment.endpoints);
    let first = endpoints.flat_map(|locality| &locality.lb_endpoints).next();
    match first.and_then(|endpoint| endpoint.host_identifier.as_ref()) {
        Some(HostIdentifier::Endpoint(endpoint)) => place(context, "endpoints", endpoint.address.as_ref()?),
        _ => None,
    }
}

/// Say of each of a resource's *problems* where in the bootstrap it is.
fn note(context: &mut Context, problems: Vec<Problem>, say: fn(&mut Context, String)) {
    for Problem { path, reason } in problems {
        // `Cluster.lb_policy` is `lb_policy` of the element where the context is.
        match path.split_once('.') {
            Some((_, below)) => context.at(below, |context| say(context, reason)),
            None => say(context, reason),
        }
    }
}

fn admin_place(context: &mut Context, admin: &outline::Admin) -> Option<Place> {
    if !matches!(admin.access_log_path.as_str(), "" | "/dev/null") {
        context.refuse_at(
            "access_log_path",
            "weft-proxy keeps no log of its admin interface; only /dev/null is supported",
        );
    }
    let address = admin.address.as_ref()?;
    if let Some(AddressKind::Pipe(pipe)) = &address.address
        && !matches!(pipe.mode, 0 | SOCKET_MODE)
    {
        context.at("address.pipe.mode", |context| {
            context.pass_over(format!("the socket has the mode {SOCKET_MODE:#o}, for weft-proxy's user alone"));
        });
    }
    place(context, "address", address)
}

fn place(context: &mut Context, field: &str, address: &core::Address) -> Option<Place> {
    match &address.address {
        Some(AddressKind::Pipe(pipe)) => Some(Place::Unix(PathBuf::from(&pipe.path))),
        Some(AddressKind::SocketAddress(core::SocketAddress {
            address,
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..
        })) => {
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            Some(Place::Tcp(format!("{host}:{port}")))
        }
        _ => {
            context.refuse_at(field, "a pipe, or a socket_address with port_value, is needed");
            None
        }
    }
}

fn source_address(context: &mut Context, address: &core::SocketAddress) -> Option<SocketAddr> {
    let Ok(ip) = address.address.parse::<IpAddr>() else {
        context.refuse_at("address", format!("{:?} is no IP address", address.address));
        return None;
    };
    let port = match address.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        None => Some(0),
        Some(PortSpecifier::NamedPort(_)) => None,
    };
    match port {
        Some(port) => Some(SocketAddr::new(ip, port)),
        None => {
            context.refuse_at("port_value", "not a port");
            None
        }
    }
}
