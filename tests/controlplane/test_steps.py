"""The order of a change across proxies: as a plan, and as a control plane walks it."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from tests.controlplane.peers import Mesh, until
from tests.translate.meshes import service, workload
from weft.api.parse import parse
from weft.controlplane.steps import WHOLE, remaining, steps
from weft.errors import WeftError
from weft.model import Snapshot
from weft.translate.resource import LISTENER

POLICY = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: {mode}}}}}
"""

REVIEWS = service("reviews", 1)
RUNNING = workload(REVIEWS, 0, "10.244.0.7")
PORT = {("default", "reviews-v1-0"): frozenset({9080})}


def mesh_in(mode: str, *, workloads: bool = True) -> Snapshot:
    objects = parse([("f", POLICY.format(mode=mode))]).objects
    return Snapshot(
        config={item.key: item for item in objects},
        services={REVIEWS.hostname: REVIEWS},
        workloads={(RUNNING.namespace, RUNNING.name): RUNNING} if workloads else {},
    )


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("STRICT", "STRICT", []),
        ("STRICT", "UNSET", []),
        ("STRICT", "PERMISSIVE", ["accepts"]),
        ("PERMISSIVE", "STRICT", ["sends"]),
        ("PERMISSIVE", "DISABLE", ["sends"]),
        ("DISABLE", "PERMISSIVE", ["accepts"]),
        ("STRICT", "DISABLE", ["accepts", "sends"]),
        ("DISABLE", "STRICT", ["accepts", "sends"]),
    ],
)
def test_servers_accept_both_while_clients_move(before: str, after: str, what: list[str]) -> None:
    """First servers accept more, under the old configuration; then clients move; last servers accept less."""
    old, new = mesh_in(before), mesh_in(after)
    *moving, last = steps(old, new)
    assert [step.what.split()[2] for step in moving] == what
    assert last is WHOLE
    assert last.show(new) == new
    for step in moving:
        shown = step.show(new)
        assert shown.accepting_both == PORT
        assert shown.config == (old.config if "accepts" in step.what else new.config)


def test_what_remains_begins_with_the_step_that_was_under_way() -> None:
    old, new = mesh_in("STRICT"), mesh_in("DISABLE")
    assert remaining(old, new, 3) == steps(old, new)
    assert remaining(old, new, 2) == steps(old, new)[1:]
    assert remaining(new, new, 2) == (WHOLE,)


@pytest.mark.parametrize(("before", "after"), [("STRICT", "DISABLE"), ("DISABLE", "STRICT")])
def test_a_replica_that_joins_in_the_middle_of_a_change_accepts_both(before: str, after: str) -> None:
    """It is called from the moment it is ready, by clients of either configuration."""
    old, new = mesh_in(before), mesh_in(after)
    widen, move, last = steps(old, new)
    replica = workload(REVIEWS, 1, "10.244.0.8")
    joined = replace(new, workloads={**new.workloads, (replica.namespace, replica.name): replica})
    both = {**PORT, ("default", "reviews-v1-1"): frozenset({9080})}
    assert [step.show(joined).accepting_both for step in (widen, move, last)] == [both, both, {}]


def test_a_workload_that_was_not_there_needs_no_order() -> None:
    """Nobody calls it yet."""
    assert steps(mesh_in("STRICT", workloads=False), mesh_in("DISABLE")) == (WHOLE,)


def test_a_change_of_mode_is_published_in_steps_each_with_its_revision(mesh: Mesh) -> None:
    """The next step comes when every proxy has confirmed the one before; then apply answers, with the last revision."""
    client, server = mesh.running("productpage", port=None), mesh.running("reviews")
    proxies = [mesh.proxy(client), mesh.proxy(server)]
    until(lambda: all(mesh.status(agent.name)["synced"] for agent in (client, server)))
    before = mesh.client.get("/v1/version")["revision"]

    answer = mesh.apply(POLICY.format(mode="DISABLE"))

    assert answer["warnings"] == []
    assert answer["revision"] == before + 3
    assert answer["affected"] == [client.name, server.name]
    summaries = [item["summary"] for item in mesh.client.get("/v1/revisions")[:3]]
    assert ["next step" in summary for summary in summaries] == [True, True, False]
    inbound = [names for type_url, names in proxies[1].received if type_url == LISTENER and "inbound|9080" in names]
    assert len(inbound) == 3, "at first, accepting both, and DISABLE"


def test_while_a_step_waits_agents_are_heard_and_another_edit_waits(mesh: Mesh) -> None:
    """A proxy that never answers holds up the change for a while and is named; the change is made all the same."""
    client, server = mesh.running("productpage", port=None), mesh.running("reviews")
    mesh.proxy(client)
    mesh.proxy(server, silent=True)
    until(lambda: mesh.status(client.name)["synced"])
    answers = []
    applying = threading.Thread(target=lambda: answers.append(mesh.apply(POLICY.format(mode="PERMISSIVE"))))
    applying.start()
    until(lambda: mesh.client.get("/v1/config", kind="PeerAuthentication"), what="the first step published")

    mesh.running("ratings")
    assert not answers, "the step was not waited for"

    applying.join()
    (warning,) = answers[0]["warnings"]
    assert warning["code"] == "late-proxy"
    assert server.name in warning["message"]
    assert "not within 10 s" in warning["message"]
    assert (warning["file"], warning["line"]) == ("test.yaml", 4)
    assert "late" in [event["type"] for event in _events(mesh)]


@pytest.mark.parametrize(("silent", "left"), [("reviews-v1-0", 2), ("productpage-v1-0", 1)])
def test_another_control_plane_goes_on_with_the_step_that_was_under_way(mesh: Mesh, silent: str, left: int) -> None:
    """Killed while servers, or then their clients, have not confirmed: nobody is sent a later step before they have."""
    agents = [mesh.running("productpage", port=None), mesh.running("reviews")]
    proxies = {agent.name: mesh.proxy(agent) for agent in agents}
    until(lambda: all(mesh.status(agent.name)["synced"] for agent in agents))
    known = {name: {url: dict(names) for url, names in proxy.versions.items()} for name, proxy in proxies.items()}
    proxies[silent].close()
    waiting = mesh.proxy(next(agent for agent in agents if agent.name == silent), known=known[silent], silent=True)
    until(lambda: mesh.status(silent)["connected"])
    revision = mesh.client.get("/v1/version")["revision"]

    applying = threading.Thread(target=_apply_until_killed, args=(mesh, POLICY.format(mode="DISABLE")))
    applying.start()
    waiting.wait(lambda it: it.received)
    mesh.kill()
    applying.join()

    mesh.start(ready=False)
    for agent in agents:
        versions = known[agent.name] if agent.name == silent else proxies[agent.name].versions
        proxies[agent.name] = mesh.proxy(agent, known=versions)
        agent.reconnect()
        agent.send(type="proxy_ready", ready=True)
    agents[1].send(type="listening", port=9080, address="127.0.0.1")
    until(mesh._answers)

    def steps_since() -> int:
        since = [item for item in mesh.client.get("/v1/revisions") if item["revision"] > revision]
        return sum("next step" in item["summary"] for item in since)

    until(lambda: steps_since() == 2, what="the whole change")
    until(lambda: all(mesh.status(agent.name)["synced"] for agent in agents))
    took = proxies["reviews-v1-0"].received
    assert sum("inbound|9080" in names for type_url, names in took if type_url == LISTENER) == left


def _apply_until_killed(mesh: Mesh, text: str) -> None:
    with pytest.raises(WeftError):
        mesh.apply(text)


def _events(mesh: Mesh) -> list[dict[str, object]]:
    """Return what has happened until now."""
    found = []
    for event in mesh.client.events(replay=500):
        found.append(event)
        if event["type"] == "late":
            break
    return found
