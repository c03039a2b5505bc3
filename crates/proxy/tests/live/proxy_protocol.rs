//! The PROXY protocol: who a connection is for, said by the proxy before us, and said to the proxy behind us.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::core::v3::proxy_protocol_config::Version;
use weft_protos::envoy::config::listener::v3::FilterChainMatch;
use weft_protos::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use weft_protos::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use weft_protos::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use weft_protos::google::protobuf::BoolValue;
use weft_protos::type_url;

use crate::kit::certificates::{Authority, OTHER, WEB, client, downstream, secrets, server, upstream};
use crate::kit::mesh::expect_passed;
use crate::kit::peer::ok;
use crate::kit::resources::{any, at, cluster_of, http_chain, listener_filter, number, published, seconds, tcp_chain};
use crate::kit::{Mesh, Peer, Setup, Upstream, free_address};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 4430\r\n";
/// The same in version 2, with additions of three bytes.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc0\0\x02\x01\xc6\x33\x64\x07\xdc\x04\x11\x4e\x04\0\0";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: up\r\n\r\n";

fn expect_header(setup: &mut Setup, expected: &ProxyProtocol) {
    setup.listener.listener_filters = vec![listener_filter(
        "envoy.filters.listener.proxy_protocol",
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        expected,
    )];
    setup.listener.access_log = setup.manager.access_log.clone();
}

fn range(prefix: &str) -> core::CidrRange {
    core::CidrRange { address_prefix: prefix.into(), prefix_len: number(32) }
}

/// The filter chain is for connections from and to what the headers above say.
fn for_the_header_alone(setup: &mut Setup) {
    setup.chain.filter_chain_match = Some(FilterChainMatch {
        destination_port: number(4430),
        prefix_ranges: vec![range("198.51.100.7")],
        source_prefix_ranges: vec![range("192.0.2.1")],
        source_ports: vec![56324],
        ..Default::default()
    });
}

#[test]
fn a_header_replaces_both_ends_before_the_filter_chain_is_chosen() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        expect_header(setup, &ProxyProtocol::default());
        for_the_header_alone(setup);
    });
    for (version, header) in [("v1", V1), ("v2", V2)] {
        let request = |path: &str| format!("GET /{version}/{path} HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut client = mesh.client();
        client.send([header, request("whole").as_bytes()].concat());
        assert_eq!(client.message().text(), "hello");
        // The connection goes on without another header.
        client.send(request("again"));
        assert_eq!(client.message().text(), "hello");
        let mut in_pieces = mesh.client();
        header.chunks(5).for_each(|piece| in_pieces.send(piece));
        in_pieces.send(request("pieces"));
        assert_eq!(in_pieces.message().text(), "hello");
        for (path, client) in [("whole", &client), ("again", &client), ("pieces", &in_pieces)] {
            let record = mesh.record(&format!("/{version}/{path}"));
            assert_eq!(record["downstream_remote_address"], "192.0.2.1:56324", "{record}");
            let direct = client.socket().local_addr().unwrap().to_string();
            assert_eq!(record["downstream_direct_remote_address"], direct.as_str(), "{record}");
        }
    }
}

#[test]
fn a_sender_that_speaks_for_itself_keeps_its_own_ends() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| expect_header(setup, &ProxyProtocol::default()));
    for (count, header) in [LOCAL, b"PROXY UNKNOWN 1.2.3.4 whatever\r\n"].into_iter().enumerate() {
        let mut client = mesh.client();
        client.send([header, GET].concat());
        assert_eq!(client.message().text(), "hello");
        let own = client.socket().local_addr().unwrap().to_string();
        assert_eq!(mesh.wait_records(count + 1)[count]["downstream_remote_address"], own.as_str());
    }
}

#[test]
fn a_filter_chain_may_ask_where_the_client_is_and_who_speaks_for_it() {
    use ConnectionSourceType::{External, SameIpOrLoopback};
    let from = |direct: &str, kind: ConnectionSourceType| FilterChainMatch {
        direct_source_prefix_ranges: vec![range(direct)],
        source_type: kind.into(),
        ..Default::default()
    };
    let mesh = Mesh::start(&[Upstream::saying("elsewhere")], |setup| {
        expect_header(setup, &ProxyProtocol::default());
        setup.chain.filter_chain_match = Some(from("127.0.0.1", External));
        for (name, direct, kind) in [
            ("here", "127.0.0.1", SameIpOrLoopback),
            // For whom the header speaks, not who has connected.
            ("said", "192.0.2.1", External),
            ("said-here", "192.0.2.1", SameIpOrLoopback),
        ] {
            setup.more.extend(cluster_of(name, &[Upstream::saying(name)]));
            let mut chain = tcp_chain(&TcpProxy {
                stat_prefix: name.into(),
                cluster_specifier: Some(ClusterSpecifier::Cluster(name.into())),
                ..Default::default()
            });
            chain.filter_chain_match = Some(from(direct, kind));
            setup.chains.push(chain);
        }
    });
    for (header, chosen) in [(V1, "elsewhere"), (V2, "elsewhere"), (LOCAL, "here")] {
        let mut client = mesh.client();
        client.send([header, GET].concat());
        assert_eq!(client.message().text(), chosen);
    }
}

#[test]
fn the_listener_is_chosen_by_what_the_header_says() {
    let mesh = Mesh::start(&[Upstream::saying("service")], |setup| {
        expect_header(setup, &ProxyProtocol::default());
        for_the_header_alone(setup);
        let mut service = setup.listener.clone();
        service.name = "service".into();
        service.listener_filters.clear();
        service.address = Some(at("198.51.100.7:4430".parse().unwrap()));
        service.bind_to_port = Some(BoolValue { value: false });
        service.filter_chains = vec![http_chain(&setup.manager)];
        setup.more.push(published(type_url::LISTENER, "service", &service));
        // Nothing of its own fits, so whoever is served was handed over.
        setup.chain.filter_chain_match.as_mut().unwrap().destination_port = number(1);
        setup.listener.use_original_dst = Some(BoolValue { value: true });
    });
    let mut client = mesh.client();
    client.send([V2, GET].concat());
    assert_eq!(client.message().text(), "service");
}

#[test]
fn connections_without_a_good_header_are_closed_counted_and_recorded() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        let disallowed_versions = vec![Version::V1 as i32];
        expect_header(setup, &ProxyProtocol { disallowed_versions, ..Default::default() });
    });
    let version_3 = [SIGNATURE, b"\x31\x11\0\0"].concat();
    for (count, (bytes, reason)) in [
        (GET, "proxy_protocol_error:the connection does not begin with a PROXY protocol header"),
        (V1, "proxy_protocol_error:a PROXY protocol header of version 1, which is not accepted here"),
        (
            &version_3,
            "proxy_protocol_error:the byte 0x31 of a PROXY protocol header is neither LOCAL nor PROXY of version 2",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = mesh.client();
        client.send(bytes);
        client.expect_end();
        assert_eq!(mesh.metric("weft_proxy_proxy_protocol_refused_total", &[]), (count + 1) as f64);
        assert_eq!(mesh.wait_records(count + 1)[count]["downstream_transport_failure_reason"], reason);
    }
    assert!(!upstream.has_visitor());
}

#[test]
fn a_header_must_come_in_time() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        expect_header(setup, &ProxyProtocol::default());
        setup.listener.listener_filters_timeout = Some(seconds(0.2));
        // That is for inspectors: whoever must say who it is cannot have the question dropped by silence.
        setup.listener.continue_on_listener_filters_timeout = true;
    });
    let began = Instant::now();
    let mut client = mesh.client();
    client.send("PROX");
    client.expect_end();
    expect_passed(began, Duration::from_millis(200));
}

#[test]
fn a_header_may_be_optional() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        let expected = ProxyProtocol { allow_requests_without_proxy_protocol: true, ..Default::default() };
        expect_header(setup, &expected);
    });
    assert_eq!(mesh.client().get("/").text(), "hello");
    let mut client = mesh.client();
    client.send([V1, GET].concat());
    assert_eq!(client.message().text(), "hello");
    assert_eq!(mesh.wait_records(2)[1]["downstream_remote_address"], "192.0.2.1:56324");
}

#[test]
fn tls_may_follow_in_the_same_packet() {
    let authority = Authority::new();
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        expect_header(setup, &ProxyProtocol::default());
        for_the_header_alone(setup);
        setup.chain.transport_socket = downstream(&[OTHER]);
        setup.more = secrets(&authority.identity(WEB), &authority);
    });
    let mut tls = client(mesh.address, &authority, Some(&authority.identity(OTHER)));
    let mut first = V2.to_vec();
    tls.conn.write_tls(&mut first).unwrap();
    std::io::Write::write_all(&mut tls.sock, &first).unwrap();
    assert_eq!(Peer::over(tls).get("/").text(), "hello");
    assert_eq!(mesh.wait_records(1)[0]["downstream_remote_address"], "192.0.2.1:56324");
}

/// Tell upstreams of *version* who the client is, before what *inner* does.
fn tell(setup: &mut Setup, version: Version, inner: Option<core::TransportSocket>) {
    let transport = ProxyProtocolUpstreamTransport {
        config: Some(core::ProxyProtocolConfig { version: version as i32, ..Default::default() }),
        transport_socket: inner,
        ..Default::default()
    };
    setup.cluster.transport_socket = Some(core::TransportSocket {
        name: "envoy.transport_sockets.upstream_proxy_protocol".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(
            "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            &transport,
        ))),
    });
}

fn header(version: Version, client: &Peer, proxy: SocketAddr) -> Vec<u8> {
    let source = client.socket().local_addr().unwrap();
    let (SocketAddr::V4(source), SocketAddr::V4(to)) = (source, proxy) else { panic!("loopback of IPv4") };
    match version {
        Version::V1 => {
            format!("PROXY TCP4 {} {} {} {}\r\n", source.ip(), to.ip(), source.port(), to.port()).into_bytes()
        }
        Version::V2 => {
            let ports = [source.port().to_be_bytes(), to.port().to_be_bytes()].concat();
            [SIGNATURE, b"\x21\x11\0\x0c", &source.ip().octets(), &to.ip().octets(), &ports].concat()
        }
    }
}

#[test]
fn upstreams_are_told_who_the_client_is() {
    for version in [Version::V1, Version::V2] {
        let upstream = Upstream::new();
        let mesh = Mesh::start(&[upstream.address()], |setup| {
            setup.tcp();
            tell(setup, version, None);
        });
        let mut client = mesh.client();
        let mut peer = upstream.accept();
        peer.expect(header(version, &client, mesh.address));
        client.send("ping");
        peer.expect("ping");
        peer.send("pong");
        client.expect("pong");
    }
}

#[test]
fn what_a_header_said_to_us_is_said_to_upstreams() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.tcp();
        expect_header(setup, &ProxyProtocol::default());
        tell(setup, Version::V1, None);
    });
    let mut client = mesh.client();
    client.send([V2, b"ping"].concat());
    upstream.accept().expect([V1, b"ping"].concat());
}

#[test]
fn the_header_comes_before_tls() {
    let authority = Authority::new();
    let listening = Upstream::new();
    let mesh = Mesh::start(&[listening.address()], |setup| {
        tell(setup, Version::V2, upstream(&[OTHER]));
        setup.more = secrets(&authority.identity(WEB), &authority);
    });
    let mut client = mesh.client();
    client.send(GET);
    let expected = header(Version::V2, &client, mesh.address);
    let mut socket = listening.accept_socket();
    let mut came = vec![0; expected.len()];
    std::io::Read::read_exact(&mut socket, &mut came).unwrap();
    assert_eq!(came, expected);
    let mut peer = Peer::over(server(socket, &authority, &authority.identity(OTHER)));
    assert_eq!(peer.message().start_line(), "GET / HTTP/1.1");
    peer.send(ok("hello"));
    assert_eq!(client.message().text(), "hello");
}

#[test]
fn a_connection_is_used_again_for_the_client_that_it_names_and_for_no_other() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| tell(setup, Version::V1, None));
    let exchange = |client: &mut Peer, peer: &mut Peer, path: &str| {
        assert_eq!(peer.message().start_line(), format!("GET {path} HTTP/1.1"));
        peer.send(ok(path));
        assert_eq!(client.message().text(), path);
    };
    let ask = |client: &mut Peer, path: &str| client.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
    let (mut first, mut second) = (mesh.client(), mesh.client());
    ask(&mut first, "/1");
    let mut of_first = upstream.accept();
    of_first.expect(header(Version::V1, &first, mesh.address));
    exchange(&mut first, &mut of_first, "/1");
    ask(&mut second, "/2");
    let mut of_second = upstream.accept();
    of_second.expect(header(Version::V1, &second, mesh.address));
    exchange(&mut second, &mut of_second, "/2");
    for path in ["/3", "/4"] {
        ask(&mut first, path);
        exchange(&mut first, &mut of_first, path);
        ask(&mut second, path);
        exchange(&mut second, &mut of_second, path);
    }
    assert!(!upstream.has_visitor());
    // Nobody else can ever use them, so they do not stay for the hour that others do.
    drop((first, second));
    of_first.expect_end();
    of_second.expect_end();
}

#[test]
fn an_upstream_that_refuses_is_a_failure_of_the_connection() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mesh = Mesh::start(&[gone, free_address()], |setup| tell(setup, Version::V2, None));
    assert_eq!(mesh.client().get("/").status(), 503);
    assert_eq!(mesh.wait_records(1)[0]["response_flags"], "UF");
}
