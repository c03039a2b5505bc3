"""
Prometheus's text format, version 0.0.4: what several proxies expose becomes one exposition for one scrape.

Each sample gets a label that says whose it is, and families that several have stand together, with one `# HELP` and
one `# TYPE`, as the format demands. Values pass as they are written. Used by `weft metrics`.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

KINDS = ("counter", "gauge", "histogram", "summary", "untyped")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
"""What the samples of a family may be called beside its own name."""

METRIC = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\"n])*)",?')
COMMENT = re.compile(rf"# (HELP|TYPE) ({METRIC}) ?(.*)")
NUMBER = r"(?:[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|Inf)|NaN)"
SAMPLE = re.compile(rf"({METRIC})(?:\{{((?:{LABEL.pattern})*)\}})?[ \t]+({NUMBER}(?:[ \t]+-?\d+)?)[ \t]*")


class MalformedExposition(ValueError):
    """A line is not of the format; the message shows it."""


@dataclass
class Family:
    """One metric: its comments, and its samples as (name, labels in words, value and time)."""

    help: str = ""
    kind: str = "untyped"
    samples: list[tuple[str, str, str]] = field(default_factory=list)


def parse(text: str) -> dict[str, Family]:
    """
    Return the families of an exposition by name, in its order.

    Raises:
        MalformedExposition: A line is neither comment nor sample, or a kind does not exist.
    """
    families: dict[str, Family] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if line.startswith("#"):
            _comment(families, line, number)
            continue
        match = SAMPLE.fullmatch(line)
        if match is None:
            raise MalformedExposition(f"line {number} is neither a comment nor a sample: {line[:200]!r}")
        families.setdefault(_family_of(match[1], families), Family()).samples.append(
            (match[1], match[2] or "", match[match.lastindex or 0])
        )
    return families


def merge(expositions: Mapping[str, str], *, label: str) -> str:
    """
    Return one exposition of several.

    Args:
        expositions: Texts by the value that *label* gets in each of their samples.
        label: Its name. A sample's own label of that name becomes `exported_<label>`, as Prometheus itself does it.

    Raises:
        MalformedExposition: One of them cannot be read; the message names it.
    """
    merged: dict[str, Family] = {}
    for owner, text in expositions.items():
        try:
            families = parse(text)
        except MalformedExposition as error:
            raise MalformedExposition(f"{owner}: {error}") from error
        mark = f'{label}="{_escaped(owner)}"'
        for name, family in families.items():
            known = merged.setdefault(name, Family(family.help, family.kind))
            known.help = known.help or family.help
            if known.kind != family.kind:
                known.kind = "untyped"  # two programs disagree; either's word would be wrong for the other's samples
            known.samples += [(sample, _labels(mark, labels, label), value) for sample, labels, value in family.samples]
    return write(merged)


def write(families: Mapping[str, Family]) -> str:
    """Return the text of *families*; those without samples are left out."""
    return "".join(line for name, family in families.items() if family.samples for line in _lines(name, family))


def _lines(name: str, family: Family) -> Iterable[str]:
    if family.help:
        yield f"# HELP {name} {family.help}\n"
    yield f"# TYPE {name} {family.kind}\n"
    for sample, labels, value in family.samples:
        yield f"{sample}{{{labels}}} {value}\n" if labels else f"{sample} {value}\n"


def _comment(families: dict[str, Family], line: str, number: int) -> None:
    match = COMMENT.fullmatch(line)
    if match is None:
        return  # any other comment means nothing
    word, name, rest = match.groups()
    family = families.setdefault(name, Family())
    if word == "HELP":
        family.help = rest
    elif rest.strip() in KINDS:
        family.kind = rest.strip()
    else:
        raise MalformedExposition(f"line {number}: {rest!r} is no type; there are {', '.join(KINDS)}")


def _family_of(sample: str, families: Mapping[str, Family]) -> str:
    for kind, suffixes in SUFFIXES.items():
        for suffix in suffixes:
            base = sample.removesuffix(suffix)
            if base != sample and base in families and families[base].kind == kind:
                return base
    return sample


def _labels(mark: str, labels: str, label: str) -> str:
    rest = (f'{"exported_" if name == label else ""}{name}="{value}"' for name, value in LABEL.findall(labels))
    return ",".join((mark, *rest))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
