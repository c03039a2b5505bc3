//! Questions for addresses in DNS and the answers to them (RFC 1035), as a stub resolver needs them and no more. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4.
    A = 1,
    /// IPv6 (RFC 3596).
    Aaaa = 28,
}

const CNAME: u16 = 5;
/// The class of everything.
const INTERNET: u16 = 1;
/// RFC 1035 4.1.1.
const HEAD_BYTES: usize = 12;
/// RFC 1035 2.3.4, without the root's empty label.
const NAME_BYTES: usize = 254;
/// Names that are names of names: longer chains are loops.
const CHAIN: usize = 16;

/// A message that is no DNS message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a malformed DNS message")]
pub struct Malformed;

/// A name as labels with their lengths in front, in lower case, without the root.
type Name = Vec<u8>;

/// One question, and what its answer must repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    id: u16,
    name: Name,
    kind: Kind,
}

/// What a server said to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// In the server's order; *ttl* is the least of all records that led there.
    Addresses { addresses: Vec<IpAddr>, ttl: Duration },
    /// The name exists, and has no such address.
    NoAddress,
    /// The name does not exist.
    NoName,
    /// Too long for UDP.
    Truncated,
    /// The server could not, or would not (RFC 1035 4.1.1, RCODE).
    Failed(u8),
}

impl Question {
    /// `None` if *name* cannot be a name in DNS.
    pub fn new(id: u16, name: &str, kind: Kind) -> Option<Question> {
        let mut wire = Name::new();
        for label in name.strip_suffix('.').unwrap_or(name).split('.') {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
            wire.push(length);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        (wire.len() <= NAME_BYTES).then_some(Question { id, name: wire, kind })
    }

    /// The message to send, with recursion desired.
    pub fn encode(&self) -> Vec<u8> {
        let [high, low] = self.id.to_be_bytes();
        let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&self.name);
        message.push(0);
        message.extend_from_slice(&(self.kind as u16).to_be_bytes());
        message.extend_from_slice(&INTERNET.to_be_bytes());
        message
    }

    /// Read what came; `None` if it is the answer to another question.
    ///
    /// # Errors
    /// It is no DNS message.
    pub fn decode(&self, message: &[u8]) -> Result<Option<Reply>, Malformed> {
        let mut reader = Parser { message, at: 0 };
        let id = reader.number()?;
        let flags = reader.number()?;
        let (questions, answers) = (reader.number()?, reader.number()?);
        reader.at = HEAD_BYTES;
        // A response (QR) to a standard query (OPCODE 0).
        if id != self.id || flags & 0xf800 != 0x8000 {
            return Ok(None);
        }
        // A server that understood nothing may repeat nothing.
        if questions != 0 || flags & 0xf != 1 {
            let repeated = (reader.name()?, reader.number()?, reader.number()?);
            if questions != 1 || repeated != (self.name.clone(), self.kind as u16, INTERNET) {
                return Ok(None);
            }
        }
        if flags & 0x0200 != 0 {
            return Ok(Some(Reply::Truncated));
        }
        match (flags & 0xf) as u8 {
            0 => {}
            3 => return Ok(Some(Reply::NoName)),
            code => return Ok(Some(Reply::Failed(code))),
        }
        let records = (0..answers).map(|_| reader.record()).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(self.follow(&records)))
    }

    /// Go from name to name until there are addresses.
    fn follow(&self, records: &[Record]) -> Reply {
        let mut name = &self.name;
        let mut ttl = u32::MAX;
        for _ in 0..CHAIN {
            let found: Vec<_> = records
                .iter()
                .filter(|record| record.owner == *name)
                .filter_map(|record| match record.data {
                    Data::Address(address) => Some((address, record.ttl)),
                    _ => None,
                })
                .filter(|(address, _)| address.is_ipv4() == (self.kind == Kind::A))
                .collect();
            if !found.is_empty() {
                ttl = found.iter().map(|(_, ttl)| *ttl).fold(ttl, u32::min);
                let addresses = found.into_iter().map(|(address, _)| address).collect();
                return Reply::Addresses { addresses, ttl: Duration::from_secs(ttl.into()) };
            }
            let next = records.iter().find_map(|record| match &record.data {
                Data::Alias(target) if record.owner == *name => Some((target, record.ttl)),
                _ => None,
            });
            let Some((target, of_alias)) = next else { break };
            (name, ttl) = (target, ttl.min(of_alias));
        }
        Reply::NoAddress
    }
}

struct Record {
    owner: Name,
    ttl: u32,
    data: Data,
}

enum Data {
    Address(IpAddr),
    Alias(Name),
    Other,
}

struct Parser<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Parser<'m> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.message.get(self.at..).and_then(|rest| rest.first_chunk()).ok_or(Malformed)?;
        self.at += N;
        Ok(*bytes)
    }

    fn number(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_be_bytes)
    }

    /// A name, which may go on where an earlier one stands (RFC 1035 4.1.4).
    fn name(&mut self) -> Result<Name, Malformed> {
        let mut name = Name::new();
        let mut after = None;
        // Each jump goes before all that was read since the last one, so there is an end.
        let mut begin = self.at;
        loop {
            let [length] = self.take()?;
            match length >> 6 {
                0 if length == 0 => {
                    self.at = after.unwrap_or(self.at);
                    return Ok(name);
                }
                0 => {
                    let label = self.message.get(self.at..self.at + usize::from(length)).ok_or(Malformed)?;
                    self.at += label.len();
                    name.push(length);
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    if name.len() > NAME_BYTES {
                        return Err(Malformed);
                    }
                }
                3 => {
                    let [low] = self.take()?;
                    let target = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                    if target >= begin {
                        return Err(Malformed);
                    }
                    after = after.or(Some(self.at));
                    (begin, self.at) = (target, target);
                }
                _ => return Err(Malformed),
            }
        }
    }

    fn record(&mut self) -> Result<Record, Malformed> {
        let owner = self.name()?;
        let (kind, class) = (self.number()?, self.number()?);
        let ttl = u32::from_be_bytes(self.take()?);
        let end = usize::from(self.number()?) + self.at;
        if end > self.message.len() {
            return Err(Malformed);
        }
        let data = match (class, kind, end - self.at) {
            (INTERNET, 1, 4) => Data::Address(Ipv4Addr::from(self.take::<4>()?).into()),
            (INTERNET, 28, 16) => Data::Address(Ipv6Addr::from(self.take::<16>()?).into()),
            (INTERNET, CNAME, _) => Data::Alias(self.name()?),
            _ => Data::Other,
        };
        self.at = end;
        // RFC 2181 8: more than 31 bits mean 0.
        Ok(Record { owner, ttl: if ttl > i32::MAX as u32 { 0 } else { ttl }, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(kind: Kind) -> Question {
        Question::new(0x1234, "Api.Example.com", kind).unwrap()
    }

    /// An answer to *question* with these flags and records; the records are bytes, in which `c0 0c` is the name asked for.
    fn answer(question: &Question, flags: u16, records: &[&[u8]]) -> Vec<u8> {
        let mut message = question.encode();
        message[2..4].copy_from_slice(&flags.to_be_bytes());
        message[7] = records.len() as u8;
        message.extend(records.concat());
        message
    }

    const OK: u16 = 0x8180;
    const ADDRESS: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 7];

    #[test]
    fn a_question_is_written_as_others_write_it() {
        let expected = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03api\x07example\x03com\0\0\x1c\0\x01";
        assert_eq!(question(Kind::Aaaa).encode(), expected);
    }

    #[test]
    fn names_that_are_none_are_not_asked_for() {
        let long = format!("{0}.{0}.{0}.{0}.{0}", "a".repeat(60));
        for name in ["", ".", "a..b", &"a".repeat(64), &long] {
            assert_eq!(Question::new(1, name, Kind::A), None, "{name}");
        }
        assert!(Question::new(1, "a.", Kind::A).is_some());
    }

    #[test]
    fn addresses_are_found_behind_other_names_and_kept_no_longer_than_those() {
        let question = question(Kind::A);
        // api.example.com CNAME b.example.com (10 s); b.example.com A 10.0.0.8 (300 s), A 10.0.0.7 (60 s)
        let alias = [&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 10, 0, 4][..], b"\x01B\xc0\x10"].concat();
        let b = |ttl: u8, last: u8| [&b"\x01b\xc0\x10"[..], &[0, 1, 0, 1, 0, 0, 0, ttl, 0, 4, 10, 0, 0, last]].concat();
        let reply = question.decode(&answer(&question, OK, &[&b(200, 8), &alias, &b(60, 7)]));
        let addresses = vec!["10.0.0.8".parse().unwrap(), "10.0.0.7".parse().unwrap()];
        assert_eq!(reply, Ok(Some(Reply::Addresses { addresses, ttl: Duration::from_secs(10) })));
    }

    #[test]
    fn what_is_no_address_is_told_apart() {
        let question = question(Kind::A);
        for (flags, expected) in [
            (OK, Reply::NoAddress),
            (OK | 3, Reply::NoName),
            (OK | 2, Reply::Failed(2)),
            (OK | 5, Reply::Failed(5)),
            (OK | 0x0200, Reply::Truncated),
        ] {
            assert_eq!(question.decode(&answer(&question, flags, &[])), Ok(Some(expected)), "{flags:x}");
        }
        // A name that stands for itself.
        let alias: &[u8] = &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 10, 0, 2, 0xc0, 12];
        assert_eq!(question.decode(&answer(&question, OK, &[alias])), Ok(Some(Reply::NoAddress)));
    }

    #[test]
    fn answers_to_other_questions_are_passed_over() {
        let question = question(Kind::A);
        let mut other_id = answer(&question, OK, &[ADDRESS]);
        other_id[0] ^= 1;
        let other_name = answer(&Question::new(0x1234, "api.example.org", Kind::A).unwrap(), OK, &[ADDRESS]);
        let other_kind = answer(&Question { kind: Kind::Aaaa, ..question.clone() }, OK, &[ADDRESS]);
        for message in [other_id, other_name, other_kind, question.encode()] {
            assert_eq!(question.decode(&message), Ok(None));
        }
    }

    #[test]
    fn broken_messages_are_refused_and_end() {
        let question = question(Kind::A);
        let whole = answer(&question, OK, &[ADDRESS]);
        for length in 0..whole.len() {
            assert_eq!(question.decode(&whole[..length]), Err(Malformed), "{length} bytes");
        }
        // A name that points to itself, one that points forward, and a label of a kind that does not exist.
        for name in [[0xc0, 33], [0xc0, 40], [0x80, 12]] {
            let record = [&name[..], &ADDRESS[2..]].concat();
            assert_eq!(question.decode(&answer(&question, OK, &[&record])), Err(Malformed), "{name:?}");
        }
    }

    quickcheck::quickcheck! {
        fn no_bytes_do_harm(tail: Vec<u8>) -> bool {
            let question = question(Kind::A);
            let mut message = answer(&question, OK, &[]);
            message[7] = 9;
            message.extend(tail);
            let _ = question.decode(&message);
            true
        }
    }
}
