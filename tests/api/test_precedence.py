"""Which DestinationRules are in force."""

from __future__ import annotations

import pytest

from weft.api.networking import DestinationRule
from weft.api.precedence import in_force
from weft.model import ConfigKey, ConfigObject

HOST = "reviews.shop.svc.cluster.local"


def rule(place: str, host: str = HOST, *export_to: str) -> tuple[str, ConfigObject]:
    namespace, _, name = place.partition("/")
    spec = DestinationRule.model_validate({"host": host, "exportTo": export_to})
    return host, ConfigObject(ConfigKey("DestinationRule", namespace, name), "networking.istio.io/v1", spec, {})


OF_CLIENT = rule("front/client", "*.svc.cluster.local")
OF_SERVICE = rule("shop/service")
OF_ROOT = rule("istio-system/root")
ELSEWHERE = rule("elsewhere/other")


@pytest.mark.parametrize(
    ("rules", "client", "expected"),
    [
        ([ELSEWHERE, OF_ROOT, OF_SERVICE, OF_CLIENT], "front", ["client"]),
        ([ELSEWHERE, OF_ROOT, OF_SERVICE, OF_CLIENT], "shop", ["service"]),
        ([ELSEWHERE, OF_ROOT, OF_SERVICE, OF_CLIENT], "other", ["service"]),
        ([ELSEWHERE, OF_ROOT], "front", ["root"]),
        ([ELSEWHERE], "front", []),
        ([], "front", []),
    ],
)
def test_the_clients_namespace_comes_before_the_services_and_that_before_the_root(
    rules: list[tuple[str, ConfigObject]], client: str, expected: list[str]
) -> None:
    assert [item.key.name for item in in_force(rules, client, "shop")] == expected


def test_in_the_root_only_what_is_for_the_root_alone_comes_before_the_services() -> None:
    """A gateway that runs in the root namespace follows the services' own rules as everybody does."""
    assert [item.key.name for item in in_force([OF_ROOT, OF_SERVICE], "istio-system", "shop")] == ["service"]
    private = rule("istio-system/private", HOST, ".")
    assert [item.key.name for item in in_force([private, OF_SERVICE], "istio-system", "shop")] == ["private"]


@pytest.mark.parametrize("host", [HOST, "*.shop.svc.cluster.local"])
def test_rules_for_the_most_specific_host_are_merged_and_hide_the_others(host: str) -> None:
    rules = [rule("shop/one", host), rule("shop/two", host), rule("shop/wide", "*.cluster.local")]
    assert [item.key.name for item in in_force(rules, "shop", "shop")] == ["one", "two"]
