//! Where a request says that it comes from, and what of that is believed: `x-forwarded-for`, `x-envoy-*`, and the records.

use weft_protos::envoy::config::core::v3::CidrRange;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::InternalAddressConfig;
use weft_protos::google::protobuf::BoolValue;

use crate::kit::peer::ok;
use crate::kit::resources::number;
use crate::kit::{Mesh, Upstream};

/// What of a request reaches the upstream, in this order.
const TOLD: [&str; 5] =
    ["x-forwarded-for", "x-forwarded-proto", "x-envoy-external-address", "x-envoy-internal", "x-envoy-retry-on"];

struct Case {
    name: &'static str,
    manager: HttpConnectionManager,
    /// Lines of the request.
    sent: &'static str,
    /// Values of [`TOLD`], several joined by ` | `.
    told: [&'static str; 5],
    /// The client in the record; empty: the peer, with its port.
    client: &'static str,
}

/// The manager of a case: whether this is the edge, and how many proxies before it are trusted.
fn manager(edge: bool, hops: u32) -> HttpConnectionManager {
    HttpConnectionManager {
        use_remote_address: Some(BoolValue { value: edge }),
        xff_num_trusted_hops: hops,
        internal_address_config: Some(InternalAddressConfig {
            cidr_ranges: vec![CidrRange { address_prefix: "10.0.0.0".into(), prefix_len: number(8) }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn the_client_is_whom_trusted_proxies_say() {
    let peer = "127.0.0.1";
    let local = HttpConnectionManager {
        internal_address_config: Some(InternalAddressConfig {
            cidr_ranges: vec![CidrRange { address_prefix: "127.0.0.0".into(), prefix_len: number(8) }],
            ..Default::default()
        }),
        ..manager(true, 0)
    };
    let cases = [
        Case {
            name: "the edge believes nobody",
            manager: manager(true, 0),
            sent: "x-forwarded-for: 1.1.1.1\r\nx-forwarded-proto: https\r\nx-envoy-external-address: 1.1.1.1\r\n\
                   x-envoy-internal: true\r\nx-envoy-retry-on: 5xx\r\n",
            told: ["1.1.1.1,127.0.0.1", "http", peer, "", ""],
            client: "",
        },
        Case {
            name: "the edge behind one proxy",
            manager: manager(true, 1),
            sent: "x-forwarded-for: 9.9.9.9, 1.1.1.1\r\nx-forwarded-proto: https\r\n",
            told: ["9.9.9.9, 1.1.1.1,127.0.0.1", "https", "1.1.1.1", "", ""],
            client: "1.1.1.1:0",
        },
        Case {
            name: "the edge behind two proxies, in two lines",
            manager: manager(true, 2),
            sent: "x-forwarded-for: 9.9.9.9, 2001:db8::1\r\nX-Forwarded-For: 2.2.2.2\r\n",
            told: ["9.9.9.9, 2001:db8::1 | 2.2.2.2,127.0.0.1", "http", "2001:db8::1", "", ""],
            client: "[2001:db8::1]:0",
        },
        Case {
            name: "the edge behind more proxies than have spoken",
            manager: manager(true, 2),
            sent: "x-forwarded-for: 1.1.1.1\r\n",
            told: ["1.1.1.1,127.0.0.1", "http", peer, "", ""],
            client: "",
        },
        Case {
            name: "the edge, and a client of one's own",
            manager: local.clone(),
            sent: "x-envoy-internal: false\r\nx-envoy-external-address: 6.6.6.6\r\nx-envoy-retry-on: 5xx\r\n",
            told: [peer, "http", "6.6.6.6", "true", ""],
            client: "",
        },
        Case {
            name: "the edge, and a client of one's own that speaks for another",
            manager: local,
            sent: "x-forwarded-for: 1.1.1.1\r\n",
            told: ["1.1.1.1,127.0.0.1", "http", peer, "", ""],
            client: "",
        },
        Case {
            name: "the edge that does not append",
            manager: HttpConnectionManager { skip_xff_append: true, ..manager(true, 0) },
            sent: "x-forwarded-for: 1.1.1.1\r\n",
            told: ["1.1.1.1", "http", peer, "", ""],
            client: "",
        },
        Case {
            name: "inside, after an edge",
            manager: manager(false, 0),
            sent: "x-forwarded-for: 9.9.9.9,1.1.1.1\r\nx-forwarded-proto: https\r\nx-envoy-external-address: 1.1.1.1\r\n\
                   x-envoy-internal: true\r\n",
            told: ["9.9.9.9,1.1.1.1", "https", "1.1.1.1", "", ""],
            client: "1.1.1.1:0",
        },
        Case {
            name: "inside, from one's own",
            manager: manager(false, 0),
            sent: "x-forwarded-for: 10.1.2.3\r\n",
            told: ["10.1.2.3", "http", "", "true", ""],
            client: "10.1.2.3:0",
        },
        Case {
            name: "inside, from one's own through somebody else",
            manager: manager(false, 0),
            sent: "x-forwarded-for: 10.1.2.3\r\nx-forwarded-for: 10.1.2.4\r\n",
            told: ["10.1.2.3 | 10.1.2.4", "http", "", "", ""],
            client: "10.1.2.4:0",
        },
        Case {
            name: "inside, behind one proxy",
            manager: manager(false, 1),
            sent: "x-forwarded-for: 9.9.9.9, 10.1.2.3, 2.2.2.2\r\n",
            told: ["9.9.9.9, 10.1.2.3, 2.2.2.2", "http", "", "", ""],
            client: "10.1.2.3:0",
        },
        Case {
            name: "inside, from nobody",
            manager: manager(false, 0),
            sent: "",
            told: ["", "http", "", "", ""],
            client: "",
        },
        Case {
            name: "inside, from what is no address",
            manager: manager(false, 0),
            sent: "x-forwarded-for: unknown\r\n",
            told: ["unknown", "http", "", "", ""],
            client: "",
        },
    ];
    for Case { name, manager, sent, told, client } in cases {
        let upstream = Upstream::answering(|request| ok(&TOLD.map(|name| request.all(name).join(" | ")).join("\n")));
        let mesh = Mesh::start(&[upstream], |setup| {
            let before = std::mem::take(&mut setup.manager);
            setup.manager = HttpConnectionManager {
                stat_prefix: before.stat_prefix,
                route_specifier: before.route_specifier,
                http_filters: before.http_filters,
                access_log: before.access_log,
                ..manager
            };
        });
        let mut peer = mesh.client();
        peer.send(format!("GET / HTTP/1.1\r\nhost: up\r\n{sent}\r\n"));
        assert_eq!(peer.message().text().split('\n').collect::<Vec<_>>(), told, "{name}");
        let record = mesh.record("/");
        let expected = if client.is_empty() { peer.socket().local_addr().unwrap().to_string() } else { client.into() };
        assert_eq!(record["downstream_remote_address"], expected, "{name}");
    }
}

#[test]
fn what_only_the_inside_may_say_ends_at_the_edge() {
    const NAMES: [&str; 5] = [
        "x-envoy-downstream-service-cluster",
        "x-envoy-downstream-service-node",
        "x-envoy-peer-metadata",
        "x-envoy-original-dst-host",
        "x-request-id",
    ];
    for edge in [true, false] {
        let upstream = Upstream::answering(|request| ok(&NAMES.map(|name| request.all(name).join(" | ")).join("\n")));
        let mesh = Mesh::start(&[upstream], |setup| setup.manager.use_remote_address = Some(BoolValue { value: edge }));
        let mut peer = mesh.client();
        let sent: String = NAMES.iter().map(|name| format!("{name}: mine\r\n")).collect();
        peer.send(format!("GET / HTTP/1.1\r\nhost: up\r\n{sent}\r\n"));
        let text = peer.message().text();
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!(lines.iter().map(|line| *line == "mine").collect::<Vec<_>>(), [!edge; 5], "{lines:?}");
        assert!(!lines[4].is_empty(), "the edge gives each request its own id");
    }
}

#[test]
fn nobody_says_which_path_the_proxy_has_rewritten() {
    for edge in [true, false] {
        let upstream = Upstream::answering(|request| ok(&request.all("x-envoy-original-path").join(" | ")));
        let mesh = Mesh::start(&[upstream], |setup| setup.manager.use_remote_address = Some(BoolValue { value: edge }));
        let mut peer = mesh.client();
        peer.send("GET /secret HTTP/1.1\r\nhost: up\r\nx-envoy-original-path: /harmless\r\n\r\n");
        assert_eq!(peer.message().text(), "");
        assert_eq!(mesh.record("/secret")["path"], "/secret");
    }
}
