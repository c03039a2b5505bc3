//! A proxy with its control plane, its clients and its upstreams. Everything blocks, and nothing blocks longer than [`LIMIT`].

pub mod cases;
pub mod certificates;
pub mod frames;
pub mod mesh;
pub mod names;
pub mod peer;
pub mod pressure;
pub mod resources;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use mesh::Mesh;
pub use peer::{Peer, Upstream};
pub use resources::Setup;

/// Whatever takes longer than this will not come.
pub const LIMIT: Duration = Duration::from_secs(20);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory that is gone with the test.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        let name = format!("weft-live-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Directory(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An address that is free and stays so: the port is the kernel's, and the loopback address belongs to this process and call
/// alone, so no connection that begins elsewhere can take the port meanwhile.
pub fn free_address() -> SocketAddr {
    let process = std::process::id();
    let [_, _, high, low] = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let [_, _, _, of_process] = process.to_be_bytes();
    let ip = Ipv4Addr::new(127, 1 + (of_process ^ high) % 250, (process >> 8) as u8, low.max(1));
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// Wait until *condition* gives something. What happens in another process has no better signal here.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that differ from place to place, so that a lost, doubled or moved piece shows.
pub fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
