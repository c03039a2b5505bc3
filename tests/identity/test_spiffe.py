"""SPIFFE IDs: what is one, and why something is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.identity import InvalidSpiffeId, SpiffeId, parse, workload_identity
from weft.model import Identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spiffe://cluster.local", SpiffeId("cluster.local")),
        ("spiffe://cluster.local/ns/default/sa/reviews", SpiffeId("cluster.local", "/ns/default/sa/reviews")),
        ("spiffe://a_b-c.9/X/_.-", SpiffeId("a_b-c.9", "/X/_.-")),
        ("spiffe://d/...", SpiffeId("d", "/...")),
        ("spiffe://" + "d" * 255, SpiffeId("d" * 255)),
    ],
)
def test_valid(text: str, expected: SpiffeId) -> None:
    assert parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("https://cluster.local/x", "does not begin with"),
        ("SPIFFE://cluster.local/x", "does not begin with"),
        ("spiffe:/x", "does not begin with"),
        ("spiffe://", "trust domain is missing"),
        ("spiffe:///x", "trust domain is missing"),
        ("spiffe://Cluster.local/x", "lower-case"),
        ("spiffe://cluster.local:80/x", "lower-case"),
        ("spiffe://user@cluster.local/x", "lower-case"),
        ("spiffe://%61/x", "lower-case"),
        ("spiffe://clüster/x", "lower-case"),
        ("spiffe://" + "d" * 256, "longer than 255"),
        ("spiffe://d/", "empty segment"),
        ("spiffe://d/x/", "empty segment"),
        ("spiffe://d//x", "empty segment"),
        ("spiffe://d/./x", "relative"),
        ("spiffe://d/x/..", "relative"),
        ("spiffe://d/x?y", "the path may have"),
        ("spiffe://d/x#y", "the path may have"),
        ("spiffe://d?y", "lower-case"),
        ("spiffe://d/%2e", "the path may have"),
        ("spiffe://d/x y", "the path may have"),
        ("spiffe://d/x\n", "the path may have"),
        ("spiffe://d/" + "x" * 2048, "longer than 2048"),
    ],
)
def test_invalid(text: str, reason: str) -> None:
    with pytest.raises(InvalidSpiffeId, match=reason):
        parse(text)


@given(st.text(alphabet="spife:/abc.%-_ A\n", max_size=40))
def test_what_parses_is_written_back_unchanged(text: str) -> None:
    try:
        found = parse("spiffe://" + text)
    except InvalidSpiffeId:
        return
    assert str(found) == "spiffe://" + text


def test_workload_identity() -> None:
    identity = Identity("cluster.local", "default", "reviews")
    assert workload_identity(str(identity)) == identity
    for text in ("spiffe://d", "spiffe://d/ns/a", "spiffe://d/ns/a/sa/b/c", "spiffe://d/sa/b/ns/a"):
        with pytest.raises(InvalidSpiffeId, match="/ns/<namespace>/sa/<service account>"):
            workload_identity(text)
