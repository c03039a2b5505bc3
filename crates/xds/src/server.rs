//! The stream core: an xDS server that knows nothing about what it serves.
//!
//! Python publishes views and says which stream sees which one; everything else - subscriptions, order, versions, ACKs,
//! framing, back-pressure - happens here, in a thread of its own, so that a busy interpreter delays no stream. A view is
//! encoded once, however many streams it goes to.
//!
//! [`view`] makes the immutable sets, [`session`] decides (pure), [`listener`] does the I/O.

pub(crate) mod listener;
pub(crate) mod session;
#[cfg(test)]
mod session_tests;
pub(crate) mod socket;
pub(crate) mod view;

pub use listener::{Event, Options, Server};
pub use view::Published;
