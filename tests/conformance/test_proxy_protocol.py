"""HAProxy, whose protocol it is, hands connections to weft-proxy and takes them from it, both with the client's address in front."""

from __future__ import annotations

import http.client
import subprocess
from pathlib import Path

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2  # noqa: F401 - these register types
from envoy.extensions.transport_sockets.proxy_protocol.v3 import upstream_proxy_protocol_pb2  # noqa: F401
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2  # noqa: F401
from google.protobuf.json_format import ParseDict

from tests.conformance.proxies import TYPES, Resource, cluster, listener, proxies, resource
from tests.conftest import program_or_skip
from tests.ports import free_port, until_listening

# What it answers is what it was told: the client's end and the end that the client connected to.
CONFIGURATION = """
defaults
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend before
    mode tcp
    bind 127.0.0.1:{before}
    default_backend weft
backend weft
    mode tcp
    server weft 127.0.0.1:{weft} {send}
frontend behind
    mode http
    bind 127.0.0.1:{behind} accept-proxy
    http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[dst]:%[dst_port]"
"""


def expecting(made: Resource) -> Resource:
    """The same listener, with a PROXY protocol header before each connection."""
    message = Listener.FromString(made[3])
    filters = {"@type": f"{TYPES}.filters.listener.proxy_protocol.v3.ProxyProtocol"}
    ParseDict({"listener_filters": [{"name": "proxy_protocol", "typed_config": filters}]}, message)
    return resource(made[1], message)


def telling(made: Resource, version: str) -> Resource:
    """The same cluster, told for whom each connection is."""
    message = Cluster.FromString(made[3])
    plain = {"name": "raw", "typed_config": {"@type": f"{TYPES}.transport_sockets.raw_buffer.v3.RawBuffer"}}
    transport = {
        "@type": f"{TYPES}.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        "config": {"version": version},
        "transport_socket": plain,
    }
    ParseDict({"transport_socket": {"name": "proxy_protocol", "typed_config": transport}}, message)
    return resource(made[1], message)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("upstream", ["V1", "V2"])
@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2 proxy-v2-options unique-id,crc32c"])
def test_haproxy_and_weft_proxy_tell_each_other_the_same_client(tmp_path: Path, send: str, upstream: str) -> None:
    """client -> HAProxy -> weft-proxy -> HAProxy: the last one knows the first one's client, whichever versions are between."""
    haproxy = program_or_skip("haproxy", "haproxy")
    before, weft, behind = free_port(), free_port(), free_port()
    path = tmp_path / "haproxy.cfg"
    path.write_text(CONFIGURATION.format(before=before, weft=weft, behind=behind, send=send))
    with proxies(tmp_path, "middle") as (proxy,):
        proxy.publish(
            telling(cluster("behind", behind, http2=False), upstream),
            expecting(listener("in", weft, "behind", log=proxy.log)),
        )
        process = subprocess.Popen([haproxy, "-db", "-f", str(path)], stdin=subprocess.DEVNULL)
        try:
            until_listening(before, process)
            # Two clients, and two requests of each: nobody is told another's address.
            clients = [http.client.HTTPConnection("127.0.0.1", before, timeout=20) for _ in range(2)]
            for client in clients * 2:
                client.request("GET", "/")
                answer = client.getresponse().read().decode()
                assert client.sock is not None
                assert answer == f"127.0.0.1:{client.sock.getsockname()[1]} 127.0.0.1:{before}"
            for client in clients:
                client.close()
        finally:
            process.kill()
            process.wait()
