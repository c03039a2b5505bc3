//! From Envoy's `RBAC` messages to conditions.

use std::sync::Arc;

use weft_protos::envoy::config::rbac::v3 as proto;
use weft_protos::envoy::config::rbac::v3::permission::Rule;
use weft_protos::envoy::config::rbac::v3::principal::Identifier;
use weft_protos::envoy::extensions::filters::http::rbac::v3 as http;
use weft_protos::envoy::extensions::filters::network::rbac::v3 as network;
use weft_protos::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;
use weft_protos::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher};

use super::{
    Action, Condition, ConnectionQuestion, CounterNames, HTTP_FILTER, HttpRbac, NETWORK_FILTER, NetworkRbac, Policy,
    Question, Rbac, RequestQuestion, Rules, ShadowKeys,
};
use crate::address::Cidr;
use crate::compile::Context;
use crate::matching::{HeaderMatch, StringMatch};

/// Ports end below this.
const PORTS_END: i32 = 65536;

/// What the rules are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Each request.
    Requests,
    /// A connection that may not be HTTP.
    Connections,
}

impl Rbac {
    pub(crate) fn compile(context: &mut Context, filter: &http::Rbac) -> Self {
        Self {
            rules: rules(context, "rules", filter.rules.as_ref(), Scope::Requests),
            shadow_rules: rules(context, "shadow_rules", filter.shadow_rules.as_ref(), Scope::Requests),
        }
    }
}

impl HttpRbac {
    pub(crate) fn compile(context: &mut Context, name: &str, filter: &http::Rbac) -> Self {
        Self {
            name: name.into(),
            rbac: Arc::new(Rbac::compile(context, filter)),
            counters: http_counters(&filter.rules_stat_prefix, &filter.shadow_rules_stat_prefix),
            shadow_keys: shadow_keys(HTTP_FILTER, &filter.shadow_rules_stat_prefix),
        }
    }
}

impl NetworkRbac {
    pub(crate) fn compile(context: &mut Context, filter: &network::Rbac) -> Self {
        if filter.stat_prefix.is_empty() {
            context.refuse_at("stat_prefix", "required");
        }
        Self {
            rbac: Rbac {
                rules: rules(context, "rules", filter.rules.as_ref(), Scope::Connections),
                shadow_rules: rules(context, "shadow_rules", filter.shadow_rules.as_ref(), Scope::Connections),
            },
            delay_deny: context.duration("delay_deny", filter.delay_deny.as_ref()).filter(|delay| !delay.is_zero()),
            counters: network_counters(&filter.stat_prefix, &filter.shadow_rules_stat_prefix),
            shadow_keys: shadow_keys(NETWORK_FILTER, &filter.shadow_rules_stat_prefix),
        }
    }
}

/// What Envoy's endpoint makes labels of are the prefixes: those of an HTTP filter's rules, that of a network filter itself.
fn http_counters(rules: &str, shadow_rules: &str) -> Arc<CounterNames> {
    let labels = |prefix: &str| match prefix.trim_end_matches('.') {
        "" => String::new(),
        prefix => format!("{{envoy_rbac_http_prefix=\"{}\"}}", escaped(prefix)),
    };
    let (rules, shadow_rules) = (labels(rules), labels(shadow_rules));
    Arc::new(CounterNames {
        allowed: format!("envoy_http_rbac_allowed{rules}").into(),
        denied: format!("envoy_http_rbac_denied{rules}").into(),
        shadow_allowed: format!("envoy_http_rbac_shadow_allowed{shadow_rules}").into(),
        shadow_denied: format!("envoy_http_rbac_shadow_denied{shadow_rules}").into(),
    })
}

fn network_counters(prefix: &str, shadow_rules: &str) -> Arc<CounterNames> {
    let labels = format!("{{envoy_rbac_prefix=\"{}\"}}", escaped(prefix.trim_end_matches('.')));
    let step = match shadow_rules.trim_end_matches('.') {
        "" => String::new(),
        prefix => {
            let spelled = |character: char| !character.is_ascii_alphanumeric() && character != '_';
            format!("{}_", prefix.replace(spelled, "_"))
        }
    };
    Arc::new(CounterNames {
        allowed: format!("envoy_rbac_allowed{labels}").into(),
        denied: format!("envoy_rbac_denied{labels}").into(),
        shadow_allowed: format!("envoy_rbac_{step}shadow_allowed{labels}").into(),
        shadow_denied: format!("envoy_rbac_{step}shadow_denied{labels}").into(),
    })
}

/// A label's value in Prometheus's text format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn shadow_keys(namespace: &'static str, prefix: &str) -> Arc<ShadowKeys> {
    Arc::new(ShadowKeys {
        namespace,
        result: format!("{prefix}shadow_engine_result").into(),
        policy: format!("{prefix}shadow_effective_policy_id").into(),
    })
}

fn rules(context: &mut Context, field: &str, rules: Option<&proto::Rbac>, scope: Scope) -> Option<Rules> {
    let rules = rules?;
    let action = match proto::rbac::Action::try_from(rules.action) {
        Ok(proto::rbac::Action::Allow) => Action::Allow,
        Ok(proto::rbac::Action::Deny) => Action::Deny,
        Ok(proto::rbac::Action::Log) => Action::Log,
        Err(_) => {
            context.refuse_at(&format!("{field}.action"), format!("{} is no action", rules.action));
            return None;
        }
    };
    let policies = rules.policies.iter().filter_map(|(name, policy)| {
        let condition = context.at(&format!("{field}.policies[{name}]"), |context| condition(context, policy, scope));
        Some(Policy { name: name.as_str().into(), condition: condition? })
    });
    Some(Rules { action, policies: policies.collect() })
}

/// `None` where a part was not understood: a policy must not be taken for one that is looser, or stricter, than what was written.
fn condition(context: &mut Context, policy: &proto::Policy, scope: Scope) -> Option<Condition<Question>> {
    if policy.condition.is_some() || policy.checked_condition.is_some() {
        context.refuse_at("condition", "weft-proxy has no CEL");
        return None;
    }
    let permissions =
        several(context, "permissions", &policy.permissions, |context, rule| permission(context, rule, scope));
    let principals = several(context, "principals", &policy.principals, |context, id| principal(context, id, scope));
    Some(Condition::All(Box::new([one_of(permissions?), one_of(principals?)])))
}

type Conditions = Vec<Condition<Question>>;

fn one_of(parts: Conditions) -> Condition<Question> {
    Condition::of(parts, Condition::Never, Condition::OneOf)
}

fn all(parts: Conditions) -> Condition<Question> {
    Condition::of(parts, Condition::Always, Condition::All)
}

/// A list that Envoy wants to have at least one item.
fn several<P>(
    context: &mut Context,
    field: &str,
    items: &[P],
    mut compile: impl FnMut(&mut Context, &P) -> Option<Condition<Question>>,
) -> Option<Conditions> {
    if items.is_empty() {
        context.refuse_at(field, "at least one is required");
    }
    // All of them, so that every problem is told.
    let compiled: Vec<_> = context.each(field, items, |context, item| compile(context, item));
    compiled.into_iter().collect::<Option<Vec<_>>>().filter(|compiled| !compiled.is_empty())
}

fn permission(context: &mut Context, permission: &proto::Permission, scope: Scope) -> Option<Condition<Question>> {
    let recurse = |context: &mut Context, rule: &proto::Permission| self::permission(context, rule, scope);
    match permission.rule.as_ref() {
        Some(Rule::AndRules(set)) => several(context, "and_rules.rules", &set.rules, recurse).map(all),
        Some(Rule::OrRules(set)) => several(context, "or_rules.rules", &set.rules, recurse).map(one_of),
        Some(Rule::NotRule(rule)) => not(context.at("not_rule", |context| recurse(context, rule))),
        Some(Rule::Any(value)) => any(context, *value),
        Some(Rule::Header(matcher)) => header(context, matcher, scope),
        Some(Rule::UrlPath(matcher)) => path(context, matcher, scope),
        Some(Rule::DestinationIp(range)) => {
            let range = context.at("destination_ip", |context| Cidr::compile(context, range))?;
            Some(about_connection(ConnectionQuestion::Destination(range)))
        }
        Some(Rule::DestinationPort(port)) => match u16::try_from(*port) {
            Ok(port) => {
                Some(about_connection(ConnectionQuestion::DestinationPort(u32::from(port), u32::from(port) + 1)))
            }
            Err(_) => {
                context.refuse_at("destination_port", format!("{port} is not a port"));
                None
            }
        },
        Some(Rule::DestinationPortRange(range)) => {
            if !(0 <= range.start && range.start < range.end && range.end <= PORTS_END) {
                let reason = format!("from {} to below {} is not a range of ports", range.start, range.end);
                context.refuse_at("destination_port_range", reason);
                return None;
            }
            // Neither is negative.
            let (start, end) = (range.start.unsigned_abs(), range.end.unsigned_abs());
            Some(about_connection(ConnectionQuestion::DestinationPort(start, end)))
        }
        Some(Rule::RequestedServerName(matcher)) => {
            let matcher = text(context, "requested_server_name", matcher)?;
            Some(about_connection(ConnectionQuestion::ServerName(matcher)))
        }
        Some(Rule::Metadata(_)) => unsupported(context, "metadata", "no filter of weft-proxy makes dynamic metadata"),
        Some(Rule::SourcedMetadata(_)) => {
            unsupported(context, "sourced_metadata", "no filter of weft-proxy makes dynamic metadata")
        }
        Some(Rule::Matcher(_)) => unsupported(context, "matcher", "weft-proxy has no extensions of permissions"),
        Some(Rule::UriTemplate(_)) => unsupported(context, "uri_template", "weft-proxy has no path templates"),
        None => {
            context.refuse("a permission needs a rule");
            None
        }
    }
}

fn principal(context: &mut Context, principal: &proto::Principal, scope: Scope) -> Option<Condition<Question>> {
    let recurse = |context: &mut Context, id: &proto::Principal| self::principal(context, id, scope);
    let range = |context: &mut Context, field: &str, range| context.at(field, |context| Cidr::compile(context, range));
    match principal.identifier.as_ref() {
        Some(Identifier::AndIds(set)) => several(context, "and_ids.ids", &set.ids, recurse).map(all),
        Some(Identifier::OrIds(set)) => several(context, "or_ids.ids", &set.ids, recurse).map(one_of),
        Some(Identifier::NotId(id)) => not(context.at("not_id", |context| recurse(context, id))),
        Some(Identifier::Any(value)) => any(context, *value),
        Some(Identifier::Authenticated(authenticated)) => {
            let name = match &authenticated.principal_name {
                None => None,
                Some(matcher) => Some(text(context, "authenticated.principal_name", matcher)?),
            };
            Some(about_connection(ConnectionQuestion::Authenticated(name)))
        }
        Some(Identifier::SourceIp(source)) => {
            Some(about_connection(ConnectionQuestion::Source(range(context, "source_ip", source)?)))
        }
        Some(Identifier::DirectRemoteIp(direct)) => {
            Some(about_connection(ConnectionQuestion::Direct(range(context, "direct_remote_ip", direct)?)))
        }
        Some(Identifier::RemoteIp(client)) => {
            let client = range(context, "remote_ip", client)?;
            Some(match scope {
                Scope::Requests => about_request(RequestQuestion::Client(client)),
                Scope::Connections => about_connection(ConnectionQuestion::Source(client)),
            })
        }
        Some(Identifier::Header(matcher)) => header(context, matcher, scope),
        Some(Identifier::UrlPath(matcher)) => path(context, matcher, scope),
        Some(Identifier::Metadata(_)) => {
            unsupported(context, "metadata", "no filter of weft-proxy makes dynamic metadata")
        }
        Some(Identifier::SourcedMetadata(_)) => {
            unsupported(context, "sourced_metadata", "no filter of weft-proxy makes dynamic metadata")
        }
        Some(Identifier::FilterState(_)) => unsupported(context, "filter_state", "weft-proxy has no filter state"),
        Some(Identifier::Custom(_)) => unsupported(context, "custom", "weft-proxy has no extensions of principals"),
        None => {
            context.refuse("a principal needs an identifier");
            None
        }
    }
}

fn about_connection(question: ConnectionQuestion) -> Condition<Question> {
    Condition::Leaf(Question::Connection(question))
}

fn about_request(question: RequestQuestion) -> Condition<Question> {
    Condition::Leaf(Question::Request(Arc::new(question)))
}

fn not(inner: Option<Condition<Question>>) -> Option<Condition<Question>> {
    inner.map(|inner| Condition::Not(Box::new(inner)))
}

fn any(context: &mut Context, value: bool) -> Option<Condition<Question>> {
    if !value {
        // Envoy: the only value is true.
        context.refuse_at("any", "false is not a condition");
        return None;
    }
    Some(Condition::Always)
}

fn unsupported(context: &mut Context, field: &str, reason: &str) -> Option<Condition<Question>> {
    context.refuse_at(field, reason);
    None
}

fn text(context: &mut Context, field: &str, matcher: &StringMatcher) -> Option<StringMatch> {
    context.at(field, |context| StringMatch::compile(context, matcher))
}

fn header(
    context: &mut Context,
    matcher: &weft_protos::envoy::config::route::v3::HeaderMatcher,
    scope: Scope,
) -> Option<Condition<Question>> {
    if scope == Scope::Connections {
        // Envoy refuses it as well.
        return unsupported(context, "header", "a connection has no headers");
    }
    let matcher = context.at("header", |context| HeaderMatch::compile(context, matcher))?;
    Some(about_request(RequestQuestion::Header(matcher)))
}

fn path(context: &mut Context, matcher: &PathMatcher, scope: Scope) -> Option<Condition<Question>> {
    let Some(PathRule::Path(matcher)) = &matcher.rule else {
        context.refuse_at("url_path", "a path is required");
        return None;
    };
    let matcher = text(context, "url_path.path", matcher)?;
    Some(match scope {
        Scope::Requests => about_request(RequestQuestion::Path(matcher)),
        // As in Envoy: a connection has no path, and so none that could match.
        Scope::Connections => Condition::Never,
    })
}
