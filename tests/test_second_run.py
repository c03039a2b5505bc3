"""`tools/pytest-twice`: a second chance for what failed, and none for what is marked `once`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FAILS_ONCE = """\
from pathlib import Path
import pytest

{marker}
def test_that_fails_the_first_time():
    first = Path(__file__).with_name("seen")
    if not first.exists():
        first.touch()
        pytest.fail("a request was lost")
"""


@pytest.mark.parametrize(("marker", "code"), [("", 0), ("@pytest.mark.once", 1)], ids=["any test", "once"])
def test_only_what_is_marked_once_has_no_second_chance(marker: str, code: int, tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(FAILS_ONCE.format(marker=marker))
    command = [REPOSITORY / "tools/pytest-twice", "-q", "-c", REPOSITORY / "pyproject.toml", "-p", "tests.conftest"]
    command += ["-o", f"cache_dir={tmp_path / 'cache'}", file]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("what it says must hold each time" in done.stdout) == bool(code)
