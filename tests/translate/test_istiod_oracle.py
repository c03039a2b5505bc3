"""
What Istio's own control plane generates for the same input, compared field by field.

The recordings are in the corpus (`istiod-xds`). Every field that differs must be named in `istiod_differences.yaml`
with the reason; an entry there that no longer matches anything is a failure too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.translate.differences import Known, known_differences
from tests.translate.kubernetes import Scenario, load
from tests.translate.readable import KINDS, canonical, leaves, read
from weft.model import ProxyKind
from weft.translate.translator import translate

SCENARIOS = (
    "bookinfo-ingress-gateway",
    "bookinfo-mtls",
    "bookinfo-ratings-abort",
    "bookinfo-reviews-90-10",
    "bookinfo-reviews-jason-v2-v3",
    "bookinfo-reviews-test-v2-ratings-delay",
    "bookinfo-v1",
    "bookinfo-v1-auto-mtls-off",
    "consistent-hash-cookie",
    "consistent-hash-header",
    "consistent-hash-query-ringhash",
    "consistent-hash-source-ip-maglev",
    "gateway-api-bookinfo-gateway",
    "gateway-api-reviews-90-10",
    "gateway-api-reviews-v1",
    "httpbin-mirror",
    "httpbin-retries-timeout-circuit-breaker",
    "load-balancing-simple",
    "peerauthentication-per-port",
    "peerauthentication-permissive-namespace",
    "peerauthentication-strict-mesh",
    "tcp-echo-weighted",
    "tcp-echo-weighted-mesh",
)

MATCHES = ".transportSocketMatches["
"""The path in a cluster under which the identities of its servers are, with automatic mutual TLS."""


def differences(scenario: Scenario, proxy: str) -> list[tuple[str, str, Any, Any]]:
    """Return (kind/name, path, istiod's value, weft's value) of each field that differs; None is absent."""
    node = scenario.proxies[proxy]
    made = translate(scenario.snapshot, node)
    found = []
    for kind, type_url in KINDS.items():
        recorded = {
            item.get("name", item.get("clusterName")): canonical(item) for item in scenario.recorded(proxy, kind)
        }
        if kind == "listeners":
            recorded.update(inbound_listeners(recorded, node.address))
        mine = read(made, type_url)
        for name in sorted(recorded.keys() | mine.keys()):
            label = f"{node.kind} {kind}/{name}"
            if name not in recorded or name not in mine:
                found.append((label, "", recorded.get(name) and "there", mine.get(name) and "there"))
                continue
            theirs, ours = dict(leaves(recorded[name])), dict(leaves(mine[name]))
            for path in sorted(theirs.keys() | ours.keys()):
                if theirs.get(path) != ours.get(path):
                    found.append((label, path, theirs.get(path), ours.get(path)))
    return found


def inbound_listeners(recorded: dict[str, dict[str, Any]], address: str) -> dict[str, dict[str, Any]]:
    """
    Return istiod's one inbound listener as weft's: one for each port of the workload.

    Istio's catches every port and chooses by the original destination. Where one chain is left for a port, STRICT or
    DISABLE, weft needs no condition for it: what is not meant for it fails in it.
    """
    listener = recorded.get("virtualInbound", {})
    by_port: dict[int, list[dict[str, Any]]] = {}
    for chain in listener.get("filterChains", ()):
        if (port := chain.get("filterChainMatch", {}).pop("destinationPort", None)) and port != 15006:
            by_port.setdefault(port, []).append(chain)
    made = {}
    for port, chains in by_port.items():
        name = f"inbound|{port}"
        for filter_ in (filter_ for chain in chains for filter_ in chain["filters"]):
            for host in filter_["typedConfig"].get("routeConfig", {}).get("virtualHosts", ()):
                host["name"] = f"inbound|http|{port}"  # Istio writes the service's port, which says nothing here
        made[name] = {
            "name": name,
            "address": {"socketAddress": {"address": address, "portValue": port}},
            "filterChains": chains,
            "trafficDirection": "INBOUND",
        }
        inspector = next(item for item in listener["listenerFilters"] if item["name"].endswith("tls_inspector"))
        plain = [chain["filterChainMatch"]["transportProtocol"] for chain in chains] == ["raw_buffer"]
        assert _disabled(inspector.get("filterDisabled"), port) == plain
        if not plain:
            inspecting = {key: value for key, value in inspector.items() if key != "filterDisabled"}
            made[name] |= {"listenerFilters": [inspecting], "listenerFiltersTimeout": "0s"}
            made[name]["continueOnListenerFiltersTimeout"] = True
        if len(chains) == 1:
            del chains[0]["filterChainMatch"]
    return made


def _disabled(predicate: dict[str, Any] | None, port: int) -> bool:
    if predicate is None:
        return False
    if "orMatch" in predicate:
        return any(_disabled(rule, port) for rule in predicate["orMatch"]["rules"])
    ports = predicate["destinationPortRange"]
    return bool(ports["start"] <= port < ports["end"])


def test_resources_mean_what_istiods_mean(corpus: Path) -> None:
    """Every field of every resource of every proxy is istiod's, or the difference is known; each entry is needed."""
    used: set[Known] = set()
    unexplained: list[str] = []
    compared = 0
    for name in SCENARIOS:
        scenario = load(corpus / "istiod-xds" / name)
        for proxy in scenario.proxies:
            compared += 1
            for label, path, theirs, ours in differences(scenario, proxy):
                reasons = [known for known in known_differences() if known.explains_field(name, label, path)]
                used.update(reasons)
                if not reasons:
                    unexplained.append(f"{name} {proxy} {label} {path}: istiod {theirs!r}, weft {ours!r}")
    assert not unexplained, f"{len(unexplained)} differences, the first:\n" + "\n".join(unexplained[:60])
    assert compared > 50
    stale = [known for known in known_differences() if known.resource and known not in used]
    assert not stale, f"differences that are none any more: {stale}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_identities_are_istiods(corpus: Path, name: str) -> None:
    """The identities that a server must prove, and that a client may have, are istiod's."""
    scenario = load(corpus / "istiod-xds" / name)
    compared = 0
    for proxy in scenario.proxies:
        made = translate(scenario.snapshot, scenario.proxies[proxy])
        theirs = {item["name"]: canonical(item) for item in scenario.recorded(proxy, "clusters")}
        mine = read(made, KINDS["clusters"])
        for cluster in theirs.keys() & mine.keys():
            label = f"{scenario.proxies[proxy].kind} clusters/{cluster}"
            only_ours = not _identities(theirs[cluster]) and any(
                known.explains_field(name, label, MATCHES) for known in known_differences()
            )
            assert only_ours or _identities(mine[cluster]) == _identities(theirs[cluster]), cluster
            compared += bool(_identities(mine[cluster]))
        listeners = {item["name"]: canonical(item) for item in scenario.recorded(proxy, "listeners")}
        for name_, listener in inbound_listeners(listeners, "").items():
            ours = read(made, KINDS["listeners"])[name_]
            assert _identities(ours) == _identities(listener)
            assert bool(_identities(ours)) == any("transportSocket" in chain for chain in listener["filterChains"])
    assert compared


def _identities(resource: dict[str, Any]) -> frozenset[tuple[str, str]]:
    """Return (kind of match, identity) wherever in *resource* a peer's SAN is matched."""
    found = set()
    for path, value in leaves(resource):
        if re.search(r"\.match(Typed)?SubjectAltNames\[", path) and not path.endswith("sanType"):
            found.add((path.rpartition(".")[2], value))
    return frozenset(found)


@pytest.mark.parametrize("name", SCENARIOS)
def test_recorded_proxies_are_of_both_kinds_known(corpus: Path, name: str) -> None:
    """The scenario's nodes become proxies with the workload that the pods describe."""
    scenario = load(corpus / "istiod-xds" / name)
    for proxy in scenario.proxies.values():
        if proxy.kind is ProxyKind.SIDECAR:
            assert (proxy.namespace, proxy.workload) in scenario.snapshot.workloads
