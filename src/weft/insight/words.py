"""
What a response flag and its details mean, in a sentence that a newcomer understands, and what to do about it.

One ordered table: the first row that fits a record is its finding. Envoy and weft-proxy name the same causes by
different words of their TLS libraries; each row knows both. Nothing else in weft explains a flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from weft.insight.mutual_tls import BY_ADDRESS, CALL_BY_NAME
from weft.telemetry import Record


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Why a request ended as it did.

    Attributes:
        code: Stable, for programs: `program-not-listening`.
        sentence: What happened.
        remedy: What to do; empty if nothing is wrong.
    """

    code: str
    sentence: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """
    A finding and the records that it fits: all of what is given must hold.

    Attributes:
        flags: Any of these codes.
        details: Is found in `response_code_details` or the termination's details.
        failure: Is found in the reason of the transport's failure, of either side.
        cluster: Is found in the name of the cluster, which may be known though the record does not name it.
        directions: Only in records of these.
        given: Facts (see `happened.facts`) that must have these values.
        sentence, remedy: With `{name}` from `facts`.
    """

    code: str
    sentence: str
    remedy: str = ""
    flags: frozenset[str] = frozenset()
    details: str = ""
    failure: str = ""
    cluster: str = ""
    directions: frozenset[str] = frozenset()
    given: tuple[tuple[str, str], ...] = ()

    def fits(self, record: Record, facts: Mapping[str, str]) -> bool:
        return (
            (not self.flags or bool(self.flags & set(record.flags)))
            and (not self.details or re.search(self.details, f"{record.details} {record.termination}") is not None)
            and (not self.failure or re.search(self.failure, failure_of(record), re.IGNORECASE) is not None)
            and (not self.cluster or re.search(self.cluster, facts.get("cluster") or record.cluster) is not None)
            and (not self.directions or record.direction in self.directions)
            and all(facts.get(name) == value for name, value in self.given)
        )


def failure_of(record: Record) -> str:
    """What the transport said, whichever side it was."""
    return f"{record.transport_failure} {record.downstream_failure} {record.details}".replace("_", " ")


INBOUND = frozenset({"inbound"})

FROM_THE_MESH = (("from", "mesh"),)
"""The client's address is that of a workload of the mesh."""

TUNNEL = (("status", "101"),)
"""The server has switched protocols (RFC 9110 15.2.2): what follows is no answer."""

BY_RULE = (("tls", "rule"),)
"""A DestinationRule says how the caller's proxy speaks TLS."""

UNFINISHED = "request_header_timeout"
"""`response_code_details` where the head of a request did not come to its end."""

ALERT = r"received fatal alert|V[13] ALERT "
"""Both libraries say so of what the other end has sent: it is the other end that refuses."""

NOT_YET_VALID = r"NotValidYet|not yet valid|not valid yet"
EXPIRED = r"certificate.?expired|certificate has expired|NotValidAfter|\bExpired\b"
WRONG_NAME = r"SAN matcher|subject.?alt|verify.?SAN|NotValidForName|unexpected identity|ApplicationVerificationFailure"
NO_CERTIFICATE = r"certificate.?required|did.?not.?return.?a.?certificate|NoCertificatesPresented|peer sent no cert"
UNTRUSTED = (
    r"unknown.?ca|UnknownIssuer|unable.to.get|self.signed|bad.?certificate|certificate.?verify.?failed|BadSignature"
)
NOT_TLS = r"wrong.?version.?number|http.?request|plaintext|InvalidContentType|corrupt message|packet length too long"
TLS = r"\bTLS\b|\bSSL\b|handshake|alert"

OUTSIDE = r"^PassthroughCluster$|^host\|"
"""Clusters that lead out of the mesh."""

NOT_MADE = "No connection out of the mesh was made for {workload}: {reason}."
CHECK_OUTSIDE = "Check address and port from this machine, outside of the mesh: `curl -v {url}`{host_ports}."
TOO_SLOW_TO_CONNECT = "{upstream} did not answer within the time that a connection may take."
CHECK_SILENCE = "The machine is away, or a firewall drops packets; `connectionPool.tcp.connectTimeout` sets the limit."
CHECK_ANSWER = "Look at what serves it: `curl -v {url}` from this machine, outside of the mesh, shows whether it does so to others, too."
ENDED_TUNNEL = "ended the connection, which had become that of another protocol (101: WebSocket, say)."
END_OF_TUNNEL = "That is the end of every such connection; if it came too early, "
LIMIT_REACHED = "A limit of {service} was reached (a circuit breaker), so the request was refused at once."
RAISE_LIMIT = "Raise `trafficPolicy.connectionPool` of the DestinationRule, or send less at a time."
CALL_HTTP = (
    "Call it by {http_url}; the proxies add mutual TLS themselves. If its program speaks something else, declare that: "
    "`protocol: TCP` in the `ports` of the program."
)
HAD_NO_ENDPOINT = "{service} had no endpoint that could take a request; by now {now}."
RESET_STREAM = (
    "Look at the program's output (`weft logs --output`): whatever handled this call may have failed or given it up."
)
MALFORMED = "The client's request breaks the rules of HTTP ({reason})."
MEND_CLIENT = "Mend the client."
MALFORMED_DETAILS = (
    r"^(?:missing_host_header|missing_path_rejected|absolute_path_rejected|path_normalization_failed|low_version"
    r"|request_headers_failed_strict_check|query_missing_content_type|http[123]\.)"
)
"""Of requests that Envoy refuses before it looks for a route, and flags with nothing."""

FIND_HOST = "{meant}If a place outside of the mesh is meant, `getent hosts {name}` shows whether this machine finds it."

TABLE = (
    # What the configuration asks for.
    Row(
        "fault-injected",
        "A fault rule answered {status} on purpose; no program was asked.",
        "Take the fault out of the rule when it has done its work.",
        flags=frozenset({"FI"}),
    ),
    Row(
        "access-denied",
        "RBAC rules of {workload}'s proxy do not let the request in; no program was asked.",
        "The name in brackets is the policy that refuses it; `none`: no policy lets it in.",
        details=r"rbac_access_denied_matched_policy\[",
    ),
    Row(
        "preflight-answered",
        "A browser asked what a page of another site may do, and a corsPolicy answered {status}; no program was asked.",
        details="^cors_response",
    ),
    Row(
        "redirected",
        "The rule redirects the client to another place with {status}; no program was asked.",
        details=r"^direct_response",
        given=(("outcome", "redirect"),),
    ),
    Row(
        "no-backend",
        "The rule has no backend that is sent anything (no `backendRefs`, or weights of 0 only), so the proxy answers {status}.",
        "Add one to `backendRefs`, or give one of them a weight.",
        details=r"^direct_response",
        given=(("rule_of", "HTTPRoute"),),  # which has no other answer of its own
    ),
    Row("configured-answer", "The rule itself answers {status}; no program was asked.", details=r"^direct_response"),
    # Explicit mode: who called was not the program beside the proxy, or did not show it.
    Row(
        "caller-of-another-user",
        "A process of another user called an address that is for {workload}'s own calls, and was refused.",
        "Call from a program of the mesh (`weft run -- ...`). A program that gave up root calls as another user.",
        details="caller_uid_refused",
    ),
    Row(
        "caller-without-credential",
        "The HTTP proxy of {workload} was used without the credential of its program.",
        "Use user and password of the program's HTTP_PROXY.",
        details="^caller_credential_required",
    ),
    Row(
        "caller-names-another-host",
        "The request came to the address of one service and names another host, as DNS rebinding does.",
        "Call the service by its own name or address, or by HTTP_PROXY.",
        details="^caller_foreign_host",
    ),
    Row(
        "caller-is-a-web-page",
        "The request says that a page of another site made it (Origin, Sec-Fetch-Site), and was refused.",
        "A program that hands on a browser's headers is to call by HTTP_PROXY.",
        details="^caller_foreign_origin",
    ),
    Row(
        "caller-speaks-http",
        "A connection to a TCP port, as {workload}'s program calls it, began with an HTTP request, as a web page could send"
        " it, and was refused.",
        "If that port speaks HTTP, declare it so: `protocol: HTTP` in the `ports` of its program, or `--port NUMBER`.",
        details="caller_http_on_tcp",
    ),
    # Of bytes that had begun to move, a broken TLS connection is no refusal; only Envoy tells of it.
    Row(
        "client-gone",
        "The client reset the connection to {workload}.",
        "If it was not meant to, look at the client's output: it may have crashed.",
        failure=TLS,
        directions=INBOUND,
        given=(("moved", "bytes"),),
    ),
    # Connections that never became a request: what the server's proxy says of the client.
    Row(
        "client-refused-server",
        "The client refused {workload}'s certificate: {reason}.",
        "Ask the client's side why: `weft why` with the id of its request shows the reason that its proxy gives.",
        failure=ALERT,
        directions=INBOUND,
    ),
    Row(
        "client-certificate-not-yet-valid",
        "The client's certificate is not valid yet by the clock of {workload}'s proxy, which refused the connection.",
        "Set the clocks of both machines; agents renew certificates within a second of a clock that is set.",
        failure=NOT_YET_VALID,
        directions=INBOUND,
    ),
    Row(
        "client-certificate-expired",
        "The client's certificate has expired, so {workload}'s proxy refused the connection.",
        "Look at the client's certificate in `weft status`; its agent renews it while the control plane can be reached.",
        failure=EXPIRED,
        directions=INBOUND,
    ),
    Row(
        "client-without-certificate",
        "{client} spoke TLS and showed no certificate, and {workload} requires one (STRICT mutual TLS).",
        "If its program began the TLS itself, let it speak plain HTTP to the name of the service: its proxy shows the "
        "certificate.",
        failure=NO_CERTIFICATE,
        directions=INBOUND,
        given=FROM_THE_MESH,
    ),
    Row(
        "client-without-certificate",
        "The client showed no certificate, and {workload} requires one (STRICT mutual TLS).",
        "Call from a program of the mesh (`weft run -- ...`), or apply a PeerAuthentication with mode PERMISSIVE.",
        failure=NO_CERTIFICATE,
        directions=INBOUND,
    ),
    Row(
        "client-in-plaintext",
        "{caller} spoke plain text, as {rule} says, and {workload} requires mutual TLS (STRICT).",
        "Remove `tls` from {rule}, or write mode ISTIO_MUTUAL there; or let {workload} accept plain text, too: "
        "PeerAuthentication with mode PERMISSIVE.",
        failure=NOT_TLS,
        directions=INBOUND,
        given=BY_RULE,
    ),
    Row(
        "client-in-plaintext",
        "{caller} spoke plain text, and {workload} requires mutual TLS (STRICT).",
        f"{BY_ADDRESS} {CALL_BY_NAME}, or apply a PeerAuthentication with mode PERMISSIVE.",
        failure=NOT_TLS,
        directions=INBOUND,
        given=(("tls", "direct"),),
    ),
    Row(
        "client-in-plaintext",
        "{client} spoke plain text, and {workload} requires mutual TLS (STRICT).",
        f"{BY_ADDRESS} {CALL_BY_NAME}, or apply a PeerAuthentication with mode PERMISSIVE. If a DestinationRule of "
        "{client} says `tls.mode: DISABLE`, remove that.",
        failure=NOT_TLS,
        directions=INBOUND,
        given=FROM_THE_MESH,
    ),
    Row(
        "client-in-plaintext",
        "The client spoke plain text, and {workload} requires mutual TLS (STRICT).",
        "Call from a program of the mesh (`weft run -- ...`), apply a PeerAuthentication with mode PERMISSIVE, or, if a "
        "DestinationRule of the client says `tls.mode: DISABLE`, remove that.",
        failure=NOT_TLS,
        directions=INBOUND,
    ),
    Row(
        "client-untrusted",
        "The client's certificate was not issued by this mesh's authority, so {workload}'s proxy refused the connection.",
        "Both must be of one mesh, or trust each other's roots: compare `weft proxy-config secrets` of both.",
        failure=UNTRUSTED,
        directions=INBOUND,
    ),
    Row(
        "client-refused-server",
        "The client broke the TLS handshake with {workload} off: it does not accept {workload}'s certificate, or has none.",
        "Ask the client's side why: `weft why` with the id of its request shows the reason that its proxy gives.",
        failure=TLS,
        directions=INBOUND,
    ),
    # What the client's proxy says of the server.
    Row(
        "server-requires-certificate",
        "{upstream} requires a certificate, and {workload}'s proxy showed none that it takes.",
        "Look at {workload}'s certificate in `weft status`; its agent gets one while the control plane can be reached.",
        failure=NO_CERTIFICATE,
    ),
    Row(
        "own-certificate-outdated",
        "{upstream} refused the certificate of {workload}: it has expired, or is not valid yet there.",
        "Look at it in `weft status`; its agent renews it while the control plane can be reached. Compare both clocks.",
        failure=rf"(?:{ALERT}).*expired",
    ),
    Row(
        "own-certificate-refused",
        "{upstream} refused the certificate of {workload}: {reason}.",
        "Both must be of one mesh, or trust each other's roots: compare `weft proxy-config secrets` of both.",
        failure=rf"(?:{ALERT}).*(?:{UNTRUSTED}|certificate)",
    ),
    Row(
        "server-certificate-not-yet-valid",
        "The certificate at {upstream} is not valid yet by the clock of {workload}'s proxy, which did not talk to it.",
        "Set the clocks of both machines; agents renew certificates within a second of a clock that is set.",
        failure=NOT_YET_VALID,
    ),
    Row(
        "server-certificate-expired",
        "The certificate at {upstream} has expired, so {workload}'s proxy did not talk to it.",
        "Look at the certificates in `weft status`; an agent renews them while the control plane can be reached.",
        failure=EXPIRED,
    ),
    Row(
        "server-wrong-identity",
        "Whoever answers at {upstream} proves another identity than the service's, so {workload}'s proxy did not talk to it.",
        "It must be one of the identities of the service's own workloads, which `weft status` shows: something else may have "
        "taken the address.",
        failure=WRONG_NAME,
    ),
    Row(
        "server-untrusted",
        "The certificate at {upstream} was not issued by an authority that {workload} trusts.",
        "Both must be of one mesh, or trust each other's roots: compare `weft proxy-config secrets` of both.",
        failure=UNTRUSTED,
    ),
    Row(
        "server-without-tls",
        "{peer} takes plain text only, and {workload}'s proxy spoke TLS, as {rule} says.",
        "Remove `tls` from {rule}, or let {peer} accept mutual TLS: PeerAuthentication with mode PERMISSIVE or STRICT.",
        failure=NOT_TLS,
        given=(*BY_RULE, ("at", "workload")),
    ),
    Row(
        "server-without-tls",
        "{upstream} does not speak TLS, and {workload}'s proxy was told that it does.",
        "If the DestinationRule says `tls.mode`, set it to DISABLE; or let the server join the mesh.",
        failure=NOT_TLS,
    ),
    Row("tls-failed", "The TLS handshake with {upstream} failed: {reason}.", "", flags=frozenset({"UF"}), failure=TLS),
    # Nowhere to go: a service that lacks the port, whatever is made of the call then.
    Row(
        "no-such-port",
        "The service {service_called} has no port {number}, so the call came to nothing.",
        "Call one of its ports: {ports}; or declare port {number}, if its program listens there (`ports` in weft.yaml, "
        "`--port`).",
        given=(("called", "lacking"),),
        flags=frozenset({"DF", "UH", "UF", "UC", "UR"}),
    ),
    Row(
        "called-too-early",
        "{workload} called {port}, which was not there yet.",
        "It is there by now: call it again.",
        flags=frozenset({"DF"}),
        given=(("called", "late"),),
    ),
    Row(
        "http-to-bytes",
        "The {port} takes bytes (TCP), and the HTTP proxy of {workload} was asked for it in HTTP, which it passes on to ports"
        " of HTTP only.",
        "If it speaks HTTP, declare it so: `protocol: HTTP` in the `ports` of its program, or `--port {number}`.",
        flags=frozenset({"DF"}),
        given=(("speaks", "bytes"),),
    ),
    # A host without an address: no proxy has seen the call, but in explicit mode.
    Row(
        "unknown-host",
        "{workload} asked for the host {name}, and no service of the mesh is called so. Nobody else is asked for names under "
        "svc.cluster.local.",
        "{meant}",
        flags=frozenset({"DF"}),
        given=(("asked", "mesh"),),
    ),
    Row(
        "unknown-host",
        "{workload} asked for the host {name}, which nobody has: no service of the mesh is called so, and this machine's "
        "resolver knows no such name.",
        FIND_HOST,
        flags=frozenset({"DF"}),
        details="^NXDOMAIN",
    ),
    Row(
        "unknown-host",
        "{workload} asked for the host {name}: no service of the mesh is called so, and this machine's resolver, which was "
        "asked then, did not find out ({reason}).",
        FIND_HOST,
        flags=frozenset({"DF"}),
        given=(("asked", "machine"),),
    ),
    Row(
        "unknown-host",
        "The proxy of {workload} was asked for the host {name}: no service of the mesh is called so, and this machine's "
        "resolver has no address for it.",
        FIND_HOST,
        flags=frozenset({"DF"}),
    ),
    Row(
        "routes-not-loaded",
        "{workload}'s proxy loads the routes of a host when they are needed, and could not load those of this one.",
        "See whether the control plane is there: `weft status`. What a proxy has loaded before it keeps.",
        details="^virtual_host_not_loaded",
    ),
    Row(
        "no-route",
        "No rule takes {method} {path} for the host {host}.",
        "See which rules there are: `weft why --from {workload} --to {to}` names them with the reason why each does not match.",
        flags=frozenset({"NR"}),
    ),
    Row(
        "not-permitted",
        "The rule sends the request to {service}, and no ReferenceGrant of that service's namespace allows HTTPRoutes of "
        "`{namespace}` to refer to it.",
        "Apply a ReferenceGrant in the namespace of the service, from HTTPRoute of `{namespace}` to Service; or send to a "
        "service of `{namespace}`.",
        flags=frozenset({"NC"}),
        given=(("lacks", "grant"),),
    ),
    Row(
        "no-cluster",
        "The rule sends the request to {service}, and {target} has no port {target_port}.",
        "Correct the port in the rule. {target} has: {target_ports}.",
        flags=frozenset({"NC"}),
        given=(("lacks", "port"),),
    ),
    Row(
        "no-cluster",
        "The rule sends the request to {service}, and no service of the mesh is called {target}.",
        "Correct the host in the rule, or run a program of that service.",
        flags=frozenset({"NC"}),
        given=(("lacks", "service"),),
    ),
    Row(
        "no-cluster",
        "The rule sends the request to {service}, which {workload}'s proxy does not know.",
        "Correct the host or subset in the rule, or apply the DestinationRule that defines the subset.",
        flags=frozenset({"NC"}),
    ),
    Row(
        "client-broke-connection",
        "The client broke a rule of HTTP/2, or went beyond a limit of it ({reason}), on the connection that carried the request, so "
        "the proxy of {workload} ended that with all that was under way on it.",
        "Mend the client, or its library of HTTP/2; this request may be no more than a neighbour of what was wrong.",
        details=r"^codec_error\b",
        flags=frozenset({"DPE"}),
    ),
    Row(
        "not-http-called",
        "The {port} speaks HTTP; TLS, or something else that is not HTTP, came from {workload}, so its proxy refused the call.",
        CALL_HTTP,
        flags=frozenset({"UH"}),
        given=(("speaks", "HTTP"),),
    ),
    Row(
        "not-http-called",
        "The {port} speaks HTTP; what came from {workload} was TLS, or something else that is no valid HTTP, so its proxy "
        "refused it.",
        f"{CALL_HTTP} If it was meant to be HTTP, mend the client ({{reason}}).",
        flags=frozenset({"DPE"}),
        given=(("speaks", "HTTP"),),
    ),
    Row(
        "request-timeout",
        "The {port} speaks HTTP, and what came from {workload} did not become a whole request of it in time, so its proxy "
        "answered {status}.",
        f"{CALL_HTTP} If it was meant to be HTTP, mend the client: it did not send, or end, the lines of its request.",
        details=f"^{UNFINISHED}",
        given=(("speaks", "HTTP"),),
    ),
    Row(
        "no-such-port",
        "No service of the mesh has a port at {destination}, so {workload}'s proxy refused the call.",
        "Call a port that the service declares (`weft proxy-config listeners {workload}` lists them), or declare this one.",
        flags=frozenset({"UH"}),
        cluster="^BlackHoleCluster$",
    ),
    Row(
        "all-fail-checks",
        "Every endpoint of {service} fails its active health check, or is ejected (outlier detection).",
        "`weft proxy-config endpoints {workload}` says which it is for each.",
        flags=frozenset({"UH"}),
        given=(("endpoints", "checked"),),
    ),
    Row(
        "all-ejected",
        "Every endpoint of {service} failed too often and is ejected for a while (outlier detection).",
        "Find out why they fail ({failing}); `outlierDetection` of the DestinationRule says how long it lasts.",
        flags=frozenset({"UH"}),
        given=(("endpoints", "there"), ("ejects", "yes")),
    ),
    Row(
        "empty-subset",
        "{service} had no endpoint: no program of {target} carries the labels of that subset ({wanted}).",
        "Correct the labels of the subset, or run a program that carries them; {carried}.",
        flags=frozenset({"UH"}),
        given=(("carriers", "none"),),
    ),
    Row(
        "no-endpoint",
        HAD_NO_ENDPOINT,
        "If its program was just starting, nothing: where a service has two, the other one takes requests meanwhile.",
        flags=frozenset({"UH"}),
        given=(("programs", "ready"),),
    ),
    Row(
        "no-endpoint",
        HAD_NO_ENDPOINT,
        "A program must listen on the ports that it declares (`weft ps`, `weft logs --output`), and its proxy must run "
        "(`weft status`).",
        flags=frozenset({"UH"}),
        given=(("programs", "unready"),),
    ),
    Row(
        "no-endpoint",
        "{service} had no endpoint that could take a request: no program of it was ready.",
        "Start one (`weft ps` shows what runs; `weft proxy-config endpoints {workload}` what its proxy knows).",
        flags=frozenset({"UH"}),
    ),
    # A circuit breaker: it has forbidden another try of what was answered, or refused the request. Where a try failed without
    # an answer and the next one was forbidden, that failure is the reason, and its row stands below.
    Row(
        "retry-not-allowed",
        "{peer} answered {status}, and a limit of {service} (a circuit breaker) allowed no further try.",
        "Find out why it fails (`weft logs --output`); `connectionPool.http.maxRetries` of the DestinationRule says how many "
        "further tries may be under way at once.",
        flags=frozenset({"UO"}),
        details="^via_upstream",
    ),
    Row("circuit-open", LIMIT_REACHED, RAISE_LIMIT, flags=frozenset({"UO"}), details="overflow"),
    Row(
        "foreign-host",
        "{workload} called {port} and named {host_named}, so the call was taken for one to outside of the mesh, where that "
        "address means nothing.",
        "Send the host `{service_called}`; what hands on requests of others must not hand on their Host, or needs a "
        "VirtualService for it.",
        flags=frozenset({"UF", "UC", "UR"}),
        given=(("called", "by-another-host"),),
    ),
    # Outside of the mesh. Envoy's way there leads through a socket of its agent, which it always reaches; weft-proxy's own
    # fails at once (UF).
    Row(
        "outside-failed",
        NOT_MADE,
        CHECK_OUTSIDE,
        flags=frozenset({"UC", "UR"}),
        failure="^the edge refused: ",
        cluster=OUTSIDE,
    ),
    Row("outside-failed", NOT_MADE, CHECK_OUTSIDE, flags=frozenset({"UF"}), cluster=OUTSIDE),
    Row(
        "outside-broke",
        "{destination}, outside of the mesh, " + ENDED_TUNNEL,
        END_OF_TUNNEL + "look at what serves it.",
        flags=frozenset({"UC", "UR", "UPE"}),
        cluster=OUTSIDE,
        given=TUNNEL,
    ),
    Row(
        "outside-broke",
        "{destination}, outside of the mesh, closed the connection in the middle of its answer, so the answer is cut off.",
        CHECK_ANSWER,
        flags=frozenset({"UC", "UR", "UPE"}),
        details="after_response_started",
        cluster=OUTSIDE,
    ),
    Row(
        "outside-broke",
        "{destination}, outside of the mesh, reset the connection, of which {sent} bytes had come.",
        CHECK_ANSWER,
        flags=frozenset({"UC", "UR"}),
        cluster=OUTSIDE,
        given=(("answer", "bytes"),),
    ),
    Row(
        "outside-failed",
        "{destination} is outside of the mesh, and could not be reached or closed the connection without an answer.",
        "Check that it can be reached from this machine: `curl -v {url}` outside of the mesh.",
        flags=frozenset({"UC", "UR"}),
        cluster=OUTSIDE,
    ),
    # No connection.
    Row(
        "program-not-listening",
        "{workload} runs, but nothing listens at {upstream}: the program is not ready, has ended, or listens on another "
        "address or port.",
        "See `weft ps` and `weft logs --output {workload}`; the program must listen on the port that it declares.",
        flags=frozenset({"UF"}),
        failure=r"connection refused|\b111\b",
        directions=INBOUND,
    ),
    Row(
        "refused",
        "Nothing listens at {upstream}: the connection was refused.",
        "Check address and port; for a program of the mesh see `weft ps`.",
        flags=frozenset({"UF"}),
        failure=r"connection refused|\b111\b",
    ),
    Row(
        "connect-timeout",
        TOO_SLOW_TO_CONNECT,
        CHECK_SILENCE,
        flags=frozenset({"UF"}),
        details=r"connection_timeout|connection timeout",
    ),
    # Of a connection of TCP, Envoy says the reason of every other failure.
    Row("connect-timeout", TOO_SLOW_TO_CONNECT, CHECK_SILENCE, flags=frozenset({"UF"}), failure=r"^\s*$"),
    Row(
        "unreachable",
        "No connection to {upstream} could be made: {reason}.",
        "Check that the address can be reached from here.",
        flags=frozenset({"UF"}),
    ),
    # No answer in time.
    Row(
        "try-timeout",
        "{service} did not begin to answer within the time that one try may take.",
        "Raise `{try_timeout}` of the rule, or find out why the program is slow.",
        flags=frozenset({"UT"}),
        details="per_try_timeout",
    ),
    Row(
        "timeout-during-answer",
        "{service} began to answer, and had not finished within the timeout of the rule, so the answer is cut off.",
        "Raise `{timeout}` of the rule, or find out why the program does not finish.",
        flags=frozenset({"UT"}),
        given=(("begun", "yes"),),
    ),
    Row(
        "timeout",
        "{service} did not answer within the timeout of the rule.",
        "Raise `{timeout}` of the rule, or find out why the program is slow.",
        flags=frozenset({"UT"}),
    ),
    Row(
        "idle",
        "Nothing moved for longer than the stream's idle timeout.",
        "",
        flags=frozenset({"SI"}),
    ),
    # The answer broke.
    Row(
        "cut-off",
        "The proxy of {workload} ended the connection to the client itself, and cut off what was under way.",
        "What is open then has some time to finish: half a second at the end of a workload, what `--drain` says in a hot restart, "
        "45 s where an Envoy's listener changes.",
        flags=frozenset({"DC"}),
        details="^downstream_local_disconnect",
    ),
    Row(
        "try-given-up",
        "The proxy of {caller} gave this try up for another.",
        flags=frozenset({"DC", "DR"}),
        given=(("left", "for-another"),),
    ),
    Row(
        "try-given-up",
        "The proxy of {caller} gave this try up.",
        flags=frozenset({"DC", "DR"}),
        given=(("left", "by-itself"),),
    ),
    Row(
        "client-gone",
        "The client ended the connection, which had become that of another protocol (101: WebSocket, say).",
        "That is the end of every such connection; if it came too early, look at the client's output.",
        flags=frozenset({"DC", "DR"}),
        given=TUNNEL,
    ),
    Row(
        "client-gone",
        "The client went away before the answer was complete.",
        "The client's own time-out may be shorter than the answer takes.",
        flags=frozenset({"DC", "DR"}),
    ),
    Row(
        "refused-there",
        "The proxy of {peer} refused the connection.",
        "Look at its side of it: `weft why --last-failed --from {peer}`.",
        flags=frozenset({"UC", "UR", "UPE"}),
        given=(("there", "refused"),),
    ),
    Row(
        "proxy-connection-broke",
        "The connection to the proxy of {peer} broke before the answer was complete, and that proxy tells nothing of the request.",
        "It may have died, its machine may be away, or it could not tell (an Envoy while the control plane is away): see "
        "`weft status`; its last words are in its `proxy.log`.",
        flags=frozenset({"UC", "UR", "UPE"}),
        given=(("server", "silent"),),
    ),
    Row(
        "reset-in-tunnel",
        "{peer} " + ENDED_TUNNEL,
        END_OF_TUNNEL + "look at the program's output (`weft logs --output`): it may have crashed.",
        flags=frozenset({"UC", "UR", "UPE"}),
        given=TUNNEL,
    ),
    # Of HTTP/2: the stream of this request alone, and not by the proxy.
    Row(
        "reset-during-answer",
        "{peer} reset the stream of this request (RST_STREAM) in the middle of its answer, so the answer is cut off.",
        RESET_STREAM,
        flags=frozenset({"UR"}),
        details=r"after_response_started\{remote_reset\b",
    ),
    Row(
        "reset-before-answer",
        "{peer} reset the stream of this request (RST_STREAM) without an answer; the connection goes on.",
        RESET_STREAM,
        flags=frozenset({"UR"}),
        details=r"\bremote_reset\b",
    ),
    Row(
        "reset-during-answer",
        "{peer} broke the rules of HTTP in the middle of its answer, or ended the connection there, so the answer is cut off.",
        "Look at the program's output (`weft logs --output`): it may have crashed, declared a longer body than it sent, or "
        "written a chunk whose size is none.",
        flags=frozenset({"UPE"}),  # to Envoy an answer that is too short breaks the protocol
        details="after_response_started",
    ),
    Row(
        "reset-during-answer",
        "{peer} closed the connection in the middle of its answer, so the answer is cut off.",
        "Look at the program's output (`weft logs --output`): it may have crashed, or declared a longer body than it sent.",
        flags=frozenset({"UC", "UR"}),
        details="after_response_started",
    ),
    Row(
        "reset-during-answer",
        "{peer} reset the connection, of which {sent} bytes had come.",
        "Look at the program's output (`weft logs --output`): it may have crashed.",
        flags=frozenset({"UC", "UR"}),
        given=(("answer", "bytes"),),
    ),
    Row(
        "reset-before-answer",
        "{peer} closed the connection before the head of an answer had come.",
        "Look at the program's output (`weft logs --output`): it may have crashed on the request, or have closed an idle "
        "connection just then.",
        flags=frozenset({"UC", "UR"}),
    ),
    Row(
        "not-http",
        "{peer} sent something that is not HTTP, a head that is not whole, or headers that are longer than a proxy takes.",
        "If its port does not speak HTTP, declare what it speaks (`protocol: TCP`); if it does, look at its output (`weft logs "
        "--output`) and at the headers of its answer, which a call at the program itself shows.",
        flags=frozenset({"UPE"}),
    ),
    # What the client did wrong.
    Row(
        "malformed-request",
        MALFORMED,
        MEND_CLIENT,
        flags=frozenset({"DPE"}),
    ),
    Row("malformed-request", MALFORMED, MEND_CLIENT, details=MALFORMED_DETAILS),
    Row(
        "upgrade-refused",
        "The request asks for a protocol that the proxy of {workload} does not switch to.",
        "WebSocket is what can be asked for everywhere; for another protocol declare the port `protocol: TCP`.",
        details="^upgrade_failed",
    ),
    Row(
        "too-large",
        "The request or its answer is longer than what the proxy of {workload} may keep of it ({reason}).",
        "Send less at a time.",
        details=r"^(?:(?:request|response)_payload_too_large|request_payload_exceeded_retry_buffer_limit)",
    ),
    Row("request-timeout", "The client took too long to send its request.", "", details="request_.*timeout"),
    # The rest of Envoy's flags.
    Row("circuit-open", LIMIT_REACHED, RAISE_LIMIT, flags=frozenset({"UO"})),
    Row("too-long", "The request or connection lasted longer than allowed.", "", flags=frozenset({"DT", "UMSDR"})),
    Row(
        "rate-limited", "A rate limit was exceeded.", "Send less, or raise the limit.", flags=frozenset({"RL", "RLSE"})
    ),
    Row("denied", "The external authorisation service denied the request.", "", flags=frozenset({"UAEX"})),
    Row("overload", "The proxy of {workload} was short of resources and shed load.", "", flags=frozenset({"OM"})),
    Row("local-reset", "The proxy of {workload} gave the request up.", "", flags=frozenset({"LR"})),
    Row("bad-header", "A header that steers the proxy had an invalid value.", "", flags=frozenset({"IH"})),
    Row("unhealthy", "{workload} failed its own health check.", "", flags=frozenset({"LH"})),
    Row(
        "not-configured",
        "The configuration of a filter had not arrived at {workload}'s proxy yet.",
        "Wait for it: `weft wait`.",
        flags=frozenset({"NFCF"}),
    ),
)
"""Order matters: the more exact row stands before the more general one."""


def find(record: Record, facts: Mapping[str, str]) -> Finding | None:
    """Return the finding of the first row that fits; None if the record tells of no trouble of a proxy's."""
    for row in TABLE:
        if row.fits(record, facts) and (row.flags or row.details or failed_transport(record)):
            known = {"reason": reason(record), **facts}
            return Finding(row.code, row.sentence.format_map(known), row.remedy.format_map(known).rstrip())
    return None


def failed_transport(record: Record) -> bool:
    """Whether the record says that a connection could not be made or kept; a mere `via_upstream` says nothing."""
    return bool(record.transport_failure or record.downstream_failure)


def reason(record: Record) -> str:
    """The transport's own words, as far as there are any."""
    words = record.transport_failure or record.downstream_failure or record.details or record.termination
    return words.strip().rstrip(".") or "no reason was given"
