"""
The mesh as frozen values: services, workloads, configuration objects, proxies, snapshots.

No I/O, no clock. Everybody imports from here; this package imports nothing else of weft but names.
"""

from weft.model.config import ROOT_NAMESPACE, ConfigKey, ConfigObject
from weft.model.documents import MESH_FILE, is_document, without_documents
from weft.model.origin import STANDARD_INPUT, Origin, Problem, Severity, decode, shown
from weft.model.proxy import (
    MESH_CIDR,
    MESH_IPV6_CIDR,
    SERVICE_CIDR,
    Interception,
    LocalCaller,
    Proxy,
    ProxyKind,
    Published,
)
from weft.model.service import Protocol, Service, ServicePort
from weft.model.snapshot import Snapshot
from weft.model.workload import Identity, Workload, WorkloadPort

__all__ = [
    "MESH_CIDR",
    "MESH_FILE",
    "MESH_IPV6_CIDR",
    "ROOT_NAMESPACE",
    "SERVICE_CIDR",
    "STANDARD_INPUT",
    "ConfigKey",
    "ConfigObject",
    "Identity",
    "Interception",
    "LocalCaller",
    "Origin",
    "Problem",
    "Protocol",
    "Proxy",
    "ProxyKind",
    "Published",
    "Service",
    "ServicePort",
    "Severity",
    "Snapshot",
    "Workload",
    "WorkloadPort",
    "decode",
    "is_document",
    "shown",
    "without_documents",
]
