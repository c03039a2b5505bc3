//! Base64 (RFC 4648 4), the few lines of it that a proxy needs: keys of WebSocket, certificates, bytes in the JSON form of a message.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Append *bytes* to *out*, padded.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| usize::from(group.get(index).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            out.push(if digit <= group.len() { DIGITS[word >> (18 - 6 * digit) & 63] } else { b'=' });
        }
    }
}

/// What *text* stands for, with or without its padding. `None` if a byte does not belong to the alphabet.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut decoded = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for &byte in text {
        bits = bits << 6 | u32::from(value(byte)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(decoded)
}

/// Append what one padded *group* stands for to *out*. `None` if it is none.
pub fn decode_group(group: &[u8; 4], out: &mut Vec<u8>) -> Option<()> {
    let digits = match group {
        [_, _, b'=', b'='] => 2,
        [_, _, _, b'='] => 3,
        _ => 4,
    };
    let mut word = 0u32;
    for digit in &group[..digits] {
        word = word << 6 | u32::from(value(*digit)?);
    }
    let bytes = (word << (6 * (4 - digits))).to_be_bytes();
    out.extend_from_slice(&bytes[1..digits]);
    Some(())
}

/// What a digit stands for.
fn value(digit: u8) -> Option<u8> {
    Some(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard() {
        // RFC 4648 10
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")]
        {
            let mut out = Vec::new();
            encode(bytes.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
            assert_eq!(decode(text.trim_end_matches('=').as_bytes()).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(decode(b"Zg!"), None);
    }
}
