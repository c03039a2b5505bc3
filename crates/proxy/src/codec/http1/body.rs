//! Finds the body of a message in the bytes that follow its head.
//!
//! ```text
//! Length(n):  Data* Done                       chunked:  Size -> Space -> Extension -> SizeEnd -> Data -> DataEnd -> Size ...
//! UntilClose: Data*  (the peer's end is Done)                     (size 0) -> Trailers -> Done
//! ```
//! Strict: a chunk size is 1 to 16 hexadecimal digits, at once followed by CR LF, or, perhaps behind white space, by an extension; every
//! line ends with CR LF.

use super::super::{Framing, is_forbidden_trailer};
use super::Limits;

/// Longest line of chunk size and extensions. Extensions are dropped; without a bound they are free bytes for an attacker.
const SIZE_LINE_LIMIT: u32 = 256;

/// Why a body was refused; the sender caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("a chunk size is malformed")]
    ChunkSize,
    #[error("a chunk does not end where its size says")]
    ChunkEnd,
    #[error("a chunk extension is malformed or too long")]
    Extension,
    #[error("the trailers are malformed or too long")]
    Trailers,
    #[error("a body that its content type calls base64 is none")]
    Base64,
    #[error("the stream of HTTP/2 broke a rule")]
    Stream,
}

/// What the next bytes of the input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Skip `skip` bytes of framing; then `length` bytes of body data follow (0: framing only, more input is needed).
    Data { skip: usize, length: usize },
    /// Skip `skip` bytes; the message is complete.
    Done { skip: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    None,
    Length(u64),
    UntilClose,
    /// Reading a chunk size: value so far, digits so far.
    Size(u64, u8),
    /// In the white space before a chunk extension: the chunk's size, bytes of the line so far.
    Space(u64, u32),
    /// In a chunk extension: the same.
    Extension(u64, u32),
    /// CR of the size line was seen.
    SizeEnd(u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    Trailers,
    Done,
}

/// The state of one body.
#[derive(Debug)]
pub struct Body {
    state: State,
    trailers: Vec<u8>,
    /// Of the trailers: a list of fields like the head's.
    limits: Limits,
}

impl Body {
    /// A body whose trailers may be as large as a head under *limits*.
    pub fn new(framing: Framing, limits: Limits) -> Body {
        let state = match framing {
            Framing::None => State::None,
            Framing::Length(0) => State::None,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(0, 0),
            Framing::UntilClose => State::UntilClose,
        };
        Body { state, trailers: Vec::new(), limits }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::None | State::Done)
    }

    /// Whether the sender's end of stream ends this body properly.
    pub fn ends_at_close(&self) -> bool {
        matches!(self.state, State::UntilClose | State::None | State::Done)
    }

    /// Bytes of the body that are known to be missing; `None` if unknown.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::None | State::Done => Some(0),
            _ => None,
        }
    }

    /// Trailer fields, as (name, value), once the body is done. Those that would change the framing or the routing of the
    /// message are not among them (RFC 9110 6.5.1).
    pub fn trailers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.trailers.split(|&byte| byte == b'\n').filter_map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let colon = line.iter().position(|&byte| byte == b':')?;
            let name = &line[..colon];
            (!is_forbidden_trailer(name)).then(|| (name, line[colon + 1..].trim_ascii()))
        })
    }

    /// Look at *input* and say what it begins with. The caller takes `skip + length` bytes and calls again.
    /// An empty step (`skip == 0 && length == 0`) asks for more input.
    ///
    /// # Errors
    /// [`BodyError`]; the connection cannot be used any further.
    pub fn next(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let mut at = 0;
        loop {
            match self.state {
                State::None | State::Done => {
                    return Ok(Step::Done { skip: at });
                }
                State::Length(left) => {
                    let length = take(input.len() - at, left);
                    self.state = after(left, length, State::Done, State::Length);
                    return Ok(Step::Data { skip: at, length });
                }
                State::UntilClose => {
                    return Ok(Step::Data { skip: at, length: input.len() - at });
                }
                State::Chunk(left) => {
                    let length = take(input.len() - at, left);
                    self.state = after(left, length, State::ChunkCr, State::Chunk);
                    return Ok(Step::Data { skip: at, length });
                }
                _ => {}
            }
            let Some(&byte) = input.get(at) else {
                return Ok(Step::Data { skip: at, length: 0 });
            };
            at += 1;
            self.state = match (self.state, byte) {
                (State::Size(size, digits), _) => match (hex(byte), byte) {
                    (Some(_), _) if digits == 16 => return Err(BodyError::ChunkSize),
                    (Some(digit), _) => State::Size(size << 4 | u64::from(digit), digits + 1),
                    (None, _) if digits == 0 => return Err(BodyError::ChunkSize),
                    (None, b'\r') => State::SizeEnd(size),
                    (None, b';') => State::Extension(size, 0),
                    (None, b' ' | b'\t') => State::Space(size, 1),
                    (None, _) => return Err(BodyError::ChunkSize),
                },
                // RFC 9112 7.1.1: "bad" white space, which one has to understand.
                (State::Space(size, length), b' ' | b'\t') if length < SIZE_LINE_LIMIT => {
                    State::Space(size, length + 1)
                }
                (State::Space(size, length), b';') => State::Extension(size, length),
                (State::Space(..), _) => return Err(BodyError::ChunkSize),
                (State::Extension(size, _), b'\r') => State::SizeEnd(size),
                (State::Extension(size, length), b'\t' | b' '..=b'~' | 0x80..) if length < SIZE_LINE_LIMIT => {
                    State::Extension(size, length + 1)
                }
                (State::Extension(..), _) => return Err(BodyError::Extension),
                (State::SizeEnd(0), b'\n') => State::Trailers,
                (State::SizeEnd(size), b'\n') => State::Chunk(size),
                (State::SizeEnd(_), _) => return Err(BodyError::ChunkSize),
                (State::ChunkCr, b'\r') => State::ChunkLf,
                (State::ChunkLf, b'\n') => State::Size(0, 0),
                (State::ChunkCr | State::ChunkLf, _) => return Err(BodyError::ChunkEnd),
                (State::Trailers, _) => self.take_trailer_byte(byte)?,
                (state, _) => state,
            };
        }
    }

    fn take_trailer_byte(&mut self, byte: u8) -> Result<State, BodyError> {
        if self.trailers.len() >= self.limits.head_bytes {
            return Err(BodyError::Trailers);
        }
        self.trailers.push(byte);
        if byte != b'\n' {
            return Ok(State::Trailers);
        }
        let text = &self.trailers;
        if text.len() < 2 || text[text.len() - 2] != b'\r' {
            return Err(BodyError::Trailers);
        }
        let at_empty_line = text.len() == 2 || text.ends_with(b"\r\n\r\n");
        if !at_empty_line {
            return Ok(State::Trailers);
        }
        let mut fields = vec![httparse::EMPTY_HEADER; self.limits.fields.min(text.len() / 4)];
        match httparse::parse_headers(text, &mut fields) {
            Ok(httparse::Status::Complete(_)) => Ok(State::Done),
            _ => Err(BodyError::Trailers),
        }
    }
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn take(available: usize, left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(available)
}

fn after(left: u64, taken: usize, done: State, more: impl Fn(u64) -> State) -> State {
    let left = left - taken as u64;
    if left == 0 { done } else { more(left) }
}
