"""
Runs a command on a machine of its own: a network namespace with a loopback, an internet, a resolver and a database.

`python -m tests.e2e.machine PLACE COMMAND...`, as the person under test. The command finds

    www.example.com       93.184.216.34 and 2001:db8::34; HTTP and HTTPS with the certificate PLACE/outside.pem
    127.0.0.1:5432        a database of this machine: answers each line with "database says" and the line
    /etc/resolv.conf      names 127.0.0.1, where a resolver knows www.example.com
    /etc/hosts            has names of services, as docker-compose has people write them: HOSTS

The servers end when the command does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from pathlib import Path

from tests.namespaces import outside
from weft.agent import namespaces, netlink, syscalls

HOSTS = f"""\
127.0.0.1 localhost everywhere everywhere.default late
{outside.ADDRESS} everywhere6 compose-only
"""


def main(place: Path, command: list[str]) -> None:
    outside.make_certificate(place)
    if namespaces.needs_user_namespace():
        uid, gid = os.getuid(), os.getgid()
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        namespaces.map_identity(uid, gid)
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    namespaces.detach_mounts()
    namespaces.write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
    (place / "resolv.conf").write_text("nameserver 127.0.0.1\n", "ascii")
    syscalls.mount(str(place / "resolv.conf"), "/etc/resolv.conf", flags=syscalls.MS_BIND)
    (place / "hosts").write_text(HOSTS, "ascii")
    syscalls.mount(str(place / "hosts"), "/etc/hosts", flags=syscalls.MS_BIND)
    with netlink.Netlink(netlink.NETLINK_ROUTE) as route:
        netlink.set_up(route, 1)
        netlink.add_address(route, 1, outside.ADDRESS)
        netlink.add_address(route, 1, outside.ADDRESS6)
    ready, standing = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        try:
            syscalls.set_death_signal(signal.SIGKILL)
            if os.getppid() == parent:
                asyncio.run(serve(place, standing))
        finally:
            os._exit(1)
    os.close(standing)
    assert os.read(ready, 1) == b"."
    os.execvp(command[0], command)


async def serve(place: Path, standing: int) -> None:
    queries: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "outside.pem", place / "outside.key")
    for address in (outside.ADDRESS, outside.ADDRESS6):
        await asyncio.start_server(outside._web, address, 443, ssl=context)
        await asyncio.start_server(outside._web, address, 80)
    await asyncio.start_server(outside._database, "127.0.0.1", 5432)
    await asyncio.start_server(lambda r, w: outside._resolver_stream(r, w, queries), "127.0.0.1", 53)
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: outside._Resolver(queries), ("127.0.0.1", 53))
    os.write(standing, b".")
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
