//! What is loaded into this process: the executable and its libraries, and where the tables are by which their frames are unwound.

use std::ffi::{CStr, c_int, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};

use framehop::{ExplicitModuleSectionInfo, Module, Unwinder as _, UnwinderNative};

/// A way to all return addresses of a stack.
pub type Unwinder = UnwinderNative<&'static [u8], framehop::MayAllocateDuringUnwind>;
pub type Cache = framehop::CacheNative<framehop::MayAllocateDuringUnwind>;

/// `DW_EH_PE_pcrel | DW_EH_PE_sdata4` (LSB 10.5.1), which linkers write.
const RELATIVE_32_BITS: u8 = 0x1b;

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
    segments: Vec<Range<u64>>,
    /// Those of the segments that may not be written, as whole pages; none of what is no file.
    unwritable: Vec<Range<u64>>,
    eh_frame_hdr: Option<Range<u64>>,
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
    let unwritable = headers
        .iter()
        .filter(|header| is_file && header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        .map(|header| whole_pages(range(header)))
        .collect();
    if let (Some(first), Some(last)) = (segments.first(), segments.last()) {
        let (addresses, eh_frame_hdr) = (first.start..last.end, of_kind(libc::PT_GNU_EH_FRAME).next());
        all.push(Loaded { path, base: info.dlpi_addr, addresses, segments, unwritable, eh_frame_hdr });
    }
    0
}

/// Segments do not share pages: what else is on the first and the last of one belongs to its mapping.
fn whole_pages(range: Range<u64>) -> Range<u64> {
    // SAFETY: it takes a number and gives one.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1).unsigned_abs();
    range.start / page * page..range.end.next_multiple_of(page)
}

pub fn unwinder(modules: &[Loaded]) -> Unwinder {
    let mut unwinder = Unwinder::new();
    modules.iter().for_each(|module| unwinder.add_module(module.for_unwinding()));
    unwinder
}

impl Loaded {
    /// As people know it.
    pub fn name(&self) -> String {
        let path = if self.path == Path::new(OWN) { std::env::current_exe().ok() } else { None };
        path.as_ref().unwrap_or(&self.path).display().to_string()
    }

    /// See the field.
    pub fn unwritable(&self) -> impl Iterator<Item = Range<u64>> {
        self.unwritable.iter().cloned()
    }

    fn for_unwinding(&self) -> Module<&'static [u8]> {
        let stated = |range: &Range<u64>| range.start - self.base..range.end - self.base;
        let mut sections = ExplicitModuleSectionInfo::default();
        if let Some(header) = &self.eh_frame_hdr {
            let text = self.read(header);
            sections.eh_frame_hdr_svma = Some(stated(header));
            sections.eh_frame_hdr = text;
            if let Some(frames) = text.and_then(|text| self.eh_frame(header.start, text)) {
                sections.eh_frame_svma = Some(stated(&frames));
                sections.eh_frame = self.read(&frames);
            }
        }
        Module::new(self.name(), self.addresses.clone(), self.base, sections)
    }

    /// `.eh_frame`, to which its header points; it ends within its segment, and says itself where.
    fn eh_frame(&self, header: u64, text: &[u8]) -> Option<Range<u64>> {
        let [1, RELATIVE_32_BITS, _, _, a, b, c, d, ..] = *text else { return None };
        let begin = (header + 4).checked_add_signed(i32::from_ne_bytes([a, b, c, d]).into())?;
        let segment = self.segments.iter().find(|segment| segment.contains(&begin))?;
        Some(begin..segment.end)
    }

    fn read(&self, range: &Range<u64>) -> Option<&'static [u8]> {
        let is_loaded = self.segments.iter().any(|segment| segment.start <= range.start && range.end <= segment.end);
        let length = usize::try_from(range.end - range.start).ok()?;
        // SAFETY: it lies in a segment that is loaded, readable and, being unwind information, never written, for as long as the process lives.
        is_loaded.then(|| unsafe { std::slice::from_raw_parts(range.start as *const u8, length) })
    }
}
