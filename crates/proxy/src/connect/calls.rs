//! Ways to endpoints for calls of RPC protocols: over a connection that calls share, or one that is lent to each.

use std::rc::Rc;
use std::sync::Arc;

use crate::codec::rpc::{Codec, Sharing};
use crate::identify::Ends;
use crate::plan::WorkerUpstream;
use crate::rpc::session::{self, Session};

use super::shared::Making;
use super::{ConnectError, Connection, Destination, Offer, Standing, connect};

/// A way to an endpoint.
pub enum CallWay {
    /// For one call at a time.
    Own(Box<Connection>),
    /// For many; *made*: it was made for this one.
    Shared { session: Rc<Session>, made: bool },
}

/// Get a way to *destination* for a call. *ends* are the caller's, for endpoints that want to be told.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect_call(
    upstream: &Rc<WorkerUpstream>,
    destination: &Destination,
    ends: Ends,
    standing: &Standing,
    codec: &Arc<dyn Codec>,
) -> Result<CallWay, ConnectError> {
    let Sharing::Many { set_id } = codec.sharing() else {
        return connect(upstream, destination, ends, standing, false, Offer::All).await.map(CallWay::Own);
    };
    let cluster = &upstream.shared.cluster;
    let key = destination.key(destination.transport(cluster), ends);
    let making = loop {
        let known = upstream.pool.calls.borrow_mut().get_mut(&key).and_then(|sessions| {
            sessions.retain(|session| !session.is_worn());
            sessions.last().cloned()
        });
        if let Some(session) = known {
            return Ok(CallWay::Shared { session, made: false });
        }
        let other = upstream.pool.making.borrow().get(&key).cloned();
        match other {
            None => break Making::begin(Rc::clone(&upstream.pool), key),
            Some(made) => {
                made.done.notified().await;
                if let Some(error) = made.error.borrow().as_ref() {
                    return Err(error.again());
                }
            }
        }
    };
    // Where all connections that the cluster may have are taken, none may ever be given back: sessions do not end by themselves while
    // they are used. Who waits for one is told after the time that connecting may take.
    let connecting = connect(upstream, destination, ends, standing, true, Offer::All);
    let connection = tokio::time::timeout(cluster.connect_timeout.saturating_mul(2), connecting).await;
    let connection = match connection.unwrap_or(Err(ConnectError::Overflow)) {
        Ok(connection) => connection,
        Err(error) => {
            making.fail(&error);
            return Err(error);
        }
    };
    let session = session::begin(codec, set_id, connection, cluster);
    upstream.pool.calls.borrow_mut().entry(key).or_default().push(Rc::clone(&session));
    drop(making);
    Ok(CallWay::Shared { session, made: true })
}
