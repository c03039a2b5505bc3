//! Requests that two parties could read differently: each is refused, its connection closed, and nothing of it goes on.

use crate::kit::cases::{self, Case};
use crate::kit::{Mesh, Upstream};

const CASES: &[u8] = include_bytes!("smuggling.yaml");

#[test]
fn an_ambiguous_head_is_refused_and_goes_nowhere() {
    let cases = &cases::read(CASES)["heads"];
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut wrong = Vec::new();
    for Case { name, bytes, .. } in cases {
        let mut client = mesh.client();
        // What follows must not be taken for a request.
        client.send([bytes.as_bytes(), b"GET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n"].concat());
        if upstream.has_visitor() {
            wrong.push(format!("{name}: it reached the upstream"));
            continue;
        }
        let (seen, _) = client.rest();
        let seen = String::from_utf8_lossy(&seen).into_owned();
        if !seen.starts_with("HTTP/1.1 400 ") || seen.matches("HTTP/1.1").count() != 1 {
            wrong.push(format!("{name}: {seen:?}"));
        } else if !seen.contains("\r\nconnection: close\r\n") {
            wrong.push(format!("{name}: it does not say that the connection closes: {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_total", &[]), 0.0);
    let records = mesh.wait_records(cases.len());
    assert_eq!(records.len(), cases.len(), "one record for each connection, none for what followed");
    assert!(records.iter().all(|record| record["response_flags"] == "DPE"), "{records:#?}");
}

#[test]
fn an_ambiguous_chunk_is_refused_and_its_request_never_completed() {
    let cases = &cases::read(CASES)["chunks"];
    let mut wrong = Vec::new();
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    for Case { name, bytes, .. } in cases {
        let mut client = mesh.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n{bytes}"));
        client.send("GET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n");
        let (seen, _) = client.rest();
        let seen = String::from_utf8_lossy(&seen).into_owned();
        if !seen.starts_with("HTTP/1.1 400 ") || seen.matches("HTTP/1.1").count() != 1 {
            wrong.push(format!("{name}: {seen:?}"));
        }
        while upstream.has_visitor() {
            let (seen, _) = upstream.accept().rest();
            let seen = String::from_utf8_lossy(&seen).into_owned();
            if seen.ends_with("0\r\n\r\n") || seen.contains("smuggled") {
                wrong.push(format!("{name}: the upstream saw {seen:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let records = mesh.wait_records(cases.len());
    assert!(records.iter().all(|record| record["response_code"] == 400), "{records:#?}");
}

#[test]
fn trailers_do_not_say_what_only_a_head_may() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send(
        "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n0\r\nX-Forwarded-Client-Cert: URI=spiffe://evil\r\n\
         x-forwarded-for: 6.6.6.6\r\nX-Envoy-Internal: true\r\ncookie: a=b\r\nproxy-authorization: x\r\nproxy-connection: y\r\n\
         x-sum: 1\r\nexpect: 100-continue\r\nx-real-ip: 6.6.6.6\r\n\r\n",
    );
    let mut peer = upstream.accept();
    assert_eq!(peer.message().trailers, "x-sum: 1\r\n");
    peer.send(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nset-cookie: a=b\r\nlocation: /evil\r\ncontent-type: text/html\r\n\
         grpc-status: 0\r\nx-envoy-degraded: 1\r\nwww-authenticate: Basic\r\nx-user-id: 1\r\n\r\n",
    );
    assert_eq!(client.message().trailers, "grpc-status: 0\r\nx-user-id: 1\r\n");
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let long = "x".repeat(61 * 1024);
    let many: String = (0..101).map(|number| format!("x-{number}: y\r\n")).collect();
    for (name, request) in [
        ("a long value", format!("GET / HTTP/1.1\r\nhost: up\r\nx: {long}\r\n\r\n")),
        ("a long target", format!("GET /{long} HTTP/1.1\r\nhost: up\r\n\r\n")),
        ("a line without end", format!("GET /{long}")),
        ("many fields", format!("GET / HTTP/1.1\r\nhost: up\r\n{many}\r\n")),
    ] {
        let mut client = mesh.client();
        client.send(request);
        let (seen, _) = client.rest();
        assert!(seen.starts_with(b"HTTP/1.1 431 "), "{name}: {}", String::from_utf8_lossy(&seen));
    }
    assert!(!upstream.has_visitor());
}

#[test]
fn empty_lines_before_a_request_are_passed_over() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let mut client = mesh.client();
    client.send("\r\nGET / HTTP/1.1\r\nhost: up\r\n\r\n");
    assert_eq!(client.message().text(), "hello");
    client.send("\r\n");
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    assert_eq!(client.message().text(), "hello");
}
