//! Frames as they look on the wire (RFC 9113 4 and 6): the nine-byte header, and writers for each type.
//!
//! Writers append to the connection's one output buffer, so that everything a turn of the event loop has to say leaves in one write.

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 9;
/// Largest payload that every peer accepts without being asked (RFC 9113 4.2).
pub const DEFAULT_MAX_FRAME_BYTES: u32 = 16_384;
/// What a client sends first (RFC 9113 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 6). Others are ignored (RFC 9113 5.5).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// Error codes of RST_STREAM and GOAWAY (RFC 9113 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    pub const NO_ERROR: Code = Code(0);
    pub const PROTOCOL_ERROR: Code = Code(1);
    pub const INTERNAL_ERROR: Code = Code(2);
    pub const FLOW_CONTROL_ERROR: Code = Code(3);
    pub const STREAM_CLOSED: Code = Code(5);
    pub const FRAME_SIZE_ERROR: Code = Code(6);
    pub const REFUSED_STREAM: Code = Code(7);
    pub const CANCEL: Code = Code(8);
    pub const COMPRESSION_ERROR: Code = Code(9);
    pub const ENHANCE_YOUR_CALM: Code = Code(11);
}

/// A stream's number; 0 is the connection.
pub type StreamId = u32;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: StreamId,
}

impl Header {
    /// Read a header; `None` if *input* is shorter than one.
    pub fn read(input: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER_BYTES] = input.first_chunk()?;
        Some(Header {
            length: usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]),
            kind: bytes[3],
            flags: bytes[4],
            // The highest bit is reserved and ignored (RFC 9113 4.1).
            stream: number([bytes[5], bytes[6], bytes[7], bytes[8]]) & 0x7fff_ffff,
        })
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A 32-bit number in network order.
pub fn number(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes)
}

/// Append a frame header. *length* fits in 24 bits: the largest frame that may be configured does.
pub fn header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: StreamId) {
    out.extend_from_slice(&bytes_of(length, kind, flags, stream));
}

/// Write a frame header over the placeholder at *at*.
pub fn patch_header(out: &mut [u8], at: usize, length: usize, kind: u8, flags: u8, stream: StreamId) {
    out[at..at + HEADER_BYTES].copy_from_slice(&bytes_of(length, kind, flags, stream));
}

fn bytes_of(length: usize, kind: u8, flags: u8, stream: StreamId) -> [u8; HEADER_BYTES] {
    debug_assert!(length < 1 << 24);
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [a, b, c, kind, flags, d, e, f, g]
}

pub fn settings_ack(out: &mut Vec<u8>) {
    header(out, 0, kind::SETTINGS, flag::ACK, 0);
}

pub fn ping(out: &mut Vec<u8>, flags: u8, payload: [u8; 8]) {
    header(out, 8, kind::PING, flags, 0);
    out.extend_from_slice(&payload);
}

pub fn reset(out: &mut Vec<u8>, stream: StreamId, code: Code) {
    header(out, 4, kind::RST_STREAM, 0, stream);
    out.extend_from_slice(&code.0.to_be_bytes());
}

pub fn go_away(out: &mut Vec<u8>, last: StreamId, code: Code, reason: &str) {
    header(out, 8 + reason.len(), kind::GOAWAY, 0, 0);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

pub fn window_update(out: &mut Vec<u8>, stream: StreamId, increment: u32) {
    header(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_as_it_was_written() {
        let mut out = Vec::new();
        header(&mut out, 0x01_02_03, kind::HEADERS, flag::END_HEADERS, 0x7fff_fffe);
        assert_eq!(out, [1, 2, 3, 1, 4, 0x7f, 0xff, 0xff, 0xfe]);
        let read = Header::read(&out).unwrap();
        assert_eq!((read.length, read.kind, read.stream), (0x01_02_03, kind::HEADERS, 0x7fff_fffe));
        assert!(read.has(flag::END_HEADERS) && !read.has(flag::PADDED));
        assert_eq!(Header::read(&out[..8]), None);
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        assert_eq!(Header::read(&[0, 0, 0, 6, 0, 0x80, 0, 0, 1]).unwrap().stream, 1);
    }
}
