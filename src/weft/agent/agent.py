"""
The agent of one workload, from joining the mesh to leaving it: `serve` is the line to read.

Called in a process that is inside the mesh's namespaces: by the holder in a child of its own for each program of
`weft up`, and by `weft run` in its own process. It decides nothing about traffic: that is the control plane's and the
proxy's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from weft.agent import dns, edge, explicit, forward_proxies, host_ports, hot_restart, init, limits, mounts, sockets
from weft.agent.capabilities import grantable_here
from weft.agent.data_planes import DATA_PLANES, files_of
from weft.agent.data_planes.base import Place
from weft.agent.discovery import Discovery, Saved
from weft.agent.keeper import Keeper
from weft.agent.namespaces import ProgramNamespaces
from weft.agent.output import OutputLog, cap
from weft.agent.paths import MeshPaths, WorkloadPaths, mesh_ranges
from weft.agent.program import Capture, Life
from weft.agent.proxy import ListenerKeeper, Proxy, describe
from weft.agent.proxy_protocol import Endpoint
from weft.agent.relay import Relay
from weft.agent.sds import SecretService
from weft.agent.stream import AgentStream, Registered
from weft.agent.udp import RefusedUdp
from weft.agent.unknown_hosts import UnknownHosts
from weft.agent.workload import WorkloadSpec
from weft.errors import WeftError
from weft.model.capability import NONE_GIVEN

if TYPE_CHECKING:
    from cryptography import x509

    from weft.agent.init import Program

Result = TypeVar("Result")

JOIN_SECONDS = 15.0
"""For a control plane that is still starting. When `weft up` runs on a busy machine this takes a few seconds."""

STARTING_POLL_SECONDS, STEADY_POLL_SECONDS = 0.02, 0.25
"""Between looks at the program's listening sockets: while a declared port does not answer yet, and after."""

HINT_POLL_SECONDS = 1.0

ODD_SECONDS = 1.0
"""How long a program may listen elsewhere than told before that is said."""

ASKED_SECONDS = 10.0
"""How long after Ctrl-C an end is taken for its work."""

LEAVE_SECONDS = 0.3
"""How long a program that has ended waits for its endpoints to be withdrawn everywhere before its proxy stops."""

WITHDRAW_SECONDS = 2.0
"""How long a program that is asked to end serves on until nobody calls it any more; the control plane waits no longer."""

IN_FLIGHT_SECONDS = 0.05
"""A request may have been on its way when its sender's proxy acknowledged that the endpoint is gone."""

LOG_POLL_SECONDS = 5.0


class Report(Protocol):
    """How the agent tells whoever started it what happens: `registered`, `proxy`, `program`, `ready`, `notice`, ..."""

    def __call__(self, event: str, **facts: object) -> None: ...


@dataclass(slots=True)
class Control:
    """
    The running program, for whoever may signal it; and whether it has ever been started.

    `withdraw` has its endpoints withdrawn, for whoever is about to end it. `asked` are the signals by which somebody has
    asked it to end, and when (of the monotonic clock). `changed` is set when it starts or ends, for whoever looks at its
    ports: those of a dead program must be withdrawn before the next poll.
    """

    program: Program | None = None
    started: bool = False
    asked: dict[int, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    withdraw: Callable[[], Awaitable[None]] | None = None

    def is_final(self, code: int) -> bool:
        """Say whether the end with *code* was asked for, so that it is not started again whatever its restart policy says."""
        if signal.SIGTERM in self.asked:
            return True
        # Consoles live on after Ctrl-C, and a JVM that is sent SIGQUIT shows its threads: an end much later has another reason.
        soon = time.monotonic() - ASKED_SECONDS
        if any(self.asked.get(number, -math.inf) > soon for number in (signal.SIGINT, signal.SIGQUIT)):
            return True
        # At SIGHUP daemons read their configuration anew: it asks for an end only where it brings one.
        return signal.SIGHUP in self.asked and code in (-signal.SIGHUP, 128 + signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """
    What differs between `weft up` and `weft run`.

    Attributes:
        report: Takes what happens.
        ending: When set, the program is stopped and the workload leaves.
        attached: The program has the caller's terminal and descriptors, and the agent ends with it (`weft run`).
            Otherwise its output is captured, and the agent stays until `ending`.
        tee: Report each line of captured output, too.
        control: Kept up to date with the running program.
        explicit: The mesh runs in explicit mode: there are no namespaces.
    """

    report: Report
    ending: asyncio.Event
    attached: bool = False
    tee: bool = False
    control: Control = field(default_factory=Control)
    explicit: bool = False


async def serve(mesh: MeshPaths, spec: WorkloadSpec, around: Surroundings) -> int:
    """
    Run one workload until its program has ended for good or `around.ending` is set.

    What was started last is stopped first: program, proxy, names, secrets, network, and the lease at the end.

    Returns:
        How the program ended: exit code, or minus the number of the signal; 0 for a gateway.

    Raises:
        WeftError: The workload could not join; nothing of it is left.
    """
    executable = spec.executable or DATA_PLANES[spec.data_plane].find().path
    async with contextlib.AsyncExitStack() as stack:
        names = NameTable()
        credential = explicit.Credential() if around.explicit and not spec.gateway else None
        registration = spec.registration(credential.local_caller() if credential else None)
        stream = AgentStream(mesh.agents_socket, registration, on_names=names.replace)
        stack.push_async_callback(stream.close)
        registered = await unless_ending(around.ending, stream.register(patience=JOIN_SECONDS))
        if registered is None:
            return 0
        files = files_of(mesh, registered.workload, spec)
        member = Member(mesh, spec, around, stream, registered, files)
        member.files.make(spec.service)
        around.control.withdraw = functools.partial(withdraw, stream)
        around.report("registered", workload=registered.workload, address=registered.address)
        # Programs of weft.yaml stand side by side, and make up a service together.
        if registered.lacks and around.attached:
            member.note(lacks_text(spec.service, registered.lacks), "other-ports")

        place = make_place(member, credential) if credential else None
        network = None if spec.gateway or place else make_network(member)
        if network:
            stack.callback(network.close)
        secrets = await unless_ending(around.ending, stack.enter_async_context(serving_secrets(member)))
        if secrets is None:
            return 0
        stream.on_bundle, stream.on_renew = secrets.replace_bundle, secrets.renew_soon
        stream.on_connected = lambda there: secrets.retry() if there else None
        if network:
            unknown = await stack.enter_async_context(serving_names(member, network, names))
            if spec.host_ports:
                granting = edge.granting(mesh.edge_socket, registered.workload, spec.host_ports)
                await stack.enter_async_context(granting)

        keeper = stack.enter_context(keeping_listeners(member))
        proxy = make_proxy(member, executable, keeper)
        if isinstance(keeper, hot_restart.Parent):
            await stack.enter_async_context(relaying(member, proxy))
            await stack.enter_async_context(leading(member, proxy, keeper))
        background(stack, proxy.run())
        stream.on_hot_restart = await stack.enter_async_context(replacing(member, proxy))
        stack.push_async_callback(proxy.stop)
        background(stack, cap_logs(member))
        if await ends_before(around.ending, proxy.ready()):
            return 0

        code = 0
        if network:
            background(stack, watch_ports(member, lambda: in_namespace(network)))
            refusals = Refusals(member, network)
            background(stack, refusals.watch())
            code = await run_program(member, start_in(member, network, names))
            await refusals.look()  # what happened since the last look, and all of it if the program was quick
            unknown.flush()
        elif place:
            habits = Habits(member, place)
            background(stack, watch_ports(member, habits.look))
            code = await run_program(member, start_at(member, place), on_end=habits.ended)
        else:
            around.report("ready")
        if around.attached:
            await stream.leave(patience=LEAVE_SECONDS)
        else:
            await around.ending.wait()
        return code


@dataclass(frozen=True, slots=True)
class Member:
    """A workload that has joined the mesh: what the rooms of `serve` share."""

    mesh: MeshPaths
    spec: WorkloadSpec
    around: Surroundings
    stream: AgentStream
    registered: Registered
    files: WorkloadPaths

    def note(self, text: str, code: str, *, count: int = 0) -> None:
        """
        Say *text* to people: by the control plane to those who ask it, and to whoever started us.

        With a *count* (how often it has happened so far) it may be said again, and only the count is new.
        """
        if self.stream.notice(text, code, count=count) or count:
            self.around.report("notice", text=text, code=code, count=count)

    def over(self, text: str, code: str) -> None:
        """Take back what was said under *code*, and say *text* to whoever started us, who may have read it."""
        if self.stream.over(code):
            self.around.report("notice", text=text, code=code, count=0, over=True)


async def withdraw(stream: AgentStream) -> None:
    """Have the workload's endpoints withdrawn everywhere, and let the last requests that were sent to it arrive."""
    await stream.leave(patience=WITHDRAW_SECONDS)
    await asyncio.sleep(IN_FLIGHT_SECONDS)


# --- network, names, secrets ---


def make_network(member: Member) -> ProgramNamespaces:
    """Make the program's network namespace; say what this kernel does not allow in it."""
    registered = member.registered
    network = ProgramNamespaces.create(
        member.mesh,
        registered.workload,
        registered.address,
        registered.address6,
        host_ports=member.spec.host_ports,
    )
    for limit in network.limits:
        member.note(limit, "limit")
    if member.spec.capabilities and not grantable_here():
        member.note(NONE_GIVEN, "limit")
    return network


class NameTable:
    """The mesh's names as they were last told, also before there is a server that answers from them."""

    def __init__(self) -> None:
        self._table: dict[str, list[str]] = {}
        self._names: dns.Names | None = None
        self._kept_out_of: tuple[Program, mounts.Hosts] | None = None

    def replace(self, table: dict[str, list[str]]) -> None:
        """Take a new table."""
        self._table = table
        if self._names:
            self._names.replace(table)
        self._rewrite_hosts()

    def has(self, name: str) -> bool:
        """Whether *name* is one of the mesh's as the program sees them."""
        return self._names is not None and self._names.has(name)

    def without_proxy(self) -> list[str]:
        """Return what NO_PROXY is to say of the mesh's names of now."""
        return self._names.without_proxy() if self._names is not None else []

    def keep_out_of(self, program: Program, hosts: mounts.Hosts) -> None:
        """Keep what comes to be a name of the mesh out of the hosts file of *program*, which is made of *hosts*."""
        self._kept_out_of = (program, hosts)
        self._rewrite_hosts()

    def _rewrite_hosts(self) -> None:
        if self._names is not None and self._kept_out_of is not None:
            program, hosts = self._kept_out_of
            if program.hosts >= 0:
                self._names.know_of_host(mounts.rewrite(program.hosts, hosts, self.has))

    def names_of(self, member: Member) -> dns.Names:
        """Return the table as *member* sees it; `replace` keeps it up to date."""
        registered = member.registered
        own = [address for address in (registered.address, registered.address6) if address]
        self._names = dns.Names(own=(registered.workload,), own_addresses=own, namespace=member.spec.namespace)
        self._names.replace(self._table)
        return self._names


@contextlib.asynccontextmanager
async def serving_names(member: Member, network: ProgramNamespaces, names: NameTable) -> AsyncIterator[UnknownHosts]:
    """Answer the program's DNS questions while the context lasts: the mesh's names here, others by the edge."""
    edge_socket = member.mesh.edge_socket
    unknown = UnknownHosts(member.stream.unknown_host, search=mounts.search_list(member.spec.namespace))
    server = dns.Server(network, names.names_of(member), lambda query: edge.resolve(edge_socket, query), unknown)
    await server.start()
    try:
        yield unknown
    finally:
        await server.stop()


def note_certificate(files: WorkloadPaths, certificate: x509.Certificate) -> None:
    """Write down how long *certificate* lasts: `weft status` reads it when the control plane cannot be asked."""
    life = {
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }
    files.certificate.write_text(json.dumps(life), "ascii")


@contextlib.asynccontextmanager
async def serving_secrets(member: Member) -> AsyncIterator[SecretService]:
    """Serve the proxy its key and certificates, renewed in time, while the context lasts."""
    secrets = SecretService(
        member.files.sds_socket,
        member.stream.sign,
        trusted=member.stream.trusts,
        renewed=lambda certificate: note_certificate(member.files, certificate),
        warn=lambda text: member.note(text, "certificate"),
        recovered=lambda: member.over("the certificate has been renewed", "certificate"),
    )
    await secrets.start()
    try:
        yield secrets
    finally:
        await secrets.close()


# --- the proxy ---


@contextlib.contextmanager
def keeping_listeners(member: Member) -> Iterator[Keeper | hot_restart.Parent]:
    """Keep the proxy's listening sockets while the context lasts, in the way in which it takes them."""
    if not DATA_PLANES[member.spec.data_plane].relayed:
        yield Keeper()  # the proxy closes it
        return
    parent = hot_restart.Parent()
    try:
        yield parent
    finally:
        parent.end()


def make_proxy(member: Member, executable: str, keeper: ListenerKeeper) -> Proxy:
    """Write the proxy's bootstrap and return the proxy, not yet running."""
    mesh, files = member.mesh, member.files
    data_plane = DATA_PLANES[member.spec.data_plane]
    place = Place(
        workload=member.registered.workload,
        address=member.registered.address,
        node=member.registered.node,
        bootstrap=files.bootstrap,
        admin=files.admin_socket,
        xds=files.discovery_socket if data_plane.relayed else mesh.xds_socket,
        sds=files.sds_socket,
        records=mesh.records_socket,
        edge=mesh.edge_socket,
        state=files.proxy_state,
        concurrency=member.spec.concurrency,
    )
    files.bootstrap.write_text(json.dumps(data_plane.bootstrap(place), indent=1), "utf-8")

    def on_ready(ready: bool) -> None:
        member.stream.proxy_ready(ready)
        member.around.report("proxy", ready=ready)

    return Proxy(
        data_plane.command(executable, place),
        admin=files.admin_socket,
        log=files.proxy_log,
        drain=data_plane.drain,
        retire=data_plane.retire,
        on_ready=on_ready,
        on_notice=lambda text: member.note(text, "proxy-died"),
        keeper=keeper,
    )


@contextlib.asynccontextmanager
async def replacing(member: Member, proxy: Proxy) -> AsyncIterator[Callable[[int, float, float], None]]:
    """While the context lasts, replace the proxy when it is called with a number, patience and drain time."""
    tasks: set[asyncio.Task[None]] = set()

    async def replace(number: int, patience: float, drain: float) -> None:
        try:
            old, new = await proxy.replace(patience=patience, drain=drain)
        except (WeftError, OSError) as problem:
            member.stream.hot_restarted(number, problem=str(problem))
        else:
            member.stream.hot_restarted(number, old=old, new=new)

    def begin(number: int, patience: float, drain: float) -> None:
        task = asyncio.create_task(replace(number, patience, drain))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        yield begin
    finally:
        member.stream.on_hot_restart = lambda number, _patience, _drain: None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def relaying(member: Member, proxy: Proxy) -> AsyncIterator[None]:
    """Carry the proxy's bytes to and from the host while the context lasts."""
    limits.raise_open_files()
    relay = Relay(member.mesh.edge_socket, member.registered.workload, refused=member.stream.outside_refused)
    try:
        await relay.open_outside(member.files.outside_socket)
        for item in member.spec.published:
            place = Endpoint(item.host_address, item.host_port)
            path = member.files.published_socket(item.port)
            relay.publish(place, path, proxy.ready, lambda text: member.note(text, "publish"))
        yield
    finally:
        await relay.close()


@contextlib.asynccontextmanager
async def leading(member: Member, proxy: Proxy, parent: hot_restart.Parent) -> AsyncIterator[None]:
    """Lead the proxy to its configuration while the context lasts: the control plane's, or what it had."""
    saved = Saved(on_listeners=parent.keep_only)
    discovery = Discovery(
        member.mesh.xds_socket,
        member.files.saved_socket,
        proxy.ready,
        saved,
        warn=lambda text: member.note(text, "discovery"),
    )
    try:
        discovery.open(member.files.discovery_socket)
        yield
    finally:
        await discovery.close()


async def cap_logs(member: Member) -> None:
    """Keep what the proxy writes within bounds."""
    while True:
        await asyncio.sleep(LOG_POLL_SECONDS)
        for path in (member.files.access_log, member.files.proxy_log):
            try:
                cap(path)
            except OSError as exc:
                member.note(f"{path} cannot be kept within bounds: {exc}", "log")


# --- the program ---

Start = Callable[[tuple[int, int, int]], "Program"]
"""Starts the program with these descriptors as 0, 1 and 2."""


def start_in(member: Member, network: ProgramNamespaces, names: NameTable) -> Start:
    """Return what starts the program in namespaces of its own."""
    spec, registered = member.spec, member.registered

    def start(standard: tuple[int, int, int]) -> Program:
        view = mounts.view(
            own_names=(registered.workload,),
            address=registered.address,
            address6=registered.address6,
            hidden=member.mesh.masked,
            namespace=spec.namespace,
            is_service=names.has,
        )
        added: dict[str, str] = {}
        if forward_proxies.told(spec.environment):
            # A company's proxy knows nobody of the mesh. What is there at the start is what a variable can say.
            added = forward_proxies.exempt(spec.environment, (*names.without_proxy(), *mesh_ranges(member.mesh)))
            note_environment(member.files, added)
        program = spawn(member, network, view, {**spec.environment, **added}, standard)
        names.keep_out_of(program, view.hosts)
        return program

    return start


def make_place(member: Member, credential: explicit.Credential) -> explicit.Place:
    """Return where the program lives in explicit mode, with ports for it that are free now."""
    spec, registered = member.spec, member.registered
    ports = explicit.choose_ports(registered.workload, [number for number, _ in spec.ports])
    return explicit.Place(
        registered.workload, registered.address, spec.namespace, credential, ports, registered.services
    )


def start_at(member: Member, place: explicit.Place) -> Start:
    """Return what starts the program in the host's own network, told by its environment where things are."""
    added = place.environment(member.spec.environment)
    note_environment(member.files, added)
    environment = {**member.spec.environment, **added}
    return lambda standard: spawn(member, None, None, environment, standard)


def note_environment(files: WorkloadPaths, added: Mapping[str, str]) -> None:
    """Write down the variables that the program is given beside its own, for `weft exec`."""
    files.environment.touch(mode=0o600)
    files.environment.write_text(json.dumps(added), "utf-8")


def spawn(
    member: Member,
    network: ProgramNamespaces | None,
    view: mounts.View | None,
    environment: Mapping[str, str],
    standard: tuple[int, int, int],
) -> Program:
    """Start the program under its init; see `weft.agent.init.spawn`."""
    return init.spawn(
        network,
        view,
        member.spec.argv,
        environment=environment,
        directory=member.spec.directory,
        stdin=standard[0],
        stdout=standard[1],
        stderr=standard[2],
        new_session=not member.around.attached,
        capabilities=member.spec.capabilities,
    )


async def run_program(
    member: Member, start_program: Start, *, on_end: Callable[[int, list[str]], None] = lambda _code, _last: None
) -> int:
    """
    Run the program as its restart policy says, until it has ended for good or the end was asked for.

    Args:
        start_program: Starts it once.
        on_end: Called with its code and its last lines each time it has ended.
    """
    spec, around, files = member.spec, member.around, member.files
    tee = (lambda line: around.report("output", line=line)) if around.tee else None

    def warn(text: str) -> None:
        member.note(text, "output")

    capture = None if around.attached else Capture(OutputLog(files.output_log, tee=tee, warn=warn))

    def start() -> init.Program:
        if capture:
            capture.log.begin()
        program = start_program(capture.descriptors if capture else (0, 1, 2))
        try:
            files.write_init(program.init_pid)
        except OSError as exc:  # it runs all the same, and nobody would end it if this start had failed
            member.note(f"`weft exec` does not find the program: {files.init_pid}: {exc.strerror}", "init-pid")
        for limit in program.limits:
            member.note(limit, "limit")
        return program

    def on_state(state: str, code: int | None, again: bool) -> None:
        around.control.program = life.program
        around.control.started |= life.program is not None
        around.control.changed.set()
        pid = life.program.pid if life.program else 0
        how = "" if code is None else describe(code)
        failure: dict[str, object] = {}  # of the start, which is why there was none
        if code is not None and (error := life.failure):
            failure = {"errno": error.errno, "filename": error.filename or spec.argv[0]}
            how = f"cannot be started: {error.strerror}: {failure['filename']}"
        member.stream.program(pid=pid, state=state, code=code, restarts=life.restarts.count, how=how)
        facts: dict[str, object] = {"state": state, "pid": pid, "restarts": life.restarts.count}
        if state == "exited" and code is not None:
            files.init_pid.unlink(missing_ok=True)
            if capture:
                capture.drain()
            last = capture.log.last if capture else []
            if hint := capability_hint(spec, code, last):
                member.note(hint, "capability-hint")
            facts |= {"code": code, "how": how, "again": again, "last": last, "failure": failure}
        around.report("program", **facts)
        if state == "exited" and code is not None:
            on_end(code, list(facts["last"]))  # type: ignore[call-overload]

    life = Life(
        start,
        spec.restart,
        own_session=not around.attached,
        on_state=on_state,
        is_final=around.control.is_final,
    )
    running = asyncio.create_task(life.run())
    try:
        if await ends_before(around.ending, asyncio.shield(running)):
            await life.stop()
        return await running
    finally:
        running.cancel()
        around.control.program = None
        if capture:
            capture.close()


# --- what the agent watches ---


Where = tuple[str, int]
"""Address and port; the port is 0 if it is the declared one."""


def in_namespace(network: ProgramNamespaces) -> dict[int, Where]:
    """Return where the program of a namespace listens."""
    return {number: (address, 0) for number, address in network.listening().items()}


async def watch_ports(member: Member, look: Callable[[], Mapping[int, Where]]) -> None:
    """Tell the control plane which declared ports answer, from the moment they do and until they do not."""
    declared = {number for number, _ in member.spec.ports}
    known: dict[int, Where] = {}
    ready = False
    elsewhere_since, told = 0.0, False
    while True:
        found = look()
        missing = sorted(declared - found.keys())
        elsewhere = sorted(found.keys() - declared) if missing else []
        moment = asyncio.get_running_loop().time()
        elsewhere_since = (elsewhere_since or moment) if elsewhere else 0.0
        # A program may open its ports one after the other.
        if elsewhere and not told and moment - elsewhere_since > ODD_SECONDS:
            told = True
            member.note(elsewhere_text(elsewhere, missing), "listens-elsewhere")
        elif told and not missing:
            told = False
            member.over(
                f"the program listens on all ports now that it declares: {ports_text(declared)}", "listens-elsewhere"
            )
        now = {number: found[number] for number in declared if number in found}
        for number in known.keys() | now.keys():
            if known.get(number) != now.get(number):
                member.stream.listening(number, *now.get(number, (None,)))
        known = now
        complete = len(known) == len(declared) and member.around.control.started
        if complete != ready:
            ready = complete
            member.around.report("ready" if ready else "unready")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STEADY_POLL_SECONDS if complete else STARTING_POLL_SECONDS):
                await member.around.control.changed.wait()
        member.around.control.changed.clear()


def elsewhere_text(found: Sequence[int], missing: Sequence[int]) -> str:
    """Return what to say of a program that listens on other ports than those that it declares."""
    here, there = ports_text(found), ports_text(missing)
    return (
        f"the program listens on port {here}, and not on {there}, which it declares: nobody can call it there. Declare the"
        f" port that it listens on (`ports` in weft.yaml, `--port`), or have it listen on {there}."
    )


def ports_text(ports: Iterable[int]) -> str:
    """Return *ports* as a sentence has them."""
    return ", ".join(map(str, sorted(ports)))


def lacks_text(service: str, ports: Sequence[int]) -> str:
    """Return what to say of a program that joins *service*, and does not serve all of its ports."""
    return (
        f"the service {service} has port {ports_text(ports)} too, which this program does not serve: it gets none of the calls there."
        " If it is to stand for the others, give it their ports (`--port`)."
    )


class Refusals:
    """What the program's network refused, told to people: UDP, and ports of the host's loopback that were probably meant."""

    def __init__(self, member: Member, network: ProgramNamespaces) -> None:
        self._member, self._network = member, network
        self._udp = RefusedUdp(network)
        self._asked: dict[int, float] = {}
        """How often each port had been refused when the host was last looked at and did not listen there; no more once that was told."""

    async def watch(self) -> None:
        """Look from time to time."""
        while True:
            await asyncio.sleep(HINT_POLL_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Say what is new, once each; counts grow without a word."""
        for sentence, count in self._udp.poll().items():
            self._member.note(sentence, "udp-refused", count=count)
        # The program's own ports, refused while it is not there, are no wish for the host's: the proxy asks for them, too.
        own = {number for number, _ in self._member.spec.ports}
        for port, count in sorted(self._network.refused_loopback().items()):
            if port in own or count <= self._asked.get(port, 0):
                continue
            with contextlib.suppress(WeftError, OSError, TimeoutError):  # without an answer it is asked again
                is_there = await edge.host_listening(self._member.mesh.edge_socket, port)
                self._asked[port] = math.inf if is_there else count
                if is_there:
                    attached = self._member.around.attached
                    remedy = f"`weft run --host-port {port}`" if attached else f"`host_ports: [{port}]` in weft.yaml"
                    self._member.note(host_ports.hint(port, remedy), "host-port-hint")


def capability_hint(spec: WorkloadSpec, code: int, last: Sequence[str]) -> str:
    """Return what a program of root may have lacked that failed for want of permission; empty if that is not why."""
    failed = code not in (0, -signal.SIGTERM, -signal.SIGINT)
    if os.geteuid() != 0 or spec.capabilities or not failed or not any(_NOT_PERMITTED in line for line in last):
        return ""
    return (
        f"{spec.argv[0]} runs as root without root's capabilities, and something that it tried was not permitted. If it"
        " changes its user or the owners of files, say so in weft.yaml: `capabilities: [SETUID, SETGID, CHOWN]`."
    )


_NOT_PERMITTED = os.strerror(errno.EPERM)


def failed_by_itself(code: int) -> bool:
    """
    Whether a program that ended with *code* (minus the number of a signal) gave up, by what it returned or by abort(3).

    Not by another signal, of which shells make 128 and its number, and not because there is no such program.
    """
    number = -code if code < 0 else code - 128
    signalled = 0 < number < signal.NSIG and number != signal.SIGABRT
    return code not in (0, 126, 127) and not signalled


class Habits:
    """What a program of explicit mode does with what it was told, and what is said of that: each sentence once."""

    def __init__(self, member: Member, place: explicit.Place) -> None:
        self._member, self._place = member, place
        self._said: set[str] = set()
        self._odd_since = 0.0
        self._listened: set[int] = set()

    def look(self) -> Mapping[int, Where]:
        """Return where the program listens now."""
        program = self._member.around.control.program
        if program is None:
            return {}
        look = self._place.look(sockets.descendants(program.init_pid))
        self._listened |= look.found.keys()
        if look.exposed:
            self._say("exposed", explicit.exposed(self._place, look))
        odd = explicit.misplaced(self._place, look)
        now = asyncio.get_running_loop().time()
        self._odd_since = (self._odd_since or now) if odd else 0.0
        # A program may open its ports one after the other.
        if odd and now - self._odd_since > ODD_SECONDS:
            self._say("misplaced", odd)
        return look.found

    def ended(self, code: int, last: list[str]) -> None:
        """The program has ended with *code*; *last* is what it wrote at the end."""
        if failed_by_itself(code) and (text := explicit.collided(self._place, self._listened, last)):
            self._say("port-taken", text)
        self._listened.clear()

    def _say(self, code: str, text: str) -> None:
        if code not in self._said:
            self._said.add(code)
            self._member.note(text, code)


# --- tasks ---


def background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run *work* until the stack is left. If it breaks, so does the agent: nothing runs half."""
    serving = asyncio.current_task()
    assert serving is not None
    task = asyncio.create_task(work)

    def done(_: object) -> None:
        if not task.cancelled() and task.exception() is not None:
            serving.cancel()

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    task.add_done_callback(done)
    stack.push_async_callback(end)


async def unless_ending(ending: asyncio.Event, work: Awaitable[Result]) -> Result | None:
    """Return what *work* returns, or None if the end comes first; *work* is cancelled then. Raises as *work* does."""
    working = asyncio.ensure_future(work)
    return None if await ends_before(ending, working) else working.result()


async def ends_before(ending: asyncio.Event, work: Awaitable[Any]) -> bool:
    """Wait for *work* or the end, whichever comes first; return whether it was the end. *work* is cancelled then."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(ending.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        return not working.done()
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
