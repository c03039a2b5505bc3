"""ratings: how many stars each reviewer gave. `GET /ratings/0`."""

from web import Request, Response, serve

STARS = {"Dorothea": 5, "Edward": 3}


def handle(request: Request) -> Response:
    section, _, product = request.path.strip("/").partition("/")
    if section != "ratings" or not product.isdigit():
        return Response.of_json({"error": "try /ratings/0"}, 404)
    return Response.of_json({"id": int(product), "ratings": STARS})


if __name__ == "__main__":
    serve(handle)
