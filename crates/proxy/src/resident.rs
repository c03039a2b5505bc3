//! What of the executable stays in memory.
//!
//! Most of the code that a proxy enters reads configuration, and requests never come there. Its pages are those of a file, which the kernel keeps
//! for all proxies of the machine together; a proxy that is done with a change has no more use for its share (decision 0008).

use std::fs;

use crate::profile::modules::{self, Loaded};

/// Let go of all pages of code and constants. What is used again is mapped again, out of the page cache: a fault for each 64 KiB.
pub fn give_back_code() {
    // A debugger's breakpoints are changes to such pages, and would be lost.
    if is_traced() {
        return;
    }
    for range in modules::loaded().iter().flat_map(Loaded::unwritable) {
        let (begin, length) = (range.start as *mut libc::c_void, (range.end - range.start) as usize);
        // SAFETY: whole pages of a file that are mapped private and never written, so that they come again as they were. Nothing is ever unloaded.
        unsafe { libc::madvise(begin, length, libc::MADV_DONTNEED) };
    }
}

/// `TracerPid` of proc_pid_status(5).
fn is_traced() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter_map(|line| line.strip_prefix("TracerPid:")).any(|pid| pid.trim() != "0")
}
