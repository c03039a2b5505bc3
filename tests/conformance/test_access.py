"""
RBAC and CORS: one static bootstrap, read by weft-proxy and by a stock Envoy, and a table of requests that both answer alike.

What is compared is all that a client and an operator see: status, the headers that CORS is about, the body of a local
answer, what the upstream was sent, `response_code_details`, dynamic metadata of shadow rules, and the counters.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509

from tests.conformance.certificates import Authority, client_context
from tests.conformance.proxies import LIMIT, TYPES
from tests.ports import free_port
from weft.agent import sockets
from weft.agent.data_planes import DATA_PLANES
from weft.agent.data_planes.weft_proxy import WeftProxy
from weft.data_plane import ENVOY

pytestmark = pytest.mark.conformance

RBAC = "envoy.filters.http.rbac"
CORS = "envoy.filters.http.cors"
SPIFFE = "spiffe://cluster.local/ns/{}/sa/{}"
LISTENERS = ("requests", "pages", "identities", "connections", "connections-of-http", "bytes")
SHADOW_KEYS = ("dry_shadow_engine_result", "dry_shadow_effective_policy_id", "shadow_engine_result")

# ------------------------------------------------------------------------------------------------------ certificates


@dataclass(frozen=True)
class Identities:
    """The server's files, and clients by the kind of name that their certificate has; `nobody` shows none."""

    server: dict[str, dict[str, str]]
    clients: dict[str, ssl.SSLContext]


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    uri = x509.UniformResourceIdentifier
    files = {
        "shop": authority.issue("shop", uri(SPIFFE.format("shop", "web")), x509.DNSName("web.example")),
        "bank": authority.issue("bank", uri(SPIFFE.format("bank", "web"))),
        "two": authority.issue("two", uri("spiffe://other/x"), uri(SPIFFE.format("shop", "api"))),
        "dns": authority.issue("dns", x509.DNSName("web.example")),
        "subject": authority.issue("subject"),
        "nobody": None,
    }
    clients = {name: client_context(authority, identity) for name, identity in files.items()}
    chain, key = authority.issue("server", x509.DNSName("localhost"))
    parts = {"certificate_chain": chain, "private_key": key, "trusted_ca": authority.roots}
    return Identities({part: {"inline_string": file.read_text()} for part, file in parts.items()}, clients)


# ------------------------------------------------------------------------------------------------------ configuration


def exact(text: str) -> dict[str, Any]:
    return {"exact": text}


def policy(permission: dict[str, Any], principal: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"permissions": [permission], "principals": [principal or {"any": True}]}


def path(matcher: dict[str, Any]) -> dict[str, Any]:
    return {"url_path": {"path": matcher}}


def header(name: str, **matcher: Any) -> dict[str, Any]:
    return {"header": {"name": name, **(matcher or {"present_match": True})}}


def name_is(**matcher: Any) -> dict[str, Any]:
    return {"authenticated": {"principal_name": matcher}}


def cidr(address: str, length: int) -> dict[str, Any]:
    return {"address_prefix": address, "prefix_len": length}


def rbac(name: str = RBAC, **content: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{TYPES}.filters.http.rbac.v3.RBAC", **content}}


def rbac_here(**content: Any) -> dict[str, Any]:
    return {"@type": f"{TYPES}.filters.http.rbac.v3.RBACPerRoute", "rbac": content}


def cors_here(**content: Any) -> dict[str, Any]:
    return {"@type": f"{TYPES}.filters.http.cors.v3.CorsPolicy", **content}


DISABLED = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
CORS_FILTER = {"name": CORS, "typed_config": {"@type": f"{TYPES}.filters.http.cors.v3.Cors"}}
FAULT_FILTER = {
    "name": "envoy.filters.http.fault",
    "typed_config": {
        "@type": f"{TYPES}.filters.http.fault.v3.HTTPFault",
        "abort": {"http_status": 418, "percentage": {"numerator": 100}},
        "headers": [{"name": "x-fault", "present_match": True}],
    },
}
ROUTER = {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}


def refusals() -> dict[str, Any]:
    """Rules that refuse: a policy of each kind of permission."""
    return {
        "action": "DENY",
        "policies": {
            "a policy with spaces": policy(path(exact("/spaces"))),
            "and": policy(
                {"and_rules": {"rules": [path({"prefix": "/and"}), header(":method", string_match=exact("POST"))]}}
            ),
            "or": policy({"or_rules": {"rules": [path(exact("/or/1")), path(exact("/or/2"))]}}),
            "not": policy({"and_rules": {"rules": [path({"prefix": "/not"}), {"not_rule": header("x-let-me-in")}]}}),
            "suffix": policy(path({"suffix": ".secret"})),
            "contains": policy(path({"contains": "//"})),
            "regex": policy(path({"safe_regex": {"regex": "/re/[0-9]+"}})),
            "any-case": policy(path({"exact": "/CASE", "ignore_case": True})),
            "host": policy(path(exact("/host")), header(":authority", string_match=exact("evil.example"))),
            "host-by-name": policy(path(exact("/host-by-name")), header("host", string_match=exact("evil.example"))),
            "query-is-no-path": policy(path(exact("/query?admin"))),
            "missing": policy(path(exact("/missing")), header("x-missing", present_match=False)),
            "twice": policy(path(exact("/twice")), header("x-twice", string_match=exact("a,b"))),
            "client": policy(path(exact("/client")), {"remote_ip": cidr("203.0.113.0", 24)}),
            "direct": policy(path(exact("/direct")), {"direct_remote_ip": cidr("127.0.0.0", 8)}),
            "source": policy(path(exact("/source")), {"source_ip": cidr("127.0.0.0", 8)}),
            "elsewhere": policy(path(exact("/elsewhere")), {"source_ip": cidr("10.0.0.0", 8)}),
            "to-loopback": policy(
                {"and_rules": {"rules": [path(exact("/to-loopback")), {"destination_ip": cidr("127.0.0.1", 32)}]}}
            ),
            "to-other-port": policy({"and_rules": {"rules": [path(exact("/to-other-port")), {"destination_port": 1}]}}),
            "to-any-port": policy(
                {
                    "and_rules": {
                        "rules": [path(exact("/to-any-port")), {"destination_port_range": {"start": 2, "end": 65536}}]
                    }
                }
            ),
            "secure": policy(path(exact("/secure")), {"authenticated": {}}),
            "not-secure": policy(path(exact("/plain")), {"not_id": {"authenticated": {}}}),
            "both": policy(path(exact("/both")), {"and_ids": {"ids": [header("x-one"), {"not_id": header("x-two")}]}}),
            "either": policy(path(exact("/either")), {"or_ids": {"ids": [header("x-one"), header("x-two")]}}),
            "range": policy(path(exact("/range")), header("x-number", range_match={"start": 1, "end": 5})),
            "z-never-seen": policy(path({"prefix": "/spaces"})),
        },
    }


def of_requests() -> list[dict[str, Any]]:
    """Virtual hosts whose levels have rules of their own."""
    go = {"cluster": "up"}
    teapot = {"status": 418, "body": {"inline_string": "short"}}
    deny = {"rules": {"action": "DENY", "policies": {"by-route": policy({"any": True})}}}
    allow_alice = {
        "rules": {
            "action": "ALLOW",
            "policies": {"alice": policy({"any": True}, header("x-user", string_match=exact("alice")))},
        }
    }
    routes = [
        {"match": {"prefix": "/route-refuses"}, "route": go, "typed_per_filter_config": {RBAC: rbac_here(**deny)}},
        {
            "match": {"prefix": "/route-allows"},
            "route": go,
            "typed_per_filter_config": {RBAC: rbac_here(**allow_alice)},
        },
        {"match": {"prefix": "/route-frees"}, "route": go, "typed_per_filter_config": {RBAC: rbac_here()}},
        {"match": {"prefix": "/off"}, "route": go, "typed_per_filter_config": {RBAC: DISABLED}},
        {"match": {"prefix": "/nobody-allowed"}, "route": go, "typed_per_filter_config": {RBAC: rbac_here(rules={})}},
        {"match": {"prefix": "/second"}, "route": go, "typed_per_filter_config": {"second": rbac_here(**deny)}},
        {"match": {"prefix": "/teapot"}, "direct_response": teapot},
        {"match": {"prefix": "/moved"}, "redirect": {"path_redirect": "/"}},
        {
            "match": {"prefix": "/shadow-of-route"},
            "route": go,
            "typed_per_filter_config": {
                "shadow": rbac_here(shadow_rules={"action": "DENY", "policies": {"of-route": policy({"any": True})}})
            },
        },
        {"match": {"prefix": "/"}, "route": go},
    ]
    strict = {"name": "strict", "domains": ["strict"], "routes": [{"match": {"prefix": "/"}, "route": go}]}
    strict["typed_per_filter_config"] = {RBAC: rbac_here(**allow_alice)}
    return [{"name": "all", "domains": ["web", "evil.example", "127.0.0.1"], "routes": routes}, strict]


def of_pages() -> list[dict[str, Any]]:
    """Virtual hosts with CORS policies on one level and another."""
    go = {"cluster": "up"}
    away = [
        {
            "header": {"key": "access-control-allow-origin", "value": "by-route"},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }
    ]
    shop = [
        exact("https://shop.example"),
        {"suffix": ".shop.example"},
        {"safe_regex": {"regex": "https://s[0-9]\\.example"}},
    ]
    routes: list[dict[str, Any]] = [
        {
            "match": {"prefix": "/all"},
            "typed_per_filter_config": {
                CORS: cors_here(
                    allow_origin_string_match=shop,
                    allow_methods="GET,POST",
                    allow_headers="x-a,x-b",
                    expose_headers="x-seen",
                    max_age="600",
                    allow_credentials=True,
                    allow_private_network_access=True,
                )
            },
        },
        {
            "match": {"prefix": "/anyone"},
            "typed_per_filter_config": {
                CORS: cors_here(allow_origin_string_match=[exact("*")], allow_methods="*", allow_headers="*")
            },
        },
        {
            "match": {"prefix": "/ignored"},
            "typed_per_filter_config": {
                CORS: cors_here(
                    allow_origin_string_match=shop, allow_methods="GET", forward_not_matching_preflights=False
                )
            },
        },
        {
            "match": {"prefix": "/off"},
            "typed_per_filter_config": {CORS: cors_here(filter_enabled={"default_value": {"numerator": 0}})},
        },
        {
            "match": {"prefix": "/watched"},
            "typed_per_filter_config": {
                CORS: cors_here(
                    filter_enabled={"default_value": {"numerator": 0}},
                    shadow_enabled={"default_value": {"numerator": 100}},
                )
            },
        },
        {"match": {"prefix": "/disabled"}, "typed_per_filter_config": {CORS: DISABLED}},
        {"match": {"prefix": "/inherits"}, "typed_per_filter_config": {CORS: cors_here(allow_methods="PUT")}},
        {"match": {"prefix": "/edited"}, "response_headers_to_add": away, "request_headers_to_remove": ["origin"]},
        {"match": {"prefix": "/nowhere"}, "route": {"cluster": "nowhere"}},
        {
            "match": {"prefix": "/weighted"},
            "route": {
                "weighted_clusters": {
                    "clusters": [
                        {
                            "name": "up",
                            "weight": 1,
                            "typed_per_filter_config": {CORS: cors_here(expose_headers="x-of-cluster")},
                        }
                    ]
                }
            },
        },
        {"match": {"prefix": "/"}},
    ]
    for route in routes:
        route.setdefault("route", go)
    routes.insert(0, {"match": {"prefix": "/teapot"}, "direct_response": {"status": 418}})
    own = cors_here(allow_origin_string_match=[exact("https://host.example")], allow_methods="GET", max_age="5")
    bare = {"name": "bare", "domains": ["bare"], "routes": [{"match": {"prefix": "/"}, "route": go}]}
    return [{"name": "all", "domains": ["*"], "routes": routes, "typed_per_filter_config": {CORS: own}}, bare]


NONE = "%REQ(X-NONE)%"
SHAPES: dict[str, Any] = {
    "list": ["%RESPONSE_CODE%", f"a %REQ(:METHOD)% b {NONE}", 3, -1.5, 12345678901, None, True, {"x": NONE}, [NONE]],
    "object": {"number": "%RESPONSE_CODE%", "list": ["%PROTOCOL%", NONE], "none": None},
    "empty": [{}, [], "", {"x": {}}, {"list": []}],
    "gone": {"x": NONE, "y": {"z": None}},
    "several": f"{NONE}{NONE}",
}
"""What is in every record beside what is asked for: commands wherever a value can stand."""


class Configuration:
    """The bootstrap of one proxy, and where its listeners are."""

    def __init__(self, folder: Path, upstream: int, server: dict[str, dict[str, str]]) -> None:
        self.folder = folder
        self.admin = folder / "admin.sock"
        self.log = folder / "access.log"
        self.omitting = folder / "omitting.log"
        self.ports = {name: free_port() for name in LISTENERS}
        self.server = server
        shadow = {"action": "DENY", "policies": {"shadowed": policy(path({"prefix": "/shadow"}))}}
        by_name = {
            "action": "ALLOW",
            "policies": {
                "shop": policy(path({"prefix": "/shop"}), name_is(prefix="spiffe://cluster.local/ns/shop/")),
                "dns": policy(path({"prefix": "/dns"}), name_is(exact="web.example")),
                "subject": policy(path({"prefix": "/subject"}), name_is(exact="CN=subject,O=Weft\\, Inc.")),
                "anybody": policy(path({"prefix": "/anybody"}), {"authenticated": {}}),
                "sni": policy(
                    {"and_rules": {"rules": [path({"prefix": "/sni"}), {"requested_server_name": exact("localhost")}]}}
                ),
                "empty": policy(path({"prefix": "/empty"}), name_is(exact="")),
                "connection": policy({"requested_server_name": {"prefix": "local"}}, name_is(suffix="/sa/api")),
            },
        }
        connections = {"action": "ALLOW", "policies": {"shop": policy({"any": True}, name_is(contains="/ns/shop/"))}}
        shadow_connections = {
            "action": "DENY",
            "policies": {
                "everybody": policy({"destination_ip": cidr("127.0.0.0", 8)}, {"remote_ip": cidr("127.0.0.1", 32)})
            },
        }
        network = {
            "name": "envoy.filters.network.rbac",
            "typed_config": {
                "@type": f"{TYPES}.filters.network.rbac.v3.RBAC",
                "stat_prefix": "mesh.",
                "rules": connections,
                "shadow_rules": shadow_connections,
                "shadow_rules_stat_prefix": "dry_",
            },
        }
        plain = {"action": "DENY", "policies": {"no path": policy(path({"prefix": "/"})), "all": policy({"any": True})}}
        closing = {
            "name": "envoy.filters.network.rbac",
            "typed_config": {
                "@type": f"{TYPES}.filters.network.rbac.v3.RBAC",
                "stat_prefix": "closing",
                "rules": plain,
            },
        }
        first = [
            rbac(rules=refusals()),
            rbac(
                "second",
                rules_stat_prefix="second_",
                rules={"action": "LOG", "policies": {"log": policy({"any": True})}},
            ),
            rbac("shadow", shadow_rules=shadow, shadow_rules_stat_prefix="dry_"),
        ]
        trusting = {"use_remote_address": True, "xff_num_trusted_hops": 1}
        self.listeners = [
            self.listener("requests", [self.manager("requests", [*first, ROUTER], of_requests(), **trusting)]),
            self.listener(
                "pages",
                [
                    self.manager(
                        "pages",
                        [
                            CORS_FILTER,
                            FAULT_FILTER,
                            rbac(rules={"action": "DENY", "policies": {"late": policy(header("x-late"))}}),
                            ROUTER,
                        ],
                        of_pages(),
                    )
                ],
            ),
            self.listener(
                "identities", [self.manager("identities", [rbac(rules=by_name), ROUTER], of_requests())], tls=True
            ),
            self.listener("connections", [network, self.tcp("connections")], tls=True),
            self.listener(
                "connections-of-http", [network, self.manager("connections-of-http", [ROUTER], of_requests())], tls=True
            ),
            self.listener("bytes", [closing, self.tcp("bytes")]),
        ]
        endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}}}
        cluster = {
            "name": "up",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
        nowhere = {"name": "nowhere", "type": "STATIC", "load_assignment": {"cluster_name": "nowhere", "endpoints": []}}
        content = {
            "node": {"id": "access", "cluster": "access"},
            "admin": {"address": {"pipe": {"path": str(self.admin)}}},
            "static_resources": {"listeners": self.listeners, "clusters": [cluster, nowhere]},
        }
        self.path = folder / "bootstrap.json"
        self.path.write_text(json.dumps(content))

    def listener(self, name: str, filters: list[dict[str, Any]], *, tls: bool = False) -> dict[str, Any]:
        chain: dict[str, Any] = {"filters": filters}
        if tls:
            certificate = {part: self.server[part] for part in ("certificate_chain", "private_key")}
            roots = {"trusted_ca": self.server["trusted_ca"]}
            # Who shows a certificate must have a good one, and nobody must.
            chain["transport_socket"] = {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": {"tls_certificates": [certificate], "validation_context": roots},
                    "require_client_certificate": False,
                },
            }
        address = {"socket_address": {"address": "127.0.0.1", "port_value": self.ports[name]}}
        # Without it Envoy does not know the name that the client asked for.
        inspector = {
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {"@type": f"{TYPES}.filters.listener.tls_inspector.v3.TlsInspector"},
        }
        return {
            "name": name,
            "address": address,
            "listener_filters": [inspector] if tls else [],
            "filter_chains": [chain],
        }

    def access_log(self, name: str, namespace: str) -> list[dict[str, Any]]:
        record = {
            "case": "%REQ(X-CASE)%",
            "listener": name,
            "path": "%REQ(:PATH)%",
            "status": "%RESPONSE_CODE%",
            "flags": "%RESPONSE_FLAGS%",
            "details": "%RESPONSE_CODE_DETAILS%",
            "termination": "%CONNECTION_TERMINATION_DETAILS%",
            **{key: f"%DYNAMIC_METADATA({namespace}:{key})%" for key in SHADOW_KEYS},
            **SHAPES,
        }

        def file(path: Path, **log_format: Any) -> dict[str, Any]:
            kind = f"{TYPES}.access_loggers.file.v3.FileAccessLog"
            config = {"@type": kind, "path": str(path), "log_format": {"json_format": record, **log_format}}
            return {"name": "envoy.access_loggers.file", "typed_config": config}

        return [file(self.log), file(self.omitting, omit_empty_values=True)]

    def manager(
        self, name: str, filters: list[dict[str, Any]], hosts: list[dict[str, Any]], **more: Any
    ) -> dict[str, Any]:
        content = {
            "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {"name": name, "virtual_hosts": hosts},
            "http_filters": filters,
            "access_log": self.access_log(name, RBAC),
            **more,
        }
        return {"name": "envoy.filters.network.http_connection_manager", "typed_config": content}

    def tcp(self, name: str) -> dict[str, Any]:
        content = {
            "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name,
            "cluster": "up",
            "access_log": self.access_log(name, "envoy.filters.network.rbac"),
        }
        return {"name": "envoy.filters.network.tcp_proxy", "typed_config": content}


# ------------------------------------------------------------------------------------------------------------ programs


class Upstream(BaseHTTPRequestHandler):
    """Says which request reached it, and has an opinion of its own about CORS."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps({"method": self.command, "path": self.path, "origin": self.headers.get("origin")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("access-control-allow-origin", "by-upstream")
        self.send_header("access-control-expose-headers", "by-upstream")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_OPTIONS = do_PUT = answer  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


# Records are waited for, so they leave at once.
ENVOY_OPTIONS = ["--disable-hot-restart", "--log-level", "error", "--file-flush-interval-msec", "50"]
PROGRAMS = {
    "weft-proxy": lambda: [WeftProxy().find().path],
    "envoy": lambda: [DATA_PLANES[ENVOY].find().path, *ENVOY_OPTIONS],
}


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory, upstream: int, identities: Identities
) -> Iterator[dict[str, Configuration]]:
    """Both proxies, by name, at work."""
    running = {}
    with contextlib.ExitStack() as stack:
        for name, program in PROGRAMS.items():
            made = Configuration(tmp_path_factory.mktemp(name), upstream, identities.server)
            output = stack.enter_context((made.folder / "output").open("wb"))
            command = [*program(), "-c", str(made.path), "--concurrency", "1"]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=output)
            stack.callback(process.wait)
            stack.callback(process.kill)
            running[name] = made
            deadline = time.monotonic() + LIMIT
            # The kernel is asked, not the ports: a connection would be refused at one of them, and counted by Envoy later.
            while not {listener.port for listener in sockets.listeners()} >= set(made.ports.values()):
                said = (made.folder / "output").read_text()
                assert process.poll() is None, f"{name} has ended: {said}"
                assert time.monotonic() < deadline, f"{name} does not listen: {said}"
                time.sleep(0.01)
        yield running


# --------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """A request. *expected* is what both must answer, so that they cannot be wrong in the same way."""

    listener: str
    path: str
    expected: int
    details: str = "via_upstream"
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    identity: str | None = None
    host: str = "web"
    shows: dict[str, str | None] = field(default_factory=dict)
    """Headers of the answer; None: there is none."""

    def __str__(self) -> str:
        more = "".join(f" {name}={value}" for name, value in self.headers.items())
        who = f" as {self.identity}" if self.identity else ""
        host = f" of {self.host}" if self.host != "web" else ""
        return f"{self.listener}: {self.method} {self.path}{host}{more}{who}"


def denied(listener: str, path: str, by: str, **more: Any) -> Case:
    return Case(listener, path, 403, f"rbac_access_denied_matched_policy[{by}]", **more)


def requests() -> list[Case]:
    r = "requests"
    far = {"x-forwarded-for": "203.0.113.9"}
    return [
        Case(r, "/", 200),
        denied(r, "/spaces", "a_policy_with_spaces"),
        denied(r, "/spaces/more", "z-never-seen"),
        denied(r, "/spaces?with=query", "a_policy_with_spaces"),
        Case(r, "/and", 200),
        denied(r, "/and/x", "and", method="POST"),
        denied(r, "/or/1", "or"),
        denied(r, "/or/2", "or"),
        Case(r, "/or/3", 200),
        denied(r, "/not/x", "not"),
        Case(r, "/not/x", 200, headers={"x-let-me-in": "1"}),
        denied(r, "/a.secret", "suffix"),
        denied(r, "/a//b", "contains"),
        denied(r, "/re/12", "regex"),
        Case(r, "/re/12x", 200),
        denied(r, "/cAsE", "any-case"),
        Case(r, "/host", 200),
        denied(r, "/host", "host", host="evil.example"),
        denied(r, "/host-by-name", "host-by-name", host="evil.example"),
        Case(r, "/query?admin", 200),
        denied(r, "/missing", "missing"),
        Case(r, "/missing", 200, headers={"x-missing": ""}),
        denied(r, "/twice", "twice", headers={"x-twice": "a,b"}),
        Case(r, "/client", 200),
        denied(r, "/client", "client", headers=far),
        denied(r, "/direct", "direct"),
        denied(r, "/direct", "direct", headers=far),
        denied(r, "/source", "source", headers=far),
        Case(r, "/elsewhere", 200),
        denied(r, "/to-loopback", "to-loopback"),
        Case(r, "/to-other-port", 200),
        denied(r, "/to-any-port", "to-any-port"),
        Case(r, "/secure", 200),
        denied(r, "/plain", "not-secure"),
        denied(r, "/both", "both", headers={"x-one": "1"}),
        Case(r, "/both", 200, headers={"x-one": "1", "x-two": "1"}),
        denied(r, "/either", "either", headers={"x-two": "1"}),
        Case(r, "/either", 200),
        denied(r, "/range", "range", headers={"x-number": "4"}),
        Case(r, "/range", 200, headers={"x-number": "5"}),
        Case(r, "/range", 200, headers={"x-number": "many"}),
        denied(r, "/route-refuses", "by-route"),
        denied(r, "/route-allows", "none"),
        Case(r, "/route-allows", 200, headers={"x-user": "alice"}),
        Case(r, "/route-frees/or/1", 200),
        Case(r, "/off/a.secret", 200),
        denied(r, "/nobody-allowed", "none"),
        denied(r, "/second", "by-route"),
        Case(r, "/teapot", 418, "direct_response"),
        denied(r, "/teapot.secret", "suffix"),
        Case(r, "/moved", 301, "direct_response"),
        denied(r, "/moved.secret", "suffix"),
        Case(r, "/", 404, "route_not_found", host="nobody"),
        denied(r, "/x.secret", "suffix", host="nobody"),
        denied(r, "/", "none", host="strict"),
        Case(r, "/", 200, headers={"x-user": "alice"}, host="strict"),
        Case(r, "/shadow", 200),
        Case(r, "/shadow-of-route", 200),
        denied(r, "/shadow.secret", "suffix"),
        # A caller of gRPC looks at no status of HTTP.
        Case(
            r,
            "/x.secret",
            200,
            "rbac_access_denied_matched_policy[suffix]",
            method="POST",
            headers={"content-type": "application/grpc"},
            shows={"grpc-status": "7", "grpc-message": "RBAC: access denied"},
        ),
    ]


ALLOW = "access-control-allow-"


def preflight(path: str, origin: str, shows: dict[str, str | None], **headers: str) -> Case:
    """A question of a browser that is answered by the proxy."""
    asked = {"origin": origin, "access-control-request-method": "PUT"}
    asked |= {name.replace("_", "-"): value for name, value in headers.items()}
    return Case("pages", path, 200, "cors_response", "OPTIONS", asked, shows=shows)


def page(path: str, origin: str, shows: dict[str, str | None], status: int = 200, **more: Any) -> Case:
    headers = {"origin": origin} | more.pop("headers", {})
    return Case("pages", path, status, headers=headers, shows=shows, **more)


def pages() -> list[Case]:
    p, shop = "pages", "https://shop.example"
    by_upstream: dict[str, str | None] = {f"{ALLOW}origin": "by-upstream", f"{ALLOW}credentials": None}
    all_of_it: dict[str, str | None] = {
        f"{ALLOW}origin": shop,
        f"{ALLOW}methods": "GET,POST",
        f"{ALLOW}headers": "x-a,x-b",
        f"{ALLOW}credentials": "true",
        f"{ALLOW}private-network": None,
        "access-control-max-age": "600",
        "access-control-expose-headers": "x-seen",
    }
    anyone: dict[str, str | None] = {f"{ALLOW}origin": "https://any.where", f"{ALLOW}methods": "PUT"}
    passed = {"access-control-request-method": "PUT"}
    return [
        Case(p, "/all", 200, shows=by_upstream),
        Case(p, "/all", 200, headers={"origin": ""}, shows=by_upstream),
        page("/all", shop, {f"{ALLOW}origin": shop, f"{ALLOW}credentials": "true", f"{ALLOW}methods": None}),
        page("/all", "https://a.shop.example", {f"{ALLOW}origin": "https://a.shop.example"}),
        page("/all", "https://s1.example", {f"{ALLOW}origin": "https://s1.example"}),
        page("/all", "https://s11.example", by_upstream),
        page("/all", "null", by_upstream),
        page("/all", shop, {f"{ALLOW}origin": shop}, method="POST"),
        # OPTIONS that asks nothing is a request like others.
        page("/all", shop, {f"{ALLOW}origin": shop, f"{ALLOW}methods": None}, method="OPTIONS"),
        preflight("/all", shop, all_of_it),
        preflight(
            "/all",
            shop,
            all_of_it | {f"{ALLOW}private-network": "true"},
            access_control_request_private_network="true",
        ),
        page("/all", "https://evil.example", by_upstream, method="OPTIONS", headers=passed),
        preflight(
            "/anyone",
            "https://any.where",
            anyone | {f"{ALLOW}headers": "x-1, x-2"},
            access_control_request_headers="x-1, x-2",
        ),
        preflight("/anyone", "https://any.where", anyone),
        page("/anyone", "https://any.where", {f"{ALLOW}origin": "https://any.where", f"{ALLOW}credentials": None}),
        preflight("/ignored", "https://evil.example", {f"{ALLOW}origin": None, f"{ALLOW}methods": "GET"}),
        preflight("/ignored", shop, {f"{ALLOW}origin": shop, f"{ALLOW}methods": "GET"}),
        page("/ignored", "https://evil.example", by_upstream),
        page("/off", "https://host.example", by_upstream, method="OPTIONS", headers=passed),
        page("/watched", "https://host.example", by_upstream, method="OPTIONS", headers=passed),
        page("/disabled", "https://host.example", by_upstream, method="OPTIONS", headers=passed),
        preflight(
            "/inherits",
            "https://host.example",
            {f"{ALLOW}origin": "https://host.example", f"{ALLOW}methods": "PUT", "access-control-max-age": "5"},
        ),
        preflight("/", "https://host.example", {f"{ALLOW}methods": "GET", "access-control-expose-headers": None}),
        page("/edited", "https://host.example", {f"{ALLOW}origin": "https://host.example"}),
        page("/edited", "https://evil.example", {f"{ALLOW}origin": "by-route"}),
        page("/weighted", "https://host.example", {"access-control-expose-headers": "x-of-cluster"}),
        page(
            "/nowhere",
            "https://host.example",
            {f"{ALLOW}origin": "https://host.example"},
            503,
            details="no_healthy_upstream",
        ),
        page(
            "/",
            "https://host.example",
            {f"{ALLOW}origin": "https://host.example"},
            418,
            details="fault_filter_abort",
            headers={"x-fault": "1"},
        ),
        page(
            "/",
            "https://host.example",
            {f"{ALLOW}origin": "https://host.example"},
            403,
            details="rbac_access_denied_matched_policy[late]",
            headers={"x-late": "1"},
        ),
        # A route that answers by itself has no policy.
        page("/teapot", "https://host.example", {f"{ALLOW}origin": None}, 418, details="direct_response"),
        page("/", "https://host.example", by_upstream, host="bare"),
    ]


def who() -> list[Case]:
    i = "identities"
    table: dict[str, dict[str, str | None]] = {
        # Path -> who is let in, and by nothing else: None.
        "/shop": {"shop": "", "bank": None, "two": "", "dns": None, "subject": None, "nobody": None},
        "/dns": {"shop": "", "bank": None, "two": "", "dns": "", "subject": None, "nobody": None},
        "/subject": {"shop": None, "bank": None, "two": "", "dns": None, "subject": "", "nobody": None},
        "/anybody": {"shop": "", "bank": "", "two": "", "dns": "", "subject": "", "nobody": ""},
        "/sni": {"shop": "", "nobody": ""},
        "/empty": {"nobody": "", "bank": None},
    }
    made = []
    for place, whom in table.items():
        for identity, admitted in whom.items():
            if admitted is None:
                made.append(denied(i, place, "none", identity=identity))
            else:
                made.append(Case(i, place, 200, identity=identity))
    made.append(Case(i, "/by-connection", 200, identity="two"))
    made.append(denied(i, "/by-connection", "none", identity="shop"))
    made.append(Case("connections-of-http", "/", 200, identity="shop"))
    return made


def ask(where: Configuration, number: int, case: Case, identities: Identities) -> dict[str, Any]:
    """What a client sees of the answer to *case*, which its *number* names in records."""
    port = where.ports[case.listener]
    client: http.client.HTTPConnection
    if case.identity is None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    else:
        client = http.client.HTTPSConnection(
            "localhost", port, timeout=LIMIT, context=identities.clients[case.identity]
        )
    with contextlib.closing(client):
        client.request(case.method, case.path, headers={"host": case.host, "x-case": str(number), **case.headers})
        response = client.getresponse()
        body = response.read().decode()
    shown = {name.lower(): value for name, value in response.getheaders()}
    kept = {
        name: value
        for name, value in shown.items()
        if name.startswith(("access-control-", "grpc-")) or name in {"content-type", "content-length", "location"}
    }
    return {"status": response.status, "headers": kept, "body": body}


def records(log: Path, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The records, once there are *enough* of them."""
    deadline = time.monotonic() + LIMIT
    while True:
        lines = log.read_text().splitlines() if log.exists() else []
        # The last line may not be whole yet.
        found = [json.loads(line) for line in lines if line.endswith("}")]
        if enough(found):
            return found
        assert time.monotonic() < deadline, f"{log}: these are not all: {found}"
        time.sleep(0.05)


def records_of(log: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The record of each of *cases*, in their order."""
    numbers = [str(number) for number in range(len(cases))]
    ours = {case.listener for case in cases}

    def by_number(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {record["case"]: record for record in found if record.get("case") and record["listener"] in ours}

    found = by_number(records(log, lambda found: by_number(found).keys() >= set(numbers)))
    return [found[number] for number in numbers]


def counters(where: Configuration) -> dict[str, int]:
    """What RBAC and CORS have counted, by Prometheus's names; weft-proxy's have no label for the connection manager."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(where.admin))
        client.sendall(b"GET /stats/prometheus HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    found: dict[str, int] = {}
    for name, labels, value in re.findall(r"^(envoy_\w*(?:rbac|cors)_\w+)(?:{([^}]*)})? (\d+)\r?$", text, re.MULTILINE):
        kept = [
            label for label in labels.split(",") if label and not label.startswith("envoy_http_conn_manager_prefix=")
        ]
        key = name + "".join(f" {label}" for label in kept)
        found[key] = found.get(key, 0) + int(value)
    # weft-proxy names only what has decided something.
    return {name: value for name, value in found.items() if value}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cases", [requests(), pages(), who()], ids=["requests", "pages", "identities"])
def test_both_proxies_let_in_and_answer_the_same(
    proxies: dict[str, Configuration], identities: Identities, cases: list[Case]
) -> None:
    """Each case is sent to both; they must agree with what is pinned here, and with each other in all that can be seen."""
    before = {name: counters(where) for name, where in proxies.items()}
    answers = {
        name: [ask(where, number, case, identities) for number, case in enumerate(cases)]
        for name, where in proxies.items()
    }
    told = {name: records_of(where.log, cases) for name, where in proxies.items()}
    told_less = {name: records_of(where.omitting, cases) for name, where in proxies.items()}
    wrong = []
    for number, case in enumerate(cases):
        both = {
            name: answers[name][number] | {"record": told[name][number], "omitting": told_less[name][number]}
            for name in proxies
        }
        for name, found in both.items():
            shown = {header: found["headers"].get(header) for header in case.shows}
            if (found["status"], found["record"]["details"], shown) != (case.expected, case.details, case.shows):
                wrong.append(f"{case}\n  {name}: {found}\n  expected {case.expected}, {case.details}, {case.shows}")
        weft, envoy = both.values()
        for key in weft:
            if weft[key] != envoy[key]:
                wrong.append(f"{case}: {key}\n  weft-proxy: {weft[key]}\n  Envoy: {envoy[key]}")
    assert not wrong, "\n".join(wrong)
    counted = {
        name: {key: value - before[name].get(key, 0) for key, value in counters(where).items()}
        for name, where in proxies.items()
    }
    weft, envoy = ({key: value for key, value in each.items() if value} for each in counted.values())
    assert weft == envoy
    assert weft


class Connected(NamedTuple):
    """What became of a connection of bytes."""

    answered: bytes
    ended: bool


def send_bytes(where: Configuration, listener: str, client: ssl.SSLContext | None) -> Connected:
    """Send a request as bytes, and read to the end."""
    request = b"GET /bytes HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"
    answered = b""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", where.ports[listener]), timeout=LIMIT))
        connection = plain
        try:
            if client is not None:
                connection = stack.enter_context(client.wrap_socket(plain, server_hostname="localhost"))
            connection.sendall(request)
            while data := connection.recv(65536):
                answered += data
        except (ConnectionError, ssl.SSLError):
            pass
    return Connected(answered.partition(b"\r\n")[0], True)


@pytest.mark.timeout(120)
def test_both_proxies_close_the_same_connections(proxies: dict[str, Configuration], identities: Identities) -> None:
    """The network filter, before bytes and before HTTP: who is let in, why others are not, and what the shadow rules say."""
    cases = [
        ("connections", "shop", b"HTTP/1.1 200 OK"),
        ("connections", "two", b"HTTP/1.1 200 OK"),
        ("connections", "bank", b""),
        ("connections", "nobody", b""),
        ("connections-of-http", "shop", b"HTTP/1.1 200 OK"),
        ("connections-of-http", "bank", b""),
        ("bytes", None, b""),
    ]
    told, counted = {}, {}
    for name, where in proxies.items():
        before, earlier = counters(where), len(records(where.log, lambda _: True))
        for listener, identity, expected in cases:
            client = None if identity is None else identities.clients[identity]
            answer = send_bytes(where, listener, client)
            assert answer.answered == expected, f"{name}: {listener} as {identity}: {answer}"
        # Of bytes each connection has a record; of HTTP only the request that was let in.
        wanted = len(cases) - 1
        found = records(where.log, lambda found, whole=earlier + wanted: len(found) >= whole)[earlier:]
        told[name] = sorted(json.dumps(record, sort_keys=True) for record in found)
        differences = {key: value - before.get(key, 0) for key, value in counters(where).items()}
        counted[name] = {key: value for key, value in differences.items() if value}
    assert told["weft-proxy"] == told["envoy"]
    assert counted["weft-proxy"] == counted["envoy"]
    assert any("rbac_access_denied_matched_policy[none]" in record for record in told["envoy"])


@pytest.mark.timeout(120)
def test_a_client_that_sends_nothing_is_counted_when_it_comes_or_when_it_leaves(
    proxies: dict[str, Configuration],
) -> None:
    """weft-proxy asks its rules when the connection begins, Envoy at its first byte or its end (data-planes.md); once, each."""
    refused = 'envoy_rbac_denied envoy_rbac_prefix="closing"'

    def count(name: str) -> int:
        return counters(proxies[name]).get(refused, 0) - before[name]

    def until_counted(name: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not count(name):
            assert time.monotonic() < deadline, f"{name} has not counted it"
            time.sleep(0.01)

    before = {name: counters(where).get(refused, 0) for name, where in proxies.items()}
    with contextlib.ExitStack() as stack:
        for where in proxies.values():
            stack.enter_context(socket.create_connection(("127.0.0.1", where.ports["bytes"]), timeout=LIMIT))
        until_counted("weft-proxy")
        assert count("envoy") == 0
    until_counted("envoy")
    assert {name: count(name) for name in proxies} == {"weft-proxy": 1, "envoy": 1}
