//! One connection of HTTP/2 at work: a task that reads and writes, and the streams that other tasks hold on it.
//!
//! The codec says what frames mean; here its events become the state of [`Stream`]s, and its output becomes writes. Streams put their frames
//! into the codec's one buffer and wake the connection's task, which runs after all of them: what one turn of the
//! loop has to say leaves in one write.
//!
//! What all streams share is the connection's window and room in its output. Streams that wait for either stand in line: the first sends one
//! frame and goes to the end, so that one long body keeps no other waiting for more than a frame.
//!
//! Nothing grows without bound: bodies wait within the windows that the codec grants, and while a peer does not read, streams
//! wait ([`Limits::output_bytes`]) and nothing more is read from it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use crate::buffer::Buffer;
use crate::codec::h2::frame::DEFAULT_MAX_FRAME_BYTES;
use crate::codec::h2::{Body, Breach, ByStream, Code, Connection, Event, Limits, Role, StreamId};
use crate::codec::{Framing, Head};
use crate::io::Io;

mod keepalive;

pub use keepalive::KeepAlive;

/// Interim responses of one stream that may wait to be taken. Flow control does not hold heads back.
const MOST_WAITING_HEADS: usize = 16;
/// What a stream sends at once while others wait in line.
const TURN_BYTES: usize = DEFAULT_MAX_FRAME_BYTES as usize;
/// So much of a window that opens is thought to satisfy a stream: as many are woken at once, so that what they send leaves together.
const SMALL_BODY_BYTES: usize = 1024;
/// Output memory that is kept between turns.
const KEPT_OUTPUT_BYTES: usize = 64 * 1024;

/// What has come for one stream and was not taken yet.
#[derive(Default)]
struct Inbox {
    /// Heads of responses, interim ones first.
    heads: Vec<Head>,
    data: Vec<u8>,
    trailers: Option<Head>,
    ended: bool,
    end: Option<StreamEnd>,
    /// The task that works on the stream.
    waker: Option<Waker>,
    /// Something has come.
    spoken: bool,
    /// It stands in [`Session::line`].
    in_line: bool,
}

/// How a stream ended before its message did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The peer certainly has not worked on it: it may be tried again, whatever it is.
    Refused,
    /// The peer reset it.
    Reset,
    /// The connection is gone.
    Gone,
    /// The connection was ended because its client broke the protocol.
    Broken,
    /// The peer broke a rule.
    Malformed,
}

/// What the task of a connection and its streams share.
pub struct Session {
    codec: RefCell<Connection>,
    inboxes: RefCell<ByStream<Rc<RefCell<Inbox>>>>,
    /// The connection's task.
    driver: RefCell<Option<Waker>>,
    /// A stream waits until output has left.
    crowded: Cell<bool>,
    /// Streams with data for which the window or the output had no room, the next to send first.
    line: RefCell<VecDeque<Rc<RefCell<Inbox>>>>,
    /// Who was the first in line, and could send, when the connection's task ran last.
    called: RefCell<Option<Rc<RefCell<Inbox>>>>,
    over: Cell<bool>,
    /// The peer's settings have come.
    settled: Cell<bool>,
    /// Tasks that wait for them.
    unsettled: RefCell<Vec<Waker>>,
    tls_refusal: RefCell<Option<String>>,
    role: Role,
    /// TLS is under it.
    secure: bool,
    /// While more than this waits to be written, streams and the peer wait.
    output_bytes: usize,
    /// Requests that were sent or received on it, and of our own those that are about to be sent.
    requests: Cell<u32>,
    /// The latter.
    unsent: Cell<u32>,
    /// So many of our own may ever be sent on it.
    most_requests: u32,
    /// When something of the peer's was taken in last.
    heard: Cell<Instant>,
}

impl Session {
    fn wake(&self) {
        if let Some(waker) = self.driver.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether another request may be sent on it now.
    pub fn can_open(&self) -> bool {
        self.requests.get() < self.most_requests && self.can_send()
    }

    /// Whether one that counts already may be.
    fn can_send(&self) -> bool {
        !self.over.get() && self.codec.borrow().can_open()
    }

    /// Whether as many requests have been sent on it as may be.
    pub fn is_used_up(&self) -> bool {
        self.requests.get() - self.unsent.get() >= self.most_requests
    }

    /// Whether a request with this body may be sent on it now, and nobody's reading or not reading of another body can stop it.
    pub fn can_take(&self, body: Body) -> bool {
        self.can_open() && self.codec.borrow().has_room(body)
    }

    /// Whether no request can ever be sent on it again.
    pub fn is_worn(&self) -> bool {
        self.over.get() || self.codec.borrow().is_worn()
    }

    /// Why the peer's TLS has ended the connection, if it said so.
    pub fn tls_refusal(&self) -> Option<String> {
        self.tls_refusal.borrow().clone()
    }

    /// Note why the peer's TLS has ended the connection.
    pub fn note_tls_refusal(&self, text: Option<String>) {
        *self.tls_refusal.borrow_mut() = text;
    }

    pub fn open_streams(&self) -> usize {
        self.inboxes.borrow().len()
    }

    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// When something came from the peer last, or the connection began.
    pub fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// A stream for a request that is about to be sent.
    pub fn stream(self: &Rc<Self>) -> Stream {
        let first = self.requests.get() == 0;
        self.requests.set(self.requests.get() + 1);
        self.unsent.set(self.unsent.get() + 1);
        Stream {
            session: Rc::clone(self),
            id: Cell::new(0),
            is_unsent: Cell::new(true),
            first,
            inbox: Rc::default(),
            finished: Cell::new(false),
            held: Cell::new(0),
        }
    }

    /// Send no more requests on it; it closes when the last has ended.
    pub fn retire(&self) {
        self.codec.borrow_mut().go_away(Code::NO_ERROR);
        self.wake();
    }

    fn end(&self, end: StreamEnd) {
        self.over.set(true);
        self.wake_unsettled();
        let inboxes: Vec<_> = self.inboxes.borrow().values().cloned().collect();
        for inbox in inboxes {
            close(&inbox, end);
        }
    }

    fn inbox(&self, stream: StreamId) -> Option<Rc<RefCell<Inbox>>> {
        self.inboxes.borrow().get(&stream).cloned()
    }

    fn wake_all(&self) {
        self.wake_line(usize::MAX);
        let wakers: Vec<_> =
            self.inboxes.borrow().values().filter_map(|inbox| inbox.borrow_mut().waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn wake_unsettled(&self) {
        self.unsettled.take().into_iter().for_each(Waker::wake);
    }

    /// Whether so much waits to be written that nothing more should be read.
    ///
    /// If both ends of a connection stopped reading when they have much to say, they would wait for each other for ever. So a client goes
    /// on: what comes are answers, which have windows; what it says to anything else is little, but not without a bound.
    fn is_choked(&self) -> bool {
        let most = if self.role == Role::Client { 4 * self.output_bytes } else { self.output_bytes };
        let choked = self.codec.borrow().output().len() >= most;
        if choked {
            self.crowded.set(true);
        }
        choked
    }

    fn is_crowded(&self) -> bool {
        let crowded = self.codec.borrow().output().len() >= self.output_bytes;
        if crowded {
            self.crowded.set(true);
        }
        crowded
    }

    // --- the line ---

    /// Whether there is room for more data of whose turn it is.
    fn has_room(&self) -> bool {
        !self.is_crowded() && self.codec.borrow().window() > 0
    }

    /// Whether a stream may send before all others.
    fn is_next(&self, inbox: &Rc<RefCell<Inbox>>) -> bool {
        self.line.borrow().front().is_none_or(|first| Rc::ptr_eq(first, inbox))
    }

    /// Put a stream at the end of the line, if it does not stand there.
    fn queue(&self, inbox: &Rc<RefCell<Inbox>>) {
        if !std::mem::replace(&mut inbox.borrow_mut().in_line, true) {
            self.line.borrow_mut().push_back(Rc::clone(inbox));
        }
    }

    /// Let the stream go whose turn it is. Returns whether others stand behind it.
    fn begin_turn(&self, inbox: &Rc<RefCell<Inbox>>) -> bool {
        let mut line = self.line.borrow_mut();
        if std::mem::take(&mut inbox.borrow_mut().in_line) {
            line.pop_front();
            *self.called.borrow_mut() = None;
        }
        !line.is_empty()
    }

    /// The stream had its turn and could send nothing: it is still the first.
    fn keep_turn(&self, inbox: &Rc<RefCell<Inbox>>) {
        inbox.borrow_mut().in_line = true;
        self.line.borrow_mut().push_front(Rc::clone(inbox));
    }

    /// Take a stream that sends no more out of the line, wherever it stands.
    fn leave_line(&self, inbox: &Rc<RefCell<Inbox>>) {
        if std::mem::take(&mut inbox.borrow_mut().in_line) {
            self.line.borrow_mut().retain(|other| !Rc::ptr_eq(other, inbox));
            self.call_next();
        }
    }

    /// Have the first in line send, if there is room.
    fn call_next(&self) {
        self.call(1);
    }

    /// The same with as many as *most*, one after the other.
    fn call(&self, most: usize) {
        loop {
            let Some(first) = self.line.borrow().front().cloned() else { return };
            if first.borrow().end.is_none() {
                break;
            }
            self.begin_turn(&first);
        }
        if self.has_room() {
            self.wake_line(most);
            // It runs after them, and sees whether they come.
            self.wake();
        }
    }

    /// The output was taken: there may be room in it again.
    fn relieve(&self) {
        if self.crowded.take() {
            self.wake_all();
            self.call_next();
        }
    }

    fn wake_line(&self, most: usize) {
        for inbox in self.line.borrow().iter().take(most) {
            if let Some(waker) = inbox.borrow_mut().waker.take() {
                waker.wake();
            }
        }
    }

    /// Pass over the first in line if it was called and has not come: it has nothing to send any more, or is busy otherwise. Asked each time
    /// that the connection's task runs, between two of which everybody who was woken has run, unless a turn came between them.
    fn pass_over(&self) {
        let first = self.line.borrow().front().cloned().filter(|_| self.has_room());
        let called = self.called.replace(first.clone());
        let Some(first) = first else { return };
        if called.is_some_and(|called| Rc::ptr_eq(&called, &first)) {
            self.begin_turn(&first);
            // If it has, it goes to the end of the line.
            if let Some(waker) = first.borrow_mut().waker.take() {
                waker.wake();
            }
        }
        self.call_next();
    }
}

fn close(inbox: &RefCell<Inbox>, end: StreamEnd) {
    let mut inbox = inbox.borrow_mut();
    inbox.end.get_or_insert(end);
    if let Some(waker) = inbox.waker.take() {
        waker.wake();
    }
}

/// One request and its answer, on a connection that it shares. Dropping it before both are complete resets it.
pub struct Stream {
    session: Rc<Session>,
    /// 0 until the request is sent.
    id: Cell<StreamId>,
    /// It counts as a request and has not been tried to be sent yet.
    is_unsent: Cell<bool>,
    first: bool,
    inbox: Rc<RefCell<Inbox>>,
    /// Our side has sent all of its message.
    finished: Cell<bool>,
    /// Bytes that were taken from the inbox and not handed on yet: they count against the peer's windows.
    held: Cell<usize>,
}

impl Stream {
    /// How the stream ended, if not by its messages.
    pub fn end(&self) -> Option<StreamEnd> {
        self.inbox.borrow().end
    }

    /// Whether anything has come on it.
    pub fn has_spoken(&self) -> bool {
        self.inbox.borrow().spoken
    }

    /// Whether it was the first of its connection.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// Ready once the peer has told its settings, with whether it understands extended CONNECT (RFC 8441 3: not to be sent before).
    pub fn poll_extended_connect(&self, context: &mut Context<'_>) -> Poll<bool> {
        if self.session.settled.get() || self.session.over.get() {
            return Poll::Ready(self.session.codec.borrow().accepts_extended_connect());
        }
        self.session.unsettled.borrow_mut().push(context.waker().clone());
        Poll::Pending
    }

    fn wait(&self, context: &mut Context<'_>) {
        let waker = &mut self.inbox.borrow_mut().waker;
        match waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
    }

    /// Whether the peer's message is here to its end.
    pub fn is_received(&self) -> bool {
        let inbox = self.inbox.borrow();
        inbox.ended && inbox.data.is_empty()
    }

    /// The next head of a response. `None` inside: there will be none, see [`Stream::end`].
    pub fn poll_head(&self, context: &mut Context<'_>, head: &mut Head) -> Poll<Option<()>> {
        let mut inbox = self.inbox.borrow_mut();
        if !inbox.heads.is_empty() {
            *head = inbox.heads.remove(0);
            return Poll::Ready(Some(()));
        }
        if inbox.end.is_some() || inbox.ended {
            return Poll::Ready(None);
        }
        drop(inbox);
        self.wait(context);
        Poll::Pending
    }

    /// Move what has come of the body into *data*, which is empty. Ready with false at the body's end.
    ///
    /// # Errors
    /// The stream ended before the body did.
    pub fn poll_data(&self, context: &mut Context<'_>, data: &mut Vec<u8>) -> Poll<Result<bool, StreamEnd>> {
        let mut inbox = self.inbox.borrow_mut();
        if !inbox.data.is_empty() {
            std::mem::swap(&mut inbox.data, data);
            self.held.set(self.held.get() + data.len());
            return Poll::Ready(Ok(true));
        }
        if inbox.ended {
            return Poll::Ready(Ok(false));
        }
        if let Some(end) = inbox.end {
            return Poll::Ready(Err(end));
        }
        drop(inbox);
        self.wait(context);
        Poll::Pending
    }

    /// Received bytes were handed on: the peer may send as many again.
    pub fn release(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
        self.session.codec.borrow_mut().release(self.id.get(), bytes);
        if !self.session.codec.borrow().output().is_empty() {
            self.session.wake();
        }
    }

    /// Fields after the body, if it had any.
    pub fn with_trailers<T>(&self, look: impl FnOnce(Option<&Head>) -> T) -> T {
        look(self.inbox.borrow().trailers.as_ref())
    }

    /// Ready when the peer has given up the stream, or the connection is gone.
    pub fn poll_end(&self, context: &mut Context<'_>) -> Poll<StreamEnd> {
        if let Some(end) = self.end() {
            return Poll::Ready(end);
        }
        self.wait(context);
        Poll::Pending
    }

    /// Send the request. *ended*: it has no body.
    pub fn request(&self, head: &Head, ended: bool) {
        self.note_sent();
        if !self.session.can_send() {
            // The connection ended, or filled up, in the moment in between.
            close(&self.inbox, StreamEnd::Refused);
            return;
        }
        let id = self.session.codec.borrow_mut().request(head, self.session.secure, ended);
        self.id.set(id);
        self.finished.set(ended);
        self.session.inboxes.borrow_mut().insert(id, Rc::clone(&self.inbox));
        self.session.wake();
    }

    /// Whether it was about to be sent until now.
    fn note_sent(&self) -> bool {
        let was_unsent = self.is_unsent.replace(false);
        self.session.unsent.set(self.session.unsent.get() - u32::from(was_unsent));
        was_unsent
    }

    /// Send a response's head, interim or final.
    pub fn response(&self, head: &Head, framing: Framing, ended: bool) {
        self.session.codec.borrow_mut().response(self.id.get(), head, framing, ended);
        self.finished.set(ended);
        self.session.wake();
    }

    /// Ready when what waits to leave on the connection is little enough for more. Heads have no windows: who sends many must ask.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end().is_some() || !self.session.codec.borrow().is_open(self.id.get()) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.session.is_crowded() {
            self.wait(context);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Send as much of *data* as may be sent now, with the end of the message if *ended*. Ready with how much that was; more than none.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn poll_send(&self, context: &mut Context<'_>, data: &[u8], ended: bool) -> Poll<io::Result<usize>> {
        let session = &*self.session;
        match self.poll_room(context) {
            Poll::Ready(Ok(())) if session.is_next(&self.inbox) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            _ => {
                session.queue(&self.inbox);
                self.wait(context);
                return Poll::Pending;
            }
        }
        let others_wait = session.begin_turn(&self.inbox);
        let part = if others_wait { &data[..data.len().min(TURN_BYTES)] } else { data };
        let ended = ended && part.len() == data.len();
        let count = session.codec.borrow_mut().data(self.id.get(), part, ended);
        if count == 0 && !data.is_empty() {
            if session.codec.borrow().has_own_window(self.id.get()) {
                session.keep_turn(&self.inbox);
            } else if others_wait {
                session.call_next();
            }
            self.wait(context);
            return Poll::Pending;
        }
        if others_wait {
            if count < data.len() {
                session.queue(&self.inbox);
            }
            session.call_next();
        }
        if ended && count == data.len() {
            self.finished.set(true);
        }
        session.wake();
        Poll::Ready(Ok(count))
    }

    /// End our message, with these trailers.
    pub fn finish<'t>(&self, trailers: impl Iterator<Item = (&'t [u8], &'t [u8])>) {
        let mut trailers = trailers.peekable();
        let mut codec = self.session.codec.borrow_mut();
        if trailers.peek().is_some() {
            codec.trailers(self.id.get(), trailers);
        } else {
            codec.data(self.id.get(), &[], true);
        }
        drop(codec);
        self.finished.set(true);
        self.session.wake();
    }

    /// Give the stream up; the peer sees that its message was cut short.
    pub fn reset(&self, code: Code) {
        self.session.codec.borrow_mut().reset(self.id.get(), code);
        self.session.leave_line(&self.inbox);
        self.session.wake();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let id = self.id.get();
        if self.note_sent() {
            self.session.requests.set(self.session.requests.get() - 1);
        }
        if id == 0 {
            return;
        }
        self.session.inboxes.borrow_mut().remove(&id);
        let mut codec = self.session.codec.borrow_mut();
        // RFC 9113 8.1: who has answered in full may stop the rest of the request without blame.
        codec.reset(id, if self.finished.get() { Code::NO_ERROR } else { Code::CANCEL });
        // What nobody will hand on must not count against the connection's window, which others share.
        codec.release(id, self.inbox.borrow().data.len() + self.held.get());
        drop(codec);
        self.session.leave_line(&self.inbox);
        self.session.wake();
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The peer closed it, or it broke.
    Closed,
    /// The peer broke the protocol; what tells it so may still wait to be written.
    Broken,
}

/// What the connection's task has to look at.
#[derive(Debug)]
pub enum Turn {
    /// A client's request has come, with or without a body; see [`Driver::take_request`].
    Request {
        stream: StreamId,
        too_large: bool,
    },
    Pong([u8; 8]),
    /// A request was malformed and its stream reset.
    Malformed,
    Over(ConnectionEnd),
}

/// The connection's end that reads and writes; owned by its task.
pub struct Driver {
    pub session: Rc<Session>,
    began: Instant,
    head: Head,
    writing: Vec<u8>,
    written: usize,
    /// What was read may hold more frames.
    unread: bool,
    broken: bool,
    /// Since when the peer has owed us the rest of what it began: the connection, a header block, or a frame.
    owed_since: Option<Instant>,
}

impl Driver {
    /// Begin a connection; nothing is sent before the first poll.
    pub fn new(role: Role, limits: Limits, secure: bool) -> Driver {
        Driver::limited(role, limits, secure, u32::MAX)
    }

    /// The same, for *most_requests* of our own.
    pub fn limited(role: Role, limits: Limits, secure: bool, most_requests: u32) -> Driver {
        let began = Instant::now();
        let session = Rc::new(Session {
            codec: RefCell::new(Connection::new(role, limits)),
            inboxes: RefCell::default(),
            driver: RefCell::default(),
            crowded: Cell::new(false),
            line: RefCell::default(),
            called: RefCell::default(),
            over: Cell::new(false),
            settled: Cell::new(false),
            unsettled: RefCell::default(),
            tls_refusal: RefCell::default(),
            role,
            secure,
            output_bytes: limits.output_bytes,
            requests: Cell::new(0),
            unsent: Cell::new(0),
            most_requests,
            heard: Cell::new(began),
        });
        Driver {
            session,
            began,
            head: Head::default(),
            writing: Vec::new(),
            written: 0,
            unread: true,
            broken: false,
            owed_since: None,
        }
    }

    /// Since when the peer has owed us the rest of what it began, and the connection cannot go on without: its preface and settings, a
    /// header block, or a frame that is not DATA.
    pub fn owed_since(&self) -> Option<Instant> {
        self.owed_since
    }

    /// Give up the connection because of what the peer does with time.
    pub fn fail(&mut self, code: Code, reason: &'static str) {
        self.broken = true;
        self.session.codec.borrow_mut().fail(code, reason);
    }

    /// Read, and write what has gathered, until something happened that the task has to look at.
    pub fn poll(&mut self, context: &mut Context<'_>, io: &Io, buffer: &mut Buffer) -> Poll<Turn> {
        *self.session.driver.borrow_mut() = Some(context.waker().clone());
        self.session.pass_over();
        // What the streams said since the last turn leaves first.
        match self.poll_flush(context, io) {
            Poll::Ready(Err(_)) => return self.over(ConnectionEnd::Closed),
            // Those that wait may be answers to what was read long ago.
            Poll::Pending if !self.broken => self.broken = self.session.codec.borrow_mut().check_waiting().is_err(),
            _ => {}
        }
        if self.broken {
            // All that the streams had to say is on its way, or waits for a peer that may never read it.
            return self.over(ConnectionEnd::Broken);
        }
        if self.session.is_choked() {
            return Poll::Pending;
        }
        loop {
            if self.unread {
                if let Some(turn) = self.receive(buffer) {
                    return Poll::Ready(turn);
                }
                buffer.release_if_empty();
                if self.broken || !self.session.codec.borrow().output().is_empty() {
                    // The streams run before this task does again, and their answers leave together.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            if buffer.is_full() {
                // A frame of the largest size that we allow has room in it.
                buffer.grow(0);
            }
            match io.poll_read(context, buffer) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.unread = true;
                }
                Poll::Ready(_) => return self.over(ConnectionEnd::Closed),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn over(&mut self, end: ConnectionEnd) -> Poll<Turn> {
        self.session.end(self.stream_end());
        Poll::Ready(Turn::Over(end))
    }

    /// What the end of the connection is to its streams.
    fn stream_end(&self) -> StreamEnd {
        if self.broken && self.session.role == Role::Server { StreamEnd::Broken } else { StreamEnd::Gone }
    }

    /// Write everything; ready when nothing is left.
    pub fn poll_flush(&mut self, context: &mut Context<'_>, io: &Io) -> Poll<io::Result<()>> {
        loop {
            if self.writing.is_empty() {
                self.session.codec.borrow_mut().written();
            } else {
                std::task::ready!(io.poll_write_all(context, &self.writing, &[], &mut self.written))?;
                self.writing.clear();
                self.writing.shrink_to(KEPT_OUTPUT_BYTES);
                self.written = 0;
            }
            if self.session.codec.borrow().output().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.session.codec.borrow_mut().swap_output(&mut self.writing);
            self.session.relieve();
        }
    }

    /// Let the codec read *buffer* until a turn is due or it needs more.
    fn receive(&mut self, buffer: &mut Buffer) -> Option<Turn> {
        let now = Instant::now();
        loop {
            let session = Rc::clone(&self.session);
            let mut codec = session.codec.borrow_mut();
            let (used, event) = match codec.receive(buffer.data(), now - self.began, &mut self.head) {
                Ok(result) => result,
                Err(_) => {
                    self.broken = true;
                    return None;
                }
            };
            let awaits_head = codec.awaits_head();
            drop(codec);
            if used > 0 {
                session.heard.set(now);
                if !awaits_head {
                    self.owed_since = None;
                }
            }
            let Some(event) = event else {
                buffer.consume(used);
                self.unread = false;
                if awaits_head || !buffer.is_empty() {
                    self.owed_since.get_or_insert(now);
                }
                return None;
            };
            let turn = self.apply(event);
            buffer.consume(used);
            if turn.is_some() {
                // Whoever takes it may poll again before anybody who was woken has run.
                *session.called.borrow_mut() = None;
                return turn;
            }
        }
    }

    fn apply(&mut self, event: Event<'_>) -> Option<Turn> {
        let session = &self.session;
        let update = |stream: StreamId, change: &mut dyn FnMut(&mut Inbox)| match session.inbox(stream) {
            None => false,
            Some(inbox) => {
                let mut inbox = inbox.borrow_mut();
                inbox.spoken = true;
                change(&mut inbox);
                if let Some(waker) = inbox.waker.take() {
                    waker.wake();
                }
                true
            }
        };
        match event {
            Event::Head { stream, ended } | Event::TooLarge { stream, ended } => {
                let too_large = matches!(event, Event::TooLarge { .. });
                let head = &mut self.head;
                let mut is_flood = false;
                let is_known = update(stream, &mut |inbox| {
                    is_flood = inbox.heads.len() >= MOST_WAITING_HEADS;
                    if !is_flood {
                        inbox.heads.push(std::mem::take(head));
                    }
                    inbox.ended = ended;
                    if is_flood {
                        inbox.end = Some(StreamEnd::Malformed);
                    }
                });
                if is_flood {
                    session.codec.borrow_mut().reset(stream, Code::ENHANCE_YOUR_CALM);
                }
                if !is_known {
                    let inbox = Inbox { ended, ..Inbox::default() };
                    session.inboxes.borrow_mut().insert(stream, Rc::new(RefCell::new(inbox)));
                    return Some(Turn::Request { stream, too_large });
                }
            }
            Event::Data { stream, data, ended } => {
                let is_known = update(stream, &mut |inbox| {
                    inbox.data.extend_from_slice(data);
                    inbox.ended = ended;
                });
                if !is_known {
                    session.codec.borrow_mut().release(stream, data.len());
                }
            }
            Event::Trailers { stream } => {
                let trailers = &mut self.head;
                update(stream, &mut |inbox| {
                    inbox.trailers = Some(std::mem::take(trailers));
                    inbox.ended = true;
                });
            }
            Event::Reset { stream, code } => {
                if let Some(inbox) = session.inbox(stream) {
                    close(&inbox, if code == Code::REFUSED_STREAM { StreamEnd::Refused } else { StreamEnd::Reset });
                }
            }
            Event::Broken { stream, reason, .. } => match session.inbox(stream) {
                Some(inbox) => close(&inbox, StreamEnd::Malformed),
                None if matches!(reason, Breach::Malformed(_)) => return Some(Turn::Malformed),
                None => {}
            },
            // Whatever a stream waits for may be another now.
            Event::Settings => {
                session.settled.set(true);
                session.wake_unsettled();
                session.wake_all();
            }
            Event::Writable { stream: 0 } => {
                let window = session.codec.borrow().window();
                session.call(window.div_ceil(SMALL_BODY_BYTES));
            }
            Event::Writable { stream } => {
                if let Some(waker) = session.inbox(stream).and_then(|inbox| inbox.borrow_mut().waker.take()) {
                    waker.wake();
                }
            }
            // RFC 9113 6.8: it speaks of streams that its receiver has begun. A server has begun none, and what the client has asked for it answers.
            Event::GoAway { .. } if session.role == Role::Server => {}
            Event::GoAway { last, .. } => {
                let refused: Vec<_> = session
                    .inboxes
                    .borrow()
                    .iter()
                    .filter(|(stream, _)| **stream % 2 == 1 && **stream > last)
                    .map(|(_, inbox)| Rc::clone(inbox))
                    .collect();
                for inbox in refused {
                    close(&inbox, StreamEnd::Refused);
                }
            }
            Event::Pong(payload) => return Some(Turn::Pong(payload)),
        }
        None
    }

    /// The stream of a request that has just come, and its head.
    pub fn take_request(&mut self, stream: StreamId, head: &mut Head) -> Stream {
        std::mem::swap(&mut self.head, head);
        let session = Rc::clone(&self.session);
        session.requests.set(session.requests.get() + 1);
        let inbox = session.inbox(stream).unwrap_or_default();
        Stream {
            session,
            id: Cell::new(stream),
            is_unsent: Cell::new(false),
            first: stream == 1,
            inbox,
            finished: Cell::new(false),
            held: Cell::new(0),
        }
    }

    /// Say that the connection is going to close, and ask for a sign that the peer knows.
    pub fn announce_go_away(&mut self, payload: [u8; 8]) {
        let mut codec = self.session.codec.borrow_mut();
        codec.announce_go_away();
        codec.ping(payload);
        drop(codec);
        self.session.wake();
    }

    /// Take no more requests.
    pub fn go_away(&mut self) {
        self.session.retire();
    }

    pub fn ping(&mut self, payload: [u8; 8]) {
        self.session.codec.borrow_mut().ping(payload);
        self.session.wake();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.session.end(self.stream_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::h2::frame::{self, HEADER_BYTES, Header, kind};
    use crate::codec::h2::settings::Settings;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    const WINDOW_BYTES: u32 = 65_535;

    /// Let *from* say what it has to say to *to*.
    fn pass(from: &RefCell<Connection>, to: &mut impl FnMut(&[u8])) {
        let mut bytes = Vec::new();
        from.borrow_mut().swap_output(&mut bytes);
        to(&bytes);
    }

    #[test]
    fn what_was_taken_and_not_handed_on_is_given_back_with_its_stream() {
        let limits =
            Limits { stream_window_bytes: WINDOW_BYTES, connection_window_bytes: WINDOW_BYTES, ..Limits::default() };
        let client = RefCell::new(Connection::new(Role::Client, limits));
        let mut driver = Driver::new(Role::Server, limits, false);
        let session = Rc::clone(&driver.session);
        let mut buffer = Buffer::default();
        let mut head = Head::default();
        head.set_method(b"POST");
        head.set_path(b"/");
        head.set_authority(b"up");
        head.framing = Framing::Chunked;
        for round in 0..3 {
            let id = client.borrow_mut().request(&head, false, false);
            let mut left = WINDOW_BYTES as usize;
            let mut stream = None;
            let mut taken = Vec::new();
            while left > 0 {
                let count = client.borrow_mut().data(id, &vec![b'x'; left.min(10_000)], false);
                assert!(count > 0, "round {round}: the window is not open, {left} bytes are left");
                left -= count;
                pass(&client, &mut |bytes| buffer.push(bytes));
                while let Some(turn) = driver.receive(&mut buffer) {
                    assert!(matches!(turn, Turn::Request { stream, .. } if stream == id));
                    stream = Some(driver.take_request(id, &mut Head::default()));
                }
                if taken.is_empty() {
                    // One span is at hand, and more come behind it.
                    let mut context = Context::from_waker(Waker::noop());
                    assert!(stream.as_ref().unwrap().poll_data(&mut context, &mut taken).is_ready());
                }
            }
            assert!(client.borrow().sendable(id) == 0 && !taken.is_empty());
            drop(stream);
            pass(&session.codec, &mut |mut bytes| {
                while !bytes.is_empty() {
                    let (used, _) = client.borrow_mut().receive(bytes, Duration::ZERO, &mut Head::default()).unwrap();
                    bytes = &bytes[used..];
                }
            });
        }
    }

    /// A task of which a test wants to know whether it would run.
    #[derive(Default)]
    struct Task(AtomicBool);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    impl Task {
        /// Let it send *data* if it was woken. Returns how much it could.
        fn run(self: &Arc<Self>, stream: &Stream, data: &[u8]) -> usize {
            if self.0.swap(false, Ordering::Relaxed) { self.begin(stream, data) } else { 0 }
        }

        fn begin(self: &Arc<Self>, stream: &Stream, data: &[u8]) -> usize {
            let waker = Waker::from(Arc::clone(self));
            let mut sent = 0;
            while sent < data.len() {
                match stream.poll_send(&mut Context::from_waker(&waker), &data[sent..], false) {
                    Poll::Ready(count) => sent += count.unwrap(),
                    Poll::Pending => break,
                }
            }
            sent
        }
    }

    #[test]
    fn requests_that_are_about_to_be_sent_count_as_those_that_were() {
        let driver = Driver::limited(Role::Client, Limits::default(), false, 2);
        let session = Rc::clone(&driver.session);
        let mut head = Head::default();
        head.set_method(b"GET");
        head.set_path(b"/");
        head.set_authority(b"up");
        let (first, second) = (session.stream(), session.stream());
        assert!(!session.can_open() && !session.is_used_up());
        // It was given up before.
        drop(first);
        assert!(session.can_open());
        let first = session.stream();
        assert!(!session.can_open());
        for stream in [&first, &second] {
            assert!(!session.is_used_up());
            stream.request(&head, true);
            assert_eq!(stream.end(), None);
        }
        assert!(session.is_used_up());
        drop((first, second));
        assert!(session.is_used_up() && !session.can_open());
    }

    /// A client whose peer allows one window of the usual size to each stream and to all, and opens them only when the test says so.
    struct Upload {
        driver: Driver,
        buffer: Buffer,
        /// What has come to the peer of each stream and was not given back.
        held: ByStream<usize>,
    }

    impl Upload {
        fn new(limits: Limits) -> Upload {
            let driver = Driver::new(Role::Client, limits, false);
            driver.session.codec.borrow_mut().swap_output(&mut Vec::new());
            let mut upload = Upload { driver, buffer: Buffer::default(), held: ByStream::default() };
            upload.say(|out| Settings::default().write(out));
            upload
        }

        /// What the peer says.
        fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
            let mut bytes = Vec::new();
            write(&mut bytes);
            self.buffer.push(&bytes);
            assert!(self.driver.receive(&mut self.buffer).is_none() && self.buffer.is_empty());
        }

        /// A request with a body.
        fn stream(&self) -> Stream {
            let mut head = Head::default();
            head.set_method(b"POST");
            head.set_path(b"/");
            head.set_authority(b"up");
            head.framing = Framing::Chunked;
            let stream = self.driver.session.stream();
            stream.request(&head, false);
            stream
        }

        /// A turn of the connection's task, in which all that waits is written. Returns what has come of each stream by it.
        fn turn(&mut self) -> ByStream<usize> {
            let session = &self.driver.session;
            session.pass_over();
            let mut come = ByStream::default();
            pass(&session.codec, &mut |mut bytes| {
                while let Some(header) = Header::read(bytes) {
                    if header.kind == kind::DATA {
                        *come.entry(header.stream).or_default() += header.length;
                    }
                    bytes = &bytes[HEADER_BYTES + header.length..];
                }
            });
            session.relieve();
            come.iter().for_each(|(stream, bytes)| *self.held.entry(*stream).or_default() += bytes);
            come
        }

        /// The peer has read what has come.
        fn give_back(&mut self) {
            let held = std::mem::take(&mut self.held);
            self.say(|out| {
                frame::window_update(out, 0, held.values().sum::<usize>() as u32);
                held.iter().for_each(|(stream, bytes)| frame::window_update(out, *stream, *bytes as u32));
            });
        }
    }

    #[test]
    fn a_long_body_does_not_keep_the_others_from_the_connections_window() {
        let mut upload = Upload::new(Limits::default());
        let (long, short) = (upload.stream(), upload.stream());
        let (long_task, short_task) = (Arc::new(Task::default()), Arc::new(Task::default()));
        let endless = vec![b'x'; 1 << 20];
        assert_eq!(long_task.begin(&long, &endless), WINDOW_BYTES as usize);
        assert_eq!(short_task.begin(&short, &[b'y'; 100]), 0);
        upload.turn();
        for round in 0..10 {
            upload.give_back();
            // It has always more, and is always the first to run.
            long_task.begin(&long, &endless);
            let sent = short_task.run(&short, &[b'y'; 100]);
            assert_eq!(sent, if round == 0 { 100 } else { 0 }, "round {round}");
            long_task.begin(&long, &endless);
            let come = upload.turn();
            assert_eq!(come.get(&3).copied().unwrap_or_default(), sent);
            assert_eq!(come[&1], WINDOW_BYTES as usize - sent, "nothing of the window is lost in round {round}");
        }
    }

    #[test]
    fn bodies_that_share_the_connections_window_come_on_alike() {
        let mut upload = Upload::new(Limits::default());
        let streams: Vec<_> = (0..5).map(|_| (upload.stream(), Arc::new(Task::default()))).collect();
        let body = vec![b'x'; 1 << 20];
        let mut come = [0; 5];
        streams.iter().for_each(|(stream, task)| _ = task.begin(stream, &body));
        for _ in 0..100 {
            // Whoever is woken runs, and always in the same order.
            while streams.iter().map(|(stream, task)| task.run(stream, &body)).sum::<usize>() > 0 {}
            for (stream, bytes) in upload.turn() {
                come[stream as usize / 2] += bytes;
            }
            upload.give_back();
        }
        let (least, most) = (*come.iter().min().unwrap(), *come.iter().max().unwrap());
        assert!(come.iter().sum::<usize>() >= 99 * WINDOW_BYTES as usize, "{come:?}");
        assert!(most - least <= WINDOW_BYTES as usize + TURN_BYTES, "{come:?}");
    }

    #[test]
    fn small_bodies_that_wait_for_the_connections_window_leave_together() {
        let mut upload = Upload::new(Limits::default());
        let long = upload.stream();
        Arc::new(Task::default()).begin(&long, &vec![b'x'; WINDOW_BYTES as usize]);
        let small: Vec<_> = (0..20).map(|_| (upload.stream(), Arc::new(Task::default()))).collect();
        small.iter().for_each(|(stream, task)| assert_eq!(task.begin(stream, &[b'y'; 1000]), 0));
        upload.turn();
        upload.give_back();
        // One after the other, and the connection's task did not run in between.
        small.iter().for_each(|(stream, task)| assert_eq!(task.run(stream, &[b'y'; 1000]), 1000));
        assert_eq!(upload.turn().len(), small.len());
    }

    #[test]
    fn a_long_body_does_not_keep_the_others_from_the_output() {
        let mut upload = Upload::new(Limits { output_bytes: 2 * TURN_BYTES, ..Limits::default() });
        let (long, short) = (upload.stream(), upload.stream());
        let (long_task, short_task) = (Arc::new(Task::default()), Arc::new(Task::default()));
        let body = vec![b'x'; 3 * TURN_BYTES];
        // The first span is taken whole.
        assert_eq!(long_task.begin(&long, &body), body.len());
        assert_eq!((long_task.begin(&long, &body), short_task.begin(&short, b"short")), (0, 0));
        upload.turn();
        upload.give_back();
        assert_eq!(long_task.run(&long, &body), TURN_BYTES);
        assert_eq!(short_task.run(&short, b"short"), 5);
    }

    #[test]
    fn a_stream_that_is_called_and_does_not_come_holds_up_nobody() {
        for drops in [false, true] {
            let mut upload = Upload::new(Limits::default());
            let (long, silent, other) = (upload.stream(), upload.stream(), upload.stream());
            let (long_task, task) = (Arc::new(Task::default()), Arc::new(Task::default()));
            let silent_task = Arc::new(Task::default());
            long_task.begin(&long, &vec![b'x'; WINDOW_BYTES as usize]);
            assert_eq!((silent_task.begin(&silent, b"silent"), task.begin(&other, b"other")), (0, 0));
            upload.turn();
            upload.give_back();
            assert_eq!(task.run(&other, b"other"), 0, "it is not its turn");
            let silent = Some(silent).filter(|_| !drops);
            upload.turn();
            upload.turn();
            assert_eq!(task.run(&other, b"other"), 5);
            if let Some(silent) = silent {
                // It was only late.
                assert_eq!(silent_task.run(&silent, b"silent"), 6);
            }
        }
    }

    #[test]
    fn nobody_is_passed_over_between_two_turns_of_one_read() {
        let mut upload = Upload::new(Limits::default());
        let (long, other) = (upload.stream(), upload.stream());
        let (long_task, task) = (Arc::new(Task::default()), Arc::new(Task::default()));
        long_task.begin(&long, &vec![b'x'; WINDOW_BYTES as usize]);
        assert_eq!(task.begin(&other, b"other"), 0);
        assert_eq!(long_task.begin(&long, b"more"), 0);
        upload.turn();
        upload.give_back();
        for payload in [[1; 8], [2; 8]] {
            upload.turn();
            let mut pong = Vec::new();
            frame::ping(&mut pong, frame::flag::ACK, payload);
            upload.buffer.push(&pong);
            assert!(matches!(upload.driver.receive(&mut upload.buffer), Some(Turn::Pong(told)) if told == payload));
        }
        upload.turn();
        assert!(other.inbox.borrow().in_line, "it could not come yet");
        assert_eq!(task.run(&other, b"other"), 5);
    }

    #[test]
    fn of_two_ends_that_have_much_to_say_one_goes_on_reading() {
        let limits = Limits { output_bytes: 200, ..Limits::default() };
        for (role, pings, crowded, choked) in [
            (Role::Server, 5, false, false),
            (Role::Server, 20, true, true),
            (Role::Client, 20, true, false),
            (Role::Client, 60, true, true),
        ] {
            let mut driver = Driver::new(role, limits, false);
            driver.session.codec.borrow_mut().swap_output(&mut Vec::new());
            (0..pings).for_each(|_| driver.ping([0; 8]));
            let session = &driver.session;
            assert_eq!((session.is_crowded(), session.is_choked()), (crowded, choked), "{role:?}, {pings}");
        }
    }
}
