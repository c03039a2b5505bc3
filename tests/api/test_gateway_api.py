"""What the Gateway API's kinds and Kubernetes' Service must hold between their fields, with the place of each mistake."""

from __future__ import annotations

from textwrap import indent

import pytest

from weft.api.parse import parse
from weft.model import Severity

ROUTE = (
    "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  parentRefs: [{name: g}]\n"
)
GATEWAY = (
    "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  gatewayClassName: weft\n"
)
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n"
GRANT = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: r}\nspec:\n"
BACKEND = "backendRefs: [{name: a, port: 80}]"


def rule(text: str) -> str:
    return f"{ROUTE}  rules:\n  - {text}\n"


def match(text: str) -> str:
    return rule(f"{{{BACKEND}, matches: [{{{text}}}]}}")


def filtered(text: str, matches: str = "[{path: {value: /a}}]") -> str:
    return rule(f"{{{BACKEND}, matches: {matches}, filters: [{text}]}}")


def redirect(text: str, matches: str = "[{path: {value: /a}}]") -> str:
    return rule(f"{{matches: {matches}, filters: [{{type: RequestRedirect, requestRedirect: {{{text}}}}}]}}")


HEADERS = "{type: RequestHeaderModifier, requestHeaderModifier: "

MISTAKES = {
    "unknown field": (rule(f"{{{BACKEND}, matchs: []}}"), "spec.rules[0].matchs", "unknown-field"),
    "no snake_case": (rule("{backend_refs: []}"), "spec.rules[0].backend_refs", "unknown-field"),
    "no port": (rule("{backendRefs: [{name: a}]}"), "spec.rules[0].backendRefs[0]", "missing-field"),
    "port out of range": (
        rule("{backendRefs: [{name: a, port: 70000}]}"),
        "spec.rules[0].backendRefs[0].port",
        "out-of-range",
    ),
    "weight out of range": (
        rule("{backendRefs: [{name: a, port: 80, weight: -1}]}"),
        "spec.rules[0].backendRefs[0].weight",
        "out-of-range",
    ),
    "another kind of backend": (
        rule("{backendRefs: [{kind: Bucket, group: example.com, name: a}]}"),
        "spec.rules[0].backendRefs[0].kind",
        "not-honoured",
    ),
    "session persistence": (
        rule(f"{{{BACKEND}, sessionPersistence: {{type: Cookie}}}}"),
        "spec.rules[0].sessionPersistence",
        "not-honoured",
    ),
    "extension": (
        filtered("{type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}"),
        "spec.rules[0].filters[0].type",
        "not-honoured",
    ),
    "path without slash": (match("path: {value: a}"), "spec.rules[0].matches[0].path.value", "bad-path"),
    "path with two slashes": (match("path: {value: /a//b}"), "spec.rules[0].matches[0].path.value", "bad-path"),
    "path with a space": (match('path: {value: "/a b"}'), "spec.rules[0].matches[0].path.value", "bad-path"),
    "path kind": (match("path: {type: Prefix, value: /a}"), "spec.rules[0].matches[0].path.type", "unknown-value"),
    "regular expression": (
        match('path: {type: RegularExpression, value: "/(?=a)"}'),
        "spec.rules[0].matches[0].path.value",
        "bad-regex",
    ),
    "header value": (
        match('headers: [{name: a, value: " b"}]'),
        "spec.rules[0].matches[0].headers[0].value",
        "bad-header",
    ),
    "a header's value that is long, with a space at its end": (
        filtered(f"{HEADERS}{{set: [{{name: a, value: '{'no-cache, ' * 20}'}}]}}}}"),
        "spec.rules[0].filters[0].requestHeaderModifier.set[0].value",
        "bad-header",
    ),
    "header name": (
        match("headers: [{name: a b, value: b}]"),
        "spec.rules[0].matches[0].headers[0].name",
        "bad-header",
    ),
    "method": (match("method: get"), "spec.rules[0].matches[0].method", "unknown-value"),
    "filter without settings": (
        filtered("{type: URLRewrite}"),
        "spec.rules[0].filters[0]",
        "missing-field",
    ),
    "filter with another's settings": (
        filtered("{type: URLRewrite, urlRewrite: {hostname: a}, requestRedirect: {hostname: b}}"),
        "spec.rules[0].filters[0].requestRedirect",
        "conflict",
    ),
    "filter twice": (
        filtered(f"{HEADERS}{{remove: [a]}}}}, {HEADERS}{{remove: [b]}}}}"),
        "spec.rules[0].filters[1]",
        "duplicate-filter",
    ),
    "header twice": (
        filtered(f"{HEADERS}{{set: [{{name: a, value: b}}, {{name: A, value: c}}]}}}}"),
        "spec.rules[0].filters[0].requestHeaderModifier.set[1].name",
        "conflict",
    ),
    "host header": (
        filtered(f"{HEADERS}{{set: [{{name: Host, value: b}}]}}}}"),
        "spec.rules[0].filters[0].requestHeaderModifier.set[0].name",
        "bad-header",
    ),
    "origin without a scheme": (
        filtered("{type: CORS, cors: {allowOrigins: [https://a.example, b.example]}}"),
        "spec.rules[0].filters[0].cors.allowOrigins[1]",
        "bad-origin",
    ),
    "origin with a path": (
        filtered("{type: CORS, cors: {allowOrigins: [https://a.example/x]}}"),
        "spec.rules[0].filters[0].cors.allowOrigins[0]",
        "bad-origin",
    ),
    "allowed header": (
        filtered("{type: CORS, cors: {allowHeaders: ['x-a, x-b']}}"),
        "spec.rules[0].filters[0].cors.allowHeaders[0]",
        "bad-header",
    ),
    "exposed header": (
        filtered('{type: CORS, cors: {exposeHeaders: [x-a, "x b"]}}'),
        "spec.rules[0].filters[0].cors.exposeHeaders[1]",
        "bad-header",
    ),
    "length": (
        filtered(f"{HEADERS}{{set: [{{name: Content-Length, value: '1'}}]}}}}"),
        "spec.rules[0].filters[0].requestHeaderModifier.set[0].name",
        "bad-header",
    ),
    "chunks removed": (
        filtered(f"{HEADERS}{{remove: [proxy-connection, transfer-encoding]}}}}"),
        "spec.rules[0].filters[0].requestHeaderModifier.remove[1]",
        "bad-header",
    ),
    "redirect beside backends": (
        filtered("{type: RequestRedirect, requestRedirect: {hostname: a}}"),
        "spec.rules[0].backendRefs",
        "conflict",
    ),
    "redirect code": (
        redirect("statusCode: 304"),
        "spec.rules[0].filters[0].requestRedirect.statusCode",
        "unknown-value",
    ),
    "prefix without a prefix": (
        redirect("path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}", "[{path: {type: Exact, value: /a}}]"),
        "spec.rules[0].filters[0].requestRedirect.path.type",
        "conflict",
    ),
    "two kinds of paths": (
        redirect("path: {type: ReplaceFullPath, replaceFullPath: /b, replacePrefixMatch: /c}"),
        "spec.rules[0].filters[0].requestRedirect.path.replacePrefixMatch",
        "conflict",
    ),
    "backend's timeout above the request's": (
        rule(f"{{{BACKEND}, timeouts: {{request: 1s, backendRequest: 2s}}}}"),
        "spec.rules[0].timeouts.backendRequest",
        "out-of-range",
    ),
    "fractions in a duration": (
        rule(f"{{{BACKEND}, timeouts: {{request: 1.5s}}}}"),
        "spec.rules[0].timeouts.request",
        "wrong-type",
    ),
    "retry code": (rule(f"{{{BACKEND}, retry: {{codes: [200]}}}}"), "spec.rules[0].retry.codes[0]", "out-of-range"),
    "hostname": (f'{ROUTE}  hostnames: ["a.*.com"]\n', "spec.hostnames[0]", "bad-host"),
    "address for a hostname": (f"{ROUTE}  hostnames: [10.0.0.1]\n", "spec.hostnames[0]", "bad-host"),
    "parent twice": (ROUTE.replace("[{name: g}]", "[{name: g}, {name: g}]"), "spec.parentRefs[1]", "duplicate-parent"),
    "parent of another kind": (
        ROUTE.replace("{name: g}", "{kind: Ingress, name: g}"),
        "spec.parentRefs[0].kind",
        "not-honoured",
    ),
    "service without its group": (
        ROUTE.replace("{name: g}", "{kind: Service, name: g}"),
        "spec.parentRefs[0].kind",
        "unknown-value",
    ),
    "listener's protocol": (
        f"{GATEWAY}  listeners: [{{name: a, port: 443, protocol: HTTPS}}]\n",
        "spec.listeners[0].protocol",
        "not-honoured",
    ),
    "listener twice": (
        f"{GATEWAY}  listeners: [{{name: a, port: 80, protocol: HTTP}}, {{name: b, port: 80, protocol: HTTP}}]\n",
        "spec.listeners[1]",
        "conflict",
    ),
    "listener's name twice": (
        f"{GATEWAY}  listeners: [{{name: a, port: 80, protocol: HTTP}}, {{name: a, port: 81, protocol: HTTP}}]\n",
        "spec.listeners[1].name",
        "duplicate-name",
    ),
    "address of the Gateway": (
        f"{GATEWAY}  listeners: [{{name: a, port: 80, protocol: HTTP}}]\n  addresses: [{{value: 10.0.0.1}}]\n",
        "spec.addresses[0]",
        "not-honoured",
    ),
    "selector without from": (
        f"{GATEWAY}  listeners: [{{name: a, port: 80, protocol: HTTP,"
        " allowedRoutes: {namespaces: {selector: {matchLabels: {a: b}}}}}]\n",
        "spec.listeners[0].allowedRoutes.namespaces.selector",
        "conflict",
    ),
    "service without selector": (f"{SERVICE}  ports: [{{port: 80}}]\n", "spec", "missing-field"),
    "service with a dot in its name": (
        f"{SERVICE.replace('name: s', 'name: reviews.v1')}  selector: {{a: b}}\n  ports: [{{port: 80}}]\n",
        "metadata.name",
        "bad-name",
    ),
    "service of another type": (
        f"{SERVICE}  selector: {{a: b}}\n  type: ExternalName\n  ports: [{{port: 80}}]\n",
        "spec.type",
        "not-honoured",
    ),
    "service with a target out of range": (
        f"{SERVICE}  selector: {{a: b}}\n  ports: [{{port: 80, targetPort: 70000}}]\n",
        "spec.ports[0].targetPort",
        "out-of-range",
    ),
    "service with a list of targets": (
        f"{SERVICE}  selector: {{a: b}}\n  ports: [{{port: 80, targetPort: [1]}}]\n",
        "spec.ports[0].targetPort",
        "wrong-type",
    ),
    "service with a named target": (
        f"{SERVICE}  selector: {{a: b}}\n  ports: [{{port: 80, targetPort: http}}]\n",
        "spec.ports[0].targetPort",
        "not-honoured",
    ),
    "service with ports without names": (
        f"{SERVICE}  selector: {{a: b}}\n  ports: [{{port: 80}}, {{port: 81, name: b}}]\n",
        "spec.ports[0]",
        "missing-field",
    ),
    "grant of nothing": (f"{GRANT}  from: []\n  to: [{{group: '', kind: Service}}]\n", "spec.from", "missing-field"),
}


@pytest.mark.parametrize(("text", "path", "code"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_refused_where_it_is(text: str, path: str, code: str) -> None:
    result = parse([("f", text)])
    assert (path, code) in [(problem.path, problem.code) for problem in result.errors], list(map(str, result.problems))
    assert not result.objects


WARNINGS = {
    "no parents": (ROUTE.replace("[{name: g}]", "[]"), "spec", "no-effect"),
    "no backends": (rule("{name: empty}"), "spec.rules[0]", "no-backend"),
    "weights of zero": (
        rule("{backendRefs: [{name: a, port: 80, weight: 0}]}"),
        "spec.rules[0].backendRefs",
        "no-backend",
    ),
    "hostnames in the mesh": (
        ROUTE.replace("{name: g}", '{group: "", kind: Service, name: g}') + "  hostnames: [a]\n",
        "spec.hostnames",
        "no-effect",
    ),
    "a condition that never counts": (
        match("headers: [{name: a, value: b}, {name: A, value: c}]"),
        "spec.rules[0].matches[0].headers[1]",
        "ineffective-match",
    ),
    "label of a namespace": (
        f"{GATEWAY}  listeners: [{{name: a, port: 80, protocol: HTTP,"
        " allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}}}]\n",
        "spec.listeners[0].allowedRoutes.namespaces.selector.matchLabels.a",
        "unknown-label",
    ),
    "foreign class": (
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: c}\nspec: {controllerName: a/b}\n",
        "spec.controllerName",
        "foreign-class",
    ),
}


@pytest.mark.parametrize(("text", "path", "code"), WARNINGS.values(), ids=WARNINGS.keys())
def test_what_has_no_effect_is_warned_about(text: str, path: str, code: str) -> None:
    result = parse([("f", text)])
    assert (path, code) in [(problem.path, problem.code) for problem in result.problems]
    assert all(problem.severity is Severity.WARNING for problem in result.problems)
    assert len(result.objects) == 1


def test_gateways_of_both_apis_stand_beside_each_other() -> None:
    istio = (
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  selector: {a: b}\n"
        '  servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ["*"]}]\n'
    )
    result = parse([("f", f"{istio}---\n{GATEWAY}  listeners: [{{name: a, port: 80, protocol: HTTP}}]\n")])
    assert [item.key.kind for item in result.objects] == ["Gateway", "Gateway.gateway.networking.k8s.io"]


def test_a_list_of_documents_is_read_with_positions() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- " + indent(rule(f"{{{BACKEND}}}"), "  ").strip()
    (item,) = parse([("f", text)]).objects
    assert item.locate("spec", "rules", 0).line == 10
