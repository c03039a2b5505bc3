"""
Keeps a proxy's listening sockets beyond its death, so that the next one takes up where it ended.

The proxy sends a duplicate of each socket that it opens, over a channel that it inherits; the agent holds them and gives
them to the next process before that starts (docs/reference/interfaces.md, 4.5a). A caller that comes in between waits in
the kernel's queue and is not refused. What the keys mean only the proxy knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Iterator

_MESSAGE_BYTES = 4096
_DESCRIPTORS = 4  # of one message; the proxy sends one
_END = ("", -1)


class Keeper:
    """
    The sockets of one proxy. Use on the running loop; `close` at the end.

    A process that is being replaced and its successor may both be there: each has a channel of its own.
    """

    def __init__(self) -> None:
        self._kept: dict[str, list[int]] = {}
        self._unsent: dict[socket.socket, deque[tuple[str, int]]] = {}
        """By channel, what is kept and not yet in it: (key, descriptor), and at last the end, which has none."""

    @contextlib.contextmanager
    def succession(self) -> Iterator[tuple[list[str], list[int]]]:
        """See `weft.agent.proxy.ListenerKeeper`."""
        with self.channel() as channel:
            yield ["--keeper-fd", str(channel.fileno())], [channel.fileno()]

    def prepare(self) -> None:
        """Nothing: the channel is inherited."""

    def channel(self) -> socket.socket:
        """
        Return the end of a new channel for the next process to inherit, with everything that is kept in it.

        The caller closes its copy once the process has started.
        """
        for other in [*self._unsent]:
            self._receive(other)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._unsent[ours] = deque((key, descriptor) for key, kept in self._kept.items() for descriptor in kept)
        self._unsent[ours].append(_END)
        asyncio.get_running_loop().add_reader(ours, self._receive, ours)
        self._send(ours)
        return theirs

    def forget(self) -> None:
        """Close all that is kept: who waits in the queues is refused, and the next process opens everything anew."""
        for key in [*self._kept]:
            self._forget(key)

    def close(self) -> None:
        """Keep nothing any more."""
        for channel in [*self._unsent]:
            self._leave(channel)
        self.forget()

    def _send(self, channel: socket.socket) -> None:
        """Put into *channel* what it holds now, and the rest as the process takes that out."""
        loop = asyncio.get_running_loop()
        unsent = self._unsent[channel]
        while unsent:
            key, descriptor = unsent[0]
            try:
                if (key, descriptor) == _END:
                    channel.send(b'"end"\n')
                elif descriptor in self._kept.get(key, ()):
                    line = json.dumps({"keep": json.loads(key)}).encode() + b"\n"
                    socket.send_fds(channel, [line], [descriptor])
            except BlockingIOError:
                loop.add_writer(channel, self._send, channel)
                return
            except ConnectionError:  # the process has ended already
                unsent.clear()
                break
            except OSError:  # too many descriptors are under way (unix(7)): the process opens that address anew
                self._forget(key)
            unsent.popleft()
        loop.remove_writer(channel)

    def _receive(self, channel: socket.socket) -> None:
        """Take in all that the process at the other end of *channel* has said until now."""
        while True:
            try:
                line, descriptors, _flags, _address = socket.recv_fds(channel, _MESSAGE_BYTES, _DESCRIPTORS)
            except BlockingIOError:
                return
            except OSError:
                line, descriptors = b"", []
            if not line:  # it has ended
                self._leave(channel)
                return
            match json.loads(line):
                case {"keep": {**key}}:
                    self._kept.setdefault(json.dumps(key, sort_keys=True), []).extend(descriptors)
                case {"forget": {**key}}:
                    self._forget(json.dumps(key, sort_keys=True))

    def _leave(self, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(channel)
        loop.remove_writer(channel)
        channel.close()
        del self._unsent[channel]

    def _forget(self, key: str) -> None:
        for descriptor in self._kept.pop(key, ()):
            with contextlib.suppress(OSError):
                os.close(descriptor)
