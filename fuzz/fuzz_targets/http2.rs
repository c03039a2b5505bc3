//! The HTTP/2 codec under foreign bytes: it must not panic, must see the same for every split of the bytes and say the same, and a
//! request that it accepts must mean the same to the next hop, in HTTP/2 and in HTTP/1.1. A difference is how a request is smuggled.
//!
//! The first bytes of the input say which side reads and how the bytes are split; the rest is what a peer sends.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its codec is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/base64.rs"]
mod base64;
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;

use codec::h2::{Connection, Event, Limits, Role};
use codec::http1::encode::{self, After};
use codec::http1::{self, HeadParser};
use codec::{Framing, Head};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|input: &[u8]| {
    let [kind, split, bytes @ ..] = input else { return };
    let step = usize::from(*split % 64) + 1;
    let (role, begin) = if kind % 2 == 0 { (Role::Server, PREFACE) } else { (Role::Client, SETTINGS) };
    // Small limits, so that a fuzzer can reach them.
    let limits = Limits { streams: 4, header_bytes: 512, header_fields: 10, ..Limits::default() };
    let all = [begin, bytes].concat();
    let whole = feed(role, limits, &all, all.len());
    let parts = feed(role, limits, &all, step);
    assert_eq!(whole.seen, parts.seen, "a split changed what was seen");
    assert_eq!(whole.said, parts.said, "a split changed what was said");
    for head in &whole.requests {
        same_in_http2(head);
        same_in_http1(head);
    }
});

struct Result {
    seen: Vec<String>,
    said: Vec<u8>,
    requests: Vec<Head>,
}

fn feed(role: Role, limits: Limits, bytes: &[u8], step: usize) -> Result {
    let mut connection = Connection::new(role, limits);
    if role == Role::Client {
        // Something for the server to answer.
        let mut head = Head::default();
        head.set_method(b"GET");
        head.set_path(b"/");
        for _ in 0..3 {
            connection.request(&head, false, true);
        }
    }
    let mut result = Result { seen: Vec::new(), said: Vec::new(), requests: Vec::new() };
    let mut body: Option<(u32, Vec<u8>)> = None;
    let (mut used, mut end) = (0, 0);
    let mut head = Head::default();
    loop {
        match connection.receive(&bytes[used..end], Duration::ZERO, &mut head) {
            Err(error) => {
                result.seen.push(format!("{body:?} {error:?}"));
                break;
            }
            Ok((0, None)) if end == bytes.len() => {
                result.seen.push(format!("{body:?}"));
                break;
            }
            Ok((0, None)) => end = (end + step).min(bytes.len()),
            Ok((count, event)) => {
                used += count;
                match event {
                    None => {}
                    // Parts of one body are one, however they came.
                    Some(Event::Data { stream, data, ended: false }) => match &mut body {
                        Some((last, bytes)) if *last == stream => bytes.extend_from_slice(data),
                        _ => {
                            if let Some(before) = body.replace((stream, data.to_vec())) {
                                result.seen.push(format!("{before:?}"));
                            }
                        }
                    },
                    Some(Event::Data { stream, data, ended: true }) => {
                        let begun = body.take_if(|(last, _)| *last == stream).map(|(_, bytes)| bytes);
                        result.seen.push(format!(
                            "{body:?} {stream} {:?}",
                            [begun.unwrap_or_default(), data.to_vec()].concat()
                        ));
                        body = None;
                    }
                    Some(event) => {
                        result.seen.push(format!("{:?} {event:?}", body.take()));
                        if matches!(event, Event::Head { .. } | Event::Trailers { .. }) {
                            result.seen.push(format!("{head:?}"));
                        }
                        if role == Role::Server && matches!(event, Event::Head { .. }) {
                            result.requests.push(head.clone());
                        }
                    }
                }
            }
        }
    }
    result.said = connection.output().to_vec();
    result
}

/// What a hop may change: names lose their case, and nothing else.
fn fields(head: &Head) -> Vec<(Vec<u8>, Vec<u8>)> {
    head.fields().map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect()
}

fn assert_same(one: &Head, other: &Head) {
    assert_eq!((one.method(), one.path(), one.authority()), (other.method(), other.path(), other.authority()));
    assert_eq!(fields(one), fields(other));
    let sent = |framing: Framing| if framing == Framing::Length(0) { Framing::None } else { framing };
    assert_eq!(sent(one.framing), sent(other.framing));
}

fn same_in_http2(head: &Head) {
    let wide = Limits { header_bytes: 1 << 20, header_fields: 200, ..Limits::default() };
    let (mut client, mut server) = (Connection::new(Role::Client, wide), Connection::new(Role::Server, wide));
    if !head.upgrade().is_empty() {
        return;
    }
    client.request(head, false, head.framing == Framing::None);
    let mut again = Head::default();
    let mut used = 0;
    loop {
        let (count, event) = server
            .receive(&client.output()[used..], Duration::ZERO, &mut again)
            .expect("our own frames are well-formed");
        used += count;
        match event {
            Some(Event::Head { .. }) => return assert_same(head, &again),
            Some(Event::Writable { .. }) => {}
            other => panic!("what was accepted is not accepted again: {other:?}"),
        }
    }
}

fn same_in_http1(head: &Head) {
    if head.authority().is_empty() || head.is_connect() || !head.upgrade().is_empty() {
        // The first two are refused before they are forwarded; an upgrade gains fields on its way.
        return;
    }
    let mut out = Vec::new();
    encode::request(&mut out, head, After::KeepAlive);
    let mut again = Head::default();
    let limits = http1::Limits { head_bytes: 1 << 20, fields: 200 };
    let read = HeadParser::default().request(&out, &mut again, limits);
    assert_eq!(read, Ok(Some(out.len())), "not one request in HTTP/1.1: {:?}", String::from_utf8_lossy(&out));
    // `te` and lengths are written by the encoder; reading gives them back as fields.
    again.remove(b"te");
    assert_same(head, &again);
}
