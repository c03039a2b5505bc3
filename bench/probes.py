"""
Whether each feature of a role acts in a running proxy: one probe a feature, asked by curl before the load.

A feature that is configured and does nothing would make its peer cheap, so a probe that fails ends the run.
After the load, `records` and `counted` must have grown by its requests.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import re
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import role as what
from bench.backends import CANARY_LETTER
from bench.peers import Peer
from bench.role import Feature, Role, Tls

FLUSH_SECONDS = 15.0
"""How long records may be held back (Envoy: 10 s, or until there are 64 KiB)."""


class FeatureDoesNotActError(RuntimeError):
    """A feature that is on for everybody and does nothing in one peer."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def echoed(self) -> dict[str, object]:
        """What the echo backend saw."""
        try:
            seen = json.loads(self.body)
        except ValueError:
            raise FeatureDoesNotActError(f"expected an answer of the echo backend, came {self}") from None
        assert isinstance(seen, dict)
        return seen

    def seen(self, header: str) -> str:
        """Value of a request header as the echo backend saw it; empty if it did not."""
        headers = self.echoed["headers"]
        assert isinstance(headers, dict)
        return str(headers.get(header, ""))


def ask(
    peer: Peer, service: str, path: str = "/", headers: Sequence[tuple[str, str]] = (), tls: Tls | None = None
) -> Answer:
    """GET *path* of *service*, named as others in the mesh name it, by *peer*."""
    scheme, options = "http", []
    if tls:
        scheme = "https"
        options = ["--cert", str(tls.chain), "--key", str(tls.key), "--cacert", str(tls.roots), "--http1.1"]
    command = ["curl", "-s", "-i", "--path-as-is", "--max-time", "10", *options, "-H", f"host: {what.host(service)}"]
    for name, value in headers:
        command += ["-H", f"{name}: {value}"]
    address = "localhost" if tls else "127.0.0.1"
    done = subprocess.run([*command, f"{scheme}://{address}:{peer.port}{path}"], capture_output=True, check=False)
    if done.returncode:
        raise FeatureDoesNotActError(
            f"{peer.name}: curl ended with {done.returncode} at {service}{path}: {done.stderr!r}"
        )
    head, _, body = done.stdout.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Answer(int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, body)


def check(peer: Peer, role: Role, *, tls: Tls | None = None) -> None:
    """
    Ask *peer* about each feature of *role*; *tls* is the client's, if the role terminates it.

    Raises:
        FeatureDoesNotActError: One does not act; the message says which, what was expected and what came.
    """
    for feature in sorted(role.features):
        probe = _PROBES.get(feature)
        if probe is not None:
            problem = probe(peer, role, tls)
            if problem:
                raise FeatureDoesNotActError(f"{peer.name}: {feature} does not act: {problem}")


def _request_id(peer: Peer, role: Role, tls: Tls | None) -> str:
    ids = [ask(peer, "echo", tls=tls).seen("x-request-id") for _ in range(2)]
    return "" if all(len(each) >= 32 for each in ids) and ids[0] != ids[1] else f"expected two new ids, came {ids}"


def _virtual_hosts(peer: Peer, role: Role, tls: Tls | None) -> str:
    found = {
        ask(peer, service, role.path, tls=tls).status for service in (role.services[0], role.target, role.services[-1])
    }
    nobody = ask(peer, "nobody", tls=tls).status
    return (
        ""
        if found == {200} and nobody == 404
        else f"expected 200 of services and 404 of others, came {found}, {nobody}"
    )


def _canary(peer: Peer, role: Role, tls: Tls | None) -> str:
    plain = ask(peer, role.target, role.path, tls=tls).body[-1:]
    canary = ask(peer, role.target, role.path, [what.CANARY_HEADER], tls=tls).body[-1:]
    return "" if canary == CANARY_LETTER != plain else f"expected the canary by header only, came {canary!r}, {plain!r}"


def _retry(peer: Peer, role: Role, tls: Tls | None) -> str:
    found = [ask(peer, "retried", tls=tls).status for _ in range(6)]
    return "" if set(found) == {200} else f"one endpoint of two answers 503; expected none of it, came {found}"


def _circuit_breaker(peer: Peer, role: Role, tls: Tls | None) -> str:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = sorted(pool.map(lambda _: ask(peer, "narrow", "/hold", tls=tls).status, range(3)))
    return "" if found[0] == 200 and found[-1] in {502, 503} else f"one at a time is allowed; three had {found}"


def _outlier_detection(peer: Peer, role: Role, tls: Tls | None) -> str:
    found = [ask(peer, "ejecting", tls=tls).status for _ in range(40)]
    failed = sum(status != 200 for status in found)
    # nginx asks the next one, so that its client sees no failure; its backend is left alone all the same.
    limit = what.CONSECUTIVE_5XX + 3
    return "" if failed <= limit and set(found[-10:]) == {200} else f"one endpoint of two answers 500: came {found}"


def _least_request(peer: Peer, role: Role, tls: Tls | None) -> str:
    if role.upstream_tls or len(role.ports.echo) < 2:
        return ""
    ports = {ask(peer, "echo", tls=tls).echoed["port"] for _ in range(20)}
    return "" if len(ports) == 2 else f"expected both endpoints in 20 requests, came {ports}"


def _path_normalisation(peer: Peer, role: Role, tls: Tls | None) -> str:
    path = ask(peer, "echo", "/a/./b/../c%7Ed", tls=tls).echoed["path"]
    return "" if path == "/a/c~d" else f"expected /a/c~d, the backend saw {path}"


def _fault(peer: Peer, role: Role, tls: Tls | None) -> str:
    found = [ask(peer, "faulty", headers=headers, tls=tls).status for headers in ([], [what.FAULT_HEADER])]
    return "" if found == [200, what.FAULT_STATUS] else f"expected 200 and {what.FAULT_STATUS} by header, came {found}"


def _client_certificate(peer: Peer, role: Role, tls: Tls | None) -> str:
    found = ask(peer, "echo", tls=tls).seen("x-forwarded-client-cert")
    return "" if "Hash=" in found else f"expected x-forwarded-client-cert with Hash=, came {found!r}"


def _rbac(peer: Peer, role: Role, tls: Tls | None) -> str:
    found = [ask(peer, "echo", path, tls=tls).status for path in ("/", what.FORBIDDEN_PATH)]
    return "" if found == [200, 403] else f"expected 200 and 403 at {what.FORBIDDEN_PATH}, came {found}"


def _cors(peer: Peer, role: Role, tls: Tls | None) -> str:
    allowed = ask(peer, "echo", headers=[("origin", what.CORS_ORIGIN)], tls=tls).headers.get(
        "access-control-allow-origin", ""
    )
    other = ask(peer, "echo", headers=[("origin", "https://other.example")], tls=tls).headers
    good = allowed == what.CORS_ORIGIN and "access-control-allow-origin" not in other
    return "" if good else f"expected {what.CORS_ORIGIN} to be allowed and no other, came {allowed!r}, {other}"


_PROBES: dict[Feature, Callable[[Peer, Role, Tls | None], str]] = {
    Feature.REQUEST_ID: _request_id,
    Feature.VIRTUAL_HOSTS: _virtual_hosts,
    Feature.CANARY: _canary,
    Feature.RETRY: _retry,
    Feature.CIRCUIT_BREAKER: _circuit_breaker,
    Feature.OUTLIER_DETECTION: _outlier_detection,
    Feature.LEAST_REQUEST: _least_request,
    Feature.PATH_NORMALISATION: _path_normalisation,
    Feature.FAULT: _fault,
    Feature.CLIENT_CERTIFICATE: _client_certificate,
    Feature.RBAC: _rbac,
    Feature.CORS: _cors,
}
"""Access records and metrics are looked at after the load, by `Counts`."""


class Counts:
    """What each proxy of a peer had recorded and counted at one moment, to be compared after a load."""

    def __init__(self, peer: Peer, role: Role) -> None:
        self._role = role
        self._proxies = (peer, *peer.behind) if peer.name != "relay" else ()
        self._recorded_bytes = [_size(each.access_log) for each in self._proxies]
        self._requests = [_requests(each) if role.has(Feature.METRICS) else 0 for each in self._proxies]

    def check(self, requests: int) -> None:
        """
        Wait until *requests* more were recorded and counted by each proxy.

        Raises:
            FeatureDoesNotActError: They were not, within the time in which records are flushed.
        """
        for proxy, offset, counted in zip(self._proxies, self._recorded_bytes, self._requests, strict=True):
            if self._role.has(Feature.ACCESS_RECORD):
                _wait(proxy, Feature.ACCESS_RECORD, functools.partial(_lines, proxy.access_log, offset), requests)
            if self._role.has(Feature.METRICS):
                _wait(proxy, Feature.METRICS, functools.partial(_requests, proxy), counted + requests)


def _wait(proxy: Peer, feature: Feature, count: Callable[[], int], wanted: int) -> None:
    deadline = time.monotonic() + FLUSH_SECONDS
    while (found := count()) < wanted:
        if time.monotonic() > deadline:
            raise FeatureDoesNotActError(f"{proxy.name}: {feature}: expected {wanted} after the load, found {found}")
        time.sleep(0.05)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _lines(file: Path, offset: int) -> int:
    """Return how many lines end after *offset*; *file* is made when the first is written."""
    if not file.exists():
        return 0
    with file.open("rb") as log:
        log.seek(offset)
        return sum(chunk.count(b"\n") for chunk in iter(lambda: log.read(1 << 20), b""))


def _requests(proxy: Peer) -> int:
    """Return how many requests (connections, of TCP) *proxy* says to have had."""
    if proxy.name == "haproxy":
        shown = _ask_socket(proxy.admin)
        names, *rows = (line.lstrip("# ").split(",") for line in shown.splitlines() if line)
        front = next(dict(zip(names, row, strict=False)) for row in rows if row[1] == "FRONTEND")
        return int(front["req_tot"] or 0) or int(front["stot"])
    url = "http://admin/" if proxy.name == "nginx" else "http://admin/stats/prometheus"
    if proxy.name == "envoy":
        # All of what it counts of 10,000 clusters would take longer than the load.
        url += "?filter=" + urllib.parse.quote(r"(http|tcp)\.bench\.downstream_(rq|cx)_total")
    command = ["curl", "-s", "--max-time", "10", "--unix-socket", proxy.admin, url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if proxy.name == "nginx":
        return int(text.split()[9])
    names = r"istio_requests_total|istio_tcp_connections_opened_total"
    if proxy.name == "envoy":
        names = r"envoy_http_downstream_rq_total|envoy_tcp_downstream_cx_total"
    return sum(int(float(value)) for value in re.findall(rf"^(?:{names})\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))


def _ask_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"show stat\n")
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()
