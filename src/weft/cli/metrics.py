"""`weft metrics`: what the proxies count, in Prometheus's text format; once, or to be scraped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import click

from weft.agent import paths
from weft.agent.admin import ask
from weft.cli.client import Client, connect
from weft.cli.main import ExampleCommand, unknown
from weft.cli.output import mesh_option
from weft.cli.workloads import all_meant, meant, told
from weft.errors import NotFound, UsageError, WeftError
from weft.telemetry.exposition import CONTENT_TYPE, MalformedExposition, merge

EXAMPLES = """
weft metrics
weft metrics reviews-v2-0 | grep istio_requests_total
weft metrics --listen 127.0.0.1:15020
"""

LABEL = "workload"
PATH = "/metrics"
LOOPBACK = "127.0.0.1"
UP = "weft_proxy_up"
UP_HELP = "Whether the workload's proxy answered this scrape."


class Scrape(NamedTuple):
    """One exposition of all that answered, and why the others did not; `weft_proxy_up` in it tells both apart."""

    text: str
    answered: int
    silent: Mapping[str, str]


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@mesh_option
@click.option(
    "--listen",
    metavar="[ADDRESS:]PORT",
    help=f"Serve them at http://ADDRESS:PORT{PATH} until Ctrl-C. ADDRESS is {LOOPBACK} if it is not said.",
)
@click.argument("names", nargs=-1)
def command(mesh: str | None, listen: str | None, names: Sequence[str]) -> None:
    """
    Show what the proxies of NAMES count, or those of all, as Prometheus reads it.

    A NAME is a workload's name, or a service's (`reviews` is every version of reviews). Each sample says in
    the label `workload` whose proxy counted it. Names and labels are Istio's; docs/reference/metrics.md lists them.
    """
    if listen is not None:
        serve(mesh, names, listen)
        return
    found = scrape(connect(mesh), names)
    for workload, reason in found.silent.items():
        click.echo(f"warning: the proxy of {workload} does not answer: {reason}", err=True)
    if not found.answered:
        raise WeftError("No proxy answers. `weft status` shows what they do.")
    click.echo(found.text, nl=False)


def scrape(client: Client, names: Sequence[str]) -> Scrape:
    """
    Ask the proxies of *names*, or of all, at the same time.

    Raises:
        NotFound: A name means nobody.
        WeftError: A proxy answered what is no exposition.
    """
    workloads = chosen(told(client), names)
    answers = asyncio.run(_ask_all(paths.mesh_paths(client.mesh), workloads))
    up = f"# HELP {UP} {UP_HELP}\n# TYPE {UP} gauge\n{UP} "
    every = {name: f"{up}{0 if reason else 1}\n{text}" for name, (text, reason) in answers.items()}
    silent = {name: reason for name, (_, reason) in answers.items() if reason}
    try:
        return Scrape(merge(every, label=LABEL), len(every) - len(silent), silent)
    except MalformedExposition as error:
        raise WeftError(f"A proxy's metrics are not in Prometheus's text format: {error}") from error


def chosen(services: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Return those workloads of *services* that *names* mean; all if there are none."""
    for name in names:
        if not meant(name, services):
            raise NotFound(unknown("program", name, list(services)))
    return all_meant(names, services)


async def _ask_all(mesh: paths.MeshPaths, workloads: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return what `_ask` returns, by workload."""
    answers = await asyncio.gather(*(_ask(mesh.workload(workload)) for workload in workloads))
    return dict(zip(workloads, answers, strict=True))


async def _ask(workload: paths.WorkloadPaths) -> tuple[str, str]:
    """Return what the proxy exposes, or why it does not."""
    try:
        status, body = await ask(workload.admin_socket, "/stats/prometheus")
        text = body.decode()
    except TimeoutError:
        return "", "not in time"
    except (OSError, ValueError) as error:
        return "", str(error)
    return (text, "") if status == 200 else ("", f"HTTP {status}")


def serve(mesh: str | None, names: Sequence[str], listen: str) -> None:
    """
    Answer scrapes until Ctrl-C; while the mesh is away they fail, and Prometheus says so.

    Raises:
        UsageError: *listen* is no address, or cannot be listened on.
        MeshNotRunning, NotFound: There is nothing to be scraped now.
    """
    client = connect(mesh)
    scrape(client, names)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            if self.path.partition("?")[0] != PATH:
                self._answer(404, "text/plain; charset=utf-8", f"Metrics are at {PATH}.\n")
                return
            try:
                text = scrape(client, names).text
            except WeftError as error:
                self._answer(503, "text/plain; charset=utf-8", f"{error}\n")
                return
            self._answer(200, CONTENT_TYPE, text)

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own name for it
            """Say nothing of each scrape."""

    address, port = address_of(listen)

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        daemon_threads = True

    try:
        server = Server((address, port), Handler)
    except OSError as error:
        raise UsageError(f"--listen {listen}: {error.strerror or error}") from error
    with server:
        host = f"[{address}]" if ":" in address else address
        click.echo(f"metrics of mesh {client.mesh} at http://{host}:{server.server_address[1]}{PATH}")
        server.serve_forever()


def address_of(text: str) -> tuple[str, int]:
    """
    Return address and port of `[ADDRESS:]PORT`; an address of IPv6 is in brackets.

    Raises:
        UsageError: It is none.
    """
    address, _, port = text.rpartition(":")
    bare = address.removeprefix("[").removesuffix("]")
    wrong = not (port.isascii() and port.isdigit() and int(port) < 2**16) or (":" in bare) != address.startswith("[")
    if wrong:
        raise UsageError(f"--listen {text}: expected a port (15020), or an address and a port (127.0.0.1:15020).")
    return bare or LOOPBACK, int(port)
