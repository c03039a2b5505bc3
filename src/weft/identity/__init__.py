"""
Who is who in the mesh: SPIFFE IDs, the certificate authority, whom to give a certificate, when to renew one.

    authority = Authority(state / "ca", "cluster.local")
    issued = authority.sign(csr_pem, "spiffe://cluster.local/ns/default/sa/reviews")  # {"chain", "bundle", "not_after"}
    authority.bundle()                                                                # PEM: every live root
    pid = attest(connection)                                                          # a connected Unix socket

The agents' half (key, CSR, the proxy's secrets) is `weft.agent.sds`.
"""

from weft.identity.attestation import AttestationRefused, attest
from weft.identity.ca import Authority, AuthorityUnavailable, Issued, SigningRefused
from weft.identity.rotation import Countdown, renew_at, retry_after
from weft.identity.spiffe import InvalidSpiffeId, SpiffeId, parse, workload_identity

__all__ = [
    "AttestationRefused",
    "Authority",
    "AuthorityUnavailable",
    "Countdown",
    "InvalidSpiffeId",
    "Issued",
    "SigningRefused",
    "SpiffeId",
    "attest",
    "parse",
    "renew_at",
    "retry_after",
    "workload_identity",
]
