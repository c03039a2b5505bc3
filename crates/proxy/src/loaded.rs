//! What is loaded into this process: the executable and its libraries, and where their segments lie.

use std::ffi::{CStr, c_int, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What this process was started from, even if another file has that name by now.
const OWN: &str = "/proc/self/exe";

/// Something that was loaded. Nothing is ever unloaded here, so what it refers to stays.
#[derive(Debug)]
pub struct Loaded {
    pub path: PathBuf,
    /// Added to the addresses in the file.
    pub base: u64,
    /// From the beginning of the first to the end of the last segment.
    pub addresses: Range<u64>,
    pub segments: Vec<Range<u64>>,
    /// Those of the segments that may not be written, as whole pages; none of what is no file.
    pub read_only_segments: Vec<Range<u64>>,
    pub eh_frame_hdr: Option<Range<u64>>,
}

/// Everything that is loaded.
pub fn loaded() -> Vec<Loaded> {
    let mut all: Vec<Loaded> = Vec::new();
    // SAFETY: `visit` is given what is passed here, which outlives the call, and nothing else refers to it meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut all).cast()) };
    all
}

/// One call for each module.
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, all: *mut c_void) -> c_int {
    // SAFETY: as `dl_iterate_phdr` promises, *info* is good for this call and its headers are an array of this length; *all* is as `loaded` passed it.
    let (info, all) = unsafe { (&*info, &mut *all.cast::<Vec<Loaded>>()) };
    // SAFETY: as above.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let range = |header: &libc::Elf64_Phdr| {
        let begin = info.dlpi_addr + header.p_vaddr;
        begin..begin + header.p_memsz
    };
    let of_kind = |kind| headers.iter().filter(move |header| header.p_type == kind).map(range);
    let segments: Vec<Range<u64>> = of_kind(libc::PT_LOAD).collect();
    let name = if info.dlpi_name.is_null() {
        c""
    } else {
        // SAFETY: a name is a C string.
        unsafe { CStr::from_ptr(info.dlpi_name) }
    };
    let path = match name.to_str().unwrap_or_default() {
        "" => OWN.into(),
        name => PathBuf::from(name),
    };
    // The kernel's own object has a name without a directory.
    let is_file = path.is_absolute();
    let read_only_segments = headers
        .iter()
        .filter(|header| is_file && header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        .map(|header| whole_pages(range(header)))
        .collect();
    if let (Some(first), Some(last)) = (segments.first(), segments.last()) {
        let (addresses, eh_frame_hdr) = (first.start..last.end, of_kind(libc::PT_GNU_EH_FRAME).next());
        all.push(Loaded { path, base: info.dlpi_addr, addresses, segments, read_only_segments, eh_frame_hdr });
    }
    0
}

/// Segments do not share pages: what else is on the first and the last of one belongs to its mapping.
fn whole_pages(range: Range<u64>) -> Range<u64> {
    // SAFETY: it takes a number and gives one.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1).unsigned_abs();
    range.start / page * page..range.end.next_multiple_of(page)
}

impl Loaded {
    /// As people know it.
    pub fn name(&self) -> String {
        let path = if self.path == Path::new(OWN) { std::env::current_exe().ok() } else { None };
        path.as_ref().unwrap_or(&self.path).display().to_string()
    }
}
