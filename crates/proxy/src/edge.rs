//! Asks the edge, the one process in the host's network, for sockets there (`docs/reference/interfaces.md`, 4.4).
//!
//! One request a connection: a JSON line to the edge, a JSON line back, with the descriptor on its first byte.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::descriptors::Received;
use crate::logging;

/// How long `listen` waits for the edge, which does nothing but a bind.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long `listen` waits for an edge that is not there, and how often it looks; `weft up` starts it again within some 0.3 s.
const AWAY_TIME: Duration = Duration::from_secs(3);
const AWAY_LOOK: Duration = Duration::from_millis(20);

/// Where the edge listens, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    pub socket: PathBuf,
    /// The workload's name; the edge allows the host's loopback only to those that may.
    pub workload: String,
}

#[derive(Serialize)]
struct Dial<'a> {
    dial: SocketAddr,
    timeout_ms: u64,
    workload: &'a str,
}

#[derive(Serialize)]
struct Listen {
    listen: SocketAddr,
}

#[derive(Serialize)]
struct Release {
    release: SocketAddr,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    error: String,
    #[serde(default)]
    message: String,
}

impl Edge {
    /// Get a socket connected to *address* in the host's network. Cancel-safe: the edge closes what nobody took.
    ///
    /// # Errors
    /// What the edge says, under the kind that its errno has; or the edge cannot be reached.
    pub async fn dial(&self, address: SocketAddr, timeout: Duration) -> io::Result<OwnedFd> {
        let request = line(&Dial { dial: address, timeout_ms: timeout.as_millis() as u64, workload: &self.workload })?;
        let mut stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        stream.write_all(&request).await?;
        let mut received = Received::default();
        loop {
            stream.readable().await?;
            match stream.try_io(tokio::io::Interest::READABLE, || received.receive(stream.as_raw_fd())) {
                Ok(true) => return descriptor(received),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Get a listening socket of the host. Blocks, for at most a few seconds if the edge hangs or is being started again.
    ///
    /// # Errors
    /// As [`Edge::dial`].
    pub fn listen(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        // A listener that is refused stays refused until it changes, so an edge that is away for a moment is waited for.
        let patience = Instant::now() + AWAY_TIME;
        let mut stream = loop {
            match std::os::unix::net::UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > patience => return Err(self.unreachable(&error)),
                Err(_) => std::thread::sleep(AWAY_LOOK),
            }
        };
        stream.set_read_timeout(Some(LISTEN_TIMEOUT))?;
        stream.write_all(&line(&Listen { listen: address })?)?;
        let mut received = Received::default();
        while !received.receive(stream.as_raw_fd())? {}
        let socket = descriptor(received)?;
        // Nothing follows the line; reading to the end lets the edge close first.
        let _ = stream.read(&mut [0u8; 1]);
        socket2::SockRef::from(&socket).set_nonblocking(true)?;
        Ok(socket)
    }

    /// Tell the edge that nobody accepts at *address* any more. It keeps a duplicate of each listening socket for the next proxy,
    /// and callers would wait in its queue for ever. Best effort: an edge that is gone keeps nothing.
    pub fn release(&self, address: SocketAddr) {
        let tell = || -> io::Result<()> {
            let mut stream = std::os::unix::net::UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(LISTEN_TIMEOUT))?;
            stream.write_all(&line(&Release { release: address })?)?;
            let _ = stream.read(&mut [0u8; 256])?;
            Ok(())
        };
        if let Err(error) = tell() {
            log::warn!(target: logging::LISTENER, "the edge keeps {address}: {error}");
        }
    }

    fn unreachable(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("the edge at {} cannot be reached: {error}", self.socket.display()))
    }
}

/// Ask for a listening socket; the error says what is missing where there is no edge at all.
///
/// # Errors
/// As [`Edge::listen`].
pub fn listen(edge: Option<&Edge>, address: SocketAddr, namespace: &Path) -> io::Result<OwnedFd> {
    match edge {
        Some(edge) => edge.listen(address),
        None => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("{address} lies in {}, but no --edge-socket was given", namespace.display()),
        )),
    }
}

fn line(request: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    Ok(text)
}

/// The descriptor of an answer, or what the edge says in its place.
fn descriptor(mut received: Received) -> io::Result<OwnedFd> {
    let answer: Answer = serde_json::from_slice(&received.text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("the edge's answer: {error}")))?;
    match (answer.ok, received.descriptors.drain(..).next()) {
        (true, Some(descriptor)) => Ok(descriptor),
        (true, None) => Err(io::Error::new(io::ErrorKind::InvalidData, "the edge sent no descriptor")),
        (false, _) => Err(io::Error::new(kind(&answer.error), format!("{}: {}", answer.error, answer.message))),
    }
}

/// The kind of an errno by its name.
fn kind(name: &str) -> io::ErrorKind {
    match name {
        "ECONNREFUSED" => io::ErrorKind::ConnectionRefused,
        "ETIMEDOUT" => io::ErrorKind::TimedOut,
        "EHOSTUNREACH" => io::ErrorKind::HostUnreachable,
        "ENETUNREACH" => io::ErrorKind::NetworkUnreachable,
        "EACCES" | "EPERM" => io::ErrorKind::PermissionDenied,
        "EADDRINUSE" => io::ErrorKind::AddrInUse,
        "EADDRNOTAVAIL" => io::ErrorKind::AddrNotAvailable,
        _ => io::ErrorKind::Other,
    }
}
