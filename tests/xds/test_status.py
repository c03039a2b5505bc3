"""What a receipt says of a revision."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.xds import status
from weft.xds.journal import Journal
from weft.xds.publisher import _index
from weft.xds.status import Ledger, Receipt, Refusal, RefusedResource

KIND = "type.googleapis.com/envoy.config.cluster.v3.Cluster"


def record(ledger: Ledger, revision: int, **views: str) -> frozenset[str]:
    """Publish views written as `proxy="name=content name=content"`."""
    contents = {
        node: _index(node, [(KIND, *_split(item)) for item in view.split()])  # the same reading as the publisher's
        for node, view in views.items()
    }
    return ledger.record(contents, revision)


def _split(item: str) -> tuple[str, bytes]:
    name, _, value = item.partition("=")
    return name, value.encode()


def groups(receipt: Receipt) -> tuple[set[str], set[str], set[str]]:
    return set(receipt.acknowledged), set(receipt.silent), set(receipt.refused)


def sync(ledger: Ledger, node: str, revision: int, stream: int = 1) -> None:
    """A proxy has everything of *revision*; its stream is opened by it if it has none."""
    _open(ledger, node, stream)
    ledger.synced(node, stream, revision)


def refuse(ledger: Ledger, node: str, name: str, stream: int = 1) -> RefusedResource:
    """A proxy will not have a resource as it is published now; its stream is opened by it if it has none."""
    version = next(item.version for item in ledger.resources(node) or () if item.name == name)
    refused = RefusedResource(KIND, name, version, "no")
    _open(ledger, node, stream)
    ledger.refused(node, stream, refused)
    return refused


def _open(ledger: Ledger, node: str, stream: int) -> None:
    if not ledger.proxies()[node].connected:
        ledger.connected(node, stream)


def test_only_proxies_whose_contents_differ_are_affected() -> None:
    """The order of resources and publishing the same again change nothing."""
    ledger = Ledger(Journal())
    assert record(ledger, 1, a="x=1 y=1", b="x=1") == {"a", "b"}
    assert record(ledger, 2, a="y=1 x=1", b="x=2") == {"b"}
    assert record(ledger, 3, a="x=1", b="x=2") == {"a"}
    assert record(ledger, 4) == frozenset()
    assert ledger.receipt(2).affected == {"b"}
    assert ledger.receipt(4).complete


def test_a_receipt_divides_the_affected() -> None:
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1", b="x=1", c="x=1")
    assert groups(ledger.receipt(1)) == (set(), {"a", "b", "c"}, set())
    sync(ledger, "a", 1)
    refuse(ledger, "b", "x")
    receipt = ledger.receipt(1)
    assert groups(receipt) == ({"a"}, {"c"}, {"b"})
    assert receipt.refused["b"].resources[0].message == "no"
    ledger.withdraw("c")
    assert not ledger.receipt(1).complete, "more culprits may be found"
    sync(ledger, "b", 1)
    assert ledger.receipt(1).complete
    assert groups(ledger.receipt(1)) == ({"a"}, set(), {"b"})


def test_a_revision_that_was_gathered_into_a_later_one_shares_its_receipt() -> None:
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1")
    assert not ledger.receipt(2).published
    record(ledger, 5, a="x=2")
    assert ledger.receipt(2).published
    assert groups(ledger.receipt(3)) == (set(), {"a"}, set())
    sync(ledger, "a", 5)
    assert groups(ledger.receipt(3)) == ({"a"}, set(), set())


def test_a_later_acknowledgement_covers_earlier_revisions() -> None:
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1")
    record(ledger, 2, a="x=2")
    sync(ledger, "a", 2)
    assert groups(ledger.receipt(1)) == ({"a"}, set(), set())


def test_who_is_behind_has_not_answered_everything() -> None:
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1", b="x=1")
    assert ledger.behind() == {"a", "b"}
    sync(ledger, "a", 1)
    sync(ledger, "b", 1)
    assert ledger.behind() == frozenset()
    record(ledger, 2, a="x=2", b="x=1")
    assert ledger.behind() == {"a"}
    ledger.withdraw("a")
    assert ledger.behind() == frozenset()


def test_an_old_refusal_does_not_spoil_a_new_revision() -> None:
    """But it stays in the proxy's status until the resource changes."""
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1 y=1")
    ledger.connected("a", 1)
    refuse(ledger, "a", "x")
    sync(ledger, "a", 1)
    record(ledger, 2, a="x=1 y=2")
    sync(ledger, "a", 2)
    assert groups(ledger.receipt(2)) == ({"a"}, set(), set())
    assert groups(ledger.receipt(1)) == (set(), set(), {"a"})
    status = ledger.proxies()["a"]
    assert [item.name for item in status.refused] == ["x"]
    assert not status.synced
    record(ledger, 3, a="x=3 y=2")
    assert not ledger.proxies()["a"].synced
    sync(ledger, "a", 3)
    assert ledger.proxies()["a"].synced


def test_a_proxy_that_comes_back_has_to_say_what_it_has() -> None:
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1")
    ledger.connected("a", 1)
    sync(ledger, "a", 1)
    ledger.connected("a", 2)
    ledger.disconnected("a", 1)
    assert ledger.proxies()["a"].connected
    assert not ledger.proxies()["a"].synced
    assert groups(ledger.receipt(1)) == (set(), {"a"}, set())
    ledger.disconnected("a", 2)
    assert not ledger.proxies()["a"].connected


def test_what_one_process_of_a_proxy_says_is_not_said_for_the_other() -> None:
    """During a hot restart both serve, each with a stream."""
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1")
    for stream in (1, 2):
        ledger.connected("a", stream)
        sync(ledger, "a", 1, stream=stream)
    record(ledger, 2, a="x=2")
    sync(ledger, "a", 2, stream=1)
    assert not ledger.receipt(2).complete
    assert groups(ledger.receipt(2)) == (set(), {"a"}, set())
    assert ledger.behind() == {"a"}
    sync(ledger, "a", 2, stream=2)
    assert groups(ledger.receipt(2)) == ({"a"}, set(), set())
    record(ledger, 3, a="x=3")
    sync(ledger, "a", 3, stream=2)
    ledger.disconnected("a", 1)
    assert ledger.receipt(3).complete, "who has not answered is gone"


def test_a_stream_that_ends_takes_nothing_from_the_other() -> None:
    """A hot restart that is given up: the new process said nothing, and the old one has what it had, and refuses it."""
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1 y=1", b="x=1")
    for node in "ab":
        sync(ledger, node, 1)
    record(ledger, 2, a="x=bad y=1", b="x=1")
    refuse(ledger, "a", "x")
    sync(ledger, "a", 2)
    for node in "ab":
        ledger.connected(node, 2)
        assert ledger.proxies()[node].acknowledged is None
        ledger.disconnected(node, 2)
    assert [ledger.proxies()[node].acknowledged for node in "ab"] == [2, 1]
    assert [[item.name for item in ledger.proxies()[node].refused] for node in "ab"] == [["x"], []]
    assert [ledger.proxies()[node].synced for node in "ab"] == [False, True]


def test_what_the_new_process_takes_stays_refused_until_the_old_one_is_gone() -> None:
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1")
    refuse(ledger, "a", "x")
    sync(ledger, "a", 1)
    ledger.connected("a", 2)
    sync(ledger, "a", 1, stream=2)
    assert groups(ledger.receipt(1)) == (set(), set(), {"a"})
    ledger.disconnected("a", 1)
    assert groups(ledger.receipt(1)) == ({"a"}, set(), set())


def test_a_change_under_the_same_revision_is_not_acknowledged_yet() -> None:
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1")
    sync(ledger, "a", 1)
    assert record(ledger, 1, a="x=2", b="x=1") == {"a", "b"}
    assert groups(ledger.receipt(1)) == (set(), {"a", "b"}, set())


def test_what_cannot_be_recorded() -> None:
    ledger = Ledger(Journal())
    record(ledger, 2)
    with pytest.raises(ValueError, match="revision 1 is published after revision 2"):
        record(ledger, 1)
    with pytest.raises(ValueError, match="two resources 'x'"):
        record(ledger, 3, a="x=1 x=2")
    assert ledger.revision == 2


def test_what_was_refused_stays_refused_when_it_is_mended() -> None:
    """No proxy ever had it; the receipt says what came in its place, and who has that."""
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=good", b="x=good")
    record(ledger, 2, a="x=bad", b="x=bad")
    refused = refuse(ledger, "a", "x")
    sync(ledger, "a", 2)
    refuse(ledger, "b", "x")
    sync(ledger, "b", 2)
    assert ledger.receipt(2).refused["a"] == Refusal((refused,), None, mended=False)

    record(ledger, 3, a="x=mended", b="x=mended")
    assert ledger.receipt(2).refused["a"] == Refusal((refused,), 3, mended=False)
    sync(ledger, "a", 3)
    refuse(ledger, "b", "x")
    sync(ledger, "b", 3)
    receipt = ledger.receipt(2)
    assert groups(receipt) == (set(), set(), {"a", "b"})
    assert receipt.complete
    assert [receipt.refused[node].mended for node in "ab"] == [True, False], "b refuses what came in its place, too"
    assert groups(ledger.receipt(3)) == ({"a"}, set(), {"b"})
    assert groups(ledger.receipt(1)) == ({"a", "b"}, set(), set())
    record(ledger, 4, a="x=worse", b="x=good")
    refuse(ledger, "a", "x")
    for node in "ab":
        sync(ledger, node, 4)
    assert [ledger.receipt(2).refused[node].mended for node in "ab"] == [True, False], (
        "what came later is another matter"
    )


def test_what_was_refused_may_be_removed_or_mended_in_parts() -> None:
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=bad y=bad")
    refuse(ledger, "a", "x")
    refuse(ledger, "a", "y")
    record(ledger, 2, a="y=bad")
    sync(ledger, "a", 2)
    assert [it.name for it in ledger.receipt(1).refused["a"].resources] == ["x", "y"]
    assert ledger.receipt(1).refused["a"].superseded_by is None, "y is still there"
    record(ledger, 3, a="y=good")
    sync(ledger, "a", 3)
    found = ledger.receipt(1).refused["a"]
    assert (found.superseded_by, found.mended) == (3, True)


def test_a_refusal_that_crosses_the_mending_is_one_of_what_was_refused() -> None:
    """The answer to the first is on its way while the second is published."""
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=bad")
    ledger.connected("a", 1)
    (sent,) = ledger.resources("a") or ()
    record(ledger, 2, a="x=good")
    ledger.refused("a", 1, RefusedResource(KIND, "x", sent.version, "no"))
    sync(ledger, "a", 2)
    found = ledger.receipt(1).refused["a"]
    assert (found.superseded_by, found.mended) == (2, True)
    assert groups(ledger.receipt(2)) == ({"a"}, set(), set())


def test_what_a_proxy_takes_after_all_is_not_refused() -> None:
    """Its port was taken by another program, say, until it started again."""
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1")
    ledger.connected("a", 1)
    refuse(ledger, "a", "x")
    sync(ledger, "a", 1)
    ledger.disconnected("a", 1)
    ledger.connected("a", 2)
    sync(ledger, "a", 1, stream=2)
    assert groups(ledger.receipt(1)) == ({"a"}, set(), set())
    record(ledger, 2, a="x=2")
    assert groups(ledger.receipt(1)) == ({"a"}, set(), set())


def test_who_comes_back_and_refuses_the_same_again_never_had_it() -> None:
    """It is in sync for a moment: until it asks for the routes that it had refused."""
    ledger = Ledger(Journal())
    record(ledger, 1, a="x=1")
    ledger.connected("a", 1)
    refused = refuse(ledger, "a", "x")
    sync(ledger, "a", 1)
    record(ledger, 2, a="x=1 y=1")
    ledger.disconnected("a", 1)
    ledger.connected("a", 2)
    sync(ledger, "a", 2, stream=2)
    assert groups(ledger.receipt(1)) == ({"a"}, set(), set())
    ledger.refused("a", 2, refused)
    assert groups(ledger.receipt(1)) == (set(), set(), {"a"})


def test_the_next_process_knows_what_became_of_each_revision(tmp_path: Path) -> None:
    """Whoever published the bad one was killed; a good one before it is not blamed for it, and a mended one stays refused."""
    path = tmp_path / "receipts.db"
    journal = Journal(path)
    ledger = Ledger(journal)
    record(ledger, 1, a="x=good y=1", b="x=good")
    record(ledger, 2, a="x=bad y=1")
    refuse(ledger, "a", "x")
    sync(ledger, "a", 2)
    record(ledger, 3, a="x=mended y=1")
    sync(ledger, "a", 3)
    record(ledger, 4, a="x=mended y=bad")
    refuse(ledger, "a", "y")
    sync(ledger, "a", 4)
    journal.close()  # nothing is written by it

    journal = Journal(path, last=4)
    ledger = Ledger(journal)
    assert record(ledger, 5, a="x=mended y=bad", b="x=good") == {"a", "b"}
    assert groups(ledger.receipt(1)) == (set(), {"a", "b"}, set())
    sync(ledger, "b", 5)
    refuse(ledger, "a", "y")
    sync(ledger, "a", 5)
    assert groups(ledger.receipt(1)) == ({"a", "b"}, set(), set())
    assert groups(ledger.receipt(3)) == ({"a"}, set(), set())
    found = ledger.receipt(2).refused["a"]
    assert (found.superseded_by, found.mended) == (3, True)
    assert groups(ledger.receipt(4)) == (set(), set(), {"a"})
    record(ledger, 6, a="x=mended y=2")
    sync(ledger, "a", 6)
    found = ledger.receipt(4).refused["a"]
    assert (found.superseded_by, found.mended) == (6, True)
    journal.close()


def test_what_is_forgotten_is_not_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "REMEMBERED_REVISIONS", 2)
    journal = Journal(tmp_path / "receipts.db")
    ledger = Ledger(journal)
    record(ledger, 1, a="x=bad")
    refuse(ledger, "a", "x")
    assert ledger.oldest == 1
    for revision in (2, 3, 4):
        record(ledger, revision, a=f"x={revision}")
    assert ledger.oldest == 3
    assert ledger.receipt(2).complete
    assert ledger.receipt(2).affected == frozenset()
    assert ledger.receipt(3).affected == {"a"}
    assert journal.refusals() == []
    journal.close()
    assert Ledger(Journal(tmp_path / "receipts.db", last=4)).oldest == 3
