//! What is counted, under Istio's names and with Istio's labels; a few more under Envoy's.
//!
//! Each worker counts alone: a series is found by a key of numbers, written with plain loads and stores, and summed
//! when somebody scrapes. Labels are put into words once for each series.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weft_core::listener::Direction;
use weft_core::rbac::CounterNames;
use weft_core::rpc;

use crate::connect::Peer;
use crate::labels::Protocol;
use crate::plan::{AddressHasher, ByAddress, address_of};
use crate::record::Outcome;

pub mod snapshot;

/// Upper bounds of the histograms' buckets, as Envoy exports them; milliseconds or bytes.
pub const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0, 300000.0,
    600000.0, 1800000.0, 3600000.0,
];

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Only the worker that owns the counter may call this.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    pub fn take_away(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
    }

    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    /// In thousandths.
    sum: Counter,
}

impl Histogram {
    fn add(&self, value: f64) {
        let index = BOUNDS.iter().position(|&bound| value <= bound).unwrap_or(BOUNDS.len());
        self.buckets[index].add(1);
        self.sum.add((value * 1000.0) as u64);
    }
}

/// What is counted for one combination of labels.
#[derive(Debug, Default)]
pub struct Series {
    /// `reporter="source",source_workload="..."`
    labels: String,
    requests: Counter,
    duration_ms: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    opened: Counter,
    closed: Counter,
    received: Counter,
    sent: Counter,
}

impl Series {
    pub fn request(&self, duration: Duration, request_bytes: u64, response_bytes: u64) {
        self.requests.add(1);
        self.duration_ms.add(duration.as_secs_f64() * 1000.0);
        self.request_bytes.add(request_bytes as f64);
        self.response_bytes.add(response_bytes as f64);
    }

    pub fn connection_opened(&self) {
        self.opened.add(1);
    }

    pub fn connection_closed(&self, received: u64, sent: u64) {
        self.closed.add(1);
        self.received.add(received);
        self.sent.add(sent);
    }
}

/// What tells one series from another; numbers only, so that comparing is cheap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Address of the cluster's name, 0 if there was none.
    pub cluster: usize,
    /// Address of the endpoint, 0 if there was none.
    pub endpoint: usize,
    /// Of the identities at both ends, see [`principals`].
    pub principals: u64,
    /// Status, and [`kind`].
    pub code: u32,
    pub flags: u64,
    pub secure: bool,
}

/// What else is in a key's code: bits above those of a status.
pub fn kind(direction: Direction, protocol: Protocol) -> u32 {
    let inbound = u32::from(direction == Direction::Inbound) << 24;
    inbound | protocol.number() << 16
}

/// A number for the identities of the client, whose own number is *downstream*, and of the endpoint.
pub fn principals(downstream: u64, outcome: &Outcome) -> u64 {
    // Turned by half, so that a peer that calls itself is not nobody.
    downstream ^ outcome.upstream_peer.as_ref().map_or(0, |peer| peer.principal_key.rotate_left(32))
}

/// Counts of one worker that have no labels.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    pub accepted_active: Counter,
    pub downstream_connections: Counter,
    pub downstream_active: Counter,
    pub downstream_requests: Counter,
    pub handshakes: Counter,
    pub sessions_reused: Counter,
    pub handshake_failures: Counter,
    pub plaintext_refused: Counter,
    pub proxy_protocol_refused: Counter,
    pub callers_refused: Counter,
    pub no_filter_chain: Counter,
    /// One too many for the process, or for their filter chain.
    pub global_limit_refused: Counter,
    pub connection_limit_refused: Counter,
    /// Shed under overload, and connections closed after an answer because of it.
    pub overload_refused: Counter,
    pub overload_keepalive_disabled: Counter,
    pub protocol_errors: Counter,
    /// Requests from pages of other sites, by whether a CORS policy allows theirs.
    pub cors_origin_valid: Counter,
    pub cors_origin_invalid: Counter,
    pub upstream_connections: Counter,
    pub upstream_connect_failures: Counter,
    /// For bytes, which do not wait until their cluster's limit allows one more.
    pub upstream_connections_refused: Counter,
    pub upstream_handshakes: Counter,
    pub upstream_sessions_reused: Counter,
    pub upstream_retries: Counter,
    /// Copies of requests that were begun, and those that were given up because they could not keep up or their request was.
    pub mirrored: Counter,
    pub mirrors_abandoned: Counter,
    pub stale_connections: Counter,
    /// Connections whose server spoke first, unasked.
    pub server_first: Counter,
    pub records_lost: Counter,
    /// By `weft_core::rpc::Protocol::index`.
    pub rpc: [RpcCounters; rpc::Protocol::NAMES.len()],
}

/// Counts about one RPC protocol.
#[derive(Debug, Default)]
pub struct RpcCounters {
    pub request: Counter,
    pub request_oneway: Counter,
    /// Heartbeats and what else is no call.
    pub request_event: Counter,
    pub request_active: Counter,
    pub request_decoding_error: Counter,
    pub response: Counter,
    pub response_success: Counter,
    /// Methods that failed by their own rules.
    pub response_exception: Counter,
    /// Servers that could not carry a call out.
    pub response_error: Counter,
    pub response_decoding_error: Counter,
    pub local_response_error: Counter,
    /// Connections that ended with calls under way, by us and by callers.
    pub destroyed_local: Counter,
    pub destroyed_remote: Counter,
}

impl WorkerCounters {
    /// A connection with a client is secure.
    pub fn secured(&self, resumed: bool) {
        self.handshakes.add(1);
        self.sessions_reused.add(u64::from(resumed));
    }

    /// A connection to an endpoint is made.
    pub fn connected(&self, peer: &Peer) {
        self.upstream_connections.add(1);
        if let Some(resumed) = peer.resumed {
            self.upstream_handshakes.add(1);
            self.upstream_sessions_reused.add(u64::from(resumed));
        }
    }
}

/// What RBAC filters of the same names decide.
#[derive(Debug)]
pub struct RbacCounts {
    names: Arc<CounterNames>,
    pub allowed: Counter,
    pub denied: Counter,
    pub shadow_allowed: Counter,
    pub shadow_denied: Counter,
}

/// One worker's counts, shared with whoever scrapes.
#[derive(Debug, Default)]
pub struct Shared {
    pub counters: WorkerCounters,
    /// Locked as `series` is.
    rbac: Mutex<Vec<Arc<RbacCounts>>>,
    /// Locked when a series is new, and when somebody scrapes.
    series: Mutex<Vec<Arc<Series>>>,
}

/// The worker's side.
pub struct WorkerMetrics {
    pub shared: Arc<Shared>,
    known: RefCell<HashMap<Key, Arc<Series>, BuildHasherDefault<AddressHasher>>>,
    /// By the address of the names.
    rbac: RefCell<ByAddress<Arc<RbacCounts>>>,
}

impl WorkerMetrics {
    pub fn new(shared: Arc<Shared>) -> WorkerMetrics {
        WorkerMetrics { shared, known: RefCell::default(), rbac: RefCell::default() }
    }

    pub fn counters(&self) -> &WorkerCounters {
        &self.shared.counters
    }

    /// The series of a key; *labels* puts it into words if it is new.
    pub fn series(&self, key: Key, labels: impl FnOnce() -> String) -> Arc<Series> {
        if let Some(series) = self.known.borrow().get(&key) {
            return Arc::clone(series);
        }
        let labels = labels();
        let mut all = lock(&self.shared.series);
        // Another key may have the same words: a cluster that was replaced keeps its name.
        let series = match all.iter().find(|series| series.labels == labels) {
            Some(series) => Arc::clone(series),
            None => {
                let series = Arc::new(Series { labels, ..Series::default() });
                all.push(Arc::clone(&series));
                series
            }
        };
        self.known.borrow_mut().insert(key, Arc::clone(&series));
        series
    }

    /// The counts of an RBAC filter.
    pub fn rbac(&self, names: &Arc<CounterNames>) -> Arc<RbacCounts> {
        if let Some(counts) = self.rbac.borrow().get(&address_of(names)) {
            return Arc::clone(counts);
        }
        let mut all = lock(&self.shared.rbac);
        let counts = match all.iter().find(|counts| counts.names == *names) {
            Some(counts) => Arc::clone(counts),
            None => {
                let [allowed, denied, shadow_allowed, shadow_denied] = Default::default();
                let names = Arc::clone(names);
                let counts = Arc::new(RbacCounts { names, allowed, denied, shadow_allowed, shadow_denied });
                all.push(Arc::clone(&counts));
                counts
            }
        };
        self.rbac.borrow_mut().insert(address_of(names), Arc::clone(&counts));
        counts
    }

    /// Forget keys of plans that are gone; their addresses may be used again for other things.
    pub fn forget_keys(&self) {
        self.known.borrow_mut().clear();
        self.rbac.borrow_mut().clear();
    }
}

/// A poisoned lock holds counts that are still right: every write is one store.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Name, what it counts, and where.
type Row = (&'static str, &'static str, fn(&WorkerCounters) -> &Counter);

/// The counts without labels that fall again.
const GAUGES: [Row; 2] = [
    (
        "envoy_listener_downstream_cx_active",
        "Connections that are open, whether or not anything came on them yet.",
        |it| &it.accepted_active,
    ),
    ("envoy_http_downstream_cx_active", "Connections that a filter took and that are open.", |it| {
        &it.downstream_active
    }),
];

/// The counts without labels.
const COUNTERS: [Row; 27] = [
    ("envoy_http_downstream_cx_total", "Connections that a filter took.", |it| &it.downstream_connections),
    ("envoy_http_downstream_rq_total", "Requests begun.", |it| &it.downstream_requests),
    ("envoy_http_downstream_cx_protocol_error", "Connections ended for bytes that are no HTTP.", |it| {
        &it.protocol_errors
    }),
    ("envoy_http_cors_origin_valid", "Requests from pages whose origin a CORS policy allows.", |it| {
        &it.cors_origin_valid
    }),
    ("envoy_http_cors_origin_invalid", "Requests from pages whose origin no CORS policy allows.", |it| {
        &it.cors_origin_invalid
    }),
    ("envoy_listener_ssl_handshake", "TLS handshakes with clients.", |it| &it.handshakes),
    ("envoy_listener_ssl_session_reused", "TLS handshakes with clients that resumed a session.", |it| {
        &it.sessions_reused
    }),
    ("envoy_listener_ssl_connection_error", "TLS handshakes that failed.", |it| &it.handshake_failures),
    ("envoy_listener_no_filter_chain_match", "Connections that no filter chain takes.", |it| &it.no_filter_chain),
    ("envoy_listener_downstream_global_cx_overflow", "Connections beyond the limit of the process.", |it| {
        &it.global_limit_refused
    }),
    ("envoy_connection_limit_limited_connections", "Connections beyond the limit of their filter chain.", |it| {
        &it.connection_limit_refused
    }),
    ("envoy_http_downstream_rq_overload_close", "Requests refused under overload.", |it| &it.overload_refused),
    (
        "envoy_http_downstream_cx_overload_disable_keepalive",
        "Connections closed after an answer under overload.",
        |it| &it.overload_keepalive_disabled,
    ),
    ("weft_proxy_plaintext_refused_total", "Connections without the TLS that is required.", |it| &it.plaintext_refused),
    ("weft_proxy_proxy_protocol_refused_total", "Connections without a good PROXY protocol header.", |it| {
        &it.proxy_protocol_refused
    }),
    ("weft_proxy_callers_refused_total", "Connections of programs that may not call here.", |it| &it.callers_refused),
    ("envoy_cluster_upstream_cx_total", "Connections to endpoints.", |it| &it.upstream_connections),
    ("envoy_cluster_upstream_cx_connect_fail", "Connections to endpoints that failed.", |it| {
        &it.upstream_connect_failures
    }),
    ("envoy_cluster_upstream_cx_overflow", "Connections of bytes that a cluster's limit forbade.", |it| {
        &it.upstream_connections_refused
    }),
    ("envoy_cluster_ssl_handshake", "TLS handshakes with endpoints.", |it| &it.upstream_handshakes),
    ("envoy_cluster_ssl_session_reused", "TLS handshakes with endpoints that resumed a session.", |it| {
        &it.upstream_sessions_reused
    }),
    ("envoy_cluster_upstream_rq_retry", "Requests tried again.", |it| &it.upstream_retries),
    ("weft_proxy_mirrored_requests_total", "Copies of requests that were begun.", |it| &it.mirrored),
    ("weft_proxy_mirrors_abandoned_total", "Copies of requests that were given up in the middle.", |it| {
        &it.mirrors_abandoned
    }),
    ("weft_proxy_stale_connections_total", "Idle connections that the endpoint had closed.", |it| {
        &it.stale_connections
    }),
    ("weft_proxy_server_first_connections_total", "Connections whose server spoke first, unasked.", |it| {
        &it.server_first
    }),
    ("weft_proxy_access_records_lost_total", "Access records dropped, their service being away.", |it| {
        &it.records_lost
    }),
];

/// Name, what it counts, and where.
type RpcRow = (&'static str, &'static str, fn(&RpcCounters) -> u64);

/// Envoy's names for the counts about each protocol, in the order of `weft_core::rpc::Protocol::NAMES`.
const RPC_COUNTERS: [&[RpcRow]; rpc::Protocol::NAMES.len()] = [
    &[
        ("envoy_dubbo_request", "Calls of Dubbo.", |it| it.request.read()),
        ("envoy_dubbo_request_oneway", "Calls that want no answer.", |it| it.request_oneway.read()),
        ("envoy_dubbo_request_event", "Heartbeats and other events.", |it| it.request_event.read()),
        ("envoy_dubbo_request_active", "Calls under way.", |it| it.request_active.read()),
        ("envoy_dubbo_request_decoding_error", "Connections closed for bytes that are no Dubbo.", |it| {
            it.request_decoding_error.read()
        }),
        ("envoy_dubbo_response", "Answers of endpoints.", |it| it.response.read()),
        ("envoy_dubbo_response_success", "Answers with the status OK, business exceptions among them.", |it| {
            it.response_success.read() + it.response_exception.read()
        }),
        ("envoy_dubbo_response_business_exception", "Answers that are an exception of the method.", |it| {
            it.response_exception.read()
        }),
        ("envoy_dubbo_response_error", "Answers with another status than OK.", |it| it.response_error.read()),
        ("envoy_dubbo_response_decoding_error", "Connections to endpoints closed for bytes that are no Dubbo.", |it| {
            it.response_decoding_error.read()
        }),
        ("envoy_dubbo_local_response_business_exception", "Errors that the proxy answered by itself.", |it| {
            it.local_response_error.read()
        }),
        ("envoy_dubbo_cx_destroy_local_with_active_rq", "Connections closed by us with calls under way.", |it| {
            it.destroyed_local.read()
        }),
        ("envoy_dubbo_cx_destroy_remote_with_active_rq", "Connections closed by callers with calls under way.", |it| {
            it.destroyed_remote.read()
        }),
    ],
    &[
        ("envoy_thrift_request", "Calls of Thrift.", |it| it.request.read()),
        ("envoy_thrift_request_oneway", "Calls that want no answer.", |it| it.request_oneway.read()),
        ("envoy_thrift_request_active", "Calls under way.", |it| it.request_active.read()),
        ("envoy_thrift_request_decoding_error", "Connections closed for bytes that are no Thrift.", |it| {
            it.request_decoding_error.read()
        }),
        ("envoy_thrift_response", "Answers of endpoints.", |it| it.response.read()),
        ("envoy_thrift_response_success", "Replies with a result.", |it| it.response_success.read()),
        ("envoy_thrift_response_error", "Replies with an exception that the interface declares.", |it| {
            it.response_exception.read()
        }),
        (
            "envoy_thrift_response_exception",
            "Answers that are a TApplicationException, of endpoints and of the proxy.",
            |it| it.response_error.read() + it.local_response_error.read(),
        ),
        (
            "envoy_thrift_response_decoding_error",
            "Connections to endpoints closed for bytes that are no Thrift.",
            |it| it.response_decoding_error.read(),
        ),
        ("envoy_thrift_cx_destroy_local_with_active_rq", "Connections closed by us with calls under way.", |it| {
            it.destroyed_local.read()
        }),
        (
            "envoy_thrift_cx_destroy_remote_with_active_rq",
            "Connections closed by callers with calls under way.",
            |it| it.destroyed_remote.read(),
        ),
    ],
];

/// Append `name="value",` with the value escaped.
pub fn label(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, "{name}=\"");
    for character in value.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out.push_str("\",");
}
