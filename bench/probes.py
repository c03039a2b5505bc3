"""
Whether each feature of a role acts in a running proxy: one probe a feature, asked by curl before the load.

A feature that is configured and does nothing would make its peer cheap, so a probe that fails ends the run.
After the load records and counts must have grown by its requests (`Counts`), and a large configuration must be there whole (`check_held`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import http.client
import json
import re
import select
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import role as what
from bench.backends import CANARY_LETTER, HELD_PATH, RELEASE_PATH
from bench.peers import DATA_PLANES, Peer
from bench.process import program
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


def check(peer: Peer, role: Role) -> None:
    """
    Ask *peer* about each feature of *role*, and about its key exchange if probes have certificates.

    What understands no HTTP/1.1 of its own is not asked: the relay, TCP proxies, and nginx's clear-text ports for HTTP/2.

    Raises:
        FeatureDoesNotActError: One does not act; the message says which, what was expected and what came.
    """
    if peer.name == "relay" or role.tcp or (peer.name == "nginx" and role.downstream_http2):
        return
    for feature in sorted(role.features):
        probe = _PROBES.get(feature)
        if probe is not None:
            problem = probe(peer, role)
            if problem:
                raise FeatureDoesNotActError(f"{peer.name}: {feature} does not act: {problem}")
    if role.callers:
        _check_key_exchange(_terminating(peer), role.callers.known)


def check_held(peer: Peer, role: Role) -> None:
    """
    Look whether *peer* holds all clusters of *role*, each with an endpoint at least.

    Raises:
        FeatureDoesNotActError: It does not.
    """
    wanted = len(role.services)
    if peer.name == "haproxy":
        held = {row["pxname"] for row in _statistics(peer) if row["svname"] not in {"FRONTEND", "BACKEND"}}
    elif peer.name == "envoy":
        # Its list of 10,000 clusters would be of many megabytes.
        shown = _ask_admin(peer, "/stats?filter=membership_total")
        held = set(re.findall(r"^cluster\.(\S+)\.membership_total: [1-9]", shown, re.MULTILINE))
    else:
        shown = json.loads(_ask_admin(peer, "/clusters?format=json"))["cluster_statuses"]
        held = {one["name"] for one in shown if "host_statuses" in one}
    if missing := set(role.services) - held:
        raise FeatureDoesNotActError(
            f"{peer.name}: expected {wanted:,} clusters with endpoints, {len(missing):,} are missing"
        )


def _shown(role: Role) -> Tls | None:
    """Return what a client needs to be let in; nothing for a clear-text port, also where one of TLS is behind it."""
    return role.callers.known if role.callers and role.downstream_tls else None


def _terminating(peer: Peer) -> Peer:
    """Return who terminates TLS: of a pair, the second."""
    return peer.behind[0] if peer.behind else peer


def _check_key_exchange(peer: Peer, caller: Tls) -> None:
    """With P-256 offered first X25519 must be chosen, and with nothing else no connection must come about."""
    chosen, refused = (_key_exchange(peer, caller, groups) for groups in ("P-256:X25519", "P-256"))
    if not chosen.startswith("X25519") or refused:
        raise FeatureDoesNotActError(
            f"{peer.name}: expected key exchange by X25519 and by nothing else, came {chosen!r} and {refused!r}"
        )


def _key_exchange(peer: Peer, caller: Tls, groups: str) -> str:
    """Return what a client that offers *groups* agrees on; empty if nothing."""
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{peer.port}", "-tls1_3", "-groups", groups]
    command += ["-cert", str(caller.chain), "-key", str(caller.key), "-CAfile", str(caller.roots)]
    command += ["-servername", "localhost", "-alpn", "http/1.1"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=10)
    found = re.search(r"^(?:Server Temp Key|Negotiated TLS1.3 group): (\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else ""


def _request_id(peer: Peer, role: Role) -> str:
    ids = [ask(peer, "echo", tls=_shown(role)).seen("x-request-id") for _ in range(2)]
    return "" if all(len(each) >= 32 for each in ids) and ids[0] != ids[1] else f"expected two new ids, came {ids}"


def _virtual_hosts(peer: Peer, role: Role) -> str:
    # With endpoints that are never connected to, one service alone can answer.
    services = [role.target] if role.endpoints else [role.services[0], role.target, role.services[-1]]
    found = {ask(peer, service, role.path, tls=_shown(role)).status for service in services}
    nobody = ask(peer, "nobody", tls=_shown(role)).status
    good = found == {200} and nobody == 404
    return "" if good else f"expected 200 of services and 404 of others, came {found}, {nobody}"


def _canary(peer: Peer, role: Role) -> str:
    plain = ask(peer, role.target, role.path, tls=_shown(role)).body[-1:]
    canary = ask(peer, role.target, role.path, [what.CANARY_HEADER], tls=_shown(role)).body[-1:]
    return "" if canary == CANARY_LETTER != plain else f"expected the canary by header only, came {canary!r}, {plain!r}"


def _retry(peer: Peer, role: Role) -> str:
    found = [ask(peer, "retried", tls=_shown(role)).status for _ in range(6)]
    return "" if set(found) == {200} else f"one endpoint of two answers 503; expected none of it, came {found}"


def _circuit_breaker(peer: Peer, role: Role) -> str:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = sorted(pool.map(lambda _: ask(peer, "narrow", "/hold", tls=_shown(role)).status, range(3)))
    return "" if found[0] == 200 and found[-1] in {502, 503} else f"one at a time is allowed; three had {found}"


def _outlier_detection(peer: Peer, role: Role) -> str:
    found = [ask(peer, "ejecting", tls=_shown(role)).status for _ in range(40)]
    failed = sum(status != 200 for status in found)
    # nginx asks the next one, so that its client sees no failure; its backend is left alone all the same.
    limit = what.CONSECUTIVE_5XX + 3
    return "" if failed <= limit and set(found[-10:]) == {200} else f"one endpoint of two answers 500: came {found}"


def _least_request(peer: Peer, role: Role) -> str:
    """
    One endpoint of two holds what it gets, so that it always has more requests than the other. Taken in turn it has half of them; it has
    a quarter, where the one with fewer of two that are drawn is taken (both may be the same one), and less where it always is that.
    """
    number, held = 120, 0
    with contextlib.ExitStack() as stack:
        waiting = []
        for _ in range(number):
            client = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=30)
            stack.callback(client.close)
            client.request("GET", "/", headers={"host": what.host("uneven")})
            while not select.select([client.sock], [], [], 0.001)[0]:
                if (now := _slow(role, HELD_PATH)) > held:
                    held = now
                    waiting.append(client)
                    break
            else:
                client.getresponse().read()
        _slow(role, RELEASE_PATH)
        for client in waiting:
            client.getresponse().read()
    limit = number * 2 // 5
    return "" if held <= limit else f"expected at most {limit} requests of {number} at a slow endpoint, came {held}"


def _slow(role: Role, path: str) -> int:
    """Ask the slow endpoint itself; return how many requests it holds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{role.ports.slow}{path}", timeout=30) as answer:
        held: int = json.load(answer)["held"]
        return held


def _path_normalisation(peer: Peer, role: Role) -> str:
    path = ask(peer, "echo", "/a/./b/../c%7Ed", tls=_shown(role)).echoed["path"]
    return "" if path == "/a/c~d" else f"expected /a/c~d, the backend saw {path}"


def _fault(peer: Peer, role: Role) -> str:
    found = [ask(peer, "faulty", headers=headers, tls=_shown(role)).status for headers in ([], [what.FAULT_HEADER])]
    return "" if found == [200, what.FAULT_STATUS] else f"expected 200 and {what.FAULT_STATUS} by header, came {found}"


def _client_certificate(peer: Peer, role: Role) -> str:
    found = ask(peer, "echo", tls=_shown(role)).seen("x-forwarded-client-cert")
    return "" if "Hash=" in found else f"expected x-forwarded-client-cert with Hash=, came {found!r}"


def _rbac(peer: Peer, role: Role) -> str:
    found = [ask(peer, "echo", path, tls=_shown(role)).status for path in ("/", what.FORBIDDEN_PATH)]
    return "" if found == [200, 403] else f"expected 200 and 403 at {what.FORBIDDEN_PATH}, came {found}"


def _cors(peer: Peer, role: Role) -> str:
    allowed = ask(peer, "echo", headers=[("origin", what.CORS_ORIGIN)], tls=_shown(role)).headers.get(
        "access-control-allow-origin", ""
    )
    other = ask(peer, "echo", headers=[("origin", "https://other.example")], tls=_shown(role)).headers
    good = allowed == what.CORS_ORIGIN and "access-control-allow-origin" not in other
    return "" if good else f"expected {what.CORS_ORIGIN} to be allowed and no other, came {allowed!r}, {other}"


def _principal(peer: Peer, role: Role) -> str:
    assert role.callers
    assert role.callers.stranger
    called = _terminating(peer)
    found = [ask(called, "echo", tls=each).status for each in (role.callers.known, role.callers.stranger)]
    return "" if found == [200, 403] else f"expected 200 for who may call and 403 for a stranger, came {found}"


def _peer_identity(peer: Peer, role: Role) -> str:
    found = [ask(peer, service).status for service in ("stranger", "impostor")]
    return "" if found == [200, 503] else f"expected 200 of a stranger and 503 where it poses as another, came {found}"


def _labels(peer: Peer, role: Role) -> str:
    """Istio's metrics of a request must be there with at least as many labels as all of them know."""
    if peer.name not in DATA_PLANES:
        return ""
    ask(peer, role.target, role.path, tls=_shown(role))
    for proxy in (peer, *peer.behind):
        text = _ask_admin(proxy, "/stats/prometheus?filter=" + urllib.parse.quote(r"istio[_.]re"))
        for name in ("requests_total", "request_duration_milliseconds_sum", "request_bytes_sum", "response_bytes_sum"):
            found = re.search(rf"^(?:envoy_)?istio_{name}\{{(.*)\}}", text, re.MULTILINE)
            if not found or found[1].count('="') < LABELS:
                return f"expected istio_{name} with {LABELS} labels at least, came {found and found[0]}"
    return ""


LABELS = 24
"""Of a request. Istio's have `grpc_response_status` besides, which weft-proxy has not."""

_PROBES: dict[Feature, Callable[[Peer, Role], str]] = {
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
    Feature.PRINCIPAL: _principal,
    Feature.PEER_IDENTITY: _peer_identity,
    Feature.LABELS: _labels,
}
"""Access records and metrics are looked at after the load, by `Counts`."""


class Counts:
    """What each proxy of a peer had recorded and counted at one moment, to be compared after a load."""

    def __init__(self, peer: Peer, role: Role) -> None:
        self._role = role
        self._proxies = (peer, *peer.behind) if peer.name != "relay" else ()
        self._recorded_bytes = [_size(each.access_log) for each in self._proxies]
        self._requests = [self._counted(each) if role.has(Feature.METRICS) else 0 for each in self._proxies]

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
                _wait(proxy, Feature.METRICS, functools.partial(self._counted, proxy), counted + requests)

    def _counted(self, proxy: Peer) -> int:
        return _requests(proxy, labelled=self._role.has(Feature.LABELS))


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


def _requests(proxy: Peer, *, labelled: bool) -> int:
    """Return how many requests (connections, of TCP) *proxy* says to have had; by what has labels, where it has both."""
    if proxy.name == "haproxy":
        front = next(row for row in _statistics(proxy) if row["svname"] == "FRONTEND")
        return int(front["req_tot"] or 0) or int(front["stot"])
    if proxy.name == "nginx":
        return int(_ask_admin(proxy, "/").split()[9])
    path, names = "/stats/prometheus", r"istio_requests_total|istio_tcp_connections_opened_total"
    if proxy.name == "envoy":
        names = (
            "envoy_istio_requests_total" if labelled else "envoy_http_downstream_rq_total|envoy_tcp_downstream_cx_total"
        )
        # All of what it counts of 10,000 clusters would take longer than the load.
        path += "?filter=" + urllib.parse.quote(r"(http|tcp)\.bench\.downstream_(rq|cx)_total|istio\.requests_total")
    text = _ask_admin(proxy, path)
    return sum(int(float(value)) for value in re.findall(rf"^(?:{names})\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))


def _ask_admin(proxy: Peer, path: str) -> str:
    command = ["curl", "-s", "--max-time", "30", "--unix-socket", str(proxy.admin), f"http://admin{path}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _statistics(proxy: Peer) -> list[dict[str, str]]:
    """Return HAProxy's table of statistics."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(proxy.admin))
        client.sendall(b"show stat\n")
        shown = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    names, *rows = (line.lstrip("# ").split(",") for line in shown.splitlines() if line)
    return [dict(zip(names, row, strict=False)) for row in rows]
