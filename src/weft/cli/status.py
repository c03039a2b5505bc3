"""`weft status`: each proxy, whether it has what it was told, and how long its certificate lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from weft.cli.apply import lateness, refusal, superseded
from weft.cli.away import certificates, text
from weft.cli.client import connect
from weft.cli.main import ExampleCommand, unknown
from weft.cli.output import columns, duration, emit, mesh_option, output_option, plural
from weft.data_plane import WEFT_PROXY
from weft.errors import NotFound, WeftError

EXAMPLES = """
weft status                       every proxy
weft status reviews-v1-0          one proxy, with everything that is known of it
weft status --revision 12         who has revision 12, who is silent, who refused it
"""

ANSWER_SECONDS = 5.0
"""Then the control plane counts as away, and what is known without it is shown."""

EXPIRES_SOON_SECONDS = 3600.0
"""Below this a certificate is marked: an agent renews it at half its life, so something is in the way."""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@click.argument("workload", required=False)
@click.option("--revision", type=click.IntRange(min=1), help="Show who has this revision.")
@output_option("wide")
@mesh_option
def command(*, workload: str | None, revision: int | None, output: str, mesh: str | None) -> None:
    """Show each proxy: synced or not, revision, identity, the certificate's remaining life, what it refused."""
    client = connect(mesh)
    if revision is not None:
        receipt = client.get(f"/v1/revisions/{revision}")
        emit(receipt, output, lambda: receipt_text(receipt))
        return
    try:
        proxies = client.get("/v1/proxies", timeout=ANSWER_SECONDS)
    except WeftError:
        from weft.agent import paths

        files = paths.find(mesh)
        known = certificates(files.runtime)
        pid = paths.control_plane(files)
        emit(known, output, lambda: text(known, files.log("control-plane"), pid))
        raise
    now = datetime.now(UTC)
    for proxy in proxies:
        proxy["certificate"]["remaining_seconds"] = remaining_seconds(proxy, now)
    if workload is None:

        def everything() -> str:
            shown = table(proxies, wide=output == "wide")
            return f"{shown}\n\n{authority(client.get('/v1/ca'))}" if proxies else shown

        emit(proxies, output, everything)
        return
    found = next((proxy for proxy in proxies if proxy["workload"] == workload), None)
    if found is None:
        raise NotFound(unknown("proxy", workload, [proxy["workload"] for proxy in proxies]))
    emit(found, output, lambda: detail(found))


def remaining_seconds(proxy: Mapping[str, Any], now: datetime) -> float | None:
    """Return how long the proxy's certificate lasts from *now*; None while it has none."""
    not_after = proxy["certificate"]["not_after"]
    return (datetime.fromisoformat(not_after) - now).total_seconds() if not_after else None


def table(proxies: Sequence[Mapping[str, Any]], *, wide: bool) -> str:
    """Return one line for each proxy, and below it what needs somebody's attention."""
    head = ["proxy", "state", "revision", "identity", "certificate", "data plane"]
    head += ["kind", "node"] if wide else []
    rows = []
    for proxy in proxies:
        row = [
            proxy["workload"],
            _state(proxy),
            proxy["revision"],
            proxy["identity"],
            _certificate(proxy),
            _data_plane(proxy),
        ]
        rows.append(row + ([proxy["kind"], proxy["node_id"]] if wide else []))
    parts = [columns(head, rows, empty="No program runs in this mesh yet.")]
    if notes := [f"  {proxy['workload']}: {note}" for proxy in proxies for note in _notes(proxy)]:
        parts.append("\n".join(["Notices:", *notes]))
    for data_plane in sorted({proxy["data_plane"] for proxy in proxies} - {WEFT_PROXY}):
        lacks = {
            item["text"]: None for proxy in proxies if proxy["data_plane"] == data_plane for item in proxy["lacks"]
        }
        if lacks:
            title = f"Beside {WEFT_PROXY}, {data_plane}"
            parts.append("\n".join([title, *(f"  - {text}" for text in lacks)]))
    return "\n\n".join(parts)


def authority(found: Mapping[str, Any]) -> str:
    """Return one line about who signs the certificates, and whether the next root is ready to."""
    signing = found["intermediate"]["root"]
    line = f"Certificates are signed under root {signing} and last {duration(found['leaf_seconds'])}"
    if found["not_trusting"]:
        return f"{line}; the standby root is not trusted yet by {', '.join(found['not_trusting'])} (weft ca)."
    retiring = [f"root {root['number']}" for root in found["roots"] if root["state"] == "retiring"]
    return (
        f"{line}; {', '.join(retiring)} still trusted until the last of its certificates has expired (weft ca)."
        if (retiring)
        else f"{line}; the standby root is trusted everywhere (weft ca)."
    )


def detail(proxy: Mapping[str, Any]) -> str:
    """Return everything about one proxy, a line each."""
    facts = [
        ("Proxy", proxy["workload"]),
        ("Namespace", proxy["namespace"]),
        ("Kind", proxy["kind"]),
        ("Node", proxy["node_id"]),
        ("Data plane", _data_plane(proxy)),
        ("State", _state(proxy)),
        ("Has revision", proxy["revision"]),
        ("Was told", proxy["published"]),
        ("Identity", proxy["identity"]),
        ("Certificate", _certificate(proxy)),
    ]
    lines = [f"{name + ':':15}{'-' if value is None else value}" for name, value in facts]
    notes = _notes(proxy)
    lines += [f"{'Lacks:' if index == 0 else '':15}it {item['text']}" for index, item in enumerate(proxy["lacks"])]
    return "\n".join(lines + [f"{'Notice:' if index == 0 else '':15}{note}" for index, note in enumerate(notes)])


def receipt_text(receipt: Mapping[str, Any]) -> str:
    """Return who has a revision."""
    when = ""
    if receipt["time"]:
        when = f" at {datetime.fromtimestamp(receipt['time']).astimezone():%Y-%m-%d %H:%M:%S}"
    affected = receipt["affected"]
    lines = [f"Revision {receipt['revision']}{when}: {receipt['summary']}"]
    if not affected:
        return "\n".join([*lines, "It concerns no proxy that runs now."])
    whom = plural(len(affected), "affected proxy has", "affected proxies have")
    lines.append(f"{len(receipt['acknowledged'])} of {whom} acknowledged.")
    lines += [f"  silent   {name}" for name in receipt["silent"]]
    lines += [f"  late     {item['workload']}: {lateness(item['agent'])}" for item in receipt["late"]]
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for item in receipt["refused"]:
        alike.setdefault(f"{item['superseded_by']} {item['mended']}", []).append(item)
    for items in alike.values():
        lines.append(f"Refused by {len(items)} of {len(affected)}{superseded(items)}.")
        lines += [f"  refused  {item['workload']}: {refusal(part)}" for item in items for part in item["resources"]]
    return "\n".join(lines)


def _state(proxy: Mapping[str, Any]) -> str:
    if not proxy["connected"]:
        return "not connected"
    if proxy["refused"]:
        return "refused"
    if proxy["agent"]["state"] == "stopped":
        return "stopped"
    if proxy["withheld"]:
        return "behind"
    return "synced" if proxy["synced"] and proxy["agent"]["state"] == "answers" else "behind"


def _data_plane(proxy: Mapping[str, Any]) -> str:
    return f"{proxy['data_plane']} {proxy['data_plane_version']}".rstrip()


def _certificate(proxy: Mapping[str, Any]) -> str:
    remaining = proxy["certificate"]["remaining_seconds"]
    if remaining is None:
        return ""
    if remaining <= 0:
        return "EXPIRED"
    return duration(remaining) + (" (soon!)" if remaining < EXPIRES_SOON_SECONDS else "")


def _notes(proxy: Mapping[str, Any]) -> list[str]:
    notes = [f"refused {refusal(item)}" for item in proxy["refused"]]
    notes += proxy["withheld"]
    notes += [lateness(proxy["agent"])] if proxy["agent"]["state"] != "answers" else []
    for notice in proxy["notices"]:
        notes.append(notice["text"] + (f" ({notice['count']} times)" if notice["count"] > 1 else ""))
    return notes
