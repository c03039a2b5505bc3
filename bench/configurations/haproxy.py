"""
HAProxy's configuration of a role.

It lacks histograms with labels, and knows DNS names in place of SPIFFE identities (of its callers: the certificate's subject).
Its limit of requests is a limit of connections over HTTP/1.1, because a connection carries one at a time.
Its records go through a ring to a connection: those of a turn are sent at once, as the others gather theirs and write them at once. A
log to a file or to standard output would be a system call for each record.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench import role as what
from bench.certificates import STRANGER
from bench.role import Feature, Role, Tls
from weft.translate.access_log import RECORD

_SAMPLES = {
    "%START_TIME%": "%tr",
    "%REQ(:METHOD)%": "%HM",
    "%REQ(:AUTHORITY)%": "%[capture.req.hdr(0),json(utf8s)]",
    "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%": "%HPO",
    "%PROTOCOL%": "%HV",
    "%RESPONSE_CODE%": "%ST",
    "%RESPONSE_FLAGS%": "%ts",
    "%RESPONSE_CODE_DETAILS%": "%tsc",
    "%ROUTE_NAME%": "%ft",
    "%UPSTREAM_CLUSTER%": "%b",
    "%UPSTREAM_HOST%": "%si:%sp",
    "%DURATION%": "%Ta",
    "%BYTES_RECEIVED%": "%U",
    "%BYTES_SENT%": "%B",
    "%REQ(X-REQUEST-ID)%": "%[capture.req.hdr(1),json(utf8s)]",
    "%REQ(USER-AGENT)%": "%[capture.req.hdr(2),json(utf8s)]",
    "%DOWNSTREAM_REMOTE_ADDRESS%": "%ci:%cp",
    "%REQUESTED_SERVER_NAME%": "%[ssl_fc_sni]",
    "%UPSTREAM_REQUEST_ATTEMPT_COUNT%": "%rc",
    "%UPSTREAM_TRANSPORT_FAILURE_REASON%": "%sslv",
    "%DOWNSTREAM_PEER_URI_SAN%": "%[ssl_c_s_dn]",
}
"""The product's record (weft.translate.access_log.RECORD) in HAProxy's words; where it has none, the nearest it has."""


RING_BYTES = 4 * 1024 * 1024
"""Records of a tenth of a second at full load; what does not fit because nobody reads is lost, and fails the run."""


def configuration(role: Role, port: int, home: Path, records: int) -> str:
    """
    Return haproxy.cfg of a proxy at *port* of the loopback; writes the map of host names that it reads to *home*.

    At the port *records* somebody takes its access records.
    """
    lines = [*_globals(role, home, records), *_frontend(role, port, home)]
    for name, targets, under_load in _backends(role):
        lines += _backend(role, name, targets, under_load=under_load)
    return "\n".join(lines) + "\n"


def _globals(role: Role, home: Path, records: int) -> Iterator[str]:
    if role.has(Feature.ACCESS_RECORD):
        yield from ("ring records", "  format raw", "  maxlen 4096", f"  size {RING_BYTES}")
        yield from ("  timeout connect 5s", "  timeout server 600s", f"  server sink 127.0.0.1:{records}")
    yield from ("global", f"  nbthread {role.workers}", "  maxconn 9000")
    yield f"  stats socket {home}/admin.sock level admin"
    yield "  expose-experimental-directives"  # normalize-uri is one
    if role.has(Feature.ACCESS_RECORD):
        yield "  log ring@records len 4096 format raw local0 info"
    yield from ("defaults", f"  mode {'tcp' if role.tcp else 'http'}")
    yield from (
        "  timeout client 600s",
        "  timeout server 600s",
        "  timeout connect 5s",
        "  timeout http-keep-alive 600s",
    )
    if role.has(Feature.ACCESS_RECORD):
        yield "  log global"
    if not role.tcp:
        yield "  http-reuse always"


def _frontend(role: Role, port: int, home: Path) -> Iterator[str]:
    yield "frontend in"
    yield f"  bind 127.0.0.1:{port} backlog 4096{_downstream_tls(role.downstream_tls)}"
    if role.tcp:
        if role.has(Feature.ACCESS_RECORD):
            yield "  option tcplog"
        yield f"  default_backend {role.target}"
        return
    if role.has(Feature.ACCESS_RECORD):
        fields = {**RECORD, "direction": ""}
        record = {
            name: _SAMPLES.get(value, "inbound" if role.inbound else "outbound") for name, value in fields.items()
        }
        text = ",".join(f'"{name}":"{sample}"' for name, sample in record.items())
        yield f"  log-format '{{{text}}}'"
    if role.has(Feature.REQUEST_ID):
        yield "  http-request set-header x-request-id %[uuid] unless { req.hdr(x-request-id) -m found }"
    yield "  http-request capture req.hdr(host) len 128"
    yield "  http-request capture req.hdr(x-request-id) len 64"
    yield "  http-request capture req.hdr(user-agent) len 128"
    if role.has(Feature.PATH_NORMALISATION):
        yield "  http-request normalize-uri path-strip-dot"
        yield "  http-request normalize-uri path-strip-dotdot full"
        yield "  http-request normalize-uri percent-decode-unreserved"
    if role.has(Feature.CLIENT_CERTIFICATE):
        details = 'Hash=%[ssl_c_der,sha2(256),hex,lower];Subject=\\"%[ssl_c_s_dn]\\"'
        yield f'  http-request set-header x-forwarded-client-cert "{details}"'
    if role.has(Feature.RBAC):
        yield "  http-request deny deny_status 403 if { method DELETE }"
        yield "  http-request deny deny_status 403 if { path_beg /admin } { method POST }"
        yield f"  http-request deny deny_status 403 if {{ path_beg {what.FORBIDDEN_PATH} }} {{ method GET }}"
    if role.has(Feature.PRINCIPAL) and role.downstream_tls:
        allowed = _name(role.downstream_tls)
        yield f"  http-request deny deny_status 403 unless {{ ssl_c_s_dn(CN) -m str {allowed} }}"
    names = home / "hosts.map"
    served = _served(role)
    names.write_text("".join(f"{domain} {service}\n" for service in served for domain in what.domains(service)))
    yield f"  http-request set-var(txn.service) req.hdr(host),field(1,:),lower,map_str({names})"
    if role.has(Feature.VIRTUAL_HOSTS):
        yield "  http-request return status 404 unless { var(txn.service) -m found }"
    if role.has(Feature.FAULT) and "faulty" in served:
        name, value = what.FAULT_HEADER
        condition = f"{{ var(txn.service) -m str faulty }} {{ req.hdr({name}) -m str {value} }}"
        yield f"  http-request return status {what.FAULT_STATUS} if {condition}"
    if role.has(Feature.CORS):
        origin = f"{{ req.hdr(origin) -m str {what.CORS_ORIGIN} }}"
        yield f"  http-request set-var(txn.origin) req.hdr(origin) if {origin}"
        yield (
            "  http-response set-header access-control-allow-origin %[var(txn.origin)] if { var(txn.origin) -m found }"
        )
    if role.has(Feature.CANARY):
        name, value = what.CANARY_HEADER
        yield (
            "  use_backend %[var(txn.service)]-canary "
            f"if {{ req.hdr({name}) -m str {value} }} {{ var(txn.service) -m beg service- }}"
        )
    yield "  use_backend %[var(txn.service)] if { var(txn.service) -m found }"
    if not role.has(Feature.VIRTUAL_HOSTS):
        yield f"  default_backend {role.target}"


def _served(role: Role) -> list[str]:
    found = list(role.services) if role.has(Feature.VIRTUAL_HOSTS) else []
    probes = {
        "echo": bool(role.ports.echo),
        "faulty": bool(role.ports.echo) and role.has(Feature.FAULT),
        "retried": role.has(Feature.RETRY),
        "ejecting": role.has(Feature.OUTLIER_DETECTION),
        "narrow": role.has(Feature.CIRCUIT_BREAKER),
        "uneven": role.has(Feature.LEAST_REQUEST),
        "impostor": role.has(Feature.PEER_IDENTITY),
        "stranger": role.has(Feature.PEER_IDENTITY),
    }
    return [*found, *(name for name, wanted in probes.items() if wanted)]


def _backends(role: Role) -> Iterator[tuple[str, list[int | str], bool]]:
    """Yield name, ports (or whole addresses) and whether it leads to what is under load."""
    ports = role.ports
    for service in role.services:
        targets: list[int | str] = list(ports.answer)
        if role.endpoints and service != role.target:
            number = role.services.index(service)
            targets = [f"10.{1 + each}.{number >> 8}.{number & 255}:8080" for each in range(role.endpoints)]
        yield service, targets, True
        if role.has(Feature.CANARY):
            yield f"{service}-canary", [ports.canary], role.upstream_tls is None
    if role.tcp:
        return
    through = role.upstream_tls is not None
    for name in _served(role):
        if name in {"echo", "faulty"}:
            yield name, list(ports.answer if through else ports.echo), through
        elif name in {"impostor", "stranger"}:
            yield name, [ports.impostor], False
        elif name in what.PROBED:
            other = {"retried": [ports.busy], "ejecting": [ports.failing], "narrow": [], "uneven": [ports.slow]}[name]
            yield name, [ports.echo[0], *other], False


def _backend(role: Role, name: str, targets: list[int | str], *, under_load: bool) -> Iterator[str]:
    yield f"backend {name}"
    yield "  balance leastconn"
    if role.has(Feature.RETRY):
        yield f"  retries {what.RETRIES}"
        yield "  option redispatch 1"
        yield f"  retry-on conn-failure empty-response {what.RETRIED_STATUS}"
    options = ""
    if name == "narrow":
        options += " maxconn 1"
        yield "  timeout queue 100ms"
    elif role.has(Feature.CIRCUIT_BREAKER):
        options += f" maxconn {what.MAX_REQUESTS} maxqueue {what.MAX_REQUESTS}"
    if role.has(Feature.OUTLIER_DETECTION) and (under_load or name == "ejecting"):
        options += f" check inter 30s observe layer7 error-limit {what.CONSECUTIVE_5XX} on-error mark-down"
        # What is checked for is that it accepts, over the same TLS as requests.
    if under_load and role.upstream_tls:
        options += _upstream_tls(role.upstream_tls, http2=role.upstream_http2)
    elif under_load and role.upstream_http2:
        options += " proto h2"
    elif name in {"impostor", "stranger"} and role.upstream_tls:
        options += _upstream_tls(role.upstream_tls, http2=False, name=STRANGER if name == "stranger" else "")
    for number, target in enumerate(targets):
        yield f"  server {number} {target if isinstance(target, str) else f'127.0.0.1:{target}'}{options}"


def _name(tls: Tls) -> str:
    """Return the name of who must be at the other side: in its certificate it is the subject, and a DNS name."""
    return tls.peer.rpartition("/")[2]


def _both(tls: Tls) -> Path:
    return tls.chain.with_suffix(".both.pem")


def _downstream_tls(tls: Tls | None) -> str:
    if tls is None:
        return ""
    versions = "ssl-min-ver TLSv1.3 curves X25519 alpn h2,http/1.1"
    return f" ssl crt {_both(tls)} ca-file {tls.roots} verify required {versions}"


def _upstream_tls(tls: Tls, *, http2: bool, name: str = "") -> str:
    # The server's certificate must be of the name that is asked for.
    names = f"sni str({name or _name(tls)}) alpn {'h2 proto h2' if http2 else 'http/1.1'} ssl-min-ver TLSv1.3"
    return f" ssl crt {_both(tls)} ca-file {tls.roots} verify required {names}"
