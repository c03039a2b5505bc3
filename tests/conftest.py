"""What all tests share."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase

REPOSITORY = Path(__file__).resolve().parent.parent

# No property is about time, and machines are shared. The check of a commit looks at the same examples each time; elsewhere each
# run looks at others, and what once failed is kept if the tree is this user's.
SAME_EACH_TIME = os.environ.get("CI") == "true"
KEPT = not SAME_EACH_TIME and os.access(REPOSITORY, os.W_OK)
hypothesis.settings.register_profile(
    "weft",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=SAME_EACH_TIME,
    database=DirectoryBasedExampleDatabase(REPOSITORY / ".hypothesis") if KEPT else None,
)
hypothesis.settings.load_profile("weft")


def pytest_configure(config: pytest.Config) -> None:
    """Put right, before anything is collected or forked, what a run in the background or below a closed directory changes."""
    del config
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        # A shell starts background jobs with these ignored, nohup with SIGHUP, and so would every program under test be.
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if os.getuid() == 0 and (closed := closed_ancestor(REPOSITORY)) is not None:
        open_the_way(closed)


def closed_ancestor(path: Path) -> Path | None:
    """Return the topmost directory above *path* that other users may not enter."""
    for ancestor in reversed(path.parents):
        if not ancestor.stat().st_mode & stat.S_IXOTH:
            return ancestor
    return None


def open_the_way(closed: Path) -> None:
    """
    Let other users reach the repository although *closed* above it is not theirs to enter (a clone below /root, say).

    Only this process and its children see it: in a mount namespace of their own an open directory lies over the closed
    one, with the repository and the corpus at the same paths as before. No permission of anything is changed.
    """
    from weft.agent import namespaces, syscalls

    syscalls.unshare(syscalls.CLONE_NEWNS)
    namespaces.detach_mounts()
    shown = [path for path in (REPOSITORY, REPOSITORY.parent / "shared") if path.is_dir()]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        kept = []
        for number, path in enumerate(shown):
            (aside := Path(place, str(number))).mkdir()
            syscalls.mount(str(path), str(aside), "", syscalls.MS_BIND | syscalls.MS_REC)
            kept.append(aside)
        syscalls.mount("weft", str(closed), "tmpfs", 0, "mode=0755")
        for path, aside in zip(shown, kept, strict=True):
            path.mkdir(parents=True)
            syscalls.mount(str(aside), str(path), "", syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.umount(str(aside))
    os.chdir(REPOSITORY)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write what is generated as what is expected")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Keep together what one person does in one module: where workers share the tests, one has all that share a mesh.

    What is marked `heavy` puts a mesh under all the load that it can take, and one of these at a time is enough.
    """
    for item in items:
        is_heavy = item.get_closest_marker("heavy") is not None
        group = "heavy" if is_heavy else "-".join((item.path.stem, *person_of(item)))
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is marked `once` has no second run (tools/pytest-twice): that it failed stands."""
    if os.environ.get("WEFT_SECOND_RUN") and item.get_closest_marker("once") is not None:
        pytest.fail("it has failed, as told above, and what it says must hold each time", pytrace=False)


def person_of(item: pytest.Item) -> tuple[str, ...]:
    """Return who types in this test (name, data plane), if anybody does."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("person", ()) if callspec is not None else ()


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Return the folder of real Istio documents beside the repository; CI must have it, a lone clone may not."""
    path = REPOSITORY.parent / "shared" / "corpus"
    if not path.is_dir():
        message = "the corpus of Istio documents is not beside this repository (../shared/corpus)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def program_or_skip(name: str, package: str) -> str:
    """Return the path of a program that is optional here; where it is missing skip the test, under CI fail it."""
    path = shutil.which(name)
    if path is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse(f"this test needs {name}: install {package}")
    return str(path)
