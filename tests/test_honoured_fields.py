"""What weft-proxy honours is named by a test: a field that nobody sets in any test may have lost its effect, or never had one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

EXTENSIONS = "envoy.extensions"
MANAGER = f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"
UUID = f"{EXTENSIONS}.request_id.uuid.v3.UuidRequestIdConfig"

UNTESTED = {
    "envoy.config.cluster.v3.Cluster.cleanup_interval": "a list of original destinations, which weft-proxy does not keep",
    "envoy.config.route.v3.Decorator.propagate": "names of spans, and there are none",
    "envoy.config.route.v3.RouteAction.RequestMirrorPolicy.trace_sampled": "there are no spans",
    f"{EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector.initial_read_buffer_size": "a hint of how to read",
    f"{MANAGER}.Tracing.client_sampling": "there are no spans",
    f"{MANAGER}.Tracing.max_path_tag_length": "there are no spans",
    f"{MANAGER}.request_id_extension": "how IDs are made where nothing is said, too",
    f"{UUID}.pack_trace_reason": "there are no spans, which is what an ID says",
    f"{UUID}.use_request_id_for_trace_sampling": "there are no spans",
    f"{EXTENSIONS}.filters.network.rbac.v3.RBAC.enforcement_type": "nothing that rules ask about a connection changes later",
    f"{EXTENSIONS}.network.dns_resolver.cares.v3.CaresDnsResolverConfig.udp_max_queries": "each question has its own socket",
}
"""Fields that no test names, and why nobody can see what becomes of them. What can be seen is tested, or reported as not applied."""


def honoured() -> set[str]:
    """Every honoured field as `message.field`, as the proxy itself knows them: those of `*` too."""
    found, message = set(), ""
    for line in (ROOT / "crates/core/src/honoured/table.rs").read_text().splitlines():
        if begins := re.search(r'^ +name: "([^"]+)"', line):
            message = begins[1]
        elif (field := re.search(r'^ +f\(\d+, "(\w+)", (\w+)', line)) and field[2] != "No":
            found.add(f"{message}.{field[1]}")
    return {name for name in found if not name.startswith("google.")}


def texts() -> Iterator[str]:
    """The text of every test; goldens and lists of differences name fields, and do nothing with them."""
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            yield path.read_text()
    for path in (ROOT / "crates").rglob("*.rs"):
        text = path.read_text()
        if "tests" in path.parent.relative_to(ROOT).parts or path.stem.endswith("tests"):
            yield text
        else:
            yield "".join(text.partition("\nmod tests {")[1:])


def names_of(field: str) -> set[str]:
    """A field's name in proto and in Rust, that of its variant in a `oneof`, and that in JSON."""
    first, *others = field.split("_")
    rest = "".join(map(str.capitalize, others))
    return {field, first + rest} | ({first.capitalize() + rest} if others else set())


def test_every_honoured_field_is_named_by_a_test() -> None:
    """A name that several messages share is found if it is set in one of them: this finds what nobody thought of, not all there is."""
    words = set().union(*(re.findall(r"\w+", text) for text in texts()))
    fields = honoured()
    assert len(fields) > 500
    unnamed = {name for name in fields if not names_of(name.rpartition(".")[2]) & words}
    assert not unnamed - set(UNTESTED), "set it in a test of its effect, or say in UNTESTED why nobody can see one"
    assert not set(UNTESTED) - unnamed, "a test names it by now"
