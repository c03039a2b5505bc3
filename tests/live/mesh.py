"""
Workloads of a mesh on loopback: for each the agent's own stream and secrets, a real proxy, and a program.

Nothing is intercepted. The control plane runs as its own process with workload addresses from 127.128.0.0/16, where
every address can be bound; a proxy listens for each service port at an address that its program is told (EXPLICIT).
The program listens on an address of its own, so that all can use the same ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from tests.controlplane.peers import Mesh
from tests.live.load import Connection, Program
from tests.ports import free_port
from weft.agent.agent import note_certificate
from weft.agent.bootstrap import bootstrap
from weft.agent.data_planes import DATA_PLANES
from weft.agent.data_planes.envoy import DRAIN_OPTIONS
from weft.agent.sds import SecretService
from weft.agent.stream import AgentStream, Registered

MESH_CIDR = "127.128.0.0/16"
PATIENCE_SECONDS = 60.0
"""For anything that a test waits for; never reached unless something is broken."""

RECENT_BYTES = 50_000
"""Of the access records, to know what happens now."""

OPTIONS = {
    "weft-proxy": ["--concurrency", "1"],
    "envoy": [
        *("--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"),
        *DRAIN_OPTIONS,
    ],
}


async def until(condition: Callable[[], Any], *, what: str) -> Any:
    """Return the first true value of *condition*, which may block for a moment; fail after a while."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (value := await asyncio.to_thread(condition)):
                await asyncio.sleep(0.02)
            return value
    except TimeoutError as error:
        raise AssertionError(f"this never came about: {what}") from error


class Member:
    """
    One workload.

    Attributes:
        notices: What its agent's parts would tell people.
        outbound: Service port -> the port on 127.0.0.1 where its proxy answers for it.
    """

    def __init__(
        self,
        mesh: Mesh,
        service: str,
        data_plane: str,
        ports: dict[str, int],
        number: int,
        program: type[Program] = Program,
    ) -> None:
        self.mesh, self.service, self.data_plane = mesh, service, data_plane
        self.notices: list[str] = []
        self.outbound = {port: free_port() for port in ports.values()}
        self._address = f"127.129.0.{number}"
        self._port = ports[service]
        self.process: subprocess.Popen[bytes] | None = None
        self.program = program(self._address, self._port)

    async def start(self) -> None:
        """Join, get a certificate, start proxy and program."""
        workload = {
            "service": self.service,
            "version": "v1",
            "ports": [{"number": self._port, "protocol": self.program.protocol}],
            "data_plane": self.data_plane,
            "interception": "explicit",
            "namespace_path": "",
            "outbound_addresses": {str(port): ["127.0.0.1", own] for port, own in self.outbound.items()},
        }
        await self.program.start()
        self.stream = AgentStream(self.mesh.paths.agents_socket, workload)
        self.registered: Registered = await self.stream.register(patience=PATIENCE_SECONDS)
        self.files = self.mesh.paths.workload(self.registered.workload)
        self.files.make(workload["service"])
        self.secrets = SecretService(
            self.files.sds_socket,
            self.stream.sign,
            trusted=self.stream.trusts,
            renewed=lambda leaf: note_certificate(self.files, leaf),
            warn=self.notices.append,
        )
        await self.secrets.start()
        self.stream.on_bundle, self.stream.on_renew = self.secrets.replace_bundle, self.secrets.renew_soon
        self.stream.on_connected = lambda there: self.secrets.retry() if there else None
        self.start_proxy()
        await until(self.proxy_is_ready, what=f"{self.service}'s proxy ready; it wrote: {self.log()}")
        self.stream.proxy_ready(True)
        self.stream.listening(self._port, self._address)

    def start_proxy(self) -> None:
        files, mesh = self.files, self.mesh.paths
        content = bootstrap(
            self.registered.node,
            admin=files.admin_socket,
            xds=mesh.xds_socket,
            sds=files.sds_socket,
            records=mesh.records_socket,
        )
        files.bootstrap.write_text(json.dumps(content))
        program = DATA_PLANES[self.data_plane].find().path
        command = [program, *OPTIONS[self.data_plane], "-c", str(files.bootstrap)]
        with files.proxy_log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def admin(self, path: str) -> str:
        """Return the answer of the proxy's admin interface; empty while there is none."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(self.files.admin_socket))
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
                answer = b""
                while part := client.recv(65536):
                    answer += part
        except OSError:
            return ""
        return answer.decode()

    def proxy_is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.service}'s proxy ended: {self.log()}"
        return self.admin("/ready").startswith("HTTP/1.1 200")

    async def reaches(self, service: str, port: int) -> None:
        """Wait until requests to *service* are answered."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                connection = Connection(self.outbound[port], f"{service}:{port}")
                try:
                    if (await connection.ask("/echo", b""))[0] == 200:
                        return
                except (OSError, asyncio.IncompleteReadError):
                    pass  # it does not listen yet
                finally:
                    connection.close()
                await asyncio.sleep(0.02)

    @property
    def inbound(self) -> tuple[str, int]:
        """Where sidecars call this one."""
        return self.registered.address, self._port

    async def takes_plain_text(self) -> bool:
        """Whether a caller without a certificate is answered at the address where sidecars call this one."""
        connection = Connection(self._port, f"{self.service}:{self._port}", self.registered.address)
        try:
            return (await connection.ask("/echo", b""))[0] == 200
        except (OSError, asyncio.IncompleteReadError):
            return False
        finally:
            connection.close()

    def last_caller(self) -> str | None:
        """Return the identity that the caller of the last request proved to this workload's proxy."""
        with self.files.access_log.open("rb") as records:
            records.seek(max(0, self.files.access_log.stat().st_size - RECENT_BYTES))
            lines = records.read().splitlines()[1:-1]  # whole ones
        recent = [record for record in map(json.loads, lines) if record["direction"] == "inbound"]
        return recent[-1]["downstream_peer_uri_san"] or None if recent else None

    def log(self) -> str:
        """Return the end of what the proxy has written."""
        return self.files.proxy_log.read_text(errors="replace")[-4000:]

    def troubles(self) -> list[str]:
        """Return the access records of requests that were not answered 200, the last few."""
        lines = self.files.access_log.read_text(errors="replace").splitlines()
        return [line for line in lines if '"response_code":200' not in line][-5:]

    async def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        with contextlib.suppress(AttributeError):  # it did not get that far
            await self.secrets.close()
        with contextlib.suppress(AttributeError):
            await self.stream.close()
        await self.program.close()


class LiveMesh:
    """The control plane's process and the members, by service."""

    def __init__(self, mesh: Mesh, members: dict[str, Member], ports: dict[str, int]) -> None:
        self.mesh, self.members, self.ports = mesh, members, ports

    def __getitem__(self, service: str) -> Member:
        return self.members[service]

    async def apply(self, text: str) -> Any:
        return await asyncio.to_thread(self.mesh.apply, text)

    async def delete(self, kind: str, namespace: str, name: str) -> Any:
        key = {"kind": kind, "namespace": namespace, "name": name}
        return await self.post("/v1/delete", {"keys": [key]})

    async def get(self, path: str, **query: object) -> Any:
        return await asyncio.to_thread(lambda: self.mesh.client.get(path, **query))

    async def post(self, path: str, body: object) -> Any:
        return await asyncio.to_thread(lambda: self.mesh.client.post(path, body))

    def synced(self) -> bool:
        """Whether each proxy has what is published to it."""
        return all(proxy["synced"] for proxy in self.mesh.client.get("/v1/proxies"))


@contextlib.asynccontextmanager
async def live_mesh(
    members: Sequence[tuple[str, str]], *, program: type[Program] = Program, **declaration: Any
) -> AsyncIterator[LiveMesh]:
    """
    Run a mesh while the block lasts; every member serves one port and can call all others.

    Args:
        members: (service, data plane).
        program: What each of them runs.
        declaration: See docs/reference/interfaces.md, 4.3a.
    """
    mesh = Mesh({"mesh_cidr": MESH_CIDR, "interception": "explicit", **declaration})
    ports = {service: free_port() for service, _ in members}
    running = {}
    try:
        await asyncio.to_thread(mesh.start)
        for number, (service, data_plane) in enumerate(members, start=1):
            running[service] = Member(mesh, service, data_plane, ports, number, program)
        live = LiveMesh(mesh, running, ports)
        for member in running.values():
            await member.start()
        for caller in running.values():
            for service, port in ports.items():
                await caller.reaches(service, port)
        yield live
    finally:
        for member in running.values():
            await member.close()
        await asyncio.to_thread(mesh.close)
