//! Routes of calls: what of Envoy's dubbo_proxy and thrift_proxy is compiled, and where calls go by it.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Value, json};
use weft_core::compile::Strictness;
use weft_core::honoured::json::encode;
use weft_core::listener::NetworkFilter;
use weft_core::plan::{Plan, Resource};
use weft_core::random::{Draw, Random};
use weft_core::respond::Cause;
use weft_core::rpc::{Call, Protocol, RpcProxy, ThriftEncoding, ThriftTransport, decide};
use weft_core::trace::Silent;
use weft_protos::type_url;

const PACKAGE: &str = "type.googleapis.com/envoy.extensions.filters.network";

fn listener(filter: Value) -> Value {
    json!({
        "name": "l",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [{"name": "f", "typed_config": filter}]}],
    })
}

fn dubbo(mut content: Value) -> Value {
    content["@type"] = format!("{PACKAGE}.dubbo_proxy.v3.DubboProxy").into();
    content["stat_prefix"] = "p".into();
    listener(content)
}

fn thrift(mut content: Value) -> Value {
    content["@type"] = format!("{PACKAGE}.thrift_proxy.v3.ThriftProxy").into();
    content["stat_prefix"] = "p".into();
    listener(content)
}

/// A plan with this listener and these clusters; what is refused, as one text.
fn plan(listener: &Value, clusters: &[&str]) -> Result<Plan, String> {
    let listed = |problems: Vec<weft_core::compile::Problem>| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let mut plan = Plan::default();
    let bytes = encode(type_url::LISTENER, listener).map_err(listed)?;
    let compiled = Resource::compile(type_url::LISTENER, &bytes, Strictness::Refuse).map_err(|it| listed(it.0))?;
    plan.insert(compiled.value);
    for name in clusters {
        let cluster = json!({"name": name, "type": "STATIC", "load_assignment": {"cluster_name": name}});
        let bytes = encode(type_url::CLUSTER, &cluster).map_err(listed)?;
        plan.insert(Resource::compile(type_url::CLUSTER, &bytes, Strictness::Refuse).map_err(|it| listed(it.0))?.value);
    }
    Ok(plan)
}

fn proxy(plan: &Plan) -> &RpcProxy {
    match &plan.listeners["l"].filter_chains[0].filter {
        NetworkFilter::Rpc(proxy) => proxy,
        NetworkFilter::Http(_) | NetworkFilter::Tcp(_) => panic!("the filter is for calls"),
    }
}

/// A call as a test tells it.
#[derive(Default, Clone)]
struct Told {
    service: &'static str,
    version: Option<&'static str>,
    group: Option<&'static str>,
    method: &'static str,
    headers: HashMap<&'static str, &'static str>,
    parameters: Vec<Option<&'static str>>,
    unread: bool,
}

impl Call for Told {
    fn service(&self) -> &[u8] {
        self.service.as_bytes()
    }
    fn version(&self) -> Option<&[u8]> {
        self.version.map(str::as_bytes)
    }
    fn group(&self) -> Option<&[u8]> {
        self.group.map(str::as_bytes)
    }
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.headers.get(name).map(|value| Cow::Borrowed(value.as_bytes()))
    }
    fn parameter(&self, place: usize) -> Option<Cow<'_, [u8]>> {
        self.parameters.get(place).copied().flatten().map(|value| Cow::Borrowed(value.as_bytes()))
    }
    fn is_read(&self) -> bool {
        !self.unread
    }
}

/// A die that shows this share of all.
struct Die(f64);

impl Random for Die {
    fn draw(&mut self, _: Draw) -> u64 {
        (self.0 * 18_446_744_073_709_551_616.0) as u64
    }
}

fn outcome(plan: &Plan, call: &Told, die: f64) -> Result<String, Cause> {
    decide(plan, proxy(plan), call, &mut Die(die), &mut Silent).outcome.map(|cluster| cluster.name.to_string())
}

fn call(service: &'static str, method: &'static str) -> Told {
    Told { service, method, ..Told::default() }
}

#[test]
fn an_interface_is_a_name_or_what_is_left_of_one() {
    let table = |interface: &str| {
        let routes = json!([{"match": {}, "route": {"cluster": "c"}}]);
        plan(&dubbo(json!({"route_config": [{"interface": interface, "routes": routes}]})), &["c"]).unwrap()
    };
    for (interface, service, matches) in [
        ("a.Greeter", "a.Greeter", true),
        ("a.Greeter", "a.Greeter2", false),
        ("*", "a.Greeter", true),
        ("*", "", false),
        ("a.*", "a.Greeter", true),
        ("a.*", "a.", false),
        ("*.Greeter", "a.Greeter", true),
        ("*.Greeter", ".Greeter", false),
    ] {
        let expected = if matches { Ok("c".to_owned()) } else { Err(Cause::RouteNotFound) };
        assert_eq!(outcome(&table(interface), &call(service, "m"), 0.0), expected, "{interface} {service}");
    }
}

#[test]
fn header_matchers_see_what_was_sent_along_and_no_pseudo_headers() {
    let matched = |matcher: Value| {
        let routes =
            json!([{"match": {"method": {"name": {"prefix": ""}}, "headers": [matcher]}, "route": {"cluster": "c"}}]);
        let plan =
            plan(&dubbo(json!({"route_config": [{"name": "t", "interface": "S", "routes": routes}]})), &["c"]).unwrap();
        let call = Told { headers: HashMap::from([("host", "x")]), ..call("S", "get") };
        outcome(&plan, &call, 0.0).is_ok()
    };
    assert!(matched(json!({"name": "host", "string_match": {"exact": "x"}})));
    for name in [":scheme", ":method", ":path", ":authority"] {
        assert!(!matched(json!({"name": name, "present_match": true})), "{name}");
    }
}

#[test]
fn version_group_method_headers_and_arguments_must_all_hold() {
    let table = json!({
        "name": "t", "interface": "S", "version": "1.0", "group": "g",
        "routes": [{
            "match": {
                "method": {"name": {"prefix": "get"}, "params_match": {
                    "0": {"exact_match": "x"}, "1": {"range_match": {"start": 5, "end": 7}}, "2": {},
                }},
                "headers": [{"name": "Tenant", "string_match": {"exact": "blue"}}],
            },
            "route": {"cluster": "c"},
        }],
    });
    let plan = plan(&dubbo(json!({"route_config": [table]})), &["c"]).unwrap();
    let good = Told {
        version: Some("1.0"),
        group: Some("g"),
        headers: HashMap::from([("tenant", "blue")]),
        parameters: vec![Some("x"), Some("6"), Some("anything")],
        ..call("S", "getAll")
    };
    assert_eq!(outcome(&plan, &good, 0.0), Ok("c".to_owned()));
    let conditions = proxy(&plan).routes[0].conditions.to_string();
    assert_eq!(
        conditions,
        "service S, method beginning with `get`, version 1.0, group g, header tenant equal to `blue`, \
         argument 0 `x`, argument 1 from 5 to below 7, argument 2 ``"
    );
    for (what, bad) in [
        ("version", Told { version: Some("2.0"), ..good.clone() }),
        ("no version", Told { version: None, ..good.clone() }),
        ("group", Told { group: None, ..good.clone() }),
        ("method", Told { method: "put", ..good.clone() }),
        ("no method", Told { method: "", ..good.clone() }),
        ("header", Told { headers: HashMap::new(), ..good.clone() }),
        ("argument", Told { parameters: vec![Some("y"), Some("6"), Some("z")], ..good.clone() }),
        ("range", Told { parameters: vec![Some("x"), Some("7"), Some("z")], ..good.clone() }),
        ("no text", Told { parameters: vec![Some("x"), Some("6"), None], ..good.clone() }),
        ("too few", Told { parameters: vec![Some("x")], ..good.clone() }),
    ] {
        assert_eq!(outcome(&plan, &bad, 0.0), Err(Cause::RouteNotFound), "{what}");
    }
    // What nobody can know is not guessed; where names decide already, it is not asked.
    assert_eq!(outcome(&plan, &Told { unread: true, ..good.clone() }, 0.0), Err(Cause::MalformedRequest));
    assert_eq!(outcome(&plan, &Told { unread: true, method: "put", ..good }, 0.0), Err(Cause::RouteNotFound));
}

#[test]
fn weights_share_calls_and_a_cluster_that_is_missing_is_told() {
    let weighted =
        json!({"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 3}, {"name": "z", "weight": 0}]});
    let routes = json!([{"match": {}, "route": {"weighted_clusters": weighted}}]);
    let plan = plan(&dubbo(json!({"route_config": [{"interface": "*", "routes": routes}]})), &["a"]).unwrap();
    assert_eq!(outcome(&plan, &call("S", "m"), 0.2), Ok("a".to_owned()));
    for die in [0.25, 0.99] {
        assert_eq!(outcome(&plan, &call("S", "m"), die), Err(Cause::ClusterNotFound));
        let decision = decide(&plan, proxy(&plan), &call("S", "m"), &mut Die(die), &mut Silent);
        assert_eq!(decision.target.map(|name| &**name), Some("b"));
    }
}

#[test]
fn several_route_configurations_are_tried_in_order() {
    let table = |interface: &str, cluster: &str| json!({"interface": interface, "routes": [{"match": {"method": {"name": {"exact": "m"}}}, "route": {"cluster": cluster}}]});
    let tables = json!([table("S", "a"), table("*", "b")]);
    for content in
        [json!({"route_config": tables}), json!({"multiple_route_config": {"name": "n", "route_config": tables}})]
    {
        let plan = plan(&dubbo(content), &["a", "b"]).unwrap();
        assert_eq!(outcome(&plan, &call("S", "m"), 0.0), Ok("a".to_owned()));
        assert_eq!(outcome(&plan, &call("T", "m"), 0.0), Ok("b".to_owned()));
        assert_eq!(outcome(&plan, &call("T", "n"), 0.0), Err(Cause::RouteNotFound));
    }
}

#[test]
fn a_thrift_route_is_for_a_method_a_service_or_all_but_one() {
    let routes = json!([
        {"match": {"method_name": "add"}, "route": {"cluster": "a"}},
        {"match": {"service_name": "Adder"}, "route": {"cluster": "b"}},
        {"match": {"service_name": "Other:"}, "route": {"cluster": "c"}},
        {"match": {"method_name": "secret", "invert": true, "headers": [{"name": "tenant", "present_match": true}]},
         "route": {"weighted_clusters": {"clusters": [{"name": "d", "weight": 1}]}}},
    ]);
    let table = json!({"name": "r", "validate_clusters": false, "routes": routes});
    let plan = plan(&thrift(json!({"route_config": table})), &["a", "b", "c", "d"]).unwrap();
    let with_tenant = |call: Told| Told { headers: HashMap::from([("tenant", "x")]), ..call };
    for (asked, expected) in [
        (call("", "add"), Ok("a")),
        (call("Adder", "Adder:add"), Ok("b")),
        (call("Other", "Other:add"), Ok("c")),
        (call("", "sub"), Err(Cause::RouteNotFound)),
        (with_tenant(call("", "sub")), Ok("d")),
        (with_tenant(call("", "secret")), Err(Cause::RouteNotFound)),
    ] {
        assert_eq!(outcome(&plan, &asked, 0.0), expected.map(str::to_owned), "{}", asked.method);
    }
    assert_eq!(proxy(&plan).protocol, Protocol::Thrift { transport: None, encoding: None });
}

#[test]
fn an_empty_method_name_of_thrift_takes_all() {
    let routes = json!([{"match": {"method_name": ""}, "route": {"cluster": "a"}}]);
    let content = json!({
        "transport": "HEADER", "protocol": "COMPACT", "max_requests_per_connection": 0,
        "route_config": {"routes": routes},
        "thrift_filters": [{"name": "envoy.filters.thrift.router"}],
    });
    let mut open = content.clone();
    open["thrift_filters"][0]["typed_config"] = json!({
        "@type": format!("{PACKAGE}.thrift_proxy.router.v3.Router"), "close_downstream_on_upstream_error": false,
    });
    let open = plan(&thrift(open), &["a"]).unwrap();
    let plan = plan(&thrift(content), &["a"]).unwrap();
    assert_eq!((proxy(&plan).close_after_error, proxy(&open).close_after_error), (true, false));
    assert_eq!(outcome(&plan, &call("", "any"), 0.0), Ok("a".to_owned()));
    let expected =
        Protocol::Thrift { transport: Some(ThriftTransport::Header), encoding: Some(ThriftEncoding::Compact) };
    assert_eq!((proxy(&plan).protocol, proxy(&plan).max_requests_per_connection), (expected, None));
}

#[test]
fn what_is_not_honoured_is_refused_by_name() {
    let route = |route: Value| json!({"route_config": [{"interface": "*", "routes": [{"match": {}, "route": route}]}]});
    let cluster = |extra: Value| {
        let mut cluster = json!({"name": "a", "weight": 1});
        cluster.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        route(json!({"weighted_clusters": {"clusters": [cluster]}}))
    };
    let filter = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    let filter_path = "filter_chains[0].filters[0].typed_config";
    for (content, expected) in [
        (json!({"drds": {}}), "drds: weft-proxy does not honour this field"),
        (json!({"protocol_type": 1}), "protocol_type: 1 is not known"),
        (json!({"serialization_type": 1}), "serialization_type: 1 is not known"),
        (route(json!({})), "route_config[0].routes[0].route: a route needs a cluster"),
        (route(json!({"cluster": "a", "metadata_match": {}})), "routes[0].route.metadata_match: "),
        (cluster(json!({"host_rewrite_literal": "x"})), "weighted_clusters.clusters[0]: only name and weight"),
        (cluster(json!({"weight": 0})), "weighted_clusters with names and not all of weight zero"),
        (
            json!({"dubbo_filters": [{"name": "x", "config": filter}]}),
            "dubbo_filters[0].config: weft-proxy has no filter",
        ),
        (
            json!({"route_config": [{"interface": "*"}], "multiple_route_config": {}}),
            "route_config: has no effect beside multiple_route_config",
        ),
        (
            json!({"route_config": [{"routes": [{"match": {"method": {"params_match": {"x": {}}}}}]}]}),
            "params_match[x]: expected a number",
        ),
    ] {
        let refused = plan(&dubbo(content), &[]).err().unwrap_or_else(|| panic!("accepted: {expected}"));
        assert!(refused.contains(expected) && refused.contains(filter_path), "{expected} is not in {refused}");
    }
    let table =
        |matcher: Value, route: Value| json!({"route_config": {"routes": [{"match": matcher, "route": route}]}});
    let good = json!({"cluster": "a"});
    for (content, expected) in [
        (json!({"transport": "UNFRAMED"}), "transport: UNFRAMED has no lengths"),
        (json!({"protocol": "TWITTER"}), "protocol: only BINARY and COMPACT"),
        (json!({"payload_passthrough": true}), "payload_passthrough: "),
        (json!({"trds": {}}), "trds: "),
        (
            json!({"route_config": {"validate_clusters": true}}),
            "route_config.validate_clusters: clusters may come later",
        ),
        (table(json!({}), good.clone()), "match: a route of Thrift needs method_name or service_name"),
        (table(json!({"method_name": "", "invert": true}), good.clone()), "match.invert: nothing is left"),
        (table(json!({"method_name": "m"}), json!({"cluster_header": "h"})), "cluster_header: "),
        (
            table(json!({"method_name": "m"}), json!({"cluster": "a", "strip_service_name": true})),
            "strip_service_name: ",
        ),
        (
            json!({"thrift_filters": [{"name": "x", "typed_config": filter}]}),
            "weft-proxy has no filter for calls but the router",
        ),
    ] {
        let refused = plan(&thrift(content), &[]).err().unwrap_or_else(|| panic!("accepted: {expected}"));
        assert!(refused.contains(expected) && refused.contains(filter_path), "{expected} is not in {refused}");
    }
}
