"""The reader of YAML and JSON: what values are, where they stand, and what is refused."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.api.yaml import MAX_DEPTH, read
from weft.model import Origin


def one(text: str) -> Any:
    documents, problems = read("f.yaml", text)
    assert not problems, problems
    assert len(documents) == 1
    return documents[0].value


def refusal(text: str) -> tuple[int, int, str, str]:
    documents, problems = read("f.yaml", text)
    assert all(document.flawed for document in documents)
    assert len(problems) == 1
    problem = problems[0]
    return problem.origin.line, problem.origin.column, problem.code, f"{problem.message} {problem.remedy}"


SCALARS = {
    "on": "on",
    "off": "off",
    "yes": "yes",
    "no": "no",
    "y": "y",
    "true": True,
    "True": True,
    "FALSE": False,
    "null": None,
    "~": None,
    "": None,
    "7": 7,
    "-7": -7,
    "+7": 7,
    "0": 0,
    "1.5": 1.5,
    ".5": 0.5,
    "1.": 1.0,
    "1e3": 1000.0,
    "1.10": 1.1,
    "22:30": "22:30",
    "0o7": "0o7",
    "007": "007",
    "0x1F": "0x1F",
    "0x10": "0x10",
    "-0x10": "-0x10",
    "0b1": "0b1",
    "0B1": "0B1",
    "1_000": "1_000",
    ".inf": ".inf",
    ".nan": ".nan",
    "1e999": "1e999",
    "2001-01-01": "2001-01-01",
    "1.2.3": "1.2.3",
    "'7'": "7",
    '"true"': "true",
    "''": "",
    "!!str 7": "7",
    "!!int 7": 7,
    "!!float 7": 7.0,
    "!!bool true": True,
    "!!binary aGk=": "aGk=",
    "!!timestamp 2001-01-01": "2001-01-01",
    "|\n  a\n  b": "a\nb\n",
    ">-\n  a\n  b": "a b",
}


@pytest.mark.parametrize(("written", "value"), SCALARS.items(), ids=[repr(key) for key in SCALARS])
def test_a_scalar_is_read_as_documented(written: str, value: Any) -> None:
    read_value = one(f"a: {written}\n")["a"]
    assert read_value == value
    assert type(read_value) is type(value)


def test_keys_are_strings_as_they_are_written() -> None:
    assert one("on: 1\n22: 2\ntrue: 3\n1.0: 4\n") == {"on": 1, "22": 2, "true": 3, "1.0": 4}


def test_documents_are_divided_and_empty_ones_left_out() -> None:
    documents, problems = read("f", "---\na: 1\n---\n# nothing\n---\nb: 2\n---\n")
    assert not problems
    assert [document.value for document in documents] == [{"a": 1}, {"b": 2}]
    assert documents[1].locate(("b",)) == Origin("f", 6, 1)


def test_directives_and_document_ends_belong_to_their_document() -> None:
    documents, problems = read("f", "%YAML 1.1\n---\na: 1\n...\n---\nb: 2\n")
    assert not problems
    assert [document.value for document in documents] == [{"a": 1}, {"b": 2}]


def test_a_broken_document_does_not_hide_the_mistakes_of_the_next() -> None:
    documents, problems = read("f", "a: [\n---\nb: 1\n---\nc: 1\nc: 2\n")
    assert [(document.value, document.flawed) for document in documents] == [({"b": 1}, False), ({"c": 1}, True)]
    assert [(problem.origin.line, problem.code) for problem in problems] == [(2, "yaml-syntax"), (6, "duplicate-key")]


def test_a_byte_order_mark_at_the_start_is_skipped() -> None:
    assert one("\ufeffa: 1\n") == {"a": 1}


def test_aliases_and_merge_keys_are_resolved() -> None:
    text = (
        "base: &base {a: 1, b: 2}\none:\n  <<: *base\n  b: 3\ntwo: {b: 4, <<: [{b: 5, c: 6}, *base]}\nlist: [*base]\n"
    )
    value = one(text)
    assert value["one"] == {"a": 1, "b": 3}
    assert value["two"] == {"a": 1, "b": 4, "c": 6}
    assert value["list"] == [{"a": 1, "b": 2}]
    assert value["list"][0] is not value["base"]


REFUSED = {
    "duplicate key": ("a: 1\nb: 2\na: 3\n", (3, 1), "duplicate-key", "line 1, column 1"),
    "duplicate key in JSON": ('{"a": 1, "a": 2}', (1, 10), "duplicate-key", "line 1, column 2"),
    "half a pair in JSON": (
        '{"a": "\\ud83d\\ude00",\n\t"b": "x\\ud83d"}',
        (2, 7),
        "yaml-syntax",
        "half of a surrogate pair",
    ),
    "half a pair in a key of JSON": ('{"\\ude00": 1}', (1, 2), "yaml-syntax", "half of a surrogate pair"),
    "duplicate key inside": ("x:\n  - {k: 1, k: 2}\n", (2, 12), "duplicate-key", "line 2, column 6"),
    "tab as indentation": ("a:\n\tb: 1\n", (2, 1), "yaml-syntax", "Indent with spaces"),
    "unclosed quote": ('a: "b\nc: 1\n', (1, 4), "yaml-syntax", "never closed"),
    "second colon": ("a: b: c\n", (1, 5), "yaml-syntax", "in quotes"),
    "missing colon": ("a: 1\nb\nc: 2\n", (2, 1), "yaml-syntax", "`:` is missing"),
    "wrong indentation": ("a:\n  - b\n c: d\n", (3, 2), "yaml-syntax", "indentation"),
    "undefined alias": ("a: *b\n", (1, 4), "yaml-syntax", "no anchor"),
    "alias to itself": ("a: &a\n  b: *a\n", (1, 4), "alias-cycle", "contains itself"),
    "anchor defined twice": ("a: &x 1\nb: &x 2\n", (2, 4), "yaml-syntax", "defined twice"),
    "foreign tag": ("a: !secret b\n", (1, 4), "unknown-tag", "`!secret`"),
    "foreign tag of a mapping": ("a: !!set {b}\n", (1, 4), "unknown-tag", "`!!set`"),
    "key that is a list": ("? [a]\n: 1\n", (1, 3), "yaml", "plain word"),
    "null key": ("~: 1\n", (1, 1), "yaml", "key is missing"),
    "merge of a scalar": ("a:\n  <<: b\n", (2, 7), "yaml", "merges mappings"),
    "control character behind others": ("ä: é\nö: €\x07\n", (2, 5), "yaml-syntax", "not YAML"),
    "control character": ("a: \x07\n", (1, 4), "yaml-syntax", "not YAML"),
    "template": ("a: 1\n{{- if x }}\n", (2, 1), "yaml-syntax", "template"),
}


@pytest.mark.parametrize(("text", "place", "code", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_said_with_its_place(text: str, place: tuple[int, int], code: str, words: str) -> None:
    line, column, found, sentence = refusal(text)
    assert (line, column) == place
    assert found == code
    assert words in sentence


BOMBS = {
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "merged laughs": "a: &a {x: 1}\n"
    + "".join(
        f"{new}: &{new} {{{', '.join(f'{old}{n}: *{old}' for n in range(9))}}}\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "z: {<<: *i}\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_aliases_cannot_multiply_a_document(text: str) -> None:
    started = time.perf_counter()
    assert refusal(text)[2] == "alias-bomb"
    assert time.perf_counter() - started < 1


DEEP = {
    "brackets": "a: " + "[" * 100_000,
    "closed brackets": "[" * 50_000 + "]" * 50_000,
    "braces": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "dashes": "- " * 100_000,
    "one bracket a line": "[\n" * 100_000,
    "indentation": "\n".join(" " * depth + "-" for depth in range(2_000)),
    "just too deep": "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
def test_deep_nesting_is_refused_and_not_a_crash(text: str) -> None:
    assert refusal(text)[2] == "too-deep"


def test_nesting_within_the_limit_is_read() -> None:
    value = one("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for _ in range(MAX_DEPTH - 1):
        assert len(value) == 1
        value = value[0]
    assert value == []


def test_every_mapping_entry_and_list_item_has_a_place() -> None:
    text = "spec:\n  http:\n  - name: a\n    route:\n      - {host: b, weight: 5}\n"
    documents, _ = read("f", text)
    assert documents[0].positions == {
        (): Origin("f", 1, 1),
        ("spec",): Origin("f", 1, 1),
        ("spec", "http"): Origin("f", 2, 3),
        ("spec", "http", 0): Origin("f", 3, 5),
        ("spec", "http", 0, "name"): Origin("f", 3, 5),
        ("spec", "http", 0, "route"): Origin("f", 4, 5),
        ("spec", "http", 0, "route", 0): Origin("f", 5, 9),
        ("spec", "http", 0, "route", 0, "host"): Origin("f", 5, 10),
        ("spec", "http", 0, "route", 0, "weight"): Origin("f", 5, 19),
    }
    assert documents[0].locate_value(("spec", "http", 0, "route", 0, "weight")) == Origin("f", 5, 27)
    assert documents[0].locate(("spec", "http", 7, "x")) == Origin("f", 2, 3)


def test_places_of_json_are_those_of_its_text() -> None:
    documents, problems = read("f", '{\n  "a": ["x",\n    {"b": "\\ud83d\\ude00"}]\n}\n')
    assert not problems
    assert documents[0].value == {"a": ["x", {"b": "😀"}]}
    assert documents[0].locate(("a",)) == Origin("f", 2, 3)
    assert documents[0].locate(("a", 1, "b")) == Origin("f", 3, 6)
    assert documents[0].locate_value(("a", 1, "b")) == Origin("f", 3, 11)


def test_a_value_is_quoted_as_it_was_written() -> None:
    documents, _ = read("f", "a: '7'\nb: 1.10\nc:\nd: [1]\ne: {x: 1}\nf: &f {y: yes}\ng:\n  <<: *f\n")
    written = {name: documents[0].written((name,)) for name in "abcde"}
    assert written == {"a": "'7'", "b": "1.10", "c": "null", "d": "a list", "e": "a mapping"}
    assert documents[0].written(("g", "y")) == "yes"


def test_a_stream_of_json_values_is_several_documents() -> None:
    documents, problems = read("f", '{"a": 1}\n{"b": 2}\n')
    assert not problems
    assert [document.value for document in documents] == [{"a": 1}, {"b": 2}]
    assert documents[1].written(("b",)) == "2"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(), children, max_size=5),
    max_leaves=30,
)


@given(value=json_values, ascii_only=st.booleans(), indent=st.sampled_from([None, 1, "\t"]))
def test_every_json_document_reads_as_json_reads_it(value: Any, ascii_only: bool, indent: Any) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    documents, problems = read("f", text)
    assert not problems
    if value is None:
        assert documents == []
        return
    assert len(documents) == 1
    assert same(documents[0].value, json.loads(text))


@given(text=st.text(max_size=200) | st.text(alphabet="a-:{}[],&*!|>'\"\n\t #%?<~1", max_size=80))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    documents, problems = read("f", text)
    for problem in problems:
        assert problem.origin.line >= 1
        assert problem.origin.column >= 1
        assert problem.message
    for document in documents:
        json.dumps(document.value)
        for path in document.positions:
            assert document.written(path)
            assert document.locate_value(path).line >= 1


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)
