"""What is missing from a view is found before it is published."""

from __future__ import annotations

import pytest

from tests.translate.meshes import applied, destination_rule, mesh, sidecar
from weft.model import Severity
from weft.translate.check import check
from weft.translate.resource import CLUSTER_LOAD_ASSIGNMENT, ROUTE_CONFIGURATION
from weft.translate.translator import translate


def test_a_whole_view_has_nothing_missing() -> None:
    """No error for a mesh whose rules lead somewhere."""
    made = translate(applied(mesh(3), destination_rule("service-1", subsets=[{"name": "v1"}])), sidecar())
    assert check(made) == ()


@pytest.mark.parametrize(
    ("type_url", "what"), [(CLUSTER_LOAD_ASSIGNMENT, "endpoints"), (ROUTE_CONFIGURATION, "routes")]
)
def test_what_is_waited_for_must_be_there(type_url: str, what: str) -> None:
    """A cluster without its endpoints and a listener without its routes are errors."""
    made = translate(mesh(1), sidecar())
    (problem,) = check(tuple(item for item in made if item.type_url != type_url))
    assert problem.severity is Severity.ERROR
    assert what in problem.message


def test_a_name_means_one_thing() -> None:
    """Two resources of one type and name are an error: the publisher could hand out neither."""
    made = translate(mesh(1), sidecar())
    (problem,) = check((made[0], *made))
    assert problem.severity is Severity.ERROR
    assert problem.message == f"{made[0].name} stands 2 times among the resources of type {made[0].type_url}"
