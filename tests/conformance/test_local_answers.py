"""Answers that a proxy gives by itself: weft-proxy and Envoy, to requests of HTTP and to calls of gRPC."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.conformance.both import Json, address, both, http_filters, listener, typed
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Accepting, read_rest, unanswering
from tests.ports import free_port

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

RECORD = {
    "path": "%REQ(:PATH)%",
    "type": "%REQ(CONTENT-TYPE)%",
    "code": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "grpc": "%GRPC_STATUS_NUMBER%",
    "sent": "%BYTES_SENT%",
}

FAULT, RBAC = "envoy.filters.http.fault", "envoy.filters.http.rbac"


def direct(status: int, body: str = "") -> Json:
    return {"direct_response": {"status": status, **({"body": {"inline_string": body}} if body else {})}}


def edit(name: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Json:
    return {"header": {"key": name, "value": value}, "append_action": action}


def to(cluster: str, **action: object) -> Json:
    return {"route": {"cluster": cluster, **action}}


ROUTES: dict[str, Json] = {
    **{f"/direct/{status}": direct(status) for status in (200, 400, 401, 403, 404, 429, 500, 502, 503, 504)},
    "/told": direct(503, "no w\u00e4y: 5%\n"),
    "/found": direct(200, "found"),
    "/typed": {**direct(200, "{}"), "response_headers_to_add": [edit("content-type", "application/json")]},
    "/typed-nothing": {**direct(503), "response_headers_to_add": [edit("content-type", "application/json")]},
    "/untyped": {**direct(503, "no"), "response_headers_to_remove": ["content-type", "grpc-status", "grpc-message"]},
    "/chosen": {**direct(503, "no"), "response_headers_to_add": [edit("grpc-status", "3"), edit("grpc-message", "x")]},
    "/redirect": {"redirect": {"path_redirect": "/new"}},
    "/abort": {
        **to("silent"),
        "typed_per_filter_config": {
            FAULT: typed(
                "filters.http.fault.v3.HTTPFault", abort={"http_status": 429, "percentage": {"numerator": 100}}
            )
        },
    },
    "/denied": to("silent"),
    "/no-cluster": to("nowhere"),
    "/no-cluster-404": to("nowhere", cluster_not_found_response_code="NOT_FOUND"),
    "/no-endpoint": to("empty"),
    "/refused": to("closed"),
    "/unanswered": to("unanswering"),
    "/overflow": to("full"),
    "/slow": to("silent", timeout="0.2s"),
    "/slow-twice": to("silent", retry_policy={"retry_on": "reset", "num_retries": 1, "per_try_timeout": "0.2s"}),
    "/idle": to("silent", idle_timeout="0.2s"),
    "/old": to("silent", max_stream_duration={"max_stream_duration": "0.2s"}),
}

UNROUTED = ("/nothing", "/escaped%2fslash")

MARKS = [edit("x-mark", "1"), edit("x-flags", "%RESPONSE_FLAGS%")]
"""What every route adds to an answer, whoever gives it."""


class Silent(Accepting):
    """Takes requests and never answers."""

    def serve(self, connection: socket.socket) -> None:
        read_rest(connection)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of one."""
    with Silent() as server:
        yield server.port


def resources(ports: dict[str, int], directory: Path, silent: int, unanswering: int) -> Json:
    routes = [
        {
            "match": {"path": path},
            **route,
            "response_headers_to_add": [*MARKS, *route.get("response_headers_to_add", [])],
        }
        for path, route in ROUTES.items()
    ]
    filters = http_filters(routes, include_attempt_count_in_response=True)
    manager = filters[0]["typed_config"]
    manager["route_config"]["validate_clusters"] = False
    denied = {"permissions": [{"url_path": {"path": {"exact": "/denied"}}}], "principals": [{"any": True}]}
    rules = {"action": "DENY", "policies": {"none": denied}}
    manager["http_filters"] = [
        {"name": RBAC, "typed_config": typed("filters.http.rbac.v3.RBAC", rules=rules)},
        {"name": FAULT, "typed_config": typed("filters.http.fault.v3.HTTPFault")},
        *manager["http_filters"],
    ]
    manager["path_with_escaped_slashes_action"] = "UNESCAPE_AND_REDIRECT"
    log = {"path": str(directory / f"{ports['http']}.log"), "log_format": {"json_format": RECORD}}
    manager["access_log"] = [{"name": "file", "typed_config": typed("access_loggers.file.v3.FileAccessLog", **log)}]
    none = {"thresholds": [{"max_connections": 0, "max_pending_requests": 0, "max_requests": 0}]}
    clusters = [
        {
            "name": name,
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}] if port else [],
            },
            **more,
        }
        for name, port, more in (
            ("silent", silent, {}),
            ("empty", 0, {}),
            ("closed", free_port(), {}),
            ("unanswering", unanswering, {"connect_timeout": "0.2s"}),
            ("full", silent, {"circuit_breakers": none}),
        )
    ]
    return {"listeners": [listener("http", ports["http"], filters)], "clusters": clusters}


def in_order(flags: str) -> str:
    """Either order means the same."""
    return ",".join(sorted(flags.split(",")))


def answer(proxy: Static, path: str, kind: str) -> Json:
    """What a client sees of the answer to a request of the type *kind*, without what differs from time to time."""
    client = http.client.HTTPConnection("127.0.0.1", proxy.ports["http"], timeout=LIMIT)
    client.request("POST", path, headers={"host": "a", "content-type": kind, "content-length": "0"})
    found = client.getresponse()
    body = found.read().decode()
    client.close()
    headers = {name.lower(): value for name, value in found.getheaders()}
    for name in ("date", "connection"):
        headers.pop(name, None)
    if "x-flags" in headers:
        headers["x-flags"] = in_order(headers["x-flags"])
    if path == "/refused":
        # weft-proxy says in words what the transport said; Envoy keeps that to its record.
        body = body.partition(", transport failure reason")[0]
        headers["content-length"] = str(len(body))
        if "grpc-message" in headers:
            headers["grpc-message"] = headers["grpc-message"].partition(", transport failure reason")[0]
    return {"status": found.status, "headers": headers, "body": body}


def records(proxy: Static, directory: Path, count: int) -> dict[str, Json]:
    log = directory / f"{proxy.ports['http']}.log"
    until("every record", lambda: log.exists() and len(log.read_text().splitlines()) == count)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    for record in found:
        record["flags"] = in_order(record["flags"])
        # Of a path that is refused for its escapes weft-proxy records what came, Envoy what it would have been.
        record["path"] = record["path"].replace("%2f", "/")
        if record["path"] == "/refused":
            del record["sent"]
    return {f"{record['path']} {record['type']}": record for record in found}


def told(proxy: Static, directory: Path) -> tuple[dict[str, Json], dict[str, Json], dict[str, tuple[str, str]]]:
    """Answers and records of all requests, and what a client of gRPC makes of some."""
    paths = (*ROUTES, *UNROUTED)
    kinds = ("application/grpc", "application/json")
    answers = {f"{path} {kind}": answer(proxy, path, kind) for path in paths for kind in kinds}
    calls = {}
    with grpc.insecure_channel(f"127.0.0.1:{proxy.ports['http']}") as channel:
        for path in ("/told", "/chosen", "/abort", "/nothing"):
            with pytest.raises(grpc.RpcError) as failure:
                channel.unary_unary(path)(b"", timeout=LIMIT)
            calls[path] = (str(failure.value.code()), str(failure.value.details()))
    return answers, records(proxy, directory, len(answers) + len(calls)), calls


def test_both_answer_by_themselves_alike_in_http_and_in_grpc(tmp_path: Path, silent: int) -> None:
    """Status, headers and body, with what the route adds to them; the records of them; and what a client of gRPC is told."""
    with (
        unanswering() as full,
        both(tmp_path, ("http",), lambda ports: resources(ports, tmp_path, silent, full)) as (envoy, weft),
    ):
        expected, seen = told(envoy, tmp_path), told(weft, tmp_path)
    for of_envoy, of_weft in zip(expected, seen, strict=True):
        differing = {key: (of_weft.get(key), value) for key, value in of_envoy.items() if of_weft.get(key) != value}
        assert not differing, "\n".join(
            f"{key}\n  weft  {pair[0]}\n  envoy {pair[1]}" for key, pair in differing.items()
        )
    answers, lines, calls = seen
    grpc_answer = answers["/told application/grpc"]
    assert (grpc_answer["status"], grpc_answer["headers"]["grpc-status"], grpc_answer["body"]) == (200, "14", "")
    assert grpc_answer["headers"]["grpc-message"] == "no w%C3%A4y: 5%25%0A"
    assert calls["/told"] == ("StatusCode.UNAVAILABLE", "no w\u00e4y: 5%\n")
    assert calls["/chosen"][0] == "StatusCode.INVALID_ARGUMENT"
    assert answers["/slow application/json"]["headers"]["x-mark"] == "1"
    assert lines["/told application/grpc"]["details"] == "direct_response"
