//! Mutual TLS on both sides, with secrets by SDS.

use std::io::{Read, Write};
use std::net::SocketAddr;

use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, SetCurrentClientCertDetails,
};
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_protos::google::protobuf::BoolValue;

use crate::kit::certificates::{
    Authority, Hello, Identity, OTHER, WEB, client, client_saying, downstream, downstream_changed, downstream_context,
    downstream_with, secrets, server, upstream,
};
use crate::kit::peer::{End, ok, unacknowledged_bytes};
use crate::kit::resources::seconds;
use crate::kit::{Mesh, Peer, Setup, Upstream, until};

/// A listener for clients of *authority* with one of *names*.
fn secure(authority: &Authority, names: &'static [&'static str]) -> impl FnOnce(&mut Setup) {
    let secrets = secrets(&authority.identity(WEB), authority);
    move |setup| {
        setup.listener.traffic_direction = core::TrafficDirection::Inbound as i32;
        setup.chain.transport_socket = downstream(names);
        setup.more = secrets;
    }
}

/// Whether the proxy lets a client in and answers it.
fn is_let_in(mesh: &Mesh, trust: &Authority, identity: Option<&Identity>) -> bool {
    let mut peer = Peer::over(client(mesh.address, trust, identity));
    peer.try_send("GET / HTTP/1.1\r\nhost: up\r\n\r\n").is_ok()
        && peer.first_bytes().starts_with(b"HTTP/1.1 200 OK\r\n")
}

/// Who is to be replaced waits for it, too: its first request may be on the way.
#[test]
fn a_connection_counts_from_its_first_moment() {
    let authority = Authority::new();
    let mesh = Mesh::start(&[Upstream::saying("hello")], secure(&authority, &[OTHER]));
    let count = |name: &str| mesh.metric(&format!("envoy_{name}_downstream_cx_active"), &[]);
    let silent = std::net::TcpStream::connect(mesh.address).unwrap();
    until("it is accepted", || (count("listener") == 1.0).then_some(()));
    let mut peer = Peer::over(client(mesh.address, &authority, Some(&authority.identity(OTHER))));
    assert_eq!(peer.get("/").text(), "hello");
    assert_eq!((count("listener"), count("http")), (2.0, 1.0));
    drop((silent, peer));
    until("both are closed", || (count("listener") == 0.0).then_some(()));
}

/// Start a proxy as [`secure`] says, that may take a minute to drain.
fn patient(authority: &Authority) -> Mesh {
    Mesh::start_with(&[Upstream::saying("hello")], &["--drain-time", "60"], secure(authority, &[OTHER]))
}

#[test]
fn draining_waits_for_handshakes() {
    let authority = Authority::new();
    let mut mesh = patient(&authority);
    mesh.signal(libc::SIGSTOP);
    // The kernel takes them while the proxy is not looking.
    let mut clients: Vec<_> =
        (0..10).map(|_| client(mesh.address, &authority, Some(&authority.identity(OTHER)))).collect();
    for client in &mut clients {
        client.conn.write_tls(&mut client.sock).unwrap();
    }
    mesh.signal(libc::SIGTERM);
    mesh.signal(libc::SIGCONT);
    for client in clients {
        let mut peer = Peer::over(client);
        let answer = peer.get("/");
        assert_eq!((answer.text().as_str(), answer.get("connection")), ("hello", Some("close")));
    }
    assert!(mesh.wait_exit().success());
    assert!(!mesh.log().contains("cut off"), "{}", mesh.log());
}

#[test]
fn who_never_begins_a_handshake_does_not_hold_what_drains() {
    let authority = Authority::new();
    let mut mesh = patient(&authority);
    let silent = std::net::TcpStream::connect(mesh.address).unwrap();
    until("it is accepted", || (mesh.metric("envoy_listener_downstream_cx_active", &[]) == 1.0).then_some(()));
    mesh.signal(libc::SIGTERM);
    assert!(mesh.wait_exit().success());
    drop(silent);
}

#[test]
fn a_client_with_a_good_certificate_is_served_and_known() {
    let authority = Authority::new();
    let mesh = Mesh::start(&[Upstream::saying("hello")], secure(&authority, &[OTHER]));
    let mut peer = Peer::over(client(mesh.address, &authority, Some(&authority.identity(OTHER))));
    for _ in 0..3 {
        assert_eq!(peer.get("/").text(), "hello");
    }
    let record = mesh.expect_record("/", 200, "-", "via_upstream");
    assert_eq!(record["downstream_peer_uri_san"], OTHER);
    assert_eq!(record["requested_server_name"], "up.default.svc.cluster.local");
    let labels = [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/other\"",
        "source_canonical_service=\"other\"",
        "source_cluster=\"here\"",
        "destination_canonical_service=\"web\"",
        "destination_cluster=\"here\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/web\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_code=\"200\"",
    ];
    // Each is counted when its answer has been written.
    until("all are counted", || (mesh.metric("istio_requests_total", &labels) == 3.0).then_some(()));
}

/// A listener that answers with the `x-forwarded-client-cert` that reached the upstream, or with `-`.
fn telling(
    mode: ForwardClientCertDetails,
    details: Option<SetCurrentClientCertDetails>,
) -> (SocketAddr, impl FnOnce(&mut Setup)) {
    let upstream =
        Upstream::answering(|request| ok(&format!("{:?}", request.all("x-forwarded-client-cert").join(" | "))));
    let change = move |setup: &mut Setup| {
        setup.manager.forward_client_cert_details = mode as i32;
        setup.manager.set_current_client_cert_details = details;
    };
    (upstream, change)
}

#[test]
fn the_clients_certificate_is_told_in_each_mode() {
    use ForwardClientCertDetails::{AlwaysForwardOnly, AppendForward, ForwardOnly, Sanitize, SanitizeSet};
    let authority = Authority::new();
    let identity = authority.identity(OTHER);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &identity.certificates()[0]);
    let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let own = format!("By={WEB};Hash={hash}");
    // What reaches the upstream of two lines of a client's own: over mutual TLS, and without it.
    for (mode, mutual, plain) in [
        (Sanitize, String::new(), ""),
        (ForwardOnly, "By=a | By=b".into(), ""),
        (AppendForward, format!("By=a | By=b,{own}"), ""),
        (SanitizeSet, own.clone(), ""),
        (AlwaysForwardOnly, "By=a | By=b".into(), "By=a | By=b"),
    ] {
        let request =
            "GET / HTTP/1.1\r\nhost: up\r\nx-forwarded-client-cert: By=a\r\nX-Forwarded-Client-Cert: By=b\r\n\r\n";
        let (upstream, change) = telling(mode, None);
        let secure = secure(&authority, &[]);
        let mesh = Mesh::start(&[upstream], |setup| {
            secure(setup);
            change(setup);
        });
        let mut peer = Peer::over(client(mesh.address, &authority, Some(&identity)));
        // Each request is told the same.
        for _ in 0..2 {
            peer.send(request);
            assert_eq!(peer.message().text(), format!("{mutual:?}"), "{mode:?}");
        }
        let (upstream, change) = telling(mode, None);
        let mesh = Mesh::start(&[upstream], change);
        let mut peer = mesh.client();
        peer.send(request);
        assert_eq!(peer.message().text(), format!("{plain:?}"), "{mode:?} without TLS");
    }
}

#[test]
fn what_is_told_of_a_certificate_is_what_was_asked_for() {
    let authority = Authority::new();
    let identity = authority.described(OTHER, &["one.example.com", "two.example.com"], "Weft, \"Inc\"");
    let encode = |pem: &str| {
        let pairs = [("\n", "%0A"), (" ", "%20"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D")];
        pairs.iter().fold(pem.replace("\r\n", "\n"), |text, (from, to)| text.replace(from, to))
    };
    let (leaf, _) = identity.chain.split_at(identity.chain.len() - authority.pem().len());
    let (cert, chain) = (format!(";Cert=\"{}\"", encode(leaf)), format!(";Chain=\"{}\"", encode(&identity.chain)));
    let subject = ";Subject=\"CN=client,O=Weft\\, \\\"Inc\\\"\"";
    let uri = format!(";URI={OTHER}");
    let dns = ";DNS=one.example.com;DNS=two.example.com";
    let all = SetCurrentClientCertDetails {
        subject: Some(BoolValue { value: true }),
        cert: true,
        chain: true,
        dns: true,
        uri: true,
    };
    let nothing = SetCurrentClientCertDetails::default();
    for (details, expected) in [
        (nothing, String::new()),
        (SetCurrentClientCertDetails { subject: all.subject, ..nothing }, subject.into()),
        (SetCurrentClientCertDetails { cert: true, ..nothing }, cert.clone()),
        (SetCurrentClientCertDetails { chain: true, ..nothing }, chain.clone()),
        (SetCurrentClientCertDetails { dns: true, ..nothing }, dns.into()),
        (SetCurrentClientCertDetails { uri: true, ..nothing }, uri.clone()),
        (all, format!("{cert}{chain}{subject}{uri}{dns}")),
    ] {
        let (upstream, change) = telling(ForwardClientCertDetails::SanitizeSet, Some(details));
        let secure = secure(&authority, &[]);
        let mesh = Mesh::start(&[upstream], |setup| {
            secure(setup);
            change(setup);
        });
        let mut peer = Peer::over(client(mesh.address, &authority, Some(&identity)));
        let told: String = serde_json::from_str(&peer.get("/").text()).unwrap();
        let rest = told.strip_prefix(&format!("By={WEB};Hash=")).expect("who we are comes first");
        assert_eq!(&rest[64..], expected, "{details:?}");
    }
}

#[test]
fn clients_that_are_not_who_they_should_be_are_refused() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], secure(&authority, &[OTHER]));
    for (name, identity) in [
        ("no certificate", None),
        ("of another authority", Some(stranger.identity(OTHER))),
        ("of another identity", Some(authority.identity("spiffe://cluster.local/ns/default/sa/stranger"))),
        ("of an identity that only begins alike", Some(authority.identity(&format!("{OTHER}-too")))),
        ("expired", Some(authority.until(OTHER, 2020))),
    ] {
        assert!(!is_let_in(&mesh, &authority, identity.as_ref()), "{name}");
    }
    assert!(!upstream.has_visitor());
    // A client may hear of its refusal before the proxy has counted it.
    until("all are counted", || (mesh.metric("envoy_listener_ssl_connection_error", &[]) == 5.0).then_some(()));
}

#[test]
fn the_record_of_a_refused_client_says_which_server_it_named() {
    let authority = Authority::new();
    let secure = secure(&authority, &[OTHER]);
    let mesh = Mesh::start(&[], |setup| {
        secure(setup);
        setup.listener.access_log = setup.manager.access_log.clone();
    });
    assert!(!is_let_in(&mesh, &authority, None));
    let record = &mesh.wait_records(1)[0];
    assert_eq!(record["requested_server_name"], "up.default.svc.cluster.local", "{record}");
}

#[test]
fn the_cipher_suites_of_a_listener_are_the_only_ones_of_tls_1_2() {
    let authority = Authority::new();
    // Neither the first of rustls's own order nor the first that the client offers.
    let parameters = tls::TlsParameters {
        tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv12 as i32,
        cipher_suites: vec!["ECDHE-ECDSA-CHACHA20-POLY1305".into(), "AES256-GCM-SHA384".into()],
        ..Default::default()
    };
    let secure = secure(&authority, &[OTHER]);
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        secure(setup);
        setup.chain.transport_socket = downstream_with(&[OTHER], parameters);
    });
    let mut wire = client(mesh.address, &authority, Some(&authority.identity(OTHER)));
    wire.conn.complete_io(&mut wire.sock).unwrap();
    let suite = wire.conn.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
    assert_eq!(Peer::over(wire).get("/").text(), "hello");
}

#[test]
fn plaintext_is_refused_where_tls_is_required() {
    let authority = Authority::new();
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], secure(&authority, &[]));
    let mut peer = mesh.client();
    peer.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let (seen, _) = peer.rest();
    assert!(!seen.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&seen));
    assert!(!upstream.has_visitor());
}

/// A proxy whose upstream must be [`OTHER`], and the upstream's socket.
fn outward(authority: &Authority) -> (Mesh, Upstream) {
    let peer = Upstream::new();
    let mesh = Mesh::start(&[peer.address()], |setup| {
        setup.cluster.transport_socket = upstream(&[OTHER]);
        setup.more = secrets(&authority.identity(WEB), authority);
    });
    (mesh, peer)
}

#[test]
fn an_upstream_with_the_right_identity_is_spoken_to() {
    let authority = Authority::new();
    let (mesh, upstream) = outward(&authority);
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = Peer::over(server(upstream.accept_socket(), &authority, &authority.identity(OTHER)));
    assert_eq!(peer.message().start_line(), "GET / HTTP/1.1");
    peer.send(ok("secret"));
    assert_eq!(client.message().text(), "secret");
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    peer.message();
    peer.send(ok("again"));
    assert_eq!(client.message().text(), "again");
    // Each end is who its certificate says, however the endpoint is described.
    let labels = [
        "reporter=\"source\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/web\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/other\"",
        "destination_workload_namespace=\"default\"",
        "connection_security_policy=\"unknown\"",
    ];
    until("both requests are counted", || Some(()).filter(|()| mesh.metric("istio_requests_total", &labels) == 2.0));
}

#[test]
fn an_upstream_that_is_not_who_it_should_be_gets_no_request() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let (mesh, upstream) = outward(&authority);
    let mut client = mesh.client();
    for (path, identity) in [
        ("/another-authority", stranger.identity(OTHER)),
        ("/another-identity", authority.identity("spiffe://cluster.local/ns/default/sa/stranger")),
        ("/expired", authority.until(OTHER, 2020)),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
        let mut peer = Peer::over(server(upstream.accept_socket(), &authority, &identity));
        assert!(peer.first_bytes().is_empty(), "{path}");
        drop(peer);
        assert_eq!(client.message().status(), 503, "{path}");
        let record = mesh.record(path);
        assert_eq!(record["response_flags"], "UF", "{record}");
        let reason = record["upstream_transport_failure_reason"].as_str().unwrap();
        assert!(reason.starts_with("TLS error: "), "{record}");
    }
}

#[test]
fn an_upstream_that_speaks_no_tls_gets_no_request() {
    let authority = Authority::new();
    let (mesh, upstream) = outward(&authority);
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.send("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
    let (seen, _) = peer.rest();
    assert!(!seen.windows(4).any(|window| window == b"GET "));
    assert_eq!(client.message().status(), 503);
    assert_eq!(mesh.record("/")["response_flags"], "UF");
}

#[test]
fn new_secrets_hold_for_new_connections_and_old_ones_stay() {
    let old = Authority::new();
    let new = Authority::new();
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], secure(&old, &[]));
    let mut early = Peer::over(client(mesh.address, &old, Some(&old.identity(OTHER))));
    assert_eq!(early.get("/").text(), "hello");
    mesh.change(|setup| setup.more = secrets(&new.identity(WEB), &new));
    until("the new secrets are in force", || is_let_in(&mesh, &new, Some(&new.identity(OTHER))).then_some(()));
    assert!(!is_let_in(&mesh, &new, Some(&old.identity(OTHER))), "the old authority is trusted no more");
    let answer = early.get("/");
    assert_eq!((answer.text().as_str(), answer.get("connection")), ("hello", None));
}

#[test]
fn the_certificates_can_be_looked_at() {
    let authority = Authority::new();
    let mesh = Mesh::start(&[Upstream::saying("")], secure(&authority, &[]));
    let shown: serde_json::Value = serde_json::from_str(&mesh.admin("GET", "/certs")).unwrap();
    let secrets = shown["certificates"].as_array().unwrap();
    let named = |name: &str| secrets.iter().find(|secret| secret["name"] == name).unwrap();
    let leaf = &named("default")["cert_chain"][0];
    assert_eq!(leaf["subject_alt_names"], serde_json::json!([{"uri": WEB}]));
    assert_eq!(leaf["expiration_time"], "2099-01-01T00:00:00Z");
    assert!(leaf["days_until_expiration"].as_str().unwrap().parse::<u64>().unwrap() > 365);
    assert!(!leaf["serial_number"].as_str().unwrap().is_empty());
    assert_eq!(named("ROOTCA")["ca_cert"].as_array().unwrap().len(), 1);
    assert!(!shown.to_string().contains("PRIVATE KEY"));
}

#[test]
fn an_upstream_that_refuses_our_certificate_is_recorded_with_its_reason() {
    let authority = Authority::new();
    let upstream_peer = Upstream::new();
    let mesh = Mesh::start(&[upstream_peer.address()], |setup| {
        setup.cluster.transport_socket = upstream(&[OTHER]);
        setup.more = secrets(&authority.until(WEB, 2020), &authority);
    });
    let mut client = mesh.client();
    client.send("GET /refused HTTP/1.1\r\nhost: up\r\n\r\n");
    // With TLS 1.3 it looks at our certificate when the request is on its way already.
    let mut peer = Peer::over(server(upstream_peer.accept_socket(), &authority, &authority.identity(OTHER)));
    assert!(peer.first_bytes().is_empty());
    drop(peer);
    assert_eq!(client.message().status(), 503);
    let record = mesh.record("/refused");
    assert_eq!(record["response_flags"], "UC", "{record}");
    let reason = record["upstream_transport_failure_reason"].as_str().unwrap_or_default();
    assert_eq!(reason, "TLS error: the peer sent the alert CertificateExpired");
}

/// What a client that says *hello* has agreed on with the proxy, and the answer that it gets then.
fn agreed(
    mesh: &Mesh,
    authority: &Authority,
    hello: &Hello,
) -> (Option<rustls::ProtocolVersion>, Option<String>, Peer) {
    let mut tls = client_saying(mesh.address, authority, Some(&authority.identity(OTHER)), hello);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).unwrap();
    }
    let alpn = tls.conn.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
    (tls.conn.protocol_version(), alpn, Peer::over(tls))
}

static ONLY_12: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
static ONLY_13: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

#[test]
fn both_versions_of_tls_are_spoken() {
    let authority = Authority::new();
    let mesh = Mesh::start(&[Upstream::saying("hello")], secure(&authority, &[OTHER]));
    for (versions, expected) in [
        (&ONLY_12[..], rustls::ProtocolVersion::TLSv1_2),
        (&ONLY_13[..], rustls::ProtocolVersion::TLSv1_3),
        (rustls::ALL_VERSIONS, rustls::ProtocolVersion::TLSv1_3),
    ] {
        let (version, _, mut peer) = agreed(&mesh, &authority, &Hello { versions, ..Hello::default() });
        assert_eq!(version, Some(expected));
        assert_eq!(peer.get("/").text(), "hello");
        // The client's certificate is looked at in both.
        assert!(!is_let_in_saying(&mesh, &authority, &Hello { versions, ..Hello::default() }));
    }
}

/// Whether a client without a certificate is let in.
fn is_let_in_saying(mesh: &Mesh, authority: &Authority, hello: &Hello) -> bool {
    let mut peer = Peer::over(client_saying(mesh.address, authority, None, hello));
    peer.try_send("GET / HTTP/1.1\r\nhost: up\r\n\r\n").is_ok() && !peer.first_bytes().is_empty()
}

/// Nobody has authenticated by then, so whoever reaches the port could do it.
#[test]
fn a_handshake_message_without_end_stops_nobody_but_its_sender() {
    let authority = Authority::new();
    let mesh = Mesh::start(&[Upstream::saying("hello")], secure(&authority, &[OTHER]));
    let hello = Hello { versions: &ONLY_12, ..Hello::default() };
    let mut tls = client_saying(mesh.address, &authority, None, &hello);
    tls.conn.write_tls(&mut tls.sock).unwrap();
    // The server's part of the handshake has come: it waits for ours.
    tls.conn.read_tls(&mut tls.sock).unwrap();
    let mut peer = Peer::over(tls.into_parts().1);
    for begin in [&[0x10, 0, 0xff, 0xff][..], &[], &[], &[]] {
        let mut record = vec![0x16, 3, 3, 0x40, 0];
        record.extend(begin);
        record.resize(5 + 0x4000, 0);
        let _ = peer.try_send(&record);
    }
    // It is not held to the end of the time for handshakes.
    peer.rest();
    assert!(is_let_in(&mesh, &authority, Some(&authority.identity(OTHER))));
    until("it is counted", || (mesh.metric("envoy_listener_ssl_connection_error", &[]) == 1.0).then_some(()));
}

#[test]
fn what_an_upstream_sends_behind_an_answer_is_no_answer_for_anybody() {
    // As much as is read at once: what is behind it stays with the TLS session.
    const ANSWER_BYTES: usize = 16 * 1024;
    let padded = |text: &str| {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: ";
        let length = ANSWER_BYTES - head.len() - "16000\r\n\r\n".len();
        assert_eq!(length.to_string().len(), 5);
        format!("{head}{length}\r\n\r\n{text:-<length$}")
    };
    for ends in [false, true] {
        let authority = Authority::new();
        let (mesh, upstream) = outward(&authority);
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut tls = server(upstream.accept_socket(), &authority, &authority.identity(OTHER));
        let mut request = [0; 1024];
        let count = tls.read(&mut request).unwrap();
        assert!(request[..count].ends_with(b"\r\n\r\n"));
        let mut bytes = Vec::new();
        if ends {
            tls.conn.writer().write_all(&ok("first")).unwrap();
            tls.conn.send_close_notify();
        } else {
            tls.conn.writer().write_all(padded("first").as_bytes()).unwrap();
            tls.conn.writer().write_all(&ok("evil")).unwrap();
        }
        while tls.conn.wants_write() {
            tls.conn.write_tls(&mut bytes).unwrap();
        }
        // One piece, without FIN.
        tls.sock.write_all(&bytes).unwrap();
        assert!(client.message().text().starts_with("first"));
        let mut other = mesh.client();
        other.send("GET /next HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut fresh = Peer::over(server(upstream.accept_socket(), &authority, &authority.identity(OTHER)));
        fresh.message();
        fresh.send(ok("good"));
        assert_eq!(other.message().text(), "good", "ends: {ends}");
    }
}

#[test]
fn a_listener_may_ask_for_the_newest_version() {
    let authority = Authority::new();
    let secure = secure(&authority, &[OTHER]);
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        secure(setup);
        let newest = tls::tls_parameters::TlsProtocol::TlSv13 as i32;
        let parameters = tls::TlsParameters { tls_minimum_protocol_version: newest, ..Default::default() };
        setup.chain.transport_socket = downstream_with(&[OTHER], parameters);
    });
    let old = Hello { versions: &ONLY_12, ..Hello::default() };
    let mut tls = client_saying(mesh.address, &authority, Some(&authority.identity(OTHER)), &old);
    let error = tls.conn.complete_io(&mut tls.sock).unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    let (_, _, mut peer) = agreed(&mesh, &authority, &Hello::default());
    assert_eq!(peer.get("/").text(), "hello");
}

#[test]
fn the_protocol_is_agreed_on_in_the_handshake() {
    let authority = Authority::new();
    let secure = secure(&authority, &[OTHER]);
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        secure(setup);
        setup.chain.transport_socket =
            downstream_changed(&[OTHER], |common| common.alpn_protocols = vec!["h2".into(), "http/1.1".into()]);
    });
    for (alpn, expected) in [
        (&["h2"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        // The server's order counts (RFC 7301 3.2).
        (&["http/1.1", "h2"], Some("h2")),
        (&[], None),
        // Nothing in common is no reason to refuse: what HTTP/1.1 looks like is known.
        (&["istio"], None),
    ] {
        let (_, chosen, mut peer) = agreed(&mesh, &authority, &Hello { alpn, ..Hello::default() });
        assert_eq!(chosen.as_deref(), expected, "{alpn:?}");
        if expected == Some("h2") {
            peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
            // SETTINGS of stream 0.
            assert_eq!(peer.take(9)[3..], [4, 0, 0, 0, 0, 0]);
        } else {
            assert_eq!(peer.get("/").text(), "hello", "{alpn:?}");
        }
    }
}

#[test]
fn a_client_is_gone_when_its_session_or_its_connection_ends() {
    let authority = Authority::new();
    let target = Upstream::new();
    let mesh = Mesh::start(&[target.address()], |setup| {
        secure(&authority, &[OTHER])(setup);
        setup.action().timeout = Some(seconds(0.0));
    });
    for (name, says_so, closes) in
        [("close_notify and FIN", true, true), ("close_notify", true, false), ("FIN", false, true)]
    {
        for (more, phase) in [("", "before"), ("", "within"), ("GET /never HTTP/1.1\r\nhost: up\r\n\r\n", "pipelined")]
        {
            if !more.is_empty() && !closes {
                // What nobody reads yet may hide the end of a session, but not that of its connection.
                continue;
            }
            let path = format!("/{phase}-{says_so}-{closes}");
            let mut wire = client(mesh.address, &authority, Some(&authority.identity(OTHER)));
            wire.write_all(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n").as_bytes()).unwrap();
            let mut peer = target.accept();
            peer.message();
            if phase == "within" {
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
                let mut head = Vec::new();
                while !head.ends_with(b"abc") {
                    let mut byte = [0];
                    wire.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
            }
            wire.write_all(more.as_bytes()).unwrap();
            if says_so {
                wire.conn.send_close_notify();
                wire.flush().unwrap();
            }
            let kept = (!closes).then_some(wire);
            assert_eq!(peer.expect_end(), End::Reset, "{name}, {phase}");
            let status = if phase == "within" { 200 } else { 0 };
            mesh.expect_record(&path, status, "DC", "downstream_remote_disconnect");
            drop(kept);
        }
    }
}

#[test]
fn bytes_behind_a_request_are_the_next_one() {
    let authority = Authority::new();
    let target = Upstream::new();
    let mesh = Mesh::start(&[target.address()], secure(&authority, &[OTHER]));
    let mut peer = Peer::over(client(mesh.address, &authority, Some(&authority.identity(OTHER))));
    peer.send("GET /0 HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut upstream = target.accept();
    upstream.message();
    for number in 1..4 {
        peer.send(format!("POST /{number} HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\n{number}"));
        until("the bytes have arrived", || (unacknowledged_bytes(peer.socket()) == 0).then_some(()));
        upstream.send(ok("one"));
        assert_eq!(peer.message().text(), "one");
        let next = upstream.message();
        assert_eq!((next.start_line(), next.text()), (&*format!("POST /{number} HTTP/1.1"), number.to_string()));
    }
}

/// Start a proxy that has *identities* for its clients, in this order, and wants none of theirs. Its answers say who it is in `x-local-uri`.
fn showing<'i>(identities: impl Iterator<Item = &'i Identity>) -> Mesh {
    Mesh::start(&[Upstream::saying("hello")], |setup| {
        setup.chain.transport_socket = downstream_context(&[], |context| {
            context.require_client_certificate = None;
            let common = context.common_tls_context.as_mut().unwrap();
            common.tls_certificate_sds_secret_configs.clear();
            common.validation_context_type = None;
            common.tls_certificates = identities.map(Identity::inline).collect();
        });
        let (key, value) = ("x-local-uri".into(), "%DOWNSTREAM_LOCAL_URI_SAN%".into());
        setup.routes.response_headers_to_add = vec![core::HeaderValueOption {
            header: Some(core::HeaderValue { key, value, ..Default::default() }),
            ..Default::default()
        }];
    })
}

/// As of Envoy: whose name it is decides first, then who can check it, and ECDSA is preferred. Who we are is in the one that is shown.
#[test]
fn a_client_is_shown_the_certificate_that_it_asks_for_and_can_check() {
    use rcgen::{PKCS_ECDSA_P256_SHA256 as ECDSA, PKCS_RSA_SHA256 as RSA};
    use rustls::SignatureScheme::{ECDSA_NISTP256_SHA256, RSA_PKCS1_SHA256, RSA_PSS_SHA256};
    const ONLY_12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
    const ANY: &[rustls::SignatureScheme] = &[];
    const ONLY_RSA: &[rustls::SignatureScheme] = &[RSA_PSS_SHA256, RSA_PKCS1_SHA256];
    const RSA_FIRST: &[rustls::SignatureScheme] = &[RSA_PSS_SHA256, RSA_PKCS1_SHA256, ECDSA_NISTP256_SHA256];
    let authority = Authority::new();
    let issue = |uri, dns, algorithm| (authority.named(uri, dns, algorithm), uri);
    let wide = issue("spiffe://up/wide", "*.example.com", &ECDSA);
    let exact = issue("spiffe://up/exact", "foo.example.com", &ECDSA);
    let exact_rsa = issue("spiffe://up/exact-rsa", "foo.example.com", &RSA);
    let wide_rsa = issue("spiffe://up/wide-rsa", "*.example.com", &RSA);
    // A literal address is no server name, and none is said.
    let (foo, bar, other, none) = ("foo.example.com", "bar.example.com", "elsewhere.test", "192.0.2.1");
    for (identities, cases) in [
        (
            &[&wide, &exact, &exact_rsa][..],
            &[
                (foo, ANY, Some(&exact)),
                (foo, RSA_FIRST, Some(&exact)),
                (foo, ONLY_RSA, Some(&exact_rsa)),
                (bar, ANY, Some(&wide)),
                (other, ANY, Some(&wide)),
                (none, ONLY_RSA, Some(&exact_rsa)),
                // The first, whoever cannot check it.
                (bar, ONLY_RSA, None),
                (other, ONLY_RSA, None),
            ][..],
        ),
        (
            &[&exact_rsa, &exact, &wide],
            &[
                (foo, ANY, Some(&exact)),
                (foo, ONLY_RSA, Some(&exact_rsa)),
                (none, ANY, Some(&exact)),
                (other, ANY, Some(&exact_rsa)),
            ],
        ),
        (&[&exact, &wide_rsa], &[(foo, ONLY_RSA, Some(&wide_rsa)), (foo, RSA_FIRST, Some(&exact))]),
    ] {
        let mesh = showing(identities.iter().map(|(identity, _)| identity));
        for &(name, schemes, expected) in cases {
            for versions in [rustls::ALL_VERSIONS, ONLY_12] {
                let hello = Hello { name, versions, schemes, ..Hello::default() };
                let mut client = client_saying(mesh.address, &authority, None, &hello);
                let agreed = client.conn.complete_io(&mut client.sock);
                let shown = client.conn.peer_certificates().map(<[_]>::to_vec).filter(|_| agreed.is_ok());
                let certificates = expected.map(|(identity, _)| identity.certificates());
                assert_eq!(shown, certificates, "{name} {schemes:?} {versions:?}");
                let Some((_, uri)) = expected else { continue };
                let answer = Peer::over(client).get("/");
                assert_eq!(answer.get("x-local-uri"), Some(*uri), "{name} {schemes:?} {versions:?}");
            }
        }
    }
}
