"""What RE2 takes for a regular expression, what it does not, and what weft-proxy would read otherwise."""

from __future__ import annotations

import pytest
from envoy.config.route.v3 import route_pb2

from weft import _native
from weft.api.regex import MAX_LENGTH, fault

TAKEN = [
    "", ".*", "^(.*?;)?(user=jason)(;.*)?$", "a{2,3}?", "a{1,}", "[a-z]", "[]a]", "[^]a]", "[-a]", "[a-]", "(?i)x",
    "(?i:x)", "(?s-i:x)", "(?P<n>x)", "(?<n>x)", r"\d+\.\w", "[[:alpha:]]", "[[:^digit:]x]", "a|b|", "()", "(|a)",
    "/status/[0-9]{3}", r"\x7F", r"\Aa\z", r"\bword\b", "^*", r"[\d\-]", r"[\]\\]", "}", "a}", r"\{", "é",
]  # fmt: skip

NOT_TAKEN = {
    "(?=a)": (0, "look-ahead"),
    "b(?!a)": (1, "look-ahead"),
    "(?<=a)": (0, "look-behind"),
    "(?<!a)": (0, "look-behind"),
    r"(a)\1": (3, "reference back"),
    "(?P=n)": (0, "reference back"),
    "(?>a)": (0, "atomic"),
    "(?x)a": (0, "RE2 knows"),
    "(?": (0, "RE2 knows"),
    "a**": (2, "repeated"),
    "a++": (2, "possessive"),
    "*": (0, "nothing to repeat"),
    "(*)": (1, "nothing to repeat"),
    "a|*": (2, "nothing to repeat"),
    "(": (0, "never closed"),
    "a)": (1, "closes nothing"),
    "[a": (0, "never closed"),
    "[z-a]": (1, "no range"),
    "\\": (0, "at the end"),
    r"\y": (0, "no escape"),
    "a{1001}": (1, "0 to 1000"),
    "a{3,2}": (1, "0 to 1000"),
    "(a{100}){100}": (8, "more than 1000"),
    "[[:foo:]]": (1, "no class"),
    "(?P<n>a)(?P<n>b)": (8, "twice"),
    r"\pq": (0, "Unicode class"),
    r"\xZ": (0, "hexadecimal"),
}

NOT_YET = [
    r"\pL",
    r"\p{Greek}",
    r"\Qa+\E",
    r"\101",
    r"\x{1F600}",
    "x{,5}",
    "{a}",
    "[a[b]",
    "[a&&b]",
    "[!--b]",
    r"\<",
    "[é]",
]


@pytest.mark.parametrize("pattern", TAKEN)
def test_a_regular_expression_of_re2_is_taken(pattern: str) -> None:
    assert fault(pattern) is None


@pytest.mark.parametrize(("pattern", "expected"), NOT_TAKEN.items())
def test_what_re2_does_not_take_is_refused(pattern: str, expected: tuple[int, str]) -> None:
    found = fault(pattern)
    assert found is not None
    assert not found.unsupported
    assert (found.offset, expected[1] in found.message) == (expected[0], True)


@pytest.mark.parametrize("pattern", NOT_YET)
def test_what_the_proxy_reads_otherwise_is_not_honoured(pattern: str) -> None:
    found = fault(pattern)
    assert found is not None
    assert found.unsupported


def test_the_length_is_bounded() -> None:
    assert fault("a" * MAX_LENGTH) is None
    assert fault("a" * (MAX_LENGTH + 1)) is not None


def test_nesting_is_bounded() -> None:
    found = fault("(" * 500 + ")" * 500)
    assert found is not None
    assert "nested" in found.message


@pytest.mark.parametrize("pattern", [pattern for pattern in TAKEN if pattern])
def test_what_is_taken_compiles_in_the_proxy(pattern: str) -> None:
    configuration = route_pb2.RouteConfiguration(name="80")
    route = configuration.virtual_hosts.add(name="all", domains=["*"]).routes.add()
    route.match.safe_regex.regex = pattern
    route.direct_response.status = 200
    type_url = f"type.googleapis.com/{configuration.DESCRIPTOR.full_name}"
    assert _native.validate(type_url, configuration.SerializeToString()) == []
