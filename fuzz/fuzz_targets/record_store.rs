//! Segments of access records under foreign bytes, as a crash or a disk leaves them: the store opens, knows the records before the damage and none of
//! what is after it, cuts that off, and goes on from there. What it wrote itself it reads again, wherever it is cut.
//!
//! An even first byte: two segments as they lie on a disk, in a store whose limit the second byte says; the third says where the second
//! segment begins. An odd one: records that are put, the second byte says where their segment is cut, and the third what stands after that.

#![no_main]

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use weft_protos::envoy::data::accesslog::v3::{HttpAccessLogEntry, HttpRequestProperties};

/// As in the crate of xDS, without what connects.
#[path = "../../crates/xds/src/access_log"]
mod access_log {
    pub const CONNECTIONS: &str = "connections";

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Kind {
        Http,
        Tcp,
    }

    #[allow(dead_code)]
    pub mod store;
}

use access_log::Kind;
use access_log::store::{Found, Source, Store};

/// A segment of a store of this size holds all that any input writes.
const NO_LIMIT: u64 = 1 << 30;
const LENGTH_BYTES: usize = 4;

/// What a segment has after each length, said once more.
#[derive(Clone, PartialEq, Message)]
struct Frame {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(string, tag = "2")]
    log: String,
    #[prost(bool, tag = "3")]
    tcp: bool,
    #[prost(uint64, tag = "4")]
    received_us: u64,
    #[prost(bytes = "vec", tag = "5")]
    entry: Vec<u8>,
}

/// A directory of this process, which is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        let path = std::env::temp_dir().join(format!("weft-fuzz-records-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("there is a place for files");
        Directory(path)
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:010}.records"))
    }

    fn open(&self, limit_bytes: u64) -> Store {
        Store::open(&self.0, limit_bytes).expect("whatever the files hold")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fuzz_target!(|input: &[u8]| {
    let [kind, first, second, bytes @ ..] = input else { return };
    if kind % 2 == 0 {
        let middle = bytes.len().min(usize::from(*second) * 4);
        left_on_disk([&bytes[..middle], &bytes[middle..]], u64::from(*first) * 8);
    } else {
        written_and_cut(bytes, usize::from(*first), *second);
    }
});

/// Two segments that may be anything.
fn left_on_disk(segments: [&[u8]; 2], limit_bytes: u64) {
    let directory = Directory::new();
    for (number, content) in (1..).zip(segments) {
        fs::write(directory.segment(number), content).expect("there is room");
    }
    let mut whole = segments.map(read).to_vec();
    let is_forgotten = whole.iter().map(|(_, bytes)| bytes).sum::<usize>() as u64 > limit_bytes;
    if is_forgotten {
        whole[0] = (Vec::new(), 0);
    }
    let bytes: usize = whole.iter().map(|(_, bytes)| bytes).sum();
    let mut known: Vec<Found> = whole.iter().flat_map(|(records, _)| records.clone()).collect();
    // The second time there is no damage any more.
    for _ in 0..2 {
        let store = directory.open(limit_bytes);
        assert_holds(&store, &known);
        assert_eq!(store.status().bytes, bytes as u64);
        assert_eq!(directory.segment(1).exists(), !is_forgotten);
        for (number, (content, (_, end))) in (1..).zip(segments.iter().zip(&whole)) {
            assert!((is_forgotten && number == 1) || content_of(&directory.segment(number)) == content[..*end]);
        }
    }
    let store = directory.open(limit_bytes);
    let new = put(&store, "requests", (Kind::Http, with_id("new")));
    known.push(new);
    let left = recent(&store, &known);
    assert!(known.ends_with(&left), "the newest are kept");
    assert!(!left.is_empty());
    assert!(store.status().bytes <= limit_bytes || fs::read_dir(&directory.0).expect("it is there").count() == 1);
}

/// Records that are put, and their segment when something has happened to it.
fn written_and_cut(bytes: &[u8], cut: usize, after: u8) {
    let directory = Directory::new();
    let store = directory.open(NO_LIMIT);
    let segment = directory.segment(1);
    let (mut known, mut ends) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    while let [length, more @ ..] = rest {
        let (entry, more) = more.split_at(more.len().min(usize::from(length / 2)));
        let kind = if length % 2 == 0 { Kind::Http } else { Kind::Tcp };
        known.push(put(&store, "requests", (kind, Bytes::copy_from_slice(entry))));
        ends.push(fs::metadata(&segment).expect("it is there").len() as usize);
        rest = more;
    }
    drop(store);
    assert_holds(&directory.open(NO_LIMIT), &known);
    let Some(length) = ends.last() else { return };
    let cut = length * cut / 255;
    let mut content = content_of(&segment);
    content.truncate(cut);
    let before: Vec<Found> =
        known.iter().zip(&ends).filter(|(_, end)| **end <= cut).map(|(it, _)| it.clone()).collect();
    let is_between_records = cut == 0 || ends.contains(&cut);
    match after % 3 {
        0 => {}
        1 => content.resize(cut + 64, 0),
        _ => content.extend_from_slice(bytes),
    }
    fs::write(&segment, &content).expect("there is room");
    let store = directory.open(NO_LIMIT);
    match after % 3 {
        // Zeros may make up the end of a record, and are no others.
        1 if !is_between_records => {
            let found = recent(&store, &known);
            assert!(found.starts_with(&before) && found.len() <= before.len() + 1);
        }
        2 => {
            let (read, _) = read(&content);
            assert!(read.starts_with(&before));
            assert_holds(&store, &read);
        }
        _ => assert_holds(&store, &before),
    }
}

/// The records of a segment up to its first frame that is none, and where that is.
fn read(segment: &[u8]) -> (Vec<Found>, usize) {
    let (mut records, mut rest) = (Vec::new(), segment);
    while let Some((length, more)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let frame = match u32::from_le_bytes(*length) as usize {
            0 => None,
            length => more.split_at_checked(length),
        };
        let Some((Ok(frame), more)) = frame.map(|(frame, more)| (Frame::decode(frame), more)) else { break };
        records.push(Found {
            source: Source { node: frame.node, log: frame.log },
            kind: if frame.tcp { Kind::Tcp } else { Kind::Http },
            received_us: frame.received_us,
            entry: frame.entry.into(),
        });
        rest = more;
    }
    (records, segment.len() - rest.len())
}

/// These records, all of them and no others, in their order, and each by its request.
fn assert_holds(store: &Store, records: &[Found]) {
    assert_eq!(recent(store, records), records);
    assert_eq!(store.status().records, records.len() as u64);
    for id in records.iter().filter_map(request_id) {
        let of_request: Vec<Found> =
            records.iter().filter(|record| request_id(record).as_ref() == Some(&id)).cloned().collect();
        assert_eq!(store.find(&id), of_request);
    }
    assert_eq!(store.find(""), []);
}

/// All records of these logs, the oldest first.
fn recent(store: &Store, records: &[Found]) -> Vec<Found> {
    let mut logs: Vec<String> = records.iter().map(|record| record.source.log.clone()).collect();
    logs.sort();
    logs.dedup();
    let mut all = store.recent(usize::MAX, &logs, None, false);
    let mut others = all.iter();
    let failed = store.recent(usize::MAX, &logs, None, true);
    assert!(failed.iter().all(|record| others.any(|other| other == record)), "they are some of them");
    all.reverse();
    all
}

/// Put a record; the store knows it as the newest.
fn put(store: &Store, log: &str, (kind, entry): (Kind, Bytes)) -> Found {
    let source = Source { node: "node".into(), log: log.into() };
    store.put(&source, [(kind, entry.clone())]);
    let [found] = store.recent(1, &[log.to_owned()], None, false).try_into().expect("one is there");
    let Found { received_us, .. } = found;
    assert_eq!(found, Found { source, kind, received_us, entry });
    found
}

fn request_id(record: &Found) -> Option<String> {
    if record.kind == Kind::Tcp {
        return None;
    }
    let id = HttpAccessLogEntry::decode(record.entry.clone()).ok()?.request?.request_id;
    (!id.is_empty()).then_some(id)
}

fn with_id(request_id: &str) -> Bytes {
    let request = HttpRequestProperties { request_id: request_id.into(), ..Default::default() };
    HttpAccessLogEntry { request: Some(request), ..Default::default() }.encode_to_vec().into()
}

fn content_of(segment: &Path) -> Vec<u8> {
    fs::read(segment).expect("it is there")
}
