"""
What a response flag and its details mean, in a sentence that a newcomer understands, and what to do about it.

One ordered table: the first row that fits a record is its finding. Envoy and weft-proxy name the same causes by
different words of their TLS libraries; each row knows both. Nothing else in weft explains a flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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
        cluster: Is found in the name of the cluster.
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
            and (not self.cluster or re.search(self.cluster, record.cluster) is not None)
            and (not self.directions or record.direction in self.directions)
            and all(facts.get(name) == value for name, value in self.given)
        )


def failure_of(record: Record) -> str:
    """What the transport said, whichever side it was."""
    return f"{record.transport_failure} {record.downstream_failure} {record.details}".replace("_", " ")


INBOUND = frozenset({"inbound"})

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
    Row("configured-answer", "The rule itself answers {status}; no program was asked.", details=r"^direct_response"),
    # Explicit mode: who called was not the program beside the proxy, or did not show it.
    Row(
        "caller-of-another-user",
        "A process of another user called an address that is for {workload}'s own calls, and was refused.",
        "Call from a program of the mesh (`weft run -- ...`). A program that gave up root calls as another user.",
        details="^caller_uid_refused",
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
        "The client showed no certificate, and {workload} requires one (STRICT mutual TLS).",
        "Call from a program of the mesh (`weft run -- ...`), or apply a PeerAuthentication with mode PERMISSIVE.",
        failure=NO_CERTIFICATE,
        directions=INBOUND,
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
        "A DestinationRule with `tls.mode: SIMPLE` shows none: remove it, or use ISTIO_MUTUAL.",
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
        "Compare `tls.subjectAltNames` of the DestinationRule, if there is one, with the identity in `weft status`.",
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
        "{upstream} does not speak TLS, and {workload}'s proxy was told that it does.",
        "If the DestinationRule says `tls.mode`, set it to DISABLE; or let the server join the mesh.",
        failure=NOT_TLS,
    ),
    Row("tls-failed", "The TLS handshake with {upstream} failed: {reason}.", "", flags=frozenset({"UF"}), failure=TLS),
    # Nowhere to go.
    Row(
        "routes-not-loaded",
        "{workload}'s proxy loads the routes of a host when they are needed, and could not load those of this one.",
        "See whether the control plane is there: `weft status`. What a proxy has loaded before it keeps.",
        details="^virtual_host_not_loaded",
    ),
    Row(
        "no-route",
        "No rule takes {method} {path} for the host {host}.",
        "See which rules there are: `weft why --from {workload} --to {url}` names them with the reason why each does not match.",
        flags=frozenset({"NR"}),
    ),
    Row(
        "no-cluster",
        "The rule sends the request to {service}, which {workload}'s proxy does not know.",
        "Correct the host or subset in the rule, or apply the DestinationRule that defines the subset.",
        flags=frozenset({"NC"}),
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
        "`/clusters` on the admin socket of {workload}'s proxy says which: `failed_active_health_check`, `ejected`; its log says why.",
        flags=frozenset({"UH"}),
        given=(("endpoints", "checked"),),
    ),
    Row(
        "all-ejected",
        "Every endpoint of {service} failed too often and is ejected for a while (outlier detection).",
        "Find out why they fail (`weft why --last-failed`); `outlierDetection` of the DestinationRule says how long it lasts.",
        flags=frozenset({"UH"}),
        given=(("endpoints", "there"),),
    ),
    Row(
        "no-endpoint",
        "{service} has no endpoint that can take a request: no program of it runs and is ready.",
        "Start one (`weft ps` shows what runs; `weft proxy-config endpoints {workload}` what its proxy knows).",
        flags=frozenset({"UH"}),
    ),
    Row(
        "circuit-open",
        "A limit of {service} was reached (a circuit breaker), so the request was refused at once.",
        "Raise `trafficPolicy.connectionPool` of the DestinationRule, or send less at a time.",
        flags=frozenset({"UO"}),
    ),
    # Outside of the mesh. Envoy's way there leads through a socket of its agent, which it always reaches.
    Row(
        "outside-failed",
        "No connection out of the mesh was made for {workload}: {reason}.",
        "Check address and port from this machine, outside of the mesh: `curl -v {url}`; a port of its loopback has to be among "
        "`host_ports` of the program in weft.yaml.",
        flags=frozenset({"UC", "UR"}),
        failure="^the edge refused: ",
        cluster=r"^PassthroughCluster$|^host\|",
    ),
    Row(
        "outside-failed",
        "{destination} is outside of the mesh, and could not be reached or closed the connection without an answer.",
        "Check that it can be reached from this machine: `curl -v {url}` outside of the mesh.",
        flags=frozenset({"UC", "UR"}),
        cluster=r"^PassthroughCluster$|^host\|",
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
        "{upstream} did not answer within the time that a connection may take.",
        "The machine is away, or a firewall drops packets; `connectionPool.tcp.connectTimeout` sets the limit.",
        flags=frozenset({"UF"}),
        details=r"connection_timeout|connection timeout",
    ),
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
        "Raise `retries.perTryTimeout` of the rule, or find out why the program is slow.",
        flags=frozenset({"UT"}),
        details="per_try_timeout",
    ),
    Row(
        "timeout",
        "{service} did not answer within the timeout of the rule.",
        "Raise `timeout` of the rule, or find out why the program is slow.",
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
        "client-gone",
        "The client went away before the answer was complete.",
        "The client's own time-out may be shorter than the answer takes.",
        flags=frozenset({"DC", "DR"}),
    ),
    Row(
        "reset-during-answer",
        "{peer} closed the connection in the middle of its answer, so the answer is cut off.",
        "Look at the program's output (`weft logs --output`): it may have crashed, or declared a longer body than it sent.",
        flags=frozenset({"UC", "UR", "UPE"}),  # to Envoy an answer that is too short breaks the protocol
        details="after_response_started",
    ),
    Row(
        "reset-before-answer",
        "{peer} closed the connection without an answer.",
        "Look at the program's output (`weft logs --output`): it may have crashed on the request, or have closed an idle "
        "connection just then.",
        flags=frozenset({"UC", "UR"}),
    ),
    Row(
        "not-http",
        "{peer} sent something that is not HTTP.",
        "Declare the port's protocol as it is (`protocol: TCP`), or mend the program.",
        flags=frozenset({"UPE"}),
    ),
    # What the client did wrong.
    Row(
        "malformed-request",
        "The client's request breaks the rules of HTTP ({reason}).",
        "Mend the client.",
        flags=frozenset({"DPE"}),
    ),
    Row("request-timeout", "The client took too long to send its request.", "", details="request_.*timeout"),
    # The rest of Envoy's flags.
    Row("too-long", "The request or connection lasted longer than allowed.", "", flags=frozenset({"DT", "UMSDR"})),
    Row(
        "rate-limited", "A rate limit was exceeded.", "Send less, or raise the limit.", flags=frozenset({"RL", "RLSE"})
    ),
    Row("denied", "The external authorisation service denied the request.", "", flags=frozenset({"UAEX"})),
    Row("overload", "The proxy of {workload} was short of resources and shed load.", "", flags=frozenset({"OM", "DO"})),
    Row("name-unknown", "The upstream's name could not be resolved.", "Check the name.", flags=frozenset({"DF"})),
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
            return Finding(row.code, row.sentence.format_map(known), row.remedy.format_map(known))
    return None


def failed_transport(record: Record) -> bool:
    """Whether the record says that a connection could not be made or kept; a mere `via_upstream` says nothing."""
    return bool(record.transport_failure or record.downstream_failure)


def reason(record: Record) -> str:
    """The transport's own words, as far as there are any."""
    words = record.transport_failure or record.downstream_failure or record.details or record.termination
    return words.strip().rstrip(".") or "no reason was given"
