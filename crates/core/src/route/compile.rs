//! From `RouteConfiguration` to a route table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weft_protos::envoy::config::core::v3::data_source::Specifier;
use weft_protos::envoy::config::core::v3::{HeaderValueOption, RoutingPriority, RuntimeFractionalPercent};
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::envoy::config::route::v3::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
use weft_protos::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
};
use weft_protos::envoy::config::route::v3::weighted_cluster::cluster_weight;
use weft_protos::envoy::extensions::filters::http::cors::v3::CorsPolicy as ProtoCorsPolicy;
use weft_protos::envoy::extensions::filters::http::fault::v3::HttpFault;
use weft_protos::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;
use weft_protos::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use weft_protos::google::protobuf::Any;

use super::domains::Domains;
use super::on_demand::Inheritance;
use super::paths::Paths;
use super::{
    Action, Conditions, DEFAULT_TIMEOUT, DirectResponse, Edits, FaultOverride, FilterOverrides, Forward, Mirror,
    PathRewrite, Redirect, Route, RouteTable, StreamDuration, Target, VirtualHost,
};
use crate::compile::{Compiled, Context, Problems, Strictness};
use crate::cors::{CORS_FILTER, Cors, CorsOverride, CorsPolicy};
use crate::fault::Fault;
use crate::hash_policy::HashPolicy;
use crate::header_edit::{HeaderEdits, refuse_controls};
use crate::matching::{HeaderMatch, PathMatch, QueryMatch, build_regex};
use crate::metadata::Metadata;
use crate::random::Fraction;
use crate::rbac::{Rbac, RbacOverride};
use crate::retry::RetryPolicy;
use crate::upgrade::{Upgrade, refuse_repeated};

/// What the levels below a virtual host inherit.
struct Inherited<'a> {
    max_body_bytes: usize,
    retry: Option<&'a Arc<RetryPolicy>>,
    mirrors: &'a [proto::route_action::RequestMirrorPolicy],
    cors: InheritedCors<'a>,
}

/// What the levels around a route say about CORS, and the policy where it says nothing itself: most routes do not.
struct InheritedCors<'a> {
    levels: [Option<&'a CorsOverride>; 2],
    policy: Option<Arc<Cors>>,
}

impl<'a> InheritedCors<'a> {
    /// Of these levels, the more specific one first.
    fn of(levels: [Option<&'a CorsOverride>; 2]) -> Self {
        Self { levels, policy: Cors::merge(levels).map(Arc::new) }
    }

    /// The policy of a level within.
    fn with(&self, own: &[Option<&CorsOverride>]) -> Option<Arc<Cors>> {
        if own.iter().all(Option::is_none) {
            return self.policy.clone();
        }
        Cors::merge(own.iter().copied().chain(self.levels)).map(Arc::new)
    }
}

impl RouteTable {
    /// Compile a route configuration.
    ///
    /// # Errors
    /// Everything in it that weft cannot honour.
    pub fn compile(
        configuration: &proto::RouteConfiguration,
        strictness: Strictness,
    ) -> Result<Compiled<Self>, Problems> {
        let mut context = Context::new("RouteConfiguration");
        let table = Self::read(&mut context, configuration);
        context.finish(table, strictness)
    }

    /// One that leads nowhere, for a listener whose routes have not come.
    pub fn empty(name: &Arc<str>) -> Self {
        let configuration = proto::RouteConfiguration { name: name.to_string(), ..Default::default() };
        Self::read(&mut Context::new("RouteConfiguration"), &configuration)
    }

    pub(crate) fn read(context: &mut Context, configuration: &proto::RouteConfiguration) -> Self {
        if configuration.validate_clusters.as_ref().is_some_and(|validate| validate.value) {
            context.refuse_at("validate_clusters", "clusters may come later than the routes that name them");
        }
        let max_body_bytes = configuration
            .max_direct_response_body_size_bytes
            .as_ref()
            .map_or(DEFAULT_MAX_BODY_BYTES, |limit| limit.value as usize);
        let overrides = overrides(context, &configuration.typed_per_filter_config);
        let on_demand = configuration.vhds.as_ref().map(|vhds| {
            context.at("vhds.config_source", |context| {
                context.config_source(vhds.config_source.as_ref());
                context.ads_source(vhds.config_source.as_ref());
            });
            Box::new(Inheritance { max_body_bytes, mirrors: configuration.request_mirror_policies.clone().into() })
        });
        let virtual_hosts: Box<[Arc<VirtualHost>]> = context
            .each("virtual_hosts", &configuration.virtual_hosts, |context, host| {
                let mirrors = &configuration.request_mirror_policies;
                Arc::new(virtual_host(context, host, mirrors, max_body_bytes, overrides.cors.as_ref()))
            })
            .into();
        Self {
            name: configuration.name.as_str().into(),
            domains: Domains::compile(context, &virtual_hosts, configuration.ignore_port_in_host_matching),
            virtual_hosts,
            on_demand,
            edits: edits(
                context,
                &configuration.request_headers_to_add,
                &configuration.request_headers_to_remove,
                &configuration.response_headers_to_add,
                &configuration.response_headers_to_remove,
            ),
            most_specific_wins: configuration.most_specific_header_mutations_wins,
            overrides,
            metadata: Metadata::compile(configuration.metadata.as_ref()),
        }
    }
}

/// `mirrors`, `max_body_bytes` and `cors`: what the route configuration says about them.
pub(super) fn virtual_host(
    context: &mut Context,
    host: &proto::VirtualHost,
    mirrors: &[proto::route_action::RequestMirrorPolicy],
    max_body_bytes: usize,
    cors: Option<&CorsOverride>,
) -> VirtualHost {
    if host.domains.is_empty() {
        context.refuse_at("domains", "a virtual host needs a domain");
    }
    let retry = host
        .retry_policy
        .as_ref()
        .map(|policy| Arc::new(context.at("retry_policy", |context| RetryPolicy::compile(context, policy))));
    let overrides = overrides(context, &host.typed_per_filter_config);
    let cors = InheritedCors::of([overrides.cors.as_ref(), cors]);
    // The most specific level that names mirrors wins, whole.
    let own_mirrors = host.request_mirror_policies.as_slice();
    let mirrors = if own_mirrors.is_empty() { mirrors } else { own_mirrors };
    let inherited = Inherited { retry: retry.as_ref(), mirrors, max_body_bytes, cors };
    let routes: Box<[Arc<Route>]> = context
        .each("routes", &host.routes, |context, item| route(context, item, &inherited).map(Arc::new))
        .into_iter()
        .flatten()
        .collect();
    VirtualHost {
        name: host.name.as_str().into(),
        domains: host.domains.iter().map(|domain| domain.as_str().into()).collect(),
        paths: Paths::of(&routes),
        routes,
        edits: edits(
            context,
            &host.request_headers_to_add,
            &host.request_headers_to_remove,
            &host.response_headers_to_add,
            &host.response_headers_to_remove,
        ),
        overrides,
        request_attempt_count: host.include_request_attempt_count,
        response_attempt_count: host.include_attempt_count_in_response,
        metadata: Metadata::compile(host.metadata.as_ref()),
    }
}

/// `None` where the route cannot be understood at all (a problem is noted then).
fn route(context: &mut Context, route: &proto::Route, inherited: &Inherited<'_>) -> Option<Route> {
    let conditions = match &route.r#match {
        Some(matcher) => context.at("match", |context| conditions(context, matcher)),
        None => {
            context.refuse_at("match", "a route needs a matcher");
            None
        }
    };
    let overrides = overrides(context, &route.typed_per_filter_config);
    let action = match &route.action {
        Some(proto::route::Action::Route(action)) => context
            .at("route", |context| forward(context, action, inherited, overrides.cors.as_ref()))
            .map(Action::Forward),
        Some(proto::route::Action::Redirect(action)) => {
            Some(Action::Redirect(context.at("redirect", |context| redirect(context, action))))
        }
        Some(proto::route::Action::DirectResponse(action)) => context
            .at("direct_response", |context| direct(context, action, inherited.max_body_bytes))
            .map(Action::Direct),
        Some(proto::route::Action::FilterAction(_) | proto::route::Action::NonForwardingAction(_)) | None => {
            context.refuse("a route needs one of route, redirect, direct_response");
            None
        }
    };
    Some(Route {
        name: route.name.as_str().into(),
        conditions: conditions?,
        action: action?,
        edits: edits(
            context,
            &route.request_headers_to_add,
            &route.request_headers_to_remove,
            &route.response_headers_to_add,
            &route.response_headers_to_remove,
        ),
        overrides,
        metadata: Metadata::compile(route.metadata.as_ref()),
    })
}

fn conditions(context: &mut Context, matcher: &proto::RouteMatch) -> Option<Conditions> {
    let path = PathMatch::compile(context, matcher);
    let headers: Vec<_> = context.each("headers", &matcher.headers, HeaderMatch::compile);
    let query: Vec<_> = context.each("query_parameters", &matcher.query_parameters, QueryMatch::compile);
    let share = matcher
        .runtime_fraction
        .as_ref()
        .and_then(|share| context.at("runtime_fraction", |context| runtime_fraction(context, share)));
    // A condition that was not understood must not be taken for one that holds.
    if headers.iter().any(Option::is_none) || query.iter().any(Option::is_none) {
        return None;
    }
    Some(Conditions {
        path: path?,
        headers: headers.into_iter().flatten().collect(),
        query: query.into_iter().flatten().collect(),
        share,
    })
}

pub(super) fn runtime_fraction(context: &mut Context, share: &RuntimeFractionalPercent) -> Option<Fraction> {
    match &share.default_value {
        Some(value) => Some(Fraction::compile(value)),
        None => {
            context.refuse_at("default_value", "required");
            None
        }
    }
}

fn forward(
    context: &mut Context,
    action: &proto::RouteAction,
    inherited: &Inherited<'_>,
    cors: Option<&CorsOverride>,
) -> Option<Forward> {
    let targets = match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => vec![Target {
            cluster: name.as_str().into(),
            weight: 1,
            edits: Edits::default(),
            overrides: FilterOverrides::default(),
            cors: inherited.cors.with(&[cors]),
            host_rewrite: None,
            metadata: Metadata::default(),
        }],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            context.at("weighted_clusters", |context| weighted_clusters(context, weighted, inherited, cors))
        }
        _ => {
            context.refuse("a route needs a cluster or weighted_clusters");
            return None;
        }
    };
    let total_weight = targets.iter().map(|target| u64::from(target.weight)).sum();
    if total_weight == 0 {
        context.refuse_at("weighted_clusters", "the weights must not all be zero");
        return None;
    }
    let stream_duration =
        action.max_stream_duration.as_ref().map(|own| context.at("max_stream_duration", |it| stream_duration(it, own)));
    let timeout = context.duration("timeout", action.timeout.as_ref());
    let max_grpc_timeout = context.duration("max_grpc_timeout", action.max_grpc_timeout.as_ref());
    let mirrors = if action.request_mirror_policies.is_empty() {
        inherited.mirrors
    } else {
        action.request_mirror_policies.as_slice()
    };
    Some(Forward {
        targets: targets.into(),
        total_weight,
        cluster_not_found_status: match action.cluster_not_found_response_code() {
            ClusterNotFoundResponseCode::ServiceUnavailable => 503,
            ClusterNotFoundResponseCode::NotFound => 404,
            ClusterNotFoundResponseCode::InternalServerError => 500,
        },
        high_priority: action.priority() == RoutingPriority::High,
        path_rewrite: path_rewrite(context, &action.prefix_rewrite, action.regex_rewrite.as_ref()),
        host_rewrite: match &action.host_rewrite_specifier {
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                refuse_controls(context, "host_rewrite_literal", host);
                Some(host.as_str().into())
            }
            Some(HostRewriteSpecifier::AutoHostRewrite(wanted)) if !wanted.value => None,
            Some(HostRewriteSpecifier::AutoHostRewrite(_)) => {
                context.refuse_at("auto_host_rewrite", "only false is supported; host_rewrite_literal names a host");
                None
            }
            // The walk over the fields has refused the others.
            Some(_) | None => None,
        },
        append_x_forwarded_host: action.append_x_forwarded_host,
        timeout: match timeout {
            // max_stream_duration takes the place of both older timeouts (Envoy's `usingNewTimeouts`).
            _ if stream_duration.is_some() => None,
            // Absent and zero differ: 15 s, and no limit.
            None => Some(DEFAULT_TIMEOUT),
            Some(Duration::ZERO) => None,
            Some(timeout) => Some(timeout),
        },
        max_grpc_timeout: max_grpc_timeout.filter(|_| stream_duration.is_none()),
        stream_duration,
        idle_timeout: context
            .duration("idle_timeout", action.idle_timeout.as_ref())
            .map(|timeout| (timeout != Duration::ZERO).then_some(timeout)),
        retry: match &action.retry_policy {
            Some(policy) => Some(Arc::new(context.at("retry_policy", |context| RetryPolicy::compile(context, policy)))),
            None => inherited.retry.cloned(),
        },
        mirrors: context.each("request_mirror_policies", mirrors, Mirror::compile).into(),
        hash: HashPolicy::compile_all(context, &action.hash_policy),
        upgrades: {
            let upgrades = context.each("upgrade_configs", &action.upgrade_configs, |context, upgrade| {
                let enabled = upgrade.enabled.as_ref().is_none_or(|enabled| enabled.value);
                Upgrade::compile(context, &upgrade.upgrade_type, enabled, upgrade.connect_config.as_ref())
            });
            refuse_repeated(context, &upgrades);
            upgrades.into()
        },
    })
}

fn stream_duration(context: &mut Context, own: &proto::route_action::MaxStreamDuration) -> StreamDuration {
    StreamDuration {
        limit: context
            .duration("max_stream_duration", own.max_stream_duration.as_ref())
            .map(|limit| (!limit.is_zero()).then_some(limit)),
        grpc_header_max: context.duration("grpc_timeout_header_max", own.grpc_timeout_header_max.as_ref()),
    }
}

fn weighted_clusters(
    context: &mut Context,
    weighted: &proto::WeightedCluster,
    inherited: &Inherited<'_>,
    cors: Option<&CorsOverride>,
) -> Vec<Target> {
    let of_route = inherited.cors.with(&[cors]);
    context.each("clusters", &weighted.clusters, |context, cluster| {
        if cluster.name.is_empty() {
            context.refuse_at("name", "required");
        }
        // The weft metadata of one destination travels in metadata_match, because there is no other field for it.
        // Any other content would select a subset of the cluster's endpoints.
        if cluster.metadata_match.iter().any(|metadata| metadata.filter_metadata.keys().any(|key| key != "weft")) {
            context.refuse_at("metadata_match", "weft-proxy has no subsets of a cluster's endpoints");
        }
        let overrides = overrides(context, &cluster.typed_per_filter_config);
        Target {
            cluster: cluster.name.as_str().into(),
            weight: cluster.weight.as_ref().map_or(0, |weight| weight.value),
            edits: edits(
                context,
                &cluster.request_headers_to_add,
                &cluster.request_headers_to_remove,
                &cluster.response_headers_to_add,
                &cluster.response_headers_to_remove,
            ),
            cors: match &overrides.cors {
                None => of_route.clone(),
                own => inherited.cors.with(&[own.as_ref(), cors]),
            },
            overrides,
            host_rewrite: cluster.host_rewrite_specifier.as_ref().map(|specifier| match specifier {
                cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host) => host.as_str().into(),
            }),
            metadata: Metadata::compile(cluster.metadata_match.as_ref()),
        }
    })
}

fn path_rewrite(context: &mut Context, prefix: &str, regex: Option<&RegexMatchAndSubstitute>) -> Option<PathRewrite> {
    refuse_controls(context, "prefix_rewrite", prefix);
    match regex {
        None => (!prefix.is_empty()).then(|| PathRewrite::Prefix(prefix.into())),
        Some(_) if !prefix.is_empty() => {
            context.refuse_at("regex_rewrite", "not together with prefix_rewrite");
            None
        }
        Some(rewrite) => context.at("regex_rewrite", |context| regex_rewrite(context, rewrite)),
    }
}

fn regex_rewrite(context: &mut Context, rewrite: &RegexMatchAndSubstitute) -> Option<PathRewrite> {
    refuse_controls(context, "substitution", &rewrite.substitution);
    let pattern = match build_regex(rewrite.pattern.as_ref().map_or("", |pattern| &pattern.regex)) {
        Ok(pattern) => pattern,
        Err(reason) => {
            context.refuse_at("pattern.regex", reason);
            return None;
        }
    };
    // RE2 writes groups as \1, the regex crate as ${1}; its own `$` must be doubled.
    let mut substitution = Vec::with_capacity(rewrite.substitution.len());
    let mut bytes = rewrite.substitution.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'$' => substitution.extend_from_slice(b"$$"),
            b'\\' => match bytes.next() {
                Some(digit @ b'0'..=b'9') if usize::from(digit - b'0') < pattern.captures_len() => {
                    substitution.extend_from_slice(&[b'$', b'{', digit, b'}']);
                }
                Some(b'\\') => substitution.push(b'\\'),
                _ => {
                    context.refuse_at(
                        "substitution",
                        format!("`{}` names a group that the pattern does not have", rewrite.substitution),
                    );
                    return None;
                }
            },
            other => substitution.push(other),
        }
    }
    Some(PathRewrite::Regex { pattern, substitution: substitution.into() })
}

fn redirect(context: &mut Context, action: &proto::RedirectAction) -> Redirect {
    let (prefix, regex, path) = match &action.path_rewrite_specifier {
        None => ("", None, None),
        Some(PathRewriteSpecifier::PathRedirect(path)) => ("", None, Some(Box::<str>::from(path.as_str()))),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => (prefix.as_str(), None, None),
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => ("", Some(rewrite), None),
    };
    refuse_controls(context, "path_redirect", path.as_deref().unwrap_or_default());
    refuse_controls(context, "host_redirect", &action.host_redirect);
    if let Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) = &action.scheme_rewrite_specifier {
        refuse_controls(context, "scheme_redirect", scheme);
    }
    Redirect {
        status: match action.response_code {
            0 => 301,
            1 => 302,
            2 => 303,
            3 => 307,
            4 => 308,
            other => {
                context.refuse_at("response_code", format!("{other} is not a redirect code"));
                301
            }
        },
        scheme: match &action.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.as_str().into()),
            Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        },
        host: (!action.host_redirect.is_empty()).then(|| action.host_redirect.as_str().into()),
        port: match u16::try_from(action.port_redirect) {
            Ok(port) => (port != 0).then_some(port),
            Err(_) => {
                context.refuse_at("port_redirect", "not a port number");
                None
            }
        },
        path,
        path_rewrite: path_rewrite(context, prefix, regex),
        strip_query: action.strip_query,
    }
}

/// Envoy's default of `max_direct_response_body_size_bytes`.
const DEFAULT_MAX_BODY_BYTES: usize = 4096;

fn direct(
    context: &mut Context,
    action: &proto::DirectResponseAction,
    max_body_bytes: usize,
) -> Option<DirectResponse> {
    let body: Arc<[u8]> = match action.body.as_ref().and_then(|body| body.specifier.as_ref()) {
        None => Arc::from([]),
        Some(Specifier::InlineString(text)) => text.as_bytes().into(),
        Some(Specifier::InlineBytes(bytes)) => bytes.as_slice().into(),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            context.refuse_at("body", "only inline bodies are supported");
            return None;
        }
    };
    if body.len() > max_body_bytes {
        context.refuse_at("body", format!("{} bytes are more than the limit of {max_body_bytes}", body.len()));
    }
    match u16::try_from(action.status) {
        Ok(status @ 200..=599) => Some(DirectResponse { status, body }),
        _ => {
            context.refuse_at("status", format!("{} is not a status of 200 to 599", action.status));
            None
        }
    }
}

fn edits(
    context: &mut Context,
    request_add: &[HeaderValueOption],
    request_remove: &[String],
    response_add: &[HeaderValueOption],
    response_remove: &[String],
) -> Edits {
    Edits {
        request: HeaderEdits::compile(
            context,
            ("request_headers_to_add", request_add),
            ("request_headers_to_remove", request_remove),
        ),
        response: HeaderEdits::compile(
            context,
            ("response_headers_to_add", response_add),
            ("response_headers_to_remove", response_remove),
        ),
    }
}

/// The key is the filter's name in the manager; the type decides which filter is meant.
fn overrides(context: &mut Context, configurations: &BTreeMap<String, Any>) -> FilterOverrides {
    let mut overrides = FilterOverrides::default();
    let mut rbac = Vec::new();
    for (name, any) in configurations {
        let own =
            context.at(&format!("typed_per_filter_config[{name}]"), |context| filter_override(context, name, any));
        match own {
            Some(FilterOverride::Fault(own)) => overrides.fault = Some(own),
            Some(FilterOverride::Rbac(own)) => rbac.push((name.as_str().into(), own)),
            Some(FilterOverride::Cors(own)) => overrides.cors = Some(own),
            None => {}
        }
    }
    overrides.rbac = rbac.into();
    overrides
}

/// What a level says about one filter.
enum FilterOverride {
    Fault(FaultOverride),
    Rbac(RbacOverride),
    Cors(CorsOverride),
}

fn filter_override(context: &mut Context, name: &str, any: &Any) -> Option<FilterOverride> {
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            let fault: HttpFault = decode(context, any)?;
            Some(FilterOverride::Fault(FaultOverride::Fault(Arc::new(Fault::compile(context, &fault)))))
        }
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
            let rules: RbacPerRoute = decode(context, any)?;
            let rbac = rules.rbac.unwrap_or_default();
            if !rbac.rules_stat_prefix.is_empty() || !rbac.shadow_rules_stat_prefix.is_empty() {
                context.refuse_at("rbac", "prefixes of statistics are the filter's, not the route's");
            }
            let rbac = context.at("rbac", |context| Rbac::compile(context, &rbac));
            Some(FilterOverride::Rbac(RbacOverride::Rbac(Arc::new(rbac))))
        }
        "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {
            if name != CORS_FILTER {
                context.refuse(format!("the CORS filter has the name {CORS_FILTER}"));
            }
            let policy: ProtoCorsPolicy = decode(context, any)?;
            let policy = CorsPolicy::compile(context, &policy);
            Some(FilterOverride::Cors(CorsOverride::Policy(Arc::new(policy))))
        }
        "envoy.config.route.v3.FilterConfig" => {
            let filter: proto::FilterConfig = decode(context, any)?;
            match (filter.disabled, name) {
                (true, crate::http_manager::FAULT_FILTER) => Some(FilterOverride::Fault(FaultOverride::Disabled)),
                (true, CORS_FILTER) => Some(FilterOverride::Cors(CorsOverride::Disabled)),
                (true, crate::rbac::HTTP_FILTER) => Some(FilterOverride::Rbac(RbacOverride::Disabled)),
                (true, _) => {
                    context.refuse_at(
                        "disabled",
                        "only the filters fault, cors and rbac can be disabled for a route, by the names that Envoy gives them",
                    );
                    None
                }
                (false, _) => filter.config.as_ref().and_then(|any| filter_override(context, name, any)),
            }
        }
        other => {
            context.refuse(format!("no filter of weft-proxy takes `{other}` for a route"));
            None
        }
    }
}

fn decode<M: weft_protos::Message + Default>(context: &mut Context, any: &Any) -> Option<M> {
    let kind = weft_protos::type_url::kind(&any.type_url);
    M::decode(any.value.as_ref()).map_err(|error| context.refuse(format!("not a {kind}: {error}"))).ok()
}
