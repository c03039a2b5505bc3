"""Names of the mesh and of the world, whatever resolver the program has."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess

import pytest

from tests.conftest import program_or_skip
from tests.namespaces import outside
from tests.namespaces.harness import Mesh, in_mesh, parsed

pytestmark = pytest.mark.timeout(120)

REVIEWS = "240.240.0.3"
TABLE = {
    "reviews.default.svc.cluster.local": [REVIEWS],
    "ratings.other.svc.cluster.local": ["240.240.0.4"],
    "six.default.svc.cluster.local": ["240.240.0.6", "fd77:ef7:1::6"],
}
SHORT_FORMS = ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"]

# A resolver in twenty lines that owes nothing to weft: asks one question of a server and prints code, addresses and flags.
ASK = """
import json, socket, struct, sys
server, name, kind, transport = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
query = struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 0)
query += b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\\0" + struct.pack("!HH", kind, 1)
family = socket.AF_INET6 if ":" in server else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM)
s.settimeout(15)
s.connect((server, 53))
if transport == "udp":
    s.send(query); answer = s.recv(65535)
else:
    s.sendall(struct.pack("!H", len(query)) + query)
    f = s.makefile("rb"); answer = f.read(struct.unpack("!H", f.read(2))[0])
identity, flags, questions, answers, _, _ = struct.unpack_from("!6H", answer)
assert identity == 0x1234 and flags & 0x8000 and answer[12:len(query)] == query[12:], answer
found, offset = [], len(query)
for _ in range(answers):
    assert answer[offset] & 0xC0 == 0xC0
    k, _, _, length = struct.unpack_from("!HHIH", answer, offset + 2)
    data = answer[offset + 12 : offset + 12 + length]; offset += 12 + length
    found.append(socket.inet_ntop(socket.AF_INET if k == 1 else socket.AF_INET6, data) if k in (1, 28) else len(data))
print(json.dumps([flags & 15, found, bool(flags & 0x200)]))
"""


async def ask(mesh: Mesh, server: str, name: str, kind: int, transport: str) -> list[object]:
    answer: list[object] = parsed(await mesh.python(ASK, server, name, str(kind), transport))
    return answer


@in_mesh
async def test_names_resolve_by_udp_and_tcp_at_whatever_server_is_asked(mesh: Mesh) -> None:
    server = await mesh.names(TABLE)
    for address in ("240.240.0.53", "8.8.8.8", "127.0.0.53", "127.0.0.1", "2001:4860:4860::8888", "::1"):
        for transport in ("udp", "tcp"):
            assert await ask(mesh, address, "reviews", 1, transport) == [0, [REVIEWS], False], (address, transport)
    await server.stop()


@in_mesh
async def test_every_form_of_a_mesh_name_has_an_address_and_no_ipv6_one(mesh: Mesh) -> None:
    server = await mesh.names(TABLE)
    for name in SHORT_FORMS:
        assert await ask(mesh, "240.240.0.53", name, 1, "udp") == [0, [REVIEWS], False], name
        # Empty and not NXDOMAIN: musl takes NXDOMAIN for AAAA as the end of the name.
        assert await ask(mesh, "240.240.0.53", name, 28, "udp") == [0, [], False], name
        assert await ask(mesh, "240.240.0.53", name, 65, "udp") == [0, [], False], f"HTTPS record of {name}"
    assert await ask(mesh, "240.240.0.53", "ratings.other", 1, "udp") == [0, ["240.240.0.4"], False]
    assert await ask(mesh, "240.240.0.53", "six", 28, "udp") == [0, ["fd77:ef7:1::6"], False]
    assert await ask(mesh, "240.240.0.53", "nobody.default.svc.cluster.local", 1, "udp") == [3, [], False]
    assert json.loads(mesh.outside("queries")) == [], "names of the mesh are nobody else's business"
    await server.stop()


@in_mesh
async def test_getaddrinfo_of_glibc_with_addrconfig(mesh: Mesh) -> None:
    """AI_ADDRCONFIG leaves out families for which the host has no address but the loopback's."""
    server = await mesh.names(TABLE)
    source = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    for flags in (0, socket.AI_ADDRCONFIG):
        for family in (socket.AF_UNSPEC, socket.AF_INET):
            got = socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM, flags=flags)
            found.setdefault(name, []).append(sorted(x[4][0] for x in got))
print(json.dumps(found))
"""
    found = parsed(await mesh.python(source, *SHORT_FORMS, outside.NAME))
    assert found == {
        **dict.fromkeys(SHORT_FORMS, [[REVIEWS]] * 4),
        outside.NAME: [sorted([outside.ADDRESS, outside.ADDRESS6]), [outside.ADDRESS]] * 2,
    }
    await server.stop()


@in_mesh
async def test_names_outside_the_mesh_are_answered_by_the_hosts_resolver(mesh: Mesh) -> None:
    server = await mesh.names(TABLE)
    for transport in ("udp", "tcp"):
        assert await ask(mesh, "240.240.0.53", "WWW.example.Com", 1, transport) == [0, [outside.ADDRESS], False]
        assert await ask(mesh, "9.9.9.9", outside.NAME, 28, transport) == [0, [outside.ADDRESS6], False]
        assert await ask(mesh, "240.240.0.53", "nobody.example.com", 1, transport) == [3, [], False]
    assert f"{outside.NAME} 1" in json.loads(mesh.outside("queries"))
    await server.stop()


@in_mesh
async def test_an_answer_too_large_for_a_datagram_is_cut_and_whole_by_tcp(mesh: Mesh) -> None:
    """Both ways: the host's resolver cuts its datagram for the edge, and we cut ours for the program."""
    server = await mesh.names(TABLE)
    assert await ask(mesh, "240.240.0.53", outside.NAME, 16, "udp") == [0, [], True]
    assert await ask(mesh, "240.240.0.53", outside.NAME, 16, "tcp") == [0, [251] * 12, False]
    await server.stop()


@in_mesh
async def test_a_silent_resolver_of_the_host_is_a_failure_and_not_a_hanging_program(mesh: Mesh) -> None:
    server = await mesh.names(TABLE)
    assert await ask(mesh, "240.240.0.53", "silent.example.com", 1, "udp") == [2, [], False]
    # One who is waited for keeps nobody else waiting.
    slow = asyncio.create_task(ask(mesh, "240.240.0.53", "silent.example.com", 1, "tcp"))
    assert await ask(mesh, "240.240.0.53", "reviews", 1, "udp") == [0, [REVIEWS], False]
    assert not slow.done()
    assert await slow == [2, [], False]
    await server.stop()


@in_mesh
async def test_a_name_that_nobody_has_is_told_once_as_the_program_said_it(mesh: Mesh) -> None:
    """Not the forms that the library makes of it, and nothing of names that exist."""
    server = await mesh.names(TABLE)
    names = ["nobody", "reviews", outside.NAME, "reviws.default.svc.cluster.local", "no-such.example.com"]
    found = await mesh.run("sh", "-c", 'for name; do getent ahosts "$name" | head -1; done', "sh", *names)
    assert found.output.count("STREAM") == 2, found.output
    async with asyncio.timeout(20):
        while len(mesh.unknown) < 3:
            await asyncio.sleep(0.02)
    await server.stop()
    assert mesh.unknown == [(names[index], "NXDOMAIN") for index in (0, 3, 4)]


MUSL = """
import json, socket, struct, sys
# As musl's res_msend.c: A and AAAA leave together from one unconnected socket, to every server of resolv.conf; an answer
# must come from a server that was asked; NXDOMAIN to either is the end of the name.
servers = [(l.split()[1], 53) for l in open("/etc/resolv.conf") if l.startswith("nameserver")]
def query(identity, kind):
    name = b"".join(bytes([len(l)]) + l.encode() for l in sys.argv[1].split(".")) + b"\\0"
    return struct.pack("!6H", identity, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", kind, 1)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 0)); s.settimeout(5)
for server in servers:
    for identity, kind in ((1, 1), (2, 28)): s.sendto(query(identity, kind), server)
addresses, seen = [], set()
while len(seen) < 2:
    answer, sender = s.recvfrom(512)
    assert sender in servers, sender
    identity, flags, _, count = struct.unpack_from("!4H", answer)
    assert flags & 15 == 0, f"code {flags & 15} ends the name"
    if identity not in seen and count: addresses.append(socket.inet_ntoa(answer[-4:]))
    seen.add(identity)
print(json.dumps(addresses))
"""


@in_mesh
async def test_a_resolver_like_musls(mesh: Mesh) -> None:
    server = await mesh.names(TABLE)
    for name in ("reviews", "reviews.default", "reviews.default.svc.cluster.local"):
        assert parsed(await mesh.python(MUSL, name)) == [REVIEWS]
    await server.stop()


@in_mesh
async def test_node_with_getaddrinfo_and_with_c_ares(mesh: Mesh) -> None:
    node = program_or_skip("node", "nodejs")
    server = await mesh.names(TABLE)
    source = """
const dns = require("dns").promises;
(async () => console.log(JSON.stringify([
    (await dns.lookup("reviews")).address, await dns.resolve4("reviews.default.svc.cluster.local"),
    await dns.resolve4("www.example.com"), await dns.reverse("240.240.0.3"), dns.getServers()])))();
"""
    found = parsed(await mesh.run(node, "-e", source))
    assert found == [REVIEWS, [REVIEWS], [outside.ADDRESS], ["reviews.default.svc.cluster.local"], ["240.240.0.53"]]
    await server.stop()


GO = """
package main
import ("context"; "encoding/json"; "net"; "os")
func main() {
    r := &net.Resolver{PreferGo: true}
    found := [][]string{}
    for _, name := range os.Args[1:] {
        addresses, err := r.LookupHost(context.Background(), name)
        if err != nil { addresses = []string{err.Error()} }
        found = append(found, addresses)
    }
    json.NewEncoder(os.Stdout).Encode(found)
}
"""


@in_mesh
async def test_the_resolver_of_go_in_a_static_binary(mesh: Mesh) -> None:
    go = program_or_skip("go", "Go (https://go.dev/dl)")
    server = await mesh.names(TABLE)
    source, program = mesh.place / "names.go", mesh.place / "names"
    source.write_text(GO)
    cache = mesh.place / "cache"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(cache), "GOPATH": str(cache), "GO111MODULE": "off"}
    subprocess.run([go, "build", "-p", "2", "-o", program, source], env=environment, check=True)
    found = parsed(await mesh.run(str(program), "reviews", "reviews.default", outside.NAME, "localhost"))
    assert found[:2] == [[REVIEWS], [REVIEWS]]
    assert sorted(found[2]) == sorted([outside.ADDRESS, outside.ADDRESS6])
    assert "127.0.0.1" in found[3]
    await server.stop()


@in_mesh
async def test_a_new_table_holds_from_the_next_question(mesh: Mesh) -> None:
    server = await mesh.names(TABLE)
    server._names.replace({"reviews.default.svc.cluster.local": ["240.240.0.99"]})
    assert await ask(mesh, "240.240.0.53", "reviews", 1, "udp") == [0, ["240.240.0.99"], False]
    assert await ask(mesh, "240.240.0.53", "ratings.other.svc.cluster.local", 1, "udp") == [3, [], False]
    await server.stop()


@in_mesh
async def test_a_program_knows_itself_by_its_own_name(mesh: Mesh) -> None:
    server = await mesh.names(TABLE)
    source = """
import json, socket
own = [socket.gethostbyname(name) for name in (socket.gethostname(), "cart-v1-0", "localhost")]
print(json.dumps([own, socket.gethostbyaddr("10.244.0.7")[0], socket.getnameinfo(("240.240.0.3", 80), 0)[0]]))
"""
    own, name, service = parsed(await mesh.python(source))
    assert own == ["10.244.0.7", "10.244.0.7", "127.0.0.1"]
    assert name == "cart-v1-0"
    assert service == "reviews.default.svc.cluster.local"
    await server.stop()
