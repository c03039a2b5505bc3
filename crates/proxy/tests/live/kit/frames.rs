//! HTTP/2 frame by frame, for scripted clients and upstreams.

use weft_protos::envoy::config::core::v3::Http2ProtocolOptions;
use weft_protos::envoy::extensions::upstreams::http::v3 as upstreams;
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options as options;

use super::resources::any;
use super::{Mesh, Peer, Setup};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;
/// `:status: 200`, RFC 7541 appendix A.
pub const STATUS_200: u8 = 0x88;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// One end of a connection of HTTP/2.
pub struct Wire(pub Peer);

impl Wire {
    /// A client with prior knowledge.
    pub fn client(mesh: &Mesh) -> Wire {
        let mut wire = Wire(mesh.client());
        wire.0.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        wire.send(SETTINGS, 0, 0, &[]);
        wire
    }

    /// A server: its settings are out, the client's preface is read. *settings* as on the wire.
    pub fn server(mut peer: Peer, settings: &[u8]) -> Wire {
        peer.expect(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut wire = Wire(peer);
        wire.send(SETTINGS, 0, 0, settings);
        wire
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        let [d, e, f, g] = stream.to_be_bytes();
        self.0.send([&[a, b, c, kind, flags, d, e, f, g], payload].concat());
    }

    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        let head = self.0.take(9);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        Frame { kind: head[3], flags: head[4], stream, payload: self.0.take(length) }
    }

    /// The payload of the next PING, which the other side sent by itself.
    #[track_caller]
    pub fn ping(&mut self) -> Vec<u8> {
        loop {
            let frame = self.frame();
            if frame.kind == PING && frame.flags & ACK == 0 {
                return frame.payload;
            }
        }
    }

    /// The next frame that is no SETTINGS, WINDOW_UPDATE or PING.
    #[track_caller]
    pub fn next(&mut self) -> Frame {
        loop {
            let frame = self.frame();
            if !matches!(frame.kind, SETTINGS | WINDOW_UPDATE | PING) {
                return frame;
            }
        }
    }

    #[track_caller]
    pub fn expect(&mut self, kind: u8, stream: u32) -> Frame {
        let frame = self.next();
        assert_eq!((frame.kind, frame.stream), (kind, stream), "{frame:?}");
        frame
    }

    /// The body of *stream*, to the end of its last DATA frame; and what ended the stream instead, if it was a frame of another kind.
    #[track_caller]
    pub fn body(&mut self, stream: u32) -> (Vec<u8>, Option<Frame>) {
        let mut body = Vec::new();
        loop {
            let frame = self.next();
            assert_eq!(frame.stream, stream, "{frame:?}");
            if frame.kind != DATA {
                return (body, Some(frame));
            }
            body.extend_from_slice(&frame.payload);
            if frame.flags & END_STREAM != 0 {
                return (body, None);
            }
        }
    }

    pub fn request(&mut self, stream: u32, method: &str, path: &str, more: &[(&str, &str)], ended: bool) {
        let mut fields = vec![(":method", method), (":scheme", "http"), (":path", path), (":authority", "up")];
        fields.extend_from_slice(more);
        let flags = END_HEADERS | if ended { END_STREAM } else { 0 };
        self.send(HEADERS, flags, stream, &block(&fields));
    }

    /// Answer with 200 and a body.
    pub fn answer(&mut self, stream: u32, body: &[u8]) {
        self.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
        self.send(DATA, END_STREAM, stream, body);
    }
}

/// Fields as literals that no table keeps.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

/// Clients may open streams by extended CONNECT (RFC 8441).
pub fn allow_extended_connect(setup: &mut Setup) {
    setup.manager.http2_protocol_options.get_or_insert_default().allow_connect = true;
}

/// The cluster's endpoints speak HTTP/2.
pub fn http2_upstream(setup: &mut Setup) {
    http2_upstream_with(setup, Http2ProtocolOptions::default());
}

pub fn http2_upstream_with(setup: &mut Setup, http2: Http2ProtocolOptions) {
    use options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions as Version;
    speak(setup, explicit(Version(http2)));
}

pub fn explicit(version: options::explicit_http_config::ProtocolConfig) -> options::UpstreamProtocolOptions {
    options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig { protocol_config: Some(version) })
}

/// The cluster's endpoints speak this.
pub fn speak(setup: &mut Setup, protocol: options::UpstreamProtocolOptions) {
    let config = upstreams::HttpProtocolOptions { upstream_protocol_options: Some(protocol), ..Default::default() };
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    setup.cluster.typed_extension_protocol_options.insert(name.into(), any(name, &config));
}
