"""
What a model looks like from outside: which names a mapping may have and what stands below each.

Read once from the pydantic models, so that the walk over a document (`weft.api.parse`) and the reference page need no
second description of the API.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


class Container(Enum):
    """How many values a field holds."""

    ONE = auto()
    LIST = auto()
    MAP = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """
    One field of a model.

    Attributes:
        name: Its name in YAML.
        attribute: Its name in Python, which is the second spelling that is read if the model says so.
        message: The model of its value, or of each item; None for scalars.
        required: Whether it must be there.
        type: What stands for a scalar in the reference page (`string`, `integer`, an enumeration's words).
    """

    name: str
    attribute: str
    container: Container
    message: type[BaseModel] | None
    required: bool
    type: str


@cache
def fields(model: type[BaseModel]) -> Mapping[str, Field]:
    """Return the fields of *model* by each of their spellings; the one in YAML comes first."""
    found: dict[str, Field] = {}
    spellings: dict[str, Field] = {}
    for attribute, info in model.model_fields.items():
        name = info.alias or attribute
        container, message, words = _describe(info.annotation, info.metadata)
        found[name] = Field(name, attribute, container, message, info.is_required(), words)
        if model.model_config.get("validate_by_name"):
            spellings[attribute] = found[name]
    return {**found, **{spelling: item for spelling, item in spellings.items() if spelling not in found}}


def names(model: type[BaseModel]) -> list[str]:
    """Return the names of *model*'s fields as YAML has them."""
    return [spelling for spelling, item in fields(model).items() if spelling == item.name]


def _describe(annotation: Any, metadata: list[Any]) -> tuple[Container, type[BaseModel] | None, str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0], list(arguments[1:]))
    if origin in (Union, types.UnionType):
        rest = [argument for argument in arguments if argument is not type(None)]
        return _describe(rest[0], metadata)
    if origin is tuple:
        _, message, words = _describe(arguments[0], [])
        return Container.LIST, message, f"list of {words}"
    if origin is not None and issubclass(origin if isinstance(origin, type) else object, Mapping):
        _, message, words = _describe(arguments[1], [])
        return Container.MAP, message, f"map of {words}"
    if origin is Literal:
        return Container.ONE, None, " / ".join(str(argument) for argument in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Container.ONE, annotation, annotation.__name__
    return Container.ONE, None, _SCALARS.get(getattr(annotation, "__name__", ""), "value")


_SCALARS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "timedelta": "duration"}
