"""
What the proxies tell of the traffic, taken in and kept for questions.

`records.py` reads one access record; `history.py` keeps the configurations that were in force; `lookups.py` the names
that programs asked for in vain, of which agents tell and no proxy. Records come in and are
kept by `weft._native.RecordStore`, in a thread of Rust: nothing here runs for each request. Used by the control plane.
"""

from weft.telemetry.history import Configuration, History
from weft.telemetry.lookups import Lookups
from weft.telemetry.records import LOGS, Record, owner_of, read

__all__ = [
    "LOGS",
    "Configuration",
    "History",
    "Lookups",
    "Record",
    "owner_of",
    "read",
]
