//! HPACK (RFC 7541): header fields as indices into tables that both sides keep.
//!
//! A [`Decoder`] and an [`Encoder`] belong to one connection each and see every header block of it, in order.

pub mod decode;
pub mod encode;
pub mod field;
mod huffman;
mod integer;
mod table;

pub use decode::Decoder;
pub use encode::Encoder;
pub use field::{Field, Kind};

/// Why a header block cannot be decoded; a connection error (RFC 9113 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    #[error("the header block ends within a field")]
    Truncated,
    #[error("an integer is too large")]
    Integer,
    #[error("an index names no entry")]
    Index,
    #[error("a string is not in the Huffman code")]
    Huffman,
    #[error("a table size update is too large or in the wrong place")]
    SizeUpdate,
}

#[cfg(test)]
mod tests;
