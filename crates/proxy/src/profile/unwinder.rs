//! How frames of what is loaded are unwound: by the tables that compilers write for panics.

use std::ops::Range;

use framehop::{ExplicitModuleSectionInfo, Module, Unwinder as _, UnwinderNative};

use crate::loaded::Loaded;

/// A way to all return addresses of a stack.
pub type Unwinder = UnwinderNative<&'static [u8], framehop::MayAllocateDuringUnwind>;
pub type Cache = framehop::CacheNative<framehop::MayAllocateDuringUnwind>;

/// `DW_EH_PE_pcrel | DW_EH_PE_sdata4` (LSB 10.5.1), which linkers write.
const RELATIVE_32_BITS: u8 = 0x1b;

pub fn unwinder(modules: &[Loaded]) -> Unwinder {
    let mut unwinder = Unwinder::new();
    modules.iter().for_each(|module| unwinder.add_module(module.for_unwinding()));
    unwinder
}

impl Loaded {
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
