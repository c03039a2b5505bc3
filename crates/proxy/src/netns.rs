//! Sockets in other network namespaces.
//!
//! A socket belongs for ever to the namespace in which it was made, and a thread can enter another one for the length of a
//! system call. So the proxy, one process, listens inside a program's namespace and dials from there.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// The last two components of the path that *means* the host's network; it never exists as a file.
const HOST: &str = "ns/host";

/// Whether *path* stands for the host's network, which only the edge can reach.
pub fn is_host(path: &Path) -> bool {
    path.ends_with(HOST)
}

/// What a listening socket needs to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Accept connections to addresses that are not ours (TPROXY).
    pub transparent: bool,
    /// Bind addresses that are not there yet (IP_FREEBIND).
    pub freebind: bool,
    /// Length of the queue of connections that nobody has accepted yet.
    pub backlog: i32,
}

/// Open a stream socket, in *namespace* if one is given.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses the socket.
pub fn stream_socket(family: i32, namespace: Option<&Path>) -> io::Result<OwnedFd> {
    inside(namespace, || {
        // SAFETY: no pointers are involved.
        let descriptor =
            unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    })
}

/// Listen on *address* inside *namespace*. Several sockets may listen on one address: each worker has its own.
///
/// # Errors
/// As the system reports, with the address in the message.
pub fn listen(address: SocketAddr, namespace: Option<&Path>, options: &ListenOptions) -> io::Result<OwnedFd> {
    listen_inner(address, namespace, options).map_err(|error| {
        let place = namespace.map(|path| format!(" in {}", path.display())).unwrap_or_default();
        io::Error::new(error.kind(), format!("cannot listen on {address}{place}: {error}"))
    })
}

fn listen_inner(address: SocketAddr, namespace: Option<&Path>, options: &ListenOptions) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket2::Socket::from(stream_socket(family, namespace)?);
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // 0.0.0.0 and [::] of one port are two listeners.
        socket.set_only_v6(true)?;
    }
    if options.transparent {
        set_transparent(&socket, address.is_ipv6())?;
    }
    if options.freebind {
        // Linux honours the option of IPv4 for IPv6 sockets too.
        socket.set_freebind_v4(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    Ok(socket.into())
}

fn set_transparent(socket: &socket2::Socket, v6: bool) -> io::Result<()> {
    let (level, name) =
        if v6 { (libc::SOL_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::SOL_IP, libc::IP_TRANSPARENT) };
    let on: i32 = 1;
    // SAFETY: `on` is valid for reads of its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&on).cast(),
            std::mem::size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Run *work* with this thread in *namespace*, then return. *work* must not wait.
///
/// # Panics
/// The thread cannot return to its own namespace: it would go on to open sockets in a stranger's network.
fn inside<T>(namespace: Option<&Path>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(path) = namespace else { return work() };
    let home = File::open("/proc/thread-self/ns/net")?;
    let other = File::open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("network namespace {}: {error}", path.display())))?;
    enter(&other).map_err(|error| io::Error::new(error.kind(), format!("cannot enter {}: {error}", path.display())))?;
    let result = work();
    if let Err(error) = enter(&home) {
        panic!("cannot return from network namespace {}: {error}", path.display());
    }
    result
}

fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; no pointers are involved.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_named_and_never_a_file() {
        assert!(is_host(Path::new("/run/user/1000/weft/demo/ns/host")));
        assert!(!is_host(Path::new("/run/user/1000/weft/demo/ns/ghost")));
        assert!(!is_host(Path::new("/run/host")));
    }

    #[test]
    fn a_missing_namespace_is_an_error_that_names_it() {
        let error = stream_socket(libc::AF_INET, Some(Path::new("/nonexistent/ns"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ns"), "{error}");
    }
}
