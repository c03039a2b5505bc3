"""What a receipt says of a revision."""

from __future__ import annotations

import pytest

from weft.xds.publisher import _index
from weft.xds.status import Ledger, Receipt, RefusedResource

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


def refuse(ledger: Ledger, node: str, name: str) -> None:
    version = next(item.version for item in ledger.resources(node) or () if item.name == name)
    ledger.refused(node, RefusedResource(KIND, name, version, "no"))


def test_only_proxies_whose_contents_differ_are_affected() -> None:
    """The order of resources and publishing the same again change nothing."""
    ledger = Ledger()
    assert record(ledger, 1, a="x=1 y=1", b="x=1") == {"a", "b"}
    assert record(ledger, 2, a="y=1 x=1", b="x=2") == {"b"}
    assert record(ledger, 3, a="x=1", b="x=2") == {"a"}
    assert record(ledger, 4) == frozenset()
    assert ledger.receipt(2).affected == {"b"}
    assert ledger.receipt(4).complete


def test_a_receipt_divides_the_affected() -> None:
    ledger = Ledger()
    record(ledger, 1, a="x=1", b="x=1", c="x=1")
    assert groups(ledger.receipt(1)) == (set(), {"a", "b", "c"}, set())
    ledger.synced("a", 1)
    refuse(ledger, "b", "x")
    receipt = ledger.receipt(1)
    assert groups(receipt) == ({"a"}, {"c"}, {"b"})
    assert receipt.refused["b"][0].message == "no"
    ledger.withdraw("c")
    assert not ledger.receipt(1).complete, "more culprits may be found"
    ledger.synced("b", 1)
    assert ledger.receipt(1).complete
    assert groups(ledger.receipt(1)) == ({"a"}, set(), {"b"})


def test_a_revision_that_was_gathered_into_a_later_one_shares_its_receipt() -> None:
    ledger = Ledger()
    record(ledger, 1, a="x=1")
    assert not ledger.receipt(2).published
    record(ledger, 5, a="x=2")
    assert ledger.receipt(2).published
    assert groups(ledger.receipt(3)) == (set(), {"a"}, set())
    ledger.synced("a", 5)
    assert groups(ledger.receipt(3)) == ({"a"}, set(), set())


def test_a_later_acknowledgement_covers_earlier_revisions() -> None:
    ledger = Ledger()
    record(ledger, 1, a="x=1")
    record(ledger, 2, a="x=2")
    ledger.synced("a", 2)
    assert groups(ledger.receipt(1)) == ({"a"}, set(), set())


def test_who_is_behind_has_not_answered_everything() -> None:
    ledger = Ledger()
    record(ledger, 1, a="x=1", b="x=1")
    assert ledger.behind() == {"a", "b"}
    ledger.synced("a", 1)
    ledger.synced("b", 1)
    assert ledger.behind() == frozenset()
    record(ledger, 2, a="x=2", b="x=1")
    assert ledger.behind() == {"a"}
    ledger.withdraw("a")
    assert ledger.behind() == frozenset()


def test_an_old_refusal_does_not_spoil_a_new_revision() -> None:
    """But it stays in the proxy's status until the resource changes."""
    ledger = Ledger()
    record(ledger, 1, a="x=1 y=1")
    ledger.connected("a", 7)
    refuse(ledger, "a", "x")
    ledger.synced("a", 1)
    record(ledger, 2, a="x=1 y=2")
    ledger.synced("a", 2)
    assert groups(ledger.receipt(2)) == ({"a"}, set(), set())
    assert groups(ledger.receipt(1)) == (set(), set(), {"a"})
    status = ledger.proxies()["a"]
    assert [item.name for item in status.refused] == ["x"]
    assert not status.synced
    record(ledger, 3, a="x=3 y=2")
    assert groups(ledger.receipt(1)) == ({"a"}, set(), set())
    assert not ledger.proxies()["a"].synced
    ledger.synced("a", 3)
    assert ledger.proxies()["a"].synced


def test_a_proxy_that_comes_back_has_to_say_what_it_has() -> None:
    ledger = Ledger()
    record(ledger, 1, a="x=1")
    ledger.connected("a", 1)
    ledger.synced("a", 1)
    ledger.connected("a", 2)
    ledger.disconnected("a", 1)
    assert ledger.proxies()["a"].connected
    assert not ledger.proxies()["a"].synced
    assert groups(ledger.receipt(1)) == (set(), {"a"}, set())
    ledger.disconnected("a", 2)
    assert not ledger.proxies()["a"].connected


def test_a_change_under_the_same_revision_is_not_acknowledged_yet() -> None:
    ledger = Ledger()
    record(ledger, 1, a="x=1")
    ledger.synced("a", 1)
    assert record(ledger, 1, a="x=2", b="x=1") == {"a", "b"}
    assert groups(ledger.receipt(1)) == (set(), {"a", "b"}, set())


def test_what_cannot_be_recorded() -> None:
    ledger = Ledger()
    record(ledger, 2)
    with pytest.raises(ValueError, match="revision 1 is published after revision 2"):
        record(ledger, 1)
    with pytest.raises(ValueError, match="two resources 'x'"):
        record(ledger, 3, a="x=1 x=2")
    assert ledger.revision == 2
