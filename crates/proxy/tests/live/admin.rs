//! What the admin interface answers, and what the log says when it is told to say more.

use serde_json::{Value, json};
use weft_protos::envoy::config::cluster::v3::Cluster;
use weft_protos::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use weft_protos::type_url;

use crate::kit::certificates::{Authority, WEB, client, downstream, secrets};
use crate::kit::resources::{CLUSTER, published};
use crate::kit::{Mesh, Peer, Upstream, until};

fn json(mesh: &Mesh, path: &str) -> Value {
    serde_json::from_str(&mesh.admin("GET", path)).unwrap()
}

/// A mesh that has answered one request.
fn used() -> Mesh {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    assert_eq!(mesh.client().get("/first").text(), "hello");
    mesh.record("/first");
    mesh
}

#[test]
fn statistics_are_one_thing_in_three_formats() {
    let mesh = used();
    let text = mesh.admin("GET", "/stats?filter=^istio_req.*(total|bytes)\\b");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("istio_requests_total{reporter=") && lines[0].ends_with("}: 1"), "{text}");
    assert!(lines[1].starts_with("istio_request_bytes{") && lines[1].ends_with(" P100(nan,0.5)"), "{text}");
    let stats = json(&mesh, "/stats?format=json&filter=istio_request_(bytes|duration)|downstream_rq_total");
    let stats = stats["stats"].as_array().unwrap();
    assert_eq!(stats[0], json!({"name": "envoy_http_downstream_rq_total", "value": 1}));
    let computed = stats[1]["histograms"]["computed_quantiles"].as_array().unwrap();
    assert_eq!(computed.len(), 2);
    assert!(computed.iter().all(|it| it["values"].as_array().unwrap().len() == 10), "{computed:?}");
    let prometheus = mesh.admin("GET", "/stats/prometheus");
    assert!(prometheus.contains("\nenvoy_http_downstream_rq_total 1\n"));
    assert_eq!(mesh.admin("GET", "/stats?format=prometheus&type=Counters&filter=^none$"), "");
    let names = |path: &str| -> Vec<String> {
        let text = mesh.admin("GET", path);
        text.lines().filter_map(|line| line.split_once(": ")).map(|(name, _)| name.to_owned()).collect()
    };
    let (all, used) = (names("/stats"), names("/stats?usedonly"));
    assert!(all.contains(&"envoy_cluster_upstream_rq_retry".into()));
    assert!(!used.contains(&"envoy_cluster_upstream_rq_retry".into()) && used.len() < all.len());
}

#[test]
fn what_is_asked_in_the_wrong_way_is_refused_and_the_right_one_named() {
    let mesh = used();
    for (method, path, status, says) in [
        ("GET", "/stats?fliter=a", 400, "/stats has no parameter `fliter`; there are filter, format,"),
        ("GET", "/ready?x", 400, "/ready has no parameter `x`; it takes none"),
        ("GET", "/config_dump?mask=a", 400, "no parameter `mask`; there are include_eds, name_regex, resource"),
        ("GET", "/stats?filter=a&filter=b", 400, "`filter` is there twice"),
        ("GET", "/stats?filter=(", 400, "filter=(: "),
        ("GET", "/clusters?format=xml", 400, "text or json is needed"),
        ("GET", "/listeners?format=xml", 400, "text or json is needed"),
        ("GET", "/logging?level=debug", 400, "/logging has no parameter `level`"),
        ("GET", "/quitquitquit", 405, "this takes a POST"),
        ("POST", "/stats", 405, "this takes a GET"),
        ("PUT", "/ready", 405, "this takes a GET"),
        ("POST", "/drain_listeners?inboundonly", 400, "there are graceful"),
        ("GET", "/stats/", 404, "invalid path. admin commands are:\n  /: "),
        ("POST", "/cpuprofiler?enable=y", 400, "there are frequency, seconds"),
        ("POST", "/cpuprofiler?seconds=0", 400, "seconds=0: a number from 1 to 600"),
        ("POST", "/heapprofiler", 400, "?enable=<y|n>"),
        ("GET", "/heap_dump", 409, "the heap profiler is off: POST /heapprofiler?enable=y"),
    ] {
        let (found, text) = mesh.try_admin(method, path).unwrap();
        assert_eq!(found, status, "{method} {path}: {text}");
        assert!(text.contains(says), "{method} {path}: {text}");
    }
    let help = mesh.admin("GET", "/help");
    assert_eq!(help, mesh.admin("GET", "/"));
    assert!(help.contains("  /stats: what is counted\n      filter: "), "{help}");
}

#[test]
fn head_is_get_without_the_body() {
    let mesh = used();
    for path in ["/ready", "/certs", "/help"] {
        let (head, body) = mesh.ask_admin("HEAD", path).unwrap();
        assert!(body.is_empty(), "{path}");
        let length = format!("content-length: {}\r\n", mesh.admin("GET", path).len());
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains(&length), "{head}");
    }
}

#[test]
fn listeners_and_resources_are_shown_by_kind_and_name() {
    let mesh = used();
    assert_eq!(mesh.admin("GET", "/listeners"), format!("in::{}\n", mesh.address));
    let address = json!({"address": mesh.address.ip(), "port_value": mesh.address.port()});
    let expected = json!({"listener_statuses": [{"name": "in", "local_address": {"socket_address": address}}]});
    assert_eq!(json(&mesh, "/listeners?format=json"), expected);
    let [cluster] = &mesh.dump("dynamic_active_clusters")[..] else { panic!("one cluster") };
    assert_eq!(cluster["cluster"]["name"], CLUSTER);
    assert_eq!(mesh.dump("dynamic_listeners&name_regex=n$").len(), 1);
    assert!(mesh.dump("dynamic_listeners&name_regex=^none$").is_empty());
    assert_eq!(mesh.try_admin("GET", "/config_dump?resource=dynamic_scopes").unwrap().0, 404);
}

#[test]
fn memory_is_what_the_allocator_and_the_system_say() {
    let mesh = used();
    let memory = json(&mesh, "/memory");
    let of = |name: &str| memory[name].as_str().unwrap().parse::<u64>().unwrap();
    assert!(of("allocated") > 10 << 10, "{memory}");
    assert!(of("allocated") <= of("heap_size"), "{memory}");
    assert!(of("total_physical_bytes") > 1 << 20, "{memory}");
    let classes = memory["size_classes"].as_array().unwrap();
    let sum: u64 = classes.iter().map(|class| class["allocated"].as_u64().unwrap()).sum();
    assert_eq!(sum, of("allocated"));
}

#[test]
fn record_files_are_opened_anew_when_asked() {
    let mesh = used();
    std::fs::rename(mesh.path("access.log"), mesh.path("access.log.1")).unwrap();
    mesh.admin("POST", "/reopen_logs");
    assert_eq!(mesh.client().get("/second").status(), 200);
    mesh.record("/second");
}

/// Lines of the log of this component and level.
fn lines(mesh: &Mesh, component: &str, level: &str) -> Vec<String> {
    let mark = format!("][{level}][{component}] ");
    mesh.log().lines().filter_map(|line| Some(line.split_once(&mark)?.1.to_owned())).collect()
}

#[test]
fn levels_change_while_it_runs_and_each_component_has_its_own() {
    let mesh = used();
    assert!(lines(&mesh, "main", "info").iter().any(|line| line.starts_with("ready; ")), "{}", mesh.log());
    assert!(!mesh.log().contains("[debug]"), "{}", mesh.log());
    let shown = mesh.admin("POST", "/logging?http=debug");
    assert!(shown.starts_with("active loggers:\n  admin: info\n") && shown.contains("\n  http: debug\n"), "{shown}");
    assert_eq!(shown, mesh.admin("GET", "/logging"));
    let mut client = mesh.client();
    client.get("/told");
    let told = until("the request is told", || lines(&mesh, "http", "debug").into_iter().next());
    assert!(told.starts_with("\"GET up/told\" from 127."), "{told}");
    assert!(told.contains(&format!(" of {CLUSTER}: 200 - via_upstream, 0 and 5 bytes, ")), "{told}");
    assert!(lines(&mesh, "pool", "debug").is_empty() && lines(&mesh, "router", "debug").is_empty());
    // All of it or nothing.
    assert_eq!(mesh.try_admin("POST", "/logging?paths=pool:debug,pol:debug").unwrap().0, 400);
    assert!(mesh.admin("GET", "/logging").contains("  pool: info\n"));
    mesh.admin("POST", "/logging?level=warning&paths=router:debug");
    client.get("/untold");
    let picked = until("the endpoint is told", || lines(&mesh, "router", "debug").into_iter().next());
    assert!(picked.starts_with(&format!("{CLUSTER} goes to 127.")), "{picked}");
    mesh.record("/untold");
    assert_eq!(lines(&mesh, "http", "debug").len(), 1);
}

/// Wait for a line of this component at debug that has all of *parts*.
#[track_caller]
fn told(mesh: &Mesh, component: &str, parts: &[&str]) {
    until(parts[0], || {
        let lines = lines(mesh, component, "debug");
        lines.iter().any(|line| parts.iter().all(|part| line.contains(part))).then_some(())
    });
}

#[test]
fn what_happens_to_connections_and_configuration_is_told_at_debug() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let levels = ["--log-level", "error", "--component-log-level", "xds:debug,tls:debug,listener:debug,pool:debug"];
    let mut mesh = Mesh::start_with(&[Upstream::saying("hello")], &levels, |setup| {
        setup.chain.transport_socket = downstream(&[WEB]);
        setup.more = secrets(&authority.identity(WEB), &authority);
    });
    let mut good = Peer::over(client(mesh.address, &authority, Some(&authority.identity(WEB))));
    assert_eq!(good.get("/").text(), "hello");
    let mut bad = Peer::over(client(mesh.address, &authority, Some(&stranger.identity(WEB))));
    assert!(bad.first_bytes().is_empty(), "nothing is answered");
    let has = |component: &str, parts: &[&str]| told(&mesh, component, parts);
    has("xds", &["Cluster ", CLUSTER, "version ", " bytes, from the control plane at "]);
    has("xds", &["ACK of 1 Listener to the control plane"]);
    has("tls", &["default is now the identity ", WEB, " until 20"]);
    has("tls", &["ROOTCA is now 1 roots"]);
    has("tls", &["in refuses 127.", ": tls_error:"]);
    has("listener", &["in accepts 127."]);
    has("listener", &["has filter chain", "TLS: true", WEB]);
    has("pool", &[CLUSTER, " is connected to 127."]);
    assert!(!mesh.log().contains("PRIVATE KEY"));
    assert!(lines(&mesh, "main", "info").is_empty(), "{}", mesh.log());
    let dns = DiscoveryType::LogicalDns as i32;
    let bad = Cluster {
        name: "bad".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(dns)),
        ..Default::default()
    };
    mesh.change(|setup| setup.more.push(published(type_url::CLUSTER, "bad", &bad)));
    told(&mesh, "xds", &["NACK of 1 Cluster to the control plane"]);
}

#[test]
fn a_level_that_does_not_exist_ends_the_start() {
    for (arguments, says) in [
        (["--log-level", "loud"], "unknown logger level \"loud\"; there are off, error, warning, info, debug, trace"),
        (["--component-log-level", "xds"], "\"xds\" is not NAME:LEVEL"),
        (["--component-log-level", "a:info"], "unknown logger name \"a\"; there are admin, dns,"),
    ] {
        let mut mesh = Mesh::prepare(&[]);
        mesh.run(&arguments);
        assert_eq!(mesh.wait_exit().code(), Some(2));
        assert!(mesh.log().contains(says), "{}", mesh.log());
    }
}
