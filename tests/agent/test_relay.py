"""The relay beside a real edge: what it carries for a proxy, for whom, and what becomes of the ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from weft.agent import edge, proxy_protocol
from weft.agent.proxy_protocol import Endpoint
from weft.agent.relay import Relay

CALLER = Endpoint("10.244.0.7", 40000)


def run(path: Path, body: Callable[[Relay, Path], Awaitable[None]]) -> None:
    """Run *body* with the relay of the workload `cart` and an edge on a socket in *path*."""

    async def both() -> None:
        where = path / "edge.sock"
        serving = asyncio.create_task(edge.Edge(nameservers=[]).serve(where))
        while not where.exists():
            await asyncio.sleep(0.001)
        relay = Relay(where, "cart")
        try:
            async with asyncio.timeout(30):
                await relay.open_outside(path / "outside.sock")
                await body(relay, where)
        finally:
            await relay.close()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(both())


@contextlib.asynccontextmanager
async def server(answer: Callable[[bytes], bytes], host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Answer everything that a client sends until its end with one text; yields the port."""
    conversations: set[asyncio.Task[None] | None] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.add(asyncio.current_task())
        writer.write(answer(await reader.read()))
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(converse, host, 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await asyncio.gather(*filter(None, conversations), return_exceptions=True)


async def call(outside: Path, destination: Endpoint, content: bytes) -> bytes:
    """Do as a proxy: send *content* to *destination* by the relay, end, and return what comes until the end."""
    reader, writer = await asyncio.open_unix_connection(str(outside))
    try:
        writer.write(proxy_protocol.encode(CALLER, destination) + content)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


def test_bytes_go_where_the_header_says_and_both_ends_are_told_of_the_end(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000  # more than all buffers on the way hold

    async def body(_: Relay, where: Path) -> None:
        async with server(lambda asked: asked[::-1]) as port:
            with await edge.grant(where, "cart", [port]):
                assert await call(tmp_path / "outside.sock", Endpoint("127.0.0.1", port), content) == content[::-1]

    run(tmp_path, body)


def test_the_reason_why_no_connection_was_made_is_told_and_not_each_time(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    async def body(relay: Relay, _: Path) -> None:
        relay._refused = lambda destination, reason: told.append((destination, reason))
        for _ in range(3):
            with contextlib.suppress(ConnectionError):
                await call(tmp_path / "outside.sock", Endpoint("127.0.0.1", 9), b"x")

    run(tmp_path, body)
    assert told == [
        ("127.0.0.1:9", "127.0.0.1:9 is on the host's loopback and port 9 is not among the host_ports of cart")
    ]


def test_a_server_may_speak_first(tmp_path: Path) -> None:
    async def body(_: Relay, where: Path) -> None:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 ready\r\n")
            await writer.drain()
            writer.close()

        listening = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        with await edge.grant(where, "cart", [port]):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "outside.sock"))
            writer.write(proxy_protocol.encode(CALLER, Endpoint("127.0.0.1", port)))
            assert await reader.readline() == b"220 ready\r\n"
            writer.close()
        listening.close()

    run(tmp_path, body)


def test_both_of_a_programs_loopbacks_mean_the_hosts_usual_one(tmp_path: Path) -> None:
    async def body(_: Relay, where: Path) -> None:
        async with server(lambda asked: b"database says " + asked) as port:
            with await edge.grant(where, "cart", [port]):
                said = await call(tmp_path / "outside.sock", Endpoint("::1", port), b"hello")
        assert said == b"database says hello"

    run(tmp_path, body)


def test_a_port_of_the_host_that_is_not_granted_to_this_workload_is_not_reached(tmp_path: Path) -> None:
    async def body(_: Relay, where: Path) -> None:
        async with server(lambda _: b"secret") as port:
            outside = tmp_path / "outside.sock"
            with pytest.raises(ConnectionResetError):
                await call(outside, Endpoint("127.0.0.1", port), b"")
            with await edge.grant(where, "shop", [port]):  # somebody else's
                for spelling in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"):
                    with pytest.raises(ConnectionResetError):
                        await call(outside, Endpoint(spelling, port), b"x")

    run(tmp_path, body)


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", proxy_protocol.SIGNATURE + b"\x21", b""])
def test_what_has_no_header_is_closed(tmp_path: Path, content: bytes) -> None:
    async def body(_relay: Relay, _where: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "outside.sock"))
        writer.write(content)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

    run(tmp_path, body)


def test_a_reset_ends_the_other_side_too(tmp_path: Path) -> None:
    async def body(_: Relay, where: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            with await edge.grant(where, "cart", [port]):
                reader, writer = await asyncio.open_unix_connection(str(tmp_path / "outside.sock"))
                writer.write(proxy_protocol.encode(CALLER, Endpoint("127.0.0.1", port)) + b"hello")
                accepted, _ = await asyncio.to_thread(listening.accept)
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                accepted.close()
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()

    run(tmp_path, body)


class Proxy:
    """Takes connections on a Unix socket: keeps who was called by whom, and answers a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[tuple[Endpoint, Endpoint]] = []
        self._conversations: set[asyncio.Task[None] | None] = set()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._conversations.add(asyncio.current_task())
        fixed = await reader.readexactly(proxy_protocol.FIXED_BYTES)
        rest = await reader.readexactly(proxy_protocol.rest_bytes(fixed))
        self.seen.append(proxy_protocol.decode(fixed + rest))
        writer.write(b"answer to " + await reader.readline())
        await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[None]:
        """Take connections; afterwards the socket's file is left behind, as Envoy leaves it."""
        server = await asyncio.start_unix_server(self._converse, self.path)
        try:
            yield
        finally:
            server.close()
            await asyncio.gather(*filter(None, self._conversations), return_exceptions=True)


async def connected(place: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as somebody listens."""
    while True:
        try:
            return await asyncio.open_connection(place.address, place.port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)


async def until_refused(place: Endpoint) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(place.address, place.port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it was given back while this one was on its way
        writer.close()
        await asyncio.sleep(0.01)


def free_place() -> Endpoint:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return Endpoint(*free.getsockname()[:2])


def test_a_published_port_brings_the_clients_address_and_waits_for_the_proxy(tmp_path: Path) -> None:
    proxy, place = Proxy(tmp_path / "publish-80.sock"), free_place()

    async def body(relay: Relay, _: Path) -> None:
        ready = asyncio.Event()

        async def serving() -> None:
            await ready.wait()

        relay.publish(place, proxy.path, serving, pytest.fail)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(place.address, place.port)  # no listener for it yet
        async with proxy.standing():
            reader, writer = await connected(place)
            client = Endpoint(*writer.get_extra_info("sockname")[:2])
            writer.write(b"question\n")
            await asyncio.sleep(0)
            assert proxy.seen == []
            ready.set()
            assert await reader.readline() == b"answer to question\n"
            assert proxy.seen == [(client, place)]
            writer.close()
            await relay.close()
        await until_refused(place)

    run(tmp_path, body)


def test_a_published_port_is_given_back_while_the_proxy_takes_nothing_there(tmp_path: Path) -> None:
    proxy, place = Proxy(tmp_path / "publish-80.sock"), free_place()

    async def body(relay: Relay, _: Path) -> None:
        async def serving() -> None:
            return

        relay.publish(place, proxy.path, serving, pytest.fail)
        for _ in range(2):
            async with proxy.standing():
                reader, writer = await connected(place)
                writer.write(b"question\n")
                assert await reader.readline() == b"answer to question\n"
                writer.close()
            await until_refused(place)

    run(tmp_path, body)


def test_whoever_calls_when_the_proxy_has_just_died_waits_for_the_next(tmp_path: Path) -> None:
    """Its socket refuses before its agent knows; the published port is not given back for that."""
    proxy, place = Proxy(tmp_path / "publish-80.sock"), free_place()

    async def body(relay: Relay, _: Path) -> None:
        ready, asked = asyncio.Event(), asyncio.Event()
        ready.set()

        async def serving() -> None:
            await ready.wait()
            asked.set()

        async with proxy.standing():
            relay.publish(place, proxy.path, serving, pytest.fail)
            reader, writer = await connected(place)
            writer.write(b"question\n")
            assert await reader.readline() == b"answer to question\n"
            writer.close()
        asked.clear()
        reader, writer = await asyncio.open_connection(place.address, place.port)
        writer.write(b"another\n")
        await asked.wait()
        ready.clear()  # now it is known
        proxy.path.unlink()
        async with proxy.standing():
            _, waiting = await asyncio.open_connection(place.address, place.port)
            ready.set()
            assert await reader.readline() == b"answer to another\n"
            for each in (writer, waiting):
                each.close()

    run(tmp_path, body)


def test_a_published_port_that_somebody_has_is_told_with_the_reason(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "publish-80.sock")

    async def body(relay: Relay, _: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            async def serving() -> None:
                return

            async with proxy.standing():
                relay.publish(Endpoint(*taken.getsockname()[:2]), proxy.path, serving, told.set_result)
                assert f"(process {os.getpid()}) has it" in await told

    run(tmp_path, body)
