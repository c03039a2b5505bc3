"""What is decided about namespaces before there are any."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from weft.agent import namespaces, netlink
from weft.errors import ModeUnavailable

VPN = ("0.0.0.0/1", "128.0.0.0/1")
"""How OpenVPN and others take all of a host's traffic, and leave its default route where it is."""


@pytest.mark.parametrize(
    ("routes", "chosen"),
    [
        ((), "10.244.0.0/16"),
        (("192.168.1.0/24", "10.244.3.0/24"), "10.245.0.0/16"),
        (VPN, "10.244.0.0/16"),
        ((*VPN, "10.0.0.0/8"), "172.30.0.0/16"),
    ],
)
def test_workloads_get_addresses_that_are_nobodys_network(
    monkeypatch: pytest.MonkeyPatch, routes: tuple[str, ...], chosen: str
) -> None:
    monkeypatch.setattr(netlink, "ipv4_routes", lambda _: [IPv4Network(route) for route in routes])
    assert namespaces.choose_cidr() == IPv4Network(chosen)


def test_where_every_range_is_a_network_of_the_host_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "ipv4_routes", lambda _: list(map(IPv4Network, namespaces.MESH_CIDRS)))
    with pytest.raises(ModeUnavailable, match="meets a route of this host; name a free one"):
        namespaces.choose_cidr()
