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

    /// Whether nothing has come that nobody has read, be it the end of the session. Asked of rustls: a read that filled its room does not
    /// know what is behind it.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.left_over.is_empty() && self.connection.wants_read()
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
    ///
    /// Whatever the peer sends, each turn of the loop takes some of it or is the last: nobody else would run.
    fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        // RFC 8446 6.1: what follows close_notify is ignored. rustls takes none of it.
        while !self.ended {
            match self.connection.read_tls(&mut rest) {
                Ok(0) if !rest.is_empty() => return Err(io::ErrorKind::InvalidData.into()),
                Ok(_) => {}
                // Its plaintext store is full: keep the rest until somebody reads.
                Err(error) if error.kind() == io::ErrorKind::Other => {
                    self.left_over.extend_from_slice(rest);
                    return Ok(());
                }
                // A handshake message that is longer than it ever puts together.
                Err(error) => return Err(error),
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
                break;
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};

    use super::*;
    use crate::buffer::Buffer;
    use crate::io::Io;

    /// A client and a server that trusts its certificate.
    fn pair() -> (ClientConnection, ServerConnection) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["up".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let name = ServerName::try_from("up").unwrap();
        (ClientConnection::new(Arc::new(client), name).unwrap(), ServerConnection::new(Arc::new(server)).unwrap())
    }

    /// What comes of *work* in a worker, which nothing may stop.
    fn in_a_worker<W: Future>(work: impl FnOnce() -> W + Send + 'static) -> W::Output
    where
        W::Output: Send + 'static,
    {
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            done.send(runtime.block_on(work())).unwrap();
        });
        result.recv_timeout(Duration::from_secs(20)).expect("the worker never comes back")
    }

    fn secured(socket: UnixStream, session: impl Into<Session>) -> Io {
        socket.set_nonblocking(true).unwrap();
        let mut io = Io::new(socket.into()).unwrap();
        io.secure(session.into());
        io
    }

    /// Our end of a session whose peer then sends what *last* makes, in one piece.
    async fn after_handshake(last: impl FnOnce(&mut ClientConnection, &mut Vec<u8>)) -> (Io, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut client, server) = pair();
        let shaking = std::thread::spawn(move || {
            while client.is_handshaking() {
                client.complete_io(&mut theirs).unwrap();
            }
            (client, theirs)
        });
        let io = secured(ours, server);
        io.handshake().await.unwrap();
        let (mut client, mut theirs) = shaking.join().unwrap();
        let mut bytes = Vec::new();
        last(&mut client, &mut bytes);
        theirs.write_all(&bytes).unwrap();
        (io, theirs)
    }

    fn seal(client: &mut ClientConnection, bytes: &mut Vec<u8>) {
        while client.wants_write() {
            client.write_tls(bytes).unwrap();
        }
    }

    #[test]
    fn what_follows_the_end_of_a_session_is_ignored() {
        let end = in_a_worker(|| async {
            let (io, _theirs) = after_handshake(|client, bytes| {
                client.writer().write_all(b"the last").unwrap();
                client.send_close_notify();
                seal(client, bytes);
                bytes.extend([0; CIPHERTEXT_BYTES / 2]);
            })
            .await;
            let mut buffer = Buffer::default();
            io.read(&mut buffer).await.unwrap();
            assert_eq!(buffer.data(), b"the last");
            io.read(&mut buffer).await.unwrap()
        });
        assert_eq!(end, 0);
    }

    #[test]
    fn a_handshake_message_without_end_is_an_error() {
        let error = in_a_worker(|| async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let io = secured(ours, pair().1);
            let sending = std::thread::spawn(move || {
                // ClientKeyExchange of 65,535 bytes (RFC 5246 7.4.7), four records of which are more than is put together.
                for begin in [&[0x10, 0, 0xff, 0xff][..], &[], &[], &[]] {
                    let mut record = vec![0x16, 3, 3, 0x40, 0];
                    record.extend(begin);
                    record.resize(5 + 0x4000, 0);
                    // Our end may be gone before the last.
                    let _ = theirs.write_all(&record);
                }
                theirs
            });
            let error = io.handshake().await.unwrap_err();
            drop(io);
            sending.join().unwrap();
            error
        });
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }

    #[test]
    fn a_session_is_at_rest_when_all_that_came_was_read() {
        // As many bytes as a buffer has room for: reading them does not tell what is behind.
        const ANSWER: usize = crate::buffer::SMALL_BYTES;
        for (name, behind, ends, expected) in
            [("all", 0, false, true), ("more", 10, false, false), ("the end", 0, true, false)]
        {
            let is_at_rest = in_a_worker(move || async move {
                let (io, _theirs) = after_handshake(|client, bytes| {
                    client.writer().write_all(&[b'a'; ANSWER]).unwrap();
                    client.writer().write_all(&vec![b'b'; behind]).unwrap();
                    if ends {
                        client.send_close_notify();
                    }
                    seal(client, bytes);
                })
                .await;
                let mut buffer = Buffer::default();
                while buffer.len() < ANSWER {
                    io.read(&mut buffer).await.unwrap();
                }
                (io.is_at_rest(), io.is_fresh())
            });
            assert_eq!(is_at_rest, (expected, expected), "{name}");
        }
    }
}
