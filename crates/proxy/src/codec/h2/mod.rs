//! HTTP/2 (RFC 9113) without I/O: bytes in, events out; commands in, bytes out, into one buffer.
//!
//! [`Connection`] is the state machine of both sides: [`connection`] reads, [`send`] writes. [`hpack`] is the compression of heads, [`message`]
//! decides what is a well-formed head, [`limits`] what a peer may cost us. Nothing here waits or looks at a clock: the driver
//! says what time it is.

pub mod connection;
pub mod flow;
pub mod frame;
pub mod hpack;
pub mod limits;
pub mod message;
mod send;
pub mod settings;
mod stream;

pub use connection::{Breach, ByStream, Connection, Event, Role};
pub use frame::{Code, StreamId};
pub use limits::{Allowances, Floods, Limits};
pub use send::Body;

#[cfg(test)]
mod tests;
