"""The bench's configurations are what their peers accept, and its verdicts follow from its figures."""

import json
import subprocess
from dataclasses import replace

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.access_loggers.stats.v3 import stats_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

from bench import measure, role
from bench.certificates import Authority
from bench.configurations import haproxy, nginx, xds
from bench.goals import judged
from bench.measure import Series, Table
from bench.process import program
from bench.report import as_json, readme
from bench.role import Feature, Ports, Role
from tests.bench import ABOUT

PORTS = Ports((1001, 1002), canary=1003, echo=(1004, 1005), failing=1006, busy=1007, slow=1008, impostor=1009)


@pytest.fixture
def roles(tmp_path):
    authority = Authority(tmp_path / "certificates")
    mesh = role.OUTBOUND_MESH | {Feature.PEER_IDENTITY}
    return {
        "bare": Role(PORTS, role.BARE),
        "mesh": Role(PORTS, mesh, upstream_tls=authority.caller, upstream_http2=True),
        "inbound": Role(PORTS, role.INBOUND_MESH, inbound=True, hosts=1, downstream_tls=authority.called),
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
    made = xds.resources(roles["mesh"], 1000, tmp_path / "log", data_plane="weft-proxy")
    (routes,) = (value for url, _, _, value in made if url.endswith("RouteConfiguration"))
    hosts = {host.name: set(host.domains) for host in route_pb2.RouteConfiguration.FromString(routes).virtual_hosts}
    mesh = [hosts[service] for service in roles["mesh"].services]
    assert len(mesh) == 50
    assert {len(each) for each in mesh} == {5}
    assert len(set().union(*hosts.values())) == 5 * len(hosts)


def contexts(made):
    """Yield each `CommonTlsContext` of resources."""
    kinds = {"Listener": listener_pb2.Listener, "Cluster": cluster_pb2.Cluster}
    for url, _, _, value in made:
        if kind := kinds.get(url.rpartition(".")[2]):
            found = kind.FromString(value)
            for part in [found] if kind is cluster_pb2.Cluster else found.filter_chains:
                packed = part.transport_socket.typed_config
                for context in (tls_pb2.UpstreamTlsContext(), tls_pb2.DownstreamTlsContext()):
                    if packed.Unpack(context):
                        yield context.common_tls_context


@pytest.mark.parametrize("name", ["mesh", "inbound"])
def test_every_tls_context_names_x25519_alone(roles, name, tmp_path):
    found = list(contexts(xds.resources(roles[name], 1000, tmp_path / "log", data_plane="envoy")))
    assert found
    assert {tuple(context.tls_params.ecdh_curves) for context in found} == {("X25519",)}


@pytest.mark.parametrize("name", ["mesh", "inbound"])
def test_envoy_is_told_to_make_istios_metrics_and_weft_proxy_is_not(roles, name, tmp_path):
    """The two listeners differ in this alone."""

    def listener(data_plane):
        made = xds.resources(roles[name], 1000, tmp_path / "log", data_plane=data_plane)
        return listener_pb2.Listener.FromString(made[0][3])

    def manager(of):
        found = http_connection_manager_pb2.HttpConnectionManager()
        assert of.filter_chains[0].filters[0].typed_config.Unpack(found)
        return found

    envoys, ours = manager(listener("envoy")), manager(listener("weft-proxy"))
    statistics = stats_pb2.Config()
    assert envoys.access_log.pop().typed_config.Unpack(statistics)
    assert envoys == ours
    stats = [each.stat for each in (*statistics.counters, *statistics.histograms)]
    assert {len({tag.name for tag in stat.tags}) for stat in stats} == {25}
    assert {stat.name for stat in stats} == {
        "requests_total",
        "request_duration_milliseconds",
        "request_bytes",
        "response_bytes",
    }


def test_what_is_published_of_a_configuration_has_no_secret_and_no_path_of_this_machine(roles, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "KEPT", tmp_path / "kept")
    home = tmp_path / f"{measure.WORK_PREFIX}x" / "s3" / "in" / "envoy"
    made = xds.resources(roles["inbound"], 1000, home / "access.log", data_plane="envoy")
    measure.keep("one.json", xds.readable(made), home)
    text = (tmp_path / "kept" / "one.json").read_text()
    assert '"path": "HOME/access.log"' in text
    assert str(tmp_path) not in text
    assert "BEGIN" not in text
    assert {one["@type"].rpartition(".")[2] for one in json.loads(text)} >= {"Listener", "Cluster"}


def test_goals_are_judged_by_the_medians_of_one_table():
    series = {"weft-proxy": Series("us", [1, 30, 31]), "envoy": Series("us", [100]), "haproxy": Series("us", [35])}
    found = {goal: rest for _, goal, *rest in judged([Table("s1", "S1", series)])}
    assert found == {"<= 0.33 x envoy": ["0.30", "", True], "<= 0.85 x haproxy": ["0.86", "", False]}


def test_beside_each_goal_stands_what_the_byte_relay_needs():
    peers = {"weft-proxy": Series("us", [17]), "envoy": Series("us", [34]), "relay": Series("us", [15])}
    start = {"weft-proxy": Series("ms", [9]), "relay": Series("ms", [7])}
    found = {goal: rest for _, goal, *rest in judged([Table("s1", "S1", peers), Table("start.answering", "S", start)])}
    assert found == {"<= 0.33 x envoy": ["0.50", "0.44", False], "<= 10 ms": ["9.0", "7.0", True]}


def test_the_readme_shows_what_was_not_measured_as_such():
    table = Table("s1", "S1", {"weft-proxy": Series("us", [10]), "haproxy": Series("us", [20])})
    assert "| bare HTTP/1.1 | 10.0 | 20.0 | - | 0.50 |" in readme(json.loads(as_json([table], ABOUT)))
