//! `/memory`: what is allocated, by the allocator's own tables, and what the system gave.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;

use libmimalloc_sys::{mi_heap_area_t, mi_heap_t, mi_heap_visit_blocks, mi_process_info};
use serde_json::{Value, json};

use super::answer::Answer;

/// What is known of blocks of one size.
#[derive(Default)]
struct Class {
    blocks: usize,
    /// Bytes of the areas that hold them, used or not.
    committed: usize,
}

/// By the size of their blocks, in bytes.
type Classes = BTreeMap<usize, Class>;

/// Envoy's names where it has them, whose numbers are strings (protobuf's JSON of 64 bits).
pub fn respond() -> Answer {
    let (classes, heap) = (classes(), committed_bytes());
    let allocated: usize = classes.iter().map(|(size, class)| size * class.blocks).sum();
    let in_areas: usize = classes.values().map(|class| class.committed).sum();
    let rows = classes.iter().map(|(size, class)| {
        json!({"size": size, "blocks": class.blocks, "allocated": size * class.blocks, "committed": class.committed})
    });
    let rows: Vec<Value> = rows.collect();
    Answer::json(&json!({
        "allocated": allocated.to_string(),
        "heap_size": heap.to_string(),
        "pageheap_free": heap.saturating_sub(in_areas).to_string(),
        "total_thread_cache": in_areas.saturating_sub(allocated).to_string(),
        "total_physical_bytes": resident_bytes().unwrap_or(0).to_string(),
        "size_classes": rows,
    }))
}

/// What mimalloc has of the system's memory, touched or not.
fn committed_bytes() -> usize {
    let mut committed = 0;
    let nothing = ptr::null_mut;
    // SAFETY: a null pointer means that nobody wants to know, and the other is good for this call.
    unsafe {
        mi_process_info(nothing(), nothing(), nothing(), nothing(), nothing(), &mut committed, nothing(), nothing());
    }
    committed
}

/// The blocks of the whole process. While other threads allocate it is not quite of one moment, and off by what changes meanwhile.
fn classes() -> Classes {
    let mut classes = Classes::new();
    // SAFETY: null means the main heap, from which all threads allocate. Only areas are visited, not blocks: that reads tables in mimalloc's arenas,
    // which are never unmapped, and counts in them, each a word. What another thread changes meanwhile makes a number wrong (`visit` sorts out
    // what cannot be), and nothing else.
    unsafe { mi_heap_visit_blocks(ptr::null_mut(), false, Some(visit), (&raw mut classes).cast()) };
    classes
}

unsafe extern "C" fn visit(
    _heap: *const mi_heap_t,
    area: *const mi_heap_area_t,
    _block: *mut c_void,
    _size: usize,
    classes: *mut c_void,
) -> bool {
    // SAFETY: good for this call, as mimalloc promises and as `classes` passes it.
    let (area, classes) = unsafe { (&*area, &mut *classes.cast::<Classes>()) };
    // `used` is a number of blocks, whatever the header says (mimalloc's issue 553).
    let is_possible = area.full_block_size > 0 && area.used <= area.reserved / area.full_block_size;
    if is_possible {
        let class = classes.entry(area.full_block_size).or_default();
        class.blocks += area.used;
        class.committed += area.committed;
    }
    true
}

/// Memory that this process occupies.
pub fn resident_bytes() -> Option<u64> {
    // Fields of /proc/self/statm are in pages: total, resident, ... (proc(5)).
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: no pointers are involved.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_occupies_memory() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }

    #[test]
    #[cfg_attr(any(miri, weft_system_allocator), ignore = "of mimalloc")]
    fn what_is_allocated_by_any_thread_is_counted_in_its_size() {
        let count = || classes().range(3 << 20..5 << 20).map(|(_, class)| class.blocks).sum::<usize>();
        let before = count();
        let blocks: Vec<Vec<u8>> = std::thread::spawn(|| (0..8).map(|_| vec![1; 4 << 20]).collect()).join().unwrap();
        assert!(count() >= before + blocks.len());
        assert!(committed_bytes() > 32 << 20);
    }
}
