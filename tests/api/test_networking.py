"""The models are the APIs': the same fields, types and bounds as the schemas of Istio's and the Gateway API's CRDs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from weft.api.honoured import HONOURED, Honour
from weft.api.kinds import KINDS, KNOWN
from weft.api.networking import HTTPRetry, json_name
from weft.api.shapes import Container, fields
from weft.api.values import duration_text, parse_duration


@pytest.fixture(scope="session")
def schemas(corpus: Path) -> dict[str, tuple[str, list[str], dict[str, Any]]]:
    """Kind -> group, versions, schema of `spec`."""
    found = {}
    files = [
        corpus / "istio" / "crds" / "crd-all.gen.yaml",
        *sorted((corpus / "gateway-api" / "crds" / "experimental").glob("gateway.networking.k8s.io_*.yaml")),
    ]
    for document in (item for file in files for item in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)):
        if document and document["kind"] == "CustomResourceDefinition":
            spec = document["spec"]
            versions = [version["name"] for version in spec["versions"]]
            schema = spec["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
            kind = spec["names"]["kind"]
            found[f"{kind}.{spec['group']}" if kind in found else kind] = (spec["group"], versions, schema)
    return found


def test_all_kinds_are_known_with_their_versions(schemas: dict[str, Any]) -> None:
    assert {name: (kind.group, set(kind.versions)) for name, kind in KNOWN.items() if kind.group} == {
        name: (group, set(versions)) for name, (group, versions, _) in schemas.items()
    }


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.group])
def test_a_model_has_the_fields_of_the_schema(kind: str, schemas: dict[str, Any]) -> None:
    model = KINDS[kind].model
    assert model is not None
    assert list(differences(model, schemas[kind][2], "spec")) == []


ZERO_DURATIONS = {
    "ttl",
    "idleTimeout",
    "weightExpirationPeriod",
    "weightStabilizationPeriod",
    "weightUpdatePeriod",
    "budgetInterval",
}
"""Durations in the proto that the schema lets be zero, and so has as plain strings."""


def differences(model: type[BaseModel], schema: dict[str, Any], path: str) -> Iterator[str]:
    """Yield where *model* and *schema* differ, all the way down."""
    known = fields(model)
    properties = schema["properties"]
    for name in properties:
        if name not in known:
            yield f"{path}.{name} is missing"
    for name, item in known.items():
        if name != item.name:
            continue
        if name not in properties:
            yield f"{path}.{name} is not in the schema"
            continue
        if item.required != (name in schema.get("required", ())):
            yield f"{path}.{name}: required is {item.required}"
        below = properties[name]
        container = Container.ONE
        if below["type"] == "array":
            container, below = Container.LIST, below["items"]
        elif "additionalProperties" in below:
            container, below = Container.MAP, below["additionalProperties"]
        if item.container is not container:
            yield f"{path}.{name} is a {item.container}"
        if item.message is not None:
            yield from differences(item.message, below, f"{path}.{name}")
        elif (expected := "duration" if name in ZERO_DURATIONS else _type_of(below)) != item.type.removeprefix(
            "list of "
        ).removeprefix("map of "):
            yield f"{path}.{name} is {item.type}, in the schema {expected}"


def _type_of(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " / ".join(map(str, schema["enum"]))
    if schema["type"] == "string" and any(
        "duration" in rule["rule"] for rule in schema.get("x-kubernetes-validations", ())
    ):
        return "duration"
    if schema.get("pattern") == "^([0-9]{1,5}(h|m|s|ms)){1,4}$":  # GEP-2257
        return "duration"
    return str(schema["type"])


def test_every_honoured_field_exists() -> None:
    for kind, honour in HONOURED.items():
        model = KINDS[kind].model
        assert model is not None
        _exists(model, honour)


def _exists(model: type[BaseModel], honour: Honour) -> None:
    for name, below in honour.below.items():
        item = fields(model)[name]
        assert item.name == name
        if below.below:
            assert item.message is not None
            _exists(item.message, below)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("host", "host"),
        ("per_try_timeout", "perTryTimeout"),
        ("consecutive_5xx_errors", "consecutive5xxErrors"),
        ("http2_max_requests", "http2MaxRequests"),
        ("h2_upgrade_policy", "h2UpgradePolicy"),
        ("ca_crl", "caCrl"),
        ("from_", "from"),
    ],
)
def test_names_in_yaml_are_those_of_proto_json(name: str, expected: str) -> None:
    assert json_name(name) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7s", 7),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("300ms", 0.3),
        (".5s", 0.5),
        ("1.s", 1),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1500ns", 1e-6),
        ("0", 0),
        ("-1s", -1),
        ("+2m", 120),
    ],
)
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(microseconds=round(seconds * 1e6))


@pytest.mark.parametrize(
    "text", ["", "7", "s", "7 s", "1d", "1h 30m", "PT1S", "1e3s", "1.5", "9999999999h", "--1s", "٣s"]
)
def test_what_go_does_not_read_is_no_duration(text: str) -> None:
    assert parse_duration(text) is None


@given(st.timedeltas(timedelta(days=-1000), timedelta(days=1000)))
def test_a_duration_is_written_as_it_is_read(duration: timedelta) -> None:
    assert parse_duration(duration_text(duration)) == duration


def test_the_models_write_what_they_read() -> None:
    retries = HTTPRetry(attempts=1, per_try_timeout=timedelta(milliseconds=250))
    text = retries.model_dump_json(by_alias=True, exclude_unset=True)
    assert text == '{"attempts":1,"perTryTimeout":"0.25s"}'
    assert HTTPRetry.model_validate_json(text) == retries


def test_the_models_read_both_spellings_by_themselves() -> None:
    one = HTTPRetry.model_validate({"attempts": 1, "perTryTimeout": "1s"})
    other = HTTPRetry.model_validate({"attempts": 1, "per_try_timeout": "1s"})
    assert one == other == HTTPRetry(attempts=1, per_try_timeout=timedelta(seconds=1))


def test_the_models_refuse_unknown_fields_by_themselves() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        HTTPRetry.model_validate({"attempt": 1})
