//! Clients and upstreams, byte for byte.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::LIMIT;

/// What a peer reads and writes: TCP itself, or TLS over it.
pub trait Wire: Read + Write + Send {
    fn socket(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl<C, S> Wire for rustls::StreamOwned<C, TcpStream>
where
    C: std::ops::DerefMut + std::ops::Deref<Target = rustls::ConnectionCommon<S>> + Send,
    S: rustls::SideData + Send,
{
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// A request for a WebSocket.
pub const WEBSOCKET: &str =
    "GET /chat HTTP/1.1\r\nhost: up\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";

/// The answer that makes it one.
pub const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// One end of a connection.
pub struct Peer {
    wire: Box<dyn Wire>,
    /// Read and not taken yet.
    unread: Vec<u8>,
}

/// An HTTP message as it came.
#[derive(Debug)]
pub struct Message {
    /// Start line and fields with their line ends, without the empty line.
    pub head: String,
    /// Without the framing of chunks.
    pub body: Vec<u8>,
    /// `name: value` lines after the last chunk.
    pub trailers: String,
}

impl Message {
    pub fn start_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// Values of *name*, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub fn status(&self) -> u16 {
        self.start_line().split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn values<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// FIN, or close_notify with FIN.
    Finished,
    /// RST, or TLS without close_notify.
    Reset,
}

impl Peer {
    pub fn connect(address: SocketAddr) -> Peer {
        // Not `connect_timeout`: it reports a reset that follows at once as its own failure.
        Peer::over(TcpStream::connect(address).unwrap())
    }

    /// Speak over an open connection.
    pub fn over(wire: impl Wire + 'static) -> Peer {
        wire.socket().set_read_timeout(Some(LIMIT)).unwrap();
        wire.socket().set_write_timeout(Some(LIMIT)).unwrap();
        wire.socket().set_nodelay(true).unwrap();
        Peer { wire: Box::new(wire), unread: Vec::new() }
    }

    pub fn socket(&self) -> &TcpStream {
        self.wire.socket()
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the peer takes what is sent");
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.write_all(bytes.as_ref())?;
        self.wire.flush()
    }

    /// Say that nothing more follows, and go on reading.
    pub fn finish(&mut self) {
        self.socket().shutdown(Shutdown::Write).unwrap();
    }

    /// End the connection with RST.
    pub fn reset(self) {
        socket2::SockRef::from(self.socket()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Read more; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 64 * 1024];
        let count = self.wire.read(&mut bytes)?;
        self.unread.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    #[track_caller]
    fn more(&mut self, what: &str) {
        let seen = String::from_utf8_lossy(&self.unread[..self.unread.len().min(2000)]).into_owned();
        match self.fill() {
            Ok(0) => panic!("the connection ended before {what}; seen: {seen:?}"),
            Ok(_) => {}
            Err(error) => panic!("{error} before {what}; seen: {seen:?}"),
        }
    }

    /// The next *count* bytes.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            self.more("enough bytes");
        }
        self.unread.drain(..count).collect()
    }

    /// Everything up to and with *mark*.
    #[track_caller]
    pub fn take_until(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.unread.windows(mark.len()).position(|window| window == mark) {
                return self.unread.drain(..at + mark.len()).collect();
            }
            self.more(&String::from_utf8_lossy(mark));
        }
    }

    /// The next bytes are these.
    #[track_caller]
    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let got = self.take(bytes.len());
        assert!(got == bytes, "expected {:?}, got {:?}", String::from_utf8_lossy(bytes), String::from_utf8_lossy(&got));
    }

    /// A head alone, as a message without body.
    #[track_caller]
    pub fn head(&mut self) -> Message {
        let mut head = self.take_until(b"\r\n\r\n");
        head.truncate(head.len() - 2);
        Message { head: String::from_utf8(head).unwrap(), body: Vec::new(), trailers: String::new() }
    }

    /// A whole message, its end found by its own length or chunks, or by the connection's end.
    #[track_caller]
    pub fn message(&mut self) -> Message {
        let message = self.head();
        self.body_of(message)
    }

    /// The body that follows a head.
    #[track_caller]
    pub fn body_of(&mut self, mut message: Message) -> Message {
        if message.get("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.take_until(b"\r\n");
                let size = std::str::from_utf8(&line[..line.len() - 2]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("no chunk size: {size:?}"));
                if size == 0 {
                    break;
                }
                message.body.extend(self.take(size));
                self.expect(b"\r\n");
            }
            loop {
                let line = self.take_until(b"\r\n");
                if line == b"\r\n" {
                    return message;
                }
                message.trailers.push_str(&String::from_utf8(line).unwrap());
            }
        }
        let has_none = message.status() != 0 && (message.status() < 200 || matches!(message.status(), 204 | 304));
        if let Some(length) = message.get("content-length").filter(|_| !has_none) {
            let length = length.parse().unwrap();
            message.body = self.take(length);
        } else if message.head.starts_with("HTTP/") && !has_none {
            message.body = self.rest().0;
        }
        message
    }

    /// Everything up to the end, and how it ended.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        let end = loop {
            match self.fill() {
                Ok(0) => break End::Finished,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
                    break End::Reset;
                }
                Err(error) => panic!("{error} instead of an end; seen {} bytes", self.unread.len()),
            }
        };
        (std::mem::take(&mut self.unread), end)
    }

    /// The connection ends here, with no byte more.
    #[track_caller]
    pub fn expect_end(&mut self) -> End {
        let (rest, end) = self.rest();
        assert!(rest.is_empty(), "bytes before the end: {:?}", String::from_utf8_lossy(&rest));
        end
    }

    /// Bytes that have arrived by now; waits for nothing.
    pub fn arrived(&mut self) -> &[u8] {
        self.socket().set_nonblocking(true).unwrap();
        while self.fill().is_ok_and(|count| count > 0) {}
        self.socket().set_nonblocking(false).unwrap();
        &self.unread
    }

    /// Drop what has been read.
    pub fn take_arrived(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unread)
    }

    /// `GET path`, and its answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Message {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
        self.message()
    }
}

/// An upstream's listening socket.
pub struct Upstream {
    listener: TcpListener,
}

impl Upstream {
    pub fn new() -> Upstream {
        Upstream::at("127.0.0.1:0".parse().unwrap())
    }

    pub fn at(address: SocketAddr) -> Upstream {
        Upstream { listener: TcpListener::bind(address).unwrap() }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn is_waiting(&self, limit: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one live pollfd, and its descriptor is open.
        unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) == 1 }
    }

    #[track_caller]
    pub fn accept_socket(&self) -> TcpStream {
        assert!(self.is_waiting(LIMIT), "nobody connects to the upstream");
        self.listener.accept().unwrap().0
    }

    #[track_caller]
    pub fn accept(&self) -> Peer {
        Peer::over(self.accept_socket())
    }

    /// Whether somebody has connected and was not accepted yet; waits for nothing.
    pub fn has_visitor(&self) -> bool {
        self.is_waiting(Duration::ZERO)
    }

    /// Answer every request on every connection, until this process ends. Returns the address.
    pub fn answering(answer: impl Fn(&Message) -> Vec<u8> + Clone + Send + 'static) -> SocketAddr {
        Upstream::new().answer_all(answer)
    }

    /// The same for this one.
    pub fn answer_all(self, answer: impl Fn(&Message) -> Vec<u8> + Clone + Send + 'static) -> SocketAddr {
        let address = self.address();
        std::thread::spawn(move || {
            while let Ok((socket, _)) = self.listener.accept() {
                let answer = answer.clone();
                std::thread::spawn(move || {
                    let mut peer = Peer::over(socket);
                    peer.socket().set_read_timeout(None).unwrap();
                    while let Some(request) = peer.next_request() {
                        if peer.try_send(answer(&request)).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    /// Answer every request with 200 and this body.
    pub fn saying(body: &'static str) -> SocketAddr {
        Upstream::answering(move |_| ok(body))
    }
}

impl Peer {
    /// The next request, or nothing when the connection has ended.
    fn next_request(&mut self) -> Option<Message> {
        while self.unread.is_empty() {
            if self.fill().unwrap_or(0) == 0 {
                return None;
            }
        }
        Some(self.message())
    }
}

/// A plain answer.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Bytes that wait in the socket's receive buffer.
pub fn queued_bytes(socket: &TcpStream) -> i32 {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int to `count`, which lives as long as the call.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &mut count) };
    count
}

/// An address where who asks for a connection gets no answer, for as long as the value beside it lives: its queue is full.
pub fn unanswered_address() -> (SocketAddr, impl Sized) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let in_the_queue = TcpStream::connect(address).unwrap();
    (address, (socket, in_the_queue))
}

/// Bytes that were sent and not yet taken in by the other side's kernel.
pub fn unacknowledged_bytes(socket: &TcpStream) -> i32 {
    let mut count = 0;
    // SAFETY: TIOCOUTQ writes one int to `count`, which lives as long as the call.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut count) };
    count
}

impl Peer {
    /// What comes first, or nothing if the connection ends or breaks before.
    pub fn first_bytes(&mut self) -> &[u8] {
        if self.unread.is_empty() {
            let _ = self.fill();
        }
        &self.unread
    }
}
