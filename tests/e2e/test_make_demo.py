"""`make demo`, as a newcomer types it in a clone: it comes up, does what it says one can try, and Ctrl-C ends it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Person, eventually, namespaces_of, processes_in, processes_of
from tests.e2e.terminal import CTRL_C, Terminal
from tests.e2e.test_demo import stars

# What it runs is weft's default, weft-proxy.
pytestmark = [pytest.mark.e2e, pytest.mark.any_data_plane, pytest.mark.timeout(300)]

BUILT = ".venv/.built"
"""What `make build` leaves. Who runs the tests has built; if not all of it is new, it is not built anew by a test."""

ENDED_SECONDS = 10.0
"""By Ctrl-C, for all that was started; without make it takes less than two (test_ending.py)."""


@pytest.fixture
def terminal(person: Person) -> Iterator[Terminal]:
    """A terminal in the clone, of somebody whose PATH knows no weft."""
    assert (REPOSITORY / BUILT).exists(), "run `make build` first"
    path = ":".join(part for part in person.environment["PATH"].split(":") if not Path(part, "weft").exists())
    window = Terminal(uid=person.uid, environment={**person.environment, "PATH": path}, directory=str(REPOSITORY))
    try:
        yield window
    finally:
        window.close()


def plain(shown: str) -> str:
    """Return what a terminal shows without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")


def start(terminal: Terminal) -> str:
    """Type `make demo`; return all that it shows until the mesh is ready and everything is said."""
    terminal.enter(f"make --old-file={BUILT} demo")
    return plain(terminal.expect(r"(?s).*ready in [\d.]+ s.*Ctrl-C ends the mesh\.")[0])


def end(terminal: Terminal, person: Person, port: int) -> None:
    """Press Ctrl-C; everything has to be gone soon."""
    theirs = namespaces_of(processes_of(person))
    members = processes_in(theirs)
    assert terminal.front() != terminal.pid
    asked = time.monotonic()
    terminal.type(CTRL_C)
    terminal.expect(r"ending\r\n", seconds=ENDED_SECONDS)
    terminal.expect(r"\$ ", seconds=ENDED_SECONDS)
    # The shell stays; the number of a namespace may be somebody else's by now, so only those who were there count.
    eventually(
        lambda: not processes_of(person).keys() - {terminal.pid} and not members & processes_in(theirs),
        "every process is gone",
        seconds=max(0.0, asked + ENDED_SECONDS - time.monotonic()),
    )
    assert list((person.runtime / "weft").glob("*")) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def page(port: int, path: str, cookie: str = "") -> str:
    """GET *path* of the host that was printed, as a browser that resolves every name below localhost."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(
        "GET", path, headers={"host": f"bookinfo.localhost:{port}"} | ({"cookie": cookie} if cookie else {})
    )
    answer = connection.getresponse()
    html = answer.read().decode()
    connection.close()
    assert answer.status == 200, html
    return html


def sign_in(port: int, name: str) -> str:
    """Sign in at the page; return the cookie."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    form = {"content-type": "application/x-www-form-urlencoded", "host": f"bookinfo.localhost:{port}"}
    connection.request("POST", "/login", f"username={name}", form)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return str(answer.headers["set-cookie"]).partition(";")[0]


def port_of(shown: str) -> int:
    """The port of the page that was printed: 8080, or another one where somebody has that."""
    found = re.search(r"http://bookinfo\.localhost:(\d+)/", shown)
    assert found, shown
    return int(found[1])


def test_it_comes_up_and_all_that_it_says_holds(person: Person, terminal: Terminal) -> None:
    """And again, with what was applied meanwhile, which is kept."""
    shown = start(terminal)
    before, _, after = shown.partition("\nready in")
    export = re.search(r"`weft` is found after:  (export PATH=\S+)", before)
    place = re.search(r"^Open +http://bookinfo\.localhost:\d+(/\S+)$", after, re.MULTILINE)
    commands = re.findall(r"^(?:Try)? +(weft .+)$", after, re.MULTILINE)
    assert export, shown
    assert place, shown
    assert [command.split()[1] for command in commands] == ["apply", "why", "run"], shown
    assert after.endswith("\nCtrl-C ends the mesh."), shown

    port, path = port_of(shown), place[1]
    seen: set[str] = set()

    def all_stars() -> bool:
        seen.add(stars(page(port, path)))
        return seen == {"none", "black", "red"}

    eventually(all_stars, "all three kinds of stars are seen")

    def another_terminal(command: str) -> str:
        options = person.options() | {"cwd": REPOSITORY, "env": {**person.environment, "PATH": os.defpath}}
        line = ["bash", "-c", f"{export[1]}\n{command}"]
        done = subprocess.run(line, text=True, capture_output=True, timeout=120, stdin=subprocess.DEVNULL, **options)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    applied, explained, called = (another_terminal(command) for command in commands)
    assert "reviews" in applied, applied
    jason = sign_in(port, "jason")
    assert {stars(page(port, path, jason)) for _ in range(6)} == {"red"}
    assert {stars(page(port, path)) for _ in range(6)} == {"black"}
    assert "It goes 100 % to reviews subset v3 port 9080." in explained, explained
    assert "header end-user equal to `jason`" in explained, explained
    assert json.loads(called)["served_by"] == "reviews-v2", called
    end(terminal, person, port)

    shown = start(terminal)
    assert "kept from an earlier run: VirtualService default/reviews" in shown, shown
    assert stars(page(port_of(shown), path)) == "black"
    end(terminal, person, port_of(shown))
