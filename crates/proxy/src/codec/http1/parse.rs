//! Heads of requests and responses from bytes.
//!
//! `httparse` finds the fields; what it would let pass and another party might read differently is refused here: bare LF,
//! two lengths, a length beside chunks, several hosts, unknown transfer codings. A refused request is answered and its connection
//! closed, because nobody knows where the next request would begin.

use std::mem::MaybeUninit;

use weft_core::http1::Http1Options;
use weft_core::request::Scheme;

use super::super::head::is_end_to_end;
use super::super::{Framing, Head, Known, Version, has_port, is_authority_byte, parse_length};

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes from the first of the start line to the empty line.
    pub head_bytes: usize,
    pub fields: usize,
}

impl Limits {
    /// For whom nothing is configured: 60 KiB and 100 fields.
    #[cfg(test)]
    pub const DEFAULT: Limits = Limits { head_bytes: 60 * 1024, fields: 100 };
}

/// So many fields are parsed into a place on the stack. Where the configuration allows more, a head that has more costs an allocation.
const STACK_FIELDS: usize = 256;

type Place<'r> = MaybeUninit<httparse::Header<'r>>;

/// Lend *parse* a place for as many fields as *limits* allow.
fn with_fields<'r>(
    raw: &'r [u8],
    limits: Limits,
    mut parse: impl FnMut(&mut [Place<'r>]) -> Result<(), HeadError>,
) -> Result<(), HeadError> {
    let mut fields = [const { Place::uninit() }; STACK_FIELDS];
    match parse(&mut fields[..limits.fields.min(STACK_FIELDS)]) {
        Err(HeadError::TooManyFields) if limits.fields > STACK_FIELDS => {
            // No field is shorter than `a:` with its line end.
            let most = limits.fields.min(raw.len() / 4 + 1);
            parse(&mut vec![Place::uninit(); most])
        }
        result => result,
    }
}

/// Fields that a message may nominate with `Connection`. Each is looked for among all fields; Envoy takes fewer than ten options.
const MOST_NOMINATED: usize = 9;

/// Why a head was refused. The peer caused each of these; trying again does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the start line is not HTTP")]
    StartLine,
    #[error("the protocol version is not supported")]
    Version,
    #[error("a line ends without CR")]
    BareLineFeed,
    #[error("a header field is malformed")]
    Field,
    #[error("the request target is malformed")]
    Target,
    #[error("the head is too large")]
    TooLarge,
    #[error("there are too many header fields")]
    TooManyFields,
    #[error("Content-Length and Transfer-Encoding are both present")]
    LengthAndEncoding,
    #[error("Content-Length is not one number")]
    Length,
    #[error("a CONNECT has a body")]
    ConnectBody,
    #[error("an interim response has a body")]
    InterimBody,
    #[error("the transfer coding is not supported")]
    Encoding,
    #[error("Host is missing or present twice")]
    Host,
    #[error("Connection nominates a field that is not for this connection only, or too many")]
    Nominated,
    #[error("the status is not a number from 100 to 999")]
    Status,
}

impl HeadError {
    /// The detail that access records show, in the form of Envoy's response code details.
    pub fn details(self) -> &'static str {
        match self {
            HeadError::TooLarge => "http1.headers_too_large",
            HeadError::TooManyFields => "http1.too_many_headers",
            HeadError::Host => "missing_host_header",
            HeadError::LengthAndEncoding => "http1.content_length_and_chunked_not_allowed",
            HeadError::Encoding => "http1.invalid_transfer_encoding",
            HeadError::Target => "http1.invalid_url",
            HeadError::Nominated => "http1.connection_header_rejected",
            _ => "http1.codec_error",
        }
    }
}

/// What is kept of how a head is written, beyond what it means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeps {
    /// The case of names that the encoder writes again.
    pub case: bool,
    /// The reason phrase of a response.
    pub reason: bool,
}

impl Keeps {
    pub fn of(options: Http1Options) -> Keeps {
        Keeps { case: options.keeps_case, reason: options.forwards_reason }
    }
}

/// Finds where a head ends, without reading again what was read before, and parses it once it is whole.
#[derive(Debug, Default)]
pub struct HeadParser {
    /// Bytes of the present head that were searched and hold no end.
    searched: usize,
    keeps: Keeps,
}

impl HeadParser {
    /// One that keeps this too.
    pub fn keeping(keeps: Keeps) -> HeadParser {
        HeadParser { searched: 0, keeps }
    }

    /// Parse a request's head from the begin of *input* into *head*.
    ///
    /// Returns the length of the head, or `None` if more bytes are needed; then call again with the same bytes and more.
    ///
    /// # Errors
    /// [`HeadError`]; the connection cannot be used any further.
    pub fn request(&mut self, input: &[u8], head: &mut Head, limits: Limits) -> Result<Option<usize>, HeadError> {
        // RFC 9112 2.2: a server should ignore an empty line before the request line.
        if input == b"\r" {
            // Perhaps the begin of that line: nothing may be remembered about it yet.
            return Ok(None);
        }
        let skipped = if input.starts_with(b"\r\n") { 2 } else { 0 };
        let input = &input[skipped..];
        let Some(length) = self.find_end(input, limits)? else { return Ok(None) };
        self.searched = 0;
        let raw = &input[..length];
        with_fields(raw, limits, |fields| parse_request(raw, head, fields, self.keeps.case))?;
        Ok(Some(skipped + length))
    }

    /// Parse a response's head; see [`HeadParser::request`]. *to_head* says that the request was HEAD.
    ///
    /// # Errors
    /// [`HeadError`]; the connection cannot be used any further.
    pub fn response(
        &mut self,
        input: &[u8],
        head: &mut Head,
        limits: Limits,
        to_head: bool,
    ) -> Result<Option<usize>, HeadError> {
        let Some(length) = self.find_end(input, limits)? else { return Ok(None) };
        self.searched = 0;
        let raw = &input[..length];
        with_fields(raw, limits, |fields| parse_response(raw, head, fields, self.keeps, to_head))?;
        Ok(Some(length))
    }

    /// Length of the head with its empty line, if it is whole. Every line must end with CR LF.
    fn find_end(&mut self, input: &[u8], limits: Limits) -> Result<Option<usize>, HeadError> {
        // TLS on a plain port begins with 0x16: say so at once instead of waiting for a line that never ends.
        if input.first().is_some_and(|&byte| byte < 0x20) {
            return Err(HeadError::StartLine);
        }
        let mut at = self.searched;
        while let Some(offset) = memchr::memchr(b'\n', &input[at..]) {
            let line_feed = at + offset;
            // First, for what lies behind the limit is not always there yet: the answer must not hang on how the bytes arrive.
            if line_feed >= limits.head_bytes {
                return Err(HeadError::TooLarge);
            }
            if line_feed == 0 || input[line_feed - 1] != b'\r' {
                return Err(HeadError::BareLineFeed);
            }
            if line_feed >= 3 && &input[line_feed - 3..line_feed] == b"\r\n\r" {
                return Ok(Some(line_feed + 1));
            }
            at = line_feed + 1;
        }
        self.searched = input.len();
        if input.len() >= limits.head_bytes { Err(HeadError::TooLarge) } else { Ok(None) }
    }
}

fn parse_request<'r>(
    raw: &'r [u8],
    head: &mut Head,
    fields: &mut [Place<'r>],
    keeps_case: bool,
) -> Result<(), HeadError> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(raw, fields) {
        Ok(httparse::Status::Complete(length)) if length == raw.len() => {}
        Ok(_) => return Err(HeadError::Field),
        Err(error) => return Err(refusal(error)),
    }
    // `parse` succeeded, so all three are there; `ok_or` keeps foreign bytes away from a panic.
    let method = request.method.ok_or(HeadError::StartLine)?;
    let target = request.path.ok_or(HeadError::StartLine)?;
    head.clear();
    head.version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
    head.adopt(raw);
    head.place_method(span(head, raw, method.as_bytes()));

    let mut lines = MessageFields { keeps_case, ..MessageFields::default() };
    lines.read(head, raw, request.headers)?;
    head.close = lines.close || (head.version == Version::Http10 && !lines.keep_alive);
    head.framing = match (lines.length, lines.chunked) {
        (Some(_), true) => return Err(HeadError::LengthAndEncoding),
        // RFC 9112 6.1: HTTP/1.0 knows no transfer codings; who sends one has its framing wrong.
        (None, true) if head.version == Version::Http10 => return Err(HeadError::Encoding),
        (None, true) => Framing::Chunked,
        (Some(0), false) => {
            head.declared_length = Some(0);
            Framing::None
        }
        (Some(length), false) => Framing::Length(length),
        (None, false) => Framing::None,
    };
    // RFC 9110 9.3.6: what follows is the tunnel's. Who announces a body there reads the tunnel's first bytes in another way.
    if head.is_connect() && (lines.length.is_some() || lines.chunked) {
        return Err(HeadError::ConnectBody);
    }
    place_target(head, raw, method, target, lines.host)?;
    Ok(())
}

/// Split the request target into path and authority (RFC 9112 3.2).
fn place_target(head: &mut Head, raw: &[u8], method: &str, target: &str, host: Option<&[u8]>) -> Result<(), HeadError> {
    // RFC 9112 3.2: a request of HTTP/1.1 without exactly one Host is answered 400.
    if host.is_none() && head.version == Version::Http11 {
        return Err(HeadError::Host);
    }
    if let Some(host) = host {
        if !host.iter().all(|&byte| is_authority_byte(byte)) {
            return Err(HeadError::Host);
        }
        head.place_authority(span(head, raw, host));
    }
    let bytes = target.as_bytes();
    // A fragment is not for servers. Beyond ASCII is no URI (RFC 3986 2): Envoy refuses it, and so does every peer that is asked in HTTP/2.
    if bytes.iter().any(|&byte| !byte.is_ascii_graphic() || byte == b'#') {
        return Err(HeadError::Target);
    }
    if method == "CONNECT" {
        if !bytes.iter().all(|&byte| is_authority_byte(byte)) || !has_port(bytes) {
            return Err(HeadError::Target);
        }
        head.place_authority(span(head, raw, bytes));
        return Ok(());
    }
    if bytes.first() == Some(&b'/') || (bytes == b"*" && method == "OPTIONS") {
        head.place_path(span(head, raw, bytes));
        return Ok(());
    }
    // Absolute form. RFC 9112 3.2.2: its authority replaces what Host says.
    let lower = target.get(..8).map(str::to_ascii_lowercase).unwrap_or_else(|| target.to_ascii_lowercase());
    let (scheme, rest) = match (lower.starts_with("http://"), lower.starts_with("https://")) {
        (true, _) => (Scheme::Http, &bytes[7..]),
        (_, true) => (Scheme::Https, &bytes[8..]),
        _ => return Err(HeadError::Target),
    };
    head.scheme = Some(scheme);
    let end = rest.iter().position(|&byte| byte == b'/' || byte == b'?').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !authority.iter().all(|&byte| is_authority_byte(byte)) {
        return Err(HeadError::Target);
    }
    head.place_authority(span(head, raw, authority));
    match path.first() {
        Some(b'/') => head.place_path(span(head, raw, path)),
        Some(_) => {
            let mut with_slash = Vec::with_capacity(path.len() + 1);
            with_slash.push(b'/');
            with_slash.extend_from_slice(path);
            head.set_path(&with_slash);
        }
        None => {
            head.set_path(b"/");
            // RFC 9112 3.2.4: it is about the server as a whole. Routes know it by the path that it would have.
            head.about_server = method == "OPTIONS";
        }
    }
    Ok(())
}

fn parse_response<'r>(
    raw: &'r [u8],
    head: &mut Head,
    fields: &mut [Place<'r>],
    keeps: Keeps,
    to_head: bool,
) -> Result<(), HeadError> {
    let mut response = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, raw, fields) {
        Ok(httparse::Status::Complete(length)) if length == raw.len() => {}
        Ok(_) => return Err(HeadError::Field),
        Err(error) => return Err(refusal(error)),
    }
    let status = response.code.filter(|code| (100..=999).contains(code)).ok_or(HeadError::Status)?;
    head.clear();
    head.status = status;
    head.version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
    head.adopt(raw);
    if keeps.reason {
        head.spelling.reason = span(head, raw, reason_of(raw));
    }

    let mut lines = MessageFields { keeps_case: keeps.case, ..MessageFields::default() };
    lines.read(head, raw, response.headers)?;
    if lines.chunked && lines.length.is_some() {
        return Err(HeadError::LengthAndEncoding);
    }
    let announces_body = lines.chunked || lines.length.is_some_and(|length| length > 0);
    // RFC 9112 6.3, in its order.
    head.framing = if to_head || matches!(status, 100..200 | 204 | 304) {
        // RFC 9110 8.6: not in these, also if they answer HEAD.
        head.declared_length = lines.length.filter(|_| !matches!(status, 100..200 | 204));
        Framing::None
    } else if lines.chunked {
        Framing::Chunked
    } else {
        lines.length.map_or(Framing::UntilClose, Framing::Length)
    };
    // RFC 9110 15.2: what follows an interim response is the next one's head. It cannot be found behind a body.
    if status < 200 && announces_body {
        return Err(HeadError::InterimBody);
    }
    head.close = lines.close
        || (head.version == Version::Http10 && !lines.keep_alive)
        || head.framing == Framing::UntilClose
        // RFC 9112 6.1: HTTP/1.0 knows no transfer codings; somebody on the way may have framed it in another way.
        || (head.version == Version::Http10 && lines.chunked)
        // RFC 9110 8.6, RFC 9112 6.1: neither belongs there. Its body may come, and is nobody's.
        || (status == 204 && announces_body);
    Ok(())
}

/// The reason phrase in *raw*, a response's head that has been read: what follows `HTTP/1.1 200 `, perhaps nothing. (The parser has none that
/// is not ASCII.)
fn reason_of(raw: &[u8]) -> &[u8] {
    let line = raw.trim_ascii_start();
    let end = line.iter().position(|&byte| byte == b'\r').unwrap_or(line.len());
    &line[b"HTTP/1.1 200 ".len().min(end)..end]
}

/// What the fields of a message say about its framing and connection.
#[derive(Default)]
struct MessageFields<'a> {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade_option: bool,
    nominated: usize,
    host: Option<&'a [u8]>,
    /// How names are written is kept.
    keeps_case: bool,
}

impl<'a> MessageFields<'a> {
    fn read(&mut self, head: &mut Head, raw: &[u8], fields: &[httparse::Header<'a>]) -> Result<(), HeadError> {
        let mut upgrade = None;
        for field in fields {
            let name = field.name.as_bytes();
            let value = field.value;
            match name.len() {
                4 if head.status == 0 && name.eq_ignore_ascii_case(b"host") => {
                    if self.host.replace(value).is_some() {
                        return Err(HeadError::Host);
                    }
                    if self.keeps_case {
                        head.spelling.host = span(head, raw, name);
                    }
                    continue;
                }
                14 if name.eq_ignore_ascii_case(b"content-length") => {
                    let length = parse_length(value).ok_or(HeadError::Length)?;
                    // RFC 9112 6.3 allows equal lengths to be merged; two fields are a sign of two writers, so both are refused.
                    if self.length.replace(length).is_some() {
                        return Err(HeadError::Length);
                    }
                    if self.keeps_case {
                        head.spelling.content_length = span(head, raw, name);
                    }
                    continue;
                }
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    // Other codings than exactly "chunked" would have to be decoded to be forwarded honestly.
                    if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(HeadError::Encoding);
                    }
                    self.chunked = true;
                    if self.keeps_case {
                        head.spelling.transfer_encoding = span(head, raw, name);
                    }
                    continue;
                }
                _ => {}
            }
            let known = Known::of(name);
            match known {
                Known::Connection => self.read_connection(value, head.status == 0)?,
                Known::Expect => head.expects_continue |= value.eq_ignore_ascii_case(b"100-continue"),
                Known::Te => head.accepts_trailers |= has_token(value, b"trailers"),
                Known::Upgrade => upgrade = upgrade.or(Some(value)),
                _ => {}
            }
            let name_span = span(head, raw, name);
            let value_span = span(head, raw, value);
            head.place_field(name_span, value_span, known);
        }
        // RFC 9110 7.8: Upgrade without the connection option is not a wish of this hop, and one in HTTP/1.0 is ignored.
        let is_old = head.status == 0 && head.version == Version::Http10;
        if let Some(value) = upgrade.filter(|_| self.upgrade_option && !is_old) {
            head.place_upgrade(span(head, raw, value));
        }
        Ok(())
    }

    fn read_connection(&mut self, value: &[u8], is_request: bool) -> Result<(), HeadError> {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade_option = true;
            } else if !option.is_empty() {
                self.nominated += 1;
                // RFC 9110 7.6.1. Who takes such a field away wants the next hop to decide without it.
                let is_foreign = is_request && (option[0] == b':' || is_end_to_end(option));
                if is_foreign || self.nominated > MOST_NOMINATED {
                    return Err(HeadError::Nominated);
                }
            }
        }
        Ok(())
    }
}

/// Whether a comma-separated list holds *token*, in any case.
pub fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|&byte| byte == b',').any(|item| {
        let item = item.split(|&byte| byte == b';').next().unwrap_or_default();
        item.trim_ascii().eq_ignore_ascii_case(token)
    })
}

/// Where *part*, which lies inside *raw*, is in the head's copy of *raw*.
fn span(head: &Head, raw: &[u8], part: &[u8]) -> super::super::head::Span {
    let start = part.as_ptr() as usize - raw.as_ptr() as usize;
    head.span_at(start, part.len())
}

fn refusal(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::Version => HeadError::Version,
        httparse::Error::TooManyHeaders => HeadError::TooManyFields,
        httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine => HeadError::Field,
        httparse::Error::Status => HeadError::Status,
        httparse::Error::Token => HeadError::StartLine,
    }
}
