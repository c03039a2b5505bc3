"""
SPIFFE IDs: read and written as the standard has them, with a reason for each that is none.

Source: SPIFFE-ID.md of github.com/spiffe/spiffe, section 2. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from weft.errors import WeftError
from weft.model import Identity

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048
"""SPIFFE-ID 2.3: implementations must support this much and must not make longer ones."""
MAX_TRUST_DOMAIN_BYTES = 255
"""SPIFFE-ID 2.3."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class InvalidSpiffeId(WeftError, ValueError):
    """A text is no SPIFFE ID, or not one of a workload of the mesh. `text` is the text."""

    def __init__(self, text: str, reason: str) -> None:
        self.text = text
        self.reason = reason
        super().__init__(f"{text!r} is not a SPIFFE ID that can be used: {reason}")


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """`path` begins with a slash, or is empty for the trust domain itself."""

    trust_domain: str
    path: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"


def parse(text: str) -> SpiffeId:
    """
    Return the SPIFFE ID that *text* is.

    Raises:
        InvalidSpiffeId: It is none; the message says why.
    """
    if not text:
        raise InvalidSpiffeId(text, "it is empty")
    if len(text.encode()) > MAX_ID_BYTES:
        raise InvalidSpiffeId(text, f"it is longer than {MAX_ID_BYTES} bytes")
    if not text.startswith(SCHEME):
        raise InvalidSpiffeId(text, f"it does not begin with {SCHEME}")
    trust_domain, slash, path = text.removeprefix(SCHEME).partition("/")
    check_trust_domain(trust_domain, text)
    if slash:
        _check_path(path, text)
    return SpiffeId(trust_domain, slash + path)


def check_trust_domain(name: str, text: str | None = None) -> None:
    """
    Check that *name* can be a trust domain (SPIFFE-ID 2.1); *text* is what the error quotes.

    Raises:
        InvalidSpiffeId: It cannot.
    """
    text = name if text is None else text
    if not name:
        raise InvalidSpiffeId(text, "the trust domain is missing")
    if len(name) > MAX_TRUST_DOMAIN_BYTES:
        raise InvalidSpiffeId(text, f"the trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")
    if not _TRUST_DOMAIN.fullmatch(name):
        # No port and no user either: they need characters that are not allowed.
        raise InvalidSpiffeId(text, "the trust domain may have lower-case letters, digits, dots, dashes, underscores")


def _check_path(path: str, text: str) -> None:
    """SPIFFE-ID 2.2. Query and fragment need characters that are not allowed."""
    for segment in path.split("/"):
        if not segment:
            raise InvalidSpiffeId(text, "the path has an empty segment or a slash at its end")
        if segment in (".", ".."):
            raise InvalidSpiffeId(text, "the path has a relative segment")
        if not _SEGMENT.fullmatch(segment):
            raise InvalidSpiffeId(text, "the path may have letters, digits, dots, dashes, underscores")


def workload_identity(text: str) -> Identity:
    """
    Return the identity of a workload in Istio's form, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

    Raises:
        InvalidSpiffeId: It is no SPIFFE ID, or not of that form.
    """
    spiffe_id = parse(text)
    match spiffe_id.path.split("/"):
        case ["", "ns", namespace, "sa", service_account]:
            return Identity(spiffe_id.trust_domain, namespace, service_account)
    raise InvalidSpiffeId(text, "its path is not /ns/<namespace>/sa/<service account>")
