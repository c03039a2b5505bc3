"""
What a run prints: a table for each comparison, the goals, and README.md's section.

All but the first are made of the run's result in JSON (`as_json`), so that they can be made again of one that was kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bench.goals import FLOOR, judged
from bench.measure import Series, Table

NAMES = {"weft-proxy": "weft-proxy", "envoy": "Envoy", "haproxy": "HAProxy", "nginx": "nginx", "relay": "byte relay"}
WITHOUT_LABELS = "envoy, metrics without labels"
"""A line of S2's tables (bench/scenarios/s2.py)."""
AGAINST = ("envoy", "haproxy", "nginx", "direct")

README_COLUMNS = (
    ("s1", "bare HTTP/1.1"),
    ("s2.1", "mesh features"),
    ("s2.14", "the same, 14 headers"),
    ("s3.h1.64", "mTLS pair, HTTP/1.1 link"),
    ("s3.h2.64", "mTLS pair, HTTP/2 link"),
    ("s3.default.64", "mTLS pair, each its default link"),
    ("s4.bare", "gRPC"),
    ("s4.mesh", "gRPC, mesh features"),
    ("s5.small", "TCP, 1 KiB"),
    ("s9.plain", "new connection each"),
    ("s9.mtls", "mTLS handshake each"),
    ("s10.s2", "mesh features, intercepted"),
    ("s10.s9", "new connection each, intercepted"),
)
"""Of README.md's first table: figures in CPU microseconds per request."""
README_OTHERS = (
    ("s5.large", "TCP, 1 MiB answers, CPU ms per GiB"),
    ("s6.plain", "HTTP/1.1, 1 MiB answers, CPU ms per GiB"),
    ("s6.pair", "the same through an mTLS pair, CPU ms per GiB"),
    ("latency.p50", "us added at 1,000 requests/s, median"),
    ("latency.p99", "us added, 99th percentile"),
    ("memory.idle", "MiB resident"),
    ("memory.loaded", "MiB with 1,000 clusters x 10 endpoints"),
    ("memory.plain", "KiB for an idle connection"),
    ("memory.mtls", "KiB for an idle mTLS connection"),
    ("start.answering", "ms from exec to first answer"),
    ("demo", "MiB resident in the demo"),
)
"""Of the second."""


def table(one: Table) -> str:
    """Return a Markdown table: median, range, and the ratio to each peer that serves as a measure."""
    against = [name for name in AGAINST if name in one.series]
    unit = next(iter(one.series.values())).unit
    head = ["proxy", "median", "range", *(f"x {NAMES.get(name, name)}" for name in against)]
    rows = []
    for name, series in one.series.items():
        low, high = series.spread
        ratios = [_ratio(series.median, one.series[other].median) for other in against]
        rows.append([NAMES.get(name, name), _number(series.median), f"{_number(low)} - {_number(high)}", *ratios])
    return f"### {one.title} ({unit})\n\n{_markdown(head, rows)}"


def goals(tables: Sequence[Table]) -> str:
    """Return the table of goals that these tables can judge; empty if there are none."""
    rows = [[*rest, "met" if met else "**missed**"] for *rest, met in judged(tables)]
    return _markdown(["scenario", "goal", "measured", NAMES[FLOOR], ""], rows) if rows else ""


def readme(result: dict[str, Any]) -> str:
    """Return README.md's tables: a line for each scenario, with our ratio to each peer; and where and how it was measured."""
    tables = tables_of(result)
    by_key = {one.key: one for one in tables}
    peers = [name for name in NAMES if any(name in one.series for one in tables)]
    parts = []
    for columns, unit in ((README_COLUMNS, "CPU us per request"), (README_OTHERS, "")):
        rows = []
        for key, heading in columns:
            if key not in by_key:
                continue
            series = by_key[key].series
            figures = [_number(series[name].median) if name in series else "-" for name in peers]
            ours = series.get("weft-proxy")
            ratios = [
                _ratio(ours.median, series[other].median) if ours and other in series else "-"
                for other in ("envoy", "haproxy")
            ]
            rows.append([heading, *figures, *ratios])
        if rows:
            head = [unit, *(NAMES[name] for name in peers), "x Envoy", "x HAProxy"]
            parts.append(_markdown(head, rows))
    return "\n\n".join([*parts, _note(result, by_key)])


def _note(result: dict[str, Any], by_key: dict[str, Table]) -> str:
    machine, versions = result["machine"], result["versions"]
    found = list(judged(list(by_key.values())))
    named = ", ".join(f"{NAMES[name]} {versions[name]}" for name in NAMES if name in versions)
    sentences = [
        f"Medians of {result['rounds']} rounds of {result['seconds']:g} s, {result['when'][:10]}, on {machine['cores']} cores of "
        f"{machine['processor']} with {machine['kernel']}: {named}.",
        f"{sum(met for *_, met in found)} of {len(found)} goals are met.",
    ]
    mesh = by_key.get("s2.1")
    if mesh and WITHOUT_LABELS in mesh.series and "envoy" in mesh.series:
        sentences.append(
            f"Of Envoy's {_number(mesh.series['envoy'].median)} us with mesh features, labels on its metrics, which stock Envoy makes by its "
            f"access logger for statistics, are what it does not need without them: {_number(mesh.series[WITHOUT_LABELS].median)} us."
        )
    sentences.append("Every sample, and configurations that peers were given, are in [bench/results](bench/results).")
    return "\n".join(sentences)


def tables_of(result: dict[str, Any]) -> list[Table]:
    """Return the tables of which `as_json` made *result*."""
    return [
        Table(
            key,
            scenario["title"],
            {name: Series(found["unit"], found["samples"]) for name, found in scenario["peers"].items()},
        )
        for key, scenario in result["scenarios"].items()
    ]


def as_json(tables: Sequence[Table], about: dict[str, Any]) -> str:
    scenarios = {
        one.key: {
            "title": one.title,
            "peers": {
                name: {"unit": series.unit, "median": series.median, "samples": series.samples, **series.notes}
                for name, series in one.series.items()
            },
        }
        for one in tables
    }
    found = [dict(zip(("scenario", "goal", "measured", "relay", "met"), each, strict=True)) for each in judged(tables)]
    return json.dumps({**about, "scenarios": scenarios, "goals": found}, indent=2) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if theirs else "-"
