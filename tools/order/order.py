"""
Write crates/proxy/order.txt: the functions that the demo's proxies enter, which the linker puts side by side. First come those that
are entered between two changes of configuration, when the others have been given back (crates/proxy/src/resident.rs).

Run it with a release build of weft-proxy (`WEFT_PROXY`, or the installed one) when the test of the executable's layout
says that the list has grown old: `.venv/bin/python tools/order/order.py`. Decision 0008 says what it is for.
Needs a C compiler and binutils, and x86-64; the list itself serves every architecture.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench.scenarios.demo import sidecars_mib  # noqa: E402 - found by the line above

ORDER = ROOT / "crates" / "proxy" / "order.txt"

RUNS = 3
"""No two enter quite the same: which lock is waited for, which vector grows."""
PAGES = 500
"""So many that most come after the last change, seconds after the mesh is ready."""

Addresses = set[int]

VARIABLE = (
    (re.compile(r"\.llvm\.\d+$"), ""),  # what the optimiser adds when it makes a name public
    (re.compile(r"\.\d+$"), ".*"),  # one of several private ones of that name
    (re.compile(r"Cs[0-9A-Za-z]+_"), "Cs*_"),  # a crate
    (re.compile(r"^aws_lc_\d+_\d+_\d+_"), "aws_lc_*_"),
)
"""
What differs between builds, toolchains and versions, and what stands for it in a linker script.

The v0 mangling (.cargo/config.toml) says which types a generic function was made for; a name of the legacy one stood for all of them.
"""


def main() -> None:
    proxy = Path(os.environ.get("WEFT_PROXY") or Path(sys.executable).with_name("weft-proxy")).resolve()
    often, once = Addresses(), Addresses()
    for _ in range(RUNS):
        phases = entered(proxy)
        often.update(*(last for *_, last in phases))
        once.update(*(address for each in phases for address in each))
    names = {address: stable(name) for address, name in functions(proxy)}
    first = {names[address] for address in often if address in names}
    then = {names[address] for address in once if address in names} - first
    blocks = (("between changes", first), ("at changes", then))
    ORDER.write_text("".join(f"# {title}\n" + "".join(f"{name}\n" for name in sorted(of)) for title, of in blocks))
    print(f"{ORDER.relative_to(ROOT)}: {len(first)} names of what is entered between changes, {len(then)} of the rest")


def entered(proxy: Path) -> list[list[Addresses]]:
    """Return for each proxy of a demo what it entered: until it gave its code back, from then to the next time, and so on."""
    with tempfile.TemporaryDirectory(prefix="w") as directory:
        preload, folder = Path(directory) / "entered.so", Path(directory) / "entered"
        folder.mkdir()
        source = Path(__file__).with_name("entered.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-Wall", "-o", preload, source], check=True)
        os.environ |= {"LD_PRELOAD": str(preload), "WEFT_ENTERED": str(folder), "WEFT_PROXY": str(proxy)}
        written: list[bytes] = []
        # Before the end, for what ends a proxy runs once.
        sidecars_mib(
            Path(directory), "weft-proxy", PAGES, lambda: written.extend(map(Path.read_bytes, folder.iterdir()))
        )
        del os.environ["LD_PRELOAD"]
    return [phases(addresses) for addresses in written]


def phases(written: bytes) -> list[Addresses]:
    """Return what lies between zeros."""
    found = [Addresses()]
    for (address,) in struct.iter_unpack("<Q", written):
        if address:
            found[-1].add(address)
        else:
            found.append(Addresses())
    return found


def functions(executable: Path) -> list[tuple[int, str]]:
    """Return (address, mangled name) of each function in the symbol table."""
    lines = subprocess.run(["nm", executable], capture_output=True, text=True, check=True).stdout.splitlines()
    parts = [line.split(" ", 2) for line in lines]
    return [(int(address, 16), name) for address, kind, name in parts if address and kind in "tTwW"]


def stable(name: str) -> str:
    """Return the pattern of *name* that other builds have too."""
    for pattern, replacement in VARIABLE:
        name = pattern.sub(replacement, name)
    return name


if __name__ == "__main__":
    main()
