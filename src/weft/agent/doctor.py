"""
What this machine allows, found out by doing it, and for what it does not allow: the obstacle by name and the remedy.

`diagnose` is behind `weft doctor`; `unavailable` turns the error of a start that failed into the same words.
Settings alone are never believed: since 23.10 Ubuntu lets a user namespace be made and then denies every capability in it.
The trials happen in child processes and leave nothing behind.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple, NoReturn

from weft.agent import capabilities, mounts, namespaces, netlink, nftables, sockets, syscalls
from weft.errors import ModeUnavailable

_TRIAL_SECONDS = 20  # every trial takes milliseconds; loading a kernel module may take longer


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that weft needs or can use, or, behind its trials, a mode.

    Attributes:
        name: What was tried, or the mode.
        works: Whether it did.
        needed: Whether a mesh with namespaces cannot run without it.
        obstacle: What is in the way, by name; "" if it works.
        remedy: What to do about it; "" if it works.
    """

    name: str
    works: bool
    needed: bool = True
    obstacle: str = ""
    remedy: str = ""


class _Step(NamedTuple):
    name: str
    needed: bool
    act: Callable[[], None]


ROOTLESS, ROOT, EXPLICIT = "rootless namespaces", "root namespaces", "explicit mode"


def diagnose() -> list[Finding]:
    """
    Try what each mode of a mesh needs.

    Returns:
        `diagnose_namespaces`, then one finding for the mode that needs no namespaces. A mesh can run if one mode works.
    """
    return [*diagnose_namespaces(), _explicit_mode()]


def is_mode(finding: Finding) -> bool:
    """Whether *finding* is about a mode, and not about one thing that a mode needs."""
    return finding.name in (ROOTLESS, ROOT, EXPLICIT)


def _explicit_mode() -> Finding:
    """Whether addresses of the loopback can be bound, and whether the kernel tells who holds a socket."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.64.0.1", 0))
            probe.listen(1)
            port = probe.getsockname()[1]
            if not any(listener.port == port and listener.inode for listener in sockets.listeners()):
                return Finding(
                    EXPLICIT,
                    False,
                    False,
                    "the kernel does not tell who holds a socket (neither sock_diag nor /proc/net/tcp)",
                    "Mount /proc, or let socket(AF_NETLINK) through the seccomp filter",
                )
    except OSError as error:
        words = error.strerror or str(error)
        remedy = (
            "Give the loopback the whole of 127.0.0.0/8, as Linux does by itself: ip address add 127.0.0.1/8 dev lo"
        )
        return Finding(EXPLICIT, False, False, f"127.64.0.1 cannot be bound ({words})", remedy)
    return Finding(EXPLICIT, True, False)


def diagnose_namespaces() -> list[Finding]:
    """
    Try everything as a start of a mesh by the caller would do it; stops at the first needed thing that fails.

    Returns:
        One finding for each trial, then one for the mode: `rootless namespaces`, or `root namespaces` for real root.
    """
    rootless = namespaces.needs_user_namespace()
    findings = list(_tried(_steps(rootless)))
    mode = ROOTLESS if rootless else ROOT
    missing = next((finding for finding in findings if finding.needed and not finding.works), None)
    if missing is None:
        return [*findings, Finding(mode, True)]
    return [*findings, Finding(mode, False, True, missing.obstacle, missing.remedy)]


def namespaces_obstacle() -> str:
    """Return what is in the way of namespaces on this machine, with the remedy; empty if nothing is."""
    findings = diagnose_namespaces()
    return "" if findings[-1].works else f"{findings[-1].obstacle}. {findings[-1].remedy}"


def unavailable(error: OSError, step: str) -> ModeUnavailable:
    """The exception for a start that failed with *error* at *step* (a name of a trial)."""
    obstacle, remedy = _explain(step, error.errno or 0, error.strerror or str(error))
    return ModeUnavailable(
        f"this machine does not let weft make its namespaces: {obstacle}. {remedy}. Without namespaces:"
        " `weft up --interception explicit`."
    )


USER_NAMESPACE, IDENTITY_MAP, NETWORK_NAMESPACE = "user namespace", "identity map", "network namespace"
MOUNT_NAMESPACE, INTERFACE_UP, LOCAL_ROUTE = "mount namespace", "interface up", "local route"
RULES, PID_NAMESPACE, FRESH_PROC, ENTERING = "nf_tables rules", "PID namespace", "fresh /proc", "entering from outside"
IPV6, OWN_INTERFACE, LOW_PORTS = "IPv6", "interface beside the loopback", "ports below 1024"


def _steps(rootless: bool) -> list[_Step]:
    """The trials in order; each stands on those before it. All run in one child process."""
    loopback = 1

    def with_routes(act: Callable[[netlink.Netlink], object]) -> Callable[[], None]:
        def run() -> None:
            with netlink.Netlink(netlink.NETLINK_ROUTE) as route:
                act(route)

        return run

    def make_mounts() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        namespaces.detach_mounts()
        syscalls.mount("weft", "/tmp", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m")

    def use_ipv6() -> None:
        if not namespaces.enable_ipv6():
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    def rules() -> None:
        nftables.install("10.244.0.1", None, outbound_port=15001, dns_port=15053, host_ports=[5432])

    user = [
        _Step(USER_NAMESPACE, True, lambda: syscalls.unshare(syscalls.CLONE_NEWUSER)),
        _Step(IDENTITY_MAP, True, _map_identity(os.geteuid(), os.getegid())),
    ]
    return [
        *(user if rootless else []),
        _Step(NETWORK_NAMESPACE, True, lambda: syscalls.unshare(syscalls.CLONE_NEWNET)),
        _Step(MOUNT_NAMESPACE, True, make_mounts),
        _Step(INTERFACE_UP, True, with_routes(lambda route: netlink.set_up(route, loopback))),
        _Step(LOCAL_ROUTE, True, with_routes(lambda r: netlink.add_local_route(r, ip_network("0.0.0.0/0"), loopback))),
        _Step(RULES, True, rules),
        _Step(IPV6, False, use_ipv6),
        _Step(OWN_INTERFACE, False, with_routes(namespaces.add_interface)),
        _Step(LOW_PORTS, False, lambda: namespaces.write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")),
        _Step(PID_NAMESPACE, True, lambda: syscalls.unshare(syscalls.CLONE_NEWPID)),
        _Step(FRESH_PROC, False, lambda: _in_child(mounts.mount_proc)),
    ]


def _map_identity(uid: int, gid: int) -> Callable[[], None]:
    return lambda: namespaces.map_identity(uid, gid)


def _tried(steps: list[_Step]) -> Iterator[Finding]:
    """Run *steps* in a child, then enter its namespaces from a second child, as `weft run` enters a mesh."""
    results, results_child = os.pipe()
    leave_child, leave = os.pipe()
    subject = os.fork()
    if subject == 0:
        os.close(leave)
        signal.alarm(_TRIAL_SECONDS)
        _run_steps(steps, results_child, leave_child)
    os.close(results_child)
    os.close(leave_child)
    complete = True
    try:
        with open(results, "rb") as lines:
            for line in lines:
                name, number, words = json.loads(line)
                if name is None:
                    break
                step = next(step for step in steps if step.name == name)
                yield _finding(step, number, words)
                complete = complete and (not number or not step.needed)
            else:
                complete = False
            if complete:
                yield _finding(_Step(ENTERING, True, lambda: None), *_entered(subject))
    finally:
        os.close(leave)
        os.waitpid(subject, 0)


def _run_steps(steps: list[_Step], results: int, leave: int) -> NoReturn:
    try:
        for step in steps:
            number, words = 0, ""
            try:
                step.act()
            except OSError as error:
                number, words = error.errno or errno.EIO, error.strerror or str(error)
            os.write(results, json.dumps([step.name, number, words]).encode() + b"\n")
            if number and step.needed:
                os._exit(0)
        os.write(results, b"[null, 0, null]\n")
        os.read(leave, 1)  # until the other trial is over
    finally:
        os._exit(0)


def _entered(subject: int) -> tuple[int, str]:
    """Whether another process of the user may enter the namespaces of *subject*: errno (0 if it may) and its words."""
    try:
        _in_child(lambda: namespaces.join_process(subject, ("user", "mnt", "net")))
    except OSError as error:
        return error.errno or errno.EIO, error.strerror or str(error)
    return 0, ""


def _in_child(act: Callable[[], None]) -> None:
    """Run *act* in a child process of its own; raises its OSError here."""
    child = os.fork()
    if child == 0:
        number = errno.EIO
        try:
            signal.alarm(_TRIAL_SECONDS)
            act()
            number = 0
        except OSError as error:
            number = error.errno or errno.EIO
        finally:
            os._exit(min(number, 255))
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number:
        number = number if number > 0 else errno.EIO
        raise OSError(number, os.strerror(number))


def _finding(step: _Step, number: int, words: str) -> Finding:
    if not number:
        return Finding(step.name, True, step.needed)
    obstacle, remedy = _explain(step.name, number, words)
    return Finding(step.name, False, step.needed, obstacle, remedy)


# From an error to a name. The settings are read only to explain what has failed.

_LIMITS = {
    USER_NAMESPACE: "max_user_namespaces",
    NETWORK_NAMESPACE: "max_net_namespaces",
    MOUNT_NAMESPACE: "max_mnt_namespaces",
    PID_NAMESPACE: "max_pid_namespaces",
}


def _explain(step: str, number: int, words: str) -> tuple[str, str]:
    """Obstacle and remedy for *step* failing with errno *number*."""
    if number in (errno.ENOSPC, errno.EUSERS) and step in _LIMITS:
        return _explain_limit(_LIMITS[step])
    if step == RULES:
        return (
            f"the kernel refuses the rules ({words}): nf_tables or one of its parts is missing",
            "Load them as root: modprobe -a nf_tables nft_tproxy nft_reject_inet nft_socket; a kernel built without them cannot be used",
        )
    if step == IPV6:
        return "IPv6 is off or not in the kernel", "Nothing is lost but IPv6; boot without ipv6.disable=1 to have it"
    if step == OWN_INTERFACE:
        return (
            f"the kernel makes neither dummy nor veth interfaces ({words})",
            "Only programs that look for an interface beside the loopback miss it; modprobe dummy as root",
        )
    if step == LOW_PORTS:
        return (
            f"/proc/sys is not writable here ({words})",
            "Let programs use ports from 1024, or mount /proc/sys writable",
        )
    if step == FRESH_PROC:
        return (
            f"parts of /proc are covered, as container runtimes do ({words})",
            "Programs then see the processes of the whole container; podman run --security-opt unmask=ALL, "
            "docker run --security-opt systempaths=unconfined",
        )
    if number in (errno.EPERM, errno.EACCES):
        return _explain_denial(step)
    if number in (errno.EINVAL, errno.ENOSYS):
        filtered = _status("Seccomp") == "2" and number == errno.ENOSYS
        return _seccomp(step) if filtered else (f"the kernel is built without this: {step}", "Use another kernel")
    return f"{step} failed: {words}", "This obstacle is not known to weft; please report it"


def _explain_limit(name: str) -> tuple[str, str]:
    value = _setting(f"user/{name}")
    if value == "0":
        return f"user.{name} is 0", f"As root: sysctl -w user.{name}=15000, and the same line in /etc/sysctl.d/"
    return (
        f"the limit user.{name} ({value or 'unknown'} here, perhaps less in an outer namespace) is reached",
        f"End what holds namespaces (lsns), or as root: sysctl -w user.{name}=65536",
    )


def _explain_denial(step: str) -> tuple[str, str]:
    """EPERM has many causes; the surest is named."""
    if _setting("kernel/unprivileged_userns_clone") == "0" and step == USER_NAMESPACE:
        return (
            "kernel.unprivileged_userns_clone is 0",
            "As root: sysctl -w kernel.unprivileged_userns_clone=1, and the same line in /etc/sysctl.d/",
        )
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        remedy = (
            "As root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give the Python interpreter that runs weft "
            "an AppArmor profile with the rule `userns,`"
        )
        if _status("NoNewPrivs") == "1":
            remedy += (
                " (no_new_privs is set on this process, so a profile would not be taken: start weft from a plain shell)"
            )
        return (
            "AppArmor restriction (kernel.apparmor_restrict_unprivileged_userns is 1): the user namespace is made and every capability in it denied",
            remedy,
        )
    if step == IDENTITY_MAP and os.geteuid() == 0 and not capabilities.holds(capabilities.SETFCAP):
        return (
            "this process is uid 0 without CAP_SETFCAP, and the kernel then does not let it map uid 0 (since 5.12)",
            "Run weft as a user other than root, or leave root that capability (--cap-add SETFCAP)",
        )
    if _status("Seccomp") == "2":
        return _seccomp(step)
    profile = _text("/proc/self/attr/current")
    if profile and "unconfined" not in profile:
        return f"the security profile {profile!r} denies it: {step}", "Run weft outside of this profile"
    if step in (USER_NAMESPACE, IDENTITY_MAP) and not _is_mapped(os.getuid()):
        return "this process's user is not mapped in its own user namespace", "Run weft as a mapped user"
    return (
        f"the kernel denies it: {step} (a chroot denies user namespaces; so may a security module)",
        "Run weft outside of a chroot, or as root",
    )


def _seccomp(step: str) -> tuple[str, str]:
    return (
        f"a seccomp filter on this process refuses it: {step}",
        "In a container: podman or docker run --security-opt seccomp=unconfined; under systemd: RestrictNamespaces=no and no SystemCallFilter",
    )


def _is_mapped(uid: int) -> bool:
    for line in _text("/proc/self/uid_map").splitlines():
        first, _outside, count = (int(word) for word in line.split())
        if first <= uid < first + count:
            return True
    return False


def _setting(name: str) -> str:
    return _text(f"/proc/sys/{name}")


def _status(field: str) -> str:
    for line in _text("/proc/self/status").splitlines():
        if line.startswith(f"{field}:"):
            return line.split()[1]
    return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
