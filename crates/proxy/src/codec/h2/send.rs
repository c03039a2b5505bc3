//! What we say on a connection. Everything goes into one output buffer; the driver writes it once per turn.

use weft_core::request::Scheme;

use super::connection::{Connection, Role};
use super::flow::MOST_WINDOW;
use super::frame::{self, Code, HEADER_BYTES, StreamId, flag, kind};
use super::message::Asked;
use super::stream::{Progress, Stream};
use crate::codec::{Framing, Head, Known, decimal};

/// Larger frames save nothing and make other streams wait.
const MOST_FRAME_BYTES: usize = 64 * 1024;

/// Places of the static table (RFC 7541 appendix A) that are written without a look.
mod index {
    pub(super) const METHOD_GET: usize = 2;
    pub(super) const METHOD_POST: usize = 3;
    pub(super) const PATH_ROOT: usize = 4;
    pub(super) const SCHEME_HTTP: usize = 6;
    pub(super) const SCHEME_HTTPS: usize = 7;
    pub(super) const STATUS: [(u16, usize); 7] =
        [(200, 8), (204, 9), (206, 10), (304, 11), (400, 12), (404, 13), (500, 14)];
}

/// How much a message may bring after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Known(u64),
    Unknown,
}

impl Body {
    /// That of a request.
    pub fn of(head: &Head) -> Body {
        match head.framing {
            Framing::None if !head.wants_tunnel() => Body::Known(0),
            Framing::Length(length) => Body::Known(length),
            Framing::None | Framing::Chunked | Framing::UntilClose => Body::Unknown,
        }
    }
}

impl Connection {
    /// What is to be written to the peer.
    pub fn output(&self) -> &[u8] {
        &self.out
    }

    /// Take the output away; *spare* is an empty buffer that takes its place.
    pub fn swap_output(&mut self, spare: &mut Vec<u8>) {
        debug_assert!(spare.is_empty());
        std::mem::swap(&mut self.out, spare);
    }

    /// All that was taken away before has been written.
    pub fn written(&mut self) {
        if self.out.is_empty() {
            (self.counts.waiting, self.counts.waiting_answers) = (0, 0);
        }
    }

    /// Streams that are open, by either side.
    #[cfg(test)]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Whether the peer understands extended CONNECT (RFC 8441).
    pub fn accepts_extended_connect(&self) -> bool {
        self.remote.connect_protocol
    }

    /// Whether another request may be sent now; the other answers of a connection that takes no more at all are [`Connection::is_worn`]'s.
    pub fn can_open(&self) -> bool {
        let most = self.remote.max_concurrent_streams.map_or(usize::MAX, |most| most as usize);
        !self.is_worn() && self.streams.len() < most
    }

    /// Whether the peer has room for this body beside those that are on their way, even if it reads none of them: then none of them can
    /// stop another. A connection that carries no other body always has.
    pub fn has_room(&self, body: Body) -> bool {
        self.claimed == 0 || self.claimed + self.claim(body) <= self.widest
    }

    fn claim(&self, body: Body) -> u64 {
        let window = u64::from(self.remote.initial_window_bytes);
        match body {
            Body::Known(length) => length.min(window),
            Body::Unknown => window,
        }
    }

    /// Whether no request may ever be sent on it again.
    pub fn is_worn(&self) -> bool {
        self.peer_is_leaving || self.accept_up_to != StreamId::MAX || i64::from(self.next_local) > MOST_WINDOW
    }

    /// Send a request's head. *ended*: it has no body.
    ///
    /// # Panics
    /// In debug builds, if [`Connection::can_open`] is false.
    pub fn request(&mut self, head: &Head, secure: bool, ended: bool) -> StreamId {
        debug_assert!(self.role == Role::Client && self.can_open());
        let id = self.next_local;
        self.next_local += 2;
        let mut stream = Stream::new(self.remote.initial_window_bytes, self.limits.stream_window_bytes);
        stream.asked = Asked::of(head);
        stream.claim = self.claim(Body::of(head));
        self.claimed += stream.claim;
        stream.sending = if ended { Progress::Ended } else { Progress::Body };
        self.streams.insert(id, stream);
        let begin = self.begin_block();
        self.request_fields(head, secure);
        self.end_block(begin, id, ended);
        id
    }

    fn request_fields(&mut self, head: &Head, secure: bool) {
        let (out, encoder) = (&mut self.out, &mut self.encoder);
        let extended = !head.upgrade().is_empty();
        match head.method() {
            _ if extended => encoder.field(out, b":method", b"CONNECT", false),
            b"GET" => encoder.indexed(out, index::METHOD_GET),
            b"POST" => encoder.indexed(out, index::METHOD_POST),
            method => encoder.field(out, b":method", method, false),
        }
        if extended {
            encoder.field(out, b":protocol", head.upgrade(), false);
        }
        if !head.is_connect() {
            // As Envoy: what the client has asked for, and not how this hop is made.
            encoder.indexed(
                out,
                match head.scheme.unwrap_or(Scheme::of(secure)) {
                    Scheme::Https => index::SCHEME_HTTPS,
                    Scheme::Http => index::SCHEME_HTTP,
                },
            );
            match head.target() {
                b"/" => encoder.indexed(out, index::PATH_ROOT),
                path => encoder.field(out, b":path", path, false),
            }
        }
        if !head.authority().is_empty() {
            encoder.field(out, b":authority", head.authority(), false);
        }
        self.fields(head, head.framing);
    }

    /// Send a response's head, perhaps an interim one. *framing* is that of the message sent; *ended*: it has no body.
    pub fn response(&mut self, stream: StreamId, head: &Head, framing: Framing, ended: bool) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        // A change of protocol is a plain success here (RFC 8441 5).
        let status = if head.status == 101 { 200 } else { head.status };
        let interim = matches!(status, 100..200);
        if !interim {
            state.sending = if ended { Progress::Ended } else { Progress::Body };
        }
        let begin = self.begin_block();
        let (out, encoder) = (&mut self.out, &mut self.encoder);
        match index::STATUS.iter().find(|(known, _)| *known == status) {
            Some(&(_, index)) => encoder.indexed(out, index),
            None => {
                let mut digits = Vec::with_capacity(3);
                decimal(&mut digits, u64::from(status));
                encoder.field(out, b":status", &digits, false);
            }
        }
        self.fields(head, framing);
        self.end_block(begin, stream, ended && !interim);
        self.settle(stream);
    }

    fn fields(&mut self, head: &Head, framing: Framing) {
        let (out, encoder) = (&mut self.out, &mut self.encoder);
        for field in head.fields_marked() {
            // What concerns a connection of HTTP/1.1 must not be here, whoever added it (RFC 9113 8.2.2).
            let connection_specific = matches!(
                field.known,
                Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::Te | Known::Upgrade
            );
            if !connection_specific {
                encoder.field(out, field.name, field.value.trim_ascii(), field.never_indexed);
            }
        }
        if head.accepts_trailers && head.status == 0 {
            encoder.field(out, b"te", b"trailers", false);
        }
        let length = match framing {
            // Made up where a message of HTTP/2 ended with its head: it said no length, so none is said.
            Framing::Length(0) if head.status != 0 && head.version == crate::codec::Version::Http2 => {
                head.declared_length
            }
            Framing::Length(length) => Some(length),
            // A length would count the other protocol's bytes.
            Framing::None if head.status == 0 && head.wants_tunnel() => None,
            Framing::None | Framing::UntilClose => head.declared_length,
            Framing::Chunked => None,
        };
        if let Some(length) = length {
            let mut digits = Vec::with_capacity(20);
            decimal(&mut digits, length);
            encoder.field(out, b"content-length", &digits, false);
        }
    }

    /// Send trailers, which end the stream.
    pub fn trailers<'a>(&mut self, stream: StreamId, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        state.sending = Progress::Ended;
        let begin = self.begin_block();
        for (name, value) in fields {
            self.encoder.field(&mut self.out, name, value.trim_ascii(), false);
        }
        self.end_block(begin, stream, true);
        self.settle(stream);
    }

    fn begin_block(&mut self) -> usize {
        let begin = self.out.len();
        self.out.extend_from_slice(&[0; HEADER_BYTES]);
        self.encoder.begin(&mut self.out);
        begin
    }

    /// Put the frame header before the block that was begun at *begin*, and cut it if it is too large for one frame.
    fn end_block(&mut self, begin: usize, stream: StreamId, ended: bool) {
        let most = self.remote.max_frame_bytes as usize;
        let block = begin + HEADER_BYTES;
        let length = self.out.len() - block;
        let end_stream = if ended { flag::END_STREAM } else { 0 };
        self.counts.waiting = self.counts.waiting.saturating_add(1);
        if length <= most {
            let flags = flag::END_HEADERS | end_stream;
            return frame::patch_header(&mut self.out, begin, length, kind::HEADERS, flags, stream);
        }
        let rest = self.out.split_off(block + most);
        frame::patch_header(&mut self.out, begin, most, kind::HEADERS, end_stream, stream);
        let last = rest.len().div_ceil(most) - 1;
        for (index, part) in rest.chunks(most).enumerate() {
            let flags = if index == last { flag::END_HEADERS } else { 0 };
            frame::header(&mut self.out, part.len(), kind::CONTINUATION, flags, stream);
            self.out.extend_from_slice(part);
        }
    }

    /// Bytes of body that may be sent on *stream* now.
    pub fn sendable(&self, stream: StreamId) -> usize {
        let window = self.streams.get(&stream).map_or(0, |stream| stream.send_window.available());
        window.min(self.send_window.available())
    }

    /// The connection's window, which all streams share.
    pub fn window(&self) -> usize {
        self.send_window.available()
    }

    /// Whether the window of *stream* is open, whatever the connection's is.
    pub fn has_own_window(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|stream| stream.send_window.available() > 0)
    }

    /// Send as much of *data* as the windows allow, and the end of the stream with its last byte if *ended*. Returns how much was sent.
    pub fn data(&mut self, stream: StreamId, data: &[u8], ended: bool) -> usize {
        let count = data.len().min(self.sendable(stream));
        let Some(state) = self.streams.get_mut(&stream) else { return 0 };
        let finished = ended && count == data.len();
        if count == 0 && !finished {
            return 0;
        }
        state.send_window.take(count);
        self.send_window.take(count);
        if finished {
            state.sending = Progress::Ended;
        }
        let most = (self.remote.max_frame_bytes as usize).min(MOST_FRAME_BYTES);
        let mut rest = &data[..count];
        loop {
            let (part, after) = rest.split_at(rest.len().min(most));
            let flags = if finished && after.is_empty() { flag::END_STREAM } else { 0 };
            frame::header(&mut self.out, part.len(), kind::DATA, flags, stream);
            self.out.extend_from_slice(part);
            // The peer will answer with WINDOW_UPDATE.
            self.idle_frames.earn(10);
            self.counts.waiting = self.counts.waiting.saturating_add(1);
            self.counts.data_frames_sent = self.counts.data_frames_sent.saturating_add(1);
            if after.is_empty() {
                break;
            }
            rest = after;
        }
        self.settle(stream);
        count
    }

    /// Give *stream* up. Nothing is sent if it is over already.
    pub fn reset(&mut self, stream: StreamId, code: Code) {
        if self.streams.contains_key(&stream) {
            frame::reset(&mut self.out, stream, code);
            self.abandon(stream);
        }
    }

    /// Ask whether the peer is there; the answer is `Event::Pong`.
    pub fn ping(&mut self, payload: [u8; 8]) {
        frame::ping(&mut self.out, 0, payload);
        self.unanswered_pings = self.unanswered_pings.saturating_add(1);
    }

    /// Say that no more streams should be opened, while those on their way are still taken (RFC 9113 6.8). Once they had time to come,
    /// [`Connection::go_away`] follows.
    pub fn announce_go_away(&mut self) {
        frame::go_away(&mut self.out, MOST_WINDOW as StreamId, Code::NO_ERROR, "");
    }

    /// Take no more streams.
    pub fn go_away(&mut self, code: Code) {
        if self.accept_up_to == StreamId::MAX {
            self.accept_up_to = self.last_peer;
            frame::go_away(&mut self.out, self.last_peer, code, "");
        }
    }
}
