//! One connection against another, and against frames that a peer should not send.

use std::time::Duration;

use weft_core::request::Scheme;

use super::frame::{self, PREFACE, flag, kind};
use super::limits::{Allowance, Rate, Resets};
use super::message::MessageError;
use super::settings::Settings;
use super::*;
use crate::codec::http1::{self, HeadParser};
use crate::codec::{Framing, Head, Name, Version};

const NOW: Duration = Duration::ZERO;

/// What an event was, with its bytes and its head.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Head(StreamId, String, bool),
    TooLarge(StreamId),
    Data(StreamId, Vec<u8>, bool),
    Trailers(StreamId, String),
    Reset(StreamId, Code),
    Broken(StreamId, Code, Breach),
    GoAway(StreamId, Code),
    Pong([u8; 8]),
}

fn describe(head: &Head) -> String {
    let mut text = match head.status {
        0 => format!("{} {} {}", text(head.method()), text(head.authority()), text(head.path())),
        status => status.to_string(),
    };
    text.push_str(&fields(head));
    text
}

fn fields(head: &Head) -> String {
    head.fields().map(|(name, value)| format!(" {}={}", text(name), text(value))).collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Feed *bytes* in pieces of *step*; adjacent parts of a body are one.
fn feed(connection: &mut Connection, bytes: &[u8], step: usize) -> (Vec<Seen>, Option<Code>) {
    feed_at(NOW, connection, bytes, step)
}

fn feed_at(now: Duration, connection: &mut Connection, bytes: &[u8], step: usize) -> (Vec<Seen>, Option<Code>) {
    let mut seen: Vec<Seen> = Vec::new();
    let (mut used, mut end) = (0, 0);
    let mut head = Head::default();
    loop {
        match connection.receive(&bytes[used..end], now, &mut head) {
            Err(error) => return (seen, Some(error.code)),
            Ok((0, None)) if end == bytes.len() => return (seen, None),
            Ok((0, None)) => end = (end + step).min(bytes.len()),
            Ok((count, event)) => {
                used += count;
                match event {
                    None | Some(Event::Writable { .. } | Event::Settings) => {}
                    Some(Event::Head { stream, ended }) => seen.push(Seen::Head(stream, describe(&head), ended)),
                    Some(Event::TooLarge { stream, .. }) => seen.push(Seen::TooLarge(stream)),
                    Some(Event::Trailers { stream }) => seen.push(Seen::Trailers(stream, fields(&head))),
                    Some(Event::Reset { stream, code }) => seen.push(Seen::Reset(stream, code)),
                    Some(Event::Broken { stream, code, reason }) => seen.push(Seen::Broken(stream, code, reason)),
                    Some(Event::GoAway { last, code }) => seen.push(Seen::GoAway(last, code)),
                    Some(Event::Pong(payload)) => seen.push(Seen::Pong(payload)),
                    Some(Event::Data { stream, data, ended }) => match seen.last_mut() {
                        Some(Seen::Data(last, bytes, done)) if *last == stream && !*done => {
                            bytes.extend_from_slice(data);
                            *done = ended;
                        }
                        _ => seen.push(Seen::Data(stream, data.to_vec(), ended)),
                    },
                }
            }
        }
    }
}

/// Move everything that *from* has to say to *to*.
fn pass(from: &mut Connection, to: &mut Connection) -> Vec<Seen> {
    let mut bytes = Vec::new();
    from.swap_output(&mut bytes);
    let (seen, error) = feed(to, &bytes, usize::MAX / 2);
    assert_eq!(error, None);
    seen
}

/// A client and a server that have exchanged settings.
fn pair(limits: Limits) -> (Connection, Connection) {
    let (mut client, mut server) = (Connection::new(Role::Client, limits), Connection::new(Role::Server, limits));
    pass(&mut client, &mut server);
    pass(&mut server, &mut client);
    pass(&mut client, &mut server);
    (client, server)
}

/// So many frames without content, and no more with time.
fn idle_frames(burst: u32) -> Allowances {
    Allowances { idle_frames: Rate { burst, per_second: 0 }, ..Allowances::default() }
}

fn request(method: &str, path: &str, framing: Framing) -> Head {
    let mut head = Head::default();
    head.set_method(method.as_bytes());
    head.set_path(path.as_bytes());
    head.set_authority(b"reviews:9080");
    head.framing = framing;
    head
}

fn response(status: u16, framing: Framing) -> Head {
    let mut head = Head::default();
    head.status = status;
    head.framing = framing;
    head
}

/// Raw frames as a client sends them, after preface and settings.
struct Raw {
    bytes: Vec<u8>,
}

impl Raw {
    fn new() -> Raw {
        let mut bytes = PREFACE.to_vec();
        Settings::default().write(&mut bytes);
        Raw { bytes }
    }

    /// On a connection that has begun.
    fn bare() -> Raw {
        Raw { bytes: Vec::new() }
    }

    fn frame(mut self, kind: u8, flags: u8, stream: StreamId, payload: &[u8]) -> Raw {
        frame::header(&mut self.bytes, payload.len(), kind, flags, stream);
        self.bytes.extend_from_slice(payload);
        self
    }

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            // As it is: the encoder would make names lower case.
            block.push(0);
            for text in [name, value] {
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        block
    }

    fn headers(self, stream: StreamId, ended: bool, fields: &[(&str, &str)]) -> Raw {
        let block = Self::block(fields);
        let flags = flag::END_HEADERS | if ended { flag::END_STREAM } else { 0 };
        self.frame(kind::HEADERS, flags, stream, &block)
    }

    fn get(self, stream: StreamId, ended: bool) -> Raw {
        self.headers(stream, ended, &GET)
    }

    fn read_by_server(self, limits: Limits) -> (Vec<Seen>, Option<Code>) {
        let mut server = Connection::new(Role::Server, limits);
        let result = feed(&mut server, &self.bytes, usize::MAX / 2);
        for step in [1, 7] {
            let again = feed(&mut Connection::new(Role::Server, limits), &self.bytes, step);
            assert_eq!(result, again, "a split by {step} changed what was seen");
        }
        result
    }
}

/// Names and values as a peer wrote them.
type Fields = &'static [(&'static str, &'static str)];

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

#[test]
fn a_request_and_its_answer_with_body_and_trailers() {
    let (mut client, mut server) = pair(Limits::default());
    let mut head = request("POST", "/echo", Framing::Chunked);
    head.append(Name::new("Content-Type"), b"application/grpc");
    head.accepts_trailers = true;
    let id = client.request(&head, false, false);
    assert_eq!(client.data(id, b"hello", false), 5);
    client.trailers(id, [(&b"x-sum"[..], &b"5"[..])].into_iter());
    assert_eq!(
        pass(&mut client, &mut server),
        [
            Seen::Head(1, "POST reviews:9080 /echo content-type=application/grpc".into(), false),
            Seen::Data(1, b"hello".to_vec(), false),
            Seen::Trailers(1, " x-sum=5".into()),
        ]
    );
    server.response(1, &response(103, Framing::None), Framing::None, false);
    server.response(1, &response(200, Framing::Chunked), Framing::Chunked, false);
    assert_eq!(server.data(1, b"HELLO", false), 5);
    server.trailers(1, [(&b"grpc-status"[..], &b"0"[..])].into_iter());
    assert_eq!(
        pass(&mut server, &mut client),
        [
            Seen::Head(1, "103".into(), false),
            Seen::Head(1, "200".into(), false),
            Seen::Data(1, b"HELLO".to_vec(), false),
            Seen::Trailers(1, " grpc-status=0".into()),
        ]
    );
    assert_eq!((client.open_streams(), server.open_streams()), (0, 0));
}

#[test]
fn extended_connect_is_an_upgrade() {
    let mut head = request("GET", "/chat", Framing::None);
    head.set_upgrade(b"websocket");
    // A server that does not allow it says nothing of it, and who asks all the same is mistaken (RFC 8441 3).
    let (mut client, mut server) = pair(Limits::default());
    assert!(!client.accepts_extended_connect());
    client.request(&head, true, false);
    pass(&mut client, &mut server);
    assert_eq!(pass(&mut server, &mut client), [Seen::Reset(1, Code::PROTOCOL_ERROR)]);
    let (mut client, mut server) = pair(Limits { extended_connect: true, ..Limits::default() });
    assert!(client.accepts_extended_connect() && !server.accepts_extended_connect());
    let id = client.request(&head, true, false);
    client.data(id, b"frame", false);
    let mut bytes = Vec::new();
    client.swap_output(&mut bytes);
    let mut seen = Head::default();
    let (used, event) = server.receive(&bytes, NOW, &mut seen).unwrap();
    assert_eq!(event, Some(Event::Head { stream: 1, ended: false }));
    assert_eq!((seen.method(), seen.upgrade(), seen.path()), (&b"GET"[..], &b"websocket"[..], &b"/chat"[..]));
    assert_eq!(feed(&mut server, &bytes[used..], 3).0, [Seen::Data(1, b"frame".to_vec(), false)]);
    server.response(1, &response(101, Framing::None), Framing::None, false);
    assert_eq!(pass(&mut server, &mut client), [Seen::Head(1, "200".into(), false)]);
    assert_eq!(server.data(1, b"back", true), 4);
    assert_eq!(pass(&mut server, &mut client), [Seen::Data(1, b"back".to_vec(), true)]);
    // A length would count the other protocol's bytes (RFC 9113 8.1.1).
    let [without, with] = [None, Some(0)].map(|length| {
        head.declared_length = length;
        let (mut client, mut bytes) = (pair(Limits { extended_connect: true, ..Limits::default() }).0, Vec::new());
        client.request(&head, true, false);
        client.swap_output(&mut bytes);
        bytes
    });
    assert_eq!(without, with);
}

#[test]
fn a_sender_stops_at_the_window_and_goes_on_when_it_opens() {
    let limits = Limits { stream_window_bytes: 1000, ..Limits::default() };
    let (mut client, mut server) = pair(limits);
    let id = client.request(&request("POST", "/", Framing::Chunked), false, false);
    let body = vec![7; 2500];
    assert_eq!(client.data(id, &body, true), 1000);
    assert_eq!(client.data(id, &body[1000..], true), 0);
    assert_eq!(pass(&mut client, &mut server).len(), 2);
    assert_eq!(pass(&mut server, &mut client), []);
    assert_eq!(client.sendable(id), 0, "nobody has read yet, so nothing more may come");
    server.release(1, 1000);
    pass(&mut server, &mut client);
    assert_eq!(client.data(id, &body[1000..], true), 1000);
    pass(&mut client, &mut server);
    server.release(1, 1000);
    pass(&mut server, &mut client);
    assert_eq!(client.data(id, &body[2000..], true), 500);
    assert_eq!(pass(&mut client, &mut server), [Seen::Data(1, vec![7; 500], true)]);
}

#[test]
fn the_connection_window_holds_all_streams_together() {
    let limits = Limits { connection_window_bytes: 65_535, ..Limits::default() };
    let (mut client, mut server) = pair(limits);
    let body = vec![1; 60_000];
    let ids: Vec<StreamId> =
        (0..2).map(|_| client.request(&request("POST", "/", Framing::Chunked), false, false)).collect();
    assert_eq!(client.data(ids[0], &body, true), 60_000);
    assert_eq!(client.data(ids[1], &body, true), 5_535);
    pass(&mut client, &mut server);
    // Bytes of a stream that is over still count until they are used up.
    server.release(1, 60_000);
    pass(&mut server, &mut client);
    assert_eq!(client.sendable(ids[1]), 60_000);
}

#[test]
fn large_heads_are_cut_into_frames_and_put_together() {
    let (mut client, mut server) = pair(Limits { header_bytes: 1 << 20, ..Limits::default() });
    let mut head = request("GET", "/", Framing::None);
    let value = vec![b'v'; 50_000];
    head.append(Name::new("x-large"), &value);
    client.request(&head, false, true);
    let Seen::Head(1, text, true) = &pass(&mut client, &mut server)[0] else { panic!("no head") };
    assert_eq!(text.len(), "GET reviews:9080 / x-large=".len() + value.len());
}

#[test]
fn a_head_above_the_limits_is_told_and_the_tables_stay_in_step() {
    let limits = Limits { header_bytes: 300, header_fields: 4, ..Limits::default() };
    let (mut client, mut server) = pair(limits);
    for (name, count, length) in [("x-many", 9, 1), ("x-large", 1, 400)] {
        let mut head = request("GET", "/", Framing::None);
        for _ in 0..count {
            head.append(Name::new(name), &vec![b'v'; length]);
        }
        let id = client.request(&head, false, true);
        assert_eq!(pass(&mut client, &mut server), [Seen::TooLarge(id)], "{name}");
    }
    let id = client.request(&request("GET", "/after", Framing::None), false, true);
    assert_eq!(pass(&mut client, &mut server), [Seen::Head(id, "GET reviews:9080 /after".into(), true)]);
}

#[test]
fn a_response_above_the_limits_is_given_up_and_the_tables_stay_in_step() {
    let mut client = Connection::new(Role::Client, Limits { header_fields: 4, ..Limits::default() });
    let mut server = Connection::new(Role::Server, Limits::default());
    for (case, status, ended, trailers) in [
        ("a whole one", 200, true, false),
        ("the begin of one", 200, false, false),
        ("an interim one", 103, false, false),
        ("its trailers", 200, false, true),
    ] {
        let id = client.request(&request("GET", "/", Framing::None), false, true);
        pass(&mut client, &mut server);
        let mut head = response(status, Framing::Chunked);
        if trailers {
            server.response(id, &head, Framing::Chunked, false);
            server.trailers(id, [(&b"x-many"[..], &b"v"[..]); 9].into_iter());
        } else {
            (0..9).for_each(|_| head.append(Name::new("x-many"), b"v"));
            server.response(id, &head, Framing::Chunked, ended);
        }
        let seen = pass(&mut server, &mut client);
        assert_eq!(seen.last(), Some(&Seen::Broken(id, Code::PROTOCOL_ERROR, Breach::TooLarge)), "{case}");
        assert_eq!((seen.len(), client.open_streams()), (1 + usize::from(trailers), 0), "{case}: {seen:?}");
    }
    let id = client.request(&request("GET", "/", Framing::None), false, true);
    pass(&mut client, &mut server);
    let mut head = response(200, Framing::Length(0));
    head.append(Name::new("x-many"), b"v");
    server.response(id, &head, Framing::Length(0), true);
    assert_eq!(pass(&mut server, &mut client), [Seen::Head(id, "200 x-many=v".into(), true)]);
}

/// Heads that are malformed (RFC 9113 8.1.1), most of them ways to smuggle something into HTTP/1.1.
#[test]
fn malformed_heads_reset_their_stream_and_no_other() {
    let cases: [(&str, Fields, MessageError); 30] = [
        ("an upper case name", &[("Accept", "a")], MessageError::Field),
        ("a space in a name", &[("a b", "c")], MessageError::Field),
        ("a colon in a name", &[("a:b", "c")], MessageError::Field),
        ("a line break in a name", &[("a\r\nb", "c")], MessageError::Field),
        ("CR LF in a value", &[("a", "b\r\nhost: evil")], MessageError::Field),
        ("LF in a value", &[("a", "b\nc")], MessageError::Field),
        ("NUL in a value", &[("a", "b\0c")], MessageError::Field),
        ("a space before a value", &[("a", " b")], MessageError::Field),
        ("CR LF in the path", &[(":path", "/ HTTP/1.1\r\nhost: evil\r\n")], MessageError::Field),
        ("a space in the path", &[(":path", "/a HTTP/1.1")], MessageError::Path),
        ("a path that is no path", &[(":path", "a")], MessageError::Path),
        ("an asterisk for GET", &[(":path", "*")], MessageError::Path),
        ("an empty path", &[(":path", "")], MessageError::Path),
        ("a fragment", &[(":path", "/a#b")], MessageError::Path),
        ("a space in the method", &[(":method", "GET /x HTTP/1.1")], MessageError::Pseudo),
        ("user information", &[(":authority", "evil@a")], MessageError::Authority),
        ("another host", &[("host", "b")], MessageError::Authority),
        ("two hosts", &[("host", "a"), ("host", "a")], MessageError::Authority),
        ("transfer-encoding", &[("transfer-encoding", "chunked")], MessageError::ConnectionSpecific),
        ("connection", &[("connection", "close")], MessageError::ConnectionSpecific),
        ("keep-alive", &[("keep-alive", "timeout=5")], MessageError::ConnectionSpecific),
        ("proxy-connection", &[("proxy-connection", "close")], MessageError::ConnectionSpecific),
        ("upgrade", &[("upgrade", "h2c")], MessageError::ConnectionSpecific),
        ("te other than trailers", &[("te", "gzip")], MessageError::ConnectionSpecific),
        ("two lengths", &[("content-length", "0"), ("content-length", "0")], MessageError::Length),
        ("a length that is no number", &[("content-length", "+1")], MessageError::Length),
        ("a length without a body", &[("content-length", "1")], MessageError::Length),
        ("a pseudo-header after a field", &[("a", "b"), (":status", "200")], MessageError::Pseudo),
        ("an unknown pseudo-header", &[(":unknown", "x")], MessageError::Pseudo),
        (":protocol without CONNECT", &[(":protocol", "websocket")], MessageError::Pseudo),
    ];
    for (case, extra, error) in cases {
        let mut fields: Vec<(&str, &str)> = GET.to_vec();
        for (name, value) in extra {
            match fields.iter_mut().find(|(known, _)| known == name && name.starts_with(':')) {
                Some(field) => field.1 = value,
                None => fields.push((name, value)),
            }
        }
        let raw = Raw::new().headers(1, true, &fields).get(3, true);
        let expected = vec![
            Seen::Broken(1, Code::PROTOCOL_ERROR, Breach::Malformed(error)),
            Seen::Head(3, "GET a /".into(), true),
        ];
        assert_eq!(raw.read_by_server(Limits::default()), (expected, None), "{case}");
    }
}

#[test]
fn a_path_is_taken_if_http1_takes_it() {
    for byte in 0..=255 {
        let path = [b'/', byte];
        let mut block = Raw::block(&[(":method", "GET"), (":scheme", "http"), (":authority", "a")]);
        block.extend_from_slice(b"\0\x05:path\x02");
        block.extend_from_slice(&path);
        let raw = Raw::new().frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &block);
        let taken = matches!(raw.read_by_server(Limits::default()).0[..], [Seen::Head(..)]);
        let head = [b"GET ", &path[..], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        let in_http1 = HeadParser::default().request(&head, &mut Head::default(), http1::Limits::DEFAULT);
        assert_eq!(taken, matches!(in_http1, Ok(Some(_))), "{byte:#04x}: {in_http1:?}");
    }
}

#[test]
fn pseudo_headers_must_be_there_once() {
    for missing in [":method", ":scheme", ":path"] {
        let fields: Vec<_> = GET.into_iter().filter(|(name, _)| *name != missing).collect();
        let (seen, error) = Raw::new().headers(1, true, &fields).read_by_server(Limits::default());
        assert!(matches!(seen[..], [Seen::Broken(1, ..)]) && error.is_none(), "{missing}");
    }
    for (name, value) in GET {
        let mut fields = GET.to_vec();
        fields.push((name, value));
        let (seen, _) = Raw::new().headers(1, true, &fields).read_by_server(Limits::default());
        assert!(matches!(seen[..], [Seen::Broken(1, ..)]), "{name} twice");
    }
}

#[test]
fn crumbs_become_one_cookie_and_host_is_the_authority() {
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        ("host", "a:80"),
        ("cookie", "a=1"),
        ("accept", "*/*"),
        ("cookie", "b=2"),
    ];
    let (seen, _) = Raw::new().headers(1, true, &fields).read_by_server(Limits::default());
    assert_eq!(seen, [Seen::Head(1, "GET a:80 / accept=*/* cookie=a=1; b=2".into(), true)]);
}

#[test]
fn a_crumb_without_bytes_leaves_no_separator() {
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "a"),
        ("cookie", ""),
        ("cookie", "a=1"),
        ("cookie", ""),
        ("cookie", "b=2"),
        ("cookie", ""),
    ];
    let (seen, _) = Raw::new().headers(1, true, &fields).read_by_server(Limits::default());
    assert_eq!(seen, [Seen::Head(1, "GET a / cookie=a=1; b=2".into(), true)]);
}

#[test]
fn data_must_add_up_to_the_length() {
    let mut fields = GET.to_vec();
    fields.push(("content-length", "3"));
    for (data, ended, good) in [(&b"abc"[..], true, true), (b"ab", true, false), (b"abcd", false, false)] {
        let flags = if ended { flag::END_STREAM } else { 0 };
        let raw = Raw::new().headers(1, false, &fields).frame(kind::DATA, flags, 1, data);
        let (seen, error) = raw.read_by_server(Limits::default());
        assert_eq!(error, None);
        assert_eq!(!seen.contains(&Seen::Broken(1, Code::PROTOCOL_ERROR, Breach::Length)), good, "{data:?}");
    }
}

#[test]
fn frames_that_end_the_connection() {
    let cases: [(&str, Raw, Code); 21] = [
        ("DATA on 0", Raw::new().frame(kind::DATA, 0, 0, b"x"), Code::PROTOCOL_ERROR),
        ("DATA on an idle stream", Raw::new().frame(kind::DATA, 0, 1, b"x"), Code::PROTOCOL_ERROR),
        ("an even stream", Raw::new().get(2, true), Code::PROTOCOL_ERROR),
        ("a stream below the last", Raw::new().get(5, true).get(3, true), Code::PROTOCOL_ERROR),
        ("RST_STREAM on an idle stream", Raw::new().frame(kind::RST_STREAM, 0, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        ("a short RST_STREAM", Raw::new().get(1, false).frame(kind::RST_STREAM, 0, 1, &[0; 3]), Code::FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE by 0", Raw::new().frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]), Code::PROTOCOL_ERROR),
        (
            "a window too large",
            Raw::new().frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
            Code::FLOW_CONTROL_ERROR,
        ),
        ("a PING of 7 bytes", Raw::new().frame(kind::PING, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("a PING on a stream", Raw::new().frame(kind::PING, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
        ("SETTINGS on a stream", Raw::new().frame(kind::SETTINGS, 0, 1, &[]), Code::PROTOCOL_ERROR),
        ("an ACK with content", Raw::new().frame(kind::SETTINGS, flag::ACK, 0, &[0; 6]), Code::FRAME_SIZE_ERROR),
        ("PUSH_PROMISE", Raw::new().frame(kind::PUSH_PROMISE, 4, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        ("CONTINUATION alone", Raw::new().frame(kind::CONTINUATION, 4, 1, &[]), Code::PROTOCOL_ERROR),
        (
            "an interrupted block",
            Raw::new().frame(kind::HEADERS, 0, 1, &[0x82]).frame(kind::PING, 0, 0, &[0; 8]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "too much padding",
            Raw::new().get(1, false).frame(kind::DATA, flag::PADDED, 1, &[5, 0]),
            Code::PROTOCOL_ERROR,
        ),
        ("a bad header block", Raw::new().frame(kind::HEADERS, 5, 1, &[0x80]), Code::COMPRESSION_ERROR),
        (
            "HEADERS after the end",
            Raw::new().get(1, false).frame(kind::RST_STREAM, 0, 1, &[0; 4]).get(1, true),
            Code::STREAM_CLOSED,
        ),
        ("a short GOAWAY", Raw::new().frame(kind::GOAWAY, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("a large frame", Raw::new().frame(kind::DATA, 0, 1, &vec![0; 16_385]), Code::FRAME_SIZE_ERROR),
        (
            "a priority of 4 bytes on an idle stream",
            Raw::new().frame(kind::PRIORITY, 0, 1, &[0; 4]),
            Code::FRAME_SIZE_ERROR,
        ),
    ];
    for (case, raw, code) in cases {
        assert_eq!(raw.read_by_server(Limits::default()).1, Some(code), "{case}");
    }
    let mut server = Connection::new(Role::Server, Limits::default());
    assert_eq!(feed(&mut server, b"GET / HTTP/1.1\r\n\r\n", 1).1, Some(Code::PROTOCOL_ERROR));
}

#[test]
fn frames_that_end_only_their_stream() {
    let to_itself = [0, 0, 0, 1, 0];
    let cases: [(&str, Raw, Code); 4] = [
        (
            "WINDOW_UPDATE by 0",
            Raw::new().get(1, false).frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a stream that depends on itself",
            Raw::new().get(1, false).frame(kind::PRIORITY, 0, 1, &to_itself),
            Code::PROTOCOL_ERROR,
        ),
        ("DATA after the end", Raw::new().get(1, true).frame(kind::DATA, 0, 1, b"x"), Code::STREAM_CLOSED),
        ("HEADERS after the end", Raw::new().get(1, true).headers(1, true, &[("a", "b")]), Code::STREAM_CLOSED),
    ];
    for (case, raw, code) in cases {
        let (seen, error) = raw.get(3, true).read_by_server(Limits::default());
        assert_eq!(error, None, "{case}");
        let broken = Seen::Broken(1, code, Breach::Protocol);
        assert_eq!(seen[1..], [broken, Seen::Head(3, "GET a /".into(), true)], "{case}");
    }
}

#[test]
fn padding_is_not_body_and_counts_for_the_window() {
    let limits = Limits { connection_window_bytes: 65_535, ..Limits::default() };
    let mut raw = Raw::new().get(1, false);
    for _ in 0..400 {
        raw = raw.frame(kind::DATA, flag::PADDED, 1, &[&[255u8][..], b"x", &[0; 255]].concat());
    }
    let (seen, error) = raw.read_by_server(limits);
    assert_eq!(error, None, "padding must be given back at once");
    assert_eq!(seen[1], Seen::Data(1, vec![b'x'; 400], false));
}

#[test]
fn more_data_than_the_window_ends_the_connection() {
    let limits = Limits { stream_window_bytes: 100, ..Limits::default() };
    let raw = Raw::new().get(1, false).frame(kind::DATA, 0, 1, &[0; 101]);
    assert_eq!(raw.read_by_server(limits).1, Some(Code::FLOW_CONTROL_ERROR));
}

#[test]
fn streams_above_the_limit_are_refused() {
    let (mut client, mut server) = pair(Limits { streams: 2, ..Limits::default() });
    for _ in 0..2 {
        client.request(&request("GET", "/", Framing::None), false, true);
    }
    assert!(!client.can_open());
    let raw = Raw::new().get(1, false).get(3, false).get(5, false);
    let (seen, error) = raw.read_by_server(Limits { streams: 2, ..Limits::default() });
    assert_eq!((seen.len(), error), (2, None));
    assert_eq!(pass(&mut client, &mut server).len(), 2);
    server.response(1, &response(204, Framing::None), Framing::None, true);
    pass(&mut server, &mut client);
    assert!(client.can_open());
}

#[test]
fn floods_end_the_connection() {
    let few = Rate { burst: 50, per_second: 0 };
    let resets = Resets { rate: few, ..Resets::default() };
    let limits = Limits { allowances: Allowances { resets, idle_frames: few }, ..Limits::default() };
    let rapid_reset = |count: u32| {
        (0..count).fold(Raw::new(), |raw, index| {
            let id = 2 * index + 1;
            raw.get(id, true).frame(kind::RST_STREAM, 0, id, &Code::CANCEL.0.to_be_bytes())
        })
    };
    assert_eq!(rapid_reset(40).read_by_server(limits).1, None);
    let many = |raw: Raw, kind: u8, flags: u8, stream: StreamId, payload: &[u8]| {
        (0..100).fold(raw, |raw, _| raw.frame(kind, flags, stream, payload))
    };
    // Numbers that are left out are no streams.
    let with_gaps = (0..100).fold(Raw::new(), |raw, index| {
        let id = 20 * index + 1;
        raw.get(id, true).frame(kind::RST_STREAM, 0, id, &Code::CANCEL.0.to_be_bytes())
    });
    let cases = [
        ("rapid reset", rapid_reset(100)),
        ("rapid reset with gaps", with_gaps),
        (
            "made to reset",
            (0..100).fold(Raw::new(), |raw, index| {
                let id = 2 * index + 1;
                raw.get(id, true).frame(kind::WINDOW_UPDATE, 0, id, &[0; 4])
            }),
        ),
        ("PING", many(Raw::new(), kind::PING, 0, 0, &[0; 8])),
        ("answers to no PING", many(Raw::new(), kind::PING, flag::ACK, 0, &[0; 8])),
        ("SETTINGS", many(Raw::new(), kind::SETTINGS, 0, 0, &[])),
        ("PRIORITY", many(Raw::new(), kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 0])),
        ("WINDOW_UPDATE", many(Raw::new(), kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("empty DATA", many(Raw::new().get(1, false), kind::DATA, 0, 1, &[])),
        ("unknown frames", many(Raw::new(), 0xbe, 0, 0, b"x")),
        ("empty CONTINUATION", many(Raw::new().frame(kind::HEADERS, 0, 1, &[]), kind::CONTINUATION, 0, 1, &[])),
        ("small CONTINUATION", many(Raw::new().frame(kind::HEADERS, 0, 1, &[]), kind::CONTINUATION, 0, 1, &[0x82])),
    ];
    for (case, raw) in cases {
        assert_eq!(raw.read_by_server(limits).1, Some(Code::ENHANCE_YOUR_CALM), "{case}");
    }
    let endless = |raw: Raw| (0..20).fold(raw, |raw, _| raw.frame(kind::CONTINUATION, 0, 1, &[0x82; 16_000]));
    let raw = endless(Raw::new().frame(kind::HEADERS, 0, 1, &[]));
    assert_eq!(raw.read_by_server(Limits::default()).1, Some(Code::ENHANCE_YOUR_CALM));
}

#[test]
fn a_request_goes_on_with_its_own_scheme() {
    let cases = [
        (None, false, Scheme::Http),
        (None, true, Scheme::Https),
        (Some(Scheme::Http), true, Scheme::Http),
        (Some(Scheme::Https), false, Scheme::Https),
    ];
    for (own, secure, expected) in cases {
        let (mut client, mut server) = pair(Limits::default());
        let mut head = request("GET", "/", Framing::None);
        head.scheme = own;
        client.request(&head, secure, true);
        let mut seen = Head::default();
        let (_, event) = server.receive(client.output(), NOW, &mut seen).unwrap();
        assert!(matches!(event, Some(Event::Head { .. })), "{event:?}");
        assert_eq!(seen.scheme, Some(expected), "{own:?}");
    }
}

#[test]
fn another_scheme_is_as_if_none_were_said() {
    for (name, expected) in [("HTTPS", Some(Scheme::Https)), ("ftp", None)] {
        let bytes = Raw::new().headers(1, true, &[GET[0], (":scheme", name), GET[2], GET[3]]).bytes;
        let (mut server, mut used, mut head) = (Connection::new(Role::Server, Limits::default()), 0, Head::default());
        while used < bytes.len() {
            used += server.receive(&bytes[used..], NOW, &mut head).unwrap().0;
        }
        assert_eq!(head.scheme, expected, "{name}");
    }
}

#[test]
fn only_streams_that_are_given_up_prematurely_are_counted() {
    let at = Duration::from_millis;
    let rate = Rate { burst: 10, per_second: 0 };
    let resets = Resets { rate, lifetime: at(1000) };
    let limits = Limits { allowances: Allowances { resets, ..Allowances::default() }, ..Limits::default() };
    let cancel = |raw: Raw, ids: &[StreamId]| {
        ids.iter().fold(raw, |raw, &id| raw.frame(kind::RST_STREAM, 0, id, &Code::CANCEL.0.to_be_bytes()))
    };
    let odd = |from: u32, count: u32| (from..from + count).map(|index| 2 * index + 1).collect::<Vec<_>>();
    let open = |raw: Raw, ids: &[StreamId]| ids.iter().fold(raw, |raw, &id| raw.get(id, true));
    // A deadline passes for all of them at once.
    let ids = odd(0, 100);
    for (waited, expected) in [(at(999), Some(Code::ENHANCE_YOUR_CALM)), (at(1000), None)] {
        let mut server = Connection::new(Role::Server, limits);
        assert_eq!(feed_at(at(0), &mut server, &open(Raw::new(), &ids).bytes, usize::MAX / 2).1, None);
        assert_eq!(
            feed_at(waited, &mut server, &cancel(Raw::bare(), &ids).bytes, usize::MAX / 2).1,
            expected,
            "{waited:?}"
        );
    }
    // The client has seen enough of their answers.
    let mut server = Connection::new(Role::Server, limits);
    feed(&mut server, &open(Raw::new(), &ids).bytes, usize::MAX / 2);
    for &id in &ids {
        server.response(id, &response(200, Framing::Chunked), Framing::Chunked, false);
    }
    assert_eq!(feed(&mut server, &cancel(Raw::bare(), &ids).bytes, usize::MAX / 2).1, None);
    // Most of its requests it sees through: whole exchanges earn nothing here, for the allowance was never touched.
    let (whole, given_up) = (odd(0, 25), odd(25, 24));
    let mut server = Connection::new(Role::Server, limits);
    feed(&mut server, &open(Raw::new(), &whole).bytes, usize::MAX / 2);
    for &id in &whole {
        server.response(id, &response(204, Framing::None), Framing::None, true);
    }
    let bytes = cancel(open(Raw::bare(), &given_up), &given_up).bytes;
    assert_eq!(feed(&mut server, &bytes, usize::MAX / 2).1, None);
    let more = odd(49, 2);
    let bytes = cancel(open(Raw::bare(), &more), &more).bytes;
    assert_eq!(feed(&mut server, &bytes, usize::MAX / 2).1, Some(Code::ENHANCE_YOUR_CALM));
}

#[test]
fn a_bound_of_its_own_holds_instead_of_the_allowance() {
    let floods = Floods {
        outbound_control_frames: 100,
        consecutive_empty_frames: 100,
        priority_frames_per_stream: 100,
        window_updates_per_data_frame: 100,
        ..Floods::default()
    };
    let allowance = Limits { allowances: idle_frames(0), ..Limits::default() };
    let frames: [(u8, StreamId, &[u8]); 5] = [
        (kind::DATA, 1, &[]),
        (kind::PRIORITY, 1, &[0, 0, 0, 3, 0]),
        (kind::WINDOW_UPDATE, 1, &[0, 0, 0, 1]),
        (kind::PING, 0, &[0; 8]),
        (kind::SETTINGS, 0, &[]),
    ];
    for (kind, stream, payload) in frames {
        // Of WINDOW_UPDATE there may be seven where nothing was sent.
        let raw = || (0..7).fold(Raw::new().get(1, false), |raw, _| raw.frame(kind, 0, stream, payload));
        assert_eq!(raw().read_by_server(Limits { floods, ..allowance }).1, None, "{kind}");
        assert_eq!(raw().read_by_server(allowance).1, Some(Code::ENHANCE_YOUR_CALM), "{kind}");
    }
}

#[test]
fn every_continuation_is_paid_for_whatever_is_configured_of_empty_ones() {
    let floods = Floods { consecutive_empty_frames: 1000, ..Floods::default() };
    let limits = Limits { floods, allowances: idle_frames(5), ..Limits::default() };
    for content in [&[][..], &[0x82]] {
        let begun = |count| {
            (0..count)
                .fold(Raw::new().frame(kind::HEADERS, 0, 1, &[]), |raw, _| raw.frame(kind::CONTINUATION, 0, 1, content))
        };
        assert_eq!(begun(5).read_by_server(limits).1, None, "{content:?}");
        assert_eq!(begun(6).read_by_server(limits).1, Some(Code::ENHANCE_YOUR_CALM), "{content:?}");
    }
    let few = Limits { floods: Floods { consecutive_empty_frames: 3, ..floods }, ..limits };
    let empty = |count| {
        (0..count).fold(Raw::new().frame(kind::HEADERS, 0, 1, &[]), |raw, _| raw.frame(kind::CONTINUATION, 0, 1, &[]))
    };
    // HEADERS is one of them.
    assert_eq!(empty(2).read_by_server(few).1, None);
    assert_eq!(empty(3).read_by_server(few).1, Some(Code::ENHANCE_YOUR_CALM));
}

#[test]
fn settings_that_change_are_paid_for_however_many_answers_may_wait() {
    let floods = Floods { outbound_control_frames: 1000, ..Floods::default() };
    let limits = Limits { floods, allowances: idle_frames(3), ..Limits::default() };
    const MAX_CONCURRENT_STREAMS: u8 = 3;
    const INITIAL_WINDOW_SIZE: u8 = 4;
    for setting in [MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE] {
        let changes = |count: u8| {
            (0..count).fold(Raw::new(), |raw, value| raw.frame(kind::SETTINGS, 0, 0, &[0, setting, 0, 0, 0, value]))
        };
        assert_eq!(changes(3).read_by_server(limits).1, None, "{setting}");
        assert_eq!(changes(4).read_by_server(limits).1, Some(Code::ENHANCE_YOUR_CALM), "{setting}");
    }
    // What says the same again is told to nobody.
    let mut server = Connection::new(Role::Server, limits);
    let mut told = |raw: Raw| {
        let (mut used, mut events) = (0, 0);
        while used < raw.bytes.len() {
            let (count, event) = server.receive(&raw.bytes[used..], NOW, &mut Head::default()).unwrap();
            used += count;
            events += usize::from(event == Some(Event::Settings));
        }
        events
    };
    assert_eq!(told(Raw::new()), 1);
    for expected in [1, 0] {
        assert_eq!(told(Raw::bare().frame(kind::SETTINGS, 0, 0, &[0, MAX_CONCURRENT_STREAMS, 0, 0, 0, 9])), expected);
    }
}

#[test]
fn configured_floods_end_the_connection_at_their_limit() {
    let none = Floods::default();
    let many = |raw: Raw, count: u32, kind: u8, stream: StreamId, payload: &[u8]| {
        (0..count).fold(raw, |raw, _| raw.frame(kind, 0, stream, payload))
    };
    let pings = |count| many(Raw::new(), count, kind::PING, 0, &[0; 8]);
    let empty = |count| many(Raw::new().get(1, false), count, kind::DATA, 1, &[]);
    let priorities = |count| many(Raw::new().get(1, false), count, kind::PRIORITY, 1, &[0, 0, 0, 3, 0]);
    let updates = |count| many(Raw::new().get(1, false), count, kind::WINDOW_UPDATE, 1, &[0, 0, 0, 1]);
    // What is sent, as often as it may be: the first SETTINGS is answered too, and the connection counts as a stream for PRIORITY.
    type Case<'c> = (&'c str, Floods, &'c dyn Fn(u32) -> Raw, u32);
    let cases: [Case<'_>; 4] = [
        ("answers", Floods { outbound_control_frames: 10, ..none }, &pings, 9),
        ("empty frames", Floods { consecutive_empty_frames: 3, ..none }, &empty, 3),
        ("PRIORITY", Floods { priority_frames_per_stream: 4, ..none }, &priorities, 8),
        ("WINDOW_UPDATE", Floods { window_updates_per_data_frame: 1, ..none }, &updates, 7),
    ];
    for (case, floods, raw, most) in cases {
        let limits = Limits { floods, ..Limits::default() };
        assert_eq!(raw(most).read_by_server(limits).1, None, "{case}: {most} are allowed");
        assert_eq!(raw(most + 1).read_by_server(limits).1, Some(Code::ENHANCE_YOUR_CALM), "{case}");
        assert_eq!(raw(most + 1).read_by_server(Limits::default()).1, None, "{case}: not by default");
    }
    // Content between them begins the count anew.
    let limits = Limits { floods: Floods { consecutive_empty_frames: 3, ..none }, ..Limits::default() };
    let between = many(empty(3).frame(kind::DATA, 0, 1, b"x"), 3, kind::DATA, 1, &[]);
    assert_eq!(between.read_by_server(limits).1, None);
    // Answers of ours that the peer does not read: HEADERS for each of its requests.
    let limits = Limits { floods: Floods { outbound_frames: 4, ..none }, ..Limits::default() };
    for (unwritten, expected) in [(4, None), (5, Some(Code::ENHANCE_YOUR_CALM))] {
        let (mut client, mut server) = pair(limits);
        server.written();
        for index in 0..unwritten {
            let id = client.request(&request("GET", "/", Framing::None), false, true);
            pass(&mut client, &mut server);
            server.response(id, &response(204, Framing::None), Framing::None, true);
            assert_eq!(server.counts.waiting, index + 1);
        }
        client.request(&request("GET", "/", Framing::None), false, true);
        assert_eq!(feed(&mut server, client.output(), usize::MAX / 2).1, expected, "{unwritten}");
    }
}

#[test]
fn a_small_table_is_kept_to_from_the_first_block() {
    for (header_table_bytes, grows_smaller) in [(0, false), (4096, true)] {
        let limits = Limits { header_table_bytes, ..Limits::default() };
        let mut client = Connection::new(Role::Client, limits);
        let mut server = Connection::new(Role::Server, limits);
        let mut head = request("GET", "/", Framing::None);
        head.append(Name::new("x-repeated"), b"value");
        // Before anybody has read the other's settings.
        let lengths = [(); 3].map(|()| {
            let before = client.output().len();
            client.request(&head, false, true);
            client.output().len() - before
        });
        assert_eq!(lengths[2] < lengths[1] || lengths[1] < lengths[0] - 2, grows_smaller, "{lengths:?}");
        assert_eq!(pass(&mut client, &mut server).len(), 3);
    }
}

#[test]
fn no_go_away_names_a_later_stream_than_the_one_before() {
    let mut server = Connection::new(Role::Server, Limits::default());
    assert_eq!(feed(&mut server, &Raw::new().get(1, true).bytes, 9).1, None);
    server.go_away(Code::NO_ERROR);
    // On its way when that was said, and not taken. What follows it is an error of the connection.
    let late = Raw { bytes: Vec::new() }.get(3, true).frame(kind::PING, 0, 1, &[0; 8]);
    assert_eq!(feed(&mut server, &late.bytes, 9), (vec![], Some(Code::PROTOCOL_ERROR)));
    server.fail(Code::ENHANCE_YOUR_CALM, "and another");
    let mut client = Connection::new(Role::Client, Limits::default());
    let named = [Code::NO_ERROR, Code::PROTOCOL_ERROR, Code::ENHANCE_YOUR_CALM].map(|code| Seen::GoAway(1, code));
    assert_eq!(pass(&mut server, &mut client), named);
}

#[test]
fn a_table_larger_than_our_settings_allow_ends_the_connection() {
    let limits = Limits { header_table_bytes: 1000, ..Limits::default() };
    let get = |raw: Raw, begin: &[u8]| {
        raw.frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &[begin, &Raw::block(&GET)[..]].concat())
    };
    let acknowledge = |raw: Raw| raw.frame(kind::SETTINGS, flag::ACK, 0, &[]);
    let (grow_to_1000, grow_to_1001) = ([0x3f, 0xc9, 0x07], [0x3f, 0xca, 0x07]);
    // Who has not acknowledged it may not know it.
    for (raw, begin, expected) in [
        (Raw::new(), grow_to_1001, None),
        (acknowledge(Raw::new()), grow_to_1000, None),
        (acknowledge(Raw::new()), grow_to_1001, Some(Code::COMPRESSION_ERROR)),
    ] {
        assert_eq!(get(raw, &begin).read_by_server(limits).1, expected, "{begin:?}");
    }
    // What was kept before and has no place any more is gone, also if the peer says nothing of it (RFC 7541 4.3).
    let large = [&[0x40, 1, b'a', 0x7f, 0xb9, 0x07][..], &[b'v'; 1080]].concat();
    let kept = |raw: Raw| {
        raw.frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &[Raw::block(&GET), large.clone()].concat())
    };
    let named = |raw: Raw| {
        raw.frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 3, &[Raw::block(&GET), vec![0xbe]].concat())
    };
    assert_eq!(named(kept(Raw::new())).read_by_server(limits).1, None);
    assert_eq!(named(acknowledge(kept(Raw::new()))).read_by_server(limits).1, Some(Code::COMPRESSION_ERROR));
}

#[test]
fn a_small_block_that_stands_for_megabytes_is_not_kept() {
    // One entry of 4000 bytes, named 16,000 times: 64 MB.
    let mut block = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    block.extend_from_slice(&[b'v'; 4000]);
    block.extend_from_slice(&[0xbe; 12_000]);
    let mut head = Head::default();
    let mut bytes = Raw::new().bytes;
    frame::header(&mut bytes, block.len(), kind::HEADERS, 5, 1);
    bytes.extend_from_slice(&block);
    let mut server = Connection::new(Role::Server, Limits::default());
    let mut used = 0;
    loop {
        let (count, event) = server.receive(&bytes[used..], NOW, &mut head).unwrap();
        used += count;
        if matches!(event, Some(Event::TooLarge { .. })) {
            break;
        }
    }
    assert!(head.capacity_bytes() < 256 * 1024, "{}", head.capacity_bytes());
}

#[test]
fn going_away_in_two_steps_loses_nothing_that_was_on_its_way() {
    let (mut client, mut server) = pair(Limits::default());
    client.request(&request("GET", "/1", Framing::None), false, true);
    server.announce_go_away();
    // On its way while the announcement is.
    client.request(&request("GET", "/2", Framing::None), false, true);
    assert_eq!(pass(&mut client, &mut server).len(), 2);
    assert_eq!(pass(&mut server, &mut client), [Seen::GoAway(0x7fff_ffff, Code::NO_ERROR)]);
    assert!(!client.can_open() && client.is_worn());
    server.go_away(Code::NO_ERROR);
    assert_eq!(pass(&mut server, &mut client), [Seen::GoAway(3, Code::NO_ERROR)]);
    for id in [1, 3] {
        server.response(id, &response(200, Framing::Length(0)), Framing::Length(0), true);
    }
    assert_eq!(pass(&mut server, &mut client).len(), 2);
}

#[test]
fn a_ping_is_answered_and_its_answer_told() {
    let (mut client, mut server) = pair(Limits::default());
    client.ping(*b"weft\0\0\0\x01");
    assert_eq!(pass(&mut client, &mut server), []);
    assert_eq!(pass(&mut server, &mut client), [Seen::Pong(*b"weft\0\0\0\x01")]);
}

#[test]
fn answers_that_were_asked_for_are_not_counted_against_the_peer() {
    let (mut client, mut server) = pair(Limits::default());
    client.idle_frames = Allowance::new(Rate { burst: 1, per_second: 0 });
    (0..9).for_each(|_| client.ping([0; 8]));
    pass(&mut client, &mut server);
    assert_eq!(pass(&mut server, &mut client).len(), 9);
    let unasked = Raw::bare().frame(kind::PING, flag::ACK, 0, &[0; 8]);
    let ends = [(); 2].map(|()| feed(&mut client, &unasked.bytes, 9).1);
    assert_eq!(ends, [None, Some(Code::ENHANCE_YOUR_CALM)]);
}

#[test]
fn a_late_frame_on_a_stream_that_we_reset_is_passed_over() {
    let (mut client, mut server) = pair(Limits::default());
    let id = client.request(&request("POST", "/", Framing::Chunked), false, false);
    pass(&mut client, &mut server);
    server.reset(id, Code::CANCEL);
    client.data(id, b"late", false);
    client.trailers(id, [(&b"x-late"[..], &b"1"[..])].into_iter());
    assert_eq!(pass(&mut client, &mut server), []);
    assert_eq!(pass(&mut server, &mut client), [Seen::Reset(id, Code::CANCEL)]);
    // The field of the late trailers is in both tables.
    let mut head = request("GET", "/", Framing::None);
    head.append(Name::new("x-late"), b"1");
    client.request(&head, false, true);
    assert_eq!(pass(&mut client, &mut server), [Seen::Head(3, "GET reviews:9080 / x-late=1".into(), true)]);
}

/// Kind and stream of each frame in the output, which is taken away.
fn take_frames(connection: &mut Connection) -> Vec<(u8, StreamId)> {
    let mut bytes = Vec::new();
    connection.swap_output(&mut bytes);
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let Some(header) = frame::Header::read(rest) {
        frames.push((header.kind, header.stream));
        rest = &rest[frame::HEADER_BYTES + header.length..];
    }
    frames
}

#[test]
fn answers_to_many_requests_that_were_given_up_at_once_are_passed_over() {
    let (mut client, mut server) = pair(Limits::default());
    let get = request("GET", "/", Framing::None);
    let ids: Vec<StreamId> = (0..700).map(|_| client.request(&get, false, true)).collect();
    pass(&mut client, &mut server);
    ids.iter().for_each(|&id| client.reset(id, Code::CANCEL));
    let resets: Vec<_> = ids.iter().map(|&id| (kind::RST_STREAM, id)).collect();
    assert_eq!(take_frames(&mut client), resets);
    let mut head = response(200, Framing::Chunked);
    head.append(Name::new("x-late"), b"1");
    for &id in &ids {
        server.response(id, &head, Framing::Chunked, false);
        assert_eq!(server.data(id, b"late", true), 4);
    }
    assert_eq!(pass(&mut server, &mut client), []);
    assert_eq!(take_frames(&mut client), [], "nothing is said of streams that are over");
    let id = client.request(&get, false, true);
    pass(&mut client, &mut server);
    server.response(id, &head, Framing::Length(0), true);
    assert_eq!(pass(&mut server, &mut client), [Seen::Head(id, "200 x-late=1".into(), true)]);
}

#[test]
fn bodies_of_many_requests_that_were_answered_early_are_passed_over() {
    let limits = Limits { connection_window_bytes: 65_535, ..Limits::default() };
    let mut server = Connection::new(Role::Server, limits);
    let ids: Vec<StreamId> = (0..800).map(|index| 2 * index + 1).collect();
    let begun = ids.iter().fold(Raw::new(), |raw, &id| raw.get(id, false));
    assert_eq!(feed(&mut server, &begun.bytes, usize::MAX / 2).1, None);
    for &id in &ids {
        server.response(id, &response(413, Framing::Length(0)), Framing::Length(0), true);
        server.reset(id, Code::NO_ERROR);
    }
    take_frames(&mut server);
    // More than the connection's window, if what is passed over did not open it again. The first trailers are in the table.
    let nothing = || Raw { bytes: Vec::new() };
    let ended = flag::END_HEADERS | flag::END_STREAM;
    let late = ids.iter().fold(nothing(), |raw, &id| {
        let field: &[u8] = if id == 1 { &[0x40, 1, b'a', 1, b'b'] } else { &[0xbe] };
        raw.frame(kind::DATA, 0, id, &[0; 1000]).frame(kind::HEADERS, ended, id, field)
    });
    assert_eq!(feed(&mut server, &late.bytes, usize::MAX / 2), (vec![], None));
    let said = take_frames(&mut server);
    assert!(said.iter().all(|&frame| frame == (kind::WINDOW_UPDATE, 0)), "{said:?}");
    let next = nothing().frame(kind::HEADERS, ended, 1601, &[Raw::block(&GET), vec![0xbe]].concat());
    let seen = vec![Seen::Head(1601, "GET a / a=b".into(), true)];
    assert_eq!(feed(&mut server, &next.bytes, usize::MAX / 2), (seen, None));
    // What the client itself has closed, or never opened, is not forgiven for it.
    for (stream, expected) in [(1601, Code::STREAM_CLOSED), (1603, Code::PROTOCOL_ERROR)] {
        let mut server = Connection::new(Role::Server, limits);
        feed(&mut server, &begun.bytes, usize::MAX / 2);
        ids.iter().for_each(|&id| server.reset(id, Code::NO_ERROR));
        feed(&mut server, &nothing().get(1601, true).bytes, usize::MAX / 2);
        server.response(1601, &response(204, Framing::None), Framing::None, true);
        feed(&mut server, &nothing().get(1605, true).bytes, usize::MAX / 2);
        assert_eq!(feed(&mut server, &nothing().get(stream, true).bytes, usize::MAX / 2).1, Some(expected), "{stream}");
    }
}

#[test]
fn a_status_that_has_no_body_has_no_length() {
    for (method, status, expected) in [
        ("GET", "204", None),
        ("HEAD", "204", None),
        ("GET", "304", Some(5)),
        ("HEAD", "304", Some(5)),
        ("HEAD", "200", Some(5)),
        ("HEAD", "103", None),
    ] {
        let mut client = Connection::new(Role::Client, Limits::default());
        client.request(&request(method, "/", Framing::None), false, true);
        let mut bytes = Vec::new();
        Settings::default().write(&mut bytes);
        let ended = status != "103";
        let answer = Raw { bytes }.headers(1, ended, &[(":status", status), ("content-length", "5")]);
        let (mut head, mut used) = (Head::default(), 0);
        while used < answer.bytes.len() {
            used += client.receive(&answer.bytes[used..], NOW, &mut head).unwrap().0;
        }
        assert_eq!((head.framing, head.declared_length), (Framing::None, expected), "{method} {status}");
    }
}

#[test]
fn a_response_is_held_to_the_rules_too() {
    for (case, status, framing, body, good) in [
        ("a body after 204", 204, Framing::None, &b"x"[..], false),
        ("a body after 304", 304, Framing::None, b"x", false),
        ("less than its length", 200, Framing::Length(3), b"xx", false),
        ("its length", 200, Framing::Length(2), b"xx", true),
    ] {
        let (mut client, mut server) = pair(Limits::default());
        client.request(&request("GET", "/", Framing::None), false, true);
        pass(&mut client, &mut server);
        server.response(1, &response(status, framing), framing, false);
        server.data(1, body, true);
        let seen = pass(&mut server, &mut client);
        assert_eq!(matches!(seen[1], Seen::Data(..)), good, "{case}: {seen:?}");
    }
    let (mut client, mut server) = pair(Limits::default());
    client.request(&request("HEAD", "/", Framing::None), false, true);
    pass(&mut client, &mut server);
    server.response(1, &response(200, Framing::Length(5)), Framing::Length(5), true);
    assert_eq!(pass(&mut server, &mut client), [Seen::Head(1, "200".into(), true)]);
}

/// RFC 9110 9.3.6: a client ignores a length in a success of CONNECT; in 204, too, all that follows is the tunnel's.
#[test]
fn what_follows_a_success_of_connect_is_the_tunnels() {
    let (mut plain, mut extended) = (Head::default(), request("GET", "/chat", Framing::None));
    plain.set_method(b"CONNECT");
    plain.set_authority(b"reviews:9080");
    extended.set_upgrade(b"websocket");
    for asked in [plain, extended] {
        for (status, length, is_tunnel) in
            [("200", "0", true), ("200", "9", true), ("204", "0", true), ("403", "0", false)]
        {
            let (mut client, mut bytes) = (Connection::new(Role::Client, Limits::default()), Vec::new());
            client.request(&asked, false, false);
            Settings::default().write(&mut bytes);
            let answer = Raw { bytes }.headers(1, false, &[(":status", status), ("content-length", length)]);
            let seen = feed(&mut client, &answer.frame(kind::DATA, 0, 1, b"bytes").bytes, usize::MAX / 2);
            let passed = matches!(&seen, (seen, None) if matches!(seen.last(), Some(Seen::Data(..))));
            assert_eq!(passed, is_tunnel, "{status} {length}: {seen:?}");
        }
    }
}

/// RFC 9113 8.5: it is DATA alone; what answers a CONNECT that was refused has trailers as any other answer.
#[test]
fn a_tunnel_has_no_trailers() {
    let broken = Some(Seen::Broken(1, Code::PROTOCOL_ERROR, Breach::Protocol));
    for (status, in_tunnel) in [("200", true), ("403", false)] {
        let (mut client, mut bytes) = (Connection::new(Role::Client, Limits::default()), Vec::new());
        let mut connect = Head::default();
        connect.set_method(b"CONNECT");
        connect.set_authority(b"reviews:9080");
        client.request(&connect, false, false);
        Settings::default().write(&mut bytes);
        let answer = Raw { bytes }.headers(1, false, &[(":status", status)]).headers(1, true, &[("x-end", "1")]);
        let (mut seen, error) = feed(&mut client, &answer.bytes, usize::MAX / 2);
        assert_eq!((seen.pop() == broken, error), (in_tunnel, None), "{status}");
    }
    let connect = [(":method", "CONNECT"), (":authority", "reviews:9080")];
    let request = Raw::new().headers(1, false, &connect).headers(1, true, &[("x-end", "1")]);
    let (mut seen, error) = request.read_by_server(Limits::default());
    assert_eq!((seen.pop(), error), (broken, None));
}

#[test]
fn foreign_bytes_never_panic_and_splits_change_nothing() {
    fn holds(frames: Vec<(u8, u8, u8, Vec<u8>)>, step: u8) -> bool {
        let raw = frames.iter().fold(Raw::new().get(1, false), |raw, (kind, flags, stream, payload)| {
            raw.frame(kind % 10, *flags, u32::from(stream % 6), payload)
        });
        let mut one = Connection::new(Role::Server, Limits::default());
        let mut other = Connection::new(Role::Server, Limits::default());
        let whole = feed(&mut one, &raw.bytes, usize::MAX / 2);
        whole == feed(&mut other, &raw.bytes, usize::from(step % 16) + 1) && one.output() == other.output()
    }
    quickcheck::QuickCheck::new().tests(500).quickcheck(holds as fn(Vec<(u8, u8, u8, Vec<u8>)>, u8) -> bool);
}

#[test]
fn the_version_is_told() {
    let mut head = Head::default();
    let bytes = Raw::new().get(1, true).bytes;
    let mut server = Connection::new(Role::Server, Limits::default());
    let (used, _) = server.receive(&bytes, NOW, &mut head).unwrap();
    server.receive(&bytes[used..], NOW, &mut head).unwrap();
    assert_eq!(head.version, Version::Http2);
}
