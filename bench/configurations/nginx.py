"""
nginx's configuration of a role.

It has no histograms, its outlier detection counts failures within a time and its least request is least connections; it
speaks HTTP/2 to clients, but to upstreams only for gRPC, and mutual TLS pairs would not be HTTP/2 between them, so
it takes no part in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench import role as what
from bench.role import Feature, Role
from weft.translate.access_log import RECORD

_VARIABLES = {
    "%START_TIME%": "$time_iso8601",
    "%REQ(:METHOD)%": "$request_method",
    "%REQ(:AUTHORITY)%": "$http_host",
    "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%": "$request_uri",
    "%PROTOCOL%": "$server_protocol",
    "%RESPONSE_CODE%": "$status",
    "%RESPONSE_FLAGS%": "$request_completion",
    "%RESPONSE_CODE_DETAILS%": "$upstream_status",
    "%ROUTE_NAME%": "$server_name",
    "%UPSTREAM_CLUSTER%": "$proxy_host",
    "%UPSTREAM_HOST%": "$upstream_addr",
    "%DURATION%": "$request_time",
    "%BYTES_RECEIVED%": "$request_length",
    "%BYTES_SENT%": "$bytes_sent",
    "%REQ(X-REQUEST-ID)%": "$request_id",
    "%REQ(USER-AGENT)%": "$http_user_agent",
    "%DOWNSTREAM_REMOTE_ADDRESS%": "$remote_addr:$remote_port",
    "%REQUESTED_SERVER_NAME%": "$ssl_server_name",
    "%UPSTREAM_REQUEST_ATTEMPT_COUNT%": "$upstream_response_time",
    "%UPSTREAM_TRANSPORT_FAILURE_REASON%": "$upstream_connect_time",
    "%DOWNSTREAM_PEER_URI_SAN%": "$ssl_client_s_dn",
}
"""The product's record in nginx's words; where it has none, the nearest it has."""


def configuration(role: Role, port: int, home: Path, access_log: Path) -> str:
    """Return nginx.conf of a proxy at *port* of the loopback."""
    lines = [
        "daemon off;",
        f"worker_processes {role.workers};",
        f"pid {home}/pid;",
        f"error_log {home}/error.log;",
        "events { worker_connections 9000; }",
    ]
    lines += ["http {", *(f"  {line}" for line in _http(role, port, home, access_log)), "}"]
    return "\n".join(lines) + "\n"


def _http(role: Role, port: int, home: Path, access_log: Path) -> Iterator[str]:
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        yield f"{kind}_temp_path {home}/{kind};"
    yield "keepalive_requests 1000000000; keepalive_timeout 600s; server_names_hash_max_size 65536;"
    yield "server_names_hash_bucket_size 128; variables_hash_max_size 2048; proxy_max_temp_file_size 0;"
    if role.has(Feature.ACCESS_RECORD):
        fields = {**RECORD, "direction": ""}
        record = ",".join(f'"{name}":"{_VARIABLES.get(value, "outbound")}"' for name, value in fields.items())
        yield f"log_format record escape=json '{{{record}}}';"
        # Gathered and written at once, as weft-proxy and Envoy do.
        yield f"access_log {access_log} record buffer=64k flush=1s;"
    else:
        yield "access_log off;"
    if role.has(Feature.CANARY):
        name, value = what.CANARY_HEADER
        yield f'map $http_{name.replace("-", "_")} $canary {{ default ""; {value} "-canary"; }}'
    if role.has(Feature.RBAC):
        denied = ("~^DELETE:", "~^POST:/admin", f"~^GET:{what.FORBIDDEN_PATH}")
        yield f'map "$request_method:$uri" $denied {{ default 0; {" ".join(f"{each} 1;" for each in denied)} }}'
    if role.has(Feature.CORS):
        yield f'map $http_origin $origin {{ default ""; {what.CORS_ORIGIN} $http_origin; }}'
    if role.has(Feature.REQUEST_ID):
        yield 'map $http_x_request_id $id { default $http_x_request_id; "" $request_id; }'
    ports = role.ports
    for service in role.services:
        yield from _upstream(role, service, ports.answer)
        if role.has(Feature.CANARY):
            yield from _upstream(role, f"{service}-canary", (ports.canary,))
    others = {"echo": ports.echo, "faulty": ports.echo if role.has(Feature.FAULT) else ()}
    others["retried"] = (*ports.echo[:1], ports.busy) if role.has(Feature.RETRY) else ()
    others["ejecting"] = (*ports.echo[:1], ports.failing) if role.has(Feature.OUTLIER_DETECTION) else ()
    others["narrow"] = ports.echo[:1] if role.has(Feature.CIRCUIT_BREAKER) else ()
    others["uneven"] = (*ports.echo[:1], ports.slow) if role.has(Feature.LEAST_REQUEST) else ()
    if role.downstream_http2:
        others = {}  # what it speaks with clear-text clients is HTTP/2 or HTTP/1.1 for each port, and probes speak the latter
    for name, targets in others.items():
        if targets:
            yield from _upstream(role, name, targets)
    if role.downstream_tls:
        tls = role.downstream_tls
        yield f"ssl_certificate {tls.chain}; ssl_certificate_key {tls.key}; ssl_client_certificate {tls.roots};"
        yield "ssl_verify_client on; ssl_protocols TLSv1.3; ssl_ecdh_curve X25519;"
    protocol = " ssl" if role.downstream_tls else " http2" if role.downstream_http2 else ""
    listen = f"listen 127.0.0.1:{port} backlog=4096{protocol}"
    if role.has(Feature.VIRTUAL_HOSTS):
        yield f"server {{ {listen} default_server; return 404; }}"
        listen = listen.replace(" backlog=4096", "")
    else:
        yield from _server(role, role.target, f"{listen} default_server", ("_",))
        listen = listen.replace(" backlog=4096", "")
    for name in [*(role.services if role.has(Feature.VIRTUAL_HOSTS) else []), *(n for n, t in others.items() if t)]:
        yield from _server(role, name, listen, what.domains(name))
    if role.has(Feature.METRICS):
        yield f"server {{ listen unix:{home}/admin.sock; access_log off; location / {{ stub_status; }} }}"


def _upstream(role: Role, name: str, targets: tuple[int, ...]) -> Iterator[str]:
    options = ""
    if role.has(Feature.CIRCUIT_BREAKER):
        options += f" max_conns={1 if name == 'narrow' else what.MAX_REQUESTS}"
    if role.has(Feature.OUTLIER_DETECTION):
        options += f" max_fails={what.CONSECUTIVE_5XX} fail_timeout=30s"
    servers = " ".join(f"server 127.0.0.1:{target}{options};" for target in targets)
    yield f"upstream {name} {{ least_conn; {servers} keepalive 256; keepalive_requests 1000000000; }}"


def _server(role: Role, name: str, listen: str, names: tuple[str, ...]) -> Iterator[str]:
    yield f"server {{ {listen}; server_name {' '.join(names)};"
    if role.has(Feature.FAULT) and name == "faulty":
        header, value = what.FAULT_HEADER
        yield f"  if ($http_{header.replace('-', '_')} = {value}) {{ return {what.FAULT_STATUS}; }}"
    if role.has(Feature.RBAC):
        yield "  if ($denied) { return 403; }"
    if role.has(Feature.CORS):
        # Without a value there is no such header.
        yield "  add_header access-control-allow-origin $origin always;"
    module = "grpc" if role.upstream_http2 else "proxy"
    canary = "$canary" if role.has(Feature.CANARY) and name in role.services else ""
    path = "$uri$is_args$args" if role.has(Feature.PATH_NORMALISATION) else ""
    yield f"  location / {{ {module}_pass {module if module == 'grpc' else 'http'}://{name}{canary}{path};"
    yield f"    {module}_set_header host $http_host;"
    if module == "proxy":
        yield '    proxy_http_version 1.1; proxy_set_header connection "";'
    if role.has(Feature.REQUEST_ID):
        yield f"    {module}_set_header x-request-id $id;"
    if role.has(Feature.RETRY):
        # Which answers are failures for outlier detection is said here, too.
        ejecting = " http_500" if name == "ejecting" else ""
        yield f"    {module}_next_upstream error timeout http_{what.RETRIED_STATUS}{ejecting};"
        yield f"    {module}_next_upstream_tries {what.RETRIES + 1};"
    yield "  } }"
