"""What must hold between the fields of a spec, one named case for each rule."""

from __future__ import annotations

import pytest

from weft.api.parse import parse
from weft.api.rules.virtual_service import host_covers

TO = "route: [{destination: {host: a}}]"


def problems_of(kind: str, spec: str) -> list[tuple[int, str, str, str]]:
    group = "security" if kind == "PeerAuthentication" else "networking"
    text = f"apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n"
    return [
        (
            problem.origin.column,
            problem.path.removeprefix("spec").lstrip("."),
            problem.code,
            f"{problem.message} {problem.remedy}",
        )
        for problem in parse([("f", text)]).problems
    ]


def check(kind: str, spec: str, path: str, code: str, at: str, words: str) -> None:
    """*at* begins where the problem is said to be; `>` before it counts its second place."""
    found = problems_of(kind, spec)
    assert [(item[1], item[2]) for item in found] == [(path, code)]
    column, _, _, sentence = found[0]
    second = at.startswith(">")
    at = at.removeprefix(">")
    index = spec.index(at, spec.index(at) + 1) if second else spec.index(at)
    assert column == (len("spec: ") + index + 1 if path else 1)  # of the spec itself: its key
    assert words in sentence


def rule(inside: str) -> str:
    return f"{{hosts: [b], http: [{{{inside}}}]}}"


def two_matches(earlier: str, later: str) -> str:
    """Return the spec of two rules, each with the match that is given."""
    return f"{{hosts: [b], http: [{{match: [{{{earlier}}}], {TO}}}, {{match: [{{{later}}}], {TO}}}]}}"


VIRTUAL_SERVICES = {
    # the spec, path of the problem, its code, where it is, words
    "no rules": ("{hosts: [a]}", "", "invalid", "{hosts", "needs rules"),
    "no hosts": (f"{{http: [{{{TO}}}]}}", "", "missing-field", "{http", "delegate"),
    "host that is none": (f"{{hosts: [a_b], http: [{{{TO}}}]}}", "hosts[0]", "bad-host", "a_b", "`a_b` is no label"),
    "host with an inner wildcard": (
        f"{{hosts: [a.*.b], http: [{{{TO}}}]}}",
        "hosts[0]",
        "bad-host",
        "a.*",
        "begin a host",
    ),
    "every host of the mesh": (f'{{hosts: ["*"], http: [{{{TO}}}]}}', "hosts[0]", "bad-host", '"*"', "gateways"),
    "host twice": (f"{{hosts: [c, c], http: [{{{TO}}}]}}", "hosts[1]", "duplicate-host", "c]", "line 4, column 16"),
    "host within a wildcard": (
        f'{{hosts: ["*.c.d", x.c.d], http: [{{{TO}}}]}}',
        "hosts[1]",
        "duplicate-host",
        "x.c.d",
        "covered by `*.c.d`",
    ),
    "gateway's name": (f"{{hosts: [b], gateways: [A/b], http: [{{{TO}}}]}}", "gateways[0]", "bad-name", "A/b", "`A`"),
    "gateway's old name": (
        f"{{hosts: [b], gateways: [gw.shop.svc.cluster.local], http: [{{{TO}}}]}}",
        "gateways[0]",
        "deprecated",
        "gw.shop",
        "`shop/gw`",
    ),
    "rules for TCP at a gateway": (
        f"{{hosts: [b], gateways: [gw], tcp: [{{{TO}}}]}}",
        "tcp",
        "not-honoured",
        "tcp",
        "name `mesh`",
    ),
    "rules for TCP at a gateway and for sidecars": (
        f"{{hosts: [b], gateways: [mesh, gw], tcp: [{{{TO}}}]}}",
        "tcp",
        "no-effect",
        "tcp",
        "for sidecars alone",
    ),
    "no action": (rule("name: r"), "http[0]", "missing-action", "{name", "exactly one of"),
    "route and redirect": (
        rule(f"{TO}, redirect: {{uri: /x}}"),
        "http[0].redirect",
        "conflict",
        "redirect",
        "not both",
    ),
    "redirect and answer": (
        rule("redirect: {uri: /x}, directResponse: {status: 200}"),
        "http[0].directResponse",
        "conflict",
        "directResponse",
        "not both",
    ),
    "mirror beside an answer": (
        rule("directResponse: {status: 200}, mirror: {host: b}"),
        "http[0].mirror",
        "no-effect",
        "mirror",
        "nothing is forwarded",
    ),
    "mirror and mirrors": (
        rule(f"{TO}, mirror: {{host: b}}, mirrors: [{{destination: {{host: c}}}}]"),
        "http[0].mirrors",
        "conflict",
        "mirrors",
        "exclude each other",
    ),
    "a share of no mirror": (
        rule(f"{TO}, mirrorPercentage: {{value: 5}}, mirrors: [{{destination: {{host: c}}}}]"),
        "http[0].mirrorPercentage",
        "conflict",
        "mirrorPercentage",
        "Say `percentage` in an item of `mirrors`.",
    ),
    "two shares of a mirror": (
        rule(f"{TO}, mirror: {{host: b}}, mirrorPercent: 5, mirrorPercentage: {{value: 5}}"),
        "http[0].mirrorPercent",
        "conflict",
        "mirrorPercent:",
        "Keep `mirrorPercentage`.",
    ),
    "more than all mirrored": (
        rule(f"{TO}, mirror: {{host: b}}, mirrorPercent: 101"),
        "http[0].mirrorPercent",
        "out-of-range",
        "101",
        "0 to 100",
    ),
    "a share of copies above the whole": (
        rule(f"{TO}, mirror: {{host: b}}, mirrorPercentage: {{value: 500000}}"),
        "http[0].mirrorPercentage.value",
        "out-of-range",
        "500000",
        "0.0 to 100.0",
    ),
    "a share of copies that is none": (
        rule(f"{TO}, mirrors: [{{destination: {{host: b}}, percentage: {{value: -5}}}}]"),
        "http[0].mirrors[0].percentage.value",
        "out-of-range",
        "-5",
        "0.0 to 100.0",
    ),
    "a share of copies that nobody counts": (
        rule(f"{TO}, mirrors: [{{destination: {{host: b}}, percentage: {{value: 0.00005}}}}]"),
        "http[0].mirrors[0].percentage.value",
        "out-of-range",
        "0.00005",
        "at least 0.0001",
    ),
    "fault beside a redirect": (
        rule("redirect: {uri: /x}, fault: {abort: {httpStatus: 500, percentage: {value: 1}}}"),
        "http[0].fault",
        "conflict",
        "fault",
        "nothing is forwarded",
    ),
    "timeout beside a redirect": (
        rule("redirect: {uri: /x}, timeout: 1s"),
        "http[0].timeout",
        "no-effect",
        "timeout",
        "nothing is forwarded",
    ),
    "copies beside a redirect": (
        rule("redirect: {uri: /x}, mirrors: [{destination: {host: b}}]"),
        "http[0].mirrors",
        "no-effect",
        "mirrors",
        "Remove it.",
    ),
    "retries beside an answer": (
        rule("directResponse: {status: 200}, retries: {attempts: 1}"),
        "http[0].retries",
        "no-effect",
        "retries",
        "nothing is forwarded",
    ),
    "pauses between no retries": (
        rule(f"{TO}, retries: {{backoff: 1s}}"),
        "http[0].retries.backoff",
        "conflict",
        "backoff",
        "without `attempts`",
    ),
    "endpoints of no retries": (
        rule(f"{TO}, retries: {{retryIgnorePreviousHosts: false}}"),
        "http[0].retries.retryIgnorePreviousHosts",
        "conflict",
        "retryIgnorePreviousHosts",
        "without `attempts`",
    ),
    "rewrite beside an answer": (
        rule("directResponse: {status: 200}, rewrite: {uri: /x}"),
        "http[0].rewrite",
        "conflict",
        "rewrite",
        "nothing is forwarded",
    ),
    "two ways to match": (
        rule(f"match: [{{uri: {{exact: /a, prefix: /b}}}}], {TO}"),
        "http[0].match[0].uri.prefix",
        "conflict",
        "prefix",
        "either `exact` or `prefix`",
    ),
    "empty prefix of a header": (
        rule(f'match: [{{headers: {{h: {{prefix: ""}}}}}}], {TO}'),
        "http[0].match[0].headers.h.prefix",
        "empty-match",
        '""',
        "matches everything",
    ),
    "regex of another engine": (
        rule(f'match: [{{uri: {{regex: "/a(?!b)"}}}}], {TO}'),
        "http[0].match[0].uri.regex",
        "bad-regex",
        '"/a(',
        "at character 3, RE2 has no look-ahead",
    ),
    "regex that the proxy reads otherwise": (
        rule(f"match: [{{uri: {{regex: '/\\p{{Greek}}+'}}}}], {TO}"),
        "http[0].match[0].uri.regex",
        "not-honoured",
        "'/\\p",
        "weft does not honour",
    ),
    "header's name": (
        rule(f"match: [{{headers: {{end user: {{exact: x}}}}}}], {TO}"),
        "http[0].match[0].headers.end user",
        "bad-header",
        "end user",
        "no header name",
    ),
    "claim of a token": (
        rule(f'match: [{{headers: {{"@request.auth.claims.sub": {{exact: x}}}}}}], {TO}'),
        "http[0].match[0].headers.@request.auth.claims.sub",
        "not-honoured",
        '"@request',
        "claims",
    ),
    "port of a match": (
        rule(f"match: [{{port: 70000}}], {TO}"),
        "http[0].match[0].port",
        "bad-port",
        "70000",
        "1 to 65535",
    ),
    "source namespace": (
        rule(f"match: [{{sourceNamespace: A_b}}], {TO}"),
        "http[0].match[0].sourceNamespace",
        "bad-name",
        "A_b",
        "a namespace",
    ),
    "source label": (
        rule(f"match: [{{sourceLabels: {{a: b c}}}}], {TO}"),
        "http[0].match[0].sourceLabels.a",
        "bad-label",
        "b c",
        "`b c`",
    ),
    "negative weight": (
        rule("route: [{destination: {host: a}, weight: -1}]"),
        "http[0].route[0].weight",
        "out-of-range",
        "-1",
        "whole number from 0",
    ),
    "weights of nothing": (
        rule("route: [{destination: {host: a}}, {destination: {host: c}}]"),
        "http[0].route",
        "bad-weights",
        "route",
        "add up to 0",
    ),
    "destination without a name": (
        rule('route: [{destination: {host: "*"}}]'),
        "http[0].route[0].destination.host",
        "bad-host",
        '"*"',
        "one host",
    ),
    "subset's name": (
        rule("route: [{destination: {host: a, subset: v_1}}]"),
        "http[0].route[0].destination.subset",
        "bad-name",
        "v_1",
        "`v_1`",
    ),
    "port of a destination": (
        rule("route: [{destination: {host: a, port: {number: 0}}}]"),
        "http[0].route[0].destination.port.number",
        "bad-port",
        "0}",
        "not 0",
    ),
    "empty redirect": (
        rule("redirect: {redirectCode: 302}"),
        "http[0].redirect",
        "missing-field",
        "redirect",
        "changes at",
    ),
    "redirect to two lines": (
        rule('redirect: {uri: "/x\\ny"}'),
        "http[0].redirect.uri",
        "bad-path",
        '"/x',
        "control character",
    ),
    "rewritten to two lines": (
        rule(f'rewrite: {{authority: "x\\ny"}}, {TO}'),
        "http[0].rewrite.authority",
        "bad-host",
        '"x',
        "control character",
    ),
    "redirect's code": (
        rule("redirect: {uri: /x, redirectCode: 200}"),
        "http[0].redirect.redirectCode",
        "out-of-range",
        "200",
        "301, 302, 303, 307 or 308, not 200",
    ),
    "redirect's code that proxies have not": (
        rule("redirect: {uri: /x, redirectCode: 304}"),
        "http[0].redirect.redirectCode",
        "out-of-range",
        "304",
        "301, 302, 303, 307 or 308, not 304",
    ),
    "redirect's scheme": (
        rule("redirect: {scheme: ftp}"),
        "http[0].redirect.scheme",
        "unknown-value",
        "ftp",
        "`http` or `https`",
    ),
    "two ports of a redirect": (
        rule("redirect: {port: 80, derivePort: FROM_REQUEST_PORT}"),
        "http[0].redirect.derivePort",
        "conflict",
        "derivePort",
        "not both",
    ),
    "prefix of a redirect without one": (
        rule("match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /b}"),
        "http[0].redirect.prefixRewrite",
        "conflict",
        "prefixRewrite",
        "by `prefix`",
    ),
    "answer's status": (
        rule("directResponse: {status: 99}"),
        "http[0].directResponse.status",
        "out-of-range",
        "99",
        "200 to 599",
    ),
    "code to retry on in other digits": (
        rule(f'retries: {{attempts: 1, retryOn: "٥٠٣"}}, {TO}'),
        "http[0].retries.retryOn",
        "unknown-value",
        '"٥',
        "no condition to retry on",
    ),
    "answer's bytes in another alphabet": (
        rule("directResponse: {status: 200, body: {bytes: héllo}}"),
        "http[0].directResponse.body.bytes",
        "wrong-type",
        "héllo",
        "base64",
    ),
    "answer's bytes": (
        rule('directResponse: {status: 200, body: {bytes: "?"}}'),
        "http[0].directResponse.body.bytes",
        "wrong-type",
        '"?"',
        "base64",
    ),
    "empty rewrite": (rule(f"rewrite: {{}}, {TO}"), "http[0].rewrite", "missing-field", "rewrite", "at least one of"),
    "two rewrites": (
        rule(f"rewrite: {{uri: /a, uriRegexRewrite: {{match: a, rewrite: b}}}}, {TO}"),
        "http[0].rewrite.uriRegexRewrite",
        "conflict",
        "uriRegexRewrite",
        "not both",
    ),
    "half a regex rewrite": (
        rule(f"rewrite: {{uriRegexRewrite: {{match: a}}}}, {TO}"),
        "http[0].rewrite.uriRegexRewrite",
        "missing-field",
        "uriRegexRewrite",
        "`rewrite` is missing",
    ),
    "authority set twice": (
        rule(f"rewrite: {{authority: c}}, headers: {{request: {{set: {{Host: d}}}}}}, {TO}"),
        "http[0].headers.request.set.Host",
        "conflict",
        "Host",
        "`rewrite.authority`",
    ),
    "pseudo header set": (
        rule(f'headers: {{request: {{set: {{":path": /}}}}}}, {TO}'),
        "http[0].headers.request.set.:path",
        "bad-header",
        '":path"',
        "request line",
    ),
    "host of an answer": (
        rule(f"headers: {{response: {{remove: [Host]}}}}, {TO}"),
        "http[0].headers.response.remove[0]",
        "bad-header",
        "Host",
        "cannot be edited",
    ),
    "length set": (
        rule(f"headers: {{request: {{set: {{Content-Length: '7'}}}}}}, {TO}"),
        "http[0].headers.request.set.Content-Length",
        "bad-header",
        "Content-Length",
        "each proxy writes it anew",
    ),
    "chunks added": (
        rule(f"headers: {{response: {{add: {{transfer-encoding: chunked}}}}}}, {TO}"),
        "http[0].headers.response.add.transfer-encoding",
        "bad-header",
        "transfer-encoding",
        "each proxy writes it anew",
    ),
    "connection removed": (
        rule("route: [{destination: {host: server}, headers: {request: {remove: [keep-alive, connection]}}}]"),
        "http[0].route[0].headers.request.remove[1]",
        "bad-header",
        "connection",
        "each proxy writes it anew",
    ),
    "single percent sign": (
        rule(f"headers: {{request: {{set: {{x: 5%}}}}}}, {TO}"),
        "http[0].headers.request.set.x",
        "bad-header",
        "5%",
        "`%%` is a percent sign",
    ),
    "variable that no proxy knows": (
        rule(f"headers: {{request: {{add: {{x: 'a%UPSTREAM_HOTS%'}}}}}}, {TO}"),
        "http[0].headers.request.add.x",
        "bad-header",
        "'a%",
        "no variable `%UPSTREAM_HOTS%`. Did you mean `%UPSTREAM_HOST%`?",
    ),
    "variable of one destination": (
        rule("route: [{destination: {host: a}, headers: {response: {set: {x: '%NOSUCH(a)%'}}}}]"),
        "http[0].route[0].headers.response.set.x",
        "bad-header",
        "'%NO",
        "no variable `%NOSUCH(a)%`",
    ),
    "variable without its header": (
        rule(f"headers: {{request: {{set: {{x: '%REQ%'}}}}}}, {TO}"),
        "http[0].headers.request.set.x",
        "bad-header",
        "'%REQ",
        "Write `%REQ(x-name)%`.",
    ),
    "origin that says nothing": (
        rule(f"corsPolicy: {{allowOrigins: [{{}}]}}, {TO}"),
        "http[0].corsPolicy.allowOrigins[0]",
        "missing-field",
        "{}",
        "given by `exact`, `prefix` or `regex`",
    ),
    "nameless query parameter": (
        rule(f"match: [{{queryParams: {{'': {{exact: a}}}}}}], {TO}"),
        "http[0].match[0].queryParams.",
        "bad-name",
        "'':",
        "name of a query parameter is empty",
    ),
    "group that the match has not": (
        rule(rf"rewrite: {{uriRegexRewrite: {{match: '/(a)/(?:b)/(?P<c>.*)', rewrite: '/\2\3'}}}}, {TO}"),
        "http[0].rewrite.uriRegexRewrite.rewrite",
        "bad-regex",
        r"'/\2",
        r"`\3` in `/\2\3` is neither a group of `match` nor a backslash. It has the groups `\1` to `\2`",
    ),
    "backslash at the end of a rewrite": (
        rule(rf"rewrite: {{uriRegexRewrite: {{match: /a, rewrite: '/b\'}}}}, {TO}"),
        "http[0].rewrite.uriRegexRewrite.rewrite",
        "bad-regex",
        r"'/b",
        "It has no group in parentheses",
    ),
    "retries that never are": (
        rule(f"retries: {{perTryTimeout: 1s}}, {TO}"),
        "http[0].retries.perTryTimeout",
        "conflict",
        "perTryTimeout",
        "`attempts`",
    ),
    "negative attempts": (
        rule(f"retries: {{attempts: -1}}, {TO}"),
        "http[0].retries.attempts",
        "out-of-range",
        "-1",
        "from 0",
    ),
    "retry condition": (
        rule(f"retries: {{attempts: 1, retryOn: 'retriable-4xx,gateway-eror'}}, {TO}"),
        "http[0].retries.retryOn",
        "unknown-value",
        "'retriable-4xx",
        "Did you mean `gateway-error`?",
    ),
    "retry conditions with spaces": (
        rule(f"retries: {{attempts: 1, retryOn: 'cancelled, reset'}}, {TO}"),
        "http[0].retries.retryOn",
        "unknown-value",
        "'cancelled",
        "without spaces",
    ),
    "retries of what may have been acted on": (
        rule(f"retries: {{attempts: 1, retryOn: 'connect-failure,reset'}}, {TO}"),
        "http[0].retries.retryOn",
        "unsafe-retries",
        "retryOn",
        "POST and PATCH as well. Leave `retryOn` out (by default POST and PATCH are repeated only where no program has seen",
    ),
    "pages of both lists": (
        rule(f"corsPolicy: {{allowOrigin: [a], allowOrigins: [{{exact: a}}]}}, {TO}"),
        "http[0].corsPolicy.allowOrigin",
        "conflict",
        "allowOrigin",
        "no effect beside it",
    ),
    "page whose origin is no regex": (
        rule(f"corsPolicy: {{allowOrigins: [{{regex: '('}}]}}, {TO}"),
        "http[0].corsPolicy.allowOrigins[0].regex",
        "bad-regex",
        "'('",
        "",
    ),
    "method of no HTTP": (
        rule(f"corsPolicy: {{allowMethods: [GET, get]}}, {TO}"),
        "http[0].corsPolicy.allowMethods[1]",
        "unknown-value",
        "get",
        "no method of HTTP",
    ),
    "header that is none": (
        rule(f"corsPolicy: {{allowHeaders: ['a b']}}, {TO}"),
        "http[0].corsPolicy.allowHeaders[0]",
        "bad-header",
        "'a b'",
        "",
    ),
    "part of a second": (
        rule(f"corsPolicy: {{maxAge: 1500ms}}, {TO}"),
        "http[0].corsPolicy.maxAge",
        "out-of-range",
        "1500ms",
        "whole seconds",
    ),
    "pages of a redirect": (
        rule("corsPolicy: {allowOrigins: [{exact: a}]}, redirect: {uri: /a}"),
        "http[0].corsPolicy",
        "no-effect",
        "corsPolicy",
        "no effect beside `redirect`",
    ),
    "empty fault": (rule(f"fault: {{}}, {TO}"), "http[0].fault", "missing-field", "fault", "`delay`, an `abort`"),
    "percentage beyond 100": (
        rule(f"fault: {{delay: {{fixedDelay: 1s, percentage: {{value: 100.5}}}}}}, {TO}"),
        "http[0].fault.delay.percentage.value",
        "out-of-range",
        "100.5",
        "0.0 to 100.0",
    ),
    "percentage too small to count": (
        rule(f"fault: {{delay: {{fixedDelay: 1s, percentage: {{value: 0.00001}}}}}}, {TO}"),
        "http[0].fault.delay.percentage.value",
        "out-of-range",
        "0.00001",
        "at least 0.0001",
    ),
    "old percentage": (
        rule(f"fault: {{delay: {{fixedDelay: 1s, percent: 101}}}}, {TO}"),
        "http[0].fault.delay.percent",
        "out-of-range",
        "101",
        "0 to 100",
    ),
    "delay without a length": (
        rule(f"fault: {{delay: {{percentage: {{value: 1}}}}}}, {TO}"),
        "http[0].fault.delay",
        "missing-field",
        "delay",
        "`fixedDelay` is missing",
    ),
    "fault of nobody": (
        rule(f"fault: {{abort: {{httpStatus: 500}}}}, {TO}"),
        "http[0].fault.abort",
        "no-effect",
        "abort",
        "nothing is aborted",
    ),
    "abort's status": (
        rule(f"fault: {{abort: {{httpStatus: 42, percentage: {{value: 1}}}}}}, {TO}"),
        "http[0].fault.abort.httpStatus",
        "out-of-range",
        "42",
        "200 to 599",
    ),
    "TCP rule without a route": (
        "{hosts: [b], tcp: [{match: [{port: 1}]}]}",
        "tcp[0]",
        "missing-action",
        "{match",
        "`route`",
    ),
    "rule after one for everything": (
        f"{{hosts: [b], http: [{{{TO}}}, {{name: late, {TO}}}]}}",
        "http[1]",
        "unreachable-rule",
        "{name: late",
        "line 4, column 27",
    ),
    "narrower prefix behind a wider": (
        f"{{hosts: [b], http: [{{match: [{{uri: {{prefix: /a}}}}], {TO}}},"
        f" {{match: [{{uri: {{prefix: /a/b}}}}, {{uri: {{prefix: /c}}}}], {TO}}}]}}",
        "http[1].match[0]",
        "ineffective-match",
        "{uri: {prefix: /a/b}",
        "never reached",
    ),
    "match that leaves out more than an earlier one": (
        two_matches("withoutHeaders: {x: {exact: bad}}", "withoutHeaders: {x: {prefix: b}, y: {}}}, {port: 1"),
        "http[1].match[0]",
        "ineffective-match",
        "{withoutHeaders: {x: {prefix: b}",
        "never reached",
    ),
}


@pytest.mark.parametrize(
    ("spec", "path", "code", "at", "words"), VIRTUAL_SERVICES.values(), ids=VIRTUAL_SERVICES.keys()
)
def test_rules_of_a_virtual_service(spec: str, path: str, code: str, at: str, words: str) -> None:
    check("VirtualService", spec, path, code, at, words)


def test_a_list_of_namespaces_to_export_to_is_checked() -> None:
    found = problems_of("VirtualService", f'{{hosts: [b], exportTo: ["*", "*"], http: [{{{TO}}}]}}')
    assert [(column, path) for column, path, _, _ in found] == [(20, "exportTo"), (36, "exportTo[1]")]
    assert "no other can stand beside it" in found[0][3]
    assert "says the same as the entry at line 4, column 31" in found[1][3]


FINE = {
    "header percent doubled": rule(f"headers: {{request: {{set: {{x: 5%%}}}}}}, {TO}"),
    "header variable": rule(
        f"headers: {{request: {{set: {{x: 'a %REQ(x-y?z)% %DOWNSTREAM_REMOTE_ADDRESS%'}}}}}}, {TO}"
    ),
    "header variable cut short": rule(f"headers: {{response: {{add: {{x: '%REQ(X-A):10% %PROTOCOL%'}}}}}}, {TO}"),
    "groups and backslashes": rule(
        rf"rewrite: {{uriRegexRewrite: {{match: '/(a)/(?:b)/(?P<c>.*)', rewrite: '/\0\1\2\\\\3'}}}}, {TO}"
    ),
    "host set once": rule(f"headers: {{request: {{set: {{Host: d}}}}}}, {TO}"),
    "empty prefix of a path": rule(f'match: [{{uri: {{prefix: ""}}}}], {TO}'),
    "status to retry on": rule(f"retries: {{attempts: 1, retryOn: '503,cancelled'}}, {TO}"),
    "retries of what is idempotent": rule(
        f"match: [{{method: {{exact: GET}}}}, {{method: {{exact: PUT}}}}], retries: {{attempts: 1, retryOn: '5xx'}}, {TO}"
    ),
    "pages of any origin": rule(
        f'corsPolicy: {{allowOrigins: [{{exact: "*"}}], allowMethods: ["*"], allowHeaders: ["*"], maxAge: 24h}}, {TO}'
    ),
    "no retries at all": rule(f"retries: {{attempts: 0}}, {TO}"),
    "no retries": rule(f"retries: {{attempts: 0}}, {TO}"),
    "weight 0 of one": rule("route: [{destination: {host: a}, weight: 0}, {destination: {host: c}, weight: 1}]"),
    "weights beyond 100": rule("route: [{destination: {host: a}, weight: 500}, {destination: {host: c}, weight: 1}]"),
    "address for a host": f"{{hosts: [10.1.2.3], http: [{{{TO}}}]}}",
    "presence of a header": rule(f"match: [{{headers: {{x: {{}}}}}}], {TO}"),
    "withoutHeaders with a star": rule(f'match: [{{withoutHeaders: {{x: {{regex: "*"}}}}}}], {TO}'),
    "match that leaves out less than an earlier one": two_matches(
        "withoutHeaders: {x: {}}", "withoutHeaders: {x: {exact: bad}}"
    ),
    "match that leaves out something else": two_matches(
        "withoutHeaders: {x: {exact: a}}", "withoutHeaders: {x: {exact: b}}"
    ),
    "match that leaves out nothing": two_matches("withoutHeaders: {x: {}}", "headers: {y: {}}"),
    "matches side by side": f"{{hosts: [b], http: [{{match: [{{uri: {{exact: /a}}}}], {TO}}},"
    f" {{match: [{{uri: {{prefix: /a}}}}], {TO}}}, {{{TO}}}]}}",
    "wider match with another header": "{hosts: [b], http: [{match: [{uri: {prefix: /}, headers: {x: {exact: y}}}],"
    f" {TO}}}, {{match: [{{uri: {{prefix: /a}}}}], {TO}}}]}}",
    "same path, other case rule": f"{{hosts: [b], http: [{{match: [{{uri: {{prefix: /a}}}}], {TO}}},"
    f" {{match: [{{uri: {{prefix: /a}}, ignoreUriCase: true}}], {TO}}}]}}",
}


@pytest.mark.parametrize("spec", FINE.values(), ids=FINE.keys())
def test_what_holds_is_not_refused(spec: str) -> None:
    assert problems_of("VirtualService", spec) == []


def sticky(inside: str) -> str:
    return f"{{host: a, trafficPolicy: {{loadBalancer: {{consistentHash: {{{inside}}}}}}}}}"


DESTINATION_RULES = {
    "host": ("{host: a_b}", "host", "bad-host", "a_b", "no DNS name"),
    "subset twice": (
        "{host: a, subsets: [{name: v1}, {name: v1, labels: {a: b}}]}",
        "subsets[1].name",
        "duplicate-subset",
        ">v1",
        "line 4, column 28",
    ),
    "subset's name": ("{host: a, subsets: [{name: v.1}]}", "subsets[0].name", "bad-name", "v.1", "`v.1`"),
    "subset's label": (
        "{host: a, subsets: [{name: v, labels: {x: -}}]}",
        "subsets[0].labels.x",
        "bad-label",
        "-}",
        "`-`",
    ),
    "empty policy": ("{host: a, trafficPolicy: {}}", "trafficPolicy", "missing-field", "trafficPolicy", "says nothing"),
    "port twice": (
        "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {}}, {port: {number: 1}, tls: {}}]}}",
        "trafficPolicy.portLevelSettings[1].port.number",
        "duplicate-port",
        ">1}",
        "already",
    ),
    "port missing": (
        "{host: a, trafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}}",
        "trafficPolicy.portLevelSettings[0]",
        "missing-field",
        "{tls",
        "`port` is missing",
    ),
    "negative limit": (
        "{host: a, trafficPolicy: {connectionPool: {http: {maxRetries: -1}}}}",
        "trafficPolicy.connectionPool.http.maxRetries",
        "out-of-range",
        "-1",
        "from 0",
    ),
    "empty pool": (
        "{host: a, trafficPolicy: {connectionPool: {}}}",
        "trafficPolicy.connectionPool",
        "missing-field",
        "connectionPool",
        "`tcp`, `http`",
    ),
    "ejection of more than all": (
        "{host: a, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}}",
        "trafficPolicy.outlierDetection.maxEjectionPercent",
        "out-of-range",
        "101",
        "0 to 100",
    ),
    "hash of a nameless cookie": (
        sticky("httpCookie: {name: '', ttl: 0s}"),
        "trafficPolicy.loadBalancer.consistentHash.httpCookie.name",
        "missing-field",
        "''",
        "name of the cookie is empty",
    ),
    "hash of nothing": (
        sticky("maglev: {}"),
        "trafficPolicy.loadBalancer.consistentHash",
        "missing-field",
        "consistentHash",
        "Add one of `httpHeaderName`",
    ),
    "hash of two things": (
        sticky("useSourceIp: true, httpHeaderName: x"),
        "trafficPolicy.loadBalancer.consistentHash.useSourceIp",
        "conflict",
        "useSourceIp",
        "either by `httpHeaderName`",
    ),
    "hash of a header without a name": (
        sticky("httpHeaderName: ''"),
        "trafficPolicy.loadBalancer.consistentHash.httpHeaderName",
        "missing-field",
        "''",
        "is empty",
    ),
    "ring and table": (
        sticky("useSourceIp: true, ringHash: {}, maglev: {}"),
        "trafficPolicy.loadBalancer.consistentHash.maglev",
        "conflict",
        "maglev",
        "on a ring or in a Maglev table",
    ),
    "ring of two sizes": (
        sticky("useSourceIp: true, minimumRingSize: 5, ringHash: {}"),
        "trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
        "conflict",
        "minimumRingSize",
        "has no effect here",
    ),
    "ring too large": (
        sticky("useSourceIp: true, ringHash: {minimumRingSize: 8388609}"),
        "trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize",
        "out-of-range",
        "8388609",
        "at most 8388608",
    ),
    "table of no prime size": (
        sticky("useSourceIp: true, maglev: {tableSize: 65536}"),
        "trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
        "out-of-range",
        "65536",
        "prime",
    ),
}


@pytest.mark.parametrize(
    ("spec", "path", "code", "at", "words"), DESTINATION_RULES.values(), ids=DESTINATION_RULES.keys()
)
def test_rules_of_a_destination_rule(spec: str, path: str, code: str, at: str, words: str) -> None:
    check("DestinationRule", spec, path, code, at, words)


def server(port: str = "{number: 80, name: h, protocol: HTTP}", hosts: str = '["*"]') -> str:
    return f"{{selector: {{a: b}}, servers: [{{port: {port}, hosts: {hosts}}}]}}"


GATEWAYS = {
    "no servers": ("{selector: {a: b}}", "", "missing-field", "{selector", "`servers`"),
    "no hosts": (server(hosts="[]"), "servers[0].hosts", "invalid", "hosts", "at least one host"),
    "short host": (server(hosts="[abc]"), "servers[0].hosts[0]", "bad-host", "abc", "full name"),
    "partial wildcard": (server(hosts='["*a.b"]'), "servers[0].hosts[0]", "bad-host", '"*a', "whole label"),
    "namespace of a host": (server(hosts="[A/b.c]"), "servers[0].hosts[0]", "bad-host", "A/b", "a namespace"),
    "port": (server("{number: 65536, name: h, protocol: HTTP}"), "servers[0].port.number", "bad-port", "65536", "1 to"),
    "protocol": (
        server("{number: 80, name: h, protocol: HTPT}"),
        "servers[0].port.protocol",
        "unknown-value",
        "HTPT",
        "Did you mean `HTTP`?",
    ),
    "name twice": (
        "{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: [a.b]},"
        " {port: {number: 81, name: h, protocol: HTTP}, hosts: [a.b]}]}",
        "servers[1].port.name",
        "duplicate-port",
        "h, protocol: HTTP}, hosts: [a.b]}]",
        "already used at line 4",
    ),
    "no selector": (
        '{servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ["*"]}]}',
        "",
        "no-selector",
        "{servers",
        "every gateway",
    ),
}


@pytest.mark.parametrize(("spec", "path", "code", "at", "words"), GATEWAYS.values(), ids=GATEWAYS.keys())
def test_rules_of_a_gateway(spec: str, path: str, code: str, at: str, words: str) -> None:
    check("Gateway", spec, path, code, at, words)


@pytest.mark.parametrize(
    ("pattern", "host", "covered"),
    [
        ("a", "a", True),
        ("*", "a.b", True),
        ("*.b", "a.b", True),
        ("*.b", "x.a.b", True),
        ("*.b", "*.a.b", True),
        ("*.a.b", "*.b", False),
        ("*.b", "b", False),
        ("a.b", "*.b", False),
    ],
)
def test_a_wildcard_covers_what_ends_alike(pattern: str, host: str, covered: bool) -> None:
    assert host_covers(pattern, host) is covered


PEER_AUTHENTICATION = {
    "portLevelMtls needs a selector": (
        "{portLevelMtls: {80: {mode: STRICT}}}",
        ("portLevelMtls", "missing-field", "portLevelMtls", "needs a selector"),
    ),
    "portLevelMtls names a port": (
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {}}",
        ("portLevelMtls", "missing-field", "portLevelMtls", "names no port"),
    ),
    "a port is a number": (
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}",
        ("portLevelMtls.http", "bad-port", "http", "is no port"),
    ),
    "a port is in range": (
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {65536: {mode: STRICT}}}",
        ("portLevelMtls.65536", "bad-port", "65536", "1 to 65535"),
    ),
    "a mode is a word of the API": (
        "{mtls: {mode: STRICKT}}",
        ("mtls.mode", "unknown-value", "STRICKT", "Did you mean `STRICT`?"),
    ),
    "labels are labels": (
        "{selector: {matchLabels: {app: 'a b'}}}",
        ("selector.matchLabels.app", "bad-label", "'a b'", "a b"),
    ),
}


@pytest.mark.parametrize(("spec", "expected"), PEER_AUTHENTICATION.values(), ids=PEER_AUTHENTICATION.keys())
def test_peer_authentication(spec: str, expected: tuple[str, str, str, str]) -> None:
    check("PeerAuthentication", spec, *expected)


def test_a_selector_in_the_root_namespace_is_refused() -> None:
    """Istio ignores such a policy without a word."""
    text = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: istio-system}\n"
        "spec: {selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}\n"
    )
    (problem,) = parse([("f", text)]).problems
    assert (str(problem.origin), problem.code) == ("f:4:8", "no-effect")
