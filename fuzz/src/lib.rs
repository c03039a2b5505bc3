//! What several targets need: resources as a control plane would write them, and inputs of several steps.

use serde_json::{Value, json};
use weft_core::compile::Strictness;
use weft_core::honoured;
use weft_core::http_manager::HttpManager;
use weft_core::listener::{Listener, NetworkFilter};
use weft_core::plan::{Plan, Resource};

/// The beginning of the type URLs of Envoy's extensions.
pub const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// Compile *resources*, each by its type URL.
///
/// # Panics
/// One is not honoured.
pub fn plan(resources: &[(&str, Value)]) -> Plan {
    let mut plan = Plan::default();
    for (type_url, value) in resources {
        let bytes = honoured::json::encode(type_url, value).unwrap_or_else(|problems| panic!("{problems:?}"));
        let compiled = Resource::compile(type_url, &bytes, Strictness::Refuse);
        plan.insert(compiled.unwrap_or_else(|problems| panic!("{problems:?}")).value);
    }
    plan
}

/// A listener with a connection manager. *settings* add to the manager, which else routes nothing.
pub fn listener(settings: Value) -> Value {
    let mut manager = json!({
        "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "http",
        "route_config": {"name": "routes"},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": format!("{EXTENSIONS}.filters.http.router.v3.Router")}},
        ],
    });
    for (name, value) in settings.as_object().into_iter().flatten() {
        manager[name] = value.clone();
    }
    json!({
        "name": "listener",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    })
}

/// A connection manager with these *settings*.
///
/// # Panics
/// One is not honoured.
pub fn manager(settings: Value) -> HttpManager {
    let plan = plan(&[(weft_protos::type_url::LISTENER, listener(settings))]);
    let listener: &Listener = plan.listeners.values().next().expect("there is one");
    match &listener.filter_chains[0].filter {
        NetworkFilter::Http(manager) => HttpManager::clone(manager),
        _ => unreachable!("it was written above"),
    }
}

/// An input as steps: each has a byte that says what it is, the count of its bytes in two more, and these.
pub fn steps(mut input: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [kind, high, low, rest @ ..] = input else { return None };
        let count = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (bytes, rest) = rest.split_at(count);
        input = rest;
        Some((*kind, bytes))
    })
}
