"""
productpage: the page of a book, put together from details and reviews.

`GET /productpage` is the page; `/login` and `/logout` change who looks at it; `/api/v1/products...` gives the same as
JSON; `/static/...` the style sheet. There are no passwords: any name may log in, it only decides how one is routed.
"""

from __future__ import annotations

import hmac
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import parse_qs

from web import CallError, Client, Request, Response, environment, serve

HERE = Path(__file__).resolve().parent
TYPES = {".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
SESSION_KEY = environment("SESSION_KEY", "").encode() or os.urandom(16)

PRODUCT = {
    "id": 0,
    "title": "Middlemarch",
    "subtitle": "A Study of Provincial Life",
    "summary": "Dorothea Brooke wants to do some good in the world; Tertius Lydgate wants to reform medicine. "
    "Both marry the wrong person, and a small town in the English Midlands watches them, gossips, lends money, "
    "votes, and builds a railway.",
}

details = Client("http://details:9080", timeout=6)
reviews = Client("http://reviews:9080", timeout=6)
ratings = Client("http://ratings:9080", timeout=6)

page = Template((HERE / "productpage.html").read_text(encoding="utf-8"))
pool = ThreadPoolExecutor(max_workers=16)


def handle(request: Request) -> Response:
    match (request.method, request.path.rstrip("/") or "/"):
        case "POST", "/login":
            return log_in(request)
        case "GET" | "HEAD", "/logout":
            return see_other("/productpage", "session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")
        case "GET" | "HEAD", "/" | "/login":
            return see_other("/productpage")
        case "GET" | "HEAD", "/productpage":
            return show(request)
        case "GET" | "HEAD", path if path.startswith("/static/"):
            return static(path.removeprefix("/static/"))
        case "GET" | "HEAD", path if path.startswith("/api/v1/products"):
            return api(request, path.removeprefix("/api/v1/products").strip("/"))
    return Response(404, b"no such page\n", "text/plain; charset=utf-8")


# --- the page ---


def show(request: Request) -> Response:
    """Ask details and reviews at the same time; what fails is shown as an apology in its place."""
    headers = outgoing(request)
    asked = [pool.submit(attempt, partial(client.json, path, headers)) for client, path in SOURCES]
    book, opinions = (item.result() for item in asked)
    user = session_user(request)
    html = page.substitute(
        title=escape(PRODUCT["title"]),
        subtitle=escape(PRODUCT["subtitle"]),
        summary=escape(PRODUCT["summary"]),
        session=LOGGED_IN.substitute(user=escape(user)) if user else LOGGED_OUT,
        details=details_html(book),
        reviews=reviews_html(opinions),
        reviews_by=served_by(opinions),
        details_by=served_by(book),
    )
    return Response(200, html.encode(), "text/html; charset=utf-8", {"cache-control": "no-store"})


SOURCES = ((details, "/details/0"), (reviews, "/reviews/0"))
LOGGED_IN = Template('<span class="who">Reading as <b>$user</b></span> <a class="button" href="/logout">Sign out</a>')
LOGGED_OUT = (
    '<form method="post" action="/login"><input name="username" placeholder="your name, or jason" aria-label="Name"'
    ' required maxlength="64"><button class="button">Sign in</button></form>'
)


def attempt(call: Any) -> dict[str, Any] | CallError:
    try:
        answer: dict[str, Any] = call()
    except CallError as exc:
        print(exc, flush=True)
        return exc
    return answer


def details_html(book: dict[str, Any] | CallError) -> str:
    if isinstance(book, CallError):
        return apology("Error fetching product details", "Sorry, product details are currently unavailable.", book)
    rows = ((key, value) for key, value in book.items() if key not in ("id", "served_by"))
    cells = "".join(
        f"<dt>{escape(key if key.isupper() or '-' in key else key.capitalize())}</dt><dd>{escape(str(value))}</dd>"
        for key, value in rows
    )
    return f"<dl>{cells}</dl>"


def reviews_html(opinions: dict[str, Any] | CallError) -> str:
    if isinstance(opinions, CallError):
        return apology("Error fetching product reviews", "Sorry, product reviews are currently unavailable.", opinions)
    return "".join(
        f"<blockquote>{stars_html(item.get('rating'))}<p>{escape(item['text'])}</p>"
        f"<footer>{escape(item['reviewer'])}</footer></blockquote>"
        for item in opinions["reviews"]
    )


WHITE_STAR = "\N{WHITE STAR}"


def stars_html(rating: dict[str, Any] | None) -> str:
    if rating is None:
        return ""
    if "error" in rating:
        return f'<div class="no-ratings">{escape(rating["error"])}</div>'
    count, color = int(rating["stars"]), escape(rating["color"])
    glyphs = "\N{BLACK STAR}" * count
    if count < 5:
        glyphs += f'<span class="rest">{WHITE_STAR * (5 - count)}</span>'
    return f'<div class="stars {color}" role="img" aria-label="{count} of 5 {color} stars">{glyphs}</div>'


def apology(title: str, text: str, failure: CallError) -> str:
    reason = f"status {failure.status}" if failure.status else "no answer"
    return f'<div class="sorry"><b>{title}</b> <span>({reason})</span><p>{text}</p></div>'


def served_by(answer: dict[str, Any] | CallError) -> str:
    return "" if isinstance(answer, CallError) else escape(str(answer.get("served_by", "")))


# --- JSON and files ---


def api(request: Request, rest: str) -> Response:
    headers = outgoing(request)
    match rest.split("/"):
        case [""]:
            return Response.of_json([PRODUCT])
        case ["0"]:
            return relayed(details, "/details/0", headers)
        case ["0", "reviews"]:
            return relayed(reviews, "/reviews/0", headers)
        case ["0", "ratings"]:
            return relayed(ratings, "/ratings/0", headers)
    return Response.of_json({"error": "no such product"}, 404)


def relayed(client: Client, path: str, headers: dict[str, str]) -> Response:
    try:
        return Response.of_json(client.json(path, headers))
    except CallError as exc:
        return Response.of_json({"error": str(exc)}, exc.status or 503)


def static(name: str) -> Response:
    path = (HERE / "static" / name).resolve()
    if not path.is_relative_to(HERE / "static") or not path.is_file() or path.suffix not in TYPES:
        return Response(404, b"no such file\n", "text/plain; charset=utf-8")
    return Response(200, path.read_bytes(), TYPES[path.suffix], {"cache-control": "max-age=60"})


# --- who is looking ---


def log_in(request: Request) -> Response:
    user = parse_qs(request.body.decode("utf-8", "replace")).get("username", [""])[0].strip()[:64]
    if not user.isprintable() or not user:
        return see_other("/productpage")
    return see_other("/productpage", f"session={seal(user)}; Path=/; HttpOnly; SameSite=Lax")


def session_user(request: Request) -> str:
    """Return who is logged in, or an empty string."""
    try:
        cookie = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return ""
    return unseal(cookie["session"].value) if "session" in cookie else ""


def outgoing(request: Request) -> dict[str, str]:
    """Return the headers for calls made for *request*: its own context, and the logged-in user as `end-user`."""
    headers = request.propagated()
    if user := session_user(request):
        headers["end-user"] = user.encode("ascii", "replace").decode()
    return headers


def seal(user: str) -> str:
    """Return *user* with a proof that we wrote it."""
    proof = hmac.digest(SESSION_KEY, user.encode(), "sha256")[:12]
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in (user.encode(), proof))


def unseal(value: str) -> str:
    name, _, _ = value.partition(".")
    try:
        user = urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
    except ValueError:
        return ""
    return user if hmac.compare_digest(seal(user), value) else ""


def see_other(location: str, cookie: str = "") -> Response:
    return Response(303, headers={"location": location} | ({"set-cookie": cookie} if cookie else {}))


if __name__ == "__main__":
    serve(handle)
