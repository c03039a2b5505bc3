"""
The namespaces of a mesh: one user, network and mount namespace for the mesh, one network namespace for each program.

`weft up` forks the holder, which calls `MeshNamespaces.create`; each agent calls `MeshNamespaces.join` and then
`ProgramNamespaces.create`. The program itself is started by `weft.agent.init.spawn`, which adds its mount and PID namespace.
No external program is called and no thread is started: a user namespace can only be made by a single-threaded process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from weft.agent import capabilities, netlink, nftables, sockets, syscalls
from weft.errors import MeshNotRunning, ModeUnavailable, WeftError
from weft.model.reserved import DNS_PORT, OUTBOUND_PORT, RESERVED_PORTS

if TYPE_CHECKING:
    from weft.agent.paths import MeshPaths

Result = TypeVar("Result")

MESH_CIDRS = ("10.244.0.0/16", "10.245.0.0/16", "172.30.0.0/16", "10.99.0.0/16", "198.18.0.0/16", "100.96.0.0/16")
"""Where workload addresses may come from, in order of preference; 198.18.0.0/15 (RFC 2544) is nobody's network."""

WIDEST_NETWORK = 8
"""
Prefix length of the widest range that is somebody's network: 10.0.0.0/8 (RFC 1918). What is wider is a default route:
VPNs take all traffic by 0.0.0.0/1 and 128.0.0.0/1, and so leave the route alone that leads to their server.
"""

_OWN_NETWORK = "/proc/thread-self/ns/net"
_LOOPBACK_INDEX = 1  # of every network namespace
_INTERFACE = "eth0"

# What a program's namespace needs. Unwritable where /proc/sys is read-only (some containers): said in `limits`.
_PROGRAM_SYSCTLS = (
    ("net/ipv4/ip_unprivileged_port_start", "0", "the program cannot bind ports below 1024"),
    ("net/ipv4/tcp_tw_reuse", "1", "programs that open many short connections run out of ports sooner"),
)
_MESH_SYSCTLS = (
    ("net/ipv4/ip_unprivileged_port_start", "0", "gateways cannot bind ports below 1024"),
    ("net/ipv4/tcp_tw_reuse", "1", "proxies that open many short connections run out of ports sooner"),
)


def choose_cidr(candidates: Sequence[str] = MESH_CIDRS) -> IPv4Network:
    """
    The first of *candidates* that overlaps no route of the network namespace of the caller (the host's), default routes aside.

    Raises:
        ModeUnavailable: Every one of them overlaps a route.
    """
    with netlink.Netlink(netlink.NETLINK_ROUTE) as route:
        taken = [other for other in netlink.ipv4_routes(route) if other.prefixlen >= WIDEST_NETWORK]
    for candidate in candidates:
        network = IPv4Network(candidate)
        if not any(network.overlaps(other) for other in taken):
            return network
    raise ModeUnavailable(
        f"every address range that a mesh may use ({', '.join(candidates)}) meets a route of this host; name a free one in weft.yaml"
    )


def needs_user_namespace() -> bool:
    """Whether the caller lacks the capabilities to make network and mount namespaces directly (it is not real root)."""
    return os.geteuid() != 0 or not capabilities.holds(
        capabilities.SYS_ADMIN, capabilities.NET_ADMIN, capabilities.SETPCAP
    )


def in_namespace(namespace: int | str, call: Callable[[], Result]) -> Result:
    """
    Run *call* with the calling thread in another network namespace, and come back.

    A socket made there stays there. The caller needs CAP_SYS_ADMIN over both (an agent has it).

    Args:
        namespace: A descriptor or a path of an nsfs file.

    Raises:
        OSError: The namespace cannot be entered. Failure to come back ends the process.
    """
    home = os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC) if isinstance(namespace, str) else namespace
    try:
        syscalls.setns(target, syscalls.CLONE_NEWNET)
        try:
            return call()
        finally:
            _return_to(home)
    finally:
        os.close(home)
        if isinstance(namespace, str):
            os.close(target)


def _return_to(home: int) -> None:
    try:
        syscalls.setns(home, syscalls.CLONE_NEWNET)
    except OSError:
        # An agent in the wrong network would bind and dial there from now on. Its supervisor starts a new one.
        os.abort()


@dataclass(frozen=True, slots=True)
class MeshNamespaces:
    """
    What the mesh's processes share.

    Attributes:
        cidr: Whole range of workload addresses, local in the mesh network namespace.
        rootless: Whether there is a user namespace.
        limits: One sentence for each thing that this machine did not allow.
    """

    cidr: IPv4Network
    rootless: bool
    limits: tuple[str, ...] = ()

    @classmethod
    def create(cls, paths: MeshPaths, cidr: IPv4Network) -> MeshNamespaces:
        """
        Move the calling process into new mesh namespaces: user (unless real root), network, mount.

        The process must be single-threaded (freshly forked). Afterwards it holds all capabilities in its user namespace,
        `paths.namespaces` is a tmpfs, nothing mounted here is seen outside, and every address of *cidr* can be bound.
        The namespaces live as long as a process is in them.

        Raises:
            ModeUnavailable: The machine does not allow it; the message names obstacle and remedy.
        """
        rootless = needs_user_namespace()
        uid, gid = os.geteuid(), os.getegid()
        if rootless:
            with _needed("user namespace"):
                syscalls.unshare(syscalls.CLONE_NEWUSER)
            with _needed("identity map"):
                map_identity(uid, gid)
        with _needed("network namespace"):
            syscalls.unshare(syscalls.CLONE_NEWNET)
        with _needed("mount namespace"):
            syscalls.unshare(syscalls.CLONE_NEWNS)
            detach_mounts()
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount("weft", str(paths.namespaces), "tmpfs", flags, "mode=0700,size=1m")
        with netlink.Netlink(netlink.NETLINK_ROUTE) as route:
            with _needed("interface up"):
                netlink.set_up(route, _LOOPBACK_INDEX)
            with _needed("local route"):
                netlink.add_local_route(route, cidr, _LOOPBACK_INDEX)
        return cls(cidr, rootless, tuple(_write_sysctls(_MESH_SYSCTLS)))

    @staticmethod
    def join(holder_pid: int) -> None:
        """
        Move the calling process (single-threaded) into the mesh namespaces in which *holder_pid* is.

        Entering a user namespace clears PR_SET_PDEATHSIG: set it afterwards. The working directory is kept.

        Raises:
            MeshNotRunning: There is no such process.
            ModeUnavailable: It may not be entered.
        """
        try:
            join_process(holder_pid, ("user", "mnt", "net"))
        except (FileNotFoundError, ProcessLookupError) as error:
            raise MeshNotRunning(f"the process that holds the mesh's namespaces ({holder_pid}) is gone") from error
        except OSError as error:
            raise ModeUnavailable(f"the mesh's namespaces cannot be entered: {error.strerror}") from error


_KINDS = {
    "user": syscalls.CLONE_NEWUSER,
    "mnt": syscalls.CLONE_NEWNS,
    "net": syscalls.CLONE_NEWNET,
    "pid": syscalls.CLONE_NEWPID,
}


def join_process(pid: int, kinds: Sequence[str]) -> None:
    """
    Enter those namespaces of process *pid* in which the caller is not already; *kinds* in order, "user" first.

    Raises:
        OSError: ENOENT or ESRCH if there is no such process, EPERM if it may not be entered.
    """
    directory = os.getcwd()
    with contextlib.ExitStack() as stack:
        # All are opened before the first is entered: afterwards /proc may show another PID namespace.
        targets = []
        for kind in kinds:
            descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            # setns(2) into the user namespace in which one is already fails with EINVAL.
            if os.fstat(descriptor).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
                targets.append((kind, descriptor))
        for kind, descriptor in targets:
            syscalls.setns(descriptor, _KINDS[kind])
    # Entering a mount namespace leads to its root directory.
    with contextlib.suppress(OSError):
        os.chdir(directory)


def map_identity(uid: int, gid: int) -> None:
    """
    Let the new user namespace of the single-threaded caller know one user: the caller, as it is outside.

    Identity, and not root: PostgreSQL and Chromium refuse to run as root, and files keep their owner.

    Args:
        uid, gid: Its ids as they were before the namespace was made; since then they read as "nobody".

    Raises:
        OSError: The kernel, or a security module, refused a map.
    """
    # user_namespaces(7): without privilege, setgroups must be given up before a gid may be mapped.
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        write(f"/proc/self/{name}", line)


@contextlib.contextmanager
def _needed(step: str) -> Iterator[None]:
    """Turn a refusal of *step*, a trial of `doctor`, into words about this machine."""
    try:
        yield
    except OSError as error:
        from weft.agent import doctor  # only on failure: an agent need not carry it

        raise doctor.unavailable(error, step) from error


def detach_mounts() -> None:
    """Stop mounts made here from appearing elsewhere; what the host mounts and unmounts still happens here too."""
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)


class ProgramNamespaces:
    """
    The network namespace of one program, made and held by its agent, with everything that catches its traffic.

    Attributes:
        workload: Its name; `ns/<workload>` is the namespace's path in the mesh mount namespace.
        path: That path.
        address, address6: The program's own addresses; `address6` is empty where the kernel has no IPv6.
        descriptor: Keeps the namespace alive and can be given to `in_namespace`.
        limits: One sentence for each thing that this kernel did not allow (IPv6, say); empty on an ordinary one.
    """

    def __init__(self, workload: str, path: Path, address: str, address6: str) -> None:
        """Use `create`."""
        self.workload = workload
        self.path = path
        self.address = address
        self.address6 = address6
        self.descriptor = -1
        self.limits: tuple[str, ...] = ()
        self._rules: netlink.Netlink | None = None
        self._sockets: netlink.Netlink | None = None
        self._admitted: set[tuple[str, int]] = set()
        self._host_ports: frozenset[int] = frozenset()

    @classmethod
    def create(
        cls, paths: MeshPaths, workload: str, address: str, address6: str, *, host_ports: Iterable[int] = ()
    ) -> ProgramNamespaces:
        """
        Make the namespace and its bind mount; called in an agent, that is inside the mesh namespaces.

        Args:
            address: The workload's IPv4 address, as the control plane gave it.
            address6: Its IPv6 address.
            host_ports: Ports of the *host's* loopback that the program may reach on its own loopback; caught like outside addresses.

        Raises:
            ModeUnavailable: The kernel lacks a part (nf_tables, tproxy); the message names it.
            OSError: Anything else.
        """
        made = cls(workload, paths.workload(workload).namespace, address, address6)
        home = os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            try:
                made._host_ports = frozenset(host_ports)
                made._furnish()
            finally:
                _return_to(home)
        except (OSError, WeftError):
            made.close()
            raise
        finally:
            os.close(home)
        return made

    def _furnish(self) -> None:
        """Everything that is done inside the new namespace."""
        self.descriptor = os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
        limits = list(_write_sysctls(_PROGRAM_SYSCTLS))
        if not enable_ipv6():
            limits.append("the kernel has no IPv6 here: the program's IPv6 connections fail at once")
            self.address6 = ""
        with netlink.Netlink(netlink.NETLINK_ROUTE) as route:
            netlink.set_up(route, _LOOPBACK_INDEX)
            interface = add_interface(route)
            for own, everything in ((self.address, "0.0.0.0/0"), (self.address6, "::/0")):
                if own:
                    netlink.add_address(route, interface, own)
                    netlink.add_local_route(route, ip_network(everything), _LOOPBACK_INDEX, own)
        with _needed("nf_tables rules"):
            nftables.install(
                self.address,
                self.address6 or None,
                outbound_port=OUTBOUND_PORT,
                dns_port=DNS_PORT,
                host_ports=sorted(self._host_ports),
            )
        self._rules = netlink.Netlink(netlink.NETLINK_NETFILTER)
        self._sockets = netlink.Netlink(netlink.NETLINK_SOCK_DIAG)
        self.limits = tuple(limits)
        self._remove_mount()  # of an agent that was killed: nobody can open it as the file that it was made on
        self.path.touch(mode=0o600)
        syscalls.mount(_OWN_NETWORK, str(self.path), "", syscalls.MS_BIND)

    def run(self, call: Callable[[], Result]) -> Result:
        """`in_namespace` of this namespace: how the agent makes listening sockets that belong to the program's network."""
        return in_namespace(self.descriptor, call)

    def listening(self) -> dict[int, str]:
        """
        TCP ports on which the program listens, each with the address to dial from inside: 127.0.0.1 for a wildcard, ::1 for an
        IPv6-only one, otherwise the address it bound. Weft's own listeners are left out, the proxy's for the host's ports too.

        An address that is neither loopback nor the program's own is let through from here on (a program that bound its service's name).
        """
        found: dict[int, str] = {}
        for listener in self._listeners():
            if listener.port in RESERVED_PORTS:
                continue
            if listener.port in self._host_ports and str(listener.address) in ("127.0.0.1", "::1"):
                continue
            address = sockets.dialled(listener)
            if not self._is_own(address) and (address, listener.port) not in self._admitted:
                self.run(lambda address=address, port=listener.port: nftables.admit(address, port))  # type: ignore[misc]
                self._admitted.add((address, listener.port))
            # 127.0.0.1 before any other when a port is bound twice: the usual pair is 127.0.0.1 and ::1.
            if listener.port not in found or address == "127.0.0.1":
                found[listener.port] = address
        return found

    def _listeners(self) -> list[netlink.Listener]:
        assert self._sockets is not None, "the namespace is made"
        try:
            return netlink.tcp_listeners(self._sockets)
        except OSError as error:
            if not netlink.is_unsupported(error):
                raise
            return self.run(sockets.listeners_of_proc)

    def _is_own(self, address: str) -> bool:
        return address in (self.address, self.address6, "::1") or address.startswith("127.")

    def refused_loopback(self) -> dict[int, int]:
        """
        Ports of the program's own loopback that it tried to reach over TCP although nobody listened there, since the start, and
        how often.

        Together with the edge's `host_listening` this is what the hint about `host_ports` is made from.
        """
        assert self._rules is not None, "the namespace is made"
        return nftables.refused_loopback(self._rules)

    def refused_udp(self) -> dict[tuple[str, int], int]:
        """Destinations (address, port) of UDP datagrams that were refused, with their number, since the start."""
        assert self._rules is not None, "the namespace is made"
        return nftables.refused_udp(self._rules)

    def close(self) -> None:
        """Unmount `ns/<workload>` and let go; the namespace ends with its last process and socket. May be called twice."""
        for held in (self._rules, self._sockets):
            if held is not None:
                held.close()
        self._rules = self._sockets = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._remove_mount()

    def _remove_mount(self) -> None:
        with contextlib.suppress(OSError):  # EINVAL: it was never mounted; ENOENT: there is none
            syscalls.umount(str(self.path))
        self.path.unlink(missing_ok=True)


def add_interface(route: netlink.Netlink) -> int:
    """
    Add an interface that is not the loopback, for programs that look for one (some Java programs), and return its index.

    It carries the addresses and never a packet: every route leads to the loopback. Where the kernel has neither kind, the
    loopback carries the addresses.
    """
    with contextlib.suppress(OSError):  # no IPv6, or /proc/sys is read-only: it then has a link-local address too
        write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1")
    kinds: tuple[Callable[[], None], ...] = (
        lambda: netlink.add_dummy(route, _INTERFACE),
        lambda: netlink.add_veth(route, _INTERFACE, "weft0"),
    )
    for add in kinds:
        try:
            add()
        except OSError as error:
            if not netlink.is_unsupported(error):
                raise
            continue
        index = socket.if_nametoindex(_INTERFACE)
        netlink.set_up(route, index)
        with contextlib.suppress(OSError):  # a dummy has no other end
            netlink.set_up(route, socket.if_nametoindex("weft0"))
        return index
    return _LOOPBACK_INDEX


def enable_ipv6() -> bool:
    """Switch IPv6 on in the calling thread's new namespace; False where the kernel has none or keeps it off."""
    try:
        for scope in ("all", "default", "lo"):
            path = f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"
            if Path(path).read_text().strip() != "0":
                write(path, "0")
        # Listeners on all addresses of a family must also take those that are only local by route.
        write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1")
    except FileNotFoundError:
        return False
    except OSError:
        return Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text().strip() == "0"
    return True


def _write_sysctls(table: Sequence[tuple[str, str, str]]) -> Iterable[str]:
    """Write each sysctl of the calling thread's network namespace; yields a sentence for each that cannot be."""
    for name, value, consequence in table:
        try:
            write(f"/proc/sys/{name}", value)
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            yield f"/proc/sys/{name} is not writable here ({error.strerror}): {consequence}"


def write(path: str, text: str) -> None:
    """Write *text* to a file of /proc with one call, as those files want it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
