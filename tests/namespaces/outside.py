"""
The world outside of the mesh, for tests: a process in a network namespace of its own that plays host and internet.

    127.0.0.1:5432        a database of the host: answers each line with "database says" and the line
    93.184.216.34:443     HTTPS of the internet, and the same on [2001:db8::34]:443; the certificate is outside.pem
    127.0.0.1:53          the host's resolver, UDP and TCP
    the edge              on the mesh's edge.sock

The resolver knows www.example.com (A, AAAA, and a TXT of 3000 bytes that fits no datagram), is silent for silent.example.com,
and says NXDOMAIN to the rest. It is written apart from weft's own DNS code, so that the two judge each other.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import socket
import ssl
import struct
from ipaddress import ip_address
from pathlib import Path

ADDRESS, ADDRESS6 = "93.184.216.34", "2001:db8::34"
NAME = "www.example.com"


def start(edge_socket: Path, place: Path) -> socket.socket:
    """Fork the process; returns, once everything stands, a socket on which it answers requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    make_certificate(place)
    if os.fork() == 0:
        status = 1
        try:
            ours.close()
            _enter_own_network()
            asyncio.run(_serve(edge_socket, place, theirs))
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    assert ours.recv(100) == b"ready", "the outside did not start; its traceback is above"
    return ours


def _enter_own_network() -> None:
    from weft.agent import namespaces, netlink, syscalls

    if namespaces.needs_user_namespace():
        uid, gid = os.getuid(), os.getgid()
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        namespaces.map_identity(uid, gid)
    syscalls.unshare(syscalls.CLONE_NEWNET)
    namespaces.write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
    with netlink.Netlink(netlink.NETLINK_ROUTE) as route:
        netlink.set_up(route, 1)
        netlink.add_address(route, 1, ADDRESS)
        netlink.add_address(route, 1, ADDRESS6)


async def _serve(edge_socket: Path, place: Path, control: socket.socket) -> None:
    from weft.agent.edge import Edge

    loop = asyncio.get_running_loop()
    queries: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "outside.pem", place / "outside.key")
    servers = [
        await asyncio.start_server(_database, "127.0.0.1", 5432),
        await asyncio.start_server(_web, ADDRESS, 443, ssl=context),
        await asyncio.start_server(_web, ADDRESS6, 443, ssl=context),
        await asyncio.start_server(_web, ADDRESS, 80),
        await asyncio.start_server(lambda r, w: _resolver_stream(r, w, queries), "127.0.0.1", 53),
    ]
    await loop.create_datagram_endpoint(lambda: _Resolver(queries), ("127.0.0.1", 53))
    edge = loop.create_task(Edge([("127.0.0.1", 53)]).serve(edge_socket))
    while not edge_socket.exists():
        await asyncio.sleep(0.005)
    control.setblocking(False)
    await loop.sock_sendall(control, b"ready")
    while request := await loop.sock_recv(control, 65536):
        answer = {"queries": lambda: json.dumps(queries)}[request.decode()]()
        await loop.sock_sendall(control, answer.encode())
    edge.cancel()
    for server in servers:
        server.close()


async def _database(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(b"database says " + line)
    writer.close()


async def _web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        writer.close()
        return
    body = b"the internet\n"
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


class _Resolver(asyncio.DatagramProtocol):
    def __init__(self, queries: list[str]) -> None:
        self._queries = queries

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = _answer(data, self._queries, datagram=True)
        if answer is not None:
            self._transport.sendto(answer, addr)  # type: ignore[attr-defined]


async def _resolver_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, queries: list[str]) -> None:
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    answer = _answer(await reader.readexactly(length), queries, datagram=False)
    if answer is not None:
        writer.write(struct.pack("!H", len(answer)) + answer)
        await writer.drain()
    writer.close()


def _answer(query: bytes, queries: list[str], *, datagram: bool) -> bytes | None:
    labels, offset = [], 12
    while query[offset]:
        labels.append(query[offset + 1 : offset + 1 + query[offset]].decode())
        offset += 1 + query[offset]
    kind = struct.unpack_from("!H", query, offset + 1)[0]
    question = query[12 : offset + 5]
    name = ".".join(labels).lower()
    queries.append(f"{name} {kind}")
    if name == "silent.example.com":
        return None
    flags, records = 0x8180, []
    if name != NAME:
        flags |= 3
    elif kind == 1:
        records = [ip_address(ADDRESS).packed]
    elif kind == 28:
        records = [ip_address(ADDRESS6).packed]
    elif kind == 16:
        records = [bytes([250]) + b"x" * 250] * 12
    body = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(data)) + data for data in records)
    if datagram and len(body) > 1200:
        flags, body, records = flags | 0x0200, b"", []
    return query[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0) + question + body


def make_certificate(place: Path) -> None:
    """Write a certificate for www.example.com that is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (place / "outside.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (place / "outside.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
