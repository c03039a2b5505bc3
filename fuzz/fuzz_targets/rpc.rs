//! Codecs of RPC protocols under foreign bytes: they must not panic, must see the same messages however the bytes are split, and what they answer
//! to a call must be an answer to that very call.
//!
//! The first byte of the input says which protocol it is and how the bytes are split; the rest is what a peer sends.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its codec is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;

use codec::rpc::dubbo::Dubbo;
use codec::rpc::thrift::Thrift;
use codec::rpc::{Codec, Frame, Limits, Malformed, Message, Refusal, Sharing, Status};

/// Small: inputs are of 1024 bytes, and seldom would one reach what a proxy allows.
const LIMITS: Limits = Limits { headers: 10, parameters: 5, name_bytes: 100 };

const REFUSALS: [Refusal; 5] =
    [Refusal::NoRoute, Refusal::BadRequest, Refusal::Unavailable, Refusal::Overloaded, Refusal::Timeout];

fuzz_target!(|input: &[u8]| {
    let [first, bytes @ ..] = input else { return };
    let codec: &dyn Codec =
        if first & 1 == 0 { &Dubbo { limits: LIMITS } } else { &Thrift { limits: LIMITS, ..Thrift::default() } };
    let whole = messages(codec, bytes, bytes.len().max(1));
    let parts = messages(codec, bytes, usize::from(first >> 1) + 1);
    assert_eq!(whole, parts, "a split changed the verdict");
    for message in &whole.0 {
        let Ok(kind) = codec.inspect(message) else { continue };
        look_at(codec, message, kind);
    }
});

/// Whole messages, and the error that ends them.
fn messages(codec: &dyn Codec, bytes: &[u8], step: usize) -> (Vec<Vec<u8>>, Option<Malformed>) {
    let mut found = Vec::new();
    let (mut begin, mut end) = (0, step.min(bytes.len()));
    loop {
        match codec.frame(&bytes[begin..end]) {
            Err(error) => return (found, Some(error)),
            Ok(Frame::Length(0)) => panic!("a message of no bytes never ends"),
            Ok(Frame::Length(length)) if length <= end - begin => {
                found.push(bytes[begin..begin + length].to_vec());
                begin += length;
            }
            Ok(_) if end == bytes.len() => return (found, None),
            Ok(_) => end = (end + step).min(bytes.len()),
        }
    }
}

fn look_at(codec: &dyn Codec, message: &[u8], kind: Message) {
    match kind {
        Message::Call { id, answered } => {
            if let Ok(call) = codec.call(message) {
                // Nothing is made up: what was read stood in the message.
                let headers = call.rest.iter().flat_map(|rest| &rest.headers);
                assert!(headers.map(|(name, value)| name.len() + value.len()).sum::<usize>() <= message.len());
                // Nor is much made of little.
                assert!(call.service.len().max(call.method.len()) <= LIMITS.name_bytes);
                assert!(call.version.is_none_or(|version| version.len() <= LIMITS.name_bytes));
                if let Some(rest) = &call.rest {
                    assert!(rest.headers.len() <= LIMITS.headers && rest.parameters.len() <= LIMITS.parameters);
                }
            }
            for refusal in REFUSALS {
                let mut out = Vec::new();
                codec.refuse(message, refusal, "why: \u{e4} \u{1f600}", &mut out);
                assert_eq!(codec.frame(&out), Ok(Frame::Length(out.len())));
                assert!(
                    matches!(codec.inspect(&out), Ok(Message::Answer { id: of, status: Status::Error(_) }) if of == id)
                );
            }
            if let Sharing::Many { set_id } = codec.sharing() {
                let mut other = message.to_vec();
                set_id(&mut other, !id);
                assert_eq!(codec.inspect(&other), Ok(Message::Call { id: !id, answered }));
                set_id(&mut other, id);
                assert_eq!(other, message);
            }
        }
        Message::Ping { .. } => {
            let mut out = Vec::new();
            codec.pong(message, &mut out);
            assert_eq!(codec.frame(&out), Ok(Frame::Length(out.len())));
            assert_eq!(codec.inspect(&out), Ok(Message::Pong));
        }
        Message::Answer { .. } | Message::Pong | Message::GoAway => {}
    }
}
