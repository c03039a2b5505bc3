//! Calls of RPC protocols over one downstream connection, each along the line
//!
//!     read message -> route -> pick -> connect -> forward -> record
//!
//! [`call`] is that line; [`session`] carries many calls over one connection to an endpoint. What protocol it is, only the codec knows
//! (`crate::codec::rpc`).
//!
//! Here messages are cut out of a connection's bytes, and answers leave in the order in which they come. A connection that is to close takes
//! no more calls once its caller had time to hear of it, and ends when the last one is answered. A caller that closes is gone: nobody
//! waits for its answers, but what wants none is still delivered.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::Instant;
use weft_core::rpc::{self, RpcProxy, ThriftEncoding, ThriftTransport};

use crate::codec::rpc::dubbo::Dubbo;
use crate::codec::rpc::thrift::{Encoding, Thrift, Transport};
use crate::codec::rpc::{Codec, Frame, Message, Sharing};
use crate::http;
use crate::metrics::RpcCounters;
use crate::serve::{Downstream, Socket};

mod call;
mod pace;
pub mod session;

use pace::Pace;

/// How long a caller has to hear that the connection is going to close, before its calls are not taken any more.
const GRACE: Duration = Duration::from_secs(1);
/// Bytes that are read and thrown away while a caller closes.
const LINGER_BYTES: usize = 256 * 1024;
/// Reads in one turn, before others get theirs.
const READS: usize = 16;

/// The codec of a configuration.
pub fn codec(protocol: rpc::Protocol) -> Arc<dyn Codec> {
    match protocol {
        rpc::Protocol::Dubbo => Arc::<Dubbo>::default(),
        rpc::Protocol::Thrift { transport, encoding } => Arc::new(Thrift {
            transport: transport.map(|transport| match transport {
                ThriftTransport::Framed => Transport::Framed,
                ThriftTransport::Header => Transport::Header,
            }),
            encoding: encoding.map(|encoding| match encoding {
                ThriftEncoding::Binary => Encoding::Binary,
                ThriftEncoding::Compact => Encoding::Compact,
            }),
            ..Thrift::default()
        }),
    }
}

/// A downstream connection, as its calls see it.
struct Caller {
    down: Downstream,
    protocol: rpc::Protocol,
    codec: Arc<dyn Codec>,
    closes_after_error: bool,
    /// What is to be sent to the caller.
    outbox: RefCell<Vec<u8>>,
    /// The connection's task.
    waker: RefCell<Option<Waker>>,
    /// Calls under way, and the bytes that they hold.
    active: Cell<usize>,
    held: Cell<usize>,
    /// Its last call was read, or carried out.
    last: Cell<bool>,
    /// The connection is gone.
    gone: Cell<bool>,
    left: Notify,
}

impl Caller {
    fn counters(&self) -> &RpcCounters {
        &self.down.worker.metrics.counters().rpc[self.protocol.index()]
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Say something to the caller; it leaves with what others say in this turn.
    fn say(&self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.outbox.borrow_mut());
        self.wake();
    }

    /// Ready when the connection is gone.
    async fn until_gone(&self) {
        let left = self.left.notified();
        if !self.gone.get() {
            left.await;
        }
    }
}

/// A call under way, which counts.
struct Active {
    caller: Rc<Caller>,
    bytes: usize,
}

impl Active {
    fn begin(caller: &Rc<Caller>, bytes: usize) -> Active {
        caller.active.set(caller.active.get() + 1);
        caller.held.set(caller.held.get() + bytes);
        caller.counters().request_active.add(1);
        Active { caller: Rc::clone(caller), bytes }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let caller = &self.caller;
        caller.active.set(caller.active.get() - 1);
        caller.held.set(caller.held.get() - self.bytes);
        caller.counters().request_active.take_away(1);
        // The next message may be waiting for this.
        caller.wake();
    }
}

/// What the connection's task woke up for.
enum Event {
    /// So many bytes are a message.
    Message(usize),
    /// They are not the protocol.
    Malformed,
    /// The caller closed the connection, or it broke.
    Gone,
    /// It does not go on with what it began.
    Stalled,
    /// Tell the caller to go.
    Leave,
    /// It had time to hear of it, and nothing is under way.
    Finished,
}

/// Serve a connection that an RPC proxy took.
pub async fn serve(down: Downstream, socket: Socket, proxy: &RpcProxy) {
    let _registration = down.worker.register(http::waker().await);
    let Some(codec) = down.context.codec.clone() else { return };
    let caller = Rc::new(Caller {
        protocol: proxy.protocol,
        codec,
        closes_after_error: proxy.close_after_error,
        down,
        outbox: RefCell::default(),
        waker: RefCell::default(),
        active: Cell::new(0),
        held: Cell::new(0),
        last: Cell::new(false),
        gone: Cell::new(false),
        left: Notify::new(),
    });
    let mut connection = Connection {
        caller: Rc::clone(&caller),
        socket,
        writing: Vec::new(),
        done: 0,
        pace: Pace::default(),
        left_at: None,
        told: false,
    };
    let mut taken: u32 = 0;
    let counters = caller.counters();
    loop {
        match connection.next().await {
            Event::Message(length) => {
                let message = &connection.socket.buffer.data()[..length];
                match caller.codec.inspect(message) {
                    Ok(Message::Call { id, answered }) => {
                        taken += 1;
                        let is_leaving = connection.left_at.is_some() && !connection.told;
                        if is_leaving || proxy.max_requests_per_connection.is_some_and(|most| taken >= most) {
                            caller.last.set(true);
                        }
                        let active = Active::begin(&caller, length);
                        spawn_local(call::serve(active, message.to_vec(), id, answered));
                    }
                    Ok(Message::Ping { answered }) => {
                        counters.request_event.add(1);
                        if answered {
                            caller.say(|out| caller.codec.pong(message, out));
                        }
                    }
                    // Answers to questions that nobody asked, and a caller's own farewell, change nothing.
                    Ok(Message::Pong | Message::GoAway) => counters.request_event.add(1),
                    Ok(Message::Answer { .. }) => {}
                    Err(_) => {
                        counters.request_decoding_error.add(1);
                        return connection.end(Who::Local);
                    }
                }
                connection.socket.buffer.consume(length);
                connection.socket.buffer.release_if_empty();
            }
            Event::Malformed | Event::Stalled => {
                counters.request_decoding_error.add(1);
                return connection.end(Who::Local);
            }
            Event::Gone => return connection.end(Who::Remote),
            Event::Leave => {
                connection.left_at = Some(Instant::now());
                caller.say(|out| connection.told = caller.codec.go_away(out));
            }
            Event::Finished => {
                connection.linger().await;
                return connection.end(Who::Local);
            }
        }
    }
}

/// Who ended a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Local,
    Remote,
}

/// A downstream connection, as its own task sees it.
struct Connection {
    caller: Rc<Caller>,
    socket: Socket,
    writing: Vec<u8>,
    /// How much of `writing` is written.
    done: usize,
    pace: Pace,
    /// Since when the caller should go.
    left_at: Option<Instant>,
    /// It was told. One who cannot be told hears of it by the end of the connection, best behind an answer.
    told: bool,
}

impl Connection {
    async fn next(&mut self) -> Event {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        *self.caller.waker.borrow_mut() = Some(context.waker().clone());
        if self.poll_flush(context).is_err() {
            return Poll::Ready(Event::Gone);
        }
        let is_last = self.caller.last.get();
        // What follows the last call is nobody's, be it whole or not.
        let is_quiet =
            self.caller.active.get() == 0 && self.writing.is_empty() && (is_last || self.socket.buffer.is_empty());
        // Who was told, and whoever is left when the process ends, is not waited for.
        let has_grace = self.told || self.caller.down.worker.is_ending();
        let mut deadline = None;
        match self.left_at {
            None if self.leaves() => return Poll::Ready(Event::Leave),
            None => {}
            Some(at) if is_quiet && (is_last || has_grace && at + GRACE <= Instant::now()) => {
                return Poll::Ready(Event::Finished);
            }
            Some(at) => deadline = (is_quiet && has_grace).then_some(at + GRACE),
        }
        if let Poll::Ready(event) = self.poll_message(context) {
            return Poll::Ready(event);
        }
        let is_begun = !self.socket.buffer.is_empty() && self.takes_more();
        let stalled = if is_begun { Some(self.pace.deadline()) } else { None };
        deadline = [deadline, stalled].into_iter().flatten().min();
        std::task::ready!(self.socket.alarm.poll(context, deadline));
        Poll::Ready(if stalled.is_some_and(|at| at <= Instant::now()) { Event::Stalled } else { Event::Finished })
    }

    /// Whether it is time for the caller to go: the process ends, or the listener is gone or changed.
    fn leaves(&self) -> bool {
        let down = &self.caller.down;
        self.caller.last.get() || down.worker.is_draining() || down.worker.plan().chain(&down.context.chain).is_none()
    }

    /// Whether the next message may be read now.
    fn takes_more(&self) -> bool {
        let caller = &self.caller;
        let limit = match caller.down.buffer_limit {
            0 => usize::MAX,
            bytes => bytes as usize,
        };
        // Where calls do not share a connection, their answers are told apart by their order.
        let is_turn = matches!(caller.codec.sharing(), Sharing::Many { .. }) || caller.active.get() == 0;
        is_turn
            && !caller.last.get()
            && caller.held.get() < limit
            && self.writing.len() + caller.outbox.borrow().len() < limit
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if !self.takes_more() {
            // That it is gone is heard all the same; what else comes has to wait, and it is not the caller who stalls.
            self.pace.restart();
            return self.socket.io.poll_gone(context).map(|()| Event::Gone);
        }
        let Socket { io, buffer, .. } = &mut self.socket;
        for _ in 0..READS {
            loop {
                match self.caller.codec.frame(buffer.data()) {
                    Ok(Frame::Length(length)) if buffer.len() >= length => {
                        self.pace.restart();
                        return Poll::Ready(Event::Message(length));
                    }
                    Ok(Frame::Length(length)) if buffer.is_full() => buffer.grow(length),
                    Ok(Frame::Length(_) | Frame::More) => break,
                    Err(_) => return Poll::Ready(Event::Malformed),
                }
            }
            match io.poll_read(context, buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Event::Gone),
                Poll::Ready(Ok(count)) => self.pace.advance(count),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Write what is there to say, as far as the caller takes it.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        loop {
            if self.writing.is_empty() {
                std::mem::swap(&mut self.writing, &mut self.caller.outbox.borrow_mut());
                self.done = 0;
                if self.writing.is_empty() {
                    // An idle connection keeps no memory.
                    self.writing = Vec::new();
                    return Ok(());
                }
            }
            match self.socket.io.poll_write_all(context, &self.writing, &[], &mut self.done) {
                Poll::Pending => return Ok(()),
                Poll::Ready(result) => result?,
            }
            self.writing.clear();
        }
    }

    /// Close so that the caller sees what was sent last: bytes that it sends meanwhile are thrown away. A socket that is closed with unread bytes
    /// is reset, and takes answers with it that are still on their way.
    async fn linger(&mut self) {
        let Socket { io, buffer, alarm } = &mut self.socket;
        io.finish().await;
        let mut left = LINGER_BYTES;
        let discard = async {
            loop {
                buffer.consume(buffer.len());
                match io.read(buffer).await {
                    Ok(count) if count > 0 && count < left => left -= count,
                    _ => return,
                }
            }
        };
        // Who does not close by then has heard all that there is to hear.
        let _ = alarm.limit(Some(Instant::now() + GRACE), discard).await;
    }

    /// The connection is over; so are the calls on it that somebody waits for.
    fn end(self, who: Who) {
        let caller = &self.caller;
        if caller.active.get() > 0 {
            match who {
                Who::Local => caller.counters().destroyed_local.add(1),
                Who::Remote => caller.counters().destroyed_remote.add(1),
            }
        }
        caller.gone.set(true);
        caller.left.notify_waiters();
    }
}
