//! gRPC-Web's framing (PROTOCOL-WEB of grpc/grpc): trailers as the last frame of a body, and bodies in base64 for clients that read text only.
//!
//! Bytes in, bytes out; `forward` runs a message's spans through a [`Transcoder`], `http::grpc_web` decides which messages need one.

use weft_core::base64;

/// The flag of a frame that holds trailers.
const TRAILERS: u8 = 0x80;
/// Flags, and the length of what follows (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// The body is not what the content type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotBase64;

/// What happens to the body of one message.
#[derive(Debug)]
enum Way {
    /// From base64; the digits of a group that is not complete, and how many.
    Decode([u8; 4], usize),
    /// As it is.
    Binary,
    /// To base64.
    Text(Grouping),
}

/// Where in a frame the bytes are that go to base64: each frame is padded by itself, so that a reader of a stream never waits for the
/// rest of a group.
#[derive(Debug, Default)]
struct Grouping {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Of the frame's content.
    left: usize,
    /// Bytes that do not fill a group yet.
    carry: Vec<u8>,
}

/// Changes one body on its way.
#[derive(Debug)]
pub struct Transcoder {
    way: Way,
    with_trailers: bool,
    out: Vec<u8>,
    finished: bool,
}

impl Transcoder {
    fn new(way: Way, with_trailers: bool) -> Transcoder {
        Transcoder { way, with_trailers, out: Vec::new(), finished: false }
    }

    /// For a request in base64.
    pub fn decoder() -> Transcoder {
        Transcoder::new(Way::Decode([0; 4], 0), false)
    }

    /// For a response.
    pub fn encoder(text: bool) -> Transcoder {
        Transcoder::new(if text { Way::Text(Grouping::default()) } else { Way::Binary }, true)
    }

    /// What is to be written.
    pub fn pending(&self) -> &[u8] {
        &self.out
    }

    /// It was written.
    pub fn clear(&mut self) {
        self.out.clear();
    }

    /// Whether the end of the message has been taken in.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether the message's trailers are in its body now.
    pub fn takes_trailers(&self) -> bool {
        self.with_trailers
    }

    /// Take in a part of the body.
    ///
    /// # Errors
    /// [`NotBase64`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), NotBase64> {
        match &mut self.way {
            Way::Binary => self.out.extend_from_slice(bytes),
            Way::Text(grouping) => grouping.feed(bytes, &mut self.out),
            Way::Decode(group, count) => {
                for &byte in bytes {
                    group[*count] = byte;
                    *count += 1;
                    if *count == 4 {
                        *count = 0;
                        base64::decode_group(group, &mut self.out).ok_or(NotBase64)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The body has ended, with these trailers.
    ///
    /// # Errors
    /// [`NotBase64`].
    pub fn finish<'t>(&mut self, trailers: impl Iterator<Item = (&'t [u8], &'t [u8])>) -> Result<(), NotBase64> {
        self.finished = true;
        if matches!(self.way, Way::Decode(_, count) if count > 0) {
            return Err(NotBase64);
        }
        let mut block = Vec::new();
        for (name, value) in trailers.filter(|_| self.with_trailers) {
            block.extend(name.iter().map(u8::to_ascii_lowercase));
            block.push(b':');
            block.extend_from_slice(value.trim_ascii());
            block.extend_from_slice(b"\r\n");
        }
        if let Way::Text(grouping) = &mut self.way {
            grouping.flush(&mut self.out);
            // Also behind a body that ends within a frame the trailers are a frame of their own.
            *grouping = Grouping::default();
        }
        if block.is_empty() {
            return Ok(());
        }
        let [a, b, c, d] = (block.len() as u32).to_be_bytes();
        let frame = [&[TRAILERS, a, b, c, d], &*block].concat();
        self.feed(&frame)
    }
}

impl Grouping {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = if self.prefix_bytes < PREFIX_BYTES {
                let count = rest.len().min(PREFIX_BYTES - self.prefix_bytes);
                self.prefix[self.prefix_bytes..self.prefix_bytes + count].copy_from_slice(&rest[..count]);
                self.prefix_bytes += count;
                if let [_, a, b, c, d] = self.prefix
                    && self.prefix_bytes == PREFIX_BYTES
                {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                }
                count
            } else {
                let count = rest.len().min(self.left);
                self.left -= count;
                count
            };
            self.encode(&rest[..count], out);
            rest = &rest[count..];
            if self.prefix_bytes == PREFIX_BYTES && self.left == 0 {
                self.prefix_bytes = 0;
                self.flush(out);
            }
        }
    }

    fn encode(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let (first, rest) = bytes.split_at(bytes.len().min((3 - self.carry.len()) % 3));
        self.carry.extend_from_slice(first);
        if self.carry.len() == 3 {
            self.flush(out);
        }
        let whole = rest.len() - rest.len() % 3;
        base64::encode(&rest[..whole], out);
        self.carry.extend_from_slice(&rest[whole..]);
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        base64::encode(&self.carry, out);
        self.carry.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";
    const STATUS: &[u8] = b"\x80\0\0\0\x0fgrpc-status:0\r\n";

    fn run(mut transcoder: Transcoder, bytes: &[u8], step: usize) -> Result<Vec<u8>, NotBase64> {
        for part in bytes.chunks(step) {
            transcoder.feed(part)?;
        }
        transcoder.finish([(&b"Grpc-Status"[..], &b" 0"[..])].into_iter())?;
        assert!(transcoder.is_finished());
        Ok(transcoder.pending().to_vec())
    }

    fn text(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        base64::encode(bytes, &mut out);
        out
    }

    #[test]
    fn trailers_are_the_last_frame_and_each_frame_is_padded_by_itself() {
        let stream = [MESSAGE, MESSAGE, b"\0\0\0\0\0"].concat();
        for step in 1..=stream.len() {
            let binary = run(Transcoder::encoder(false), &stream, step).unwrap();
            assert_eq!(binary, [&stream, STATUS].concat(), "{step}");
            let coded = run(Transcoder::encoder(true), &stream, step).unwrap();
            let expected = [text(MESSAGE), text(MESSAGE), text(b"\0\0\0\0\0"), text(STATUS)].concat();
            assert_eq!(coded, expected, "{step}");
        }
    }

    #[test]
    fn trailers_are_whole_behind_a_body_that_ends_within_a_frame() {
        for end in 0..MESSAGE.len() {
            let coded = run(Transcoder::encoder(true), &MESSAGE[..end], MESSAGE.len()).unwrap();
            assert_eq!(coded, [text(&MESSAGE[..end]), text(STATUS)].concat(), "{end}");
        }
    }

    #[test]
    fn a_frame_that_is_coded_is_here_with_its_last_byte() {
        let mut transcoder = Transcoder::encoder(true);
        transcoder.feed(MESSAGE).unwrap();
        assert_eq!(transcoder.pending(), text(MESSAGE));
    }

    #[test]
    fn requests_in_base64_are_decoded_in_any_pieces() {
        // A client may code its frames one by one.
        let coded = [text(MESSAGE), text(b"\0\0\0\0\x01a"), text(b"")].concat();
        for step in 1..=coded.len() {
            let decoded = run(Transcoder::decoder(), &coded, step).unwrap();
            assert_eq!(decoded, [MESSAGE, b"\0\0\0\0\x01a"].concat(), "{step}");
        }
        for wrong in [&b"AAA"[..], b"AA!A", b"A===", b"=AAA", b"AA=A"] {
            assert_eq!(run(Transcoder::decoder(), wrong, 1), Err(NotBase64), "{wrong:?}");
        }
    }
}
