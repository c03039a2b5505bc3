//! One request of ours and its whole answer, over either version of HTTP.

use std::future::poll_fn;

use crate::buffer::Buffer;
use crate::codec::http1::Limits;
use crate::codec::{Head, Name};
use crate::io::Io;
use crate::message::{HeadEnd, Next, Reader, Writer, http1, http2};
use crate::multiplex::Stream;

use super::probe::Silence;

/// An endpoint's side of one exchange.
// One at a time, on the stack of a check.
#[allow(clippy::large_enum_variant)]
pub enum Side<'a> {
    Http1 { io: &'a Io, buffer: &'a mut Buffer, reading: http1::Reading, writing: http1::Writing },
    Http2 { stream: Stream, reading: http2::Reading, writing: http2::Writing },
}

impl<'a> Side<'a> {
    pub fn http1(io: &'a Io, buffer: &'a mut Buffer, limits: Limits) -> Side<'a> {
        let writing = http1::Writing::limited(buffer.limit());
        Side::Http1 { io, buffer, reading: http1::Reading::head(limits), writing }
    }

    pub fn http2(stream: Stream) -> Side<'a> {
        Side::Http2 { stream, reading: http2::Reading::default(), writing: http2::Writing::default() }
    }

    fn split<'s>(&'s mut self, out: &'s mut Vec<u8>) -> (Reader<'s>, Writer<'s>) {
        match self {
            Side::Http1 { io, buffer, reading, writing } => (
                Reader::Http1(http1::Reader { io, buffer, state: reading }),
                Writer::Http1(http1::Writer { io, out, state: writing }),
            ),
            Side::Http2 { stream, reading, writing } => (
                Reader::Http2(http2::Reader { stream, state: reading }),
                Writer::Http2(http2::Writer { stream, state: writing }),
            ),
        }
    }
}

/// A whole answer.
#[derive(Default)]
pub struct Answer {
    pub head: Head,
    /// Its beginning.
    pub body: Vec<u8>,
    /// The body was longer.
    pub is_cut: bool,
    /// Fields after the body.
    pub trailers: Head,
    /// The connection takes no other request.
    pub closes: bool,
}

/// Ask. Of the answer's body *most* bytes are kept.
///
/// # Errors
/// There is no whole answer.
pub async fn exchange(side: &mut Side<'_>, request: &Head, body: &[u8], most: usize) -> Result<Answer, Silence> {
    let mut out = Vec::new();
    let (mut reader, mut writer) = side.split(&mut out);
    writer.request(request);
    writer.whole(body).await.map_err(Silence::Write)?;
    let mut answer = Answer::default();
    loop {
        let head = &mut answer.head;
        match poll_fn(|context| reader.poll_response(context, head, request.is_head_request())).await {
            Ok(HeadEnd::Whole) if head.status == 101 => return Err(Silence::Head),
            // RFC 9110 15.2
            Ok(HeadEnd::Whole) if matches!(head.status, 100..200) => head.clear(),
            Ok(HeadEnd::Whole) => break,
            Ok(HeadEnd::Finished | HeadEnd::Reset) => return Err(Silence::Ended),
            Err(_) => return Err(Silence::Head),
        }
    }
    while poll_fn(|context| reader.poll_next(context)).await? == Next::Span {
        let span = reader.span();
        let kept = span.len().min(most - answer.body.len());
        answer.is_cut |= kept < span.len();
        answer.body.extend_from_slice(&span[..kept]);
        reader.consume();
    }
    let trailers = &mut answer.trailers;
    reader.with_trailers(|fields| {
        for (name, value) in fields {
            if let Ok(name) = std::str::from_utf8(name) {
                trailers.append(Name::new(name), value);
            }
        }
    });
    answer.closes = answer.head.close;
    Ok(answer)
}
