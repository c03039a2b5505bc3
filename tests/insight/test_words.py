"""What records say of refused callers and failed handshakes, in the words of either data plane, and the finding."""

from __future__ import annotations

import pytest

from weft.insight import words
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
    ("cluster", "flags", "endpoints", "code"),
    [
        ("BlackHoleCluster", "UH", "none", "no-such-port"),
        ("outbound|80||b", "UH", "there", "all-ejected"),
        ("outbound|80||b", "UH", "checked", "all-fail-checks"),
        ("outbound|80||b", "UH", "none", "no-endpoint"),
        ("PassthroughCluster", "UC", "none", "outside-failed"),
        ("host|5432||", "UR", "none", "outside-failed"),
        ("outbound|80||b", "UC", "there", "reset-before-answer"),
    ],
)
def test_where_it_went_tells_one_flag_from_the_other(cluster: str, flags: str, endpoints: str, code: str) -> None:
    record = Record("node", "requests", "TCP", "outbound", 0.0, 1.0, flags=(flags,), cluster=cluster)
    names = dict.fromkeys(("workload", "upstream", "service", "peer", "destination", "url"), "x")
    found = words.find(record, names | {"endpoints": endpoints})
    assert found is not None
    assert found.code == code


def test_every_flag_of_envoy_has_a_finding() -> None:
    names = dict.fromkeys(("workload", "upstream", "service", "peer", "status", "method", "path", "host", "url"), "x")
    for flag in set(FLAGS.values()) - HARMLESS:
        record = Record("node", "requests", "HTTP/1.1", "outbound", 0.0, 1.0, status=503, flags=(flag,))
        assert words.find(record, names) is not None, flag


HARMLESS = {"DI", "URX", "RFCF"}
"""A delay on purpose, an addition to another flag, an answer from a cache."""
