//! What is in force: certificates, listeners.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weft_core::time_format::{Civil, DAY_SECONDS, read_compact};
use weft_core::tls::SecretName;

use super::answer::Answer;
use super::question::Query;
use super::{Admin, Response};
use crate::clock;
use crate::tls::san;
use crate::tls::secrets::Secret;

/// `/certs`, as Envoy tells it (envoy/admin/v3/certs.proto), but for each secret once, and with its name.
pub fn certificates(admin: &Admin) -> Value {
    let configurator = admin.configurator.borrow();
    let mut secrets: Vec<_> = configurator.holdings.secrets().iter().collect();
    secrets.sort_unstable_by_key(|(secret, _)| *secret);
    let row = |(SecretName { name, .. }, secret): (&SecretName, &Secret)| match secret {
        Secret::Identity(identity) => json!({
            "name": **name,
            "cert_chain": identity.key.cert.iter().map(|it| certificate(it)).collect::<Vec<_>>(),
        }),
        Secret::Roots(roots) => json!({
            "name": **name,
            "ca_cert": roots.certificates.iter().map(|it| certificate(it)).collect::<Vec<_>>(),
        }),
        Secret::TicketKeys(keys) => json!({"name": **name, "session_ticket_keys": keys.len()}),
    };
    json!({"certificates": secrets.into_iter().map(row).collect::<Vec<_>>()})
}

fn certificate(der: &[u8]) -> Value {
    let names = san::names(der);
    let dns = names.dns.iter().map(|name| json!({"dns": name}));
    let uris = names.uris.iter().map(|name| json!({"uri": name}));
    let addresses = names.addresses.iter().map(|address| json!({"ip_address": address}));
    let mut shown = json!({
        "path": "<inline>",
        "subject_alt_names": dns.chain(uris).chain(addresses).collect::<Vec<_>>(),
    });
    if let Some(front) = san::front(der) {
        let significant = front.serial.iter().skip_while(|&&byte| byte == 0);
        shown["serial_number"] = significant
            .fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
            .into();
        let (begin, end) = (read_compact(&front.not_before), read_compact(&front.not_after));
        let left = end.map(|end| end.saturating_sub(clock::since_epoch()).as_secs() / DAY_SECONDS);
        shown["days_until_expiration"] = left.map(|days| days.to_string()).into();
        shown["valid_from"] = begin.map(stamp).into();
        shown["expiration_time"] = end.map(stamp).into();
    }
    shown
}

/// As protobuf writes a moment in JSON: `2026-12-31T23:59:59Z`.
fn stamp(wall: Duration) -> String {
    format!("{}Z", Civil::of(wall.as_secs()))
}

/// `/listeners`, as Envoy tells it: `name::address` a line, or `listener_statuses`.
pub fn listeners(admin: &Admin, query: &Query) -> Response {
    let configurator = admin.configurator.borrow();
    let listeners = configurator.holdings.listeners();
    match query.value("format")? {
        None | Some("text") => {
            let mut text = String::new();
            for (name, listener) in listeners {
                for bind in &listener.addresses {
                    let _ = writeln!(text, "{name}::{}", bind.address);
                }
            }
            Ok(Answer::text(200, text))
        }
        Some("json") => {
            let status = |(name, listener): (&Arc<str>, &Arc<weft_core::listener::Listener>)| {
                let mut addresses = listener.addresses.iter().map(|bind| {
                    let (address, port) = (bind.address.ip().to_string(), bind.address.port());
                    json!({"socket_address": {"address": address, "port_value": port}})
                });
                let mut status = json!({"name": **name, "local_address": addresses.next()});
                let more: Vec<Value> = addresses.collect();
                if !more.is_empty() {
                    status["additional_local_addresses"] = more.into();
                }
                status
            };
            Ok(Answer::json(&json!({"listener_statuses": listeners.map(status).collect::<Vec<_>>()})))
        }
        Some(other) => Err(Answer::refusal(format!("format={other}: text or json is needed"))),
    }
}
