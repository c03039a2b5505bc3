//! Where time is spent: while a profile is taken, the kernel interrupts whoever runs, so many times for each second that the process uses.
//!
//! In the signal's handler nothing is looked up and nothing is walked: it copies the registers and the stack into a slot and returns. The main thread
//! unwinds the copies, by code ([`framehop`]) that reads nothing but them, so that a wrong table yields a short stack and not a dead proxy.
//!
//! ```text
//! slot:  free --handler--> filling --handler--> full --main thread--> free
//! ```

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{io, ptr};

use framehop::{UnwindRegsNative, Unwinder as _};

use super::pprof::{self, About, Profile};
use super::unwinder::{self, Cache, Unwinder};
use super::{MOST_FRAMES, Stacks};
use crate::loaded::loaded;

/// Slots of stacks that the main thread has not looked at yet.
const SLOTS: usize = 64;
/// How much of a stack is copied; what called the functions in it is not seen.
const STACK_BYTES: usize = 64 << 10;
/// Between two looks at the slots.
const LOOK: Duration = Duration::from_millis(10);

const FREE: u8 = 0;
const FILLING: u8 = 1;
const FULL: u8 = 2;

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("another profile is being taken")]
    Busy,
    #[error("the timer cannot be set: {0}")]
    Timer(io::Error),
}

struct Slot {
    state: AtomicU8,
    content: UnsafeCell<Content>,
}

struct Content {
    registers: Registers,
    /// Bytes of the stack that were copied.
    length: usize,
    stack: [MaybeUninit<u8>; STACK_BYTES],
}

#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    instruction: u64,
    stack: u64,
    frame: u64,
    /// Where the function returns to, on a machine that keeps that in a register.
    #[cfg(target_arch = "aarch64")]
    link: u64,
}

struct Ring {
    slots: Box<[Slot]>,
    /// Samples for which no slot was free.
    lost: AtomicU64,
}

// SAFETY: a slot's content belongs to whoever moved its state: to FILLING the handler, from FULL the main thread.
unsafe impl Sync for Ring {}

/// Null while nobody takes a profile.
static RING: AtomicPtr<Ring> = AtomicPtr::new(ptr::null_mut());
/// Handlers that run and may look at the ring.
static HANDLERS: AtomicUsize = AtomicUsize::new(0);
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Where this thread's stack begins, as far as it is worth looking at; 0: it is not looked at. Without a destructor and known when the thread is
    /// made, so that a signal's handler may read it.
    static STACK_BEGIN: Cell<usize> = const { Cell::new(0) };
}

/// Let the stacks of this thread be seen, up to the caller.
#[inline(always)]
pub fn enter_thread() {
    let here = 0u8;
    STACK_BEGIN.set((&raw const here) as usize);
}

/// Take a profile for *duration*, with *frequency* samples for each second of CPU time. One at a time.
///
/// # Errors
/// [`CpuError`].
pub async fn take(duration: Duration, frequency: u32) -> Result<Profile, CpuError> {
    let session = Session::begin(frequency)?;
    let modules = loaded();
    let unwinder = unwinder::unwinder(&modules);
    let mut cache = Cache::new();
    let mut stacks = Stacks::new();
    let began = Instant::now();
    while began.elapsed() < duration {
        tokio::time::sleep(LOOK.min(duration.saturating_sub(began.elapsed()))).await;
        session.ring.drain(&unwinder, &mut cache, &mut stacks);
    }
    let (duration, lost) = (began.elapsed(), session.end(&unwinder, &mut cache, &mut stacks));
    let period = 1_000_000_000 / i64::from(frequency.max(1));
    let values = stacks.into_iter().map(|(stack, count)| (stack, vec![count, count * period])).collect();
    let about = About {
        values: vec![("samples", "count"), ("cpu", "nanoseconds")],
        period: ("cpu", "nanoseconds", period),
        duration,
        comment: (lost > 0).then(|| format!("{lost} samples were lost")),
        own: &[],
    };
    Ok(pprof::profile(&about, &modules, &values))
}

/// A profile that is being taken; dropped, it ends.
struct Session {
    ring: &'static Ring,
}

impl Session {
    fn begin(frequency: u32) -> Result<Session, CpuError> {
        if IS_TAKEN.swap(true, Ordering::SeqCst) {
            return Err(CpuError::Busy);
        }
        let ring = Box::into_raw(Box::new(Ring { slots: slots(), lost: AtomicU64::new(0) }));
        RING.store(ring, Ordering::SeqCst);
        // SAFETY: it was just made, and is given back by `drop` alone.
        let session = Session { ring: unsafe { &*ring } };
        install().and_then(|()| set_timer(frequency)).map_err(CpuError::Timer)?;
        Ok(session)
    }

    /// Look at the slots a last time; how many samples were lost.
    fn end(self, unwinder: &Unwinder, cache: &mut Cache, stacks: &mut Stacks<i64>) -> u64 {
        let _ = set_timer(0);
        self.ring.drain(unwinder, cache, stacks);
        self.ring.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It cannot fail: the numbers are good.
        let _ = set_timer(0);
        let ring = RING.swap(ptr::null_mut(), Ordering::SeqCst);
        // Who came before the swap may still write; who comes after it finds nothing.
        while HANDLERS.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        // SAFETY: it is from `Box::into_raw` in `begin`, nobody else has it any more, and `self.ring` is not used again.
        drop(unsafe { Box::from_raw(ring) });
        IS_TAKEN.store(false, Ordering::SeqCst);
    }
}

fn slots() -> Box<[Slot]> {
    let slots = Box::<[Slot]>::new_uninit_slice(SLOTS);
    // Pages of stacks that are never copied are never touched.
    let mut slots = slots;
    for slot in &mut slots {
        let slot = slot.as_mut_ptr();
        // SAFETY: within a slot of our own; what is left as it is may be anything (`MaybeUninit`).
        unsafe {
            (&raw mut (*slot).state).write(AtomicU8::new(FREE));
            let content = (&raw mut (*slot).content).cast::<Content>();
            (&raw mut (*content).registers).write(Registers::default());
            (&raw mut (*content).length).write(0);
        }
    }
    // SAFETY: every field of every slot was written, or may be anything.
    unsafe { slots.assume_init() }
}

/// The handler stays for ever: a signal may still be on its way when the profile is done.
fn install() -> io::Result<()> {
    // SAFETY: zeroes are a good sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    // Most calls that are interrupted go on by themselves; Tokio repeats those that do not.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler is one for SA_SIGINFO, and does only what is allowed in one (see there).
    let result = unsafe { libc::sigaction(libc::SIGPROF, &action, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One timer for the process, by the time that it uses: the kernel interrupts the thread that runs. 0 ends it.
fn set_timer(frequency: u32) -> io::Result<()> {
    let micros = 1_000_000u32.checked_div(frequency).unwrap_or(0);
    let interval = libc::timeval { tv_sec: (micros / 1_000_000).into(), tv_usec: (micros % 1_000_000).into() };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: the value is good, and nobody wants the old one.
    let result = unsafe { libc::setitimer(libc::ITIMER_PROF, &timer, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Copy where this thread is. It may have been interrupted anywhere, with any lock held: nothing here waits, allocates, or calls anybody who might.
extern "C" fn handle(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    HANDLERS.fetch_add(1, Ordering::SeqCst);
    let ring = RING.load(Ordering::SeqCst);
    if !ring.is_null() {
        // SAFETY: it is not freed while `HANDLERS` counts us; *context* is what the kernel passes to such handlers.
        unsafe { (*ring).take(registers(context.cast())) };
    }
    HANDLERS.fetch_sub(1, Ordering::SeqCst);
}

/// # Safety
/// *context* is that of a signal's handler.
#[cfg(target_arch = "x86_64")]
unsafe fn registers(context: *const libc::ucontext_t) -> Registers {
    // SAFETY: the caller's promise.
    let saved = unsafe { &(*context).uc_mcontext.gregs };
    let of = |register: c_int| saved[register as usize] as u64;
    Registers { instruction: of(libc::REG_RIP), stack: of(libc::REG_RSP), frame: of(libc::REG_RBP) }
}

/// # Safety
/// *context* is that of a signal's handler.
#[cfg(target_arch = "aarch64")]
unsafe fn registers(context: *const libc::ucontext_t) -> Registers {
    // SAFETY: the caller's promise.
    let saved = unsafe { &(*context).uc_mcontext };
    Registers { instruction: saved.pc, stack: saved.sp, frame: saved.regs[29], link: saved.regs[30] }
}

impl Registers {
    #[cfg(target_arch = "x86_64")]
    fn native(self) -> UnwindRegsNative {
        UnwindRegsNative::new(self.instruction, self.stack, self.frame)
    }

    #[cfg(target_arch = "aarch64")]
    fn native(self) -> UnwindRegsNative {
        UnwindRegsNative::new(self.link, self.stack, self.frame)
    }
}

impl Ring {
    /// In a signal's handler.
    fn take(&self, registers: Registers) {
        let taken = self.slots.iter().find(|slot| {
            slot.state.load(Ordering::Relaxed) == FREE
                && slot.state.compare_exchange(FREE, FILLING, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        let Some(slot) = taken else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let content = slot.content.get();
        // A thread that nobody let in has its begin at 0, and nothing is copied.
        let length = STACK_BYTES.min(STACK_BEGIN.get().saturating_sub(registers.stack as usize));
        // SAFETY: the slot is ours from FILLING to FULL. From its pointer to where it began a stack is mapped and does not move, and its owner
        // is the very thread that is interrupted here.
        unsafe {
            (*content).registers = registers;
            (*content).length = length;
            let from = registers.stack as *const MaybeUninit<u8>;
            ptr::copy_nonoverlapping(from, (&raw mut (*content).stack).cast(), length);
        }
        slot.state.store(FULL, Ordering::Release);
    }

    /// Count what is in the slots, and free them.
    fn drain(&self, unwinder: &Unwinder, cache: &mut Cache, stacks: &mut Stacks<i64>) {
        for slot in self.slots.iter().filter(|slot| slot.state.load(Ordering::Acquire) == FULL) {
            // SAFETY: a full slot is the main thread's until it is free again.
            let content = unsafe { &*slot.content.get() };
            *stacks.entry(unwind(unwinder, cache, content)).or_default() += 1;
            slot.state.store(FREE, Ordering::Release);
        }
    }
}

/// The addresses of a stack, as far as it can be told.
fn unwind(unwinder: &Unwinder, cache: &mut Cache, content: &Content) -> Vec<u64> {
    let Content { registers, length, stack } = content;
    let mut read = |address: u64| {
        let offset = usize::try_from(address.checked_sub(registers.stack).ok_or(())?).map_err(drop)?;
        let end = offset.checked_add(8).filter(|end| end <= length).ok_or(())?;
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(&stack[offset..end]) {
            // SAFETY: the first *length* bytes were written by the handler.
            *to = unsafe { from.assume_init() };
        }
        Ok(u64::from_ne_bytes(word))
    };
    let mut frames = unwinder.iter_frames(registers.instruction, registers.native(), cache, &mut read);
    let mut addresses = Vec::new();
    while let Ok(Some(frame)) = frames.next() {
        addresses.push(frame.address_for_lookup());
        if addresses.len() == MOST_FRAMES {
            break;
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn spends_time(until: Instant) -> u64 {
        let mut sum = 0u64;
        while Instant::now() < until {
            sum = (0..10_000).fold(sum, |sum, number| std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number)));
        }
        sum
    }

    #[tokio::test]
    async fn whoever_spends_time_is_seen_with_those_who_called() {
        let until = Instant::now() + Duration::from_secs(5);
        let worker = std::thread::spawn(move || {
            enter_thread();
            spends_time(until)
        });
        let profile = take(Duration::from_millis(1500), 200).await.unwrap();
        let of_worker: Vec<_> = profile
            .sample
            .iter()
            .filter(|sample| profile.names(sample).iter().any(|name| name.ends_with("spends_time")))
            .collect();
        let seen: i64 = of_worker.iter().map(|sample| sample.value[0]).sum();
        assert!(seen > 10, "{seen} of {} stacks", profile.sample.len());
        // Not only the function itself: its caller is this test's closure.
        assert!(of_worker.iter().any(|sample| profile.names(sample).len() > 1));
        assert_eq!(profile.period, 5_000_000);
        // One after the other is fine; two at once are not.
        let both = tokio::join!(take(Duration::from_millis(50), 99), take(Duration::from_millis(50), 99));
        assert!(matches!(both, (Ok(_), Err(CpuError::Busy))));
        worker.join().unwrap();
    }
}
