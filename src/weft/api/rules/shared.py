"""Rules that more than one kind has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from weft.api.check import Finding
from weft.api.names import host_fault, is_address, label_fault, label_key_fault, label_value_fault, object_name_fault
from weft.api.regex import fault as regex_fault
from weft.api.yaml import Path


def labels(path: Path, values: Mapping[str, str]) -> Iterator[Finding]:
    """Keys and values of labels."""
    for key, value in values.items():
        if (fault := label_key_fault(key)) is not None:
            yield Finding((*path, key), fault, code="bad-label")
        if (fault := label_value_fault(value)) is not None:
            yield Finding((*path, key), fault, code="bad-label", at_value=True)


def export_to(values: Sequence[str], namespace: str) -> Iterator[Finding]:
    """Namespaces to export to: no two alike, `*` alone."""
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        target = namespace if value == "." else value
        if target in seen:
            message = f"`{value}` says the same as the entry at {{first}}."
            first = ("exportTo", seen[target])
            yield Finding(("exportTo", index), message, "Keep one of them.", at_value=True, first=first)
        seen.setdefault(target, index)
    if "*" in seen and len(values) > 1:
        message = '"*" exports to all namespaces, so no other can stand beside it.'
        yield Finding(("exportTo",), message, 'Keep "*" or the others.')


def regex(path: Path, pattern: str) -> Iterator[Finding]:
    """A regular expression of RE2 that weft-proxy reads the same way."""
    if not pattern:
        yield Finding(path, "the regular expression is empty.", "Leave the condition out.", "bad-regex", at_value=True)
    elif (fault := regex_fault(pattern)) is not None:
        where = f"at character {fault.offset + 1}, {fault.message}"
        if fault.unsupported:
            message = f"weft does not honour `{pattern}` yet: {where}"
            yield Finding(path, message, fault.remedy, "not-honoured", at_value=True)
        else:
            message = f"`{pattern}` is no regular expression of RE2: {where}"
            yield Finding(path, message, fault.remedy, "bad-regex", at_value=True)


def hostname(path: Path, host: str) -> Iterator[Finding]:
    """A host of the Gateway API: a DNS name, or one with a wildcard as its whole first label."""
    fault = host_fault(host)
    if is_address(host):
        yield Finding(path, f"a hostname is a name, not an address as `{host}`.", code="bad-host", at_value=True)
    elif fault is not None or host == "*" or ("*" in host and not host.startswith("*.")):
        message = fault or f"a wildcard is a whole label before a name, not as in `{host}`."
        remedy = "Leave `hostname` out for every name." if host == "*" else "Write `*.example.com`, say."
        yield Finding(path, message, remedy, "bad-host", at_value=True)
    elif host != host.lower():
        yield Finding(path, f"a hostname is lower-case, not `{host}`.", code="bad-host", at_value=True)


def reference(path: Path, name: str, namespace: str) -> Iterator[Finding]:
    """Name and namespace of an object elsewhere."""
    if (fault := object_name_fault(name)) is not None:
        yield Finding((*path, "name"), fault, code="bad-name", at_value=True)
    if namespace and (fault := label_fault(namespace, "a namespace")) is not None:
        yield Finding((*path, "namespace"), fault, code="bad-name", at_value=True)
