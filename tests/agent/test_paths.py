"""Whose directories are believed, and which names are taken."""

from __future__ import annotations

import os
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from weft.agent import paths
from weft.errors import UsageError
from weft.registry.addresses import ipv6_of


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short, whatever test and user are called: sockets are below it, whose paths have a limit."""
    return tmp_path_factory.mktemp("p")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tmp_path.chmod(0o700)
    return {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}


def test_directories_are_made_for_the_user_alone(environment: dict[str, str], tmp_path: Path) -> None:
    mesh = paths.mesh_paths("shop", environment=environment)
    mesh.make()
    assert mesh.runtime == tmp_path / "weft/shop"
    assert mesh.state == tmp_path / "state/weft/shop"
    for directory in (mesh.runtime.parent, mesh.runtime, mesh.namespaces, mesh.state):
        assert directory.stat().st_mode & 0o777 == 0o700
    mesh.make()
    mesh.check()


@pytest.mark.parametrize("value", ["", "relative", "/no/such/directory", "/dev/null", "/tmp"])
def test_a_runtime_directory_that_is_not_ours_is_not_used(value: str, tmp_path: Path) -> None:
    """`sudo` keeps the variable of the user before."""
    mesh = paths.mesh_paths("shop", environment={"XDG_RUNTIME_DIR": value, "HOME": str(tmp_path)})
    assert mesh.runtime == Path(f"/tmp/weft-{os.getuid()}/shop")
    assert mesh.state == tmp_path / ".local/state/weft/shop"


def test_a_symbolic_link_in_place_of_the_directory_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "weft").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(paths.UnsafeDirectory, match="symbolic link"):
        paths.mesh_paths("shop", environment=environment).make()


def test_a_directory_that_others_may_write_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "weft").mkdir()
    (tmp_path / "weft").chmod(0o777)
    with pytest.raises(paths.UnsafeDirectory, match="writable by others"):
        paths.mesh_paths("shop", environment=environment).make()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "weft").mkdir(mode=0o700)
    os.chown(tmp_path / "weft", 12345, 12345)
    with pytest.raises(paths.UnsafeDirectory, match="belongs to uid 12345"):
        paths.mesh_paths("shop", environment=environment).make()


@pytest.mark.parametrize("name", ["", "a/b", "..", "A", "-a", "a-", "a_b", "x" * 64])
def test_a_name_that_is_no_label_is_refused(name: str, environment: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        paths.mesh_paths(name, environment=environment)
    with pytest.raises(UsageError):
        paths.mesh_paths("shop", environment=environment).workload(name)


def test_a_socket_whose_path_would_be_too_long_is_refused() -> None:
    mesh = paths.MeshPaths("shop", Path("/tmp") / ("x" * 60) / "shop", Path("/tmp/state"))
    with pytest.raises(UsageError, match="has 132 bytes, and may have 107"):
        mesh.workload("w" * 40)


def test_a_path_is_measured_by_the_sockets_that_the_workload_has() -> None:
    mesh = paths.MeshPaths("shop", Path("/run/user/1000/weft/online-boutique-integration"), Path("/tmp/state"))
    name = "recommendationservice-canary-v2-0"
    mesh.workload(name, relayed=True)
    mesh.workload("recommendationservice-canary-v2-10", published=[65535])
    with pytest.raises(UsageError, match=r"publish-65535\.sock has 110 bytes"):
        mesh.workload(name, relayed=True, published=[8080, 65535])


def test_without_a_home_the_state_has_no_place() -> None:
    with pytest.raises(UsageError, match="HOME"):
        paths.mesh_paths("shop", environment={})


def test_a_program_sees_the_directories_of_no_mesh(environment: dict[str, str], tmp_path: Path) -> None:
    assert paths.mesh_paths("shop", environment=environment).masked == (tmp_path / "weft", tmp_path / "state/weft")


def test_init_is_known(environment: dict[str, str]) -> None:
    """A link that leads nowhere, which has room on a full disk: nobody may take it for one that is not there."""
    mesh = paths.mesh_paths("m", environment=environment)
    mesh.make()
    for name in ("cart", "tea"):
        mesh.workload(name).make("shop")
    mesh.workload("cart").write_init(7)
    mesh.workload("cart").write_init(4242)  # the agent of the first was killed, and could not remove it
    assert paths.running(mesh) == {"cart": "shop"}
    assert mesh.workload("cart").read_init() == 4242
    with pytest.raises(FileNotFoundError):
        mesh.workload("tea").read_init()


def test_a_name_starts_afresh(environment: dict[str, str]) -> None:
    """A proxy would start with the configuration of who had the name before, though the control plane is there."""
    mesh = paths.mesh_paths("m", environment=environment)
    mesh.make()
    workload = mesh.workload("a")
    workload.make("shop")
    (workload.proxy_state / "configuration").write_text("of before")
    workload.make("shop")
    assert list(workload.proxy_state.iterdir()) == []


def test_the_service_of_what_has_left_a_trace_is_known(environment: dict[str, str]) -> None:
    """`weft logs web` finds what belonged to that service, also where it has ended and nobody else knows of it."""
    mesh = paths.mesh_paths("m", environment=environment)
    assert paths.workloads(mesh) == {}
    mesh.make()
    for service in ("front", "web"):
        mesh.workload("front-0").make(service)  # another workload has the name by now
    mesh.workload("began-0").directory.mkdir()
    assert paths.workloads(mesh) == {"began-0": "", "front-0": "web"}


def test_the_control_plane_is_known_while_it_is_there(environment: dict[str, str]) -> None:
    """By its number and its parent: people are told to kill it."""
    mesh = paths.mesh_paths("m", environment=environment)
    mesh.make()
    assert paths.control_plane(mesh) == 0
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        paths.write_mesh_file(mesh, {"up": os.getpid(), "control-plane": child.pid}, interception="")
        assert paths.control_plane(mesh) == child.pid
        paths.write_mesh_file(mesh, {"up": 1, "control-plane": child.pid}, interception="")
        assert paths.control_plane(mesh) == 0, "it is somebody else's"
        paths.write_mesh_file(mesh, {"up": os.getpid(), "control-plane": child.pid}, interception="")
    assert paths.control_plane(mesh) == 0, "it has ended"


def test_the_ranges_of_a_mesh_are_those_of_its_services_and_of_its_workloads(environment: dict[str, str]) -> None:
    """In IPv4, which are declared, and in IPv6, which is every mesh's."""
    mesh = paths.mesh_paths("shop", environment=environment)
    mesh.make()
    mesh.declaration.write_text('{"mesh_cidr": "10.99.0.0/16", "service_cidr": "240.240.0.0/16"}', "utf-8")
    ranges = [ip_network(text) for text in paths.mesh_ranges(mesh)]
    for address in ("240.240.0.7", "10.99.0.7", ipv6_of("10.99.0.7")):
        assert any(ip_address(address) in network for network in ranges), address
