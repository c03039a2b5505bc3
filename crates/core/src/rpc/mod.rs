//! Calls of RPC protocols: which cluster a call goes to, whatever the protocol.
//!
//! A codec of the proxy says what a call is ([`Call`]); here it is compared with routes. Dubbo's and Thrift's configurations
//! compile to the same routes: what one of them cannot ask for is a condition that is absent.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::access_log::AccessLog;
use crate::cluster::Cluster;
use crate::matching::{HeaderMatch, StringMatch};
use crate::plan::Plan;
use crate::random::{Draw, Random};
use crate::respond::Cause;
use crate::trace::{Subject, Trace};

mod compile;

/// What is spoken, and what of it the configuration leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Dubbo 2, with hessian2.
    Dubbo,
    /// Thrift; `None`: each message shows which it is.
    Thrift { transport: Option<ThriftTransport>, encoding: Option<ThriftEncoding> },
}

impl Protocol {
    /// Names of all, for metrics and records; see [`Protocol::index`].
    pub const NAMES: [&'static str; 2] = ["dubbo", "thrift"];

    /// Its place among all.
    pub fn index(self) -> usize {
        match self {
            Self::Dubbo => 0,
            Self::Thrift { .. } => 1,
        }
    }

    /// `dubbo`
    pub fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

/// How Thrift's messages are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThriftTransport {
    /// Four bytes of length.
    Framed,
    /// The same, then headers (THeader).
    Header,
}

/// How Thrift's values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThriftEncoding {
    /// TBinaryProtocol, strict.
    Binary,
    /// TCompactProtocol.
    Compact,
}

/// A compiled `DubboProxy` or `ThriftProxy`.
#[derive(Debug, Clone)]
pub struct RpcProxy {
    /// What its connections speak.
    pub protocol: Protocol,
    /// For metrics.
    pub stat_prefix: Arc<str>,
    /// Tried in order.
    pub routes: Box<[Arc<Route>]>,
    /// A connection closes after so many calls; `None`: it does not.
    pub max_requests_per_connection: Option<u32>,
    /// A connection closes after an error that the proxy answered by itself.
    pub close_after_error: bool,
    /// One record for each call.
    pub access_logs: Box<[AccessLog]>,
}

/// A compiled route.
#[derive(Debug)]
pub struct Route {
    /// The route configuration's name; may be empty.
    pub name: Arc<str>,
    /// When it applies: everything must hold.
    pub conditions: Conditions,
    /// Clusters and their weights; at least one, and not all of weight zero.
    pub targets: Box<[(Arc<str>, u32)]>,
}

/// When a route applies. What is absent holds for every call.
#[derive(Debug, Default)]
pub struct Conditions {
    /// The service (an interface, in Dubbo).
    pub service: Option<ServiceMatch>,
    /// The service's version.
    pub version: Option<Box<str>>,
    /// The service's group.
    pub group: Option<Box<str>>,
    /// The method.
    pub method: Option<StringMatch>,
    /// Service and method must *not* match (Thrift's `invert`).
    pub invert: bool,
    /// Headers (attachments, in Dubbo).
    pub headers: Box<[HeaderMatch]>,
    /// Arguments that are strings, by their place.
    pub parameters: Box<[(usize, ParameterMatch)]>,
}

/// How the name of a service is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceMatch {
    /// The whole name.
    Exact(Box<str>),
    /// `com.example.*`: at least one character more.
    Prefix(Box<str>),
    /// `*.Greeter`: at least one character before.
    Suffix(Box<str>),
    /// `*`: any, if there is one.
    Any,
}

/// How an argument is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParameterMatch {
    /// The whole text; the empty one matches all, as in Envoy.
    Exact(Box<str>),
    /// The text is a number from the first to below the second.
    Range(i64, i64),
}

/// What a route may ask about a call. Implemented by the proxy on what its codec read, and by the engine on a question.
pub trait Call {
    /// Empty if there is none.
    fn service(&self) -> &[u8];
    /// The service's version, if it was told.
    fn version(&self) -> Option<&[u8]>;
    /// The service's group, if it was told.
    fn group(&self) -> Option<&[u8]>;
    /// Empty if there is none.
    fn method(&self) -> &[u8];
    /// A header by its name in lower case, compared in any case.
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>>;
    /// An argument, if there are so many and it is a string.
    fn parameter(&self, place: usize) -> Option<Cow<'_, [u8]>>;
    /// Whether headers, group and arguments could be read. What could not be read has none of them, and no route may be chosen by that.
    fn is_read(&self) -> bool;
}

/// What is to be done with a call.
#[derive(Debug, Clone)]
pub struct Decision<'p> {
    /// The route, if one matched.
    pub route: Option<&'p Arc<Route>>,
    /// The name of its cluster, drawn by weight.
    pub target: Option<&'p Arc<str>>,
    /// The cluster, or why the call goes nowhere.
    pub outcome: Result<&'p Arc<Cluster>, Cause>,
}

/// Decide one call. Throws dice for the weighted cluster only.
pub fn decide<'p, C, D, T>(plan: &'p Plan, proxy: &'p RpcProxy, call: &C, random: &mut D, trace: &mut T) -> Decision<'p>
where
    C: Call + ?Sized,
    D: Random + ?Sized,
    T: Trace,
{
    let refused = |cause| Decision { route: None, target: None, outcome: Err(cause) };
    for route in &proxy.routes {
        match route.conditions.compare(call) {
            Ok(()) => {
                trace.considered(Subject::RpcRoute(route), true, || route.conditions.to_string());
                let target = route.pick(random);
                let outcome = plan.clusters.get(target).ok_or(Cause::ClusterNotFound);
                return Decision { route: Some(route), target: Some(target), outcome };
            }
            Err(Mismatch::Unread) => return refused(Cause::MalformedRequest),
            Err(mismatch) => {
                trace.considered(Subject::RpcRoute(route), false, || mismatch.to_string());
            }
        }
    }
    refused(Cause::RouteNotFound)
}

/// The first condition that does not hold.
#[derive(Debug, Clone, Copy)]
enum Mismatch<'r> {
    Service,
    Version(&'r str),
    Group(&'r str),
    Method,
    Inverted,
    Header(&'r HeaderMatch),
    Parameter(usize),
    /// It cannot be known.
    Unread,
}

impl Conditions {
    /// Compare with a call, what costs least first.
    fn compare<C: Call + ?Sized>(&self, call: &C) -> Result<(), Mismatch<'_>> {
        let service = self.service.as_ref().is_none_or(|service| service.is_match(call.service()));
        // Envoy: a call without a method takes no route that asks for one, whatever it asks.
        let method =
            self.method.as_ref().is_none_or(|method| !call.method().is_empty() && method.is_match(call.method()));
        match self.invert {
            true if service && method => return Err(Mismatch::Inverted),
            false if !service => return Err(Mismatch::Service),
            false if !method => return Err(Mismatch::Method),
            _ => {}
        }
        if let Some(version) = self.version.as_deref().filter(|wanted| call.version() != Some(wanted.as_bytes())) {
            return Err(Mismatch::Version(version));
        }
        let needs_all = self.group.is_some() || !self.headers.is_empty() || !self.parameters.is_empty();
        if needs_all && !call.is_read() {
            return Err(Mismatch::Unread);
        }
        if let Some(group) = self.group.as_deref().filter(|wanted| call.group() != Some(wanted.as_bytes())) {
            return Err(Mismatch::Group(group));
        }
        // Only what was sent along: a call has no pseudo-headers.
        if let Some(header) = self.headers.iter().find(|header| !header.is_value_match(call.header(&header.name))) {
            return Err(Mismatch::Header(header));
        }
        let differs = |(place, wanted): &&(usize, ParameterMatch)| {
            !call.parameter(*place).is_some_and(|value| wanted.is_match(&value))
        };
        match self.parameters.iter().find(differs) {
            Some((place, _)) => Err(Mismatch::Parameter(*place)),
            None => Ok(()),
        }
    }
}

impl Route {
    /// Choose a cluster by weight.
    pub fn pick<D: Random + ?Sized>(&self, random: &mut D) -> &Arc<str> {
        if let [(name, _)] = &*self.targets {
            return name;
        }
        let total = self.targets.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut point = random.below(Draw::Weight, total);
        for (name, weight) in &self.targets {
            match point.checked_sub(u64::from(*weight)) {
                None => return name,
                Some(rest) => point = rest,
            }
        }
        // Compilation refuses an empty list and a total of zero, so a point below the total was met above.
        &self.targets[self.targets.len() - 1].0
    }
}

impl ServiceMatch {
    /// Whether a service is meant.
    pub fn is_match(&self, service: &[u8]) -> bool {
        match self {
            Self::Exact(name) => service == name.as_bytes(),
            Self::Prefix(begin) => service.len() > begin.len() && service.starts_with(begin.as_bytes()),
            Self::Suffix(end) => service.len() > end.len() && service.ends_with(end.as_bytes()),
            Self::Any => !service.is_empty(),
        }
    }
}

impl ParameterMatch {
    fn is_match(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.is_empty() || value == text.as_bytes(),
            Self::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.trim().parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
        }
    }
}

impl fmt::Display for ServiceMatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(out, "{name}"),
            Self::Prefix(begin) => write!(out, "{begin}*"),
            Self::Suffix(end) => write!(out, "*{end}"),
            Self::Any => out.write_str("*"),
        }
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.invert { "not " } else { "" };
        match (&self.service, &self.method) {
            (Some(service), Some(method)) => write!(out, "{not}service {service}, method {method}")?,
            (Some(service), None) => write!(out, "{not}service {service}")?,
            (None, Some(method)) => write!(out, "{not}method {method}")?,
            (None, None) => write!(out, "any call")?,
        }
        if let Some(version) = &self.version {
            write!(out, ", version {version}")?;
        }
        if let Some(group) = &self.group {
            write!(out, ", group {group}")?;
        }
        for header in &self.headers {
            write!(out, ", {header}")?;
        }
        for (place, parameter) in &self.parameters {
            match parameter {
                ParameterMatch::Exact(text) => write!(out, ", argument {place} `{text}`")?,
                ParameterMatch::Range(start, end) => write!(out, ", argument {place} from {start} to below {end}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service => out.write_str("another service"),
            Self::Version(wanted) => write!(out, "wanted: version {wanted}"),
            Self::Group(wanted) => write!(out, "wanted: group {wanted}"),
            Self::Method => out.write_str("another method"),
            Self::Inverted => out.write_str("the very call that is left out"),
            Self::Header(header) => write!(out, "wanted: {header}"),
            Self::Parameter(place) => write!(out, "argument {place} differs, or is no string"),
            Self::Unread => out.write_str("the call cannot be read that far"),
        }
    }
}
