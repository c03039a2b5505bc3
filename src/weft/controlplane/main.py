"""
The process: puts the parts of the control plane together, runs them on one loop, and ends them in order.

Started by `weft up` as `weft control-plane`; started again by it if it dies. Everything that must outlive it is in the
store; everything else comes back from the agents.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvicorn

from weft._native import RecordStore
from weft.agent.bootstrap import RECORDS_CLUSTER
from weft.agent.paths import MeshPaths
from weft.agent.processes import parent
from weft.api.conditions import statuses
from weft.api.parse import identify, parse
from weft.api.references import dangling
from weft.controlplane.agents import AgentServer, is_alive
from weft.controlplane.api import Api
from weft.controlplane.change import ControlPlane
from weft.controlplane.edit import Document, Edit, key_to_json, problem_to_json
from weft.controlplane.events import Events
from weft.controlplane.rotation import Rotation
from weft.errors import InvalidConfiguration, StoreError, WeftError
from weft.identity import Authority, attest
from weft.identity.ca import LEAF_LIFETIME
from weft.model import MESH_CIDR, SERVICE_CIDR, Interception, loopback
from weft.registry import Declared, Programs
from weft.store import Author, FileSource, Lease, SqliteStore
from weft.telemetry import History
from weft.translate.capabilities import refusals
from weft.translate.check import check
from weft.translate.translator import Translator
from weft.xds import Connected, Disconnected, Event, Journal, Publisher, Refused, Rejected, Synced

log = logging.getLogger(__name__)

SETTLE_SECONDS = 3.0
"""How long a restarted control plane waits for the workloads that were there before; proxies keep what they have."""

ANCESTORS = 16
"""How far above a proxy its agent is looked for; a wrapper or two may stand between them."""


def run(runtime: Path, state: Path, declaration: Mapping[str, Any], *, lifeline: int | None = None) -> int:
    """
    Run the control plane until SIGTERM, SIGINT, `POST /v1/shutdown`, or the end of *lifeline*.

    Args:
        runtime: Where the sockets are made; exists, mode 0700.
        state: Where store and CA are; made if it is not there.
        declaration: What `weft up` read from weft.yaml (docs/reference/interfaces.md, 4.3a).
        lifeline: Descriptor of a pipe that nobody writes to; its end is the end of the mesh.

    Returns:
        The exit code.

    Raises:
        InvalidConfiguration: The declaration's documents are refused.
        StoreError: The store cannot be used.
    """
    return asyncio.run(_run(runtime, state, declaration, lifeline))


async def _run(runtime: Path, state: Path, declaration: Mapping[str, Any], lifeline: int | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if lifeline is not None:
        loop.add_reader(lifeline, _at_end, lifeline, stop)
    async with AsyncExitStack() as stack:
        mesh = await _start(runtime, state, declaration, stop, stack)
        log.info("revision %d, listening in %s", mesh.revision, runtime)
        await stop.wait()
    return 0


async def _start(
    runtime: Path, state: Path, declaration: Mapping[str, Any], stop: asyncio.Event, stack: AsyncExitStack
) -> ControlPlane:
    """Start every part; *stack* ends them in the opposite order."""
    events = Events()
    store = SqliteStore(state / "store.db")
    stack.callback(store.close)
    content = store.load()
    trust_domain = declaration.get("trust_domain") or "cluster.local"
    domain_suffix = declaration.get("domain_suffix") or "cluster.local"
    namespace = declaration.get("namespace") or "default"
    interception = Interception(declaration.get("interception") or Interception.TPROXY)
    default_cidr = loopback.SERVICE_CIDR if interception is Interception.EXPLICIT else SERVICE_CIDR
    files = MeshPaths(declaration.get("mesh") or runtime.name, runtime, state)
    registry = Programs(
        services=[Declared.from_json(item) for item in declaration.get("services") or ()],
        service_addresses=content.service_addresses,
        workload_addresses={f"{lease.namespace}/{lease.name}": lease.address for lease in content.leases},
        mesh_cidr=declaration.get("mesh_cidr") or MESH_CIDR,
        service_cidr=declaration.get("service_cidr") or default_cidr,
        interception=interception,
        mesh=files.mesh,
        trust_domain=trust_domain,
        domain_suffix=domain_suffix,
        host_namespace_path=str(files.host_namespace),
        namespace_path=lambda workload: str(files.workload(workload).namespace),
        outside_socket=lambda workload: str(files.workload(workload).outside_socket),
        published_socket=lambda workload, port: str(files.workload(workload).published_socket(port)),
        access_log_path=lambda workload: str(files.workload(workload).access_log),
        access_log_cluster=RECORDS_CLUSTER,
    )
    lifetime = timedelta(seconds=float(declaration.get("certificate_seconds") or 0)) or LEAF_LIFETIME
    authority = Authority(state / "ca", trust_domain, leaf_lifetime=lifetime)

    records = RecordStore(files.records_socket, files.records)
    stack.callback(records.close)
    history = History(files.records / "history.db")
    stack.callback(history.close)
    journal = Journal(files.receipts, last=content.revision)
    stack.callback(journal.close)
    publisher = Publisher(
        runtime / "xds.sock",
        admit=lambda node_id, pid: _admit(registry, agents, node_id, pid),
        observe=lambda event: _observe(events, registry, history, event),
        journal=journal,
    )
    stack.callback(publisher.close)

    def publish(views: Mapping[str, Sequence[tuple[str, str, bytes]]], revision: int) -> frozenset[str]:
        affected = publisher.publish(views, revision)
        for node_id in sorted(affected):
            history.published(node_id, revision, publisher.resources(node_id) or ())
        return affected

    def withdraw(node_id: str) -> None:
        publisher.withdraw(node_id)
        history.withdrawn(node_id)

    translator = Translator()
    plane = ControlPlane(
        store=store,
        registry=registry,
        leases=lambda: [
            Lease(namespace, name, program.address, agents.agent_of((namespace, name)), program.ready)
            for (namespace, name), program in registry.programs.items()
        ],
        parse=parse,
        identify=identify,
        references=dangling,
        statuses=statuses,
        refusals=refusals,
        translate=translator.translate,
        check=check,
        publish=publish,
        confirm=publisher.wait,
        withdraw=withdraw,
        announce=lambda revision: agents.publish_names(revision),  # noqa: PLW0108 - made below, with the plane itself
        events=events,
        data_planes=declaration.get("data_planes") or (),
        trust_domain=trust_domain,
        domain_suffix=domain_suffix,
        namespace=namespace,
    )
    returning = [lease for lease in content.leases if is_alive(lease.agent)]

    def changed() -> None:
        if all(_is_back(registry, lease) for lease in returning):
            plane.settled.set()
        plane.report()

    async def withdrawn() -> None:
        await publisher.wait(await plane.settle(), timeout=SETTLE_SECONDS)

    agents = AgentServer(
        registry,
        sign=authority.sign,
        attest=attest,
        bundle=authority.bundle,
        changed=changed,
        settle=withdrawn,
        revision=lambda: plane.revision,
        events=events,
    )
    await agents.serve(runtime / "agents.sock")
    stack.push_async_callback(agents.close)
    changed()
    if returning and not plane.settled.is_set():
        log.info("waiting for %d workloads that were here before", len(returning))
        asyncio.get_running_loop().call_later(SETTLE_SECONDS, plane.settled.set)
    source = FileSource(Path(declaration["config_dir"])) if declaration.get("config_dir") else None
    known = await _boot(plane, declaration, source, events)
    _spawn(stack, plane.follow())
    if source is not None:
        _spawn(stack, _follow(plane, source, known, events))
    rotation = Rotation(authority, agents, events)
    _spawn(stack, rotation.run())
    api = Api(
        mesh=declaration.get("mesh") or runtime.name,
        namespace=namespace,
        plane=plane,
        registry=registry,
        agents=agents,
        rotation=rotation,
        publisher=publisher,
        records=records,
        history=history,
        store=store,
        events=events,
        started=time.time(),
        shutdown=stop.set,
    )
    await _serve_http(api, runtime / "api.sock", stack)
    stack.callback(events.close)
    return plane


async def _boot(
    plane: ControlPlane, declaration: Mapping[str, Any], source: FileSource | None, events: Events
) -> Mapping[str, str]:
    """
    Take the first turn: what weft.yaml declares, once for each `weft up`, with what the followed directory holds.

    Returns:
        The content of that directory as far as it was told of.

    Raises:
        InvalidConfiguration, StoreError: At a new `weft up` something of it is wrong. A control plane that is started
            again tells it, and goes on with the directory as it was when it was good last.
    """
    boot = declaration.get("boot") or ""
    if boot and boot == plane.boot:
        return await _take_up(plane, source, events) if source is not None else {}
    found = source.load() if source is not None else {}
    documents = tuple(Document(item["file"], item["text"]) for item in declaration.get("documents") or ())
    fresh = bool(declaration.get("fresh"))
    await plane.change(
        Edit(documents=documents, directory=_documents(found), author=Author.DECLARATION, fresh=fresh, boot=boot)
    )
    stored = plane.configuration.stored
    if kept := [key for key, item in stored.items() if item.author is Author.USER]:
        events.emit("kept", keys=[key_to_json(key) for key in kept])
    return found


async def _take_up(plane: ControlPlane, source: FileSource, events: Events) -> Mapping[str, str]:
    """Take in the followed directory after a restart; while it is wrong, the last good content stays."""
    good = plane.directory
    try:
        found = source.load()
    except StoreError:
        if not good:
            raise
        found = good  # who follows it will tell
    try:
        await plane.change(Edit(directory=_documents(found)))
    except WeftError as error:
        # Nothing may be what an older weft has left, which kept nothing: proxies go on with what they have.
        if not good or found == good:
            raise
        _tell(error, events)
        await plane.change(Edit(directory=_documents(good)))
    return found


async def _follow(plane: ControlPlane, source: FileSource, known: Mapping[str, str], events: Events) -> None:
    """Take in the followed directory each time it changes; while it is wrong, the last good content stays."""
    async for found in source.watch(known, lambda error: _tell(error, events)):
        try:
            await plane.change(Edit(directory=_documents(found)))
        except WeftError as error:
            _tell(error, events)


def _tell(error: WeftError, events: Events) -> None:
    """Tell why the followed directory is not taken in as it is."""
    if isinstance(error, InvalidConfiguration):
        events.emit("invalid", problems=[problem_to_json(problem) for problem in error.problems])
    else:
        events.emit("failed", text=str(error))
    log.error("%s", error)


def _documents(found: Mapping[str, str]) -> tuple[Document, ...]:
    return tuple(Document(file, text) for file, text in found.items())


async def _serve_http(api: Api, path: Path, stack: AsyncExitStack) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.callback(listener.close)
    path.unlink(missing_ok=True)
    server = _Server(
        uvicorn.Config(
            api.application(),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    # Bound under another name and renamed once it listens: who sees `api.sock` can connect to it.
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    listener.bind(str(temporary))
    temporary.chmod(0o600)
    listener.listen(128)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    temporary.rename(path)

    async def end() -> None:
        server.should_exit = True
        await serving
        path.unlink(missing_ok=True)

    stack.push_async_callback(end)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: `_run` has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _spawn(stack: AsyncExitStack, work: Any) -> None:
    task = asyncio.ensure_future(work)

    async def end() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


def _at_end(lifeline: int, stop: asyncio.Event) -> None:
    if not os.read(lifeline, 1):
        asyncio.get_running_loop().remove_reader(lifeline)
        stop.set()


def _is_back(registry: Programs, lease: Lease) -> bool:
    program = registry.programs.get((lease.namespace, lease.name))
    return program is not None and (program.ready or not lease.ready)


def _admit(registry: Programs, agents: AgentServer, node_id: str, pid: int | None) -> str:
    """Return why process *pid* may not have the view of *node_id*, or an empty text if its own agent started it."""
    proxies = registry.view().proxies
    key = next((key for key, proxy in proxies.items() if proxy.node_id == node_id), None)
    if key is None or not pid:
        return ""  # nothing is published under this name yet, or the kernel does not say whose the stream is
    agent = agents.pid_of(key)
    process = pid
    for _ in range(ANCESTORS):
        if process == agent:
            return ""
        process = parent(process)
    return f"process {pid} was not started by the agent of {key[1]} ({agent})"


def _observe(events: Events, registry: Programs, history: History, event: Event) -> None:
    workloads = {proxy.node_id: proxy.workload for proxy in registry.view().proxies.values()}
    workload = workloads.get(event.node_id, event.node_id)
    match event:
        case Connected():
            events.emit("proxy-connected", workload=workload, pid=event.pid)
        case Disconnected():
            events.emit("proxy-disconnected", workload=workload)
        case Synced():
            history.acknowledged(event.node_id, event.revision)
            events.emit("synced", workload=workload, revision=event.revision)
        case Refused():
            resource = event.resource
            events.emit(
                "refused", workload=workload, type_url=resource.type_url, name=resource.name, text=resource.message
            )
        case Rejected():
            events.emit("rejected", workload=workload, pid=event.pid, text=event.reason)
            log.warning("%s", event.reason)
