//! The two hash functions of consistent hashing, which must give the numbers that Envoy gets: a caller behind either proxy is to
//! come to the same endpoint.

use twox_hash::XxHash64;

/// xxHash64 of *bytes* with this seed.
pub fn xxhash64(seed: u64, bytes: &[u8]) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// xxHash64 of several *parts*: the hash of each is the seed of the next.
pub fn xxhash64_of<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> u64 {
    parts.into_iter().fold(0, xxhash64)
}

/// 64-bit MurmurHash2 with the seed that libstdc++ has for `std::hash<std::string>`.
pub fn murmur_hash_2(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const FACTOR: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(FACTOR);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let data = mix(u64::from_le_bytes(*word).wrapping_mul(FACTOR)).wrapping_mul(FACTOR);
        hash = (hash ^ data).wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(last)).wrapping_mul(FACTOR);
    }
    mix(mix(hash).wrapping_mul(FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_reference_implementations() {
        // xxHash's own: `xxhsum -H64` of the empty input, and of "foo".
        assert_eq!(xxhash64(0, b""), 0xef46_db37_51d8_e999);
        assert_eq!(xxhash64(0, b"foo"), 0x33bf_00a8_59c4_ba3f);
        assert_eq!(xxhash64_of([&b"f"[..], b"oo"]), xxhash64(xxhash64(0, b"f"), b"oo"));
        // `std::hash<std::string>` of libstdc++ on a 64-bit machine.
        assert_eq!(murmur_hash_2(b"bar"), 0x9f3e_11fb_306a_76b3);
        assert_eq!(murmur_hash_2(b"10.0.0.1:80_0"), 0xbd8f_6461_ecff_b28c);
        assert_eq!(murmur_hash_2(b"12345678"), 0x8c5b_90a3_3a04_dca5);
    }
}
