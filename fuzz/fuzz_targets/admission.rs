//! Requests under foreign bytes, through a codec and the real admission: whoever is let in says of himself only what the configuration
//! lets him say, his path is normal, and he means the same to the next hop, in either version of HTTP and whichever he spoke. And what is
//! told of a client's certificate has the keys that are asked for, whatever stands in the certificate.
//!
//! The first byte of the input says in which version, the second by which manager; the rest is what a client sends.

#![no_main]

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use serde_json::json;
use weft_core::http_manager::{ForwardClientCert, HttpManager};
use weft_core::normalise::{Normalised, normalise};
use weft_core::random::SplitMix;
use weft_core::request::Scheme;

// The proxy is an executable without a library, so its code is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;
#[allow(dead_code)]
#[path = "../../crates/proxy/src/filter.rs"]
mod filter;
mod heads;
#[allow(dead_code)]
#[path = "../../crates/proxy/src/route.rs"]
mod route;

/// As in the proxy, without sessions; for the digest any function of the bytes does, and this one needs no library in C.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/tls"]
mod tls {
    pub mod pem;
    pub mod san;
    pub mod subject;

    pub fn sha256_hex(content: &[u8]) -> String {
        let hash = content
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        format!("{hash:064x}")
    }
}

/// As in the proxy, what admission asks of a connection.
mod identify {
    use std::net::SocketAddr;

    use weft_core::request::Scheme;

    pub struct Facts {
        pub remote: SocketAddr,
        pub mutual: bool,
        pub client_certificate: Box<str>,
    }

    impl Facts {
        pub fn scheme(&self) -> Scheme {
            Scheme::of(self.mutual)
        }
    }
}

/// Requests have no date.
mod clock {
    pub struct Clock;

    impl Clock {
        pub fn date(&self, _: tokio::time::Instant) -> [u8; 29] {
            unreachable!("responses have one")
        }
    }
}

use codec::h2::{Connection, Event, Limits, Role};
use codec::http1::{self, HeadParser};
use codec::{Head, Known};
use identify::Facts;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Envoy's names of what concerns one connection only (RFC 9110 7.6.1).
const HOP_BY_HOP: [&[u8]; 6] =
    [b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"];
const CERTIFICATE: &str = "By=spiffe://mesh/ns/a/sa/b;Hash=00;URI=spiffe://mesh/ns/a/sa/c";

/// A manager and a connection to it.
struct Scene {
    manager: HttpManager,
    facts: Facts,
}

static SCENES: LazyLock<Vec<Scene>> = LazyLock::new(|| {
    let forward = ["SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"];
    let escapes = ["KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"];
    let all = (0..40).map(|number: usize| {
        let settings = json!({
            "normalize_path": true,
            "merge_slashes": number % 3 == 0,
            "path_with_escaped_slashes_action": escapes[number % 4],
            "generate_request_id": true,
            "preserve_external_request_id": number % 7 == 0,
            "use_remote_address": number % 2 == 0,
            "xff_num_trusted_hops": number / 2 % 3,
            "skip_xff_append": number % 11 == 0,
            "internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
            "forward_client_cert_details": forward[number % 5],
            "set_current_client_cert_details":
                {"subject": true, "cert": true, "chain": number % 2 == 0, "dns": true, "uri": true},
        });
        let remote: SocketAddr = if number % 4 < 2 { ([10, 0, 0, 1], 4).into() } else { ([192, 0, 2, 1], 4).into() };
        let facts = Facts { remote, mutual: number % 8 < 4, client_certificate: CERTIFICATE.into() };
        Scene { manager: weft_fuzz::manager(settings), facts }
    });
    all.collect()
});

fuzz_target!(|input: &[u8]| {
    let [kind, scene, bytes @ ..] = input else { return };
    let scene = &SCENES[usize::from(*scene) % SCENES.len()];
    let requests = match kind % 3 {
        0 => in_http1(bytes),
        1 => in_http2(bytes),
        _ => return certificate(bytes, &scene.manager),
    };
    for request in &requests {
        let admitted = admit(request, scene);
        if let Some(admitted) = &admitted {
            heads::same_in_http1(admitted);
            heads::same_in_http2(admitted);
        }
        // What is refused in one version is refused in the other. What concerns this connection does not get there.
        let mut onward = request.clone();
        onward.remove_hop_by_hop();
        let other = heads::in_http1(&onward).map(|request| admit(&request, scene));
        match (&admitted, other) {
            (_, None) => {}
            (Some(one), Some(Some(other))) => heads::assert_same(one, &other),
            (None, Some(None)) => {}
            // As it goes on in HTTP/1 it does not say any more that it is for TLS, which not everybody may.
            (None, Some(Some(_))) if request.scheme == Some(Scheme::Https) => {}
            (one, other) => panic!("{one:?} {other:?}"),
        }
    }
});

fn in_http1(bytes: &[u8]) -> Vec<Head> {
    let mut head = Head::default();
    let limits = http1::Limits { head_bytes: 60 * 1024, fields: 100 };
    match HeadParser::default().request(bytes, &mut head, limits) {
        Ok(Some(_)) => vec![head],
        _ => Vec::new(),
    }
}

fn in_http2(bytes: &[u8]) -> Vec<Head> {
    let all = [PREFACE, bytes].concat();
    let mut connection = Connection::new(Role::Server, Limits::default());
    let (mut used, mut head, mut found) = (0, Head::default(), Vec::new());
    loop {
        match connection.receive(&all[used..], Duration::ZERO, &mut head) {
            Err(_) | Ok((0, None)) => return found,
            Ok((count, event)) => {
                used += count;
                if matches!(event, Some(Event::Head { .. })) {
                    found.push(head.clone());
                }
            }
        }
    }
}

/// The request as it goes to the filters, if it goes there.
fn admit(request: &Head, scene: &Scene) -> Option<Head> {
    let Scene { manager, facts } = scene;
    let mut head = request.clone();
    let filter::Admitted { client, steering } = match filter::admit(&mut head, manager, facts, &mut SplitMix::new(1)) {
        Ok(admitted) => admitted,
        Err(filter::Refusal::Cause(_)) => return None,
        Err(filter::Refusal::Redirect(path)) => {
            assert!(path.starts_with(b"/") && !path.starts_with(b"//"));
            return None;
        }
    };
    assert_eq!(normalise(head.path(), manager), Normalised::Same);
    for (name, _) in head.fields() {
        assert!(!HOP_BY_HOP.iter().any(|other| name.eq_ignore_ascii_case(other)), "{}", String::from_utf8_lossy(name));
    }
    assert!(!head.has_known(Known::Steering));
    assert_ne!(client, Some(facts.remote.ip()));
    let values =
        |known| head.values(known).map(|value| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>();
    let is_first_hand = manager.use_remote_address && !request.has_known(Known::ForwardedFor);
    let is_internal = values(Known::Internal) == ["true"];
    assert!(is_internal || values(Known::Internal).is_empty());
    assert!(is_internal || steering.is_none(), "nobody else may steer");
    if manager.use_remote_address {
        assert_eq!(is_internal, is_first_hand && facts.remote.ip().to_string() == "10.0.0.1");
        let peer = facts.remote.ip().to_string();
        let listed = values(Known::ForwardedFor).join(",");
        assert!(manager.skip_xff_append || listed.rsplit(',').next() == Some(&*peer), "{listed}");
        if manager.xff_num_trusted_hops == 0 {
            assert_eq!(client, None, "nobody else is believed");
            assert_eq!(values(Known::ForwardedProto), [facts.scheme().as_str()]);
        }
        if !is_internal {
            assert!(!head.has_known(Known::Inside));
            let client = client.map_or(peer, |client| client.to_string());
            assert_eq!(values(Known::ExternalAddress), [client]);
        }
    }
    assert!(head.has_known(Known::ForwardedProto));
    match &values(Known::RequestId)[..] {
        [id] if manager.use_remote_address && !is_internal && !manager.preserve_external_request_id => {
            assert!(id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'), "{id}");
        }
        ids => assert!(!ids.is_empty()),
    }
    let told: Vec<&[u8]> = fields(&head, "x-forwarded-client-cert");
    let came = fields(request, "x-forwarded-client-cert");
    match (manager.forward_client_cert, facts.mutual) {
        (ForwardClientCert::AlwaysForwardOnly, _) | (ForwardClientCert::ForwardOnly, true) => {
            // Unless the client called it a matter of its connection.
            assert!(told == came || told.is_empty());
        }
        (ForwardClientCert::AppendForward, true) => {
            assert!(told.join(&b","[..]).ends_with(CERTIFICATE.as_bytes()));
        }
        (ForwardClientCert::SanitizeSet, true) => assert_eq!(told, [CERTIFICATE.as_bytes()]),
        _ => assert!(told.is_empty()),
    }
    Some(head)
}

fn fields<'h>(head: &'h Head, wanted: &str) -> Vec<&'h [u8]> {
    head.fields().filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes())).map(|(_, value)| value).collect()
}

/// What is told of a client with this certificate, taken apart as a receiver does.
fn certificate(bytes: &[u8], manager: &HttpManager) {
    let chain = [CertificateDer::from(bytes)];
    let Some(text) = filter::client_certificate(manager, Some("spiffe://mesh/ns/a/sa/b"), &chain) else { return };
    assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    let mut keys = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for character in text.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            ';' if !quoted => keys.push(String::new()),
            ',' => assert!(quoted, "another element begins: {text}"),
            _ => {}
        }
        if character != ';' || quoted {
            keys.last_mut().expect("one is always there").push(character);
        }
    }
    assert!(!quoted && !escaped, "{text}");
    let keys: Vec<&str> = keys.iter().map(|pair| pair.split_once('=').expect("a key has a value").0).collect();
    let names = tls::san::names(bytes);
    let mut wanted = vec!["By", "Hash", "Cert"];
    wanted.extend(manager.client_cert_details.chain.then_some("Chain"));
    wanted.push("Subject");
    wanted.extend(vec!["URI"; names.uris.len().max(1)]);
    wanted.extend(vec!["DNS"; names.dns.len()]);
    assert_eq!(keys, wanted, "{text}");
}
