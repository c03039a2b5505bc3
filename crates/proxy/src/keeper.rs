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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::IntoRawFd;

    use serde_json::{Value, json};
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn channel() -> (Socket, Socket) {
        Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap()
    }

    fn listening() -> (TcpListener, SocketKey) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let key = SocketKey { address: listener.local_addr().unwrap(), namespace: None, transparent: false };
        (listener, key)
    }

    fn line_of(key: &SocketKey) -> Value {
        json!({"keep": {"address": key.address.to_string(), "namespace": null, "transparent": false}})
    }

    fn say(keeper: &Socket, line: &Value, socket: Option<&TcpListener>) {
        descriptors::send(keeper.as_fd(), format!("{line}\n").as_bytes(), socket.map(AsFd::as_fd)).unwrap();
    }

    /// The next line to the keeper, and where the socket listens that came with it.
    fn heard(keeper: &Socket) -> (Value, Option<SocketAddr>) {
        let mut received = Received::default();
        assert!(received.receive(keeper.as_raw_fd()).unwrap());
        let address = received.descriptors.pop().map(|socket| TcpListener::from(socket).local_addr().unwrap());
        assert!(received.descriptors.is_empty());
        (serde_json::from_slice(&received.text).unwrap(), address)
    }

    #[test]
    fn sockets_come_from_the_keeper_and_go_to_it() {
        let (keepers, ours) = channel();
        let [(first, first_key), (second, second_key), (third, third_key)] = [listening(), listening(), listening()];
        for socket in [&first, &first] {
            say(&keepers, &line_of(&first_key), Some(socket));
        }
        say(&keepers, &line_of(&second_key), Some(&second));
        say(&keepers, &line_of(&third_key), Some(&third));
        say(&keepers, &json!("end"), None);

        let mut keeper = Keeper::inherit(ours.into_raw_fd()).unwrap();
        let sockets = keeper.take(&first_key, 2).unwrap();
        let addresses = sockets.into_iter().map(|socket| TcpListener::from(socket).local_addr().unwrap());
        assert_eq!(addresses.collect::<Vec<_>>(), [first_key.address; 2]);
        assert!(keeper.take(&first_key, 2).is_none(), "it is ours now");

        let forgotten = |key: &SocketKey| json!({"forget": line_of(key)["keep"]});
        assert!(keeper.take(&second_key, 2).is_none(), "one is kept, for another number of workers");
        assert_eq!(heard(&keepers), (forgotten(&second_key), None));
        keeper.forget_rest();
        assert_eq!(heard(&keepers), (forgotten(&third_key), None));

        let (own, own_key) = listening();
        keeper.keep(&own_key, &[own.into()]);
        assert_eq!(heard(&keepers), (line_of(&own_key), Some(own_key.address)));
    }

    #[test]
    fn what_is_no_keeper_is_told() {
        assert!(Keeper::inherit(-1).is_err(), "nothing is open there");
        let (keepers, ours) = channel();
        drop(keepers);
        assert!(Keeper::inherit(ours.into_raw_fd()).is_err(), "it ends before it has said all");
        let (keepers, ours) = channel();
        say(&keepers, &json!({"hold": 1}), None);
        assert!(Keeper::inherit(ours.into_raw_fd()).is_err(), "it says something else");
    }
}
