"""What is read from listeners that were translated, by whom translates nothing."""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.listener.v3 import listener_pb2


def listening_ports(listeners: Iterable[bytes]) -> list[int]:
    """Return the ports on which a gateway with these listeners, serialised, takes connections."""
    found = (listener_pb2.Listener.FromString(value) for value in listeners)
    return sorted({item.address.socket_address.port_value for item in found} - {0})
