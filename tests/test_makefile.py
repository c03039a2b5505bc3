"""`make setup` where the Python environment cannot be made, or was left half-made."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

PIP = """#!/bin/sh
[ "$*" != "-m pip --version" ] || exec grep -q '^# whole' "$0"
echo "pip: $*" >>"$PWD/calls"
"""
"""A python of the environment: it has pip if a line of it says that it is whole."""

INTERPRETER = """#!/bin/sh
echo "venv: $*" >>"$PWD/calls"
[ ! -e .venv/bin ] || exit 2
mkdir -p .venv/bin
cp pip .venv/bin/python
case $(cat how) in
    fails) exit 1 ;;
    interrupted) kill -INT $PPID $$; exit 130 ;;
esac
echo "# whole" >>.venv/bin/python
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose interpreter makes environments as the file `how` says, and writes down what is asked of it."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name, text in {"tools/debian": "#!/bin/sh\n", "pip": PIP, "interpreter": INTERPRETER}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "requirements").mkdir()
    for name in ("debian", "build", "runtime", "dev"):
        (tmp_path / "requirements" / f"{name}.txt").touch()
    return tmp_path


def setup(clone: Path, how: str) -> tuple[int, list[str]]:
    """Run `make setup`; return its code and what was asked of interpreters."""
    (clone / "how").write_text(how)
    (clone / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        ["make", "setup", "PYTHON=./interpreter"],
        cwd=clone,
        env={key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    calls = clone / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("how", ["fails", "interrupted"])
def test_no_half_made_environment_stays(clone: Path, how: str) -> None:
    """As on Debian without python3-venv, whose venv fails at ensurepip and leaves a python without pip."""
    code, _ = setup(clone, how)
    assert code != 0
    assert not (clone / ".venv" / "bin").exists()
    code, calls = setup(clone, "well")
    assert (code, [call.partition(":")[0] for call in calls]) == (0, ["venv", "pip", "pip"])


def test_an_environment_without_pip_is_made_anew_and_a_whole_one_is_kept(clone: Path) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    shutil.copy(clone / "pip", clone / ".venv/bin/python")
    code, calls = setup(clone, "well")
    assert (code, calls[0]) == (0, "venv: -m venv .venv")
    assert setup(clone, "well") == (0, []), "nothing is done twice"
    (clone / ".venv/.installed").unlink()
    code, calls = setup(clone, "well")
    assert (code, [call.partition(":")[0] for call in calls]) == (0, ["pip", "pip"])
