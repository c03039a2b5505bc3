"""
Callers that never stop: `client.py URL THREADS PAUSE_SECONDS RECORD`, with one JSON line in RECORD for each request.

`kind` is the kind of request, `start` and `end` are on the monotonic clock of the machine; `status` and `who` say what came, or `error`
and `phase` (`connect`, `request`) why nothing did. `whole` says whether the body was what it had to be.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import random
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

from content import body

url, threads, pause, record = urlsplit(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
lock = threading.Lock()
output = open(record, "a", buffering=1)  # noqa: PTH123, SIM115 - open until the end


def requests(number: int):
    dice = random.Random(number)
    for count in itertools.count():
        kind = dice.choice(("plain", "plain", "jason", "special", "large", "post"))
        path = {"special": "/special/x", "large": f"/bytes/{dice.randrange(1, 200_000)}/{count}"}.get(
            kind, f"/plain/{count}"
        )
        content = dice.randbytes(dice.randrange(1, 50_000)) if kind == "post" else None
        yield kind, path, {"end-user": "jason"} if kind == "jason" else {}, content


def call(number: int) -> None:
    connection: http.client.HTTPConnection | None = None
    for kind, path, headers, content in requests(number):
        time.sleep(pause)
        line = {"kind": kind, "start": time.monotonic()}
        phase = "connect"
        try:
            if connection is None:
                connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            phase = "request"
            connection.request("POST" if content else "GET", path, content, headers)
            response = connection.getresponse()
            data = response.read()
            want = hashlib.sha256(content).hexdigest().encode() if content else body(path)
            line |= {"status": response.status, "who": response.getheader("x-served-by")}
            line |= {"whole": data == want, "flags": data[:120].decode("latin-1") if response.status != 200 else ""}
            if response.will_close:
                connection.close()
                connection = None
        except (OSError, http.client.HTTPException) as error:
            line |= {"error": type(error).__name__, "phase": phase}
            if connection is not None:
                connection.close()
            connection = None
        line["end"] = time.monotonic()
        with lock:
            output.write(json.dumps(line) + "\n")


for number in range(threads):
    threading.Thread(target=call, args=(number,), daemon=True).start()
threading.Event().wait()
