//! Access records on their way from the proxies to the control plane: Envoy's access log service
//! (`envoy.service.accesslog.v3`), both ends of it, and where the records are kept.
//!
//! [`client`] is the proxy's end, [`server`] the control plane's; [`store`] keeps what came, within limits. A record is
//! carried and kept as the bytes of its message; only what finds it again is read here.

pub mod client;
mod entries;
pub mod server;
pub mod store;

/// The one method of the service.
pub(crate) const PATH: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

/// `log_name` of the records that listeners write: one for each connection, so only those that failed are kept.
pub const CONNECTIONS: &str = "connections";

/// Which of the two shapes a record has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `envoy.data.accesslog.v3.HTTPAccessLogEntry`
    Http,
    /// `envoy.data.accesslog.v3.TCPAccessLogEntry`
    Tcp,
}

impl Kind {
    /// The field of `StreamAccessLogsMessage` that holds records of this shape.
    pub(crate) fn field(self) -> u32 {
        match self {
            Kind::Http => 2,
            Kind::Tcp => 3,
        }
    }
}
