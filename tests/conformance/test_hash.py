"""The same clusters, the same keys: stock Envoy and weft-proxy find the same endpoint for each, in one run."""

from __future__ import annotations

import http.client
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.both import Json, address, both, http_filters, listener, typed
from tests.conformance.proxies import LIMIT, Static

pytestmark = pytest.mark.conformance

KEYS = 200
ENDPOINTS = 7

USER = {"header": {"header_name": "x-user"}}


class Upstream(socketserver.ThreadingTCPServer):
    """Says its own port."""

    daemon_threads = True


class Saying(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        text = str(self.connection.getsockname()[1])
        while line := self.rfile.readline():
            if line == b"\r\n":
                self.wfile.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())


def endpoint(port: int, weight: int = 1, *, status: str = "HEALTHY", key: str = "") -> Json:
    found: Json = {
        "endpoint": {"address": address(port)},
        "load_balancing_weight": weight,
        "health_status": status,
    }
    if key:
        found["metadata"] = {"filter_metadata": {"envoy.lb": {"hash_key": key}}}
    return found


def locality(zone: str, endpoints: list[Json], *, weight: int = 1, priority: int = 0) -> Json:
    return {
        "locality": {"zone": zone},
        "lb_endpoints": endpoints,
        "load_balancing_weight": weight,
        "priority": priority,
    }


def clusters(ports: list[int]) -> dict[str, Json]:
    """By name, without the name; every way to divide the keys."""
    even = [locality("a", [endpoint(port) for port in ports])]
    uneven = [
        locality("a", [endpoint(port, weight) for port, weight in zip(ports, (1, 2, 3, 5, 8, 1, 1), strict=True)])
    ]
    sick = [locality("a", [endpoint(port, status="UNHEALTHY" if port in ports[1:3] else "HEALTHY") for port in ports])]
    dying = [
        locality("a", [endpoint(port, status="UNHEALTHY" if port in ports[1:4] else "HEALTHY") for port in ports[:4]]),
        locality("b", [endpoint(port) for port in ports[4:]], priority=1),
    ]
    panicking = [locality("a", [endpoint(port, status="UNHEALTHY") for port in ports[1:]] + [endpoint(ports[0])])]
    zones = [
        locality("b", [endpoint(port, 2) for port in ports[:2]], weight=3),
        locality("a", [endpoint(port) for port in ports[2:5]], weight=2),
        locality("c", [endpoint(port, status="UNHEALTHY") for port in ports[5:6]] + [endpoint(ports[6])], weight=1),
    ]
    keyed = [
        locality("a", [endpoint(port, key=f"key-{place}" if place > 2 else "") for place, port in enumerate(ports)])
    ]
    by_zone = {"locality_weighted_lb_config": {}}
    found: dict[str, Json] = {}
    for policy, sizes in {
        "RING_HASH": {
            "": {},
            "-small": {"ring_hash_lb_config": {"minimum_ring_size": 3, "maximum_ring_size": 31}},
            "-murmur": {"ring_hash_lb_config": {"hash_function": "MURMUR_HASH_2"}},
        },
        "MAGLEV": {"": {}, "-small": {"maglev_lb_config": {"table_size": 101}}},
    }.items():
        for size, config in sizes.items():
            for shape, localities, common in (
                ("even", even, {}),
                ("uneven", uneven, {}),
                ("sick", sick, {}),
                ("dying", dying, {}),
                ("panicking", panicking, {}),
                ("zones", zones, by_zone),
                ("keyed", keyed, {}),
            ):
                name = f"{policy.lower()}{size}-{shape}"
                found[name] = {
                    "lb_policy": policy,
                    "common_lb_config": common,
                    "load_assignment": {"cluster_name": name, "endpoints": localities},
                    **config,
                }
    return found


POLICIES: dict[str, list[Json]] = {
    "two": [USER, {"query_parameter": {"name": "q"}}],
    "terminal": [{**USER, "terminal": True}, {"query_parameter": {"name": "q"}}],
    "path": [{"header": {"header_name": ":path"}}],
    "host": [{"header": {"header_name": "host"}}],
    "cookie": [{"cookie": {"name": "user"}}],
    "source": [{"connection_properties": {"source_ip": True}}],
    "made": [
        {
            "cookie": {
                "name": "user",
                "ttl": "60s",
                "path": "/made",
                "attributes": [{"name": "SameSite", "value": "Strict"}, {"name": "Secure"}],
            }
        }
    ],
}
"""What a hash is taken of; on a Maglev table."""


def static_resources(upstreams: list[int], ports: dict[str, int]) -> Json:
    named = clusters(upstreams)
    routes = [
        {"match": {"path_separated_prefix": f"/{name}"}, "route": {"cluster": name, "hash_policy": [USER]}}
        for name in named
    ]
    routes += [
        {
            "match": {"path_separated_prefix": f"/{name}"},
            "route": {"cluster": "maglev-even", "hash_policy": policies},
        }
        for name, policies in POLICIES.items()
    ]
    tcp = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster="ring_hash-even")
    tcp["hash_policy"] = [{"source_ip": {}}]
    return {
        "listeners": [
            listener("http", ports["http"], http_filters(routes)),
            listener("tcp", ports["tcp"], [{"name": "tcp", "typed_config": tcp}]),
        ],
        "clusters": [
            {"name": name, "type": "STATIC", "connect_timeout": "5s", **content} for name, content in named.items()
        ],
    }


@pytest.fixture(scope="module")
def upstreams() -> Iterator[list[int]]:
    servers = [Upstream(("127.0.0.1", 0), Saying) for _ in range(ENDPOINTS)]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield [int(server.server_address[1]) for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def planes(upstreams: list[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Static, Static]]:
    directory: Path = tmp_path_factory.mktemp("hash")
    with both(directory, ("http", "tcp"), lambda ports: static_resources(upstreams, ports)) as running:
        yield running


class Client:
    """One connection."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT, source_address=(source, 0))

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        self.connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        return self.connection.getresponse()

    def chosen(self, path: str, **headers: str) -> int:
        """The port of the upstream that answers."""
        answer = self.get(path, **headers)
        text = answer.read()
        assert answer.status == 200, text
        return int(text)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


@pytest.mark.parametrize("name", clusters(list(range(1, ENDPOINTS + 1))))
def test_a_key_has_the_same_endpoint(planes: tuple[Static, Static], name: str) -> None:
    found = []
    for plane in planes:
        with Client(plane.ports["http"]) as client:
            found.append([client.chosen(f"/{name}", x_user=f"user-{key}") for key in range(KEYS)])
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "made"])
def test_the_same_is_hashed(planes: tuple[Static, Static], name: str) -> None:
    found = []
    for plane in planes:
        with Client(plane.ports["http"], source="127.0.0.9") as client:
            found.append(
                [
                    client.chosen(
                        f"/{name}/{key}?p=0&q={key % 7}&q=9",
                        x_user=f"user-{key % 11}",
                        host=f"Shop-{key}:80",
                        cookie=f'a=b; user="{key}"; user=2',
                    )
                    for key in range(KEYS)
                ]
            )
    assert found[0] == found[1]
    assert (len(set(found[0])) == 1) == (name == "source")


def test_several_values_of_a_header_are_hashed_in_no_order(planes: tuple[Static, Static]) -> None:
    found = []
    for plane in planes:
        chosen = []
        for key in range(40):
            values = [f"{key * 7919 % 31}", "b", f"{key}"]
            pair = []
            for order in (values, values[::-1]):
                lines = "".join(f"x-user: {value}\r\n" for value in order)
                with socket.create_connection(("127.0.0.1", plane.ports["http"]), timeout=LIMIT) as connection:
                    head = f"GET /maglev-even HTTP/1.1\r\nhost: up\r\n{lines}connection: close\r\n\r\n"
                    connection.sendall(head.encode())
                    answer = b""
                    while part := connection.recv(4096):
                        answer += part
                pair.append(int(answer.rpartition(b"\r\n")[2]))
            assert pair[0] == pair[1]
            chosen.append(pair[0])
        found.append(chosen)
    assert found[0] == found[1]


def test_a_cookie_is_made_that_leads_to_the_same_endpoint_at_both(planes: tuple[Static, Static]) -> None:
    shapes = []
    for plane in planes:
        for _ in range(5):
            with Client(plane.ports["http"]) as client:
                answer = client.get("/made")
                first = int(answer.read())
                cookie = answer.getheader("set-cookie") or ""
                again = client.get("/made")
                assert (int(again.read()), again.getheader("set-cookie")) == (first, cookie)
            shapes.append(re.sub(r"[0-9a-f]{16}", "VALUE", cookie))
            for other in planes:
                with Client(other.ports["http"]) as client:
                    answer = client.get("/made", cookie=cookie.partition(";")[0])
                    assert (int(answer.read()), answer.getheader("set-cookie")) == (first, None)
    assert set(shapes) == {'user="VALUE"; Max-Age=60; Path=/made; SameSite=Strict; Secure; HttpOnly'}


def test_connections_from_one_address_have_the_same_endpoint(planes: tuple[Static, Static]) -> None:
    found = []
    for plane in planes:
        chosen = []
        for last in range(1, 60):
            with Client(plane.ports["tcp"], source=f"127.0.1.{last}") as client:
                chosen.append(client.chosen("/"))
        found.append(chosen)
    assert found[0] == found[1]
    assert len(set(found[0])) > 1
