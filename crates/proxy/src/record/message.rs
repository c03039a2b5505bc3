//! A record as a message of Envoy's access log service, written without building the message first: a request's record
//! is some fifty fields in six levels, and this is done for every request.
//!
//! Field numbers are those of `envoy/data/accesslog/v3/accesslog.proto`; a test reads what is written here with the
//! generated messages.

use std::net::SocketAddr;
use std::time::Duration;

use weft_core::access_log::LogService;
use weft_core::address::PeerAddress;
use weft_core::request::RequestHead;
use weft_core::respond::Flags;

use crate::codec::{Head, Version};
use crate::connect::Destination;
use crate::route::{View, joined};

use super::{Entry, Subject};

/// Bytes left for the length of a message whose end is not known yet: varints may be padded, and three bytes hold 2 MiB.
const LENGTH_BYTES: usize = 3;

/// Of texts that a client chooses, so that no record gets near that: what is longer is cut.
const LONGEST_TEXT: usize = 16 * 1024;

/// Append *entry* as a `log_entry` field of a batch.
pub fn write(service: &LogService, entry: &Entry<'_>, out: &mut Vec<u8>) {
    let mut out = Writer { out };
    out.message(1, |out| {
        out.message(1, |out| common(service, entry, out));
        match entry.request {
            Some(request) => {
                out.number(2, entry.version.map_or(0, protocol));
                out.message(3, |out| request_properties(service, entry, request, out));
                out.message(4, |out| response_properties(service, entry, out));
            }
            None => out.message(2, |out| {
                out.number(1, entry.outcome.bytes_received);
                out.number(2, entry.outcome.bytes_sent);
            }),
        }
    });
}

/// `HTTPAccessLogEntry.HTTPVersion`
fn protocol(version: Version) -> u64 {
    match version.as_str() {
        "HTTP/1.0" => 1,
        "HTTP/1.1" => 2,
        "HTTP/2" => 3,
        _ => 0,
    }
}

/// `AccessLogCommon`
fn common(service: &LogService, entry: &Entry<'_>, out: &mut Writer<'_>) {
    let (outcome, facts) = (entry.outcome, entry.facts);
    let client = outcome.client.map_or(facts.remote, |client| SocketAddr::new(client, 0));
    out.message(2, |out| out.address(client));
    out.message(3, |out| out.address(facts.local));
    if facts.secure {
        out.message(4, |out| {
            out.text(3, facts.server_name.as_deref().unwrap_or_default());
            out.message(4, |out| certificate(facts.local_uri.as_deref(), out));
            out.message(5, |out| certificate(facts.peer_uri.as_deref(), out));
        });
    } else if let Some(name) = facts.server_name.as_deref() {
        out.message(4, |out| out.text(3, name));
    }
    out.time(5, entry.start);
    out.duration(6, outcome.request_duration);
    out.duration(9, outcome.response_duration);
    out.duration(12, Some(outcome.duration));
    match &outcome.destination {
        Some(Destination::Original(address)) => out.message(13, |out| out.address(*address)),
        Some(Destination::Host(host)) => match &host.endpoint.address {
            PeerAddress::Socket(address) => out.message(13, |out| out.address(*address)),
            PeerAddress::Pipe(path) => {
                out.message(13, |out| out.message(2, |out| out.text(1, &path.to_string_lossy())));
            }
        },
        None => {}
    }
    if let Some(local) = outcome.upstream_local {
        out.message(14, |out| out.address(local));
    }
    out.text(15, outcome.cluster.as_deref().unwrap_or_default());
    out.message(16, |out| flags(outcome.flags, out));
    out.text(18, outcome.transport_failure.as_deref().unwrap_or_default());
    out.text(19, outcome.route.as_deref().map_or("", |route| &route.name));
    out.message(20, |out| out.address(facts.direct()));
    for tag in &service.tags {
        if let Some(value) = tag.value(outcome.route.as_deref().map(|route| &route.metadata)) {
            out.pair(22, &tag.name, value.as_bytes());
        }
    }
    out.duration(23, Some(outcome.duration));
    out.number(24, outcome.attempts.into());
    out.text(25, outcome.termination.as_deref().unwrap_or_default());
    out.text(28, outcome.downstream_failure.as_deref().unwrap_or_default());
    out.number(
        33,
        match entry.subject {
            Subject::Connection => 3,
            Subject::Request => 6,
            Subject::Try => 9,
        },
    );
}

/// `TLSProperties.CertificateProperties` of a certificate with this URI.
fn certificate(uri: Option<&str>, out: &mut Writer<'_>) {
    if let Some(uri) = uri {
        out.message(1, |out| out.text(1, uri));
    }
}

/// `ResponseFlags`: a boolean for each, but for one that is a message.
fn flags(flags: Flags, out: &mut Writer<'_>) {
    const UNAUTHORIZED: u32 = 13;
    for field in flags.iter().filter_map(weft_core::respond::ResponseFlag::field) {
        match field {
            UNAUTHORIZED => out.message(field, |out| out.number(1, 1)),
            field => out.number(field, 1),
        }
    }
}

/// `HTTPRequestProperties`
fn request_properties(service: &LogService, entry: &Entry<'_>, request: &Head, out: &mut Writer<'_>) {
    let header = |name: &str| request.get(name.as_bytes()).unwrap_or_default();
    // `RequestMethod`; another one is 0, and told where its log asks for `:method`.
    let methods: [&[u8]; 9] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];
    let method = methods.iter().position(|method| *method == request.method());
    out.number(1, method.map_or(0, |index| index as u64 + 1));
    let view = View::of(request, entry.facts);
    out.bytes(2, view.scheme().as_str().as_bytes());
    out.bytes(3, request.authority());
    out.bytes(5, request.path());
    out.bytes(6, header("user-agent"));
    out.bytes(8, header("x-forwarded-for"));
    out.bytes(9, header("x-request-id"));
    out.bytes(10, header("x-envoy-original-path"));
    out.number(12, entry.outcome.bytes_received);
    for name in &service.request_headers {
        if let Some(value) = view.field(name) {
            out.pair(13, name, &value);
        }
    }
}

/// `HTTPResponseProperties`
fn response_properties(service: &LogService, entry: &Entry<'_>, out: &mut Writer<'_>) {
    if entry.outcome.status != 0 {
        out.message(1, |out| out.number(1, entry.outcome.status.into()));
    }
    out.number(3, entry.outcome.bytes_sent);
    for name in &service.response_headers {
        if &**name == ":status" && entry.outcome.status != 0 {
            out.pair(4, name, entry.outcome.status.to_string().as_bytes());
        } else if let Some(value) = entry.response.and_then(|response| joined(response, name)) {
            out.pair(4, name, &value);
        }
    }
    for name in &service.response_trailers {
        if let Some(value) = entry.response_trailer(name) {
            out.pair(5, name, value);
        }
    }
    out.text(6, &entry.outcome.details);
}

/// Appends fields. What has protobuf's default value is left out.
struct Writer<'o> {
    out: &'o mut Vec<u8>,
}

impl Writer<'_> {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.out.push(value as u8 & 0x7f | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    fn number(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.key(field, 0);
            self.varint(value);
        }
    }

    /// Text as it came: what is not UTF-8 would make the whole batch unreadable.
    fn bytes(&mut self, field: u32, value: &[u8]) {
        let value = &value[..value.len().min(LONGEST_TEXT)];
        match std::str::from_utf8(value) {
            Ok(text) => self.text(field, text),
            Err(_) => self.text(field, &String::from_utf8_lossy(value)),
        }
    }

    fn text(&mut self, field: u32, value: &str) {
        if !value.is_empty() {
            self.key(field, 2);
            self.varint(value.len() as u64);
            self.out.extend_from_slice(value.as_bytes());
        }
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Writer<'_>)) {
        self.key(field, 2);
        let begin = self.out.len();
        self.out.extend_from_slice(&[0; LENGTH_BYTES]);
        fill(self);
        let length = self.out.len() - begin - LENGTH_BYTES;
        for (place, byte) in self.out[begin..begin + LENGTH_BYTES].iter_mut().enumerate() {
            let more = if place + 1 < LENGTH_BYTES { 0x80 } else { 0 };
            *byte = (length >> (7 * place)) as u8 & 0x7f | more;
        }
    }

    /// An entry of a map of strings.
    fn pair(&mut self, field: u32, key: &str, value: &[u8]) {
        self.message(field, |out| {
            out.text(1, key);
            out.bytes(2, value);
        });
    }

    /// `Address.socket_address`
    fn address(&mut self, address: SocketAddr) {
        self.message(1, |out| {
            use std::io::Write as _;
            out.key(2, 2);
            let begin = out.out.len();
            // Longest: an IPv6 address, 45 bytes.
            out.out.push(0);
            let _ = write!(out.out, "{}", address.ip());
            out.out[begin] = (out.out.len() - begin - 1) as u8;
            out.number(3, address.port().into());
        });
    }

    /// `Timestamp`
    fn time(&mut self, field: u32, since_epoch: Duration) {
        self.message(field, |out| {
            out.number(1, since_epoch.as_secs());
            out.number(2, since_epoch.subsec_nanos().into());
        });
    }

    /// `Duration`; one of zero is something else than none.
    fn duration(&mut self, field: u32, value: Option<Duration>) {
        if let Some(value) = value {
            self.time(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_protos::Message as _;
    use weft_protos::envoy::config::core::v3::address::Address as AddressKind;
    use weft_protos::envoy::data::accesslog::v3 as proto;
    use weft_protos::envoy::service::accesslog::v3::stream_access_logs_message::{
        HttpAccessLogEntries, TcpAccessLogEntries,
    };

    use super::*;
    use crate::clock::Clock;
    use crate::codec::http1::{HeadParser, Limits};
    use crate::identify::{Ends, Facts};
    use crate::record::Outcome;
    use weft_core::access_log::{Tag, TagValue};
    use weft_core::respond::ResponseFlag;

    fn service() -> LogService {
        LogService {
            cluster: "records-grpc".into(),
            log_name: "requests".into(),
            buffer_bytes: 1,
            flush_interval: Duration::ZERO,
            request_headers: Box::new(["end-user".into()]),
            response_headers: Box::default(),
            response_trailers: Box::new(["grpc-status".into()]),
            tags: Box::new([Tag { name: "mesh".into(), value: TagValue::Literal("weft".into()) }]),
        }
    }

    fn facts() -> Facts {
        let ends = Ends { remote: "10.244.0.7:40000".parse().unwrap(), local: "[fd77::9]:9080".parse().unwrap() };
        let mut facts = Facts::plain(ends, ends.remote);
        facts.secure = true;
        facts.peer_uri = Some("spiffe://cluster.local/ns/default/sa/a".into());
        facts
    }

    fn encode(outcome: &Outcome, request: Option<&Head>, facts: &Facts) -> Vec<u8> {
        let entry = Entry {
            subject: if request.is_some() { Subject::Request } else { Subject::Connection },
            clock: &Clock::new(),
            start: Duration::new(1_700_000_000, 5),
            facts,
            outcome,
            request,
            version: request.map(|_| Version::Http11),
            response: None,
            chain_name: "",
        };
        let mut out = Vec::new();
        write(&service(), &entry, &mut out);
        out
    }

    #[test]
    fn a_request_is_read_back_by_the_generated_messages() {
        let mut request = Head::default();
        let text = b"GET /reviews/0 HTTP/1.1\r\nHost: reviews:9080\r\nx-request-id: abc\r\nuser-agent: \xff1\r\nend-user: jason\r\n\r\n";
        HeadParser::default().request(text, &mut request, Limits::DEFAULT).unwrap().unwrap();
        let mut outcome = Outcome {
            status: 503,
            details: "no_healthy_upstream".into(),
            attempts: 2,
            duration: Duration::from_millis(1500),
            request_duration: Some(Duration::ZERO),
            bytes_sent: 300,
            upstream_local: Some("10.244.0.9:1".parse().unwrap()),
            trailers: vec![("grpc-status".into(), (*b"14").into()), ("x-sum".into(), (*b"5").into())],
            ..Outcome::default()
        };
        for flag in ResponseFlag::ALL {
            outcome.flag(*flag);
        }
        let bytes = encode(&outcome, Some(&request), &facts());
        let entries = HttpAccessLogEntries::decode(bytes.as_slice()).unwrap().log_entry;
        let [
            proto::HttpAccessLogEntry {
                common_properties: Some(common),
                request: Some(asked),
                response: Some(answer),
                ..
            },
        ] = &entries[..]
        else {
            panic!("{entries:?}");
        };
        assert_eq!(
            (asked.request_method, asked.authority.as_str(), asked.path.as_str()),
            (1, "reviews:9080", "/reviews/0")
        );
        assert_eq!((asked.request_id.as_str(), asked.request_headers["end-user"].as_str()), ("abc", "jason"));
        assert_eq!(asked.user_agent, "\u{fffd}1");
        assert_eq!(answer.response_code.unwrap().value, 503);
        assert_eq!((answer.response_body_bytes, answer.response_code_details.as_str()), (300, "no_healthy_upstream"));
        assert_eq!(answer.response_trailers, [("grpc-status".to_owned(), "14".to_owned())].into());
        assert_eq!(common.start_time.unwrap().seconds, 1_700_000_000);
        assert_eq!(common.duration.unwrap().nanos, 500_000_000);
        assert_eq!(common.time_to_last_rx_byte.unwrap().seconds, 0);
        assert_eq!(common.time_to_first_upstream_rx_byte, None);
        assert_eq!((common.upstream_request_attempt_count, common.access_log_type), (2, 6));
        assert_eq!(common.custom_tags["mesh"], "weft");
        let address = |address: &Option<weft_protos::envoy::config::core::v3::Address>| match &address
            .as_ref()
            .unwrap()
            .address
        {
            Some(AddressKind::SocketAddress(socket)) => format!("{} {:?}", socket.address, socket.port_specifier),
            other => panic!("{other:?}"),
        };
        assert_eq!(address(&common.downstream_local_address), "fd77::9 Some(PortValue(9080))");
        assert_eq!(address(&common.upstream_local_address), "10.244.0.9 Some(PortValue(1))");
        let peer = common.tls_properties.as_ref().unwrap().peer_certificate_properties.as_ref().unwrap();
        assert_eq!(peer.subject_alt_name.len(), 1);
        let flags = common.response_flags.unwrap();
        // One for each of weft's flags that the message has, and no other.
        let set = flags.encode_to_vec();
        let mut expected = Vec::new();
        super::flags(outcome.flags, &mut Writer { out: &mut expected });
        assert_eq!(proto::ResponseFlags::decode(expected.as_slice()).unwrap(), flags);
        assert!(set.len() > ResponseFlag::ALL.len());
    }

    #[test]
    fn each_flag_stands_in_the_field_of_its_name() {
        let only = |flag: ResponseFlag| {
            let mut out = Vec::new();
            super::flags(flag.into(), &mut Writer { out: &mut out });
            format!("{:?}", proto::ResponseFlags::decode(out.as_slice()).unwrap())
        };
        for (flag, field) in [
            (ResponseFlag::NoHealthyUpstream, "no_healthy_upstream: true"),
            (ResponseFlag::UpstreamConnectionFailure, "upstream_connection_failure: true"),
            (ResponseFlag::NoRouteFound, "no_route_found: true"),
            (ResponseFlag::UnauthorizedExternalService, "unauthorized_details: Some"),
            (ResponseFlag::DownstreamConnectionTermination, "downstream_connection_termination: true"),
            (ResponseFlag::UpstreamRetryLimitExceeded, "upstream_retry_limit_exceeded: true"),
            (ResponseFlag::DurationTimeout, "duration_timeout: true"),
            (ResponseFlag::NoClusterFound, "no_cluster_found: true"),
            (ResponseFlag::DnsResolutionFailed, "dns_resolution_failure: true"),
            (ResponseFlag::DownstreamRemoteReset, "downstream_remote_reset: true"),
        ] {
            assert!(only(flag).contains(field), "{flag:?}: {}", only(flag));
        }
    }

    #[test]
    fn a_connection_is_read_back_too() {
        let mut outcome = Outcome { bytes_received: 7, bytes_sent: 200_000, ..Outcome::default() };
        outcome.downstream_failure = Some("plaintext_to_tls_listener".into());
        let bytes = encode(&outcome, None, &facts());
        let entries = TcpAccessLogEntries::decode(bytes.as_slice()).unwrap().log_entry;
        let common = entries[0].common_properties.as_ref().unwrap();
        assert_eq!(common.downstream_transport_failure_reason, "plaintext_to_tls_listener");
        let moved = entries[0].connection_properties.unwrap();
        assert_eq!((moved.received_bytes, moved.sent_bytes), (7, 200_000));
    }
}
