//! Questions about requests under foreign bytes, as `weft why` puts them: each is answered or refused in words, by a decision that core makes of the
//! same request, too. A decision is what the explanation says once all dice are given; shares are shares; no answer outgrows its question.
//!
//! The whole input is a question.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use weft_core::decide::decide;
use weft_core::http_manager::HttpManager;
use weft_core::listener::NetworkFilter;
use weft_core::plan::Plan;
use weft_core::random::{Draw, Random};
use weft_core::request::{OwnedRequest, Scheme};
use weft_core::trace::Silent;
use weft_fuzz::EXTENSIONS;
use weft_protos::type_url;

// What is bound to Python is no library for others, so its code is compiled in from its source.
#[path = "../../crates/native/src/explain.rs"]
mod explain;
#[path = "../../crates/native/src/question.rs"]
mod question;
#[path = "../../crates/native/src/taken.rs"]
mod taken;

use explain::{Mode, answer};

const OUTCOMES: [&str; 12] = [
    "call",
    "denied",
    "direct_response",
    "fault",
    "forward",
    "no_cluster",
    "no_route",
    "preflight",
    "redirect",
    "refused",
    "tcp",
    "turned_away",
];
const DICE: [&str; 5] = ["cors", "fault_abort", "fault_delay", "route", "weight"];
/// Of an answer about a question of nothing. What a question adds is repeated by what is told of each route and destination.
const ANSWER_BYTES: usize = 64 * 1024;
const REPEATED: usize = 100;

/// A proxy whose listeners are found by address, and one that catches everything.
static PLANS: LazyLock<[Plan; 2]> = LazyLock::new(|| {
    let all = resources();
    let outside = network("tcp_proxy.v3.TcpProxy", json!({"stat_prefix": "p", "cluster": "outside"}));
    let mut capturing = listener("virtualOutbound", "OUTBOUND", ("0.0.0.0", 15001), one_chain("outside", outside));
    capturing.1["use_original_dst"] = json!(true);
    let with_capturing = [all.clone(), vec![capturing]].concat();
    [weft_fuzz::plan(&all), weft_fuzz::plan(&with_capturing)]
});

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for plan in &*PLANS {
        ask(plan, text);
    }
});

fn ask(plan: &Plan, text: &str) {
    let explained = answer(plan, text, Mode::Explain);
    let decided = answer(plan, text, Mode::Decide);
    let explained = match explained {
        Ok(explained) => read(text, &explained),
        Err(reason) => {
            assert_eq!(decided, Err(reason.clone()));
            return assert!(!reason.is_empty());
        }
    };
    assert!(explained["considered"].is_array());
    match decided {
        Ok(decided) => assert!(!read(text, &decided).contains_key("considered")),
        Err(reason) => assert!(DICE.iter().any(|die| reason == format!("random.{die}: the decision depends on it"))),
    }
    // What is answered with all dice.
    let text = with_dice(serde_json::from_str(text).expect("it was answered")).to_string();
    let question: Value = serde_json::from_str(&text).expect("it was written");
    let mut explained = read(&text, &answer(plan, &text, Mode::Explain).expect("dice are no reason to refuse"));
    let decided = read(&text, &answer(plan, &text, Mode::Decide).expect("nothing is left open"));
    explained.remove("considered");
    assert_eq!(explained, decided);
    if question["taken"].is_null() {
        assert_decided_alike(plan, &question, &decided);
    }
}

/// An answer, after what holds of every one.
fn read(question: &str, text: &str) -> Map<String, Value> {
    assert!(text.len() <= ANSWER_BYTES + REPEATED * question.len(), "{} bytes", text.len());
    let Ok(Value::Object(answer)) = serde_json::from_str(text) else { panic!("no object: {text}") };
    let outcome = answer["outcome"].as_str().expect("there is one");
    assert!(OUTCOMES.contains(&outcome), "{outcome}");
    if let Some(status) = answer.get("status").filter(|status| !status.is_null()) {
        assert!(status.as_u64().is_some_and(|status| (200..600).contains(&status)), "{status}");
    }
    let shares_of = |key: &str| -> Vec<f64> {
        let items = answer.get(key).and_then(Value::as_array).into_iter().flatten();
        items.map(|item| item["share"].as_f64().expect("it is a number")).collect()
    };
    for key in ["clusters", "endpoints"] {
        assert!(shares_of(key).iter().all(|share| (0.0..=1.0).contains(share)), "{text}");
    }
    let total: f64 = shares_of("clusters").iter().sum();
    assert!(!answer.contains_key("clusters") || (total - 1.0).abs() < 1e-9, "{text}");
    answer
}

/// The question with every die that it does not give.
fn with_dice(mut question: Value) -> Value {
    if !question["random"].is_object() {
        question["random"] = json!({});
    }
    for die in DICE {
        if question["random"][die].is_null() {
            question["random"][die] = json!(0.5);
        }
    }
    question
}

/// The request of a question, put to core without what reads questions.
fn assert_decided_alike(plan: &Plan, question: &Value, answer: &Map<String, Value>) {
    // Where nothing was looked up the connection was refused before, or carries no HTTP.
    let Some(manager) = answer.get("route_configuration").and_then(|_| manager_of(plan, answer)) else { return };
    let text = |key: &str, otherwise: &str| question[key].as_str().unwrap_or(otherwise).to_owned();
    let pairs = question["headers"].as_array().into_iter().flatten();
    let part = |pair: &Value, index: usize| pair[index].as_str().expect("it was answered").to_owned();
    let request = OwnedRequest {
        method: text("method", "GET"),
        scheme: Scheme::parse(text("scheme", "").as_bytes()).unwrap_or_default(),
        authority: text("authority", ""),
        // As the proxy reads it, where that is told.
        path: answer.get("path").and_then(Value::as_str).map_or_else(|| text("path", "/"), str::to_owned),
        headers: pairs.map(|pair| (part(pair, 0), part(pair, 1))).collect(),
    };
    let decision = decide(plan, manager, &request, &mut Dice(&question["random"]), &mut Silent);
    let told = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    assert_eq!(told(answer.get("virtual_host")), decision.virtual_host.map(|host| host.name.to_string()));
    assert_eq!(
        told(answer.get("route").and_then(|route| route.get("name"))),
        decision.route.map(|route| route.name.to_string())
    );
    assert_eq!(told(answer.get("cluster")), decision.target().map(|target| target.cluster.to_string()));
}

fn manager_of<'p>(plan: &'p Plan, answer: &Map<String, Value>) -> Option<&'p HttpManager> {
    let listener = &plan.listeners[answer["listener"].as_str()?];
    let chain = answer["filter_chain"].as_str()?;
    match &listener.filter_chains.iter().find(|known| *known.name == *chain)?.filter {
        NetworkFilter::Http(manager) => Some(manager),
        _ => None,
    }
}

/// All of a question's.
struct Dice<'q>(&'q Value);

impl Random for Dice<'_> {
    fn draw(&mut self, purpose: Draw) -> u64 {
        let name = match purpose {
            Draw::RouteFraction => "route",
            Draw::Weight => "weight",
            _ => unreachable!("the decision asks for no other"),
        };
        (self.0[name].as_f64().expect("it is given") * 2_f64.powi(64)) as u64
    }
}

/// A type URL and what is of it.
type Told = (&'static str, Value);

/// What a proxy may be told: every kind of route, cluster and filter that an answer tells something of.
fn resources() -> Vec<Told> {
    let shared = network(
        "tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": "p", "hash_policy": [{"source_ip": {}}], "weighted_clusters": {
            "clusters": [{"name": "hashed", "weight": 1}, {"name": "gone", "weight": 3}],
        }}),
    );
    let blue = json!({"headers": [{"name": "tenant", "string_match": {"exact": "blue"}}]});
    let some = json!({"clusters": [{"name": "v1", "weight": 1}, {"name": "gone", "weight": 3}]});
    let table = json!({"name": "t", "interface": "demo.*", "routes": [
        {"match": blue, "route": {"cluster": "v1"}},
        {"match": {"method": {"name": {"exact": "hello"}}}, "route": {"weighted_clusters": some}},
    ]});
    let calls = network(
        "dubbo_proxy.v3.DubboProxy",
        json!({"stat_prefix": "p", "multiple_route_config": {"name": "all", "route_config": [table]}}),
    );
    let outside = json!({"name": "outside", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"});
    let mut hashed = cluster("hashed", 3);
    hashed.1["lb_policy"] = json!("RING_HASH");
    vec![
        listener("0.0.0.0_9080", "OUTBOUND", ("0.0.0.0", 9080), one_chain("http", http())),
        listener("10.0.0.1_9090", "OUTBOUND", ("10.0.0.1", 9090), one_chain("bytes", shared)),
        listener("10.0.0.1_20880", "OUTBOUND", ("10.0.0.1", 20880), one_chain("calls", calls)),
        listener("in", "INBOUND", ("0.0.0.0", 8080), inbound()),
        listener("gateway", "UNSPECIFIED", ("0.0.0.0", 80), one_chain("http", http())),
        (type_url::ROUTE_CONFIGURATION, routes()),
        cluster("v1", 1),
        cluster("v2", 0),
        hashed,
        (type_url::CLUSTER, outside),
    ]
}

/// A cluster with so many endpoints.
fn cluster(name: &str, endpoints: u16) -> Told {
    let endpoint =
        |port| json!({"endpoint": {"address": {"socket_address": {"address": "10.0.0.9", "port_value": port}}}});
    let endpoints: Vec<Value> = (1..=endpoints).map(endpoint).collect();
    let assignment = json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]});
    (type_url::CLUSTER, json!({"name": name, "type": "STATIC", "load_assignment": assignment}))
}

fn listener(name: &str, direction: &str, (address, port): (&str, u16), chains: Value) -> Told {
    let inspector = |kind: &str| {
        let type_url = format!("{EXTENSIONS}.filters.listener.{kind}");
        json!({"name": kind, "typed_config": {"@type": type_url}})
    };
    let listener = json!({
        "name": name,
        "traffic_direction": direction,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "listener_filters": [inspector("tls_inspector.v3.TlsInspector"), inspector("http_inspector.v3.HttpInspector")],
        "filter_chains": chains,
    });
    (type_url::LISTENER, listener)
}

fn one_chain(name: &str, filter: Value) -> Value {
    json!([{"name": name, "filters": [filter]}])
}

/// A network filter.
fn network(kind: &str, mut settings: Value) -> Value {
    settings["@type"] = json!(format!("{EXTENSIONS}.filters.network.{kind}"));
    json!({"name": kind, "typed_config": settings})
}

/// A connection manager with every filter that has something to say.
fn http() -> Value {
    let filter = |name: &str, kind: &str, mut settings: Value| {
        settings["@type"] = json!(format!("{EXTENSIONS}.filters.http.{kind}"));
        json!({"name": name, "typed_config": settings})
    };
    let secret = json!({"permissions": [{"url_path": {"path": {"prefix": "/secret"}}}], "principals": [
        {"remote_ip": {"address_prefix": "203.0.113.0", "prefix_len": 24}},
    ]});
    let rules = json!({"action": "DENY", "policies": {"secret": secret}});
    let asked = json!({"rules": rules, "shadow_rules": {"action": "LOG"}});
    network(
        "http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "http",
            "rds": {"route_config_name": "routes", "config_source": {"ads": {}}},
            "http_filters": [
                filter("envoy.filters.http.rbac", "rbac.v3.RBAC", asked),
                filter("envoy.filters.http.cors", "cors.v3.Cors", json!({})),
                filter("envoy.filters.http.fault", "fault.v3.HTTPFault", json!({})),
                filter("envoy.filters.http.router", "router.v3.Router", json!({})),
            ],
        }),
    )
}

/// A chain that asks who calls, over TLS, and one in the clear.
fn inbound() -> Value {
    let by_name = json!({"authenticated": {"principal_name": {"prefix": "spiffe://cluster.local/ns/shop/"}}});
    let shop = json!({"permissions": [{"any": true}], "principals": [by_name]});
    let allow = json!({"action": "ALLOW", "policies": {"shop": shop}});
    let secrets = json!({"api_config_source": {
        "api_type": "GRPC",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
    }});
    let tls = json!({
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": secrets}]},
    });
    json!([
        {
            "name": "mesh",
            "filter_chain_match": {"transport_protocol": "tls", "application_protocols": ["istio-http/1.1"]},
            "transport_socket": {"name": "tls", "typed_config": tls},
            "filters": [network("rbac.v3.RBAC", json!({"stat_prefix": "tcp", "rules": allow})), http()],
        },
        {"name": "clear", "filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [http()]},
    ])
}

fn routes() -> Value {
    let here = |kind: &str, mut settings: Value| {
        settings["@type"] = json!(format!("{EXTENSIONS}.filters.http.{kind}"));
        settings
    };
    let cors = here(
        "cors.v3.CorsPolicy",
        json!({
            "allow_origin_string_match": [{"exact": "https://shop.example"}],
            "allow_methods": "*",
            "filter_enabled": {"default_value": {"numerator": 50}},
        }),
    );
    let fault = here(
        "fault.v3.HTTPFault",
        json!({
            "delay": {"fixed_delay": "7s", "percentage": {"numerator": 10}},
            "abort": {"http_status": 418, "percentage": {"numerator": 500_000, "denominator": "MILLION"}},
        }),
    );
    let hash = json!([
        {"header": {"header_name": "x-user"}, "terminal": true},
        {"cookie": {"name": "session", "ttl": "60s"}},
        {"query_parameter": {"name": "q"}},
    ]);
    let partly = json!({"clusters": [{"name": "gone", "weight": 1}, {"name": "v1", "weight": 2}]});
    let split = json!({
        "weighted_clusters": {"clusters": [{"name": "v1", "weight": 80}, {"name": "v2", "weight": 20}]},
        "timeout": "3s",
        "retry_policy": {"retry_on": "5xx", "num_retries": 2},
        "request_mirror_policies": [{"cluster": "v2"}],
    });
    let written = |origin: &str| json!({"filter_metadata": {"weft": {"origin": origin, "origins": {"match": "m"}}}});
    json!({"name": "routes", "virtual_hosts": [
        {
            "name": "reviews",
            "domains": ["reviews", "reviews:9080", "*.reviews.example"],
            "request_headers_to_add": [{"header": {"key": "x-from", "value": "%REQ(x-b)%"}}],
            "routes": [
                {
                    "name": "jason",
                    "match": {"prefix": "/", "headers": [{"name": "end-user", "string_match": {"exact": "jason"}}]},
                    "route": {"cluster": "v2", "prefix_rewrite": "/new/", "host_rewrite_literal": "other"},
                    "metadata": written("a.yaml:7:3"),
                },
                {
                    "name": "numbers",
                    "match": {
                        "safe_regex": {"regex": "/[a-z]+/[0-9]*"},
                        "query_parameters": [{"name": "q", "string_match": {"prefix": "x"}}],
                    },
                    "route": {
                        "cluster": "v1",
                        "regex_rewrite": {"pattern": {"regex": "^/([a-z]+)/"}, "substitution": "/\\1-"},
                    },
                },
                {
                    "name": "half",
                    "match": {"prefix": "/half", "runtime_fraction": {"default_value": {"numerator": 50}}},
                    "redirect": {"path_redirect": "/whole", "response_code": "FOUND"},
                },
                {
                    "name": "moved",
                    "match": {"path_separated_prefix": "/old"},
                    "redirect": {"https_redirect": true, "prefix_rewrite": "/new", "strip_query": true},
                },
                {
                    "name": "told",
                    "match": {"path": "/told", "case_sensitive": false},
                    "direct_response": {"status": 418, "body": {"inline_string": "short"}},
                },
                {"name": "tunnel", "match": {"connect_matcher": {}}, "route": {"cluster": "v1"}},
                {
                    "name": "partly",
                    "match": {"prefix": "/partly"},
                    "route": {"weighted_clusters": partly},
                },
                {
                    "name": "pages",
                    "match": {"prefix": "/pages"},
                    "route": {"cluster": "v1"},
                    "typed_per_filter_config": {"envoy.filters.http.cors": cors},
                },
                {
                    "name": "split",
                    "match": {"prefix": "/"},
                    "route": split,
                    "typed_per_filter_config": {"envoy.filters.http.fault": fault},
                    "metadata": written("a.yaml:9:3"),
                },
            ],
        },
        {
            "name": "others",
            "domains": ["*"],
            "routes": [
                {"match": {"prefix": "/bytes"}, "route": {"cluster": "outside"}},
                {"match": {"prefix": "/"}, "route": {"cluster": "hashed", "hash_policy": hash}},
            ],
        },
    ]})
}
