//! Who calls an address on which the proxy waits for its own program only: the user of the process at the other end, and the
//! credential in its requests.
//!
//! TCP tells no user, so the kernel is asked for the socket at the other end: by sock_diag(7), which finds it at once, or in
//! /proc/net/tcp where that is not to be had. Both ends are on this machine, or there is no such socket and nobody is let in.

use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use weft_core::base64;
use weft_core::http_manager::HttpManager;
use weft_core::local_caller::LocalCaller;
use weft_core::respond::Cause;

use crate::codec::Head;
use crate::identify::{Ends, Facts};
use crate::route::View;
use crate::tls;

const PROXY_AUTHORIZATION: &[u8] = b"proxy-authorization";

/// Whether a process of one of *uids* is at the other end.
pub fn is_one_of(uids: &[u32], ends: &Ends) -> bool {
    uid_of(ends).is_some_and(|uid| uids.contains(&uid))
}

/// Whether a request may be taken for one of the program beside this proxy. The credential goes no further than here.
///
/// # Errors
/// Why it may not.
pub fn admit(request: &mut Head, manager: &HttpManager, facts: &Facts) -> Result<(), Cause> {
    let Some(local) = manager.local_caller() else { return Ok(()) };
    let presented = request.get(PROXY_AUTHORIZATION).map(digest_of_basic);
    request.remove(PROXY_AUTHORIZATION);
    LocalCaller::admit(local, &View::of(request, facts), presented.as_deref())
}

/// SHA-256 of `user:password` in a `Basic` credential (RFC 7617); of nothing if it is no such credential.
fn digest_of_basic(value: &[u8]) -> String {
    let is_basic = value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic "));
    let encoded = if is_basic { value[6..].trim_ascii() } else { b"" };
    tls::sha256_hex(&base64::decode(encoded).unwrap_or_default())
}

/// The user of the socket at the other end; `None` if there is no such socket on this machine any more.
fn uid_of(ends: &Ends) -> Option<u32> {
    let ends = Ends { remote: unmapped(ends.remote), local: unmapped(ends.local) };
    match ask_kernel(&ends) {
        Ok(Some(socket)) => {
            ANSWERS.set(true);
            socket.owner()
        }
        // A table costs milliseconds where there are many sockets, and strangers could have us read it at will.
        Ok(None) if ANSWERS.get() => None,
        // "Not found" is also what a kernel without tcp_diag says.
        Ok(None) | Err(_) => look_in_proc(&ends).and_then(Socket::owner),
    }
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What the kernel tells of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    uid: u32,
    inode: u64,
}

impl Socket {
    /// A socket that its process has closed already has no inode, and the kernel then says uid 0 whoever it was.
    fn owner(self) -> Option<u32> {
        (self.inode != 0).then_some(self.uid)
    }
}

// --- sock_diag(7) ---

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NO_COOKIE: [u32; 2] = [u32::MAX; 2];

/// `struct inet_diag_sockid`, linux/inet_diag.h. Ports and addresses in network order.
#[repr(C)]
#[derive(Clone, Copy)]
struct SocketId {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
#[repr(C)]
struct Question {
    header: libc::nlmsghdr,
    family: u8,
    protocol: u8,
    extensions: u8,
    padding: u8,
    states: u32,
    id: SocketId,
}

/// `struct nlmsghdr` and `struct inet_diag_msg`; an error has its number in place of the first four bytes behind the header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Answer {
    header: libc::nlmsghdr,
    family_state_timer_retransmissions: [u8; 4],
    id: SocketId,
    expires: u32,
    receive_queue: u32,
    send_queue: u32,
    uid: u32,
    inode: u32,
}

thread_local! {
    /// One netlink socket for each worker; `None` where there is no such thing (seccomp, other kernels).
    static NETLINK: OnceCell<Option<OwnedFd>> = const { OnceCell::new() };
    /// The kernel has found a socket before, so what it does not find is not there.
    static ANSWERS: Cell<bool> = const { Cell::new(false) };
}

fn open_netlink() -> Option<OwnedFd> {
    // SAFETY: the call takes numbers only; a descriptor that it returns is ours alone.
    unsafe {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let descriptor = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG);
        (descriptor >= 0).then(|| OwnedFd::from_raw_fd(descriptor))
    }
}

/// Find the socket whose own address is the remote end. `Ok(None)`: there is none.
fn ask_kernel(ends: &Ends) -> io::Result<Option<Socket>> {
    NETLINK.with(|netlink| match netlink.get_or_init(open_netlink) {
        Some(netlink) => exchange(netlink, ends),
        None => Err(io::ErrorKind::Unsupported.into()),
    })
}

fn exchange(netlink: &OwnedFd, ends: &Ends) -> io::Result<Option<Socket>> {
    let (family, source, destination) = match (ends.remote.ip(), ends.local.ip()) {
        (IpAddr::V4(remote), IpAddr::V4(local)) => (libc::AF_INET, widened(remote.octets()), widened(local.octets())),
        (IpAddr::V6(remote), IpAddr::V6(local)) => (libc::AF_INET6, remote.octets(), local.octets()),
        _ => return Ok(None),
    };
    let question = Question {
        header: libc::nlmsghdr {
            nlmsg_len: size_of::<Question>() as u32,
            nlmsg_type: SOCK_DIAG_BY_FAMILY,
            nlmsg_flags: libc::NLM_F_REQUEST as u16,
            nlmsg_seq: 0,
            nlmsg_pid: 0,
        },
        family: family as u8,
        protocol: libc::IPPROTO_TCP as u8,
        extensions: 0,
        padding: 0,
        states: u32::MAX,
        id: SocketId {
            source_port: ends.remote.port().to_be_bytes(),
            destination_port: ends.local.port().to_be_bytes(),
            source,
            destination,
            interface: 0,
            cookie: NO_COOKIE,
        },
    };
    // SAFETY: the pointer and length are those of a value of plain numbers without padding, which outlives the call.
    let sent = unsafe {
        libc::send(
            netlink.as_raw_fd(),
            (&raw const question).cast::<c_void>(),
            size_of::<Question>(),
            libc::MSG_DONTWAIT,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel answers within `send`. A longer answer (attributes) is cut, and nothing of it is needed.
    // SAFETY: `Answer` is plain numbers, for which zero is a value.
    let mut answer: Answer = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the given length into a value that any bytes are valid for.
    let received = unsafe {
        libc::recv(netlink.as_raw_fd(), (&raw mut answer).cast::<c_void>(), size_of::<Answer>(), libc::MSG_DONTWAIT)
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    if i32::from(answer.header.nlmsg_type) == libc::NLMSG_ERROR {
        let number = i32::from_ne_bytes(answer.family_state_timer_retransmissions);
        return if number == -libc::ENOENT { Ok(None) } else { Err(io::Error::from_raw_os_error(-number)) };
    }
    if (received as usize) < size_of::<Answer>() || answer.header.nlmsg_type != SOCK_DIAG_BY_FAMILY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some(Socket { uid: answer.uid, inode: answer.inode.into() }))
}

fn widened(address: [u8; 4]) -> [u8; 16] {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(&address);
    wide
}

// --- /proc/net/tcp, proc(5) ---

fn look_in_proc(ends: &Ends) -> Option<Socket> {
    // An IPv6 socket that was connected to an IPv4 address stands in the other table, with mapped addresses.
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .into_iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| find_in_table(&table, ends))
}

fn find_in_table(table: &str, ends: &Ends) -> Option<Socket> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote) = (parse_address(words.next()?)?, parse_address(words.next()?)?);
        if (local, remote) != (ends.remote, ends.local) {
            return None;
        }
        // State, queues, timer, retransmissions; then uid, timeout, inode.
        let mut words = words.skip(4);
        let uid = words.next()?.parse().ok()?;
        let inode = words.nth(1)?.parse().ok()?;
        Some(Socket { uid, inode })
    })
}

/// Each 32-bit word of an address is printed as the machine holds it.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut octets = [0u8; 16];
    let words = address.len() / 8;
    for word in 0..words.min(4) {
        let value = u32::from_str_radix(address.get(8 * word..8 * word + 8)?, 16).ok()?;
        octets[4 * word..4 * word + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let ip: IpAddr = match words {
        1 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
        4 => IpAddr::from(octets),
        _ => return None,
    };
    Some(unmapped(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn own_uid() -> u32 {
        // SAFETY: takes nothing and cannot fail.
        unsafe { libc::geteuid() }
    }

    fn connected(to: &str, from: &str) -> (TcpStream, Ends) {
        let listener = TcpListener::bind(to).unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect((from, address.port())).unwrap();
        let (accepted, remote) = listener.accept().unwrap();
        (client, Ends { remote, local: accepted.local_addr().unwrap() })
    }

    #[test]
    fn the_kernel_and_proc_say_the_same_of_a_caller() {
        for (to, from) in
            [("127.0.0.1:0", "127.0.0.1"), ("127.77.3.4:0", "127.77.3.4"), ("127.0.0.1:0", "::ffff:127.0.0.1")]
        {
            let (_client, ends) = connected(to, from);
            let asked = ask_kernel(&ends).unwrap().expect("the socket is there");
            assert_eq!(asked.owner(), Some(own_uid()), "{to} {from}");
            assert_eq!(look_in_proc(&ends), Some(asked), "{to} {from}");
            assert!(is_one_of(&[own_uid()], &ends));
            assert!(!is_one_of(&[own_uid() + 1], &ends) && !is_one_of(&[], &ends));
        }
    }

    #[test]
    fn a_caller_that_has_gone_is_nobody() {
        let (client, ends) = connected("127.0.0.1:0", "127.0.0.1");
        drop(client);
        // Its socket may linger in the kernel, and then says uid 0.
        assert_eq!(uid_of(&ends), None);
        assert!(!is_one_of(&[0, own_uid()], &ends));
    }

    #[test]
    fn proc_is_read_as_the_kernel_writes_it() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0403484D:D431 0403484D:2378 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 20 4 30 10 -1\n";
        let ip = |text: &str| text.parse().unwrap();
        let (local, remote): (SocketAddr, SocketAddr) = (ip("77.72.3.4:9080"), ip("77.72.3.4:54321"));
        assert_eq!(find_in_table(table, &Ends { remote, local }), Some(Socket { uid: 1000, inode: 4242 }));
        assert_eq!(find_in_table(table, &Ends { remote: local, local: remote }), None);
        let mapped = parse_address("0000000000000000FFFF00000100007F:2378");
        assert_eq!(mapped, Some(ip("127.0.0.1:9080")));
    }

    #[test]
    fn credentials_are_read_as_basic() {
        let expected = tls::sha256_hex(b"weft:secret");
        assert_eq!(digest_of_basic(b"Basic d2VmdDpzZWNyZXQ="), expected);
        assert_eq!(digest_of_basic(b"basic  d2VmdDpzZWNyZXQ="), expected);
        let nothing = tls::sha256_hex(b"");
        for other in [&b"Bearer d2VmdDpzZWNyZXQ="[..], b"Basic", b"Basic d2Vm*", b""] {
            assert_eq!(digest_of_basic(other), nothing);
        }
    }
}
