//! Proxies that are short of room, and what presses them.

use serde_json::{Value, json};

use super::{Mesh, Peer, Setup, Upstream, until};

pub const CONNECTIONS: &str = "envoy.resource_monitors.global_downstream_max_connections";
pub const CONNECTIONS_TYPE: &str =
    "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";

/// A proxy that may have *most* connections and does *action* from *threshold* of them on.
pub fn pressed(most: u64, action: &str, threshold: f64, change: impl FnOnce(&mut Setup)) -> Mesh {
    overloaded(
        json!({
            "refresh_interval": "0.02s",
            "resource_monitors": [{"name": CONNECTIONS, "typed_config": {
                "@type": CONNECTIONS_TYPE,
                "max_active_downstream_connections": most}}],
            "actions": [{"name": format!("envoy.overload_actions.{action}"), "triggers": [
                {"name": CONNECTIONS, "threshold": {"value": threshold}}]}],
        }),
        change,
    )
}

/// A proxy with this `overload_manager`, before an endpoint that says hello.
pub fn overloaded(manager: Value, change: impl FnOnce(&mut Setup)) -> Mesh {
    let mut mesh = Mesh::prepare(&[Upstream::saying("hello")]);
    mesh.overload = Some(manager);
    mesh.setup.listener.access_log = mesh.setup.manager.access_log.clone();
    change(&mut mesh.setup);
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    mesh.wait_ready();
    mesh
}

/// Connections that ask nothing.
pub fn silent(mesh: &Mesh, count: usize) -> Vec<Peer> {
    (0..count).map(|_| mesh.client()).collect()
}

/// Wait until `/ready` says that *actions* are done, and nothing else.
#[track_caller]
pub fn until_done(mesh: &Mesh, actions: &str) {
    let expected = if actions.is_empty() { "LIVE\n".into() } else { format!("LIVE\nOVERLOADED: {actions}\n") };
    until(actions, || (mesh.admin("GET", "/ready") == expected).then_some(()));
}
