"""gRPC messages read out of frames, however the bytes come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weft.agent.http2 import PREFACE, Messages

DATA, HEADERS, RST_STREAM = 0, 1, 3
END_STREAM, PADDED = 1, 8


def frame(kind: int, stream: int, payload: bytes, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4) + content


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


pieces = st.lists(st.integers(1, 40), max_size=60)


@given(contents=st.lists(st.binary(max_size=60), max_size=6), frames=pieces, reads=pieces)
def test_messages_do_not_depend_on_frames_or_reads(contents: list[bytes], frames: list[int], reads: list[int]) -> None:
    body = b"".join(map(message, contents))
    sent = PREFACE + frame(HEADERS, 1, b"headers") + b"".join(frame(DATA, 1, part) for part in cut(body, frames))
    messages = Messages(PREFACE)
    assert [found for part in cut(sent, reads) for found in messages.feed(part)] == [(1, item) for item in contents]


def test_streams_are_told_apart_and_padding_is_dropped() -> None:
    one, three = message(b"one"), message(b"three")
    sent = frame(DATA, 1, one[:4]) + frame(DATA, 3, b"\x02" + three + b"\0\0", PADDED) + frame(DATA, 1, one[4:])
    assert [*Messages().feed(sent)] == [(3, b"three"), (1, b"one")]


def test_what_is_left_of_a_stream_that_ended_is_forgotten() -> None:
    part = message(b"never whole")[:7]
    sent = frame(DATA, 1, part) + frame(RST_STREAM, 1, bytes(4)) + frame(DATA, 3, part, END_STREAM)
    sent += frame(DATA, 1, message(b"a")) + frame(DATA, 3, message(b"b"))
    assert [*Messages().feed(sent)] == [(1, b"a"), (3, b"b")]
