"""What weft.yaml declares, what the user has applied since, and a followed directory: who wins, and what stays."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.controlplane.peers import Mesh, until

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  http:
  - timeout: {timeout}
    route:
    - destination: {{host: {name}}}
"""


def documents(**timeouts: str) -> list[dict[str, str]]:
    return [
        {"file": f"{name}.yaml", "text": RULE.format(name=name, timeout=timeout)} for name, timeout in timeouts.items()
    ]


def up(mesh: Mesh, *, fresh: bool = False, **timeouts: str) -> None:
    """Start the mesh as the next `weft up` would, with these rules in weft.yaml."""
    if mesh.process is not None:
        assert mesh.stop() == 0
    mesh.declaration.update(documents=documents(**timeouts), boot=uuid.uuid4().hex, fresh=fresh)
    mesh.start()


def timeouts(mesh: Mesh) -> dict[str, str]:
    found = mesh.client.get("/v1/config")
    return {item["key"]["name"]: item["manifest"]["spec"]["http"][0]["timeout"] for item in found}


def test_the_declaration_is_applied_and_follows_weft_yaml_at_the_next_up() -> None:
    mesh = Mesh()
    try:
        up(mesh, reviews="1s", ratings="1s")
        assert timeouts(mesh) == {"reviews": "1s", "ratings": "1s"}
        up(mesh, reviews="2s")
        assert timeouts(mesh) == {"reviews": "2s"}
        assert mesh.client.get("/v1/version")["kept"] == []
    finally:
        mesh.close()


def test_what_the_user_applied_stays_at_the_next_up_and_is_said() -> None:
    mesh = Mesh()
    try:
        up(mesh, reviews="1s", ratings="1s")
        mesh.apply(RULE.format(name="reviews", timeout="9s"), file="mine.yaml")
        mesh.apply(RULE.format(name="cart", timeout="9s"), file="cart.yaml")
        up(mesh, reviews="1s", ratings="2s")
        assert timeouts(mesh) == {"reviews": "9s", "ratings": "2s", "cart": "9s"}
        assert [key["name"] for key in mesh.client.get("/v1/version")["kept"]] == ["cart", "reviews"]
        kept = next(event for event in mesh.client.events(replay=100) if event["type"] == "kept")
        assert [key["name"] for key in kept["keys"]] == ["reviews", "cart"]
    finally:
        mesh.close()


def test_objects_that_name_no_namespace_are_in_that_of_weft_yaml() -> None:
    mesh = Mesh({"namespace": "shop"})
    try:
        up(mesh, reviews="1s")
        mesh.apply(RULE.format(name="cart", timeout="9s"), file="cart.yaml")
        elsewhere = RULE.format(name="else", timeout="9s").replace("{name: else}", "{name: else, namespace: elsewhere}")
        mesh.apply(elsewhere, file="else.yaml")
        there = {("shop", "cart"), ("shop", "reviews"), ("elsewhere", "else")}
        assert places(mesh) == there
        mesh.restart()
        assert places(mesh) == there
        # What the user applied stays where it was put; weft.yaml's own objects go with it.
        mesh.declaration["namespace"] = "store"
        up(mesh, reviews="1s")
        assert places(mesh) == {("shop", "cart"), ("store", "reviews"), ("elsewhere", "else")}
    finally:
        mesh.close()


def places(mesh: Mesh) -> set[tuple[str, str]]:
    """Return (namespace, name) of every object."""
    return {(item["key"]["namespace"], item["key"]["name"]) for item in mesh.client.get("/v1/config")}


def test_fresh_forgets_what_the_user_applied() -> None:
    mesh = Mesh()
    try:
        up(mesh, reviews="1s")
        mesh.apply(RULE.format(name="reviews", timeout="9s"), file="mine.yaml")
        mesh.apply(RULE.format(name="cart", timeout="9s"), file="cart.yaml")
        up(mesh, reviews="1s", fresh=True)
        assert timeouts(mesh) == {"reviews": "1s"}
    finally:
        mesh.close()


def test_a_restart_is_no_new_up() -> None:
    """A control plane that died applies nothing again, not even with `fresh`."""
    mesh = Mesh()
    try:
        up(mesh, reviews="1s", fresh=True)
        mesh.apply(RULE.format(name="cart", timeout="9s"), file="cart.yaml")
        key = {"kind": "VirtualService", "namespace": "default", "name": "reviews"}
        mesh.client.post("/v1/delete", {"keys": [key]})
        mesh.restart()
        assert timeouts(mesh) == {"cart": "9s"}
    finally:
        mesh.close()


def test_a_declaration_that_is_refused_ends_the_process_with_all_problems() -> None:
    mesh = Mesh()
    mesh.declaration["documents"] = documents(reviews="soon", ratings="later")
    try:
        mesh.start(ready=False)
        assert mesh.process is not None
        assert mesh.process.wait(20) == 3
        errors = mesh.errors.read_text()
        assert "reviews.yaml:7:14: error: spec.http[0].timeout" in errors
        assert "ratings.yaml:7:14: error: spec.http[0].timeout" in errors
        assert not mesh.paths.api_socket.exists()
    finally:
        mesh.close()


def test_a_followed_directory_is_taken_in_as_it_changes_and_owns_its_objects(tmp_path: Path) -> None:
    file = tmp_path / "reviews.yaml"
    file.write_text(RULE.format(name="reviews", timeout="1s"))
    mesh = Mesh({"config_dir": str(tmp_path)})
    try:
        mesh.start()
        assert timeouts(mesh) == {"reviews": "1s"}
        file.write_text(RULE.format(name="reviews", timeout="2s"))
        until(lambda: timeouts(mesh) == {"reviews": "2s"})

        file.write_text(RULE.format(name="reviews", timeout="soon"))
        invalid = next(event for event in mesh.client.events(replay=100) if event["type"] == "invalid")
        assert invalid["problems"][0]["path"] == "spec.http[0].timeout"
        assert timeouts(mesh) == {"reviews": "2s"}

        refusal = mesh.refusal(RULE.format(name="reviews", timeout="5s"))
        assert f"comes from {file}" in refusal

        file.unlink()
        until(lambda: timeouts(mesh) == {})
    finally:
        mesh.close()


INVALID = RULE.format(name="reviews", timeout="soon").encode()
NO_TEXT = b"\xff"


@pytest.mark.parametrize("wrong", [INVALID, NO_TEXT], ids=["invalid", "no text"])
def test_a_directory_that_is_wrong_does_not_keep_a_control_plane_down(tmp_path: Path, wrong: bytes) -> None:
    """One that is started again goes on with what was good last, tells, and follows; a new `weft up` is refused."""
    file = tmp_path / "reviews.yaml"
    file.write_text(RULE.format(name="reviews", timeout="1s"))
    mesh = Mesh({"config_dir": str(tmp_path)})
    try:
        up(mesh, ratings="1s")
        assert timeouts(mesh) == {"reviews": "1s", "ratings": "1s"}
        mesh.kill()
        file.write_bytes(wrong)
        mesh.start()
        told = next(event for event in mesh.client.events(replay=100) if event["type"] in ("invalid", "failed"))
        assert f"{file}" in str(told)
        assert timeouts(mesh) == {"reviews": "1s", "ratings": "1s"}
        file.write_text(RULE.format(name="reviews", timeout="2s"))
        until(lambda: timeouts(mesh) == {"reviews": "2s", "ratings": "1s"})
        file.write_bytes(wrong)
        assert mesh.stop() == 0
        mesh.declaration["boot"] = "next"
        mesh.start(ready=False)
        assert mesh.process is not None
        assert mesh.process.wait(20) in (3, 8)
        assert f"{file}:" in mesh.errors.read_text()
    finally:
        mesh.close()


def test_a_file_that_cannot_be_read_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "reviews.yaml"
    file.write_text(RULE.format(name="reviews", timeout="1s"))
    mesh = Mesh({"config_dir": str(tmp_path)})
    try:
        mesh.start()
        file.write_bytes(NO_TEXT)
        failed = next(event for event in mesh.client.events(replay=100) if event["type"] == "failed")
        assert f"{file}:1:1" in failed["text"]
        assert timeouts(mesh) == {"reviews": "1s"}
        file.write_text(RULE.format(name="reviews", timeout="2s"))
        until(lambda: timeouts(mesh) == {"reviews": "2s"})
    finally:
        mesh.close()
