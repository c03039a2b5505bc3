//! What is under way when the process ends and waits no longer: each request and connection has left its record by then.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_protos::envoy::config::accesslog::v3 as accesslog;
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::route::v3 as route;
use weft_protos::envoy::extensions::access_loggers::grpc::v3 as grpc;
use weft_protos::envoy::extensions::filters::common::fault::v3 as common_fault;
use weft_protos::envoy::extensions::filters::http::fault::v3 as fault;
use weft_protos::envoy::r#type::v3::FractionalPercent;
use weft_protos::type_url;
use weft_xds::access_log::server::Server as LogServer;
use weft_xds::access_log::store::{DEFAULT_LIMIT_BYTES, Store};

use crate::kit::frames::Wire;
use crate::kit::peer::unanswered_address;
use crate::kit::resources::{CLUSTER, any, eds_cluster, load_assignment, published, seconds, to};
use crate::kit::{Mesh, Setup, Upstream, until};

const DETAILS: &str = "downstream_local_disconnect(cut_off)";
/// Longer than any test.
const FOR_EVER: f64 = 3600.0;

/// What has been asked of *mesh* so far.
fn requests(mesh: &Mesh) -> f64 {
    mesh.metric("envoy_http_downstream_rq_total", &[])
}

/// A route whose requests are delayed by a fault.
fn paused(prefix: &str) -> route::Route {
    let delay = common_fault::FaultDelay {
        percentage: Some(FractionalPercent { numerator: 100, denominator: 0 }),
        fault_delay_secifier: Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(seconds(FOR_EVER))),
    };
    let fault = fault::HttpFault { delay: Some(delay), ..Default::default() };
    let mut route = to(CLUSTER, prefix);
    route
        .typed_per_filter_config
        .insert("envoy.filters.http.fault".into(), any("envoy.extensions.filters.http.fault.v3.HTTPFault", &fault));
    route
}

/// How a process comes to its end, and what `--drain-time` is then.
struct End {
    name: &'static str,
    drain_time: &'static str,
    end: fn(&Mesh),
}

const ENDS: [End; 3] = [
    End { name: "the time is over", drain_time: "0.1", end: |mesh| mesh.signal(libc::SIGTERM) },
    End {
        name: "by the admin socket",
        drain_time: "0.1",
        end: |mesh| {
            mesh.admin("POST", "/quitquitquit");
        },
    },
    End {
        name: "a second signal",
        drain_time: "3600",
        end: |mesh| {
            mesh.signal(libc::SIGTERM);
            until("it drains", || mesh.try_admin("GET", "/ready").filter(|(_, body)| body.starts_with("DRAINING")));
            mesh.signal(libc::SIGINT);
        },
    },
];

#[test]
fn wherever_a_request_is_it_leaves_one_record() {
    let (unanswered, _queue) = unanswered_address();
    for End { name, drain_time, end } in ENDS {
        let upstream = Upstream::new();
        let mut mesh = Mesh::prepare(&[upstream.address()]);
        let mut hole = eds_cluster("hole");
        hole.connect_timeout = Some(seconds(FOR_EVER));
        mesh.setup.more = vec![
            published(type_url::CLUSTER, "hole", &hole),
            published(type_url::CLUSTER_LOAD_ASSIGNMENT, "hole", &load_assignment("hole", &[unanswered])),
        ];
        mesh.setup.route(vec![to("hole", "/dialled"), paused("/paused"), to(CLUSTER, "/")]);
        for route in &mut mesh.setup.routes.virtual_hosts[0].routes {
            let Some(route::route::Action::Route(action)) = &mut route.action else {
                unreachable!("they lead somewhere")
            };
            action.timeout = Some(seconds(0.0));
        }
        mesh.serve();
        mesh.run(&["--drain-time", drain_time]);
        mesh.publish();
        mesh.wait_ready();

        let mut clients = Vec::new();
        let mut peers = Vec::new();
        let mut asked = 0.0;
        for (path, answer) in [("/waiting", ""), ("/answered", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")] {
            let mut client = mesh.client();
            client.send(format!("POST {path} HTTP/1.1\r\nhost: up\r\ncontent-length: 9\r\n\r\nabcde"));
            let mut peer = upstream.accept();
            peer.head();
            peer.expect("abcde");
            peer.send(answer);
            if !answer.is_empty() {
                client.head();
                client.expect("abc");
            }
            clients.push(client);
            peers.push(peer);
            asked += 1.0;
        }
        for path in ["/dialled", "/paused"] {
            let mut client = mesh.client();
            client.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
            clients.push(client);
            asked += 1.0;
        }
        let mut streams = Wire::client(&mesh);
        for (stream, path) in [(1, "/stream-1"), (3, "/stream-2")] {
            streams.request(stream, "GET", path, &[], true);
            let mut peer = upstream.accept();
            peer.message();
            peers.push(peer);
            asked += 1.0;
        }
        until("all has been asked", || (requests(&mesh) == asked).then_some(()));
        end(&mesh);
        assert!(mesh.wait_exit().success(), "{name}: {}", mesh.log());
        let mut records = mesh.records();
        records.sort_by_key(|record| record["path"].to_string());
        let seen: Vec<Value> = records
            .iter()
            .map(|it| {
                assert_eq!(it["response_code_details"], DETAILS, "{name}: {it}");
                json!([it["path"], it["response_code"], it["response_flags"], it["bytes_received"], it["bytes_sent"]])
            })
            .collect();
        let expected = [
            json!(["/answered", 200, "DC", 5, 3]),
            json!(["/dialled", 0, "DC", 0, 0]),
            json!(["/paused", 0, "DI,DC", 0, 0]),
            json!(["/stream-1", 0, "DC", 0, 0]),
            json!(["/stream-2", 0, "DC", 0, 0]),
            json!(["/waiting", 0, "DC", 5, 0]),
        ];
        assert_eq!(seen, expected, "{name}");
        assert_eq!(records[1]["upstream_host"], unanswered.to_string(), "{name}");
    }
}

#[test]
fn a_connection_whose_upstream_is_being_dialled_leaves_its_record() {
    let (unanswered, _queue) = unanswered_address();
    let mut mesh = Mesh::start_with(&[unanswered], &["--drain-time", "0.1"], |setup| {
        setup.tcp();
        setup.cluster.connect_timeout = Some(seconds(FOR_EVER));
    });
    let _client = mesh.client();
    until("it is being dialled", || (mesh.metric("envoy_http_downstream_cx_active", &[]) == 1.0).then_some(()));
    mesh.signal(libc::SIGTERM);
    assert!(mesh.wait_exit().success());
    let records = mesh.records();
    let [record] = &records[..] else { panic!("one connection leaves one record: {records:?}") };
    assert_eq!((&record["response_flags"], &record["upstream_cluster"]), (&"-".into(), &CLUSTER.into()), "{record}");
    assert_eq!(record["upstream_host"], unanswered.to_string(), "{record}");
}

/// Have the records of *setup* sent to the log service at the cluster `records`.
fn tell_service(setup: &mut Setup) {
    let target = core::grpc_service::EnvoyGrpc { cluster_name: "records".into(), ..Default::default() };
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(target)),
        ..Default::default()
    };
    let common = grpc::CommonGrpcAccessLogConfig {
        log_name: "requests".into(),
        grpc_service: Some(service),
        transport_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    };
    let config = grpc::HttpGrpcAccessLogConfig { common_config: Some(common), ..Default::default() };
    setup.manager.access_log = vec![accesslog::AccessLog {
        name: "envoy.access_loggers.http_grpc".into(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(any(
            "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            &config,
        ))),
        ..Default::default()
    }];
}

/// More of them than may wait for a service that is slow (1 MiB).
#[test]
fn the_log_service_has_every_record_before_the_process_ends() {
    const CONNECTIONS: u32 = 40;
    const STREAMS: u32 = 100;
    let mut mesh = Mesh::prepare(&[]);
    tell_service(&mut mesh.setup);
    mesh.setup.route(vec![paused("/")]);
    mesh.serve();
    let store = Arc::new(Store::open(&mesh.path("records"), DEFAULT_LIMIT_BYTES).unwrap());
    let _service = LogServer::bind(&mesh.path("records.sock"), Arc::clone(&store)).unwrap();
    let mut bootstrap = mesh.bootstrap();
    let endpoint = json!({"endpoint": {"address": {"pipe": {"path": mesh.path("records.sock")}}}});
    let records = json!({"name": "records", "load_assignment": {"endpoints": [{"lb_endpoints": [endpoint]}]}});
    bootstrap["static_resources"]["clusters"].as_array_mut().unwrap().push(records);
    mesh.run_with(&bootstrap.to_string(), &["--drain-time", "0.1"]);
    mesh.publish();
    mesh.wait_ready();
    // Which say much.
    let (path, agent) = (format!("/{}", "p".repeat(120)), "a".repeat(120));
    let mut clients: Vec<Wire> = (0..CONNECTIONS).map(|_| Wire::client(&mesh)).collect();
    for client in &mut clients {
        for stream in 0..STREAMS {
            client.request(2 * stream + 1, "GET", &path, &[("user-agent", &agent)], true);
        }
    }
    let all = f64::from(CONNECTIONS * STREAMS);
    until("all has been asked", || (requests(&mesh) == all).then_some(()));
    mesh.signal(libc::SIGTERM);
    assert!(mesh.wait_exit().success(), "{}", mesh.log());
    let status = store.status();
    assert_eq!(status.records, u64::from(CONNECTIONS * STREAMS), "{status:?}");
    assert!(status.bytes > 1 << 20, "{status:?}");
}
