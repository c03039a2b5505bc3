//! Profiles on demand, in pprof's format: where time is spent ([`cpu`]), and who holds memory ([`heap`]). While nobody asks, neither costs more than a
//! load and a branch for each allocation (decision 0014).

use std::collections::HashMap;

pub mod cpu;
mod elf;
pub mod heap;
mod pprof;
mod symbols;
mod unwinder;

/// Frames of a stack that are kept, beginning with the innermost.
const MOST_FRAMES: usize = 128;

/// How often each stack was seen, and what that stands for; addresses begin with the innermost.
type Stacks<V> = HashMap<Vec<u64>, V>;
