"""
S10: S2 and S9 through the real interception: a client in a program's network namespace whose connections TPROXY catches.

For handshakes the proxies terminate mutual TLS with the features of the called side, where a connection is caught as any other is.

The same client, called `direct`, also calls the same proxy by its address, so the price of being caught is seen apart.
`python -m bench.scenarios.s10 WORK PEERS ROUNDS SECONDS` prints JSON. It is a process of its own, because it
moves itself into the namespaces of a mesh.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from envoy.config.listener.v3 import listener_pb2
from google.protobuf import json_format

from bench import backends, peers, probes, role
from bench.certificates import Authority
from bench.configurations import xds
from bench.contest import WARM_UP_SECONDS, measured
from bench.load import Load, handshakes, wrk
from bench.measure import CPU, Cores, Run, Series, Table, alternate, keep
from bench.process import end_by_sigterm, free_port, running, wait_for_port
from bench.role import Role
from weft.agent import syscalls
from weft.agent.namespaces import OUTBOUND_PORT, MeshNamespaces, ProgramNamespaces
from weft.agent.paths import mesh_paths
from weft.agent.proxy import prepare

SERVICE_ADDRESS = "240.240.0.7"
PORT = 9080
BODY_BYTES = 1024


@dataclass(frozen=True)
class Work:
    """What one scenario asks for."""

    title: str
    connections: int = 0
    headers: tuple[str, ...] = ()
    tls: bool = False
    """The load is handshakes."""


WORKS = {
    "s2": Work("S10: S2 (mesh features) through interception", 64),
    "s9": Work(
        "S10: S9 (a new connection for each request, mesh features) through interception", 16, ("Connection: close",)
    ),
    "s9.mtls": Work("S10: S9 (a full mTLS handshake for each request, mesh features) through interception", tls=True),
}


def run(run: Run) -> list[Table]:
    home = run.folder("s10")
    names = [name for name in peers.DATA_PLANES if name in run.peers]
    command = [sys.executable, "-m", "bench.scenarios.s10", str(home), ",".join(names)]
    command += [str(run.rounds), str(run.seconds)]
    log = home / "log"
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            found = process.communicate()[0]
        finally:
            # It has started proxies and is to end them itself.
            process.terminate()
    if process.returncode:
        raise RuntimeError(f"interception ended with {process.returncode}: {log.read_text()[-2000:]}")
    samples: dict[str, dict[str, list[float]]] = json.loads(found)
    return [
        Table(f"s10.{key}", work.title, {name: Series(CPU, found) for name, found in samples[key].items()})
        for key, work in WORKS.items()
    ]


def resources(wanted: Role, port: int, namespace: Path, access_log: Path, data_plane: str) -> xds.Resources:
    """Return those of *wanted* at *port*, and a listener in the client's namespace in front of the same filter chain."""
    explicit, *others = xds.resources(wanted, port, access_log, data_plane=data_plane)
    caught = listener_pb2.Listener.FromString(explicit[3])
    caught.name = f"0.0.0.0_{PORT}"
    caught.address.socket_address.address = "0.0.0.0"
    caught.address.socket_address.port_value = PORT
    caught.bind_to_port.value = False
    capturing: dict[str, Any] = {
        "name": "virtualOutbound",
        "address": {
            "socket_address": {
                "address": "0.0.0.0",
                "port_value": OUTBOUND_PORT,
                "network_namespace_filepath": str(namespace),
            }
        },
        "transparent": True,
        "use_original_dst": True,
        "default_filter_chain": {
            "filters": [
                {
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": "unmatched",
                        # Nobody's: a connection that the listener above did not take fails the run.
                        "cluster": "unmatched",
                    },
                }
            ]
        },
    }
    taken = xds.resource(
        listener_pb2.Listener(), caught.name, json_format.MessageToDict(caught, preserving_proto_field_name=True)
    )
    return [explicit, taken, xds.resource(listener_pb2.Listener(), "virtualOutbound", capturing), *others]


def measure(work: Path, names: list[str], rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Return CPU microseconds per request of each of `WORKS`, by peer (caught) and `direct` of weft-proxy."""
    cores = Cores.of_this_machine()
    environment = {"XDG_RUNTIME_DIR": str(work), "XDG_STATE_HOME": str(work / "state"), "HOME": str(work)}
    (work / "state").mkdir(exist_ok=True)
    work.chmod(0o700)
    paths = mesh_paths("bench", environment=environment)
    paths.make()
    MeshNamespaces.create(paths, ip_network("10.244.0.0/16"))  # type: ignore[arg-type]
    samples: dict[str, dict[str, list[float]]] = {key: {} for key in WORKS}
    authority = Authority(work / "certificates")
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(backends.http(work, length=BODY_BYTES, cores=cores.rest))
        calling = Role(ports, role.OUTBOUND_MESH)
        called = Role(
            ports, role.INBOUND_MESH, inbound=True, hosts=1, downstream_tls=authority.called, callers=authority.callers
        )
        addresses = itertools.count(6)

        def start(wanted: Role) -> dict[str, tuple[peers.Peer, tuple[str, int], int | None]]:
            """Return the ways to each proxy: the place that is called, and from which namespace."""
            ways: dict[str, tuple[peers.Peer, tuple[str, int], int | None]] = {}
            for name in names:
                number = next(addresses)
                client = ProgramNamespaces.create(
                    paths, f"client-{number}", f"10.244.0.{number}", f"fd77:ef7::{number}"
                )
                stack.callback(client.close)
                peer = stack.enter_context(_start(name, wanted, work / f"{name}-{number}", client.path, cores.proxy))
                probes.check(peer, wanted)
                ways[name] = (peer, (SERVICE_ADDRESS, PORT), client.descriptor)
                ways[f"{name}, direct"] = (peer, ("127.0.0.1", peer.port), None)
            return ways

        def apply(place: tuple[str, int], namespace: int | None, what: Work, _: peers.Peer, duration: float) -> Load:
            common: dict[str, Any] = {
                "seconds": duration,
                "cores": cores.rest,
                "length": BODY_BYTES,
                "letter": backends.BODY_LETTER,
                "work": work,
                "enter": None if namespace is None else functools.partial(_enter, namespace),
            }
            address, port = place
            if what.tls:
                return handshakes.apply(port, authority.caller, address=address, **common)
            headers = (f"Host: {role.host(calling.target)}", *what.headers)
            return wrk.apply(f"http://{address}:{port}/", connections=what.connections, headers=headers, **common)

        ways = {False: start(calling), True: start(called)}
        for key, what in WORKS.items():
            wanted = called if what.tls else calling
            measures: dict[str, Callable[[], tuple[float, Load]]] = {}
            for way, (peer, place, namespace) in ways[what.tls].items():
                load = functools.partial(apply, place, namespace, what)
                load(peer, WARM_UP_SECONDS)
                requests: Callable[[Load], int] = lambda seen: seen.requests  # noqa: E731
                measures[way] = functools.partial(measured, peer, wanted, load, seconds, requests)
            for way, (spent, seen) in alternate(rounds, measures):
                samples[key].setdefault(way, []).append(spent / seen.requests * 1e6)
    return samples


@contextlib.contextmanager
def _start(name: str, wanted: Role, home: Path, namespace: Path, cores: set[int]) -> Any:
    home.mkdir()
    port = free_port()
    published = resources(wanted, port, namespace, home / "access.log", name)
    keep(f"s10-{'in' if wanted.inbound else 'out'}-{name}.json", xds.readable(published), home)
    with xds.serving(home, published) as bootstrap:
        (home / "bootstrap.json").write_text(json.dumps(bootstrap))
        command = [*peers.command(name, 1), "-c", str(home / "bootstrap.json")]
        # The same capabilities that the agent leaves to a proxy, for which IP_TRANSPARENT asks.
        here = os.getpid()
        with running(command, cores=cores, log=home / "log", prepare=lambda: prepare(here)) as process:
            wait_for_port(port, process=process, log=home / "log")
            yield peers.Peer(name, port, process, home / "access.log", home / "admin.sock")


def _enter(namespace: int) -> None:
    syscalls.setns(namespace, syscalls.CLONE_NEWNET)


if __name__ == "__main__":
    end_by_sigterm()
    os.umask(0o022)
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), float(sys.argv[4]))))
