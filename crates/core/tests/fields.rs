//! Fields that say one small thing each, in Envoy's JSON: what becomes of them, what is reported, and what is refused.

mod support;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Fixed, HeaderList, OnlyProtocol, request};
use weft_core::cluster::{Cluster, Discovery, LbPolicy};
use weft_core::compile::{Compiled, Problems, Strictness};
use weft_core::decide::decide;
use weft_core::format::{Command, Variables};
use weft_core::health_check::Probe;
use weft_core::honoured::json::encode;
use weft_core::http_manager::RouteSource;
use weft_core::http2::FloodLimits;
use weft_core::listener::{Listener, NetworkFilter};
use weft_core::plan::{Plan, Resource};
use weft_core::route::{Action, RouteTable};
use weft_core::tls::{SanKind, TlsCommon};
use weft_core::trace::Silent;
use weft_protos::type_url;

fn typed(name: &str, fields: Value) -> Value {
    let mut message = fields;
    message["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{name}"));
    message
}

/// *resource* with the members of *more* in it.
fn with(mut resource: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("members are needed, not {more}") };
    resource.as_object_mut().expect("an object").extend(more);
    resource
}

fn compile(type_url: &str, resource: &Value) -> Result<Compiled<Resource>, Problems> {
    let bytes = encode(type_url, resource).map_err(Problems)?;
    Resource::compile(type_url, &bytes, Strictness::Refuse)
}

/// What is reported of *resource*, or why it is refused, with paths.
fn told(type_url: &str, resource: &Value) -> Result<Vec<String>, String> {
    compile(type_url, resource)
        .map(|compiled| compiled.not_applied.iter().map(ToString::to_string).collect())
        .map_err(|problems| problems.to_string())
}

fn tcp(more: Value) -> Value {
    let filter = with(json!({"stat_prefix": "t", "cluster": "c"}), more);
    json!([{"name": "tcp", "typed_config": typed("filters.network.tcp_proxy.v3.TcpProxy", filter)}])
}

fn http(manager: Value, http_filters: &[Value]) -> Value {
    let router = json!({"name": "router", "typed_config": typed("filters.http.router.v3.Router", json!({}))});
    let http_filters = [http_filters, &[router]].concat();
    let manager =
        with(json!({"stat_prefix": "h", "route_config": {"name": "r"}, "http_filters": http_filters}), manager);
    let name = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!([{"name": "http", "typed_config": typed(name, manager)}])
}

fn listener(chain: Value, more: Value) -> Value {
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": 80}});
    with(json!({"name": "l", "address": address, "filter_chains": [chain]}), more)
}

fn listener_of(resource: &Value) -> Arc<Listener> {
    match compile(type_url::LISTENER, resource).expect("honoured").value {
        Resource::Listener(listener) => listener,
        other => unreachable!("a listener becomes no {other:?}"),
    }
}

fn cluster_of(more: Value) -> Arc<Cluster> {
    match compile(type_url::CLUSTER, &with(json!({"name": "c"}), more)).expect("honoured").value {
        Resource::Cluster(cluster) => cluster,
        other => unreachable!("a cluster becomes no {other:?}"),
    }
}

/// A configuration of one virtual host with one route.
fn configuration(route: Value, more: Value) -> Value {
    let route = with(json!({"match": {"prefix": "/"}}), route);
    with(json!({"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]}), more)
}

fn routes_of(resource: &Value) -> Arc<RouteTable> {
    match compile(type_url::ROUTE_CONFIGURATION, resource).expect("honoured").value {
        Resource::Routes(table) => table,
        other => unreachable!("routes become no {other:?}"),
    }
}

#[test]
fn a_listeners_socket_is_opened_as_its_fields_say() {
    let plain = listener_of(&listener(json!({"filters": tcp(json!({}))}), json!({})));
    assert_eq!((plain.freebind, plain.backlog), (false, None));
    let said = json!({"freebind": true, "tcp_backlog_size": 7});
    let told = listener_of(&listener(json!({"filters": tcp(json!({}))}), said));
    assert_eq!((told.freebind, told.backlog), (true, Some(7)));
}

#[test]
fn a_chain_waits_for_a_handshake_as_long_as_it_says() {
    let chain = |timeout: &str| json!({"filters": tcp(json!({})), "transport_socket_connect_timeout": timeout});
    let of = |timeout| listener_of(&listener(chain(timeout), json!({}))).filter_chains[0].tls_handshake_timeout;
    assert_eq!(of("0.3s"), Some(Duration::from_millis(300)));
    assert_eq!(of("0s"), None);
}

#[test]
fn connecting_is_tried_as_often_as_a_tcp_proxy_says() {
    let attempts = |more| {
        let listener = listener_of(&listener(json!({"filters": tcp(more)}), json!({})));
        match &listener.filter_chains[0].filter {
            NetworkFilter::Tcp(proxy) => proxy.max_connect_attempts,
            other => unreachable!("the filter carries bytes, it is no {other:?}"),
        }
    };
    assert_eq!(attempts(json!({})), 1);
    assert_eq!(attempts(json!({"max_connect_attempts": 3})), 3);
}

#[test]
fn a_tcp_proxys_connections_are_shared_by_weight() {
    let clusters = json!({"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 3}]});
    let filter =
        typed("filters.network.tcp_proxy.v3.TcpProxy", json!({"stat_prefix": "t", "weighted_clusters": clusters}));
    let chain = json!({"filters": [{"name": "tcp", "typed_config": filter}]});
    let listener = listener_of(&listener(chain, json!({})));
    let NetworkFilter::Tcp(proxy) = &listener.filter_chains[0].filter else { panic!("the filter carries bytes") };
    let picked = [0.0, 0.24, 0.26, 0.99].map(|die| proxy.pick(&mut Fixed(die)).to_string());
    assert_eq!(picked, ["a", "a", "b", "b"]);
}

#[test]
fn a_connection_too_many_is_held_as_long_as_its_limit_says() {
    let limit = json!({"stat_prefix": "l", "max_connections": 1, "delay": "0.5s"});
    let filter =
        json!({"name": "limit", "typed_config": typed("filters.network.connection_limit.v3.ConnectionLimit", limit)});
    let mut filters = tcp(json!({}));
    filters.as_array_mut().expect("a list").insert(0, filter);
    let listener = listener_of(&listener(json!({"filters": filters}), json!({})));
    let limit = listener.filter_chains[0].connection_limit.as_ref().expect("there is one");
    assert_eq!(limit.delay, Some(Duration::from_millis(500)));
}

#[test]
fn an_inspector_is_disabled_on_any_of_several_ranges_of_ports() {
    let ports = |start: u32, end: u32| json!({"destination_port_range": {"start": start, "end": end}});
    let rules = json!({"or_match": {"rules": [ports(15001, 15002), ports(3306, 3307)]}});
    let inspector = json!({"name": "tls", "filter_disabled": rules,
        "typed_config": typed("filters.listener.tls_inspector.v3.TlsInspector", json!({}))});
    let resource = listener(json!({"filters": tcp(json!({}))}), json!({"listener_filters": [inspector]}));
    let tls = listener_of(&resource).tls_inspector.clone().expect("there is one");
    let runs = [15000, 15001, 15002, 3306, 3307].map(|port| tls.runs_on(port));
    assert_eq!(runs, [true, false, true, false, true]);
}

/// What weft-proxy does otherwise than a field asks for is told; what it does anyway, and what is only a hint, is not.
#[test]
fn what_is_not_as_it_was_asked_for_is_reported_with_its_path() {
    let stats = |config| json!({"name": "grpc_stats", "typed_config": typed("filters.http.grpc_stats.v3.FilterConfig", config)});
    let of_filter = |config| listener(json!({"filters": http(json!({}), &[stats(config)])}), json!({}));
    let of_manager = |manager| listener(json!({"filters": http(manager, &[])}), json!({}));
    let of_listener = |more| listener(json!({"filters": tcp(json!({}))}), more);
    let manager = "Listener.filter_chains[0].filters[0].typed_config";
    let sampling = |percent: u32| json!({"tracing": {"random_sampling": {"value": percent}}});
    for (resource, expected) in [
        (of_listener(json!({"enable_reuse_port": false})), vec!["Listener.enable_reuse_port: ".to_owned()]),
        (
            of_filter(json!({"stats_for_all_methods": true})),
            vec![format!("{manager}.http_filters[0].typed_config.stats_for_all_methods: ")],
        ),
        (of_manager(sampling(1)), vec![format!("{manager}.tracing: ")]),
        (of_manager(json!({"tracing": {"overall_sampling": {"value": 1}}})), vec![format!("{manager}.tracing: ")]),
        (of_listener(json!({"enable_reuse_port": true, "max_connections_to_accept_per_socket_event": 1})), vec![]),
        (of_filter(json!({"stats_for_all_methods": false, "emit_filter_state": true})), vec![]),
        (of_manager(sampling(0)), vec![]),
    ] {
        let told = told(type_url::LISTENER, &resource).expect("accepted");
        let is_told = told.len() == expected.len() && told.iter().zip(&expected).all(|(it, path)| it.starts_with(path));
        assert!(is_told, "{resource}: {told:?}");
    }
}

#[test]
fn frames_that_cost_nothing_are_bounded_as_http2_options_say() {
    let floods = |options: Value| {
        let manager = http(json!({"http2_protocol_options": options}), &[]);
        match &listener_of(&listener(json!({"filters": manager}), json!({}))).filter_chains[0].filter {
            NetworkFilter::Http(manager) => manager.http2.floods,
            other => unreachable!("the filter is HTTP, it is no {other:?}"),
        }
    };
    assert_eq!(floods(json!({})), FloodLimits::default());
    let said = floods(json!({
        "max_outbound_frames": 1, "max_outbound_control_frames": 2, "max_consecutive_inbound_frames_with_empty_payload": 3,
        "max_inbound_priority_frames_per_stream": 4, "max_inbound_window_update_frames_per_data_frame_sent": 5,
    }));
    let expected = FloodLimits {
        outbound_frames: Some(1),
        outbound_control_frames: Some(2),
        consecutive_empty_frames: Some(3),
        priority_frames_per_stream: Some(4),
        window_updates_per_data_frame: Some(5),
    };
    assert_eq!(said, expected);
    for field in
        ["max_outbound_frames", "max_outbound_control_frames", "max_inbound_window_update_frames_per_data_frame_sent"]
    {
        let none = http(json!({"http2_protocol_options": {field: 0}}), &[]);
        let refused = told(type_url::LISTENER, &listener(json!({"filters": none}), json!({}))).unwrap_err();
        assert!(refused.contains(&format!(".http2_protocol_options.{field}: ")), "{refused}");
    }
}

#[test]
fn an_answer_of_a_route_may_be_as_long_as_its_configuration_says() {
    let answer = |length: usize, more| {
        let body = json!({"inline_string": "x".repeat(length)});
        configuration(json!({"direct_response": {"status": 200, "body": body}}), more)
    };
    let path = "RouteConfiguration.virtual_hosts[0].routes[0].direct_response.body";
    let too_long =
        |length: usize, most: usize| Err(format!("{path}: {length} bytes are more than the limit of {most}"));
    let limit = json!({"max_direct_response_body_size_bytes": 6000});
    for (length, more, expected) in [
        (4096, json!({}), Ok(vec![])),
        (4097, json!({}), too_long(4097, 4096)),
        (6000, limit.clone(), Ok(vec![])),
        (6001, limit, too_long(6001, 6000)),
    ] {
        assert_eq!(told(type_url::ROUTE_CONFIGURATION, &answer(length, more)), expected);
    }
}

#[test]
fn a_host_that_is_to_be_the_endpoints_own_is_refused() {
    let rewriting =
        |auto: bool| configuration(json!({"route": {"cluster": "c", "auto_host_rewrite": auto}}), json!({}));
    assert_eq!(told(type_url::ROUTE_CONFIGURATION, &rewriting(false)), Ok(vec![]));
    let refused = told(type_url::ROUTE_CONFIGURATION, &rewriting(true)).unwrap_err();
    assert!(
        refused.starts_with("RouteConfiguration.virtual_hosts[0].routes[0].route.auto_host_rewrite: "),
        "{refused}"
    );
}

#[test]
fn google_re2_is_the_regular_expressions_that_there_are_and_its_limit_is_refused() {
    let matching = |engine: Value| {
        let regex = json!({"google_re2": engine, "regex": "/[a-z]+"});
        configuration(json!({"match": {"safe_regex": regex}, "route": {"cluster": "c"}}), json!({}))
    };
    assert_eq!(told(type_url::ROUTE_CONFIGURATION, &matching(json!({}))), Ok(vec![]));
    let refused = told(type_url::ROUTE_CONFIGURATION, &matching(json!({"max_program_size": 10}))).unwrap_err();
    assert!(refused.contains(".match.safe_regex.google_re2.max_program_size: "), "{refused}");
}

#[test]
fn a_header_is_retriable_if_one_of_the_matchers_takes_it() {
    let retry = json!({"retry_on": "retriable-headers",
        "retriable_headers": [{"name": "x-again", "present_match": true}, {"name": ":status", "string_match": {"exact": "204"}}]});
    let table = routes_of(&configuration(json!({"route": {"cluster": "c", "retry_policy": retry}}), json!({})));
    let Action::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("it leads to a cluster") };
    let names: Vec<String> =
        forward.retry.as_ref().expect("it has a policy").headers.iter().map(|it| it.name.to_string()).collect();
    assert_eq!(names, ["x-again", ":status"]);
}

#[test]
fn a_share_of_the_requests_takes_a_route() {
    let share = json!({"default_value": {"numerator": 25}});
    let some = json!({"name": "some", "match": {"prefix": "/", "runtime_fraction": share}, "route": {"cluster": "c"}});
    let rest = json!({"name": "rest", "match": {"prefix": "/"}, "route": {"cluster": "c"}});
    let host = json!({"name": "v", "domains": ["*"], "routes": [some, rest]});
    let table = routes_of(&json!({"name": "r", "virtual_hosts": [host]}));
    let taken = [0.0, 0.24, 0.26, 0.99].map(|die| {
        let found = table.route(&request("up", "/", &[]), &mut Fixed(die), &mut Silent);
        found.route.expect("one takes it").name.to_string()
    });
    assert_eq!(taken, ["some", "some", "rest", "rest"]);
}

#[test]
fn a_destination_is_called_by_its_own_host_where_the_route_names_none() {
    let clusters = json!([{"name": "a", "weight": 1, "host_rewrite_literal": "a.example"}, {"name": "b", "weight": 1}]);
    let mut plan = Plan::default();
    for name in ["a", "b"] {
        plan.insert(compile(type_url::CLUSTER, &json!({"name": name})).expect("honoured").value);
    }
    let hosts = |own: Value| {
        let mut action = json!({"weighted_clusters": {"clusters": clusters}});
        action.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let routes = configuration(json!({"route": action}), json!({}));
        let listener =
            listener_of(&listener(json!({"filters": http(json!({"route_config": routes}), &[])}), json!({})));
        let NetworkFilter::Http(manager) = &listener.filter_chains[0].filter else { panic!("the filter is HTTP") };
        [0.0, 0.9].map(|die| {
            let decision = decide(&plan, manager, &request("up", "/", &[]), &mut Fixed(die), &mut Silent);
            decision.host_rewrite().map_or_else(String::new, ToString::to_string)
        })
    };
    assert_eq!(hosts(json!({})), ["a.example", ""]);
    assert_eq!(hosts(json!({"host_rewrite_literal": "all.example"})), ["all.example", "all.example"]);
}

#[test]
fn a_route_has_its_hosts_retries_unless_it_has_its_own() {
    let retries = |count: u32| json!({"retry_on": "5xx", "num_retries": count});
    let routes = json!([
        {"match": {"prefix": "/own"}, "route": {"cluster": "c", "retry_policy": retries(1)}},
        {"match": {"prefix": "/"}, "route": {"cluster": "c"}},
    ]);
    let host = json!({"name": "v", "domains": ["*"], "routes": routes, "retry_policy": retries(7)});
    let table = routes_of(&json!({"name": "r", "virtual_hosts": [host]}));
    let counts: Vec<_> = table.virtual_hosts[0]
        .routes
        .iter()
        .map(|route| match &route.action {
            Action::Forward(forward) => forward.retry.as_ref().map(|policy| policy.retries),
            other => panic!("it leads to a cluster, it is no {other:?}"),
        })
        .collect();
    assert_eq!(counts, [Some(1), Some(7)]);
}

#[test]
fn an_empty_header_is_added_only_if_it_is_to_be_kept_and_a_value_may_be_bytes() {
    let add = |name: &str, more: Value| with(json!({"header": {"key": name}}), more);
    let edits = json!({"request_headers_to_add": [
        add("x-empty", json!({})),
        add("x-kept", json!({"keep_empty_value": true})),
        // "raw %PROTOCOL%" in base64, as protobuf's JSON has bytes.
        {"header": {"key": "x-raw", "raw_value": "cmF3ICVQUk9UT0NPTCU="}},
    ]});
    let table = routes_of(&configuration(json!({"route": {"cluster": "c"}}), edits));
    let mut headers = HeaderList::default();
    table.edits.request.apply(&mut headers, &OnlyProtocol);
    assert_eq!(headers, HeaderList::of(&[("x-kept", ""), ("x-raw", "raw HTTP/1.1")]));
    let broken = json!({"request_headers_to_add": [{"header": {"key": "x", "raw_value": "/w=="}}]});
    assert_eq!(
        told(type_url::ROUTE_CONFIGURATION, &configuration(json!({"route": {"cluster": "c"}}), broken)),
        Err("RouteConfiguration.request_headers_to_add[0].header.raw_value: not UTF-8".to_owned())
    );
}

#[test]
fn the_least_loaded_is_looked_for_among_so_many() {
    let choices =
        |config: Value| cluster_of(json!({"lb_policy": "LEAST_REQUEST", "least_request_lb_config": config})).policy;
    assert_eq!(choices(json!({})), LbPolicy::LeastRequest { choices: 2 });
    assert_eq!(choices(json!({"choice_count": 5})), LbPolicy::LeastRequest { choices: 5 });
}

#[test]
fn a_check_of_health_tells_what_it_is_asked_to_tell() {
    let check = |more| {
        let check = json!({"timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
            "grpc_health_check": {"authority": "shop.example", "initial_metadata": [
                {"header": {"key": "x-check", "value": "shop"}, "append_action": "ADD_IF_ABSENT"}]}});
        cluster_of(json!({"health_checks": [with(check, more)]}))
    };
    let logs = |more| {
        let cluster = check(more);
        let check = cluster.health_check.as_ref().expect("it has one");
        (check.logs_failures, check.logs_successes)
    };
    assert_eq!(logs(json!({})), (false, false));
    assert_eq!(logs(json!({"always_log_health_check_failures": true})), (true, false));
    assert_eq!(logs(json!({"always_log_health_check_success": true})), (false, true));
    let cluster = check(json!({}));
    let Probe::Grpc(probe) = &cluster.health_check.as_ref().expect("it has one").probe else { panic!("it is gRPC's") };
    let mut headers = HeaderList::default();
    probe.metadata.apply(&mut headers, &OnlyProtocol);
    assert_eq!(headers, HeaderList::of(&[("x-check", "shop")]));
    assert_eq!(&*probe.authority, "shop.example");
}

#[test]
fn a_peer_is_known_by_a_name_of_any_kind_and_looked_up_in_lists_as_far_as_is_said() {
    let common = |validation: Value| -> TlsCommon {
        let context = json!({"common_tls_context": {"validation_context": validation}});
        let socket =
            json!({"name": "tls", "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext", context)});
        cluster_of(json!({"transport_socket": socket})).transport.tls.as_ref().expect("it is TLS").common.clone()
    };
    let roots = || json!({"trusted_ca": {"inline_string": "roots"}});
    let named = common(with(roots(), json!({"match_subject_alt_names": [{"exact": "web.example"}]})));
    assert!(!named.only_leaf_is_looked_up);
    let typed_name = |kind: &str, matcher: Value| {
        common(with(roots(), json!({"match_typed_subject_alt_names": [{"san_type": kind, "matcher": matcher}]})))
    };
    let (uri, dns, ip, email) = (SanKind::Uri, SanKind::Dns, SanKind::Ip, SanKind::Email);
    for (common, kind, name, accepted) in [
        (&named, uri, "web.example", true),
        (&named, ip, "web.example", true),
        (&named, dns, "WEB.example", true),
        // Of DNS a wildcard will do, and stands for one label.
        (&named, dns, "*.example", true),
        (&named, dns, "*.web.example", false),
        (&named, uri, "*.example", false),
        (&typed_name("DNS", json!({"exact": "a.web.example"})), dns, "*.example", false),
        (&typed_name("DNS", json!({"exact": "a.web.example"})), dns, "*.web.example", true),
        (&typed_name("DNS", json!({"prefix": "a.web"})), dns, "*.web.example", false),
        (&typed_name("DNS", json!({"exact": "a.example"})), uri, "a.example", false),
        (&typed_name("IP_ADDRESS", json!({"exact": "192.0.2.7"})), ip, "192.0.2.7", true),
        (&typed_name("EMAIL", json!({"suffix": "@example"})), email, "a@example", true),
    ] {
        assert_eq!(common.accepts([(kind, name)].into_iter()), accepted, "{:?} {kind:?} {name}", common.sans);
    }
    let lists = json!({"crl": {"inline_string": "list"}, "only_verify_leaf_cert_crl": true});
    let listed = common(with(roots(), lists));
    assert!(listed.only_leaf_is_looked_up && listed.revoked.is_some());
}

#[test]
fn a_duration_longer_than_protobuf_knows_is_refused() {
    use weft_protos::envoy::config::cluster::v3::Cluster as Proto;
    use weft_protos::google::protobuf;
    let compile = |seconds| {
        let connect_timeout = Some(protobuf::Duration { seconds, nanos: 0 });
        let cluster = Proto { name: "c".into(), connect_timeout, ..Default::default() };
        Cluster::compile(&cluster, Strictness::Refuse).map(|compiled| compiled.value.connect_timeout.as_secs())
    };
    assert_eq!(compile(315_576_000_000), Ok(315_576_000_000));
    for seconds in [315_576_000_001, i64::MAX, -1] {
        assert_eq!(compile(seconds).unwrap_err().0[0].path, "Cluster.connect_timeout", "{seconds}");
    }
}

#[test]
fn times_that_envoy_refuses_are_refused_with_what_would_be_right() {
    let problem = |more: Value| told(type_url::CLUSTER, &with(json!({"name": "c"}), more)).err().unwrap_or_default();
    let detection = |field: &str| json!({"outlier_detection": {field: "0s"}});
    assert_eq!(problem(json!({"connect_timeout": "0s"})), "Cluster.connect_timeout: must be more than zero");
    for field in ["base_ejection_time", "interval", "max_ejection_time"] {
        let expected = format!("Cluster.outlier_detection.{field}: must be more than zero");
        assert_eq!(problem(detection(field)), expected);
    }
    let ejection = |base: &str, most: &str| {
        problem(json!({"outlier_detection": {"base_ejection_time": base, "max_ejection_time": most}}))
    };
    let path = "Cluster.outlier_detection.max_ejection_time: is less than base_ejection_time";
    assert!(ejection("30s", "10s").starts_with(path));
    assert_eq!(ejection("10s", "10s"), "");
    let keepalive = |interval: &str, timeout: &str| {
        let settings = json!({"interval": interval, "timeout": timeout});
        problem(json!({"http2_protocol_options": {"connection_keepalive": settings}}))
    };
    assert_eq!(keepalive("0.001s", "0.001s"), "");
    for (interval, timeout, field) in [
        ("0s", "1s", "interval"),
        ("0.000999s", "1s", "interval"),
        ("1s", "0s", "timeout"),
        ("1s", "0.0009s", "timeout"),
    ] {
        let found = keepalive(interval, timeout);
        assert!(found.contains(&format!("connection_keepalive.{field}: must be 1 ms or more")), "{found}");
    }
}

#[test]
fn values_that_envoy_refuses_are_refused_at_their_place() {
    let back_off = |back_off: Value| {
        let route = json!({"route": {"cluster": "c", "retry_policy": {"retry_on": "5xx", "retry_back_off": back_off}}});
        (type_url::ROUTE_CONFIGURATION, configuration(route, json!({})))
    };
    let streams = |count: u32| {
        let options = json!({"http2_protocol_options": {"max_concurrent_streams": count}});
        (type_url::LISTENER, listener(json!({"filters": http(options, &[])}), json!({})))
    };
    let endpoints = |more: Value, weight: u32| {
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": 80}});
        let endpoint = json!({"endpoint": {"address": address}, "load_balancing_weight": weight});
        let assignment = json!({"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint]}]});
        (type_url::CLUSTER_LOAD_ASSIGNMENT, with(assignment, more))
    };
    let overprovisioned = |factor: u32| endpoints(json!({"policy": {"overprovisioning_factor": factor}}), 1);
    let good = [
        back_off(json!({"base_interval": "0.1s"})),
        back_off(json!({"base_interval": "0.1s", "max_interval": "0.1s"})),
        streams(1),
        endpoints(json!({}), 1),
        overprovisioned(1),
    ];
    for (kind, resource) in good {
        assert_eq!(told(kind, &resource), Ok(vec![]), "{resource}");
    }
    for ((kind, resource), field) in [
        (back_off(json!({})), "retry_back_off.base_interval: required"),
        (back_off(json!({"base_interval": "0s"})), "retry_back_off.base_interval: must be more than zero"),
        (
            back_off(json!({"base_interval": "1s", "max_interval": "0.5s"})),
            "retry_back_off.max_interval: must be at least base_interval",
        ),
        (streams(0), "http2_protocol_options.max_concurrent_streams: between 1 and 2147483647 streams are needed"),
        (endpoints(json!({}), 0), "endpoints[0].lb_endpoints[0].load_balancing_weight: must be at least 1"),
        (overprovisioned(0), "ClusterLoadAssignment.policy.overprovisioning_factor: must be more than zero"),
    ] {
        let problem = told(kind, &resource).unwrap_err();
        assert!(problem.ends_with(field), "{problem}");
    }
}

#[test]
fn a_transport_socket_that_says_nothing_is_not_plain_text() {
    let empty = json!({"transport_socket": {"name": "tls"}});
    let required = "required: a transport socket without one would be no TLS";
    assert_eq!(
        told(type_url::CLUSTER, &with(json!({"name": "c"}), empty.clone())),
        Err(format!("Cluster.transport_socket.typed_config: {required}"))
    );
    assert_eq!(
        told(type_url::LISTENER, &listener(with(json!({"filters": tcp(json!({}))}), empty), json!({}))),
        Err(format!("Listener.filter_chains[0].transport_socket.typed_config: {required}"))
    );
}

#[test]
fn an_address_without_labels_is_called_by_the_match_that_asks_for_none() {
    let tls =
        || json!({"name": "tls", "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext", json!({}))});
    let matches = |labels: Value| {
        let matched = json!({"name": "m", "match": labels, "transport_socket": tls()});
        cluster_of(json!({
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "transport_socket_matches": [matched],
        }))
    };
    assert!(matches(json!({})).transport_for_original().tls.is_some());
    assert!(matches(json!({"tlsMode": "istio"})).transport_for_original().tls.is_none());
}

#[test]
fn a_close_that_is_not_to_be_delayed_is_not() {
    let delay = |more: Value| {
        let listener = listener_of(&listener(json!({"filters": http(more, &[])}), json!({})));
        match &listener.filter_chains[0].filter {
            NetworkFilter::Http(manager) => manager.delayed_close_timeout,
            other => unreachable!("no {other:?} was asked for"),
        }
    };
    assert_eq!(delay(json!({})), Duration::from_secs(1));
    assert_eq!(delay(json!({"delayed_close_timeout": "0s"})), Duration::ZERO);
}

#[test]
fn what_would_not_stay_in_its_place_in_a_head_is_refused() {
    let to = json!({"route": {"cluster": "c"}});
    let header = |key: &str, value: &str| {
        let edits = json!({"request_headers_to_add": [{"header": {"key": key, "value": value}}]});
        told(type_url::ROUTE_CONFIGURATION, &configuration(to.clone(), edits)).err().unwrap_or_default()
    };
    let controls = "CR, LF and NUL are not allowed in what goes into a header";
    let at = "RouteConfiguration.request_headers_to_add[0].header";
    assert_eq!(header("x", "a\tb"), "");
    assert_eq!(header("x", "a\r\ntransfer-encoding: chunked"), format!("{at}.value: {controls}"));
    assert_eq!(header("x\0", "a"), format!("{at}.key: {controls}"));
    for key in [":authority", ":path", ":scheme", "Host"] {
        let problem = header(key, "a");
        assert!(problem.starts_with(&format!("{at}.key: `{key}` cannot be added; host_rewrite_literal")), "{problem}");
    }
    let action = |kind: &str, field: &str, value: Value| {
        let more = if kind == "route" { json!({"cluster": "c", field: value}) } else { json!({field: value}) };
        told(type_url::ROUTE_CONFIGURATION, &configuration(json!({kind: more}), json!({}))).err().unwrap_or_default()
    };
    for (kind, field) in [
        ("route", "prefix_rewrite"),
        ("route", "host_rewrite_literal"),
        ("redirect", "prefix_rewrite"),
        ("redirect", "path_redirect"),
        ("redirect", "host_redirect"),
        ("redirect", "scheme_redirect"),
    ] {
        let problem = action(kind, field, json!("/a\nb"));
        assert!(problem.ends_with(&format!("{kind}.{field}: {controls}")), "{kind} {field}: {problem}");
    }
    let substitution = json!({"pattern": {"regex": "a"}, "substitution": "\r"});
    let problem = action("route", "regex_rewrite", substitution);
    assert!(problem.ends_with(&format!("route.regex_rewrite.substitution: {controls}")), "{problem}");
}

/// A peer whose certificate's name is several lines.
struct Lines;

impl Variables for Lines {
    fn write(&self, _: &Command, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(b"spiffe://a\r\nx-admin: yes\0");
        true
    }
}

#[test]
fn what_a_peer_is_called_stays_in_its_field() {
    let value = json!({"header": {"key": "x-peer", "value": "%DOWNSTREAM_PEER_URI_SAN%"}});
    let edits = json!({"request_headers_to_add": [value]});
    let table = routes_of(&configuration(json!({"route": {"cluster": "c"}}), edits));
    let mut headers = HeaderList::default();
    table.edits.request.apply(&mut headers, &Lines);
    assert_eq!(headers, HeaderList::of(&[("x-peer", "spiffe://a  x-admin: yes ")]));
}

#[test]
fn endpoints_and_routes_are_waited_for_as_long_as_their_source_says() {
    let source = |limit: Option<&str>| match limit {
        None => json!({"ads": {}}),
        Some(limit) => json!({"ads": {}, "initial_fetch_timeout": limit}),
    };
    let eds = |limit| json!({"type": "EDS", "eds_cluster_config": {"eds_config": source(limit)}});
    let of_endpoints = |limit| match &cluster_of(eds(limit)).discovery {
        Discovery::Eds { initial_fetch_timeout, .. } => *initial_fetch_timeout,
        other => unreachable!("endpoints come by EDS, not by {other:?}"),
    };
    let of_routes = |limit| {
        let mut manager = http(json!({}), &[]);
        let config = manager[0]["typed_config"].as_object_mut().expect("an object");
        config.remove("route_config");
        config.insert("rds".into(), json!({"config_source": source(limit), "route_config_name": "r"}));
        match &listener_of(&listener(json!({"filters": manager}), json!({}))).filter_chains[0].filter {
            NetworkFilter::Http(manager) => match &manager.routes {
                RouteSource::Named { initial_fetch_timeout, .. } => *initial_fetch_timeout,
                other => unreachable!("routes come by RDS, not by {other:?}"),
            },
            other => unreachable!("the filter is HTTP, it is no {other:?}"),
        }
    };
    for (limit, expected) in [(None, Some(15_000)), (Some("0s"), None), (Some("0.5s"), Some(500))] {
        let expected = expected.map(Duration::from_millis);
        assert_eq!((of_endpoints(limit), of_routes(limit)), (expected, expected), "{limit:?}");
    }
    // Of virtual hosts that come by themselves each request decides.
    let table = json!({"name": "r", "vhds": {"config_source": source(Some("1s"))}});
    let problems = told(type_url::ROUTE_CONFIGURATION, &table).expect_err("a limit is not honoured");
    assert!(problems.starts_with("RouteConfiguration.vhds.config_source.initial_fetch_timeout: "), "{problems}");
}
