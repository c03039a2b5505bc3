"""
A live data plane on loopback, driven by weft's own translation over the stream core.

One process of weft-proxy or Envoy serves all cases: each case publishes its resources and waits for the ACKs, so that
the suite also shows that a proxy is not left with anything of the case before.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

from tests.ports import free_port, is_listening
from tests.reference.evaluate import Request
from weft._native import StreamCore

SYNC_SECONDS = 15.0
NODE_ID = "sidecar~127.0.0.1~productpage-v1.default~default.svc.cluster.local"

PROGRAMS = {
    "weft-proxy": ["weft-proxy"],
    "envoy": ["envoy", "--log-level", "error", "--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "1"],
}


def executable(name: str) -> str:
    """The program beside this interpreter, or where WEFT_PROXY says."""
    if name == "weft-proxy" and (path := os.environ.get("WEFT_PROXY")):
        return path
    return str(Path(sys.executable).with_name(name))


@dataclass(frozen=True)
class Answer:
    """What came back: `echo` is what the upstream says it received, None if the proxy answered itself."""

    status: int
    headers: dict[str, str]
    echo: dict[str, Any] | None
    body: bytes
    seconds: float


def secrets() -> list[tuple[str, str, str, bytes]]:
    """The secrets that translated clusters name; nobody in this suite speaks TLS, but a cluster waits for them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "behaviour")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    leaf, roots = secret_pb2.Secret(name="default"), secret_pb2.Secret(name="ROOTCA")
    leaf.tls_certificate.certificate_chain.inline_bytes = certificate
    leaf.tls_certificate.private_key.inline_bytes = private
    roots.validation_context.trusted_ca.inline_bytes = certificate
    url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    return [(url, secret.name, "1", secret.SerializeToString()) for secret in (leaf, roots)]


class DataPlane:
    """A running proxy process and the stream core it listens to."""

    def __init__(self, name: str, home: Path, port: int) -> None:
        self.name = name
        self.port = port
        self.home = home
        self.core = StreamCore(str(home / "xds.sock"))
        self.revision = 0
        self.ads: int | None = None
        self.secrets = secrets()
        (home / "bootstrap.json").write_text(json.dumps(self._bootstrap()))
        command = [executable(PROGRAMS[name][0]), *PROGRAMS[name][1:], "-c", str(home / "bootstrap.json")]
        with (home / "proxy.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def publish(self, resources: Sequence[tuple[str, str, str, bytes]]) -> None:
        """Publish *resources* and return when the proxy has acknowledged all of them; raise with its words if not."""
        self.revision += 1
        self.core.publish("case", self.revision, [*resources, *self.secrets])
        refused = []
        deadline = time.monotonic() + SYNC_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log()}")
            select.select([self.core.fileno()], [], [], 0.2)
            for event in self.core.events():
                match event:
                    case ("connected", stream, *_):
                        # The first stream is ADS; the next are for secrets, which clusters name later.
                        self.ads = stream if self.ads is None else self.ads
                        self.core.attach(stream, "case")
                    case ("refused", _, _, type_url, name, _, message):
                        refused.append(f"{type_url.rpartition('.')[2]} {name}: {message}")
                    case ("synced", stream, _, revision) if stream == self.ads and revision == self.revision:
                        self._wait_until_listening(deadline)
                        return
            if refused:
                raise AssertionError(f"{self.name} refused:\n" + "\n".join(refused))
        raise AssertionError(f"{self.name} did not acknowledge within {SYNC_SECONDS} s:\n{self.log()}")

    def _wait_until_listening(self, deadline: float) -> None:
        """At first a proxy acknowledges its clusters alone; it asks for listeners once these are warm."""
        while time.monotonic() < deadline:
            if is_listening(self.port):
                return
            select.select([], [], [], 0.01)
            for event in self.core.events():
                if event[0] == "connected":
                    self.core.attach(event[1], "case")
                assert event[0] != "refused", event
        raise AssertionError(f"{self.name} does not listen:\n{self.log()}")

    def send(self, request: Request, *, timeout: float = 10.0) -> Answer:
        """Send *request* on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        began = time.monotonic()
        try:
            path = f"{request.path}?{request.query}" if request.query else request.path
            connection.request(request.method, path, headers={"host": request.authority, **request.headers})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        echoed = "x-echo" in headers or headers.get("content-type") == "application/json"
        return Answer(response.status, headers, json.loads(body) if echoed else None, body, time.monotonic() - began)

    def log(self) -> str:
        return (self.home / "proxy.log").read_text(errors="replace")[-4000:]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.core.close()

    def _bootstrap(self) -> dict[str, Any]:
        ads = {"resource_api_version": "V3", "ads": {}}
        http2 = {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        control_plane, agent = (
            {
                "name": name,
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [
                        {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(self.home / "xds.sock")}}}}]}
                    ],
                },
            }
            for name in ("xds-grpc", "sds-grpc")
        )
        return {
            "node": {
                "id": NODE_ID,
                "cluster": "behaviour",
            },
            "admin": {"address": {"pipe": {"path": str(self.home / "admin.sock")}}},
            "static_resources": {"clusters": [control_plane, agent]},
            "dynamic_resources": {
                "lds_config": ads,
                "cds_config": ads,
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                },
            },
        }


@contextlib.contextmanager
def data_plane(name: str, home: Path) -> Iterator[DataPlane]:
    """Run *name* (`weft-proxy` or `envoy`) until the block ends."""
    plane = DataPlane(name, home, free_port())
    try:
        yield plane
    finally:
        plane.close()
