"""Mutual TLS between sidecars, and `trafficPolicy.tls` -> transport sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.core.v3 import base_pb2, config_source_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2

from weft.api.networking import ClientTLSSettings
from weft.translate import names
from weft.translate.resource import serialise

TLS_SOCKET = "envoy.transport_sockets.tls"
PLAIN_SOCKET = "envoy.transport_sockets.raw_buffer"

MODE_KEY, MODE_MUTUAL = "tlsMode", "istio"
"""Of an endpoint's metadata under `envoy.transport_socket_match`: a sidecar that speaks mutual TLS stands before it."""

ALPN_TCP = ("istio",)
ALPN_HTTP1 = ("istio", "http/1.1")
ALPN_HTTP2 = ("istio", "h2")
ALPN_EITHER = ("istio", "h2", "http/1.1")
"""What a sidecar offers to another. `istio` is Istio's; the others are what the other side's listener takes."""

ALPN_PEERS = ("istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2")
"""By one of these a server that accepts plain text too tells a sidecar from a program that speaks TLS itself."""

ALPN_SERVER = ("h2", "http/1.1")
"""What an inbound HTTP listener takes; one for TCP takes whatever is offered, so it names nothing."""


def apply(
    settings: ClientTLSSettings | None,
    cluster: Any,
    *,
    server_name: str,
    identities: Sequence[str],
    alpn: Sequence[str],
) -> None:
    """
    Choose the transport of *cluster* (a `Cluster`).

    Args:
        settings: None chooses by endpoint: mutual TLS where a sidecar stands, plain text elsewhere (automatic mTLS).
        cluster: The message.
        server_name: SNI.
        identities: SPIFFE IDs, one of which the server must prove. Empty accepts every identity of the mesh.
        alpn: Protocols to offer.
    """
    mode = settings.mode if settings else ""
    if mode == "DISABLE":
        return
    names_allowed = tuple(settings.subject_alt_names) if settings and settings.subject_alt_names else identities
    sni = settings.sni if settings and settings.sni else server_name
    mutual = _socket(upstream(sni, names_allowed, alpn))
    if mode == "ISTIO_MUTUAL":
        cluster.transport_socket.CopyFrom(mutual)
    elif mode == "":
        match = cluster.transport_socket_matches.add(name="tlsMode-istio", transport_socket=mutual)
        match.match.update({MODE_KEY: MODE_MUTUAL})
        plain = cluster.transport_socket_matches.add(name="tlsMode-disabled")
        plain.match.SetInParent()
        plain.transport_socket.CopyFrom(_PLAIN)
    else:
        cluster.transport_socket.CopyFrom(_socket(_originated(settings, sni)))


def upstream(server_name: str, identities: Sequence[str], alpn: Sequence[str]) -> Any:
    """Return the client's side of mutual TLS (an `UpstreamTlsContext`)."""
    context = tls_pb2.UpstreamTlsContext(sni=server_name)
    _fill_common(context.common_tls_context, alpn)
    validation = context.common_tls_context.combined_validation_context.default_validation_context
    validation.SetInParent()
    for identity in identities:
        matcher = validation.match_typed_subject_alt_names.add(san_type=common_pb2.SubjectAltNameMatcher.URI)
        matcher.matcher.exact = identity
    return context


def downstream(trust_domain: str, alpn: Sequence[str]) -> Any:
    """Return the server's socket: TLS with a client certificate of this trust domain required (STRICT)."""
    context = tls_pb2.DownstreamTlsContext()
    context.require_client_certificate.value = True
    _fill_common(context.common_tls_context, alpn)
    validation = context.common_tls_context.combined_validation_context.default_validation_context
    matcher = validation.match_typed_subject_alt_names.add(san_type=common_pb2.SubjectAltNameMatcher.URI)
    matcher.matcher.prefix = f"spiffe://{trust_domain}/"
    return _socket(context)


def _fill_common(common: Any, alpn: Sequence[str]) -> None:
    common.tls_params.tls_minimum_protocol_version = common_pb2.TlsParameters.TLSv1_2
    common.tls_params.tls_maximum_protocol_version = common_pb2.TlsParameters.TLSv1_3
    common.alpn_protocols.extend(alpn)
    common.tls_certificate_sds_secret_configs.add().CopyFrom(_secret(names.CERTIFICATE))
    common.combined_validation_context.validation_context_sds_secret_config.CopyFrom(_secret(names.TRUST_BUNDLE))


def _secret(name: str) -> Any:
    """Return the reference to a secret that the agent serves. It is waited for: without it nothing is secure."""
    config = secret_pb2.SdsSecretConfig(name=name)
    config.sds_config.resource_api_version = config_source_pb2.ApiVersion.V3
    config.sds_config.initial_fetch_timeout.SetInParent()
    source = config.sds_config.api_config_source
    source.api_type = config_source_pb2.ApiConfigSource.GRPC
    source.transport_api_version = config_source_pb2.ApiVersion.V3
    source.set_node_on_first_message_only = True
    source.grpc_services.add().envoy_grpc.cluster_name = names.SDS_CLUSTER
    return config


def _originated(settings: ClientTLSSettings | None, server_name: str) -> Any:
    """Return TLS towards a destination outside the mesh (SIMPLE, MUTUAL), with certificates from files."""
    settings = settings or ClientTLSSettings()
    context = tls_pb2.UpstreamTlsContext(sni=server_name if settings.sni else "")
    common = context.common_tls_context
    if settings.mode == "MUTUAL":
        certificate = common.tls_certificates.add()
        certificate.certificate_chain.filename = settings.client_certificate
        certificate.private_key.filename = settings.private_key
    if settings.ca_certificates and not settings.insecure_skip_verify:
        common.validation_context.trusted_ca.filename = settings.ca_certificates
        for name in settings.subject_alt_names:
            matcher = common.validation_context.match_typed_subject_alt_names.add(
                san_type=common_pb2.SubjectAltNameMatcher.DNS
            )
            matcher.matcher.exact = name
    return context


def _socket(context: Any) -> Any:
    socket = base_pb2.TransportSocket(name=TLS_SOCKET)
    socket.typed_config.type_url = f"type.googleapis.com/{context.DESCRIPTOR.full_name}"
    socket.typed_config.value = serialise(context)
    return socket


_PLAIN = base_pb2.TransportSocket(name=PLAIN_SOCKET)
_PLAIN.typed_config.Pack(raw_buffer_pb2.RawBuffer())
