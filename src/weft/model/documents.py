"""Which files of a directory are documents to apply, for all that are given a directory."""

from __future__ import annotations

from pathlib import PurePath

SUFFIXES = (".yaml", ".yml", ".json")
"""What is read of a directory: kubectl's choice."""

MESH_FILE = "weft.yaml"
"""Describes a mesh, and stands beside what is applied to it; no object is in it."""


def is_document(name: str) -> bool:
    """Whether a file called *name* is read of a directory that somebody names."""
    path = PurePath(name)
    return path.suffix in SUFFIXES and path.name != MESH_FILE


def without_documents(*, mesh_file: bool) -> str:
    """Return what is said of a directory in which none is, with a MESH_FILE in it or not."""
    beside = f" but {MESH_FILE}, which `weft up` reads" if mesh_file else ""
    return f"holds no file that ends in {', '.join(SUFFIXES)}{beside}."
