"""What the measurement of the demo reads of `weft up`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.scenarios import demo

UP = r"""
printf '  0.9 s  productpage-v1-0  ready\nready in 0.9 s\n'
sleep 0.2
printf '\ningressgateway port 8080 is http://127.0.0.1:18080\n\nCtrl-C ends the mesh.\n'
read line
"""


def test_the_gateways_address_is_waited_for(tmp_path: Path) -> None:
    """It is printed after the line that says that the mesh is ready."""
    log = tmp_path / "up.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(["sh", "-c", UP], stdin=subprocess.PIPE, stdout=output) as process,
    ):
        assert demo._address(process, log) == "http://127.0.0.1:18080"
        process.kill()
