//! From header fields to a [`Head`], by the rules of RFC 9113 8: pseudo-header fields, lengths, what must not be there.
//!
//! A head that passes here can be written as HTTP/1.1 and means the same there. That is the whole defence against smuggling by downgrade, so
//! nothing is repaired: a message that breaks a rule is malformed, and its stream is reset.

use weft_core::request::{Scheme, is_of_token};

use super::hpack::{Field, Kind};
use super::limits::Limits;
use crate::codec::{Framing, Head, Known, Name, Version, has_port, is_authority_byte, is_forbidden_trailer};

/// Why a message is malformed (RFC 9113 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a field has an illegal name or value")]
    Field,
    #[error("a pseudo-header field is unknown, repeated, out of place or missing")]
    Pseudo,
    #[error("a field of a connection of HTTP/1.1")]
    ConnectionSpecific,
    #[error("the path is malformed")]
    Path,
    #[error("the authority is malformed, or Host contradicts it")]
    Authority,
    #[error("content-length is not one number")]
    Length,
    #[error("the status is not a number from 100 to 999, or it is 101")]
    Status,
}

/// What a header block is the begin of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Request,
    Response,
    Trailers,
}

/// What a request asked for, as far as it says what follows the head of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// What follows is the answer's content, if it has any.
    Content,
    /// By HEAD: nothing follows, whatever its length says.
    Head,
    /// By CONNECT: what follows a success is the tunnel's.
    Tunnel,
}

impl Asked {
    pub fn of(request: &Head) -> Asked {
        if request.wants_tunnel() {
            Asked::Tunnel
        } else if request.is_head_request() {
            Asked::Head
        } else {
            Asked::Content
        }
    }
}

/// What came of a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Larger than the limits; the head holds what fitted.
    TooLarge,
    Malformed(MessageError),
}

/// Collects the fields of one header block.
pub struct Reader<'h> {
    head: &'h mut Head,
    part: Part,
    header_bytes: usize,
    header_fields: usize,
    error: Option<MessageError>,
    too_large: bool,
    bytes: usize,
    fields: usize,
    regular: bool,
    scheme: bool,
    method: bool,
    path: bool,
    authority: bool,
    status: bool,
    protocol: Vec<u8>,
    host: Option<Vec<u8>>,
    cookie: Vec<u8>,
    cookie_never_indexed: bool,
    length: Option<u64>,
}

impl<'h> Reader<'h> {
    pub fn new(head: &'h mut Head, part: Part, limits: &Limits) -> Reader<'h> {
        head.clear();
        head.version = Version::Http2;
        Reader {
            head,
            part,
            header_bytes: limits.header_bytes,
            header_fields: limits.header_fields,
            error: None,
            too_large: false,
            bytes: 0,
            fields: 0,
            regular: false,
            scheme: false,
            method: false,
            path: false,
            authority: false,
            status: false,
            protocol: Vec::new(),
            host: None,
            cookie: Vec::new(),
            cookie_never_indexed: false,
            length: None,
        }
    }

    pub fn take(&mut self, field: Field<'_>) {
        if self.error.is_some() {
            return;
        }
        if !field.legal {
            self.error = Some(MessageError::Field);
            return;
        }
        self.bytes += field.name.len() + field.value.len();
        self.fields += 1;
        self.too_large |= self.bytes > self.header_bytes || self.fields > self.header_fields;
        // Nothing more is kept: a block of a few bytes may stand for megabytes.
        if self.too_large {
            return;
        }
        if let Err(error) = self.place(field) {
            self.error = Some(error);
        }
    }

    fn place(&mut self, field: Field<'_>) -> Result<(), MessageError> {
        let value = field.value;
        match field.kind {
            Kind::Method
            | Kind::Scheme
            | Kind::Authority
            | Kind::Path
            | Kind::Status
            | Kind::Protocol
            | Kind::UnknownPseudo => return self.place_pseudo(field),
            _ => self.regular = true,
        }
        match field.kind {
            Kind::ConnectionSpecific => return Err(MessageError::ConnectionSpecific),
            // RFC 9113 8.2.2
            Kind::Te if value != b"trailers" => return Err(MessageError::ConnectionSpecific),
            Kind::Te => self.head.accepts_trailers = true,
            Kind::Host if self.part == Part::Request => {
                if self.host.is_some() {
                    return Err(MessageError::Authority);
                }
                self.host = Some(value.to_vec());
            }
            Kind::ContentLength if self.part != Part::Trailers => {
                let length = crate::codec::parse_length(value).ok_or(MessageError::Length)?;
                // Two fields are a sign of two writers, so equal ones are refused too, as in HTTP/1.1.
                if self.length.replace(length).is_some() {
                    return Err(MessageError::Length);
                }
            }
            _ if self.part == Part::Trailers && is_forbidden_trailer(field.name) => {}
            // A crumb without bytes adds none: a value must not end in a space.
            Kind::Cookie if self.part == Part::Request && value.is_empty() => {}
            Kind::Cookie if self.part == Part::Request => {
                // RFC 9113 8.2.3: crumbs become one cookie again.
                if !self.cookie.is_empty() {
                    self.cookie.extend_from_slice(b"; ");
                }
                self.cookie.extend_from_slice(value);
                self.cookie_never_indexed |= field.never_indexed;
            }
            Kind::Regular(known) => self.append(field, known),
            Kind::Expect => {
                self.head.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
                self.append(field, Known::Expect);
            }
            _ => self.append(field, Known::Other),
        }
        Ok(())
    }

    fn append(&mut self, field: Field<'_>, known: Known) {
        let name = Name { bytes: field.name, known };
        if field.never_indexed {
            self.head.append_never_indexed(name, field.value);
        } else {
            self.head.append(name, field.value);
        }
    }

    fn place_pseudo(&mut self, field: Field<'_>) -> Result<(), MessageError> {
        let once = |seen: &mut bool| if std::mem::replace(seen, true) { Err(MessageError::Pseudo) } else { Ok(()) };
        // RFC 9113 8.3: before all others, and never in trailers.
        if self.regular || self.part == Part::Trailers || (self.part == Part::Response) != (field.kind == Kind::Status)
        {
            return Err(MessageError::Pseudo);
        }
        let value = field.value;
        match field.kind {
            Kind::Method => {
                once(&mut self.method)?;
                if !is_token(value) {
                    return Err(MessageError::Pseudo);
                }
                self.head.set_method(value);
            }
            Kind::Scheme => {
                once(&mut self.scheme)?;
                // RFC 3986 3.1
                let rest = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                if !value.first().is_some_and(u8::is_ascii_alphabetic) || !value.iter().all(rest) {
                    return Err(MessageError::Pseudo);
                }
                self.head.scheme = Scheme::parse(value);
            }
            Kind::Authority => {
                once(&mut self.authority)?;
                if !value.iter().all(|&byte| is_authority_byte(byte)) {
                    return Err(MessageError::Authority);
                }
                self.head.set_authority(value);
            }
            Kind::Path => {
                once(&mut self.path)?;
                // A space would end the target of an HTTP/1.1 request line; a fragment is not for servers. Beyond ASCII is no URI
                // (RFC 3986 2), and HTTP/1.1 refuses it.
                if value.is_empty() || value.iter().any(|&byte| !byte.is_ascii_graphic() || byte == b'#') {
                    return Err(MessageError::Path);
                }
                self.head.set_path(value);
            }
            Kind::Protocol => {
                if !self.protocol.is_empty() || !is_token(value) {
                    return Err(MessageError::Pseudo);
                }
                self.protocol = value.to_vec();
            }
            Kind::Status => {
                once(&mut self.status)?;
                self.head.status = parse_status(value).ok_or(MessageError::Status)?;
            }
            _ => return Err(MessageError::Pseudo),
        }
        Ok(())
    }

    /// The block has ended. *ended* says that the stream did too, *asked* what a response answers, *extended* that extended CONNECT was offered.
    pub fn finish(mut self, ended: bool, asked: Asked, extended: bool) -> Verdict {
        if let Some(error) = self.error {
            return Verdict::Malformed(error);
        }
        if self.too_large {
            return Verdict::TooLarge;
        }
        if !self.cookie.is_empty() {
            let name = Name::new("cookie");
            if self.cookie_never_indexed {
                self.head.append_never_indexed(name, &self.cookie);
            } else {
                self.head.append(name, &self.cookie);
            }
        }
        let result = match self.part {
            Part::Request => self.finish_request(extended).and_then(|()| self.frame(ended, asked)),
            Part::Response if !self.status => Err(MessageError::Pseudo),
            Part::Response => self.frame(ended, asked),
            Part::Trailers => Ok(()),
        };
        result.map_or_else(Verdict::Malformed, |()| Verdict::Good)
    }

    fn finish_request(&mut self, extended: bool) -> Result<(), MessageError> {
        if !self.method {
            return Err(MessageError::Pseudo);
        }
        match self.host.take() {
            // RFC 9113 8.3.1: a Host that names somebody else is how two hops are made to route differently.
            Some(host) if self.authority && !host.eq_ignore_ascii_case(self.head.authority()) => {
                return Err(MessageError::Authority);
            }
            Some(host) if !self.authority => {
                if !host.iter().all(|&byte| is_authority_byte(byte)) {
                    return Err(MessageError::Authority);
                }
                self.head.set_authority(&host);
            }
            _ => {}
        }
        let connect = self.head.is_connect();
        if !self.protocol.is_empty() {
            // RFC 8441 4: only after we offered it, and with scheme and path.
            if !extended || !connect || !self.scheme || !self.path {
                return Err(MessageError::Pseudo);
            }
            // To the rest of the proxy it is the upgrade that it would be in HTTP/1.1.
            self.head.set_method(b"GET");
            let protocol = std::mem::take(&mut self.protocol);
            self.head.set_upgrade(&protocol);
        } else if connect {
            // RFC 9113 8.5
            if self.scheme || self.path || !self.authority {
                return Err(MessageError::Pseudo);
            }
            if !has_port(self.head.authority()) {
                return Err(MessageError::Authority);
            }
            // What follows is the tunnel's, not a body.
            return if self.length.is_some() { Err(MessageError::Length) } else { Ok(()) };
        }
        if !self.scheme || !self.path {
            return Err(MessageError::Pseudo);
        }
        let path = self.head.path();
        if path.first() != Some(&b'/') && !(path == b"*" && self.head.method() == b"OPTIONS") {
            return Err(MessageError::Path);
        }
        Ok(())
    }

    fn frame(&mut self, ended: bool, asked: Asked) -> Result<(), MessageError> {
        let head = &mut *self.head;
        if head.status == 101 {
            // RFC 9113 8.6
            return Err(MessageError::Status);
        }
        let is_response = head.status != 0;
        let opens_tunnel = asked == Asked::Tunnel && matches!(head.status, 200..300);
        if opens_tunnel {
            // RFC 9110 9.3.6: a client ignores it.
            self.length = None;
        }
        let bodiless =
            is_response && !opens_tunnel && (asked == Asked::Head || matches!(head.status, 100..200 | 204 | 304));
        head.framing = if bodiless {
            // RFC 9110 8.6: not in 1xx and 204, also if they answer HEAD.
            head.declared_length = self.length.filter(|_| !matches!(head.status, 100..200 | 204));
            Framing::None
        } else if ended {
            // RFC 9113 8.1.1: the length must be that of the body.
            if self.length.is_some_and(|length| length != 0) {
                return Err(MessageError::Length);
            }
            head.declared_length = self.length;
            if is_response { Framing::Length(0) } else { Framing::None }
        } else if !head.upgrade().is_empty() || head.is_connect() {
            Framing::None
        } else if is_response && self.length == Some(0) {
            // All that may follow are trailers, which only HTTP/2 can pass on.
            head.declared_length = self.length;
            head.ends_later = true;
            Framing::Length(0)
        } else {
            // Unknown length; HTTP/1.1 would call it chunked.
            self.length.map_or(Framing::Chunked, Framing::Length)
        };
        Ok(())
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().copied().all(is_of_token)
}

fn parse_status(value: &[u8]) -> Option<u16> {
    let &[a, b, c] = value else { return None };
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    let status = digit(a)? * 100 + digit(b)? * 10 + digit(c)?;
    (100..1000).contains(&status).then_some(status)
}
