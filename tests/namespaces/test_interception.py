"""Whatever program opens a connection, it arrives at the proxy with the address that was dialled."""

from __future__ import annotations

import asyncio
import functools
import socket
import subprocess
import sys

import pytest

from tests.conftest import program_or_skip
from tests.namespaces import outside
from tests.namespaces.harness import SERVICE_ADDRESS, Mesh, in_mesh, parsed, until
from weft.agent import sockets

pytestmark = pytest.mark.timeout(90)

URL = f"http://{SERVICE_ADDRESS}:9080/reviews/0"
CAUGHT = f"caught /reviews/0 for {SERVICE_ADDRESS} 9080\n"


@in_mesh
async def test_a_python_program_is_caught(mesh: Mesh) -> None:
    await mesh.catch()
    outcome = await mesh.python(f"import urllib.request as r; print(r.urlopen('{URL}').read().decode(), end='')")
    assert (outcome.code, outcome.output) == (0, CAUGHT)
    assert mesh.caught == [(SERVICE_ADDRESS, 9080)]


@in_mesh
async def test_a_node_program_is_caught(mesh: Mesh) -> None:
    node = program_or_skip("node", "nodejs")
    await mesh.catch()
    outcome = await mesh.run(node, "-e", f"fetch('{URL}').then(r => r.text()).then(t => process.stdout.write(t))")
    assert (outcome.code, outcome.output) == (0, CAUGHT)


STATIC_C = """
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9080)};
    inet_pton(AF_INET, "240.240.0.3", &to.sin_addr);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(s, (struct sockaddr *)&to, sizeof to)) { perror("connect"); return 1; }
    const char *request = "GET /reviews/0 HTTP/1.1\\r\\nHost: reviews\\r\\n\\r\\n";
    if (write(s, request, strlen(request)) < 0) return 2;
    char buffer[4096];
    for (ssize_t n; (n = read(s, buffer, sizeof buffer)) > 0;) if (write(1, buffer, n) < 0) return 3;
    return 0;
}
"""


@in_mesh
async def test_a_static_binary_is_caught(mesh: Mesh) -> None:
    source, program = mesh.place / "client.c", mesh.place / "client"
    source.write_text(STATIC_C)
    subprocess.run(["cc", "-static", "-o", program, source], check=True)
    assert b"interpreter" not in subprocess.run(["readelf", "-l", program], capture_output=True, check=True).stdout
    await mesh.catch()
    outcome = await mesh.run(str(program))
    assert outcome.code == 0
    assert outcome.output.endswith(CAUGHT)


@in_mesh
async def test_ipv6_is_caught(mesh: Mesh) -> None:
    await mesh.catch()
    outcome = await mesh.python(
        "import urllib.request as r; print(r.urlopen('http://[2001:db8::99]:81/x').read().decode())"
    )
    assert "caught /x for 2001:db8::99 81" in outcome.output


@in_mesh
async def test_an_ipv6_socket_that_dials_ipv4_is_caught(mesh: Mesh) -> None:
    """Java dials ::ffff:a.b.c.d by default."""
    await mesh.catch()
    source = f"""
import socket
s = socket.socket(socket.AF_INET6)
s.connect(("::ffff:{SERVICE_ADDRESS}", 9080))
s.sendall(b"GET /mapped HTTP/1.1\\r\\n\\r\\n")
print(s.makefile().read())
"""
    outcome = await mesh.python(source)
    assert f"caught /mapped for {SERVICE_ADDRESS} 9080" in outcome.output


@in_mesh
async def test_a_program_sees_the_address_that_it_dialled_and_its_own(mesh: Mesh) -> None:
    await mesh.catch()
    source = f"""
import json, socket
s = socket.create_connection(("{SERVICE_ADDRESS}", 9080))
print(json.dumps([s.getpeername(), s.getsockname()[0]]))
"""
    assert parsed(await mesh.python(source)) == [[SERVICE_ADDRESS, 9080], "10.244.0.7"]


@in_mesh
async def test_a_program_that_binds_the_port_it_calls_is_caught_too(mesh: Mesh) -> None:
    """It listens on 9080 and calls others on 9080; SO_REUSEADDR is on, as in every server framework."""
    await mesh.catch()
    source = f"""
import socket, urllib.request
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", 9080)); s.listen()
for _ in range(20):
    print(urllib.request.urlopen("{URL}").read().decode(), end="")
s2 = socket.socket()
s2.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.close()
s2.bind(("0.0.0.0", 9080)); s2.listen()
"""
    outcome = await mesh.python(source)
    assert (outcome.code, outcome.output) == (0, CAUGHT * 20)


@in_mesh
async def test_port_80_is_bound_without_privilege(mesh: Mesh) -> None:
    source = "import socket; s = socket.socket(); s.bind(('0.0.0.0', 80)); s.listen(); print('bound')"
    outcome = await mesh.python(source)
    assert (outcome.code, outcome.output) == (0, "bound\n")


SERVE = """
import socket, sys
family, address = (socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET), sys.argv[1]
s = socket.socket(family)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if len(sys.argv) > 2: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
s.bind((socket.gethostname() if address == "own name" else address, 9080)); s.listen()
c, _ = s.accept()
c.sendall(b"hello from " + sys.argv[1].encode()); c.close()
"""


def _binds(name: str, arguments: list[str], expected: str) -> None:
    """Define a test: a program that binds *arguments*[0] is found at *expected* and answers there."""

    async def body(mesh: Mesh) -> None:
        await mesh.catch()  # as in a real mesh: what is wrongly caught would be answered by this
        program, _output = await mesh.spawn([sys.executable, "-c", SERVE, *arguments])
        await until(lambda: mesh.workload.listening().get(9080))
        assert mesh.workload.listening() == {9080: expected}
        family = socket.AF_INET6 if ":" in expected else socket.AF_INET
        dialled = mesh.workload.run(functools.partial(socket.socket, family))
        dialled.setblocking(False)
        await asyncio.get_running_loop().sock_connect(dialled, (expected, 9080))
        assert await asyncio.get_running_loop().sock_recv(dialled, 100) == b"hello from " + arguments[0].encode()
        dialled.close()
        assert await program.wait() == 0
        assert mesh.workload.listening() == {}

    body.__name__, body.__module__ = name, __name__
    body.__doc__ = f"A program that binds {arguments[0]} is dialled at {expected}."
    globals()[name] = in_mesh(body)


_binds("test_a_program_that_binds_127_0_0_1_is_reached", ["127.0.0.1"], "127.0.0.1")
_binds("test_a_program_that_binds_ipv6_loopback_is_reached", ["::1"], "::1")
_binds("test_a_program_that_binds_0_0_0_0_is_reached", ["0.0.0.0"], "127.0.0.1")
_binds("test_a_program_that_binds_the_dual_wildcard_is_reached", ["::"], "127.0.0.1")
_binds("test_a_program_that_binds_the_ipv6_wildcard_is_reached", ["::", "only"], "::1")
_binds("test_a_program_that_binds_its_own_name_is_reached", ["own name"], "10.244.0.7")
_binds("test_a_program_that_binds_its_workload_name_is_reached", ["cart-v1-0"], "10.244.0.7")
_binds("test_a_program_that_binds_its_ipv6_address_is_reached", ["fd77:ef7::7"], "fd77:ef7::7")
_binds("test_a_program_that_binds_its_service_address_is_reached", [SERVICE_ADDRESS], SERVICE_ADDRESS)


@in_mesh
async def test_a_listener_is_found_without_sock_diag_too(mesh: Mesh) -> None:
    """Some kernels have no tcp_diag; /proc then says the same."""

    program, _output = await mesh.spawn([sys.executable, "-c", SERVE, "127.0.0.1"])
    await until(lambda: mesh.workload.listening().get(9080))
    found = mesh.workload.run(sockets.listeners_of_proc)
    assert [(str(one.address), one.port) for one in found] == [("127.0.0.1", 9080)]
    program.kill()
    await program.wait()


@in_mesh
async def test_a_program_talks_to_itself_without_the_proxy(mesh: Mesh) -> None:
    await mesh.catch()
    source = """
import socket
for address in ("127.0.0.1", "::1", "10.244.0.7", "fd77:ef7::7", "127.4.4.4"):
    s = socket.create_server((address, 7000), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    c = socket.create_connection((address, 7000)); a, _ = s.accept()
    c.sendall(b"self"); assert a.recv(4) == b"self"
    for x in (s, c, a): x.close()
    u = socket.socket(s.family, socket.SOCK_DGRAM); u.bind((address, 7001))
    v = socket.socket(s.family, socket.SOCK_DGRAM); v.sendto(b"udp", (address, 7001)); assert u.recv(3) == b"udp"
    u.close(); v.close()
print("done")
"""
    outcome = await mesh.python(source)
    assert (outcome.code, outcome.output) == (0, "done\n")
    assert mesh.caught == []
    assert mesh.workload.refused_udp() == {}


@in_mesh
async def test_without_a_proxy_a_call_is_refused_and_never_ends_at_the_program_itself(mesh: Mesh) -> None:
    """Every address is local in its namespace, so its own wildcard listener would take the call."""
    source = f"""
import socket
s = socket.create_server(("0.0.0.0", 9080))
try: socket.create_connection(("{SERVICE_ADDRESS}", 9080), timeout=5)
except ConnectionRefusedError: print("refused")
"""
    outcome = await mesh.python(source)
    assert (outcome.code, outcome.output) == (0, "refused\n")


@in_mesh
async def test_https_to_outside_the_mesh(mesh: Mesh) -> None:
    """The name is the host's resolver's, the address is the internet's, the handshake is the program's own."""
    server = await mesh.names({})
    await mesh.relay()
    source = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
print(urllib.request.urlopen("https://www.example.com/", context=context).read().decode(), end="")
"""
    outcome = await mesh.python(source, str(mesh.place / "outside.pem"))
    assert (outcome.code, outcome.output) == (0, "the internet\n")
    assert mesh.caught[0][1] == 443
    assert mesh.caught[0][0] in (outside.ADDRESS, outside.ADDRESS6)
    await server.stop()


@in_mesh
async def test_https_by_ipv6_to_outside_the_mesh(mesh: Mesh) -> None:
    await mesh.relay()
    source = """
import socket, ssl, sys
raw = socket.create_connection(("2001:db8::34", 443))
s = ssl.create_default_context(cafile=sys.argv[1]).wrap_socket(raw, server_hostname="www.example.com")
s.sendall(b"GET / HTTP/1.1\\r\\nHost: www.example.com\\r\\n\\r\\n")
print(s.makefile().read())
"""
    outcome = await mesh.python(source, str(mesh.place / "outside.pem"))
    assert outcome.code == 0
    assert "the internet" in outcome.output
    assert mesh.caught == [(outside.ADDRESS6, 443)]


UDP = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
s.settimeout(5)
for _ in range(3):
    s.send(b"datagram")
    try: s.recv(10)
    except ConnectionRefusedError: print("refused")
"""


@in_mesh
async def test_udp_other_than_dns_is_refused_with_a_sentence_and_counted(mesh: Mesh) -> None:
    from weft.agent.udp import RefusedUdp

    mesh.make_workload()
    refused = RefusedUdp(mesh.workload)
    assert refused.poll() == {}
    for address in ("8.8.8.8", "2001:db8::99"):
        outcome = await mesh.python(UDP, address, "443")
        assert (outcome.code, outcome.output) == (0, "refused\n" * 3)
    assert refused.counts == {}
    told = refused.poll()
    assert {sentence.split(" was refused")[0]: count for sentence, count in told.items()} == {
        "UDP to [2001:db8::99]:443": 3,
        "UDP to 8.8.8.8:443": 3,
    }
    assert refused.counts == {("8.8.8.8", 443): 3, ("2001:db8::99", 443): 3}
    assert (await mesh.python(UDP, "8.8.8.8", "443")).output == "refused\n" * 3
    assert list(refused.poll().values()) == [6], "only the count that has grown"
    assert refused.poll() == {}


DATABASE = """
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
    s.sendall(b"select\\n"); print(s.makefile().readline(), end="")
except OSError as error: print(type(error).__name__)
"""


@in_mesh
async def test_a_database_on_the_hosts_localhost_is_reached_when_said(mesh: Mesh) -> None:
    from weft.agent import edge

    mesh.make_workload(host_ports=[5432])
    await mesh.relay()
    granted = await edge.grant(mesh.paths.edge_socket, mesh.workload.workload, [5432])
    assert (await mesh.python(DATABASE, "127.0.0.1", "5432")).output == "database says select\n"
    assert (await mesh.python(DATABASE, "localhost", "5432")).output == "database says select\n"
    granted.close()
    assert mesh.workload.refused_loopback() == {}


@in_mesh
async def test_the_hosts_ports_are_none_of_the_programs(mesh: Mesh) -> None:
    """The proxy has them on the program's loopback; what the program itself binds there is another address."""
    network = mesh.make_workload(host_ports=[5432, 6379])

    def stand(*places: tuple[str, int]) -> list[socket.socket]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address, _ in places]
        return [socket.create_server(place, family=family) for place, family in zip(places, families, strict=True)]

    proxys = network.run(lambda: stand(("127.0.0.1", 5432), ("::1", 5432), ("127.0.0.1", 6379)))
    assert network.listening() == {}
    programs = network.run(lambda: stand(("127.0.0.1", 8000), (network.address, 6379)))
    assert network.listening() == {8000: "127.0.0.1", 6379: network.address}
    for listener in (*proxys, *programs):
        listener.close()


@in_mesh
async def test_a_database_on_the_hosts_localhost_is_hinted_at_when_not_said(mesh: Mesh) -> None:
    from weft.agent import edge

    await mesh.relay()
    for address in ("127.0.0.1", "::1"):
        assert (await mesh.python(DATABASE, address, "5432")).output == "ConnectionRefusedError\n"
    assert (await mesh.python(DATABASE, "127.0.0.1", "9999")).output == "ConnectionRefusedError\n"
    assert mesh.workload.refused_loopback() == {5432: 2, 9999: 1}
    assert await edge.host_listening(mesh.paths.edge_socket, 5432)
    assert not await edge.host_listening(mesh.paths.edge_socket, 9999)


@in_mesh
async def test_a_loopback_connection_that_succeeds_is_no_reason_for_a_hint(mesh: Mesh) -> None:
    mesh.make_workload()
    source = (
        "import socket; s = socket.create_server(('127.0.0.1', 5432)); socket.create_connection(('127.0.0.1', 5432))"
    )
    assert (await mesh.python(source)).code == 0
    assert mesh.workload.refused_loopback() == {}


@in_mesh
async def test_other_protocols_are_refused_and_no_answer_is_made_up(mesh: Mesh) -> None:
    """Every address is local, so without a rule the program's own kernel would answer a ping to anywhere."""
    mesh.make_workload()
    raw = mesh.workload.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    raw.setblocking(False)
    echo = b"\x08\0" + (0xFFFF - 0x0800 - 0x0101).to_bytes(2, "big") + b"\x01\x01\0\0"
    raw.sendto(echo, ("8.8.8.8", 0))
    answers = []
    while not answers or answers[-1][:1] == b"\x08":  # a raw socket sees the question too
        answers.append((await asyncio.get_running_loop().sock_recv(raw, 1000))[20:])
    assert answers[-1][:2] == b"\x03\x0d", "destination unreachable, administratively prohibited"
    raw.close()


@in_mesh
async def test_unix_sockets_with_a_path_are_the_hosts_and_abstract_ones_are_not(mesh: Mesh) -> None:
    """What the page "what is not caught" says of them."""
    path = mesh.place / "database.sock"
    with socket.socket(socket.AF_UNIX) as by_path, socket.socket(socket.AF_UNIX) as abstract:
        by_path.bind(str(path))
        abstract.bind("\0database")
        by_path.listen()
        abstract.listen()
        source = """
import socket, sys
for address in (sys.argv[1], "\\0database"):
    try: socket.socket(socket.AF_UNIX).connect(address); print("connected")
    except OSError as error: print(error.strerror)
"""
        outcome = await mesh.python(source, str(path))
    assert outcome.output == "connected\nConnection refused\n"
