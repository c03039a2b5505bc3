//! Limits of heads and buffers are those of the configuration, and no others.

use weft_protos::envoy::config::core::v3::HttpProtocolOptions;
use weft_protos::envoy::extensions::upstreams::http::v3 as upstreams;

use crate::kit::frames::*;
use crate::kit::peer::ok;
use crate::kit::resources::{Setup, any, number, retries};
use crate::kit::{Mesh, Upstream, content};

fn fields(count: usize) -> String {
    (0..count).map(|index| format!("x-{index}: y\r\n")).collect()
}

/// What the cluster says of its endpoints' responses.
fn of_responses(setup: &mut Setup, common: HttpProtocolOptions) {
    let options = upstreams::HttpProtocolOptions { common_http_protocol_options: Some(common), ..Default::default() };
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    setup.cluster.typed_extension_protocol_options.insert(name.into(), any(name, &options));
}

#[test]
fn requests_may_have_heads_as_large_as_configured() {
    let length = |request: &crate::kit::peer::Message| ok(&request.head.len().to_string());
    let mesh = Mesh::start(&[Upstream::answering(length)], |setup| {
        setup.manager.max_request_headers_kb = number(600);
        let common = setup.manager.common_http_protocol_options.get_or_insert_default();
        common.max_headers_count = number(1000);
        // What is passed on is not the upstream's to refuse here.
        setup.listener.per_connection_buffer_limit_bytes = number(16 * 1024);
    });
    for (name, more, status) in [
        ("a value of 500 KiB", format!("x: {}\r\n", "v".repeat(500 << 10)), 200),
        ("990 fields", fields(990), 200),
        ("a value of 601 KiB", format!("x: {}\r\n", "v".repeat(601 << 10)), 431),
        ("1001 fields", fields(1001), 431),
    ] {
        let mut client = mesh.client();
        // The proxy may answer and close before it has read all.
        let _ = client.try_send(format!("GET / HTTP/1.1\r\nhost: up\r\n{more}\r\n"));
        let answer = client.message();
        assert_eq!(answer.status(), status, "{name}");
        if status == 200 {
            assert!(answer.text().parse::<usize>().unwrap() > more.len(), "{name}: all of it arrives");
        }
    }
}

#[test]
fn trailers_are_limited_like_heads() {
    for (most, status) in [(100, 200), (5, 400)] {
        let mesh = Mesh::start(&[Upstream::saying("x")], |setup| {
            setup.manager.common_http_protocol_options.get_or_insert_default().max_headers_count = number(most);
        });
        let mut client = mesh.client();
        let trailers = fields(6);
        client.send(format!("POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n0\r\n{trailers}\r\n"));
        assert_eq!(client.message().status(), status, "{most}");
    }
}

#[test]
fn responses_may_have_heads_as_large_as_the_cluster_says() {
    let answering = |more: String| {
        Upstream::answering(move |_| format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{more}\r\n").into_bytes())
    };
    let kilobytes = |count: usize| format!("x: {}\r\n", "v".repeat(count << 10));
    let limits = |kilobytes, count| HttpProtocolOptions {
        max_response_headers_kb: kilobytes,
        max_headers_count: count,
        ..Default::default()
    };
    for (name, common, more, status) in [
        ("79 KiB by default", limits(None, None), kilobytes(79), 200),
        ("81 KiB by default", limits(None, None), kilobytes(81), 502),
        ("200 KiB", limits(number(201), None), kilobytes(200), 200),
        ("9 KiB of 8", limits(number(8), None), kilobytes(9), 502),
        ("101 fields by default", limits(None, None), fields(101), 502),
        ("299 fields", limits(None, number(300)), fields(299), 200),
        ("6 fields of 5", limits(None, number(5)), fields(6), 502),
    ] {
        let mesh = Mesh::start(&[answering(more.clone())], |setup| of_responses(setup, common));
        let answer = mesh.client().get("/");
        assert_eq!(answer.status(), status, "{name}");
        assert!(status != 200 || answer.head.contains(&more), "{name}: all of it arrives");
    }
}

#[test]
fn responses_of_http2_above_the_limits_are_refused_whole() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let (mut first, mut second) = (mesh.client(), Wire::client(&mesh));
    first.send("GET /first HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    server.answer(1, b"first");
    assert_eq!(first.message().text(), "first");
    let above = |status: &'static str| [vec![(":status", status)], vec![("x-many", "v"); 101]].concat();
    for (index, (name, status, flags)) in [
        ("a whole response", "200", END_STREAM),
        ("the begin of a response", "200", 0),
        ("an interim response", "103", 0),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * index as u32 + 1;
        for (path, in_http2) in [(format!("/{index}/1"), false), (format!("/{index}/2"), true)] {
            if in_http2 {
                second.request(stream, "GET", &path, &[], true);
            } else {
                first.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
            }
            let asked = server.next();
            server.send(HEADERS, END_HEADERS | flags, asked.stream, &block(&above(status)));
            assert_eq!(server.expect(RST_STREAM, asked.stream).code(), PROTOCOL_ERROR, "{name}");
            if in_http2 {
                second.expect(HEADERS, stream);
                second.body(stream);
            } else {
                assert_eq!(first.message().status(), 502, "{name}");
            }
            mesh.expect_record(&path, 502, "UPE", "upstream_reset_before_response_started{protocol_error}");
        }
    }
    // Trailers come too late for another answer; this one is not made to look whole.
    first.send("GET /trailers HTTP/1.1\r\nhost: up\r\n\r\n");
    let asked = server.next().stream;
    server.send(HEADERS, END_HEADERS, asked, &[STATUS_200]);
    server.send(DATA, 0, asked, b"body");
    assert_eq!(first.head().status(), 200);
    first.expect(b"4\r\nbody\r\n");
    server.send(HEADERS, END_HEADERS | END_STREAM, asked, &block(&vec![("x-many", "v"); 101]));
    assert_eq!(server.expect(RST_STREAM, asked).code(), PROTOCOL_ERROR);
    first.expect_end();
}

#[test]
fn no_more_of_a_request_is_kept_for_another_try_than_either_side_allows() {
    let body = content(40_000);
    for (listener, cluster, repeated) in [
        (None, None, true),
        (number(16 * 1024), None, false),
        (None, number(16 * 1024), false),
        (number(0), number(0), true),
    ] {
        let upstream = Upstream::new();
        let mesh = Mesh::start(&[upstream.address()], |setup| {
            setup.action().retry_policy = Some(retries("5xx", 1));
            setup.listener.per_connection_buffer_limit_bytes = listener;
            setup.cluster.per_connection_buffer_limit_bytes = cluster;
        });
        let mut client = mesh.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: {}\r\n\r\n", body.len()));
        client.send(&body);
        let mut peer = upstream.accept();
        assert!(peer.message().body == body, "small buffers carry large bodies");
        peer.send("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
        if repeated {
            let mut peer = upstream.accept();
            assert!(peer.message().body == body);
            peer.send(ok("again"));
            assert_eq!(client.message().text(), "again");
        } else {
            assert_eq!(client.message().status(), 503, "{listener:?} {cluster:?}");
        }
    }
}
