//! TLS sessions that are resumed, on both sides, and what they must not outlive. Revocation lists too, for they end sessions.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::HandshakeKind::{self, Full, Resumed};
use rustls::{ClientConfig, ServerConfig, ServerConnection, StreamOwned};
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use weft_protos::google::protobuf::UInt32Value;
use weft_protos::type_url;
use weft_xds::server::Event;

use crate::kit::certificates::{
    Authority, Hello, Identity, OTHER, WEB, client_config, client_with, downstream, downstream_changed,
    downstream_context, from_agent, secrets, secrets_with, server_config, ticket_keys, upstream, upstream_context,
};
use crate::kit::{Mesh, Peer, Setup, Upstream, until};

static ONLY_12: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
static ONLY_13: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

const SERVER: &str = "up.default.svc.cluster.local";

/// A listener for clients of *authority* with one of *names*.
fn inward(authority: &Authority, names: &[&str], change: impl FnOnce(&mut Setup)) -> Mesh {
    Mesh::start(&[Upstream::saying("hello")], |setup| {
        setup.chain.transport_socket = downstream(names);
        setup.more = secrets(&authority.identity(WEB), authority);
        change(setup);
    })
}

/// What a client keeps from one connection to the next.
fn keeps(trust: &Authority, identity: &Identity) -> Arc<ClientConfig> {
    client_config(trust, Some(identity), &Hello::default())
}

/// How a client shakes hands, if it is let in and answered. Reading the answer, it gets its next ticket.
fn visit(mesh: &Mesh, config: &Arc<ClientConfig>) -> Option<HandshakeKind> {
    let mut wire = client_with(mesh.address, config, SERVER);
    assert!(wire.conn.early_data().is_none(), "a ticket allows no early data");
    while wire.conn.is_handshaking() {
        wire.conn.complete_io(&mut wire.sock).ok()?;
    }
    let kind = wire.conn.handshake_kind();
    let mut peer = Peer::over(wire);
    let is_let_in = peer.try_send("GET / HTTP/1.1\r\nhost: up\r\n\r\n").is_ok()
        && peer.first_bytes().starts_with(b"HTTP/1.1 200 OK\r\n");
    kind.filter(|_| is_let_in)
}

/// Wait until a client without a session is refused, or let in.
fn wait_for(mesh: &Mesh, trust: &Authority, identity: &Identity, is_let_in: bool) {
    until("the change is in force", || (visit(mesh, &keeps(trust, identity)).is_some() == is_let_in).then_some(()));
}

#[test]
fn a_client_resumes_its_session_and_is_known_as_before() {
    let authority = Authority::new();
    let mesh = inward(&authority, &[OTHER], |_| {});
    for (index, versions) in [&ONLY_12[..], &ONLY_13].into_iter().enumerate() {
        let hello = Hello { versions, ..Hello::default() };
        let config = client_config(&authority, Some(&authority.identity(OTHER)), &hello);
        let kinds = [(); 3].map(|()| visit(&mesh, &config));
        assert_eq!(kinds, [Some(Full), Some(Resumed), Some(Resumed)], "{versions:?}");
        let count = 3.0 * (index + 1) as f64;
        until("they are counted", || (mesh.metric("envoy_listener_ssl_handshake", &[]) == count).then_some(()));
        assert_eq!(mesh.metric("envoy_listener_ssl_session_reused", &[]), count / 3.0 * 2.0);
    }
    for record in mesh.wait_records(6) {
        assert_eq!(record["downstream_peer_uri_san"], OTHER, "{record}");
    }
}

#[test]
fn a_session_outlives_our_certificate_but_not_a_removed_root() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut mesh = inward(&old, &[], |setup| {
        setup.more = secrets_with(&old.identity(WEB), &[&old, &new], None);
    });
    let identity = old.identity(OTHER);
    let (first, second) = (keeps(&old, &identity), keeps(&old, &identity));
    assert_eq!([&first, &second].map(|config| visit(&mesh, config)), [Some(Full); 2]);
    let renewed = old.identity(WEB);
    let shown = renewed.certificates();
    mesh.change(|setup| setup.more = secrets_with(&renewed, &[&old, &new], None));
    until("the new certificate is shown", || {
        let mut wire = client_with(mesh.address, &keeps(&old, &identity), SERVER);
        while wire.conn.is_handshaking() {
            wire.conn.complete_io(&mut wire.sock).unwrap();
        }
        (wire.conn.peer_certificates().unwrap()[0] == shown[0]).then_some(())
    });
    assert_eq!(visit(&mesh, &first), Some(Resumed));
    mesh.change(|setup| setup.more = secrets_with(&renewed, &[&new], None));
    wait_for(&mesh, &old, &identity, false);
    assert_eq!([&first, &second].map(|config| visit(&mesh, config)), [None; 2]);
}

#[test]
fn a_session_does_not_outlive_the_revocation_of_its_client() {
    let authority = Authority::new();
    let web = authority.identity(WEB);
    let revoking = |serials: &[u64]| secrets_with(&web, &[&authority], Some(&authority.revoking(serials, 2099)));
    let mut mesh = inward(&authority, &[], |setup| setup.more = revoking(&[7]));
    let (mallory, other) = (authority.numbered(OTHER, 8), authority.numbered(OTHER, 9));
    assert_eq!(visit(&mesh, &keeps(&authority, &authority.numbered(OTHER, 7))), None);
    let (first, second) = (keeps(&authority, &mallory), keeps(&authority, &other));
    assert_eq!([&first, &second].map(|config| visit(&mesh, config)), [Some(Full); 2]);
    assert_eq!(visit(&mesh, &first), Some(Resumed));
    mesh.change(|setup| setup.more = revoking(&[7, 8]));
    wait_for(&mesh, &authority, &mallory, false);
    assert_eq!(visit(&mesh, &first), None);
    // Trust has changed for everybody: the others prove themselves anew.
    assert_eq!([(); 2].map(|()| visit(&mesh, &second)), [Some(Full), Some(Resumed)]);
}

#[test]
fn a_session_does_not_outlive_its_key_and_the_one_after_it() {
    let authority = Authority::new();
    let keys = |keys: &[u8]| {
        let mut all = secrets(&authority.identity(WEB), &authority);
        all.push(ticket_keys("tickets", keys));
        all
    };
    let mut mesh = inward(&authority, &[], |setup| {
        setup.chain.transport_socket = downstream_context(&[], |context| {
            context.session_ticket_keys_type =
                Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(from_agent("tickets")));
        });
        setup.more = keys(&[1]);
    });
    let identity = authority.identity(OTHER);
    let [first, second, third] = [(); 3].map(|()| keeps(&authority, &identity));
    assert_eq!([&first, &second, &third].map(|config| visit(&mesh, config)), [Some(Full); 3]);
    let is_in_force = |mesh: &Mesh, count: u64| {
        let shown: serde_json::Value = serde_json::from_str(&mesh.admin("GET", "/certs")).unwrap();
        let secret = shown["certificates"]
            .as_array()
            .unwrap()
            .iter()
            .find(|secret| secret["name"] == "tickets")
            .unwrap()
            .clone();
        (secret["session_ticket_keys"] == count).then_some(())
    };
    mesh.change(|setup| setup.more = keys(&[2, 1]));
    until("the second key is in force", || is_in_force(&mesh, 2));
    assert_eq!(visit(&mesh, &first), Some(Resumed));
    mesh.change(|setup| setup.more = keys(&[4, 3, 2]));
    until("the third key is in force", || is_in_force(&mesh, 3));
    // Workers take a new plan soon after it was made: a client of the first key tells when.
    until("the workers have it", || (visit(&mesh, &third) == Some(Full)).then_some(()));
    assert_eq!(visit(&mesh, &second), Some(Full));
    assert_eq!(visit(&mesh, &second), Some(Resumed));
}

#[test]
fn a_session_does_not_outlive_the_certificate_of_its_client() {
    let authority = Authority::new();
    let mesh = inward(&authority, &[OTHER], |_| {});
    let end = SystemTime::now() + Duration::from_secs(6);
    let identity = authority.until_time(OTHER, end);
    let config = keeps(&authority, &identity);
    assert_eq!([(); 2].map(|()| visit(&mesh, &config)), [Some(Full), Some(Resumed)]);
    // Validity has no parts of a second.
    until("it has expired", || (SystemTime::now() > end + Duration::from_secs(1)).then_some(()));
    assert_eq!(visit(&mesh, &config), None);
}

#[test]
fn a_session_does_not_outlive_the_permission_of_its_client() {
    let authority = Authority::new();
    let mut mesh = inward(&authority, &[OTHER], |_| {});
    let identity = authority.identity(OTHER);
    let config = keeps(&authority, &identity);
    assert_eq!([(); 2].map(|()| visit(&mesh, &config)), [Some(Full), Some(Resumed)]);
    mesh.change(|setup| setup.chain.transport_socket = downstream(&["spiffe://cluster.local/ns/default/sa/stranger"]));
    wait_for(&mesh, &authority, &identity, false);
    assert_eq!(visit(&mesh, &config), None);
}

#[test]
fn nothing_is_resumed_where_that_is_disabled() {
    let authority = Authority::new();
    let mesh = inward(&authority, &[], |setup| {
        setup.chain.transport_socket = downstream_context(&[], |context| {
            context.session_ticket_keys_type = Some(SessionTicketKeysType::DisableStatelessSessionResumption(true));
            context.disable_stateful_session_resumption = true;
        });
    });
    for versions in [&ONLY_12[..], &ONLY_13] {
        let hello = Hello { versions, ..Hello::default() };
        let config = client_config(&authority, Some(&authority.identity(OTHER)), &hello);
        assert_eq!([(); 2].map(|()| visit(&mesh, &config)), [Some(Full); 2]);
    }
}

/// A proxy whose upstream must be [`OTHER`], and the upstream's socket.
fn outward(authority: &Authority, change: impl FnOnce(&mut Setup)) -> (Mesh, Upstream) {
    let peer = Upstream::new();
    let mesh = Mesh::start(&[peer.address()], |setup| {
        setup.cluster.transport_socket = upstream(&[OTHER]);
        setup.more = secrets(&authority.identity(WEB), authority);
        change(setup);
    });
    (mesh, peer)
}

/// Let the proxy send a request over a connection of its own; how it shakes hands then, if it trusts the upstream.
fn serve_once(mesh: &Mesh, upstream: &Upstream, config: &Arc<ServerConfig>) -> Option<HandshakeKind> {
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let kind = serve(upstream, config);
    assert_eq!(client.message().status(), if kind.is_some() { 200 } else { 503 });
    kind
}

fn serve(upstream: &Upstream, config: &Arc<ServerConfig>) -> Option<HandshakeKind> {
    let mut wire = StreamOwned::new(ServerConnection::new(Arc::clone(config)).unwrap(), upstream.accept_socket());
    while wire.conn.is_handshaking() {
        wire.conn.complete_io(&mut wire.sock).ok()?;
    }
    let kind = wire.conn.handshake_kind();
    let mut peer = Peer::over(wire);
    if peer.first_bytes().is_empty() {
        return None;
    }
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    kind
}

#[test]
fn a_session_with_an_upstream_is_resumed_until_trust_changes() {
    let (old, new) = (Authority::new(), Authority::new());
    let (mut mesh, upstream) = outward(&old, |_| {});
    let config = server_config(&old, &old.identity(OTHER), &[]);
    assert_eq!([(); 2].map(|()| serve_once(&mesh, &upstream, &config)), [Some(Full), Some(Resumed)]);
    until("both are counted", || (mesh.metric("envoy_cluster_ssl_handshake", &[]) == 2.0).then_some(()));
    assert_eq!(mesh.metric("envoy_cluster_ssl_session_reused", &[]), 1.0);
    mesh.change(|setup| setup.more = secrets(&old.identity(WEB), &new));
    until("the old root is trusted no more", || serve_once(&mesh, &upstream, &config).is_none().then_some(()));
    let next = server_config(&old, &new.identity(OTHER), &[]);
    assert_eq!([(); 2].map(|()| serve_once(&mesh, &upstream, &next)), [Some(Full), Some(Resumed)]);
}

#[test]
fn no_session_with_an_upstream_is_kept_where_none_is_asked_for() {
    let authority = Authority::new();
    let (mesh, upstream) = outward(&authority, |setup| {
        setup.cluster.transport_socket =
            upstream_context(&[OTHER], |context| context.max_session_keys = Some(UInt32Value { value: 0 }));
    });
    let config = server_config(&authority, &authority.identity(OTHER), &[]);
    assert_eq!([(); 2].map(|()| serve_once(&mesh, &upstream, &config)), [Some(Full); 2]);
}

#[test]
fn a_session_with_an_upstream_does_not_outlive_its_certificate() {
    let authority = Authority::new();
    let (mesh, upstream) = outward(&authority, |_| {});
    let end = SystemTime::now() + Duration::from_secs(6);
    let config = server_config(&authority, &authority.until_time(OTHER, end), &[]);
    assert_eq!([(); 2].map(|()| serve_once(&mesh, &upstream, &config)), [Some(Full), Some(Resumed)]);
    until("it has expired", || (SystemTime::now() > end + Duration::from_secs(1)).then_some(()));
    // The resumed session is left without a byte, and a full handshake follows for the same request.
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    assert_eq!(serve(&upstream, &config), None);
    let renewed = server_config(&authority, &authority.identity(OTHER), &[]);
    assert_eq!(serve(&upstream, &renewed), Some(Full));
    assert_eq!(client.message().status(), 200);
}

#[test]
fn a_session_with_an_upstream_does_not_outlive_its_revocation() {
    let authority = Authority::new();
    let web = authority.identity(WEB);
    let revoking = |serials: &[u64]| secrets_with(&web, &[&authority], Some(&authority.revoking(serials, 2099)));
    let (mut mesh, upstream) = outward(&authority, |setup| setup.more = revoking(&[]));
    let config = server_config(&authority, &authority.numbered(OTHER, 8), &[]);
    assert_eq!([(); 2].map(|()| serve_once(&mesh, &upstream, &config)), [Some(Full), Some(Resumed)]);
    mesh.change(|setup| setup.more = revoking(&[8]));
    until("it is revoked", || serve_once(&mesh, &upstream, &config).is_none().then_some(()));
    let other = server_config(&authority, &authority.numbered(OTHER, 9), &[]);
    assert_eq!(serve_once(&mesh, &upstream, &other), Some(Full));
}

#[test]
fn a_revocation_list_out_of_date_lets_nobody_in() {
    let authority = Authority::new();
    let list = authority.revoking(&[], 2020);
    let mesh = inward(&authority, &[], |setup| {
        setup.more = secrets_with(&authority.identity(WEB), &[&authority], Some(&list));
    });
    assert_eq!(visit(&mesh, &keeps(&authority, &authority.identity(OTHER))), None);
}

#[test]
fn what_is_no_revocation_list_or_no_key_is_refused_by_name() {
    let authority = Authority::new();
    let mut mesh = inward(&authority, &[], |_| {});
    let web = authority.identity(WEB);
    let certificate = authority.pem();
    let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    for (revoked, reason) in [(certificate.as_str(), "crl: there is no revocation list in it"), (broken, "crl: ")] {
        mesh.change(|setup| setup.more = secrets_with(&web, &[&authority], Some(revoked)));
        mesh.wait_event("the refusal", |event| {
            matches!(event, Event::Refused { type_url: kind, name, message, .. }
                if kind == type_url::SECRET && name == "ROOTCA" && message.contains(reason))
        });
    }
    // What was there stays.
    assert_eq!(visit(&mesh, &keeps(&authority, &authority.identity(OTHER))), Some(Full));
}

#[test]
fn the_curves_of_a_listener_are_the_only_ones() {
    let authority = Authority::new();
    let mesh = inward(&authority, &[], |setup| {
        let curves = vec!["P-384".into()];
        setup.chain.transport_socket = downstream_changed(&[], |common| {
            common.tls_params = Some(tls::TlsParameters { ecdh_curves: curves, ..Default::default() });
        });
    });
    let mut wire = client_with(mesh.address, &keeps(&authority, &authority.identity(OTHER)), SERVER);
    while wire.conn.is_handshaking() {
        wire.conn.complete_io(&mut wire.sock).unwrap();
    }
    let group = wire.conn.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::secp384r1);
}
