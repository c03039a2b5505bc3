//! What a client may ask of the proxy for its own request, if it is one's own: `x-envoy-retry-on` and its like.

use std::net::SocketAddr;

use weft_protos::envoy::config::core::v3::CidrRange;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::InternalAddressConfig;
use weft_protos::google::protobuf::BoolValue;

use crate::kit::resources::{number, retries, seconds};
use crate::kit::{Mesh, Peer, Setup, Upstream};

/// Headers that are obeyed.
const OBEYED: [&str; 7] = [
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
];

/// What a mesh is told of who is one's own.
type Place = fn(&mut Setup);

/// One's own are those at 10.0.0.0/8, which whoever connects says of itself.
fn inside(setup: &mut Setup) {
    setup.manager.internal_address_config = Some(InternalAddressConfig {
        cidr_ranges: vec![CidrRange { address_prefix: "10.0.0.0".into(), prefix_len: number(8) }],
        ..Default::default()
    });
}

/// The same, but whoever connects is not believed.
fn edge(setup: &mut Setup) {
    inside(setup);
    setup.manager.use_remote_address = Some(BoolValue { value: true });
}

/// An upstream that refuses every request, and says what reached it of the headers that are obeyed.
fn refusing() -> SocketAddr {
    Upstream::answering(|request| {
        let passed: Vec<&str> = OBEYED.into_iter().filter(|name| request.get(name).is_some()).collect();
        let passed = passed.join(" ");
        format!("HTTP/1.1 503 x\r\ncontent-length: {}\r\n\r\n{passed}", passed.len()).into_bytes()
    })
}

const OWN: &str = "x-forwarded-for: 10.1.2.3\r\n";

#[test]
fn one_s_own_say_when_they_are_tried_again_and_nobody_else() {
    let asking = "x-envoy-retry-on: 5xx\r\nx-envoy-retry-grpc-on: unavailable\r\nx-envoy-max-retries: 2\r\n\
                  x-envoy-retriable-status-codes: 404\r\nx-envoy-retriable-header-names: x-again\r\n\
                  x-envoy-upstream-rq-timeout-ms: 9000\r\nx-envoy-upstream-rq-per-try-timeout-ms: 8000\r\n";
    let own = format!("{OWN}{asking}");
    let through_another = format!("x-forwarded-for: 10.1.2.3, 10.1.2.4\r\n{asking}");
    let saying_so = format!("x-envoy-internal: true\r\n{asking}");
    let cases: [(Place, &str, i32); 8] = [
        (inside, &own, 3),
        (inside, OWN, 1),
        (inside, asking, 1),
        (inside, &saying_so, 1),
        (inside, &through_another, 1),
        (edge, &own, 1),
        (edge, asking, 1),
        // Nobody is one's own where nobody says who is.
        (|_| {}, &own, 1),
    ];
    for (place, sent, attempts) in cases {
        let mesh = Mesh::start(&[refusing()], place);
        let mut client = mesh.client();
        client.send(format!("GET / HTTP/1.1\r\nhost: up\r\n{sent}\r\n"));
        let answer = client.message();
        assert_eq!((answer.status(), answer.text().as_str()), (503, ""), "{sent}");
        let flags = if attempts == 1 { "-" } else { "URX" };
        assert_eq!(mesh.expect_record("/", 503, flags, "via_upstream")["attempts"], attempts, "{sent}");
    }
}

#[test]
fn one_s_own_ask_for_fewer_tries_than_the_route_has() {
    let mesh = Mesh::start(&[refusing()], |setup| {
        inside(setup);
        setup.action().retry_policy = Some(retries("5xx", 2));
    });
    let mut client = mesh.client();
    client.send(format!("GET / HTTP/1.1\r\nhost: up\r\n{OWN}x-envoy-max-retries: 0\r\n\r\n"));
    assert_eq!(client.message().status(), 503);
    assert_eq!(mesh.expect_record("/", 503, "URX", "via_upstream")["attempts"], 1);
    // The route's own holds for the next on the same connection.
    client.send(format!("GET /next HTTP/1.1\r\nhost: up\r\n{OWN}\r\n"));
    assert_eq!(client.message().status(), 503);
    assert_eq!(mesh.expect_record("/next", 503, "URX", "via_upstream")["attempts"], 3);
}

#[test]
fn one_s_own_say_how_long_they_wait() {
    // What is asked, what the upstream is told, which is silent, and how it ends.
    for (asked, told, flags, details, attempts) in [
        ("upstream-rq-timeout-ms: 200", "200", "UT", "response_timeout", 1),
        ("upstream-rq-per-try-timeout-ms: 200", "200", "UT", "upstream_per_try_timeout", 1),
        (
            "upstream-rq-per-try-timeout-ms: 200\r\nx-envoy-retry-on: reset",
            "200",
            "UT,URX",
            "upstream_per_try_timeout",
            2,
        ),
        // As long as the whole request: then it is none of a try.
        (
            "upstream-rq-per-try-timeout-ms: 300\r\nx-envoy-retry-on: reset\r\nx-envoy-upstream-rq-timeout-ms: 300",
            "300",
            "UT",
            "response_timeout",
            1,
        ),
    ] {
        let upstream = Upstream::new();
        let mesh = Mesh::start(&[upstream.address()], inside);
        let mut client = mesh.client();
        client.send(format!("GET / HTTP/1.1\r\nhost: up\r\n{OWN}x-envoy-{asked}\r\n\r\n"));
        let silent: Vec<Peer> = (0..attempts)
            .map(|_| {
                let mut peer = upstream.accept();
                assert_eq!(peer.message().get("x-envoy-expected-rq-timeout-ms"), Some(told), "{asked}");
                peer
            })
            .collect();
        assert_eq!(client.message().status(), 504, "{asked}");
        assert_eq!(mesh.expect_record("/", 504, flags, details)["attempts"], attempts, "{asked}");
        drop(silent);
    }
}

#[test]
fn one_s_own_wait_longer_than_the_route_lets_others() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        inside(setup);
        setup.action().timeout = Some(seconds(0.1));
    });
    for (asked, told) in [("5000", Some("5000")), ("0", None)] {
        let mut client = mesh.client();
        client.send(format!("GET / HTTP/1.1\r\nhost: up\r\n{OWN}x-envoy-upstream-rq-timeout-ms: {asked}\r\n\r\n"));
        let mut peer = upstream.accept();
        assert_eq!(peer.message().get("x-envoy-expected-rq-timeout-ms"), told);
        // Somebody else's request is given up meanwhile.
        let mut other = mesh.client();
        other.send(format!("GET /other HTTP/1.1\r\nhost: up\r\nx-envoy-upstream-rq-timeout-ms: {asked}\r\n\r\n"));
        assert_eq!(other.message().status(), 504);
        drop(upstream.accept());
        peer.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nlate");
        assert_eq!(client.message().text(), "late");
    }
}
