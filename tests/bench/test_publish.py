"""The pages that tell of what a run measured say what its result says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import publish, report
from bench.measure import CPU, Series, Table
from bench.publish import CONFIGURATIONS, EXPLANATION, FIGURES, GOALS, PICTURE, README, RESULT, ROOT
from tests.bench import ABOUT

SERIES = {"weft-proxy": [15.0, 14.0, 16.0], "envoy": [60.0], report.WITHOUT_LABELS: [50.0], "haproxy": [20.0]}
TABLES = [Table("s2.1", "S2", {name: Series(CPU, samples) for name, samples in SERIES.items()})]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for page, name in ((README, FIGURES), (EXPLANATION, GOALS)):
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        marks = f"{publish.BEGIN.format(name)}\nold\n{publish.END.format(name)}"
        (tmp_path / page).write_text(f"before\n\n{marks}\n\nafter\n")
    (tmp_path / PICTURE).parent.mkdir(parents=True)
    return tmp_path


def test_a_published_run_stands_in_every_page_with_the_machine_and_the_versions(root: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("s1-envoy.json", "s3-h2-in-envoy.json", "growth-hosts-10000-envoy.json"):
        (given / name).write_text("{}")
    publish.publish(report.as_json(TABLES, ABOUT), given, root)
    readme = (root / README).read_text()
    assert "| mesh features | 15.0 | 60.0 | 20.0 | 0.25 | 0.75 |" in readme
    assert "Medians of 5 rounds of 3 s, 2026-12-01, on 2 cores of AMD EPYC with Linux 6.18 x86_64" in readme
    assert "weft-proxy 0.1.0+1234567, Envoy 1.40.0, HAProxy 2.6.12." in readme
    assert "2 of 2 goals are met." in readme
    assert "60.0 us with mesh features" in readme
    assert "50.0 us" in readme
    assert readme.startswith("before")
    assert readme.endswith("after\n")
    assert "old" not in readme
    assert "| S2 | <= 0.3 x envoy | 0.25 |  | met |" in (root / EXPLANATION).read_text()
    assert "mesh features" in (root / PICTURE).read_text()
    assert {file.name for file in (root / CONFIGURATIONS).iterdir()} == {"s1-envoy.json", "s3-h2-in-envoy.json"}
    assert publish.pages(json.loads((root / RESULT).read_text()), root) == {
        root / page: (root / page).read_text() for page in (README, EXPLANATION, PICTURE)
    }


def test_a_page_without_its_marks_is_refused(root: Path) -> None:
    (root / README).write_text("no marks")
    with pytest.raises(ValueError, match="figures: made by"):
        publish.pages(json.loads(report.as_json(TABLES, ABOUT)), root)


def test_the_pages_say_what_the_published_run_measured() -> None:
    """`python -m bench.publish` makes them again, after a change of their form."""
    for page, text in publish.pages(json.loads((ROOT / RESULT).read_text())).items():
        assert page.read_text("utf-8") == text, f"{page} does not say what {RESULT} says"


def test_what_is_published_names_no_path_of_the_machine_that_measured() -> None:
    files = [ROOT / README, ROOT / EXPLANATION, *(it for it in (ROOT / RESULT).parent.rglob("*") if it.is_file())]
    found = {file.name: re.findall(r"/(?:tmp|home|root|work)/\S*", file.read_text()) for file in files}
    assert not any(found.values()), found
