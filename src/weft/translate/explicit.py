"""
EXPLICIT mode: the listeners that a program is told to call, and who is let in there.

A listener for each service's port at an address of this workload alone (`weft.model.loopback`), and an HTTP proxy for
every host. All are on the loopback of the host, where anybody can connect, so each carries checks that only weft-proxy
knows (`extensions.py`). Called by the translator; TCP ports come by `listeners.tcp_listener`.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2

from weft.model import Interception, Service, loopback
from weft.translate import names
from weft.translate.clusters import fill_address
from weft.translate.extensions import CALLER_UID, CallerUid, LocalCaller
from weft.translate.fragments import Reading
from weft.translate.http_manager import (
    HTTP_MANAGER,
    TCP_PROXY,
    add_network_filter,
    http_manager,
    routes_over_ads,
    tcp_proxy,
)
from weft.translate.resource import LISTENER, Resource, resource, serialise
from weft.translate.routes import domains, empty_table


def listening_network(reading: Reading) -> str:
    """
    Return what `network_namespace_filepath` of a listening socket is to name; empty for the proxy's own network.

    In EXPLICIT mode the edge opens the sockets and keeps them: when a proxy dies, nobody else can take its addresses.
    """
    return reading.host_namespace_path if reading.interception is Interception.EXPLICIT else ""


def bind(reading: Reading, message: Any, service: Service, port: int) -> str:
    """Bind the listener *message* where this workload's program calls *service*; return the name that it should have."""
    address = loopback.service_address(reading.address, service.address)
    fill_address(message.address, address, port, listening_network(reading))
    _admit_program_only(reading, message)
    return names.tcp_listener(address, port)


def service_listener(reading: Reading, hostname: str, port: int) -> Resource | None:
    """Return the listener of one service's HTTP port."""
    service = reading.service(hostname)
    if service is None or not service.address:
        return None
    message = _listener("")
    message.name = bind(reading, message, service, port)
    check = LocalCaller(authorities=domains(reading, service), credential_sha256=_credential(reading))
    manager = http_manager(reading, "outbound", f"outbound_{message.name}", local_caller=check)
    routes_over_ads(manager, names.sidecar_routes(port))
    add_network_filter(message.filter_chains.add(name="http"), HTTP_MANAGER, manager)
    return resource(LISTENER, message.name, serialise(message))


def forward_proxy(reading: Reading) -> Resource:
    """Return the listener that is the program's HTTP proxy."""
    message = _listener(names.FORWARD_PROXY)
    fill_address(message.address, reading.address, loopback.FORWARD_PROXY_PORT, listening_network(reading))
    _admit_program_only(reading, message)
    check = LocalCaller(credential_sha256=_credential(reading), forward_proxy=True)
    for hostname in reading.hostnames():
        service = reading.service(hostname)
        if service is None or not service.address:
            continue
        address = loopback.service_address(reading.address, service.address)
        for port in service.ports:
            for domain in domains(reading, service):
                check.tunnels.add(
                    authority=f"{domain}:{port.number}", listener=names.tcp_listener(address, port.number)
                )
    check.tunnels.add(authority="*", listener=names.VIRTUAL_OUTBOUND)
    manager = http_manager(reading, "outbound", names.FORWARD_PROXY, local_caller=check)
    routes_over_ads(manager, names.FORWARD_PROXY)
    add_network_filter(message.filter_chains.add(name="http"), HTTP_MANAGER, manager)
    return resource(LISTENER, message.name, serialise(message))


def forward_table(reading: Reading) -> bytes:
    """Return the HTTP proxy's route configuration without virtual hosts."""
    return empty_table(reading, names.FORWARD_PROXY, all_ports=True)


def anywhere(reading: Reading) -> Resource:
    """Return the listener of tunnels to places that the mesh does not know; it has no socket of its own."""
    message = _listener(names.VIRTUAL_OUTBOUND)
    fill_address(message.address, "0.0.0.0", loopback.FORWARD_PROXY_PORT)
    message.bind_to_port.value = False
    chain = message.filter_chains.add(name=names.PASSTHROUGH)
    add_network_filter(chain, TCP_PROXY, tcp_proxy(reading, "outbound", {names.PASSTHROUGH: 1}))
    return resource(LISTENER, message.name, serialise(message))


def _listener(name: str) -> Any:
    return listener_pb2.Listener(name=name, traffic_direction=base_pb2.TrafficDirection.OUTBOUND)


def _admit_program_only(reading: Reading, message: Any) -> None:
    caller = reading.local_caller
    uids = [caller.uid] if caller is not None else []
    message.listener_filters.add(name=CALLER_UID).typed_config.Pack(CallerUid(uids=uids), deterministic=True)


def _credential(reading: Reading) -> str:
    caller = reading.local_caller
    return caller.credential_sha256 if caller is not None else ""
