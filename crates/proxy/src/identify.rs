//! Who is on the other end of a connection, and where it wanted to go.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use rustls_pki_types::CertificateDer;
use weft_core::listener::Listener;
use weft_core::rbac::{Connection, Names};
use weft_core::request::Scheme;

use crate::io::{self as sockets, Io};
use crate::rbac::Shadow;
use crate::tls::{san, subject};
use std::os::fd::AsRawFd;

/// The two ends of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The client.
    pub remote: SocketAddr,
    /// Where it wanted to go.
    pub local: SocketAddr,
}

/// Ask the kernel for the two ends, and for where the socket itself is; `None` if the client is gone already. *listener* is the one whose
/// socket accepted the connection.
///
/// There are two ways of interception. TPROXY, for which a listener is transparent, keeps the original destination as the socket's own
/// address. REDIRECT, of iptables and nftables, writes the proxy's address over it, and connection tracking remembers what was there.
pub fn identify(socket: &impl AsRawFd, listener: &Listener) -> Option<(Ends, SocketAddr)> {
    let descriptor = socket.as_raw_fd();
    let own = sockets::local_address(descriptor)?;
    let redirected = if listener.original_dst && !listener.transparent {
        sockets::redirected_address(descriptor, own.is_ipv4())
    } else {
        None
    };
    Some((Ends { remote: sockets::peer_address(descriptor)?, local: redirected.unwrap_or(own) }, own))
}

/// Read the leaf that the other end of a TLS connection showed; `None` if it showed none.
pub fn read_peer_leaf<T>(io: &Io, read: impl FnOnce(&CertificateDer<'_>) -> T) -> Option<T> {
    io.with_session(|session| session.peer_certificates().first().map(read)).flatten()
}

/// The identity in a certificate: its first URI.
pub fn principal(leaf: &CertificateDer<'_>) -> Option<Box<str>> {
    san::names(leaf).uris.into_iter().next().map(Into::into)
}

/// A number for an identity, to tell metrics apart; 0 for none.
pub fn principal_key(principal: Option<&str>) -> u64 {
    principal.map_or(0, |uri| {
        let mut hasher = DefaultHasher::new();
        uri.hash(&mut hasher);
        hasher.finish()
    })
}

/// What is known of a connection once it was identified and detected. Texts that every record needs are made once.
#[derive(Debug)]
pub struct Facts {
    pub remote: SocketAddr,
    pub local: SocketAddr,
    /// The other end of the socket itself, where a proxy speaks for the client (PROXY protocol). In a box, because hardly any does.
    pub proxied_by: Option<Box<SocketAddr>>,
    /// Where the client wanted to go, if not to the proxy itself: what it calls by the proxy's own address leads nowhere else.
    pub original: Option<SocketAddr>,
    pub remote_text: Box<str>,
    pub local_text: Box<str>,
    pub secure: bool,
    /// The caller may not call this listener.
    pub foreign: bool,
    /// SNI.
    pub server_name: Option<Box<str>>,
    /// The first URI of the client's verified certificate: its SPIFFE ID.
    pub peer_uri: Option<Box<str>>,
    pub local_uri: Option<Box<str>>,
    /// The client showed a certificate.
    pub mutual: bool,
    /// A number for the peer's identity, to tell metrics apart; 0 without one.
    pub peer_key: u64,
    /// All names of the client's certificate, where rules may ask for them.
    pub names: Option<Box<Names>>,
    /// What shadow rules of network filters say about the connection.
    pub shadows: Vec<Shadow>,
    /// What `x-forwarded-client-cert` says about the client on each of its requests, if anything; see `filter::client_certificate`.
    pub client_certificate: Box<str>,
}

impl Facts {
    pub fn plain(ends: Ends, direct: SocketAddr) -> Facts {
        Facts {
            remote: ends.remote,
            local: ends.local,
            proxied_by: (direct != ends.remote).then(|| Box::new(direct)),
            original: None,
            remote_text: ends.remote.to_string().into(),
            local_text: ends.local.to_string().into(),
            secure: false,
            foreign: false,
            server_name: None,
            peer_uri: None,
            local_uri: None,
            mutual: false,
            peer_key: 0,
            names: None,
            shadows: Vec::new(),
            client_certificate: Box::default(),
        }
    }

    /// Add what the TLS handshake told.
    pub fn learn_from_handshake(&mut self, io: &Io, local_uri: Option<&str>) {
        self.secure = true;
        self.local_uri = local_uri.map(Into::into);
        if let Some(uri) = read_peer_leaf(io, principal) {
            self.mutual = true;
            self.peer_uri = uri;
            self.peer_key = principal_key(self.peer_uri.as_deref());
        }
    }

    /// Read all names from the client's certificate; there are none if it showed none.
    pub fn learn_names(&mut self, io: &Io) {
        let names = read_peer_leaf(io, |leaf| {
            let alternative = san::names(leaf);
            let boxed = |names: Vec<String>| names.into_iter().map(Into::into).collect();
            Names { uris: boxed(alternative.uris), dns: boxed(alternative.dns), subject: subject::subject(leaf).into() }
        });
        self.names = Some(Box::new(names.unwrap_or_default()));
    }

    /// What RBAC rules may ask.
    pub fn connection(&self) -> Connection<'_> {
        Connection {
            source: self.remote.ip(),
            direct: self.direct().ip(),
            destination: self.local,
            server_name: self.server_name.as_deref(),
            names: self.names.as_deref(),
        }
    }

    /// What of it a copy of a request needs, which may outlive the connection.
    pub fn for_copy(&self) -> Facts {
        Facts {
            remote_text: self.remote_text.clone(),
            local_text: self.local_text.clone(),
            proxied_by: self.proxied_by.clone(),
            server_name: self.server_name.clone(),
            peer_uri: self.peer_uri.clone(),
            local_uri: self.local_uri.clone(),
            // Rules have been asked already.
            names: None,
            shadows: Vec::new(),
            client_certificate: Box::default(),
            ..*self
        }
    }

    /// The other end of the socket itself: not the client, where a proxy speaks for one (PROXY protocol).
    pub fn direct(&self) -> SocketAddr {
        self.proxied_by.as_deref().copied().unwrap_or(self.remote)
    }

    pub fn ends(&self) -> Ends {
        Ends { remote: self.remote, local: self.local }
    }

    /// How the connection is made; of a request, [`Head::scheme`] says what its client has asked for.
    pub fn scheme(&self) -> Scheme {
        Scheme::of(self.secure)
    }
}
