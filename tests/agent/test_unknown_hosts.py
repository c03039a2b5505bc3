"""Of all that a resolver library asks for, the names that nobody has: each once, as the program said it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import pytest

from tests.agent.test_dns import question
from weft.agent import dns
from weft.agent.unknown_hosts import KEPT_NAMES, MOST_TOLD, UnknownHosts

OWN, CORPORATE = "default.svc.cluster.local", "corp.example"
FAMILIES = (dns.A, dns.AAAA)

Told = list[tuple[str, str]]


def ask(unknown: UnknownHosts, name: str, code: int, *kinds: int) -> None:
    """Ask for *name* (by default for both families), and be answered with *code*."""
    for query in [dns.parse(question(name, kind)) for kind in kinds or FAMILIES]:
        unknown.asked(query)
        unknown.answered(query, dns.compose(query, code))


def told(script: Callable[[UnknownHosts], None]) -> Told:
    """Return what is told of a program that asks as *script* says and then ends."""

    async def run() -> Told:
        found: Told = []
        unknown = UnknownHosts(lambda name, answer: found.append((name, answer)), search=[OWN, CORPORATE])
        script(unknown)
        unknown.flush()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        (((f"nosuch.{OWN}", 3), (f"nosuch.{CORPORATE}", 3), ("nosuch", 3)), [("nosuch", "NXDOMAIN")]),
        (((f"nosuch.{OWN}", 3), ("nosuch", 2)), [("nosuch", "SERVFAIL")]),
        (((f"nosuch.{OWN}", 3), ("nosuch", 5)), [("nosuch", "REFUSED")]),
        ((("no.such", 3), (f"no.such.{OWN}", 3)), [("no.such", "NXDOMAIN")]),
        (((f"nosuch.{OWN}", 3), (f"nosuch.{OWN}.{OWN}", 3)), [(f"nosuch.{OWN}", "NXDOMAIN")]),
        # The host's resolver knows it under one of the forms.
        (((f"db.{OWN}", 3), (f"db.{CORPORATE}", 0)), []),
        (((f"db.{OWN}", 3), ("db", 0)), []),
        ((("db.lab", 3), (f"db.lab.{CORPORATE}", 0)), []),
        ((("reviews", 0),), []),
    ],
)
def test_a_name_is_unknown_when_every_form_of_it_failed(forms: tuple[tuple[str, int], ...], expected: Told) -> None:
    def script(unknown: UnknownHosts) -> None:
        for form, code in forms:
            ask(unknown, form, code)

    assert told(script) == expected


def test_a_server_that_fails_for_one_family_makes_no_name_unknown() -> None:
    def script(unknown: UnknownHosts) -> None:
        for kinds in (FAMILIES, FAMILIES[::-1]):
            for kind in kinds:
                ask(unknown, "www.example.com", dns.NOERROR if kind == dns.A else dns.SERVFAIL, kind)

    assert told(script) == []


def test_other_types_than_addresses_tell_nothing() -> None:
    assert told(lambda unknown: ask(unknown, "no-mail.example.com", dns.NXDOMAIN, 15, 16, 65, dns.PTR)) == []


def test_a_name_that_is_tried_again_and_again_is_told_once_a_second() -> None:
    def script(unknown: UnknownHosts) -> None:
        for _ in range(3):
            ask(unknown, "nosuch", dns.NXDOMAIN)
            unknown.flush()

    assert told(script) == [("nosuch", "NXDOMAIN")]


def test_a_program_that_asks_for_anything_fills_neither_memory_nor_the_stream() -> None:
    def script(unknown: UnknownHosts) -> None:
        for number in range(1000):
            ask(unknown, f"n{number}.example.com", dns.NXDOMAIN)
        assert len(unknown._names) == KEPT_NAMES

    assert len(told(script)) == MOST_TOLD


@pytest.mark.parametrize("under_way", [False, True])
def test_a_program_that_lives_on_is_told_of_when_no_other_form_is_asked_for(under_way: bool) -> None:
    """The answer to another form, which is on its way, is waited for."""

    async def run() -> None:
        found: asyncio.Queue[str] = asyncio.Queue()
        unknown = UnknownHosts(lambda name, _answer: found.put_nowait(name), search=[OWN])
        ask(unknown, f"slow.{OWN}", dns.NXDOMAIN)
        query = dns.parse(question("slow"))
        if under_way:
            unknown.asked(query)
        ask(unknown, f"nosuch.{OWN}", dns.NXDOMAIN)
        names = {await asyncio.wait_for(found.get(), 20)}
        if not under_way:
            names.add(await asyncio.wait_for(found.get(), 20))
            assert names == {f"slow.{OWN}", f"nosuch.{OWN}"}
            return
        assert names == {f"nosuch.{OWN}"}
        unknown.answered(query, struct.pack("!6H", 1, 0x8180, 1, 0, 0, 0))
        unknown.flush()
        assert found.empty()

    asyncio.run(run())
