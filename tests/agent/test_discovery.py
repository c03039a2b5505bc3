"""What is saved of a conversation; tests/conformance/test_envoy_restart.py has Envoy lead one."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.json_format import ParseDict

from tests.agent.test_http2 import DATA, frame, message
from weft.agent.discovery import LISTENER, Conversation, Discovery, Saved, places
from weft.agent.hot_restart import Place
from weft.agent.http2 import PREFACE

ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


class Script:
    """One connection: what the control plane sends and how the proxy answers."""

    def __init__(self, saved: Saved) -> None:
        self._conversation = Conversation(saved)
        self._conversation.from_proxy(memoryview(PREFACE))

    def send(self, type_url: str, nonce: str, *, removed: Collection[str] = (), **resources: bytes) -> None:
        response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, removed_resources=removed)
        for name, value in resources.items():
            made = response.resources.add(name=name, version=f"version of {value!r}")
            made.resource.type_url, made.resource.value = type_url, value
        data = frame(DATA, 1, message(response.SerializeToString()))
        self._conversation.from_control_plane(memoryview(data))

    def answer(self, type_url: str, nonce: str = "", *, refused: str = "", dropped: Collection[str] = ()) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url, response_nonce=nonce, resource_names_unsubscribe=dropped
        )
        if refused:
            request.error_detail.message = refused
        self._conversation.from_proxy(memoryview(frame(DATA, 1, message(request.SerializeToString()))))


def contents(saved: Saved) -> dict[str, bytes]:
    found = {}
    for _, name, version, value in saved.resources():
        assert version == f"version of {value!r}"
        found[name] = value
    return found


def test_what_is_acknowledged_is_saved() -> None:
    saved = Saved()
    script = Script(saved)
    script.send(ENDPOINTS, "1", a=b"one", b=b"two")
    assert contents(saved) == {}
    script.answer(ENDPOINTS, "1")
    assert contents(saved) == {"a": b"one", "b": b"two"}
    script.send(ENDPOINTS, "2", removed=["a"], b=b"three")
    script.answer(ENDPOINTS, "2")
    assert contents(saved) == {"b": b"three"}
    assert saved.resources()[0][0] == ENDPOINTS


def test_what_is_refused_is_not_saved() -> None:
    saved = Saved()
    script = Script(saved)
    script.send(ENDPOINTS, "1", a=b"good")
    script.send(ENDPOINTS, "2", a=b"bad")
    script.answer(ENDPOINTS, "1")
    script.answer(ENDPOINTS, "2", refused="no")
    assert contents(saved) == {"a": b"good"}


def test_what_is_not_asked_for_any_more_is_dropped() -> None:
    saved = Saved()
    script = Script(saved)
    script.send(ENDPOINTS, "1", a=b"one", b=b"two")
    script.answer(ENDPOINTS, "1", dropped=["x"])
    script.answer(ENDPOINTS, dropped=["a"])
    assert contents(saved) == {"b": b"two"}


def test_a_new_connection_adds_to_what_is_saved() -> None:
    saved = Saved()
    first, second = Script(saved), Script(saved)
    first.send(ENDPOINTS, "1", a=b"one")
    first.answer(ENDPOINTS, "1")
    first.send(ENDPOINTS, "2", a=b"never answered")
    second.answer(ENDPOINTS, "2")  # a nonce is one connection's
    second.send(ENDPOINTS, "1", b=b"two")
    second.answer(ENDPOINTS, "1")
    assert contents(saved) == {"a": b"one", "b": b"two"}


def test_only_processes_of_the_agent_are_led(tmp_path: Path) -> None:
    """Whoever is led here is the agent to the control plane."""

    async def test() -> None:
        said: list[str] = []
        never = asyncio.Event()
        with socket.socket(socket.AF_UNIX) as control_plane:
            control_plane.bind(str(tmp_path / "xds.sock"))
            control_plane.listen()
            discovery = Discovery(tmp_path / "xds.sock", tmp_path / "saved.sock", never.wait, Saved(), warn=said.append)
            discovery.open(tmp_path / "led.sock")
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_unix_connection(str(tmp_path / "led.sock"))
                assert await reader.read() == b""  # we are the agent, and not what it has started
                writer.close()
                assert f"process {os.getpid()} " in said[0]
                code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(tmp_path / 'led.sock')!r}); s.sendall(b'led'); s.recv(1)"
                child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
                control_plane.setblocking(False)
                connection, _ = await asyncio.get_running_loop().sock_accept(control_plane)
                with connection:
                    assert await asyncio.get_running_loop().sock_recv(connection, 9) == b"led"
                await child.wait()
            assert len(said) == 1
            await discovery.close()

    asyncio.run(test())


def listener(*addresses: dict[str, object], **more: object) -> bytes:
    first, *others = addresses
    content = {"name": "l", "address": first, "additional_addresses": [{"address": item} for item in others], **more}
    return ParseDict(content, Listener()).SerializeToString()


def test_listeners_are_told_once_they_are_answered() -> None:
    told: list[Collection[Place]] = []
    script = Script(Saved(told.append))
    script.send(LISTENER, "1", one=listener({"socket_address": {"address": "10.0.0.1", "port_value": 80}}))
    assert told == []
    script.answer(LISTENER, "1")
    script.send(ENDPOINTS, "1", a=b"one")
    script.answer(ENDPOINTS, "1")
    script.send(LISTENER, "2", one=listener({"socket_address": {"address": "10.0.0.1", "port_value": 81}}))
    script.answer(LISTENER, "2", refused="the port is taken")
    script.send(LISTENER, "3", removed=["one"])
    script.answer(LISTENER, "3")
    here = Place("10.0.0.1", 80)
    assert told == [[here], [here], []]


def test_what_is_refused_with_others_may_be_there_until_it_is_known() -> None:
    """Envoy takes the good listeners of a response that it refuses; what it then lacks comes alone."""
    told: list[Collection[Place]] = []
    saved = Saved(told.append)
    script = Script(saved)
    good, bad, another = (
        listener({"socket_address": {"address": "10.0.0.1", "port_value": port}}) for port in (80, 81, 82)
    )
    script.send(LISTENER, "1", good=good, bad=bad, another=another)
    script.answer(LISTENER, "1", refused="bad: the port is taken")
    assert contents(saved) == {}
    script.send(LISTENER, "2", good=good)
    script.answer(LISTENER, "2")
    script.send(LISTENER, "3", bad=bad)
    script.answer(LISTENER, "3", refused="bad: the port is taken")
    script.answer(LISTENER, dropped=["another"])
    script.send(LISTENER, "4", good=good)
    script.answer(LISTENER, "4")
    ports = [{place.port for place in places} for places in told]
    assert ports == [{80, 81, 82}, {80, 81, 82}, {80, 82}, {80}]


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        pytest.param(
            [
                {"socket_address": {"address": "0.0.0.0", "port_value": 15001, "network_namespace_filepath": "/ns/a"}},
                {"socket_address": {"address": "::", "port_value": 15001, "network_namespace_filepath": "/ns/a"}},
            ],
            [Place("0.0.0.0", 15001, "/ns/a"), Place("::", 15001, "/ns/a")],
            id="two addresses in a namespace",
        ),
        pytest.param([{"pipe": {"path": "/run/publish-80.sock"}}], [], id="a Unix socket"),
    ],
)
def test_places(addresses: list[dict[str, object]], expected: list[Place]) -> None:
    assert places(listener(*addresses, filter_chains=[{"name": "x"}], stat_prefix="y")) == expected
