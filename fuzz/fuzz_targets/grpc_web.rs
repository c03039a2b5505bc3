//! gRPC-Web under foreign bytes: a body is changed in the same way however it is cut, text decodes to what binary would have been (and as
//! an independent decoder of base64 has it), and the trailers of a response are the ones that are in its last frame.
//!
//! The first bytes of the input say how it is cut and what of it are trailers; the rest is a body.

#![no_main]

use ::base64::Engine as _;
use ::base64::alphabet::STANDARD;
use ::base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its codec is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/grpc_web.rs"]
mod grpc_web;

use grpc_web::{NotBase64, Transcoder};

/// Padding or not, and whatever the bits that stand for no byte.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fuzz_target!(|input: &[u8]| {
    let [step, trailers, bytes @ ..] = input else { return };
    let step = usize::from(*step) + 1;
    let (trailers, body) = bytes.split_at(bytes.len().min(usize::from(*trailers % 64)));
    let trailers = fields(trailers);
    decode(bytes, step);
    encode(body, &trailers, step);
});

/// Name and value by turns, of the bytes that a codec lets through.
fn fields(bytes: &[u8]) -> Fields {
    let clean = |text: &[u8]| text.iter().copied().filter(|byte| !byte.is_ascii_control()).collect::<Vec<u8>>();
    let lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    let name = |text: &[u8]| text.iter().copied().filter(u8::is_ascii_alphanumeric).collect::<Vec<u8>>();
    let pairs = lines.chunks_exact(2).map(|pair| (name(pair[0]), clean(pair[1])));
    pairs.filter(|(name, _)| !name.is_empty()).collect()
}

fn run(mut transcoder: Transcoder, bytes: &[u8], step: usize, trailers: &Fields) -> Result<Vec<u8>, NotBase64> {
    let mut out = Vec::new();
    for part in bytes.chunks(step) {
        transcoder.feed(part)?;
        out.extend_from_slice(transcoder.pending());
        transcoder.clear();
    }
    transcoder.finish(trailers.iter().map(|(name, value)| (&name[..], &value[..])))?;
    out.extend_from_slice(transcoder.pending());
    Ok(out)
}

/// A request in text.
fn decode(bytes: &[u8], step: usize) {
    let none = Fields::new();
    let whole = run(Transcoder::decoder(), bytes, bytes.len().max(1), &none);
    assert_eq!(whole, run(Transcoder::decoder(), bytes, step, &none), "a cut changed it");
    // Each group may be padded: frames are coded one by one.
    let groups = bytes.chunks(4).map(|group| (group.len() == 4).then(|| BASE64.decode(group).ok()).flatten());
    assert_eq!(whole.ok(), groups.collect::<Option<Vec<_>>>().map(|groups| groups.concat()));
    // Credentials and the like are decoded at once, and less strictly.
    if let Ok(decoded) = BASE64.decode(bytes) {
        assert_eq!(weft_core::base64::decode(bytes), Some(decoded));
    }
}

/// A response.
fn encode(body: &[u8], trailers: &Fields, step: usize) {
    let [binary, text] = [false, true].map(|text| {
        let whole = run(Transcoder::encoder(text), body, body.len().max(1), trailers).expect("nothing is decoded");
        assert_eq!(run(Transcoder::encoder(text), body, step, trailers), Ok(whole.clone()), "a cut changed it");
        whole
    });
    assert_eq!(run(Transcoder::decoder(), &text, step, trailers), Ok(binary.clone()));
    let frame = binary.strip_prefix(body).expect("the body is as it was");
    let [0x80, a, b, c, d, block @ ..] = frame else { return assert!(frame.is_empty() && trailers.is_empty()) };
    assert_eq!(u32::from_be_bytes([*a, *b, *c, *d]) as usize, block.len());
    let mut found = Fields::new();
    for line in block.split(|&byte| byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\r") else {
            assert!(line.is_empty());
            continue;
        };
        let colon = line.iter().position(|&byte| byte == b':').expect("a name ends with a colon");
        found.push((line[..colon].to_vec(), line[colon + 1..].to_vec()));
    }
    let told = trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.trim_ascii().to_vec()));
    assert_eq!(found, told.collect::<Fields>());
}
