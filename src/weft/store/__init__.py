"""
Where configuration and everything else that must outlive the control plane is kept.

`sqlite.py` is the embedded store; `files.py` is a read-only source beside it. Both hand out texts as a person wrote
them, never parsed objects: positions and meaning are recomputed by `weft.api`, so that a newer weft reads an older
store with its own eyes.
"""

from weft.store.base import Author, Changes, Content, Lease, Source, Store, StoredObject, StoredRevision, Transition
from weft.store.files import FileSource
from weft.store.sqlite import SqliteStore

__all__ = [
    "Author",
    "Changes",
    "Content",
    "FileSource",
    "Lease",
    "Source",
    "SqliteStore",
    "Store",
    "StoredObject",
    "StoredRevision",
    "Transition",
]
