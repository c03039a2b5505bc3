"""
A network in which iptables' REDIRECT catches traffic, as on the nodes of Istio's istiod, and a weft-proxy in it.

Run as `python -m tests.namespaces.redirection`, a process of its own: it moves into a new network namespace, in which all of
203.0.113.0/24 and 2001:db8::/32 is delivered at home, and connections to two ports are turned to the proxy's.
It prints as JSON what each of its calls was answered, and the proxy's access records.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.access_loggers.file.v3 import file_pb2  # noqa: F401 - these register the types for Any
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2  # noqa: F401
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from google.protobuf.json_format import ParseDict

from tests.conformance.proxies import LIMIT, TYPES, Resource, cluster, proxies, resource
from weft.agent import namespaces, netlink, nftables, syscalls
from weft.agent.netlink import attribute, nested

CAUGHT, OTHER_PORT, PROXY_PORT = 7000, 7001, 15001
DESTINATION, DESTINATION6 = "203.0.113.9", "2001:db8::9"
# It has a listener of its own, which has no port; connections are handed over to it.
SERVICE = "203.0.113.10"


def enter() -> None:
    """Move this process, which has one thread, into the network."""
    if namespaces.needs_user_namespace():
        uid, gid = os.getuid(), os.getgid()
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        namespaces.map_identity(uid, gid)
    syscalls.unshare(syscalls.CLONE_NEWNET)
    with netlink.Netlink(netlink.NETLINK_ROUTE) as route:
        netlink.set_up(route, 1)
        netlink.add_local_route(route, ip_network("203.0.113.0/24"), 1)
        namespaces.enable_ipv6()
        netlink.add_local_route(route, ip_network("2001:db8::/32"), 1)
    redirect()


def redirect() -> None:
    """`chain output { type nat hook output priority -100; tcp dport { 7000, 7001 } redirect to :15001 }`"""
    table = nftables._message(0, attribute(1, nftables._text(nftables.TABLE)))
    hook = nested(4, attribute(1, nftables._word(3)), attribute(2, struct.pack("!i", -100)))
    names = attribute(1, nftables._text(nftables.TABLE)) + attribute(3, nftables._text("output"))
    chain = nftables._message(3, names + hook + attribute(7, b"nat\0"))
    register = nftables._word(nftables._REGISTER)
    port = nested(2, attribute(1, struct.pack("!H", PROXY_PORT)))
    to_proxy = nftables._expression("immediate", attribute(1, register), port)
    to_proxy += nftables._expression("redir", attribute(1, register))
    is_tcp = nftables._is_protocol(socket.IPPROTO_TCP)
    rules = [
        nftables._rule("output", [*is_tcp, *nftables._is_port(caught), to_proxy]) for caught in (CAUGHT, OTHER_PORT)
    ]
    nftables._commit([table, chain, *rules])


def upstream(name: str) -> int:
    """A server that says its *name* to whoever comes; returns its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(name.encode())

    threading.Thread(target=serve, daemon=True).start()
    return int(server.getsockname()[1])


def bytes_to(name: str, log: Path, **conditions: Any) -> dict[str, Any]:
    """A filter chain that carries bytes to the cluster *name*."""
    fields = {"chain": name, "local": "%DOWNSTREAM_LOCAL_ADDRESS%"}
    record = {
        "name": "file",
        "typed_config": {
            "@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog",
            "path": str(log),
            "log_format": {"json_format": fields},
        },
    }
    proxy = {
        "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": name,
        "access_log": [record],
    }
    return {"filter_chain_match": conditions, "filters": [{"name": "tcp", "typed_config": proxy}]}


def listener(name: str, address: str, port: int, *chains: dict[str, Any], **more: Any) -> Resource:
    bound = {"socket_address": {"address": address, "port_value": port}}
    return resource(
        name, ParseDict({"name": name, "address": bound, "filter_chains": list(chains), **more}, Listener())
    )


def catching(address: str, log: Path) -> Resource:
    """A listener as istiod's `virtualOutbound`: it recovers the destination, and hands over or chooses a chain by it."""
    chains = (bytes_to("port", log, destination_port=OTHER_PORT), bytes_to("rest", log))
    return listener(f"caught on {address}", address, PROXY_PORT, *chains, use_original_dst=True)


def call(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=20) as client:
        client.settimeout(20)
        return client.makefile().read()


def main() -> None:
    enter()
    clusters = [cluster(name, upstream(name), http2=False) for name in ("port", "rest", "service")]
    with proxies(Path.cwd(), "caught") as (proxy,):
        handed_over = listener("service", SERVICE, CAUGHT, bytes_to("service", proxy.log), bind_to_port=False)
        proxy.publish(*clusters, catching("127.0.0.1", proxy.log), catching("::1", proxy.log), handed_over)
        calls = [(DESTINATION, CAUGHT), (DESTINATION, OTHER_PORT), (SERVICE, CAUGHT), (DESTINATION6, CAUGHT)]
        # The last one reaches the proxy's port without having been redirected.
        calls += [(DESTINATION6, OTHER_PORT), ("127.0.0.1", PROXY_PORT)]
        answers = [call(*destination) for destination in calls]
        deadline = time.monotonic() + LIMIT
        while len(proxy.records()) < len(calls):
            assert time.monotonic() < deadline, proxy.records()
            time.sleep(0.01)
        print(json.dumps({"answers": answers, "records": proxy.records()}))


if __name__ == "__main__":
    main()
