//! The examples of RFC 7541 appendix C, and encoder against decoder.

use super::*;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, HpackError> {
    let mut fields = Vec::new();
    decoder.decode(block, |field| fields.push((field.name.to_vec(), field.value.to_vec())))?;
    Ok(fields)
}

fn fields(text: &[(&str, &str)]) -> Fields {
    text.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

const REQUESTS: [&[(&str, &str)]; 3] = [
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
];

#[test]
fn requests_without_huffman_code() {
    // RFC 7541 C.3
    let mut decoder = Decoder::new(4096);
    for (block, expected) in [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ]
    .iter()
    .zip(REQUESTS)
    {
        assert_eq!(decode(&mut decoder, &hex(block)).unwrap(), fields(expected));
    }
}

#[test]
fn requests_in_huffman_code() {
    // RFC 7541 C.4
    let mut decoder = Decoder::new(4096);
    for (block, expected) in [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ]
    .iter()
    .zip(REQUESTS)
    {
        assert_eq!(decode(&mut decoder, &hex(block)).unwrap(), fields(expected));
    }
}

#[test]
fn responses_that_drive_entries_out() {
    // RFC 7541 C.6, with a table of 256 bytes.
    let mut decoder = Decoder::new(256);
    let first = "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d
                 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
    let date = "Mon, 21 Oct 2013 20:13:21 GMT";
    let location = "https://www.example.com";
    let expected = [(":status", "302"), ("cache-control", "private"), ("date", date), ("location", location)];
    assert_eq!(decode(&mut decoder, &hex(first)).unwrap(), fields(&expected));
    let expected = [(":status", "307"), ("cache-control", "private"), ("date", date), ("location", location)];
    assert_eq!(decode(&mut decoder, &hex("4883 640e ffc1 c0bf")).unwrap(), fields(&expected));
    let third = "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2
                 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07";
    let expected = [
        (":status", "200"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        ("location", location),
        ("content-encoding", "gzip"),
        ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ];
    assert_eq!(decode(&mut decoder, &hex(third)).unwrap(), fields(&expected));
}

#[test]
fn malformed_blocks_are_refused() {
    let cases: [(&str, &str, HpackError); 8] = [
        ("index 0", "80", HpackError::Index),
        ("an index past both tables", "be", HpackError::Index),
        ("a literal with such an index", "7e 01 61", HpackError::Index),
        ("a string longer than the block", "00 05 6162", HpackError::Truncated),
        ("a name without a value", "00 01 61", HpackError::Truncated),
        ("a size update after a field", "82 20", HpackError::SizeUpdate),
        ("a size update above our setting", "3f e2 1f", HpackError::SizeUpdate),
        ("a string with the end symbol", "00 84 ffff ffff 00", HpackError::Huffman),
    ];
    for (case, block, error) in cases {
        assert_eq!(decode(&mut Decoder::new(4096), &hex(block)), Err(error), "{case}");
    }
}

#[test]
fn an_illegal_entry_stays_illegal_when_it_is_named_again() {
    let mut decoder = Decoder::new(4096);
    let mut legal = Vec::new();
    // "a: x LF y" into the table, then by index, then its name with another value.
    decoder.decode(&hex("40 01 61 03 78 0a 79 be 0f 2f 01 7a"), |field| legal.push(field.legal)).unwrap();
    assert_eq!(legal, [false, false, true]);
}

#[test]
fn secrets_and_what_was_marked_are_never_indexed() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::new(4096);
    for (name, value, marked) in
        [("authorization", "Bearer x", false), ("cookie", "a=b", false), ("x-key", "secret", true)]
    {
        let mut out = Vec::new();
        encoder.field(&mut out, name.as_bytes(), value.as_bytes(), marked);
        assert_eq!(out[0] & 0xf0, 0x10, "{name}");
        let mut seen = None;
        decoder.decode(&out, |field| seen = Some(field.never_indexed)).unwrap();
        assert_eq!(seen, Some(true));
    }
}

#[test]
fn the_second_message_costs_one_byte_a_field() {
    let mut encoder = Encoder::default();
    let mut lengths = Vec::new();
    for _ in 0..2 {
        let mut out = Vec::new();
        encoder.begin(&mut out);
        encoder.field(&mut out, b"User-Agent", b"grpc-go/1.70", false);
        encoder.field(&mut out, b"content-type", b"application/grpc", false);
        lengths.push(out.len());
    }
    assert!(lengths[0] > 20);
    assert_eq!(lengths[1], 2);
}

#[test]
fn a_smaller_table_is_announced_before_the_next_block() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::new(4096);
    let mut out = Vec::new();
    encoder.field(&mut out, b"name", b"value", false);
    encoder.set_limit(0);
    let first = out.len();
    encoder.begin(&mut out);
    encoder.field(&mut out, b"name", b"value", false);
    assert_eq!(out[first], 0x20);
    decode(&mut decoder, &out[..first]).unwrap();
    assert_eq!(decode(&mut decoder, &out[first..]).unwrap(), fields(&[("name", "value")]));
}

#[test]
fn a_table_that_was_smaller_between_two_blocks_is_announced_with_its_smallest_size() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::new(4096);
    let mut out = Vec::new();
    encoder.field(&mut out, b"name", b"value", false);
    decode(&mut decoder, &out).unwrap();
    for (limits, expected) in [
        (&[0, 4096][..], &b"\x20\x3f\xe1\x1f"[..]),
        (&[100, 0, 30], b"\x20\x3e"),
        (&[10, 4096, 200], b"\x2a\x3f\xa9\x01"),
        (&[4096], b"\x3f\xe1\x1f"),
        (&[4096], b""),
    ] {
        limits.iter().for_each(|&limit| encoder.set_limit(limit));
        let mut out = Vec::new();
        encoder.begin(&mut out);
        assert_eq!(out, expected, "{limits:?}");
        encoder.field(&mut out, b"name", b"value", false);
        assert_eq!(decode(&mut decoder, &out).unwrap(), fields(&[("name", "value")]));
    }
}

#[test]
fn what_is_encoded_is_decoded() {
    fn holds(messages: Vec<Vec<(u8, Vec<u8>)>>, limits: Vec<Vec<u16>>) -> bool {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(4096));
        messages.iter().enumerate().all(|(index, message)| {
            for limit in limits.get(index).into_iter().flatten() {
                encoder.set_limit(usize::from(*limit) % 5000);
            }
            let expected: Fields = message
                .iter()
                .map(|(name, value)| (format!("name-{}", name % 16).into_bytes(), value.clone()))
                .collect();
            let mut out = Vec::new();
            encoder.begin(&mut out);
            for (name, value) in &expected {
                encoder.field(&mut out, name, value, false);
            }
            decode(&mut decoder, &out) == Ok(expected)
        })
    }
    quickcheck::quickcheck(holds as fn(Vec<Vec<(u8, Vec<u8>)>>, Vec<Vec<u16>>) -> bool);
}

#[test]
fn foreign_bytes_never_panic() {
    fn holds(blocks: Vec<Vec<u8>>) -> bool {
        let mut decoder = Decoder::new(512);
        for block in blocks {
            let _ = decode(&mut decoder, &block);
        }
        true
    }
    quickcheck::quickcheck(holds as fn(Vec<Vec<u8>>) -> bool);
}
