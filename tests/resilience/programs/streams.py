"""
Callers of `streamed.py` that never stop: `streams.py HOST GRPC_PORT TCP_PORT WEBSOCKET_PORT HELD_GRPC HELD_TCP HELD_WEBSOCKET PAUSE_SECONDS RECORD`.

RECORD has a line for each exchange, as of `client.py`: some messages on a gRPC stream, a TCP connection or a WebSocket, or one gRPC
call. `whole` says whether all that came back is what was sent. Those to the held ports (`held-grpc`, `held-tcp`, `held-websocket`) are
one message each, on a connection that is made again only when it is lost; `connection` says which it was.
"""

from __future__ import annotations

import json
import os
import queue
import random
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import grpc
from websocket import ask, receive, send

host, ports = sys.argv[1], [int(port) for port in sys.argv[2:8]]
pause = float(sys.argv[8])
output = open(sys.argv[9], "a", buffering=1)  # noqa: PTH123, SIM115 - open until the end
lock = threading.Lock()

LIMIT_SECONDS = 20
HELD_PAUSE_SECONDS = 0.25
"""Between two messages on a connection that is held: its end is noticed within so long."""

# A connection that broke is made anew at once, as any caller's here is.
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
]
channel, held_channel = (grpc.insecure_channel(f"{host}:{port}", options=OPTIONS) for port in (ports[0], ports[3]))
whole_call = channel.unary_unary("/echo.Echo/Whole")
each_call = channel.stream_stream("/echo.Echo/Each")
held_call = held_channel.stream_stream("/echo.Echo/Each")


def messages(dice: random.Random) -> list[bytes]:
    return [dice.randbytes(dice.randrange(1, 20_000)) for _ in range(dice.randrange(1, 5))]


def grpc_whole(dice: random.Random) -> dict[str, object]:
    message = dice.randbytes(dice.randrange(1, 100_000))
    return {"status": 200, "whole": whole_call(message, timeout=LIMIT_SECONDS, wait_for_ready=True) == message}


def grpc_each(dice: random.Random) -> dict[str, object]:
    sent = messages(dice)
    answers = each_call(iter(sent), timeout=LIMIT_SECONDS, wait_for_ready=True)
    return {"status": 200, "whole": list(answers) == sent}


@contextmanager
def tcp_connection(port: int):
    """Yield what sends a message and returns as many bytes as come back."""
    with socket.create_connection((host, port), timeout=LIMIT_SECONDS) as connection:

        def exchange(message: bytes) -> bytes:
            connection.sendall(message)
            back = b""
            while len(back) < len(message):
                if not (data := connection.recv(65536)):
                    raise ConnectionResetError("it ended early")
                back += data
            return back

        yield exchange


@contextmanager
def websocket_connection(port: int):
    """Yield what sends a message and returns the one that comes back."""
    with (
        socket.create_connection((host, port), timeout=LIMIT_SECONDS) as connection,
        connection.makefile("rb") as source,
        connection.makefile("wb") as target,
    ):
        if (status := ask(source, target, f"{host}:{port}")) != 101:
            raise ConnectionRefusedError(f"the answer was {status}")

        def exchange(message: bytes) -> bytes:
            send(target, message, masked=True)
            if (back := receive(source)) is None:
                raise ConnectionResetError("it ended early")
            return back

        yield exchange


@contextmanager
def grpc_connection():
    """The same on a stream without a deadline."""
    waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers = held_call(iter(waiting.get, None), wait_for_ready=True)

    def exchange(message: bytes) -> bytes:
        waiting.put(message)
        if (back := next(answers, None)) is None:
            raise ConnectionResetError("it ended early")
        return back

    try:
        yield exchange
    finally:
        waiting.put(None)
        answers.cancel()


def tcp(dice: random.Random) -> dict[str, object]:
    with tcp_connection(ports[1]) as exchange:
        return {"status": 200, "whole": all(exchange(message) == message for message in messages(dice))}


def websocket(dice: random.Random) -> dict[str, object]:
    with websocket_connection(ports[2]) as exchange:
        return {"status": 200, "whole": all(exchange(message) == message for message in messages(dice))}


def attempt(kind: str, exchange, **known: object) -> bool:
    """Write the line of one exchange; return whether there was an answer."""
    line = {"kind": kind, "start": time.monotonic()} | known
    try:
        line |= exchange()
    except grpc.RpcError as error:
        line |= {"error": error.code().name, "phase": error.details()}
    except OSError as error:
        line |= {"error": type(error).__name__, "phase": str(error)}
    except Exception as error:  # noqa: BLE001 - a caller that ends would be one that has no complaint
        line["broken"] = repr(error)
    line["end"] = time.monotonic()
    with lock:
        output.write(json.dumps(line) + "\n")
    return not line.keys() & {"error", "broken"}


def call(number: int, kind: str, exchange) -> None:
    dice = random.Random(number)
    while True:
        time.sleep(pause)
        attempt(kind, lambda: exchange(dice))


def hold(number: int, kind: str, connect) -> None:
    dice = random.Random(number)
    while True:
        time.sleep(pause)
        with suppress(OSError), ExitStack() as stack:  # what is lost may not close either
            held = []

            def exchange(held=held, stack=stack) -> dict[str, object]:
                if not held:
                    held.append(stack.enter_context(connect()))
                message = dice.randbytes(dice.randrange(1, 20_000))
                return {"status": 200, "whole": held[0](message) == message}

            which = os.urandom(8).hex()
            while attempt(kind, exchange, connection=which):
                time.sleep(HELD_PAUSE_SECONDS)


KINDS = {"grpc": grpc_whole, "grpc-stream": grpc_each, "tcp": tcp, "websocket": websocket}
HELD = {
    "held-grpc": grpc_connection,
    "held-tcp": lambda: tcp_connection(ports[4]),
    "held-websocket": lambda: websocket_connection(ports[5]),
}
for does, of in ((call, KINDS), (hold, HELD)):
    for number, (kind, how) in enumerate(of.items()):
        threading.Thread(target=does, args=(number, kind, how), daemon=True).start()
threading.Event().wait()
