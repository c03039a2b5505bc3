//! The state of one connection, and what it makes of the peer's frames. What we send is in [`super::send`].
//!
//! ```text
//! Preface --> FirstSettings --> Frames --> (an error: GOAWAY is in the output, nothing more is read)
//! (server)
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use super::flow::{ReceiveWindow, SendWindow};
use super::frame::{self, Code, DEFAULT_MAX_FRAME_BYTES, HEADER_BYTES, Header, PREFACE, StreamId, flag, kind, number};
use super::hpack::{Decoder, Encoder};
use super::limits::{Allowance, Limits};
use super::message::{Asked, MessageError, Part, Reader, Verdict};
use super::settings::{DEFAULT_HEADER_TABLE_BYTES, DEFAULT_WINDOW_BYTES, Settings};
use super::stream::{Progress, Recent, Stream};
use crate::codec::{Framing, Head};

/// Which side we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// What the peer did, as far as anybody else needs to know.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// A request (server) or response (client; perhaps an interim one) has begun; it is in the head that was lent. *ended*: nothing follows.
    Head { stream: StreamId, ended: bool },
    /// The same of a request, but the header list was larger than the limits: the head holds what fitted. It is answered 431.
    TooLarge { stream: StreamId, ended: bool },
    /// Part of a body. Its bytes must be given back by [`Connection::release`] when they are used up.
    Data { stream: StreamId, data: &'i [u8], ended: bool },
    /// The body has ended with these fields, which are in the head that was lent.
    Trailers { stream: StreamId },
    /// The peer gave up the stream, or refused it.
    Reset { stream: StreamId, code: Code },
    /// The peer broke a rule on this stream, which was reset. Its head may never have been announced.
    Broken { stream: StreamId, code: Code, reason: Breach },
    /// More may be sent: on one stream, or on all (0).
    Writable { stream: StreamId },
    /// The peer has told its settings, or changed them: of what may be sent, anything may be another.
    Settings,
    /// The peer will take no new streams; those above *last* were not looked at and may be tried elsewhere.
    GoAway { last: StreamId, code: Code },
    /// An answer to a PING, of ours as far as its content says so.
    Pong([u8; 8]),
}

/// Why a stream was reset by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    Malformed(MessageError),
    /// DATA does not add up to content-length.
    Length,
    /// A response, an interim one too, or trailers above our limits: what is left of them is not what was sent.
    TooLarge,
    Protocol,
}

/// The connection is lost; GOAWAY has been put into the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (error {})", code.0)]
pub struct ConnectionError {
    pub code: Code,
    pub reason: &'static str,
}

type Outcome<'i> = Result<Option<Event<'i>>, ConnectionError>;

fn fatal<T>(code: Code, reason: &'static str) -> Result<T, ConnectionError> {
    Err(ConnectionError { code, reason })
}

/// Stream numbers are small and dense: the number is its own hash.
#[derive(Default)]
pub struct StreamHasher(u64);

impl Hasher for StreamHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("stream numbers are u32")
    }
    fn write_u32(&mut self, value: u32) {
        self.0 = u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Values by stream number.
pub type ByStream<T> = HashMap<StreamId, T, BuildHasherDefault<StreamHasher>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// This many bytes of the preface have come.
    Preface(usize),
    FirstSettings,
    Frames,
}

/// A header block whose CONTINUATION frames are awaited.
#[derive(Clone, Copy, Debug)]
struct Block {
    stream: StreamId,
    ended: bool,
    /// The stream must be reset whatever the block says (it depends on itself).
    broken: bool,
}

/// What [`super::limits::Floods`] bounds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Frames of ours that were not written yet, and those of them that answer the peer's.
    pub(super) waiting: u32,
    pub(super) waiting_answers: u32,
    empty_in_a_row: u32,
    priority_frames: u32,
    window_updates: u32,
    pub(super) data_frames_sent: u32,
}

/// A DATA frame of which a part has come.
#[derive(Clone, Copy, Debug)]
struct Data {
    stream: StreamId,
    left: usize,
    padding: usize,
    ended: bool,
    /// The stream is gone: bytes are passed over.
    ignored: bool,
}

/// One connection, either side.
#[derive(Debug)]
pub struct Connection {
    pub(super) role: Role,
    expect: Expect,
    pub(super) limits: Limits,
    local: Settings,
    pub(super) remote: Settings,
    pub(super) streams: ByStream<Stream>,
    closed: Recent,
    /// Streams that we reset; what the peer sent before it knew is ignored.
    abandoned: Recent,
    /// Highest number that the peer has opened.
    pub(super) last_peer: StreamId,
    /// Streams that the peer has opened; it may leave out numbers.
    peers_opened: u32,
    pub(super) next_local: StreamId,
    block: Option<Block>,
    fragments: Vec<u8>,
    data: Option<Data>,
    decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) send_window: SendWindow,
    /// The most that the window has been: what the peer has room for.
    pub(super) widest: u64,
    /// What bodies of ours may take up of it.
    pub(super) claimed: u64,
    receive_window: ReceiveWindow,
    resets: Allowance,
    /// Streams that the peer has given up prematurely so far; see [`super::limits::Resets`].
    premature_resets: u32,
    pub(super) idle_frames: Allowance,
    pub(super) out: Vec<u8>,
    pub(super) counts: Counts,
    /// PINGs of ours whose answers have not come.
    pub(super) unanswered_pings: u32,
    /// Streams above it are not taken: our GOAWAY said so.
    pub(super) accept_up_to: StreamId,
    /// The peer's GOAWAY has come.
    pub(super) peer_is_leaving: bool,
}

impl Connection {
    /// Begin a connection: our preface and settings are in the output.
    pub fn new(role: Role, limits: Limits) -> Connection {
        let local = Settings {
            header_table_bytes: limits.header_table_bytes,
            push: role == Role::Server,
            max_concurrent_streams: (role == Role::Server).then_some(limits.streams),
            initial_window_bytes: limits.stream_window_bytes,
            max_header_list_bytes: u32::try_from(limits.header_bytes).ok(),
            connect_protocol: role == Role::Server && limits.extended_connect,
            ..Settings::default()
        };
        let mut out = Vec::new();
        if role == Role::Client {
            out.extend_from_slice(PREFACE);
        }
        local.write(&mut out);
        if limits.connection_increment() > 0 {
            frame::window_update(&mut out, 0, limits.connection_increment());
        }
        let mut encoder = Encoder::default();
        encoder.set_limit(Settings::default().header_table_bytes.min(limits.header_table_bytes) as usize);
        Connection {
            role,
            expect: if role == Role::Server { Expect::Preface(0) } else { Expect::FirstSettings },
            local,
            remote: Settings::default(),
            streams: ByStream::default(),
            closed: Recent::default(),
            abandoned: Recent::default(),
            last_peer: 0,
            peers_opened: 0,
            next_local: 1,
            block: None,
            fragments: Vec::new(),
            data: None,
            // Until the peer has read our settings it may use what holds without them.
            decoder: Decoder::new(local.header_table_bytes.max(DEFAULT_HEADER_TABLE_BYTES) as usize),
            encoder,
            send_window: SendWindow::new(DEFAULT_WINDOW_BYTES),
            widest: DEFAULT_WINDOW_BYTES.into(),
            claimed: 0,
            receive_window: ReceiveWindow::new(limits.connection_window_bytes.max(DEFAULT_WINDOW_BYTES)),
            resets: Allowance::new(limits.allowances.resets.rate),
            premature_resets: 0,
            idle_frames: Allowance::new(limits.allowances.idle_frames),
            out,
            counts: Counts::default(),
            unanswered_pings: 0,
            accept_up_to: StreamId::MAX,
            peer_is_leaving: false,
            limits,
        }
    }

    /// Look at how many frames of ours wait, which the peer does not read.
    ///
    /// # Errors
    /// [`ConnectionError`], as of [`Connection::receive`]: too many.
    pub fn check_waiting(&mut self) -> Result<(), ConnectionError> {
        if self.counts.waiting <= self.limits.floods.outbound_frames {
            return Ok(());
        }
        let error = ConnectionError { code: Code::ENHANCE_YOUR_CALM, reason: "too many frames wait to be written" };
        self.fail(error.code, error.reason);
        Err(error)
    }

    /// Take in what *input* begins with: at most one event, and how many bytes were used. No event and no bytes: more input is needed, and *input* must
    /// have room for a whole frame of 16 KiB.
    ///
    /// *now* is the time since the connection began. A message's head or trailers come in *head*, which is overwritten.
    ///
    /// # Errors
    /// [`ConnectionError`]: nothing more may be received; the output should still be sent.
    pub fn receive<'i>(
        &mut self,
        input: &'i [u8],
        now: Duration,
        head: &mut Head,
    ) -> Result<(usize, Option<Event<'i>>), ConnectionError> {
        let mut used = 0;
        self.check_waiting()?;
        loop {
            match self.step(&input[used..], now, head) {
                Ok((0, None)) => return Ok((used, None)),
                Ok((count, None)) => used += count,
                Ok((count, event)) => return Ok((used + count, event)),
                Err(error) => {
                    self.fail(error.code, error.reason);
                    return Err(error);
                }
            }
        }
    }

    /// Whether the peer has begun what nobody can look at before its end: the connection itself (preface and settings), or a header block.
    pub fn awaits_head(&self) -> bool {
        self.expect != Expect::Frames || self.block.is_some()
    }

    /// End the connection for what the codec itself cannot see; GOAWAY is in the output, and nothing more may be received.
    pub fn fail(&mut self, code: Code, reason: &'static str) {
        // RFC 9113 6.8: no GOAWAY names a later stream than the one before. Those above were not taken, and are tried elsewhere.
        frame::go_away(&mut self.out, self.last_peer.min(self.accept_up_to), code, reason);
    }

    fn step<'i>(
        &mut self,
        input: &'i [u8],
        now: Duration,
        head: &mut Head,
    ) -> Result<(usize, Option<Event<'i>>), ConnectionError> {
        if let Expect::Preface(seen) = self.expect {
            return self.read_preface(input, seen);
        }
        if let Some(data) = self.data {
            return Ok(self.continue_data(data, input));
        }
        let Some(header) = Header::read(input) else { return Ok((0, None)) };
        if header.length > DEFAULT_MAX_FRAME_BYTES as usize {
            return fatal(Code::FRAME_SIZE_ERROR, "a frame is larger than we allow");
        }
        if self.expect == Expect::FirstSettings && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return fatal(Code::PROTOCOL_ERROR, "the first frame is not SETTINGS");
        }
        // RFC 9113 6.10: nothing may come between the frames of a header block.
        if self.block.is_some_and(|block| header.kind != kind::CONTINUATION || header.stream != block.stream) {
            return fatal(Code::PROTOCOL_ERROR, "a header block is interrupted");
        }
        if header.kind == kind::DATA {
            return self.begin_data(header, &input[HEADER_BYTES..], now);
        }
        let Some(payload) = input.get(HEADER_BYTES..HEADER_BYTES + header.length) else { return Ok((0, None)) };
        let event = match header.kind {
            kind::HEADERS => self.headers(header, payload, now, head)?,
            kind::CONTINUATION => self.continuation(header, payload, now, head)?,
            kind::PRIORITY => self.priority(header, payload, now)?,
            kind::RST_STREAM => self.rst_stream(header, payload, now)?,
            kind::SETTINGS => self.settings(header, payload, now)?,
            kind::PING => self.ping_frame(header, payload, now)?,
            kind::GOAWAY => self.goaway(header, payload)?,
            kind::WINDOW_UPDATE => self.window_update_frame(header, payload, now)?,
            // We never allow push (RFC 9113 8.4).
            kind::PUSH_PROMISE => return fatal(Code::PROTOCOL_ERROR, "PUSH_PROMISE was not allowed"),
            _ => {
                self.spend_idle(now)?;
                None
            }
        };
        Ok((HEADER_BYTES + header.length, event))
    }

    fn read_preface(&mut self, input: &[u8], seen: usize) -> Result<(usize, Option<Event<'static>>), ConnectionError> {
        let count = input.len().min(PREFACE.len() - seen);
        if input[..count] != PREFACE[seen..seen + count] {
            return fatal(Code::PROTOCOL_ERROR, "the connection preface is wrong");
        }
        self.expect = match seen + count {
            all if all == PREFACE.len() => Expect::FirstSettings,
            part => Expect::Preface(part),
        };
        Ok((count, None))
    }

    /// A frame without content is not free: the peer has only so many.
    fn spend_idle(&mut self, now: Duration) -> Result<(), ConnectionError> {
        if self.idle_frames.spend(now) {
            return Ok(());
        }
        fatal(Code::ENHANCE_YOUR_CALM, "too many frames without content")
    }

    /// The same for a kind of frames that a configuration may bound by itself; *bound* is what it says, or `u32::MAX`.
    fn spend_idle_unless_bounded(&mut self, bound: u32, now: Duration) -> Result<(), ConnectionError> {
        if bound == u32::MAX { self.spend_idle(now) } else { Ok(()) }
    }

    /// We answer a frame that cost the peer nothing.
    fn count_answer(&mut self) -> Result<(), ConnectionError> {
        self.counts.waiting = self.counts.waiting.saturating_add(1);
        self.counts.waiting_answers = self.counts.waiting_answers.saturating_add(1);
        if self.counts.waiting_answers > self.limits.floods.outbound_control_frames {
            return fatal(Code::ENHANCE_YOUR_CALM, "too many answers wait to be written");
        }
        Ok(())
    }

    /// The peer's frame carries so many *bytes* of a message, or its end.
    fn count_content(&mut self, bytes: usize, ended: bool) -> Result<(), ConnectionError> {
        if bytes > 0 || ended {
            self.counts.empty_in_a_row = 0;
            return Ok(());
        }
        self.counts.empty_in_a_row += 1;
        if self.counts.empty_in_a_row > self.limits.floods.consecutive_empty_frames {
            return fatal(Code::ENHANCE_YOUR_CALM, "too many empty frames in a row");
        }
        Ok(())
    }

    /// Streams that either side has opened so far.
    fn opened(&self) -> u32 {
        self.peers_opened + self.next_local / 2
    }

    fn is_peers(&self, stream: StreamId) -> bool {
        (stream % 2 == 1) == (self.role == Role::Server)
    }

    /// Whether *stream* has never been opened.
    fn is_idle(&self, stream: StreamId) -> bool {
        if self.is_peers(stream) { stream > self.last_peer } else { stream >= self.next_local }
    }

    // --- streams end ---

    /// Forget *stream* if both sides are done.
    pub(super) fn settle(&mut self, stream: StreamId) {
        if self.streams.get(&stream).is_some_and(Stream::is_over) {
            self.forget(stream);
            self.closed.note(stream);
            // Whole exchanges pay for those that were given up.
            self.resets.earn(1);
        }
    }

    /// Forget *stream* because we reset it.
    pub(super) fn abandon(&mut self, stream: StreamId) {
        self.forget(stream);
        self.abandoned.note(stream);
    }

    /// Whether we have reset *stream*, as far as that can still be told. What the peer sends on it is no fault of its: it may not know yet
    /// (RFC 9113 5.1).
    fn is_abandoned(&self, stream: StreamId) -> bool {
        let may_be = self.abandoned.may_have_dropped(stream) && !self.is_idle(stream);
        self.abandoned.contains(stream) || may_be && !self.closed.contains(stream)
    }

    /// Returns the stream, if there was one.
    fn forget(&mut self, stream: StreamId) -> Option<Stream> {
        let gone = self.streams.remove(&stream);
        self.claimed -= gone.as_ref().map_or(0, |stream| stream.claim);
        gone
    }

    /// Reset *stream* for a rule that the peer broke. Counts like a reset of the peer's: it made us do it (CVE-2025-8671).
    fn break_stream<'i>(&mut self, stream: StreamId, code: Code, reason: Breach, now: Duration) -> Outcome<'i> {
        frame::reset(&mut self.out, stream, code);
        let is_premature = self.streams.get(&stream).is_none_or(|stream| self.is_premature(stream, now));
        self.abandon(stream);
        self.count_answer()?;
        if is_premature {
            self.spend_reset(now)?;
        }
        Ok(Some(Event::Broken { stream, code, reason }))
    }

    /// Whether *stream*, which is given up, has cost the peer nothing: it is unanswered, and too young to have been waited for.
    fn is_premature(&self, stream: &Stream, now: Duration) -> bool {
        stream.sending == Progress::Head && now.saturating_sub(stream.since) < self.limits.allowances.resets.lifetime
    }

    /// The peer has given up a stream prematurely.
    fn spend_reset(&mut self, now: Duration) -> Result<(), ConnectionError> {
        // A server upstream of us may refuse as it likes: it answers what we asked.
        if self.role == Role::Client {
            return Ok(());
        }
        self.premature_resets = self.premature_resets.saturating_add(1);
        if self.resets.spend(now) || self.premature_resets.saturating_mul(2) < self.opened() {
            return Ok(());
        }
        fatal(Code::ENHANCE_YOUR_CALM, "too many streams were given up")
    }

    // --- DATA (RFC 9113 6.1) ---

    fn begin_data<'i>(
        &mut self,
        header: Header,
        rest: &[u8],
        now: Duration,
    ) -> Result<(usize, Option<Event<'i>>), ConnectionError> {
        if header.stream == 0 {
            return fatal(Code::PROTOCOL_ERROR, "DATA on the connection");
        }
        let (padding, skip) = match header.has(flag::PADDED) {
            false => (0, 0),
            true if header.length == 0 => return fatal(Code::FRAME_SIZE_ERROR, "a padded frame without a pad length"),
            true => match rest.first() {
                None => return Ok((0, None)),
                Some(&padding) => (usize::from(padding), 1),
            },
        };
        if skip + padding > header.length {
            return fatal(Code::PROTOCOL_ERROR, "padding is longer than its frame");
        }
        if self.is_idle(header.stream) {
            return fatal(Code::PROTOCOL_ERROR, "DATA on an idle stream");
        }
        // RFC 9113 6.9: the whole frame counts, padding and all, even on streams that are gone.
        if !self.receive_window.receive(header.length) {
            return fatal(Code::FLOW_CONTROL_ERROR, "more DATA than the connection's window");
        }
        let left = header.length - skip - padding;
        let ended = header.has(flag::END_STREAM);
        self.count_content(left, ended)?;
        if left == 0 && !ended {
            self.spend_idle_unless_bounded(self.limits.floods.consecutive_empty_frames, now)?;
        } else {
            self.idle_frames.earn(10);
        }
        let mut event = None;
        let ignored = match self.streams.get_mut(&header.stream).map(|stream| (stream.receiving, stream)) {
            Some((Progress::Body, stream)) => {
                if !stream.receive_window.receive(header.length) {
                    return fatal(Code::FLOW_CONTROL_ERROR, "more DATA than the stream's window");
                }
                let short = stream.expected.as_mut().is_some_and(|expected| match expected.checked_sub(left as u64) {
                    Some(rest) => {
                        *expected = rest;
                        ended && rest > 0
                    }
                    None => true,
                });
                if short {
                    event = self.break_stream(header.stream, Code::PROTOCOL_ERROR, Breach::Length, now)?;
                }
                short
            }
            Some((Progress::Head, _)) => return fatal(Code::PROTOCOL_ERROR, "DATA before the head of a message"),
            Some((Progress::Ended, _)) => {
                event = self.break_stream(header.stream, Code::STREAM_CLOSED, Breach::Protocol, now)?;
                true
            }
            None => {
                if !self.is_abandoned(header.stream) {
                    self.break_stream(header.stream, Code::STREAM_CLOSED, Breach::Protocol, now)?;
                }
                true
            }
        };
        // What is not content is used up at once.
        self.release(header.stream, if ignored { header.length } else { header.length - left });
        let data = Data { stream: header.stream, left, padding, ended: ended && !ignored, ignored };
        self.data = (left > 0 || padding > 0 || data.ended).then_some(data);
        Ok((HEADER_BYTES + skip, event))
    }

    fn continue_data<'i>(&mut self, mut data: Data, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        if data.left == 0 && !data.ended {
            let count = input.len().min(data.padding);
            data.padding -= count;
            self.data = (data.padding > 0).then_some(data);
            return (count, None);
        }
        let bytes = &input[..input.len().min(data.left)];
        if bytes.len() < data.left && bytes.is_empty() {
            return (0, None);
        }
        data.left -= bytes.len();
        let ended = data.left == 0 && std::mem::take(&mut data.ended);
        self.data = (data.left > 0 || data.padding > 0).then_some(data);
        if data.ignored {
            return (bytes.len(), None);
        }
        (bytes.len(), self.body(data.stream, bytes, ended))
    }

    fn body<'i>(&mut self, id: StreamId, bytes: &'i [u8], ended: bool) -> Option<Event<'i>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            // We reset it between two parts of one frame.
            self.release(id, bytes.len());
            return None;
        };
        if ended {
            stream.receiving = Progress::Ended;
            self.settle(id);
        }
        Some(Event::Data { stream: id, data: bytes, ended })
    }

    /// Give back the room that *bytes* of received DATA took; the peer may send as much again.
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(increment) = self.receive_window.release(bytes) {
            frame::window_update(&mut self.out, 0, increment);
        }
        if let Some(state) = self.streams.get_mut(&stream)
            && state.receiving != Progress::Ended
            && let Some(increment) = state.receive_window.release(bytes)
        {
            frame::window_update(&mut self.out, stream, increment);
        }
    }

    // --- HEADERS and CONTINUATION (RFC 9113 6.2, 6.10) ---

    fn headers<'i>(&mut self, header: Header, payload: &[u8], now: Duration, head: &mut Head) -> Outcome<'i> {
        if header.stream == 0 {
            return fatal(Code::PROTOCOL_ERROR, "HEADERS on the connection");
        }
        let mut block = payload;
        let mut padding = 0;
        if header.has(flag::PADDED) {
            let [length, rest @ ..] = block else {
                return fatal(Code::FRAME_SIZE_ERROR, "a padded frame without a pad length");
            };
            (padding, block) = (usize::from(*length), rest);
        }
        let mut broken = false;
        if header.has(flag::PRIORITY) {
            let Some((&[a, b, c, d, _], rest)) = block.split_first_chunk::<5>() else {
                return fatal(Code::FRAME_SIZE_ERROR, "HEADERS is too short for its priority");
            };
            broken = number([a, b, c, d]) & 0x7fff_ffff == header.stream;
            block = rest;
        }
        let Some(length) = block.len().checked_sub(padding) else {
            return fatal(Code::PROTOCOL_ERROR, "padding is longer than its frame");
        };
        self.count_content(length, header.has(flag::END_STREAM))?;
        let begun = Block { stream: header.stream, ended: header.has(flag::END_STREAM), broken };
        if header.has(flag::END_HEADERS) {
            return self.whole_block(begun, &block[..length], now, head);
        }
        self.fragments.clear();
        self.fragments.extend_from_slice(&block[..length]);
        self.block = Some(begun);
        Ok(None)
    }

    fn continuation<'i>(&mut self, header: Header, payload: &[u8], now: Duration, head: &mut Head) -> Outcome<'i> {
        let Some(block) = self.block else {
            return fatal(Code::PROTOCOL_ERROR, "CONTINUATION without HEADERS");
        };
        // CVE-2024-27316: a block without end costs us memory, one of small frames costs us time. Envoy, too, has a bound of both kinds: a fixed
        // one of all such frames (512 in a block), besides what is configured of empty ones.
        self.spend_idle(now)?;
        self.count_content(payload.len(), false)?;
        if self.fragments.len() + payload.len() > self.limits.block_bytes() {
            return fatal(Code::ENHANCE_YOUR_CALM, "a header block is too large");
        }
        self.fragments.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(None);
        }
        self.block = None;
        let fragments = std::mem::take(&mut self.fragments);
        let outcome = self.whole_block(block, &fragments, now, head);
        // Blocks of more than one frame are rare: their memory is not kept.
        self.fragments = Vec::new();
        outcome
    }

    fn whole_block<'i>(&mut self, block: Block, bytes: &[u8], now: Duration, head: &mut Head) -> Outcome<'i> {
        let id = block.stream;
        let known = self.streams.get(&id).map(|stream| (stream.receiving, stream.asked));
        let (part, asked) = match known {
            Some((Progress::Head, asked)) => (Part::Response, asked),
            Some((Progress::Body, asked)) => (Part::Trailers, asked),
            Some((Progress::Ended, _)) => {
                self.decode(bytes, Part::Trailers, head, false, Asked::Content)?;
                return self.break_stream(id, Code::STREAM_CLOSED, Breach::Protocol, now);
            }
            None if self.role == Role::Server && self.is_peers(id) && self.is_idle(id) => {
                (Part::Request, Asked::Content)
            }
            None => return self.late_block(id, bytes, head),
        };
        if part == Part::Request {
            self.last_peer = id;
            self.peers_opened += 1;
            if id > self.accept_up_to {
                self.decode(bytes, part, head, block.ended, Asked::Content)?;
                self.abandoned.note(id);
                return Ok(None);
            }
            if self.streams.len() >= self.limits.streams as usize {
                // RFC 9113 5.1.2. The block is decoded: the tables must agree.
                self.decode(bytes, part, head, block.ended, Asked::Content)?;
                frame::reset(&mut self.out, id, Code::REFUSED_STREAM);
                self.abandon(id);
                self.count_answer()?;
                self.spend_reset(now)?;
                return Ok(None);
            }
        }
        let verdict = self.decode(bytes, part, head, block.ended, asked)?;
        if block.broken {
            return self.break_stream(id, Code::PROTOCOL_ERROR, Breach::Protocol, now);
        }
        match (part, verdict) {
            (_, Verdict::Malformed(error)) => {
                self.break_stream(id, Code::PROTOCOL_ERROR, Breach::Malformed(error), now)
            }
            // RFC 9113 10.5.1: only a request can be answered without being known whole.
            (Part::Response | Part::Trailers, Verdict::TooLarge) => {
                self.break_stream(id, Code::PROTOCOL_ERROR, Breach::TooLarge, now)
            }
            (Part::Trailers, Verdict::Good) => self.end_message(id, block.ended, now),
            (Part::Request, verdict) => {
                let stream = Stream::new(self.remote.initial_window_bytes, self.limits.stream_window_bytes);
                self.streams.insert(id, Stream { since: now, ..stream });
                self.idle_frames.earn(10);
                Ok(Some(self.begin_message(id, head, block.ended, verdict)))
            }
            (Part::Response, Verdict::Good) => {
                let interim = matches!(head.status, 100..200);
                if interim && block.ended {
                    // RFC 9113 8.1: an interim response does not end the stream.
                    return self.break_stream(id, Code::PROTOCOL_ERROR, Breach::Protocol, now);
                }
                if interim {
                    return Ok(Some(Event::Head { stream: id, ended: false }));
                }
                Ok(Some(self.begin_message(id, head, block.ended, verdict)))
            }
        }
    }

    fn begin_message<'i>(&mut self, id: StreamId, head: &Head, ended: bool, verdict: Verdict) -> Event<'i> {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.receiving = if ended { Progress::Ended } else { Progress::Body };
            stream.is_tunnel = match head.status {
                0 => head.wants_tunnel(),
                200..300 => stream.asked == Asked::Tunnel,
                _ => false,
            };
            stream.expected = match head.framing {
                Framing::Length(length) if verdict == Verdict::Good => Some(length),
                // A response that must not have a body.
                Framing::None if head.status != 0 && verdict == Verdict::Good => Some(0),
                _ => None,
            };
        }
        self.settle(id);
        match verdict {
            Verdict::TooLarge => Event::TooLarge { stream: id, ended },
            _ => Event::Head { stream: id, ended },
        }
    }

    fn end_message<'i>(&mut self, id: StreamId, ended: bool, now: Duration) -> Outcome<'i> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        // RFC 9113 8.1: trailers end the message. 8.5: in a tunnel there are none.
        if !ended || stream.is_tunnel {
            return self.break_stream(id, Code::PROTOCOL_ERROR, Breach::Protocol, now);
        }
        if stream.expected.is_some_and(|left| left > 0) {
            return self.break_stream(id, Code::PROTOCOL_ERROR, Breach::Length, now);
        }
        stream.receiving = Progress::Ended;
        self.settle(id);
        Ok(Some(Event::Trailers { stream: id }))
    }

    /// HEADERS on a stream that is over, or that cannot be.
    fn late_block<'i>(&mut self, id: StreamId, bytes: &[u8], head: &mut Head) -> Outcome<'i> {
        if self.is_abandoned(id) {
            self.decode(bytes, Part::Trailers, head, false, Asked::Content)?;
            return Ok(None);
        }
        if self.closed.contains(id) {
            return fatal(Code::STREAM_CLOSED, "HEADERS on a closed stream");
        }
        fatal(Code::PROTOCOL_ERROR, "HEADERS on a stream that cannot be opened")
    }

    fn decode(
        &mut self,
        bytes: &[u8],
        part: Part,
        head: &mut Head,
        ended: bool,
        asked: Asked,
    ) -> Result<Verdict, ConnectionError> {
        let mut reader = Reader::new(head, part, &self.limits);
        match self.decoder.decode(bytes, |field| reader.take(field)) {
            Ok(()) => Ok(reader.finish(ended, asked, self.local.connect_protocol)),
            Err(_) => fatal(Code::COMPRESSION_ERROR, "a header block cannot be decoded"),
        }
    }

    // --- the other frames ---

    fn priority<'i>(&mut self, header: Header, payload: &[u8], now: Duration) -> Outcome<'i> {
        if header.stream == 0 {
            return fatal(Code::PROTOCOL_ERROR, "PRIORITY on the connection");
        }
        let per_stream = self.limits.floods.priority_frames_per_stream;
        self.spend_idle_unless_bounded(per_stream, now)?;
        self.counts.priority_frames = self.counts.priority_frames.saturating_add(1);
        if self.counts.priority_frames > per_stream.saturating_mul(self.opened() + 1) {
            return fatal(Code::ENHANCE_YOUR_CALM, "too many PRIORITY frames");
        }
        let &[a, b, c, d, _] = payload else {
            // RFC 9113 6.3: a stream error.
            return self.break_if_open(header.stream, Code::FRAME_SIZE_ERROR, now);
        };
        if number([a, b, c, d]) & 0x7fff_ffff == header.stream {
            return self.break_if_open(header.stream, Code::PROTOCOL_ERROR, now);
        }
        // Otherwise it says nothing any more (RFC 9113 5.3.2).
        Ok(None)
    }

    /// A stream error by a frame that may come on any stream.
    fn break_if_open<'i>(&mut self, stream: StreamId, code: Code, now: Duration) -> Outcome<'i> {
        let open = self.streams.contains_key(&stream);
        // RST_STREAM must not be sent on an idle stream: there the connection ends (RFC 9113 5.4.2).
        if !open && self.is_idle(stream) {
            return fatal(code, "a malformed frame on an idle stream");
        }
        let event = self.break_stream(stream, code, Breach::Protocol, now)?;
        Ok(event.filter(|_| open))
    }

    fn rst_stream<'i>(&mut self, header: Header, payload: &[u8], now: Duration) -> Outcome<'i> {
        if header.stream == 0 {
            return fatal(Code::PROTOCOL_ERROR, "RST_STREAM on the connection");
        }
        let &[a, b, c, d] = payload else {
            return fatal(Code::FRAME_SIZE_ERROR, "RST_STREAM is not four bytes long");
        };
        if self.is_idle(header.stream) {
            return fatal(Code::PROTOCOL_ERROR, "RST_STREAM on an idle stream");
        }
        let Some(stream) = self.forget(header.stream) else {
            self.spend_idle(now)?;
            return Ok(None);
        };
        self.closed.note(header.stream);
        if self.is_premature(&stream, now) {
            self.spend_reset(now)?;
        }
        Ok(Some(Event::Reset { stream: header.stream, code: Code(number([a, b, c, d])) }))
    }

    fn settings<'i>(&mut self, header: Header, payload: &[u8], now: Duration) -> Outcome<'i> {
        if header.stream != 0 {
            return fatal(Code::PROTOCOL_ERROR, "SETTINGS on a stream");
        }
        if header.has(flag::ACK) {
            if !payload.is_empty() {
                return fatal(Code::FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with content");
            }
            self.spend_idle(now)?;
            self.decoder.allow(self.local.header_table_bytes as usize);
            return Ok(None);
        }
        let is_first = self.expect != Expect::Frames;
        self.expect = Expect::Frames;
        let before = self.remote;
        let smallest_table_bytes = match self.remote.apply(payload, self.role == Role::Client) {
            Ok(smallest) => smallest,
            Err((code, reason)) => return fatal(code, reason),
        };
        let is_change = self.remote != before;
        // A change costs us work for each open stream, however many acknowledgements may wait.
        match is_change {
            _ if is_first => {}
            true => self.spend_idle(now)?,
            false => self.spend_idle_unless_bounded(self.limits.floods.outbound_control_frames, now)?,
        }
        for allowed in [smallest_table_bytes, self.remote.header_table_bytes] {
            self.encoder.set_limit(allowed.min(self.limits.header_table_bytes) as usize);
        }
        let change = i64::from(self.remote.initial_window_bytes) - i64::from(before.initial_window_bytes);
        if change != 0 && !self.streams.values_mut().all(|stream| stream.send_window.widen(change)) {
            return fatal(Code::FLOW_CONTROL_ERROR, "a window is larger than 2^31-1");
        }
        frame::settings_ack(&mut self.out);
        self.count_answer()?;
        Ok((is_first || is_change).then_some(Event::Settings))
    }

    fn ping_frame<'i>(&mut self, header: Header, payload: &[u8], now: Duration) -> Outcome<'i> {
        if header.stream != 0 {
            return fatal(Code::PROTOCOL_ERROR, "PING on a stream");
        }
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return fatal(Code::FRAME_SIZE_ERROR, "PING is not eight bytes long");
        };
        if header.has(flag::ACK) {
            // The answer to a PING of ours was paid for when we asked.
            match self.unanswered_pings.checked_sub(1) {
                Some(left) => self.unanswered_pings = left,
                None => self.spend_idle(now)?,
            }
            return Ok(Some(Event::Pong(payload)));
        }
        self.spend_idle_unless_bounded(self.limits.floods.outbound_control_frames, now)?;
        frame::ping(&mut self.out, flag::ACK, payload);
        self.count_answer()?;
        Ok(None)
    }

    fn goaway<'i>(&mut self, header: Header, payload: &[u8]) -> Outcome<'i> {
        if header.stream != 0 {
            return fatal(Code::PROTOCOL_ERROR, "GOAWAY on a stream");
        }
        let Some((&[a, b, c, d, e, f, g, h], _)) = payload.split_first_chunk::<8>() else {
            return fatal(Code::FRAME_SIZE_ERROR, "GOAWAY is too short");
        };
        self.peer_is_leaving = true;
        Ok(Some(Event::GoAway { last: number([a, b, c, d]) & 0x7fff_ffff, code: Code(number([e, f, g, h])) }))
    }

    fn window_update_frame<'i>(&mut self, header: Header, payload: &[u8], now: Duration) -> Outcome<'i> {
        let &[a, b, c, d] = payload else {
            return fatal(Code::FRAME_SIZE_ERROR, "WINDOW_UPDATE is not four bytes long");
        };
        self.counts.window_updates = self.counts.window_updates.saturating_add(1);
        // Envoy's formula: some to begin with, and two for each stream.
        let per_data_frame = self.limits.floods.window_updates_per_data_frame;
        let earned = per_data_frame.saturating_mul(self.counts.data_frames_sent).saturating_add(self.opened());
        let is_limited = per_data_frame != u32::MAX;
        self.spend_idle_unless_bounded(per_data_frame, now)?;
        if is_limited && self.counts.window_updates > earned.saturating_mul(2).saturating_add(5) {
            return fatal(Code::ENHANCE_YOUR_CALM, "too many WINDOW_UPDATE frames");
        }
        let increment = i64::from(number([a, b, c, d]) & 0x7fff_ffff);
        if header.stream == 0 {
            if increment == 0 {
                return fatal(Code::PROTOCOL_ERROR, "WINDOW_UPDATE by nothing");
            }
            if !self.send_window.widen(increment) {
                return fatal(Code::FLOW_CONTROL_ERROR, "the connection's window is larger than 2^31-1");
            }
            self.widest = self.widest.max(self.send_window.available() as u64);
            return Ok(Some(Event::Writable { stream: 0 }));
        }
        if self.is_idle(header.stream) {
            return fatal(Code::PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream");
        }
        let Some(stream) = self.streams.get_mut(&header.stream) else { return Ok(None) };
        if increment == 0 {
            return self.break_stream(header.stream, Code::PROTOCOL_ERROR, Breach::Protocol, now);
        }
        if !stream.send_window.widen(increment) {
            return self.break_stream(header.stream, Code::FLOW_CONTROL_ERROR, Breach::Protocol, now);
        }
        Ok(Some(Event::Writable { stream: header.stream }))
    }
}
