"""What a run prints and draws, from figures that are given."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from bench import plot, report
from bench.measure import CPU, Series, Table
from tests.bench import ABOUT


def table(key: str, **medians: float) -> Table:
    series = {name.replace("_", "-"): Series(CPU, [value]) for name, value in medians.items()}
    return Table(key, key, series)


TABLES = [table("s1", weft_proxy=25.0, envoy=100.0, haproxy=50.0), table("s5.small", weft_proxy=12.0, relay=11.0)]


def test_the_picture_has_a_bar_for_each_proxy_in_proportion_to_envoys() -> None:
    drawing = ElementTree.fromstring(plot.picture(TABLES))
    bars = [item for item in drawing.findall(".//{*}rect") if item.get("height") == str(plot.BAR)]
    widths = {item.get("class"): float(item.get("width", "")) for item in bars}
    assert widths.keys() == {"weft-proxy", "haproxy", "envoy"}
    assert widths["weft-proxy"] * 4 == widths["haproxy"] * 2 == widths["envoy"]
    assert "25.0 (0.25)" in [item.text for item in drawing.findall(".//{*}text")]


def test_what_was_measured_without_envoy_is_not_in_the_picture() -> None:
    assert "TCP" not in plot.picture(TABLES)
    assert plot.picture(TABLES[1:]) == ""


def test_readmes_table_has_a_line_for_each_scenario_that_was_run() -> None:
    lines = report.readme(json.loads(report.as_json(TABLES, ABOUT))).splitlines()
    assert "| bare HTTP/1.1 | 25.0 | 100.0 | 50.0 | - | 0.25 | 0.50 |" in lines
    assert any(re.match(r"\| TCP, 1 KiB \| 12.0 \| - \| - \| 11.0 \|", line) for line in lines)
