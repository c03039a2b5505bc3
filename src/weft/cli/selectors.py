"""
Label selectors as people write them for `-l`, which is how Kubernetes reads them (its `labels.Parse`): `app=reviews`,
`tier!=web`, `version in (v1,v2)`, `version notin (v3)`, `track`, `!canary`; all that a comma divides must hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from weft.errors import UsageError

if TYPE_CHECKING:
    from weft.api.gateway_api import LabelSelector

F = TypeVar("F", bound=Callable[..., Any])

_WORD = r"[^\s,()=!<>]+"
_REQUIREMENT = re.compile(
    rf"""\s*(?:
        (?P<absent>!)\s*(?P<not_there>{_WORD})
      | (?P<key>{_WORD}) (?:
            \s*(?P<equal>==|=|!=)\s*(?P<value>(?:{_WORD})?)
          | \s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\)
        )?
    )\s*(?:,|\Z)""",
    re.VERBOSE,
)


def selector_option(function: F) -> F:
    """Give a command `-l/--selector`, passed as `selector`: a `LabelSelector`, or None."""
    return click.option(
        "-l",
        "--selector",
        metavar="SELECTOR",
        callback=_read,
        help="Only objects with these labels: app=reviews, tier!=web, 'version in (v1,v2)', track, '!canary'; a comma is"
        " and.",
    )(function)


def parse(text: str) -> LabelSelector:
    """
    Return the selector that *text* is.

    Raises:
        UsageError: It is none; names the place.
    """
    from weft.api.gateway_api import LabelSelector, LabelSelectorRequirement  # pydantic models
    from weft.api.names import label_key_fault, label_value_fault

    requirements: list[LabelSelectorRequirement] = []
    at = 0
    while at < len(text) or not requirements or text[at - 1] == ",":
        found = _REQUIREMENT.match(text, at)
        if found is None:
            rest = text[at:].strip()
            raise UsageError(
                f"-l {text!r}: {rest!r} is no requirement of labels. Write key=value, key!=value,"
                " 'key in (a,b)', 'key notin (a,b)', key or '!key', with commas between."
                if rest
                else f"-l {text!r}: a requirement is missing {'at the end' if at else 'there'}."
            )
        at = found.end()
        key = found["key"] or found["not_there"]
        values: tuple[str, ...] = ()
        if found["absent"]:
            operator = "DoesNotExist"
        elif found["equal"]:
            operator, values = ("NotIn" if found["equal"] == "!=" else "In"), (found["value"],)
        elif found["set"]:
            operator = "In" if found["set"] == "in" else "NotIn"
            values = tuple(value.strip() for value in found["values"].split(","))
        else:
            operator = "Exists"
        faults = [label_key_fault(key), *map(label_value_fault, values)]
        if fault := next(filter(None, faults), None):
            raise UsageError(f"-l {text!r}: {fault}")
        requirements.append(LabelSelectorRequirement(key=key, operator=operator, values=values))
    return LabelSelector.model_validate({"matchExpressions": tuple(requirements)})


def selected(selector: LabelSelector | None, manifest: Mapping[str, Any]) -> bool:
    """Whether *selector* holds for the object of *manifest*; None holds for all."""
    if selector is None:
        return True
    from weft.api.attachment import selects

    return selects(selector, manifest["metadata"].get("labels") or {})


def _read(_context: click.Context, _parameter: click.Parameter, text: str | None) -> LabelSelector | None:
    return None if text is None else parse(text)
