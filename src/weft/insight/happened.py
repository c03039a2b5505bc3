"""
What happened to a request: the records that proxies made of it, joined into one tree, each with the decision that led
to it, computed with the configuration that was in force then.

The caller brings the records and a way to read past configurations; no I/O here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from weft._native import Engine
from weft.insight.decision import Decision, cluster_parts
from weft.insight.words import Finding, find
from weft.telemetry import Record

Resource: TypeAlias = tuple[str, str, bytes]
"""(type URL, name, serialised message)."""

Past: TypeAlias = Callable[[str, float], Iterable[tuple[int, Sequence[Resource]]]]
"""(node id, seconds since 1970) -> the configurations that it may have had then, the likeliest first: revision and
resources."""

CLOCK_SECONDS = 0.05
"""Two records of one moment may differ by so much: times are in milliseconds, and a proxy reads its clock seldom."""

BY = {"client-gone": "client", "malformed-request": "client", "request-timeout": "client", "outside-failed": "outside"}
"""Whose doing a finding is that is not the proxy's."""

ANSWERED = "via_upstream"
"""`response_code_details` of an answer that the proxy only passed on."""


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

    @property
    def cluster(self) -> str:
        """Where it went; Envoy's record does not say where no endpoint was chosen, the rule may have only one place."""
        if self.record.cluster or self.decision is None or len(self.decision.shares) != 1:
            return self.record.cluster
        return self.decision.shares[0].cluster

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


def happened(records: Sequence[Record], refused: Sequence[Record], past: Past) -> list[Hop]:
    """
    Return the trees of a request: usually one, from the proxy that saw it first.

    Args:
        records: Everything that was told under one request id.
        refused: Connections that proxies refused lately; they carry no request id.
        past: See `Past`.
    """
    hops = [Hop(record) for record in sorted(records, key=_order) if record.log == "requests"]
    for record in sorted((item for item in records if item.log == "tries"), key=lambda item: item.start):
        if (hop := _hop_of_try(hops, record)) is not None:
            (hop.failed_copies if _is_of_copy(record, hop) else hop.tries).append(record)
    for hop in hops:
        _add_last_try(hop)
        hop.decision, hop.revision = _decide(hop.record, past)
    copies: list[Hop] = []
    for hop in hops:
        _add_copies(hop, hops, copies)
    roots = [hop for hop in hops if not any(hop is copy for copy in copies) and not _attach(hop, hops)]
    for hop in hops:
        if (there := _refusal(hop, refused)) is not None:
            hop.refused = _connection(there, past)
        hop.finding = find(hop.record, facts(hop))
        hop.nexts.sort(key=lambda item: item.record.start)
    if not hops:
        for record in records:
            roots.append(_connection(record, past))
    return roots


def _connection(record: Record, past: Past) -> Hop:
    """Return a connection that was refused before any request, with what its proxy had been told to accept."""
    hop = Hop(record)
    hop.decision, hop.revision = _decide(record, past)
    hop.finding = find(record, facts(hop))
    return hop


def verdict(hop: Hop) -> Verdict:
    """Return who had the last word in the request that *hop* is the beginning of."""
    record = hop.record
    if hop.refused is not None:
        theirs = hop.refused
        if (finding := theirs.finding) is not None:
            # A client's proxy that refuses the server knows better why than the server, which only sees it leave; and what
            # reads TLS as HTTP, because it expects none, only sees bytes that are no request.
            if finding.code in ("client-refused-server", "malformed-request") and hop.finding is not None:
                return Verdict("proxy", record.workload, hop.finding, hop)
            return Verdict("proxy", theirs.record.workload, finding, theirs)
    passed_on = record.details == ANSWERED or (hop.finding is not None and hop.finding.code.startswith("reset-"))
    server = hop.server_side
    if passed_on and server is not None and (hop.finding is None or server.finding is not None):
        return verdict(server)
    if hop.finding is not None:
        if hop.finding.code.startswith("reset-"):
            program = record.workload if record.direction == "inbound" else _target_workload(hop)
            return Verdict("program", program, hop.finding, hop)
        return Verdict(BY.get(hop.finding.code, "proxy"), record.workload, hop.finding, hop)
    if record.details == ANSWERED:
        return Verdict(
            "program", record.workload if record.direction == "inbound" else _target_workload(hop), None, hop
        )
    if record.protocol == "TCP" and record.upstream:
        return Verdict(
            "program", record.workload if record.direction == "inbound" else _target_workload(hop), None, hop
        )
    return Verdict("proxy", record.workload, None, hop)


def facts(hop: Hop) -> dict[str, str]:
    """Return what sentences about *hop* may name."""
    record = hop.record
    host, port, subset = cluster_parts(hop.cluster)
    service = f"{host}:{port}" + (f" (subset {subset})" if subset else "") if port and host else record.workload
    inbound = record.direction == "inbound"
    return {
        "workload": record.workload,
        "upstream": record.upstream or "the endpoint",
        "peer": f"The program of {record.workload}"
        if inbound
        else (_target_workload(hop) or record.upstream or "The server"),
        "service": f"The program of {record.workload}" if inbound else service,
        "destination": record.listener if record.protocol == "TCP" else record.authority,
        "endpoints": _endpoints(hop),
        "status": str(record.status or "nothing"),
        "method": record.method or "the request",
        "path": record.path,
        "host": record.authority,
        "url": f"{record.scheme or 'http'}://{record.authority}{record.path}",
    }


def _endpoints(hop: Hop) -> str:
    """Whether the configuration of then has endpoints for where it went: `none`, `there`, or `checked` by active health checks."""
    items = hop.decision.endpoints if hop.decision is not None else ()
    there = [item for item in items if item.cluster == hop.cluster and item.healthy]
    if any(item.checked for item in there):
        return "checked"
    return "there" if there else "none"


def _order(record: Record) -> tuple[float, int]:
    """Where two begin in the same millisecond, the client's side comes first."""
    return round(record.start, 3), {"gateway": 0, "outbound": 1, "inbound": 2}.get(record.direction, 3)


def _hop_of_try(hops: Sequence[Hop], record: Record) -> Hop | None:
    same = [hop for hop in hops if hop.record.node == record.node and hop.record.direction == record.direction]
    within = [hop for hop in same if _within(record, hop.record)]
    return next(iter(within or same), None)


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


def _attach(hop: Hop, hops: Sequence[Hop]) -> bool:
    """Find the hop from which *hop* followed, and put it there."""
    record = hop.record
    if record.direction == "inbound":
        candidates = [other for other in hops if other.record.direction != "inbound" and _called(other, record)]
        if not candidates:
            candidates = [other for other in hops if other.record.direction != "inbound"]
            candidates = [other for other in candidates if other.record.upstream == record.listener]
    else:
        # The program of a workload passed the id on to what it called meanwhile.
        candidates = [
            other
            for other in hops
            if other.record.direction in ("inbound", "gateway")
            and other.record.node == record.node
            and not any(other is copy.arrived for copy in hop.copies)
        ]
    within = [other for other in candidates if other is not hop and _within(record, other.record)]
    if not within:
        return False
    # The one that began last is the nearest.
    max(within, key=lambda other: other.record.start).nexts.append(hop)
    return True


def _add_last_try(hop: Hop) -> None:
    """The try that decided is told by the request's own record, unless it failed and has one of its own."""
    record = hop.record
    if record.attempts == 0 or not record.upstream:
        return
    told = hop.tries[-1] if hop.tries else None
    if told is not None and len(hop.tries) >= record.attempts and record.details != ANSWERED:
        return
    if told is not None and told.upstream == record.upstream and told.status == record.status and told.status:
        return
    hop.tries.append(record)


def _refusal(hop: Hop, refused: Sequence[Record]) -> Record | None:
    """Return the connection that was refused at the other end just then."""
    record = hop.record
    if record.direction == "inbound" or not set(record.flags) & {"UF", "UC", "UR"}:
        return None
    called = {(item.upstream_local, item.upstream) for item in (record, *hop.tries)}
    addresses = {upstream for _, upstream in called}
    for item in refused:
        exactly = any(local and local == item.downstream for local, _ in called)
        if exactly or (item.listener in addresses and _within(item, record)):
            return item
    return None


def _target_workload(hop: Hop) -> str:
    """Name of the workload at the endpoint that was called, as the configuration of then has it."""
    if hop.decision is not None:
        for endpoint in hop.decision.endpoints:
            if endpoint.address == hop.record.upstream:
                return endpoint.workload
    return ""


def _decide(record: Record, past: Past) -> tuple[Decision | None, int | None]:
    """Ask the engine what that proxy was told, with the first configuration that has the rule that was taken."""
    first: tuple[Decision | None, int | None] = (None, record.revision)
    for revision, resources in past(record.node, record.start):
        asked = _question(record)
        try:
            answer = json.loads(Engine(list(resources), strict=False).explain(json.dumps(asked)))
        except ValueError:
            continue  # no listener takes it: another configuration may
        decision = Decision.from_json(answer)
        if first[0] is None:
            first = (decision, revision)
        if answer.get("taken", True) and _agrees(record, decision):
            return decision, revision
    return first


def _question(record: Record) -> Mapping[str, Any]:
    asked: dict[str, Any] = {
        "direction": record.direction or "outbound",
        "destination": record.listener,
        "source": record.downstream,
        "method": record.method or "GET",
        "scheme": record.scheme or "http",
        "authority": record.authority,
        "path": record.path or "/",
        "headers": [],
    }
    if record.origin:
        asked["taken"] = {"origin": record.origin, "match": record.match}
    if record.sni:
        asked["sni"] = record.sni
    if record.peer:
        asked["source_principal"] = record.peer
    return asked


def _agrees(record: Record, decision: Decision) -> bool:
    """Whether a configuration can have led to the record: it names the cluster that was taken."""
    return not record.cluster or any(share.cluster == record.cluster for share in decision.shares)
