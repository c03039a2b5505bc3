//! Addresses as they stand in resources: an IP address and port, perhaps in another network namespace, or a Unix socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use weft_protos::envoy::config::core::v3 as proto;
use weft_protos::envoy::config::core::v3::address::Address as ProtoAddress;
use weft_protos::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};

use crate::compile::Context;

/// Where a socket is bound: an address in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BindAddress {
    /// Address and port; port 0 leaves the choice to the kernel.
    pub address: SocketAddr,
    /// Path of the network namespace (`network_namespace_filepath`); the process's own if absent.
    pub namespace: Option<Arc<Path>>,
}

/// Where an endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerAddress {
    /// TCP.
    Socket(SocketAddr),
    /// A Unix stream socket.
    Pipe(Arc<Path>),
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(out),
            Self::Pipe(path) => path.display().fmt(out),
        }
    }
}

/// A block of addresses: `10.244.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

impl Cidr {
    /// # Errors
    /// `length` is more than the address has bits.
    pub fn new(address: IpAddr, length: u32) -> Result<Self, String> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        match u8::try_from(length) {
            Ok(length) if u32::from(length) <= bits => Ok(Self { address: masked(address, length), length }),
            _ => Err(format!("a prefix of {length} bits is longer than {address} has")),
        }
    }

    /// Number of leading bits that must be equal.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether `address` lies in the block. IPv4-mapped IPv6 addresses are those of IPv4.
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.length) == self.address
    }

    pub(crate) fn compile(context: &mut Context, range: &proto::CidrRange) -> Option<Self> {
        let address = match range.address_prefix.parse() {
            Ok(address) => address,
            Err(_) => {
                context.refuse_at("address_prefix", format!("`{}` is not an IP address", range.address_prefix));
                return None;
            }
        };
        Self::new(address, range.prefix_len.as_ref().map_or(0, |length| length.value))
            .map_err(|reason| context.refuse_at("prefix_len", reason))
            .ok()
    }
}

/// *address* without what is beyond its first *length* bits, so that blocks are equal that hold the same addresses.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.length)
    }
}

pub(crate) fn compile_socket(context: &mut Context, address: &proto::SocketAddress) -> Option<BindAddress> {
    if address.protocol() != Protocol::Tcp {
        context.refuse_at("protocol", "weft-proxy speaks TCP only");
    }
    let port = port_of(context, address)?;
    match address.address.parse::<IpAddr>() {
        Ok(ip) => Some(BindAddress {
            address: SocketAddr::new(ip, port),
            namespace: (!address.network_namespace_filepath.is_empty())
                .then(|| Arc::from(Path::new(&address.network_namespace_filepath))),
        }),
        Err(_) => {
            context.refuse_at("address", format!("`{}` is not an IP address", address.address));
            None
        }
    }
}

/// The port, 0 where none is said.
pub(crate) fn port_of(context: &mut Context, address: &proto::SocketAddress) -> Option<u16> {
    let port = match address.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        None => Some(0),
        Some(PortSpecifier::NamedPort(_)) => None,
    };
    if port.is_none() {
        context.refuse_at("port_value", "not a port number of 0 to 65535");
    }
    port
}

pub(crate) fn compile_bind(context: &mut Context, address: Option<&proto::Address>) -> Option<BindAddress> {
    match address.and_then(|address| address.address.as_ref()) {
        Some(ProtoAddress::SocketAddress(socket)) => {
            context.at("socket_address", |context| compile_socket(context, socket))
        }
        Some(_) => {
            context.refuse("a listener needs a socket address");
            None
        }
        None => {
            context.refuse("no address");
            None
        }
    }
}

pub(crate) fn compile_peer(context: &mut Context, address: Option<&proto::Address>) -> Option<PeerAddress> {
    match address.and_then(|address| address.address.as_ref()) {
        Some(ProtoAddress::SocketAddress(socket)) => {
            let bind = context.at("socket_address", |context| compile_socket(context, socket))?;
            if bind.namespace.is_some() {
                context.refuse("an endpoint has no network namespace; the cluster's upstream_bind_config has");
            }
            Some(PeerAddress::Socket(bind.address))
        }
        Some(ProtoAddress::Pipe(pipe)) => Some(PeerAddress::Pipe(Arc::from(Path::new(&pipe.path)))),
        Some(ProtoAddress::EnvoyInternalAddress(_)) => {
            context.refuse("internal listeners are not supported");
            None
        }
        None => {
            context.refuse("no address");
            None
        }
    }
}
