//! One connection to an endpoint at work for many calls: a task that reads and writes, and the tickets by which calls wait for their
//! answers.
//!
//! Each call travels under an id of the session's own, so that callers who never heard of each other can share it. An answer whose call
//! was given up is dropped: ids are not used twice. What calls have to say in one turn of the loop leaves in one write.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::Instant;
use weft_core::cluster::Cluster;

use crate::alarm::Alarm;
use crate::codec::rpc::{Codec, Frame, Malformed, Message, Refusal, Status};
use crate::connect::{Connection, Peer};

/// After so long without a word the endpoint is told that we are there, as Dubbo's own clients do (`heartbeat`, 60 s): its servers close
/// connections on which nothing came for three minutes, whatever calls are under way.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Reads in one turn, before others get theirs.
const READS: usize = 16;
/// Output memory that is kept between turns.
const KEPT_OUTPUT_BYTES: usize = 64 * 1024;

/// The answer to a call.
#[derive(Debug)]
pub struct Answer {
    /// Under the session's id.
    pub message: Vec<u8>,
    pub status: Status,
}

/// There will be no answer: the connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The endpoint may have seen a part of the call, so it may not be sent again unasked.
    pub taken: bool,
    /// The endpoint broke the protocol.
    pub malformed: bool,
}

/// A call that waits.
#[derive(Default)]
struct Slot {
    /// Where in the stream of all that was ever sent the call begins and ends.
    start: u64,
    end: u64,
    result: RefCell<Option<Result<Option<Answer>, Lost>>>,
    waker: RefCell<Option<Waker>>,
}

impl Slot {
    fn settle(&self, result: Result<Option<Answer>, Lost>) {
        self.result.borrow_mut().get_or_insert(result);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// What the connection's task and the calls on it share.
pub struct Session {
    codec: Arc<dyn Codec>,
    set_id: fn(&mut [u8], u64),
    /// Our end, for records.
    pub local: Option<SocketAddr>,
    /// The other end.
    pub peer: Rc<Peer>,
    outbox: RefCell<Vec<u8>>,
    /// Bytes that were ever put into it.
    queued: Cell<u64>,
    /// Calls that wait for answers, by our ids.
    calls: RefCell<HashMap<u64, Rc<Slot>>>,
    /// Calls that wait until they are written, and no longer; in order.
    one_ways: RefCell<VecDeque<Rc<Slot>>>,
    /// Calls that wait until some of the output has left.
    crowd: RefCell<Vec<Waker>>,
    /// Above this calls wait.
    output_bytes: usize,
    next_id: Cell<u64>,
    /// Calls that were ever sent.
    begun: Cell<u32>,
    /// The connection's task.
    driver: RefCell<Option<Waker>>,
    retired: Cell<bool>,
    over: Cell<bool>,
}

impl Session {
    /// Whether no call can ever be sent on it again.
    pub fn is_worn(&self) -> bool {
        self.over.get() || self.retired.get()
    }

    /// Send no more calls on it; it closes when the last is answered.
    pub fn retire(&self) {
        self.retired.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.driver.borrow_mut().take() {
            waker.wake();
        }
    }

    fn is_idle(&self) -> bool {
        self.calls.borrow().is_empty() && self.one_ways.borrow().is_empty()
    }

    /// An id that no other message of ours has.
    fn next_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    fn is_crowded(&self) -> bool {
        self.outbox.borrow().len() >= self.output_bytes
    }

    /// Wait until a call may be added to what is to be sent, or the session is over.
    pub async fn room(&self) {
        poll_fn(|context| {
            if self.over.get() || !self.is_crowded() {
                return Poll::Ready(());
            }
            self.crowd.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Send a call. *answered*: wait for its answer, else until it has left.
    pub fn send(self: &Rc<Self>, message: &[u8], answered: bool) -> Ticket {
        let id = self.next_id();
        self.begun.set(self.begun.get() + 1);
        let start = self.queued.get();
        let end = start + message.len() as u64;
        let slot = Rc::new(Slot { start, end, ..Slot::default() });
        if self.over.get() {
            // It ended in the moment in between.
            slot.settle(Err(Lost { taken: false, malformed: false }));
        } else {
            let mut outbox = self.outbox.borrow_mut();
            let at = outbox.len();
            outbox.extend_from_slice(message);
            (self.set_id)(&mut outbox[at..], id);
            self.queued.set(end);
            if answered {
                self.calls.borrow_mut().insert(id, Rc::clone(&slot));
            } else {
                self.one_ways.borrow_mut().push_back(Rc::clone(&slot));
            }
            drop(outbox);
            self.wake();
        }
        Ticket { session: Rc::clone(self), id, slot }
    }

    /// Say something that is no call.
    fn say(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut outbox = self.outbox.borrow_mut();
        let before = outbox.len();
        write(&mut outbox);
        self.queued.set(self.queued.get() + (outbox.len() - before) as u64);
    }

    /// Take in a whole message of the endpoint.
    fn take_in(&self, message: &[u8]) -> Result<(), Malformed> {
        match self.codec.inspect(message)? {
            Message::Answer { id, status } => {
                let waiting = self.calls.borrow_mut().remove(&id);
                if let Some(slot) = waiting {
                    slot.settle(Ok(Some(Answer { message: message.to_vec(), status })));
                }
            }
            // An endpoint that does not read what we say hears nothing of its heartbeats either; they must not gather.
            Message::Ping { .. } | Message::Call { .. } if self.is_crowded() => {}
            Message::Ping { answered: true } => self.say(|out| self.codec.pong(message, out)),
            // A call of an endpoint has nobody to go to. It is told so, lest it waits.
            Message::Call { answered: true, .. } => {
                self.say(|out| self.codec.refuse(message, Refusal::NoRoute, "calls go one way through a proxy", out));
            }
            Message::Ping { answered: false } | Message::Pong | Message::Call { answered: false, .. } => {}
            Message::GoAway => self.retired.set(true),
        }
        Ok(())
    }

    /// Tell calls without answers that they have left: the first *written* bytes have.
    fn note_written(&self, written: u64) {
        let mut one_ways = self.one_ways.borrow_mut();
        while one_ways.front().is_some_and(|slot| slot.end <= written) {
            if let Some(slot) = one_ways.pop_front() {
                slot.settle(Ok(None));
            }
        }
        self.crowd.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// The connection has ended. *untaken*: from this byte on the endpoint has seen nothing.
    fn end(&self, untaken: u64, malformed: bool) {
        self.over.set(true);
        let waiting: Vec<_> = self.calls.borrow_mut().drain().map(|(_, slot)| slot).collect();
        let leaving: Vec<_> = self.one_ways.borrow_mut().drain(..).collect();
        for slot in waiting.into_iter().chain(leaving) {
            slot.settle(Err(Lost { taken: slot.start < untaken, malformed }));
        }
        self.crowd.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

/// A call on its way. Dropping it gives the call up; an answer that comes after all is dropped too.
pub struct Ticket {
    session: Rc<Session>,
    id: u64,
    slot: Rc<Slot>,
}

impl Ticket {
    /// Wait for the answer; without one for a call that wants none and has left.
    ///
    /// # Errors
    /// [`Lost`]: the connection has ended.
    pub async fn answer(&self) -> Result<Option<Answer>, Lost> {
        poll_fn(|context| match self.slot.result.borrow_mut().take() {
            Some(result) => Poll::Ready(result),
            None => {
                *self.slot.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.calls.borrow_mut().remove(&self.id);
        if self.session.retired.get() {
            // It may have been the last.
            self.session.wake();
        }
    }
}

/// Begin to use *connection* for calls, in a task of its own.
pub fn begin(
    codec: &Arc<dyn Codec>,
    set_id: fn(&mut [u8], u64),
    connection: Box<Connection>,
    cluster: &Arc<Cluster>,
) -> Rc<Session> {
    let session = Rc::new(Session {
        codec: Arc::clone(codec),
        set_id,
        local: connection.local,
        peer: Rc::clone(&connection.peer),
        outbox: RefCell::default(),
        queued: Cell::new(0),
        calls: RefCell::default(),
        one_ways: RefCell::default(),
        crowd: RefCell::default(),
        output_bytes: connection.buffer.limit(),
        // An id of zero is a value like any other; but to those who look at messages it looks like none.
        next_id: Cell::new(1),
        begun: Cell::new(0),
        driver: RefCell::default(),
        retired: Cell::new(false),
        over: Cell::new(false),
    });
    let driver = Driver {
        session: Rc::clone(&session),
        connection,
        cluster: Arc::clone(cluster),
        writing: Vec::new(),
        done: 0,
        written: 0,
        spoken: Instant::now(),
    };
    spawn_local(driver.keep());
    session
}

/// The task of a connection.
struct Driver {
    session: Rc<Session>,
    connection: Box<Connection>,
    cluster: Arc<Cluster>,
    writing: Vec<u8>,
    /// How much of `writing` is written.
    done: usize,
    /// How much of all that was ever queued.
    written: u64,
    /// When something was written last.
    spoken: Instant,
}

/// Why a connection ended.
enum End {
    /// The endpoint closed it in good order.
    Finished,
    Broken,
    Malformed,
    /// We close it: nobody needs it any more.
    Unused,
}

impl Driver {
    async fn keep(mut self) {
        let opened = Instant::now();
        let worn = self.cluster.http.max_connection_duration.map(|most| opened + most);
        let idle_timeout = self.connection.idle_timeout(&self.cluster);
        let mut alarm = Alarm::default();
        let (mut idle_since, mut was_busy) = (opened, true);
        let end = poll_fn(|context| {
            *self.session.driver.borrow_mut() = Some(context.waker().clone());
            if let Poll::Ready(end) = self.poll(context) {
                return Poll::Ready(end);
            }
            let session = Rc::clone(&self.session);
            let most = self.cluster.http.max_requests_per_connection;
            if most.is_some_and(|most| session.begun.get() >= most) {
                session.retired.set(true);
            }
            let is_idle = session.is_idle();
            if session.begun.get() > 0 && self.connection.pool().is_retired() {
                session.retired.set(true);
            }
            if std::mem::replace(&mut was_busy, !is_idle) && is_idle {
                idle_since = Instant::now();
            }
            loop {
                if is_idle && session.retired.get() && self.writing.is_empty() {
                    return Poll::Ready(End::Unused);
                }
                let idle = idle_timeout.filter(|_| is_idle).map(|most| idle_since + most);
                let worn = worn.filter(|_| !session.retired.get());
                let silent = self.spoken + HEARTBEAT;
                let deadline = [idle, worn, Some(silent)].into_iter().flatten().min();
                if alarm.poll(context, deadline).is_pending() {
                    return Poll::Pending;
                }
                let has_come = |limit: Option<Instant>| limit.is_some_and(|limit| limit <= Instant::now());
                if has_come(idle) {
                    return Poll::Ready(End::Unused);
                } else if has_come(worn) {
                    // No more calls; those that are under way are waited for.
                    session.retired.set(true);
                } else {
                    self.spoken = Instant::now();
                    session.say(|out| session.codec.ping(session.next_id(), out));
                    if self.poll_flush(context).is_err() {
                        return Poll::Ready(End::Broken);
                    }
                }
            }
        })
        .await;
        self.session.end(self.untaken(&end), matches!(end, End::Malformed));
        if matches!(end, End::Unused) {
            self.connection.io.finish().await;
        }
    }

    /// From which byte on the endpoint has certainly seen nothing.
    fn untaken(&self, end: &End) -> u64 {
        let io = &self.connection.io;
        match end {
            // A FIN acknowledges what had come when the peer closed; what it leaves out nobody has read. RST says nothing of the kind. The
            // kernel counts the SYN as one byte, and under TLS other bytes than ours.
            End::Finished if !io.is_secure() => match io.acknowledged_bytes() {
                Some(count) => self.written.min(count.saturating_sub(1)),
                None => self.written,
            },
            _ => self.written,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        // What comes may have something said about it, which should leave at once.
        if self.poll_flush(context).is_err() {
            return Poll::Ready(End::Broken);
        }
        if let Poll::Ready(end) = self.poll_messages(context) {
            return Poll::Ready(end);
        }
        match self.poll_flush(context) {
            Ok(()) => Poll::Pending,
            Err(_) => Poll::Ready(End::Broken),
        }
    }

    /// Write what is there to say, as far as the endpoint takes it.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            if self.writing.is_empty() {
                std::mem::swap(&mut self.writing, &mut self.session.outbox.borrow_mut());
                self.done = 0;
                if self.writing.is_empty() {
                    return Ok(());
                }
            }
            let before = self.done;
            let result = self.connection.io.poll_write_all(context, &self.writing, &[], &mut self.done);
            if self.done > before {
                self.written += (self.done - before) as u64;
                self.spoken = Instant::now();
            }
            self.session.note_written(self.written);
            match result {
                Poll::Pending => return Ok(()),
                Poll::Ready(result) => result?,
            }
            self.writing.clear();
            self.writing.shrink_to(KEPT_OUTPUT_BYTES);
        }
    }

    fn poll_messages(&mut self, context: &mut Context<'_>) -> Poll<End> {
        let Connection { io, buffer, .. } = &mut *self.connection;
        for _ in 0..READS {
            loop {
                match self.session.codec.frame(buffer.data()) {
                    Ok(Frame::Length(length)) if buffer.len() >= length => {
                        if self.session.take_in(&buffer.data()[..length]).is_err() {
                            return Poll::Ready(End::Malformed);
                        }
                        buffer.consume(length);
                        buffer.release_if_empty();
                    }
                    Ok(Frame::Length(length)) if buffer.is_full() => buffer.grow(length),
                    Ok(Frame::Length(_) | Frame::More) => break,
                    Err(_) => return Poll::Ready(End::Malformed),
                }
            }
            match io.poll_read(context, buffer) {
                Poll::Pending => return Poll::Pending,
                // An end in the middle of a message is none in good order.
                Poll::Ready(Ok(0)) if buffer.is_empty() => return Poll::Ready(End::Finished),
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(End::Broken),
                Poll::Ready(Ok(_)) => {}
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use weft_core::compile::Strictness;
    use weft_protos::envoy::config::cluster::v3 as proto;

    use super::*;
    use crate::buffer::Buffer;
    use crate::codec::rpc::Sharing;
    use crate::codec::rpc::dubbo::Dubbo;
    use crate::io::Io;

    /// What a session says, message by message.
    struct Endpoint(Io, Buffer);

    impl Endpoint {
        async fn receive(&mut self) -> (Message, Vec<u8>) {
            loop {
                match Dubbo::default().frame(self.1.data()).unwrap() {
                    Frame::Length(length) if self.1.len() >= length => {
                        let message = self.1.data()[..length].to_vec();
                        self.1.consume(length);
                        return (Dubbo::default().inspect(&message).unwrap(), message);
                    }
                    _ => assert!(self.0.read(&mut self.1).await.unwrap() > 0, "the session has ended"),
                }
            }
        }
    }

    /// A session, and the endpoint at its other end.
    fn connected() -> (Rc<Session>, Endpoint) {
        let (near, far) = UnixStream::pair().unwrap();
        let io = |stream: UnixStream| {
            stream.set_nonblocking(true).unwrap();
            Io::new(stream.into()).unwrap()
        };
        let plain = proto::Cluster {
            name: "c".into(),
            cluster_discovery_type: Some(proto::cluster::ClusterDiscoveryType::Type(0)),
            load_assignment: Some(Default::default()),
            ..Default::default()
        };
        let cluster = Arc::new(Cluster::compile(&plain, Strictness::Refuse).unwrap().value);
        let Sharing::Many { set_id } = Dubbo::default().sharing() else { panic!("calls of Dubbo share a connection") };
        let codec: Arc<dyn Codec> = Arc::<Dubbo>::default();
        (begin(&codec, set_id, Connection::over(io(near)), &cluster), Endpoint(io(far), Buffer::new()))
    }

    /// A call of no content, which is enough for who carries it.
    const CALL: &[u8] = b"\xda\xbb\xc2\0\0\0\0\0\0\0\0\x09\0\0\0\x01N";

    #[tokio::test(start_paused = true)]
    async fn a_silent_endpoint_hears_that_we_are_there_while_a_call_lasts() {
        let local = tokio::task::LocalSet::new();
        let work = async {
            let (session, mut endpoint) = connected();
            let began = Instant::now();
            let ticket = session.send(CALL, true);
            let (Message::Call { id, .. }, _) = endpoint.receive().await else { panic!("the call comes first") };
            for round in 1..=4 {
                let (message, ping) = endpoint.receive().await;
                assert_eq!(message, Message::Ping { answered: true });
                assert_eq!(began.elapsed().as_secs(), round * HEARTBEAT.as_secs());
                let mut pong = Vec::new();
                Dubbo::default().pong(&ping, &mut pong);
                endpoint.0.write_all(&pong, &[]).await.unwrap();
            }
            let mut answer = b"\xda\xbb\x02\x14\0\0\0\0\0\0\0\0\0\0\0\x02\x91N".to_vec();
            answer[4..12].copy_from_slice(&id.to_be_bytes());
            endpoint.0.write_all(&answer, &[]).await.unwrap();
            let answer = ticket.answer().await.unwrap().unwrap();
            assert_eq!((answer.status, session.is_worn()), (Status::Success, false));
        };
        local.run_until(work).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_written_when_the_connection_ended_was_not_taken() {
        let local = tokio::task::LocalSet::new();
        let work = async {
            let (session, mut endpoint) = connected();
            let seen = session.send(CALL, true);
            endpoint.receive().await;
            drop(endpoint);
            // Queued, and never written: the task of the connection has not run since.
            let unseen = session.send(CALL, true);
            assert_eq!(seen.answer().await.unwrap_err(), Lost { taken: true, malformed: false });
            let lost = unseen.answer().await.unwrap_err();
            assert_eq!((lost.malformed, session.is_worn()), (false, true));
            let late = session.send(CALL, true).answer().await.unwrap_err();
            assert_eq!(late, Lost { taken: false, malformed: false });
        };
        local.run_until(work).await;
    }
}
