"""
The server of the agents' streams, `agents.sock`: registration, certificates, reports.

The messages are in docs/reference/interfaces.md, 4.2.

A connection is the lease of one workload. When it ends, the workload is withdrawn at once if the agent said that it
leaves or its process is gone; a connection that merely broke has a short grace in which the agent may come back.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from weft.agent.processes import start_time, stat
from weft.agent.relay import TELL_AGAIN_SECONDS
from weft.controlplane.events import Events
from weft.errors import WeftError
from weft.registry import Programs, Registration, RegistrationRefused
from weft.telemetry import Lookups, Record

GRACE_SECONDS = 3.0
"""For an agent that is alive and lost its connection; it tries again within a second."""

LEAVE_SECONDS = 2.0
"""How long a leaving workload is kept waiting for proxies that do not acknowledge its withdrawal."""

LINE_BYTES = 1 << 20
"""Longest line that is read; a CSR has about a thousand bytes."""

ANSWER_SECONDS = 5.0
"""How long an agent may take to answer beyond what it was given for its work."""

STOP_SECONDS = 0.1
"""Within which it shows that an agent has been stopped: a stopped process tells nobody."""

KEPT_NOTICES = 20
"""Distinct notices of one workload that `weft status` shows."""

CLOCK_SECONDS = 0.5
"""A proxy tells milliseconds, and an agent's word comes when a busy machine lets it."""

KEPT_REFUSALS = 100
"""Of connections of one workload out of the mesh, the newest."""

KEPT_ENDINGS = 20
"""Of one workload's program, which may end again and again; the newest."""

Key = tuple[str, str]
"""(namespace, workload name)."""


@dataclass
class Notice:
    """Something an agent wants people to know; equal ones are counted."""

    text: str
    code: str
    count: int = 1


@dataclass(slots=True)
class Ending:
    """
    A program ended; times in seconds since 1970.

    Attributes:
        how: In words: `exited with code 3`, `was killed by SIGKILL`.
        back: When it was ready again; None until then.
    """

    time: float
    how: str
    back: float | None = None


@dataclass(frozen=True, slots=True)
class OutsideRefusal:
    """A connection out of the mesh that an agent could not make for its proxy; `time` in seconds since 1970."""

    time: float
    destination: str
    reason: str


def outside_refusal(record: Record, refusals: Iterable[OutsideRefusal]) -> str:
    """Return the reason of the last one that can be why *record* ended as it did; empty if there is none."""
    earliest = record.start - TELL_AGAIN_SECONDS - CLOCK_SECONDS  # the same reason is not told each time
    reasons = [
        refusal.reason
        for refusal in refusals
        if refusal.destination == record.listener and earliest <= refusal.time <= record.end + CLOCK_SECONDS
    ]
    return f"the edge refused: {reasons[-1]}" if reasons and {"UC", "UR"} & set(record.flags) else ""


class AgentState(StrEnum):
    """How the agent of a workload is: the names that its program looks up are answered by it."""

    ANSWERS = "answers"
    SILENT = "silent"
    """It has not said that its program is answered by the names of now."""
    STOPPED = "stopped"
    """Its process is, as by Ctrl-Z. It answers no name until it goes on, so nobody is misled meanwhile."""


@dataclass
class Session:
    """One agent's connection. `agent` is `<pid>:<start time>` of the peer."""

    writer: asyncio.StreamWriter
    agent: str
    key: Key | None = None
    node: str = ""
    """Node id of the workload's proxy."""
    names: Mapping[str, list[str]] | None = None
    names_sent: int = 0
    """How many tables of names it was sent."""
    names_taken: int = 0
    """Up to which of them its program is answered by."""
    names_told: dict[int, range] = field(default_factory=dict)
    """The tables that are not taken: number -> revisions whose changes it tells."""
    left: bool = False
    trusts: frozenset[str] = frozenset()
    """Fingerprints of the roots that the workload's proxy trusts."""
    answers: dict[int, asyncio.Future[Mapping[str, Any]]] = field(default_factory=dict)
    """By number, what the agent was asked and has not answered."""
    pidfd: int = -1
    """Readable when the agent's process has ended (pidfd_open(2)); -1 once closed."""

    def send(self, **message: Any) -> None:
        self.writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def send_names(self, names: Mapping[str, list[str]], revision: int) -> None:
        """Send the table of names as *revision* has made it, unless it is the last one that was sent."""
        if names == self.names:
            return
        self.names_sent += 1
        # The first one of a connection tells whatever came before it: another control plane may have been asked for it.
        self.names_told[self.names_sent] = range(revision if self.names_sent > 1 else 0, revision + 1)
        self.names = names
        self.send(type="names", number=self.names_sent, names=names)

    def take_names(self, number: int) -> None:
        """Note that the program is answered by the table of that *number*."""
        self.names_taken = number
        self.names_told = {sent: told for sent, told in self.names_told.items() if sent > number}

    def owed(self, revision: int | None = None) -> int:
        """Return the last table that is not taken, of those that tell a change of *revision* if one is given; 0 if there is none."""
        late = (sent for sent, told in self.names_told.items() if sent > self.names_taken)
        return max((sent for sent in late if revision is None or revision in self.names_told[sent]), default=0)


class AgentServer:
    """
    Args:
        registry: What is told of workloads.
        sign: `(csr PEM, spiffe id) -> {"chain", "bundle", "not_after"}`; raises WeftError for a CSR that it refuses.
        attest: Looks at the peer of a connection; raises WeftError for one that may not register.
        changed: Called after the registry changed.
        settle: Waits until what was changed has been acknowledged by every proxy that is affected.
        revision: Returns the last one.
    """

    def __init__(
        self,
        registry: Programs,
        *,
        sign: Callable[[str, str], Mapping[str, Any]],
        attest: Callable[[Any], int],
        bundle: Callable[[], str],
        changed: Callable[[], None],
        settle: Callable[[], Any],
        revision: Callable[[], int],
        events: Events,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._registry = registry
        self._sign = sign
        self._attest = attest
        self._bundle = bundle
        self._changed = changed
        self._settle = settle
        self._revision = revision
        self._events = events
        self._grace_seconds = grace_seconds
        self._server: asyncio.Server | None = None
        self._numbers = itertools.count(1)
        self._progress = asyncio.Event()
        self._expiries: dict[Key, asyncio.TimerHandle] = {}
        self.sessions: dict[Key, Session] = {}
        self.notices: dict[Key, list[Notice]] = {}
        self.outside_refusals: dict[Key, deque[OutsideRefusal]] = {}
        self.endings: dict[Key, deque[Ending]] = {}
        self.lookups = Lookups()
        self.certificates: dict[Key, str] = {}
        """When the certificate last given to a workload ends, RFC 3339."""

    async def serve(self, path: Path) -> None:
        """Begin to listen on the Unix socket *path*; a socket that an earlier process left there is replaced."""
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._handle, path, limit=LINE_BYTES)
        path.chmod(0o600)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for session in [*self.sessions.values()]:
                session.writer.close()
            await self._server.wait_closed()
        for expiry in self._expiries.values():
            expiry.cancel()
        for session in self.sessions.values():
            self._forget(session)

    def agent_of(self, key: Key) -> str:
        """Return `<pid>:<start time>` of the agent that holds *key*, or empty."""
        session = self.sessions.get(key)
        return session.agent if session else ""

    def pid_of(self, key: Key) -> int:
        """Return the process of the agent that holds *key*, or 0."""
        return int(self.agent_of(key).partition(":")[0] or 0)

    def publish_names(self, revision: int) -> None:
        """Send the table of names to every agent whose last one differs; *revision* is the one that makes it so."""
        services = self._registry.view().services
        for key, session in self.sessions.items():
            names = {hostname: [self._registry.reached_at(key, item)] for hostname, item in services.items()}
            session.send_names(names, revision)

    def state_of(self, key: Key) -> AgentState:
        """Return how the agent that holds *key* is; of none there is nothing to wait for."""
        session = self.sessions.get(key)
        if session is None:
            return AgentState.ANSWERS
        if is_stopped(session.agent):
            return AgentState.STOPPED
        return AgentState.SILENT if session.owed() else AgentState.ANSWERS

    async def names_taken(self, patience: float, revision: int | None = None) -> dict[Key, AgentState]:
        """
        Wait until every program is answered by the names of now, or its agent is stopped.

        Args:
            patience: Seconds.
            revision: Only what it has changed of the names is waited for.

        Returns:
            Those that are not in time, and how the agent of each is.
        """
        deadline = time.monotonic() + patience
        wanted = {
            key: (session, number) for key, session in self.sessions.items() if (number := session.owed(revision))
        }

        def late() -> dict[Key, AgentState]:
            # One whose agent is gone, or another's, waits for nothing.
            return {
                key: AgentState.STOPPED if is_stopped(it.agent) else AgentState.SILENT
                for key, (it, number) in wanted.items()
                if self.sessions.get(key) is it and it.names_taken < number
            }

        while AgentState.SILENT in (found := late()).values() and (left := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, STOP_SECONDS)):
                    await self._progress.wait()
        return found

    def publish_bundle(self) -> None:
        """Send the trust bundle to every agent."""
        for session in self.sessions.values():
            session.send(type="bundle", bundle=self._bundle())

    def renew(self) -> None:
        """Have every agent ask for a new certificate soon."""
        for session in self.sessions.values():
            session.send(type="renew")

    async def hot_restart(self, session: Session, *, patience: float, drain: float) -> Mapping[str, Any]:
        """
        Have the agent of *session* replace its proxy's process; return what it says: `old` and `new` pid, or `problem`.

        Args:
            patience: Seconds within which the new process must serve.
            drain: Seconds that the old one has for what it has open; they are not waited for.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        session.answers[number] = answer
        session.send(type="hot_restart", number=number, patience=patience, drain=drain)
        try:
            async with asyncio.timeout(patience + ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            return {"problem": "its agent does not answer"}
        finally:
            session.answers.pop(number, None)

    def distrusting(self, root: str) -> list[Key]:
        """Return the workloads that have a certificate and have not said that they trust *root* (a fingerprint)."""
        return [key for key, held in self.sessions.items() if key in self.certificates and root not in held.trusts]

    async def progress(self) -> None:
        """Wait until an agent says whom its proxy trusts or which names it has, or one is gone."""
        await self._progress.wait()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(writer, "")
        try:
            pid = self._attest(writer.get_extra_info("socket"))
            session.pidfd = os.pidfd_open(pid)
            session.agent = f"{pid}:{start_time(pid)}"
            while line := await reader.readline():
                await self._message(session, json.loads(line))
        except WeftError as refusal:
            session.send(type="refused", message=str(refusal))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            session.send(type="refused", message=f"This message cannot be read: {exc!r}")
        except (OSError, asyncio.CancelledError):
            pass  # the connection broke, or its process is gone already
        finally:
            self._ended(session)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _message(self, session: Session, message: Mapping[str, Any]) -> None:
        kind = message["type"]
        if kind == "register":
            self._register(session, message["workload"])
        elif (key := session.key) is None:
            raise RegistrationRefused("The first message must be `register`.")
        elif self.sessions.get(key) is not session:
            raise RegistrationRefused(f"Another agent has registered as {key[1]!r} since.")
        elif kind == "sign":
            identity = self._registry.programs[key].identity
            certificate = self._sign(message["csr"], str(identity))
            self.certificates[key] = str(certificate["not_after"])
            session.send(type="certificate", **certificate)
        elif kind == "trusts":
            session.trusts = frozenset(map(str, message["roots"]))
            self._wake()
        elif kind == "names_taken":
            session.take_names(int(message["number"]))
            self._wake()
        elif kind == "leave":
            await self._leave(session, key)
        elif kind == "notice":
            self._notice(key, message)
        elif kind == "over":
            self.notices[key] = [item for item in self.notices.get(key, ()) if item.code != message["code"]]
        elif kind == "hot_restarted":
            if (answer := session.answers.get(int(message["number"]))) is not None and not answer.done():
                answer.set_result(message)
        elif kind == "outside_refused":
            self._outside_refused(key, message)
        elif kind == "unknown_host":
            self.lookups.add(session.node, str(message["name"]), str(message["answer"]), at=time.time())
        else:
            self._report(key, kind, message)

    def _register(self, session: Session, workload: Mapping[str, Any]) -> None:
        registration = Registration.from_json(workload)
        before = self.sessions.get((registration.namespace, registration.name))
        if before is not None and before.agent != session.agent and is_alive(before.agent):
            raise RegistrationRefused(f"A workload named {registration.name!r} is running already.")
        key = self._registry.register(registration)
        if (expiry := self._expiries.pop(key, None)) is not None:
            expiry.cancel()
        if before is not None and before is not session:
            self._forget(before)
        session.key = key
        self.sessions[key] = session
        if workload.get("not_after"):
            self.certificates[key] = str(workload["not_after"])
        program = self._registry.programs[key]
        proxy = self._registry.view().proxies[key]
        session.node = proxy.node_id
        session.send(
            type="registered",
            workload=key[1],
            address=program.address,
            address6=program.address6,
            identity=str(program.identity),
            node={
                "id": proxy.node_id,
                "cluster": f"{registration.service}.{key[0]}",
                "metadata": {
                    "NAME": key[1],
                    "NAMESPACE": key[0],
                    "LABELS": dict(proxy.labels),
                    "SERVICE_ACCOUNT": program.identity.service_account,
                    "WORKLOAD_NAME": key[1],
                    "MESH_ID": self._registry.trust_domain,
                    # One mesh is one cluster; metrics and whoever reads them know it by this name.
                    "CLUSTER_ID": self._registry.mesh,
                },
            },
            mesh_cidr=self._registry.mesh_cidr,
            services=self._callable(key),
            lacks=self._registry.lacking(key),
        )
        if workload.get("not_after"):
            # It has lived through another control plane, and may not know what changed meanwhile.
            session.send(type="bundle", bundle=self._bundle())
        self._events.emit("registered", workload=key[1], namespace=key[0], service=registration.service)
        self.publish_names(self._revision() + 1)  # the one that takes it in
        self._changed()

    def _callable(self, key: Key) -> list[dict[str, Any]]:
        """Return what the program of *key* may call at this moment."""
        return [
            {
                "name": service.name,
                "namespace": service.namespace,
                "address": self._registry.reached_at(key, service),
                "ports": [{"name": port.name, "number": port.number} for port in service.ports],
            }
            for service in self._registry.view().services.values()
        ]

    def _report(self, key: Key, kind: str, message: Mapping[str, Any]) -> None:
        program = self._registry.programs[key]
        if kind == "listening":
            bound = int(message.get("bound") or 0)
            self._registry.listening(key, int(message["port"]), message.get("address"), bound)
        elif kind == "proxy_ready":
            self._registry.report(key, proxy_ready=bool(message["ready"]))
        elif kind == "program":
            self._registry.report(
                key,
                state=str(message["state"]),
                pid=int(message.get("pid") or 0),
                code=message.get("code"),
                restarts=int(message.get("restarts") or 0),
            )
            # An agent says it again to a control plane that has come back to it.
            if message["state"] == "exited" and program.state != "exited":
                ending = Ending(float(message.get("time") or time.time()), str(message.get("how") or "ended"))
                self.endings.setdefault(key, deque(maxlen=KEPT_ENDINGS)).append(ending)
            self._events.emit(
                "program",
                workload=key[1],
                namespace=key[0],
                state=message["state"],
                code=message.get("code"),
                restarts=int(message.get("restarts") or 0),
            )
        else:
            raise RegistrationRefused(f"There is no message {kind!r}.")
        now = self._registry.programs[key]
        if now.ready and not program.ready and (endings := self.endings.get(key)):
            endings[-1].back = endings[-1].back or time.time()
        if now.ready != program.ready:
            self._events.emit("ready" if now.ready else "unready", workload=key[1], namespace=key[0])
        if now != program:
            self._changed()

    def _notice(self, key: Key, message: Mapping[str, Any]) -> None:
        text, code, count = str(message["text"]), str(message.get("code") or "notice"), int(message.get("count") or 0)
        notices = self.notices.setdefault(key, [])
        before = next((notice for notice in notices if (notice.text, notice.code) == (text, code)), None)
        if before is not None:
            before.count = count or before.count + 1
        else:
            notices.append(Notice(text, code, count or 1))
            del notices[:-KEPT_NOTICES]
        if not message.get("known"):
            self._events.emit("notice", workload=key[1], namespace=key[0], text=text, code=code)

    def _outside_refused(self, key: Key, message: Mapping[str, Any]) -> None:
        refusal = OutsideRefusal(time.time(), str(message["destination"]), str(message["reason"]))
        self.outside_refusals.setdefault(key, deque(maxlen=KEPT_REFUSALS)).append(refusal)

    async def _leave(self, session: Session, key: Key) -> None:
        """Withdraw the endpoints first, and answer when no proxy sends requests there any more."""
        self._registry.report(key, leaving=True)
        self._changed()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._settle()
        session.left = True
        session.send(type="left")

    def _ended(self, session: Session) -> None:
        """Begin the grace of a workload whose connection is gone; the end of its agent's process ends that too."""
        key = session.key
        if key is None or self.sessions.get(key) is not session:
            self._forget(session)
        elif session.left:
            self._gone(key, session)
        else:
            loop = asyncio.get_running_loop()
            self._expiries[key] = loop.call_later(self._grace_seconds, self._gone, key, session)
            # A process that was killed closes its sockets a moment before it counts as ended.
            loop.add_reader(session.pidfd, self._gone, key, session)

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _forget(self, session: Session) -> None:
        for answer in session.answers.values():
            if not answer.done():
                answer.set_result({"problem": "its agent is gone"})
        if session.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(session.pidfd)
            os.close(session.pidfd)
            session.pidfd = -1

    def _gone(self, key: Key, session: Session) -> None:
        self._forget(session)
        if self.sessions.get(key) is not session:
            return
        if (expiry := self._expiries.pop(key, None)) is not None:
            expiry.cancel()
        del self.sessions[key]
        self.notices.pop(key, None)
        self.outside_refusals.pop(key, None)
        self.endings.pop(key, None)
        self.certificates.pop(key, None)
        self._registry.release(key)
        self._wake()
        self._events.emit("gone", workload=key[1], namespace=key[0])
        self.publish_names(self._revision() + 1)  # the one that takes it in
        self._changed()


def is_stopped(agent: str) -> bool:
    """Whether the process `<pid>:<start time>` is stopped by a signal (proc(5), field 3 of stat)."""
    return stat(int(agent.partition(":")[0] or 0))[:1] == [b"T"]


def is_alive(agent: str) -> bool:
    """Whether the process `<pid>:<start time>` still runs; the time tells it from a later one with that pid."""
    pid, _, started = agent.partition(":")
    return bool(agent) and start_time(int(pid)) == int(started) != 0
