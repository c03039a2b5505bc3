//! `grpc.health.v1.Health/Check`: the call and what its answer says.
//!
//! Source: grpc/doc/health-checking.md, grpc/doc/PROTOCOL-HTTP2.md.

use std::time::Duration;

use prost::Message as _;
use weft_core::grpc_timeout;
use weft_core::health_check::{GrpcProbe, Verdict};

use crate::codec::{Framing, Head, Name};

use super::exchange::Answer;
use super::probe::Found;

/// The answer is a number; anything so long is none.
pub const MOST_BYTES: usize = 1024;
/// Compressed-Flag and Message-Length.
const PREFIX_BYTES: usize = 5;
/// `HealthCheckResponse.SERVING`
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The head of a call.
pub fn request(authority: &str, timeout: Duration) -> Head {
    let mut head = Head::default();
    head.set_method(b"POST");
    head.set_path(b"/grpc.health.v1.Health/Check");
    head.set_authority(authority.as_bytes());
    head.append(Name::new("content-type"), b"application/grpc");
    head.append(Name::new("grpc-timeout"), grpc_timeout::write(timeout).as_bytes());
    head.accepts_trailers = true;
    head.framing = Framing::Chunked;
    head
}

/// The one message of a call.
pub fn message(probe: &GrpcProbe) -> Vec<u8> {
    let message = HealthCheckRequest { service: probe.service.to_string() }.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
}

/// Judge an answer.
pub fn judge(answer: &Answer) -> Found {
    match status(answer) {
        Ok(SERVING) => Found::passed(),
        Ok(status) => failed(match status {
            2 => "not serving".to_owned(),
            3 => "service unknown".to_owned(),
            other => format!("serving status {other}"),
        }),
        Err(why) => failed(why),
    }
}

fn failed(why: String) -> Found {
    Found::new(Verdict::Failed { retriable: false, excludes: false }, why)
}

fn status(answer: &Answer) -> Result<i32, String> {
    let head = &answer.head;
    if head.status != 200 {
        return Err(format!("status {}", head.status));
    }
    if !head.get(b"content-type").is_some_and(|it| it.starts_with(b"application/grpc")) {
        return Err("not an answer of gRPC".to_owned());
    }
    // An answer that is all trailers has them in its head.
    let code = answer.trailers.get(b"grpc-status").or_else(|| head.get(b"grpc-status"));
    match code {
        Some(b"0") => {}
        Some(code) => return Err(format!("grpc-status {}", String::from_utf8_lossy(code))),
        None => return Err("no grpc-status".to_owned()),
    }
    let malformed = || "the answer is no HealthCheckResponse".to_owned();
    let (prefix, message) = answer.body.split_first_chunk::<PREFIX_BYTES>().ok_or_else(malformed)?;
    let [compressed, length @ ..] = *prefix;
    if answer.is_cut || compressed != 0 || u32::from_be_bytes(length) as usize != message.len() {
        return Err(malformed());
    }
    HealthCheckResponse::decode(message).map(|response| response.status).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &[u8], code: &[u8]) -> Answer {
        let mut answer = Answer { body: body.to_vec(), ..Answer::default() };
        answer.head.status = 200;
        answer.head.append(Name::new("content-type"), b"application/grpc");
        answer.trailers.append(Name::new("grpc-status"), code);
        answer
    }

    #[test]
    fn only_a_whole_answer_that_says_serving_passes() {
        for (body, code, why) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], &b"0"[..], ""),
            (b"\0\0\0\0\x02\x08\x02", b"0", "not serving"),
            (b"\0\0\0\0\x02\x08\x03", b"0", "service unknown"),
            // UNKNOWN is what an empty message says.
            (b"\0\0\0\0\0", b"0", "serving status 0"),
            (b"", b"5", "grpc-status 5"),
            (b"", b"0", "the answer is no HealthCheckResponse"),
            (b"\x01\0\0\0\x02\x08\x01", b"0", "the answer is no HealthCheckResponse"),
            (b"\0\0\0\0\x02\x08\x01\0\0\0\0\x02\x08\x01", b"0", "the answer is no HealthCheckResponse"),
            (b"\0\0\0\0\x02\x08", b"0", "the answer is no HealthCheckResponse"),
        ] {
            let found = judge(&answer(body, code));
            assert_eq!((found.verdict.passed(), &*found.why), (why.is_empty(), why), "{body:?}");
        }
        let mut trailers_only = Answer::default();
        trailers_only.head.status = 200;
        trailers_only.head.append(Name::new("content-type"), b"application/grpc+proto");
        trailers_only.head.append(Name::new("grpc-status"), b"12");
        assert_eq!(judge(&trailers_only).why, "grpc-status 12");
        trailers_only.head.status = 503;
        assert_eq!(judge(&trailers_only).why, "status 503");
    }

    #[test]
    fn the_message_names_the_service() {
        let probe =
            |service: &str| GrpcProbe { service: service.into(), authority: "".into(), metadata: Default::default() };
        assert_eq!(message(&probe("")), b"\0\0\0\0\0");
        assert_eq!(message(&probe("a.B")), b"\0\0\0\0\x05\x0a\x03a.B");
    }
}
