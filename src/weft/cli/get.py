"""`weft get`: the configuration objects in force."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from weft.cli.apply import full_name
from weft.cli.client import PAUSE_SECONDS, Client, Unanswered, connect
from weft.cli.documents import Sources, file_option, no_objects, parsed, read
from weft.cli.kinds import listed, means, mesh_namespace, namespace_option, parse_references
from weft.cli.main import ExampleCommand
from weft.cli.output import NAME, as_list, columns, duration, emit, mesh_option, output_option, place
from weft.cli.selectors import selected, selector_option
from weft.errors import MeshNotRunning, NotFound, UsageError
from weft.model import ConfigKey

if TYPE_CHECKING:
    from weft.api.gateway_api import LabelSelector

EXAMPLES = """
weft get                              everything in the mesh's namespace
weft get virtualservices              one kind; vs, dr, gw and pa are short for four of them
weft get vs reviews -o yaml           one object, as it was applied, with its status
weft get vs/reviews dr/reviews        several objects
weft get vs -l app=reviews,tier!=web  those with these labels
weft get -f reviews.yaml              what the file describes, as it is in force
weft get -A -o wide                   every namespace, with where each was written and who applied it
weft get vs -w                        and then each one that changes
weft get vs -w -o json                the same, one object after the other
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@click.argument("what", nargs=-1, metavar="[KIND[,KIND] [NAME]... | KIND/NAME...]")
@file_option(required=False)
@namespace_option
@selector_option
@click.option("-A", "--all-namespaces", is_flag=True, help="Every namespace.")
@click.option(
    "-w",
    "--watch",
    is_flag=True,
    help="Go on, and show each object again that changes or goes, until Ctrl-C or the end of the mesh.",
)
@output_option("wide", NAME)
@mesh_option
def command(
    *,
    what: Sequence[str],
    files: Sequence[str],
    recursive: bool,
    namespace: str | None,
    selector: LabelSelector | None,
    all_namespaces: bool,
    watch: bool,
    output: str,
    mesh: str | None,
) -> None:
    """
    Show configuration objects.

    Exits with 4 if one that is named, or that a file describes, does not exist; the others are shown.
    """
    references = parse_references(what)
    if references and files:
        raise UsageError("Say what to show: either KIND NAME, or -f FILE.")
    if selector is not None and (files or any(name is not None for _, name in references)):
        raise UsageError("-l goes with a KIND alone, or with all kinds: `weft get KIND -l app=reviews`.")
    client = connect(mesh)
    described: set[ConfigKey] = set()
    if files:
        sources = read(files, recursive=recursive)
        described = _described(files, sources, namespace or mesh_namespace(client), confined=namespace is not None)
        references = [(kind, name) for kind, _, name in sorted(described)]
    # What files describe is where they say.
    namespace = None if all_namespaces or files else namespace or mesh_namespace(client)

    def asked(client: Client) -> Sequence[Mapping[str, Any]]:
        found = client.get("/v1/config", namespace=namespace)
        if files:
            return [item for item in found if ConfigKey(**item["key"]) in described]
        return [
            item
            for item in found
            if selected(selector, item["manifest"])
            and (not references or any(_means(each, item["key"]) for each in references))
        ]

    found = asked(client)
    if files:
        there = {ConfigKey(**item["key"]) for item in found}
        missing = [str(key) for key in sorted(described - there)]
    else:
        missing = [
            f"{kind} {name}"
            for kind, name in references
            if name is not None and not any(_means((kind, name), item["key"]) for item in found)
        ]
    if watch and output in ("json", "yaml"):
        for item in found:
            _tell(item, output)
    elif found or not missing:
        _show(found, output, references, namespace)
    if missing:
        kinds = {kind for kind, _ in references}
        everything = client.get("/v1/config", namespace=namespace)
        there_are = listed(item["key"] for item in everything if any(means(kind, item["key"]) for kind in kinds))
        raise NotFound(f"Not found: {', '.join(missing)}. There are: {there_are}.")
    if watch:
        _watch(client.mesh, asked, found, output, namespaces=namespace is None)


def _described(files: Sequence[str], sources: Sources, namespace: str, *, confined: bool) -> set[ConfigKey]:
    """
    Return which objects *sources* describe.

    Raises:
        Refused: They have mistakes.
    """
    objects = parsed(sources, namespace=namespace, confined=confined).objects
    if not objects:
        raise no_objects(files, "get")
    return {item.key for item in objects}


def _show(
    found: Sequence[Mapping[str, Any]],
    output: str,
    references: Sequence[tuple[str, str | None]],
    namespace: str | None,
) -> None:
    """Print the objects *found* for *references* in *namespace*, or in every one."""
    if not found and output not in ("json", "yaml"):
        # On standard error, as kubectl has it: what reads the other one reads objects.
        where = "any namespace" if namespace is None else f"namespace {namespace}"
        click.echo(f"No objects found in {where}.", err=True)
    manifests = [item["manifest"] for item in found]
    data = as_list(manifests, single=len(references) == 1 and references[0][1] is not None)

    def text() -> str:
        if output == NAME:
            return "\n".join(full_name(item) for item in found)
        return table(found, wide=output == "wide", namespaces=namespace is None)

    emit(data, output, text)


def _watch(
    mesh: str,
    asked: Callable[[Client], Sequence[Mapping[str, Any]]],
    shown: Sequence[Mapping[str, Any]],
    output: str,
    *,
    namespaces: bool,
) -> None:
    """Print what *asked* returns otherwise than *shown*, with each event of the mesh, until the mesh ends."""
    before = {ConfigKey(**item["key"]): item for item in shown}
    headed = shown[-1]["key"]["kind"] if shown else None

    def look() -> None:
        nonlocal before, headed
        now = {ConfigKey(**item["key"]): item for item in asked(client)}
        for key in sorted(before.keys() | now.keys()):
            item = now.get(key) or before[key]
            if key in before and key in now and before[key] == item:
                continue
            if output == NAME:
                click.echo(full_name(item))
            elif output in ("json", "yaml"):
                _tell(item, output)
            else:
                text = table([item], wide=output == "wide", namespaces=namespaces)
                click.echo(text if item["key"]["kind"] != headed else text.partition("\n")[2])
                headed = item["key"]["kind"]
        before = now

    try:
        client = connect(mesh, patience=math.inf)
        while True:
            # A control plane that is killed is started again, and has another's memory of events: none. What changed
            # before it listens to us is seen by a look at the beginning, and by the last event, which is told again.
            with suppress(Unanswered):
                for _ in client.events(replay=1, opened=look):
                    look()
            time.sleep(PAUSE_SECONDS)
    except MeshNotRunning:
        click.echo(f"The mesh {mesh!r} has ended.", err=True)


def _tell(item: Mapping[str, Any], output: str) -> None:
    """Print one object of a stream of them, which has no end that a List could close."""
    click.echo("---\n" if output == "yaml" else "", nl=False)
    emit(item["manifest"], output, str)


def table(found: Sequence[Mapping[str, Any]], *, wide: bool, namespaces: bool) -> str:
    """Return one table for each kind, as kubectl prints them; empty for no objects."""
    kinds = dict.fromkeys(item["key"]["kind"] for item in found)
    now = time.time()
    blocks = []
    for kind in kinds:
        described = _COLUMNS.get(kind, {})
        head = ["name", *described, "age", *(["generation", "origin", "revision", "applied by"] if wide else ())]
        rows = []
        items = [item for item in found if item["key"]["kind"] == kind]
        placed = namespaces and any(item["key"]["namespace"] for item in items)
        for item in items:
            manifest = item["manifest"]
            spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
            row = [full_name(item) if len(kinds) > 1 else item["key"]["name"]]
            row += [value(spec, status) for value in described.values()]
            row.append(_age(item["created_time"], now))
            if wide:
                row += [item["generation"], place(item["origin"]), item["created"], item["author"]]
            rows.append([item["key"]["namespace"], *row] if placed else row)
        blocks.append(columns(["namespace", *head] if placed else head, rows))
    return "\n\n".join(blocks)


def _joined(spec: Mapping[str, Any], field: str) -> str:
    return ",".join(spec.get(field) or ())


def _condition(status: Mapping[str, Any], kind: str) -> str:
    return next((item["status"] for item in status.get("conditions") or () if item["type"] == kind), "Unknown")


_COLUMNS: Mapping[str, Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]]] = {
    "VirtualService": {
        "gateways": lambda spec, _: _joined(spec, "gateways"),
        "hosts": lambda spec, _: _joined(spec, "hosts"),
    },
    "DestinationRule": {"host": lambda spec, _: spec["host"]},
    "Gateway": {},
    "PeerAuthentication": {"mode": lambda spec, _: (spec.get("mtls") or {}).get("mode") or ""},
    "HTTPRoute": {"hostnames": lambda spec, _: _joined(spec, "hostnames")},
    "Gateway.gateway.networking.k8s.io": {
        "class": lambda spec, _: spec["gatewayClassName"],
        "address": lambda _, status: ",".join(item["value"] for item in status.get("addresses") or ()),
        "programmed": lambda _, status: _condition(status, "Programmed"),
    },
    "GatewayClass": {
        "controller": lambda spec, _: spec["controllerName"],
        "accepted": lambda _, status: _condition(status, "Accepted"),
    },
    "ReferenceGrant": {},
    "Service": {
        "type": lambda spec, _: spec.get("type") or "ClusterIP",
        "port(s)": lambda spec, _: ",".join(f"{item['port']}/TCP" for item in spec.get("ports") or ()),
    },
}
"""Beside name and age, what kubectl prints for a kind: the `additionalPrinterColumns` of its CRD. A service's address is
no part of its document: `weft exec` and DNS tell it."""


def _age(created: float | None, now: float) -> str:
    return "" if created is None else duration(max(round(now - created), 0))


def _means(reference: tuple[str, str | None], key: Mapping[str, str]) -> bool:
    kind, name = reference
    return means(kind, key) and name in (None, key["name"])
