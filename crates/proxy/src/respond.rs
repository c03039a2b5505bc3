//! Every answer that the proxy gives by itself goes out through here. What it says was chosen by core (`weft_core::respond`).

use weft_core::respond::{Cause, LocalReply};

use crate::codec::{Framing, Head, Name};

/// Fill *response* with the head of a local answer.
pub fn fill(response: &mut Head, reply: &LocalReply) {
    response.clear();
    response.status = reply.status;
    if !reply.body.is_empty() {
        response.append(Name::new("content-type"), b"text/plain");
    }
    if reply.cause == Cause::CredentialRequired {
        // RFC 9110 15.5.8: the answer must say which credential is wanted.
        response.append(Name::new("proxy-authenticate"), b"Basic realm=\"weft\"");
    }
    response.framing = Framing::Length(reply.body.len() as u64);
}

/// Whether *request* is a call of gRPC, whose caller looks for a status of gRPC and at no body.
pub fn is_grpc(request: &Head) -> bool {
    request.get(b"content-type").is_some_and(|kind| match kind.strip_prefix(b"application/grpc") {
        // gRPC-Web is another protocol.
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    })
}

/// Fill *response* with the same answer in gRPC: a head that is all trailers.
pub fn fill_grpc(response: &mut Head, reply: &LocalReply) {
    response.clear();
    response.status = 200;
    response.append(Name::new("content-type"), b"application/grpc");
    response.append(Name::new("grpc-status"), reply.grpc_status().to_string().as_bytes());
    if !reply.body.is_empty() {
        response.append(Name::new("grpc-message"), percent_encoded(&reply.body).as_bytes());
    }
    response.framing = Framing::Length(0);
}

/// Text as `grpc-message` carries it: printable ASCII but `%`, the rest escaped (gRPC over HTTP/2, Responses).
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_grpc_are_answered_in_grpc() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut request = Head::default();
            request.append(Name::new("content-type"), kind.as_bytes());
            assert_eq!(is_grpc(&request), expected, "{kind}");
        }
    }

    #[test]
    fn messages_are_escaped() {
        assert_eq!(percent_encoded("no \u{e4}\n 5%"), "no %C3%A4%0A 5%25");
    }
}
