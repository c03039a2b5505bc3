"""
S2: what a mesh sidecar carries, over HTTP/1.1; with one request header, and with 14 (946 bytes).

A further line is Envoy without labels on its metrics, because those are dearer here than Istio's own filter makes them
(bench/configurations/xds.py).
"""

from __future__ import annotations

from dataclasses import replace

from bench import backends, role
from bench.contest import by_wrk, contest
from bench.measure import Run, Table
from bench.report import WITHOUT_LABELS
from bench.role import Feature, Role

BODY_BYTES = 1024
CONNECTIONS = 64

BROWSER_HEADERS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.7,de;q=0.3",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Referer: http://shop.example/products/list?page=3&sort=price",
    "Cookie: session=7f1c8b5e2a9d4c6f8e0b1a2c3d4e5f60; theme=dark; consent=analytics-no.marketing-no; region=eu-central-1",
    "Cache-Control: no-cache",
    "Authorization: Bearer eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJqYXNvbiIsImlhdCI6MTc2NDQwMDAwMH0.c2lnbmF0dXJl",
    "X-Requested-With: XMLHttpRequest",
    "X-B3-TraceId: 463ac35c9f6413ad48485a3953bb6124",
    "X-B3-SpanId: a2fb4a1d1a96d312",
    "X-B3-Sampled: 0",
    "X-Client-Version: web-2026.11.3",
)
"""Thirteen beside Host, as a browser behind a gateway sends them."""


def run(run: Run) -> list[Table]:
    work = run.folder("s2")
    among = ("weft-proxy", "envoy", "haproxy", "nginx")
    tables = []
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:
        mesh = Role(ports, role.OUTBOUND_MESH)
        variants = {WITHOUT_LABELS: ("envoy", replace(mesh, features=mesh.features - {Feature.LABELS}))}
        for count, extra in ((1, ()), (14, BROWSER_HEADERS)):
            headers = (f"Host: {role.host(mesh.target)}", *extra)
            apply = by_wrk(run, work, length=BODY_BYTES, connections=CONNECTIONS, headers=headers)
            series = contest(run, "s2", mesh, apply, among=among, variants=variants)
            title = f"S2: mesh features, HTTP/1.1, {count} request header{'s' if count > 1 else ''}"
            tables.append(Table(f"s2.{count}", title, series))
    return tables
