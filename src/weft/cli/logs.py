"""`weft logs`: what the programs write, and the requests that their proxies saw, in order of time."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import click

from weft.agent import paths
from weft.agent.output import Follower, stamp
from weft.cli.client import Client
from weft.cli.main import ExampleCommand, unknown
from weft.cli.output import mesh_option, to_yaml
from weft.cli.workloads import all_meant
from weft.errors import NotFound, UsageError, WeftError
from weft.model import grpc
from weft.model.denial import is_denial

EXAMPLES = """
weft logs
weft logs -f productpage reviews-v2-0
weft logs --access --since 5m ratings
"""

FOLLOW_POLL_SECONDS = 0.1
COLORS = (
    "cyan",
    "green",
    "yellow",
    "magenta",
    "blue",
    "bright_cyan",
    "bright_green",
    "bright_yellow",
    "bright_magenta",
)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
EPOCH = "1970-01-01T00:00:00.000Z"


class Line(NamedTuple):
    """One line of a log: RFC 3339 time, workload, `output` or `access`, text. Sorts by time."""

    time: str
    workload: str
    kind: str
    text: str


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@mesh_option
@click.option("-f", "--follow", is_flag=True, help="Go on as more comes, until Ctrl-C or the end of the mesh.")
@click.option("--access", "only", flag_value="access", help="Only the requests that the proxies saw.")
@click.option("--output", "only", flag_value="output", help="Only what the programs wrote.")
@click.option("--since", metavar="TIME", help="Only what is younger: 30s, 5m, 2h, 1d, or a time in RFC 3339.")
@click.option(
    "-o",
    "output_format",
    type=click.Choice(["json", "yaml"]),
    help="Print each line as a JSON object, or as a YAML document.",
)
@click.argument("names", nargs=-1)
def command(
    mesh: str | None,
    follow: bool,
    only: str | None,
    since: str | None,
    output_format: str | None,
    names: Sequence[str],
) -> None:
    """
    Show output and requests of the programs NAMES, or of all.

    A NAME is a workload's name, or a service's (`reviews` is every version of reviews). The output of a
    program of `weft run` goes to its own terminal and is not kept; its requests are.
    """
    found = paths.find(mesh)
    oldest = since_time(since) if since else ""
    followed: dict[tuple[str, str], Follower] = {}
    colors: dict[str, str] = {}

    def arrived() -> list[Line]:
        for workload in chosen(found, names):
            files = found.workload(workload)
            for kind, path in (("output", files.output_log), ("access", files.access_log)):
                if only in (None, kind) and (workload, kind) not in followed:
                    followed[workload, kind] = Follower(path)
        return list(heapq.merge(*(sorted(read(*key, log)) for key, log in followed.items())))

    for name in names:
        if not chosen(found, [name]):
            raise NotFound(
                unknown_workload(name, list(paths.workloads(found)), [*paths.running(found), *gateways(found)])
            )
    try:
        while True:
            lines = arrived()
            for line in lines:
                if line.time >= oldest:
                    show(line, output_format, colors)
            if not follow or (not lines and paths.lock_holder(found) is None):
                return
            time.sleep(FOLLOW_POLL_SECONDS)
    finally:
        for log in followed.values():
            log.close()


def gateways(mesh: paths.MeshPaths) -> list[str]:
    """Names of the gateways of *mesh*, which have no program that runs; none while the control plane is away."""
    try:
        told = Client(mesh.api_socket, mesh.mesh).get("/v1/workloads")
    except WeftError:
        return []
    return sorted(item["workload"] for item in told if item["kind"] == "gateway")


def unknown_workload(name: str, known: Sequence[str], running: Sequence[str]) -> str:
    """Return the sentence for a *name* of which nothing is *known*: what runs, and what has ended and left its logs."""
    text = unknown("program", name, known)
    if "Did you mean" in text:
        return text
    ended = [item for item in known if item not in running]
    text = f"There is no program {name!r}. Running: {', '.join(sorted(running)) or 'none'}."
    return f"{text} Ended, with logs still there: {', '.join(ended)}." if ended else text


def chosen(mesh: paths.MeshPaths, names: Sequence[str]) -> list[str]:
    """Those workloads of *mesh* that have left a trace and that *names* mean; all if there are none."""
    return all_meant(names, paths.workloads(mesh))


def read(workload: str, kind: str, log: Follower) -> Iterator[Line]:
    """Yield what is new in *log*; a line without a readable time gets that of the line before it."""
    when = EPOCH
    for text in log.lines():
        if kind == "output":
            when, _, rest = text.partition(" ")
            yield Line(when, workload, kind, rest)
            continue
        try:
            record = json.loads(text)
            when = stamp(datetime.fromisoformat(record["start_time"]))
        except (ValueError, KeyError, TypeError):
            continue  # a record that was cut in two when the log was full
        yield Line(when, workload, kind, text)


def show(line: Line, output_format: str | None, colors: dict[str, str]) -> None:
    """Print *line* for people, or as `json` or `yaml` for programs."""
    if output_format is not None:
        content = {"time": line.time, "workload": line.workload, "kind": line.kind}
        content |= {"access": json.loads(line.text)} if line.kind == "access" else {"text": line.text}
        if output_format == "json":
            click.echo(json.dumps(content, ensure_ascii=False))
        else:
            click.echo(f"---\n{to_yaml(content)}", nl=False)
        return
    color = colors.setdefault(line.workload, COLORS[len(colors) % len(COLORS)])
    text = access_text(json.loads(line.text)) if line.kind == "access" else line.text
    name = click.style(f"{line.workload:<18}", fg=color)
    click.echo(f"{click.style(line.time[11:-1], dim=True)} {name} {text}")


def access_text(record: dict[str, object]) -> str:
    """Return an access record in one line: direction, request and who made it, answer, where it went, how long it took, its id."""
    arrow = {"outbound": "-->", "inbound": "<--", "gateway": "==>"}.get(str(record.get("direction")), "---")
    if record.get("method"):
        request = f"{record['method']} {record.get('authority') or ''}{record.get('path') or ''}"
    else:
        request = f"TCP {record.get('requested_server_name') or record.get('upstream_cluster') or ''}"
        if not record.get("upstream_host") and record.get("downstream_local_address"):
            request += f" to {record['downstream_local_address']}"  # it came nowhere: say where it was going
    if record.get("direction") != "outbound" and record.get("downstream_remote_address"):
        request += f" from {str(record['downstream_remote_address']).rpartition(':')[0]}"
    status = str(record.get("response_code") or "")
    flags = str(record.get("response_flags") or "")
    parts = [arrow, request]
    if status:
        parts.append(click.style(status, fg="red" if status >= "500" else "yellow" if status >= "400" else "green"))
    if grpc_status := record.get("grpc_status"):
        parts.append(_grpc_text(int(str(grpc_status))))
    details = str(record.get("response_code_details") or "")
    if flags not in ("", "-"):
        parts.append(click.style(flags, fg="red"))
    elif is_denial(details):
        parts.append(click.style(details, fg="red"))  # the proxy itself refused it, for which there is no flag
    if record.get("upstream_host"):
        parts.append(f"via {record['upstream_host']}")
    parts.append(f"{record.get('duration_ms', '?')} ms")
    if record.get("request_id"):
        parts.append(click.style(str(record["request_id"]), dim=True))
    return " ".join(part for part in parts if part)


def _grpc_text(status: int) -> str:
    """Return a status of gRPC that is not OK: `grpc-status 14 (UNAVAILABLE)`."""
    return click.style(grpc.status_text(status), fg="red" if status in grpc.FAILURES else "yellow")


def since_time(text: str) -> str:
    """
    Return the time that `--since` means, as logs have it.

    Raises:
        UsageError: It is neither a length of time nor a time.
    """
    try:
        if text[:-1].isdigit() and text[-1] in UNITS:
            return stamp(datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * UNITS[text[-1]]))
        return stamp(datetime.fromisoformat(text))
    except (ValueError, OverflowError) as exc:  # digits that int() does not take, a time before the first year
        raise UsageError(f"--since {text}: use 30s, 5m, 2h, 1d, or a time such as 2026-01-31T12:00:00Z.") from exc
