"""Rules for Kubernetes' Service."""

from __future__ import annotations

from collections.abc import Iterator

from weft.api.check import Finding
from weft.api.kubernetes import Service
from weft.api.names import label_fault
from weft.api.rules import shared
from weft.api.yaml import Path


def findings(spec: Service, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong between the fields of *spec*."""
    if not spec.selector:
        message = "without `selector` nobody serves this: weft reads no endpoints of Kubernetes."
        yield Finding((), message, "Add `selector: {app: reviews}`, say.", "missing-field", concerns=("selector",))
    yield from shared.labels(("selector",), spec.selector)
    if not spec.ports:
        message = "a Service needs at least one entry in `ports`."
        yield Finding((), message, code="missing-field", concerns=("ports",))
    names: dict[str, int] = {}
    numbers: dict[int, int] = {}
    for index, port in enumerate(spec.ports):
        path: Path = ("ports", index)
        if not port.name and len(spec.ports) > 1:
            yield Finding(
                path, "`name` is missing: of several ports each has one.", code="missing-field", concerns=("name",)
            )
        elif port.name and (fault := label_fault(port.name, "a port's name")) is not None:
            yield Finding((*path, "name"), fault, code="bad-name", at_value=True)
        if port.name and port.name in names:
            first = ("ports", names[port.name], "name")
            message = f"the port name `{port.name}` is already used at {{first}}."
            yield Finding((*path, "name"), message, "Give each its own.", "duplicate-port", at_value=True, first=first)
        if port.port in numbers:
            first = ("ports", numbers[port.port], "port")
            message = f"the port {port.port} is already used at {{first}}."
            yield Finding((*path, "port"), message, "Keep one.", "duplicate-port", at_value=True, first=first)
        names.setdefault(port.name, index)
        numbers.setdefault(port.port, index)
        if isinstance(port.target_port, str):
            message = f"weft does not honour `targetPort: {port.target_port}` yet: ports of programs have no names."
            yield Finding((*path, "targetPort"), message, "Write the number.", "not-honoured", at_value=True)
