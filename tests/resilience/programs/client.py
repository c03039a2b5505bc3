"""
Callers that never stop: `client.py URL THREADS PAUSE_SECONDS RECORD [--prefix PREFIX] [--extra URL]`, with one JSON line in RECORD
for each request.

PREFIX stands before each kind. `--extra` is a host that is not always there: each request to it has a connection of its own.

`kind` is the kind of request, `start` and `end` are on the monotonic clock of the machine; `status` and `who` say what came, or `error`
and `phase` (`connect`, `request`) why nothing did. `whole` says whether the body was what it had to be; `broken` is what came that
no caller expects.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import itertools
import json
import random
import socket
import threading
import time
from urllib.parse import urlsplit

from content import body

options = argparse.ArgumentParser()
options.add_argument("url", type=urlsplit)
options.add_argument("threads", type=int)
options.add_argument("pause", type=float)
options.add_argument("record")
options.add_argument("--prefix", default="")
options.add_argument("--extra", type=urlsplit)
given = options.parse_args()
record = given.record
lock = threading.Lock()
output = open(record, "a", buffering=1)  # noqa: PTH123, SIM115 - open until the end


KINDS = ("plain", "plain", "jason", "special", "large", "post") + (("extra",) if given.extra else ())


def requests(number: int):
    dice = random.Random(number)
    for count in itertools.count():
        kind = dice.choice(KINDS)
        path = {"special": "/special/x", "large": f"/bytes/{dice.randrange(1, 200_000)}/{count}"}.get(
            kind, f"/plain/{count}"
        )
        content = dice.randbytes(dice.randrange(1, 50_000)) if kind == "post" else None
        yield kind, path, {"end-user": "jason"} if kind == "jason" else {}, content


def connect(url) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def call(number: int) -> None:
    kept: http.client.HTTPConnection | None = None
    for kind, path, headers, content in requests(number):
        time.sleep(given.pause)
        line = {"kind": given.prefix + kind, "start": time.monotonic()}
        connection = None if kind == "extra" else kept
        phase = "connect"
        try:
            if connection is None:
                connection = connect(given.extra if kind == "extra" else given.url)
            phase = "request"
            connection.request("POST" if content else "GET", path, content, headers)
            response = connection.getresponse()
            data = response.read()
            want = hashlib.sha256(content).hexdigest().encode() if content else body(path)
            line |= {"status": response.status, "who": response.getheader("x-served-by")}
            line |= {"whole": data == want, "flags": data[:120].decode("latin-1") if response.status != 200 else ""}
            line |= {"at": connection.sock.getsockname()[1]} if connection.sock else {}
            if response.will_close or kind == "extra":
                connection.close()
                connection = None
        except (OSError, http.client.HTTPException) as error:
            line |= {"error": type(error).__name__, "phase": phase}
            if connection is not None:
                connection.close()
            connection = None
        except Exception as error:  # noqa: BLE001 - a caller that ends would be one that has no complaint
            line["broken"] = repr(error)
            connection = None
        if kind != "extra":
            kept = connection
        line["end"] = time.monotonic()
        with lock:
            output.write(json.dumps(line) + "\n")


for number in range(given.threads):
    threading.Thread(target=call, args=(number,), daemon=True).start()
threading.Event().wait()
