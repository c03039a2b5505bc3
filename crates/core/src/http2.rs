//! Options of HTTP/2, for a listener's or a cluster's connections.

use std::time::Duration;

use weft_protos::envoy::config::core::v3 as proto;
use weft_protos::google::protobuf::{self, UInt32Value};

use crate::compile::Context;

/// Options of HTTP/2 connections. `None`: the proxy's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Http2Options {
    /// Streams that the peer may have open.
    pub max_concurrent_streams: Option<u32>,
    /// Bytes of one stream's body that may wait.
    pub stream_window_bytes: Option<u32>,
    /// Bytes of all streams' bodies that may wait.
    pub connection_window_bytes: Option<u32>,
    /// Bytes of each direction's header compression table.
    pub header_table_bytes: Option<u32>,
    /// The peer may open streams of other protocols by extended CONNECT (RFC 8441).
    pub extended_connect: bool,
    /// What a peer may do beyond which the connection ends. `None` in each: only the proxy's own allowance over time holds.
    pub floods: FloodLimits,
    /// PING as often, and close a connection whose peer does not answer.
    pub keepalive: Option<Http2Keepalive>,
}

/// Envoy's bounds of frames that cost their sender nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FloodLimits {
    /// Frames of ours of any kind that may wait to be written.
    pub outbound_frames: Option<u32>,
    /// Answers of ours (PING, SETTINGS, RST_STREAM) that may wait to be written.
    pub outbound_control_frames: Option<u32>,
    /// HEADERS, CONTINUATION and DATA without content and end that may follow each other.
    pub consecutive_empty_frames: Option<u32>,
    /// PRIORITY, for each stream that was opened.
    pub priority_frames_per_stream: Option<u32>,
    /// WINDOW_UPDATE, for each DATA frame that was sent.
    pub window_updates_per_data_frame: Option<u32>,
}

/// Keep-alive PINGs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Between PINGs.
    pub interval: Duration,
    /// For the answer, or for anything else that shows that the peer is there.
    pub timeout: Duration,
}

impl Http2Keepalive {
    /// Envoy's bound of both. None at all would have PINGs sent as fast as the processor can.
    const LEAST: Duration = Duration::from_millis(1);
}

impl Http2Options {
    /// Envoy's lowest window, which is HTTP/2's own default.
    const LEAST_WINDOW_BYTES: u32 = 65_535;

    pub(crate) fn compile(context: &mut Context, options: &proto::Http2ProtocolOptions) -> Self {
        let mut window = |field: &str, value: Option<u32>| {
            if value.is_some_and(|bytes| !(Self::LEAST_WINDOW_BYTES..1 << 31).contains(&bytes)) {
                context.refuse_at(field, "a window is between 65535 and 2147483647 bytes");
            }
            value
        };
        let stream_window_bytes =
            window("initial_stream_window_size", options.initial_stream_window_size.as_ref().map(|size| size.value));
        let connection_window_bytes = window(
            "initial_connection_window_size",
            options.initial_connection_window_size.as_ref().map(|size| size.value),
        );
        let max_concurrent_streams = options.max_concurrent_streams.as_ref().map(|most| most.value);
        if max_concurrent_streams.is_some_and(|most| !(1..1 << 31).contains(&most)) {
            context.refuse_at("max_concurrent_streams", "between 1 and 2147483647 streams are needed");
        }
        let keepalive = options.connection_keepalive.as_ref().and_then(|keepalive| {
            context.at("connection_keepalive", |context| {
                let mut bounded = |field: &str, value: Option<&protobuf::Duration>, reason: &str| {
                    let value = context.duration(field, value);
                    if value.is_some_and(|value| value < Http2Keepalive::LEAST) {
                        context.refuse_at(field, reason);
                    }
                    value
                };
                let reason = "must be 1 ms or more; leave it out where no PINGs are to be sent";
                let interval = bounded("interval", keepalive.interval.as_ref(), reason);
                let timeout = bounded("timeout", keepalive.timeout.as_ref(), "must be 1 ms or more");
                match (interval, timeout) {
                    (_, None) => {
                        context.refuse_at("timeout", "required");
                        None
                    }
                    (None, Some(_)) => None,
                    (Some(interval), Some(timeout)) => Some(Http2Keepalive { interval, timeout }),
                }
            })
        });
        Self {
            header_table_bytes: options.hpack_table_size.as_ref().map(|size| size.value),
            extended_connect: options.allow_connect,
            floods: FloodLimits {
                outbound_frames: most(context, "max_outbound_frames", options.max_outbound_frames.as_ref()),
                outbound_control_frames: most(
                    context,
                    "max_outbound_control_frames",
                    options.max_outbound_control_frames.as_ref(),
                ),
                consecutive_empty_frames: options
                    .max_consecutive_inbound_frames_with_empty_payload
                    .as_ref()
                    .map(|limit| limit.value),
                priority_frames_per_stream: options
                    .max_inbound_priority_frames_per_stream
                    .as_ref()
                    .map(|limit| limit.value),
                window_updates_per_data_frame: most(
                    context,
                    "max_inbound_window_update_frames_per_data_frame_sent",
                    options.max_inbound_window_update_frames_per_data_frame_sent.as_ref(),
                ),
            },
            max_concurrent_streams,
            stream_window_bytes,
            connection_window_bytes,
            keepalive,
        }
    }
}

/// A limit that Envoy wants to be at least 1.
fn most(context: &mut Context, field: &str, limit: Option<&UInt32Value>) -> Option<u32> {
    let limit = limit.map(|limit| limit.value);
    if limit == Some(0) {
        context.refuse_at(field, "0 would end every connection; at least 1 is needed");
    }
    limit
}
