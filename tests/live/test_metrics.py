"""`weft metrics` on real proxies of both kinds: what one mesh counts, in one exposition, with Istio's labels."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from tests.live.load import Connection
from tests.live.mesh import LiveMesh, live_mesh
from weft.cli.main import cli
from weft.telemetry.exposition import CONTENT_TYPE, LABEL, Family, parse

LABELS = {
    "workload",
    "reporter",
    *(f"{end}_workload" for end in ("source", "destination")),
    *(f"{end}_workload_namespace" for end in ("source", "destination")),
    *(f"{end}_principal" for end in ("source", "destination")),
    *(f"{end}_app" for end in ("source", "destination")),
    *(f"{end}_version" for end in ("source", "destination")),
    *(f"{end}_cluster" for end in ("source", "destination")),
    *(f"{end}_canonical_service" for end in ("source", "destination")),
    *(f"{end}_canonical_revision" for end in ("source", "destination")),
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_code",
    "response_flags",
    "connection_security_policy",
}
"""Istio's of `istio_requests_total` (istio.io/docs/reference/config/metrics), and whose proxy counted."""


def with_mesh(monkeypatch: pytest.MonkeyPatch, what: Callable[[LiveMesh], Any]) -> None:
    """Run *what* in a thread beside a mesh: `left` has called `right`, a weft-proxy each, and `other` is an Envoy."""

    async def run() -> None:
        async with live_mesh([("left", "weft-proxy"), ("right", "weft-proxy"), ("other", "envoy")]) as mesh:
            for name, value in mesh.mesh.environment.items():
                monkeypatch.setenv(name, value)
            port = mesh.ports["right"]
            connection = Connection(mesh["left"].outbound[port], f"right:{port}")
            assert (await connection.ask("/echo", b"hello"))[0] == 200
            connection.close()
            await asyncio.to_thread(what, mesh)

    asyncio.run(run())


def samples(families: dict[str, Family], name: str, **wanted: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each sample of *name* that has the *wanted* labels."""
    found = [(dict(LABEL.findall(labels)), float(value)) for sample, labels, value in families[name].samples]
    return [(labels, value) for labels, value in found if wanted.items() <= labels.items()]


@pytest.mark.conformance
def test_metrics_of_all_proxies_are_one_exposition_with_istios_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of a call name each other; Envoy's own are beside them; a proxy that is gone is said to be."""

    def look(mesh: LiveMesh) -> None:
        result = CliRunner().invoke(cli, ["metrics"], prog_name="weft")
        assert (result.exit_code, result.stderr) == (0, "")
        heads = [line for line in result.stdout.splitlines() if line.startswith("# TYPE ")]
        assert len(heads) == len({line.split()[2] for line in heads})
        families = parse(result.stdout)
        up = {labels["workload"]: value for labels, value in samples(families, "weft_proxy_up")}
        assert up == {"left-v1-0": 1, "right-v1-0": 1, "other-v1-0": 1}
        assert samples(families, "envoy_server_live", workload="other-v1-0")
        principals = {
            "source_principal": "spiffe://cluster.local/ns/default/sa/left",
            "destination_principal": "spiffe://cluster.local/ns/default/sa/right",
        }
        common = {
            **principals,
            "source_canonical_service": "left",
            "destination_canonical_service": "right",
            "destination_canonical_revision": "v1",
            "source_cluster": mesh.mesh.client.mesh,
            "destination_cluster": mesh.mesh.client.mesh,
            "destination_service": "right.default.svc.cluster.local",
            "destination_service_name": "right",
            "destination_service_namespace": "default",
            "request_protocol": "http",
            "response_code": "200",
        }
        for workload, reporter, policy in (
            ("left-v1-0", "source", "unknown"),
            ("right-v1-0", "destination", "mutual_tls"),
        ):
            wanted = {**common, "reporter": reporter, "connection_security_policy": policy}
            found = samples(families, "istio_requests_total", workload=workload, **wanted)
            assert found, f"{workload}: {samples(families, 'istio_requests_total', workload=workload)}"
            assert set(found[0][0]) == LABELS
        only = parse(CliRunner().invoke(cli, ["metrics", "right"], prog_name="weft").stdout)
        assert {labels["workload"] for labels, _ in samples(only, "istio_requests_total")} == {"right-v1-0"}
        assert CliRunner().invoke(cli, ["metrics", "rihgt"], prog_name="weft").exit_code == 4
        mesh["right"].files.admin_socket.unlink()
        result = CliRunner().invoke(cli, ["metrics"], prog_name="weft")
        assert result.exit_code == 0
        assert "right-v1-0" in result.stderr
        assert samples(parse(result.stdout), "weft_proxy_up", workload="right-v1-0")[0][1] == 0
        assert CliRunner().invoke(cli, ["metrics", "right"], prog_name="weft").exit_code == 1

    with_mesh(monkeypatch, look)


@pytest.mark.conformance
def test_metrics_are_served_to_who_scrapes_until_the_mesh_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def scrape(mesh: LiveMesh) -> None:
        command = [sys.executable, "-m", "weft.cli.main", "metrics", "--listen", "0"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().split()[-1]
                with urllib.request.urlopen(address, timeout=30) as answer:
                    assert answer.headers["Content-Type"] == CONTENT_TYPE
                    families = parse(answer.read().decode())
                assert len(samples(families, "weft_proxy_up")) == 3
                assert status(address.replace("/metrics", "/")) == 404
                assert mesh.mesh.process is not None
                mesh.mesh.process.kill()
                mesh.mesh.process.wait()
                assert status(address) == 503
            finally:
                process.kill()

    with_mesh(monkeypatch, scrape)


def status(address: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address, timeout=30)
    with caught.value as error:
        return error.code


@pytest.mark.parametrize("address", ["", "metrics", "127.0.0.1", "::1:80", "[::1]", "70000", "127.0.0.1:-1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    from weft.cli.metrics import address_of
    from weft.errors import UsageError

    with pytest.raises(UsageError, match="expected a port"):
        address_of(address)


def test_addresses_may_be_ports_names_and_of_both_families() -> None:
    from weft.cli.metrics import address_of

    assert address_of("15020") == ("127.0.0.1", 15020)
    assert address_of("localhost:0") == ("localhost", 0)
    assert address_of("[::1]:80") == ("::1", 80)
