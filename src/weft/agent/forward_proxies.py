"""
Variables by which programs are told to ask an HTTP proxy, such as a company's; and what they are to call without one.

Most libraries take an entry of NO_PROXY for the host and all below it, some want a dot before it for that; none knows
"names without a dot", so services are named one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
EXEMPTING = ("no_proxy", "NO_PROXY")

EVERYTHING = "*"
"""Only if it stands alone: an entry beside it would take its meaning."""


def told(environment: Mapping[str, str]) -> str:
    """Return the first variable of *environment* that names a proxy; empty if there is none."""
    return next((name for name in VARIABLES if environment.get(name)), "")


def exempted(variable: str) -> str:
    """Return what is said of a program that is told of a proxy by *variable*."""
    return f"{variable} is set: by NO_PROXY programs are told to call the mesh's services without that proxy"


def exempt(environment: Mapping[str, str], hosts: Iterable[str]) -> dict[str, str]:
    """
    Return the variables with which *hosts*, too, are called without a proxy.

    Both spellings say the same afterwards: some libraries read the one, some the other, some the first that there is.
    """
    kept = [entry.strip() for name in EXEMPTING for entry in environment.get(name, "").split(",") if entry.strip()]
    value = EVERYTHING if EVERYTHING in kept else ",".join(dict.fromkeys([*kept, *hosts]))
    return dict.fromkeys(EXEMPTING, value)
