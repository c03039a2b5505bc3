//! HTTP/1.1 (RFC 9112): strict where leniency lets two parties read one message differently.
//!
//! [`parse`] turns bytes into a [`Head`](super::Head), [`body`] finds the body's spans, [`encode`] writes messages.
//! None of them does I/O or waits; each may be called with any split of the bytes and gives the same result.

pub mod body;
pub mod encode;
pub mod parse;

pub use body::{Body, BodyError, Step};
pub use parse::{HeadError, HeadParser, Keeps, Limits};

#[cfg(test)]
mod tests;
