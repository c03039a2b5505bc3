//! Writes the subject of a certificate as a distinguished name in words (RFC 2253, of which RFC 4514 is the successor), as OpenSSL and
//! so Envoy write it: the last relative name first, short names of attributes, everything that is not printable ASCII escaped.
//!
//! Like [`super::san`] it reads only certificates whose chain was verified, and gives up at the first thing that is not as DER wants it.

use super::san::{OBJECT_IDENTIFIER, Reader, SEQUENCE, VERSION};

/// The subject of a certificate in DER, `CN=a,O=b`; empty if it has none or is no certificate.
pub fn subject(certificate: &[u8]) -> String {
    name(certificate).and_then(write).unwrap_or_default()
}

/// Short names of attribute types, as OpenSSL has them; the identifiers as in DER.
const ATTRIBUTES: [(&[u8], &str); 24] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 4], "SN"),
    (&[0x55, 4, 5], "serialNumber"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "street"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 12], "title"),
    (&[0x55, 4, 13], "description"),
    (&[0x55, 4, 15], "businessCategory"),
    (&[0x55, 4, 17], "postalCode"),
    (&[0x55, 4, 41], "name"),
    (&[0x55, 4, 42], "GN"),
    (&[0x55, 4, 43], "initials"),
    (&[0x55, 4, 44], "generationQualifier"),
    (&[0x55, 4, 45], "x500UniqueIdentifier"),
    (&[0x55, 4, 46], "dnQualifier"),
    (&[0x55, 4, 65], "pseudonym"),
    (&[0x55, 4, 97], "organizationIdentifier"),
    // 1.2.840.113549.1.9.1
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "emailAddress"),
    // 0.9.2342.19200300.100.1.1 and 25
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
];

const SET: u8 = 0x31;

/// The content of the subject (RFC 5280 4.1.2.6).
fn name(certificate: &[u8]) -> Option<&[u8]> {
    let certificate = Reader(certificate).expect(SEQUENCE)?;
    let mut fields = Reader(Reader(certificate).expect(SEQUENCE)?);
    // [0] version (absent in version 1), serial number, signature algorithm, issuer, validity, subject.
    if fields.next()?.0 == VERSION {
        fields.next()?;
    }
    for _ in 0..3 {
        fields.next()?;
    }
    fields.expect(SEQUENCE)
}

fn write(name: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    let mut names = Reader(name);
    while !names.0.is_empty() {
        let mut attributes = Reader(names.expect(SET)?);
        let mut separator = ',';
        while !attributes.0.is_empty() {
            let mut attribute = Reader(attributes.expect(SEQUENCE)?);
            let kind = attribute.expect(OBJECT_IDENTIFIER)?;
            parts.push((separator, kind, attribute.0));
            // RFC 2253 2.2: attributes of one relative name.
            separator = '+';
        }
    }
    let mut text = String::new();
    let mut after = None;
    // RFC 2253 2.1: the last first.
    for &(separator, kind, value) in parts.iter().rev() {
        text.extend(after);
        write_attribute(kind, value, &mut text)?;
        after = Some(separator);
    }
    Some(text)
}

fn write_attribute(kind: &[u8], value: &[u8], text: &mut String) -> Option<()> {
    let (tag, content) = Reader(value).next()?;
    let known = ATTRIBUTES.iter().find(|(identifier, _)| *identifier == kind);
    match known {
        Some((_, name)) => text.push_str(name),
        None => write_identifier(kind, text),
    }
    text.push('=');
    match known.and_then(|_| characters(tag, content)) {
        Some(characters) => escape(&characters, text),
        // RFC 2253 2.4: what has no string form is its DER.
        None => {
            text.push('#');
            value.iter().for_each(|byte| hexadecimal(*byte, text));
        }
    }
    Some(())
}

/// An object identifier in its dotted form (X.690 8.19).
fn write_identifier(bytes: &[u8], text: &mut String) {
    let mut arcs = Vec::new();
    let mut arc = 0u64;
    for byte in bytes {
        arc = arc << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            arcs.push(std::mem::take(&mut arc));
        }
    }
    // The first number holds two arcs.
    if let Some(&first) = arcs.first() {
        let top = (first / 40).min(2);
        arcs.splice(..1, [top, first - 40 * top]);
    }
    let arcs: Vec<String> = arcs.iter().map(u64::to_string).collect();
    text.push_str(&arcs.join("."));
}

/// The characters of a string type (X.680 41); `None` for other types.
fn characters(tag: u8, content: &[u8]) -> Option<String> {
    let wide = |unit: usize| -> Option<String> {
        let units = content.chunks_exact(unit);
        let numbers = units.map(|bytes| bytes.iter().fold(0u32, |value, &byte| value << 8 | u32::from(byte)));
        if !content.len().is_multiple_of(unit) {
            return None;
        }
        if unit == 2 {
            return char::decode_utf16(numbers.map(|number| number as u16)).collect::<Result<_, _>>().ok();
        }
        numbers.map(char::from_u32).collect()
    };
    match tag {
        // UTF8String
        0x0c => String::from_utf8(content.to_vec()).ok(),
        // NumericString, PrintableString, TeletexString (as Latin-1), IA5String, VisibleString
        0x12 | 0x13 | 0x14 | 0x16 | 0x1a => Some(content.iter().copied().map(char::from).collect()),
        // UniversalString, BMPString
        0x1c => wide(4),
        0x1e => wide(2),
        _ => None,
    }
}

/// RFC 2253 2.4, and all that is not printable ASCII too: nothing of a name can end the quotes around it, or the field it stands in.
fn escape(characters: &str, text: &mut String) {
    let bytes = characters.as_bytes();
    for (index, &byte) in bytes.iter().enumerate() {
        let first = index == 0;
        let last = index + 1 == bytes.len();
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => text.extend(['\\', char::from(byte)]),
            b'#' if first => text.push_str("\\#"),
            b' ' if first || last => text.push_str("\\ "),
            0x20..0x7f => text.push(char::from(byte)),
            _ => {
                text.push('\\');
                hexadecimal(byte, text);
            }
        }
    }
}

fn hexadecimal(byte: u8, text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.extend([byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)])));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    fn of(names: &[(DnType, DnValue)]) -> String {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            parameters.distinguished_name.push(kind.clone(), value.clone());
        }
        subject(parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    /// What `openssl x509 -subject -nameopt RFC2253` says of the same names.
    #[test]
    fn subjects_are_written_as_openssl_writes_them() {
        let utf8 = |text: &str| DnValue::Utf8String(text.into());
        let one = |text: &str| of(&[(DnType::CommonName, utf8(text))]);
        let all = [
            (DnType::CountryName, DnValue::PrintableString("US".try_into().unwrap())),
            (DnType::OrganizationName, utf8("Weft, Inc.")),
            (DnType::OrganizationalUnitName, utf8("Proxies")),
            (DnType::CommonName, utf8("web")),
        ];
        assert_eq!(of(&all), "CN=web,OU=Proxies,O=Weft\\, Inc.,C=US");
        assert_eq!(of(&[]), "");
        assert_eq!(one("a\"b;c<d>e+f\\g=h"), "CN=a\\\"b\\;c\\<d\\>e\\+f\\\\g=h");
        assert_eq!(one(" #x "), "CN=\\ #x\\ ");
        assert_eq!(one("#x y"), "CN=\\#x y");
        assert_eq!(one("a\r\nb"), "CN=a\\0D\\0Ab");
        assert_eq!(one("Käse"), "CN=K\\C3\\A4se");
        let wide = DnValue::BmpString("Kä".try_into().unwrap());
        assert_eq!(of(&[(DnType::CommonName, wide)]), "CN=K\\C3\\A4");
        // Nobody's attribute: the identifier in numbers, the value in DER.
        let private = DnType::from_oid(&[1, 3, 6, 1, 4, 1, 99999, 1]);
        assert_eq!(of(&[(private, utf8("ab"))]), "1.3.6.1.4.1.99999.1=#0C026162");
    }

    #[test]
    fn what_is_no_certificate_has_no_subject() {
        for bytes in [&b""[..], b"\x30", b"\x30\x03\x02\x01\x01", b"\x30\x84\xff\xff\xff\xff"] {
            assert_eq!(subject(bytes), "");
        }
    }
}
