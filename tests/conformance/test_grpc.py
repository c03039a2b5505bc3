"""grpc-go's interop client against its server, through two sidecars with mutual TLS between them."""

from __future__ import annotations

import datetime
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conformance.proxies import LIMIT, Proxy, cluster, judge, listener, proxies
from tests.ports import free_port

pytestmark = pytest.mark.conformance

CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
)
"""
Every case but those that need a cloud's credentials, or a server that tells its name or its load (pick_first_unary,
orca_*): against grpc-go's plain server these fail without any proxy too.
"""


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


def mutual(own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The transport socket that shows *own* certificate and trusts *other*'s alone."""
    common = {
        **own["context"],
        "validation_context": {"trusted_ca": {"inline_string": other["certificate"]}},
        "alpn_protocols": ["h2", "http/1.1"] if own["server"] else ["istio", "h2"],
    }
    return {"common_tls_context": common} | ({"require_client_certificate": True} if own["server"] else {})


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[Proxy]]]:
    """Server, its sidecar, mutual TLS, the client's sidecar: yields the port to which the client connects."""
    program = judge("grpc-server")
    ports = {name: free_port() for name in ("server", "inbound", "outbound")}
    ends = tls(server=True), tls(server=False)
    server = subprocess.Popen(
        [program, "-port", str(ports["server"])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with proxies(tmp_path_factory.mktemp("grpc"), "server", "client") as running:
            inbound, outbound = running
            inbound.publish(
                cluster("up", ports["server"], http2=True),
                listener("in", ports["inbound"], "up", tls=mutual(*ends), log=inbound.log),
            )
            outbound.publish(
                cluster("up", ports["inbound"], http2=True, tls=mutual(ends[1], ends[0])),
                listener("out", ports["outbound"], "up", log=outbound.log),
            )
            yield ports["outbound"], running
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("case", CASES)
def test_a_case_of_grpc_go_passes_through_two_sidecars(chain: tuple[int, list[Proxy]], case: str) -> None:
    """Unary calls, the three kinds of stream, deadlines, cancellation, status and metadata."""
    port, running = chain
    program = judge("grpc-client")
    done = subprocess.run(
        [program, "-server_host", "127.0.0.1", "-server_port", str(port), "-test_case", case],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    deadline = time.monotonic() + LIMIT
    while not all(proxy.records() for proxy in running) and time.monotonic() < deadline:
        time.sleep(0.01)
    for proxy in running:
        assert {record["protocol"] for record in proxy.records()} == {"HTTP/2"}
