//! What is in a session ticket under foreign bytes: a session is read to its end or not at all, and what was written by the grammar of
//! TLS is read as it is.
//!
//! The input is taken for a session; and once for the parts of one: flags, and behind them what stands between zeros.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its readers are compiled in from their source.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/codec"]
mod codec {
    pub mod tls_fields;
}
#[path = "../../crates/proxy/src/tls/server_session.rs"]
mod server_session;

use server_session::Session;

fuzz_target!(|input: &[u8]| {
    if let Some(session) = Session::read(input) {
        let certificates: usize = session.chain.iter().map(|certificate| certificate.len()).sum();
        assert!(certificates <= input.len());
        assert!(Session::read(&input[..input.len() - 1]).is_none());
        assert!(Session::read(&[input, b"\0"].concat()).is_none());
    }
    let [flags, rest @ ..] = input else { return };
    let mut parts = rest.split(|&byte| byte == 0);
    let mut next = |most: usize| parts.next().map_or(&[][..], |part| &part[..part.len().min(most)]);
    let [server_name, secret, alpn, data] = [255, 255, 255, 1024].map(&mut next);
    let chain: Vec<&[u8]> = parts.collect();
    let of = |bit: u8| (flags >> bit) & 1;

    let mut plain = vec![of(0)];
    if of(0) == 1 {
        vector::<1>(&mut plain, server_name);
    }
    plain.extend([3, 4, 0x13, 1]);
    vector::<1>(&mut plain, secret);
    plain.push(of(1));
    plain.push(of(2));
    if of(2) == 1 {
        let mut certificates = Vec::new();
        chain.iter().for_each(|certificate| vector::<3>(&mut certificates, certificate));
        vector::<3>(&mut plain, &certificates);
    }
    plain.push(of(3));
    if of(3) == 1 {
        vector::<1>(&mut plain, alpn);
    }
    vector::<2>(&mut plain, data);
    plain.extend([0; 12]);

    let session = Session::read(&plain).expect("it is one");
    assert_eq!(session.authenticated_at, <[u8; 8]>::try_from(data).ok().map(u64::from_be_bytes));
    let shown: Vec<&[u8]> = session.chain.iter().map(|certificate| &certificate[..]).collect();
    assert_eq!(shown, if of(2) == 1 { chain } else { Vec::new() });
});

/// Write *content* behind its count, which has *WIDTH* bytes (RFC 8446 3.4).
fn vector<const WIDTH: usize>(out: &mut Vec<u8>, content: &[u8]) {
    out.extend(&content.len().to_be_bytes()[size_of::<usize>() - WIDTH..]);
    out.extend(content);
}
