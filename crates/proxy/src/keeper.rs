//! Listening sockets that outlive this process: whoever started it keeps duplicates and gives them to the next one
//! (`docs/reference/interfaces.md`, 4.5a). Connections that come while no proxy runs wait in the kernel's queue.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::descriptors::{self, Received};
use crate::logging;
use crate::plan::SocketKey;

#[derive(Serialize, Deserialize)]
struct Key {
    address: SocketAddr,
    namespace: Option<PathBuf>,
    transparent: bool,
}

/// One message, either way, on a socket that keeps their borders. A socket of each worker travels alone.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Message {
    /// Keep the socket that comes with this; or, to us, it was kept.
    Keep(Key),
    /// Close all that is kept under this key.
    Forget(Key),
    /// To us: that was all.
    End,
}

/// The channel to the keeper, and what it kept for us.
pub struct Keeper {
    channel: OwnedFd,
    kept: HashMap<SocketKey, Vec<OwnedFd>>,
}

impl Keeper {
    /// Take over the channel that was inherited as *descriptor*, and all that the last process left.
    ///
    /// # Errors
    /// It is not open, or something else than a keeper is at its other end.
    pub fn inherit(descriptor: RawFd) -> io::Result<Keeper> {
        // SAFETY: no pointers are involved.
        if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, as the call above shows, and it was given to this process to own.
        let channel = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let mut kept: HashMap<SocketKey, Vec<OwnedFd>> = HashMap::new();
        loop {
            let mut received = Received::default();
            received.receive(channel.as_raw_fd())?;
            match serde_json::from_slice(&received.text)? {
                Message::Keep(key) => kept.entry(key.into()).or_default().extend(received.descriptors),
                Message::Forget(_) => {}
                Message::End => return Ok(Keeper { channel, kept }),
            }
        }
    }

    /// The sockets that are kept for *key*, if they are *count*; others are of no use any more.
    pub fn take(&mut self, key: &SocketKey, count: usize) -> Option<Vec<OwnedFd>> {
        let sockets = self.kept.remove(key)?;
        if sockets.len() == count {
            return Some(sockets);
        }
        self.forget(key);
        None
    }

    /// Have *sockets* kept.
    pub fn keep(&self, key: &SocketKey, sockets: &[OwnedFd]) {
        for socket in sockets {
            self.tell(&Message::Keep(key.into()), Some(socket));
        }
    }

    /// Have those of *key* closed: nobody will accept there any more.
    pub fn forget(&self, key: &SocketKey) {
        self.tell(&Message::Forget(key.into()), None);
    }

    /// Have closed what was kept and nobody has taken.
    pub fn forget_rest(&mut self) {
        for key in std::mem::take(&mut self.kept).into_keys() {
            self.forget(&key);
        }
    }

    /// Best effort: what is not kept is opened anew by the next process, as without a keeper.
    fn tell(&self, message: &Message, socket: Option<&OwnedFd>) {
        let told = serde_json::to_vec(message).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            descriptors::send(self.channel.as_fd(), &line, socket.map(AsFd::as_fd))
        });
        if let Err(error) = told {
            log::warn!(target: logging::LISTENER, "listening sockets are not kept: {error}");
        }
    }
}

impl From<Key> for SocketKey {
    fn from(key: Key) -> SocketKey {
        let namespace = key.namespace.map(Arc::<Path>::from);
        SocketKey { address: key.address, namespace, transparent: key.transparent }
    }
}

impl From<&SocketKey> for Key {
    fn from(key: &SocketKey) -> Key {
        Key {
            address: key.address,
            namespace: key.namespace.as_deref().map(Path::to_path_buf),
            transparent: key.transparent,
        }
    }
}
