//! Copies of requests to other clusters: what they are, and that the request knows nothing of them.

use std::sync::mpsc;
use std::time::Instant;

use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::config::core::v3::RuntimeFractionalPercent;
use weft_protos::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use weft_protos::envoy::r#type::v3::FractionalPercent;
use weft_protos::type_url;

use crate::kit::certificates::{Authority, OTHER, WEB, secrets, server_for, upstream_for};
use crate::kit::frames::{DATA, END_STREAM, HEADERS, Wire, http2_upstream};
use crate::kit::peer::{End, Message, ok};
use crate::kit::resources::{cluster_of, eds_cluster, load_assignment, number, published, seconds};
use crate::kit::{LIMIT, Mesh, Peer, Setup, Upstream, content, free_address, until};

const COPIES: &str = "outbound|9080|v2|up.default.svc.cluster.local";

/// A copy of every request to the cluster of that name.
fn copies_to(name: &str) -> RequestMirrorPolicy {
    RequestMirrorPolicy { cluster: name.into(), ..Default::default() }
}

/// Have the first route copy everything to *upstream*.
fn copied(setup: &mut Setup, upstream: &Upstream) {
    setup.more.extend(cluster_of(COPIES, &[upstream.address()]));
    setup.action().request_mirror_policies = vec![copies_to(COPIES)];
}

/// An upstream that answers with *status*, and what it was asked.
fn watched(status: u16) -> (Upstream, impl Fn(&Message) -> Vec<u8> + Clone + Send + 'static, mpsc::Receiver<String>) {
    let (sender, receiver) = mpsc::channel();
    let answer = move |request: &Message| {
        let _ = sender.send(format!("{}{}", request.head, request.text()));
        format!("HTTP/1.1 {status} Any\r\nx-from: copy\r\ncontent-length: 4\r\n\r\nlost").into_bytes()
    };
    (Upstream::new(), answer, receiver)
}

#[test]
fn a_copy_goes_to_the_other_cluster_and_its_answer_is_dropped() {
    let (copy, answer, seen) = watched(500);
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(&request.text()))], |setup| copied(setup, &copy));
    copy.answer_all(answer);
    let mut client = mesh.client();
    let version = "destination_service_name=\"up\"";
    for (body, count) in [("", 1.0), ("some words", 2.0)] {
        client.send(format!("POST /a HTTP/1.1\r\nhost: up:9080\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
        let answer = client.message();
        assert_eq!((answer.status(), answer.text().as_str(), answer.get("x-from")), (200, body, None));
        let copied = seen.recv_timeout(LIMIT).unwrap();
        assert!(copied.starts_with("POST /a HTTP/1.1\r\nhost: up-shadow:9080\r\n"), "{copied}");
        assert!(copied.ends_with(body) && copied.contains("\r\nx-envoy-internal: true\r\n"), "{copied}");
        // It counts as a request to where it went; and when it does, its connection is free for the next.
        until("the copy is counted", || {
            let failed = mesh.metric("istio_requests_total", &["response_code=\"500\"", version]);
            (failed == count).then_some(())
        });
    }
    // Neither record tells of it.
    let records = mesh.wait_records(2);
    assert!(records.iter().all(|record| record["response_code"] == 200 && record["attempts"] == 1), "{records:?}");
    assert_eq!(mesh.metric("weft_proxy_mirrored_requests_total", &[]), 2.0);
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_total", &[]), 2.0, "the second took the connection of the first");
}

#[test]
fn the_host_and_the_share_are_as_configured() {
    let (copy, answer, seen) = watched(200);
    let share = |percent| {
        Some(RuntimeFractionalPercent {
            default_value: Some(FractionalPercent { numerator: percent, ..Default::default() }),
            ..Default::default()
        })
    };
    let mesh = Mesh::start(&[Upstream::saying("")], |setup| {
        copied(setup, &copy);
        let same = RequestMirrorPolicy { disable_shadow_host_suffix_append: true, ..copies_to(COPIES) };
        let named = RequestMirrorPolicy { host_rewrite_literal: "copy".into(), ..copies_to(COPIES) };
        let never = RequestMirrorPolicy { runtime_fraction: share(0), ..copies_to(COPIES) };
        let nowhere = copies_to("nowhere");
        setup.action().request_mirror_policies = vec![same, never, nowhere, named];
        setup.routes.virtual_hosts[0].include_request_attempt_count = true;
    });
    copy.answer_all(answer);
    let mut client = mesh.client();
    assert_eq!(client.get("/").status(), 200);
    let mut hosts: Vec<String> = (0..2)
        .map(|_| seen.recv_timeout(LIMIT).unwrap())
        .inspect(|copied| assert!(copied.contains("x-envoy-attempt-count: 1\r\n"), "{copied}"))
        .map(|copied| copied.lines().nth(1).unwrap().to_owned())
        .collect();
    hosts.sort();
    assert_eq!(hosts, ["host: copy", "host: up"]);
    assert!(seen.try_recv().is_err());
}

#[test]
fn a_share_of_the_requests_is_copied() {
    let (copy, answer, seen) = watched(200);
    let mesh = Mesh::start(&[Upstream::saying("")], |setup| {
        copied(setup, &copy);
        setup.action().request_mirror_policies[0].runtime_fraction = Some(RuntimeFractionalPercent {
            default_value: Some(FractionalPercent { numerator: 30, ..Default::default() }),
            ..Default::default()
        });
    });
    copy.answer_all(answer);
    let mut client = mesh.client();
    (0..400).for_each(|_| assert_eq!(client.get("/").status(), 200));
    let begun = mesh.metric("weft_proxy_mirrored_requests_total", &[]);
    // Five standard deviations.
    assert!((75.0..165.0).contains(&begun), "{begun}");
    (0..begun as usize).for_each(|_| assert!(seen.recv_timeout(LIMIT).is_ok()));
}

#[test]
fn a_copy_has_the_edits_of_the_route() {
    let (copy, answer, seen) = watched(200);
    let mesh = Mesh::start(&[Upstream::saying("")], |setup| {
        copied(setup, &copy);
        setup.action().prefix_rewrite = "/new".into();
        setup.routes.request_headers_to_remove = vec!["x-gone".into()];
    });
    copy.answer_all(answer);
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\nx-gone: 1\r\nx-stays: 1\r\n\r\n");
    assert_eq!(client.message().status(), 200);
    let copied = seen.recv_timeout(LIMIT).unwrap();
    assert!(copied.starts_with("GET /new HTTP/1.1\r\n") && copied.contains("x-stays"), "{copied}");
    assert!(!copied.contains("x-gone"), "{copied}");
}

#[test]
fn a_body_is_copied_as_it_streams_and_with_its_trailers() {
    let (upstream, copy) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| copied(setup, &copy));
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegin\r\n");
    let (mut first, mut second) = (upstream.accept(), copy.accept());
    first.head();
    second.head();
    second.expect("5\r\nbegin\r\n");
    client.send("3\r\nend\r\n0\r\nx-sum: 8\r\n\r\n");
    second.expect("3\r\nend\r\n0\r\nx-sum: 8\r\n\r\n");
    first.send(ok("done"));
    assert_eq!(client.message().text(), "done");
}

#[test]
fn a_long_body_arrives_whole_at_both() {
    let body = content(3_000_000);
    let expected = body.clone();
    let (sender, seen) = mpsc::channel();
    let (upstream, copy) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| copied(setup, &copy));
    for upstream in [upstream, copy] {
        let sender = sender.clone();
        upstream.answer_all(move |request| {
            sender.send(request.body.clone()).unwrap();
            ok("")
        });
    }
    let mut client = mesh.client();
    client.send(format!("PUT / HTTP/1.1\r\nhost: up\r\ncontent-length: {}\r\n\r\n", body.len()));
    client.send(body);
    assert_eq!(client.message().status(), 200);
    for _ in 0..2 {
        assert!(seen.recv_timeout(LIMIT).unwrap() == expected);
    }
}

#[test]
fn a_copy_that_is_not_read_is_given_up_and_the_request_goes_on() {
    let copy = Upstream::new();
    let body = content(30_000_000);
    let length = body.len();
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(&request.body.len().to_string()))], |setup| {
        copied(setup, &copy);
        setup.listener.per_connection_buffer_limit_bytes = number(256 * 1024);
    });
    let mut client = mesh.client();
    client.send(format!("PUT / HTTP/1.1\r\nhost: up\r\ncontent-length: {length}\r\n\r\n"));
    client.send(body);
    assert_eq!(client.message().text(), length.to_string());
    until("the copy is given up", || (mesh.metric("weft_proxy_mirrors_abandoned_total", &[]) == 1.0).then_some(()));
    // Who is given up sees that there is no more to come.
    assert_eq!(copy.accept().rest().1, End::Reset);
}

#[test]
fn whatever_becomes_of_a_copy_the_request_is_answered() {
    let silent = Upstream::new();
    let refusing = free_address();
    let breaker = cluster::Cluster {
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![cluster::circuit_breakers::Thresholds { max_requests: number(0), ..Default::default() }],
            ..Default::default()
        }),
        ..eds_cluster("full")
    };
    let mesh = Mesh::start(&[Upstream::saying("fine")], |setup| {
        setup.more.extend(cluster_of("silent", &[silent.address()]));
        setup.more.extend(cluster_of("refusing", &[refusing]));
        setup.more.extend(cluster_of("empty", &[]));
        setup.more.push(published(type_url::CLUSTER, "full", &breaker));
        let endpoints = load_assignment("full", &[silent.address()]);
        setup.more.push(published(type_url::CLUSTER_LOAD_ASSIGNMENT, "full", &endpoints));
        let names = ["silent", "refusing", "empty", "full"];
        setup.action().request_mirror_policies = names.into_iter().map(copies_to).collect();
        setup.action().timeout = Some(seconds(1.0));
    });
    let mut client = mesh.client();
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "fine");
    }
    assert!(began.elapsed() < LIMIT / 2);
    let counted = |flag: &str| mesh.metric("istio_requests_total", &[&format!("response_flags=\"{flag}\"")]);
    until("each copy has failed in its own way", || {
        let flags = ["UT", "UF", "UH", "UO"].map(&counted);
        (flags == [3.0; 4]).then_some(())
    });
    assert_eq!(counted("-"), 3.0);
    assert_eq!(mesh.records().len(), 3);
}

#[test]
fn a_copy_ends_with_the_request_that_is_given_up() {
    let (upstream, copy) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| copied(setup, &copy));
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 100\r\n\r\nbegin");
    let mut second = copy.accept();
    second.head();
    second.expect("begin");
    client.reset();
    assert_eq!(second.expect_end(), End::Reset);
}

#[test]
fn a_retried_request_is_copied_once() {
    let (copy, answer, seen) = watched(200);
    let tries = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let failing = Upstream::answering(move |request| {
        let number = tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if number < 2 { b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_vec() } else { ok(&request.text()) }
    });
    let mesh = Mesh::start(&[failing], |setup| {
        copied(setup, &copy);
        setup.action().retry_policy = Some(crate::kit::resources::retries("5xx", 3));
    });
    copy.answer_all(answer);
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 4\r\n\r\nonce");
    assert_eq!(client.message().text(), "once");
    assert!(seen.recv_timeout(LIMIT).unwrap().ends_with("once"));
    assert_eq!(mesh.metric("weft_proxy_mirrored_requests_total", &[]), 1.0);
}

#[test]
fn a_change_of_protocol_is_not_copied() {
    let (upstream, copy) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        copied(setup, &copy);
        setup.manager.upgrade_configs = vec![
            weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::UpgradeConfig {
                upgrade_type: "websocket".into(),
                ..Default::default()
            },
        ];
    });
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(client.head().status(), 101);
    assert_eq!(mesh.metric("weft_proxy_mirrored_requests_total", &[]), 0.0);
    assert!(!copy.has_visitor());
}

#[test]
fn a_stream_of_grpc_is_copied_over_the_other_clusters_own_http2_and_mutual_tls() {
    let authority = Authority::new();
    let (upstream, copy) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        http2_upstream(setup);
        let mut cluster = cluster::Cluster { name: COPIES.into(), ..setup.cluster.clone() };
        cluster.eds_cluster_config.as_mut().unwrap().service_name = COPIES.into();
        cluster.transport_socket = upstream_for(&[OTHER], &["h2"]);
        let endpoints = load_assignment(COPIES, &[copy.address()]);
        setup.more = secrets(&authority.identity(WEB), &authority);
        setup.more.push(published(type_url::CLUSTER, COPIES, &cluster));
        setup.more.push(published(type_url::CLUSTER_LOAD_ASSIGNMENT, COPIES, &endpoints));
        setup.action().request_mirror_policies = vec![copies_to(COPIES)];
    });
    let mut client = Wire::client(&mesh);
    client.request(1, "POST", "/echo.Echo/Both", &[("te", "trailers"), ("content-type", "application/grpc")], false);
    client.send(DATA, 0, 1, b"one");
    let socket = server_for(copy.accept_socket(), &authority, &authority.identity(OTHER), &["h2"]);
    let mut second = Wire::server(Peer::over(socket), &[]);
    let mut first = Wire::server(upstream.accept(), &[]);
    for server in [&mut first, &mut second] {
        server.expect(HEADERS, 1);
        assert_eq!(server.expect(DATA, 1).payload, b"one");
    }
    client.send(DATA, END_STREAM, 1, b"two");
    for server in [&mut first, &mut second] {
        assert_eq!(server.body(1).0, b"two");
    }
    // The copy is answered first, and otherwise; the caller hears of the other.
    second.answer(1, b"lost");
    first.answer(1, b"found");
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, b"found");
    until("the copy is counted as a call of gRPC", || {
        let labels = ["request_protocol=\"grpc\"", "response_code=\"200\""];
        (mesh.metric("istio_requests_total", &labels) == 2.0).then_some(())
    });
}
