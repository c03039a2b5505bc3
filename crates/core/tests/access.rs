//! Who is let in (RBAC) and which pages see answers (CORS): rules in Envoy's JSON, asked about requests and connections.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Value, json};
use support::{Fixed, request};
use weft_core::compile::{Compiled, Problems, Strictness};
use weft_core::cors::{Cors, CrossOrigin, Treatment};
use weft_core::decide::{Decision, Step, decide};
use weft_core::format::{Command, Format, Piece};
use weft_core::honoured::json::encode;
use weft_core::http_manager::{HttpFilter, HttpManager};
use weft_core::listener::{FilterChain, Listener, NetworkFilter};
use weft_core::plan::{Plan, Resource};
use weft_core::rbac::{Connection, Names, Rbac, Verdict};
use weft_core::request::OwnedRequest;
use weft_core::respond::Cause;
use weft_core::trace::Silent;
use weft_protos::type_url;

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";

fn compile(type_url: &str, resource: &Value) -> Result<Compiled<Resource>, Problems> {
    let bytes = encode(type_url, resource).map_err(Problems)?;
    Resource::compile(type_url, &bytes, Strictness::Refuse)
}

/// A listener whose only chain has these network filters before a manager with these HTTP filters.
fn listener(network: &[Value], http: &[Value], hosts: &Value) -> Result<Arc<Listener>, Problems> {
    let router = json!({"name": "router", "typed_config": {"@type": format!("{TYPES}.http.router.v3.Router")}});
    let http = [http, &[router]].concat();
    let manager = json!({
        "@type": format!("{TYPES}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "test",
        "route_config": {"name": "r", "virtual_hosts": hosts},
        "http_filters": http,
    });
    let filters = [network, &[json!({"name": "http", "typed_config": manager})]].concat();
    let resource = json!({
        "name": "l",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
        "filter_chains": [{"filters": filters}],
    });
    match compile(type_url::LISTENER, &resource)?.value {
        Resource::Listener(listener) => Ok(listener),
        other => unreachable!("a listener becomes no {other:?}"),
    }
}

fn no_hosts() -> Value {
    json!([])
}

fn chain(listener: &Listener) -> &FilterChain {
    &listener.filter_chains[0]
}

fn manager(listener: &Listener) -> &HttpManager {
    match &chain(listener).filter {
        NetworkFilter::Http(manager) => manager,
        NetworkFilter::Tcp(_) | NetworkFilter::Rpc(_) => unreachable!("the filter is HTTP"),
    }
}

fn http_filter(content: Value) -> Value {
    let mut config = content;
    config["@type"] = json!(format!("{TYPES}.http.rbac.v3.RBAC"));
    json!({"name": "envoy.filters.http.rbac", "typed_config": config})
}

fn network_filter(content: Value) -> Value {
    let mut config = content;
    config["@type"] = json!(format!("{TYPES}.network.rbac.v3.RBAC"));
    json!({"name": "envoy.filters.network.rbac", "typed_config": config})
}

/// The filter with these rules.
fn rules(rules: &Value) -> Arc<Rbac> {
    let listener = listener(&[], &[http_filter(json!({"rules": rules}))], &no_hosts()).expect("honoured");
    match &manager(&listener).filters[0] {
        HttpFilter::Rbac(filter) => Arc::clone(&filter.rbac),
        other => unreachable!("the first filter is RBAC, not {other:?}"),
    }
}

/// Rules that refuse whom one policy takes.
fn deny(permission: &Value, principal: &Value) -> Value {
    json!({"action": "DENY", "policies": {"it": {"permissions": [permission], "principals": [principal]}}})
}

fn any() -> Value {
    json!({"any": true})
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A connection from 10.1.2.3, for which 10.9.9.9 speaks, to 10.0.0.1:8080.
fn connection<'a>(server_name: Option<&'a str>, names: Option<&'a Names>) -> Connection<'a> {
    let destination: SocketAddr = "10.0.0.1:8080".parse().expect("an address");
    Connection { source: ip("10.1.2.3"), direct: ip("10.9.9.9"), destination, server_name, names }
}

fn names(uris: &[&str], dns: &[&str], subject: &str) -> Names {
    let boxed = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
    Names { uris: boxed(uris), dns: boxed(dns), subject: subject.into() }
}

fn verdict(rules: &Rbac, connection: &Connection<'_>, request: &OwnedRequest) -> Verdict {
    rules.given(connection).verdicts(request, ip("203.0.113.7")).rules.expect("there are rules")
}

/// Whether a policy of this permission and principal takes a request.
fn takes(permission: &Value, principal: &Value, connection: &Connection<'_>, request: &OwnedRequest) -> bool {
    let verdict = verdict(&rules(&deny(permission, principal)), connection, request);
    assert_eq!(verdict.allowed, verdict.policy.is_none(), "DENY refuses whom a policy takes");
    !verdict.allowed
}

#[test]
fn each_permission_takes_what_it_says() {
    let asked = request("web", "/a/b?x=1", &[("x-one", "1"), ("x-number", "7")]);
    let connect = OwnedRequest { method: "CONNECT".into(), authority: "web:443".into(), ..Default::default() };
    let path = |matcher: Value| json!({"url_path": {"path": matcher}});
    for (permission, expected) in [
        (any(), true),
        (json!({"not_rule": any()}), false),
        (json!({"header": {"name": ":method", "string_match": {"exact": "GET"}}}), true),
        (json!({"header": {"name": ":authority", "string_match": {"exact": "web"}}}), true),
        (json!({"header": {"name": "x-one", "present_match": true}}), true),
        (json!({"header": {"name": "x-two", "present_match": false}}), true),
        (json!({"header": {"name": "x-number", "range_match": {"start": 1, "end": 7}}}), false),
        (path(json!({"exact": "/a/b"})), true),
        (path(json!({"exact": "/a/b?x=1"})), false),
        (path(json!({"prefix": "/a/"})), true),
        (path(json!({"suffix": "/B", "ignore_case": true})), true),
        (path(json!({"safe_regex": {"regex": "/[a-z]"}})), false),
        (json!({"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 24}}), true),
        (json!({"destination_ip": {"address_prefix": "10.0.1.0", "prefix_len": 24}}), false),
        (json!({"destination_port": 8080}), true),
        (json!({"destination_port": 80}), false),
        (json!({"destination_port_range": {"start": 8080, "end": 8081}}), true),
        (json!({"destination_port_range": {"start": 8000, "end": 8080}}), false),
        (json!({"requested_server_name": {"suffix": ".example"}}), true),
        (json!({"and_rules": {"rules": [any(), json!({"destination_port": 80})]}}), false),
        (json!({"or_rules": {"rules": [json!({"destination_port": 80}), path(json!({"prefix": "/a"}))]}}), true),
        (json!({"and_rules": {"rules": [json!({"destination_port": 8080}), path(json!({"prefix": "/b"}))]}}), false),
        (
            json!({"not_rule": {"or_rules": {"rules": [json!({"destination_port": 80}), path(json!({"prefix": "/b"}))]}}}),
            true,
        ),
    ] {
        let found = takes(&permission, &any(), &connection(Some("web.example"), None), &asked);
        assert_eq!(found, expected, "{permission}");
    }
    let everywhere = path(json!({"prefix": ""}));
    assert!(rules_refused(&everywhere).is_none());
    assert!(!takes(&path(json!({"contains": ""})), &any(), &connection(None, None), &connect), "a CONNECT has no path");
    assert!(takes(&json!({"requested_server_name": {"exact": ""}}), &any(), &connection(None, None), &asked));
}

/// Why rules with this permission are refused, if they are.
fn rules_refused(permission: &Value) -> Option<String> {
    let filter = http_filter(json!({"rules": deny(permission, &any())}));
    listener(&[], &[filter], &no_hosts()).err().map(|problems| problems.to_string())
}

#[test]
fn each_principal_takes_whom_it_says() {
    let asked = request("web", "/a", &[("x-user", "alice")]);
    let range = |address: &str| json!({"address_prefix": address, "prefix_len": 32});
    for (principal, expected) in [
        (any(), true),
        (json!({"not_id": any()}), false),
        (json!({"source_ip": range("10.1.2.3")}), true),
        (json!({"source_ip": range("10.9.9.9")}), false),
        (json!({"direct_remote_ip": range("10.9.9.9")}), true),
        (json!({"direct_remote_ip": range("203.0.113.7")}), false),
        (json!({"remote_ip": range("203.0.113.7")}), true),
        (json!({"remote_ip": range("10.1.2.3")}), false),
        (json!({"header": {"name": "x-user", "string_match": {"exact": "alice"}}}), true),
        (json!({"url_path": {"path": {"exact": "/a"}}}), true),
        (json!({"authenticated": {}}), false),
        (json!({"and_ids": {"ids": [any(), json!({"url_path": {"path": {"exact": "/b"}}})]}}), false),
        (
            json!({"or_ids": {"ids": [json!({"authenticated": {}}), json!({"url_path": {"path": {"exact": "/a"}}})]}}),
            true,
        ),
    ] {
        let found = takes(&any(), &principal, &connection(None, None), &asked);
        assert_eq!(found, expected, "{principal}");
    }
}

#[test]
fn a_name_is_looked_for_among_uris_then_dns_names_then_the_subject() {
    let asked = request("web", "/", &[]);
    let both = names(&["spiffe://a/one", "spiffe://a/two"], &["web.example"], "CN=web");
    let nobody = Names::default();
    for (matcher, of, expected) in [
        (json!({"exact": "spiffe://a/one"}), &both, true),
        (json!({"suffix": "/two"}), &both, true),
        (json!({"exact": "web.example"}), &both, true),
        (json!({"exact": "CN=web"}), &both, true),
        (json!({"exact": "spiffe://a/three"}), &both, false),
        // Who shows no certificate has a subject without a name.
        (json!({"exact": ""}), &nobody, true),
        (json!({"prefix": "s"}), &nobody, false),
    ] {
        let principal = json!({"authenticated": {"principal_name": matcher}});
        assert_eq!(takes(&any(), &principal, &connection(None, Some(of)), &asked), expected, "{principal}");
        assert!(!takes(&any(), &principal, &connection(None, None), &asked), "plain text proves nothing: {principal}");
    }
    assert!(takes(&any(), &json!({"authenticated": {}}), &connection(None, Some(&nobody)), &asked));
}

#[test]
fn the_action_says_what_becomes_of_whom_a_policy_takes() {
    let policies = json!({
        "b": {"permissions": [any()], "principals": [json!({"header": {"name": "x-user", "present_match": true}})]},
        "a policy": {"permissions": [json!({"url_path": {"path": {"prefix": "/a"}}})], "principals": [any()]},
    });
    let cases = [
        ("ALLOW", "/a", true, Some("a policy")),
        ("ALLOW", "/c", false, None),
        ("DENY", "/a", false, Some("a policy")),
        ("DENY", "/c", true, None),
        ("LOG", "/a", true, Some("a policy")),
        ("LOG", "/c", true, None),
    ];
    for (action, path, allowed, policy) in cases {
        let rules = rules(&json!({"action": action, "policies": policies}));
        let found = verdict(&rules, &connection(None, None), &request("web", path, &[]));
        assert_eq!((found.allowed, found.policy.as_deref()), (allowed, policy), "{action} {path}");
    }
    // By name, whatever the order in the resource.
    let rules = rules(&json!({"action": "DENY", "policies": policies}));
    let found = verdict(&rules, &connection(None, None), &request("web", "/a", &[("x-user", "alice")]));
    assert_eq!(found.policy.as_deref(), Some("a policy"));
    let reply = found.reply();
    assert_eq!((reply.status, reply.flag, &*reply.body), (403, None, "RBAC: access denied"));
    assert_eq!(reply.details, "rbac_access_denied_matched_policy[a_policy]");
    assert_eq!(reply.grpc_status(), 7);
    let nobody = Verdict { allowed: false, policy: None };
    assert_eq!(nobody.details(), "rbac_access_denied_matched_policy[none]");
}

#[test]
fn rules_without_policies_let_in_nobody_and_no_rules_everybody() {
    let empty = rules(&json!({}));
    assert!(!verdict(&empty, &connection(None, None), &request("web", "/", &[])).allowed);
    let verdicts = Rbac::default().given(&connection(None, None)).verdicts(&request("web", "/", &[]), ip("10.0.0.1"));
    assert!(verdicts.refusal().is_none());
    assert_eq!(verdicts.rules, None);
}

#[test]
fn shadow_rules_only_tell() {
    let all = json!({"action": "DENY", "policies": {"all": {"permissions": [any()], "principals": [any()]}}});
    let filter = http_filter(json!({"shadow_rules": all, "shadow_rules_stat_prefix": "dry_"}));
    let listener = listener(&[], &[filter], &no_hosts()).expect("honoured");
    let HttpFilter::Rbac(filter) = &manager(&listener).filters[0] else { unreachable!("it is RBAC") };
    let verdicts = filter.rbac.given(&connection(None, None)).verdicts(&request("web", "/", &[]), ip("10.0.0.1"));
    assert!(verdicts.refusal().is_none());
    let shadow = verdicts.shadow_rules.expect("there are shadow rules");
    assert_eq!((shadow.allowed, shadow.policy.as_deref()), (false, Some("all")));
    assert_eq!(&*filter.counters.allowed, "envoy_http_rbac_allowed");
    assert_eq!(&*filter.counters.shadow_denied, "envoy_http_rbac_shadow_denied{envoy_rbac_http_prefix=\"dry_\"}");
    assert_eq!(&*filter.shadow_keys.policy, "dry_shadow_effective_policy_id");
}

#[test]
fn records_know_what_shadow_rules_tell_and_no_other_metadata() {
    let command = |text: &str| Format::parse(text).map(|format| format.0);
    let parsed = command("%DYNAMIC_METADATA(envoy.filters.http.rbac:shadow_engine_result):3%").expect("known");
    let [Piece::Value(Command::DynamicMetadata { namespace, key, length })] = &*parsed else {
        panic!("one command: {parsed:?}")
    };
    assert_eq!((&**namespace, &**key, *length), ("envoy.filters.http.rbac", "shadow_engine_result", Some(3)));
    assert!(command("%DYNAMIC_METADATA(envoy.filters.network.rbac:shadow_effective_policy_id)%").is_ok());
    for unknown in [
        "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload)%",
        "%DYNAMIC_METADATA(envoy.filters.http.rbac)%",
        "%DYNAMIC_METADATA(envoy.filters.http.rbac:a:b)%",
    ] {
        assert!(command(unknown).is_err(), "{unknown}");
    }
}

#[test]
fn a_connection_is_decided_by_its_own_facts() {
    let policy = |permission: Value, principal: Value| json!({"permissions": [permission], "principals": [principal]});
    let content = json!({
        "stat_prefix": "mesh.",
        "rules": {"action": "ALLOW", "policies": {
            "client": policy(json!({"destination_port": 8080}), json!({"remote_ip": {"address_prefix": "10.1.2.3", "prefix_len": 32}})),
            // A connection has no path that could match.
            "path": policy(json!({"url_path": {"path": {"prefix": "/"}}}), any()),
        }},
        "delay_deny": "2s",
    });
    let listener = listener(&[network_filter(content)], &[], &no_hosts()).expect("honoured");
    let filter = &chain(&listener).rbac[0];
    assert!(chain(&listener).asks_for_identity());
    let known = connection(None, None);
    let found = filter.verdicts(&known).rules.expect("there are rules");
    assert_eq!((found.allowed, found.policy.as_deref()), (true, Some("client")));
    let stranger = Connection { source: ip("10.1.2.4"), ..known };
    assert_eq!(
        filter.verdicts(&stranger).refusal().map(Verdict::details).as_deref(),
        Some("rbac_access_denied_matched_policy[none]")
    );
    assert_eq!(filter.delay_deny, Some(std::time::Duration::from_secs(2)));
    assert_eq!(&*filter.counters.denied, "envoy_rbac_denied{envoy_rbac_prefix=\"mesh\"}");
}

#[test]
fn what_cannot_be_asked_is_refused_by_name() {
    let metadata =
        json!({"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "iss"}], "value": {"present_match": true}});
    let extension = json!({"name": "x", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct"}});
    let rules = "http_filters[0].typed_config.rules.policies[it]";
    for (permission, principal, place) in [
        (json!({"metadata": metadata}), any(), "permissions[0].metadata"),
        (json!({"sourced_metadata": {"metadata_matcher": metadata}}), any(), "permissions[0].sourced_metadata"),
        (json!({"matcher": extension}), any(), "permissions[0].matcher"),
        (json!({"uri_template": extension}), any(), "permissions[0].uri_template"),
        (json!({"any": false}), any(), "permissions[0].any"),
        (json!({"destination_port": 65536}), any(), "permissions[0].destination_port"),
        (json!({"destination_port_range": {"start": 9, "end": 9}}), any(), "permissions[0].destination_port_range"),
        (json!({"destination_port_range": {"start": -1, "end": 9}}), any(), "permissions[0].destination_port_range"),
        (json!({"and_rules": {}}), any(), "permissions[0].and_rules.rules"),
        (json!({}), any(), "permissions[0]"),
        (any(), json!({"metadata": metadata}), "principals[0].metadata"),
        (any(), json!({"filter_state": {"key": "k", "string_match": {"exact": "v"}}}), "principals[0].filter_state"),
        (any(), json!({"custom": extension}), "principals[0].custom"),
        (
            any(),
            json!({"not_id": {"source_ip": {"address_prefix": "x"}}}),
            "principals[0].not_id.source_ip.address_prefix",
        ),
        (any(), json!({}), "principals[0]"),
    ] {
        let filter = http_filter(json!({"rules": deny(&permission, &principal)}));
        let problems = listener(&[], &[filter], &no_hosts()).expect_err(place).to_string();
        assert!(problems.contains(&format!("{rules}.{place}")), "{place}: {problems}");
    }
    for (content, place) in [
        (
            json!({"rules": {"policies": {"it": {"permissions": [any()], "principals": [any()], "condition": {}}}}}),
            "condition",
        ),
        (json!({"rules": {"policies": {"it": {"principals": [any()]}}}}), "permissions"),
        (json!({"rules": {"policies": {"it": {"permissions": [any()]}}}}), "principals"),
        (json!({"rules": {"audit_logging_options": {}}}), "audit_logging_options"),
        (json!({"matcher": {}}), "matcher"),
        (json!({"shadow_matcher": {}}), "shadow_matcher"),
        (json!({"track_per_rule_stats": true}), "track_per_rule_stats"),
    ] {
        let problems = listener(&[], &[http_filter(content)], &no_hosts()).expect_err(place).to_string();
        assert!(problems.contains(place), "{place}: {problems}");
    }
    let header = json!({"header": {"name": "x", "present_match": true}});
    for (content, place) in [
        (json!({"stat_prefix": "x", "rules": deny(&header, &any())}), "a connection has no headers"),
        (json!({"stat_prefix": "x", "rules": deny(&any(), &header)}), "a connection has no headers"),
        (json!({"rules": {}}), "stat_prefix"),
    ] {
        let problems = listener(&[network_filter(content)], &[], &no_hosts()).expect_err(place).to_string();
        assert!(problems.contains(place), "{place}: {problems}");
    }
}

#[test]
fn under_collection_a_policy_that_was_not_understood_takes_nobody() {
    let metadata = json!({"metadata": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": true}}});
    let config = json!({
        "@type": format!("{TYPES}.http.rbac.v3.RBAC"),
        "rules": {"action": "DENY", "policies": {
            "not understood": {"permissions": [any()], "principals": [json!({"not_id": metadata})]},
            "understood": {"permissions": [json!({"url_path": {"path": {"exact": "/x"}}})], "principals": [any()]},
        }},
    });
    // The messages themselves: JSON is read by the same table that refuses the field.
    use weft_protos::envoy::config::rbac::v3 as proto;
    use weft_protos::envoy::extensions::filters::http::rbac::v3::Rbac as Filter;
    use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
    use weft_protos::{Message as _, envoy::config::listener::v3 as listeners};
    assert!(listener(&[], &[json!({"name": "r", "typed_config": config})], &no_hosts()).is_err());
    let any = |value| proto::Permission { rule: Some(proto::permission::Rule::Any(value)) };
    let unknown = proto::Principal { identifier: Some(proto::principal::Identifier::FilterState(Default::default())) };
    let policy = proto::Policy { permissions: vec![any(true)], principals: vec![unknown], ..Default::default() };
    let rules = proto::Rbac {
        action: proto::rbac::Action::Deny.into(),
        policies: [("p".to_owned(), policy)].into(),
        ..Default::default()
    };
    let filter = |name: &str, config| hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let rbac = Filter { rules: Some(rules), ..Default::default() };
    let manager_message = hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(Default::default())),
        http_filters: vec![
            filter("envoy.filters.http.rbac", support::any("envoy.extensions.filters.http.rbac.v3.RBAC", &rbac)),
            filter(
                "router",
                support::any(
                    "envoy.extensions.filters.http.router.v3.Router",
                    &weft_protos::envoy::extensions::filters::http::router::v3::Router::default(),
                ),
            ),
        ],
        ..Default::default()
    };
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let message = listeners::Listener {
        filter_chains: vec![listeners::FilterChain {
            filters: vec![listeners::Filter {
                name: "http".into(),
                config_type: Some(listeners::filter::ConfigType::TypedConfig(support::any(name, &manager_message))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let compiled = Resource::compile(type_url::LISTENER, &message.encode_to_vec(), Strictness::Collect).expect("read");
    assert!(
        compiled.not_applied.iter().any(|problem| problem.path.ends_with("filter_state")),
        "{:?}",
        compiled.not_applied
    );
    let Resource::Listener(listener) = compiled.value else { unreachable!("it is a listener") };
    let HttpFilter::Rbac(filter) = &manager(&listener).filters[0] else { unreachable!("it is RBAC") };
    assert!(verdict(&filter.rbac, &connection(None, None), &request("web", "/", &[])).allowed);
}

// Of routes.

fn cors_filter() -> Value {
    json!({"name": "envoy.filters.http.cors", "typed_config": {"@type": format!("{TYPES}.http.cors.v3.Cors")}})
}

fn cors_policy(content: Value) -> Value {
    let mut policy = content;
    policy["@type"] = json!(format!("{TYPES}.http.cors.v3.CorsPolicy"));
    json!({"envoy.filters.http.cors": policy})
}

fn rbac_here(content: &Value) -> Value {
    json!({"envoy.filters.http.rbac": {"@type": format!("{TYPES}.http.rbac.v3.RBACPerRoute"), "rbac": content}})
}

fn disabled(filter: &str) -> Value {
    json!({filter: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}})
}

fn asked<'p>(plan: &'p Plan, listener: &'p Listener, path: &str) -> Decision<'p> {
    decide(plan, manager(listener), &request("web", path, &[]), &mut Fixed(0.0), &mut Silent)
}

#[test]
fn the_most_specific_rules_hold_and_filters_keep_their_order() {
    let nobody = json!({"rules": {}});
    let hosts = json!([{
        "name": "h", "domains": ["*"], "typed_per_filter_config": rbac_here(&nobody),
        "routes": [
            {"match": {"prefix": "/free"}, "route": {"cluster": "c"}, "typed_per_filter_config": rbac_here(&json!({}))},
            {"match": {"prefix": "/off"}, "route": {"cluster": "c"}, "typed_per_filter_config": disabled("envoy.filters.http.rbac")},
            {"match": {"prefix": "/answered"}, "direct_response": {"status": 200}},
            {"match": {"prefix": "/"}, "route": {"cluster": "c"}},
        ],
    }]);
    let second = {
        let mut filter = http_filter(json!({"rules": {"action": "LOG"}}));
        filter["name"] = json!("second");
        filter
    };
    let listener = listener(&[], &[http_filter(json!({})), second], &hosts).expect("honoured");
    let plan = Plan::default();
    for (path, expected) in
        [("/", vec![false, true]), ("/free", vec![true, true]), ("/off", vec![true]), ("/answered", vec![false, true])]
    {
        let decision = asked(&plan, &listener, path);
        let found: Vec<bool> = decision
            .steps(manager(&listener))
            .map(|step| match step {
                Step::Rbac(_, rules) => {
                    let open = rules.given(&connection(None, None));
                    open.verdicts(&request("web", path, &[]), ip("10.0.0.1")).refusal().is_none()
                }
                other => unreachable!("there are no other filters: {other:?}"),
            })
            .collect();
        assert_eq!(found, expected, "{path}");
    }
    let unnamed = cors_policy(json!({}))["envoy.filters.http.cors"].clone();
    for (settings, place) in [
        (disabled("envoy.filters.http.grpc_web"), "disabled"),
        (rbac_here(&json!({"rules_stat_prefix": "x"})), "prefixes of statistics"),
        (json!({"cors": unnamed}), "the CORS filter has the name"),
    ] {
        let hosts = json!([{"name": "h", "domains": ["*"], "typed_per_filter_config": settings}]);
        let problems = self::listener(&[], &[], &hosts).expect_err(place).to_string();
        assert!(problems.contains(place), "{problems}");
    }
}

/// The policy of the route that `/` takes in these hosts.
fn policy_of(table: &Value, hosts: &Value) -> Option<Arc<Cors>> {
    let mut routes = json!({"name": "r", "virtual_hosts": hosts});
    routes["typed_per_filter_config"] = table.clone();
    let Resource::Routes(table) = compile(type_url::ROUTE_CONFIGURATION, &routes).expect("honoured").value else {
        unreachable!("it is a route configuration")
    };
    let found = table.route(&request("web", "/", &[]), &mut Fixed(0.0), &mut Silent);
    match &found.route.expect("there is a route").action {
        weft_core::route::Action::Forward(forward) => forward.targets[0].cors.clone(),
        other => unreachable!("it forwards: {other:?}"),
    }
}

#[test]
fn what_a_level_does_not_say_the_wider_ones_say() {
    let table = cors_policy(json!({"expose_headers": "of-table", "max_age": "1", "allow_credentials": true}));
    let host = cors_policy(json!({
        "allow_origin_string_match": [{"exact": "https://host"}],
        "allow_methods": "GET", "max_age": "2",
        "filter_enabled": {"default_value": {"numerator": 0}},
    }));
    let route = cors_policy(json!({"allow_methods": "PUT", "allow_credentials": false}));
    let of = |host: &Value, route: &Value, target: &Value| {
        let clusters = json!([{"name": "c", "weight": 1, "typed_per_filter_config": target}]);
        json!([{"name": "h", "domains": ["*"], "typed_per_filter_config": host, "routes": [
            {"match": {"prefix": "/"}, "typed_per_filter_config": route, "route": {"weighted_clusters": {"clusters": clusters}}}
        ]}])
    };
    let none = json!({});
    let merged = policy_of(&table, &of(&host, &route, &none)).expect("there is one");
    let texts = [&merged.methods, &merged.expose, &merged.max_age, &merged.headers];
    assert_eq!(texts.map(|text| &**text), ["PUT", "of-table", "2", ""]);
    assert_eq!(merged.origins.len(), 1);
    assert!(!merged.credentials && !merged.any_origin && merged.forward_not_matching_preflights);
    // Whether it is on at all is what the most specific level says, and by default it is.
    assert_eq!(merged.enabled.percent(), 100.0);
    assert_eq!(policy_of(&table, &of(&host, &none, &none)).expect("there is one").enabled.percent(), 0.0);
    let target = cors_policy(json!({"allow_methods": "POST"}));
    assert_eq!(&*policy_of(&none, &of(&host, &route, &target)).expect("there is one").methods, "POST");
    let off = disabled("envoy.filters.http.cors");
    assert!(policy_of(&table, &of(&host, &off, &none)).is_none());
    assert!(policy_of(&table, &of(&off, &route, &none)).is_some());
    assert!(policy_of(&none, &of(&none, &none, &none)).is_none());
}

fn cors(content: Value) -> Arc<Cors> {
    let hosts =
        json!([{"name": "h", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}]);
    policy_of(&cors_policy(content), &hosts).expect("there is a policy")
}

fn preflight(origin: &str, more: &[(&str, &str)]) -> OwnedRequest {
    let headers = [&[("Origin", origin), ("access-control-request-method", "PUT")], more].concat();
    OwnedRequest { method: "OPTIONS".into(), ..request("web", "/", &headers) }
}

#[test]
fn a_page_is_told_what_it_may_do_where_its_origin_is_allowed() {
    let policy = cors(json!({"allow_origin_string_match": [{"exact": "https://shop"}, {"suffix": ".shop"}]}));
    let consider = |policy: &Cors, request: &OwnedRequest| policy.consider(request, &mut Fixed(0.5));
    let get = |origin: &str| request("web", "/", &[("origin", origin)]);
    let found = |allowed, treatment| Some(CrossOrigin { allowed, treatment });
    assert_eq!(consider(&policy, &request("web", "/", &[])), None);
    assert_eq!(consider(&policy, &get("")), None);
    assert_eq!(consider(&policy, &get("https://shop")), found(true, Treatment::PassedOn));
    assert_eq!(consider(&policy, &get("https://a.shop")), found(true, Treatment::PassedOn));
    assert_eq!(consider(&policy, &get("https://evil")), found(false, Treatment::PassedOn));
    assert_eq!(consider(&policy, &preflight("https://shop", &[])), found(true, Treatment::Answered));
    assert_eq!(consider(&policy, &preflight("https://evil", &[])), found(false, Treatment::PassedOn));
    let options = OwnedRequest { method: "OPTIONS".into(), ..get("https://shop") };
    assert_eq!(consider(&policy, &options), found(true, Treatment::PassedOn));
    let kept = cors(json!({"forward_not_matching_preflights": false}));
    assert_eq!(consider(&kept, &preflight("https://evil", &[])), found(false, Treatment::Answered));
    let star = cors(json!({"allow_origin_string_match": [{"exact": "*"}]}));
    assert_eq!(consider(&star, &get("https://anybody")), found(true, Treatment::PassedOn));
}

#[test]
fn a_share_of_the_requests_may_be_left_alone_or_only_counted() {
    let half = json!({"default_value": {"numerator": 50}});
    let policy = cors(json!({"allow_origin_string_match": [{"exact": "*"}], "filter_enabled": half}));
    let counted = cors(json!({"filter_enabled": {"default_value": {}}, "shadow_enabled": half}));
    let get = request("web", "/", &[("origin", "https://a")]);
    assert_eq!(policy.consider(&get, &mut Fixed(0.4)).map(|found| found.treatment), Some(Treatment::PassedOn));
    assert_eq!(policy.consider(&get, &mut Fixed(0.6)), None);
    let found = counted.consider(&get, &mut Fixed(0.4)).expect("it is counted");
    assert_eq!((found.allowed, found.treatment), (false, Treatment::Counted));
    assert_eq!(counted.consider(&get, &mut Fixed(0.6)), None);
}

#[test]
fn the_answers_say_what_the_policy_says() {
    let all = cors(json!({
        "allow_methods": "GET,PUT", "allow_headers": "x-a", "expose_headers": "x-b", "max_age": "60",
        "allow_credentials": true, "allow_private_network_access": true,
    }));
    let told: Vec<_> = all.answer_headers(b"https://a").collect();
    assert_eq!(
        told,
        [
            ("access-control-allow-origin", &b"https://a"[..]),
            ("access-control-allow-credentials", b"true"),
            ("access-control-expose-headers", b"x-b"),
        ]
    );
    let headers = |policy: &Cors, request: &OwnedRequest| {
        let told = policy.preflight_headers(request).into_iter();
        told.map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(&value))).collect::<Vec<_>>()
    };
    let private = preflight("https://a", &[("access-control-request-private-network", "true")]);
    assert_eq!(
        headers(&all, &private),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-methods: GET,PUT",
            "access-control-allow-headers: x-a",
            "access-control-max-age: 60",
            "access-control-allow-private-network: true",
        ]
    );
    assert_eq!(headers(&all, &preflight("https://a", &[])).len(), 4);
    // The star gives back what was asked for.
    let star = cors(json!({"allow_methods": "*", "allow_headers": "*"}));
    let asked =
        preflight("https://a", &[("access-control-request-headers", "x-1"), ("access-control-request-headers", "x-2")]);
    assert_eq!(headers(&star, &asked), ["access-control-allow-methods: PUT", "access-control-allow-headers: x-1,x-2"]);
    assert!(headers(&cors(json!({})), &private).is_empty());
    assert_eq!((Cause::CorsPreflight.row().status, Cause::CorsPreflight.row().details), (200, "cors_response"));
}

#[test]
fn without_the_filter_a_policy_means_nothing() {
    let hosts = json!([{"name": "h", "domains": ["*"], "typed_per_filter_config": cors_policy(json!({})), "routes": [
        {"match": {"prefix": "/answered"}, "direct_response": {"status": 200}},
        {"match": {"prefix": "/"}, "route": {"cluster": "c"}},
    ]}]);
    let plan = Plan::default();
    let [with, without] =
        [vec![cors_filter()], vec![]].map(|filters| listener(&[], &filters, &hosts).expect("honoured"));
    let steps = |listener: &Listener, path: &str| asked(&plan, listener, path).steps(manager(listener)).count();
    assert_eq!((steps(&with, "/"), steps(&with, "/answered"), steps(&without, "/")), (1, 0, 0));
}
