"""Label selectors, by Kubernetes' own table of what they mean (labels, "Label selectors" of its documentation)."""

from __future__ import annotations

import pytest

from weft.cli.selectors import parse, selected
from weft.errors import UsageError

LABELS = {"app": "reviews", "version": "v1", "example.com/tier": "back", "empty": ""}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("app=reviews", True),
        ("app==reviews", True),
        ("app = ratings", False),
        ("app!=ratings", True),
        ("app!=reviews", False),
        ("other!=x", True),  # what has no such label is not x
        ("other=", False),
        ("empty=", True),
        ("empty", True),
        ("version in (v1,v2)", True),
        ("version in(v2, v3)", False),
        ("version notin (v2, v3)", True),
        ("other notin (x)", True),
        ("version notin (v1)", False),
        ("example.com/tier", True),
        ("!example.com/tier", False),
        ("!other", True),
        ("app=reviews,version in (v1, v2),!other", True),
        ("app=reviews, version=v2", False),
        ("in in (a)", False),
    ],
)
def test_what_a_selector_selects(text: str, holds: bool) -> None:
    assert selected(parse(text), {"metadata": {"labels": LABELS}}) is holds


def test_an_object_without_labels_has_none() -> None:
    assert selected(parse("!app"), {"metadata": {}})
    assert not selected(parse("app"), {"metadata": {"labels": None}})
    assert selected(None, {"metadata": {}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "-l '': a requirement is missing there."),
        ("app=a,", "-l 'app=a,': a requirement is missing at the end."),
        ("app=a b", "-l 'app=a b': 'app=a b' is no requirement of labels. Write key=value"),
        ("a,b>1", "-l 'a,b>1': 'b>1' is no requirement of labels."),
        ("app in v1", "'app in v1' is no requirement of labels."),
        ("app in (v1", "'app in (v1' is no requirement of labels."),
        ("-app=a", "a label's key is letters"),
        ("app=a*", "a label's value is at most 63"),
    ],
)
def test_what_is_no_selector_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert says in str(refused.value)
