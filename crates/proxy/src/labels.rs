//! The words of a metric's labels, Istio's names (istio.io/docs/reference/config/metrics). Made once for each series.

use std::sync::Arc;

use serde_json::{Map, Value};
use weft_core::listener::Direction;
use weft_core::respond::Flags;
use weft_core::rpc;

use crate::identify::Facts;
use crate::metrics::{self, Key, Series, label};
use crate::plan::{Upstream, WorkerUpstream, address_of};
use crate::record::Outcome;
use crate::worker::Worker;

const UNKNOWN: &str = "unknown";
/// What Istio's stats filter says of a workload without a revision.
const LATEST: &str = "latest";

/// Who this proxy stands beside, from the node's metadata.
#[derive(Debug, Default)]
pub struct Node {
    end: End,
    trust_domain: String,
    service_account: String,
}

impl Node {
    pub fn new(metadata: &Map<String, Value>) -> Node {
        let text =
            |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let of_labels = |name: &str| text(metadata.get("LABELS").and_then(|labels| labels.get(name)));
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
        let workload = or_unknown(text(metadata.get("WORKLOAD_NAME").or_else(|| metadata.get("NAME"))));
        // Where the first label is missing, Istio's injector writes it from the next that is there.
        let canonical = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        Node {
            end: End {
                namespace: or_unknown(text(metadata.get("NAMESPACE"))),
                app: or_unknown(of_labels("app")),
                version: or_unknown(of_labels("version")),
                canonical_service: canonical.into_iter().find_map(of_labels).unwrap_or_else(|| workload.clone()),
                canonical_revision: revision.into_iter().find_map(of_labels).unwrap_or_else(|| LATEST.to_owned()),
                cluster: or_unknown(text(metadata.get("CLUSTER_ID"))),
                principal: UNKNOWN.to_owned(),
                workload,
            },
            trust_domain: or_unknown(text(metadata.get("MESH_ID"))),
            service_account: or_unknown(text(metadata.get("SERVICE_ACCOUNT"))),
        }
    }

    fn principal(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.end.namespace, self.service_account)
    }

    /// This end of a connection; over mutual TLS its identity is *certificate*'s, else what the node says.
    fn end(&self, secure: bool, certificate: Option<&str>) -> End {
        let mut end = self.end.clone();
        if secure {
            end.principal = certificate.map_or_else(|| self.principal(), str::to_owned);
        }
        end
    }
}

/// One end of a request.
#[derive(Clone, Debug)]
struct End {
    workload: String,
    namespace: String,
    app: String,
    version: String,
    canonical_service: String,
    canonical_revision: String,
    principal: String,
    cluster: String,
}

impl Default for End {
    fn default() -> End {
        let unknown = || UNKNOWN.to_owned();
        End {
            workload: unknown(),
            namespace: unknown(),
            app: unknown(),
            version: unknown(),
            canonical_service: unknown(),
            canonical_revision: LATEST.to_owned(),
            principal: unknown(),
            cluster: unknown(),
        }
    }
}

impl End {
    /// From the peer's certificate, which is all that a server knows of its client: the account stands for the workload.
    fn of_peer(node: &Node, uri: Option<&str>) -> End {
        let mut end = End::default();
        let Some(uri) = uri else { return end };
        uri.clone_into(&mut end.principal);
        let mut parts = uri.strip_prefix("spiffe://").unwrap_or_default().split('/');
        if let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account)) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        {
            namespace.clone_into(&mut end.namespace);
            for field in [&mut end.workload, &mut end.app, &mut end.canonical_service] {
                account.clone_into(field);
            }
            // A mesh is one cluster; of another mesh nothing is known.
            if domain == node.trust_domain {
                end.cluster.clone_from(&node.end.cluster);
            }
        }
        end
    }

    /// From the endpoint's metadata: `workload;namespace;service;version;cluster`, the last if it is not ours.
    fn of_endpoint(node: &Node, metadata: Option<&str>) -> End {
        let mut end = End::default();
        let text = metadata
            .and_then(|json| serde_json::from_str::<Value>(json).ok())
            .and_then(|value| value.get("workload").and_then(Value::as_str).map(str::to_owned));
        let Some(text) = text else { return end };
        end.cluster.clone_from(&node.end.cluster);
        let mut parts = text.split(';');
        for field in [&mut end.workload, &mut end.namespace, &mut end.app, &mut end.version, &mut end.cluster] {
            if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
                part.clone_into(field);
            }
        }
        end.canonical_service.clone_from(&end.app);
        if end.version != UNKNOWN {
            end.canonical_revision.clone_from(&end.version);
        }
        end
    }
}

/// What is spoken, as the metrics tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Grpc,
    Tcp,
    Rpc(rpc::Protocol),
}

impl Protocol {
    /// A small number that no other has.
    pub fn number(self) -> u32 {
        match self {
            Protocol::Http => 0,
            Protocol::Grpc => 1,
            Protocol::Tcp => 2,
            Protocol::Rpc(protocol) => 3 + protocol.index() as u32,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
            Protocol::Tcp => "tcp",
            Protocol::Rpc(protocol) => protocol.name(),
        }
    }
}

/// A number for a set of flags.
fn flags_key(flags: Flags) -> u64 {
    if flags.is_empty() { 0 } else { flags.iter().fold(0, |bits, flag| bits | 1 << flag as u8) }
}

/// What counts a request, a call or a connection, as it stands now.
pub fn series(
    worker: &Worker,
    direction: Direction,
    facts: &Facts,
    outcome: &Outcome,
    upstream: Option<&WorkerUpstream>,
    protocol: Protocol,
) -> Arc<Series> {
    let host = outcome.destination.as_ref().and_then(|destination| destination.host());
    // The status of a connection is none of its labels.
    let status = if protocol == Protocol::Tcp { 0 } else { outcome.status };
    let key = Key {
        cluster: outcome.cluster.as_ref().map_or(0, address_of),
        endpoint: host.map_or(0, |host| address_of(&host.endpoint)),
        principals: metrics::principals(facts.peer_key, outcome),
        code: u32::from(status) | metrics::kind(direction, protocol),
        flags: flags_key(outcome.flags),
        secure: facts.secure,
    };
    worker.metrics.series(key, || {
        let upstream = upstream.map(|upstream| &*upstream.shared);
        describe(&worker.node, direction, facts, outcome, upstream, protocol)
    })
}

/// All labels of one series, `name="value",...` without a comma at the end.
fn describe(
    node: &Node,
    direction: Direction,
    facts: &Facts,
    outcome: &Outcome,
    upstream: Option<&Upstream>,
    protocol: Protocol,
) -> String {
    let inbound = direction == Direction::Inbound;
    let host = outcome.destination.as_ref().and_then(|destination| destination.host());
    let (source, destination) = if inbound {
        (End::of_peer(node, facts.peer_uri.as_deref()), node.end(facts.secure, facts.local_uri.as_deref()))
    } else {
        let mut destination = End::of_endpoint(node, host.and_then(|host| host.endpoint.metadata.istio.as_deref()));
        let verified = outcome.upstream_peer.as_ref().and_then(|peer| peer.principal.as_deref());
        if let Some(uri) = verified {
            // The certificate proves the identity, and in it the namespace; Istio believes it before the metadata.
            let proved = End::of_peer(node, Some(uri));
            destination.principal = proved.principal;
            if proved.namespace != UNKNOWN {
                destination.namespace = proved.namespace;
            }
        }
        let context = upstream
            .zip(host)
            .and_then(|(upstream, host)| upstream.tls_for(upstream.cluster.transport_for(&host.endpoint)));
        let own = context.and_then(|context| context.identity.as_ref()).and_then(|identity| identity.uri.as_deref());
        (node.end(own.is_some() && verified.is_some(), own), destination)
    };
    let service = Service::of(node, inbound, outcome, &destination);
    let mut out = String::new();
    let mut add = |name: &str, value: &str| label(&mut out, name, value);
    add("reporter", if inbound { "destination" } else { "source" });
    add("source_workload", &source.workload);
    add("source_canonical_service", &source.canonical_service);
    add("source_canonical_revision", &source.canonical_revision);
    add("source_workload_namespace", &source.namespace);
    add("source_principal", &source.principal);
    add("source_app", &source.app);
    add("source_version", &source.version);
    add("source_cluster", &source.cluster);
    add("destination_workload", &destination.workload);
    add("destination_workload_namespace", &destination.namespace);
    add("destination_principal", &destination.principal);
    add("destination_app", &destination.app);
    add("destination_version", &destination.version);
    add("destination_service", &service.host);
    add("destination_canonical_service", &destination.canonical_service);
    add("destination_canonical_revision", &destination.canonical_revision);
    add("destination_service_name", &service.name);
    add("destination_service_namespace", &service.namespace);
    add("destination_cluster", &destination.cluster);
    add("request_protocol", protocol.name());
    if protocol != Protocol::Tcp {
        add("response_code", &outcome.status.to_string());
    }
    add("response_flags", &outcome.flags.to_string());
    // A client cannot know whether the server asked for mutual TLS, so Istio's source reports "unknown".
    add(
        "connection_security_policy",
        match (inbound, facts.peer_uri.is_some() && facts.secure) {
            (true, true) => "mutual_tls",
            (true, false) => "none",
            (false, _) => UNKNOWN,
        },
    );
    out.pop();
    out
}

/// The service that was called.
struct Service {
    host: String,
    name: String,
    namespace: String,
}

impl Service {
    /// The host of `outbound|9080|v1|reviews.default.svc.cluster.local`, or this workload's own service.
    fn of(node: &Node, inbound: bool, outcome: &Outcome, destination: &End) -> Service {
        let named = outcome.cluster.as_deref().and_then(|name| name.rsplit('|').next()).filter(|host| !host.is_empty());
        let host = match (inbound, named) {
            (false, Some(host)) => host.to_owned(),
            (false, None) => UNKNOWN.to_owned(),
            (true, _) => format!("{}.{}.svc.cluster.local", node.end.canonical_service, node.end.namespace),
        };
        let mut parts = host.split('.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), Some(namespace), Some("svc")) => {
                Service { name: name.to_owned(), namespace: namespace.to_owned(), host }
            }
            // A place outside: its name is all that there is, and it is nobody's.
            _ => Service { name: host.clone(), namespace: destination.namespace.clone(), host },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let metadata = serde_json::json!({
            "NAME": "web-v1-0", "WORKLOAD_NAME": "web-v1", "NAMESPACE": "shop", "SERVICE_ACCOUNT": "web", "MESH_ID": "mesh",
            "CLUSTER_ID": "here", "LABELS": {"app": "web", "version": "v1"},
        });
        Node::new(metadata.as_object().unwrap())
    }

    #[test]
    fn an_endpoint_names_its_workload_and_what_is_missing_is_unknown() {
        let end = End::of_endpoint(&node(), Some(r#"{"workload":"reviews-v1-0;default;reviews;v1"}"#));
        assert_eq!((&*end.workload, &*end.app, &*end.version), ("reviews-v1-0", "reviews", "v1"));
        assert_eq!((&*end.canonical_service, &*end.canonical_revision, &*end.cluster), ("reviews", "v1", "here"));
        let end = End::of_endpoint(&node(), Some(r#"{"workload":"reviews-0;default;reviews;;there"}"#));
        assert_eq!((&*end.version, &*end.canonical_revision, &*end.cluster), (UNKNOWN, LATEST, "there"));
        for nothing in [Some("{}"), None] {
            let end = End::of_endpoint(&node(), nothing);
            assert_eq!((&*end.workload, &*end.canonical_revision, &*end.cluster), (UNKNOWN, LATEST, UNKNOWN));
        }
    }

    #[test]
    fn a_peer_is_who_its_certificate_says_and_of_our_cluster_if_it_is_of_our_mesh() {
        let end = End::of_peer(&node(), Some("spiffe://mesh/ns/default/sa/front"));
        assert_eq!((&*end.namespace, &*end.canonical_service, &*end.cluster), ("default", "front", "here"));
        let end = End::of_peer(&node(), Some("spiffe://other/ns/default/sa/front"));
        assert_eq!((&*end.namespace, &*end.cluster), ("default", UNKNOWN));
        let end = End::of_peer(&node(), Some("spiffe://mesh/elsewhere"));
        assert_eq!((&*end.principal, &*end.namespace, &*end.cluster), ("spiffe://mesh/elsewhere", UNKNOWN, UNKNOWN));
        assert_eq!(End::of_peer(&node(), None).principal, UNKNOWN);
    }

    #[test]
    fn a_node_says_its_canonical_name_or_what_istio_would_make_of_its_labels() {
        let with = |labels: Value| {
            let metadata = serde_json::json!({"NAME": "web-v1-0", "LABELS": labels});
            let end = Node::new(metadata.as_object().unwrap()).end;
            (end.canonical_service, end.canonical_revision)
        };
        let named = |service: &str, revision: &str| (service.to_owned(), revision.to_owned());
        let all = serde_json::json!({
            "service.istio.io/canonical-name": "a", "app.kubernetes.io/name": "b", "app": "c",
            "service.istio.io/canonical-revision": "1", "app.kubernetes.io/version": "2", "version": "3",
        });
        assert_eq!(with(all), named("a", "1"));
        assert_eq!(
            with(serde_json::json!({"app.kubernetes.io/name": "b", "app": "c", "version": "3"})),
            named("b", "3")
        );
        assert_eq!(with(serde_json::json!({})), named("web-v1-0", LATEST));
    }

    #[test]
    fn a_service_of_the_mesh_has_a_namespace_and_a_place_outside_only_its_name() {
        let of = |cluster: &str| {
            let outcome = Outcome { cluster: Some(cluster.into()), ..Outcome::default() };
            let service = Service::of(&node(), false, &outcome, &End::default());
            (service.host, service.name, service.namespace)
        };
        let expected =
            |host: &str, name: &str, namespace: &str| (host.to_owned(), name.to_owned(), namespace.to_owned());
        let reviews = "reviews.default.svc.cluster.local";
        assert_eq!(of(&format!("outbound|9080|v1|{reviews}")), expected(reviews, "reviews", "default"));
        assert_eq!(of("outbound|443||api.example.com"), expected("api.example.com", "api.example.com", UNKNOWN));
        assert_eq!(of("PassthroughCluster"), expected("PassthroughCluster", "PassthroughCluster", UNKNOWN));
        let own = Service::of(&node(), true, &Outcome::default(), &End::default());
        assert_eq!(own.host, "web.shop.svc.cluster.local");
    }
}
