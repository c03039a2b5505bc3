"""
Explicit mode: a program in the host's own network, told by its environment whom to call and where to listen.

What namespaces do elsewhere is done by agreement here: the program listens at HOST and PORT, for its proxy has the
published port, and calls addresses of its own for each service, or the HTTP proxy. What it does instead is seen from
the kernel's table of sockets and said by name. The addresses are `weft.model.loopback`'s.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any
from zlib import crc32

from weft.agent import forward_proxies, sockets
from weft.errors import ModeUnavailable, UsageError, WeftError
from weft.model import loopback

USER = "weft"
"""The user name in the HTTP proxy's URL; the secret is its password."""

FIRST_PORT, LAST_PORT = 20000, 32767
"""Of the ports for programs: below the range from which the kernel takes ports for outgoing connections."""

FIRST_RANGE, LAST_RANGE = 64, 191
"""Of the second byte of a mesh's range: far from 127.0.0.1 and what distributions put beside it."""

CLAIM_PORT = 15000
"""`weft up` holds this port of its range's first address, so that no other mesh of the machine takes the range."""


# --- the mesh ---


def check_ranges(workloads: str, services: str) -> None:
    """
    Check the `addresses` of weft.yaml for explicit mode; empty ones are weft's to choose.

    Raises:
        UsageError: One cannot be used: an address of the loopback is made of both (`weft.model.loopback`).
    """
    if workloads:
        network = IPv4Network(workloads)
        if network.prefixlen != loopback.RANGE_PREFIX or not network.subnet_of(loopback.LOOPBACK):
            raise UsageError(
                f"`addresses.workloads` is {workloads}; in explicit mode it is a /{loopback.RANGE_PREFIX} of the loopback,"
                " such as 127.77.0.0/16, or left out."
            )
    if services and IPv4Network(services).num_addresses != loopback.WORKLOAD_ADDRESSES:
        raise UsageError(
            f"`addresses.services` is {services}; in explicit mode it is a /24, such as {loopback.SERVICE_CIDR}, or left out."
        )


def claim_range(mesh: str, wanted: str = "") -> tuple[str, socket.socket]:
    """
    Take a range of the loopback for *mesh*.

    Args:
        wanted: The range that weft.yaml names; empty lets weft choose, the same for the same name if it is free.

    Returns:
        The range, and what holds it: whoever closes it, or ends, gives it back.

    Raises:
        WeftError: *wanted* is another mesh's, or none is left.
        ModeUnavailable: Addresses of 127.0.0.0/8 cannot be bound here.
    """
    if wanted:
        claim = _claim(wanted)
        if claim is None:
            raise WeftError(f"The range {wanted} of weft.yaml is another mesh's on this machine.")
        return wanted, claim
    count = LAST_RANGE - FIRST_RANGE + 1
    start = crc32(f"{os.getuid()}/{mesh}".encode()) % count
    for step in range(count):
        candidate = f"127.{FIRST_RANGE + (start + step) % count}.0.0/{loopback.RANGE_PREFIX}"
        if (claim := _claim(candidate)) is not None:
            return candidate, claim
    raise WeftError(f"All {count} ranges of the loopback are taken by meshes of this machine.")


def _claim(cidr: str) -> socket.socket | None:
    first = str(IPv4Address(cidr.partition("/")[0]) + 1)
    claim = socket.socket()
    try:
        claim.bind((first, CLAIM_PORT))  # never listening: nobody can connect
    except OSError as error:
        claim.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise ModeUnavailable(
            f"Explicit mode needs addresses of the loopback, and {first} cannot be bound: {error.strerror}."
        ) from error
    return claim


# --- one program ---


@dataclass(frozen=True, slots=True)
class Credential:
    """What the program shows to its HTTP proxy; new with each start of its agent."""

    secret: str = field(default_factory=lambda: base64.urlsafe_b64encode(secrets.token_bytes(24)).decode(), repr=False)

    def local_caller(self) -> dict[str, Any]:
        """Return what the control plane is told (docs/reference/interfaces.md, 4.2): never the secret itself."""
        return {"uid": os.getuid(), "credential_sha256": hashlib.sha256(f"{USER}:{self.secret}".encode()).hexdigest()}


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where one program lives in explicit mode.

    Attributes:
        workload: Its name.
        address: The workload's address, where its proxy is.
        host: The address that the program is to bind.
        ports: Declared port -> the port that the program is to bind for it.
        services: What it may call: `name`, `namespace`, `address`, `ports` of each service.
    """

    workload: str
    address: str
    namespace: str
    credential: Credential
    ports: Mapping[int, int]
    services: Sequence[Mapping[str, Any]]

    @property
    def host(self) -> str:
        return loopback.program_address(self.address)

    @property
    def proxy_url(self) -> str:
        """The HTTP proxy, with the secret."""
        return f"http://{USER}:{self.credential.secret}@{self.address}:{loopback.FORWARD_PROXY_PORT}"

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """
        Return the variables that the program gets beside *given*, its own; they win over those.

        HTTPS_PROXY is left alone: a proxy sees nothing of https but a name, and other programs' proxies stay in use.
        """
        found = {"HTTP_PROXY": self.proxy_url, "http_proxy": self.proxy_url}
        found |= forward_proxies.exempt(given, ("localhost", "127.0.0.1", "::1"))
        if self.ports:
            found["HOST"], found["PORT"] = self.host, str(next(iter(self.ports.values())))
            found |= {f"PORT_{number}": str(bound) for number, bound in self.ports.items()}
        for service in self.services:
            if service["namespace"] == self.namespace:
                found |= _service_variables(service)
        return found

    def look(self, pids: Iterable[int]) -> Look:
        """Return where the processes *pids* listen, by the declared ports."""
        own = sockets.inodes_of(pids)
        listening = [listener for listener in sockets.listeners() if listener.inode in own]
        found: dict[int, tuple[str, int]] = {}
        for number, bound in self.ports.items():
            # Where it was told to listen; or on the declared port itself, at an address that is nobody else's.
            for port in (bound, number):
                addresses = [sockets.dialled(listener) for listener in listening if listener.port == port]
                if addresses:
                    found[number] = (min(addresses, key=lambda address: address != "127.0.0.1"), port)
                    break
        places = tuple(f"{listener.address}:{listener.port}" for listener in listening)
        return Look(found, places, tuple(each.port for each in listening if _is_open(each.address)))


@dataclass(frozen=True, slots=True)
class Look:
    """
    Where a program listens at one moment.

    Attributes:
        found: Declared port -> (address, port) at which it is reached.
        places: Every place where it listens.
        exposed: Ports on which others than this machine can reach it.
    """

    found: Mapping[int, tuple[str, int]]
    places: tuple[str, ...] = ()
    exposed: tuple[int, ...] = ()


def _is_open(address: IPv4Address | IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return not (mapped or address).is_loopback


def _service_variables(service: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of one service, named as Kubernetes names them."""
    host = loopback.service_variable(service["name"])
    found = {host: service["address"]}
    stem = host.removesuffix("_HOST")
    for index, port in enumerate(service["ports"]):
        if index == 0:
            found[f"{stem}_PORT"] = str(port["number"])
        found[f"{stem}_PORT_{re.sub(r'[^A-Z0-9]', '_', port['name'].upper())}"] = str(port["number"])
    return found


def choose_ports(workload: str, declared: Sequence[int]) -> dict[int, int]:
    """
    Return a free port for each of *declared*: one that can be bound on every address, as many programs do.

    Raises:
        WeftError: There is none.
    """
    candidates = _candidates(workload)
    return {number: next(candidates) for number in declared}


def _candidates(workload: str) -> Iterator[int]:
    count = LAST_PORT - FIRST_PORT + 1
    # Not the first free one: programs that start at the same moment would all choose it.
    start = crc32(f"{os.getuid()}/{workload}/{os.getpid()}".encode()) % count
    for step in range(count):
        port = FIRST_PORT + (start + step) % count
        if _is_free(port):
            yield port
    raise WeftError(f"No port from {FIRST_PORT} to {LAST_PORT} is free for the program to listen on.")


def _is_free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family) as probe:
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False  # other errors: no IPv6 here
    return True


# --- what is said of programs that do otherwise ---


def remedy(place: Place, number: int) -> str:
    """Return what makes a program listen where its proxy calls it."""
    variable = "PORT" if number == next(iter(place.ports)) else f"PORT_{number}"
    return (
        f"In explicit mode the proxy has port {number}, and the program is to listen at the address in HOST and the port"
        f" in {variable} (now {place.host}:{place.ports[number]}). If it takes them as arguments, let a shell put them in:"
        f' `command: "./app --listen $HOST:${variable}"` in weft.yaml, or `weft run ... -- sh -c'
        f" './app --listen $HOST:${variable}'`."
    )


def misplaced(place: Place, look: Look) -> str:
    """Return what to say of a program that listens, and not where it was told; empty if there is nothing to say."""
    missing = [number for number in place.ports if number not in look.found]
    if not missing or not look.places:
        return ""
    return f"{place.workload} listens at {', '.join(look.places)}, which nobody calls. {remedy(place, missing[0])}"


_TAKEN = re.compile(r"\b(?:address|port|connection|socket)\b.{0,80}\bin use\b|\bEADDRINUSE\b", re.IGNORECASE)
"""How libraries and frameworks say that they could not bind."""

_PORT = re.compile(r"(?:(?<!\d\d)(?<!\.[a-z]{2}):|\bport |', )(\d{1,5})\b", re.IGNORECASE)
"""A port where an address is written; neither the minutes of a time of day nor the line of a source file."""


def collided(place: Place, listened: Collection[int], last: Sequence[str]) -> str:
    """
    Return what to say of a program that failed before it listened where its proxy calls it; empty if no port is to blame.

    The kernel's table of sockets decides: it shows which ports the program never had, and that its proxy has them. It does
    not show what a program tried. So the text names the port, if it does, or another one that is nothing of the mesh's;
    and where it says nothing of ports, nothing is claimed.

    Args:
        listened: Declared ports for which the program was found listening.
        last: The last lines that it wrote; none where it has the terminal.
    """
    held = {listener.port for listener in sockets.listeners() if str(listener.address) == place.address}
    taken = [number for number in place.ports if number in held and number not in listened]
    if not taken:
        return ""
    complaints = [line for line in last if _TAKEN.search(line)]
    named = [number for number in taken if any(re.search(rf"\b{number}\b", line) for line in complaints or last)]
    number = (named or taken)[0]
    if not complaints:
        return (
            f"{place.workload} ended before it listened where its proxy calls it. If it tried port {number}: that is taken,"
            f" by its proxy. {remedy(place, number)}"
        )
    if named:
        return f"{place.workload} ended because port {number} is taken: by its proxy. {remedy(place, number)}"
    if any(_PORT.search(line) for line in complaints):
        return ""  # a port that it has not declared
    return (
        f"{place.workload} ended because a port is taken, most likely {number}: by its proxy. {remedy(place, number)}"
    )


def exposed(place: Place, look: Look) -> str:
    """Return what to say of a program that can be called past its proxy."""
    ports = ", ".join(map(str, sorted(set(look.exposed))))
    return (
        f"{place.workload} listens on every address of this machine (port {ports}): others can call it there without its"
        f" proxy, so without identity or rules. Let it listen at the address in HOST ({place.host})."
    )
