//! gRPC-Web: what a browser sends and gets, and what a service of gRPC sees of it.

use weft_protos::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;

use crate::kit::frames::*;
use crate::kit::resources::{Setup, filter};
use crate::kit::{Mesh, Upstream};

const QUESTION: &[u8] = b"\0\0\0\0\x03who";
const ANSWER: &[u8] = b"\0\0\0\0\x04weft";
/// The last frame of a body.
const STATUS: &[u8] = b"\x80\0\0\0\x20grpc-status:0\r\ngrpc-message:ok\r\n";

/// A service of gRPC behind the filter.
fn with_web(setup: &mut Setup) {
    http2_upstream(setup);
    let name = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
    setup.manager.http_filters.insert(0, filter("envoy.filters.http.grpc_web", name, &GrpcWeb {}));
}

fn base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = digits[(word >> (18 - 6 * digit)) as usize & 63];
            out.push(if digit <= group.len() { char::from(value) } else { '=' });
        }
    }
    out
}

fn post(kind: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /a.B/C HTTP/1.1\r\nhost: up\r\ncontent-type: {kind}\r\n{more}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The service takes a call, and says `weft`.
fn serve(server: &mut Wire) {
    let request = server.next();
    let head = String::from_utf8_lossy(&request.payload).into_owned();
    assert!(!head.contains("grpc-web"), "{head:?}");
    assert_eq!(server.body(request.stream).0, QUESTION);
    server.send(
        HEADERS,
        END_HEADERS,
        request.stream,
        &block(&[(":status", "200"), ("content-type", "application/grpc")]),
    );
    server.send(DATA, 0, request.stream, ANSWER);
    let trailers = [("grpc-status", "0"), ("grpc-message", "ok")];
    server.send(HEADERS, END_HEADERS | END_STREAM, request.stream, &block(&trailers));
}

#[test]
fn a_call_of_grpc_web_is_a_call_of_grpc() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], with_web);
    let mut client = mesh.client();
    let mut server = None;
    let binary = [ANSWER, STATUS].concat();
    let text = (base64(ANSWER) + &base64(STATUS)).into_bytes();
    let coded = base64(QUESTION);
    for (kind, more, question, expected_kind, expected) in [
        ("application/grpc-web", "", QUESTION, "application/grpc-web+proto", &binary),
        ("application/grpc-web+proto", "", QUESTION, "application/grpc-web+proto", &binary),
        ("application/grpc-web-text", "", coded.as_bytes(), "application/grpc-web-text+proto", &text),
        (
            "application/grpc-web",
            "accept: application/grpc-web-text\r\n",
            QUESTION,
            "application/grpc-web-text+proto",
            &text,
        ),
    ] {
        client.send(post(kind, more, question));
        serve(server.get_or_insert_with(|| Wire::server(upstream.accept(), &[])));
        let answer = client.message();
        assert_eq!((answer.status(), answer.get("content-type")), (200, Some(expected_kind)), "{kind}");
        assert_eq!(answer.body, *expected, "{kind}: {}", answer.text());
        assert_eq!(answer.trailers, "", "{kind}");
    }
    // Over HTTP/2 a browser sees the same.
    let mut client = Wire::client(&mesh);
    client.request(1, "POST", "/a.B/C", &[("content-type", "application/grpc-web-text")], false);
    client.send(DATA, END_STREAM, 1, coded.as_bytes());
    serve(server.as_mut().unwrap());
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, text);
}

#[test]
fn each_message_of_a_stream_is_passed_on_as_it_comes() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], with_web);
    let mut client = mesh.client();
    client.send(post("application/grpc-web-text", "", base64(QUESTION).as_bytes()));
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    server.body(1);
    server.send(HEADERS, END_HEADERS, 1, &block(&[(":status", "200"), ("content-type", "application/grpc")]));
    client.head();
    let frame = base64(ANSWER);
    for _ in 0..3 {
        server.send(DATA, 0, 1, ANSWER);
        client.expect(format!("{:x}\r\n{frame}\r\n", frame.len()));
    }
    server.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("grpc-status", "8")]));
    let end = base64(b"\x80\0\0\0\x0fgrpc-status:8\r\n");
    client.expect(format!("{:x}\r\n{end}\r\n0\r\n\r\n", end.len()));
}

#[test]
fn answers_without_a_message_say_their_status_in_the_head() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::start(&[upstream.address()], with_web);
    let mut client = mesh.client();
    client.send(post("application/grpc-web", "", QUESTION));
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    server.body(1);
    let fields = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12")];
    server.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
    let answer = client.message();
    assert_eq!(
        (answer.get("grpc-status"), answer.get("content-type")),
        (Some("12"), Some("application/grpc-web+proto"))
    );
    assert_eq!(answer.text(), "");
    // The same from the proxy itself.
    mesh.change(|setup| setup.endpoints.clear());
    let mut client = mesh.client();
    client.send(post("application/grpc-web-text", "", base64(QUESTION).as_bytes()));
    let answer = client.message();
    assert_eq!((answer.status(), answer.get("grpc-status")), (200, Some("14")));
    assert_eq!(answer.get("content-type"), Some("application/grpc-web-text+proto"));
}

#[test]
fn what_is_no_call_of_grpc_web_passes_as_it_is() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], with_web);
    let mut client = mesh.client();
    client.send(post("text/plain", "", b"AAA"));
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    assert_eq!(server.body(1).0, b"AAA");
    server.answer(1, b"plain");
    assert_eq!(client.message().text(), "plain");
    // Nor does an answer of somebody who speaks no gRPC.
    client.send(post("application/grpc-web", "", QUESTION));
    server.expect(HEADERS, 3);
    server.body(3);
    server.send(HEADERS, END_HEADERS, 3, &block(&[(":status", "502"), ("content-type", "text/html")]));
    server.send(DATA, END_STREAM, 3, b"<p>");
    let answer = client.message();
    assert_eq!((answer.status(), answer.get("content-type"), answer.text().as_str()), (502, Some("text/html"), "<p>"));
    // And a body that is not the base64 that its type promises is nobody's.
    client.send(post("application/grpc-web-text", "", b"!!!!"));
    let answer = client.message();
    assert_eq!((answer.status(), answer.get("grpc-status")), (200, Some("13")), "400 in gRPC's words");
}
