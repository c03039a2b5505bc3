//! HTTP/2 on either side, frame by frame: translation to and from HTTP/1.1, shared connections, and their ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use weft_protos::envoy::config::core::v3::{Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings};
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::CodecType;
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options as options;

use crate::kit::certificates::{Authority, OTHER, WEB, secrets, server_for, upstream_for};
use crate::kit::frames::*;
use crate::kit::mesh::{BACK_PRESSURE_BYTES, expect_passed};
use crate::kit::peer::{ok, queued_bytes};
use crate::kit::resources::{retries, seconds};
use crate::kit::{Mesh, Peer, Upstream, content, until};

#[test]
fn requests_of_one_connection_reach_an_upstream_of_http1() {
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(request.start_line()))], |_| {});
    let mut client = Wire::client(&mesh);
    for stream in [1, 3, 5] {
        client.request(stream, "GET", &format!("/{stream}"), &[], true);
        assert_eq!(client.expect(HEADERS, stream).payload[0], STATUS_200);
        assert_eq!(client.body(stream).0, format!("GET /{stream} HTTP/1.1").as_bytes());
    }
    assert_eq!(mesh.record("/3")["protocol"], "HTTP/2");
    assert_eq!(mesh.metric("envoy_http_downstream_cx_total", &[]), 1.0);
}

#[test]
fn a_body_of_unknown_length_and_trailers_pass_both_ways() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = Wire::client(&mesh);
    client.request(1, "POST", "/", &[("te", "trailers")], false);
    client.send(DATA, 0, 1, b"hel");
    client.send(DATA, 0, 1, b"lo");
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-sum", "5")]));
    let mut peer = upstream.accept();
    let request = peer.message();
    assert_eq!((request.text().as_str(), request.trailers.as_str()), ("hello", "x-sum: 5\r\n"));
    assert_eq!((request.get("transfer-encoding"), request.get("te")), (Some("chunked"), Some("trailers")));
    peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-end: 1\r\n\r\n");
    client.expect(HEADERS, 1);
    let (body, end) = client.body(1);
    let end = end.expect("trailers end the stream");
    assert_eq!((body.as_slice(), end.kind, end.flags & END_STREAM), (&b"abc"[..], HEADERS, END_STREAM));
}

#[test]
fn trailers_after_a_body_of_known_length_pass_both_ways() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut client = Wire::client(&mesh);
    client.request(1, "POST", "/", &[("te", "trailers"), ("content-length", "5")], false);
    client.send(DATA, 0, 1, b"hello");
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    // The proxy has handed on the whole body before it can know of trailers.
    let data = server.expect(DATA, 1);
    assert_eq!((data.payload.as_slice(), data.flags & END_STREAM), (&b"hello"[..], 0));
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-sum", "5")]));
    assert_eq!(server.expect(HEADERS, 1).flags & END_STREAM, END_STREAM);
    // Here they are at hand together.
    let (head, end) = (block(&[(":status", "200"), ("content-length", "3")]), block(&[("grpc-status", "0")]));
    server.send(HEADERS, END_HEADERS, 1, &head);
    server.send(DATA, 0, 1, b"abc");
    server.send(HEADERS, END_HEADERS | END_STREAM, 1, &end);
    client.expect(HEADERS, 1);
    let (body, end) = client.body(1);
    let end = end.expect("trailers end the stream");
    assert_eq!((body.as_slice(), end.kind, end.flags & END_STREAM), (&b"abc"[..], HEADERS, END_STREAM));
}

#[test]
fn clients_of_both_versions_share_one_connection_to_an_upstream_of_http2() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut first = mesh.client();
    first.send("POST /1 HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n");
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    assert_eq!(server.body(1).0, b"ab");
    let mut second = Wire::client(&mesh);
    second.request(1, "GET", "/2", &[], true);
    server.expect(HEADERS, 3);
    server.answer(3, b"second");
    server.answer(1, b"first");
    second.expect(HEADERS, 1);
    assert_eq!(second.body(1).0, b"second");
    assert_eq!(first.message().text(), "first");
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_total", &[]), 1.0);
}

#[test]
fn a_cluster_that_names_its_version_does_not_ask_by_alpn() {
    use options::explicit_http_config::ProtocolConfig;
    let authority = Authority::new();
    for (protocol, is_http2) in [
        (Some(explicit(ProtocolConfig::HttpProtocolOptions(Default::default()))), false),
        (None, false),
        (Some(options::UpstreamProtocolOptions::AutoConfig(Default::default())), true),
    ] {
        let peer = Upstream::new();
        let mesh = Mesh::start(&[peer.address()], |setup| {
            setup.cluster.transport_socket = upstream_for(&[OTHER], &["h2", "http/1.1"]);
            setup.more = secrets(&authority.identity(WEB), &authority);
            if let Some(protocol) = protocol {
                speak(setup, protocol);
            }
        });
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let socket = server_for(peer.accept_socket(), &authority, &authority.identity(OTHER), &["h2", "http/1.1"]);
        let mut peer = Peer::over(socket);
        if is_http2 {
            let mut server = Wire::server(peer, &[]);
            server.expect(HEADERS, 1);
            server.answer(1, b"two");
        } else {
            assert_eq!(peer.message().start_line(), "GET / HTTP/1.1");
            peer.send(ok("one"));
        }
        assert_eq!(client.message().text(), if is_http2 { "two" } else { "one" });
    }
}

/// A client of HTTP/1.1 and the upstream's end of the connection that its first request, `GET /1`, has made.
fn after_one(mesh: &Mesh, upstream: &Upstream) -> (Peer, Wire) {
    let mut client = mesh.client();
    client.send("GET /1 HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    server.answer(1, b"one");
    assert_eq!(client.message().text(), "one");
    (client, server)
}

#[test]
fn a_stream_that_was_refused_is_tried_again() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let (mut client, mut server) = after_one(&mesh, &upstream);
    // A POST: not to be repeated, unless the upstream says that it has not looked at it.
    for (number, going_away) in [(2, false), (3, true)] {
        client.send(format!("POST /{number} HTTP/1.1\r\nhost: up\r\ncontent-length: 2\r\n\r\nhi"));
        let stream = server.next().stream;
        server.body(stream);
        if going_away {
            let last = stream - 2;
            server.send(GOAWAY, 0, 0, &[last.to_be_bytes(), 0u32.to_be_bytes()].concat());
        } else {
            server.send(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes());
        }
        let mut other = Wire::server(upstream.accept(), &[]);
        other.expect(HEADERS, 1);
        assert_eq!(other.body(1).0, b"hi");
        other.answer(1, b"again");
        assert_eq!(client.message().text(), "again");
        server = other;
        // The next round needs a connection that has carried a request before.
        client.send("GET /between HTTP/1.1\r\nhost: up\r\n\r\n");
        let stream = server.next().stream;
        server.answer(stream, b"between");
        assert_eq!(client.message().text(), "between");
    }
}

#[test]
fn a_stream_that_was_reset_is_not_tried_again_without_a_policy() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let (mut client, mut server) = after_one(&mesh, &upstream);
    client.send("GET /2 HTTP/1.1\r\nhost: up\r\n\r\n");
    server.expect(HEADERS, 3);
    server.send(RST_STREAM, 0, 3, &INTERNAL_ERROR.to_be_bytes());
    assert_eq!(client.message().status(), 503);
    mesh.expect_record("/2", 503, "UR", "upstream_reset_before_response_started{remote_reset}");
    // Nothing was wrong with the connection.
    client.send("GET /3 HTTP/1.1\r\nhost: up\r\n\r\n");
    server.expect(HEADERS, 5);
    server.answer(5, b"three");
    assert_eq!(client.message().text(), "three");
    assert!(!upstream.has_visitor());
}

#[test]
fn a_stream_that_was_refused_twice_is_not_tried_a_third_time() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/1", &[], true);
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    server.answer(1, b"one");
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, b"one");
    // Two at once, which share the connection that takes the place of this one.
    client.request(3, "GET", "/3", &[], true);
    client.request(5, "GET", "/5", &[], true);
    server.expect(HEADERS, 3);
    server.expect(HEADERS, 5);
    server.send(GOAWAY, 0, 0, &[1u32.to_be_bytes(), 0u32.to_be_bytes()].concat());
    let mut other = Wire::server(upstream.accept(), &[]);
    other.expect(HEADERS, 1);
    other.expect(HEADERS, 3);
    other.send(RST_STREAM, 0, 3, &REFUSED_STREAM.to_be_bytes());
    let answered = client.next();
    assert_eq!(answered.kind, HEADERS, "{answered:?}");
    let path = format!("/{}", answered.stream);
    let record =
        mesh.expect_record(&path, 503, "UR", "upstream_reset_before_response_started{remote_refused_stream_reset}");
    assert_eq!(record["attempts"], 1);
    assert!(!upstream.has_visitor());
}

#[test]
fn the_end_of_a_first_stream_is_told_apart() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut client = mesh.client();
    // Each policy alone: whether the first stream of a connection is tried again, and what the record says if it is not.
    for (index, (on, code, repeated, details)) in [
        ("refused-stream", REFUSED_STREAM, true, ""),
        ("refused-stream", INTERNAL_ERROR, false, "remote_reset"),
        ("reset", INTERNAL_ERROR, true, ""),
        ("connect-failure", REFUSED_STREAM, false, "remote_refused_stream_reset"),
    ]
    .into_iter()
    .enumerate()
    {
        mesh.change(|setup| setup.action().retry_policy = Some(retries(on, 1)));
        client.send(format!("POST /{index} HTTP/1.1\r\nhost: up\r\ncontent-length: 2\r\n\r\nhi"));
        let mut server = Wire::server(upstream.accept(), &[]);
        server.expect(HEADERS, 1);
        server.body(1);
        server.send(RST_STREAM, 0, 1, &code.to_be_bytes());
        if repeated {
            let again = server.next().stream;
            assert_eq!(server.body(again).0, b"hi", "{on}");
            server.answer(again, b"again");
            assert_eq!(client.message().text(), "again", "{on}");
        } else {
            assert_eq!(client.message().status(), 503, "{on}");
            let details = format!("upstream_reset_before_response_started{{{details}}}");
            mesh.expect_record(&format!("/{index}"), 503, "UR", &details);
        }
        // The next round needs a new connection.
        server.send(GOAWAY, 0, 0, &[1u32.to_be_bytes(), 0u32.to_be_bytes()].concat());
        server.0.finish();
        server.0.rest();
    }
}

#[test]
fn a_client_that_gives_up_is_told_to_the_upstream() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/", &[], true);
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    client.send(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    assert_eq!(server.expect(RST_STREAM, 1).code(), CANCEL);
    mesh.expect_record("/", 0, "DC", "downstream_remote_disconnect");
}

#[test]
fn a_client_that_goes_away_behind_an_upload_that_is_stuck_is_told_to_the_upstream() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        http2_upstream(setup);
        setup.action().timeout = Some(seconds(0.0));
    });
    let window = 65_535;
    // It gives no more of the window, so something of the body waits in the proxy.
    let take_in = |server: &mut Wire, is_answered: bool| {
        let stream = server.next().stream;
        if is_answered {
            server.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
        }
        let mut received = 0;
        while received < window {
            received += server.expect(DATA, stream).payload.len();
        }
        stream
    };
    for (path, is_answered) in [("/unanswered", false), ("/answered", true)] {
        let mut client = Wire::client(&mesh);
        client.request(1, "POST", path, &[], false);
        for piece in content(2 * window).chunks(16_384) {
            client.send(DATA, 0, 1, piece);
        }
        let mut server = Wire::server(upstream.accept(), &[]);
        let stream = take_in(&mut server, is_answered);
        if is_answered {
            client.expect(HEADERS, 1);
        }
        client.send(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
        assert_eq!(server.expect(RST_STREAM, stream).code(), CANCEL);
        let status = if is_answered { 200 } else { 0 };
        mesh.expect_record(path, status, "DC", "downstream_remote_disconnect");
        // The same of a whole connection, by a reset and in order.
        for by_reset in [true, false] {
            let path = format!("{path}/{by_reset}");
            let mut client = mesh.client();
            client.send(format!("POST {path} HTTP/1.1\r\nhost: up\r\ncontent-length: 1000000\r\n\r\n"));
            client.send(content(2 * window));
            server.send(WINDOW_UPDATE, 0, 0, &(window as u32).to_be_bytes());
            let stream = take_in(&mut server, is_answered);
            if is_answered {
                client.head();
            }
            if by_reset {
                client.reset();
            } else {
                client.finish();
            }
            assert_eq!(server.expect(RST_STREAM, stream).code(), CANCEL);
            mesh.expect_record(&path, status, "DC", "downstream_remote_disconnect");
        }
        server.send(GOAWAY, 0, 0, &[stream.to_be_bytes(), 0u32.to_be_bytes()].concat());
        server.0.finish();
        server.0.rest();
    }
}

#[test]
fn a_reader_that_does_not_read_costs_no_memory() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(0.0)));
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/", &[], true);
    let mut peer = upstream.accept();
    peer.message();
    let before = mesh.resident_bytes();
    let length = 64 << 20;
    peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"));
    let sending = std::thread::spawn(move || {
        peer.send(content(length));
        peer
    });
    client.expect(HEADERS, 1);
    let mut received = 0;
    while received < 65_535 {
        received += client.expect(DATA, 1).payload.len();
    }
    assert_eq!(received, 65_535, "the client's window");
    let grown = mesh.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    // Reading on gets everything, byte for byte.
    let open = (1u32 << 30).to_be_bytes();
    client.send(WINDOW_UPDATE, 0, 0, &open);
    client.send(WINDOW_UPDATE, 0, 1, &open);
    let (rest, _) = client.body(1);
    assert!(rest == content(length)[received..], "the body is not the upstream's");
    sending.join().unwrap();
}

/// How an upstream does not take in what it is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Standstill {
    /// It speaks HTTP/1.1 and reads nothing.
    Http1,
    /// It reads, and gives no more than the window that streams begin with.
    NoWindow,
    /// It gives a window for everything, and reads nothing.
    NoReading,
}

#[test]
fn an_upload_to_an_upstream_that_does_not_take_it_in_costs_no_memory() {
    let body = content(BACK_PRESSURE_BYTES);
    for (is_http2, standstill) in [
        (true, Standstill::Http1),
        (true, Standstill::NoWindow),
        (true, Standstill::NoReading),
        (false, Standstill::NoWindow),
        (false, Standstill::NoReading),
    ] {
        let upstream = Upstream::new();
        let mesh = Mesh::start(&[upstream.address()], |setup| {
            if standstill != Standstill::Http1 {
                http2_upstream(setup);
            }
            setup.action().timeout = Some(seconds(0.0));
        });
        let before = mesh.resident_bytes();
        let sent = AtomicUsize::new(0);
        let upload = if is_http2 { upload } else { upload_by_http1 };
        std::thread::scope(|scope| {
            let client = scope.spawn(|| upload(&mesh, &body, &sent));
            let mut peer = upstream.accept();
            let server = match standstill {
                Standstill::Http1 => {
                    peer.head();
                    Err(peer)
                }
                Standstill::NoWindow => Ok(Wire::server(peer, &[])),
                Standstill::NoReading => {
                    // SETTINGS_INITIAL_WINDOW_SIZE
                    let mut server = Wire::server(peer, &[&[0, 4], &OPEN[..]].concat());
                    server.send(WINDOW_UPDATE, 0, 0, &OPEN);
                    Ok(server)
                }
            };
            let mut last = (0, Instant::now());
            until("the upload stands still", || {
                let sent = sent.load(Ordering::Relaxed);
                if sent != last.0 {
                    last = (sent, Instant::now());
                }
                (sent > 0 && last.1.elapsed() > Duration::from_millis(100)).then_some(())
            });
            assert!(last.0 < body.len() && !client.is_finished(), "{is_http2}, {standstill:?}: nobody was stopped");
            let grown = mesh.resident_bytes().saturating_sub(before);
            assert!(grown < 8 << 20, "{is_http2}, {standstill:?}: {grown} bytes more");
            let received = match server {
                Err(mut peer) => {
                    let received = peer.take(body.len());
                    peer.send(ok(""));
                    received
                }
                Ok(mut server) => {
                    server.expect(HEADERS, 1);
                    if standstill == Standstill::NoWindow {
                        server.send(WINDOW_UPDATE, 0, 0, &OPEN);
                        server.send(WINDOW_UPDATE, 0, 1, &OPEN);
                    }
                    let (received, _) = server.body(1);
                    server.answer(1, b"");
                    received
                }
            };
            assert!(received == body, "{is_http2}, {standstill:?}: it is not what was sent");
            client.join().unwrap();
        });
    }
}

/// A window for everything.
const OPEN: [u8; 4] = (1u32 << 30).to_be_bytes();

/// Send a request with *body*, as far as the proxy's windows allow, and read its answer; *sent* counts.
fn upload(mesh: &Mesh, body: &[u8], sent: &AtomicUsize) {
    let mut client = Wire::client(mesh);
    client.request(1, "POST", "/", &[("content-length", &body.len().to_string())], false);
    let (mut of_all, mut of_stream) = (65_535, 65_535);
    let mut rest = body;
    while !rest.is_empty() {
        let room = i64::min(of_all, of_stream).clamp(0, 16_384);
        if room > 0 {
            let (piece, more) = rest.split_at(rest.len().min(room as usize));
            client.send(DATA, if more.is_empty() { END_STREAM } else { 0 }, 1, piece);
            sent.fetch_add(piece.len(), Ordering::Relaxed);
            (of_all, of_stream, rest) = (of_all - piece.len() as i64, of_stream - piece.len() as i64, more);
            continue;
        }
        let frame = client.frame();
        let value = |at: usize| i64::from(u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap()));
        match (frame.kind, frame.stream) {
            (WINDOW_UPDATE, 0) => of_all += value(0),
            (WINDOW_UPDATE, _) => of_stream += value(0),
            (SETTINGS, _) => {
                let initial = (0..frame.payload.len()).step_by(6).find(|at| frame.payload[at + 1] == 4);
                of_stream += initial.map_or(0, |at| value(at + 2) - 65_535);
            }
            _ => panic!("{frame:?}"),
        }
    }
    assert_eq!(client.expect(HEADERS, 1).payload[0], STATUS_200);
}

/// The same in HTTP/1.1, where the sockets alone say stop.
fn upload_by_http1(mesh: &Mesh, body: &[u8], sent: &AtomicUsize) {
    let mut client = mesh.client();
    client.send(format!("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: {}\r\n\r\n", body.len()));
    for piece in body.chunks(16_384) {
        client.send(piece);
        sent.fetch_add(piece.len(), Ordering::Relaxed);
    }
    assert_eq!(client.message().status(), 200);
}

#[test]
fn interim_responses_that_nobody_reads_end_their_stream() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut reader = mesh.client();
    reader.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut server = Wire::server(upstream.accept(), &[]);
    let stream = server.next().stream;
    let hint = "h".repeat(120);
    let fields: Vec<(&str, &str)> =
        [(":status", "103")].into_iter().chain((0..60).map(|_| ("x-hint", &*hint))).collect();
    let hints = block(&fields);
    // Far more than all buffers between here and a client that does not read.
    for _ in 0..4000 {
        server.send(HEADERS, END_HEADERS, stream, &hints);
    }
    let reset = server.expect(RST_STREAM, stream);
    assert_eq!(reset.code(), ENHANCE_YOUR_CALM);
    assert!(mesh.resident_bytes() < 64 << 20, "{}", mesh.resident_bytes());
}

/// An interim response of which nothing is in a table of its receiver.
fn hint(index: usize, length: usize) -> String {
    format!("HTTP/1.1 103 Early Hints\r\nx-hint: {index}{}\r\n\r\n", "h".repeat(length))
}

#[test]
fn interim_responses_wait_for_a_client_that_does_not_read() {
    const HINTS: usize = 12_000;
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(0.0)));
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/", &[], true);
    let mut peer = upstream.accept();
    peer.message();
    let before = mesh.resident_bytes();
    // Far more than the sockets' buffers hold.
    let hints: String = (0..HINTS).map(|index| hint(index, 6000)).collect();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| peer.send(&hints));
        let mut last = (0, Instant::now());
        until("the transfer stands still", || {
            let queued = queued_bytes(client.0.socket());
            if queued != last.0 {
                last = (queued, Instant::now());
            }
            (last.0 > 0 && last.1.elapsed() > Duration::from_millis(200)).then_some(())
        });
        let grown = mesh.resident_bytes().saturating_sub(before);
        assert!(grown < 8 << 20, "{grown} bytes more");
        assert!(!sender.is_finished());
        for _ in 0..HINTS {
            client.expect(HEADERS, 1);
        }
        sender.join().unwrap();
    });
    peer.send(ok("done"));
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, b"done");
}

#[test]
fn a_client_that_does_not_read_interim_responses_has_no_more_time_than_others() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(1.0)));
    let hints = hint(0, 60_000).repeat(20);
    for (path, in_http2) in [("/1", false), ("/2", true)] {
        let mut client = if in_http2 { Wire::client(&mesh) } else { Wire(mesh.client()) };
        let began = Instant::now();
        if in_http2 {
            client.request(1, "GET", path, &[], true);
        } else {
            client.0.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
        }
        let mut peer = upstream.accept();
        peer.message();
        // The proxy closes the connection: it has given up.
        until("the end", || peer.try_send(&hints).is_err().then_some(()));
        expect_passed(began, Duration::from_millis(1000));
        drop(client);
        let record = mesh.record(path);
        // A client of HTTP/1 can be told only if it has taken the last of them whole.
        let is_told = record["response_flags"] == "UT" && record["response_code"] == 504;
        assert!(is_told || !in_http2 && record["response_flags"] == "DC", "{record}");
    }
}

#[test]
fn interim_responses_do_not_keep_a_request_alive() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.action().timeout = Some(seconds(0.0));
        setup.manager.stream_idle_timeout = Some(seconds(0.5));
    });
    let mut client = mesh.client();
    let began = Instant::now();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    until("the end", || {
        client.take_arrived();
        client.arrived();
        peer.try_send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n").is_err().then_some(())
    });
    expect_passed(began, Duration::from_millis(500));
    mesh.expect_record("/", 504, "SI", "stream_idle_timeout");
}

#[test]
fn what_a_client_begins_and_does_not_finish_ends_its_connection() {
    let mut mesh = Mesh::start(&[Upstream::saying("x")], |setup| {
        setup.manager.request_headers_timeout = Some(seconds(0.3));
        // Else nobody waits for a preface but whoever serves HTTP/1.
        setup.manager.codec_type = CodecType::Http2 as i32;
    });
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let fields = block(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "up")]);
    let (length, half) = (fields.len() as u8, &fields[..10]);
    let settings: &[u8] = &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    let block_without_end: &[u8] = &[&[0, 0, length, HEADERS, END_STREAM, 0, 0, 0, 1], &*fields].concat();
    let half_a_frame: &[u8] = &[&[0, 0, length, HEADERS, END_STREAM | END_HEADERS, 0, 0, 0, 1], half].concat();
    let continuation: &[u8] = &[0, 0, 1, CONTINUATION, 0, 0, 0, 0, 1, 0];
    for (name, parts, trickle) in [
        ("no byte", vec![], &b""[..]),
        ("half a preface", vec![&preface[..12]], b""),
        ("no settings", vec![&preface[..]], b""),
        ("a block without end", vec![preface, settings, block_without_end], b""),
        ("half a frame", vec![preface, settings, half_a_frame], b""),
        ("a block that only grows", vec![preface, settings, block_without_end], continuation),
    ] {
        let began = Instant::now();
        let mut client = Wire(mesh.client());
        client.0.send(parts.concat());
        // Frames that do not end the block win no time, however long they come.
        until("the end", || {
            client.0.try_send(trickle).unwrap();
            let is_over = |arrived: &[u8]| arrived.windows(6).any(|window| window == [GOAWAY, 0, 0, 0, 0, 0]);
            is_over(client.0.arrived()).then_some(())
        });
        let end = client.expect(GOAWAY, 0);
        assert_eq!(end.code(), ENHANCE_YOUR_CALM, "{name}");
        assert!(String::from_utf8_lossy(&end.payload).ends_with("takes too long"), "{name}: {end:?}");
        client.0.expect_end();
        expect_passed(began, Duration::from_millis(300));
    }
    // Who finishes what was begun has all the time that streams have.
    let mut client = Wire::client(&mesh);
    client.request(1, "POST", "/", &[], false);
    let sent = Instant::now();
    until("time passes", || (sent.elapsed() > Duration::from_millis(400)).then_some(()));
    client.send(DATA, END_STREAM, 1, b"x");
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, b"x");
    // Where both versions are spoken, a preface that stops is a request of HTTP/1 that stops.
    mesh.change(|setup| setup.manager.codec_type = CodecType::Auto as i32);
    let mut client = mesh.client();
    client.send(&preface[..12]);
    assert_eq!(client.message().status(), 408);
}

#[test]
fn rapid_resets_end_the_connection() {
    let mesh = Mesh::start(&[Upstream::saying("x")], |_| {});
    let mut client = Wire::client(&mesh);
    let mut bytes = Vec::new();
    for index in 0..5000u32 {
        let mut wire = |kind: u8, flags: u8, payload: &[u8]| {
            let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
            let [d, e, f, g] = (2 * index + 1).to_be_bytes();
            bytes.extend_from_slice(&[a, b, c, kind, flags, d, e, f, g]);
            bytes.extend_from_slice(payload);
        };
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "up")];
        wire(HEADERS, END_HEADERS | END_STREAM, &block(&fields));
        wire(RST_STREAM, 0, &CANCEL.to_be_bytes());
    }
    // The proxy may close before it has read all of it.
    let _ = client.0.try_send(&bytes);
    loop {
        let frame = client.next();
        if frame.kind == GOAWAY {
            assert_eq!(frame.code(), ENHANCE_YOUR_CALM);
            break;
        }
    }
    assert_eq!(mesh.client().get("/").text(), "x", "others are served");
}

#[test]
fn draining_finishes_what_was_begun() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/", &[], true);
    let mut peer = upstream.accept();
    peer.message();
    mesh.signal(libc::SIGTERM);
    let announced = client.expect(GOAWAY, 0);
    assert_eq!(announced.payload[..4], [0x7f, 0xff, 0xff, 0xff], "requests on their way are still taken");
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlast");
    let mut frame = client.next();
    if frame.kind == GOAWAY {
        frame = client.next();
    }
    assert_eq!((frame.kind, frame.stream), (HEADERS, 1));
    assert!(mesh.wait_exit().success());
}

#[test]
fn websocket_from_http2_to_http1() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        allow_extended_connect(setup);
        setup.allow_websocket();
    });
    let mut client = Wire::client(&mesh);
    let more = [(":protocol", "websocket"), ("sec-websocket-version", "13")];
    let mut fields = vec![(":method", "CONNECT"), (":scheme", "http"), (":path", "/chat"), (":authority", "up")];
    fields.splice(0..0, [more[0]]);
    fields.push(more[1]);
    client.send(HEADERS, END_HEADERS, 1, &block(&fields));
    let mut peer = upstream.accept();
    let request = peer.head();
    assert_eq!(request.start_line(), "GET /chat HTTP/1.1");
    assert_eq!((request.get("upgrade"), request.get("connection")), (Some("websocket"), Some("upgrade")));
    assert_eq!(request.get("sec-websocket-key").map(str::len), Some(24));
    // Of the key that is asked for below only the proxy knows the answer, so a wrong one is refused.
    peer.send(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: no\r\n\r\n",
    );
    let refused = client.expect(HEADERS, 1);
    assert_ne!(refused.payload[0], STATUS_200);
}

#[test]
fn websocket_from_http1_to_http2() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        http2_upstream(setup);
        setup.allow_websocket();
    });
    let mut client = mesh.client();
    client.send(
        "GET /chat HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    // ENABLE_CONNECT_PROTOCOL (RFC 8441 3)
    let mut server = Wire::server(upstream.accept(), &[0, 8, 0, 0, 0, 1]);
    server.expect(HEADERS, 1);
    server.send(HEADERS, END_HEADERS, 1, &[STATUS_200]);
    let answer = client.head();
    assert_eq!(answer.start_line(), "HTTP/1.1 101 Switching Protocols");
    assert_eq!(answer.get("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    client.send("to the server");
    assert_eq!(server.expect(DATA, 1).payload, b"to the server");
    server.send(DATA, END_STREAM, 1, b"to the client");
    client.expect("to the client");
    client.finish();
    assert_eq!(server.body(1).0, b"");
}

/// An extended CONNECT has no method beside its own, and no body in front of the protocol (RFC 8441 4).
#[test]
fn an_upgrade_that_http2_cannot_say_is_passed_over() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        http2_upstream(setup);
        setup.allow_websocket();
    });
    let upgrade = "host: up\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    let mut server: Option<Wire> = None;
    for (stream, (request, body)) in (1..).step_by(2).zip([
        (format!("POST /chat HTTP/1.1\r\n{upgrade}content-length: 5\r\n\r\nhello"), "hello"),
        (format!("POST /chat HTTP/1.1\r\n{upgrade}content-length: 0\r\n\r\n"), ""),
        (format!("GET /chat HTTP/1.1\r\n{upgrade}content-length: 5\r\n\r\nhello"), "hello"),
    ]) {
        let mut client = mesh.client();
        client.send(&request);
        let server = server.get_or_insert_with(|| Wire::server(upstream.accept(), &[0, 8, 0, 0, 0, 1]));
        let head = server.expect(HEADERS, stream);
        assert_eq!(head.flags & END_STREAM == 0, !body.is_empty(), "{request}");
        if !body.is_empty() {
            assert_eq!(server.body(stream).0, body.as_bytes(), "{request}");
        }
        server.answer(stream, b"a page");
        let answer = client.message();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "a page"), "{request}");
    }
}

#[test]
fn a_caller_of_grpc_is_told_of_errors_in_grpc() {
    let mesh = Mesh::start(&[], |_| {});
    let mut client = Wire::client(&mesh);
    client.request(1, "POST", "/service/method", &[("content-type", "application/grpc")], false);
    let answer = client.expect(HEADERS, 1);
    assert_eq!((answer.payload[0], answer.flags & END_STREAM), (STATUS_200, END_STREAM));
    let record = mesh.record("/service/method");
    assert_eq!((&record["response_code"], &record["response_flags"]), (&200.into(), &"UH".into()));
    let labels = ["request_protocol=\"grpc\"", "response_flags=\"UH\""];
    assert_eq!(mesh.metric("istio_requests_total", &labels), 1.0);
}

/// PINGs soon after another, and little patience for their answers.
fn keepalive() -> Http2ProtocolOptions {
    let keepalive =
        KeepaliveSettings { interval: Some(seconds(0.1)), timeout: Some(seconds(2.0)), ..Default::default() };
    Http2ProtocolOptions { connection_keepalive: Some(keepalive), ..Default::default() }
}

#[test]
fn an_upstream_that_answers_no_ping_is_given_up() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| http2_upstream_with(setup, keepalive()));
    let (mut client, mut server) = after_one(&mesh, &upstream);
    // As long as it answers the connection stays.
    for _ in 0..3 {
        let payload = server.ping();
        server.send(PING, ACK, 0, &payload);
    }
    client.send("GET /2 HTTP/1.1\r\nhost: up\r\n\r\n");
    server.expect(HEADERS, 3);
    server.answer(3, b"two");
    assert_eq!(client.message().text(), "two");
    server.ping();
    server.0.rest();
    client.send("GET /3 HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    server.answer(1, b"three");
    assert_eq!(client.message().text(), "three");
}

#[test]
fn a_client_that_answers_no_ping_is_given_up() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        setup.manager.http2_protocol_options = Some(keepalive());
    });
    let mut client = Wire::client(&mesh);
    for _ in 0..3 {
        let payload = client.ping();
        client.send(PING, ACK, 0, &payload);
    }
    client.request(1, "GET", "/", &[], true);
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, b"hello");
    client.ping();
    client.0.rest();
}

#[test]
fn a_connection_that_lasts_too_long_ends_in_good_order() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        setup.manager.common_http_protocol_options =
            Some(HttpProtocolOptions { max_connection_duration: Some(seconds(1.0)), ..Default::default() });
    });
    let began = Instant::now();
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/", &[], true);
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, b"hello");
    let goaway = client.expect(GOAWAY, 0);
    assert_eq!(goaway.code(), 0);
    expect_passed(began, Duration::from_millis(1000));
    // It is told before it is cut off: what it has sent meanwhile is answered.
    client.request(3, "GET", "/late", &[], true);
    client.expect(HEADERS, 3);
    assert_eq!(client.body(3).0, b"hello");
}

#[test]
fn a_client_that_says_goodbye_gets_the_answers_to_what_it_has_asked() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/", &[], true);
    let mut peer = upstream.accept();
    peer.message();
    // Its number is that of the last stream which the server has begun (RFC 9113 6.8): there is none.
    client.send(GOAWAY, 0, 0, &[0; 8]);
    client.send(PING, 0, 0, b"heard it");
    while client.frame().payload != b"heard it" {}
    peer.send(ok("late"));
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, b"late");
}

#[test]
fn a_shared_connection_of_a_cluster_that_was_replaced_closes_after_its_last_answer() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut server = Wire::server(upstream.accept(), &[]);
    let stream = server.next().stream;
    // What it has to say to our settings it says before this.
    server.send(PING, 0, 0, b"settled?");
    while server.frame().payload != b"settled?" {}
    mesh.change(|setup| setup.cluster.connect_timeout = Some(seconds(7.0)));
    server.expect(GOAWAY, 0);
    server.answer(stream, b"late");
    assert_eq!(client.message().text(), "late");
    server.0.expect_end();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut other = Wire::server(upstream.accept(), &[]);
    let stream = other.next().stream;
    other.answer(stream, b"again");
    assert_eq!(client.message().text(), "again");
}
