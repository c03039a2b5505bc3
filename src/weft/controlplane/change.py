"""
The straight line of a change: from what people apply and agents report to what the proxies are told.

`ControlPlane.change` is the only way in. `_turn_once` is the line; it takes one turn at a time, and reports of agents
that arrive within a few milliseconds share a turn. Everything that it calls takes values and returns values; sending,
and noting who has acknowledged, is `weft.xds`. A change that needs an order across proxies (`steps.py`) is published in
several turns; what agents report meanwhile goes on, another edit waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from weft.api.conditions import Status
from weft.api.parse import ParseResult
from weft.controlplane.edit import Action, Configuration, Document, Edit, Merged, key_to_json, merge
from weft.controlplane.events import Events
from weft.controlplane.steps import WHOLE, Step, remaining, steps
from weft.data_plane import WEFT_PROXY
from weft.errors import InvalidConfiguration, StoreError, WeftError
from weft.model import ConfigKey, ConfigObject, Origin, Problem, Proxy, Severity, Snapshot
from weft.registry import Registry, View
from weft.store import Changes, Lease, Store, StoredObject, Transition
from weft.translate.resource import Difference, Resources, affected
from weft.xds import Receipt

log = logging.getLogger(__name__)

BURST_SECONDS = 0.005
"""How long reports of agents are gathered before they become one revision. Below what a person or a test can see."""

STEP_SECONDS = 10.0
"""How long a step waits for proxies that are silent; then it is told, and the next one begins: a policy that people
have written must not depend on a proxy that hangs."""

LINGER_SECONDS = 1.0
"""Between the last confirmation and the next step: a proxy confirms when it has taken a configuration, not when each of
its workers has, and connections that are being opened by the old one must arrive."""

RETRY_SECONDS = 1.0
"""After a failure that nobody can be told who would try again: a full disk, mostly, on which there may be space soon."""


class Parse(Protocol):
    """`weft.api.parse`: read (file, text) pairs; every object, and every mistake at once."""

    def __call__(
        self, documents: Iterable[tuple[str, str]], *, default_namespace: str, confined: bool = False
    ) -> ParseResult: ...


class Identify(Protocol):
    """`weft.api.parse.identify`: read (file, text) pairs; which objects they are about, and every mistake about that."""

    def __call__(
        self, documents: Iterable[tuple[str, str]], *, default_namespace: str, confined: bool = False
    ) -> tuple[Sequence[ConfigKey], Sequence[Problem]]: ...


class Confirm(Protocol):
    """`weft.xds.Publisher.wait`: wait until every proxy that a revision concerns has answered, or the time is over."""

    async def __call__(self, revision: int, timeout: float) -> Receipt: ...


class Publish(Protocol):
    """`weft.xds.Publisher.publish`: swap views, send what changed, in order; say whom it concerns (node ids)."""

    def __call__(self, views: Mapping[str, Sequence[tuple[str, str, bytes]]], revision: int) -> frozenset[str]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What became of a change.

    Attributes:
        revision: The new revision; of a dry run or of a change that changes nothing, the last one.
        affected: Workload names of the proxies whose resources changed, sorted.
        resources: What differs for each of them by type URL; filled in only for a dry run.
        before, after: The configuration on both sides of the change.
    """

    revision: int
    results: tuple[tuple[ConfigKey, Action], ...] = ()
    warnings: tuple[Problem, ...] = ()
    affected: tuple[str, ...] = ()
    resources: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    before: Configuration = field(default_factory=Configuration)
    after: Configuration = field(default_factory=Configuration)


class ControlPlane:
    """
    The state of the mesh, and the one function that changes it.

    Args:
        store: Opened, and with nobody else's hand on it.
        registry: What runs.
        leases: Returns the leases as they should be stored now.
        parse, identify, references, statuses, refusals, translate, check, publish: The rooms of the line, in its order.
        confirm: Waits for the proxies' answers.
        withdraw: Ends the view of a proxy that is gone.
        announce: Tells programs the names that services have from a revision on.
        data_planes: Those that programs will have beside them, before the first of them has joined.
        namespace: Of objects that name none.
        time: Seconds since the epoch, for the log of revisions.
    """

    def __init__(
        self,
        *,
        store: Store,
        registry: Registry,
        leases: Callable[[], Iterable[Lease]],
        parse: Parse,
        identify: Identify,
        references: Callable[[Snapshot], Mapping[ConfigKey, Sequence[Problem]]],
        statuses: Callable[[Snapshot, Iterable[Proxy]], Mapping[ConfigKey, Status]],
        translate: Callable[[Snapshot, Proxy], Resources],
        refusals: Callable[[ConfigObject, str], Sequence[Problem]],
        check: Callable[[Resources], Sequence[Problem]],
        publish: Publish,
        confirm: Confirm,
        withdraw: Callable[[str], None],
        announce: Callable[[int], None],
        events: Events,
        data_planes: Iterable[str] = (),
        trust_domain: str = "cluster.local",
        domain_suffix: str = "cluster.local",
        namespace: str = "default",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._registry = registry
        self._leases = leases
        self._parse = parse
        self._identify = identify
        self._namespace = namespace
        self._references = references
        self._statuses = statuses
        self._translate = translate
        self._refusals = refusals
        self._data_planes = frozenset(data_planes)
        self._check = check
        self._publish = publish
        self._confirm = confirm
        self._withdraw = withdraw
        self._announce = announce
        self._events = events
        self._clock = clock
        self._turn = asyncio.Lock()
        self._editing = asyncio.Lock()
        self._steps: tuple[Step, ...] = (WHOLE,)
        """What is being published, and what comes after it."""
        self._unpublished = False
        """What is true has not reached the publisher: publishing failed."""
        self._unstored = False
        """The store did not take what the registry says, which was told."""
        self._reported = asyncio.Event()
        self._view = View()
        self._published: dict[str, Resources] = {}
        self.withheld: Mapping[str, tuple[str, ...]] = {}
        """Why a proxy keeps its last good configuration, by node id; of those that have the newest nothing."""
        self._warnings: Mapping[ConfigKey, tuple[Problem, ...]] = {}
        """Of what is in force, by the object in which it is written."""
        self._found: Mapping[ConfigKey, Status] | None = None
        self._looked_at: tuple[object, ...] = ()
        content = store.load()
        self._addresses = dict(content.service_addresses)
        self._stored_leases = {(lease.namespace, lease.name): lease for lease in content.leases}
        self.statuses: Mapping[ConfigKey, Mapping[str, Any]] = content.statuses
        """What stands under `status` of each object that has one."""
        self._stored_statuses = content.statuses
        self.snapshot = Snapshot(content.revision, trust_domain=trust_domain, domain_suffix=domain_suffix)
        self.configuration = self._reload(content.objects)
        self._transition = content.transition or Transition(0)
        """What is stored of the steps that are left."""
        self.directory = content.directory
        """The followed directory as it was when it was good last: file name -> text."""
        self._stored_directory = content.directory
        self._unfinished = content.transition
        """A change in steps that the control plane before this one began; taken up at the first turn."""
        registry.adopt(_services(self.configuration))
        self.boot = content.boot
        self.settled = asyncio.Event()
        """Set once the workloads that were here before a restart are back, or were waited for long enough."""

    @property
    def revision(self) -> int:
        """The last revision."""
        return self.snapshot.revision

    @property
    def proxies(self) -> Mapping[tuple[str, str], Proxy]:
        """The proxies that were published to, by (namespace, workload)."""
        return self._view.proxies

    async def change(self, edit: Edit | None = None) -> Outcome:
        """
        Bring the mesh from what it is to what it should be now; one revision, or none if nothing differs.

        Args:
            edit: What somebody wants of the configuration. None: only the registry may have changed.

        Raises:
            InvalidConfiguration: All mistakes of the edit. Nothing took effect.
            NotFound, UsageError: See `merge`. Nothing took effect.
            StoreError: The store did not take it. Nothing took effect.
        """
        work = self._turn_once(edit or Edit()) if edit is None or edit.dry_run else self._edit(edit)
        # Whoever asked may go away, or wait no longer; what is stored must be published all the same.
        return await asyncio.shield(asyncio.ensure_future(work))

    async def _edit(self, edit: Edit) -> Outcome:
        """Bring in an edit, step by step where it needs an order across proxies."""
        async with self._editing:
            if self._unfinished is not None and edit.boot in (None, self.boot):
                # Not without the followed directory: its objects are nowhere else, and proxies would lose them.
                await self._turn_once(Edit(directory=edit.directory))
            await self._walk(Outcome(self.revision))  # what an earlier edit could not finish
            outcome = await self._turn_once(edit)
            if edit.wait:
                return await self._walk(outcome)
        self._go_on()
        return outcome

    async def _walk(self, outcome: Outcome) -> Outcome:
        """Publish the steps that are left, each when the one before is confirmed; if that fails, again after a while."""
        try:
            while len(self._steps) > 1:
                late = await self._confirmed(outcome)
                following = await self._turn_once(Edit(), continues=True)
                outcome = replace(
                    outcome,
                    revision=following.revision,
                    warnings=(*outcome.warnings, *late),
                    affected=tuple(sorted({*outcome.affected, *following.affected})),
                )
        except Exception:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._resume)
            raise
        return outcome

    def _resume(self) -> None:
        """Publish what a turn could not, and the steps after it."""
        self.report()
        self._go_on()

    def _go_on(self) -> None:
        """Have the steps that are left published, unless an edit is at them."""
        if len(self._steps) > 1 and not self._editing.locked():
            self._resuming = asyncio.ensure_future(self._follow_up())

    async def _follow_up(self) -> None:
        async with self._editing:
            with suppress(Exception):  # it was told when it failed first, and is tried again
                await self._walk(Outcome(self.revision))

    async def _confirmed(self, outcome: Outcome) -> tuple[Problem, ...]:
        """Wait until the proxies have the present step, not for ever; return and tell who has not."""
        receipt = await self._confirm(self.revision, STEP_SECONDS)
        await asyncio.sleep(LINGER_SECONDS)
        workloads = {proxy.node_id: proxy.workload for proxy in self.proxies.values()}
        late = []
        refused = {node_id for node_id, refusal in receipt.refused.items() if not refusal.mended}
        for node_id in sorted((receipt.silent | refused) & workloads.keys()):
            how = "refused it" if node_id in refused else f"not within {STEP_SECONDS:.0f} s"
            text = (
                f"{workloads[node_id]} has not confirmed {self._steps[0].what} ({how}); the change goes on without it,"
                " and connections with it may be refused until it has."
            )
            remedy = (
                f"`weft status` shows whether it is connected; `weft proxy-config {workloads[node_id]}` what it has."
            )
            self._events.emit("late", workload=workloads[node_id], text=f"{text} {remedy}")
            keys = [key for key, _ in outcome.results if key.kind == "PeerAuthentication"]
            items = [
                item for key in keys if (item := outcome.after.objects.get(key) or outcome.before.objects.get(key))
            ]
            origin = items[0].locate("spec") if items else Origin("-", 1)
            late.append(Problem(origin, "spec", text, remedy, Severity.WARNING, "late-proxy"))
        return tuple(late)

    async def _turn_once(self, edit: Edit, *, continues: bool = False) -> Outcome:
        """
        Walk the line once.

        Args:
            edit: May ask for nothing.
            continues: The next of `_steps` is to be published, though nothing else has changed.
        """
        async with self._turn:
            await self.settled.wait()
            revision = self.revision + 1

            # parse: every mistake at once
            applied, remarks = self._parsed(edit.documents, edit.namespace)
            deleted = [*edit.delete, *self._identified(edit.delete_documents, edit.namespace)]
            directory = None if edit.directory is None else self._parsed(edit.directory)[0]
            merged = merge(
                self.configuration, edit, applied=applied, deleted=deleted, directory=directory, revision=revision
            )

            # ingest: what runs now, and the services that people describe
            view = self._registry.view(_services(merged.configuration), is_trial=edit.dry_run)

            # snapshot: all that translation may read, frozen
            snapshot = replace(
                self.snapshot,
                revision=revision,
                config=merged.configuration.objects,
                services=view.services,
                workloads=view.workloads,
            )
            statuses = self._found
            looked_at = (snapshot.config, view.services, view.proxies)
            if (
                statuses is None or edit.asks or looked_at != self._looked_at
            ):  # not for each endpoint that comes or goes
                statuses = self._statuses(snapshot, view.proxies.values())
            warnings = _joined(self._references(snapshot), {key: status.problems for key, status in statuses.items()})
            news = (*remarks, *self._news(warnings, {item.key for item, _ in applied}))
            if edit.strict and news:
                raise InvalidConfiguration(news)
            self._refuse([item for item, _ in applied], view)
            outcome = Outcome(
                self.revision, merged.results, news, before=self.configuration, after=merged.configuration
            )
            followed = self.directory if edit.directory is None else {it.file: it.text for it in edit.directory}
            changes = self._changes(merged.changes, view, followed)
            same_configuration = merged.configuration == self.configuration
            behind = continues or self._unpublished
            same = view == self._view and same_configuration and not behind
            if same and changes == Changes() and not edit.dry_run:
                return outcome

            # match: the proxies that may read something that differs
            proxies = () if same else view.proxies.values()

            # translate, check: nothing is stored that would leave a proxy with less than it has
            views, withheld = self._views(snapshot, proxies, asked=edit.asks)
            if edit.dry_run:
                detail = self._differences(views, view)
                return replace(outcome, resources=detail, affected=tuple(sorted(detail)))
            unfinished = self._unfinished if edit == Edit(directory=edit.directory) else None
            if unfinished is not None:
                publications = self._taken_up(unfinished, snapshot)
            elif same_configuration:
                publications = self._steps[1:] if continues else self._steps
            else:
                publications = steps(self.snapshot, snapshot)
            transition = self._noted(publications, merged, begun=same_configuration or unfinished is not None)
            reported = self._reported_statuses(statuses, merged.configuration)
            changes = replace(
                changes,
                transition=transition if transition != self._transition else None,
                statuses=_differing(self._stored_statuses, reported),
            )
            if publications != (WHOLE,):
                shown = publications[0].show(snapshot)
                views, withheld = self._views(shown, proxies, asked=False)

            # store: from here on it is true, whatever happens to this process
            summary = edit.summary(merged.results) if merged.results else self._registry_summary(view)
            if continues:
                summary = f"next step of a change: {publications[0].what}"
            try:
                await self._commit(changes, revision, summary)
                self._stored_statuses = reported
            except StoreError as error:
                if merged.changes != Changes():
                    raise
                # Who runs, and where, is true whether or not it can be stored: no proxy shall call a dead program.
                self._tell_unstored(error)
                if same:
                    return outcome
                changes, transition = Changes(), self._transition
            self._unpublished = not same
            gone = {proxy.node_id for proxy in self._view.proxies.values()} - {p.node_id for p in view.proxies.values()}
            self.snapshot, self.configuration, self._steps = snapshot, merged.configuration, publications
            self._transition, self._unfinished = transition, None
            self.directory = followed
            self._stored_directory = self._stored_directory if changes.directory is None else changes.directory
            self._registry.adopt(_services(self.configuration))
            self._view, self._warnings = view, warnings
            self._found, self._looked_at = statuses, looked_at
            self.statuses = reported
            self._addresses.update(changes.service_addresses)
            self._stored_leases.update({(lease.namespace, lease.name): lease for lease in changes.leases})

            # publish: swap and notify; weft.xds sends in order and keeps the acknowledgements
            for node_id in gone:
                self._withdraw(node_id)
                self._published.pop(node_id, None)
            if not same:
                self._tell_withheld(withheld, view)
            self._published.update(views)
            concerned = self._publish(
                {
                    node_id: [(item.type_url, item.name, item.value) for item in resources]
                    for node_id, resources in views.items()
                },
                revision,
            )
            self._unpublished = False
            self._announce(revision)
            workloads = {proxy.node_id: proxy.workload for proxy in view.proxies.values()}
            names = tuple(sorted(workloads[node_id] for node_id in concerned if node_id in workloads))
            self._events.emit(
                "revision",
                revision=revision,
                summary=summary,
                affected=list(names),
                results=[{"key": key_to_json(key), "action": action} for key, action in merged.results] or None,
            )
            return replace(outcome, revision=revision, affected=names)

    def _taken_up(self, unfinished: Transition, snapshot: Snapshot) -> tuple[Step, ...]:
        """Return what is left to publish of a change that another control plane began."""
        was = self._reload({key: item for key, item in unfinished.before.items() if item is not None}).objects
        config = {**{key: item for key, item in snapshot.config.items() if key not in unfinished.before}, **was}
        return remaining(replace(snapshot, config=config), snapshot, unfinished.remaining)

    def _noted(self, publications: tuple[Step, ...], merged: Merged, *, begun: bool) -> Transition:
        """Return what is to be stored, so that another control plane can go on where this one was killed."""
        if len(publications) == 1:
            return Transition(0)
        if begun:  # by an earlier turn, or by the control plane before this one: it is stored already
            before = self._transition.before
        else:
            touched = [item.key for item in merged.changes.put] + [*merged.changes.delete]
            before = {key: self.configuration.stored.get(key) for key in touched}
        return Transition(len(publications), before)

    async def _commit(self, changes: Changes, revision: int, summary: str) -> None:
        """Store *changes* as *revision*; earlier ones may be missing in the store if there was no space for them."""
        await asyncio.to_thread(self._store.commit, changes, summary=summary, time=self._clock(), at_least=revision)
        self._unstored = False

    def _tell_unstored(self, error: StoreError) -> None:
        """Have it tried again soon; tell of it once, until the store takes something again."""
        if not self._unstored:
            self._unstored = True
            log.error("%s", error)
            self._events.emit(
                "failed", text=f"{error} What runs is published all the same, and stored when that works."
            )
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self.report)

    def report(self) -> None:
        """Say that the registry may have changed; it is looked at within a few milliseconds."""
        self._reported.set()

    async def follow(self) -> None:
        """Turn reports of agents into changes, until cancelled."""
        told = ""
        while True:
            await self._reported.wait()
            await asyncio.sleep(BURST_SECONDS)
            self._reported.clear()
            try:
                await self.change()
            except Exception as error:
                # The mesh goes on with what it has, and this is tried again; told once, if it is the same every time.
                text = str(error) if isinstance(error, WeftError) else f"{type(error).__name__}: {error}"
                if text != told:
                    log.error("a change failed: %s", text, exc_info=not isinstance(error, WeftError))
                    self._events.emit("failed", text=text)
                told = text
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self.report)
            else:
                told = ""
                self._go_on()  # with what the control plane before this one began

    async def settle(self) -> int:
        """Take in what was reported until now; return the revision that holds it."""
        self._reported.clear()
        await self.change()
        return self.revision

    def _parsed(
        self, documents: Sequence[Document], namespace: str | None = None
    ) -> tuple[list[tuple[ConfigObject, Document]], tuple[Problem, ...]]:
        """Return the objects, each with its text, and the warnings; raise if there is any error."""
        result = self._parse(
            ((document.file, document.text) for document in documents),
            default_namespace=namespace or self._namespace,
            confined=namespace is not None,
        )
        if result.errors:
            raise InvalidConfiguration(result.problems)
        texts = {document.file: document for document in documents}
        return [(item, texts[item.locate().file]) for item in result.objects], result.problems

    def _identified(self, documents: Sequence[Document], namespace: str | None) -> Sequence[ConfigKey]:
        """Return which objects *documents* are about; raise if that is not clear of each. Specs do not matter."""
        texts = ((document.file, document.text) for document in documents)
        keys, problems = self._identify(
            texts, default_namespace=namespace or self._namespace, confined=namespace is not None
        )
        if problems:
            raise InvalidConfiguration(problems)
        return keys

    def _reload(self, stored: Mapping[ConfigKey, StoredObject]) -> Configuration:
        objects: dict[ConfigKey, ConfigObject] = {}
        parsed: dict[tuple[Document, str], Mapping[ConfigKey, ConfigObject]] = {}
        for item in stored.values():
            document = Document(item.file, item.text)
            namespace = item.key.namespace  # where it was put, whatever is the mesh's namespace today
            if (document, namespace) not in parsed:
                result = self._parse([(document.file, document.text)], default_namespace=namespace)
                for (
                    problem
                ) in result.errors:  # an older weft took what this one refuses: say so, and go on with the rest
                    log.error("stored configuration: %s", problem)
                parsed[document, namespace] = {again.key: again for again in result.objects}
            if (again := parsed[document, namespace].get(item.key)) is not None:
                objects[item.key] = replace(again, generation=item.generation, created=item.created)
        return Configuration(objects, {key: stored[key] for key in objects})

    def _news(
        self, warnings: Mapping[ConfigKey, Sequence[Problem]], applied: Collection[ConfigKey]
    ) -> tuple[Problem, ...]:
        """
        Return the warnings that concern an edit: about what is *applied*, and new ones about what others applied.

        By objects, not by files: whatever came by standard input is of one file. What is said of the same place in other
        words, because a remedy names what there is now, is not new.
        """
        known = {(key, item.path, item.code) for key, items in self._warnings.items() for item in items}
        found = [
            item
            for key, items in warnings.items()
            for item in items
            if key in applied or (key, item.path, item.code) not in known
        ]
        return tuple(sorted(found, key=lambda item: item.origin))

    def _reported_statuses(
        self, statuses: Mapping[ConfigKey, Status], configuration: Configuration
    ) -> dict[ConfigKey, Mapping[str, Any]]:
        """Return what stands under `status` of each object that has one, with the times of what did not change."""
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        objects = configuration.objects
        return {
            key: status.manifest(objects[key].generation, now, self.statuses.get(key))
            for key, status in statuses.items()
        }

    def _changes(self, changes: Changes, view: View, directory: Mapping[str, str]) -> Changes:
        addresses = {service.hostname: service.address for service in view.services.values()}
        leases = {(lease.namespace, lease.name): lease for lease in self._leases()}
        return replace(
            changes,
            service_addresses={
                hostname: address for hostname, address in addresses.items() if self._addresses.get(hostname) != address
            },
            leases=tuple(
                lease for key, lease in (self._idle_leases() | leases).items() if self._stored_leases.get(key) != lease
            ),
            directory=directory if directory != self._stored_directory else None,
        )

    def _idle_leases(self) -> dict[tuple[str, str], Lease]:
        """Return the stored leases as they are once nobody holds them."""
        return {key: replace(lease, agent="", ready=False) for key, lease in self._stored_leases.items()}

    def _refuse(self, items: Sequence[ConfigObject], view: View) -> None:
        """Raise if one of the mesh's data planes cannot do what *items* ask for."""
        data_planes = self._data_planes | {proxy.data_plane for proxy in view.proxies.values()} or {WEFT_PROXY}
        problems = [
            problem
            for item in items
            for data_plane in sorted(data_planes)
            for problem in self._refusals(item, data_plane)
        ]
        if problems:
            raise InvalidConfiguration(problems)

    def _views(
        self, snapshot: Snapshot, proxies: Iterable[Proxy], *, asked: bool
    ) -> tuple[dict[str, Resources], dict[str, tuple[str, ...]]]:
        """
        Return the resources of each proxy by node id, and for those that keep what they have, why.

        A proxy without resources has never been told any, not by this process. It is left out: an empty view would take
        from it what a control plane before this one told it.
        """
        views, withheld = {}, {}
        for proxy in proxies:
            resources, reasons = self._translated(snapshot, proxy, asked=asked)
            if reasons:
                withheld[proxy.node_id] = reasons
            if resources is not None:
                views[proxy.node_id] = resources
        return views, withheld

    def _translated(self, snapshot: Snapshot, proxy: Proxy, *, asked: bool) -> tuple[Resources | None, tuple[str, ...]]:
        """Return the resources of one proxy; the last good ones, and why, if *snapshot* gives none that hold."""
        last = self._published.get(proxy.node_id)
        try:
            resources = self._translate(snapshot, proxy)
            problems = self._check(resources)
        except Exception as error:
            # One proxy's failure must not hold up what all others are to be told.
            reason = f"A mistake of weft's, so it keeps what it has: {type(error).__name__}: {error}"
            if reason in self.withheld.get(proxy.node_id, ()):
                return last, (reason,)  # it was told, and an edit of now is not what brings it about
            log.exception("translation for %s failed", proxy.node_id)
            if asked and last is not None:
                text = f"A mistake of weft's: what {proxy.workload} would be told cannot be made"
                raise WeftError(f"{text} ({type(error).__name__}: {error}). Nothing was changed.") from error
            return last, (reason,)
        if not problems:
            return resources, ()
        reasons = tuple(map(str, problems))
        if asked and not set(reasons) <= set(self.withheld.get(proxy.node_id, ())):
            raise InvalidConfiguration(problems)
        # Nobody asked who could be told, or another change is what brings it about: the proxy keeps the last good
        # configuration, and everybody can read why.
        return last, reasons

    def _tell_withheld(self, withheld: Mapping[str, tuple[str, ...]], view: View) -> None:
        """Tell of each proxy that keeps what it has, once for each reason."""
        for proxy in view.proxies.values():
            for text in withheld.get(proxy.node_id, ()):
                if text not in self.withheld.get(proxy.node_id, ()):
                    self._events.emit("withheld", workload=proxy.workload, namespace=proxy.namespace, text=text)
        self.withheld = withheld

    def _differences(self, views: Mapping[str, Resources], view: View) -> dict[str, Mapping[str, Difference]]:
        found = {
            proxy.workload: affected(self._published.get(proxy.node_id, ()), views[proxy.node_id])
            for proxy in view.proxies.values()
            if proxy.node_id in views
        }
        return {workload: differences for workload, differences in sorted(found.items()) if differences}

    def _registry_summary(self, view: View) -> str:
        before, after = self._view.workloads, view.workloads
        parts = [f"{name} joined" for _, name in after.keys() - before.keys()]
        parts += [f"{name} left" for _, name in before.keys() - after.keys()]
        for key in before.keys() & after.keys():
            if before[key].ready != after[key].ready:
                parts.append(f"{key[1]} {'is ready' if after[key].ready else 'is not ready'}")
        return "workloads: " + (", ".join(sorted(parts)) or "changed")


def _differing(
    stored: Mapping[ConfigKey, Mapping[str, Any]], reported: Mapping[ConfigKey, Mapping[str, Any]]
) -> dict[ConfigKey, Mapping[str, Any] | None]:
    """Return each status that is another one than what is stored; None where there is none any more."""
    return {key: reported.get(key) for key in stored.keys() | reported.keys() if stored.get(key) != reported.get(key)}


def _joined(*found: Mapping[ConfigKey, Sequence[Problem]]) -> dict[ConfigKey, tuple[Problem, ...]]:
    """Return what all of *found* say of each object."""
    joined: dict[ConfigKey, tuple[Problem, ...]] = {}
    for each in found:
        for key, items in each.items():
            joined[key] = (*joined.get(key, ()), *items)
    return joined


def _services(configuration: Configuration) -> list[ConfigObject]:
    """Return the objects of *configuration* that describe services."""
    return [item for item in configuration.objects.values() if item.key.kind == "Service"]
