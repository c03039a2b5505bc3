"""
Each policy: a document, and the resources that come of it, side by side in `golden/`.

`pytest tests/translate/test_goldens.py --update-goldens` writes them anew; the diff is to be reviewed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.translate.meshes import ingress, service, sidecar, workload
from tests.translate.readable import KINDS, read
from weft.api.parse import parse
from weft.model import ProxyKind, ServicePort, Snapshot
from weft.translate.translator import translate

FOLDER = Path(__file__).parent / "golden"

# policy -> (kind of proxy, type and name of the resources that show it)
SHOWN = {
    "fault": (ProxyKind.SIDECAR, {"routes": ("9080",)}),
    "retry": (ProxyKind.SIDECAR, {"routes": ("9080",)}),
    "timeout": (ProxyKind.SIDECAR, {"routes": ("9080",)}),
    "headers": (ProxyKind.SIDECAR, {"routes": ("9080",)}),
    "matching": (ProxyKind.SIDECAR, {"routes": ("9080",)}),
    "load_balancing": (ProxyKind.SIDECAR, {"clusters": ("outbound|",), "endpoints": ("",)}),
    "circuit_breaker": (ProxyKind.SIDECAR, {"clusters": ("outbound|9080|", "inbound|9080")}),
    "http_version": (ProxyKind.SIDECAR, {"clusters": ("outbound|", "inbound|9080")}),
    "outlier_detection": (ProxyKind.SIDECAR, {"clusters": ("outbound|9080|",)}),
    "tls": (ProxyKind.SIDECAR, {"clusters": ("outbound|9080|",), "listeners": ("inbound|9080",)}),
    "peer_authentication": (ProxyKind.SIDECAR, {"endpoints": ("outbound|9080",), "listeners": ("inbound|",)}),
    "gateway": (ProxyKind.GATEWAY, {"routes": ("",), "listeners": ("",)}),
}


def generated(policy: str) -> dict[str, dict[str, Any]]:
    """Return the resources that show *policy*, by type and name, for a mesh of one service with two versions."""
    parsed = parse([(f"{policy}.yaml", (FOLDER / f"{policy}.yaml").read_text())])
    assert not parsed.errors, "\n".join(map(str, parsed.errors))
    reviews = service("reviews", 1, ports=(ServicePort("http", 9080), ServicePort("admin", 9090)))
    running = [workload(reviews, 0, "10.244.0.7", "v1"), workload(reviews, 0, "10.244.0.8", "v2")]
    snapshot = Snapshot(
        revision=1,
        config={item.key: replace(item, created=created) for created, item in enumerate(parsed.objects)},
        services={reviews.hostname: reviews},
        workloads={(item.namespace, item.name): item for item in running},
    )
    kind, shown = SHOWN[policy]
    proxy = sidecar("reviews-v1-0", address="10.244.0.7") if kind is ProxyKind.SIDECAR else ingress()
    made = translate(snapshot, proxy)
    return {
        name: {resource: value for resource, value in read(made, KINDS[name]).items() if resource.startswith(prefixes)}
        for name, prefixes in shown.items()
    }


@pytest.mark.parametrize("policy", SHOWN)
def test_generated_resources_are_the_golden_ones(policy: str, request: pytest.FixtureRequest) -> None:
    """The document of the policy gives exactly the resources beside it."""
    golden = FOLDER / f"{policy}.golden.yaml"
    made = generated(policy)
    if request.config.getoption("--update-goldens"):
        golden.write_text(yaml.safe_dump(made, sort_keys=True, width=120))
    assert yaml.safe_load(golden.read_text()) == made


def test_every_document_has_its_golden() -> None:
    """No file in the folder is forgotten."""
    names = {path.name.split(".")[0] for path in FOLDER.iterdir()}
    assert names == set(SHOWN)
    assert len(list(FOLDER.iterdir())) == 2 * len(SHOWN)
