//! From a header block to fields (RFC 7541 3).

use super::field::{Field, Kind, is_legal_name, is_legal_value};
use super::table::{DynamicTable, STATIC_ENTRIES, static_entry};
use super::{HpackError, huffman, integer};

/// One direction's decoder. Its table is part of the connection: every block must be decoded, whatever becomes of its message.
#[derive(Debug)]
pub struct Decoder {
    table: DynamicTable,
    /// The largest table that our settings allow the peer.
    allowed: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// *allowed* is our SETTINGS_HEADER_TABLE_SIZE.
    pub fn new(allowed: usize) -> Decoder {
        Decoder { table: DynamicTable::new(allowed), allowed, name: Vec::new(), value: Vec::new() }
    }

    /// The peer has acknowledged that its table may take up *bytes* and no more (RFC 7541 4.2). What it forgets to remove is gone.
    pub fn allow(&mut self, bytes: usize) {
        self.allowed = bytes;
        self.table.set_limit(self.table.limit().min(bytes));
    }

    /// Decode one whole block and hand each field to *take*.
    ///
    /// # Errors
    /// [`HpackError`]: the tables of both sides differ now, so the connection is lost.
    pub fn decode(&mut self, block: &[u8], mut take: impl FnMut(Field<'_>)) -> Result<(), HpackError> {
        let mut rest = block;
        let mut at_begin = true;
        while let Some(&first) = rest.first() {
            if first & 0xe0 == 0x20 {
                // RFC 7541 4.2: only before the first field.
                if !at_begin {
                    return Err(HpackError::SizeUpdate);
                }
                let (limit, used) = integer::read(rest, 5)?;
                if limit > self.allowed {
                    return Err(HpackError::SizeUpdate);
                }
                self.table.set_limit(limit);
                rest = &rest[used..];
                continue;
            }
            at_begin = false;
            rest = match first {
                0x80.. => {
                    let (index, used) = integer::read(rest, 7)?;
                    take(entry(&self.table, index)?);
                    &rest[used..]
                }
                0x40.. => self.literal(rest, 6, true, false, &mut take)?,
                0x10.. => self.literal(rest, 4, false, true, &mut take)?,
                _ => self.literal(rest, 4, false, false, &mut take)?,
            };
        }
        Ok(())
    }

    fn literal<'i>(
        &mut self,
        input: &'i [u8],
        bits: u8,
        keep: bool,
        never_indexed: bool,
        take: &mut impl FnMut(Field<'_>),
    ) -> Result<&'i [u8], HpackError> {
        let (index, used) = integer::read(input, bits)?;
        let mut rest = &input[used..];
        self.name.clear();
        self.value.clear();
        let (kind, legal_name) = if index == 0 {
            rest = string(rest, &mut self.name)?;
            (Kind::of(&self.name), is_legal_name(&self.name))
        } else {
            let named = entry(&self.table, index)?;
            self.name.extend_from_slice(named.name);
            // An illegal entry stays illegal for its name's sake only if the name is the reason; read it again.
            (named.kind, named.legal || is_legal_name(named.name))
        };
        rest = string(rest, &mut self.value)?;
        let legal = legal_name && is_legal_value(&self.value);
        let field = Field { name: &self.name, value: &self.value, kind, legal, never_indexed };
        if keep {
            self.table.insert(field);
        }
        take(field);
        Ok(rest)
    }
}

fn entry(table: &DynamicTable, index: usize) -> Result<Field<'_>, HpackError> {
    if index <= STATIC_ENTRIES {
        return static_entry(index).ok_or(HpackError::Index);
    }
    table.get(index - STATIC_ENTRIES - 1).ok_or(HpackError::Index)
}

/// Read a string literal (RFC 7541 5.2) into *out*; returns what follows it.
fn string<'i>(input: &'i [u8], out: &mut Vec<u8>) -> Result<&'i [u8], HpackError> {
    let coded = input.first().ok_or(HpackError::Truncated)? & 0x80 != 0;
    let (length, used) = integer::read(input, 7)?;
    let rest = &input[used..];
    let (bytes, rest) = rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
    if coded {
        huffman::decode(bytes, out)?;
    } else {
        out.extend_from_slice(bytes);
    }
    Ok(rest)
}
