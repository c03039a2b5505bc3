//! WebSocket between versions of HTTP: an upgrade with a key in HTTP/1.1 (RFC 6455 4), an extended CONNECT in HTTP/2 (RFC 8441 5).
//!
//! Other protocols that HTTP/1.1 upgrades to go the same way, without keys.
//!
//! The rest of the proxy sees an upgrade: GET, `upgrade`, and 101. Keys prove in HTTP/1.1 that both sides mean WebSocket; in HTTP/2
//! the protocol's name does, and nobody looks at them. So a key is made where HTTP/2 ends, if there is none. A client's own goes
//! all the way, and so does its answer: Envoy makes neither, and behind one of the two ends there may be HTTP/1.1 again.

use aws_lc_rs::digest;
use weft_core::base64;
use weft_core::random::{Draw, Random};

use crate::codec::{Framing, Head, Name};

use super::client::Client;
use super::server::Server;

const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";

/// Take the upgrade out of *request* if there is no way to ask *server* for it: an extended CONNECT says no method beside its own, and what
/// follows it is the other protocol's, and no body (RFC 8441 4). Whoever is asked may pass over the wish (RFC 9110 7.8).
pub(super) fn pass_over(request: &mut Head, server: &Server, client: &Client<'_>) {
    if matches!((server, client), (Server::Http2 { .. }, Client::Http1 { .. }))
        && (request.method() != b"GET" || request.framing != Framing::None)
    {
        request.set_upgrade(b"");
    }
}

/// Make the upgrade in *request* what *server* understands. Returns whether the key in it is ours.
pub(super) fn prepare(request: &mut Head, server: &Server, random: &mut impl Random) -> bool {
    match server {
        Server::Http2 { .. } => false,
        Server::Http1 { .. } if !is_websocket(request) || request.get(KEY.as_bytes()).is_some() => false,
        Server::Http1 { .. } => {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&random.draw(Draw::Balance).to_be_bytes());
            key[8..].copy_from_slice(&random.draw(Draw::Balance).to_be_bytes());
            let mut text = Vec::new();
            base64::encode(&key, &mut text);
            request.set(Name::new(KEY), &text);
            true
        }
    }
}

/// Make the answer of *server* to an upgrade the one that *client* understands; *own_key* says that the key was ours. False: the upstream
/// did not do what it was asked.
pub(super) fn accept(request: &Head, response: &mut Head, server: &Server, client: &Client<'_>, own_key: bool) -> bool {
    match server {
        Server::Http2 { .. } if matches!(response.status, 200..300) => {
            response.status = 101;
            response.framing = Framing::None;
            response.declared_length = None;
            response.set_upgrade(request.upgrade());
        }
        Server::Http1 { .. } if response.status == 101 && is_websocket(request) => {
            let key = request.get(KEY.as_bytes()).unwrap_or_default();
            // The client would have checked; where it speaks HTTP/2 it cannot.
            if matches!(client, Client::Http2 { .. }) && response.get(ACCEPT.as_bytes()) != Some(&accept_of(key)) {
                return false;
            }
        }
        // It answers as if nobody had asked. In HTTP/2 that would say that it agrees, and its answer would be taken for the tunnel's bytes.
        Server::Http1 { .. } if matches!(response.status, 200..300) && client.is_stream() => return false,
        _ => return true,
    }
    match client {
        Client::Http2 { .. } if own_key => {
            response.remove(ACCEPT.as_bytes());
        }
        Client::Http1 { .. } if matches!(server, Server::Http2 { .. }) && is_websocket(request) => {
            let key = request.get(KEY.as_bytes()).unwrap_or_default();
            response.set(Name::new(ACCEPT), &accept_of(key));
        }
        Client::Http1 { .. } | Client::Http2 { .. } => {}
    }
    true
}

fn is_websocket(request: &Head) -> bool {
    request.upgrade().eq_ignore_ascii_case(b"websocket")
}

/// RFC 6455 4.2.2: what answers *key*.
fn accept_of(key: &[u8]) -> Vec<u8> {
    let mut text = key.to_vec();
    text.extend_from_slice(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut accept = Vec::new();
    base64::encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text).as_ref(), &mut accept);
    accept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_standard() {
        // RFC 6455 1.3
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
