//! A message of the access log service, taken apart without reading the records in it: the [`server`](super::server) keeps them as they came.
//!
//! Any process that may connect to the socket sends these bytes, so this has a fuzz target.

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};
use weft_protos::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;

use crate::access_log::Kind;

/// Records of one message, serialised.
pub(crate) type Entries = Vec<(Kind, Bytes)>;

/// Split a `StreamAccessLogsMessage` into who sends it and the bytes of each record.
///
/// # Errors
/// It is no such message.
pub(crate) fn take_apart(mut message: Bytes) -> Result<(Option<Identifier>, Entries), DecodeError> {
    let (mut identifier, mut entries) = (None, Entries::new());
    while message.has_remaining() {
        let (field, wire_type) = decode_key(&mut message)?;
        match (field, wire_type) {
            (1, WireType::LengthDelimited) => identifier = Some(Identifier::decode(take_bytes(&mut message)?)?),
            (2, WireType::LengthDelimited) => take_entries(Kind::Http, take_bytes(&mut message)?, &mut entries)?,
            (3, WireType::LengthDelimited) => take_entries(Kind::Tcp, take_bytes(&mut message)?, &mut entries)?,
            _ => skip_field(wire_type, field, &mut message, DecodeContext::default())?,
        }
    }
    Ok((identifier, entries))
}

fn take_entries(kind: Kind, mut group: Bytes, entries: &mut Entries) -> Result<(), DecodeError> {
    while group.has_remaining() {
        let (field, wire_type) = decode_key(&mut group)?;
        match (field, wire_type) {
            (1, WireType::LengthDelimited) => entries.push((kind, take_bytes(&mut group)?)),
            _ => skip_field(wire_type, field, &mut group, DecodeContext::default())?,
        }
    }
    Ok(())
}

fn take_bytes(from: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = decode_varint(from)?;
    match usize::try_from(length) {
        Ok(length) if length <= from.len() => Ok(from.split_to(length)),
        // prost's own words for it are not public; an empty message never decodes as a string of one byte.
        _ => Err(Identifier::decode(&[0x0a, 0x01][..]).expect_err("a length beyond the end is refused")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_protos::envoy::data::accesslog::v3::{HttpAccessLogEntry, HttpRequestProperties};
    use weft_protos::envoy::service::accesslog::v3::StreamAccessLogsMessage;
    use weft_protos::envoy::service::accesslog::v3::stream_access_logs_message::{HttpAccessLogEntries, LogEntries};

    #[test]
    fn a_message_is_taken_apart_into_the_bytes_of_its_records() {
        let identifier = Identifier { node: None, log_name: "log".into() };
        let entry = |id: &str| HttpAccessLogEntry {
            request: Some(HttpRequestProperties { request_id: id.into(), ..Default::default() }),
            ..Default::default()
        };
        let logs = HttpAccessLogEntries { log_entry: vec![entry("a"), entry("b")] };
        let message = StreamAccessLogsMessage {
            identifier: Some(identifier.clone()),
            log_entries: Some(LogEntries::HttpLogs(logs)),
        };
        let message = message.encode_to_vec();
        let (found, entries) = take_apart(message.clone().into()).unwrap();
        assert_eq!(found, Some(identifier));
        let ids =
            entries.iter().map(|(_, it)| HttpAccessLogEntry::decode(it.clone()).unwrap().request.unwrap().request_id);
        assert_eq!(ids.collect::<Vec<_>>(), ["a", "b"]);
        // Cut anywhere within the records, it is refused and nothing panics.
        for length in 0..message.len() {
            let _ = take_apart(Bytes::from(message[..length].to_vec()));
        }
        assert!(take_apart(Bytes::from(message[..message.len() - 1].to_vec())).is_err());
    }
}
