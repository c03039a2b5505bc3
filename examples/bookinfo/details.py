"""details: what the library knows about a book. `GET /details/0`. Version v2 knows the ISBN as well."""

from web import Request, Response, environment, serve

VERSION = environment("SERVICE_VERSION", "v1")

BOOK = {
    "author": "George Eliot",
    "year": 1871,
    "type": "paperback",
    "pages": 904,
    "publisher": "William Blackwood and Sons",
    "language": "English",
}
ISBN = {"ISBN-10": "0141439548", "ISBN-13": "978-0141439549"}


def handle(request: Request) -> Response:
    section, _, product = request.path.strip("/").partition("/")
    if section != "details" or not product.isdigit():
        return Response.of_json({"error": "try /details/0"}, 404)
    book = BOOK | ISBN if VERSION == "v2" else BOOK
    return Response.of_json({"id": int(product), "served_by": f"details-{VERSION}", **book})


if __name__ == "__main__":
    serve(handle)
