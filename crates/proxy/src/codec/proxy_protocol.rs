//! The PROXY protocol, versions 1 and 2: a header before a connection's first byte in which a proxy says between whom the connection is.
//!
//! Section numbers are those of HAProxy's "The PROXY protocol", `doc/proxy-protocol.txt`. Nothing here reads or writes a socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// 2.1: "PROXY", and the space that must follow.
const SIGNATURE1: &[u8] = b"PROXY ";
/// 2.1: the longest header of version 1 with its line end: 107 bytes.
const LONGEST1: usize = 107;
/// 2.2
const SIGNATURE2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// 2.2: the signature, version and command, family and protocol, and the length of what follows.
const FIXED2: usize = 16;
/// 2.2: addresses and ports of TCP over IPv4 and IPv6.
const ADDRESSES4: usize = 12;
const ADDRESSES6: usize = 36;

/// Which version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    V1,
    V2,
}

/// Which versions are looked for, and whether there must be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub v1: bool,
    pub v2: bool,
    /// A connection without a header is taken as it is.
    pub absence: bool,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The connection is between these two.
    Between { source: SocketAddr, destination: SocketAddr },
    /// The sender speaks for itself (LOCAL: a health check, say), or does not tell (UNKNOWN): the connection's own ends hold.
    OwnEnds,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Drop so many bytes, and come again when there are more.
    More { consumed: usize },
    /// Drop so many bytes; what follows is the connection.
    Done { consumed: usize, said: Said },
}

/// Why a connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the connection does not begin with a PROXY protocol header")]
    Absent,
    #[error("a PROXY protocol header of version {}, which is not accepted here", if *.0 == Version::V1 { 1 } else { 2 })]
    Version(Version),
    #[error("a PROXY protocol header of version 1 must end with CRLF within 107 bytes")]
    Unterminated,
    #[error(
        "a PROXY protocol header of version 1 must be `PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT`, or begin with `PROXY UNKNOWN`"
    )]
    Malformed,
    #[error("the byte {0:#04x} of a PROXY protocol header is neither LOCAL nor PROXY of version 2")]
    Command(u8),
    #[error("the byte {0:#04x} of a PROXY protocol header names no family and protocol")]
    Family(u8),
    #[error("a PROXY protocol header of {found} bytes of addresses, where its family needs {needed}")]
    Short { found: usize, needed: usize },
}

/// Reads one header, however it is split. Additions to it (TLVs) are skipped as they come, so 216 bytes of memory are always enough.
///
/// ```text
/// Start -- signature of v1, line end --> done
/// Start -- signature of v2, addresses --> Skipping -- the rest has come --> done
/// ```
#[derive(Clone, Debug)]
pub struct Reader {
    accepted: Expected,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Start,
    Skipping { left: usize, said: Said },
}

impl Reader {
    pub fn new(accepted: Expected) -> Reader {
        Reader { accepted, state: State::Start }
    }

    /// Look at *bytes*: all that has come and was not dropped.
    ///
    /// # Errors
    /// [`HeaderError`]. 2: a receiver must not guess; the connection is closed.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, HeaderError> {
        match self.state {
            State::Skipping { left, said } => Ok(self.skip(0, left, said, bytes.len())),
            State::Start => self.start(bytes),
        }
    }

    fn start(&mut self, bytes: &[u8]) -> Result<Step, HeaderError> {
        let begins_like = |signature: &[u8]| {
            let seen = bytes.len().min(signature.len());
            bytes[..seen] == signature[..seen]
        };
        // A version that is not accepted is as good as no header where there may be none; else it is worth its own words.
        let looked_for = |wanted: bool| wanted || !self.accepted.absence;
        let (may_be1, may_be2) = (
            looked_for(self.accepted.v1) && begins_like(SIGNATURE1),
            looked_for(self.accepted.v2) && begins_like(SIGNATURE2),
        );
        if may_be1 && bytes.len() >= SIGNATURE1.len() {
            return if self.accepted.v1 { line(bytes) } else { Err(HeaderError::Version(Version::V1)) };
        }
        if may_be2 && bytes.len() >= SIGNATURE2.len() {
            return if self.accepted.v2 { self.binary(bytes) } else { Err(HeaderError::Version(Version::V2)) };
        }
        if may_be1 || may_be2 {
            return Ok(Step::More { consumed: 0 });
        }
        if self.accepted.absence {
            return Ok(Step::Done { consumed: 0, said: Said::OwnEnds });
        }
        Err(HeaderError::Absent)
    }

    fn binary(&mut self, bytes: &[u8]) -> Result<Step, HeaderError> {
        let Some(fixed) = bytes.first_chunk::<FIXED2>() else { return Ok(Step::More { consumed: 0 }) };
        let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        let is_local = match fixed[12] {
            0x20 => true,
            0x21 => false,
            // 2.2: other values are unassigned, and must not be accepted.
            other => return Err(HeaderError::Command(other)),
        };
        let needed = match fixed[13] {
            // 2.2: with LOCAL the family is ignored.
            _ if is_local => 0,
            0x11 => ADDRESSES4,
            0x21 => ADDRESSES6,
            // UNSPEC, datagrams, Unix sockets: nothing that the ends of a TCP connection could be replaced by.
            0x00 | 0x12 | 0x22 | 0x31 | 0x32 => 0,
            other => return Err(HeaderError::Family(other)),
        };
        if length < needed {
            return Err(HeaderError::Short { found: length, needed });
        }
        let Some(addresses) = bytes[FIXED2..].get(..needed) else { return Ok(Step::More { consumed: 0 }) };
        let said = between(addresses);
        Ok(self.skip(FIXED2 + needed, length - needed, said, bytes.len()))
    }

    /// Drop *used* bytes and *left* more, of which *there* bytes have come in all.
    fn skip(&mut self, used: usize, left: usize, said: Said, there: usize) -> Step {
        let now = left.min(there - used);
        if now == left {
            return Step::Done { consumed: used + left, said };
        }
        self.state = State::Skipping { left: left - now, said };
        Step::More { consumed: used + now }
    }
}

/// The addresses and ports of version 2; none are in no bytes.
fn between(addresses: &[u8]) -> Said {
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    let ends = if let Some(bytes) = addresses.first_chunk::<ADDRESSES6>() {
        let ip = |at: usize| {
            let mut ip = [0; 16];
            ip.copy_from_slice(&bytes[at..at + 16]);
            Ipv6Addr::from(ip)
        };
        ((ip(0).into(), port(32)), (ip(16).into(), port(34)))
    } else if let Some(bytes) = addresses.first_chunk::<ADDRESSES4>() {
        let ip = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        ((ip(0).into(), port(8)), (ip(4).into(), port(10)))
    } else {
        return Said::OwnEnds;
    };
    ends_of(ends)
}

fn ends_of((source, destination): ((IpAddr, u16), (IpAddr, u16))) -> Said {
    Said::Between { source: source.into(), destination: destination.into() }
}

/// Version 1: a line.
fn line(bytes: &[u8]) -> Result<Step, HeaderError> {
    let window = &bytes[..bytes.len().min(LONGEST1)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LONGEST1 { Ok(Step::More { consumed: 0 }) } else { Err(HeaderError::Unterminated) };
    };
    let said = words(&bytes[SIGNATURE1.len()..end]).ok_or(HeaderError::Malformed)?;
    Ok(Step::Done { consumed: end + 2, said })
}

fn words(text: &[u8]) -> Option<Said> {
    // 2.1: whatever follows UNKNOWN is ignored.
    if text == b"UNKNOWN" || text.starts_with(b"UNKNOWN ") {
        return Some(Said::OwnEnds);
    }
    let text = std::str::from_utf8(text).ok()?;
    // 2.1: exactly one space between the fields.
    let mut fields = text.split(' ');
    let family = fields.next()?;
    let (source, destination) = (fields.next()?, fields.next()?);
    let (source_port, destination_port) = (port(fields.next()?)?, port(fields.next()?)?);
    if fields.next().is_some() {
        return None;
    }
    let ip = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(Into::into),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(Into::into),
            _ => None,
        }
    };
    Some(ends_of(((ip(source)?, source_port), (ip(destination)?, destination_port))))
}

/// 2.1: decimal digits without leading zeros.
fn port(text: &str) -> Option<u16> {
    let is_canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| is_canonical)
}

/// Write a header of a connection that the proxy has opened in its own name, as for a health check (2.1 `UNKNOWN`, 2.2 `LOCAL`).
pub fn encode_own(out: &mut Vec<u8>, version: Version) {
    match version {
        Version::V1 => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        Version::V2 => {
            out.extend_from_slice(SIGNATURE2);
            out.extend_from_slice(&[0x20, 0, 0, 0]);
        }
    }
}

/// Write a header that says *source* and *destination*.
pub fn encode(out: &mut Vec<u8>, version: Version, source: SocketAddr, destination: SocketAddr) {
    // 2.1, 2.2: both ends are of one family.
    let (source_ip, destination_ip) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V6(destination)) => (source.to_ipv6_mapped().into(), destination.into()),
        (IpAddr::V6(source), IpAddr::V4(destination)) => (source.into(), destination.to_ipv6_mapped().into()),
        same => same,
    };
    if version == Version::V1 {
        let family = if source_ip.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (source.port(), destination.port());
        out.extend_from_slice(format!("PROXY {family} {source_ip} {destination_ip} {from} {to}\r\n").as_bytes());
        return;
    }
    out.extend_from_slice(SIGNATURE2);
    let (family, length) = if source_ip.is_ipv4() { (0x11, ADDRESSES4) } else { (0x21, ADDRESSES6) };
    out.extend_from_slice(&[0x21, family, 0, length as u8]);
    for ip in [source_ip, destination_ip] {
        match ip {
            IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
        }
    }
    for port in [source.port(), destination.port()] {
        out.extend_from_slice(&port.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Expected = Expected { v1: true, v2: true, absence: false };
    const OPTIONAL: Expected = Expected { absence: true, ..ANY };

    fn between(source: &str, destination: &str) -> Said {
        Said::Between { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// Bytes of the header, and what it said; `None` if it is not whole.
    fn read(accepted: Expected, bytes: &[u8], step: usize) -> Result<Option<(usize, Said)>, HeaderError> {
        let mut reader = Reader::new(accepted);
        let (mut dropped, mut end) = (0, 0);
        loop {
            match reader.step(&bytes[dropped..end])? {
                Step::Done { consumed, said } => return Ok(Some((dropped + consumed, said))),
                Step::More { consumed } => dropped += consumed,
            }
            if end == bytes.len() {
                return Ok(None);
            }
            end = (end + step).min(bytes.len());
        }
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE2.to_vec();
        bytes.extend([command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    const FOUR: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn headers_that_hold() {
        let six = "PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n";
        let mut with_additions = FOUR.to_vec();
        with_additions.extend([0xee; 700]);
        let mut unix = [b'/'; 216];
        unix[0] = 0;
        let v4 = between("192.0.2.1:56324", "192.0.2.2:443");
        for (name, bytes, said) in [
            ("v1 of IPv4", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(), v4),
            ("v1 of IPv6", six.into(), between("[2001:db8::1]:56324", "[2001:db8::2]:443")),
            (
                "v1 of ports zero and greatest",
                b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n".to_vec(),
                between("0.0.0.0:0", "255.255.255.255:65535"),
            ),
            ("v1 unknown", b"PROXY UNKNOWN\r\n".to_vec(), Said::OwnEnds),
            ("v1 unknown, with what is ignored", b"PROXY UNKNOWN ffff::1 x \xff 1\r\n".to_vec(), Said::OwnEnds),
            ("v2 of IPv4", binary(0x21, 0x11, &FOUR), v4),
            ("v2 with additions", binary(0x21, 0x11, &with_additions), v4),
            ("v2 local", binary(0x20, 0x00, &[]), Said::OwnEnds),
            ("v2 local whose addresses are ignored", binary(0x20, 0x11, &FOUR), Said::OwnEnds),
            ("v2 local of no family at all", binary(0x20, 0x99, &[1, 2, 3]), Said::OwnEnds),
            ("v2 unspecified", binary(0x21, 0x00, &[0; 5]), Said::OwnEnds),
            ("v2 of a datagram", binary(0x21, 0x12, &FOUR), Said::OwnEnds),
            ("v2 of a Unix socket", binary(0x21, 0x31, &unix), Said::OwnEnds),
        ] {
            for step in [1, 7, 16, 1000] {
                let followed = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
                assert_eq!(read(ANY, &followed, step), Ok(Some((bytes.len(), said))), "{name} in steps of {step}");
            }
            for cut in 0..bytes.len() {
                assert_eq!(read(ANY, &bytes[..cut], 1000), Ok(None), "{name}, cut after {cut}");
            }
        }
    }

    #[test]
    fn a_header_of_the_proxys_own_names_nobody() {
        for version in [Version::V1, Version::V2] {
            let mut header = Vec::new();
            encode_own(&mut header, version);
            assert_eq!(read(ANY, &header, 1), Ok(Some((header.len(), Said::OwnEnds))), "{version:?}");
        }
    }

    #[test]
    fn headers_that_are_refused() {
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat();
        let line_end_too_late = [&long[..106], b"\r\n"].concat();
        for (name, bytes, error) in [
            ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), HeaderError::Absent),
            ("another word", b"PROXIED TCP4".to_vec(), HeaderError::Absent),
            ("lower case", b"proxy TCP4".to_vec(), HeaderError::Absent),
            ("v1 that never ends", long, HeaderError::Unterminated),
            ("v1 of 108 bytes", line_end_too_late, HeaderError::Unterminated),
            ("v1 with two spaces", b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(), HeaderError::Malformed),
            ("v1 of four fields", b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n".to_vec(), HeaderError::Malformed),
            ("v1 of six fields", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n".to_vec(), HeaderError::Malformed),
            ("v1 with a space at the end", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n".to_vec(), HeaderError::Malformed),
            ("v1 of the other family", b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(), HeaderError::Malformed),
            ("v1 with a leading zero", b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n".to_vec(), HeaderError::Malformed),
            (
                "v1 with a port that has one",
                b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n".to_vec(),
                HeaderError::Malformed,
            ),
            ("v1 with a sign", b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n".to_vec(), HeaderError::Malformed),
            (
                "v1 with a port too great",
                b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n".to_vec(),
                HeaderError::Malformed,
            ),
            ("v1 with a zone", b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n".to_vec(), HeaderError::Malformed),
            ("v1 of UDP", b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(), HeaderError::Malformed),
            ("v1 of nothing", b"PROXY \r\n".to_vec(), HeaderError::Malformed),
            ("v1 with bytes that are no text", b"PROXY \xff\r\n".to_vec(), HeaderError::Malformed),
            ("version 3", binary(0x31, 0x11, &FOUR), HeaderError::Command(0x31)),
            ("command 2", binary(0x22, 0x11, &FOUR), HeaderError::Command(0x22)),
            ("family 4", binary(0x21, 0x41, &FOUR), HeaderError::Family(0x41)),
            ("protocol 3", binary(0x21, 0x13, &FOUR), HeaderError::Family(0x13)),
            ("too few addresses", binary(0x21, 0x11, &FOUR[..11]), HeaderError::Short { found: 11, needed: 12 }),
            ("IPv6 in the room of IPv4", binary(0x21, 0x21, &FOUR), HeaderError::Short { found: 12, needed: 36 }),
        ] {
            for step in [1, 1000] {
                assert_eq!(read(ANY, &bytes, step), Err(error), "{name} in steps of {step}");
            }
        }
    }

    #[test]
    fn a_header_may_be_optional_and_versions_may_be_left_out() {
        let (one, two) = (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(), binary(0x21, 0x11, &FOUR));
        let untouched = Ok(Some((0, Said::OwnEnds)));
        for (name, accepted, bytes, expected) in [
            ("none, where there may be none", OPTIONAL, &b"GET / HTTP/1.1\r\n"[..], untouched),
            ("half a signature", OPTIONAL, b"PROX", Ok(None)),
            ("what stops being a signature", OPTIONAL, b"PROXIES", untouched),
            ("v1 where only v2 is", Expected { v1: false, ..ANY }, &one, Err(HeaderError::Version(Version::V1))),
            ("v2 where only v1 is", Expected { v2: false, ..ANY }, &two, Err(HeaderError::Version(Version::V2))),
            ("v1 that is not looked for", Expected { v1: false, ..OPTIONAL }, &one, untouched),
            ("v2 that is not looked for", Expected { v2: false, ..OPTIONAL }, &two, untouched),
        ] {
            assert_eq!(read(accepted, bytes, 1), expected, "{name}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (source, destination, read_as) in [
            ("192.0.2.1:1", "192.0.2.2:65535", ("192.0.2.1:1", "192.0.2.2:65535")),
            ("[2001:db8::1]:80", "[::]:0", ("[2001:db8::1]:80", "[::]:0")),
            ("192.0.2.1:1", "[2001:db8::1]:2", ("[::ffff:192.0.2.1]:1", "[2001:db8::1]:2")),
            ("[2001:db8::1]:2", "192.0.2.1:1", ("[2001:db8::1]:2", "[::ffff:192.0.2.1]:1")),
        ] {
            for version in [Version::V1, Version::V2] {
                let mut bytes = Vec::new();
                encode(&mut bytes, version, source.parse().unwrap(), destination.parse().unwrap());
                let expected = between(read_as.0, read_as.1);
                assert_eq!(read(ANY, &bytes, 1), Ok(Some((bytes.len(), expected))), "{version:?}: {source}");
                assert!(version == Version::V2 || bytes.len() <= LONGEST1);
            }
        }
    }
}
