"""grpc-go's interop client against its server, through two sidecars with mutual TLS between them, of either data plane."""

from __future__ import annotations

import contextlib
import datetime
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conformance.both import (
    Json,
    cluster,
    file_log,
    http_filters,
    http_options,
    listener,
    records,
    typed,
)
from tests.conformance.proxies import Static, judge, until
from tests.ports import free_port, until_listening
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

GIVEN_UP_AT_ONCE = ("timeout_on_sleeping_server", "cancel_after_begin")
"""A call that is given up after a millisecond or none may end before its client has sent it."""

SOAK = ("-soak_iterations=3", "-soak_per_iteration_max_acceptable_latency_ms=20000", "-soak_overall_timeout_seconds=60")
"""Large calls, one after the other, on one channel or a channel each; how fast they are is no matter here."""

LOAD = ('-service_config_json={"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}',)
"""The client's balancer that hands what servers tell of their load to the case; without it nobody reads it."""

CASES: dict[str, tuple[str, ...]] = {
    "empty_unary": (),
    "large_unary": (),
    "client_streaming": (),
    "server_streaming": (),
    "ping_pong": (),
    "empty_stream": (),
    "timeout_on_sleeping_server": (),
    "cancel_after_begin": (),
    "cancel_after_first_response": (),
    "status_code_and_message": (),
    "special_status_message": (),
    "custom_metadata": (),
    "unimplemented_method": (),
    "unimplemented_service": (),
    "rpc_soak": SOAK,
    "channel_soak": SOAK,
    "orca_per_rpc": LOAD,
    "orca_oob": LOAD,
}
"""
With what else the client is told.

Every case but those that need a cloud's credentials, and pick_first_unary: it wants the `server_id` that it asks for with
`fill_server_id`, and no server of grpc-go's module fills that in, so that the case fails without any proxy too.
"""

PAIRS = ((WEFT_PROXY, WEFT_PROXY), (WEFT_PROXY, ENVOY), (ENVOY, WEFT_PROXY), (ENVOY, ENVOY))
"""The client's sidecar, the server's."""


def tls(server: bool) -> dict[str, Any]:
    """A context with a certificate of its own; both sides ask for the other's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "interop")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    both = {
        "tls_certificates": [
            {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": private}}
        ]
    }
    return {"certificate": certificate, "context": both, "server": server}


def mutual(own: dict[str, Any], other: dict[str, Any]) -> Json:
    """The transport socket that shows *own* certificate and trusts *other*'s alone."""
    common = {
        **own["context"],
        "validation_context": {"trusted_ca": {"inline_string": other["certificate"]}},
        "alpn_protocols": ["h2", "http/1.1"] if own["server"] else ["istio", "h2"],
    }
    more = {"require_client_certificate": True} if own["server"] else {}
    context = "DownstreamTlsContext" if own["server"] else "UpstreamTlsContext"
    return {
        "name": "tls",
        "typed_config": typed(f"transport_sockets.tls.v3.{context}", common_tls_context=common, **more),
    }


class Sidecar(Static):
    """A proxy that leads every call from its port to another, with a transport socket on one side."""

    def __init__(
        self, kind: str, directory: Path, to: int, downstream: Json | None = None, upstream: Json | None = None
    ) -> None:
        self.port = free_port()
        self.log = directory.with_suffix(".log")
        filters = http_filters(
            [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}],
            manager={"access_log": file_log(self.log, {"protocol": "%PROTOCOL%"})},
        )
        here = listener("http", self.port, filters)
        http2 = http_options(explicit_http_config={"http2_protocol_options": {}})
        there = cluster("up", to, connect_timeout="30s", **http2)
        if downstream is not None:
            here["filter_chains"][0]["transport_socket"] = downstream
        if upstream is not None:
            there["transport_socket"] = upstream
        super().__init__(kind, directory, {"http": self.port}, {"listeners": [here], "clusters": [there]})


class Chain(NamedTuple):
    port: int
    """To which the client connects."""
    sidecars: tuple[Sidecar, Sidecar]


@pytest.fixture(scope="module", params=PAIRS, ids=" to ".join)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """Server, its sidecar, mutual TLS, the client's sidecar."""
    program = judge("grpc-server")
    directory, port = tmp_path_factory.mktemp("grpc"), free_port()
    ends = tls(server=True), tls(server=False)
    kinds = request.param
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen([program, "-port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.kill)
        inbound = Sidecar(kinds[1], directory / "server", port, downstream=mutual(*ends))
        stack.callback(inbound.stop)
        outbound = Sidecar(kinds[0], directory / "client", inbound.port, upstream=mutual(ends[1], ends[0]))
        stack.callback(outbound.stop)
        for sidecar in (inbound, outbound):
            until_listening(sidecar.port, sidecar.process)
            until("it is ready", sidecar.is_ready)
        until_listening(port, server)
        yield Chain(outbound.port, (inbound, outbound))


@pytest.mark.parametrize("case", CASES)
def test_a_case_of_grpc_go_passes_through_two_sidecars(chain: Chain, case: str) -> None:
    """Unary calls, the three kinds of stream, deadlines, cancellation, status, metadata and what a server tells of its load."""
    program = judge("grpc-client")
    for sidecar in chain.sidecars:
        sidecar.log.write_bytes(b"")
    done = subprocess.run(
        [program, "-server_host", "127.0.0.1", "-server_port", str(chain.port), "-test_case", case, *CASES[case]],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for sidecar in chain.sidecars if case not in GIVEN_UP_AT_ONCE else ():
        until(f"{sidecar.kind} has a record", lambda sidecar=sidecar: bool(records(sidecar.log)))
        assert {record["protocol"] for record in records(sidecar.log)} == {"HTTP/2"}
