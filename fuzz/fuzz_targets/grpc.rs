//! gRPC's framing under foreign bytes: messages are the same however their bytes are cut, and together with their prefixes they are what
//! came. The answer of a health check is framed by code of its own, which must agree; and a message of access records that is taken
//! apart has the records that a decoder finds.
//!
//! The first byte of the input says how it is cut; the rest is what a peer sends.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use weft_core::health_check::Verdict;
use weft_protos::envoy::data::accesslog::v3::{HttpAccessLogEntry, TcpAccessLogEntry};
use weft_protos::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use weft_protos::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;

#[allow(dead_code)]
#[path = "../../crates/xds/src/grpc.rs"]
mod grpc;

/// As in the crate of xDS.
#[path = "../../crates/xds/src/access_log"]
mod access_log {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Kind {
        Http,
        Tcp,
    }

    pub mod entries;
}

// The proxy is an executable without a library, so its code is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;

/// As in the proxy, without what connects.
#[path = "../../crates/proxy/src/health_check"]
mod health_check {
    #[allow(dead_code)]
    pub mod grpc;

    pub mod exchange {
        use crate::codec::Head;

        #[derive(Default)]
        pub struct Answer {
            pub head: Head,
            pub body: Vec<u8>,
            pub is_cut: bool,
            pub trailers: Head,
        }
    }

    pub mod probe {
        use std::borrow::Cow;

        use weft_core::health_check::Verdict;

        pub struct Found {
            pub verdict: Verdict,
            #[allow(dead_code)]
            pub why: Cow<'static, str>,
        }

        impl Found {
            pub fn new(verdict: Verdict, why: impl Into<Cow<'static, str>>) -> Found {
                Found { verdict, why: why.into() }
            }

            pub fn passed() -> Found {
                Found::new(Verdict::Passed { degraded: false }, "")
            }
        }
    }
}

use access_log::{Kind, entries};
use codec::Name;
use grpc::{Deframer, FrameError};
use health_check::exchange::Answer;

/// Small, so that a fuzzer can reach it.
const LIMIT: usize = 512;

fuzz_target!(|input: &[u8]| {
    let [step, bytes @ ..] = input else { return };
    let whole = deframe(bytes, bytes.len().max(1));
    assert_eq!(whole, deframe(bytes, usize::from(*step) + 1), "a cut changed it");
    let (messages, end) = whole;
    let again: Vec<u8> =
        messages.iter().flat_map(|message| [&grpc::prefix(message.len())[..], message].concat()).collect();
    assert!(bytes.starts_with(&again));
    assert_eq!(end.is_ok(), again.len() == bytes.len());
    assert!(messages.iter().all(|message| message.len() <= LIMIT));
    assert_eq!(passes(bytes), end.is_ok() && matches!(&messages[..], [message] if says_serving(message)));
    for message in [Bytes::copy_from_slice(bytes)].iter().chain(&messages) {
        take_apart(message);
    }
});

/// Whole messages, and how the stream ends.
fn deframe(bytes: &[u8], step: usize) -> (Vec<Bytes>, Result<(), FrameError>) {
    let mut deframer = Deframer::with_limit(LIMIT);
    let mut found = Vec::new();
    for part in bytes.chunks(step) {
        deframer.push(part);
        loop {
            match deframer.next() {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(error) => return (found, Err(error)),
            }
        }
    }
    (found, deframer.finish())
}

/// Whether an endpoint that answers a check with this body is healthy.
fn passes(body: &[u8]) -> bool {
    let mut answer = Answer { body: body.to_vec(), ..Answer::default() };
    answer.head.status = 200;
    answer.head.append(Name::new("content-type"), b"application/grpc");
    answer.trailers.append(Name::new("grpc-status"), b"0");
    matches!(health_check::grpc::judge(&answer).verdict, Verdict::Passed { .. })
}

/// `HealthCheckResponse` with SERVING.
fn says_serving(message: &[u8]) -> bool {
    #[derive(Clone, PartialEq, Message)]
    struct HealthCheckResponse {
        #[prost(int32, tag = "1")]
        status: i32,
    }
    HealthCheckResponse::decode(message).is_ok_and(|response| response.status == 1)
}

fn take_apart(message: &Bytes) {
    let taken = entries::take_apart(message.clone());
    if let Ok((_, taken)) = &taken {
        assert!(taken.iter().map(|(_, entry)| entry.len()).sum::<usize>() <= message.len());
    }
    let Ok(decoded) = StreamAccessLogsMessage::decode(message.clone()) else { return };
    let (identifier, taken) = taken.expect("what decodes can be taken apart");
    assert_eq!(identifier.is_some(), decoded.identifier.is_some());
    let records = |kind| taken.iter().filter(move |(of, _)| *of == kind).map(|(_, entry)| entry.clone());
    // A decoder forgets a group where one of the other kind follows, be it empty: what it knows are the last records.
    match decoded.log_entries {
        Some(LogEntries::HttpLogs(logs)) => {
            let read: Vec<_> = records(Kind::Http)
                .map(|entry| HttpAccessLogEntry::decode(entry).expect("it was decoded before"))
                .collect();
            assert!(read.ends_with(&logs.log_entry));
        }
        Some(LogEntries::TcpLogs(logs)) => {
            let read: Vec<_> = records(Kind::Tcp)
                .map(|entry| TcpAccessLogEntry::decode(entry).expect("it was decoded before"))
                .collect();
            assert!(read.ends_with(&logs.log_entry));
        }
        None => assert!(taken.is_empty()),
    }
}
