//! The HTTP/2 codec under foreign bytes: it must not panic, must see the same for every split of the bytes and say the same, and a
//! request that it accepts must mean the same to the next hop, in HTTP/2 and in HTTP/1.1. A difference is how a request is smuggled.
//!
//! The first bytes of the input say which side reads and how the bytes are split; the rest is what a peer sends.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its codec is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;

mod heads;

use codec::Head;
use codec::h2::{Connection, Event, Limits, Role};
use heads::{same_in_http1, same_in_http2};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|input: &[u8]| {
    let [kind, split, bytes @ ..] = input else { return };
    let step = usize::from(*split % 64) + 1;
    let (role, begin) = if kind % 2 == 0 { (Role::Server, PREFACE) } else { (Role::Client, SETTINGS) };
    // Small limits, so that a fuzzer can reach them.
    let limits = Limits { streams: 4, header_bytes: 512, header_fields: 10, extended_connect: true, ..Limits::default() };
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
