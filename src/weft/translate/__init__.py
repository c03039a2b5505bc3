"""
(Snapshot, Proxy) -> xDS resources, and what can be said about them. Pure: no I/O, no clock, no globals.

    resources = Translator().translate(snapshot, proxy)     # or translate(snapshot, proxy), without memory
    check(resources)                                        # errors: something is missing that weft itself promised
    refusals(item, proxy.data_plane)                        # errors: fields that this data plane cannot honour
    affected(before, after)                                 # names added, changed, removed, by type URL

Read `translator.py` first: it is the table of contents.
"""

from weft.translate.capabilities import DATA_PLANES, Capability, Shortfall, able, refusals, shortfalls
from weft.translate.check import check
from weft.translate.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    LISTENER,
    ROUTE_CONFIGURATION,
    Difference,
    Resource,
    Resources,
    affected,
)
from weft.translate.translator import Translator, translate

__all__ = [
    "CLUSTER",
    "CLUSTER_LOAD_ASSIGNMENT",
    "DATA_PLANES",
    "LISTENER",
    "ROUTE_CONFIGURATION",
    "Capability",
    "Difference",
    "Resource",
    "Resources",
    "Shortfall",
    "Translator",
    "able",
    "affected",
    "check",
    "refusals",
    "shortfalls",
    "translate",
]
