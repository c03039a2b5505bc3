"""
Real peers of the control plane for tests: its process, an agent that follows a script, a proxy that speaks delta ADS.

The mesh looks to the command line as one that `weft up` started: its directories are where `weft.agent.paths` says,
and the control plane's process holds the lock.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.discovery.v3 import discovery_pb2

from weft.agent.paths import mesh_paths
from weft.cli.client import Client
from weft.errors import WeftError
from weft.translate.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION

PATIENCE_SECONDS = 60.0
"""For anything that a test waits for; never reached unless something is broken."""

CONNECT = """
import signal, socket, sys
socket.socket(fileno=int(sys.argv[1])).connect(sys.argv[2])
print("connected", flush=True)
signal.pause()
"""
"""The kernel says of a Unix socket's peer which process connected it."""

LAUNCH = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.lockf(lock, fcntl.LOCK_EX)
os.set_inheritable(lock, True)
os.execv(sys.executable, [sys.executable, "-m", "weft.cli.main", "control-plane", *sys.argv[2:]])
"""
"""A POSIX lock outlives execve(2), so that the control plane itself holds the lock that `weft up` holds otherwise."""


def until(condition: Callable[[], Any], *, what: str = "") -> Any:
    """Return the first true value of *condition*; fail after a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"this never came about: {what or condition}")
        threading.Event().wait(0.005)
    return value


class Mesh:
    """A control plane's process, with directories of its own."""

    def __init__(self, declaration: Mapping[str, Any] | None = None, *, mesh: str = "test") -> None:
        # Short, because a socket's path has at most 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="weft-t-"))
        (self.root / "run").mkdir(mode=0o700)
        self.environment = {"XDG_RUNTIME_DIR": str(self.root / "run"), "XDG_STATE_HOME": str(self.root / "state")}
        self.paths = mesh_paths(mesh, environment=self.environment)
        self.paths.make()
        self.paths.mesh_file.write_text("{}")
        self.declaration: dict[str, Any] = {"mesh": mesh, **(declaration or {})}
        self.client = Client(self.paths.api_socket, mesh)
        self.process: subprocess.Popen[bytes] | None = None
        self.errors = self.root / "errors"
        self._peers: list[Agent | ScriptedProxy] = []

    def start(self, *, ready: bool = True, lifeline: int | None = None) -> None:
        """Start the process; wait until it answers."""
        self.paths.declaration.write_text(json.dumps(self.declaration))
        arguments = ["--runtime", self.paths.runtime, "--state", self.paths.state]
        arguments += ["--declaration", self.paths.declaration]
        if lifeline is not None:
            arguments += ["--lifeline", str(lifeline)]
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, self.paths.lock, *arguments],
                stderr=errors,
                env={**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[] if lifeline is None else [lifeline],
            )
        if ready:
            until(self._answers, what=f"an answer; it wrote: {self.errors.read_text()}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the control plane ended: {self.errors.read_text()}"
        try:
            return bool(self.client.get("/v1/version"))
        except WeftError:
            return False

    def kill(self) -> None:
        """End the process as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> int:
        """End the process in order; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """End the process and everything that this mesh handed out."""
        for peer in reversed(self._peers):
            peer.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.root)

    def apply(self, text: str, *, file: str = "test.yaml", **more: object) -> Any:
        # Longer than the control plane waits for anybody: who was late is told, and not that the caller lost patience.
        return self.client.post("/v1/apply", {"documents": [{"file": file, "text": text}], **more}, timeout=120.0)

    def refusal(self, text: str) -> str:
        """Return the reason for which an apply is refused."""
        try:
            self.apply(text)
        except WeftError as error:
            return str(error)
        raise AssertionError("it was not refused")

    def agent(
        self, service: str, version: str = "v1", *, takes_names: bool = True, apart: bool = False, **more: Any
    ) -> Agent:
        """Return a registered agent of one more workload; one that is *apart* is a process that can be stopped."""
        agent = self.stranger(takes_names=takes_names, apart=apart)
        agent.workload = {"service": service, "version": version, **more}
        agent.register()
        return agent

    def stranger(self, *, takes_names: bool = True, apart: bool = False) -> Agent:
        """Return an agent that is connected and has not registered."""
        agent = Agent(self.paths.agents_socket, {}, register=False, takes_names=takes_names, apart=apart)
        self._peers.append(agent)
        return agent

    def running(self, service: str, version: str = "v1", *, port: int | None = 9080, **more: Any) -> Agent:
        """Return an agent whose proxy is ready and whose program answers."""
        ports = [] if port is None else [{"number": port, "protocol": "HTTP"}]
        agent = self.agent(service, version, ports=ports, client_only=port is None, **more)
        agent.send(type="proxy_ready", ready=True)
        if port is not None:
            agent.send(type="listening", port=port, address="127.0.0.1")
        until(lambda: self._is_published(agent.name), what=f"{agent.name} ready and published")
        return agent

    def proxy(self, agent: Agent, **behaviour: Any) -> ScriptedProxy:
        """Return a proxy of *agent*'s workload, connected."""
        proxy = ScriptedProxy(self.paths.xds_socket, agent.registered["node"], **behaviour)
        self._peers.append(proxy)
        return proxy

    def _is_published(self, workload: str) -> bool:
        ready = any(item["workload"] == workload and item["ready"] for item in self.client.get("/v1/workloads"))
        # A dry run takes its turn after every change that was reported before.
        self.apply("", dry_run=True)
        return ready and any(item["workload"] == workload for item in self.client.get("/v1/proxies"))

    def connections(self) -> list[str]:
        """Return the lines of /proc/net/unix of connections to the HTTP API (column 6, state 03: connected)."""
        lines = Path("/proc/net/unix").read_text().splitlines()
        return [line for line in lines if line.endswith(f" {self.paths.api_socket}.new") and line.split()[5] == "03"]

    def status(self, workload: str) -> dict[str, Any]:
        found = [proxy for proxy in self.client.get("/v1/proxies") if proxy["workload"] == workload]
        assert len(found) == 1, found
        return dict(found[0])


class Agent:
    """
    An agent's end of `agents.sock`: sends what it is told to, keeps what it receives.

    Args:
        apart: The control plane takes a process of its own for it, `process`, and not the test's.
    """

    def __init__(
        self,
        path: Path,
        workload: Mapping[str, Any],
        *,
        register: bool = True,
        takes_names: bool = True,
        apart: bool = False,
    ) -> None:
        self._path, self._apart = path, apart
        self.process: subprocess.Popen[bytes] | None = None
        self._takes_names = takes_names
        self.workload = dict(workload)
        self.registered: dict[str, Any] = {}
        self.name = ""
        self._connect()
        if register:
            self.register()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        until(self._connected, what="agents.sock")
        self._lines = self._socket.makefile("rb")

    def _connected(self) -> bool:
        if self._apart:
            return self._connected_apart()
        try:
            self._socket.connect(str(self._path))
        except OSError:
            return False
        return True

    def _connected_apart(self) -> bool:
        number = self._socket.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONNECT, str(number), str(self._path)], pass_fds=[number], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        return self.process.stdout.readline() == b"connected\n"

    def register(self) -> None:
        self.send(type="register", workload=self.workload)
        self.registered = self.receive("registered")
        self.name = self.workload["name"] = self.registered["workload"]
        if self._takes_names:
            # Whatever tables come: nobody reads here before a test does.
            self.send(type="names_taken", number=1 << 30)

    def send(self, **message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, kind: str) -> dict[str, Any]:
        """Return the next message of *kind*; those before it are skipped."""
        while line := self._lines.readline():
            message = json.loads(line)
            if message["type"] == kind:
                return dict(message)
        raise EOFError(f"the stream ended before {kind!r} came")

    def names(self, wanted: Callable[[dict[str, list[str]]], bool]) -> dict[str, list[str]]:
        """Return the next table of names for which *wanted* holds."""
        while True:
            names: dict[str, list[str]] = self.receive("names")["names"]
            if wanted(names):
                return names

    def close(self) -> None:
        """Lose the connection, without a word."""
        self._lines.close()
        self._socket.close()
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def reconnect(self) -> None:
        """Connect again and register under the old name, as weft's agent does."""
        self.close()
        self._connect()
        self.register()

    def leave(self) -> None:
        self.send(type="leave")
        self.receive("left")
        self.close()


DISCOVER = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


class ScriptedProxy:
    """
    A delta ADS client, as much of a proxy as the control plane can see.

    Args:
        silent: Receives, and answers nothing.
        refuses: Names of resources that it does not accept, until they are set anew; a response with one of them is
            refused as a whole.
        known: Type URL -> name -> version, what it has from before.
    """

    def __init__(
        self,
        path: Path,
        node: Mapping[str, Any],
        *,
        silent: bool = False,
        refuses: frozenset[str] = frozenset(),
        known: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.silent, self.refuses = silent, refuses
        self._node = {"id": node["id"], "cluster": node["cluster"]}
        self._requests: queue.Queue[Any] = queue.Queue()
        self._subscribed: dict[str, set[str]] = {}
        self._changed = threading.Condition()
        self.resources: dict[str, dict[str, bytes]] = {}
        self.versions: dict[str, dict[str, str]] = {url: dict(names) for url, names in (known or {}).items()}
        self.received: list[tuple[str, tuple[str, ...]]] = []
        """(type URL, names) of every response that named a resource."""
        # gRPC would take the socket's path, percent-encoded, for the authority; `h2` and RFC 3986 know no such host.
        options = [("grpc.default_authority", "localhost")]
        self._channel = grpc.insecure_channel(f"unix:{path}", options)
        call = self._channel.stream_stream(
            DISCOVER,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self._responses = call(iter(self._requests.get, None), wait_for_ready=True)
        for type_url in (CLUSTER, LISTENER):
            self._subscribe(type_url, {"*"})
        for type_url in (CLUSTER_LOAD_ASSIGNMENT, ROUTE_CONFIGURATION):
            if names := set(self.versions.get(type_url, ())):
                self._subscribe(type_url, names)
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def names(self, type_url: str) -> set[str]:
        with self._changed:
            return set(self.resources.get(type_url, ()))

    def wait(self, condition: Callable[[ScriptedProxy], Any]) -> Any:
        """Return the first true value of *condition*, looked at after each response."""
        with self._changed:
            value = self._changed.wait_for(lambda: condition(self), PATIENCE_SECONDS)
            assert value, f"never received; it has {self.resources.keys()}"
            return value

    def endpoints(self, cluster: str) -> list[str]:
        """Return the addresses of a cluster's endpoints as last received, sorted."""
        from envoy.config.endpoint.v3 import endpoint_pb2

        with self._changed:
            value = self.resources.get(CLUSTER_LOAD_ASSIGNMENT, {}).get(cluster, b"")
        assignment = endpoint_pb2.ClusterLoadAssignment.FromString(value)
        return sorted(
            endpoint.endpoint.address.socket_address.address
            for locality in assignment.endpoints
            for endpoint in locality.lb_endpoints
        )

    def close(self) -> None:
        self._requests.put(None)
        self._responses.cancel()
        self._channel.close()
        self._thread.join(PATIENCE_SECONDS)

    def _subscribe(self, type_url: str, names: set[str]) -> None:
        new = names - self._subscribed.setdefault(type_url, set())
        if not new:
            return
        first = not self._subscribed[type_url]
        self._subscribed[type_url] |= new
        self._requests.put(
            discovery_pb2.DeltaDiscoveryRequest(
                node=self._node,
                type_url=type_url,
                resource_names_subscribe=sorted(new),
                initial_resource_versions=self.versions.get(type_url, {}) if first else {},
            )
        )

    def _receive(self) -> None:
        try:
            for response in self._responses:
                self._take(response)
        except grpc.RpcError:
            pass  # closed by the test, or by the end of the control plane

    def _take(self, response: Any) -> None:
        names = tuple(resource.name for resource in response.resources)
        refused = sorted(self.refuses.intersection(names))
        with self._changed:
            self.received.append((response.type_url, names))
            if not refused:
                have = self.resources.setdefault(response.type_url, {})
                have.update({resource.name: resource.resource.value for resource in response.resources})
                versions = self.versions.setdefault(response.type_url, {})
                versions.update({resource.name: resource.version for resource in response.resources})
                for name in response.removed_resources:
                    have.pop(name, None)
            self._changed.notify_all()
        if self.silent:
            return
        answer = discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        if refused:
            answer.error_detail.message = f"cannot do {', '.join(refused)}"
        self._requests.put(answer)
        for resource in response.resources:
            self._follow(response.type_url, resource.resource.value)

    def _follow(self, type_url: str, value: bytes) -> None:
        """Ask for what a resource refers to."""
        if type_url == CLUSTER:
            cluster = cluster_pb2.Cluster.FromString(value)
            if cluster.type == cluster_pb2.Cluster.EDS:
                self._subscribe(CLUSTER_LOAD_ASSIGNMENT, {cluster.eds_cluster_config.service_name or cluster.name})
        elif type_url == LISTENER:
            listener = listener_pb2.Listener.FromString(value)
            for chain in [*listener.filter_chains, listener.default_filter_chain]:
                for item in chain.filters:
                    manager = http_connection_manager_pb2.HttpConnectionManager()
                    if item.typed_config.Is(manager.DESCRIPTOR):
                        item.typed_config.Unpack(manager)
                        if manager.HasField("rds"):
                            self._subscribe(ROUTE_CONFIGURATION, {manager.rds.route_config_name})


def running_mesh(declaration: Mapping[str, Any] | None = None) -> Iterator[Mesh]:
    """Yield a started mesh, and end it."""
    mesh = Mesh(declaration)
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.close()
