"""
Keys of every level are rotated in a whole mesh under load, with its real agents: no request is lost, and no connection.

What tests/live/test_rotation.py does for minutes with parts of agents, on HTTP, is done here a few times with all of it: gRPC, TCP and
WebSocket on connections that are held, through four proxies and by the gateway.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import DATA_PLANES, Person
from tests.resilience.changes import HELD
from tests.resilience.conftest import Loaded, loaded, until_steady
from tests.resilience.test_hot_restart import STREAMING, answered

ROUNDS = int(os.environ.get("WEFT_CRASHES", "2"))

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300 + 60 * ROUNDS),
    pytest.mark.parametrize("person", DATA_PLANES, indirect=True, scope="module"),
]

THREADS = 2

SECOND = 1.1


@pytest.fixture(scope="module")
def mesh(person: Person) -> Iterator[Loaded]:
    with loaded(person, "rotated", threads=THREADS, chained=True, streams=True) as mesh:
        until_steady(mesh.is_whole, "the mesh is whole")
        mesh.traffic.forget()
        yield mesh


@pytest.mark.parametrize("what", ["intermediate", "root"])
def test_no_connection_is_lost_to_a_rotation(mesh: Loaded, what: str) -> None:
    held = answered(mesh, time.monotonic()).keys()
    assert len(held) == STREAMING * len(HELD)
    for _ in range(ROUNDS):
        before = mesh.expiries()
        until_steady(lambda: trusted_everywhere(mesh), "the standby root is trusted")
        done = mesh.mesh.person.weft("ca", "rotate", f"--{what}", "--mesh", mesh.paths.mesh)
        assert done.returncode == 0, done.stderr
        until_steady(lambda before=before: mesh.have_others(before), "all have other ones")
        rotated = time.monotonic()
        # Certificates that are made within one second end in the same one, and those of the next round must be told from these.
        mesh.traffic.wait_for(THREADS * 40, rotated + SECOND)
        assert answered(mesh, rotated).keys() == held
    assert mesh.lost() == []
    until_steady(mesh.is_whole, "every proxy holds what it should")


def trusted_everywhere(mesh: Loaded) -> object:
    """Whether every proxy trusts the standby root; else who does not."""
    return mesh.client.get("/v1/ca")["not_trusting"] or True
