"""The bench's configurations are what their peers accept, and its verdicts follow from its figures."""

import subprocess
from dataclasses import replace

import pytest
from envoy.config.route.v3 import route_pb2

from bench import role
from bench.certificates import Authority
from bench.configurations import haproxy, nginx, xds
from bench.goals import judged
from bench.measure import Series, Table
from bench.process import program
from bench.report import readme
from bench.role import Feature, Ports, Role

PORTS = Ports((1001, 1002), canary=1003, echo=(1004, 1005), failing=1006, busy=1007)


@pytest.fixture
def roles(tmp_path):
    authority = Authority(tmp_path / "certificates")
    caller, called = authority.issue("caller", peer="called"), authority.issue("called", peer="caller")
    return {
        "bare": Role(PORTS, role.BARE),
        "mesh": Role(PORTS, role.OUTBOUND_MESH, upstream_tls=caller, upstream_http2=True),
        "inbound": Role(PORTS, role.INBOUND_MESH, inbound=True, hosts=1, downstream_tls=called),
        "tcp": Role(PORTS, frozenset({Feature.ACCESS_RECORD}), tcp=True),
    }


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["bare", "mesh", "inbound", "tcp"])
def test_haproxy_accepts_its_configuration(roles, name, tmp_path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(haproxy.configuration(roles[name], 1000, tmp_path, 1010))
    done = subprocess.run([program("haproxy"), "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A rule that is never reached would be a feature that costs nothing.
    assert "WARNING" not in done.stderr


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["bare", "mesh", "inbound"])
def test_nginx_accepts_its_configuration(roles, name, tmp_path):
    file = tmp_path / "nginx.conf"
    wanted = replace(roles[name], features=roles[name].features - {Feature.CLIENT_CERTIFICATE})
    file.write_text(nginx.configuration(wanted, 1000, tmp_path, tmp_path / "access.log"))
    done = subprocess.run([program("nginx"), "-t", "-c", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_host_of_the_mesh_has_five_domains_of_its_own(roles, tmp_path):
    made = xds.resources(roles["mesh"], 1000, tmp_path / "log")
    (routes,) = (value for url, _, _, value in made if url.endswith("RouteConfiguration"))
    hosts = {host.name: set(host.domains) for host in route_pb2.RouteConfiguration.FromString(routes).virtual_hosts}
    mesh = [hosts[service] for service in roles["mesh"].services]
    assert len(mesh) == 50
    assert {len(each) for each in mesh} == {5}
    assert len(set().union(*hosts.values())) == 5 * len(hosts)


def test_goals_are_judged_by_the_medians_of_one_table():
    series = {"weft-proxy": Series("us", [1, 30, 31]), "envoy": Series("us", [100]), "haproxy": Series("us", [35])}
    found = {goal: (measured, met) for _, goal, measured, met in judged([Table("s1", "S1", series)])}
    assert found == {"<= 0.33 x envoy": ("0.30", True), "<= 0.85 x haproxy": ("0.86", False)}


def test_the_readme_shows_what_was_not_measured_as_such():
    table = Table("s1", "S1", {"weft-proxy": Series("us", [10]), "haproxy": Series("us", [20])})
    assert "| bare HTTP/1.1 | 10.0 | 20.0 | - | 0.50 |" in readme([table], 3, 2)
