"""
Which of the names that a program asks for nobody has: noticed among its DNS questions, and told for `weft why`.

A resolver library asks for several forms of one name, one after the other (resolv.conf(5): `search`, `ndots`), and for
both families. A name is unknown when none of that was answered with a name that exists. Called by `dns.Server` for every
question; changes no answer, and tells nothing but the name and the last word on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weft.agent import dns

if TYPE_CHECKING:
    from weft.agent.dns import Query

SETTLE_SECONDS = 0.3
"""How long after a failure the next form of the name may be asked for; a library does that at once."""

FOUND_SECONDS = 5.0
"""How long a name that exists stays known as such: some servers fail for one family, and libraries do without it."""

TELL_AGAIN_SECONDS = 1.0
"""Before the same name is told again, and in which at most `MOST_TOLD` are told: a program may try many times a second."""

MOST_TOLD = 20

KEPT_NAMES = 64
"""Names that are followed at a time, the newest. Of a program that asks for more only some are told."""

WORDS = {dns.NXDOMAIN: "NXDOMAIN", dns.SERVFAIL: "SERVFAIL", dns.REFUSED: "REFUSED"}

Tell = Callable[[str, str], None]


@dataclass(slots=True)
class _Name:
    """A name that is followed. `failed` has the code of each form that failed, `found` and `told` the loop's times."""

    under_way: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    found: float = float("-inf")
    told: float = float("-inf")
    timer: asyncio.TimerHandle | None = None


class UnknownHosts:
    """
    Of one program.

    Args:
        tell: Called with a name, as the program said it, and the answer's code (`NXDOMAIN`, `SERVFAIL`, ...).
        search: Domains that the program's resolver appends.
    """

    def __init__(self, tell: Tell, *, search: Sequence[str] = ()) -> None:
        self._tell = tell
        self._suffixes = tuple(f".{domain.lower().strip('.')}" for domain in search)
        self._names: dict[str, _Name] = {}
        self._told: list[float] = []

    def asked(self, query: Query) -> None:
        """A question has come."""
        if query.kind in (dns.A, dns.AAAA):
            self._name(query.name).under_way += 1

    def answered(self, query: Query, answer: bytes) -> None:
        """The question of *query* is answered with the message *answer*."""
        if query.kind not in (dns.A, dns.AAAA):
            return
        loop, name, code = asyncio.get_running_loop(), self._name(query.name), answer[3] & 15
        name.under_way = max(0, name.under_way - 1)
        if code == dns.NOERROR:
            name.found = loop.time()
            name.failed.clear()
        elif loop.time() - name.found > FOUND_SECONDS:
            name.failed[query.name] = code
            if name.timer is None:
                name.timer = loop.call_later(SETTLE_SECONDS, self._settle, self._stem(query.name))

    def flush(self) -> None:
        """Tell now what failed: the program has ended, and asks for no other form."""
        for name in self._names.values():
            self._conclude(name)

    def _settle(self, stem: str) -> None:
        name = self._names[stem]
        if name.under_way:
            name.timer = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settle, stem)
        else:
            self._conclude(name)

    def _conclude(self, name: _Name) -> None:
        if name.timer is not None:
            name.timer.cancel()
            name.timer = None
        if not name.failed:
            return
        # What was appended by the library is longer than what the program said.
        said = min(name.failed, key=len)
        code = name.failed[said]
        name.failed.clear()
        now = asyncio.get_running_loop().time()
        self._told = [when for when in self._told if now - when < TELL_AGAIN_SECONDS]
        if now - name.told >= TELL_AGAIN_SECONDS and len(self._told) < MOST_TOLD:
            name.told = now
            self._told.append(now)
            self._tell(said, WORDS.get(code, f"RCODE {code}"))

    def _name(self, form: str) -> _Name:
        """Return what is known of the name of which *form* is one; the one that was not asked for longest makes room."""
        stem = self._stem(form)
        name = self._names.pop(stem, None) or _Name()
        self._names[stem] = name
        if len(self._names) > KEPT_NAMES:
            oldest = self._names.pop(next(iter(self._names)))
            if oldest.timer is not None:
                oldest.timer.cancel()
        return name

    def _stem(self, form: str) -> str:
        """Return *form* without what may have been appended."""
        while suffix := next((suffix for suffix in self._suffixes if form.endswith(suffix)), ""):
            form = form.removesuffix(suffix)
        return form
