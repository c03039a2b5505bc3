//! Who is let in, by rules about connections and requests (RBAC), and what pages of other sites are told (CORS).

use std::time::{Duration, Instant};

use weft_protos::envoy::config::core::v3::CidrRange;
use weft_protos::envoy::config::rbac::v3 as rbac;
use weft_protos::envoy::config::rbac::v3::permission::Rule;
use weft_protos::envoy::config::rbac::v3::principal::{Authenticated, Identifier};
use weft_protos::envoy::config::route::v3::HeaderMatcher;
use weft_protos::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use weft_protos::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use weft_protos::envoy::extensions::filters::http::rbac::v3 as http;
use weft_protos::envoy::extensions::filters::network::rbac::v3 as network;
use weft_protos::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use weft_protos::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher};
use weft_protos::google::protobuf::{Any, BoolValue, UInt32Value};

use crate::kit::certificates::{Authority, Identity, OTHER, WEB, client, downstream, secrets};
use crate::kit::mesh::expect_passed;
use crate::kit::peer::{End, ok};
use crate::kit::resources::{any, filter, network_filter, seconds};
use crate::kit::{Mesh, Peer, Setup, Upstream, until};

const RBAC: &str = "envoy.filters.http.rbac";
const CORS: &str = "envoy.filters.http.cors";
const PAGE: &str = "https://shop.example";

fn exact(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.into())), ..Default::default() }
}

fn path(text: &str) -> rbac::Permission {
    let rule = path_matcher::Rule::Path(exact(text));
    rbac::Permission { rule: Some(Rule::UrlPath(PathMatcher { rule: Some(rule) })) }
}

fn any_permission() -> rbac::Permission {
    rbac::Permission { rule: Some(Rule::Any(true)) }
}

fn any_principal() -> rbac::Principal {
    rbac::Principal { identifier: Some(Identifier::Any(true)) }
}

fn named(uri: &str) -> rbac::Principal {
    let authenticated = Authenticated { principal_name: Some(exact(uri)) };
    rbac::Principal { identifier: Some(Identifier::Authenticated(authenticated)) }
}

fn user(name: &str) -> rbac::Principal {
    let header = HeaderMatcher {
        name: "x-user".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(name))),
        ..Default::default()
    };
    rbac::Principal { identifier: Some(Identifier::Header(header)) }
}

/// Rules of one policy.
fn rules(action: rbac::rbac::Action, permission: rbac::Permission, principal: rbac::Principal) -> rbac::Rbac {
    let policy = rbac::Policy { permissions: vec![permission], principals: vec![principal], ..Default::default() };
    rbac::Rbac { action: action.into(), policies: [("the policy".to_owned(), policy)].into(), ..Default::default() }
}

/// Ask these rules about each request, before anything else.
fn asking(setup: &mut Setup, rules: rbac::Rbac) {
    let message = http::Rbac { rules: Some(rules), ..Default::default() };
    setup.manager.http_filters.insert(0, filter(RBAC, "envoy.extensions.filters.http.rbac.v3.RBAC", &message));
}

/// Ask these rules about each connection.
fn guarding(setup: &mut Setup, message: &network::Rbac) {
    setup.before = vec![network_filter(any("envoy.extensions.filters.network.rbac.v3.RBAC", message))];
}

fn in_tls(setup: &mut Setup, authority: &Authority) {
    setup.chain.transport_socket = downstream(&[WEB, OTHER]);
    setup.more = secrets(&authority.identity(WEB), authority);
}

fn rbac_of_route(rules: Option<rbac::Rbac>) -> Any {
    let message = http::RbacPerRoute { rbac: Some(http::Rbac { rules, ..Default::default() }) };
    any("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", &message)
}

#[test]
fn a_request_that_no_policy_lets_in_is_answered_and_its_connection_goes_on() {
    let upstream = Upstream::saying("hello");
    let mesh = Mesh::start(&[upstream], |setup| {
        asking(setup, rules(rbac::rbac::Action::Deny, path("/secret"), any_principal()));
    });
    let mut client = mesh.client();
    for _ in 0..2 {
        // With a body, which nobody reads.
        client.send("POST /secret HTTP/1.1\r\nhost: up\r\ncontent-length: 4\r\n\r\nbody");
        let answer = client.message();
        assert_eq!((answer.status(), answer.text()), (403, "RBAC: access denied".into()));
        assert_eq!(client.get("/open").text(), "hello");
    }
    mesh.expect_record("/secret", 403, "-", "rbac_access_denied_matched_policy[the_policy]");
    assert_eq!(mesh.metric("envoy_http_rbac_denied", &[]), 2.0);
    assert_eq!(mesh.metric("envoy_http_rbac_allowed", &[]), 2.0);
}

#[test]
fn who_the_client_is_was_asked_once_and_holds_for_each_of_its_requests() {
    let authority = Authority::new();
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        in_tls(setup, &authority);
        asking(setup, rules(rbac::rbac::Action::Allow, any_permission(), named(OTHER)));
    });
    let connect = |mesh: &Mesh, identity: &Identity| Peer::over(client(mesh.address, &authority, Some(identity)));
    let mut other = connect(&mesh, &authority.identity(OTHER));
    let mut web = connect(&mesh, &authority.identity(WEB));
    for _ in 0..3 {
        assert_eq!(other.get("/").status(), 200);
        assert_eq!(web.get("/").status(), 403);
    }
    mesh.expect_record("/", 200, "-", "via_upstream");
    // Routes change under a connection that stays; what was found out about it does not hold for other rules.
    let own = rules(rbac::rbac::Action::Allow, any_permission(), named(WEB));
    mesh.change(|setup| {
        let route = &mut setup.routes.virtual_hosts[0].routes[0];
        route.typed_per_filter_config = [(RBAC.to_owned(), rbac_of_route(Some(own)))].into();
    });
    until("the new rules hold", || Some(()).filter(|()| other.get("/").status() == 403));
    assert_eq!(web.get("/").status(), 200);
    mesh.change(|setup| {
        let route = &mut setup.routes.virtual_hosts[0].routes[0];
        route.typed_per_filter_config = [(RBAC.to_owned(), rbac_of_route(None))].into();
    });
    until("nobody is refused", || Some(()).filter(|()| other.get("/").status() == 200));
    assert_eq!(web.get("/").status(), 200);
}

#[test]
fn rules_see_the_request_as_it_came_and_not_as_the_route_sends_it_on() {
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(request.get("x-user").unwrap_or("-")))], |setup| {
        asking(setup, rules(rbac::rbac::Action::Allow, any_permission(), user("alice")));
        setup.routes.virtual_hosts[0].routes[0].request_headers_to_remove = vec!["x-user".into()];
    });
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\nx-user: alice\r\n\r\n");
    assert_eq!(client.message().text(), "-");
    client.send("GET / HTTP/1.1\r\nhost: up\r\nx-user: bob\r\n\r\n");
    assert_eq!(client.message().status(), 403);
}

#[test]
fn a_connection_that_no_policy_lets_in_is_closed_before_anything_of_it_goes_further() {
    let authority = Authority::new();
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.tcp();
        in_tls(setup, &authority);
        let rules = rules(rbac::rbac::Action::Allow, any_permission(), named(OTHER));
        guarding(setup, &network::Rbac { rules: Some(rules), stat_prefix: "tcp.".into(), ..Default::default() });
    });
    let mut web = Peer::over(client(mesh.address, &authority, Some(&authority.identity(WEB))));
    let _ = web.try_send("hello");
    assert!(web.rest().0.is_empty());
    assert!(!upstream.has_visitor());
    let record = &mesh.wait_records(1)[0];
    assert_eq!(record["connection_termination_details"], "rbac_access_denied_matched_policy[none]", "{record}");
    assert_eq!(record["downstream_peer_uri_san"], WEB);
    let mut other = Peer::over(client(mesh.address, &authority, Some(&authority.identity(OTHER))));
    other.send("hello");
    upstream.accept().expect("hello");
    let labels = ["envoy_rbac_prefix=\"tcp\""];
    assert_eq!(mesh.metric("envoy_rbac_denied", &labels), 1.0);
    assert_eq!(mesh.metric("envoy_rbac_allowed", &labels), 1.0);
}

#[test]
fn a_connection_that_is_refused_may_be_held_for_a_while() {
    let held = Duration::from_millis(300);
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        // For HTTP too the network filter comes first.
        let loopback = CidrRange { address_prefix: "127.0.0.0".into(), prefix_len: Some(UInt32Value { value: 8 }) };
        let everybody = rbac::Principal { identifier: Some(Identifier::DirectRemoteIp(loopback)) };
        let message = network::Rbac {
            rules: Some(rules(rbac::rbac::Action::Deny, any_permission(), everybody)),
            stat_prefix: "held".into(),
            delay_deny: Some(seconds(0.3)),
            ..Default::default()
        };
        guarding(setup, &message);
    });
    let began = Instant::now();
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let (bytes, end) = client.rest();
    assert!(bytes.is_empty(), "{bytes:?}");
    assert!(matches!(end, End::Finished | End::Reset), "{end:?}");
    expect_passed(began, held);
    assert!(!upstream.has_visitor());
    assert!(mesh.records().is_empty(), "nothing was asked: {:?}", mesh.records());
}

/// Pages of one site may read and write.
fn sharing(setup: &mut Setup) {
    let policy = CorsPolicy {
        allow_origin_string_match: vec![exact(PAGE)],
        allow_methods: "GET,PUT".into(),
        allow_headers: "x-a".into(),
        expose_headers: "x-seen".into(),
        max_age: "60".into(),
        allow_credentials: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let message = any("envoy.extensions.filters.http.cors.v3.CorsPolicy", &policy);
    setup.routes.virtual_hosts[0].typed_per_filter_config = [(CORS.to_owned(), message)].into();
    let filter = filter(CORS, "envoy.extensions.filters.http.cors.v3.Cors", &Cors {});
    setup.manager.http_filters.insert(0, filter);
}

#[test]
fn a_browser_that_asks_first_is_answered_here() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], sharing);
    let mut client = mesh.client();
    // Two questions in one packet.
    let question =
        format!("OPTIONS /x HTTP/1.1\r\nhost: up\r\norigin: {PAGE}\r\naccess-control-request-method: PUT\r\n\r\n");
    client.send(question.repeat(2));
    for _ in 0..2 {
        let answer = client.message();
        assert_eq!((answer.status(), answer.text()), (200, String::new()));
        for (name, value) in [
            ("access-control-allow-origin", PAGE),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET,PUT"),
            ("access-control-allow-headers", "x-a"),
            ("access-control-max-age", "60"),
            ("access-control-expose-headers", "x-seen"),
        ] {
            assert_eq!(answer.all(name), [value], "{}", answer.head);
        }
    }
    assert!(!upstream.has_visitor());
    mesh.expect_record("/x", 200, "-", "cors_response");
    assert_eq!(mesh.metric("envoy_http_cors_origin_valid", &[]), 2.0);
}

#[test]
fn an_answer_says_to_whose_pages_it_may_be_shown() {
    let upstream = Upstream::answering(|_| {
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\naccess-control-allow-origin: upstream\r\n\r\n".to_vec()
    });
    let mesh = Mesh::start(&[upstream], sharing);
    let mut client = mesh.client();
    for (origin, expected) in [(PAGE, PAGE), ("https://evil.example", "upstream"), ("", "upstream")] {
        client.send(format!("GET / HTTP/1.1\r\nhost: up\r\norigin: {origin}\r\n\r\n"));
        let answer = client.message();
        assert_eq!(answer.all("access-control-allow-origin"), [expected], "{}", answer.head);
        assert_eq!(answer.get("access-control-expose-headers").is_some(), expected == PAGE);
    }
    assert_eq!(mesh.metric("envoy_http_cors_origin_valid", &[]), 1.0);
    assert_eq!(mesh.metric("envoy_http_cors_origin_invalid", &[]), 1.0);
}

#[test]
fn a_page_can_read_the_proxys_own_errors() {
    let mesh = Mesh::start(&[], sharing);
    let mut client = mesh.client();
    client.send(format!("GET / HTTP/1.1\r\nhost: up\r\norigin: {PAGE}\r\n\r\n"));
    let answer = client.message();
    assert_eq!((answer.status(), answer.get("access-control-allow-origin")), (503, Some(PAGE)));
}
