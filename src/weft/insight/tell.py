"""What happened to a request, as text for somebody who has never used a mesh: the verdict first, then each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from weft.insight.decision import DEFAULT, Metadata, cluster_parts
from weft.insight.happened import (
    ANSWERED,
    GIVEN_UP,
    PROXY_GONE,
    TIMEOUT,
    TRY_TIMEOUT,
    Copy,
    Hop,
    Verdict,
    has_begun,
    of_cluster,
    setting,
    tls_rule,
    verdict,
)
from weft.insight.mutual_tls import Acceptance
from weft.insight.words import Finding
from weft.telemetry import Record

INDENT = "  "


Place = Callable[[str], str]
"""Makes of where something is written what the reader may open."""


def tell(hops: list[Hop], place: Place = str) -> str:
    """Return the whole text, without a line end."""
    return "\n\n".join(_tree(hop, place) for hop in hops)


def to_json(hop: Hop) -> dict[str, Any]:
    """Return a tree as `weft why -o json` shows it."""
    end = verdict(hop)
    return {"verdict": _verdict_json(end), **_hop_json(hop)}


def _verdict_json(end: Verdict) -> dict[str, Any]:
    return {
        "by": end.by,
        "workload": end.workload,
        "code": end.finding.code if end.finding else "answered",
        "sentence": end.finding.sentence if end.finding else "",
        "remedy": end.finding.remedy if end.finding else "",
        "flags": list(end.hop.record.flags),
        "details": end.hop.record.details,
        "notices": [{"workload": item.workload, "code": item.code, "text": item.text} for item in end.hop.notices],
    }


def _hop_json(hop: Hop) -> dict[str, Any]:
    return {
        "record": hop.record.to_json(),
        "revision": hop.revision,
        "tries": [record.to_json() for record in hop.tries],
        "refused": hop.refused.record.to_json() if hop.refused else None,
        "finding": hop.finding.code if hop.finding else None,
        "decision": hop.decision.raw if hop.decision else None,
        "next": [_hop_json(item) for item in hop.nexts],
        "copies": [
            {
                "cluster": copy.cluster,
                "percent": copy.percent,
                "failed": copy.failed.to_json() if copy.failed else None,
                "arrived": _hop_json(copy.arrived) if copy.arrived else None,
            }
            for copy in hop.copies
        ],
    }


def _tree(hop: Hop, place: Place) -> str:
    end = verdict(hop)
    if hop.record.log == "lookups":
        return f"{_headline(hop.record)}\n\n{_verdict(hop, end, place)}"  # there are no steps: no proxy took part
    verdict_lines = "\n".join([_verdict(hop, end, place), *_delays(hop, place)])
    blocks = [_headline(hop.record), verdict_lines, "\n".join(_steps(hop, hop.record.start, 0, place))]
    return "\n\n".join(block for block in blocks if block)


def _headline(record: Record) -> str:
    asked = _asked(record)
    when = f"{datetime.fromtimestamp(record.start, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
    after = "" if record.log == "lookups" else f" after {_ms(record.duration_ms)}"
    lines = [f"{asked}: {_outcome(record)}{after}  ({when})"]
    if record.request_id:
        lines.append(f"{INDENT}request id {record.request_id}")
    return "\n".join(lines)


def _asked(record: Record) -> str:
    if record.log == "lookups":
        return f"A call of the host {record.authority}"
    if record.protocol == "TCP":
        return f"A connection to {record.listener}"
    if not record.method and not record.authority:
        return f"A request to {record.listener} that could not be read"
    return f"{record.method or '?'} {record.scheme or 'http'}://{record.authority}{record.path}"


def _outcome(record: Record) -> str:
    if record.log == "lookups":
        return "not made"
    if record.log == "connections" or (record.protocol == "TCP" and record.is_denial):
        return "refused"
    if record.protocol == "TCP":
        return "failed" if record.flags else "ended"
    return record.answer or "no answer"


def _verdict(hop: Hop, end: Verdict, place: Place) -> str:
    finding = end.finding
    if finding is None:
        status = end.hop.record.answer
        who = f"The program of {end.workload}" if end.workload else "The program that was called"
        if end.by == "proxy":
            return f"The proxy of {end.workload} answered {status} as its configuration says."
        if end.hop.record.protocol == "TCP":
            return "The connection was passed on and ended in order."
        trouble = end.hop.record.is_server_failure
        passed_on = "only passed it on"
        if end.hop.record.status == HTTPStatus.SWITCHING_PROTOCOLS:
            passed_on = "passed it on, and then the bytes of another protocol (WebSocket, say), which it does not read"
        lines = [f"{who} answered {status} itself; the mesh {passed_on}."]
        lines.extend(_tried(hop, None))
        if trouble and (beneath := _beneath(end.hop)) is not None:
            lines.append(f"{INDENT}A call that it made meanwhile had failed: {beneath.sentence}")
            if beneath.remedy:
                lines.append(f"{INDENT}What to do: {beneath.remedy}")
        elif trouble:
            lines.append(f"{INDENT}What to do: look at its output: `weft logs --output {end.workload or 'NAME'}`.")
        return "\n".join(lines)
    code = ",".join(end.hop.record.flags)
    mark = f" ({code})" if code else ""
    lines = [finding.sentence + mark]
    who = {
        "program": f"the program of {end.workload}" if end.workload else "the program that was called",
        "proxy": f"the proxy of {end.workload}",
        "client": "the client",
        "outside": "the place outside of the mesh",
    }[end.by]
    lines.append(f"{INDENT}{_by(hop, end, who)}.{_became(hop, end)}")
    if policy := _policy(end, place):
        lines.append(f"{INDENT}Policy: {policy}")
    lines.extend(f"{INDENT}Noticed of {notice.workload}: {notice.text}" for notice in end.hop.notices)
    if finding.remedy:
        lines.append(f"{INDENT}What to do: {finding.remedy}")
    lines.extend(_tried(hop, finding))
    return "\n".join(lines)


def _tried(hop: Hop, finding: Finding | None) -> Iterator[str]:
    """Yield how often it was tried, where that was as often as allowed, and what forbade more; *finding* may say it already."""
    if "URX" in hop.record.flags:
        yield f"{INDENT}It was tried {hop.record.attempts} times, as often as the rule allows."
    if "UO" in hop.record.flags and (finding is None or finding.code not in BREAKER):
        yield f"{INDENT}It was not tried again: a limit (a circuit breaker) allowed no further try."


def _beneath(hop: Hop) -> Finding | None:
    """Return what became of the first call that failed of those that the program made to answer the request of *hop*."""
    for following in hop.nexts:
        inner = verdict(following)
        if inner.by == "client" and following.record.is_server_failure:
            # Whoever has read that it failed need not wait for the rest of the answer.
            there = following.server_side or following
            whose = there.record.workload if there.record.direction == "inbound" else ""
            is_told = there.finding is not None and there.finding.code not in CLIENT_LEFT
            inner = Verdict("program", whose, there.finding if is_told else None, there)
        if (found := inner.finding or _beneath(inner.hop)) is not None:
            return found
        if inner.by == "program" and inner.hop.record.is_server_failure:
            who = f"the program of {inner.workload}" if inner.workload else "the program that was called"
            return Finding(
                "answered",
                f"{_asked(following.record)} was answered {inner.hop.record.answer} by {who}.",
                f"Look at the output of that: `weft logs --output {inner.workload or 'NAME'}`.",
            )
    return None


def _by(hop: Hop, end: Verdict, who: str) -> str:
    """Return whose doing it was: a proxy that answers or refuses as it was told to is not the cause."""
    if end.finding is not None and end.finding.code == PROXY_GONE and not end.hop.notices:
        return f"Cause: {who}, or something that it could not tell of"
    if end.by != "proxy" or end.finding is None or end.finding.code in PROXYS_OWN:
        return f"Cause: {who}"
    if has_begun(hop.record):
        return f"Broken off by: {who}"
    own = end.hop.record.answer
    return f"Answered by: {who}, with {own}" if own else f"Refused by: {who}"


def _became(hop: Hop, end: Verdict) -> str:
    """Return what the client got of it, if that has not been said."""
    answer = hop.record.answer
    if has_begun(hop.record):
        return f" The client had got the head, {answer}, by then."
    is_said = _by(hop, end, "").startswith("Answered") and answer == end.hop.record.answer
    return f" Its word became the {answer}." if answer and not is_said else ""


CLIENT_LEFT = frozenset({"client-gone", GIVEN_UP})
"""Findings that say who went away, and not why what was there by then is a failure."""

PROXYS_OWN = frozenset({PROXY_GONE, "overload", "local-reset"})
"""Findings whose cause is a proxy itself."""

POLICIES = {
    "fault-injected": "fault",
    "timeout": TIMEOUT,
    "timeout-during-answer": TIMEOUT,
    "try-timeout": TRY_TIMEOUT,
    "circuit-open": "connectionPool",
    "retry-not-allowed": "connectionPool",
    "all-ejected": "outlierDetection",
    "preflight-answered": "corsPolicy",
}
"""Finding -> the key in a route's or cluster's origins."""

BREAKER = frozenset({"circuit-open", "retry-not-allowed"})
"""Findings that say themselves what a circuit breaker has done."""

DESTINATIONS = frozenset({"empty-subset", "no-backend", "no-cluster", "not-permitted"})
"""Findings whose cause is the place to which a rule sends, or what defines that."""

MUTUAL_TLS = frozenset({"client-in-plaintext", "client-without-certificate"})
"""Findings that a PeerAuthentication is the cause of."""


def _delays(hop: Hop, place: Place) -> Iterator[str]:
    """Yield a sentence for each fault rule that held the request up on purpose, which no status tells."""
    if "DI" in hop.record.flags:
        fault = (hop.decision.raw.get("fault") or {}) if hop.decision is not None else {}
        by = f" by {_ms(fault['delay_ms'])}" if fault.get("delay_ms") else ""
        origin = hop.decision.origins.get("fault") if hop.decision is not None else None
        yield f"The proxy of {hop.record.workload} delayed it on purpose{by}: a fault rule" + (
            f" ({place(origin)})." if origin else "."
        )
    for following in hop.nexts:
        yield from _delays(following, place)


def _policy(end: Verdict, place: Place) -> str:
    """Where the policy that had the last word is written."""
    decision = end.hop.decision
    if decision is None or end.finding is None:
        return ""
    if end.finding.code in MUTUAL_TLS:
        chains = [item.metadata for item in decision.considered if item.subject == "filter_chain" and item.metadata]
        accepted = Acceptance(policy=chains[0], place=place).written if chains else ""
        return "; ".join(filter(None, (accepted, tls_rule(end.hop, place))))
    if end.finding.code == "server-without-tls":
        return tls_rule(end.hop, place)
    if end.finding.code in DESTINATIONS:
        made = of_cluster(end.hop)
        return _written(made if made.get("kind") else decision.route, place)
    if end.finding.code not in POLICIES:
        return ""
    key = POLICIES[end.finding.code]
    name, value, origin = setting(decision.route, key), "", decision.origins.get(key)
    if key == TIMEOUT:
        value = _value(decision.raw.get("timeout_ms"))
    elif key == TRY_TIMEOUT:
        value = _value((decision.raw.get("retry") or {}).get("per_try_timeout_ms"))
        origin = origin or decision.origins.get("retries")  # of which it is a part, where it is not written apart
    if origin is None:
        chosen = [share.own.get("origins", {}).get(key) for share in decision.shares if share.cluster in end.hop.places]
        origin = next((it for it in chosen if it not in (None, DEFAULT)), None)
    if origin in (None, DEFAULT):
        return f"{name}{value}, weft's default"
    return f"{name}{value} ({place(origin)})"


def _value(milliseconds: float | None) -> str:
    return f" {_ms(milliseconds)}" if milliseconds else ""


def _written(made: Metadata, place: Place) -> str:
    """Where what *made* describes is written: `DestinationRule default/server, spec.subsets[0] (mesh.yaml:8:5)`."""
    if not made.get("kind"):
        return ""
    return f"{made['kind']} {made['namespace']}/{made['name']}, {made['rule']} ({place(made['origin'])})"


def _steps(hop: Hop, began: float, depth: int, place: Place) -> Iterator[str]:
    """Yield the lines of one hop and of what followed."""
    record, pad = hop.record, INDENT * depth
    side = {"outbound": "sent by", "inbound": "received for", "gateway": "received at the gateway"}
    since = f"+{_ms((record.start - began) * 1000)}"
    yield f"{pad}{since:>8}  {side.get(record.direction, 'seen by')} {record.workload}: {_outcome(record)} after {_ms(record.duration_ms)}"
    inner = pad + " " * 10
    if rule := _rule(hop, place):
        yield f"{inner}rule: {rule}"
    if hop.places and record.direction != "inbound":
        yield f"{inner}to: {' or '.join(map(_service, hop.places))}"
    for number, item in enumerate(hop.tries, start=1):
        yield f"{inner}try {number}: {_try(hop, item)}"
    if times := _times(record):
        yield f"{inner}time: {times}"
    if record.peer:
        yield f"{inner}client: {record.peer}"
    elif record.client:
        yield f"{inner}client: {record.client}, from {record.downstream}"
    if hop.finding is not None:
        mark = ",".join(record.flags) or record.details
        yield f"{inner}{mark}: {hop.finding.sentence}" if mark else f"{inner}{hop.finding.sentence}"
    if hop.refused is not None:
        theirs = hop.refused.record
        why = theirs.downstream_failure or ",".join(theirs.flags)
        yield f"{inner}the other side, {theirs.workload}, refused the connection: {why}"
    for following in hop.nexts:
        yield from _steps(following, began, depth + 1, place)
    for copy in hop.copies:
        yield f"{inner}copy: {_copied(copy)}"
        if copy.arrived is not None:
            yield from _steps(copy.arrived, began, depth + 1, place)


def _copied(copy: Copy) -> str:
    """Return what became of a copy, whose answer nobody waits for."""
    to = f"to {_service(copy.cluster)}"
    if copy.arrived is not None:
        return f"{to}, where {copy.arrived.record.workload} took it; its answer was dropped"
    if copy.failed is not None:
        record = copy.failed
        how = f"answered {record.answer}" if record.status else f"failed ({','.join(record.flags)})"
        words = f": {record.transport_failure}" if record.transport_failure else ""
        return f"{to} {how}{words}; nobody waited for it"
    if not copy.exists:
        return f"none, for there is no {_service(copy.cluster)}"
    if copy.percent < 100:
        return f"{copy.percent:g} % of such requests go {to}; of this one no proxy has told"
    return f"{to}; no proxy has told that it arrived"


def _rule(hop: Hop, place: Place) -> str:
    record, decision = hop.record, hop.decision
    revision = f"; revision {hop.revision}" if hop.revision is not None else ""
    if not record.origin:
        return ""
    if record.origin == DEFAULT:
        return f"weft's own default{revision}" if record.direction != "inbound" else ""
    written = place(record.match or record.origin)
    route = decision.route if decision is not None else {}
    name = ""
    if route.get("kind") and route.get("origin") == record.origin:
        name = f"{route['kind']} {route['namespace']}/{route['name']}, "
    return f"{name}{record.rule} ({written}){revision}"


def _service(cluster: str) -> str:
    host, port, subset = cluster_parts(cluster)
    if not port:
        return cluster
    return f"{host} port {port}" + (f", subset {subset}" if subset else "")


def _try(hop: Hop, record: Record) -> str:
    endpoint = record.upstream or "no endpoint"
    workload = ""
    if hop.decision is not None:
        workload = next(
            (f" {it.workload}" for it in hop.decision.endpoints if it.address == record.upstream and it.workload), ""
        )
    # The last try is told by the request's own record, whose status may be the proxy's word.
    is_its_own = record.log == "tries" or record.details in ANSWERED
    if record.status and is_its_own:
        how = f"answered {record.answer}"
    elif record.flags:
        begun = f"began to answer {record.answer} and " if has_begun(record) else ""
        how = f"{begun}failed ({','.join(record.flags)})"
    elif record.protocol == "TCP":
        how = "took the connection, which ended"
    else:
        how = "failed"
    words = record.transport_failure
    duration = record.duration_ms if record.log == "tries" or len(hop.tries) == 1 else None
    after = f" after {_ms(duration)}" if duration is not None else ""
    return f"{endpoint}{workload} {how}{after}" + (f": {words}" if words else "")


def _times(record: Record) -> str:
    if record.details not in ANSWERED or record.answered_ms is None:
        return ""
    sent = record.sent_ms or 0.0
    return (
        f"request whole after {_ms(sent)}, first byte of the answer after {_ms(record.answered_ms)}, "
        f"all of it after {_ms(record.duration_ms)}"
    )


def _ms(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.4g} s"
    return f"{value:.3g} ms" if value >= 0.05 else "0 ms"
