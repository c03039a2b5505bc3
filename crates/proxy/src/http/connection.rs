//! A downstream connection of HTTP/1: request after request, keep-alive, and the heads of requests.

use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::http_manager::{Codec, HttpManager};
use weft_core::respond::{Cause, LocalReply};

use crate::codec::Head;
use crate::codec::h2::frame::PREFACE;
use crate::codec::http1::{HeadError, HeadParser, Keeps, Limits};
use crate::filter;
use crate::serve::{Downstream, Scratch, Socket};

use super::client::Client;
use super::{Exchange, Next, Onward, earliest, streams};

/// Request bytes that are read and thrown away so that the client sees the answer before the close.
const LINGER_BYTES: u64 = 256 * 1024;
/// Of an empty line before a request, which does not count as its head (RFC 9112 2.2).
const EMPTY_LINE_BYTES: usize = 2;
/// How long a connection that has not asked anything yet may take to do so while the proxy drains: it was opened before
/// anybody could know, and its first request may be on the way.
const DRAIN_GRACE: Duration = Duration::from_millis(250);

/// This task's waker, by which draining finds it.
pub async fn waker() -> Waker {
    poll_fn(|context| Poll::Ready(context.waker().clone())).await
}

/// Serve the requests of a connection that an HTTP connection manager took. Returns where it goes on, if it does.
// No `async fn`: an idle connection would have room for its arguments twice.
#[allow(clippy::manual_async_fn)]
pub fn serve<'c>(
    mut down: Downstream,
    socket: &'c mut Socket,
    manager: &'c HttpManager,
) -> impl Future<Output = Option<Onward>> + 'c {
    async move {
        let told = socket.io.with_session(|session| {
            filter::client_certificate(manager, down.facts.local_uri.as_deref(), session.peer_certificates())
        });
        down.facts.client_certificate = told.flatten().unwrap_or_default().into();
        let registration = down.worker.register(waker().await);
        let opened = Instant::now();
        // In a box, as a request's state is: an idle connection does not keep what only its first bytes needed.
        match Box::pin(first_spoken(&down, socket, manager, opened)).await {
            Spoken::Http1 => {}
            Spoken::Http2 => {
                Box::pin(streams::serve(down, socket, manager, registration)).await;
                return None;
            }
            Spoken::Nothing => {
                finish(socket, manager).await;
                return None;
            }
        }
        let mut parser = HeadParser::keeping(Keeps::of(manager.http1));
        let worn = manager.max_connection_duration.map(|limit| opened + limit);
        let mut served: u32 = 0;
        while wait_for_request(&down, socket, manager, opened, served == 0).await {
            let mut scratch = down.worker.take_scratch();
            served += 1;
            let last = manager.max_requests_per_connection.is_some_and(|most| served >= most);
            // In a box, so that an idle connection does not keep a request's state.
            let next = Box::pin(serve_request(&down, socket, &mut parser, &mut scratch, manager, (last, worn))).await;
            down.worker.give_scratch(scratch);
            match next {
                Next::KeepAlive => socket.buffer.release_if_empty(),
                Next::Close => {
                    linger(socket, manager).await;
                    return None;
                }
                Next::Reset => {
                    socket.io.reset_on_close();
                    return None;
                }
                Next::Over => return None,
                Next::Onward(onward) => return Some(onward),
            }
        }
        finish(socket, manager).await;
        None
    }
}

/// Close a connection on which nothing is under way.
async fn finish(socket: &mut Socket, manager: &HttpManager) {
    let Socket { io, alarm, .. } = socket;
    let _ = alarm.limit(Some(close_deadline(manager)), io.finish()).await;
}

/// What a client begins with.
enum Spoken {
    Http1,
    Http2,
    /// It said nothing in its time.
    Nothing,
}

/// What the client speaks: as configured, by ALPN, or HTTP/2 because it begins with the preface (prior knowledge).
async fn first_spoken(down: &Downstream, socket: &mut Socket, manager: &HttpManager, opened: Instant) -> Spoken {
    match manager.codec {
        Codec::Http1 => return Spoken::Http1,
        Codec::Http2 => return Spoken::Http2,
        Codec::Auto if socket.io.speaks_http2() => return Spoken::Http2,
        Codec::Auto => {}
    }
    if !wait_for_request(down, socket, manager, opened, true).await {
        return Spoken::Nothing;
    }
    // From the first byte to the last: a preface that comes byte by byte gets no more time than a head.
    let limit = head_timeout(manager).map(|limit| Instant::now() + limit);
    loop {
        let data = socket.buffer.data();
        let seen = data.len().min(PREFACE.len());
        if data[..seen] != PREFACE[..seen] {
            return Spoken::Http1;
        }
        if seen == PREFACE.len() {
            return Spoken::Http2;
        }
        let Socket { io, buffer, alarm } = &mut *socket;
        // Silence is for whoever serves HTTP/1: it knows what to answer.
        if !matches!(alarm.limit(limit, io.read(buffer)).await, Ok(Ok(count)) if count > 0) {
            return Spoken::Http1;
        }
    }
}

/// How long a client may take for what it has begun and nobody can answer yet: a head, or the beginning of a connection.
pub(super) fn head_timeout(manager: &HttpManager) -> Option<Duration> {
    [manager.request_headers_timeout, manager.stream_idle_timeout].into_iter().flatten().min()
}

async fn serve_request(
    down: &Downstream,
    socket: &mut Socket,
    parser: &mut HeadParser,
    scratch: &mut Scratch,
    manager: &HttpManager,
    (last, worn): (bool, Option<Instant>),
) -> Next {
    let began = Instant::now();
    let arrival = read_head(socket, parser, &mut scratch.request, manager, began).await;
    // Whoever closes a connection at rest has begun none.
    if !matches!(arrival, Arrival::Nothing) || !socket.buffer.is_empty() {
        down.worker.metrics.counters().downstream_requests.add(1);
    }
    // The clock is asked again only if the head did not come at once.
    let head_read = if matches!(arrival, Arrival::Ready { waited: false }) { began } else { Instant::now() };
    let refused = match arrival {
        // RFC 9112 3.2: a request without a host belongs to nobody.
        Arrival::Ready { .. } if scratch.request.authority().is_empty() => Some(Cause::MissingHost.into()),
        Arrival::Ready { .. } => None,
        Arrival::Refused(reply) => Some(reply),
        // Nothing was asked, so there is nothing to record.
        Arrival::Nothing => return Next::Over,
    };
    let Socket { io, buffer, alarm } = socket;
    let client = Client::http1(io, buffer, scratch.request.framing, request_limits(manager));
    let mut exchange = Exchange::new(down, client, alarm, scratch, manager, (began, head_read));
    exchange.last |= last;
    exchange.worn = worn;
    exchange.serve(refused).await
}

/// Wait for the first byte of a request. False: there will be none, or it is time to close.
async fn wait_for_request(
    down: &Downstream,
    socket: &mut Socket,
    manager: &HttpManager,
    opened: Instant,
    first: bool,
) -> bool {
    if !socket.buffer.is_empty() {
        return true;
    }
    let idle = manager.idle_timeout.map(|limit| Instant::now() + limit);
    let worn = manager.max_connection_duration.map(|limit| opened + limit);
    let deadline = earliest(idle, worn);
    let (worker, io, alarm) = (&down.worker, &socket.io, &mut socket.alarm);
    poll_fn(|context| {
        if io.poll_readable(context).is_ready() {
            return Poll::Ready(true);
        }
        let limit = if worker.is_ending() { earliest(deadline, Some(opened + DRAIN_GRACE)) } else { deadline };
        if (worker.closes_idle_connections() && !first) || alarm.poll(context, limit).is_ready() {
            return Poll::Ready(false);
        }
        Poll::Pending
    })
    .await
}

/// Close without destroying the answer: a close with unread bytes becomes RST, and RST may overtake the answer (RFC 9112 9.6).
pub(super) async fn linger(socket: &mut Socket, manager: &HttpManager) {
    linger_until(socket, close_deadline(manager)).await;
}

async fn linger_until(socket: &mut Socket, deadline: Instant) {
    let (io, buffer) = (&socket.io, &mut socket.buffer);
    let work = async {
        // The end of a TLS session is said in bytes, for which there is no room while the client does not read.
        io.finish().await;
        let mut left = LINGER_BYTES;
        loop {
            let length = buffer.len();
            buffer.consume(length);
            match io.read(buffer).await {
                Ok(count) if count > 0 && count as u64 <= left => left -= count as u64,
                _ => return,
            }
        }
    };
    let _ = socket.alarm.limit(Some(deadline), work).await;
}

/// Until when a client may read what is left to read, once there will be no more.
fn close_deadline(manager: &HttpManager) -> Instant {
    Instant::now() + manager.delayed_close_timeout
}

fn request_limits(manager: &HttpManager) -> Limits {
    Limits { head_bytes: manager.head_limits.bytes, fields: manager.head_limits.count as usize }
}

/// How reading the head of a request ended.
enum Arrival {
    /// It is there; *waited*: after more than one read.
    Ready {
        waited: bool,
    },
    Refused(LocalReply),
    Nothing,
}

async fn read_head(
    socket: &mut Socket,
    parser: &mut HeadParser,
    request: &mut Head,
    manager: &HttpManager,
    began: Instant,
) -> Arrival {
    let limits = request_limits(manager);
    let after = |limit: Option<Duration>| limit.map(|limit| began + limit);
    let slow = after(manager.request_headers_timeout);
    let overall = after(manager.request_timeout);
    let deadline = earliest(earliest(slow, overall), after(manager.stream_idle_timeout));
    let Socket { io, buffer, alarm } = socket;
    let mut reads = 0;
    loop {
        match parser.request(buffer.data(), request, limits) {
            Ok(Some(length)) => {
                buffer.consume(length);
                buffer.release_if_empty();
                return Arrival::Ready { waited: reads > 1 };
            }
            Ok(None) => {}
            Err(error) => return Arrival::Refused(refusal(error)),
        }
        if buffer.is_full() {
            buffer.grow(limits.head_bytes + EMPTY_LINE_BYTES);
        }
        reads += 1;
        match alarm.limit(deadline, io.read(buffer)).await {
            Ok(Ok(count)) if count > 0 => {}
            Ok(_) => return Arrival::Nothing,
            Err(_) => {
                let cause = match deadline {
                    limit if limit == slow => Cause::RequestHeadersTimeout,
                    limit if limit == overall => Cause::RequestTimeout,
                    _ => Cause::StreamIdleTimeout,
                };
                return Arrival::Refused(cause.into());
            }
        }
    }
}

/// What a head that cannot be read is answered with.
fn refusal(error: HeadError) -> LocalReply {
    let cause = match error {
        HeadError::TooLarge | HeadError::TooManyFields => Cause::HeadersTooLarge,
        HeadError::Host => Cause::MissingHost,
        _ => Cause::MalformedRequest,
    };
    LocalReply { details: error.details().into(), ..LocalReply::from(cause) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::alarm::Alarm;
    use crate::buffer::Buffer;
    use crate::io::Io;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_the_end_of_its_session_is_not_waited_for() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[0; 1024]).is_ok() {}
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let session = ClientConnection::new(Arc::new(config), ServerName::try_from("up").unwrap()).unwrap();
        let mut io = Io::new(ours.into()).unwrap();
        io.secure(session.into());
        let mut socket = Socket { io, buffer: Buffer::default(), alarm: Alarm::default() };
        let (began, limit) = (Instant::now(), Duration::from_secs(3));
        linger_until(&mut socket, began + limit).await;
        assert_eq!(began.elapsed(), limit);
    }
}
