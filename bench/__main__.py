"""`python -m bench`: run the scenarios, print their tables, the goals and README.md's section; keep all in bench/out/."""

from __future__ import annotations

import argparse
import datetime
import importlib
import platform
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from bench import peers, plot, report
from bench.measure import OUT, Cores, Run, Table
from bench.process import end_by_sigterm

SCENARIOS = ("s1", "s2", "s3", "s4", "s5", "s6", "s9", "s10", "memory", "start", "demo", "latency", "growth")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the peers alternate (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="length of one run (default 3)")
    parser.add_argument("--peers", default=",".join(peers.ALL), help="which ones, by comma (default all)")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="only these scenarios")
    options = parser.parse_args()
    names = tuple(options.peers.split(","))
    if unknown := [name for name in names if name not in peers.ALL]:
        parser.error(f"--peers: {unknown[0]} is none of {', '.join(peers.ALL)}")

    end_by_sigterm()
    about: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "rounds": options.rounds,
        "seconds": options.seconds,
        "failed": {},
    }
    OUT.mkdir(exist_ok=True)
    tables: list[Table] = []
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        run = Run(Path(folder), names, options.rounds, options.seconds, Cores.of_this_machine())
        for scenario in options.only or SCENARIOS:
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
    if goals := report.goals(tables):
        print(goals, end="\n\n")
    (OUT / "cost.svg").write_text(plot.picture(tables))
    print(f"The picture of it, docs/images/cost.svg in README.md: {OUT / 'cost.svg'}\n")
    print(f"### For README.md\n\n{report.readme(tables, options.rounds, options.seconds)}")
    if about["failed"]:
        sys.exit(f"bench: failed: {', '.join(about['failed'])}")


if __name__ == "__main__":
    main()
