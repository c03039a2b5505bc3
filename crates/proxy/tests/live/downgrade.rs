//! Messages of HTTP/2 that would mean something else in HTTP/1.1: each is refused where it comes in, and nothing of it goes on.

use crate::kit::frames::*;
use crate::kit::{Mesh, Upstream};

type Fields = &'static [(&'static str, &'static str)];

/// Heads of requests: name, fields that are added to those of a plain GET, or replace them if they are pseudo-headers.
const REQUESTS: &[(&str, Fields)] = &[
    ("CR LF in a value", &[("x", "a\r\nhost: evil")]),
    ("LF in a value", &[("x", "a\nb")]),
    ("CR in a value", &[("x", "a\rb")]),
    ("NUL in a value", &[("x", "a\0b")]),
    ("a space before a value", &[("x", " a")]),
    ("a tab after a value", &[("x", "a\t")]),
    ("LF in a name", &[("x\nhost", "evil")]),
    ("NUL in a name", &[("x\0", "a")]),
    ("a colon in a name", &[("x: a\r\nhost", "evil")]),
    ("a space in a name", &[("transfer-encoding ", "chunked")]),
    ("capitals in a name", &[("Transfer-Encoding", "chunked")]),
    ("an empty name", &[("", "a")]),
    ("transfer-encoding", &[("transfer-encoding", "chunked")]),
    ("connection", &[("connection", "upgrade")]),
    ("connection that nominates", &[("connection", "cookie"), ("cookie", "a=b")]),
    ("keep-alive", &[("keep-alive", "timeout=5")]),
    ("proxy-connection", &[("proxy-connection", "keep-alive")]),
    ("upgrade", &[("upgrade", "websocket")]),
    ("te other than trailers", &[("te", "trailers, chunked")]),
    ("a length without DATA", &[("content-length", "5")]),
    ("two lengths", &[("content-length", "0"), ("content-length", "5")]),
    ("two equal lengths", &[("content-length", "0"), ("content-length", "0")]),
    ("a list of lengths", &[("content-length", "0, 0")]),
    ("a length with plus", &[("content-length", "+0")]),
    ("a length with a space", &[("content-length", "0 ")]),
    ("host against :authority", &[("host", "evil")]),
    ("two hosts", &[("host", "up"), ("host", "up")]),
    ("a user in :authority", &[(":authority", "evil@up")]),
    ("a space in :authority", &[(":authority", "up evil")]),
    ("CR LF in :authority", &[(":authority", "up\r\nx: y")]),
    ("a path in :authority", &[(":authority", "up/evil")]),
    ("a space in :path", &[(":path", "/ HTTP/1.1")]),
    ("a request in :path", &[(":path", "/ HTTP/1.1\r\nhost: evil\r\n\r\nGET /")]),
    ("a tab in :path", &[(":path", "/\tx")]),
    ("NUL in :path", &[(":path", "/\0")]),
    ("a fragment in :path", &[(":path", "/#x")]),
    ("no slash in :path", &[(":path", "evil")]),
    ("a URL in :path", &[(":path", "http://evil/")]),
    ("an empty :path", &[(":path", "")]),
    ("a space in :method", &[(":method", "GET / HTTP/1.1\r\nx:")]),
    ("LF in :method", &[(":method", "GET\n")]),
    ("an empty :method", &[(":method", "")]),
    ("CR LF in :scheme", &[(":scheme", "http\r\nx: y")]),
    ("a URL in :scheme", &[(":scheme", "http://evil/?")]),
    ("a second :path", &[("x", "a"), (":path2", "/evil")]),
    (":status", &[(":status", "200")]),
    (":protocol without CONNECT", &[(":protocol", "websocket")]),
];

/// Bodies that are not what their heads say: name, content-length, DATA frames; the last ends the stream.
const BODIES: &[(&str, &str, &[&str])] = &[
    ("DATA beyond the length", "3", &["abcd"]),
    ("DATA beyond the length, in two frames", "3", &["ab", "cd"]),
    ("a request beyond the length", "3", &["abc", "GET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n"]),
    ("DATA short of the length", "5", &["abc"]),
    ("no DATA", "5", &[""]),
    ("DATA after a length of 0", "0", &["GET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n"]),
];

/// Trailers that are refused: name, fields.
const TRAILERS: &[(&str, Fields)] = &[
    ("CR LF in a value", &[("x", "a\r\n\r\nGET /smuggled HTTP/1.1")]),
    ("LF in a name", &[("x\n", "a")]),
    ("a pseudo-header", &[(":path", "/smuggled")]),
    ("transfer-encoding", &[("transfer-encoding", "chunked")]),
    ("connection", &[("connection", "close")]),
];

/// Heads of responses: name, fields in the place of `:status: 200`.
const RESPONSES: &[(&str, Fields)] = &[
    ("CR LF in a value", &[(":status", "200"), ("x", "a\r\nset-cookie: evil")]),
    ("NUL in a value", &[(":status", "200"), ("x", "a\0")]),
    ("LF in a name", &[(":status", "200"), ("x\n", "a")]),
    ("transfer-encoding", &[(":status", "200"), ("transfer-encoding", "chunked")]),
    ("connection", &[(":status", "200"), ("connection", "close")]),
    ("two lengths", &[(":status", "200"), ("content-length", "1"), ("content-length", "2")]),
    ("a list of lengths", &[(":status", "200"), ("content-length", "1, 1")]),
    ("no status", &[("x", "a")]),
    ("two statuses", &[(":status", "200"), (":status", "200")]),
    ("a status with a reason", &[(":status", "200 OK\r\nx: y")]),
    ("a status of two digits", &[(":status", "20")]),
    ("a change of protocol", &[(":status", "101")]),
    ("a path", &[(":status", "200"), (":path", "/")]),
];

/// A plain GET with *more*: a pseudo-header replaces that of its name.
fn with(more: Fields) -> Vec<(&'static str, &'static str)> {
    let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "up")];
    for &(name, value) in more {
        match fields.iter_mut().find(|(known, _)| *known == name && name.starts_with(':')) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

#[test]
fn a_head_that_means_another_in_http1_goes_nowhere() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    // Each on a stream of one connection, which survives them all.
    let mut client = Wire::client(&mesh);
    for (index, (name, more)) in REQUESTS.iter().enumerate() {
        let stream = 2 * index as u32 + 1;
        client.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&with(more)));
        assert_eq!(client.expect(RST_STREAM, stream).code(), PROTOCOL_ERROR, "{name}");
    }
    assert!(!upstream.has_visitor());
    let last = 2 * REQUESTS.len() as u32 + 1;
    client.request(last, "GET", "/good", &[], true);
    assert_eq!(upstream.accept().head().start_line(), "GET /good HTTP/1.1");
}

#[test]
fn a_body_that_is_not_what_its_head_says_is_never_a_whole_message() {
    let mut wrong = Vec::new();
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut expect_cut = |name: &str, client: &mut Wire| {
        let reset = client.expect(RST_STREAM, 1);
        if reset.code() != PROTOCOL_ERROR {
            wrong.push(format!("{name}: {reset:?}"));
        }
        // The proxy may have begun to pass it on; then it ends that connection, and nothing else was on it.
        while upstream.has_visitor() {
            let (seen, _) = upstream.accept().rest();
            let seen = String::from_utf8_lossy(&seen).into_owned();
            if seen.contains("smuggled") || seen.ends_with("\r\n0\r\n\r\n") {
                wrong.push(format!("{name}: the upstream saw {seen:?}"));
            }
        }
    };
    for (name, length, parts) in BODIES {
        let mut client = Wire::client(&mesh);
        client.request(1, "POST", "/", &[("content-length", length)], false);
        for (index, part) in parts.iter().enumerate() {
            let flags = if index + 1 == parts.len() { END_STREAM } else { 0 };
            client.send(DATA, flags, 1, part.as_bytes());
        }
        expect_cut(name, &mut client);
    }
    for (name, fields) in TRAILERS {
        let mut client = Wire::client(&mesh);
        client.request(1, "POST", "/", &[], false);
        client.send(DATA, 0, 1, b"abc");
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
        expect_cut(name, &mut client);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn trailers_that_would_change_the_message_are_left_out() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = Wire::client(&mesh);
    client.request(1, "POST", "/", &[], false);
    client.send(DATA, 0, 1, b"abc");
    let trailers = [("content-length", "99"), ("host", "evil"), ("authorization", "evil"), ("x-sum", "3")];
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&trailers));
    let request = upstream.accept().message();
    assert_eq!((request.text().as_str(), request.trailers.as_str()), ("abc", "x-sum: 3\r\n"));
}

#[test]
fn an_answer_that_means_another_in_http1_is_never_passed_on() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut server = None;
    for (index, (name, fields)) in RESPONSES.iter().enumerate() {
        let mut client = mesh.client();
        client.send(format!("GET /{index} HTTP/1.1\r\nhost: up\r\n\r\n"));
        let wire = server.get_or_insert_with(|| Wire::server(upstream.accept(), &[]));
        let stream = wire.next().stream;
        wire.send(HEADERS, END_HEADERS, stream, &block(fields));
        let answer = client.message();
        assert_eq!(answer.status(), 502, "{name}: {answer:?}");
        assert!(!answer.head.contains("x:"), "{name}: {answer:?}");
        assert_eq!(wire.expect(RST_STREAM, stream).code(), PROTOCOL_ERROR, "{name}");
    }
}
