"""The agent's stream against a scripted control plane: a real Unix socket that speaks the lines of the contract."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from weft.agent.stream import AgentStream, Refused, StreamLost

Line = dict[str, Any]
REGISTERED: Line = {
    "type": "registered",
    "workload": "cart-v2-0",
    "address": "10.244.0.7",
    "address6": "fd77:ef7::7",
    "identity": "spiffe://cluster.local/ns/default/sa/cart",
    "node": {"id": "sidecar~10.244.0.7~cart-v2-0.default~default.svc.cluster.local"},
    "mesh_cidr": "10.244.0.0/16",
}


class Peer:
    """One connection as the control plane sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def expect(self, kind: str) -> Line:
        message: Line = json.loads(await self._reader.readline())
        assert message["type"] == kind
        return message

    def say(self, message: Line) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def ended(self) -> bool:
        return await self._reader.read() == b""


class ControlPlane:
    """Takes connections on a socket and hands each to the test; `stop` closes everything, as a crash does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._connected, self._path)

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def peer(self) -> Peer:
        return await self._peers.get()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._peers.put_nowait(Peer(reader, writer))


@asynccontextmanager
async def joined(path: Path, **callbacks: Any) -> AsyncIterator[tuple[AgentStream, ControlPlane, Peer]]:
    control = ControlPlane(path)
    await control.start()
    stream = AgentStream(path, {"service": "cart", "version": "v2"}, **callbacks)
    registering = asyncio.create_task(stream.register(patience=5))
    peer = await control.peer()
    assert (await peer.expect("register"))["workload"]["service"] == "cart"
    peer.say(REGISTERED)
    assert (await registering).workload == "cart-v2-0"
    try:
        yield stream, control, peer
    finally:
        await stream.close()
        await control.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def test_registering_waits_for_a_control_plane_that_is_still_starting(tmp_path: Path) -> None:
    async def test() -> None:
        control = ControlPlane(tmp_path / "agents.sock")
        stream = AgentStream(tmp_path / "agents.sock", {"service": "cart"})
        registering = asyncio.create_task(stream.register(patience=10))
        await asyncio.sleep(0)
        await control.start()
        peer = await control.peer()
        await peer.expect("register")
        peer.say(REGISTERED)
        answer = await registering
        assert (answer.address, answer.node) == ("10.244.0.7", REGISTERED["node"])
        await stream.close()
        await control.stop()

    run(test)


def test_registering_gives_up_when_nobody_comes(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(StreamLost, match=r"agents\.sock"):
            await AgentStream(tmp_path / "agents.sock", {}).register(patience=0.1)

    run(test)


def test_a_refusal_is_told_in_the_control_planes_words(tmp_path: Path) -> None:
    async def test() -> None:
        control = ControlPlane(tmp_path / "agents.sock")
        await control.start()
        registering = asyncio.create_task(AgentStream(tmp_path / "agents.sock", {}).register(patience=5))
        peer = await control.peer()
        peer.say({"type": "refused", "message": "A workload named 'cart' is running already."})
        with pytest.raises(Refused, match="running already"):
            await registering
        await control.stop()

    run(test)


def test_a_name_asked_for_in_vain_is_told_and_lost_while_nobody_listens(tmp_path: Path) -> None:
    async def test() -> None:
        async with joined(tmp_path / "agents.sock") as (stream, control, peer):
            stream.unknown_host("reviws", "NXDOMAIN")
            assert (await peer.expect("unknown_host"))["name"] == "reviws"
            states: asyncio.Queue[bool] = asyncio.Queue()
            stream.on_connected = states.put_nowait
            await control.stop()
            assert await states.get() is False
            stream.unknown_host("ratngs", "NXDOMAIN")
            await control.start()
            again = await control.peer()
            await again.expect("register")
            again.say(REGISTERED)
            assert await states.get() is True
            stream.unknown_host("detils", "SERVFAIL")
            told = await again.expect("unknown_host")
            assert (told["name"], told["answer"]) == ("detils", "SERVFAIL")

    run(test)


def test_certificates_answer_the_requests_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        async with joined(tmp_path / "agents.sock") as (stream, _, peer):
            first, second = asyncio.create_task(stream.sign("one")), asyncio.create_task(stream.sign("two"))
            for csr in ("one", "two"):
                assert (await peer.expect("sign"))["csr"] == csr
                peer.say({"type": "certificate", "chain": csr, "bundle": "root", "not_after": "2026-01-31T12:00:00Z"})
            assert [(await first).chain, (await second).chain] == ["one", "two"]

    run(test)


def test_the_table_of_names_arrives_whole_and_again(tmp_path: Path) -> None:
    async def test() -> None:
        tables: asyncio.Queue[dict[str, list[str]]] = asyncio.Queue()
        async with joined(tmp_path / "agents.sock", on_names=tables.put_nowait) as (_, _, peer):
            for number, table in enumerate(({"a": ["240.240.0.1"]}, {"a": ["240.240.0.1"], "b": ["240.240.0.2"]}), 1):
                peer.say({"type": "names", "number": number, "names": table})
                assert await tables.get() == table
                assert (await peer.expect("names_taken"))["number"] == number

    run(test)


def test_after_a_restart_of_the_control_plane_the_agent_is_back_under_its_name_with_all_that_matters(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        states: asyncio.Queue[bool] = asyncio.Queue()
        async with joined(tmp_path / "agents.sock") as (stream, control, _):
            stream.on_connected = states.put_nowait
            stream.proxy_ready(True)
            stream.listening(8080, "127.0.0.1")
            stream.listening(8080, None)
            stream.program(pid=7, state="running", restarts=0)
            assert stream.notice("three datagrams", "udp-refused", count=3)
            await control.stop()
            assert await states.get() is False
            with pytest.raises(StreamLost):
                await stream.sign("csr")
            assert stream.notice("while you were away", "test")
            assert not stream.notice("three datagrams", "udp-refused", count=5)
            stream.listening(8080, "::1")
            await control.start()
            peer = await control.peer()
            assert (await peer.expect("register"))["workload"]["name"] == "cart-v2-0"
            peer.say(REGISTERED)
            assert (await peer.expect("proxy_ready"))["ready"] is True
            assert (await peer.expect("listening"))["address"] == "::1"
            assert (await peer.expect("program"))["pid"] == 7
            told = [await peer.expect("notice") for _ in range(2)]
            assert [(item["text"], item["count"], item["known"]) for item in told] == [
                ("while you were away", 1, False),
                ("three datagrams", 5, True),
            ]
            assert await states.get() is True

    run(test)


def test_a_request_that_was_under_way_when_the_control_plane_died_fails_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with joined(tmp_path / "agents.sock") as (stream, control, peer):
            signing = asyncio.create_task(stream.sign("csr"))
            await peer.expect("sign")
            await control.stop()
            with pytest.raises(StreamLost):
                await signing

    run(test)


def test_leaving_waits_until_the_endpoints_are_withdrawn(tmp_path: Path) -> None:
    async def test() -> None:
        async with joined(tmp_path / "agents.sock") as (stream, _, peer):
            leaving = asyncio.create_task(stream.leave(patience=10))
            await peer.expect("leave")
            assert not leaving.done()
            peer.say({"type": "left"})
            await leaving

    run(test)


def test_closing_ends_the_lease(tmp_path: Path) -> None:
    async def test() -> None:
        async with joined(tmp_path / "agents.sock") as (stream, _, peer):
            await stream.close()
            assert await peer.ended()

    run(test)


def test_what_is_over_is_taken_back_also_from_a_control_plane_that_was_away(tmp_path: Path) -> None:
    async def test() -> None:
        states: asyncio.Queue[bool] = asyncio.Queue()
        async with joined(tmp_path / "agents.sock") as (stream, control, peer):
            stream.on_connected = states.put_nowait
            assert not stream.over("certificate"), "there is nothing to take back"
            stream.notice("it expires in 9 hours", "certificate")
            stream.notice("it expires in 4 hours", "certificate")
            stream.notice("three datagrams", "udp-refused")
            for _ in range(3):
                await peer.expect("notice")
            assert stream.over("certificate")
            assert (await peer.expect("over"))["code"] == "certificate"
            stream.notice("it expires in 9 hours", "certificate")
            assert (await peer.expect("notice"))["count"] == 1
            await control.stop()
            assert await states.get() is False
            assert stream.over("certificate")
            stream.notice("it expires in 8 hours", "certificate")
            await control.start()
            peer = await control.peer()
            await peer.expect("register")
            peer.say(REGISTERED)
            assert (await peer.expect("over"))["code"] == "certificate"
            told = [(await peer.expect("notice"))["text"] for _ in range(2)]
            assert told == ["three datagrams", "it expires in 8 hours"]

    run(test)
