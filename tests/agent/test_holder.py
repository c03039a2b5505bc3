"""The channels between `weft up`, the holder and the agents."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from weft.agent.holder import DATAGRAM_BYTES, Channel


@pytest.mark.parametrize("size", [10, DATAGRAM_BYTES - 100, DATAGRAM_BYTES, 150_000, 5_000_000])
def test_a_message_of_any_size_arrives_whole(size: int) -> None:
    """A whole environment, or the last lines of a program: beyond what the kernel takes as one datagram."""
    one, other = Channel.pair()
    before = descriptors()
    for text in ("x" * size, "last"):
        one.send(text=text)
        assert other.receive() == {"text": text}
    assert descriptors() == before
    one.close()
    assert other.receive() is None
    other.send(text="x" * size)  # nobody is there any more, which is no error
    other.close()


def test_messages_of_several_writers_do_not_mix() -> None:
    """All agents of a mesh write into one channel, each when it likes."""
    reader, writer = Channel.pair()
    texts = sorted(letter * size for letter in "abcd" for size in (1, 1000, DATAGRAM_BYTES, 300_000))
    with ThreadPoolExecutor() as writers:
        sent = [writers.submit(writer.send, text=text) for text in texts]
        received = [reader.receive() for _ in texts]
        for item in sent:
            item.result()
    assert sorted(message["text"] for message in received if message) == texts
    reader.close()
    writer.close()


def descriptors() -> set[str]:
    """Return which descriptors this process has."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}
