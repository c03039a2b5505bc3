"""`weft why`: what happened to a request, or where one would go, by the proxy's own decision code in this process."""

from __future__ import annotations

import base64
import dataclasses
import functools
import http.client
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import click

from weft.cli.client import Client, ask_proxy, connect
from weft.cli.main import ExampleCommand
from weft.cli.output import emit, mesh_option, output_option, place
from weft.cli.proxy_config import found_health
from weft.errors import NotFound, UsageError

EXAMPLES = """
weft why 6ab9c9bc-456e-464b-aeeb-48b60be01ac2     what happened to this request
weft why --last-failed                            to the last that failed
weft why --last --from productpage -o json
weft why --from productpage --to http://reviews:9080/reviews/0
weft why --from productpage --to http://reviews:9080/reviews/0 -H 'end-user: jason'
weft why --from productpage --to http://ratings:9080/ratings/0 -X POST -o json
weft why --from ingressgateway --to http://bookinfo.localhost:8080/productpage
"""


ARRIVAL_SECONDS = 1.5
"""How long a request that was just made is waited for: proxies send their records every tenth of a second."""

POLL_SECONDS = 0.1

HEALTH_SECONDS = 1.0
"""How long a proxy is waited for that is asked what it has found of its endpoints: one that works answers at once."""

REFUSED_SHOWN = 200
"""Refused connections, from the beginning of a request on, that are looked through for the one behind its failure."""

EXPLAINED = 100
"""Records under one id that are explained, the newest. A request has few; a program that gives all of its own one id has any number."""

CLOCK_SECONDS = 1.0
"""By which the clocks of proxies and of the control plane, and the arrival of a record, may differ."""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@click.argument("request_id", required=False)
@click.option("--last", "newest", flag_value="last", help="The last request that a proxy saw.")
@click.option(
    "--last-failed", "newest", flag_value="last-failed", help="The last request, connection or lookup that failed."
)
@click.option("--from", "source", metavar="PROGRAM", help="A service or one of its workloads.")
@click.option("--to", "url", metavar="URL", help="What it would call; a word alone is a host, as to curl.")
@click.option("-X", "--request", "method", default="GET", show_default=True, help="The method.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header. May be repeated.")
@output_option()
@mesh_option
def command(
    *,
    request_id: str | None,
    newest: str | None,
    source: str | None,
    url: str | None,
    method: str,
    headers: tuple[str, ...],
    output: str,
    mesh: str | None,
) -> None:
    """
    Explain what happened to a request, or where one would go.

    With REQUEST_ID (its x-request-id; `weft logs` shows it), --last or --last-failed: what each proxy saw of it, every
    try, who answered and why, by the configuration that was in force then. --last-failed finds a host that nobody has, too,
    which no proxy saw. --from keeps to the records of one program, and connections of it that were refused.

    With --from and --to nothing is sent. The answer comes from the code that decides in the proxy, on what the proxy
    was told and says of its endpoints now (ejected, failing a check); each value is shown with the line that somebody
    wrote, or as weft's default. Of a host that is no service it says which was probably meant.
    """
    if sum(1 for way in (request_id, newest, url) if way) != 1:
        raise UsageError("Name a request id, --last, --last-failed, or --from PROGRAM --to URL; one of these.")
    if url is None:
        if headers or method != "GET":
            raise UsageError("-X and -H belong to --to: a request that has been has its own method and headers.")
        if request_id and source:
            raise UsageError("--from goes with --last, --last-failed and --to; a request id says enough.")
        _past(connect(mesh), request_id, newest == "last-failed", source, output)
        return
    if not source:
        raise UsageError("--to needs --from PROGRAM: whose request would it be?")
    _future(connect(mesh), source, url, method, headers, output)


def _past(client: Client, request_id: str | None, failed: bool, source: str | None, output: str) -> None:
    """Explain a request that has been."""
    from weft.insight import happened, programs, tell, tree_to_json
    from weft.telemetry import Configuration, Record

    def records(**query: Any) -> list[Record]:
        return [Record.from_json(item) for item in client.get("/v1/records", **query)["records"]]

    known: dict[tuple[str, int, float, float | None], Configuration] = {}

    def configuration(node: str, item: dict[str, Any]) -> Configuration:
        key = (node, item["revision"], item["published"], item["acknowledged"])
        if key not in known:  # most records of a proxy are of one
            known[key] = Configuration(*key, tuple(_decoded(resource) for resource in item["resources"]))
        return known[key]

    @functools.cache  # of one record more than one thing is asked
    def configurations(node: str, at: float) -> list[Configuration]:
        return [configuration(node, item) for item in client.get("/v1/history", node=node, at=at)]

    found: list[Record] = []
    if request_id is None:
        query = {"limit": 1} | ({"failed": 1} if failed else {}) | ({"workload": source} if source else {})
        found = records(**query)
        if not found and failed:
            emit([], output, lambda: "No request has failed, as far as is known.")  # an answer, and a good one
            return
        if not found:
            raise NotFound("No proxy has seen a request yet.")
        request_id = found[0].request_id
    if request_id:
        found = _whole(lambda: records(request_id=request_id))
        if not found:
            raise NotFound(
                f"No proxy has told of a request {request_id!r}. `weft logs --access` shows the ids of those that were seen;"
                " only the newest are kept. A gateway gives what comes to it an id of its own, whatever the client sent."
            )
    if len(found) > EXPLAINED:
        click.echo(
            f"{len(found)} records have this id, of which the newest {EXPLAINED} are explained: an id is for one request and"
            " what follows from it.",
            err=True,
        )
        found = sorted(found, key=lambda record: record.start)[-EXPLAINED:]
    began = min(item.start for item in found) - CLOCK_SECONDS
    refused = records(limit=REFUSED_SHOWN, failed=1, log="connections", since=began)
    running = programs(client.get("/v1/workloads"), client.get("/v1/proxies"))
    trees = happened(found, refused, configurations, running, client.get("/v1/services"))
    emit([tree_to_json(hop) for hop in trees], output, lambda: tell(trees, place))


def _whole(ask: Callable[[], list[Any]]) -> list[Any]:
    """Return the records of a request, once no more come: those of its other hops may still be on their way."""
    deadline = time.monotonic() + ARRIVAL_SECONDS
    found = ask()
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        before, found = found, ask()
        if found and len(found) == len(before) and time.time() - max(item.end for item in found) > ARRIVAL_SECONDS / 3:
            break
    return found


def _future(client: Client, source: str, url: str, method: str, headers: tuple[str, ...], output: str) -> None:
    """Explain a request that somebody thinks of."""
    from weft.insight import Question, explain, render

    explanation = explain(
        Question(source, url, method.upper(), tuple(_header(text) for text in headers)),
        workloads=client.get("/v1/workloads"),
        services=client.get("/v1/services"),
        resources=lambda workload: _resources(client, workload),
        health=lambda workload: _health(client, workload),
        machine=socket.gethostname(),
        place=place,
    )
    if output == "table":
        click.echo(render(explanation, place))
        return
    data: dict[str, Any] = {
        "from": explanation.workload,
        "identity": explanation.identity,
        "target": dataclasses.asdict(explanation.target),
        "refusal": explanation.refusal and dataclasses.asdict(explanation.refusal),
        "http_refusal": explanation.http_refusal and dataclasses.asdict(explanation.http_refusal),
        "unknown_host": explanation.unknown_host and dataclasses.asdict(explanation.unknown_host),
        "unused_endpoints": None
        if explanation.unused is None
        else [
            {"cluster": cluster, "address": address, "state": state}
            for (cluster, address), state in sorted(explanation.unused.items())
        ],
        "outbound": explanation.outbound.raw,
        "inbound": [
            {
                "workload": side.workload,
                "identity": side.identity,
                "requires_tls": side.requires_tls,
                "accepts": {"mutual_tls": side.accepted.mutual, "plain_text": side.accepted.plain},
                "policy": dict(side.accepted.policy),
                "refusal": side.refusal and dataclasses.asdict(side.refusal),
                "decision": side.decision.raw,
            }
            for side in explanation.inbound
        ],
        "assumptions": list(explanation.assumptions),
    }
    emit(data, output, str)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f"{text!r} is no header: write 'NAME: VALUE'.")
    return name.strip(), value.strip()


def _health(client: Client, workload: str) -> dict[tuple[str, str], str] | None:
    """What a proxy has found of its endpoints; None if it does not answer."""
    try:
        _, text = ask_proxy(client.admin_socket(workload), "/clusters?format=json", seconds=HEALTH_SECONDS)
        return found_health(json.loads(text))
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _resources(client: Client, workload: str) -> list[tuple[str, str, bytes]]:
    found = client.get(f"/v1/proxies/{workload}/resources")
    return [_decoded(item) for item in found]


def _decoded(item: dict[str, str]) -> tuple[str, str, bytes]:
    return item["type_url"], item["name"], base64.b64decode(item["value"])
