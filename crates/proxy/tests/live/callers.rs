//! Explicit mode: who may use an address on which the proxy waits for its own program only.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;

use weft_protos::envoy::config::listener::v3 as listener;
use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use weft_protos::weft::extensions::filters::v1 as filters;

use crate::kit::peer::{End, Message, ok};
use crate::kit::resources::{
    filter, http_chain, listener_filter, original_destination_cluster, published, tcp_chain, to, virtual_host,
};
use crate::kit::{Mesh, Setup, Upstream, free_address};
use weft_protos::type_url;

/// SHA-256 of `weft:secret`.
const DIGEST: &str = "3ca9cf1305bd4effdfc10ed221244af65727b484eba7357cb978156bc95845a4";
const CREDENTIAL: &str = "Proxy-Authorization: Basic d2VmdDpzZWNyZXQ=\r\n";

/// Nobody's uid on any machine that we know.
const STRANGER: u32 = 61_978;

fn own_uid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Let processes of *uids* alone connect.
fn only(setup: &mut Setup, uids: &[u32]) {
    setup.listener.listener_filters = vec![listener_filter(
        "weft.filters.listener.caller_uid",
        "weft.extensions.filters.v1.CallerUid",
        &filters::CallerUid { uids: uids.to_vec() },
    )];
}

/// Ask of each request what *caller* says.
fn checked(setup: &mut Setup, caller: &filters::LocalCaller) {
    only(setup, &[own_uid()]);
    let check = filter("weft.filters.http.local_caller", "weft.extensions.filters.v1.LocalCaller", caller);
    setup.manager.http_filters.insert(0, check);
}

fn service() -> filters::LocalCaller {
    filters::LocalCaller {
        authorities: vec!["up".into(), "127.77.3.4".into()],
        credential_sha256: digest(),
        ..Default::default()
    }
}

fn digest() -> String {
    DIGEST.into()
}

/// An upstream that answers with the head of the request as it came.
fn echo() -> SocketAddr {
    Upstream::answering(|request| ok(&request.head))
}

/// Ask once, on a connection of its own.
fn ask(mesh: &Mesh, fields: &str) -> Message {
    let mut client = mesh.client();
    client.send(format!("GET /x HTTP/1.1\r\n{fields}\r\n"));
    client.message()
}

#[test]
fn a_process_of_another_user_is_refused() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| only(setup, &[own_uid() + 1]));
    let answer = ask(&mesh, "Host: up\r\n");
    assert_eq!((answer.status(), upstream.has_visitor()), (403, false));
    assert!(answer.text().contains("another user"), "{}", answer.text());
    assert_eq!(mesh.wait_records(1)[0]["response_code_details"], "caller_uid_refused");
    assert_eq!(mesh.metric("weft_proxy_callers_refused_total", &[]), 1.0);
}

#[test]
fn bytes_of_another_user_are_refused_with_a_reset() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        only(setup, &[own_uid() + 1]);
        setup.tcp();
    });
    let mut client = mesh.client();
    assert_eq!(client.expect_end(), End::Reset);
    assert!(!upstream.has_visitor());
    assert_eq!(mesh.wait_records(1)[0]["connection_termination_details"], "caller_uid_refused");
    assert_eq!(mesh.metric("weft_proxy_callers_refused_total", &[]), 1.0);
}

/// Start a proxy that carries bytes of its own program to *upstream*.
fn bytes_of_the_program(upstream: &Upstream) -> Mesh {
    Mesh::start(&[upstream.address()], |setup| {
        only(setup, &[own_uid()]);
        setup.tcp();
    })
}

#[test]
fn a_request_where_bytes_are_carried_is_refused_with_a_reset() {
    let upstream = Upstream::new();
    let mesh = bytes_of_the_program(&upstream);
    for (count, request) in [
        &["POST / HTTP/1.1\r\nHost: evil.example\r\nSec-Fetch-Site: cross-site\r\n\r\nFLUSHALL\r\n"][..],
        // In parts; of none of them anything arrives.
        &["FLUSHALL /", " HTTP/1.1\r\n"],
        &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = mesh.client();
        let mut peer = upstream.accept();
        for part in request {
            client.send(part);
        }
        assert_eq!(client.expect_end(), End::Reset);
        peer.expect_end();
        let record = &mesh.wait_records(count + 1)[count];
        assert_eq!(
            (&record["connection_termination_details"], &record["bytes_received"]),
            (&"caller_http_on_tcp".into(), &0.into())
        );
        assert_eq!(mesh.metric("weft_proxy_callers_refused_total", &[]), count as f64 + 1.0);
    }
}

#[test]
fn bytes_that_are_no_request_pass_whoever_speaks_first() {
    let upstream = Upstream::new();
    let mesh = bytes_of_the_program(&upstream);
    // The server's greeting waits for nothing that the client says.
    let (mut client, mut peer) = (mesh.client(), upstream.accept());
    peer.send("INFO {}\r\n");
    client.expect("INFO {}\r\n");
    client.send("CONNECT {\"verbose\":false}\r\n");
    peer.expect("CONNECT {\"verbose\":false}\r\n");
    // Only the beginning counts.
    client.send("GET / HTTP/1.1\r\n");
    peer.expect("GET / HTTP/1.1\r\n");
    // A word that could be the beginning of a request, after which the client waits for the answer.
    let (mut client, mut peer) = (mesh.client(), upstream.accept());
    client.send("ruok");
    peer.expect("ruok");
    peer.send("imok");
    client.expect("imok");
    // And one after which it has ended.
    let (mut client, mut peer) = (mesh.client(), upstream.accept());
    client.send("bye");
    client.finish();
    peer.expect("bye");
    peer.expect_end();
    assert_eq!(mesh.metric("weft_proxy_callers_refused_total", &[]), 0.0);
}

/// The real thing; only root can become somebody else.
#[test]
fn a_stranger_is_refused_where_the_programs_user_is_served() {
    if own_uid() != 0 {
        return;
    }
    let mesh = Mesh::start(&[echo()], |setup| checked(setup, &service()));
    let (host, port) = (mesh.address.ip(), mesh.address.port());
    let script = format!(
        "exec 3<>/dev/tcp/{host}/{port}; printf 'GET /x HTTP/1.1\\r\\nHost: up\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
    );
    let said =
        Command::new("bash").args(["-c", &script]).uid(STRANGER).gid(STRANGER).current_dir("/").output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("another user"), "{said}");
    assert_eq!(ask(&mesh, "Host: up\r\n").status(), 200);
}

#[test]
fn foreign_hosts_and_origins_are_refused() {
    let mesh = Mesh::start(&[echo()], |setup| checked(setup, &service()));
    for (fields, status, details) in [
        ("Host: up:9080\r\n", 200, "via_upstream"),
        ("Host: 127.77.3.4:9080\r\n", 200, "via_upstream"),
        ("Host: up\r\nOrigin: http://up:9080\r\n", 200, "via_upstream"),
        ("Host: evil.example\r\n", 403, "caller_foreign_host"),
        ("Host: up\r\nOrigin: https://evil.example\r\n", 403, "caller_foreign_origin"),
        ("Host: up\r\nSec-Fetch-Site: cross-site\r\n", 403, "caller_foreign_origin"),
    ] {
        let before = mesh.records().len();
        assert_eq!(ask(&mesh, fields).status(), status, "{fields}");
        assert_eq!(mesh.wait_records(before + 1)[before]["response_code_details"], details, "{fields}");
    }
    // The program's own credential stands for any origin, and is not handed on.
    let answer = ask(&mesh, &format!("Host: up\r\nOrigin: https://evil.example\r\n{CREDENTIAL}"));
    assert_eq!(answer.status(), 200);
    assert!(!answer.text().to_lowercase().contains("proxy-authorization"), "{}", answer.text());
}

#[test]
fn a_forward_proxy_asks_for_the_credential_and_keeps_it_to_itself() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| checked(setup, &forward_proxy(&[])));
    for fields in ["Host: up:9080\r\n", "Host: up:9080\r\nProxy-Authorization: Basic d2VmdDpndWVzcw==\r\n"] {
        let answer = ask(&mesh, fields);
        assert_eq!((answer.status(), upstream.has_visitor()), (407, false), "{fields}");
        assert_eq!(answer.get("proxy-authenticate"), Some("Basic realm=\"weft\""));
        assert!(!answer.text().contains("secret"));
    }
    let mut client = mesh.client();
    client.send(format!("GET http://up:9080/books?x=1 HTTP/1.1\r\nHost: elsewhere\r\n{CREDENTIAL}\r\n"));
    let mut peer = upstream.accept();
    let request = peer.message();
    assert_eq!(request.start_line(), "GET /books?x=1 HTTP/1.1");
    assert_eq!((request.get("host"), request.get("proxy-authorization")), (Some("up:9080"), None));
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.message().status(), 200);
}

/// A forward proxy whose tunnels lead where *tunnels* say.
fn forward_proxy(tunnels: &[(&str, &str)]) -> filters::LocalCaller {
    let tunnel = |&(authority, listener): &(&str, &str)| filters::Tunnel {
        authority: authority.into(),
        listener: listener.into(),
    };
    filters::LocalCaller {
        credential_sha256: digest(),
        forward_proxy: true,
        tunnels: tunnels.iter().map(tunnel).collect(),
        ..Default::default()
    }
}

/// Everything that no route knows goes where the request says.
fn passthrough(setup: &mut Setup) {
    setup.route(vec![to("PassthroughCluster", "/")]);
    setup.more.push(original_destination_cluster("PassthroughCluster"));
}

#[test]
fn a_host_outside_is_looked_up_and_called() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[], |setup| {
        checked(setup, &forward_proxy(&[]));
        passthrough(setup);
    });
    let mut client = mesh.client();
    for _ in 0..2 {
        client.send(format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n{CREDENTIAL}\r\n", upstream.address()));
        let mut peer = upstream.accept();
        peer.message();
        peer.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        assert_eq!(client.message().status(), 204);
    }
    client.send(format!("GET http://no-such-host.invalid/ HTTP/1.1\r\nHost: x\r\n{CREDENTIAL}\r\n"));
    assert_eq!(client.message().status(), 503);
    let record = &mesh.wait_records(3)[2];
    assert_eq!(
        (&record["response_flags"], &record["response_code_details"]),
        (&"DF".into(), &"dns_resolution_failure".into())
    );
}

/// A listener to which tunnels lead: of a service, where its program calls it (*bound*), or without a socket of its own.
fn inner(setup: &mut Setup, name: &str, chain: listener::FilterChain, bound: Option<SocketAddr>) {
    let mut made = setup.listener.clone();
    made.name = name.into();
    if bound.is_none() {
        made.listener_filters.clear();
    }
    made.address = Some(crate::kit::resources::at(bound.unwrap_or_else(free_address)));
    made.bind_to_port = bound.is_none().then_some(weft_protos::google::protobuf::BoolValue { value: false });
    made.filter_chains = vec![chain];
    setup.more.push(published(type_url::LISTENER, name, &made));
}

/// Where the credential was shown, it is the program that speaks HTTP over a port of which nobody said so.
#[test]
fn a_request_may_begin_the_bytes_of_a_tunnel() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        checked(setup, &forward_proxy(&[("up:6380", "bytes")]));
        let bytes = tcp::TcpProxy {
            stat_prefix: "bytes".into(),
            cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(crate::kit::resources::CLUSTER.into())),
            ..Default::default()
        };
        inner(setup, "bytes", tcp_chain(&bytes), Some(free_address()));
    });
    let mut client = mesh.client();
    client.send(format!("CONNECT up:6380 HTTP/1.1\r\nHost: up:6380\r\n{CREDENTIAL}\r\n"));
    client.expect("HTTP/1.1 200 Connection established\r\n\r\n");
    client.send("GET /in HTTP/1.1\r\n");
    upstream.accept().expect("GET /in HTTP/1.1\r\n");
}

#[test]
fn a_tunnel_goes_on_as_a_connection_to_the_place_that_it_named() {
    let (upstream, outside) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        checked(setup, &forward_proxy(&[("up:9080", "service"), ("*", "virtualOutbound")]));
        // The service's own listener asks for its own host.
        let mut manager = setup.manager.clone();
        manager.http_filters[0] =
            filter("weft.filters.http.local_caller", "weft.extensions.filters.v1.LocalCaller", &service());
        inner(setup, "service", http_chain(&manager), Some(free_address()));
        let bytes = tcp::TcpProxy {
            stat_prefix: "outside".into(),
            cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster("PassthroughCluster".into())),
            ..Default::default()
        };
        inner(setup, "virtualOutbound", tcp_chain(&bytes), None);
        setup.more.push(original_destination_cluster("PassthroughCluster"));
        setup.routes.virtual_hosts = vec![virtual_host(vec![to(crate::kit::resources::CLUSTER, "/")])];
    });
    // HTTP in the tunnel, its first bytes in the same packet.
    let mut client = mesh.client();
    client.send(format!(
        "CONNECT up:9080 HTTP/1.1\r\nHost: up:9080\r\n{CREDENTIAL}\r\nGET /in HTTP/1.1\r\nHost: up:9080\r\n\r\n"
    ));
    client.expect("HTTP/1.1 200 Connection established\r\n\r\n");
    let mut peer = upstream.accept();
    assert_eq!(peer.message().start_line(), "GET /in HTTP/1.1");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nin");
    assert_eq!(client.message().text(), "in");
    client.send("GET /in HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(client.message().status(), 403);
    // Bytes to anywhere else.
    let mut client = mesh.client();
    client.send(format!("CONNECT {} HTTP/1.1\r\nHost: x\r\n{CREDENTIAL}\r\n", outside.address()));
    client.expect("HTTP/1.1 200 Connection established\r\n\r\n");
    client.send("ping");
    let mut peer = outside.accept();
    peer.expect("ping");
    peer.send("pong");
    client.expect("pong");
    // And not without the credential.
    let mut client = mesh.client();
    client.send("CONNECT up:9080 HTTP/1.1\r\nHost: up:9080\r\n\r\n");
    assert_eq!(client.message().status(), 407);
}
