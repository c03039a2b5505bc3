"""`weft apply`: send documents to the control plane, say what became of them, and wait for the proxies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from weft.cli.client import (
    LONGEST_WAIT_SECONDS,
    PAUSE_SECONDS,
    TIMEOUT_SECONDS,
    Away,
    Client,
    Interrupted,
    Unanswered,
    connect,
)
from weft.cli.documents import (
    DURATION,
    DocumentsCommand,
    Sources,
    dry_run_option,
    file_option,
    no_objects,
    parsed,
    read,
)
from weft.cli.kinds import namespace_option
from weft.cli.output import NAME, as_list, duration, emit, mesh_option, output_option, place, plural
from weft.cli.problems import Refused, from_json, render
from weft.errors import InvalidConfiguration, NotFound, NotSynced, WeftError

EXAMPLES = """
weft apply -f reviews.yaml                    apply a file, and wait until the proxies have it
weft apply -f networking/ --dry-run           check a directory of files; change nothing
weft apply -R -f all/ --dry-run=client        without a mesh, and the directories below it, too
weft apply -f all/ --dry-run=client -o yaml   print the objects that it holds
weft apply -f - --strict < all.yaml           standard input; a dangling reference refuses, too
weft apply -f reviews.yaml -n shop            into namespace shop, if the file names none
weft apply -f reviews.yaml --no-wait          return as soon as the control plane has it
"""


@click.command(cls=DocumentsCommand, examples=EXAMPLES)
@file_option(required=True)
@namespace_option
@dry_run_option("Check everything, change nothing; with =client without asking a mesh, so that none need run.")
@click.option("--strict", is_flag=True, help="Refuse what would only be warned about.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the affected proxies have it.")
@click.option("--timeout", type=DURATION, default="10s", show_default=True, help="How long to wait.")
@output_option("name")
@mesh_option
def command(
    *,
    files: Sequence[str],
    recursive: bool,
    namespace: str | None,
    dry_run: str,
    strict: bool,
    wait: bool,
    timeout: float,
    output: str,
    mesh: str | None,
) -> None:
    """
    Apply configuration: Istio's YAML and the Gateway API's, as it is.

    All documents take effect together, or none. Exits with 3 if a document is refused, with 6 if a proxy has not
    acknowledged within --timeout or has refused the change. A program that is stopped (Ctrl-Z) is not waited for.
    A change between plain text and mutual TLS is made in steps, each of which waits up to 10 s for proxies that are
    silent; --timeout begins when the last one is made.
    """
    sources = read(files, recursive=recursive)
    started = time.monotonic()
    trial = dry_run != "none"
    receipt = None
    unknown = None
    if dry_run == "client":
        answer = check(sources, namespace=namespace, strict=strict)
    else:
        client = connect(mesh)
        answer = send(client, "/v1/apply", sources, namespace=namespace, dry_run=trial, strict=strict, wait=wait)
        if wait and not trial and answer["affected"]:
            receipt, unknown = receipt_or_why_not(client, answer["revision"], timeout)
    if not answer["results"]:
        raise no_objects(files, "apply")
    elapsed = time.monotonic() - started
    for problem in from_json(answer["warnings"]):
        click.echo(render(problem, sources.texts), err=True)
    data: Mapping[str, Any] = {**answer, "receipt": receipt}
    if dry_run == "client":
        data = as_list(answer["manifests"])  # nothing became of them; as kubectl has it, what they are
    if output == NAME:
        emit(data, output, lambda: "\n".join(full_name(result) for result in answer["results"]))
    else:
        emit(data, output, lambda: _text(answer, receipt, elapsed, dry_run=dry_run, wait=wait))
    if unknown is not None:
        raise unknown
    if receipt is not None:
        check_receipt(receipt, timeout)
    elif wait and not trial and not _changes(answer):
        _await_earlier(client, timeout)


def check(sources: Sources, *, namespace: str | None, strict: bool) -> dict[str, Any]:
    """
    Return what `send` would of an apply, for as much as the documents alone tell, and the objects as `manifests`.

    Raises:
        Refused: They have mistakes.
    """
    from weft.controlplane.edit import key_to_json, problem_to_json

    result = parsed(sources, strict=strict, namespace=namespace or "default", confined=namespace is not None)
    checked = [
        {"key": key_to_json(item.key), "api_version": item.api_version, "action": "checked"} for item in result.objects
    ]
    manifests = []
    for item in result.objects:
        metadata = item.manifest["metadata"]
        if namespace is not None and item.key.namespace:
            metadata = {**metadata, "namespace": namespace}
        manifests.append({**item.manifest, "metadata": metadata})
    return {
        "results": checked,
        "affected": [],
        "warnings": [problem_to_json(problem) for problem in result.problems],
        "manifests": manifests,
    }


def send(client: Client, call: str, sources: Sources, **more: object) -> Any:
    """
    Post documents.

    Raises:
        Refused: The documents have mistakes, or are no text; carries the texts for the excerpts.
    """
    documents = [{"file": file, "text": text} for file, text in sources.texts.items()]
    if sources.unreadable:
        more |= {"dry_run": True}  # it is refused already; what else is wrong is to be said with it
    try:
        answer = client.edit(call, {"documents": documents, **more})
    except InvalidConfiguration as error:
        raise Refused([*sources.unreadable, *error.problems], sources.texts) from error
    except NotFound:
        if not sources.unreadable:
            raise
    if sources.unreadable:
        raise Refused(sources.unreadable, sources.texts)
    return answer


def await_receipt(client: Client, revision: int, timeout: float) -> dict[str, Any]:
    """
    Return the receipt of *revision* once everybody who is waited for has answered, or after *timeout* seconds.

    A control plane that dies meanwhile is asked again when it is back: it keeps receipts.

    Raises:
        WeftError: At the end of that time there is nobody to ask.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = max(0.0, deadline - time.monotonic())
        wait = min(left, LONGEST_WAIT_SECONDS)
        try:
            answer = client.get(f"/v1/revisions/{revision}", wait=wait, timeout=wait + TIMEOUT_SECONDS)
        except (Unanswered, Away) as error:
            if time.monotonic() >= deadline:
                raise WeftError(
                    f"Who has revision {revision} is not known. {error} `weft wait --revision {revision}` asks again."
                ) from error
            time.sleep(PAUSE_SECONDS)
            continue
        assert isinstance(answer, dict)
        if not is_awaited(answer) or wait == left:
            return answer


def receipt_or_why_not(
    client: Client, revision: int, timeout: float
) -> tuple[dict[str, Any], None] | tuple[None, WeftError]:
    """As `await_receipt`; that there is nobody to ask, or Ctrl-C, is returned, for it is told after what was done."""
    try:
        return await_receipt(client, revision, timeout), None
    except KeyboardInterrupt:
        return None, Interrupted(f"Interrupted. {_outstanding(client, revision)}")
    except WeftError as error:
        return None, error


def _outstanding(client: Client, revision: int) -> str:
    """Return that *revision* is stored, and who has yet to acknowledge it, for somebody who waits no longer."""
    stored = f"Revision {revision} is stored and takes effect all the same"
    goes_on = f"`weft wait --revision {revision}` waits for them."
    try:
        receipt = client.get(f"/v1/revisions/{revision}")
    except WeftError:
        return f"{stored}; who has it is not known. {goes_on}"
    names = sorted({*receipt["silent"], *(item["workload"] for item in receipt["late"])})
    if not names:
        return f"{stored}; nobody has yet to acknowledge it."
    return f"{stored}; {', '.join(names)} {'has' if len(names) == 1 else 'have'} not acknowledged it yet. {goes_on}"


def is_awaited(receipt: Mapping[str, Any]) -> bool:
    """Whether somebody has yet to answer who can."""
    return bool(receipt["silent"]) or any(item["agent"]["state"] == "silent" for item in receipt["late"])


def check_receipt(receipt: Mapping[str, Any], timeout: float) -> None:
    """
    Raise unless every affected proxy has acknowledged, and every program is answered by the names of now.

    Who is stopped is told on standard error, and not waited for.

    Raises:
        NotSynced: Names the proxies that are silent or have refused, what they refused, and the agents that are silent.
    """
    late = [item for item in receipt["late"] if item["agent"]["state"] == "silent"]
    tell_stopped(receipt["late"])
    check_answers(receipt["silent"], late, timeout, receipt["refused"])


def check_answers(
    silent: Sequence[str],
    late: Sequence[Mapping[str, Any]],
    timeout: float,
    refused: Sequence[Mapping[str, Any]] = (),
) -> None:
    """
    Raise unless nobody is named.

    Raises:
        NotSynced: Names them, and why each.
    """
    if not silent and not late and not refused:
        return
    lines = [f"{', '.join(silent)} did not answer within {duration(timeout)}."] if silent else []
    lines += [f"{item['workload']}: {lateness(item['agent'])}" for item in late]
    lines += refusals(refused)
    raise NotSynced(
        "\n".join(lines),
        silent=silent,
        refused=[item["workload"] for item in refused],
        late=[item["workload"] for item in late],
    )


def tell_stopped(found: Sequence[Mapping[str, Any]]) -> None:
    """Say on standard error which of *found*, proxies or what is late of a receipt, are stopped."""
    for item in found:
        if item["agent"]["state"] == "stopped":
            click.echo(f"{item['workload']} was not waited for: {lateness(item['agent'])}", err=True)


def lateness(agent: Mapping[str, Any]) -> str:
    """Return why a program is not answered by the names of now; empty if it is."""
    if agent["state"] == "stopped":
        return (
            f"its agent, process {agent['pid']}, is stopped, as by Ctrl-Z; it gets what is new when it goes on"
            f" (fg, or kill -CONT {agent['pid']})."
        )
    if agent["state"] == "silent":
        return f"its agent, process {agent['pid']}, is silent: its program is not answered by the names of now."
    return ""


def refusals(refused: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each thing that a proxy refused, as a receipt has it."""
    lines = []
    for item in refused:
        lines += [f"{item['workload']} refused {refusal(part)}{superseded([item])}" for part in item["resources"]]
    return lines


def superseded(items: Sequence[Mapping[str, Any]]) -> str:
    """Return by which revision what proxies refused is over, and whether they have that one; empty if it is not over."""
    revision, mended = items[0]["superseded_by"], items[0]["mended"]
    if revision is None:
        return ""
    have = ("it has" if mended else "it has not") if len(items) == 1 else ("they have" if mended else "they have not")
    return f" (superseded by revision {revision}, which {have})"


def refusal(part: Mapping[str, Any]) -> str:
    """Return what a proxy refused, why, and where it is written."""
    places = f" (from {', '.join(map(place, part['origins']))})" if part.get("origins") else ""
    return f"{part['name']}: {part['message']}{places}"


def _changes(answer: Mapping[str, Any]) -> bool:
    """Whether an apply changed any object."""
    return any(result["action"] not in ("unchanged", "kept") for result in answer["results"])


def _await_earlier(client: Client, timeout: float) -> None:
    """Wait for what others still lack: an apply that is tried again must not succeed because the first one changed it."""
    deadline = time.monotonic() + timeout
    behind = [proxy for proxy in client.get("/v1/proxies") if proxy["connected"] and not proxy["synced"]]
    for revision in sorted({proxy["published"] for proxy in behind if proxy["published"]}):
        check_receipt(await_receipt(client, revision, max(0.0, deadline - time.monotonic())), timeout)
    # Of names nobody says here which revision has changed them.
    while late := [proxy for proxy in client.get("/v1/proxies") if proxy["agent"]["state"] == "silent"]:
        if (left := deadline - time.monotonic()) <= 0:
            check_answers([], late, timeout)
        time.sleep(min(PAUSE_SECONDS, max(0.0, left)))


def full_name(result: Mapping[str, Any]) -> str:
    """Return `virtualservice.networking.istio.io/reviews`, what kubectl calls an object by `-o name`."""
    kind, group = result["key"]["kind"].partition(".")[0].lower(), result["api_version"].rpartition("/")[0]
    return f"{kind}.{group}/{result['key']['name']}" if group else f"{kind}/{result['key']['name']}"


def describe(result: Mapping[str, Any], *, dry_run: bool = False) -> str:
    """Return `virtualservice.networking.istio.io/reviews configured`, as kubectl says it."""
    namespace = result["key"]["namespace"]
    place = "" if namespace in ("", "default") else f" (namespace {namespace})"
    return f"{full_name(result)} {result['action']}{place}{' (dry run)' if dry_run else ''}"


def _text(
    answer: Mapping[str, Any], receipt: Mapping[str, Any] | None, elapsed: float, *, dry_run: str, wait: bool
) -> str:
    lines = [describe(result, dry_run=dry_run != "none") for result in answer["results"]]
    affected = answer["affected"]
    if dry_run == "client":
        pass  # whom it would affect is the mesh's to say
    elif dry_run == "server":
        lines.append(f"{plural(len(affected), 'proxy', 'proxies')} would be affected.")
    elif receipt is not None:
        had = len(receipt["acknowledged"])
        if _changes(answer):
            whom = plural(len(receipt["affected"]), "affected proxy has it", "affected proxies have it")
            lines.append(f"{had} of {whom} ({duration(elapsed)}).")
        else:
            # The same objects from another place: proxies are told it, for their records and for `weft why`.
            whom = plural(len(receipt["affected"]), "proxy has", "proxies have")
            lines.append(
                f"Only where they are written has changed: {had} of {whom} the new place ({duration(elapsed)})."
            )
    elif not affected:
        lines.append("No proxy is affected.")
    elif not wait:
        whom = plural(len(affected), "proxy", "proxies")
        lines.append(f"Revision {answer['revision']} is on its way to {whom}.")
    return "\n".join(lines)
