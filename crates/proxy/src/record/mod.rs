//! One result, one record: what each request, try or connection leaves behind when it is over.
//!
//! [`Outcome`] is filled in along the line, [`Entry`] is all that a record can ask for. Where records go is configuration:
//! lines in files ([`template`], [`journal`]), or messages to an access log service ([`message`], [`service`]). Both
//! gather in a worker's own buffers and leave in batches; nothing here makes a request wait.

mod journal;
mod message;
pub mod service;
mod template;

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::access_log::{AccessLog, End, Filter, GRPC_STATUS, LogService, Sink};
use weft_core::format::{Command, Format, Variables};
use weft_core::request::RequestHead as _;
use weft_core::respond::{Cause, Flags, ResponseFlag, grpc_status};
use weft_core::route::Route;

use crate::clock::Clock;
use crate::codec::{Head, Version, decimal};
use crate::connect::{Destination, Peer};
use crate::identify::Facts;
use crate::logging;
use crate::rbac::Shadow;
use crate::respond::is_grpc;
use crate::route::View;

use journal::Journal;
use service::{Dispatch, Services};
use template::Template;

/// Lines leave at the latest so long after the first of them has come; for a log service its configuration says how long.
const BATCH_TIME: Duration = Duration::from_millis(100);

/// An access log, compiled.
#[derive(Debug)]
pub struct Log {
    filter: Option<Filter>,
    target: Target,
    /// Lower-case names of the trailers of an answer that it asks for.
    trailers: Box<[Box<str>]>,
}

#[derive(Debug)]
enum Target {
    File(Arc<Path>, Template),
    Service(Arc<LogService>),
}

impl Log {
    pub fn compile(log: &AccessLog) -> Log {
        let target = match &log.sink {
            Sink::File { path, record } => Target::File(Arc::clone(path), Template::compile(record)),
            Sink::Service(service) => Target::Service(Arc::clone(service)),
        };
        Log { filter: log.filter.clone(), target, trailers: log.response_trailers().into() }
    }

    fn takes(&self, end: &End) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.takes(end))
    }

    pub fn compile_all(logs: &[AccessLog]) -> Box<[Log]> {
        logs.iter().map(Log::compile).collect()
    }
}

/// Whether one of *logs* takes a record of what came to this *end*.
pub fn wants(logs: &[Log], end: &End) -> bool {
    logs.iter().any(|log| log.takes(end))
}

/// The status of gRPC that an answer tells with its head: one that is all trailers.
pub fn grpc_status_of(head: &Head) -> Option<u32> {
    head.get(GRPC_STATUS.as_bytes()).and_then(number)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Some trailers of an answer: lower-case name and value.
pub type Trailers = Vec<(Box<str>, Box<[u8]>)>;

/// Of an answer's *trailers* those that one of *logs* asks for.
pub fn wanted(logs: &[Log], trailers: &mut dyn Iterator<Item = (&[u8], &[u8])>) -> Trailers {
    let named = |(name, value): (&[u8], &[u8])| {
        let mut names = logs.iter().flat_map(|log| &log.trailers);
        let found = names.find(|wanted| wanted.as_bytes().eq_ignore_ascii_case(name))?;
        Some((found.clone(), value.into()))
    };
    trailers.filter_map(named).collect()
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Request,
    /// One try of a request.
    Try,
    Connection,
}

/// The records of one worker.
pub struct Recorder {
    journal: Journal,
    dispatch: Dispatch,
    /// See [`Recorder::due`].
    due: Cell<Option<Instant>>,
}

impl Recorder {
    pub fn new(services: Arc<Services>) -> Recorder {
        Recorder { journal: Journal::default(), dispatch: Dispatch::new(services), due: Cell::new(None) }
    }

    /// When somebody is to call [`Recorder::flush_due`]; `None`: nothing waits.
    pub fn due(&self) -> Option<Instant> {
        self.due.get()
    }

    /// Write *entry* to all of *logs*. True: [`Recorder::due`] is sooner than it was.
    pub fn record(&self, logs: &[Log], entry: &Entry<'_>) -> bool {
        let before = self.due.get();
        let end = entry.end();
        for log in logs {
            if !log.takes(&end) {
                continue;
            }
            let due = match &log.target {
                Target::File(path, template) => self.journal.record(path, template, entry),
                Target::Service(service) => self.dispatch.record(service, entry),
            };
            self.due.set(sooner(self.due.get(), due));
        }
        self.due.get() != before
    }

    /// Send everything off; returns how many records were lost since the last time.
    pub fn flush(&self) -> u64 {
        self.journal.flush();
        self.dispatch.flush();
        self.due.set(None);
        self.lost()
    }

    /// The same for what has waited long enough.
    pub fn flush_due(&self) -> u64 {
        let now = Instant::now();
        self.due.set(sooner(self.journal.flush_due(now), self.dispatch.flush_due(now)));
        self.lost()
    }

    fn lost(&self) -> u64 {
        self.journal.lost.take() + self.dispatch.lost.take()
    }

    /// What comes from now on is the last: of what is under way when the process ends, each leaves one. None is dropped because others wait.
    pub fn expect_last(&self) {
        self.dispatch.expect_last();
    }

    /// Close all files, so that the next line opens them anew (log rotation, SIGUSR1).
    pub fn reopen(&self) {
        self.journal.reopen();
    }
}

fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// How a request or connection went; filled in along the line, read once at its end.
#[derive(Default)]
pub struct Outcome {
    /// The client, where a proxy that is believed stands between it and us.
    pub client: Option<IpAddr>,
    pub status: u16,
    pub flags: Flags,
    pub details: std::borrow::Cow<'static, str>,
    pub termination: Option<std::borrow::Cow<'static, str>>,
    pub route: Option<Arc<Route>>,
    pub cluster: Option<Arc<str>>,
    pub destination: Option<Destination>,
    /// It, if there was a connection to it.
    pub upstream_peer: Option<Rc<Peer>>,
    pub upstream_local: Option<SocketAddr>,
    pub attempts: u32,
    pub transport_failure: Option<String>,
    /// Of the answer, those that a log asks for.
    pub trailers: Trailers,
    /// What shadow rules say about the request.
    pub shadows: Vec<Shadow>,
    /// Why the client's connection was refused before anything was asked.
    pub downstream_failure: Option<String>,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub duration: Duration,
    /// Until the last byte of the request was there.
    pub request_duration: Option<Duration>,
    /// Until the first byte of the upstream's answer was there.
    pub response_duration: Option<Duration>,
}

impl Outcome {
    /// What is known of an upstream is about *destination* from now on, of which nothing is known yet.
    pub fn begin_try(&mut self, destination: &Destination) {
        self.destination = Some(destination.clone());
        self.upstream_peer = None;
        self.upstream_local = None;
        self.transport_failure = None;
    }

    pub fn flag(&mut self, flag: ResponseFlag) {
        self.flags.insert(flag);
    }

    /// It comes to nothing, for this reason.
    pub fn fail(&mut self, cause: Cause) {
        let row = cause.row();
        if let Some(flag) = row.flag {
            self.flag(flag);
        }
        self.details = row.details.into();
    }

    /// A connection, and with it everything on it, ends for this reason.
    pub fn end(&mut self, cause: Cause) {
        self.fail(cause);
        self.termination = Some(cause.row().details.into());
    }
}

/// Everything a record can ask for.
pub struct Entry<'a> {
    pub subject: Subject,
    pub clock: &'a Clock,
    /// When it began, since 1970.
    pub start: Duration,
    pub facts: &'a Facts,
    pub outcome: &'a Outcome,
    /// Absent for TCP connections and for bytes that were no request.
    pub request: Option<&'a Head>,
    pub version: Option<Version>,
    /// The response as it went downstream.
    pub response: Option<&'a Head>,
    pub chain_name: &'a str,
}

/// An entry in one line, for the log.
pub struct Summary<'e>(pub &'e Entry<'e>);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        static FORMAT: LazyLock<Format> = LazyLock::new(|| Format::parse(SUMMARY).unwrap_or_default());
        let mut line = Vec::new();
        FORMAT.write(self.0, "-", &mut line);
        out.write_str(&String::from_utf8_lossy(&line))
    }
}

const SUMMARY: &str = "\"%REQ(:METHOD)% %REQ(:AUTHORITY)%%REQ(:PATH)%\" from %DOWNSTREAM_REMOTE_ADDRESS% for %DOWNSTREAM_LOCAL_ADDRESS% \
went to %UPSTREAM_HOST% of %UPSTREAM_CLUSTER%: %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%, \
%BYTES_RECEIVED% and %BYTES_SENT% bytes, %DURATION% ms";

impl Entry<'_> {
    /// Who speaks of it in the log.
    pub fn component(&self) -> &'static str {
        match (self.subject, self.version) {
            (Subject::Connection, _) => logging::TCP,
            (Subject::Request | Subject::Try, Some(_)) => logging::HTTP,
            (Subject::Request | Subject::Try, None) => logging::RPC,
        }
    }

    fn request_header(&self, name: &str) -> Option<&[u8]> {
        let head = self.request?;
        let present = |bytes: &'_ [u8]| !bytes.is_empty();
        match name {
            ":method" => Some(head.method()).filter(|bytes| present(bytes)),
            ":path" => Some(head.path()).filter(|bytes| present(bytes)),
            ":authority" | "host" => Some(head.authority()).filter(|bytes| present(bytes)),
            ":scheme" => Some(View::of(head, self.facts).scheme().as_str().as_bytes()),
            name => head.get(name.as_bytes()),
        }
    }

    fn response_header(&self, name: &str) -> Option<&[u8]> {
        self.response?.get(name.as_bytes())
    }

    fn response_trailer(&self, name: &str) -> Option<&[u8]> {
        self.outcome.trailers.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }

    /// What filters ask of it.
    fn end(&self) -> End {
        End { status: self.outcome.status, flags: self.outcome.flags, grpc_status: self.told_grpc_status() }
    }

    fn told_grpc_status(&self) -> Option<u32> {
        self.response_trailer(GRPC_STATUS).and_then(number).or_else(|| self.response.and_then(grpc_status_of))
    }

    /// The status of a call of gRPC: what its answer says, or what the HTTP status says in gRPC's words. As in Envoy.
    fn grpc_status(&self) -> Option<u32> {
        if !is_grpc(self.request?) {
            return None;
        }
        self.told_grpc_status().or_else(|| (self.outcome.status != 0).then(|| grpc_status(self.outcome.status).into()))
    }
}

fn write_header<'a>(
    find: impl Fn(&str) -> Option<&'a [u8]>,
    name: &str,
    otherwise: Option<&str>,
    length: Option<usize>,
    out: &mut Vec<u8>,
) -> bool {
    let Some(value) = find(name).or_else(|| otherwise.and_then(&find)) else { return false };
    out.extend_from_slice(&value[..length.unwrap_or(value.len()).min(value.len())]);
    true
}

fn write_text(text: Option<&str>, out: &mut Vec<u8>) -> bool {
    match text {
        Some(text) if !text.is_empty() => {
            out.extend_from_slice(text.as_bytes());
            true
        }
        _ => false,
    }
}

fn write_number(value: u64, out: &mut Vec<u8>) -> bool {
    decimal(out, value);
    true
}

fn write_millis(duration: Option<Duration>, out: &mut Vec<u8>) -> bool {
    duration.is_some_and(|duration| write_number(duration.as_millis() as u64, out))
}

impl Variables for Entry<'_> {
    fn write(&self, command: &Command, out: &mut Vec<u8>) -> bool {
        let outcome = self.outcome;
        match command {
            Command::StartTime(None) => {
                self.clock.write_stamp(self.start, out);
                true
            }
            Command::StartTime(Some(format)) => {
                format.write(self.start, out);
                true
            }
            Command::RequestHeader { name, otherwise, length } => {
                write_header(|name| self.request_header(name), name, otherwise.as_deref(), *length, out)
            }
            Command::ResponseHeader { name, otherwise, length } => {
                write_header(|name| self.response_header(name), name, otherwise.as_deref(), *length, out)
            }
            Command::ResponseTrailer { name, otherwise, length } => {
                write_header(|name| self.response_trailer(name), name, otherwise.as_deref(), *length, out)
            }
            Command::GrpcStatus(format) => self.grpc_status().is_some_and(|status| match format.name(status) {
                Some(name) => write_text(Some(name), out),
                None => write_number(status.into(), out),
            }),
            Command::Protocol => write_text(self.version.map(Version::as_str), out),
            Command::ResponseCode => write_number(u64::from(outcome.status), out),
            Command::ResponseFlags => {
                if outcome.flags.is_empty() {
                    out.push(b'-');
                } else {
                    let _ = write!(out, "{}", outcome.flags);
                }
                true
            }
            Command::ResponseCodeDetails => write_text(Some(&outcome.details), out),
            Command::ConnectionTerminationDetails => write_text(outcome.termination.as_deref(), out),
            Command::RouteName => write_text(outcome.route.as_deref().map(|route| &*route.name), out),
            Command::UpstreamCluster => write_text(outcome.cluster.as_deref(), out),
            Command::UpstreamHost if outcome.upstream_peer.is_some() => {
                write_text(outcome.upstream_peer.as_deref().map(|peer| &*peer.address), out)
            }
            Command::UpstreamHost => match &outcome.destination {
                Some(Destination::Original(address)) => write!(out, "{address}").is_ok(),
                Some(Destination::Host(host)) => write!(out, "{}", host.endpoint.address).is_ok(),
                None => false,
            },
            Command::UpstreamLocalAddress => match outcome.upstream_local {
                Some(address) => write!(out, "{address}").is_ok(),
                None => false,
            },
            Command::UpstreamRequestAttemptCount => write_number(u64::from(outcome.attempts), out),
            Command::UpstreamTransportFailureReason => write_text(outcome.transport_failure.as_deref(), out),
            Command::DownstreamTransportFailureReason => write_text(outcome.downstream_failure.as_deref(), out),
            Command::Duration => write_millis(Some(outcome.duration), out),
            Command::RequestDuration => write_millis(outcome.request_duration, out),
            Command::ResponseDuration => write_millis(outcome.response_duration, out),
            Command::BytesReceived => write_number(outcome.bytes_received, out),
            Command::BytesSent => write_number(outcome.bytes_sent, out),
            Command::DownstreamRemoteAddress => match outcome.client {
                // Nobody knows the port of a client behind a proxy.
                Some(client) => write!(out, "{}", SocketAddr::new(client, 0)).is_ok(),
                None => write_text(Some(&self.facts.remote_text), out),
            },
            Command::DownstreamDirectRemoteAddress => write!(out, "{}", self.facts.direct()).is_ok(),
            Command::DownstreamRemoteAddressWithoutPort => {
                write!(out, "{}", outcome.client.unwrap_or(self.facts.remote.ip())).is_ok()
            }
            Command::DownstreamLocalAddress => write_text(Some(&self.facts.local_text), out),
            Command::RequestedServerName => write_text(self.facts.server_name.as_deref(), out),
            Command::DownstreamPeerUriSan => write_text(self.facts.peer_uri.as_deref(), out),
            Command::DownstreamLocalUriSan => write_text(self.facts.local_uri.as_deref(), out),
            Command::FilterChainName => write_text(Some(self.chain_name), out),
            Command::Hostname => write_text(Some(hostname()), out),
            Command::DynamicMetadata { namespace, key, length } => {
                let shadows = if self.subject == Subject::Connection { &self.facts.shadows } else { &outcome.shadows };
                // What comes later overwrites what was said before.
                let value = shadows.iter().rev().find_map(|shadow| shadow.value(namespace, key));
                write_text(value.map(|value| cut(value, *length)), out)
            }
        }
    }
}

/// The beginning of a text, so many bytes of it as fit without half a character.
fn cut(text: &str, length: Option<usize>) -> &str {
    let mut end = length.map_or(text.len(), |most| most.min(text.len()));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn hostname() -> &'static str {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
    })
}
