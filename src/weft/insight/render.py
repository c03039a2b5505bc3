"""An explanation as text, for somebody who has never used a mesh: what happens, why, and what was assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from weft.insight.decision import (
    BY_CALLER,
    BY_ENDPOINT,
    DEFAULT,
    HTTP_ROUTE,
    Considered,
    Decision,
    Endpoint,
    Hash,
    Metadata,
    Share,
    cluster_parts,
)
from weft.insight.endpoint_health import SAID, Found
from weft.insight.mutual_tls import Refusal
from weft.insight.why import Explanation, InboundSide, UnknownHost
from weft.translate.names import host_cluster, is_refused_cluster

INDENT = "  "

OUTSIDE = {
    "PassthroughCluster": "the address itself, outside of the mesh",
    "MeshPassthroughCluster": "the address itself, inside of the mesh",
    "BlackHoleCluster": "nowhere: the mesh refuses it",
}
"""What Istio's names for the outside world mean."""


ANSWERED = frozenset({"denied", "preflight", "turned_away"})
"""Outcomes that the proxy itself decides, and that no program sees."""


Place = Callable[[str], str]
"""Makes of where something is written what the reader may open."""


def render(explanation: Explanation, place: Place = str) -> str:
    """Return the whole text, without a line end."""
    decision = explanation.outbound
    if explanation.refusal is not None:
        # What follows would be about a way that the call does not go.
        blocks = [_request(explanation), _verdict(explanation), _section("Assumed", explanation.assumptions)]
        return "\n\n".join(block for block in blocks if block)
    blocks = [
        _request(explanation),
        _verdict(explanation),
        _rule(decision, place),
        # A rule that forwards has destinations even where its filters answer.
        "" if decision.outcome in ANSWERED else _destinations(explanation, place),
        _settings(explanation, place),
        "" if decision.outcome in ANSWERED else _identities(explanation),
        _section("Assumed", explanation.assumptions),
    ]
    return "\n\n".join(block for block in blocks if block)


def _request(explanation: Explanation) -> str:
    question, target = explanation.question, explanation.target
    lines = [f"{question.method} {question.url}"]
    lines += [f"{INDENT}{name}: {value}" for name, value in question.headers]
    through = "arriving at the gateway" if explanation.is_gateway else "sent by"
    lines.append(f"{INDENT}{through} {explanation.workload} ({explanation.identity})")
    if target.hostname:
        lines.append(f"{INDENT}{target.host} is the service {target.hostname}, {target.address} port {target.port}")
    elif not explanation.is_gateway:
        lines.append(f"{INDENT}{target.host} is no service of the mesh")
    return "\n".join(lines)


def _verdict(explanation: Explanation) -> str:
    """Return where it goes, and who is left out now."""
    lines = [_going(explanation)]
    if explanation.http_refusal is not None:
        lines = [*_refused(explanation.http_refusal), "", f"Of other bytes: {lines[0][0].lower()}{lines[0][1:]}"]
    if explanation.unused and explanation.outbound.outcome not in ANSWERED:
        who = {(item.cluster, item.address): item.workload for item in explanation.outbound.endpoints}
        states = [
            f"{who.get((cluster, address)) or 'the endpoint'} ({address}) of {_cluster(cluster)} is {SAID[state]}"
            for (cluster, address), state in sorted(explanation.unused.items())
        ]
        lines.append(f"As {explanation.workload}'s proxy sees it now, {'; '.join(states)}.")
    return "\n".join(lines)


_NO_GRANT = "no ReferenceGrant of its namespace allows HTTPRoutes of this one to refer"


def _going(explanation: Explanation) -> str:
    """Return where it goes, and what becomes of it before."""
    decision = explanation.outbound
    if explanation.refusal is not None:
        return "\n".join(_refused(explanation.refusal))
    if decision.outcome == "fault":
        end = f"The proxy answers {decision.status} itself, every time: a fault is injected."
        return f"{end} Without it: {_shares(explanation)}." if decision.shares else end
    fault = decision.raw.get("fault") or {}
    going = _going_unharmed(explanation)
    if not (aborted := fault.get("abort_percent")):
        return going
    end = f"{aborted:g} % are answered {fault['abort_status']} by the proxy itself: a fault is injected."
    return f"{end} Otherwise {going[0].lower()}{going[1:]}"


def _going_unharmed(explanation: Explanation) -> str:
    """Return one sentence: where it goes if no fault is injected."""
    decision = explanation.outbound
    raw = decision.raw
    if decision.outcome == "redirect":
        return f"The proxy answers {decision.status} itself and sends the caller to {raw.get('location', '')}."
    if decision.outcome == "direct_response":
        why = ": the rule has no backend that is sent anything" if decision.route.get("kind") == HTTP_ROUTE else ""
        return f"The proxy answers {decision.status} itself{why}; no program sees the request."
    if decision.outcome == "preflight":
        return (
            f"The proxy answers {decision.status} itself: a browser asks what a page of another site may do."
            " No program sees the request."
        )
    if decision.outcome == "denied":
        end = f"answers {decision.status} itself" if decision.status is not None else "closes the connection"
        return f"The proxy {end}: its rules do not let this in ({decision.explanation})."
    if decision.outcome == "turned_away":
        why = decision.explanation.rstrip(".")
        return f"The proxy answers {decision.status} itself: {why[:1].lower()}{why[1:]}."
    if decision.outcome == "no_route":
        return f"No rule takes this request: the proxy answers {decision.status} itself ({decision.flags or 'NR'})."
    if decision.outcome == "no_cluster":
        answers = f"answers {decision.status} itself" if decision.status is not None else "closes the connection"
        end = f"the proxy {answers} (NC)"
        if all(is_refused_cluster(share.cluster) for share in decision.shares if share.share > 0):
            return f"The rule names a destination to which {_NO_GRANT}: {end}."
        return f"The rule names a destination that is not there: {end}."
    if decision.outcome == "refused":
        return "The proxy refuses the connection: no filter chain takes it."
    going = _shares(explanation)
    refused = [side for side in explanation.inbound if side.refusal is not None]
    if refused and decision.status is None:
        whom = "it is refused there" if len(refused) == len(explanation.inbound) else "it is refused in part"
        return f"It would go {going}, but {whom}: {refused[0].refusal.reason if refused[0].refusal else ''}"
    if decision.outcome == "tcp" and decision.flags:
        reason = decision.explanation.rstrip(".")
        return f"It would go {going}, but the proxy resets the connection ({decision.flags}): {reason}."
    if decision.status is not None:
        reason = decision.explanation.rstrip(".") or "no endpoint can take it"
        return f"It would go {going}, but the proxy answers {decision.status} itself ({decision.flags}): {reason}."
    if explanation.unknown_host is not None:
        return "\n".join(_if_it_is_known(explanation.unknown_host, going))
    if all(_nobody(explanation, share) for share in decision.shares if share.share > 0):
        return f"It would go {going}."
    return f"It goes {going}."


def _shares(explanation: Explanation) -> str:
    """Return the destinations with what each gets."""
    return ", ".join(
        f"{_percent(share.share)} to {_name(share)}{_nobody(explanation, share)}"
        for share in explanation.outbound.shares
        if share.share > 0
    )


def _nobody(explanation: Explanation, share: Share) -> str:
    """
    Return that nobody takes what would go to a destination, and what the proxy does then; empty if somebody does.

    Of an only one the sentence tells that already, unless a fault comes before it.
    """
    decision = explanation.outbound
    if decision.outcome not in ("forward", "tcp", "fault"):
        return ""
    if decision.outcome != "fault" and (decision.status is not None or decision.flags):
        return ""
    if not share.exists:
        why = f"to which {_NO_GRANT}" if is_refused_cluster(share.cluster) else "which is not there"
        return f" ({why}: {_answered_for_missing(decision, share)})"
    mine = [item for item in decision.endpoints if item.cluster == share.cluster]
    if any(item.share > 0 for item in mine):
        return ""
    why = "none of whose endpoints is used now" if mine else "which has no endpoint"
    return f" ({why}: {_answered_for_nobody(decision)})"


def _answered_for_nobody(decision: Decision) -> str:
    return "the connection is reset (UH)" if decision.is_of_bytes else "answered with 503 (UH)"


def _answered_for_missing(decision: Decision, share: Share) -> str:
    return "the connection is closed (NC)" if decision.is_of_bytes else f"answered with {share.status} (NC)"


def _if_it_is_known(host: UnknownHost, going: str) -> Iterator[str]:
    """Say what hangs on a resolver's answer; it is not asked, for nothing is sent."""
    otherwise = (
        "the proxy answers 503 itself (DF)"
        if host.asked_by == "proxy"
        else "the program is told that there is no such host, and calls nobody"
    )
    yield f"{host.name} is no name of the mesh, so this machine's resolver is asked. If that has an address for it, it goes"
    yield f"{going}; if not, {otherwise}."
    if host.remedy:
        yield f"To mend it: {host.remedy[0].lower()}{host.remedy[1:]}"


def _rule(decision: Decision, place: Place) -> str:
    lines = []
    routes = [item for item in decision.considered if item.subject == "route"]
    matched = next((item for item in routes if item.matched), None)
    host = next((item for item in decision.considered if item.subject == "virtual_host" and item.matched), None)
    if matched is not None:
        lines.append(_source(matched.metadata, place))
        lines.append(f"matched: {_condition(matched.reason)}")
    elif host is not None:
        lines.append(f"none of the rules for {host.name.rpartition(':')[0] or host.name} matched")
    elif decision.is_of_bytes:
        lines += _rule_of_bytes(decision, place)
    passed = [item for item in routes if not item.matched]
    if passed:
        lines += ["", "Tried before it, in this order:" if matched is not None else "Tried, in this order:"]
        lines += [f"{number}. {line}" for number, item in enumerate(passed, 1) for line in _tried(item, place)]
    return _section("Rule", lines)


def _rule_of_bytes(decision: Decision, place: Place) -> Iterator[str]:
    """Tell which rule for TCP or TLS has chosen; its filter chain carries where it is written."""
    chains = (item for item in decision.considered if item.subject == "filter_chain" and item.matched)
    chain = next((item for item in chains if item.metadata.get("kind")), None)
    if chain is not None:
        yield _source(chain.metadata, place)
        yield f"matched: {chain.reason}"
    yield "bytes are passed on as they are" + ("" if chain is not None else "; no rule looks inside")


def _tried(item: Considered, place: Place) -> Iterator[str]:
    yield f"{_source(item.metadata, place)}\n{INDENT * 3}did not match: {item.reason}"


def _condition(reason: str) -> str:
    return "every request" if reason == "path begins with `/`" else reason


def _source(metadata: Metadata, place: Place) -> str:
    """Return `VirtualService default/reviews, spec.http[0] (reviews.yaml:8:5)`."""
    origin = metadata.get("origin", DEFAULT)
    if origin == DEFAULT or not metadata.get("kind"):
        return "weft's own default: nobody has applied a rule for this host"
    rule = f", {metadata['rule']}" if metadata.get("rule") else ""
    # A rule with several alternatives becomes several routes; each points at its own line.
    origin = str((metadata.get("origins") or {}).get("match", origin))
    return f"{metadata['kind']} {metadata['namespace']}/{metadata['name']}{rule} ({place(origin)})"


def _destinations(explanation: Explanation, place: Place) -> str:
    decision, lines = explanation.outbound, []
    bare = "the program's own TLS" if explanation.target.scheme == "https" else "plaintext"
    for share in decision.shares:
        origin = "" if share.metadata.get("origin", DEFAULT) == DEFAULT else f"  ({place(share.metadata['origin'])})"
        lines.append(f"{_percent(share.share):>6}  {_name(share)}{origin}")
        if not share.exists:
            why = _NO_GRANT if is_refused_cluster(share.cluster) else "does not exist"
            lines.append(f"{INDENT * 4}{why}: {_answered_for_missing(decision, share)}")
            continue
        mine = [item for item in decision.endpoints if item.cluster in (share.cluster, "")]
        if not mine and share.share > 0:
            lines.append(f"{INDENT * 4}no endpoint: {_answered_for_nobody(decision)}")
        for item in mine:
            state = _health(item, explanation.unused)
            safe = "mutual TLS" if item.tls is not None else bare
            part = _part(item, share)
            lines.append(f"{INDENT * 4}{item.address}  {item.workload or '-'}  {part}, {safe}{state}")
    return _section("Destinations", lines)


def _health(endpoint: Endpoint, unused: Found | None) -> str:
    """Return what is to be said of the health of an endpoint, after a comma."""
    if state := (unused or {}).get((endpoint.cluster, endpoint.address)):
        return f", {SAID[state]} now" + (", and used since too few others are well" if endpoint.share > 0 else "")
    if not endpoint.healthy:
        return ", not healthy"
    if endpoint.checked:
        return ", while it passes active health checks" if unused is None else ", passes its active health check now"
    return ""


def _part(endpoint: Endpoint, share: Share) -> str:
    """Return how much of what goes to its cluster an endpoint gets."""
    if endpoint.share <= 0:
        return "not eligible"
    if share.hash is not None and share.hash.endpoint:
        return "all of it, by the hash" if endpoint.address == share.hash.endpoint else "none of it, by the hash"
    return f"{_percent(endpoint.share)} of it"


def _settings(explanation: Explanation, place: Place) -> str:
    """Return everything that is done to the request or the answer, each with the place that says so."""
    decision = explanation.outbound
    raw, lines = decision.raw, []

    def add(name: str, text: str, *keys: str, origins: Mapping[str, str] = decision.origins) -> None:
        written = [place(str(origins[key])) for key in keys if origins.get(key, DEFAULT) != DEFAULT]
        lines.append((name, text, " and ".join(dict.fromkeys(written)) or "default"))

    if decision.outcome in ("forward", "fault"):
        timeout = raw.get("timeout_ms")
        add("timeout", "none" if timeout in (None, 0) else _ms(timeout), "timeout")
        add("retries", _retries(raw.get("retry")), "retries")
    if decision.outcome not in ANSWERED:
        for text, origin in _links(explanation):
            lines.append(("link", text, "default" if origin == DEFAULT else place(origin)))
    if raw.get("idle_timeout_ms"):
        lines.append(("idle timeout", _ms(raw["idle_timeout_ms"]), "default"))
    for text in _faults(raw.get("fault") or {}):
        add("fault", text, "fault")
    for text in _cors(raw.get("cors") or {}):
        add("cors", text, "corsPolicy")
    for text, name in _access(raw.get("rbac") or ()):
        lines.append(("access", text, name))
    for side, name in (("request_headers", "request header"), ("response_headers", "response header")):
        for text in _edits(raw.get(side) or {}):
            add(name, text, "headers", "destinationHeaders")
    rewrite = raw.get("rewrite") or {}
    if rewrite.get("path"):
        add("path", f"becomes {rewrite['path']}", "rewrite")
    if rewrite.get("authority"):
        add("host", f"becomes {rewrite['authority']}", "authority" if "authority" in decision.origins else "rewrite")
    for share in decision.shares:
        own = share.metadata.get("origins") or {}
        for edits, name in ((share.request_headers, "request header"), (share.response_headers, "response header")):
            for text in _edits(edits):
                add(name, f"{text}, to {_name(share)}", "headers", origins=own)
        if share.authority:
            add("host", f"becomes {share.authority}, to {_name(share)}", "headers", origins=own)
    if decision.outcome not in ANSWERED:
        for share in decision.shares:
            if share.hash is not None:
                origin = share.hash.origin
                lines.append(("endpoint", _hashed(share, share.hash), DEFAULT if origin == DEFAULT else place(origin)))
    for mirror in decision.mirrors:
        key = "mirrors" if "mirrors" in decision.origins else "mirror"
        text = f"{mirror.percent:g} % to {_cluster(mirror.cluster)}"
        add("copy", text if mirror.exists else f"{text}, which does not exist: none is sent", key)
    widths = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    return _section(
        "On the way",
        [f"{name:{widths[0]}}  {text:{widths[1]}}  {_from(origin)}" for name, text, origin in lines],
    )


def _hashed(share: Share, hashed: Hash) -> str:
    """Return what chooses the endpoint of *share*, what the request has of it, and what comes of that."""
    names = [f"{name} (`{value}`)" if value is not None else f"{name} (none)" for name, value in hashed.properties]
    of = " and ".join(names) or "nothing"
    table = "a ring" if hashed.by == "ring" else "a Maglev table"
    if hashed.makes_cookie and not hashed.key:
        end = "a cookie is made for the client, which leads back to the first endpoint"
    elif hashed.of_unknown_client:
        end = "an endpoint for each client's address, which is not known here"
    elif not hashed.key:
        end = "any endpoint, by chance"
    else:
        end = f"{hashed.endpoint or 'no endpoint'} has the hash {hashed.key}"
    return f"of {_name(share)} by {of} on {table}: {end}"


def _links(explanation: Explanation) -> list[tuple[str, str]]:
    """Return each version of HTTP in which proxies of endpoints are called, or that somebody asked for, and who says so."""
    endpoints = [item for item in explanation.outbound.endpoints if item.version and item.share > 0]
    agreed = {side.address: side.version for side in explanation.inbound}
    by_cluster = {item.cluster: agreed[item.address] for item in endpoints if item.address in agreed}
    found: dict[tuple[str, str], None] = {}
    for item in endpoints:
        if item.tls is None and item.version_origin == DEFAULT:
            continue
        text = item.version
        if item.version == BY_CALLER:
            text = "in the version that the program speaks"
        elif item.version == BY_ENDPOINT:
            version = by_cluster.get(item.cluster, "HTTP/2 or HTTP/1.1")
            text = f"{version}, as the proxy there chooses"
        found[text, item.version_origin] = None
    return list(found)


def _from(origin: str) -> str:
    return "(weft's default)" if origin == "default" else f"({origin})"


def _identities(explanation: Explanation) -> str:
    lines: list[str] = []
    if any(endpoint.tls is not None for endpoint in explanation.outbound.endpoints):
        lines.append(f"{explanation.workload} shows its certificate, {explanation.identity}")
    for side in explanation.inbound:
        lines += _inbound(explanation, side, side.tls)
    return _section("Identity", lines)


def _inbound(explanation: Explanation, side: InboundSide, tls: Mapping[str, Any] | None) -> Iterator[str]:
    if tls is None:
        if explanation.target.scheme == "https":
            yield f"{explanation.workload} calls {side.workload} by the program's own TLS, which the mesh does not look into"
        else:
            yield f"{explanation.workload} calls {side.workload} in plaintext: neither side proves who it is"
        if side.refusal is not None:
            yield from _refused(side.refusal)
        else:
            yield f"{side.workload} takes callers without a certificate, by {side.accepted.written}"
        return
    if side.refusal is not None:
        yield f"{explanation.workload} calls {side.workload} by mutual TLS"
        yield from _refused(side.refusal)
        return
    names = " or ".join(name.removeprefix("equal to ").strip("`") for name in tls.get("names") or ())
    yield f"{side.workload} must be {names or 'some identity of the mesh'}, and is {side.identity}"
    if side.requires_tls:
        yield f"{side.workload} requires a certificate of whoever calls it; plaintext is refused"
        if side.accepted.policy.get("kind"):
            yield f"{INDENT}by {side.accepted.written}"
    else:
        yield f"{side.workload} takes callers without a certificate, too, by {side.accepted.written}"
    if side.decision.outcome in ("refused", "no_route"):
        yield f"{side.workload} refuses it: {side.decision.explanation or side.decision.outcome}"
    elif side.decision.shares:
        port = cluster_parts(side.decision.shares[0].cluster)[1]
        at = ", ".join(item.address for item in side.decision.endpoints)
        yield f"{side.workload} passes the request to its program, port {port}" + (f" ({at})" if at else "")


def _refused(refusal: Refusal) -> Iterator[str]:
    yield refusal.reason
    yield f"To mend it: {refusal.remedy[0].lower()}{refusal.remedy[1:]}"


def _retries(retry: Mapping[str, Any] | None) -> str:
    if not retry or not retry.get("attempts"):
        return "none"
    text = f"up to {retry['attempts']}, on {retry.get('on') or 'nothing'}"
    if retry.get("status_codes"):
        text += f" {','.join(str(code) for code in retry['status_codes'])}"
    if retry.get("per_try_timeout_ms"):
        text += f", {_ms(retry['per_try_timeout_ms'])} each"
    return text


def _faults(fault: Mapping[str, Any]) -> Iterator[str]:
    if fault.get("delay_percent"):
        yield f"{fault['delay_percent']:g} % of requests wait {_ms(fault['delay_ms'])}"
    if fault.get("abort_percent"):
        yield f"{fault['abort_percent']:g} % of requests are answered {fault['abort_status']}"


def _cors(cors: Mapping[str, Any]) -> Iterator[str]:
    if not cors:
        return
    origins = "" if cors["any_origin"] else f" whose origin is {' or '.join(cors['origins']) or 'none at all'}"
    share = "" if cors["percent"] >= 100 else f", for {cors['percent']:g} % of requests"
    yield f"pages of other sites{origins} may see the answer{share}"
    if cors["allowed"] is not None and cors["treatment"] != "counted":
        yield f"this request is of a page that is {'' if cors['allowed'] else 'not '}one of them"
    for name, value in cors["response_headers"]:
        yield f"the answer says {name}: {value}"


def _access(filters: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield what each RBAC filter says, and its name."""
    for item in filters:
        for key, would in (("rules", ""), ("shadow_rules", "would be ")):
            verdict = item[key]
            if verdict is not None:
                end = "let in" if verdict["allowed"] else "refused"
                by = f"by the policy {verdict['policy']}" if verdict["policy"] else "since no policy takes it"
                yield f"{would}{end} {by} ({verdict['action']})", item["filter"]


def _edits(edits: Mapping[str, Any]) -> Iterator[str]:
    for verb, key in (
        ("set", "set"),
        ("add", "add"),
        ("add if absent", "add_if_absent"),
        ("set if present", "set_if_present"),
    ):
        for name, value in edits.get(key) or ():
            yield f"{verb} {name}: {value}"
    for name in edits.get("remove") or ():
        yield f"remove {name}"


def _name(share: Share) -> str:
    return _cluster(share.cluster)


def _cluster(cluster: str) -> str:
    if cluster in OUTSIDE:
        return OUTSIDE[cluster]
    host, port, subset = cluster_parts(cluster)
    if cluster == host_cluster(int(port or 0)):
        return f"port {port} of this machine's localhost"
    short = host.removesuffix(".svc.cluster.local").removesuffix(".default")
    return short + (f" subset {subset}" if subset else "") + (f" port {port}" if port else "")


def _percent(share: float) -> str:
    return f"{share * 100:.4g} %"


def _ms(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:g} ms"
    return f"{milliseconds / 1000:g} s"


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"{INDENT}{line}" if line else "" for line in lines)]) if lines else ""
