"""The host's ports on which gateways are published."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.agent import edge, published
from weft.errors import UsageError
from weft.model import Published


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_of_0_becomes_the_gateways_own_number_or_any_other(taken: socket.socket) -> None:
    number = taken.getsockname()[1]
    (got,), bound = published.reserve([Published(number, "127.0.0.1", 0)])
    assert got.host_port not in (0, number)
    bound[published.target(got)].close()
    taken.close()
    (got,), bound = published.reserve([Published(number, "127.0.0.1", 0)])
    assert got == Published(number, "127.0.0.1", number)
    bound[f"127.0.0.1:{number}"].close()


def test_a_port_that_somebody_has_is_named_and_none_is_kept(taken: socket.socket) -> None:
    number = taken.getsockname()[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    wanted = [Published(80, "127.0.0.1", free), Published(81, "127.0.0.1", number)]
    with pytest.raises(UsageError, match=rf"Port {number} of 127\.0\.0\.1 cannot be published: .*process.* has it"):
        published.reserve(wanted)
    socket.create_server(("127.0.0.1", free)).close()


def test_nobody_else_gets_a_reserved_port_and_callers_are_refused() -> None:
    (got,), bound = published.reserve([Published(80, "127.0.0.1", 0)])
    with bound[published.target(got)]:
        assert refused(got.host_port)
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", got.host_port))


def test_a_port_of_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(UsageError, match="this host has no such address"):
        published.reserve([Published(8080, "192.0.2.1", 8080)])


def test_a_port_with_lingering_connections_can_be_had() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        number = server.getsockname()[1]
        accepted.close()
        assert client.recv(1) == b""
    published.bind("127.0.0.1", number).close()


def test_the_edge_listens_on_a_reserved_port_while_a_gateway_wants_it(tmp_path: Path) -> None:
    (got,), bound = published.reserve([Published(80, "127.0.0.1", 0)])
    target = published.target(got)
    path = tmp_path / "edge.sock"

    async def talk() -> None:
        serving = asyncio.create_task(edge.Edge(reserved=bound).serve(path))
        while not path.exists():
            await asyncio.sleep(0.001)
        for _ in range(2):
            assert refused(got.host_port)
            _, listener = await edge.ask(path, {"listen": target})
            assert listener is not None
            with listener:
                assert not refused(got.host_port)
            assert not refused(got.host_port)  # a proxy that dies leaves its callers waiting for the next one
            await edge.ask(path, {"release": target})
        assert refused(got.host_port)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    asyncio.run(talk())


def test_a_port_listens_again_whatever_lingers_there_and_is_nobodys_meanwhile() -> None:
    """A connection that was closed at this end lingers for a minute (TIME_WAIT), for which a gateway was away."""
    (got,), bound = published.reserve([Published(80, "127.0.0.1", 0)])
    place = ("127.0.0.1", got.host_port)

    def nobody_else_can_have_it() -> None:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(place)

    with bound[published.target(got)] as reserved:
        for _ in range(3):
            nobody_else_can_have_it()
            published.listen(reserved, 1)
            nobody_else_can_have_it()
            with socket.create_connection(place) as client:
                accepted, _ = reserved.accept()
                accepted.close()
                assert client.recv(1) == b""
            published.rest(reserved)
            assert refused(got.host_port)
    with published.bind(*place) as again:  # as the next mesh does
        nobody_else_can_have_it()
        published.listen(again, 1)


def test_a_port_that_the_kernel_chose_stays_when_it_stops_listening_and_begins_again(taken: socket.socket) -> None:
    (got,), bound = published.reserve([Published(taken.getsockname()[1], "127.0.0.1", 0)])
    with bound[published.target(got)] as reserved:
        reserved.listen()
        reserved.shutdown(socket.SHUT_RD)
        assert refused(got.host_port)
        reserved.listen()
        assert reserved.getsockname() == ("127.0.0.1", got.host_port)
        assert not refused(got.host_port)
