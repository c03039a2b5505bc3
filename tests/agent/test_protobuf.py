"""Protobuf by hand, judged by the protobuf library."""

from __future__ import annotations

import pytest
from envoy.config.core.v3.address_pb2 import SocketAddress
from google.protobuf import struct_pb2, wrappers_pb2
from hypothesis import given
from hypothesis import strategies as st

from weft.agent import protobuf


@given(address=st.text(), port=st.integers(0, 2**32 - 1), namespace=st.text(max_size=400))
def test_fields_are_read(address: str, port: int, namespace: str) -> None:
    message = SocketAddress(address=address, port_value=port, network_namespace_filepath=namespace)
    found = dict(protobuf.fields(message.SerializeToString()))
    expected = {2: address.encode(), 3: port, 7: namespace.encode()}
    # A scalar of proto3 that is empty is left out; one of a `oneof` is not.
    assert found == {number: value for number, value in expected.items() if value or number == 3}


@given(value=st.integers(-(2**31), 2**31 - 1))
def test_a_number_is_written_as_the_library_reads_it(value: int) -> None:
    assert wrappers_pb2.Int32Value.FromString(protobuf.number(1, value)).value == value


@given(text=st.text())
def test_a_string_is_written_as_the_library_reads_it(text: str) -> None:
    assert wrappers_pb2.StringValue.FromString(protobuf.field(1, text.encode())).value == text


def test_fixed_numbers_are_read_over() -> None:
    message = struct_pb2.Value(number_value=1.5).SerializeToString() + protobuf.field(3, b"after")
    assert [number for number, _ in protobuf.fields(message)] == [2, 3]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        pytest.param(b"\x0a\x05abc", "3 bytes left of 5", id="ends within a string"),
        pytest.param(b"\x08\x80", "does not end", id="ends within a number"),
        pytest.param(b"\x08" + b"\xff" * 10, "does not end", id="a number of more than ten bytes"),
        pytest.param(b"\x0b", "wire type 3", id="a group"),
    ],
)
def test_what_is_no_message_is_refused(message: bytes, why: str) -> None:
    with pytest.raises(protobuf.Malformed, match=why):
        list(protobuf.fields(message))
