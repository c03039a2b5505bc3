//! A question about one request, read: who sends it to where, and what is known of chance. What is asked of it is in [`crate::explain`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde_json::Value;
use weft_core::listener::{Direction, FilterChain, Listener, Opening};
use weft_core::plan::Plan;
use weft_core::random::{Draw, Random};
use weft_core::rbac::{self, Names};
use weft_core::request::{OwnedRequest, Scheme};

use crate::taken::Taken;

/// A question, read.
pub struct Question {
    pub direction: Direction,
    pub destination: SocketAddr,
    pub source: SocketAddr,
    pub opening: Opening,
    /// Names in the client's certificate, where the connection is known to be TLS.
    pub names: Option<Names>,
    /// The client, where a proxy that is believed stands before this one.
    pub client: IpAddr,
    /// Whether the question says who the client is; where it does not, `client` and `source` stand for anybody.
    pub is_client_known: bool,
    /// Whether the client speaks TLS, where the question says so; then a listener that takes something else refuses it.
    pub tls: Option<bool>,
    /// What the request says of its scheme itself (`:scheme`, the absolute form).
    pub own_scheme: Option<Scheme>,
    pub request: OwnedRequest,
    pub dice: Dice,
    /// What is known to have happened.
    pub taken: Option<Taken>,
}

/// Random values that a question fixes, each 0 to 1; what is not fixed is 0, which strikes every share above none.
#[derive(Debug, Clone, Default)]
pub struct Dice {
    pub fault_delay: Option<f64>,
    pub fault_abort: Option<f64>,
    pub weight: Option<f64>,
    pub route: Option<f64>,
    pub cors: Option<f64>,
}

impl Random for Dice {
    fn draw(&mut self, purpose: Draw) -> u64 {
        let value = match purpose {
            Draw::FaultDelay => self.fault_delay,
            Draw::FaultAbort => self.fault_abort,
            Draw::Weight => self.weight,
            Draw::RouteFraction => self.route,
            Draw::Cors => self.cors,
            Draw::Mirror | Draw::Balance | Draw::BackOff | Draw::Ejection | Draw::HealthCheck => None,
        };
        // 2^64 does not fit; the conversion saturates just below it.
        (value.unwrap_or(0.0) * 18_446_744_073_709_551_616.0) as u64
    }
}

impl Question {
    /// # Errors
    /// The text is not JSON of that shape.
    pub fn read(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("the question is not JSON: {error}"))?;
        let string = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let address = |key: &str| match string(key) {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| format!("{key}: `{text}` is not an address with port: 240.240.0.3:9080")),
        };
        let direction = match string("direction").as_deref() {
            Some("outbound") | None => Direction::Outbound,
            Some("inbound") => Direction::Inbound,
            Some("gateway") => Direction::Unspecified,
            Some(other) => return Err(format!("direction: `{other}` is none of outbound, inbound, gateway")),
        };
        let mut headers = Vec::new();
        for pair in value.get("headers").and_then(Value::as_array).into_iter().flatten() {
            match (pair.get(0).and_then(Value::as_str), pair.get(1).and_then(Value::as_str)) {
                (Some(name), Some(value)) => headers.push((name.to_owned(), value.to_owned())),
                _ => return Err(format!("headers: {pair} is not a pair of name and value")),
            }
        }
        let mut dice = Dice::default();
        for (name, die) in [
            ("fault_delay", &mut dice.fault_delay),
            ("fault_abort", &mut dice.fault_abort),
            ("weight", &mut dice.weight),
            ("route", &mut dice.route),
            ("cors", &mut dice.cors),
        ] {
            match value.get("random").and_then(|random| random.get(name)) {
                None | Some(Value::Null) => {}
                Some(given) => match given.as_f64() {
                    Some(share) if (0.0..=1.0).contains(&share) => *die = Some(share),
                    _ => return Err(format!("random.{name}: {given} is not a number of 0 to 1")),
                },
            }
        }
        let alpn = value
            .get("alpn")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect::<Vec<_>>());
        let tls = value.get("tls").and_then(Value::as_bool);
        let sni = string("sni");
        let principal = string("source_principal");
        let given = address("source")?;
        let source = given.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        let opening = if tls.unwrap_or(sni.is_some() || principal.is_some()) {
            // What weft-proxy and Istio's proxies offer to each other.
            let sidecars = || ["istio-http/1.1", "istio", "http/1.1"].map(str::to_owned).to_vec();
            Opening::Tls { server_name: sni, application_protocols: alpn.unwrap_or_else(sidecars) }
        } else {
            let protocol = alpn.and_then(|names| names.into_iter().next());
            Opening::Http(protocol.unwrap_or_else(|| "http/1.1".to_owned()))
        };
        let own_scheme = string("scheme").and_then(|name| Scheme::parse(name.as_bytes()));
        Ok(Self {
            direction,
            destination: address("destination")?.ok_or("destination: required")?,
            source,
            names: matches!(opening, Opening::Tls { .. })
                .then(|| Names { uris: principal.into_iter().map(Into::into).collect(), ..Names::default() }),
            client: match string("client").map(|text| text.parse()) {
                None => source.ip(),
                Some(Ok(client)) => client,
                Some(Err(_)) => return Err("client: not an IP address: 203.0.113.9".to_owned()),
            },
            is_client_known: given.is_some() || value.get("client").is_some(),
            opening,
            tls,
            own_scheme,
            request: OwnedRequest {
                method: string("method").unwrap_or_else(|| "GET".to_owned()),
                scheme: own_scheme.unwrap_or_default(),
                authority: string("authority").unwrap_or_default(),
                path: string("path").unwrap_or_else(|| "/".to_owned()),
                headers,
            },
            dice,
            taken: Taken::read(&value)?,
        })
    }

    /// The listener that takes the connection: by capture and original destination, else by address, else by port
    /// (a gateway's published port), else by name (without interception the listener `0.0.0.0_9080` stands for service port 9080
    /// wherever it is bound), else the one that recovers original destinations.
    ///
    /// # Errors
    /// There is none.
    pub fn listener<'p>(&self, plan: &'p Plan) -> Result<&'p Arc<Listener>, String> {
        // A gateway's listeners have no direction, or Istio's for gateways, which is outbound.
        let fits = |direction: Direction| {
            direction == self.direction || (self.direction, direction) == (Direction::Unspecified, Direction::Outbound)
        };
        let mut listeners: Vec<_> = plan.listeners.values().filter(|listener| fits(listener.direction)).collect();
        listeners.sort_by(|left, right| left.name.cmp(&right.name));
        if let Some(capturing) = listeners.iter().find(|listener| listener.use_original_dst && listener.bind_to_port) {
            return Ok(plan.listener_for(capturing, self.destination));
        }
        let by_address = |fits: &dyn Fn(SocketAddr) -> bool| {
            listeners.iter().copied().find(|listener| listener.addresses.iter().any(|bind| fits(bind.address)))
        };
        by_address(&|bound| bound == self.destination)
            .or_else(|| by_address(&|bound| bound.ip().is_unspecified() && bound.port() == self.destination.port()))
            .or_else(|| by_address(&|bound| bound.port() == self.destination.port()))
            .or_else(|| {
                let names = [self.destination.ip().to_string(), "0.0.0.0".to_owned()]
                    .map(|address| format!("{address}_{}", self.destination.port()));
                names.iter().find_map(|name| listeners.iter().copied().find(|listener| *listener.name == **name))
            })
            .or_else(|| listeners.iter().copied().find(|listener| listener.original_dst))
            .ok_or_else(|| {
                let names: Vec<&str> = listeners.iter().map(|listener| &*listener.name).collect();
                format!("no listener takes a connection to {}; there are: {}", self.destination, names.join(", "))
            })
    }

    /// What RBAC rules may ask about the connection.
    pub fn connection(&self) -> rbac::Connection<'_> {
        rbac::Connection {
            source: self.source.ip(),
            direct: self.source.ip(),
            destination: self.destination,
            server_name: match &self.opening {
                Opening::Tls { server_name, .. } => server_name.as_deref(),
                Opening::Http(_) => None,
            },
            names: self.names.as_ref(),
        }
    }

    /// Whether the filter chain shakes hands, and the client is known not to.
    pub fn is_in_plain_text_to(&self, chain: &FilterChain) -> bool {
        chain.tls.is_some() && self.tls == Some(false)
    }

    /// Whether the filter chain does not shake hands, and the client is known to.
    pub fn is_in_tls_to(&self, chain: &FilterChain) -> bool {
        chain.tls.is_none() && self.tls == Some(true)
    }
}
