//! One TLS session over a non-blocking socket: rustls keeps the state, this file moves the bytes.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::task::{Context, Poll, ready};

use rustls::{ClientConnection, Connection, ServerConnection};
use rustls_pki_types::CertificateDer;

use crate::io::Wire;

/// One full TLS record and its header at a time, or many small ones in one system call.
const CIPHERTEXT_BYTES: usize = 32 * 1024;

thread_local! {
    /// Ciphertext passes through here on its way to rustls; shared by all sessions of a worker, so an idle session keeps none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CIPHERTEXT_BYTES].into_boxed_slice());
}

/// A TLS session, of either side.
pub struct Session {
    connection: Connection,
    /// Ciphertext that rustls did not take because its plaintext was not read yet; rare and short-lived.
    left_over: Vec<u8>,
    has_plaintext: bool,
    /// The peer has said that it sends nothing more (close_notify).
    ended: bool,
    /// The alert by which the peer ended the session. With TLS 1.3 a server judges the client's certificate when the
    /// client has long begun to send.
    alert: Option<rustls::AlertDescription>,
}

impl From<ServerConnection> for Session {
    fn from(connection: ServerConnection) -> Self {
        Session::new(connection.into())
    }
}

impl From<ClientConnection> for Session {
    fn from(connection: ClientConnection) -> Self {
        Session::new(connection.into())
    }
}

impl Session {
    fn new(connection: Connection) -> Session {
        Session { connection, left_over: Vec::new(), has_plaintext: false, ended: false, alert: None }
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The certificates that the peer showed, the leaf first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// Whether the handshake took up an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// The alert by which the peer has refused us.
    pub fn alert(&self) -> Option<rustls::AlertDescription> {
        self.alert
    }

    /// Ciphertext that was read before there was a session.
    pub(crate) fn push_back(&mut self, bytes: &[u8]) {
        self.left_over.extend_from_slice(bytes);
    }

    pub(crate) fn has_plaintext(&mut self) -> bool {
        self.has_plaintext || !self.left_over.is_empty()
    }

    pub(crate) fn poll_read(
        &mut self,
        wire: &Wire<'_>,
        context: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.connection.reader().read(room) {
                Ok(count) => {
                    // A read that filled the room may have left more behind.
                    self.has_plaintext = count == room.len() && count > 0;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.has_plaintext = false,
                Err(error) => return Poll::Ready(Err(error)),
            }
            if !self.left_over.is_empty() {
                let bytes = std::mem::take(&mut self.left_over);
                self.feed(&bytes)?;
                continue;
            }
            ready!(self.poll_fill(wire, context))?;
        }
    }

    /// Ready when the peer sends nothing more: it has said so, or its connection has ended or is broken. Plaintext that came before
    /// stays here; while there is some, no more is read, and only the connection's end counts.
    pub(crate) fn poll_end(&mut self, wire: &Wire<'_>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.ended {
                return Poll::Ready(());
            }
            if self.has_plaintext() {
                return wire.poll_end(context);
            }
            let before = wire.received_bytes();
            match ready!(self.poll_fill(wire, context)) {
                Ok(()) if wire.received_bytes() > before => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Take ciphertext from the socket once.
    fn poll_fill(&mut self, wire: &Wire<'_>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        SCRATCH.with(|scratch| {
            let mut scratch = scratch.borrow_mut();
            let count = ready!(wire.poll_receive(context, &mut scratch))?;
            let fed = self.feed(&scratch[..count]);
            // An alert that says why, or an answer to a key update.
            if self.connection.wants_write()
                && let Poll::Ready(Err(error)) = self.poll_flush(wire, context)
            {
                return Poll::Ready(fed.and(Err(error)));
            }
            Poll::Ready(fed)
        })
    }

    /// Give ciphertext to rustls; none means the end of the stream.
    fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        loop {
            if self.connection.read_tls(&mut rest).is_err() {
                // Its plaintext store is full: keep the rest until somebody reads.
                self.left_over.extend_from_slice(rest);
                return Ok(());
            }
            let state = self.connection.process_new_packets().map_err(|error| {
                if let rustls::Error::AlertReceived(alert) = error {
                    self.alert = Some(alert);
                }
                io::Error::new(io::ErrorKind::InvalidData, error)
            })?;
            // Data may come in one flight with the end of the handshake, or the end of the stream with it.
            self.has_plaintext |= state.plaintext_bytes_to_read() > 0 || state.peer_has_closed();
            self.ended |= state.peer_has_closed();
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Encrypt as much of *bytes* as there is room for; returns how much. Flush to make room.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(bytes)
    }

    pub(crate) fn poll_flush(&mut self, wire: &Wire<'_>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        struct Sink<'a, 'b> {
            wire: &'a Wire<'a>,
            context: &'a mut Context<'b>,
        }
        impl Write for Sink<'_, '_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                match self.wire.poll_send(self.context, bytes, &[]) {
                    Poll::Ready(result) => result,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
            fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
                match self.wire.poll_send_parts(self.context, parts) {
                    Poll::Ready(result) => result,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Sink { wire, context }) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_handshake(&mut self, wire: &Wire<'_>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(wire, context))?;
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if !self.left_over.is_empty() {
                let bytes = std::mem::take(&mut self.left_over);
                self.feed(&bytes)?;
                continue;
            }
            let before = wire.received_bytes();
            ready!(self.poll_fill(wire, context))?;
            if wire.received_bytes() == before && self.connection.is_handshaking() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer closed the connection during the handshake",
                )));
            }
        }
    }

    /// Queue close_notify.
    pub(crate) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}
