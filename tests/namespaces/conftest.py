"""Fixtures of the namespace tests, and what happens where the machine does not allow them."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.namespaces.harness import REPOSITORY, USERS, place, run_python  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def obstacles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What keeps each kind of user from making namespaces here, "" for nothing."""
    source = "import json, sys; from weft.agent import doctor; f = doctor.diagnose_namespaces()[-1]; print(json.dumps([f.works, f.obstacle]))"
    found = {}
    for user in USERS:
        done = run_python(user, REPOSITORY, "-c", source)
        works, obstacle = json.loads(done.stdout)
        found[user] = "" if works else obstacle
    return found


@pytest.fixture(autouse=True)
def _possible(request: pytest.FixtureRequest) -> None:
    """Skip what this machine does not allow, by the obstacle's name; under CI that is a failure."""
    if request.node.get_closest_marker("namespaces") is None:
        return
    obstacle = request.getfixturevalue("obstacles")[request.getfixturevalue("user")]
    if obstacle:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(obstacle)


assert sys.platform == "linux", "namespaces are Linux's"
