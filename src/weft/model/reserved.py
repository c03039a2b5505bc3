"""
Ports of each program's own network that weft uses itself (docs/reference/interfaces.md, 3).

Whoever calls one of them, at whatever address, does not reach a program there.
"""

OUTBOUND_PORT = 15001
"""Where the proxy's outbound listener stands in a program's network, transparent, on 0.0.0.0 and [::]."""

DNS_PORT = 15053
"""Where the agent's DNS server stands in a program's network, UDP and TCP, transparent, on 0.0.0.0 and [::]."""

NAMES_PORT = 53
"""Where names are asked for: whatever is sent there goes to `DNS_PORT`."""

RESERVED_PORTS = frozenset({OUTBOUND_PORT, DNS_PORT, NAMES_PORT})
