"""Expositions of several proxies become one that Prometheus reads."""

from __future__ import annotations

import pytest

from weft.telemetry.exposition import MalformedExposition, merge, parse

LEFT = """\
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{code="200",path="a \\"b\\\\ \\n}"} 2
requests_total{code="500"} 1 1700000000000
# TYPE took histogram
took_bucket{le="1"} 1
took_bucket{le="+Inf"} 3
took_sum 4.5
took_count 3
# TYPE nothing gauge
"""

RIGHT = """\
# a comment
# TYPE up gauge
up 1
# TYPE requests_total counter
requests_total{code="200",workload="mine",} 7
"""

MERGED = """\
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{workload="left",code="200",path="a \\"b\\\\ \\n}"} 2
requests_total{workload="left",code="500"} 1 1700000000000
requests_total{workload="ri\\"ght",code="200",exported_workload="mine"} 7
# TYPE took histogram
took_bucket{workload="left",le="1"} 1
took_bucket{workload="left",le="+Inf"} 3
took_sum{workload="left"} 4.5
took_count{workload="left"} 3
# TYPE up gauge
up{workload="ri\\"ght"} 1
"""


def test_families_stand_together_once_and_each_sample_says_whose_it_is() -> None:
    assert merge({"left": LEFT, 'ri"ght': RIGHT}, label="workload") == MERGED


def test_what_was_merged_is_read_as_it_was_written() -> None:
    families = parse(merge({"left": LEFT}, label="workload"))
    assert [len(family.samples) for family in families.values()] == [2, 4]
    assert [family.kind for family in families.values()] == ["counter", "histogram"]


def test_a_family_of_two_kinds_is_untyped() -> None:
    text = merge({"a": "# TYPE x counter\nx 1\n", "b": "# TYPE x gauge\nx 2\n"}, label="workload")
    assert text == '# TYPE x untyped\nx{workload="a"} 1\nx{workload="b"} 2\n'


@pytest.mark.parametrize(
    "line",
    [
        "requests total 1",
        "x{le=1} 2",
        'x{le="1} 2',
        "x",
        "1x 2",
        "x 1 soon",
        "# TYPE x speed",
        'x{a="\\q"} 1',
        "x{} 1 2 3",
    ],
)
def test_what_is_no_exposition_is_refused_with_its_owner_and_line(line: str) -> None:
    with pytest.raises(MalformedExposition, match=r"^left: line 2"):
        merge({"left": f"good 1\n{line}\n"}, label="workload")
