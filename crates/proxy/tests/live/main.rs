//! weft-proxy as it is shipped: the real binary, configured by a real xDS server in this process, between clients and
//! upstreams that are scripted byte for byte.
//!
//! [`kit`] holds the pieces. One binary for all modules: linking is the dearest part of these tests.

mod kit;

mod access;
mod admin;
mod bootstrap;
mod callers;
mod calls;
mod configuration;
mod connect;
mod cut_off;
mod downgrade;
mod either_version;
mod failures;
mod grpc_web;
mod hash;
mod health_checks;
mod http;
mod http2;
mod leaving;
mod limits;
mod mirror;
mod names;
mod on_demand;
mod origin;
mod overload;
mod profiles;
mod proxy_protocol;
mod records;
mod responses;
mod resumption;
mod server_first;
mod smuggling;
mod steering;
mod tcp;
mod tls;
mod upstreams;
mod waiting;
