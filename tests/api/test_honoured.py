"""What the table of honoured fields promises, the data plane keeps: no refusal for a document that uses all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.translate.meshes import applied, ingress, mesh, sidecar
from weft import _native
from weft.api.honoured import HONOURED, Honour
from weft.api.parse import parse
from weft.model import ConfigObject, Proxy
from weft.translate.capabilities import refusals
from weft.translate.translator import translate

VIRTUAL_SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all}
spec:
  hosts: [service-0, "*.example.com"]
  gateways: [mesh, gw]
  exportTo: ["*"]
  http:
  - name: full
    match:
    - name: one
      uri: {prefix: /a}
      scheme: {exact: http}
      method: {regex: "GET|HEAD"}
      authority: {prefix: service}
      headers: {x-one: {exact: a}, x-two: {prefix: b}, x-three: {regex: "c+"}, x-four: {}}
      queryParams: {q: {exact: "1"}, r: {regex: "[0-9]+"}}
      withoutHeaders: {x-five: {exact: z}}
      port: 9080
      gateways: [mesh]
      ignoreUriCase: true
      sourceLabels: {app: service-1}
      sourceNamespace: default
    route:
    - destination: {host: service-0, subset: v1, port: {number: 9080}}
      weight: 90
      headers: {request: {set: {a: b}, add: {c: d}, remove: [e]}, response: {set: {a: b}, add: {c: d}, remove: [e]}}
    - destination: {host: service-1}
      weight: 10
    rewrite: {uri: /b, authority: other}
    timeout: 2s
    retries:
      attempts: 2
      perTryTimeout: 1s
      retryOn: "retriable-4xx,cancelled,503"
      backoff: 10ms
      retryIgnorePreviousHosts: false
    fault:
      delay: {fixedDelay: 1s, percentage: {value: 0.5}}
      abort: {httpStatus: 503, percentage: {value: 12.5}}
    corsPolicy:
      allowOrigins: [{exact: "https://shop.example"}, {prefix: "https://a."}, {regex: "https://s[0-9]"}]
      allowMethods: [GET, PUT]
      allowHeaders: [x-a]
      exposeHeaders: [x-b]
      maxAge: 24h
      allowCredentials: true
      unmatchedPreflights: IGNORE
    headers: {request: {set: {a: "%REQ(:path)%"}, add: {c: d}, remove: [e]}, response: {set: {a: b}, remove: [e]}}
  - name: regex
    match: [{uri: {regex: "/r/[^/]+"}}]
    route: [{destination: {host: service-0}}]
    rewrite: {uriRegexRewrite: {match: "/r/(.*)", rewrite: '/\\1'}}
    fault: {delay: {fixedDelay: 1s, percent: 5}}
    mirror: {host: service-1}
    mirrorPercentage: {value: 0.5}
    corsPolicy: {allowOrigin: ["https://shop.example"]}
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, authority: other.example.com, port: 8080, scheme: https, redirectCode: 308}
  - match: [{uri: {prefix: /prefix}}]
    redirect: {prefixRewrite: /other, derivePort: FROM_REQUEST_PORT}
  - match: [{uri: {prefix: /text}}]
    directResponse: {status: 418, body: {string: short}}
  - match: [{uri: {prefix: /bytes}}]
    directResponse: {status: 200, body: {bytes: aGVsbG8=}}
  - match: [{uri: {prefix: /copied}}]
    route: [{destination: {host: service-0}}]
    mirror: {host: service-1}
    mirrorPercent: 5
  - route: [{destination: {host: service-0}}]
    mirrors: [{destination: {host: service-1, subset: v1}, percentage: {value: 1}}, {destination: {host: service-0}}]
"""

TCP_VIRTUAL_SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: connections}
spec:
  hosts: [service-1]
  tcp:
  - match: [{port: 3306}]
    route: [{destination: {host: service-0}, weight: 1}, {destination: {host: service-1}, weight: 1}]
"""

DESTINATION_RULE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: all}
spec:
  host: service-0
  exportTo: ["*"]
  trafficPolicy: &whole
    <<: &policy
      loadBalancer: {simple: LEAST_REQUEST}
      connectionPool:
        tcp: {maxConnections: 10, connectTimeout: 1s}
        http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, maxRequestsPerConnection: 3, maxRetries: 4, h2UpgradePolicy: UPGRADE}
      outlierDetection:
        consecutive5xxErrors: 3
        consecutiveGatewayErrors: 2
        interval: 1s
        baseEjectionTime: 2s
        maxEjectionPercent: 50
        minHealthPercent: 10
      tls: {mode: ISTIO_MUTUAL}
    portLevelSettings:
    - port: {number: 9080}
      <<: *policy
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy: *whole
"""
STICKY = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: sticky}
spec:
  host: service-1
  trafficPolicy:
    loadBalancer: {consistentHash: {httpHeaderName: x-user, ringHash: {minimumRingSize: 2048}}}
    portLevelSettings:
    - port: {number: 9080}
      loadBalancer:
        consistentHash:
          httpCookie: {name: user, path: /, ttl: 0s, attributes: [{name: SameSite, value: Strict}]}
          maglev: {tableSize: 1021}
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy:
      loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 16}}
      portLevelSettings:
      - port: {number: 9080}
        loadBalancer: {consistentHash: {httpQueryParameterName: user}}
"""
GATEWAY = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*.example.com"]}]
"""
HTTP_ROUTE = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all}
spec:
  parentRefs:
  - {group: gateway.networking.k8s.io, kind: Gateway, namespace: default, name: k8s, sectionName: http, port: 80}
  - {group: "", kind: Service, name: service-1}
  hostnames: ["*.example.com"]
  useDefaultGateways: None
  rules:
  - name: full
    matches:
    - path: {type: PathPrefix, value: /a}
      headers: [{type: Exact, name: x-a, value: a}, {type: RegularExpression, name: x-b, value: b+}]
      queryParams: [{type: Exact, name: q, value: a}, {type: RegularExpression, name: r, value: "[0-9]+"}]
      method: GET
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: a, value: 5%}], add: [{name: b, value: c}], remove: [d]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: a, value: b}], add: [{name: b, value: c}], remove: [d]}
    - type: URLRewrite
      urlRewrite: {hostname: other, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}
    backendRefs:
    - group: ""
      kind: Service
      namespace: default
      name: service-0
      port: 9080
      weight: 9
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {set: [{name: e, value: f}]}
      - type: ResponseHeaderModifier
        responseHeaderModifier: {set: [{name: e, value: f}]}
    - {name: service-1, port: 9080}
    timeouts: {request: 2s, backendRequest: 500ms}
    retry: {codes: [503], attempts: 3, backoff: 10ms}
  - matches: [{path: {type: RegularExpression, value: "/r/[^/]+"}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /whole}}}]
    backendRefs: [{name: service-0, port: 9080}]
  - matches: [{path: {value: /b}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: service-0, port: 9080}]
  - matches: [{path: {type: Exact, value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect:
        scheme: https
        hostname: other.example.com
        port: 8443
        statusCode: 308
        path: {type: ReplaceFullPath, replaceFullPath: /new}
  - matches: [{path: {value: /c}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
"""

COPYING_HTTP_ROUTE = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: copying}
spec:
  parentRefs: [{name: k8s}, {group: "", kind: Service, name: service-0}]
  rules:
  - filters:
    - type: RequestMirror
      requestMirror: {backendRef: {name: service-1, port: 9080}, fraction: {numerator: 1, denominator: 3}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: service-1, port: 9080}, percent: 5}
    - type: CORS
      cors:
        allowOrigins: ["https://*.example.com", "https://other.org"]
        allowMethods: [GET, POST]
        allowHeaders: [x-a]
        exposeHeaders: [x-b]
        allowCredentials: true
        maxAge: 60
    backendRefs: [{name: service-0, port: 9080}]
"""

KUBERNETES_GATEWAY = """\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: k8s}
spec:
  gatewayClassName: mine
  addresses: [{type: Hostname, value: ingress}]
  defaultScope: None
  listeners:
  - name: http
    hostname: "*.example.com"
    port: 80
    protocol: HTTP
    allowedRoutes:
      kinds: [{group: gateway.networking.k8s.io, kind: HTTPRoute}]
      namespaces:
        from: Selector
        selector:
          matchLabels: {kubernetes.io/metadata.name: default}
          matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [default]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: mine}
spec: {controllerName: weft.dev/gateway-controller, description: mine}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: all}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}]
  to: [{group: "", kind: Service, name: service-0}]
---
apiVersion: v1
kind: Service
metadata: {name: service-0-v1}
spec:
  type: ClusterIP
  selector: {app: service-0, version: v1}
  sessionAffinity: None
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  ports: [{name: web, port: 80, protocol: TCP, appProtocol: http, targetPort: 9080}]
"""
DOCUMENTS = (
    VIRTUAL_SERVICE,
    TCP_VIRTUAL_SERVICE,
    DESTINATION_RULE,
    STICKY,
    GATEWAY,
    HTTP_ROUTE,
    COPYING_HTTP_ROUTE,
    KUBERNETES_GATEWAY,
)


def objects() -> tuple[ConfigObject, ...]:
    result = parse([(f"f{index}", text) for index, text in enumerate(DOCUMENTS)])
    assert not result.problems, [str(problem) for problem in result.problems]
    return result.objects


def test_the_documents_use_every_field_that_is_honoured() -> None:
    used: dict[str, set[tuple[str, ...]]] = {}
    for item in objects():
        used.setdefault(item.key.kind, set()).update(paths(item.manifest["spec"]))
    for kind, mine in used.items():
        missing = [path for path in leaves(HONOURED[kind]) if not any(_within(path, other) for other in mine)]
        assert missing == [], kind


def leaves(honour: Honour, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, below in honour.below.items():
        if below.below:
            yield from leaves(below, (*path, name))
        else:
            yield (*path, name)


def paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from paths(part, (*path, key))
    elif isinstance(value, list):
        for part in value:
            yield from paths(part, path)


def _within(path: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return other[: len(path)] == path


@pytest.mark.parametrize("proxy", [sidecar(), ingress()], ids=["sidecar", "gateway"])
def test_weft_proxy_refuses_nothing_of_them(proxy: Proxy) -> None:
    assert not any(refusals(item, proxy.data_plane) for item in objects())
    resources = translate(applied(mesh(2, rules=False), *objects()), proxy)
    assert resources
    refused = {item.name: found for item in resources if (found := _native.validate(item.type_url, item.value))}
    assert refused == {}
