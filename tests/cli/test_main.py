"""The frame of the command line: help, suggestions, exit codes, what it costs to start."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import yaml

from tests.cli.conftest import Weft
from weft.cli import wait
from weft.cli.documents import DURATION, read
from weft.cli.kinds import parse_references, plural, resolve
from weft.cli.logs import since_time
from weft.cli.main import COMMANDS, ExampleCommand, cli
from weft.cli.output import columns, duration
from weft.cli.problems import render, render_all
from weft.cli.run import host_port, label, named, not_runnable, once, port, version_of
from weft.cli.up import read_plan
from weft.errors import (
    InvalidConfiguration,
    MeshNotRunning,
    ModeUnavailable,
    NotFound,
    NotSynced,
    StoreError,
    UsageError,
    WeftError,
)
from weft.model import Origin, Problem, Severity

MINE = ("apply", "get", "delete", "diff", "status", "why", "proxy-config", "wait", "version", "control-plane")


def test_help_lists_every_command_by_section(weft: Weft) -> None:
    result = weft("--help")
    assert result.exit_code == 0
    for name, entry in COMMANDS.items():
        assert (f"  {name} " in result.output) is bool(entry.section)


@pytest.mark.parametrize("name", MINE)
def test_every_command_has_help_with_examples(weft: Weft, name: str) -> None:
    result = weft(name, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n  weft {name}" in result.output
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, ExampleCommand)


def test_a_misspelt_command_gets_the_nearest_one(weft: Weft) -> None:
    result = weft("aply", "-f", "x")
    assert result.exit_code == 2
    assert "There is no command 'aply'. Did you mean 'apply'?" in result.output


def test_help_imports_no_command() -> None:
    """Start-up stays fast because a command's module is imported only when it runs."""
    code = """
import sys
from weft.cli.main import cli
cli.main(["--help"], standalone_mode=False)
heavy = ("weft.api", "weft.agent", "yaml", "pydantic", "google")
print([name for name in sys.modules if name.startswith(heavy)])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


MODELS = ("pydantic", "yaml", "weft.api.parse", "weft.api.networking", "weft.api.gateway_api")
MESSAGES = ("google.protobuf", "envoy", "weft._native")
SERVERS = ("asyncio", "cryptography", "uvicorn", "starlette", "weft.controlplane")


@pytest.mark.parametrize(
    ("loads", "without"),
    [
        ("import weft.cli.version", (*MODELS, *MESSAGES, *SERVERS)),
        ("import weft.cli.ps, weft.cli.status, weft.cli.logs", (*MODELS, *MESSAGES, *SERVERS)),
        ("from weft.cli.kinds import resolve; resolve('vs')", (*MODELS, *MESSAGES, *SERVERS)),
        ("from weft.cli.run import port; port('8080', explicit=False)", (*MODELS, *MESSAGES, *SERVERS)),
        ("import weft.cli.why, weft.insight", (*MODELS, *SERVERS, "weft.translate.translator")),
        ("import weft.cli.run, weft.agent.agent", (*MODELS, "google.protobuf", "envoy", "uvicorn", "starlette")),
    ],
)
def test_a_command_loads_only_what_it_uses(loads: str, without: tuple[str, ...]) -> None:
    """Models take a quarter of a second, messages and servers a tenth each: that of every command and every agent."""
    code = f"import sys\n{loads}\nprint([name for name in sys.modules if name.startswith({without!r})])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_what_weft_up_has_loaded_the_control_plane_does_not_load_again() -> None:
    """Models of the API are the half of what a control plane loads: it is forked where `weft up` has them."""
    code = """
import gc, json, sys
from weft.cli.up import load_api, prepare_control_plane
load_api()
before = set(sys.modules)
run = prepare_control_plane()
assert gc.isenabled()
later = set(sys.modules) - before
print(json.dumps([sorted(before), sorted(later)]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, later = json.loads(result.stdout)
    assert {"weft.api.files", "weft.api.kinds", "weft.api.parse", "pydantic.main", "yaml"} <= set(before)
    assert "weft.controlplane.main" in later
    early = ("weft.controlplane", "weft.translate", "cryptography", "google.protobuf", "envoy", "uvicorn", "starlette")
    assert [name for name in before if name.startswith(early)] == [], "`weft up` itself needs none of these"


def test_no_mesh_is_exit_code_5(
    weft: Weft, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    result = weft("get")
    assert result.exit_code == 5
    assert "No mesh runs. `weft up` starts one." in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("1m30s", 90), ("2h", 7200), ("7", 7), ("0.5", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10x", "s", "-1s", "1 s", "10sec"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration"):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.012, "12 ms"),
        (4.21, "4.2 s"),
        (59, "59 s"),
        (310, "5 m 10 s"),
        (86340, "23 h 59 m"),
        (540000, "6 d 6 h"),
        (-5, "-5.0 s"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "text", ["vs", "VirtualService", "virtualservices", "virtualservice.networking.istio.io", "VIRTUALSERVICE"]
)
def test_a_kind_may_be_written_as_kubectl_takes_it(text: str) -> None:
    assert resolve(text) == "VirtualService"


def test_plurals() -> None:
    assert [plural(kind) for kind in ("Gateway", "AuthorizationPolicy", "VirtualService")] == [
        "gateways",
        "authorizationpolicies",
        "virtualservices",
    ]


def test_references() -> None:
    assert parse_references(["vs", "a", "b"]) == [("VirtualService", "a"), ("VirtualService", "b")]
    assert parse_references(["vs/a", "dr/b"]) == [("VirtualService", "a"), ("DestinationRule", "b")]
    assert parse_references(["vs,gw"]) == [("VirtualService", None), ("Gateway", None)]
    with pytest.raises(UsageError, match="not both"):
        parse_references(["vs/a", "b"])
    with pytest.raises(UsageError, match="Did you mean 'Gateway'"):
        parse_references(["gatway"])


def test_columns_are_aligned_and_nothing_is_left_blank() -> None:
    assert columns(["name", "state"], [["a", None], ["longer", "up"]]) == "NAME     STATE\na        -\nlonger   up"


def test_the_caret_stands_under_its_column_whatever_is_before_it() -> None:
    problem = Problem(Origin("a.yaml", 2, 4), "spec.x", "is wrong.", "Write y.")
    assert render(problem, {"a.yaml": "one\n\t  x: 1\n"}).splitlines() == [
        "a.yaml:2:4: error: spec.x: is wrong.",
        "  2 | \t  x: 1",
        "    | \t  ^",
        "  Write y.",
    ]


def test_what_cannot_be_run_is_said_as_shells_say_it(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    assert not_runnable(str(tmp_path / "text"), None) == ("Permission denied", 126)
    assert not_runnable("text", str(tmp_path)) == ("Permission denied", 126)
    assert not_runnable(str(tmp_path), None) == ("Is a directory", 126)
    assert not_runnable(str(tmp_path / "nothing"), None) == ("command not found", 127)
    assert not_runnable("nothing", str(tmp_path)) == ("command not found", 127)
    (tmp_path / "text").chmod(0o700)
    assert not_runnable("text", str(tmp_path)) is None


def test_a_dry_run_of_the_client_needs_no_mesh(
    weft: Weft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a}\n"
    good.write_text(text)
    bad.write_text(text.replace("host: a", "hots: a"))
    result = weft("apply", "-f", good, "--dry-run=client")
    assert result.stdout == "destinationrule.networking.istio.io/a checked (dry run)\n"
    item = yaml.safe_load(text)
    told = [weft("apply", "-f", good, "--dry-run=client", "-o", form).stdout for form in ("yaml", "json")]
    assert [yaml.safe_load(told[0]), json.loads(told[1])] == [item, item]
    more = tmp_path / "more.yaml"
    more.write_text(text.replace("name: a", "name: b"))
    result = weft("apply", "-f", good, "-f", more, "--dry-run=client", "-n", "shop", "-o", "yaml")
    listed = yaml.safe_load(result.stdout)
    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    assert [it["metadata"] for it in listed["items"]] == [{"name": name, "namespace": "shop"} for name in ("a", "b")]
    result = weft("apply", "-f", bad, "--dry-run=client")
    assert result.exit_code == 3
    assert "bad.yaml:4:8: error: spec.hots: unknown field `hots`." in result.stderr
    assert weft("apply", "-f", good, "--dry-run").exit_code == 5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--name", "Bad Name"),
        ("--name", ""),
        ("--version", "v 2"),
        ("--version", ""),
        ("--workload", "a/b"),
        ("--namespace", "Bad_NS"),
        ("--service-account", "x y"),
        ("--label", "-a=b"),
        ("--label", "a=b c"),
        ("--label", "a"),
    ],
)
def test_a_name_that_cannot_be_one_is_a_mistake_of_the_command_line(option: str, value: str) -> None:
    """By the rules that Kubernetes has, before anything of a mesh is asked."""
    with pytest.raises(UsageError, match=f"^{option} "):
        {"--label": label, "--version": version_of}.get(option, lambda text: named(option, text, "a name"))(value)
    assert named("--name", "a" * 63, "a name") == "a" * 63
    assert named("--namespace", None, "a namespace") == named("--workload", "", "a name") == ""
    assert label("example.com/tier=") == ("example.com/tier", "")
    assert version_of("v1.2") == "v1.2"


def test_the_last_line_of_mistakes_says_what_they_come_to() -> None:
    error = Problem(Origin("weft.yaml", 1), "x", "is wrong.")
    warning = replace(error, severity=Severity.WARNING)
    last = [
        render_all(problems, {}, "nothing was started").splitlines()[-1]
        for problems in ([error], [error, warning], [warning])
    ]
    assert last == [
        "error: 1 problem; nothing was started.",
        "error: 2 problems; nothing was started.",
        "error: 1 warning, which --strict refuses; nothing was started.",
    ]


def test_the_control_plane_is_told_the_namespace_of_weft_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_PROXY", "weft-proxy")  # not started here
    (tmp_path / "weft.yaml").write_text("namespace: shop\n")
    plan, _ = read_plan(tmp_path, mesh=None, fresh=False)
    assert plan.declaration["namespace"] == "shop"


def test_the_control_plane_is_told_which_directory_to_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where weft.yaml is, wherever the control plane stands."""
    monkeypatch.setenv("WEFT_PROXY", "weft-proxy")  # not started here
    (tmp_path / "rules").mkdir()
    for text, told in (("follow: rules\n", str(tmp_path / "rules")), ("mesh: shop\n", None)):
        (tmp_path / "weft.yaml").write_text(text)
        plan, _ = read_plan(tmp_path, mesh=None, fresh=False)
        assert plan.declaration.get("config_dir") == told


def test_to_up_the_mesh_is_a_name_and_to_others_a_choice(weft: Weft) -> None:
    """It starts one, whether or not others run."""
    said = {command: " ".join(weft(command, "--help").output.split()) for command in ("up", "ps")}
    assert (
        "--mesh NAME What the mesh is called, in the place of weft.yaml's `mesh`; WEFT_MESH says it, too." in said["up"]
    )
    assert "--mesh NAME Which mesh; needed only if several run." in said["ps"]


def test_what_is_no_number_is_a_mistake_of_the_command_line() -> None:
    """Not a traceback: `²` is a digit to str.isdigit, and not to int()."""
    for text in ("²", "8080²", "65536", "0", ""):
        with pytest.raises(UsageError, match=f"^--port {text}: .* is not a port"):
            port(text, explicit=False)
    for text in ("²s", "800000d", "9" * 400 + "d", "5", "s", ""):
        with pytest.raises(UsageError, match=f"^--since {text}: use 30s"):
            since_time(text)
    assert since_time("1d") < since_time("5m") < since_time("0s")


def test_ports_at_which_nobody_could_be_called_are_refused() -> None:
    """In explicit mode programs' networks are the host's, and weft has a port at its own address only."""
    for text in ("53", "15053/tcp"):
        with pytest.raises(UsageError, match=rf"^--port {text}: port .* Use another"):
            port(text, explicit=False)
        assert port(text, explicit=True)[0] == int(text.partition("/")[0])
    with pytest.raises(UsageError, match="weft's own"):
        port("15001", explicit=True)


def test_a_port_of_the_host_is_none_of_the_programs_own() -> None:
    assert host_port(5432, [(8000, "HTTP")]) == 5432
    with pytest.raises(UsageError, match=r"^--host-port 8000: the program itself listens on that port \(--port\)"):
        host_port(8000, [(8000, "HTTP")])
    with pytest.raises(UsageError, match=r"^--host-port 53: port 53 is where programs ask for names"):
        host_port(53, [])


@pytest.mark.parametrize("files", [("",), ("reviews.yaml", "")])
def test_an_empty_name_is_not_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    """`weft delete -f "$FILE"` where FILE is not set must not delete what lies about."""
    monkeypatch.chdir(tmp_path)
    Path("reviews.yaml").write_text("")
    with pytest.raises(UsageError, match=r"^-f '': an empty name, .* the current directory is -f \.$"):
        read(files)


def test_the_weft_yaml_of_a_directory_is_not_applied(
    weft: Weft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide's directory holds both; `-f .` means what is applied."""
    monkeypatch.chdir(tmp_path)
    Path("weft.yaml").write_text("programs: {}\n")
    Path("deep").mkdir()
    Path("deep", "weft.yaml").write_text("programs: {}\n")
    result = weft("apply", "--dry-run=client", "-f", ".")
    assert result.exit_code == 2
    assert ".: holds no file that ends in .yaml, .yml, .json but weft.yaml, which `weft up` reads." in result.stderr
    rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a}\n"
    Path("rule.yaml").write_text(rule)
    checked = "destinationrule.networking.istio.io/a checked (dry run)\n"
    assert weft("apply", "--dry-run=client", "-f", ".").stdout == checked
    assert weft("apply", "--dry-run=client", "-R", "-f", ".").stdout == checked
    result = weft("apply", "--dry-run=client", "-f", "weft.yaml")
    assert result.exit_code == 3
    assert "weft.yaml:1:1: error: (document): weft.yaml describes a mesh, which `weft up` starts" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        WeftError("why"),
        UsageError("why"),
        InvalidConfiguration([]),
        NotFound("why"),
        MeshNotRunning("why"),
        NotSynced("why"),
        ModeUnavailable("why"),
        StoreError("why"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_ends_a_command_with_the_code_that_is_documented(
    weft: Weft, monkeypatch: pytest.MonkeyPatch, error: WeftError
) -> None:
    def fail(_: str | None) -> None:
        raise error

    monkeypatch.setattr(wait, "connect", fail)
    result = weft("wait")
    page = (Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    meaning = dict(rows)[str(result.exit_code)]
    said = "Any other failure" if type(error) is WeftError else inspect.getdoc(type(error))
    assert said is not None
    assert meaning.startswith(said.strip().splitlines()[0].split(". ")[0])
    assert result.stderr.startswith("error: ")


def test_a_port_is_given_once() -> None:
    """Two listeners of one name could not be published."""
    once("--port", [8080, 9090])
    for option in ("--port", "--host-port"):
        with pytest.raises(UsageError, match=rf"^{option} 8080: this port is given twice\. Keep one of them\."):
            once(option, [8080, 9090, 8080])
