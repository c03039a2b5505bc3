//! Descriptors that travel over Unix sockets beside a line of JSON (SCM_RIGHTS, unix(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The longest line; an error message is a line, not a page.
const LINE_BYTES: usize = 4096;

/// Send *bytes*, and *descriptor* with them, without waiting.
///
/// # Errors
/// As the system reports; EAGAIN if the peer does not keep up.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // Aligned for a cmsghdr, with room for one descriptor.
    let mut control = [MaybeUninit::<u64>::zeroed(); 4];
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if let Some(descriptor) = descriptor {
        const LENGTH: u32 = std::mem::size_of::<RawFd>() as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: these macros only calculate; 4 words hold one header and one descriptor.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(LENGTH) } as _;
        // SAFETY: the control buffer is zeroed, aligned and as long as `msg_controllen` says, so there is a first header in it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(LENGTH) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor.as_raw_fd());
        }
    }
    // SAFETY: all pointers in `message` are to live memory of the given lengths, which the kernel only reads.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A line as far as it has come, and the descriptors that came with it.
#[derive(Default)]
pub struct Received {
    pub text: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Received {
    /// Receive once; true when the line is whole.
    ///
    /// # Errors
    /// As the system reports, or the peer closed within a line.
    pub fn receive(&mut self, socket: RawFd) -> io::Result<bool> {
        let mut bytes = [0u8; 1024];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // Aligned for a cmsghdr, with room for a few descriptors so that none is cut off unseen.
        let mut control = [MaybeUninit::<u64>::uninit(); 16];
        // SAFETY: an all-zero msghdr is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = std::mem::size_of_val(&control) as _;
        // SAFETY: all pointers in `message` are to live local memory of the given lengths.
        let count = unsafe { libc::recvmsg(socket, &mut message, libc::MSG_CMSG_CLOEXEC) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        self.take_descriptors(&message);
        self.text.extend_from_slice(&bytes[..count as usize]);
        if self.text.ends_with(b"\n") {
            return Ok(true);
        }
        if count == 0 || self.text.len() > LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line was not finished"));
        }
        Ok(false)
    }

    fn take_descriptors(&mut self, message: &libc::msghdr) {
        // SAFETY: the kernel filled the control buffer of `message`, which is still alive; the macros stay inside it.
        // Each descriptor in an SCM_RIGHTS message is new and ours alone; who takes none closes them.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                    let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                    for index in 0..bytes / std::mem::size_of::<RawFd>() {
                        let descriptor = libc::CMSG_DATA(header).cast::<RawFd>().add(index).read_unaligned();
                        self.descriptors.push(OwnedFd::from_raw_fd(descriptor));
                    }
                }
                header = libc::CMSG_NXTHDR(message, header);
            }
        }
    }
}
