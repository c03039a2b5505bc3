"""
What happened to a request: the records that proxies made of it, joined into one tree, each with the decision that led
to it, computed with the configuration that was in force then.

The caller brings the records and a way to read past configurations; no I/O here.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from envoy.config.listener.v3.listener_pb2 import Listener

from weft._native import Engine
from weft.insight.called import Called, called, is_explicit
from weft.insight.decision import DEFAULT, HTTP_ROUTE, Decision, Metadata, cluster_parts
from weft.insight.mutual_tls import cluster_metadata, written_tls
from weft.insight.programs import ENDED, STOPPED, Notice, Program
from weft.insight.unknown_host import is_only_the_meshs, remedy
from weft.insight.words import MALFORMED_DETAILS, UNFINISHED, Finding, find
from weft.telemetry import Configuration, Record
from weft.translate import names

Past: TypeAlias = Callable[[str, float], Iterable[Configuration]]
"""(node id, seconds since 1970) -> the configurations that it may have had then, the likeliest first (`History.at`)."""

Engines: TypeAlias = dict[int, tuple[Configuration, Engine]]
"""The decision code on configurations, by their `id`: to compile one takes longer than to ask it, and many records are of one."""

SUPERSEDED_SECONDS = 1.0
"""So long after a proxy has acknowledged a configuration none of its threads looks at the endpoints of an older one."""

CLOCK_SECONDS = 0.05
"""Two records of one moment may differ by so much: times are in milliseconds, and a proxy reads its clock seldom."""

DEFAULT_PORTS = {"http": "80", "https": "443"}
"""Ports that a URL need not name."""

NO_ENDPOINT = "UH"
"""Flag of a request for which no endpoint was chosen."""

NO_CLUSTER = "NC"
"""Flag of a request to a cluster that does not exist."""

NO_ADDRESS = "DF"
"""Flag of a host that has none."""

MALFORMED = "DPE"
"""Flag of a request that breaks the rules of HTTP."""

TIMEOUT, TRY_TIMEOUT = "timeout", "perTryTimeout"
"""Keys of a rule's origins, see `setting`."""

HOST_PORTS = "; a port of its loopback has to be among `host_ports` of the program in weft.yaml"

LEFT = frozenset({"DC", "DR"})
"""Flags of a client that has gone."""

BY = {
    "client-gone": "client",
    "malformed-request": "client",
    "client-broke-connection": "client",
    "request-timeout": "client",
    "outside-failed": "outside",
    "outside-broke": "outside",
    "not-http-called": "program",
}
"""Whose doing a finding is that is not the proxy's."""

PROXY_GONE = "proxy-connection-broke"
"""The finding that the connection to another workload's proxy broke, and that proxy tells nothing of the request."""

GIVEN_UP = "try-given-up"
"""The finding that the caller's proxy has given up this try, not its client the request."""

OWN_STATUSES = frozenset({502, 503, 504})
"""What a proxy answers itself where the upstream does not."""

PLACES = frozenset({"listens-elsewhere", "misplaced", "port-taken"})
"""Notices of a program that does not listen where it is called."""

NOT_RETRIED = "retry-not-allowed"
"""The finding that a program's answer stands because a circuit breaker allowed no further try."""

UNANSWERED = ("timeout", "try-timeout", "timeout-during-answer", "client-gone")
"""Findings that a program which is stopped may be the reason for."""

NOTICES = {
    "no-endpoint": PLACES | {"proxy-died"},
    "program-not-listening": PLACES,
    PROXY_GONE: frozenset({"proxy-died"}),
    "refused": frozenset({"proxy-died"}),
    **dict.fromkeys(UNANSWERED, frozenset({STOPPED})),
}
"""Finding -> codes of the notices that may say why."""

AWAY = frozenset({"no-endpoint", "program-not-listening"})
"""Findings that a program which had ended, and was not ready again, may be the reason for."""

BROKEN_OFF = frozenset({"reset-before-answer", "reset-during-answer"})
"""Those that a program which ended just then may be the reason for."""

REMEDIES = {
    ENDED: "Find out why it ended: its last words are in `weft logs --output {name}`.",
    STOPPED: "Let it go on: `fg` in its terminal. If it ran when it was called, {remedy}",
}
"""Code of a notice that says more of the reason than the finding does -> the remedy."""

ANSWERED = frozenset({"via_upstream", "websocket_handshake_unsuccessful"})
"""`response_code_details` of an answer that the proxy only passed on; the second is Envoy's of one that upgrades to nothing."""


@dataclass(frozen=True, slots=True)
class Copy:
    """
    What is known of a copy of a request to another destination; the request itself knows nothing of it.

    Attributes:
        cluster: Where it was to go.
        percent: Of how many requests one is sent.
        exists: Whether there is such a cluster.
        failed: How sending it failed, None if nobody told of that.
        arrived: What the proxy that took it made of it, None if none told of it.
    """

    cluster: str
    percent: float
    exists: bool
    failed: Record | None
    arrived: Hop | None


@dataclass(slots=True)
class Hop:
    """
    One proxy's part in a request.

    Attributes:
        record: How it ended there.
        tries: Those that did not succeed, and the last one whatever became of it, in order.
        refused: The connection at the other end, where that proxy refused it before any request.
        nexts: What followed: the server's side of it, or requests that the program made meanwhile.
        decision: What that proxy had been told to do; None if its configuration of then is not known.
        revision: Of that configuration.
        finding: What went wrong here, None if nothing did.
        failed_copies: Tries of copies of it that did not succeed.
        copies: One for each place that copies of such requests go to.
        caller: Where the proxy of another workload tried it, if this is the server's side of such a try, or refused that.
        notices: What agents noticed that has to do with the finding.
        called: The service's port that was called, where that came to nothing; None if it is none's.
    """

    record: Record
    tries: list[Record] = field(default_factory=list)
    refused: Hop | None = None
    nexts: list[Hop] = field(default_factory=list)
    decision: Decision | None = None
    revision: int | None = None
    finding: Finding | None = None
    failed_copies: list[Record] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    caller: Hop | None = field(default=None, repr=False, compare=False)
    notices: tuple[Notice, ...] = ()
    called: Called | None = None

    @property
    def cluster(self) -> str:
        """Where it went; empty if nobody knows."""
        return self.places[0] if len(self.places) == 1 else ""

    @property
    def places(self) -> tuple[str, ...]:
        """
        The clusters that it can have gone to.

        Envoy's record does not say where no endpoint was chosen: of a rule's places it is one that leads to such an end.
        """
        if self.record.cluster or self.decision is None:
            return (self.record.cluster,) if self.record.cluster else ()
        shares = [share for share in self.decision.shares if share.share > 0]
        there = {item.cluster for item in self.decision.endpoints if item.healthy}
        if NO_CLUSTER in self.record.flags:
            shares = [share for share in shares if not share.exists] or shares
        elif NO_ENDPOINT in self.record.flags:
            shares = [share for share in shares if share.exists] or shares
            shares = [share for share in shares if share.cluster not in there] or shares
        return tuple(dict.fromkeys(share.cluster for share in shares))

    @property
    def server_side(self) -> Hop | None:
        """The hop of the proxy that took the last try, if it has told of it."""
        if self.record.direction == "inbound":
            return None
        taken = [hop for hop in self.nexts if hop.record.direction == "inbound"]
        return taken[-1] if taken else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    How a request ended, and by whose doing.

    Attributes:
        by: `program`, `proxy`, `client` or `outside`: who is the cause of the last word.
        workload: Whose program or proxy it is; empty for one outside of the mesh.
        finding: None if all went well, or the program itself answered with an error.
        hop: Where it was decided.
    """

    by: str
    workload: str
    finding: Finding | None
    hop: Hop


def happened(
    records: Sequence[Record],
    refused: Sequence[Record],
    past: Past,
    programs: Sequence[Program] = (),
    services: Sequence[Mapping[str, Any]] = (),
) -> list[Hop]:
    """
    Return the trees of a request: usually one, from the proxy that saw it first.

    Args:
        records: Everything that was told under one request id.
        refused: Connections that proxies refused lately; they carry no request id.
        past: See `Past`.
        programs: Those of the mesh, as they are now.
        services: What `GET /v1/services` says: among them is what an unknown host may have been meant to be.
    """
    hops = [Hop(record) for record in sorted(records, key=_order) if record.log == "requests"]
    for record in sorted((item for item in records if item.log == "tries"), key=lambda item: item.start):
        if (hop := _hop_of_try(hops, record)) is not None:
            (hop.failed_copies if _is_of_copy(record, hop) else hop.tries).append(record)
    engines: Engines = {}
    for hop in hops:
        _add_last_try(hop)
        hop.decision, hop.revision = _decide(hop.record, past, engines)
    copies: list[Hop] = []
    for hop in hops:
        _add_copies(hop, hops, copies)
    roots = _roots(hops, copies)
    for hop in hops:
        if (there := _refusal(hop, refused)) is not None:
            hop.refused = _connection(there, past, services, engines, hop)
        if hop.record.flags or _is_unread(hop.record):
            hop.called = called(hop.record, services, past(hop.record.node, hop.record.start))
        hop.finding = find(hop.record, facts(hop, programs, services))
        hop.notices = _notices(hop, programs)
        if hop.finding is not None and hop.notices and (better := REMEDIES.get(hop.notices[0].code)):
            other = hop.finding.remedy[:1].lower() + hop.finding.remedy[1:]
            hop.finding = replace(hop.finding, remedy=better.format(name=hop.notices[0].workload, remedy=other))
        hop.nexts.sort(key=lambda item: item.record.start)
    if not hops:
        for record in records:
            roots.append(_connection(record, past, services, engines))
    return roots


def _connection(
    record: Record, past: Past, services: Sequence[Mapping[str, Any]], engines: Engines, caller: Hop | None = None
) -> Hop:
    """
    Return what came to nothing before any request: a connection that was refused, with what its proxy had been told to
    accept, or a lookup, about which no proxy decides.
    """
    hop = Hop(record, caller=caller)
    if record.log != "lookups":
        hop.decision, hop.revision = _decide(record, past, engines)
    hop.finding = find(record, facts(hop, services=services))
    return hop


def verdict(hop: Hop) -> Verdict:
    """Return who had the last word in the request that *hop* is the beginning of."""
    record = hop.record
    if record.log == "lookups":
        return Verdict("program", record.workload, hop.finding, hop)
    if hop.refused is not None:
        theirs = hop.refused
        if (finding := theirs.finding) is not None:
            # A client's proxy that refuses the server knows better why than the server, which only sees it leave; and what
            # reads TLS as HTTP, because it expects none, only sees bytes that are no request.
            if finding.code in ("client-refused-server", "malformed-request") and hop.finding is not None:
                return Verdict("proxy", record.workload, hop.finding, hop)
            return Verdict("proxy", theirs.record.workload, finding, theirs)
    broke = hop.finding is not None and (hop.finding.code.startswith("reset-") or hop.finding.code == "not-http")
    passed_on = record.details in ANSWERED or broke
    server = hop.server_side
    if server is not None and server.finding is not None and server.finding.code == GIVEN_UP:
        server = None  # what became of it is its caller's to say
    if passed_on and server is not None and (hop.finding is None or server.finding is not None):
        return verdict(server)
    if hop.finding is not None:
        if hop.finding.code == PROXY_GONE:
            return Verdict("proxy", _target_workload(hop), hop.finding, hop)
        if broke or hop.finding.code == NOT_RETRIED:
            program = record.workload if record.direction == "inbound" else _target_workload(hop)
            return Verdict("program", program, hop.finding, hop)
        return Verdict(BY.get(hop.finding.code, "proxy"), record.workload, hop.finding, hop)
    if record.details in ANSWERED:
        return Verdict(
            "program", record.workload if record.direction == "inbound" else _target_workload(hop), None, hop
        )
    if record.protocol == "TCP" and record.upstream:
        return Verdict(
            "program", record.workload if record.direction == "inbound" else _target_workload(hop), None, hop
        )
    return Verdict("proxy", record.workload, None, hop)


def facts(hop: Hop, programs: Sequence[Program] = (), services: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
    """Return what sentences about *hop* may name; *programs* and *services* as for `happened`."""
    record = hop.record
    name = host_of(record.authority)
    meant = remedy(name, record.owner[1], services) if NO_ADDRESS in record.flags else ""
    destination = record.listener if record.protocol == "TCP" else record.authority
    inbound = record.direction == "inbound"
    return {
        "workload": record.workload,
        "upstream": record.upstream or "the endpoint",
        "peer": f"The program of {record.workload}"
        if inbound
        else (_target_workload(hop) or record.upstream or "The server"),
        "service": f"The program of {record.workload}" if inbound else _service(hop) or destination,
        "cluster": hop.cluster,
        **_called_port(hop),
        **_settings(hop),
        **_missing(hop, services),
        **_wanted(hop, programs),
        "destination": destination,
        "endpoints": _endpoints(hop),
        "ejects": "yes" if _ejects(hop) else "",
        "failing": _failing(hop),
        **_tls(hop),
        "now": "; ".join(program.condition for program in _whose(hop, programs)),
        "programs": _readiness(_whose(hop, programs)),
        "caller": hop.caller.record.workload if hop.caller is not None else "",
        "client": record.client,
        "moved": "bytes" if record.protocol == "TCP" and record.bytes_received + record.bytes_sent else "",
        "sent": str(record.bytes_sent),
        "answer": "bytes" if record.protocol == "TCP" and record.bytes_sent else "",
        "from": "mesh" if record.client else "",
        "left": _left(hop),
        "begun": "yes" if has_begun(record) else "",
        "server": "silent" if _is_silent(hop) else "",
        "status": record.answer or "nothing",
        "outcome": hop.decision.outcome if hop.decision is not None else "",
        "method": record.method or "the request",
        "path": record.path,
        "host": record.authority,
        "host_named": f"the host {record.authority}, which is none of that service's and of no rule"
        if record.authority
        else "no host",
        "name": name,
        "meant": f"{meant} " if meant else "",
        "asked": ("mesh" if is_only_the_meshs(name) else "machine") if record.log == "lookups" else "",
        "url": _url(record),
        # Where nothing is caught, the host's loopback is the program's own.
        "host_ports": "" if is_explicit(record.address) else HOST_PORTS,
        "to": shlex.quote(_url(record)) + (f" -X {record.method}" if record.method not in ("", "GET") else ""),
    }


def _service(hop: Hop) -> str:
    """Name what it went to, or may have gone to; empty if that is not known, or no service of the mesh."""
    parts = [cluster_parts(cluster) for cluster in hop.places]
    named = [
        f"{host}:{port}" + (f" (subset {subset})" if subset else "") for host, port, subset in parts if host and port
    ]
    return " or ".join(named)


def _settings(hop: Hop) -> dict[str, str]:
    """The kind of the rule that was taken, and what it calls its settings."""
    rule = hop.decision.route if hop.decision is not None else {}
    return {
        "rule_of": str(rule.get("kind", "")),
        "namespace": str(rule.get("namespace") or hop.record.owner[1]),
        "timeout": setting(rule, TIMEOUT),
        "try_timeout": setting(rule, TRY_TIMEOUT),
    }


def setting(rule: Metadata, key: str) -> str:
    """Return what people who write such a *rule* call the setting whose place is in its origins by *key*."""
    if rule.get("kind") == HTTP_ROUTE:
        return {TIMEOUT: "timeouts.request", TRY_TIMEOUT: "timeouts.backendRequest"}.get(key, key)
    return "retries.perTryTimeout" if key == TRY_TIMEOUT else key


def _missing(hop: Hop, services: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """
    What the place that a rule names `lacks`: `service`, `port`, or `grant` to be referred to; empty if none of these.

    With the `target` and its `target_ports`.
    """
    if NO_CLUSTER not in hop.record.flags:
        return {}
    if names.is_refused_cluster(hop.cluster):
        return {"lacks": "grant"}
    if not services:
        return {}
    host, port, _ = cluster_parts(hop.cluster)
    service = next((item for item in services if item["hostname"] == host), None)
    if service is None:
        return {"lacks": "service", "target": host} if port else {}
    numbers = [str(item["number"]) for item in service["ports"]]
    if port in numbers:
        return {}  # then it is the subset
    return {"lacks": "port", "target": host, "target_port": port, "target_ports": ", ".join(numbers)}


def _wanted(hop: Hop, programs: Sequence[Program]) -> dict[str, str]:
    """Labels that a subset has `wanted` where no program of its service has them, with those that are `carried`; else empty."""
    host, _, _ = cluster_parts(hop.cluster)
    labels = _labels(hop, hop.cluster)
    serving = [program for program in programs if host in program.services]
    if not labels or not serving or any(labels.items() <= it.labels.items() for it in serving):
        return {}
    carried = sorted({f"{key}: {it.labels[key]}" for it in serving for key in labels if key in it.labels})
    return {
        "carriers": "none",
        "target": host,
        "wanted": ", ".join(f"{key}: {value}" for key, value in labels.items()),
        "carried": f"those that run carry {', '.join(carried)}" if carried else "none that runs has such a label",
    }


def _called_port(hop: Hop) -> dict[str, str]:
    """
    What may be said of the port that was called: `service_called`, `port`, `ports`.

    And where it came to nothing because of that port: `called` is `lacking` or `late` (see `Called.state`), or
    `by-another-host`, which none of its rules takes; `speaks` is what it speaks, where something else came.
    """
    record, port = hop.record, hop.called
    if port is None:
        return {}
    name, number = port.service, port.number
    known = {
        "service_called": name,
        "number": str(number),
        "port": f"port {number} of {name}",
        "ports": ", ".join(map(str, sorted(port.ports))) or "none",
        "http_url": f"http://{name}:{number}/",
    }
    # Envoy names no cluster where no endpoint was chosen.
    is_nowhere = hop.cluster in (names.BLACK_HOLE, names.PASSTHROUGH) or (not hop.cluster and record.protocol == "TCP")
    if NO_ADDRESS in record.flags or (is_nowhere and port.state == "lacking"):
        known["called"] = port.state
    if NO_ADDRESS in record.flags and port.state == "there" and not port.speaks_http:
        known["speaks"] = "bytes"
    if hop.cluster == names.PASSTHROUGH and port.state == "there" and port.speaks_http:
        known["called"] = "by-another-host"
    # Where connections are caught, what is not HTTP comes to no HTTP filter; explicit mode has a listener that reads nothing else.
    unread = _is_unread(record) and is_explicit(record.listener.rpartition(":")[0])
    if port.speaks_http and (record.protocol == "TCP" or unread):
        known["speaks"] = "HTTP"
    return known


def _is_unread(record: Record) -> bool:
    """Whether its proxy could not read a request at all: of what is none, or does not end."""
    return not record.method and (MALFORMED in record.flags or record.details == UNFINISHED)


def host_of(authority: str) -> str:
    """Return *authority* without its port."""
    host, colon, port = authority.rpartition(":")
    return host if colon and port.isdigit() else authority


def _url(record: Record) -> str:
    """What was called, with the port where it came in: the Host header need not have one."""
    # curl speaks to any port of TCP by telnet's scheme.
    scheme = record.scheme or ("telnet" if record.protocol == "TCP" else "http")
    authority = record.authority or record.listener
    _, _, port = record.listener.rpartition(":")
    if authority == host_of(authority) and port and port != DEFAULT_PORTS.get(scheme):
        authority = f"{authority}:{port}"
    return f"{scheme}://{authority}{record.path}"


def _endpoints(hop: Hop) -> str:
    """Whether the configuration of then has endpoints for where it went: `none`, `there`, or `checked` by active health checks."""
    items = hop.decision.endpoints if hop.decision is not None else ()
    there = [item for item in items if item.cluster in hop.places and item.healthy]
    if any(item.checked for item in there):
        return "checked"
    return "there" if there else "none"


def _ejects(hop: Hop) -> bool:
    """Whether somebody has written that failing endpoints of where it went are ejected; weft does not do so by itself."""
    shares = hop.decision.shares if hop.decision is not None else ()
    origins = [share.own.get("origins", {}) for share in shares if share.cluster in hop.places]
    if hop.decision is not None and not origins:
        origins = [hop.decision.origins]  # of bytes, whose decision has the cluster's
    return any(it.get("outlierDetection", DEFAULT) != DEFAULT for it in origins)


def _failing(hop: Hop) -> str:
    """Return the command that shows why endpoints of where it went had failed before; of the call itself they tell nothing."""
    items = hop.decision.endpoints if hop.decision is not None else ()
    found = next((item.workload for item in items if item.cluster in hop.places and item.workload), "")
    if found:
        return f"`weft why --last-failed --from {found}`"
    return f"`weft logs --access {hop.record.workload}` shows the calls before"


def of_cluster(hop: Hop) -> Metadata:
    """Return the metadata of where it went; empty if that is not known."""
    if hop.decision is None:
        return {}
    found = [share.own or share.metadata for share in hop.decision.shares if share.cluster == hop.cluster]
    return found[0] if found else hop.decision.route  # of bytes, whose decision has the cluster's


def tls_rule(hop: Hop, place: Callable[[str], str] = str) -> str:
    """Return which DestinationRule says how the caller speaks TLS to where *hop* went; "" if none does, see `client_rule`."""
    client = hop.caller if hop.record.log == "connections" else hop
    return written_tls(of_cluster(client), place) if client is not None else ""


def _tls(hop: Hop) -> dict[str, str]:
    """
    What made a caller speak plain text or TLS: `tls` is the `rule` of that name, `direct` if its program called the
    workload's address, empty if neither is known. `at` says that a `workload` was called, and `there` that its proxy has
    told that it `refused` this connection.
    """
    rule = tls_rule(hop)
    # In explicit mode a workload's address is one of the host's, as any other.
    is_direct = hop.caller is not None and hop.caller.cluster in (names.MESH_PASSTHROUGH, names.PASSTHROUGH)
    return {
        "rule": rule.partition(",")[0],
        "tls": "rule" if rule else "direct" if is_direct else "",
        "at": "workload" if _target_workload(hop) else "",
        "there": "refused" if hop.refused is not None else "",
    }


def _whose(hop: Hop, programs: Sequence[Program]) -> list[Program]:
    """
    Programs of the service that was called, as they are now.

    Of a subset those that carry its labels; where nobody knows these, as of a configuration of before, those that are not ready.
    """

    def is_called(program: Program, cluster: str) -> bool:
        host, _, subset = cluster_parts(cluster)
        if host not in program.services or not subset:
            return host in program.services
        labels = _labels(hop, cluster)
        return labels.items() <= program.labels.items() if labels else not program.ready

    return [program for program in programs if any(is_called(program, cluster) for cluster in hop.places)]


def _labels(hop: Hop, cluster: str) -> Mapping[str, str]:
    """Labels that the subset asks for which *cluster* stands for; empty if it stands for none, or they are not known."""
    shares = hop.decision.shares if hop.decision is not None else ()
    return next((share.own.get("labels") or {} for share in shares if share.cluster == cluster), {})


def _readiness(programs: Sequence[Program]) -> str:
    """`ready` if one of them is by now, `unready`, or `none`."""
    if any(program.ready for program in programs):
        return "ready"
    return "unready" if programs else "none"


def _notices(hop: Hop, programs: Sequence[Program]) -> tuple[Notice, ...]:
    """Return what was noticed of those that the finding is about, and may be why."""
    if hop.finding is None or hop.finding.code not in NOTICES.keys() | AWAY | BROKEN_OFF:
        return ()
    if hop.finding.code == "no-endpoint":
        all_ = _whose(hop, programs)
        whose = [program for program in all_ if not program.ready]
    else:
        name = hop.record.workload if hop.record.direction == "inbound" else _target_workload(hop)
        all_ = whose = [program for program in programs if program.workload == name]
    is_away = hop.finding.code in AWAY
    ends: list[Notice] = []
    if is_away or hop.finding.code in BROKEN_OFF:
        found = (program.ended(hop.record.start, hop.record.end, away=is_away) for program in all_)
        ends = [notice for notice in found if notice is not None]
    codes = NOTICES.get(hop.finding.code, frozenset())
    return (*ends, *(notice for program in whose for notice in program.notices if notice.code in codes))


def _left(hop: Hop) -> str:
    """
    Why the proxy that tried this left before the answer was complete: `for-another` try, or `by-itself`, which its own
    finding explains; empty if it did not, or only because its own client went.
    """
    if hop.caller is None or not LEFT & set(hop.record.flags) or LEFT & set(hop.caller.record.flags):
        return ""
    if hop.record.log == "connections":
        return ""  # refused by this side
    # Times are those of one millisecond: see `_order`. Each try that failed is told; one whose answer was passed on is not.
    came = round(hop.record.start, 3)
    begun = [it for it in hop.caller.tries if it.log == "tries" and round(it.start, 3) <= came]
    is_told = any(came <= round(it.end, 3) for it in begun)
    return "for-another" if len(begun) + (not is_told) < hop.caller.record.attempts else "by-itself"


def has_begun(record: Record) -> bool:
    """Whether the head of an upstream's answer had been passed on when a proxy's own word ended the request."""
    if record.answered_ms is None or record.status is None:
        return False
    passed_on = record.details in ANSWERED or "after_response_started" in record.details
    if "UO" in record.flags and passed_on:
        return False  # a whole answer, after which no further try was allowed
    if record.status in OWN_STATUSES and not passed_on:
        return False
    return record.grpc_status is None  # a proxy's own word to a client of gRPC is a 200, too, and whole


def _is_silent(hop: Hop) -> bool:
    """Whether a request went to another workload whose proxy has told nothing of the last try."""
    record = hop.record
    # What is only bytes has no name by which the other side's record would be found.
    if record.direction == "inbound" or not record.request_id or not _target_workload(hop) or hop.refused is not None:
        return False
    taken = [item.record for item in hop.nexts if item.record.direction == "inbound"]
    came = {item.downstream if record.upstream_local else item.listener for item in taken}
    return len(taken) < record.attempts and (record.upstream_local or record.upstream) not in came


def _order(record: Record) -> tuple[float, int]:
    """Where two begin in the same millisecond, the client's side comes first."""
    return round(record.start, 3), {"gateway": 0, "outbound": 1, "inbound": 2}.get(record.direction, 3)


def _hop_of_try(hops: Sequence[Hop], record: Record) -> Hop | None:
    """
    Return the request that a try was made for.

    A proxy may have seen several under one id: the tries of the proxy before it, calls that its program makes side by
    side. They come by other connections, or one after the other; both times are of one clock.
    """
    same = [hop for hop in hops if hop.record.node == record.node and hop.record.direction == record.direction]
    came = [hop for hop in same if hop.record.downstream == record.downstream] or same
    within = [hop for hop in came if _within(record, hop.record)]
    begun = [hop for hop in within if hop.record.start <= record.start]
    return max(begun, key=lambda hop: hop.record.start) if begun else next(iter(within or came), None)


def _is_of_copy(record: Record, hop: Hop) -> bool:
    """Whether a try is one of a copy: all tries of a request itself go to one cluster."""
    return bool(record.cluster and hop.record.cluster) and record.cluster != hop.record.cluster


def _called(hop: Hop, record: Record) -> bool:
    """Whether *record* is the server's side of a connection of *hop*: its client's address is the client's side's own."""
    return any(
        (item.upstream_local and item.upstream_local == record.downstream)
        or (item.upstream == record.listener and not item.upstream_local)
        for item in (hop.record, *hop.tries)
    )


def _add_copies(hop: Hop, hops: Sequence[Hop], copies: list[Hop]) -> None:
    """Find what became of the copies of *hop*. Those that arrived, which come from no connection that was told of, join *copies*."""
    for mirror in hop.decision.mirrors if hop.decision is not None else ():
        addresses = {endpoint.address for endpoint in mirror.endpoints}
        failed = next((record for record in hop.failed_copies if record.cluster == mirror.cluster), None)
        arrived = next(
            (
                other
                for other in hops
                if other.record.direction == "inbound"
                and other.record.listener in addresses
                and other.record.start >= hop.record.start - CLOCK_SECONDS
                and not any(other is copy for copy in copies)
                and not any(_called(caller, other.record) for caller in hops)
            ),
            None,
        )
        if arrived is not None:
            copies.append(arrived)
        hop.copies.append(Copy(mirror.cluster, mirror.percent, mirror.exists, failed, arrived))


def _within(inner: Record, outer: Record) -> bool:
    return outer.start - CLOCK_SECONDS <= inner.start <= outer.end + CLOCK_SECONDS


def _roots(hops: Sequence[Hop], copies: Sequence[Hop]) -> list[Hop]:
    """Put each hop where it followed from, and return those that followed from none."""
    rest = [hop for hop in hops if not any(hop is copy for copy in copies)]
    origins: dict[int, Hop] = {}
    # Connections tell for certain whose the server's sides are; what a program called is only guessed from times.
    for hop in sorted(rest, key=lambda hop: hop.record.direction != "inbound"):
        candidates = [other for other in _candidates(hop, hops) if not _is_below(other, hop, origins)]
        within = [other for other in candidates if _within(hop.record, other.record)]
        if not within:
            continue
        # The one that began last is the nearest.
        origins[id(hop)] = nearest = max(within, key=lambda other: other.record.start)
        nearest.nexts.append(hop)
        if hop.record.direction == "inbound":
            hop.caller = nearest
    return [hop for hop in rest if id(hop) not in origins]


def _is_below(hop: Hop, top: Hop, origins: Mapping[int, Hop]) -> bool:
    """Whether *hop* is *top*, or followed from it; *origins*: from which hop one of that `id` followed."""
    while hop is not top and (origin := origins.get(id(hop))) is not None:
        hop = origin
    return hop is top


def _candidates(hop: Hop, hops: Sequence[Hop]) -> list[Hop]:
    """Return those of *hops* from which *hop* may have followed."""
    record = hop.record
    if record.direction == "inbound":
        callers = [other for other in hops if other.record.direction != "inbound"]
        by_connection = [other for other in callers if _called(other, record)]
        return by_connection or [other for other in callers if other.record.upstream == record.listener]
    # The program of a workload passed the id on to what it called meanwhile. It had not been called yet when it called
    # itself, or somebody who called it back; both times are of one clock.
    return [
        other
        for other in hops
        if other.record.direction in ("inbound", "gateway")
        and other.record.node == record.node
        and round(other.record.start, 3) <= round(record.start, 3)
        and not any(other is copy.arrived for copy in hop.copies)
    ]


def _add_last_try(hop: Hop) -> None:
    """The try that decided is told by the request's own record, unless it failed and has one of its own."""
    record = hop.record
    if record.attempts == 0 or not record.upstream:
        return
    if record.protocol == "TCP" and record.is_denial:
        return  # a server was connected, for it might have spoken first, and was given nothing
    told = hop.tries[-1] if hop.tries else None
    if told is not None and len(hop.tries) >= record.attempts and record.details not in ANSWERED:
        return
    if told is not None and told.upstream == record.upstream and told.answer == record.answer and told.status:
        return
    hop.tries.append(record)


def _refusal(hop: Hop, refused: Sequence[Record]) -> Record | None:
    """Return the connection that was refused at the other end just then."""
    record = hop.record
    if record.direction == "inbound" or not set(record.flags) & {"UF", "UC", "UR"}:
        return None
    called = {(item.upstream_local, item.upstream) for item in (record, *hop.tries)}
    locals_ = {local for local, _ in called if local}
    if (exactly := next((item for item in refused if item.downstream in locals_), None)) is not None:
        return exactly
    # Of a try whose own address is not told, Envoy's that failed in the handshake, place and time must do.
    addresses = {upstream for local, upstream in called if not local}
    return next((item for item in refused if item.listener in addresses and _within(item, record)), None)


def _target_workload(hop: Hop) -> str:
    """Name of the workload at the endpoint that was called, as the configuration of then has it."""
    if hop.decision is not None:
        for endpoint in hop.decision.endpoints:
            if endpoint.address == hop.record.upstream:
                return endpoint.workload
    return ""


def _engine(candidate: Configuration, engines: Engines) -> Engine:
    """Return the decision code on *candidate*, of *engines* if it is there."""
    if id(candidate) not in engines:
        engines[id(candidate)] = (candidate, Engine(list(candidate.resources), strict=False))
    return engines[id(candidate)][1]


def _decide(record: Record, past: Past, engines: Engines) -> tuple[Decision | None, int | None]:
    """
    Ask the engine what that proxy was told, with the configuration that agrees best with the record.

    That is one that has the rule that was taken; of several, one whose endpoints agree; of those the likeliest.
    """
    if _is_unrouted(record):
        return None, record.revision
    candidates = list(past(record.node, record.start))
    found: tuple[Decision | None, int | None] = (None, record.revision)
    best = (-1, False)
    for candidate in candidates:
        asked = _question(record, _destination(record, candidate))
        if not _is_address(asked["destination"]):
            continue  # the engine knows a way in by nothing else
        try:
            answer = json.loads(_engine(candidate, engines).explain(json.dumps(asked)))
        except ValueError:
            continue  # no listener takes it: another configuration may
        decision = Decision.from_json(answer)
        agrees = int(answer.get("taken", True) and _agrees(record, decision))
        agreement = (agrees, _endpoints_agree(record, decision) and not _is_superseded(candidate, candidates, record))
        if agreement > best:
            found, best = (_with_own(decision, candidate), candidate.revision), agreement
    return found


def _with_own(decision: Decision, candidate: Configuration) -> Decision:
    """Return *decision* with what is written about each share's cluster itself, wherever a rule leads to it."""
    shares = (replace(it, own=cluster_metadata(candidate.resources, it.cluster)) for it in decision.shares)
    return replace(decision, shares=tuple(shares))


def _is_unrouted(record: Record) -> bool:
    """Whether a proxy answered before it looked for a route: it could not read the request, or not in time."""
    if record.protocol == "TCP" or record.log != "requests" or record.cluster or record.route_name:
        return False
    return MALFORMED in record.flags or not record.method or re.match(MALFORMED_DETAILS, record.details) is not None


def _is_superseded(candidate: Configuration, candidates: Sequence[Configuration], record: Record) -> bool:
    """Whether the proxy had worked by a newer one for a while when the request came."""
    return any(
        other.revision > candidate.revision
        and other.acknowledged is not None
        and other.acknowledged < record.start - SUPERSEDED_SECONDS
        for other in candidates
    )


def _destination(record: Record, candidate: Configuration) -> str:
    """
    Return the address by which the engine finds the listener that took it.

    What an agent relays from a published port names that port, which no listener of such a gateway has: the one that
    takes it at the agent's socket says by its name for which of the gateway's ports it does so.
    """
    for type_url, _, value in candidate.resources if record.relay else ():
        if type_url.endswith(".Listener"):
            listener = Listener.FromString(value)
            if listener.address.pipe.path == record.relay and (port := names.published_port(listener.name)):
                return f"0.0.0.0:{port}"
    return record.listener


def _question(record: Record, destination: str) -> Mapping[str, Any]:
    """
    Return what to ask the engine about a record.

    What a program sent that no HTTP filter took does not begin like HTTP: to a port that speaks it, that is another chain.
    """
    asked: dict[str, Any] = {
        "direction": record.direction or "outbound",
        "destination": destination,
        "method": record.method or "GET",
        "scheme": record.scheme or "http",
        "authority": record.authority,
        "path": record.path or "/",
        "headers": [],
    }
    if _is_address(record.downstream):
        asked["source"] = record.downstream  # what is a path says nothing of the client
    if record.origin:
        asked["taken"] = {"origin": record.origin, "match": record.match}
    if record.sni:
        asked["sni"] = record.sni
    if record.peer:
        asked["source_principal"] = record.peer
    if record.protocol == "TCP" and record.direction == "outbound" and not record.sni:
        asked["alpn"] = ["none"]
    return asked


def _is_address(text: str) -> bool:
    """Whether the engine reads *text* as an address with port; it answers nothing of a question in which one is malformed."""
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return port.isdecimal()


def _agrees(record: Record, decision: Decision) -> bool:
    """Whether a configuration can have led to the record: it names the cluster that was taken."""
    return not record.cluster or any(share.cluster == record.cluster for share in decision.shares)


def _endpoints_agree(record: Record, decision: Decision) -> bool:
    """
    Whether a configuration's endpoints can have led to the record: it has the one that was called, or none if none was there.

    One that has them can have led to "none" only by ejection or checks, of which no record tells; one without explains it.
    """
    there = {(item.cluster, item.address) for item in decision.endpoints if item.healthy}
    if NO_ENDPOINT in record.flags:
        clusters = {record.cluster} if record.cluster else {share.cluster for share in decision.shares}
        return bool(clusters - {cluster for cluster, _ in there})
    return not record.upstream or record.upstream in {address for _, address in there}
