//! One message on its way over a connection: a [`Reader`] takes it from a peer, a [`Writer`] hands it to one.
//!
//! Here the versions of HTTP meet: each variant is one version's way to read or write a head, spans of a body and trailers, by the
//! codec of the same name. `forward` moves spans from any reader to any writer; `http` knows heads and nothing of the wire.
//!
//! Readers and writers only borrow. What lasts from one to the next (how far a body has come, what is half written) is in their
//! states, so a move that was interrupted goes on with a new pair.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use crate::codec::http1::{BodyError, HeadError};
use crate::codec::{Head, Version};

pub mod http1;
pub mod http2;
pub mod tap;

/// Why a reader stopped before the end of its message.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the sender closed before the end of its message")]
    Closed,
    #[error("reading: {0}")]
    Broken(io::Error),
    #[error("the sender's message is malformed: {0}")]
    Malformed(#[from] BodyError),
}

/// How reading a head ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadEnd {
    Whole,
    /// The peer closed.
    Finished,
    /// The connection broke.
    Reset,
}

/// What comes next of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A span, which [`Reader::span`] shows until it is consumed.
    Span,
    /// The body is complete, and its trailers are known.
    End,
}

/// The end of a connection from which a message's body comes.
pub enum Reader<'a> {
    Http1(http1::Reader<'a>),
    Http2(http2::Reader<'a>),
    /// The body alone, of a message that goes elsewhere too.
    Tap(tap::Reader<'a>),
}

impl Reader<'_> {
    /// Read the head of a response to a request that was HEAD or not; its body is next.
    ///
    /// # Errors
    /// The head is malformed or too large.
    pub fn poll_response(
        &mut self,
        context: &mut Context<'_>,
        response: &mut Head,
        to_head: bool,
    ) -> Poll<Result<HeadEnd, HeadError>> {
        match self {
            Reader::Http1(reader) => reader.poll_response(context, response, to_head),
            Reader::Http2(reader) => reader.poll_response(context, response),
            // Who copies a request has its head.
            Reader::Tap(_) => Poll::Ready(Ok(HeadEnd::Finished)),
        }
    }

    /// Find the next span. A span that was not consumed is found again.
    ///
    /// # Errors
    /// [`ReadError`]: the message will never be complete.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Next, ReadError>> {
        match self {
            Reader::Http1(reader) => reader.poll_next(context),
            Reader::Http2(reader) => reader.poll_next(context),
            Reader::Tap(reader) => reader.poll_next(context),
        }
    }

    /// The span that was found and not consumed.
    pub fn span(&self) -> &[u8] {
        match self {
            Reader::Http1(reader) => reader.span(),
            Reader::Http2(reader) => reader.span(),
            Reader::Tap(reader) => reader.span(),
        }
    }

    /// The span was handed on: its memory, and the peer's window, are free again.
    pub fn consume(&mut self) {
        match self {
            Reader::Http1(reader) => reader.consume(),
            Reader::Http2(reader) => reader.consume(),
            Reader::Tap(reader) => reader.consume(),
        }
    }

    /// Whether fields may follow a body whose length is known: in HTTP/2 they may (RFC 9113 8.1), in HTTP/1.1 only after chunks.
    pub fn may_have_trailers(&self) -> bool {
        match self {
            Reader::Http1(_) => false,
            Reader::Http2(reader) => {
                !reader.stream.is_received() || reader.stream.with_trailers(|trailers| trailers.is_some())
            }
            Reader::Tap(reader) => reader.may_have_trailers(),
        }
    }

    /// Ready when the peer has given up the message, or has ended or broken the connection.
    pub fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Reader::Http1(reader) => reader.poll_gone(context),
            Reader::Http2(reader) => reader.poll_gone(context),
            Reader::Tap(reader) => reader.poll_gone(context),
        }
    }

    /// Look at the trailers of a message that has ended.
    pub fn with_trailers<T>(
        &self,
        look: impl for<'t> FnOnce(&mut dyn Iterator<Item = (&'t [u8], &'t [u8])>) -> T,
    ) -> T {
        match self {
            Reader::Http1(reader) => look(&mut reader.trailers()),
            Reader::Http2(reader) => reader.stream.with_trailers(|trailers| match trailers {
                Some(trailers) => look(&mut trailers.fields()),
                None => look(&mut std::iter::empty()),
            }),
            Reader::Tap(reader) => reader.with_trailers(look),
        }
    }
}

/// The end of a connection to which a message goes. What is written is gathered, and leaves when it is much or flushed.
pub enum Writer<'a> {
    Http1(http1::Writer<'a>),
    Http2(http2::Writer<'a>),
}

impl Writer<'_> {
    /// Begin a request; `upgrade` in its head asks for another protocol.
    pub fn request(&mut self, head: &Head) {
        match self {
            Writer::Http1(writer) => writer.request(head),
            Writer::Http2(writer) => writer.request(head),
        }
    }

    /// Begin the response to a request of *version*. Returns whether the connection must close after it, as *close* asks, or because
    /// the end of the body cannot be told in another way.
    pub fn response(&mut self, head: &Head, version: Version, close: bool) -> bool {
        match self {
            Writer::Http1(writer) => writer.response(head, version, close),
            // The connection goes on: whether it closes is its own task's business.
            Writer::Http2(writer) => {
                writer.response(head);
                false
            }
        }
    }

    /// Ready when there is room for an interim response: an upstream may send any number of them, and no window holds them back.
    ///
    /// # Errors
    /// As [`Writer::poll_span`].
    pub fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            // The one before was flushed.
            Writer::Http1(_) => Poll::Ready(Ok(())),
            Writer::Http2(writer) => writer.stream.poll_room(context),
        }
    }

    /// Write an interim response (RFC 9110 15.2).
    pub fn interim(&mut self, head: &Head) {
        match self {
            Writer::Http1(writer) => writer.interim(head),
            Writer::Http2(writer) => writer.interim(head),
        }
    }

    /// Say that the connection speaks another protocol from here on (RFC 9110 15.2.2; RFC 8441 5).
    pub fn upgraded(&mut self, head: &Head) {
        match self {
            Writer::Http1(writer) => writer.interim(head),
            Writer::Http2(writer) => writer.upgraded(head),
        }
    }

    /// Hand on one span of the body. Pending: call again with the same span. The writer may only then have taken a part of it.
    /// *last*: where it completes a body of known length, nothing follows it, and the message may end with it.
    ///
    /// # Errors
    /// As the system reports: the peer will never see the end of the message.
    pub fn poll_span(&mut self, context: &mut Context<'_>, span: &[u8], last: bool) -> Poll<io::Result<()>> {
        match self {
            Writer::Http1(writer) => writer.poll_span(context, span),
            Writer::Http2(writer) => writer.poll_span(context, span, last),
        }
    }

    /// The body is complete; only flushing is left.
    pub fn end<'t>(&mut self, trailers: impl Iterator<Item = (&'t [u8], &'t [u8])>) {
        match self {
            Writer::Http1(writer) => writer.end(trailers),
            Writer::Http2(writer) => writer.end(trailers),
        }
    }

    /// Whether so much waits to leave that no more should be read for it.
    pub fn is_full(&self) -> bool {
        match self {
            Writer::Http1(writer) => writer.is_full(),
            // Windows and the connection's output limit it.
            Writer::Http2(_) => false,
        }
    }

    /// Hand on a body that is at hand as a whole, after its head.
    ///
    /// # Errors
    /// As [`Writer::poll_span`].
    pub async fn whole(&mut self, body: &[u8]) -> io::Result<()> {
        if !body.is_empty() {
            poll_fn(|context| self.poll_span(context, body, true)).await?;
        }
        self.end(std::iter::empty());
        self.flush().await
    }

    /// Give everything to the system.
    ///
    /// # Errors
    /// As [`Writer::poll_span`].
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    /// Ready when everything has been given to the system.
    ///
    /// # Errors
    /// As [`Writer::poll_span`].
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Writer::Http1(writer) => writer.poll_flush(context),
            // The connection's task writes.
            Writer::Http2(_) => Poll::Ready(Ok(())),
        }
    }
}
