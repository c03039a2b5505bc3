"""
The agent's stream to the control plane: one JSON object a line on `agents.sock`, and the connection is the lease.

The stream outlives the control plane: when the connection breaks it connects again, registers under the name it had
(so it keeps its address), and repeats what the control plane must know. Source: docs/reference/interfaces.md, 4.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import WeftError

LONGEST_LINE_BYTES = 16 * 1024 * 1024
"""The table of names of a large mesh comes as one line."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 1.0
"""Between attempts to connect again; doubled each time. A restarted control plane answers after about half a second."""

KEPT_NOTICES = 50
"""Distinct notices that are told again to a control plane that has come back; the oldest go first."""


class Refused(WeftError):
    """The control plane does not take this workload; the message says why, and trying again will not help."""


class StreamLost(WeftError):
    """The connection broke before the answer came; try again."""


@dataclass(frozen=True, slots=True)
class Registered:
    """
    What the control plane decided about this workload. `node` is the xDS node: `id`, `cluster`, `metadata`.

    `services` are those that its program may call now: `name`, `namespace`, `address`, `ports`. `lacks` are the ports of
    its own service that it does not serve.
    """

    workload: str
    address: str
    address6: str
    identity: str
    node: Mapping[str, Any]
    mesh_cidr: str
    services: Sequence[Mapping[str, Any]] = ()
    lacks: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Certificate:
    """`chain` and `bundle` are PEM, the leaf first; `not_after` is RFC 3339."""

    chain: str
    bundle: str
    not_after: str


class AgentStream:
    """
    Attributes:
        on_bundle: Called with the trust bundle (PEM) when it changes; that of the first certificate is not repeated.
        on_connected: Called with whether the control plane is there, on each change after the first registration.
        on_renew: Called when the control plane asks for a new signing request.
        on_hot_restart: Called when the control plane asks for another process in the proxy's place; to be answered by
            `hot_restarted` with the same number.

    Args:
        path: `agents.sock`.
        workload: The `workload` object of the `register` message.
        on_names: Called with the whole table of names, at first and after each change.
    """

    def __init__(
        self,
        path: Path,
        workload: Mapping[str, Any],
        *,
        on_names: Callable[[dict[str, list[str]]], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._workload = dict(workload)
        self._on_names = on_names
        self.on_bundle: Callable[[str], None] = lambda _: None
        self.on_connected: Callable[[bool], None] = lambda _: None
        self.on_renew: Callable[[], None] = lambda: None
        self.on_hot_restart: Callable[[int, float, float], None] = lambda number, patience, drain: None
        self._writer: asyncio.StreamWriter | None = None
        self._signing: deque[asyncio.Future[Certificate]] = deque()
        # What a control plane that has just started must be told again: the last message of each subject.
        self._facts: dict[object, dict[str, Any]] = {}
        self._notices: dict[tuple[str, str], dict[str, Any]] = {}
        self._left = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def register(self, *, patience: float) -> Registered:
        """
        Join the mesh, and from then on stay joined until `close`.

        Args:
            patience: Seconds to wait for a control plane that is not there yet.

        Raises:
            Refused: The control plane does not want this workload.
            StreamLost: No control plane within *patience*.
        """
        try:
            async with asyncio.timeout(patience):
                reader, answer = await self._connect()
        except TimeoutError as exc:
            raise StreamLost(f"no control plane answers at {self._path}") from exc
        self._serving = asyncio.create_task(self._serve(reader))
        return answer

    async def sign(self, csr: str) -> Certificate:
        """
        Have a certificate signing request (PEM) signed.

        Raises:
            StreamLost: The control plane is away.
        """
        if self._writer is None:
            raise StreamLost("the control plane is away")
        future: asyncio.Future[Certificate] = asyncio.get_running_loop().create_future()
        self._signing.append(future)  # answers come in the order of the requests
        self._write({"type": "sign", "csr": csr})
        return await future

    def listening(self, port: int, address: str | None, bound: int = 0) -> None:
        """Say where the program answers on *port*, or that it does not (None); *bound* if it has another port there."""
        message = {"type": "listening", "port": port, "address": address}
        self._state(("listening", port), message | ({"bound": bound} if bound else {}))

    def proxy_ready(self, ready: bool) -> None:
        self._state("proxy_ready", {"type": "proxy_ready", "ready": ready})

    def program(self, *, pid: int, state: str, restarts: int, code: int | None = None, how: str = "") -> None:
        """*state* is `starting`, `running` or `exited`; *code* is negative for a signal, as subprocess has it; *how* says it in words."""
        message = {"type": "program", "pid": pid, "state": state, "restarts": restarts}
        self._state("program", message if code is None else message | {"code": code, "how": how, "time": time.time()})

    def trusts(self, roots: Sequence[str]) -> None:
        """Say which roots the proxy trusts, by the fingerprints (SHA-256) of their certificates."""
        self._state("trusts", {"type": "trusts", "roots": list(roots)})

    def hot_restarted(self, number: int, **outcome: int | str) -> None:
        """Say what became of hot restart *number*: `old` and `new` pid, or `problem`."""
        if self._writer is not None:  # else whoever asked is gone
            self._write({"type": "hot_restarted", "number": number, **outcome})

    def notice(self, text: str, code: str, *, count: int = 0) -> bool:
        """
        Tell the people who watch this mesh; kept while the control plane is away.

        Args:
            count: How often it has happened so far; by default once more than at the last call with this text.
                With a count, a text that was told before only has its count brought up to date.

        Returns:
            Whether it is news.
        """
        before = self._notices.pop((text, code), None)
        message = {"type": "notice", "text": text, "code": code, "count": count or (before or {}).get("count", 0) + 1}
        # A notice is news once: whoever has been told needs no other line for a count that grows by itself.
        news = before is None or not count
        known = not news and bool(before and before["known"])
        self._notices[text, code] = message | {"known": known or self._writer is not None}
        if len(self._notices) > KEPT_NOTICES:
            del self._notices[next(iter(self._notices))]
        if self._writer is not None:
            self._write(message | {"known": known})
        return news

    def over(self, code: str) -> bool:
        """
        Take back every notice of *code*: what they told of is over.

        Returns:
            Whether there was one.
        """
        found = [key for key in self._notices if key[1] == code]
        for key in found:
            del self._notices[key]
        if found:  # a fact, which comes before notices: also to a control plane that was away when it came about
            self._state(("over", code), {"type": "over", "code": code})
        return bool(found)

    def outside_refused(self, destination: str, reason: str) -> None:
        """Tell why a connection out of the mesh was not made, for `weft why`; lost while the control plane is away."""
        if self._writer is not None:
            self._write({"type": "outside_refused", "destination": destination, "reason": reason})

    def unknown_host(self, name: str, answer: str) -> None:
        """Tell that the program asked for *name* in vain, for `weft why`; lost while the control plane is away."""
        if self._writer is not None:
            self._write({"type": "unknown_host", "name": name, "answer": answer})

    async def leave(self, *, patience: float) -> None:
        """Have the workload's endpoints withdrawn, and wait at most *patience* seconds until no proxy uses them."""
        if self._writer is not None:
            self._write({"type": "leave"})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._left.wait()

    async def close(self) -> None:
        """End the lease."""
        if self._serving:
            self._serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving
        self._disconnected()

    # --- the connection ---

    async def _connect(self) -> tuple[asyncio.StreamReader, Registered]:
        """Try until a control plane takes us; tell it what it must know."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path), limit=LONGEST_LINE_BYTES)
                try:
                    writer.write(_line({"type": "register", "workload": self._workload}))
                    answer = await _message(reader)
                except BaseException:
                    writer.close()
                    raise
                break
            except (OSError, StreamLost):
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        if answer["type"] != "registered":
            writer.close()
            raise Refused(str(answer.get("message") or f"the control plane answered {answer['type']!r}"))
        answer.pop("type")
        registered = Registered(**{key: answer.get(key, "") for key in Registered.__slots__})
        self._workload["name"] = registered.workload
        self._writer = writer
        for message in (*self._facts.values(), *self._notices.values()):
            self._write(message)
        for message in self._notices.values():
            message["known"] = True
        return reader, registered

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                while True:
                    self._receive(await _message(reader))
            except (OSError, StreamLost):
                self._disconnected()
            self.on_connected(False)
            reader, _ = await self._connect()
            self.on_connected(True)

    def _receive(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "names":
                self._on_names(message["names"])
                if self._writer is not None:
                    self._write({"type": "names_taken", "number": message["number"]})
            case "bundle":
                self.on_bundle(message["bundle"])
            case "renew":
                self.on_renew()
            case "hot_restart":
                self.on_hot_restart(int(message["number"]), float(message["patience"]), float(message["drain"]))
            case "left":
                self._left.set()
            case "certificate" if self._signing:
                future = self._signing.popleft()
                # A control plane that starts again has forgotten it, and `weft status` shows how long it lasts.
                self._workload["not_after"] = message["not_after"]
                if not future.done():
                    future.set_result(Certificate(message["chain"], message["bundle"], message["not_after"]))
            case "refused":
                # Of a request, the only one that can be refused here: the control plane closes after this.
                if self._signing and not (future := self._signing.popleft()).done():
                    future.set_exception(Refused(message["message"]))

    def _state(self, subject: object, message: dict[str, Any]) -> None:
        self._facts[subject] = message
        if self._writer is not None:
            self._write(message)

    def _write(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        # Never awaited: these are a few short lines, and a peer that stops reading is found by reading.
        self._writer.write(_line(message))

    def _disconnected(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        while self._signing:
            if not (future := self._signing.popleft()).done():
                future.set_exception(StreamLost("the control plane went away"))


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


async def _message(reader: asyncio.StreamReader) -> dict[str, Any]:
    try:
        line = await reader.readuntil(b"\n")
        message = json.loads(line)
        if not isinstance(message["type"], str):
            raise TypeError
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, KeyError, TypeError) as exc:
        raise StreamLost(f"the control plane's stream broke: {exc}") from exc
    result: dict[str, Any] = message
    return result
