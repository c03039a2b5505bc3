"""Resources of a proxy that reaches the host by its agent (Envoy): where they lead, and that only its own do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.translate.meshes import applied, gateway, ingress, mesh, sidecar, virtual_service
from tests.translate.readable import read
from weft.model import Proxy, Published
from weft.translate.resource import CLUSTER, LISTENER
from weft.translate.translator import Translator, translate

OUTSIDE = "/run/weft/bookinfo/workloads/cart-0/outside.sock"


def resources(proxy: Proxy, kind: str, snapshot: Any = None) -> dict[str, Any]:
    return read(translate(snapshot if snapshot is not None else mesh(2), proxy), kind)


@pytest.mark.parametrize("name", ["PassthroughCluster", "host|5432||"])
def test_what_leads_outside_leads_to_the_relay_with_the_original_destination(name: str) -> None:
    proxy = sidecar(data_plane="envoy", host_ports=(5432,), outside_socket=OUTSIDE)
    cluster = resources(proxy, CLUSTER)[name]
    assert cluster["type"] == "STATIC"
    (endpoint,) = cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"]
    assert endpoint["endpoint"]["address"] == {"pipe": {"path": OUTSIDE}}
    assert cluster["transportSocket"]["typedConfig"]["config"] == {"version": "V2"}
    assert "upstreamBindConfig" not in cluster


def test_no_resource_of_a_relayed_proxy_names_the_hosts_network() -> None:
    """Stock Envoy aborts when it is to enter it."""
    proxy = sidecar(data_plane="envoy", host_ports=(5432,), outside_socket=OUTSIDE)
    for item in translate(mesh(2), proxy):
        assert proxy.host_namespace_path.encode() not in item.value, item.name
    door = ingress(
        data_plane="envoy",
        published=(Published(8080, "127.0.0.1", 18080),),
        published_sockets={8080: "/run/publish-8080.sock"},
    )
    for item in translate(front(), door):
        assert door.host_namespace_path.encode() not in item.value, item.name


def test_a_record_of_a_relayed_connection_names_its_destination() -> None:
    proxy = sidecar(data_plane="envoy", outside_socket=OUTSIDE, access_log_path="/run/access.log")
    outbound = resources(proxy, LISTENER)["virtualOutbound"]
    (outside,) = outbound["defaultFilterChain"]["filters"]
    (mesh_chain,) = (chain for chain in outbound["filterChains"] if chain["name"] == "MeshPassthroughCluster")

    def upstream(network_filter: Any) -> str:
        (log,) = network_filter["typedConfig"]["accessLog"]
        return str(log["typedConfig"]["logFormat"]["jsonFormat"]["upstream_host"])

    assert upstream(outside) == "%DOWNSTREAM_LOCAL_ADDRESS%"
    assert upstream(mesh_chain["filters"][0]) == "%UPSTREAM_HOST%"


def test_two_relayed_proxies_of_one_memory_lead_to_their_own_sockets() -> None:
    translator, snapshot = Translator(), mesh(2)
    for name in ("one", "two", "one"):
        proxy = sidecar(data_plane="envoy", outside_socket=f"/run/{name}/outside.sock")
        (made,) = (item for item in translator.translate(snapshot, proxy) if item.name == "PassthroughCluster")
        assert f"/run/{name}/outside.sock".encode() in made.value


def front() -> Any:
    return applied(
        mesh(2),
        gateway(
            "front",
            selector={"istio": "ingressgateway"},
            servers=[{"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}],
        ),
        virtual_service(
            "front", hosts=["*"], gateways=["front"], http=[{"route": [{"destination": {"host": "service-0"}}]}]
        ),
    )


def test_a_published_port_has_a_listener_of_its_own_that_demands_the_header() -> None:
    """Callers in the mesh must not be able to say by a header that they are somebody else."""
    published = (Published(8080, "127.0.0.1", 18080), Published(8080, "127.0.0.1", 18081))
    proxy = ingress(data_plane="envoy", published=published, published_sockets={8080: "/run/publish-8080.sock"})
    listeners = resources(proxy, LISTENER, front())
    assert set(listeners) == {"0.0.0.0_8080", "published_8080"}
    inside, outside = listeners["0.0.0.0_8080"], listeners["published_8080"]
    assert "additionalAddresses" not in inside
    assert "listenerFilters" not in inside
    assert outside["address"] == {"pipe": {"path": "/run/publish-8080.sock", "mode": 0o600}}
    (header,) = outside["listenerFilters"]
    assert header["name"] == "envoy.filters.listener.proxy_protocol"
    assert "allowRequestsWithoutProxyProtocol" not in header["typedConfig"]
    assert outside["filterChains"] == inside["filterChains"]
