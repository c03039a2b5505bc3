"""PROXY protocol 2: the bytes of the specification, and everything that is not them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.agent.proxy_protocol import FIXED_BYTES, SIGNATURE, Endpoint, Malformed, decode, encode, rest_bytes

ports = st.integers(0, 65535)
v4 = st.builds(Endpoint, st.ip_addresses(v=4).map(str), ports)
v6 = st.builds(Endpoint, st.ip_addresses(v=6).map(str), ports)

OVER_IPV4 = SIGNATURE + bytes.fromhex("21 11 000c 0af40007 5db8d822 9c40 01bb")
"""10.244.0.7:40000 to 93.184.216.34:443, put together by hand from section 2.2 of the specification."""


def test_the_bytes_are_those_of_the_specification() -> None:
    ends = Endpoint("10.244.0.7", 40000), Endpoint("93.184.216.34", 443)
    assert encode(*ends) == OVER_IPV4
    assert decode(OVER_IPV4) == ends
    assert [str(end) for end in ends] == ["10.244.0.7:40000", "93.184.216.34:443"]


@given(st.one_of(st.tuples(v4, v4), st.tuples(v6, v6)))
def test_what_is_written_is_read(ends: tuple[Endpoint, Endpoint]) -> None:
    header = encode(*ends)
    assert len(header) == FIXED_BYTES + rest_bytes(header[:FIXED_BYTES])
    assert decode(header) == ends


def test_an_ipv4_client_of_an_ipv6_port_is_mapped() -> None:
    source, destination = decode(encode(Endpoint("127.0.0.1", 1), Endpoint("::1", 2)))
    assert (ip_address(source.address), source.port) == (ip_address("::ffff:127.0.0.1"), 1)
    assert str(destination) == "[::1]:2"


def test_what_follows_the_addresses_is_read_over() -> None:
    with_more = OVER_IPV4[:14] + b"\x00\x10" + OVER_IPV4[16:] + b"\x04\x00\x01x"
    assert decode(with_more)[1] == Endpoint("93.184.216.34", 443)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "signature"),
        (OVER_IPV4[:12] + b"\x20" + OVER_IPV4[13:], "something else"),
        (OVER_IPV4[:13] + b"\x31" + OVER_IPV4[14:], "something else"),
        (OVER_IPV4[:14] + b"\x00\x05" + OVER_IPV4[16:21], "holds no two addresses"),
        (OVER_IPV4[:-1], "not whole"),
        (b"", "signature"),
    ],
    ids=["HTTP", "health check", "Unix sockets", "too short", "cut", "empty"],
)
def test_anything_else_is_refused(header: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        decode(header)


@given(st.binary(max_size=80))
def test_no_bytes_break_it(data: bytes) -> None:
    for text in (data, SIGNATURE + data):
        try:
            decode(text)
        except Malformed:
            continue
        assert text.startswith(SIGNATURE)
