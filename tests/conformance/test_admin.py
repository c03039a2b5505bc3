"""The admin interfaces of weft-proxy and Envoy answer alike where weft-proxy has what Envoy has, asked in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import ipaddress
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.conformance import proxies as conformance
from tests.conformance.certificates import Authority, by_sds, secret
from tests.ports import free_port
from weft.agent import admin
from weft.agent.data_planes import DATA_PLANES
from weft.cli import log_levels
from weft.cli.client import UnixConnection
from weft.data_plane import ENVOY, WEFT_PROXY
from weft.errors import UsageError

pytestmark = pytest.mark.conformance

LIMIT = 30.0
TYPES = "type.googleapis.com/envoy.extensions"

HISTOGRAMS = {WEFT_PROXY: "istio_request_duration_milliseconds", ENVOY: r"^http\.in\.downstream_rq_time$"}
REQUESTS = {WEFT_PROXY: "^envoy_http_downstream_rq_total$", ENVOY: r"^http\.in\.downstream_rq_total$"}
"""What both count, as patterns."""


def asked(socket: Path, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type without its parameters, and body of what the admin interface at *socket* answers."""
    with contextlib.closing(UnixConnection(socket, LIMIT)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        kind = (answer.getheader("content-type") or "").partition(";")[0]
        return answer.status, kind, answer.read().decode(errors="replace")


class Proxy:
    """A data plane with one listener, which answers by itself."""

    def __init__(self, kind: str, directory: Path) -> None:
        directory.mkdir()
        self.kind = kind
        self.port = free_port()
        self.admin = directory / "admin.sock"
        self.identity = Authority(directory / "authority").issue("admin")
        path = directory / "bootstrap.json"
        path.write_text(json.dumps(self._bootstrap()))
        command = [DATA_PLANES[kind].find().path, "-c", str(path), "--concurrency", "1", "--log-level", "warning"]
        self.process = subprocess.Popen([*command, *(["--disable-hot-restart"] if kind == ENVOY else [])])

    def _bootstrap(self) -> dict[str, Any]:
        route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}}
        manager = {
            "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "route_config": {"name": "in", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [
                {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}},
            ],
        }
        address = {"socket_address": {"address": "127.0.0.1", "port_value": self.port}}
        listener = {
            "name": "in",
            "address": address,
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }
        return {
            "node": {"id": "admin", "cluster": "admin"},
            "admin": {"address": {"pipe": {"path": str(self.admin)}}},
            "static_resources": {"listeners": [listener], "clusters": [self._cluster()]},
            # Envoy's histograms are shown once an interval is over, of 5 s by default.
            **({"stats_flush_interval": "0.1s"} if self.kind == ENVOY else {}),
        }

    def _cluster(self) -> dict[str, Any]:
        """One that nobody calls, of fields of many kinds, a key among them."""
        pem = {"inline_string": self.identity.chain.read_text()}, {"inline_string": self.identity.key.read_text()}
        endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}}
        context = {
            "@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_certificates": [dict(zip(("certificate_chain", "private_key"), pem, strict=True))],
                "alpn_protocols": ["http/1.1"],
            },
            "sni": "other.example",
        }
        return {
            "name": "other",
            "type": "STATIC",
            "connect_timeout": "1.5s",
            "lb_policy": "LEAST_REQUEST",
            "circuit_breakers": {"thresholds": [{"max_connections": 0, "max_requests": 7}]},
            "load_assignment": {
                "cluster_name": "other",
                "endpoints": [
                    {
                        "lb_endpoints": [
                            {
                                "endpoint": endpoint,
                                "metadata": {"filter_metadata": {"it": {"a": [1.5, True, None, "b", {}]}}},
                                "load_balancing_weight": 2,
                            },
                        ],
                    },
                ],
            },
            "transport_socket": {"name": "tls", "typed_config": context},
        }

    def ask(self, path: str, method: str = "GET") -> tuple[int, str, str]:
        return asked(self.admin, path, method)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "it has ended; what it said is above"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("/ready")[2].startswith("LIVE")
        return False


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Proxy]]:
    """Both, after three requests on one connection."""
    directory = tmp_path_factory.mktemp("admin")
    with contextlib.ExitStack() as stack:
        running = {}
        for kind in (WEFT_PROXY, ENVOY):
            running[kind] = proxy = Proxy(kind, directory / kind)
            stack.callback(proxy.process.wait)
            stack.callback(proxy.process.kill)
        for proxy in running.values():
            asyncio.run(until(proxy.is_ready))
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=LIMIT)) as client:
                for _ in range(3):
                    client.request("GET", "/")
                    assert client.getresponse().read() == b"hello"
            pattern = HISTOGRAMS[proxy.kind]
            asyncio.run(until(lambda proxy=proxy, pattern=pattern: " P0(" in proxy.ask(f"/stats?filter={pattern}")[2]))
        yield running


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.02)


def shape(value: Any) -> Any:
    """What of JSON is its form: names and types; of lists of objects all forms that occur, and null is a number that is not there."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        forms = [shape(item) for item in value]
        return [form for index, form in enumerate(forms) if form not in forms[:index]]
    return "number" if value is None or isinstance(value, int | float) else type(value).__name__


@pytest.mark.parametrize("more", ["", "&histogram_buckets=cumulative", "&histogram_buckets=disjoint", "&usedonly"])
def test_statistics_in_json_have_one_shape(proxies: dict[str, Proxy], more: str) -> None:
    found = {}
    for kind, proxy in proxies.items():
        pattern = f"{HISTOGRAMS[kind]}|{REQUESTS[kind]}"
        status, content_type, text = proxy.ask(f"/stats?format=json&filter={pattern}{more}")
        assert (status, content_type) == (200, "application/json"), text
        numbers = [item for item in json.loads(text)["stats"] if "name" in item]
        assert [item["value"] for item in numbers] == [3], text
        found[kind] = shape(json.loads(text))
        if not more:
            assert json.loads(text)["stats"][-1]["histograms"]["supported_quantiles"] == [
                0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100,
            ]  # fmt: skip
    assert found[WEFT_PROXY] == found[ENVOY]
    nothing = {kind: json.loads(proxy.ask("/stats?format=json&filter=^nobody$")[2]) for kind, proxy in proxies.items()}
    assert nothing[WEFT_PROXY] == nothing[ENVOY]


def test_statistics_in_text_have_one_shape(proxies: dict[str, Proxy]) -> None:
    found = {}
    for kind, proxy in proxies.items():
        status, content_type, text = proxy.ask(f"/stats?filter={HISTOGRAMS[kind]}|{REQUESTS[kind]}")
        lines = text.splitlines()
        assert (status, content_type, len(lines)) == (200, "text/plain", 2), text
        # A number, then a histogram; of it the names of its quantiles.
        assert re.fullmatch(r"\S+: 3", lines[0]), text
        found[kind] = re.findall(r" (P[\d.]+)\(\S+,[\d.]+\)", lines[1])
    assert found[WEFT_PROXY] == found[ENVOY] != []
    counted = {kind: asyncio.run(admin.stats(proxy.admin, REQUESTS[kind])) for kind, proxy in proxies.items()}
    assert [sum(values.values()) for values in counted.values()] == [3, 3]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/stats?format=nonsense"),
        ("GET", "/stats?filter=("),
        ("GET", "/stats?type=nonsense"),
        ("GET", "/config_dump?resource=nonsense"),
        ("GET", "/config_dump?name_regex=("),
        ("GET", "/nothing"),
        ("POST", "/nothing"),
        ("GET", "/quitquitquit"),
        ("GET", "/drain_listeners"),
        ("POST", "/logging?level=nonsense"),
        ("POST", "/logging?nonsense=debug"),
        ("POST", "/logging?paths=nonsense:debug"),
        # Without a parameter Envoy wants one, and weft-proxy takes its time.
        ("POST", "/cpuprofiler?enable=nonsense"),
        ("HEAD", "/ready"),
        ("POST", "/reopen_logs"),
        ("GET", "/help"),
        ("GET", "/memory"),
        ("GET", "/listeners"),
    ],
)
def test_both_answer_with_one_status(proxies: dict[str, Proxy], method: str, path: str) -> None:
    answers = {kind: proxy.ask(path, method) for kind, proxy in proxies.items()}
    assert answers[WEFT_PROXY][0] == answers[ENVOY][0], answers


def test_profiles_are_asked_for_differently(proxies: dict[str, Proxy]) -> None:
    """
    Envoy's of time is begun and ended, and goes into a file; weft-proxy's ends by itself, and is the answer.

    Envoy's allocator takes samples from the start, weft-proxy's once it is told to. (That, Envoy can be told only in some builds.)
    """
    for method, path, statuses in (
        ("POST", "/cpuprofiler?enable=n", {ENVOY: 200, WEFT_PROXY: 400}),
        ("POST", "/cpuprofiler?seconds=1", {ENVOY: 400, WEFT_PROXY: 200}),
        ("GET", "/heap_dump", {ENVOY: 200, WEFT_PROXY: 409}),
    ):
        assert {kind: proxy.ask(path, method)[0] for kind, proxy in proxies.items()} == statuses, path


def test_listeners_are_told_alike(proxies: dict[str, Proxy]) -> None:
    for query in ("", "?format=json"):
        found = []
        for proxy in proxies.values():
            status, kind, text = proxy.ask(f"/listeners{query}")
            assert status == 200
            text = text.replace(str(proxy.port), "1")
            found.append((kind, json.loads(text) if query else text))
        assert found[0] == found[1]


def test_a_dump_of_the_configuration_has_envoys_form(proxies: dict[str, Proxy]) -> None:
    """Whole, but for keys, which neither shows."""
    found: dict[str, dict[str, Any]] = {}
    for kind, proxy in proxies.items():
        text = proxy.ask("/config_dump")[2].replace(str(proxy.port), "1")
        text = text.replace(json.dumps(proxy.identity.chain.read_text()), '"a chain"')
        assert "PRIVATE KEY" not in text
        found[kind] = {config.pop("@type"): config for config in json.loads(text)["configs"]}
    sections = {f"type.googleapis.com/envoy.admin.v3.{name}ConfigDump" for name in ("Clusters", "Listeners")}
    for section in sections:
        ours, theirs = ({name: items(value) for name, value in found[kind][section].items()} for kind in found)
        assert ours == theirs
        assert ours
    # What else Envoy has: the bootstrap, and routes that stand in a listener.
    assert found[WEFT_PROXY].keys() < found[ENVOY].keys()
    for query in ("resource=static_clusters", "resource=static_listeners&name_regex=^in$"):
        (ours,), (theirs,) = (
            items(json.loads(it.ask(f"/config_dump?{query}")[2])["configs"]) for it in proxies.values()
        )
        assert ours["@type"] == theirs["@type"]


def test_certificates_are_told_alike(tmp_path: Path) -> None:
    """Those that came as secrets: serial numbers, names and dates. Envoy tells them for each use, and weft-proxy by name."""
    authority = Authority(tmp_path / "authority")
    names = x509.DNSName("it.example"), x509.UniformResourceIdentifier("spiffe://mesh/it")
    identity = authority.issue("it", *names, x509.IPAddress(ipaddress.ip_address("192.0.2.7")))
    own = {"certificate_chain": {"inline_string": identity.chain.read_text()}}
    own["private_key"] = {"inline_string": identity.key.read_text()}
    roots = {"trusted_ca": {"inline_string": authority.roots.read_text()}}
    secrets = secret("default", tls_certificate=own), secret("ROOTCA", validation_context=roots)
    context = {
        "tls_certificate_sds_secret_configs": [by_sds("default")],
        "validation_context_sds_secret_config": by_sds("ROOTCA"),
    }
    told = []
    for kind in (WEFT_PROXY, ENVOY):
        with conformance.proxies(tmp_path, kind, kind=kind) as [proxy]:
            tls = {"common_tls_context": context, "require_client_certificate": True}
            up = conformance.cluster("up", free_port(), http2=False)
            at = conformance.listener("in", free_port(), "up", tls=tls, log=proxy.log)
            proxy.publish(up, at, *secrets)

            def shown(proxy: conformance.Proxy = proxy) -> dict[str, list[dict[str, Any]]]:
                proxy.events()  # Envoy asks for secrets when it has what needs them
                found = json.loads(conformance.ask(proxy.admin, "/certs"))["certificates"]
                return {part: [it for one in found for it in one.get(part, ())] for part in ("cert_chain", "ca_cert")}

            conformance.until("the secrets are there", lambda shown=shown: all(shown().values()))
            told.append(shown())
    for certificate in (it for plane in told for part in plane.values() for it in part):
        # A day may have gone by between the two.
        assert 0 <= int(certificate.pop("days_until_expiration")) <= 1
    assert told[0] == told[1]
    [leaf] = told[0]["cert_chain"]
    assert {"uri": "spiffe://mesh/it"} in leaf["subject_alt_names"]


def items(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is in a list of a dump, without times."""
    return [{name: value for name, value in item.items() if name != "last_updated"} for item in found]


def test_memory_has_envoys_names(proxies: dict[str, Proxy]) -> None:
    weft, envoy = (json.loads(proxy.ask("/memory")[2]) for proxy in proxies.values())
    named = {name: value for name, value in weft.items() if name in envoy}
    assert {"allocated", "heap_size", "total_thread_cache", "total_physical_bytes"} <= set(named)
    assert all(isinstance(value, str) and value.isdigit() for value in named.values())
    # What is beside them is weft-proxy's own.
    assert set(weft) - set(envoy) == {"size_classes"}


def test_levels_are_shown_and_changed_alike(proxies: dict[str, Proxy]) -> None:
    """By the functions of `weft proxy-config log`, which know no difference."""
    for proxy in proxies.values():
        levels = functools.partial(log_levels.ask, proxy.admin, "it")
        names = set(levels())
        assert {"admin", "dns", "http", "main", "pool", "router"} <= names
        assert set(levels().values()) == {"warning"}
        assert levels(level="info") == dict.fromkeys(names, "info")
        changed = levels(paths="http:debug,pool:error")
        assert changed == dict.fromkeys(names, "info") | {"http": "debug", "pool": "error"}
        assert levels() == changed
        assert levels(dns="off") == changed | {"dns": "off"}
        for query in ({"level": "loud"}, {"paths": "nobody:info"}, {"paths": "http:loud"}, {"nobody": "info"}):
            with pytest.raises(UsageError):
                levels(**query)
        assert levels() == changed | {"dns": "off"}
        levels(level="warning")


@pytest.mark.parametrize("kind", [WEFT_PROXY, ENVOY])
def test_who_has_no_configuration_yet_is_not_ready(tmp_path: Path, kind: str) -> None:
    """It answers questions before, and is ready when its control plane has spoken."""
    with conformance.proxies(tmp_path, kind, kind=kind) as [proxy]:

        def ready() -> tuple[int, str]:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _, text = asked(proxy.admin, "/ready")
                return status, text
            return 0, ""

        conformance.until("it answers", lambda: ready() != (0, ""))
        assert ready() == (503, "PRE_INITIALIZING\n")
        up = conformance.cluster("up", free_port(), http2=False)
        proxy.publish(up, conformance.listener("in", free_port(), "up", log=proxy.log))
        conformance.until("it is ready", lambda: ready() == (200, "LIVE\n"))


@pytest.mark.parametrize("kind", [WEFT_PROXY, ENVOY])
def test_who_is_asked_to_quit_ends_in_good_order(tmp_path: Path, kind: str) -> None:
    proxy = Proxy(kind, tmp_path / kind)
    try:
        asyncio.run(until(proxy.is_ready))
        assert proxy.ask("/quitquitquit", "POST")[0] == 200
        assert proxy.process.wait(LIMIT) == 0
    finally:
        proxy.process.kill()
        proxy.process.wait()
