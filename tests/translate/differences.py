"""`istiod_differences.yaml`: the one place where what differs from istiod on purpose is explained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).parent / "istiod_differences.yaml"


@dataclass(frozen=True)
class Known:
    """
    A difference that is meant, as regular expressions.

    Either of a resource's field (`resource` and `path`), or of what a request meets (`request`, a part of what
    tests/native/test_istiod_requests.py compares, after the request's direction).
    """

    scenario: re.Pattern[str]
    resource: re.Pattern[str] | None
    path: re.Pattern[str] | None
    request: re.Pattern[str] | None
    reason: str

    def explains_field(self, scenario: str, label: str, path: str) -> bool:
        """Whether it explains that field *path* of the resource *label* differs in *scenario*."""
        if self.resource is None or self.path is None or not self.scenario.search(scenario):
            return False
        return bool(self.resource.search(label) and self.path.search(path))

    def explains_request(self, scenario: str, part: str) -> bool:
        """Whether it explains that requests of *scenario* meet another *part*."""
        return bool(self.request and self.scenario.search(scenario) and self.request.search(part))


@cache
def known_differences() -> tuple[Known, ...]:
    def pattern(entry: dict[str, str], key: str) -> re.Pattern[str] | None:
        return re.compile(entry[key]) if key in entry else None

    found = []
    for entry in yaml.safe_load(FILE.read_text()):
        assert entry.keys() - {"scenario"} in ({"resource", "path", "reason"}, {"request", "reason"}), entry
        scenario = re.compile(entry.get("scenario", "."))
        found.append(
            Known(scenario, *(pattern(entry, key) for key in ("resource", "path", "request")), entry["reason"])
        )
    return tuple(found)
