//! From `DubboProxy` and `ThriftProxy` to routes of calls.

use std::sync::Arc;

use weft_protos::envoy::config::route::v3 as http;
use weft_protos::envoy::extensions::filters::network::dubbo_proxy::router::v3::Router as DubboRouter;
use weft_protos::envoy::extensions::filters::network::dubbo_proxy::v3 as dubbo;
use weft_protos::envoy::extensions::filters::network::thrift_proxy::router::v3::Router as ThriftRouter;
use weft_protos::envoy::extensions::filters::network::thrift_proxy::v3 as thrift;
use weft_protos::google::protobuf::Any;

use super::{Conditions, ParameterMatch, Protocol, Route, RpcProxy, ServiceMatch, ThriftEncoding, ThriftTransport};
use crate::access_log::AccessLog;
use crate::compile::Context;
use crate::matching::{HeaderMatch, StringMatch};

const DUBBO_ROUTER: &str = "envoy.extensions.filters.network.dubbo_proxy.router.v3.Router";
const THRIFT_ROUTER: &str = "envoy.extensions.filters.network.thrift_proxy.router.v3.Router";

/// Clusters and their weights.
type Targets = Box<[(Arc<str>, u32)]>;

impl RpcProxy {
    pub(crate) fn compile_dubbo(context: &mut Context, filter: &dubbo::DubboProxy) -> Self {
        use dubbo::dubbo_proxy::RouteSpecifier;
        for (field, value, only) in [
            ("protocol_type", filter.protocol_type, dubbo::ProtocolType::Dubbo as i32),
            ("serialization_type", filter.serialization_type, dubbo::SerializationType::Hessian2 as i32),
        ] {
            if value != only {
                context.refuse_at(field, format!("{value} is not known"));
            }
        }
        context.each("dubbo_filters", &filter.dubbo_filters, |context, item| {
            context.at("config", |context| only_router::<DubboRouter>(context, DUBBO_ROUTER, item.config.as_ref()))
        });
        let mut routes = Vec::new();
        let mut read = |context: &mut Context, field: &str, list: &[dubbo::RouteConfiguration]| {
            routes.extend(context.each(field, list, dubbo_routes).into_iter().flatten());
        };
        match &filter.route_specifier {
            // The list that `multiple_route_config` replaces stays unread then, as in Envoy; which is no way to write what one means.
            Some(_) if !filter.route_config.is_empty() => {
                context.refuse_at("route_config", "has no effect beside multiple_route_config");
            }
            Some(RouteSpecifier::MultipleRouteConfig(multiple)) => {
                context.at("multiple_route_config", |context| read(context, "route_config", &multiple.route_config));
            }
            Some(RouteSpecifier::Drds(_)) => context.refuse_at("drds", "routes of Dubbo cannot be fetched"),
            None => read(context, "route_config", &filter.route_config),
        }
        Self {
            protocol: Protocol::Dubbo,
            stat_prefix: filter.stat_prefix.as_str().into(),
            routes: routes.into(),
            max_requests_per_connection: None,
            close_after_error: false,
            access_logs: Box::default(),
        }
    }

    pub(crate) fn compile_thrift(context: &mut Context, filter: &thrift::ThriftProxy) -> Self {
        let routers = context.each("thrift_filters", &filter.thrift_filters, |context, item| {
            let any = item.config_type.as_ref().map(|thrift::thrift_filter::ConfigType::TypedConfig(any)| any);
            context.at("typed_config", |context| only_router::<ThriftRouter>(context, THRIFT_ROUTER, any))
        });
        let closes = routers.into_iter().flatten().find_map(|router| router.close_downstream_on_upstream_error);
        let transport = match filter.transport() {
            thrift::TransportType::AutoTransport => None,
            thrift::TransportType::Framed => Some(ThriftTransport::Framed),
            thrift::TransportType::Header => Some(ThriftTransport::Header),
            thrift::TransportType::Unframed => {
                context
                    .refuse_at("transport", "UNFRAMED has no lengths: only framed and header transport are supported");
                None
            }
        };
        let encoding = match filter.protocol() {
            thrift::ProtocolType::AutoProtocol => None,
            thrift::ProtocolType::Binary => Some(ThriftEncoding::Binary),
            thrift::ProtocolType::Compact => Some(ThriftEncoding::Compact),
            thrift::ProtocolType::LaxBinary | thrift::ProtocolType::Twitter => {
                context.refuse_at("protocol", "only BINARY and COMPACT are supported");
                None
            }
        };
        let routes = filter.route_config.as_ref().map(|table| {
            context.at("route_config", |context| {
                if table.validate_clusters.as_ref().is_some_and(|validate| validate.value) {
                    context.refuse_at("validate_clusters", "clusters may come later than the routes that name them");
                }
                context.each("routes", &table.routes, |context, route| thrift_route(context, &table.name, route))
            })
        });
        Self {
            protocol: Protocol::Thrift { transport, encoding },
            stat_prefix: filter.stat_prefix.as_str().into(),
            routes: routes.into_iter().flatten().flatten().map(Arc::new).collect(),
            max_requests_per_connection: filter
                .max_requests_per_connection
                .as_ref()
                .map(|most| most.value)
                .filter(|most| *most > 0),
            // Envoy's default.
            close_after_error: closes.is_none_or(|closes| closes.value),
            access_logs: AccessLog::compile_all(context, "access_log", &filter.access_log),
        }
    }
}

/// The filters of both protocols are the router or nothing.
fn only_router<R: prost::Message + Default>(context: &mut Context, router: &str, any: Option<&Any>) -> Option<R> {
    // Envoy knows a filter without a configuration by its name; the router is the only one that needs none.
    let any = any?;
    if any.type_url.rsplit('/').next() != Some(router) {
        context.refuse("weft-proxy has no filter for calls but the router");
        return None;
    }
    R::decode(any.value.as_ref()).map_err(|error| context.refuse(error.to_string())).ok()
}

fn dubbo_routes(context: &mut Context, table: &dubbo::RouteConfiguration) -> Vec<Arc<Route>> {
    let service = service(&table.interface);
    let optional = |text: &str| (!text.is_empty()).then(|| text.into());
    let routes = context.each("routes", &table.routes, |context, route| {
        let matcher = route.r#match.clone().unwrap_or_default();
        let found = context.at("match", |context| {
            let headers = headers(context, &matcher.headers);
            let method = match &matcher.method {
                None => Some((None, Vec::new())),
                Some(method) => context.at("method", |context| dubbo_method(context, method)),
            };
            Some((headers?, method?))
        });
        let action = route.route.clone().unwrap_or_default();
        let targets = context.at("route", |context| dubbo_targets(context, &action));
        let (headers, (method, parameters)) = found?;
        Some(Arc::new(Route {
            name: table.name.as_str().into(),
            conditions: Conditions {
                service: Some(service.clone()),
                version: optional(&table.version),
                group: optional(&table.group),
                method,
                invert: false,
                headers,
                parameters: parameters.into(),
            },
            targets: targets?,
        }))
    });
    routes.into_iter().flatten().collect()
}

/// Conditions on the method's name, and on arguments by their places.
type Method = (Option<StringMatch>, Vec<(usize, ParameterMatch)>);

/// `None` if a condition was not understood (a problem is noted then).
fn dubbo_method(context: &mut Context, method: &dubbo::MethodMatch) -> Option<Method> {
    use dubbo::method_match::parameter_match_specifier::ParameterMatchSpecifier as Specifier;
    let name = match &method.name {
        None => None,
        Some(name) => Some(context.at("name", |context| StringMatch::compile(context, name))?),
    };
    let parameters = method.params_match.iter().map(|(place, specifier)| {
        let wanted = match &specifier.parameter_match_specifier {
            Some(Specifier::ExactMatch(text)) => ParameterMatch::Exact(text.as_str().into()),
            Some(Specifier::RangeMatch(range)) => ParameterMatch::Range(range.start, range.end),
            // Envoy: nothing said is the empty text, which matches every string.
            None => ParameterMatch::Exact(Box::default()),
        };
        (*place as usize, wanted)
    });
    let mut parameters: Vec<_> = parameters.collect();
    parameters.sort_by_key(|(place, _)| *place);
    Some((name, parameters))
}

fn dubbo_targets(context: &mut Context, action: &dubbo::RouteAction) -> Option<Targets> {
    use dubbo::route_action::ClusterSpecifier;
    let targets = match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![(name.as_str().into(), 1)],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => context.at("weighted_clusters", |context| {
            context.each("clusters", &weighted.clusters, |context, cluster| {
                let weight = cluster.weight.as_ref().map_or(0, |weight| weight.value);
                // The message is HTTP's, so its fields are known; to a call of Dubbo nothing can be done by them.
                let plain = http::weighted_cluster::ClusterWeight {
                    name: cluster.name.clone(),
                    weight: cluster.weight,
                    ..Default::default()
                };
                if *cluster != plain {
                    context.refuse("only name and weight mean anything to calls of Dubbo");
                }
                (cluster.name.as_str().into(), weight)
            })
        }),
        None => Vec::new(),
    };
    usable(context, targets)
}

fn thrift_route(context: &mut Context, name: &str, route: &thrift::Route) -> Option<Route> {
    use thrift::route_action::ClusterSpecifier;
    use thrift::route_match::MatchSpecifier;
    let matcher = route.r#match.clone().unwrap_or_default();
    let headers = context.at("match", |context| headers(context, &matcher.headers));
    // An empty name matches every call (Envoy's documentation of both fields).
    let (service, method) = match &matcher.match_specifier {
        Some(MatchSpecifier::MethodName(name)) if !name.is_empty() => (None, Some(StringMatch::exact(name))),
        Some(MatchSpecifier::ServiceName(name)) if !name.is_empty() => {
            // Envoy adds the colon of TMultiplexedProtocol where it is left out.
            let name = name.strip_suffix(':').unwrap_or(name);
            (Some(ServiceMatch::Exact(name.into())), None)
        }
        Some(_) => (None, None),
        None => {
            context.refuse_at("match", "a route of Thrift needs method_name or service_name");
            return None;
        }
    };
    if matcher.invert && service.is_none() && method.is_none() {
        context.refuse_at("match.invert", "nothing is left that could match");
        return None;
    }
    let action = route.route.clone().unwrap_or_default();
    let targets = context.at("route", |context| {
        let targets = match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => vec![(name.as_str().into(), 1)],
            Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted
                .clusters
                .iter()
                .map(|cluster| (cluster.name.as_str().into(), cluster.weight.as_ref().map_or(0, |it| it.value)))
                .collect(),
            Some(ClusterSpecifier::ClusterHeader(_)) | None => Vec::new(),
        };
        usable(context, targets)
    });
    Some(Route {
        name: name.into(),
        conditions: Conditions { service, method, invert: matcher.invert, headers: headers?, ..Conditions::default() },
        targets: targets?,
    })
}

/// `None` if a condition was not understood: it must not be taken for one that holds.
fn headers(context: &mut Context, matchers: &[http::HeaderMatcher]) -> Option<Box<[HeaderMatch]>> {
    context.each("headers", matchers, HeaderMatch::compile).into_iter().collect()
}

fn usable(context: &mut Context, targets: Vec<(Arc<str>, u32)>) -> Option<Targets> {
    if targets.iter().any(|(name, _)| name.is_empty()) || targets.iter().all(|(_, weight)| *weight == 0) {
        context.refuse("a route needs a cluster, or weighted_clusters with names and not all of weight zero");
        return None;
    }
    Some(targets.into())
}

/// `*`, `com.example.*`, `*.Greeter` or a name, as Envoy reads a Dubbo interface.
fn service(interface: &str) -> ServiceMatch {
    if interface == "*" {
        ServiceMatch::Any
    } else if let Some(end) = interface.strip_prefix('*') {
        ServiceMatch::Suffix(end.into())
    } else if let Some(begin) = interface.strip_suffix('*') {
        ServiceMatch::Prefix(begin.into())
    } else {
        ServiceMatch::Exact(interface.into())
    }
}
