//! Answers that two parties could read differently, and connections to upstreams that must not be used again.

use std::io::Write;

use crate::kit::cases::{self, Case};
use crate::kit::peer::{End, ok};
use crate::kit::{Mesh, Upstream, until};

const BEFORE: &str = "upstream_reset_before_response_started{protocol_error}";
const AFTER: &str = "upstream_reset_after_response_started{protocol_error}";

const CASES: &[u8] = include_bytes!("responses.yaml");

/// What nobody asked for.
const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";

#[test]
fn an_ambiguous_answer_is_never_passed_on_and_its_connection_not_used_again() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    for (index, Case { name, bytes, method }) in cases::read(CASES)["heads"].iter().enumerate() {
        let mut client = mesh.client();
        client.send(format!("{method} /{index} HTTP/1.1\r\nhost: up\r\n\r\n"));
        let mut peer = upstream.accept();
        peer.message();
        peer.send(bytes);
        let got = client.head();
        assert_eq!(got.status(), 502, "{name}: {got:?}");
        assert!(!got.head.contains("x:"), "{name}: {got:?}");
        mesh.expect_record(&format!("/{index}"), 502, "UPE", BEFORE);
        peer.rest();
    }
}

#[test]
fn bytes_beyond_an_answer_are_never_another_answer() {
    for Case { name, bytes: head, method } in &cases::read(CASES)["beyond"] {
        for at_once in [true, false] {
            let upstream = Upstream::new();
            let mesh = Mesh::start(&[upstream.address()], |_| {});
            let mut client = mesh.client();
            client.send(format!("{method} / HTTP/1.1\r\nhost: up\r\n\r\n"));
            let mut peer = upstream.accept();
            peer.head();
            if at_once {
                peer.send([head.as_str(), EVIL].concat());
            } else {
                peer.send(head);
            }
            // What the client sees is one answer and nothing after it.
            let answer = client.head();
            if head.contains("chunked") && method == "GET" {
                client.expect("0\r\n\r\n");
            }
            if !at_once {
                peer.send(EVIL);
                until("the bytes are there", || {
                    (crate::kit::peer::unacknowledged_bytes(peer.socket()) == 0).then_some(())
                });
            }
            client.send("GET /next HTTP/1.1\r\nhost: up\r\n\r\n");
            let mut fresh = upstream.accept();
            fresh.message();
            fresh.send(ok("good"));
            assert_eq!(client.message().text(), "good", "{name}, at once: {at_once}, {answer:?}");
            peer.rest();
        }
    }
}

#[test]
fn answers_without_body_keep_the_connection() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    for answer in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"] {
        peer.send(answer);
        let answer = client.message();
        // RFC 9110 8.6: a 204 has no length.
        assert_eq!((answer.status(), answer.get("content-length"), answer.get("transfer-encoding")), (204, None, None));
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        peer.message();
    }
    peer.send("HTTP/1.1 304 Not Modified\r\ncontent-length: 42\r\netag: \"x\"\r\n\r\n");
    assert_eq!(client.message().get("content-length"), Some("42"));
    client.send("HEAD / HTTP/1.1\r\nhost: up\r\n\r\n");
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(client.head().get("content-length"), None);
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    peer.message();
    peer.send(ok("last"));
    assert_eq!(client.message().text(), "last");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_passed_on_in_chunks() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    for number in 0..2 {
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut peer = upstream.accept();
        peer.message();
        peer.send(format!("HTTP/1.{number} 200 OK\r\n\r\nsome"));
        peer.send("thing");
        drop(peer);
        let answer = client.message();
        assert_eq!((answer.get("transfer-encoding"), answer.text().as_str()), (Some("chunked"), "something"));
    }
}

#[test]
fn an_upstream_that_closes_or_contradicts_itself_is_not_asked_again_on_that_connection() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    for (status, answer) in [
        (200, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"),
        (200, "HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
        (200, "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
        (204, "HTTP/1.1 204 No Content\r\ncontent-length: 43\r\n\r\n"),
        (204, "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n"),
    ] {
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut peer = upstream.accept();
        peer.message();
        peer.send(answer);
        let answer = client.message();
        // What the upstream wants of its connection is not the client's business.
        assert_eq!((answer.status(), answer.get("connection")), (status, None));
        peer.expect_end();
    }
}

#[test]
fn an_answer_with_an_ambiguous_chunk_is_never_completed() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    for (index, Case { name, bytes, method }) in cases::read(CASES)["chunks"].iter().enumerate() {
        for at_once in [true, false] {
            let path = format!("/{index}/{at_once}");
            let mut client = mesh.client();
            client.send(format!("{method} {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
            let mut peer = upstream.accept();
            peer.message();
            if at_once {
                peer.send([HEAD, bytes.as_str(), EVIL].concat());
            } else {
                peer.send(HEAD);
                client.head();
                peer.send([bytes.as_str(), EVIL].concat());
            }
            let (seen, end) = client.rest();
            let seen = String::from_utf8_lossy(&seen).into_owned();
            assert_eq!(end, End::Reset, "{name}, at once: {at_once}: {seen:?}");
            assert!(!seen.ends_with("0\r\n\r\n"), "{name}, at once: {at_once}: {seen:?}");
            mesh.expect_record(&path, 200, "UPE", AFTER);
            peer.rest();
        }
    }
}

/// Answers that begin well: name, bytes, what stands in the record.
const CUT: &[(&str, &str, &str, &str)] = &[
    ("within a length", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", "UC", "connection_termination"),
    ("within a chunk", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc", "UC", "connection_termination"),
    (
        "before the last chunk",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "UC",
        "connection_termination",
    ),
    (
        "within trailers",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n",
        "UC",
        "connection_termination",
    ),
    (
        "no chunk size",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
        "UPE",
        "protocol_error",
    ),
    (
        "a chunk too long",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        "UPE",
        "protocol_error",
    ),
    ("a bad trailer", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx y\r\n\r\n", "UPE", "protocol_error"),
];

#[test]
fn an_answer_that_breaks_off_is_never_completed() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    for (index, (name, answer, flags, why)) in CUT.iter().enumerate() {
        let mut client = mesh.client();
        client.send(format!("GET /{index} HTTP/1.1\r\nhost: up\r\n\r\n"));
        let mut peer = upstream.accept();
        peer.message();
        peer.send(answer);
        peer.finish();
        let (seen, end) = client.rest();
        let seen = String::from_utf8_lossy(&seen).into_owned();
        assert_eq!(end, End::Reset, "{name}: {seen:?}");
        assert!(!seen.ends_with("0\r\n\r\n"), "{name}: {seen:?}");
        let details = format!("upstream_reset_after_response_started{{{why}}}");
        mesh.expect_record(&format!("/{index}"), 200, flags, &details);
        peer.rest();
    }
}

#[test]
fn an_upstream_that_ends_within_its_head_has_not_answered() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ncontent-le");
    drop(peer);
    assert_eq!(client.message().status(), 503);
    mesh.expect_record("/", 503, "UC", "upstream_reset_before_response_started{connection_termination}");
}

#[test]
fn a_head_that_never_ends_is_refused() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut socket = upstream.accept_socket();
    let line = format!("x: {}\r\n", "y".repeat(1000));
    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n");
    // The proxy gives up somewhere on the way.
    for _ in 0..100 {
        let _ = socket.write_all(line.as_bytes());
    }
    assert_eq!(client.message().status(), 502);
    mesh.expect_record("/", 502, "UPE", BEFORE);
}
