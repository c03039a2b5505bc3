from typing import Any

ABOUT: dict[str, Any] = {
    "when": "2026-12-01T22:00:00+00:00",
    "machine": {"processor": "AMD EPYC", "cores": 2, "kernel": "Linux 6.18 x86_64"},
    "versions": {"weft-proxy": "0.1.0+1234567", "envoy": "1.40.0", "haproxy": "2.6.12", "wrk": "4.1.0"},
    "rounds": 5,
    "seconds": 3.0,
    "failed": {},
}
"""Of a run, what its result says beside the figures."""
