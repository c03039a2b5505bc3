//! From fields to a header block (RFC 7541 6).
//!
//! What is likely to come again goes into the dynamic table, in Huffman code: the cost is paid once. What is different in each message is written as it is:
//! coding it would cost time for every request, and putting it into the table would drive out what is worth keeping.

use std::collections::VecDeque;

use super::field::{Field, Kind};
use super::table::{DynamicTable, STATIC, STATIC_ENTRIES, static_name};
use super::{huffman, integer};

/// The largest table that we keep, whatever the peer would allow.
const MOST_TABLE_BYTES: usize = 4096;
/// A literal may stand in a table for guessing (CRIME); short secrets are guessed first (RFC 7541 7.1.3).
const SHORT_COOKIE_BYTES: usize = 20;

/// How a field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Indexing {
    Table,
    Without,
    Never,
}

/// One direction's encoder.
#[derive(Debug)]
pub struct Encoder {
    table: DynamicTable,
    /// Hashes of the entries, as the table orders them: of name and value, and of the name alone.
    hashes: VecDeque<(u32, u32)>,
    /// The limits to announce at the begin of the next block: the smallest since the last one, and that in force.
    announce: Option<(usize, usize)>,
    lower: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder {
            table: DynamicTable::new(MOST_TABLE_BYTES),
            hashes: VecDeque::new(),
            announce: None,
            lower: Vec::new(),
        }
    }
}

impl Encoder {
    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub fn set_limit(&mut self, allowed: usize) {
        let limit = allowed.min(MOST_TABLE_BYTES);
        if limit != self.table.limit() {
            self.table.set_limit(limit);
            self.hashes.truncate(self.table.len());
            let smallest = self.announce.map_or(limit, |(smallest, _)| smallest.min(limit));
            self.announce = Some((smallest, limit));
        }
    }

    /// Must be called before the first field of each block.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        // RFC 7541 4.2: of several changes the smallest too, for it drove entries out that the peer must let go.
        if let Some((smallest, limit)) = self.announce.take() {
            integer::write(out, smallest, 5, 0x20);
            if limit != smallest {
                integer::write(out, limit, 5, 0x20);
            }
        }
    }

    /// Append a field that the static table holds whole; *index* from 1.
    pub fn indexed(&mut self, out: &mut Vec<u8>, index: usize) {
        integer::write(out, index, 7, 0x80);
    }

    /// Append a field. The name may be in any case.
    pub fn field(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8], never_indexed: bool) {
        if !name.iter().any(u8::is_ascii_uppercase) {
            return self.lower_field(out, name, value, never_indexed);
        }
        let mut lower = std::mem::take(&mut self.lower);
        lower.clear();
        lower.extend(name.iter().map(u8::to_ascii_lowercase));
        self.lower_field(out, &lower, value, never_indexed);
        self.lower = lower;
    }

    fn lower_field(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8], never_indexed: bool) {
        let known_name = static_name(name);
        let indexing = if never_indexed { Indexing::Never } else { indexing(name, value) };
        if indexing == Indexing::Table {
            let same_name = |index: &usize| STATIC.get(index - 1).is_some_and(|(other, _)| *other == name);
            let exact = (known_name != 0)
                .then(|| (known_name..).take_while(same_name).find(|index| STATIC[index - 1].1 == value))
                .flatten();
            if let Some(index) = exact {
                return self.indexed(out, index);
            }
        }
        let (name_hash, field_hash) = (hash(name, 0), hash(value, hash(name, 0)));
        if indexing == Indexing::Table
            && let Some(index) = self.find(name, Some(value), field_hash)
        {
            return integer::write(out, index + STATIC_ENTRIES + 1, 7, 0x80);
        }
        let name_index = match known_name {
            0 => self.find(name, None, name_hash).map_or(0, |index| index + STATIC_ENTRIES + 1),
            index => index,
        };
        match indexing {
            Indexing::Table => integer::write(out, name_index, 6, 0x40),
            Indexing::Without => integer::write(out, name_index, 4, 0),
            Indexing::Never => integer::write(out, name_index, 4, 0x10),
        }
        if name_index == 0 {
            string(out, name, true);
        }
        string(out, value, indexing == Indexing::Table);
        if indexing == Indexing::Table {
            // Kind and legality are of interest to decoders only.
            let field = Field { name, value, kind: Kind::UnknownPseudo, legal: true, never_indexed };
            if self.table.insert(field) {
                self.hashes.push_front((field_hash, name_hash));
            }
            self.hashes.truncate(self.table.len());
        }
    }

    /// The dynamic entry with this name, and with this value if one is asked for.
    fn find(&self, name: &[u8], value: Option<&[u8]>, wanted: u32) -> Option<usize> {
        self.hashes.iter().enumerate().find_map(|(index, &(field, of_name))| {
            let hash = if value.is_some() { field } else { of_name };
            if hash != wanted {
                return None;
            }
            let entry = self.table.get(index)?;
            (entry.name == name && value.is_none_or(|value| entry.value == value)).then_some(index)
        })
    }
}

/// Whether a field is worth a place in the table.
fn indexing(name: &[u8], value: &[u8]) -> Indexing {
    match name {
        b"authorization" | b"proxy-authorization" => Indexing::Never,
        b"cookie" if value.len() < SHORT_COOKIE_BYTES => Indexing::Never,
        b":path"
        | b"content-length"
        | b"x-request-id"
        | b"traceparent"
        | b"tracestate"
        | b"x-b3-traceid"
        | b"x-b3-spanid"
        | b"x-b3-parentspanid"
        | b"grpc-timeout"
        | b"etag"
        | b"if-none-match"
        | b"if-modified-since"
        | b"last-modified"
        | b"location"
        | b"set-cookie"
        | b"range"
        | b"content-range"
        | b"age"
        | b"x-envoy-upstream-service-time"
        | b"grpc-message"
        | b"referer" => Indexing::Without,
        _ if name.len() + value.len() > MOST_TABLE_BYTES / 4 => Indexing::Without,
        _ => Indexing::Table,
    }
}

fn string(out: &mut Vec<u8>, text: &[u8], coded: bool) {
    if coded {
        let length = huffman::encoded_length(text);
        if length < text.len() {
            integer::write(out, length, 7, 0x80);
            return huffman::encode(text, out);
        }
    }
    integer::write(out, text.len(), 7, 0);
    out.extend_from_slice(text);
}

/// A quick hash: hits are compared in full, and what stands in the table was chosen by our own side's messages.
fn hash(text: &[u8], seed: u32) -> u32 {
    let mut hash = u64::from(seed) ^ text.len() as u64;
    let (words, rest) = text.as_chunks::<8>();
    for word in words {
        hash = (hash.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    for &byte in rest {
        hash = (hash.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    (hash >> 32) as u32
}
