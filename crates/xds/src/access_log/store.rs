//! Where access records are kept: a ring of files, and an index in memory that finds them by request id.
//!
//! Records are appended to segments in one directory; when all of them together exceed the limit, the oldest segment
//! is removed, so what is kept is the newest. A store that is opened again reads its segments and knows everything as
//! before: a control plane that was killed forgets nothing but what had not been written. Nothing is synced to disk:
//! records are for questions about the last minutes, not for audits. What a crash leaves may be anything, so reading it has a fuzz
//! target.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use weft_protos::envoy::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpResponseProperties, ResponseFlags, TcpAccessLogEntry,
};

use crate::access_log::{CONNECTIONS, Kind};

/// How much is kept if nothing is said: with some 400 bytes for a record, the last 160,000.
pub const DEFAULT_LIMIT_BYTES: u64 = 64 << 20;
/// Segments in the limit: when the ring is full, a sixteenth of it is forgotten at once.
const SEGMENTS: u64 = 16;
/// Of a frame on disk: its length, little endian.
const LENGTH_BYTES: usize = 4;

/// Which log of which proxy a record is from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The node's id.
    pub node: String,
    pub log: String,
}

/// A record as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub source: Source,
    pub kind: Kind,
    /// Microseconds since 1970, by the clock of the control plane.
    pub received_us: u64,
    /// The serialised entry.
    pub entry: Bytes,
}

/// What is in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    pub records: u64,
    pub bytes: u64,
    pub limit_bytes: u64,
    /// Records that came and could not be written (a full disk).
    pub lost: u64,
}

/// A record on disk, after its length.
#[derive(Clone, PartialEq, prost::Message)]
struct Frame {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(string, tag = "2")]
    log: String,
    #[prost(bool, tag = "3")]
    tcp: bool,
    #[prost(uint64, tag = "4")]
    received_us: u64,
    #[prost(bytes = "bytes", tag = "5")]
    entry: Bytes,
}

/// Where a record is, and what it is looked for by.
#[derive(Debug, Clone, Copy)]
struct Slot {
    segment: u64,
    /// Of the frame, after its length.
    offset: u64,
    length: u32,
    /// Index of its source.
    source: u32,
    /// Hash of the request id.
    request: Option<u64>,
    failed: bool,
    denied: bool,
    forbidden: bool,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: File,
    bytes: u64,
}

/// See the module. Shared between the server's thread and whoever asks.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    limit_bytes: u64,
    segments: VecDeque<Segment>,
    /// In order of arrival; the first has number `forgotten`.
    slots: VecDeque<Slot>,
    forgotten: u64,
    sources: Vec<Source>,
    source_numbers: HashMap<Source, u32>,
    /// Hash of a request id -> numbers of its slots, in order.
    by_request: HashMap<u64, VecDeque<u64>>,
    bytes: u64,
    lost: u64,
    /// Frames that are not written yet.
    pending: Vec<u8>,
}

impl Store {
    /// Open the store in `directory`, which is made if it is not there (mode 0700). What it holds is indexed again.
    ///
    /// # Errors
    /// The directory or a file in it cannot be used.
    pub fn open(directory: &Path, limit_bytes: u64) -> io::Result<Store> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut inner = Inner {
            directory: directory.into(),
            limit_bytes,
            segments: VecDeque::new(),
            slots: VecDeque::new(),
            forgotten: 0,
            sources: Vec::new(),
            source_numbers: HashMap::new(),
            by_request: HashMap::new(),
            bytes: 0,
            lost: 0,
            pending: Vec::new(),
        };
        let mut numbers: Vec<u64> =
            std::fs::read_dir(directory)?.filter_map(|entry| number_of(entry.ok()?.file_name().to_str()?)).collect();
        numbers.sort_unstable();
        for number in numbers {
            inner.take_over(number)?;
        }
        inner.forget_old();
        Ok(Store { inner: Mutex::new(inner) })
    }

    /// Keep records. What cannot be written is counted as lost.
    pub fn put(&self, source: &Source, entries: impl IntoIterator<Item = (Kind, Bytes)>) {
        let received_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let mut inner = self.lock();
        for (kind, entry) in entries {
            let traits = Traits::read(kind, &entry);
            if source.log == CONNECTIONS && !traits.refused {
                continue;
            }
            let frame = Frame {
                node: source.node.clone(),
                log: source.log.clone(),
                tcp: kind == Kind::Tcp,
                received_us,
                entry,
            };
            inner.append(source, &frame, &traits);
        }
        inner.write_pending();
        inner.forget_old();
    }

    /// Every record of a request, in order of arrival.
    pub fn find(&self, request_id: &str) -> Vec<Found> {
        let inner = self.lock();
        let numbers = inner.by_request.get(&hash(request_id)).into_iter().flatten();
        let found = numbers.filter_map(|number| inner.read(*number));
        found.filter(|found| Traits::read(found.kind, &found.entry).request_id == request_id).collect()
    }

    /// The newest records, newest first: at most `limit`, of these logs, of these nodes if any are named, and only those
    /// that failed if that is asked.
    pub fn recent(&self, limit: usize, logs: &[String], nodes: Option<&[String]>, failed: bool) -> Vec<Found> {
        let inner = self.lock();
        let wanted: Vec<bool> = inner
            .sources
            .iter()
            .map(|source| logs.contains(&source.log) && nodes.is_none_or(|nodes| nodes.contains(&source.node)))
            .collect();
        let numbers = inner.slots.iter().enumerate().rev();
        numbers
            .filter(|(_, slot)| wanted[slot.source as usize] && (!failed || inner.has_failed(slot)))
            .take(limit)
            .filter_map(|(index, _)| inner.read(inner.forgotten + index as u64))
            .collect()
    }

    /// How much there is.
    pub fn status(&self) -> Status {
        let inner = self.lock();
        Status {
            records: inner.slots.len() as u64,
            bytes: inner.bytes,
            limit_bytes: inner.limit_bytes,
            lost: inner.lost,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(file_name(number))
    }

    /// Index a segment that an earlier process wrote, up to the first frame that is none. The rest is cut off: it was not finished, or
    /// it is what a machine that went down left there, often zeros.
    fn take_over(&mut self, number: u64) -> io::Result<()> {
        let path = self.path(number);
        let content = Bytes::from(std::fs::read(&path)?);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        self.segments.push_back(Segment { number, file, bytes: 0 });
        let mut offset = 0;
        while let Some(prefix) = content.get(offset..offset + LENGTH_BYTES) {
            let length = u32::from_le_bytes(prefix.try_into().expect("four bytes")) as usize;
            let begin = offset + LENGTH_BYTES;
            // No frame is empty (it has a time), but four zeros would read as the length of one.
            if length == 0 || begin + length > content.len() {
                break;
            }
            let Ok(frame) = Frame::decode(content.slice(begin..begin + length)) else { break };
            let kind = if frame.tcp { Kind::Tcp } else { Kind::Http };
            let traits = Traits::read(kind, &frame.entry);
            self.index(&Source { node: frame.node, log: frame.log }, begin as u64, length as u32, &traits);
            offset = begin + length;
        }
        let segment = self.segments.back_mut().expect("pushed above");
        segment.file.set_len(offset as u64)?;
        segment.bytes = offset as u64;
        self.bytes += offset as u64;
        Ok(())
    }

    fn append(&mut self, source: &Source, frame: &Frame, traits: &Traits) {
        let full = self.segments.back().is_none_or(|segment| segment.bytes >= self.limit_bytes / SEGMENTS);
        if full {
            self.write_pending();
            let number = self.segments.back().map_or(1, |segment| segment.number + 1);
            let path = self.path(number);
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
            match opened {
                Ok(file) => self.segments.push_back(Segment { number, file, bytes: 0 }),
                Err(_) => {
                    self.lost += 1;
                    return;
                }
            }
        }
        let length = frame.encoded_len();
        let Some(segment) = self.segments.back_mut() else { return };
        self.pending.extend_from_slice(&(length as u32).to_le_bytes());
        frame.encode(&mut self.pending).expect("a Vec grows");
        let begin = segment.bytes + LENGTH_BYTES as u64;
        segment.bytes += (LENGTH_BYTES + length) as u64;
        self.bytes += (LENGTH_BYTES + length) as u64;
        self.index(source, begin, length as u32, traits);
    }

    fn index(&mut self, source: &Source, offset: u64, length: u32, traits: &Traits) {
        let source = match self.source_numbers.get(source) {
            Some(number) => *number,
            None => {
                let number = self.sources.len() as u32;
                self.sources.push(source.clone());
                self.source_numbers.insert(source.clone(), number);
                number
            }
        };
        let number = self.forgotten + self.slots.len() as u64;
        let request = (!traits.request_id.is_empty()).then(|| hash(&traits.request_id));
        if let Some(request) = request {
            self.by_request.entry(request).or_default().push_back(number);
        }
        let segment = self.segments.back().map_or(0, |segment| segment.number);
        self.slots.push_back(Slot {
            segment,
            offset,
            length,
            source,
            request,
            failed: traits.failed,
            denied: traits.denied,
            forbidden: traits.forbidden,
        });
    }

    /// Write what was appended. If that fails, the records are forgotten and counted, and the next ones are written in their place.
    fn write_pending(&mut self) {
        let Some(segment) = self.segments.back_mut() else { return };
        if self.pending.is_empty() {
            return;
        }
        let begin = segment.bytes - self.pending.len() as u64;
        let written = segment.file.write_all_at(&self.pending, begin).and_then(|()| segment.file.flush());
        if written.is_err() {
            let number = segment.number;
            segment.bytes = begin;
            let _ = segment.file.set_len(begin);
            self.bytes -= self.pending.len() as u64;
            while let Some(slot) = self.slots.back().copied().filter(|it| it.segment == number && it.offset >= begin) {
                self.slots.pop_back();
                self.lost += 1;
                let Some(request) = slot.request else { continue };
                if let Some(numbers) = self.by_request.get_mut(&request) {
                    // Numbers are in order, so the newest slot's stands last.
                    numbers.pop_back();
                    // A disk may be full for days.
                    if numbers.is_empty() {
                        self.by_request.remove(&request);
                    }
                }
            }
        }
        self.pending.clear();
        self.pending.shrink_to(1 << 20);
    }

    /// Remove the oldest segments while there is too much.
    fn forget_old(&mut self) {
        while self.bytes > self.limit_bytes && self.segments.len() > 1 {
            let Some(oldest) = self.segments.pop_front() else { return };
            self.bytes -= oldest.bytes;
            let _ = std::fs::remove_file(self.path(oldest.number));
            while let Some(slot) = self.slots.front().copied().filter(|slot| slot.segment == oldest.number) {
                self.slots.pop_front();
                self.forgotten += 1;
                let Some(request) = slot.request else { continue };
                if let Some(numbers) = self.by_request.get_mut(&request) {
                    // Numbers are in order, so the oldest slot's stands first.
                    numbers.pop_front();
                    if numbers.is_empty() {
                        self.by_request.remove(&request);
                    }
                }
            }
        }
    }

    /// Whether it is the record of a failure. A denial is one for the proxies on the way, too, to whom it was an answer like any other.
    fn has_failed(&self, slot: &Slot) -> bool {
        let is_denied = |number: &u64| self.slots.get((number - self.forgotten) as usize).is_some_and(|it| it.denied);
        let of_request = || slot.request.and_then(|request| self.by_request.get(&request)).into_iter().flatten();
        slot.failed || (slot.forbidden && of_request().any(is_denied))
    }

    fn read(&self, number: u64) -> Option<Found> {
        let slot = self.slots.get(usize::try_from(number.checked_sub(self.forgotten)?).ok()?)?;
        let index = self.segments.binary_search_by_key(&slot.segment, |segment| segment.number).ok()?;
        let mut bytes = vec![0; slot.length as usize];
        self.segments[index].file.read_exact_at(&mut bytes, slot.offset).ok()?;
        let frame = Frame::decode(Bytes::from(bytes)).ok()?;
        Some(Found {
            source: self.sources[slot.source as usize].clone(),
            kind: if frame.tcp { Kind::Tcp } else { Kind::Http },
            received_us: frame.received_us,
            entry: frame.entry,
        })
    }
}

fn file_name(number: u64) -> String {
    format!("{number:010}.records")
}

/// The segment that a file holds; `None`: it is another's.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".records")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

fn hash(request_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    request_id.hash(&mut hasher);
    hasher.finish()
}

/// What a record is looked for by.
#[derive(Debug, Default)]
struct Traits {
    request_id: String,
    /// No answer, an answer of 500 or more, a status of gRPC that says as much, or a response flag other than that of an
    /// injected delay; or it was denied; or, of a connection that switched protocols, more than its end was flagged.
    failed: bool,
    /// The proxy itself refused it, because of who asked or of what was asked.
    denied: bool,
    /// The answer is one that denials get: 403, or PERMISSION_DENIED in gRPC.
    forbidden: bool,
    /// Of a connection: nothing came of it. It was refused, and not handed on to anybody.
    refused: bool,
}

impl Traits {
    /// A record that does not decode has none: it is kept, and found by nobody but those who ask for the newest.
    fn read(kind: Kind, entry: &Bytes) -> Traits {
        match kind {
            Kind::Http => {
                let entry = HttpAccessLogEntry::decode(entry.clone()).unwrap_or_default();
                let response = entry.response.unwrap_or_default();
                let status = response.response_code.map_or(0, |code| code.value);
                let grpc_status = grpc_status(&response);
                let failed = status == 0 || status >= 500 || grpc_status.is_some_and(is_grpc_failure);
                let denied = is_denial(&response.response_code_details);
                let flags = flags(entry.common_properties.as_ref());
                let flags = if status == SWITCHING_PROTOCOLS { but_of_an_end(flags) } else { flags };
                Traits {
                    request_id: entry.request.unwrap_or_default().request_id,
                    failed: failed || denied || flags != ResponseFlags::default(),
                    denied,
                    forbidden: status == 403 || grpc_status == Some(7),
                    refused: false,
                }
            }
            Kind::Tcp => {
                let entry = TcpAccessLogEntry::decode(entry.clone()).unwrap_or_default();
                let common = entry.common_properties.as_ref();
                let broken_tls = common.is_some_and(|common| !common.downstream_transport_failure_reason.is_empty());
                let failed = broken_tls || flags(common) != ResponseFlags::default();
                // Envoy connects a port of bytes before its client's handshake is over, and tells here of every connection that ended
                // badly: the program's reset, for instance, of which the log of requests tells.
                let moved = entry.connection_properties.is_some_and(|it| it.received_bytes > 0 || it.sent_bytes > 0);
                let handed_on = common.is_some_and(|common| common.upstream_remote_address.is_some());
                let refused = failed && !moved && (broken_tls || !handed_on);
                // The log of its filter chain tells of it, so that of connections need not.
                let denied = common.is_some_and(|common| is_denial(&common.connection_termination_details));
                Traits { request_id: String::new(), failed: failed || denied, denied, forbidden: false, refused }
            }
        }
    }
}

/// What the answer of a gRPC server says, if it is one: in its trailers, or in a head that is all trailers.
fn grpc_status(response: &HttpResponseProperties) -> Option<u32> {
    const NAME: &str = "grpc-status";
    let told = response.response_trailers.get(NAME).or_else(|| response.response_headers.get(NAME));
    told?.parse().ok()
}

/// Whether a status of gRPC says that the server, or what is between, failed; others are the client's doing. As 500 and more
/// in HTTP: UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
fn is_grpc_failure(status: u32) -> bool {
    matches!(status, 2 | 4 | 8 | 13 | 14 | 15)
}

/// Whether these details say that the proxy itself refused it: rules of access (RBAC), or explicit mode, which asks who calls. Envoy has
/// no response flag for that.
fn is_denial(details: &str) -> bool {
    details.starts_with("rbac_access_denied") || details.starts_with("caller_")
}

/// RFC 9110 15.2.2.
const SWITCHING_PROTOCOLS: u32 = 101;

/// All but that of an injected delay.
fn flags(common: Option<&AccessLogCommon>) -> ResponseFlags {
    let flags = common.and_then(|common| common.response_flags).unwrap_or_default();
    ResponseFlags { delay_injected: false, ..flags }
}

/// Without those that say who ended a connection: one that switched protocols has no other end.
fn but_of_an_end(flags: ResponseFlags) -> ResponseFlags {
    ResponseFlags {
        upstream_connection_termination: false,
        upstream_remote_reset: false,
        downstream_connection_termination: false,
        downstream_remote_reset: false,
        ..flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_protos::envoy::config::core::v3::Address;
    use weft_protos::envoy::data::accesslog::v3::{ConnectionProperties, HttpRequestProperties};
    use weft_protos::google::protobuf::UInt32Value;

    /// A directory that is removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("weft-records-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn source(node: &str) -> Source {
        Source { node: node.into(), log: "requests".into() }
    }

    fn entry(request_id: &str, status: u32) -> (Kind, Bytes) {
        let entry = HttpAccessLogEntry {
            request: Some(HttpRequestProperties { request_id: request_id.into(), ..Default::default() }),
            response: Some(HttpResponseProperties {
                response_code: Some(UInt32Value { value: status }),
                ..Default::default()
            }),
            ..Default::default()
        };
        (Kind::Http, entry.encode_to_vec().into())
    }

    fn nodes(found: &[Found]) -> Vec<&str> {
        found.iter().map(|found| found.source.node.as_str()).collect()
    }

    #[test]
    fn a_request_is_found_again_with_all_its_records_also_by_the_next_process() {
        let directory = Directory::new("again");
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        store.put(&source("client"), [entry("a", 200), entry("b", 503)]);
        store.put(&source("server"), [entry("a", 200)]);
        assert_eq!(nodes(&store.find("a")), ["client", "server"]);
        drop(store);
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        assert_eq!(nodes(&store.find("a")), ["client", "server"]);
        assert_eq!(store.find("c"), []);
        store.put(&source("late"), [entry("a", 200)]);
        assert_eq!(nodes(&store.find("a")), ["client", "server", "late"]);
        assert_eq!(store.status().records, 4);
    }

    #[test]
    fn the_newest_come_first_and_may_be_those_that_failed() {
        let directory = Directory::new("newest");
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        store.put(&source("one"), [entry("a", 503), entry("b", 404)]);
        store.put(&source("two"), [entry("c", 200)]);
        let logs = ["requests".to_owned()];
        assert_eq!(nodes(&store.recent(2, &logs, None, false)), ["two", "one"]);
        assert_eq!(store.recent(9, &logs, None, true)[0].entry, entry("a", 503).1);
        assert_eq!(nodes(&store.recent(9, &logs, Some(&["two".to_owned()]), false)), ["two"]);
        assert_eq!(store.recent(9, &["tries".to_owned()], None, false), []);
    }

    #[test]
    fn the_end_of_a_connection_that_switched_protocols_is_no_failure() {
        let failed = |status: u32, flags: ResponseFlags| {
            let response =
                HttpResponseProperties { response_code: Some(UInt32Value { value: status }), ..Default::default() };
            let common = AccessLogCommon { response_flags: Some(flags), ..Default::default() };
            let entry =
                HttpAccessLogEntry { common_properties: Some(common), response: Some(response), ..Default::default() };
            Traits::read(Kind::Http, &Bytes::from(entry.encode_to_vec())).failed
        };
        let ended = [
            ResponseFlags { upstream_connection_termination: true, ..Default::default() },
            ResponseFlags { downstream_connection_termination: true, ..Default::default() },
        ];
        for flags in ended {
            assert!(!failed(101, flags) && failed(200, flags), "{flags:?}");
        }
        assert!(failed(101, ResponseFlags { stream_idle_timeout: true, ..Default::default() }));
    }

    #[test]
    fn an_answer_of_grpc_has_failed_where_its_status_says_so() {
        let directory = Directory::new("grpc");
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        let answer = |status: &str, in_trailers: bool| {
            let mut response =
                HttpResponseProperties { response_code: Some(UInt32Value { value: 200 }), ..Default::default() };
            let fields = if in_trailers { &mut response.response_trailers } else { &mut response.response_headers };
            fields.insert("grpc-status".into(), status.into());
            let request = HttpRequestProperties { request_id: status.into(), ..Default::default() };
            let entry = HttpAccessLogEntry { request: Some(request), response: Some(response), ..Default::default() };
            (Kind::Http, Bytes::from(entry.encode_to_vec()))
        };
        let failures = ["2", "4", "8", "13", "14", "15"];
        for status in (0..17).map(|status| status.to_string()).chain(["x".into(), String::new()]) {
            store.put(&source("node"), [answer(&status, true), answer(&status, false)]);
            let failed = store.recent(100, &["requests".to_owned()], None, true);
            let found = failed.iter().filter(|it| Traits::read(it.kind, &it.entry).request_id == status).count();
            assert_eq!(found, if failures.contains(&&*status) { 2 } else { 0 }, "{status}");
        }
    }

    #[test]
    fn what_a_proxy_denied_has_failed_also_for_those_who_passed_the_answer_on() {
        let directory = Directory::new("denied");
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        let answer = |request_id: &str, status: u32, details: &str| {
            let response = HttpResponseProperties {
                response_code: Some(UInt32Value { value: status }),
                response_code_details: details.into(),
                ..Default::default()
            };
            let request = HttpRequestProperties { request_id: request_id.into(), ..Default::default() };
            let entry = HttpAccessLogEntry { request: Some(request), response: Some(response), ..Default::default() };
            (Kind::Http, Bytes::from(entry.encode_to_vec()))
        };
        let bytes = |details: &str| {
            let common = AccessLogCommon { connection_termination_details: details.into(), ..Default::default() };
            let entry = TcpAccessLogEntry { common_properties: Some(common), ..Default::default() };
            (Kind::Tcp, Bytes::from(entry.encode_to_vec()))
        };
        let failed = |node: &str| {
            let found = store.recent(100, &["requests".to_owned()], Some(&[node.to_owned()]), true);
            found.iter().map(|it| Traits::read(it.kind, &it.entry).request_id).collect::<Vec<_>>()
        };
        store.put(&source("server"), [answer("a", 403, "rbac_access_denied_matched_policy[none]")]);
        store.put(&source("caller"), [answer("a", 403, "via_upstream"), answer("b", 403, "via_upstream")]);
        // Another try, which was let in, is no failure.
        store.put(&source("caller"), [answer("a", 200, "via_upstream")]);
        assert_eq!((failed("server"), failed("caller")), (vec!["a".into()], vec!["a".into()]));
        store.put(
            &source("own"),
            [answer("c", 403, "caller_foreign_origin"), answer("d", 407, "caller_credential_required")],
        );
        assert_eq!(failed("own"), ["d", "c"]);
        store.put(
            &source("bytes"),
            [bytes("caller_http_on_tcp"), bytes(""), bytes("rbac_access_denied_matched_policy[x]")],
        );
        assert_eq!(failed("bytes").len(), 2);
    }

    #[test]
    fn of_connections_only_those_that_were_refused_are_kept() {
        let directory = Directory::new("connections");
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        let tcp = |reason: &str, reset: bool, handed_on: bool, received_bytes: u64| {
            let common = AccessLogCommon {
                downstream_transport_failure_reason: reason.into(),
                response_flags: reset.then(|| ResponseFlags { upstream_remote_reset: true, ..Default::default() }),
                upstream_remote_address: handed_on.then(Address::default),
                ..Default::default()
            };
            let connection_properties =
                Some(ConnectionProperties { received_bytes, sent_bytes: 1.min(received_bytes) });
            let entry = TcpAccessLogEntry { common_properties: Some(common), connection_properties };
            (Kind::Tcp, Bytes::from(entry.encode_to_vec()))
        };
        let source = Source { node: "n".into(), log: CONNECTIONS.into() };
        // A proxy may say any number.
        let beyond_all_sums = tcp("TLS_error", false, true, u64::MAX);
        store.put(&source, [tcp("", false, false, 0), tcp("", false, true, 7), beyond_all_sums]);
        assert_eq!(store.status().records, 0);
        // Envoy connects a port of bytes before it knows its client, and tells twice of a program that resets a connection.
        store.put(&source, [tcp("", true, true, 0), tcp("", true, true, 7), tcp("TLS_error: reset", false, true, 7)]);
        assert_eq!(store.status().records, 0);
        store.put(
            &source,
            [tcp("TLS_error", false, false, 0), tcp("TLS_error", false, true, 0), tcp("", true, false, 0)],
        );
        assert_eq!(store.status().records, 3);
    }

    #[test]
    fn what_is_too_much_goes_with_the_oldest_first() {
        let directory = Directory::new("limit");
        let store = Store::open(&directory.0, 64 << 10).unwrap();
        for number in 0..5000 {
            store.put(&source("node"), [entry(&format!("request-{number}"), 200)]);
        }
        let status = store.status();
        assert!(status.bytes <= 64 << 10, "{status:?}");
        assert!(status.records > 500, "{status:?}");
        assert_eq!(store.find("request-0"), []);
        assert_eq!(store.find("request-4999").len(), 1);
        let on_disk: u64 =
            std::fs::read_dir(&directory.0).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(on_disk, status.bytes);
        drop(store);
        assert_eq!(Store::open(&directory.0, 64 << 10).unwrap().status(), status);
    }

    #[test]
    fn a_record_that_was_cut_off_is_dropped_and_the_rest_is_kept() {
        let directory = Directory::new("cut");
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        store.put(&source("node"), [entry("a", 200), entry("b", 200)]);
        let file = OpenOptions::new().write(true).open(directory.0.join("0000000001.records")).unwrap();
        file.set_len(file.metadata().unwrap().len() - 3).unwrap();
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        assert_eq!((store.find("a").len(), store.find("b").len()), (1, 0));
        store.put(&source("node"), [entry("b", 200)]);
        assert_eq!(store.find("b").len(), 1);
    }

    #[test]
    fn zeros_that_a_crash_left_after_the_last_record_are_no_records() {
        let directory = Directory::new("zeros");
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        store.put(&source("node"), [entry("a", 200)]);
        let before = store.status();
        let mut file = OpenOptions::new().append(true).open(directory.0.join("0000000001.records")).unwrap();
        file.write_all(&[0; 4096]).unwrap();
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        assert_eq!(store.status(), before);
        assert_eq!(file.metadata().unwrap().len(), before.bytes);
        store.put(&source("node"), [entry("b", 200)]);
        assert_eq!((store.find("a").len(), store.find("b").len()), (1, 1));
    }

    #[test]
    fn files_that_are_no_segments_are_let_alone() {
        let directory = Directory::new("foreign");
        std::fs::create_dir_all(&directory.0).unwrap();
        for name in ["1.records", "+000000001.records", "notes.records", "0000000001.records.old"] {
            std::fs::write(directory.0.join(name), name).unwrap();
        }
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        assert_eq!(store.status().records, 0);
        store.put(&source("node"), [entry("a", 200)]);
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        assert_eq!(store.find("a").len(), 1);
        assert_eq!(std::fs::read(directory.0.join("1.records")).unwrap(), b"1.records");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_leaves_nothing_in_memory() {
        let directory = Directory::new("full");
        let store = Store::open(&directory.0, DEFAULT_LIMIT_BYTES).unwrap();
        store.put(&source("node"), [entry("a", 200)]);
        let before = store.status();
        let write_to = |open: &OpenOptions| {
            let file = open.open(directory.0.join("0000000001.records")).unwrap();
            store.lock().segments.back_mut().unwrap().file = file;
        };
        // As to a full disk, nothing is written to a file that is open for reading.
        write_to(OpenOptions::new().read(true));
        store.put(&source("node"), [entry("a", 200), entry("b", 200), entry("c", 200)]);
        assert_eq!(store.status(), Status { lost: 3, ..before });
        assert_eq!(store.lock().by_request.len(), 1);
        write_to(OpenOptions::new().read(true).write(true));
        store.put(&source("node"), [entry("c", 200)]);
        assert_eq!((store.find("a").len(), store.find("b").len(), store.find("c").len()), (1, 0, 1));
    }
}
