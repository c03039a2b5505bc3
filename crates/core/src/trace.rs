//! What a decision says about the things it looked at. The proxy's trace is [`Silent`] and costs nothing.

use crate::listener::FilterChain;
use crate::route::{Route, VirtualHost};
use crate::rpc;

/// Something that was compared with the request or connection.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A filter chain of a listener.
    FilterChain(&'a FilterChain),
    /// A virtual host of a route configuration.
    VirtualHost(&'a VirtualHost),
    /// A route of the virtual host that matched.
    Route(&'a Route),
    /// A route of calls.
    RpcRoute(&'a rpc::Route),
}

/// Takes notes during a decision.
pub trait Trace {
    /// `subject` was considered; `reason` says in words why it matched or did not. Not called in a fixed order of kinds, but in
    /// the order of comparison within one kind.
    fn considered(&mut self, subject: Subject<'_>, matched: bool, reason: impl FnOnce() -> String);

    /// Whether notes are wanted that cost a search of their own (all virtual hosts that did not match, say).
    fn wants_all(&self) -> bool {
        true
    }
}

/// Takes no notes: nothing of the trace is compiled into the request path.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Trace for Silent {
    #[inline(always)]
    fn considered(&mut self, _: Subject<'_>, _: bool, _: impl FnOnce() -> String) {}

    #[inline(always)]
    fn wants_all(&self) -> bool {
        false
    }
}

impl<T: Trace> Trace for &mut T {
    fn considered(&mut self, subject: Subject<'_>, matched: bool, reason: impl FnOnce() -> String) {
        (**self).considered(subject, matched, reason);
    }
    fn wants_all(&self) -> bool {
        (**self).wants_all()
    }
}
