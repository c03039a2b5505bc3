"""
Links between two sidecars by HTTP/1.1 and by HTTP/2: what HTTP/1.1 applications at both ends observe (decision 0012).

Each case of `link_cases.py` is played over three links to the same kind of sidecar: one that `h2UpgradePolicy` keeps at
HTTP/1.1, one that it upgrades, and one that nobody says anything of. `SEEN` is what a pair of weft-proxy shows over
HTTP/1.1, `OTHERS` what other pairs show instead; `LOST` is what becomes another over HTTP/2. Nothing else may differ,
and what is lost by the default is named in `LOST_BY_DEFAULT`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.proxies import ask
from tests.live.apps import CLOSED, RESET, Scripted, Wire
from tests.live.link_cases import CASES, STUCK, Seen, Way, answer, noting
from tests.live.mesh import LiveMesh, Member, live_mesh, until
from weft.telemetry.exposition import LABEL, parse

WEFT, ENVOY = "weft-proxy", "envoy"
PAIRS = ((WEFT, WEFT), (WEFT, ENVOY), (ENVOY, WEFT), (ENVOY, ENVOY))
"""(the caller's data plane, the callee's)"""

UPGRADE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec:
  host: {name}
  trafficPolicy:
    connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}
"""

_UNLIKE_CASE = {"program": ["x-request-field: 1"], "client": ["x-answer-field: 1"]}
_PAGE_AS_TUNNEL = {"client": "HTTP/1.1 200 OK", "body": b""}
_ODD = "GET PATH/a%2Fb;x=1,2@:!$&'()*+{}?q=%20&r=a+b?c=/ HTTP/1.1"
_TARGETS = ["GET PATH?absolute HTTP/1.1", "PURGE PATH HTTP/1.1", "POST PATH HTTP/1.1"]
_KNOWN_STATUSES = ["HTTP/1.1 200 OK", "HTTP/1.1 299 Unknown", "HTTP/1.1 404 Not Found"]

SEEN: dict[str, Seen] = {
    "names_of_fields": {"program": ["X-Request-Field: 1"], "client": ["X-Answer-Field: 1"]},
    "order_of_fields": {
        "one name": ["1, 3", "1, 3"],
        "same values": True,
        "set-cookie": ["set-cookie: a=1", "set-cookie: b=2"],
    },
    "cookies": {"one": "a=1; b=2; c=3", "two": "a=1; b=2"},
    "fields_that_sidecars_add": {
        "program": ["host: HOST", "x-envoy-attempt-count: 1", "x-forwarded-proto: http"],
        "caller": ["URI=spiffe://cluster.local/ns/default/sa/caller"],
        "client": ["content-length: 2"],
    },
    "start_lines": {
        "program": [_ODD.format('|^`{}"<>'), *_TARGETS],
        # What a program says behind the number is not passed on by either data plane (RFC 9112 4).
        "client": [*_KNOWN_STATUSES, "HTTP/1.1 418 I'm a teapot", "HTTP/1.1 599 Unknown", "HTTP/1.1 799 Unknown"],
        "length": ["content-length: 0"],
    },
    "client_closes": {
        "program told": [],
        "client told": ["connection: close"],
        "client's connection": CLOSED,
        "new connections of the program": 0,
    },
    "program_closes": {"client": [("HTTP/1.1 200 OK", [], b"ok")] * 2, "requests": 2},
    "connection_names_fields": {"program": ["x-stays: 1"], "client": ["x-stays: 1"]},
    "client_of_http10": {
        "program": ["HTTP/1.1"],
        "client": ["HTTP/1.1 200 OK", "connection: close"],
        "body": b"ok",
    },
    "program_of_http10": {
        "client": ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "transfer-encoding: chunked"],
        "body": (b"all of it", []),
    },
    "pipelined_requests": {"client": b"01234"},
    "lengths": {
        "program": [["content-length: 5"], ["transfer-encoding: chunked"], [], [], [], []],
        "client": [
            ["content-length: 3"],
            ["transfer-encoding: chunked"],
            ["content-length: 3"],
            ["content-length: 1234"],
            [],
            ["content-length: 1234"],
        ],
    },
    "body_behind_head_and_nothing": {
        "client": ["HTTP/1.1 200 OK", "HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified", "HTTP/1.1 200 OK"],
        "body": b"ok",
    },
    "trailers": {"program": [(["te: trailers"], (b"hi", ["x-check: 1"]))], "client": (b"ok", ["x-sum: 2"])},
    "expectation_met": {
        "client": ["HTTP/1.1 100 Continue", "HTTP/1.1 200 OK"],
        "program": ["expect: 100-continue", "go on", "body"],
        "from the program": True,
    },
    "expectation_refused": {"client": ["HTTP/1.1 417 Expectation Failed", "connection: close"]},
    "interim_answers": {
        "client": [
            ["HTTP/1.1 103 Early Hints", "link: </a>"],
            ["HTTP/1.1 103 Early Hints", "link: </b>"],
            ["HTTP/1.1 200 OK"],
        ]
    },
    "early_answer": {"client": ["HTTP/1.1 413 Content Too Large", "connection: close"], "body": b"no"},
    "answer_before_the_request_ends": {"client": [b"ONE", b"TWO", b"THREE"], "end": (b"", [])},
    "client_half_closes": {"client": CLOSED},
    "client_leaves": {"program": [True, True]},
    "client_leaves_in_order": {"program": [True, True]},
    "program_breaks_off": {"client": [("HTTP/1.1 200 OK", True, False, RESET)] * 4},
    "program_answers_nothing": {"client": "HTTP/1.1 503 Service Unavailable", "requests": 1},
    "large_heads": {
        "program": [True, True],
        "client": ["HTTP/1.1 200 OK", 20000, "HTTP/1.1 200 OK", "HTTP/1.1 431 Request Header Fields Too Large"],
    },
    "large_bodies": {"right": [True] * 8},
    "clients_that_do_not_read": {"others": "1048576", "later ones": "1048576", "the program waits": True},
    "program_that_does_not_read": {"others": "1048576", "later ones": "1048576"},
    "websocket": {
        "program": [
            "GET PATH HTTP/1.1",
            "connection: upgrade",
            "sec-websocket-protocol: chat",
            "sec-websocket-version: 13",
            "upgrade: websocket",
            "ping",
            CLOSED,
        ],
        "client": [
            "HTTP/1.1 101 Switching Protocols",
            "connection: upgrade",
            "sec-websocket-protocol: chat",
            "upgrade: websocket",
        ],
        "accept fits": True,
        "back": b"pong",
        "end": CLOSED,
    },
    "websocket_refused": {"client": "HTTP/1.1 403 Forbidden", "body": b"no"},
    "websocket_passed_over": {"client": "HTTP/1.1 200 OK", "body": b"a page"},
    "other_upgrades": {"client": "HTTP/1.1 403 Forbidden"},
}

_ONE_ENVOY: dict[str, Seen] = {
    "names_of_fields": _UNLIKE_CASE,
    "lengths": {
        **SEEN["lengths"],
        "program": [["content-length: 5"], ["transfer-encoding: chunked"], ["content-length: 0"], [], [], []],
    },
    "trailers": {"program": [(["te: trailers"], (b"hi", []))], "client": (b"ok", [])},
    # It takes a 2xx for agreement, and leaves out the length.
    "websocket_passed_over": _PAGE_AS_TUNNEL,
}
_CALLER_ENVOY: dict[str, Seen] = {
    "client_of_http10": {"program": [], "client": ["HTTP/1.1 426 Upgrade Required", "connection: close"], "body": b""},
    "early_answer": {"client": ["HTTP/1.1 413 Payload Too Large", "connection: close"], "body": b"no"},
    "program_breaks_off": {"client": [("HTTP/1.1 200 OK", True, False, CLOSED)] * 4},
    "start_lines": {
        **SEEN["start_lines"],
        "program": [_ODD.format("%7C%5E%60%7B%7D%22%3C%3E"), *_TARGETS],
        "client": [
            *_KNOWN_STATUSES,
            "HTTP/1.1 418 Unknown",
            "HTTP/1.1 599 Last Unassigned Server Error Code",
            "HTTP/1.1 799 Unknown",
        ],
    },
    # The second of one moment is not passed on.
    "interim_answers": {
        "client": [["HTTP/1.1 103 Unknown", "link: </a>"], ["no interim answer"], ["HTTP/1.1 200 OK"]],
    },
}
_CALLEE_ENVOY: dict[str, Seen] = {
    "start_lines": {**SEEN["start_lines"], "program": [_ODD.format("%7C%5E%60%7B%7D%22%3C%3E"), *_TARGETS]},
    "connection_names_fields": {"program": ["x-stays: 1"], "client": ["x-hop: 1", "x-stays: 1"]},
    "interim_answers": {
        "client": [["HTTP/1.1 103 Early Hints", "link: </a>"], ["no interim answer"], ["HTTP/1.1 200 OK"]],
    },
}

OTHERS: dict[tuple[str, str], dict[str, Seen]] = {
    (WEFT, WEFT): {},
    (WEFT, ENVOY): {**_ONE_ENVOY, **_CALLEE_ENVOY},
    (ENVOY, WEFT): {**_ONE_ENVOY, **_CALLER_ENVOY},
    (ENVOY, ENVOY): {**_ONE_ENVOY, **_CALLEE_ENVOY, **_CALLER_ENVOY},
}

ANYTHING = object()
"""What is seen then depends on the moment; it is known not to be the right thing."""

SOMETIMES = object()
"""The others of a case are stuck or not, which depends on the moment."""

LOST: dict[tuple[str, str], dict[str, Any]] = {
    (WEFT, WEFT): {
        # RFC 9113 8.2.1: names are lower case.
        "names_of_fields": _UNLIKE_CASE,
        # A 2xx would mean that the program agrees (RFC 8441 5): the proxy before it answers 502.
        "websocket_passed_over": {
            "client": "HTTP/1.1 502 Bad Gateway",
            "body": b"upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        },
    },
    (WEFT, ENVOY): {
        # Envoy does not tell its program that the other end sends no more.
        "websocket": ANYTHING,
        "websocket_passed_over": ANYTHING,
    },
    (ENVOY, WEFT): {
        "lengths": SEEN["lengths"],
        # One connection, whose window forty that do not read use up.
        "clients_that_do_not_read": {**SEEN["clients_that_do_not_read"], "others": STUCK},
        "program_that_does_not_read": {**SEEN["program_that_does_not_read"], "others": STUCK},
        "websocket": {**SEEN["websocket"], "program": [*SEEN["websocket"]["program"][:-1], RESET]},
        "websocket_passed_over": {
            "client": "HTTP/1.1 502 Bad Gateway",
            "body": b"upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        },
    },
    (ENVOY, ENVOY): {
        "clients_that_do_not_read": {**SEEN["clients_that_do_not_read"], "others": STUCK},
        # What has come in at the callee before its program is known to be slow fills the window or leaves room for one more.
        "program_that_does_not_read": SOMETIMES,
        "websocket_passed_over": ANYTHING,
    },
}
"""What `h2UpgradePolicy: UPGRADE` changes, by pair and case."""

LOST_BY_DEFAULT = {((WEFT, WEFT), "names_of_fields")}
"""Of `LOST`, what happens where nobody has said anything."""


class Links:
    """A caller's sidecar and three callees', by name of the link: `h1`, `h2` and `default`."""

    def __init__(self, mesh: LiveMesh, pair: tuple[str, str], runner: asyncio.Runner) -> None:
        self.mesh, self.pair, self.runner = mesh, pair, runner

    def way(self, link: str) -> Way:
        way = Way(self.mesh["caller"], self.mesh[link], self.mesh.ports[link])
        way.program.errors.clear()
        way.program.requests = 0
        return way

    def see(self, case: str, link: str) -> Seen | str:
        """Return what *case* shows over *link*, or what went wrong."""

        async def run() -> Seen | str:
            way = self.way(link)
            try:
                async with asyncio.timeout(90):
                    return await CASES[case](way)
            except (OSError, EOFError, TimeoutError) as error:
                return f"{error!r}; the program: {way.program.errors[:3]!r}"

        return self.runner.run(run())


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(pair, marks=[] if ENVOY not in pair else [pytest.mark.conformance], id=f"{pair[0]}-to-{pair[1]}")
        for pair in PAIRS
    ],
)
def links(request: pytest.FixtureRequest) -> Iterator[Links]:
    caller, callee = request.param
    members = [("caller", caller), *((link, callee) for link in ("h1", "h2", "default"))]
    with asyncio.Runner() as runner:
        context = live_mesh(members, program=Scripted)
        mesh = runner.run(context.__aenter__())
        try:
            rules = (UPGRADE.format(name="h1", policy="DO_NOT_UPGRADE"), UPGRADE.format(name="h2", policy="UPGRADE"))
            runner.run(mesh.apply("---\n".join(rules)))
            found = Links(mesh, request.param, runner)
            for link, version in (("h1", "HTTP/1.1"), ("h2", "HTTP/2"), ("default", default_version(request.param))):
                runner.run(reaches_by(found, link, version))
            yield found
        finally:
            runner.run(context.__aexit__(None, None, None))


def default_version(pair: tuple[str, str]) -> str:
    """Return what the rule says for links of *pair*: what the caller's data plane can choose."""
    return "HTTP/2" if pair[0] == WEFT else "HTTP/1.1"


def recorded(member: Member) -> list[dict[str, Any]]:
    """Return the whole records that the proxy of *member* has written."""
    log = member.files.access_log
    if not log.exists():  # nothing has come yet
        return []
    whole, _, _unfinished = log.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


async def reaches_by(links: Links, link: str, version: str) -> None:
    """Wait until requests reach the program, and its sidecar has recorded one that came in *version*."""
    way = links.way(link)

    def has_come() -> bool:
        records = recorded(links.mesh[link])
        return any(record["protocol"] == version and record["path"] == way.path for record in records)

    async def asked() -> None:
        while True:
            await way.ask(noting([], answer()))
            await asyncio.sleep(0.2)

    asking = asyncio.create_task(asked())
    try:
        await until(has_come, what=f"a request over {link} in {version}")
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def expected(pair: tuple[str, str], case: str, link: str) -> Any:
    over_http1 = OTHERS[pair].get(case, SEEN[case])
    lost = link == "h2" or (link == "default" and (pair, case) in LOST_BY_DEFAULT)
    return LOST[pair].get(case, over_http1) if lost else over_http1


@pytest.mark.parametrize("link", ["h1", "h2", "default"])
@pytest.mark.parametrize("case", CASES)
def test_applications_observe(links: Links, case: str, link: str) -> None:
    """What the table says, by pair, case and link."""
    want = expected(links.pair, case, link)
    seen = links.see(case, link)
    if want is SOMETIMES:
        assert seen in (SEEN[case], {**SEEN[case], "others": STUCK})
    elif want is ANYTHING:
        assert seen != OTHERS[links.pair].get(case, SEEN[case]), "this is not lost any more"
    else:
        assert seen == want


@pytest.mark.parametrize("link", ["h1", "h2", "default"])
def test_what_proxies_tell_of_the_protocol(links: Links, link: str) -> None:
    """Records name the version that each has read; to metrics it is HTTP in any version. No policy of ours asks for it."""
    way = links.way(link)
    links.runner.run(way.ask(noting([], answer())))
    version = {"h1": "HTTP/1.1", "h2": "HTTP/2", "default": default_version(links.pair)}[link]
    seen = {}
    for name, direction in (("caller", "outbound"), (link, "inbound")):
        member = links.mesh[name]

        def told(member: Member = member, direction: str = direction) -> list[str]:
            return [
                record["protocol"]
                for record in recorded(member)
                if (record["path"], record["direction"]) == (way.path, direction)
            ]

        links.runner.run(until(lambda told=told: bool(told()), what=f"the record of {name}"))
        seen[name] = told()
        if member.data_plane == WEFT:
            ends = {"destination_service_name": link, "source_canonical_service": "caller"}
            families = parse(ask(member.files.admin_socket, "/stats/prometheus"))
            counted = [dict(LABEL.findall(labels)) for _, labels, _ in families["istio_requests_total"].samples]
            assert {it["request_protocol"] for it in counted if ends.items() <= it.items()} == {"http"}
    assert seen == {"caller": ["HTTP/1.1"], link: [version]}


LIMITED = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: default}
spec:
  host: default
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}
"""


def test_limits_of_connections_mean_those_of_http1(links: Links) -> None:
    """One request on the one connection, one that waits for it, and the third is refused; then the limit is taken away."""

    async def run() -> None:
        go_on = asyncio.Event()
        await links.mesh.apply(LIMITED)
        try:
            await reaches_by(links, "default", "HTTP/1.1")
            way = links.way("default")

            async def script(_: list[str], wire: Wire) -> bool:
                await go_on.wait()
                await wire.send(answer(body=b"ok"))
                return True

            async def ask(_: int) -> str:
                return (await way.ask(script))[0]

            first = asyncio.create_task(ask(1))
            await until(lambda: way.program.requests == 1, what="the first request at the program")
            others = [asyncio.create_task(ask(number)) for number in (2, 3)]
            refused, waiting = await asyncio.wait([first, *others], return_when=asyncio.FIRST_COMPLETED, timeout=20)
            assert [task.result() for task in refused] == ["HTTP/1.1 503 Service Unavailable"]
            assert len(waiting) == 2
            assert way.program.requests == 1
            go_on.set()
            assert [await task for task in waiting] == ["HTTP/1.1 200 OK"] * 2
        finally:
            go_on.set()
            await links.mesh.delete("DestinationRule", "default", "default")
        await reaches_by(links, "default", default_version(links.pair))

    links.runner.run(run())
