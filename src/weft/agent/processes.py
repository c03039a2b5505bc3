"""What the kernel tells of a process (proc(5), `/proc/PID/stat`)."""

from __future__ import annotations


def stat(pid: int) -> list[bytes]:
    """Return the fields of `/proc/PID/stat` from the third on, which is the state; empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field, the name in parentheses, may itself hold spaces and parentheses.
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """Return when process *pid* started, in clock ticks since boot; 0 if there is none (field 22)."""
    fields = stat(pid)
    return 0 if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def parent(pid: int) -> int:
    """Return the parent of process *pid*, 0 if there is none."""
    fields = stat(pid)
    return int(fields[1]) if fields else 0
