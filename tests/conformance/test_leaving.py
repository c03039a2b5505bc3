"""Clients of HTTP/1 that go away while their request is under way: stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.both import Json, both, cluster, file_log, http_filters, listener, records
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream

pytestmark = pytest.mark.conformance

FIELDS = {"path": "%REQ(:PATH)%", "status": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "why": "%RESPONSE_CODE_DETAILS%"}  # fmt: skip
GONE = {"flags": "DC", "why": "downstream_remote_disconnect"}


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: up\r\n\r\n".encode()


def half_close(client: socket.socket) -> None:
    """Send no more, and wait for the answer: nobody can tell that from a close."""
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def pipeline_and_close(client: socket.socket) -> None:
    client.sendall(request("/never"))
    client.close()


LEAVES: dict[str, Callable[[socket.socket], None]] = {
    "close": socket.socket.close,
    "half-close": half_close,
    "pipeline": pipeline_and_close,
}


def of(directory: Path, proxy: Static, path: str) -> list[Json]:
    """Return what *proxy* has recorded of *path*."""
    return [record for record in records(directory / f"{proxy.ports['http']}.log") if record.pop("path") == path]


def recorded(directory: Path, proxy: Static, path: str) -> Json:
    """Return the record of *path*, once it is there."""
    until(f"{proxy.kind} has a record of {path}", lambda: bool(of(directory, proxy, path)))
    [record] = of(directory, proxy, path)
    return record


def test_who_closes_is_gone_and_so_is_what_it_asked_for(tmp_path: Path) -> None:
    """In each way, before the answer and within it: the upstream's connection ends, and the record is there at once."""
    upstream = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        routes = [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}]
        log = file_log(tmp_path / f"{ports['http']}.log", FIELDS)
        filters = http_filters(routes, manager={"access_log": log})
        return {"clusters": [cluster("up", upstream.port)], "listeners": [listener("http", ports["http"], filters)]}

    with upstream.socket, both(tmp_path, ("http",), resources) as proxies:
        for proxy in proxies:
            for name, leave in LEAVES.items():
                for begun in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"):
                    path = f"/{name}-{len(begun)}"
                    with socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT) as client:
                        client.sendall(request(path))
                        with upstream.taken() as connection:
                            connection.sendall(begun)
                            seen = b""
                            while begun and not seen.endswith(b"abc"):
                                seen += client.recv(4096)
                            # Who has half an answer is cut off, and by which end of TCP is each data plane's own affair.
                            with contextlib.suppress(ConnectionResetError):
                                leave(client)
                            with contextlib.suppress(ConnectionResetError):
                                assert connection.recv(1) == b"", (proxy.kind, path)
                    assert recorded(tmp_path, proxy, path) == GONE | {"status": 200 if begun else 0}, proxy.kind
            # What comes together with its end is not answered either.
            with socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT) as client:
                client.sendall(request("/at-once"))
                half_close(client)
            assert recorded(tmp_path, proxy, "/at-once") == GONE | {"status": 0}, proxy.kind
            assert not of(tmp_path, proxy, "/never"), proxy.kind
            upstream.forget()
