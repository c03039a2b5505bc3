"""`weft run -- PROGRAM`: run any program as part of a running mesh. This process is the program's agent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from weft.cli.capabilities import cap_add_option
from weft.cli.main import ExampleCommand
from weft.cli.output import check_name, mesh_option, plural, proxy_option
from weft.errors import UsageError, WeftError

if TYPE_CHECKING:
    from weft.agent.paths import MeshPaths
    from weft.agent.workload import WorkloadSpec

EXAMPLES = """
weft run --name cart --version v2 --port 8080 -- ./cart --verbose
weft run -- curl http://reviews:9080/reviews/0
weft run --proxy envoy -- curl http://reviews:9080/reviews/0
weft run --name shop --port 8000 --port 3306/tcp --host-port 5432 --env DEBUG=1 -- python3 shop.py
"""

PROTOCOLS = ("HTTP", "HTTP2", "GRPC", "HTTPS", "TLS", "TCP")
MAY_BE_EMPTY = ("--workload", "--service-account")
"""Options of which nothing, as a script may pass it, means the default."""
LEAVE_NOTICES = frozenset({"limit"})
"""Notices that a person who runs a program need not read each time; `weft status` has them."""
STOPS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Who sends one of these asks the program to end (`Control.is_final`)."""


@click.command(cls=ExampleCommand, examples=EXAMPLES, context_settings={"allow_interspersed_args": False})
@mesh_option
@click.option("--name", metavar="SERVICE", help="The service that it serves; by default the program's file name.")
@click.option("--version", default="v1", show_default=True, help="The version of the service; label `version`.")
@click.option(
    "--port", "ports", multiple=True, metavar="PORT[/PROTOCOL]", help="A port that it serves (HTTP if not said)."
)
@click.option(
    "--host-port",
    "host_ports",
    multiple=True,
    type=click.IntRange(1, 65535),
    help="A port of the host's localhost that it may call.",
)
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Set an environment variable.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label for subsets and selectors.")
@click.option("--service-account", default="", metavar="NAME", help="Its identity; by default the service's name.")
@click.option("--namespace", "-n", help="The mesh namespace that it joins; the mesh's own if absent.")
@proxy_option("The proxy beside it; by default the mesh's own.")
@click.option("--workload", default="", metavar="NAME", help="Its own name; by default SERVICE-VERSION-N.")
@click.option(
    "--restart",
    type=click.Choice(["never", "on-failure", "always"]),
    default="never",
    show_default=True,
    help="When to start it again after its end.",
)
@cap_add_option
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] PROGRAM [ARGUMENTS]...")
def command(
    mesh: str | None,
    name: str | None,
    version: str,
    ports: Sequence[str],
    host_ports: Sequence[int],
    variables: Sequence[str],
    labels: Sequence[str],
    service_account: str,
    namespace: str | None,
    proxy: str | None,
    workload: str,
    restart: str,
    capabilities: Sequence[str],
    argv: Sequence[str],
) -> None:
    """
    Run PROGRAM in a running mesh.

    Everything it calls goes through its own proxy; with `--port` others can call it by its service's name. Without
    `--port` it is a client only. Terminal, signals and exit code are as if the program had been started directly.
    """
    from dataclasses import replace

    from weft.agent import forward_proxies, paths
    from weft.agent.data_planes import DATA_PLANES
    from weft.agent.program import Restart
    from weft.agent.workload import WorkloadSpec
    from weft.data_plane import WEFT_PROXY

    found = paths.find(mesh)
    explicit = paths.is_explicit(found)
    serves = tuple(port(text, explicit=explicit) for text in ports)
    once("--port", [number for number, _ in serves])
    once("--host-port", host_ports)
    declaration = paths.read_declaration(found)
    spec = WorkloadSpec(
        service=named("--name", name, "a service's name") or service_name(argv[0]),
        version=version_of(version),
        name=named("--workload", workload, "a workload's name"),
        namespace=named("--namespace", namespace, "a namespace") or declaration.get("namespace") or "default",
        service_account=named("--service-account", service_account, "a service account"),
        labels=dict(label(text) for text in labels),
        ports=serves,
        host_ports=tuple(number if explicit else host_port(number, serves) for number in host_ports),
        argv=tuple(argv),
        environment=dict(os.environ) | dict(pair(text, "--env") for text in variables),
        directory=str(Path.cwd()),
        restart=Restart(restart),
        capabilities=tuple(capabilities),
    )
    data_plane = proxy or declaration.get("data_plane") or WEFT_PROXY
    executable = DATA_PLANES[data_plane].find()
    spec = replace(spec, data_plane=data_plane, data_plane_version=executable.version, executable=executable.path)
    if reason := not_runnable(spec.argv[0], spec.environment.get("PATH")):
        text, code = reason
        click.echo(f"weft: {spec.argv[0]}: {text}", err=True)
        raise SystemExit(code)
    if not explicit and (variable := forward_proxies.told(spec.environment)):
        click.echo(f"weft: {forward_proxies.exempted(variable)}", err=True)
    run(found, spec)


def not_runnable(program: str, path: str | None) -> tuple[str, int] | None:
    """Return why *program* cannot be started, and the exit code, both as shells have them; None if it can."""
    if shutil.which(program, path=path) is not None:
        return None
    if "/" in program and Path(program).is_dir():
        return "Is a directory", 126
    if shutil.which(program, mode=os.F_OK, path=path) is not None:
        return "Permission denied", 126
    return "command not found", 127


def not_started(program: str, filename: str, errno: int) -> str:
    """Return why *program* was not started, as shells have it: error *errno* of *filename*, which may be another file."""
    reason = os.strerror(errno)
    return reason if filename == program else f"{filename}: {reason}"


def run(mesh: MeshPaths, spec: WorkloadSpec) -> NoReturn:
    """Enter the mesh, run the program, and end as it ended."""
    import asyncio

    from weft.agent import init, paths
    from weft.agent.namespaces import MeshNamespaces

    holder = paths.read_mesh_file(mesh)["holder"]
    watched = os.pidfd_open(holder)
    explicit = paths.is_explicit(mesh)
    if not explicit:
        MeshNamespaces.join(holder)
    try:
        code = asyncio.run(_serve(mesh, spec, watched, explicit=explicit))
    except WeftError as error:
        click.echo(f"weft: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    init.end_like(code)


async def _serve(mesh: MeshPaths, spec: WorkloadSpec, holder: int, *, explicit: bool) -> int:
    import asyncio

    from weft.agent.agent import Control, Surroundings, serve
    from weft.agent.signals import PASSED_ON, Signals

    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    notices: dict[str, tuple[object, int]] = {}  # text -> code, count
    ended_by = 0

    def report(event: str, **facts: Any) -> None:
        if event == "notice" and facts.get("over"):
            for text in [text for text, (code, _) in notices.items() if code == facts["code"]]:
                del notices[text]
        elif event == "notice" and facts["code"] not in LEAVE_NOTICES:
            notices[facts["text"]] = facts["code"], facts["count"]
        elif event == "program" and facts.get("again"):
            click.echo(f"weft: {spec.argv[0]} {facts['how']}; starting it again", err=True)
        elif event == "program" and (failure := facts.get("failure")):
            click.echo(f"weft: {spec.argv[0]}: {not_started(spec.argv[0], **failure)}", err=True)

    async def terminate() -> None:
        """Hand SIGTERM on once nobody sends requests any more, so that none meets a program that has just ended."""
        if control.withdraw is not None:
            await control.withdraw()
        if control.program is not None:
            control.program.send_signal(signal.SIGTERM)

    def received(number: int, from_terminal: bool) -> None:
        nonlocal ended_by
        if number in STOPS:
            control.asked[number] = time.monotonic()
        if control.program is not None:
            if number == signal.SIGTERM and spec.ports:
                tasks.add(asyncio.create_task(terminate()))
            elif from_terminal:
                control.program.pass_on(number)
            else:
                control.program.send_signal(number)
        elif number in STOPS:
            ended_by = number  # there is no program yet, or none any more
            ending.set()

    def mesh_ended() -> None:
        loop.remove_reader(holder)
        notices[f"The mesh {mesh.mesh!r} has ended, and {spec.argv[0]} with it."] = "mesh-ended", 0
        ending.set()

    control = Control()
    tasks: set[asyncio.Task[None]] = set()
    loop.add_reader(holder, mesh_ended)
    signals = Signals(PASSED_ON, received)
    try:
        code = await serve(mesh, spec, Surroundings(report, ending, attached=True, control=control, explicit=explicit))
    finally:
        signals.close()
        loop.remove_reader(holder)
    # Only now: the terminal was the program's until here.
    for text, (_, count) in notices.items():
        often = f" ({plural(count, 'time', 'times')})" if count else ""
        click.echo(f"weft: {text}{often}", err=True)
    return -ended_by if ended_by else code


def service_name(program: str) -> str:
    """
    Return a service name made from a program's file name: `./My_Tool.py` -> `my-tool`.

    Raises:
        UsageError: Nothing of it can be part of a host name.
    """
    stem = Path(program).name.partition(".")[0].lower()
    if name := re.sub(r"[^a-z0-9]+", "-", stem)[:40].strip("-"):
        return name
    raise UsageError(f"No service name can be made from {program!r}; give one with --name.")


def named(option: str, name: str | None, what: str) -> str:
    """
    Return what *option* says if it can be a name, and nothing if the option is absent.

    Raises:
        UsageError: It cannot.
    """
    if name or (name is not None and option not in MAY_BE_EMPTY):
        check_name(option, name, what)
    return name or ""


def version_of(text: str) -> str:
    """
    Return *text* if it can be a version.

    Raises:
        UsageError: It cannot.
    """
    from weft.api.names import version_fault

    if fault := version_fault(text):
        raise UsageError(f"--version {text!r}: {fault}")
    return text


def label(text: str) -> tuple[str, str]:
    """
    Read `KEY=VALUE` as a label.

    Raises:
        UsageError: It is none.
    """
    from weft.api.names import label_key_fault, label_value_fault

    key, value = pair(text, "--label")
    if fault := label_key_fault(key) or label_value_fault(value):
        raise UsageError(f"--label {text}: {fault}")
    return key, value


def host_port(number: int, serves: Sequence[tuple[int, str]]) -> int:
    """
    Return *number* if that port of the host can be on the localhost of a program that itself *serves*.

    Raises:
        UsageError: It cannot.
    """
    from weft.api.names import reserved_port_fault

    if fault := reserved_port_fault(number):
        raise UsageError(f"--host-port {number}: {fault} Leave it out.")
    if number in dict(serves):
        raise UsageError(
            f"--host-port {number}: the program itself listens on that port (--port). Leave one of them out, or have the"
            " program listen on another."
        )
    return number


def port(text: str, *, explicit: bool) -> tuple[int, str]:
    """
    Read `8080` or `3306/tcp`. *explicit* is whether the mesh runs in that mode.

    Raises:
        UsageError: It is neither, or a port at which nobody could call the program.
    """
    from weft.api.names import reserved_port_fault

    number, _, protocol = text.partition("/")
    if not (number.isascii() and number.isdigit()) or not 1 <= int(number) <= 65535:
        raise UsageError(
            f"--port {text}: {number!r} is not a port; use 1 to 65535, as in --port 8080 or --port 3306/tcp."
        )
    if fault := reserved_port_fault(int(number), explicit=explicit):
        raise UsageError(f"--port {text}: {fault} Use another, as in --port 8080.")
    if (protocol := protocol.upper() or "HTTP") not in PROTOCOLS:
        raise UsageError(f"--port {text}: there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}.")
    return int(number), protocol


def once(option: str, numbers: Sequence[int]) -> None:
    """
    Refuse a port that *option* names twice: a proxy has one listener for each.

    Raises:
        UsageError: There is one.
    """
    for index, number in enumerate(numbers):
        if number in numbers[:index]:
            raise UsageError(f"{option} {number}: this port is given twice. Keep one of them.")


def pair(text: str, option: str) -> tuple[str, str]:
    """
    Read `KEY=VALUE`.

    Raises:
        UsageError: There is no `=`, or nothing before it.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"{option} {text}: write it as NAME=VALUE.")
    return key, value
