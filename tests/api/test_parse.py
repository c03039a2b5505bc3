"""From texts to objects: the envelope, the spec, and every mistake at once with its place."""

from __future__ import annotations

from datetime import timedelta
from textwrap import dedent

import pytest
from pydantic import BaseModel

from weft.api.check import placeholder
from weft.api.kinds import KINDS, KNOWN, KUBERNETES_GATEWAY
from weft.api.meshfile import Mesh
from weft.api.networking import DestinationRule, VirtualService
from weft.api.parse import identify, parse
from weft.api.shapes import fields
from weft.model import ConfigKey, ConfigObject, Origin, Problem, Severity


def accepted(text: str) -> ConfigObject:
    result = parse([("f", dedent(text))])
    assert not result.problems, [str(problem) for problem in result.problems]
    assert len(result.objects) == 1
    return result.objects[0]


def brief(problems: tuple[Problem, ...]) -> list[tuple[int, int, str, str]]:
    return [(problem.origin.line, problem.origin.column, problem.path, problem.code) for problem in problems]


RULE = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
ENVELOPE = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\n"
ROUTE = "route: [{destination: {host: a}}]"


def in_spec(text: str, kind: str = "VirtualService") -> tuple[Problem, ...]:
    """Parse *text*, whose first line becomes line 5 of a document."""
    envelope = ENVELOPE.replace("VirtualService", kind)
    result = parse([("f", f"{envelope}spec:\n{text}")])
    return result.problems


def in_rule(text: str) -> tuple[Problem, ...]:
    """Parse *text* as the inside of one HTTP rule; its first line is line 8, its first column 5."""
    body = "".join(f"    {line}\n" for line in dedent(text).strip().splitlines())
    return in_spec(f"  hosts: [a]\n  http:\n  - name: r\n{body}")


def test_a_virtual_service_becomes_a_typed_object_with_places() -> None:
    item = accepted("""\
        apiVersion: networking.istio.io/v1beta1
        kind: VirtualService
        metadata:
          name: reviews
          namespace: shop
          labels: {team: books}
        spec:
          hosts: [reviews]
          http:
          - match:
            - headers:
                end-user: {exact: jason}
            timeout: 1.5s
            retries: {attempts: 3, perTryTimeout: 250ms}
            route:
            - destination: {host: reviews, subset: v2, port: {number: 9080}}
              weight: 100.0
        """)
    assert item.key == ConfigKey("VirtualService", "shop", "reviews")
    assert item.api_version == "networking.istio.io/v1beta1"
    assert item.labels == {"team": "books"}
    assert isinstance(item.spec, VirtualService)
    rule = item.spec.http[0]
    assert rule.match[0].headers["end-user"].exact == "jason"
    assert rule.timeout == timedelta(seconds=1.5)
    assert rule.retries is not None
    assert rule.retries.per_try_timeout == timedelta(milliseconds=250)
    assert rule.route[0].destination.port is not None
    assert rule.route[0].destination.port.number == 9080
    assert rule.route[0].weight == 100
    assert item.locate("spec", "http", 0, "timeout") == Origin("f", 13, 5)
    assert item.locate("spec", "http", 0, "route", 0) == Origin("f", 16, 7)
    assert item.locate("spec", "http", 0, "match", 0, "headers", "end-user") == Origin("f", 12, 9)


def test_absent_and_zero_are_told_apart() -> None:
    item = accepted(f"{ENVELOPE}spec: {{hosts: [a], http: [{{{ROUTE}}}]}}")
    rule = item.spec.http[0]
    assert rule.timeout is None
    assert rule.retries is None
    assert rule.route[0].weight == 0
    assert rule.route[0].destination.port is None


def test_null_is_absent() -> None:
    item = accepted(f"{ENVELOPE}spec: {{hosts: [a], gateways: null, http: [{{timeout: ~, match: , {ROUTE}}}]}}")
    assert item.spec.gateways == ()
    assert item.spec.http[0].timeout is None


def test_both_spellings_are_read_and_located_by_the_one_in_yaml() -> None:
    item = accepted(f"""\
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: x}}

        spec:
          hosts: [a]
          http:
          - retries:
              attempts: 1
              per_try_timeout: 2s
            match: [{{query_params: {{q: {{exact: "1"}}}}}}]
            {ROUTE}
        """)
    rule = item.spec.http[0]
    assert rule.retries.per_try_timeout == timedelta(seconds=2)
    assert rule.match[0].query_params["q"].exact == "1"
    assert item.locate("spec", "http", 0, "retries", "perTryTimeout").line == 10
    assert item.locate("spec", "http", 0, "match", 0, "queryParams", "q").column == 29


def test_both_spellings_at_once_are_a_mistake() -> None:
    problems = in_rule(f"retries: {{attempts: 1, perTryTimeout: 1s, per_try_timeout: 2s}}\n{ROUTE}")
    assert brief(problems) == [(8, 47, "spec.http[0].retries.per_try_timeout", "duplicate-key")]


def test_a_key_that_stands_twice_does_not_hide_the_other_mistakes() -> None:
    """The document yields no object, and everything that is wrong with it is said at once."""
    text = f"{ENVELOPE}spec:\n  hosts: [a]\n  hosts: [b]\n  http: [{{tiemout: 1s, {ROUTE}}}]\n"
    result = parse([("f", text)])
    assert result.objects == ()
    assert [problem.code for problem in result.problems] == ["duplicate-key", "unknown-field"]


def test_models_are_frozen() -> None:
    item = accepted(f"{ENVELOPE}spec: {{hosts: [a], http: [{{{ROUTE}}}]}}")
    with pytest.raises(ValueError, match="frozen"):
        item.spec.hosts = ()


def test_a_list_of_objects_is_read_as_its_items() -> None:
    text = dedent("""\
        apiVersion: v1
        kind: List
        items:
        - apiVersion: networking.istio.io/v1
          kind: DestinationRule
          metadata: {name: a}
          spec: {host: a}
        - apiVersion: networking.istio.io/v1
          kind: DestinationRule
          metadata: {name: b}
          spec: {host: b, subsets: [{nam: v1}]}
        """)
    result = parse([("f", text)])
    assert [item.key.name for item in result.objects] == ["a"]
    assert result.objects[0].locate("spec", "host") == Origin("f", 7, 10)
    assert brief(result.problems) == [(11, 30, "items[1].spec.subsets[0].nam", "unknown-field")]


def test_json_is_read_too() -> None:
    text = '{"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "a"},\n'
    text += ' "spec": {"host": "a"}}'
    item = accepted(text)
    assert isinstance(item.spec, DestinationRule)
    assert item.locate("spec", "host") == Origin("f", 2, 11)


def test_the_namespace_is_the_documents_or_the_default() -> None:
    text = f"{ENVELOPE}spec: {{hosts: [a], http: [{{{ROUTE}}}]}}"
    assert parse([("f", text)], default_namespace="shop").objects[0].key.namespace == "shop"
    assert parse([("f", text.replace("name: x", "name: x, namespace: y"))]).objects[0].key.namespace == "y"


def test_an_object_of_the_whole_mesh_is_in_no_namespace() -> None:
    text = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: x}\nspec: {controllerName: weft.dev/gateway-controller}"
    for confined in (False, True):
        result = parse([("f", text)], default_namespace="shop", confined=confined)
        assert ([item.key for item in result.objects], result.problems) == ([ConfigKey("GatewayClass", "", "x")], ())
    assert str(result.objects[0].key) == "GatewayClass x"
    named = text.replace("name: x", "name: x, namespace: y")
    assert identify([("f", named)], default_namespace="shop", confined=True)[0] == (ConfigKey("GatewayClass", "", "x"),)
    result = parse([("f", named)], default_namespace="shop", confined=True)
    assert [item.key for item in result.objects] == [ConfigKey("GatewayClass", "", "x")]
    assert [str(problem) for problem in result.problems] == [
        "f:3:21: warning: metadata.namespace: a GatewayClass is in no namespace: it is the whole mesh's. Remove it."
    ]
    assert result.errors == ()


def test_an_object_described_twice_warns_and_the_later_one_counts() -> None:
    text = f"{ENVELOPE}spec: {{hosts: [%s], http: [{{{ROUTE}}}]}}\n"
    result = parse([("one", text % "a"), ("two", text % "b")])
    assert [item.spec.hosts for item in result.objects] == [("b",)]
    assert [(str(problem.origin), problem.code, problem.severity) for problem in result.problems] == [
        ("two:3:12", "duplicate-object", Severity.WARNING)
    ]
    assert "one:1:1" in result.problems[0].message


def test_what_a_cluster_writes_is_named_and_left_out() -> None:
    text = dedent(f"""\
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata:
          name: x
          uid: 1234-5678
          creationTimestamp: null
          generation: 3
        spec: {{hosts: [a], http: [{{{ROUTE}}}]}}
        status: {{conditions: []}}
        """)
    result = parse([("f", text)])
    assert [(line, column, code) for line, column, _, code in brief(result.problems)] == [
        (5, 3, "ignored"),
    ]
    assert not result.errors
    assert "uid" in result.problems[0].message
    assert "generation" in result.problems[0].message
    assert result.objects[0].manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert result.objects[0].manifest["metadata"] == {"name": "x"}


ENVELOPES = {
    "no mapping": ("[1]", [(1, 1, "(document)", "wrong-type")], "mapping"),
    "unknown top-level key": (
        f"{ENVELOPE}specs: 1\nspec: {{hosts: [a], http: [{{{ROUTE}}}]}}",
        [(4, 1, "specs", "unknown-field")],
        "Did you mean `spec`?",
    ),
    "kind mistyped": (
        "apiVersion: networking.istio.io/v1\nkind: VirtualServce\nmetadata: {name: x}\n",
        [(2, 7, "kind", "unknown-kind")],
        "Did you mean `VirtualService`?",
    ),
    "kind and version mistyped": (
        "apiVersion: networking.istio.io/v9\nkind: VirtualServce\nmetadata: {name: x}\n",
        [(1, 13, "apiVersion", "unknown-version"), (2, 7, "kind", "unknown-kind")],
        "Did you mean `VirtualService`?",
    ),
    "kind and group mistyped": (
        "apiVersion: networking.istio.oi/v1\nkind: VirtualServce\nmetadata: {name: x}\n",
        [(1, 13, "apiVersion", "unknown-version"), (2, 7, "kind", "unknown-kind")],
        "Write one of networking.istio.io/v1,",
    ),
    "kind that is none in a version that is none": (
        "apiVersion: networking.istio.io/v9\nkind: Frobnicator\nmetadata: {name: x}\n",
        [(1, 13, "apiVersion", "unknown-version"), (2, 7, "kind", "unknown-kind")],
        "no version `networking.istio.io/v9`",
    ),
    "kind of someone else": (
        "apiVersion: cert-manager.io/v9\nkind: Certificate\nmetadata: {name: x}\n",
        [(2, 7, "kind", "unknown-kind")],
        "unknown kind `Certificate`",
    ),
    "kind mistyped without a version": (
        "kind: VirtualServce\nmetadata: {name: x}\n",
        [(1, 1, "apiVersion", "missing-field"), (1, 7, "kind", "unknown-kind")],
        "Did you mean `VirtualService`?",
    ),
    "kind is not honoured": (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {}\n",
        [(2, 7, "kind", "kind-not-honoured")],
        "weft does not honour kind `AuthorizationPolicy` yet.",
    ),
    "Gateway of the Gateway API": (
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: x}\nspec: {}\n",
        [(4, 1, "spec.gatewayClassName", "missing-field"), (4, 1, "spec.listeners", "missing-field")],
        "`gatewayClassName` is missing",
    ),
    "kind of the Gateway API": (
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: x}\nspec: {}\n",
        [(2, 7, "kind", "kind-not-honoured")],
        "weft does not honour kind `GRPCRoute` yet.",
    ),
    "kind of Kubernetes": (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n",
        [(2, 7, "kind", "unknown-kind")],
        "weft.yaml",
    ),
    "unsupported version": (
        ENVELOPE.replace("/v1", "/v2") + f"spec: {{hosts: [a], http: [{{{ROUTE}}}]}}",
        [(1, 13, "apiVersion", "unknown-version")],
        "networking.istio.io/v1, networking.istio.io/v1beta1, networking.istio.io/v1alpha3",
    ),
    "nothing but a spec": (
        "spec: {}\n",
        [(1, 1, "apiVersion", "missing-field"), (1, 1, "kind", "missing-field"), (1, 1, "metadata", "missing-field")],
        "`kind` is missing.",
    ),
    "spec missing": (ENVELOPE, [(1, 1, "spec", "missing-field")], "`spec` is missing."),
    "spec is a list": (f"{ENVELOPE}spec: [1]", [(4, 7, "spec", "wrong-type")], "wants a mapping, not a list"),
    "name missing": (
        RULE + "metadata: {}\nspec: {host: a}",
        [(3, 1, "metadata.name", "missing-field")],
        "`name` is missing.",
    ),
    "name not of RFC 1123": (
        RULE + "metadata: {name: My_Rule}\nspec: {host: a}",
        [(3, 18, "metadata.name", "bad-name")],
        "`My_Rule`",
    ),
    "name is a number": (
        RULE + "metadata: {name: 7}\nspec: {host: a}",
        [(3, 18, "metadata.name", "wrong-type")],
        'Put it in quotes: "7".',
    ),
    "generateName": (
        RULE + "metadata: {name: x, generateName: x-}\nspec: {host: a}",
        [(3, 21, "metadata.generateName", "not-honoured")],
        "Write `name`.",
    ),
    "unknown metadata": (
        RULE + "metadata: {name: x, label: {a: b}}\nspec: {host: a}",
        [(3, 21, "metadata.label", "unknown-field")],
        "Did you mean `labels`?",
    ),
    "label's value": (
        RULE + "metadata: {name: x, labels: {a: b c, -d: e}}\nspec: {host: a}",
        [(3, 33, "metadata.labels.a", "bad-label"), (3, 38, "metadata.labels.-d", "bad-label")],
        "`b c`",
    ),
}


@pytest.mark.parametrize(("text", "places", "words"), ENVELOPES.values(), ids=ENVELOPES.keys())
def test_the_envelope_is_checked(text: str, places: list[tuple[int, int, str, str]], words: str) -> None:
    result = parse([("f", text)])
    assert brief(result.problems) == places
    assert words in " ".join(str(problem) for problem in result.problems)
    assert not result.objects


SPECS = {
    # what is wrong: (inside of the rule, [(line, column, path below the rule, code)], words of the message or remedy)
    "unknown field": (
        f"match: [{{uri: {{prefx: /a}}}}]\n{ROUTE}",
        [(8, 20, "match[0].uri.prefx", "unknown-field")],
        "Did you mean `prefix`?",
    ),
    "field at the wrong place": (
        "route: [{destination: {host: a}, timeout: 1s}]",
        [(8, 38, "route[0].timeout", "unknown-field")],
        "`timeout` belongs to `spec.http[]`.",
    ),
    "string for a duration": (f"timeout: soon\n{ROUTE}", [(8, 14, "timeout", "bad-duration")], "such as 7s"),
    "number for a duration": (f"timeout: 7\n{ROUTE}", [(8, 14, "timeout", "bad-duration")], "`7s` or `7ms`"),
    "superscript for a duration": (f"timeout: ²\n{ROUTE}", [(8, 14, "timeout", "bad-duration")], "such as 7s"),
    "digits of another script": (f"timeout: ٣s\n{ROUTE}", [(8, 14, "timeout", "bad-duration")], "such as 7s"),
    "duration below a millisecond": (f"timeout: 999us\n{ROUTE}", [(8, 14, "timeout", "bad-duration")], "at least 1ms"),
    "negative duration": (f"timeout: -1s\n{ROUTE}", [(8, 14, "timeout", "bad-duration")], "not `-1s`"),
    "number for a string": (
        "route: [{destination: {host: a, subset: 1.10}}]",
        [(8, 45, "route[0].destination.subset", "wrong-type")],
        'Put it in quotes: "1.10".',
    ),
    "string for a number": (
        'route: [{destination: {host: a}, weight: "5"}]',
        [(8, 46, "route[0].weight", "wrong-type")],
        "Leave the quotes out.",
    ),
    "fraction for a whole number": (
        "route: [{destination: {host: a}, weight: 5.5}]",
        [(8, 46, "route[0].weight", "wrong-type")],
        "a whole number, not `5.5`",
    ),
    "hexadecimal number": (
        "route: [{destination: {host: a}, weight: 0x10}]",
        [(8, 46, "route[0].weight", "wrong-type")],
        "Write `16`",
    ),
    "binary number": (
        "route: [{destination: {host: a}, weight: 0b11}]",
        [(8, 46, "route[0].weight", "wrong-type")],
        "Write `3`",
    ),
    "octal number": (
        "route: [{destination: {host: a}, weight: 010}]",
        [(8, 46, "route[0].weight", "wrong-type")],
        "Write `8`",
    ),
    "number in groups": (
        "route: [{destination: {host: a}, weight: 1_000}]",
        [(8, 46, "route[0].weight", "wrong-type")],
        "Write `1000`",
    ),
    "truth for a number": (
        "route: [{destination: {host: a}, weight: true}]",
        [(8, 46, "route[0].weight", "wrong-type")],
        "a whole number, not `true`",
    ),
    "number too large": (
        "route: [{destination: {host: a}, weight: 3000000000}]",
        [(8, 46, "route[0].weight", "out-of-range")],
        "at most 2147483647",
    ),
    "word for a truth": (
        f"match: [{{ignoreUriCase: yes}}]\n{ROUTE}",
        [(8, 29, "match[0].ignoreUriCase", "wrong-type")],
        "Write `true`.",
    ),
    "mapping for a list": (
        "route: {destination: {host: a}}",
        [(8, 12, "route", "wrong-type")],
        "Begin each item with `- `.",
    ),
    "list for a mapping": ("redirect: [{uri: /a}]", [(8, 15, "redirect", "wrong-type")], "a mapping, not a list"),
    "string for a match": (
        f"match: [{{uri: /a}}]\n{ROUTE}",
        [(8, 19, "match[0].uri", "wrong-type")],
        "wants a mapping, not `/a`",
    ),
    "unknown word": (
        "redirect: {derivePort: FROM_REQUESTPORT}",
        [(8, 28, "redirect.derivePort", "unknown-value")],
        "Did you mean `FROM_REQUEST_PORT`?",
    ),
    "missing field": (
        "route: [{destination: {subset: v1}}]",
        [(8, 14, "route[0].destination.host", "missing-field")],
        "`host` is missing.",
    ),
    "null in a list": (
        f"match: [{{gateways: [null]}}]\n{ROUTE}",
        [(8, 25, "match[0].gateways[0]", "wrong-type")],
        "`null`",
    ),
    "not honoured": (
        f"match: [{{statPrefix: b}}]\n{ROUTE}",
        [(8, 14, "match[0].statPrefix", "not-honoured")],
        "weft does not honour `statPrefix` yet.",
    ),
    "not honoured, deeper": (
        f"fault: {{abort: {{grpcStatus: NOT_FOUND, percentage: {{value: 1}}}}}}\n{ROUTE}",
        [(8, 21, "fault.abort.grpcStatus", "not-honoured")],
        "httpStatus",
    ),
}


@pytest.mark.parametrize(("text", "places", "words"), SPECS.values(), ids=SPECS.keys())
def test_a_value_that_is_wrong_is_said_with_its_place(
    text: str, places: list[tuple[int, int, str, str]], words: str
) -> None:
    problems = in_rule(text)
    assert brief(problems) == [(line, column, f"spec.http[0].{path}", code) for line, column, path, code in places]
    assert words in " ".join(str(problem) for problem in problems)


def test_all_mistakes_of_all_documents_are_said_at_once() -> None:
    """Unknown fields, wrong types, broken rules and refused fields, in several documents of several files."""
    first = dedent("""\
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: a, nmespace: b}
        spec:
          hosts: [UPPER_case, reviews]
          http:
          - match: [{uri: {regex: "(?=x)"}}, {port: x}]
            timeout: 5
            route:
            - {destination: {host: reviews}, weight: fifty}
            - {destination: {host: "*"}, weight: -1}
            - {destination: {hots: reviews}}
          - fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}
        ---
        apiVersion: networking.istio.io/v1
        kind: Gateway
        metadata: {name: g}
        spec: {servers: [{port: {number: 0, name: http, protocol: HTPT}, hosts: [short]}], selector: {istio: x}}
        """)
    second = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s}\n---\na: b: c\n"
    result = parse([("one", first), ("two", second)])
    assert not result.objects
    assert [(str(problem.origin), problem.code) for problem in result.problems] == [
        ("one:3:21", "unknown-field"),
        ("one:5:11", "bad-host"),
        ("one:7:27", "bad-regex"),
        ("one:7:45", "wrong-type"),
        ("one:8:14", "bad-duration"),
        ("one:10:46", "wrong-type"),
        ("one:11:28", "bad-host"),
        ("one:11:42", "out-of-range"),
        ("one:12:22", "unknown-field"),
        ("one:13:5", "missing-action"),
        ("one:13:57", "out-of-range"),
        ("one:18:34", "bad-port"),
        ("one:18:59", "unknown-value"),
        ("one:18:74", "bad-host"),
        ("two:2:7", "kind-not-honoured"),
        ("two:5:5", "yaml-syntax"),
    ]


def test_what_follows_from_a_mistake_is_not_a_second_one() -> None:
    """A rule whose only route is wrong does have an action; weights of which one is wrong do have a sum."""
    assert [problem.code for problem in in_rule("route: [{destination: 7}]")] == ["wrong-type"]
    problems = in_rule("route: [{destination: {host: a}, weight: x}, {destination: {host: b}, weight: 0}]")
    assert [problem.code for problem in problems] == ["wrong-type"]


SAID_TOGETHER = {
    # kind, spec, what is said of it: paths below the spec, in order of place
    "a required value and its siblings": (
        "Gateway",
        '{selector: {a: b}, servers: [{port: {number: "80", name: x, protocol: HTPP}, hosts: ["a/b/c", "http://x"]}]}',
        ["servers[0].port.number", "servers[0].port.protocol", "servers[0].hosts[0]", "servers[0].hosts[1]"],
    ),
    "a required mapping and its siblings": (
        "VirtualService",
        "{hosts: [a], http: [{route: [{destination: 7, weight: -1}, {destination: {subset: A_b}, weight: 5}]}]}",
        [
            "http[0].route[0].destination",
            "http[0].route[0].weight",
            "http[0].route[1].destination.host",
            "http[0].route[1].destination.subset",
        ],
    ),
    "a required field of the spec itself": (
        "DestinationRule",
        "{host: 7, subsets: [{name: a b}], exportTo: ['*', x]}",
        ["host", "subsets[0].name", "exportTo", "exportTo[1]"],
    ),
    "all required fields that are missing": (
        "Gateway",
        "{servers: [{port: {}}], selector: {a: b c}}",
        [
            "servers[0].hosts",
            "servers[0].port.name",
            "servers[0].port.number",
            "servers[0].port.protocol",
            "selector.a",
        ],
    ),
    "a conflict beside a mistake in one of its parties": (
        "VirtualService",
        f"{{hosts: [a], http: [{{{ROUTE}, redirect: {{redirectCode: x, uri: /a}}}}]}}",
        ["http[0].redirect", "http[0].redirect.redirectCode"],
    ),
}


@pytest.mark.parametrize(("kind", "spec", "paths"), SAID_TOGETHER.values(), ids=SAID_TOGETHER.keys())
def test_a_mistake_hides_no_other(kind: str, spec: str, paths: list[str]) -> None:
    """What cannot be left out is replaced by a placeholder, so that the rules still speak about all around it."""
    problems = in_spec(f"  {spec}\n", kind)
    assert sorted(problem.path for problem in problems) == sorted(f"spec.{path}" for path in paths)


SAID_ONCE = {
    # inside of the one rule, or of two: what is wrong alone, of which something else seems to follow
    "no retries without attempts": f"retries: {{attempts: x, retryOn: 5xx}}, {ROUTE}",
    "no retries without attempts, misspelt": f"retries: {{attemps: 2, retryOn: 5xx}}, {ROUTE}",
    "no action": "rout: [{destination: {host: a}}]",
    "no action, with the destination at the wrong depth": "destination: {host: a}",
    "nothing to redirect to": "redirect: {authorty: a}",
    "no status to abort with": f"fault: {{abort: {{httpStatu: 500, percentage: {{value: 1}}}}}}, {ROUTE}",
    "no share to abort": f"fault: {{abort: {{httpStatus: 500, percentge: {{value: 1}}}}}}, {ROUTE}",
    "no host": "route: [{destination: {hots: a}}]",
    "no weights": "route: [{destination: {host: a}, wieght: 1}, {destination: {host: b}}]",
    "no prefix to rewrite": "redirect: {prefixRewrite: /b}, match: [{uri: {prefx: /a}}]",
    "later rule out of reach": f"match: [{{uri: {{prefx: /a}}}}], {ROUTE}}}, {{match: [{{uri: {{prefix: /b}}}}], {ROUTE}",
    "later rule out of reach of one without a match": f"mtch: [{{uri: {{prefix: /a}}}}], {ROUTE}}}, {{{ROUTE}",
}


@pytest.mark.parametrize("inside", SAID_ONCE.values(), ids=SAID_ONCE.keys())
def test_a_mistake_is_not_said_again_as_its_consequence(inside: str) -> None:
    problems = in_spec(f"  {{hosts: [a], http: [{{{inside}}}]}}\n")
    assert [problem.code for problem in problems] in (["unknown-field"], ["wrong-type"])


SAID_ONCE_OF_OTHERS = {
    "gateway's host": ("Gateway", '{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: [a/b/c]}]}'),
    "gateway's selector": ("Gateway", '{selectr: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ["*"]}]}'),
    "every host, of a gateway": ("VirtualService", f'{{hosts: ["*"], gatways: [g], http: [{{{ROUTE}}}]}}'),
    "hosts": ("VirtualService", f"{{host: [a], http: [{{{ROUTE}}}]}}"),
    "rules": ("VirtualService", f"{{hosts: [a], htpp: [{{{ROUTE}}}]}}"),
    "filter of no type": (
        "HTTPRoute",
        "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}], filters:"
        " [{type: 7, urlRewrite: {hostname: a}}]}]}",
    ),
    "path of no type": (
        "HTTPRoute",
        "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}], matches: [{path: {typ:"
        " RegularExpression, value: '.*'}}]}]}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "spec"), SAID_ONCE_OF_OTHERS.values(), ids=SAID_ONCE_OF_OTHERS.keys())
def test_a_mistake_of_any_kind_is_said_once(kind: str, spec: str) -> None:
    envelope = f"apiVersion: {KNOWN[kind].api_versions[0]}\nkind: {kind}\nmetadata: {{name: x}}\n"
    assert len(parse([("f", f"{envelope}spec: {spec}\n")]).problems) == 1


def _models(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    if model not in seen:
        seen.add(model)
        for item in fields(model).values():
            if item.message is not None:
                _models(item.message, seen)
    return seen


@pytest.mark.parametrize("root", [*(kind.model for kind in KINDS.values()), Mesh], ids=lambda model: model.__name__)
def test_for_every_required_field_something_can_stand(root: type[BaseModel]) -> None:
    for model in _models(root, set()):
        model.model_validate(placeholder(model))


def test_a_document_with_an_error_yields_no_object_and_the_others_do() -> None:
    good = f"{ENVELOPE}spec: {{hosts: [a], http: [{{{ROUTE}}}]}}\n"
    result = parse([("f", f"{good}---\n{good.replace('name: x', 'name: y').replace('hosts', 'host')}")])
    assert [item.key.name for item in result.objects] == ["x"]
    assert [problem.path for problem in result.errors] == ["spec.host"]


def test_warnings_alone_do_not_refuse() -> None:
    rule = f"{{{ROUTE}}}"
    result = parse([("f", f"{ENVELOPE}spec: {{hosts: [a], http: [{rule}, {rule}]}}")])
    assert [problem.severity for problem in result.problems] == [Severity.WARNING]
    assert len(result.objects) == 1


HONOURED_VALUES = {
    "exportTo to everybody": ("VirtualService", f'{{hosts: [a], exportTo: ["*"], http: [{{{ROUTE}}}]}}', None),
    "exportTo here": ("VirtualService", f'{{hosts: [a], exportTo: ["."], http: [{{{ROUTE}}}]}}', "exportTo[0]"),
    "tls rules": (
        "VirtualService",
        "{hosts: [a], tls: [{match: [{sniHosts: [a]}], route: [{destination: {host: a}}]}]}",
        "tls",
    ),
    "round robin": ("DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}", None),
    "pass through": (
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}",
        "trafficPolicy.loadBalancer.simple",
    ),
    "consistent hash": (
        "DestinationRule",
        "{host: a, subsets: [{name: v1, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}]}",
        None,
    ),
    "balancing by utilisation": (
        "DestinationRule",
        "{host: a, subsets: [{name: v1, trafficPolicy: {loadBalancer: {backendUtilization: {}}}}]}",
        "subsets[0].trafficPolicy.loadBalancer.backendUtilization",
    ),
    "Istio's mutual TLS": ("DestinationRule", "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}", None),
    "TLS of one's own": (
        "DestinationRule",
        "{host: a, trafficPolicy: {tls: {mode: SIMPLE}}}",
        "trafficPolicy.tls.mode",
    ),
    "HTTP server": (
        "Gateway",
        '{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: http}, hosts: ["*"]}]}',
        None,
    ),
    "HTTPS server": (
        "Gateway",
        '{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTPS}, hosts: ["*"], tls: {}}]}',
        "servers[0].port.protocol",
    ),
}


@pytest.mark.parametrize(("kind", "spec", "refused"), HONOURED_VALUES.values(), ids=HONOURED_VALUES.keys())
def test_only_values_that_are_honoured_are_taken(kind: str, spec: str, refused: str | None) -> None:
    problems = in_spec(f"  {spec}\n", kind)
    assert [problem.path for problem in problems if problem.code == "not-honoured"][:1] == (
        [f"spec.{refused}"] if refused else []
    )
    assert bool(problems) == bool(refused)


def test_every_kind_is_read_in_each_of_its_versions() -> None:
    specs = {
        "VirtualService": f"{{hosts: [a], http: [{{{ROUTE}}}]}}",
        "DestinationRule": "{host: a}",
        "Gateway": '{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ["*"]}]}',
        "PeerAuthentication": "{mtls: {mode: STRICT}}",
        "HTTPRoute": "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}]}]}",
        KUBERNETES_GATEWAY: "{gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}",
        "GatewayClass": "{controllerName: weft.dev/gateway-controller}",
        "ReferenceGrant": '{from: [{group: g, kind: HTTPRoute, namespace: n}], to: [{group: "", kind: Service}]}',
        "Service": "{selector: {app: a}, ports: [{port: 80}]}",
    }
    assert specs.keys() == KINDS.keys()
    for name, spec in specs.items():
        kind = KINDS[name]
        for version in kind.api_versions:
            item = accepted(f"apiVersion: {version}\nkind: {kind.kind}\nmetadata: {{name: x}}\nspec: {spec}")
            assert item.key.kind == name
            assert kind.model is not None
            assert isinstance(item.spec, kind.model)


@pytest.mark.parametrize("name", [name for name, kind in KNOWN.items() if kind.model is None])
def test_a_kind_that_is_not_honoured_is_refused_by_name(name: str) -> None:
    text = f"apiVersion: {KNOWN[name].api_versions[0]}\nkind: {KNOWN[name].kind}\nmetadata: {{name: x}}\nspec: {{}}\n"
    result = parse([("f", text)])
    assert brief(result.problems) == [(2, 7, "kind", "kind-not-honoured")]
    assert name in result.problems[0].message
