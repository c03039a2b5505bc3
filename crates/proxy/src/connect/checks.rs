//! Connections for health checks: of no pool, counted against no limit, and opened in nobody's name.

use weft_core::address::PeerAddress;
use weft_core::cluster::TransportSocket;

use crate::io::Io;
use crate::plan::Upstream;

use super::{ConnectError, Offer, Standing, open};

/// Open a connection to *address*, as the cluster's connections for requests are. Who calls limits how long it may take.
///
/// # Errors
/// [`ConnectError`], but never an overflow.
pub async fn connect_check(
    upstream: &Upstream,
    address: &PeerAddress,
    transport: &TransportSocket,
    standing: &Standing,
    offer: Offer<'_>,
) -> Result<Io, ConnectError> {
    open(upstream, address, transport, None, standing, offer).await
}
