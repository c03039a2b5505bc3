//! Who holds memory: the process's allocator, which samples allocations while it is told to.
//!
//! One allocation is taken for every so many bytes on average, each byte with the same chance, with the stack that asked for it, and is kept until it
//! is freed. While it is off, which it is until somebody asks, an allocation costs one relaxed load and a branch more, and so does its end.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[cfg(not(any(miri, weft_system_allocator)))]
use mimalloc::MiMalloc as Beneath;
// Miri knows no C, and sanitizers watch the system's allocator.
#[cfg(any(miri, weft_system_allocator))]
use std::alloc::System as Beneath;

use super::pprof::{self, About, Profile};
use super::{MOST_FRAMES, Stacks};
use crate::loaded::loaded;

/// Bytes between two samples, on average; tcmalloc's and Go's value.
pub const DEFAULT_INTERVAL: u64 = 512 << 10;
/// Bits of the filter that says of most blocks that they were not taken.
const FILTER_BITS: usize = 1 << 16;

/// mimalloc, and a look at what goes through it.
pub struct Allocator;

static IS_ON: AtomicBool = AtomicBool::new(false);
/// Bytes between two samples.
static INTERVAL: AtomicU64 = AtomicU64::new(DEFAULT_INTERVAL);
/// A bit for each block that was taken, by its address: so that a block that was not is freed without a lock. Not touched while it is off.
static FILTER: [AtomicU64; FILTER_BITS / 64] = [const { AtomicU64::new(0) }; FILTER_BITS / 64];
static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

thread_local! {
    /// Bytes until the next sample of this thread.
    static LEFT: Cell<i64> = const { Cell::new(0) };
    /// State of this thread's random numbers; 0: there was none yet.
    static SEED: Cell<u64> = const { Cell::new(0) };
    /// This thread is at work here: what it allocates meanwhile is our own.
    static IS_BUSY: Cell<bool> = const { Cell::new(false) };
}

/// What was taken and lives, by address.
struct Taken {
    since: Instant,
    blocks: HashMap<usize, Block>,
}

struct Block {
    bytes: usize,
    /// The innermost first.
    stack: Vec<u64>,
}

// SAFETY: every call is that of the allocator beneath; what is beside it never touches a block.
unsafe impl GlobalAlloc for Allocator {
    // The question comes first, so that the call that follows is the last thing done: a jump.
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_ON.load(Ordering::Relaxed) {
            // SAFETY: the caller's promise.
            return note(unsafe { Beneath.alloc(layout) }, layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { Beneath.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if IS_ON.load(Ordering::Relaxed) {
            // SAFETY: the caller's promise.
            return note(unsafe { Beneath.alloc_zeroed(layout) }, layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { Beneath.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // Before it is freed: afterwards another thread may be given it, and have it noted.
        if IS_ON.load(Ordering::Relaxed) {
            forget(block);
        }
        // SAFETY: the caller's promise.
        unsafe { Beneath.dealloc(block, layout) };
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if IS_ON.load(Ordering::Relaxed) {
            forget(block);
            // SAFETY: the caller's promise.
            return note(unsafe { Beneath.realloc(block, layout, size) }, size);
        }
        // SAFETY: the caller's promise.
        unsafe { Beneath.realloc(block, layout, size) }
    }
}

/// A block was allocated; returns it.
#[cold]
#[inline(never)]
fn note(block: *mut u8, bytes: usize) -> *mut u8 {
    if !block.is_null() && !IS_BUSY.get() && is_due(bytes) {
        let _busy = Busy::begin();
        let stack = backtrace();
        if let Some(taken) = &mut *lock() {
            let (word, bit) = place(block);
            FILTER[word].fetch_or(bit, Ordering::Relaxed);
            taken.blocks.insert(block as usize, Block { bytes, stack });
        }
    }
    block
}

/// Whether this thread is to take a sample with these bytes.
fn is_due(bytes: usize) -> bool {
    if SEED.get() == 0 {
        // The address of a thread's own cell is nobody else's.
        SEED.set(SEED.with(|seed| std::ptr::from_ref(seed) as u64) | 1);
        LEFT.set(gap());
    }
    let left = LEFT.get() - bytes as i64;
    let is_due = left <= 0;
    LEFT.set(if is_due { gap() } else { left });
    is_due
}

/// A block is about to be freed.
#[cold]
#[inline(never)]
fn forget(block: *mut u8) {
    let (word, bit) = place(block);
    // The bit was set before whoever frees the block could know its address.
    if FILTER[word].load(Ordering::Relaxed) & bit == 0 || IS_BUSY.get() {
        return;
    }
    let _busy = Busy::begin();
    if let Some(taken) = &mut *lock() {
        taken.blocks.remove(&(block as usize));
    }
}

fn place(block: *mut u8) -> (usize, u64) {
    // Fibonacci hashing: the lowest bits of an address say little.
    let hash = (block as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    ((hash / 64) as usize, 1 << (hash % 64))
}

/// Bytes until the next sample: exponentially distributed, so that each byte has the same chance.
fn gap() -> i64 {
    // SplitMix64.
    let mut random = SEED.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    SEED.set(random);
    random = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    random = (random ^ (random >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let share = ((random ^ (random >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
    let interval = INTERVAL.load(Ordering::Relaxed) as f64;
    (-logarithm(1.0 - share) * interval) as i64 + 1
}

/// The natural logarithm of a number above 0 and up to 1, to six digits. Rust's own is in the C library's libm, of which nothing else is needed: 0.3 MiB
/// resident in every proxy.
fn logarithm(number: f64) -> f64 {
    let bits = number.to_bits();
    let exponent = (bits >> 52) as i64 - 1023;
    // Between 1 and 2.
    let mantissa = f64::from_bits(bits & !(0x7ff << 52) | 1023 << 52);
    // The series of the inverse hyperbolic tangent, of at most a third.
    let tangent = (mantissa - 1.0) / (mantissa + 1.0);
    let square = tangent * tangent;
    let series = [11.0, 9.0, 7.0, 5.0, 3.0, 1.0].iter().fold(0.0, |sum, divisor| sum * square + 1.0 / divisor);
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * tangent * series
}

/// 1 - e^-number, for what is above 0, to four digits; without libm, too.
fn chance(number: f64) -> f64 {
    if number < 1e-3 { number * (1.0 - number / 2.0) } else { 1.0 - (1.0 + number / 65536.0).powi(-65536) }
}

/// What this thread allocates is not looked at while this lives.
struct Busy;

impl Busy {
    fn begin() -> Busy {
        IS_BUSY.set(true);
        Busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        IS_BUSY.set(false);
    }
}

/// Nothing that holds it can panic in the middle of a change.
fn lock() -> MutexGuard<'static, Option<Taken>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `_Unwind_Backtrace` (LSB, libgcc_s), which Rust's own panics need: it is there in any case.
#[repr(C)]
struct UnwindContext {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut UnwindContext, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut UnwindContext) -> usize;
}

const URC_NO_REASON: c_int = 0;
const URC_END_OF_STACK: c_int = 5;

extern "C" fn visit(context: *mut UnwindContext, addresses: *mut c_void) -> c_int {
    // SAFETY: as `backtrace` passes it, for this call.
    let addresses = unsafe { &mut *addresses.cast::<Vec<u64>>() };
    // SAFETY: the unwinder's own context.
    let address = unsafe { _Unwind_GetIP(context) } as u64;
    if addresses.len() == MOST_FRAMES || address == 0 {
        return URC_END_OF_STACK;
    }
    // Of a call: the instruction before the one to which it returns.
    addresses.push(address - 1);
    URC_NO_REASON
}

/// The stack of this thread, the innermost first.
fn backtrace() -> Vec<u64> {
    let mut addresses: Vec<u64> = Vec::with_capacity(MOST_FRAMES);
    // SAFETY: called from Rust, whose frames have tables; `visit` does not unwind and gets what it expects.
    unsafe { _Unwind_Backtrace(visit, (&raw mut addresses).cast()) };
    addresses.shrink_to_fit();
    addresses
}

/// Why a profile is not begun or shown.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeapError {
    #[error("the heap profiler is on already")]
    On,
    #[error("the heap profiler is off")]
    Off,
}

/// Look at what is allocated from now on, at one block for each *interval* bytes.
///
/// # Errors
/// [`HeapError::On`].
pub fn begin(interval: u64) -> Result<(), HeapError> {
    let _busy = Busy::begin();
    let mut taken = lock();
    if taken.is_some() {
        return Err(HeapError::On);
    }
    *taken = Some(Taken { since: Instant::now(), blocks: HashMap::new() });
    INTERVAL.store(interval.max(1), Ordering::Relaxed);
    IS_ON.store(true, Ordering::Relaxed);
    Ok(())
}

/// Look no more, and forget what was seen.
///
/// # Errors
/// [`HeapError::Off`].
pub fn end() -> Result<(), HeapError> {
    let _busy = Busy::begin();
    IS_ON.store(false, Ordering::Relaxed);
    let taken = lock().take().ok_or(HeapError::Off)?;
    // Bits of others that are being set meanwhile are of blocks that will not be found, which is all the same.
    FILTER.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    drop(taken);
    Ok(())
}

/// What was allocated since it is on, and is still there: how many blocks and bytes the samples stand for.
///
/// # Errors
/// [`HeapError::Off`].
pub fn dump() -> Result<Profile, HeapError> {
    let interval = INTERVAL.load(Ordering::Relaxed);
    let (stacks, duration) = {
        let _busy = Busy::begin();
        let taken = lock();
        let taken = taken.as_ref().ok_or(HeapError::Off)?;
        let mut sums: Stacks<(f64, f64)> = Stacks::new();
        for Block { bytes, stack } in taken.blocks.values() {
            // A block of so many bytes is taken with this chance, and stands for all of its size that were not.
            let chance = chance(*bytes as f64 / interval as f64);
            let (blocks, sum) = sums.entry(stack.clone()).or_default();
            *blocks += 1.0 / chance;
            *sum += *bytes as f64 / chance;
        }
        let whole = |(stack, (blocks, bytes)): (Vec<u64>, (f64, f64))| (stack, vec![blocks as i64, bytes as i64]);
        (sums.into_iter().map(whole).collect(), taken.since.elapsed())
    };
    let about = About {
        values: vec![("inuse_objects", "count"), ("inuse_space", "bytes")],
        period: ("space", "bytes", interval as i64),
        duration,
        comment: None,
        own: &["profile::heap::backtrace", "profile::heap::note", "profile::heap::Allocator", "__rust_"],
    };
    Ok(pprof::profile(&about, &loaded(), &stacks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_calculated_without_libm_is_right() {
        for number in [1e-12, 1e-6, 0.001, 0.3, 0.5, 0.75, 0.999, 1.0] {
            assert!((logarithm(number) - number.ln()).abs() < 1e-6, "{number}");
        }
        for number in [1e-9, 1e-4, 0.00099, 0.002, 0.1, 1.0, 5.0, 40.0, 1e6_f64] {
            let expected = -(-number).exp_m1();
            assert!((chance(number) / expected - 1.0).abs() < 1e-4, "{number}");
        }
    }

    #[inline(never)]
    fn holds_memory(blocks: usize) -> Vec<Vec<u8>> {
        (0..blocks).map(|_| std::hint::black_box(vec![1; 4096])).collect()
    }

    fn held(profile: &Profile) -> Vec<i64> {
        let of_test = profile
            .sample
            .iter()
            .filter(|sample| profile.names(sample).iter().any(|name| name.contains("holds_memory")));
        of_test.fold(vec![0, 0], |sum, sample| vec![sum[0] + sample.value[0], sum[1] + sample.value[1]])
    }

    #[test]
    fn what_is_held_is_seen_until_it_is_freed() {
        let before = holds_memory(4);
        assert_eq!(dump().unwrap_err(), HeapError::Off);
        begin(16 << 10).unwrap();
        assert_eq!(begin(1).unwrap_err(), HeapError::On);
        let kept = holds_memory(4096);
        drop(holds_memory(4096));
        drop(before);
        let found = held(&dump().unwrap());
        // 16 MiB by a thousand samples: a standard error of 3 %.
        assert!((13 << 20..19 << 20).contains(&found[1]), "{found:?}");
        assert!((3400..4800).contains(&found[0]), "{found:?}");
        // What takes the samples is not in them.
        let profile = dump().unwrap();
        let inner = |sample| profile.names(sample).first().copied().unwrap_or_default().to_owned();
        let of_ours: Vec<String> = profile.sample.iter().map(inner).filter(|name| name.contains("::note")).collect();
        assert!(of_ours.is_empty(), "{of_ours:?}");
        drop(kept);
        let found = held(&dump().unwrap());
        assert!(found[1] < 1 << 20, "{found:?}");
        end().unwrap();
        assert_eq!(end().unwrap_err(), HeapError::Off);
    }
}
