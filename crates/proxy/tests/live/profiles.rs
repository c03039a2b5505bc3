//! Profiles on demand, read as `go tool pprof` reads them.

use std::collections::HashSet;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use flate2::read::GzDecoder;
use weft_protos::Message;

use crate::kit::{Mesh, Upstream};

/// profile.proto, as much as is looked at.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
}

impl Profile {
    fn read(answer: Option<(String, Vec<u8>)>) -> Profile {
        let (head, body) = answer.expect("the admin socket answers");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}{}", String::from_utf8_lossy(&body));
        let mut content = Vec::new();
        GzDecoder::new(body.as_slice()).read_to_end(&mut content).unwrap();
        let profile = Profile::decode(content.as_slice()).unwrap();
        assert_eq!(profile.string_table[0], "");
        let ids: HashSet<u64> = profile.location.iter().map(|location| location.id).collect();
        assert!(profile.sample.iter().flat_map(|sample| &sample.location_id).all(|id| ids.contains(id)));
        profile
    }

    fn types(&self) -> Vec<(&str, &str)> {
        let text = |number: i64| self.string_table[number as usize].as_str();
        self.sample_type.iter().map(|kind| (text(kind.kind), text(kind.unit))).collect()
    }

    /// Whether a stack goes through functions whose names contain all of *parts*.
    fn goes_through(&self, parts: &[&str]) -> bool {
        let names = |sample: &Sample| -> Vec<&str> {
            let locations = sample.location_id.iter().map(|id| &self.location[*id as usize - 1]);
            let lines = locations.flat_map(|location| &location.line);
            lines.map(|line| &*self.string_table[self.function[line.function_id as usize - 1].name as usize]).collect()
        };
        self.sample.iter().any(|sample| {
            let names = names(sample);
            parts.iter().all(|part| names.iter().any(|name| name.contains(part)))
        })
    }
}

/// Set at the end of a test, however it ends.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Do *work* while requests are answered.
fn under_load<T>(mesh: &Mesh, work: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = mesh.client();
            while !is_over.load(Ordering::Relaxed) {
                client.get("/");
            }
        });
        let _stop = Stop(&is_over);
        work()
    })
}

#[test]
fn where_time_is_spent_is_told_from_the_thread_to_the_function() {
    // Thousands of records that nobody looks at.
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| setup.manager.access_log.clear());
    let ask = || mesh.ask_admin("POST", "/cpuprofiler?seconds=3&frequency=500");
    let mut answers = under_load(&mesh, || {
        thread::scope(|scope| {
            let both = [scope.spawn(ask), scope.spawn(ask)];
            // Other questions are answered meanwhile.
            assert_eq!(mesh.admin("GET", "/ready"), "LIVE\n");
            both.map(|one| one.join().unwrap().expect("the admin socket answers"))
        })
    });
    // One at a time is taken.
    answers.sort();
    let [taken, (refused, why)] = answers;
    assert!(refused.starts_with("HTTP/1.1 409 "), "{refused}");
    assert_eq!(why, b"another profile is being taken\n");
    let profile = Profile::read(Some(taken));
    assert_eq!(profile.types(), [("samples", "count"), ("cpu", "nanoseconds")]);
    assert!(profile.duration_nanos >= 3_000_000_000);
    // From the worker's thread through all that a request passes.
    assert!(profile.goes_through(&["weft_proxy::worker::run", "weft_proxy::http"]), "{:?}", profile.string_table);
    // It is over: requests are answered as before, and no signal ends anything.
    assert_eq!(mesh.client().get("/after").text(), "hello");
}

#[test]
fn who_holds_memory_is_told_since_it_was_asked() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    mesh.admin("POST", "/heapprofiler?enable=y&interval=64");
    assert_eq!(mesh.try_admin("POST", "/heapprofiler?enable=y").unwrap().0, 409);
    let mut clients: Vec<_> = (0..8).map(|_| mesh.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/").text(), "hello"));
    let profile = Profile::read(mesh.ask_admin("GET", "/heap_dump"));
    assert_eq!(profile.types(), [("inuse_objects", "count"), ("inuse_space", "bytes")]);
    assert!(
        profile.goes_through(&["weft_proxy::worker::run", "weft_proxy::worker::accept"]),
        "{:?}",
        profile.string_table
    );
    mesh.admin("POST", "/heapprofiler?enable=n");
    assert_eq!(mesh.try_admin("GET", "/heap_dump").unwrap().0, 409);
    assert_eq!(mesh.client().get("/after").text(), "hello");
}
