"""The decision what to answer a question with, apart from sockets; every byte of a question is foreign."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.agent import dns

NAMES = dns.Names(own=["cart-v1-0"], own_addresses=["10.244.0.7", "fd77:ef7::7"])
NAMES.replace(
    {
        "reviews.default.svc.cluster.local": ["240.240.0.3"],
        "reviews.other.svc.cluster.local": ["240.240.0.4"],
        "*.wild.example": ["240.240.0.5"],
        "api.partner.example": ["240.240.0.6"],
        "empty.default.svc.cluster.local": [],
    }
)


def question(name: str, kind: int = dns.A, *, flags: int = 0x0100, klass: int = 1, edns: int = 0) -> bytes:
    """Return a query for *name*, with an OPT record that offers *edns* bytes unless that is 0."""
    labels = b"".join(bytes([len(label)]) + label.encode("latin-1") for label in name.split(".") if label)
    message = (
        struct.pack("!6H", 0xBEEF, flags, 1, 0, 0, 1 if edns else 0) + labels + b"\0" + struct.pack("!HH", kind, klass)
    )
    return message + (struct.pack("!BHHIH", 0, dns.OPT, edns, 0, 0) if edns else b"")


def answered(message: bytes) -> tuple[int, list[bytes]] | None:
    """Return code and record data of what is answered from the table, None for a question that goes to the host."""
    query = dns.parse(message)
    answer = NAMES.answer(query)
    if answer is None:
        return None
    identity, flags, questions, count = struct.unpack_from("!4H", answer)
    assert (identity, questions, flags & 0x8000) == (0xBEEF, 1, 0x8000)
    offset = 12 + len(query.question)
    assert answer[12:offset] == query.question
    records = []
    for _ in range(count):
        pointer, _kind, _klass, _ttl, length = struct.unpack_from("!HHHIH", answer, offset)
        assert pointer == 0xC00C
        records.append(answer[offset + 12 : offset + 12 + length])
        offset += 12 + length
    return flags & 15, records


V3, V4, V5, V6 = (bytes([240, 240, 0, last]) for last in (3, 4, 5, 6))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("reviews", dns.A, (0, [V3])),
        ("reviews.default", dns.A, (0, [V3])),
        ("reviews.default.svc", dns.A, (0, [V3])),
        ("reviews.default.svc.cluster.local", dns.A, (0, [V3])),
        ("ReViEwS.DEFAULT", dns.A, (0, [V3])),
        ("reviews.other", dns.A, (0, [V4])),
        ("reviews.default.svc.cluster.local", dns.AAAA, (0, [])),
        ("reviews", 65, (0, [])),
        ("reviews", 16, (0, [])),
        ("reviews", dns.ANY, (0, [V3])),
        ("empty", dns.A, (0, [])),
        ("nobody.default.svc.cluster.local", dns.A, (3, [])),
        ("nobody", dns.A, None),
        ("reviews.example", dns.A, None),
        ("a.wild.example", dns.A, (0, [V5])),
        ("a.b.wild.example", dns.A, (0, [V5])),
        ("wild.example", dns.A, None),
        ("api.partner.example", dns.A, (0, [V6])),
        ("cart-v1-0", dns.A, (0, [bytes([10, 244, 0, 7])])),
        ("localhost", dns.A, (0, [bytes([127, 0, 0, 1])])),
        ("bookinfo.localhost", dns.AAAA, (0, [bytes(15) + b"\1"])),
        ("3.0.240.240.in-addr.arpa", dns.PTR, (0, [b"\7reviews\7default\3svc\7cluster\5local\0"])),
        ("77.0.240.240.in-addr.arpa", dns.PTR, (3, [])),
        ("7.0.244.10.in-addr.arpa", dns.PTR, (0, [b"\x09cart-v1-0\0"])),
        ("1.0.0.127.in-addr.arpa", dns.PTR, (0, [b"\x09localhost\0"])),
        ("8.8.8.8.in-addr.arpa", dns.PTR, None),
        ("", dns.A, None),
    ],
)
def test_what_a_question_is_answered_with(name: str, kind: int, expected: tuple[int, list[bytes]] | None) -> None:
    assert answered(question(name, kind)) == expected


def test_what_the_hosts_file_had_of_a_name_is_answered_once_no_service_has_it() -> None:
    """Who read the file a moment before it got the name back asks here."""
    names = dns.Names()
    names.replace({"late.default.svc.cluster.local": ["240.240.0.9"]})
    names.know_of_host({"late": ["127.0.0.1", "no address"]})

    def addresses(kind: int) -> bytes | None:
        answer = names.answer(query := dns.parse(question("LATE", kind)))
        assert answer is not None
        assert answer[3] & 15 == dns.NOERROR
        return answer[12 + len(query.question) + 12 :]

    assert addresses(dns.A) == bytes([240, 240, 0, 9])
    names.replace({})
    assert addresses(dns.A) == bytes([127, 0, 0, 1])
    assert addresses(dns.AAAA) == b""
    assert not names.has("late")


def test_letters_keep_their_case() -> None:
    """Resolvers that mix cases at random (0x20) compare the question byte by byte."""
    message = question("rEvIeWs.DeFaUlT")
    answer = NAMES.answer(dns.parse(message))
    assert answer is not None
    assert answer[12 : len(message)] == message[12:]


def test_other_operations_and_classes_are_refused_politely() -> None:
    assert answered(question("reviews", flags=0x2000)) == (dns.NOTIMP, [])
    assert answered(question("version.bind", 16, klass=3)) == (dns.REFUSED, [])


def test_an_opt_record_is_answered_with_one_and_no_other() -> None:
    with_opt = NAMES.answer(dns.parse(question("reviews", edns=1232)))
    without = NAMES.answer(dns.parse(question("reviews")))
    assert with_opt is not None
    assert without is not None
    assert struct.unpack_from("!H", with_opt, 10) == (1,)
    assert with_opt[-11:-8] == b"\0\0\x29"
    assert struct.unpack_from("!H", without, 10) == (0,)


@pytest.mark.parametrize(
    ("edns", "size", "cut"), [(0, 512, False), (0, 513, True), (1232, 1232, False), (1232, 1233, True)]
)
def test_what_does_not_fit_the_askers_datagram_is_cut(edns: int, size: int, cut: bool) -> None:
    query = dns.parse(question("www.example.com", edns=edns))
    answer = struct.pack("!6H", query.identity, 0x8180, 1, 9, 0, 0) + query.question
    answer += bytes(size - len(answer))
    sent = dns.truncate(query, answer)
    assert (sent != answer) == cut
    assert bool(sent[2] & 0x02) == cut
    assert not cut or (len(sent) <= 512 and sent[12:].startswith(query.question))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0" * 11,
        question("reviews", flags=0x8180),
        question("reviews")[:-1],
        question("reviews")[:14],
        struct.pack("!6H", 1, 0, 2, 0, 0, 0) + question("a")[12:] * 2,
        struct.pack("!6H", 1, 0, 0, 0, 0, 0),
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        question("x" * 64),
        question(".".join(["x" * 63] * 4)),
        question("reviews", edns=1232)[:-1],
    ],
)
def test_what_is_no_query_is_refused(message: bytes) -> None:
    with pytest.raises(dns.Malformed):
        dns.parse(message)


def test_an_answer_is_never_answered() -> None:
    """Or two servers could send each other errors for ever."""
    assert dns.malformed_answer(question("reviews", flags=0x8180)) is None
    assert dns.malformed_answer(b"short") is None
    refused = dns.malformed_answer(question("x" * 64))
    assert refused is not None
    assert (refused[:2], refused[3] & 15) == (b"\xbe\xef", dns.FORMERR)


queries = st.one_of(
    st.binary(max_size=600),
    st.builds(
        lambda head, rest: struct.pack("!6H", *head) + rest,
        st.tuples(*[st.integers(0, 65535)] * 6),
        st.binary(max_size=300),
    ),
    st.builds(
        lambda base, at, byte: base[:at] + bytes([byte]) + base[at + 1 :],
        st.sampled_from(
            [question("reviews", edns=1232), question("3.0.240.240.in-addr.arpa", dns.PTR), question("a.wild.example")]
        ),
        st.integers(0, 60),
        st.integers(0, 255),
    ),
)


@given(queries)
def test_any_bytes_are_answered_or_refused_and_nothing_else(message: bytes) -> None:
    try:
        query = dns.parse(message)
    except dns.Malformed:
        refused = dns.malformed_answer(message)
        assert refused is None or (len(refused) == 12 and refused[2] & 0x80)
        return
    for answer in (NAMES.answer(query), dns.compose(query, dns.SERVFAIL)):
        if answer is not None:
            assert answer[:2] == message[:2]
            assert answer[2] & 0x80
            assert answer[12 : 12 + len(query.question)] == query.question
            assert len(dns.truncate(query, answer)) <= max(512, query.udp_bytes)


@given(
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1, max_size=20),
        min_size=1,
        max_size=5,
    )
)
def test_a_name_is_read_as_it_was_written(labels: list[str]) -> None:
    assert dns.parse(question(".".join(labels))).name == ".".join(labels).lower()
