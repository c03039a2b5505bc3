//! The static table (RFC 7541 appendix A) and the dynamic table (RFC 7541 2.3.2).

use std::collections::VecDeque;

use super::field::{Field, Kind};

/// Bytes that an entry counts besides its name and value (RFC 7541 4.1).
pub const ENTRY_OVERHEAD: usize = 32;
/// Entries of the static table; the dynamic table's indices follow them.
pub const STATIC_ENTRIES: usize = STATIC.len();

/// RFC 7541 appendix A; index 1 is the first.
#[rustfmt::skip]
pub static STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""), (b"accept", b""),
    (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""), (b"authorization", b""), (b"cache-control", b""),
    (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""), (b"content-length", b""),
    (b"content-location", b""), (b"content-range", b""), (b"content-type", b""), (b"cookie", b""), (b"date", b""),
    (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""), (b"host", b""), (b"if-match", b""),
    (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""), (b"if-unmodified-since", b""),
    (b"last-modified", b""), (b"link", b""), (b"location", b""), (b"max-forwards", b""), (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""), (b"range", b""), (b"referer", b""), (b"refresh", b""), (b"retry-after", b""),
    (b"server", b""), (b"set-cookie", b""), (b"strict-transport-security", b""), (b"transfer-encoding", b""),
    (b"user-agent", b""), (b"vary", b""), (b"via", b""), (b"www-authenticate", b""),
];

/// What the static table's names are, worked out once.
static STATIC_KINDS: std::sync::LazyLock<[Kind; 61]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|index| Kind::of(STATIC[index].0)));

/// The static entry *index*, from 1.
pub fn static_entry(index: usize) -> Option<Field<'static>> {
    let at = index.checked_sub(1)?;
    let (name, value) = *STATIC.get(at)?;
    Some(Field { name, value, kind: STATIC_KINDS[at], legal: true, never_indexed: false })
}

/// Where in the static table *name* first stands; 0 if nowhere.
pub fn static_name(name: &[u8]) -> usize {
    const SLOTS: usize = 128;
    static SLOT: std::sync::LazyLock<[u8; SLOTS]> = std::sync::LazyLock::new(|| {
        let mut slots = [0u8; SLOTS];
        for (index, (name, _)) in STATIC.iter().enumerate() {
            let mut slot = place(name);
            while slots[slot] != 0 && STATIC[usize::from(slots[slot]) - 1].0 != *name {
                slot = (slot + 1) % SLOTS;
            }
            if slots[slot] == 0 {
                slots[slot] = index as u8 + 1;
            }
        }
        slots
    });
    fn place(name: &[u8]) -> usize {
        let (first, last) = (name.first().copied().unwrap_or(0), name.last().copied().unwrap_or(0));
        (name.len() * 11 + usize::from(first) * 5 + usize::from(last) * 3) % SLOTS
    }
    let slots = &*SLOT;
    let mut slot = place(name);
    while slots[slot] != 0 {
        let index = usize::from(slots[slot]);
        if STATIC[index - 1].0 == name {
            return index;
        }
        slot = (slot + 1) % SLOTS;
    }
    0
}

/// One entry of the dynamic table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where the name begins, counted from the first byte that was ever stored.
    start: u64,
    name: u32,
    value: u32,
    kind: Kind,
    legal: bool,
}

impl Entry {
    fn bytes(&self) -> usize {
        (self.name + self.value) as usize
    }
}

/// The dynamic table: newest first, as large as its limit allows.
#[derive(Debug)]
pub struct DynamicTable {
    entries: VecDeque<Entry>,
    /// Names and values of the entries, oldest first, after what is left of evicted ones.
    bytes: Vec<u8>,
    /// Position of `bytes[0]`, counted like `Entry::start`.
    base: u64,
    size: usize,
    limit: usize,
}

impl DynamicTable {
    pub fn new(limit: usize) -> DynamicTable {
        DynamicTable { entries: VecDeque::new(), bytes: Vec::new(), base: 0, size: 0, limit }
    }

    /// Entries that it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Size as RFC 7541 4.1 counts it.
    #[cfg(test)]
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Change the limit; entries that no longer fit are dropped.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.evict(0);
    }

    /// Entry *index* from 0, the newest.
    pub fn get(&self, index: usize) -> Option<Field<'_>> {
        let entry = self.entries.get(index)?;
        let start = (entry.start - self.base) as usize;
        let (name, value) = self.bytes[start..start + entry.bytes()].split_at(entry.name as usize);
        Some(Field { name, value, kind: entry.kind, legal: entry.legal, never_indexed: false })
    }

    /// Add a field. One that is larger than the table empties it (RFC 7541 4.4). Returns whether it is in the table.
    pub fn insert(&mut self, field: Field<'_>) -> bool {
        let size = field.size();
        self.evict(size);
        if size > self.limit {
            return false;
        }
        let start = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(field.name);
        self.bytes.extend_from_slice(field.value);
        let (name, value) = (field.name.len() as u32, field.value.len() as u32);
        self.entries.push_front(Entry { start, name, value, kind: field.kind, legal: field.legal });
        self.size += size;
        true
    }

    /// Drop the oldest entries until *more* bytes fit.
    fn evict(&mut self, more: usize) {
        while self.size + more > self.limit
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.bytes() + ENTRY_OVERHEAD;
        }
        // Move the living to the front once the dead take as much room as the table may have: each byte is moved once on average.
        let living = self.entries.back().map_or(self.base + self.bytes.len() as u64, |oldest| oldest.start);
        let dead = (living - self.base) as usize;
        if dead > 0 && (dead >= self.limit || dead == self.bytes.len()) {
            self.bytes.drain(..dead);
            self.base = living;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(table: &mut DynamicTable, name: &[u8], value: &[u8]) -> bool {
        table.insert(Field { name, value, kind: Kind::of(name), legal: true, never_indexed: false })
    }

    #[test]
    fn every_static_name_is_found_at_its_first_place() {
        for (index, (name, _)) in STATIC.iter().enumerate() {
            let first = STATIC.iter().position(|(other, _)| other == name).unwrap();
            assert_eq!(static_name(name), first + 1, "{index}");
            assert_eq!(static_entry(index + 1).unwrap().name, *name);
        }
        assert_eq!(static_name(b"x-request-id"), 0);
        assert_eq!(static_name(b""), 0);
        assert!(static_entry(0).is_none() && static_entry(62).is_none());
    }

    #[test]
    fn the_oldest_leave_first_and_the_newest_comes_first() {
        let mut table = DynamicTable::new(100);
        assert!(insert(&mut table, b"a", b"1"));
        assert!(insert(&mut table, b"b", b"22"));
        assert_eq!((table.len(), table.size()), (2, 34 + 35));
        assert!(insert(&mut table, b"c", b"3"));
        assert_eq!(table.len(), 2);
        assert_eq!(table.get(0).unwrap().name, b"c");
        assert_eq!(table.get(1).unwrap().value, b"22");
        assert!(table.get(2).is_none());
        table.set_limit(40);
        assert_eq!((table.len(), table.get(0).unwrap().name), (1, &b"c"[..]));
        assert!(!insert(&mut table, b"much", b"too large for it"));
        assert_eq!((table.len(), table.size()), (0, 0));
    }

    #[test]
    fn memory_stays_near_the_limit() {
        let mut table = DynamicTable::new(4096);
        for number in 0..100_000u32 {
            insert(&mut table, b"name", &number.to_be_bytes());
            assert!(table.bytes.len() <= 2 * 4096 + 64);
        }
        assert_eq!(table.get(0).unwrap().value, 99_999u32.to_be_bytes());
        assert_eq!(table.size(), table.len() * 40);
    }
}
