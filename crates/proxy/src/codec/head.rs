//! The head of one message: start line and header fields, in one arena.
//!
//! Header edits append to the arena and never move what is there, so a head can be edited, encoded several times (one
//! attempt each) and still be read by the access record at the end. The value is reused from request to request: after
//! warm-up a head costs no allocation.

use weft_core::request::Scheme;

use super::{Framing, Version, is_of_family};

/// Header names that the proxy itself looks at; recognised once, while parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Known {
    Other,
    Connection,
    KeepAlive,
    ProxyConnection,
    Te,
    Upgrade,
    Expect,
    Date,
    Server,
    UserAgent,
    ForwardedFor,
    ForwardedProto,
    RequestId,
    ServiceTime,
    /// `x-envoy-internal`, which only the proxy itself says.
    Internal,
    /// `x-envoy-external-address`
    ExternalAddress,
    /// One of the `x-envoy-*` headers by which a trusted client steers the proxy. Whether or not it obeys them, none goes further: the
    /// next proxy is not to obey what was meant for this one.
    Steering,
    /// One of the `x-envoy-*` headers that say how a request came through another proxy; from outside nobody is believed.
    Inside,
}

/// See [`Known::Inside`].
const INSIDE: [&[u8]; 8] = [
    b"x-envoy-downstream-service-cluster",
    b"x-envoy-downstream-service-node",
    b"x-envoy-attempt-count",
    b"x-envoy-is-timeout-retry",
    b"x-envoy-original-dst-host",
    b"x-envoy-original-method",
    b"x-envoy-peer-metadata",
    b"x-envoy-peer-metadata-id",
];

/// See [`Known::Steering`]; Envoy removes these from requests that are not internal, and takes them from those that are. The last two
/// no client may say, whoever it is (CVE-2023-27487): records show them as path and authority, so only who rewrote these may.
const STEERING: [&[u8]; 18] = [
    b"x-envoy-retry-on",
    b"x-envoy-retry-grpc-on",
    b"x-envoy-max-retries",
    b"x-envoy-upstream-alt-stat-name",
    b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms",
    b"x-envoy-upstream-rq-timeout-alt-response",
    b"x-envoy-upstream-stream-duration-ms",
    b"x-envoy-expected-rq-timeout-ms",
    b"x-envoy-force-trace",
    b"x-envoy-ip-tags",
    b"x-envoy-original-url",
    b"x-envoy-hedge-on-per-try-timeout",
    b"x-envoy-retriable-status-codes",
    b"x-envoy-retriable-header-names",
    b"x-envoy-decorator-operation",
    b"x-envoy-original-path",
    b"x-envoy-original-host",
];

impl Known {
    /// Recognise *name*, in any case.
    pub fn of(name: &[u8]) -> Known {
        let is = |text: &[u8], known: Known| if name.eq_ignore_ascii_case(text) { known } else { Known::Other };
        if name.len() > 14 && name[..8].eq_ignore_ascii_case(b"x-envoy-") {
            let is_of = |names: &[&[u8]]| names.iter().any(|other| name.eq_ignore_ascii_case(other));
            return match name.len() {
                _ if is_of(&STEERING) => Known::Steering,
                _ if is_of(&INSIDE) => Known::Inside,
                16 => is(b"x-envoy-internal", Known::Internal),
                24 => is(b"x-envoy-external-address", Known::ExternalAddress),
                _ => is(b"x-envoy-upstream-service-time", Known::ServiceTime),
            };
        }
        match name.len() {
            2 => is(b"te", Known::Te),
            4 => is(b"date", Known::Date),
            6 => match name[0] | 0x20 {
                b'e' => is(b"expect", Known::Expect),
                _ => is(b"server", Known::Server),
            },
            7 => is(b"upgrade", Known::Upgrade),
            10 => match name[0] | 0x20 {
                b'c' => is(b"connection", Known::Connection),
                b'k' => is(b"keep-alive", Known::KeepAlive),
                _ => is(b"user-agent", Known::UserAgent),
            },
            12 => is(b"x-request-id", Known::RequestId),
            15 => is(b"x-forwarded-for", Known::ForwardedFor),
            16 => is(b"proxy-connection", Known::ProxyConnection),
            17 => is(b"x-forwarded-proto", Known::ForwardedProto),
            _ => Known::Other,
        }
    }

    /// Whether the field concerns one connection only and is never forwarded (RFC 9110 7.6.1).
    /// `Upgrade` and `TE` are here too: the encoder writes them itself where they are allowed.
    fn is_hop_by_hop(self) -> bool {
        matches!(self, Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::Te | Known::Upgrade)
    }
}

/// Fields that no `Connection` takes from a message, whatever it names: they are for whoever is behind the proxy, who decides by them.
/// RFC 9110 7.6.1 forbids a sender to nominate such a field, and demands that others which are nominated go: nobody can know them all.
///
/// A request that nominates one is refused, as Envoy refuses it for three of `x-forwarded-*`; in a response the field stays.
#[rustfmt::skip]
const END_TO_END: [&[u8]; 55] = [
    // who asks, from where, for whom
    b"host", b"forwarded", b"via", b"x-real-ip", b"true-client-ip", b"from", b"origin", b"referer", b"user-agent", b"x-requested-with",
    // with which right
    b"authorization", b"proxy-authorization", b"www-authenticate", b"proxy-authenticate", b"cookie", b"set-cookie", b"x-api-key",
    b"x-csrf-token", b"x-xsrf-token", b"x-tenant-id",
    // what is to be done
    b"expect", b"range", b"max-forwards", b"prefer", b"priority", b"idempotency-key", b"x-http-method-override",
    // what came of it
    b"age", b"allow", b"date", b"etag", b"expires", b"last-modified", b"link", b"location", b"retry-after", b"server", b"vary",
    b"alt-svc", b"strict-transport-security", b"clear-site-data", b"referrer-policy", b"permissions-policy", b"refresh",
    b"cache-control", b"pragma",
    // traces
    b"x-request-id", b"x-correlation-id", b"traceparent", b"tracestate", b"baggage", b"b3", b"uber-trace-id", b"x-cloud-trace-context",
    b"sw8",
];

/// Whole families of such fields.
#[rustfmt::skip]
const END_TO_END_PREFIXES: [&[u8]; 19] = [
    b"x-forwarded-", b"x-original-", b"x-auth-", b"x-user-", b"x-ssl-", b"x-envoy-", b"x-amz-", b"x-amzn-", b"x-goog-", b"x-b3-",
    b"x-datadog-", b"x-ot-", b"grpc-", b"sec-", b"accept", b"access-control-", b"content-", b"cross-origin-", b"if-",
];

/// Whether *name*, in any case, is among [`END_TO_END`] or of a family of [`END_TO_END_PREFIXES`].
pub(super) fn is_end_to_end(name: &[u8]) -> bool {
    END_TO_END.iter().any(|field| name.eq_ignore_ascii_case(field)) || is_of_family(name, &END_TO_END_PREFIXES)
}

/// A header name together with what [`Known`] says about it; made once where an edit is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    pub bytes: &'a [u8],
    pub known: Known,
}

impl<'a> Name<'a> {
    pub fn new(name: &'a str) -> Name<'a> {
        Name { bytes: name.as_bytes(), known: Known::of(name.as_bytes()) }
    }
}

/// A stretch of a head's arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// One header field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    name: Span,
    value: Span,
    pub known: Known,
    /// Its sender wants it in no compression table (RFC 7541 7.1.3).
    never_indexed: bool,
}

/// A field's bytes, and what is known about it.
pub(super) struct FieldView<'a> {
    pub(super) known: Known,
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) never_indexed: bool,
}

/// How a head was written where that means nothing: the names of fields that are not among its own; empty: nobody asks, and they are written
/// in lower case.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spelling {
    pub(super) host: Span,
    pub(super) content_length: Span,
    pub(super) transfer_encoding: Span,
    /// The reason phrase; empty: that of the status is written.
    pub(super) reason: Span,
}

/// The head of one request or response.
///
/// `Host`, `Content-Length`, `Transfer-Encoding` are not among the fields: they became [`Head::authority`] and
/// [`Head::framing`], and the encoder writes them again. All other fields are as received.
#[derive(Clone, Debug)]
pub struct Head {
    arena: Vec<u8>,
    fields: Vec<Field>,
    method: Span,
    path: Span,
    authority: Span,
    upgrade: Span,
    pub(super) spelling: Spelling,
    /// What a request says that its client wants it over, of its own (`:scheme`, the absolute form) or by what proxies before it have told;
    /// none in what is not admitted yet and says nothing of its own, and in a response.
    pub scheme: Option<Scheme>,
    /// Response status; 0 in a request.
    pub status: u16,
    pub version: Version,
    pub framing: Framing,
    /// `Content-Length` of a response without a body of its own (HEAD, 304): forwarded, not counted on.
    pub declared_length: Option<u64>,
    /// A response of HTTP/2 without content whose stream did not end with its head: trailers may follow.
    pub ends_later: bool,
    /// The sender will close (or wants it closed) after this message.
    pub close: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    /// `TE: trailers`.
    pub accepts_trailers: bool,
    /// OPTIONS whose target is a server without a path, which the next hop must be asked for by `*`.
    pub(super) about_server: bool,
}

impl Default for Head {
    fn default() -> Self {
        Head {
            arena: Vec::new(),
            fields: Vec::new(),
            method: Span::default(),
            path: Span::default(),
            authority: Span::default(),
            upgrade: Span::default(),
            spelling: Spelling::default(),
            scheme: None,
            status: 0,
            version: Version::Http11,
            framing: Framing::None,
            declared_length: None,
            ends_later: false,
            close: false,
            expects_continue: false,
            accepts_trailers: false,
            about_server: false,
        }
    }
}

impl Head {
    /// Forget the message, keep the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.fields.clear();
        self.method = Span::default();
        self.path = Span::default();
        self.authority = Span::default();
        self.upgrade = Span::default();
        self.spelling = Spelling::default();
        self.scheme = None;
        self.status = 0;
        self.version = Version::Http11;
        self.framing = Framing::None;
        self.declared_length = None;
        self.ends_later = false;
        self.close = false;
        self.expects_continue = false;
        self.accepts_trailers = false;
        self.about_server = false;
    }

    /// Bytes of memory kept between messages.
    pub fn capacity_bytes(&self) -> usize {
        self.arena.capacity() + self.fields.capacity() * std::mem::size_of::<Field>()
    }

    fn bytes(&self, span: Span) -> &[u8] {
        &self.arena[span.start as usize..span.end as usize]
    }

    /// The reason phrase of a response, if it is to go on; else empty.
    pub(super) fn reason(&self) -> &[u8] {
        self.bytes(self.spelling.reason)
    }

    /// A name as it was *written*, or else in *lower* case.
    pub(super) fn spelled<'a>(&'a self, written: Span, lower: &'static [u8]) -> &'a [u8] {
        if written.is_empty() { lower } else { self.bytes(written) }
    }

    /// Copy *bytes* into the arena. A head is far below 4 GiB: the parser limits what arrives, and an edit adds what a
    /// configuration holds.
    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { start, end: self.arena.len() as u32 }
    }

    /// Take the raw bytes of a head; the parser then places spans in them.
    pub(super) fn adopt(&mut self, raw: &[u8]) {
        self.arena.extend_from_slice(raw);
    }

    pub(super) fn span_at(&self, start: usize, length: usize) -> Span {
        debug_assert!(start + length <= self.arena.len());
        Span { start: start as u32, end: (start + length) as u32 }
    }

    pub(super) fn place_field(&mut self, name: Span, value: Span, known: Known) {
        self.fields.push(Field { name, value, known, never_indexed: false });
    }

    pub(super) fn place_method(&mut self, span: Span) {
        self.method = span;
    }

    pub(super) fn place_path(&mut self, span: Span) {
        self.path = span;
    }

    pub(super) fn place_authority(&mut self, span: Span) {
        self.authority = span;
    }

    pub(super) fn place_upgrade(&mut self, span: Span) {
        self.upgrade = span;
    }

    pub fn method(&self) -> &[u8] {
        self.bytes(self.method)
    }

    /// Path and query, beginning with `/`; `*` for `OPTIONS *`; empty for CONNECT.
    pub fn path(&self) -> &[u8] {
        self.bytes(self.path)
    }

    /// What stands for the path in a request that goes on.
    pub fn target(&self) -> &[u8] {
        if self.about_server { b"*" } else { self.path() }
    }

    /// What `Host` (or the absolute form of the target) says; empty if the request said nothing (HTTP/1.0).
    pub fn authority(&self) -> &[u8] {
        self.bytes(self.authority)
    }

    /// Protocol that the sender wants to change to, with `Connection: upgrade`; empty otherwise.
    pub fn upgrade(&self) -> &[u8] {
        self.bytes(self.upgrade)
    }

    pub fn is_head_request(&self) -> bool {
        self.method() == b"HEAD"
    }

    pub fn is_connect(&self) -> bool {
        self.method() == b"CONNECT"
    }

    /// It answers CONNECT. RFC 9110 9.3.6: after a 2xx its connection is a tunnel, whatever it says of a body.
    pub fn open_tunnel(&mut self) {
        if matches!(self.status, 200..300) {
            self.framing = Framing::None;
            self.declared_length = None;
        }
    }

    /// Whether its sender wants the connection, or stream, for something else than HTTP.
    pub fn wants_tunnel(&self) -> bool {
        self.is_connect() || !self.upgrade().is_empty()
    }

    pub fn set_method(&mut self, method: &[u8]) {
        self.method = self.store(method);
    }

    pub fn set_path(&mut self, path: &[u8]) {
        self.path = self.store(path);
        self.about_server = false;
    }

    pub fn set_authority(&mut self, authority: &[u8]) {
        self.authority = self.store(authority);
    }

    pub fn set_upgrade(&mut self, protocol: &[u8]) {
        self.upgrade = self.store(protocol);
    }

    /// First value of header *name*, in any case.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields.iter().find(|field| self.is_named(field, name)).map(|field| self.bytes(field.value))
    }

    /// Values of the fields of one kind, in order.
    pub fn values(&self, known: Known) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.fields.iter().filter(move |field| field.known == known).map(|field| self.bytes(field.value))
    }

    /// All fields in order, as (name, value).
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| (self.bytes(field.name), self.bytes(field.value)))
    }

    pub(super) fn fields_known(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.fields.iter().map(|field| (field.known, self.bytes(field.name), self.bytes(field.value)))
    }

    /// All fields as HTTP/2 writes them.
    pub(super) fn fields_marked(&self) -> impl Iterator<Item = FieldView<'_>> {
        self.fields.iter().map(|field| FieldView {
            known: field.known,
            name: self.bytes(field.name),
            value: self.bytes(field.value),
            never_indexed: field.never_indexed,
        })
    }

    fn is_named(&self, field: &Field, name: &[u8]) -> bool {
        (field.name.end - field.name.start) as usize == name.len() && self.bytes(field.name).eq_ignore_ascii_case(name)
    }

    /// Add a field after those that exist.
    pub fn append(&mut self, name: Name<'_>, value: &[u8]) {
        self.add(name, value, false);
    }

    /// Add a field that no table of HTTP/2 may hold on its further way.
    pub fn append_never_indexed(&mut self, name: Name<'_>, value: &[u8]) {
        self.add(name, value, true);
    }

    fn add(&mut self, name: Name<'_>, value: &[u8], never_indexed: bool) {
        let name_span = self.store(name.bytes);
        let value_span = self.store(value);
        self.fields.push(Field { name: name_span, value: value_span, known: name.known, never_indexed });
    }

    /// Replace every field called *name* by one.
    pub fn set(&mut self, name: Name<'_>, value: &[u8]) {
        let mut first = None;
        for (index, field) in self.fields.iter().enumerate() {
            if self.is_named(field, name.bytes) {
                first = Some(index);
                break;
            }
        }
        match first {
            None => self.append(name, value),
            Some(index) => {
                let value_span = self.store(value);
                self.fields[index].value = value_span;
                let arena = &self.arena;
                let mut position = 0;
                self.fields.retain(|field| {
                    let keep = position <= index || !span_eq(arena, field.name, name.bytes);
                    position += 1;
                    keep
                });
            }
        }
    }

    /// Append *value* to the existing value of *name* after a comma, or add the field. Of several fields it is the last: whoever reads
    /// the list reads them in order (RFC 9110 5.3), and finds *value* at its end.
    pub fn append_to_list(&mut self, name: Name<'_>, value: &[u8]) {
        let existing = self.fields.iter().rposition(|field| self.is_named(field, name.bytes));
        match existing {
            None => self.append(name, value),
            Some(index) => {
                let old = self.fields[index].value;
                let start = self.arena.len() as u32;
                self.arena.extend_from_within(old.start as usize..old.end as usize);
                if !old.is_empty() {
                    self.arena.extend_from_slice(b",");
                }
                self.arena.extend_from_slice(value);
                self.fields[index].value = Span { start, end: self.arena.len() as u32 };
            }
        }
    }

    /// Drop every field called *name*. Returns whether there was one.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let arena = &self.arena;
        let before = self.fields.len();
        self.fields.retain(|field| !span_eq(arena, field.name, name));
        self.fields.len() != before
    }

    /// Drop a header that was recognised while parsing.
    pub fn remove_known(&mut self, known: Known) {
        self.fields.retain(|field| field.known != known);
    }

    /// Whether a header of this kind is there.
    pub fn has_known(&self, known: Known) -> bool {
        self.fields.iter().any(|field| field.known == known)
    }

    /// Drop what concerns the sender's connection only: the hop-by-hop fields and those that `Connection` names
    /// (RFC 9110 7.6.1). The protocol of an upgrade stays readable through [`Head::upgrade`].
    pub fn remove_hop_by_hop(&mut self) {
        if !self.fields.iter().any(|field| field.known.is_hop_by_hop()) {
            return;
        }
        let mut index = 0;
        while index < self.fields.len() {
            let field = self.fields[index];
            if field.known == Known::Connection {
                self.remove_nominated(field.value);
                // Fields before this one may be gone, so look for the field again and drop it.
                self.fields.retain(|other| other.name != field.name);
                index = 0;
            } else {
                index += 1;
            }
        }
        self.fields.retain(|field| !field.known.is_hop_by_hop());
    }

    /// Drop the fields that a `Connection` value lists, except those that are not its sender's to nominate.
    fn remove_nominated(&mut self, value: Span) {
        let arena = &self.arena;
        let tokens = &arena[value.start as usize..value.end as usize];
        self.fields.retain(|field| {
            field.known == Known::Connection
                || !tokens.split(|&byte| byte == b',').any(|token| span_eq(arena, field.name, token.trim_ascii()))
                || is_end_to_end(&arena[field.name.start as usize..field.name.end as usize])
        });
    }
}

fn span_eq(arena: &[u8], span: Span, name: &[u8]) -> bool {
    (span.end - span.start) as usize == name.len()
        && arena[span.start as usize..span.end as usize].eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Head {
        let mut head = Head::default();
        for (name, value) in fields {
            head.append(Name::new(name), value.as_bytes());
        }
        head
    }

    fn shown(head: &Head) -> Vec<(String, String)> {
        head.fields()
            .map(|(name, value)| (String::from_utf8_lossy(name).into(), String::from_utf8_lossy(value).into()))
            .collect()
    }

    #[test]
    fn set_replaces_every_field_of_that_name_in_place() {
        let mut head = head(&[("A", "1"), ("b", "2"), ("a", "3")]);
        head.set(Name::new("a"), b"9");
        assert_eq!(shown(&head), [("A".into(), "9".into()), ("b".into(), "2".into())]);
    }

    #[test]
    fn a_list_value_grows_by_a_comma() {
        let mut head = head(&[("X-Forwarded-For", "1.1.1.1")]);
        head.append_to_list(Name::new("x-forwarded-for"), b"2.2.2.2");
        assert_eq!(head.get(b"x-forwarded-for"), Some(&b"1.1.1.1,2.2.2.2"[..]));
        head.append(Name::new("x-forwarded-for"), b"3.3.3.3");
        head.append_to_list(Name::new("x-forwarded-for"), b"4.4.4.4");
        let values: Vec<&[u8]> = head.fields().map(|(_, value)| value).collect();
        assert_eq!(values, [&b"1.1.1.1,2.2.2.2"[..], b"3.3.3.3,4.4.4.4"], "the last is the last");
    }

    #[test]
    fn nominated_and_hop_by_hop_fields_go_and_the_rest_stays() {
        let mut head = head(&[
            ("X-Secret", "1"),
            ("Connection", "close, x-secret"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("TE", "gzip"),
            ("Accept", "*/*"),
        ]);
        head.remove_hop_by_hop();
        assert_eq!(shown(&head), [("Accept".into(), "*/*".into())]);
    }

    #[test]
    fn fields_for_the_other_end_stay_whatever_is_nominated() {
        let fields: Vec<&str> =
            END_TO_END.iter().chain(&[&b"X-Envoy-Any"[..]]).map(|name| std::str::from_utf8(name).unwrap()).collect();
        for name in fields {
            let mut head = head(&[("Connection", &format!("close, {}", name.to_uppercase())), (name, "1")]);
            head.remove_hop_by_hop();
            assert_eq!(shown(&head), [(name.into(), "1".into())]);
        }
        // RFC 9110 7.6.1 lets a sender nominate any other.
        for name in ["x-custom", "te", "trailer", "envoy", "b3b"] {
            assert!(!is_end_to_end(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn known_names_are_recognised_in_any_case() {
        for (name, known) in [
            ("CONNECTION", Known::Connection),
            ("x-Request-Id", Known::RequestId),
            ("server", Known::Server),
            ("expect", Known::Expect),
            ("accept", Known::Other),
            ("X-Envoy-Internal", Known::Internal),
            ("x-envoy-retry-on", Known::Steering),
            ("x-envoy-external-address", Known::ExternalAddress),
            ("x-envoy-downstream-service-node", Known::Inside),
            ("x-envoy-original-path", Known::Steering),
            ("x-envoy-original-host", Known::Steering),
            ("X-Envoy-Upstream-Stream-Duration-Ms", Known::Steering),
            ("X-Envoy-Peer-Metadata-Id", Known::Inside),
            ("X-Envoy-Upstream-Service-Time", Known::ServiceTime),
        ] {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
        }
    }
}
