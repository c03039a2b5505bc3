"""Rules for PeerAuthentication."""

from __future__ import annotations

from collections.abc import Iterator

from weft.api.check import Finding
from weft.api.names import port_fault
from weft.api.rules import shared
from weft.api.security import PeerAuthentication
from weft.model import ROOT_NAMESPACE


def findings(spec: PeerAuthentication, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong between the fields of *spec*."""
    labels = spec.selector.match_labels if spec.selector is not None else {}
    yield from shared.labels(("selector", "matchLabels"), labels)
    if labels and namespace == ROOT_NAMESPACE:
        message = f"a policy with a selector holds for no workload in {ROOT_NAMESPACE}, the mesh's root namespace."
        remedy = "Put it into the namespace of the workloads, or remove `selector` to have it hold for the whole mesh."
        yield Finding(("selector",), message, remedy, "no-effect")
    if spec.port_level_mtls is None:
        return
    if not spec.port_level_mtls:
        message = "`portLevelMtls` names no port."
        yield Finding(("portLevelMtls",), message, "Remove it, or add a port: `9080: {mode: STRICT}`.", "missing-field")
    if not labels:
        message = "`portLevelMtls` needs a selector: ports are those of particular workloads."
        remedy = "Add `selector: {matchLabels: {app: reviews}}`, say."
        yield Finding(("portLevelMtls",), message, remedy, "missing-field", concerns=("selector",))
    for key in spec.port_level_mtls:
        if not (key.isascii() and key.isdigit()):
            remedy = "Write the number that the program binds: `9080`."
            yield Finding(("portLevelMtls", key), f"`{key}` is no port.", remedy, "bad-port")
        elif (fault := port_fault(int(key))) is not None:
            yield Finding(("portLevelMtls", key), fault, code="bad-port")
