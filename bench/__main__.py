"""
`python -m bench`: run the scenarios, print their tables and the goals; keep all in bench/out/.

A run of all scenarios and peers with the default rounds and seconds, in which nothing failed, is published: its result and
configurations in bench/results/, its figures in README.md and docs/.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from bench import machine, peers, plot, publish, report
from bench.measure import KEPT, OUT, WORK_PREFIX, Cores, Run, Table
from bench.process import end_by_sigterm

SCENARIOS = ("s1", "s2", "s3", "s4", "s5", "s6", "s9", "s10", "memory", "start", "demo", "latency", "growth")
ROUNDS, SECONDS = 5, 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"rounds in which the peers alternate (default {ROUNDS})"
    )
    # wrk knows whole ones only.
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"length of one run (default {SECONDS})")
    parser.add_argument("--peers", default=",".join(peers.ALL), help="which ones, by comma (default all)")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="only these scenarios")
    options = parser.parse_args()
    names = tuple(options.peers.split(","))
    if unknown := [name for name in names if name not in peers.ALL]:
        parser.error(f"--peers: {unknown[0]} is none of {', '.join(peers.ALL)}")
    whole = not options.only and set(names) == set(peers.ALL) and (options.rounds, options.seconds) == (ROUNDS, SECONDS)

    end_by_sigterm()
    about: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.described(),
        "versions": machine.versions(names),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "failed": {},
    }
    OUT.mkdir(exist_ok=True)
    shutil.rmtree(KEPT, ignore_errors=True)
    tables = _measured(names, options.rounds, options.seconds, options.only or SCENARIOS, about)
    if goals := report.goals(tables):
        print(f"### Goals\n\n{goals}\n")
    result = report.as_json(tables, about)
    if about["failed"]:
        sys.exit(f"bench: failed: {', '.join(about['failed'])}")
    if whole:
        publish.publish(result, KEPT)
        print(f"Written: {publish.RESULTS}, and of it {publish.README}, {publish.EXPLANATION} and {publish.PICTURE}")
    else:
        (OUT / "cost.svg").write_text(plot.picture(tables))
        print(f"Not published, because it is not a whole run (python -m bench without options): {OUT}")


def _measured(
    names: tuple[str, ...], rounds: int, seconds: int, scenarios: tuple[str, ...], about: dict[str, Any]
) -> list[Table]:
    """Return the tables of *scenarios*, which are printed and kept as they come; *about* is told which have failed."""
    tables: list[Table] = []
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX) as folder:
        run = Run(Path(folder), names, rounds, seconds, Cores.of_this_machine())
        for scenario in scenarios:
            try:
                found = importlib.import_module(f"bench.scenarios.{scenario}").run(run)
            except Exception as error:  # noqa: BLE001 - a scenario that fails must not cost what the others measured
                traceback.print_exc()
                about["failed"][scenario] = str(error)
                continue
            for one in found:
                if one.series:
                    tables.append(one)
                    print(report.table(one), end="\n\n", flush=True)
            (OUT / "latest.json").write_text(report.as_json(tables, about))
    return tables


if __name__ == "__main__":
    main()
