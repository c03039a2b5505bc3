//! Who may call a local address: what a request must show so that it is taken for one of the program beside this proxy.
//!
//! Without network namespaces every process of the machine, and every page in a browser, can connect to the addresses on which a
//! proxy waits for its own program. Whoever is taken for the program acts under its identity. The user of the other process is
//! checked for each connection by the proxy (`Listener::caller_uids`); here it is what browsers send that is told apart: requests by
//! what they say of themselves, and where bytes are carried, requests from everything else.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weft_protos::weft::extensions::filters::v1 as proto;

use crate::compile::Context;
use crate::request::{RequestHead, is_of_token};
use crate::respond::Cause;
use crate::route::domains::without_port;

/// SHA-256 in hexadecimal.
const DIGEST_LENGTH: usize = 64;

/// Of a line that could become a request's: what is longer without an end is taken for one, for pages make targets of any length.
const LONGEST_LINE_BYTES: usize = 8 * 1024;

/// A compiled `LocalCaller` filter.
#[derive(Debug, Clone, Default)]
pub struct LocalCaller {
    /// Hosts that a request may name, lower case, without port. Unused by a forward proxy.
    authorities: HashSet<Box<[u8]>>,
    /// SHA-256 in lower-case hexadecimal of `user:password`.
    credential: Option<Box<str>>,
    /// Requests come as to an HTTP proxy: for any host, and with the credential.
    pub forward_proxy: bool,
    /// Where a CONNECT leads: `host:port` in lower case, or `*`, to the name of a listener.
    tunnels: HashMap<Box<[u8]>, Arc<str>>,
}

impl LocalCaller {
    pub(crate) fn compile(context: &mut Context, filter: &proto::LocalCaller) -> Self {
        let digest = filter.credential_sha256.to_ascii_lowercase();
        let is_digest = digest.len() == DIGEST_LENGTH && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digest.is_empty() && !is_digest {
            context.refuse_at("credential_sha256", "a SHA-256 has 64 hexadecimal digits");
        }
        if filter.forward_proxy && digest.is_empty() {
            context.refuse_at("credential_sha256", "a forward proxy needs a credential");
        }
        if !filter.forward_proxy && filter.authorities.is_empty() {
            context.refuse_at("authorities", "no request could be let in: name a host");
        }
        Self {
            authorities: filter.authorities.iter().map(|name| name.to_ascii_lowercase().into_bytes().into()).collect(),
            credential: is_digest.then(|| digest.into()),
            forward_proxy: filter.forward_proxy,
            tunnels: filter
                .tunnels
                .iter()
                .map(|tunnel| {
                    (tunnel.authority.to_ascii_lowercase().into_bytes().into(), tunnel.listener.as_str().into())
                })
                .collect(),
        }
    }

    /// Whether a request is let in. `presented` is the SHA-256 of the `user:password` that it brought, if it brought one.
    ///
    /// # Errors
    /// Why it is not.
    pub fn admit(&self, request: &(impl RequestHead + ?Sized), presented: Option<&str>) -> Result<(), Cause> {
        // What is compared are digests of a secret that nobody can choose, so the time that it takes tells nothing.
        let proven = match presented {
            Some(digest) if self.credential.as_deref() == Some(digest) => true,
            Some(_) => return Err(Cause::CredentialRequired),
            None => false,
        };
        if self.forward_proxy {
            return if proven { Ok(()) } else { Err(Cause::CredentialRequired) };
        }
        // DNS rebinding: a page of evil.example whose name was made to mean this address still says evil.example.
        if !self.is_own(request.authority()) {
            return Err(Cause::ForeignHost);
        }
        // No page knows the credential; a program that hands on what a browser sent to it may show it.
        if proven {
            return Ok(());
        }
        if let Some(origin) = request.header("origin")
            && !host_of(&origin).is_some_and(|host| self.is_own(host))
        {
            return Err(Cause::ForeignOrigin);
        }
        // Browsers say it with every request, also with those that have no Origin (images, forms with GET).
        match request.header("sec-fetch-site").as_deref() {
            None | Some(b"none" | b"same-origin") => Ok(()),
            Some(_) => Err(Cause::ForeignOrigin),
        }
    }

    /// The SHA-256 of the program's own `user:password`.
    pub fn credential(&self) -> Option<&str> {
        self.credential.as_deref()
    }

    /// The listener to which a CONNECT leads.
    pub fn tunnel(&self, authority: &[u8]) -> Option<&Arc<str>> {
        self.tunnels.get(authority.to_ascii_lowercase().as_slice()).or_else(|| self.tunnels.get(&b"*"[..]))
    }

    fn is_own(&self, authority: &[u8]) -> bool {
        self.authorities.contains(without_port(authority).to_ascii_lowercase().as_slice())
    }
}

/// Host and port of an origin (RFC 6454 6.2). `null`, a list and whatever else is no URL have none, and are foreign.
fn host_of(origin: &[u8]) -> Option<&[u8]> {
    let at = origin.windows(3).position(|part| part == b"://")?;
    // RFC 3986 3.1.
    let [first, others @ ..] = &origin[..at] else { return None };
    let is_scheme =
        first.is_ascii_alphabetic() && others.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
    is_scheme.then(|| &origin[at + 3..])
}

/// What a client's first bytes are where bytes are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A request of HTTP: its sender may be a web page.
    Request,
    /// More bytes decide it.
    Undecided,
    /// Anything else, which no page can have sent in the clear.
    Other,
}

/// Tell whether a client that began with *data* speaks HTTP: a request line (RFC 9112 3), or the preface of HTTP/2 (RFC 9113 3.4), which
/// has the form of one.
///
/// Any token is a method, for a page may make one up. What follows the target tells requests from the commands of text protocols, of
/// which many begin with a method's name (`GET key` of Redis, `CONNECT {...}` of NATS). Browsers put no space into a target.
pub fn opening(data: &[u8]) -> Opening {
    let mut parts = data.splitn(3, |&byte| byte == b' ');
    let method = parts.next().unwrap_or_default();
    let undecided = if data.len() > LONGEST_LINE_BYTES { Opening::Request } else { Opening::Undecided };
    if !method.iter().copied().all(is_of_token) {
        return Opening::Other;
    }
    let Some(target) = parts.next() else { return undecided };
    if method.is_empty() || target.iter().any(u8::is_ascii_control) {
        return Opening::Other;
    }
    match parts.next() {
        None => undecided,
        Some(_) if target.is_empty() => Opening::Other,
        Some(version) if version.starts_with(b"HTTP/") => Opening::Request,
        Some(version) if b"HTTP/".starts_with(version) => undecided,
        Some(_) => Opening::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::OwnedRequest;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn filter(forward_proxy: bool) -> LocalCaller {
        let tunnel =
            |authority: &str, listener: &str| proto::Tunnel { authority: authority.into(), listener: listener.into() };
        let message = proto::LocalCaller {
            authorities: vec!["ratings".into(), "127.77.3.4".into()],
            credential_sha256: DIGEST.into(),
            forward_proxy,
            tunnels: vec![tunnel("ratings:9080", "127.77.3.4_9080"), tunnel("*", "virtualOutbound")],
        };
        let mut context = Context::new("LocalCaller");
        let value = LocalCaller::compile(&mut context, &message);
        context.finish(value, crate::compile::Strictness::Refuse).unwrap().value
    }

    fn request(authority: &str, headers: &[(&str, &str)]) -> OwnedRequest {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        OwnedRequest { authority: authority.into(), headers, ..Default::default() }
    }

    #[test]
    fn only_requests_that_no_foreign_page_can_make_are_let_in() {
        let own = filter(false);
        for (authority, headers, expected) in [
            ("ratings", &[][..], Ok(())),
            ("Ratings:9080", &[], Ok(())),
            ("127.77.3.4:9080", &[], Ok(())),
            ("evil.example:9080", &[], Err(Cause::ForeignHost)),
            ("127.77.3.5:9080", &[], Err(Cause::ForeignHost)),
            ("ratings", &[("Origin", "http://ratings:9080")], Ok(())),
            ("ratings", &[("Origin", "https://evil.example")], Err(Cause::ForeignOrigin)),
            ("ratings", &[("Origin", "null")], Err(Cause::ForeignOrigin)),
            ("ratings", &[("Origin", "null"), ("Origin", "http://ratings")], Err(Cause::ForeignOrigin)),
            ("ratings", &[("Origin", "://ratings")], Err(Cause::ForeignOrigin)),
            ("ratings", &[("Origin", "http://ratings.evil.example")], Err(Cause::ForeignOrigin)),
            ("ratings", &[("Sec-Fetch-Site", "cross-site")], Err(Cause::ForeignOrigin)),
            ("ratings", &[("Sec-Fetch-Site", "same-site")], Err(Cause::ForeignOrigin)),
            ("ratings", &[("Sec-Fetch-Site", "none")], Ok(())),
            ("ratings", &[("Sec-Fetch-Site", "none, cross-site")], Err(Cause::ForeignOrigin)),
        ] {
            assert_eq!(own.admit(&request(authority, headers), None), expected, "{authority} {headers:?}");
        }
    }

    #[test]
    fn the_credential_stands_for_the_origin_and_never_for_the_host() {
        let own = filter(false);
        let foreign = [("Origin", "https://shop.example")];
        assert_eq!(own.admit(&request("ratings", &foreign), Some(DIGEST)), Ok(()));
        assert_eq!(own.admit(&request("evil.example", &foreign), Some(DIGEST)), Err(Cause::ForeignHost));
        assert_eq!(own.admit(&request("ratings", &[]), Some("0")), Err(Cause::CredentialRequired));
    }

    #[test]
    fn a_forward_proxy_asks_for_the_credential_and_for_nothing_else() {
        let proxy = filter(true);
        let any = request("www.example.com", &[("Origin", "https://evil.example")]);
        assert_eq!(proxy.admit(&any, Some(DIGEST)), Ok(()));
        assert_eq!(proxy.admit(&any, None), Err(Cause::CredentialRequired));
        assert_eq!(proxy.admit(&request("ratings", &[]), Some("")), Err(Cause::CredentialRequired));
    }

    #[test]
    fn a_tunnel_leads_to_the_listener_of_its_authority() {
        let proxy = filter(true);
        assert_eq!(proxy.tunnel(b"RATINGS:9080").map(|name| &**name), Some("127.77.3.4_9080"));
        assert_eq!(proxy.tunnel(b"ratings:1").map(|name| &**name), Some("virtualOutbound"));
    }

    #[test]
    fn requests_are_told_from_the_first_bytes_of_other_protocols() {
        for (data, expected) in [
            (&b"POST / HTTP/1.1\r\nHost: evil.example\r\n\r\nFLUSHALL"[..], Opening::Request),
            (b"GET /a?b=%20c HTTP/1.0\r\n", Opening::Request),
            // A page may make up a method, once its name means this address.
            (b"FLUSHALL / HTTP/1.1\r\n", Opening::Request),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Opening::Request),
            // Redis in both forms, memcached, NATS, SMTP, IRC, RTSP, HTTP/0.9.
            (b"*1\r\n$4\r\nPING\r\n", Opening::Other),
            (b"GET key\r\n", Opening::Other),
            (b"SET key HTTP\r\n", Opening::Other),
            (b"get /session/1\r\n", Opening::Other),
            (b"CONNECT {\"verbose\":false}\r\n", Opening::Other),
            (b"EHLO mail.example\r\n", Opening::Other),
            (b"USER guest 0 * :Guest", Opening::Other),
            (b"OPTIONS rtsp://a/b RTSP/1.0\r\n", Opening::Other),
            (b"GET /\r\n", Opening::Other),
            (b"GET  HTTP/1.1\r\n", Opening::Other),
            (b" GET / HTTP/1.1\r\n", Opening::Other),
            (b"PING\r\n", Opening::Other),
            // PostgreSQL, TLS.
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Opening::Other),
            (b"\x16\x03\x01\x02\x00", Opening::Other),
        ] {
            assert_eq!(opening(data), expected, "{:?}", data.escape_ascii().to_string());
        }
    }

    #[test]
    fn bytes_are_undecided_only_as_long_as_a_request_line_could_come_of_them() {
        let line = b"POST /x HTTP/1.1";
        let decided = b"POST /x HTTP/".len();
        for end in 0..line.len() {
            let expected = if end < decided { Opening::Undecided } else { Opening::Request };
            assert_eq!(opening(&line[..end]), expected, "{end}");
        }
        // Neither a long name nor a long target leads past it.
        for begin in ["", "GET /"] {
            let long = format!("{begin}{}", "a".repeat(LONGEST_LINE_BYTES + 1));
            assert_eq!(opening(long.as_bytes()), Opening::Request);
            assert_eq!(opening(format!("{long}\n").as_bytes()), Opening::Other);
        }
    }

    #[test]
    fn what_would_let_in_everybody_or_nobody_is_refused() {
        for (message, field) in [
            (proto::LocalCaller { forward_proxy: true, ..Default::default() }, "credential_sha256"),
            (proto::LocalCaller { credential_sha256: "abc".into(), ..Default::default() }, "credential_sha256"),
            (proto::LocalCaller::default(), "authorities"),
        ] {
            let mut context = Context::new("LocalCaller");
            let value = LocalCaller::compile(&mut context, &message);
            let problems = context.finish(value, crate::compile::Strictness::Refuse).unwrap_err();
            assert_eq!(problems.0[0].path, format!("LocalCaller.{field}"));
        }
    }
}
