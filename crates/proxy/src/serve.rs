//! The line that every connection walks, from the socket to the filter that carries its bytes:
//!
//!     accept -> identify -> detect, then `http/`, `tcp.rs` or `rpc/`
//!
//! One line serves outbound, inbound and gateway connections: what tells them apart is configuration.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;
use weft_core::listener::{Direction, Listener, NetworkFilter};
use weft_core::respond::{Cause, ResponseFlag};

use crate::alarm::Alarm;
use crate::buffer::Buffer;
use crate::codec::Head;
use crate::detect::{self, DetectError, Detected};
use crate::forward::Replay;
use crate::identify::{self, Facts};
use crate::io::{self as sockets, Io};
use crate::plan::{ChainContext, SocketKey, WorkerPlan, address_of};
use crate::rbac::Standings;
use crate::record::{Entry, Outcome, Subject};
use crate::worker::{Accepted, Worker};
use crate::{caller, http, logging, rpc, tcp};

/// Scratch memory above which it is not kept for the next request.
const KEPT_BYTES: usize = 64 * 1024;

/// Memory of one request, lent by the worker.
#[derive(Default)]
pub struct Scratch {
    pub request: Head,
    pub response: Head,
    /// On its way upstream.
    pub to_upstream: Vec<u8>,
    /// On its way downstream.
    pub to_downstream: Vec<u8>,
    pub replay: Replay,
}

impl Scratch {
    /// Forget the request; false if so much memory was needed that it should go back to the system.
    pub fn tidy(&mut self) -> bool {
        self.request.clear();
        self.response.clear();
        self.to_upstream.clear();
        self.to_downstream.clear();
        self.replay.reset(0);
        let kept = self.request.capacity_bytes()
            + self.response.capacity_bytes()
            + self.to_upstream.capacity()
            + self.to_downstream.capacity()
            + self.replay.bytes.capacity();
        kept <= KEPT_BYTES
    }
}

/// What is known about an accepted connection once its filter chain is; every request on it shares this.
pub struct Downstream {
    pub worker: Rc<Worker>,
    pub context: Arc<ChainContext>,
    /// In a box: the compiler gives every function that they pass through room of its own in the connection's task.
    pub facts: Box<Facts>,
    pub direction: Direction,
    /// Bytes that the listener lets wait for each connection and direction; 0: no limit.
    pub buffer_limit: u32,
    /// What RBAC rules leave open for the requests.
    pub standings: Standings,
    /// Only the program beside this proxy may call, and nothing but its user was asked so far.
    pub program_only: bool,
}

/// The connection itself.
pub struct Socket {
    pub io: Io,
    /// Bytes that came and were not used yet.
    pub buffer: Buffer,
    pub alarm: Alarm,
}

/// Serve one accepted connection to its end; *plan* is what was in force when it was accepted, and *_counted* counts it until then.
pub async fn serve(worker: Rc<Worker>, plan: Rc<WorkerPlan>, key: Rc<SocketKey>, socket: OwnedFd, _counted: Accepted) {
    use std::os::fd::AsRawFd;
    // accept
    sockets::set_no_delay(socket.as_raw_fd());
    let began = Instant::now();
    // identify
    let Some(capturing) = plan.active.sockets.get(&*key) else { return };
    let Some((mut ends, here)) = identify::identify(&socket, capturing) else { return };
    log::debug!(target: logging::LISTENER, "{} accepts {} for {}", capturing.name, ends.remote, ends.local);
    let Ok(io) = Io::new(socket) else { return };
    let Some(_admission) = worker.overload.admit(capturing.ignore_global_limit) else {
        io.reset_on_close();
        let facts = Facts::plain(ends, ends.remote);
        return refused(&worker, &plan, capturing, &facts, began, &DetectError::GlobalLimit);
    };
    let mut socket = Socket { io, buffer: Buffer::limited(capturing.buffer_limit_bytes), alarm: Alarm::default() };
    let own = ends;
    if let Some(expected) = &capturing.proxy_protocol {
        let hearing = Box::pin(detect::hear(&mut socket, capturing, expected, own));
        ends = match hearing.await {
            Ok(ends) => ends,
            Err(error) => return refused(&worker, &plan, capturing, &Facts::plain(own, own.remote), began, &error),
        };
    }
    // TPROXY leaves what was caught at the address that was dialled; every other way of catching tells another one than the socket's.
    let mut original = (capturing.transparent || ends.local != here).then_some(ends.local);
    let mut listener = Arc::clone(plan.active.core.listener_for(capturing, ends.local));
    socket.buffer.set_limit(listener.buffer_limit_bytes);
    let foreign = listener.caller_uids.as_ref().is_some_and(|uids| !caller::is_one_of(uids, &own));
    let mut program_only = listener.caller_uids.is_some();
    let mut plan = plan;
    loop {
        // detect
        let mut facts = Box::new(Facts { foreign, original, ..Facts::plain(ends, own.remote) });
        // In a box, as everything whose state is kilobytes (a handshake, a request, a tunnel): an idle connection is to keep none of it.
        let detecting = Box::pin(detect::detect(&worker, &mut socket, &plan, &listener, ends, &mut facts));
        let Detected { context, early, _place } = match detecting.await {
            Ok(detected) => detected,
            Err(error) => {
                refused(&worker, &plan, &listener, &facts, began, &error);
                if matches!(error, DetectError::Caller { .. }) {
                    socket.io.reset_on_close();
                }
                if let DetectError::Limit { delay: Some(delay) } | DetectError::Denied { delay: Some(delay), .. } =
                    error
                {
                    tokio::time::sleep(delay).await;
                }
                return;
            }
        };
        log::debug!(
            target: logging::LISTENER,
            "{} has filter chain {:?} of {}; TLS: {}, server name {:?}, identity {:?}",
            facts.remote, context.chain.name, listener.name, facts.secure, facts.server_name, facts.peer_uri
        );
        let (direction, buffer_limit) = (listener.direction, listener.buffer_limit_bytes);
        drop(plan);
        let chain = Arc::clone(&context.chain);
        let standings = Standings::default();
        let downstream =
            Downstream { worker: Rc::clone(&worker), context, facts, direction, buffer_limit, standings, program_only };
        let after = match &chain.filter {
            NetworkFilter::Http(manager) => http::serve(downstream, &mut socket, manager).await,
            NetworkFilter::Tcp(proxy) => return Box::pin(tcp::serve(downstream, socket, proxy, early)).await,
            NetworkFilter::Rpc(proxy) => return Box::pin(rpc::serve(downstream, socket, proxy)).await,
        };
        // A tunnel: what comes now is a connection of its own, to somewhere else.
        let Some(onward) = after else { return };
        plan = worker.plan();
        listener = onward.listener;
        ends.local = onward.destination;
        original = (!listener.bind_to_port).then_some(onward.destination);
        // Whoever opened it has shown the program's credential.
        program_only = false;
    }
}

/// No filter will see this connection: count it, and record it as the listener says.
fn refused(
    worker: &Worker,
    plan: &WorkerPlan,
    listener: &Arc<Listener>,
    facts: &Facts,
    began: Instant,
    error: &DetectError,
) {
    count_refused(worker, error);
    let component = match error {
        DetectError::Plaintext | DetectError::Handshake(_) | DetectError::HandshakeTimeout => logging::TLS,
        _ => logging::LISTENER,
    };
    log::debug!(target: component, "{} refuses {} for {}: {error}", listener.name, facts.remote, facts.local);
    let of_listener = plan.active.connection_logs.get(&address_of(listener));
    // Of bytes there is a record whatever became of them; of HTTP only if something was asked.
    let of_chain = match error {
        DetectError::Denied { chain, .. } | DetectError::Caller { chain }
            if matches!(chain.filter, NetworkFilter::Tcp(_)) =>
        {
            plan.chain(chain)
        }
        _ => None,
    };
    if of_listener.is_none() && of_chain.is_none() {
        return;
    }
    let mut outcome = Outcome { duration: began.elapsed(), ..Outcome::default() };
    match error {
        DetectError::NoChain => outcome.end(Cause::FilterChainNotFound),
        DetectError::GlobalLimit => outcome.end(Cause::GlobalConnectionLimit),
        DetectError::Limit { .. } => outcome.end(Cause::ConnectionLimit),
        DetectError::Caller { .. } => outcome.end(Cause::CallerRefused),
        DetectError::Header(_) | DetectError::Plaintext | DetectError::Handshake(_) | DetectError::HandshakeTimeout => {
            outcome.downstream_failure = Some(error.to_string());
        }
        DetectError::LongLine => {
            outcome.flag(ResponseFlag::DownstreamProtocolError);
            outcome.termination = Some(error.to_string().into());
        }
        DetectError::Denied { details, .. } => outcome.termination = Some(details.clone().into()),
        // It never said what it wanted.
        DetectError::Silent | DetectError::Gone => return,
    }
    let entry = Entry {
        subject: Subject::Connection,
        clock: &worker.clock,
        start: worker.clock.wall(began),
        facts,
        outcome: &outcome,
        request: None,
        version: None,
        response: None,
        chain_name: match error {
            DetectError::Denied { chain, .. } | DetectError::Caller { chain } => &chain.name,
            _ => "",
        },
    };
    let logs = [of_listener.map(|logs| &**logs), of_chain.map(|context| &*context.logs)];
    for logs in logs.into_iter().flatten() {
        worker.record(logs, &entry);
    }
}

fn count_refused(worker: &Worker, error: &DetectError) {
    let counters = worker.metrics.counters();
    match error {
        DetectError::NoChain => counters.no_filter_chain.add(1),
        DetectError::GlobalLimit => counters.global_limit_refused.add(1),
        DetectError::Limit { .. } => counters.connection_limit_refused.add(1),
        DetectError::Header(_) => counters.proxy_protocol_refused.add(1),
        DetectError::LongLine => counters.protocol_errors.add(1),
        DetectError::Plaintext => counters.plaintext_refused.add(1),
        DetectError::Handshake(_) | DetectError::HandshakeTimeout => counters.handshake_failures.add(1),
        DetectError::Caller { .. } => counters.callers_refused.add(1),
        // Whoever refused it has counted it.
        DetectError::Denied { .. } => {}
        DetectError::Silent | DetectError::Gone => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tokio puts around a task of a worker: its header, its id, its scheduler, its place among the others and who waits for it.
    const TOKIO_BYTES: usize = 104;

    fn size_of_future<A, B, C, D, E, F: Future>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// Tokio aligns tasks to 128 bytes. For blocks of 1,024 mimalloc does that for nothing, and to a larger one it adds those bytes, so that
    /// the next size of its is 1,536.
    #[test]
    fn a_connection_is_a_task_of_a_kilobyte() {
        let bytes = size_of_future(serve) + TOKIO_BYTES;
        assert!(bytes <= 1024, "{bytes}: what is it that an idle connection keeps, or is handed over by value?");
    }
}
