"""The one place that opens files: names to (file, text) pairs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from weft.api.files import load_mesh, read_documents
from weft.errors import InvalidConfiguration, UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.yaml", "a.yml", "c.json", "notes.txt", "deep/d.yaml", "deep/er/e.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return tmp_path


def names(directory: Path, *given: str) -> list[str]:
    documents, problems = read_documents(given, directory=directory)
    assert not problems
    return [name for name, _ in documents]


def test_a_file_is_called_as_it_was_named(tree: Path) -> None:
    documents, problems = read_documents(["deep/../b.yaml"], directory=tree)
    assert (documents, problems) == ([("deep/../b.yaml", "# b.yaml\n")], [])


def test_a_directory_gives_its_own_files_in_order(tree: Path) -> None:
    assert names(tree, ".") == ["a.yml", "b.yaml", "c.json"]
    assert names(tree, "deep") == ["deep/d.yaml"]


def test_patterns_are_expanded(tree: Path) -> None:
    assert names(tree, "*.y*ml") == ["a.yml", "b.yaml"]
    assert names(tree, "**/*.yaml") == ["b.yaml", "deep/d.yaml", "deep/er/e.yaml"]
    assert names(tree, str(tree / "deep" / "*.yaml")) == [str(tree / "deep" / "d.yaml")]


def test_a_file_is_read_once(tree: Path) -> None:
    assert names(tree, "b.yaml", "*.yaml", ".") == ["b.yaml", "a.yml", "c.json"]


def test_a_file_with_a_bracket_in_its_name_is_that_file(tree: Path) -> None:
    (tree / "[b].yaml").write_text("")
    assert names(tree, "[b].yaml") == ["[b].yaml"]


def test_standard_input_is_a_dash(tree: Path) -> None:
    documents, problems = read_documents(["-"], directory=tree, standard_input=io.StringIO("a: 1\n"))
    assert (documents, problems) == ([("stdin", "a: 1\n")], [])


def test_what_cannot_be_read_is_named_and_the_rest_is_read(tree: Path) -> None:
    (tree / "latin.yaml").write_bytes(b"a: \xe9\n")
    (tree / "empty").mkdir()
    documents, problems = read_documents(["gone.yaml", "*.toml", "latin.yaml", "empty", "b.yaml"], directory=tree)
    assert [name for name, _ in documents] == ["b.yaml"]
    assert [str(problem.origin) for problem in problems] == [
        "gone.yaml:1:1",
        "*.toml:1:1",
        "latin.yaml:1:4",
        "empty:1:1",
    ]
    assert [problem.code for problem in problems] == [
        "unreadable-file",
        "unreadable-file",
        "not-utf-8",
        "unreadable-file",
    ]


def test_missing_files_are_told_together_with_other_mistakes(tmp_path: Path) -> None:
    """All of a file's mistakes at once, those that only the disk knows among them."""
    (tmp_path / "weft.yaml").write_text(
        "programs:\n  a: {command: [a], ports: [0], directory: nowhere}\napply: [absent.yaml]\nnonsense: 1\n"
    )
    with pytest.raises(InvalidConfiguration) as caught:
        load_mesh(tmp_path)
    found = [(problem.path, problem.origin.line) for problem in caught.value.problems]
    wanted = [("programs.a.ports[0].number", 2), ("programs.a.directory", 2), ("apply[0]", 3), ("nonsense", 4)]
    assert sorted(found) == sorted(wanted)


def test_what_the_system_does_not_even_look_for_is_told_where_it_is_named(tmp_path: Path) -> None:
    """A name that is too long stands for all that is neither there nor absent: what is in another's directory, say."""
    long = "n" * 300
    (tmp_path / "weft.yaml").write_text(
        f"programs:\n  a: {{command: [a], directory: {long}}}\napply: [{long}.yaml, '*/{long}']\n"
    )
    with pytest.raises(InvalidConfiguration) as caught:
        load_mesh(tmp_path)
    found = [(problem.path, problem.origin.line, problem.code) for problem in caught.value.problems]
    paths = [("programs.a.directory", 2), ("apply[0]", 3), ("apply[1]", 3)]
    assert sorted(found) == sorted((path, line, "unreadable-file") for path, line in paths)
    with pytest.raises(UsageError, match="File name too long"):
        load_mesh(tmp_path / long)


def test_mistakes_of_applied_files_are_told_together_with_those_of_weft_yaml(tmp_path: Path) -> None:
    """In the order in which one reads them: weft.yaml first."""
    (tmp_path / "weft.yaml").write_text("progams: {}\napply: [rule.yaml, latin.yaml, absent.yaml]\n")
    (tmp_path / "rule.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: VirtualServce\nmetadata: {name: a}\n"
    )
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xc3\xa9\na: caf\xe9\n")
    with pytest.raises(InvalidConfiguration) as caught:
        load_mesh(tmp_path)
    assert [(Path(str(item.origin)).name, item.code) for item in caught.value.problems] == [
        ("weft.yaml:1:1", "unknown-field"),
        ("weft.yaml:2:32", "unreadable-file"),
        ("latin.yaml:2:7", "not-utf-8"),
        ("rule.yaml:2:7", "unknown-kind"),
    ]
    assert caught.value.outcome == "nothing was started"


def test_a_weft_yaml_that_is_no_utf_8_is_a_malformed_document(tmp_path: Path) -> None:
    (tmp_path / "weft.yaml").write_bytes(b"mesh: caf\xe9\n")
    with pytest.raises(InvalidConfiguration, match=r"weft\.yaml:1:10: .* byte 0xe9 is not UTF-8"):
        load_mesh(tmp_path)


def test_an_empty_name_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "weft.yaml").write_text('apply: [""]\n')
    with pytest.raises(InvalidConfiguration, match=r"weft\.yaml:1:9: error: apply\[0\]: an empty name is no file"):
        load_mesh(tmp_path)


def test_the_weft_yaml_of_a_directory_is_none_of_its_documents(tree: Path) -> None:
    (tree / "weft.yaml").write_text("apply: [., '*.yaml']\n")
    (tree / "shop").mkdir()
    (tree / "shop" / "weft.yaml").write_text("programs: {}\n")
    assert names(tree, ".") == ["a.yml", "b.yaml", "c.json"]
    assert names(tree, "**/*.yaml") == ["b.yaml", "deep/d.yaml", "deep/er/e.yaml"]
    assert [Path(file).name for file, _ in load_mesh(tree).documents] == ["a.yml", "b.yaml", "c.json"]
    _, problems = read_documents(["shop"], directory=tree)
    assert [problem.message for problem in problems] == [
        "`shop` holds no file that ends in .yaml, .yml, .json but weft.yaml, which `weft up` reads."
    ]


def test_a_weft_yaml_that_is_to_be_applied_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "weft.yaml").write_text("# us\nprograms: {}\napply: [weft.yaml]\n")
    with pytest.raises(InvalidConfiguration) as caught:
        load_mesh(tmp_path)
    assert [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems] == [
        "weft.yaml:2:1: error: (document): weft.yaml describes a mesh, which `weft up` starts; it is no object to apply."
        " Name the files that its `apply` names."
    ]
