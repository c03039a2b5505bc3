"""What each path's body is: both ends can make it, so both can tell whether it arrived whole."""

from __future__ import annotations

import hashlib

CHUNK = 32


def body(path: str) -> bytes:
    """Return the body of *path*; `/bytes/5000/x` has 5000 bytes, every other path 32."""
    words = path.split("?", maxsplit=1)[0].split("/")
    size = int(words[2]) if words[1] == "bytes" else CHUNK
    seed = hashlib.sha256(path.encode()).digest()
    return (seed * (size // CHUNK + 1))[:size]
