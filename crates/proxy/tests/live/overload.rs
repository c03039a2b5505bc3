//! Limits on connections, and what is done when the process runs short.

use std::time::{Duration, Instant};

use serde_json::json;
use weft_protos::envoy::config::core::v3::RoutingPriority;
use weft_protos::envoy::config::route::v3::route::Action;
use weft_protos::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use weft_protos::google::protobuf::UInt64Value;

use crate::kit::mesh::expect_passed;
use crate::kit::peer::End;
use crate::kit::pressure::{CONNECTIONS, CONNECTIONS_TYPE, overloaded, pressed, silent, until_done};
use crate::kit::resources::{CLUSTER, any, network_filter, seconds, to};
use crate::kit::{Mesh, Upstream, until};

const HEAP: &str = "envoy.resource_monitors.fixed_heap";
const HEAP_TYPE: &str = "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig";

#[test]
fn connections_beyond_the_limit_of_the_process_are_refused_counted_and_recorded() {
    // Nobody looks at the pressure, so nothing is done about it.
    let mesh = overloaded(
        json!({"refresh_interval": "3600s", "resource_monitors": [
            {"name": CONNECTIONS, "typed_config": {"@type": CONNECTIONS_TYPE, "max_active_downstream_connections": "2"}}]}),
        |_| {},
    );
    let (mut first, mut second) = (mesh.client(), mesh.client());
    assert_eq!((first.get("/").text(), second.get("/").text()), ("hello".into(), "hello".into()));
    assert_eq!(mesh.client().expect_end(), End::Reset);
    let record = mesh.wait_records(3).pop().unwrap();
    assert_eq!(
        (&record["response_flags"], &record["response_code_details"]),
        (&json!("OM"), &json!("downstream_global_cx_overflow"))
    );
    assert_eq!(mesh.metric("envoy_listener_downstream_global_cx_overflow", &[]), 1.0);
    assert_eq!(first.get("/").text(), "hello");
    drop(first);
    until("there is room again", || {
        let mut next = mesh.client();
        let _ = next.try_send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        next.first_bytes().starts_with(b"HTTP/1.1 200").then_some(())
    });
    assert_eq!(second.get("/").text(), "hello");
}

#[test]
fn a_listener_may_be_left_out_of_the_limit_of_the_process() {
    let mesh = overloaded(
        json!({"resource_monitors": [{"name": CONNECTIONS, "typed_config": {"@type": CONNECTIONS_TYPE, "max_active_downstream_connections": 1}}]}),
        |setup| setup.listener.ignore_global_conn_limit = true,
    );
    let mut clients = silent(&mesh, 3);
    for client in &mut clients {
        assert_eq!(client.get("/").text(), "hello");
    }
}

#[test]
fn connections_beyond_the_limit_of_a_filter_chain_are_closed_counted_and_recorded() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        setup.listener.access_log = setup.manager.access_log.clone();
        let limit = ConnectionLimit {
            stat_prefix: "few".into(),
            max_connections: Some(UInt64Value { value: 1 }),
            delay: Some(seconds(0.2)),
            ..Default::default()
        };
        let name = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
        setup.before = vec![network_filter(any(name, &limit))];
    });
    let mut first = mesh.client();
    assert_eq!(first.get("/").text(), "hello");
    let began = Instant::now();
    mesh.client().expect_end();
    expect_passed(began, Duration::from_millis(200));
    assert_eq!(mesh.wait_records(2)[1]["response_code_details"], "connection_limit");
    assert_eq!(mesh.metric("envoy_connection_limit_limited_connections", &[]), 1.0);
    assert_eq!(first.get("/").text(), "hello");
    drop(first);
    until("there is room again", || {
        let mut next = mesh.client();
        let _ = next.try_send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        next.first_bytes().starts_with(b"HTTP/1.1 200").then_some(())
    });
}

#[test]
fn under_pressure_nobody_is_accepted_until_it_is_over() {
    let mesh = pressed(4, "stop_accepting_connections", 0.5, |_| {});
    let mut served = silent(&mesh, 2);
    until_done(&mesh, "stop_accepting_connections");
    let mut waiting = mesh.client();
    waiting.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    // Those that are there are served as ever.
    assert_eq!(served[0].get("/").text(), "hello");
    assert_eq!(mesh.metric("envoy_http_downstream_cx_active", &[]), 2.0);
    assert!(waiting.arrived().is_empty());
    let active = "envoy_overload_envoy_overload_actions_stop_accepting_connections_active";
    assert_eq!(mesh.metric(active, &[]), 1.0);
    served.pop();
    // Whoever waited was not refused.
    assert_eq!(waiting.message().text(), "hello");
    let log = mesh.log();
    assert!(
        log.contains("overload: ") && log.contains("50 % of 4 connections; doing stop_accepting_connections"),
        "{log}"
    );
    drop((served, waiting));
    until_done(&mesh, "");
    assert!(mesh.log().contains("overload is over"), "{}", mesh.log());
}

#[test]
fn requests_are_shed_those_of_high_priority_last() {
    let mesh = pressed(8, "stop_accepting_requests", 0.5, |setup| {
        let mut high = to(CLUSTER, "/high");
        if let Some(Action::Route(action)) = &mut high.action {
            action.priority = RoutingPriority::High as i32;
        }
        setup.route(vec![high, to(CLUSTER, "/")]);
    });
    assert_eq!(mesh.client().get("/before").text(), "hello");
    let _pressure = silent(&mesh, 4);
    until_done(&mesh, "stop_accepting_requests");
    let refused = mesh.client().get("/low");
    assert_eq!(
        (refused.status(), refused.text().as_str(), refused.get("connection")),
        (503, "envoy overloaded", Some("close"))
    );
    mesh.expect_record("/low", 503, "OM", "overload");
    assert_eq!(mesh.client().get("/high").text(), "hello");
    let more = silent(&mesh, 2);
    until_done(&mesh, "stop_accepting_requests, stop_accepting_requests_of_high_priority");
    assert_eq!(mesh.client().get("/high/too").status(), 503);
    assert_eq!(mesh.metric("envoy_http_downstream_rq_overload_close", &[]), 2.0);
    drop(more);
    until_done(&mesh, "stop_accepting_requests");
    assert_eq!(mesh.client().get("/high/again").text(), "hello");
}

#[test]
fn connections_close_after_their_answers_when_room_gets_scarce() {
    let mesh = pressed(4, "disable_http_keepalive", 0.5, |_| {});
    let mut idle = mesh.client();
    assert_eq!(idle.get("/").get("connection"), None);
    let mut other = mesh.client();
    until_done(&mesh, "disable_http_keepalive");
    // It has had its answer, and makes room.
    idle.expect_end();
    // Which ends the pressure again; whoever comes brings it back.
    let count = |connections: f64| (mesh.metric("envoy_http_downstream_cx_active", &[]) == connections).then_some(());
    until("it is gone", || count(1.0));
    let _third = mesh.client();
    until("the third is accepted", || count(2.0));
    until_done(&mesh, "disable_http_keepalive");
    assert_eq!(other.get("/").get("connection"), Some("close"));
    other.expect_end();
    assert_eq!(mesh.metric("envoy_http_downstream_cx_overload_disable_keepalive", &[]), 1.0);
}

#[test]
fn memory_is_watched_by_default_and_what_is_done_is_told() {
    let mesh = overloaded(
        json!({"refresh_interval": "0.02s", "resource_monitors": [
            {"name": HEAP, "typed_config": {"@type": HEAP_TYPE, "max_heap_size_bytes": 1}}]}),
        |_| {},
    );
    let all = "stop_accepting_connections, disable_http_keepalive, stop_accepting_requests, \
               stop_accepting_requests_of_high_priority";
    until_done(&mesh, all);
    assert!(mesh.metric("envoy_overload_envoy_resource_monitors_fixed_heap_pressure", &[]) > 100.0);
    assert!(mesh.log().contains(&format!("doing {all}")), "{}", mesh.log());
}

#[test]
fn a_proxy_that_is_told_nothing_has_limits_and_no_pressure() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    assert_eq!(mesh.client().get("/").text(), "hello");
    assert_eq!(mesh.admin("GET", "/ready"), "LIVE\n");
    let pressure = |of: &str| mesh.metric(&format!("envoy_overload_envoy_resource_monitors_{of}_pressure"), &[]);
    assert!(pressure("fixed_heap") < 90.0 && pressure("global_downstream_max_connections") < 90.0);
}
