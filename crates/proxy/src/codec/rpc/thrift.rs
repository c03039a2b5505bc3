//! Thrift: binary (strict) and compact protocol, over framed and header transport.
//!
//! ```text
//! framed:  length:4 message
//! header:  length:4 0fff flags:2 sequence:4 size/4:2 | protocol, transforms, headers, padding | message
//! message: type, name, sequence id, struct       (a name is `service:method` under TMultiplexedProtocol)
//! ```
//!
//! Sources: the Thrift repository's `doc/specs/thrift-rpc.md`, `thrift-binary-protocol.md`, `thrift-compact-protocol.md` and `HeaderFormat.md`;
//! Envoy's filter `thrift_proxy` for limits and for what it answers by itself.
//!
//! A message shows its transport and protocol, so nothing is remembered of a connection. Unframed messages begin with a negative length, by
//! which they are told apart, and are refused: where one ends only who reads all of it knows.

use std::borrow::Cow;

use super::{Call, Codec, Failure, Frame, Headers, Limits, Malformed, Message, Refusal, Rest, Sharing, Status};

/// Envoy's `FramedTransportImpl::MaxFrameSize`.
const MOST_BYTES: u32 = 0x00fa_0000;
const LENGTH_BYTES: usize = 4;
/// First bytes of a header frame, behind its length; no version of a message begins so.
const HEADER_MAGIC: [u8; 2] = [0x0f, 0xff];
/// Magic, flags, sequence and size.
const HEADER_HEAD_BYTES: usize = 10;
/// First bytes of a message in the strict binary protocol.
const BINARY: [u8; 2] = [0x80, 0x01];
const COMPACT: u8 = 0x82;
const COMPACT_VERSION: u8 = 1;

/// Types of messages (thrift-rpc.md).
const CALL: u8 = 1;
const REPLY: u8 = 2;
const EXCEPTION: u8 = 3;
const ONE_WAY: u8 = 4;

/// Types of a TApplicationException (thrift-rpc.md).
const UNKNOWN_METHOD: i32 = 1;
const INTERNAL_ERROR: i32 = 6;
const PROTOCOL_ERROR: i32 = 7;
const INVALID_TRANSFORM: i32 = 8;
const INVALID_PROTOCOL: i32 = 9;

/// The codec; `None` leaves to each message which it is.
#[derive(Default)]
pub struct Thrift {
    pub transport: Option<Transport>,
    pub encoding: Option<Encoding>,
    pub limits: Limits,
}

/// How messages are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Framed,
    Header,
}

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Compact,
}

/// A message taken apart.
struct Opened<'m> {
    transport: Transport,
    /// The header transport's own.
    sequence: [u8; 4],
    encoding: Encoding,
    headers: Headers<'m>,
    kind: u8,
    name: &'m [u8],
    id: u32,
    /// The struct.
    content: Reader<'m>,
}

impl Codec for Thrift {
    fn sharing(&self) -> Sharing {
        Sharing::One
    }

    fn frame(&self, bytes: &[u8]) -> Result<Frame, Malformed> {
        let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(Frame::More) };
        let length = u32::from_be_bytes(*length);
        match length {
            // Also what has no length at all: a message's first bit is set.
            0 | 0x8000_0000.. => Err(Malformed::Begin),
            length if length > MOST_BYTES => Err(Malformed::TooLong(length.into())),
            length => Ok(Frame::Length(LENGTH_BYTES + length as usize)),
        }
    }

    fn inspect(&self, message: &[u8]) -> Result<Message, Malformed> {
        let mut opened = self.open(message)?;
        let id = opened.id.into();
        Ok(match opened.kind {
            CALL => Message::Call { id, answered: true },
            ONE_WAY => Message::Call { id, answered: false },
            REPLY => Message::Answer { id, status: opened.result()? },
            EXCEPTION => Message::Answer { id, status: Status::Error(opened.failure()?) },
            other => return Err(Malformed::Kind(other)),
        })
    }

    fn call<'m>(&self, message: &'m [u8]) -> Result<Call<'m>, Malformed> {
        let opened = self.open(message)?;
        let service = memchr::memchr(b':', opened.name).map_or(&[][..], |colon| &opened.name[..colon]);
        Ok(Call {
            service: Cow::Borrowed(service),
            version: None,
            method: Cow::Borrowed(opened.name),
            rest: Some(Rest { headers: opened.headers, ..Rest::default() }),
        })
    }

    fn refuse(&self, message: &[u8], refusal: Refusal, text: &str, out: &mut Vec<u8>) {
        // It was opened before it was found to be a call.
        let Ok(opened) = self.open(message) else { return };
        let reason = match refusal {
            Refusal::NoRoute => UNKNOWN_METHOD,
            Refusal::BadRequest => PROTOCOL_ERROR,
            Refusal::Unavailable | Refusal::Overloaded | Refusal::Timeout => INTERNAL_ERROR,
        };
        let mut answer = Vec::with_capacity(text.len() + opened.name.len() + 32);
        write_exception(&mut answer, &opened, reason, text);
        if opened.transport == Transport::Header {
            // Protocol and no transforms, filled up to four bytes.
            let head = [if opened.encoding == Encoding::Binary { 0 } else { 2 }, 0, 0, 0];
            out.extend(((HEADER_HEAD_BYTES + head.len() + answer.len()) as u32).to_be_bytes());
            out.extend(HEADER_MAGIC);
            out.extend([0, 0]);
            out.extend(opened.sequence);
            out.extend([0, 1]);
            out.extend(head);
        } else {
            out.extend((answer.len() as u32).to_be_bytes());
        }
        out.extend(answer);
    }
}

impl Thrift {
    /// Take a whole message apart.
    fn open<'m>(&self, message: &'m [u8]) -> Result<Opened<'m>, Malformed> {
        let frame = message.get(LENGTH_BYTES..).ok_or(Malformed::Content)?;
        let mut reader = Reader(frame);
        let (mut sequence, mut headers) = ([0; 4], Vec::new());
        let transport = if frame.starts_with(&HEADER_MAGIC) { Transport::Header } else { Transport::Framed };
        if self.transport.is_some_and(|expected| expected != transport) {
            return Err(Malformed::Begin);
        }
        if transport == Transport::Header {
            reader.take(4)?;
            sequence = reader.chunk()?;
            let size = usize::from(u16::from_be_bytes(reader.chunk()?)) * 4;
            headers = read_headers(Reader(reader.take(size)?), self.limits)?;
        }
        let encoding = match reader.0 {
            [COMPACT, ..] => Encoding::Compact,
            bytes if bytes.starts_with(&BINARY) => Encoding::Binary,
            _ => return Err(Malformed::Begin),
        };
        if self.encoding.is_some_and(|expected| expected != encoding) {
            return Err(Malformed::Begin);
        }
        let (kind, name, id) = match encoding {
            Encoding::Binary => {
                let [_, _, _, kind] = reader.chunk()?;
                let length = u32::from_be_bytes(reader.chunk()?);
                (kind, reader.take(length as usize)?, u32::from_be_bytes(reader.chunk()?))
            }
            Encoding::Compact => {
                let [_, kind] = reader.chunk()?;
                if kind & 0x1f != COMPACT_VERSION {
                    return Err(Malformed::Begin);
                }
                let id = reader.varint()?;
                let length = reader.varint()?;
                (kind >> 5, reader.take(length as usize)?, id)
            }
        };
        if name.len() > self.limits.name_bytes {
            return Err(Malformed::Content);
        }
        Ok(Opened { transport, sequence, encoding, headers, kind, name, id, content: reader })
    }
}

/// The key-value headers of a header frame, whose other information is passed over as HeaderFormat.md allows.
fn read_headers(mut reader: Reader<'_>, limits: Limits) -> Result<Headers<'_>, Malformed> {
    const KEY_VALUE: u32 = 1;
    let _protocol = reader.varint()?;
    // Transformed (compressed) content cannot be read; Envoy refuses it too.
    match reader.varint()? {
        0 => {}
        transforms => return Err(Malformed::Serialization(transforms.min(255) as u8)),
    }
    let mut headers = Vec::new();
    // Zero is padding; what has another number than 1 has a length that only its readers know, and nothing can stand behind it.
    while !reader.0.is_empty() && reader.varint()? == KEY_VALUE {
        for _ in 0..reader.varint()? {
            if headers.len() == limits.headers {
                return Err(Malformed::Content);
            }
            headers.push((Cow::Borrowed(reader.prefixed()?), Cow::Borrowed(reader.prefixed()?)));
        }
    }
    Ok(headers)
}

impl Opened<'_> {
    /// Whether a reply is a result: field 0, or none at all of a method that returns nothing. Any other is a declared exception.
    fn result(&mut self) -> Result<Status, Malformed> {
        Ok(match self.field(0)? {
            None | Some((_, 0)) => Status::Success,
            Some(_) => Status::Exception,
        })
    }

    /// What an exception of the server itself is about: field 2 of it. Field 1 is its text.
    fn failure(&mut self) -> Result<Failure, Malformed> {
        const TEXT: i16 = 1;
        const TYPE: i16 = 2;
        let mut last = 0;
        let mut reason = 0;
        while let Some((kind, id)) = self.field(last)? {
            let is_binary = self.encoding == Encoding::Binary;
            match (id, kind) {
                (TEXT, 11) if is_binary => {
                    let length = u32::from_be_bytes(self.content.chunk()?);
                    self.content.take(length as usize)?;
                }
                (TEXT, 8) if !is_binary => drop(self.content.prefixed()?),
                (TYPE, 8) if is_binary => reason = i32::from_be_bytes(self.content.chunk()?),
                (TYPE, 5) if !is_binary => reason = zigzag(self.content.varint()?),
                // Nobody writes others; what they are cannot be told from how they end.
                _ => break,
            }
            last = id;
        }
        Ok(match reason {
            UNKNOWN_METHOD => Failure::NotFound,
            PROTOCOL_ERROR | INVALID_TRANSFORM | INVALID_PROTOCOL => Failure::BadRequest,
            _ => Failure::Internal,
        })
    }

    /// Type and number of the next field; `None` at the end. *last* is the number of the one before.
    fn field(&mut self, last: i16) -> Result<Option<(u8, i16)>, Malformed> {
        let [head] = self.content.chunk()?;
        if head == 0 {
            return Ok(None);
        }
        Ok(Some(match self.encoding {
            Encoding::Binary => (head, i16::from_be_bytes(self.content.chunk()?)),
            Encoding::Compact if head >> 4 == 0 => (head & 0xf, zigzag(self.content.varint()?) as i16),
            Encoding::Compact => (head & 0xf, last.wrapping_add(i16::from(head >> 4))),
        }))
    }
}

/// A TApplicationException as the answer to a call.
fn write_exception(out: &mut Vec<u8>, call: &Opened<'_>, reason: i32, text: &str) {
    match call.encoding {
        Encoding::Binary => {
            out.extend([BINARY[0], BINARY[1], 0, EXCEPTION]);
            out.extend((call.name.len() as u32).to_be_bytes());
            out.extend(call.name);
            out.extend(call.id.to_be_bytes());
            // A text is of type 11, a number of 32 bits of type 8.
            out.extend([11, 0, 1]);
            out.extend((text.len() as u32).to_be_bytes());
            out.extend(text.as_bytes());
            out.extend([8, 0, 2]);
            out.extend(reason.to_be_bytes());
        }
        Encoding::Compact => {
            out.extend([COMPACT, EXCEPTION << 5 | COMPACT_VERSION]);
            write_varint(out, call.id);
            write_varint(out, call.name.len() as u32);
            out.extend(call.name);
            // Each field is one further than the last; 8 is a text, 5 a number.
            out.push(0x18);
            write_varint(out, text.len() as u32);
            out.extend(text.as_bytes());
            out.push(0x15);
            write_varint(out, ((reason << 1) ^ (reason >> 31)).cast_unsigned());
        }
    }
    out.push(0);
}

fn zigzag(value: u32) -> i32 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

fn write_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that were not read yet.
#[derive(Clone, Copy)]
struct Reader<'m>(&'m [u8]);

impl<'m> Reader<'m> {
    fn take(&mut self, count: usize) -> Result<&'m [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Content)?;
        self.0 = rest;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Content)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// At most five bytes: 32 bits.
    fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0u32;
        for shift in (0..35).step_by(7) {
            let [byte] = self.chunk()?;
            // What does not fit is no number of 32 bits.
            if shift == 28 && byte > 0x0f {
                return Err(Malformed::Content);
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::Content)
    }

    /// Bytes behind their length.
    fn prefixed(&mut self) -> Result<&'m [u8], Malformed> {
        let length = self.varint()?;
        self.take(length as usize)
    }
}

#[cfg(test)]
#[path = "thrift_tests.rs"]
mod tests;
