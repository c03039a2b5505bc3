//! Envoy's bootstrap: what is in it serves, what it leads to is followed, and what cannot be honoured is refused by name.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};
use weft_protos::type_url;
use weft_xds::server::Event;

use crate::kit::certificates::{Authority, OTHER, WEB};
use crate::kit::resources::{CLUSTER, cluster_of, to};
use crate::kit::{Mesh, Peer, Upstream, free_address, until};

/// A listener on *listener* with a cluster that leads to *upstream*, as a person writes them.
fn static_resources(listener: std::net::SocketAddr, upstream: std::net::SocketAddr) -> String {
    format!(
        r#"
static_resources:
  listeners:
  - name: fixed
    address: {{socket_address: {{address: {}, port_value: {}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: fixed
          codec_type: AUTO
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: upstream, timeout: 0.5s}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: upstream
    connect_timeout: 1s
    load_assignment:
      cluster_name: upstream
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]
"#,
        listener.ip(),
        listener.port(),
        upstream.ip(),
        upstream.port()
    )
}

#[test]
fn what_is_in_a_bootstrap_serves_without_a_control_plane() {
    let mut mesh = Mesh::prepare(&[]);
    let head = format!(
        "node: {{id: alone, cluster: c}}\nadmin: {{address: {{pipe: {{path: {}, mode: {}}}}}}}\nlayered_runtime: {{layers: [{{name: a, static_layer: {{a: 1}}}}]}}\nstats_config: {{use_all_default_tags: true}}\n",
        mesh.path("admin.sock").display(),
        0o666
    );
    let filter = json!({"name": "istio.metadata_exchange", "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange", "value": {"protocol": "x"}}});
    // The cluster is the last of it.
    let text =
        head + &static_resources(mesh.address, Upstream::saying("hello")) + &format!("    filters: [{filter}]\n");
    mesh.run_with(&text, &[]);
    mesh.wait_ready();
    assert_eq!(mesh.client().get("/").text(), "hello");
    let info: Value = serde_json::from_str(&mesh.admin("GET", "/server_info")).unwrap();
    assert_eq!(info["node"], "alone");
    assert_eq!(mesh.dump("static_clusters")[0]["cluster"]["name"], "upstream");
    assert_eq!(mesh.dump("static_listeners")[0]["listener"]["name"], "fixed");
    assert!(mesh.dump("dynamic_listeners").is_empty() && mesh.dump("dynamic_active_clusters").is_empty());
    let log = mesh.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("not applied")).collect();
    let fields = [
        "layered_runtime.layers[0].static_layer.a",
        "stats_config",
        "admin.address.pipe.mode",
        "static_resources.clusters[0].filters[0]",
    ];
    for field in fields {
        let said = format!("not applied, in the bootstrap: Bootstrap.{field}: ");
        assert!(told.iter().any(|line| line.contains(&said)), "{field}: {log}");
    }
    assert_eq!(told.len(), fields.len(), "{log}");
    assert_eq!(std::fs::metadata(mesh.path("admin.sock")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_control_plane_may_speak_by_the_state_of_the_world() {
    let upstream = Upstream::saying("old");
    let mut mesh = Mesh::prepare(&[upstream]);
    mesh.serve();
    let mut bootstrap = mesh.bootstrap();
    bootstrap["dynamic_resources"]["ads_config"]["api_type"] = json!("GRPC");
    mesh.run_with(&bootstrap.to_string(), &[]);
    mesh.publish();
    mesh.wait_ready();
    assert_eq!(mesh.client().get("/").text(), "old");
    let new = Upstream::saying("new");
    mesh.change(|setup| {
        setup.more.extend(cluster_of("other", &[new]));
        setup.route(vec![to("other", "/new"), to(CLUSTER, "/")]);
    });
    until("the new route is in force", || (mesh.client().get("/new").text() == "new").then_some(()));
    // What the world no longer holds is gone.
    let other = free_address();
    mesh.change(|setup| {
        setup.listener.name = "moved".into();
        setup.listener.address = Some(crate::kit::resources::at(other));
    });
    until("the old address is closed", || std::net::TcpStream::connect(mesh.address).is_err().then_some(()));
    assert_eq!(Peer::connect(other).get("/").text(), "old");
}

#[test]
fn static_resources_stand_beside_those_of_a_control_plane_which_cannot_touch_them() {
    let mut mesh = Mesh::prepare(&[Upstream::saying("followed")]);
    mesh.serve();
    let fixed = free_address();
    let bootstrap = mesh.bootstrap();
    // JSON within YAML: each member of the bootstrap on a line of its own, and the clusters of both.
    let more = static_resources(fixed, Upstream::saying("fixed"));
    let clusters = bootstrap["static_resources"]["clusters"].as_array().unwrap();
    let clusters: Vec<String> = clusters.iter().map(|cluster| format!("  - {cluster}\n")).collect();
    let members = ["node", "admin", "dynamic_resources"].map(|key| format!("{key}: {}\n", bootstrap[key]));
    mesh.run_with(&(members.concat() + &more + &clusters.concat()), &[]);
    mesh.publish();
    mesh.wait_ready();
    assert_eq!(mesh.client().get("/").text(), "followed");
    assert_eq!(Peer::connect(fixed).get("/").text(), "fixed");
    mesh.change(|setup| setup.more.extend(cluster_of("upstream", &[free_address()])));
    let refused = mesh.events.iter().find_map(|event| match event {
        Event::Refused { type_url, name, message, .. } => Some((type_url.clone(), name.clone(), message.clone())),
        _ => None,
    });
    let (kind, name, message) = refused.expect("it was refused");
    assert_eq!((kind.as_str(), name.as_str()), (type_url::CLUSTER, "upstream"));
    assert_eq!(message, "upstream is in the bootstrap, and stays as it is there");
    assert_eq!(Peer::connect(fixed).get("/").text(), "fixed");
}

/// Run weft-proxy to its end: exit code, standard output and error.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_weft-proxy")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_bootstrap_that_cannot_be_honoured_is_refused_with_the_paths_of_its_fields() {
    let mesh = Mesh::prepare(&[]);
    let path = mesh.path("bootstrap.json");
    let ads = |field: &str, value: Value| {
        let mut bootstrap = mesh.bootstrap();
        bootstrap["dynamic_resources"][field] = value;
        bootstrap
    };
    let with = |field: &str, value: Value| {
        let mut bootstrap = mesh.bootstrap();
        bootstrap[field] = value;
        bootstrap
    };
    let mut rest = mesh.bootstrap();
    rest["dynamic_resources"]["ads_config"]["api_type"] = json!("REST");
    let mut nobody = mesh.bootstrap();
    nobody["dynamic_resources"]["ads_config"]["grpc_services"][0]["envoy_grpc"]["cluster_name"] = json!("nobody");
    for (bootstrap, expected) in [
        (with("nonsense", json!(1)), "Bootstrap.nonsense: envoy.config.bootstrap.v3.Bootstrap has no such field"),
        (with("tracing", json!({})), "Bootstrap.tracing: weft-proxy does not honour this field"),
        (with("node", json!({"cluster": "c"})), "Bootstrap.node.id: required"),
        (with("node", json!({"id": 7})), "Bootstrap.node.id: expected a string, found 7"),
        (
            with("admin", json!({"address": {}})),
            "Bootstrap.admin.address: a pipe, or a socket_address with port_value, is needed",
        ),
        (
            ads("lds_config", json!({"api_config_source": {"api_type": "GRPC"}})),
            "Bootstrap.dynamic_resources.lds_config: only `ads: {}` is supported",
        ),
        (
            ads("cds_config", json!({"path_config_source": {"path": "/etc/clusters"}})),
            "Bootstrap.dynamic_resources.cds_config.path_config_source: weft-proxy does not honour this field",
        ),
        (rest, "Bootstrap.dynamic_resources.ads_config.api_type: REST is not supported, GRPC and DELTA_GRPC are"),
        (
            nobody,
            "Bootstrap.dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: there is no static cluster nobody",
        ),
    ] {
        std::fs::write(&path, bootstrap.to_string()).unwrap();
        let (code, _, error) = run(&["-c", path.to_str().unwrap()]);
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(expected), "{error}\n{expected}");
        let (code, report, _) = run(&["validate", path.to_str().unwrap()]);
        assert_eq!(code, Some(1), "{report}");
        assert!(report.contains(&format!("refused: {expected}")), "{report}\n{expected}");
    }
}

#[test]
fn validate_finds_resources_wherever_they_are_and_says_what_is_wrong() {
    let mesh = Mesh::prepare(&[]);
    let path = mesh.path("file");
    let validate = |text: &str| {
        std::fs::write(&path, text).unwrap();
        run(&["validate", path.to_str().unwrap()])
    };
    let good = json!({"@type": type_url::CLUSTER, "name": "good", "connectTimeout": "0.250s", "type": "EDS",
        "eds_cluster_config": {"edsConfig": {"ads": {}}}, "filters": [{"name": "istio.metadata_exchange", "typed_config":
            {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url":
                "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange", "value": {"protocol": "x"}}}]});
    let bad = json!({"@type": type_url::CLUSTER, "name": "bad", "lb_policy": "LOAD_BALANCING_POLICY_CONFIG", "lbSubsetConfig": {}});
    let dump = json!({"configs": [
        {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": {"id": "a"}}},
        {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "version_info": "1",
            "dynamic_active_clusters": [{"cluster": good}, {"cluster": bad}]},
    ]});
    let (code, report, _) = validate(&dump.to_string());
    assert_eq!(code, Some(1));
    let lines: Vec<_> = report.lines().collect();
    let place = "configs[1].dynamic_active_clusters";
    assert_eq!(
        lines[0],
        format!("refused: {place}[1].cluster: Cluster.lb_subset_config: weft-proxy does not honour this field")
    );
    assert!(lines[1].starts_with(&format!("not applied: {place}[0].cluster: Cluster.filters[0]: ")), "{report}");
    assert_eq!(lines[2], "3 checked, 1 refused");
    // A resource by itself, in YAML; the compiler's word comes where the fields are all honoured.
    let (code, report, _) =
        validate(&format!("\"@type\": {}\nname: c\nlb_policy: LOAD_BALANCING_POLICY_CONFIG\n", type_url::CLUSTER));
    assert_eq!(
        (code, report.as_str()),
        (Some(1), "refused: Cluster.lb_policy: LOAD_BALANCING_POLICY_CONFIG is not supported\n1 checked, 1 refused\n")
    );
    let (code, report, _) = validate(&format!("[{good}]"));
    assert_eq!((code, report.lines().last()), (Some(0), Some("1 checked, 0 refused")));
    for nothing in ["{}", "a: b", "[1", "a: [\n"] {
        let (code, _, error) = validate(nothing);
        assert_eq!(code, Some(2), "{nothing}: {error}");
    }
    assert_eq!(run(&["validate"]).0, Some(2));
}

#[test]
fn what_a_start_refuses_validate_refuses_too() {
    let mesh = Mesh::prepare(&[]);
    let path = mesh.path("bootstrap.yaml");
    let text = static_resources(free_address(), free_address()) + "  - {name: upstream, type: STATIC}\n";
    std::fs::write(&path, format!("node: {{id: alone}}\n{text}")).unwrap();
    let path = path.to_str().unwrap();
    let reason = "upstream: the bootstrap has another one of this name";
    let (code, _, error) = run(&["-c", path]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&format!("static resources of the bootstrap cannot be put to work: {reason}")), "{error}");
    let (code, report, _) = run(&["validate", path]);
    assert_eq!((code, report), (Some(1), format!("refused: static_resources: {reason}\n1 checked, 1 refused\n")));
}

/// What can be told without the secrets that have yet to come: a proxy refuses it when it arrives.
#[test]
fn validate_tries_certificates_and_names_of_servers() {
    const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let mesh = Mesh::prepare(&[]);
    let path = mesh.path("file");
    let authority = Authority::new();
    let (one, other) = (authority.identity(WEB), authority.identity(OTHER));
    let certificate = |chain: &str, key: &str| json!({"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}});
    let secret =
        |certificate: Value| json!({"@type": type_url::SECRET, "name": "default", "tls_certificate": certificate});
    let socket = |kind: &str, fields: Value| {
        let mut config = json!({"@type": format!("{TLS}.{kind}")});
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"name": "envoy.transport_sockets.tls", "typed_config": config})
    };
    let cluster = |fields: Value| json!({"@type": type_url::CLUSTER, "name": "up", "type": "STATIC", "transport_socket": socket("UpstreamTlsContext", fields)});
    let listener = |common: Value| {
        let tcp = json!({"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": "up"});
        json!({"@type": type_url::LISTENER, "name": "in", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
            "filter_chains": [{"filters": [{"name": "tcp", "typed_config": tcp}],
                "transport_socket": socket("DownstreamTlsContext", json!({"common_tls_context": common}))}]})
    };
    let yet_to_come = json!({"tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": {"ads": {}}}]});
    let untrusted = |context: Value| json!({"common_tls_context": {"validation_context": context}});
    let is_of_ca = json!({"trusted_ca": {"inline_string": authority.pem()}, "crl": {"inline_string": "none"}});
    for (resource, expected) in [
        (secret(certificate(&one.chain, &one.key)), None),
        (secret(certificate(&one.chain, &other.key)), Some("Secret: the key does not belong to the certificate")),
        (secret(certificate("none", &one.key)), Some("Secret: certificate_chain: ")),
        (secret(certificate(&one.chain, "[redacted]")), None),
        (listener(json!({"tls_certificates": [certificate(&one.chain, &one.key)]})), None),
        (listener(json!({"tls_certificates": [certificate(&one.chain, "[redacted]")]})), None),
        (
            listener(json!({"tls_certificates": [certificate(&one.chain, &other.key)]})),
            Some("Listener: the key does not belong to the certificate"),
        ),
        (listener(yet_to_come.clone()), None),
        (cluster(untrusted(json!({"trusted_ca": {"inline_string": authority.pem()}}))), None),
        (cluster(untrusted(json!({"trusted_ca": {"inline_string": "none"}}))), Some("Cluster: trusted_ca: ")),
        (cluster(untrusted(is_of_ca)), Some("Cluster: crl: ")),
        (cluster(json!({"sni": "no name"})), Some("Cluster: no name cannot be a server name")),
        (
            cluster(json!({"sni": "no name", "common_tls_context": yet_to_come})),
            Some("Cluster: no name cannot be a server name"),
        ),
    ] {
        let in_bootstrap = |list: &str| json!({"node": {"id": "a"}, "static_resources": {list: [resource]}});
        let kept = match resource["@type"].as_str().unwrap() {
            type_url::CLUSTER => Some(in_bootstrap("clusters")),
            type_url::LISTENER => Some(in_bootstrap("listeners")),
            _ => None,
        };
        // What a dump has left out hides nothing of what stands beside it.
        let with_hidden = |mut bootstrap: Value| {
            let mut hidden = listener(json!({"tls_certificates": [certificate(&one.chain, "[redacted]")]}));
            hidden["name"] = json!("hidden");
            let listeners = &mut bootstrap["static_resources"]["listeners"];
            *listeners = listeners.as_array().into_iter().flatten().cloned().chain([hidden]).collect();
            bootstrap
        };
        // A bootstrap has no secrets that are yet to come from where it does not say.
        let kept = kept.filter(|_| expected.is_some());
        let files = [Some(resource.clone()), kept.clone().map(with_hidden), kept];
        for file in files.into_iter().flatten() {
            std::fs::write(&path, file.to_string()).unwrap();
            let (code, report, error) = run(&["validate", path.to_str().unwrap()]);
            let reason = expected.map(|expected| expected.split_once(": ").unwrap().1);
            assert_eq!(code, Some(i32::from(reason.is_some())), "{file}: {report}{error}");
            assert!(reason.is_none_or(|reason| report.contains(reason)), "{file}: {report}");
        }
    }
}
