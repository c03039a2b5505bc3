//! gRPC over HTTP/2, as much of it as two bidirectional streams need: message frames, paths, statuses.
//!
//! Source: grpc/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message".

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Compressed-Flag (one byte) and Message-Length (four bytes, big endian).
pub(crate) const PREFIX_BYTES: usize = 5;

/// The largest message that is accepted. istiod's whole world for 1,000 services is 2.8 MB; this leaves room for far
/// more and still bounds what a broken peer can make us buffer.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// `grpc-status` values that weft sends (grpc/doc/statuscodes.md).
pub(crate) mod code {
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    pub(crate) const UNIMPLEMENTED: i32 = 12;
    pub(crate) const INTERNAL: i32 = 13;
}

/// Why bytes from the peer are no sequence of gRPC messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a message is compressed, and no compression was agreed on")]
    Compressed,
    #[error("compressed flag is {0}, not 0 or 1")]
    Flag(u8),
    #[error("a message of {length} bytes exceeds the limit of {limit}")]
    TooLong { length: usize, limit: usize },
    #[error("the stream ends within a message")]
    Truncated,
    #[error("a message does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// The prefix of a message of `length` bytes.
pub(crate) fn prefix(length: usize) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = u32::try_from(length).expect("a message is shorter than 4 GiB").to_be_bytes();
    [0, a, b, c, d]
}

/// `message` with its prefix, ready to be sent.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_slice(&prefix(length));
    message.encode(&mut frame).expect("BytesMut grows");
    frame.freeze()
}

/// Takes DATA as it comes and gives whole messages.
#[derive(Debug)]
pub(crate) struct Deframer {
    buffer: BytesMut,
    limit: usize,
}

impl Default for Deframer {
    fn default() -> Self {
        Self::with_limit(MAX_MESSAGE_BYTES)
    }
}

impl Deframer {
    /// Refuse messages of more than *limit* bytes.
    pub(crate) fn with_limit(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole message, or `None` until more data comes.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let [flag, a, b, c, d, ..] = self.buffer[..] else {
            return Ok(None);
        };
        match flag {
            0 => {}
            1 => return Err(FrameError::Compressed),
            other => return Err(FrameError::Flag(other)),
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        if self.buffer.len() < PREFIX_BYTES + length {
            // No reservation of `length` here: a peer must send the bytes before it makes us hold them.
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Call at the end of the stream.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(FrameError::Truncated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_cut() {
        let mut bytes = Vec::new();
        for text in ["", "a", "weft"] {
            bytes.extend_from_slice(&prefix(text.len()));
            bytes.extend_from_slice(text.as_bytes());
        }
        for cut in 0..=bytes.len() {
            let mut deframer = Deframer::default();
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                deframer.push(part);
                while let Some(message) = deframer.next().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, ["", "a", "weft"]);
            deframer.finish().unwrap();
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let error = |bytes: &[u8]| {
            let mut deframer = Deframer::default();
            deframer.push(bytes);
            deframer.next().unwrap_err()
        };
        assert_eq!(error(&[1, 0, 0, 0, 0]), FrameError::Compressed);
        assert_eq!(error(&[7, 0, 0, 0, 0]), FrameError::Flag(7));
        assert!(matches!(error(&[0, 255, 255, 255, 255]), FrameError::TooLong { .. }));
        let mut deframer = Deframer::default();
        deframer.push(&[0, 0, 0, 0, 2, 9]);
        assert_eq!(deframer.next(), Ok(None));
        assert_eq!(deframer.finish(), Err(FrameError::Truncated));
    }
}
