"""
What an HTTP/1.1 application can observe of the link between two sidecars: one function a case, by its claim.

Each plays a client and a program and returns what either of them saw. `test_links.py` holds what that is, by data plane
and version of the link.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.live.apps import CLOSED, OPEN, RESET, Script, Scripted, Wire, dial
from tests.live.mesh import Member

Seen = dict[str, Any]

VOLATILE = {
    "date",
    "server",
    "x-request-id",
    "x-envoy-upstream-service-time",
    "x-forwarded-client-cert",
    "x-envoy-expected-rq-timeout-ms",
}
"""Fields whose values are never twice the same, or that one of the data planes alone adds."""

A_MOMENT_SECONDS = 0.3
"""How long is looked whether something stays as it is."""

MEBIBYTE = 1 << 20

STUCK, STUCK_SECONDS = "stuck", 8.0
"""What is said of a request that others stop, and how long it is given."""


@dataclass
class Way:
    """From a client to a program by two sidecars."""

    caller: Member
    callee: Member
    port: int
    path: str = field(default_factory=lambda: f"/case/{uuid.uuid4()}")

    @property
    def program(self) -> Scripted:
        assert isinstance(self.callee.program, Scripted)
        return self.callee.program

    @property
    def host(self) -> str:
        return f"{self.callee.service}:{self.port}"

    def dial(self) -> contextlib.AbstractAsyncContextManager[Wire]:
        return dial(self.caller.outbound[self.port])

    def request(self, *lines: str, method: str = "GET", target: str = "", version: str = "1.1") -> bytes:
        """Return a request's head with Host and *lines*."""
        first = f"{method} {target or self.path} HTTP/{version}"
        return "\r\n".join((first, f"Host: {self.host}", *lines, "", "")).encode("latin-1")

    def serve(self, script: Script) -> None:
        self.program.script = script

    async def ask(self, script: Script, *lines: str, body: bytes = b"", **request: str) -> list[str]:
        """Send one request to *script*, with *body* after its head; return the head of the answer."""
        self.serve(script)
        async with self.dial() as client:
            await client.send(self.request(*lines, **request) + body)
            return await client.head()


Case = Callable[[Way], Awaitable[Seen]]

CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Enter *function* under its name."""
    CASES[function.__name__] = function
    return function


def fields(head: list[str]) -> list[str]:
    """Return the fields of *head* without the volatile ones."""
    return [line for line in head[1:] if line.partition(":")[0].lower() not in VOLATILE]


def named(head: list[str], *names: str) -> list[str]:
    """Return the fields of *head* with these names, in any case."""
    return [line for line in head[1:] if line.partition(":")[0].lower() in names]


def value(head: list[str], name: str) -> str:
    """Return the value of the one field called *name*; empty without it."""
    return ", ".join(line.partition(":")[2].strip() for line in named(head, name))


def answer(*lines: str, status: str = "200 OK", body: bytes = b"") -> bytes:
    """Return an answer whose length is said."""
    return "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", "")).encode("latin-1") + body


def noting(heads: list[list[str]], reply: bytes) -> Script:
    """A program that notes each head and replies the same."""

    async def script(head: list[str], wire: Wire) -> bool:
        heads.append(head)
        await wire.send(reply)
        return True

    return script


@case
async def names_of_fields(way: Way) -> Seen:
    """Their upper and lower case, in both directions."""
    heads: list[list[str]] = []
    got = await way.ask(noting(heads, answer("X-Answer-Field: 1")), "X-Request-Field: 1")
    return {"program": named(heads[0], "x-request-field"), "client": named(got, "x-answer-field")}


@case
async def order_of_fields(way: Way) -> Seen:
    """Several of one name among others; values that are empty, or not ASCII."""
    lines = ("x-a: 1", "x-b: 2", "x-a: 3", "x-empty:", "x-latin: \xe4\xf6", "x-list: a, b")
    heads: list[list[str]] = []
    got = await way.ask(noting(heads, answer(*lines, "set-cookie: a=1", "set-cookie: b=2")), *lines)
    wanted = ("x-a", "x-b", "x-empty", "x-latin", "x-list")
    values = [sorted(value(head, name) for name in wanted) for head in (heads[0], got)]
    return {
        "one name": [value(head, "x-a") for head in (heads[0], got)],
        "same values": values[0] == values[1] == sorted(["1, 3", "2", "", "\xe4\xf6", "a, b"]),
        "set-cookie": named(got, "set-cookie"),
    }


@case
async def cookies(way: Way) -> Seen:
    """One of several parts; and two fields, which a client should not send (RFC 6265 5.4)."""
    heads: list[list[str]] = []
    script = noting(heads, answer())
    await way.ask(script, "cookie: a=1; b=2; c=3")
    await way.ask(script, "cookie: a=1", "cookie: b=2")
    return {"one": value(heads[0], "cookie"), "two": value(heads[1], "cookie").replace(", ", "; ")}


@case
async def fields_that_sidecars_add(way: Way) -> Seen:
    """All that the program sees of a plain request, and all that the client sees of the answer."""
    heads: list[list[str]] = []
    got = await way.ask(noting(heads, answer(body=b"ok")))
    element = value(heads[0], "x-forwarded-client-cert").split(";")
    return {
        "program": sorted(line.lower().replace(way.host, "HOST") for line in fields(heads[0])),
        "caller": [part for part in element if part.startswith("URI=")],
        "client": sorted(line.lower() for line in fields(got)),
    }


@case
async def start_lines(way: Way) -> Seen:
    """Targets, methods and status codes that are seldom."""
    heads: list[list[str]] = []
    script = noting(heads, answer())
    odd = f"{way.path}/a%2Fb;x=1,2@:!$&'()*+|^`{{}}\"<>?q=%20&r=a+b?c=/"
    await way.ask(script, target=odd)
    await way.ask(script, target=f"http://{way.host}{way.path}?absolute")
    await way.ask(script, method="PURGE")
    await way.ask(script, "content-length: 0", method="POST")
    statuses = []
    for status in ("200 Very Well", "299 Odd", "404 Not Found", "418 Teapot", "599 Strange", "799 Stranger"):
        statuses.append((await way.ask(noting([], answer(status=status))))[0])
    shown = [head[0].replace(way.path, "PATH") for head in heads]
    return {"program": shown, "client": statuses, "length": named(heads[-1], "content-length")}


@case
async def client_closes(way: Way) -> Seen:
    """`Connection: close` of a client ends its own connection and no other."""
    heads: list[list[str]] = []
    way.serve(noting(heads, answer(body=b"ok")))
    async with way.dial() as client:
        await client.send(way.request())
        await client.head()
        await client.exactly(2)
    before = way.program.connections
    async with way.dial() as client:
        await client.send(way.request("Connection: close", "X-Hop: 1"))
        head = await client.head()
        await client.exactly(2)
        end = await client.end()
    async with way.dial() as client:
        await client.send(way.request())
        await client.head()
    return {
        "program told": named(heads[1], "connection"),
        "client told": [line.lower() for line in named(head, "connection")],
        "client's connection": end,
        "new connections of the program": way.program.connections - before,
    }


@case
async def program_closes(way: Way) -> Seen:
    """`Connection: close` of a program ends its connection, and the client's goes on."""

    async def script(_: list[str], wire: Wire) -> bool:
        await wire.send(answer("Connection: close", body=b"ok"))
        return False

    way.serve(script)
    told = []
    async with way.dial() as client:
        for _ in range(2):
            await client.send(way.request())
            head = await client.head()
            told.append((head[0], [line.lower() for line in named(head, "connection")], await client.exactly(2)))
    return {"client": told, "requests": way.program.requests}


@case
async def connection_names_fields(way: Way) -> Seen:
    """Fields that `Connection` names, and others of the hop, end at the first sidecar."""
    heads: list[list[str]] = []
    lines = ("Connection: x-hop, keep-alive", "X-Hop: 1", "Keep-Alive: timeout=5", "X-Stays: 1")
    got = await way.ask(noting(heads, answer(*lines)), *lines)
    hop = ("connection", "x-hop", "keep-alive", "x-stays")
    return {
        "program": sorted(line.lower() for line in named(heads[0], *hop)),
        "client": sorted(line.lower() for line in named(got, *hop)),
    }


@case
async def client_of_http10(way: Way) -> Seen:
    """It is answered in a way that it understands."""
    heads: list[list[str]] = []

    async def script(head: list[str], wire: Wire) -> bool:
        heads.append(head)
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        return True

    way.serve(script)
    async with way.dial() as client:
        await client.send(way.request(version="1.0"))
        head = await client.head()
        body = await client.reader.read(-1) if not head[0].endswith("426 Upgrade Required") else b""
    return {
        "program": [head[0].rpartition(" ")[2] for head in heads],
        "client": [head[0], *sorted(line.lower() for line in named(head, "transfer-encoding", "connection"))],
        "body": body,
    }


@case
async def program_of_http10(way: Way) -> Seen:
    """An answer that ends with the program's connection has an end for the client too."""

    async def script(_: list[str], wire: Wire) -> bool:
        await wire.send(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it")
        return False

    way.serve(script)
    async with way.dial() as client:
        await client.send(way.request())
        head = await client.head()
        body = await client.chunks()
        await client.send(way.request())
        again = await client.head()
    return {"client": [head[0], again[0], *named(head, "transfer-encoding", "content-length")], "body": body}


@case
async def pipelined_requests(way: Way) -> Seen:
    """They are answered in their order."""

    async def script(head: list[str], wire: Wire) -> bool:
        await wire.send(answer(body=head[0].split("?")[1][:1].encode()))
        return True

    way.serve(script)
    async with way.dial() as client:
        await client.send(b"".join(way.request(target=f"{way.path}?{number}") for number in range(5)))
        bodies = []
        for _ in range(5):
            await client.head()
            bodies.append(await client.exactly(1))
    return {"client": b"".join(bodies)}


@case
async def lengths(way: Way) -> Seen:
    """A body whose length is said keeps it, and one in chunks stays in chunks; where there is none, none is said."""
    heads: list[list[str]] = []
    framing = ("content-length", "transfer-encoding")

    async def script(head: list[str], wire: Wire) -> bool:
        heads.append(head)
        if named(head, "transfer-encoding"):
            body, _ = await wire.chunks()
            reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        else:
            body = await wire.exactly(int(value(head, "content-length") or 0))
            reply = answer(body=b"abc")
        assert body == b"12345"[: len(body)]
        if head[0].startswith("HEAD"):
            reply = b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"
        if "nothing" in head[0]:
            reply = b"HTTP/1.1 204 No Content\r\n\r\n"
        if "unchanged" in head[0]:
            reply = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: x\r\n\r\n"
        await wire.send(reply)
        return True

    answers = []
    for lines, body, request in (
        (("Content-Length: 5",), b"12345", {"method": "POST"}),
        (("Transfer-Encoding: chunked",), b"5\r\n12345\r\n0\r\n\r\n", {"method": "POST"}),
        ((), b"", {"method": "POST"}),
        ((), b"", {"method": "HEAD"}),
        ((), b"", {"target": f"{way.path}?nothing"}),
        ((), b"", {"target": f"{way.path}?unchanged"}),
    ):
        answers.append(await way.ask(script, *lines, body=body, **request))
    return {
        "program": [[line.lower() for line in named(head, *framing)] for head in heads],
        "client": [[line.lower() for line in named(head, *framing)] for head in answers],
    }


@case
async def body_behind_head_and_nothing(way: Way) -> Seen:
    """A connection is good for another request after HEAD, 204 and 304."""

    async def script(head: list[str], wire: Wire) -> bool:
        replies = {"0": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "1": b"HTTP/1.1 204 No Content\r\n\r\n"}
        replies["2"] = b"HTTP/1.1 304 Not Modified\r\n\r\n"
        await wire.send(replies.get(head[0].split("?")[1][0], answer(body=b"ok")))
        return True

    way.serve(script)
    lines = []
    async with way.dial() as client:
        for number, method in enumerate(("HEAD", "GET", "GET", "GET")):
            await client.send(way.request(method=method, target=f"{way.path}?{number}"))
            lines.append((await client.head())[0])
        body = await client.exactly(2)
    return {"client": lines, "body": body}


@case
async def trailers(way: Way) -> Seen:
    """Of a request, and of an answer to a client that says `TE: trailers`."""
    seen: list[Any] = []

    async def script(head: list[str], wire: Wire) -> bool:
        seen.append(([line.lower() for line in named(head, "te")], await wire.chunks()))
        reply = (
            b"HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n"
        )
        await wire.send(reply)
        return True

    way.serve(script)
    async with way.dial() as client:
        head = way.request("TE: trailers", "Connection: TE", "Transfer-Encoding: chunked", method="POST")
        await client.send(head + b"2\r\nhi\r\n0\r\nx-check: 1\r\n\r\n")
        await client.head()
        return {"program": [*seen], "client": await client.chunks()}


@case
async def expectation_met(way: Way) -> Seen:
    """The client hears 100 from the program, and not before."""
    told: list[str] = []

    async def script(head: list[str], wire: Wire) -> bool:
        told.extend(line.lower() for line in named(head, "expect"))
        # Whoever else could say 100 would have said it by then.
        early = await wire.end(within=A_MOMENT_SECONDS)
        assert early == OPEN
        told.append("go on")
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        told.append((await wire.exactly(4)).decode())
        await wire.send(answer())
        return True

    way.serve(script)
    async with way.dial() as client:
        await client.send(way.request("Expect: 100-continue", "Content-Length: 4", method="POST"))
        first = (await client.head())[0]
        heard = "go on" in told
        await client.send(b"body")
        return {"client": [first, (await client.head())[0]], "program": told, "from the program": heard}


@case
async def expectation_refused(way: Way) -> Seen:
    """The client hears the refusal in place of 100, and need not send its body."""

    async def script(_: list[str], wire: Wire) -> bool:
        await wire.send(answer("Connection: close", status="417 Expectation Failed"))
        return False

    way.serve(script)
    async with way.dial() as client:
        await client.send(way.request("Expect: 100-continue", "Content-Length: 4", method="POST"))
        head = await client.head()
    return {"client": [head[0], *(line.lower() for line in named(head, "connection"))]}


@case
async def interim_answers(way: Way) -> Seen:
    """103 with its fields, before the program has decided."""
    go_on = asyncio.Event()

    async def script(_: list[str], wire: Wire) -> bool:
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </b>\r\n\r\n")
        await asyncio.wait_for(go_on.wait(), 10)
        await wire.send(answer())
        return True

    way.serve(script)
    async with way.dial() as client:
        await client.send(way.request())
        heads = []
        try:
            async with asyncio.timeout(3):
                for _ in range(2):
                    heads.append(await client.head())
        except TimeoutError:
            heads.append(["no interim answer"])
        go_on.set()
        heads.append(await client.head())
    return {"client": [[head[0], *named(head, "link")] for head in heads]}


@case
async def early_answer(way: Way) -> Seen:
    """A refusal reaches the client while its body is still on the way."""

    async def script(_: list[str], wire: Wire) -> bool:
        await wire.send(answer("Connection: close", status="413 Content Too Large", body=b"no"))
        return False

    way.serve(script)
    async with way.dial() as client:
        await client.send(way.request(f"Content-Length: {MEBIBYTE}", method="POST") + b"x" * 1000)
        head = await client.head()
        body = await client.exactly(2)
        return {"client": [head[0], *(line.lower() for line in named(head, "connection"))], "body": body}


@case
async def answer_before_the_request_ends(way: Way) -> Seen:
    """An answer that streams while the request streams: each part comes back before the next is sent."""

    async def script(_: list[str], wire: Wire) -> bool:
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while part := await wire.chunk():
            await wire.send(b"%x\r\n%b\r\n" % (len(part), part.upper()))
        await wire.until(b"\r\n")
        await wire.send(b"0\r\n\r\n")
        return True

    way.serve(script)
    parts = []
    async with way.dial() as client:
        await client.send(way.request("transfer-encoding: chunked", method="POST"))
        await client.head()
        for part in (b"one", b"two", b"three"):
            await client.send(b"%x\r\n%b\r\n" % (len(part), part))
            parts.append(await client.chunk())
        await client.send(b"0\r\n\r\n")
        return {"client": parts, "end": await client.chunks()}


@case
async def client_half_closes(way: Way) -> Seen:
    """Who sends no more cannot be told from one that is gone, and is not answered."""

    async def script(_: list[str], wire: Wire) -> bool:
        if await wire.end(within=A_MOMENT_SECONDS) != OPEN:
            return False
        await wire.send(answer(body=b"ok"))
        return True

    way.serve(script)
    async with way.dial() as client:
        await client.send(way.request())
        client.finish()
        try:
            head = await client.head()
            return {"client": head[0], "body": await client.exactly(2)}
        except asyncio.IncompleteReadError:
            return {"client": CLOSED}


@case
async def client_leaves(way: Way) -> Seen:
    """The program sees that nobody waits any more, before its answer and in the middle of it."""
    return await _leaving(way, Wire.reset)


@case
async def client_leaves_in_order(way: Way) -> Seen:
    """The same of a client that closes its connection as one does whose patience has ended."""
    return await _leaving(way, Wire.close)


async def _leaving(way: Way, leave: Callable[[Wire], None]) -> Seen:
    ends: dict[str, str] = {}

    async def script(head: list[str], wire: Wire) -> bool:
        if "middle" in head[0]:
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")
        end = await wire.end(within=STUCK_SECONDS)
        # A proxy that is not told either may try again.
        ends.setdefault(head[0].split()[1], end)
        return False

    way.serve(script)
    targets = (way.path, f"{way.path}?middle")
    for target in targets:
        before = way.program.requests
        async with way.dial() as client:
            await client.send(way.request(target=target))
            if "middle" in target:
                await client.head()
            while way.program.requests == before:
                await asyncio.sleep(0.01)
            leave(client)
        async with asyncio.timeout(2 * STUCK_SECONDS):
            while target not in ends:
                await asyncio.sleep(0.01)
    return {"program": [ends[target] != OPEN for target in targets]}


@case
async def program_breaks_off(way: Way) -> Seen:
    """An answer that is cut short is never taken for a whole one."""
    passed_on = asyncio.Event()

    async def script(head: list[str], wire: Wire) -> bool:
        if "chunks" in head[0]:
            await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n")
        else:
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(A_MOMENT_SECONDS):
                await passed_on.wait()
        if "reset" in head[0]:
            wire.reset()
        return False

    way.serve(script)
    seen = []
    for what in ("chunks", "chunks-reset", "length", "length-reset"):
        passed_on.clear()
        async with way.dial() as client:
            await client.send(way.request(target=f"{way.path}?{what}"))
            head = await client.head()
            body = b""
            end = CLOSED
            try:
                while part := await asyncio.wait_for(client.reader.read(100), 20):
                    body += part
                    if b"some" in body:
                        passed_on.set()
            except ConnectionError:
                end = RESET
            seen.append((head[0], b"some" in body, b"0\r\n\r\n" in body, end))
    return {"client": seen}


@case
async def program_answers_nothing(way: Way) -> Seen:
    """A program that closes instead of answering; the proxy answers for it."""

    async def script(_: list[str], wire: Wire) -> bool:
        wire.reset()
        return False

    head = await way.ask(script, "content-length: 2", body=b"hi", method="POST")
    return {"client": head[0], "requests": way.program.requests}


@case
async def large_heads(way: Way) -> Seen:
    """A head that fits comes whole; one that does not is refused."""
    heads: list[list[str]] = []
    large, too_large = "x" * 40_000, "x" * 70_000
    script = noting(heads, answer("x-large: " + "y" * 20_000))
    got = await way.ask(script, f"x-large: {large}")
    many = await way.ask(script, *(f"x-{number}: {number}" for number in range(80)))
    refused = await way.ask(script, f"x-large: {too_large}")
    return {
        "program": [value(heads[0], "x-large") == large, sum(line.startswith("x-") for line in heads[1]) >= 80],
        "client": [got[0], len(value(got, "x-large")), many[0], refused[0]],
    }


@case
async def large_bodies(way: Way) -> Seen:
    """Eight clients at once send and get four MiB each, in chunks, while both move; every byte is right."""

    async def script(_: list[str], wire: Wire) -> bool:
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while part := await wire.chunk():
            await wire.send(b"%x\r\n%b\r\n" % (len(part), part))
        await wire.until(b"\r\n")
        await wire.send(b"0\r\n\r\n")
        return True

    way.serve(script)

    async def client(number: int) -> bool:
        part = hashlib.sha256(str(number).encode()).digest() * 2048
        async with way.dial() as wire:

            async def send() -> None:
                await wire.send(way.request("transfer-encoding: chunked", method="POST"))
                for _ in range(64):
                    await wire.send(b"%x\r\n%b\r\n" % (len(part), part))
                await wire.send(b"0\r\n\r\n")

            sending = asyncio.create_task(send())
            await wire.head()
            body, _ = await wire.chunks()
            await sending
            return body == part * 64

    async with asyncio.timeout(60):
        right = await asyncio.gather(*(client(number) for number in range(8)))
    return {"right": right}


@case
async def clients_that_do_not_read(way: Way) -> Seen:
    """Forty of them stop nobody else, and the program has to wait for them."""
    written = 0

    async def script(head: list[str], wire: Wire) -> bool:
        nonlocal written
        if "slow" not in head[0]:
            await wire.send(answer(body=b"x" * MEBIBYTE))
            return True
        wire.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * MEBIBYTE))
        for _ in range(64):
            wire.writer.write(b"x" * MEBIBYTE)
            await wire.writer.drain()
            written += 1
        return True

    way.serve(script)

    async def download() -> str:
        try:
            async with asyncio.timeout(STUCK_SECONDS), way.dial() as client:
                await client.send(way.request())
                await client.head()
                return str(len(await client.exactly(MEBIBYTE)))
        except TimeoutError:
            return STUCK

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            client = await stack.enter_async_context(way.dial())
            await client.send(way.request(target=f"{way.path}?slow"))
            await client.head()
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        before = -1
        while written != before:  # nobody says that the buffers are full: it stays as it is
            before = written
            await asyncio.sleep(A_MOMENT_SECONDS)
        waits = written < 40 * 64
        others = await download()
    return {"others": others, "later ones": await download(), "the program waits": waits}


@case
async def program_that_does_not_read(way: Way) -> Seen:
    """Forty requests whose bodies nobody reads stop no other."""
    go_on = asyncio.Event()

    async def script(head: list[str], wire: Wire) -> bool:
        if "slow" in head[0]:
            wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await go_on.wait()
            return False
        body = await wire.exactly(int(value(head, "content-length")))
        await wire.send(answer(body=str(len(body)).encode()))
        return True

    way.serve(script)
    before = way.program.requests

    async def pour(client: Wire) -> None:
        with contextlib.suppress(OSError):
            while True:
                client.writer.write(b"x" * 65536)
                await client.writer.drain()

    async def upload() -> str:
        try:
            async with asyncio.timeout(STUCK_SECONDS), way.dial() as client:
                await client.send(way.request(f"content-length: {MEBIBYTE}", method="POST") + b"x" * MEBIBYTE)
                await client.head()
                return (await client.exactly(7)).decode()
        except TimeoutError:
            return STUCK

    async with contextlib.AsyncExitStack() as stack:
        pouring = []
        for _ in range(40):
            client = await stack.enter_async_context(way.dial())
            request = way.request(f"content-length: {1 << 40}", method="POST", target=f"{way.path}?slow")
            await client.send(request)
            pouring.append(asyncio.create_task(pour(client)))
        while way.program.requests < before + 40:
            await asyncio.sleep(0.01)
        await asyncio.sleep(A_MOMENT_SECONDS)  # for the buffers to fill, which nobody says
        try:
            others = await upload()
        finally:
            go_on.set()
            for task in pouring:
                task.cancel()
            await asyncio.gather(*pouring, return_exceptions=True)
    return {"others": others, "later ones": await upload()}


def _accept(key: str) -> str:
    """RFC 6455 4.2.2"""
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return base64.b64encode(digest).decode()


@case
async def websocket(way: Way) -> Seen:
    """Key and answer fit together, extensions and subprotocol come through, bytes go both ways, and either end ends it."""
    seen: list[str] = []
    over = asyncio.Event()

    async def script(head: list[str], wire: Wire) -> bool:
        seen.append(head[0].replace(way.path, "PATH"))
        kept = ("connection", "upgrade", "sec-websocket-version", "sec-websocket-protocol")
        seen.extend(sorted(line.lower() for line in named(head, *kept)))
        accept = _accept(value(head, "sec-websocket-key"))
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n".encode()
        )
        seen.append((await wire.exactly(4)).decode())
        await wire.send(b"pong")
        seen.append(await wire.end(within=STUCK_SECONDS))
        over.set()
        return False

    way.serve(script)
    key = base64.b64encode(b"0123456789abcdef").decode()
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
    async with way.dial() as client:
        await client.send(way.request(*lines, "Sec-WebSocket-Protocol: chat"))
        head = await client.head()
        kept = ("connection", "upgrade", "sec-websocket-accept", "sec-websocket-protocol")
        told = [head[0], *sorted(line.lower() for line in named(head, *kept) if _accept(key) not in line)]
        fits = value(head, "sec-websocket-accept") == _accept(key)
        await client.send(b"ping")
        back = await client.exactly(4)
        client.finish()
        end = await client.end(within=STUCK_SECONDS)
    await asyncio.wait_for(over.wait(), 2 * STUCK_SECONDS)
    return {"program": seen, "client": told, "accept fits": fits, "back": back, "end": end}


def upgrade(reply: bytes) -> Case:
    """A case in which the program does not change the protocol, and answers *reply*."""

    async def run(way: Way) -> Seen:
        """The program does not change the protocol."""
        way.serve(noting([], reply))
        key = base64.b64encode(b"0123456789abcdef").decode()
        lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
        async with way.dial() as client:
            await client.send(way.request(*lines))
            head = await client.head()
            length = int(value(head, "content-length") or 0)
            body = await client.exactly(length)
            if "close" not in value(head, "connection"):
                await client.send(way.request())
                await client.head()
        return {"client": head[0], "body": body}

    return run


CASES["websocket_refused"] = upgrade(answer(status="403 Forbidden", body=b"no"))
CASES["websocket_passed_over"] = upgrade(answer(body=b"a page"))


@case
async def other_upgrades(way: Way) -> Seen:
    """A protocol that the mesh does not know."""
    head = await way.ask(noting([], answer(body=b"page")), "Connection: Upgrade", "Upgrade: own/1")
    return {"client": head[0]}
