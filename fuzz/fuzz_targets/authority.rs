//! What a forward proxy is asked for, under foreign bytes: host and port are read without a panic, no port is made up, what was read is
//! written and read again as the same, and an address with a port is what the standard library finds in it.

#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its reader is compiled in from its source.
#[path = "../../crates/proxy/src/authority.rs"]
mod authority;

use authority::split;

fuzz_target!(|input: &[u8]| {
    let read = split(input);
    // A zone (`%`) is none that a URI may have (RFC 3986 3.2.2).
    if let Some(text) = std::str::from_utf8(input).ok().filter(|text| !text.contains('%'))
        && let Ok(address) = text.parse::<SocketAddr>()
    {
        let (host, port) = read.expect("an address is an authority");
        assert_eq!((host.parse(), port), (Ok(address.ip()), address.port()));
    }
    let Some((host, port)) = read else { return };
    assert!(!host.is_empty() && input.windows(host.len()).any(|part| part == host.as_bytes()));
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    assert_eq!(split(text.as_bytes()), Some((host, port)), "{text}");
    // A port is what stands behind the host, or that of HTTP where nothing does.
    let rest = &input[host.len() + usize::from(host.contains(':')) * 2..];
    match rest {
        [] => assert_eq!(port, 80),
        [b':', digits @ ..] => {
            let number = digits.iter().try_fold(0u32, |number, digit| {
                digit.is_ascii_digit().then(|| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
            });
            assert_eq!(number, Some(port.into()));
        }
        _ => panic!("{rest:?} is neither"),
    }
});
