"""
The bootstrap of a proxy: who it is, the two sockets from which it learns everything else, and the one to which its
access records go.

Pure. The subset of Envoy's bootstrap that weft-proxy reads (docs/reference/interfaces.md, 4.5); Envoy reads it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

XDS_CLUSTER = "xds-grpc"
SDS_CLUSTER = "sds-grpc"
RECORDS_CLUSTER = "records-grpc"
"""Where the access logs of the configuration are sent: its `access_log_cluster` (weft.model.Proxy)."""

CONNECT_TIMEOUT = "5s"
"""To a Unix socket on this machine, so anything but at once means that nobody is there."""


def bootstrap(
    node: Mapping[str, Any], *, admin: Path, xds: Path, sds: Path, records: Path, source: str = ""
) -> dict[str, Any]:
    """
    Return the bootstrap as a JSON value.

    Args:
        node: `id`, `cluster`, `metadata` as the control plane gave them at registration.
        admin: Socket on which the proxy is to answer questions about itself.
        xds: Socket of the control plane's discovery service.
        sds: Socket of the agent's secret discovery service.
        records: Socket of the control plane's access log service.
        source: Address from which connections come whose cluster has no `upstream_bind_config` of its own: the
            workload's, so that those who are called see who calls. All proxies of a mesh share its network, and the
            kernel's choice there would be the address that is called. Empty leaves it to the kernel.
    """
    ads = {"ads": {}, "resource_api_version": "V3"}
    content = {
        "node": dict(node),
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "static_resources": {
            "clusters": [
                _grpc_cluster(XDS_CLUSTER, xds),
                _grpc_cluster(SDS_CLUSTER, sds),
                _grpc_cluster(RECORDS_CLUSTER, records),
            ]
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
    }
    if source:
        content["cluster_manager"] = {"upstream_bind_config": {"source_address": {"address": source, "port_value": 0}}}
    return content


def _grpc_cluster(name: str, socket: Path) -> dict[str, Any]:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
