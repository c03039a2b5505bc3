//! `hash_policy` of routes and TCP proxies: which property of a request or connection says where it goes, in clusters that balance by
//! consistent hashing.
//!
//! Source: Envoy's documentation of `RouteAction.HashPolicy`; the numbers must be Envoy's, so that both proxies agree on an endpoint.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use weft_protos::envoy::config::route::v3::route_action as proto;
use weft_protos::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use weft_protos::envoy::r#type::v3::HashPolicy as ProtoConnectionPolicy;
use weft_protos::envoy::r#type::v3::hash_policy::PolicySpecifier as ConnectionSpecifier;

use crate::compile::Context;
use crate::hash::{xxhash64, xxhash64_of};
use crate::request::{RequestFields, query_parameter};

/// One property, of several that are looked at in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashPolicy {
    /// Which.
    pub source: HashSource,
    /// If there is a hash after this one, the rest is not looked at.
    pub terminal: bool,
}

/// What the hash is taken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashSource {
    /// All values of a header or pseudo-header, in no order.
    Header(Box<str>),
    /// A cookie's value.
    Cookie(Box<HashCookie>),
    /// The client's address, without port.
    SourceIp,
    /// The first value of a query parameter, as it stands in the URL.
    QueryParameter(Box<str>),
}

/// A cookie, and how to make one for a client that has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name.
    pub name: Box<str>,
    /// How long a made one lasts, seconds; 0: as long as the client runs. `None`: none is made.
    pub ttl_seconds: Option<u64>,
    /// What follows the value in `set-cookie`, the attributes that are configured.
    attributes: Box<str>,
}

impl fmt::Display for HashSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(out, "header {name}"),
            Self::Cookie(cookie) => write!(out, "cookie {}", cookie.name),
            Self::SourceIp => out.write_str("source address"),
            Self::QueryParameter(name) => write!(out, "query parameter {name}"),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// The client, also where a proxy that is believed stands before this one.
    pub address: IpAddr,
    /// The connection's end there.
    pub remote: SocketAddr,
    /// Its other end.
    pub local: SocketAddr,
}

/// What the policies of a route make of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hashed {
    /// `None`: the request has none of the properties, and any endpoint is as good.
    pub key: Option<u64>,
    /// Values of `set-cookie` for the answer. A client has to be told only once, so mostly there are none and no memory is taken.
    pub cookies: Vec<String>,
}

/// Look at a request, policy by policy.
pub fn hash<R: RequestFields + ?Sized>(policies: &[HashPolicy], request: &R, client: &Client) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        if let Some(found) = policy.source.hash(request, client, &mut hashed.cookies) {
            // Turned, so that two that are equal do not cancel each other out.
            hashed.key = Some(hashed.key.map_or(0, |key| key.rotate_left(1)) ^ found);
        }
        if policy.terminal && hashed.key.is_some() {
            break;
        }
    }
    hashed
}

/// The hash of an address as people write it.
pub fn hash_ip(address: IpAddr) -> u64 {
    use std::io::Write as _;
    let mut text = [0; 45];
    let mut rest = &mut text[..];
    // 45 bytes hold every address.
    let _ = write!(rest, "{address}");
    let length = 45 - rest.len();
    xxhash64(0, &text[..length])
}

/// Values of one header that are put in order without asking for memory.
const FEW_VALUES: usize = 8;

impl HashSource {
    fn hash<R: RequestFields + ?Sized>(&self, request: &R, client: &Client, cookies: &mut Vec<String>) -> Option<u64> {
        match self {
            Self::Header(name) => hash_header(request, name),
            Self::SourceIp => Some(hash_ip(client.address)),
            Self::QueryParameter(name) => {
                query_parameter(request.path(), name.as_bytes()).map(|value| xxhash64(0, value))
            }
            Self::Cookie(cookie) => match cookie.find(request) {
                Some(hash) => Some(hash),
                None => cookie.ttl_seconds.map(|_| {
                    let value = cookie_value(client);
                    cookies.push(cookie.set_cookie(&value));
                    xxhash64(0, value.as_bytes())
                }),
            },
        }
    }

    /// What a request has of it, for people.
    pub fn value<R: RequestFields + ?Sized>(&self, request: &R, client: &Client) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Self::Header(name) => request.field(name).map(|value| text(&value)),
            Self::SourceIp => Some(client.address.to_string()),
            Self::QueryParameter(name) => query_parameter(request.path(), name.as_bytes()).map(text),
            Self::Cookie(cookie) => cookie.with(request, text),
        }
    }
}

fn hash_header<R: RequestFields + ?Sized>(request: &R, name: &str) -> Option<u64> {
    if name.starts_with(':') || name == "host" {
        return request.field(name).map(|value| xxhash64(0, &value));
    }
    let mut few: [&[u8]; FEW_VALUES] = [b""; FEW_VALUES];
    let mut more: Vec<&[u8]> = Vec::new();
    let mut count = 0;
    request.each_header(name, &mut |value| {
        match few.get_mut(count) {
            Some(place) => *place = value,
            None => more.push(value),
        }
        count += 1;
    });
    match count {
        0 => None,
        1 => Some(xxhash64(0, few[0])),
        2..=FEW_VALUES => {
            few[..count].sort_unstable();
            Some(xxhash64_of(few[..count].iter().copied()))
        }
        _ => {
            more.extend_from_slice(&few);
            more.sort_unstable();
            Some(xxhash64_of(more))
        }
    }
}

/// A name for a client that has none, by its connection: requests that race on it are told the same.
fn cookie_value(client: &Client) -> String {
    format!("{:016x}", xxhash64(0, format!("{}{}", client.remote, client.local).as_bytes()))
}

impl HashCookie {
    /// The hash of the cookie's value; an empty one is none.
    fn find<R: RequestFields + ?Sized>(&self, request: &R) -> Option<u64> {
        self.with(request, |value| xxhash64(0, value))
    }

    fn with<R: RequestFields + ?Sized, T>(&self, request: &R, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let mut found: Option<&[u8]> = None;
        request.each_header("cookie", &mut |line| {
            if found.is_none() {
                found = line.split(|&byte| byte == b';').find_map(|pair| self.value_in(pair));
            }
        });
        found.filter(|value| !value.is_empty()).map(look)
    }

    fn value_in<'p>(&self, pair: &'p [u8]) -> Option<&'p [u8]> {
        let start = pair.iter().position(|&byte| byte != b' ')?;
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        if pair.get(start..equals)? != self.name.as_bytes() {
            return None;
        }
        // RFC 6265 4.1.1: a value may stand in quotes.
        let value = &pair[equals + 1..];
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    }

    fn set_cookie(&self, value: &str) -> String {
        let age = match self.ttl_seconds {
            Some(seconds) if seconds > 0 => format!("; Max-Age={seconds}"),
            _ => String::new(),
        };
        format!("{}=\"{value}\"{age}{}; HttpOnly", self.name, self.attributes)
    }

    fn compile(context: &mut Context, cookie: &proto::hash_policy::Cookie) -> Self {
        let mut attributes = String::new();
        if !cookie.path.is_empty() {
            attributes = format!("; Path={}", cookie.path);
        }
        for attribute in &cookie.attributes {
            attributes += &match attribute.value.as_str() {
                "" => format!("; {}", attribute.name),
                value => format!("; {}={value}", attribute.name),
            };
        }
        if cookie.name.is_empty() {
            context.refuse_at("name", "required");
        }
        if format!("{}{attributes}", cookie.name).bytes().any(|byte| byte.is_ascii_control()) {
            context.refuse("no control character may stand in a header's value");
        }
        Self {
            name: cookie.name.as_str().into(),
            // Envoy's cookies last whole seconds.
            ttl_seconds: context.duration("ttl", cookie.ttl.as_ref()).map(|ttl| ttl.as_secs()),
            attributes: attributes.into(),
        }
    }
}

impl HashPolicy {
    /// The client's address alone.
    pub const SOURCE_IP: Self = Self { source: HashSource::SourceIp, terminal: false };

    pub(crate) fn compile_all(context: &mut Context, policies: &[proto::HashPolicy]) -> Box<[Self]> {
        let compiled = context.each("hash_policy", policies, |context, policy| {
            let source = match &policy.policy_specifier {
                Some(PolicySpecifier::Header(header)) if header.header_name.is_empty() => {
                    context.refuse_at("header.header_name", "required");
                    None
                }
                Some(PolicySpecifier::Header(header)) => {
                    Some(HashSource::Header(header.header_name.to_ascii_lowercase().into()))
                }
                Some(PolicySpecifier::Cookie(cookie)) => {
                    let cookie = context.at("cookie", |context| HashCookie::compile(context, cookie));
                    Some(HashSource::Cookie(Box::new(cookie)))
                }
                // Said to be false, it is no property.
                Some(PolicySpecifier::ConnectionProperties(properties)) => {
                    properties.source_ip.then_some(HashSource::SourceIp)
                }
                Some(PolicySpecifier::QueryParameter(parameter)) => {
                    Some(HashSource::QueryParameter(parameter.name.as_str().into()))
                }
                Some(PolicySpecifier::FilterState(_)) => {
                    context.refuse_at("filter_state", "weft-proxy has no state of filters");
                    None
                }
                None => {
                    context.refuse("a hash policy needs one of header, cookie, connection_properties, query_parameter");
                    None
                }
            };
            source.map(|source| Self { source, terminal: policy.terminal })
        });
        compiled.into_iter().flatten().collect()
    }
}

/// Whether connections are hashed, by the source address: the only property that a TCP proxy knows.
pub(crate) fn compile_connection(context: &mut Context, policies: &[ProtoConnectionPolicy]) -> bool {
    if policies.len() > 1 {
        context.refuse_at("hash_policy", "a TCP proxy has at most one");
    }
    let by_source = context.each("hash_policy", policies, |context, policy| match &policy.policy_specifier {
        Some(ConnectionSpecifier::SourceIp(_)) => true,
        Some(ConnectionSpecifier::FilterState(_)) => {
            context.refuse_at("filter_state", "weft-proxy has no state of filters");
            false
        }
        None => {
            context.refuse("a hash policy of a TCP proxy needs source_ip");
            false
        }
    });
    by_source.contains(&true)
}
