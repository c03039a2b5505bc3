"""What became of the copies of a request is told beside it, and never taken for a part of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from tests.controlplane.peers import Mesh
from weft.insight import Hop, Program, happened, tell, tree_to_json, verdict
from weft.telemetry import Configuration, Record

TO, V2 = (f"outbound|9080|{rest}.default.svc.cluster.local" for rest in ("|catalog", "v2|reviews"))
CATALOG, REVIEWS_V2 = "10.244.0.11:9080", "10.244.0.4:9080"


def sent(**more: object) -> Record:
    fields = {
        "direction": "outbound",
        "downstream": "10.244.0.2:39999",
        "upstream": CATALOG,
        "upstream_local": "10.244.0.2:40000",
        "cluster": TO,
        "listener": "240.240.0.6:9080",
        "origin": "rules.yaml:95:5",
        "rule": "spec.http[0]",
        "details": "via_upstream",
        "status": 200,
        "attempts": 1,
    }
    return record("productpage-v1-0", 0.0, **(fields | more))


def received(workload: str, listener: str, downstream: str, start: float, **more: object) -> Record:
    fields = {"direction": "inbound", "listener": listener, "downstream": downstream, "details": "via_upstream"}
    return record(workload, start, **(fields | {"status": 200, "attempts": 1} | more))


def record(workload: str, start: float, log: str = "requests", **fields: object) -> Record:
    node = f"sidecar~10.244.0.2~{workload}.default~default.svc.cluster.local"
    asked = {"request_id": "1", "method": "GET", "scheme": "http", "authority": "catalog:9080", "path": "/1"}
    return Record(node, log, "HTTP/1.1", start=start, duration_ms=10.0, **(asked | fields))  # type: ignore[arg-type]


def trees(mesh: Mesh, records: Sequence[Record], now: Sequence[Program] = ()) -> list[Hop]:
    return happened(records, (), lambda node, _: [published(mesh, node)], now)


def published(mesh: Mesh, node: str) -> Configuration:
    """What the proxy of that node has now, as if it had always been so."""
    workload = node.split("~")[2].partition(".")[0]
    found = mesh.client.get(f"/v1/proxies/{workload}/resources")
    resources = tuple((item["type_url"], item["name"], base64.b64decode(item["value"])) for item in found)
    return Configuration(node, 1, 0.0, 0.0, resources)


def test_a_copy_that_arrived_belongs_to_its_request(bookinfo: Mesh) -> None:
    """The record of who took it has the request's id and no caller that is known."""
    (hop,) = trees(
        bookinfo,
        [
            sent(),
            received("catalog-v1-0", CATALOG, "10.244.0.2:40000", 0.002),
            received("reviews-v2-0", REVIEWS_V2, "10.244.0.2:40001", 0.003, status=500),
        ],
    )
    assert [item.record.workload for item in hop.nexts] == ["catalog-v1-0"]
    assert verdict(hop).workload == "catalog-v1-0"
    copy, missing = hop.copies
    assert copy.arrived is not None
    assert (copy.arrived.record.workload, missing.exists) == ("reviews-v2-0", False)
    text = tell([hop])
    assert "copy: to reviews.default.svc.cluster.local port 9080, subset v2, where reviews-v2-0 took it" in text
    assert "copy: none, for there is no reviews.default.svc.cluster.local port 9080, subset v9" in text
    assert tree_to_json(hop)["copies"][0]["arrived"]["record"]["status"] == 500


def test_a_copy_that_failed_is_no_try_of_its_request(bookinfo: Mesh) -> None:
    failed = sent(cluster=V2, upstream=REVIEWS_V2, upstream_local="", status=None, flags=("UF",), log="tries")
    (hop,) = trees(bookinfo, [sent(), failed])
    assert [item.cluster for item in hop.tries] == [TO]
    assert hop.copies[0].failed == failed
    assert "subset v2 failed (UF); nobody waited for it" in tell([hop])


def test_of_a_share_nobody_knows_whether_this_one_was_copied(bookinfo: Mesh) -> None:
    (hop,) = trees(bookinfo, [sent()])
    assert "copy: 25 % of such requests go to" in tell([hop])
    assert "of this one no proxy has told" in tell([hop])
