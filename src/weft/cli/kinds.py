"""Kinds as people write them on the command line: `vs`, `virtualservices`, `virtualservice.networking.istio.io`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from weft.api.kinds import KNOWN
from weft.cli.client import Client
from weft.cli.main import unknown
from weft.cli.output import check_name
from weft.errors import UsageError
from weft.model import ConfigKey

F = TypeVar("F", bound=Callable[..., Any])

SHORT = {
    "vs": "VirtualService",
    "dr": "DestinationRule",
    "gw": "Gateway",
    "gtw": "Gateway.gateway.networking.k8s.io",
    "gc": "GatewayClass",
    "refgrant": "ReferenceGrant",
    "svc": "Service",
    "pa": "PeerAuthentication",
    "ap": "AuthorizationPolicy",
    "ra": "RequestAuthentication",
    "se": "ServiceEntry",
    "we": "WorkloadEntry",
    "wg": "WorkloadGroup",
}
"""The short names that the APIs themselves have (`shortNames` of their CRDs)."""


def resolve(text: str) -> str:
    """
    Return the kind that *text* means.

    Raises:
        UsageError: There is none; names the nearest.
    """
    names = {name.lower(): name for name in KNOWN} | {plural(name): name for name in KNOWN} | SHORT
    bare, _, group = text.lower().partition(".")
    kind = names.get(f"{bare}.{group}") or names.get(f"{bare.removesuffix('s')}.{group}") or names.get(bare)
    if kind is None:
        raise UsageError(unknown("kind", text, [*sorted({name.partition(".")[0] for name in KNOWN}), *SHORT]))
    return ISTIO_GATEWAY if f"{kind}.{group}" == ISTIO_GATEWAY else kind


ISTIO_GATEWAY = "Gateway.networking.istio.io"
"""What `resolve` returns for Istio's Gateway alone."""


def means(kind: str, key: Mapping[str, str]) -> bool:
    """Whether *kind*, as `resolve` returns it, means the object *key*: `Gateway` means those of both APIs."""
    if kind == ISTIO_GATEWAY:
        return key["kind"] == "Gateway"
    return kind in (key["kind"], key["kind"].partition(".")[0])


def plural(kind: str) -> str:
    """Return the resource name of *kind* (`virtualservices`, `gateways`, `authorizationpolicies`)."""
    name = kind.lower()
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "es" if name.endswith("s") else name + "s"


def parse_references(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """
    Read `KIND`, `KIND NAME...` or `KIND/NAME...` as (kind, name) pairs; the name of a bare kind is None.

    Raises:
        UsageError: The two ways are mixed, or a kind does not exist.
    """
    if not arguments:
        return []
    if any("/" in argument for argument in arguments):
        if not all("/" in argument for argument in arguments):
            raise UsageError("Write either KIND NAME... or KIND/NAME..., not both.")
        pairs = (argument.split("/", 1) for argument in arguments)
        return [(resolve(kind), name) for kind, name in pairs]
    kinds = [resolve(kind) for kind in arguments[0].split(",")]
    if len(arguments) == 1:
        return [(kind, None) for kind in kinds]
    return [(kind, name) for kind in kinds for name in arguments[1:]]


def namespace_option(function: F) -> F:
    """Give a command `-n/--namespace`, passed as `namespace`; None if absent, which means `mesh_namespace`."""
    text = "Which namespace; the mesh's own if absent. Of files: for what names none; what names another is refused."
    return click.option("-n", "--namespace", metavar="NAME", callback=_checked, help=text)(function)


def _checked(_context: click.Context, _parameter: click.Parameter, namespace: str | None) -> str | None:
    if namespace is not None:
        check_name("--namespace", namespace, "a namespace")
    return namespace


def mesh_namespace(client: Client) -> str:
    """Return the namespace of objects that name none: what weft.yaml says."""
    return str(client.get("/v1/version")["namespace"])


def listed(keys: Iterable[Mapping[str, str]]) -> str:
    """Return keys as a list for a message (`VirtualService default/reviews, ...`)."""
    return ", ".join(str(ConfigKey(**key)) for key in keys) or "none"
