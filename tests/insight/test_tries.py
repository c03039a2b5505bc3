"""Each try belongs to the request that it was made for, and what became of it is told where it was decided."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.controlplane.peers import Mesh, running_mesh, until
from tests.insight.test_copies import CATALOG, received, sent
from tests.insight.test_copies import trees as bookinfo_trees
from weft.insight import Hop, Program, happened, tell, tree_to_json, verdict
from weft.insight.programs import Notice, programs
from weft.telemetry import Record

CLIENT, PROXY, PROGRAM = "10.244.0.2", "10.244.0.3:9080", "127.0.0.1:9080"
CLUSTER = "outbound|9080||server.default.svc.cluster.local"


def record(workload: str, direction: str, start: float, log: str = "requests", **fields: Any) -> Record:
    node = f"sidecar~10.244.0.9~{workload}.default~default.svc.cluster.local"
    known: dict[str, Any] = {
        "request_id": "1",
        "method": "POST",
        "authority": "server:9080",
        "path": "/",
        "duration_ms": 5.0,
        "status": 503,
        "details": "via_upstream",
        "attempts": 1,
        "downstream": f"{CLIENT}:40000" if direction == "outbound" else f"{CLIENT}:50000",
        "upstream": PROXY if direction == "outbound" else PROGRAM,
        "upstream_local": f"{CLIENT}:50000" if direction == "outbound" else "10.244.0.3:60000",
        "listener": PROXY,
        "cluster": CLUSTER if direction == "outbound" else "inbound|9080||",
    }
    return Record(node, log, "HTTP/1.1", direction, start, **(known | fields))  # type: ignore[arg-type]


def trees(records: list[Record], now: tuple[Program, ...] = ()) -> list[Hop]:
    return happened(records, (), lambda _node, _at: (), now)


def test_tries_of_one_connection_belong_each_to_their_own_request() -> None:
    """Three tries within a few milliseconds, by one connection: the server's proxy saw three requests, and tried each once."""
    starts = (0.001, 0.011, 0.021)
    (hop,) = trees(
        [
            record("client-0", "outbound", 0.0, duration_ms=30.0, attempts=3, flags=("URX",)),
            *(record("client-0", "outbound", start, "tries") for start in (0.0, 0.010, 0.020)),
            *(record("server-0", "inbound", start) for start in starts),
            # Envoy's tell no status here, and begin a little later than the request.
            *(record("server-0", "inbound", start + 0.0003, "tries", details="", attempts=0) for start in starts),
        ]
    )
    assert len(hop.tries) == 3
    assert [len(item.tries) for item in hop.nexts] == [1, 1, 1]
    assert [item.tries[0].start for item in hop.nexts] == [start + 0.0003 for start in starts]


def test_tries_of_calls_side_by_side_are_told_apart_by_their_connection() -> None:
    """A program hands its id on to two calls at once, and each of them is tried twice."""
    first, second = "10.244.0.2:40001", "10.244.0.2:40002"
    hops = trees(
        [
            record("client-0", "outbound", 0.0, duration_ms=50.0, attempts=2, downstream=first, status=200),
            record("client-0", "outbound", 0.001, duration_ms=50.0, attempts=2, downstream=second, status=200),
            record("client-0", "outbound", 0.010, "tries", downstream=first, status=502),
            record("client-0", "outbound", 0.011, "tries", downstream=second),
        ]
    )
    assert [[item.status for item in hop.tries] for hop in hops] == [[502, 200], [503, 200]]


def test_a_try_that_grpc_calls_failed_is_told_beside_the_one_that_came_after_it() -> None:
    """By the same endpoint, and with the same status of HTTP."""
    (hop,) = trees(
        [
            record("client-0", "outbound", 0.0, duration_ms=30.0, attempts=2, status=200, grpc_status=0),
            record("client-0", "outbound", 0.0, "tries", status=200, grpc_status=14),
        ]
    )
    text = tell([hop])
    assert f"try 1: {PROXY} answered 200, grpc-status 14 (UNAVAILABLE) after 5 ms" in text, text
    assert f"try 2: {PROXY} answered 200" in text, text
    # The last one may have a record of its own.
    (hop,) = trees(
        [
            record("client-0", "outbound", 0.0, attempts=2, status=200, grpc_status=14, flags=("URX",)),
            *(record("client-0", "outbound", start, "tries", status=200, grpc_status=14) for start in (0.0, 0.01)),
        ]
    )
    assert [item.answer for item in hop.tries] == ["200, grpc-status 14 (UNAVAILABLE)"] * 2


def given_up(**last: Any) -> Hop:
    (hop,) = trees(
        [
            record("client-0", "outbound", 0.0, duration_ms=300.0, **last),
            record("client-0", "outbound", 0.0, "tries", status=None, flags=("UT",), duration_ms=200.0),
            record("server-0", "inbound", 0.001, status=None, flags=("DC",), details="", duration_ms=200.0),
        ]
    )
    return hop


def test_a_client_that_goes_from_one_try_to_the_next_has_not_gone() -> None:
    hop = given_up(attempts=2, status=200)
    assert "DC: The proxy of client-0 gave this try up for another." in tell([hop])
    assert verdict(hop).by == "program"


def test_a_proxy_that_waits_no_longer_is_told_from_its_client() -> None:
    hop = given_up(attempts=1, status=504, flags=("UT",), details="response_timeout")
    assert "DC: The proxy of client-0 gave this try up." in tell([hop])
    assert verdict(hop).hop is hop


def test_a_client_that_has_gone_takes_the_tries_with_it() -> None:
    hop = given_up(attempts=1, status=None, flags=("DC",), details="downstream_remote_disconnect")
    assert "gave this try up" not in tell([hop])
    assert (found := hop.nexts[0].finding) is not None
    assert found.code == "client-gone"


def test_a_retry_that_a_limit_forbade_leaves_the_word_to_the_program() -> None:
    refused = {"flags": ("UO",), "duration_ms": 512.0}
    (hop,) = trees([record("client-0", "outbound", 0.0, **refused), record("server-0", "inbound", 0.001)])
    end, text = verdict(hop), tell([hop])
    assert (end.finding and end.finding.code, end.by) == ("retry-not-allowed", "program"), text
    assert "answered 503, and a limit of server.default.svc.cluster.local:9080 (a circuit breaker) allowed no" in text
    assert "refused at once" not in text
    # A failure without an answer is the reason itself.
    (hop,) = trees([record("client-0", "outbound", 0.0, flags=("UF", "UO"), details="remote_connection_failure")])
    assert "It was not tried again: a limit (a circuit breaker) allowed no further try." in tell([hop])


def test_a_service_without_endpoint_is_told_with_what_was_noticed_of_its_programs() -> None:
    """It is not said that none runs where one does, on another port than the one that it declares."""
    notice = {"code": "listens-elsewhere", "text": "the program listens on port 8081, and not on 8080", "count": 1}
    other = {"code": "udp-refused", "text": "UDP to 10.0.0.1 was refused", "count": 3}
    host = "server.default.svc.cluster.local"
    workloads = [
        {"workload": name, "namespace": "default", "services": [host], "state": state, "ready": ready}
        for name, state, ready in (("server-0", "running", False), ("server-1", "exited", False))
    ]
    proxies = [
        {"workload": "server-0", "namespace": "default", "notices": [notice, other]},
        {"workload": "client-0", "namespace": "default", "notices": [notice]},
    ]
    refused: dict[str, Any] = {
        "upstream": "",
        "upstream_local": "",
        "flags": ("UH",),
        "details": "no_healthy_upstream",
        "attempts": 0,
    }
    (hop,) = trees([record("client-0", "outbound", 0.0, **refused)], programs(workloads, proxies))
    text = tell([hop])
    assert "could take a request; by now server-0 is running, but not ready; server-1 has ended. (UH)" in text
    assert "  Noticed of server-0: the program listens on port 8081, and not on 8080\n" in text
    assert "UDP" not in text
    assert [item["workload"] for item in tree_to_json(hop)["verdict"]["notices"]] == ["server-0"]
    (alone,) = trees([record("client-0", "outbound", 0.0, **refused)])
    assert "no program of it was ready" in tell([alone])


def test_a_proxy_that_died_is_told_with_what_was_noticed_of_it(bookinfo: Mesh) -> None:
    """Not its program: that proxy tells nothing of the request, and of the first try it had told."""
    broken = sent(status=503, flags=("UC",), details="upstream_reset_before_response_started", attempts=2)
    first = received("catalog-v1-0", CATALOG, "10.244.0.2:39998", 0.0, status=None, flags=("DC",), details="")
    died = Notice("catalog-v1-0", "proxy-died", "the proxy was killed (SIGKILL); starting it again.")
    (hop,) = bookinfo_trees(bookinfo, [broken, first], (Program("catalog-v1-0", notices=(died,)),))
    end, text = verdict(hop), tell([hop])
    assert end.finding is not None
    assert (end.finding.code, end.by, end.workload) == ("proxy-connection-broke", "proxy", "catalog-v1-0"), text
    assert "The connection to the proxy of catalog-v1-0 broke before the answer was complete" in text
    assert "Noticed of catalog-v1-0: the proxy was killed (SIGKILL); starting it again." in text


def test_the_proxy_at_the_other_end_is_not_blamed_for_what_it_may_not_have_been_able_to_tell(bookinfo: Mesh) -> None:
    """An Envoy tells nothing while the control plane is away; only that somebody saw it die is a proof."""
    broken = sent(status=503, flags=("UC",), details="upstream_reset_before_response_started", attempts=1)
    (hop,) = bookinfo_trees(bookinfo, [broken], ())
    text = tell([hop])
    assert "Cause: the proxy of catalog-v1-0, or something that it could not tell of." in text
    assert "or it could not tell (an Envoy while the control plane is away)" in text


REFUSED_THERE = {"log": "connections", "downstream_failure": "plaintext_to_tls_listener", "status": None, "flags": ()}


def test_a_connection_of_somebody_else_that_was_refused_meanwhile_is_not_the_reason() -> None:
    """A port scanner at the server's port, while a program breaks off an answer of a minute."""
    broke = {
        "status": 200,
        "flags": ("UC",),
        "details": "upstream_reset_after_response_started",
        "duration_ms": 60_000.0,
    }
    records = [
        record("client-0", "outbound", 0.0, answered_ms=1.0, **broke),
        record("server-0", "inbound", 0.001, answered_ms=1.0, **(broke | {"duration_ms": 59_990.0})),
    ]
    stranger = record("server-0", "inbound", 30.0, downstream="10.244.0.77:41000", **REFUSED_THERE)
    (hop,) = happened(records, [stranger], lambda _node, _at: ())
    assert hop.refused is None
    assert "in the middle of its answer" in tell([hop])
    # Of several that were refused it is the one by whose address the request went.
    own = record("server-0", "inbound", 0.0, downstream=f"{CLIENT}:50000", **REFUSED_THERE)
    (hop,) = happened(records[:1], [stranger, own], lambda _node, _at: ())
    assert hop.refused is not None
    assert hop.refused.record == own
    # A try of whose own address nothing is known can have been refused at that place and time only.
    (hop,) = happened([replace(records[0], upstream_local="")], [stranger], lambda _node, _at: ())
    assert hop.refused is not None


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_that_stalls_has_begun_whatever_its_status(status: int) -> None:
    """503 may be the program's own, and then its head had been passed on."""
    stalled = record(
        "client-0", "outbound", 0.0, status=status, flags=("UT",), details="via_upstream", answered_ms=1.0, sent_ms=0.1
    )
    text = tell(trees([stalled]))
    assert "began to answer, and had not finished within the timeout" in text
    assert f"The client had got the head, {status}, by then." in text


def test_a_proxy_that_ended_and_cut_a_request_off_says_so_itself() -> None:
    """Its caller's proxy only sees a connection break, and nobody gave a try up."""
    broken = "upstream_reset_before_response_started{connection_termination}"
    cut_off = "downstream_local_disconnect(cut_off)"
    (hop,) = trees(
        [
            record("client-0", "outbound", 0.0, flags=("UC",), details=broken),
            record("server-0", "inbound", 0.001, flags=("DC",), details=cut_off, status=None),
        ]
    )
    end = verdict(hop)
    assert end.finding is not None
    assert (end.finding.code, end.by, end.workload) == ("cut-off", "proxy", "server-0"), tell([hop])


def test_a_timeout_within_the_answer_is_told_as_that() -> None:
    """The client has the head, the proxy took the program's word and broke it off, and there was no other try."""
    cut: dict[str, Any] = {"status": 200, "answered_ms": 5.0}
    (hop,) = trees(
        [
            record("client-0", "outbound", 0.0, flags=("UT",), details="response_timeout", **cut),
            record("server-0", "inbound", 0.001, flags=("DC",), details="downstream_remote_disconnect", **cut),
        ]
    )
    text = tell([hop])
    assert hop.finding is not None
    assert hop.finding.code == "timeout-during-answer"
    assert "server.default.svc.cluster.local:9080 began to answer, and had not finished within the timeout" in text
    assert "Broken off by: the proxy of client-0. The client had got the head, 200, by then." in text
    assert "DC: The proxy of client-0 gave this try up.\n" in f"{text}\n"
    assert "Its word became" not in text


def test_a_proxy_that_answers_as_it_was_told_is_no_cause() -> None:
    """It says so at once that there is nobody: who had that in mind is told by the sentence."""
    nobody: dict[str, Any] = {"upstream": "", "upstream_local": "", "details": "no_healthy_upstream", "attempts": 0}
    (hop,) = trees([record("client-0", "outbound", 0.0, flags=("UH",), **nobody)])
    text = tell([hop])
    assert "Answered by: the proxy of client-0, with 503.\n" in text
    assert "Cause" not in text
    assert "Its word became" not in text


def test_where_the_time_went_is_told_of_every_hop() -> None:
    """When the request was whole, when its answer began, and when it was over; and when each hop began after the first."""
    (hop,) = trees(
        [
            record("client-0", "outbound", 10.0, status=200, duration_ms=1530.0, sent_ms=20.0, answered_ms=1500.0),
            record("server-0", "inbound", 10.021, status=200, duration_ms=1490.0, sent_ms=0.01, answered_ms=1480.04),
        ]
    )
    text = tell([hop])
    assert text.splitlines()[0].startswith("POST http://server:9080/: 200 after 1.53 s  (")
    assert "   +0 ms  sent by client-0: 200 after 1.53 s\n" in text
    assert "time: request whole after 20 ms, first byte of the answer after 1.5 s, all of it after 1.53 s\n" in text
    assert "  +21 ms  received for server-0: 200 after 1.49 s\n" in text
    assert "time: request whole after 0 ms, first byte of the answer after 1.48 s, all of it after 1.49 s" in text


def test_how_often_it_was_tried_is_told_of_a_programs_own_answer() -> None:
    (hop,) = trees([record("client-0", "outbound", 0.0, duration_ms=30.0, attempts=3, flags=("URX",))])
    assert "itself; the mesh only passed it on.\n  It was tried 3 times, as often as the rule allows." in tell([hop])


def test_a_program_that_hands_an_error_on_is_not_asked_why() -> None:
    """What failed is the call that it made meanwhile, of which the tree tells."""
    inner: dict[str, Any] = {
        "authority": "ratings:9080",
        "downstream": "10.244.0.3:41000",
        "details": "no_healthy_upstream",
    }
    ratings = "outbound|9080||ratings.default.svc.cluster.local"
    nobody: dict[str, Any] = {"upstream": "", "upstream_local": "", "cluster": ratings, "attempts": 0, "flags": ("UH",)}
    (hop,) = trees(
        [
            record("client-0", "outbound", 0.0, duration_ms=30.0),
            record("server-0", "inbound", 0.001, duration_ms=20.0),
            record("server-0", "outbound", 0.002, **(inner | nobody)),
        ]
    )
    text = tell([hop]).partition("\n\n")[2]
    assert "A call that it made meanwhile had failed: ratings.default.svc.cluster.local:9080 had no endpoint" in text
    assert "What to do: Start one" in text
    assert "look at its output" not in text


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": 503}, "POST http://ratings:9080/ was answered 503 by the program of ratings-0.\n"),
        (
            {"status": 200, "grpc_status": 14},
            "was answered 200, grpc-status 14 (UNAVAILABLE) by the program of ratings-0",
        ),
        # The program in the middle has read the head, and closes the connection.
        (
            {"status": 503, "flags": ("DC",), "details": "downstream_remote_disconnect"},
            "was answered 503 by the program of",
        ),
        ({"status": 404}, ""),
        ({"status": 200}, ""),
    ],
)
def test_an_error_that_came_from_a_program_further_on_is_not_the_middles(answer: dict[str, Any], told: str) -> None:
    """Where the program that it called had failed, that one's output tells why."""
    called, local, ratings = "10.244.0.4:9080", "10.244.0.3:51000", {"authority": "ratings:9080", **answer}
    there = {"downstream": "10.244.0.3:41000", "upstream": called, "upstream_local": local}
    (hop,) = trees(
        [
            record("client-0", "outbound", 0.0, duration_ms=30.0),
            record("server-0", "inbound", 0.001, duration_ms=20.0),
            record("server-0", "outbound", 0.002, **there, **ratings),
            record("ratings-0", "inbound", 0.003, listener=called, downstream=local, **ratings),
        ]
    )
    text = tell([hop]).partition("\n\n")[2].partition("\n\n")[0] + "\n"
    assert "The program of server-0 answered 503 itself" in text
    assert told in text
    output = (
        "Look at the output of that: `weft logs --output ratings-0`"
        if told
        else "look at its output: `weft logs --output server-0`"
    )
    assert f"What to do: {output}" in text
    assert ("A call that it made meanwhile had failed" in text) is bool(told)


@pytest.mark.parametrize(
    ("direction", "method", "authority", "path", "listener", "command"),
    [
        ("outbound", "GET", "relay", "/x", "240.240.0.3:8080", "--from client-0 --to http://relay:8080/x`"),
        ("outbound", "PUT", "relay:8080", "/x", "240.240.0.3:8080", "--from client-0 --to http://relay:8080/x -X PUT`"),
        ("outbound", "GET", "relay", "/x?a=1&b", "240.240.0.3:80", "--from client-0 --to 'http://relay/x?a=1&b'`"),
        ("gateway", "GET", "shop.example", "/", "10.244.0.9:80", "--from client-0 --to http://shop.example/`"),
        ("gateway", "GET", "shop.example", "/", "10.244.0.9:8080", "--from client-0 --to http://shop.example:8080/`"),
    ],
)
def test_the_command_that_names_the_rules_asks_about_the_same_request(
    direction: str, method: str, authority: str, path: str, listener: str, command: str
) -> None:
    """The Host header may have no port, and a rule may ask for a method."""
    asked = {"method": method, "authority": authority, "path": path, "listener": listener, "status": 404}
    (hop,) = trees(
        [record("client-0", direction, 0.0, flags=("NR",), details="route_not_found", upstream="", cluster="", **asked)]
    )
    assert f"`weft why {command}" in tell([hop])


@pytest.mark.parametrize(
    ("state", "flag", "details"),
    [("stopped", "UT", "response_timeout"), ("stopped", "DC", "downstream_remote_disconnect"), ("answers", "UT", "")],
)
def test_a_program_that_is_stopped_is_told_as_that(state: str, flag: str, details: str) -> None:
    """Its proxy takes the call, and `weft ps` says that it is ready: only its agent, which stops with it, shows it."""
    workload = {"workload": "server-0", "namespace": "default", "services": [], "state": "running", "ready": True}
    proxy = {"workload": "server-0", "namespace": "default", "notices": [], "agent": {"state": state}}
    (hop,) = trees([record("server-0", "inbound", 0.0, flags=(flag,), details=details)], programs([workload], [proxy]))
    text = tell([hop])
    assert ("Noticed of server-0: it is stopped now, as by Ctrl-Z" in text) is (state == "stopped")
    assert ("What to do: Let it go on: `fg` in its terminal. If it ran when" in text) is (state == "stopped")


def test_an_end_of_the_program_is_told_where_it_is_the_reason() -> None:
    """What the agent says of it when it happens is kept, also when the program is ready again."""
    for mesh in running_mesh():
        mesh.running("client", port=None)
        agent = mesh.running("server")
        agent.send(type="program", state="running", pid=7, restarts=0)
        at = time.time()
        agent.send(type="program", state="exited", pid=0, restarts=1, code=-9, how="was killed by SIGKILL", time=at)
        agent.send(type="listening", port=9080, address=None)
        agent.send(type="program", state="running", pid=8, restarts=1)
        agent.send(type="listening", port=9080, address="127.0.0.1")

        def now(mesh: Mesh = mesh) -> tuple[Program, ...]:
            return programs(mesh.client.get("/v1/workloads"), mesh.client.get("/v1/proxies"))

        until(lambda: any(end.back for item in now() for end in item.endings), what="it is ready again")

        def told(after: float, **fields: Any) -> str:
            (hop,) = trees([record("server-v1-0", "inbound", at + after, **fields)], now())  # noqa: B023
            return tell([hop])

        reset: dict[str, Any] = {"flags": ("UC",), "details": "upstream_reset_before_response_started"}
        text = told(-0.01, **reset)
        when = datetime.fromtimestamp(at, UTC).astimezone()
        assert (
            f"Noticed of server-v1-0: its program was killed by SIGKILL at {when:%H:%M:%S}, and was ready again" in text
        )
        assert "What to do: Find out why it ended: its last words are in `weft logs --output server-v1-0`." in text
        nobody: dict[str, Any] = {"upstream": "", "upstream_local": "", "details": "no_healthy_upstream", "attempts": 0}
        (hop,) = trees([record("client-v1-0", "outbound", at, flags=("UH",), **nobody)], now())
        text = tell([hop])
        assert "Noticed of server-v1-0: its program was killed by SIGKILL at" in text
        assert "What to do: Find out why it ended" in text
        # Long before, or after it was ready again, it is not the reason.
        for after in (-60.0, 60.0):
            assert "was killed" not in told(after, **reset)
            (hop,) = trees([record("client-v1-0", "outbound", at + after, flags=("UH",), **nobody)], now())
            assert "was killed" not in tell([hop])


def test_a_program_that_calls_its_own_service_is_told_with_that_call() -> None:
    """Its proxy sees the call leave, and a moment later arrive; neither follows from the other's other end."""
    itself: dict[str, Any] = {
        "listener": "240.240.0.3:9080",
        "downstream": "10.244.0.3:41000",
        "upstream_local": "10.244.0.3:51000",
    }
    arrives: dict[str, Any] = {"downstream": "10.244.0.3:51000", "status": 200, "duration_ms": 1.0}
    left = record("server-0", "outbound", 0.002, status=200, duration_ms=3.0, **itself)
    arrived = record("server-0", "inbound", 0.003, **arrives)
    (hop,) = trees([left, arrived])
    assert (hop.record, [item.record for item in hop.nexts]) == (left, [arrived])
    assert "sent by server-0" in tell([hop])
    assert "received for server-0" in tell([hop])
    # In one millisecond, too, and where something had called it before.
    first = record("client-0", "outbound", 0.0, status=200, duration_ms=30.0)
    taken = record("server-0", "inbound", 0.001, status=200, duration_ms=20.0)
    for at in (0.002, 0.003):
        (hop,) = trees([first, taken, left, replace(arrived, start=at)])
        (server,) = hop.nexts
        (call,) = server.nexts
        assert (hop.record, server.record, call.record) == (first, taken, left)
        assert [item.record.start for item in call.nexts] == [at]


def test_a_program_that_is_called_back_is_told_below_its_call() -> None:
    """It calls a server that calls it: what it had sent before it was called does not follow from that."""
    back: dict[str, Any] = {
        "listener": "240.240.0.2:9080",
        "downstream": "10.244.0.3:41000",
        "upstream": f"{CLIENT}:9080",
        "upstream_local": "10.244.0.3:51000",
        "status": 200,
    }
    records = [
        record("client-0", "outbound", 0.0, status=200, duration_ms=30.0),
        record("server-0", "inbound", 0.001, status=200, duration_ms=20.0),
        record("server-0", "outbound", 0.002, **back),
        record("client-0", "inbound", 0.003, downstream="10.244.0.3:51000", listener=f"{CLIENT}:9080", status=200),
    ]
    (hop,) = trees(records)
    chain = [hop]
    while chain[-1].nexts:
        (following,) = chain[-1].nexts
        chain.append(following)
    assert [item.record for item in chain] == records
