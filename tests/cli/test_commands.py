"""The commands, as people and programs use them, on a real control plane."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml

from tests.cli.conftest import Weft
from tests.controlplane.peers import Mesh, running_mesh, until
from weft.agent import doctor, paths
from weft.agent.workload import WorkloadSpec
from weft.cli import apply, logs, run, status
from weft.cli.client import Client
from weft.cli.logs import access_text
from weft.cli.proxy_config import secrets_table
from weft.cli.ps import ports
from weft.errors import UsageError

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: reviews}}, ports: [{{port: 9080}}]}}
"""

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - timeout: 3s
    route:
    - destination: {host: reviews}
"""

GATEWAY_CLASS = """\
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: other}
spec: {controllerName: weft.dev/gateway-controller}
"""

BAD = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - timeout: soon
    rout:
    - destination: {host: reviews}
"""


@pytest.fixture
def rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("reviews.yaml").write_text(RULE)
    return Path("reviews.yaml")


def with_proxy(mesh: Mesh, **behaviour: object) -> None:
    """A client whose proxy is connected, and a server for it to call."""
    mesh.running("reviews")
    client = mesh.running("productpage", port=None)
    mesh.proxy(client, **behaviour)
    until(lambda: mesh.status(client.name)["connected"])


def test_apply_says_what_kubectl_says(mesh: Mesh, weft: Weft, rule: Path) -> None:
    name = "virtualservice.networking.istio.io/reviews"
    assert weft("apply", "-f", rule).stdout.splitlines() == [f"{name} created", "No proxy is affected."]
    assert weft("apply", "-f", rule).stdout.splitlines()[0] == f"{name} unchanged"
    rule.write_text(RULE.replace("3s", "4s"))
    assert weft("apply", "-f", rule).stdout.splitlines()[0] == f"{name} configured"
    assert weft("apply", "-f", rule, "--dry-run").stdout.splitlines()[0] == f"{name} unchanged (dry run)"


def test_apply_waits_for_exactly_the_affected(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """The server's proxy never connects, so it is the one that is silent."""
    with_proxy(mesh)
    result = weft("apply", "-f", rule, "--timeout", "300ms")
    assert result.exit_code == 6
    assert "1 of 2 affected proxies have it" in result.stdout
    assert result.stderr.splitlines()[-1] == "error: reviews-v1-0 did not answer within 300 ms."


def test_apply_returns_when_all_have_it(mesh: Mesh, weft: Weft, rule: Path) -> None:
    client = mesh.running("productpage")
    mesh.proxy(client)
    result = weft("apply", "-f", rule)
    assert result.exit_code == 0
    until(lambda: mesh.status(client.name)["synced"])
    rule.write_text(RULE.replace("hosts: [reviews]", "hosts: [productpage]"))
    result = weft("apply", "-f", rule)
    assert result.exit_code == 0, result.output
    assert "1 of 1 affected proxy has it (" in result.stdout
    assert weft("apply", "-f", rule, "--no-wait").stdout.splitlines()[-1] == "No proxy is affected."


def test_the_same_apply_again_waits_for_who_was_silent(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """Nothing is changed the second time, and still it is not in force everywhere."""
    with_proxy(mesh, refuses=frozenset({"9080"}))
    assert weft("apply", "-f", rule, "--timeout", "1s").exit_code == 6
    result = weft("apply", "-f", rule, "--timeout", "1s")
    assert result.exit_code == 6
    assert result.stdout.splitlines()[0].endswith(" unchanged")
    assert "productpage-v1-0 refused 9080" in result.stderr


def test_an_apply_that_affects_nobody_does_not_answer_for_those_before_it(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """What a proxy refused of somebody else's change is none of its business."""
    with_proxy(mesh, refuses=frozenset({"9080"}))
    assert weft("apply", "-f", rule, "--timeout", "1s").exit_code == 6
    Path("other.yaml").write_text(RULE.replace("reviews", "example.com"))
    result = weft("apply", "-f", "other.yaml", "--timeout", "1s")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].endswith("/example.com created")
    assert result.stdout.splitlines()[-1] == "No proxy is affected."


def test_apply_names_who_refused_and_what(mesh: Mesh, weft: Weft, rule: Path) -> None:
    with_proxy(mesh, refuses=frozenset({"9080"}))
    result = weft("apply", "-f", rule, "--timeout", "1s")
    assert result.exit_code == 6
    assert "productpage-v1-0 refused 9080: cannot do 9080" in result.stderr


def test_malformed_documents_show_all_problems_with_the_line_and_a_caret(mesh: Mesh, weft: Weft, rule: Path) -> None:
    rule.write_text(BAD)
    result = weft("apply", "-f", rule)
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert any(line.startswith("reviews.yaml:8:14: error: spec.http[0].timeout") for line in lines)
    assert any(line.startswith("reviews.yaml:9:5: error: spec.http[0].rout") for line in lines)
    assert lines[lines.index("  9 |     rout:") + 1] == "    |     ^"
    count = sum(": error: " in line for line in lines)
    assert count >= 2
    assert lines[-1] == f"error: {count} problems; nothing was changed."
    assert mesh.client.get("/v1/config") == []


def test_standard_input_has_positions_and_excerpts_too(mesh: Mesh, weft: Weft) -> None:
    result = weft("apply", "-f", "-", input=BAD)
    assert result.exit_code == 3
    assert "stdin:9:5: error: spec.http[0].rout" in result.stderr
    assert "  9 |     rout:" in result.stderr


def test_a_place_is_right_for_whoever_reads_it(
    mesh: Mesh, weft: Weft, rule: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Named from one directory, read from another: below it the path is short, elsewhere whole; programs get it whole."""
    mesh.running("productpage", port=None)
    mesh.running("reviews")
    assert weft("apply", "-f", rule, "--no-wait").exit_code == 0
    whole = tmp_path / rule
    why = ("why", "--from", "productpage", "--to", "http://reviews:9080/")

    def told() -> tuple[str, str, str]:
        return (
            weft(*why).stdout,
            weft("get", "vs", "-o", "wide").stdout,
            weft("proxy-config", "routes", "productpage").stdout,
        )

    for text in told():
        assert f" {rule}:" in text.replace("(", " "), text
        assert str(tmp_path) not in text
    monkeypatch.chdir(tmp_path.parent)
    for text in told():
        assert str(whole.relative_to(tmp_path.parent)) in text, text
        assert str(tmp_path.parent) not in text
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for text in told():
        assert str(whole) in text, text
    data = json.loads(weft(*why, "-o", "json").stdout)
    assert data["outbound"]["route"]["origin"].startswith(f"{whole}:")


def test_the_same_from_another_file_only_moves(mesh: Mesh, weft: Weft, rule: Path) -> None:
    for agent in (mesh.running("reviews"), mesh.running("productpage", port=None)):
        mesh.proxy(agent)
        until(lambda name=agent.name: mesh.status(name)["connected"])
    assert weft("apply", "-f", rule).exit_code == 0
    moved = rule.rename(rule.with_name("moved.yaml"))
    lines = weft("apply", "-f", moved).stdout.splitlines()
    assert all(line.endswith(" unchanged") for line in lines[:-1])
    assert lines[-1].startswith("Only where they are written has changed: 2 of 2 proxies have the new place (")
    assert weft("apply", "-f", moved).stdout.splitlines()[-1] == "No proxy is affected."


def test_a_dangling_reference_warns_and_strict_refuses_it(mesh: Mesh, weft: Weft, rule: Path) -> None:
    result = weft("apply", "-f", rule, "--strict")
    assert result.exit_code == 3
    assert "reviews.yaml:6:" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: 2 warnings, which --strict refuses; nothing was changed."
    assert mesh.client.get("/v1/config") == []
    result = weft("apply", "-f", rule)
    assert result.exit_code == 0
    assert "warning" in result.stderr


def test_a_directory_is_read_in_order_and_other_files_are_left_alone(mesh: Mesh, weft: Weft, rule: Path) -> None:
    (rule.absolute().parent / "a.yaml").write_text(RULE.replace("reviews", "ratings"))
    (rule.absolute().parent / "notes.txt").write_text("no: yaml")
    lines = weft("apply", "-f", ".").stdout.splitlines()
    assert [line.split("/")[1] for line in lines[:2]] == ["ratings created", "reviews created"]


def test_what_cannot_be_read_is_exit_code_2(mesh: Mesh, weft: Weft, rule: Path) -> None:
    for file, reason in (
        ("nowhere.yaml", "nowhere.yaml: No such file or directory."),
        ("https://example.com/x.yaml", "weft does not fetch from the network"),
    ):
        result = weft("apply", "-f", file)
        assert result.exit_code == 2
        assert reason in result.stderr


def test_standard_input_is_read_once_and_must_hold_something(mesh: Mesh, weft: Weft) -> None:
    result = weft("apply", "-f", "-", "-f", "-", input=RULE)
    assert (result.exit_code, result.stderr) == (2, "error: -: standard input can be read only once.\n")
    result = weft("apply", "-f", "-", input="")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: no objects passed to apply: there is none in standard input.\n",
    )
    assert weft("diff", "-f", "-", input="").exit_code == 2  # 1 would say: it differs


def test_a_file_without_any_object_is_refused_as_kubectl_does(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """What should have written it has probably failed. One that is empty beside others is nothing odd."""
    Path("empty.yaml").write_text("")
    Path("separators.yaml").write_text("---\n# nothing\n---\n")
    for file in ("empty.yaml", "separators.yaml"):
        for more in ((), ("--dry-run",), ("--dry-run=client",)):
            result = weft("apply", "-f", file, *more)
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr == f"error: no objects passed to apply: there is none in {file}.\n"
        assert weft("delete", "-f", file).exit_code == 1
        assert weft("get", "-f", file).exit_code == 1
        assert weft("diff", "-f", file).exit_code == 2
    assert weft("apply", "-f", "empty.yaml", "-f", rule).exit_code == 0
    Path("void").mkdir()
    result = weft("apply", "-f", "void")
    assert result.exit_code == 2
    assert "void: holds no file that ends in .yaml, .yml, .json." in result.stderr


def test_a_file_that_is_no_utf_8_is_a_mistake_beside_the_others(mesh: Mesh, weft: Weft, rule: Path) -> None:
    rule.write_text(BAD)
    Path("latin.yaml").write_bytes(b"# caf\xc3\xa9\nname: caf\xe9\n")
    Path("good.yaml").write_text(RULE.replace("reviews", "ratings"))
    for command in ("apply", "delete", "diff"):
        result = weft(command, "-f", "latin.yaml", "-f", rule, "-f", "good.yaml")
        assert result.exit_code == 3
        assert "latin.yaml:2:10: error: (file): byte 0xe9 is not UTF-8." in result.stderr
        # What is deleted need not be right, as long as it is clear what it is.
        assert ("reviews.yaml:8:14: error: " in result.stderr) == (command != "delete")
        counted = "1 problem" if command == "delete" else "3 problems"
        assert result.stderr.splitlines()[-1] == f"error: {counted}; nothing was changed."
    assert weft("apply", "-f", "latin.yaml", "-f", "good.yaml").exit_code == 3
    assert weft("apply", "-f", "latin.yaml", "--dry-run=client").exit_code == 3
    assert mesh.client.get("/v1/config") == []


def test_dry_run_has_kubectls_values(mesh: Mesh, weft: Weft, rule: Path) -> None:
    name = "virtualservice.networking.istio.io/reviews"
    for value in ("--dry-run", "--dry-run=server"):
        assert weft("apply", value, "-f", rule).stdout.splitlines()[0] == f"{name} created (dry run)"
        assert mesh.client.get("/v1/config") == []
    assert weft("apply", "-f", rule, "--dry-run=none").stdout.splitlines()[0] == f"{name} created"
    for value in ("--dry-run", "--dry-run=server", "--dry-run=client"):
        assert weft("delete", value, "vs", "reviews").stdout == f"{name} deleted (dry run)\n"
    assert weft("delete", "vs", "reviews", "--dry-run=perhaps").exit_code == 2
    assert len(mesh.client.get("/v1/config")) == 1


def test_objects_are_named_as_programs_want_them(mesh: Mesh, weft: Weft, rule: Path) -> None:
    name = "virtualservice.networking.istio.io/reviews\n"
    assert weft("apply", "-f", rule, "-o", "name").stdout == name
    assert yaml.safe_load(weft("apply", "-f", rule, "-o", "yaml").stdout)["results"][0]["action"] == "unchanged"
    assert weft("delete", "vs", "reviews", "-o", "name").stdout == name


def test_directories_are_read_to_any_depth_where_that_is_said(mesh: Mesh, weft: Weft, rule: Path) -> None:
    below = rule.absolute().parent / "deep" / "er"
    below.mkdir(parents=True)
    (below / "ratings.yaml").write_text(RULE.replace("reviews", "ratings"))
    assert len(json.loads(weft("apply", "-f", ".", "-o", "json").stdout)["results"]) == 1
    assert len(json.loads(weft("apply", "-R", "-f", ".", "-o", "json").stdout)["results"]) == 2
    assert weft("get", "-R", "-f", ".", "-o", "name").stdout.split() == [
        "virtualservice.networking.istio.io/ratings",
        "virtualservice.networking.istio.io/reviews",
    ]
    assert weft("diff", "-R", "-f", ".").exit_code == 0
    assert len(weft("delete", "-R", "-f", ".").stdout.splitlines()) == 2


def test_get_of_what_files_describe(mesh: Mesh, weft: Weft, rule: Path) -> None:
    result = weft("get", "-f", rule)
    assert result.exit_code == 4
    assert "Not found: VirtualService default/reviews." in result.stderr
    weft("apply", "-f", rule)
    Path("other.yaml").write_text(RULE.replace("reviews", "ratings"))
    weft("apply", "-f", "other.yaml")
    assert yaml.safe_load(weft("get", "-f", rule, "-o", "yaml").stdout) == yaml.safe_load(RULE)
    assert weft("get", "vs", "-f", rule).exit_code == 2
    rule.write_text(BAD)
    assert weft("get", "-f", rule).exit_code == 3


def test_get_of_files_misses_what_has_the_name_of_another(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """Neither a namesake in another namespace nor the other API's Gateway is what the file describes."""
    rule.write_text("""\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door, namespace: a}
spec: {selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ["*"]}]}
""")
    assert weft("apply", "-f", rule).exit_code == 0
    other = rule.with_name("other.yaml")
    other.write_text(f"""\
{rule.read_text().replace("namespace: a", "namespace: b")}---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: door, namespace: a}}
spec: {{gatewayClassName: weft, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}
""")
    result = weft("get", "-f", rule, "-f", other, "-o", "name")
    assert (result.exit_code, result.stdout) == (4, "gateway.networking.istio.io/door\n")
    assert "Not found: Gateway b/door, Gateway.gateway.networking.k8s.io a/door." in result.stderr


def test_get_shows_istios_columns(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """`additionalPrinterColumns` of Istio's CRDs; where each was written is in the wide view."""
    api = "apiVersion: networking.istio.io/v1"
    rule.write_text(f"""\
{api}
kind: VirtualService
metadata: {{name: a}}
spec: {{hosts: [a.example.com, b.example.com], gateways: [g], http: [{{route: [{{destination: {{host: a}}}}]}}]}}
---
{api}
kind: DestinationRule
metadata: {{name: a}}
spec: {{host: a}}
---
{api}
kind: Gateway
metadata: {{name: g}}
spec: {{selector: {{a: b}}, servers: [{{port: {{number: 80, name: h, protocol: HTTP}}, hosts: ["*"]}}]}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: a}}
spec: {{mtls: {{mode: STRICT}}}}
""")
    assert weft("apply", "-f", rule).exit_code == 0
    for kind, head, row in (
        ("vs", "NAME GATEWAYS HOSTS AGE", "a g a.example.com,b.example.com"),
        ("dr", "NAME HOST AGE", "a a"),
        ("gw", "NAME AGE", "g"),
        ("pa", "NAME MODE AGE", "a STRICT"),
    ):
        first, second = weft("get", kind).stdout.splitlines()
        assert first.split() == head.split()
        assert second.split()[: len(row.split())] == row.split()


def test_get_goes_on_with_what_changes(mesh: Mesh, weft: Weft, rule: Path) -> None:
    weft("apply", "-f", rule)
    command = [sys.executable, "-m", "weft.cli.main", "get", "vs", "-w", "-o", "name"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "virtualservice.networking.istio.io/reviews\n"
        Path("other.yaml").write_text(RULE.replace("reviews", "ratings"))
        weft("apply", "-f", "other.yaml")
        assert process.stdout.readline() == "virtualservice.networking.istio.io/ratings\n"
        weft("delete", "vs", "reviews")
        assert process.stdout.readline() == "virtualservice.networking.istio.io/reviews\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.mark.parametrize("form", ["json", "yaml", "table"])
def test_get_goes_on_in_the_form_in_which_it_begins(mesh: Mesh, weft: Weft, rule: Path, form: str) -> None:
    """One object after the other: a List would have to end before it is known what is in it."""
    weft("apply", "-f", rule)
    command = [sys.executable, "-m", "weft.cli.main", "get", "-w", "-o", form]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    reviews = yaml.safe_load(weft("get", "vs", "reviews", "-o", "yaml").stdout)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        mesh.apply(GATEWAY_CLASS)
        text = first
        while "other" not in text:
            line = process.stdout.readline()
            assert line
            text += line
        process.send_signal(signal.SIGINT)
        text += process.stdout.read()
    if form == "json":
        decoder = json.JSONDecoder()
        begin, end = decoder.raw_decode(text)
        rest, _ = decoder.raw_decode(text[end:].lstrip())
        assert (begin, rest["kind"]) == (reviews, "GatewayClass")
    elif form == "yaml":
        found = [*yaml.safe_load_all(text)]
        assert (found[0], found[1]["kind"]) == (reviews, "GatewayClass")
    else:
        assert [line.split()[0] for line in text.splitlines()][:4] == ["NAME", "reviews", "NAME", "other"]


def test_get_and_delete_by_labels(mesh: Mesh, weft: Weft, rule: Path) -> None:
    labelled = RULE.replace("name: reviews", "name: NAME\n  labels: {tier: TIER}", 1)
    for name, tier in (("a", "web"), ("b", "web"), ("c", "store")):
        mesh.apply(labelled.replace("NAME", name).replace("TIER", tier), file=f"{name}.yaml")
    weft("apply", "-f", rule)
    prefix = "virtualservice.networking.istio.io/"

    def found(*arguments: str) -> str:
        return weft("get", *arguments, "-o", "name").stdout.replace(prefix, "").replace("\n", " ").strip()

    assert found("vs", "-l", "tier=web") == "a b"
    assert found("-l", "tier!=web") == "c reviews"
    assert found("vs", "-l", "tier in (web,store),tier") == "a b c"
    assert found("vs", "-l", "!tier") == "reviews"
    assert weft("get", "vs", "-l", "tier=none").stderr == "No objects found in namespace default.\n"
    assert weft("get", "vs", "a", "-l", "tier").exit_code == 2
    assert weft("get", "-f", rule, "-l", "tier").exit_code == 2
    for arguments in (
        ("vs", "a", "-l", "tier"),
        ("vs", "--all", "-l", "tier"),
        ("-f", rule, "-l", "tier"),
        ("-l", "a"),
    ):
        assert weft("delete", *arguments).exit_code == 2
    assert weft("delete", "vs", "-l", "tier =").exit_code == 0
    assert weft("delete", "vs", "-l", "tier in (web)", "-o", "name").stdout.split() == [f"{prefix}a", f"{prefix}b"]
    assert found("vs") == "c reviews"


def test_get_goes_on_where_the_control_plane_is_started_again(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """What changes meanwhile is told, once; the end of the mesh ends it."""
    weft("apply", "-f", rule)
    Path("other.yaml").write_text(RULE.replace("reviews", "ratings"))
    # The control plane of these tests holds the lock itself; that of `weft up` outlives it.
    code = "import os; from weft.agent import paths; from weft.cli.main import main\n"
    code += "paths.lock_holder = lambda mesh: 1 if mesh.mesh_file.exists() else None\nmain()"
    command = [sys.executable, "-c", code, "get", "vs", "-w", "-o", "name"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "virtualservice.networking.istio.io/reviews\n"
        mesh.restart()
        weft("apply", "-f", "other.yaml")
        assert process.stdout.readline() == "virtualservice.networking.istio.io/ratings\n"
        weft("delete", "vs", "reviews")
        mesh.restart()
        assert process.stdout.readline() == "virtualservice.networking.istio.io/reviews\n"
        mesh.paths.mesh_file.unlink()
        mesh.kill()
        assert (process.wait(20), process.stdout.read()) == (0, "")
        assert process.stderr.read() == "The mesh 'test' has ended.\n"


def test_delete_all_of_a_kind(mesh: Mesh, weft: Weft, rule: Path) -> None:
    weft("apply", "-f", rule)
    Path("other.yaml").write_text(
        f"{RULE.replace('reviews', 'ratings')}---\n{RULE.replace('name: reviews', 'name: x, namespace: shop')}".replace(
            "metadata:\n  name: x, namespace: shop", "metadata: {name: x, namespace: shop}"
        )
    )
    assert weft("apply", "-f", "other.yaml").exit_code == 0
    assert weft("delete", "vs", "reviews", "--all").exit_code == 2
    assert weft("delete", "--all").exit_code == 2
    for form in ("table", "name"):
        result = weft("delete", "dr", "--all", "-o", form)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Nothing to delete.\n")
    assert len(weft("delete", "vs", "--all").stdout.splitlines()) == 2
    assert [item["key"]["namespace"] for item in mesh.client.get("/v1/config")] == ["shop"]


def test_a_store_that_cannot_be_written_is_exit_code_8(mesh: Mesh, weft: Weft, rule: Path) -> None:
    assert mesh.stop() == 0
    with closing(sqlite3.connect(mesh.paths.store)) as store:
        store.execute("CREATE TRIGGER full BEFORE INSERT ON objects BEGIN SELECT RAISE(ABORT, 'no space'); END")
        store.commit()
    mesh.start()
    result = weft("apply", "-f", rule)
    assert result.exit_code == 8, result.output
    assert "no space" in result.stderr


def test_apply_for_programs(mesh: Mesh, weft: Weft, rule: Path) -> None:
    answer = json.loads(weft("apply", "-f", rule, "-o", "json").stdout)
    assert answer["results"][0]["action"] == "created"
    assert answer["receipt"] is None


def test_get_prints_tables_and_whole_objects(mesh: Mesh, weft: Weft, rule: Path) -> None:
    for form in ("table", "wide", "name"):  # a loop over what is printed must not run once for nothing
        result = weft("get", "-o", form)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No objects found in namespace default.\n")
    assert json.loads(weft("get", "-A", "-o", "json").stdout)["items"] == []
    weft("apply", "-f", rule)
    head, row = weft("get", "vs").stdout.splitlines()
    assert head.split() == ["NAME", "GATEWAYS", "HOSTS", "AGE"]  # Istio's own, as `kubectl get vs` shows them
    assert row.split()[:3] == ["reviews", "-", "reviews"]
    head, row = weft("get", "vs", "-A", "-o", "wide").stdout.splitlines()
    assert head.split()[5:] == ["GENERATION", "ORIGIN", "REVISION", "APPLIED", "BY"]
    assert row.split()[:2] == ["default", "reviews"]
    assert row.split()[-4:] == ["1", "reviews.yaml:1:1", "2", "user"]
    assert weft("get", "-o", "name").stdout == "virtualservice.networking.istio.io/reviews\n"
    assert yaml.safe_load(weft("get", "vs/reviews", "-o", "yaml").stdout) == yaml.safe_load(RULE)
    listed = json.loads(weft("get", "vs", "-o", "json").stdout)
    assert (listed["kind"], len(listed["items"])) == ("List", 1)


def test_what_get_prints_can_be_applied(mesh: Mesh, weft: Weft, rule: Path) -> None:
    weft("apply", "-f", rule)
    text = weft("get", "vs", "-o", "yaml").stdout
    result = weft("apply", "-f", "-", input=text)
    assert result.stdout.splitlines()[0] == "virtualservice.networking.istio.io/reviews unchanged"


def test_what_get_adds_is_no_reason_to_refuse_it(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """A status is what this control plane writes itself, and reads of nobody."""
    mesh.apply(GATEWAY_CLASS)
    text = weft("get", "gc", "other", "-o", "yaml").stdout
    assert "status:" in text
    result = weft("apply", "-f", "-", "--strict", input=text)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "gatewayclass.gateway.networking.k8s.io/other unchanged"


def test_get_of_what_is_not_there_is_exit_code_4(mesh: Mesh, weft: Weft, rule: Path) -> None:
    weft("apply", "-f", rule)
    result = weft("get", "vs", "nobody")
    assert result.exit_code == 4
    assert "There are: VirtualService default/reviews." in result.stderr
    result = weft("get", "vs", "reviews", "nobody", "-o", "name")
    assert (result.exit_code, result.stdout) == (4, "virtualservice.networking.istio.io/reviews\n")
    assert "Not found: VirtualService nobody." in result.stderr


def test_the_namespace_of_the_mesh_is_that_of_commands_too(
    weft: Weft, rule: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[WorkloadSpec] = []
    for mesh in running_mesh({"namespace": "shop"}):
        for name, value in mesh.environment.items():
            monkeypatch.setenv(name, value)
        assert weft("get").stderr == "No objects found in namespace shop.\n"
        name = "virtualservice.networking.istio.io/reviews"
        assert weft("apply", "-f", rule).stdout.startswith(f"{name} created (namespace shop)\n")
        assert weft("get", "vs", "-o", "name").stdout == f"{name}\n"
        assert weft("get", "vs", "-n", "default", "-o", "name").stdout == ""
        assert weft("diff", "-f", rule).exit_code == 0
        assert weft("delete", "vs", "reviews").exit_code == 0
        assert mesh.client.get("/v1/config") == []
        monkeypatch.setattr(run, "run", lambda _, spec: joined.append(spec))  # joins a mesh that has namespaces
        monkeypatch.setenv("WEFT_PROXY", "weft-proxy")
        for arguments in ((), ("-n", "default")):
            assert weft("run", *arguments, "--", "true").exit_code == 0
        assert [spec.namespace for spec in joined] == ["shop", "default"]


def test_delete_by_name_and_by_file(mesh: Mesh, weft: Weft, rule: Path) -> None:
    for arguments in (("vs", "reviews"), ("-f", rule)):
        weft("apply", "-f", rule)
        result = weft("delete", *arguments)
        assert result.stdout == "virtualservice.networking.istio.io/reviews deleted\n"
        assert mesh.client.get("/v1/config") == []
    assert weft("delete", "vs", "reviews").exit_code == 4
    assert weft("delete", "vs", "reviews", "--ignore-not-found").exit_code == 0
    assert weft("delete").exit_code == 2
    assert weft("delete", "vs").exit_code == 2


def test_delete_needs_no_more_of_a_file_than_what_the_object_is_called(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """The spec has been broken since; kubectl needs `apiVersion`, `kind` and `metadata`, too."""
    weft("apply", "-f", rule)
    rule.write_text(BAD)
    result = weft("delete", "-f", rule)
    assert (result.exit_code, result.stdout) == (0, "virtualservice.networking.istio.io/reviews deleted\n")
    rule.write_text(BAD.replace("  name: reviews\n", "  nmae: reviews\n"))
    result = weft("delete", "-f", rule)
    assert result.exit_code == 3
    assert "reviews.yaml:3:1: error: metadata.name: `name` is missing." in result.stderr


def test_delete_warns_of_what_refers_to_what_is_gone(mesh: Mesh, weft: Weft, rule: Path) -> None:
    mesh.running("reviews")
    rule.write_text(RULE.replace("{host: reviews}", "{host: reviews, subset: v1}"))
    text = "spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}\n"
    head = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\n"
    Path("subsets.yaml").write_text(head + text)
    assert weft("apply", "-f", rule, "-f", "subsets.yaml", "--strict", "--no-wait").exit_code == 0
    for arguments in (("--dry-run",), ("--no-wait",)):
        result = weft("delete", "dr", "reviews", *arguments)
        assert result.exit_code == 0
        assert "no DestinationRule defines the subset `v1` of `reviews`" in result.stderr
        assert "reviews.yaml:10:" in result.stderr


def test_delete_ignores_only_what_is_not_there(mesh: Mesh, weft: Weft, rule: Path) -> None:
    name = "virtualservice.networking.istio.io/reviews"
    for arguments in (("vs", "nobody", "reviews"), ("-f", rule, "-f", "ratings.yaml")):
        weft("apply", "-f", rule)
        Path("ratings.yaml").write_text(RULE.replace("reviews", "ratings"))
        assert weft("delete", *arguments).exit_code == 4
        assert len(mesh.client.get("/v1/config")) == 1
        result = weft("delete", *arguments, "--ignore-not-found")
        assert (result.exit_code, result.stdout) == (0, f"{name} deleted\n")
        assert mesh.client.get("/v1/config") == []


@pytest.mark.parametrize("command", [("get", "vs"), ("delete", "vs", "reviews"), ("apply", "-f", "x")])
def test_a_namespace_that_cannot_be_one_is_refused(mesh: Mesh, weft: Weft, command: tuple[str, ...]) -> None:
    done = weft(*command, "-n", "Bad_NS")
    assert done.exit_code == 2
    assert "--namespace 'Bad_NS': a namespace is at most 63 lower-case letters" in done.stderr


def test_a_namespace_beside_files_is_that_of_what_names_none(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """As kubectl has it: what names another is refused, with its place."""
    name = "virtualservice.networking.istio.io/reviews"
    assert weft("apply", "-f", rule, "-n", "shop").stdout.splitlines()[0] == f"{name} created (namespace shop)"
    assert [item["key"]["namespace"] for item in mesh.client.get("/v1/config")] == ["shop"]
    mesh.restart()
    assert weft("apply", "-f", rule, "-n", "shop").stdout.splitlines()[0] == f"{name} unchanged (namespace shop)"
    assert weft("diff", "-f", rule, "-n", "shop").exit_code == 0
    assert weft("diff", "-f", rule).exit_code == 1
    assert weft("get", "-f", rule, "-n", "shop", "-o", "name").stdout == f"{name}\n"
    assert weft("get", "-f", rule).exit_code == 4
    other = rule.with_name("other.yaml")
    other.write_text(RULE.replace("name: reviews", "name: reviews\n  namespace: shop", 1))
    for command in ("apply", "diff", "get", "delete"):
        result = weft(command, "-f", other, "-n", "default")
        assert result.exit_code == 3
        assert (
            "other.yaml:5:14: error: metadata.namespace: this is of namespace `shop`, and `default` was asked for."
            in result.stderr
        )
        assert "Leave -n out, or write -n shop." in result.stderr
    assert weft("apply", "-f", other, "-n", "default", "--dry-run=client").exit_code == 3
    assert weft("delete", "-f", rule).exit_code == 4
    assert weft("delete", "-f", rule, "-n", "shop").stdout == f"{name} deleted (namespace shop)\n"
    with pytest.raises(UsageError, match=r"^`namespace`: a namespace is at most 63 lower-case letters"):
        mesh.client.post("/v1/apply", {"documents": [], "namespace": "Bad_NS"})


def test_an_object_of_the_whole_mesh_is_seen_from_every_namespace(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """As kubectl has it: -n says nothing of a GatewayClass."""
    name = "gatewayclass.gateway.networking.k8s.io/other"
    rule.write_text(f"{RULE}---\n{GATEWAY_CLASS}")
    created = weft("apply", "-f", rule, "-n", "shop").stdout.splitlines()
    assert created[:2] == ["virtualservice.networking.istio.io/reviews created (namespace shop)", f"{name} created"]
    mesh.restart()
    rule.write_text(GATEWAY_CLASS)
    for where in ((), ("-n", "shop"), ("-n", "store")):
        assert weft("apply", "-f", rule, *where).stdout.splitlines()[0] == f"{name} unchanged"
        assert weft("diff", "-f", rule, *where).exit_code == 0
        assert weft("get", "-f", rule, *where, "-o", "name").stdout == f"{name}\n"
        assert weft("get", "gc", "other", *where, "-o", "name").stdout == f"{name}\n"
        checked = weft("apply", "-f", rule, *where, "--dry-run=client", "-o", "yaml").stdout
        assert yaml.safe_load(checked)["metadata"] == {"name": "other"}
    assert weft("get", "gc", "-A").stdout.split()[:2] == ["NAME", "CONTROLLER"]
    heads = [line.split()[0] for line in weft("get", "vs,gc", "-A").stdout.splitlines() if "NAME" in line]
    assert heads == ["NAME", "NAMESPACE"]
    missing = weft("delete", "gc", "another", "-n", "shop")
    assert missing.stderr.startswith("error: Not found: GatewayClass another. There are: GatewayClass other, ")
    rule.write_text(GATEWAY_CLASS.replace("weft.dev", "example.org"))
    assert "--- live: GatewayClass other\n" in weft("diff", "-f", rule, "-n", "shop").stdout
    assert weft("delete", "gc", "other", "-n", "store").stdout == f"{name} deleted\n"


def test_diff_is_a_unified_diff_and_exits_1_when_different(mesh: Mesh, weft: Weft, rule: Path) -> None:
    with_proxy(mesh)
    weft("apply", "-f", rule, "--no-wait")
    result = weft("diff", "-f", rule)
    assert (result.exit_code, result.stdout) == (0, "Nothing would change.\n")
    rule.write_text(RULE.replace("3s", "4s"))
    result = weft("diff", "-f", rule)
    assert result.exit_code == 1
    assert {"-  - timeout: 3s", "+  - timeout: 4s"} <= set(result.stdout.splitlines())
    assert "# proxy productpage-v1-0: 1 route changed" in result.stdout
    assert mesh.client.get("/v1/config")[0]["generation"] == 1


def test_diff_leaves_out_what_has_only_moved(mesh: Mesh, weft: Weft, rule: Path) -> None:
    with_proxy(mesh)
    weft("apply", "-f", rule, "--no-wait")
    moved = rule.rename(rule.with_name("moved.yaml"))
    result = weft("diff", "-f", moved)
    assert (result.exit_code, result.stdout) == (0, "Nothing would change.\n")
    # One that changes beside one that has moved: the proxies that are named are those of the change.
    other = RULE.replace("reviews", "productpage")
    moved.write_text(f"{other}---\n{RULE}")
    result = weft("diff", "-f", moved, "-o", "json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert [change["key"]["name"] for change in answer["changes"]] == ["productpage"]
    assert answer["resources"] == {}


def test_status_shows_each_proxy_and_what_is_wrong(mesh: Mesh, weft: Weft, rule: Path) -> None:
    assert weft("status").stdout == "No program runs in this mesh yet.\n"
    with_proxy(mesh, refuses=frozenset({"9080"}))
    until(lambda: mesh.status("productpage-v1-0")["refused"])
    lines = weft("status").stdout.splitlines()
    assert lines[1].split()[:2] == ["productpage-v1-0", "refused"]
    assert lines[2].split()[:3] == ["reviews-v1-0", "not", "connected"]
    assert "  productpage-v1-0: refused 9080: cannot do 9080" in lines
    assert "refused 9080" in weft("status", "productpage-v1-0").stdout
    result = weft("status", "productpage-v1")
    assert result.exit_code == 4
    assert "Did you mean 'productpage-v1-0'?" in result.stderr


def test_status_shows_which_revision_each_proxy_has(mesh: Mesh, weft: Weft, rule: Path) -> None:
    """The last that it has answered, beside one that is not up to date; none of a proxy that has never been there."""
    client = mesh.running("productpage", port=None)
    mesh.running("reviews")
    proxy = mesh.proxy(client)
    until(lambda: mesh.status(client.name)["connected"])

    def shown() -> dict[str, str]:
        head, *rows = (re.split(" {2,}", line) for line in weft("status").stdout.splitlines()[:3])
        return {row[0]: row[head.index("REVISION")] for row in rows}

    first = str(json.loads(weft("apply", "-f", rule, "--no-wait", "-o", "json").stdout)["revision"])
    until(lambda: str(mesh.status(client.name)["revision"]) == first)
    assert shown() == {"productpage-v1-0": first, "reviews-v1-0": "-"}
    proxy.silent = True
    rule.write_text(RULE.replace("3s", "4s"))
    assert weft("apply", "-f", rule, "--no-wait").exit_code == 0
    until(lambda: mesh.status(client.name)["published"] > int(first))
    assert shown() == {"productpage-v1-0": first, "reviews-v1-0": "-"}


def test_status_of_a_revision_names_the_silent(mesh: Mesh, weft: Weft, rule: Path) -> None:
    mesh.running("reviews")
    revision = json.loads(weft("apply", "-f", rule, "--no-wait", "-o", "json").stdout)["revision"]
    text = weft("status", "--revision", revision).stdout
    assert f"Revision {revision} at " in text
    assert "apply: VirtualService default/reviews created" in text
    assert "  silent   reviews-v1-0" in text
    assert weft("status", "--revision", 999).exit_code == 4


def test_a_revision_that_was_refused_is_not_said_to_be_there_when_it_is_mended(
    mesh: Mesh, weft: Weft, rule: Path
) -> None:
    mesh.running("reviews")
    client = mesh.running("productpage", port=None)
    proxy = mesh.proxy(client, refuses=frozenset({"9080"}))
    bad = json.loads(weft("apply", "-f", rule, "--no-wait", "-o", "json").stdout)["revision"]
    until(lambda: mesh.status(client.name)["refused"])
    proxy.refuses = frozenset()
    rule.write_text(RULE.replace("3s", "4s"))
    mended = json.loads(weft("apply", "-f", rule, "--no-wait", "-o", "json").stdout)["revision"]
    until(lambda: mesh.status(client.name)["synced"])

    assert weft("status", "--revision", bad).stdout.splitlines()[1:] == [
        "0 of 2 affected proxies have acknowledged.",
        "  silent   reviews-v1-0",
        f"Refused by 1 of 2 (superseded by revision {mended}, which it has).",
        "  refused  productpage-v1-0: 9080: cannot do 9080 (from reviews.yaml:5:1, reviews.yaml:8:5)",
    ]
    result = weft("wait", "--revision", bad, "--timeout", "100ms")
    assert result.exit_code == 6
    assert (
        f"refused 9080: cannot do 9080 (from reviews.yaml:5:1, reviews.yaml:8:5) (superseded by revision {mended}"
        in (result.stderr)
    )


@pytest.mark.parametrize(
    ("refusals", "line"),
    [
        ({"a": (None, False), "b": (None, False)}, "Refused by 2 of 2."),
        ({"a": (11, True), "b": (11, True)}, "Refused by 2 of 2 (superseded by revision 11, which they have)."),
        ({"a": (11, False), "b": (11, False)}, "Refused by 2 of 2 (superseded by revision 11, which they have not)."),
        ({"a": (11, True), "b": (11, False)}, "Refused by 1 of 2 (superseded by revision 11, which it has not)."),
    ],
)
def test_who_refused_a_revision_is_counted_by_what_became_of_it(
    refusals: dict[str, tuple[int | None, bool]], line: str
) -> None:
    part = {"name": "9080", "message": "no", "origins": []}
    refused = [
        {"workload": name, "resources": [part], "superseded_by": end, "mended": mended}
        for name, (end, mended) in refusals.items()
    ]
    receipt = {"revision": 10, "time": None, "summary": "", "affected": [*refusals], "acknowledged": [], "silent": []}
    receipt |= {"late": []}
    lines = status.receipt_text({**receipt, "refused": refused}).splitlines()
    assert line in lines
    assert len([it for it in lines if it.startswith("  refused  ")]) == 2


def test_a_revision_of_which_nothing_is_known_any_more_is_exit_code_4(mesh: Mesh, weft: Weft, rule: Path) -> None:
    revision = json.loads(weft("apply", "-f", rule, "--no-wait", "-o", "json").stdout)["revision"]
    mesh.kill()
    mesh.paths.receipts.unlink()
    mesh.start()
    for command in ("status", "wait"):
        result = weft(command, "--revision", revision)
        assert result.exit_code == 4
        assert result.stderr == (
            f"error: What became of revision {revision} is not known any more; it is from revision {revision + 1} on.\n"
        )


def test_the_certificates_remaining_life_is_shown(mesh: Mesh, weft: Weft) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    agent = mesh.running("reviews")
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    agent.send(type="sign", csr=csr.public_bytes(serialization.Encoding.PEM).decode())
    certificate = agent.receive("certificate")
    leaf = x509.load_pem_x509_certificates(certificate["chain"].encode())[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [agent.registered["identity"]]

    (proxy,) = json.loads(weft("status", "-o", "json").stdout)
    assert proxy["certificate"]["not_after"] == certificate["not_after"]
    assert 0 < proxy["certificate"]["remaining_seconds"] <= 86400
    assert " h " in weft("status").stdout


def test_wait_returns_when_all_are_in_sync_and_names_those_that_are_not(mesh: Mesh, weft: Weft) -> None:
    client = mesh.running("productpage", port=None)
    result = weft("wait", "--timeout", "50ms")
    assert result.exit_code == 6
    assert "productpage-v1-0 did not answer within 50 ms." in result.stderr
    mesh.proxy(client)
    result = weft("wait")
    assert (result.exit_code, result.stdout) == (0, "1 proxy is in sync.\n")


def test_ctrl_c_while_proxies_are_waited_for_says_what_is_stored_and_who_has_yet_to_answer(
    mesh: Mesh, weft: Weft, rule: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mesh.running("productpage", port=None)
    server = mesh.running("reviews")
    mesh.proxy(client, silent=True)
    get = Client.get

    def interrupted(self: Client, path: str, **query: Any) -> Any:
        if query.get("wait"):
            raise KeyboardInterrupt
        return get(self, path, **query)

    monkeypatch.setattr(Client, "get", interrupted)
    for command, done in ((("apply", "-f", rule), "created"), (("delete", "vs", "reviews"), "deleted")):
        result = weft(*command, "--timeout", "1h")
        revision = mesh.client.get("/v1/version")["revision"]
        assert (result.exit_code, result.stdout) == (130, f"virtualservice.networking.istio.io/reviews {done}\n")
        assert result.stderr == (
            f"error: Interrupted. Revision {revision} is stored and takes effect all the same; {client.name}, {server.name}"
            f" have not acknowledged it yet. `weft wait --revision {revision}` waits for them.\n"
        )

    def sent(self: Client, *_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "_send", sent)
    result = weft("delete", "-f", rule)
    assert result.exit_code == 130
    assert result.stderr == (
        "error: Interrupted. The change may be made all the same: `weft get` shows what is in force.\n"
    )


def test_an_agent_that_is_silent_is_named_and_one_that_is_stopped_is_not_waited_for(
    mesh: Mesh, weft: Weft, rule: Path
) -> None:
    """All three commands say the same of it, and why."""
    client = mesh.running("productpage", port=None)
    mesh.proxy(client)
    late = mesh.running("reviews", takes_names=False)
    mesh.proxy(late)
    process = mesh.status(late.name)["agent"]["pid"]
    reason = f"its agent, process {process}, is silent: its program is not answered by the names of now."
    rule.write_text(f"{RULE}---\n{SERVICE.format(name='one')}")
    for command in (("apply", "-f", rule), ("apply", "-f", rule), ("wait",), ("wait", "--revision", 1)):
        result = weft(*command, "--timeout", "500ms")
        assert result.exit_code == 6, (command, result.output)
        assert result.stderr.splitlines()[-1] == f"error: {late.name}: {reason}"
    shown = weft("status").stdout.splitlines()
    assert [line.split()[:2] for line in shown[1:3]] == [[client.name, "synced"], [late.name, "behind"]]
    assert f"  {late.name}: {reason}" in shown
    revision = mesh.client.get("/v1/version")["revision"]
    assert f"  late     {late.name}: {reason}" in weft("status", "--revision", revision).stdout
    rule.write_text(RULE.replace("3s", "5s"))
    assert weft("apply", "-f", rule, "--timeout", "1h").exit_code == 0, "it changes no names"
    late.close()
    until(lambda: len(mesh.client.get("/v1/workloads")) == 1)

    apart = mesh.running("reviews", takes_names=False, apart=True)
    assert apart.process is not None
    apart.process.send_signal(signal.SIGSTOP)
    until(lambda: mesh.status(apart.name)["agent"]["state"] == "stopped")
    rule.write_text(f"{RULE.replace('3s', '4s')}---\n{SERVICE.format(name='another')}")
    reason = f"its agent, process {apart.process.pid}, is stopped, as by Ctrl-Z; it gets what is new when it goes on"
    for command in (("apply", "-f", rule), ("wait",)):
        result = weft(*command, "--timeout", "1h")
        assert result.exit_code == 0, (command, result.output)
        assert result.stderr.startswith(f"{apart.name} was not waited for: {reason}")
    assert result.stdout == "1 proxy is in sync.\n"
    assert f"  {apart.name}: {reason}" in weft("status").stdout


def test_wait_ends_at_a_refusal_and_says_what_was_refused(mesh: Mesh, weft: Weft) -> None:
    mesh.running("reviews")
    client = mesh.running("productpage", port=None)
    mesh.proxy(client, refuses=frozenset({"9080"}))
    until(lambda: mesh.status(client.name)["refused"])
    result = weft("wait", "--timeout", "1h")
    assert result.exit_code == 6
    assert result.stderr == "error: productpage-v1-0 refused 9080: cannot do 9080\n"


def test_a_wait_may_be_longer_than_one_call_may_last(
    mesh: Mesh, weft: Weft, rule: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mesh.running("reviews")
    revision = json.loads(weft("apply", "-f", rule, "--no-wait", "-o", "json").stdout)["revision"]
    with monkeypatch.context() as short:
        short.setattr(apply, "LONGEST_WAIT_SECONDS", 0.01)
        result = weft("wait", "--revision", revision, "--timeout", "100ms")
    assert (result.exit_code, result.stderr) == (6, "error: reviews-v1-0 did not answer within 100 ms.\n")
    mesh.proxy(client)
    assert weft("wait", "--revision", revision, "--timeout", "11m").exit_code == 0


@pytest.mark.parametrize("kind", ["listeners", "routes", "clusters", "endpoints"])
def test_proxy_config_prints_tables_and_the_whole_messages(mesh: Mesh, weft: Weft, kind: str) -> None:
    server = mesh.running("reviews")
    expected = {
        "listeners": "routes 9080",
        "routes": "outbound|9080||reviews.default.svc.cluster.local",
        "clusters": "reviews.default.svc.cluster.local",
        "endpoints": f"{server.registered['address']}:9080",
    }
    result = weft("proxy-config", kind, server.name)
    assert result.exit_code == 0
    assert expected[kind] in result.stdout
    whole = json.loads(weft("proxy-config", kind, server.name, "-o", "json").stdout)
    assert whole
    if kind == "listeners":
        filters = [item for found in whole for chain in found.get("filter_chains", ()) for item in chain["filters"]]
        assert any("http_filters" in item["typed_config"] for item in filters)  # what is packed is unpacked


def test_proxy_config_of_nobody_lists_who_there_is(mesh: Mesh, weft: Weft) -> None:
    mesh.running("reviews")
    assert weft("proxy-config", "routes", "nobody").exit_code == 4
    result = weft("proxy-config", "rout", "reviews-v1-0")
    assert result.exit_code == 2
    assert "Did you mean 'routes'?" in result.stderr


def test_version_works_without_a_mesh_and_with_one(mesh: Mesh, weft: Weft) -> None:
    assert weft("version", "--client").stdout.startswith("client   ")
    mesh.running("reviews")
    assert "proxies  weft-proxy (1 proxy)" in weft("version").stdout
    assert weft("-m", "nobody", "version").exit_code == 5
    assert weft("--version").stdout == weft("version").stdout
    assert weft("-m", "nobody", "--version").exit_code == 5
    assert weft("--version", "get").exit_code == 2
    assert weft("-m", "nobody").exit_code == 2


def test_version_tells_several_meshes_from_none(mesh: Mesh, weft: Weft, monkeypatch: pytest.MonkeyPatch) -> None:
    other = paths.mesh_paths("other")
    other.make()
    other.mesh_file.write_text("{}")
    monkeypatch.setattr(paths, "lock_holder", lambda _: 1)
    line = "mesh     several run: other, test; say which one with --mesh NAME"
    assert weft("version").stdout.splitlines()[1:] == [line]
    assert json.loads(weft("version", "-o", "json").stdout)["running"] == ["other", "test"]
    assert json.loads(weft("version", "-o", "json", "-m", "test").stdout)["mesh"]["mesh"] == "test"
    monkeypatch.setattr(paths, "lock_holder", lambda _: None)
    assert weft("version").stdout.splitlines()[1:] == ["mesh     none runs"]


def test_why_is_answered_in_process(mesh: Mesh, weft: Weft, rule: Path) -> None:
    mesh.running("reviews")
    mesh.running("productpage")
    weft("apply", "-f", rule, "--no-wait")
    text = weft("why", "--from", "productpage", "--to", "http://reviews:9080/reviews/0").stdout
    assert "VirtualService default/reviews, spec.http[0] (reviews.yaml:8:5)" in text
    assert "timeout  3 s" in text
    answer = json.loads(weft("why", "--from", "productpage", "--to", "http://reviews:9080/", "-o", "json").stdout)
    assert answer["outbound"]["timeout_ms"] == 3000
    assert weft("why", "--from", "productpage", "--to", "http://reviews:9080/", "-H", "bad").exit_code == 2


@pytest.mark.parametrize(
    "question",
    [
        ("status",),
        ("status", "productpage-v1-0"),
        ("status", "--revision", "REVISION"),
        ("why", "--from", "productpage", "--to", "http://reviews:9080/"),
        ("why", "--last-failed"),
        ("doctor",),
        ("get",),
        ("ps",),
        ("wait", "--revision", "REVISION"),
        ("version",),
        ("ca",),
    ],
)
def test_yaml_says_what_json_says(
    mesh: Mesh, weft: Weft, rule: Path, monkeypatch: pytest.MonkeyPatch, question: tuple[str, ...]
) -> None:
    findings = [doctor.Finding("root namespaces", works=False, obstacle='none: "here"', remedy="a\nb")]
    findings.append(doctor.Finding(doctor.EXPLICIT, works=True))
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    for agent in (mesh.running("reviews"), mesh.running("productpage", port=None)):
        mesh.proxy(agent)
        until(lambda name=agent.name: mesh.status(name)["connected"])
    assert weft("apply", "-f", rule).exit_code == 0
    revision = str(mesh.client.get("/v1/version")["revision"])
    question = tuple(revision if word == "REVISION" else word for word in question)
    said = [weft(*question, "-o", form) for form in ("json", "yaml")]
    assert [result.exit_code for result in said] == [0, 0], said[0].stderr
    assert still(json.loads(said[0].stdout)) == still(yaml.safe_load(said[1].stdout))


def test_the_doctors_table_says_what_is_in_the_way_and_what_to_do(weft: Weft, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the row of what does not work; a mesh cannot run, which is exit code 7, where no mode works."""
    findings = [
        doctor.Finding("a network namespace", works=True),
        doctor.Finding("nftables", works=False, obstacle="the kernel has none", remedy="modprobe nf_tables"),
        doctor.Finding("swap", works=False, needed=False, obstacle="there is none"),
        doctor.Finding(doctor.EXPLICIT, works=True),
    ]
    rows = [
        "yes  a network namespace",
        "no   nftables: the kernel has none",
        "     modprobe nf_tables",
        "no   swap: there is none",
    ]
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    done = weft("doctor")
    assert (done.exit_code, done.stdout.splitlines()) == (0, [*rows, "yes  explicit mode"])
    findings[-1] = doctor.Finding(doctor.EXPLICIT, works=False, obstacle="/proc is hidden", remedy="mount it")
    done = weft("doctor")
    assert (done.exit_code, done.stdout.splitlines()) == (
        7,
        [*rows, "no   explicit mode: /proc is hidden", "     mount it"],
    )


def still(data: object) -> object:
    """Return *data* without what differs from one moment to the next."""
    if isinstance(data, dict):
        return {key: still(value) for key, value in data.items() if key != "remaining_seconds"}
    return [still(item) for item in data] if isinstance(data, list) else data


def test_ctrl_c_is_exit_code_130(mesh: Mesh) -> None:
    mesh.running("productpage", port=None)
    command = [sys.executable, "-m", "weft.cli.main", "wait", "--timeout", "60s"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    until(lambda: not mesh.connections(), what="the calls before are over")
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        until(lambda: len(mesh.connections()) > 0, what="the command waits for its answer")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip() == b""


def test_an_output_that_nobody_reads_is_no_error_message(mesh: Mesh) -> None:
    command = f"{sys.executable} -m weft.cli.main version -o json | true"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_secrets_of_weft_proxy_are_a_table() -> None:
    """As the proxy's `GET /certs` has them: a chain under its name, the roots, and how many keys seal session tickets."""
    uri, authority = "spiffe://cluster.local/ns/default/sa/ratings", "spiffe://cluster.local"
    leaf = {
        "serial_number": "1f",
        "subject_alt_names": [{"dns": "ratings"}, {"uri": uri}],
        "expiration_time": "2030-11-25T01:43:42Z",
    }
    root = {"subject_alt_names": [{"uri": authority}], "expiration_time": "2030-11-26T01:43:42Z"}
    named = {"name": "own", "cert_chain": [leaf]}, {"name": "trusted", "ca_cert": [root]}
    certificates = [*named, {"name": "tickets", "session_ticket_keys": 2}]
    data = {"identity": uri, "signed": {"not_after": None}, "certificates": certificates}
    lines = secrets_table(data, datetime(2030, 11, 25, 0, 43, 42, tzinfo=UTC)).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["own", uri, "1f"], ["trusted", authority, "-"]]
    assert lines[1].endswith("1 h 0 m")


def test_secrets_of_an_envoy_are_shown_once_each() -> None:
    """It lists them for each cluster and filter chain that uses them, and none before there is one; who does not answer is told."""
    uri, end = "spiffe://cluster.local/ns/default/sa/ratings", "2030-11-25T01:43:42Z"
    leaf = {"serial_number": "1f", "subject_alt_names": [{"uri": uri}], "expiration_time": end}
    use = {"cert_chain": [leaf], "ca_cert": [leaf | {"serial_number": "2f"}]}
    now = datetime(2030, 11, 25, 0, 43, 42, tzinfo=UTC)
    data = {"identity": uri, "signed": {"not_after": end}, "certificates": [use, use]}
    lines = secrets_table(data, now).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["default", uri, "1f"], ["ROOTCA", uri, "2f"]]
    assert secrets_table(data | {"certificates": []}, now) == "The proxy has no certificate yet."
    assert "does not answer" in secrets_table(data | {"certificates": None}, now)


def test_ca_shows_and_rotates_the_authoritys_keys(mesh: Mesh, weft: Weft) -> None:
    text = weft("ca").stdout
    assert [line.split()[:3] for line in text.splitlines()[1:4]] == [
        ["root", "1", "signing"],
        ["root", "2", "standby"],
        ["intermediate", "of", "root"],
    ]
    assert weft("ca", "rotate").exit_code == 2
    assert weft("ca", "status", "--root").exit_code == 2
    before = json.loads(weft("ca", "-o", "json").stdout)
    after = json.loads(weft("ca", "rotate", "--root", "-o", "json").stdout)
    assert (before["intermediate"]["root"], after["intermediate"]["root"]) == (1, 2)
    assert weft("ca", "status").stdout.splitlines()[1].split()[:3] == ["root", "1", "retiring"]
    mesh.running("reviews")
    assert "root 1 still trusted until" in weft("status").stdout


def test_logs_of_a_misspelt_name_are_refused_beside_others(mesh: Mesh, weft: Weft) -> None:
    mesh.paths.workload("reviews-v1-0").make("reviews")
    mesh.paths.workload("reviews-v1-0").output_log.write_text("2026-01-31T12:00:00.123Z hello\n")
    assert weft("logs", "reviews").stdout.endswith(" hello\n")
    result = weft("logs", "reviews", "ratigns")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "'ratigns'" in result.stderr


def test_logs_of_nobody_say_what_runs_and_what_has_ended(mesh: Mesh, weft: Weft) -> None:
    for name in ("ended-v1-0", "running-v1-0"):
        mesh.paths.workload(name).output_log.parent.mkdir(parents=True)
    mesh.paths.workload("running-v1-0").write_init(1)
    result = weft("logs", "zzz")
    assert result.exit_code == 4
    assert result.stderr == (
        "error: There is no program 'zzz'. Running: running-v1-0. Ended, with logs still there: ended-v1-0.\n"
    )
    assert "Did you mean 'running-v1-0'?" in weft("logs", "runing-v1-0").stderr


def test_a_gateway_runs_though_it_has_no_program(mesh: Mesh, weft: Weft) -> None:
    mesh.running("door", name="door-0", kind="gateway")
    mesh.paths.workload("door-0").output_log.parent.mkdir(parents=True, exist_ok=True)
    assert weft("logs", "zzz").stderr == "error: There is no program 'zzz'. Running: door-0.\n"


def test_logs_for_programs(mesh: Mesh, weft: Weft) -> None:
    files = mesh.paths.workload("reviews-v1-0")
    files.output_log.parent.mkdir(parents=True)
    files.output_log.write_text("2026-01-31T12:00:00.123Z hello: there\n")
    files.access_log.write_text('{"start_time": "2026-01-31T12:00:01.000Z", "method": "GET", "response_code": 200}\n')
    lines = [json.loads(line) for line in weft("logs", "-o", "json").stdout.splitlines()]
    assert [*yaml.load_all(weft("logs", "-o", "yaml").stdout, yaml.BaseLoader)] == [
        {"time": "2026-01-31T12:00:00.123Z", "workload": "reviews-v1-0", "kind": "output", "text": "hello: there"},
        {
            "time": "2026-01-31T12:00:01.000Z",
            "workload": "reviews-v1-0",
            "kind": "access",
            "access": {"start_time": "2026-01-31T12:00:01.000Z", "method": "GET", "response_code": "200"},
        },
    ]
    assert [line["kind"] for line in lines] == ["output", "access"]


def test_logs_follow_output_and_requests(mesh: Mesh, weft: Weft, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it comes, also of a program that joins meanwhile, until the mesh has ended."""

    def write(workload: str, second: int) -> None:
        files = mesh.paths.workload(workload)
        with files.output_log.open("a") as log:
            log.write(f"2026-01-31T12:00:{second:02}.000Z {workload} writes {second}\n")
        with files.access_log.open("a") as log:
            log.write(json.dumps({"start_time": f"2026-01-31T12:00:{second:02}.500Z", "path": f"/{second}"}) + "\n")

    def rounds() -> Iterator[None]:
        write("reviews-v1-0", 2)
        yield
        mesh.paths.workload("reviews-v2-0").make("reviews")
        write("reviews-v2-0", 3)
        write("reviews-v1-0", 4)
        yield
        monkeypatch.setattr(paths, "lock_holder", lambda _: None)
        yield

    mesh.paths.workload("reviews-v1-0").make("reviews")
    write("reviews-v1-0", 1)
    waits = rounds()
    monkeypatch.setattr(logs, "time", SimpleNamespace(sleep=lambda _: next(waits)))
    lines = [json.loads(line) for line in weft("logs", "-f", "-o", "json", "reviews").stdout.splitlines()]
    assert [(line["workload"][8:10], line["text"] if "text" in line else line["access"]["path"]) for line in lines] == [
        ("v1", "reviews-v1-0 writes 1"),
        ("v1", "/1"),
        ("v1", "reviews-v1-0 writes 2"),
        ("v1", "/2"),
        ("v2", "reviews-v2-0 writes 3"),
        ("v2", "/3"),
        ("v1", "reviews-v1-0 writes 4"),
        ("v1", "/4"),
    ]


def test_a_published_port_of_an_ipv6_address_is_in_brackets() -> None:
    published = [
        {"port": 8080, "host_address": "::1", "host_port": 18080},
        {"port": 8080, "host_address": "127.0.0.1", "host_port": 18080},
    ]
    item = {"kind": "gateway", "published": published}
    assert ports(item) == "[::1]:18080->8080,127.0.0.1:18080->8080"


def test_a_record_of_a_called_program_names_who_called() -> None:
    """The caller's own proxy has no need to."""
    record = {"method": "GET", "authority": "b", "path": "/x", "response_code": 200, "duration_ms": 3}
    record |= {"downstream_remote_address": "10.244.0.7:40000"}
    assert "GET b/x from 10.244.0.7 " in access_text({**record, "direction": "inbound"})
    assert "10.244.0.7" not in access_text({**record, "direction": "outbound"})


def test_a_record_of_grpc_shows_its_status_where_it_is_not_ok() -> None:
    record = {"method": "POST", "authority": "b", "path": "/x", "response_code": 200, "duration_ms": 3}
    assert "b/x 200 grpc-status 14 (UNAVAILABLE) 3 ms" in click.unstyle(access_text({**record, "grpc_status": 14}))
    for none in (0, None):
        assert "b/x 200 3 ms" in click.unstyle(access_text({**record, "grpc_status": none}))


def test_a_record_of_what_the_proxy_itself_refused_says_why_without_a_flag() -> None:
    record = {"direction": "outbound", "upstream_cluster": "bytes", "response_flags": "-", "duration_ms": 7}
    refused = {**record, "response_code_details": "caller_http_on_tcp"}
    assert click.unstyle(access_text(refused)) == "--> TCP bytes caller_http_on_tcp 7 ms"
    assert click.unstyle(access_text({**record, "response_code_details": "via_upstream"})) == "--> TCP bytes 7 ms"


def test_the_record_of_a_connection_that_came_nowhere_says_where_it_was_going() -> None:
    record = {"direction": "outbound", "upstream_cluster": "BlackHoleCluster", "response_flags": "UH", "duration_ms": 0}
    record["downstream_local_address"] = "240.240.0.99:81"
    assert click.unstyle(access_text(record)) == "--> TCP BlackHoleCluster to 240.240.0.99:81 UH 0 ms"
    record |= {"upstream_cluster": "PassthroughCluster", "upstream_host": "93.184.216.34:443", "response_flags": "-"}
    assert click.unstyle(access_text(record)) == "--> TCP PassthroughCluster via 93.184.216.34:443 0 ms"
