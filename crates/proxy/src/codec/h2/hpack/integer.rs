//! Integers with a prefix of 1 to 8 bits (RFC 7541 5.1).

use super::HpackError;

/// More than this means nothing in a header block: lengths are limited far below.
const MOST: usize = 1 << 24;

/// Read an integer whose prefix is the low *bits* of the first byte. Returns it and the bytes it takes.
///
/// # Errors
/// The input ends within it, or it is absurdly large or long.
pub fn read(input: &[u8], bits: u8) -> Result<(usize, usize), HpackError> {
    let mask = (1usize << bits) - 1;
    let first = usize::from(*input.first().ok_or(HpackError::Truncated)?) & mask;
    if first < mask {
        return Ok((first, 1));
    }
    let mut value = mask;
    // Four continuation bytes reach past MOST; more are only a way to waste our time.
    for (index, &byte) in input[1..].iter().take(4).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * index);
        if value > MOST {
            return Err(HpackError::Integer);
        }
        if byte & 0x80 == 0 {
            return Ok((value, index + 2));
        }
    }
    if input.len() > 4 { Err(HpackError::Integer) } else { Err(HpackError::Truncated) }
}

/// Append *value* with the prefix in the low *bits* of a byte whose other bits are *high*.
pub fn write(out: &mut Vec<u8>, value: usize, bits: u8, high: u8) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        out.push(high | value as u8);
        return;
    }
    out.push(high | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard() {
        // RFC 7541 C.1
        for (value, bits, bytes) in
            [(10, 5, &[0b01010][..]), (1337, 5, &[0b11111, 0b1001_1010, 0b0000_1010]), (42, 8, &[42])]
        {
            let mut out = Vec::new();
            write(&mut out, value, bits, 0);
            assert_eq!(out, bytes);
            assert_eq!(read(bytes, bits), Ok((value, bytes.len())));
        }
    }

    #[test]
    fn what_ends_early_or_never_is_refused() {
        assert_eq!(read(&[], 5), Err(HpackError::Truncated));
        assert_eq!(read(&[0x1f, 0x80], 5), Err(HpackError::Truncated));
        assert_eq!(read(&[0x1f, 0x80, 0x80, 0x80, 0x80, 0x80, 0], 5), Err(HpackError::Integer));
        assert_eq!(read(&[0x1f, 0xff, 0xff, 0xff, 0x7f], 5), Err(HpackError::Integer));
    }

    #[test]
    fn every_value_comes_back() {
        quickcheck::quickcheck(
            (|value: u32, bits: u8| {
                let (value, bits) = ((value as usize) % MOST, bits % 8 + 1);
                let mut out = Vec::new();
                write(&mut out, value, bits, 0);
                read(&out, bits) == Ok((value, out.len()))
            }) as fn(u32, u8) -> bool,
        );
    }
}
