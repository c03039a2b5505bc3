//! The decisions of a weft proxy: xDS resources in, a plan out, and answers about requests from that plan.
//!
//! Two callers, one code: `weft-proxy` asks it about live requests, and `weft why` asks the same functions about imagined ones
//! through `weft._native`. So this crate has no I/O, no clock, no randomness and no runtime: time and random values are
//! arguments. Protobuf is read once, in the `compile` functions; a request meets only what they made of it.
//!
//! Read in this order:
//!
//! 1. [`plan::Plan`]: all resources of one proxy, compiled; which listener takes a connection.
//! 2. [`decide`]: one request, top to bottom.
//! 3. [`route`], [`rbac`], [`cors`], [`fault`], [`balance`], [`retry`], [`steering`]: the rooms it walks through.
//! 4. [`respond`]: every answer that a proxy gives by itself, in one ordered table.
//! 5. [`honoured`]: why a field that weft does not implement is refused instead of ignored.

#![forbid(unsafe_code)]
// Control planes still send fields that Envoy has deprecated; weft reads them as Envoy does.
#![allow(deprecated)]

pub mod access_log;
pub mod address;
pub mod balance;
pub mod base64;
pub mod breaker;
pub mod cluster;
pub mod compile;
pub mod cors;
pub mod decide;
pub mod dns;
pub mod endpoint;
pub mod fault;
pub mod format;
pub mod grpc_timeout;
pub mod hash;
pub mod hash_policy;
pub mod header_edit;
pub mod health_check;
pub mod honoured;
pub mod http1;
pub mod http2;
pub mod http_manager;
pub mod listener;
pub mod local_caller;
pub mod matching;
pub mod metadata;
pub mod normalise;
pub mod outlier;
pub mod plan;
pub mod random;
pub mod rbac;
pub mod request;
pub mod respond;
pub mod retry;
pub mod route;
pub mod rpc;
pub mod steering;
pub mod tcp_proxy;
pub mod time_format;
pub mod tls;
pub mod trace;
pub mod upgrade;
