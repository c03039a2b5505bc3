//! Connections to upstreams: where they come from, and how long they are kept.

use std::net::{IpAddr, SocketAddr};

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::endpoint::v3 as endpoint;
use weft_protos::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;

use crate::kit::certificates::{Authority, OTHER, WEB, secrets, server_for, upstream_for};
use crate::kit::frames::*;
use crate::kit::mesh::expect_passed;
use crate::kit::peer::ok;
use crate::kit::resources::{CLUSTER, any, at, number, seconds};
use crate::kit::{Directory, Mesh, Peer, Setup, Upstream, free_address, until};

/// A proxy whose bootstrap names *source*.
fn mesh_from(source: IpAddr, upstream: &Upstream, change: impl FnOnce(&mut Setup)) -> Mesh {
    let mut mesh = Mesh::prepare(&[upstream.address()]);
    mesh.source = Some(source);
    change(&mut mesh.setup);
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    mesh.wait_ready();
    mesh
}

fn source_of_a_call(mesh: &Mesh, upstream: &Upstream) -> SocketAddr {
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    upstream.accept().socket().peer_addr().unwrap()
}

#[test]
fn connections_come_from_the_address_of_the_bootstrap() {
    let (source, upstream) = (free_address().ip(), Upstream::new());
    let mesh = mesh_from(source, &upstream, |_| {});
    let seen = source_of_a_call(&mesh, &upstream);
    assert_eq!(seen.ip(), source);
    // The bootstrap's port 0 is the kernel's choice.
    assert_ne!(seen.port(), 0);
}

#[test]
fn a_cluster_with_a_source_of_its_own_keeps_it() {
    let (source, own, upstream) = (free_address().ip(), free_address().ip(), Upstream::new());
    let mesh = mesh_from(source, &upstream, |setup| {
        let Some(core::address::Address::SocketAddress(address)) = at((own, 0).into()).address else { unreachable!() };
        setup.cluster.upstream_bind_config =
            Some(core::BindConfig { source_address: Some(address), ..Default::default() });
    });
    assert_eq!(source_of_a_call(&mesh, &upstream).ip(), own);
}

/// The kernel's timer of the proxy's end of a connection to *upstream*, as `/proc/net/tcp` shows it (proc(5)): kind, and what is left.
fn timer_of(upstream: SocketAddr) -> Option<(u8, Duration)> {
    let SocketAddr::V4(address) = upstream else { panic!("tests have IPv4") };
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // 01: established.
        if words[2] != wanted || words[3] != "01" {
            return None;
        }
        let (kind, left) = words[5].split_once(':')?;
        let ticks = u64::from_str_radix(left, 16).ok()?;
        // SAFETY: no pointers are involved.
        let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap();
        Some((u8::from_str_radix(kind, 16).ok()?, Duration::from_millis(ticks * 1000 / per_second)))
    })
}

#[test]
fn connections_are_kept_alive_as_the_cluster_says() {
    const KEEPALIVE: u8 = 2;
    for time in [None, Some(600)] {
        let upstream = Upstream::new();
        let mesh = Mesh::start(&[upstream.address()], |setup| {
            setup.cluster.upstream_connection_options = time.map(|time| cluster::UpstreamConnectionOptions {
                tcp_keepalive: Some(core::TcpKeepalive {
                    keepalive_time: number(time),
                    keepalive_interval: number(7),
                    keepalive_probes: number(3),
                }),
                ..Default::default()
            });
        });
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut connection = upstream.accept();
        connection.message();
        connection.send(ok("hello"));
        assert_eq!(client.message().text(), "hello");
        let timer = until("the connection rests", || {
            timer_of(upstream.address()).filter(|(kind, _)| time.is_none() || *kind == KEEPALIVE)
        });
        match time {
            None => assert_ne!(timer.0, KEEPALIVE, "{timer:?}"),
            Some(time) => {
                let most = Duration::from_secs(time.into());
                assert!(timer.1 <= most && timer.1 > most / 2, "{timer:?}");
            }
        }
    }
}

/// The cluster of one endpoint at *address*.
fn only_endpoint(address: core::Address) -> cluster::Cluster {
    let endpoint = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address),
            ..Default::default()
        })),
        ..Default::default()
    };
    let lb_endpoints = vec![endpoint];
    cluster::Cluster {
        name: CLUSTER.into(),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: CLUSTER.into(),
            endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints, ..Default::default() }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn an_upstream_may_be_a_unix_socket() {
    let directory = Directory::new();
    let path = directory.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut seen = Vec::new();
        // Two requests on one connection: it goes back to the pool as any other.
        for end in [1, 2] {
            while seen.windows(4).filter(|window| window == b"\r\n\r\n").count() < end {
                let mut bytes = [0; 4096];
                let count = socket.read(&mut bytes).unwrap();
                assert!(count > 0, "the proxy closed a connection that it was to keep");
                seen.extend_from_slice(&bytes[..count]);
            }
            socket.write_all(&ok("by a file")).unwrap();
        }
    });
    let mesh = Mesh::start(&[], |setup| {
        let pipe = core::Pipe { path: path.to_str().unwrap().into(), mode: 0 };
        setup.cluster = only_endpoint(core::Address { address: Some(core::address::Address::Pipe(pipe)) });
    });
    let mut client = mesh.client();
    assert_eq!(client.get("/1").text(), "by a file");
    assert_eq!(client.get("/2").text(), "by a file");
    serving.join().unwrap();
    assert_eq!(mesh.record("/1")["upstream_host"], path.to_str().unwrap());
}

#[test]
fn a_unix_socket_that_is_not_there_is_a_failure_of_the_connection() {
    let directory = Directory::new();
    let path = directory.path().join("nobody.sock");
    let mesh = Mesh::start(&[], |setup| {
        let pipe = core::Pipe { path: path.to_str().unwrap().into(), mode: 0 };
        setup.cluster = only_endpoint(core::Address { address: Some(core::address::Address::Pipe(pipe)) });
    });
    assert_eq!(mesh.client().get("/").status(), 503);
    assert_eq!(mesh.record("/")["response_flags"], "UF");
}

#[test]
fn a_connection_that_has_lasted_long_enough_is_not_used_again() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        let options = HttpProtocolOptions {
            common_http_protocol_options: Some(core::HttpProtocolOptions {
                max_connection_duration: Some(seconds(0.3)),
                ..Default::default()
            }),
            ..Default::default()
        };
        setup.cluster.typed_extension_protocol_options.insert(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(),
            any("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", &options),
        );
    });
    let mut client = mesh.client();
    let began = Instant::now();
    client.send("GET /1 HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut first = upstream.accept();
    first.message();
    // Its answer comes when the connection is too old already.
    until("it is too old", || (began.elapsed() > Duration::from_millis(400)).then_some(()));
    first.send(ok("one"));
    assert_eq!(client.message().text(), "one");
    first.expect_end();
    client.send("GET /2 HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut second = upstream.accept();
    second.message();
    second.send(ok("two"));
    assert_eq!(client.message().text(), "two");
    // And this one comes to be too old while it is idle.
    let began = Instant::now();
    until("it is too old", || (began.elapsed() > Duration::from_millis(400)).then_some(()));
    client.send("GET /3 HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut third = upstream.accept();
    third.message();
    third.send(ok("three"));
    assert_eq!(client.message().text(), "three");
    second.expect_end();
}

#[test]
fn an_idle_client_is_sent_away_when_its_connection_has_lasted_long_enough() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        setup.manager.common_http_protocol_options =
            Some(core::HttpProtocolOptions { max_connection_duration: Some(seconds(0.3)), ..Default::default() });
    });
    let began = Instant::now();
    let mut client = mesh.client();
    assert_eq!(client.get("/").text(), "hello");
    client.expect_end();
    expect_passed(began, Duration::from_millis(300));
}

#[test]
fn a_busy_client_is_sent_away_with_an_answer_when_its_connection_has_lasted_long_enough() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        setup.manager.common_http_protocol_options =
            Some(core::HttpProtocolOptions { max_connection_duration: Some(seconds(0.3)), ..Default::default() });
    });
    let began = Instant::now();
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    loop {
        // There is always another request by the time that one is answered.
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let answer = client.message();
        assert_eq!(answer.text(), "hello");
        if answer.all("connection") == ["close"] {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "it goes on and on");
    }
    client.expect_end();
    expect_passed(began, Duration::from_millis(300));
}

/// Have the cluster replaced by another of its name.
fn replace_cluster(mesh: &mut Mesh, after: f64) {
    mesh.change(|setup| setup.cluster.connect_timeout = Some(seconds(after)));
}

#[test]
fn connections_of_a_cluster_that_was_replaced_close() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    for round in 0..3 {
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut peer = upstream.accept();
        peer.message();
        if round == 1 {
            // While it is used: it closes as it becomes idle.
            replace_cluster(&mut mesh, 10.0 + f64::from(round));
            peer.send(ok("late"));
            assert_eq!(client.message().text(), "late");
        } else {
            peer.send(ok("idle"));
            assert_eq!(client.message().text(), "idle");
            replace_cluster(&mut mesh, 10.0 + f64::from(round));
        }
        peer.expect_end();
    }
}

#[test]
fn connections_to_an_endpoint_that_is_taken_away_close_when_their_requests_end() {
    for is_http2 in [false, true] {
        let (upstream, other) = (Upstream::new(), Upstream::new());
        let mut mesh = Mesh::start(&[upstream.address()], |setup| {
            if is_http2 {
                http2_upstream(setup);
            }
        });
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut peer = upstream.accept();
        if is_http2 {
            let mut server = Wire::server(peer, &[]);
            server.expect(HEADERS, 1);
            mesh.change(|setup| setup.endpoints = vec![other.address()]);
            server.expect(GOAWAY, 0);
            server.answer(1, b"late");
            assert_eq!(client.message().text(), "late");
            // The proxy may acknowledge our settings first.
            server.0.rest();
        } else {
            peer.message();
            mesh.change(|setup| setup.endpoints = vec![other.address()]);
            peer.send(ok("late"));
            assert_eq!(client.message().text(), "late");
            peer.expect_end();
        }
    }
}

#[test]
fn a_connection_that_comes_after_its_endpoint_is_taken_away_serves_whom_it_was_made_for() {
    let authority = Authority::new();
    for (alpn, is_http2) in [("http/1.1", false), ("h2", true)] {
        let (upstream, other) = (Upstream::new(), Upstream::new());
        let mut mesh = Mesh::start(&[upstream.address()], |setup| {
            setup.cluster.transport_socket = upstream_for(&[OTHER], &["h2", "http/1.1"]);
            setup.more = secrets(&authority.identity(WEB), &authority);
            speak(setup, UpstreamProtocolOptions::AutoConfig(Default::default()));
        });
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        // It has connected, and the handshake goes on later.
        let socket = upstream.accept_socket();
        mesh.change(|setup| setup.endpoints = vec![other.address()]);
        until("the endpoint is gone", || (mesh.endpoints()[0]["address"] == other.address().to_string()).then_some(()));
        let mut peer = Peer::over(server_for(socket, &authority, &authority.identity(OTHER), &[alpn]));
        if is_http2 {
            let mut server = Wire::server(peer, &[]);
            server.expect(HEADERS, 1);
            server.answer(1, b"late");
            assert_eq!(client.message().text(), "late");
            server.expect(GOAWAY, 0);
            server.0.expect_end();
        } else {
            peer.message();
            peer.send(ok("late"));
            assert_eq!(client.message().text(), "late");
            peer.expect_end();
        }
    }
}
