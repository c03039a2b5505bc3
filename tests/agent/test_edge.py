"""The edge on this machine's own loopback: what it dials, what it publishes, what it looks up, and for whom."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import resource
import socket
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from weft.agent import edge

QUERY = struct.pack("!6H", 0xBEEF, 0x0100, 1, 0, 0, 0) + b"\3www\7example\3com\0" + struct.pack("!HH", 1, 1)


def run(
    path: Path,
    body: Callable[[Path], Awaitable[None]],
    *,
    nameservers: list[edge.Server] | None = None,
    inside: Sequence[str] = (),
) -> None:
    """Run *body* beside an edge on a socket in *path*."""

    async def both() -> None:
        where = path / "edge.sock"
        serving = asyncio.create_task(edge.Edge(nameservers, inside=inside).serve(where))
        while not where.exists():
            await asyncio.sleep(0.001)
        async with asyncio.timeout(30):
            await body(where)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert not where.exists()

    asyncio.run(both())


def listener() -> tuple[socket.socket, int]:
    made = socket.create_server(("127.0.0.1", 0))
    return made, made.getsockname()[1]


async def refused(where: Path, request: dict[str, object]) -> tuple[str, str]:
    """Return name and message of the edge's refusal."""
    with pytest.raises(edge.EdgeRefused) as caught:
        await edge.ask(where, request)
    return caught.value.name, str(caught.value)


def test_an_edge_that_starts_again_is_granted_the_ports_again(tmp_path: Path) -> None:
    async def body() -> None:
        where = tmp_path / "edge.sock"
        server, port = listener()
        request = {"dial": f"127.0.0.1:{port}", "workload": "cart"}

        async def started() -> asyncio.Task[None]:
            serving = asyncio.create_task(edge.Edge().serve(where))
            while not where.exists():
                await asyncio.sleep(0.001)
            return serving

        async def granted() -> bool:
            try:
                _, dialled = await edge.ask(where, request)
            except (edge.EdgeRefused, OSError):
                return False
            assert dialled
            dialled.close()
            return True

        async with asyncio.timeout(30):
            serving = await started()
            with server:
                async with edge.granting(where, "cart", [port]):
                    assert await granted()
                    serving.cancel()
                    await asyncio.gather(serving, return_exceptions=True)
                    serving = await started()
                    while not await granted():
                        await asyncio.sleep(0.01)
                while await granted():
                    await asyncio.sleep(0.01)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(body())


def test_who_asks_while_no_descriptor_is_left_is_answered_later(tmp_path: Path) -> None:
    async def body(where: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            # The lowest number that is free is the one that the next descriptor would get.
            with Path(os.devnull).open("rb") as probe:
                lowest = probe.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                await asyncio.get_running_loop().sock_connect(client, str(where))
                for _ in range(20):  # turns of the loop that the edge shares with us
                    await asyncio.sleep(0)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            answer, _ = await edge._exchange(client, {"host_listening": 1})
            assert answer["ok"]

    run(tmp_path, body)


def test_addresses_of_the_mesh_are_not_dialled_on_the_host(tmp_path: Path) -> None:
    """Whatever has them there is somebody else's, and would get what was meant for a service, in plain text."""

    async def body(where: Path) -> None:
        server, port = listener()
        with server:
            for host in ("127.0.0.9", "[::ffff:127.0.0.9]", "[::1]"):
                name, message = await refused(where, {"dial": f"{host}:{port}"})
                assert name == "ENETUNREACH", host
                assert "an address of the mesh" in message

    # The host's loopback stands for a network of the host with the same range.
    run(tmp_path, body, inside=["10.244.0.0/16", "127.0.0.8/30", "::1/128"])


async def dial_on(where: Path, request: dict[str, object]) -> None:
    """Dial again and again until that is refused."""
    while True:
        _, dialled = await edge.ask(where, request)
        assert dialled is not None
        dialled.close()


def test_the_hosts_loopback_is_dialled_only_on_granted_ports_while_the_grant_lasts(tmp_path: Path) -> None:
    server, port = listener()

    async def body(where: Path) -> None:
        request: dict[str, object] = {"dial": f"127.0.0.1:{port}", "workload": "cart"}
        assert (await refused(where, request))[0] == "not_granted"
        granted = await edge.grant(where, "cart", [port])
        _, dialled = await edge.ask(where, request)
        assert dialled is not None
        with dialled, server.accept()[0] as accepted:
            accepted.sendall(b"hello")
            assert await asyncio.get_running_loop().sock_recv(dialled, 10) == b"hello"
        for other in ({"workload": "shop"}, {"workload": None}, {"dial": "127.0.0.1:1"}, {"dial": f"[::1]:{port + 1}"}):
            assert (await refused(where, request | other))[0] == "not_granted"
        for spelling in ("127.9.9.9", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"):
            assert (await refused(where, {"dial": f"{spelling}:{port}"}))[0] == "not_granted", spelling
        granted.close()
        with pytest.raises(edge.EdgeRefused, match="is not among the host_ports"):
            await dial_on(where, request)  # the edge learns of the end a moment later

    with server:
        run(tmp_path, body)


def test_two_grants_of_one_port_end_apart(tmp_path: Path) -> None:
    """A restarted agent grants again before the edge has seen the end of the first."""
    server, port = listener()

    async def body(where: Path) -> None:
        first, second = await edge.grant(where, "cart", [port]), await edge.grant(where, "cart", [port])
        first.close()
        for _ in range(5):
            _, dialled = await edge.ask(where, {"dial": f"127.0.0.1:{port}", "workload": "cart"})
            assert dialled is not None
            dialled.close()
        second.close()

    with server:
        run(tmp_path, body)


def test_what_cannot_be_dialled_says_why(tmp_path: Path) -> None:
    server, port = listener()
    server.close()

    async def body(where: Path) -> None:
        with await edge.grant(where, "cart", [port]):
            name, message = await refused(where, {"dial": f"127.0.0.1:{port}", "workload": "cart"})
        assert name == "ECONNREFUSED"
        assert message == f"127.0.0.1:{port} cannot be reached: Connection refused"

    run(tmp_path, body)


def test_a_published_address_is_kept_for_the_next_proxy(tmp_path: Path) -> None:
    """A connection that comes while no proxy is there waits in the socket that the edge keeps."""
    server, port = listener()
    server.close()

    async def body(where: Path) -> None:
        loop = asyncio.get_running_loop()
        request = {"listen": f"127.0.0.1:{port}"}
        _, first = await edge.ask(where, request)
        assert first is not None
        first.close()
        with socket.create_connection(("127.0.0.1", port)) as client:
            _, second = await edge.ask(where, request)
            assert second is not None
            with second:
                accepted, _ = await loop.sock_accept(second)
                assert accepted.getpeername() == client.getsockname()
                accepted.close()
        await edge.ask(where, {"release": f"127.0.0.1:{port}"})
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    run(tmp_path, body)


def test_what_cannot_be_published_says_why(tmp_path: Path) -> None:
    server, port = listener()

    async def body(where: Path) -> None:
        name, message = await refused(where, {"listen": f"127.0.0.1:{port}"})
        assert name == "EADDRINUSE"
        assert message.startswith(f"127.0.0.1:{port} cannot be published: ")
        assert message.endswith(f" (process {os.getpid()}) has it")
        assert await refused(where, {"listen": "192.0.2.1:8080"}) == (
            "EADDRNOTAVAIL",
            "192.0.2.1:8080 cannot be published: this host has no such address",
        )

    with server:
        run(tmp_path, body)


def test_whether_the_host_listens(tmp_path: Path) -> None:
    server, port = listener()

    async def body(where: Path) -> None:
        assert await edge.host_listening(where, port)
        server.close()
        assert not await edge.host_listening(where, port)

    run(tmp_path, body)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"dial": 5}\n',
        b'{"dial": "example.com:80"}\n',
        b'{"dial": "::1:80"}\n',
        b'{"dial": "1.2.3.4:99999"}\n',
        b'{"resolve": "%%"}\n',
        b'{"resolve": ""}\n',
        b'{"grant": {"workload": "a", "host_ports": ["5432"]}}\n',
        b'{"host_listening": 0}\n',
        b"[" * 100000 + b"\n",
        b"x" * 200000 + b"\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_edge_lives(tmp_path: Path, line: bytes) -> None:
    async def body(where: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(str(where))
        writer.write(line)
        try:
            answer = json.loads(await reader.readline())
            assert answer["error"] == "malformed"
        except ConnectionResetError:
            assert len(line) > 1 << 17, "only what is too long may be cut off"
        writer.close()
        assert not await edge.host_listening(where, 1)

    run(tmp_path, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_gets_no_answer() -> None:
    """The socket's mode keeps others out as well; this is about what holds if somebody opens it up."""
    source = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b'{"host_listening": 1}\\n'); print(s.recv(100))
"""

    async def ask_as(uid: int, where: Path) -> bytes:
        process = await asyncio.create_subprocess_exec(
            "/usr/bin/python3",
            "-c",
            source,
            str(where),
            user=uid,
            group=uid,
            extra_groups=[],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return (await process.communicate())[0]

    async def body(where: Path) -> None:
        where.chmod(0o777)
        assert (await ask_as(0, where)).startswith(b"b'{")
        assert not (await ask_as(12345, where)).startswith(b"b'{")

    # Not below pytest's own directory, which others may not enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        run(Path(directory), body)


class Resolver(asyncio.DatagramProtocol):
    """A resolver that answers as *answers* says: it is given the query and returns datagrams."""

    def __init__(self, answers: Callable[[bytes], list[bytes]]) -> None:
        self._answers = answers
        self.asked: list[bytes] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(data)
        for answer in self._answers(data):
            self._transport.sendto(answer, addr)


def reply(query: bytes, data: bytes = b"\x5d\xb8\xd8\x22") -> bytes:
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, len(data)) + data
    return query[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + query[12:] + record


@contextlib.asynccontextmanager
async def standing(answers: Callable[[bytes], list[bytes]]) -> AsyncIterator[tuple[Resolver, int]]:
    """Yield a resolver and its port."""
    transport, resolver = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Resolver(answers), ("127.0.0.1", 0)
    )
    try:
        yield resolver, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


def resolving(first: Callable[[bytes], list[bytes]], second: Callable[[bytes], list[bytes]]) -> bytes:
    """Return what the edge answers to QUERY when the host's two resolvers answer so."""

    async def both() -> bytes:
        async with standing(first) as (_, one), standing(second) as (resolver, two):
            answer = await edge._Resolvers([("127.0.0.1", one), ("127.0.0.1", two)]).ask(QUERY)
            assert all(asked[2:] == QUERY[2:] for asked in resolver.asked)
            return answer

    return asyncio.run(both())


def test_the_hosts_resolver_is_asked_and_its_answer_has_the_askers_id() -> None:
    assert resolving(lambda query: [reply(query)], lambda query: []) == reply(QUERY)


def test_a_silent_resolver_is_passed_over() -> None:
    assert resolving(lambda query: [], lambda query: [reply(query)]) == reply(QUERY)


def failure(query: bytes, code: int) -> bytes:
    return query[:2] + struct.pack("!5H", 0x8180 | code, 1, 0, 0, 0) + query[12:]


@pytest.mark.parametrize("code", [2, 4, 5], ids=["SERVFAIL", "NOTIMP", "REFUSED"])
def test_a_resolver_that_fails_is_passed_over(code: int) -> None:
    """It may serve one network only; glibc goes on, too."""
    assert resolving(lambda query: [failure(query, code)], lambda query: [reply(query)]) == reply(QUERY)


def test_that_there_is_no_such_name_is_an_answer() -> None:
    assert resolving(lambda query: [failure(query, 3)], lambda query: [reply(query)]) == failure(QUERY, 3)


def test_when_all_resolvers_fail_the_first_failure_is_the_answer_and_nobody_is_asked_twice() -> None:
    async def body() -> None:
        async with (
            standing(lambda query: [failure(query, 2)]) as (first, one),
            standing(lambda query: [failure(query, 5)]) as (second, two),
        ):
            answer = await edge._Resolvers([("127.0.0.1", one), ("127.0.0.1", two)]).ask(QUERY)
            assert answer == failure(QUERY, 2)
            assert len(first.asked) == len(second.asked) == 1

    asyncio.run(body())


def test_a_failure_is_an_answer_where_the_other_resolver_is_silent() -> None:
    assert resolving(lambda query: [failure(query, 2)], lambda query: []) == failure(QUERY, 2)


def test_a_forged_answer_is_not_taken() -> None:
    """Wrong id, wrong question, a query instead of an answer, and too short; then the real one."""

    def answers(query: bytes) -> list[bytes]:
        real = reply(query)
        wrong_id = bytes([query[0] ^ 1]) + reply(query, b"evil")[1:]
        wrong_question = reply(query[:12] + query[12:].replace(b"www", b"wwx"), b"evil")
        return [wrong_id, wrong_question, query, query[:5], real]

    assert resolving(answers, lambda query: []) == reply(QUERY)


def test_ids_are_the_edges_own() -> None:
    """A program's resolver may count upwards; nobody outside should be able to guess (RFC 5452)."""

    async def body() -> None:
        async with standing(lambda query: [reply(query)]) as (resolver, port):
            asker = edge._Resolvers([("127.0.0.1", port)])
            for _ in range(8):
                await asker.ask(QUERY)
            assert len({asked[:2] for asked in resolver.asked}) > 1

    asyncio.run(body())


def test_when_nobody_answers_the_edge_says_whom_it_asked(tmp_path: Path) -> None:
    server, port = listener()  # nobody has the UDP port of that number
    with server:

        async def body(where: Path) -> None:
            name, message = await refused(where, {"resolve": base64.b64encode(QUERY).decode()})
            assert name == "no_answer"
            assert "127.0.0.1: Connection refused" in message

        run(tmp_path, body, nameservers=[("127.0.0.1", port)])


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", [("127.0.0.1", 53)]),
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", [("192.0.2.1", 53), ("2001:db8::1", 53)]),
        ("nameserver fe80::1%eth0\n", [("fe80::1%eth0", 53)]),
        ("nameserver bogus\n# nameserver 192.0.2.9\nsearch x\n", [("127.0.0.1", 53)]),
        ("".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6)), [(f"192.0.2.{n}", 53) for n in (1, 2, 3)]),
    ],
)
def test_the_hosts_resolvers_are_read_as_resolv_conf_5_says(
    tmp_path: Path, text: str, servers: list[edge.Server]
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    assert list(edge._nameservers(path)) == servers
