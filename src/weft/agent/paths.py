"""
Where a mesh keeps its files: the one home of every path of the runtime and the state directory.

Everybody asks here; nobody else joins a directory with a file name. The layout is docs/reference/interfaces.md, section 2.
Import-light on purpose: every agent loads it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.agent.processes import parent
from weft.errors import MeshNotRunning, UsageError, WeftError
from weft.model import MESH_IPV6_CIDR

DEFAULT_MESH = "default"
"""The mesh that is meant when nobody names one."""

LAYOUT_REVISION = 1
"""Written to `mesh.json`; a `weft` that finds another number refuses to touch the mesh."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_FLOCK = "@hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid
_SOCKET_PATH_LIMIT_BYTES = 107  # sun_path holds 108 with the terminating zero: unix(7)


class UnsafeDirectory(WeftError):
    """A directory that should be ours alone belongs to somebody else, is a symbolic link, or is open to others."""


def is_name(text: str) -> bool:
    """Whether *text* can name a mesh or a workload: a label of RFC 1123, 1 to 63 characters."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class WorkloadPaths:
    """The files of one workload; everything in `directory` belongs to its agent."""

    directory: Path
    namespace: Path

    @property
    def bootstrap(self) -> Path:
        """The proxy's bootstrap, JSON."""
        return self.directory / "bootstrap.json"

    @property
    def sds_socket(self) -> Path:
        """The agent's secret discovery service, for its proxy."""
        return self.directory / "sds.sock"

    @property
    def admin_socket(self) -> Path:
        """The proxy's admin interface."""
        return self.directory / "admin.sock"

    @property
    def outside_socket(self) -> Path:
        """The agent's relay to the host's network, for a proxy that the edge cannot hand sockets to."""
        return self.directory / "outside.sock"

    @property
    def discovery_socket(self) -> Path:
        """Where a proxy that keeps no configuration of its own is given it: the agent leads to the control plane."""
        return self.directory / "xds.sock"

    @property
    def saved_socket(self) -> Path:
        """Where the agent serves what such a proxy had, while it is being started again."""
        return self.directory / "saved.sock"

    def published_socket(self, port: int) -> Path:
        """Where such a gateway takes what its agent relays from the published ports of gateway port *port*."""
        return self.directory / f"publish-{port}.sock"

    @property
    def output_log(self) -> Path:
        """What the program writes to its standard output and error."""
        return self.directory / "output.log"

    @property
    def access_log(self) -> Path:
        """The proxy's access records, one JSON object a line."""
        return self.directory / "access.log"

    @property
    def proxy_log(self) -> Path:
        """What the proxy itself writes."""
        return self.directory / "proxy.log"

    @property
    def certificate(self) -> Path:
        """How long the workload's certificate lasts, for when the control plane cannot say; the agent writes it."""
        return self.directory / "certificate.json"

    @property
    def proxy_state(self) -> Path:
        """The proxy's last good configuration (a directory)."""
        return self.directory / "state"

    @property
    def environment(self) -> Path:
        """The variables that the program was given beside its own, JSON, 0600; absent without any. For `weft exec`."""
        return self.directory / "environment.json"

    @property
    def service(self) -> Path:
        """What the workload is an instance of: a symbolic link whose text that is; `make` makes it."""
        return self.directory / "service"

    def read_service(self) -> str:
        """Return what the workload is an instance of; empty while it is not known."""
        try:
            return os.readlink(self.service)
        except FileNotFoundError:
            return ""

    @property
    def init_pid(self) -> Path:
        """
        Where the process id of the program's init stands (host's numbering, decimal) while it runs, for `weft exec` and `weft shell`.

        A symbolic link that leads nowhere; `write_init` makes it and `read_init` reads it.
        """
        return self.directory / "init.pid"

    def write_init(self, pid: int) -> None:
        """
        Say that the program runs under the init *pid*.

        By the text of a link: unlike a file's content it needs no block, and so has room on a disk that is full.

        Raises:
            OSError: It cannot be made.
        """
        self.init_pid.unlink(missing_ok=True)
        self.init_pid.symlink_to(str(pid))

    def read_init(self) -> int:
        """
        The process id of the program's init.

        Raises:
            FileNotFoundError: The program does not run.
        """
        return int(os.readlink(self.init_pid))

    def make(self, service: str) -> None:
        """
        Make the directories of a workload of *service*, closed to others.

        What the proxy of an earlier program of this name knew is forgotten: a new one would serve by it until the control
        plane has spoken, and a change that was acknowledged by everybody would not be in effect for its first requests.
        """
        shutil.rmtree(self.proxy_state, ignore_errors=True)
        for directory in (self.directory.parent, self.directory, self.proxy_state):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.service.unlink(missing_ok=True)
        self.service.symlink_to(service)


@dataclass(frozen=True, slots=True)
class MeshPaths:
    """
    The files of one mesh of one user.

    Attributes:
        mesh: The mesh's name.
        runtime: Sockets, logs, namespaces; gone when the mesh is gone.
        state: What outlives the mesh: store and CA.
    """

    mesh: str
    runtime: Path
    state: Path

    @property
    def mesh_file(self) -> Path:
        """`mesh.json`: pids of the processes, mesh name, uid, `LAYOUT_REVISION`; written atomically, last."""
        return self.runtime / "mesh.json"

    @property
    def lock(self) -> Path:
        """`lock`: `weft up` holds a POSIX write lock on it for as long as the mesh lives; see `lock_holder`."""
        return self.runtime / "lock"

    @property
    def declaration(self) -> Path:
        """`declaration.json`: what `weft up` tells the control plane, also when it starts again."""
        return self.runtime / "declaration.json"

    def log(self, process: str) -> Path:
        """What a process of the mesh itself (`control-plane`, `edge`, `holder`) writes."""
        return self.runtime / f"{process}.log"

    @property
    def api_socket(self) -> Path:
        """The control plane's HTTP API."""
        return self.runtime / "api.sock"

    @property
    def xds_socket(self) -> Path:
        """The control plane's ADS."""
        return self.runtime / "xds.sock"

    @property
    def records_socket(self) -> Path:
        """Access log service of the control plane (gRPC)."""
        return self.runtime / "records.sock"

    @property
    def records(self) -> Path:
        """Access records that were received, and the configurations of then."""
        return self.runtime / "records"

    @property
    def agents_socket(self) -> Path:
        """The agents' streams."""
        return self.runtime / "agents.sock"

    @property
    def edge_socket(self) -> Path:
        """The edge."""
        return self.runtime / "edge.sock"

    @property
    def namespaces(self) -> Path:
        """`ns/`: a tmpfs with one nsfs bind mount a workload, seen only in the mesh mount namespace."""
        return self.runtime / "ns"

    @property
    def host_namespace(self) -> Path:
        """The path that *means* the host's network in a proxy's configuration; never exists as a file."""
        return self.namespaces / "host"

    @property
    def store(self) -> Path:
        """The SQLite file of the store."""
        return self.state / "store.db"

    @property
    def receipts(self) -> Path:
        """What became of each revision."""
        return self.state / "receipts.db"

    @property
    def ca(self) -> Path:
        """The CA's directory: root and intermediate, 0600."""
        return self.state / "ca"

    @property
    def masked(self) -> tuple[Path, ...]:
        """The directories in whose place a program sees an empty one: those of *all* meshes of this user."""
        return (self.runtime.parent, self.state.parent)

    def workload(self, name: str, *, relayed: bool = False, published: Collection[int] = ()) -> WorkloadPaths:
        """
        The files of the workload *name*.

        Args:
            relayed: Whether its agent carries bytes for its proxy, by sockets of its own.
            published: Ports of a gateway for which it does so.

        Raises:
            UsageError: *name* is not an RFC 1123 label, or a socket of its would have a path longer than the kernel takes.
        """
        if not is_name(name):
            raise UsageError(f"{name!r} cannot name a workload: use 1 to 63 of a-z, 0-9 and '-', not '-' at an end")
        paths = WorkloadPaths(self.runtime / "workloads" / name, self.namespaces / name)
        sockets = [paths.admin_socket, paths.sds_socket]
        if relayed:
            sockets += [paths.outside_socket, paths.discovery_socket, paths.saved_socket]
            sockets += [paths.published_socket(port) for port in published]
        longest = max(sockets, key=lambda path: len(os.fsencode(path)))
        if (size := len(os.fsencode(longest))) > _SOCKET_PATH_LIMIT_BYTES:
            raise UsageError(
                f"the path of its socket {longest} has {size} bytes, and may have {_SOCKET_PATH_LIMIT_BYTES}. Choose shorter"
                " names for mesh and workload, or a shorter XDG_RUNTIME_DIR."
            )
        return paths

    def make(self) -> None:
        """
        Make both directories (and `ns/`, `workloads/`), mode 0700.

        Raises:
            UnsafeDirectory: One of them, or the directory of all meshes above it, is not ours alone.
        """
        for directory in (self.runtime.parent, self.runtime, self.state.parent, self.state):
            _make_private(directory)
        for directory in (self.namespaces, self.runtime / "workloads"):
            directory.mkdir(mode=0o700, exist_ok=True)

    def check(self) -> None:
        """
        Check that an existing runtime directory is ours, before a word is believed of what stands in it.

        Raises:
            UnsafeDirectory: It, or the directory above it, is not ours alone.
            FileNotFoundError: There is none.
        """
        for directory in (self.runtime.parent, self.runtime):
            _check_private(directory)


def mesh_paths(mesh: str = DEFAULT_MESH, *, environment: Mapping[str, str] | None = None) -> MeshPaths:
    """
    The paths of *mesh* for the calling user. Touches no file except to look whether `XDG_RUNTIME_DIR` is usable.

    Args:
        environment: What to read `XDG_RUNTIME_DIR`, `XDG_STATE_HOME` and `HOME` from; the process's own by default.

    Raises:
        UsageError: *mesh* is not an RFC 1123 label, or there is neither XDG_STATE_HOME nor HOME.
    """
    if not is_name(mesh):
        raise UsageError(f"{mesh!r} cannot name a mesh: use 1 to 63 of a-z, 0-9 and '-', not '-' at an end")
    values = os.environ if environment is None else environment
    return MeshPaths(mesh, _runtime_root(values) / mesh, _state_root(values) / mesh)


def lock_holder(paths: MeshPaths) -> int | None:
    """
    The pid of the `weft up` whose mesh this is, or None if the mesh is not alive; the kernel answers, so it is never stale.

    Never called by that `weft up` itself: closing any descriptor of a file gives up the process's locks on it (fcntl(2)).
    """
    try:
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else int(pid)


def find(mesh: str | None = None) -> MeshPaths:
    """
    The paths of a running mesh of this user: *mesh*, or the only one.

    Raises:
        MeshNotRunning: That mesh does not run, none does, or several do and none was named; the message lists them.
        UnsafeDirectory: Its directory is not ours alone.
    """
    running = []
    for name in meshes():
        paths = mesh_paths(name)
        paths.check()
        if lock_holder(paths) is not None:
            running.append(paths)
    chosen = [paths for paths in running if mesh in (None, paths.mesh)]
    if len(chosen) == 1:
        return chosen[0]
    names = [paths.mesh for paths in running]
    listed = ", ".join(names)
    if chosen:
        message = f"Several meshes run: {listed}. Say which one with --mesh NAME or WEFT_MESH=NAME."
    elif mesh is None:
        message = "No mesh runs. `weft up` starts one."
    else:
        message = f"No mesh {mesh!r} runs; running: {listed or 'none'}. `weft up` starts one."
    raise MeshNotRunning(message, running=names)


def workloads(paths: MeshPaths) -> dict[str, str]:
    """Return the service of each workload of *paths* that has left a trace, running or not, by its name, sorted."""
    present = sorted(entry.name for entry in (paths.runtime / "workloads").glob("*") if is_name(entry.name))
    return {name: paths.workload(name).read_service() for name in present}


def running(paths: MeshPaths) -> dict[str, str]:
    """Return those of `workloads` whose program runs now and can be entered."""
    found = workloads(paths).items()
    return {name: service for name, service in found if paths.workload(name).init_pid.is_symlink()}


def read_mesh_file(paths: MeshPaths) -> dict[str, int]:
    """
    The pids of a running mesh's processes by name (`up`, `holder`, `edge`, `control-plane`).

    Raises:
        MeshNotRunning: There is no such file, or another revision of weft wrote it.
    """
    try:
        content = json.loads(paths.mesh_file.read_text("utf-8"))
        revision, pids = content["revision"], content["pids"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise MeshNotRunning(f"The mesh {paths.mesh!r} is not ready: {exc}") from exc
    if revision != LAYOUT_REVISION:
        raise MeshNotRunning(
            f"The mesh {paths.mesh!r} was started by another version of weft (layout {revision}, ours {LAYOUT_REVISION})."
        )
    result: dict[str, int] = pids
    return result


def control_plane(paths: MeshPaths) -> int:
    """Return the process of a running mesh's control plane; 0 if it is gone, or not known, or its number is another's by now."""
    try:
        pids = read_mesh_file(paths)
    except (MeshNotRunning, OSError):
        return 0
    pid = pids.get("control-plane", 0)
    return pid if pid and parent(pid) == pids.get("up") else 0


def read_declaration(paths: MeshPaths) -> dict[str, Any]:
    """
    What `weft up` told the control plane of a running mesh (docs/reference/interfaces.md, 4.3a).

    Raises:
        MeshNotRunning: There is no such file.
    """
    try:
        content = json.loads(paths.declaration.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise MeshNotRunning(f"The mesh {paths.mesh!r} is not ready: {exc}") from exc
    return dict(content)


def mesh_ranges(paths: MeshPaths) -> list[str]:
    """
    The ranges of a running mesh's own addresses: of its services, and of its workloads in IPv4 and IPv6.

    Raises:
        MeshNotRunning: The mesh has no declaration.
    """
    declaration = read_declaration(paths)
    return [declaration["service_cidr"], declaration["mesh_cidr"], MESH_IPV6_CIDR]


def is_explicit(paths: MeshPaths) -> bool:
    """Whether a running mesh is in explicit mode."""
    try:
        content = json.loads(paths.mesh_file.read_text("utf-8"))
        return bool(content["interception"] == "explicit")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_mesh_file(paths: MeshPaths, pids: Mapping[str, int], *, interception: str) -> None:
    """Write `mesh.json` atomically: from then on other commands find the mesh."""
    content = {"revision": LAYOUT_REVISION, "mesh": paths.mesh, "uid": os.getuid(), "pids": dict(pids)}
    content["interception"] = interception
    new = paths.mesh_file.with_suffix(".new")
    new.write_text(json.dumps(content), "utf-8")
    new.replace(paths.mesh_file)


def meshes(*, environment: Mapping[str, str] | None = None) -> list[str]:
    """Names of this user's meshes that have a runtime directory with a `mesh.json`, sorted; they need not be alive."""
    root = _runtime_root(os.environ if environment is None else environment)
    return sorted(entry.parent.name for entry in root.glob("*/mesh.json")) if root.is_dir() else []


def _runtime_root(environment: Mapping[str, str]) -> Path:
    """`$XDG_RUNTIME_DIR/weft` if that variable names a directory of ours, else `/tmp/weft-<uid>`."""
    value = environment.get("XDG_RUNTIME_DIR", "")
    if value.startswith("/") and _is_ours(value):
        return Path(value) / "weft"
    return Path(f"/tmp/weft-{os.getuid()}")


def _state_root(environment: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/weft`, by default `~/.local/state/weft` (XDG base directory specification 0.8)."""
    value = environment.get("XDG_STATE_HOME", "")
    if value.startswith("/"):
        return Path(value) / "weft"
    home = environment.get("HOME", "")
    if not home.startswith("/"):
        raise UsageError("neither XDG_STATE_HOME nor HOME names a directory, so there is no place for the mesh's state")
    return Path(home) / ".local/state/weft"


def _is_ours(path: str) -> bool:
    """Whether *path* is an existing directory of the calling user that nobody else may write (sudo keeps the variable)."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _make_private(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        _check_private(directory)


def _check_private(directory: Path) -> None:
    # lstat: in /tmp anybody may have put a symbolic link where we expect our directory.
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeDirectory(f"{directory} is not a directory (a symbolic link is not taken for one)")
    if found.st_uid != os.getuid():
        raise UnsafeDirectory(f"{directory} belongs to uid {found.st_uid}, not to uid {os.getuid()}")
    if found.st_mode & 0o022:
        raise UnsafeDirectory(f"{directory} is writable by others (mode {found.st_mode & 0o7777:04o}); chmod 700 it")
    if found.st_mode & 0o077:
        os.chmod(directory, 0o700)
