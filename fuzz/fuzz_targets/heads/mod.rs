//! Requests on their way to the next hop: what was accepted must mean the same there. A difference is how a request is smuggled.

use std::time::Duration;

use crate::codec::h2::{Connection, Event, Limits, Role};
use crate::codec::http1::encode::{self, After};
use crate::codec::http1::{self, HeadParser};
use crate::codec::{Framing, Head};

/// What a hop may change: names lose their case, and their order means nothing unless they are equal (RFC 9110 5.3).
fn fields(head: &Head) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut fields: Vec<_> = head.fields().map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect();
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}

/// Whether the next hop is asked for the same.
pub fn assert_same(one: &Head, other: &Head) {
    assert_eq!((one.method(), one.target(), one.authority()), (other.method(), other.target(), other.authority()));
    assert_eq!(fields(one), fields(other));
    let sent = |framing: Framing| if framing == Framing::Length(0) { Framing::None } else { framing };
    assert_eq!(sent(one.framing), sent(other.framing));
}

/// *head*, which was accepted, is accepted again in HTTP/2, as the same.
pub fn same_in_http2(head: &Head) {
    let wide = Limits { header_bytes: 1 << 20, header_fields: 200, extended_connect: true, ..Limits::default() };
    let (mut client, mut server) = (Connection::new(Role::Client, wide), Connection::new(Role::Server, wide));
    if !head.upgrade().is_empty() {
        return;
    }
    client.request(head, false, head.framing == Framing::None);
    let mut again = Head::default();
    let mut used = 0;
    loop {
        let (count, event) = server
            .receive(&client.output()[used..], Duration::ZERO, &mut again)
            .expect("our own frames are well-formed");
        used += count;
        match event {
            Some(Event::Head { .. }) => return assert_same(head, &again),
            Some(Event::Settings | Event::Writable { .. }) => {}
            other => panic!("what was accepted is not accepted again: {other:?}"),
        }
    }
}

/// The same in HTTP/1.1.
pub fn same_in_http1(head: &Head) {
    if let Some(again) = in_http1(head) {
        assert_same(head, &again);
    }
}

/// *head*, which was accepted, as the next hop reads it in HTTP/1.1; `None`: it does not get there.
pub fn in_http1(head: &Head) -> Option<Head> {
    if head.authority().is_empty() || head.is_connect() || !head.upgrade().is_empty() {
        // The first two are refused before they are forwarded; an upgrade gains fields on its way.
        return None;
    }
    let mut out = Vec::new();
    encode::request(&mut out, head, After::KeepAlive);
    let mut again = Head::default();
    let limits = http1::Limits { head_bytes: 1 << 20, fields: 200 };
    let read = HeadParser::default().request(&out, &mut again, limits);
    assert_eq!(read, Ok(Some(out.len())), "not one request in HTTP/1.1: {:?}", String::from_utf8_lossy(&out));
    // `te` and lengths are written by the encoder; reading gives them back as fields.
    again.remove(b"te");
    Some(again)
}
