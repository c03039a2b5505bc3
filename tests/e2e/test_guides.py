"""The guides: their files are written and their commands run as they stand, in their order."""

from __future__ import annotations

import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import REPOSITORY, Mesh, Person, Started, eventually
from tests.ports import free_port
from weft.data_plane import ENVOY
from weft.telemetry.exposition import LABEL, parse

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GUIDES = REPOSITORY / "docs" / "guides"
FILE = re.compile(r"^`(?P<name>[\w.]+)`[^\n]*\n\n```\w+\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^    (?P<command>\S.*)$", re.MULTILINE)

NOT_RUN = ("git clone", "make ", "export PATH", "weft up", "weft shell", "cd ")
"""What needs a person, or what the test does in its own way."""

UNUSUAL = {"weft diff -f broken.yaml": 1}
"""Exit codes other than 0: `weft diff` has found differences, as diff(1) says it."""


def text(guide: str) -> str:
    return (GUIDES / f"{guide}.md").read_text("utf-8")


def commands(guide: str) -> list[str]:
    return [match["command"] for match in COMMAND.finditer(re.sub(r"```.*?```", "", text(guide), flags=re.DOTALL))]


@pytest.fixture(scope="module")
def shop(person: Person) -> Iterator[tuple[Mesh, Path]]:
    """The mesh of `run-your-own-programs`, and its directory with the files of that guide and the next."""
    for guide in ("run-your-own-programs", "route-and-break"):
        for match in FILE.finditer(text(guide)):
            person.write(f"shop/{match['name']}", match["text"])
    first, then = commands("run-your-own-programs")[:3], person.home / "shop"
    for command in (first[0].replace(" && cd shop", ""), *(f"cd shop && {line}" for line in first[1:])):
        shell(person, command, person.home)
    with person.mesh(str(then)) as mesh:
        yield mesh, then


def shell(person: Person, command: str, directory: Path, *, mesh: str = "shop", code: int = 0) -> str:
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=60,
        **(person.options() | {"cwd": directory, "env": person.environment | {"WEFT_MESH": mesh}}),
    )
    assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_of_the_guide_is_there(person: Person, shop: tuple[Mesh, Path]) -> None:
    status, body = shop[0].get("/")
    assert status == 200
    assert '"apples": 3' in body


@pytest.mark.parametrize("guide", ["run-your-own-programs", "route-and-break"])
def test_the_commands_of_a_guide_do_what_it_says(person: Person, shop: tuple[Mesh, Path], guide: str) -> None:
    todo = [line for line in commands(guide) if not line.startswith((*NOT_RUN, "mkdir", "echo")) and "psql" not in line]
    assert len(todo) >= 3
    for command in todo:
        if "http.server" in command:
            serve(person, command, shop[1])
        else:
            shell(person, command, shop[1], code=UNUSUAL.get(command, 0))


def serve(person: Person, command: str, directory: Path) -> None:
    """Run one more server until it takes part, and end it."""
    with Started(
        ["sh", "-c", f"exec {command}"],
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **(person.options() | {"cwd": directory, "env": person.environment | {"WEFT_MESH": "shop"}}),
    ) as process:

        def takes_part() -> bool:
            assert process.poll() is None, process.communicate()
            return any(item["version"] == "v3" and item["ready"] for item in person.json("ps", "-m", "shop"))

        eventually(takes_part, "v3 takes part")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_the_questions_of_the_last_guide_have_answers(person: Person, shop: tuple[Mesh, Path]) -> None:
    """`when-it-does-not-work`, whose commands ask only."""
    questions = [line for line in commands("when-it-does-not-work") if "psql" not in line and "FILE" not in line]
    assert len(questions) >= 4
    for command in questions:
        shell(person, command, shop[1])


QUESTION = re.compile(r"^\| [^|]+ \| `(?P<query>[^`]+)` \|$", re.MULTILINE)
NAME_IN_QUERY = re.compile(r"\b(?:istio|weft)_\w+")
LABEL_IN_QUERY = re.compile(r"by \((?P<by>[^)]*)\)|(?P<matched>\w+)=~?\"")


def test_the_guide_to_prometheus_scrapes_what_it_asks_for(person: Person, shop: tuple[Mesh, Path]) -> None:
    """The target of its file is what its command serves, and that has each metric and label of its questions."""
    guide = text("scrape-metrics")
    serving, *others = commands("scrape-metrics")
    (config,) = (yaml.safe_load(match["text"]) for match in FILE.finditer(guide))
    ((target,),) = (job["targets"] for item in config["scrape_configs"] for job in item["static_configs"])
    assert serving == f"weft metrics --listen {target}"
    assert shop[0].get("/")[0] == 200
    # Port 15020 of this machine may be another test's.
    address = f"127.0.0.1:{free_port()}"
    with person.start(*serving.split()[1:-1], address, "--mesh", "shop") as process:
        assert process.stdout is not None
        assert address in process.stdout.readline()
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:  # Prometheus's default path
            families = parse(answer.read().decode())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    labels: dict[str, set[str]] = {}
    for name, said, _ in (each for family in families.values() for each in family.samples):
        labels.setdefault(name, set()).update(label for label, _ in LABEL.findall(said))
    queries = [match["query"] for match in QUESTION.finditer(guide) if NAME_IN_QUERY.search(match["query"])]
    assert len(queries) == 5
    for query in queries:
        names = NAME_IN_QUERY.findall(query)
        if person.data_plane == ENVOY and "weft_proxy_up" not in names:
            assert not labels.keys() & set(names), "the guide says that a stock Envoy has none"
            continue
        found = set.union(*(labels[name] for name in names))
        for match in LABEL_IN_QUERY.finditer(query):
            assert {label.strip() for label in (match["by"] or match["matched"]).split(",")} <= found, query
    for command in others:
        nothing = person.data_plane == ENVOY and "grep istio_" in command
        assert bool(shell(person, command, shop[1], code=int(nothing))) is not nothing, command


def test_the_commands_of_the_first_guide(person: Person) -> None:
    """In the repository's own directory, on Bookinfo."""
    with person.mesh(str(REPOSITORY / "examples" / "bookinfo")):
        for command in commands("first-mesh"):
            if not command.startswith(NOT_RUN):
                shell(person, command, REPOSITORY, mesh="bookinfo")
