"""The picture of a run: what each proxy costs for one request beside Envoy, SVG without any library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from bench.measure import CPU, Table
from bench.report import NAMES, README_COLUMNS

MEASURE = "envoy"
"""Whose bar is the whole width."""
SHOWN = ("weft-proxy", "haproxy", "nginx", MEASURE)

WIDTH, LABELS, FIGURES = 860, 250, 150
"""Of the picture, and what stands left and right of the bars; pixels."""
BAR, GAP, BETWEEN, HEAD = 13, 3, 14, 62

STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: 600 } .small { fill: #57606a }
.weft-proxy { fill: #0969da } .haproxy { fill: #8c959f } .nginx { fill: #afb8c1 } .envoy { fill: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 }
  .weft-proxy { fill: #4493f8 } .haproxy { fill: #6e7681 } .nginx { fill: #545d68 } .envoy { fill: #373e47 }
}"""


def picture(tables: Sequence[Table]) -> str:
    """Return an SVG with a group of bars for each of README.md's scenarios that Envoy was measured in; empty if there is none."""
    by_key = {one.key: one for one in tables}
    groups = [
        (heading, one)
        for key, heading in README_COLUMNS
        if (one := by_key.get(key)) is not None and {"weft-proxy", MEASURE} <= one.series.keys()
    ]
    if not groups:
        return ""
    parts, bottom = [], HEAD
    for heading, one in groups:
        lines = list(_group(heading, one, bottom))
        parts += lines
        bottom += sum(name in one.series for name in SHOWN) * (BAR + GAP) + BETWEEN
    title = f"{CPU}, beside {NAMES[MEASURE]}'s"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" role="img" aria-label="{title}">',
            f"<style>{STYLE}</style>",
            f'<text class="title" x="12" y="24">{title}</text>',
            *_legend(name for name in SHOWN if any(name in one.series for _, one in groups)),
            *parts,
            "</svg>\n",
        ]
    )


def _legend(names: Iterable[str]) -> Iterator[str]:
    for number, name in enumerate(names):
        left = 12 + number * 110
        yield f'<rect class="{name}" x="{left}" y="37" width="11" height="11" rx="2"/>'
        yield f'<text class="small" x="{left + 17}" y="47">{NAMES[name]}</text>'


def _group(heading: str, one: Table, top: int) -> Iterator[str]:
    """Yield the bars of a scenario; a longer bar than Envoy's ends where the picture does, and its figure says so."""
    whole = one.series[MEASURE].median
    names = [name for name in SHOWN if name in one.series]
    middle = top + len(names) * (BAR + GAP) / 2 + 3
    yield f'<text x="{LABELS - 12}" y="{middle:.0f}" text-anchor="end">{escape(heading)}</text>'
    for number, name in enumerate(names):
        median = one.series[name].median
        width = min(median / whole, 1.1) * (WIDTH - LABELS - FIGURES)
        y = top + number * (BAR + GAP)
        yield f'<rect class="{name}" x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
        beside = "" if name == MEASURE else f" ({median / whole:.2f})"
        text = f"{median:,.1f}{beside}"
        yield f'<text class="small" x="{LABELS + width + 6:.1f}" y="{y + BAR - 2}">{text}</text>'
