"""Where a connection wanted to go is recovered from REDIRECT too, which is how istiod's nodes catch traffic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.namespaces.harness import USERS, run_python


@pytest.mark.namespaces
@pytest.mark.timeout(90)
@pytest.mark.parametrize("user", USERS)
def test_the_destination_before_redirect_chooses_listener_and_chain(user: str, place: Path) -> None:
    """Of IPv4 and IPv6; a connection that nobody redirected keeps the address that it has."""
    done = run_python(user, place, "-m", "tests.namespaces.redirection")
    if done.returncode:
        pytest.fail(done.stdout, pytrace=False)
    said = json.loads(done.stdout.splitlines()[0])
    assert said["answers"] == ["rest", "port", "service", "rest", "port", "rest"]
    assert [record["local"] for record in said["records"]] == [
        "203.0.113.9:7000",
        "203.0.113.9:7001",
        "203.0.113.10:7000",
        "[2001:db8::9]:7000",
        "[2001:db8::9]:7001",
        "127.0.0.1:15001",
    ]
