"""Where OpenSSL may resume a session that it has with a listener: weft-proxy and Envoy say the same of the same listeners."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.json_format import MessageToDict

from bench.certificates import Authority
from bench.role import Tls
from tests.conformance.proxies import LIMIT, Resource, cluster, listener, proxies
from tests.ports import free_port, until_listening
from weft.agent.data_planes import DATA_PLANES
from weft.data_plane import ENVOY


def keys(*of: int) -> dict[str, Any]:
    """Ticket keys, each of one byte again and again."""
    return {
        "session_ticket_keys": {"keys": [{"inline_bytes": base64.b64encode(bytes([key]) * 80).decode()} for key in of]}
    }


def context(server: Tls, *, roots: str, peer: str | None = None, **more: Any) -> dict[str, Any]:
    validation: dict[str, Any] = {"trusted_ca": {"inline_string": roots}}
    if peer is not None:
        matcher = {"san_type": "URI", "matcher": {"exact": peer}}
        validation["match_typed_subject_alt_names"] = [matcher]
    certificate = {
        "certificate_chain": {"inline_string": server.chain.read_text()},
        "private_key": {"inline_string": server.key.read_text()},
    }
    common = {"tls_certificates": [certificate], "validation_context": validation}
    return {"common_tls_context": common, "require_client_certificate": True, **more}


def listeners(directory: Path, server: Tls, other: str) -> dict[str, tuple[int, Resource]]:
    """Listeners for clients of one authority; a session of `first` is brought to each."""
    roots = server.roots.read_text()
    contexts = {
        "first": context(server, roots=roots, **keys(1)),
        "same": context(server, roots=roots, **keys(1)),
        "next-key": context(server, roots=roots, **keys(2, 1)),
        "key-after-next": context(server, roots=roots, **keys(3, 2)),
        "other-name": context(server, roots=roots, peer=server.peer, **keys(1)),
        "other-roots": context(server, roots=roots + other, **keys(1)),
        "disabled": context(server, roots=roots, disable_stateless_session_resumption=True),
    }
    made = {}
    for name, tls in contexts.items():
        port = free_port()
        made[name] = port, listener(name, port, "up", tls=tls, log=directory / "access.log")
    return made


def ask(port: int, client: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
    """Whether *session* was resumed, and what may be resumed next. Something must answer, or this is no session."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as plain,
        client.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(9) == b"HTTP/1.1 "
        return bool(connection.session_reused), connection.session


@contextlib.contextmanager
def stock_envoy(directory: Path, made: dict[str, tuple[int, Resource]], up: Resource) -> Iterator[None]:
    static = {
        "listeners": [MessageToDict(Listener.FromString(it[3])) for _, it in made.values()],
        "clusters": [MessageToDict(Cluster.FromString(up[3]))],
    }
    path = directory / "envoy.json"
    path.write_text(json.dumps({"static_resources": static}))
    command = [DATA_PLANES[ENVOY].find().path, "-c", str(path), "--concurrency", "1", "--disable-hot-restart"]
    with subprocess.Popen([*command, "--log-level", "error"], stdin=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed_where_envoy_resumes_them(tmp_path: Path, version: ssl.TLSVersion) -> None:
    (tmp_path / "other").mkdir()
    authority = Authority(tmp_path / "certificates")
    other = Authority(tmp_path / "other").roots.read_text()
    server = authority.issue("server", peer="client")
    identity = authority.issue("client", peer="server")
    up = cluster("up", free_port(), http2=False)

    def resumed(made: dict[str, tuple[int, Resource]]) -> dict[str, bool]:
        found = {}
        for name, (port, _) in made.items():
            until_listening(port)
            # OpenSSL ties a session to its context; one for each, so that no ticket is used twice.
            client = ssl.create_default_context(cafile=str(identity.roots))
            client.load_cert_chain(identity.chain, identity.key)
            client.minimum_version = client.maximum_version = version
            reused, session = ask(made["first"][0], client, None)
            assert not reused
            found[name], _ = ask(port, client, session)
        return found

    ours = listeners(tmp_path, server, other)
    with proxies(tmp_path / "weft", "one") as (proxy,):
        proxy.publish(up, *(made for _, made in ours.values()))
        of_weft_proxy = resumed(ours)
    theirs = listeners(tmp_path, server, other)
    with stock_envoy(tmp_path, theirs, up):
        of_envoy = resumed(theirs)
    assert of_weft_proxy == of_envoy
    assert {name for name, reused in of_weft_proxy.items() if reused} == {"first", "same", "next-key"}
