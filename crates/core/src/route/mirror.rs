//! Copies of requests to other clusters.

use std::borrow::Cow;
use std::sync::Arc;

use weft_protos::envoy::config::route::v3::route_action::RequestMirrorPolicy;

use super::compile::runtime_fraction;
use crate::compile::Context;
use crate::random::Fraction;

/// A copy of the request to another cluster, whose answer is dropped.
#[derive(Debug)]
pub struct Mirror {
    /// Cluster name.
    pub cluster: Arc<str>,
    /// For which share of requests.
    pub share: Fraction,
    /// What becomes of the host.
    pub host: MirrorHost,
}

/// The host of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorHost {
    /// With `-shadow` before the port, so that whoever takes it can tell.
    Shadow,
    /// As the request goes upstream.
    Same,
    /// This one.
    Literal(Box<str>),
}

impl MirrorHost {
    /// The host of a copy of a request to *authority*; `None`: the same.
    pub fn of(&self, authority: &[u8]) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Same => None,
            Self::Literal(host) => Some(Cow::Borrowed(host.as_bytes())),
            Self::Shadow => {
                let port = authority.iter().rposition(|&byte| byte == b':');
                // RFC 3986 3.2.2: colons of an IPv6 address are in brackets.
                let bracket = authority.iter().rposition(|&byte| byte == b']');
                let end = port.filter(|port| bracket.is_none_or(|bracket| bracket < *port)).unwrap_or(authority.len());
                Some(Cow::Owned([&authority[..end], b"-shadow", &authority[end..]].concat()))
            }
        }
    }
}

impl Mirror {
    pub(super) fn compile(context: &mut Context, policy: &RequestMirrorPolicy) -> Self {
        if policy.cluster.is_empty() {
            context.refuse_at("cluster", "required");
        }
        Self {
            cluster: policy.cluster.as_str().into(),
            share: policy
                .runtime_fraction
                .as_ref()
                .and_then(|share| context.at("runtime_fraction", |context| runtime_fraction(context, share)))
                .unwrap_or(Fraction::ALWAYS),
            host: match policy.host_rewrite_literal.as_str() {
                "" if policy.disable_shadow_host_suffix_append => MirrorHost::Same,
                "" => MirrorHost::Shadow,
                host => MirrorHost::Literal(host.into()),
            },
        }
    }
}
