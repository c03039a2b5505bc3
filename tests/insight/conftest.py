"""One mesh for all questions: Bookinfo's programs as agents that follow a script, and rules written for these tests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.controlplane.peers import Mesh, running_mesh, until

RULES = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match:
    - headers: {end-user: {exact: jason}}
    timeout: 500ms
    retries: {attempts: 1, perTryTimeout: 200ms, retryOn: 5xx}
    headers:
      request: {set: {x-tester: jason}}
    route:
    - destination: {host: reviews, subset: v2}
  - match:
    - uri: {prefix: /beta}
    - queryParams: {beta: {exact: "yes"}}
    fault:
      abort: {httpStatus: 503, percentage: {value: 25}}
    route:
    - destination: {host: reviews, subset: v3}
  - route:
    - destination: {host: reviews, subset: v1}
      weight: 80
    - destination: {host: reviews, subset: v2}
      weight: 20
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http:
  - match:
    - uri: {prefix: /old}
    redirect: {uri: /new}
  - match:
    - uri: {prefix: /pages}
    corsPolicy:
      allowOrigins: [{exact: "https://shop.example"}, {prefix: "https://a."}]
      allowMethods: [GET, PUT]
      maxAge: 1h
      allowCredentials: true
    route: [{destination: {host: ratings}}]
  - match:
    - uri: {exact: /teapot}
    directResponse: {status: 418}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
  - match:
    - uri: {exact: /productpage}
    route:
    - destination: {host: productpage, port: {number: 9080}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog}
spec:
  host: catalog
  trafficPolicy:
    loadBalancer:
      consistentHash: {httpHeaderName: end-user}
    outlierDetection: {consecutive5xxErrors: 3, minHealthPercent: 60}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog}
spec:
  hosts: [catalog]
  http:
  - route:
    - destination: {host: catalog}
    mirrors:
    - destination: {host: reviews, subset: v2}
      percentage: {value: 25}
    - destination: {host: reviews, subset: v9}
"""


@pytest.fixture(scope="session")
def explicit() -> Iterator[Mesh]:
    """A mesh in explicit mode, with a service of HTTP and one of bytes."""
    own = {"interception": "explicit", "local_caller": {"uid": 0, "credential_sha256": "00" * 32}}
    for mesh in running_mesh({"interception": "explicit", "mesh_cidr": "127.78.0.0/16"}):
        mesh.running("shop", **own)
        ledger = mesh.agent("ledger", ports=[{"number": 3306, "protocol": "TCP"}], **own)
        ledger.send(type="proxy_ready", ready=True)
        ledger.send(type="listening", port=3306, address="127.0.0.1")
        until(partial(mesh._is_published, ledger.name), what="ledger ready and published")
        yield mesh


@pytest.fixture(scope="session")
def bookinfo() -> Iterator[Mesh]:
    for mesh in running_mesh():
        for service, version in (
            ("productpage", "v1"),
            ("reviews", "v1"),
            ("reviews", "v2"),
            ("reviews", "v3"),
            ("ratings", "v1"),
        ):
            mesh.running(service, version)
        ledger = mesh.agent("ledger", ports=[{"number": 3306, "protocol": "TCP"}])
        ledger.send(type="proxy_ready", ready=True)
        ledger.send(type="listening", port=3306, address="127.0.0.1")
        mesh.running("shop", port=None, host_ports=[5432])
        gateway = mesh.agent(
            "ingressgateway",
            kind="gateway",
            ports=[{"number": 8080, "protocol": "HTTP"}],
            published=[{"port": 8080, "host_address": "127.0.0.1", "host_port": 18080}],
        )
        gateway.send(type="proxy_ready", ready=True)
        mesh.agent(
            "lonegateway",
            kind="gateway",
            labels={"istio": "other"},
            published=[{"port": 80, "host_address": "::1", "host_port": 18081}],
        )
        mesh.running("catalog", "v1")
        mesh.running("catalog", "v2")
        mesh.apply(RULES, file="rules.yaml")
        yield mesh
