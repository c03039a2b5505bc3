"""The table of cases, read from cases/*.yaml and topology.yaml, in the terms of the reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.reference.evaluate import Request, Service

HERE = Path(__file__).parent
PORT = 9080


@dataclass(frozen=True)
class Asked:
    """One request of a case: how often it is sent, what the upstream does, and what is pinned by hand."""

    request: Request
    repeat: int = 1
    upstream: Mapping[str, float] = field(default_factory=dict)
    check: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    name: str
    config: str
    asked: tuple[Asked, ...]
    source: str


def services() -> list[Service]:
    """The services of topology.yaml."""
    topology = yaml.safe_load((HERE / "topology.yaml").read_text())
    return [Service(name, "default", (PORT,), workloads) for name, workloads in topology.items()]


def all_cases() -> list[Case]:
    """Every case of cases/*.yaml, in the order written."""
    found = []
    for file in sorted((HERE / "cases").glob("*.yaml")):
        for case in yaml.safe_load(file.read_text()):
            asked = []
            for entry in case["requests"]:
                entry = dict(entry)
                extra = {key: entry.pop(key) for key in ("repeat", "upstream", "check") if key in entry}
                asked.append(Asked(Request(port=PORT, **entry), **extra))
            found.append(Case(case["name"], case.get("config", ""), tuple(asked), file.name))
    return found
