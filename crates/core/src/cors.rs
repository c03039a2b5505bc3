//! Cross-origin resource sharing: which pages of other sites may see an answer, and the answer to a browser that asks first.
//!
//! Source: Envoy's `envoy.filters.http.cors`. Each level of a route configuration may have a policy; what a level does not say, the less
//! specific ones say. [`Cors::merge`] does that when a route is compiled, so that a request meets one policy.

use std::borrow::Cow;
use std::sync::Arc;

use weft_protos::envoy::config::core::v3::RuntimeFractionalPercent;
use weft_protos::envoy::extensions::filters::http::cors::v3 as proto;

use crate::compile::Context;
use crate::matching::StringMatch;
use crate::random::{Draw, Fraction, Random};
use crate::request::RequestHead;

/// The name of the filter, and the key under which routes configure it.
pub const CORS_FILTER: &str = "envoy.filters.http.cors";

/// A compiled `CorsPolicy` of one level; what is empty or absent is left to less specific levels.
#[derive(Debug, Clone, Default)]
pub struct CorsPolicy {
    origins: Box<[StringMatch]>,
    methods: Box<str>,
    headers: Box<str>,
    expose: Box<str>,
    max_age: Box<str>,
    credentials: Option<bool>,
    private_network: Option<bool>,
    forward_not_matching_preflights: Option<bool>,
    /// Of this level alone.
    enabled: Option<Fraction>,
    /// Of this level alone.
    shadow_enabled: Option<Fraction>,
}

/// What a level of a route configuration says about the filter.
#[derive(Debug, Clone)]
pub enum CorsOverride {
    /// This policy.
    Policy(Arc<CorsPolicy>),
    /// The filter does nothing here (`FilterConfig.disabled`).
    Disabled,
}

/// The policy of a route, all levels together.
#[derive(Debug, Clone)]
pub struct Cors {
    /// Whose pages may see answers.
    pub origins: Box<[StringMatch]>,
    /// One of the matchers takes `*`, which stands for every origin.
    pub any_origin: bool,
    /// `access-control-allow-methods`; `*`: the method asked for; empty: no such header.
    pub methods: Box<str>,
    /// `access-control-allow-headers`; `*`: the headers asked for; empty: no such header.
    pub headers: Box<str>,
    /// `access-control-expose-headers`; empty: no such header.
    pub expose: Box<str>,
    /// `access-control-max-age`, seconds; empty: no such header.
    pub max_age: Box<str>,
    /// Whether pages may send cookies.
    pub credentials: bool,
    /// Whether pages of public networks may ask.
    pub private_network: bool,
    /// Send a preflight request of an origin that no matcher takes upstream, instead of answering it.
    pub forward_not_matching_preflights: bool,
    /// The share of requests for which the policy holds.
    pub enabled: Fraction,
    /// The share of the others that is counted.
    pub shadow_enabled: Fraction,
}

/// What the filter makes of a request from a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It is counted; the policy does not hold for it.
    Counted,
    /// It goes on; its answer gets headers if the origin is allowed.
    PassedOn,
    /// It asks what would be allowed, and is answered here.
    Answered,
}

/// A request from a page: it has an `Origin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrossOrigin {
    /// Whether a matcher takes the origin.
    pub allowed: bool,
    /// What becomes of it.
    pub treatment: Treatment,
}

const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
const ALLOW_METHODS: &str = "access-control-allow-methods";
const ALLOW_HEADERS: &str = "access-control-allow-headers";
const ALLOW_PRIVATE_NETWORK: &str = "access-control-allow-private-network";
const EXPOSE_HEADERS: &str = "access-control-expose-headers";
const MAX_AGE: &str = "access-control-max-age";
const REQUEST_METHOD: &str = "access-control-request-method";
const REQUEST_HEADERS: &str = "access-control-request-headers";
const REQUEST_PRIVATE_NETWORK: &str = "access-control-request-private-network";

impl CorsPolicy {
    pub(crate) fn compile(context: &mut Context, policy: &proto::CorsPolicy) -> Self {
        let origins =
            context.each("allow_origin_string_match", &policy.allow_origin_string_match, StringMatch::compile);
        let mut share = |field: &str, share: Option<&RuntimeFractionalPercent>| {
            let share = share?;
            if share.default_value.is_none() {
                context.refuse_at(field, "default_value is required");
            }
            share.default_value.as_ref().map(Fraction::compile)
        };
        Self {
            enabled: share("filter_enabled", policy.filter_enabled.as_ref()),
            shadow_enabled: share("shadow_enabled", policy.shadow_enabled.as_ref()),
            origins: origins.into_iter().flatten().collect(),
            methods: policy.allow_methods.as_str().into(),
            headers: policy.allow_headers.as_str().into(),
            expose: policy.expose_headers.as_str().into(),
            max_age: policy.max_age.as_str().into(),
            credentials: policy.allow_credentials.as_ref().map(|value| value.value),
            private_network: policy.allow_private_network_access.as_ref().map(|value| value.value),
            forward_not_matching_preflights: policy.forward_not_matching_preflights.as_ref().map(|value| value.value),
        }
    }
}

impl Cors {
    /// The policy of a route from what its levels say, the most specific first. `None`: no level has one, or the most specific that says
    /// anything turns the filter off.
    pub fn merge<'l>(levels: impl IntoIterator<Item = Option<&'l CorsOverride>>) -> Option<Self> {
        let levels: Vec<_> = levels.into_iter().flatten().collect();
        if matches!(levels.first(), Some(CorsOverride::Disabled)) {
            return None;
        }
        let policies: Vec<&CorsPolicy> = levels
            .into_iter()
            .filter_map(|level| match level {
                CorsOverride::Policy(policy) => Some(&**policy),
                CorsOverride::Disabled => None,
            })
            .collect();
        let first = policies.first()?;
        let text = |read: fn(&CorsPolicy) -> &str| -> Box<str> {
            policies.iter().map(|policy| read(policy)).find(|text| !text.is_empty()).unwrap_or_default().into()
        };
        let origins = policies
            .iter()
            .map(|policy| &policy.origins)
            .find(|origins| !origins.is_empty())
            .cloned()
            .unwrap_or_default();
        Some(Self {
            any_origin: origins.iter().any(|matcher| matcher.is_match(b"*")),
            origins,
            methods: text(|policy| &policy.methods),
            headers: text(|policy| &policy.headers),
            expose: text(|policy| &policy.expose),
            max_age: text(|policy| &policy.max_age),
            credentials: policies.iter().find_map(|policy| policy.credentials).unwrap_or(false),
            private_network: policies.iter().find_map(|policy| policy.private_network).unwrap_or(false),
            forward_not_matching_preflights: policies
                .iter()
                .find_map(|policy| policy.forward_not_matching_preflights)
                .unwrap_or(true),
            enabled: first.enabled.unwrap_or(Fraction::ALWAYS),
            shadow_enabled: first.shadow_enabled.unwrap_or(Fraction::NEVER),
        })
    }

    /// What the filter makes of a request; `None`: it is not from a page, or the policy is off for it.
    pub fn consider<R, D>(&self, request: &R, random: &mut D) -> Option<CrossOrigin>
    where
        R: RequestHead + ?Sized,
        D: Random + ?Sized,
    {
        let origin = request.header("origin").filter(|origin| !origin.is_empty())?;
        let is_enabled = self.enabled.strikes(Draw::Cors, random);
        if !is_enabled && !self.shadow_enabled.strikes(Draw::Cors, random) {
            return None;
        }
        let allowed = self.any_origin || self.origins.iter().any(|matcher| matcher.is_match(&origin));
        let is_preflight =
            request.method() == b"OPTIONS" && request.header(REQUEST_METHOD).is_some_and(|method| !method.is_empty());
        let treatment = if !is_enabled {
            Treatment::Counted
        } else if is_preflight && (allowed || !self.forward_not_matching_preflights) {
            Treatment::Answered
        } else {
            Treatment::PassedOn
        };
        Some(CrossOrigin { allowed, treatment })
    }

    /// What every answer says to a page of an allowed *origin*.
    pub fn answer_headers<'a>(&'a self, origin: &'a [u8]) -> impl Iterator<Item = (&'static str, &'a [u8])> {
        let credentials = self.credentials.then_some((ALLOW_CREDENTIALS, &b"true"[..]));
        let expose = (!self.expose.is_empty()).then_some((EXPOSE_HEADERS, self.expose.as_bytes()));
        [Some((ALLOW_ORIGIN, origin)), credentials, expose].into_iter().flatten()
    }

    /// What the answer to a preflight *request* says besides.
    pub fn preflight_headers<'a, R>(&'a self, request: &'a R) -> Vec<(&'static str, Cow<'a, [u8]>)>
    where
        R: RequestHead + ?Sized,
    {
        let mut headers = Vec::new();
        if self.credentials {
            headers.push((ALLOW_CREDENTIALS, Cow::Borrowed(&b"true"[..])));
        }
        for (name, value, asked) in
            [(ALLOW_METHODS, &self.methods, REQUEST_METHOD), (ALLOW_HEADERS, &self.headers, REQUEST_HEADERS)]
        {
            match &**value {
                "" => {}
                "*" => headers.push((name, request.header(asked).unwrap_or_default())),
                value => headers.push((name, Cow::Borrowed(value.as_bytes()))),
            }
        }
        if !self.max_age.is_empty() {
            headers.push((MAX_AGE, Cow::Borrowed(self.max_age.as_bytes())));
        }
        if self.private_network && request.header(REQUEST_PRIVATE_NETWORK).as_deref() == Some(b"true") {
            headers.push((ALLOW_PRIVATE_NETWORK, Cow::Borrowed(b"true")));
        }
        headers
    }
}
