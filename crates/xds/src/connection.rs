//! A connection of HTTP/2 to a server of ours: a Unix socket or TCP, prior knowledge, no TLS.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// How long a connection attempt may take, and how long an answer to a PING.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a quiet TCP connection is probed. A Unix socket needs no probe: the kernel tells at once when it closes.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("HTTP/2: {0}")]
    Http(#[from] h2::Error),
}

/// The tasks beneath a stream; they end with it.
pub(crate) struct Driver(Vec<tokio::task::AbortHandle>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// Connect, and be ready to send a request. The connection lives as long as the driver.
pub(crate) async fn open(address: &Address, window_bytes: u32) -> Result<(SendRequest<Bytes>, Driver), OpenError> {
    let connecting = async {
        let socket = Socket::connect(address).await.map_err(OpenError::Connect)?;
        let probe = matches!(socket, Socket::Tcp(_));
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(window_bytes)
            .initial_connection_window_size(window_bytes)
            .handshake(socket)
            .await?;
        let ping = connection.ping_pong().filter(|_| probe);
        // Spawned, so that frames flow whatever the caller awaits. Its error reaches the stream as well.
        let task = tokio::spawn(async move { drop(connection.await) });
        let mut driver = Driver(vec![task.abort_handle()]);
        if let Some(ping) = ping {
            driver.0.push(tokio::spawn(probe_peer(ping, task.abort_handle())).abort_handle());
        }
        Ok::<_, OpenError>((sender.ready().await?, driver))
    };
    timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| OpenError::Timeout(CONNECT_TIMEOUT))?
}

/// Close the connection, by ending its driver, when the peer no longer answers: a machine that lost its power sends no FIN.
async fn probe_peer(mut ping: h2::PingPong, connection: tokio::task::AbortHandle) {
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        if !matches!(timeout(CONNECT_TIMEOUT, ping.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return connection.abort();
        }
    }
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    async fn connect(address: &Address) -> std::io::Result<Self> {
        Ok(match address {
            Address::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
        })
    }
}

/// Calls the same method on whichever socket it is.
macro_rules! either {
    ($self:expr, $method:ident, $($argument:expr),*) => {
        match $self.get_mut() {
            Socket::Unix(socket) => Pin::new(socket).$method($($argument),*),
            Socket::Tcp(socket) => Pin::new(socket).$method($($argument),*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        either!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        either!(self, poll_write, cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, poll_shutdown, cx)
    }
}
