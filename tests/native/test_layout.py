"""How weft-proxy's executable is laid out: what runs lies side by side (docs/decisions/0008-resident-memory.md)."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

SECTION = ".text.entered"
LEAST_BYTES = 3 << 19
"""Of 3.3 MB in a release build when the list was made; what is renamed falls out of it, and all of it with RUSTFLAGS of another mangling."""


def section_sizes(executable: Path) -> dict[str, int]:
    """Return the size of each section of a 64-bit little-endian ELF file, by name."""
    content = executable.read_bytes()
    assert content[:6] == b"\x7fELF\x02\x01", executable
    start, size, count, names = struct.unpack_from("<40xQ10x3H", content)
    headers = [struct.unpack_from("<IIQQQQ", content, start + number * size) for number in range(count)]
    texts = headers[names][4]
    found = {}
    for name, _, _, _, _, length in headers:
        begin = texts + name
        found[content[begin : content.index(b"\0", begin)].decode()] = length
    return found


def test_what_a_proxy_enters_lies_side_by_side() -> None:
    """The linker found most of the functions that order.txt names; if not, run `tools/order/order.py`."""
    proxy = Path(os.environ.get("WEFT_PROXY") or Path(sys.executable).with_name("weft-proxy"))
    assert section_sizes(proxy).get(SECTION, 0) >= LEAST_BYTES
