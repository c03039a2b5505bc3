"""Fragments are made again exactly when something that they read has changed."""

from __future__ import annotations

from dataclasses import replace

from tests.translate.meshes import applied, destination_rule, mesh, sidecar, virtual_service
from weft.model import Origin, Snapshot
from weft.translate.fragments import Memo
from weft.translate.resource import CLUSTER_LOAD_ASSIGNMENT, ROUTE_CONFIGURATION, affected
from weft.translate.translator import Translator, translate


def made_by(translator: Translator, snapshot: Snapshot, *proxies: str, **changes: str) -> dict[str, int]:
    """Return how many fragments of each kind are made for *proxies* on *snapshot*."""
    before = dict(translator.memo.made)
    for name in proxies or ("service-0-v1-0",):
        translator.translate(snapshot, sidecar(name, **changes))
    return {
        kind: count - before.get(kind, 0)
        for kind, count in translator.memo.made.items()
        if count != before.get(kind, 0)
    }


def changed_route(snapshot: Snapshot, timeout: str = "9s") -> Snapshot:
    route = [{"destination": {"host": "service-7"}}]
    return applied(snapshot, virtual_service("service-7", created=7, http=[{"route": route, "timeout": timeout}]))


def test_one_rule_of_a_thousand_services_makes_one_virtual_host() -> None:
    """A changed rule makes its virtual host again, nothing else, and changes one resource."""
    translator, snapshot = Translator(), mesh(1000)
    before = translator.translate(snapshot, sidecar())
    after = changed_route(snapshot)
    assert made_by(translator, after) == {"virtual host": 1}
    differences = affected(before, translator.translate(after, sidecar()))
    assert {kind: item.changed for kind, item in differences.items()} == {ROUTE_CONFIGURATION: ("9080",)}
    assert not any(item.added or item.removed for item in differences.values())


def test_one_endpoint_of_a_thousand_services_makes_one_assignment() -> None:
    """A workload that is no longer ready makes the endpoints of its service again, not its clusters."""
    translator, snapshot = Translator(), mesh(100, replicas=2)
    before = translator.translate(snapshot, sidecar())
    key = ("default", "service-7-v1-1")
    workloads = {**snapshot.workloads, key: replace(snapshot.workloads[key], ready=False)}
    after = replace(snapshot, workloads=workloads)
    assert made_by(translator, after) == {"endpoints": 1}
    assert set(affected(before, translator.translate(after, sidecar()))) == {CLUSTER_LOAD_ASSIGNMENT}


def test_nothing_is_made_for_an_equal_snapshot() -> None:
    """Equal objects that are other objects, as after a restart, are recognised by their content."""
    translator, snapshot = Translator(), mesh(5)
    translator.translate(snapshot, sidecar())
    assert made_by(translator, mesh(5)) == {}


def test_moved_documents_change_what_is_generated() -> None:
    """Positions are part of what a fragment reads: the origin that `why` shows follows the file."""
    translator, snapshot = Translator(), mesh(5)
    translator.translate(snapshot, sidecar())
    (key, item) = next(entry for entry in snapshot.config.items() if entry[0].name == "service-3")
    moved = replace(item, positions={("spec",): Origin("new.yaml", 40, 3)})
    assert moved == item
    after = replace(snapshot, config={**snapshot.config, key: moved})
    assert made_by(translator, after) == {"virtual host": 1}
    assert translator.translate(after, sidecar()) == translate(after, sidecar())


def test_sidecars_that_stand_alike_share_what_they_have_in_common() -> None:
    """A second sidecar of the namespace makes its own inbound side and listeners only."""
    translator, snapshot = Translator(), mesh(20)
    made_by(translator, snapshot, "service-0-v1-0")
    second = made_by(translator, snapshot, "service-1-v1-0")
    assert set(second) == {"inbound", "listener"}


def test_another_namespace_has_its_own_virtual_hosts() -> None:
    """Short names mean services of the caller's namespace, so virtual hosts are read with the namespace."""
    translator, snapshot = Translator(), mesh(20)
    made_by(translator, snapshot)
    other = made_by(translator, snapshot, namespace="other")
    assert other["virtual host"] == 20
    # Which DestinationRule holds may hang on the client's namespace, but here there is none to ask about.
    assert "clusters" not in other


def test_source_labels_split_only_the_virtual_host_that_asks() -> None:
    """A rule for some callers is read by its virtual host alone."""
    snapshot = applied(
        mesh(10),
        virtual_service(
            "service-3",
            created=3,
            http=[
                {"match": [{"sourceLabels": {"app": "service-1"}}], "route": [{"destination": {"host": "service-4"}}]},
                {"route": [{"destination": {"host": "service-3"}}]},
            ],
        ),
    )
    translator = Translator()
    labels = [{"app": "service-0", "version": "v1"}, {"app": "service-1", "version": "v1"}]
    for index, own in enumerate(labels):
        before = translator.memo.made["virtual host"]
        proxy = sidecar(f"service-{index}-v1-0", labels=own)
        assert translator.translate(snapshot, proxy) == translate(snapshot, proxy)
        made = translator.memo.made["virtual host"] - before
        assert made == (11 if index == 0 else 1)  # all and allow_any; then the one that asks


def test_going_back_and_forth_gives_what_no_memory_gives() -> None:
    """A dry run looks at another snapshot and comes back; the memory follows."""
    translator, one = Translator(), mesh(6)
    other = changed_route(applied(one, destination_rule("service-2", subsets=[{"name": "v1"}])))
    for snapshot in (one, other, one, other, mesh(4), one):
        assert translator.translate(snapshot, sidecar()) == translate(snapshot, sidecar())


def test_what_is_gone_is_forgotten() -> None:
    """A service that has left does not stay in memory for ever."""
    translator = Translator()
    translator.translate(mesh(50), sidecar())
    full = len(translator.memo)
    small = mesh(5)
    for turn in range(2 * Memo.FORGET_EVERY):
        small = changed_route(small, f"{turn + 1}s")
        translator.translate(small, sidecar())
    assert len(translator.memo) < full / 3
    assert translator.translate(small, sidecar()) == translate(small, sidecar())
