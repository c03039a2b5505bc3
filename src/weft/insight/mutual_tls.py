"""
Whether a server's proxy takes what a client's proxy sends: mutual TLS or plain text, who wrote so, and what to do.

Read from what was published to both: filter chains of the inbound listener, metadata of the client's cluster. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext
from google.protobuf.json_format import MessageToDict

from weft.insight.decision import DEFAULT, Metadata

BY_ADDRESS = "A program that calls a workload's address, not its service's name, is passed on in plain text."
CALL_BY_NAME = "Call it by the name of its service, and its proxy speaks mutual TLS by itself"

WEFT_DEFAULT = "weft's default, STRICT: no PeerAuthentication says otherwise"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """
    What a port takes of its callers.

    Attributes:
        alpn: Protocols that it takes in mutual TLS, the preferred one first.
        policy: What asks for it (`weft` metadata of the filter chains); empty where that is not known.
        place: Makes of an origin what the reader may open.
    """

    mutual: bool = False
    plain: bool = False
    alpn: tuple[str, ...] = ()
    policy: Metadata = field(default_factory=dict)
    place: Callable[[str], str] = str

    def version(self, offered: Sequence[str]) -> str:
        """Return the HTTP that a caller that offers these protocols, and leaves the choice to this side, speaks."""
        agreed = next((protocol for protocol in self.alpn if protocol in offered), "")  # RFC 7301 3.2
        return "HTTP/2" if agreed == "h2" else "HTTP/1.1"

    @property
    def written(self) -> str:
        """Who says so: `PeerAuthentication default/reviews, spec.mtls.mode (mtls.yaml:7:5)`, or weft's default."""
        if not self.policy.get("kind"):
            return WEFT_DEFAULT
        item = self.policy
        return f"{item['kind']} {item['namespace']}/{item['name']}, {item['rule']} ({self.place(item['origin'])})"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A server's proxy does not take what comes. `reason` and `remedy` are whole sentences for people."""

    reason: str
    remedy: str


def acceptance(
    published: Sequence[tuple[str, str, bytes]], listener: str, place: Callable[[str], str] = str
) -> Acceptance:
    """Return what the inbound listener of that name takes; *place* makes of an origin what the reader may open."""
    mutual = plain = False
    alpn: tuple[str, ...] = ()
    policy: Metadata = {}
    for type_url, name, value in published:
        if not type_url.endswith(".Listener") or name != listener:
            continue
        for chain in Listener.FromString(value).filter_chains:
            packed = chain.transport_socket.typed_config
            if packed.Is(DownstreamTlsContext.DESCRIPTOR):
                context = DownstreamTlsContext()
                packed.Unpack(context)
                mutual |= context.require_client_certificate.value
                alpn = tuple(context.common_tls_context.alpn_protocols)
            else:
                plain |= chain.filter_chain_match.transport_protocol != "tls"
            policy = MessageToDict(chain.metadata).get("filterMetadata", {}).get("weft", {})
    return Acceptance(mutual, plain, alpn, policy, place)


def client_rule(published: Sequence[tuple[str, str, bytes]], cluster: str, place: Callable[[str], str] = str) -> str:
    """Return which DestinationRule sets the TLS mode of a client's cluster (`... (rule.yaml:8:5)`); "" if none does."""
    return written_tls(cluster_metadata(published, cluster), place)


def cluster_metadata(published: Sequence[tuple[str, str, bytes]], cluster: str) -> Metadata:
    """Return what weft says of a client's cluster; empty if it says nothing."""
    for type_url, name, value in published:
        if type_url.endswith(".Cluster") and name == cluster:
            found: Mapping[str, object] = MessageToDict(Cluster.FromString(value).metadata).get("filterMetadata", {})
            weft = found.get("weft")
            return weft if isinstance(weft, Mapping) else {}
    return {}


def written_tls(cluster: Metadata, place: Callable[[str], str] = str) -> str:
    """Return what `client_rule` does, from the metadata of that cluster."""
    if (origin := (cluster.get("origins") or {}).get("tls", DEFAULT)) == DEFAULT:
        return ""
    return f"DestinationRule {cluster['namespace']}/{cluster['name']}, trafficPolicy.tls ({place(origin)})"


def refusal(
    accepted: Acceptance, *, server: str, secure: bool, certificate: bool, rule: str, direct: bool
) -> Refusal | None:
    """
    Return why the server's proxy refuses the connection, None if it takes it.

    Args:
        accepted: What the server's port takes.
        server: Its workload.
        secure: Whether the client's proxy speaks TLS.
        certificate: Whether it shows a certificate then.
        rule: What makes it, see `client_rule`.
        direct: The program called the workload's address, not a service: its proxy knows of no certificate to expect.
    """
    if secure and not accepted.mutual:
        because = f" {rule} makes the caller speak mutual TLS." if rule else ""
        return Refusal(
            f"The proxy of {server} takes plain text only, by {accepted.written}.{because}",
            f"Remove {rule.partition(',')[0]}'s `tls`, or let {server} accept mutual TLS: PeerAuthentication with mode"
            " PERMISSIVE or STRICT.",
        )
    if secure and not certificate:
        whose = rule.partition(",")[0] or "the rule"
        return Refusal(
            f"The proxy of {server} takes no TLS without a certificate of the mesh, by {accepted.written}."
            f" {rule or 'A rule'} makes the caller show none.",
            f"Remove `tls` from {whose}, or write mode ISTIO_MUTUAL there.",
        )
    if secure or accepted.plain:
        return None
    reason = f"The proxy of {server} accepts nothing but mutual TLS, by {accepted.written}."
    permissive = f"or let {server} accept plain text, too: PeerAuthentication with mode PERMISSIVE"
    if rule:
        whose = rule.partition(",")[0]
        return Refusal(
            f"{reason} {rule} makes the caller speak plain text.",
            f"Remove `tls` from {whose}, or write mode ISTIO_MUTUAL there; {permissive}.",
        )
    if direct:
        return Refusal(
            f"{reason} {BY_ADDRESS}",
            f"{CALL_BY_NAME}; {permissive}.",
        )
    return Refusal(f"{reason} The caller sends plain text.", f"Give the caller a sidecar; {permissive}.")


def foreign_tls(*, server: str, own: bool) -> Refusal:
    """
    Return why a server's proxy whose mode allows the connection takes it nevertheless by none of its filter chains.

    Args:
        server: Its workload.
        own: The TLS is the program's, not its proxy's.
    """
    if own:
        return Refusal(
            f"The proxy of {server} takes plain HTTP and the mutual TLS of other proxies; this is the program's own TLS.",
            "Call it by http://.",
        )
    return Refusal(
        f"The proxy of {server} takes plain HTTP and the mutual TLS of other proxies; the caller's proxy begins another TLS.",
        "Let the DestinationRule of the caller say `tls.mode: ISTIO_MUTUAL`, or remove its `tls`.",
    )
