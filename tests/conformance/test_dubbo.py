"""Dubbo's own consumer and provider, with weft-proxy and with Envoy between: what one answers the other does too."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.proxies import LIMIT, judge
from tests.conformance.rpc import NETWORK, Pair, endpoints, pair
from tests.conformance.upstream import Accepting
from tests.ports import free_port, until_listening

pytestmark = pytest.mark.conformance

SERVICE = "weft.judge.Greeter"


def route(cluster: str, *, method: str = ".*", header: str | None = None, argument: str | None = None) -> Any:
    """A route for a method by its regular expression (Envoy needs one), an attachment `name=value`, a first argument."""
    match: dict[str, Any] = {"method": {"name": {"safe_regex": {"regex": method}}}}
    if argument:
        match["method"]["params_match"] = {"0": {"exact_match": argument}}
    if header:
        name, _, value = header.partition("=")
        match["headers"] = [{"name": name, "string_match": {"exact": value}}]
    return {"match": match, "route": {"cluster": cluster}}


def proxy(*tables: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": f"{NETWORK}.dubbo_proxy.v3.DubboProxy",
        "stat_prefix": "judged",
        "multiple_route_config": {"name": "all", "route_config": list(tables)},
    }


ROUTES = [
    route("blue", header="tenant=blue"),
    route("blue", method="greet", argument="blue"),
    route("nowhere", header="to=nowhere"),
    route("dead", header="to=dead"),
    route("green", method="(?:who|hello|greet|echo|attachment|fail|slow)"),
]


class Consumer:
    """Dubbo's own, which carries out a line and answers with one."""

    def __init__(self, port: int, timeout: int, group: str = "") -> None:
        command = [judge("dubbo", "Java and Maven"), "consumer", str(port), str(timeout), *([group] if group else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def provider(name: str) -> Iterator[int]:
    port = free_port()
    command = [judge("dubbo", "Java and Maven"), "provider", str(port), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        until_listening(port)
        yield port
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(180)
def test_consumers_are_served_as_by_envoy(tmp_path: Path) -> None:
    """Routing by method, attachment and argument, exceptions, errors of the proxy, values of every kind, and fifty calls at once."""
    expected = {
        "who": "ok green",
        "who x tenant=blue": "ok blue",
        "who x tenant=red": "ok green",
        "greet blue": "ok blue from blue",
        "greet red": "ok red from green",
        "attachment traceparent traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": "ok 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",  # noqa: E501
        "fail on-purpose": "failed IllegalStateException on-purpose",
        "typed": "ok same",
        "large 300000": "ok true",
        "many 50": "ok 50",
    }
    # Of errors only the kind is compared: Envoy writes a number where Dubbo reads a text.
    kinds = dict.fromkeys(("hidden", "who x to=nowhere", "who x to=dead"), "failed RpcException")
    connections: dict[str, int] = {}
    with provider("green") as green, provider("blue") as blue:
        clusters = [endpoints("green", green), endpoints("blue", blue), endpoints("dead", free_port())]
        table = {"name": "t", "interface": SERVICE, "routes": ROUTES}
        with pair(tmp_path, proxy(table), clusters) as proxies:
            for name, port in proxies.ports.items():
                consumer = Consumer(port, 20000)
                try:
                    assert {line: consumer(line) for line in expected} == expected, name
                    answers = {line: consumer(line) for line in kinds}
                    assert {line: answer[:19] for line, answer in answers.items()} == kinds, name
                    connections[name] = proxies.stats(name)["envoy_cluster_upstream_cx_total"]
                    if name == "weft":
                        assert f"no route for {SERVICE}.hidden" in answers["hidden"]
                finally:
                    consumer.stop()
            # One to each provider, however many calls are under way; Envoy has one for each call.
            assert connections["weft"] == 2 < connections["envoy"], connections


@pytest.mark.timeout(120)
def test_a_consumer_that_waits_no_longer_is_told_by_weft_proxy(tmp_path: Path) -> None:
    """Both let the consumer's own time pass; afterwards its connection is as good as before."""
    with provider("green") as green:
        table = {"interface": "*", "routes": [route("green")]}
        with pair(tmp_path, proxy(table), [endpoints("green", green)]) as proxies:
            for name, port in proxies.ports.items():
                consumer = Consumer(port, 400)
                try:
                    assert consumer("slow 2000").startswith("failed RpcException"), name
                    assert consumer("who") == "ok green", name
                finally:
                    consumer.stop()


# -------------------------------------------------------------------------------------------------------- message by message


def text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def message(flag: int, identity: int, body: bytes, status: int = 0) -> bytes:
    return struct.pack(">HBBQI", 0xDABB, flag, status, identity, len(body)) + body


def call(identity: int, method: str, *, attachments: dict[str, str], version: str = "1.0", flag: int = 0xC2) -> bytes:
    names = b"".join(text(name) for name in ("2.0.2", SERVICE, version, method, "Ljava/lang/String;"))
    pairs = b"".join(text(key) + text(value) for key, value in attachments.items())
    return message(flag, identity, names + text("x") + b"H" + pairs + b"Z")


def read_message(connection: socket.socket) -> tuple[int, int, int, bytes]:
    """Flag, status, id and body of the next message."""
    stream = connection.makefile("rb")
    _, flag, status, identity, size = struct.unpack(">HBBQI", stream.read(16))
    return flag, status, identity, stream.read(size)


class Endpoint(Accepting):
    """Answers every call with *name*, and adds to *heard* what it was, but for the id."""

    def __init__(self, name: str, heard: list[bytes]) -> None:
        self.name = name
        self.heard = heard
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error):
            while True:
                flag, _, identity, body = read_message(connection)
                self.heard.append(bytes([flag]) + body)
                if flag & 0x40:
                    connection.sendall(message(0x02, identity, b"\x91" + text(self.name), 20))


MESSAGES = {
    "by version": call(1, "go", attachments={}, version="2.0"),
    "by group": call(2, "go", attachments={"group": "special"}),
    "by both": call(3, "go", attachments={"group": "special"}, version="2.0"),
    "in other case": call(4, "go", attachments={"TENANT": "blue"}),
    "of a range": call(5, "in_range", attachments={"number": "41"}),
    "beside the range": call(6, "in_range", attachments={"number": "43"}),
    "without a route": call(7, "other", attachments={}),
    "to a missing cluster": call(8, "go", attachments={"to": "nowhere"}),
    "to a dead endpoint": call(9, "go", attachments={"to": "dead"}),
    "a heartbeat": message(0xE2, 10, b"N"),
    "of the largest id": call(0xFFFFFFFFFFFFFFFF, "go", attachments={}),
    "wrong from the start": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "in another serialization": message(0xC6, 11, b'"2.0.2"\n'),
    "too long": struct.pack(">HBBQI", 0xDABB, 0xC2, 0, 12, 16 * 1024 * 1024 + 1),
    "of no length": struct.pack(">HBBQI", 0xDABB, 0xC2, 0, 13, 0),
}


def ask(port: int, sent: bytes) -> tuple[int, int, int, bytes] | None:
    """The answer to *sent*, without the text of an error; `None` if the connection is closed instead."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.sendall(sent)
        try:
            flag, status, identity, body = read_message(connection)
        except (OSError, struct.error):
            return None
        return flag, status, identity, body if status == 20 else b""


@pytest.mark.timeout(120)
def test_single_messages_get_envoys_answers(tmp_path: Path) -> None:
    """Choice of endpoint, status, id and heartbeats are the same, and so is what an endpoint hears."""
    heard: list[bytes] = []
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(Endpoint(name, heard)).port for name in ("usual", "v2", "special", "blue")}
        clusters = [endpoints(name, port) for name, port in ports.items()] + [endpoints("dead", free_port())]
        ranged = {"name": "number", "range_match": {"start": 40, "end": 43}}
        tables = [
            {"interface": SERVICE, "version": "2.0", "group": "special", "routes": [route("blue", method="go")]},
            {"interface": "weft.*", "version": "2.0", "routes": [route("v2")]},
            {"interface": "*.Greeter", "group": "special", "routes": [route("special")]},
            {
                "interface": "*",
                "routes": [
                    route("blue", header="tenant=blue"),
                    {
                        "match": {"method": {"name": {"exact": "in_range"}}, "headers": [ranged]},
                        "route": {"cluster": "v2"},
                    },
                    route("nowhere", header="to=nowhere"),
                    route("dead", header="to=dead"),
                    route("usual", method="go"),
                ],
            },
        ]
        proxies: Pair = stack.enter_context(pair(tmp_path, proxy(*tables), clusters))
        answers: dict[str, dict[str, Any]] = {}
        seen: dict[str, list[bytes]] = {}
        for name, port in proxies.ports.items():
            heard.clear()
            answers[name] = {what: ask(port, sent) for what, sent in MESSAGES.items()}
            one_way = call(14, "go", attachments={}, flag=0x82)
            # What wants no answer is followed by something that does, on the same connection.
            assert ask(port, one_way + MESSAGES["a heartbeat"]) == answers[name]["a heartbeat"]
            until(lambda: len(heard) == 7)
            seen[name] = sorted(heard)
        assert answers["weft"] == answers["envoy"]
        statuses = {what: None if answer is None else answer[1] for what, answer in answers["weft"].items()}
        assert statuses == {
            **dict.fromkeys(MESSAGES, 20),
            "beside the range": 60,
            "without a route": 60,
            "to a missing cluster": 80,
            "to a dead endpoint": 80,
            **dict.fromkeys(("wrong from the start", "in another serialization", "too long", "of no length")),
        }
        assert seen["weft"] == seen["envoy"]
        weft, envoy = proxies.stats("weft"), proxies.stats("envoy")
        prefix = "envoy_dubbo_"
        counted = {key.removeprefix(prefix): count for key, count in weft.items() if key.startswith(prefix)}
        # Of connections that end in an error Envoy counts the message that it was reading as a call under way.
        del counted["cx_destroy_local_with_active_rq"]
        assert counted == {key: envoy[f"{prefix}judged_{key}"] for key in counted}
        assert counted["request"] == 11


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
