"""What programs are told of HTTP proxies."""

from __future__ import annotations

import pytest

from weft.agent import dns, forward_proxies


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, ""),
        ({"http_proxy": "", "NO_PROXY": "a"}, ""),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, "HTTPS_PROXY"),
        ({"ALL_PROXY": "socks5://proxy.example"}, "ALL_PROXY"),
    ],
)
def test_a_program_is_told_of_a_proxy_by_any_of_its_variables(environment: dict[str, str], variable: str) -> None:
    assert forward_proxies.told(environment) == variable


@pytest.mark.parametrize(
    ("environment", "value"),
    [
        ({}, "reviews,.svc.cluster.local"),
        (
            {"NO_PROXY": "intern.example, reviews", "no_proxy": "other"},
            "other,intern.example,reviews,.svc.cluster.local",
        ),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_what_is_called_without_a_proxy_is_added_to_what_is_there(environment: dict[str, str], value: str) -> None:
    added = forward_proxies.exempt(environment, ("reviews", ".svc.cluster.local"))
    assert added == {"no_proxy": value, "NO_PROXY": value}


def test_the_meshs_names_are_those_that_its_programs_may_use() -> None:
    names = dns.Names(own=("cart-v1-0",), own_addresses=("10.244.0.7",))
    names.replace(
        {
            "reviews.default.svc.cluster.local": ["240.240.0.1"],
            "db.shop.svc.cluster.local": ["240.240.0.2"],
            "*.example.com": ["240.240.0.3"],
        }
    )
    assert names.without_proxy() == [
        ".svc.cluster.local",
        "db.shop",
        "db.shop.svc",
        "reviews",
        "reviews.default",
        "reviews.default.svc",
        ".example.com",
    ]
