//! gRPC-Web, which browsers speak, as gRPC, which services do: Envoy's filter of that name.
//!
//! A request that says by its content type that it is gRPC-Web becomes one of gRPC; its answer goes back with the trailers in its body. An
//! answer that is not gRPC (an error page of somebody between) passes as it is: its status tells the client enough.

use crate::codec::grpc_web::Transcoder;
use crate::codec::{Framing, Head, Name};

const CONTENT_TYPE: &str = "content-type";
const GRPC: &[u8] = b"application/grpc";
const WEB: &[u8] = b"application/grpc-web+proto";
const WEB_TEXT: &[u8] = b"application/grpc-web-text+proto";

/// One call of gRPC-Web on its way.
pub(super) struct GrpcWeb {
    /// The answer goes out in base64.
    text: bool,
    /// For the request's body, where that is in base64.
    pub(super) request: Option<Transcoder>,
    /// For the response's.
    pub(super) response: Option<Transcoder>,
}

/// What a content type says of gRPC-Web: nothing, binary (false), text (true).
fn is_text(value: &[u8]) -> Option<bool> {
    let kind = value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    match &*kind {
        b"application/grpc-web" | b"application/grpc-web+proto" => Some(false),
        b"application/grpc-web-text" | b"application/grpc-web-text+proto" => Some(true),
        _ => None,
    }
}

impl GrpcWeb {
    /// Make *request* one of gRPC, if it is one of gRPC-Web.
    pub(super) fn begin(request: &mut Head) -> Option<Box<GrpcWeb>> {
        let coded = is_text(request.get(CONTENT_TYPE.as_bytes())?)?;
        let text = request.get(b"accept").and_then(is_text).unwrap_or(coded);
        request.set(Name::new(CONTENT_TYPE), GRPC);
        request.accepts_trailers = true;
        request.set(Name::new("grpc-accept-encoding"), b"identity,deflate,gzip");
        if coded && request.framing != Framing::None {
            // It gets shorter.
            request.framing = Framing::Chunked;
        }
        Some(Box::new(GrpcWeb { text, request: coded.then(Transcoder::decoder), response: None }))
    }

    /// Make *response*, of the upstream or our own, one of gRPC-Web.
    pub(super) fn answer(&mut self, response: &mut Head) {
        let is_grpc = response.get(CONTENT_TYPE.as_bytes()).is_some_and(|kind| kind.starts_with(GRPC));
        if !is_grpc {
            return;
        }
        response.set(Name::new(CONTENT_TYPE), if self.text { WEB_TEXT } else { WEB });
        // A response that is all trailers stays one.
        if response.ends_later || !matches!(response.framing, Framing::None | Framing::Length(0)) {
            response.framing = Framing::Chunked;
            response.declared_length = None;
            response.ends_later = false;
            self.response = Some(Transcoder::encoder(self.text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_of_grpc_web() {
        for (kind, expected) in [
            ("application/grpc-web", Some(false)),
            ("application/grpc-web+proto", Some(false)),
            ("Application/gRPC-Web-Text; charset=utf-8", Some(true)),
            ("application/grpc-web-text+proto", Some(true)),
            ("application/grpc-web+json", None),
            ("application/grpc", None),
        ] {
            assert_eq!(is_text(kind.as_bytes()), expected, "{kind}");
        }
    }

    #[test]
    fn trailers_need_a_body_wherever_they_come_behind_a_head() {
        for (framing, ends_later, expected) in [
            (Framing::Chunked, false, Framing::Chunked),
            (Framing::Length(5), false, Framing::Chunked),
            (Framing::Length(0), false, Framing::Length(0)),
            (Framing::Length(0), true, Framing::Chunked),
        ] {
            let mut request = Head::default();
            request.append(Name::new(CONTENT_TYPE), b"application/grpc-web");
            let mut web = GrpcWeb::begin(&mut request).unwrap();
            let mut response = Head::default();
            response.framing = framing;
            response.ends_later = ends_later;
            response.append(Name::new(CONTENT_TYPE), GRPC);
            web.answer(&mut response);
            assert_eq!(response.framing, expected, "{framing:?}, {ends_later}");
            assert_eq!(web.response.is_some(), expected == Framing::Chunked);
        }
    }
}
