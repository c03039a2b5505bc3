//! What a listener's inspectors see of a connection. The proxy asks this for live connections and the engine for
//! questions, so that both choose the same filter chain: TLS that no inspector looks for is not known to be TLS.

use std::net::{IpAddr, SocketAddr};

use super::{Connection, Inspector, Listener, Transport};

/// How a client begins to speak, whether or not somebody looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// With a ClientHello.
    Tls {
        /// SNI.
        server_name: Option<String>,
        /// ALPN, the client's first choice first.
        application_protocols: Vec<String>,
    },
    /// With a request line of this protocol (`http/1.1`), or HTTP/2's preface (`h2c`).
    Http(String),
}

/// What the inspectors found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// `Raw` also where nobody looked.
    pub transport: Transport,
    /// SNI.
    pub server_name: Option<String>,
    /// ALPN of the ClientHello, or HTTP's version.
    pub application_protocols: Vec<String>,
}

/// Which inspectors look at the first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspectors {
    tls: bool,
    http: bool,
}

impl Listener {
    /// The inspectors that run for connections to this (original) destination port.
    pub fn inspectors(&self, port: u16) -> Inspectors {
        let runs = |inspector: &Option<Inspector>| inspector.as_ref().is_some_and(|inspector| inspector.runs_on(port));
        Inspectors { tls: runs(&self.tls_inspector), http: runs(&self.http_inspector) }
    }
}

impl Inspectors {
    /// Nobody looks; the first bytes need not be waited for.
    pub fn are_absent(self) -> bool {
        !self.tls && !self.http
    }

    /// Whether a ClientHello is looked for. This comes first.
    pub fn look_for_tls(self) -> bool {
        self.tls
    }

    /// Whether HTTP is looked for, after what was `seen` already: not inside of TLS.
    pub fn look_for_http(self, seen: &Seen) -> bool {
        self.http && seen.transport == Transport::Raw
    }

    /// What they find in a connection that begins with `opening`.
    pub fn see(self, opening: &Opening) -> Seen {
        let mut seen = Seen::default();
        match opening {
            Opening::Tls { server_name, application_protocols } if self.look_for_tls() => {
                seen.learn_hello(server_name.as_deref(), application_protocols.clone());
            }
            Opening::Http(protocol) if self.look_for_http(&seen) => seen.application_protocols.push(protocol.clone()),
            Opening::Tls { .. } | Opening::Http(_) => {}
        }
        seen
    }
}

impl Seen {
    /// A ClientHello came.
    pub fn learn_hello(&mut self, server_name: Option<&str>, application_protocols: Vec<String>) {
        self.transport = Transport::Tls;
        self.server_name = server_name.map(str::to_ascii_lowercase);
        self.application_protocols = application_protocols;
    }

    /// Ask `choose` with the connection as it was seen. `direct_source` is the other end of the socket, whoever `source` is.
    pub fn with_connection<T>(
        &self,
        destination: SocketAddr,
        source: SocketAddr,
        direct_source: IpAddr,
        choose: impl FnOnce(&Connection<'_>) -> T,
    ) -> T {
        let protocols: Vec<&str> = self.application_protocols.iter().map(String::as_str).collect();
        choose(&Connection {
            destination,
            source,
            direct_source,
            transport: self.transport,
            server_name: self.server_name.as_deref(),
            application_protocols: &protocols,
        })
    }
}
