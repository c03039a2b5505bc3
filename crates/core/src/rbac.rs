//! Role-based access control: which policy takes a request or a connection, and so whether it is let in.
//!
//! Source: Envoy's filters `envoy.filters.http.rbac` and `envoy.filters.network.rbac`. Rules ask about the connection (who the client is,
//! where it comes from, where it wanted to go) and about the request (headers, path, the client that `x-forwarded-for` names). What they
//! ask about the connection is the same for all of its requests, so a rule is decided in two steps: [`Rbac::given`] answers what the
//! connection answers, and what is left, a [`Standing`], is asked about each request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::address::Cidr;
use crate::matching::{HeaderMatch, StringMatch};
use crate::request::{RequestHead, path_only};
use crate::respond::{Cause, LocalReply};

mod compile;

/// The names in a client's verified certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Subject alternative names that are URIs: SPIFFE IDs.
    pub uris: Box<[Box<str>]>,
    /// Subject alternative names that are DNS names.
    pub dns: Box<[Box<str>]>,
    /// `CN=web,O=Weft`
    pub subject: Box<str>,
}

/// What rules may ask about a connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The client: where a proxy speaks for it (PROXY protocol), whom that names.
    pub source: IpAddr,
    /// The other end of the socket.
    pub direct: IpAddr,
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// SNI, in lower case.
    pub server_name: Option<&'a str>,
    /// The client's names, if the connection is TLS; there are none in them where it showed no certificate.
    pub names: Option<&'a Names>,
}

/// What the rules do with those whom a policy takes, and with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Let in whom a policy takes, and nobody else.
    Allow,
    /// Refuse whom a policy takes, and let in the others.
    Deny,
    /// Let in everybody.
    Log,
}

impl Action {
    /// As it stands in resources.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Log => "LOG",
        }
    }
}

/// A condition of rules; `L` is what a leaf asks.
#[derive(Debug, Clone)]
enum Condition<L> {
    Always,
    Never,
    All(Box<[Condition<L>]>),
    OneOf(Box<[Condition<L>]>),
    Not(Box<Condition<L>>),
    Leaf(L),
}

/// What a leaf of a configured rule asks.
#[derive(Debug, Clone)]
enum Question {
    Connection(ConnectionQuestion),
    Request(Arc<RequestQuestion>),
}

/// Answered once for each connection.
#[derive(Debug, Clone)]
enum ConnectionQuestion {
    /// TLS; and if there is a matcher, one of the names matches.
    Authenticated(Option<StringMatch>),
    Source(Cidr),
    Direct(Cidr),
    Destination(Cidr),
    /// From the first to below the second.
    DestinationPort(u32, u32),
    ServerName(StringMatch),
}

/// Answered for each request.
#[derive(Debug)]
enum RequestQuestion {
    Header(HeaderMatch),
    /// Without query and fragment.
    Path(StringMatch),
    /// The client as the connection manager knows it.
    Client(Cidr),
}

impl ConnectionQuestion {
    fn holds(&self, connection: &Connection<'_>) -> bool {
        match self {
            Self::Authenticated(matcher) => match (connection.names, matcher) {
                (None, _) => false,
                // Whoever the listener's TLS settings let in.
                (Some(_), None) => true,
                // The first kind of name need not be the one that matches.
                (Some(names), Some(matcher)) => {
                    names.uris.iter().chain(&names.dns).any(|name| matcher.is_match(name.as_bytes()))
                        || matcher.is_match(names.subject.as_bytes())
                }
            },
            Self::Source(range) => range.contains(connection.source),
            Self::Direct(range) => range.contains(connection.direct),
            Self::Destination(range) => range.contains(connection.destination.ip()),
            Self::DestinationPort(start, end) => (*start..*end).contains(&u32::from(connection.destination.port())),
            Self::ServerName(matcher) => matcher.is_match(connection.server_name.unwrap_or_default().as_bytes()),
        }
    }
}

impl Condition<Question> {
    /// The same condition for the requests of one connection.
    fn given(&self, connection: &Connection<'_>) -> Condition<Arc<RequestQuestion>> {
        match self {
            Self::Always => Condition::Always,
            Self::Never => Condition::Never,
            Self::Leaf(Question::Connection(question)) if question.holds(connection) => Condition::Always,
            Self::Leaf(Question::Connection(_)) => Condition::Never,
            Self::Leaf(Question::Request(question)) => Condition::Leaf(Arc::clone(question)),
            Self::Not(inner) => match inner.given(connection) {
                Condition::Always => Condition::Never,
                Condition::Never => Condition::Always,
                open => Condition::Not(Box::new(open)),
            },
            Self::All(parts) => {
                let mut open = Vec::new();
                for part in parts {
                    match part.given(connection) {
                        Condition::Never => return Condition::Never,
                        Condition::Always => {}
                        part => open.push(part),
                    }
                }
                Condition::of(open, Condition::Always, Condition::All)
            }
            Self::OneOf(parts) => {
                let mut open = Vec::new();
                for part in parts {
                    match part.given(connection) {
                        Condition::Always => return Condition::Always,
                        Condition::Never => {}
                        part => open.push(part),
                    }
                }
                Condition::of(open, Condition::Never, Condition::OneOf)
            }
        }
    }
}

impl<L> Condition<L> {
    /// A condition of several parts, *empty* if there are none.
    fn of(mut parts: Vec<Self>, empty: Self, many: fn(Box<[Self]>) -> Self) -> Self {
        match parts.len() {
            0 => empty,
            1 => parts.pop().unwrap_or(empty),
            _ => many(parts.into()),
        }
    }
}

impl Condition<Arc<RequestQuestion>> {
    fn holds<R: RequestHead + ?Sized>(&self, request: &R, client: IpAddr) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::All(parts) => parts.iter().all(|part| part.holds(request, client)),
            Self::OneOf(parts) => parts.iter().any(|part| part.holds(request, client)),
            Self::Not(inner) => !inner.holds(request, client),
            Self::Leaf(question) => match &**question {
                RequestQuestion::Header(header) => header.is_match(request),
                // A CONNECT has no path, and so none that could match.
                RequestQuestion::Path(matcher) => {
                    let path = path_only(request.path());
                    !path.is_empty() && matcher.is_match(path)
                }
                RequestQuestion::Client(range) => range.contains(client),
            },
        }
    }
}

/// Compiled rules.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What is done.
    pub action: Action,
    /// By name, which is the order in which they are asked.
    policies: Box<[Policy<Question>]>,
}

/// A named condition.
#[derive(Debug, Clone)]
struct Policy<L> {
    name: Arc<str>,
    condition: Condition<L>,
}

/// What is left of rules for the requests of one connection: no policy that cannot take any of them, and none behind one that takes all.
#[derive(Debug, Clone)]
pub struct OpenRules {
    action: Action,
    policies: Box<[Policy<Arc<RequestQuestion>>]>,
}

impl Rules {
    fn given(&self, connection: &Connection<'_>) -> OpenRules {
        let mut policies = Vec::new();
        for Policy { name, condition } in &self.policies {
            let condition = condition.given(connection);
            if matches!(condition, Condition::Never) {
                continue;
            }
            let takes_all = matches!(condition, Condition::Always);
            // A text of its own: each verdict counts its users, and workers are not to do that in the same place.
            policies.push(Policy { name: Arc::from(&**name), condition });
            if takes_all {
                break;
            }
        }
        OpenRules { action: self.action, policies: policies.into() }
    }
}

/// What rules say about one request or connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is let in.
    pub allowed: bool,
    /// The first policy that takes it.
    pub policy: Option<Arc<str>>,
}

impl Verdict {
    /// `response_code_details` of a refusal, and why a connection was ended. White space would break a record in two.
    pub fn details(&self) -> String {
        let policy = self.policy.as_deref().unwrap_or("none");
        let policy = policy.replace(|character: char| character.is_ascii_whitespace(), "_");
        format!("{}[{policy}]", Cause::AccessDenied.row().details)
    }

    /// The answer to a request that is not let in.
    pub fn reply(&self) -> LocalReply {
        LocalReply { details: self.details().into(), ..LocalReply::from(Cause::AccessDenied) }
    }
}

impl OpenRules {
    /// What is done.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Decide about a request of *client*, the peer or whom it speaks for.
    pub fn verdict<R: RequestHead + ?Sized>(&self, request: &R, client: IpAddr) -> Verdict {
        let taken = self.policies.iter().find(|policy| policy.condition.holds(request, client));
        Verdict {
            allowed: match self.action {
                Action::Allow => taken.is_some(),
                Action::Deny => taken.is_none(),
                Action::Log => true,
            },
            policy: taken.map(|policy| Arc::clone(&policy.name)),
        }
    }
}

/// Compiled rules of one filter, or of what takes their place on a route. Without any everybody is let in.
#[derive(Debug, Clone, Default)]
pub struct Rbac {
    /// Those that decide.
    pub rules: Option<Rules>,
    /// Those that are only counted and told.
    pub shadow_rules: Option<Rules>,
}

impl Rbac {
    /// What is left to ask about the requests of *connection*.
    pub fn given(&self, connection: &Connection<'_>) -> Standing {
        let given = |rules: &Option<Rules>| rules.as_ref().map(|rules| rules.given(connection));
        Standing { rules: given(&self.rules), shadow_rules: given(&self.shadow_rules) }
    }
}

/// What [`Rbac`] has left to ask about the requests of one connection.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Those that decide.
    pub rules: Option<OpenRules>,
    /// Those that are only counted and told.
    pub shadow_rules: Option<OpenRules>,
}

/// What both kinds of rules say; `None` where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// What holds.
    pub rules: Option<Verdict>,
    /// What would hold.
    pub shadow_rules: Option<Verdict>,
}

impl Verdicts {
    /// Why a request or connection is not let in.
    pub fn refusal(&self) -> Option<&Verdict> {
        self.rules.as_ref().filter(|verdict| !verdict.allowed)
    }
}

impl Standing {
    /// Decide about a request of *client*, the peer or whom it speaks for.
    pub fn verdicts<R: RequestHead + ?Sized>(&self, request: &R, client: IpAddr) -> Verdicts {
        let verdict = |rules: &Option<OpenRules>| rules.as_ref().map(|rules| rules.verdict(request, client));
        Verdicts { rules: verdict(&self.rules), shadow_rules: verdict(&self.shadow_rules) }
    }
}

/// Names under which a filter counts, with their labels: as Envoy's Prometheus endpoint spells them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CounterNames {
    /// Let in by the rules.
    pub allowed: Box<str>,
    /// Refused by the rules.
    pub denied: Box<str>,
    /// Let in by the shadow rules, if they held.
    pub shadow_allowed: Box<str>,
    /// Refused by the shadow rules, if they held.
    pub shadow_denied: Box<str>,
}

/// Keys under which shadow rules tell what they found: Envoy's dynamic metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowKeys {
    /// Of the namespace [`HTTP_FILTER`] or [`NETWORK_FILTER`].
    pub namespace: &'static str,
    /// `shadow_engine_result`, after the filter's prefix: `allowed` or `denied`.
    pub result: Box<str>,
    /// `shadow_effective_policy_id`, after the filter's prefix: the policy, if one takes the request.
    pub policy: Box<str>,
}

/// The namespace of what the HTTP filter tells.
pub const HTTP_FILTER: &str = "envoy.filters.http.rbac";
/// The namespace of what the network filter tells.
pub const NETWORK_FILTER: &str = "envoy.filters.network.rbac";

/// A compiled `envoy.filters.http.rbac`.
#[derive(Debug, Clone)]
pub struct HttpRbac {
    /// The key of `typed_per_filter_config`: there may be several such filters.
    pub name: Arc<str>,
    /// Where no route says otherwise.
    pub rbac: Arc<Rbac>,
    /// How it counts.
    pub counters: Arc<CounterNames>,
    /// How its shadow rules tell.
    pub shadow_keys: Arc<ShadowKeys>,
}

/// A compiled `envoy.filters.network.rbac`.
#[derive(Debug, Clone)]
pub struct NetworkRbac {
    /// What is asked when a connection begins.
    pub rbac: Rbac,
    /// A connection that is refused is held so long before it is closed.
    pub delay_deny: Option<Duration>,
    /// How it counts.
    pub counters: Arc<CounterNames>,
    /// How its shadow rules tell.
    pub shadow_keys: Arc<ShadowKeys>,
}

impl NetworkRbac {
    /// Decide about a connection.
    pub fn verdicts(&self, connection: &Connection<'_>) -> Verdicts {
        // Nothing is left to ask about requests: compilation has made questions about the connection of all.
        self.rbac.given(connection).verdicts(&crate::request::OwnedRequest::default(), connection.source)
    }
}

/// What a level of a route configuration says about an RBAC filter.
#[derive(Debug, Clone)]
pub enum RbacOverride {
    /// These rules instead of the filter's; none let everybody in.
    Rbac(Arc<Rbac>),
    /// The filter does nothing here (`FilterConfig.disabled`).
    Disabled,
}
