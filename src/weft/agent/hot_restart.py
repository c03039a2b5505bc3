"""
The parent in Envoy's hot restart: keeps an Envoy's listening sockets beyond its death, so that the next one takes up
where it ended.

A new Envoy asks the process before it for each listening socket, by datagrams of `HotRestartMessage`
(source/server/hot_restart.proto, and hot_restarting_base.cc for the framing). Here that parent is always the agent: every
Envoy is started as the successor of one that is long gone, asks for each socket before it opens it, and the agent makes
what it does not have. So it holds all of them from the first moment; a caller that comes while no Envoy runs waits in
the kernel's queue, and its connection is accepted by the next as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from weft.agent import protobuf, syscalls
from weft.agent.namespaces import in_namespace

LAYOUT_VERSION, LAYOUT_BYTES = 11, 104
"""Of the memory that parent and child share: what `envoy --hot-restart-version` says. Envoy aborts if it is another."""

EPOCH = 1
"""Every process is the first successor: the parent's sockets are named after epoch 0, its own after epoch 1."""

PARENT_SHUTDOWN_SECONDS = 2**32 - 1
"""When Envoy takes its parent for gone and asks it no more: never."""

_SHARED_MEMORY = "/dev/shm/envoy_shared_memory_{}"  # shm_open(3)
_SOCKET_NAME = "weft_hot_restart"
_ADDRESS_BYTES = 108  # of sun_path: Envoy's abstract names fill it with zeros, and these count (unix(7))
_BASE_ID_SCALE = 10  # Envoy multiplies `--base-id` by it, hot_restart_impl.cc
_LENGTH = struct.Struct(">Q")  # before each message
_MESSAGE_BYTES = 4096  # the most that Envoy sends in one datagram; its requests have some hundred
_TCP = "tcp://"


class Place(NamedTuple):
    """Where a socket listens; `namespace` is the path of a network namespace, empty for the agent's own."""

    address: str
    port: int
    namespace: str = ""


KNOWN_PROCESSES = 4
"""How many of the last ones are answered: one that runs, and those that drain behind it."""

_BASE_ID_STEP = 1 << 22  # between those of one parent: above every process id (proc(5), pid_max)


class Parent:
    """
    See the module. Use on the running loop; `close` when the proxy is told to end, `end` once it has ended.

    A process that is being replaced and its successor may both be there, and each believes to be the only child: they
    differ in their base ids.

    Args:
        base_id: Tells apart those who restart hot on one host: its name is in shared memory and in the mesh's network.
    """

    def __init__(self, base_id: int | None = None) -> None:
        self._base_id = os.getpid() if base_id is None else base_id
        self._kept: dict[Place, dict[int, socket.socket]] = {}
        """By place, then by worker."""
        self._closed = False
        self._children: deque[_Child] = deque()
        self._begun = 0
        self._last: _Child | None = None

    @contextlib.contextmanager
    def succession(self) -> Iterator[tuple[list[str], list[int]]]:
        """
        Make ready for the next process; the block starts it, with these arguments and descriptors.

        After one that died without a word to its parent, and so perhaps because of it (another layout of the shared
        memory), the next runs alone, and only the one after that is a successor again.
        """
        alone = self._last is not None and not self._last.heard
        self._last = None
        if not alone:
            # Without /dev/shm here, or with one that is full, it runs alone.
            with contextlib.suppress(OSError):
                self._last = self._expect()
        if self._last is None:
            self.forget()  # it opens its own
            yield ["--disable-hot-restart"], []
            return
        arguments = [
            "--restart-epoch",
            str(EPOCH),
            "--base-id",
            str(self._last.base_id),
            "--socket-path",
            f"@{_SOCKET_NAME}",
        ]
        arguments += ["--parent-shutdown-time-s", str(PARENT_SHUTDOWN_SECONDS), "--skip-hot-restart-parent-stats"]
        yield arguments, []

    def _expect(self) -> _Child:
        """
        Begin to answer one more child; of many only the last ones.

        Raises:
            OSError: Its memory or its channel cannot be made.
        """
        while len(self._children) >= KNOWN_PROCESSES:
            self._leave(self._children.popleft())
        child = _Child(self._base_id + self._begun % KNOWN_PROCESSES * _BASE_ID_STEP)
        self._begun += 1
        self._children.append(child)
        asyncio.get_running_loop().add_reader(child.channel, self._answer, child)
        return child

    def _leave(self, child: _Child) -> None:
        asyncio.get_running_loop().remove_reader(child.channel)
        child.close()

    def prepare(self) -> None:
        """
        Have a successor die with the agent at once, as every proxy does.

        It sets its death signal to SIGTERM (hot_restart_impl.cc) and hears that only between its questions to the
        parent; one without an answer it repeats for ten seconds.
        """
        with contextlib.suppress(OSError):  # no seccomp here: then ten seconds, or until the holder kills it
            syscalls.pin_death_signal()

    def keep_only(self, places: Collection[Place]) -> None:
        """Close what listens elsewhere: the proxy has no listener there any more."""
        for place in self._kept.keys() - set(places):
            self._forget(place)

    def forget(self) -> None:
        """Close all that is kept: who waits in the queues is refused, and the next process gets new sockets."""
        for place in [*self._kept]:
            self._forget(place)

    def close(self) -> None:
        """Keep nothing any more. The process that still runs is answered, or it would wait for ever."""
        self._closed = True
        self.forget()

    def end(self) -> None:
        """The last process has ended."""
        self.close()
        while self._children:
            self._leave(self._children.pop())

    def _forget(self, place: Place) -> None:
        for kept in self._kept.pop(place).values():
            kept.close()

    def _answer(self, child: _Child) -> None:
        """Answer all that was asked until now. Whoever asks waits for nothing else meanwhile."""
        while True:
            try:
                datagram, _, _, asking = child.channel.recvmsg(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            child.has_spoken()
            reply, passed = self._reply(datagram[_LENGTH.size :])
            if reply:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", passed.fileno()))] if passed else []
                with contextlib.suppress(ConnectionError):  # it has died meanwhile
                    child.channel.sendmsg([_LENGTH.pack(len(reply)), reply], rights, 0, asking)

    def _reply(self, message: bytes) -> tuple[bytes, socket.socket | None]:
        """Return what to answer, empty for nothing, and the socket that goes with it."""
        for kind, content in _requests(message):
            if kind == _PASS_LISTEN_SOCKET:
                found = self._socket(content)
                # -1: there is none, and the child opens it. Another value is overwritten with the received descriptor.
                reply = protobuf.number(1, found.fileno() if found else -1)
                return protobuf.field(_REPLY, protobuf.field(_PASS_LISTEN_SOCKET, reply)), found
            if kind == _SHUTDOWN_ADMIN:
                # Nothing was started before this process, and `enable_reuse_port` is true where it is not configured.
                reply = protobuf.number(2, True)
                return protobuf.field(_REPLY, protobuf.field(_SHUTDOWN_ADMIN, reply)), None
            if kind == _STATS:
                return protobuf.field(_REPLY, protobuf.field(_STATS, b"")), None
        return b"", None  # to drain and to end: the parent has no traffic, and stays

    def _socket(self, request: bytes) -> socket.socket | None:
        """Return the socket that a `PassListenSocket` asks for, made if it must be; None if the proxy is to do it."""
        address, worker, namespace = "", 0, ""
        for number, value in protobuf.fields(request):
            match number, value:
                case 1, bytes():
                    address = value.decode()
                case 2, int():
                    worker = value
                case 3, bytes():
                    namespace = value.decode()
        if self._closed or not address.startswith(_TCP):  # a Unix socket is bound anew: its path names the last one
            return None
        host, _, port = address.removeprefix(_TCP).rpartition(":")
        place = Place(str(ip_address(host.strip("[]"))), int(port), namespace)
        if not place.port:  # each that asks for any port means one of its own
            return None
        workers = self._kept.setdefault(place, {})
        if worker not in workers:
            try:
                workers[worker] = _listening_at(place)
            except OSError:  # the proxy tries, too, and says why it could not
                return None
        return workers[worker]


class _Child:
    """
    One process as its parent knows it: what both share.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, base_id: int) -> None:
        self.base_id = base_id
        self.heard = False
        scaled = base_id * _BASE_ID_SCALE
        self._memory = Path(_SHARED_MEMORY.format(scaled))
        name = f"\0{_SOCKET_NAME}_parent_{scaled}".encode()
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.channel.bind(name.ljust(_ADDRESS_BYTES, b"\0"))
            self._share_memory()
        except OSError:
            self.close()
            raise

    def has_spoken(self) -> None:
        """It has mapped the memory before it asked."""
        if not self.heard:
            self.heard = True
            self._unlink()

    def close(self) -> None:
        self._unlink()
        self.channel.close()

    def _share_memory(self) -> None:
        """
        Make what an Envoy of epoch 0 leaves to its successors: version, size, two mutexes and flags, all zero.

        A mutex of zeros is an open one, and a new segment for each process means that nobody died holding it.
        """
        self._unlink()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        with open(os.open(self._memory, flags, 0o600), "wb") as memory:
            memory.write(struct.pack("=QQ", LAYOUT_BYTES, LAYOUT_VERSION).ljust(LAYOUT_BYTES, b"\0"))

    def _unlink(self) -> None:
        """Remove the segment's name; who has mapped it keeps it."""
        self._memory.unlink(missing_ok=True)


_REQUEST, _REPLY = 1, 2
_PASS_LISTEN_SOCKET, _SHUTDOWN_ADMIN, _STATS = 1, 2, 3  # of requests and replies alike


def _requests(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (kind, content) of the request in a `HotRestartMessage`."""
    for number, request in protobuf.fields(message):
        if number == _REQUEST and isinstance(request, bytes):
            for kind, content in protobuf.fields(request):
                if isinstance(content, bytes):
                    yield kind, content


def _listening_at(place: Place) -> socket.socket:
    """
    Return a socket that is bound to *place*, with what Envoy sets before it binds; it listens when Envoy has it do so.

    Raises:
        OSError: It cannot be had.
    """
    if place.namespace:
        return in_namespace(place.namespace, lambda: _listening_at(place._replace(namespace="")))
    family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # each worker has its own
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((place.address, place.port))
    except OSError:
        made.close()
        raise
    return made
