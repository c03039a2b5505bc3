//! The upstream's end of one try: where the request goes to and the response comes from.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;

use weft_core::cluster::Cluster;

use crate::buffer::Buffer;
use crate::codec::h2::Code;
use crate::codec::http1::{Keeps, Limits};
use crate::connect::{self, ConnectError, Connected, Connection, Destination, Offer, Peer, Shared, Standing, Want};
use crate::identify::Ends;
use crate::io::Io;
use crate::message::{Reader, Writer, http1, http2};
use crate::multiplex::{Stream, StreamEnd};
use crate::plan::WorkerUpstream;
use crate::tls::session::Session;

/// One variant for each version that an upstream may speak.
// Every try makes one: a box would be an allocation for each request of HTTP/1.1.
#[allow(clippy::large_enum_variant)]
pub enum Server {
    /// A connection of its own, which goes back to the pool when both messages are complete.
    Http1 {
        connection: Box<Connection>,
        reading: http1::Reading,
        writing: http1::Writing,
        /// What the connection had carried before this try.
        received_before: u64,
        sent_before: u64,
    },
    /// One stream of a connection that it shares with other requests.
    Http2 { stream: Stream, shared: Rc<Shared>, reading: http2::Reading, writing: http2::Writing },
}

impl Server {
    /// Get a way to *destination*: a pooled one unless *fresh* asks for a new one. *want* is what the request asks of it.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(
        upstream: &Rc<WorkerUpstream>,
        destination: &Destination,
        ends: Ends,
        standing: &Standing,
        fresh: bool,
        want: Want,
    ) -> Result<Server, ConnectError> {
        let connected = connect::connect_http(upstream, destination, ends, standing, fresh, want).await?;
        Ok(Server::over(connected, &upstream.shared.cluster))
    }

    /// The way to *destination* that is there already, if there is one.
    pub fn pooled(upstream: &WorkerUpstream, destination: &Destination, ends: Ends, want: Want) -> Option<Server> {
        let found = connect::pooled_http(upstream, destination, ends, want)?;
        Some(Server::over(found, &upstream.shared.cluster))
    }

    fn over(connected: Connected, cluster: &Cluster) -> Server {
        match connected {
            Connected::Own(connection) => Server::own(connection, cluster),
            Connected::Shared(shared) => Server::Http2 {
                stream: shared.session.stream(),
                shared,
                reading: http2::Reading::default(),
                writing: http2::Writing::default(),
            },
        }
    }

    /// Get a connection to *destination* for bytes that are not HTTP; never a pooled one.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn dial(
        upstream: &Rc<WorkerUpstream>,
        destination: &Destination,
        ends: Ends,
        standing: &Standing,
    ) -> Result<Server, ConnectError> {
        let connection = connect::connect(upstream, destination, ends, standing, true, Offer::All).await?;
        Ok(Server::own(connection, &upstream.shared.cluster))
    }

    fn own(connection: Box<Connection>, cluster: &Cluster) -> Server {
        Server::Http1 {
            reading: http1::Reading::head(response_limits(cluster)).keeping(Keeps::of(cluster.http.http1)),
            writing: http1::Writing::limited(connection.buffer.limit()),
            received_before: connection.io.received_bytes(),
            sent_before: connection.io.sent_bytes(),
            connection,
        }
    }

    /// Whether the upstream may be asked for another protocol.
    pub async fn accepts_upgrade(&self) -> bool {
        match self {
            Server::Http1 { .. } => true,
            Server::Http2 { stream, .. } => poll_fn(|context| stream.poll_extended_connect(context)).await,
        }
    }

    /// Whether another request has used the connection before.
    pub fn is_reused(&self) -> bool {
        match self {
            Server::Http1 { connection, .. } => connection.reused,
            Server::Http2 { stream, .. } => !stream.is_first(),
        }
    }

    /// Our end of the connection.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Server::Http1 { connection, .. } => connection.local,
            Server::Http2 { shared, .. } => shared.local,
        }
    }

    /// The other end.
    pub fn peer(&self) -> Rc<Peer> {
        match self {
            Server::Http1 { connection, .. } => Rc::clone(&connection.peer),
            Server::Http2 { shared, .. } => Rc::clone(&shared.peer),
        }
    }

    /// The response, and the request. *out* holds what waits to leave; the same at each call.
    pub fn split<'s>(&'s mut self, out: &'s mut Vec<u8>) -> (Reader<'s>, Writer<'s>) {
        match self {
            Server::Http1 { connection, reading, writing, .. } => {
                let Connection { io, buffer, .. } = &mut **connection;
                (
                    Reader::Http1(http1::Reader { io, buffer, state: reading }),
                    Writer::Http1(http1::Writer { io, out, state: writing }),
                )
            }
            Server::Http2 { stream, reading, writing, .. } => (
                Reader::Http2(http2::Reader { stream, state: reading }),
                Writer::Http2(http2::Writer { stream, state: writing }),
            ),
        }
    }

    /// Whether anything came from the upstream during this try.
    pub fn has_spoken(&self) -> bool {
        match self {
            Server::Http1 { connection, received_before, .. } => connection.io.received_bytes() > *received_before,
            Server::Http2 { stream, .. } => stream.has_spoken(),
        }
    }

    /// Why the upstream's TLS has ended the connection, if it said so.
    pub fn tls_refusal(&self) -> Option<String> {
        match self {
            Server::Http1 { connection, .. } => {
                let alert = connection.io.with_session(Session::alert).flatten()?;
                Some(format!("TLS error: the peer sent the alert {alert:?}"))
            }
            Server::Http2 { shared, .. } => shared.session.tls_refusal(),
        }
    }

    /// Whether the upstream may have seen a part of the request, now that the connection has ended, by a *reset* or in order.
    pub fn may_have_taken(&self, reset: bool) -> bool {
        match self {
            // A FIN acknowledges what had come when the peer closed; what it leaves out nobody has read. RST says nothing
            // of the kind: bytes that were read a moment before it may still lack their acknowledgement.
            // The kernel counts the SYN as one byte.
            Server::Http1 { connection, sent_before, .. } => {
                reset || connection.io.acknowledged_bytes().is_none_or(|count| count > sent_before + 1)
            }
            // RFC 9113 8.7: REFUSED_STREAM, and a GOAWAY that leaves the stream out, say so for certain.
            Server::Http2 { .. } => self.stream_end() != Some(StreamEnd::Refused),
        }
    }

    /// How its stream of HTTP/2 ended, if it ended before its messages did.
    pub fn stream_end(&self) -> Option<StreamEnd> {
        match self {
            Server::Http1 { .. } => None,
            Server::Http2 { stream, .. } => stream.end(),
        }
    }

    /// The connection's own end, once both sides have agreed to speak another protocol on it. `None`: it is a stream.
    pub fn tunnel(&mut self) -> Option<(&Io, &mut Buffer)> {
        match self {
            Server::Http1 { connection, .. } => {
                let Connection { io, buffer, .. } = &mut **connection;
                Some((io, buffer))
            }
            Server::Http2 { .. } => None,
        }
    }

    /// Its message is now a tunnel's bytes, until it ends its direction.
    pub fn become_tunnel(&mut self) {
        if let Server::Http1 { reading, writing, .. } = self {
            reading.become_tunnel();
            writing.become_tunnel();
        }
    }

    /// The other direction has ended: a stream's end was sent with its last frame.
    pub async fn finish(&self) {
        if let Server::Http1 { connection, .. } = self {
            connection.io.finish().await;
        }
    }

    /// Give up the exchange in the middle: the upstream sees that nobody waits for it any more.
    pub fn cancel(self) {
        match self {
            Server::Http1 { connection, .. } => connection.io.reset_on_close(),
            Server::Http2 { stream, .. } => stream.reset(Code::CANCEL),
        }
    }

    /// Both messages are complete. *reusable*: the upstream's message ended where it said, and it does not close.
    pub fn complete(self, cluster: &Cluster, reusable: bool) {
        match self {
            Server::Http1 { connection, .. } if reusable => connection.release(cluster),
            // Nothing is left of a stream whose messages are complete; any other is reset.
            Server::Http1 { .. } | Server::Http2 { .. } => {}
        }
    }
}

fn response_limits(cluster: &Cluster) -> Limits {
    let limits = cluster.http.head_limits;
    Limits { head_bytes: limits.bytes, fields: limits.count as usize }
}
