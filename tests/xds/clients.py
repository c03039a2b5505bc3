"""An xDS client by grpcio: nobody's here, and awkward on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from google.rpc.status_pb2 import Status

LIMIT = 10.0
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
SDS = "/envoy.service.secret.v3.SecretDiscoveryService/"


class Stream:
    """One stream. `delta` chooses between the two protocols; both look alike from outside."""

    def __init__(self, call: Any, node: Node, *, delta: bool) -> None:
        self._call = call
        self._node: Node | None = node
        self._request = DeltaDiscoveryRequest if delta else DiscoveryRequest
        self._delta = delta
        self._names: dict[str, list[str]] = {}

    async def _write(self, **fields: Any) -> None:
        await self._call.write(self._request(node=self._node, **fields))
        self._node = None

    async def subscribe(self, type_url: str, *names: str, versions: dict[str, str] | None = None) -> None:
        self._names[type_url] = list(names)
        if self._delta:
            await self._write(
                type_url=type_url, resource_names_subscribe=names, initial_resource_versions=versions or {}
            )
        else:
            await self._write(type_url=type_url, resource_names=names)

    async def receive(self) -> Any:
        """The next response; fails if none comes."""
        async with asyncio.timeout(LIMIT):
            response = await self._call.read()
        assert response is not grpc.aio.EOF, await self._call.details()
        return response

    async def answer(self, response: Any, *, error: str = "") -> None:
        """Acknowledge, or refuse with *error*."""
        fields: dict[str, Any] = {"type_url": response.type_url, "response_nonce": response.nonce}
        if error:
            fields["error_detail"] = Status(code=3, message=error)
        if not self._delta:
            fields["resource_names"] = self._names[response.type_url]
        await self._write(**fields)

    async def take(self) -> Any:
        """Receive and acknowledge."""
        response = await self.receive()
        await self.answer(response)
        return response


@asynccontextmanager
async def stream(
    path: Path, node: str = "", *, delta: bool = True, service: str = ADS, user_agent: str = ""
) -> AsyncIterator[Stream]:
    """Open a stream to the server at *path*."""
    kind = {ADS: "AggregatedResources", SDS: "Secrets"}[service]
    method = f"{service}{'Delta' if delta else 'Stream'}{kind}"
    request, response = (
        (DeltaDiscoveryRequest, DeltaDiscoveryResponse) if delta else (DiscoveryRequest, DiscoveryResponse)
    )
    options = [
        # Channels to one address would else share a connection.
        ("grpc.use_local_subchannel_pool", 1),
        # gRPC would send the socket's path, percent-encoded, which the h2 crate refuses (hyperium/h2 #487).
        ("grpc.default_authority", "localhost"),
    ]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        call = channel.stream_stream(
            method, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )(wait_for_ready=True)
        try:
            yield Stream(call, Node(id=node, user_agent_name=user_agent), delta=delta)
        finally:
            call.cancel()


def names(response: Any) -> list[str]:
    return [item.name for item in response.resources]


def bodies(resources: Iterable[Any]) -> list[bytes]:
    return [item.value for item in resources]
