//! Read buffers, lent by a pool of the worker.
//!
//! A connection holds a buffer only while there are bytes in it or a read is under way, so ten thousand idle
//! connections cost no buffer at all. Two sizes: one for heads and small bodies, one for long bodies, where the number of
//! system calls decides the cost.

use std::cell::RefCell;

/// Enough for a head and a small body in one read.
pub const SMALL_BYTES: usize = 16 * 1024;
/// For bodies that keep coming.
pub const LARGE_BYTES: usize = 128 * 1024;
/// Buffers kept for reuse by a worker, of each size. More than are busy at once on one core is waste.
const KEPT_SMALL: usize = 64;
const KEPT_LARGE: usize = 8;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { small: Vec::new(), large: Vec::new() }) };
}

struct Pool {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
}

/// Bytes that were read and not yet used, and room for more. An empty one owns no memory until it is read into.
#[derive(Debug)]
pub struct Buffer {
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    /// A body may have this much of it; see [`Buffer::limited`].
    limit: usize,
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer::limited(0)
    }
}

impl Buffer {
    #[cfg(test)]
    pub fn new() -> Buffer {
        Buffer::default()
    }

    /// One that grows for bodies no further than *bytes* (0: as far as it likes). It never has less than the small size.
    pub fn limited(bytes: u32) -> Buffer {
        let mut buffer = Buffer { bytes: None, start: 0, end: 0, limit: LARGE_BYTES };
        buffer.set_limit(bytes);
        buffer
    }

    /// From now on as [`Buffer::limited`] says.
    pub fn set_limit(&mut self, bytes: u32) {
        self.limit = if bytes == 0 { LARGE_BYTES } else { (bytes as usize).clamp(SMALL_BYTES, LARGE_BYTES) };
    }

    /// How many bytes of a body may wait in one direction.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What was read and not yet used.
    pub fn data(&self) -> &[u8] {
        match &self.bytes {
            Some(bytes) => &bytes[self.start..self.end],
            None => &[],
        }
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Mark the first *count* bytes of [`Buffer::data`] as used.
    ///
    /// # Panics
    /// *count* is more than there is.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len(), "more consumed than read");
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room for the next read; at least one byte, unless the buffer is full of unused data.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.bytes.is_none() {
            self.bytes = Some(take(SMALL_BYTES));
        }
        if self.start > 0 {
            let (start, end) = (self.start, self.end);
            if let Some(bytes) = &mut self.bytes {
                bytes.copy_within(start..end, 0);
            }
            self.end -= self.start;
            self.start = 0;
        }
        match &mut self.bytes {
            Some(bytes) => &mut bytes[self.end..],
            None => &mut [],
        }
    }

    /// Note that the first *count* bytes of [`Buffer::spare`] were filled.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.capacity());
    }

    pub fn has_memory(&self) -> bool {
        self.bytes.is_some()
    }

    fn capacity(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len())
    }

    pub fn is_full(&self) -> bool {
        self.bytes.is_some() && self.len() == self.capacity()
    }

    /// Change to the large size for a long body, if the limit allows it.
    pub fn enlarge(&mut self) {
        if self.limit >= LARGE_BYTES && self.capacity() < LARGE_BYTES {
            self.resize(LARGE_BYTES);
        }
    }

    /// Make room for more of what can be used only when all of its *bytes* are here: a head, a frame.
    pub fn grow(&mut self, bytes: usize) {
        match self.capacity() {
            capacity if capacity < LARGE_BYTES => self.resize(LARGE_BYTES),
            capacity if capacity < bytes => self.resize(capacity * 2),
            _ => {}
        }
    }

    fn resize(&mut self, size: usize) {
        let mut bytes = take(size);
        bytes[..self.len()].copy_from_slice(self.data());
        self.end = self.len();
        self.start = 0;
        if let Some(old) = self.bytes.replace(bytes) {
            give_back(old);
        }
    }

    /// Give the memory back to the worker if nothing unused is in it.
    pub fn release_if_empty(&mut self) {
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
            if let Some(bytes) = self.bytes.take() {
                give_back(bytes);
            }
        }
    }

    /// Add bytes, as if they had been read.
    #[cfg(test)]
    pub fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.is_full() {
                self.enlarge();
                assert!(!self.is_full(), "a buffer holds at most {LARGE_BYTES} bytes");
            }
            let spare = self.spare();
            let count = spare.len().min(rest.len());
            spare[..count].copy_from_slice(&rest[..count]);
            self.filled(count);
            rest = &rest[count..];
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            give_back(bytes);
        }
    }
}

fn take(size: usize) -> Box<[u8]> {
    let kept = POOL.with(|pool| {
        let mut pool = pool.borrow_mut();
        match size {
            SMALL_BYTES => pool.small.pop(),
            LARGE_BYTES => pool.large.pop(),
            // For a head of hundreds of kilobytes that a configuration allows; rare enough.
            _ => None,
        }
    });
    kept.unwrap_or_else(|| vec![0; size].into_boxed_slice())
}

fn give_back(bytes: Box<[u8]>) {
    // While the thread ends, its pool may be gone already; then the memory is simply freed.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let (kept, most) = match bytes.len() {
            SMALL_BYTES => (&mut pool.small, KEPT_SMALL),
            LARGE_BYTES => (&mut pool.large, KEPT_LARGE),
            _ => return,
        };
        if kept.len() < most {
            kept.push(bytes);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_bytes_survive_compaction_and_growth() {
        let mut buffer = Buffer::new();
        buffer.push(b"abcdef");
        buffer.consume(2);
        assert_eq!(buffer.spare().len(), SMALL_BYTES - 4);
        buffer.enlarge();
        assert_eq!(buffer.data(), b"cdef");
        assert_eq!(buffer.spare().len(), LARGE_BYTES - 4);
    }

    #[test]
    fn a_body_gets_no_more_than_its_limit_and_a_head_what_it_needs() {
        for (limit, expected) in [(0, LARGE_BYTES), (1 << 20, LARGE_BYTES), (64 * 1024, SMALL_BYTES), (1, SMALL_BYTES)]
        {
            let mut buffer = Buffer::limited(limit);
            buffer.push(b"x");
            buffer.enlarge();
            assert_eq!(buffer.capacity(), expected, "{limit}");
            buffer.grow(5 * LARGE_BYTES);
            assert_eq!(
                (buffer.capacity(), buffer.data()),
                (if limit == 0 || limit == 1 << 20 { 2 } else { 1 } * LARGE_BYTES, &b"x"[..])
            );
        }
        let mut buffer = Buffer::limited(1);
        for _ in 0..9 {
            buffer.grow(5 * LARGE_BYTES);
        }
        assert_eq!(buffer.capacity(), 8 * LARGE_BYTES, "it ends where all has room");
    }

    #[test]
    fn an_empty_buffer_gives_its_memory_back() {
        let mut buffer = Buffer::new();
        buffer.push(b"x");
        buffer.release_if_empty();
        assert!(buffer.bytes.is_some());
        buffer.consume(1);
        buffer.release_if_empty();
        assert!(buffer.bytes.is_none());
    }
}
