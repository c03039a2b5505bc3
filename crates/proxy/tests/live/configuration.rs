//! How the proxy follows its control plane, and what it says about itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3 as http;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use weft_protos::type_url;
use weft_xds::server::Event;

use crate::kit::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, STATUS_200, Wire, http2_upstream};
use crate::kit::mesh::expect_passed;
use crate::kit::peer::{End, SWITCHED, WEBSOCKET, ok};
use crate::kit::resources::{CLUSTER, Setup, ads, at, cluster_of, published, seconds, to};
use crate::kit::{Mesh, Peer, Upstream, free_address, until};

#[test]
fn a_bad_resource_is_refused_by_name_and_the_rest_applies() {
    let mut mesh = Mesh::start(&[Upstream::saying("old")], |_| {});
    let other = Upstream::saying("new");
    mesh.change(|setup| {
        let bad = cluster::Cluster {
            name: "bad".into(),
            cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
                cluster::cluster::DiscoveryType::LogicalDns as i32,
            )),
            ..Default::default()
        };
        setup.more.push(published(type_url::CLUSTER, "bad", &bad));
        setup.more.extend(cluster_of("other", &[other]));
        setup.route(vec![to("other", "/new"), to(CLUSTER, "/")]);
    });
    let refused: Vec<_> = mesh
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Refused { type_url, name, message, .. } => {
                Some((type_url.as_str(), name.as_str(), message.as_str()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!((refused[0].0, refused[0].1), (type_url::CLUSTER, "bad"));
    assert!(refused[0].2.contains("load_assignment"), "{refused:?}");
    let mut client = mesh.client();
    until("the new route is in force", || (client.get("/new").text() == "new").then_some(()));
    assert_eq!(client.get("/").text(), "old");
}

fn typed_any(type_name: &str) -> weft_protos::google::protobuf::Any {
    let type_url = format!("type.googleapis.com/{type_name}");
    weft_protos::google::protobuf::Any { type_url, ..Default::default() }
}

/// A filter of Istio's own, as istiod writes it: an `xds.type.v3.TypedStruct` or `udpa.type.v1.TypedStruct` that names the type once more.
fn typed_struct(kind: &str, type_name: &str) -> weft_protos::google::protobuf::Any {
    let inner = format!("type.googleapis.com/{type_name}");
    // `string type_url = 1`
    let value = [&[0x0a, inner.len() as u8], inner.as_bytes()].concat();
    weft_protos::google::protobuf::Any { type_url: format!("type.googleapis.com/{kind}"), value: value.into() }
}

#[test]
fn the_filters_of_istios_own_proxy_are_passed_over_and_reported() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        let filters = [
            ("istio.metadata_exchange", typed_struct("udpa.type.v1.TypedStruct", "io.istio.http.peer_metadata.Config")),
            ("istio.alpn", typed_any("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig")),
            ("istio.stats", typed_struct("xds.type.v3.TypedStruct", "stats.PluginConfig")),
        ];
        for (name, config) in filters.into_iter().rev() {
            let filter = http::HttpFilter {
                name: name.into(),
                config_type: Some(http::http_filter::ConfigType::TypedConfig(config)),
                ..Default::default()
            };
            setup.manager.http_filters.insert(0, filter);
        }
        setup.cluster.filters.push(cluster::Filter {
            name: "istio.metadata_exchange".into(),
            typed_config: Some(typed_struct(
                "udpa.type.v1.TypedStruct",
                "envoy.tcp.metadataexchange.config.MetadataExchange",
            )),
            ..Default::default()
        });
    });
    assert_eq!(mesh.client().get("/").text(), "hello");
    let of = |version: &Value| {
        let fields = version["not_applied"].as_array().expect("it is reported").iter();
        fields.map(|it| it["field"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let filter =
        |index: usize| format!("Listener.filter_chains[0].filters[0].typed_config.http_filters[{index}].typed_config");
    assert_eq!(of(&mesh.dump("dynamic_listeners")[0]["active_state"]), [filter(0), filter(1), filter(2)]);
    assert_eq!(of(&mesh.dump("dynamic_active_clusters")[0]), ["Cluster.filters[0]"]);
    let log = mesh.log();
    for name in ["istio.metadata_exchange", "istio.alpn", "istio.stats"] {
        assert!(log.contains(&format!("the filter {name} is passed over: ")), "{log}");
    }
}

#[test]
fn a_listener_that_is_replaced_loses_no_request() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let address = mesh.address;
    let stop = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut client = Peer::connect(address);
                    for _ in 0..20 {
                        let answer = client.get("/");
                        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
                        served.fetch_add(1, Ordering::Relaxed);
                        if answer.get("connection") == Some("close") {
                            break;
                        }
                    }
                }
            });
        }
        for number in 0..10 {
            let before = served.load(Ordering::Relaxed);
            mesh.change(|setup| setup.manager.server_name = format!("version-{number}"));
            until("requests go on", || (served.load(Ordering::Relaxed) > before + 20).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
    });
    until("the newest listener answers", || (mesh.client().get("/").get("server") == Some("version-9")).then_some(()));
    let served = served.load(Ordering::Relaxed);
    assert!(mesh.wait_records(served).iter().all(|record| record["response_code"] == 200));
}

/// Replace the listener by one at another address, with what else is to *change*; returns that address when the old one is closed.
fn move_listener(mesh: &mut Mesh, change: impl FnOnce(&mut Setup)) -> std::net::SocketAddr {
    let other = free_address();
    mesh.change(|setup| {
        setup.listener.name = "moved".into();
        setup.listener.address = Some(at(other));
        change(setup);
    });
    until("the old address is closed", || std::net::TcpStream::connect(mesh.address).is_err().then_some(()));
    other
}

#[test]
fn a_listener_that_is_removed_stops() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let mut client = mesh.client();
    assert_eq!(client.get("/").text(), "hello");
    let other = move_listener(&mut mesh, |_| {});
    assert_eq!(Peer::connect(other).get("/").text(), "hello");
    // The connection that was there is told to come again.
    assert_eq!(client.get("/").get("connection"), Some("close"));
    assert_eq!(client.expect_end(), End::Finished);
}

#[test]
fn a_request_whose_routes_went_with_its_listener_is_not_told_that_there_is_none() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let mut client = mesh.client();
    assert_eq!(client.get("/").text(), "hello");
    let other = move_listener(&mut mesh, |setup| {
        setup.routes.name = "moved".into();
        setup.manager.route_specifier =
            Some(RouteSpecifier::Rds(http::Rds { config_source: Some(ads()), route_config_name: "moved".into() }));
    });
    client.send("GET /late HTTP/1.1\r\nhost: up\r\n\r\n");
    assert_eq!(client.expect_end(), End::Reset);
    assert_eq!(Peer::connect(other).get("/").text(), "hello");
    mesh.expect_record("/late", 0, "NR", "route_not_found");
}

/// Connect, ask once and read the answer, over and over until *stop*. Returns what went wrong after a connection was there, and
/// how often all went well.
fn visit(address: std::net::SocketAddr, stop: &AtomicBool) -> (Vec<std::io::Error>, usize) {
    use std::io::{Read, Write};
    let (mut failures, mut served) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        // Nobody may be there for a moment.
        let Ok(mut socket) = std::net::TcpStream::connect_timeout(&address, crate::kit::LIMIT) else { continue };
        socket.set_read_timeout(Some(crate::kit::LIMIT)).unwrap();
        let mut answer = [0; 1024];
        let asked = socket.write_all(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n");
        match asked.and_then(|()| socket.read(&mut answer)) {
            Ok(count) if count > 0 => served += 1,
            Ok(_) => failures.push(std::io::ErrorKind::UnexpectedEof.into()),
            Err(error) => failures.push(error),
        }
    }
    (failures, served)
}

#[test]
fn nobody_who_got_through_is_reset_when_a_listener_goes_and_comes_or_the_proxy_drains() {
    let upstream = Upstream::saying("hello");
    let mut mesh = Mesh::start_with(&[upstream], &["--concurrency", "2"], |_| {});
    let (address, stop) = (mesh.address, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let visitors: Vec<_> = (0..6).map(|_| scope.spawn(|| visit(address, &stop))).collect();
        for _ in 0..15 {
            let other = free_address();
            mesh.change(|setup| setup.listener.address = Some(at(other)));
            mesh.change(|setup| setup.listener.address = Some(at(address)));
            until("the listener is back", || std::net::TcpStream::connect(address).ok());
        }
        mesh.signal(libc::SIGTERM);
        let exit = mesh.wait_exit();
        stop.store(true, Ordering::Relaxed);
        assert!(exit.success());
        for visitor in visitors {
            let (failures, served) = visitor.join().unwrap();
            assert!(failures.is_empty(), "{failures:?} beside {served} answers");
            assert!(served > 0);
        }
    });
}

#[test]
fn endpoints_come_and_go_without_a_lost_request() {
    let mut mesh = Mesh::start(&[Upstream::saying("a")], |_| {});
    let mut client = mesh.client();
    assert_eq!(client.get("/").text(), "a");
    let b = Upstream::saying("b");
    mesh.change(|setup| setup.endpoints = vec![b]);
    until("the new endpoint is in use", || (client.get("/").text() == "b").then_some(()));
    mesh.change(|setup| setup.endpoints = vec![]);
    until("no endpoint is in use", || (client.get("/").status() == 503).then_some(()));
}

#[test]
fn the_last_good_configuration_serves_without_a_control_plane() {
    let mut mesh = Mesh::prepare(&[Upstream::saying("kept")]);
    let state = mesh.path("state").to_str().unwrap().to_owned();
    mesh.serve();
    mesh.run(&["--state-dir", &state]);
    mesh.publish();
    mesh.wait_ready();
    assert_eq!(mesh.client().get("/").text(), "kept");
    mesh.stop_serving();
    // It goes on without its control plane,
    assert_eq!(mesh.client().get("/").text(), "kept");
    mesh.signal(libc::SIGTERM);
    assert!(mesh.wait_exit().success());
    // and begins without it.
    mesh.run(&["--state-dir", &state]);
    mesh.wait_ready();
    assert_eq!(mesh.client().get("/").text(), "kept");
    // When it comes back, it is followed again.
    mesh.serve();
    mesh.change(|setup| setup.endpoints = vec![Upstream::saying("newer")]);
    let mut client = mesh.client();
    until("the new endpoint is in use", || (client.get("/").text() == "newer").then_some(()));
}

#[test]
fn draining_finishes_what_has_begun_and_takes_nothing_new() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut busy = mesh.client();
    busy.send("GET /busy HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    let mut idle = mesh.client();
    until("both connections are accepted", || {
        (mesh.metric("envoy_http_downstream_cx_active", &[]) == 2.0).then_some(())
    });
    mesh.signal(libc::SIGTERM);
    assert_eq!(idle.expect_end(), End::Finished);
    until("nothing is accepted any more", || std::net::TcpStream::connect(mesh.address).is_err().then_some(()));
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n");
    peer.send("finished");
    let answer = busy.message();
    assert_eq!((answer.text().as_str(), answer.get("connection")), ("finished", Some("close")));
    busy.expect_end();
    assert!(mesh.wait_exit().success());
    mesh.expect_record("/busy", 200, "-", "via_upstream");
}

/// What can be open for long, from a client to an upstream, and what lets either say a word to the other.
struct Long {
    name: &'static str,
    change: fn(&mut Setup),
    open: fn(&Mesh, &Upstream) -> (Peer, Peer),
    /// A word as its protocol frames it, from the client and from the upstream.
    word: (&'static str, &'static str),
    /// Status, flags and details of its record if it is cut off.
    cut_off: (u16, &'static str, Option<&'static str>),
}

const LONG: [Long; 3] = [
    Long {
        name: "tcp",
        change: Setup::tcp,
        open: |mesh, upstream| (mesh.client(), upstream.accept()),
        word: ("question", "answer"),
        cut_off: (0, "-", None),
    },
    Long {
        name: "websocket",
        change: |setup| {
            setup.allow_websocket();
            setup.action().timeout = Some(seconds(0.0));
        },
        open: |mesh, upstream| {
            let mut client = mesh.client();
            client.send(WEBSOCKET);
            let mut peer = upstream.accept();
            peer.head();
            peer.send(SWITCHED);
            assert_eq!(client.head().status(), 101);
            (client, peer)
        },
        word: ("question", "answer"),
        cut_off: (101, "DC", Some("downstream_local_disconnect(cut_off)")),
    },
    Long {
        name: "both bodies of a request",
        change: |setup| setup.action().timeout = Some(seconds(0.0)),
        open: |mesh, upstream| {
            let mut client = mesh.client();
            client.send("POST /long HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n");
            let mut peer = upstream.accept();
            peer.head();
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            assert_eq!(client.head().status(), 200);
            (client, peer)
        },
        word: ("8\r\nquestion\r\n", "6\r\nanswer\r\n"),
        cut_off: (200, "DC", Some("downstream_local_disconnect(cut_off)")),
    },
];

impl Long {
    fn start(&self, upstream: &Upstream, drain_time: &str) -> (Mesh, Peer, Peer) {
        let mesh = Mesh::start_with(&[upstream.address()], &["--drain-time", drain_time], self.change);
        let (mut client, mut peer) = (self.open)(&mesh, upstream);
        self.exchange(&mut client, &mut peer);
        (mesh, client, peer)
    }

    fn exchange(&self, client: &mut Peer, peer: &mut Peer) {
        client.send(self.word.0);
        peer.expect(self.word.0);
        peer.send(self.word.1);
        client.expect(self.word.1);
    }
}

/// By its own word: to try whether it accepts would be one more that is open for long, where bytes are carried.
fn until_draining(mesh: &Mesh) {
    until("it drains", || mesh.try_admin("GET", "/ready").filter(|(_, body)| body.starts_with("DRAINING")));
}

#[test]
fn what_is_open_for_long_goes_on_while_the_proxy_drains_and_nothing_else_keeps_it() {
    for long in LONG {
        let upstream = Upstream::new();
        let (mut mesh, mut client, mut peer) = long.start(&upstream, "60");
        mesh.signal(libc::SIGTERM);
        until_draining(&mesh);
        for _ in 0..100 {
            long.exchange(&mut client, &mut peer);
        }
        drop(client);
        peer.expect_end();
        drop(peer);
        assert!(mesh.wait_exit().success(), "{}", long.name);
        assert!(!mesh.log().contains("cut off"), "{}", mesh.log());
        assert_eq!(mesh.wait_records(1).len(), 1, "{}", long.name);
    }
}

#[test]
fn what_is_open_for_long_is_cut_off_when_the_time_to_drain_is_over() {
    for long in LONG {
        let upstream = Upstream::new();
        let (mut mesh, mut client, mut peer) = long.start(&upstream, "0.5");
        let began = Instant::now();
        mesh.signal(libc::SIGTERM);
        client.rest();
        expect_passed(began, Duration::from_millis(500));
        peer.rest();
        assert!(mesh.wait_exit().success(), "{}", long.name);
        assert!(mesh.log().contains("the time is over; 1 connections are cut off"), "{}", mesh.log());
        let records = mesh.records();
        let [record] = &records[..] else { panic!("{}: one leaves one record: {records:?}", long.name) };
        let told = ["response_code", "response_flags", "response_code_details", "bytes_received", "bytes_sent"];
        let (status, flags, details) = long.cut_off;
        let expected = [json!(status), json!(flags), json!(details), json!("question".len()), json!("answer".len())];
        assert_eq!(told.map(|name| record[name].clone()), expected, "{}: {record}", long.name);
    }
}

#[test]
fn a_stream_of_http2_goes_on_while_the_proxy_drains_and_its_client_is_told() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.action().timeout = Some(seconds(0.0));
        http2_upstream(setup);
    });
    let mut client = Wire::client(&mesh);
    client.request(1, "POST", "/long", &[("content-type", "application/grpc")], false);
    let mut server = Wire::server(upstream.accept(), &[]);
    let stream = server.next().stream;
    server.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
    client.expect(HEADERS, 1);
    mesh.signal(libc::SIGTERM);
    client.expect(GOAWAY, 0);
    for word in ["one", "two", "three"] {
        client.send(DATA, 0, 1, word.as_bytes());
        assert_eq!(server.expect(DATA, stream).payload, word.as_bytes());
        server.send(DATA, 0, stream, word.as_bytes());
        assert_eq!(client.expect(DATA, 1).payload, word.as_bytes());
    }
    client.send(DATA, END_STREAM, 1, b"");
    server.send(DATA, END_STREAM, stream, b"");
    client.0.rest();
    assert!(mesh.wait_exit().success());
    assert_eq!(mesh.record("/long")["response_code"], 200);
}

#[test]
fn graceful_draining_tells_clients_with_their_answers_and_closes_no_idle_connection() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let mut idle = mesh.client();
    assert_eq!(idle.get("/").get("connection"), None);
    let mut quiet = mesh.client();
    assert_eq!(quiet.get("/").text(), "hello");
    mesh.admin("POST", "/drain_listeners?graceful");
    until("nothing is accepted any more", || std::net::TcpStream::connect(mesh.address).is_err().then_some(()));
    // What it asks long after is still answered, and the last.
    let answer = idle.get("/");
    assert_eq!((answer.text().as_str(), answer.get("connection")), ("hello", Some("close")));
    assert_eq!(idle.expect_end(), End::Finished);
    drop(idle);
    until("the one that was answered is gone", || {
        (mesh.metric("envoy_http_downstream_cx_active", &[]) == 1.0).then_some(())
    });
    // Then it is told to end.
    mesh.signal(libc::SIGTERM);
    assert_eq!(quiet.expect_end(), End::Finished);
    assert!(mesh.wait_exit().success());
}

/// Connections that the kernel has taken while the proxy was not looking, each with a request on it.
fn waiting_in_the_queue(mesh: &Mesh) -> Vec<Peer> {
    mesh.signal(libc::SIGSTOP);
    let request = "GET / HTTP/1.1\r\nhost: up\r\n\r\n";
    let mut clients: Vec<Peer> = (0..200).map(|_| mesh.client()).collect();
    clients.iter_mut().for_each(|client| client.send(request));
    clients
}

#[test]
fn draining_serves_who_waits_in_the_queue() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let clients = waiting_in_the_queue(&mesh);
    mesh.signal(libc::SIGTERM);
    mesh.signal(libc::SIGCONT);
    for mut client in clients {
        let answer = client.message();
        assert_eq!((answer.text().as_str(), answer.get("connection")), ("hello", Some("close")));
        assert_eq!(client.expect_end(), End::Finished);
    }
    assert!(mesh.wait_exit().success());
}

#[test]
fn a_listener_that_moves_serves_who_waits_in_the_queue() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let clients = waiting_in_the_queue(&mesh);
    mesh.setup.listener.address = Some(at(free_address()));
    let revision = mesh.offer();
    mesh.signal(libc::SIGCONT);
    for mut client in clients {
        assert_eq!(client.message().text(), "hello");
    }
    mesh.wait_event(
        "the change",
        |event| matches!(event, Event::Synced { revision: synced, .. } if *synced == revision),
    );
    until("the old address is closed", || std::net::TcpStream::connect(mesh.address).is_err().then_some(()));
}

#[test]
fn a_record_tells_everything() {
    let endpoint = Upstream::saying("hello");
    let mesh = Mesh::start(&[endpoint], |_| {});
    let mut client = mesh.client();
    client.send(
        "POST /a?b=%22 HTTP/1.1\r\nhost: shop.example:80\r\nx-request-id: \"id\"\r\ncontent-length: 3\r\n\r\nabc",
    );
    client.message();
    let record = mesh.record("/a?b=%22");
    for (name, value) in [
        ("method", Value::from("POST")),
        ("authority", "shop.example:80".into()),
        ("protocol", "HTTP/1.1".into()),
        ("response_code", 200.into()),
        ("response_flags", "-".into()),
        ("response_code_details", "via_upstream".into()),
        ("route_name", "to /".into()),
        ("upstream_cluster", CLUSTER.into()),
        ("upstream_host", endpoint.to_string().into()),
        ("bytes_received", 3.into()),
        ("bytes_sent", 5.into()),
        ("request_id", "\"id\"".into()),
        ("attempts", 1.into()),
        ("downstream_remote_address", client.socket().local_addr().unwrap().to_string().into()),
        ("upstream_transport_failure_reason", Value::Null),
        ("downstream_peer_uri_san", Value::Null),
    ] {
        assert_eq!(record[name], value, "{name}");
    }
}

#[test]
fn metrics_have_istios_names_labels_and_counts() {
    let upstream = Upstream::answering(|request| match request.start_line().contains("/bad") {
        true => b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n".to_vec(),
        false => ok("hello"),
    });
    let mesh = Mesh::start(&[upstream], |_| {});
    let mut client = mesh.client();
    for path in ["/", "/", "/bad"] {
        client.get(path);
    }
    let source = [
        "reporter=\"source\"",
        "source_workload=\"web-v1\"",
        "source_workload_namespace=\"default\"",
        "source_canonical_service=\"web\"",
        "source_canonical_revision=\"v1\"",
        "source_cluster=\"here\"",
        "destination_workload=\"unknown\"",
        "destination_canonical_service=\"unknown\"",
        "destination_canonical_revision=\"latest\"",
        "destination_cluster=\"unknown\"",
        "destination_service=\"up.default.svc.cluster.local\"",
        "destination_service_name=\"up\"",
        "destination_service_namespace=\"default\"",
        "request_protocol=\"http\"",
        "response_flags=\"-\"",
    ];
    let with = |code: &'static str| [&source[..], &[code]].concat();
    assert_eq!(mesh.metric("istio_requests_total", &with("response_code=\"200\"")), 2.0);
    // It is counted when its answer has been written.
    until("the last is counted", || {
        (mesh.metric("istio_requests_total", &with("response_code=\"500\"")) == 1.0).then_some(())
    });
    for name in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
        assert_eq!(mesh.metric(&format!("{name}_count"), &source), 3.0, "{name}");
        assert_eq!(mesh.metric(&format!("{name}_bucket"), &with("le=\"+Inf\"")), 3.0, "{name}");
    }
    assert_eq!(mesh.metric("istio_response_bytes_sum", &source), 10.0);
}

#[test]
fn the_admin_socket_shows_what_is_in_force() {
    let endpoint = Upstream::saying("");
    let mut mesh = Mesh::prepare(&[endpoint]);
    mesh.run(&[]);
    let before = until("the admin socket answers", || mesh.try_admin("GET", "/ready"));
    assert_eq!(before.0, 503);
    mesh.serve();
    mesh.publish();
    mesh.wait_ready();
    let dump: Value = serde_json::from_str(&mesh.admin("GET", "/config_dump?include_eds")).unwrap();
    let [clusters, endpoints, listeners, routes, secrets] = dump["configs"].as_array().unwrap().as_slice() else {
        panic!("{dump}")
    };
    assert_eq!(clusters["dynamic_active_clusters"][0]["cluster"]["name"], CLUSTER);
    let address = &endpoints["dynamic_endpoint_configs"][0]["endpoint_config"]["endpoints"][0]["lb_endpoints"][0];
    assert_eq!(address["endpoint"]["address"]["socket_address"]["port_value"], endpoint.port());
    let listener = &listeners["dynamic_listeners"][0];
    assert_eq!((&listener["name"], &listener["active_state"]["listener"]["name"]), (&json!("in"), &json!("in")));
    assert_eq!(routes["dynamic_route_configs"][0]["route_config"]["name"], "9080");
    assert_eq!(secrets["@type"], "type.googleapis.com/envoy.admin.v3.SecretsConfigDump");
    let clusters = mesh.admin("GET", "/clusters");
    assert!(clusters.contains(CLUSTER) && clusters.contains(&endpoint.to_string()), "{clusters}");
    assert_eq!(mesh.try_admin("GET", "/nothing").unwrap().0, 404);
    assert_eq!(mesh.try_admin("GET", "/quitquitquit").unwrap().0, 405);
    mesh.admin("POST", "/quitquitquit");
    assert!(mesh.wait_exit().success());
}

#[test]
fn code_that_only_changes_need_is_given_back() {
    let mut mesh = Mesh::start(&[Upstream::saying("old")], |_| {});
    let given_back = |mesh: &Mesh| {
        until("code is given back", || (mesh.resident_bytes() * 3 < mesh.peak_resident_bytes() * 2).then_some(()));
    };
    given_back(&mesh);
    assert_eq!(mesh.client().get("/").text(), "old");
    // It comes again with the next change, and goes again.
    let other = Upstream::saying("new");
    mesh.change(|setup| setup.more.extend(cluster_of("other", &[other])));
    mesh.change(|setup| setup.route(vec![to("other", "/")]));
    assert_eq!(mesh.client().get("/").text(), "new");
    given_back(&mesh);
    assert_eq!(mesh.client().get("/").text(), "new");
}
