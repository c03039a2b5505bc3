"""
What a program sees of the file system: everything the user has, with a few files replaced and a few directories hidden.

`view` reads the host's files and decides; `weft.agent.init` calls `apply` in the program's new mount namespace, while it
still may mount. A missing file needs no replacement: without resolv.conf a resolver asks 127.0.0.1, and any address on
port 53 reaches the mesh's DNS server.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.agent import syscalls

DNS_ADDRESS = "240.240.0.53"
"""The mesh's DNS server, as programs are told; any other address on port 53 reaches it too."""

RESOLV_CONF, HOSTS, NSSWITCH = "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"

NAME_SERVICE_SOCKETS = (
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/unscd/socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
)
"""Where resolvers of the host answer for the host; a program that asked there would not see the mesh's names."""

_ROOM_BYTES = 1 << 20  # of a directory's replacement, beside what is laid out in it: each file takes whole pages


IsService = Callable[[str], bool]
"""Whether a name, in any case, is one by which the program calls a service of the mesh now."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """
    What can stand in a program's hosts file.

    Libraries read it before they ask the mesh's DNS server, so a name that is a service's is left out of it for as long as
    there is that service: docker-compose has people write `127.0.0.1 reviews` into the host's.

    Attributes:
        own: Lines of the program itself.
        host: Lines of the host, each an address, a tab and names with a space between them.
    """

    own: bytes
    host: bytes

    def without(self, is_service: IsService) -> tuple[bytes, dict[str, list[str]]]:
        """
        Return the file without services' names, and those of them that the host's has, with their addresses there.

        The file is of the same length whatever they are, with blanks in their place, so that it can be written over the
        one that a program is just reading.
        """
        lines = []
        left_out: dict[str, list[str]] = {}
        for line in self.host.splitlines():
            address, _, text = line.partition(b"\t")
            names = text.split(b" ")
            for place, name in enumerate(names):
                if is_service(name.decode()):
                    left_out.setdefault(name.decode().lower(), []).append(address.decode())
                    names[place] = b" " * len(name)
            # Without a name it must be no entry: looked up backwards, the address would have an empty one.
            lines.append((address if any(map(bytes.strip, names)) else b"#" + address[1:]) + b"\t" + b" ".join(names))
        return self.own + b"".join(line + b"\n" for line in lines), left_out


@dataclass(frozen=True, slots=True)
class View:
    """
    What is laid over the host's files for one program.

    Attributes:
        files: The path that is replaced (symbolic links are followed; what does not exist is left out) and its new content.
        hidden: Directories in whose place there is an empty, read-only one; the first holds the content while it is laid out.
        hosts: Of what the content of `HOSTS` is made, and may be made anew.
        silenced: Sockets that answer nobody.
    """

    files: tuple[tuple[str, bytes], ...]
    hidden: tuple[str, ...]
    hosts: Hosts
    silenced: tuple[str, ...] = NAME_SERVICE_SOCKETS


def view(
    *,
    own_names: Sequence[str],
    address: str,
    address6: str,
    hidden: Sequence[Path],
    namespace: str = "default",
    is_service: IsService = lambda _: False,
    read: Callable[[str], str] | None = None,
) -> View:
    """
    The view of a program, made from the host's files as they are now.

    Args:
        own_names: Names that mean the program's own address: its workload name; the host's name is added, unless it is
            one of the loopback's, as hosts that nobody has named have it.
        address6: May be empty.
        hidden: `MeshPaths.masked`.
        namespace: The mesh namespace whose services are found by their first label.
        is_service: Names of now, which the hosts file is without.
        read: Returns a file's text, "" if there is none; the host's files by default.
    """
    text = read or _text
    names = [name for name in (*own_names, socket.gethostname()) if not _is_loopback(name)]
    hosts = _hosts(text(HOSTS), names, address, address6)
    content, _ = hosts.without(is_service)
    files = (
        (RESOLV_CONF, _resolv_conf(text(RESOLV_CONF), namespace).encode()),
        (HOSTS, content),
        (NSSWITCH, _nsswitch(text(NSSWITCH)).encode()),
    )
    return View(files, tuple(str(path) for path in hidden), hosts)


def search_list(namespace: str) -> list[str]:
    """Return the domains that a program of *namespace* is told to append to names (resolv.conf(5)), as of now."""
    return _search(_text(RESOLV_CONF), namespace)


def apply(view: View) -> int:
    """
    Lay *view* over the files of the calling process's mount namespace, which must be its own.

    Returns:
        A descriptor to write the program's hosts file by (`rewrite`); -1 where the host has none.

    Raises:
        OSError: A mount was refused. The program must then not be started: it could see the mesh's secrets.
    """
    staging = next((directory for directory in view.hidden if os.path.isdir(directory)), None)
    if staging is None:
        raise FileNotFoundError(f"none of the mesh's directories exists: {', '.join(view.hidden)}")
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    # A hosts file that blocks advertisers has megabytes, and what is laid out stays there.
    room = _ROOM_BYTES + sum(len(content) for _path, content in view.files)
    for directory in view.hidden:
        if os.path.isdir(directory):
            size = room if directory == staging else _ROOM_BYTES
            syscalls.mount("weft", directory, "tmpfs", flags, f"mode=0755,size={size}")
    hosts = -1
    for path, content in view.files:
        if path == HOSTS and os.path.exists(path):
            hosts = _cover_writable(path, content, staging)
        else:
            _cover(path, content, staging)
    for path in view.silenced:
        # Connecting to what is not a socket fails with ECONNREFUSED, as if the service were not running.
        _cover(path, b"", staging)
    for directory in view.hidden:
        if os.path.isdir(directory):
            syscalls.mount("none", directory, "", flags | syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY)
    return hosts


def rewrite(descriptor: int, hosts: Hosts, is_service: IsService) -> dict[str, list[str]]:
    """Write a program's hosts file anew, by what `apply` returned, while the program may read it; return what it is without."""
    content, left_out = hosts.without(is_service)
    os.pwrite(descriptor, content, 0)
    return left_out


def mount_proc() -> None:
    """
    Mount a /proc that shows the caller's PID namespace.

    Raises:
        OSError: EPERM where parts of /proc are covered, as in containers; the old one then stays and shows other numbers.
    """
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("proc", "/proc", "proc", flags)


def _cover(path: str, content: bytes, staging: str) -> None:
    """Bind a read-only file with *content* over *path*, if that exists; the file's own name does not stay."""
    if not os.path.exists(path):
        return
    os.close(_bind(path, content, staging))


def _cover_writable(path: str, content: bytes, staging: str) -> int:
    """
    Do the same, and return a descriptor to write that file by.

    In a file system of its own, of which nothing but the descriptor and the cover is left: a mount cannot be made
    read-only while a file is open for writing in it.
    """
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("weft", staging, "tmpfs", flags, f"mode=0755,size={_ROOM_BYTES + len(content)}")
    try:
        return _bind(path, content, staging)
    finally:
        syscalls.umount(staging)


def _bind(path: str, content: bytes, staging: str) -> int:
    """Make the file and bind it over *path*, read-only there; return a descriptor to write it by."""
    source = os.path.join(staging, "cover")
    descriptor = os.open(source, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(descriptor, 0o644)  # whatever the umask
        with open(descriptor, "wb", closefd=False) as file:  # which writes all of it, or says why not
            file.write(content)
        syscalls.mount(source, path, "", syscalls.MS_BIND)
        flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
        syscalls.mount("none", path, "", flags | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        os.unlink(source)
    return descriptor


def _resolv_conf(host: str, namespace: str) -> str:
    """The mesh's server, its search list before the host's, the host's options (ndots stays as users know it)."""
    options = [word for line in host.splitlines() if (words := line.split())[:1] == ["options"] for word in words[1:]]
    lines = [f"nameserver {DNS_ADDRESS}", f"search {' '.join(_search(host, namespace))}"]
    if options:
        lines.append(f"options {' '.join(options)}")
    return "\n".join(lines) + "\n"


def _search(host: str, namespace: str) -> list[str]:
    search = [f"{namespace}.svc.cluster.local"]
    for line in host.splitlines():
        words = line.split()
        if words[:1] in (["search"], ["domain"]):
            search[1:] = words[1:]  # the last of them holds: resolv.conf(5)
    return search


def _is_loopback(name: str) -> bool:
    """Whether *name* means the loopback: by RFC 6761 6.3, or as hosts files have it."""
    lowered = name.lower()
    return lowered in ("localhost", "localhost.localdomain") or lowered.endswith(".localhost")


def _hosts(host: str, names: Sequence[str], address: str, address6: str) -> Hosts:
    """The host's entries without *names*, which mean the program itself here; `localhost` even if the host forgot it."""
    own = dict.fromkeys(names)
    first = [f"{value}\t{' '.join(own)}" for value in (address, address6) if value and own]
    lines: list[str] = []
    known = set()
    lowered = {name.lower() for name in own}
    for line in host.splitlines():
        words = line.split("#", 1)[0].split()
        kept = [word for word in words[1:] if word.lower() not in lowered]
        if kept:
            lines.append(f"{words[0]}\t{' '.join(kept)}")
            known.update(kept)
    if "localhost" not in known:
        lines += ["127.0.0.1\tlocalhost", "::1\tlocalhost"]
    return Hosts(*("".join(f"{line}\n" for line in part).encode() for part in (first, lines)))


def _nsswitch(host: str) -> str:
    """The host's file with names of hosts looked up in /etc/hosts and by DNS, and nowhere else (no mDNS, no resolved)."""

    def kept() -> Iterator[str]:
        for line in host.splitlines():
            if not re.match(r"\s*hosts\s*:", line):
                yield line
        yield "hosts: files dns"

    return "\n".join(kept()) + "\n"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
