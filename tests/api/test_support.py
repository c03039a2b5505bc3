"""The reference page of what is honoured is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.api.support import main, page
from weft.translate.policies.retry.apply import DEFAULT_CONDITIONS, DEFAULT_RETRIES

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "api-support.md"


def test_the_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(PAGE)]) == 0, capsys.readouterr().err


def test_a_page_that_differs_is_noticed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    assert main(["--check", str(path)]) == 1
    path.write_text("old")
    assert main(["--check", str(path)]) == 1
    assert path.read_text() == "old"
    assert "weft.api.support" in capsys.readouterr().err
    assert main([str(path)]) == 0
    assert main(["--check", str(path)]) == 0


def test_the_page_tells_where_a_default_is_not_istios() -> None:
    assert (
        f"`http[].retries.retryOn` of a VirtualService: `{DEFAULT_CONDITIONS}`, up to {DEFAULT_RETRIES} retries"
        in page()
    )


def test_the_page_tells_what_is_honoured_wholly_in_part_by_value_and_not() -> None:
    lines = page().splitlines()
    for line in (
        "| `http[].timeout` | duration | yes |",
        "| `http[].fault.abort` | Abort | in part |",
        "| `exportTo[]` | list of string | only `*` |",
        "| `http[].mirror` | Destination | yes |",
        "| `http[].delegate` | Delegate | no |",
        "| `servers[].port.protocol` | string, required | only `HTTP` |",
    ):
        assert line in lines
