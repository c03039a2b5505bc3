//! Messages of HTTP/2 that would mean something else in HTTP/1.1: each is refused where it comes in, and nothing of it goes on.

use std::sync::LazyLock;

use serde::Deserialize;
use weft_protos::envoy::config::route::v3::route_action::RequestMirrorPolicy;

use crate::kit::frames::*;
use crate::kit::resources::cluster_of;
use crate::kit::{Mesh, Upstream};

/// Pairs of name and value.
type Fields = [(String, String)];

/// What is in downgrade.json, which tests/conformance/test_downgrade.py puts to Envoy as well.
#[derive(Deserialize)]
struct Cases {
    requests: Vec<Case>,
    bodies: Vec<Body>,
    trailers: Vec<Case>,
    responses: Vec<Case>,
}

/// A head of a request or a response, or trailers. The fields of a request are added to those of a plain GET, or replace them if they are
/// pseudo-headers.
#[derive(Deserialize)]
struct Case {
    name: String,
    fields: Vec<(String, String)>,
}

/// A body that is not what its head says. The last DATA frame ends the stream.
#[derive(Deserialize)]
struct Body {
    name: String,
    length: String,
    data: Vec<String>,
}

static CASES: LazyLock<Cases> = LazyLock::new(|| serde_json::from_str(include_str!("downgrade.json")).unwrap());

/// Trailers that are left out, each for a kind of them, and two that are not.
const FORBIDDEN_TRAILERS: [&str; 16] = [
    "content-length",
    "host",
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "forwarded",
    "x-envoy-internal",
    "if-match",
    "cache-control",
    "location",
    "content-type",
    "grpc-status",
    "x-sum",
];

/// A plain GET with *more*: a pseudo-header replaces that of its name.
fn with(more: &Fields) -> Vec<(&str, &str)> {
    let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "up")];
    for (name, value) in pairs(more) {
        match fields.iter_mut().find(|(known, _)| *known == name && name.starts_with(':')) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

fn pairs(fields: &Fields) -> Vec<(&str, &str)> {
    fields.iter().map(|(name, value)| (&**name, &**value)).collect()
}

#[test]
fn a_head_that_means_another_in_http1_goes_nowhere() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    // Each on a stream of one connection, which survives them all.
    let mut client = Wire::client(&mesh);
    for (index, Case { name, fields }) in CASES.requests.iter().enumerate() {
        let stream = 2 * index as u32 + 1;
        client.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&with(fields)));
        assert_eq!(client.expect(RST_STREAM, stream).code(), PROTOCOL_ERROR, "{name}");
    }
    assert!(!upstream.has_visitor());
    let last = 2 * CASES.requests.len() as u32 + 1;
    client.request(last, "GET", "/good", &[], true);
    assert_eq!(upstream.accept().head().start_line(), "GET /good HTTP/1.1");
}

#[test]
fn bytes_of_a_tunnel_that_nobody_allows_go_nowhere() {
    const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n";
    let (upstream, copies) = (Upstream::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        allow_extended_connect(setup);
        setup.more.extend(cluster_of("copies", &[copies.address()]));
        let copied = RequestMirrorPolicy { cluster: "copies".into(), ..Default::default() };
        setup.action().request_mirror_policies = vec![copied];
    });
    for protocol in ["h2c", "H2C", "websocket"] {
        for flags in [0, END_STREAM] {
            let mut client = Wire::client(&mesh);
            let method = [(":method".into(), "CONNECT".into())];
            let head = with(&method).into_iter().chain([(":protocol", protocol)]);
            client.send(HEADERS, END_HEADERS, 1, &block(&head.collect::<Vec<_>>()));
            client.send(DATA, flags, 1, SMUGGLED);
            let answer = String::from_utf8_lossy(&client.expect(HEADERS, 1).payload).into_owned();
            assert!(answer.contains("403"), "{protocol}: {answer:?}");
        }
    }
    // Over HTTP/1.1 the same wish is passed over: nothing follows the head, or what its framing says.
    let mut client = mesh.client();
    client.send("GET /1 HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n");
    let mut peer = upstream.accept();
    let request = peer.message();
    assert_eq!((request.start_line(), request.get("upgrade")), ("GET /1 HTTP/1.1", None));
    assert_eq!(copies.accept().message().start_line(), "GET /1 HTTP/1.1");
    assert!(!upstream.has_visitor() && !copies.has_visitor());
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
    for Body { name, length, data } in &CASES.bodies {
        let mut client = Wire::client(&mesh);
        client.request(1, "POST", "/", &[("content-length", length)], false);
        for (index, part) in data.iter().enumerate() {
            let flags = if index + 1 == data.len() { END_STREAM } else { 0 };
            client.send(DATA, flags, 1, part.as_bytes());
        }
        expect_cut(name, &mut client);
    }
    for Case { name, fields } in &CASES.trailers {
        let mut client = Wire::client(&mesh);
        client.request(1, "POST", "/", &[], false);
        client.send(DATA, 0, 1, b"abc");
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&pairs(fields)));
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
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&FORBIDDEN_TRAILERS.map(|name| (name, "evil"))[..]));
    let request = upstream.accept().message();
    assert_eq!((request.text().as_str(), request.trailers.as_str()), ("abc", "grpc-status: evil\r\nx-sum: evil\r\n"));
}

#[test]
fn an_answer_that_means_another_in_http1_is_never_passed_on() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut server = None;
    for (index, Case { name, fields }) in CASES.responses.iter().enumerate() {
        let mut client = mesh.client();
        client.send(format!("GET /{index} HTTP/1.1\r\nhost: up\r\n\r\n"));
        let wire = server.get_or_insert_with(|| Wire::server(upstream.accept(), &[]));
        let stream = wire.next().stream;
        wire.send(HEADERS, END_HEADERS, stream, &block(&pairs(fields)));
        let answer = client.message();
        assert_eq!(answer.status(), 502, "{name}: {answer:?}");
        assert!(!answer.head.contains("x:"), "{name}: {answer:?}");
        assert_eq!(wire.expect(RST_STREAM, stream).code(), PROTOCOL_ERROR, "{name}");
    }
}
