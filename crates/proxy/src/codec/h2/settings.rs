//! SETTINGS (RFC 9113 6.5): what each side asks of the other.

use super::flow::MOST_WINDOW;
use super::frame::{self, Code, DEFAULT_MAX_FRAME_BYTES, kind, number};

/// Identifiers (RFC 9113 6.5.2, RFC 8441 3).
mod id {
    pub(super) const HEADER_TABLE_SIZE: u16 = 1;
    pub(super) const ENABLE_PUSH: u16 = 2;
    pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(super) const MAX_FRAME_SIZE: u16 = 5;
    pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(super) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The window of a stream and of the connection unless settings say otherwise (RFC 9113 6.9.2).
pub const DEFAULT_WINDOW_BYTES: u32 = 65_535;
/// The compression table unless settings say otherwise (RFC 9113 6.5.2).
pub const DEFAULT_HEADER_TABLE_BYTES: u32 = 4096;
/// Largest frame that can be allowed.
const MOST_FRAME_BYTES: u32 = (1 << 24) - 1;

/// One side's settings. The default is what holds before the first SETTINGS frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub header_table_bytes: u32,
    pub push: bool,
    /// `None`: no limit.
    pub max_concurrent_streams: Option<u32>,
    pub initial_window_bytes: u32,
    pub max_frame_bytes: u32,
    /// `None`: no limit.
    pub max_header_list_bytes: Option<u32>,
    /// Extended CONNECT is understood.
    pub connect_protocol: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            header_table_bytes: DEFAULT_HEADER_TABLE_BYTES,
            push: true,
            max_concurrent_streams: None,
            initial_window_bytes: DEFAULT_WINDOW_BYTES,
            max_frame_bytes: DEFAULT_MAX_FRAME_BYTES,
            max_header_list_bytes: None,
            connect_protocol: false,
        }
    }
}

impl Settings {
    /// Append a SETTINGS frame with what differs from the defaults.
    pub fn write(&self, out: &mut Vec<u8>) {
        let default = Settings::default();
        let begin = out.len();
        frame::header(out, 0, kind::SETTINGS, 0, 0);
        let mut put = |id: u16, value: u32, default: u32| {
            if value != default {
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(&value.to_be_bytes());
            }
        };
        put(id::HEADER_TABLE_SIZE, self.header_table_bytes, default.header_table_bytes);
        put(id::ENABLE_PUSH, self.push.into(), default.push.into());
        if let Some(streams) = self.max_concurrent_streams {
            put(id::MAX_CONCURRENT_STREAMS, streams, u32::MAX);
        }
        put(id::INITIAL_WINDOW_SIZE, self.initial_window_bytes, default.initial_window_bytes);
        put(id::MAX_FRAME_SIZE, self.max_frame_bytes, default.max_frame_bytes);
        if let Some(bytes) = self.max_header_list_bytes {
            put(id::MAX_HEADER_LIST_SIZE, bytes, u32::MAX);
        }
        put(id::ENABLE_CONNECT_PROTOCOL, self.connect_protocol.into(), 0);
        let length = out.len() - begin - frame::HEADER_BYTES;
        frame::patch_header(out, begin, length, kind::SETTINGS, 0, 0);
    }

    /// Apply the payload of a SETTINGS frame. *from_server* says who sent it. Returns the smallest compression table that was asked for on
    /// the way: a value may come more than once, and each is in force for a moment (RFC 9113 6.5.3, RFC 7541 4.2).
    ///
    /// # Errors
    /// The connection error's code and reason.
    pub fn apply(&mut self, payload: &[u8], from_server: bool) -> Result<u32, (Code, &'static str)> {
        let mut smallest_table_bytes = u32::MAX;
        let (entries, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err((Code::FRAME_SIZE_ERROR, "SETTINGS is not a list of six bytes each"));
        }
        for &[a, b, rest @ ..] in entries {
            let value = number(rest);
            match u16::from_be_bytes([a, b]) {
                id::HEADER_TABLE_SIZE => {
                    self.header_table_bytes = value;
                    smallest_table_bytes = smallest_table_bytes.min(value);
                }
                id::ENABLE_PUSH if value > 1 || (from_server && value == 1) => {
                    return Err((Code::PROTOCOL_ERROR, "ENABLE_PUSH is not 0 or 1, or a server enables push"));
                }
                id::ENABLE_PUSH => self.push = value == 1,
                id::MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = Some(value),
                id::INITIAL_WINDOW_SIZE if i64::from(value) > MOST_WINDOW => {
                    return Err((Code::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is above 2^31-1"));
                }
                id::INITIAL_WINDOW_SIZE => self.initial_window_bytes = value,
                id::MAX_FRAME_SIZE if !(DEFAULT_MAX_FRAME_BYTES..=MOST_FRAME_BYTES).contains(&value) => {
                    return Err((Code::PROTOCOL_ERROR, "MAX_FRAME_SIZE is not between 2^14 and 2^24-1"));
                }
                id::MAX_FRAME_SIZE => self.max_frame_bytes = value,
                id::MAX_HEADER_LIST_SIZE => self.max_header_list_bytes = Some(value),
                // RFC 8441 3: it is not taken back.
                id::ENABLE_CONNECT_PROTOCOL if value > 1 || (self.connect_protocol && value == 0) => {
                    return Err((Code::PROTOCOL_ERROR, "ENABLE_CONNECT_PROTOCOL is not 0 or 1, or was taken back"));
                }
                id::ENABLE_CONNECT_PROTOCOL => self.connect_protocol = value == 1,
                // RFC 9113 6.5.2: what is not known is ignored.
                _ => {}
            }
        }
        Ok(smallest_table_bytes.min(self.header_table_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::h2::frame::Header;

    #[test]
    fn settings_read_as_they_were_written() {
        let settings = Settings {
            header_table_bytes: 0,
            push: false,
            max_concurrent_streams: Some(7),
            initial_window_bytes: 1 << 20,
            max_frame_bytes: 1 << 20,
            max_header_list_bytes: Some(1000),
            connect_protocol: true,
        };
        let mut out = Vec::new();
        settings.write(&mut out);
        let header = Header::read(&out).unwrap();
        assert_eq!((header.kind, header.length), (kind::SETTINGS, out.len() - frame::HEADER_BYTES));
        let mut read = Settings::default();
        read.apply(&out[frame::HEADER_BYTES..], false).unwrap();
        assert_eq!(read, settings);
    }

    #[test]
    fn values_out_of_range_are_connection_errors() {
        for (id, value, from_server, code) in [
            (2, 2, false, Code::PROTOCOL_ERROR),
            (2, 1, true, Code::PROTOCOL_ERROR),
            (4, 1 << 31, false, Code::FLOW_CONTROL_ERROR),
            (5, 16_383, false, Code::PROTOCOL_ERROR),
            (5, 1 << 24, false, Code::PROTOCOL_ERROR),
            (8, 2, false, Code::PROTOCOL_ERROR),
        ] {
            let [a, b, c, d] = u32::to_be_bytes(value);
            let result = Settings::default().apply(&[0, id, a, b, c, d], from_server);
            assert_eq!(result.map_err(|(code, _)| code), Err(code), "{id} {value}");
        }
        assert_eq!(Settings::default().apply(&[0; 5], false).unwrap_err().0, Code::FRAME_SIZE_ERROR);
        assert_eq!(Settings::default().apply(&[0xff, 0xff, 1, 2, 3, 4], false), Ok(DEFAULT_HEADER_TABLE_BYTES));
    }

    #[test]
    fn the_last_value_counts_and_the_smallest_table_is_told() {
        let mut settings = Settings::default();
        assert_eq!(settings.apply(&[0, 1, 0, 0, 0, 7, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0, 1, 0], false), Ok(7));
        assert_eq!(settings.header_table_bytes, 256);
        assert_eq!(settings.apply(&[0, 3, 0, 0, 0, 7], false), Ok(256));
    }
}
