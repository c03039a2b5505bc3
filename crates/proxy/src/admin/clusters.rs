//! `/clusters`, as Envoy tells it (envoy/admin/v3/clusters.proto): clusters that are at work, their limits, and what is known of each endpoint.
//!
//! Not there is what is not counted of an endpoint: all but what is in progress would cost each request another write that all workers
//! share. Nor are rates of success, nor limits of the priority HIGH, which no cluster has.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weft_core::address::PeerAddress;
use weft_core::balance::Host;
use weft_core::breaker::Limits;
use weft_core::endpoint::{Health, Locality};

use super::answer::Answer;
use super::question::Query;
use super::{Admin, Response};
use crate::warming::AtWork;

pub fn respond(admin: &Admin, query: &Query) -> Response {
    let configurator = admin.configurator.borrow();
    let clusters = configurator.holdings.clusters();
    match query.value("format")? {
        None | Some("text") => {
            let mut text = String::new();
            for cluster in clusters {
                let _ = write_text(&mut text, &cluster);
            }
            Ok(Answer::text(200, text))
        }
        Some("json") => {
            let statuses: Vec<_> = clusters.map(|cluster| status(&cluster)).collect();
            Ok(Answer::json(&json!({"cluster_statuses": statuses})))
        }
        Some(other) => Err(Answer::refusal(format!("format={other}: text or json is needed"))),
    }
}

/// Its endpoints, each with its place.
fn hosts<'h>(cluster: &AtWork<'h>) -> impl Iterator<Item = (&'h Arc<Host>, Option<&'h Locality>)> {
    let hosts = cluster.upstream.balancer.as_ref().map_or(&[][..], |balancer| balancer.hosts());
    let localities = cluster.localities;
    hosts.iter().map(move |host| (host, localities.get(host.locality)))
}

/// By the names of fields, in which Envoy tells them.
fn limits(limits: &Limits) -> [(&'static str, u32); 4] {
    [
        ("max_connections", limits.connections),
        ("max_pending_requests", limits.pending),
        ("max_requests", limits.requests),
        ("max_retries", limits.retries),
    ]
}

/// Why an endpoint is not like others: the field that says so, what the text calls it, and whether it holds. In Envoy's order.
fn flags(host: &Host) -> [(&'static str, &'static str, bool); 9] {
    let discovered = host.endpoint.health;
    let active = host.active_health();
    let checked = |holds: fn(&_) -> bool| active.is_some_and(holds);
    [
        ("failed_active_health_check", "failed_active_hc", checked(|it| it.is_failed())),
        ("failed_outlier_check", "failed_outlier_check", host.is_ejected()),
        (EDS_HEALTH, "failed_eds_health", discovered == Health::Unhealthy),
        ("failed_active_degraded_check", "degraded_active_hc", checked(|it| it.is_degraded())),
        (EDS_HEALTH, "degraded_eds_health", discovered == Health::Degraded),
        ("pending_dynamic_removal", "pending_dynamic_removal", host.leaving),
        ("pending_active_hc", "pending_active_hc", checked(|it| it.is_unchecked())),
        ("excluded_via_immediate_hc_fail", "excluded_via_immediate_hc_fail", checked(|it| it.is_excluded())),
        ("active_hc_timeout", "active_hc_timeout", checked(|it| it.is_timed_out())),
    ]
}

const EDS_HEALTH: &str = "eds_health_status";

fn write_text(text: &mut String, cluster: &AtWork) -> std::fmt::Result {
    let name = cluster.name;
    writeln!(text, "{name}::observability_name::{name}")?;
    for (limit, most) in limits(&cluster.upstream.cluster.limits) {
        writeln!(text, "{name}::default_priority::{limit}::{most}")?;
    }
    writeln!(text, "{name}::added_via_api::{}", !cluster.is_static)?;
    for (host, place) in hosts(cluster) {
        let endpoint = &host.endpoint;
        let at = format!("{name}::{}", endpoint.address);
        let flags: String = flags(host).iter().filter(|it| it.2).map(|(_, flag, _)| format!("/{flag}")).collect();
        let [region, zone, sub_zone] = place.map_or([""; 3], |it| [&it.region, &it.zone, &it.sub_zone].map(|it| &**it));
        writeln!(text, "{at}::rq_active::{}", host.active())?;
        writeln!(text, "{at}::hostname::{}", endpoint.hostname)?;
        writeln!(text, "{at}::health_flags::{}", if flags.is_empty() { "healthy" } else { &flags })?;
        writeln!(text, "{at}::weight::{}", endpoint.weight)?;
        writeln!(text, "{at}::region::{region}\n{at}::zone::{zone}\n{at}::sub_zone::{sub_zone}")?;
        writeln!(text, "{at}::priority::{}", host.priority)?;
    }
    Ok(())
}

fn status(cluster: &AtWork) -> Value {
    let limits: Map<_, _> = limits(&cluster.upstream.cluster.limits)
        .into_iter()
        .map(|(limit, most)| (limit.to_owned(), most.into()))
        .collect();
    let mut status = json!({
        "name": **cluster.name,
        "observability_name": **cluster.name,
        "circuit_breakers": {"thresholds": [limits]},
    });
    let hosts: Vec<_> = hosts(cluster).map(|(host, place)| host_status(host, place)).collect();
    // As in all JSON of protobuf, what is empty, zero or false is not there.
    if !hosts.is_empty() {
        status["host_statuses"] = hosts.into();
    }
    if !cluster.is_static {
        status["added_via_api"] = true.into();
    }
    status
}

fn host_status(host: &Host, place: Option<&Locality>) -> Value {
    let endpoint = &host.endpoint;
    let address = match &endpoint.address {
        PeerAddress::Socket(at) => {
            json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
        }
        PeerAddress::Pipe(path) => json!({"pipe": {"path": path.display().to_string()}}),
    };
    let mut active = json!({"type": "GAUGE", "name": "rq_active"});
    if host.active() > 0 {
        active["value"] = host.active().to_string().into();
    }
    let health = match endpoint.health {
        Health::Healthy => "HEALTHY",
        Health::Degraded => "DEGRADED",
        Health::Unhealthy => "UNHEALTHY",
    };
    let mut known: Map<_, _> = flags(host)
        .into_iter()
        .filter(|(_, _, holds)| *holds)
        .map(|(field, ..)| (field.to_owned(), true.into()))
        .collect();
    known.insert(EDS_HEALTH.to_owned(), health.into());
    let parts = place.map(|it| [("region", &it.region), ("zone", &it.zone), ("sub_zone", &it.sub_zone)]);
    let locality: Map<_, _> = parts
        .into_iter()
        .flatten()
        .filter(|(_, part)| !part.is_empty())
        .map(|(name, part)| (name.to_owned(), part.to_string().into()))
        .collect();
    let mut status = json!({
        "address": address,
        "stats": [active],
        "health_status": known,
        "weight": endpoint.weight,
        "locality": locality,
    });
    if !endpoint.hostname.is_empty() {
        status["hostname"] = (*endpoint.hostname).into();
    }
    if host.priority > 0 {
        status["priority"] = host.priority.into();
    }
    status
}
