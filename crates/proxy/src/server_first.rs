//! Protocols in which the server speaks first (MySQL, SMTP, FTP), where the client's first bytes were to tell what a connection is.
//!
//! Both wait for the other then. So when a client has said nothing for a moment, and would get a filter chain that carries bytes if it went on
//! saying nothing, the upstream of that chain is dialled: whoever speaks first decides. If it is the client, its bytes are looked at as ever,
//! and the upstream's connection is used where they lead to the same chain. That a destination's server has spoken first is remembered for a
//! while, and its clients do not wait for the moment then.
//!
//! Only where the listener would let a silent client through anyway (`continue_on_listener_filters_timeout`) is anybody dialled.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::listener::{Connection, Listener, NetworkFilter, Seen};
use weft_core::trace::Silent;

use crate::identify::Facts;
use crate::plan::{ChainContext, WorkerPlan};
use crate::serve::Socket;
use crate::tcp;
use crate::worker::Worker;

/// How long a client may be silent before anybody is dialled for it. Clients that speak first do so with the end of their handshake.
const GRACE: Duration = Duration::from_millis(100);
/// How long a dialled upstream is kept while both are silent: greetings that wait for a look-up of names come within half a minute.
const MOST_TIME: Duration = Duration::from_secs(30);
/// Connections of one worker that are open only because a client was silent.
const MOST_AT_ONCE: usize = 128;
/// How long it is known of a destination that its server speaks first, from the last time that it did.
const KNOWN_TIME: Duration = Duration::from_secs(600);
/// Destinations of which it is known.
const MOST_KNOWN: usize = 1024;

/// What a worker has learnt.
#[derive(Default)]
pub struct ServerFirst {
    /// Until when it is believed.
    known: RefCell<HashMap<SocketAddr, Instant>>,
    racing: Cell<usize>,
}

impl ServerFirst {
    fn is_known(&self, destination: SocketAddr, now: Instant) -> bool {
        self.known.borrow().get(&destination).is_some_and(|&until| now < until)
    }

    fn learn(&self, destination: SocketAddr, now: Instant) {
        let mut known = self.known.borrow_mut();
        if known.len() >= MOST_KNOWN && !known.contains_key(&destination) {
            known.retain(|_, until| now < *until);
            if known.len() >= MOST_KNOWN {
                return;
            }
        }
        known.insert(destination, now + KNOWN_TIME);
    }

    fn forget(&self, destination: SocketAddr) {
        self.known.borrow_mut().remove(&destination);
    }

    /// Leave to open one more connection, for as long as the value lives.
    fn enter(&self) -> Option<Racing<'_>> {
        (self.racing.get() < MOST_AT_ONCE).then(|| {
            self.racing.set(self.racing.get() + 1);
            Racing(&self.racing)
        })
    }
}

struct Racing<'r>(&'r Cell<usize>);

impl Drop for Racing<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An upstream that was dialled before it was known whether it would be needed.
pub struct Early {
    /// The filter chain that it is for.
    pub context: Arc<ChainContext>,
    pub opened: Box<tcp::Opened>,
}

/// Who spoke first.
pub enum Raced {
    /// The client, or nobody in time: its bytes have to be looked at.
    Client(Option<Early>),
    /// The server: the connection is that chain's.
    Server(Early),
}

/// Wait for the client's first bytes, and from some moment on for those of the server that it would get without any.
pub async fn race(
    worker: &Rc<Worker>,
    socket: &mut Socket,
    plan: &WorkerPlan,
    listener: &Listener,
    facts: &Facts,
    deadline: Option<Instant>,
) -> Raced {
    let ends = facts.ends();
    let choose = |connection: &Connection<'_>| listener.chain(connection, &mut Silent);
    let chain = Seen::default().with_connection(ends.local, ends.remote, facts.direct().ip(), choose);
    let Some(chain) = chain.filter(|chain| chain.tls.is_none()) else {
        return Raced::Client(None);
    };
    let (NetworkFilter::Tcp(proxy), Some(context)) = (&chain.filter, plan.chain(chain)) else {
        return Raced::Client(None);
    };
    let Socket { io, alarm, .. } = socket;
    let began = Instant::now();
    let earlier = |limit: Instant| Some(deadline.map_or(limit, |deadline| deadline.min(limit)));
    let is_known = worker.server_first.is_known(ends.local, began);
    if !is_known && alarm.limit(earlier(began + GRACE), io.readable()).await.is_ok() {
        return Raced::Client(None);
    }
    let Some(_racing) = worker.server_first.enter() else { return Raced::Client(None) };
    let end = earlier(began + MOST_TIME);
    let mut way = tcp::Way::default();
    let dialled = {
        let mut dialling = pin!(tcp::open(worker, facts, proxy, &mut way));
        poll_fn(|context| {
            // First the upstream: where both are there, the connection to it may be of use.
            if let Poll::Ready(dialled) = dialling.as_mut().poll(context) {
                // If there is nobody to wait for, what the client gets is decided by what it says.
                return Poll::Ready(dialled);
            }
            if io.poll_readable(context).is_ready() {
                return Poll::Ready(None);
            }
            alarm.poll(context, end).map(|_| None)
        })
        .await
    };
    let Some(mut connection) = dialled else { return Raced::Client(None) };
    let spoke = poll_fn(|context| {
        if io.poll_readable(context).is_ready() {
            return Poll::Ready(Spoke::Client);
        }
        match connection.io.poll_read(context, &mut connection.buffer) {
            Poll::Ready(Ok(count)) if count > 0 => return Poll::Ready(Spoke::Server),
            Poll::Ready(_) => return Poll::Ready(Spoke::ServerGone),
            Poll::Pending => {}
        }
        alarm.poll(context, end).map(|_| Spoke::Nobody)
    })
    .await;
    let early = Early { context: Arc::clone(context), opened: Box::new(tcp::Opened { connection, way }) };
    match spoke {
        Spoke::Server => {
            worker.server_first.learn(ends.local, Instant::now());
            worker.metrics.counters().server_first.add(1);
            Raced::Server(early)
        }
        Spoke::Client => {
            worker.server_first.forget(ends.local);
            Raced::Client(Some(early))
        }
        // The client is let through now, and this is where to.
        Spoke::Nobody if end == deadline => Raced::Client(Some(early)),
        Spoke::Nobody | Spoke::ServerGone => Raced::Client(None),
    }
}

enum Spoke {
    Client,
    Server,
    /// It closed the connection without a word.
    ServerGone,
    Nobody,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_holds_for_a_while_and_for_so_many() {
        let (learnt, now) = (ServerFirst::default(), Instant::now());
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        learnt.learn(at(1), now);
        assert!(learnt.is_known(at(1), now) && !learnt.is_known(at(2), now));
        assert!(!learnt.is_known(at(1), now + KNOWN_TIME));
        learnt.learn(at(1), now + KNOWN_TIME / 2);
        assert!(learnt.is_known(at(1), now + KNOWN_TIME));
        learnt.forget(at(1));
        assert!(!learnt.is_known(at(1), now));
        let ports = 1..=MOST_KNOWN as u16 + 1;
        ports.clone().for_each(|port| learnt.learn(at(port), now));
        assert_eq!(ports.clone().filter(|&port| learnt.is_known(at(port), now)).count(), MOST_KNOWN);
        // Those that are forgotten make room.
        learnt.learn(at(9999), now + KNOWN_TIME);
        assert!(learnt.is_known(at(9999), now + KNOWN_TIME));
    }

    #[test]
    fn so_many_race_at_once() {
        let learnt = ServerFirst::default();
        let racing: Vec<_> = (0..MOST_AT_ONCE).map(|_| learnt.enter().unwrap()).collect();
        assert!(learnt.enter().is_none());
        drop(racing);
        assert!(learnt.enter().is_some());
    }
}
