//! One connection, plain or TLS: reads into a [`Buffer`], writes slices. All methods take `&self`, so that one task can
//! wait for both directions of a connection at once.
//!
//! System calls are counted in thoughts: a read that did not fill the buffer has emptied the socket, so readiness is cleared
//! and no second read is made only to hear EAGAIN; a write is tried before anybody waits.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::buffer::Buffer;
use crate::tls::session::Session;

/// A connected stream socket (TCP or Unix), perhaps with TLS on it.
pub struct Io {
    socket: AsyncFd<OwnedFd>,
    tls: Option<Box<RefCell<Session>>>,
    /// Bytes wait whose readiness is cleared, because somebody waits for the end behind them: the next read need not wait.
    unread: Cell<bool>,
    /// Bytes taken from and given to the kernel.
    received: Cell<u64>,
    sent: Cell<u64>,
}

/// A socket of libc calls over which TLS reads and writes; separate from [`Io`] so that the session can be borrowed.
pub(crate) struct Wire<'a> {
    socket: &'a AsyncFd<OwnedFd>,
    unread: &'a Cell<bool>,
    received: &'a Cell<u64>,
    sent: &'a Cell<u64>,
}

impl Io {
    /// Take a connected socket; it must be non-blocking. Must be called within a worker's runtime.
    ///
    /// # Errors
    /// The runtime cannot watch the descriptor.
    pub fn new(socket: OwnedFd) -> io::Result<Io> {
        Ok(Io {
            socket: watch(socket, Interest::READABLE | Interest::WRITABLE)?,
            tls: None,
            unread: Cell::new(false),
            received: Cell::new(0),
            sent: Cell::new(0),
        })
    }

    /// Put a TLS session on the connection; nothing is sent yet.
    pub fn secure(&mut self, session: Session) {
        self.tls = Some(Box::new(RefCell::new(session)));
    }

    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Look at the TLS session.
    pub fn with_session<T>(&self, look: impl FnOnce(&Session) -> T) -> Option<T> {
        self.tls.as_ref().map(|tls| look(&tls.borrow()))
    }

    /// Whether ALPN chose HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        self.with_session(|session| session.connection().alpn_protocol() == Some(b"h2")).unwrap_or(false)
    }

    /// Bytes taken from the kernel so far (ciphertext, if secure).
    pub fn received_bytes(&self) -> u64 {
        self.received.get()
    }

    /// Bytes given to the kernel so far.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.get()
    }

    fn wire(&self) -> Wire<'_> {
        Wire { socket: &self.socket, unread: &self.unread, received: &self.received, sent: &self.sent }
    }

    /// Read once into the buffer's room.
    ///
    /// A buffer without memory gets some only once there is something to read: nobody holds any for a peer that is silent.
    ///
    /// Ready with 0 at the end of the stream. A truncated TLS stream (no close_notify) is an error of kind `UnexpectedEof`.
    pub fn poll_read(&self, context: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<usize>> {
        if !buffer.has_memory() {
            ready!(self.poll_readable(context))?;
        }
        let count = match &self.tls {
            None => ready!(self.wire().poll_receive(context, buffer.spare()))?,
            Some(tls) => ready!(tls.borrow_mut().poll_read(&self.wire(), context, buffer.spare()))?,
        };
        buffer.filled(count);
        Poll::Ready(Ok(count))
    }

    /// Cancel-safe: nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// As the system reports; see [`Io::poll_read`].
    pub async fn read(&self, buffer: &mut Buffer) -> io::Result<usize> {
        poll_fn(|context| self.poll_read(context, buffer)).await
    }

    /// Wait until a read would not wait, without holding a buffer.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_readable(context)).await
    }

    pub fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &self.tls
            && tls.borrow_mut().has_plaintext()
        {
            return Poll::Ready(Ok(()));
        }
        if self.unread.get() {
            return Poll::Ready(Ok(()));
        }
        self.socket.poll_read_ready(context).map_ok(|_| ())
    }

    /// Ready when nothing more will come from the peer: it has reset the connection, or ended its sending direction, be it behind
    /// bytes that nobody has read yet. Those stay where they are.
    ///
    /// Makes no system call: the kernel tells of the end with an event. Only the end of a TLS session (close_notify) has to be read,
    /// and that is tried after an event.
    pub fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        match &self.tls {
            None => self.wire().poll_end(context),
            Some(tls) => tls.borrow_mut().poll_end(&self.wire(), context),
        }
    }

    /// Ready when the peer has reset the connection; that it sends no more is no reset. Makes no system call.
    pub fn poll_reset(&self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.socket.poll_write_ready(context)) {
                // Set by RST, and never cleared.
                Ok(guard) if guard.ready().is_write_closed() => return Poll::Ready(()),
                // Room to write. As long as it counts as an event, nobody is woken by the next one; who writes tries before it waits.
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// Whether all that was taken from the kernel has been read, the end of a TLS session among it. Makes no system call.
    pub fn is_at_rest(&self) -> bool {
        self.with_session(Session::is_at_rest).unwrap_or(true)
    }

    /// Whether an idle connection can carry another request, as far as the events seen so far say. Makes a system call only if
    /// there was an event.
    pub fn is_fresh(&self) -> bool {
        let mut fresh = self.is_at_rest();
        let mut byte = [0u8; 1];
        let result = self.socket.try_io(Interest::READABLE, |socket| {
            // SAFETY: the descriptor is open, the pointer is valid for one byte.
            let count = unsafe { libc::recv(socket.as_raw_fd(), byte.as_mut_ptr().cast(), 1, libc::MSG_PEEK) };
            match count {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
        match result {
            // The end, or bytes that nobody asked for: both make it unusable. TLS 1.3 tickets are bytes of this kind, but the
            // sessions here never ask for any.
            Ok(()) => fresh = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => fresh = false,
        }
        fresh
    }

    /// Write all of *first*, then all of *second*, in as few system calls as possible.
    ///
    /// # Errors
    /// As the system reports. After an error, or if dropped before the end, the connection cannot be used any further.
    pub async fn write_all(&self, first: &[u8], second: &[u8]) -> io::Result<()> {
        let mut written = 0;
        poll_fn(|context| self.poll_write_all(context, first, second, &mut written)).await
    }

    /// One attempt of [`Io::write_all`]; *written* counts the bytes that are done and begins at 0.
    pub fn poll_write_all(
        &self,
        context: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
        written: &mut usize,
    ) -> Poll<io::Result<()>> {
        let total = first.len() + second.len();
        match &self.tls {
            None => {
                while *written < total {
                    let done = *written;
                    let (head, tail) = if done < first.len() {
                        (&first[done..], second)
                    } else {
                        (&second[done - first.len()..], &[][..])
                    };
                    *written += ready!(self.wire().poll_send(context, head, tail))?;
                }
                Poll::Ready(Ok(()))
            }
            Some(tls) => {
                let mut session = tls.borrow_mut();
                loop {
                    while *written < total {
                        let done = *written;
                        let rest = if done < first.len() { &first[done..] } else { &second[done - first.len()..] };
                        match session.write(rest)? {
                            0 => break,
                            count => *written += count,
                        }
                    }
                    ready!(session.poll_flush(&self.wire(), context))?;
                    if *written == total {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Shake hands, if secure.
    ///
    /// # Errors
    /// What the TLS session says, wrapped in an `io::Error` of kind `InvalidData`.
    pub async fn handshake(&self) -> io::Result<()> {
        match &self.tls {
            None => Ok(()),
            Some(tls) => poll_fn(|context| tls.borrow_mut().poll_handshake(&self.wire(), context)).await,
        }
    }

    /// End the sending direction: close_notify, then FIN. Errors are of no interest to anybody.
    pub async fn finish(&self) {
        if let Some(tls) = &self.tls {
            tls.borrow_mut().close();
            let _ = poll_fn(|context| tls.borrow_mut().poll_flush(&self.wire(), context)).await;
        }
        // SAFETY: the descriptor is open.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_WR) };
    }

    /// The next close sends RST: what the peer must see when its request was cut short.
    pub fn reset_on_close(&self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        set_option(self.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    }

    /// Bytes that the peer's kernel has acknowledged, if the system tells (TCP only).
    ///
    /// This is how a request that certainly was not taken is told from one that may have been.
    pub fn acknowledged_bytes(&self) -> Option<u64> {
        acknowledged_bytes(self.socket.as_raw_fd())
    }

    pub fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Io").field("fd", &self.socket.as_raw_fd()).field("secure", &self.is_secure()).finish()
    }
}

impl Wire<'_> {
    pub(crate) fn poll_receive(&self, context: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = match self.unread.replace(false) {
                true => None,
                false => Some(ready!(self.socket.poll_read_ready(context))?),
            };
            // SAFETY: the descriptor is open and `room` is valid for writes of its length.
            let count = unsafe { libc::recv(self.socket.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
            if count >= 0 {
                let count = count as usize;
                match &mut guard {
                    // The socket is empty now. The end of the stream keeps its own mark, so it is not lost here.
                    Some(guard) if count > 0 && count < room.len() => guard.clear_ready(),
                    None if count == room.len() => self.unread.set(true),
                    _ => {}
                }
                self.received.set(self.received.get() + count as u64);
                return Poll::Ready(Ok(count));
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => {
                    if let Some(guard) = &mut guard {
                        guard.clear_ready();
                    }
                }
                io::ErrorKind::Interrupted => self.unread.set(guard.is_none()),
                _ => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Ready when the peer's sending direction has ended, however, and whatever waits before the end.
    pub(crate) fn poll_end(&self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.socket.poll_read_ready(context)) {
                // The mark of the end is set by RST and by FIN, and is never cleared.
                Ok(guard) if guard.ready().is_read_closed() => return Poll::Ready(()),
                // Bytes for later. As long as they count as an event, nobody is woken by the next one.
                Ok(mut guard) => {
                    self.unread.set(true);
                    guard.clear_ready();
                }
                Err(_) => return Poll::Ready(()),
            }
        }
    }

    pub(crate) fn poll_send(&self, context: &mut Context<'_>, first: &[u8], second: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match send(self.socket.as_raw_fd(), first, second) {
                Ok(count) => {
                    self.sent.set(self.sent.get() + count as u64);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_write_ready(context))?.clear_ready();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Wire<'_> {
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received.get()
    }

    /// Send several parts; how TLS records leave.
    pub(crate) fn poll_send_parts(
        &self,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match parts {
            [] => Poll::Ready(Ok(0)),
            [only] => self.poll_send(context, only, &[]),
            [first, second, ..] => self.poll_send(context, first, second),
        }
    }
}

fn send(descriptor: RawFd, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let count = if second.is_empty() {
        // SAFETY: the descriptor is open and `first` is valid for reads of its length.
        unsafe { libc::send(descriptor, first.as_ptr().cast(), first.len(), libc::MSG_NOSIGNAL) }
    } else {
        let parts = [
            libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() },
            libc::iovec { iov_base: second.as_ptr().cast_mut().cast(), iov_len: second.len() },
        ];
        // SAFETY: an all-zero msghdr is valid (null pointers with zero lengths).
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_ptr().cast_mut();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: the descriptor is open; the parts point to live slices which the kernel only reads.
        unsafe { libc::sendmsg(descriptor, &message, libc::MSG_NOSIGNAL) }
    };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// Let the runtime watch a descriptor; it must be non-blocking. Must be called within a worker's runtime.
///
/// # Errors
/// The runtime cannot watch it.
pub fn watch<T: Into<OwnedFd>>(socket: T, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open as long as it lives and always names the same descriptor.
    Ok(unsafe { AsyncFd::register_with_interest(socket.into(), interest) }?)
}

/// Accept one connection from a listening socket.
///
/// # Errors
/// As `accept(2)`; `WouldBlock` if none waits.
pub fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open; null addresses are allowed.
    let descriptor = unsafe {
        libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Let a listening socket ignore clients that come now, who try again a little later and find its successor or nobody, while
/// handshakes that have begun go on. Closing it with anything in its queue would reset who is in there.
///
/// Whom it accepts from now on has to be [welcomed](welcome).
pub fn refuse_new_handshakes(listener: RawFd) {
    /// Of the byte of flags in a TCP header (RFC 9293 3.1).
    const FLAGS_OFFSET: u32 = 13;
    const SYN_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    // BPF: A = header[13]; A &= SYN|ACK; if A == SYN drop; else take all of it.
    let filter = [
        libc::sock_filter { code: (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: FLAGS_OFFSET },
        libc::sock_filter { code: (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16, jt: 0, jf: 0, k: SYN_ACK },
        libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: 1, k: SYN },
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: u32::MAX },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    if !set_option(listener, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program) {
        // There are machines where only root may attach one. Nearly everybody's packets come with fewer hops left than these, and the kernel
        // asks it of who begins a handshake, but not of who ends one.
        set_least_hops(listener, u8::MAX.into());
    }
}

/// Hear a client that was accepted from a socket which refuses new handshakes.
pub fn welcome(descriptor: RawFd) {
    set_least_hops(descriptor, 0);
}

/// Ignore packets that may make fewer hops from here (IP_MINTTL and its like of IPv6, RFC 5082).
fn set_least_hops(descriptor: RawFd, least: i32) {
    set_option(descriptor, libc::IPPROTO_IP, libc::IP_MINTTL, &least);
    set_option(descriptor, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &least);
}

/// Send small messages at once. Fails only on sockets that are not TCP, where it is not needed.
pub fn set_no_delay(descriptor: RawFd) {
    set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32);
}

/// A socket that binds an address only: let the kernel choose its port by the whole connection, not by this end alone. Else all
/// destinations together share the ports of one address. Where the kernel cannot, connections work until ports run out.
pub fn choose_port_when_connecting(descriptor: RawFd) {
    set_option(descriptor, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32);
}

/// The address of this end; with TPROXY the one that the client dialled.
pub fn local_address(descriptor: RawFd) -> Option<SocketAddr> {
    address(|storage, length| {
        // SAFETY: both pointers come from `address` below and are valid for a sockaddr_storage.
        unsafe { libc::getsockname(descriptor, storage, length) }
    })
}

pub fn peer_address(descriptor: RawFd) -> Option<SocketAddr> {
    address(|storage, length| {
        // SAFETY: as above.
        unsafe { libc::getpeername(descriptor, storage, length) }
    })
}

/// Where a connection was going before a REDIRECT rule turned it to this end; `None` where connection tracking knows nothing of it.
pub fn redirected_address(descriptor: RawFd, v4: bool) -> Option<SocketAddr> {
    let (level, name) =
        if v4 { (libc::SOL_IP, libc::SO_ORIGINAL_DST) } else { (libc::SOL_IPV6, libc::IP6T_SO_ORIGINAL_DST) };
    address(|storage, length| {
        // SAFETY: as above; a socket option's value is a sockaddr here too.
        unsafe { libc::getsockopt(descriptor, level, name, storage.cast(), length) }
    })
}

fn address(ask: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> i32) -> Option<SocketAddr> {
    // SAFETY: `ask` fills at most a sockaddr_storage and says how much; `SockAddr` reads no more than that.
    let answer = unsafe {
        socket2::SockAddr::try_init(|storage, length| match ask(storage.cast(), length) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
    let socket = answer.ok()?.1.as_socket()?;
    Some(match socket {
        // A dual-stack socket shows IPv4 peers in IPv6 clothes; everyone else wants the plain form.
        SocketAddr::V6(six) => match six.ip().to_ipv4_mapped() {
            Some(four) => SocketAddr::from((four, six.port())),
            None => socket,
        },
        SocketAddr::V4(_) => socket,
    })
}

fn acknowledged_bytes(descriptor: RawFd) -> Option<u64> {
    /// Offset of `tcpi_bytes_acked` in `struct tcp_info` (linux/tcp.h, since 4.1); libc's struct ends before it.
    const BYTES_ACKED_OFFSET: usize = 120;
    let mut info = [0u64; 32];
    let mut length = std::mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is valid for writes of `length` bytes.
    let result = unsafe {
        libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length)
    };
    (result == 0 && length as usize >= BYTES_ACKED_OFFSET + 8).then(|| info[BYTES_ACKED_OFFSET / 8])
}

/// Set one socket option, if the kernel allows; returns whether it did. Callers use it for optimisations; where an option must hold, `netns`
/// checks it.
fn set_option<T>(descriptor: RawFd, level: i32, name: i32, value: &T) -> bool {
    // SAFETY: `value` is valid for reads of its size.
    let result = unsafe {
        libc::setsockopt(
            descriptor,
            level,
            name,
            std::ptr::from_ref(value).cast(),
            std::mem::size_of::<T>() as libc::socklen_t,
        )
    };
    result == 0
}
