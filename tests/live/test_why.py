"""
Failures made on purpose, through two chained sidecars with mutual TLS: what `weft why` makes of each, on both planes.

Each case makes one request (or one connection) fail in one way and says what the explanation must name: the finding,
whose doing it was, and what the client saw. The table is the same for weft-proxy and for Envoy.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.live.load import Program
from tests.live.mesh import PATIENCE_SECONDS, LiveMesh, live_mesh, until
from tests.live.trouble import Grpc, Trouble, reset
from tests.ports import free_port
from weft.agent.agent import elsewhere_text
from weft.errors import WeftError
from weft.identity import Authority
from weft.insight import Hop, happened, programs, tell, tree_to_json, verdict
from weft.insight.tell import MUTUAL_TLS
from weft.telemetry import Configuration, Record

ARRIVAL_SECONDS = 15.0
"""For records, which are on their way for a tenth of a second."""

BUSY_MS = 5_000.0
"""What a busy machine may add to any time."""

ELSEWHERE = "127.129.9.9"
"""Nobody's address."""

DOMAIN = "cluster.local"
IDENTITY, SERVER_IDENTITY = (f"spiffe://{DOMAIN}/ns/default/sa/{name}" for name in ("client", "server"))

VIRTUAL_SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server}
spec:
  hosts: [server]
  http:
"""
PLAIN_ROUTE = "  - route: [{destination: {host: server}}]\n"
NO_RETRIES = "    retries: {attempts: 0}\n"

DESTINATION_RULE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server}
spec:
  host: server
"""

STRICT, DISABLE = (
    f"""\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: server}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  mtls: {{mode: {mode}}}
"""
    for mode in ("STRICT", "DISABLE")
)


class Scene:
    """A client's and a server's sidecar, and a program that makes trouble behind the latter."""

    def __init__(self, mesh: LiveMesh, program: Trouble) -> None:
        self.mesh, self.program = mesh, program
        self.port = mesh.ports["server"]
        self.client, self.server = mesh["client"], mesh["server"]
        self.begun = False
        """Whether the client has something of the answer to its last request."""

    async def apply(self, *documents: str) -> None:
        """Apply *documents* and nothing else, and wait until both proxies have them."""
        await self.forget()
        for text in documents:
            await self._settled(await self.mesh.apply(text))

    async def forget(self) -> None:
        keys = [item["key"] for item in await self.mesh.get("/v1/config")]
        if keys:
            await self._settled(await self.mesh.post("/v1/delete", {"keys": keys}))

    async def _settled(self, outcome: Any) -> None:
        await self.mesh.get(f"/v1/revisions/{outcome['revision']}", wait=30)

    async def ask(
        self,
        *,
        method: str = "GET",
        path: str = "/",
        host: str = "server",
        body: bytes = b"",
        leave: float = 0.0,
        in_order: bool = False,
        upgrade: str = "",
    ) -> tuple[str, int | None]:
        """
        Send a request to the client's sidecar; return its id and the status.

        Args:
            leave: Go away after so many seconds, with RST or FIN.
            upgrade: The protocol that is asked for.
        """
        request_id = str(uuid.uuid4())
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.client.outbound[self.port])
        except ConnectionResetError:  # taken and reset before it could be looked at
            return request_id, None
        head = f"{method} {path} HTTP/1.1\r\nhost: {host}:{self.port}\r\nx-request-id: {request_id}\r\n"
        head += f"content-length: {len(body)}\r\n" if body else ""
        head += f"connection: upgrade\r\nupgrade: {upgrade}\r\n\r\n" if upgrade else "connection: close\r\n\r\n"
        writer.write(head.encode() + body)
        if leave:
            await asyncio.sleep(leave)
            if in_order:
                writer.close()
            else:
                reset(writer)
            return request_id, None
        answer, self.begun = b"", False
        with contextlib.suppress(OSError):
            while part := await asyncio.wait_for(reader.read(4096), PATIENCE_SECONDS):
                answer, self.begun = answer + part, True
                if upgrade and answer.endswith(b"\r\n\r\nok"):
                    break  # who did not ask for the end of the connection does not get it
        writer.close()
        return request_id, int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else None

    async def ask_the_dying(self, **request: Any) -> tuple[str, int | None]:
        """Send a request, and kill the server's proxy when the program has it and the client what there is of an answer."""
        self.program.seen.clear()
        asking = asyncio.create_task(self.ask(**request))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.program.seen:
                await asyncio.sleep(0.02)
            if self.program.mode == "stall":
                while not self.begun:
                    await asyncio.sleep(0.02)
        process = self.server.process
        assert process is not None
        process.kill()
        await asyncio.to_thread(process.wait)
        try:
            return await asking
        finally:
            self.program.mode = "ok"
            self.server.start_proxy()
            await until(self.server.proxy_is_ready, what="the server's proxy again")
            await self.client.reaches("server", self.port)

    async def explain(self, request_id: str, *, complete: Callable[[list[Hop]], bool] = bool) -> Hop:
        """Return the tree of a request, once it is there and *complete*."""
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while True:
            hops = await self.hops((await self.mesh.get("/v1/records", request_id=request_id))["records"])
            if len(hops) == 1 and complete(hops):
                return hops[0]
            if time.monotonic() > deadline:
                raise AssertionError(f"this is all that was told:\n{tell(hops)}\n{await self.refused()}")
            await asyncio.sleep(0.1)

    async def hops(self, records: list[Any]) -> list[Hop]:
        refused = await self.refused()
        found = [Record.from_json(item) for item in records]
        history = {}
        for item in (*found, *refused[:10]):
            history[item.node, item.start] = await self.mesh.get("/v1/history", node=item.node, at=item.start)

        def past(node: str, at: float) -> list[Configuration]:
            return [
                Configuration(node, it["revision"], it["published"], it["acknowledged"], decoded(it["resources"]))
                for it in history.get((node, at), ())
            ]

        now = programs(await self.mesh.get("/v1/workloads"), await self.mesh.get("/v1/proxies"))
        return happened(found, refused, past, now)

    async def refused(self) -> list[Record]:
        """Return the connections that proxies refused lately."""
        answer = await self.mesh.get("/v1/records", limit=200, failed=1, log="connections")
        return [Record.from_json(item) for item in answer["records"]]


def decoded(resources: list[dict[str, str]]) -> tuple[tuple[str, str, bytes], ...]:
    return tuple((it["type_url"], it["name"], base64.b64decode(it["value"])) for it in resources)


@dataclass(frozen=True)
class Case:
    """
    One failure.

    Attributes:
        status: What the client got; None: no answer.
        code: Of the finding; None: nothing is wrong with the mesh.
        by, workload: Whose doing.
        config: Applied before.
        mode: Of the program.
        request: Further arguments of `Scene.ask`.
        tries: How many tries the client's side tells of; None: it does not matter.
        policy: What the text must name as the policy that decided; none is named where this is empty.
        arrivals: How many requests the server's proxy saw, one for each try; their records must be there.
        killed: The server's proxy is killed while the program has the request.
        lasts: Milliseconds that it takes, of each try where there are several: what its timeout or its delay says.
        says: What the text must have, word for word.
    """

    name: str
    status: int | None
    code: str | None
    by: str
    workload: str
    config: tuple[str, ...] = ()
    mode: str = "ok"
    request: dict[str, Any] | None = None
    tries: int | None = None
    policy: str = ""
    arrivals: int = 1
    killed: bool = False
    lasts: float = 0.0
    says: tuple[str, ...] = ()


def route(text: str) -> str:
    return VIRTUAL_SERVICE + text


BY_RULE = (
    "client-v1-0 spoke plain text, as DestinationRule default/server says, and server-v1-0 requires mutual TLS",
    "; DestinationRule default/server, trafficPolicy.tls (",
    "What to do: Remove `tls` from DestinationRule default/server,",
    "The proxy of server-v1-0 refused the connection.",
)
"""Of a client that called the service by its name."""

CASES = (
    Case(
        "answered", 200, None, "program", "server-v1-0",
        says=("time: request whole after ", ", first byte of the answer after ", ", all of it after "),
    ),
    Case("the program answers with an error", 500, None, "program", "server-v1-0", mode="error"),
    Case("reset before the answer", 503, "reset-before-answer", "program", "server-v1-0", mode="reset", request={"method": "POST", "body": b"x"}),
    Case(
        "reset within the answer", 200, "reset-during-answer", "program", "server-v1-0", mode="cut",
        says=("Cause: the program of server-v1-0. The client had got the head, 200, by then.",),
    ),
    Case("reset after the answer", 200, None, "program", "server-v1-0", mode="reset-after"),
    Case("not HTTP", 502, "not-http", "program", "server-v1-0", mode="garbage", request={"method": "POST", "body": b"x"}),
    Case(
        "a head that is too long", 502, "not-http", "program", "server-v1-0", mode="long-head",
        request={"method": "POST", "body": b"x"}, says=("or headers that are longer than a proxy takes",),
    ),
    Case(
        "timeout of the route", 504, "timeout", "proxy", "client-v1-0", mode="silent",
        config=(route("  - timeout: 300ms\n    route: [{destination: {host: server}}]\n" + NO_RETRIES),),
        policy="timeout 300 ms (", says=(" server-v1-0 failed (UT) after",), lasts=300.0,
    ),
    Case(
        "timeout of the route within the answer", 200, "timeout-during-answer", "proxy", "client-v1-0", mode="stall",
        config=(route("  - timeout: 300ms\n    route: [{destination: {host: server}}]\n" + NO_RETRIES),),
        policy="timeout 300 ms (",
        lasts=300.0,
        says=(
            "began to answer, and had not finished within the timeout of the rule",
            "Broken off by: the proxy of client-v1-0. The client had got the head, 200, by then.",
            "The proxy of client-v1-0 gave this try up.",
        ),
    ),
    Case(
        "timeout of a try", 504, "try-timeout", "proxy", "client-v1-0", mode="silent", tries=2,
        config=(route(PLAIN_ROUTE + "    retries: {attempts: 1, perTryTimeout: 200ms, retryOn: reset}\n"),),
        policy="retries.perTryTimeout 200 ms (",
        arrivals=2,
        lasts=200.0,
    ),
    Case(
        "no endpoint", 503, "empty-subset", "proxy", "client-v1-0", arrivals=0,
        config=(
            DESTINATION_RULE + "  subsets: [{name: none, labels: {version: v9}}]\n",
            route("  - route: [{destination: {host: server, subset: none}}]\n"),
        ),
        policy="DestinationRule default/server, spec.subsets[0] (",
        says=("carries the labels of that subset (version: v9)", "those that run carry version: v1."),
    ),
    Case(
        "no such subset", 503, "no-cluster", "proxy", "client-v1-0", arrivals=0,
        config=(route("  - route: [{destination: {host: server, subset: gone}}]\n"),),
        policy="VirtualService default/server, spec.http[0] (",
    ),
    Case(
        "no endpoint of one of two places", 503, "empty-subset", "proxy", "client-v1-0", arrivals=0,
        config=(
            DESTINATION_RULE + "  subsets: [{name: none, labels: {version: v9}}]\n",
            route(
                "  - route: [{destination: {host: server}, weight: 0}, {destination: {host: server, subset: none}, weight: 100}]\n"
            ),
        ),
        policy="DestinationRule default/server, spec.subsets[0] (",
        says=("(subset none) had no endpoint",),
    ),
    Case(
        "no subset of two", 503, "no-cluster", "proxy", "client-v1-0", arrivals=0,
        config=(
            route(
                "  - route: [{destination: {host: server, subset: gone}, weight: 50}, {destination: {host: server, subset: away}, weight: 50}]\n"
            ),
        ),
        policy="VirtualService default/server, spec.http[0]",
        says=("The rule sends the request to server.default.svc.cluster.local:", "to: server.default.svc.cluster.local port"),
    ),
    Case(
        "no route", 404, "no-route", "proxy", "client-v1-0", arrivals=0,
        config=(route("  - match: [{uri: {prefix: /only}}]\n    route: [{destination: {host: server}}]\n"),),
    ),
    Case(
        "fault", 418, "fault-injected", "proxy", "client-v1-0", arrivals=0,
        config=(route("  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}\n    route: [{destination: {host: server}}]\n"),),
        policy="fault (",
    ),
    Case(
        "a delay on purpose", 200, None, "program", "server-v1-0",
        config=(route("  - fault: {delay: {fixedDelay: 200ms, percentage: {value: 100}}}\n    route: [{destination: {host: server}}]\n"),),
        says=("delayed it on purpose by 200 ms: a fault rule (",), lasts=200.0,
    ),
    Case("the client goes", None, "client-gone", "client", "client-v1-0", mode="silent", request={"leave": 0.3}),
    Case("the client goes in order", None, "client-gone", "client", "client-v1-0", mode="silent", request={"leave": 0.3, "in_order": True}),
    Case(
        "tried again", 200, None, "program", "server-v1-0", mode="fail-once", tries=2, arrivals=2,
        config=(route(PLAIN_ROUTE + "    retries: {attempts: 2, retryOn: 5xx}\n"),),
    ),
    Case(
        "tried as often as the rule allows", 503, None, "program", "server-v1-0", mode="unavailable", tries=3, arrivals=3,
        config=(route(PLAIN_ROUTE + "    retries: {attempts: 2, retryOn: 5xx}\n"),), request={"method": "POST", "body": b"x"},
        says=("It was tried 3 times, as often as the rule allows.",),
    ),
    Case(
        "a try given up for another", 200, None, "program", "server-v1-0", mode="silent-once", tries=2, arrivals=2,
        config=(route(PLAIN_ROUTE + "    retries: {attempts: 1, perTryTimeout: 500ms, retryOn: reset}\n"),),
        says=("The proxy of client-v1-0 gave this try up for another.",),
    ),
    Case(
        "the server's proxy dies before the answer", 503, "proxy-connection-broke", "proxy", "server-v1-0",
        mode="silent", request={"method": "POST", "body": b"x"}, arrivals=0, killed=True,
        says=(
            "The connection to the proxy of server-v1-0 broke",
            "Cause: the proxy of server-v1-0, or something that it could not tell of. Its word became the 503.",
        ),
    ),
    Case(
        "the server's proxy dies within the answer", 200, "proxy-connection-broke", "proxy", "server-v1-0",
        mode="stall", arrivals=0, killed=True, says=("The connection to the proxy of server-v1-0 broke",),
    ),
    Case(
        "plain text to STRICT, from within the mesh", 503, "client-in-plaintext", "proxy", "server-v1-0", arrivals=0,
        config=(DESTINATION_RULE + "  trafficPolicy: {tls: {mode: DISABLE}}\n", route(PLAIN_ROUTE + NO_RETRIES)),
        policy="weft's default, STRICT", says=BY_RULE,
    ),
    Case(
        "plain text to STRICT, as written", 503, "client-in-plaintext", "proxy", "server-v1-0", arrivals=0,
        config=(
            STRICT, DESTINATION_RULE + "  trafficPolicy: {tls: {mode: DISABLE}}\n", route(PLAIN_ROUTE + NO_RETRIES),
        ),
        policy="PeerAuthentication default/server, spec.mtls.mode (", says=BY_RULE,
    ),
    Case(
        "mutual TLS to DISABLE", 503, "server-without-tls", "proxy", "client-v1-0", arrivals=0,
        config=(
            DISABLE, DESTINATION_RULE + "  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n", route(PLAIN_ROUTE + NO_RETRIES),
        ),
        policy="DestinationRule default/server, trafficPolicy.tls (", says=("server-v1-0 takes plain text only",),
    ),
)  # fmt: skip


class Bytes(Program):
    protocol = "TCP"


@contextlib.asynccontextmanager
async def scene(data_plane: str, of_server: str | None = None, **more: Any) -> AsyncIterator[Scene]:
    """*data_plane* is the client's, and the server's where *of_server* says nothing else; *more* is the mesh's."""
    async with live_mesh([("client", data_plane), ("server", of_server or data_plane)], **more) as mesh:
        server = mesh["server"]
        await server.program.close()
        program = Trouble(server._address, mesh.ports["server"])
        await program.start()
        try:
            yield Scene(mesh, program)
        finally:
            await program.close()


async def check(stage: Scene, case: Case) -> None:
    stage.program.mode = "ok"
    await stage.apply(*case.config)
    stage.program.mode = case.mode
    request_id, status = await (stage.ask_the_dying if case.killed else stage.ask)(**(case.request or {}))
    assert status == case.status, case.name
    told = await stage.explain(
        request_id,
        complete=lambda hops: (
            hops[0].record.direction == "outbound"
            and len(hops[0].nexts) >= case.arrivals
            and len(hops[0].tries) >= (case.tries or 0)
            and (case.code != "client-in-plaintext" or hops[0].refused is not None)
        ),
    )
    end, text = verdict(told), tell([told])
    assert (end.finding.code if end.finding else None, end.by, end.workload) == (case.code, case.by, case.workload), (
        text
    )
    assert told.revision is not None, text
    assert told.decision is not None, text
    if case.tries is not None:
        assert len(told.tries) == case.tries, text
    # Envoy's timers go by the time at which its loop looked last.
    took = [item.duration_ms for item in (*told.tries[:-1], told.record)]
    assert min(took) >= 0.9 * case.lasts, text
    assert not case.lasts or max(took) <= case.lasts * len(took) + BUSY_MS, text
    if told.record.answered_ms is not None:
        assert (told.record.sent_ms or 0.0) <= told.record.answered_ms <= told.record.duration_ms, text
    for arrived in told.nexts:
        assert len(arrived.tries) <= 1, text  # a server's proxy tries nothing again
    policies = [line.strip() for line in text.splitlines() if line.startswith("  Policy: ")]
    assert policies[0].startswith(f"Policy: {case.policy}") if case.policy else not policies, text
    if end.finding is not None:
        assert end.finding.sentence in text, text
    for words in case.says:
        assert words in text, text
    assert str(status or "no answer") in text.splitlines()[0]
    answer = tree_to_json(told)
    assert answer["verdict"]["code"] == (case.code or "answered")
    if case.config and case.config[-1].startswith(VIRTUAL_SERVICE) and case.code != "no-route":
        assert "VirtualService default/server, spec.http[0]" in text, text


PLANES = ["weft-proxy", pytest.param("envoy", marks=pytest.mark.conformance)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("data_plane", PLANES)
def test_each_failure_is_explained(data_plane: str) -> None:
    async def run() -> None:
        failures = []
        async with scene(data_plane) as stage:
            for case in CASES:
                try:
                    await check(stage, case)
                except (AssertionError, TimeoutError, WeftError) as error:
                    failures.append(f"--- {case.name}: {type(error).__name__} {error}")
        assert not failures, "\n".join(failures)

    asyncio.run(run())


BETWEEN_DATA_PLANES = (
    "answered",
    "the client goes",
    "the client goes in order",
    "timeout of a try",
    "a try given up for another",
    "tried again",
    "plain text to STRICT, from within the mesh",
    "mutual TLS to DISABLE",
)
"""The rows in which one sidecar must understand what the other does to their connection."""


@pytest.mark.conformance
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("client", "server"), [("weft-proxy", "envoy"), ("envoy", "weft-proxy")])
def test_failures_between_data_planes_are_explained(client: str, server: str) -> None:
    async def run() -> None:
        failures = []
        async with scene(client, server) as stage:
            for case in CASES:
                if case.name not in BETWEEN_DATA_PLANES:
                    continue
                try:
                    await check(stage, case)
                except (AssertionError, TimeoutError, WeftError) as error:
                    failures.append(f"--- {case.name}: {type(error).__name__} {error}")
        assert not failures, "\n".join(failures)

    asyncio.run(run())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("data_plane", PLANES)
def test_a_connection_that_became_another_protocols_is_told_as_that(data_plane: str) -> None:
    """Nor is it called an answer that was cut off."""
    ended = "The program of server-v1-0 ended the connection, which had become that of another protocol (101"
    ends = {
        "tunnel-reset": ("reset-in-tunnel", ended),
        "ok": (None, "The program of server-v1-0 answered 200 itself; the mesh only passed it on."),
    }

    async def run() -> None:
        async with scene(data_plane) as stage:
            await stage.apply(route(PLAIN_ROUTE + NO_RETRIES))
            for mode, (code, words) in ends.items():
                stage.program.mode = mode
                request_id, status = await stage.ask(upgrade="websocket")
                assert status == (200 if mode == "ok" else 101)
                told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
                end, text = verdict(told), tell([told])
                assert (end.finding and end.finding.code, end.by, end.workload) == (code, "program", "server-v1-0"), (
                    text
                )
                assert words in text, text
                assert "longer body" not in text, text

    asyncio.run(run())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("data_plane", PLANES)
def test_a_request_whose_host_is_rewritten_is_told_as_it_was_asked(data_plane: str) -> None:
    """For that host decided where it went; where it arrives it has the other name."""

    async def run() -> None:
        async with scene(data_plane) as stage:
            await stage.apply(route(PLAIN_ROUTE + "    rewrite: {authority: elsewhere.test, uri: /there}\n"))
            request_id, status = await stage.ask(path="/here")
            assert status == 200
            told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
            text = tell([told])
            assert (told.record.authority, told.record.path) == (f"server:{stage.port}", "/here"), text
            assert [hop.record.authority for hop in told.nexts] == ["elsewhere.test"], text
            assert f"GET http://server:{stage.port}/here: 200" in text
            assert "rule: VirtualService default/server, spec.http[0]" in text

    asyncio.run(run())


async def not_listening(stage: Scene) -> None:
    """The program has just ended, or started again at another address than the one that its agent found."""
    await stage.apply(route(PLAIN_ROUTE + NO_RETRIES))
    await stage.program.close()
    request_id, status = await stage.ask()
    assert status == 503
    told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
    end, text = verdict(told), tell([told])
    assert (end.finding and end.finding.code, end.by, end.workload) == (
        "program-not-listening",
        "proxy",
        "server-v1-0",
    ), text
    assert f"nothing listens at {stage.server._address}:{stage.port}" in text, text
    # Its agent has not seen yet that it listens at another address now. What it says when it has: `listening_elsewhere`, and
    # tests/e2e/test_explicit.py with a real agent. In namespaces every address of the program's is its own.
    elsewhere = Trouble(ELSEWHERE, stage.port)
    await elsewhere.start()
    request_id, status = await stage.ask()
    assert (status, elsewhere.seen) == (503, [])
    text = tell([await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))])
    assert f"nothing listens at {stage.server._address}:{stage.port}" in text, text
    await elsewhere.close()
    await stage.program.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await stage.ask())[1] != 200:
            await asyncio.sleep(0.05)


async def listening_elsewhere(stage: Scene) -> None:
    """The program runs, and listens on another port than the one that it declares: its agent tells of no port."""
    await stage.apply(route(PLAIN_ROUTE + NO_RETRIES))
    agent, other = stage.server.stream, free_port()
    await stage.program.close()
    elsewhere = Trouble(stage.server._address, other)
    await elsewhere.start()
    agent.program(pid=os.getpid(), state="running", restarts=0)
    agent.listening(stage.port, None)
    agent.notice(elsewhere_text([other], [stage.port]), "listens-elsewhere")
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            told = None
            while told is None or told.finding is None or told.finding.code != "no-endpoint":
                request_id, _ = await stage.ask()
                told = await stage.explain(request_id)
            while not told.notices:
                told = await stage.explain(request_id)
        end, text = verdict(told), tell([told])
        assert (end.by, end.workload) == ("proxy", "client-v1-0"), text
        assert "server-v1-0 is running, but not ready" in text, text
        assert f"Noticed of server-v1-0: the program listens on port {other}, and not on {stage.port}" in text, text
        assert "no program of it runs" not in text, text
        assert tree_to_json(told)["verdict"]["notices"][0]["code"] == "listens-elsewhere"
    finally:
        await elsewhere.close()
        await stage.program.start()
        agent.listening(stage.port, stage.server._address)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await stage.ask())[1] != 200:
            await asyncio.sleep(0.05)


async def away_for_a_moment(stage: Scene) -> None:
    """
    The program starts again: the last request that met nobody is not explained by the configuration that came right after.

    Nobody asks for ejection, and the program is ready when somebody asks about the request.
    """
    await stage.apply(route(PLAIN_ROUTE + NO_RETRIES))
    agent, failed = stage.server.stream, ""
    agent.listening(stage.port, None)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not failed:
            request_id, status = await stage.ask()
            failed = request_id if status == 503 else ""
        agent.listening(stage.port, stage.server._address)
        while (outcome := await stage.ask())[1] != 200:
            failed = outcome[0]
    told = await stage.explain(failed)
    end, text = verdict(told), tell([told])
    assert (end.finding and end.finding.code, end.by, end.workload) == ("no-endpoint", "proxy", "client-v1-0"), text
    assert told.decision is not None
    assert not told.decision.endpoints, text
    assert "had no endpoint that could take a request; by now server-v1-0 is ready. (UH)" in text, text


async def ejected(stage: Scene) -> None:
    """The only endpoint has failed too often and is out for a while: the program runs, and nobody calls it."""
    limits = "{consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 2s, maxEjectionPercent: 100}"
    await stage.apply(
        DESTINATION_RULE + f"  trafficPolicy: {{outlierDetection: {limits}}}\n", route(PLAIN_ROUTE + NO_RETRIES)
    )
    stage.program.mode = "error"
    async with asyncio.timeout(PATIENCE_SECONDS):
        request_id, status = await stage.ask()
        while status != 503:
            request_id, status = await stage.ask()
    told = await stage.explain(request_id)
    end, text = verdict(told), tell([told])
    assert (end.finding and end.finding.code, end.by, end.workload) == ("all-ejected", "proxy", "client-v1-0"), text
    assert "  Policy: outlierDetection (" in text, text
    assert "`weft why --last-failed --from server-v1-0`" in text, text
    before = await last_failed(stage, "server-v1-0", 0.0)
    assert (verdict(before).by, before.record.status) == ("program", 500), tell([before])
    assert not told.tries, text
    assert not told.nexts, text
    stage.program.mode = "ok"
    await stage.forget()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await stage.ask())[1] != 200:
            await asyncio.sleep(0.05)


async def circuit(stage: Scene) -> None:
    """Of several requests at once only as many go through as the limit allows; the others are told why not."""
    limits = "  trafficPolicy:\n    connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}\n"
    await stage.apply(
        DESTINATION_RULE + limits, route("  - timeout: 2s\n    route: [{destination: {host: server}}]\n" + NO_RETRIES)
    )
    stage.program.mode = "silent"
    asked = await asyncio.gather(*(stage.ask() for _ in range(6)))
    refused = [request_id for request_id, status in asked if status == 503]
    assert refused, asked
    told = await stage.explain(refused[0])
    end, text = verdict(told), tell([told])
    assert (end.finding and end.finding.code, end.by) == ("circuit-open", "proxy"), text
    assert "connectionPool (" in text, text
    stage.program.mode = "ok"


async def retry_not_allowed(stage: Scene) -> None:
    """A program answers with an error, and the only retry that the limit allows at a time is another request's."""
    limits = "  trafficPolicy: {connectionPool: {http: {maxRetries: 1}}}\n"
    again = route(PLAIN_ROUTE + "    retries: {attempts: 1, retryOn: 5xx}\n")
    await stage.apply(DESTINATION_RULE + limits, again)
    stage.program.seen.clear()
    stage.program.mode = "in-turn"  # the second is answered when the first has been sent again
    asking = {asyncio.create_task(stage.ask()) for _ in range(2)}
    ended, rest = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_SECONDS)
    stage.program.mode = "ok"
    assert [(await other)[1] for other in rest] == [200]
    ((request_id, status),) = [await task for task in ended]
    assert status == 503
    told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
    end, text = verdict(told), tell([told])
    assert (end.finding and end.finding.code, end.by, end.workload) == (
        *("retry-not-allowed", "program", "server-v1-0"),
    ), text
    assert "server-v1-0 answered 503, and a limit of server" in text, text
    assert "connectionPool (" in text, text
    assert told.record.attempts == len(told.tries) == 1, text


async def copies(stage: Scene) -> None:
    """Where a copy of a request went, and what became of it, is told beside the request, which knows nothing of it."""
    none = DESTINATION_RULE + "  subsets: [{name: none, labels: {version: v9}}]\n"
    mirrors = (
        "    mirrors: [{destination: {host: client}}, {destination: {host: server, subset: none}},"
        " {destination: {host: gone}}]\n"
    )
    await stage.apply(none, route(PLAIN_ROUTE + NO_RETRIES + mirrors))
    request_id, status = await stage.ask(method="POST", body=b"words")
    assert status == 200
    told = await stage.explain(
        request_id,
        complete=lambda hops: (
            bool(hops[0].nexts)
            and len(hops[0].copies) == 3
            and hops[0].copies[0].arrived is not None
            and (hops[0].copies[1].failed is not None or stage.client.data_plane == "envoy")
        ),
    )
    end, text = verdict(told), tell([told])
    assert (end.finding, end.by, end.workload) == (None, "program", "server-v1-0"), text
    assert told.record.attempts == len(told.tries) == 1, text
    arrived, failed, gone = told.copies
    assert arrived.arrived is not None
    assert arrived.arrived.record.workload == "client-v1-0", text
    assert "where client-v1-0 took it; its answer was dropped" in text, text
    if failed.failed is not None:  # Envoy does not tell of a copy for which there is no endpoint
        assert failed.failed.flags == ("UH",), text
    assert not gone.exists
    assert "copy: none, for there is no gone" in text, text
    assert tree_to_json(told)["copies"][0]["arrived"]["record"]["request_id"] == request_id


async def keep_alive_race(stage: Scene) -> None:
    """
    The program closes a kept connection just as the next request comes: what may be repeated is, the rest is not.

    A request that the program has read and that is not idempotent must reach it once.
    """
    repeats = stage.client.data_plane == "weft-proxy"
    # Under the default policy, and where nobody may repeat anything.
    for config in (), (route(PLAIN_ROUTE + NO_RETRIES),):
        await stage.apply(*config)
        stage.program.mode = "ok"
        assert (await stage.ask())[1] == 200  # leaves a connection behind
        stage.program.mode = "race"
        asked = [await stage.ask() for _ in range(3)]
        lost = [request_id for request_id, status in asked if status != 200]
        # RFC 9110 9.2.2: a kept connection broke, and the request is idempotent. Envoy repeats nothing that it has sent.
        assert bool(lost) is not repeats, asked
        stage.program.seen.clear()
        posted = [await stage.ask(method="POST", body=b"x") for _ in range(3)]
        # Each was read by the program once; those that met the reset were not repeated behind its back.
        assert len(stage.program.seen) == 3, (posted, stage.program.seen)
        broken = [request_id for request_id, status in posted if status != 200]
        assert broken, posted
        for request_id in (*lost, *broken):
            told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
            end, text = verdict(told), tell([told])
            assert (end.finding and end.finding.code, end.by, end.workload) == (
                *("reset-before-answer", "program", "server-v1-0"),
            ), text
            assert "or have closed an idle connection just then" in text, text
        stage.program.mode = "ok"


@pytest.mark.once
@pytest.mark.timeout(300)
@pytest.mark.parametrize("data_plane", PLANES)
def test_what_may_have_been_acted_on_is_not_repeated_by_default(data_plane: str) -> None:
    """The program has read a POST, whatever it makes of it then: without a rule that says otherwise it reads it once."""

    async def run() -> None:
        async with scene(data_plane) as stage:
            for mode, status in (("reset", 503), ("unavailable", 503), ("grpc-14", 200), ("grpc-1", 200)):
                stage.program.mode = mode
                stage.program.seen.clear()
                request_id, answered = await stage.ask(method="POST", body=b"x")
                assert answered == status, mode
                told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
                assert len(stage.program.seen) == 1, f"{mode}: {stage.program.seen}\n{tell([told])}"
                assert (told.record.attempts, len(told.tries)) == (1, 1), tell([told])

    asyncio.run(run())


@pytest.mark.timeout(180)
def test_what_failed_while_the_control_plane_was_away_is_explained_when_it_is_back() -> None:
    """
    That is when things fail. weft-proxy keeps the records for it, and it knows the configuration that was in force. Envoy drops
    records that it cannot send.
    """

    async def run() -> None:
        async with scene("weft-proxy") as stage:
            await stage.apply(route("  - timeout: 300ms\n    route: [{destination: {host: server}}]\n" + NO_RETRIES))
            await asyncio.to_thread(stage.mesh.mesh.kill)
            asked = {}
            for mode, code in (("silent", "timeout"), ("reset", "reset-before-answer")):
                stage.program.mode = mode
                request_id, _ = await stage.ask(method="POST", body=b"x")
                asked[request_id] = code
            stage.program.mode = "ok"
            await asyncio.to_thread(stage.mesh.mesh.start)
            await stage.client.reaches("server", stage.port)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await asyncio.to_thread(stage.mesh.synced):
                    await asyncio.sleep(0.05)
            await stage.forget()  # what is in force now explains none of it
            for request_id, code in asked.items():
                told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
                end, text = verdict(told), tell([told])
                assert end.finding is not None, text
                assert end.finding.code == code, text
                assert "rule: VirtualService default/server, spec.http[0] (" in text, text
                assert told.revision is not None, text

    asyncio.run(run())


@dataclass(frozen=True)
class Shown:
    """What a client outside of the mesh shows: a certificate and its key, PEM, in one file; None for none."""

    name: str
    code: str
    certificate: Path | None
    plain: bool = False


@dataclass(frozen=True)
class Posing:
    """Who answers at a server's address instead of its proxy, and what the client's proxy finds."""

    name: str
    code: str
    certificate: Path


def impostors(stage: Scene, home: Path) -> list[Posing]:
    """Return servers with a certificate and its key, of which something is wrong."""
    files = {}
    for name, authority, identity in (
        ("another", authority_of(stage), IDENTITY),
        ("stranger", Authority(home / "other", DOMAIN), SERVER_IDENTITY),
        ("late", authority_of(stage, days=-1), SERVER_IDENTITY),
        ("early", authority_of(stage, days=1), SERVER_IDENTITY),
    ):
        private, request = new_key()
        files[name] = home / f"{name}.pem"
        files[name].write_text(private + authority.sign(request, identity)["chain"])
    return [
        Posing("another program of the mesh", "server-wrong-identity", files["another"]),
        Posing("another mesh's", "server-untrusted", files["stranger"]),
        Posing("after its time", "server-certificate-expired", files["late"]),
        Posing("before its time", "server-certificate-not-yet-valid", files["early"]),
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("data_plane", PLANES)
def test_a_server_that_cannot_prove_who_it_is_gets_no_request(data_plane: str, tmp_path: Path) -> None:
    """Somebody has a workload's address: the client's proxy breaks off, and says what was wrong."""

    async def run() -> None:
        async with scene(data_plane) as stage:
            await stage.apply(route(PLAIN_ROUTE + NO_RETRIES))
            process = stage.server.process
            assert process is not None
            process.kill()
            await asyncio.to_thread(process.wait)
            for posing in impostors(stage, tmp_path):
                heard: list[bytes] = []

                async def listen(
                    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: list[bytes] = heard
                ) -> None:
                    with contextlib.suppress(OSError):
                        heard.append(await reader.read())
                    writer.close()

                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.set_alpn_protocols(["h2", "http/1.1"])
                context.load_cert_chain(posing.certificate)
                async with await asyncio.start_server(listen, *stage.server.inbound, ssl=context):
                    request_id, status = await stage.ask()
                assert status == 503, posing
                told = await stage.explain(request_id)
                end, text = verdict(told), tell([told])
                assert (end.finding and end.finding.code, end.by, end.workload) == (
                    *(posing.code, "proxy", "client-v1-0"),
                ), text
                assert told.record.flags == ("UF",), text
                assert not any(heard), posing

    asyncio.run(run())


def authority_of(stage: Scene, *, days: float = 0.0) -> Authority:
    """Return the mesh's own authority as it is *days* from now, with certificates for an hour."""
    moment = datetime.now(UTC) + timedelta(days=days)
    home = stage.mesh.mesh.paths.state / "ca"
    return Authority(home, DOMAIN, leaf_lifetime=timedelta(hours=1), now=lambda: moment)


def new_key() -> tuple[str, str]:
    """Return a private key and the request to certify it, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return private.decode(), csr.public_bytes(serialization.Encoding.PEM).decode()


def certificates(stage: Scene, home: Path) -> list[Shown]:
    private, request = new_key()
    # Of another mesh: the same names, another root.
    stranger = Authority(home / "stranger", DOMAIN)
    late, early = authority_of(stage, days=-1), authority_of(stage, days=1)
    files = {}
    for name, authority in (("stranger", stranger), ("late", late), ("early", early)):
        files[name] = home / f"{name}.pem"
        files[name].write_text(private + authority.sign(request, IDENTITY)["chain"])
    return [
        Shown("plain text", "client-in-plaintext", None, plain=True),
        Shown("no certificate", "client-without-certificate", None),
        Shown("another mesh's", "client-untrusted", files["stranger"]),
        Shown("expired", "client-certificate-expired", files["late"]),
        Shown("not valid yet", "client-certificate-not-yet-valid", files["early"]),
    ]


async def connect(stage: Scene, shown: Shown, source: str = "127.0.0.1") -> None:
    """Call the server's proxy as *shown* would, from the address *source*, until the connection is refused."""
    context = None
    if not shown.plain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["istio-http/1.1", "istio"])
        if shown.certificate is not None:
            context.load_cert_chain(shown.certificate)
    with contextlib.suppress(OSError, ssl.SSLError):
        reader, writer = await asyncio.open_connection(
            stage.server.registered.address, stage.port, ssl=context, local_addr=(source, 0)
        )
        writer.write(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")
        await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
        writer.close()


async def tls_refusals(stage: Scene, home: Path) -> None:
    """A STRICT server refuses each kind of stranger, and says which kind it was."""
    await stage.forget()
    for shown in certificates(stage, home):
        before = time.time()
        await connect(stage, shown)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (refused := [it for it in await stage.refused() if it.start >= before - 0.01]):
                await asyncio.sleep(0.1)
        (hop,) = await stage.hops([refused[0].to_json()])
        end, text = verdict(hop), tell([hop])
        assert (end.finding and end.finding.code, end.by, end.workload) == (shown.code, "proxy", "server-v1-0"), text
        assert hop.decision is not None, text
        assert hop.revision is not None, text
        # Of what it is the cause of.
        assert ("Policy: weft's default, STRICT" in text) is (shown.code in MUTUAL_TLS), text
        assert "Refused by: the proxy of server-v1-0." in text, text
    await refusals_of_then(stage, certificates(stage, home)[0])


async def refusals_of_then(stage: Scene, shown: Shown) -> None:
    """What was refused at some time is found however much has been since: of what came since then the first is told."""
    began, starts = time.time() - 0.01, []
    for _ in range(6):
        before = time.time() - 0.01
        await connect(stage, shown)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (found := [it for it in await stage.refused() if it.start >= before]):
                await asyncio.sleep(0.1)
        starts.append(found[0].start)
    for since, expected in ((began, starts[:2]), (starts[3], starts[3:5]), (time.time() + 60, [])):
        query = {"limit": 2, "failed": 1, "log": "connections", "since": since}
        told = (await stage.mesh.get("/v1/records", **query))["records"]
        assert [record["start"] for record in reversed(told)] == expected


async def last_failed(stage: Scene, workload: str, since: float) -> Hop:
    """Return what `weft why --last-failed --from WORKLOAD` tells of, once something has failed since then."""
    while True:
        found = (await stage.mesh.get("/v1/records", limit=1, failed=1, workload=workload))["records"]
        if found and found[0]["start"] >= since - 0.01:
            if request_id := found[0]["request_id"]:
                found = (await stage.mesh.get("/v1/records", request_id=request_id))["records"]
            (hop,) = await stage.hops(found)
            return hop
        await asyncio.sleep(0.1)


async def refused_workload(stage: Scene) -> None:
    """Who calls a workload's address is passed on in plain text, and by that address named, with the remedy for it."""
    await stage.forget()
    home = stage.client.registered.address
    await stage.ask(path="/earlier")  # what --from would find otherwise
    for shown, remedy in (
        (Shown("plain text", "client-in-plaintext", None, plain=True), "Call it by the name of its service"),
        (
            Shown("no certificate", "client-without-certificate", None),
            "let it speak plain HTTP to the name of the service",
        ),
    ):
        before = time.time()
        await connect(stage, shown, home)
        async with asyncio.timeout(PATIENCE_SECONDS):
            # Among what failed of the client, and of the server, whose proxy tells of it.
            for workload in ("client", "server-v1-0"):
                hop = await last_failed(stage, workload, before)
                end, text = verdict(hop), tell([hop])
                assert (end.finding and end.finding.code, end.workload) == (shown.code, "server-v1-0"), text
                assert text.splitlines()[2].startswith("client-v1-0 spoke "), text
                assert remedy in text, text
                assert f"client: client-v1-0, from {home}:" in text, text
                assert " : " not in text, text
                assert "Policy: weft's default, STRICT" in text, text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("data_plane", PLANES)
def test_connections_that_come_to_nothing_are_explained(data_plane: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with scene(data_plane) as stage:
            await not_listening(stage)
            await listening_elsewhere(stage)
            await away_for_a_moment(stage)
            await ejected(stage)
            await circuit(stage)
            await retry_not_allowed(stage)
            await keep_alive_race(stage)
            await copies(stage)
            await tls_refusals(stage, tmp_path)
            await refused_workload(stage)
            await command_line(stage)

    asyncio.run(run())


async def one_connection(stage: Scene) -> None:
    """Of bytes: a second one is refused at once, and does not wait until the first has ended."""
    limit = "  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}\n"
    await stage.apply(DESTINATION_RULE + limit)
    stage.program.mode = "silent"
    stage.program.seen.clear()
    _, first = await asyncio.open_connection("127.0.0.1", stage.client.outbound[stage.port])
    first.write(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")
    while not stage.program.seen:
        await asyncio.sleep(0.02)
    before = time.time()
    assert (await stage.ask())[1] is None
    told = await last_failed(stage, "client-v1-0", before)
    end, text = verdict(told), tell([told])
    assert (end.finding and end.finding.code, end.by, end.workload) == ("circuit-open", "proxy", "client-v1-0"), text
    assert "A limit of server.default.svc.cluster.local" in text, text
    assert "  Policy: connectionPool (" in text, text
    assert not told.tries, text
    assert len(stage.program.seen) == 1
    first.close()
    await stage.forget()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("data_plane", PLANES)
def test_a_connection_of_bytes_is_explained_alike(data_plane: str) -> None:
    """The program that breaks one is blamed for it, by both sides, and nobody is said to have refused it."""

    async def run() -> None:
        async with scene(data_plane, program=Bytes) as stage, asyncio.timeout(2 * PATIENCE_SECONDS):
            for mode, code, words in (
                ("reset", "reset-before-answer", "closed the connection before the head of an answer had come"),
                ("cut", "reset-during-answer", "reset the connection, of which 49 bytes had come"),
            ):
                stage.program.mode = mode
                before = time.time()
                await stage.ask()
                for workload in ("client-v1-0", "server-v1-0"):
                    told = await last_failed(stage, workload, before)
                    end, text = verdict(told), tell([told])
                    assert (end.finding and end.finding.code, end.by, end.workload) == (
                        *(code, "program", "server-v1-0"),
                    ), text
                    assert words in text, text
                    assert "refused" not in text, text
            stage.program.mode = "silent"
            before = time.time()
            await stage.ask(leave=0.3)
            if data_plane == "envoy":  # weft-proxy does not call it a failure
                told = await last_failed(stage, "server-v1-0", before)
                end, text = verdict(told), tell([told])
                assert (end.finding and end.finding.code, end.by) == ("client-gone", "client"), text
            await one_connection(stage)
            await stage.program.close()
            before = time.time()
            await stage.ask()
            told = await last_failed(stage, "server-v1-0", before)
            end, text = verdict(told), tell([told])
            assert (end.finding and end.finding.code, end.workload) == ("program-not-listening", "server-v1-0"), text
            assert await stage.refused() == [], text
            await stage.program.start()

    asyncio.run(run())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("data_plane", PLANES)
def test_what_a_grpc_server_and_a_proxy_answer_is_told_by_its_status(data_plane: str) -> None:
    """HTTP's is 200 all the same, and it is found among what failed."""

    def call(stage: Scene, method: str) -> str:
        request_id = str(uuid.uuid4())
        target = f"127.0.0.1:{stage.client.outbound[stage.port]}"
        options = [("grpc.default_authority", f"server:{stage.port}")]
        with grpc.insecure_channel(target, options=options) as channel:
            ask = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as failed:
                ask(b"", metadata=(("x-request-id", request_id),), timeout=PATIENCE_SECONDS)
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        return request_id

    async def run() -> None:
        members = [("client", data_plane), ("server", data_plane)]
        async with live_mesh(members, program=Grpc) as mesh, asyncio.timeout(2 * PATIENCE_SECONDS):
            stage, program = Scene(mesh, Trouble("", 0)), mesh["server"].program
            assert isinstance(program, Grpc)
            program.status = 14
            await stage.apply(route(PLAIN_ROUTE + NO_RETRIES))
            for method in ("/server/late", "/server/trailers-only"):
                program.is_brief = method.endswith("only")
                before = time.time()
                request_id = await asyncio.to_thread(call, stage, method)
                told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
                end, text = verdict(told), tell([told])
                assert (end.finding, end.by, end.workload) == (None, "program", "server-v1-0"), text
                assert f"{method}: 200, grpc-status 14 (UNAVAILABLE) after" in text, text
                assert "The program of server-v1-0 answered 200, grpc-status 14 (UNAVAILABLE) itself" in text, text
                assert "look at its output" in text, text
                assert [hop.record.grpc_status for hop in (told, *told.nexts)] == [14, 14], text
                assert (await last_failed(stage, "client-v1-0", before)).record.request_id == request_id
            program.resets = True
            request_id = await asyncio.to_thread(call, stage, "/server/reset")
            told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
            end, text = verdict(told), tell([told])
            assert (end.finding and end.finding.code, end.by, end.workload) == (
                *("reset-before-answer", "program", "server-v1-0"),
            ), text
            assert (
                "The program of server-v1-0 reset the stream of this request (RST_STREAM) without an answer" in text
            ), text
            abort = "  - fault: {abort: {httpStatus: 503, percentage: {value: 100}}}\n"
            await stage.apply(route(abort + "    route: [{destination: {host: server}}]\n"))
            request_id = await asyncio.to_thread(call, stage, "/server/any")
            text = tell([await stage.explain(request_id)])
            assert "A fault rule answered 200, grpc-status 14 (UNAVAILABLE) on purpose" in text, text
            found: dict[str, int | None] = {}
            while "/server/any" not in found:  # Envoy writes when it has time
                await asyncio.sleep(0.1)
                lines = stage.client.files.access_log.read_text().splitlines(keepends=True)
                logged = [json.loads(line) for line in lines if line.endswith("\n")]
                found = {item["path"]: item["grpc_status"] for item in logged if item["direction"] == "outbound"}
            assert found["/server/late"] == found["/server/trailers-only"] == found["/server/any"] == 14
            assert found["/echo"] is None  # no call of gRPC

    asyncio.run(run())


async def command_line(stage: Scene) -> None:
    """`weft why` says it by request id, and finds the last failure by itself."""

    async def why(*arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "weft.cli.main", "why", *arguments),
            env={**os.environ, **stage.mesh.mesh.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        return process.returncode or 0, output.decode()

    await stage.apply(route(PLAIN_ROUTE + NO_RETRIES))
    stage.program.mode = "error"
    request_id, _ = await stage.ask(path="/cart")
    code, text = await why(request_id)
    assert code == 0, text
    assert "/cart: 500 after" in text, text
    assert "The program of server-v1-0 answered 500 itself" in text, text
    code, text = await why("--last-failed", "-o", "json")
    assert code == 0, text
    (tree,) = json.loads(text)
    assert (tree["record"]["request_id"], tree["verdict"]["by"]) == (request_id, "program")
    assert tree["next"][0]["record"]["workload"] == "server-v1-0"
    code, text = await why("there-is-no-such-id")
    assert code == 4, text
