"""
The HTTP API on `api.sock`, for the command line and the console (docs/reference/interfaces.md, 4.3).

Each function here reads a request, asks the control plane, and writes JSON. What it means is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from weft._native import RecordStore
from weft.api.kinds import KNOWN
from weft.api.names import label_fault
from weft.controlplane.agents import STOP_SECONDS, AgentServer, AgentState, Key, outside_refusal
from weft.controlplane.blame import field_of, origins_of
from weft.controlplane.change import ControlPlane, Outcome
from weft.controlplane.edit import Document, Edit, key_to_json, problem_to_json
from weft.controlplane.events import Events
from weft.controlplane.rotation import Rotation, What
from weft.errors import InvalidConfiguration, NotFound, UsageError, WeftError
from weft.model import ConfigKey, ConfigObject, Proxy, ProxyKind
from weft.registry import Programs
from weft.store import Author, Store
from weft.telemetry import History, Record, owner_of, read
from weft.translate.capabilities import shortfalls
from weft.translate.listening import listening_ports
from weft.translate.names import is_outside
from weft.translate.resource import LISTENER
from weft.version import weft_version
from weft.xds import ProxyStatus, Publisher, Receipt, RefusedResource

log = logging.getLogger(__name__)

Found = TypeVar("Found")

LONGEST_WAIT_SECONDS = 600.0
"""What `?wait=` may ask for."""

READY_POLL_SECONDS = 0.005

KEPT_REVISIONS_SHOWN = 100

RECORDS_OF_ONE_REQUEST = 1000
"""A program that gives all its requests one id must not make an answer without end; the newest are shown."""

LATEST_TIME = 1e12
"""Of `?at=`, in seconds since 1970: a number far from any that makes sense."""

RECORDS_SHOWN = 1000
"""What `?limit=` may ask for."""

REFUSED_LOOKED_THROUGH = 200
"""Refused connections, the newest, among which those of one client are found."""

REVISIONS_SEARCHED = 1000
"""How far back the time of a revision is looked for."""


class Api:
    """
    The calls. `namespace` is that of objects that name none; `started` is when the control plane did, in seconds since
    the epoch; `shutdown` ends it.
    """

    def __init__(
        self,
        *,
        mesh: str,
        namespace: str,
        plane: ControlPlane,
        registry: Programs,
        agents: AgentServer,
        rotation: Rotation,
        publisher: Publisher,
        records: RecordStore,
        history: History,
        store: Store,
        events: Events,
        started: float,
        shutdown: Callable[[], None],
    ) -> None:
        self._mesh = mesh
        self._namespace = namespace
        self._plane = plane
        self._registry = registry
        self._agents = agents
        self._rotation = rotation
        self._publisher = publisher
        self._records = records
        self._history = history
        self._store = store
        self._events = events
        self._started = started
        self._shutdown = shutdown

    def application(self) -> Starlette:
        """Return the ASGI application."""
        handlers: list[tuple[str, str, Callable[[Request], Awaitable[Any]]]] = [
            ("POST", "/v1/apply", self.apply),
            ("POST", "/v1/delete", self.delete),
            ("POST", "/v1/diff", self.diff),
            ("GET", "/v1/config", self.config),
            ("GET", "/v1/proxies", self.proxies),
            ("GET", "/v1/proxies/{workload}/resources", self.resources),
            ("POST", "/v1/proxies/{workload}/hot_restart", self.hot_restart),
            ("GET", "/v1/revisions", self.revisions),
            ("GET", "/v1/revisions/{revision:int}", self.revision),
            ("GET", "/v1/settled", self.settled),
            ("GET", "/v1/records", self.records),
            ("GET", "/v1/history", self.history),
            ("GET", "/v1/workloads", self.workloads),
            ("GET", "/v1/services", self.services),
            ("GET", "/v1/events", self.events),
            ("GET", "/v1/version", self.version),
            ("GET", "/v1/ca", self.authority),
            ("POST", "/v1/ca/rotate", self.rotate),
            ("POST", "/v1/shutdown", self.shutdown),
        ]
        return Starlette(
            routes=[Route(path, _answer(handler), methods=[method]) for method, path, handler in handlers],
            exception_handlers={404: _no_such_call, 405: _no_such_call},
        )

    async def apply(self, request: Request) -> Any:
        body = await _body(request)
        edit = Edit(
            documents=_documents(body),
            namespace=_namespace(body),
            strict=bool(body.get("strict")),
            dry_run=bool(body.get("dry_run")),
            wait=bool(body.get("wait", True)),
        )
        return _outcome(await self._plane.change(edit))

    async def delete(self, request: Request) -> Any:
        body = await _body(request)
        keys = tuple(map(_key, body.get("keys", ())))
        edit = Edit(
            delete=keys,
            delete_documents=_documents(body) if "documents" in body else (),
            namespace=_namespace(body),
            ignore_missing=bool(body.get("ignore_not_found")),
            dry_run=bool(body.get("dry_run")),
            wait=bool(body.get("wait", True)),
        )
        return _outcome(await self._plane.change(edit))

    async def diff(self, request: Request) -> Any:
        body = await _body(request)
        edit = Edit(documents=_documents(body), namespace=_namespace(body), dry_run=True, unmoved=True)
        outcome = await self._plane.change(edit)
        changes = []
        for key, _ in outcome.results:
            before, after = outcome.before.objects.get(key), outcome.after.objects.get(key)
            changes.append(
                {
                    "key": key_to_json(key),
                    "before": before and dict(before.manifest),
                    "after": after and dict(after.manifest),
                }
            )
        resources = {
            workload: [
                {"type_url": type_url, "name": name, "change": change}
                for type_url, difference in found.items()
                for change in ("added", "changed", "removed")
                for name in getattr(difference, change)
            ]
            for workload, found in outcome.resources.items()
        }
        warnings = [problem_to_json(problem) for problem in outcome.warnings]
        return {"changes": changes, "resources": resources, "warnings": warnings}

    async def authority(self, _: Request) -> Any:
        return self._rotation.describe()

    async def rotate(self, request: Request) -> Any:
        what = (await _body(request)).get("what")
        if what not in tuple(What):
            raise UsageError(f"`what` is one of {', '.join(What)}, not {what!r}.")
        return await self._rotation.rotate(What(what))

    async def config(self, request: Request) -> Any:
        query = request.query_params
        wanted = {name: {query[name]} for name in ConfigKey._fields if name in query}
        if "namespace" in wanted:
            wanted["namespace"].add("")  # what is in none is everybody's
        # In a thread: the store may be syncing a commit to a slow disk meanwhile.
        revisions = await asyncio.to_thread(self._store.revisions, REVISIONS_SEARCHED)
        times = {item.revision: item.time for item in revisions}
        times |= await asyncio.to_thread(self._store.created_times)
        configuration = self._plane.configuration
        return [
            {
                "key": key_to_json(key),
                "api_version": item.api_version,
                "manifest": self._manifest(key, item),
                "generation": item.generation,
                "created": item.created,
                "created_time": times.get(item.created),
                "origin": str(item.locate()),
                "author": "directory" if key in configuration.directory else configuration.stored[key].author.value,
            }
            for key, item in sorted(configuration.objects.items())
            if all(getattr(key, name) in values for name, values in wanted.items())
        ]

    def _manifest(self, key: ConfigKey, item: ConfigObject) -> dict[str, Any]:
        status = self._plane.statuses.get(key)
        return {**item.manifest, **({"status": status} if status is not None else {})}

    async def proxies(self, request: Request) -> Any:
        statuses = self._publisher.proxies()
        return [
            self._proxy(key, proxy, statuses.get(proxy.node_id)) for key, proxy in sorted(self._plane.proxies.items())
        ]

    async def resources(self, request: Request) -> Any:
        workload, wanted = request.path_params["workload"], request.query_params.get("type", "")
        proxy = _of_workload(workload, self._plane.proxies)
        return [
            {
                "type_url": resource.type_url,
                "name": resource.name,
                "version": resource.version,
                "value": base64.b64encode(resource.value).decode(),
            }
            for resource in self._publisher.resources(proxy.node_id) or ()
            if wanted in ("", resource.type_url)
        ]

    async def hot_restart(self, request: Request) -> Any:
        workload, body = request.path_params["workload"], await _body(request)
        patience, drain = (_seconds(str(body.get(name))) for name in ("patience", "drain"))
        session = _of_workload(workload, self._agents.sessions)
        outcome = await self._agents.hot_restart(session, patience=patience, drain=drain)
        said = {name: outcome[name] for name in ("old", "new", "problem") if name in outcome}
        self._events.emit("hot-restart", workload=workload, **said)
        return {"workload": workload, **said}

    async def records(self, request: Request) -> Any:
        query = request.query_params
        lookups: list[Record] = []
        refused: list[Record] = []
        if request_id := query.get("request_id"):
            found, limit = self._records.find(request_id)[-RECORDS_OF_ONE_REQUEST:], RECORDS_OF_ONE_REQUEST
        else:
            limit, failed = int(_number(query.get("limit", "1"), RECORDS_SHOWN)), query.get("failed") in ("1", "true")
            nodes = self._nodes(query["workload"]) if "workload" in query else None
            logs = [query["log"]] if "log" in query else ["requests", "connections"]
            if "since" in query:
                since = _number(query["since"], LATEST_TIME)
                found = await asyncio.to_thread(self._oldest, limit, logs, nodes, since, failed=failed)
            else:
                found = self._records.recent(limit, logs, nodes=nodes, failed=failed)
            if failed and "log" not in query:
                lookups = self._agents.lookups.recent(limit, nodes=nodes)
            if nodes is not None and "connections" in logs:
                refused = self._refused_clients(nodes)
        told = [record for item in found if (record := read(*item)) is not None]
        # Each is in order; a lookup's time is that of its arrival, which is that of a record's end.
        others = [*heapq.merge(refused, lookups, key=lambda record: -record.end)]
        records = [*heapq.merge(told, others, key=lambda record: -record.end)][:limit] if others else told
        return {
            "records": [
                replace(
                    record,
                    revision=self._history.revision(record.node, record.start),
                    transport_failure=record.transport_failure or self._refused_outside(record),
                    client=record.client or owner_of(self._client_node(record))[0],
                ).to_json()
                for record in records
            ],
            "store": self._records.status(),
        }

    def _oldest(
        self, limit: int, logs: Sequence[str], nodes: Sequence[str] | None, since: float, *, failed: bool
    ) -> list[Any]:
        """Return at most *limit* of what has come *since*, the newest first: of more the first that came."""
        asked = limit
        while True:
            found = self._records.recent(asked, logs, nodes=nodes, failed=failed)
            later = [item for item in found if item[3] >= since]  # when it was received
            if len(found) < asked or len(later) < len(found):
                return later[-limit:]
            asked *= 4

    def _refused_clients(self, nodes: Collection[str]) -> list[Record]:
        """Return connections of these workloads that proxies of others refused, the newest first: of those refused lately."""
        found = self._records.recent(REFUSED_LOOKED_THROUGH, ["connections"], failed=True)
        records = [record for item in found if (record := read(*item)) is not None and record.node not in nodes]
        clients = ((record, self._client_node(record)) for record in records)
        return [replace(record, client=owner_of(node)[0]) for record, node in clients if node in nodes]

    def _client_node(self, record: Record) -> str:
        """Return the node id of the workload that a refused connection came from; empty if it is none of the mesh."""
        if record.log != "connections":
            return ""
        address = record.downstream.rpartition(":")[0].strip("[]")
        return self._history.node_at(address, record.start) if address else ""

    def _refused_outside(self, record: Record) -> str:
        """Return why the agent made no connection out of the mesh for a proxy that calls through it; empty if it did."""
        name, namespace = record.owner
        refusals = self._agents.outside_refusals.get((namespace, name), ())
        return outside_refusal(record, refusals) if is_outside(record.cluster) else ""

    async def history(self, request: Request) -> Any:
        query = request.query_params
        if "node" not in query or "at" not in query:
            raise UsageError("Name a node and a time: /v1/history?node=ID&at=SECONDS.")
        return [
            {
                "revision": item.revision,
                "published": item.published,
                "acknowledged": item.acknowledged,
                "resources": [
                    {"type_url": type_url, "name": name, "value": base64.b64encode(value).decode()}
                    for type_url, name, value in item.resources
                ],
            }
            for item in self._history.at(query["node"], _number(query["at"], LATEST_TIME))
        ]

    def _nodes(self, wanted: str) -> list[str]:
        """Return the node ids of the proxies of a workload, or of all workloads of a service."""
        programs = self._registry.programs
        found = [
            proxy.node_id
            for key, proxy in self._plane.proxies.items()
            if wanted == key[1] or (key in programs and wanted == programs[key].registration.service)
        ]
        if not found:
            known = sorted({name for _, name in self._plane.proxies})
            raise NotFound(f"There is no program {wanted!r}. There are: {', '.join(known) or 'none'}.")
        return found

    async def revisions(self, request: Request) -> Any:
        return [
            {"revision": item.revision, "time": item.time, "summary": item.summary}
            for item in await asyncio.to_thread(self._store.revisions, KEPT_REVISIONS_SHOWN)
        ]

    async def revision(self, request: Request) -> Any:
        number = request.path_params["revision"]
        wait = _seconds(request.query_params.get("wait", "0"))
        if number > self._plane.revision:
            raise NotFound(f"There is no revision {number}; the last one is {self._plane.revision}.")
        if number < (oldest := self._publisher.oldest):
            raise NotFound(f"What became of revision {number} is not known any more; it is from revision {oldest} on.")
        if not self._plane.proxies:
            # Those that were here before a restart are about to be published to.
            await self._plane.settle()
        # Without a proxy nothing is published, and there is nothing to wait for.
        if wait and self._plane.proxies:
            deadline = time.monotonic() + wait
            receipt = await self._answered(number, deadline)
            late = await self._agents.names_taken(max(0.0, deadline - time.monotonic()), number)
            return await self._receipt(receipt, late)
        return await self._receipt(self._publisher.receipt(number), await self._agents.names_taken(0.0, number))

    async def _answered(self, number: int, deadline: float) -> Receipt:
        """Wait for the proxies that revision *number* is about, but for an Envoy whose agent, which relays it, is stopped."""
        return await _in_steps(
            lambda seconds: self._publisher.wait(number, seconds),
            deadline,
            lambda receipt: receipt.complete or bool(receipt.silent and not self._awaited(receipt.silent)),
        )

    def _awaited(self, node_ids: Iterable[str]) -> set[str]:
        """Return those of *node_ids* whose agents are not stopped."""
        keys = {proxy.node_id: key for key, proxy in self._plane.proxies.items()}
        return {
            node_id
            for node_id in node_ids
            if node_id not in keys or self._agents.state_of(keys[node_id]) is not AgentState.STOPPED
        }

    async def settled(self, request: Request) -> Any:
        """Wait until workloads are ready and every proxy has what follows from that; say who is not, and which has not."""
        deadline = time.monotonic() + _seconds(request.query_params.get("wait", "0"))
        wanted = {name for name in request.query_params.get("ready", "").split(",") if name}
        while (unready := wanted - self._ready()) and time.monotonic() < deadline:
            await asyncio.sleep(READY_POLL_SECONDS)
        await self._plane.settle()
        silent = await _in_steps(self._publisher.wait_for_all, deadline, lambda silent: not self._awaited(silent))
        workloads = {proxy.node_id: proxy.workload for proxy in self._plane.proxies.values()}
        behind = {workloads.get(node_id, node_id) for node_id in self._awaited(silent)}
        late = await self._agents.names_taken(max(0.0, deadline - time.monotonic()))
        behind |= {name for (_, name), state in late.items() if state is AgentState.SILENT}
        return {"unready": sorted(unready), "behind": sorted(behind), "untaken": self._untaken()}

    def _untaken(self) -> dict[str, list[int]]:
        """Return the published ports that no listener of their gateway takes, as before a Gateway is applied; callers are refused."""
        found = {}
        for key, program in sorted(self._registry.programs.items()):
            wanted = {item.port for item in program.registration.published}
            proxy = self._plane.proxies.get(key) if wanted else None
            if proxy is not None and (resources := self._publisher.resources(proxy.node_id)) is not None:
                taken = listening_ports(item.value for item in resources if item.type_url == LISTENER)
                found[key[1]] = sorted(wanted.difference(taken))
        return {name: ports for name, ports in found.items() if ports}

    def _ready(self) -> set[str]:
        return {name for (_, name), program in self._registry.programs.items() if program.ready}

    async def workloads(self, request: Request) -> Any:
        view = self._registry.view()
        found = []
        for key, program in sorted(self._registry.programs.items()):
            registration, workload = program.registration, view.workloads[key]
            found.append(
                {
                    "workload": key[1],
                    "namespace": key[0],
                    "service": registration.service,
                    "version": registration.version,
                    "kind": registration.kind.value,
                    "address": program.address,
                    "address6": program.address6,
                    "interception": self._registry.interception.value,
                    "identity": str(program.identity),
                    "services": list(workload.services),
                    "labels": dict(workload.labels),
                    "ports": [
                        {"number": port.number, "protocol": port.protocol.value, "listening": port.listening}
                        for port in workload.ports
                    ],
                    "published": [
                        {"port": item.port, "host_address": item.host_address, "host_port": item.host_port}
                        for item in registration.published
                    ],
                    "ready": program.ready,
                    "proxy_ready": program.proxy_ready,
                    "state": program.state,
                    "pid": program.pid,
                    "code": program.code,
                    "restarts": program.restarts,
                    "endings": [
                        {"time": item.time, "how": item.how, "back": item.back}
                        for item in self._agents.endings.get(key, ())
                    ],
                    "client_only": registration.client_only,
                    "data_plane": registration.data_plane,
                    "agent_pid": self._agents.pid_of(key),
                }
            )
        return found

    async def services(self, request: Request) -> Any:
        view = self._registry.view()
        return [
            {
                "hostname": service.hostname,
                "name": service.name,
                "namespace": service.namespace,
                "address": service.address,
                "ports": [
                    {
                        "name": port.name,
                        "number": port.number,
                        "protocol": port.protocol.value,
                        "target_port": port.target,
                    }
                    for port in service.ports
                ],
                "workloads": [
                    {"workload": workload.name, "namespace": workload.namespace, "ready": workload.ready}
                    for workload in view.workloads.values()
                    if service.hostname in workload.services
                ],
            }
            for service in view.services.values()
        ]

    async def events(self, request: Request) -> Response:
        replay = int(_seconds(request.query_params.get("replay", "0")))

        async def lines() -> AsyncIterator[bytes]:
            async for event in self._events.listen(replay=replay):
                yield json.dumps(event, separators=(",", ":")).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def version(self, request: Request) -> Any:
        stored = self._plane.configuration.stored
        return {
            "version": weft_version(),
            "mesh": self._mesh,
            "namespace": self._namespace,
            "revision": self._plane.revision,
            "started": self._started,
            "kept": [key_to_json(key) for key, item in sorted(stored.items()) if item.author is Author.USER],
            "proxies": [
                {"workload": name, "data_plane": proxy.data_plane}
                for (_, name), proxy in sorted(self._plane.proxies.items())
            ],
        }

    async def shutdown(self, request: Request) -> Any:
        self._shutdown()
        return {}

    def _proxy(self, key: tuple[str, str], proxy: Proxy, status: ProxyStatus | None) -> dict[str, Any]:
        program = self._registry.programs.get(key)
        notices = self._agents.notices.get(key, ())
        return {
            "workload": key[1],
            "namespace": key[0],
            "node_id": proxy.node_id,
            "kind": "gateway" if proxy.kind is ProxyKind.GATEWAY else "sidecar",
            "connected": bool(status and status.connected),
            "synced": bool(status and status.connected and status.synced),
            "agent": self._agent(key, self._agents.state_of(key)),
            "revision": status.acknowledged if status else None,
            "published": status.published if status else None,
            "identity": str(program.identity) if program else "",
            "certificate": {"not_after": self._agents.certificates.get(key)},
            "data_plane": proxy.data_plane,
            "data_plane_version": program.registration.data_plane_version if program else "",
            "lacks": [{"code": item.code, "text": item.text} for item in shortfalls(proxy)],
            "refused": [self._refused(proxy.node_id, item) for item in status.refused] if status else [],
            "withheld": list(self._plane.withheld.get(proxy.node_id, ())),
            "notices": [{"text": item.text, "code": item.code, "count": item.count} for item in notices],
        }

    def _agent(self, key: Key, state: AgentState) -> dict[str, Any]:
        return {"state": state.value, "pid": self._agents.pid_of(key)}

    def _refused(self, node_id: str, item: RefusedResource) -> dict[str, Any]:
        """Describe what a proxy would not have: the field, and the lines that brought it about."""
        published = self._publisher.resources(node_id) or ()
        value = next((it.value for it in published if it.version == item.version), b"")
        value = value or self._history.resource(item.version)
        field = field_of(item.message)
        return {
            "type_url": item.type_url,
            "name": item.name,
            "message": item.message,
            "field": field,
            "origins": origins_of(item.type_url, value, field),
        }

    async def _receipt(self, receipt: Receipt, without_names: Mapping[Key, AgentState]) -> dict[str, Any]:
        """`without_names`: workloads whose programs are not answered by the names that the revision changed, whatever their proxies have."""
        found = await asyncio.to_thread(self._store.revisions, REVISIONS_SEARCHED)
        logged = next((item for item in found if item.revision == receipt.revision), None)
        workloads = {proxy.node_id: proxy.workload for proxy in self._plane.proxies.values()}
        keys = {proxy.node_id: key for key, proxy in self._plane.proxies.items()}
        silent = self._awaited(receipt.silent)
        behind = {**without_names, **{keys[node_id]: AgentState.STOPPED for node_id in receipt.silent - silent}}
        late = {name for _, name in behind}

        def names(node_ids: Any) -> set[str]:
            return {workloads.get(node_id, node_id) for node_id in node_ids}

        refused = [
            {
                "workload": workloads.get(node_id, node_id),
                "resources": [self._refused(node_id, item) for item in refusal.resources],
                "superseded_by": refusal.superseded_by,
                "mended": refusal.mended,
            }
            for node_id, refusal in sorted(receipt.refused.items())
        ]
        return {
            "revision": receipt.revision,
            "time": logged and logged.time,
            "summary": logged.summary if logged else "",
            "affected": sorted(names(receipt.affected) | late),
            "acknowledged": sorted(names(receipt.acknowledged) - late),
            "silent": sorted(names(silent)),
            "late": [{"workload": key[1], "agent": self._agent(key, state)} for key, state in sorted(behind.items())],
            "refused": refused,
        }


async def _in_steps(
    ask: Callable[[float], Awaitable[Found]], deadline: float, is_enough: Callable[[Found], bool]
) -> Found:
    """
    Wait by *ask*, which waits for some seconds, until what it returns *is_enough* or the time of *deadline* has come.

    An agent that is stopped meanwhile sends nothing by which a wait would end, so it is looked at again after each step.
    """
    while True:
        left = max(0.0, deadline - time.monotonic())
        found = await ask(min(left, STOP_SECONDS))
        if left <= STOP_SECONDS or is_enough(found):
            return found


def _answer(handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    """Turn what a call returns or raises into a response. The one place where an error becomes a status."""

    async def answer(request: Request) -> Response:
        try:
            result = await handler(request)
        except InvalidConfiguration as error:
            problems = [problem_to_json(problem) for problem in error.problems]
            return JSONResponse({"error": str(error), "problems": problems}, 422)
        except NotFound as error:
            return JSONResponse({"error": str(error)}, 404)
        except UsageError as error:
            return JSONResponse({"error": str(error)}, 400)
        except WeftError as error:
            return JSONResponse({"error": str(error), "exit_code": error.exit_code}, 500)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.url.path)
            return JSONResponse({"error": f"A mistake of weft's: {type(error).__name__}: {error}"}, 500)
        return result if isinstance(result, Response) else JSONResponse(result)

    return answer


async def _no_such_call(request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": f"There is no call {request.method} {request.url.path}."}, 404)


def _of_workload(workload: str, found: Mapping[tuple[str, str], Found]) -> Found:
    """
    Return what is *found* of *workload*, by namespace and name.

    Raises:
        NotFound: Nothing; names those of whom there is.
    """
    for (_, name), value in found.items():
        if name == workload:
            return value
    known = ", ".join(sorted(name for _, name in found)) or "none"
    raise NotFound(f"There is no proxy of a workload {workload!r}. There are: {known}.")


async def _body(request: Request) -> Mapping[str, Any]:
    try:
        body = await request.json()
    except ValueError as exc:
        raise UsageError(f"The body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise UsageError("The body must be a JSON object.")
    return body


def _documents(body: Mapping[str, Any]) -> tuple[Document, ...]:
    items: Sequence[Any] = body.get("documents", ())
    try:
        documents = tuple(Document(str(item["file"]), str(item["text"])) for item in items)
        for document in documents:
            document.text.encode()  # JSON can say a lone surrogate; no file can hold it
    except (TypeError, KeyError, UnicodeEncodeError) as exc:
        raise UsageError(f'`documents` must be a list of {{"file": ..., "text": ...}}: {exc!r}') from exc
    if len({document.file for document in documents}) < len(documents):
        raise UsageError("Two documents have the same `file`; a position could mean either.")
    return documents


def _key(item: Mapping[str, str]) -> ConfigKey:
    """Return the object that *item* names; where its kind has no namespaces it need not know that."""
    kind = KNOWN.get(item["kind"])
    return ConfigKey(item["kind"], "" if kind and not kind.namespaced else item["namespace"], item["name"])


def _namespace(body: Mapping[str, Any]) -> str | None:
    """Return the namespace that all documents are to be of; None if that is not said."""
    if (namespace := body.get("namespace")) is None:
        return None
    if (fault := label_fault(str(namespace), "a namespace")) is not None:
        raise UsageError(f"`namespace`: {fault}")
    return str(namespace)


def _number(text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise UsageError(f"{text!r} must be a number from 0 to {most:.0f}.")
    return value


def _seconds(text: str) -> float:
    return _number(text, LONGEST_WAIT_SECONDS)


def _outcome(outcome: Outcome) -> dict[str, Any]:
    objects = {**outcome.before.objects, **outcome.after.objects}
    return {
        "revision": outcome.revision,
        "results": [
            {"key": key_to_json(key), "api_version": objects[key].api_version, "action": action.value}
            for key, action in outcome.results
        ],
        "warnings": [problem_to_json(problem) for problem in outcome.warnings],
        "affected": list(outcome.affected),
    }
