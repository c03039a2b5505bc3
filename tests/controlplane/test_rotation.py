"""Rotation of the authority's keys, seen by agents and people."""

from __future__ import annotations

import hashlib
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from tests.controlplane.peers import Agent, Mesh, until
from weft.errors import UsageError, WeftError


def certified(mesh: Mesh) -> Agent:
    """Return an agent that has a certificate."""
    agent = mesh.agent("reviews", ports=[{"number": 9080, "protocol": "HTTP"}])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = request.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.PEM).decode()
    agent.send(type="sign", csr=csr)
    agent.workload["not_after"] = agent.receive("certificate")["not_after"]
    return agent


def fingerprints(bundle: str) -> list[str]:
    parts = [part + "-----END CERTIFICATE-----" for part in bundle.split("-----END CERTIFICATE-----")[:-1]]
    return [hashlib.sha256(ssl.PEM_cert_to_DER_cert(part.strip())).hexdigest() for part in parts]


def signing(mesh: Mesh) -> int:
    return int(mesh.client.get("/v1/ca")["intermediate"]["root"])


def test_a_root_is_rotated_only_when_every_proxy_trusts_the_next(mesh: Mesh) -> None:
    """Who does not is told the bundle once more, waited for, and named; nothing has changed then."""
    agent = certified(mesh)
    assert mesh.client.get("/v1/ca")["not_trusting"] == [agent.name]
    with pytest.raises(WeftError, match=f"Not rotated: {agent.name} did not confirm within 10 s"):
        mesh.client.post("/v1/ca/rotate", {"what": "root"})
    assert signing(mesh) == 1
    roots = fingerprints(agent.receive("bundle")["bundle"])
    assert len(roots) == 2

    rotating = threading.Thread(target=lambda: mesh.client.post("/v1/ca/rotate", {"what": "root"}))
    rotating.start()
    assert fingerprints(agent.receive("bundle")["bundle"]) == roots
    agent.send(type="trusts", roots=roots)
    rotating.join()

    assert signing(mesh) == 2
    assert fingerprints(agent.receive("bundle")["bundle"])[:2] == roots, "the one that signed is still trusted"
    agent.receive("renew")
    assert [root["state"] for root in mesh.client.get("/v1/ca")["roots"]] == ["retiring", "signing", "standby"]


def test_an_intermediate_is_rotated_at_once(mesh: Mesh) -> None:
    """No proxy needs to learn anything for that."""
    agent = certified(mesh)
    before = mesh.client.get("/v1/ca")
    after = mesh.client.post("/v1/ca/rotate", {"what": "intermediate"})
    assert after["intermediate"]["fingerprint"] != before["intermediate"]["fingerprint"]
    assert after["roots"] == before["roots"]
    agent.receive("renew")


def test_an_agent_that_comes_back_is_told_the_bundle_and_waited_for_no_more_if_it_is_gone(mesh: Mesh) -> None:
    agent = certified(mesh)
    agent.reconnect()
    assert len(fingerprints(agent.receive("bundle")["bundle"])) == 2
    agent.leave()
    until(lambda: mesh.client.get("/v1/ca")["standby_trusted"])
    mesh.client.post("/v1/ca/rotate", {"what": "root"})
    assert signing(mesh) == 2


def test_only_what_there_is_can_be_rotated(mesh: Mesh) -> None:
    with pytest.raises(UsageError, match="one of root, intermediate"):
        mesh.client.post("/v1/ca/rotate", {"what": "leaf"})
