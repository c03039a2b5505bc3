"""What every registry offers: the services, workloads and proxies that it knows, as one frozen value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from weft.model import ConfigObject, Proxy, Service, Workload


@dataclass(frozen=True, slots=True)
class View:
    """Services by hostname, workloads and proxies by (namespace, workload name). Equal views mean nothing changed."""

    services: Mapping[str, Service] = field(default_factory=dict)
    workloads: Mapping[tuple[str, str], Workload] = field(default_factory=dict)
    proxies: Mapping[tuple[str, str], Proxy] = field(default_factory=dict)


class Registry(Protocol):
    """A source of services. What changes it is its own affair; `view` is what the control plane reads."""

    def view(self, documents: Iterable[ConfigObject] | None = None, *, is_trial: bool = False) -> View:
        """
        Return what there is; *documents* of kind Service stand in for those that were adopted last.

        Of a trial (*is_trial*) nothing comes, and what new services would get is given to nobody.
        """
        ...

    def adopt(self, documents: Iterable[ConfigObject]) -> None:
        """Take *documents* of kind Service for what people describe from now on."""
        ...
