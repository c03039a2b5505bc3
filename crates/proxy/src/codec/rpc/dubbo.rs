//! Dubbo 2: the protocol `dubbo://`, with hessian2.
//!
//! ```text
//!  0      2      3        4            12          16
//!  | dabb | flag | status | request id | body size | body
//! ```
//!
//! flag: 0x80 request, 0x40 an answer is wanted, 0x20 event (not a call), low five bits the serialisation. A request's body: version of Dubbo, path of the
//! service, its version, method, description of the parameters' types, arguments, attachments. An answer's: what kind it is, a value, attachments.
//!
//! Sources: dubbo.apache.org, "Dubbo2 protocol specification"; where it is silent, Dubbo's own `ExchangeCodec`, `DubboCodec` and
//! `HeaderExchangeHandler` (3.2), and Envoy's filter `dubbo_proxy`, whose limits and whose choice of statuses these are.

use std::time::Duration;

use super::hessian2::{Broken, Reader, write_text};
use super::{Call, Codec, Failure, Frame, Limits, Malformed, Message, Refusal, Rest, Sharing, Status};

/// `ExchangeCodec.MAGIC`
const MAGIC: [u8; 2] = [0xda, 0xbb];
const HEAD_BYTES: usize = 16;
/// Envoy's `MaxBodySize`. Dubbo's own default (`payload`) is the half of it, and an application may raise that.
const MOST_BODY_BYTES: u32 = 16 * 1024 * 1024;
const REQUEST: u8 = 0x80;
const TWO_WAY: u8 = 0x40;
const EVENT: u8 = 0x20;
const SERIALIZATION: u8 = 0x1f;
/// `Hessian2Serialization`
const HESSIAN2: u8 = 2;
/// Null, which is the body of a heartbeat.
const NULL: &[u8] = b"N";
/// `Request.READONLY_EVENT`: its receiver begins no more calls on the connection.
const READ_ONLY: &[u8] = b"\x01R";

/// `Response`'s statuses.
mod status {
    pub const OK: u8 = 20;
    pub const SERIALIZATION_ERROR: u8 = 25;
    pub const CLIENT_TIMEOUT: u8 = 30;
    pub const SERVER_TIMEOUT: u8 = 31;
    pub const CHANNEL_INACTIVE: u8 = 35;
    pub const BAD_REQUEST: u8 = 40;
    pub const BAD_RESPONSE: u8 = 50;
    pub const SERVICE_NOT_FOUND: u8 = 60;
    pub const SERVICE_ERROR: u8 = 70;
    pub const SERVER_ERROR: u8 = 80;
    pub const CLIENT_ERROR: u8 = 90;
    pub const SERVER_THREADPOOL_EXHAUSTED_ERROR: u8 = 100;
}

/// The codec.
#[derive(Default)]
pub struct Dubbo {
    pub limits: Limits,
}

impl Codec for Dubbo {
    fn sharing(&self) -> Sharing {
        Sharing::Many { set_id }
    }

    fn frame(&self, bytes: &[u8]) -> Result<Frame, Malformed> {
        let seen = bytes.len().min(MAGIC.len());
        if bytes[..seen] != MAGIC[..seen] {
            return Err(Malformed::Begin);
        }
        let Some(size) = bytes.get(12..HEAD_BYTES) else { return Ok(Frame::More) };
        let size = size.iter().fold(0, |size, &byte| size << 8 | u32::from(byte));
        // Even null has one byte.
        if size == 0 || size > MOST_BODY_BYTES {
            return Err(Malformed::TooLong(size.into()));
        }
        Ok(Frame::Length(HEAD_BYTES + size as usize))
    }

    fn inspect(&self, message: &[u8]) -> Result<Message, Malformed> {
        let (head, body) = message.split_at_checked(HEAD_BYTES).ok_or(Malformed::Content)?;
        let (flag, id) = (head[2], id(head));
        let serialization = flag & SERIALIZATION;
        let is_event = flag & EVENT != 0;
        if flag & REQUEST == 0 {
            return match (is_event, head[3]) {
                (true, _) => Ok(Message::Pong),
                (false, status::OK) if serialization != HESSIAN2 => Err(Malformed::Serialization(serialization)),
                (false, code) => Ok(Message::Answer { id, status: outcome(code, body)? }),
            };
        }
        let answered = flag & TWO_WAY != 0;
        match is_event {
            true if body == READ_ONLY => Ok(Message::GoAway),
            true => Ok(Message::Ping { answered }),
            false if serialization != HESSIAN2 => Err(Malformed::Serialization(serialization)),
            false => Ok(Message::Call { id, answered }),
        }
    }

    fn call<'m>(&self, message: &'m [u8]) -> Result<Call<'m>, Malformed> {
        let mut body = Reader::new(message.get(HEAD_BYTES..).unwrap_or_default());
        let mut names = || -> Result<_, Broken> {
            let _of_dubbo = body.text()?;
            Ok((body.text()?, body.optional_text()?, body.text()?))
        };
        let (service, version, method) = names().map_err(|Broken| Malformed::Content)?;
        let longest = service.len().max(method.len()).max(version.as_ref().map_or(0, |version| version.len()));
        if longest > self.limits.name_bytes {
            return Err(Malformed::Content);
        }
        Ok(Call { service, version, method, rest: rest(&mut body, self.limits).ok() })
    }

    fn refuse(&self, message: &[u8], refusal: Refusal, text: &str, out: &mut Vec<u8>) {
        // Envoy knows these two for what it says itself; timeout and bad request are Dubbo's own words for what they are.
        let status = match refusal {
            Refusal::NoRoute => status::SERVICE_NOT_FOUND,
            Refusal::BadRequest => status::BAD_REQUEST,
            Refusal::Timeout => status::SERVER_TIMEOUT,
            Refusal::Unavailable | Refusal::Overloaded => status::SERVER_ERROR,
        };
        let mut body = Vec::with_capacity(text.len() + 3);
        write_text(&mut body, text);
        write(out, HESSIAN2, status, id(message), &body);
    }

    fn ping(&self, id: u64, out: &mut Vec<u8>) {
        write(out, REQUEST | TWO_WAY | EVENT | HESSIAN2, 0, id, NULL);
    }

    fn pong(&self, ping: &[u8], out: &mut Vec<u8>) {
        let serialization = ping.get(2).map_or(HESSIAN2, |flag| flag & SERIALIZATION);
        // What is null in one serialisation is not in another; the ping's own body is null in its own.
        let body = if serialization == HESSIAN2 { NULL } else { ping.get(HEAD_BYTES..).unwrap_or_default() };
        write(out, EVENT | serialization, status::OK, id(ping), body);
    }

    fn go_away(&self, out: &mut Vec<u8>) -> bool {
        write(out, REQUEST | EVENT | HESSIAN2, 0, 0, READ_ONLY);
        true
    }
}

/// The id of a message, whose head is there.
fn id(message: &[u8]) -> u64 {
    message.get(4..12).into_iter().flatten().fold(0, |id, &byte| id << 8 | u64::from(byte))
}

fn set_id(message: &mut [u8], id: u64) {
    if let Some(place) = message.get_mut(4..12) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

fn write(out: &mut Vec<u8>, flag: u8, status: u8, id: u64, body: &[u8]) {
    out.extend(MAGIC);
    out.extend([flag, status]);
    out.extend(id.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
}

/// How a call went, by its answer's status and, if that is OK, by the first number of its body: `DubboCodec.RESPONSE_*`.
fn outcome(code: u8, body: &[u8]) -> Result<Status, Malformed> {
    Ok(Status::Error(match code {
        status::OK => {
            return match Reader::new(body).int() {
                // With an exception: without attachments, with them.
                Ok(0 | 3) => Ok(Status::Exception),
                // With a value and with null: without attachments, with them.
                Ok(1 | 2 | 4 | 5) => Ok(Status::Success),
                Ok(_) | Err(Broken) => Err(Malformed::Content),
            };
        }
        status::BAD_REQUEST | status::CLIENT_ERROR => Failure::BadRequest,
        status::SERVICE_NOT_FOUND => Failure::NotFound,
        status::CLIENT_TIMEOUT | status::SERVER_TIMEOUT => Failure::Timeout,
        status::SERVER_THREADPOOL_EXHAUSTED_ERROR => Failure::Overloaded,
        status::SERIALIZATION_ERROR
        | status::CHANNEL_INACTIVE
        | status::BAD_RESPONSE
        | status::SERVICE_ERROR
        | status::SERVER_ERROR => Failure::Internal,
        other => return Err(Malformed::Kind(other)),
    }))
}

/// Arguments and attachments.
fn rest<'m>(body: &mut Reader<'m>, limits: Limits) -> Result<Rest<'m>, Broken> {
    let types = body.text()?;
    let mut rest = Rest::default();
    for _ in 0..parameters(&types, limits.parameters)? {
        rest.parameters.push(if body.is_text() { Some(body.text()?) } else { body.skip().map(|()| None)? });
    }
    // Old clients of other languages send no attachments at all.
    if !body.rest().is_empty() {
        body.map(|name, value| {
            if rest.headers.len() == limits.headers {
                return Err(Broken);
            }
            rest.headers.push((name, value));
            Ok(())
        })?;
    }
    let find = |wanted: &[u8]| rest.headers.iter().rev().find(|(name, _)| **name == *wanted).map(|(_, value)| value);
    let group = find(b"group").cloned();
    // `DubboInvoker` tells how long it will wait: whole milliseconds.
    let timeout = find(b"timeout").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).filter(|ms| *ms > 0);
    rest.group = group;
    rest.timeout = timeout.map(Duration::from_millis);
    Ok(rest)
}

/// How many parameters a description of types has: `Ljava/lang/String;I[[J` has three (JVM specification 4.3.3). More than *most* are none.
fn parameters(description: &[u8], most: usize) -> Result<usize, Broken> {
    let mut count = 0;
    let mut rest = description;
    while let Some((&first, behind)) = rest.split_first() {
        rest = match first {
            b'[' => {
                // An array is one parameter with what it is of.
                rest = behind;
                continue;
            }
            b'B' | b'C' | b'D' | b'F' | b'I' | b'J' | b'S' | b'Z' => behind,
            b'L' => {
                let end = memchr::memchr(b';', behind).ok_or(Broken)?;
                &behind[end + 1..]
            }
            _ => return Err(Broken),
        };
        if count == most {
            return Err(Broken);
        }
        count += 1;
    }
    // Brackets at the end are of nothing.
    if description.ends_with(b"[") { Err(Broken) } else { Ok(count) }
}

#[cfg(test)]
#[path = "dubbo_tests.rs"]
mod tests;
