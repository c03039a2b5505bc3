"""A control plane for each test, and everything that a test opened closed again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.controlplane.peers import Mesh, running_mesh


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    yield from running_mesh()
