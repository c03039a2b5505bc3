"""`python -m tests.resilience.small_disk DIRECTORY SIZE COMMAND...`: run a command to which DIRECTORY is a disk of SIZE (`4m`)."""

from __future__ import annotations

import os
import sys

from weft.agent import namespaces, syscalls


def main(directory: str, size: str, command: list[str]) -> None:
    if namespaces.needs_user_namespace():
        uid, gid = os.getuid(), os.getgid()
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        namespaces.map_identity(uid, gid)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    namespaces.detach_mounts()
    syscalls.mount("disk", directory, "tmpfs", 0, f"mode=0700,size={size}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
