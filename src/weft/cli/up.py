"""`weft up`: the mesh that weft.yaml describes, for as long as this command runs."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from weft.cli.main import ExampleCommand, report
from weft.cli.output import new_mesh_option, proxy_option
from weft.errors import UsageError, WeftError
from weft.model import ConfigKey

if TYPE_CHECKING:
    from weft.agent.data_planes import Executable
    from weft.agent.supervisor import Plan, Planned
    from weft.api.meshfile import GatewayProgram, Mesh, Program
    from weft.api.yaml import Document
    from weft.model import Problem, Published

EXAMPLES = """
weft up
weft up examples/bookinfo
weft up --fresh --mesh second shop/weft.yaml
weft up --proxy envoy examples/bookinfo
"""


UNREAD = (
    "Nobody reads any more what `weft up` writes, so the mesh ends. To have it go on without a reader, write to a file:"
    " `weft up > FILE`."
)


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@new_mesh_option
@click.option("--fresh", is_flag=True, help="Forget what was applied to this mesh in earlier runs.")
@proxy_option("The proxy beside each program that weft.yaml says nothing else of; instead of weft.yaml's `proxy`.")
@click.option(
    "--interception",
    type=click.Choice(["auto", "tproxy", "explicit"]),
    help="How traffic reaches the proxies: caught in namespaces (tproxy) or by addresses that programs are told"
    " (explicit). By default what weft.yaml says, else tproxy where the machine permits it.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what the programs write.")
@click.argument("path", type=click.Path(path_type=Path), default=".", metavar="[FILE|DIRECTORY]")
def command(
    *, mesh: str | None, fresh: bool, proxy: str | None, interception: str | None, verbose: bool, path: Path
) -> None:
    """
    Start the programs that weft.yaml describes as a mesh, and keep them until Ctrl-C.

    FILE is a weft.yaml, DIRECTORY holds one; by default the current directory. When this command ends, however it
    ends, everything that it started ends with it. Its exit code is 0 after Ctrl-C,
    SIGTERM or SIGHUP; with `nohup` it outlives the terminal. It ends, too, when nobody reads what it writes any more
    (`weft up | head`); what a full disk does not take is not shown.
    """
    started = time.monotonic()
    # The forks come before anything heavy is loaded.
    from weft.agent.supervisor import Early, OutputClosed, Supervisor

    early = Early(load_api, prepare_control_plane)
    plan, notes = read_plan(path, mesh=mesh, fresh=fresh, proxy=proxy, interception=interception, verbose=verbose)
    screen = Screen(plan, notes, started)

    async def run() -> None:
        supervisor = Supervisor(plan, early, screen)
        loop = asyncio.get_running_loop()
        screen.closed = lambda: supervisor.fail(OutputClosed(UNREAD))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # else it is to outlive the terminal: nohup(1)
                loop.add_signal_handler(number, supervisor.stop)
        await supervisor.run()

    try:
        asyncio.run(run())
    finally:
        screen.close()


def load_api() -> None:
    """Load what reads weft.yaml and the documents that it applies."""
    import weft.api.files  # noqa: F401

    gc.freeze()  # so that the collector of a process forked from here neither looks at it nor writes into its pages


def prepare_control_plane() -> Callable[[Sequence[str]], NoReturn]:
    """Load the control plane; return what runs `weft control-plane` with the given arguments in this process."""
    gc.disable()  # nothing that is loaded becomes garbage, and looking for some is a tenth of the work
    import weft.controlplane.main  # noqa: F401
    from weft.cli.control_plane import command as control_plane

    gc.freeze()
    gc.enable()

    def run(arguments: Sequence[str]) -> NoReturn:
        try:
            control_plane.main([*arguments], prog_name="weft control-plane")
        except WeftError as error:
            report(error)
            os._exit(error.exit_code)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise AssertionError("click ends the process")

    return run


# --- from weft.yaml to a plan ---


def read_plan(
    path: Path,
    *,
    mesh: str | None,
    fresh: bool,
    proxy: str | None = None,
    interception: str | None = None,
    verbose: bool = False,
) -> tuple[Plan, str]:
    """
    Return what to start, and the notes to show when all of it is ready.

    Args:
        path: A weft.yaml or its directory.
        mesh: The mesh's name, if not the file's.
        fresh: Forget what was applied before.
        proxy: The data plane, if not the file's.
        interception: How traffic reaches the proxies, if not as the file says.
        verbose: Show what programs write.

    Raises:
        ProxyMissing, ProxyTooOld: The executable of a data plane that is asked for.
        InvalidConfiguration: Something is wrong with weft.yaml or a file that it applies; with all positions.
        UsageError: There is no weft.yaml.
    """
    from weft.agent.supervisor import Plan
    from weft.api.files import NOTHING_STARTED, load_mesh
    from weft.errors import InvalidConfiguration

    try:
        loaded = load_mesh(path, interception=interception)
    except UsageError as exc:
        raise UsageError(f"{exc} `weft up` runs what a weft.yaml describes; give its directory.") from exc
    read, directory = loaded.mesh, loaded.directory
    show_warnings(loaded.warnings)
    if proxy is not None:
        read = read.model_copy(update={"proxy": read.proxy.model_copy(update={"kind": proxy})})
    found = executables(read)
    declaration: dict[str, Any] = {
        "trust_domain": read.trust_domain,
        "namespace": read.namespace,
        "services": read.services(),
        "documents": [{"file": file, "text": text} for file, text in loaded.documents],
        "data_plane": read.proxy.kind,
        "data_planes": sorted(found),
        "boot": uuid.uuid4().hex,
        "fresh": fresh,
    }
    if read.follow:
        declaration["config_dir"] = str(directory / read.follow)
    if read.addresses.services:
        declaration["service_cidr"] = read.addresses.services
    plan = Plan(
        mesh=mesh or read.mesh,
        declaration=declaration,
        cidr=read.addresses.workloads,
        interception=read.interception,
        workloads=[
            *(planned_gateway(read, name, gateway, found) for name, gateway in read.gateways.items()),
            *(
                planned_program(read, name, number, program, directory, found)
                for name, program in read.programs.items()
                for number in range(program.replicas)
            ),
        ],
        verbose=verbose,
    )
    if problems := list(path_problems(plan, loaded.text)):
        raise InvalidConfiguration(problems, NOTHING_STARTED)
    return plan, read.notes


def path_problems(plan: Plan, text: Document) -> Iterator[Problem]:
    """Say which workloads of *plan* have names of which no path of a socket can be made: their agents could never join."""
    from weft.agent.data_planes import files_of
    from weft.agent.paths import mesh_paths
    from weft.api.yaml import dotted
    from weft.model import Problem

    mesh = mesh_paths(plan.mesh)
    faults: dict[tuple[str, str], str] = {}
    for planned in plan.workloads:
        try:
            files_of(mesh, planned.identifier, planned.spec)
        except UsageError as exc:
            name, _, _number = planned.identifier.rpartition("-")
            faults.setdefault(("gateways" if planned.spec.gateway else "programs", name), str(exc))
    for place, fault in faults.items():
        yield Problem(text.locate(place), dotted(place), fault, code="bad-name")


def executables(mesh: Mesh) -> dict[str, Executable]:
    """
    Return what to execute for each data plane that *mesh* uses: a missing one is found before anything starts.

    Raises:
        ProxyMissing, ProxyTooOld: As `weft.agent.data_planes` says.
    """
    from weft.agent.data_planes import DATA_PLANES

    entries: list[Program | GatewayProgram] = [*mesh.programs.values(), *mesh.gateways.values()]
    kinds = {mesh.proxy_of(entry).kind for entry in entries} | {mesh.proxy.kind}
    return {kind: DATA_PLANES[kind].find() for kind in sorted(kinds)}


def planned_program(
    mesh: Mesh, name: str, number: int, program: Program, directory: Path, found: Mapping[str, Executable]
) -> Planned:
    """Return instance *number* of *program*."""
    from weft.agent.program import Restart
    from weft.agent.supervisor import Planned
    from weft.agent.workload import WorkloadSpec

    proxy = mesh.proxy_of(program)
    spec = WorkloadSpec(
        service=program.service,
        version=program.version,
        name=f"{name}-{number}",
        namespace=mesh.namespace,
        service_account=program.service_account,
        labels=dict(program.labels),
        ports=tuple((port.target_port or port.number, port.protocol) for port in program.ports),
        host_ports=program.host_ports,
        argv=program.command,
        environment={**os.environ, **program.environment},
        directory=str(directory / program.directory),
        restart=Restart(program.restart),
        capabilities=program.capabilities,
        data_plane=proxy.kind,
        data_plane_version=found[proxy.kind].version,
        executable=found[proxy.kind].path,
        concurrency=proxy.concurrency,
    )
    after = tuple(f"{other}-{each}" for other in program.depends_on for each in range(mesh.programs[other].replicas))
    return Planned(f"{name}-{number}", spec, after, program.ready.timeout.total_seconds())


def planned_gateway(
    mesh: Mesh,
    name: str,
    gateway: GatewayProgram,
    found: Mapping[str, Executable],
) -> Planned:
    """Return *gateway* as a workload without a program."""
    from weft.agent.supervisor import Planned
    from weft.agent.workload import WorkloadSpec
    from weft.model import Published

    proxy = mesh.proxy_of(gateway)
    spec = WorkloadSpec(
        service=name,
        name=f"{name}-0",
        namespace=mesh.namespace,
        service_account=gateway.service_account,
        labels=dict(gateway.labels),
        published=tuple(Published(item.port, item.host_address, item.host_port) for item in gateway.publish),
        gateway=True,
        data_plane=proxy.kind,
        data_plane_version=found[proxy.kind].version,
        executable=found[proxy.kind].path,
        concurrency=proxy.concurrency,
    )
    return Planned(f"{name}-0", spec)


def with_ports(notes: str, gateways: Mapping[str, Sequence[Published]]) -> str:
    """Return *notes* with the host's port in the place of each `{gateway:port}`."""
    from weft.api.meshfile import NOTE_PORT

    host_ports = {f"{{{name}:{item.port}}}": str(item.host_port) for name, ports in gateways.items() for item in ports}
    return NOTE_PORT.sub(lambda match: host_ports.get(match[0], match[0]), notes)


def show_warnings(problems: Sequence[Problem]) -> None:
    """Print what is odd but no mistake."""
    from weft.cli.problems import render

    for problem in problems:
        click.echo(render(problem, {}), err=True)


# --- what is shown ---


class Screen:
    """
    Tells the person at the terminal what happens; one line for each thing, so that it reads the same in a file.

    Called by the supervisor with each event; see `weft.agent.supervisor.Supervisor`.

    Attributes:
        closed: Called once nobody can read what is shown any more.
    """

    def __init__(self, plan: Plan, notes: str, started: float) -> None:
        self._plan, self._notes, self._started = plan, notes, started
        self._services = {item.identifier: item.spec.service for item in plan.workloads}
        self._published: dict[str, Sequence[Published]] = {}
        self._said_ready: set[str] = set()
        self._said_failed: dict[str, str] = {}
        self._ending = False
        self.closed: Callable[[], None] = lambda: None
        self._width = max((len(item.identifier) for item in plan.workloads), default=0)

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        if self._ending:
            return  # that programs end now is what was asked for
        handler: Callable[[Mapping[str, Any]], None] | None = getattr(self, f"on_{event.replace('-', '_')}", None)
        if not handler:
            return
        try:
            handler(facts)
        except BrokenPipeError:
            self.closed()  # as docker compose and kubectl end by SIGPIPE: whoever closed the pipe has seen enough
        except OSError:
            pass  # a full disk, a terminal that is gone: what cannot be shown is not shown, and the mesh goes on

    def close(self) -> None:
        """Let go of what could not be shown, or Python would try again at its own end, and end with 120."""
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def on_booting(self, _: Mapping[str, Any]) -> None:
        click.echo(f"{click.style('weft', bold=True)}  mesh {self._plan.mesh}")

    def on_published(self, facts: Mapping[str, Any]) -> None:
        self._published[facts["id"]] = facts["ports"]

    def on_mode(self, facts: Mapping[str, Any]) -> None:
        from weft.agent.forward_proxies import exempted, told

        if facts["reason"]:
            click.echo(
                f"Namespaces are not permitted here: {facts['reason']}\n"
                "So the mesh runs in explicit mode: programs are told by HOST and PORT where to listen, and by HTTP_PROXY"
                " and {NAME}_SERVICE_HOST whom to call. See docs/concepts/explicit-mode.md."
            )
        elif facts["interception"] == "explicit":
            self._line("mesh", "explicit mode: nothing is caught; programs are told whom to call")
        elif variable := next(filter(None, (told(item.spec.environment) for item in self._plan.workloads)), ""):
            self._line("mesh", exempted(variable))

    def on_up(self, _: Mapping[str, Any]) -> None:
        self._line("control plane", "ready")

    def on_ready(self, facts: Mapping[str, Any]) -> None:
        if "id" in facts:
            again = facts["id"] in self._said_ready
            self._said_ready.add(facts["id"])
            self._said_failed.pop(facts["id"], None)
            self._line(facts["id"], "ready again" if again else "ready")

    def on_unready(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["id"], "does not answer on its ports any more", bad=True)

    def on_late(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["id"], f"is not ready after {facts['seconds']:.0f} s: {facts['reason']}", bad=True)

    def on_not_started(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["id"], f"is not started: {facts['reason']}", bad=True)

    def on_all_ready(self, facts: Mapping[str, Any]) -> None:
        seconds = time.monotonic() - self._started
        click.echo(click.style(f"ready in {seconds:.1f} s", bold=True, fg="green"))
        from weft.agent.published import target

        for identifier, ports in self._published.items():
            for item in ports:
                click.echo(f"\n{self._services[identifier]} port {item.port} is http://{target(item)}")
                if item.port in facts["untaken"].get(identifier, ()):
                    click.echo(f"It refuses calls until a Gateway names port {item.port}: `weft apply -f FILE`.")
        if self._notes:
            published = {self._services[identifier]: ports for identifier, ports in self._published.items()}
            click.echo(f"\n{with_ports(self._notes, published).rstrip()}")
        click.echo("\nCtrl-C ends the mesh.")

    def on_program(self, facts: Mapping[str, Any]) -> None:
        if facts["state"] != "exited":
            return
        then = "; starting it again" if facts["again"] else ""
        self._line(facts["id"], f"{facts['how']}{then}", bad=True)
        for line in facts["last"]:
            click.echo(f"    {line}")

    def on_notice(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["id"], facts["text"])

    def on_output(self, facts: Mapping[str, Any]) -> None:
        click.echo(f"{click.style(facts['id'].ljust(self._width), fg='cyan')}  {facts['line']}")

    def on_mesh_notice(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["workload"], facts["text"])

    def on_mesh_kept(self, facts: Mapping[str, Any]) -> None:
        names = ", ".join(str(ConfigKey(**key)) for key in facts["keys"])
        self._line("control plane", f"kept from an earlier run: {names} (--fresh forgets it)")

    def on_mesh_refused(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["workload"], f"refuses {facts['name']}: {facts['text']}", bad=True)

    def on_mesh_withheld(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["workload"], facts["text"], bad=True)

    def on_mesh_late(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["workload"], facts["text"], bad=True)

    def on_mesh_failed(self, facts: Mapping[str, Any]) -> None:
        self._line("control plane", facts["text"], bad=True)

    def on_mesh_invalid(self, facts: Mapping[str, Any]) -> None:
        from weft.cli.problems import from_json

        show_warnings(from_json(facts["problems"]))

    def on_failed(self, facts: Mapping[str, Any]) -> None:
        if self._said_failed.get(facts["id"]) != facts["message"]:  # it tries again, for as long as it takes
            self._said_failed[facts["id"]] = facts["message"]
            self._line(facts["id"], f"cannot join: {facts['message']}", bad=True)

    def on_agent_ended(self, facts: Mapping[str, Any]) -> None:
        from weft.agent.proxy import describe

        if facts["code"] < 0:  # one that ends by itself has said why
            self._line(facts["id"], f"its agent {describe(facts['code'])}; starting it again", bad=True)

    def on_died(self, facts: Mapping[str, Any]) -> None:
        self._line(facts["process"], f"{facts['how']}; starting it again ({facts['log']})", bad=True)

    def on_ending(self, _: Mapping[str, Any]) -> None:
        self._ending = True
        click.echo("ending")

    def _line(self, who: str, what: str, *, bad: bool = False) -> None:
        seconds = click.style(f"{time.monotonic() - self._started:5.1f} s", dim=True)
        click.echo(f"{seconds}  {who.ljust(self._width)}  {click.style(what, fg='red') if bad else what}")
