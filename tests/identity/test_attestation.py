"""Whom the control plane believes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from weft.identity import AttestationRefused, attest
from weft.identity.attestation import check_outside


def test_a_process_of_ours_is_believed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert attest(ours) == os.getpid()


def test_another_users_process_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(AttestationRefused, match=f"belongs to user {os.getuid()}, the mesh to user 1"):
        attest(ours, uid=os.getuid() + 100_001)


def test_a_process_that_has_ended_is_refused() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(AttestationRefused, match="cannot be read"):
        check_outside(process.pid)


def test_a_process_without_a_number_is_refused() -> None:
    """The kernel gives 0 for a peer that our PID namespace does not contain."""
    with pytest.raises(AttestationRefused, match="not below ours"):
        check_outside(0)


PROGRAM = """
import os, socket, sys
from weft.agent import syscalls
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
syscalls.unshare(CLONE_NEWPID if os.getuid() == 0 else CLONE_NEWUSER | CLONE_NEWPID)
if (child := os.fork()) == 0:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    connection.recv(1)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.namespaces
def test_a_program_is_refused(tmp_path: Path) -> None:
    """The same user, in a PID namespace of its own, as every program of the mesh is."""
    path = str(tmp_path / "agents.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(20)
        with subprocess.Popen([sys.executable, "-c", PROGRAM, path], stderr=subprocess.PIPE, text=True) as program:
            connection, _ = listener.accept()
            with connection, pytest.raises(AttestationRefused, match="within a program"):
                attest(connection)
            assert program.communicate(timeout=20)[1] == ""
