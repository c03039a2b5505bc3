//! What of the executable stays in memory.
//!
//! Most of the code that a proxy enters reads configuration, and requests never come there. Its pages are those of a file, which the kernel keeps
//! for all proxies of the machine together; a proxy that is done with a change has no more use for its share (decision 0008).

use std::fs;

use crate::loaded::loaded;

/// Let go of all pages of code and constants. What is used again is mapped again, out of the page cache: a fault for each 64 KiB.
pub fn give_back_code() {
    // A debugger's breakpoints are changes to such pages, and would be lost.
    if is_traced() {
        return;
    }
    for range in loaded().into_iter().flat_map(|loaded| loaded.read_only_segments) {
        let (begin, length) = (range.start as *mut libc::c_void, (range.end - range.start) as usize);
        // SAFETY: 1. whole pages of a file, mapped private, which this process never writes: they come again as they were, but for the breakpoints
        // of uprobes. Those the kernel wrote into its own copy of a page; where that is lost the code runs as if they had not been set.
        // 2. Nothing is ever unloaded.
        unsafe { libc::madvise(begin, length, libc::MADV_DONTNEED) };
    }
}

/// `TracerPid` of proc_pid_status(5).
fn is_traced() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter_map(|line| line.strip_prefix("TracerPid:")).any(|pid| pid.trim() != "0")
}
