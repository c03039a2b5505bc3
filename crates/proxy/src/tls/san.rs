//! Reads the subject alternative names of a certificate, where a SPIFFE identity is written; and its number and dates, for people.
//!
//! Only certificates whose chain was verified are read for a decision, so this is no second X.509 parser: it walks to one extension
//! and gives up at the first thing that is not as DER wants it.

use std::net::IpAddr;

/// The names of one certificate that matter to a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub emails: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// Read the names from a certificate in DER; empty if it has none or is not one.
pub fn names(certificate: &[u8]) -> Names {
    read(certificate).unwrap_or_default()
}

/// What stands before the subject of a certificate; times are written `20261231235959Z`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front<'a> {
    /// The serial number, most significant byte first.
    pub serial: &'a [u8],
    pub not_before: String,
    pub not_after: String,
}

/// Read it from a certificate in DER; nothing if it is not one.
pub fn front(certificate: &[u8]) -> Option<Front<'_>> {
    let certificate = Reader(certificate).expect(SEQUENCE)?;
    let mut fields = Reader(Reader(certificate).expect(SEQUENCE)?);
    // [0] version (absent in version 1), serial number, signature algorithm, issuer, validity.
    let serial = match fields.next()? {
        (VERSION, _) => fields.next()?.1,
        (_, serial) => serial,
    };
    fields.next()?;
    fields.next()?;
    let mut validity = Reader(fields.expect(SEQUENCE)?);
    Some(Front { serial, not_before: time(validity.next()?)?, not_after: time(validity.next()?)? })
}

/// The end of a certificate's validity: `20261231235959Z`; nothing if it is not DER.
pub fn not_after(certificate: &[u8]) -> Option<String> {
    front(certificate).map(|front| front.not_after)
}

/// Source: RFC 5280 4.1.2.5; a UTCTime of two digits counts from 1950.
fn time((tag, time): (u8, &[u8])) -> Option<String> {
    let time = std::str::from_utf8(time).ok()?;
    match tag {
        GENERALIZED_TIME => Some(time.to_owned()),
        UTC_TIME => Some(format!("{}{time}", if time < "50" { "20" } else { "19" })),
        _ => None,
    }
}

pub(super) const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] version` of TBSCertificate (RFC 5280 4.1).
pub(super) const VERSION: u8 = 0xa0;
/// `[3] extensions` of TBSCertificate (RFC 5280 4.1).
const EXTENSIONS: u8 = 0xa3;
/// id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// `[1] rfc822Name`, `[2] dNSName`, `[6] uniformResourceIdentifier` and `[7] iPAddress` of GeneralName (RFC 5280 4.2.1.6).
const EMAIL: u8 = 0x81;
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;
const IP_ADDRESS: u8 = 0x87;
/// Those that matter to nobody here.
const OTHER_NAME: u8 = 0xa0;
const X400_ADDRESS: u8 = 0xa3;
const DIRECTORY_NAME: u8 = 0xa4;
const EDI_PARTY_NAME: u8 = 0xa5;
const REGISTERED_ID: u8 = 0x88;

fn read(certificate: &[u8]) -> Option<Names> {
    let certificate = Reader(certificate).expect(SEQUENCE)?;
    let mut fields = Reader(Reader(certificate).expect(SEQUENCE)?);
    let extensions = loop {
        match fields.next()? {
            (EXTENSIONS, value) => break value,
            _ => continue,
        }
    };
    let mut extensions = Reader(Reader(extensions).expect(SEQUENCE)?);
    while let Some((tag, extension)) = extensions.next() {
        if tag != SEQUENCE {
            return None;
        }
        let mut parts = Reader(extension);
        if parts.expect(OBJECT_IDENTIFIER)? != SUBJECT_ALT_NAME {
            continue;
        }
        let value = match parts.next()? {
            (BOOLEAN, _) => parts.expect(OCTET_STRING)?,
            (OCTET_STRING, value) => value,
            _ => return None,
        };
        let mut names = Names::default();
        let mut general_names = Reader(Reader(value).expect(SEQUENCE)?);
        while let Some((tag, name)) = general_names.next() {
            let list = match tag {
                URI => &mut names.uris,
                DNS_NAME => &mut names.dns,
                EMAIL => &mut names.emails,
                IP_ADDRESS => {
                    names.addresses.extend(address(name));
                    continue;
                }
                OTHER_NAME | X400_ADDRESS | DIRECTORY_NAME | EDI_PARTY_NAME | REGISTERED_ID => continue,
                // No kind of name: what follows is none, either.
                _ => break,
            };
            // One that is not text is no name (RFC 5280 4.2.1.6), and hides none of the others: a rule may deny by those.
            list.extend(std::str::from_utf8(name).map(str::to_owned));
        }
        return Some(names);
    }
    None
}

/// The address of so many bytes; nothing if no address has them.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Reads DER values one after the other.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next value and its tag; `None` at the end or if the rest is not DER.
    pub(super) fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = match first {
            0..=0x7f => usize::from(first),
            0x81..=0x84 => {
                let count = usize::from(first & 0x0f);
                let digits = rest.get(..count)?;
                rest = &rest[count..];
                let length = digits.iter().fold(0usize, |total, &digit| total << 8 | usize::from(digit));
                // X.690 10.1: in the fewest digits, or other readers take what follows for something else.
                if length < 0x80 || digits[0] == 0 {
                    return None;
                }
                length
            }
            _ => return None,
        };
        let value = rest.get(..length)?;
        self.0 = &rest[length..];
        Some((tag, value))
    }

    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u8::try_from(content.len()).unwrap();
        let digits: &[u8] = if length < 0x80 { &[length] } else { &[0x81, length] };
        [&[tag], digits, &content].concat()
    }

    #[test]
    fn a_length_in_more_digits_than_it_needs_is_no_der() {
        assert_eq!(Reader(&[URI, 0x81, 0x80, 0]).next(), None, "cut off");
        for long in [&[URI, 0x81, 1, b'a'][..], &[URI, 0x82, 0, 0x80]] {
            assert_eq!(Reader(&[long, &[b'a'; 0x80]].concat()).next(), None, "{long:x?}");
        }
        let short = [&[URI, 0x81, 0x80][..], &[b'a'; 0x80]].concat();
        assert_eq!(Reader(&short).next(), Some((URI, &[b'a'; 0x80][..])));
    }

    #[test]
    fn names_of_each_kind_are_read() {
        let six: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
        let names_of = der(
            SEQUENCE,
            &[
                &der(EMAIL, &[b"a@example"]),
                &der(URI, &[b"spiffe://mesh/\xff"]),
                &der(DNS_NAME, &[b"*.example"]),
                &der(URI, &[b"spiffe://mesh/a"]),
                &der(IP_ADDRESS, &[&[192, 0, 2, 7]]),
                &der(IP_ADDRESS, &[&six.octets()]),
                // A network, which is no address (RFC 5280 4.2.1.10), and a name of a kind that matters to nobody.
                &der(IP_ADDRESS, &[&[192, 0, 2, 0, 255, 255, 255, 0]]),
                &der(0x88, &[&[1]]),
            ],
        );
        let (kind, value) = (der(OBJECT_IDENTIFIER, &[SUBJECT_ALT_NAME]), der(OCTET_STRING, &[&names_of]));
        let extensions = der(EXTENSIONS, &[&der(SEQUENCE, &[&der(SEQUENCE, &[&kind, &value])])]);
        let certificate = der(SEQUENCE, &[&der(SEQUENCE, &[&extensions])]);
        let found = names(&certificate);
        assert_eq!(found.emails, ["a@example"]);
        assert_eq!(found.dns, ["*.example"]);
        assert_eq!(found.uris, ["spiffe://mesh/a"]);
        assert_eq!(found.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap(), six.into()]);
    }
}
