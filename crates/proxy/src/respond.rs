//! Every answer that the proxy gives by itself goes out through here. What it says was chosen by core (`weft_core::respond`).

use weft_core::respond::{Cause, LocalReply};

use crate::codec::{Framing, Head, Name};

const CONTENT_TYPE: &str = "content-type";
const GRPC_STATUS: &str = "grpc-status";

/// Begin *response* as the head of a local answer: what stands in it before a route's edits. [`complete`] is next.
pub fn begin(response: &mut Head, reply: &LocalReply) {
    response.clear();
    response.status = reply.status;
    if reply.cause == Cause::CredentialRequired {
        // RFC 9110 15.5.8: the answer must say which credential is wanted.
        response.append(Name::new("proxy-authenticate"), b"Basic realm=\"weft\"");
    }
}

/// Say in *response* what its *body* is. After the edits, as in Envoy: they may name a type, but of a body only.
pub fn complete(response: &mut Head, body: &[u8]) {
    if body.is_empty() {
        response.remove(CONTENT_TYPE.as_bytes());
    } else if response.get(CONTENT_TYPE.as_bytes()).is_none_or(<[u8]>::is_empty) {
        response.set(Name::new(CONTENT_TYPE), b"text/plain");
    }
    response.framing = Framing::Length(body.len() as u64);
}

/// Whether *request* is a call of gRPC, whose caller looks for a status of gRPC and at no body.
pub fn is_grpc(request: &Head) -> bool {
    request.get(b"content-type").is_some_and(|kind| match kind.strip_prefix(b"application/grpc") {
        // gRPC-Web is another protocol.
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    })
}

/// Make *response* the same answer in gRPC: a head that is all trailers, in which *body* is the message. Edits may have chosen the status of
/// gRPC, and nothing else of this (Envoy).
pub fn complete_grpc(response: &mut Head, reply: &LocalReply, body: &[u8]) {
    response.status = 200;
    response.set(Name::new(CONTENT_TYPE), b"application/grpc");
    if response.get(GRPC_STATUS.as_bytes()).is_none_or(<[u8]>::is_empty) {
        response.set(Name::new(GRPC_STATUS), reply.grpc_status().to_string().as_bytes());
    }
    if !body.is_empty() {
        response.set(Name::new("grpc-message"), percent_encoded(body).as_bytes());
    }
    response.framing = Framing::Length(0);
}

/// Text as `grpc-message` carries it: printable ASCII but `%`, the rest escaped (gRPC over HTTP/2, Responses).
fn percent_encoded(text: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for &byte in text {
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
        assert_eq!(percent_encoded("no \u{e4}\n 5%".as_bytes()), "no %C3%A4%0A 5%25");
    }

    /// The head of an answer of `503 no` to which *edits* were made.
    fn answered(edits: &[(&str, &[u8])], complete: impl FnOnce(&mut Head, &LocalReply)) -> Vec<(String, String)> {
        let reply = LocalReply::from(Cause::DirectResponse).with_status(503);
        let mut response = Head::default();
        begin(&mut response, &reply);
        for (name, value) in edits {
            response.append(Name::new(name), value);
        }
        complete(&mut response, &reply);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut fields: Vec<_> = response.fields().map(|(name, value)| (text(name), text(value))).collect();
        fields.push((":status".into(), response.status.to_string()));
        fields.sort();
        fields
    }

    fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn in_grpc_edits_choose_the_status_and_neither_the_type_nor_the_message() {
        let edits: [(&str, &[u8]); 3] = [("content-type", b"text/x"), ("grpc-status", b"3"), ("x-a", b"1")];
        let told = answered(&edits, |response, reply| complete_grpc(response, reply, b"n\xc3\xb6"));
        let expected = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-message", "n%C3%B6"),
            ("grpc-status", "3"),
            ("x-a", "1"),
        ];
        assert_eq!(told, owned(&expected));
        let told = answered(&[], |response, reply| complete_grpc(response, reply, b""));
        let expected = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14")];
        assert_eq!(told, owned(&expected));
    }

    #[test]
    fn a_type_is_said_of_a_body_and_is_the_edits_if_they_say_one() {
        let json: [(&str, &[u8]); 1] = [("content-type", b"application/json")];
        for (edits, body, expected) in [
            (&json[..], &b"{}"[..], &[(":status", "503"), ("content-type", "application/json")][..]),
            (&[], b"no", &[(":status", "503"), ("content-type", "text/plain")]),
            (&json[..], b"", &[(":status", "503")]),
        ] {
            assert_eq!(answered(edits, |response, _| complete(response, body)), owned(expected), "{body:?}");
        }
    }
}
