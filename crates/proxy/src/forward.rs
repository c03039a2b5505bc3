//! Moves bodies from one connection to another, and bytes both ways.
//!
//! A [`Flow`] is one direction of an HTTP message: spans go from its reader to its writer, together with what waits to be sent
//! before them (a head), in as few system calls as the bytes allow.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::local_caller::{self, Opening};

use crate::alarm::{Alarm, Elapsed};
use crate::buffer::{Buffer, SMALL_BYTES};
use crate::codec::grpc_web::{NotBase64, Transcoder};
use crate::codec::http1::BodyError;
use crate::io::Io;
use crate::message::tap::Taps;
use crate::message::{Next, ReadError, Reader, Writer};

/// How long a client's first bytes are kept while they could still become a request line. A browser sends that at once, and no page can
/// have it send a part and wait; a client of something else may have said all that it says before it is answered.
const OPENING_TIME: Duration = Duration::from_secs(1);

/// Why a flow stopped before the end of the message.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    #[error(transparent)]
    Source(#[from] ReadError),
    #[error("writing: {0}")]
    Sink(io::Error),
}

/// What has been sent of a request's body and could be sent again.
#[derive(Debug, Default)]
pub struct Replay {
    /// Data of the body, without any version's framing.
    pub bytes: Vec<u8>,
    /// More than may be kept was sent: no further attempt is possible.
    pub overflowed: bool,
    limit: usize,
}

impl Replay {
    /// Keep up to *limit* bytes.
    pub fn reset(&mut self, limit: usize) {
        self.bytes.clear();
        self.overflowed = false;
        self.limit = limit;
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.overflowed || bytes.is_empty() {
            return;
        }
        if self.bytes.len() + bytes.len() > self.limit {
            self.overflowed = true;
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }
}

/// Counts of one direction.
#[derive(Debug, Default)]
pub struct Progress {
    /// Body bytes, without framing.
    pub body_bytes: Cell<u64>,
    /// When something last moved; `None`: not since the beginning.
    pub moved: Cell<Option<Instant>>,
}

/// How far a flow has come; kept by the caller, so that an interrupted flow goes on.
#[derive(Debug, Default)]
pub struct Course {
    /// How much of what could be replayed has been written to this writer.
    replayed: usize,
    /// The end of the message has been written, if not flushed.
    ended: bool,
}

impl Course {
    /// Of a message without a body, of which only what is written already has to leave.
    pub fn head_only() -> Course {
        Course { ended: true, ..Course::default() }
    }
}

/// One direction of one message.
pub struct Flow<'a> {
    pub reader: Reader<'a>,
    pub writer: Writer<'a>,
    pub course: &'a mut Course,
    pub progress: &'a Progress,
    /// Changes the body on its way.
    pub transcoder: Option<&'a mut Transcoder>,
    /// Set for requests: what is kept to be sent again, and sent first.
    pub replay: Option<&'a mut Replay>,
    /// Who gets the same body besides.
    pub copies: Option<&'a Taps>,
}

impl Flow<'_> {
    /// Move everything. Ready with `Ok` when the message is complete and written.
    ///
    /// # Errors
    /// [`FlowError`], which says whose fault it was. After an error the writer is in the middle of a message.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), FlowError>> {
        loop {
            if self.course.ended {
                return self.writer.poll_flush(context).map_err(FlowError::Sink);
            }
            if self.copies.is_some_and(Taps::should_give_way) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.writer.is_full() {
                ready!(self.writer.poll_flush(context)).map_err(FlowError::Sink)?;
            }
            if let Some(replay) = &self.replay
                && self.course.replayed < replay.bytes.len()
            {
                let span = &replay.bytes[self.course.replayed..];
                let last = !self.reader.may_have_trailers();
                ready!(self.writer.poll_span(context, span, last)).map_err(FlowError::Sink)?;
                self.course.replayed = replay.bytes.len();
                continue;
            }
            if self.transcoder.as_ref().is_some_and(|transcoder| !transcoder.pending().is_empty()) {
                ready!(self.poll_changed(context))?;
                continue;
            }
            match self.reader.poll_next(context) {
                Poll::Ready(Ok(Next::Span)) => match &mut self.transcoder {
                    None => ready!(self.poll_pass(context))?,
                    Some(transcoder) => {
                        transcoder.feed(self.reader.span()).map_err(not_base64)?;
                        self.reader.consume();
                    }
                },
                Poll::Ready(Ok(Next::End)) => match &mut self.transcoder {
                    Some(transcoder) if !transcoder.is_finished() => {
                        self.reader.with_trailers(|trailers| transcoder.finish(trailers)).map_err(not_base64)?;
                    }
                    Some(transcoder) if transcoder.takes_trailers() => {
                        if let Some(copies) = self.copies {
                            copies.end(&mut std::iter::empty());
                        }
                        self.writer.end(std::iter::empty());
                        self.course.ended = true;
                    }
                    _ => {
                        if let Some(copies) = self.copies {
                            self.reader.with_trailers(|trailers| copies.end(trailers));
                        }
                        self.reader.with_trailers(|trailers| self.writer.end(trailers));
                        self.course.ended = true;
                    }
                },
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    // Nothing more for now: what was gathered does not wait for it.
                    ready!(self.writer.poll_flush(context)).map_err(FlowError::Sink)?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Hand on what the transcoder made of the last span.
    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<Result<(), FlowError>> {
        let Some(transcoder) = &mut self.transcoder else { return Poll::Ready(Ok(())) };
        let span = transcoder.pending();
        // Its length is not known, so the end is a frame of its own.
        ready!(self.writer.poll_span(context, span, false)).map_err(FlowError::Sink)?;
        self.progress.body_bytes.set(self.progress.body_bytes.get() + span.len() as u64);
        self.progress.moved.set(Some(Instant::now()));
        if let Some(replay) = &mut self.replay {
            replay.keep(span);
            self.course.replayed = replay.bytes.len();
        }
        if let Some(copies) = self.copies {
            copies.feed(span);
        }
        transcoder.clear();
        Poll::Ready(Ok(()))
    }

    /// Hand on the span at hand.
    fn poll_pass(&mut self, context: &mut Context<'_>) -> Poll<Result<(), FlowError>> {
        let span = self.reader.span();
        let last = !self.reader.may_have_trailers();
        ready!(self.writer.poll_span(context, span, last)).map_err(FlowError::Sink)?;
        self.progress.body_bytes.set(self.progress.body_bytes.get() + span.len() as u64);
        self.progress.moved.set(Some(Instant::now()));
        if let Some(replay) = &mut self.replay {
            replay.keep(span);
            self.course.replayed = replay.bytes.len();
        }
        if let Some(copies) = self.copies {
            copies.feed(span);
        }
        self.reader.consume();
        Poll::Ready(Ok(()))
    }
}

fn not_base64(_: NotBase64) -> FlowError {
    FlowError::Source(ReadError::Malformed(BodyError::Base64))
}

/// Totals of a tunnel. They are counted where its record will look for them, should it be cut off.
#[derive(Debug)]
pub struct Totals<'p> {
    pub received: &'p Progress,
    pub sent: &'p Progress,
    /// What ended first, for then the tunnel is over, though the other direction may go on for a while.
    pub first_end: Cell<Option<TunnelEnd>>,
}

impl<'p> Totals<'p> {
    pub fn of(received: &'p Progress, sent: &'p Progress) -> Totals<'p> {
        Totals { received, sent, first_end: Cell::new(None) }
    }

    /// This has ended now.
    pub fn end(&self, end: TunnelEnd) {
        if self.first_end.get().is_none() {
            self.first_end.set(Some(end));
        }
    }
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelEnd {
    /// Both directions ended in order.
    Finished,
    /// The client reset the connection or vanished.
    Downstream,
    /// The upstream did.
    Upstream,
    /// The client began with a request of HTTP, of which nothing was passed on.
    Request,
}

/// Copy bytes both ways until both sides have ended. Each direction ends by itself (half close). With *bytes_only* the client may not
/// begin with a request of HTTP.
pub async fn tunnel(
    (down, down_buffer): (&Io, &mut Buffer),
    (up, up_buffer): (&Io, &mut Buffer),
    totals: &Totals<'_>,
    bytes_only: bool,
) -> TunnelEnd {
    let mut to_up = pin!(async {
        // In a box: most tunnels have no use for it, and the others only at their beginning.
        if bytes_only {
            Box::pin(refuse_request(down, down_buffer)).await?;
        }
        copy(down, down_buffer, up, totals.received).await.map_err(|error| match error {
            CopyError::Source => TunnelEnd::Downstream,
            CopyError::Sink => TunnelEnd::Upstream,
        })
    });
    let mut to_down = pin!(copy(up, up_buffer, down, totals.sent));
    let mut up_done = false;
    let mut down_done = false;
    poll_fn(|context| {
        if !up_done {
            match to_up.as_mut().poll(context) {
                Poll::Ready(Ok(())) => {
                    totals.end(TunnelEnd::Downstream);
                    up_done = true;
                }
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => {}
            }
        }
        if !down_done {
            match to_down.as_mut().poll(context) {
                Poll::Ready(Ok(())) => {
                    totals.end(TunnelEnd::Upstream);
                    down_done = true;
                }
                Poll::Ready(Err(CopyError::Source)) => return Poll::Ready(TunnelEnd::Upstream),
                Poll::Ready(Err(CopyError::Sink)) => return Poll::Ready(TunnelEnd::Downstream),
                Poll::Pending => {}
            }
        }
        if up_done && down_done { Poll::Ready(TunnelEnd::Finished) } else { Poll::Pending }
    })
    .await
}

enum CopyError {
    Source,
    Sink,
}

/// Fails if the client begins with a request of HTTP. It is waited for as long as it says nothing, for the server may speak first; its
/// bytes stay in the buffer, and if it ends before they tell anything, whoever reads next finds that again.
async fn refuse_request(source: &Io, buffer: &mut Buffer) -> Result<(), TunnelEnd> {
    let limit = || Instant::now() + OPENING_TIME;
    let mut deadline = (!buffer.is_empty()).then(limit);
    let mut alarm = Alarm::default();
    loop {
        match local_caller::opening(buffer.data()) {
            Opening::Request => return Err(TunnelEnd::Request),
            Opening::Other => return Ok(()),
            Opening::Undecided => {}
        }
        match alarm.limit(deadline, source.read(buffer)).await {
            Ok(Ok(0)) | Err(Elapsed) => return Ok(()),
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(TunnelEnd::Downstream),
        }
        deadline.get_or_insert_with(limit);
    }
}

async fn copy(source: &Io, buffer: &mut Buffer, sink: &Io, progress: &Progress) -> Result<(), CopyError> {
    // Much comes at once: the next read has room for more.
    let mut streams = false;
    loop {
        if !buffer.is_empty() {
            let count = buffer.len();
            sink.write_all(buffer.data(), &[]).await.map_err(|_| CopyError::Sink)?;
            buffer.consume(count);
            progress.body_bytes.set(progress.body_bytes.get() + count as u64);
            streams = count >= SMALL_BYTES;
        }
        poll_fn(|context| {
            let readable = source.poll_readable(context);
            if readable.is_pending() {
                buffer.release_if_empty();
            }
            readable
        })
        .await
        .map_err(|_| CopyError::Source)?;
        if streams {
            buffer.enlarge();
        }
        match source.read(buffer).await {
            Ok(0) => {
                sink.finish().await;
                return Ok(());
            }
            // A peer that closes TLS without close_notify has ended too; TCP tells nothing more.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                sink.finish().await;
                return Ok(());
            }
            Ok(_) => progress.moved.set(Some(Instant::now())),
            Err(_) => return Err(CopyError::Source),
        }
    }
}
