"""Explicit mode from a program's side: what it is told, where it is found, and what is said of one that does otherwise."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from weft.agent import explicit, sockets
from weft.agent.agent import failed_by_itself
from weft.errors import UsageError, WeftError
from weft.model import loopback

SERVICES = (
    {
        "name": "ratings",
        "namespace": "default",
        "address": "127.77.3.4",
        "ports": [{"name": "http-9080", "number": 9080}, {"name": "grpc", "number": 9090}],
    },
    {"name": "my-db", "namespace": "default", "address": "127.77.3.5", "ports": [{"name": "tcp", "number": 3306}]},
    {"name": "hidden", "namespace": "other", "address": "127.77.3.6", "ports": []},
)


def place(address: str = "127.77.3.1", **ports: int) -> explicit.Place:
    """Return a place with the declared ports 9080 and 9090; at an address that nobody binds, unless it is `free_address`."""
    told = {9080: ports.get("first", 20001), 9090: ports.get("second", 20002)}
    return explicit.Place("cart-v1-0", address, "default", explicit.Credential("s-e_c"), told, SERVICES)


@pytest.fixture(scope="module")
def free_address() -> Iterator[str]:
    """A workload's address that is nobody else's on this machine: of a range that is held meanwhile, as a mesh holds its own."""
    cidr, claim = explicit.claim_range(f"tests-{os.getpid()}")
    with claim:
        yield str(IPv4Address(cidr.partition("/")[0]) + 3 * loopback.WORKLOAD_ADDRESSES + 1)


def test_a_program_is_told_where_to_listen_and_whom_to_call() -> None:
    told = place().environment({"NO_PROXY": "intern.example,localhost"})
    assert (told["HOST"], told["PORT"]) == ("127.77.3.254", "20001")
    assert (told["PORT_9080"], told["PORT_9090"]) == ("20001", "20002")
    assert told["HTTP_PROXY"] == told["http_proxy"] == "http://weft:s-e_c@127.77.3.1:15001"
    assert told["NO_PROXY"] == told["no_proxy"] == "intern.example,localhost,127.0.0.1,::1"
    assert (told["RATINGS_SERVICE_HOST"], told["RATINGS_SERVICE_PORT"]) == ("127.77.3.4", "9080")
    assert (told["RATINGS_SERVICE_PORT_HTTP_9080"], told["RATINGS_SERVICE_PORT_GRPC"]) == ("9080", "9090")
    assert told["MY_DB_SERVICE_HOST"] == "127.77.3.5"
    assert not [name for name in told if name.startswith("HIDDEN") or name.lower() == "https_proxy"]


def test_a_client_is_told_no_place_to_listen() -> None:
    client = explicit.Place("curl-v1-0", "127.77.3.1", "default", explicit.Credential(), {}, ())
    assert not {"HOST", "PORT"} & client.environment({}).keys()


def test_the_control_plane_never_learns_the_secret() -> None:
    credential = explicit.Credential()
    assert credential.secret not in json.dumps(credential.local_caller())
    assert credential.secret not in repr(credential)
    assert credential.local_caller()["uid"] == os.getuid()
    assert explicit.Credential().secret != credential.secret


def test_ports_for_programs_can_be_bound_on_every_address() -> None:
    chosen = explicit.choose_ports("cart-v1-0", [9080, 9090])
    assert len(set(chosen.values())) == 2
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", chosen[9080]))
        taken.listen()
        assert explicit.choose_ports("cart-v1-0", [9080])[9080] != chosen[9080]


def test_two_meshes_never_have_one_range() -> None:
    shop = f"shop-{os.getpid()}"  # another run beside this one has a shop, too
    first, claim = explicit.claim_range(shop)
    with claim:
        second, other = explicit.claim_range(shop)
        other.close()
        assert first != second
        with pytest.raises(WeftError, match="another mesh's"):
            explicit.claim_range(shop, first)
    again, claim = explicit.claim_range(shop)
    claim.close()
    assert again == first


def test_ranges_of_which_no_addresses_can_be_made_are_refused() -> None:
    explicit.check_ranges("", "")
    explicit.check_ranges("127.77.0.0/16", "240.240.7.0/24")
    with pytest.raises(UsageError, match=r"a /16 of the loopback, such as 127\.77\.0\.0/16, or left out"):
        explicit.check_ranges("10.244.0.0/16", "")
    with pytest.raises(UsageError, match=r"addresses\.services` is 240\.0\.0\.0/16; in explicit mode it is a /24"):
        explicit.check_ranges("", "240.0.0.0/16")


LISTEN = """
import socket, sys
kept = []
for text in sys.argv[1:]:
    host, port = text.rsplit(":", 1)
    kept.append(socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET))
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def listening(*places: str) -> Iterator[int]:
    """Run a program that listens at *places*; its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, *places], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        yield program.pid
        program.kill()


def test_a_program_is_found_where_its_own_processes_listen(free_address: str) -> None:
    ports = explicit.choose_ports("cart-v1-0", [9080, 9090])
    mine = place(free_address, first=ports[9080], second=ports[9090])
    with listening(f"{mine.host}:{ports[9080]}", f"::1:{ports[9090]}") as pid:
        look = mine.look([pid])
        assert look.found == {9080: (mine.host, ports[9080]), 9090: ("::1", ports[9090])}
        assert (look.exposed, explicit.misplaced(mine, look)) == ((), "")
        # Somebody else's socket at the very same place is not the program's.
        assert mine.look([os.getpid()]).found == {}
        assert pid in sockets.descendants(os.getpid())
        assert f"(process {pid})" in sockets.holder_of(ports[9080])


def test_a_program_that_listens_elsewhere_is_named_with_the_remedy() -> None:
    stray = explicit.choose_ports("stray", [1])[1]
    with listening(f"0.0.0.0:{stray}") as pid:
        look = place().look([pid])
        assert (look.found, look.exposed) == ({}, (stray,))
        said = explicit.misplaced(place(), look)
        assert said.startswith(f"cart-v1-0 listens at 0.0.0.0:{stray}, which nobody calls.")
        assert "127.77.3.254:20001" in said
        assert "$HOST:$PORT" in said
        assert str(stray) in explicit.exposed(place(), look)


@contextmanager
def proxied(address: str) -> Iterator[explicit.Place]:
    """Yield a place whose proxy has the declared ports 9080 and 9090, as the kernel shows it."""
    mine = place(address)
    with listening(*(f"{mine.address}:{number}" for number in mine.ports)):
        yield mine


@pytest.mark.parametrize(
    ("last", "number"),
    [
        (["Error: listen EADDRINUSE: address already in use :::9090"], 9090),
        (["listen tcp :9080: bind: address already in use"], 9080),
        (["Web server failed to start. Port 9090 was already in use."], 9090),
        (["[ERROR] Connection in use: ('0.0.0.0', 9090)", "[ERROR] Can't connect to ('0.0.0.0', 9090)"], 9090),
    ],
)
def test_a_program_whose_port_is_its_proxys_is_named_with_the_remedy(
    last: list[str], number: int, free_address: str
) -> None:
    with proxied(free_address) as mine:
        said = explicit.collided(mine, (), ["Traceback", *last])
    assert said.startswith(f"cart-v1-0 ended because port {number} is taken: by its proxy.")
    assert ("$HOST:$PORT_9090" if number == 9090 else '$HOST:$PORT"') in said


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 98] Address already in use",
        "Error: That port is already in use.",
        "12:30:45 main.go:31: address already in use",
    ],
)
def test_where_the_text_names_no_port_the_one_that_the_kernel_leaves_is_likely(line: str, free_address: str) -> None:
    with proxied(free_address) as mine:
        for listened, number in (((), 9080), ((9080,), 9090)):
            said = explicit.collided(mine, listened, [line])
            assert said.startswith(f"cart-v1-0 ended because a port is taken, most likely {number}: by its proxy.")


@pytest.mark.parametrize("last", [[], ["KeyError: 'PORT'"]])
def test_of_a_program_that_says_nothing_of_ports_nothing_is_claimed(last: list[str], free_address: str) -> None:
    """As of one that has the terminal."""
    with proxied(free_address) as mine:
        said = explicit.collided(mine, (), last)
    assert said.startswith("cart-v1-0 ended before it listened where its proxy calls it. If it tried port 9080:")
    assert "$HOST:$PORT" in said


@pytest.mark.parametrize(
    "line",
    ["listen tcp :6060: bind: address already in use", "bind() to 0.0.0.0:80 failed (98: Address already in use)"],
)
def test_a_port_that_is_not_declared_is_no_collision_with_the_proxy(line: str, free_address: str) -> None:
    with proxied(free_address) as mine:
        assert explicit.collided(mine, (), [line]) == ""


def test_what_the_kernel_shows_is_no_collision_whatever_the_program_says(free_address: str) -> None:
    line = "OSError: [Errno 98] Address already in use"
    with proxied(free_address) as mine:
        assert explicit.collided(mine, (9080, 9090), [line]) == ""
    assert explicit.collided(place(free_address), (), [line]) == ""  # nobody has the ports


@pytest.mark.parametrize(
    ("code", "failed"),
    [(0, False), (1, True), (255, True), (127, False), (-15, False), (130, False), (-6, True), (134, True)],
)
def test_a_program_that_was_ended_has_not_failed_by_itself(code: int, failed: bool) -> None:
    assert failed_by_itself(code) is failed
