"""What records say of refused callers and failed handshakes, in the words of either data plane, and the finding."""

from __future__ import annotations

from typing import Any

import pytest

from weft.insight import happened, tell, verdict, words
from weft.telemetry import Record
from weft.telemetry.records import FLAGS


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ("caller_uid_refused", "caller-of-another-user"),
        ("caller_credential_required", "caller-without-credential"),
        ("caller_foreign_host", "caller-names-another-host"),
        ("caller_foreign_origin", "caller-is-a-web-page"),
    ],
)
def test_a_refused_caller_is_explained_with_the_remedy(details: str, code: str) -> None:
    record = Record("node", "requests", "HTTP/1.1", "outbound", 0.0, 1.0, status=403, details=details)
    found = words.find(record, {"workload": "productpage-v1-0"})
    assert found is not None
    assert (found.code, bool(found.remedy)) == (code, True)


@pytest.mark.parametrize(
    ("termination", "code"),
    [("caller_uid_refused", "caller-of-another-user"), ("caller_http_on_tcp", "caller-speaks-http")],
)
def test_a_caller_of_a_tcp_port_is_explained_with_the_remedy(termination: str, code: str) -> None:
    record = Record("node", "requests", "TCP", "outbound", 0.0, 1.0, termination=termination)
    found = words.find(record, {"workload": "productpage-v1-0"})
    assert found is not None
    assert (found.code, bool(found.remedy)) == (code, True)


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ("missing_host_header", "malformed-request"),
        ("path_normalization_failed", "malformed-request"),
        ("low_version", "malformed-request"),
        ("http1.invalid_characters", "malformed-request"),
        ("upgrade_failed", "upgrade-refused"),
        ("request_payload_too_large", "too-large"),
    ],
)
def test_what_envoy_refuses_without_a_flag_is_not_what_its_configuration_says(details: str, code: str) -> None:
    node = "sidecar~10.244.0.2~client-0.default~default.svc.cluster.local"
    record = Record(node, "requests", "HTTP/1.1", "outbound", 0.0, 1.0, method="GET", status=400, details=details)
    (hop,) = happened([record], (), lambda _node, _at: ())
    assert hop.finding is not None
    assert hop.finding.code == code
    assert verdict(hop).by == ("client" if code == "malformed-request" else "proxy")


@pytest.mark.parametrize("details", ["codec_error", "codec_error:The_user_callback_function_failed"])
def test_who_broke_a_connection_is_not_told_of_a_malformed_request(details: str) -> None:
    """In the words of both data planes: the request may have been a good one, on a port of HTTP."""
    node = "sidecar~10.244.0.2~client-0.default~default.svc.cluster.local"
    record = Record(
        *(node, "requests", "HTTP/2", "outbound", 0.0, 1.0),
        method="GET",
        status=0,
        details=details,
        flags=("DPE",),
        listener="127.150.3.2:8080",
    )
    (hop,) = happened([record], (), lambda _node, _at: ())
    assert hop.finding is not None
    assert (hop.finding.code, verdict(hop).by) == ("client-broke-connection", "client")
    assert "neighbour" in hop.finding.remedy


@pytest.mark.parametrize(
    ("flag", "details"), [("UPE", "upstream_reset_after_response_started{protocol_error}"), ("UPE", "")]
)
def test_an_answer_that_is_no_http_is_the_programs_doing(flag: str, details: str) -> None:
    """Whoever made it is the cause, and not the proxy that could not pass it on."""
    node = "sidecar~10.244.0.3~server-0.default~default.svc.cluster.local"
    record = Record(
        node, "requests", "HTTP/1.1", "inbound", 0.0, 1.0, method="GET", status=502, flags=(flag,), details=details
    )
    (hop,) = happened([record], (), lambda _node, _at: ())
    end = verdict(hop)
    assert (end.by, end.workload) == ("program", "server-0")
    assert "Cause: the program of server-0" in tell([hop])


def test_a_refused_connection_of_bytes_is_told_as_one() -> None:
    """A server was connected by then, for it might have spoken first: it is not told as if it had taken the connection."""
    record = Record(
        "sidecar~10.0.0.1~caller.default~default.svc.cluster.local",
        "requests",
        "TCP",
        "outbound",
        0.0,
        7.08,
        details="caller_http_on_tcp",
        termination="caller_http_on_tcp",
        listener="127.161.5.2:7000",
        upstream="10.0.0.2:7000",
        attempts=1,
    )
    trees = happened([record], (), lambda _node, _at: (), ())
    text = tell(trees)
    assert "A connection to 127.161.5.2:7000: refused after 7.08 ms" in text
    assert "sent by caller: refused" in text
    assert "Refused by: the proxy of caller." in text
    assert "took the connection" not in text
    assert not trees[0].tries


def test_an_answer_of_rbac_or_cors_is_the_proxys() -> None:
    """Of a connection that was closed, too, whose reason is why it ended."""
    denied = "rbac_access_denied_matched_policy[ns[default]-policy[reviews]-rule[0]]"
    for record, code in (
        (Record("n", "requests", "HTTP/1.1", "inbound", 0.0, 1.0, status=403, details=denied), "access-denied"),
        (Record("n", "requests", "TCP", "inbound", 0.0, 1.0, termination=denied), "access-denied"),
        (
            Record("n", "requests", "HTTP/1.1", "outbound", 0.0, 1.0, status=200, details="cors_response"),
            "preflight-answered",
        ),
    ):
        found = words.find(record, {"workload": "reviews-v1-0", "status": str(record.status)})
        assert found is not None
        assert found.code == code
    # What a program answers is its own.
    own = Record("n", "requests", "HTTP/1.1", "inbound", 0.0, 1.0, status=403, details="via_upstream")
    found = words.find(own, {"workload": "reviews-v1-0"})
    assert found is None or found.code != "access-denied"


def test_a_host_that_could_not_be_loaded_is_told_from_one_that_does_not_exist() -> None:
    for status, details, code in (
        (503, "virtual_host_not_loaded", "routes-not-loaded"),
        (404, "route_not_found", "no-route"),
    ):
        record = Record(
            "n", "requests", "HTTP/1.1", "outbound", 0.0, 1.0, status=status, details=details, flags=("NR",)
        )
        known = {
            "workload": "client-0",
            "method": "GET",
            "path": "/",
            "host": "reviews",
            "to": "reviews",
            "url": "reviews",
        }
        found = words.find(record, known)
        assert found is not None
        assert found.code == code


OPENSSL = "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify cert failed: "


BROKEN = "TLS_error:|33554536:system library:OPENSSL_internal:Connection reset by peer:TLS_error_end"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("TLS error: invalid peer certificate: ApplicationVerificationFailure", "server-wrong-identity"),
        (f"{OPENSSL}SAN matcher:TLS_error_end", "server-wrong-identity"),
        ("TLS error: invalid peer certificate: Expired", "server-certificate-expired"),
        (f"{OPENSSL}X509_verify_cert: certificate verification error at depth 0: certificate has expired:TLS_error_end",
         "server-certificate-expired"),
        ("TLS error: invalid peer certificate: UnknownIssuer", "server-untrusted"),
        (f"{OPENSSL}X509_verify_cert: certificate verification error at depth 1: self signed certificate in certificate "
         "chain:TLS_error_end", "server-untrusted"),
        ("TLS error: received corrupt message of type InvalidContentType", "server-without-tls"),
        ("TLS_error:|268435703:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end", "server-without-tls"),
        ("TLS error: invalid peer certificate: NotValidYet", "server-certificate-not-yet-valid"),
        (f"{OPENSSL}X509_verify_cert: certificate verification error at depth 0: certificate is not yet valid:TLS_error_end",
         "server-certificate-not-yet-valid"),
        ("TLS error: received fatal alert: CertificateRequired", "server-requires-certificate"),
        ("TLS error: received fatal alert: CertificateExpired", "own-certificate-outdated"),
        ("TLS_error:|268436501:SSL routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_EXPIRED:TLS_error_end",
         "own-certificate-outdated"),
        ("TLS error: received fatal alert: UnknownCA", "own-certificate-refused"),
        ("TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end",
         "own-certificate-refused"),
        ("TLS error: tls handshake eof", "tls-failed"),
        ("delayed connect error: Connection refused", "refused"),
        ("delayed connect error: 111", "refused"),
        ("delayed connect error: No route to host", "unreachable"),
    ],
)  # fmt: skip
def test_a_failed_connection_is_explained_in_either_librarys_words(reason: str, code: str) -> None:
    record = Record(
        "node", "requests", "HTTP/1.1", "outbound", 0.0, 1.0, status=503, flags=("UF",), transport_failure=reason
    )
    names = {"workload": "a", "upstream": "10.244.0.5:9080", "service": "b:9080", "peer": "b"}
    found = words.find(record, names)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("TLS error: invalid peer certificate: Expired", "client-certificate-expired"),
        ("TLS error: invalid peer certificate: NotValidYet", "client-certificate-not-yet-valid"),
        ("TLS error: received fatal alert: CertificateExpired", "client-refused-server"),
        ("TLS error: received fatal alert: UnknownCA", "client-refused-server"),
    ],
)
def test_an_alert_is_the_other_ends_word(reason: str, code: str) -> None:
    """Who is told of an expired certificate by an alert has shown it; who finds it has been shown it."""
    record = Record("node", "connections", "TCP", "inbound", 0.0, 1.0, downstream_failure=reason)
    found = words.find(record, {"workload": "a"})
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("TLS error: received corrupt message of type InvalidContentType", "by the name of its service"),
        ("TLS_error:|268435612:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end", "by the name of its service"),
        ("TLS error: peer sent no certificates", "speak plain HTTP to the name of the service"),
    ],
)
def test_a_workload_that_a_strict_server_refuses_is_named_and_not_told_to_join_the_mesh(
    reason: str, remedy: str
) -> None:
    record = Record("node", "connections", "TCP", "inbound", 0.0, 1.0, downstream_failure=reason)
    stranger = words.find(record, {"workload": "web-0", "from": ""})
    member = words.find(record, {"workload": "web-0", "from": "mesh", "client": "curl-0"})
    assert stranger is not None
    assert member is not None
    assert stranger.code == member.code
    assert "Call from a program of the mesh" in stranger.remedy
    assert "weft run" not in member.remedy
    assert remedy in member.remedy
    assert member.sentence.startswith("curl-0 ")


@pytest.mark.parametrize(
    ("cluster", "flags", "endpoints", "code"),
    [
        ("BlackHoleCluster", "UH", "none", "no-such-port"),
        ("outbound|80||b", "UH", "ejecting", "all-ejected"),
        ("outbound|80||b", "UH", "there", "no-endpoint"),
        ("outbound|80||b", "UH", "checked", "all-fail-checks"),
        ("outbound|80||b", "UH", "none", "no-endpoint"),
        ("PassthroughCluster", "UC", "none", "outside-failed"),
        ("PassthroughCluster", "UF", "none", "outside-failed"),
        ("host|5432||", "UF", "none", "outside-failed"),
        ("outbound|80||b", "UF", "there", "connect-timeout"),
        ("host|5432||", "UR", "none", "outside-failed"),
        ("outbound|80||b", "UC", "there", "reset-before-answer"),
    ],
)
def test_where_it_went_tells_one_flag_from_the_other(cluster: str, flags: str, endpoints: str, code: str) -> None:
    record = Record("node", "requests", "TCP", "outbound", 0.0, 1.0, flags=(flags,), cluster=cluster)
    names = dict.fromkeys(
        ("workload", "upstream", "service", "peer", "destination", "url", "failing", "host_ports"), "x"
    )
    known = {"endpoints": "there", "ejects": "yes"} if endpoints == "ejecting" else {"endpoints": endpoints}
    found = words.find(record, names | known)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    ("fields", "facts", "told"),
    [
        ({"status": 200, "details": "upstream_reset_after_response_started{connection_termination}"}, {},
         "closed the connection in the middle of its answer"),
        ({"protocol": "TCP", "bytes_sent": 1_000_000}, {"answer": "bytes", "sent": "1000000"}, "1000000 bytes had come"),
        ({"status": 101, "details": "via_upstream"}, {"status": "101"}, "had become that of another protocol"),
        ({"status": 503}, {}, "could not be reached or closed the connection without an answer"),
    ],
)  # fmt: skip
def test_what_a_place_outside_had_answered_is_not_denied(
    fields: dict[str, Any], facts: dict[str, str], told: str
) -> None:
    known = {"protocol": "HTTP/1.1", "cluster": "PassthroughCluster", "flags": ("UC",)} | fields
    record = Record("node", "requests", direction="outbound", start=0.0, duration_ms=1.0, **known)
    found = words.find(record, dict.fromkeys(("destination", "url", "host_ports"), "x") | facts)
    assert found is not None
    assert told in found.sentence


@pytest.mark.parametrize(("outcome", "code"), [("redirect", "redirected"), ("direct_response", "no-backend")])
def test_a_redirect_of_an_http_route_is_no_rule_without_a_backend(outcome: str, code: str) -> None:
    """Both data planes say the same of the two."""
    record = Record(
        "node", "requests", "HTTP/1.1", "outbound", 0.0, 1.0, status=302, details="direct_response", route_name="a"
    )
    found = words.find(record, {"outcome": outcome, "rule_of": "HTTPRoute", "status": "302"})
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    ("flags", "details", "code"),
    [
        (("UO",), "upstream_reset_before_response_started{overflow}", "circuit-open"),
        (("UO",), "overflow", "circuit-open"),
        (("UO",), "", "circuit-open"),  # a TCP connection
        (("UO",), "via_upstream", "retry-not-allowed"),
        (("UF", "UO"), "upstream_reset_before_response_started{remote_connection_failure|...}", "unreachable"),
        (("UC", "UO"), "upstream_reset_before_response_started{connection_termination}", "reset-before-answer"),
    ],
)
def test_a_refused_request_is_told_from_a_refused_retry(flags: tuple[str, ...], details: str, code: str) -> None:
    record = Record("n", "requests", "HTTP/1.1", "outbound", 0.0, 1.0, status=503, flags=flags, details=details)
    found = words.find(record, dict.fromkeys(("service", "peer", "status", "upstream"), "x"))
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    ("flag", "details", "told"),
    [
        ("UR", "upstream_reset_before_response_started{remote_reset}", "without an answer; the connection goes on."),
        ("UR", "upstream_reset_after_response_started{remote_reset}", "in the middle of its answer"),
        ("UC", "upstream_reset_before_response_started{connection_termination}", ""),
        ("UR", "", ""),  # a TCP connection
    ],
)
def test_a_stream_that_was_reset_is_told_from_a_connection(flag: str, details: str, told: str) -> None:
    """Of HTTP/2, where other requests of the connection go on: nobody has closed an idle one."""
    record = Record("n", "requests", "HTTP/2", "inbound", 0.0, 1.0, status=503, flags=(flag,), details=details)
    found = words.find(record, {"peer": "The program of b-0"})
    assert found is not None
    assert found.code.startswith("reset-")
    assert ("The program of b-0 reset the stream of this request (RST_STREAM)" in found.sentence) is bool(told)
    assert told in found.sentence
    assert ("closed an idle connection" in found.remedy) is not bool(told)


@pytest.mark.parametrize(
    ("values", "code", "by"),
    [
        ({"flags": ("UR",)}, "reset-before-answer", "program"),
        ({"flags": ("UR",), "bytes_received": 9}, "reset-before-answer", "program"),
        ({"flags": ("UC",), "bytes_sent": 49}, "reset-during-answer", "program"),
        ({"downstream_failure": BROKEN, "bytes_received": 9}, "client-gone", "client"),
        ({"downstream_failure": BROKEN}, "client-refused-server", "proxy"),
    ],
)
def test_a_connection_of_bytes_that_broke_was_not_refused(values: dict[str, Any], code: str, by: str) -> None:
    record = Record("sidecar~10.244.0.3~b-0.default~x", "requests", "TCP", "inbound", 0.0, 1.0, **values)
    (hop,) = happened([record], (), lambda _node, _at: ())
    end = verdict(hop)
    assert (end.finding and end.finding.code, end.by) == (code, by)


@pytest.mark.parametrize(
    ("flag", "details", "status", "code", "by"),
    [
        ("UC", "upstream_reset_after_response_started{connection_termination}", 101, "reset-in-tunnel", "program"),
        ("UC", "upstream_reset_after_response_started{connection_termination}", 200, "reset-during-answer", "program"),
        ("UR", "upstream_reset_after_response_started{remote_reset}", 101, "reset-in-tunnel", "program"),
        ("DC", "downstream_remote_disconnect", 101, "client-gone", "client"),
        ("DR", "http2.remote_reset", 101, "client-gone", "client"),
    ],
)
def test_a_connection_that_switched_protocols_is_no_answer(
    flag: str, details: str, status: int, code: str, by: str
) -> None:
    node = "sidecar~10.244.0.3~b-0.default~x"
    record = Record(node, "requests", "HTTP/1.1", "inbound", 0.0, 1.0, flags=(flag,), details=details, status=status)
    (hop,) = happened([record], (), lambda _node, _at: ())
    end = verdict(hop)
    assert end.finding is not None
    assert (end.finding.code, end.by) == (code, by)
    assert ("another protocol (101" in end.finding.sentence) is (status == 101)


@pytest.mark.parametrize("reason", ["cut_off", "filter_chain_is_being_removed"])
@pytest.mark.parametrize("status", [None, 101, 200])
def test_what_a_proxy_cuts_off_is_not_its_clients_doing(reason: str, status: int | None) -> None:
    """Its own word is the first of these reasons, one of Envoy's the second."""
    node, details = "sidecar~10.244.0.3~b-0.default~x", f"downstream_local_disconnect({reason})"
    cut = Record(node, "requests", "HTTP/1.1", "inbound", 0.0, 1.0, flags=("DC",), details=details, status=status)
    (hop,) = happened([cut], (), lambda _node, _at: ())
    end = verdict(hop)
    assert end.finding is not None
    assert (end.finding.code, end.by, end.workload) == ("cut-off", "proxy", "b-0")


def test_what_answers_an_upgrade_otherwise_is_the_program() -> None:
    """Envoy has details of its own for that."""
    asked = {"status": 200, "details": "websocket_handshake_unsuccessful", "upstream": "127.0.0.1:80"}
    record = Record("sidecar~10.244.0.3~b-0.default~x", "requests", "HTTP/1.1", "inbound", 0.0, 1.0, **asked)
    (hop,) = happened([record], (), lambda _node, _at: ())
    end = verdict(hop)
    assert (end.by, end.workload, end.finding) == ("program", "b-0", None)


def test_every_flag_of_envoy_has_a_finding() -> None:
    facts = ("workload", "upstream", "service", "peer", "status", "method", "path", "host", "url", "name", "meant")
    names = dict.fromkeys((*facts, "to", "host_ports", "timeout", "try_timeout"), "x")
    for flag in set(FLAGS.values()) - HARMLESS:
        record = Record("node", "requests", "HTTP/1.1", "outbound", 0.0, 1.0, status=503, flags=(flag,))
        assert words.find(record, names) is not None, flag


HARMLESS = {"DI", "URX", "RFCF"}
"""A delay on purpose, an addition to another flag, an answer from a cache."""


@pytest.mark.parametrize(
    ("flags", "known", "code"),
    [
        ("UC", {"server": "silent"}, "proxy-connection-broke"),
        ("UC", {"server": ""}, "reset-before-answer"),
        ("DC", {"left": "for-another"}, "try-given-up"),
        ("DR", {"left": "by-itself"}, "try-given-up"),
        ("DC", {"left": ""}, "client-gone"),
        ("UH", {"programs": "unready", "now": "b-0 is running, but not ready"}, "no-endpoint"),
        ("UH", {"programs": "ready", "now": "b-0 is ready"}, "no-endpoint"),
    ],
)
def test_what_the_other_records_say_tells_one_break_from_another(flags: str, known: dict[str, str], code: str) -> None:
    """A proxy sees a connection end; whether the other side tells of the request, and what its caller did, says who ended it."""
    record = Record("node", "requests", "HTTP/1.1", "inbound", 0.0, 1.0, flags=(flags,))
    found = words.find(record, dict.fromkeys(("workload", "service", "peer", "caller"), "x") | known)
    assert found is not None
    assert found.code == code


def test_no_remedy_names_what_apply_refuses() -> None:
    """Nobody can act on it."""
    refused = ("subjectAltNames", "SIMPLE", "caCertificates", "credentialName")
    assert not [row.code for row in words.TABLE if any(name in row.remedy for name in refused)]
