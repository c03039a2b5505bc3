//! What happens to heads on their way: the connection manager's own headers, then the route's edits and rewrites.
//! Synchronous; delays and answers are the line's business.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use weft_core::decide::Decision;
use weft_core::format::Variables;
use weft_core::grpc_timeout;
use weft_core::http_manager::{ForwardClientCert, HttpManager, ServerHeader};
use weft_core::normalise::{Normalised, normalise};
use weft_core::random::{Draw, Random};
use weft_core::request::Scheme;
use weft_core::respond::Cause;
use weft_core::route::Forward;
use weft_core::steering::Steering;

use crate::clock::Clock;
use crate::codec::{Head, Known, Name, Version};
use crate::identify::Facts;
use crate::route::{Editable, View};
use crate::tls;

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Cause(Cause),
    /// Come back with this path.
    Redirect(Vec<u8>),
}

const X_REQUEST_ID: Name<'_> = Name { bytes: b"x-request-id", known: Known::RequestId };
const X_FORWARDED_FOR: Name<'_> = Name { bytes: b"x-forwarded-for", known: Known::ForwardedFor };
const X_FORWARDED_PROTO: Name<'_> = Name { bytes: b"x-forwarded-proto", known: Known::ForwardedProto };
const X_SERVICE_TIME: Name<'_> = Name { bytes: b"x-envoy-upstream-service-time", known: Known::ServiceTime };
const X_INTERNAL: Name<'_> = Name { bytes: b"x-envoy-internal", known: Known::Internal };
const X_EXTERNAL_ADDRESS: Name<'_> = Name { bytes: b"x-envoy-external-address", known: Known::ExternalAddress };
const X_CLIENT_CERT: Name<'_> = Name { bytes: b"x-forwarded-client-cert", known: Known::Other };
const SERVER: Name<'_> = Name { bytes: b"server", known: Known::Server };
const DATE: Name<'_> = Name { bytes: b"date", known: Known::Date };

/// What is known of a request that is let in, and is not in its head.
#[derive(Debug)]
pub struct Admitted {
    /// The client's address where that is not the peer's.
    pub client: Option<IpAddr>,
    /// What it asks of this proxy, if it is one's own. In a box, because hardly any request asks.
    pub steering: Option<Box<Steering>>,
}

/// Make a request that came in what the connection manager hands to its filters.
///
/// # Errors
/// [`Refusal`]; the request must not be routed.
pub fn admit(
    request: &mut Head,
    manager: &HttpManager,
    facts: &Facts,
    random: &mut impl Random,
) -> Result<Admitted, Refusal> {
    // A wish for HTTP/2 in clear text may be ignored (RFC 9113 3.1); any other upgrade must be allowed. In HTTP/2 it is no wish but a
    // CONNECT: what follows is a tunnel's bytes, and would go on as if it were another request's.
    if request.version != Version::Http2 && request.upgrade().eq_ignore_ascii_case(b"h2c") {
        request.set_upgrade(b"");
    }
    // No proxy before this one can have ended TLS. As Envoy, of the absolute form alone: HTTP/2's `:scheme` is believed.
    let says_secure = request.scheme == Some(Scheme::Https) && request.version != Version::Http2;
    if says_secure && facts.scheme() == Scheme::Http && !manager.believes_forwarded_proto() {
        return Err(Refusal::Cause(Cause::SecureInPlainText));
    }
    request.remove_hop_by_hop();
    // Of whom it is to be obeyed is known further down; a request that is refused before has lost it, too.
    let asked = if !manager.internal_addresses.is_empty() && request.has_known(Known::Steering) {
        Steering::read(&View::of(request, facts))
    } else {
        None
    };
    request.remove_known(Known::Steering);
    match normalise(request.path(), manager) {
        Normalised::Same => {}
        Normalised::Changed(path) => request.set_path(&path),
        Normalised::Refused => return Err(Refusal::Cause(Cause::BadPath)),
        Normalised::Redirect(path) => return Err(Refusal::Redirect(path)),
    }
    let origin = tell_origin(request, manager, facts);
    tell_identity(request, manager, facts);
    let from_outside = origin.is_edge && !manager.preserve_external_request_id;
    if manager.generate_request_id && (from_outside || !request.has_known(Known::RequestId)) {
        request.set(X_REQUEST_ID, &uuid(random));
    }
    Ok(Admitted { client: origin.client, steering: asked.filter(|_| origin.is_internal).map(Box::new) })
}

/// Where a request comes from, as far as it can be believed.
struct Origin {
    /// The client, if it is not the peer.
    client: Option<IpAddr>,
    /// It comes from outside, and this proxy is the first inside.
    is_edge: bool,
    /// It comes from one's own, and through nobody else.
    is_internal: bool,
}

/// `x-forwarded-for`, `x-forwarded-proto` and what of `x-envoy-*` says whence a request comes; by the rules of Envoy's connection manager.
fn tell_origin(request: &mut Head, manager: &HttpManager, facts: &Facts) -> Origin {
    request.remove_known(Known::Internal);
    let hops = manager.xff_num_trusted_hops as usize;
    let peer = facts.remote.ip();
    // Whether the address may decide that a request is internal: it has come through nobody else.
    let (client, is_first_hand) = if manager.use_remote_address {
        let is_first_hand = !request.has_known(Known::ForwardedFor);
        let client = if hops == 0 { None } else { forwarded_for(request, hops - 1) };
        if !manager.skip_xff_append {
            let mut text = [0u8; 45];
            request.append_to_list(X_FORWARDED_FOR, write_ip(peer, &mut text));
        }
        (client, is_first_hand)
    } else {
        let client = forwarded_for(request, hops);
        (client, hops == 0 && client.is_some() && forwarded_count(request) == 1)
    };
    if !manager.believes_forwarded_proto() {
        request.set(X_FORWARDED_PROTO, facts.scheme().as_str().as_bytes());
    } else if !request.has_known(Known::ForwardedProto) {
        request.append(X_FORWARDED_PROTO, facts.scheme().as_str().as_bytes());
    }
    // What is told is believed by now.
    let told = request.values(Known::ForwardedProto);
    request.scheme = Some(Scheme::of_request(request.scheme, told, facts.scheme()));
    // Without use_remote_address a request that says nothing is from outside, wherever it comes from.
    let decisive = client.or(manager.use_remote_address.then_some(peer));
    let is_internal = is_first_hand
        && decisive.is_some_and(|address| manager.internal_addresses.iter().any(|range| range.contains(address)));
    let is_edge = manager.use_remote_address && !is_internal;
    if is_internal {
        request.append(X_INTERNAL, b"true");
    }
    if is_edge {
        request.remove_known(Known::Inside);
        let mut text = [0u8; 45];
        request.set(X_EXTERNAL_ADDRESS, write_ip(client.unwrap_or(peer), &mut text));
    }
    Origin { client: client.filter(|client| *client != peer), is_edge, is_internal }
}

/// The last address of `x-forwarded-for` but *skipped* more; nothing if it is none.
fn forwarded_for(request: &Head, skipped: usize) -> Option<IpAddr> {
    let mut listed = request.values(Known::ForwardedFor).rev().flat_map(|line| line.rsplit(|&byte| byte == b','));
    std::str::from_utf8(listed.nth(skipped)?.trim_ascii()).ok()?.parse().ok()
}

/// How many addresses `x-forwarded-for` lists.
fn forwarded_count(request: &Head) -> usize {
    request.values(Known::ForwardedFor).flat_map(|line| line.split(|&byte| byte == b',')).count()
}

fn write_ip(ip: IpAddr, text: &mut [u8; 45]) -> &[u8] {
    use std::io::Write as _;
    let mut rest = &mut text[..];
    // 45 bytes hold every address.
    let _ = write!(rest, "{ip}");
    let left = rest.len();
    &text[..45 - left]
}

/// `x-forwarded-client-cert`.
fn tell_identity(request: &mut Head, manager: &HttpManager, facts: &Facts) {
    match manager.forward_client_cert {
        ForwardClientCert::AlwaysForwardOnly => {}
        ForwardClientCert::ForwardOnly if facts.mutual => {}
        ForwardClientCert::AppendForward if facts.mutual => {
            request.append_to_list(X_CLIENT_CERT, facts.client_certificate.as_bytes());
        }
        ForwardClientCert::SanitizeSet if facts.mutual => {
            request.set(X_CLIENT_CERT, facts.client_certificate.as_bytes());
        }
        _ => {
            request.remove(X_CLIENT_CERT.bytes);
        }
    }
}

/// The element of `x-forwarded-client-cert` for a client that showed this *chain*, to us who are *local_uri*: keys, order and quotes are
/// Envoy's. `None` where there is nothing to tell, or nobody asks. Every request of a connection has the same.
pub fn client_certificate(
    manager: &HttpManager,
    local_uri: Option<&str>,
    chain: &[CertificateDer<'_>],
) -> Option<String> {
    use std::fmt::Write as _;
    if !matches!(manager.forward_client_cert, ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet) {
        return None;
    }
    let leaf = chain.first()?;
    let mut text = String::new();
    if let Some(uri) = local_uri {
        let _ = write!(text, "By={uri};");
    }
    let _ = write!(text, "Hash={}", tls::sha256_hex(leaf));
    let details = &manager.client_cert_details;
    if details.cert {
        let _ = write!(text, ";Cert=\"{}\"", url_encoded(&tls::pem::write(leaf)));
    }
    if details.chain {
        let chain: String = chain.iter().map(|certificate| url_encoded(&tls::pem::write(certificate))).collect();
        let _ = write!(text, ";Chain=\"{chain}\"");
    }
    if details.subject {
        let _ = write!(text, ";Subject=\"{}\"", tls::subject::subject(leaf));
    }
    if details.uri || details.dns {
        let names = tls::san::names(leaf);
        let uris = names.uris.iter().filter(|_| details.uri).map(|name| ("URI", name));
        if details.uri && names.uris.is_empty() {
            text.push_str(";URI=");
        }
        let dns = names.dns.iter().filter(|_| details.dns).map(|name| ("DNS", name));
        for (key, name) in uris.chain(dns) {
            let _ = write!(text, ";{key}={}", harmless(name));
        }
    }
    Some(text)
}

/// What PEM has and a URL has not, escaped, as Envoy does.
fn url_encoded(pem: &str) -> String {
    let mut text = String::with_capacity(pem.len() + pem.len() / 16);
    for character in pem.chars() {
        match character {
            '\n' => text.push_str("%0A"),
            ' ' => text.push_str("%20"),
            '+' => text.push_str("%2B"),
            '/' => text.push_str("%2F"),
            '=' => text.push_str("%3D"),
            other => text.push(other),
        }
    }
    text
}

/// A name of a certificate, escaped where it could end its value and begin another: an authority may not look at what it signs.
fn harmless(name: &str) -> Cow<'_, str> {
    let is_harmful = |byte: u8| byte <= b' ' || byte >= 0x7f || matches!(byte, b',' | b';' | b'"' | b'\\');
    if !name.bytes().any(is_harmful) {
        return Cow::Borrowed(name);
    }
    let escape = |byte: u8| if is_harmful(byte) { format!("%{byte:02X}") } else { char::from(byte).to_string() };
    Cow::Owned(name.bytes().map(escape).collect())
}

/// What the upstream is told of how long it may take.
#[derive(Clone, Copy)]
pub struct Told {
    /// `x-envoy-expected-rq-timeout-ms`.
    pub of_a_try: Option<Duration>,
    /// `grpc-timeout`, where it is not left as the caller says.
    pub grpc: Option<Duration>,
}

/// Apply what the route says to the request, after which it goes upstream.
pub fn prepare(
    request: &mut Head,
    decision: &Decision<'_>,
    forward: &Forward,
    told: Told,
    suppress_envoy_headers: bool,
    variables: &impl Variables,
) {
    for edits in decision.request_edits() {
        edits.apply(&mut Editable(request), variables);
    }
    if let Some(host) = decision.host_rewrite() {
        if forward.append_x_forwarded_host {
            tell_forwarded_host(request);
        }
        if !suppress_envoy_headers {
            let before = request.authority().to_vec();
            request.set(Name::new("x-envoy-original-host"), &before);
        }
        request.set_authority(host.as_bytes());
    }
    if let Some(path) = decision.path_rewrite(request.path()) {
        if !suppress_envoy_headers {
            let before = request.path().to_vec();
            request.set(Name::new("x-envoy-original-path"), &before);
        }
        request.set_path(&path);
    }
    if let Some(timeout) = told.grpc {
        request.set(Name::new("grpc-timeout"), grpc_timeout::write(timeout).as_bytes());
    }
    if let (false, Some(timeout)) = (suppress_envoy_headers, told.of_a_try) {
        set_number(request, Name::new("x-envoy-expected-rq-timeout-ms"), timeout.as_millis() as u64);
    }
}

/// Tell whom the client asked for, unless the proxy before this one has told the same (Envoy's rule).
fn tell_forwarded_host(request: &mut Head) {
    const NAME: &str = "x-forwarded-host";
    let host = request.authority().to_vec();
    let told = request.fields().filter(|(name, _)| name.eq_ignore_ascii_case(NAME.as_bytes())).last();
    let last = told.and_then(|(_, list)| list.rsplit(|byte| *byte == b',').find(|it| !it.is_empty()));
    if !host.is_empty() && last != Some(&*host) {
        request.append_to_list(Name::new(NAME), &host);
    }
}

/// `x-envoy-attempt-count`, in either direction.
pub fn tell_attempts(head: &mut Head, attempts: u32) {
    set_number(head, Name::new("x-envoy-attempt-count"), u64::from(attempts));
}

fn set_number(head: &mut Head, name: Name<'_>, value: u64) {
    let mut digits = [0u8; 20];
    head.set(name, digits_of(value, &mut digits));
}

/// Make an upstream's response what the client gets, before the route's edits.
pub fn receive(response: &mut Head, service_time: Option<Duration>) {
    response.remove_hop_by_hop();
    if let Some(time) = service_time {
        set_number(response, X_SERVICE_TIME, time.as_millis() as u64);
    }
}

fn digits_of(value: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    let mut left = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            return &digits[at..];
        }
    }
}

/// Apply the route's edits to a response.
pub fn edit_response(response: &mut Head, decision: &Decision<'_>, variables: &impl Variables) {
    for edits in decision.response_edits() {
        edits.apply(&mut Editable(response), variables);
    }
}

/// The connection manager's last touch on every response.
pub fn finish(response: &mut Head, manager: &HttpManager, clock: &Clock, now: tokio::time::Instant) {
    match manager.server_header {
        ServerHeader::Overwrite => response.set(SERVER, manager.server_name.as_bytes()),
        ServerHeader::AppendIfAbsent if !response.has_known(Known::Server) => {
            response.append(SERVER, manager.server_name.as_bytes());
        }
        ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
    }
    if !response.has_known(Known::Date) {
        response.append(DATE, &clock.date(now));
    }
}

/// A version 4 UUID (RFC 9562 5.4).
fn uuid(random: &mut impl Random) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let high = (random.draw(Draw::Balance) & !0xf000) | 0x4000;
    let low = (random.draw(Draw::Balance) & !(0b11 << 62)) | (0b10 << 62);
    let mut text = [b'-'; 36];
    let mut nibble = 0;
    for (at, byte) in text.iter_mut().enumerate() {
        if matches!(at, 8 | 13 | 18 | 23) {
            continue;
        }
        let word = if nibble < 16 { high } else { low };
        *byte = DIGITS[(word >> (60 - 4 * (nibble % 16))) as usize & 15];
        nibble += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::random::SplitMix;

    #[test]
    fn request_ids_are_version_4_uuids() {
        let mut random = SplitMix::new(1);
        for _ in 0..100 {
            let text = String::from_utf8(uuid(&mut random).to_vec()).unwrap();
            assert_eq!(text.len(), 36);
            assert_eq!(&text[14..15], "4", "{text}");
            assert!("89ab".contains(&text[19..20]), "{text}");
            for at in [8, 13, 18, 23] {
                assert_eq!(&text[at..=at], "-", "{text}");
            }
        }
    }

    #[test]
    fn whom_the_client_asked_for_is_told_and_not_twice() {
        for (before, after) in
            [("", "up"), ("first", "first,up"), ("first,up", "first,up"), ("up,other", "up,other,up"), ("up,", "up,")]
        {
            let mut head = Head::default();
            head.set_authority(b"up");
            if !before.is_empty() {
                head.append(Name::new("X-Forwarded-Host"), before.as_bytes());
            }
            tell_forwarded_host(&mut head);
            assert_eq!(head.get(b"x-forwarded-host"), Some(after.as_bytes()), "{before}");
        }
    }
}
