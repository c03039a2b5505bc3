//! Bytes that the proxy does not understand.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use weft_protos::envoy::config::listener::v3::FilterChainMatch;
use weft_protos::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use weft_protos::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;

use crate::kit::certificates::{Authority, Hello, OTHER, WEB, client_saying, server};
use crate::kit::mesh::expect_passed;
use crate::kit::peer::{End, unanswered_address};
use crate::kit::resources::{cluster_of, listener_filter, number, original_destination_cluster, seconds, tcp_chain};
use crate::kit::{Mesh, Peer, Setup, Upstream, content, free_address, until};

#[test]
fn bytes_pass_both_ways_unchanged() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::tcp);
    let mut client = mesh.client();
    let mut peer = upstream.accept();
    // A connection is counted when it is there, and what it carried at its end.
    let opened = ["request_protocol=\"tcp\"", "response_flags=\"-\""];
    until("the connection is counted", || {
        Some(()).filter(|()| mesh.metric("istio_tcp_connections_opened_total", &opened) == 1.0)
    });
    assert_eq!(mesh.metric("istio_tcp_connections_closed_total", &[]), 0.0);
    // The server may speak first.
    peer.send("220 hello\r\n");
    client.expect("220 hello\r\n");
    let (up, down) = (content(3_000_000), content(2_000_000));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(peer.take(up.len()) == up);
            peer.send(&down);
        });
        client.send(&up);
        assert!(client.take(down.len()) == down);
    });
    client.finish();
    peer.expect_end();
    drop(peer);
    assert_eq!(client.expect_end(), End::Finished);
    let record = &mesh.wait_records(1)[0];
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&3_000_000.into(), &2_000_011.into()), "{record}");
    assert_eq!(record["response_flags"], "-");
    assert_eq!(mesh.metric("istio_tcp_received_bytes_total", &["reporter=\"source\""]), 3_000_000.0);
    assert_eq!(mesh.metric("istio_tcp_sent_bytes_total", &[]), 2_000_011.0);
    assert_eq!(mesh.metric("istio_tcp_connections_closed_total", &["request_protocol=\"tcp\""]), 1.0);
    assert_eq!(mesh.metric("istio_tcp_connections_opened_total", &[]), 1.0);
}

#[test]
fn a_reader_that_does_not_read_costs_no_memory() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::tcp);
    let mut client = mesh.client();
    let mut peer = upstream.accept();
    mesh.expect_back_pressure(&mut peer, &mut client);
    mesh.expect_back_pressure(&mut client, &mut peer);
}

#[test]
fn each_direction_ends_by_itself() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::tcp);
    let mut client = mesh.client();
    let mut peer = upstream.accept();
    client.send("question");
    client.finish();
    assert_eq!(peer.rest(), (b"question".to_vec(), End::Finished));
    peer.send("answer");
    client.expect("answer");
    peer.finish();
    assert_eq!(client.expect_end(), End::Finished);

    let mut client = mesh.client();
    let mut peer = upstream.accept();
    peer.send("goodbye");
    peer.finish();
    assert_eq!(client.rest(), (b"goodbye".to_vec(), End::Finished));
    client.send("wait");
    peer.expect("wait");
    client.finish();
    assert_eq!(peer.expect_end(), End::Finished);
}

#[test]
fn a_reset_stays_a_reset() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::tcp);
    let mut client = mesh.client();
    let mut peer = upstream.accept();
    client.send("x");
    peer.expect("x");
    client.reset();
    assert_eq!(peer.expect_end(), End::Reset);

    let mut client = mesh.client();
    let mut peer = upstream.accept();
    client.send("x");
    peer.expect("x");
    peer.reset();
    assert_eq!(client.expect_end(), End::Reset);
    let flags = mesh.wait_records(2).into_iter().map(|record| record["response_flags"].clone());
    assert_eq!(flags.collect::<Vec<_>>(), ["-", "UC"]);
}

#[test]
fn an_upstream_that_refuses_ends_the_client() {
    let mesh = Mesh::start(&[free_address()], Setup::tcp);
    let mut client = mesh.client();
    assert_eq!(client.expect_end(), End::Reset);
    assert_eq!(mesh.wait_records(1)[0]["response_flags"], "UF");
}

/// One connection to the cluster at once.
fn one_at_once(setup: &mut Setup) {
    use weft_protos::envoy::config::cluster::v3 as cluster;
    setup.tcp();
    let thresholds = cluster::circuit_breakers::Thresholds { max_connections: number(1), ..Default::default() };
    setup.cluster.circuit_breakers =
        Some(cluster::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
}

#[test]
fn a_connection_too_many_is_refused_at_once() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], one_at_once);
    let mut first = mesh.client();
    let mut peer = upstream.accept();
    let mut second = mesh.client();
    let _ = second.try_send("for nobody");
    second.expect_end();
    let record = &mesh.wait_records(1)[0];
    assert_eq!((&record["response_flags"], &record["response_code_details"]), (&"UO".into(), &"overflow".into()));
    // No endpoint was asked.
    assert!(record["upstream_host"].is_null(), "{record}");
    assert!(!upstream.has_visitor());
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_overflow", &[]), 1.0);
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_connect_fail", &[]), 0.0);
    // The first goes on, and when it has ended there is room for another.
    first.send("x");
    peer.expect("x");
    drop((first, peer));
    mesh.wait_records(2);
    let mut third = mesh.client();
    third.send("y");
    upstream.accept().expect("y");
}

#[test]
fn who_resets_while_the_upstream_is_dialled_is_gone() {
    let (address, _queue) = unanswered_address();
    let mesh = Mesh::start(&[address], |setup| {
        setup.tcp();
        setup.cluster.connect_timeout = Some(seconds(3600.0));
    });
    let mut client = mesh.client();
    client.send("for nobody");
    until("it is being dialled", || (mesh.metric("envoy_http_downstream_cx_active", &[]) == 1.0).then_some(()));
    client.reset();
    let record = &mesh.wait_records(1)[0];
    assert_eq!(record["response_flags"], "DC", "{record}");
    assert_eq!(record["upstream_host"], address.to_string(), "{record}");
}

#[test]
fn no_endpoint_ends_the_client() {
    let mesh = Mesh::start(&[], Setup::tcp);
    mesh.client().expect_end();
    assert_eq!(mesh.wait_records(1)[0]["response_flags"], "UH");
}

#[test]
fn a_tunnel_in_which_nothing_moves_is_closed() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.tcp();
        setup.tcp.as_mut().unwrap().idle_timeout = Some(seconds(1.0));
    });
    let began = Instant::now();
    let mut client = mesh.client();
    let mut peer = upstream.accept();
    client.send("x");
    peer.expect("x");
    client.expect_end();
    peer.expect_end();
    expect_passed(began, Duration::from_millis(1000));
}

#[test]
fn a_tunnel_that_lasts_too_long_is_closed_though_it_moves() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.tcp();
        setup.tcp.as_mut().unwrap().max_downstream_connection_duration = Some(seconds(0.3));
    });
    let began = Instant::now();
    let mut client = mesh.client();
    let mut peer = upstream.accept();
    while client.try_send("x").is_ok() && peer.first_bytes().len() < 1_000_000 {
        if peer.try_send("y").is_err() || client.first_bytes().is_empty() {
            break;
        }
        peer.take_arrived();
        client.take_arrived();
    }
    expect_passed(began, Duration::from_millis(300));
    let record = &mesh.wait_records(1)[0];
    assert_eq!(
        (&record["response_flags"], &record["response_code_details"]),
        (&"DT".into(), &"max_duration_timeout".into())
    );
}

#[test]
fn only_silence_in_both_directions_is_idle() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.tcp();
        setup.tcp.as_mut().unwrap().idle_timeout = Some(seconds(1.0));
    });
    let began = Instant::now();
    let mut client = mesh.client();
    let mut peer = upstream.accept();
    // The upstream alone speaks, and for longer than the limit.
    while began.elapsed() < Duration::from_millis(1500) {
        peer.send("x");
        client.expect("x");
    }
    client.expect_end();
    peer.expect_end();
    let record = &mesh.wait_records(1)[0];
    assert_eq!(record["response_flags"], "SI", "{record}");
}

/// A filter chain for TLS that names one of *servers*, carried to *cluster* as it is.
fn passed_on(servers: &[&str], cluster: &str) -> weft_protos::envoy::config::listener::v3::FilterChain {
    let mut chain = tcp_chain(&tcp_proxy::TcpProxy {
        stat_prefix: cluster.into(),
        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    });
    chain.filter_chain_match = Some(FilterChainMatch {
        server_names: servers.iter().map(|name| (*name).into()).collect(),
        transport_protocol: "tls".into(),
        ..Default::default()
    });
    chain
}

fn inspect_tls(setup: &mut Setup) {
    setup.listener.listener_filters.push(listener_filter(
        "envoy.filters.listener.tls_inspector",
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        &TlsInspector::default(),
    ));
}

/// Names of protocols that fill a ClientHello beyond one record, which is as much as is read at once.
static MANY_PROTOCOLS: LazyLock<Vec<&str>> =
    LazyLock::new(|| (0..120).map(|number| &*format!("{number:0>200}").leak()).collect());

#[test]
fn a_long_hello_is_read_to_its_end() {
    let authority = Authority::new();
    let (named, rest) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[rest.address()], |setup| {
        setup.tcp();
        inspect_tls(setup);
        setup.chains = vec![passed_on(&["one.example"], "named")];
        setup.more.extend(cluster_of("named", &[named.address()]));
    });
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let mut peer = Peer::over(server(named.accept_socket(), &authority, &authority.identity(OTHER)));
            peer.expect("ping");
            peer.send("pong");
        });
        let hello = Hello { name: "one.example", alpn: &MANY_PROTOCOLS, ..Hello::default() };
        let mut client = Peer::over(client_saying(mesh.address, &authority, Some(&authority.identity(WEB)), &hello));
        client.send("ping");
        client.expect("pong");
        answering.join().unwrap();
    });
}

#[test]
fn tls_goes_where_its_server_name_says_and_is_not_ended_here() {
    let authority = Authority::new();
    let (exact, wildcard, rest) = (Upstream::new(), Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[rest.address()], |setup| {
        setup.tcp();
        inspect_tls(setup);
        setup.chains = vec![passed_on(&["one.example"], "exact"), passed_on(&["*.example"], "wildcard")];
        setup.more.extend(cluster_of("exact", &[exact.address()]));
        setup.more.extend(cluster_of("wildcard", &[wildcard.address()]));
    });
    for (name, upstream) in [
        ("one.example", &exact),
        ("ONE.example", &exact),
        ("two.example", &wildcard),
        ("a.b.example", &wildcard),
        ("elsewhere.test", &rest),
    ] {
        std::thread::scope(|scope| {
            // The certificate that the client sees, and the one that it shows, are those of the two ends: nobody is between.
            let answering = scope.spawn(|| {
                let mut peer = Peer::over(server(upstream.accept_socket(), &authority, &authority.identity(OTHER)));
                peer.expect("ping");
                peer.send("pong");
            });
            let hello = Hello { name, ..Hello::default() };
            let mut tls = client_saying(mesh.address, &authority, Some(&authority.identity(WEB)), &hello);
            while tls.conn.is_handshaking() {
                tls.conn.complete_io(&mut tls.sock).unwrap();
            }
            let shown = tls.conn.peer_certificates().unwrap()[0].to_vec();
            assert!(shown.windows(OTHER.len()).any(|window| window == OTHER.as_bytes()), "{name}");
            let mut client = Peer::over(tls);
            client.send("ping");
            client.expect("pong");
            answering.join().unwrap();
        });
    }
    // What is no TLS at all.
    let mut client = mesh.client();
    client.send("hello");
    rest.accept().expect("hello");
    // That of the default chain, which alone has a log.
    assert_eq!(mesh.wait_records(1)[0]["requested_server_name"], "elsewhere.test");
}

#[test]
fn bytes_go_where_the_client_wanted_to_go() {
    let (one, other) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[], |setup| {
        setup.tcp();
        setup.tcp.as_mut().unwrap().cluster_specifier =
            Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster("PassthroughCluster".into()));
        setup.more.push(original_destination_cluster("PassthroughCluster"));
        // Stands for a rule that catches connections, which takes a network of its own (tests/namespaces).
        setup.listener.listener_filters = vec![listener_filter(
            "envoy.filters.listener.proxy_protocol",
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
            &ProxyProtocol::default(),
        )];
    });
    for upstream in [&one, &other, &one] {
        let mut client = mesh.client();
        let (ip, port) = (upstream.address().ip(), upstream.address().port());
        client.send(format!("PROXY TCP4 192.0.2.1 {ip} 4000 {port}\r\nping"));
        let mut peer = upstream.accept();
        peer.expect("ping");
        peer.send("pong");
        client.expect("pong");
    }
    assert_eq!(mesh.wait_records(2)[0]["upstream_host"], one.address().to_string().as_str());
}

/// Or it would be led to the proxy again, and that again, until no more connections are allowed.
#[test]
fn who_calls_the_proxy_itself_wanted_to_go_nowhere_else() {
    let mesh = Mesh::start(&[], |setup| {
        setup.tcp();
        setup.tcp.as_mut().unwrap().cluster_specifier =
            Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster("PassthroughCluster".into()));
        setup.more.push(original_destination_cluster("PassthroughCluster"));
    });
    let mut client = mesh.client();
    client.expect_end();
    let records = mesh.wait_records(1);
    assert_eq!((records.len(), &records[0]["response_flags"]), (1, &"UH".into()));
}
