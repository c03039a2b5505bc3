"""weft-proxy honours, in every field, what is made for it: asked of the proxy's own code in process."""

from __future__ import annotations

import importlib
import os
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.translate.kubernetes import load
from tests.translate.meshes import applied, gateway, ingress, mesh, sidecar, virtual_service
from tests.translate.test_istiod_oracle import SCENARIOS
from weft.api import header_format
from weft.model import Interception, LocalCaller, Proxy, Published, Snapshot
from weft.translate.capabilities import refusals
from weft.translate.translator import translate


@pytest.fixture(scope="session")
def native() -> Any:
    try:
        return importlib.import_module("weft._native")
    except ImportError:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have built the native module")
        pytest.skip("the native module is not built here")


def not_honoured(native: Any, snapshot: Snapshot, proxy: Proxy) -> list[tuple[str, str]]:
    found = []
    for item in translate(snapshot, replace(proxy, data_plane="weft-proxy")):
        found += [(item.name, str(problem)) for problem in native.validate(item.type_url, item.value)]
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_recorded_scenarios_are_honoured(native: Any, corpus: Path, name: str) -> None:
    """Every resource for every proxy: the table of capabilities says no more than the proxy does."""
    scenario = load(corpus / "istiod-xds" / name)
    assert not any(refusals(item, "weft-proxy") for item in scenario.snapshot.config.values())
    for proxy in scenario.proxies.values():
        assert not_honoured(native, scenario.snapshot, proxy) == []


def test_sidecars_are_honoured_with_and_without_interception(native: Any) -> None:
    """Namespaces, host ports and access records; and plain local addresses."""
    proxy = sidecar(host_ports=(5432,), access_log_path="/run/weft/access.log")
    assert not_honoured(native, mesh(3), proxy) == []
    explicit = sidecar(interception=Interception.EXPLICIT, outbound_addresses={9080: ("127.0.0.1", 19080)})
    assert not_honoured(native, mesh(3), explicit) == []
    local = LocalCaller(1000, "ab" * 32)
    checked = sidecar(address="127.77.3.1", interception=Interception.EXPLICIT, local_caller=local)
    assert not_honoured(native, mesh(3), checked) == []


def test_gateways_are_honoured(native: Any) -> None:
    """With routes, and addresses on the host."""
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    http = [{"route": [{"destination": {"host": "service-0"}}]}]
    snapshot = applied(
        mesh(2),
        gateway("front", selector={"istio": "ingressgateway"}, servers=[server]),
        virtual_service("front", hosts=["*"], gateways=["front"], http=http),
    )
    assert not_honoured(native, snapshot, ingress(published=(Published(8080, "127.0.0.1", 18080),))) == []


HEADER_VALUES = [
    *(f"%{name}%" for name in sorted(header_format.PLAIN_VARIABLES)),
    *(f"%{name}({argument})%" for name in sorted(header_format.HEADER_VARIABLES) for argument in ("x", "x?:path")),
    *(f"%GRPC_STATUS({name})%" for name in sorted(header_format.GRPC_STATUS_FORMATS)),
    *(f"%DYNAMIC_METADATA({name}:key):7%" for name in sorted(header_format.METADATA_NAMESPACES)),
    *("%REQ(x):10%", "%START_TIME(%s.%3f (z)%", "a %% %PROTOCOL%%ROUTE_NAME%%% b"),
    *(f"%START_TIME(a%{letter}b)%" for letter in string.ascii_letters + string.digits + "%. "),
    *("%START_TIME()%", "%START_TIME(%)%", "%START_TIME(%1f %9f)%", "%START_TIME(%0f)%", "%START_TIME(%10f)%"),
    *("5%", "%NOSUCH%", "%NOSUCH(a)%", "%REQ%", "%PROTOCOL(a)%", "%PROTOCOL:5%", "%START_TIME(a):5%", "%protocol%"),
    *("%GRPC_STATUS(a)%", "%DYNAMIC_METADATA(a:b)%", "%DYNAMIC_METADATA(envoy.filters.http.rbac:a:b)%", "%REQ(a)"),
]


@pytest.mark.parametrize("value", HEADER_VALUES)
def test_values_of_headers_are_accepted_where_the_rules_accept_them(native: Any, value: str) -> None:
    """A value that passes the rules and not the proxy would cost the whole route table of a port."""
    http = [{"headers": {"request": {"set": {"x": value}}}, "route": [{"destination": {"host": "service-0"}}]}]
    refused = not_honoured(native, applied(mesh(1, rules=False), virtual_service("service-0", http=http)), sidecar())
    assert bool(refused) == (header_format.fault(value) is not None)
