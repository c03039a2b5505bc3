"""What one workload is to be: the value that `weft up` and `weft run` hand to an agent. No I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from weft.agent.program import Restart
from weft.data_plane import WEFT_PROXY
from weft.model import Published


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """
    Attributes:
        service, version: What it is an instance of; its labels `app` and `version`.
        name: Unique in its namespace; empty lets the control plane choose (`reviews-v1-0`).
        service_account: Of its identity; empty means the service's name.
        ports: (number, protocol) of each port on which the program serves; without any it is a client only.
        host_ports: Ports of the host's loopback that it may call on its own.
        published: Ports that a gateway offers on the host.
        gateway: A gateway is a proxy without a program.
        argv: The program and its arguments.
        environment: All of the program's environment.
        directory: The program's working directory.
        capabilities: Names of those that it keeps where weft runs as root (`weft.model.capability`).
        data_plane: Which proxy stands beside it; `executable` and `data_plane_version` are what was found of it.
        concurrency: Worker threads of the proxy.
    """

    service: str
    version: str = "v1"
    name: str = ""
    namespace: str = "default"
    service_account: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[tuple[int, str], ...] = ()
    host_ports: tuple[int, ...] = ()
    published: tuple[Published, ...] = ()
    gateway: bool = False
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    restart: Restart = Restart.NEVER
    capabilities: tuple[str, ...] = ()
    data_plane: str = WEFT_PROXY
    data_plane_version: str = ""
    executable: str = ""
    concurrency: int = 1

    def registration(self, local_caller: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Return the `workload` of the `register` message (docs/reference/interfaces.md, 4.2).

        Args:
            local_caller: How its proxy is to know the program, in explicit mode.
        """
        return {
            **({"local_caller": dict(local_caller)} if local_caller else {}),
            "name": self.name,
            "service": self.service,
            "version": self.version,
            "namespace": self.namespace,
            "service_account": self.service_account,
            "labels": dict(self.labels),
            "ports": [{"number": number, "protocol": protocol} for number, protocol in self.ports],
            "host_ports": list(self.host_ports),
            "kind": "gateway" if self.gateway else "sidecar",
            "published": [asdict(item) for item in self.published],
            "data_plane": self.data_plane,
            "data_plane_version": self.data_plane_version,
            "pid": os.getpid(),
            "client_only": not self.ports and not self.gateway,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON has it, for the way from `weft up` to the holder; `from_json` takes it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> WorkloadSpec:
        """Take back what `to_json` made."""
        values = dict(item)
        values["ports"] = tuple(tuple(entry) for entry in values["ports"])
        values["published"] = tuple(Published(**entry) for entry in values["published"])
        for name in ("host_ports", "argv", "capabilities"):
            values[name] = tuple(values[name])
        values["restart"] = Restart(values["restart"])
        return cls(**values)
