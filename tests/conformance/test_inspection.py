"""What a ClientHello asks for, also of clients for whom nobody here would end TLS: both data planes pass it on to the same place, in one run."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from typing import TypeAlias

import pytest

from tests.conformance.both import Json, both, cluster, listener, typed
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.upstream import Upstream, read_exactly, several

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

CHAINS: dict[str, Json] = {
    "name": {"server_names": ["one.example"]},
    "protocol": {"transport_protocol": "tls", "application_protocols": ["istio"]},
    "tls": {"transport_protocol": "tls"},
    "rest": {},
}
"""By the names of their upstreams."""

TCP_PROXY = "filters.network.tcp_proxy.v3.TcpProxy"

TLS_1_0, TLS_1_1, TLS_1_2 = b"\3\1", b"\3\2", b"\3\3"


def vector(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">H", kind) + vector(vector(content))


def hello(version: bytes, server: bytes | None, *alpn: bytes, most: int = 1 << 14) -> bytes:
    """A ClientHello without `signature_algorithms`, which came with TLS 1.2, in records of *most* bytes."""
    extensions = b""
    if server is not None:
        extensions += extension(0, b"\0" + vector(server))
    if alpn:
        extensions += extension(16, b"".join(bytes([len(name)]) + name for name in alpn))
    suites = bytes.fromhex("c013 c009 002f")
    body = version + b"\7" * 32 + b"\0" + vector(suites) + b"\1\0" + (vector(extensions) if extensions else b"")
    message = b"\1" + struct.pack(">I", len(body))[1:] + body
    return b"".join(b"\x16\3\1" + vector(message[start : start + most]) for start in range(0, len(message), most))


DISABLED: dict[str, Json] = {
    "one": {"destination_port_range": {"start": 3000, "end": 4000}},
    "several": {
        "or_match": {
            "rules": [
                {"destination_port_range": {"start": 3306, "end": 3307}},
                {"destination_port_range": {"start": 5000, "end": 6000}},
            ]
        }
    },
    "any": {"any_match": True},
}
"""For which connections the inspector of a listener of that name is disabled."""

INSPECTED: dict[str, dict[int, bool]] = {
    "one": {2999: True, 3000: False, 3999: False, 4000: True},
    "several": {3305: True, 3306: False, 3307: True, 5000: False, 5999: False, 6000: True},
    "any": {1: False, 65535: False},
}
"""By such a listener: ports that a connection is for, and whether it is looked at. The end of a range is not in it."""

Planes: TypeAlias = tuple[tuple[Static, Static], dict[str, Upstream]]

CASES: dict[str, tuple[str, bytes]] = {
    "a name in TLS 1.0": ("name", hello(TLS_1_0, b"one.example")),
    "a name in TLS 1.1": ("name", hello(TLS_1_1, b"one.example", b"istio")),
    "a name in TLS 1.2": ("name", hello(TLS_1_2, b"one.example")),
    "a name in capitals": ("name", hello(TLS_1_1, b"ONE.example")),
    "a name in several records": ("name", hello(TLS_1_1, b"one.example", most=20)),
    "a protocol": ("protocol", hello(TLS_1_1, b"two.example", b"x", b"istio")),
    "another name": ("tls", hello(TLS_1_1, b"two.example")),
    "an address": ("tls", hello(TLS_1_2, b"192.0.2.1")),
    "no name": ("tls", hello(TLS_1_1, None)),
    "no TLS": ("rest", b"\x16\2\0\0\1\1"),
}


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    with several(CHAINS) as upstreams:

        def resources(ports: dict[str, int]) -> Json:
            own = typed("filters.listener.tls_inspector.v3.TlsInspector")
            # By this name Envoy knows that there is one, and adds none of its own.
            inspector = {"name": "envoy.filters.listener.tls_inspector", "typed_config": own}
            proxy_protocol = typed("filters.listener.proxy_protocol.v3.ProxyProtocol")
            told = {"name": "proxy_protocol", "typed_config": proxy_protocol}
            listeners = [listener("in", ports["in"], [], listener_filters=[inspector])]
            for name, predicate in DISABLED.items():
                filters = [told, inspector | {"filter_disabled": predicate}]
                listeners.append(listener(name, ports[name], [], listener_filters=filters))
            for it in listeners:
                it["filter_chains"] = [
                    {
                        "name": name,
                        "filter_chain_match": match,
                        "filters": [{"name": "tcp", "typed_config": typed(TCP_PROXY, stat_prefix=name, cluster=name)}],
                    }
                    for name, match in CHAINS.items()
                ]
            clusters = [cluster(name, upstream.port) for name, upstream in upstreams.items()]
            return {"clusters": clusters, "listeners": listeners}

        with both(tmp_path_factory.mktemp("inspection"), ("in", *DISABLED), resources) as proxies:
            yield proxies, upstreams


def asked(upstreams: dict[str, Upstream]) -> str:
    """Which one a client has been passed on to."""
    ready, _, _ = select.select([upstream.socket for upstream in upstreams.values()], [], [], LIMIT)
    [found] = [name for name, upstream in upstreams.items() if upstream.socket in ready]
    return found


@pytest.mark.parametrize("name", CASES)
def test_both_pass_a_client_on_to_where_it_asks_to_go(planes: Planes, name: str) -> None:
    """All that it has said, as it was, to one of the upstreams."""
    proxies, upstreams = planes
    expected, data = CASES[name]
    for upstream in upstreams.values():
        upstream.forget()
    for proxy in proxies:
        with socket.create_connection(("127.0.0.1", proxy.ports["in"]), LIMIT) as client:
            client.sendall(data)
            assert asked(upstreams) == expected, proxy.kind
            with upstreams[expected].accept() as server:
                assert read_exactly(server, len(data)) == data


@pytest.mark.parametrize("name", DISABLED)
def test_where_an_inspector_is_disabled_nobody_is_looked_at(planes: Planes, name: str) -> None:
    """By the port that a connection was for. There is no TLS for whom nobody looks, and nobody waits for what it says first."""
    proxies, upstreams = planes
    data = hello(TLS_1_2, b"one.example")
    for upstream in upstreams.values():
        upstream.forget()
    for proxy in proxies:
        for port, inspected in INSPECTED[name].items():
            with socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT) as client:
                client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 %d\r\n" % port)
                if inspected:
                    client.sendall(data)
                found = asked(upstreams)
                assert found == ("name" if inspected else "rest"), (proxy.kind, port)
                with upstreams[found].accept() as server:
                    if not inspected:
                        server.sendall(b"220 hello\r\n")
                        assert read_exactly(client, 11) == b"220 hello\r\n", (proxy.kind, port)
                        client.sendall(data)
                    assert read_exactly(server, len(data)) == data, (proxy.kind, port)
