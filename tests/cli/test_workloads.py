"""What a name on the command line means, to every command."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.conftest import Weft
from tests.controlplane.peers import Mesh
from weft.agent import init
from weft.cli.workloads import meant

SERVICES = {
    "front-0": "web",
    "idle-e-v1-0": "idle-e",
    "idle-v1-0": "idle",
    "idle-v2-0": "idle",
    "shop-0": "shop",
    "shop-db-0": "shop-db",
    "stock-blue-green-0": "stock",
    "stock-v1-0": "stock",
    "twice-0": "both",
    "twice-1": "both",
}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("idle", ["idle-v1-0", "idle-v2-0"]),
        ("idle-e", ["idle-e-v1-0"]),
        ("idle-v1-0", ["idle-v1-0"]),
        ("shop", ["shop-0"]),
        ("stock", ["stock-blue-green-0", "stock-v1-0"]),
        ("web", ["front-0"]),
        ("front", ["front-0"]),  # as weft.yaml calls it
        ("twice", ["twice-0", "twice-1"]),
        ("stock-blue", []),
        ("none", []),
    ],
)
def test_a_name_means_a_workload_or_the_programs_of_a_service(name: str, found: list[str]) -> None:
    assert meant(name, SERVICES) == found


def test_a_name_means_the_same_to_every_command(mesh: Mesh, weft: Weft, monkeypatch: pytest.MonkeyPatch) -> None:
    """By service, whatever the workloads are called; where only one is meant, two are an error."""

    def enter(pid: int, *_: object, **_more: object) -> int:
        raise SystemExit(f"entered {pid}")

    monkeypatch.setattr(init, "enter", enter)
    for pid, (workload, service) in enumerate(SERVICES.items(), start=1):
        mesh.running(service, name=workload)
        files = mesh.paths.workload(workload)
        files.make(service)
        files.write_init(pid)
        files.output_log.write_text("2026-01-31T12:00:00.123Z hello\n")

    def errors(*arguments: str) -> Any:
        done = weft(*arguments)
        return done.exit_code, done.stderr

    several = 4, "error: 'stock' means several programs: stock-blue-green-0, stock-v1-0. Name one.\n"
    for command in (["exec", "stock", "--", "true"], ["shell", "stock"], ["hot-restart", "stock"]):
        assert errors(*command) == several
    assert errors("proxy-config", "routes", "stock") == several
    for command in (["exec", "web", "--", "true"], ["shell", "web"]):
        assert weft(*command).output == "entered 1\n"
    assert "entered 5" in weft("exec", "shop", "--", "true").output
    lines = weft("logs", "stock").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["stock-blue-green-0", "stock-v1-0"]
    silent = weft("metrics", "stock").stderr
    assert ["stock-v1-0" in silent, "stock-blue-green-0" in silent, "shop" in silent] == [True, True, False]
