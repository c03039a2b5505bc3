//! Listening sockets: opened by the main thread, one for each worker, and handed out once there is something to serve on them.
//!
//! A socket listens from the moment its listener is accepted, so that a port that is taken is told with the NACK. Connections that
//! come while the listener is still warming wait in the kernel's queue instead of being refused.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use weft_core::listener::Listener;

use crate::edge::{self, Edge};
use crate::keeper::Keeper;
use crate::netns::{self, ListenOptions};
use crate::plan::SocketKey;

/// The sockets that *listener* needs; none if another listener hands its connections over.
pub fn keys(listener: &Listener) -> impl Iterator<Item = SocketKey> {
    listener.addresses.iter().filter(|_| listener.bind_to_port).map(|bind| SocketKey {
        address: bind.address,
        namespace: bind.namespace.clone(),
        transparent: listener.transparent,
    })
}

/// All sockets of the process.
pub struct Sockets {
    workers: usize,
    edge: Option<Edge>,
    keeper: Option<Keeper>,
    open: HashMap<SocketKey, State>,
}

enum State {
    /// One socket for each worker, not yet given to them.
    Held(Vec<OwnedFd>),
    Given,
}

impl Sockets {
    pub fn new(workers: usize, edge: Option<Edge>, keeper: Option<Keeper>) -> Sockets {
        Sockets { workers, edge, keeper, open: HashMap::new() }
    }

    /// Open what *listener* needs and is not open yet: all of it or nothing.
    ///
    /// # Errors
    /// As the system reports; the address is in the message.
    pub fn open(&mut self, listener: &Listener) -> io::Result<()> {
        // Unset and too large mean the same to the kernel: `net.core.somaxconn`.
        let backlog = listener.backlog.and_then(|length| i32::try_from(length).ok()).unwrap_or(i32::MAX);
        let options = ListenOptions { transparent: listener.transparent, freebind: listener.freebind, backlog };
        let mut opened = Vec::new();
        for key in keys(listener) {
            if !self.open.contains_key(&key) {
                let kept = self.keeper.as_mut().and_then(|keeper| keeper.take(&key, self.workers));
                let is_new = kept.is_none();
                let sockets = match kept {
                    Some(sockets) => sockets,
                    None => open(&key, &options, self.edge.as_ref(), self.workers)?,
                };
                opened.push((key, sockets, is_new));
            }
        }
        if let Some(keeper) = &self.keeper {
            for (key, sockets, _) in opened.iter().filter(|(_, _, is_new)| *is_new) {
                keeper.keep(key, sockets);
            }
        }
        self.open.extend(opened.into_iter().map(|(key, sockets, _)| (key, State::Held(sockets))));
        Ok(())
    }

    /// Return what of *active* the workers do not have yet, one descriptor for each in their order; close what neither
    /// *active* nor *accepted* names. What the workers have and *active* does not name, they close by their plan.
    pub fn hand_out(
        &mut self,
        active: &HashSet<SocketKey>,
        accepted: &HashSet<SocketKey>,
    ) -> Vec<(SocketKey, Vec<OwnedFd>)> {
        let mut given = Vec::new();
        let edge = self.edge.as_ref();
        if let (false, Some(keeper)) = (active.is_empty(), &mut self.keeper) {
            // What the last configuration listened on, and this one does not.
            keeper.forget_rest();
        }
        let keeper = self.keeper.as_ref();
        self.open.retain(|key, state| {
            if active.contains(key) {
                if let State::Held(sockets) = std::mem::replace(state, State::Given) {
                    given.push((key.clone(), sockets));
                }
                return true;
            }
            match state {
                State::Held(_) if accepted.contains(key) => true,
                State::Held(_) => {
                    if let Some(keeper) = keeper {
                        keeper.forget(key);
                    }
                    false
                }
                // A listener that moves away and back again opens a new socket; the workers have closed this one.
                State::Given => {
                    if let Some(keeper) = keeper {
                        keeper.forget(key);
                    }
                    if let (true, Some(edge)) = (is_on_host(key), edge) {
                        edge.release(key.address);
                    }
                    false
                }
            }
        });
        given
    }

    /// Close what was not given to workers, and have none kept: nobody will accept there any more.
    pub fn close_held(&mut self) {
        if let Some(keeper) = &self.keeper {
            self.open.keys().for_each(|key| keeper.forget(key));
        }
        self.open.retain(|_, state| matches!(state, State::Given));
    }

    /// Leave all to the process that accepts from now on: the keeper and the edge keep for it what they have.
    pub fn leave(&mut self) {
        self.keeper = None;
        self.edge = None;
        self.close_held();
    }

    /// How many addresses are listened on.
    pub fn len(&self) -> usize {
        self.open.len()
    }
}

fn is_on_host(key: &SocketKey) -> bool {
    key.namespace.as_deref().is_some_and(netns::is_host)
}

fn open(key: &SocketKey, options: &ListenOptions, edge: Option<&Edge>, workers: usize) -> io::Result<Vec<OwnedFd>> {
    if let Some(namespace) = key.namespace.as_deref().filter(|path| netns::is_host(path)) {
        let first = edge::listen(edge, key.address, namespace).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {} of the host: {error}", key.address))
        })?;
        let mut sockets: Vec<OwnedFd> =
            (1..workers).map(|_| first.as_fd().try_clone_to_owned()).collect::<io::Result<_>>()?;
        sockets.push(first);
        return Ok(sockets);
    }
    let namespace = key.namespace.as_deref();
    let first = netns::listen(key.address, namespace, options)?;
    // Port 0 is the kernel's choice for the first; the others share it.
    let mut address = key.address;
    if let Some(bound) = socket2::SockRef::from(&first).local_addr()?.as_socket() {
        address.set_port(bound.port());
    }
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(netns::listen(address, namespace, options)?);
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::compile::Strictness;
    use weft_protos::envoy::config::core::v3 as core;
    use weft_protos::envoy::config::listener::v3 as proto;

    fn listener(addresses: &[&str], bind: bool) -> Listener {
        let address = |text: &&str| {
            let (host, port) = text.rsplit_once(':').unwrap();
            core::Address {
                address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                    address: host.into(),
                    port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.parse().unwrap())),
                    ..Default::default()
                })),
            }
        };
        let listener = proto::Listener {
            name: "l".into(),
            address: addresses.first().map(address),
            additional_addresses: addresses[1..]
                .iter()
                .map(|text| proto::AdditionalAddress { address: Some(address(text)), ..Default::default() })
                .collect(),
            bind_to_port: (!bind).then_some(weft_protos::google::protobuf::BoolValue { value: false }),
            ..Default::default()
        };
        Listener::compile(&listener, Strictness::Collect).unwrap().value
    }

    fn key_set(listener: &Listener) -> HashSet<SocketKey> {
        keys(listener).collect()
    }

    #[test]
    fn a_listener_without_a_port_of_its_own_needs_no_socket() {
        assert_eq!(keys(&listener(&["127.0.0.1:80"], false)).count(), 0);
        assert_eq!(keys(&listener(&["127.0.0.1:80", "127.0.0.2:80"], true)).count(), 2);
    }

    #[test]
    fn sockets_are_given_once_and_closed_when_nobody_names_them() {
        let one = listener(&["127.0.0.1:0"], true);
        let mut sockets = Sockets::new(3, None, None);
        sockets.open(&one).unwrap();
        let nothing = HashSet::new();
        let warming = sockets.hand_out(&nothing, &key_set(&one));
        assert!(warming.is_empty());
        let first = sockets.hand_out(&key_set(&one), &key_set(&one));
        let ports: HashSet<_> = first[0]
            .1
            .iter()
            .map(|socket| socket2::SockRef::from(socket).local_addr().unwrap().as_socket().unwrap().port())
            .collect();
        assert_eq!((first[0].1.len(), ports.len()), (3, 1));
        sockets.open(&one).unwrap();
        let again = sockets.hand_out(&key_set(&one), &key_set(&one));
        assert!(again.is_empty());
        let gone = sockets.hand_out(&nothing, &nothing);
        assert_eq!((gone.len(), sockets.len()), (0, 0));
    }

    #[test]
    fn an_address_that_is_taken_is_named_and_nothing_stays_open() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let mut sockets = Sockets::new(1, None, None);
        let error = sockets.open(&listener(&["127.0.0.1:0", &address], true)).unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
        assert_eq!(sockets.len(), 0);
    }

    #[test]
    fn the_host_cannot_be_listened_on_without_an_edge() {
        let mut one = listener(&["127.0.0.1:80"], true);
        one.addresses[0].namespace = Some(std::path::Path::new("/run/demo/ns/host").into());
        let error = Sockets::new(1, None, None).open(&one).unwrap_err();
        assert!(error.to_string().contains("--edge-socket"), "{error}");
    }
}
