"""What the files of names look like inside, made from the host's."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from weft.agent import mounts

OWN = socket.gethostname()


def made(host: Mapping[str, str], *, address6: str = "fd77:ef7::7") -> dict[str, list[str]]:
    """Return the lines of each file of the view that is made from the files *host*, words split by one space."""
    view = mounts.view(
        own_names=["cart-v1-0"],
        address="10.244.0.7",
        address6=address6,
        hidden=[Path("/run/weft")],
        read=lambda path: host.get(path, ""),
    )
    assert view.hidden == ("/run/weft",)
    return {path: [" ".join(line.split()) for line in text.decode().splitlines()] for path, text in view.files}


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("", ["search default.svc.cluster.local"]),
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", ["search default.svc.cluster.local"]),
        ("search corp.example lab.example\n", ["search default.svc.cluster.local corp.example lab.example"]),
        ("search a.example\ndomain b.example\n", ["search default.svc.cluster.local b.example"]),
        ("options edns0 trust-ad\n# options no\n", ["search default.svc.cluster.local", "options edns0 trust-ad"]),
    ],
)
def test_resolv_conf_names_the_meshs_server_and_keeps_search_and_options(host: str, inside: list[str]) -> None:
    assert made({mounts.RESOLV_CONF: host})[mounts.RESOLV_CONF] == ["nameserver 240.240.0.53", *inside]


def test_hosts_keeps_the_hosts_entries_and_names_the_program_itself() -> None:
    """The host's own name is the program's own address: a program that binds it must be reached there."""
    host = f"""127.0.0.1 localhost
127.0.1.1 {OWN}.example {OWN} # Debian writes this
192.0.2.7 build.corp.example build
::1 ip6-localhost
# 192.0.2.8 not this
"""
    assert made({mounts.HOSTS: host})[mounts.HOSTS] == [
        f"10.244.0.7 cart-v1-0 {OWN}",
        f"fd77:ef7::7 cart-v1-0 {OWN}",
        "127.0.0.1 localhost",
        f"127.0.1.1 {OWN}.example",
        "192.0.2.7 build.corp.example build",
        "::1 ip6-localhost",
    ]


def test_without_hosts_there_is_a_localhost_and_without_ipv6_no_ipv6_address() -> None:
    assert made({}, address6="")[mounts.HOSTS] == [
        f"10.244.0.7 cart-v1-0 {OWN}",
        "127.0.0.1 localhost",
        "::1 localhost",
    ]


@pytest.mark.parametrize("named", ["localhost", "localhost.localdomain", "LocalHost", "build.localhost"])
def test_on_a_host_that_is_called_localhost_that_means_the_loopback(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """What nobody has named is called so; a program that binds localhost is not to be found by others."""
    monkeypatch.setattr(socket, "gethostname", lambda: named)
    host = "127.0.0.1 localhost localhost.localdomain\n::1 localhost\n"
    assert made({mounts.HOSTS: host})[mounts.HOSTS] == [
        "10.244.0.7 cart-v1-0",
        "fd77:ef7::7 cart-v1-0",
        "127.0.0.1 localhost localhost.localdomain",
        "::1 localhost",
    ]


def test_what_is_a_services_name_is_left_out_of_hosts_and_comes_back_with_its_end() -> None:
    """The length stays: it is written over the file that a program may be reading."""
    host = "127.0.0.1 localhost reviews Ratings\n127.0.1.1\treviews.default api.example.com # compose\n"
    services = {"reviews", "ratings", "reviews.default", "api.example.com"}

    def view(names: set[str]) -> mounts.View:
        return mounts.view(
            own_names=["reviews"],
            address="10.244.0.7",
            address6="",
            hidden=[],
            is_service=lambda name: name.lower() in names,
            read=lambda path: host if path == mounts.HOSTS else "",
        )

    def entries(content: bytes) -> list[list[str]]:
        return [line.split() for line in content.decode().splitlines() if not line.startswith("#")]

    before, during = (dict(view(names).files)[mounts.HOSTS] for names in (set[str](), services))
    own = ["10.244.0.7", "reviews", OWN]
    assert entries(before) == [
        own,
        ["127.0.0.1", "localhost", "Ratings"],
        ["127.0.1.1", "reviews.default", "api.example.com"],
    ]
    assert entries(during) == [own, ["127.0.0.1", "localhost"]]
    assert len(during) == len(before)
    assert view(services).hosts.without(lambda _: False) == (before, {})


def test_of_a_name_that_is_left_out_of_hosts_it_is_told_what_the_host_says() -> None:
    """It is asked by DNS as soon as its service has gone, by whoever had read the file before."""
    hosts = mounts.Hosts(b"", b"127.0.0.1\tlocalhost Reviews\n::1\treviews api.example.com\n")
    _, left_out = hosts.without(lambda name: name.lower() == "reviews")
    assert left_out == {"reviews": ["127.0.0.1", "::1"]}


def test_nsswitch_asks_files_and_dns_for_hosts_and_is_otherwise_the_hosts() -> None:
    host = "passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n hosts : wins\nnetworks: files\n"
    inside = made({mounts.NSSWITCH: host})[mounts.NSSWITCH]
    assert inside == ["passwd: files systemd", "networks: files", "hosts: files dns"]
