"""`weft proxy-config`: what the control plane has told one proxy, as tables for people or whole for programs."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from weft.cli import log_levels
from weft.cli.client import Client, ask_proxy, connect
from weft.cli.main import ExampleCommand, unknown
from weft.cli.output import columns, duration, emit, mesh_option, output_option, place
from weft.cli.resources import TYPES, decode_all
from weft.cli.workloads import resolve, told
from weft.errors import UsageError

EXAMPLES = """
weft proxy-config routes productpage-v1-0                 the routes of one proxy
weft proxy-config clusters productpage-v1-0 -o json       the whole messages, as protobuf JSON
weft proxy-config endpoints productpage-v1-0 --name reviews
weft proxy-config secrets reviews-v1-0                              certificates, never keys
weft proxy-config log reviews-v1-0                                  which lines its log has
weft proxy-config log reviews-v1-0 --level xds:debug,pool:debug     have it say more
"""

KINDS = (*TYPES, "secrets", "log")

Json = Mapping[str, Any]


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@click.argument("kind", metavar="listeners|routes|clusters|endpoints|secrets|log")
@click.argument("workload")
@click.option("--name", "part", help="Only resources, or components of the log, whose name contains this.")
@click.option(
    "--level", metavar="[COMPONENT:]LEVEL,...", help="With log: change the level of all components, or of one."
)
@click.option("--reset", is_flag=True, help="With log: have all levels as they were at the proxy's start.")
@output_option()
@mesh_option
def command(
    *, kind: str, workload: str, part: str | None, level: str | None, reset: bool, output: str, mesh: str | None
) -> None:
    """
    Show what a proxy has been told: its listeners, routes, clusters or endpoints, or the certificates that it holds.

    Endpoints show what was told of their health, or else what the proxy has found itself: EJECTED by outlier detection,
    FAILED CHECK, UNCHECKED. Secrets show certificates and their life; private keys never leave the agent and are never
    printed. Log shows from which level on each component of the proxy writes into its log (proxy.log beside its other
    files), and changes that until the proxy is started again: trace, debug, info, warning, error, off.
    """
    wanted = next((known for known in KINDS if kind in (known, known[:-1])), None)
    if wanted is None:
        raise UsageError(unknown("kind of resource", kind, KINDS))
    if wanted != "log" and (level is not None or reset):
        raise UsageError("--level and --reset go with `weft proxy-config log`.")
    client = connect(mesh)
    workload = resolve(workload, told(client), "proxy")
    if wanted == "log":
        shown = log_levels.show(client, workload, change=level, reset=reset)
        shown = {name: value for name, value in shown.items() if part is None or part in name}
        emit(shown, output, lambda: columns(["component", "level"], list(shown.items()), empty="No components."))
        return
    if wanted == "secrets":
        data = secrets(client, workload)
        emit(data, output, lambda: secrets_table(data, datetime.now(UTC)))
        return
    resources = decode_all(client.get(f"/v1/proxies/{workload}/resources", type=TYPES[wanted]))
    if part is not None:
        resources = [item for item in resources if part in (item.get("name") or item.get("cluster_name") or "")]
    tables: dict[str, Callable[[Sequence[Json]], str]] = {
        "listeners": listeners_table,
        "routes": routes_table,
        "clusters": clusters_table,
        "endpoints": lambda told: endpoints_table(told, _asked_health(client, workload)),
    }
    emit(resources, output, lambda: tables[wanted](resources))


def listeners_table(resources: Sequence[Json]) -> str:
    """Return a line for each filter chain of each listener."""
    rows = []
    for listener in resources:
        address = _address(listener.get("address", {}))
        chains = [*listener.get("filter_chains", ()), *filter(None, [listener.get("default_filter_chain")])]
        rows += [[listener["name"], address, _chain_match(chain), _chain_target(chain)] for chain in chains]
        if not chains:
            rows.append([listener["name"], address, "", ""])
    return columns(["listener", "address", "match", "destination"], rows, empty="No listeners.")


def routes_table(resources: Sequence[Json]) -> str:
    """Return a line for each route of each virtual host, in the order in which they are tried."""
    rows = []
    for configuration in resources:
        for host in configuration.get("virtual_hosts", ()):
            domains = ", ".join(host.get("domains", ())[:2])
            if (more := len(host.get("domains", ())) - 2) > 0:
                domains += f" + {more} more"
            for route in host.get("routes", ()):
                row = [configuration["name"], domains, _route_match(route["match"]), _route_target(route)]
                rows.append([*row, _origin(route) or _origin(host)])
    return columns(["routes", "domains", "match", "destination", "origin"], rows, empty="No routes.")


def clusters_table(resources: Sequence[Json]) -> str:
    """Return a line for each cluster; Istio's names are taken apart."""
    rows = []
    for cluster in resources:
        direction, _, rest = cluster["name"].partition("|")
        port, _, rest = rest.partition("|")
        subset, _, host = rest.partition("|")
        if not port:
            direction, host = "", cluster["name"]
        tls = "mutual" if cluster.get("transport_socket_matches") or cluster.get("transport_socket") else ""
        kind = cluster.get("type") or cluster.get("cluster_type", {}).get("name") or "STATIC"
        rows.append([host, port, subset, direction, kind, tls, _origin(cluster)])
    head = ["service", "port", "subset", "direction", "type", "tls", "origin"]
    return columns(head, rows, empty="No clusters.")


def endpoints_table(resources: Sequence[Json], found: Mapping[tuple[str, str], str]) -> str:
    """Return a line for each endpoint of each cluster; *found*: as `found_health`."""
    rows: list[list[object]] = []
    for assignment in resources:
        cluster = assignment["cluster_name"]
        endpoints = [
            endpoint for locality in assignment.get("endpoints", ()) for endpoint in locality.get("lb_endpoints", ())
        ]
        for endpoint in endpoints:
            workload = endpoint.get("metadata", {}).get("filter_metadata", {}).get("istio", {}).get("workload", "")
            address = _address(endpoint["endpoint"]["address"])
            told = endpoint.get("health_status", "HEALTHY").replace("UNKNOWN", "HEALTHY")
            health = found.get((cluster, address), told) if told == "HEALTHY" else told
            weight = endpoint.get("load_balancing_weight", 1)
            rows.append([address, str(workload).partition(";")[0], health, weight, cluster])
        if not endpoints:
            rows.append(["(none)", "", "", "", cluster])
    return columns(["endpoint", "workload", "health", "weight", "cluster"], rows, empty="No endpoints.")


FOUND = {
    "failed_outlier_check": "EJECTED",
    "pending_active_hc": "UNCHECKED",
    "failed_active_health_check": "FAILED CHECK",
}
"""
What a proxy says of an endpoint that it does not use, and how it is shown. The first holds: what was never checked counts as failed,
too.
"""


def found_health(clusters: Any) -> dict[tuple[str, str], str]:
    """Return what a proxy has found of endpoints that it was told to use, by (cluster, address), from its `/clusters?format=json`."""
    found = {}
    for cluster in clusters.get("cluster_statuses", ()):
        for host in cluster.get("host_statuses", ()):
            if state := next((state for flag, state in FOUND.items() if host["health_status"].get(flag)), None):
                found[cluster["name"], _address(host["address"])] = state
    return found


def _asked_health(client: Client, workload: str) -> dict[tuple[str, str], str]:
    """What the proxy says of itself; that it says nothing is told."""
    if (answer := _ask(client.admin_socket(workload), "/clusters?format=json")) is None:
        click.echo(f"{workload}'s proxy does not answer: health is what it was told.", err=True)
        return {}
    return found_health(answer)


def secrets(client: Client, workload: str) -> dict[str, Any]:
    """Return what the proxy itself says of its certificates, and what the control plane signed last."""
    proxies = {proxy["workload"]: proxy for proxy in client.get("/v1/proxies")}
    if workload not in proxies:
        client.get(f"/v1/proxies/{workload}/resources")  # refuses, and lists those that there are
    answer = _ask(client.admin_socket(workload), "/certs")
    return {
        "identity": proxies[workload]["identity"],
        "signed": proxies[workload]["certificate"],
        "certificates": None if answer is None else answer.get("certificates", []),
    }


def secrets_table(data: Json, now: datetime) -> str:
    """
    Return a line for each certificate, own ones (`cert_chain`) and whom the proxy trusts (`ca_cert`).

    weft-proxy has an entry for each secret, with its name; Envoy for each cluster and filter chain that uses them, and none before
    there is one.
    """
    rows = []
    for secret in data["certificates"] or ():
        for name, kind in (("default", "cert_chain"), ("ROOTCA", "ca_cert")):
            for item in secret.get(kind, ()):
                identity = ", ".join(alt["uri"] for alt in item.get("subject_alt_names", ()) if "uri" in alt)
                left = duration((datetime.fromisoformat(item["expiration_time"]) - now).total_seconds())
                rows.append((secret.get("name", name), identity, item.get("serial_number"), left))
    if data["certificates"] is not None:
        head = ("secret", "identity", "serial", "expires in")
        return columns(head, list(dict.fromkeys(rows)), empty="The proxy has no certificate yet.")
    signed = data["signed"]["not_after"]
    return f"The proxy does not answer. Its last certificate, {data['identity']}, is good until {signed or '(none)'}."


def _ask(admin: Path, target: str) -> Any:
    """Ask the proxy for JSON; None if it does not answer."""
    try:
        _, text = ask_proxy(admin, target)
        return json.loads(text)
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _address(address: Json) -> str:
    if "pipe" in address:
        return str(address["pipe"]["path"])
    socket = address.get("socket_address", {})
    host = socket.get("address", "")
    return f"[{host}]:{socket.get('port_value', 0)}" if ":" in host else f"{host}:{socket.get('port_value', 0)}"


def _chain_match(chain: Json) -> str:
    match = chain.get("filter_chain_match", {})
    parts = [f"{item['address_prefix']}/{item.get('prefix_len', 0)}" for item in match.get("prefix_ranges", ())]
    if "destination_port" in match:
        parts.append(f"port {match['destination_port']}")
    if match.get("transport_protocol"):
        parts.append(match["transport_protocol"])
    parts += match.get("server_names", ())
    parts += match.get("application_protocols", ())
    return ", ".join(parts) or "all"


def _chain_target(chain: Json) -> str:
    target = ""
    for item in chain.get("filters", ()):
        config = item.get("typed_config", {})
        if "rds" in config:
            target = f"routes {config['rds']['route_config_name']}"
        elif "route_config" in config:
            target = f"routes {config['route_config'].get('name', '')} (inline)"
        elif "cluster" in config:
            target = f"cluster {config['cluster']}"
        elif "weighted_clusters" in config:
            target = _weighted(config["weighted_clusters"])
    tls = chain.get("transport_socket", {}).get("typed_config", {})
    required = tls.get("require_client_certificate")
    return target + (" (mutual TLS)" if required else " (TLS)" if tls else "")


def _route_match(match: Json) -> str:
    path = next(
        (
            f"{match[kind]}{mark}"
            for kind, mark in (("path", ""), ("prefix", "*"), ("path_separated_prefix", "/*"))
            if kind in match
        ),
        "",
    )
    if "safe_regex" in match:
        path = f"~{match['safe_regex']['regex']}"
    conditions = [_condition(item) for item in (*match.get("headers", ()), *match.get("query_parameters", ()))]
    return " ".join([path, *conditions])


def _condition(item: Json) -> str:
    sign = "!" if item.get("invert_match") else ""
    if item.get("present_match") is not None:
        return f"{sign}{item['name']}?"
    match = item.get("string_match", {})
    for kind, operator in (("exact", "="), ("prefix", "=^"), ("suffix", "=$"), ("contains", "=*")):
        if kind in match:
            return f"{sign}{item['name']}{operator}{match[kind]}"
    if "safe_regex" in match:
        return f"{sign}{item['name']}=~{match['safe_regex']['regex']}"
    return f"{sign}{item['name']}"


def _route_target(route: Json) -> str:
    if "redirect" in route:
        redirect = route["redirect"]
        path = redirect.get("path_redirect") or redirect.get("prefix_rewrite") or ""
        return f"redirect {redirect.get('host_redirect', '')}{path}"
    if "direct_response" in route:
        return f"answer {route['direct_response']['status']}"
    action = route.get("route", {})
    return _weighted(action["weighted_clusters"]) if "weighted_clusters" in action else str(action.get("cluster", ""))


def _weighted(weighted: Json) -> str:
    return ", ".join(f"{item['name']} {item.get('weight', 0)}" for item in weighted["clusters"])


def _origin(resource: Json) -> str:
    metadata = resource.get("metadata", {}).get("filter_metadata", {}).get("weft", {})
    return place(str(metadata.get("origin", "")))
