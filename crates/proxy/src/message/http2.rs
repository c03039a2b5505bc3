//! Messages of HTTP/2: one stream carries a request and its response; the connection's own task reads and writes.

use std::io;
use std::task::{Context, Poll, ready};

use crate::codec::http1::{BodyError, HeadError};
use crate::codec::{Framing, Head};
use crate::multiplex::{Stream, StreamEnd};

use super::{HeadEnd, Next, ReadError};

/// How far a message has been read.
#[derive(Debug, Default)]
pub struct Reading {
    /// The span at hand.
    span: Vec<u8>,
}

impl Reading {
    pub fn is_done(&self, stream: &Stream) -> bool {
        self.span.is_empty() && stream.is_received()
    }
}

pub struct Reader<'a> {
    pub stream: &'a Stream,
    pub state: &'a mut Reading,
}

impl Reader<'_> {
    pub fn poll_response(
        &mut self,
        context: &mut Context<'_>,
        response: &mut Head,
    ) -> Poll<Result<HeadEnd, HeadError>> {
        Poll::Ready(match ready!(self.stream.poll_head(context, response)) {
            Some(()) => Ok(HeadEnd::Whole),
            None if self.stream.end() == Some(StreamEnd::Malformed) => Err(HeadError::Field),
            None => Ok(HeadEnd::Reset),
        })
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Next, ReadError>> {
        if !self.state.span.is_empty() {
            return Poll::Ready(Ok(Next::Span));
        }
        Poll::Ready(match ready!(self.stream.poll_data(context, &mut self.state.span)) {
            Ok(true) => Ok(Next::Span),
            Ok(false) => Ok(Next::End),
            Err(StreamEnd::Malformed) => Err(ReadError::Malformed(BodyError::Stream)),
            Err(StreamEnd::Refused | StreamEnd::Reset | StreamEnd::Gone | StreamEnd::Broken) => Err(ReadError::Closed),
        })
    }

    pub fn span(&self) -> &[u8] {
        &self.state.span
    }

    pub fn consume(&mut self) {
        self.stream.release(self.state.span.len());
        self.state.span.clear();
    }

    pub fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_end(context).map(|_| ())
    }
}

/// How far a message has been written.
#[derive(Debug, Default)]
pub struct Writing {
    /// Bytes of the span at hand that were sent.
    sent: usize,
    /// Bytes of the body that are still to be written, if its length is known: the last carry the end of the stream, unless
    /// trailers may follow.
    left: Option<u64>,
    ended: bool,
}

pub struct Writer<'a> {
    pub stream: &'a Stream,
    pub state: &'a mut Writing,
}

impl Writer<'_> {
    pub fn request(&mut self, head: &Head) {
        let ended = head.framing == Framing::None && !head.wants_tunnel();
        self.begin(head.framing, ended);
        self.stream.request(head, ended);
    }

    pub fn response(&mut self, head: &Head) {
        // An answer of gRPC that is all trailers is one block of fields, and must stay one; one with trailers of its own must keep them.
        let ended = matches!(head.framing, Framing::None | Framing::Length(0)) && !head.ends_later;
        self.begin(head.framing, ended);
        self.stream.response(head, head.framing, ended);
    }

    pub fn interim(&mut self, head: &Head) {
        self.stream.response(head, Framing::None, false);
    }

    pub fn upgraded(&mut self, head: &Head) {
        self.begin(Framing::None, false);
        self.stream.response(head, Framing::None, false);
    }

    fn begin(&mut self, framing: Framing, ended: bool) {
        let left = match framing {
            Framing::Length(length) if length > 0 => Some(length),
            _ => None,
        };
        *self.state = Writing { sent: 0, left, ended };
    }

    pub fn poll_span(&mut self, context: &mut Context<'_>, span: &[u8], last: bool) -> Poll<io::Result<()>> {
        let Writing { sent, left, ended } = &mut *self.state;
        while *sent < span.len() {
            let rest = &span[*sent..];
            let last = last && *left == Some(rest.len() as u64);
            let count = ready!(self.stream.poll_send(context, rest, last))?;
            *sent += count;
            *left = left.map(|left| left.saturating_sub(count as u64));
            *ended |= last && count == rest.len();
        }
        *sent = 0;
        Poll::Ready(Ok(()))
    }

    pub fn end<'t>(&mut self, trailers: impl Iterator<Item = (&'t [u8], &'t [u8])>) {
        if !self.state.ended {
            self.state.ended = true;
            self.stream.finish(trailers);
        }
    }
}
