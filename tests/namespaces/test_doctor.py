"""The doctor names the obstacle. Each one is put in the way for real, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.namespaces.harness import USERS, run_python

pytestmark = pytest.mark.timeout(60)
both_users = pytest.mark.parametrize("user", USERS)

DIAGNOSE = """
import dataclasses, json
from weft.agent import doctor
print(json.dumps([dataclasses.asdict(finding) for finding in doctor.diagnose_namespaces()]))
"""

# A user namespace whose only user is the caller, with all capabilities: where an unprivileged test may set limits.
NESTED = """
import os
from weft.agent import namespaces, syscalls
uid, gid = os.getuid(), os.getgid()
syscalls.unshare(syscalls.CLONE_NEWUSER)
namespaces.map_identity(uid, gid)
"""

# As in a container: SETFCAP is among the usual capabilities there, and root needs it to map itself (user_namespaces(7)).
WITHOUT_CAPABILITIES = """
syscalls.prctl(syscalls.PR_SET_SECUREBITS, 0xEF)
syscalls.capset(1 << 31, 1 << 31, 0)
"""

# A classic BPF program: what the filter does to a system call of a given number.
SECCOMP = """
import ctypes, struct
from weft.agent import syscalls
def filter_call(number, errno_):
    load, equal, ret = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno_
    code = [(load, 0, 0, 0), (equal, 0, 1, number), (ret, 0, 0, refuse), (ret, 0, 0, allow)]
    raw = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(code), ctypes.addressof(raw)))
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(22, 2, ctypes.addressof(program))
import os
UNSHARE = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
MOUNT = {"x86_64": 165, "aarch64": 40}[os.uname().machine]
"""


def diagnosed(user: str, place: Path, *before: str) -> list[dict[str, Any]]:
    """What the doctor finds in a process in which *before* has been executed."""
    done = run_python(user, place, "-c", "\n".join([*before, DIAGNOSE]))
    assert done.returncode == 0, done.stdout
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    return findings


def failed(findings: list[dict[str, Any]]) -> dict[str, Any]:
    """The first needed thing that failed; everything before works, and the mode says the same."""
    *tried, last, mode = findings
    assert all(finding["works"] for finding in tried if finding["needed"])
    assert not last["works"]
    assert (mode["works"], mode["obstacle"], mode["remedy"]) == (False, last["obstacle"], last["remedy"])
    assert mode["name"] == "rootless namespaces"
    return last


@both_users
@pytest.mark.namespaces
def test_where_everything_works_it_says_so(user: str, place: Path) -> None:
    findings = diagnosed(user, place)
    assert [finding["name"] for finding in findings if finding["needed"] and not finding["works"]] == []
    mode = "root namespaces" if user == "root" else "rootless namespaces"
    assert (findings[-1]["name"], findings[-1]["works"]) == (mode, True)
    assert {"nf_tables rules", "PID namespace", "entering from outside"} <= {finding["name"] for finding in findings}


@both_users
@pytest.mark.namespaces
def test_no_more_user_namespaces(user: str, place: Path) -> None:
    limit = 'namespaces.write("/proc/sys/user/max_user_namespaces", "0")'
    finding = failed(diagnosed(user, place, NESTED, limit, WITHOUT_CAPABILITIES))
    assert finding["name"] == "user namespace"
    assert finding["obstacle"] == "user.max_user_namespaces is 0"
    assert "sysctl -w user.max_user_namespaces=" in finding["remedy"]


@both_users
@pytest.mark.namespaces
def test_no_more_network_namespaces(user: str, place: Path) -> None:
    limit = 'namespaces.write("/proc/sys/user/max_net_namespaces", "0")'
    finding = failed(diagnosed(user, place, NESTED, limit, WITHOUT_CAPABILITIES))
    assert finding["name"] == "network namespace"
    assert finding["obstacle"] == "user.max_net_namespaces is 0"


@both_users
@pytest.mark.namespaces
def test_a_seccomp_filter_on_unshare(user: str, place: Path) -> None:
    """As container runtimes set it, with EPERM; some say ENOSYS."""
    capabilities = NESTED + WITHOUT_CAPABILITIES
    for number in (1, 38):
        finding = failed(diagnosed(user, place, capabilities, SECCOMP, f"filter_call(UNSHARE, {number})"))
        assert finding["name"] == "user namespace"
        assert "seccomp" in finding["obstacle"]
        assert "seccomp=unconfined" in finding["remedy"]


@both_users
@pytest.mark.namespaces
def test_a_seccomp_filter_on_mount(user: str, place: Path) -> None:
    finding = failed(diagnosed(user, place, NESTED, WITHOUT_CAPABILITIES, SECCOMP, "filter_call(MOUNT, 1)"))
    assert finding["name"] == "mount namespace"
    assert "seccomp" in finding["obstacle"]


@both_users
@pytest.mark.namespaces
def test_no_new_privs_is_no_obstacle(user: str, place: Path) -> None:
    set_it = "from weft.agent import syscalls; syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)"
    assert diagnosed(user, place, set_it)[-1]["works"]


@both_users
@pytest.mark.namespaces
def test_a_namespace_that_brings_no_capability(user: str, place: Path) -> None:
    """
    Ubuntu's AppArmor lets the namespace be made and denies writing its map.

    This kernel has no AppArmor: the denial is the kernel's own (a map is written once), the switch's value is put in.
    """
    denial = """
from weft.agent import doctor, namespaces
read = doctor._setting
doctor._setting = lambda name: "1" if name == "kernel/apparmor_restrict_unprivileged_userns" else read(name)
once = namespaces.map_identity
namespaces.map_identity = lambda uid, gid: (once(uid, gid), once(uid, gid))
"""
    finding = failed(diagnosed(user, place, NESTED, WITHOUT_CAPABILITIES, denial))
    assert finding["name"] == "identity map"
    assert "kernel.apparmor_restrict_unprivileged_userns is 1" in finding["obstacle"]
    assert "AppArmor profile" in finding["remedy"]


@both_users
@pytest.mark.namespaces
def test_root_of_a_container_without_any_capability(user: str, place: Path) -> None:
    root_inside = NESTED.replace(
        "namespaces.map_identity(uid, gid)",
        """
for name, line in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    namespaces.write(f"/proc/self/{name}", line)
syscalls.prctl(syscalls.PR_SET_SECUREBITS, 0xEF)
syscalls.capset(0, 0, 0)
""",
    )
    finding = failed(diagnosed(user, place, root_inside))
    assert finding["name"] == "identity map"
    assert "uid 0 without CAP_SETFCAP" in finding["obstacle"]


@both_users
@pytest.mark.namespaces
def test_a_covered_proc_is_no_obstacle_and_named(user: str, place: Path) -> None:
    """As container runtimes cover it: the kernel then refuses a fresh /proc in a user namespace."""
    cover = """
syscalls.unshare(syscalls.CLONE_NEWNS)
namespaces.detach_mounts()
syscalls.mount("/dev/null", "/proc/meminfo", "", syscalls.MS_BIND)
"""
    findings = diagnosed(user, place, NESTED, cover, WITHOUT_CAPABILITIES)
    by_name = {finding["name"]: finding for finding in findings}
    assert by_name["rootless namespaces"]["works"]
    assert not by_name["fresh /proc"]["works"]
    assert "covered" in by_name["fresh /proc"]["obstacle"]


@both_users
@pytest.mark.namespaces
def test_a_start_that_fails_says_the_same_words(user: str, place: Path) -> None:
    start = """
from weft.agent import paths
mesh = paths.mesh_paths("refused"); mesh.make()
namespaces.MeshNamespaces.create(mesh, namespaces.choose_cidr())
"""
    limit = 'namespaces.write("/proc/sys/user/max_user_namespaces", "0")'
    done = run_python(user, place, "-c", NESTED + limit + WITHOUT_CAPABILITIES + start)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith("weft.errors.ModeUnavailable: this machine does not let weft make its namespaces")
    assert "user.max_user_namespaces is 0. As root: sysctl -w" in last
