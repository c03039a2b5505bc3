"""The control plane's process, seen by agents, proxies and people who apply things."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane.peers import Agent, Mesh, ScriptedProxy, running_mesh, until
from weft.errors import InvalidConfiguration, NotFound, UsageError
from weft.translate.resource import CLUSTER_LOAD_ASSIGNMENT, ROUTE_CONFIGURATION

REVIEWS = "reviews.default.svc.cluster.local"
CLUSTER_OF_REVIEWS = f"outbound|9080||{REVIEWS}"

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - timeout: {timeout}
    route:
    - destination: {{host: reviews}}
"""

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: another}
spec: {selector: {app: reviews}, ports: [{port: 9080}]}
"""

GATEWAY = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door}
spec:
  selector: {app: door}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
"""
"""For a gateway that a mesh has only where a test starts it."""


def two(mesh: Mesh) -> tuple[Agent, ScriptedProxy, Agent]:
    """A running client and a running server; return the client's agent and proxy, and the server's agent."""
    client, server = mesh.running("productpage", port=None), mesh.running("reviews")
    proxy = mesh.proxy(client)
    until(lambda: mesh.status(client.name)["synced"])
    return client, proxy, server


def receipt_when_acknowledged(mesh: Mesh, revision: int) -> Any:
    """Return the receipt of *revision* once the client's proxy has it; the server's never comes."""
    path = f"/v1/revisions/{revision}"
    until(lambda: "productpage-v1-0" in mesh.client.get(path)["acknowledged"])
    return mesh.client.get(path)


def test_a_registered_workload_gets_an_address_an_identity_and_the_names(mesh: Mesh) -> None:
    agent = mesh.agent("reviews", "v2", ports=[{"number": 9080, "protocol": "HTTP"}])
    registered = agent.registered

    assert registered["workload"] == "reviews-v2-0"
    assert registered["address"].startswith("10.244.")
    assert registered["address6"].startswith("fd77:ef7::")
    assert registered["identity"] == "spiffe://cluster.local/ns/default/sa/reviews"
    assert registered["node"]["id"].startswith(f"sidecar~{registered['address']}~reviews-v2-0.default~")
    assert list(agent.names(lambda names: REVIEWS in names)) == [REVIEWS]


def test_a_declared_service_has_its_name_and_address_before_any_program_runs() -> None:
    declared = {"services": [{"name": "reviews", "ports": [{"number": 9080, "protocol": "HTTP"}]}]}
    for mesh in running_mesh(declared):
        agent = mesh.agent("productpage", client_only=True)
        assert agent.names(bool) == {REVIEWS: ["240.240.0.2"]}


def test_no_endpoint_is_published_before_proxy_and_port_answer(mesh: Mesh) -> None:
    client = mesh.running("productpage", port=None)
    server = mesh.agent("reviews", ports=[{"number": 9080, "protocol": "HTTP"}])
    proxy = mesh.proxy(client)
    proxy.wait(lambda it: CLUSTER_OF_REVIEWS in it.resources.get(CLUSTER_LOAD_ASSIGNMENT, {}))
    assert proxy.endpoints(CLUSTER_OF_REVIEWS) == []

    server.send(type="proxy_ready", ready=True)
    until(lambda: mesh.client.get("/v1/workloads")[1]["proxy_ready"])
    assert proxy.endpoints(CLUSTER_OF_REVIEWS) == []

    server.send(type="listening", port=9080, address="127.0.0.1")
    proxy.wait(lambda it: it.endpoints(CLUSTER_OF_REVIEWS) == [server.registered["address"]])

    server.send(type="listening", port=9080, address=None)
    proxy.wait(lambda it: it.endpoints(CLUSTER_OF_REVIEWS) == [])


def test_settled_says_who_is_not_ready_and_which_proxy_is_behind(mesh: Mesh) -> None:
    """What `weft up` waits for before it calls the mesh ready."""
    client = mesh.running("productpage", port=None)
    server = mesh.agent("reviews", ports=[{"number": 9080, "protocol": "HTTP"}])
    mesh.proxy(client, silent=True)
    both = ["productpage-v1-0", "reviews-v1-0"]

    answer = mesh.client.get("/v1/settled", ready=",".join(both), wait=0.1)
    assert answer == {"unready": ["reviews-v1-0"], "behind": both, "untaken": {}}

    server.send(type="proxy_ready", ready=True)
    server.send(type="listening", port=9080, address="127.0.0.1")
    mesh.proxy(server)
    answer = mesh.client.get("/v1/settled", ready=",".join(both), wait=1)
    assert answer == {"unready": [], "behind": ["productpage-v1-0"], "untaken": {}}


def test_settled_says_which_published_ports_no_gateway_takes(mesh: Mesh) -> None:
    """`weft up` shows their addresses, where callers are refused until one does."""
    published = [{"port": port, "host_address": "127.0.0.1", "host_port": 18000 + port} for port in (80, 81)]
    door = mesh.agent("door", kind="gateway", labels={"app": "door"}, published=published)
    mesh.proxy(door)
    assert mesh.client.get("/v1/settled", wait=5)["untaken"] == {door.name: [80, 81]}
    mesh.apply(GATEWAY)
    assert mesh.client.get("/v1/settled", wait=5)["untaken"] == {door.name: [81]}


def test_an_apply_reaches_the_proxy_and_the_receipt_says_so(mesh: Mesh) -> None:
    _, proxy, _ = two(mesh)

    answer = mesh.apply(RULE.format(timeout="3s"))
    receipt = receipt_when_acknowledged(mesh, answer["revision"])

    assert [result["action"] for result in answer["results"]] == ["created"]
    assert "productpage-v1-0" in answer["affected"]
    assert "productpage-v1-0" in receipt["acknowledged"]
    assert receipt["refused"] == []
    assert b"test.yaml:" in proxy.resources[ROUTE_CONFIGURATION]["9080"]


def test_an_equal_apply_makes_no_revision_and_wakes_nobody(mesh: Mesh) -> None:
    _, proxy, _ = two(mesh)
    first = mesh.apply(RULE.format(timeout="3s"))
    receipt_when_acknowledged(mesh, first["revision"])
    received = len(proxy.received)

    again = mesh.apply(RULE.format(timeout="3s"))

    assert [result["action"] for result in again["results"]] == ["unchanged"]
    assert (again["revision"], again["affected"]) == (first["revision"], [])
    assert len(proxy.received) == received


def test_a_proxy_hears_nothing_of_what_does_not_concern_it(mesh: Mesh) -> None:
    """A gateway's routes concern the gateway alone."""
    two(mesh)
    answer = mesh.apply(GATEWAY)
    assert answer["affected"] == []
    assert mesh.status("productpage-v1-0")["published"] < answer["revision"]


def test_a_silent_proxy_is_named(mesh: Mesh) -> None:
    client, _ = mesh.running("productpage", port=None), mesh.running("reviews")
    mesh.proxy(client, silent=True)

    answer = mesh.apply(RULE.format(timeout="3s"))
    receipt = mesh.client.get(f"/v1/revisions/{answer['revision']}", wait=0.2)

    assert "productpage-v1-0" in receipt["silent"]
    assert not mesh.status("productpage-v1-0")["synced"]


def test_a_program_that_is_not_answered_by_the_new_names_is_named(mesh: Mesh) -> None:
    """Its proxy may have everything: until its agent has the table, it does not find the service."""
    two(mesh)
    late = mesh.running("ratings", takes_names=False)
    mesh.proxy(late)
    revision = mesh.apply(SERVICE)["revision"]
    receipt = mesh.client.get(f"/v1/revisions/{revision}", wait=0.3)
    silent = {"state": "silent", "pid": os.getpid()}
    assert receipt["late"] == [{"workload": late.name, "agent": silent}]
    assert (late.name in receipt["silent"], late.name in receipt["acknowledged"]) == (False, False)
    assert "productpage-v1-0" in receipt["acknowledged"]
    assert late.name in mesh.client.get("/v1/settled", wait=0.1)["behind"]
    assert {item["workload"]: item["agent"]["state"] for item in mesh.client.get("/v1/proxies")} == {
        "productpage-v1-0": "answers",
        "ratings-v1-0": "silent",
        "reviews-v1-0": "answers",
    }
    late.names(lambda names: "another.default.svc.cluster.local" in names)
    late.send(type="names_taken", number=1 << 30)
    until(
        lambda: late.name in mesh.client.get(f"/v1/revisions/{revision}", wait=1)["acknowledged"],
        what="it has taken them",
    )
    assert mesh.status(late.name)["agent"]["state"] == "answers"


def test_an_agent_that_owes_the_names_of_an_earlier_revision_is_not_waited_for(mesh: Mesh) -> None:
    """A receipt counts whom its own revision concerns; what is behind otherwise `weft wait` and `weft status` tell."""
    client, _, server = two(mesh)
    late = mesh.running("ratings", takes_names=False)
    for agent in (server, late):
        mesh.proxy(agent)
    mesh.apply(SERVICE)
    until(lambda: all(proxy["synced"] for proxy in mesh.client.get("/v1/proxies")))

    began = time.monotonic()
    for text, concerned in ((GATEWAY, []), (RULE.format(timeout="3s"), sorted([client.name, late.name, server.name]))):
        revision = mesh.apply(text)["revision"]
        receipt = mesh.client.get(f"/v1/revisions/{revision}", wait=20)
        assert (receipt["affected"], receipt["acknowledged"]) == (concerned, concerned)
        assert (receipt["late"], receipt["silent"]) == ([], [])
    assert time.monotonic() - began < 20
    assert mesh.status(late.name)["agent"]["state"] == "silent"
    assert late.name in mesh.client.get("/v1/settled", wait=0.1)["behind"]


def test_an_agent_that_is_stopped_is_named_and_not_waited_for(mesh: Mesh) -> None:
    """As by Ctrl-Z. It answers no name meanwhile, and relays nothing to an Envoy, whose proxy is silent then."""
    client, _, server = two(mesh)
    mesh.proxy(server)
    late = mesh.running("ratings", takes_names=False, apart=True)
    assert late.process is not None
    revision = mesh.apply(RULE.format(timeout="3s"))["revision"]
    assert late.name in mesh.client.get(f"/v1/revisions/{revision}", wait=0.3)["silent"]

    late.process.send_signal(signal.SIGSTOP)  # while others wait for it, too
    until(lambda: mesh.status(late.name)["agent"]["state"] == "stopped")
    began = time.monotonic()
    receipt = mesh.client.get(f"/v1/revisions/{revision}", wait=20)
    stopped = {"state": "stopped", "pid": late.process.pid}
    assert receipt["late"] == [{"workload": late.name, "agent": stopped}]
    assert (late.name in receipt["silent"], late.name in receipt["acknowledged"]) == (False, False)
    assert late.name in receipt["affected"]
    assert client.name in receipt["acknowledged"]
    mesh.client.get("/v1/settled", wait=20)
    assert time.monotonic() - began < 20

    late.process.send_signal(signal.SIGCONT)
    until(lambda: late.name in mesh.client.get(f"/v1/revisions/{revision}", wait=0.1)["silent"])


def test_a_refusal_is_kept_with_the_resource_the_proxys_words_and_the_lines_behind_it(mesh: Mesh) -> None:
    client, _ = mesh.running("productpage", port=None), mesh.running("reviews")
    mesh.proxy(client, refuses=frozenset({"9080"}))

    answer = mesh.apply(RULE.format(timeout="3s"))
    receipt = until(lambda: mesh.client.get(f"/v1/revisions/{answer['revision']}", wait=5)["refused"])

    assert receipt == [
        {
            "workload": "productpage-v1-0",
            "resources": [
                {
                    "type_url": ROUTE_CONFIGURATION,
                    "name": "9080",
                    "message": "cannot do 9080",
                    "field": "",
                    "origins": ["test.yaml:5:1", "test.yaml:8:5"],
                }
            ],
            "superseded_by": None,
            "mended": False,
        }
    ]
    assert mesh.status("productpage-v1-0")["refused"] == receipt[0]["resources"]


def test_a_refusal_outlives_its_mending_and_the_process(mesh: Mesh) -> None:
    """No proxy ever had that revision: not when it is mended, nor when whoever was told is killed."""
    client, proxy, server = two(mesh)
    good = answered(mesh, mesh.apply(RULE.format(timeout="3s")))
    proxy.refuses = frozenset({"9080"})
    bad = answered(mesh, mesh.apply(RULE.format(timeout="4s")))
    refused = refused_of(mesh, bad)
    assert refused["resources"][0]["origins"] == ["test.yaml:5:1", "test.yaml:8:5"]
    assert (refused["superseded_by"], refused["mended"]) == (None, False)
    proxy.refuses = frozenset()
    mended = answered(mesh, mesh.apply("# one line further down\n" + RULE.format(timeout="5s")))
    expected = {**refused, "superseded_by": mended, "mended": True}
    assert refused_of(mesh, bad) == expected, "the lines are those of then"
    assert productpage(mesh, bad) == "refused"
    proxy.refuses = frozenset({"9080"})
    last = answered(mesh, mesh.apply(RULE.format(timeout="6s")))

    mesh.kill()
    mesh.start(ready=False)
    mesh.proxy(client, known=proxy.versions, refuses=proxy.refuses)
    for agent in (client, server):
        agent.reconnect()
        agent.send(type="proxy_ready", ready=True)
    server.send(type="listening", port=9080, address="127.0.0.1")
    until(mesh._answers)
    # Whoever asks before the workloads are back is answered when they are.
    assert productpage(mesh, good) in ("silent", "acknowledged")
    until(lambda: mesh.status(client.name)["refused"])
    until(lambda: [productpage(mesh, revision) for revision in (good, mended)] == ["acknowledged"] * 2)
    assert refused_of(mesh, bad) == expected
    assert refused_of(mesh, last)["superseded_by"] is None


def answered(mesh: Mesh, answer: dict[str, Any]) -> int:
    """Wait until the client's proxy has answered an apply; return the revision."""
    revision = int(answer["revision"])
    until(lambda: mesh.status("productpage-v1-0")["revision"] == revision)
    return revision


def refused_of(mesh: Mesh, revision: int) -> dict[str, Any]:
    """Return what the one proxy that there is refused of a revision."""
    (refused,) = mesh.client.get(f"/v1/revisions/{revision}")["refused"]
    return dict(refused)


def productpage(mesh: Mesh, revision: int) -> str:
    """Return what the client's proxy said to a revision."""
    receipt = mesh.client.get(f"/v1/revisions/{revision}")
    refused = [item["workload"] for item in receipt["refused"]]
    groups = {"acknowledged": receipt["acknowledged"], "silent": receipt["silent"], "refused": refused}
    (found,) = [name for name, members in groups.items() if "productpage-v1-0" in members]
    return found


def test_what_became_of_a_revision_that_is_not_known_is_not_made_up(mesh: Mesh) -> None:
    """Its receipt was kept in a file that is gone: that of another revision is no answer."""
    two(mesh)
    revision = mesh.apply(RULE.format(timeout="3s"))["revision"]
    mesh.kill()
    mesh.paths.receipts.unlink()
    mesh.start()
    with pytest.raises(
        NotFound, match=rf"What became of revision {revision} is not known any more; it is from revision"
    ):
        mesh.client.get(f"/v1/revisions/{revision}", wait=5)


def test_a_refused_document_changes_nothing_and_all_mistakes_are_named(mesh: Mesh) -> None:
    mesh.apply(RULE.format(timeout="3s"))
    before = mesh.client.get("/v1/config")
    bad = RULE.format(timeout="soon").replace("hosts:", "host:")
    other = RULE.format(timeout="1s").replace("name: reviews", "name: other")

    with pytest.raises(InvalidConfiguration) as caught:
        mesh.apply(f"{other}---\n{bad}")

    places = [(problem.origin.line, problem.path) for problem in caught.value.problems]
    assert (17, "spec.host") in places
    assert (19, "spec.http[0].timeout") in places
    assert mesh.client.get("/v1/config") == before


def test_a_dangling_reference_warns_and_refuses_only_under_strict(mesh: Mesh) -> None:
    (warning, *_) = mesh.apply(RULE.format(timeout="3s"), dry_run=True)["warnings"]
    assert (warning["file"], warning["severity"]) == ("test.yaml", "warning")
    assert warning["remedy"]
    with pytest.raises(InvalidConfiguration):
        mesh.apply(RULE.format(timeout="3s"), strict=True)
    assert mesh.client.get("/v1/config") == []


SUBSETS = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: reviews
spec:
  host: reviews
  subsets:
  - {name: VERSION, labels: {version: VERSION}}
"""


def test_warnings_of_other_peoples_objects_are_not_those_of_an_apply(mesh: Mesh) -> None:
    """All standard input is one file; and a remedy that names what there is now is no new warning."""
    mesh.running("reviews")
    mesh.running("ratings")
    subset = RULE.format(timeout="3s").replace("{host: reviews}", "{host: reviews, subset: v9}")
    assert {item["code"] for item in mesh.apply(subset, file="stdin")["warnings"]} == {"dangling-subset"}
    other = RULE.format(timeout="1s").replace("reviews", "ratings")
    own = mesh.apply(other, file="stdin", strict=True, dry_run=True)
    assert own["warnings"] == []
    for version in ("v1", "v2"):
        text = SUBSETS.replace("VERSION", "v1") + f"  - {{name: {version}x, labels: {{version: v1}}}}\n"
        assert mesh.apply(text, strict=True)["warnings"] == []
    # An object that is applied again is told its own, and what an apply brings about elsewhere is its own, too.
    assert len(mesh.apply(subset, file="stdin")["warnings"]) == 1
    mesh.apply(subset.replace("v9", "v1"), file="stdin", strict=True)
    broken = mesh.apply(SUBSETS.replace("VERSION", "v2"), dry_run=True)["warnings"]
    assert ("stdin", "dangling-subset") in {(item["file"], item["code"]) for item in broken}


def test_a_dry_run_names_the_affected_and_changes_nothing(mesh: Mesh) -> None:
    _, proxy, _ = two(mesh)
    revision = mesh.client.get("/v1/version")["revision"]
    received = len(proxy.received)

    answer = mesh.apply(RULE.format(timeout="3s"), dry_run=True)

    assert "productpage-v1-0" in answer["affected"]
    assert mesh.client.get("/v1/version")["revision"] == revision
    assert mesh.client.get("/v1/config") == []
    assert len(proxy.received) == received


def test_diff_shows_objects_and_resources(mesh: Mesh) -> None:
    two(mesh)
    mesh.apply(RULE.format(timeout="3s"))
    text = RULE.format(timeout="4s")
    answer = mesh.client.post("/v1/diff", {"documents": [{"file": "test.yaml", "text": text}]})

    (change,) = answer["changes"]
    assert change["before"]["spec"]["http"][0]["timeout"] == "3s"
    assert change["after"]["spec"]["http"][0]["timeout"] == "4s"
    assert {"type_url": ROUTE_CONFIGURATION, "name": "9080", "change": "changed"} in answer["resources"][
        "productpage-v1-0"
    ]


def test_generation_counts_the_changes_of_the_spec(mesh: Mesh) -> None:
    for text in (RULE.format(timeout="3s"), RULE.format(timeout="4s"), "\n" + RULE.format(timeout="4s")):
        mesh.apply(text)
    (item,) = mesh.client.get("/v1/config")
    assert item["generation"] == 2
    assert item["origin"] == "test.yaml:2:1"  # the last apply moved it down a line


def test_delete_is_all_or_nothing(mesh: Mesh) -> None:
    mesh.apply(RULE.format(timeout="3s"))
    key = {"kind": "VirtualService", "namespace": "default", "name": "reviews"}
    with pytest.raises(NotFound, match="VirtualService default/nobody"):
        mesh.client.post("/v1/delete", {"keys": [key, {**key, "name": "nobody"}]})
    assert len(mesh.client.get("/v1/config")) == 1
    answer = mesh.client.post("/v1/delete", {"keys": [key]})
    assert [result["action"] for result in answer["results"]] == ["deleted"]
    assert mesh.client.get("/v1/config") == []


def test_a_leaving_workload_is_withdrawn_before_it_is_let_go(mesh: Mesh) -> None:
    _, proxy, _ = two(mesh)
    second = mesh.running("reviews", "v2")
    proxy.wait(lambda it: len(it.endpoints(CLUSTER_OF_REVIEWS)) == 2)

    second.leave()

    assert second.registered["address"] not in proxy.endpoints(CLUSTER_OF_REVIEWS)
    assert len(proxy.endpoints(CLUSTER_OF_REVIEWS)) == 1


def test_a_broken_connection_has_time_to_come_back(mesh: Mesh) -> None:
    _, proxy, server = two(mesh)
    address = server.registered["address"]
    proxy.wait(lambda it: it.endpoints(CLUSTER_OF_REVIEWS) == [address])
    received = len(proxy.received)

    server.reconnect()

    assert server.registered["address"] == address
    assert proxy.endpoints(CLUSTER_OF_REVIEWS) == [address]
    assert len(proxy.received) == received


AGENT = """
import sys
from pathlib import Path
from tests.controlplane.peers import Agent

agent = Agent(Path(sys.argv[1]), {"service": "reviews", "ports": [{"number": 9080}]})
agent.send(type="proxy_ready", ready=True)
agent.send(type="listening", port=9080, address="127.0.0.1")
print(agent.name, flush=True)
sys.stdin.read()
"""


def test_a_killed_agent_is_withdrawn_without_a_grace(mesh: Mesh) -> None:
    client = mesh.running("productpage", port=None)
    proxy = mesh.proxy(client)
    command = [sys.executable, "-c", AGENT, str(mesh.paths.agents_socket)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        proxy.wait(lambda it: len(it.endpoints(CLUSTER_OF_REVIEWS)) == 1)
        first = until(lambda: mesh.client.get("/v1/workloads"))
        assert len(first) == 2
        process.kill()
        events = mesh.client.events(replay=100)  # it may be told before anybody listens
        gone = next(event for event in events if event["type"] == "gone")
        dead = next(event for event in events if event["type"] == "revision")
    assert gone["workload"] == "reviews-v1-0"
    assert dead["time"] - gone["time"] < 1.0  # no grace of 3 s passed
    proxy.wait(lambda it: CLUSTER_OF_REVIEWS not in it.resources.get(CLUSTER_LOAD_ASSIGNMENT, {}) or True)
    assert [item["workload"] for item in mesh.client.get("/v1/workloads")] == ["productpage-v1-0"]


def test_a_name_that_runs_already_is_refused_to_another_process(mesh: Mesh) -> None:
    mesh.agent("reviews", ports=[{"number": 9080}])
    script = AGENT.replace('"service": "reviews"', '"service": "reviews", "name": "reviews-v1-0"')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", script, str(mesh.paths.agents_socket)],
        env=environment,
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "EOFError" in result.stderr
    assert [item["workload"] for item in mesh.client.get("/v1/workloads")] == ["reviews-v1-0"]


def test_what_cannot_be_read_is_refused_with_a_reason(mesh: Mesh) -> None:
    for message, reason in (
        ({"type": "register", "workload": {"service": "No Name!"}}, "cannot be the name of a service"),
        ({"type": "register", "workload": {}}, "cannot be read"),
        ({"type": "listening", "port": 1, "address": "::1"}, "must be `register`"),
        ({"nothing": 1}, "cannot be read"),
    ):
        agent = mesh.stranger()
        agent.send(**message)
        assert reason in agent.receive("refused")["message"]


def test_a_port_cannot_speak_two_protocols(mesh: Mesh) -> None:
    mesh.agent("reviews", ports=[{"number": 9080, "protocol": "HTTP"}])
    second = mesh.stranger()
    second.send(type="register", workload={"service": "reviews", "ports": [{"number": 9080, "protocol": "TCP"}]})
    assert "Port 9080 of service 'reviews' speaks HTTP elsewhere" in second.receive("refused")["message"]


def test_equal_notices_are_counted(mesh: Mesh) -> None:
    agent = mesh.running("cart", port=None)
    for _ in range(3):
        agent.send(type="notice", text="UDP to 8.8.8.8:443 was refused", code="udp-refused")
    until(lambda: [item["count"] for item in mesh.status("cart-v1-0")["notices"]] == [3])
    agent.send(type="notice", text="UDP to 8.8.8.8:443 was refused", code="udp-refused", count=17, known=True)
    until(lambda: [item["count"] for item in mesh.status("cart-v1-0")["notices"]] == [17])


def test_notices_of_what_is_over_are_shown_no_more(mesh: Mesh) -> None:
    agent = mesh.running("cart", port=None)
    for code, text in (("certificate", "it expires in 9 hours"), ("udp-refused", "UDP"), ("certificate", "in 4 hours")):
        agent.send(type="notice", text=text, code=code)
    until(lambda: len(mesh.status("cart-v1-0")["notices"]) == 3)
    agent.send(type="over", code="certificate")
    until(lambda: [item["text"] for item in mesh.status("cart-v1-0")["notices"]] == ["UDP"])


def test_a_name_that_a_program_asked_for_in_vain_is_among_what_failed_also_when_it_is_gone(mesh: Mesh) -> None:
    mesh.running("reviews").send(type="unknown_host", name="ratngs", answer="NXDOMAIN")
    client = mesh.running("productpage", port=None)

    def told(**query: object) -> list[tuple[str, str, str]]:
        records = mesh.client.get("/v1/records", failed=1, **query)["records"]
        return [(record["workload"], record["authority"], record["details"]) for record in records]

    until(lambda: told() == [("reviews-v1-0", "ratngs", "NXDOMAIN")])
    client.send(type="unknown_host", name="reviws", answer="SERVFAIL")
    both = [("productpage-v1-0", "reviws", "SERVFAIL"), ("reviews-v1-0", "ratngs", "NXDOMAIN")]
    until(lambda: told(limit=9) == both)
    assert told(limit=9, workload="reviews") == both[1:]
    client.leave()
    assert told() == both[:1]
    # It is no request, and no connection.
    assert mesh.client.get("/v1/records", limit=9)["records"] == []
    assert told(limit=9, log="connections") == []


def test_an_unknown_workload_is_a_404_that_lists_the_known(mesh: Mesh) -> None:
    mesh.running("cart", port=None)
    with pytest.raises(NotFound, match="There are: cart-v1-0"):
        mesh.client.get("/v1/proxies/nobody/resources")


def test_calls_that_make_no_sense_are_refused(mesh: Mesh) -> None:
    with pytest.raises(NotFound, match="no call GET /v1/nothing"):
        mesh.client.get("/v1/nothing")
    with pytest.raises(UsageError, match="`documents` must be a list"):
        mesh.client.post("/v1/apply", {"documents": [{"file": "a"}]})
    with pytest.raises(UsageError, match="must be a JSON object"):
        mesh.client.post("/v1/apply", [])
    with pytest.raises(UsageError, match="surrogates not allowed"):
        mesh.client.post("/v1/apply", {"documents": [{"file": "a", "text": "\ud800"}]})
    with pytest.raises(NotFound, match="no revision 999"):
        mesh.client.get("/v1/revisions/999")


def test_after_a_restart_no_proxy_is_told_anything(mesh: Mesh) -> None:
    """The store keeps rules and addresses, the agents come back, equal contents have equal versions."""
    client, proxy, server = two(mesh)
    mesh.apply(RULE.format(timeout="3s"))
    receipt_when_acknowledged(mesh, mesh.client.get("/v1/version")["revision"])
    proxy.wait(lambda it: it.endpoints(CLUSTER_OF_REVIEWS) == [server.registered["address"]])
    address, revision = server.registered["address"], mesh.client.get("/v1/version")["revision"]

    mesh.kill()
    mesh.start(ready=False)
    again = mesh.proxy(client, known=proxy.versions)
    for agent in (client, server):
        agent.reconnect()
        agent.send(type="proxy_ready", ready=True)
    server.send(type="listening", port=9080, address="127.0.0.1")
    until(mesh._answers)
    status = until(lambda: (found := mesh.status("productpage-v1-0"))["synced"] and found)

    assert server.registered["address"] == address
    assert status["published"] > revision
    assert [names for _, names in again.received if names] == []
    assert mesh.client.get("/v1/config")[0]["generation"] == 1


def test_a_workload_that_does_not_come_back_is_gone_after_a_while(mesh: Mesh) -> None:
    client, _, server = two(mesh)
    server.close()
    mesh.kill()
    mesh.start(ready=False)
    client.reconnect()
    client.send(type="proxy_ready", ready=True)
    until(mesh._answers)
    until(lambda: [item["workload"] for item in mesh.client.get("/v1/workloads")] == ["productpage-v1-0"])


def test_the_process_ends_with_its_lifeline() -> None:
    mesh = Mesh()
    ours, theirs = os.pipe()
    try:
        mesh.start(lifeline=ours)
        os.close(theirs)
        assert mesh.process is not None
        assert mesh.process.wait(20) == 0
        assert not mesh.paths.api_socket.exists()
    finally:
        os.close(ours)
        mesh.close()


def test_a_terminated_process_ends_in_order_while_somebody_listens(mesh: Mesh) -> None:
    events = mesh.client.events(replay=1)
    next(events)
    assert mesh.stop() == 0
    assert list(events) == []
