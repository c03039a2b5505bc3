//! What a ClientHello says of where its connection is to go: the server's name, and the protocols that may follow. This is what Envoy's
//! `tls_inspector` looks for.
//!
//! It asks nothing of what a handshake would need. A hello is one whichever version, suites and signatures its client has: bytes may be passed
//! on to who takes them, and whoever ends TLS here has an alert for the client. What rustls would end is always a hello here, with the same
//! name and the same protocols, within what RFC 8446 5.1 allows: rustls takes records, too, that are longer.

use std::collections::HashSet;

use rustls_pki_types::ServerName;

use super::tls_fields::Fields;

/// ContentType handshake (RFC 8446 5.1); of each record of a ClientHello.
pub const HANDSHAKE_RECORD: u8 = 22;
/// Content type, version and length of a record.
const RECORD_HEADER_BYTES: usize = 5;
/// What a record that is not encrypted may hold (RFC 8446 5.1).
const RECORD_BYTES: usize = 1 << 14;
/// HandshakeType client_hello (RFC 8446 4).
const CLIENT_HELLO: u8 = 1;
/// All records of one: as much as rustls reads before it gives up. Also the largest of those with post-quantum keys has a few thousand bytes.
const HELLO_BYTES: usize = 0xffff;
/// Extensions (RFC 6066 3, RFC 7301 3.1).
const SERVER_NAME: u16 = 0;
const APPLICATION_PROTOCOLS: u16 = 16;
/// The only NameType there is (RFC 6066 3).
const HOST_NAME: u8 = 0;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// A DNS name; literal addresses do not belong there (RFC 6066 3), and are none.
    pub server_name: Option<String>,
    /// Those that are text.
    pub application_protocols: Vec<String>,
}

/// What a connection begins with, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Hello(ClientHello),
    /// Something else, or something longer.
    Other,
    /// More bytes decide it.
    Undecided,
}

/// Reads the records of one, each once.
#[derive(Default)]
pub struct Reader {
    /// Bytes of whole records.
    taken: usize,
    /// What was in them.
    message: Vec<u8>,
}

impl Reader {
    /// Tell from *data*, all that has come so far. What was decided is not decided otherwise by what comes later.
    pub fn step(&mut self, data: &[u8]) -> Step {
        let data = &data[..data.len().min(HELLO_BYTES)];
        let more = if data.len() < HELLO_BYTES { Step::Undecided } else { Step::Other };
        loop {
            let record = &data[self.taken..];
            // The major version is that of SSL 3.0 in all records since.
            if record.iter().zip([HANDSHAKE_RECORD, 3]).any(|(&byte, expected)| byte != expected) {
                return Step::Other;
            }
            let Some((&[.., high, low], rest)) = record.split_first_chunk::<RECORD_HEADER_BYTES>() else { return more };
            let length = usize::from(u16::from_be_bytes([high, low]));
            // RFC 8446 5.1: no fragment of a handshake is empty.
            if length == 0 || length > RECORD_BYTES {
                return Step::Other;
            }
            let Some(fragment) = rest.get(..length) else { return more };
            self.message.extend_from_slice(fragment);
            self.taken += RECORD_HEADER_BYTES + length;
            if self.message[0] != CLIENT_HELLO {
                return Step::Other;
            }
            let Some((&[_, length @ ..], body)) = self.message.split_first_chunk::<4>() else { continue };
            let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
            if body.len() >= length {
                // Nothing may follow it before it is answered, and so nothing in its last record.
                let whole = (body.len() == length).then(|| hello(body)).flatten();
                return whole.map_or(Step::Other, Step::Hello);
            }
        }
    }
}

/// Read the message itself (RFC 8446 4.1.2, RFC 5246 7.4.1.2).
fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut fields = Fields(body);
    let _version_and_random = fields.take(2 + 32)?;
    let session = fields.vector::<1>()?;
    let suites = fields.vector::<2>()?;
    let compressions = fields.vector::<1>()?;
    // RFC 5246 7.4.1.2: no compression is always among them.
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || !compressions.contains(&0) {
        return None;
    }
    let mut hello = ClientHello::default();
    if fields.0.is_empty() {
        // RFC 5246 7.4.1.2: extensions may be absent.
        return Some(hello);
    }
    let mut extensions = Fields(fields.vector::<2>()?);
    if !fields.0.is_empty() {
        return None;
    }
    let mut seen = HashSet::new();
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let content = extensions.vector::<2>()?;
        // RFC 8446 4.2: one of each. Who reads the other of two would go elsewhere.
        if !seen.insert(kind) {
            return None;
        }
        match kind {
            SERVER_NAME => hello.server_name = server_name(content)?,
            APPLICATION_PROTOCOLS => hello.application_protocols = protocols(content)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The name; `Some(None)` if it is no DNS name.
fn server_name(content: &[u8]) -> Option<Option<String>> {
    let mut fields = Fields(content);
    let mut names = Fields(fields.vector::<2>()?);
    let mut found = None;
    if names.0.is_empty() || !fields.0.is_empty() {
        return None;
    }
    while !names.0.is_empty() {
        // How long one of another type would be, nobody knows.
        if names.take(1)? != [HOST_NAME] {
            break;
        }
        let name = names.vector::<2>()?;
        // RFC 6066 3: one of a type.
        if name.is_empty() || found.is_some() {
            return None;
        }
        found = Some(match ServerName::try_from(name) {
            Ok(ServerName::DnsName(name)) => Some(name.as_ref().to_owned()),
            _ => None,
        });
    }
    Some(found.flatten())
}

fn protocols(content: &[u8]) -> Option<Vec<String>> {
    let mut fields = Fields(content);
    let mut names = Fields(fields.vector::<2>()?);
    let mut found = Vec::new();
    if names.0.is_empty() || !fields.0.is_empty() {
        return None;
    }
    while !names.0.is_empty() {
        let name = names.vector::<1>()?;
        // RFC 7301 3.1: none is empty.
        if name.is_empty() {
            return None;
        }
        found.extend(str::from_utf8(name).ok().map(str::to_owned));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs;
    use rustls::server::Acceptor;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

    use super::*;

    /// A ClientHello in one record.
    fn said(name: &'static str, alpn: &[&[u8]], versions: &[&'static SupportedProtocolVersion]) -> Vec<u8> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|&protocol| protocol.to_vec()).collect();
        let mut session = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        session.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn read(data: &[u8]) -> Step {
        Reader::default().step(data)
    }

    fn found(name: &str, protocols: &[&str]) -> Step {
        Step::Hello(ClientHello {
            server_name: (!name.is_empty()).then(|| name.into()),
            application_protocols: protocols.iter().map(|&protocol| protocol.into()).collect(),
        })
    }

    /// The same as rustls reads it; `None` if it would not end it.
    fn by_rustls(data: &[u8]) -> Option<Step> {
        let (mut acceptor, mut unread) = (Acceptor::default(), data);
        while !unread.is_empty() {
            acceptor.read_tls(&mut unread).ok()?;
        }
        let accepted = acceptor.accept().ok()??;
        let hello = accepted.client_hello();
        let protocols: Vec<_> =
            hello.alpn().into_iter().flatten().filter_map(|name| str::from_utf8(name).ok()).collect();
        Some(found(hello.server_name().unwrap_or_default(), &protocols))
    }

    /// One of TLS 1.1, or of TLS 1.2 without what it may leave out (RFC 5246 7.4.1.4.1).
    fn without_signatures(version: u8, name: &str, protocols: &[&str]) -> Vec<u8> {
        let vector = |content: &[u8]| [&(content.len() as u16).to_be_bytes()[..], content].concat();
        let names = [&[HOST_NAME][..], &vector(name.as_bytes())].concat();
        let protocols: Vec<u8> =
            protocols.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat()).collect();
        let extension = |kind: u16, list: &[u8]| [&kind.to_be_bytes()[..], &vector(&vector(list))].concat();
        let extensions = [extension(SERVER_NAME, &names), extension(APPLICATION_PROTOCOLS, &protocols)].concat();
        let start = [&[3, version][..], &[7; 32], &[0], &vector(&[0xc0, 0x13]), &[1, 0]].concat();
        in_records(&[start, vector(&extensions)].concat(), usize::MAX)
    }

    /// A message in records of *most* bytes.
    fn in_records(body: &[u8], most: usize) -> Vec<u8> {
        let message = [&[CLIENT_HELLO][..], &(body.len() as u32).to_be_bytes()[1..], body].concat();
        let record = |part: &[u8]| [&[HANDSHAKE_RECORD, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
        message.chunks(most).flat_map(record).collect()
    }

    #[test]
    fn what_no_handshake_here_would_end_is_a_hello_too() {
        for version in [1, 2, 3] {
            let hello = without_signatures(version, "one.example", &["h2", "http/1.1"]);
            assert_eq!(by_rustls(&hello), None);
            assert_eq!(read(&hello), found("one.example", &["h2", "http/1.1"]), "TLS 1.{}", version - 1);
        }
        // No extensions at all.
        let bare = [&[3, 1][..], &[7; 32], &[0, 0, 2, 0, 10, 1, 0]].concat();
        assert_eq!(read(&in_records(&bare, usize::MAX)), found("", &[]));
        // What is no DNS name is nobody's.
        assert_eq!(read(&without_signatures(2, "192.0.2.1", &["x"])), found("", &["x"]));
        assert_eq!(read(&without_signatures(2, "no name", &["x"])), found("", &["x"]));
    }

    #[test]
    fn whatever_rustls_would_end_is_the_same_here() {
        for versions in [rustls::ALL_VERSIONS, &[&rustls::version::TLS12]] {
            for (name, alpn) in
                [("one.example", &[][..]), ("ONE.example", &[&b"h2"[..], b"\xff", b"x"]), ("192.0.2.1", &[b"h2"])]
            {
                let mut hello = said(name, alpn, versions);
                assert!(matches!(by_rustls(&hello), Some(Step::Hello(_))));
                let mut ended = 0;
                for place in 0..hello.len() {
                    for change in [0, 1, 2, 0x80, 0xff] {
                        hello[place] ^= change;
                        if let Some(expected) = by_rustls(&hello) {
                            ended += 1;
                            let Step::Hello(mut read) = read(&hello) else { panic!("byte {place}, {change}") };
                            read.server_name = read.server_name.map(|name| name.to_ascii_lowercase());
                            assert_eq!(Step::Hello(read), expected, "byte {place}, {change}");
                        }
                        hello[place] ^= change;
                    }
                }
                assert!(ended > hello.len());
            }
        }
    }

    /// It is none here, and so no TLS to an inspector.
    #[test]
    fn rustls_would_end_one_in_a_record_that_is_too_long() {
        // An extension that says nothing (RFC 7685 3).
        let padding = |length: usize| [&[0, 21][..], &(length as u16).to_be_bytes(), &vec![0; length]].concat();
        let hello = said("one.example", &[b"h2"], rustls::ALL_VERSIONS);
        let (before, extensions) = parts(&hello[RECORD_HEADER_BYTES + 4..]);
        let of_bytes = |length: usize| {
            let padded = [extensions, &padding(length - 4 - before.len() - 2 - extensions.len() - 4)].concat();
            in_records(&[before, &(padded.len() as u16).to_be_bytes(), &padded].concat(), length)
        };
        let whole = found("one.example", &["h2"]);
        for (length, here) in [(RECORD_BYTES, &whole), (RECORD_BYTES + 1, &Step::Other)] {
            let data = of_bytes(length);
            assert_eq!(data.len(), RECORD_HEADER_BYTES + length);
            assert_eq!((by_rustls(&data), &read(&data)), (Some(whole.clone()), here), "{length}");
        }
    }

    /// What is before the extensions of a message, and the extensions.
    fn parts(body: &[u8]) -> (&[u8], &[u8]) {
        let mut fields = Fields(body);
        fields.take(2 + 32).unwrap();
        fields.vector::<1>().unwrap();
        fields.vector::<2>().unwrap();
        fields.vector::<1>().unwrap();
        let before = &body[..body.len() - fields.0.len()];
        (before, fields.vector::<2>().unwrap())
    }

    #[test]
    fn how_bytes_come_decides_nothing() {
        let hello = without_signatures(3, "one.example", &["h2"]);
        let body = &hello[RECORD_HEADER_BYTES + 4..];
        let whole = found("one.example", &["h2"]);
        for most in [1, 3, 50, usize::MAX] {
            let mut data = in_records(body, most);
            let mut reader = Reader::default();
            for end in 0..data.len() {
                assert_eq!(reader.step(&data[..end]), Step::Undecided, "records of {most}, {end} bytes");
            }
            // What follows in a record of its own is not looked at.
            data.extend([HANDSHAKE_RECORD, 9]);
            assert_eq!(reader.step(&data), whole);
            assert_eq!(read(&data), whole);
        }
    }

    #[test]
    fn what_only_begins_like_one_is_none() {
        let hello = without_signatures(3, "one.example", &["h2"]);
        let with = |place: usize, byte: u8| {
            let mut data = hello.clone();
            data[place] = byte;
            data
        };
        let body = &hello[RECORD_HEADER_BYTES + 4..];
        let extension = |kind: u16, content: &[u8]| {
            [&kind.to_be_bytes()[..], &(content.len() as u16).to_be_bytes(), content].concat()
        };
        let extended = |extensions: &[u8]| {
            let start = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0, 10, 1, 0]].concat();
            in_records(&[start, (extensions.len() as u16).to_be_bytes().into(), extensions.into()].concat(), usize::MAX)
        };
        let twice = [extension(7, b""), extension(7, b"")].concat();
        let two_names = b"\0\x08\0\0\x01a\0\0\x01b";
        let mut more = hello.clone();
        more[4] += 1;
        more.push(0);
        for (data, what) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), "a request"),
            (vec![HANDSHAKE_RECORD, 2], "another major version"),
            (vec![HANDSHAKE_RECORD, 3, 1, 0, 0], "an empty record"),
            (vec![HANDSHAKE_RECORD, 3, 1, 0x40, 1], "a record that is too long"),
            (with(5, 2), "a ServerHello"),
            (more, "something behind it in its record"),
            (with(43, 33), "a session that is too long"),
            (in_records(&[body, b"x"].concat(), usize::MAX), "something behind its extensions"),
            (in_records(&body[..body.len() - 1], usize::MAX), "extensions that end too early"),
            (extended(&twice), "an extension twice"),
            (extended(&extension(SERVER_NAME, two_names)), "two names"),
            (extended(&extension(SERVER_NAME, b"\0\0")), "no name"),
            (extended(&extension(SERVER_NAME, b"\0\x03\0\0\0")), "an empty name"),
            (extended(&extension(APPLICATION_PROTOCOLS, b"\0\x01\0")), "an empty protocol"),
            (extended(&extension(APPLICATION_PROTOCOLS, b"\0\0")), "no protocol"),
            (extended(&extension(APPLICATION_PROTOCOLS, b"\0\x02\x02x")), "a protocol that ends too early"),
        ] {
            assert_eq!(read(&data), Step::Other, "{what}");
        }
        assert_eq!(read(&extended(&extension(SERVER_NAME, b"\0\x04\0\0\x01a"))), found("a", &[]));
    }

    #[test]
    fn one_may_be_as_long_as_rustls_reads_one() {
        let with_padding = |count: usize| {
            let start = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0, 10, 1, 0]].concat();
            let lengths = [(count + 4) as u16, 21, count as u16].map(u16::to_be_bytes).concat();
            in_records(&[start, lengths, vec![0; count]].concat(), RECORD_BYTES)
        };
        let fixed = with_padding(0).len() + 3 * RECORD_HEADER_BYTES;
        let longest = with_padding(HELLO_BYTES - fixed);
        assert_eq!((longest.len(), read(&longest)), (HELLO_BYTES, found("", &[])));
        assert_eq!(read(&longest[..HELLO_BYTES - 1]), Step::Undecided);
        assert_eq!(read(&with_padding(HELLO_BYTES - fixed + 1)), Step::Other);
    }
}
