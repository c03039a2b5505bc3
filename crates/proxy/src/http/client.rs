//! The client's end of one exchange: where the request comes from and the response goes to.

use std::task::{Context, Poll};

use weft_core::respond::Cause;

use crate::buffer::Buffer;
use crate::codec::Framing;
use crate::codec::h2::Code;
use crate::codec::http1::Limits;
use crate::io::Io;
use crate::message::{ReadError, Reader, Writer, http1, http2};
use crate::multiplex::{Stream, StreamEnd};

/// One variant for each version that a client may speak.
pub enum Client<'a> {
    /// The whole connection, for as long as the exchange lasts.
    Http1 { io: &'a Io, buffer: &'a mut Buffer, reading: http1::Reading, writing: http1::Writing },
    /// One stream of a connection that has a task of its own.
    Http2 { stream: Stream, reading: http2::Reading, writing: http2::Writing },
}

impl<'a> Client<'a> {
    /// The client of a connection of HTTP/1, whose request's head has been read and is followed by a body of this framing.
    pub fn http1(io: &'a Io, buffer: &'a mut Buffer, framing: Framing, limits: Limits) -> Client<'a> {
        let (reading, writing) = (http1::Reading::body(framing, limits), http1::Writing::limited(buffer.limit()));
        Client::Http1 { io, buffer, reading, writing }
    }

    pub fn http2(stream: Stream) -> Client<'a> {
        Client::Http2 { stream, reading: http2::Reading::default(), writing: http2::Writing::default() }
    }

    /// The request's body, and the response. *out* holds what waits to leave; the same at each call.
    pub fn split<'s>(&'s mut self, out: &'s mut Vec<u8>) -> (Reader<'s>, Writer<'s>) {
        match self {
            Client::Http1 { io, buffer, reading, writing } => (
                Reader::Http1(http1::Reader { io, buffer, state: reading }),
                Writer::Http1(http1::Writer { io, out, state: writing }),
            ),
            Client::Http2 { stream, reading, writing } => (
                Reader::Http2(http2::Reader { stream, state: reading }),
                Writer::Http2(http2::Writer { stream, state: writing }),
            ),
        }
    }

    /// Whether it is one stream of a connection, and not all of it.
    pub fn is_stream(&self) -> bool {
        matches!(self, Client::Http2 { .. })
    }

    /// What is to be recorded of a client that is gone.
    pub fn departure(&self) -> Cause {
        match self {
            Client::Http2 { stream, .. } if stream.end() == Some(StreamEnd::Broken) => Cause::DownstreamCodecError,
            Client::Http1 { .. } | Client::Http2 { .. } => Cause::DownstreamGone,
        }
    }

    /// Whether it has reset its stream, and left the connection as it is.
    pub fn is_reset(&self) -> bool {
        match self {
            Client::Http1 { .. } => false,
            Client::Http2 { stream, .. } => stream.end() == Some(StreamEnd::Reset),
        }
    }

    /// Whether the request's body has been read to its end.
    pub fn is_done(&self) -> bool {
        match self {
            Client::Http1 { reading, .. } => reading.is_done(),
            Client::Http2 { stream, reading, .. } => reading.is_done(stream),
        }
    }

    /// Drop what has come of the request's body. Returns its bytes.
    ///
    /// # Errors
    /// The body is malformed.
    pub fn skip_body(&mut self) -> Result<u64, ReadError> {
        match self {
            Client::Http1 { buffer, reading, .. } => reading.skip(buffer),
            // The stream ends with the answer; nobody else waits behind it.
            Client::Http2 { .. } => Ok(0),
        }
    }

    /// The connection's own end, once both sides have agreed to speak another protocol on it. `None`: it is a stream.
    pub fn tunnel(&mut self) -> Option<(&Io, &mut Buffer)> {
        match self {
            Client::Http1 { io, buffer, .. } => Some((io, buffer)),
            Client::Http2 { .. } => None,
        }
    }

    /// Its message is now a tunnel's bytes, until it ends its direction.
    pub fn become_tunnel(&mut self) {
        if let Client::Http1 { reading, writing, .. } = self {
            reading.become_tunnel();
            writing.become_tunnel();
        }
    }

    /// What of the other direction ended is passed on: a stream's end was sent with its last frame.
    pub async fn finish(&self) {
        if let Client::Http1 { io, .. } = self {
            io.finish().await;
        }
    }

    /// Say that nothing has been done about the request, whose sender may send it again (RFC 9113 8.7); in HTTP/1 the close says it.
    pub fn disown(&self) {
        match self {
            Client::Http1 { io, .. } => io.reset_on_close(),
            Client::Http2 { stream, .. } => stream.reset(Code::REFUSED_STREAM),
        }
    }

    /// The next close sends RST.
    pub fn reset_on_close(&self) {
        match self {
            Client::Http1 { io, .. } => io.reset_on_close(),
            Client::Http2 { stream, .. } => stream.reset(Code::CANCEL),
        }
    }

    /// Ready when the client has given up: by a reset, or by sending no more, which in HTTP/1 cannot be told from a client that is gone.
    pub fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Client::Http1 { io, .. } => io.poll_gone(context),
            Client::Http2 { stream, .. } => stream.poll_end(context).map(|_| ()),
        }
    }
}
