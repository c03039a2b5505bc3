"""One command brings up Bookinfo as a mesh."""

from __future__ import annotations

import re

import pytest

from tests.e2e.conftest import BOOKINFO, Mesh, eventually

pytestmark = pytest.mark.e2e

PROGRAMS = {f"{name}-0" for name in ("productpage-v1", "details-v1", "details-v2", "ratings-v1")}
PROGRAMS |= {f"reviews-v{number}-0" for number in (1, 2, 3)}


def stars(html: str) -> str:
    """Return which stars the page shows: `black`, `red` or `none`."""
    found = set(re.findall(r'class="stars (\w+)"', html))
    assert len(found) <= 1, found
    return found.pop() if found else "none"


def test_it_runs_every_program_and_the_gateway(bookinfo: Mesh) -> None:
    programs = bookinfo.programs()
    assert set(programs) == PROGRAMS | {"ingressgateway-0"}
    assert all(program["ready"] for program in programs.values())
    assert [port["number"] for port in programs["reviews-v1-0"]["ports"]] == [9080]


def test_it_shows_progress_then_the_gateways_address_and_three_things_to_try(bookinfo: Mesh) -> None:
    shown = bookinfo.output()
    progress, _, rest = shown.partition("\nready in")
    assert all(re.search(rf"{program} +ready", progress) for program in PROGRAMS), shown
    address, port = bookinfo.ingress
    assert f"http://{address}:{port}" in rest
    assert f"http://bookinfo.localhost:{port}/productpage" in rest
    assert re.findall(r"weft (\w+) ", rest)[:3] == ["apply", "why", "run"]


def test_the_page_is_a_real_page_with_no_black_and_red_stars_in_turn(bookinfo: Mesh) -> None:
    seen: set[str] = set()

    def look() -> bool:
        status, html = bookinfo.get("/productpage", host="bookinfo.localhost")
        assert status == 200
        assert "<h1>Middlemarch</h1>" in html
        assert "George Eliot" in html
        assert "Sorry" not in html
        seen.add(stars(html))
        return seen == {"none", "black", "red"}

    eventually(look, "all three kinds of stars are seen")


def test_the_page_opens_under_the_name_that_was_printed(bookinfo: Mesh) -> None:
    _, port = bookinfo.ingress
    status, html = bookinfo.get("/productpage", host=f"bookinfo.localhost:{port}")
    assert (status, "Bookinfo" in html) == (200, True)
    status, css = bookinfo.get("/static/style.css")
    assert (status, ".stars.red" in css) == (200, True)


def test_somebody_who_signs_in_is_known_by_name(bookinfo: Mesh) -> None:
    import http.client

    connection = http.client.HTTPConnection(*bookinfo.ingress, timeout=30)
    connection.request("POST", "/login", "username=jason", {"content-type": "application/x-www-form-urlencoded"})
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.headers["location"]) == (303, "/productpage")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    connection.close()
    status, html = bookinfo.get("/productpage", cookie=cookie)
    assert (status, "Reading as <b>jason</b>" in html) == (200, True)
    status, html = bookinfo.get("/productpage", cookie=cookie[:-2] + "AA")
    assert (status, "jason</b>" in html) == (200, False)


def test_both_versions_of_details_answer(bookinfo: Mesh) -> None:
    seen: set[bool] = set()

    def look() -> bool:
        status, body = bookinfo.get("/api/v1/products/0")
        assert status == 200
        seen.add("ISBN-13" in body)
        return seen == {True, False}

    eventually(look, "details v1 and v2 have both answered")


def test_what_the_gateway_has_no_route_for_is_not_found(bookinfo: Mesh) -> None:
    assert bookinfo.get("/details/0")[0] == 404


def test_the_programs_know_nothing_of_weft() -> None:
    for program in BOOKINFO.glob("*.py"):
        assert "weft" not in program.read_text("utf-8").lower(), program
