"""What is not HTTP and comes to a port of the mesh is told by what that port speaks, whoever decided about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.controlplane.peers import Mesh
from tests.insight.test_copies import published
from weft.insight import Hop, happened, tell, verdict
from weft.telemetry import Record

REVIEWS, NOBODY = "240.240.0.3", "240.240.77.77"


def connection(mesh: Mesh, destination: str, cluster: str, flag: str = "UH") -> Hop:
    """A connection of productpage's program that its proxy refused."""
    node = "sidecar~10.244.0.2~productpage-v1-0.default~default.svc.cluster.local"
    record = Record(
        *(node, "requests", "TCP", "outbound", 1.0, 1.0),
        flags=(flag,),
        cluster=cluster,
        listener=destination,
        downstream="10.244.0.2:40000",
    )
    services = mesh.client.get("/v1/services")
    (hop,) = happened([record], (), lambda asked, _: [published(mesh, asked)], (), services)
    return hop


# Envoy names no cluster where no endpoint was chosen.
@pytest.mark.parametrize("cluster", ["BlackHoleCluster", ""])
def test_tls_to_a_port_of_http_is_called_that(bookinfo: Mesh, cluster: str) -> None:
    hop = connection(bookinfo, f"{REVIEWS}:9080", cluster)
    end, text = verdict(hop), tell([hop])
    assert (end.finding and end.finding.code, end.by, end.workload) == (
        "not-http-called",
        "program",
        "productpage-v1-0",
    )
    assert (
        "The port 9080 of reviews speaks HTTP; TLS, or something else that is not HTTP, came from productpage" in text
    )
    assert "Call it by http://reviews:9080/;" in text
    assert "to: BlackHoleCluster" in text


@pytest.mark.parametrize("cluster", ["BlackHoleCluster", ""])
@pytest.mark.parametrize("number", [80, 443, 3306])
def test_a_service_is_named_that_lacks_the_port(bookinfo: Mesh, number: int, cluster: str) -> None:
    """Whoever called a name has never seen its address, and `curl http://reviews/` names no port at all."""
    hop = connection(bookinfo, f"{REVIEWS}:{number}", cluster)
    assert hop.finding is not None
    assert hop.finding.code == "no-such-port"
    assert f"The service reviews has no port {number}, so the call came to nothing." in tell([hop])
    assert "What to do: Call one of its ports: 9080;" in tell([hop])


@pytest.mark.parametrize("cluster", ["BlackHoleCluster", ""])
def test_an_address_that_no_service_has_is_called_that(bookinfo: Mesh, cluster: str) -> None:
    hop = connection(bookinfo, f"{NOBODY}:9080", cluster)
    assert hop.finding is not None
    assert hop.finding.code == "no-such-port"
    assert f"No service of the mesh has a port at {NOBODY}:9080" in tell([hop])


@pytest.mark.parametrize(
    ("flag", "upstream", "failure"),
    [
        # weft-proxy fails to connect; Envoy's way out of the mesh leads through a socket of its agent.
        ("UF", "240.240.0.3:3306", "delayed connect error: ENETUNREACH: 240.240.0.3:3306 is an address of the mesh"),
        ("UC", "/run/outside.sock", "the edge refused: 240.240.0.3:3306 is an address of the mesh"),
        ("UC", "/run/outside.sock", ""),
    ],
)
def test_it_is_named_where_another_service_has_a_port_of_that_number(flag: str, upstream: str, failure: str) -> None:
    """Then the proxy takes the request, finds no rule for the host, and tries to pass it on to the address."""
    services = [
        {"hostname": "reviews.shop.svc.cluster.local", "name": "reviews", "namespace": "shop", "address": REVIEWS,
         "ports": [{"number": 9080, "protocol": "HTTP"}, {"number": 9090, "protocol": "TCP"}], "workloads": []},
    ]  # fmt: skip
    record = Record(
        *("sidecar~10.244.0.2~caller-0.default~default.svc.cluster.local", "requests", "HTTP/1.1", "outbound", 1.0, 1.0),
        request_id="1", method="GET", authority="reviews.shop", path="/", status=503, flags=(flag,), attempts=1,
        cluster="PassthroughCluster", upstream=upstream, listener=f"{REVIEWS}:80", transport_failure=failure,
    )  # fmt: skip
    (hop,) = happened([record], (), lambda _node, _at: (), services=services)
    assert hop.finding is not None
    assert hop.finding.sentence == "The service reviews.shop has no port 80, so the call came to nothing."
    assert hop.finding.remedy.startswith("Call one of its ports: 9080, 9090; or declare port 80")
    # What went to one of the service's own endpoints is another matter.
    elsewhere = replace(record, cluster="outbound|9080||reviews.shop.svc.cluster.local")
    (hop,) = happened([elsewhere], (), lambda _node, _at: (), services=services)
    assert hop.finding is not None
    assert hop.finding.code != "no-such-port"


def test_a_port_of_bytes_takes_anything(bookinfo: Mesh) -> None:
    (ledger,) = (item for item in bookinfo.client.get("/v1/services") if item["name"] == "ledger")
    hop = connection(bookinfo, f"{ledger['address']}:3306", "")
    assert hop.finding is not None
    assert hop.finding.code == "no-endpoint"
    assert hop.cluster == "outbound|3306||ledger.default.svc.cluster.local"


SERVER = {
    "hostname": "server.default.svc.cluster.local", "name": "server", "namespace": "default", "address": "240.240.0.2",
    "ports": [{"number": 8080, "protocol": "HTTP"}, {"number": 3306, "protocol": "TCP"}], "workloads": [],
}  # fmt: skip


def unread(listener: str, node: str, **more: Any) -> Record:
    """What a proxy could not read as HTTP, or not in time."""
    fields = {"status": 400, "flags": ("DPE",), "details": "http1.codec_error"} | more
    return Record(
        *(node, "requests", "HTTP/1.1", "outbound", 1.0, 0.0), scheme="http", listener=listener, revision=5, **fields
    )


def test_tls_to_a_port_of_http_is_called_that_in_explicit_mode_too() -> None:
    """There a port has a listener of its own, which reads everything as HTTP."""
    record = unread("127.150.3.2:8080", "sidecar~127.150.3.1~caller-0.default~default.svc.cluster.local")
    (hop,) = happened([record], (), lambda _node, _at: (), services=[SERVER])
    end, text = verdict(hop), tell([hop])
    assert (end.finding and end.finding.code, end.by, end.workload) == ("not-http-called", "program", "caller-0")
    assert text.startswith("A request to 127.150.3.2:8080 that could not be read: 400 after 0 ms")
    assert "The port 8080 of server speaks HTTP; what came from caller-0 was TLS, or something else" in text
    assert "Call it by http://server:8080/;" in text
    assert "mend the client (http1.codec_error)." in text


def test_what_does_not_become_a_request_in_explicit_mode_is_told_with_the_port_that_it_was_sent_to() -> None:
    """A client of another protocol may send what looks like the beginning of a request line, and wait for an answer."""
    record = unread(
        *("127.150.3.2:8080", "sidecar~127.150.3.1~caller-0.default~default.svc.cluster.local"),
        status=408,
        flags=(),
        details="request_header_timeout",
    )
    (hop,) = happened([record], (), lambda _node, _at: (), services=[SERVER])
    text = tell([hop])
    assert hop.finding is not None
    assert hop.finding.code == "request-timeout"
    assert (
        "The port 8080 of server speaks HTTP, and what came from caller-0 did not become a whole request of it" in text
    )
    assert "so its proxy answered 408." in text
    assert "Call it by http://server:8080/;" in text
    # A request of which the head came, and the rest did not, is HTTP.
    (hop,) = happened([replace(record, details="request_overall_timeout")], (), lambda _n, _a: (), services=[SERVER])
    assert hop.finding is not None
    assert hop.finding.sentence == "The client took too long to send its request."


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"method": "GET", "details": "missing_host_header"},
        {"status": 408, "flags": (), "details": "request_header_timeout"},
    ],
)
def test_of_a_request_that_could_not_be_read_no_destination_is_told(bookinfo: Mesh, more: dict[str, Any]) -> None:
    """The proxy answered before it looked for a route, and where connections are caught what is not HTTP comes elsewhere."""
    node = "sidecar~10.244.0.2~productpage-v1-0.default~default.svc.cluster.local"
    record = unread(f"{REVIEWS}:9080", node, downstream="10.244.0.2:40000", **more)
    services = bookinfo.client.get("/v1/services")
    (hop,) = happened([record], (), lambda asked, _: [published(bookinfo, asked)], (), services)
    assert hop.finding is not None
    assert hop.finding.code == ("malformed-request" if record.flags else "request-timeout")
    assert (hop.decision, hop.revision, hop.cluster) == (None, 5, "")
    assert "to: " not in tell([hop])
