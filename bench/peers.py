"""
The peers: each starts a proxy with a role on loopback, pinned to its core.

weft-proxy and Envoy get the same xDS resources from the stream core of the control plane; HAProxy and nginx get
configurations of their own; the relay, in front of nothing but bytes, is the floor.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import records
from bench.configurations import haproxy as haproxy_configuration
from bench.configurations import nginx as nginx_configuration
from bench.configurations import xds
from bench.measure import keep
from bench.process import cpu_seconds, family, free_port, program, resident_kib, running, wait_for_port
from bench.role import Role


@dataclass(frozen=True)
class Peer:
    """
    A running proxy, or a pair of which the first is called: `port` is where it listens.

    `began` is the moment before it was executed, `listened` the one when it accepted a connection (time.monotonic).
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]
    access_log: Path
    admin: Path
    began: float = 0.0
    listened: float = 0.0
    behind: tuple[Peer, ...] = field(default=())

    def cpu_seconds(self) -> float:
        """User + system time so far, of the whole pair."""
        return sum(cpu_seconds(each.process.pid) for each in (self, *self.behind))

    def resident_kib(self) -> int:
        return sum(resident_kib(pid) for each in (self, *self.behind) for pid in family(each.process.pid))


def executable(name: str) -> str:
    """Return the program beside this interpreter, or for weft-proxy the one that WEFT_PROXY names."""
    if name == "weft-proxy" and (path := os.environ.get("WEFT_PROXY")):
        return path
    return str(Path(sys.executable).with_name(name))


FLUSH_MILLISECONDS = 1000
"""How long a record may wait for others; as nginx is told (bench/configurations/nginx.py)."""


def command(name: str, workers: int) -> list[str]:
    """Return the command line of an xDS data plane, without its bootstrap."""
    if name == "weft-proxy":
        return [executable(name), "--concurrency", str(workers)]
    # Envoy's hot restart and its shared base id are for others than sidecars of one run; its records leave it as often as
    # those of the others, and not after ten seconds.
    options = ["--log-level", "error", "--use-dynamic-base-id", "--disable-hot-restart"]
    options += ["--file-flush-interval-msec", str(FLUSH_MILLISECONDS)]
    return [executable(name), "--concurrency", str(workers), *options]


@contextlib.contextmanager
def _listening(peer: Callable[[subprocess.Popen[bytes]], Peer], started: _Started, port: int) -> Iterator[Peer]:
    moment = mmap.mmap(-1, struct.calcsize("d"))  # the same memory in both processes

    def prepare() -> None:
        struct.pack_into("d", moment, 0, time.monotonic())

    with running(
        started.command, cores=started.cores, log=started.log, environment=started.environment, prepare=prepare
    ) as process:
        wait_for_port(port, process=process, log=started.log)
        listened = time.monotonic()
        (began,) = struct.unpack_from("d", moment)
        yield replace(peer(process), began=began, listened=listened)


@dataclass(frozen=True)
class _Started:
    command: list[str | Path]
    cores: set[int]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)


def _kept(home: Path, ending: str) -> str:
    """Return the name of the configuration of who lives in *home*: `s2-envoy.json`, of a pair `s3-h2-in-envoy.json`."""
    scenario = home.parent
    before = f"{scenario.parent.name}-" if scenario.name in PARTS else ""
    return f"{before}{scenario.name}-{home.name}.{ending}"


@contextlib.contextmanager
def relay(role: Role, home: Path, cores: set[int]) -> Iterator[Peer]:
    """The floor: bytes copied, nothing understood."""
    binary, port = home / "relay", free_port()
    subprocess.run(["cc", "-O2", "-o", binary, Path(__file__).with_name("relay.c")], check=True)
    started = _Started([binary, str(port), str(role.ports.answer[0])], cores, home / "log")
    made = lambda process: Peer("relay", port, process, home / "none", home / "none")  # noqa: E731
    with _listening(made, started, port) as peer:
        yield peer


@contextlib.contextmanager
def haproxy(role: Role, home: Path, cores: set[int]) -> Iterator[Peer]:
    """HAProxy, `role.workers` threads."""
    port = free_port()
    with records.taken(home / "access.log", os.sched_getaffinity(0) - cores or cores) as taken:
        (home / "haproxy.cfg").write_text(haproxy_configuration.configuration(role, port, home, taken))
        keep(_kept(home, "cfg"), (home / "haproxy.cfg").read_text(), home)
        started = _Started([program("haproxy"), "-f", home / "haproxy.cfg"], cores, home / "log")
        made = lambda process: Peer("haproxy", port, process, home / "access.log", home / "admin.sock")  # noqa: E731
        with _listening(made, started, port) as peer:
            yield peer


@contextlib.contextmanager
def nginx(role: Role, home: Path, cores: set[int]) -> Iterator[Peer]:
    """nginx, `role.workers` processes beside the one that watches them."""
    port = free_port()
    (home / "nginx.conf").write_text(nginx_configuration.configuration(role, port, home, home / "access.log"))
    keep(_kept(home, "conf"), (home / "nginx.conf").read_text(), home)
    started = _Started([program("nginx"), "-c", home / "nginx.conf"], cores, home / "log")
    made = lambda process: Peer("nginx", port, process, home / "access.log", home / "admin.sock")  # noqa: E731
    with _listening(made, started, port) as peer:
        yield peer


@contextlib.contextmanager
def _over_xds(name: str, role: Role, home: Path, cores: set[int]) -> Iterator[Peer]:
    port = free_port()
    published = xds.resources(role, port, home / "access.log", data_plane=name)
    keep(_kept(home, "json"), xds.readable(published), home)
    with xds.serving(home, published) as bootstrap:
        (home / "bootstrap.json").write_text(json.dumps(bootstrap))
        whole: list[str | Path] = [*command(name, role.workers), "-c", home / "bootstrap.json"]
        made = lambda process: Peer(name, port, process, home / "access.log", home / "admin.sock")  # noqa: E731
        with _listening(made, _Started(whole, cores, home / "log"), port) as peer:
            yield peer


def weft_proxy(role: Role, home: Path, cores: set[int]) -> AbstractContextManager[Peer]:
    return _over_xds("weft-proxy", role, home, cores)


def envoy(role: Role, home: Path, cores: set[int]) -> AbstractContextManager[Peer]:
    return _over_xds("envoy", role, home, cores)


ALL: dict[str, Callable[[Role, Path, set[int]], AbstractContextManager[Peer]]] = {
    "weft-proxy": weft_proxy,
    "envoy": envoy,
    "haproxy": haproxy,
    "nginx": nginx,
    "relay": relay,
}

PARTS = ("in", "out")
"""Of a pair: who is called, and who calls."""

DATA_PLANES = ("weft-proxy", "envoy")
"""Those that can stand beside the programs of a mesh."""


@contextlib.contextmanager
def start(name: str, role: Role, folder: Path, cores: set[int]) -> Iterator[Peer]:
    """Run the peer *name* with *role*; its files are in *folder*, which names its configuration in bench/out."""
    home = folder / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    with ALL[name](role, home, cores) as peer:
        yield peer


@contextlib.contextmanager
def pair(name: str, outbound: Role, inbound: Role, folder: Path, cores: set[int]) -> Iterator[Peer]:
    """Run two: one with *inbound*, and in front of it one with *outbound*, whose answers come from the first."""
    called, calling = (folder / part for part in PARTS)
    with start(name, inbound, called, cores) as behind:
        role = replace(outbound, ports=replace(outbound.ports, answer=(behind.port,)))
        with start(name, role, calling, cores) as before:
            yield replace(before, behind=(behind,))
