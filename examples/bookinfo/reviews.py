"""
reviews: what people say about a book. `GET /reviews/0`.

v1 shows no stars and never calls ratings; v2 asks ratings and shows black stars; v3 does the same in red.
"""

from typing import Any

from web import CallError, Client, Request, Response, environment, serve

VERSION = environment("SERVICE_VERSION", "v1")
COLOR = {"v2": "black", "v3": "red"}.get(VERSION)

# Longer than productpage waits for us, as it happens in programs written by different teams: with a delay of seven
# seconds before ratings, productpage gives up on reviews although reviews would have answered.
ratings = Client("http://ratings:9080", timeout=10)

REVIEWS = (
    ("Dorothea", "A whole town walks through these pages, and by the last one you have taken tea with all of them."),
    ("Edward", "Magnificent, if rather long. I was told that the footnotes would come later."),
)


def handle(request: Request) -> Response:
    section, _, product = request.path.strip("/").partition("/")
    if section != "reviews" or not product.isdigit():
        return Response.of_json({"error": "try /reviews/0"}, 404)
    reviews: list[dict[str, Any]] = [{"reviewer": name, "text": text} for name, text in REVIEWS]
    if COLOR:
        try:
            stars = ratings.json(f"/ratings/{product}", request.propagated())["ratings"]
        except CallError as exc:
            print(f"ratings failed: {exc}", flush=True)
            for review in reviews:
                review["rating"] = {"error": "Ratings service is currently unavailable"}
        else:
            for review in reviews:
                review["rating"] = {"stars": stars[review["reviewer"]], "color": COLOR}
    return Response.of_json({"id": int(product), "served_by": f"reviews-{VERSION}", "reviews": reviews})


if __name__ == "__main__":
    serve(handle)
