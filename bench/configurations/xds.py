"""
One set of xDS resources for weft-proxy and Envoy alike, and the stream core that serves it to them.

Settings are the product's own (src/weft/translate), which are Istio's without what only its build of Envoy has. Beside what
`bench.role.Feature` names, these of Istio's sidecar are on for both: least request, names of 25 labels in metrics, X-Forwarded-Client-Cert,
the check of the other side's SPIFFE identity, both versions of HTTP by ALPN, no limit of a stream's idle time.

Labels are the one difference. weft-proxy makes Istio's metrics by itself. Istio's Envoy does by the filter `istio.stats`, which stock
Envoy has not; here it does by its own stats access logger, with the same names, labels and moment (the end of a request). That
logger formats the labels for each of the four metrics anew, where Istio's filter does so once a request and keeps those that do not change,
so it costs more than Istio's: S2 has a line for Envoy without any labels beside it, and Istio's own lies between the two.

Left out for both: the listener filters that sniff TLS and HTTP (each port here speaks one), metadata exchange and `istio.alpn` (only in
Istio's build), gRPC's count of messages (`grpc_stats`, which weft-proxy accepts and does nothing about), tracing, keys by SDS (they are
inline), and automatic mutual TLS by `transport_socket_matches`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2  # noqa: F401 - named by type URL below, as all of these
from envoy.extensions.access_loggers.stats.v3 import stats_pb2  # noqa: F401
from envoy.extensions.filters.http.cors.v3 import cors_pb2  # noqa: F401
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from google.protobuf import json_format
from google.protobuf.message import Message

from bench import role as what
from bench.certificates import IDENTITY, STRANGER
from bench.role import Feature, Role, Tls
from weft.agent.bootstrap import bootstrap
from weft.translate.access_log import RECORD

EXTENSIONS = "type.googleapis.com/envoy.extensions"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----")
UNBOUNDED = 2**32 - 1
"""Istio's for limits that nobody set."""

Resources = list[tuple[str, str, str, bytes]]
"""Type URL, name, version, serialised value."""


def resource(message: Message, name: str, content: dict[str, Any]) -> tuple[str, str, str, bytes]:
    """Return *content*, in protobuf's JSON form, as a resource of the type of *message*."""
    json_format.ParseDict(content, message)
    value = message.SerializeToString(deterministic=True)
    version = hashlib.sha256(value).hexdigest()[:12]
    return f"type.googleapis.com/{message.DESCRIPTOR.full_name}", name, version, value


def resources(role: Role, port: int, access_log: Path, *, data_plane: str) -> Resources:
    """
    Return the resources of a proxy at *port* of the loopback.

    *data_plane* is who makes metrics with labels: weft-proxy by itself, `envoy` if it is told to.
    """
    asked = data_plane == "envoy" and role.has(Feature.LABELS)
    made = [resource(listener_pb2.Listener(), "bench", _listener(role, port, access_log, asked_for_labels=asked))]
    if not role.tcp:
        made.append(resource(route_pb2.RouteConfiguration(), "bench", _routes(role)))
    for name, content, targets in _clusters(role):
        made.append(resource(cluster_pb2.Cluster(), name, content))
        assignment = {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(*target)}} for target in targets]}],
        }
        made.append(resource(endpoint_pb2.ClusterLoadAssignment(), name, assignment))
    return made


def readable(published: Resources) -> str:
    """Return *published* as JSON, a line for each, for people; what stands in for certificates and keys changes with each run."""
    kinds = (
        listener_pb2.Listener,
        route_pb2.RouteConfiguration,
        cluster_pb2.Cluster,
        endpoint_pb2.ClusterLoadAssignment,
    )
    types = {f"type.googleapis.com/{kind.DESCRIPTOR.full_name}": kind for kind in kinds}
    lines = (
        json.dumps(
            {
                "@type": url,
                **_without_secrets(
                    json_format.MessageToDict(types[url].FromString(value), preserving_proto_field_name=True)
                ),
            }
        )
        for url, _, _, value in published
    )
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    if isinstance(value, str) and (found := PEM.match(value)):
        return f"({found[1].lower()}, made for the run)"
    return value


def address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


# ---------------------------------------------------------------------------------------------------------- listener


def _listener(role: Role, port: int, access_log: Path, *, asked_for_labels: bool) -> dict[str, Any]:
    logs = _access_log(role, access_log)
    if asked_for_labels:
        logs.append(_labelled_metrics(role))
    if role.tcp:
        proxy = {
            "@type": f"{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "bench",
            "cluster": role.target,
            "access_log": logs,
        }
        chain: dict[str, Any] = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    else:
        manager = _manager(role, logs)
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    if role.downstream_tls:
        context = _tls_context(role.downstream_tls, ["h2", "http/1.1"])
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": context,
                "require_client_certificate": True,
            },
        }
    direction = "INBOUND" if role.inbound else "OUTBOUND"
    where = address("127.0.0.1", port)
    return {"name": "bench", "address": where, "traffic_direction": direction, "filter_chains": [chain]}


def _access_log(role: Role, path: Path) -> list[dict[str, Any]]:
    if not role.has(Feature.ACCESS_RECORD):
        return []
    fields = {**RECORD, "direction": "inbound" if role.inbound else "outbound"}
    logger = f"{EXTENSIONS}.access_loggers.file.v3.FileAccessLog"
    return [
        {
            "name": "envoy.access_loggers.file",
            "typed_config": {"@type": logger, "path": str(path), "log_format": {"json_format": fields}},
        }
    ]


def _labelled_metrics(role: Role) -> dict[str, Any]:
    """Return the access logger that makes Istio's metrics of HTTP; what Istio takes from a request is taken from it here."""
    here, peer = ("destination", "source") if role.inbound else ("source", "destination")
    identities = {"source": "%DOWNSTREAM_PEER_URI_SAN%", "destination": "%DOWNSTREAM_LOCAL_URI_SAN%"}
    if not role.inbound:
        identities = {"source": "%UPSTREAM_LOCAL_URI_SAN%", "destination": "%UPSTREAM_PEER_URI_SAN%"}
    labels = {"reporter": here}
    for end, name in ((here, "bench"), (peer, "unknown")):
        labels |= {
            f"{end}_workload": name,
            f"{end}_workload_namespace": "shop",
            f"{end}_principal": identities[end],
            f"{end}_app": name,
            f"{end}_version": "v1",
            f"{end}_canonical_service": name,
            f"{end}_canonical_revision": "v1",
            f"{end}_cluster": "bench",
        }
    labels |= {
        "destination_service": "%REQ(:AUTHORITY)%",
        "destination_service_name": "%UPSTREAM_CLUSTER%",
        "destination_service_namespace": "shop",
        "request_protocol": "grpc" if role.upstream_http2 and role.downstream_http2 else "http",
        "response_code": "%RESPONSE_CODE%",
        "grpc_response_status": "%GRPC_STATUS_NUMBER%",
        "response_flags": "%RESPONSE_FLAGS%",
        "connection_security_policy": "mutual_tls" if role.downstream_tls else "unknown",
    }
    tags = [{"name": name, "value_format": value} for name, value in labels.items()]

    def histogram(name: str, value: str, unit: str) -> dict[str, Any]:
        return {"stat": {"name": name, "tags": tags}, "value_format": value, "unit": unit}

    config = {
        "@type": f"{EXTENSIONS}.access_loggers.stats.v3.Config",
        "stat_prefix": "istio",
        "counters": [{"stat": {"name": "requests_total", "tags": tags}, "value_fixed": 1}],
        "histograms": [
            histogram("request_duration_milliseconds", "%DURATION%", "Milliseconds"),
            histogram("request_bytes", "%DOWNSTREAM_WIRE_BYTES_RECEIVED%", "Bytes"),
            histogram("response_bytes", "%DOWNSTREAM_WIRE_BYTES_SENT%", "Bytes"),
        ],
    }
    return {"name": "envoy.access_loggers.stats", "typed_config": config}


def _manager(role: Role, logs: list[dict[str, Any]]) -> dict[str, Any]:
    manager: dict[str, Any] = {
        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "rds": {"route_config_name": "bench", "config_source": {"ads": {}, "resource_api_version": "V3"}},
        "generate_request_id": role.has(Feature.REQUEST_ID),
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": "0s",
        "access_log": logs,
        "http_filters": _http_filters(role),
    }
    if role.has(Feature.PATH_NORMALISATION):
        manager["normalize_path"] = True
        manager["path_with_escaped_slashes_action"] = "KEEP_UNCHANGED"
    if role.has(Feature.CLIENT_CERTIFICATE):
        manager["forward_client_cert_details"] = "APPEND_FORWARD"
        manager["set_current_client_cert_details"] = {"subject": True, "uri": True, "dns": True}
    return manager


def _http_filters(role: Role) -> list[dict[str, Any]]:
    filters = []
    if role.has(Feature.RBAC):
        filters.append(("envoy.filters.http.rbac", {"@type": f"{EXTENSIONS}.filters.http.rbac.v3.RBAC", **_rbac()}))
    if role.has(Feature.PRINCIPAL) and role.downstream_tls:
        # What is refused is asked first and what is allowed second, each by a filter of its own, as Istio has them.
        allowed = {"@type": f"{EXTENSIONS}.filters.http.rbac.v3.RBAC", **_principal(role.downstream_tls.peer)}
        filters.append(("envoy.filters.http.rbac", allowed))
    if role.has(Feature.FAULT):
        filters.append(("envoy.filters.http.fault", {"@type": f"{EXTENSIONS}.filters.http.fault.v3.HTTPFault"}))
    if role.has(Feature.CORS):
        filters.append(("envoy.filters.http.cors", {"@type": f"{EXTENSIONS}.filters.http.cors.v3.Cors"}))
    filters.append(("envoy.filters.http.router", {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"}))
    return [{"name": name, "typed_config": config} for name, config in filters]


def _rbac() -> dict[str, Any]:
    """Three policies that refuse; the one that acts in a probe is the last, so the load passes all three."""

    def policy(prefix: str, method: str) -> dict[str, Any]:
        rules = [
            {"url_path": {"path": {"prefix": prefix}}},
            {"header": {"name": ":method", "string_match": {"exact": method}}},
        ]
        return {"permissions": [{"and_rules": {"rules": rules}}], "principals": [{"any": True}]}

    policies = {
        "no-deletes": policy("/", "DELETE"),
        "no-admin": policy("/admin", "POST"),
        "no-secrets": policy(what.FORBIDDEN_PATH, "GET"),
    }
    return {"rules": {"action": "DENY", "policies": policies}}


def _principal(identity: str) -> dict[str, Any]:
    principal = {"authenticated": {"principal_name": {"exact": identity}}}
    policy = {"permissions": [{"any": True}], "principals": [principal]}
    return {"rules": {"action": "ALLOW", "policies": {"callers": policy}}}


# ------------------------------------------------------------------------------------------------------------ routes


def _routes(role: Role) -> dict[str, Any]:
    spread = role.has(Feature.VIRTUAL_HOSTS)
    hosts = [_virtual_host(role, service, what.domains(service) if spread else ("*",)) for service in role.services]
    if role.ports.echo:
        hosts.append(_virtual_host(role, "echo", what.domains("echo")))
    if role.has(Feature.RETRY):
        hosts.append(_virtual_host(role, "retried", what.domains("retried")))
    if role.has(Feature.OUTLIER_DETECTION):
        hosts.append(_virtual_host(role, "ejecting", what.domains("ejecting")))
    if role.has(Feature.CIRCUIT_BREAKER):
        hosts.append(_virtual_host(role, "narrow", what.domains("narrow")))
    if role.has(Feature.LEAST_REQUEST):
        hosts.append(_virtual_host(role, "uneven", what.domains("uneven")))
    if role.has(Feature.PEER_IDENTITY):
        hosts += [_virtual_host(role, name, what.domains(name)) for name in ("impostor", "stranger")]
    if role.has(Feature.FAULT) and role.ports.echo:
        faulty = _virtual_host(role, "echo", what.domains("faulty"))
        faulty["name"] = "faulty"
        faulty["typed_per_filter_config"] = {"envoy.filters.http.fault": _fault()}
        hosts.append(faulty)
    return {"name": "bench", "virtual_hosts": hosts}


def _virtual_host(role: Role, service: str, names: tuple[str, ...]) -> dict[str, Any]:
    routes = []
    action: dict[str, Any] = {"cluster": service, "timeout": "0s"}
    if role.has(Feature.RETRY):
        action["retry_policy"] = {
            "retry_on": RETRY_ON,
            "retriable_status_codes": [what.RETRIED_STATUS],
            "num_retries": what.RETRIES,
            "host_selection_retry_max_attempts": 5,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
        }
    if role.has(Feature.CANARY) and service in role.services:
        name, value = what.CANARY_HEADER
        header = {"name": name, "string_match": {"exact": value}}
        canary = {**action, "cluster": f"{service}-canary"}
        routes.append({"name": "canary", "match": {"prefix": "/", "headers": [header]}, "route": canary})
    for number in range(role.paths):
        routes.append({"match": {"path": f"/exact/{number}"}, "route": action})
        routes.append({"match": {"prefix": f"/prefix/{number}/"}, "route": action})
    for number in range(role.regexes):
        for regex in (f"/regex/{number}/[a-z]+", f"/[a-z]+/item-{number}"):
            routes.append({"match": {"safe_regex": {"regex": regex}}, "route": action})
    routes.append({"name": "default", "match": {"prefix": "/"}, "route": action})
    virtual_host: dict[str, Any] = {"name": service, "domains": list(names), "routes": routes}
    if role.has(Feature.CORS):
        policy = {
            "@type": f"{EXTENSIONS}.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"exact": what.CORS_ORIGIN}],
            "allow_methods": "GET",
        }
        virtual_host["typed_per_filter_config"] = {"envoy.filters.http.cors": policy}
    return virtual_host


def _fault() -> dict[str, Any]:
    name, value = what.FAULT_HEADER
    return {
        "@type": f"{EXTENSIONS}.filters.http.fault.v3.HTTPFault",
        "abort": {"http_status": what.FAULT_STATUS, "percentage": {"numerator": 100}},
        "headers": [{"name": name, "string_match": {"exact": value}}],
    }


# ---------------------------------------------------------------------------------------------------------- clusters

_Target = tuple[str, int]


def _clusters(role: Role) -> Iterator[tuple[str, dict[str, Any], list[_Target]]]:
    """Yield name, content and endpoints of each cluster."""
    ports = role.ports
    answer = [("127.0.0.1", port) for port in ports.answer]
    for service in role.services:
        targets = answer
        if role.endpoints and service != role.target:
            number = role.services.index(service)
            targets = [(f"10.{1 + each}.{number >> 8}.{number & 255}", 8080) for each in range(role.endpoints)]
        yield service, _cluster(role, service, under_load=True), targets
        if role.has(Feature.CANARY):
            name = f"{service}-canary"
            # Beside a pair it is called without TLS: the other proxy of the pair has one program behind it.
            canary = _cluster(role, name, under_load=role.upstream_tls is None)
            yield name, canary, [("127.0.0.1", ports.canary)]
    # In the mesh a caller reaches `echo` through the other proxy, as it reaches what is under load.
    if ports.echo and not role.tcp:
        through = role.upstream_tls is not None
        targets = answer if through else [("127.0.0.1", port) for port in ports.echo]
        yield "echo", _cluster(role, "echo", under_load=through), targets
    echo = [("127.0.0.1", port) for port in ports.echo]
    if role.has(Feature.RETRY):
        yield "retried", _cluster(role, "retried"), [*echo[:1], ("127.0.0.1", ports.busy)]
    if role.has(Feature.OUTLIER_DETECTION):
        yield "ejecting", _cluster(role, "ejecting"), [*echo[:1], ("127.0.0.1", ports.failing)]
    if role.has(Feature.CIRCUIT_BREAKER):
        narrow = _cluster(role, "narrow")
        narrow["circuit_breakers"]["thresholds"][0] |= {"max_requests": 1, "max_pending_requests": 1}
        yield "narrow", narrow, echo[:1]
    if role.has(Feature.LEAST_REQUEST):
        yield "uneven", _cluster(role, "uneven"), [*echo[:1], ("127.0.0.1", ports.slow)]
    if role.has(Feature.PEER_IDENTITY) and role.upstream_tls:
        for name, tls in (
            ("impostor", role.upstream_tls),
            ("stranger", replace(role.upstream_tls, peer=IDENTITY.format(STRANGER))),
        ):
            impostor = [("127.0.0.1", ports.impostor)]
            yield name, {**_cluster(role, name), **_upstream_tls(tls, name, ["http/1.1"])}, impostor


def _cluster(role: Role, name: str, *, under_load: bool = False) -> dict[str, Any]:
    """*under_load* says that it leads to the backends of the load, or the other proxy, in the role's protocol."""
    cluster: dict[str, Any] = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
    }
    if role.has(Feature.CIRCUIT_BREAKER):
        thresholds = {
            "max_connections": what.MAX_REQUESTS,
            "max_pending_requests": what.MAX_REQUESTS,
            "max_requests": what.MAX_REQUESTS,
            "max_retries": UNBOUNDED,
            "track_remaining": True,
        }
        cluster["circuit_breakers"] = {"thresholds": [thresholds]}
    if role.has(Feature.OUTLIER_DETECTION):
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
        cluster["outlier_detection"] = {
            "consecutive_5xx": what.CONSECUTIVE_5XX,
            "enforcing_consecutive_5xx": 100,
            "enforcing_success_rate": 0,
            "interval": "10s",
            "base_ejection_time": "30s",
            "max_ejection_percent": 100 if name == "ejecting" else 10,
        }
    if under_load and role.upstream_http2:
        options = {"@type": f"type.googleapis.com/{HTTP_OPTIONS}", "explicit_http_config": _http2()}
        cluster["typed_extension_protocol_options"] = {HTTP_OPTIONS: options}
    if under_load and role.upstream_default:
        options = {
            "@type": f"type.googleapis.com/{HTTP_OPTIONS}",
            "auto_config": {"http_protocol_options": {}, **_http2()},
        }
        cluster["typed_extension_protocol_options"] = {HTTP_OPTIONS: options}
    if under_load and role.upstream_tls:
        offered = ["h2", "http/1.1"] if role.upstream_default else ["h2" if role.upstream_http2 else "http/1.1"]
        cluster |= _upstream_tls(role.upstream_tls, name, offered)
    return cluster


def _upstream_tls(tls: Tls, name: str, alpn: list[str]) -> dict[str, Any]:
    context = _tls_context(tls, alpn)
    names = [{"san_type": "URI", "matcher": {"exact": tls.peer}}]
    context["validation_context"]["match_typed_subject_alt_names"] = names
    typed = {
        "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": context,
        "sni": f"outbound_.80_._.{name}.shop.svc.cluster.local",
    }
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed}}


def _http2() -> dict[str, Any]:
    return {"http2_protocol_options": {"max_concurrent_streams": 1000}}


def _tls_context(tls: Tls, alpn: list[str]) -> dict[str, Any]:
    """Return a `CommonTlsContext` of TLS 1.3 and X25519."""
    return {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519"],
        },
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": tls.chain.read_text()},
                "private_key": {"inline_string": tls.key.read_text()},
            }
        ],
        "validation_context": {"trusted_ca": {"inline_string": tls.roots.read_text()}},
        "alpn_protocols": alpn,
    }


# ----------------------------------------------------------------------------------------------------------- serving


@contextlib.contextmanager
def serving(home: Path, published: Resources) -> Iterator[dict[str, Any]]:
    """Serve *published* to whoever connects; yields the bootstrap of a proxy that does."""
    import threading

    from weft._native import StreamCore

    socket_path = home / "xds.sock"
    core = StreamCore(str(socket_path))
    core.publish("bench", 1, published)
    stopping = threading.Event()

    def attach_streams() -> None:
        import select

        while not stopping.is_set():
            select.select([core.fileno()], [], [], 0.1)
            for event in core.events():
                if event[0] == "connected":
                    core.attach(event[1], "bench")

    thread = threading.Thread(target=attach_streams, daemon=True)
    thread.start()
    try:
        yield bootstrap(
            {"id": "bench", "cluster": "bench"},
            admin=home / "admin.sock",
            xds=socket_path,
            # Of the agent and the control plane; nothing here has a key or sends its records away.
            sds=home / "sds.sock",
            records=home / "records.sock",
        )
    finally:
        stopping.set()
        thread.join()
        core.close()
