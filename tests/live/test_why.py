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
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.live.mesh import PATIENCE_SECONDS, LiveMesh, live_mesh
from tests.live.trouble import Trouble, reset
from weft.errors import WeftError
from weft.identity import Authority
from weft.insight import Hop, happened, tell, tree_to_json, verdict
from weft.telemetry import Record

ARRIVAL_SECONDS = 15.0
"""For records, which are on their way for a tenth of a second."""

IDENTITY = "spiffe://cluster.local/ns/default/sa/client"

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
        self, *, method: str = "GET", path: str = "/", host: str = "server", body: bytes = b"", leave: float = 0.0
    ) -> tuple[str, int | None]:
        """Send a request to the client's sidecar; return its id and the status. *leave*: go away after so many seconds."""
        request_id = str(uuid.uuid4())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.client.outbound[self.port])
        head = f"{method} {path} HTTP/1.1\r\nhost: {host}:{self.port}\r\nx-request-id: {request_id}\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n" if body else "connection: close\r\n\r\n"
        writer.write(head.encode() + body)
        if leave:
            await asyncio.sleep(leave)
            reset(writer)
            return request_id, None
        answer = b""
        with contextlib.suppress(OSError):
            while part := await asyncio.wait_for(reader.read(4096), PATIENCE_SECONDS):
                answer += part
        writer.close()
        return request_id, int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else None

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

        def past(node: str, at: float) -> list[tuple[int, list[tuple[str, str, bytes]]]]:
            return [
                (it["revision"], [(r["type_url"], r["name"], base64.b64decode(r["value"])) for r in it["resources"]])
                for it in history.get((node, at), ())
            ]

        return happened(found, refused, past)

    async def refused(self) -> list[Record]:
        """Return the connections that proxies refused lately."""
        answer = await self.mesh.get("/v1/records", limit=200, failed=1, log="connections")
        return [Record.from_json(item) for item in answer["records"]]


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
        policy: What the text must name as the place that decided.
        both: The server's proxy saw the request, and its record must be there.
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
    both: bool = True


def route(text: str) -> str:
    return VIRTUAL_SERVICE + text


CASES = (
    Case("answered", 200, None, "program", "server-v1-0"),
    Case("the program answers with an error", 500, None, "program", "server-v1-0", mode="error"),
    Case("reset before the answer", 503, "reset-before-answer", "program", "server-v1-0", mode="reset", request={"method": "POST", "body": b"x"}),
    Case("reset within the answer", 200, "reset-during-answer", "program", "server-v1-0", mode="cut"),
    Case("reset after the answer", 200, None, "program", "server-v1-0", mode="reset-after"),
    Case("not HTTP", 502, "not-http", "proxy", "server-v1-0", mode="garbage", request={"method": "POST", "body": b"x"}),
    Case(
        "timeout of the route", 504, "timeout", "proxy", "client-v1-0", mode="silent",
        config=(route("  - timeout: 300ms\n    route: [{destination: {host: server}}]\n" + NO_RETRIES),),
        policy="timeout 300 ms (",
    ),
    Case(
        "timeout of a try", 504, "try-timeout", "proxy", "client-v1-0", mode="silent", tries=2,
        config=(route(PLAIN_ROUTE + "    retries: {attempts: 1, perTryTimeout: 200ms, retryOn: reset}\n"),),
        policy="retries.perTryTimeout (",
        both=False,
    ),
    Case(
        "no endpoint", 503, "no-endpoint", "proxy", "client-v1-0", both=False,
        config=(
            DESTINATION_RULE + "  subsets: [{name: none, labels: {version: v9}}]\n",
            route("  - route: [{destination: {host: server, subset: none}}]\n"),
        ),
    ),
    Case(
        "no such subset", 503, "no-cluster", "proxy", "client-v1-0", both=False,
        config=(route("  - route: [{destination: {host: server, subset: gone}}]\n"),),
    ),
    Case(
        "no route", 404, "no-route", "proxy", "client-v1-0", both=False,
        config=(route("  - match: [{uri: {prefix: /only}}]\n    route: [{destination: {host: server}}]\n"),),
    ),
    Case(
        "fault", 418, "fault-injected", "proxy", "client-v1-0", both=False,
        config=(route("  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}\n    route: [{destination: {host: server}}]\n"),),
        policy="fault (",
    ),
    Case(
        "a delay on purpose", 200, None, "program", "server-v1-0",
        config=(route("  - fault: {delay: {fixedDelay: 200ms, percentage: {value: 100}}}\n    route: [{destination: {host: server}}]\n"),),
        policy="delayed it on purpose by 200 ms: a fault rule (",
    ),
    Case("the client goes", None, "client-gone", "client", "client-v1-0", mode="silent", request={"leave": 0.3}),
    Case(
        "tried again", 200, None, "program", "server-v1-0", mode="fail-once", tries=2,
        config=(route(PLAIN_ROUTE + "    retries: {attempts: 2, retryOn: 5xx}\n"),),
    ),
    Case(
        "plain text to STRICT, from within the mesh", 503, "client-in-plaintext", "proxy", "server-v1-0", both=False,
        config=(DESTINATION_RULE + "  trafficPolicy: {tls: {mode: DISABLE}}\n", route(PLAIN_ROUTE + NO_RETRIES)),
        policy="Policy: weft's default, STRICT",
    ),
    Case(
        "plain text to STRICT, as written", 503, "client-in-plaintext", "proxy", "server-v1-0", both=False,
        config=(
            STRICT, DESTINATION_RULE + "  trafficPolicy: {tls: {mode: DISABLE}}\n", route(PLAIN_ROUTE + NO_RETRIES),
        ),
        policy="Policy: PeerAuthentication default/server, spec.mtls.mode (",
    ),
    Case(
        "mutual TLS to DISABLE", 503, "server-without-tls", "proxy", "client-v1-0", both=False,
        config=(
            DISABLE, DESTINATION_RULE + "  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n", route(PLAIN_ROUTE + NO_RETRIES),
        ),
    ),
)  # fmt: skip


@contextlib.asynccontextmanager
async def scene(data_plane: str) -> AsyncIterator[Scene]:
    async with live_mesh([("client", data_plane), ("server", data_plane)]) as mesh:
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
    request_id, status = await stage.ask(**(case.request or {}))
    assert status == case.status, case.name
    told = await stage.explain(
        request_id,
        complete=lambda hops: (
            hops[0].record.direction == "outbound"
            and (not case.both or bool(hops[0].nexts))
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
    assert case.policy in text, text
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


async def not_listening(stage: Scene) -> None:
    """The program has ended, or listens elsewhere than at the address that was found."""
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
    await stage.program.start()
    elsewhere = "127.129.9.9"
    stage.server.stream.listening(stage.port, elsewhere)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            request_id, status = await stage.ask()
            told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
            if f"nothing listens at {elsewhere}:{stage.port}" in tell([told]):
                break
    stage.server.stream.listening(stage.port, stage.server._address)
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
    await stage.apply(route(PLAIN_ROUTE + NO_RETRIES))
    stage.program.mode = "ok"
    assert (await stage.ask())[1] == 200  # leaves a connection behind
    stage.program.mode = "race"
    stage.program.seen.clear()
    answers = [await stage.ask() for _ in range(3)]
    if stage.client.data_plane == "weft-proxy":
        # RFC 9110 9.2.2: a kept connection broke, and the request is idempotent. Envoy repeats nothing that it has sent.
        assert [status for _, status in answers] == [200, 200, 200], answers
    stage.program.seen.clear()
    posted = [await stage.ask(method="POST", body=b"x") for _ in range(3)]
    # Each was read by the program once; those that met the reset were not repeated behind its back.
    assert len(stage.program.seen) == 3, (posted, stage.program.seen)
    lost = [request_id for request_id, status in (*answers, *posted) if status != 200]
    for request_id in lost:
        told = await stage.explain(request_id, complete=lambda hops: bool(hops[0].nexts))
        end = verdict(told)
        assert (end.finding and end.finding.code, end.by) == ("reset-before-answer", "program"), tell([told])
    stage.program.mode = "ok"


@dataclass(frozen=True)
class Shown:
    """What a client outside of the mesh shows: a certificate and its key, PEM, in one file; None for none."""

    name: str
    code: str
    certificate: Path | None
    plain: bool = False


def certificates(stage: Scene, home: Path) -> list[Shown]:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    request = csr.public_bytes(serialization.Encoding.PEM).decode()
    # Of another mesh: the same names, another root.
    stranger = Authority(home / "stranger", "cluster.local").sign(request, IDENTITY)
    expiring = Authority(stage.mesh.mesh.paths.state / "ca", "cluster.local", leaf_lifetime=timedelta(seconds=1))
    short = expiring.sign(request, IDENTITY)
    files = {}
    for name, issued in (("stranger", stranger), ("short", short)):
        files[name] = home / f"{name}.pem"
        files[name].write_text(private + issued["chain"])
    return [
        Shown("plain text", "client-in-plaintext", None, plain=True),
        Shown("no certificate", "client-without-certificate", None),
        Shown("another mesh's", "client-untrusted", files["stranger"]),
        Shown("expired", "client-certificate-expired", files["short"]),
    ]


async def connect(stage: Scene, shown: Shown) -> None:
    """Call the server's proxy as *shown* would, until the connection is refused."""
    context = None
    if not shown.plain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["istio-http/1.1", "istio"])
        if shown.certificate is not None:
            context.load_cert_chain(shown.certificate)
    with contextlib.suppress(OSError, ssl.SSLError):
        reader, writer = await asyncio.open_connection(stage.server.registered.address, stage.port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")
        await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
        writer.close()


async def tls_refusals(stage: Scene, home: Path) -> None:
    """A STRICT server refuses each kind of stranger, and says which kind it was."""
    await stage.forget()
    for shown in certificates(stage, home):
        if shown.name == "expired":
            await asyncio.sleep(2)  # a certificate's life is in whole seconds; nothing tells when it is over
        before = time.time()
        await connect(stage, shown)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (refused := [it for it in await stage.refused() if it.start >= before - 0.01]):
                await asyncio.sleep(0.1)
        (hop,) = happened(refused[:1], (), lambda _node, _at: ())
        end = verdict(hop)
        assert (end.finding and end.finding.code, end.workload) == (shown.code, "server-v1-0"), (shown, refused[0])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("data_plane", PLANES)
def test_connections_that_come_to_nothing_are_explained(data_plane: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with scene(data_plane) as stage:
            await not_listening(stage)
            await circuit(stage)
            await keep_alive_race(stage)
            await copies(stage)
            await tls_refusals(stage, tmp_path)
            await command_line(stage)

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
