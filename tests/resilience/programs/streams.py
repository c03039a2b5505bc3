"""
Callers of `streamed.py` that never stop: `streams.py HOST GRPC_PORT TCP_PORT WEBSOCKET_PORT PAUSE_SECONDS RECORD`.

RECORD has a line for each exchange, as of `client.py`: some messages on a gRPC stream, a TCP connection or a WebSocket, or one gRPC
call. `whole` says whether all that came back is what was sent.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import sys
import threading
import time

import grpc
from websocket import ask, receive, send

host, (grpc_port, tcp_port, websocket_port) = sys.argv[1], map(int, sys.argv[2:5])
pause = float(sys.argv[5])
output = open(sys.argv[6], "a", buffering=1)  # noqa: PTH123, SIM115 - open until the end
lock = threading.Lock()

LIMIT_SECONDS = 20

# A connection that broke is made anew at once, as any caller's here is.
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
]
channel = grpc.insecure_channel(f"{host}:{grpc_port}", options=OPTIONS)
whole_call = channel.unary_unary("/echo.Echo/Whole")
each_call = channel.stream_stream("/echo.Echo/Each")


def messages(dice: random.Random) -> list[bytes]:
    return [dice.randbytes(dice.randrange(1, 20_000)) for _ in range(dice.randrange(1, 5))]


def grpc_whole(dice: random.Random) -> dict[str, object]:
    message = dice.randbytes(dice.randrange(1, 100_000))
    return {"status": 200, "whole": whole_call(message, timeout=LIMIT_SECONDS, wait_for_ready=True) == message}


def grpc_each(dice: random.Random) -> dict[str, object]:
    sent = messages(dice)
    answers = each_call(iter(sent), timeout=LIMIT_SECONDS, wait_for_ready=True)
    return {"status": 200, "whole": list(answers) == sent}


def tcp(dice: random.Random) -> dict[str, object]:
    with socket.create_connection((host, tcp_port), timeout=LIMIT_SECONDS) as connection:
        whole = True
        for message in messages(dice):
            connection.sendall(message)
            back = bytearray()
            while len(back) < len(message):
                if not (data := connection.recv(65536)):
                    raise ConnectionResetError("it ended early")
                back += data
            whole = whole and back == message
    return {"status": 200, "whole": whole}


def websocket(dice: random.Random) -> dict[str, object]:
    with (
        socket.create_connection((host, websocket_port), timeout=LIMIT_SECONDS) as connection,
        connection.makefile("rb") as source,
        connection.makefile("wb") as target,
    ):
        if (status := ask(source, target, f"{host}:{websocket_port}")) != 101:
            return {"status": status, "whole": False}
        whole = True
        for message in messages(dice):
            send(target, message, masked=True)
            if (back := receive(source)) is None:
                raise ConnectionResetError("it ended early")
            whole = whole and back == message
    return {"status": 200, "whole": whole}


def call(number: int, kind: str, exchange) -> None:
    dice = random.Random(number)
    for _ in itertools.count():
        time.sleep(pause)
        line = {"kind": kind, "start": time.monotonic()}
        try:
            line |= exchange(dice)
        except grpc.RpcError as error:
            line |= {"error": error.code().name, "phase": error.details()}
        except OSError as error:
            line |= {"error": type(error).__name__, "phase": str(error)}
        line["end"] = time.monotonic()
        with lock:
            output.write(json.dumps(line) + "\n")


KINDS = {"grpc": grpc_whole, "grpc-stream": grpc_each, "tcp": tcp, "websocket": websocket}
for number, (kind, exchange) in enumerate(KINDS.items()):
    threading.Thread(target=call, args=(number, kind, exchange), daemon=True).start()
threading.Event().wait()
