"""
What names may look like: Kubernetes' objects and labels, DNS hosts, HTTP headers, ports. Each check returns a sentence
about what is wrong, or None. And what the names of gateways mean.

Sources: RFC 1123 2.1 as Kubernetes applies it (`metadata.name`, labels), RFC 9110 5.1 for header names, Istio's
validation for hosts with wildcards.
"""

from __future__ import annotations

import ipaddress
import re

from weft.model.loopback import FORWARD_PROXY_PORT
from weft.model.reserved import NAMES_PORT, RESERVED_PORTS

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?\Z")
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9]*[A-Za-z0-9])?\Z")
_WILDCARD_LABEL = re.compile(r"(?:\*|(?:\*|\*-)?[A-Za-z0-9](?:[-A-Za-z0-9]*[A-Za-z0-9])?)\Z")
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_SUBSET = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9]*[A-Za-z0-9])?\Z")

PSEUDO_HEADERS = frozenset((":method", ":scheme", ":authority", ":path", ":status"))

MESH = "mesh"
"""The gateway name that stands for all sidecars."""

MAX_LABEL = 63
MAX_NAME = 253


def label_fault(name: str, what: str = "a name") -> str | None:
    """RFC 1123 label: what a namespace or a program may be called."""
    if len(name) <= MAX_LABEL and _LABEL.match(name):
        return None
    return f"{what} is at most {MAX_LABEL} lower-case letters, digits and inner hyphens, not `{name}`."


def object_name_fault(name: str) -> str | None:
    """RFC 1123 subdomain: what a custom resource may be called."""
    if len(name) <= MAX_NAME and all(_LABEL.match(part) and len(part) <= MAX_LABEL for part in name.split(".")):
        return None
    return f"a name is lower-case letters, digits and inner hyphens, in parts divided by dots, not `{name}`."


def service_name_fault(name: str) -> str | None:
    """A service's name is one label of its host."""
    return label_fault(name, "a service's name")


def label_key_fault(key: str) -> str | None:
    """Key of a label: `version`, `example.com/tier`."""
    prefix, slash, name = key.rpartition("/")
    prefix_holds = not slash or (len(prefix) <= MAX_NAME and all(_HOST_LABEL.match(part) for part in prefix.split(".")))
    if prefix_holds and len(name) <= MAX_LABEL and _QUALIFIED.match(name):
        return None
    return f"a label's key is letters, digits, `-`, `_`, `.`, perhaps after `example.com/`, not `{key}`."


def label_value_fault(value: str) -> str | None:
    """Value of a label; may be empty."""
    if not value or (len(value) <= MAX_LABEL and _QUALIFIED.match(value)):
        return None
    return f"a label's value is at most {MAX_LABEL} letters, digits, `-`, `_`, `.`, not `{value}`."


def version_fault(version: str) -> str | None:
    """Version of a program: the value of its label `version`, as Istio's subsets look for it (`v1.2`); never empty."""
    return label_value_fault(version) if version else "a version is empty."


def subset_fault(name: str) -> str | None:
    """Name of a subset; Istio allows capitals here."""
    if len(name) <= MAX_LABEL and _SUBSET.match(name):
        return None
    return f"a subset's name is at most {MAX_LABEL} letters, digits and inner hyphens, not `{name}`."


def host_fault(host: str, *, wildcard: bool = True) -> str | None:
    """A DNS name, short or full; with *wildcard* its first label may be `*` or begin with one."""
    if not host:
        return "a host is empty."
    if len(host) > 255:
        return f"a host has at most 255 characters, not {len(host)}."
    first, dot, rest = host.partition(".")
    pattern = _WILDCARD_LABEL if wildcard else _HOST_LABEL
    if len(first) > MAX_LABEL or not pattern.match(first):
        if "*" in first and not wildcard:
            return f"no wildcard can stand in `{host}`."
        return f"`{host}` is no DNS name: `{first}` is no label."
    labels = rest.split(".") if dot else []
    for index, label in enumerate(labels):
        if label == "" and index == len(labels) - 1:
            continue
        if "*" in label:
            return f"a wildcard can only begin a host, not stand in `{host}`."
        if len(label) > MAX_LABEL or not _HOST_LABEL.match(label):
            return f"`{host}` is no DNS name: `{label}` is no label."
    if (labels or [first])[-1].isdigit() and (dot or not wildcard):
        return f"`{host}` is no DNS name: its last part is a number."
    return None


def qualified_gateway(name: str, namespace: str) -> str:
    """
    Return `namespace/name` for a gateway as a document of *namespace* names it; `mesh` stays.

    The old way to name one is that of a host: `name.namespace`, `name.namespace.svc.cluster.local` (Istio's
    `resolveGatewayName`).
    """
    if name == MESH or "/" in name:
        return name
    gateway, dot, rest = name.partition(".")
    return f"{rest.partition('.')[0]}/{gateway}" if dot else f"{namespace}/{name}"


def is_address(text: str) -> bool:
    """Return whether *text* is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def port_fault(number: int) -> str | None:
    """A TCP port."""
    return None if 1 <= number <= 65535 else f"a port is 1 to 65535, not {number}."


def reserved_port_fault(number: int, *, explicit: bool = False) -> str | None:
    """A TCP port at which a program can be called, or can call the host; *explicit* is the mode."""
    if number == NAMES_PORT and not explicit:
        return "port 53 is where programs ask for names, and weft answers whatever is sent there."
    if number in RESERVED_PORTS and (number == FORWARD_PROXY_PORT or not explicit):
        return f"port {number} is weft's own beside each program."
    return None


def header_name_fault(name: str) -> str | None:
    """RFC 9110 5.1: a field name is a token."""
    if not name:
        return "a header's name is empty."
    return None if _HEADER.match(name) else f"`{name}` is no header name."


ALWAYS_REMOVED = frozenset({"keep-alive", "proxy-connection"})
"""Header fields about one connection that go no further than it, whatever a configuration says."""

FRAMING = ALWAYS_REMOVED | {"connection", "content-length", "te", "transfer-encoding", "upgrade"}
"""
Header fields that each proxy writes anew for each connection (RFC 9110 7.6.1, RFC 9112 6).

weft-proxy takes none of them from a configuration (`weft_core::header_edit`). Envoy does, and sends a message that
contradicts itself: a second length, or chunks that are none.
"""


def framing_fault(name: str, *, removed: bool = False) -> str | None:
    """A header to edit, or to take away, is none that says where a message ends or what becomes of its connection."""
    if name.lower() not in (FRAMING - ALWAYS_REMOVED if removed else FRAMING):
        return None
    return f"`{name}` cannot be edited: each proxy writes it anew, by the message and its connection."


def control_character_fault(value: str) -> str | None:
    """RFC 9110 4.1, 5.5: neither a target nor a header holds a control character, whoever writes it."""
    if any(character < " " or character == "\x7f" for character in value):
        return f"{value!r} holds a control character."
    return None
