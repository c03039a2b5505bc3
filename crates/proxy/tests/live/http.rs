//! Requests and answers of HTTP/1.1 (RFC 9110, RFC 9112), as a client and an upstream see them.

use weft_protos::envoy::config::core::v3::Http1ProtocolOptions;
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;

use crate::kit::frames::{explicit, speak};
use crate::kit::mesh::BACK_PRESSURE_BYTES;
use crate::kit::peer::{End, SWITCHED, WEBSOCKET, ok};
use crate::kit::resources::{number, retries, seconds};
use crate::kit::{Mesh, Peer, Setup, Upstream, content, until};

#[test]
fn one_connection_carries_many_requests() {
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(request.start_line()))], |_| {});
    let mut client = mesh.client();
    for number in 0..50 {
        let path = format!("/{number}");
        assert_eq!(client.get(&path).text(), format!("GET {path} HTTP/1.1"));
    }
    assert_eq!(mesh.metric("envoy_http_downstream_cx_total", &[]), 1.0);
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_total", &[]), 1.0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(request.start_line()))], |_| {});
    let mut client = mesh.client();
    let requests: String = (0..100).map(|number| format!("GET /{number} HTTP/1.1\r\nhost: up\r\n\r\n")).collect();
    client.send(requests);
    for number in 0..100 {
        assert_eq!(client.message().text(), format!("GET /{number} HTTP/1.1"));
    }
}

#[test]
fn a_pipelined_request_follows_a_body() {
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(&request.text()))], |_| {});
    let mut client = mesh.client();
    client.send(
        "POST /a HTTP/1.1\r\nhost: up\r\ncontent-length: 3\r\n\r\nabcPOST /b HTTP/1.1\r\nhost: up\r\n\
         transfer-encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\nPOST /c HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\ng",
    );
    for body in ["abc", "def", "g"] {
        assert_eq!(client.message().text(), body);
    }
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(&request.text()))], |_| {});
    let mut client = mesh.client();
    let request =
        "POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nxy\r\n1\r\nz\r\n0\r\nt: 1\r\n\r\n";
    for byte in request.as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.message().text(), "xyz");
}

#[test]
fn chunks_with_extensions_and_trailers_pass_both_ways() {
    // Whether the configuration asks for trailers, and whether it says anything.
    for asked in [None, Some(false), Some(true)] {
        let options = asked.map(|enable_trailers| Http1ProtocolOptions { enable_trailers, ..Default::default() });
        let upstream = Upstream::new();
        let mesh = Mesh::start(&[upstream.address()], |setup| {
            setup.manager.http_protocol_options = options.clone();
            if let Some(options) = options {
                speak(setup, explicit(ProtocolConfig::HttpProtocolOptions(options)));
            }
        });
        let mut client = mesh.client();
        client.send(
            "POST / HTTP/1.1\r\nhost: up\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n\
             5;name=\"value\"\r\nhello\r\n0\r\nx-sum: 5\r\ncontent-length: 3\r\n\r\n",
        );
        let mut peer = upstream.accept();
        let request = peer.message();
        assert_eq!((request.text().as_str(), request.trailers.as_str()), ("hello", "x-sum: 5\r\n"), "{asked:?}");
        assert_eq!(request.get("te"), Some("trailers"));
        peer.send(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
             2;x\r\nab\r\n3\r\ncde\r\n0\r\nx-end: 1\r\n\r\n",
        );
        let answer = client.message();
        assert_eq!((answer.text().as_str(), answer.trailers.as_str()), ("abcde", "x-end: 1\r\n"), "{asked:?}");
    }
}

#[test]
fn an_answer_to_head_has_a_length_and_no_body() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("HEAD /a HTTP/1.1\r\nhost: up\r\n\r\nGET /b HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    assert_eq!(peer.message().start_line(), "HEAD /a HTTP/1.1");
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
    let answer = client.head();
    assert_eq!(answer.get("content-length"), Some("1000"));
    peer.message();
    peer.send(ok("b"));
    assert_eq!(client.message().text(), "b");
}

#[test]
fn early_hints_are_passed_on() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </b.css>\r\n\r\n");
    assert_eq!(client.head().get("link"), Some("</a.css>"));
    assert_eq!(client.head().get("link"), Some("</b.css>"));
    peer.send(ok("done"));
    assert_eq!(client.message().text(), "done");
}

#[test]
fn a_client_of_http_1_0_sees_no_interim_answer() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("POST / HTTP/1.0\r\nhost: up\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx");
    let mut peer = upstream.accept();
    assert_eq!(peer.message().get("expect"), None);
    peer.send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
    peer.send(ok("done"));
    let answer = client.message();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "done"));
}

#[test]
fn the_proxy_answers_100_continue_itself() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.send("body");
    let mut peer = upstream.accept();
    let request = peer.message();
    assert_eq!((request.get("expect"), request.text().as_str()), (None, "body"));
    // Another one from the upstream would be one too many.
    peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    peer.send(ok("done"));
    assert_eq!(client.message().status(), 200);
}

#[test]
fn the_upstream_answers_100_continue_if_the_manager_says_so() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.manager.proxy_100_continue = true);
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    let mut peer = upstream.accept();
    let request = peer.head();
    assert_eq!(request.get("expect"), Some("100-continue"));
    assert!(client.arrived().is_empty());
    peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.send("body");
    assert_eq!(peer.take(4), b"body");
    peer.send(ok("done"));
    assert_eq!(client.message().status(), 200);
}

#[test]
fn an_upstream_may_refuse_an_expectation() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.manager.proxy_100_continue = true);
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n");
    let answer = client.message();
    // The body may still come, and nobody knows whether; so the connection cannot carry another request.
    assert_eq!((answer.status(), answer.get("connection")), (417, Some("close")));
    client.expect_end();
}

#[test]
fn an_answer_may_come_before_the_request_ends() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 1000000\r\n\r\nbegin");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig");
    let answer = client.message();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "big"));
    assert_eq!(answer.get("connection"), Some("close"));
    client.expect_end();
    mesh.expect_record("/", 413, "-", "via_upstream");
}

#[test]
fn both_bodies_may_flow_at_once() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n");
    let mut peer = upstream.accept();
    peer.head();
    peer.expect("3\r\none\r\n");
    peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nONE\r\n");
    client.head();
    client.expect("3\r\nONE\r\n");
    client.send("3\r\ntwo\r\n");
    peer.expect("3\r\ntwo\r\n");
    peer.send("3\r\nTWO\r\n");
    client.expect("3\r\nTWO\r\n");
    client.send("0\r\n\r\n");
    peer.expect("0\r\n\r\n");
    peer.send("0\r\n\r\n");
    client.expect("0\r\n\r\n");
}

#[test]
fn an_absolute_target_replaces_the_host() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET http://other:81/a?b HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    let request = peer.message();
    assert_eq!((request.start_line(), request.all("host")), ("GET /a?b HTTP/1.1", vec!["other:81"]));
    peer.send(ok(""));
    client.message();
    client.send("GET http://other HTTP/1.1\r\nhost: up\r\n\r\n");
    assert_eq!(peer.message().start_line(), "GET / HTTP/1.1");
}

#[test]
fn an_answer_to_http_1_0_ends_with_the_connection() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET / HTTP/1.0\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    assert_eq!(peer.message().start_line(), "GET / HTTP/1.1");
    peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: 1\r\n\r\n");
    let answer = client.message();
    assert_eq!((answer.get("transfer-encoding"), answer.text().as_str()), (None, "abc"));
    assert_eq!(mesh.record("/")["protocol"], "HTTP/1.0");
}

#[test]
fn a_client_of_http_1_0_may_ask_for_keep_alive() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let mut client = mesh.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nhost: up\r\nconnection: keep-alive\r\n\r\n");
        let answer = client.message();
        assert_eq!((answer.get("connection"), answer.text().as_str()), (Some("keep-alive"), "hello"));
    }
}

#[test]
fn a_client_that_asks_for_close_gets_it() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n");
    assert_eq!(client.message().get("connection"), Some("close"));
    assert_eq!(client.expect_end(), End::Finished);
}

#[test]
fn hop_by_hop_and_nominated_fields_stop_here() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send(
        "GET / HTTP/1.1\r\nhost: up\r\nx-keep: 1\r\nX-Drop: 2\r\nconnection: x-drop, Keep-Alive\r\nconnection: x-other\r\n\
         keep-alive: 5\r\nproxy-connection: keep-alive\r\nx-other: 3\r\nte: gzip\r\nupgrade: h2c\r\n\r\n",
    );
    let mut peer = upstream.accept();
    let request = peer.message();
    assert_eq!(request.get("x-keep"), Some("1"));
    for name in ["x-drop", "x-other", "connection", "keep-alive", "proxy-connection", "te", "upgrade"] {
        assert_eq!(request.get(name), None, "{name}");
    }
    peer.send(
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: x-drop, Set-Cookie\r\nx-drop: 1\r\n\
         keep-alive: timeout=5\r\nx-keep: 2\r\nset-cookie: a=b\r\n\r\n",
    );
    let answer = client.message();
    assert_eq!(answer.get("x-keep"), Some("2"));
    assert_eq!(answer.get("set-cookie"), Some("a=b"), "it is not the upstream's connection's to take away");
    for name in ["x-drop", "connection", "keep-alive"] {
        assert_eq!(answer.get(name), None, "{name}");
    }
}

#[test]
fn large_bodies_pass_both_ways_unchanged() {
    for chunked in [false, true] {
        let upstream = Upstream::new();
        let mesh = Mesh::start(&[upstream.address()], |_| {});
        let body = content(5_000_000);
        let framed = |body: &[u8]| match chunked {
            false => [format!("content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat(),
            true => {
                let mut framed = b"transfer-encoding: chunked\r\n\r\n".to_vec();
                for (index, chunk) in body.chunks(77_777).enumerate() {
                    framed.extend(format!("{:x};n={index}\r\n", chunk.len()).as_bytes());
                    framed.extend_from_slice(chunk);
                    framed.extend_from_slice(b"\r\n");
                }
                framed.extend_from_slice(b"0\r\n\r\n");
                framed
            }
        };
        let mut client = mesh.client();
        let sent = [b"POST / HTTP/1.1\r\nhost: up\r\n", &framed(&body)[..]].concat();
        let answer = [b"HTTP/1.1 200 OK\r\n", &framed(&body)[..]].concat();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut peer = upstream.accept();
                assert!(peer.message().body == body);
                peer.send(&answer);
            });
            client.send(&sent);
            assert!(client.message().body == body);
        });
        let record = mesh.record("/");
        assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&5_000_000.into(), &5_000_000.into()));
    }
}

#[test]
fn a_client_that_does_not_read_costs_no_memory() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(0.0)));
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {BACK_PRESSURE_BYTES}\r\n\r\n"));
    client.head();
    mesh.expect_back_pressure(&mut peer, &mut client);
}

#[test]
fn an_upstream_that_does_not_read_costs_no_memory() {
    let upstream = Upstream::new();
    // What may be kept for another try is no more than that either.
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.action().retry_policy = Some(retries("5xx", 2));
        setup.action().timeout = Some(seconds(0.0));
    });
    let mut client = mesh.client();
    client.send(format!("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: {BACK_PRESSURE_BYTES}\r\n\r\n"));
    let mut peer = upstream.accept();
    peer.head();
    mesh.expect_back_pressure(&mut client, &mut peer);
    peer.send(ok("all of it"));
    assert_eq!(client.message().text(), "all of it");
}

#[test]
fn connect_is_refused() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("CONNECT up:80 HTTP/1.1\r\nhost: up:80\r\n\r\n");
    assert_eq!(client.message().status(), 403);
    assert!(!upstream.has_visitor());
}

#[test]
fn options_of_the_server_itself_pass() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.routes.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().path_specifier =
            Some(weft_protos::envoy::config::route::v3::route_match::PathSpecifier::Prefix(String::new()));
    });
    let mut client = mesh.client();
    client.send("OPTIONS * HTTP/1.1\r\nhost: up\r\n\r\n");
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut peer = upstream.accept();
            assert_eq!(peer.message().start_line(), "OPTIONS * HTTP/1.1");
            peer.send(ok(""));
        });
        client.message()
    });
    assert_eq!(answer.status(), 200);
}

/// RFC 9112 3.2.4: by its routes it is a request for `/`, and for the next hop one about the server.
#[test]
fn options_in_absolute_form_without_a_path_go_on_as_an_asterisk() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("OPTIONS http://up HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    assert_eq!(peer.message().start_line(), "OPTIONS * HTTP/1.1");
    peer.send(ok(""));
    assert_eq!(client.message().status(), 200);
    client.send("OPTIONS http://up/ HTTP/1.1\r\nhost: up\r\n\r\n");
    assert_eq!(peer.message().start_line(), "OPTIONS / HTTP/1.1");
    peer.send(ok(""));
    assert_eq!(client.message().status(), 200);
}

#[test]
fn an_allowed_upgrade_becomes_a_tunnel() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::allow_websocket);
    let mut client = mesh.client();
    // Frames may follow the request at once.
    client.send([WEBSOCKET.as_bytes(), b"early"].concat());
    let mut peer = upstream.accept();
    let request = peer.message();
    assert_eq!((request.get("connection"), request.get("upgrade")), (Some("upgrade"), Some("websocket")));
    peer.send([SWITCHED, "first"].concat());
    let answer = client.head();
    assert_eq!((answer.status(), answer.get("upgrade")), (101, Some("websocket")));
    client.expect("first");
    peer.expect("early");
    client.send("up");
    peer.expect("up");
    client.finish();
    assert_eq!(peer.expect_end(), End::Finished);
    peer.send("last");
    drop(peer);
    client.expect("last");
    client.expect_end();
    let record = mesh.expect_record("/chat", 101, "DC", "downstream_remote_disconnect");
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&7.into(), &9.into()));
}

/// RFC 9110 7.8: bytes of the other protocol stand behind the request, and not in the middle of its body.
#[test]
fn an_upstream_that_changes_the_protocol_early_gets_the_whole_request_first() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::allow_websocket);
    for (field, begin, rest, whole) in [
        ("transfer-encoding: chunked", "5\r\nhe", "llo\r\n0\r\n\r\n", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        ("content-length: 5", "he", "llo", "hello"),
    ] {
        let upgrade = "POST /chat HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
        let mut client = mesh.client();
        client.send(format!("{upgrade}{field}\r\n\r\n{begin}"));
        let mut peer = upstream.accept();
        assert_eq!(peer.head().get("upgrade"), Some("websocket"), "{field}");
        peer.send([SWITCHED, "first"].concat());
        client.send([rest, "up"].concat());
        assert_eq!(client.head().status(), 101, "{field}");
        client.expect("first");
        peer.expect([whole, "up"].concat());
    }
}

#[test]
fn an_upstream_that_changes_the_protocol_early_and_leaves_is_not_waited_for() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::allow_websocket);
    let mut client = mesh.client();
    client.send(
        "POST /chat HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\n\r\nhe",
    );
    let mut peer = upstream.accept();
    peer.head();
    peer.send(SWITCHED);
    drop(peer);
    assert_eq!(client.message().status(), 503);
}

/// Its body has been read when it is sent once more, and so it is no longer the client's.
#[test]
fn an_upgrade_with_a_body_has_it_on_a_second_try_too() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::allow_websocket);
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send(ok("kept"));
    assert_eq!(client.message().text(), "kept");
    client.send(
        "GET /chat HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\n\r\nhello",
    );
    assert_eq!(peer.message().text(), "hello");
    // The kept connection turns out to be no good, and the request is repeated.
    drop(peer);
    let mut peer = upstream.accept();
    assert_eq!(peer.message().text(), "hello");
    peer.send(SWITCHED);
    assert_eq!(client.head().status(), 101);
}

#[test]
fn a_reader_of_an_upgraded_connection_that_does_not_read_costs_no_memory() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::allow_websocket);
    let mut client = mesh.client();
    client.send(WEBSOCKET);
    let mut peer = upstream.accept();
    peer.message();
    peer.send(SWITCHED);
    client.head();
    mesh.expect_back_pressure(&mut peer, &mut client);
    mesh.expect_back_pressure(&mut client, &mut peer);
}

#[test]
fn an_upgrade_that_is_not_allowed_is_refused() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send(WEBSOCKET);
    assert_eq!(client.message().status(), 403);
    assert!(!upstream.has_visitor());
}

#[test]
fn an_upgrade_that_the_upstream_refuses_is_an_ordinary_answer() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], Setup::allow_websocket);
    let mut client = mesh.client();
    client.send(WEBSOCKET);
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno");
    assert_eq!(client.message().text(), "no");
    client.send("GET /next HTTP/1.1\r\nhost: up\r\n\r\n");
    assert_eq!(peer.message().start_line(), "GET /next HTTP/1.1");
    peer.send(ok("yes"));
    assert_eq!(client.message().text(), "yes");
}

#[test]
fn many_connections_are_served_at_once() {
    let mesh = Mesh::start(&[Upstream::answering(|request| ok(request.start_line()))], |_| {});
    let mut clients: Vec<Peer> = (0..300).map(|_| mesh.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET /{number} HTTP/1.1\r\nhost: up\r\n\r\n"));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.message().text(), format!("GET /{number} HTTP/1.1"));
    }
    assert_eq!(mesh.metric("envoy_http_downstream_cx_active", &[]), 300.0);
    drop(clients);
    until("all connections are closed", || (mesh.metric("envoy_http_downstream_cx_active", &[]) == 0.0).then_some(()));
}

#[test]
fn a_connection_closes_after_its_last_request() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        setup.manager.common_http_protocol_options = Some(weft_protos::envoy::config::core::v3::HttpProtocolOptions {
            max_requests_per_connection: number(2),
            ..Default::default()
        });
    });
    let mut client = mesh.client();
    assert_eq!(client.get("/").get("connection"), None);
    assert_eq!(client.get("/").get("connection"), Some("close"));
    assert_eq!(client.expect_end(), End::Finished);
}
