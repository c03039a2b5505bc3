//! A downstream connection of HTTP/2: a task for each of its requests, keep-alive, and the end in good order.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::Instant;
use weft_core::http_manager::HttpManager;
use weft_core::listener::NetworkFilter;
use weft_core::respond::Cause;

use crate::alarm::Alarm;
use crate::codec::h2::{Code, Limits, Role};
use crate::connect::http2_limits;
use crate::multiplex::{ConnectionEnd, Driver, KeepAlive, Stream, Turn};
use crate::serve::{Downstream, Scratch, Socket};
use crate::worker::Registration;

use super::client::Client;
use super::connection::{head_timeout, linger};
use super::{Exchange, Next, earliest};

/// How long a client has to hear that the connection is going to close, before its requests are not taken any more.
const GRACE: Duration = Duration::from_secs(1);
/// By which the PING that goes with our GOAWAY is told apart.
const GOING_AWAY: [u8; 8] = *b"go away\0";

/// How far the end of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// The client was told; until then its requests are still taken.
    Announced(Instant),
    /// No more requests are taken; those that are there are finished.
    Final,
}

/// What the connection's task woke up for.
enum Event {
    Turn(Turn),
    /// Close in good order; because the proxy is short of room, or for its age, its idleness, or the end of the process.
    Leave {
        for_room: bool,
    },
    /// The client had its time to hear of it.
    Settled,
    /// The client was asked whether it is there.
    Asked,
    /// The client takes too long for what it began.
    Slow,
    /// The last stream of a connection that is leaving has ended.
    Finished,
}

/// Serve a connection whose client speaks HTTP/2.
pub async fn serve(down: Downstream, socket: &mut Socket, manager: &HttpManager, _registration: Registration) {
    let limits = Limits {
        output_bytes: socket.buffer.limit(),
        allowances: down.worker.overload.allowances,
        ..http2_limits(&manager.http2, &manager.head_limits)
    };
    let mut driver = Driver::new(Role::Server, limits, socket.io.is_secure());
    let down = Rc::new(down);
    let mut leaving = Leaving::No;
    let opened = Instant::now();
    let worn = manager.max_connection_duration.map(|limit| opened + limit);
    let (mut idle_since, mut was_busy) = (opened, false);
    let patience = head_timeout(manager);
    let mut keepalive = KeepAlive::new(manager.http2.keepalive, opened);
    loop {
        let event = {
            let Socket { io, buffer, alarm } = &mut *socket;
            let (driver, down) = (&mut driver, &down);
            poll_fn(|context| {
                if let Poll::Ready(turn) = driver.poll(context, io, buffer) {
                    return Poll::Ready(Event::Turn(turn));
                }
                let is_idle = driver.session.open_streams() == 0;
                if std::mem::replace(&mut was_busy, !is_idle) && is_idle {
                    idle_since = Instant::now();
                }
                let idle = manager.idle_timeout.filter(|_| is_idle).map(|limit| idle_since + limit);
                let slow = patience.and_then(|limit| Some(driver.owed_since()? + limit));
                let mut deadline = earliest(slow, keepalive.deadline(&driver.session));
                match leaving {
                    // Who has just come has an answer first, or it would only come again. (With each request this is asked again.)
                    Leaving::No
                        if down.worker.is_draining()
                            || down.worker.sends_clients_away() && driver.session.requests() > 0 =>
                    {
                        return Poll::Ready(Event::Leave { for_room: !down.worker.is_draining() });
                    }
                    Leaving::No => deadline = earliest(deadline, earliest(idle, worn)),
                    Leaving::Announced(until) => deadline = earliest(deadline, Some(until)),
                    Leaving::Final if is_idle => return Poll::Ready(Event::Finished),
                    Leaving::Final => {}
                }
                std::task::ready!(alarm.poll(context, deadline));
                let now = Instant::now();
                let has_come = |limit: Option<Instant>| limit.is_some_and(|limit| limit <= now);
                Poll::Ready(match leaving {
                    _ if has_come(slow) => Event::Slow,
                    _ if keepalive.is_over(&driver.session, now) => Event::Turn(Turn::Over(ConnectionEnd::Closed)),
                    _ if keepalive.ask(driver, now) => Event::Asked,
                    Leaving::Announced(until) if until <= now => Event::Settled,
                    _ => Event::Leave { for_room: false },
                })
            })
            .await
        };
        match event {
            Event::Turn(Turn::Request { stream, too_large }) => {
                let mut scratch = down.worker.take_scratch();
                let stream = driver.take_request(stream, &mut scratch.request);
                spawn_local(serve_request(Rc::clone(&down), stream, scratch, too_large));
                let most = manager.max_requests_per_connection;
                let is_stale = down.worker.plan().chain(&down.context.chain).is_none();
                if leaving == Leaving::No && (is_stale || most.is_some_and(|most| driver.session.requests() >= most)) {
                    leaving = Leaving::Announced(Instant::now() + GRACE);
                    driver.announce_go_away(GOING_AWAY);
                }
            }
            Event::Turn(Turn::Pong(GOING_AWAY)) | Event::Settled => {
                leaving = Leaving::Final;
                driver.go_away();
            }
            Event::Turn(Turn::Pong(_)) => keepalive.note_answer(),
            Event::Turn(Turn::Malformed) => down.worker.metrics.counters().protocol_errors.add(1),
            Event::Turn(Turn::Over(ConnectionEnd::Closed)) => return,
            Event::Turn(Turn::Over(ConnectionEnd::Broken)) => {
                down.worker.metrics.counters().protocol_errors.add(1);
                return say_the_last(driver, socket, manager).await;
            }
            Event::Leave { for_room } => {
                if for_room {
                    down.worker.metrics.counters().overload_keepalive_disabled.add(1);
                }
                leaving = Leaving::Announced(Instant::now() + GRACE);
                driver.announce_go_away(GOING_AWAY);
            }
            Event::Asked => {}
            Event::Slow => {
                // What may follow is the middle of a block: nothing of it could be understood without the rest (RFC 9113 6.10).
                driver.fail(Code::ENHANCE_YOUR_CALM, "a head, or the beginning of the connection, takes too long");
                down.worker.metrics.counters().protocol_errors.add(1);
                return say_the_last(driver, socket, manager).await;
            }
            Event::Finished => return say_the_last(driver, socket, manager).await,
        }
    }
}

/// Send what is left to say, and close so that the client sees it.
async fn say_the_last(mut driver: Driver, socket: &mut Socket, manager: &HttpManager) {
    let Socket { io, alarm, .. } = &mut *socket;
    let delay = manager.delayed_close_timeout;
    // Where nothing is waited for afterwards, what was said still has to leave.
    let deadline = Instant::now() + if delay.is_zero() { GRACE } else { delay };
    let flush = poll_fn(|context| driver.poll_flush(context, io));
    if let Ok(Ok(())) = alarm.limit(Some(deadline), flush).await {
        // The streams that are left learn that they are gone.
        drop(driver);
        linger(socket, manager).await;
    }
}

async fn serve_request(down: Rc<Downstream>, stream: Stream, mut scratch: Box<Scratch>, too_large: bool) {
    let NetworkFilter::Http(manager) = &down.context.chain.filter else { return };
    down.worker.metrics.counters().downstream_requests.add(1);
    let refused = if too_large {
        Some(Cause::HeadersTooLarge.into())
    } else if scratch.request.authority().is_empty() {
        Some(Cause::MissingHost.into())
    } else {
        None
    };
    let mut alarm = Alarm::default();
    let began = Instant::now();
    let client = Client::http2(stream);
    {
        let mut exchange = Exchange::new(&down, client, &mut alarm, &mut scratch, manager, (began, began));
        exchange.serve(refused).await;
    }
    down.worker.give_scratch(scratch);
}

/// What becomes of a stream after its exchange: dropping it says whatever is left to say.
pub(super) fn settle(client: &Client<'_>, next: &Next) {
    if let (Client::Http2 { stream, .. }, Next::Reset) = (client, next) {
        // RFC 9113 8.1: the client must see that the response was cut short.
        stream.reset(Code::INTERNAL_ERROR);
    }
}
