"""`weft delete`: take configuration objects away, and wait until the proxies have forgotten them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from weft.cli.apply import check_receipt, describe, full_name, receipt_or_why_not, send
from weft.cli.client import connect
from weft.cli.documents import DURATION, DocumentsCommand, dry_run_option, file_option, no_objects, read
from weft.cli.kinds import ISTIO_GATEWAY, means, mesh_namespace, namespace_option, parse_references
from weft.cli.output import NAME, emit, mesh_option, output_option
from weft.cli.problems import from_json, render
from weft.cli.selectors import selected, selector_option
from weft.errors import UsageError

if TYPE_CHECKING:
    from weft.api.gateway_api import LabelSelector

EXAMPLES = """
weft delete virtualservice reviews        one object
weft delete vs/reviews dr/reviews         several
weft delete -f reviews.yaml               whatever the file defines
weft delete -f reviews.yaml -n shop       in namespace shop, where the file names none
weft delete vs -l app=reviews             those with these labels
weft delete vs,dr --all                   every VirtualService and DestinationRule of the namespace
"""


@click.command(cls=DocumentsCommand, examples=EXAMPLES)
@click.argument("what", nargs=-1, metavar="[KIND NAME... | KIND/NAME... | KIND[,KIND] (-l SELECTOR | --all)]")
@file_option(required=False)
@namespace_option
@selector_option
@click.option("--all", "everything", is_flag=True, help="All objects of these kinds in the namespace.")
@dry_run_option("Say what would be deleted, delete nothing; =client is the same, and needs the mesh, too.")
@click.option("--ignore-not-found", is_flag=True, help="Delete those that exist; succeed if some do not.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the affected proxies have it.")
@click.option("--timeout", type=DURATION, default="10s", show_default=True, help="How long to wait.")
@output_option("name")
@mesh_option
def command(
    *,
    what: Sequence[str],
    files: Sequence[str],
    recursive: bool,
    namespace: str | None,
    selector: LabelSelector | None,
    everything: bool,
    dry_run: str,
    ignore_not_found: bool,
    wait: bool,
    timeout: float,
    output: str,
    mesh: str | None,
) -> None:
    """Delete configuration objects. All of them, or none if one does not exist (see --ignore-not-found)."""
    references = parse_references(what)
    if bool(references) == bool(files):
        raise UsageError("Say what to delete: either KIND NAME, or -f FILE.")
    named = [name is not None for _, name in references]
    if everything and (files or any(named)):
        raise UsageError("--all goes with a KIND alone: `weft delete KIND --all`.")
    if selector is not None and (everything or files or any(named)):
        raise UsageError("-l goes with a KIND alone: `weft delete KIND -l app=reviews`.")
    if not everything and selector is None and not all(named):
        raise UsageError(
            "Say which: `weft delete KIND NAME`, `weft delete KIND -l LABEL=VALUE`, or `weft delete KIND --all`."
            " `weft get` lists them."
        )
    sources = read(files, recursive=recursive)
    client = connect(mesh)
    trial = dry_run != "none"
    more = {"dry_run": trial, "ignore_not_found": ignore_not_found, "wait": wait}
    if files:
        answer = send(client, "/v1/delete", sources, namespace=namespace, **more)
        if not (answer["results"] or ignore_not_found):
            raise no_objects(files, "delete")
    else:
        namespace = namespace or mesh_namespace(client)
        there = [
            item["key"]
            for item in client.get("/v1/config", namespace=namespace)
            if selected(selector, item["manifest"])
        ]
        if everything or selector is not None:
            keys = [key for key in there if any(means(kind, key) for kind, _ in references)]
        else:
            keys = [key for kind, name in references for key in _meant(kind, str(name), namespace, there)]
        answer = client.edit("/v1/delete", {"keys": keys, **more})
    receipt = None
    unknown = None
    if wait and not trial and answer["affected"]:
        receipt, unknown = receipt_or_why_not(client, answer["revision"], timeout)
    if not answer["results"]:
        click.echo("Nothing to delete.", err=True)
    for problem in from_json(answer["warnings"]):  # about others, which refer to what is gone
        click.echo(render(problem, {}), err=True)
    lines = [full_name(it) if output == NAME else describe(it, dry_run=trial) for it in answer["results"]]
    emit({**answer, "receipt": receipt}, output, lambda: "\n".join(lines))
    if unknown is not None:
        raise unknown
    if receipt is not None:
        check_receipt(receipt, timeout)


def _meant(kind: str, name: str, namespace: str, there: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the object that *kind* and *name* mean; one that is not there is left to the control plane to report."""
    found = [key for key in there if means(kind, key) and key["name"] == name]
    if len(found) > 1:
        raise UsageError(f"There are two: say {' or '.join(_qualified(key['kind']) for key in found)}.")
    return found or [{"kind": kind.removesuffix(".networking.istio.io"), "namespace": namespace, "name": name}]


def _qualified(kind: str) -> str:
    return (kind if "." in kind else ISTIO_GATEWAY).lower()
