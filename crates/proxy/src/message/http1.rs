//! Messages of HTTP/1: a connection carries one at a time each way, delimited as its head says.

use std::io;
use std::task::{Context, Poll, ready};

use crate::buffer::{Buffer, SMALL_BYTES};
use crate::codec::http1::encode::{self, After};
use crate::codec::http1::{Body, HeadError, HeadParser, Keeps, Limits, Step};
use crate::codec::{Framing, Head, Version};
use crate::io::Io;

use super::{HeadEnd, Next, ReadError};

/// Spans up to this size are copied behind the head and leave in one `send`; larger ones leave in one `sendmsg` without a copy.
const COPY_BYTES: usize = 4096;
/// Output is gathered up to this size before it is written, if the connection's limit allows it.
const GATHER_BYTES: usize = 64 * 1024;

/// How far a message has been read.
#[derive(Debug)]
pub struct Reading {
    parser: HeadParser,
    body: Body,
    limits: Limits,
    /// Bytes of the span at hand.
    span: usize,
    /// Bytes of the body that were consumed.
    consumed: u64,
}

impl Reading {
    /// Read a body that follows a head with this framing.
    pub fn body(framing: Framing, limits: Limits) -> Reading {
        Reading { parser: HeadParser::default(), body: Body::new(framing, limits), limits, span: 0, consumed: 0 }
    }

    /// Read a head first.
    pub fn head(limits: Limits) -> Reading {
        Reading::body(Framing::None, limits)
    }

    /// Keep this too of heads.
    pub fn keeping(self, keeps: Keeps) -> Reading {
        Reading { parser: HeadParser::keeping(keeps), ..self }
    }

    /// What follows is another protocol's, until the peer closes.
    pub fn become_tunnel(&mut self) {
        *self = Reading::body(Framing::UntilClose, self.limits);
    }

    pub fn is_done(&self) -> bool {
        self.span == 0 && self.body.is_done()
    }

    /// Drop what is in *buffer* of the body already. Returns its bytes.
    ///
    /// # Errors
    /// The body is malformed.
    pub fn skip(&mut self, buffer: &mut Buffer) -> Result<u64, ReadError> {
        let mut skipped = self.span as u64;
        buffer.consume(std::mem::take(&mut self.span));
        loop {
            match self.body.next(buffer.data())? {
                Step::Done { skip } => {
                    buffer.consume(skip);
                    return Ok(skipped);
                }
                Step::Data { skip, length } => {
                    buffer.consume(skip + length);
                    skipped += length as u64;
                    if length == 0 {
                        return Ok(skipped);
                    }
                }
            }
        }
    }
}

pub struct Reader<'a> {
    pub io: &'a Io,
    /// What was read from it and not yet used.
    pub buffer: &'a mut Buffer,
    pub state: &'a mut Reading,
}

impl Reader<'_> {
    /// Read the head of a response; its body is next.
    ///
    /// # Errors
    /// The head is malformed or too large.
    pub fn poll_response(
        &mut self,
        context: &mut Context<'_>,
        response: &mut Head,
        to_head: bool,
    ) -> Poll<Result<HeadEnd, HeadError>> {
        loop {
            let Reading { parser, body, limits, .. } = &mut *self.state;
            if let Some(length) = parser.response(self.buffer.data(), response, *limits, to_head)? {
                self.buffer.consume(length);
                *body = Body::new(response.framing, *limits);
                return Poll::Ready(Ok(HeadEnd::Whole));
            }
            if self.buffer.is_full() {
                self.buffer.grow(limits.head_bytes);
            }
            match ready!(self.io.poll_read(context, self.buffer)) {
                Ok(0) => return Poll::Ready(Ok(HeadEnd::Finished)),
                Err(_) => return Poll::Ready(Ok(HeadEnd::Reset)),
                Ok(_) => {}
            }
        }
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Next, ReadError>> {
        if self.state.span > 0 {
            return Poll::Ready(Ok(Next::Span));
        }
        loop {
            match self.state.body.next(self.buffer.data())? {
                Step::Done { skip } => {
                    self.buffer.consume(skip);
                    return Poll::Ready(Ok(Next::End));
                }
                Step::Data { skip, length: 0 } => {
                    self.buffer.consume(skip);
                    // TLS without close_notify may be a truncation, so it is an error even where the body ends at the close.
                    if ready!(self.poll_read(context)).map_err(ReadError::Broken)? == 0 {
                        let ended = self.state.body.ends_at_close();
                        return Poll::Ready(if ended { Ok(Next::End) } else { Err(ReadError::Closed) });
                    }
                }
                Step::Data { skip, length } => {
                    self.buffer.consume(skip);
                    self.state.span = length;
                    return Poll::Ready(Ok(Next::Span));
                }
            }
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.is_full() {
            self.buffer.grow(0);
        }
        // Nobody holds a buffer for a peer that may be silent for an hour (server-sent events, long polls).
        self.buffer.release_if_empty();
        ready!(self.io.poll_readable(context))?;
        let is_long = self.state.body.remaining().is_none_or(|left| left > SMALL_BYTES as u64);
        if is_long && self.state.consumed > SMALL_BYTES as u64 {
            self.buffer.enlarge();
        }
        self.io.poll_read(context, self.buffer)
    }

    pub fn span(&self) -> &[u8] {
        &self.buffer.data()[..self.state.span]
    }

    pub fn consume(&mut self) {
        let length = std::mem::take(&mut self.state.span);
        self.state.consumed += length as u64;
        self.buffer.consume(length);
    }

    pub fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        self.io.poll_gone(context)
    }

    pub fn trailers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.state.body.trailers()
    }
}

/// How far a message has been written.
#[derive(Debug)]
pub struct Writing {
    /// Output is gathered up to this size before it is written.
    gather: usize,
    /// How much of what waits to leave has left.
    written: usize,
    /// How the message at hand is delimited; a tunnel is [`Framing::UntilClose`].
    framing: Framing,
    /// A large span is leaving without a copy; its beginning is written already, as far as framing goes.
    in_span: bool,
}

impl Writing {
    /// Of messages of which no more than *limit* bytes should wait.
    pub fn limited(limit: usize) -> Writing {
        Writing { gather: limit.min(GATHER_BYTES), written: 0, framing: Framing::None, in_span: false }
    }

    /// What follows is another protocol's, until it ends.
    pub fn become_tunnel(&mut self) {
        self.restart(Framing::UntilClose);
    }

    /// Begin another message.
    fn restart(&mut self, framing: Framing) {
        *self = Writing { gather: self.gather, written: 0, framing, in_span: false };
    }
}

pub struct Writer<'a> {
    pub io: &'a Io,
    /// Waits to leave; the caller's, so that its memory is reused.
    pub out: &'a mut Vec<u8>,
    pub state: &'a mut Writing,
}

impl Writer<'_> {
    pub fn request(&mut self, head: &Head) {
        let after = if head.upgrade().is_empty() { After::KeepAlive } else { After::Upgrade };
        self.begin(head.framing);
        encode::request(self.out, head, after);
    }

    pub fn response(&mut self, head: &Head, version: Version, close: bool) -> bool {
        let framing = match head.framing {
            Framing::UntilClose | Framing::Chunked if version == Version::Http10 => Framing::UntilClose,
            Framing::UntilClose => Framing::Chunked,
            framing => framing,
        };
        let close = close || framing == Framing::UntilClose;
        self.begin(framing);
        encode::response(self.out, head, framing, encode::after(version, close));
        close
    }

    pub fn interim(&mut self, head: &Head) {
        let after = if head.status == 101 { After::Upgrade } else { After::KeepAlive };
        self.begin(Framing::None);
        encode::response(self.out, head, Framing::None, after);
    }

    fn begin(&mut self, framing: Framing) {
        self.out.clear();
        self.state.restart(framing);
    }

    pub fn poll_span(&mut self, context: &mut Context<'_>, span: &[u8]) -> Poll<io::Result<()>> {
        let Writing { gather, written, framing, in_span } = &mut *self.state;
        // The peer would take the bytes for its next message: whoever has them here has missed that their head promised none.
        if *framing == Framing::None && !span.is_empty() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a body after a head that has none")));
        }
        let is_chunked = *framing == Framing::Chunked;
        if !*in_span {
            if is_chunked {
                encode::chunk_begin(self.out, span.len());
            }
            if span.len() <= COPY_BYTES || is_chunked && span.len() <= *gather {
                self.out.extend_from_slice(span);
                if is_chunked {
                    encode::chunk_end(self.out);
                }
                return Poll::Ready(Ok(()));
            }
            *in_span = true;
        }
        ready!(self.io.poll_write_all(context, self.out, span, written))?;
        *in_span = false;
        *written = 0;
        self.out.clear();
        if is_chunked {
            encode::chunk_end(self.out);
        }
        Poll::Ready(Ok(()))
    }

    pub fn end<'t>(&mut self, trailers: impl Iterator<Item = (&'t [u8], &'t [u8])>) {
        if self.state.framing == Framing::Chunked {
            encode::chunks_done(self.out, trailers);
        }
    }

    pub fn is_full(&self) -> bool {
        !self.state.in_span && (self.state.written > 0 || self.out.len() >= self.state.gather)
    }

    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.out.is_empty() {
            ready!(self.io.poll_write_all(context, self.out, &[], &mut self.state.written))?;
            self.out.clear();
            self.state.written = 0;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::task::Waker;

    use super::*;

    #[tokio::test]
    async fn a_head_that_promises_no_body_gets_none() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let io = Io::new(ours.into()).unwrap();
        let (mut out, mut state) = (Vec::new(), Writing::limited(1000));
        let mut writer = Writer { io: &io, out: &mut out, state: &mut state };
        let mut context = Context::from_waker(Waker::noop());
        let mut head = Head::default();
        head.set_method(b"GET");
        head.set_path(b"/");
        writer.request(&head);
        let length = writer.out.len();
        let smuggled = b"GET /smuggled HTTP/1.1\r\n\r\n";
        assert!(matches!(writer.poll_span(&mut context, smuggled), Poll::Ready(Err(_))));
        assert_eq!(writer.out.len(), length, "nothing of it waits to leave");
        // Once both sides have agreed to it, anything may follow.
        writer.state.become_tunnel();
        assert!(matches!(writer.poll_span(&mut context, smuggled), Poll::Ready(Ok(()))));
    }
}
