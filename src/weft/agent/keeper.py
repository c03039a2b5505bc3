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
    """The sockets of one proxy. Use on the running loop; `close` at the end."""

    def __init__(self) -> None:
        self._kept: dict[str, list[int]] = {}
        self._channel: socket.socket | None = None
        self._unsent: deque[tuple[str, int]] = deque()
        """What is kept and not yet in the channel: (key, descriptor), and at last the end, which has none."""

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
        self._leave()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._channel = ours
        self._unsent.extend((key, descriptor) for key, kept in self._kept.items() for descriptor in kept)
        self._unsent.append(_END)
        asyncio.get_running_loop().add_reader(ours, self._receive)
        self._send()
        return theirs

    def _send(self) -> None:
        """Put into the channel what it holds now, and the rest as the process takes that out."""
        assert self._channel is not None
        loop = asyncio.get_running_loop()
        while self._unsent:
            key, descriptor = self._unsent[0]
            try:
                if (key, descriptor) == _END:
                    self._channel.send(b'"end"\n')
                elif descriptor in self._kept.get(key, ()):
                    line = json.dumps({"keep": json.loads(key)}).encode() + b"\n"
                    socket.send_fds(self._channel, [line], [descriptor])
            except BlockingIOError:
                loop.add_writer(self._channel, self._send)
                return
            except ConnectionError:  # the process has ended already
                self._unsent.clear()
                break
            except OSError:  # too many descriptors are under way (unix(7)): the process opens that address anew
                self._forget(key)
            self._unsent.popleft()
        loop.remove_writer(self._channel)

    def forget(self) -> None:
        """Close all that is kept: who waits in the queues is refused, and the next process opens everything anew."""
        for key in [*self._kept]:
            self._forget(key)

    def close(self) -> None:
        """Keep nothing any more."""
        self._leave()
        self.forget()

    def _leave(self) -> None:
        if self._channel is not None:
            self._receive()
            asyncio.get_running_loop().remove_reader(self._channel)
            asyncio.get_running_loop().remove_writer(self._channel)
            self._channel.close()
            self._channel = None
            self._unsent.clear()

    def _receive(self) -> None:
        """Take in all that the proxy has said until now."""
        assert self._channel is not None
        while True:
            try:
                line, descriptors, _flags, _address = socket.recv_fds(self._channel, _MESSAGE_BYTES, _DESCRIPTORS)
            except BlockingIOError:
                return
            except OSError:
                line, descriptors = b"", []
            if not line:  # the proxy has ended
                asyncio.get_running_loop().remove_reader(self._channel)
                return
            match json.loads(line):
                case {"keep": {**key}}:
                    self._kept.setdefault(json.dumps(key, sort_keys=True), []).extend(descriptors)
                case {"forget": {**key}}:
                    self._forget(json.dumps(key, sort_keys=True))

    def _forget(self, key: str) -> None:
        for descriptor in self._kept.pop(key, ()):
            with contextlib.suppress(OSError):
                os.close(descriptor)
