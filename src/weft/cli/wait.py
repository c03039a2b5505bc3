"""`weft wait`: return when every proxy has a revision."""

from __future__ import annotations

import time

import click

from weft.cli.apply import await_receipt, check_answers, check_receipt, is_awaited, refusals, tell_stopped
from weft.cli.client import connect
from weft.cli.documents import DURATION
from weft.cli.main import ExampleCommand
from weft.cli.output import emit, mesh_option, output_option, plural
from weft.errors import NotSynced

PAUSE_SECONDS = 0.1
"""Before the proxies are asked about again where there is no answer to wait for."""

EXAMPLES = """
weft wait                                             until every proxy has everything
weft wait --revision 12 --timeout 30s                 until the proxies that revision 12 affects have it
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@click.option("--revision", type=click.IntRange(min=1), help="Which revision; all that there are if absent.")
@click.option("--timeout", type=DURATION, default="10s", show_default=True, help="How long to wait.")
@output_option()
@mesh_option
def command(*, revision: int | None, timeout: float, output: str, mesh: str | None) -> None:
    """
    Wait until every proxy has what it was told.

    Exits with 6 if one has not acknowledged within --timeout, or has refused, or if an agent is silent, and names it. A
    program that is stopped (Ctrl-Z) is not waited for. A revision that was refused stays refused, also when a later one
    has mended it; of one that is forgotten the exit code is 4.
    """
    client = connect(mesh)
    deadline = time.monotonic() + timeout
    if revision is not None:
        receipt = await_receipt(client, revision, timeout)
        check_receipt(receipt, timeout)
        whom = plural(len(receipt["acknowledged"]), "affected proxy has", "affected proxies have")
        emit(receipt, output, lambda: f"{whom} revision {revision}.")
        return
    while True:
        proxies = client.get("/v1/proxies")
        running = [proxy for proxy in proxies if proxy["agent"]["state"] != "stopped"]
        late = [proxy for proxy in running if proxy["agent"]["state"] == "silent"]
        behind = [proxy for proxy in running if not proxy["synced"] or proxy in late]
        if not behind:
            break
        published = {proxy["published"] or 1 for proxy in behind}
        receipts = [await_receipt(client, number, 0) for number in sorted(published)]
        if lines := [line for receipt in receipts for line in refusals(receipt["refused"])]:
            refused = [item["workload"] for receipt in receipts for item in receipt["refused"]]
            raise NotSynced("\n".join(dict.fromkeys(lines)), refused=refused)
        left = deadline - time.monotonic()
        if left <= 0:
            check_answers([proxy["workload"] for proxy in behind if not proxy["synced"]], late, timeout)
        if not is_awaited(await_receipt(client, max(published), left)):
            # Every answer is there, and still a proxy is behind: it is away, or has another revision to come.
            time.sleep(min(PAUSE_SECONDS, left))
    emit(proxies, output, lambda: f"{plural(len(running), 'proxy is', 'proxies are')} in sync.")
    tell_stopped(proxies)
