"""How it is measured: cores, alternation, series of samples."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CPU = "CPU us per request"
CPU_PER_GIB = "CPU ms per GiB"
OUT = Path(__file__).parent / "out"
KEPT = OUT / "configurations"
WORK_PREFIX = "weft-bench-"
"""Of the folder in which a run has its files."""


@dataclass
class Series:
    """What one peer cost in each round. `unit` says what a sample counts."""

    unit: str
    samples: list[float] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.samples), max(self.samples)


@dataclass
class Table:
    """One comparison: a line for each peer. `key` names it for goals and in JSON: `s3.h2.64`."""

    key: str
    title: str
    series: dict[str, Series]


@dataclass(frozen=True)
class Cores:
    """The proxy alone on one core; client and backend share the others."""

    proxy: set[int]
    rest: set[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        available = sorted(os.sched_getaffinity(0))
        if len(available) < 2:
            raise RuntimeError("the bench needs two cores: one for the proxy, one for client and backend")
        return cls({available[0]}, set(available[1:3]))


@dataclass(frozen=True)
class Run:
    """What all scenarios of a run share."""

    work: Path
    peers: tuple[str, ...]
    rounds: int
    seconds: float
    cores: Cores

    def folder(self, name: str) -> Path:
        """Return a new folder; short, because paths of Unix sockets end after 107 bytes."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def alternate(rounds: int, ways: Mapping[str, Callable[[], T]]) -> Iterator[tuple[str, T]]:
    """
    Yield what each of *ways* returns, *rounds* times in turn.

    Each round begins with another, so that none always runs beside the same neighbour's noise.
    """
    names = list(ways)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            yield name, ways[name]()


def keep(name: str, content: str, home: Path) -> None:
    """
    Keep *content* as bench/out/configurations/*name*: what a peer was given in this run.

    Its folder of this run, *home*, and that of the whole run are named by what they are for.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    work = next(each for each in home.parents if each.name.startswith(WORK_PREFIX))
    (KEPT / name).write_text(content.replace(str(home), "HOME").replace(str(work), "WORK"))
