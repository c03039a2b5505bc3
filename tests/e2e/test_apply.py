"""Istio's own YAML takes effect, mutual TLS stands at once, and `why` tells the truth."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import BOOKINFO, Mesh, Person, eventually, processes_of

pytestmark = pytest.mark.e2e

IN_EFFECT_SECONDS = 0.1
"""A change is in effect this soon after `apply --wait` has returned."""

REQUESTS = 12


@pytest.fixture(scope="module")
def mesh(person: Person) -> Iterator[Mesh]:
    """Bookinfo with nothing of its own applied: only what a test applies is in force."""
    for file in (*BOOKINFO.glob("*.py"), *BOOKINFO.glob("*.html"), *(BOOKINFO / "static").iterdir()):
        place = Path("plain") / file.relative_to(BOOKINFO)
        person.write(str(place), file.read_text())
    text = (BOOKINFO / "weft.yaml").read_text().replace("apply: [mesh]\n", "").replace("mesh: bookinfo", "mesh: plain")
    person.write("plain/weft.yaml", text)
    with person.mesh(str(person.home / "plain")) as running:
        yield running


@pytest.fixture
def samples(corpus: Path) -> Path:
    return corpus / "istio" / "samples" / "bookinfo" / "networking"


@pytest.fixture(autouse=True)
def nothing_stays(person: Person, mesh: Mesh) -> Iterator[None]:
    """Every test begins and ends without configuration."""
    yield
    person.delete_everything()


def objects(person: Person) -> list[dict[str, Any]]:
    """What is applied, as manifests."""
    found: list[dict[str, Any]] = person.json("get")["items"]
    return found


def apply(person: Person, *files: Path | str, options: tuple[str, ...] = ()) -> str:
    arguments = [part for file in files for part in ("-f", str(file))]
    done = person.weft("apply", *arguments, "--wait", "--timeout", "20s", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def readable(person: Person, sample: Path) -> Path:
    """A sample as a file that the person may read, unchanged."""
    return person.write(f"samples/{sample.name}", sample.read_text())


def reviews(mesh: Mesh, **headers: str) -> Counter[str]:
    """Which versions of reviews answer productpage's program, by the colour of the stars."""
    edits = " ".join(f"-H '{name.replace('_', '-')}: {value}'" for name, value in headers.items())
    ask = f"for i in $(seq {REQUESTS}); do curl -s {edits} http://reviews:9080/reviews/0; done"
    done = mesh.person.weft("exec", "productpage-v1-0", "--", "sh", "-c", ask)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    assert len(lines) == REQUESTS, done.stdout
    seen: Counter[str] = Counter()
    for line in lines:
        color = re.search(r'"color": ?"(\w+)"', line)
        seen["v1" if color is None else {"black": "v2", "red": "v3"}[color[1]]] += 1
    return seen


V1, V2, V3 = ({version: 1.0} for version in ("v1", "v2", "v3"))

SHOWN: dict[str, dict[tuple[str, str], dict[str, float]]] = {
    "bookinfo-gateway": {},
    "destination-rule-all": {},
    "destination-rule-all-mtls": {},
    "virtual-service-all-v1": {
        (host, user): V1 for host in ("productpage", "reviews", "ratings", "details") for user in ("", "jason")
    },
    "virtual-service-reviews-v3": {("reviews", ""): V3, ("reviews", "jason"): V3},
    "virtual-service-reviews-50-v3": {("reviews", user): {"v1": 0.5, "v3": 0.5} for user in ("", "jason")},
    "virtual-service-reviews-80-20": {("reviews", user): {"v1": 0.8, "v2": 0.2} for user in ("", "jason")},
    "virtual-service-reviews-90-10": {("reviews", user): {"v1": 0.9, "v2": 0.1} for user in ("", "jason")},
    "virtual-service-reviews-jason-v2-v3": {("reviews", ""): V3, ("reviews", "jason"): V2},
    "virtual-service-reviews-test-v2": {("reviews", ""): V1, ("reviews", "jason"): V2},
    "virtual-service-ratings-test-delay": {("ratings", ""): V1, ("ratings", "jason"): {"delayed": 1.0}},
    "virtual-service-ratings-test-abort": {("ratings", ""): V1, ("ratings", "jason"): {"500": 1.0}},
    "virtual-service-details-v2": {("details", ""): V2, ("details", "jason"): V2},
}
"""
Istio's samples, and what each makes of the requests of a user (or of anybody) to a host: the shares that a version
answers, or v1 after seven seconds, or nobody, with that status.
"""


ORDERS = 3
"""Random ones that are tried; each run tries others."""


def test_istios_samples_apply_unchanged_in_any_order(person: Person, mesh: Mesh, samples: Path) -> None:
    """Each object is as the last file of the order that describes it has it, whatever came before."""
    names = [*SHOWN]
    files = {name: readable(person, samples / f"{name}.yaml") for name in names}
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    shuffled = random.Random(seed)
    for _ in range(ORDERS):
        shuffled.shuffle(names)
        wanted: dict[tuple[str, str], Any] = {}
        for name in names:
            documents = [item for item in yaml.safe_load_all(files[name].read_text()) if item]
            wanted |= {(item["kind"], item["metadata"]["name"]): item["spec"] for item in documents}
            if name != names[-1]:
                done = person.weft("apply", "-f", str(files[name]), "--no-wait")
                assert done.returncode == 0, (names, done.stdout + done.stderr)
        apply(person, files[names[-1]])
        assert {(item["kind"], item["metadata"]["name"]): item["spec"] for item in objects(person)} == wanted, names
        done = person.weft("delete", "gw,vs,dr", "--all")
        assert done.returncode == 0, done.stderr


SHARED = 1500
"""Requests that tell 10 % from 20 %."""

CHANCE = 1e-9
"""Of it that shares which are right are taken for wrong ones."""


def answers(person: Person, host: str, user: str, requests: int, mark: str) -> Counter[str]:
    """Who answers productpage's program, in the words of SHOWN; *mark* is in the query of each request."""
    path = "/api/v1/products" if host == "productpage" else f"/{host}/0"
    edits = ("-H", f"end-user: {user}") if user else ()
    ask = (
        "curl",
        "-s",
        *edits,
        "-w",
        r"\n%{http_code} %{time_total}\n",
        f"http://{host}:9080{path}?{mark}=[1-{requests}]",
    )
    done = person.weft("exec", "productpage-v1-0", "--", *ask)
    assert done.returncode == 0, done.stderr
    seen: Counter[str] = Counter()
    told = re.findall(r"^(.*)\n+(\d{3}) (\d+\.\d+)$", done.stdout, re.MULTILINE)
    for body, status, seconds in told:
        version = re.search(r'"served_by": ?"\w+-(\w+)"', body)
        alone = "delayed" if float(seconds) >= 6.99 else "v1"  # of a program that has no versions, and does not say it
        seen[(version[1] if version else alone) if status == "200" else status] += 1
    assert seen.total() == requests, done.stdout
    return seen


def differs(seen: Counter[str], shares: dict[str, float]) -> bool:
    """Whether it is none of chance's doing that *seen* are not *shares*: by the bound of Chernoff and Hoeffding."""

    def divergence(found: float, share: float) -> float:
        terms = ((found, share), (1 - found, 1 - share))
        return sum(part * math.log(part / whole) if whole else math.inf for part, whole in terms if part)

    requests = seen.total()
    return not seen.keys() <= shares.keys() or any(
        requests * divergence(seen[who] / requests, share) > math.log(2 * len(shares) / CHANCE)
        for who, share in shares.items()
    )


def test_each_of_istios_samples_is_in_force_whatever_came_before_it(person: Person, mesh: Mesh, samples: Path) -> None:
    seed = random.randrange(2**32)
    order = random.Random(seed).sample([*SHOWN], len(SHOWN))
    in_force: dict[tuple[str, str], dict[str, float]] = {}
    applied: set[str] = set()
    marks: list[str] = []

    def unproved() -> list[str]:
        """Requests that did not come to a program by mutual TLS, as far as it is known."""
        records = [
            json.loads(line)
            for line in person.weft("logs", "--access", "--since", "2m", "-o", "json").stdout.splitlines()
        ]
        told = [item["access"] for item in records if item["access"].get("direction") == "inbound"]
        return [
            mark
            for mark in marks
            if not any(f"?{mark}=1" in str(item) and "sa/productpage" in str(item) for item in told)
        ]

    for name in order:
        apply(person, readable(person, samples / f"{name}.yaml"))
        applied.add(name)
        in_force |= SHOWN[name]
        # A rule for subsets gives what is applied already its effect, or keeps it.
        concerned = in_force if name.startswith("destination-rule") else SHOWN[name]
        has_subsets = any(item.startswith("destination-rule") for item in applied)
        for (host, user), shares in concerned.items():
            wanted = shares if has_subsets or "500" in shares else {"503": 1.0}
            requests = 1 if user else SHARED if len(wanted) > 1 else 100
            mark = f"{name}-{host}-{user or 'anybody'}"
            seen = answers(person, host, user, requests, mark)
            assert not differs(seen, wanted), (
                f"seed {seed}: {order}: after {name} {host} for {user or 'anybody'}: {seen}"
            )
            marks += [mark] if wanted is shares and "500" not in shares else []
        # Now, for of so many requests not all records are kept to the end.
        eventually(lambda: not unproved(), f"seed {seed}: {order}: after {name} all came with productpage's identity")
        marks.clear()
        if "bookinfo-gateway" in applied:
            eventually(mesh.is_reached, "the gateway's port is listened on")
            assert mesh.get("/productpage")[0] == 200, f"seed {seed}: {order}: after {name}"


def test_all_v1_then_jason_sees_v2_and_others_v3(person: Person, mesh: Mesh, samples: Path) -> None:
    apply(
        person,
        *(readable(person, samples / f"{name}.yaml") for name in ("destination-rule-all", "virtual-service-all-v1")),
    )
    assert set(reviews(mesh)) == {"v1"}
    apply(person, readable(person, samples / "virtual-service-reviews-jason-v2-v3.yaml"))
    assert set(reviews(mesh, end_user="jason")) == {"v2"}
    assert set(reviews(mesh)) == {"v3"}


def test_a_fault_is_injected_for_the_user_it_names(person: Person, mesh: Mesh, samples: Path) -> None:
    apply(
        person,
        *(readable(person, samples / f"{name}.yaml") for name in ("destination-rule-all", "virtual-service-all-v1")),
    )
    apply(person, readable(person, samples / "virtual-service-ratings-test-abort.yaml"))
    ask = ("exec", "productpage-v1-0", "--", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{time_total}")
    plain = person.weft(*ask, "http://ratings:9080/ratings/0").stdout.split()
    jason = person.weft(*ask, "-H", "end-user: jason", "http://ratings:9080/ratings/0").stdout.split()
    assert (plain[0], jason[0]) == ("200", "500")
    apply(person, readable(person, samples / "virtual-service-ratings-test-delay.yaml"))
    delayed = person.weft(*ask, "-H", "end-user: jason", "http://ratings:9080/ratings/0").stdout.split()
    assert delayed[0] == "200"
    assert float(delayed[1]) >= 6.99  # Envoy counts from the time at which its loop last looked


def test_the_gateway_serves_what_its_virtual_service_says(person: Person, mesh: Mesh, samples: Path) -> None:
    with pytest.raises((ConnectionError, TimeoutError, OSError)):
        mesh.get("/productpage")
    apply(person, readable(person, samples / "bookinfo-gateway.yaml"))
    eventually(mesh.is_reached, "the gateway's port is listened on")
    assert mesh.get("/productpage")[0] == 200
    assert mesh.get("/nothing-there")[0] == 404


@pytest.mark.alone
def test_a_gateway_is_in_effect_at_once(person: Person, mesh: Mesh, samples: Path) -> None:
    """Though it needs a new listener, and a port of the host that nobody listened on: always, and in time the best of a few."""
    gateway = readable(person, samples / "bookinfo-gateway.yaml")
    late: list[float] = []
    while len(late) < 4 and min(late, default=IN_EFFECT_SECONDS) >= IN_EFFECT_SECONDS:
        person.delete_everything()
        eventually(lambda: not mesh.is_reached(), "the gateway's port is closed")
        apply(person, gateway)
        returned = time.monotonic()

        def asked_when_answered() -> float | None:
            asked = time.monotonic()
            with suppress(OSError):
                assert mesh.get("/productpage")[0] == 200, "a port that is listened on has the routes"
                return asked
            return None

        late.append(eventually(asked_when_answered, "the gateway serves the page") - returned)
    assert min(late) < IN_EFFECT_SECONDS, late


def told(person: Person) -> dict[str, Any]:
    """What each proxy has been told, by the name of its workload."""
    names = [item["workload"] for item in person.json("status")]
    return {name: [person.json("proxy-config", kind, name) for kind in ("listeners", "routes")] for name in names}


def test_apply_names_exactly_the_affected_proxies_and_is_in_effect_at_once(
    person: Person, mesh: Mesh, samples: Path
) -> None:
    apply(person, readable(person, samples / "destination-rule-all.yaml"))
    before = told(person)
    assert len(before) > 2
    for sample in ("virtual-service-all-v1.yaml", "bookinfo-gateway.yaml"):
        rule = readable(person, samples / sample)
        done = person.weft("apply", "-f", str(rule), "--wait", "-o", "json")
        assert done.returncode == 0, done.stderr
        receipt = json.loads(done.stdout)["receipt"]
        assert receipt["silent"] == []
        assert receipt["refused"] == []
        after = told(person)
        changed = sorted(name for name in after if after[name] != before[name])
        assert sorted(receipt["affected"]) == sorted(receipt["acknowledged"]) == changed
        before = after
    assert changed == ["ingressgateway-0"], "a rule of the gateway's is nobody else's"
    again = person.weft("apply", "-f", str(rule), "--wait", "-o", "json")
    assert json.loads(again.stdout)["affected"] == [], "nothing changed, so nobody is affected"

    # What a client asks for 100 ms after apply's return, or later, the new version answers.
    switched = threading.Event()
    seen: list[tuple[float, str]] = []
    loop = "while :; do date +%s.%N; curl -s http://reviews:9080/reviews/0 | tr -d '\\n'; echo; done"
    with person.start("exec", "productpage-v1-0", "--", "sh", "-c", loop) as client:
        assert client.stdout is not None

        def watch() -> None:
            lines = iter(client.stdout or ())
            for asked, line in zip(lines, lines, strict=False):
                seen.append((float(asked), "v3" if '"red"' in line else "other"))
                if switched.is_set() and float(asked) > returned + IN_EFFECT_SECONDS:
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        eventually(lambda: seen, "the client is answered")
        apply(person, readable(person, samples / "virtual-service-reviews-v3.yaml"))
        returned = time.time()
        switched.set()
        watcher.join(30)
        client.kill()
    late = [version for moment, version in seen if moment > returned + IN_EFFECT_SECONDS]
    assert late, "the new version has answered"
    assert "other" not in late, f"the old version answered {IN_EFFECT_SECONDS} s after apply had returned"


def test_a_proxy_that_is_silent_is_named(person: Person, mesh: Mesh, samples: Path) -> None:
    """One that does not answer in time, though it lives; it has the change as soon as it goes on."""
    rule = readable(person, samples / "virtual-service-ratings-test-abort.yaml")
    apply(person, readable(person, samples / "destination-rule-all.yaml"))
    proxy = next(pid for pid, line in processes_of(person).items() if "/ratings-v1-0/bootstrap.json" in line)
    os.kill(proxy, signal.SIGSTOP)
    try:
        done = person.weft("apply", "-f", str(rule), "--wait", "--timeout", "2s")
        assert done.returncode == 6, done.stdout + done.stderr
        assert done.stderr.splitlines()[-1] == "error: ratings-v1-0 did not answer within 2.0 s."
        counted = re.search(r"(\d+) of (\d+) affected proxies have it", done.stdout)
        assert counted, done.stdout
        assert int(counted[2]) - int(counted[1]) == 1
    finally:
        os.kill(proxy, signal.SIGCONT)
    done = person.weft("wait", "--timeout", "20s")
    assert done.returncode == 0, done.stderr


MALFORMED = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - match:
    - uri: {prefx: /a}
    route:
    - destination: {host: reviews, subset: v1}
      weight: many
  - timeout: soon
    route:
    - destination: {host: reviews}
    retries: {attempts: 1, attempts: 2}
"""


MIRROR = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews, subset: v1}
    mirror: {host: reviews, subset: v2}
    mirrorPercentage: {value: 100}
"""


def test_copies_arrive_at_v2_while_v1_answers(person: Person, mesh: Mesh, samples: Path) -> None:
    file = person.write("mirror.yaml", MIRROR)
    apply(person, readable(person, samples / "destination-rule-all.yaml"), file)
    assert reviews(mesh) == Counter(v1=REQUESTS)
    foretold = person.weft("why", "--from", "productpage", "--to", "http://reviews:9080/reviews/0")
    assert re.search(r"copy +100 % to reviews subset v2 port 9080 +\(.*mirror\.yaml:9:5\)", foretold.stdout), (
        foretold.stdout
    )
    request_id = "5e7c0f5e-0000-4000-8000-000000000001"
    ask = f"curl -s -H 'x-request-id: {request_id}' http://reviews:9080/reviews/0"
    done = person.weft("exec", "productpage-v1-0", "--", "sh", "-c", ask)
    assert '"color"' not in done.stdout, done.stdout  # v1 has no stars

    def is_told() -> bool:
        why = person.weft("why", request_id)
        arrived = "subset v2, where reviews-v2-0 took it; its answer was dropped" in why.stdout
        return arrived and "The program of reviews-v1-0 answered 200 itself" in why.stdout

    eventually(is_told, "the copy is told of beside the request")


@pytest.mark.any_data_plane
def test_mistakes_are_refused_all_at_once_and_nothing_takes_effect(person: Person, mesh: Mesh, samples: Path) -> None:
    bad = person.write("bad.yaml", MALFORMED.replace("    retries: {attempts: 1, attempts: 2}\n", ""))
    good = readable(person, samples / "destination-rule-all.yaml")
    done = person.weft("apply", "-f", str(good), "-f", str(bad))
    assert done.returncode == 3
    for place, words in ((":9:13", "prefix"), (":12:15", "many"), (":13:14", "soon")):
        assert f"bad.yaml{place}" in done.stderr, done.stderr
        assert words in done.stderr
    assert objects(person) == []


@pytest.mark.any_data_plane
def test_a_duplicate_key_is_refused_with_its_place(person: Person, mesh: Mesh) -> None:
    twice = person.write("twice.yaml", MALFORMED)
    done = person.weft("apply", "-f", str(twice))
    assert done.returncode == 3
    assert "twice.yaml:16:28" in done.stderr, done.stderr


@pytest.mark.any_data_plane
def test_a_field_that_is_not_honoured_is_refused_by_name(person: Person, mesh: Mesh) -> None:
    text = MALFORMED.split("  http:", maxsplit=1)[0] + "  http:\n  - route:\n    - destination: {host: reviews}\n"
    file = person.write("prefix.yaml", text + "    match: [{statPrefix: ratings}]\n")
    done = person.weft("apply", "-f", str(file))
    assert done.returncode == 3
    assert "statPrefix" in done.stderr
    assert "prefix.yaml:10" in done.stderr, done.stderr


@pytest.mark.any_data_plane
def test_a_dangling_reference_warns_and_strict_refuses(person: Person, mesh: Mesh) -> None:
    text = (
        MALFORMED.split("  http:", maxsplit=1)[0]
        + "  http:\n  - route:\n    - destination: {host: reviews, subset: v9}\n"
    )
    file = person.write("dangling.yaml", text)
    strict = person.weft("apply", "--strict", "-f", str(file))
    assert strict.returncode == 3
    assert strict.stderr.splitlines()[-1] == "error: 1 warning, which --strict refuses; nothing was changed."
    assert objects(person) == []
    lenient = person.weft("apply", "-f", str(file))
    assert lenient.returncode == 0, lenient.stderr
    assert "dangling.yaml:9" in lenient.stderr
    assert "v9" in lenient.stderr


@pytest.mark.any_data_plane
def test_dry_run_diff_get_and_delete_do_what_kubectls_users_expect(person: Person, mesh: Mesh, samples: Path) -> None:
    rules = readable(person, samples / "destination-rule-all.yaml")
    for value in ("--dry-run", "--dry-run=server", "--dry-run=client"):
        dry = person.weft("apply", value, "-f", str(rules))
        assert dry.returncode == 0
        assert objects(person) == []
    assert person.weft("diff", "-f", str(rules)).returncode == 1
    apply(person, rules)
    assert person.weft("diff", "-f", str(rules)).returncode == 0
    shown = person.weft("get", "DestinationRule/reviews", "-o", "yaml")
    assert "host: reviews" in shown.stdout
    assert person.weft("get", "destinationrules").stdout.split()[:5] == ["NAME", "HOST", "AGE", "details", "details"]
    assert person.weft("delete", "-f", str(rules)).returncode == 0
    assert objects(person) == []
    assert person.weft("get", "DestinationRule/reviews").returncode == 4


def test_every_proxy_has_an_identity_and_a_certificate_and_is_in_sync(person: Person, mesh: Mesh) -> None:
    def in_sync() -> bool:
        return all(proxy["synced"] for proxy in person.json("status"))

    eventually(in_sync, "every proxy is in sync")
    proxies = {proxy["workload"]: proxy for proxy in person.json("status")}
    assert len(proxies) == 8
    for name, proxy in proxies.items():
        assert proxy["identity"].startswith("spiffe://cluster.local/ns/default/sa/"), name
        assert proxy["certificate"]["not_after"], name
    table = person.weft("status").stdout
    assert "spiffe://" in table


def test_plain_text_to_a_sidecar_is_refused(person: Person, mesh: Mesh) -> None:
    address = person.json("ps")
    reviews_at = next(item["address"] for item in address if item["workload"] == "reviews-v1-0")
    done = person.weft("run", "--", "curl", "-sS", "-m", "5", f"http://{reviews_at}:9080/reviews/0")
    assert done.returncode not in (0, 28), f"the sidecar answered plain text: {done.stdout}"
    assert done.stdout == ""


def test_plain_text_that_was_refused_is_explained_to_who_sent_it(person: Person, mesh: Mesh) -> None:
    at = next(item["address"] for item in person.json("ps") if item["workload"] == "reviews-v1-0")
    done = person.weft("exec", "productpage-v1-0", "--", "curl", "-sS", "-m", "5", f"http://{at}:9080/reviews/0")
    assert done.returncode not in (0, 28), done.stdout
    finding = "productpage-v1-0 spoke plain text, and reviews-v1-0 requires mutual TLS (STRICT)."

    def told() -> str:
        shown = person.weft("why", "--last-failed", "--from", "productpage").stdout
        return shown if finding in shown else ""

    text = eventually(told, "the refusal is found among what failed of the caller")
    assert "Policy: weft's default, STRICT" in text, text
    assert "What to do: " in text, text
    assert "Call it by the name of its service" in text, text


def test_records_show_mutual_tls_with_both_identities(person: Person, mesh: Mesh) -> None:
    assert set(reviews(mesh))

    def seen() -> list[dict[str, str]]:
        done = person.weft("logs", "--access", "reviews-v1-0", "-o", "json")
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return [line for line in lines if "sa/productpage" in json.dumps(line)]

    eventually(seen, "reviews' proxy records productpage's identity")


def test_why_names_the_rule_and_those_before_it(person: Person, mesh: Mesh, samples: Path) -> None:
    apply(person, readable(person, samples / "destination-rule-all.yaml"))
    rule = readable(person, samples / "virtual-service-reviews-jason-v2-v3.yaml")
    apply(person, rule)
    ask = ("why", "--from", "productpage", "--to", "http://reviews:9080/reviews/0")
    jason = person.weft(*ask, "-H", "end-user: jason")
    assert jason.returncode == 0, jason.stderr
    assert f"{rule.name}:" in jason.stdout
    assert "v2" in jason.stdout
    others = person.weft(*ask).stdout
    assert "end-user" in others, "why the first rule did not match"
    assert "v3" in others
    for words in ("timeout", "retries", "spiffe://", "assumed"):
        assert words in others.lower(), others
    data = json.loads(person.weft(*ask, "-o", "json").stdout)
    assert data


def test_what_why_says_is_what_happens(person: Person, mesh: Mesh, samples: Path) -> None:
    apply(person, readable(person, samples / "destination-rule-all.yaml"))
    apply(person, readable(person, samples / "virtual-service-reviews-v3.yaml"))
    told = person.weft("why", "--from", "productpage", "--to", "http://reviews:9080/reviews/0").stdout
    assert "outbound|9080|v3|" in told or "v3" in told
    assert set(reviews(mesh)) == {"v3"}


def test_no_port_of_a_sidecar_is_open_on_the_host(person: Person, mesh: Mesh) -> None:
    for port in (9080, 15001):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} of the host answers"
