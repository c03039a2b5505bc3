"""What an agent says of its workload, and what the registry of the control plane makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weft.agent.paths import MeshPaths
from weft.agent.program import Restart
from weft.agent.workload import WorkloadSpec
from weft.errors import UsageError
from weft.model import ProxyKind, Published
from weft.registry import Programs, Registration

CART = WorkloadSpec(
    service="cart",
    version="v2",
    labels={"tier": "front"},
    ports=((8080, "HTTP"), (3306, "TCP")),
    host_ports=(5432,),
    argv=("./cart", "--verbose"),
    environment={"A": "1"},
    directory="/srv",
    restart=Restart.ON_FAILURE,
)
DOOR = WorkloadSpec(service="door", name="door-0", gateway=True, published=(Published(8080, "127.0.0.1", 18080),))


FILES = MeshPaths("shop", Path("/run/weft/shop"), Path("/state/weft/shop"))


def registry_of_shop() -> Programs:
    """The registry as the control plane makes it."""
    return Programs(
        host_namespace_path=str(FILES.host_namespace),
        namespace_path=lambda workload: str(FILES.workload(workload).namespace),
        access_log_path=lambda workload: str(FILES.workload(workload).access_log),
    )


@pytest.mark.parametrize("spec", [CART, DOOR])
def test_a_spec_survives_the_way_to_the_holder(spec: WorkloadSpec) -> None:
    assert WorkloadSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_registry_understands_a_sidecars_registration() -> None:
    registry = registry_of_shop()
    key = registry.register(Registration.from_json(CART.registration()))
    assert key == ("default", "cart-v2-0")
    view = registry.view()
    assert view.proxies[key].namespace_path == "/run/weft/shop/ns/cart-v2-0"
    assert view.proxies[key].access_log_path == "/run/weft/shop/workloads/cart-v2-0/access.log"
    assert view.proxies[key].host_ports == (5432,)
    assert dict(view.workloads[key].labels) == {"app": "cart", "version": "v2", "tier": "front"}
    assert [(port.number, port.protocol) for port in view.workloads[key].ports] == [(8080, "HTTP"), (3306, "TCP")]


def test_the_registry_understands_a_gateways_registration() -> None:
    registry = registry_of_shop()
    key = registry.register(Registration.from_json(DOOR.registration()))
    proxy = registry.view().proxies[key]
    assert (proxy.kind, proxy.namespace_path) == (ProxyKind.GATEWAY, "")
    assert proxy.published == (Published(8080, "127.0.0.1", 18080),)


def test_a_program_without_ports_is_a_client_and_no_service() -> None:
    registry = registry_of_shop()
    registry.register(Registration.from_json(WorkloadSpec(service="curl", argv=("curl",)).registration()))
    assert registry.view().services == {}


def test_a_workload_whose_sockets_would_have_too_long_a_path_is_refused_at_once() -> None:
    spec = WorkloadSpec(service="a" * 40, name="a" * 63, argv=("true",))
    deep = MeshPaths("shop", Path("/run/" + "deep/" * 12), Path("/state"))
    registry = Programs(access_log_path=lambda workload: str(deep.workload(workload).access_log))
    with pytest.raises(UsageError, match="Choose shorter names"):
        registry.register(Registration.from_json(spec.registration()))
    assert registry.view().workloads == {}
