"""The command line against a real control plane, found as `weft up` would leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from tests.controlplane.peers import Mesh, running_mesh
from weft.cli.main import cli

Weft = Callable[..., Result]


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    for mesh in running_mesh():
        for name, value in mesh.environment.items():
            monkeypatch.setenv(name, value)
        yield mesh


@pytest.fixture
def weft() -> Weft:
    """Run `weft` with these arguments; an error of weft's is an exit code, anything else fails the test."""

    def run(*arguments: object, input: str | None = None) -> Result:  # noqa: A002 - click's own name for it
        result = CliRunner().invoke(cli, [str(item) for item in arguments], input=input, prog_name="weft")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
