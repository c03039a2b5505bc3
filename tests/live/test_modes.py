"""PeerAuthentication is switched while requests run through chained sidecars of both kinds, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.live.load import Program, Tally, load
from tests.live.mesh import PATIENCE_SECONDS, LiveMesh, live_mesh

POLICY = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec:
  mtls: {{mode: {mode}}}
"""

FEW_REQUESTS = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: left}
spec:
  host: left
  trafficPolicy:
    connectionPool: {http: {maxRequestsPerConnection: 3}}
"""
"""Connections to one of the two are made anew all the time; those to the other are kept for the whole test."""

EVERY_SWITCH = ("PERMISSIVE", "STRICT", "DISABLE", "STRICT", "PERMISSIVE", "DISABLE", "PERMISSIVE", "STRICT")


def chained(mesh: LiveMesh) -> list[tuple[int, str, str]]:
    """Both directions, each through four proxies: a sidecar's client and server side, and the same on the way on."""
    left, right = mesh.ports["left"], mesh.ports["right"]
    return [
        (mesh["left"].outbound[right], f"right:{right}", f"/relay/{mesh['right'].outbound[left]}/left:{left}"),
        (mesh["right"].outbound[left], f"left:{left}", f"/relay/{mesh['left'].outbound[right]}/right:{right}"),
    ]


async def in_force(mesh: LiveMesh, left: str, right: str) -> None:
    """Wait until each of both takes what its mode says, and is called by the other as it says."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        for callee, caller, mode in (("left", "right", left), ("right", "left", right)):
            while await mesh[callee].takes_plain_text() != (mode != "STRICT"):
                await asyncio.sleep(0.05)
            identity = f"spiffe://cluster.local/ns/default/sa/{caller}" if mode != "DISABLE" else None
            while mesh[callee].last_caller() != identity:
                await asyncio.sleep(0.05)


async def go_on(mesh: LiveMesh, tally: Tally, left: str, right: str) -> None:
    """Wait for more answers and until these modes are in force, and see that nothing has failed."""
    before = tally.answers
    while tally.answers < before + 200 and not tally.failed:
        await asyncio.sleep(0.01)
    await in_force(mesh, left, right)
    tally.assert_none_failed([left, right, *mesh["left"].troubles(), *mesh["right"].troubles()])


@asynccontextmanager
async def under_load() -> AsyncIterator[tuple[LiveMesh, Tally]]:
    """Two programs that call each other beside either data plane, under load from which nothing may be lost in the block."""
    async with live_mesh([("left", "weft-proxy"), ("right", "envoy")]) as mesh:
        await mesh.apply(FEW_REQUESTS)
        async with load(chained(mesh), clients=4) as tally:
            yield mesh, tally
        tally.check()
        assert tally.opened == tally.clients, "a client's connection was not kept"


@pytest.mark.conformance
@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.timeout(240)
def test_switching_modes_under_load_loses_no_request() -> None:
    """Each of the six switches between the three modes, while GET and POST run on connections that are kept."""

    async def run() -> None:
        async with under_load() as (mesh, tally):
            for mode in EVERY_SWITCH:
                answer = await mesh.apply(POLICY.format(mode=mode))
                assert not answer["warnings"], answer["warnings"]
                assert {"left-v1-0", "right-v1-0"} == set(answer["affected"])
                await go_on(mesh, tally, mode, mode)

    asyncio.run(run())


LEVEL = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"""

EVERY_LEVEL = (
    ("istio-system/mesh", "{{mtls: {{mode: DISABLE}}}}", "DISABLE", "DISABLE"),
    ("default/one", "{{selector: {{matchLabels: {{app: {service}}}}}, mtls: {{mode: STRICT}}}}", "STRICT", "DISABLE"),
    (
        "default/one",
        "{{selector: {{matchLabels: {{app: {service}}}}}, portLevelMtls: {{{port}: {{mode: PERMISSIVE}}}}}}",
        "PERMISSIVE",
        "DISABLE",
    ),
    (
        "default/one",
        "{{selector: {{matchLabels: {{app: {service}}}}}, mtls: {{mode: DISABLE}}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}",
        "STRICT",
        "DISABLE",
    ),
    ("default/namespace", "{{mtls: {{mode: PERMISSIVE}}}}", "STRICT", "PERMISSIVE"),
    ("default/one", "", "PERMISSIVE", "PERMISSIVE"),
    ("default/namespace", "", "DISABLE", "DISABLE"),
    ("istio-system/mesh", "", "STRICT", "STRICT"),
)
"""What is applied, or deleted where there is no spec; and what a service then does, and what the other one."""


@pytest.mark.conformance
@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.timeout(240)
@pytest.mark.parametrize("service", ["left", "right"])
def test_switching_at_every_level_under_load_loses_no_request(service: str) -> None:
    """Port, workload, namespace and mesh; a policy that appears, changes, and gives way to a wider one."""

    async def run() -> None:
        async with under_load() as (mesh, tally):
            for key, spec, its, others in EVERY_LEVEL:
                namespace, name = key.split("/")
                if spec:
                    written = spec.format(service=service, port=mesh.ports[service])
                    answer = await mesh.apply(LEVEL.format(name=name, namespace=namespace, spec=written))
                else:
                    answer = await mesh.delete("PeerAuthentication", namespace, name)
                assert not answer["warnings"], answer["warnings"]
                await go_on(mesh, tally, *((its, others) if service == "left" else (others, its)))

    asyncio.run(run())


LEVELS = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: mesh, namespace: istio-system}}
spec:
  mtls: {{mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: namespace}}
spec:
  mtls: {{mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: one}}
spec:
  selector: {{matchLabels: {{app: {service}}}}}
  mtls: {{mode: STRICT}}
  portLevelMtls:
    {port}: {{mode: DISABLE}}
"""


@pytest.mark.conformance
@pytest.mark.timeout(240)
@pytest.mark.parametrize("service", ["left", "right"])
def test_port_workload_namespace_and_mesh_hold_on_both_data_planes(service: str) -> None:
    """The narrowest says what a proxy takes; when it is deleted, the next wider one does."""

    async def run() -> None:
        async with live_mesh([("left", "weft-proxy"), ("right", "envoy")]) as mesh:
            other = "right" if service == "left" else "left"
            mesh_wide, namespace, workload = LEVELS.format(service=service, port=mesh.ports[service]).split("---\n")

            async def takes(*, mine: bool, others: bool) -> None:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while await mesh[service].takes_plain_text() != mine:
                        await asyncio.sleep(0.05)
                    while await mesh[other].takes_plain_text() != others:
                        await asyncio.sleep(0.05)
                for caller, callee in ((service, other), (other, service)):
                    await mesh[caller].reaches(callee, mesh.ports[callee])

            await takes(mine=False, others=False)
            await mesh.apply(namespace)
            await takes(mine=True, others=True)
            await mesh.apply(mesh_wide)
            await takes(mine=True, others=True)
            await mesh.apply(
                workload.replace(f"    {mesh.ports[service]}: {{mode: DISABLE}}", "    9: {mode: DISABLE}")
            )
            await takes(mine=False, others=True)
            await mesh.apply(workload)
            await takes(mine=True, others=True)
            await mesh.delete("PeerAuthentication", "default", "namespace")
            await takes(mine=True, others=False)
            await mesh.delete("PeerAuthentication", "default", "one")
            await takes(mine=False, others=False)

    asyncio.run(run())


class Carried(Program):
    """Its port is declared as TCP. It says what `says` says, and then sends back what comes; at first it speaks HTTP."""

    protocol = "TCP"
    says: bytes | None = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.says is None:
            return await super()._serve(reader, writer)
        writer.write(self.says)
        while part := await reader.read(1000):
            writer.write(part)
        writer.close()
        return None


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["weft-proxy", pytest.param("envoy", marks=pytest.mark.conformance)])
def test_plain_text_is_found_under_permissive_whatever_it_looks_like(kind: str) -> None:
    """The beginning of a TLS record (RFC 8446 5.1) of which the rest never comes, and nothing, because the server speaks first."""

    async def run() -> None:
        async with live_mesh([("carried", kind)], program=Carried) as mesh:
            member = mesh["carried"]
            assert isinstance(member.program, Carried)
            await mesh.apply(LEVELS.format(service="carried", port=mesh.ports["carried"]).split("---\n")[1])
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await member.takes_plain_text():
                    await asyncio.sleep(0.05)
            for says, sent in (
                (b"", b"text"),
                (b"", b"\x80\x03\x01\x3f\xff and less than 16 KiB"),
                (b"220 ready", b""),
            ):
                member.program.says = says
                reader, writer = await asyncio.open_connection(*member.inbound)
                writer.write(sent)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    assert await reader.readexactly(len(says + sent)) == says + sent
                writer.close()
                await writer.wait_closed()

    asyncio.run(run())
