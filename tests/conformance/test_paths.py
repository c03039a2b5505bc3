"""Paths as they are matched and passed on: the same bytes through weft-proxy and through Envoy, under every way of normalising them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.both import address, both, both_before, listener, typed
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.telling import Told, telling
from tests.conformance.upstream import Accepting, read_whole
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

MANAGERS: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "dots": {"normalize_path": True},
    "slashes": {"merge_slashes": True},
    "both": {"normalize_path": True, "merge_slashes": True},
    "refused": {"normalize_path": True, "path_with_escaped_slashes_action": "REJECT_REQUEST"},
    "redirected": {"normalize_path": True, "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT"},
    "unescaped": {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    },
}

PATHS = [
    "/a/b?x=/../y",
    "/a/../b",
    "/a/./b/",
    "/a/b/..",
    "/a/b/.",
    "/..",
    "/a/../../b",
    "/a//../b",
    "//a//b//",
    "/%61dmin",
    "/a/%2e%2e/b",
    "/a/%2E./b",
    "/%2e%2e/x",
    "/a%2fb",
    "/a%2F..%2fb",
    "/a%5c..%5cb",
    "/a\\b",
    "/a\\..\\b",
    # An escape in an escape: what is decoded once must not be another escape, which the next server would decode.
    "/%%32e",
    "/a/%%32e%%32e/b",
    "/a/%2%65%2%65/b",
    "/a/%%32%65%%32%65/b",
    "/a%%32fb",
    "/a%%35cb",
    "/a%2%66b",
    "/%%%32%65",
    "/%%%32e",
    "/%2%%36%35",
    "/%%30%30",
    "/%%3%32e",
    "/%2%",
    "/%%",
    "/%zz%4",
    "/%4%31",
    "/%2%35%32e",
    "/%252e%252e/x",
    "/a%25/b",
    "/a?%%32e%2f//../",
    # Parameters of a segment (RFC 3986 3.3), which servers that know them drop before they look at dots.
    "/..;/x",
    "/a/.;x/b",
    "/a/..;x=1/b",
    "/a/..;",
    "/a/b/..;x?..;/",
    "/a/b/..;..;/c",
    "/a//..;/b",
    "/a/b;x=../c",
    "/a/...;/b",
    "/a/..%3b/b",
    "/a;/../b",
    # The end of a path, to servers in C.
    "/a%00b",
    "/a?%00",
    # Beyond ASCII is no URI.
    "/\N{LATIN SMALL LETTER A WITH DIAERESIS}",
    "/?\N{LATIN SMALL LETTER A WITH DIAERESIS}",
]


class Echo(Accepting):
    """Answers each request with its target."""

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as requests:
            while line := requests.readline():
                while requests.readline().strip():
                    pass
                target = line.split(b" ")[1]
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(target), target))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Static, Static]]:
    """Envoy and weft-proxy in front of a server that answers with the target that it was asked for."""
    with Echo() as server:
        endpoint = {"endpoint": {"address": address(server.port)}}
        assignment = {"cluster_name": "echo", "endpoints": [{"lb_endpoints": [endpoint]}]}
        upstream = {"name": "echo", "type": "STATIC", "load_assignment": assignment}

        def resources(ports: dict[str, int]) -> dict[str, Any]:
            return {
                "listeners": [listener(name, port, filters(MANAGERS[name])) for name, port in ports.items()],
                "clusters": [upstream],
            }

        with both(tmp_path_factory.mktemp("paths"), tuple(MANAGERS), resources) as pair:
            yield pair


def filters(manager: dict[str, Any]) -> list[dict[str, Any]]:
    """The filters of a chain that sends every request on."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": "echo"}}
    content = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        route_config={"name": "routes", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[{"name": "router", "typed_config": typed("filters.http.router.v3.Router")}],
        **manager,
    )
    return [{"name": "http", "typed_config": content}]


def ask(proxy: Static, name: str, path: str, method: str = "GET") -> tuple[int, str]:
    """The status, and the target that went on or that the client is told to come back with."""
    with socket.create_connection(("127.0.0.1", proxy.ports[name]), timeout=LIMIT) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    told = [line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"location:")]
    return status, (body if status == 200 else b"".join(told)).decode()


@pytest.mark.parametrize("name", MANAGERS)
def test_a_path_goes_on_as_envoy_passes_it_on(pair: tuple[Static, Static], name: str) -> None:
    """Every path of the table, with this manager."""
    envoy, weft = pair
    assert {path: ask(weft, name, path) for path in PATHS} == {path: ask(envoy, name, path) for path in PATHS}


def test_parameters_hide_no_dots_that_are_escaped(pair: tuple[Static, Static]) -> None:
    """Envoy looks for them before it decodes dots, and leaves what the next server may take for a way up."""
    envoy, weft = pair
    assert ask(envoy, "dots", "/a/%2e%2e;x/b") == (200, "/a/..;x/b")
    assert ask(weft, "dots", "/a/%2e%2e;x/b") == (200, "/b")


def test_characters_that_are_none_of_a_path_go_on_as_they_came(pair: tuple[Static, Static]) -> None:
    """A program gets what its caller sent; Envoy escapes them."""
    envoy, weft = pair
    assert ask(envoy, "dots", "/a|b") == (200, "/a%7Cb")
    assert ask(weft, "dots", "/a|b") == (200, "/a|b")


ABSOLUTE: dict[tuple[str, str], dict[str, str | None]] = {
    # RFC 9112 3.2.4: what asks about the server is `*` for the last hop. To Envoy it is a request for `/`.
    ("OPTIONS", "http://echo"): {WEFT_PROXY: "*", ENVOY: "/"},
    ("OPTIONS", "http://echo/"): dict.fromkeys((WEFT_PROXY, ENVOY), "/"),
    ("OPTIONS", "http://echo/a?x"): dict.fromkeys((WEFT_PROXY, ENVOY), "/a?x"),
    # RFC 9112 3.2.1: where the path is empty it is `/`. To Envoy it is empty, and no route is for that.
    ("OPTIONS", "http://echo?x"): {WEFT_PROXY: "/?x", ENVOY: None},
    ("GET", "http://echo?x"): {WEFT_PROXY: "/?x", ENVOY: None},
    ("GET", "http://echo"): dict.fromkeys((WEFT_PROXY, ENVOY), "/"),
    ("GET", "http://echo/a?x"): dict.fromkeys((WEFT_PROXY, ENVOY), "/a?x"),
    # No route for paths is for it.
    ("OPTIONS", "*"): {WEFT_PROXY: None, ENVOY: None},
}
"""By method and target: what goes on of it. `None`: it has no route."""


@pytest.mark.parametrize("name", ["as-it-is", "both"])
def test_a_target_in_absolute_form_goes_on_as_its_path(pair: tuple[Static, Static], name: str) -> None:
    """OPTIONS of a server is one about the server, whatever form its target has."""
    for proxy in pair:
        for (method, target), expected in ABSOLUTE.items():
            path = expected[proxy.kind]
            wanted = (404, "") if path is None else (200, path)
            assert ask(proxy, name, target, method) == wanted, (proxy.kind, method, target)


AUTHORITIES = {
    "http://other:81/": ("/", "other:81"),
    "http://other/a?x": ("/a?x", "other"),
}
"""By target: the path and the host that go on of it."""


def test_the_authority_of_a_target_in_absolute_form_replaces_host(tmp_path: Path) -> None:
    """RFC 9112 3.2.2: who is behind must not see another than the one that was routed by."""
    with telling() as upstream, both_before(upstream.port, tmp_path) as proxies:
        for proxy in proxies:
            for target, expected in AUTHORITIES.items():
                with socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT) as client:
                    client.sendall(f"GET {target} HTTP/1.1\r\nhost: echo\r\n\r\n".encode())
                    _, body = read_whole(client)
                told = Told.of(body.decode())
                assert (told.path, told.get("host")) == expected, (proxy.kind, target)
