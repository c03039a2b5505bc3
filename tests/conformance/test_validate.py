"""`weft-proxy validate` reads the JSON that Envoy and istiod write as protobuf's own library does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from google.protobuf import any_pb2, json_format

from tests.conformance.test_istiod_xds import KINDS, PROXYLESS, SCENARIOS
from weft._native import validate
from weft.agent.data_planes.weft_proxy import WeftProxy

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("name", SCENARIOS)
def test_files_of_istiod_are_read_as_their_bytes_are(corpus: Path, name: str) -> None:
    """As many resources of each file are refused by name as when Python serialises them."""
    folder = corpus / "istiod-xds" / name
    nodes = json.loads((folder / "nodes.json").read_text())
    for node in (node for node, content in nodes.items() if content["metadata"].get("GENERATOR") != PROXYLESS):
        for kind in KINDS:
            path = folder / f"{node}.{kind}.json"
            packed = [json_format.ParseDict(item, any_pb2.Any()) for item in json.loads(path.read_text())]
            refused = sum(bool(validate(message.type_url, message.value)) for message in packed)
            command = [WeftProxy().find().path, "validate", str(path)]
            report = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            if not packed:
                assert report.returncode == 2, report
                continue
            assert report.stdout.splitlines()[-1] == f"{len(packed)} checked, {refused} refused", (path, report)
            assert report.returncode == bool(refused)
