//! The Huffman code of RFC 7541 appendix B.
//!
//! The code is canonical (codes of one length are consecutive, in the order of their symbols), so the lengths alone determine it: codes and
//! decoding tables are computed from [`LENGTHS`] by the compiler.

use super::HpackError;

const SYMBOLS: usize = 257;
const LONGEST: usize = 30;
/// End of string; it must not appear in one (RFC 7541 5.2).
const EOS: u16 = 256;

/// Length in bits of the code of each byte, and of EOS.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// What the canonical order makes of the lengths.
struct Code {
    /// Code of each symbol, in its low bits.
    codes: [u32; SYMBOLS],
    /// Symbols in the order of their codes.
    order: [u16; SYMBOLS],
    /// For each length: the first code that is longer, shifted to 30 bits; codes below it are at most this long.
    ends: [u32; LONGEST + 1],
    /// For each length: its first code, and that code's place in `order`.
    firsts: [(u32, u16); LONGEST + 1],
    /// For each byte: symbol and length of the code it begins with, if that is at most 8 bits long; length 0 otherwise.
    short: [(u8, u8); 256],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut made = Code {
        codes: [0; SYMBOLS],
        order: [0; SYMBOLS],
        ends: [0; LONGEST + 1],
        firsts: [(0, 0); LONGEST + 1],
        short: [(0, 0); 256],
    };
    let mut next: u32 = 0;
    let mut place = 0;
    let mut length = 1;
    while length <= LONGEST {
        next <<= 1;
        made.firsts[length] = (next, place as u16);
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                made.codes[symbol] = next;
                made.order[place] = symbol as u16;
                place += 1;
                if length <= 8 {
                    let begin = (next as usize) << (8 - length);
                    let mut byte = begin;
                    while byte < begin + (1 << (8 - length)) {
                        made.short[byte] = (symbol as u8, length as u8);
                        byte += 1;
                    }
                }
                next += 1;
            }
            symbol += 1;
        }
        made.ends[length] = next << (LONGEST - length);
        length += 1;
    }
    made
}

/// Append the text that *input* stands for.
///
/// # Errors
/// A code of EOS, or padding that is not the begin of EOS and shorter than a byte (RFC 7541 5.2). *out* holds a part then.
pub fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    // No code is shorter than 5 bits.
    out.reserve(input.len() * 8 / 5 + 1);
    // The next `have` bits of the input are the high bits of `bits`.
    let mut bits: u64 = 0;
    let mut have: u32 = 0;
    let mut rest = input;
    loop {
        while have <= 56
            && let [byte, tail @ ..] = rest
        {
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
            rest = tail;
        }
        let (symbol, length) = CODE.short[(bits >> 56) as usize];
        let (symbol, length) = if length != 0 { (u16::from(symbol), u32::from(length)) } else { long(bits) };
        if length > have {
            break;
        }
        if symbol == EOS {
            return Err(HpackError::Huffman);
        }
        out.push(symbol as u8);
        bits <<= length;
        have -= length;
    }
    let padded_with_ones = have < 8 && bits >> (64 - have.max(1)) == (1 << have) - 1;
    if have == 0 || padded_with_ones { Ok(()) } else { Err(HpackError::Huffman) }
}

/// The symbol of a code of more than 8 bits, and its length.
fn long(bits: u64) -> (u16, u32) {
    let code = (bits >> (64 - LONGEST)) as u32;
    let mut length = 9;
    // The code is complete: every 30 bits begin with some code, at most 30 bits long.
    while length < LONGEST && code >= CODE.ends[length] {
        length += 1;
    }
    let (first, place) = CODE.firsts[length];
    let offset = (code >> (LONGEST - length)) - first;
    (CODE.order[(u32::from(place) + offset) as usize], length as u32)
}

/// Length in bytes of *text* in this code.
pub fn encoded_length(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|&byte| usize::from(LENGTHS[usize::from(byte)])).sum();
    bits.div_ceil(8)
}

/// Append *text* in this code.
pub fn encode(text: &[u8], out: &mut Vec<u8>) {
    let mut bits: u64 = 0;
    let mut have: u32 = 0;
    for &byte in text {
        let length = u32::from(LENGTHS[usize::from(byte)]);
        bits = bits << length | u64::from(CODE.codes[usize::from(byte)]);
        have += length;
        while have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        out.push(((bits << (8 - have)) as u8) | (0xff >> have));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, HpackError> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    #[test]
    fn the_examples_of_the_standard() {
        // RFC 7541 C.4 and C.6
        let examples: [(&[u8], &[u8]); 4] = [
            (b"www.example.com", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]),
            (b"no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
            (b"custom-value", &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf]),
            (b"302", &[0x64, 0x02]),
        ];
        for (text, code) in examples {
            let mut out = Vec::new();
            encode(text, &mut out);
            assert_eq!(out, code);
            assert_eq!(encoded_length(text), code.len());
            assert_eq!(decoded(code).as_deref(), Ok(text));
        }
    }

    #[test]
    fn the_lengths_make_a_complete_code() {
        let kraft: u64 = LENGTHS.iter().map(|&length| 1u64 << (LONGEST - usize::from(length))).sum();
        assert_eq!(kraft, 1 << LONGEST);
        assert_eq!(CODE.codes[256], 0x3fff_ffff);
        assert_eq!((CODE.codes[0], CODE.codes[255]), (0x1ff8, 0x3ff_ffee));
    }

    #[test]
    fn bad_padding_and_the_end_symbol_are_refused() {
        // '0' is 00000: then zeros as padding.
        assert_eq!(decoded(&[0b0000_0000]), Err(HpackError::Huffman));
        // A whole byte of padding.
        assert_eq!(decoded(&[0b0000_0111, 0xff]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[0b0000_0111]).as_deref(), Ok(&b"0"[..]));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[0xff]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[]).as_deref(), Ok(&b""[..]));
    }

    #[test]
    fn every_text_comes_back() {
        quickcheck::quickcheck(
            (|text: Vec<u8>| {
                let mut out = Vec::new();
                encode(&text, &mut out);
                out.len() == encoded_length(&text) && decoded(&out) == Ok(text)
            }) as fn(Vec<u8>) -> bool,
        );
    }
}
