"""
Changes under load: random changes of rules, hosts, policies, programs and mutual TLS while callers never stop; some of them
call through another program, and so through four proxies, and some come by the gateway.

Each answer is compared with what the reference evaluator allows for the configurations that were in force while the request was
under way: during a change the old or the new one. Everything else, a 503 of any kind above all, is a failure. That a change is in
effect when it has been acknowledged is a promise of time: on a busy machine one in a few may be late, by a second. In the end
every proxy holds exactly what `translate` made for it, and makes anew: the control plane, which has made each part of it from what it
remembered of the changes before, is killed, and the one that comes and remembers nothing has nothing else to tell.

WEFT_CHANGES says how many changes there are, WEFT_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import pytest

from tests.e2e.conftest import Person, eventually
from tests.resilience.changes import EXTRA_OPTIONS, REQUESTS, Driver, called_from_outside
from tests.resilience.conftest import Loaded, loaded, until_steady
from weft.data_plane import ENVOY, WEFT_PROXY

CHANGES = int(os.environ.get("WEFT_CHANGES", "40"))

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600 + CHANGES)]

PLANES = {
    "weft-proxy": frozenset[str](),
    # Every pair of caller and callee: W and E stand for the two.
    #   caller W -> relay E -> server-v1 W, server-v2 E;  client W -> server-v1 W, server-v2 E;  the gateway is an Envoy
    "mixed": frozenset({"relay", "server-v2", "ingressgateway"}),
    "envoy": frozenset({"server-v1", "server-v2", "client", "relay", "caller", "ingressgateway"}),
}
"""Which programs and gateways have an Envoy; all others have weft-proxy."""


@pytest.mark.parametrize("planes", PLANES)
def test_no_request_is_lost_to_a_change(person: Person, planes: str) -> None:
    seed = int(os.environ.get("WEFT_SEED") or time.time_ns() % 1_000_000)
    print(f"WEFT_SEED={seed}")
    joining = {"weft-proxy": [WEFT_PROXY], "envoy": [ENVOY]}.get(planes, [WEFT_PROXY, ENVOY])
    options = {"chained": True, "more": EXTRA_OPTIONS, "envoys": PLANES[planes]}
    with (
        loaded(person, f"changes-{planes}", threads=3, pause=0.01, **options) as mesh,
        called_from_outside(mesh, threads=2, pause=0.01),
    ):
        mesh.traffic.forget()
        driver = Driver(mesh, person, random.Random(seed), joining)
        try:
            judged = Counter[str]()

            def judge() -> None:
                new = mesh.traffic.take()
                judged.update(line["kind"] for line in new)
                faults = driver.timeline.faults(new)
                assert not faults, (
                    f"after change {len(driver.done)} ({driver.done[-3:]}): {len(faults)} of {len(new)}: {faults[:3]}"
                )

            for kind in driver.kinds(CHANGES):
                driver.change(kind)
                judge()
                driver.timeline.forget()
            until_steady(lambda: mesh.differences() or True, "every proxy holds what it should")
            made_from_nothing_the_same(mesh)
            over, late = driver.timeline.over, len(driver.timeline.late)
            print(f"{planes}: {CHANGES} changes, {late} of {over} steps in effect late, {dict(judged)}")
            assert judged.total() > CHANGES

            seen = judged.copy()

            def all_call() -> object:
                judge()
                return sorted(kind for kind in REQUESTS if judged[kind] == seen[kind]) or True

            until_steady(all_call, "every caller still calls")
            assert driver.timeline.is_prompt, f"{late} of {over} steps of changes were in effect late"
        finally:
            driver.end()


def made_from_nothing_the_same(mesh: Loaded) -> None:
    """Compare what is published with what a control plane publishes that has seen none of the changes."""
    before = {workload: mesh.published(workload) for workload in mesh.status()}
    pid = mesh.mesh.pids()["control-plane"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: mesh.mesh.pids()["control-plane"] != pid, "another control plane")
    until_steady(lambda: mesh.status().keys() == before.keys() or sorted(mesh.status()), "every proxy is back")
    until_steady(lambda: mesh.differences() or True, "every proxy holds what it should")
    assert {workload: mesh.published(workload) for workload in before} == before
