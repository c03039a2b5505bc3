//! Requests that two parties could read differently: each is refused, its connection closed, and nothing of it goes on.

use crate::kit::{Mesh, Upstream};

/// Name, bytes, status.
const CASES: &[(&str, &str, u16)] = &[
    ("CL.TE", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nX", 400),
    (
        "TE.CL",
        "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n1\r\nX\r\n0\r\n\r\n",
        400,
    ),
    ("two lengths", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
    ("two equal lengths", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc", 400),
    ("a list of lengths", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 3, 3\r\n\r\nabc", 400),
    ("a negative length", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: -3\r\n\r\nabc", 400),
    ("a length with plus", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: +3\r\n\r\nabc", 400),
    ("a length in hexadecimal", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 0x3\r\n\r\nabc", 400),
    ("an empty length", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: \r\n\r\nabc", 400),
    ("a length with a space within", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 1 2\r\n\r\nabc", 400),
    ("a length beyond 64 bits", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 18446744073709551619\r\n\r\nabc", 400),
    ("obs-fold", "GET / HTTP/1.1\r\nhost: up\r\nx: a\r\n b\r\n\r\n", 400),
    ("obs-fold of an encoding", "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    ("bare LF after the request line", "GET / HTTP/1.1\nhost: up\r\n\r\n", 400),
    ("bare LF after a field", "GET / HTTP/1.1\r\nhost: up\nx: y\r\n\r\n", 400),
    ("bare LF as the empty line", "GET / HTTP/1.1\r\nhost: up\r\n\n", 400),
    ("bare CR after a field", "GET / HTTP/1.1\r\nhost: up\rx: y\r\n\r\n", 400),
    ("a space before the colon", "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    ("a tab before the colon", "POST / HTTP/1.1\r\nhost: up\r\ncontent-length\t: 3\r\n\r\nabc", 400),
    ("a field without colon", "GET / HTTP/1.1\r\nhost: up\r\nnothing\r\n\r\n", 400),
    ("a field without name", "GET / HTTP/1.1\r\nhost: up\r\n: value\r\n\r\n", 400),
    ("a space before the first field", "GET / HTTP/1.1\r\n host: up\r\nhost: up\r\n\r\n", 400),
    ("NUL in a value", "GET / HTTP/1.1\r\nhost: up\r\nx: a\0b\r\n\r\n", 400),
    ("CR in a value", "GET / HTTP/1.1\r\nhost: up\r\nx: a\rb\r\n\r\n", 400),
    ("NUL in a name", "GET / HTTP/1.1\r\nhost: up\r\nx\0: a\r\n\r\n", 400),
    ("NUL in the target", "GET /\0 HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("chunked, identity", "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    ("identity", "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: identity\r\n\r\nabc", 400),
    ("gzip, chunked", "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("xchunked", "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    ("chunked in quotes", "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "vertical tab before chunked",
        "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("chunks in HTTP/1.0", "POST / HTTP/1.0\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("two hosts", "GET / HTTP/1.1\r\nhost: up\r\nhost: other\r\n\r\n", 400),
    ("no host", "GET / HTTP/1.1\r\nx: y\r\n\r\n", 400),
    ("a host with a path", "GET / HTTP/1.1\r\nhost: up/x\r\n\r\n", 400),
    ("a host with a space", "GET / HTTP/1.1\r\nhost: up other\r\n\r\n", 400),
    ("a host with a user", "GET / HTTP/1.1\r\nhost: user@up\r\n\r\n", 400),
    ("a method with a colon", "GE:T / HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("an empty method", " / HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("a target with a fragment", "GET /a#b HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("a target without slash", "GET a HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("a star for another method", "GET * HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("two spaces before the target", "GET  / HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("a third word before the version", "GET / x HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("no version", "GET /\r\nhost: up\r\n\r\n", 400),
    ("HTTP/2.0", "GET / HTTP/2.0\r\nhost: up\r\n\r\n", 400),
    ("HTTP/1.2", "GET / HTTP/1.2\r\nhost: up\r\n\r\n", 400),
    ("whitespace before the request", " GET / HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("a tab before the request", "\tGET / HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("Connection takes the cookie", "GET / HTTP/1.1\r\nhost: up\r\nconnection: cookie\r\ncookie: a=b\r\n\r\n", 400),
    (
        "Connection takes the credentials",
        "GET / HTTP/1.1\r\nhost: up\r\nconnection: close, Authorization\r\nauthorization: x\r\n\r\n",
        400,
    ),
    (
        "Connection takes the client's address",
        "GET / HTTP/1.1\r\nhost: up\r\nconnection: x-forwarded-for\r\nx-forwarded-for: 1.1.1.1\r\n\r\n",
        400,
    ),
    (
        "Connection takes the client's certificate",
        "GET / HTTP/1.1\r\nhost: up\r\nconnection: x-forwarded-client-cert\r\n\r\n",
        400,
    ),
    ("Connection takes the request's id", "GET / HTTP/1.1\r\nhost: up\r\nconnection: x-request-id\r\n\r\n", 400),
    ("Connection takes a pseudo-header", "GET / HTTP/1.1\r\nhost: up\r\nconnection: :method\r\n\r\n", 400),
    ("Connection names ten fields", "GET / HTTP/1.1\r\nhost: up\r\nconnection: a,b,c,d,e,f,g,h,i,j\r\n\r\n", 400),
    ("CONNECT with a length", "CONNECT up:80 HTTP/1.1\r\nhost: up:80\r\ncontent-length: 5\r\n\r\nhello", 400),
    ("CONNECT with a length of 0", "CONNECT up:80 HTTP/1.1\r\nhost: up:80\r\ncontent-length: 0\r\n\r\n", 400),
    (
        "CONNECT with chunks",
        "CONNECT up:80 HTTP/1.1\r\nhost: up:80\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("CONNECT without a port", "CONNECT up HTTP/1.1\r\nhost: up\r\n\r\n", 400),
    ("CONNECT with a path", "CONNECT up:80/x HTTP/1.1\r\nhost: up:80\r\n\r\n", 400),
    ("CONNECT to port 0", "CONNECT up:0 HTTP/1.1\r\nhost: up:0\r\n\r\n", 400),
    ("garbage", "\x01\x02\x03\x04\r\n\r\n", 400),
    ("TLS on a plain port", "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03", 400),
];

/// Chunks that are refused while the body is read, when the request has gone on already: it is never finished.
const CHUNKS: &[(&str, &str)] = &[
    ("bare LF after a size", "3\nabc\r\n0\r\n\r\n"),
    ("bare LF after data", "3\r\nabc\n0\r\n\r\n"),
    ("bare LF in an extension", "3;a\nabc\r\n0\r\n\r\n"),
    ("bare CR after a size", "3\rabc\r\n0\r\n\r\n"),
    ("bare LF after trailers", "0\r\nx: y\n\r\n"),
    ("bare LF as the last line", "0\r\n\n"),
    ("a size of 17 digits", "10000000000000003\r\nabc\r\n0\r\n\r\n"),
    ("a size beyond the data", "4\r\nabc\r\n0\r\n\r\n"),
    ("a size below the data", "2\r\nabc\r\n0\r\n\r\n"),
    ("a negative size", "-3\r\nabc\r\n0\r\n\r\n"),
    ("a size with plus", "+3\r\nabc\r\n0\r\n\r\n"),
    ("a size with 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a size with a space before", " 3\r\nabc\r\n0\r\n\r\n"),
    ("a size with a space after", "3 \r\nabc\r\n0\r\n\r\n"),
    ("a size with junk", "3x\r\nabc\r\n0\r\n\r\n"),
    ("no size", "\r\nabc\r\n0\r\n\r\n"),
    (
        "an extension without end",
        "3;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ),
    ("NUL in an extension", "3;a\0b\r\nabc\r\n0\r\n\r\n"),
    ("a trailer without colon", "0\r\nnothing\r\n\r\n"),
    ("a space before a trailer's colon", "0\r\nx : y\r\n\r\n"),
];

#[test]
fn an_ambiguous_head_is_refused_and_goes_nowhere() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut wrong = Vec::new();
    for (name, bytes, status) in CASES {
        let mut client = mesh.client();
        // What follows must not be taken for a request.
        client.send([bytes.as_bytes(), b"GET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n"].concat());
        if upstream.has_visitor() {
            wrong.push(format!("{name}: it reached the upstream"));
            continue;
        }
        let (seen, _) = client.rest();
        let seen = String::from_utf8_lossy(&seen).into_owned();
        if !seen.starts_with(&format!("HTTP/1.1 {status} ")) || seen.matches("HTTP/1.1").count() != 1 {
            wrong.push(format!("{name}: {seen:?}"));
        } else if !seen.contains("\r\nconnection: close\r\n") {
            wrong.push(format!("{name}: it does not say that the connection closes: {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_total", &[]), 0.0);
    let records = mesh.wait_records(CASES.len());
    assert_eq!(records.len(), CASES.len(), "one record for each connection, none for what followed");
    assert!(records.iter().all(|record| record["response_flags"] == "DPE"), "{records:#?}");
}

#[test]
fn an_ambiguous_chunk_is_refused_and_its_request_never_completed() {
    let mut wrong = Vec::new();
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    for (name, chunks) in CHUNKS {
        let mut client = mesh.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"));
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
    let records = mesh.wait_records(CHUNKS.len());
    assert!(records.iter().all(|record| record["response_code"] == 400), "{records:#?}");
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
