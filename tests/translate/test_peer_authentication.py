"""Which PeerAuthentication holds for a port, and what it makes of listeners and endpoints."""

from __future__ import annotations

from typing import Any

import pytest

from tests.translate.meshes import service, sidecar, workload
from tests.translate.readable import KINDS, read
from weft.api.parse import parse
from weft.model import ConfigObject, Protocol, ServicePort, Snapshot
from weft.translate.peer_authentication import Mode, accepted, modes
from weft.translate.translator import Translator, translate


def policy(
    name: str, mode: str = "", *, namespace: str = "default", labels: str = "", ports: dict[int, str] | None = None
) -> str:
    spec = [f"  selector: {{matchLabels: {labels}}}"] if labels else []
    spec += [f"  mtls: {{mode: {mode}}}"] if mode else []
    spec += (
        [f"  portLevelMtls: {{{', '.join(f'{port}: {{mode: {its}}}' for port, its in ports.items())}}}"]
        if ports
        else []
    )
    body = "\n".join(spec) or "  {}"
    return (
        f"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        f"spec:\n{body}\n"
    )


def objects(*texts: str) -> list[ConfigObject]:
    parsed = parse([(f"{index}.yaml", text) for index, text in enumerate(texts)])
    assert not parsed.problems, "\n".join(map(str, parsed.problems))
    return list(parsed.objects)


MESH_STRICT = policy("mesh", "STRICT", namespace="istio-system")
MESH_DISABLE = policy("mesh", "DISABLE", namespace="istio-system")
PERMISSIVE = policy("all", "PERMISSIVE")
REVIEWS = "{app: reviews}"


@pytest.mark.parametrize(
    ("documents", "mode", "name", "path"),
    [
        ((), "STRICT", None, ""),
        ((policy("all"),), "STRICT", None, ""),
        ((MESH_DISABLE,), "DISABLE", "mesh", "spec.mtls.mode"),
        ((MESH_STRICT, PERMISSIVE), "PERMISSIVE", "all", "spec.mtls.mode"),
        ((MESH_DISABLE, policy("all", "UNSET")), "DISABLE", "mesh", "spec.mtls.mode"),
        ((PERMISSIVE, policy("later", "DISABLE")), "PERMISSIVE", "all", "spec.mtls.mode"),
        ((PERMISSIVE, policy("one", "DISABLE", labels=REVIEWS)), "DISABLE", "one", "spec.mtls.mode"),
        ((PERMISSIVE, policy("one", "DISABLE", labels="{app: ratings}")), "PERMISSIVE", "all", "spec.mtls.mode"),
        ((PERMISSIVE, policy("one", labels=REVIEWS)), "PERMISSIVE", "all", "spec.mtls.mode"),
        ((policy("one", "STRICT", labels=REVIEWS), policy("two", "DISABLE", labels=REVIEWS)), "STRICT", "one", "spec.mtls.mode"),
        ((PERMISSIVE, policy("one", labels=REVIEWS, ports={9080: "DISABLE"})), "DISABLE", "one", "spec.portLevelMtls.9080.mode"),
        ((PERMISSIVE, policy("one", "STRICT", labels=REVIEWS, ports={9080: "UNSET"})), "STRICT", "one", "spec.mtls.mode"),
        ((PERMISSIVE, policy("one", "STRICT", labels=REVIEWS, ports={9081: "DISABLE"})), "STRICT", "one", "spec.mtls.mode"),
    ],
)  # fmt: skip
def test_the_narrowest_policy_decides(documents: tuple[str, ...], mode: str, name: str | None, path: str) -> None:
    """Port, workload, namespace, mesh, weft's default; UNSET leaves it to the next; the older of two holds."""
    found = accepted(objects(*documents), {"app": "reviews", "version": "v1"}, 9080)
    assert found.mode == mode
    assert (found.item.key.name if found.item else None, ".".join(map(str, found.path))) == (name, path)


REVIEWS_SERVICE = service(
    "reviews", 1, ports=(ServicePort("http", 9080), ServicePort("tcp", 9000, Protocol.TCP), ServicePort("low", 80, Protocol.HTTP, 9080))
)  # fmt: skip


def mesh(*documents: str) -> Snapshot:
    running = workload(REVIEWS_SERVICE, 0, "10.244.0.7", "v1")
    return Snapshot(
        revision=1,
        config={item.key: item for item in objects(*documents)},
        services={REVIEWS_SERVICE.hostname: REVIEWS_SERVICE},
        workloads={(running.namespace, running.name): running},
    )


SIDECAR = sidecar("reviews-v1-0", address="10.244.0.7")


def chains(snapshot: Snapshot, port: int) -> list[tuple[str, bool, bool]]:
    """Return (transport, whether it asks for ALPN, whether it ends TLS) of each filter chain of an inbound port."""
    found: list[dict[str, Any]] = read(translate(snapshot, SIDECAR), KINDS["listeners"])[f"inbound|{port}"][
        "filterChains"
    ]
    return [
        (
            chain.get("filterChainMatch", {}).get("transportProtocol", "any"),
            "applicationProtocols" in chain.get("filterChainMatch", {}),
            "transportSocket" in chain,
        )
        for chain in found
    ]


def mutual(snapshot: Snapshot, port: int) -> bool:
    """Whether callers are told to use mutual TLS on a port of the service."""
    name = f"outbound|{port}||{REVIEWS_SERVICE.hostname}"
    found = read(translate(snapshot, SIDECAR), KINDS["endpoints"])[name]["endpoints"][0]["lbEndpoints"][0]
    return "envoy.transport_socket_match" in found["metadata"]["filterMetadata"]


def test_a_cluster_is_another_one_when_its_servers_turn_to_or_from_plain_text() -> None:
    """With a cluster a proxy lets go of its connections, of those also that it has opened and not used yet."""

    def clusters(*documents: str) -> dict[str, Any]:
        found = read(translate(mesh(*documents), SIDECAR), KINDS["clusters"])
        return {port: found[f"outbound|{port}||{REVIEWS_SERVICE.hostname}"] for port in (9080, 80, 9000)}

    assert clusters(MESH_STRICT) == clusters(PERMISSIVE) == clusters()
    turned = clusters(policy("one", labels=REVIEWS, ports={9080: "DISABLE"}))
    assert [port for port, cluster in turned.items() if cluster != clusters()[port]] == [9080, 80]
    assert turned[80]["metadata"]["filterMetadata"]["weft"]["plain_text"] == "all"


def test_each_mode_has_its_filter_chains() -> None:
    """STRICT has one with TLS, DISABLE one without; PERMISSIVE tells them apart, and TCP lets the program's own TLS by."""
    strict, plain = [("any", False, True)], [("any", False, False)]
    assert chains(mesh(MESH_STRICT), 9080) == chains(mesh(MESH_STRICT), 9000) == strict
    assert chains(mesh(MESH_DISABLE), 9080) == chains(mesh(MESH_DISABLE), 9000) == plain
    assert chains(mesh(PERMISSIVE), 9080) == [("tls", True, True), ("raw_buffer", False, False)]
    assert chains(mesh(PERMISSIVE), 9000) == [("tls", True, True), ("tls", False, False), ("raw_buffer", False, False)]


def test_a_ports_own_mode_is_the_workloads_port_under_each_of_its_service_ports() -> None:
    document = policy("one", labels=REVIEWS, ports={9080: "DISABLE"})
    found = mesh(PERMISSIVE, document)
    assert [mutual(found, 9080), mutual(found, 80), mutual(found, 9000)] == [False, False, True]
    assert modes(found) == {
        ("default", "reviews-v1-0", 9080): Mode.DISABLE,
        ("default", "reviews-v1-0", 9000): Mode.PERMISSIVE,
    }


def test_the_origin_of_a_mode_is_told() -> None:
    """A filter chain says which policy asks for it, with its place, or that it is weft's default."""
    for documents, origin in (((), "default"), ((MESH_STRICT, PERMISSIVE), "1.yaml:5:10")):
        listener = read(translate(mesh(*documents), SIDECAR), KINDS["listeners"])["inbound|9080"]
        assert {chain["metadata"]["filterMetadata"]["weft"]["origin"] for chain in listener["filterChains"]} == {origin}


def test_while_callers_move_a_port_accepts_both() -> None:
    """Whatever the mode is, and only on the ports that are named; what callers are told is the mode's."""
    for document, told in ((MESH_DISABLE, False), (MESH_STRICT, True)):
        found = mesh(document)
        moving = Snapshot(
            **{name: getattr(found, name) for name in ("revision", "config", "services", "workloads")},
            accepting_both={("default", "reviews-v1-0"): frozenset({9080})},
        )
        assert chains(moving, 9080) == chains(mesh(PERMISSIVE), 9080)
        assert chains(moving, 9000) == chains(found, 9000)
        assert mutual(moving, 9080) == told


def test_a_translator_notices_each_change_of_a_mode() -> None:
    """What is remembered of one snapshot is not taken for the next."""
    translator = Translator()
    base = mesh()
    moving = Snapshot(
        **{name: getattr(base, name) for name in ("config", "services", "workloads")},
        accepting_both={("default", "reviews-v1-0"): frozenset({9080})},
    )
    policies = mesh(PERMISSIVE)
    changed = Snapshot(revision=1, config=policies.config, services=base.services, workloads=base.workloads)
    for snapshot in (base, moving, base, changed, base, changed, moving):
        assert translator.translate(snapshot, SIDECAR) == translate(snapshot, SIDECAR)
